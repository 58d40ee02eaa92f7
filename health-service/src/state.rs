//! Up or down: the state machine of one backend.
//!
//! The first result decides at once whether the backend is up or down. After that, [`Thresholds::fall`] consecutive
//! failures mark it down, and [`Thresholds::rise`] consecutive successes mark it up. There is no clock and no socket
//! here: the caller passes the result and the time.

use std::time::SystemTime;

use crate::settings::Thresholds;

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckOutcome {
    /// The check passed.
    Passed,
    /// The check failed for this reason.
    Failed(String),
    /// The check could not be made, for a reason that lies in this process. It does not change the state.
    NotMade(String),
}

/// The health of one backend, and the progress towards the next change.
#[derive(Clone, Debug)]
pub struct BackendHealth {
    thresholds: Thresholds,
    /// None before the first result.
    verdict: Option<HealthVerdict>,
    /// Number of consecutive results that contradict the state.
    streak: u32,
}

/// A change between up and down, or the first result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateChange {
    /// Whether the backend is up now.
    pub up: bool,
    /// Whether this is the first result.
    pub first: bool,
    /// Why: `3 checks failed: connection refused`, `2 checks passed`.
    pub reason: String,
}

/// The state of one backend, with its reason and times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthVerdict {
    /// Whether the backend is up.
    pub up: bool,
    /// Why the backend entered this state: `3 checks failed: connection refused`.
    pub reason: String,
    /// The time at which it entered this state.
    pub since: SystemTime,
    /// The time at which the latest check ended.
    pub checked: SystemTime,
    /// Why the latest check failed or could not be made, if so. A backend that is still up can already fail checks.
    pub last_failure: Option<String>,
}

// === impl BackendHealth ===

impl BackendHealth {
    /// A backend without any result.
    pub fn new(thresholds: Thresholds) -> Self {
        Self { thresholds, verdict: None, streak: 0 }
    }

    /// A backend with the `verdict` of other thresholds, which holds until these thresholds are reached.
    pub(crate) fn resumed(thresholds: Thresholds, verdict: HealthVerdict) -> Self {
        Self { thresholds, verdict: Some(verdict), streak: 0 }
    }

    /// Applies the result of a check that ended at `now`. Returns the change if the state changes.
    pub fn observe(&mut self, outcome: &CheckOutcome, now: SystemTime) -> Option<StateChange> {
        let passed = *outcome == CheckOutcome::Passed;
        let first = self.verdict.is_none();
        if let Some(verdict) = &mut self.verdict {
            verdict.note(outcome, now);
        }
        if matches!(outcome, CheckOutcome::NotMade(_)) {
            return None;
        }
        if self.verdict.as_ref().is_some_and(|verdict| verdict.up == passed) {
            self.streak = 0;
            return None;
        }
        self.streak += 1;
        if !first && self.streak < self.threshold(passed) {
            return None;
        }
        Some(self.enter(outcome, first, now))
    }

    /// Whether recent results contradict the state, but no threshold is reached yet.
    pub(crate) fn is_changing(&self) -> bool {
        self.streak > 0
    }

    /// The verdict; `None` before the first result.
    pub fn verdict(&self) -> Option<&HealthVerdict> {
        self.verdict.as_ref()
    }

    fn threshold(&self, passed: bool) -> u32 {
        if passed { self.thresholds.rise.get() } else { self.thresholds.fall.get() }
    }

    fn enter(&mut self, outcome: &CheckOutcome, first: bool, now: SystemTime) -> StateChange {
        let reason = reason(outcome, self.streak);
        let up = *outcome == CheckOutcome::Passed;
        self.streak = 0;
        self.verdict = Some(HealthVerdict::entered(outcome, reason.clone(), now));
        StateChange { up, first, reason }
    }
}

// === impl HealthVerdict ===

impl HealthVerdict {
    pub(crate) fn entered(outcome: &CheckOutcome, reason: String, now: SystemTime) -> Self {
        let mut verdict = Self {
            up: *outcome == CheckOutcome::Passed,
            reason,
            since: now,
            checked: now,
            last_failure: None,
        };
        verdict.note(outcome, now);
        verdict
    }

    /// Records the latest result, which may or may not agree with the verdict.
    pub fn note(&mut self, outcome: &CheckOutcome, now: SystemTime) {
        self.checked = now;
        self.last_failure = match outcome {
            CheckOutcome::Passed => None,
            CheckOutcome::Failed(why) | CheckOutcome::NotMade(why) => Some(why.clone()),
        };
    }
}

