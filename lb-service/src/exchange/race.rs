//! The connection race of an exchange. [`crate::pool`] decides about it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Exchange, FaultKind};
use crate::clock::Now;
use crate::pool::{Backend, Contestant, Head, Loser};

impl Exchange {
    /// Returns the time after which a connection attempt is raced; `None` if it is not.
    pub(crate) fn race_after(&self) -> Option<Duration> {
        self.dispatch.race_after(self.pool()?)
    }

    /// Starts a second attempt, and returns its backend; `None` if there is to be no race. If the pool has a successor,
    /// the backend is one of the successor.
    pub(crate) fn race(&mut self, head: &impl Head, at: Now) -> Option<Arc<Backend>> {
        self.follow_successor(head);
        let pool = self.pool()?.clone();
        self.dispatch.race(&pool, at)
    }

    /// Records that one of the two attempts is connected. Returns the other one if it goes on in the background.
    pub(crate) fn win_race(&mut self, winner: Contestant, now: Instant) -> Option<Loser> {
        self.dispatch.win(winner, now)
    }

    /// Records that one of the two attempts has failed, with the message of TLS or of the system. The request goes on
    /// with the other one.
    pub(crate) fn drop_out(&mut self, who: Contestant, kind: FaultKind, message: String, now: Instant) {
        self.cannot_connect(message);
        self.dispatch.drop_out(who, kind.of_backend(), now);
    }
}
