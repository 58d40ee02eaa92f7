//! A pool: the backends that serve the same content, how one of them is selected, and what happens when it fails.
//!
//! # Use
//!
//! A [`Pool`] is made from [`PoolSettings`]. Each request has a [`Dispatch`]. The caller reports what happens to the
//! request, and the dispatch returns whether the request is retried. It neither connects nor waits: the caller does
//! both.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Instant;
//!
//! use lb_service::pool::{BackendSettings, Dispatch, Now, Pool, PoolSettings, Replayability, UpstreamError};
//! use pingora::lb::HealthRegistry;
//!
//! let backends = ["10.0.0.1:80", "10.0.0.2:80"].map(|address| BackendSettings::new(address.parse().unwrap()));
//! let settings = PoolSettings::new("web", backends.into());
//! // No health check here. Health checks run on `pool.balancer`.
//! let pool = Arc::new(Pool::new(&settings, Arc::new(HealthRegistry::new()), None));
//! let at = || Now { time: Instant::now(), draw: 0.5 }; // a random number, in a real program
//!
//! // In `upstream_peer`; the address to connect to is `attempt.backend.address.to_pingora()`.
//! let mut dispatch = Dispatch::default(); // lives in the context of the request
//! dispatch.place(&pool, b"", at()).expect("a backend is available");
//! # let first = dispatch.attempt.as_ref().unwrap().backend.address.clone();
//!
//! // In `error_while_proxy`, for a GET of which no byte of a response was passed on:
//! let (replayable, response_begun, stale, nothing_sent) = (true, false, false, false);
//! let get = Replayability { idempotent: true, replayable, response_begun, stale, nothing_sent };
//! let retry = dispatch.broke(&pool, UpstreamError::Reset, get, at());
//! assert!(retry, "there is another backend");
//!
//! // In `upstream_peer`: wait for the pause, then select another backend.
//! let pause = dispatch.end_attempt().expect("the request is retried");
//! # assert!(pause.as_millis() <= 25);
//! dispatch.place(&pool, b"", at()).expect("another backend is available");
//! # assert_ne!(dispatch.attempt.as_ref().unwrap().backend.address, first);
//!
//! // In `upstream_response_filter`, with the status and `Retry-After`:
//! let retry = dispatch.responded(&pool, 200, None, get, at());
//! assert!(!retry, "the client gets this response");
//! // When the body is complete. This is a success and resets the failures of the backend. On an error: `broke`.
//! dispatch.attempt.as_mut().expect("an attempt is in flight").finished();
//! ```
//!
//! Further parts of a request:
//!
//! - **A key**, if the policy hashes: [`Pool::hash_key`] returns the second argument of [`Dispatch::place`].
//! - **A session**: [`Pool::session`] reads the cookie into [`Dispatch::session`], [`Pool::set_cookie`] writes it.
//! - **A queue**: [`Dispatch::admit`] instead of [`Dispatch::place`] returns whether the request is placed, waits or is
//!   rejected.
//! - **Progress**: [`Attempt::connected`] counts connections; the caller enforces [`Pool::per_try`].
//!
//! The proxy of this crate does all of this.
//!
//! # Structure
//!
//! Pingora's [`LoadBalancer`] keeps the members and their readiness. The proxy, the health checks and the metrics share
//! it as one `Arc`. Our [`Policy`] decides the order. It names a backend by its index, so the cost of a pick does not
//! depend on the number of backends. The state that the proxy itself keeps about a backend is in [`Backend`].
//!
//! ```text
//! Dispatch                       one request, from its first attempt to its response    dispatch.rs
//!
//! Dispatch::admit                it is placed, waits, or is rejected                    admission.rs
//! ├── Queue                      requests that wait until a backend has room            queue.rs
//! Pool::place                    selects a backend for a request                        pick.rs
//! ├── Sticky                     the backend that a cookie names, if it can be used     sticky.rs, session_keys.rs
//! ├── Policy                     the others, best first                                 ../policy/
//! │   └── skip_reason            why a candidate is skipped                             pick.rs
//! │       ├── Availability       backups, panic                                         availability.rs
//! │       ├── OutlierRecord      ejections                                              outlier.rs
//! │       └── Comeback           slow start                                             slow_start.rs
//! └── Attempt                    one request at one backend, until it is dropped        attempt.rs
//!     └── Ejector, SlowBackends  judge the backend when the attempt ends                outlier.rs, slow_backends.rs
//!
//! Pool::retry                    whether a failed request is retried                    retry.rs
//! └── retry::decide, Budget
//! Dispatch::race                 whether a second backend is tried while one connects   race.rs
//! Pool::explain                  the backend that a request would go to, and why        explain.rs
//! ```

mod address;
mod admission;
mod attempt;
mod availability;
mod backend;
mod by_address;
mod client_certificate;
mod crypto;
mod dispatch;
mod explain;
mod hash_key;
mod head;
mod idle;
mod outlier;
mod pick;
mod queue;
mod race;
mod reasons;
mod retry;
mod session_keys;
mod settings;
mod slow_backends;
mod slow_start;
mod sticky;
mod tls;
mod upstreams;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::HeaderValue;
use parking_lot::{Mutex, MutexGuard};
use pingora::lb::health_check::HealthCheck;
use pingora::lb::selection::BackendSelection;
use pingora::lb::{Backends, HealthRegistry, LoadBalancer, discovery};

pub use crate::clock::Now;
pub use address::{AddressError, UpstreamAddress};
pub use admission::{Admission, AdmissionError};
pub use attempt::Attempt;
pub use availability::{Availability, Level};
pub use backend::{Backend, BackendState, History, Target};
pub use client_certificate::{ClientCertificate, ClientCertificateError};
pub use dispatch::{Dispatch, Replayability};
pub use explain::{Explanation, Judged, Score};
pub use hash_key::Key;
pub use head::{Fields, Head};
pub use idle::{IdleBudget, IdleConnections, Parked, RuntimeId};
pub use pick::{Passed, PickError, PickRequest, Tried};
pub use queue::{Queue, QueueFull, Turn, Waiter};
pub use race::RaceResult;
pub(crate) use race::{Contestant, Loser};
pub use reasons::{Poison, SkipReason, UpstreamError};
pub(crate) use retry::Budget;
pub use session_keys::{SessionKeys, SessionKeysError};
pub(crate) use settings::PANIC_THRESHOLD;
pub use settings::{
    Admin, BackendSettings, HashOn, OutlierSettings, PoolId, PoolSettings, RetryCause, RetryOn,
    RetrySettings, SlowBackendSettings, StickySettings, Timeouts, UpstreamTls, Weight,
};

