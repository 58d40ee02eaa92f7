//! What the proxy knows of one backend: how to connect to it, what it is doing, and what it did so far.
//!
//! A [`Backend`] is what the configuration says, and never changes. Its [`History`] is what happens to the address: it stays
//! when the configuration changes, and requests of before and after the change count in the same one.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::HttpPeer;
use pingora::utils::tls::{WrappedX509, parse_x509};

use super::outlier::{OutlierRecord, nanoseconds};
use super::reasons::{AttemptFailure, SkipReason, UpstreamError};
use super::settings::{Admin, BackendSettings, PoolSettings, UpstreamTls};
use super::slow_backends;
use super::slow_start::Comeback;
use crate::policy::{Load, PolicyConfig};
use crate::stats::{Codes, Counter, Histogram};

/// One backend of one pool.
#[derive(Debug)]
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    /// The address as metrics and logs write it.
    pub label: Arc<str>,
    /// Whether it is used only when no other is available.
    pub backup: bool,
    /// The most requests that it is sent at a time; the largest number: no limit.
    pub max_requests: u64,
    /// What it is working on, and how quick it is. The policy looks at the same.
    pub load: Arc<Load>,
    /// What happened to it so far.
    pub history: Arc<History>,
    /// How Pingora knows it.
    pub(super) identity: pingora::lb::Backend,
    /// What the settings say of it; in effect when its pool [`enters`](super::Pool::enter).
    pub(super) admin: Admin,
    peer: HttpPeer,
    /// Whether the settings have a name for TLS.
    is_named: bool,
}

/// What happened to a backend, whatever the configuration says of it.
#[derive(Debug)]
pub struct History {
    /// Its answers by status.
    pub answers: Codes,
    /// From the choice of it for a request to the head of its answer.
    pub time_to_first_byte: Histogram,
    /// Requests that went over a connection made for them.
    pub connections_new: Counter,
    /// Requests that went over a connection kept alive.
    pub connections_reused: Counter,
    /// Requests that were sent to it, or were to be sent.
    pub attempts: Counter,
    /// Requests that it failed, as they are judged for its ejection: an error, or an answer of 502, 503 or 504.
    pub failures: Counter,
    /// The latest of these failures: a status, or 1 more than an [`UpstreamError`]; 0: there was none.
    latest_failure: AtomicU16,
    /// Its failures and ejections.
    pub(super) record: OutlierRecord,
    /// When it came back.
    pub(super) comeback: Comeback,
    /// Its times in the current window.
    pub(super) times: slow_backends::Samples,
    /// An [`Admin`]. Here, because it holds at once, also for requests that began before it was decided.
    admin: AtomicU8,
    /// When it joined the pool.
    joined: Instant,
    /// When `admin` became what it is, in nanoseconds after `joined`.
    admin_since: AtomicU64,
    passed_over: [Counter; SkipReason::ALL.len()],
    /// Failures, by [`UpstreamError`].
    errors: [Counter; UpstreamError::ALL.len()],
}

/// The histories of the backends of one pool, by address. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Histories(Arc<Mutex<HashMap<SocketAddr, Weak<History>>>>);

/// What a backend is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// Requests are sent to it.
    Up,
    /// Its health checks fail.
    Down,
    /// An operator lets it finish.
    Draining,
    /// It failed requests, and is left out for a while.
    Ejected,
    /// An operator took it out.
    Disabled,
}

// === impl Backend ===

impl Backend {
    pub(super) fn new(
        pool: &PoolSettings,
        backend: &BackendSettings,
        policy: &PolicyConfig,
        histories: &Histories,
        now: Instant,
    ) -> Self {
        let identity = identity(backend);
        Self {
            address: backend.address,
            label: backend.address.to_string().into(),
            backup: backend.backup,
            max_requests: backend.max_requests.map_or(u64::MAX, |max| max.get().into()),
            load: policy.load(&identity.addr),
            history: histories.of(backend.address, now),
            identity,
            admin: backend.admin,
            peer: peer(pool, backend.address),
            is_named: pool.tls.as_ref().is_some_and(|tls| tls.sni.is_some()),
        }
    }

    /// Its configured share relative to the others.
    pub fn weight(&self) -> usize {
        self.identity.weight
    }

