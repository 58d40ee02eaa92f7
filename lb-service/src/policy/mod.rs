//! Chooses the next backend: six selection algorithms for Pingora's `LoadBalancer`.
//!
//! [`Policy`] implements Pingora's [`BackendSelection`] and works in any Pingora program. Without a configuration it is
//! a smooth weighted round robin:
//!
//! ```
//! use lb_service::Policy;
//! use pingora::lb::LoadBalancer;
//!
//! let balancer = LoadBalancer::<Policy>::try_from_iter(["10.0.0.1:80", "10.0.0.2:80"])?;
//! let backend = balancer.select(b"", 2).expect("both count as healthy until a check fails");
//! # assert_eq!(backend.addr.to_string(), "10.0.0.1:80");
//! # Ok::<_, std::io::Error>(())
//! ```
//!
//! # Which algorithm to choose
//!
//! | algorithm | suitable if | needs |
//! |---|---|---|
//! | [`RoundRobin`](Algorithm::RoundRobin) | requests cost about the same; it is the most even | nothing |
//! | [`Random`](Algorithm::Random) | many independent balancers share the backends | nothing |
//! | [`LeastRequest`](Algorithm::LeastRequest) | requests differ in cost, or are long | [`Load::enter`] |
//! | [`PeakEwma`](Algorithm::PeakEwma) | backends differ in speed | `enter` and [`Load::responded`] |
//! | [`ConsistentHash`](Algorithm::ConsistentHash) | a key should go to the same cache as with nginx | a key |
//! | [`Maglev`](Algorithm::Maglev) | a key should go to the same cache, with an even distribution | a key |
//!
//! If in doubt, choose `LeastRequest`: it is never much worse than round robin, and much better if a backend is slow.
//! `PeakEwma` sends fewer requests to a slow backend. A backend that returns errors quickly looks fast to it, so
//! [`penalize`](Load::penalize) those responses. The hash algorithms respect weights and support bounded loads
//! ([`bound`]). With an empty key they are a round robin. The docs of each algorithm name its source.
//!
//! # How to use it
//!
//! Pass a [`PolicyConfig`] with the algorithm to Pingora together with the backends. It lives as long as the balancer.
//! The state of each backend is a [`Load`], found by address. The program updates it, and the policy reads it:
//!
//! ```
//! use std::time::{Duration, Instant};
//!
//! use lb_service::policy::{Algorithm, Policy, PolicyConfig};
//! use pingora::lb::{Backends, LoadBalancer, discovery};
//!
//! let config = PolicyConfig::new(Algorithm::PeakEwma);
//! let backends = Backends::new(discovery::Static::try_from_iter(["10.0.0.1:80", "10.0.0.2:80"])?);
//! let balancer = LoadBalancer::<Policy>::from_backends_with_config(backends, Some(config.clone()));
//! # futures::FutureExt::now_or_never(balancer.update()).unwrap().unwrap();
//!
//! // For each request:
//! let backend = balancer.select(b"", 2).expect("both count as healthy until a check fails");
//! let load = config.load(&backend.addr); // takes a lock, so a real program keeps the loads
//! let in_flight = load.enter(); // counts the request until it is dropped
//! let began = Instant::now();
//! // ... the head of the response arrives:
//! load.responded(began.elapsed(), Instant::now());
//! // ... if it is a 429 or 5xx, or has a Retry-After, or if there is no response:
//! load.penalize(Duration::from_secs(5), Instant::now());
//! // ... the request has ended:
//! drop(in_flight);
//! # assert_eq!(load.in_flight(), 0);
//! # Ok::<_, std::io::Error>(())
//! ```
//!
//! A hash algorithm needs only the key: `balancer.select(b"/images/cat.png", 2)`.
//!
//! The closure of `select_with` can reject candidates. It can also count: `load.try_enter(limit)` fails above a limit.
//! `examples/policy.rs` is a small proxy that uses all of this.
//!
//! # How it is built
//!
//! ```text
//! LoadBalancer<Policy>
//! |-- Arc<Policy>          Pingora builds a new one if a backend is added or removed or changes its weight
//! |   |-- backends         in the order of their addresses
//! |   |-- [Arc<Load>] --+  in the same order
//! |   |-- RoundRobin    |  step -> backend, a pure function             (round_robin.rs)
//! |   |-- Alias         |  random number -> backend                     (random.rs)
//! |   |-- Ring, Table   |  key -> backend                               (ketama.rs, maglev.rs)
//! |   `-- Cursor --+    |
//! `-- PolicyConfig |    |  lives as long as the balancer
//!     |-- Cursor --+    |  the same counter
//!     `-- Loads --------+  by address, as long as a reference to one exists (load.rs)
//! ```
//!
//! A pick iterates over [`Candidates`]. The first candidate is the choice of the algorithm. If the caller rejects it
//! (unhealthy, already tried, full), the algorithm takes further steps:
//!
//! - A round robin takes **further steps of the same cursor**, so the turns of a backend that is down go to the
//!   backends after it. With `a`, `b`, `c` of equal weight and `c` down, the sequence is `a b a b …`. The other
//!   backends keep their relative shares.
//! - Random draws are repeated, a ring is followed clockwise, and a table is probed further.
//!
//! If the heaviest backend is down, this could take many steps. After 4 steps per backend (16 for the hash algorithms),
//! the remaining backends are offered in a weighted random order, which is always the same for one key. Each backend is
//! offered exactly once.
//!
//! A pick without rejections costs one `fetch_add` (none with a key), one look-up, and one reference count of the `Arc`
//! that Pingora's trait requires. `LeastRequest` and `PeakEwma` also read two to four loads, and `PeakEwma` the clock.
//! There is no lock, and no allocation until the steps are used up or a backend beyond the first 128 is rejected.
//! Memory is at most 2 MiB for the period of unequal weights, 64 MiB for a ring (13 KiB for ten backends of weight 1,
//! 12 MiB if their weight is 1000), and 128 KiB for a table.

