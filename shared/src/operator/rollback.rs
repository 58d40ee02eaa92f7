//! Whether a reload is to be taken back: what the answers of the last seconds say about it.
//!
//! Answers are counted twice a second. A reload is judged until its window is over, and is blamed when more of the answers after
//! it failed than the configuration allows, and more than did in as long a time before it: what was broken already is no
//! reason to take back what may have been meant to mend it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use lb_service::traffic::Answers;

use crate::config::RollbackPlan;

/// Fewer answers say nothing.
const ENOUGH: u64 = 20;
/// As far back as is ever asked for: the longest time that is kept.
const LONGEST: Duration = Duration::from_secs(3600);

/// Counts of the past.
#[derive(Debug, Default)]
pub(super) struct Past(VecDeque<(Instant, Answers)>);

/// A reload that is being judged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    rule: RollbackPlan,
    began: Instant,
    before: Answers,
    /// The share that had failed before, in percent.
    rate_before: f64,
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Judgement {
    /// Wait: the window is not over.
    Open,
    /// The window is over and it did no harm.
    Acquitted,
    /// It is to be taken back: so many percent failed.
    Guilty {
        /// In percent.
        rate: f64,
    },
}

/// Those since `before`.
fn since(now: Answers, before: Answers) -> Answers {
    Answers { all: now.all - before.all, failed: now.failed - before.failed }
}

/// Which part of them failed, in percent; none of too few.
fn rate(answers: Answers) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "counts of a window are far below 2^52")]
    (answers.all >= ENOUGH).then(|| 100.0 * answers.failed as f64 / answers.all as f64)
}

// === impl Past ===

impl Past {
    /// Takes in a count. `keep`: how far back will be asked for.
    pub(super) fn note(&mut self, now: Instant, answers: Answers, keep: Duration) {
        let keep = keep.min(LONGEST);
        // One that is older than asked for stays, to count from.
        while self.0.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= keep) {
            self.0.pop_front();
        }
        self.0.push_back((now, answers));
    }

    /// A reload by this rule has come into effect.
    pub(super) fn try_it(&self, rule: RollbackPlan, now: Instant, answers: Answers) -> Trial {
        let from = self.0.iter().find(|(at, _)| now.saturating_duration_since(*at) <= rule.window);
        let rate_before = from.and_then(|(_, then)| rate(since(answers, *then)));
        Trial { rule, began: now, before: answers, rate_before: rate_before.unwrap_or(0.0) }
    }
}

// === impl Trial ===

impl Trial {
    /// The same when one before it is still being judged: what failed since then was not so before.
    #[must_use]
    pub(super) fn together_with(self, first: &Self) -> Self {
        Self { rate_before: first.rate_before, ..self }
    }

    /// Why it is taken back, in words.
    pub(super) fn reason(&self, rate: f64, now: Instant) -> String {
        let seconds = now.saturating_duration_since(self.began).as_secs_f64();
        let limit = self.rule.error_rate;
        format!("{rate:.1} % of the requests of the {seconds:.1} s after it failed, more than {limit} %")
    }

    /// Judges by what there is now.
    pub(super) fn judge(&self, now: Instant, answers: Answers) -> Judgement {
        let rate = rate(since(answers, self.before)).unwrap_or(0.0);
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

    fn answers(all: u64, failed: u64) -> Answers {
        Answers { all, failed }
    }

    /// A trial that begins after a past in which so many of 100 answers a second failed.
    fn trial(failing: u64) -> (Trial, Instant, Answers) {
        let (mut past, began) = (Past::default(), Instant::now());
        for second in 0..=20 {
            past.note(
                began + Duration::from_secs(second),
                answers(100 * second, failing * second),
                RULE.window,
            );
        }
        let (now, count) = (began + Duration::from_secs(20), answers(2000, failing * 20));
        (past.try_it(RULE, now, count), now, count)
    }

    #[test]
    fn many_failures_are_blamed_at_once_and_few_never() {
        let (trial, now, before) = trial(0);
        let later = |all, failed| answers(before.all + all, before.failed + failed);
        let second = now + Duration::from_secs(1);
        assert_eq!(trial.judge(second, later(100, 50)), Judgement::Guilty { rate: 50.0 });
        assert_eq!(trial.judge(second, later(100, 20)), Judgement::Open, "the limit itself is allowed");
        assert_eq!(trial.judge(now + RULE.window, later(1000, 200)), Judgement::Acquitted);
        assert_eq!(trial.judge(now + RULE.window, later(1000, 201)), Judgement::Guilty { rate: 20.1 });
    }

    #[test]
    fn a_handful_of_answers_says_nothing() {
        let (trial, now, before) = trial(0);
        let all_failed = |n| answers(before.all + n, before.failed + n);
        assert_eq!(trial.judge(now, all_failed(ENOUGH - 1)), Judgement::Open);
        assert!(matches!(trial.judge(now, all_failed(ENOUGH)), Judgement::Guilty { .. }));
    }

    #[test]
    fn what_was_broken_before_is_not_blamed_on_the_reload() {
        let (trial, now, before) = trial(60);
        let later = |failed| answers(before.all + 100, before.failed + failed);
        assert_eq!(trial.judge(now, later(55)), Judgement::Open);
        assert!(matches!(trial.judge(now, later(70)), Judgement::Guilty { .. }));
    }

    #[test]
    fn what_another_reload_has_broken_a_moment_ago_is_blamed_all_the_same() {
        let (first, ..) = trial(0);
        let (second, now, before) = trial(60);
        let second = second.together_with(&first);
        let later = answers(before.all + 100, before.failed + 55);
        assert_eq!(second.judge(now, later), Judgement::Guilty { rate: 55.0 });
    }

    #[test]
    fn no_more_of_the_past_is_kept_than_is_asked_for() {
        let (mut past, began) = (Past::default(), Instant::now());
        for second in 0..1000 {
            past.note(began + Duration::from_secs(second), Answers::default(), RULE.window);
        }
        assert!(past.0.len() <= 12, "{}", past.0.len());
    }
}
