//! Offers the backends for one request, the best first and each exactly once.

use std::sync::Arc;
use std::vec;

use pingora::lb::Backend;
use pingora::lb::selection::BackendIter;

use super::ketama::{self, Ring};
use super::least::{Measure, Score};
use super::maglev::{self, Probe};
use super::random::{Draws, mix};
use super::{Policy, Rule, Steps};

/// The most steps of an algorithm per request and backend.
///
/// They reach every backend if weights differ by less than this factor. Otherwise, the remaining backends follow in a
/// random order.
const STEPS_PER_BACKEND: usize = 4;

/// The most steps of a hash algorithm per request and backend. They are cheap and do not reach backends evenly.
const PROBES_PER_BACKEND: usize = 16;

/// The most draws for the second of two choices. If one backend has nearly all the weight, all draws may give that
/// backend. Then there is only one choice.
const SECOND_DRAWS: usize = 8;

/// The backends for one request, each of them once. The caller takes one after the other until it accepts one, or lets
/// Pingora's `select_with` do that.
///
/// Pingora counts every candidate against `max_iterations`, so pass at least the number of backends to be offered all.
#[derive(Debug)]
pub struct Candidates {
    policy: Arc<Policy>,
    walk: Walk,
    steps: Steps,
    /// The last candidate. It counts as rejected if the caller requests another one.
    current: Option<usize>,
    rejected: IndexSet,
    /// The number of backends that have not been rejected.
    left: usize,
    steps_left: usize,
    /// Set when the steps are used up: the backends that were not offered before.
    rest: Option<vec::IntoIter<usize>>,
}

/// The state of the algorithm for this request.
#[derive(Debug)]
pub(super) enum Walk {
    /// Takes backends in turn.
    RoundRobin,
    /// Draws backends one after the other.
    Draws(Draws),
    /// Takes the least loaded of all backends. In a tie, takes the first one from `start` on, and wraps around.
    Least { measure: Measure, start: usize },
    /// Takes the less loaded of two drawn backends.
    TwoChoices { measure: Measure, draws: Draws },
    /// Follows the ring clockwise.
    Ring { point: usize, key: u64 },
    /// Probes one entry of the table after the other.
    Table { probe: Probe, key: u64 },
}

/// A set of small numbers. Numbers below 128 need no allocation.
#[derive(Debug, Default)]
struct IndexSet {
    low: u128,
    high: Vec<u128>,
}

/// Returns `indices` in random order, drawn without replacement and with a probability proportional to their weight.
/// Indices of weight 0 come last.
///
/// Each index gets the time of the first event of a Poisson process whose rate is its weight, and the times are sorted
/// (Efraimidis and Spirakis, 2006). `random` returns a random number for each index.
fn weighted_shuffle(
    indices: impl Iterator<Item = usize>,
    weight: impl Fn(usize) -> usize,
    random: impl Fn(usize) -> u64,
) -> Vec<usize> {
    let timed = |index| {
        let uniform = (random(index) >> 11) as f64 / (1u64 << 53) as f64;
        let weight = weight(index);
        (weight == 0, -(1.0 - uniform).ln() / weight.max(1) as f64, index)
    };
    let mut events: Vec<(bool, f64, usize)> = indices.map(timed).collect();
    events.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    events.into_iter().map(|(_, _, index)| index).collect()
}

// === impl Candidates ===

impl Candidates {
    pub(super) fn new(policy: Arc<Policy>, walk: Walk, steps: Steps) -> Self {
        let backends = policy.backends.len();
        let steps_left = backends.saturating_mul(walk.steps_per_backend());
        Self {
            policy,
            walk,
            steps,
            current: None,
            rejected: IndexSet::default(),
            left: backends,
            steps_left,
            rest: None,
        }
    }

    /// Returns the step at which the next request would begin, if these candidates were created by
    /// [`ahead`](Policy::ahead).
    pub(crate) fn next_step(&self) -> Option<usize> {
        self.steps.next()
    }

