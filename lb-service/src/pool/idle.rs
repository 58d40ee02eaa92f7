//! The idle connections of one backend: which one is used again, and which one is closed.
//!
//! The newest connection is used first, so that the others become old and are closed when the load falls. A transport
//! parks its connections here; what they are is its own business.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A connection that can be parked.
pub trait Parked: Any + Send + fmt::Debug {
    /// Returns whether the backend has neither closed the connection nor sent a byte. Does not wait.
    fn is_quiet(&mut self) -> bool;

    /// Returns the time after which the connection is not used any more.
    fn expires(&self) -> Instant;

    /// Returns whether the connection can move to another runtime.
    fn can_move(&self) -> bool;

    /// Moves the connection to the runtime of the caller. `None` if that fails, or if the backend has closed the
    /// connection or sent a byte.
    fn moved(self: Box<Self>) -> Option<Box<dyn Parked>>;
}

/// The runtime whose reactor a connection is registered with. A connection is only used there, but it can move.
pub type RuntimeId = tokio::runtime::Id;

/// The number of idle connections to all backends, and its limit. Clones share it.
#[derive(Clone, Debug)]
pub struct IdleBudget(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    max: usize,
    count: AtomicUsize,
}

/// A place of an idle connection, until it is dropped.
#[derive(Debug)]
struct Place(IdleBudget);

/// The idle connections of one backend.
#[derive(Debug, Default)]
pub struct IdleConnections {
    /// In the order in which they became idle.
    parked: Mutex<Vec<Idle>>,
}

#[derive(Debug)]
struct Idle {
    connection: Box<dyn Parked>,
    runtime: RuntimeId,
    since: Instant,
    place: Place,
}

// === impl IdleBudget ===

impl IdleBudget {
    /// Returns a budget of `max` connections.
    pub fn new(max: usize) -> Self {
        Self(Arc::new(Budget { max, count: AtomicUsize::new(0) }))
    }

    /// Returns the number of idle connections.
    pub fn count(&self) -> usize {
        self.0.count.load(Ordering::Relaxed)
    }