    /// What an operator decided about it.
    pub fn admin(&self) -> Admin {
        self.history.admin()
    }

    /// What it is at the moment, given that its health checks say whether it is ready.
    pub(super) fn state(&self, ready: bool, now: Instant) -> BackendState {
        match self.admin() {
            Admin::Disabled => BackendState::Disabled,
            Admin::Draining => BackendState::Draining,
            Admin::InService if !ready => BackendState::Down,
            Admin::InService if self.history.record.is_ejected(now) => BackendState::Ejected,
            Admin::InService => BackendState::Up,
        }
    }

    /// How often it was ejected.
    pub fn ejections(&self) -> u64 {
        self.history.record.ejections()
    }

    /// When its ejection ends; none: it is not ejected.
    pub fn ejected_until(&self, now: Instant) -> Option<Instant> {
        self.history.record.ejected_until(now)
    }

    /// Since when it is ejected; none: it is not.
    pub fn ejected_since(&self, now: Instant) -> Option<Instant> {
        self.history.record.ejected_since(now)
    }

    /// What its latest ejection was for, in words; without one it says nothing.
    pub fn ejected_for(&self) -> String {
        self.history.record.blame().words(&self.history.latest_failure())
    }

    /// Since when it is what it is, whatever its checks say: the latest of when it joined, when an operator decided about it, and
    /// the beginning or the end of its latest ejection.
    pub fn since(&self, now: Instant) -> Instant {
        let ejection = self.ejected_since(now).or_else(|| self.history.record.returned(now));
        let decided = self.history.admin_since();
        ejection.map_or(decided, |ejection| ejection.max(decided))
    }

    /// Failures since its latest success, or since its latest ejection.
    pub fn consecutive_failures(&self) -> u32 {
        self.history.record.consecutive_failures()
    }

    pub(super) fn pass_over(&self, reason: SkipReason) {
        self.history.passed_over[reason as usize].increment();
    }

    /// How often it was the policy's choice and was not taken, by reason.
    pub fn passed_over(&self) -> impl Iterator<Item = (SkipReason, u64)> {
        SkipReason::ALL.into_iter().zip(self.history.passed_over.iter().map(Counter::get))
    }

    /// How to connect to it.
    pub fn peer(&self) -> &HttpPeer {
        &self.peer
    }

    /// How to connect to any backend of its pool, when its address is put in. The SNI is empty when each backend is asked
    /// for a certificate for its own address.
    pub fn peer_of_pool(&self) -> HttpPeer {
        let mut peer = self.peer.clone();
        if !self.is_named {
            peer.sni.clear();
        }
        peer
    }

    /// Counts a failure.
    pub fn failed(&self, error: UpstreamError) {
        self.history.errors[error as usize].increment();
    }

    /// Failures so far, by kind.
    pub fn errors(&self) -> impl Iterator<Item = (UpstreamError, u64)> {
        UpstreamError::ALL.into_iter().zip(self.history.errors.iter().map(Counter::get))
    }
}

// === impl History ===

impl History {
    fn new(now: Instant) -> Self {
        Self {
            answers: Codes::default(),
            time_to_first_byte: Histogram::default(),
            connections_new: Counter::default(),
            connections_reused: Counter::default(),
            attempts: Counter::default(),
            failures: Counter::default(),
            latest_failure: AtomicU16::new(0),
            record: OutlierRecord::new(now),
            comeback: Comeback::new(now),
            times: slow_backends::Samples::default(),
            admin: AtomicU8::new(Admin::InService as u8),
            joined: now,
            admin_since: AtomicU64::new(0),
            passed_over: Default::default(),
            errors: Default::default(),
        }
    }

    fn admin(&self) -> Admin {
        match self.admin.load(Ordering::Relaxed) {
            draining if draining == Admin::Draining as u8 => Admin::Draining,
            disabled if disabled == Admin::Disabled as u8 => Admin::Disabled,
            _ => Admin::InService,
        }
    }

    pub(super) fn set_admin(&self, admin: Admin, now: Instant) {
        if self.admin.swap(admin as u8, Ordering::Relaxed) != admin as u8 {
            self.admin_since.store(nanoseconds(self.joined, now), Ordering::Relaxed);
        }
    }

