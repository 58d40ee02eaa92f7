//! Who is next: six selection algorithms for Pingora's `LoadBalancer`.
//!
//! [`Policy`] implements Pingora's [`BackendSelection`] and works in any Pingora program. Without a configuration it is a
//! smooth weighted round robin:
//!
//! ```
//! use lb_service::Policy;
//! use pingora::lb::LoadBalancer;
//!
//! let balancer = LoadBalancer::<Policy>::try_from_iter(["10.0.0.1:80", "10.0.0.2:80"])?;
//! let backend = balancer.select(b"", 2).expect("both are taken for healthy until a check fails");
//! # assert_eq!(backend.addr.to_string(), "10.0.0.1:80");
//! # Ok::<_, std::io::Error>(())
//! ```
//!
//! # Which one
//!
//! | algorithm | choose it when | it needs |
//! |---|---|---|
//! | [`RoundRobin`](Algorithm::RoundRobin) | requests cost about the same and backends are known; the most even | nothing |
//! | [`Random`](Algorithm::Random) | many balancers that know nothing of each other share the backends | nothing |
//! | [`LeastRequest`](Algorithm::LeastRequest) | requests cost very different amounts, or are long | [`enter`](Load::enter) |
//! | [`PeakEwma`](Algorithm::PeakEwma) | backends are of different speed, or slow at times | `enter`, [`answered`](Load::answered) |
//! | [`ConsistentHash`](Algorithm::ConsistentHash) | the same key should meet the same cache, as in nginx | a key |
//! | [`Maglev`](Algorithm::Maglev) | the same, more even and at the same cost for any number of backends | a key |
//!
//! In doubt take `LeastRequest`: it never does much worse than round robin, and much better when a backend is slow.
//! `PeakEwma` sends a slow backend less, but any backend that answers errors quickly looks fast to it:
//! [`penalize`](Load::penalize) those answers. The hashes take weights as the others do, and both can have bounded loads
//! ([`bound`]). Without a key (an empty one) they are a round robin. Each algorithm names its source.
//!
//! # How to feed it
//!
//! The algorithm goes into a [`PolicyConfig`], which is given to Pingora with the backends and lives as long as the
//! balancer. What each backend is doing is kept in a [`Load`], by address. The program tells it, and the policy looks at
//! it:
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
//! let backend = balancer.select(b"", 2).expect("both are taken for healthy until a check fails");
//! let load = config.load(&backend.addr); // takes a lock: a real program keeps one for each backend
//! let in_flight = load.enter(); // counts until it is dropped, whatever becomes of the request
//! let began = Instant::now();
//! // ... the head of the answer arrives:
//! load.answered(began.elapsed(), Instant::now());
//! // ... and if it is a 429 or 5xx, or says Retry-After, or if there is no answer at all:
//! load.penalize(Duration::from_secs(5), Instant::now());
//! // ... the request has ended:
//! drop(in_flight);
//! # assert_eq!(load.in_flight(), 0);
//! # Ok::<_, std::io::Error>(())
//! ```
//!
//! A hash only needs the key: `balancer.select(b"/images/cat.png", 2)`.
//!
//! Candidates are refused in the closure of `select_with`, which may count too: `load.try_enter(limit)` lets nobody in above a
//! limit. `examples/policy.rs` is a small proxy with all of this.
//!
//! # How it is made
//!
//! ```text
//! LoadBalancer<Policy>
//! |-- Arc<Policy>          built anew by Pingora whenever a backend comes, goes or changes its weight
//! |   |-- backends         in the order of their addresses
//! |   |-- [Arc<Load>] --+  in the same order
//! |   |-- RoundRobin    |  step -> backend, a pure function             (round_robin.rs)
//! |   |-- Alias         |  random number -> backend                     (random.rs)
//! |   |-- Ring, Table   |  key -> backend                               (ketama.rs, maglev.rs)
//! |   `-- Cursor --+    |
//! `-- PolicyConfig |    |  lives as long as the balancer
//!     |-- Cursor --+    |  the same counter
//!     `-- Loads --------+  by address, for as long as anybody holds them (load.rs)
//! ```
//!
//! A pick goes through [`Candidates`]: what the algorithm says, and when the caller refuses that backend (unhealthy, already
//! tried, full), what it says next. A round robin takes **further steps of the same cursor**, so the turns of a backend
//! that is down go to those that would have come next: with `a`, `b`, `c` of equal weight and `c` down the sequence is
//! `a b a b …`, and backends that are left keep their shares. Random numbers are drawn again, a ring is followed clockwise, a
//! table is probed further. After some steps for each backend (4, for the hashes 16) it stops walking, which could be
//! long when the heaviest is down, and offers the others in a weighted random order; for a key it is always the same
//! one. Each backend is offered exactly once.
//!
//! Cost of a pick that is not refused: one `fetch_add` (none for a key), one look-up, one reference count of the `Arc` that
//! Pingora's trait demands; `LeastRequest` and `PeakEwma` read two to four loads, `PeakEwma` the clock. No lock, and no
//! allocation before the walk has ended or a backend beyond the first 128 has been refused. Memory: at most 2 MiB for the
//! period of unequal weights, 64 MiB for a ring (13 KiB for ten backends of weight 1, 12 MiB if their weight is 1000),
//! 128 KiB for a table.

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