    /// Returns the next backend as an index of [`Policy::backends`].
    pub(crate) fn next_index(&mut self) -> Option<usize> {
        self.reject_current();
        self.current = self.advance();
        self.current
    }

    fn reject_current(&mut self) {
        if let Some(index) = self.current.take() {
            self.rejected.insert(index);
            self.left -= 1;
        }
    }

    fn advance(&mut self) -> Option<usize> {
        if self.left == 0 {
            return None;
        }
        self.search().or_else(|| self.next_of_rest())
    }

    /// Takes steps until one leads to a backend that was not rejected.
    fn search(&mut self) -> Option<usize> {
        while self.steps_left > 0 {
            self.steps_left -= 1;
            if let Some(index) = self.walk.step(&self.policy, &self.rejected, &mut self.steps)
                && !self.rejected.contains(index)
            {
                return Some(index);
            }
        }
        None
    }

    fn next_of_rest(&mut self) -> Option<usize> {
        let rest = || self.walk.rest(&self.policy, &self.rejected, &mut self.steps).into_iter();
        self.rest.get_or_insert_with(rest).next()
    }
}

impl BackendIter for Candidates {
    fn next(&mut self) -> Option<&Backend> {
        self.next_index().map(|index| &self.policy.backends[index])
    }
}

// === impl Walk ===

impl Walk {
    pub(super) fn ring(ring: &Ring, key: &[u8]) -> Self {
        let place = ketama::place(key);
        Self::Ring { point: ring.find(place), key: place.into() }
    }

    pub(super) fn table(key: &[u8]) -> Self {
        let probe = Probe::of_key(key);
        Self::Table { probe, key: probe.id() }
    }

    fn steps_per_backend(&self) -> usize {
        match self {
            Self::Ring { .. } | Self::Table { .. } => PROBES_PER_BACKEND,
            Self::RoundRobin | Self::Draws(_) | Self::Least { .. } | Self::TwoChoices { .. } => {
                STEPS_PER_BACKEND
            }
        }
    }

    /// Takes a step and returns its backend, which may have been rejected before.
    fn step(&mut self, policy: &Policy, rejected: &IndexSet, steps: &mut Steps) -> Option<usize> {
        match (self, &policy.rule) {
            (Self::Draws(draws), Rule::Draws(alias)) => alias.at(draws.next()),
            (Self::Least { measure, start }, _) => {
                if rejected.contains(*start) {
                    *start = another_start(policy, rejected, steps).unwrap_or(*start);
                }
                least(policy, rejected, *measure, *start)
            }
            (Self::TwoChoices { measure, draws }, Rule::TwoChoices(alias)) => {
                better_of_two(policy, rejected, *measure, || alias.at(draws.next()))
            }
            (Self::Ring { point, .. }, Rule::Ring(ring)) => {
                *point += 1;
                ring.at(*point - 1)
            }
            (Self::Table { probe, .. }, Rule::Table(table)) => table.next(probe),
            _ => policy.rotate(steps),
        }
    }

    /// Returns the backends that were not rejected, in a weighted random order. For a key, the order of two backends
    /// does not depend on the others (weighted rendezvous hashing).
    fn rest(&self, policy: &Policy, rejected: &IndexSet, steps: &mut Steps) -> Vec<usize> {
        let indices = (0..policy.backends.len()).filter(|index| !rejected.contains(*index));
        let weight = |index: usize| policy.backends[index].weight;
        match self {
            Self::Ring { key, .. } | Self::Table { key, .. } => weighted_shuffle(indices, weight, |index| {
                mix(key ^ maglev::name(&policy.backends[index].addr))
            }),
            _ => {
                let seed = policy.draws(steps).next();
                weighted_shuffle(indices, weight, |index| mix(seed ^ mix(index as u64)))
            }
        }
    }
}

