//! The counters of the proxy about its clients: connections, requests in flight, responses.

use std::ops::AddAssign;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::failure::Rejection;
use crate::stats::{Codes, Counter, Gauge, Histogram};

/// The counters of all listeners.
#[derive(Debug, Default)]
pub struct TrafficCounters {
    listeners: Mutex<Vec<Arc<ListenerTraffic>>>,
    /// The responses of forgotten listeners and pools, so that the sums never become smaller.
    forgotten: Mutex<ResponseCounts>,
}

/// Responses so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseCounts {
    /// All responses.
    pub all: u64,
    /// Responses with a status of 500 or more, and responses that broke off.
    pub failed: u64,
}

/// The end of a staged close: the last response was sent, and what the client still sent was discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseEnd {
    /// The client closed the connection.
    Closed,
    /// The client sent nothing for some seconds.
    Quiet,
    /// The client was still sending after the longest time.
    Timeout,
    /// The listener needed room for another connection.
    Evicted,
}

/// The counters of one listener, kept by its name when its other settings change.
#[derive(Debug)]
pub struct ListenerTraffic {
    /// The name of the listener.
    pub name: Arc<str>,
    /// Connections accepted.
    pub connections: Counter,
    /// Failures to accept a connection.
    pub accept_errors: Counter,
    /// Connections open.
    pub connections_active: Gauge,
    /// Requests in flight, including upgraded connections.
    pub in_flight: Gauge,
    /// Bytes of response bodies that passed from a backend to a client without a copy in the process.
    pub spliced: Counter,
    /// Fields of requests that were dropped because some backends read their names as trusted ones.
    pub look_alikes: Counter,
    /// Fields of requests that were dropped because `Connection` named them.
    pub nominated: Counter,
    rejected: [Counter; Rejection::COUNT],
    staged_closes: [Counter; CloseEnd::ALL.len()],
    by_pool: Mutex<Vec<(Arc<str>, Arc<PoolTraffic>)>>,
    without_pool: Arc<PoolTraffic>,
}

/// The requests of one listener to one pool.
#[derive(Debug, Default)]
pub struct PoolTraffic {
    /// Responses by status.
    pub responses: Codes,
    /// Responses with a status below 500 that broke off.
    pub broken_off: Counter,
    /// Requests whose client did not send all of the body.
    pub truncated_requests: Counter,
    /// Responses whose backend did not send all of the body after its head was passed on.
    pub truncated_responses: Counter,
    /// The time from the head of the request to the end of the response.
    pub duration: Histogram,
    /// Bytes of request bodies.
    pub request_bytes: Counter,
    /// Bytes of response bodies.
    pub response_bytes: Counter,
}

// === impl TrafficCounters ===

impl TrafficCounters {
    /// Returns the counters of the listener with this name. Each call returns the same counters until they are dropped.
    pub fn listener(&self, name: &str) -> Arc<ListenerTraffic> {
        let mut listeners = self.listeners.lock();
        if let Some(known) = listeners.iter().find(|known| *known.name == *name) {
            return known.clone();
        }
        let listener = Arc::new(ListenerTraffic::new(name));
        listeners.push(listener.clone());
        listener
    }

    /// Drops the listeners that are no longer used, and the unused pools of the others.
    pub(crate) fn forget_unused(&self) {
        let mut listeners = self.listeners.lock();
        let mut forgotten = self.forgotten.lock();
        let unused = listeners.extract_if(.., |listener| Arc::strong_count(listener) == 1);
        unused.for_each(|listener| *forgotten += listener.responses());
        listeners.iter().for_each(|listener| *forgotten += listener.forget_unused());
    }

    /// Returns the requests in flight on all listeners.
    pub fn in_flight(&self) -> u64 {
        self.listeners.lock().iter().map(|listener| listener.in_flight.get()).sum()
    }

    /// Returns the responses so far, including those on removed listeners and of removed pools.
    pub fn responses(&self) -> ResponseCounts {
        let listeners = self.listeners.lock();
        let mut responses = *self.forgotten.lock();
        listeners.iter().for_each(|listener| responses += listener.responses());
        responses
    }
}

// === impl ListenerTraffic ===

impl ListenerTraffic {
    fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            connections: Counter::default(),
            accept_errors: Counter::default(),
            connections_active: Gauge::default(),
            in_flight: Gauge::default(),
            spliced: Counter::default(),
            look_alikes: Counter::default(),
            nominated: Counter::default(),
            rejected: std::array::from_fn(|_| Counter::default()),
            staged_closes: Default::default(),
            by_pool: Mutex::default(),
            without_pool: Arc::default(),
        }
    }

    /// Returns the counters of requests to the pool with this name. Requests find them in their snapshot.
    pub fn pool(&self, name: &Arc<str>) -> Arc<PoolTraffic> {
        let mut pools = self.by_pool.lock();
        if let Some((_, known)) = pools.iter().find(|(known, _)| known == name) {
            return known.clone();
        }
        let pool = Arc::new(PoolTraffic::default());
        pools.push((name.clone(), pool.clone()));
        pool
    }

    /// Returns the counters of requests without a route.
    pub(crate) fn without_pool(&self) -> &Arc<PoolTraffic> {
        &self.without_pool
    }

    fn responses(&self) -> ResponseCounts {
        let mut responses = self.without_pool.responses();
        self.by_pool.lock().iter().for_each(|(_, pool)| responses += pool.responses());
        responses
    }

    /// Drops the unused pools and returns their responses.
    fn forget_unused(&self) -> ResponseCounts {
        let mut responses = ResponseCounts::default();
        let mut pools = self.by_pool.lock();
        let unused = pools.extract_if(.., |(_, pool)| Arc::strong_count(pool) == 1);
        unused.for_each(|(_, pool)| responses += pool.responses());
        responses
    }

    /// Counts a request that the proxy rejected.
    #[expect(clippy::indexing_slicing, reason = "the array has a counter for each reason")]
    pub fn reject(&self, reason: Rejection) {
        self.rejected[reason.index()].increment();
    }

    /// Counts a staged close.
    #[expect(clippy::indexing_slicing, reason = "the array has a counter for each variant")]
    pub(crate) fn closed(&self, end: CloseEnd) {
        self.staged_closes[end as usize].increment();
    }

    /// Returns the staged closes by their end.
    pub fn staged_closes(&self) -> impl Iterator<Item = (CloseEnd, u64)> {
        CloseEnd::ALL.into_iter().zip(self.staged_closes.iter().map(Counter::get))
    }

    /// Returns the rejected requests by reason.
    pub fn rejected(&self) -> impl Iterator<Item = (Rejection, u64)> {
        Rejection::all().zip(self.rejected.iter().map(Counter::get))
    }
}

// === impl CloseEnd ===

impl CloseEnd {
    /// All ends, in the order of their discriminants.
    pub const ALL: [Self; 4] = [Self::Closed, Self::Quiet, Self::Timeout, Self::Evicted];

    /// Returns the `end` label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Quiet => "quiet",
            Self::Timeout => "timeout",
            Self::Evicted => "evicted",
        }
    }
}

// === impl PoolTraffic ===

impl PoolTraffic {
    fn responses(&self) -> ResponseCounts {
        let mut responses = ResponseCounts { all: 0, failed: self.broken_off.get() };
        for (status, count) in self.responses.counted() {
            responses += ResponseCounts { all: count, failed: if status >= 500 { count } else { 0 } };
        }
        responses
    }
}

// === impl ResponseCounts ===

impl AddAssign for ResponseCounts {
    fn add_assign(&mut self, more: Self) {
        self.all += more.all;
        self.failed += more.failed;
    }
}