/// How a [`Policy`] chooses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// Each in turn, as evenly spread as the weights allow: nginx's smooth weighted round robin
    /// (`ngx_http_upstream_round_robin.c`, 2012), with weights 5, 1, 1 `a a b a c a a`.
    #[default]
    RoundRobin,
    /// Each with a chance proportional to its weight. Drawn by the alias method (Walker, 1977; Vose, 1991), so the
    /// number of backends does not matter.
    Random,
    /// The one with the fewest requests in flight for its weight: of all in pools of up to four backends, of two that
    /// are drawn by weight in larger ones ("The power of two choices in randomized load balancing", Mitzenmacher, 2001).
    LeastRequest,
    /// The one that is expected to answer soonest: as `LeastRequest`, by the peak EWMA of the time to the first byte
    /// times the requests in flight. Finagle's and tower's `PeakEwma`, with penalties as linkerd has them; see [`Load`].
    PeakEwma,
    /// The owner of the key on a ring of 160 points for each unit of weight (Karger et al., 1997; ketama, 2007). Keys
    /// meet the same backends as with nginx's `hash … consistent`. When a backend leaves, only its own keys move.
    ConsistentHash,
    /// The owner of the key in a table of 65,537 entries ("Maglev", Eisenbud et al., NSDI 2016, 3.4): more even than
    /// a ring. When a backend leaves, its own keys move, and a few others.
    Maglev,
}

/// What a [`Policy`] keeps while its backends change: the algorithm, the position, and what each backend is doing.
///
/// Given to Pingora's `LoadBalancer::from_backends_with_config`. Without it (`try_from_iter`,
/// `from_backends`) the policy is a round robin that begins anew when a backend comes or goes.
///
/// A clone shares all of it: two balancers that are given clones take turns, and see the same loads. The default is
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
/// A `Backend::weight` is a share relative to the others. A backend of weight 0 is only offered when every
/// other one has been refused; if all weights are 0 they are taken for equal.
#[derive(Debug)]
pub struct Policy {
    algorithm: Algorithm,
    backends: Box<[Backend]>,
    /// In the same order; at least one is positive.
    weights: Box<[usize]>,
    mean_weight: f64,
    /// In the same order.
    loads: Box<[Arc<Load>]>,
    /// For [`Rule::Turns`], for the first of equals, and for the hashes when there is no key.
    order: RoundRobin,
    rule: Rule,
    cursor: Cursor,
    seed: u64,
    clock: Clock,
}

/// An algorithm, with what it looks up.
#[derive(Debug)]
enum Rule {
    Turns,
    Draws(Alias),
    /// Compares all.
    Least,
    TwoChoices(Alias),
    Ring(Ring),
    Table(Table),
}

/// Counts the steps that were taken; shared by all selectors of a balancer.
#[derive(Clone, Debug, Default)]
struct Cursor(Arc<AtomicUsize>);

/// The steps that a request takes.
#[derive(Clone, Copy, Debug)]
enum Steps {
    /// Those that are next; nobody else takes them then.
    Taken,
    /// Those that would be next, from this one on. They are left to the next request.
    Ahead(usize),
}

/// By what a policy prefers a backend to others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Preference {
    /// Whose turn comes first, or who is first in the order of the key.
    Order,
    /// A draw by weight.
    Draw,
    /// Requests in flight over weight.
    InFlight(f64),
    /// What an answer is expected to cost, in seconds.
    Cost(f64),
}

