//! Whether a request that a backend failed goes to another one.
//!
//! [`decide`] says what the request and the settings allow. Here it is added what the pool allows: another backend
//! must be available, and a repetition needs a place in the budget, with one exception. When a connection broke while
//! another backend is well, this is the end of one backend, and all that it was working on is sent again.

use std::time::Duration;

use super::Pool;
use super::backend::Backend;
use super::dispatch::Moment;
use super::pick::Tried;
use super::retry::{Decision, Failed, Repetition, backoff, decide};
use super::settings::RetryCause;

/// Another attempt.
#[derive(Debug)]
pub(super) struct Again {
    /// How long to wait before it.
    pub(super) pause: Duration,
    /// Its place in the budget, to be kept as long as it lasts.
    pub(super) repetition: Option<Repetition>,
    /// Whether it only replaces a connection that turned out to be closed.
    pub(super) replay: bool,
}

// === impl Pool ===

impl Pool {
    /// Another attempt for a request that `backend` failed, if there is to be one.
    pub(super) fn again(
        &self,
        failed: &Failed,
        tried: &Tried,
        backend: &Backend,
        at: Moment,
    ) -> Option<Again> {
        let decision = decide(&self.settings.retries, failed);
        if decision == Decision::Replay {
            return Some(Again { pause: Duration::ZERO, repetition: None, replay: true });
        }
        if matches!(decision, Decision::GiveUp(_)) || !self.has_another(tried, backend, at.now) {
            return None;
        }
        let repetition = match decision {
            Decision::Repeat if self.is_budgeted(failed, tried, backend, at) => Some(self.in_budget()?),
            _ => None,
        };
        self.kept.counters.retries.increment();
        Some(Again { pause: backoff(failed.tries, at.draw), repetition, replay: false })
    }

    /// How long one attempt may take from the end of the request to the head of its answer, if that is limited. The
    /// time to connect is limited by the same, in [`Backend::peer`].
    pub fn per_try(&self) -> Option<Duration> {
        self.settings.retries.per_try
    }

    /// Whether a repetition needs a place in the budget. Not when a connection broke and another backend is available that did
    /// not fail its latest request: then this is the end of one backend and not an outage, and what it was working on would not
    /// fit. A budget of nothing is meant so.
    fn is_budgeted(&self, failed: &Failed, tried: &Tried, backend: &Backend, at: Moment) -> bool {
        failed.cause != RetryCause::Reset
            || self.kept.budget.limit(u64::MAX) == 0
            || self.others(tried, backend, at.now).all(|other| other.consecutive_failures() > 0)
    }

    fn in_budget(&self) -> Option<Repetition> {
        let repetition = self.kept.budget.try_begin(self.requests());
        if repetition.is_none() {
            self.kept.counters.retries_denied.increment();
        }
        repetition
    }
}
