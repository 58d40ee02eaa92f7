//! The backends for one request, best first, each exactly once.

use std::sync::Arc;
use std::vec;

use pingora::lb::Backend;
use pingora::lb::selection::BackendIter;

use super::Policy;

/// Steps of the cursor that one request takes at most, for each backend there is.
///
/// Enough to meet every backend while weights differ by less than this factor; beyond it the remaining ones
/// follow in a random order.
const STEPS_PER_BACKEND: usize = 4;

/// The backends for one request. Pingora's `select_with` goes through it until the caller accepts one.
///
/// Pingora counts what it is offered against `max_iterations`; the number of backends is enough to be offered
/// all.
#[derive(Debug)]
pub struct Candidates {
    policy: Arc<Policy>,
    /// The one offered last, which counts as refused when another one is asked for.
    current: Option<usize>,
    refused: IndexSet,
    /// How many have not been refused yet.
    left: usize,
    steps_left: usize,
    /// Set when the steps are used up: all that were not offered before.
    rest: Option<vec::IntoIter<usize>>,
}

/// A set of small numbers that needs no allocation for those below 128.
#[derive(Debug, Default)]
struct IndexSet {
    low: u128,
    high: Vec<u128>,
}

/// The order in which `indices` come when each is drawn, without being put back, with a chance proportional
/// to its weight. Those of weight 0 come last.
///
/// Each gets the time of its first event in a Poisson process of its weight; the earliest is first
/// (Efraimidis and Spirakis, 2006).
fn weighted_shuffle(
    indices: impl Iterator<Item = usize>,
    weight: impl Fn(usize) -> usize,
    seed: u64,
) -> Vec<usize> {
    let timed = |index| {
        let uniform = (mix(seed ^ mix(index as u64)) >> 11) as f64 / (1u64 << 53) as f64;
        let weight = weight(index);
        (weight == 0, -(1.0 - uniform).ln() / weight.max(1) as f64, index)
    };
    let mut events: Vec<(bool, f64, usize)> = indices.map(timed).collect();
    events.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    events.into_iter().map(|(_, _, index)| index).collect()
}

/// SplitMix64: scatters consecutive numbers over all 64 bits.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

// === impl Candidates ===

impl Candidates {
    pub(super) fn new(policy: Arc<Policy>) -> Self {
        let backends = policy.backends.len();
        Self {
            policy,
            current: None,
            refused: IndexSet::default(),
            left: backends,
            steps_left: backends.saturating_mul(STEPS_PER_BACKEND),
            rest: None,
        }
    }

    fn refuse_current(&mut self) {
        if let Some(index) = self.current.take() {
            self.refused.insert(index);
            self.left -= 1;
        }
    }

    fn advance(&mut self) -> Option<usize> {
        if self.left == 0 {
            return None;
        }
        self.walk().or_else(|| self.rest.get_or_insert_with(|| remaining(&self.policy, &self.refused)).next())
    }

    /// Takes steps of the cursor until one is the turn of a backend that was not refused.
    fn walk(&mut self) -> Option<usize> {
        while self.steps_left > 0 {
            self.steps_left -= 1;
            if let Some(index) = self.policy.step()
                && !self.refused.contains(index)
            {
                return Some(index);
            }
        }
        None
    }
}

impl BackendIter for Candidates {
    fn next(&mut self) -> Option<&Backend> {
        self.refuse_current();
        self.current = self.advance();
        self.current.map(|index| &self.policy.backends[index])
    }
}

