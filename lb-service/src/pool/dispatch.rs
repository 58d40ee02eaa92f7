//! One request in its pool, from its first attempt to the response that its client gets.
//!
//! The caller (the proxy, a simulation) reports what happens, and the dispatch returns whether there is to be another
//! attempt. Nothing here waits, sends or reads a clock. [`super`] has an example.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Pool;
use super::attempt::Attempt;
use super::backend::Backend;
use super::pick::{Passed, PickError, PickRequest, Tried};
use super::queue::Waiter;
use super::race::{Contestant, Loser, Race, Racer};
use super::reasons::{AttemptFailure, UpstreamError};
use super::retry::{Failed, Retry, RetryPermit};
use super::sticky::Session;
use crate::clock::Now;

/// A request in progress. Dropping it ends it, and removes it from the count of its pool.
#[derive(Debug, Default)]
pub struct Dispatch {
    /// The current or the last attempt.
    pub attempt: Option<Attempt>,
    /// The number of attempts, including replays, failed connections, and the second attempt of a connection race.
    pub tries: u32,
    /// The backends that failed the request or lost its connection race, and after which another one was selected.
    pub tried: Tried,
    /// The backends that were skipped.
    pub passed: Passed,
    /// The session that the cookie names.
    pub session: Option<Session>,
    /// The backend that failed last, unless it is in `tried` or another attempt has begun.
    last: Option<(Arc<Backend>, AttemptFailure)>,
    /// The backend whose idle connection was closed, if the request was then sent to it over a new connection.
    stale: Option<(Arc<Backend>, AttemptFailure)>,
    /// The pause before the next attempt; `None` if there is to be none.
    next: Option<Duration>,
    /// The place of this attempt in the retry budget of the pool.
    permit: Option<RetryPermit>,
    /// The connection race, while it lasts.
    race: Option<Box<Race>>,
    /// Whether the one connection race of the request has begun.
    has_raced: bool,
    /// Whether the request has a key that is hashed.
    has_key: bool,
    /// Whether the one replay for a stale connection is used up.
    replayed: bool,
    /// The place in the queue of the pool while the request waits.
    pub(super) waiting: Option<Waiting>,
    /// The guard that counts the request in its pool.
    counted: Option<Counted>,
}

/// The count of one request in its pool, until this is dropped.
#[derive(Debug)]
struct Counted(Arc<Pool>);

/// A place in the queue of the pool, and the deadline of the wait.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) waiter: Waiter,
    pub(super) deadline: Instant,
}

/// The facts that decide whether a failed request can be sent again.
#[derive(Clone, Copy, Debug)]
pub struct Replayability {
    /// Whether the request can be sent twice (RFC 9110, 9.2.2).
    pub idempotent: bool,
    /// Whether the body can be sent again: there is none, or all that was read of it is kept.
    pub replayable: bool,
    /// Whether bytes of a response, including one with a 1xx status, have reached the client.
    pub response_begun: bool,
    /// Whether the connection had been kept alive and ended before the first byte of a response.
    pub stale: bool,
    /// Whether the backend certainly has no byte of the request.
    pub nothing_sent: bool,
}

// === impl Dispatch ===

impl Dispatch {
    /// Ends the current attempt, if any, and returns the pause before the next one.
    pub fn end_attempt(&mut self) -> Option<Duration> {
        self.attempt = None;
        self.next.take()
    }

    /// Returns whether there was no attempt before.
    pub(crate) fn is_first(&self) -> bool {
        self.tries == 0
    }

    /// Returns whether an idle connection was closed under the request.
    pub(crate) fn is_replayed(&self) -> bool {
        self.replayed
    }