use crate::clock::Clock;
use crate::policy::{Algorithm, Candidates, Policy, PolicyConfig};
use crate::stats::{Counter, Gauge};
use availability::Member;
use backend::Kept;
use by_address::ByAddress;
use outlier::Ejector;
use slow_backends::SlowBackends;
pub use sticky::Session;
use sticky::Sticky;
pub(crate) use upstreams::Upstreams;

/// A pool in use, shared by all requests as an `Arc`.
///
/// A pool never changes. When its settings do, a [`successor`](Self::successor) replaces it. A request that began with
/// the old pool also ends with it. Both pools use the same counters.
pub struct Pool {
    /// The name in the configuration, metrics and logs.
    pub name: Arc<str>,
    /// Membership and readiness, shared with the health checks and the metrics.
    pub balancer: Arc<LoadBalancer<Policy>>,
    /// The `Host` header sent to the backends; `None` means that the client's own is kept.
    pub host: Option<HeaderValue>,
    /// The protocols that clients can switch to; `None` means any that can be passed on.
    upgrades: Option<Vec<Arc<str>>>,
    /// The maximum time that a request waits in the [`queue`](Self::queue). The caller enforces it.
    pub queue_timeout: Duration,
    queue_places: u32,
    settings: Rules,
    sticky: Option<Sticky>,
    cache: AvailabilityCache,
    /// The backends, sorted by address, so that a pick finds its counters without hashing.
    backends: Box<[Arc<Backend>]>,
    /// Selects the next backend. Pingora's own selector stays unused: a pick through it would allocate, and hash and
    /// search the address of each candidate.
    selector: Arc<Policy>,
    /// For each backend of the selector, its index in `backends`.
    places: Box<[usize]>,
    shared: SharedState,
}

/// An observer of the events of pools. The caller of [`observe`](Self::observe) is the code that causes the event: a
/// request, a health check, or a command of an operator. The observer must not delay it.
///
/// Only the end of an ejection has no cause of its own: the next look at the pool ([`Pool::availability`]) reports it.
/// That look is due at [`Pool::next_return`].
pub trait PoolObserver: Send + Sync {
    /// Receives an event of the pool with this name.
    fn observe(&self, pool: &str, event: &PoolEvent<'_>);
}

/// An event in a pool that no operator requested.
#[derive(Clone, Copy, Debug)]
pub enum PoolEvent<'a> {
    /// A backend is ejected.
    Ejected {
        /// The address of the backend.
        backend: &'a str,
        /// The duration of the ejection.
        time: Duration,
        /// The cause, in words.
        why: &'a str,
    },
    /// The ejection of a backend is over.
    Returned {
        /// The address of the backend.
        backend: &'a str,
        /// Whether the backend passes its health checks, so that it gets requests again.
        is_ready: bool,
    },
    /// The pool enters panic mode, in which all backends are used, or leaves it.
    Panic(bool),
    /// The pool has no ready backend, or has one again.
    Unready(bool),
}

/// The state that a pool passes on to its successor. All clones share it.
#[derive(Clone)]
struct SharedState {
    counters: Arc<Counters>,
    queue: Arc<Queue>,
    budget: Arc<Budget>,
    ejector: Arc<Ejector>,
    slow_backends: Option<Arc<SlowBackends>>,
    changes: Arc<Changes>,
    degradation: Arc<Mutex<Degradation>>,
    /// The pool that entered last, or the first one if it is observed. Pools in between can be dropped before their
    /// predecessors.
    newest: Arc<Mutex<Weak<Pool>>>,
    kept: Kept,
    /// The position of the policy, and the load of each backend.
    policy: PolicyConfig,
    /// The results of the health checks.
    registry: Arc<HealthRegistry>,
    clock: Clock,
    observer: Option<Arc<dyn PoolObserver>>,
}

/// The counters of a pool. They continue when the settings change.
#[derive(Debug, Default)]
pub struct Counters {
    /// Times that the pool entered panic mode.
    pub panics: Counter,
    /// Attempts after the first. A replay over a new connection does not count.
    pub retries: Counter,
    /// Retries that were not made because the budget was used up.
    pub retries_denied: Counter,
    /// Requests that lack the value that is hashed.
    pub keys_missing: Counter,
    /// Connection races, by [`RaceResult`].
    races: [Counter; RaceResult::ALL.len()],
    /// Attempts in flight at the backends of the pool.
    in_flight: Gauge,
    /// Requests in progress, including those that pause between two attempts.
    requests: Gauge,
}

/// A counter of the changes that affect which backends can be selected: a change of health, an ejection, a decision of
/// an operator.
#[derive(Debug)]
struct Changes(AtomicU64);

/// The beginnings of the degraded states of a pool, as of the last look.
#[derive(Debug, Default)]
struct Degradation {
    /// The beginning of panic mode; `None` outside it.
    panic: Option<Instant>,
    /// The time since which the backups are used; `None` if they are not.
    backups: Option<Instant>,
    /// The time since which no backend is ready; `None` if one is.
    unready: Option<Instant>,
}

/// The settings that decide about requests.
#[derive(Debug)]
struct Rules {
    hash_on: Option<HashOn>,
    bounded_load: Option<u32>,
    panic_threshold: u8,
    slow_start: Option<Duration>,
    outlier_detection: OutlierSettings,
    retries: RetrySettings,
}

/// The result of the last look at the backends, which is valid until something changes.
#[derive(Debug)]
struct AvailabilityCache {
    began: Instant,
    /// The packed [`Availability`].
    availability: AtomicU64,
    /// The value of [`Changes`] that the result includes.
    seen: AtomicU64,
    /// The lock of the look, which happens once after each change.
    assessing: Mutex<()>,
    /// Whether a successor has replaced this pool and reports its events.
    is_superseded: AtomicBool,
    /// The end of the next ejection, in nanoseconds after `began`; `u64::MAX` if no backend is ejected.
    next_return: AtomicU64,
}

// === impl Counters ===

impl Counters {
    /// Counts a connection race.
    #[expect(clippy::indexing_slicing, reason = "there is a counter for each result")]
    pub(crate) fn raced(&self, result: RaceResult) {
        self.races[result as usize].increment();
    }

    /// Returns the connection races, by result.
    pub fn races(&self) -> impl Iterator<Item = (RaceResult, u64)> {
        RaceResult::ALL.into_iter().zip(self.races.iter().map(Counter::get))
    }
}

// === impl Pool ===

