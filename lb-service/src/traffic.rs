//! The connections of clients: which are open, on which a request is in flight, and when a drain is over.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

pub use crate::counters::{Answers, ListenerTraffic, PoolTraffic, TrafficCounters};
use crate::failure::{Failure, Rejection};
use crate::forwarded::Peer;
use crate::patience::Patience;
use crate::snapshot::Snapshot;
use crate::stats::Gauge;

/// The counters and the open sockets of a daemon. One per daemon.
#[derive(Debug, Default)]
pub struct Traffic {
    counters: TrafficCounters,
    doors: Mutex<Vec<Weak<Door>>>,
    draining: AtomicBool,
}

/// One socket that clients connect to, from when it is opened until the last connection that came through it has ended.
#[derive(Debug)]
pub struct Door {
    /// Whose clients come through it.
    pub listener: Arc<ListenerTraffic>,
    open: Gauge,
    /// Connections on which no request has arrived yet.
    fresh: Gauge,
    closing: AtomicBool,
    /// How long idle connections stay open once nobody accepts any more, in milliseconds.
    grace: AtomicU64,
    settled: watch::Sender<bool>,
    /// What its requests are served by when its listener is not configured any more.
    last_plan: OnceLock<Arc<Snapshot>>,
}

/// One connection of a client; it counts as open until this is dropped.
#[derive(Debug)]
pub struct Connection {
    /// Where it came in.
    pub door: Arc<Door>,
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
}

/// A request being worked on, until this is dropped.
#[derive(Debug)]
pub struct RequestGuard(Arc<Door>);

/// How long a connection on which nothing has arrived yet may hold up a drain.
const FRESH_GRACE: Duration = Duration::from_secs(1);
/// How long idle connections stay open when the process is to end: a request that is on its way arrives meanwhile, and is
/// answered. Not longer, since whoever stops a process waits for it.
const IDLE_GRACE: Duration = Duration::from_millis(100);
/// The same when only a listener is closed and the process goes on: a client that sends something every few seconds is told in an
/// answer, and does not find its connection closed just when it sends.
const CLOSED_GRACE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

// === impl Traffic ===

impl Traffic {
    /// Nothing yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Forgets the counters of listeners and pools that nothing uses any more.
    pub fn forget_unused(&self) {
        self.counters.forget_unused();
        self.doors.lock().retain(|door| door.strong_count() > 0);
    }

    /// A socket of this listener is opened.
    pub fn open(&self, listener: &str) -> Arc<Door> {
        let door = Arc::new(Door::new(self.listener(listener), self.is_draining()));
        self.doors.lock().push(Arc::downgrade(&door));
        door
    }

    /// The process is to end: from now on every answer says `Connection: close`, and idle connections are soon closed.
    pub fn drain(&self) {
        self.drain_patiently(IDLE_GRACE);
    }

    /// Another process accepts in place of this one: as [`drain`](Self::drain), but idle connections stay open for so long, or
    /// until their next request is answered. A later [`drain`](Self::drain) makes it short.
    pub fn drain_patiently(&self, idle: Duration) {
        self.draining.store(true, Ordering::Release);
        self.doors.lock().iter().filter_map(Weak::upgrade).for_each(|door| {
            door.set_grace(idle);
            door.close();
        });
    }

    /// Whether a drain has begun.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Whether no client can send another request, once a drain has begun; before, nothing has to settle.
    pub fn is_settled(&self) -> bool {
        !self.is_draining()
            || self.doors.lock().iter().filter_map(Weak::upgrade).all(|door| door.is_settled())
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

// === impl Door ===

impl Door {
    fn new(listener: Arc<ListenerTraffic>, closing: bool) -> Self {
        Self {
            listener,
            open: Gauge::default(),
            fresh: Gauge::default(),
            closing: AtomicBool::new(closing),
            grace: AtomicU64::new(millis(if closing { IDLE_GRACE } else { CLOSED_GRACE })),
            settled: watch::Sender::new(false),
            last_plan: OnceLock::new(),
        }
    }

    /// A client connected.
    pub fn accept(self: &Arc<Self>, peer: Option<Peer>) -> Arc<Connection> {
        self.listener.connections.increment();
        self.listener.connections_active.enter();
        self.open.enter();
        self.fresh.enter();
        Arc::new(Connection {
            door: self.clone(),
            peer,
            fresh: AtomicBool::new(true),
            unseen: AtomicBool::new(false),
            last: AtomicBool::new(false),
            patience: Patience::new(),
            refused: AtomicU16::new(0),
        })
    }

    /// From now on every answer says `Connection: close`.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    fn set_grace(&self, idle: Duration) {
        self.grace.store(millis(idle), Ordering::Release);
    }

    /// Whether it is closed, or about to be.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Called when nobody accepts any more. Returns when idle connections may be closed too: when each accepted
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

    fn is_settled(&self) -> bool {
        *self.settled.borrow()
    }

    /// No snapshot after `last` has its listener. Requests that still arrive on it use `last`.
    pub fn retire(&self, last: &Arc<Snapshot>) {
        // The first is the last that had the listener.
        let _ = self.last_plan.set(last.clone());
    }

    /// See [`Self::retire`].
    pub(crate) fn last_plan(&self) -> Option<&Arc<Snapshot>> {
        self.last_plan.get()
    }

    fn must_wait(&self, since_closed: Duration) -> bool {
        let idle = Duration::from_millis(self.grace.load(Ordering::Acquire));
        let grace = if self.fresh.get() > 0 { FRESH_GRACE.max(idle) } else { idle };
        // A connection accepted just before the socket closed may not be counted yet, hence at least one poll.
        since_closed < POLL || (self.open.get() > 0 && since_closed < grace)
    }
}

// === impl Connection ===

impl Connection {
    /// The first bytes of a request arrived on it. From now on the request is in flight, so that a drain waits for it.
    pub fn begin_request(&self) -> RequestGuard {
        self.leave_fresh();
        self.unseen.store(true, Ordering::Relaxed);
        self.door.listener.in_flight.enter();
        RequestGuard(self.door.clone())
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

    /// Whether the request is to be the last, for this or because the door closes.
    pub fn is_last(&self) -> bool {
        self.last.load(Ordering::Relaxed) || self.door.is_closing()
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
            self.door.fresh.leave();
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.leave_fresh();
        self.door.open.leave();
        self.door.listener.connections_active.leave();
    }
}

// === impl RequestGuard ===

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.listener.in_flight.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_count_down_whatever_happens_to_the_request() {
        let traffic = Traffic::new();
        let door = traffic.open("web");
        let connection = door.accept(None);
        let request = connection.begin_request();
        assert_eq!(traffic.in_flight(), 1);
        assert_eq!(traffic.listener("web").connections_active.get(), 1);
        drop(request);
        drop(connection);
        assert_eq!(traffic.in_flight(), 0);
        assert_eq!(traffic.listener("web").connections_active.get(), 0);
        assert_eq!((door.fresh.get(), door.open.get()), (0, 0));
    }

