//! Decision to roll back a reload, based on the responses of the last seconds.
//!
//! Responses are counted twice a second. A reload is judged until its window ends. It is rolled back if the share of
//! failed responses after it exceeds the configured limit and also exceeds the share in a window of equal length before
//! it. A pool that failed before the reload is no reason for a rollback, because the reload might be the repair.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use lb_service::traffic::ResponseCounts;

use crate::config::RollbackPlan;

/// Minimum number of responses for a decision.
const ENOUGH: u64 = 20;
/// Maximum age of the counts that are kept; no window is longer.
const LONGEST: Duration = Duration::from_secs(3600);

/// Past counts of responses.
#[derive(Debug, Default)]
pub(super) struct Past(VecDeque<(Instant, ResponseCounts)>);

/// A reload that is being judged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    rule: RollbackPlan,
    began: Instant,
    before: ResponseCounts,
    /// The share of failed responses before the reload, in percent.
    rate_before: f64,
}

/// Judgement of a reload.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Judgement {
    /// The window has not ended yet.
    Open,
    /// The window ended without too many failures.
    Acquitted,
    /// The reload must be rolled back.
    Guilty {
        /// The share of failed responses, in percent.
        rate: f64,
    },
}

/// Returns the counts since `before`.
fn since(now: ResponseCounts, before: ResponseCounts) -> ResponseCounts {
    ResponseCounts { all: now.all - before.all, failed: now.failed - before.failed }
}

/// Returns the share of failed responses in percent; `None` if there are fewer than `ENOUGH`.
fn rate(responses: ResponseCounts) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "counts of a window are far below 2^52")]
    (responses.all >= ENOUGH).then(|| 100.0 * responses.failed as f64 / responses.all as f64)
}

// === impl Past ===

impl Past {
    /// Adds a count, and drops counts older than `keep`.
    pub(super) fn note(&mut self, now: Instant, responses: ResponseCounts, keep: Duration) {
        let keep = keep.min(LONGEST);
        // One older count stays as the starting point.
        while self.0.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= keep) {
            self.0.pop_front();
        }
        self.0.push_back((now, responses));
    }

    /// Starts the trial of a reload that is now in effect.
    pub(super) fn try_it(&self, rule: RollbackPlan, now: Instant, responses: ResponseCounts) -> Trial {
        let from = self.0.iter().find(|(at, _)| now.saturating_duration_since(*at) <= rule.window);
        let rate_before = from.and_then(|(_, then)| rate(since(responses, *then)));
        Trial { rule, began: now, before: responses, rate_before: rate_before.unwrap_or(0.0) }
    }
}

// === impl Trial ===

impl Trial {
    /// Returns this trial with the earlier failure rate of `first`, a trial that is still open. Failures since `first`
    /// began are not counted as older failures.
    #[must_use]
    pub(super) fn together_with(self, first: &Self) -> Self {
        Self { rate_before: first.rate_before, ..self }
    }

    /// Returns the reason for the rollback as text.
    pub(super) fn reason(&self, rate: f64, now: Instant) -> String {
        let seconds = now.saturating_duration_since(self.began).as_secs_f64();
        let limit = self.rule.error_rate;
        format!(
            "{rate:.1} % of the requests failed in the {seconds:.1} s after the reload (limit: {limit} %)"
        )
    }

    /// Judges the reload by the current counts.
    pub(super) fn judge(&self, now: Instant, responses: ResponseCounts) -> Judgement {
        let rate = rate(since(responses, self.before)).unwrap_or(0.0);
        if rate > f64::from(self.rule.error_rate) && rate > self.rate_before {
            Judgement::Guilty { rate }
        } else if now.saturating_duration_since(self.began) >= self.rule.window {
            Judgement::Acquitted
        } else {
            Judgement::Open
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: RollbackPlan = RollbackPlan { error_rate: 20, window: Duration::from_secs(10) };

    fn responses(all: u64, failed: u64) -> ResponseCounts {
        ResponseCounts { all, failed }
    }

    /// Returns a trial that begins after a past in which `failing` of 100 responses per second failed.
    fn trial(failing: u64) -> (Trial, Instant, ResponseCounts) {
        let (mut past, began) = (Past::default(), Instant::now());
        for second in 0..=20 {
            past.note(
                began + Duration::from_secs(second),
                responses(100 * second, failing * second),
                RULE.window,
            );
        }
        let (now, count) = (began + Duration::from_secs(20), responses(2000, failing * 20));
        (past.try_it(RULE, now, count), now, count)
    }

    #[test]
    fn many_failures_cause_an_immediate_rollback_and_few_never_do() {
        let (trial, now, before) = trial(0);
        let later = |all, failed| responses(before.all + all, before.failed + failed);
        let second = now + Duration::from_secs(1);
        assert_eq!(trial.judge(second, later(100, 50)), Judgement::Guilty { rate: 50.0 });
        assert_eq!(trial.judge(second, later(100, 20)), Judgement::Open, "a rate at the limit is allowed");
        assert_eq!(trial.judge(now + RULE.window, later(1000, 200)), Judgement::Acquitted);
        assert_eq!(trial.judge(now + RULE.window, later(1000, 201)), Judgement::Guilty { rate: 20.1 });
    }

    #[test]
    fn a_few_responses_never_cause_a_rollback() {
        let (trial, now, before) = trial(0);
        let all_failed = |n| responses(before.all + n, before.failed + n);
        assert_eq!(trial.judge(now, all_failed(ENOUGH - 1)), Judgement::Open);
        assert!(matches!(trial.judge(now, all_failed(ENOUGH)), Judgement::Guilty { .. }));
    }

    #[test]
    fn earlier_failures_do_not_cause_a_rollback() {
        let (trial, now, before) = trial(60);
        let later = |failed| responses(before.all + 100, before.failed + failed);
        assert_eq!(trial.judge(now, later(55)), Judgement::Open);
        assert!(matches!(trial.judge(now, later(70)), Judgement::Guilty { .. }));
    }

    #[test]
    fn failures_after_a_previous_open_reload_cause_a_rollback() {
        let (first, ..) = trial(0);
        let (second, now, before) = trial(60);
        let second = second.together_with(&first);
        let later = responses(before.all + 100, before.failed + 55);
        assert_eq!(second.judge(now, later), Judgement::Guilty { rate: 55.0 });
    }

    #[test]
    fn counts_older_than_the_window_are_dropped() {
        let (mut past, began) = (Past::default(), Instant::now());
        for second in 0..1000 {
            past.note(began + Duration::from_secs(second), ResponseCounts::default(), RULE.window);
        }
        assert!(past.0.len() <= 12, "{}", past.0.len());
    }
}