impl Pool {
    /// Returns a pool whose readiness comes from `health_check`. Without one, every backend is always ready.
    ///
    /// The `registry` keeps the health and decides which backends share a state. It is keyed by address, so a change of
    /// weight keeps the health.
    pub fn new(
        settings: &PoolSettings,
        registry: Arc<HealthRegistry>,
        health_check: Option<Box<dyn HealthCheck + Send + Sync>>,
    ) -> Self {
        Self::with_policy(
            settings,
            registry,
            health_check,
            PolicyConfig::new(settings.policy),
            &Clock::system(),
        )
    }

    /// Returns a pool with the given policy and its clock. A simulation passes a manual clock.
    pub fn with_policy(
        settings: &PoolSettings,
        registry: Arc<HealthRegistry>,
        health_check: Option<Box<dyn HealthCheck + Send + Sync>>,
        policy: PolicyConfig,
        clock: &Clock,
    ) -> Self {
        let mut shared = SharedState {
            counters: Arc::default(),
            queue: Queue::new(settings.queue),
            budget: Budget::of(&settings.retries),
            ejector: Arc::default(),
            slow_backends: settings
                .outlier_detection
                .slow_backends
                .map(|slow_backends| Arc::new(SlowBackends::new(slow_backends, clock.now()))),
            changes: Arc::default(),
            degradation: Arc::default(),
            newest: Arc::default(),
            kept: Kept { histories: Arc::default(), upstreams: Upstreams::new(settings.tls.as_ref()) },
            policy: policy.with_clock(clock.clone()),
            registry: Arc::new(HealthRegistry::new()),
            clock: clock.clone(),
            observer: None,
        };
        shared.take_health(registry, health_check);
        let pool = Self::build(settings, shared);
        pool.set_admin(clock.now());
        pool.assess(clock.now());
        pool
    }

    /// Puts the pool to use with an observer of its events and of those of its successors. From now on a change of
    /// health is evaluated when it happens, and not with the next request.
    #[must_use]
    pub fn observed_by(mut self, observer: Arc<dyn PoolObserver>) -> Arc<Self> {
        self.shared.observer = Some(observer);
        let pool = Arc::new(self);
        *pool.shared.newest() = Arc::downgrade(&pool);
        pool
    }

    /// Returns a successor of this pool with new settings and the same name. Nothing changes for this pool or its
    /// requests before the successor [`enters`](Self::enter).
    ///
    /// The successor keeps the state of each address: health, ejections, load, estimates, counters, and the time of its
    /// return. It also keeps the requests in flight, the queue, and the position of the policy.
    pub fn successor(&self, settings: &PoolSettings) -> Self {
        Self::build(settings, self.shared.successor(settings, &self.settings))
    }

    /// Returns a successor that starts or stops using health checks. The old results do not count.
    pub fn successor_with_health(
        &self,
        settings: &PoolSettings,
        registry: Arc<HealthRegistry>,
        health_check: Option<Box<dyn HealthCheck + Send + Sync>>,
    ) -> Self {
        let mut shared = self.shared.successor(settings, &self.settings);
        shared.take_health(registry, health_check);
        Self::build(settings, shared)
    }

    /// Replaces `predecessor`, from which this pool was made: from now on this pool receives the requests. Backends
    /// that are new to the pool start slowly, and the decisions of operators are in effect for both pools.
    pub fn enter(self: &Arc<Self>, predecessor: &Self) {
        // First publish the pool, then mark the predecessor as superseded.
        *self.shared.newest() = Arc::downgrade(self);
        predecessor.cache.is_superseded.store(true, Ordering::Release);
        let is_new = |backend: &&Arc<Backend>| predecessor.backend(&backend.address).is_none();
        for backend in self.backends.iter().filter(is_new) {
            backend.history.comeback.came_back(self.shared.clock.now());
        }
        let now = self.shared.clock.now();
        self.set_admin(now);
        self.shared.queue.set_places(self.queue_places);
        self.shared.changes.note();
        self.availability(now);
        self.shared.queue.wake();
    }

    /// Returns whether clients can switch to this protocol.
    pub fn allows_upgrade(&self, protocol: &[u8]) -> bool {
        let is_named = |allowed: &Arc<str>| allowed.as_bytes().eq_ignore_ascii_case(protocol);
        self.upgrades.as_ref().is_none_or(|upgrades| upgrades.iter().any(is_named))
    }

    /// Returns the pool that has replaced this one; `None` means that this pool is the newest of its name.
    ///
    /// A request that has waited or is retried continues with the newest pool: a backend that has left the pool gets no
    /// more requests, and one that has joined can serve the waiting requests.
    pub fn newest(&self) -> Option<Arc<Self>> {
        if !self.cache.is_superseded.load(Ordering::Acquire) {
            return None;
        }
        self.shared.newest().upgrade()
    }

    fn build(settings: &PoolSettings, shared: SharedState) -> Self {
        let now = shared.clock.now();
        let mut sorted: Vec<_> = settings.backends.iter().collect();
        sorted.sort_by(|one, other| one.address.cmp(&other.address));
        let made = sorted.into_iter().enumerate().map(|(index, backend)| {
            Arc::new(Backend::new(settings, backend, index, &shared.policy, &shared.kept, now))
        });
        let backends: Box<[_]> = made.collect();
        let balancer = balancer(settings, &shared);
        let selector =
            Arc::new(Policy::build_with_config(&balancer.backends().get_backend(), &shared.policy));
        Self {
            name: settings.name.clone(),
            balancer: Arc::new(balancer),
            places: places(&selector, &backends),
            selector,
            host: settings.host.clone(),
            upgrades: settings.upgrades.clone(),
            queue_timeout: settings.timeouts.queue,
            queue_places: settings.queue,
            settings: Rules::new(settings),
            sticky: settings.sticky.as_ref().map(|sticky| {
                Sticky::new(sticky, &settings.name, backends.iter().map(|backend| &backend.address))
            }),
            cache: AvailabilityCache::new(now),
            backends,
            shared,
        }
    }

    fn set_admin(&self, now: Instant) {
        self.backends.iter().for_each(|backend| backend.history.set_admin(backend.admin, now));
    }

    /// Returns the backend with this address.
    pub fn backend(&self, address: &UpstreamAddress) -> Option<&Arc<Backend>> {
        self.index(address).and_then(|index| self.backends.get(index))
    }

    /// Returns what the connections to the backends share.
    pub(crate) fn upstreams(&self) -> &Arc<Upstreams> {
        &self.shared.kept.upstreams
    }

