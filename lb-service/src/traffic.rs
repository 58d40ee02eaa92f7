//! The connections of clients: their number, the requests in flight on them, and the end of a drain.

use std::num::NonZeroU32;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

pub use crate::counters::{CloseEnd, ListenerTraffic, PoolTraffic, ResponseCounts, TrafficCounters};
use crate::forwarded::Peer;
use crate::snapshot::Snapshot;
use crate::stats::Gauge;

/// The counters and the open sockets of a daemon. One per daemon.
#[derive(Debug, Default)]
pub struct Traffic {
    counters: TrafficCounters,
    acceptors: Mutex<Vec<Weak<Acceptor>>>,
    draining: AtomicBool,
}

/// One listening socket, from its opening to the end of its last connection.
#[derive(Debug)]
pub struct Acceptor {
    /// The counters of the listener of this socket.
    pub listener: Arc<ListenerTraffic>,
    open: Gauge,
    /// Connections on which no request has arrived yet.
    fresh: Gauge,
    /// Connections that have ended, except that the client may still send.
    lingering: Gauge,
    /// Notified when a connection ends or begins to linger.
    left: Notify,
    /// Notified when a lingering connection is to make room for another one.
    room_needed: Notify,
    /// The time of the latest failure to accept a connection.
    shortage: Mutex<Option<Instant>>,
    rejections: Mutex<Rejections>,
    closing: AtomicBool,
    /// The time that idle connections stay open after the socket is closed, in milliseconds.
    grace: AtomicU64,
    /// Whether idle connections are to be closed.
    settled: AtomicBool,
    /// Notified when `settled` turns true.
    settling: Notify,
    /// The snapshot for requests that arrive after the listener is removed from the configuration.
    last_plan: OnceLock<Arc<Snapshot>>,
}

/// The rejected heads of requests that the log has not mentioned yet.
#[derive(Debug, Default)]
struct Rejections {
    count: u64,
    /// The time when the log mentioned them last.
    logged: Option<Instant>,
}

/// One connection of a client. It counts as open until it is dropped.
#[derive(Debug)]
pub struct Connection {
    /// The socket that accepted the connection.
    pub acceptor: Arc<Acceptor>,
    /// The client; `None` on a Unix socket.
    pub peer: Option<Peer>,
    fresh: AtomicBool,
}

/// A connection that only waits for the client to stop sending, until this is dropped.
#[derive(Debug)]
pub(crate) struct Lingering<'a>(&'a Acceptor);

/// A request in flight, until this is dropped.
#[derive(Debug)]
pub struct RequestGuard<'a>(&'a Acceptor);

/// The maximum time that a connection without a request can delay a drain.
const FRESH_GRACE: Duration = Duration::from_secs(1);
/// The time that idle connections stay open when the process ends: a request that was already sent arrives in this time
/// and is served. The time is short because it delays the end of the process.
const IDLE_GRACE: Duration = Duration::from_millis(100);
/// The time that idle connections stay open when only a listener is closed and the process continues: a client that
/// sends a request every few seconds gets `Connection: close` in a response, and its connection is not closed at the
/// moment of sending.
const CLOSED_GRACE: Duration = Duration::from_secs(5);
/// The time without a failure to accept after which the next one begins another shortage.
const SHORTAGE_END: Duration = Duration::from_secs(60);
/// The longest time after which a changed limit of connections counts.
const LIMIT_CHECK: Duration = Duration::from_secs(1);
/// The shortest time between two lines of the log about rejected heads.
const REJECTIONS_PAUSE: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(10);

// === impl Traffic ===

impl Traffic {
    /// Returns empty counters.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Drops the counters of listeners and pools that are no longer used.
    pub fn forget_unused(&self) {
        self.counters.forget_unused();
        self.acceptors.lock().retain(|acceptor| acceptor.strong_count() > 0);
    }

    /// Registers an open socket of this listener.
    pub fn open(&self, listener: &str) -> Arc<Acceptor> {
        let acceptor = Arc::new(Acceptor::new(self.listener(listener), self.is_draining()));
        self.acceptors.lock().push(Arc::downgrade(&acceptor));
        acceptor
    }

