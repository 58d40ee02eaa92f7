//! One request on its way through the pool: the steps of the proxy, without a proxy.
//!
//! This mirrors `RequestContext` of `lb-service/src/request.rs` line by line, without what is Pingora's. Whatever decides is
//! called, not copied: [`Pool::place`], [`Attempt::answered`], [`Attempt::failed`], [`Pool::again`], [`Pool::has_another`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_service::pool::{
    Again, Attempt, Failed, Mishap, Passed, Pool, Repetition, Tried, Unplaced, UpstreamError, Waiter, Wish,
};

/// A request that has not ended.
#[derive(Debug, Default)]
pub(crate) struct Request {
    pub(crate) attempt: Option<Attempt>,
    /// Its place in the queue of the pool.
    pub(crate) waiter: Option<Waiter>,
    /// How often it was sent, or tried to be sent.
    pub(crate) tries: u32,
    tried: Tried,
    passed: Passed,
    /// How long to wait before the next attempt, if there is to be one.
    next: Option<Duration>,
    /// The place of this attempt in the budget of its pool.
    repetition: Option<Repetition>,
    replayed: bool,
}

/// What the request is at the moment.
pub(crate) struct At<'a> {
    pub(crate) pool: &'a Arc<Pool>,
    pub(crate) now: Instant,
    /// A random number from 0 to 1, without 1.
    pub(crate) draw: f64,
}

// === impl Request ===

impl Request {
    /// Ends the attempt that was, if any; how long to wait before the next.
    pub(crate) fn end_attempt(&mut self) -> Option<Duration> {
        self.attempt = None;
        self.next.take()
    }

    /// Whether it was never sent before, so that it may wait for a backend.
    pub(crate) fn may_queue(&self) -> bool {
        self.tries == 0
    }

    /// Gives it to a backend.
    pub(crate) fn place(&mut self, key: &[u8], at: &At<'_>) -> Result<(), Unplaced> {
        let wish = Wish { key, session: None, tried: &self.tried, now: at.now, draw: at.draw };
        self.attempt = Some(at.pool.place(&wish, &mut self.passed)?);
        self.tries += 1;
        Ok(())
    }

    /// The head of the answer is there. Whether it is left for another attempt.
    pub(crate) fn answered(&mut self, status: u16, at: &At<'_>) -> bool {
        let Some(attempt) = self.attempt.as_mut() else { return false };
        attempt.answered(status, None, at.now);
        let mishap = Mishap::Status(status);
        let Some(again) = self.decide(mishap, at) else { return false };
        self.take_up(again, mishap, at);
        true
    }

    /// The backend failed it. Whether there is to be another attempt.
    pub(crate) fn broke(&mut self, error: UpstreamError, at: &At<'_>) -> bool {
        let mishap = Mishap::Error(error);
        let again = self.decide(mishap, at);
        let is_replay = again.as_ref().is_some_and(|again| again.replay);
        if let Some(attempt) = self.attempt.as_mut().filter(|_| !is_replay) {
            attempt.failed(error, at.now);
        }
        again.map(|again| self.take_up(again, mishap, at)).is_some()
    }

    fn take_up(&mut self, again: Again, mishap: Mishap, at: &At<'_>) {
        self.replayed |= again.replay;
        self.repetition = again.repetition;
        self.next = Some(again.pause);
        let Some(backend) = self.attempt.as_ref().map(|attempt| attempt.backend.clone()) else { return };
        if at.pool.has_another(&self.tried, &backend, at.now) {
            self.tried.insert(backend, mishap);
        }
    }

    /// All requests are idempotent and without a body, over connections made for them.
    fn decide(&self, mishap: Mishap, at: &At<'_>) -> Option<Again> {
        let failed = Failed {
            cause: mishap.cause()?,
            idempotent: true,
            replayable: true,
            answered: false,
            tries: self.tried.len() + 1,
            stale: false,
            replayed: self.replayed,
        };
        let backend = &self.attempt.as_ref()?.backend;
        at.pool.again(&failed, &self.tried, backend, at.now, at.draw)
    }

    /// Whether this attempt has a place in the budget.
    pub(crate) fn is_repetition(&self) -> bool {
        self.repetition.is_some()
    }
}
