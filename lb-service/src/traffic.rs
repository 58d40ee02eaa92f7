//! What goes on between the clients and us: connections, requests in flight, answers; and when a drain is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::failure::Failure;
use crate::forwarded::Peer;
use crate::listener::ListenerId;
use crate::patience::Patience;
use crate::pool::PoolId;
use crate::stats::{Codes, Counter, Histogram, Level};

/// Everything the proxy counts about its clients. One per daemon, shared by the listeners.
#[derive(Debug)]
pub struct Traffic {
    listeners: Box<[ListenerTraffic]>,
    /// Connections on which no request has arrived yet.
    fresh: Level,
    draining: AtomicBool,
    settled: watch::Sender<bool>,
}

/// The clients of one listener.
#[derive(Debug)]
pub struct ListenerTraffic {
    /// Connections accepted.
    pub connections: Counter,
    /// Connections open.
    pub connections_active: Level,
    /// Requests being worked on, upgraded connections included.
    pub in_flight: Level,
    rejected: [Counter; Rejection::ALL.len()],
    by_pool: Box<[PoolTraffic]>,
    without_pool: PoolTraffic,
}

/// The requests of one listener to one pool.
#[derive(Debug, Default)]
pub struct PoolTraffic {
    /// Answers by status.
    pub answers: Codes,
    /// From the head of the request to the end of the answer.
    pub duration: Histogram,
    /// Bytes of request bodies.
    pub request_bytes: Counter,
    /// Bytes of response bodies.
    pub response_bytes: Counter,
}

/// Why the proxy answered a request itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// No route matches.
    NoRoute,
    /// The pool has no backend that is available.
    NoBackend,
    /// All backends are full, and no place is left to wait for one.
    QueueFull,
    /// It waited for a backend for too long.
    QueueTimeout,
    /// It is not HTTP as Pingora takes it, or CONNECT.
    Malformed,
}

/// One connection of a client; it counts as open until this is dropped.
#[derive(Debug)]
pub struct Connection {
    /// The listener that accepted it.
    pub listener: ListenerId,
    /// Who made it; none on a Unix socket.
    pub peer: Option<Peer>,
    fresh: AtomicBool,
    /// Whether a request has begun that the proxy has not seen yet.
    unseen: AtomicBool,
    /// Whether the request is to be the last.
    last: AtomicBool,
    /// What its stream is to do while the proxy waits.
    pub(crate) patience: Patience,
    /// The status of an answer that was not ours, or what stands for one; 0 when there is none.
    refused: AtomicU16,
    traffic: Arc<Traffic>,
}

/// A request being worked on, until this is dropped.
#[derive(Debug)]
pub struct InFlight {
    traffic: Arc<Traffic>,
    listener: ListenerId,
}

/// How long a connection on which nothing has arrived yet may hold up a drain.
const FRESH_GRACE: Duration = Duration::from_secs(1);
/// How long idle connections stay open when a drain begins: a request that is on its way arrives meanwhile, and is answered.
const IDLE_GRACE: Duration = Duration::from_millis(100);
const POLL: Duration = Duration::from_millis(10);

// === impl Traffic ===

impl Traffic {
    /// Counters for so many listeners and pools, all at zero.
    pub fn new(listeners: usize, pools: usize) -> Arc<Self> {
        Arc::new(Self {
            listeners: (0..listeners).map(|_| ListenerTraffic::new(pools)).collect(),
            fresh: Level::default(),
            draining: AtomicBool::new(false),
            settled: watch::Sender::new(false),
        })
    }

    /// The clients of this listener.
    pub fn listener(&self, id: ListenerId) -> &ListenerTraffic {
        &self.listeners[id.0]
    }

    /// The clients of each listener, in the order of their ids.
    pub fn listeners(&self) -> &[ListenerTraffic] {
        &self.listeners
    }

    /// A client connected.
    pub fn accept(self: &Arc<Self>, listener: ListenerId, peer: Option<Peer>) -> Arc<Connection> {
        let counters = self.listener(listener);
        counters.connections.increment();
        counters.connections_active.enter();
        self.fresh.enter();
        Arc::new(Connection {
            listener,
            peer,
            fresh: AtomicBool::new(true),
            unseen: AtomicBool::new(false),
            last: AtomicBool::new(false),
            patience: Patience::new(),
            refused: AtomicU16::new(0),
            traffic: self.clone(),
        })
    }

