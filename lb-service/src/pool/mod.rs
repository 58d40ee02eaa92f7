//! A pool: the backends that serve the same thing, how one of them is picked, and what happens when it fails.
//!
//! # Use
//!
//! A [`Pool`] is made of [`PoolSettings`]. Each request is a [`Delivery`], which is told what happens to the request,
//! and says whether it is sent once more. It neither connects nor waits: that is left to the program.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Instant;
//!
//! use lb_service::pool::{BackendSettings, Delivery, Moment, Pool, PoolSettings, Sent, UpstreamError};
//! use pingora::lb::HealthRegistry;
//!
//! let backends = ["10.0.0.1:80", "10.0.0.2:80"].map(|address| BackendSettings::new(address.parse().unwrap()));
//! let settings = PoolSettings::new("web", backends.into());
//! // No health check here. With one, whoever runs it does so on `pool.balancer`.
//! let pool = Arc::new(Pool::new(&settings, Arc::new(HealthRegistry::new()), None));
//! let at = || Moment { now: Instant::now(), draw: 0.5 }; // a random number, in a real program
//!
//! // In `upstream_peer`; the peer to connect to is `attempt.backend.peer()`.
//! let mut delivery = Delivery::default(); // lives in the context of the request
//! delivery.place(&pool, b"", at()).expect("a backend is available");
//! # let first = delivery.attempt.as_ref().unwrap().backend.address;
//!
//! // In `error_while_proxy`, for a GET of which no byte of an answer was passed on:
//! let get = Sent { idempotent: true, replayable: true, answered: false, stale: false };
//! let again = delivery.broke(&pool, UpstreamError::Reset, get, at());
//! assert!(again, "there is another backend");
//!
//! // In `upstream_peer` again: wait for so long, then it goes to another backend.
//! let pause = delivery.end_attempt().expect("it is sent again");
//! # assert!(pause.as_millis() <= 25);
//! delivery.place(&pool, b"", at()).expect("another backend is available");
//! # assert_ne!(delivery.attempt.as_ref().unwrap().backend.address, first);
//!
//! // In `upstream_response_filter`, with the status and `Retry-After`:
//! let again = delivery.answered(&pool, 200, None, get, at());
//! assert!(!again, "the client gets this answer");
//! // When the body is whole, which is a success and forgives the backend its failures. If it breaks off: `broke`.
//! delivery.attempt.as_mut().expect("it is under way").finished();
//! ```
//!
//! What else a request may need:
//!
//! - **A key**, when the policy hashes: [`Pool::hash_key`], as the second argument of [`Delivery::place`].
//! - **A session**: [`Pool::session`] reads the cookie into [`Delivery::session`], [`Pool::set_cookie`] writes it.
//! - **Patience**, when `place` says [`Unplaced::Full`]: join [`Pool::queue`], and at each [`Waiter::turn`] place it again. A
//!   request that [`is_first`](Delivery::is_first) and finds somebody waiting joins at once. Look at [`Pool::next_return`]
//!   as well: nobody is woken by an ejection that ends.
//! - **Progress**: [`Attempt::connected`] counts connections; [`Pool::per_try`] is for the program to keep.
//!
//! The proxy of this crate does all of this in `request.rs` and `proxy.rs`.
//!
//! # How it is made
//!
//! Who is there and who is ready is in Pingora's [`LoadBalancer`], which the proxy, the prober and the metrics share as
//! one `Arc`; who is next is in our [`Policy`]. What the proxy itself knows of a backend is in [`Backend`], kept by address
//! beside the selector, because Pingora builds a new selector on every change.
//!
//! ```text
//! Delivery                       one request, from its first attempt to its answer     delivery.rs
//!
//! Pool::place                    a request gets a backend, or not                       pick.rs
//! ├── Sticky                     the backend that a cookie names, if it may be used     sticky.rs
//! ├── LoadBalancer<Policy>       the others, best first                                 ../policy/
//! │   └── Pool::refusal          why a candidate is passed over                         pick.rs
//! │       ├── Availability       backups, panic                                         availability.rs
//! │       ├── Record             ejected                                                outlier.rs
//! │       └── Comeback           slow start                                             slow_start.rs
//! └── Attempt                    one request at one backend, until it is dropped        attempt.rs
//!     └── Ejector, Gray          what its end says about the backend                    outlier.rs, gray.rs
//!
//! Pool::again                    whether a failed request is sent again                 again.rs
//! └── retry::decide, Budget                                                             retry.rs
//! Queue                          who waits until a backend has room                     queue.rs
//! ```

