//! One backend: its connection settings, its load, and its history.
//!
//! A [`Backend`] holds what the configuration says and never changes. Its [`History`] belongs to the address: it stays
//! when the configuration changes, and requests from before and after the change use the same history.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls_pki_types::ServerName;

use super::address::UpstreamAddress;
use super::by_address::ByAddress;
use super::idle::IdleConnections;
use super::outlier::{OutlierRecord, nanoseconds};
use super::reasons::{AttemptFailure, Poison, SkipReason, UpstreamError};
use super::settings::{Admin, BackendSettings, PoolSettings};
use super::slow_backends;
use super::slow_start::Comeback;
use super::upstreams::Upstreams;
use crate::policy::{Load, PolicyConfig};
use crate::stats::{Codes, Counter, Histogram};

/// One backend of one pool.
#[derive(Debug)]
pub struct Backend {
    /// The address of the backend.
    pub address: UpstreamAddress,
    /// The address in the notation of metrics and logs.
    pub label: Arc<str>,
    /// Whether the backend is used only if no primary is available.
    pub backup: bool,
    /// The maximum of requests in flight; `u64::MAX` means no limit.
    pub max_requests: u64,
    /// The requests in flight and the speed of the backend, shared with the policy.
    pub load: Arc<Load>,
    /// The history of the address.
    pub history: Arc<History>,
    /// The backend as a Pingora type.
    pub(super) identity: pingora::lb::Backend,
    /// The state that the settings give the backend, in effect when its pool [`enters`](super::Pool::enter).
    pub(super) admin: Admin,
    /// The index in [`Pool::backends`](super::Pool::backends) of its pool.
    pub(super) index: usize,
    /// Whether the health checks passed when the pool was last evaluated, which happens after each change.
    ready: AtomicBool,
    target: Target,
    idle: Arc<IdleConnections>,
}

/// How to connect to a backend, and how long to wait for it.
#[derive(Clone, Debug)]
pub struct Target {
    /// The address.
    pub address: UpstreamAddress,
    /// The settings of TLS, and the name that the certificate must have; `None` means plain text.
    pub tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// The longest time until there is a connection, with TLS if there is any.
    pub connect_timeout: Duration,
    /// The longest time from the end of the request to the head of the response.
    pub response_timeout: Duration,
    /// The longest pause in the body of the response; `None` means no limit.
    pub body_timeout: Option<Duration>,
    /// The longest time in which a tunnel or a stream of events is quiet; `None` means no limit.
    pub tunnel_timeout: Option<Duration>,
    /// The longest time for which a connection is idle.
    pub idle_timeout: Duration,
    /// The longest time from the creation of a connection to its last use.
    pub max_age: Duration,
}

/// The history of a backend, independent of its configuration.
#[derive(Debug)]
pub struct History {
    /// Responses by status.
    pub responses: Codes,
    /// The time from selecting the backend to the head of its response.
    pub time_to_first_byte: Histogram,
    /// Requests over a new connection.
    pub connections_new: Counter,
    /// Requests over a connection that was kept alive.
    pub connections_reused: Counter,
    /// Responses with a status from 100 to 199.
    pub informational: Counter,
    /// Attempts at the backend, including those without a connection.
    pub attempts: Counter,
    /// Failures that count for ejection: an error, or a response of 502, 503 or 504.
    pub failures: Counter,
    /// The latest of these failures: a status, or 1 more than an [`UpstreamError`]; 0: there was none.
    latest_failure: AtomicU16,
    /// The record of failures and ejections.
    pub(super) record: OutlierRecord,
    /// The time of the last return.
    pub(super) comeback: Comeback,
    /// The response times in the current window.
    pub(super) times: slow_backends::Samples,
    /// An [`Admin`] value. It is here because it takes effect at once, also for requests that began before.
    admin: AtomicU8,
    /// The time when the backend joined the pool.
    joined: Instant,
    /// The time of the last change of `admin`, in nanoseconds after `joined`.
    admin_since: AtomicU64,
    passed_over: [Counter; SkipReason::ALL.len()],
    /// Failures, by [`UpstreamError`].
    errors: [Counter; UpstreamError::ALL.len()],
    /// Connections that were not used again, by [`Poison`].
    poisoned: [Counter; Poison::ALL.len()],
    /// Whether a connection is being made in the background.
    has_background: AtomicBool,
}

