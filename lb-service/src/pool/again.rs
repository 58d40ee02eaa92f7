//! Whether a request that a backend failed goes to another one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::backend::Backend;
use super::pick::Tried;
use super::retry::{Decision, Failed, Repetition, backoff, decide};
use super::Pool;

/// Another attempt.
#[derive(Debug)]
pub struct Again {
    /// How long to wait before it.
    pub pause: Duration,
    /// Its place in the budget, to be kept as long as it lasts.
    pub repetition: Option<Repetition>,
    /// Whether it only replaces a connection that turned out to be closed.
    pub replay: bool,
}

// === impl Pool ===

impl Pool {
    /// Another attempt for a request that `backend` failed, if there is to be one. `draw` is a random number from 0 to 1,
    /// without 1.
    pub fn again(
        self: &Arc<Self>,
        failed: &Failed,
        tried: &Tried,
        backend: &Backend,
        now: Instant,
        draw: f64,
    ) -> Option<Again> {
        let decision = decide(&self.settings.retries, failed);
        if decision == Decision::Replay {
            return Some(Again { pause: Duration::ZERO, repetition: None, replay: true });
        }
        if matches!(decision, Decision::GiveUp(_)) || !self.has_another(tried, backend, now) {
            return None;
        }
        let repetition = match decision {
            Decision::Repeat => Some(self.in_budget()?),
            _ => None,
        };
        self.retries.increment();
        Some(Again { pause: backoff(failed.tries, draw), repetition, replay: false })
    }

    /// How long one attempt may take to the head of its answer, if that is limited.
    pub fn per_try(&self) -> Option<Duration> {
        self.settings.retries.per_try
    }

    fn in_budget(&self) -> Option<Repetition> {
        let repetition = self.budget.try_begin(self.in_flight());
        if repetition.is_none() {
            self.retries_denied.increment();
        }
        repetition
    }
}