#![expect(
    clippy::indexing_slicing,
    reason = "the indexes are those of the backends of a policy; what a client sends is hashed and reduced to them"
)]

mod bounded;
mod candidates;
mod ketama;
mod least;
mod load;
mod maglev;
mod random;
mod round_robin;
mod weights;

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use pingora::lb::Backend;
use pingora::lb::selection::BackendSelection;
use pingora::protocols::l4::socket::SocketAddr;

use crate::clock::Clock;
pub use bounded::bound;
pub use candidates::Candidates;
use candidates::Walk;
use ketama::Ring;
use least::{COMPARE_ALL, Measure, Score};
use load::Loads;
pub use load::{InFlight, Load};
use maglev::Table;
use random::{Alias, Draws};
use round_robin::RoundRobin;

/// The algorithm by which a [`Policy`] chooses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// Takes the backends in turn, as evenly as the weights allow: nginx's smooth weighted round robin
    /// (`ngx_http_upstream_round_robin.c`, 2012). Weights 5, 1, 1 give `a a b a c a a`.
    #[default]
    RoundRobin,
    /// Draws a backend with a probability proportional to its weight. The alias method (Walker, 1977; Vose, 1991) makes
    /// the cost independent of the number of backends.
    Random,
    /// Takes the backend with the fewest requests in flight for its weight. Compares all backends in pools of up to
    /// four, and two that are drawn by weight in larger pools ("The power of two choices in randomized load balancing",
    /// Mitzenmacher, 2001).
    LeastRequest,
    /// Takes the backend with the shortest expected response time. Works like `LeastRequest`, but compares the peak
    /// EWMA of the time to first byte times the requests in flight. This is Finagle's and tower's `PeakEwma` with
    /// linkerd's penalties; see [`Load`].
    PeakEwma,
    /// Takes the owner of the key on a ring with 160 points per unit of weight (Karger et al., 1997; ketama, 2007).
    /// Keys map to the same backends as with nginx's `hash … consistent`. If a backend is removed, only its own keys
    /// move.
    ConsistentHash,
    /// Takes the owner of the key in a table of 65,537 entries ("Maglev", Eisenbud et al., NSDI 2016, 3.4). The
    /// distribution is more even than on a ring. If a backend is removed, its own keys move and a few others.
    Maglev,
}

/// The state of a [`Policy`] that survives changes of its backends: the algorithm, the position, and the loads.
///
/// Pass it to Pingora's `LoadBalancer::from_backends_with_config`. Without it (`try_from_iter`, `from_backends`), the
/// policy is a round robin that starts over if a backend is added or removed.
///
/// A clone shares all state: two balancers with clones advance one position and read the same loads. The default is
/// round robin with the system's clock.
#[derive(Clone, Debug)]
pub struct PolicyConfig {
    algorithm: Algorithm,
    cursor: Cursor,
    seed: u64,
    clock: Clock,
    epoch: Instant,
    loads: Loads,
}

/// One of six algorithms over a set of backends.
///
/// A `Backend::weight` is relative to the others. A backend of weight 0 is offered only after all others have been
/// rejected. If all weights are 0, they count as equal.
#[derive(Debug)]
pub struct Policy {
    algorithm: Algorithm,
    backends: Box<[Backend]>,
    /// Weights in the order of `backends`. At least one is positive.
    weights: Box<[usize]>,
    mean_weight: f64,
    /// Loads in the order of `backends`.
    loads: Box<[Arc<Load>]>,
    /// The sequence for [`Rule::RoundRobin`], for ties, and for hash algorithms without a key.
    order: RoundRobin,
    rule: Rule,
    cursor: Cursor,
    seed: u64,
    clock: Clock,
}