    /// Returns the backends that failed the request, each with its failure: the one with the stale connection that got
    /// the request again, those in [`tried`](Self::tried), and the last one, after which no other was selected.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (&Backend, AttemptFailure)> {
        let (first, last) = (self.stale.iter().map(named), self.last.iter().map(named));
        first.chain(self.tried.iter()).chain(last)
    }

    /// Places the request at a backend. An empty `key` means that there is none.
    ///
    /// # Errors
    /// If no backend is selected.
    pub fn place(&mut self, pool: &Arc<Pool>, key: &[u8], at: Now) -> Result<(), PickError> {
        let session = self.session.map(|session| session.backend);
        let request = PickRequest { key, session, tried: &self.tried, now: at.time, draw: at.draw };
        self.attempt = Some(pool.place(&request, &mut self.passed)?);
        self.has_key = !key.is_empty();
        self.last = None;
        self.counted.get_or_insert_with(|| Counted::new(pool));
        self.tries += 1;
        Ok(())
    }

    /// Records the head of the final response. Returns whether the response is dropped in favour of another attempt.
    pub fn responded(
        &mut self,
        pool: &Arc<Pool>,
        status: u16,
        retry_after: Option<Duration>,
        sent: Replayability,
        at: Now,
    ) -> bool {
        let Some(attempt) = self.attempt.as_mut() else { return false };
        attempt.responded(status, retry_after, at.time);
        let failure = AttemptFailure::Status(status);
        if failure.cause().is_some() {
            self.remember(failure);
        }
        let Some(retry) = self.decide(pool, failure, sent, at) else {
            // The body might take hours, and adds no load to an outage.
            self.permit = None;
            return false;
        };
        self.take_up(pool, retry, failure, at.time);
        true
    }

    /// Records a failure of the backend. Returns whether there is to be another attempt.
    pub fn broke(&mut self, pool: &Arc<Pool>, error: UpstreamError, sent: Replayability, at: Now) -> bool {
        let failure = AttemptFailure::Error(error);
        // A race whose attempts have both failed is over, and its place in the budget is free.
        self.race = None;
        self.remember(failure);
        let retry = self.decide(pool, failure, sent, at);
        let is_replay = retry.as_ref().is_some_and(|retry| retry.replay);
        // A connection that was closed while it was idle is not a failure of the backend.
        if let Some(attempt) = self.attempt.as_mut().filter(|_| !is_replay && !sent.stale) {
            attempt.failed(error, at.time);
        }
        retry.map(|retry| self.take_up(pool, retry, failure, at.time)).is_some()
    }

    /// Returns whether another attempt was decided that has not begun.
    pub fn goes_on(&self) -> bool {
        self.next.is_some()
    }

    /// Returns whether this attempt, or the next one if it was decided, counts towards the retry budget.
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
            tries: (self.tries - u32::from(self.replayed) - u32::from(self.has_raced)) as usize,
            stale: sent.stale,
            nothing_sent: sent.nothing_sent,
            replayed: self.replayed,
        };
        // This releases the place for the next attempt.
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
        // Only a replay goes to the same backend again, over a new connection: if it is the backend of the session, or
        // the only one.
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

// === races ===

impl Dispatch {
    /// Returns the time after which the connection attempt is raced; `None` if it is not.
    pub(crate) fn race_after(&self, pool: &Pool) -> Option<Duration> {
        let (has_session, has_key) = (self.session.is_some(), self.has_key);
        pool.race_after(Racer { has_session, has_key, has_raced: self.has_raced })
    }

    /// Starts a second attempt, and returns its backend; `None` if there is to be no race.
    pub(crate) fn race(&mut self, pool: &Arc<Pool>, at: Now) -> Option<Arc<Backend>> {
        self.race_after(pool)?;
        let first = self.attempt.as_ref()?.backend.clone();
        if !pool.has_another(&self.tried, &first, at.time) {
            return None;
        }
        let permit = pool.race_permit()?;
        let rival = self.rival(pool, first, at)?;
        let backend = rival.backend.clone();
        self.has_raced = true;
        self.tries += 1;
        self.race = Some(Box::new(Race::new(pool.clone(), rival, permit)));
        Some(backend)
    }

    /// Places the second attempt.
    fn rival(&mut self, pool: &Arc<Pool>, first: Arc<Backend>, at: Now) -> Option<Attempt> {
        let mut tried: Tried = self.tried.clone();
        tried.insert(first, AttemptFailure::Overtaken);
        let request = PickRequest { key: &[], session: None, tried: &tried, now: at.time, draw: at.draw };
        pool.place(&request, &mut self.passed).ok()
    }

    /// Records that one of the two attempts is connected. Returns the other one, unless its backend has another attempt
    /// in the background.
    pub(crate) fn win(&mut self, winner: Contestant, now: Instant) -> Option<Loser> {
        let loser = self.part_with(winner.other())?;
        self.tried.insert(loser.backend.clone(), AttemptFailure::Overtaken);
        loser.lose(now)
    }

    /// Records that one of the two attempts has failed. The request goes on with the other one.
    pub(crate) fn drop_out(&mut self, who: Contestant, error: UpstreamError, now: Instant) {
        let Some(mut attempt) = self.part_with(who) else { return };
        attempt.failed(error, now);
        self.tried.insert(attempt.backend.clone(), AttemptFailure::Error(error));
    }

    /// Separates an attempt from the request. The other one becomes the current attempt.
    fn part_with(&mut self, who: Contestant) -> Option<Attempt> {
        let race = self.race.as_mut()?;
        let rival = race.rival.take()?;
        match who {
            Contestant::First => {
                race.current = Contestant::Second;
                self.attempt.replace(rival)
            }
            Contestant::Second => Some(rival),
        }
    }

    /// Records that the current attempt has a connection, which ends the race, if there is one. `reused` is true if the
    /// connection was kept alive from an earlier request.
    pub(crate) fn connected(&mut self, reused: bool) {
        if let Some(attempt) = &mut self.attempt {
            attempt.connected(reused);
        }
        let Some(race) = self.race.take() else { return };
        if let Some(permit) = race.won() {
            self.permit = Some(permit);
        }
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