mod again;
mod attempt;
mod availability;
mod backend;
mod delivery;
mod gray;
mod hash_key;
mod outlier;
mod pick;
mod queue;
mod retry;
mod settings;
mod slow_start;
mod sticky;

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::HeaderValue;
use pingora::lb::health_check::HealthCheck;
use pingora::lb::{Backends, HealthRegistry, LoadBalancer, discovery};

pub use attempt::Attempt;
pub use availability::{Availability, Level};
pub use backend::{Backend, State, UpstreamError};
pub use delivery::{Delivery, Moment, Sent};
pub use hash_key::{Key, KeySource};
pub use pick::{Mishap, Passed, Refusal, Tried, Unplaced, Wish};
pub use queue::{Line, Queue, QueueFull, Ticket, Waiter};
pub use retry::{Budget, Decision, Failed, Repetition, WhyNot, backoff, decide};
pub use settings::{
    BackendSettings, GraySettings, HashOn, OutlierSettings, PoolId, PoolSettings, RetryCause, RetryOn,
    RetrySettings, StickySettings, Timeouts, UpstreamTls, Weight,
};

use crate::clock::Clock;
use crate::policy::{Policy, PolicyConfig};
use crate::stats::{Counter, Level as Gauge};
use availability::Member;
use gray::Gray;
use outlier::Ejector;
use sticky::Sticky;

/// A pool at work. Made once, and shared by all requests as an `Arc`.
pub struct Pool {
    /// Its name in the configuration, metrics and logs.
    pub name: Arc<str>,
    /// Membership, readiness and selection, shared with the prober and the metrics.
    pub balancer: Arc<LoadBalancer<Policy>>,
    /// The `Host` header sent to the backends; absent: the client's own.
    pub host: Option<HeaderValue>,
    /// How often so few backends were available that all were used.
    pub panics: Counter,
    /// Attempts after the first. A replay over a new connection is none.
    pub retries: Counter,
    /// Attempts that were not made because the budget was used up.
    pub retries_denied: Counter,
    /// Requests without what their hash is made of.
    pub keys_missing: Counter,
    /// Who waits for a backend.
    pub queue: Arc<Queue>,
    /// How long they wait at most; it is for the program to keep.
    pub queue_timeout: Duration,
    /// Attempts at its backends.
    in_flight: Gauge,
    /// Requests, also those that pause between two attempts.
    requests: Gauge,
    budget: Arc<Budget>,
    settings: Rules,
    sticky: Option<Sticky>,
    ejector: Ejector,
    gray: Option<Gray>,
    watch: Arc<Watch>,
    /// Sorted by address, so that a pick finds its counters without hashing.
    backends: Box<[Arc<Backend>]>,
}

/// What the configuration says about a pool and requests are decided by.
#[derive(Debug)]
struct Rules {
    hash_on: Option<HashOn>,
    bounded_load: Option<u32>,
    panic_threshold: u8,
    slow_start: Option<Duration>,
    outlier_detection: OutlierSettings,
    retries: RetrySettings,
}

/// What a pick may take for granted until something changes.
#[derive(Debug)]
struct Watch {
    began: Instant,
    /// The [`Availability`], packed.
    availability: AtomicU64,
    changed: AtomicBool,
    /// Held while somebody looks, which happens once after each change.
    assessing: Mutex<()>,
    /// When the next ejection ends, in nanoseconds after `began`; the largest number: none is under way.
    next_return: AtomicU64,
}