    #[test]
    fn counters_of_a_name_go_on_as_long_as_anybody_knows_them() {
        let traffic = Traffic::new();
        let pool: Arc<str> = "one".into();
        let door = traffic.open("web");
        drop(door.accept(None));
        let used = door.listener.pool(&pool);
        used.answers.increment(200);
        used.answers.increment(503);
        used.broken_off.increment();
        traffic.forget_unused();
        assert_eq!(traffic.open("web").listener.connections.get(), 1);
        assert_eq!(door.listener.pool(&pool).answers.counted().count(), 2);
        assert_eq!(traffic.answers(), Answers { all: 2, failed: 2 });
        drop(used);
        traffic.forget_unused();
        assert_eq!(door.listener.pool(&pool).answers.counted().count(), 0);
        drop(door);
        traffic.forget_unused();
        assert_eq!(traffic.listener("web").connections.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn without_connections_a_door_settles_at_once() {
        let traffic = Traffic::new();
        let door = traffic.open("web");
        let before = tokio::time::Instant::now();
        door.settle().await;
        assert!(before.elapsed() <= 2 * POLL);
        assert!(traffic.is_settled());
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connections_stay_for_a_moment_at_the_end_and_longer_otherwise() {
        for (drain, expected) in [
            (Some(IDLE_GRACE), IDLE_GRACE),
            (Some(Duration::from_secs(3)), Duration::from_secs(3)),
            (None, CLOSED_GRACE),
        ] {
            let traffic = Traffic::new();
            let door = traffic.open("web");
            let idle = door.accept(None);
            drop(idle.begin_request());
            match drain {
                Some(patience) if patience == IDLE_GRACE => traffic.drain(),
                Some(patience) => traffic.drain_patiently(patience),
                None => door.close(),
            }
            let before = tokio::time::Instant::now();
            door.settle().await;
            let took = before.elapsed();
            assert!(took >= expected && took <= expected + 2 * POLL, "{took:?} for {expected:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_that_comes_later_makes_a_patient_drain_short() {
        let traffic = Traffic::new();
        let door = traffic.open("web");
        let idle = door.accept(None);
        drop(idle.begin_request());
        traffic.drain_patiently(CLOSED_GRACE);
        let before = tokio::time::Instant::now();
        let hurry = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            traffic.drain();
        };
        tokio::join!(door.settle(), hurry);
        assert!(before.elapsed() < Duration::from_millis(1100), "{:?}", before.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_request_yet_is_waited_for_longer_but_not_for_ever() {
        let door = Traffic::new().open("web");
        let _fresh = door.accept(None);
        let before = tokio::time::Instant::now();
        door.settle().await;
        assert!(before.elapsed() >= FRESH_GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn connections_of_another_door_hold_up_nobody() {
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
        let door = traffic.open("web");
        traffic.drain();
        assert!(door.is_closing() && traffic.open("late").is_closing());
        assert!(!traffic.is_settled(), "the listeners are still open");
        assert_eq!(traffic.in_flight(), 0);
        let connection = door.accept(None);
        let requests = [connection.begin_request(), connection.begin_request()];
        door.settle().await;
        assert_eq!((traffic.in_flight(), traffic.is_settled()), (2, true));
        drop(requests);
        assert_eq!(traffic.in_flight(), 0);
    }

    #[test]
    fn a_request_that_the_proxy_never_saw_is_told_by_what_became_of_it() {
        let connection = Traffic::new().open("web").accept(None);
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