/// The one connection attempt in the background that a backend can have, until this is dropped.
#[derive(Debug)]
pub(super) struct Background(Arc<History>);

/// What the backends of one pool keep across reloads. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// The histories of the backends.
    pub(super) histories: Arc<ByAddress<History>>,
    /// What their connections share.
    pub(super) upstreams: Arc<Upstreams>,
}

/// The current state of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// The backend gets requests.
    Up,
    /// The health checks fail.
    Down,
    /// An operator drains the backend.
    Draining,
    /// The backend failed requests and is ejected.
    Ejected,
    /// An operator disabled the backend.
    Disabled,
}

// === impl Backend ===

impl Backend {
    pub(super) fn new(
        pool: &PoolSettings,
        backend: &BackendSettings,
        index: usize,
        policy: &PolicyConfig,
        kept: &Kept,
        now: Instant,
    ) -> Self {
        let identity = identity(backend);
        Self {
            address: backend.address.clone(),
            label: backend.address.to_string().into(),
            backup: backend.backup,
            max_requests: backend.max_requests.map_or(u64::MAX, |max| max.get().into()),
            load: policy.load(&identity.addr),
            history: kept.histories.of(&backend.address, || History::new(now)),
            identity,
            admin: backend.admin,
            index,
            ready: AtomicBool::new(true),
            target: Target::of(pool, &backend.address, &kept.upstreams),
            idle: kept.upstreams.idle(&backend.address),
        }
    }

    /// Returns the configured share relative to the others.
    pub fn weight(&self) -> usize {
        self.identity.weight
    }

    /// Returns the state that an operator set.
    pub fn admin(&self) -> Admin {
        self.history.admin()
    }

    /// Returns whether the health checks passed when the pool was last evaluated.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    pub(super) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Returns the current state. `ready` is the result of the health checks.
    pub(super) fn state(&self, ready: bool, now: Instant) -> BackendState {
        match self.admin() {
            Admin::Disabled => BackendState::Disabled,
            Admin::Draining => BackendState::Draining,
            Admin::InService if !ready => BackendState::Down,
            Admin::InService if self.history.record.is_ejected(now) => BackendState::Ejected,
            Admin::InService => BackendState::Up,
        }
    }

    /// Returns the number of ejections.
    pub fn ejections(&self) -> u64 {
        self.history.record.ejections()
    }

    /// Returns the end of the current ejection; `None` if the backend is not ejected.
    pub fn ejected_until(&self, now: Instant) -> Option<Instant> {
        self.history.record.ejected_until(now)
    }

    /// Returns the beginning of the current ejection; `None` if the backend is not ejected.
    pub fn ejected_since(&self, now: Instant) -> Option<Instant> {
        self.history.record.ejected_since(now)
    }

    /// Returns the cause of the latest ejection in words; they mean nothing if there was none.
    pub fn ejected_for(&self) -> String {
        self.history.record.blame().words(&self.history.latest_failure())
    }

    /// Returns the time since which the state holds, apart from health checks: the latest of the joining, the last
    /// decision of an operator, and the beginning or the end of the latest ejection.
    pub fn since(&self, now: Instant) -> Instant {
        let ejection = self.ejected_since(now).or_else(|| self.history.record.returned(now));
        let decided = self.history.admin_since();
        ejection.map_or(decided, |ejection| ejection.max(decided))
    }

    /// Returns the failures since the latest success or ejection.
    pub fn consecutive_failures(&self) -> u32 {
        self.history.record.consecutive_failures()
    }

    #[expect(clippy::indexing_slicing, reason = "the array has a counter for each variant")]
    pub(super) fn pass_over(&self, reason: SkipReason) {
        self.history.passed_over[reason as usize].increment();
    }

    /// Returns how often the policy offered the backend and it was skipped, by reason.
    pub fn passed_over(&self) -> impl Iterator<Item = (SkipReason, u64)> {
        SkipReason::ALL.into_iter().zip(self.history.passed_over.iter().map(Counter::get))
    }