    /// Returns all backends, in the order of their addresses.
    pub fn backends(&self) -> &[Arc<Backend>] {
        &self.backends
    }

    /// Returns the counters.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Returns the queue of requests that wait for a backend.
    pub fn queue(&self) -> &Arc<Queue> {
        &self.shared.queue
    }

    /// Returns the registry that shares the health of the backends.
    pub fn registry(&self) -> &Arc<HealthRegistry> {
        &self.shared.registry
    }

    /// Returns the algorithm that selects the next backend.
    pub fn policy(&self) -> Algorithm {
        self.shared.policy.algorithm()
    }

    /// Returns the number of requests in flight at the backends.
    pub fn in_flight(&self) -> u64 {
        self.shared.counters.in_flight.get()
    }

    /// Returns the number of requests in progress, including those that pause between two attempts. The retry budget is
    /// a share of this number.
    pub fn requests(&self) -> u64 {
        self.shared.counters.requests.get()
    }

    /// Returns the number of retries in flight that have a place in the budget.
    pub fn retries_in_flight(&self) -> u64 {
        self.shared.budget.active()
    }

    /// Returns the beginning of panic mode; `None` outside it.
    pub fn panic_since(&self) -> Option<Instant> {
        self.degradation().panic
    }

    /// Returns the time since which the backups are used; `None` if they are not.
    pub fn backups_since(&self) -> Option<Instant> {
        self.degradation().backups
    }

    /// Returns the time since which no backend is ready; `None` if one is.
    pub fn unready_since(&self) -> Option<Instant> {
        self.degradation().unready
    }

    /// Returns which backends can be selected: primaries or backups, and whether readiness counts.
    pub fn availability(&self, now: Instant) -> Availability {
        if self.cache.is_stale(self.shared.changes.count(), now) {
            self.assess(now);
        }
        self.cache.availability()
    }

    /// Updates the newest pool of this name after a change.
    fn look(&self, now: Instant) {
        self.newest().as_deref().unwrap_or(self).availability(now);
    }

    /// Returns the end of the next ejection; `None` if no backend is ejected.
    pub fn next_return(&self, now: Instant) -> Option<Instant> {
        // The look removes ejections that have ended.
        self.availability(now);
        self.cache.next_return()
    }

    /// Returns the state of a backend.
    pub fn state(&self, backend: &Backend, now: Instant) -> BackendState {
        backend.state(self.is_ready(backend), now)
    }

    /// Offers the candidates until `accept` takes one.
    fn offer(&self, candidates: &mut Candidates, accept: impl Fn(&Arc<Backend>) -> bool) {
        let backend =
            |candidate: usize| self.places.get(candidate).and_then(|index| self.backends.get(*index));
        while let Some(candidate) = candidates.next_index() {
            if backend(candidate).is_some_and(&accept) {
                break;
            }
        }
    }

    fn index(&self, address: &UpstreamAddress) -> Option<usize> {
        self.backends.binary_search_by(|backend| backend.address.cmp(address)).ok()
    }

    /// Returns the index of a backend of this pool, or of the backend with the address of one of another pool.
    fn index_of(&self, backend: &Backend) -> Option<usize> {
        let is_same = |known: &&Arc<Backend>| known.address == backend.address;
        let own = self.backends.get(backend.index).filter(is_same);
        own.map(|own| own.index).or_else(|| self.index(&backend.address))
    }

    /// Returns the result of the health checks, and stores it at the backend for the next picks.
    fn is_ready(&self, backend: &Backend) -> bool {
        let is_ready = self.balancer.backends().ready(&backend.identity);
        backend.set_ready(is_ready);
        is_ready
    }

    fn members(&self, now: Instant) -> impl Iterator<Item = Member> + Clone {
        self.backends.iter().map(move |backend| Member {
            ready: self.is_ready(backend),
            ejected: backend.history.record.is_ejected(now),
            draining: backend.admin() != Admin::InService,
            backup: backend.backup,
            weight: backend.identity.weight,
        })
    }

    /// Evaluates every backend and stores the result for the next picks.
    fn assess(&self, now: Instant) {
        // The lock keeps an older result from replacing a newer one. The mark comes first, so that a change in the
        // meantime causes another look.
        let _turn = self.cache.assessing.lock();
        self.cache.seen.store(self.shared.changes.count(), Ordering::Release);
        let returns =
            self.backends.iter().filter_map(|backend| backend.history.record.ejected_until(now)).min();
        self.cache.set_next_return(returns);
        let availability = self.assessed(now);
        self.cache.availability.store(availability.pack(), Ordering::Release);
        if !self.cache.is_superseded.load(Ordering::Acquire) {
            self.tell_returns(now);
            self.note_degradation(availability, now);
        }
    }

    /// Computes which backends can be selected, without reporting events.
    fn assessed(&self, now: Instant) -> Availability {
        availability::assess(self.members(now), self.settings.panic_threshold)
    }

    fn tell_returns(&self, now: Instant) {
        for backend in self.backends.iter().filter(|backend| backend.history.record.take_return(now)) {
            let is_ready = self.is_ready(backend);
            let state = if is_ready { "" } else { ", but its health checks fail" };
            log::info!("pool {}: the ejection of backend {} is over{state}", self.name, backend.label);
            self.tell(&PoolEvent::Returned { backend: &backend.label, is_ready });
        }
    }

    fn tell(&self, event: &PoolEvent<'_>) {
        if let Some(observer) = &self.shared.observer {
            observer.observe(&self.name, event);
        }
    }

    fn note_degradation(&self, Availability { level, panic, .. }: Availability, now: Instant) {
        let is_ready = self.members(now).any(Member::is_available);
        let (was_panic, was_ready) = {
            let mut degradation = self.degradation();
            let was = (degradation.panic.is_some(), degradation.unready.is_none());
            degradation.panic = panic.then(|| degradation.panic.unwrap_or(now));
            degradation.backups = (level == Level::Backup).then(|| degradation.backups.unwrap_or(now));
            degradation.unready = (!is_ready).then(|| degradation.unready.unwrap_or(now));
            was
        };
        if was_ready != is_ready {
            self.tell_unready(!is_ready);
        }
        if was_panic != panic {
            self.tell_panic(panic);
        }
    }