/// An algorithm with its lookup table.
#[derive(Debug)]
enum Rule {
    RoundRobin,
    Draws(Alias),
    /// Compares all backends.
    Least,
    TwoChoices(Alias),
    Ring(Ring),
    Table(Table),
}

/// Counts the steps taken. All selectors of a balancer share it.
#[derive(Clone, Debug, Default)]
struct Cursor(Arc<AtomicUsize>);

/// The steps that a request takes.
#[derive(Clone, Copy, Debug)]
enum Steps {
    /// Advances the shared cursor.
    Taken,
    /// Counts from this step on and leaves the shared cursor unchanged, so that the next request takes the same steps.
    Ahead(usize),
}

/// The criterion by which a policy prefers a backend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Preference {
    /// The turn in a round robin, or the order for the key.
    Order,
    /// A random draw by weight.
    Draw,
    /// Requests in flight divided by weight.
    InFlight(f64),
    /// The expected cost of a response, in seconds.
    Cost(f64),
}

// === impl Algorithm ===

impl Algorithm {
    /// All algorithms.
    pub const ALL: [Self; 6] = [
        Self::RoundRobin,
        Self::Random,
        Self::LeastRequest,
        Self::PeakEwma,
        Self::ConsistentHash,
        Self::Maglev,
    ];

    /// Whether the algorithm chooses by the key of a request.
    pub(crate) fn is_hash(self) -> bool {
        matches!(self, Self::ConsistentHash | Self::Maglev)
    }

    /// Returns the name in the configuration, such as `least_request`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::Random => "random",
            Self::LeastRequest => "least_request",
            Self::PeakEwma => "peak_ewma",
            Self::ConsistentHash => "consistent_hash",
            Self::Maglev => "maglev",
        }
    }
}

// === impl PolicyConfig ===

impl PolicyConfig {
    /// Creates a configuration with the system's clock and a random seed.
    pub fn new(algorithm: Algorithm) -> Self {
        let clock = Clock::system();
        Self {
            algorithm,
            cursor: Cursor::default(),
            seed: RandomState::new().hash_one(()),
            epoch: clock.now(),
            clock,
            loads: Loads::default(),
        }
    }

    /// Replaces the clock, for tests and simulations.
    #[must_use]
    pub fn with_clock(self, clock: Clock) -> Self {
        Self { epoch: clock.now(), clock, ..self }
    }

    /// Replaces the seed, so that the same sequence of calls gives the same picks in each run.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Replaces the algorithm and keeps the position and the loads.
    #[must_use]
    pub(crate) fn with_algorithm(self, algorithm: Algorithm) -> Self {
        Self { algorithm, ..self }
    }

    /// Returns the algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the load of the backend at this address, which the policy reads. Creates it if no reference to one
    /// exists.
    ///
    /// Takes a lock, so call it once per backend and not once per request. While a reference exists, all calls return
    /// the same load, even if no balancer has a backend at this address.
    pub fn load(&self, address: &SocketAddr) -> Arc<Load> {
        self.loads.get(address, self.epoch)
    }
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self::new(Algorithm::default())
    }
}

// === impl Policy ===

impl Policy {
    fn new(backends: &BTreeSet<Backend>, config: &PolicyConfig) -> Self {
        let backends: Box<[Backend]> = backends.iter().cloned().collect();
        let weights = weights::effective(backends.iter().map(|backend| backend.weight));
        let mean_weight = weights.iter().map(|weight| *weight as f64).sum::<f64>() / backends.len() as f64;
        let loads = backends.iter().map(|backend| config.load(&backend.addr)).collect();
        let rule = Rule::new(config.algorithm, &backends, &weights);
        let order = RoundRobin::new(if rule.takes_turns() { &weights } else { &[] });
        let PolicyConfig { algorithm, cursor, seed, clock, .. } = config.clone();
        Self { algorithm, backends, weights, mean_weight, loads, order, rule, cursor, seed, clock }
    }

    /// Returns the backends, in the order of their addresses.
    pub(crate) fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// Returns the candidates that the next request with this key will be offered if nothing changes. The shared cursor
    /// stays where it is, so requests are not affected.
    pub(crate) fn ahead(self: &Arc<Self>, key: &[u8]) -> Candidates {
        self.ahead_from(key, self.cursor.next())
    }

    /// Returns the candidates like [`ahead`](Self::ahead), for a request that begins at this step.
    pub(crate) fn ahead_from(self: &Arc<Self>, key: &[u8], step: usize) -> Candidates {
        let mut steps = Steps::Ahead(step);
        Candidates::new(self.clone(), self.walk(key, &mut steps), steps)
    }

    /// Returns the step that the next request will take.
    pub(crate) fn next_step(&self) -> usize {
        self.cursor.next()
    }