/// Returns the backend to start from if the one whose turn it was has been rejected: the next in the round robin.
fn another_start(policy: &Policy, rejected: &IndexSet, steps: &mut Steps) -> Option<usize> {
    let mut turns = (0..STEPS_PER_BACKEND * policy.backends.len()).filter_map(|_| policy.rotate(steps));
    turns.find(|index| !rejected.contains(*index))
}

/// Returns the least loaded backend, except for those that were rejected or have weight 0.
fn least(policy: &Policy, rejected: &IndexSet, measure: Measure, start: usize) -> Option<usize> {
    let backends = policy.backends.len();
    let candidates = (start..backends).chain(0..start).filter(|index| policy.weights[*index] > 0);
    let mut best: Option<(usize, Score)> = None;
    for index in candidates.filter(|index| !rejected.contains(*index)) {
        let score = policy.score(index, measure);
        if best.is_none_or(|(_, best)| score.is_less_than(best)) {
            best = Some((index, score));
        }
    }
    best.map(|(index, _)| index)
}

/// Draws two backends and returns the less loaded one, or the first in a tie.
fn better_of_two(
    policy: &Policy,
    rejected: &IndexSet,
    measure: Measure,
    mut draw: impl FnMut() -> Option<usize>,
) -> Option<usize> {
    let first = draw().filter(|index| !rejected.contains(*index))?;
    let mut others = (0..SECOND_DRAWS).filter_map(|_| draw());
    let Some(second) = others.find(|index| *index != first && !rejected.contains(*index)) else {
        return Some(first);
    };
    let second_is_better = policy.score(second, measure).is_less_than(policy.score(first, measure));
    Some(if second_is_better { second } else { first })
}

// === impl IndexSet ===

impl IndexSet {
    const BITS: usize = u128::BITS as usize;

    fn insert(&mut self, index: usize) {
        let bit = 1 << (index % Self::BITS);
        match (index / Self::BITS).checked_sub(1) {
            None => self.low |= bit,
            Some(word) => {
                if self.high.len() <= word {
                    self.high.resize(word + 1, 0);
                }
                self.high[word] |= bit;
            }
        }
    }

    fn contains(&self, index: usize) -> bool {
        let word = match (index / Self::BITS).checked_sub(1) {
            None => self.low,
            Some(word) => self.high.get(word).copied().unwrap_or(0),
        };
        word >> (index % Self::BITS) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::Ipv4Addr;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::clock::Clock;
    use crate::policy::{Algorithm, Load, PolicyConfig};
    use pingora::lb::selection::BackendSelection;
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
    use proptest::sample::select;

    /// Returns backends from `10.0.0.0:1` on, whose addresses sort like their indices.
    fn members(weights: &[usize]) -> BTreeSet<Backend> {
        let backend = |(index, weight): (usize, &usize)| {
            let ip = Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + index as u32);
            Backend::new_with_weight(&format!("{ip}:1"), *weight).unwrap()
        };
        weights.iter().enumerate().map(backend).collect()
    }

    fn policy(weights: &[usize]) -> Arc<Policy> {
        policy_of(Algorithm::RoundRobin, weights).0
    }

    /// Returns a policy and its configuration, with a fixed seed.
    fn policy_of(algorithm: Algorithm, weights: &[usize]) -> (Arc<Policy>, PolicyConfig) {
        let config = PolicyConfig::new(algorithm).with_seed(5);
        (Arc::new(Policy::build_with_config(&members(weights), &config)), config)
    }

    fn load(config: &PolicyConfig, index: usize) -> Arc<Load> {
        config.load(&format!("10.0.0.{index}:1").parse().unwrap())
    }

    fn index_of(backend: &Backend) -> usize {
        let ip = match backend.addr.as_inet().unwrap().ip() {
            std::net::IpAddr::V4(ip) => ip,
            std::net::IpAddr::V6(_) => unreachable!("all are IPv4"),
        };
        (ip.to_bits() - u32::from(Ipv4Addr::new(10, 0, 0, 0))) as usize
    }