// === impl Pool ===

impl Pool {
    /// A pool whose readiness is what `health_check` says; without one, every backend is always ready.
    ///
    /// Health is kept in `registry`, which decides which backends share a state: keyed by address, a change of weight
    /// loses none.
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

    /// The same, with a policy of one's own making and its clock: a simulation moves its hands.
    pub fn with_policy(
        settings: &PoolSettings,
        registry: Arc<HealthRegistry>,
        health_check: Option<Box<dyn HealthCheck + Send + Sync>>,
        policy: PolicyConfig,
        clock: &Clock,
    ) -> Self {
        let policy = policy.with_clock(clock.clone());
        let watch = Arc::new(Watch::new(clock.now()));
        let mut backends: Vec<_> = settings
            .backends
            .iter()
            .map(|backend| Arc::new(Backend::new(settings, backend, &policy, clock.now())))
            .collect();
        backends.sort_by_key(|backend| backend.address);
        let backends: Box<[_]> = backends.into();
        let queue = Queue::new(settings.queue);
        if let Some(check) = health_check {
            let (backends, watch, clock) = (backends.clone(), watch.clone(), clock.clone());
            let queue = queue.clone();
            registry.set_health_check(Box::new(Observed { check, backends, watch, queue, clock }));
        }
        let pool = Self {
            name: settings.name.clone(),
            balancer: Arc::new(balancer(settings, registry, policy)),
            host: settings.host.clone(),
            panics: Counter::default(),
            retries: Counter::default(),
            retries_denied: Counter::default(),
            keys_missing: Counter::default(),
            queue,
            queue_timeout: settings.timeouts.queue,
            in_flight: Gauge::default(),
            requests: Gauge::default(),
            budget: Budget::of(&settings.retries),
            settings: Rules::new(settings),
            sticky: settings.sticky.as_ref().map(|sticky| {
                Sticky::new(sticky, &settings.name, backends.iter().map(|backend| backend.address))
            }),
            ejector: Ejector::default(),
            gray: settings.outlier_detection.gray.map(|gray| Gray::new(gray, clock.now())),
            watch,
            backends,
        };
        pool.assess(clock.now());
        pool
    }

    /// The backend with this address.
    pub fn backend(&self, address: SocketAddr) -> Option<&Arc<Backend>> {
        self.index(address).and_then(|index| self.backends.get(index))
    }

    /// All backends, in the order of their addresses.
    pub fn backends(&self) -> &[Arc<Backend>] {
        &self.backends
    }