    fn degradation(&self) -> MutexGuard<'_, Degradation> {
        self.shared.degradation.lock()
    }

    fn tell_unready(&self, unready: bool) {
        let name = &self.name;
        if unready {
            log::warn!("pool {name}: no backend is ready");
        } else {
            log::info!("pool {name}: a backend is ready again");
        }
        self.tell(&PoolEvent::Unready(unready));
    }

    fn tell_panic(&self, panic: bool) {
        let (name, threshold) = (&self.name, self.settings.panic_threshold);
        if panic {
            self.shared.counters.panics.increment();
            log::warn!(
                "pool {name}: panic: less than {threshold} % of its backends are available, so all are used"
            );
        } else {
            log::info!("pool {name}: panic is over");
        }
        self.tell(&PoolEvent::Panic(panic));
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Returns the index in `backends` for each backend of the selector. Both are sorted by address.
fn places(selector: &Policy, backends: &[Arc<Backend>]) -> Box<[usize]> {
    let place = |candidate: &pingora::lb::Backend| {
        let search = backends.binary_search_by(|known| known.address.cmp_pingora(&candidate.addr));
        search.unwrap_or(usize::MAX)
    };
    selector.backends().iter().map(place).collect()
}

/// Returns the balancer that keeps the members and their readiness. Its own selector is never asked, so it is a small
/// one.
#[expect(clippy::expect_used, reason = "the list is in memory")]
fn balancer(settings: &PoolSettings, shared: &SharedState) -> LoadBalancer<Policy> {
    let members = settings.backends.iter().map(backend::identity).collect();
    let discovery = discovery::Static::new(members);
    let backends = Backends::new_with_health_registry(discovery, shared.registry.clone());
    let unused = PolicyConfig::new(Algorithm::Random);
    let balancer = LoadBalancer::from_backends_with_config(backends, Some(unused));
    futures::FutureExt::now_or_never(balancer.update())
        .expect("a static list of backends is there at once")
        .expect("a static list of backends cannot fail");
    balancer
}

// === impl SharedState ===

impl SharedState {
    fn newest(&self) -> MutexGuard<'_, Weak<Pool>> {
        self.newest.lock()
    }

    fn successor(&self, settings: &PoolSettings, before: &Rules) -> Self {
        let slow_backends = settings.outlier_detection.slow_backends;
        let histories = self.kept.histories.clone();
        Self {
            kept: Kept { histories, upstreams: self.kept.upstreams.successor(settings.tls.as_ref()) },
            budget: self.budget.successor(&settings.retries),
            policy: self.policy.clone().with_algorithm(settings.policy),
            slow_backends: if slow_backends == before.outlier_detection.slow_backends {
                self.slow_backends.clone()
            } else {
                slow_backends
                    .map(|slow_backends| Arc::new(SlowBackends::new(slow_backends, self.clock.now())))
            },
            ..self.clone()
        }
    }

    fn take_health(
        &mut self,
        registry: Arc<HealthRegistry>,
        check: Option<Box<dyn HealthCheck + Send + Sync>>,
    ) {
        if let Some(check) = check {
            let (changes, histories) = (self.changes.clone(), self.kept.histories.clone());
            let (queue, clock, newest) = (self.queue.clone(), self.clock.clone(), self.newest.clone());
            registry.set_health_check(Box::new(Observed { check, changes, histories, queue, clock, newest }));
        }
        self.registry = registry;
    }
}

// === impl Changes ===

impl Changes {
    /// Counts one change: the next pick evaluates the backends again.
    fn note(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

impl Default for Changes {
    /// The counter begins above 0, the initial value of [`AvailabilityCache::seen`].
    fn default() -> Self {
        Self(AtomicU64::new(1))
    }
}

// === impl Rules ===

impl Rules {
    fn new(settings: &PoolSettings) -> Self {
        Self {
            hash_on: settings.policy.is_hash().then(|| settings.hash_on.clone()),
            bounded_load: settings.bounded_load.filter(|_| settings.policy.is_hash()),
            panic_threshold: settings.panic_threshold,
            slow_start: settings.slow_start,
            outlier_detection: settings.outlier_detection,
            retries: settings.retries,
        }
    }
}

// === impl AvailabilityCache ===

impl AvailabilityCache {
    const NEVER: u64 = u64::MAX;

    fn new(now: Instant) -> Self {
        let empty = Availability { level: Level::Primary, panic: false, weight: 0 };
        Self {
            began: now,
            availability: AtomicU64::new(empty.pack()),
            seen: AtomicU64::new(0),
            assessing: Mutex::default(),
            is_superseded: AtomicBool::new(false),
            next_return: AtomicU64::new(Self::NEVER),
        }
    }

    fn availability(&self) -> Availability {
        Availability::unpack(self.availability.load(Ordering::Acquire))
    }

    fn is_stale(&self, changes: u64, now: Instant) -> bool {
        self.seen.load(Ordering::Acquire) != changes
            || self.nanoseconds(now) >= self.next_return.load(Ordering::Relaxed)
    }

    fn set_next_return(&self, at: Option<Instant>) {
        let at = at.map_or(Self::NEVER, |at| self.nanoseconds(at));
        self.next_return.store(at, Ordering::Relaxed);
    }

    fn next_return(&self) -> Option<Instant> {
        let at = self.next_return.load(Ordering::Relaxed);
        (at != Self::NEVER).then(|| self.began + Duration::from_nanos(at))
    }

    fn nanoseconds(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.began).as_nanos()).unwrap_or(Self::NEVER)
    }
}

/// A health check that reports its changes to the pool and its successors: a backend that comes back starts slowly, and
/// the availability is evaluated again.
struct Observed {
    check: Box<dyn HealthCheck + Send + Sync>,
    changes: Arc<Changes>,
    histories: Arc<ByAddress<History>>,
    queue: Arc<Queue>,
    clock: Clock,
    newest: Arc<Mutex<Weak<Pool>>>,
}

#[async_trait]
impl HealthCheck for Observed {
    async fn check(&self, target: &pingora::lb::Backend) -> pingora::Result<()> {
        self.check.check(target).await
    }

    async fn health_status_change(&self, target: &pingora::lb::Backend, healthy: bool) {
        let address = UpstreamAddress::from_pingora(&target.addr).filter(|_| healthy);
        if let Some(history) = address.and_then(|address| self.histories.find(&address)) {
            history.comeback.came_back(self.clock.now());
        }
        self.changes.note();
        let pool = self.newest.lock().upgrade();
        if let Some(pool) = pool {
            pool.availability(self.clock.now());
        }
        self.queue.wake();
        self.check.health_status_change(target, healthy).await;
    }

    fn backend_summary(&self, target: &pingora::lb::Backend) -> String {
        self.check.backend_summary(target)
    }

    fn health_threshold(&self, success: bool) -> usize {
        self.check.health_threshold(success)
    }
}

