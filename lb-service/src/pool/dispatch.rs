//! One request on its way through its pool: from its first attempt to the answer that its client gets.
//!
//! Whoever carries requests (the proxy, a simulation) says what happened, and is told whether there is to be another
//! attempt. Nothing here waits, sends or looks at a clock. [`super`] has an example.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Pool;
use super::again::Again;
use super::attempt::Attempt;
use super::backend::{Backend, UpstreamError};
use super::pick::{Mishap, Passed, Tried, Unplaced, Wish};
use super::retry::{Failed, Repetition};
use super::sticky::Session;

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
    last: Option<(Arc<Backend>, Mishap)>,
    /// The backend whose connection turned out to be closed, if it was then sent to the same one over a new connection.
    stale: Option<(Arc<Backend>, Mishap)>,
    /// How long to wait before the next attempt, if there is to be one.
    next: Option<Duration>,
    /// The place of this attempt in the budget of its pool.
    repetition: Option<Repetition>,
    /// Whether its one replay on account of a stale connection is used up.
    replayed: bool,
    /// Counts it as a request of its pool.
    counted: Option<Counted>,
}

/// One request of a pool, until this is dropped.
#[derive(Debug)]
struct Counted(Arc<Pool>);

/// What is known about a request when a backend has failed it.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Whether it may be sent twice (RFC 9110, 9.2.2).
    pub idempotent: bool,
    /// Whether its body can be sent again: there is none, or all that was read of it is kept.
    pub replayable: bool,
    /// Whether bytes of an answer, one with a 1xx status included, have reached the client.
    pub answered: bool,
    /// Whether its connection had been kept alive, and ended before the first byte of an answer.
    pub stale: bool,
}

/// What a step is taken with.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The time.
    pub now: Instant,
    /// A random number from 0 to 1, without 1.
    pub draw: f64,
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
    pub fn failures(&self) -> impl Iterator<Item = (&Backend, Mishap)> {
        let (first, last) = (self.stale.iter().map(named), self.last.iter().map(named));
        first.chain(self.tried.iter()).chain(last)
    }

    /// Gives it to a backend. An empty `key` is none.
    ///
    /// # Errors
    /// When no backend takes it.
    pub fn place(&mut self, pool: &Arc<Pool>, key: &[u8], at: Moment) -> Result<(), Unplaced> {
        let session = self.session.map(|session| session.backend);
        let wish = Wish { key, session, tried: &self.tried, now: at.now, draw: at.draw };
        self.attempt = Some(pool.place(&wish, &mut self.passed)?);
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
        sent: Sent,
        at: Moment,
    ) -> bool {
        let Some(attempt) = self.attempt.as_mut() else { return false };
        attempt.answered(status, retry_after, at.now);
        let mishap = Mishap::Status(status);
        if mishap.cause().is_some() {
            self.remember(mishap);
        }
        let Some(again) = self.decide(pool, mishap, sent, at) else {
            // What follows may take hours, and is no load on an outage.
            self.repetition = None;
            return false;
        };
        self.take_up(pool, again, mishap, at.now);
        true
    }

    /// The backend failed it. Whether there is to be another attempt.
    pub fn broke(&mut self, pool: &Arc<Pool>, error: UpstreamError, sent: Sent, at: Moment) -> bool {
        let mishap = Mishap::Error(error);
        self.remember(mishap);
        let again = self.decide(pool, mishap, sent, at);
        let is_replay = again.as_ref().is_some_and(|again| again.replay);
        // A connection that was closed while it was idle says nothing about the backend.
        if let Some(attempt) = self.attempt.as_mut().filter(|_| !is_replay && !sent.stale) {
            attempt.failed(error, at.now);
        }
        again.map(|again| self.take_up(pool, again, mishap, at.now)).is_some()
    }

    /// Whether another attempt was decided on that has not begun.
    pub fn goes_on(&self) -> bool {
        self.next.is_some()
    }

    /// Whether this attempt, or the next one if it was decided on, has a place in the budget.
    pub fn is_repetition(&self) -> bool {
        self.repetition.is_some()
    }

    fn decide(&mut self, pool: &Arc<Pool>, mishap: Mishap, sent: Sent, at: Moment) -> Option<Again> {
        let failed = Failed {
            cause: mishap.cause()?,
            idempotent: sent.idempotent,
            replayable: sent.replayable,
            answered: sent.answered,
            tries: (self.tries - u32::from(self.replayed)) as usize,
            stale: sent.stale,
            replayed: self.replayed,
        };
        // The place of this attempt is free for the next.
        self.repetition = None;
        let backend = &self.attempt.as_ref()?.backend;
        pool.again(&failed, &self.tried, backend, at)
    }

    fn take_up(&mut self, pool: &Pool, again: Again, mishap: Mishap, now: Instant) {
        self.replayed |= again.replay;
        self.repetition = again.repetition;
        self.next = Some(again.pause);
        let Some(backend) = self.attempt.as_ref().map(|attempt| attempt.backend.clone()) else { return };
        let home = self.session.and_then(|session| pool.backends().get(session.backend));
        let is_home = home.is_some_and(|home| home.address == backend.address);
        // Only a replay goes to the same backend again, over a new connection: when it is the home of the session, or the
        // only one.
        let stays = (again.replay && is_home) || !pool.has_another(&self.tried, &backend, now);
        let last = self.last.take();
        if stays {
            self.stale = last;
        } else {
            self.tried.insert(backend, mishap);
        }
    }

    fn remember(&mut self, mishap: Mishap) {
        self.last = self.attempt.as_ref().map(|attempt| (attempt.backend.clone(), mishap));
    }
}

fn named((backend, mishap): &(Arc<Backend>, Mishap)) -> (&Backend, Mishap) {
    (backend, *mishap)
}

// === impl Counted ===

impl Counted {
    fn new(pool: &Arc<Pool>) -> Self {
        pool.kept.counters.requests.enter();
        Self(pool.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.kept.counters.requests.leave();
    }
}