    /// Requests that its backends are working on.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.get()
    }

    /// Requests that it has not ended with, also those that pause between two attempts: what the budget is a share of.
    pub fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// Of them, those that have a place in the budget because they are sent once more.
    pub fn repetitions(&self) -> u64 {
        self.budget.active()
    }

    /// Who may be picked: of the backends or of the backups, and whether readiness counts.
    pub fn availability(&self, now: Instant) -> Availability {
        if self.watch.is_stale(now) {
            self.assess(now);
        }
        self.watch.availability()
    }

    /// When the next ejection ends, if one is under way.
    pub fn next_return(&self, now: Instant) -> Option<Instant> {
        // What has ended is forgotten by looking.
        self.availability(now);
        self.watch.next_return()
    }

    /// The state that a backend is in.
    pub fn state(&self, backend: &Backend, now: Instant) -> State {
        backend.state(self.is_ready(backend), now)
    }

    /// From now on a backend gets no new sessions, or gets them again. What it is working on goes on.
    pub fn set_draining(&self, address: SocketAddr, draining: bool) {
        if let Some(backend) = self.backend(address) {
            backend.set_draining(draining);
            self.watch.changed();
            self.queue.wake();
        }
    }

    fn index(&self, address: SocketAddr) -> Option<usize> {
        self.backends.binary_search_by_key(&address, |backend| backend.address).ok()
    }

    fn is_ready(&self, backend: &Backend) -> bool {
        self.balancer.backends().ready(&backend.identity)
    }

    fn members(&self, now: Instant) -> impl Iterator<Item = Member> + Clone {
        self.backends.iter().map(move |backend| Member {
            ready: self.is_ready(backend),
            ejected: backend.record.is_ejected(now),
            draining: backend.is_draining(),
            backup: backend.backup,
            weight: backend.identity.weight,
        })
    }

    /// Looks at every backend, and remembers what that means for the next picks.
    fn assess(&self, now: Instant) {
        // One after the other, so that no older look is kept; first the mark, so that a change meanwhile is looked at again.
        let _turn = self.watch.assessing.lock().unwrap_or_else(PoisonError::into_inner);
        self.watch.changed.swap(false, Ordering::AcqRel);
        let returns = self.backends.iter().filter_map(|backend| backend.record.ejected_until(now)).min();
        self.watch.set_next_return(returns);
        let before = self.watch.availability();
        let after = availability::assess(self.members(now), self.settings.panic_threshold);
        self.watch.availability.store(after.pack(), Ordering::Release);
        if before.panic != after.panic {
            let (name, threshold) = (&self.name, self.settings.panic_threshold);
            if after.panic {
                self.panics.increment();
                log::warn!(
                    "pool {name}: panic: less than {threshold} % of its backends are available, all are used"
                );
            } else {
                log::info!("pool {name}: panic is over");
            }
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("name", &self.name).finish_non_exhaustive()
    }
}

fn balancer(
    settings: &PoolSettings,
    registry: Arc<HealthRegistry>,
    policy: PolicyConfig,
) -> LoadBalancer<Policy> {
    let members = settings.backends.iter().map(backend::identity).collect();
    let backends = Backends::new_with_health_registry(discovery::Static::new(members), registry);
    let balancer = LoadBalancer::from_backends_with_config(backends, Some(policy));
    futures::FutureExt::now_or_never(balancer.update())
        .expect("a static list of backends is there at once")
        .expect("a static list of backends cannot fail");
    balancer
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

// === impl Watch ===

impl Watch {
    const NEVER: u64 = u64::MAX;

    fn new(now: Instant) -> Self {
        let nobody = Availability { level: Level::Primary, panic: false, weight: 0 };
        Self {
            began: now,
            availability: AtomicU64::new(nobody.pack()),
            changed: AtomicBool::new(true),
            assessing: Mutex::default(),
            next_return: AtomicU64::new(Self::NEVER),
        }
    }

    fn availability(&self) -> Availability {
        Availability::unpack(self.availability.load(Ordering::Acquire))
    }

    /// Something changed: whoever picks next looks again.
    fn changed(&self) {
        self.changed.store(true, Ordering::Release);
    }

    fn is_stale(&self, now: Instant) -> bool {
        self.changed.load(Ordering::Acquire)
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

/// A health check whose changes the pool notices: a backend that comes back starts slowly, and the others are looked at
/// again.
struct Observed {
    check: Box<dyn HealthCheck + Send + Sync>,
    backends: Box<[Arc<Backend>]>,
    watch: Arc<Watch>,
    queue: Arc<Queue>,
    clock: Clock,
}

#[async_trait]
impl HealthCheck for Observed {
    async fn check(&self, target: &pingora::lb::Backend) -> pingora::Result<()> {
        self.check.check(target).await
    }

    async fn health_status_change(&self, target: &pingora::lb::Backend, healthy: bool) {
        let backend = self.backends.iter().find(|backend| backend.identity.addr == target.addr);
        if let Some(backend) = backend.filter(|_| healthy) {
            backend.comeback.came_back(self.clock.now());
        }
        self.watch.changed();
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