    /// Returns the backend of a request that rejects `down`.
    fn pick(policy: &Arc<Policy>, down: &BTreeSet<usize>) -> Option<usize> {
        pick_for(policy, b"", down)
    }

    fn pick_for(policy: &Arc<Policy>, key: &[u8], down: &BTreeSet<usize>) -> Option<usize> {
        let mut candidates = policy.iter(key);
        while let Some(backend) = candidates.next() {
            let index = index_of(backend);
            if !down.contains(&index) {
                return Some(index);
            }
        }
        None
    }

    fn key(number: usize) -> Vec<u8> {
        format!("key {number}").into_bytes()
    }

    /// Returns the shares of `picks` requests with different keys.
    fn shares_of(policy: &Arc<Policy>, backends: usize, picks: usize) -> Vec<f64> {
        let mut counts = vec![0; backends];
        for number in 0..picks {
            counts[pick_for(policy, &key(number), &BTreeSet::new()).unwrap()] += 1;
        }
        counts.into_iter().map(|count| f64::from(count) / picks as f64).collect()
    }

    /// Returns all candidates for a key, in order.
    fn order(policy: &Arc<Policy>, key: &[u8]) -> Vec<usize> {
        let mut candidates = policy.iter(key);
        let mut order = Vec::new();
        while let Some(backend) = candidates.next() {
            order.push(index_of(backend));
        }
        order
    }

    fn letters(policy: &Arc<Policy>, down: &[usize], picks: usize) -> String {
        let down = down.iter().copied().collect();
        (0..picks).map(|_| char::from(b'a' + pick(policy, &down).unwrap() as u8)).collect()
    }

    fn shares(policy: &Arc<Policy>, down: &[usize], picks: usize) -> BTreeMap<usize, usize> {
        let down = down.iter().copied().collect();
        let mut counts = BTreeMap::new();
        for _ in 0..picks {
            *counts.entry(pick(policy, &down).unwrap()).or_default() += 1;
        }
        counts
    }

    fn any_algorithm() -> impl Strategy<Value = Algorithm> {
        select(Algorithm::ALL.to_vec())
    }

    fn any_weights() -> impl Strategy<Value = Vec<usize>> {
        let weight = prop_oneof![2 => Just(0usize), 4 => 1usize..20, 2 => 1usize..=1000, 1 => any::<usize>()];
        prop_oneof![8 => vec(weight.clone(), 0..12), 1 => vec(weight, 120..300)]
    }

    #[test]
    fn turns_of_a_rejected_backend_go_to_the_next() {
        assert_eq!(letters(&policy(&[1, 1, 1]), &[2], 6), "ababab");
        assert_eq!(letters(&policy(&[1, 1, 1]), &[0], 6), "bcbcbc");
        assert_eq!(letters(&policy(&[5, 1, 1]), &[2], 6), "aabaaa");
        assert_eq!(letters(&policy(&[5, 1, 1]), &[0], 6), "bcbcbc");
    }

    #[test]
    fn light_backends_share_evenly_while_the_heavy_one_is_rejected() {
        let counts = shares(&policy(&[1000, 1, 2, 1]), &[0], 40_000);
        assert!(counts[&1].abs_diff(10_000) < 500, "{counts:?}");
        assert!(counts[&2].abs_diff(20_000) < 500, "{counts:?}");
        assert!(counts[&3].abs_diff(10_000) < 500, "{counts:?}");
    }