fn reason(outcome: &CheckOutcome, count: u32) -> String {
    let checks = if count == 1 { "check" } else { "checks" };
    match outcome {
        CheckOutcome::Passed => format!("{count} {checks} passed"),
        CheckOutcome::Failed(why) | CheckOutcome::NotMade(why) => format!("{count} {checks} failed: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn thresholds(rise: u32, fall: u32) -> Thresholds {
        let count = |count| NonZeroU32::new(count).expect("tests use thresholds above zero");
        Thresholds { rise: count(rise), fall: count(fall) }
    }

    fn refused() -> CheckOutcome {
        CheckOutcome::Failed("connection refused".to_owned())
    }

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    #[test]
    fn a_backend_is_down_after_a_failed_first_check() {
        let mut health = BackendHealth::new(thresholds(2, 3));
        let change = health.observe(&refused(), at(1)).expect("the first result decides");
        assert!(!change.up && change.first);
        assert_eq!(change.reason, "1 check failed: connection refused");
        assert!(!health.is_changing());
    }

    #[test]
    fn a_backend_is_up_after_a_passed_first_check() {
        let mut health = BackendHealth::new(thresholds(2, 3));
        let change = health.observe(&CheckOutcome::Passed, at(1)).expect("the first result decides");
        assert_eq!(change, StateChange { up: true, first: true, reason: "1 check passed".to_owned() });
    }

    #[test]
    fn fall_failures_mark_a_backend_down_and_rise_successes_mark_it_up() {
        let mut health = BackendHealth::new(thresholds(2, 3));
        health.observe(&CheckOutcome::Passed, at(0));
        assert_eq!(health.observe(&refused(), at(1)), None);
        assert!(health.is_changing());
        assert_eq!(health.observe(&refused(), at(2)), None);
        let down = health.observe(&refused(), at(3)).expect("the third failure marks it down");
        assert_eq!(down.reason, "3 checks failed: connection refused");
        assert!(!down.first);
        assert_eq!(health.observe(&CheckOutcome::Passed, at(4)), None);
        let up = health.observe(&CheckOutcome::Passed, at(5)).expect("the second success marks it up");
        assert_eq!(up.reason, "2 checks passed");
    }

    #[test]
    fn a_success_resets_the_count_of_failures() {
        let mut health = BackendHealth::new(thresholds(2, 2));
        for outcome in [CheckOutcome::Passed, refused(), CheckOutcome::Passed, refused()] {
            health.observe(&outcome, at(0));
        }
        assert!(health.verdict().is_some_and(|verdict| verdict.up));
    }

    #[test]
    fn a_check_that_could_not_be_made_is_shown_and_does_not_change_the_state() {
        let mut health = BackendHealth::new(thresholds(1, 2));
        let not_made = CheckOutcome::NotMade("too many open files".to_owned());
        assert_eq!((health.observe(&not_made, at(1)), health.verdict()), (None, None));
        health.observe(&CheckOutcome::Passed, at(2));
        for outcome in [&refused(), &not_made, &not_made] {
            assert_eq!(health.observe(outcome, at(3)), None);
        }
        let verdict = health.verdict().expect("there was a result");
        assert_eq!((verdict.up, verdict.last_failure.as_deref()), (true, Some("too many open files")));
        assert!(
            health.observe(&refused(), at(4)).is_some_and(|change| !change.up),
            "the second failure in a row"
        );
    }

    #[test]
    fn the_verdict_has_the_time_of_the_change_and_the_latest_result() {
        let mut health = BackendHealth::new(thresholds(2, 3));
        assert_eq!(health.verdict(), None);
        health.observe(&CheckOutcome::Passed, at(1));
        health.observe(&refused(), at(2));
        let verdict = health.verdict().expect("there was a result");
        assert!(verdict.up);
        assert_eq!((verdict.since, verdict.checked), (at(1), at(2)));
        assert_eq!(verdict.reason, "1 check passed");
        assert_eq!(verdict.last_failure.as_deref(), Some("connection refused"));
    }

    #[test]
    fn an_earlier_verdict_holds_until_the_new_thresholds_are_reached() {
        let mut before = BackendHealth::new(thresholds(2, 3));
        before.observe(&CheckOutcome::Passed, at(1));
        before.observe(&refused(), at(2));
        before.observe(&refused(), at(3));
        let verdict = before.verdict().expect("there was a result").clone();
        let mut health = BackendHealth::resumed(thresholds(2, 2), verdict);
        assert!(!health.is_changing());
        assert_eq!(health.observe(&refused(), at(4)), None);
        assert_eq!(health.verdict().map(|verdict| (verdict.up, verdict.since)), Some((true, at(1))));
        let down = health.observe(&refused(), at(5)).expect("the second failure marks it down");
        assert_eq!((down.first, down.reason.as_str()), (false, "2 checks failed: connection refused"));
    }

    /// The state after `results`, computed slowly from the whole history after each result.
    fn reference(results: &[bool], rise: usize, fall: usize) -> Option<bool> {
        let mut state = None;
        for end in 1..=results.len() {
            let history = &results[..end];
            let ends_with = |result: bool, count: usize| {
                history.len() >= count && history[end - count..].iter().all(|&seen| seen == result)
            };
            state = match state {
                None => Some(history[0]),
                Some(true) if ends_with(false, fall) => Some(false),
                Some(false) if ends_with(true, rise) => Some(true),
                same => same,
            };
        }
        state
    }

    proptest! {
        #[test]
        fn the_state_changes_exactly_when_the_reference_does(
            results in prop::collection::vec(any::<bool>(), 1..60),
            rise in 1_u32..5,
            fall in 1_u32..5,
        ) {
            let mut health = BackendHealth::new(thresholds(rise, fall));
            for end in 1..=results.len() {
                let (rise, fall) = (rise as usize, fall as usize);
                let before = reference(&results[..end - 1], rise, fall);
                let after = reference(&results[..end], rise, fall);
                let outcome = if results[end - 1] { CheckOutcome::Passed } else { refused() };
                let change = health.observe(&outcome, at(end as u64));
                prop_assert_eq!(change.map(|change| change.up), after.filter(|_| before != after));
                prop_assert_eq!(health.verdict().map(|verdict| verdict.up), after);
                prop_assert_eq!(health.is_changing(), after != Some(results[end - 1]));
            }
        }
    }
}