#[cfg(test)]
mod tests {
    use super::reasons::AttemptFailure;
    use super::*;

    use crate::clock::ManualClock;
    use proptest::collection::vec;
    use proptest::prelude::{Strategy, any, prop_assert_eq, prop_oneof, proptest};

    const SECOND: Duration = Duration::from_secs(1);

    /// Returns the settings of backends 127.0.0.1:1 and following, each with its weight.
    fn settings(weights: &[u64]) -> PoolSettings {
        let backend = |(index, weight): (usize, &u64)| BackendSettings {
            weight: Weight::new(*weight).unwrap(),
            ..BackendSettings::new(address(index + 1))
        };
        PoolSettings::new("web", weights.iter().enumerate().map(backend).collect())
    }

    fn address(port: usize) -> UpstreamAddress {
        ([127, 0, 0, 1], u16::try_from(port).unwrap()).into()
    }

    fn pool(settings: &PoolSettings) -> (Arc<Pool>, ManualClock) {
        let (clock, manual) = Clock::manual();
        let policy = PolicyConfig::new(settings.policy).with_seed(7);
        let registry = Arc::new(HealthRegistry::new());
        (Arc::new(Pool::with_policy(settings, registry, None, policy, &clock)), manual)
    }

    fn succeed(pool: &Arc<Pool>, settings: &PoolSettings) -> Arc<Pool> {
        let successor = Arc::new(pool.successor(settings));
        successor.enter(pool);
        successor
    }

    fn place(pool: &Arc<Pool>, manual: &ManualClock) -> Result<Attempt, PickError> {
        let request =
            PickRequest { key: b"", session: None, tried: &Tried::new(), now: manual.now(), draw: 0.5 };
        pool.place(&request, &mut Passed::new())
    }

    fn ports(pool: &Arc<Pool>, manual: &ManualClock, requests: usize) -> Vec<u16> {
        (0..requests).map(|_| place(pool, manual).unwrap().backend.address.port()).collect()
    }

    fn state(pool: &Pool, port: usize, manual: &ManualClock) -> BackendState {
        pool.state(pool.backend(&address(port)).unwrap(), manual.now())
    }

    fn eject(pool: &Arc<Pool>, port: usize, manual: &ManualClock) {
        let mut others = Tried::new();
        for other in pool.backends().iter().filter(|other| other.address != address(port)) {
            others.insert(other.clone(), AttemptFailure::Status(503));
        }
        for _ in 0..5 {
            let request =
                PickRequest { key: b"", session: None, tried: &others, now: manual.now(), draw: 0.5 };
            let mut attempt = pool.place(&request, &mut Passed::new()).unwrap();
            attempt.failed(UpstreamError::Connect, manual.now());
        }
    }

    #[test]
    fn a_successor_continues_the_rotation_of_its_predecessor() {
        let (pool, manual) = pool(&settings(&[1, 1, 1]));
        assert_eq!(ports(&pool, &manual, 2), [1, 2]);
        let pool = succeed(&pool, &settings(&[1, 1, 1]));
        assert_eq!(ports(&pool, &manual, 2), [3, 1]);
    }

    #[test]
    fn an_ejection_outlasts_a_change_of_weights() {
        let (pool, manual) = pool(&settings(&[1, 1, 1]));
        eject(&pool, 1, &manual);
        assert_eq!(state(&pool, 1, &manual), BackendState::Ejected);
        let pool = succeed(&pool, &settings(&[5, 1, 1]));
        assert_eq!(state(&pool, 1, &manual), BackendState::Ejected);
        assert!(ports(&pool, &manual, 6).iter().all(|port| *port != 1));
        assert_eq!(pool.backend(&address(1)).unwrap().ejections(), 1);
    }

    #[test]
    fn requests_in_flight_count_in_both() {
        let (before, manual) = pool(&settings(&[1, 1]));
        let attempt = place(&before, &manual).unwrap();
        let after = succeed(&before, &settings(&[1, 2]));
        assert_eq!((before.in_flight(), after.in_flight()), (1, 1));
        assert_eq!(after.backend(&attempt.backend.address).unwrap().load.in_flight(), 1);
        drop(attempt);
        assert_eq!((before.in_flight(), after.in_flight()), (0, 0));
    }

    #[test]
    fn the_newest_pool_is_found_after_several_changes() {
        let (first, _) = pool(&settings(&[1, 1]));
        assert!(first.newest().is_none());
        let second = succeed(&first, &settings(&[1, 2]));
        assert!(Arc::ptr_eq(&first.newest().unwrap(), &second) && second.newest().is_none());
        let third = succeed(&second, &settings(&[1, 3]));
        drop(second);
        assert!(Arc::ptr_eq(&first.newest().unwrap(), &third) && third.newest().is_none());
        // The pool is removed from the configuration: its requests end with it.
        drop(third);
        assert!(first.newest().is_none());
    }

    #[test]
    fn nothing_changes_before_a_successor_enters() {
        let mut changed = settings(&[1, 1]);
        changed.backends[0].admin = Admin::Disabled;
        changed.queue = 10;
        let (before, manual) = pool(&settings(&[1, 1]));
        let after = Arc::new(before.successor(&changed));
        assert_eq!(state(&before, 1, &manual), BackendState::Up);
        assert_eq!(before.queue().places(), 0);
        after.enter(&before);
        assert_eq!(state(&after, 1, &manual), BackendState::Disabled);
        assert_eq!(after.queue().places(), 10);
    }

    #[test]
    fn a_decision_of_an_operator_applies_to_requests_that_began_before() {
        let mut changed = settings(&[1, 1]);
        changed.backends[0].admin = Admin::Draining;
        let (before, manual) = pool(&settings(&[1, 1]));
        let _after = succeed(&before, &changed);
        assert_eq!(ports(&before, &manual, 3), [2, 2, 2]);
    }

    #[test]
    fn only_a_new_backend_starts_slowly() {
        let slow = |weights| PoolSettings { slow_start: Some(10 * SECOND), ..settings(weights) };
        let (pool, manual) = pool(&slow(&[1, 1]));
        manual.advance(SECOND);
        let pool = succeed(&pool, &slow(&[1, 1, 1]));
        // A draw of 0.5 is above the tenth that the third one has.
        assert_eq!(ports(&pool, &manual, 4).iter().filter(|port| **port == 3).count(), 0);
        manual.advance(10 * SECOND);
        assert!(ports(&pool, &manual, 3).contains(&3));
    }

