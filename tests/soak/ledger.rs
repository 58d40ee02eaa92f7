//! The record of the load: counts per kind of client, every failure, and every WebSocket that was cut.
//!
//! Clients write it and the report reads it. A failure has a time, so that the report can name the change during which
//! it happened.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// A kind of client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// `GET` on a keep-alive connection.
    KeepAlive,
    /// `GET`, each on a new connection.
    Fresh,
    /// `POST` on a keep-alive connection.
    Post,
    /// A request body that is sent slowly.
    SlowUpload,
    /// A response that is read slowly.
    SlowDownload,
    /// A response of many megabytes.
    LongDownload,
    /// Messages that are sent one after the other, and their echoes.
    WebSocket,
    /// A check by the harness that a change is in effect.
    Change,
}

/// A failed request or a failed change.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// The time since the start.
    pub(crate) at: Duration,
    /// The kind of client, or a change.
    pub(crate) kind: Kind,
    /// What happened.
    pub(crate) text: String,
}

/// A WebSocket that was cut.
#[derive(Debug, Clone)]
pub(crate) struct Cut {
    /// The time at which it was opened.
    pub(crate) opened: Duration,
    /// The time at which it was cut.
    pub(crate) at: Duration,
    /// The error of the client.
    pub(crate) text: String,
}

/// The record of one run.
pub(crate) struct Ledger {
    began: Instant,
    counts: [Counts; Kind::ALL.len()],
    failures: Mutex<Vec<Failure>>,
    cuts: Mutex<Vec<Cut>>,
    /// The time and the duration of each request that should be fast. The duration lasts until the end of the response.
    quick: Mutex<Vec<(Duration, Duration)>>,
}

/// The counts of one kind of client.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    requests: AtomicU64,
    bytes: AtomicU64,
    announced: AtomicU64,
    found_closed: AtomicU64,
}

/// A request with a correct response.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Done {
    /// The time at which the client began, before it connected.
    pub(crate) began: Instant,
    /// Bytes of bodies that were checked.
    pub(crate) bytes: u64,
}

impl Kind {
    /// All kinds, in the order of the report.
    pub(crate) const ALL: [Self; 8] = [
        Self::KeepAlive,
        Self::Fresh,
        Self::Post,
        Self::SlowUpload,
        Self::SlowDownload,
        Self::LongDownload,
        Self::WebSocket,
        Self::Change,
    ];

    /// Returns the name in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::KeepAlive => "keep-alive GET",
            Self::Fresh => "GET on new connections",
            Self::Post => "POST",
            Self::SlowUpload => "slow upload",
            Self::SlowDownload => "slow download",
            Self::LongDownload => "long download",
            Self::WebSocket => "WebSocket message",
            Self::Change => "change",
        }
    }

    /// Whether the origin responds at once, so that a delay comes from the load balancer.
    fn is_quick(self) -> bool {
        matches!(self, Self::KeepAlive | Self::Fresh | Self::Post)
    }
}

// ===== impl Ledger =====

impl Ledger {
    /// Creates an empty record whose time begins now.
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            counts: Default::default(),
            failures: Mutex::default(),
            cuts: Mutex::default(),
            quick: Mutex::default(),
        }
    }

    /// Returns the time since the start.
    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Records a request with a correct response.
    pub(crate) fn done(&self, kind: Kind, done: Done) {
        let counts = &self.counts[kind as usize];
        counts.requests.fetch_add(1, Ordering::Relaxed);
        counts.bytes.fetch_add(done.bytes, Ordering::Relaxed);
        if kind.is_quick() {
            lock(&self.quick).push((self.now(), done.began.elapsed()));
        }
    }

    /// Records that a response announced the close of the connection.
    pub(crate) fn announced(&self, kind: Kind) {
        self.counts[kind as usize].announced.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that an idle connection was closed, which costs no request.
    pub(crate) fn found_closed(&self, kind: Kind) {
        self.counts[kind as usize].found_closed.fetch_add(1, Ordering::Relaxed);
    }

    /// Records a failed request or change.
    pub(crate) fn failed(&self, kind: Kind, text: impl Into<String>) {
        lock(&self.failures).push(Failure { at: self.now(), kind, text: text.into() });
    }

    /// Records a WebSocket that was cut.
    pub(crate) fn cut(&self, opened: Duration, text: impl Into<String>) {
        lock(&self.cuts).push(Cut { opened, at: self.now(), text: text.into() });
    }

    /// Returns the counts of a kind.
    pub(crate) fn counts(&self, kind: Kind) -> &Counts {
        &self.counts[kind as usize]
    }

    /// Returns all failures, in order.
    pub(crate) fn failures(&self) -> Vec<Failure> {
        lock(&self.failures).clone()
    }

    /// Returns all WebSockets that were cut, in order.
    pub(crate) fn cuts(&self) -> Vec<Cut> {
        lock(&self.cuts).clone()
    }

    /// Returns the end and the duration of the slowest of the requests that should be fast.
    pub(crate) fn longest_pause(&self) -> (Duration, Duration) {
        lock(&self.quick).iter().copied().max_by_key(|(_, took)| *took).unwrap_or_default()
    }

    /// Returns the duration that `share` of 1000 fast requests did not exceed.
    pub(crate) fn permille(&self, share: usize) -> Duration {
        let mut times: Vec<Duration> = lock(&self.quick).iter().map(|(_, took)| *took).collect();
        times.sort_unstable();
        let index = times.len() * share / 1000;
        times.get(index.min(times.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

impl Counts {
    /// Returns the number of requests with a correct response, or of messages with a correct echo.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Returns the number of checked bytes in bodies and messages.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Returns the number of connections whose close a response had announced.
    pub(crate) fn announced(&self) -> u64 {
        self.announced.load(Ordering::Relaxed)
    }

    /// Returns the number of connections that were closed while idle.
    pub(crate) fn found_closed(&self) -> u64 {
        self.found_closed.load(Ordering::Relaxed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics while it holds this")
}