// === impl Algorithm ===

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::RoundRobin,
        Self::Random,
        Self::LeastRequest,
        Self::PeakEwma,
        Self::ConsistentHash,
        Self::Maglev,
    ];

    /// Whether it chooses by the key of a request.
    pub fn is_hash(self) -> bool {
        matches!(self, Self::ConsistentHash | Self::Maglev)
    }

    /// Its name in the configuration, such as `least_request`.
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
    /// This algorithm with the system's clock and a seed that is different each time.
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

    /// The same with another clock, for tests and simulations.
    #[must_use]
    pub fn with_clock(self, clock: Clock) -> Self {
        Self { epoch: clock.now(), clock, ..self }
    }

    /// The same with this seed: picks that are made in the same order are then the same in each run.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// The same with another algorithm: its position and what each backend is doing stay.
    #[must_use]
    pub fn with_algorithm(self, algorithm: Algorithm) -> Self {
        Self { algorithm, ..self }
    }

    /// The algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// What the backend at this address is doing; the policy looks at the same. Made when nobody holds it yet.
    ///
    /// Takes a lock: ask once for each backend and keep the answer, not once for each request. As long as it is kept,
    /// the load is the same one, even while no balancer has a backend at this address.
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

    /// The candidates that the next request with this key will be offered, if nothing changes until then. Looking at them
    /// takes no turn: requests go where they would have gone.
    pub fn ahead(self: &Arc<Self>, key: &[u8]) -> Candidates {
        self.ahead_from(key, self.cursor.next())
    }

    /// The same, for a request that takes its steps from this one on.
    pub(crate) fn ahead_from(self: &Arc<Self>, key: &[u8], step: usize) -> Candidates {
        let mut steps = Steps::Ahead(step);
        Candidates::new(self.clone(), self.walk(key, &mut steps), steps)
    }

    /// The step that the next request takes.
    pub(crate) fn next_step(&self) -> usize {
        self.cursor.next()
    }

    /// Whether random numbers decide, so that two requests of the same kind may go to different backends.
    pub fn is_drawn(&self) -> bool {
        matches!(self.rule, Rule::Draws(_) | Rule::TwoChoices(_))
    }

    /// By what the backend at this address is preferred, or not; none if there is no such backend.
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
            (Rule::Turns | Rule::Ring(_) | Rule::Table(_), _) => Preference::Order,
        })
    }

    /// Whose turn it is now; the next call is about the next turn. `None` without backends.
    fn turn(&self, steps: &mut Steps) -> Option<usize> {
        self.order.at(steps.take(&self.cursor))
    }

    /// The random numbers of the next step.
    fn draws(&self, steps: &mut Steps) -> Draws {
        Draws::new(self.seed, steps.take(&self.cursor))
    }

    /// Where a request with this key begins.
    fn walk(&self, key: &[u8], steps: &mut Steps) -> Walk {
        match &self.rule {
            Rule::Draws(_) => Walk::Draws(self.draws(steps)),
            Rule::TwoChoices(_) => Walk::TwoChoices { measure: self.measure(), draws: self.draws(steps) },
            Rule::Least => Walk::Least { measure: self.measure(), start: self.turn(steps).unwrap_or(0) },
            Rule::Ring(ring) if !key.is_empty() => Walk::ring(ring, key),
            Rule::Table(_) if !key.is_empty() => Walk::table(key),
            Rule::Turns | Rule::Ring(_) | Rule::Table(_) => Walk::Turns,
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

    /// The candidates for one request. Only the hashes look at `key`; an empty one is no key, and they take turns
    /// then as in a round robin.
    fn iter(self: &Arc<Self>, key: &[u8]) -> Candidates {
        let mut steps = Steps::Taken;
        Candidates::new(self.clone(), self.walk(key, &mut steps), steps)
    }
}

// === impl Rule ===

impl Rule {
    fn new(algorithm: Algorithm, backends: &[Backend], weights: &[usize]) -> Self {
        match algorithm {
            Algorithm::RoundRobin => Self::Turns,
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
        // Only the count matters, nothing is published through it.
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    /// The step that is taken next.
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

    /// The step after those that were looked at.
    fn next(self) -> Option<usize> {
        match self {
            Self::Taken => None,
            Self::Ahead(next) => Some(next),
        }
    }
}