    #[test]
    fn a_change_of_weight_does_not_restart_a_slow_start() {
        let slow = |weights| PoolSettings { slow_start: Some(10 * SECOND), ..settings(weights) };
        let (pool, manual) = pool(&slow(&[1, 1]));
        let pool = succeed(&pool, &slow(&[1, 1, 1]));
        manual.advance(10 * SECOND);
        let pool = succeed(&pool, &slow(&[1, 1, 2]));
        assert!(ports(&pool, &manual, 4).contains(&3));
    }

    const SOCKETS: [&str; 3] = ["10.0.0.1:80", "unix:/run/a.sock", "unix:/run/b.sock"];

    fn with_unix_sockets(policy: Algorithm) -> PoolSettings {
        let backends = SOCKETS.map(|text| BackendSettings::new(text.parse().unwrap()));
        let sticky = Some(StickySettings::new("lb"));
        PoolSettings { policy, sticky, ..PoolSettings::new("web", backends.into()) }
    }

    #[test]
    fn every_policy_selects_backends_on_unix_sockets() {
        for policy in Algorithm::ALL {
            let (pool, manual) = pool(&with_unix_sockets(policy));
            let select = |key: u32| {
                let (key, now) = (&key.to_le_bytes(), manual.now());
                let request = PickRequest { key, session: None, tried: &Tried::new(), now, draw: 0.5 };
                let attempt = pool.place(&request, &mut Passed::new()).unwrap();
                let explained = pool.explain(&request).backends.len();
                assert_eq!(explained, 3, "{policy:?}");
                attempt.backend.label.to_string()
            };
            let selected: std::collections::BTreeSet<_> = (0..300).map(select).collect();
            assert!(selected.iter().eq(SOCKETS), "{policy:?}: {selected:?}");
        }
    }

    #[test]
    fn a_backend_on_a_unix_socket_keeps_its_history_and_its_sessions() {
        let settings = with_unix_sockets(Algorithm::RoundRobin);
        let (old, manual) = pool(&settings);
        let socket: UpstreamAddress = SOCKETS[1].parse().unwrap();
        let backend = old.backend(&socket).unwrap();
        assert_eq!((&*backend.label, &backend.target().address), (SOCKETS[1], &socket));
        let cookie = old.set_cookie(backend, None, false, manual.now()).unwrap();
        let new = succeed(&old, &settings);
        assert!(Arc::ptr_eq(&backend.history, &new.backend(&socket).unwrap().history));
        let pair = cookie.to_str().unwrap().split(';').next().unwrap();
        let fields = http::HeaderMap::from_iter([(http::header::COOKIE, pair.parse().unwrap())]);
        let session = new.session(&fields).map(|session| session.backend);
        for _ in 0..5 {
            let request =
                PickRequest { key: b"", session, tried: &Tried::new(), now: manual.now(), draw: 0.5 };
            let mut attempt = new.place(&request, &mut Passed::new()).unwrap();
            assert_eq!(attempt.backend.address, socket);
            attempt.failed(UpstreamError::Connect, manual.now());
        }
        assert_eq!(new.state(new.backend(&socket).unwrap(), manual.now()), BackendState::Ejected);
    }

    #[test]
    fn an_address_that_returns_while_it_is_in_use_keeps_its_history() {
        let (pool, manual) = pool(&settings(&[1, 1]));
        let before = pool.backend(&address(2)).unwrap().clone();
        let without = succeed(&pool, &settings(&[1]));
        let again = succeed(&without, &settings(&[1, 1]));
        assert!(Arc::ptr_eq(&before.history, &again.backend(&address(2)).unwrap().history));
        assert_eq!(ports(&again, &manual, 2).len(), 2);
    }

    #[test]
    fn only_the_pool_in_use_reports_panic() {
        let mut three = settings(&[1, 1, 1]);
        three.panic_threshold = 100;
        let (before, manual) = pool(&three);
        eject(&before, 1, &manual);
        assert!(before.availability(manual.now()).panic);
        let after = succeed(&before, &three);
        assert!(after.availability(manual.now()).panic && before.availability(manual.now()).panic);
        assert_eq!(after.counters().panics.get(), 1, "it was in panic already");
        assert!(after.panic_since().is_some() && after.panic_since() == before.panic_since());
    }

    #[derive(Default)]
    struct RecordedEvents(Mutex<Vec<String>>);

    impl PoolObserver for RecordedEvents {
        fn observe(&self, pool: &str, event: &PoolEvent<'_>) {
            self.0.lock().push(format!("{pool}: {event:?}"));
        }
    }

    #[test]
    fn ejections_their_ends_and_panic_are_reported_once() {
        let recorded = Arc::new(RecordedEvents::default());
        let mut three = settings(&[1, 1, 1]);
        three.panic_threshold = 100;
        let (clock, manual) = Clock::manual();
        let registry = Arc::new(HealthRegistry::new());
        let pool = Pool::with_policy(&three, registry, None, PolicyConfig::default(), &clock);
        let pool = pool.observed_by(recorded.clone());
        eject(&pool, 1, &manual);
        assert_eq!(recorded.0.lock().len(), 2, "no look at the pool since then");
        let pool = succeed(&pool, &three);
        manual.advance(60 * SECOND);
        let _ = (pool.availability(manual.now()), pool.availability(manual.now()));
        let recorded = recorded.0.lock();
        let words: Vec<_> = recorded.iter().map(|event| event.split(' ').nth(1).unwrap()).collect();
        assert_eq!(words, ["Ejected", "Panic(true)", "Returned", "Panic(false)"], "{recorded:?}");
    }

    #[test]
    fn the_event_of_a_return_says_whether_the_backend_passes_its_checks() {
        for is_ready in [true, false] {
            let recorded = Arc::new(RecordedEvents::default());
            let (clock, manual) = Clock::manual();
            let registry = Arc::new(HealthRegistry::new());
            let settings = settings(&[1, 1]);
            let pool = Pool::with_policy(&settings, registry, None, PolicyConfig::default(), &clock);
            let pool = pool.observed_by(recorded.clone());
            eject(&pool, 1, &manual);
            let ejected = pool.backends().iter().find(|backend| backend.ejections() > 0).unwrap();
            pool.balancer.backends().set_enable(&ejected.identity, is_ready);
            manual.advance(60 * SECOND);
            let _ = pool.availability(manual.now());
            let recorded = recorded.0.lock().join("\n");
            assert!(recorded.contains(&format!("is_ready: {is_ready}")), "{recorded}");
        }
    }