    /// Begins the drain at the end of the process: from now on every response says `Connection: close`, and idle
    /// connections are soon closed.
    pub fn drain(&self) {
        self.drain_patiently(IDLE_GRACE);
    }

    /// Begins the drain when another process accepts connections: like [`drain`](Self::drain), but idle connections
    /// stay open for the time `idle`, or until their next request is served. A later [`drain`](Self::drain) shortens
    /// this time.
    pub fn drain_patiently(&self, idle: Duration) {
        self.draining.store(true, Ordering::Release);
        self.acceptors.lock().iter().filter_map(Weak::upgrade).for_each(|acceptor| {
            acceptor.set_grace(idle);
            acceptor.close();
        });
    }

    /// Returns whether a drain has begun.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Returns whether no client can send another request after a drain has begun. It is false before the drain.
    pub fn is_settled(&self) -> bool {
        !self.is_draining()
            || self.acceptors.lock().iter().filter_map(Weak::upgrade).all(|acceptor| acceptor.is_settled())
    }
}

impl Deref for Traffic {
    type Target = TrafficCounters;

    fn deref(&self) -> &TrafficCounters {
        &self.counters
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

// === impl Acceptor ===

impl Acceptor {
    fn new(listener: Arc<ListenerTraffic>, closing: bool) -> Self {
        Self {
            listener,
            open: Gauge::default(),
            fresh: Gauge::default(),
            lingering: Gauge::default(),
            left: Notify::new(),
            room_needed: Notify::new(),
            shortage: Mutex::default(),
            rejections: Mutex::default(),
            closing: AtomicBool::new(closing),
            grace: AtomicU64::new(millis(if closing { IDLE_GRACE } else { CLOSED_GRACE })),
            settled: AtomicBool::new(false),
            settling: Notify::new(),
            last_plan: OnceLock::new(),
        }
    }

    /// Registers a connection of a client.
    pub fn accept(self: &Arc<Self>, peer: Option<Peer>) -> Arc<Connection> {
        self.listener.connections.increment();
        self.listener.connections_active.enter();
        self.open.enter();
        self.fresh.enter();
        Arc::new(Connection { acceptor: self.clone(), peer, fresh: AtomicBool::new(true) })
    }

    /// Counts a failure to accept a connection. Returns whether a shortage begins with it, usually of descriptors.
    pub(crate) fn cannot_accept(&self, now: Instant) -> bool {
        self.listener.accept_errors.increment();
        let before = self.shortage.lock().replace(now);
        before.is_none_or(|before| now.saturating_duration_since(before) > SHORTAGE_END)
    }

    /// Counts a rejected head of a request. Returns the number of those that the log has not mentioned yet, if it is to
    /// mention them now.
    pub(crate) fn note_rejected(&self, now: Instant) -> Option<u64> {
        self.rejections.lock().add(now)
    }

    /// Waits until the listener has fewer open connections than `limit` says, if it says anything: a reload can change
    /// it. A lingering connection makes room at once.
    pub(crate) async fn room(&self, limit: impl Fn() -> Option<NonZeroU32>) {
        loop {
            let left = self.left.notified();
            if limit().is_none_or(|limit| self.listener.connections_active.get() < limit.get().into()) {
                return;
            }
            if self.lingering.get() > 0 {
                self.room_needed.notify_one();
            }
            let _ = tokio::time::timeout(LIMIT_CHECK, left).await;
        }
    }

    /// Records a connection that only waits for the client to stop sending, until the result is dropped.
    pub(crate) fn linger(&self) -> Lingering<'_> {
        self.lingering.enter();
        self.left.notify_waiters();
        Lingering(self)
    }

    /// Waits until a lingering connection is to make room for another one.
    pub(crate) async fn room_needed(&self) {
        self.room_needed.notified().await;
    }

    /// Makes every response from now on say `Connection: close`.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    fn set_grace(&self, idle: Duration) {
        self.grace.store(millis(idle), Ordering::Release);
    }

    /// Returns whether the socket is closed or about to be closed.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Waits until idle connections can be closed, when each accepted connection had time to send a request. The caller
    /// has stopped accepting connections.
    pub async fn settle(&self) {
        let closed = tokio::time::Instant::now();
        while self.must_wait(closed.elapsed()) {
            tokio::time::sleep(POLL).await;
        }
        self.settled.store(true, Ordering::Release);
        self.settling.notify_waiters();
    }