fn remaining(policy: &Policy, refused: &IndexSet) -> vec::IntoIter<usize> {
    let indices = (0..policy.backends.len()).filter(|index| !refused.contains(*index));
    let seed = policy.cursor.advance() as u64;
    weighted_shuffle(indices, |index| policy.backends[index].weight, seed).into_iter()
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

    use super::*;
    use pingora::lb::selection::BackendSelection;
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

    /// Backends `10.0.0.0:1` and following, so that they keep their order.
    fn policy(weights: &[usize]) -> Arc<Policy> {
        let backend = |(index, weight): (usize, &usize)| {
            let ip = Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + index as u32);
            Backend::new_with_weight(&format!("{ip}:1"), *weight).unwrap()
        };
        Arc::new(Policy::build(&weights.iter().enumerate().map(backend).collect::<BTreeSet<_>>()))
    }

    fn index_of(backend: &Backend) -> usize {
        let ip = match backend.addr.as_inet().unwrap().ip() {
            std::net::IpAddr::V4(ip) => ip,
            std::net::IpAddr::V6(_) => unreachable!("all are IPv4"),
        };
        (ip.to_bits() - u32::from(Ipv4Addr::new(10, 0, 0, 0))) as usize
    }

    /// What a request gets that refuses `down`.
    fn pick(policy: &Arc<Policy>, down: &BTreeSet<usize>) -> Option<usize> {
        let mut candidates = policy.iter(b"");
        while let Some(backend) = candidates.next() {
            let index = index_of(backend);
            if !down.contains(&index) {
                return Some(index);
            }
        }
        None
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

    fn any_weights() -> impl Strategy<Value = Vec<usize>> {
        let weight = prop_oneof![2 => Just(0usize), 4 => 1usize..20, 2 => 1usize..=1000, 1 => any::<usize>()];
        prop_oneof![8 => vec(weight.clone(), 0..12), 1 => vec(weight, 120..300)]
    }

    #[test]
    fn turns_of_a_refused_backend_go_to_the_next() {
        assert_eq!(letters(&policy(&[1, 1, 1]), &[2], 6), "ababab");
        assert_eq!(letters(&policy(&[1, 1, 1]), &[0], 6), "bcbcbc");
        assert_eq!(letters(&policy(&[5, 1, 1]), &[2], 6), "aabaaa");
        assert_eq!(letters(&policy(&[5, 1, 1]), &[0], 6), "bcbcbc");
    }

    #[test]
    fn rare_backends_share_evenly_while_the_heavy_one_is_refused() {
        let counts = shares(&policy(&[1000, 1, 2, 1]), &[0], 40_000);
        assert!(counts[&1].abs_diff(10_000) < 500, "{counts:?}");
        assert!(counts[&2].abs_diff(20_000) < 500, "{counts:?}");
        assert!(counts[&3].abs_diff(10_000) < 500, "{counts:?}");
    }

    #[test]
    fn weight_0_is_the_last_resort() {
        let policy = policy(&[0, 1, 0, 3]);
        assert_eq!(letters(&policy, &[], 8), "dbdddbdd");
        assert_eq!(letters(&policy, &[3], 3), "bbb");
        assert_eq!(shares(&policy, &[1, 3], 100).into_keys().collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    fn no_backends_no_candidates() {
        assert!(policy(&[]).iter(b"").next().is_none());
    }

    #[test]
    fn after_the_end_there_is_nothing_more() {
        let policy = policy(&[1, 1]);
        let mut candidates = policy.iter(b"");
        assert!(candidates.next().is_some() && candidates.next().is_some());
        assert!(candidates.next().is_none() && candidates.next().is_none());
        assert_eq!(pick(&policy, &BTreeSet::new()), Some(0));
    }

    #[test]
    fn shuffle_keeps_the_shares() {
        let weights = [6, 3, 1, 0];
        let mut first = [0usize; 4];
        for seed in 0..10_000 {
            let order = weighted_shuffle(0..4, |index| weights[index], seed);
            assert_eq!(order[3], 3);
            first[order[0]] += 1;
        }
        assert!(first[0].abs_diff(6000) < 200 && first[1].abs_diff(3000) < 200, "{first:?}");
    }

    proptest! {
        #[test]
        fn every_backend_is_offered_exactly_once(weights in any_weights()) {
            let policy = policy(&weights);
            for _ in 0..3 {
                let mut candidates = policy.iter(b"");
                let mut offered = Vec::new();
                while let Some(backend) = candidates.next() {
                    offered.push(index_of(backend));
                }
                let positive = weights.iter().filter(|weight| **weight > 0).count();
                if positive > 0 {
                    prop_assert!(offered[..positive].iter().all(|index| weights[*index] > 0));
                }
                offered.sort_unstable();
                prop_assert_eq!(offered, (0..weights.len()).collect::<Vec<_>>());
            }
        }

        #[test]
        fn ready_ones_keep_their_shares(
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
        fn index_set_is_a_set(inserted in btree_set(0usize..400, 0..50)) {
            let mut set = IndexSet::default();
            for index in &inserted {
                set.insert(*index);
            }
            prop_assert!((0..500).all(|index| set.contains(index) == inserted.contains(&index)));
        }
    }
}