    #[tokio::test]
    async fn a_change_of_health_is_noted_when_it_happens() {
        let (recorded, down) = (Arc::new(RecordedEvents::default()), Arc::new(AtomicBool::new(true)));
        let (clock, manual) = Clock::manual();
        let registry = Arc::new(HealthRegistry::new());
        let check = Some(Box::new(Switch(down.clone())) as Box<dyn HealthCheck + Send + Sync>);
        let pool = Pool::with_policy(&settings(&[1, 1]), registry, check, PolicyConfig::default(), &clock);
        let pool = pool.observed_by(recorded.clone());
        let words = || std::mem::take(&mut *recorded.0.lock());
        manual.advance(SECOND);
        let first = manual.now();
        pool.balancer.backends().run_health_check(false).await;
        manual.advance(SECOND);
        assert_eq!(words(), ["web: Unready(true)", "web: Panic(true)"]);
        assert_eq!((pool.panic_since(), pool.unready_since()), (Some(first), Some(first)));
        down.store(false, Ordering::Relaxed);
        pool.balancer.backends().run_health_check(false).await;
        assert_eq!(words(), ["web: Unready(false)", "web: Panic(false)"]);
        assert_eq!((pool.panic_since(), pool.unready_since()), (None, None));
    }

    #[tokio::test]
    async fn a_pick_sees_the_latest_results_of_the_health_checks() {
        let down = Arc::new(AtomicBool::new(false));
        let (clock, manual) = Clock::manual();
        let check = Some(Box::new(FirstOf(down.clone())) as Box<dyn HealthCheck + Send + Sync>);
        let registry = Arc::new(HealthRegistry::new());
        let pool = Pool::with_policy(&settings(&[1, 1]), registry, check, PolicyConfig::default(), &clock);
        let pool = Arc::new(pool);
        let successor = succeed(&pool, &settings(&[1, 1]));
        for (is_down, expected) in [(false, [1, 2]), (true, [2, 2]), (false, [1, 2])] {
            down.store(is_down, Ordering::Relaxed);
            pool.balancer.backends().run_health_check(false).await;
            for pool in [&pool, &successor] {
                let mut ports = ports(pool, &manual, 2);
                ports.sort_unstable();
                assert_eq!(ports, expected);
            }
        }
    }

    /// A check of port 1 that fails while the value is true.
    struct FirstOf(Arc<AtomicBool>);

    #[async_trait]
    impl HealthCheck for FirstOf {
        async fn check(&self, target: &pingora::lb::Backend) -> pingora::Result<()> {
            let is_first = target.addr.as_inet().is_some_and(|address| address.port() == 1);
            if is_first { Switch(self.0.clone()).check(target).await } else { Ok(()) }
        }

        fn health_threshold(&self, _: bool) -> usize {
            1
        }
    }

    /// A check that fails while the value is true.
    struct Switch(Arc<AtomicBool>);

    #[async_trait]
    impl HealthCheck for Switch {
        async fn check(&self, _: &pingora::lb::Backend) -> pingora::Result<()> {
            match self.0.load(Ordering::Relaxed) {
                true => pingora::Error::e_explain(pingora::ErrorType::ConnectRefused, "down"),
                false => Ok(()),
            }
        }

        fn health_threshold(&self, _: bool) -> usize {
            1
        }
    }

    #[test]
    fn the_state_of_a_backend_dates_from_its_latest_change() {
        let (pool, manual) = pool(&settings(&[1, 1, 1]));
        let since = |pool: &Pool, port| pool.backend(&address(port)).unwrap().since(manual.now());
        let joined = manual.now();
        manual.advance(SECOND);
        eject(&pool, 1, &manual);
        let ejected = manual.now();
        assert_eq!((since(&pool, 1), since(&pool, 2)), (ejected, joined));
        manual.advance(60 * SECOND);
        let back = pool.backend(&address(1)).unwrap().since(manual.now());
        assert!(back >= ejected + 30 * SECOND && back <= ejected + 33 * SECOND, "{:?}", back - ejected);
        let mut drained = settings(&[1, 1, 1]);
        drained.backends[1].admin = Admin::Draining;
        let pool = succeed(&pool, &drained);
        let decided = manual.now();
        manual.advance(SECOND);
        let pool = succeed(&pool, &drained);
        assert_eq!(since(&pool, 2), decided);
    }

    #[test]
    fn causes_of_ejection_count_as_failures() {
        let (pool, manual) = pool(&settings(&[1]));
        for status in [200, 404, 500, 502, 503, 504] {
            place(&pool, &manual).unwrap().responded(status, None, manual.now());
        }
        place(&pool, &manual).unwrap().failed(UpstreamError::Reset, manual.now());
        let history = &pool.backend(&address(1)).unwrap().history;
        assert_eq!((history.attempts.get(), history.failures.get()), (7, 4));
    }

    #[test]
    fn another_policy_keeps_the_state_of_the_backends() {
        let (before, manual) = pool(&settings(&[1, 1]));
        let _attempt = place(&before, &manual).unwrap();
        let least = PoolSettings { policy: Algorithm::LeastRequest, ..settings(&[1, 1]) };
        let after = succeed(&before, &least);
        assert_eq!(ports(&after, &manual, 3), [2, 2, 2], "the other one is busy");
    }

    fn any_address() -> impl Strategy<Value = UpstreamAddress> {
        prop_oneof![
            (any::<u32>(), 1u16..4).prop_map(|(ip, port)| (std::net::Ipv4Addr::from_bits(ip), port).into()),
            (any::<u128>(), 1u16..4).prop_map(|(ip, port)| (std::net::Ipv6Addr::from_bits(ip), port).into()),
            "[a-z]{1,8}".prop_map(|name| format!("unix:/run/{name}.sock").parse().unwrap()),
        ]
    }

    proptest! {
        #[test]
        fn a_candidate_of_the_policy_is_the_backend_at_its_address(
            backends in vec((any_address(), 1u64..4), 1..40),
        ) {
            let backend = |(address, weight): (UpstreamAddress, u64)| BackendSettings {
                weight: Weight::new(weight).unwrap(),
                ..BackendSettings::new(address)
            };
            let (pool, _) = pool(&PoolSettings::new("web", backends.into_iter().map(backend).collect()));
            prop_assert_eq!(pool.places.len(), pool.selector.backends().len());
            for (candidate, place) in pool.selector.backends().iter().zip(&pool.places) {
                prop_assert_eq!(&pool.backends[*place].identity.addr, &candidate.addr);
            }
            for (index, backend) in pool.backends.iter().enumerate() {
                prop_assert_eq!(pool.index_of(backend), Some(index));
            }
        }
    }
}
