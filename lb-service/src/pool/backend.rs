//! What the proxy knows of one backend: how to connect to it, and what it did so far.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::HttpPeer;
use pingora::utils::tls::{WrappedX509, parse_x509};

use super::settings::{BackendSettings, PoolSettings, UpstreamTls};
use crate::stats::{Codes, Counter, Histogram, Level};

/// One backend of one pool.
#[derive(Debug)]
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    /// The address as metrics and logs write it.
    pub label: Arc<str>,
    /// Requests that it is working on.
    pub in_flight: Level,
    /// Its answers by status.
    pub answers: Codes,
    /// From sending a request to the first byte of its answer.
    pub time_to_first_byte: Histogram,
    /// Requests that went over a connection made for them.
    pub connections_new: Counter,
    /// Requests that went over a connection kept alive.
    pub connections_reused: Counter,
    /// Failures, by [`UpstreamError`].
    errors: [Counter; UpstreamError::ALL.len()],
    peer: HttpPeer,
}

/// How a backend failed a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamError {
    /// No connection could be made.
    Connect,
    /// The TLS handshake failed.
    Tls,
    /// It took longer than it may.
    Timeout,
    /// The connection broke.
    Reset,
    /// What it sent is not HTTP.
    Protocol,
}

/// One request being sent to one backend; it counts as in flight there until this is dropped.
#[derive(Debug)]
pub struct Attempt {
    /// The backend.
    pub backend: Arc<Backend>,
    /// Whether the connection was kept alive from an earlier request; unknown until there is one.
    pub reused: Option<bool>,
    started: Instant,
    first_byte: Option<Duration>,
}

// === impl Backend ===

impl Backend {
    pub(super) fn new(pool: &PoolSettings, backend: &BackendSettings) -> Self {
        Self {
            address: backend.address,
            label: backend.address.to_string().into(),
            in_flight: Level::default(),
            answers: Codes::default(),
            time_to_first_byte: Histogram::default(),
            connections_new: Counter::default(),
            connections_reused: Counter::default(),
            errors: Default::default(),
            peer: peer(pool, backend.address),
        }
    }

    /// How to connect to it.
    pub fn peer(&self) -> &HttpPeer {
        &self.peer
    }

    /// Counts a failure.
    pub fn failed(&self, error: UpstreamError) {
        self.errors[error as usize].increment();
    }

    /// Failures so far, by kind.
    pub fn errors(&self) -> impl Iterator<Item = (UpstreamError, u64)> {
        UpstreamError::ALL.into_iter().zip(self.errors.iter().map(Counter::get))
    }
}

/// How the backends of `pool` are connected to, with the address of one of them.
///
/// Pingora pools idle connections by address, SNI and `group_key`, but not by CA: two pools that trust different
/// CAs must not share connections, hence the key.
fn peer(pool: &PoolSettings, address: SocketAddr) -> HttpPeer {
    let sni = pool.tls.as_ref().map(|tls| tls.sni.clone()).unwrap_or_default();
    let mut peer = HttpPeer::new(address, pool.tls.is_some(), sni);
    peer.group_key = group_key(&pool.name);
    peer.options.connection_timeout = Some(pool.timeouts.connect);
    peer.options.total_connection_timeout = Some(pool.timeouts.connect);
    peer.options.read_timeout = Some(pool.timeouts.response);
    peer.options.write_timeout = Some(pool.timeouts.response);
    peer.options.idle_timeout = Some(pool.timeouts.idle);
    if let Some(tls) = &pool.tls {
        peer.options.verify_cert = tls.verify;
        peer.options.verify_hostname = tls.verify;
        peer.options.ca = trusted(tls);
    }
    peer
}

fn group_key(pool: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    pool.hash(&mut hasher);
    hasher.finish()
}

fn trusted(tls: &UpstreamTls) -> Option<Arc<CaType>> {
    let certificates = tls.ca.iter().map(|der| WrappedX509::new(der.clone(), parse_x509));
    (!tls.ca.is_empty()).then(|| certificates.collect())
}

// === impl UpstreamError ===

impl UpstreamError {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 5] = [Self::Connect, Self::Tls, Self::Timeout, Self::Reset, Self::Protocol];

    /// The `reason` label and the word in the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Protocol => "protocol",
        }
    }
}

// === impl Attempt ===

impl Attempt {
    /// Begins to send a request to `backend`.
    pub fn new(backend: Arc<Backend>, now: Instant) -> Self {
        backend.in_flight.enter();
        Self { backend, reused: None, started: now, first_byte: None }
    }

    /// A connection is there.
    pub fn connected(&mut self, reused: bool) {
        self.reused = Some(reused);
        if reused {
            self.backend.connections_reused.increment();
        } else {
            self.backend.connections_new.increment();
        }
    }

    /// The head of the final answer is there.
    pub fn answered(&mut self, status: u16, now: Instant) {
        let elapsed = now.saturating_duration_since(self.started);
        self.first_byte = Some(elapsed);
        self.backend.answers.increment(status);
        self.backend.time_to_first_byte.observe(elapsed);
    }

    /// From the beginning of the attempt to the head of the answer, if that is there.
    pub fn time_to_first_byte(&self) -> Option<Duration> {
        self.first_byte
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.backend.in_flight.leave();
    }
}