    /// Returns how to connect to the backend.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Returns the idle connections to the backend.
    pub fn idle(&self) -> &IdleConnections {
        &self.idle
    }

    /// Counts a failure.
    #[expect(clippy::indexing_slicing, reason = "the array has a counter for each variant")]
    pub fn failed(&self, error: UpstreamError) {
        self.history.errors[error as usize].increment();
    }

    /// Returns the failures so far, by kind.
    pub fn errors(&self) -> impl Iterator<Item = (UpstreamError, u64)> {
        UpstreamError::ALL.into_iter().zip(self.history.errors.iter().map(Counter::get))
    }
}

// === impl Target ===

impl Target {
    fn of(pool: &PoolSettings, address: &UpstreamAddress, upstreams: &Upstreams) -> Self {
        let timeouts = &pool.timeouts;
        let connect = timeouts.connect;
        Self {
            address: address.clone(),
            tls: upstreams.tls_to(address),
            connect_timeout: pool.retries.per_try.map_or(connect, |per_try| per_try.min(connect)),
            response_timeout: timeouts.response,
            body_timeout: timeouts.body,
            tunnel_timeout: timeouts.tunnel,
            idle_timeout: timeouts.idle,
            max_age: timeouts.max_age,
        }
    }
}

// === impl History ===

impl History {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            responses: Codes::default(),
            time_to_first_byte: Histogram::default(),
            connections_new: Counter::default(),
            connections_reused: Counter::default(),
            informational: Counter::default(),
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
            poisoned: Default::default(),
            has_background: AtomicBool::new(false),
        }
    }

    /// Begins a connection attempt in the background; `None` if there is one already.
    pub(super) fn background(self: &Arc<Self>) -> Option<Background> {
        let is_taken = self.has_background.swap(true, Ordering::Relaxed);
        (!is_taken).then(|| Background(self.clone()))
    }

    /// Counts a connection that is not used again.
    #[expect(clippy::indexing_slicing, reason = "the array has a counter for each variant")]
    pub(crate) fn poison(&self, reason: Poison) {
        self.poisoned[reason as usize].increment();
    }

    /// Returns the connections that were not used again, by reason.
    pub fn poisoned(&self) -> impl Iterator<Item = (Poison, u64)> {
        Poison::ALL.into_iter().zip(self.poisoned.iter().map(Counter::get))
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

    /// Returns the time of the last change of `admin`, or the time of joining if there was none.
    fn admin_since(&self) -> Instant {
        let since = Duration::from_nanos(self.admin_since.load(Ordering::Relaxed));
        self.joined.checked_add(since).unwrap_or(self.joined)
    }

    pub(super) fn note_failure(&self, failure: AttemptFailure) {
        let code = match failure {
            AttemptFailure::Error(error) => 1 + error as u16,
            AttemptFailure::Status(status) => status,
            AttemptFailure::Overtaken => return,
        };
        self.failures.increment();
        self.latest_failure.store(code, Ordering::Relaxed);
    }

    /// Returns the word of the access log for the latest failure.
    fn latest_failure(&self) -> String {
        let code = self.latest_failure.load(Ordering::Relaxed);
        let error = usize::from(code).checked_sub(1).and_then(|index| UpstreamError::ALL.get(index));
        error.map_or_else(|| code.to_string(), |error| error.as_str().to_owned())
    }
}

/// Returns the backend as a Pingora type.
pub(super) fn identity(backend: &BackendSettings) -> pingora::lb::Backend {
    pingora::lb::Backend {
        addr: backend.address.to_pingora(),
        weight: backend.weight.get(),
        ext: http::Extensions::new(),
    }
}

// === impl Background ===

impl Drop for Background {
    fn drop(&mut self) {
        self.0.has_background.store(false, Ordering::Relaxed);
    }
}

// === impl BackendState ===

impl BackendState {
    /// All states.
    pub const ALL: [Self; 5] = [Self::Up, Self::Down, Self::Draining, Self::Ejected, Self::Disabled];

    /// Returns the word for the state in status and metrics.
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
