//! What became of the load: counts for each kind of client, every failure with its time, every WebSocket that was cut.
//!
//! Clients write, the report reads. A failure is kept with its time, so that it can be laid beside the change under way.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// A kind of client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// `GET` on a kept connection.
    KeepAlive,
    /// `GET`, each on a connection of its own.
    Fresh,
    /// `POST` on a kept connection.
    Post,
    /// A body that trickles.
    SlowUpload,
    /// An answer that is read slowly.
    SlowDownload,
    /// An answer of many megabytes.
    LongDownload,
    /// One message after the other, and their echoes.
    WebSocket,
    /// The harness's own looks at whether a change took effect.
    Change,
}

/// A request that failed, or a change.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// Since the start.
    pub(crate) at: Duration,
    /// Whose it was.
    pub(crate) kind: Kind,
    /// What happened.
    pub(crate) text: String,
}

/// A WebSocket that was cut.
#[derive(Debug, Clone)]
pub(crate) struct Cut {
    /// When it was agreed to.
    pub(crate) opened: Duration,
    /// When it was cut.
    pub(crate) at: Duration,
    /// How.
    pub(crate) text: String,
}

/// All that is written down in a run.
pub(crate) struct Ledger {
    began: Instant,
    counts: [Counts; Kind::ALL.len()],
    failures: Mutex<Vec<Failure>>,
    cuts: Mutex<Vec<Cut>>,
    /// From the wish to the end of the answer, of requests that should be quick; with their time.
    quick: Mutex<Vec<(Duration, Duration)>>,
}

/// What is counted for each kind.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    requests: AtomicU64,
    bytes: AtomicU64,
    announced: AtomicU64,
    found_closed: AtomicU64,
}

/// A request that was answered as it should be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Done {
    /// When the client wanted it.
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

    /// As the report calls it.
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

    /// Whether its requests are answered at once, so that a pause of them is one of the daemon.
    fn is_quick(self) -> bool {
        matches!(self, Self::KeepAlive | Self::Fresh | Self::Post)
    }
}

// ===== impl Ledger =====

impl Ledger {
    /// An empty one, whose time begins now.
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            counts: Default::default(),
            failures: Mutex::default(),
            cuts: Mutex::default(),
            quick: Mutex::default(),
        }
    }

    /// Time since the start.
    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// A request was answered as it should be.
    pub(crate) fn done(&self, kind: Kind, done: Done) {
        let counts = &self.counts[kind as usize];
        counts.requests.fetch_add(1, Ordering::Relaxed);
        counts.bytes.fetch_add(done.bytes, Ordering::Relaxed);
        if kind.is_quick() {
            lock(&self.quick).push((self.now(), done.began.elapsed()));
        }
    }

    /// The peer said that it closes the connection: the client must connect anew.
    pub(crate) fn announced(&self, kind: Kind) {
        self.counts[kind as usize].announced.fetch_add(1, Ordering::Relaxed);
    }

    /// A kept connection was found closed, and nothing was lost by it.
    pub(crate) fn found_closed(&self, kind: Kind) {
        self.counts[kind as usize].found_closed.fetch_add(1, Ordering::Relaxed);
    }

    /// A request failed.
    pub(crate) fn failed(&self, kind: Kind, text: impl Into<String>) {
        lock(&self.failures).push(Failure { at: self.now(), kind, text: text.into() });
    }

    /// A WebSocket was cut.
    pub(crate) fn cut(&self, opened: Duration, text: impl Into<String>) {
        lock(&self.cuts).push(Cut { opened, at: self.now(), text: text.into() });
    }

    /// What was counted for a kind.
    pub(crate) fn counts(&self, kind: Kind) -> &Counts {
        &self.counts[kind as usize]
    }

    /// All failures, in order.
    pub(crate) fn failures(&self) -> Vec<Failure> {
        lock(&self.failures).clone()
    }

    /// All WebSockets cut, in order.
    pub(crate) fn cuts(&self) -> Vec<Cut> {
        lock(&self.cuts).clone()
    }

    /// When the longest pause of a client ended, and how long it was.
    pub(crate) fn longest_pause(&self) -> (Duration, Duration) {
        lock(&self.quick).iter().copied().max_by_key(|(_, took)| *took).unwrap_or_default()
    }

    /// The time that so many of a thousand quick requests did not exceed.
    pub(crate) fn permille(&self, share: usize) -> Duration {
        let mut times: Vec<Duration> = lock(&self.quick).iter().map(|(_, took)| *took).collect();
        times.sort_unstable();
        let index = times.len() * share / 1000;
        times.get(index.min(times.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

impl Counts {
    /// Requests answered, or messages echoed, as they should be.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes of bodies and messages, each of them checked.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Kept connections that ended after an answer that said so.
    pub(crate) fn announced(&self) -> u64 {
        self.announced.load(Ordering::Relaxed)
    }

    /// Kept connections that were found closed.
    pub(crate) fn found_closed(&self) -> u64 {
        self.found_closed.load(Ordering::Relaxed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics while it holds this")
}