    /// Whether the choice is random, so that equal requests may go to different backends.
    pub(crate) fn is_drawn(&self) -> bool {
        matches!(self.rule, Rule::Draws(_) | Rule::TwoChoices(_))
    }

    /// Returns the criterion for the backend at this address, or `None` if there is no such backend.
    pub(crate) fn preference(&self, address: &SocketAddr) -> Option<Preference> {
        let index = self.backends.binary_search_by(|backend| backend.addr.cmp(address)).ok()?;
        Some(match (&self.rule, self.measure()) {
            (Rule::Draws(_), _) => Preference::Draw,
            (Rule::Least | Rule::TwoChoices(_), measure @ Measure::InFlight) => {
                Preference::InFlight(self.score(index, measure).value())
            }
            (Rule::Least | Rule::TwoChoices(_), measure) => {
                Preference::Cost(self.score(index, measure).value())
            }
            (Rule::RoundRobin | Rule::Ring(_) | Rule::Table(_), _) => Preference::Order,
        })
    }

    /// Takes a step and returns the backend whose turn it is, or `None` without backends.
    fn rotate(&self, steps: &mut Steps) -> Option<usize> {
        self.order.at(steps.take(&self.cursor))
    }

    /// Takes a step and returns its random numbers.
    fn draws(&self, steps: &mut Steps) -> Draws {
        Draws::new(self.seed, steps.take(&self.cursor))
    }

    /// Returns the first state of the walk for a request with this key.
    fn walk(&self, key: &[u8], steps: &mut Steps) -> Walk {
        match &self.rule {
            Rule::Draws(_) => Walk::Draws(self.draws(steps)),
            Rule::TwoChoices(_) => Walk::TwoChoices { measure: self.measure(), draws: self.draws(steps) },
            Rule::Least => Walk::Least { measure: self.measure(), start: self.rotate(steps).unwrap_or(0) },
            Rule::Ring(ring) if !key.is_empty() => Walk::ring(ring, key),
            Rule::Table(_) if !key.is_empty() => Walk::table(key),
            Rule::RoundRobin | Rule::Ring(_) | Rule::Table(_) => Walk::RoundRobin,
        }
    }

    fn measure(&self) -> Measure {
        match self.algorithm {
            Algorithm::PeakEwma => Measure::Cost(self.clock.now()),
            _ => Measure::InFlight,
        }
    }

    fn score(&self, index: usize, measure: Measure) -> Score {
        measure.score(&self.loads[index], self.weights[index], self.mean_weight)
    }
}

impl BackendSelection for Policy {
    type Iter = Candidates;

    type Config = PolicyConfig;

    fn build_with_config(backends: &BTreeSet<Backend>, config: &PolicyConfig) -> Self {
        Self::new(backends, config)
    }

    fn build(backends: &BTreeSet<Backend>) -> Self {
        Self::new(backends, &PolicyConfig::default())
    }

    /// Returns the candidates for one request. Only hash algorithms use `key`. If it is empty, they work as a round
    /// robin.
    fn iter(self: &Arc<Self>, key: &[u8]) -> Candidates {
        let mut steps = Steps::Taken;
        Candidates::new(self.clone(), self.walk(key, &mut steps), steps)
    }
}

// === impl Rule ===

impl Rule {
    fn new(algorithm: Algorithm, backends: &[Backend], weights: &[usize]) -> Self {
        match algorithm {
            Algorithm::RoundRobin => Self::RoundRobin,
            Algorithm::Random => Self::Draws(Alias::new(weights)),
            Algorithm::LeastRequest | Algorithm::PeakEwma if backends.len() <= COMPARE_ALL => Self::Least,
            Algorithm::LeastRequest | Algorithm::PeakEwma => Self::TwoChoices(Alias::new(weights)),
            Algorithm::ConsistentHash => Self::Ring(Ring::new(backends, weights)),
            Algorithm::Maglev => Self::Table(Table::new(backends, weights)),
        }
    }

    fn takes_turns(&self) -> bool {
        !matches!(self, Self::Draws(_) | Self::TwoChoices(_))
    }
}

// === impl Cursor ===

impl Cursor {
    fn advance(&self) -> usize {
        // `Relaxed` is enough, because no other memory is published through the counter.
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns the step that is taken next.
    fn next(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

// === impl Steps ===

impl Steps {
    fn take(&mut self, cursor: &Cursor) -> usize {
        match self {
            Self::Taken => cursor.advance(),
            Self::Ahead(next) => std::mem::replace(next, next.wrapping_add(1)),
        }
    }

    /// Returns the step after those counted ahead.
    fn next(self) -> Option<usize> {
        match self {
            Self::Taken => None,
            Self::Ahead(next) => Some(next),
        }
    }
}