    /// Requests being worked on, on all listeners.
    pub fn in_flight(&self) -> u64 {
        self.listeners.iter().map(|listener| listener.in_flight.get()).sum()
    }

    /// From now on every answer says `Connection: close`.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether a drain has begun.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Requests that a drain must still wait for. Zero during a drain means that it is over: the listeners are closed, what
    /// was on its way has arrived, and all of it is answered.
    pub fn unfinished(&self) -> usize {
        let in_flight = usize::try_from(self.in_flight()).unwrap_or(usize::MAX);
        let settling = self.is_draining() && !*self.settled.borrow();
        in_flight.max(usize::from(settling))
    }

    /// Called when the listeners are closed. Returns when idle connections may be closed too: when each accepted
    /// connection had the time to say what it wants.
    pub async fn settle(&self) {
        let closed = tokio::time::Instant::now();
        while self.must_wait(closed.elapsed()) {
            tokio::time::sleep(POLL).await;
        }
        self.settled.send_replace(true);
    }

    /// Returns when idle connections are to be closed.
    pub async fn settled(&self) {
        // The sender lives as long as `self`, so this cannot fail.
        let _ = self.settled.subscribe().wait_for(|settled| *settled).await;
    }

    fn must_wait(&self, since_closed: Duration) -> bool {
        let open: u64 = self.listeners.iter().map(|listener| listener.connections_active.get()).sum();
        let grace = if self.fresh.get() > 0 { FRESH_GRACE } else { IDLE_GRACE };
        // A connection accepted just before the listener closed may not be counted yet, hence at least one poll.
        since_closed < POLL || (open > 0 && since_closed < grace)
    }
}

// === impl ListenerTraffic ===

impl ListenerTraffic {
    fn new(pools: usize) -> Self {
        Self {
            connections: Counter::default(),
            connections_active: Level::default(),
            in_flight: Level::default(),
            rejected: Default::default(),
            by_pool: (0..pools).map(|_| PoolTraffic::default()).collect(),
            without_pool: PoolTraffic::default(),
        }
    }

    /// Requests to this pool, or those that no route sent anywhere.
    pub fn pool(&self, pool: Option<PoolId>) -> &PoolTraffic {
        pool.map_or(&self.without_pool, |id| &self.by_pool[id.0])
    }

    /// Counts a request that the proxy answered itself.
    pub fn reject(&self, reason: Rejection) {
        self.rejected[reason as usize].increment();
    }

    /// Requests that the proxy answered itself, by reason.
    pub fn rejected(&self) -> impl Iterator<Item = (Rejection, u64)> {
        Rejection::ALL.into_iter().zip(self.rejected.iter().map(Counter::get))
    }
}

// === impl Rejection ===

impl Rejection {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 5] =
        [Self::NoRoute, Self::NoBackend, Self::QueueFull, Self::QueueTimeout, Self::Malformed];

    /// The `reason` label and the word in the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::NoBackend => "no_backend",
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::Malformed => "malformed",
        }
    }
}

// === impl Connection ===

impl Connection {
    /// The first bytes of a request arrived on it. From now on the request is in flight, so that a drain waits for it.
    pub fn begin_request(&self) -> InFlight {
        self.leave_fresh();
        self.unseen.store(true, Ordering::Relaxed);
        self.traffic.listener(self.listener).in_flight.enter();
        InFlight { traffic: self.traffic.clone(), listener: self.listener }
    }

    /// The proxy has the head of the request.
    pub fn saw_head(&self) {
        self.unseen.store(false, Ordering::Relaxed);
    }

    /// Whether a request has begun that the proxy has not seen yet.
    pub fn is_unseen(&self) -> bool {
        self.unseen.load(Ordering::Relaxed)
    }

    /// Whether the request is to be the last on this connection.
    pub fn set_last(&self, last: bool) {
        self.last.store(last, Ordering::Relaxed);
    }

