//! One request on its way through its pool: from its first attempt to the answer that its client gets.
//!
//! Whoever carries requests (the proxy, a simulation) says what happened, and is told whether there is to be another
//! attempt. Nothing here waits, sends or looks at a clock. [`super`] has an example.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Pool;
use super::attempt::Attempt;
use super::backend::Backend;
use super::pick::{Passed, PickError, PickRequest, Tried};
use super::queue::Waiter;
use super::reasons::{AttemptFailure, UpstreamError};
use super::retry::{Failed, Retry, RetryPermit};
use super::sticky::Session;
use crate::clock::Now;

/// A request that has not ended. Dropping it ends it, and counts it out of its pool.
#[derive(Debug, Default)]
pub struct Dispatch {
    /// The attempt that is under way, or was the last.
    pub attempt: Option<Attempt>,
    /// How often it was sent, or tried to be sent; replays are counted too.
    pub tries: u32,
    /// The backends that failed it, and after which another one was looked for.
    pub tried: Tried,
    /// The backends that it could not go to.
    pub passed: Passed,
    /// What its cookie says.
    pub session: Option<Session>,
    /// The backend that failed it last, unless it is among the tried ones or another attempt has begun.
    last: Option<(Arc<Backend>, AttemptFailure)>,
    /// The backend whose connection turned out to be closed, if it was then sent to the same one over a new connection.
    stale: Option<(Arc<Backend>, AttemptFailure)>,
    /// How long to wait before the next attempt, if there is to be one.
    next: Option<Duration>,
    /// The place of this attempt in the budget for retries of its pool.
    permit: Option<RetryPermit>,
    /// Whether its one replay on account of a stale connection is used up.
    replayed: bool,
    /// Its place in the queue of its pool, while it waits.
    pub(super) waiting: Option<Waiting>,
    /// Counts it as a request of its pool.
    counted: Option<Counted>,
}

/// One request of a pool, until this is dropped.
#[derive(Debug)]
struct Counted(Arc<Pool>);

/// A request in the queue of its pool, and how long it waits there at most.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) waiter: Waiter,
    pub(super) deadline: Instant,
}

/// What decides whether a request that a backend has failed can be sent again.
#[derive(Clone, Copy, Debug)]
pub struct Replayability {
    /// Whether it may be sent twice (RFC 9110, 9.2.2).
    pub idempotent: bool,
    /// Whether its body can be sent again: there is none, or all that was read of it is kept.
    pub replayable: bool,
    /// Whether bytes of a response, including one with a 1xx status, have reached the client.
    pub response_begun: bool,
    /// Whether its connection had been kept alive and ended before the first byte of a response.
    pub stale: bool,
}

// === impl Dispatch ===

impl Dispatch {
    /// Ends the attempt that was, if any; how long to wait before the next.
    pub fn end_attempt(&mut self) -> Option<Duration> {
        self.attempt = None;
        self.next.take()
    }

    /// Whether it was never sent before.
    pub fn is_first(&self) -> bool {
        self.tries == 0
    }

    /// The backends that failed it, each with how: the one whose connection turned out to be closed and that got it again, those
    /// [`tried`](Self::tried), and the one that failed it last, after which no other was looked for.
    pub fn failures(&self) -> impl Iterator<Item = (&Backend, AttemptFailure)> {
        let (first, last) = (self.stale.iter().map(named), self.last.iter().map(named));
        first.chain(self.tried.iter()).chain(last)
    }

    /// Gives it to a backend. An empty `key` is none.
    ///
    /// # Errors
    /// When no backend takes it.
    pub fn place(&mut self, pool: &Arc<Pool>, key: &[u8], at: Now) -> Result<(), PickError> {
        let session = self.session.map(|session| session.backend);
        let request = PickRequest { key, session, tried: &self.tried, now: at.time, draw: at.draw };
        self.attempt = Some(pool.place(&request, &mut self.passed)?);
        self.last = None;
        self.counted.get_or_insert_with(|| Counted::new(pool));
        self.tries += 1;
        Ok(())
    }