    /// Returns a future that is ready once the result of [`is_settled`](Self::is_settled) has changed.
    pub(crate) fn settling(&self) -> Notified<'_> {
        self.settling.notified()
    }

    /// Returns whether idle connections are to be closed.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// Stores `last`, the last snapshot that has this listener. Requests that still arrive on it use `last`.
    pub fn retire(&self, last: &Arc<Snapshot>) {
        // The first call stores the last snapshot that had the listener.
        let _ = self.last_plan.set(last.clone());
    }

    /// Returns the snapshot that [`Self::retire`] stored.
    pub(crate) fn last_plan(&self) -> Option<&Arc<Snapshot>> {
        self.last_plan.get()
    }

    fn must_wait(&self, since_closed: Duration) -> bool {
        let idle = Duration::from_millis(self.grace.load(Ordering::Acquire));
        let grace = if self.fresh.get() > 0 { FRESH_GRACE.max(idle) } else { idle };
        // A connection that was accepted just before the socket closed might not be counted yet, so there is at least
        // one poll.
        // No request can arrive on a connection that only lingers.
        let is_used = self.open.get() > self.lingering.get();
        since_closed < POLL || (is_used && since_closed < grace)
    }
}

// === impl Rejections ===

impl Rejections {
    fn add(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        if self.logged.is_some_and(|logged| now.saturating_duration_since(logged) < REJECTIONS_PAUSE) {
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}

// === impl Connection ===

impl Connection {
    /// Records that the first bytes of a request arrived. From now on the request is in flight, so that a drain waits
    /// for it.
    pub(crate) fn begin_request(&self) -> RequestGuard<'_> {
        self.leave_fresh();
        self.acceptor.listener.in_flight.enter();
        RequestGuard(&self.acceptor)
    }

    /// Returns whether the current request is the last, because the socket closes.
    pub fn is_last(&self) -> bool {
        self.acceptor.is_closing()
    }

    fn leave_fresh(&self) {
        if self.fresh.swap(false, Ordering::Relaxed) {
            self.acceptor.fresh.leave();
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.leave_fresh();
        self.acceptor.open.leave();
        self.acceptor.listener.connections_active.leave();
        self.acceptor.left.notify_waiters();
    }
}

// === impl Lingering ===

impl Drop for Lingering<'_> {
    fn drop(&mut self) {
        self.0.lingering.leave();
    }
}

// === impl RequestGuard ===

impl Drop for RequestGuard<'_> {
    fn drop(&mut self) {
        self.0.listener.in_flight.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_count_down_at_every_end_of_a_request() {
        let traffic = Traffic::new();
        let acceptor = traffic.open("web");
        let connection = acceptor.accept(None);
        let request = connection.begin_request();
        assert_eq!(traffic.in_flight(), 1);
        assert_eq!(traffic.listener("web").connections_active.get(), 1);
        drop(request);
        drop(connection);
        assert_eq!(traffic.in_flight(), 0);
        assert_eq!(traffic.listener("web").connections_active.get(), 0);
        assert_eq!((acceptor.fresh.get(), acceptor.open.get()), (0, 0));
    }

    #[test]
    fn rejected_heads_are_mentioned_once_a_second_with_their_number() {
        let (mut rejections, begin) = (Rejections::default(), Instant::now());
        let mut at = |millis| rejections.add(begin + Duration::from_millis(millis));
        assert_eq!([at(0), at(1), at(999), at(1000), at(1001)], [Some(1), None, None, Some(3), None]);
        assert_eq!(at(5000), Some(2));
    }

    #[test]
    fn counters_of_a_name_continue_while_they_are_in_use() {
        let traffic = Traffic::new();
        let pool: Arc<str> = "one".into();
        let acceptor = traffic.open("web");
        drop(acceptor.accept(None));
        let used = acceptor.listener.pool(&pool);
        used.responses.increment(200);
        used.responses.increment(503);
        used.broken_off.increment();
        traffic.forget_unused();
        assert_eq!(traffic.open("web").listener.connections.get(), 1);
        assert_eq!(acceptor.listener.pool(&pool).responses.counted().count(), 2);
        assert_eq!(traffic.responses(), ResponseCounts { all: 2, failed: 2 });
        drop(used);
        traffic.forget_unused();
        assert_eq!(acceptor.listener.pool(&pool).responses.counted().count(), 0);
        drop(acceptor);
        traffic.forget_unused();
        assert_eq!(traffic.listener("web").connections.get(), 0);
    }

    #[test]
    fn a_shortage_begins_once() {
        let (acceptor, now) = (Traffic::new().open("web"), Instant::now());
        let begins = |seconds| acceptor.cannot_accept(now + Duration::from_secs(seconds));
        assert_eq!([0, 1, 60, 120, 181].map(begins), [true, false, false, false, true]);
        assert_eq!(acceptor.listener.accept_errors.get(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_without_connections_settles_at_once() {
        let traffic = Traffic::new();
        let acceptor = traffic.open("web");
        let before = tokio::time::Instant::now();
        acceptor.settle().await;
        assert!(before.elapsed() <= 2 * POLL);
        assert!(traffic.is_settled());
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connections_stay_open_briefly_at_the_end_and_longer_otherwise() {
        for (drain, expected) in [
            (Some(IDLE_GRACE), IDLE_GRACE),
            (Some(Duration::from_secs(3)), Duration::from_secs(3)),
            (None, CLOSED_GRACE),
        ] {
            let traffic = Traffic::new();
            let acceptor = traffic.open("web");
            let idle = acceptor.accept(None);
            drop(idle.begin_request());
            match drain {
                Some(grace) if grace == IDLE_GRACE => traffic.drain(),
                Some(grace) => traffic.drain_patiently(grace),
                None => acceptor.close(),
            }
            let before = tokio::time::Instant::now();
            acceptor.settle().await;
            let took = before.elapsed();
            assert!(took >= expected && took <= expected + 2 * POLL, "{took:?} for {expected:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_only_lingers_does_not_delay_a_drain() {
        let acceptor = Traffic::new().open("web");
        let ended = acceptor.accept(None);
        drop(ended.begin_request());
        let _lingering = acceptor.linger();
        let before = tokio::time::Instant::now();
        acceptor.settle().await;
        assert!(before.elapsed() <= 2 * POLL);
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_end_of_the_process_shortens_a_patient_drain() {
        let traffic = Traffic::new();
        let acceptor = traffic.open("web");
        let idle = acceptor.accept(None);
        drop(idle.begin_request());
        traffic.drain_patiently(CLOSED_GRACE);
        let before = tokio::time::Instant::now();
        let hurry = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            traffic.drain();
        };
        tokio::join!(acceptor.settle(), hurry);
        assert!(before.elapsed() < Duration::from_millis(1100), "{:?}", before.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_request_delays_a_drain_for_a_limited_time() {
        let acceptor = Traffic::new().open("web");
        let _fresh = acceptor.accept(None);
        let before = tokio::time::Instant::now();
        acceptor.settle().await;
        assert!(before.elapsed() >= FRESH_GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn connections_of_another_socket_do_not_delay_a_socket() {
        let traffic = Traffic::new();
        let (here, there) = (traffic.open("web"), traffic.open("web"));
        let _fresh = there.accept(None);
        let before = tokio::time::Instant::now();
        here.settle().await;
        assert!(before.elapsed() <= 2 * POLL);
        assert!(here.is_settled() && !there.is_settled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_is_not_over_while_a_request_is_in_flight() {
        let traffic = Traffic::new();
        let acceptor = traffic.open("web");
        traffic.drain();
        assert!(acceptor.is_closing() && traffic.open("late").is_closing());
        assert!(!traffic.is_settled(), "the listeners are still open");
        assert_eq!(traffic.in_flight(), 0);
        let connection = acceptor.accept(None);
        let requests = [connection.begin_request(), connection.begin_request()];
        acceptor.settle().await;
        assert_eq!((traffic.in_flight(), traffic.is_settled()), (2, true));
        drop(requests);
        assert_eq!(traffic.in_flight(), 0);
    }
}