    /// See [`Self::set_last`].
    pub fn is_last(&self) -> bool {
        self.last.load(Ordering::Relaxed)
    }

    /// Pingora answered with this status before the proxy saw a request.
    pub(crate) fn refused(&self, status: u16) {
        self.refused.store(status, Ordering::Relaxed);
    }

    /// The head of the request took too long.
    pub(crate) fn timed_out(&self) {
        self.refused.store(Failure::ClientTimeout.status(), Ordering::Relaxed);
    }

    /// The request that began and that the proxy has never seen, if there is one: the status that stands for it, and why.
    pub(crate) fn unseen_request(&self) -> Option<(u16, Failure)> {
        self.is_unseen().then(|| match self.refused.load(Ordering::Relaxed) {
            0 => (Failure::ClientGone.status(), Failure::ClientGone),
            408 => (408, Failure::ClientTimeout),
            status => (status, Failure::Rejected(Rejection::Malformed)),
        })
    }

    fn leave_fresh(&self) {
        if self.fresh.swap(false, Ordering::Relaxed) {
            self.traffic.fresh.leave();
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.leave_fresh();
        self.traffic.listener(self.listener).connections_active.leave();
    }
}

// === impl InFlight ===

impl Drop for InFlight {
    fn drop(&mut self) {
        self.traffic.listener(self.listener).in_flight.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: ListenerId = ListenerId(0);

    #[test]
    fn guards_count_down_whatever_happens_to_the_request() {
        let traffic = Traffic::new(1, 1);
        let connection = traffic.accept(WEB, None);
        let request = connection.begin_request();
        assert_eq!(traffic.in_flight(), 1);
        assert_eq!(traffic.listener(WEB).connections_active.get(), 1);
        drop(request);
        drop(connection);
        assert_eq!(traffic.in_flight(), 0);
        assert_eq!(traffic.listener(WEB).connections_active.get(), 0);
        assert_eq!(traffic.fresh.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn without_connections_a_drain_settles_at_once() {
        let traffic = Traffic::new(1, 1);
        let before = tokio::time::Instant::now();
        traffic.settle().await;
        assert!(before.elapsed() <= 2 * POLL);
        assert_eq!(traffic.unfinished(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connections_stay_for_a_moment() {
        let traffic = Traffic::new(1, 1);
        let idle = traffic.accept(WEB, None);
        drop(idle.begin_request());
        let before = tokio::time::Instant::now();
        traffic.settle().await;
        assert!(before.elapsed() >= IDLE_GRACE && before.elapsed() < FRESH_GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_request_yet_is_waited_for_longer_but_not_for_ever() {
        let traffic = Traffic::new(1, 1);
        let _fresh = traffic.accept(WEB, None);
        let before = tokio::time::Instant::now();
        traffic.settle().await;
        assert!(before.elapsed() >= FRESH_GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_is_not_over_while_a_request_is_in_flight() {
        let traffic = Traffic::new(1, 1);
        traffic.drain();
        assert_eq!(traffic.unfinished(), 1, "the listeners are still open");
        let connection = traffic.accept(WEB, None);
        let requests = [connection.begin_request(), connection.begin_request()];
        traffic.settle().await;
        assert_eq!(traffic.unfinished(), 2);
        drop(requests);
        assert_eq!(traffic.unfinished(), 0);
    }
    #[test]
    fn a_request_that_the_proxy_never_saw_is_told_by_what_became_of_it() {
        let traffic = Traffic::new(1, 1);
        let connection = traffic.accept(WEB, None);
        assert_eq!(connection.unseen_request(), None, "nothing has begun");
        let _request = connection.begin_request();
        assert_eq!(connection.unseen_request(), Some((499, Failure::ClientGone)));
        connection.refused(405);
        assert_eq!(connection.unseen_request(), Some((405, Failure::Rejected(Rejection::Malformed))));
        connection.timed_out();
        assert_eq!(connection.unseen_request(), Some((408, Failure::ClientTimeout)));
        connection.saw_head();
        assert_eq!(connection.unseen_request(), None);
    }
}