    /// The head of the final answer is there. Whether it is left for another attempt, and is not to be passed on.
    pub fn answered(
        &mut self,
        pool: &Arc<Pool>,
        status: u16,
        retry_after: Option<Duration>,
        sent: Replayability,
        at: Now,
    ) -> bool {
        let Some(attempt) = self.attempt.as_mut() else { return false };
        attempt.answered(status, retry_after, at.time);
        let failure = AttemptFailure::Status(status);
        if failure.cause().is_some() {
            self.remember(failure);
        }
        let Some(retry) = self.decide(pool, failure, sent, at) else {
            // What follows may take hours, and is no load on an outage.
            self.permit = None;
            return false;
        };
        self.take_up(pool, retry, failure, at.time);
        true
    }

    /// The backend failed it. Whether there is to be another attempt.
    pub fn broke(&mut self, pool: &Arc<Pool>, error: UpstreamError, sent: Replayability, at: Now) -> bool {
        let failure = AttemptFailure::Error(error);
        self.remember(failure);
        let retry = self.decide(pool, failure, sent, at);
        let is_replay = retry.as_ref().is_some_and(|retry| retry.replay);
        // A connection that was closed while it was idle says nothing about the backend.
        if let Some(attempt) = self.attempt.as_mut().filter(|_| !is_replay && !sent.stale) {
            attempt.failed(error, at.time);
        }
        retry.map(|retry| self.take_up(pool, retry, failure, at.time)).is_some()
    }

    /// Whether another attempt was decided on that has not begun.
    pub fn goes_on(&self) -> bool {
        self.next.is_some()
    }

    /// Whether this attempt, or the next one if it was decided on, counts towards the budget for retries.
    pub fn is_retry(&self) -> bool {
        self.permit.is_some()
    }

    fn decide(
        &mut self,
        pool: &Arc<Pool>,
        failure: AttemptFailure,
        sent: Replayability,
        at: Now,
    ) -> Option<Retry> {
        let failed = Failed {
            cause: failure.cause()?,
            idempotent: sent.idempotent,
            replayable: sent.replayable,
            response_begun: sent.response_begun,
            tries: (self.tries - u32::from(self.replayed)) as usize,
            stale: sent.stale,
            replayed: self.replayed,
        };
        // The place of this attempt is free for the next.
        self.permit = None;
        let backend = &self.attempt.as_ref()?.backend;
        pool.retry(&failed, &self.tried, backend, at)
    }

    fn take_up(&mut self, pool: &Pool, retry: Retry, failure: AttemptFailure, now: Instant) {
        self.replayed |= retry.replay;
        self.permit = retry.permit;
        self.next = Some(retry.pause);
        let Some(backend) = self.attempt.as_ref().map(|attempt| attempt.backend.clone()) else { return };
        let home = self.session.and_then(|session| pool.backends().get(session.backend));
        let is_home = home.is_some_and(|home| home.address == backend.address);
        // Only a replay goes to the same backend again, over a new connection: when it is the home of the session, or the
        // only one.
        let stays = (retry.replay && is_home) || !pool.has_another(&self.tried, &backend, now);
        let last = self.last.take();
        if stays {
            self.stale = last;
        } else {
            self.tried.insert(backend, failure);
        }
    }

    fn remember(&mut self, failure: AttemptFailure) {
        self.last = self.attempt.as_ref().map(|attempt| (attempt.backend.clone(), failure));
    }
}

fn named((backend, failure): &(Arc<Backend>, AttemptFailure)) -> (&Backend, AttemptFailure) {
    (backend, *failure)
}

// === impl Counted ===

impl Counted {
    fn new(pool: &Arc<Pool>) -> Self {
        pool.shared.counters.requests.enter();
        Self(pool.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.shared.counters.requests.leave();
    }
}