    fn place(&self) -> Option<Place> {
        let below_max = |count| (count < self.0.max).then_some(count + 1);
        let result = self.0.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below_max);
        result.ok().map(|_| Place(self.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl IdleConnections ===

impl IdleConnections {
    /// Takes the newest connection that is still usable, if it was in use in this `recent` time. One of this runtime
    /// comes first; another one moves here. Connections that are not usable within `limit` are closed.
    pub fn take(
        &self,
        runtime: RuntimeId,
        limit: Duration,
        recent: Duration,
        now: Instant,
    ) -> Option<Box<dyn Parked>> {
        loop {
            // The probe, the move and the close happen without the lock.
            let idle = self.pop(runtime, recent, now)?;
            if let Some(connection) = idle.usable(runtime, limit, now) {
                return Some(connection);
            }
        }
    }

    /// Parks a connection. If the budget is used up, it replaces the oldest one of this backend, or is closed.
    pub fn park(&self, connection: Box<dyn Parked>, runtime: RuntimeId, budget: &IdleBudget, now: Instant) {
        let Some(place) = budget.place().or_else(|| self.place_of_oldest()) else { return };
        self.parked.lock().push(Idle { connection, runtime, since: now, place });
    }

    /// Closes the connections that are too old, or that their backend has closed.
    pub fn sweep(&self, limit: Duration, now: Instant) {
        // They are looked at and closed without the lock. A request that comes in this moment makes a new connection.
        let mut kept = std::mem::take(&mut *self.parked.lock());
        kept.retain_mut(|idle| idle.is_within(limit, now) && idle.connection.is_quiet());
        let mut parked = self.parked.lock();
        // Those that were parked in the meantime are the newest.
        kept.append(&mut parked);
        // After a burst, the list gives its memory back.
        kept.shrink_to(2 * kept.len());
        *parked = kept;
    }

    /// Returns the number of connections.
    pub fn len(&self) -> usize {
        self.parked.lock().len()
    }

    /// Returns whether there is no connection.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn pop(&self, runtime: RuntimeId, recent: Duration, now: Instant) -> Option<Idle> {
        let mut parked = self.parked.lock();
        let here = parked.iter().rposition(|idle| idle.runtime == runtime);
        let newest = here.or_else(|| parked.iter().rposition(|idle| idle.connection.can_move()))?;
        let since = parked.get(newest)?.since;
        (now.saturating_duration_since(since) < recent).then(|| parked.remove(newest))
    }

    fn place_of_oldest(&self) -> Option<Place> {
        let oldest = {
            let mut parked = self.parked.lock();
            if parked.is_empty() { None } else { Some(parked.remove(0)) }
        };
        oldest.map(|idle| idle.place)
    }
}

// === impl Idle ===

impl Idle {
    /// Returns the connection, on this runtime.
    fn usable(self, runtime: RuntimeId, limit: Duration, now: Instant) -> Option<Box<dyn Parked>> {
        if !self.is_within(limit, now) {
            return None;
        }
        let mut connection = match self.runtime == runtime {
            true => self.connection,
            false => self.connection.moved()?,
        };
        connection.is_quiet().then_some(connection)
    }

    fn is_within(&self, limit: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < limit && now < self.connection.expires()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LIMIT: Duration = Duration::from_secs(10);

    #[derive(Debug)]
    struct Fake {
        number: u32,
        is_closed: Arc<AtomicBool>,
        expires: Instant,
        can_move: bool,
    }

    impl Parked for Fake {
        fn can_move(&self) -> bool {
            self.can_move
        }

        fn moved(self: Box<Self>) -> Option<Box<dyn Parked>> {
            Some(self)
        }

        fn is_quiet(&mut self) -> bool {
            !self.is_closed.load(Ordering::Relaxed)
        }

        fn expires(&self) -> Instant {
            self.expires
        }
    }

    struct Fixture {
        connections: IdleConnections,
        budget: IdleBudget,
        runtime: tokio::runtime::Runtime,
        now: Instant,
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers")
    }

    impl Fixture {
        fn new(max: usize) -> Self {
            Self {
                runtime: runtime(),
                connections: IdleConnections::default(),
                budget: IdleBudget::new(max),
                now: Instant::now(),
            }
        }

        fn here(&self) -> RuntimeId {
            self.runtime.handle().id()
        }

        fn park(&self, number: u32, after: u32) -> Arc<AtomicBool> {
            let (closed, now) = (Arc::default(), self.now + SECOND * after);
            self.park_fake(
                Fake { number, is_closed: Arc::clone(&closed), expires: now + SECOND * 60, can_move: false },
                now,
            );
            closed
        }

        fn park_fake(&self, fake: Fake, now: Instant) {
            self.connections.park(Box::new(fake), self.here(), &self.budget, now);
        }

        fn take(&self, after: u32) -> Option<u32> {
            self.take_recent(after, Duration::MAX)
        }

        fn take_recent(&self, after: u32, recent: Duration) -> Option<u32> {
            let taken = self.connections.take(self.here(), LIMIT, recent, self.now + SECOND * after)?;
            let connection: Box<dyn Any> = taken;
            connection.downcast::<Fake>().ok().map(|fake| fake.number)
        }
    }

    #[test]
    fn the_newest_connection_is_used_first() {
        let fixture = Fixture::new(10);
        (1..=3).for_each(|number| drop(fixture.park(number, number)));
        assert_eq!(
            [fixture.take(4), fixture.take(4), fixture.take(4), fixture.take(4)],
            [Some(3), Some(2), Some(1), None]
        );
        assert_eq!(fixture.budget.count(), 0);
    }

    #[test]
    fn a_connection_that_is_closed_or_too_old_is_not_used() {
        let fixture = Fixture::new(10);
        fixture.park(1, 0);
        fixture.park(2, 5).store(true, Ordering::Relaxed);
        assert_eq!(fixture.take(9), Some(1));
        fixture.park(3, 0);
        assert_eq!(fixture.take(10), None);
        let expires = fixture.now + SECOND * 60;
        fixture.park_fake(
            Fake { number: 4, is_closed: Arc::default(), expires, can_move: false },
            fixture.now + SECOND * 55,
        );
        assert_eq!(fixture.take(60), None, "it is idle for 5 s, but it has expired");
    }

    #[test]
    fn a_connection_that_was_not_used_recently_can_be_left_for_another_request() {
        let fixture = Fixture::new(10);
        fixture.park(1, 0);
        assert_eq!((fixture.take_recent(5, SECOND * 5), fixture.take_recent(5, SECOND * 6)), (None, Some(1)));
    }

    #[test]
    fn a_connection_is_used_on_its_own_runtime_unless_it_can_move() {
        let (fixture, elsewhere) = (Fixture::new(10), runtime().handle().id());
        let take = || fixture.connections.take(elsewhere, LIMIT, LIMIT, fixture.now);
        fixture.park(1, 0);
        assert!(take().is_none());
        let expires = fixture.now + SECOND * 60;
        let fake = Fake { number: 2, is_closed: Arc::default(), expires, can_move: true };
        fixture.park_fake(fake, fixture.now);
        assert!(take().is_some() && take().is_none());
        assert_eq!(fixture.take(0), Some(1));
    }

    #[test]
    fn beyond_the_budget_the_oldest_connection_of_the_backend_is_replaced() {
        let fixture = Fixture::new(2);
        (1..=3).for_each(|number| drop(fixture.park(number, number)));
        assert_eq!((fixture.connections.len(), fixture.budget.count()), (2, 2));
        let other = IdleConnections::default();
        let fake = Fake {
            number: 4,
            is_closed: Arc::default(),
            expires: fixture.now + SECOND * 60,
            can_move: false,
        };
        other.park(Box::new(fake), fixture.here(), &fixture.budget, fixture.now);
        assert!(other.is_empty(), "it has none to replace");
        assert_eq!([fixture.take(4), fixture.take(4)], [Some(3), Some(2)]);
    }

    /// A connection that takes the lock of its list when it is looked at.
    #[derive(Debug)]
    struct Nosy(Arc<IdleConnections>, Instant);

    impl Parked for Nosy {
        fn can_move(&self) -> bool {
            false
        }

        fn moved(self: Box<Self>) -> Option<Box<dyn Parked>> {
            None
        }

        fn is_quiet(&mut self) -> bool {
            self.0.is_empty()
        }

        fn expires(&self) -> Instant {
            self.1
        }
    }

    #[test]
    fn a_sweep_looks_at_connections_without_the_lock() {
        let (connections, fixture) = (Arc::new(IdleConnections::default()), Fixture::new(10));
        let nosy = Nosy(connections.clone(), fixture.now + LIMIT);
        connections.park(Box::new(nosy), fixture.here(), &fixture.budget, fixture.now);
        connections.sweep(LIMIT, fixture.now);
        assert_eq!(connections.len(), 1);
        connections.sweep(Duration::ZERO, fixture.now);
    }

    #[test]
    fn a_sweep_closes_what_is_over() {
        let fixture = Fixture::new(10);
        fixture.park(1, 0);
        fixture.park(2, 5);
        fixture.park(3, 6).store(true, Ordering::Relaxed);
        fixture.connections.sweep(LIMIT, fixture.now + SECOND * 10);
        assert_eq!((fixture.connections.len(), fixture.budget.count()), (1, 1));
        drop(fixture.connections);
        assert_eq!(fixture.budget.count(), 0);
    }
}
