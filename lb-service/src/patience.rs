//! What the stream of a client does while the proxy waits for something else.
//!
//! Pingora offers no place to wait for a backend while looking at the client, nor to limit one attempt. But it reads from
//! the client all the time, in order to notice when it leaves; so its stream is where both can be done.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pingora::proxy::Session;
use tokio::time::Instant;

use crate::traffic::Connection;

/// What the stream of a client is told.
#[derive(Debug)]
pub(crate) struct Patience {
    /// Nothing that arrives is delivered, only the end of the stream.
    held: AtomicBool,
    began: Instant,
    /// When reading fails, in nanoseconds after `began`; 0: it does not.
    deadline: AtomicU64,
    expired: AtomicBool,
}

/// Lets the stream deliver again.
struct Hold<'a>(&'a Patience);

/// Waits for `done`, but not longer than the client does: `None` when it left.
pub(crate) async fn unless_client_leaves<T>(
    session: &mut Session,
    connection: &Connection,
    done: impl Future<Output = T>,
) -> Option<T> {
    let _hold = connection.patience.hold();
    tokio::select! {
        biased;
        done = done => Some(done),
        // Nothing is delivered, so this ends only with the connection.
        _ = session.as_downstream_mut().read_body_or_idle(true) => None,
    }
}

// === impl Patience ===

impl Patience {
    pub(crate) fn new() -> Self {
        Self {
            held: AtomicBool::new(false),
            began: Instant::now(),
            deadline: AtomicU64::new(0),
            expired: AtomicBool::new(false),
        }
    }

    fn hold(&self) -> Hold<'_> {
        self.held.store(true, Ordering::Relaxed);
        Hold(self)
    }

    pub(crate) fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Reading fails after this moment. `None`: it does not.
    pub(crate) fn limit(&self, deadline: Option<Instant>) {
        let nanoseconds =
            |at: Instant| u64::try_from((at - self.began).as_nanos()).unwrap_or(u64::MAX).max(1);
        self.expired.store(false, Ordering::Relaxed);
        self.deadline.store(deadline.map_or(0, nanoseconds), Ordering::Relaxed);
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let nanoseconds = self.deadline.load(Ordering::Relaxed);
        (nanoseconds > 0).then(|| self.began + Duration::from_nanos(nanoseconds))
    }

    /// The moment has come.
    pub(crate) fn expire(&self) {
        self.deadline.store(0, Ordering::Relaxed);
        self.expired.store(true, Ordering::Relaxed);
    }

    /// Whether it had come, since this was last asked.
    pub(crate) fn take_expired(&self) -> bool {
        self.expired.swap(false, Ordering::Relaxed)
    }
}

// === impl Hold ===

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.held.store(false, Ordering::Relaxed);
    }
}