    #[test]
    fn a_backend_of_weight_0_is_the_last_resort() {
        let policy = policy(&[0, 1, 0, 3]);
        assert_eq!(letters(&policy, &[], 8), "dbdddbdd");
        assert_eq!(letters(&policy, &[3], 3), "bbb");
        assert_eq!(shares(&policy, &[1, 3], 100).into_keys().collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    fn a_policy_without_backends_has_no_candidates() {
        assert!(policy(&[]).iter(b"").next().is_none());
    }

    #[test]
    fn the_candidates_end_after_the_last_backend() {
        let policy = policy(&[1, 1]);
        let mut candidates = policy.iter(b"");
        assert!(candidates.next().is_some() && candidates.next().is_some());
        assert!(candidates.next().is_none() && candidates.next().is_none());
        assert_eq!(pick(&policy, &BTreeSet::new()), Some(0));
    }

    #[test]
    fn hashes_without_a_key_are_a_round_robin() {
        for algorithm in [Algorithm::ConsistentHash, Algorithm::Maglev] {
            assert_eq!(letters(&policy_of(algorithm, &[5, 1, 1]).0, &[], 7), "aabacaa");
        }
    }

    #[test]
    fn hashes_give_one_order_for_a_key() {
        for algorithm in [Algorithm::ConsistentHash, Algorithm::Maglev] {
            let policies = [(); 2].map(|()| policy_of(algorithm, &[3, 1, 2, 1]).0);
            for number in 0..100 {
                let expected = order(&policies[0], &key(number));
                assert_eq!(order(&policies[0], &key(number)), expected);
                assert_eq!(order(&policies[1], &key(number)), expected);
            }
        }
    }

    #[test]
    fn keys_stay_when_the_heavy_backend_is_rejected() {
        for algorithm in [Algorithm::ConsistentHash, Algorithm::Maglev] {
            let (policy, _) = policy_of(algorithm, &[1000, 1, 1, 1]);
            let down = BTreeSet::from([0]);
            let mut counts = BTreeMap::<usize, usize>::new();
            for number in 0..3000 {
                let picked = pick_for(&policy, &key(number), &down).unwrap();
                assert_eq!(pick_for(&policy, &key(number), &down), Some(picked));
                *counts.entry(picked).or_default() += 1;
            }
            assert!((1..=3).all(|index| counts[&index].abs_diff(1000) < 200), "{algorithm:?}: {counts:?}");
        }
    }

    /// On a ring, only the keys of the removed backend move. They move to the backends that they had while it was
    /// rejected.
    #[test]
    fn the_removal_of_a_backend_moves_few_keys() {
        for (algorithm, others) in [(Algorithm::ConsistentHash, 0.0), (Algorithm::Maglev, 0.02)] {
            let (before, after) = (policy_of(algorithm, &[1; 10]).0, policy_of(algorithm, &[1; 9]).0);
            let (mut moved, mut others_moved) = (0, 0);
            for number in 0..20_000 {
                let old = pick_for(&before, &key(number), &BTreeSet::new());
                let new = pick_for(&after, &key(number), &BTreeSet::new());
                moved += usize::from(old != new);
                others_moved += usize::from(old != Some(9) && old != new);
                if algorithm == Algorithm::ConsistentHash {
                    assert_eq!(pick_for(&before, &key(number), &BTreeSet::from([9])), new);
                }
            }
            assert!(others_moved as f64 <= others * 20_000.0, "{algorithm:?}: {others_moved}");
            assert!(moved as f64 <= (0.1 + 0.03) * 20_000.0, "{algorithm:?}: {moved}");
        }
    }

    #[test]
    fn equal_seeds_give_equal_sequences() {
        for algorithm in Algorithm::ALL {
            let sequence = |seed| {
                let config = PolicyConfig::new(algorithm).with_seed(seed);
                let policy = Arc::new(Policy::build_with_config(&members(&[3, 1, 2, 5, 1, 1]), &config));
                letters(&policy, &[3], 100)
            };
            assert_eq!(sequence(1), sequence(1));
            let drawn =
                matches!(algorithm, Algorithm::Random | Algorithm::LeastRequest | Algorithm::PeakEwma);
            assert_eq!(sequence(1) != sequence(2), drawn, "{algorithm:?}");
        }
    }

    #[test]
    fn small_pools_take_the_backend_with_the_fewest_requests_for_its_weight() {
        let (policy, config) = policy_of(Algorithm::LeastRequest, &[1, 2, 4]);
        let mut guards: Vec<_> = (0..3).map(|index| load(&config, index).enter()).collect();
        assert_eq!(order(&policy, b""), [2, 1, 0]);
        guards.extend((0..2).map(|_| load(&config, 2).enter()));
        assert_eq!(order(&policy, b""), [1, 2, 0]);
        drop(guards);
        assert_eq!(letters(&policy, &[], 7).matches('c').count(), 4);
    }

    #[test]
    fn two_choices_take_the_backend_with_fewer_requests() {
        let (policy, config) = policy_of(Algorithm::LeastRequest, &[1; 10]);
        let _busy: Vec<_> = (0..5).map(|index| load(&config, index).enter()).collect();
        let shares = shares_of(&policy, 10, 10_000);
        // A busy backend is taken only if both draws are busy: 5/10 · 4/9.
        let busy: f64 = shares[..5].iter().sum();
        assert!((busy - 2.0 / 9.0).abs() < 0.02, "{shares:?}");
    }

    #[test]
    fn draws_end_although_one_backend_has_nearly_all_the_weight() {
        let (policy, _config) = policy_of(Algorithm::LeastRequest, &[1_000_000, 1, 1, 1, 1, 1]);
        assert!(shares_of(&policy, 6, 1000)[0] > 0.99);
        assert_eq!(order(&policy, b"").len(), 6);
    }

    /// With n requests at n backends, the maximum per backend is about log log n / log 2 with two choices, and log n /
    /// log log n with one (Mitzenmacher).
    #[test]
    fn two_choices_lower_the_maximum_load() {
        let maximum = |algorithm| {
            let (policy, config) = policy_of(algorithm, &[1; 200]);
            let guards: Vec<_> =
                (0..200).map(|_| load(&config, pick(&policy, &BTreeSet::new()).unwrap()).enter()).collect();
            guards.iter().map(|guard| guard.load().in_flight()).max().unwrap()
        };
        assert!(maximum(Algorithm::LeastRequest) <= 3);
        assert!(maximum(Algorithm::Random) >= 4);
    }

    #[test]
    fn the_shortest_expected_response_time_wins() {
        let (policy, config) = policy_of(Algorithm::PeakEwma, &[1, 1, 1]);
        let now = Instant::now();
        for (index, millis) in [(0, 100), (1, 10), (2, 45)] {
            load(&config, index).responded(Duration::from_millis(millis), now);
        }
        assert_eq!(order(&policy, b""), [1, 2, 0]);
        let _four = [(); 4].map(|()| load(&config, 1).enter());
        assert_eq!(order(&policy, b""), [2, 1, 0]);
        load(&config, 2).penalize(Duration::from_secs(1), now);
        assert_eq!(order(&policy, b""), [1, 0, 2]);
    }

    #[test]
    fn a_slow_backend_gets_requests_after_its_estimate_decays() {
        let (clock, manual) = Clock::manual();
        let config = PolicyConfig::new(Algorithm::PeakEwma).with_clock(clock.clone());
        let policy = Arc::new(Policy::build_with_config(&members(&[1, 1]), &config));
        let (slow, quick) = (load(&config, 0), load(&config, 1));
        slow.responded(Duration::from_secs(1), clock.now());
        quick.responded(Duration::from_millis(20), clock.now());
        let mut seconds = 0;
        while pick(&policy, &BTreeSet::new()) != Some(0) {
            manual.advance(Duration::from_secs(1));
            quick.responded(Duration::from_millis(20), clock.now());
            seconds += 1;
        }
        // 1 s · exp(-t / 10 s) falls below 20 ms after 39.1 s.
        assert_eq!(seconds, 40);
    }

    #[test]
    fn the_shuffle_respects_the_weights() {
        let weights = [6, 3, 1, 0];
        let mut first = [0usize; 4];
        for seed in 0..10_000 {
            let order = weighted_shuffle(0..4, |index| weights[index], |index| mix(seed ^ mix(index as u64)));
            assert_eq!(order[3], 3);
            first[order[0]] += 1;
        }
        assert!(first[0].abs_diff(6000) < 200 && first[1].abs_diff(3000) < 200, "{first:?}");
    }

    proptest! {
        #[test]
        fn every_backend_is_offered_exactly_once(
            algorithm in any_algorithm(),
            weights in any_weights(),
            key in any::<[u8; 4]>(),
        ) {
            let (policy, _config) = policy_of(algorithm, &weights);
            for key in [&key[..], b"", b"key"] {
                let mut offered = order(&policy, key);
                let positive = weights.iter().filter(|weight| **weight > 0).count();
                if positive > 0 {
                    prop_assert!(offered[..positive].iter().all(|index| weights[*index] > 0));
                }
                offered.sort_unstable();
                prop_assert_eq!(offered, (0..weights.len()).collect::<Vec<_>>());
            }
        }

        #[test]
        fn every_ready_backend_gets_requests(
            algorithm in any_algorithm(),
            weights in vec(1usize..=4, 1..9),
            down in btree_set(0usize..9, 0..9),
        ) {
            let (policy, _config) = policy_of(algorithm, &weights);
            let ready: BTreeSet<usize> = (0..weights.len()).filter(|index| !down.contains(index)).collect();
            let picked: BTreeSet<usize> =
                (0..2000).filter_map(|number| pick_for(&policy, &key(number), &down)).collect();
            prop_assert_eq!(picked, ready);
        }

        #[test]
        fn idle_backends_share_by_weight(algorithm in any_algorithm(), weights in vec(1usize..=4, 1..9)) {
            let (policy, _config) = policy_of(algorithm, &weights);
            let sum: usize = weights.iter().sum();
            // Rings are less even: a share varies by its size divided by the square root of its points.
            let bound = if algorithm == Algorithm::ConsistentHash { 0.15 } else { 0.045 };
            for (share, weight) in shares_of(&policy, weights.len(), 4000).into_iter().zip(&weights) {
                let expected = *weight as f64 / sum as f64;
                prop_assert!((share - expected).abs() < bound, "{:?}: {} {}", algorithm, share, expected);
            }
        }

        #[test]
        fn every_backend_is_offered_at_any_load(
            ewma in any::<bool>(),
            loads in vec((0u64..50, 0u64..10_000), 1..12),
        ) {
            let algorithm = if ewma { Algorithm::PeakEwma } else { Algorithm::LeastRequest };
            let (policy, config) = policy_of(algorithm, &vec![1; loads.len()]);
            let mut guards = Vec::new();
            for (index, (in_flight, cost)) in loads.iter().enumerate() {
                let load = load(&config, index);
                guards.extend((0..*in_flight).map(|_| load.enter()));
                load.responded(Duration::from_millis(*cost), Instant::now());
            }
            let mut offered = order(&policy, b"");
            offered.sort_unstable();
            prop_assert_eq!(offered, (0..loads.len()).collect::<Vec<_>>());
        }

        #[test]
        fn ready_backends_keep_their_shares(
            weights in vec(1usize..5, 2..8),
            down in btree_set(0usize..8, 0..7),
        ) {
            let ready: usize = (0..weights.len()).filter(|index| !down.contains(index)).map(|i| weights[i]).sum();
            let policy = policy(&weights);
            if ready == 0 {
                prop_assert_eq!(pick(&policy, &down), None);
            } else {
                let down: Vec<usize> = down.into_iter().collect();
                for (index, count) in shares(&policy, &down, ready * 10) {
                    prop_assert_eq!(count, weights[index] * 10);
                }
            }
        }

        #[test]
        fn an_index_set_contains_exactly_the_inserted_numbers(inserted in btree_set(0usize..400, 0..50)) {
            let mut set = IndexSet::default();
            for index in &inserted {
                set.insert(*index);
            }
            prop_assert!((0..500).all(|index| set.contains(index) == inserted.contains(&index)));
        }
    }
}