    /// When it joined, if nothing was decided about it since.
    fn admin_since(&self) -> Instant {
        let since = Duration::from_nanos(self.admin_since.load(Ordering::Relaxed));
        self.joined.checked_add(since).unwrap_or(self.joined)
    }

    pub(super) fn note_failure(&self, failure: AttemptFailure) {
        self.failures.increment();
        let code = match failure {
            AttemptFailure::Error(error) => 1 + error as u16,
            AttemptFailure::Status(status) => status,
        };
        self.latest_failure.store(code, Ordering::Relaxed);
    }

    /// The word of the access log for it.
    fn latest_failure(&self) -> String {
        let code = self.latest_failure.load(Ordering::Relaxed);
        let error = usize::from(code).checked_sub(1).and_then(|index| UpstreamError::ALL.get(index));
        error.map_or_else(|| code.to_string(), |error| error.as_str().to_owned())
    }
}

// === impl Histories ===

impl Histories {
    /// That of the backend at `address`, made when nobody holds it.
    fn of(&self, address: SocketAddr, now: Instant) -> Arc<History> {
        let mut histories = self.0.lock();
        if let Some(history) = histories.get(&address).and_then(Weak::upgrade) {
            return history;
        }
        // Now and then, so that many backends cost no more than twice as much.
        if histories.len().is_power_of_two() {
            histories.retain(|_, history| history.strong_count() > 0);
        }
        let history = Arc::new(History::new(now));
        histories.insert(address, Arc::downgrade(&history));
        history
    }

    /// That of the backend at `address`, if anybody holds it.
    pub(super) fn find(&self, address: SocketAddr) -> Option<Arc<History>> {
        self.0.lock().get(&address).and_then(Weak::upgrade)
    }
}

/// How Pingora knows a backend.
pub(super) fn identity(backend: &BackendSettings) -> pingora::lb::Backend {
    pingora::lb::Backend {
        addr: PingoraAddr::Inet(backend.address),
        weight: backend.weight.get(),
        ext: http::Extensions::new(),
    }
}

/// How the backends of `pool` are connected to, with the address of one of them.
///
/// Pingora pools idle connections by address, SNI and `group_key`, but not by CA: two pools that trust different
/// CAs must not share connections, nor one before and after it trusts another, hence the key.
///
/// Without a name in the settings, the address takes its place: rustls sends no address as a name, and verifies that the
/// certificate is for it. Pingora would verify nothing with an empty name, and cannot even connect.
fn peer(pool: &PoolSettings, address: SocketAddr) -> HttpPeer {
    let own = || address.ip().to_canonical().to_string();
    let sni = pool.tls.as_ref().map(|tls| tls.sni.clone().unwrap_or_else(own)).unwrap_or_default();
    let mut peer = HttpPeer::new(address, pool.tls.is_some(), sni);
    peer.group_key = group_key(pool);
    let connect =
        pool.retries.per_try.map_or(pool.timeouts.connect, |per_try| per_try.min(pool.timeouts.connect));
    peer.options.connection_timeout = Some(connect);
    peer.options.total_connection_timeout = Some(connect);
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

fn group_key(pool: &PoolSettings) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&pool.name, pool.tls.as_ref().map(|tls| (tls.verify, &tls.ca))).hash(&mut hasher);
    hasher.finish()
}

/// A certificate whose key was thrown away. Pingora makes its verifier of the trusted authorities also when nothing is
/// verified, and cannot make one of none: on a machine without authorities, as in a container made from scratch, no
/// connection would succeed.
const ANY_AUTHORITY: &[u8] = include_bytes!("any_authority.der");

fn trusted(tls: &UpstreamTls) -> Option<Arc<CaType>> {
    if !tls.verify {
        return Some(Arc::new([WrappedX509::new(ANY_AUTHORITY.to_vec(), parse_x509)]));
    }
    let certificates = tls.ca.iter().map(|der| WrappedX509::new(der.clone(), parse_x509));
    (!tls.ca.is_empty()).then(|| certificates.collect())
}

// === impl BackendState ===

impl BackendState {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Up, Self::Down, Self::Draining, Self::Ejected, Self::Disabled];

    /// The word for it in status and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Draining => "draining",
            Self::Ejected => "ejected",
            Self::Disabled => "disabled",
        }
    }
}
