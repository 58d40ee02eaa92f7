//! Consistent hashing with a table: Maglev.
//!
//! The source is Eisenbud et al., "Maglev: a fast and reliable software network load balancer", NSDI 2016, section 3.4.
//! Each backend has its own permutation of the entries of a table. In turn, each backend takes the first free entry of
//! its permutation. A key is hashed to an entry. A look-up costs the same for any number of backends, and the
//! distribution is more even than on a ring. If a backend is removed, its entries change their owner and a few others
//! do, too.
//!
//! Turns follow the weights as in Envoy (`source/extensions/load_balancing_policies/maglev/maglev_lb.cc`): the heaviest
//! backend takes one entry in each round, a backend of a third of that weight takes one in every third round, and in
//! the first round each takes one. So even a backend of a very small weight has an entry. The number of entries of a
//! backend is exact to one, and that of the heaviest backends to one per other backend.
//!
//! Every instance with the same backends has the same table, on any machine: addresses and keys are hashed with XXH3
//! (128 bits, [`ADDRESS_SEED`] and [`KEY_SEED`]), and backends take turns in the order of their addresses.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use pingora::lb::Backend;
use pingora::protocols::l4::socket::SocketAddr;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

/// The size of the table: the small one of the paper, a prime. Shares are within 1 % for up to about 600 backends.
const ENTRIES: usize = 65_537;

/// The seed for hashes of addresses. The low 64 bits of a hash modulo 65,537 are the first entry of the backend's
/// permutation, and the high 64 bits modulo 65,536, plus 1, are the distance to the next entry.
const ADDRESS_SEED: u64 = 0;

/// The seed for hashes of keys, which give the entry and the distance in the same way.
const KEY_SEED: u64 = 1;

/// Returns a hash of an address that is equal on all machines.
pub(super) fn name(address: &SocketAddr) -> u64 {
    xxh3_64(address.to_string().as_bytes())
}

/// The owner of each entry.
#[derive(Debug)]
pub(super) struct Table {
    /// The backend of each entry. Empty without backends.
    owners: Box<[u16]>,
}

/// The permutation of the entries for a key or a backend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    entry: usize,
    distance: usize,
}

/// A backend that takes entries.
struct Taker {
    probe: Probe,
    weight: u128,
    taken: u128,
}

// === impl Probe ===

impl Probe {
    /// Returns the permutation for a key.
    pub(super) fn of_key(key: &[u8]) -> Self {
        Self::new(xxh3_128_with_seed(key, KEY_SEED))
    }

    fn of_address(address: &SocketAddr) -> Self {
        Self::new(xxh3_128_with_seed(address.to_string().as_bytes(), ADDRESS_SEED))
    }

    /// Returns a number that differs for most keys.
    pub(super) fn id(self) -> u64 {
        (self.entry as u64) << 32 | self.distance as u64
    }

    fn new(hash: u128) -> Self {
        // Both remainders are below 2^17. The number of entries is a prime, so any distance visits all entries.
        let entry = (hash as u64 % ENTRIES as u64) as usize;
        let distance = ((hash >> 64) as u64 % (ENTRIES as u64 - 1)) as usize + 1;
        Self { entry, distance }
    }

    /// Returns the current entry and advances to the next.
    fn advance(&mut self) -> usize {
        let entry = self.entry;
        self.entry = (entry + self.distance) % ENTRIES;
        entry
    }
}

// === impl Table ===

impl Table {
    /// Creates a table of backends with these weights. Backends of weight 0 have no entry, and neither have those after
    /// the first 65,536.
    pub(super) fn new(backends: &[Backend], weights: &[usize]) -> Self {
        let heaviest = weights.iter().copied().max().unwrap_or(0) as u128;
        let mut takers: Vec<Taker> = backends.iter().zip(weights).map(Taker::new).collect();
        // The next turns, ordered by round and then by address.
        let mut turns: BinaryHeap<Reverse<(u128, u16)>> = (0..=u16::MAX)
            .zip(weights)
            .filter(|(_, weight)| **weight > 0)
            .map(|(index, _)| Reverse((1, index)))
            .collect();
        let mut owners: Vec<Option<u16>> = vec![None; if turns.is_empty() { 0 } else { ENTRIES }];
        for _ in 0..owners.len() {
            if let Some(Reverse((round, index))) = turns.pop() {
                let taker = &mut takers[usize::from(index)];
                taker.take(&mut owners, index);
                turns.push(Reverse((taker.next_round(round, heaviest), index)));
            }
        }
        Self { owners: owners.into_iter().flatten().collect() }
    }

    /// Returns the owner of the current entry of a probe and advances the probe. `None` without backends.
    pub(super) fn next(&self, probe: &mut Probe) -> Option<usize> {
        self.owners.get(probe.advance()).copied().map(usize::from)
    }
}

// === impl Taker ===

impl Taker {
    fn new((backend, weight): (&Backend, &usize)) -> Self {
        Self { probe: Probe::of_address(&backend.addr), weight: *weight as u128, taken: 0 }
    }

    /// Takes the first free entry of the permutation. There must be one.
    fn take(&mut self, owners: &mut [Option<u16>], index: u16) {
        let mut entry = self.probe.advance();
        while owners[entry].is_some() {
            entry = self.probe.advance();
        }
        owners[entry] = Some(index);
        self.taken += 1;
    }

    /// Returns the next round in which this backend takes an entry: the first in which its weight times the round
    /// covers the entries it has taken.
    fn next_round(&self, round: u128, heaviest: u128) -> u128 {
        (self.taken * heaviest).div_ceil(self.weight).max(round + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert, prop_assume, proptest};

    fn backends(count: usize) -> Vec<Backend> {
        let backend = |index| Backend::new(&format!("10.0.{}.{}:80", index / 200, index % 200)).unwrap();
        (0..count).map(backend).collect()
    }

    fn table(weights: &[usize]) -> Table {
        Table::new(&backends(weights.len()), weights)
    }

    fn entries(table: &Table, backends: usize) -> Vec<usize> {
        let mut counts = vec![0; backends];
        for owner in &table.owners {
            counts[usize::from(*owner)] += 1;
        }
        counts
    }

    /// Envoy's original loop, for comparison.
    fn envoy(backends: &[Backend], weights: &[usize]) -> Vec<u16> {
        let heaviest = *weights.iter().max().unwrap() as f64;
        let mut probes: Vec<Probe> =
            backends.iter().map(|backend| Probe::of_address(&backend.addr)).collect();
        let mut targets = vec![0.0; weights.len()];
        let mut owners = vec![None; ENTRIES];
        let mut filled = 0;
        for round in 1.. {
            for (index, weight) in weights.iter().enumerate() {
                if filled == ENTRIES {
                    return owners.into_iter().map(Option::unwrap).collect();
                }
                if f64::from(round) * (*weight as f64) < targets[index] {
                    continue;
                }
                targets[index] += heaviest;
                let mut entry = probes[index].advance();
                while owners[entry].is_some() {
                    entry = probes[index].advance();
                }
                owners[entry] = Some(index as u16);
                filled += 1;
            }
        }
        unreachable!("the rounds have no end")
    }

    #[test]
    fn the_table_equals_that_of_envoy() {
        for weights in [vec![1; 7], vec![5, 1, 1], vec![3, 7, 2, 11], vec![1000, 1, 999, 2]] {
            assert!(table(&weights).owners[..] == envoy(&backends(weights.len()), &weights), "{weights:?}");
        }
    }

    #[test]
    fn the_table_never_changes_between_versions() {
        let owners: Vec<u8> = table(&[1, 2, 3]).owners.iter().map(|owner| *owner as u8).collect();
        assert_eq!(crc32fast::hash(&owners), TABLE_OF_1_2_3);
        assert_eq!(Probe::of_key(b"a key").entry, 58_569);
    }

    /// CRC-32 of the owners for weights 1, 2, 3. If this changes, clients move to other backends in an upgrade.
    const TABLE_OF_1_2_3: u32 = 846_902_952;

    #[test]
    fn equal_weights_have_equal_numbers_of_entries() {
        for backends in [1, 2, 10, 100, 1000] {
            let entries = entries(&table(&vec![1; backends]), backends);
            let (min, max) = (entries.iter().min().unwrap(), entries.iter().max().unwrap());
            assert!(max - min <= 1, "{backends}: {min} to {max}");
        }
    }

    #[test]
    fn entries_follow_the_weights() {
        let entries = entries(&table(&[1, 2, 3, 0, 1000]), 5);
        for (count, weight) in entries.into_iter().zip([1, 2, 3, 0, 1000]) {
            assert!(
                (count as f64 - ENTRIES as f64 * weight as f64 / 1006.0).abs() <= 4.0,
                "{weight}: {count}"
            );
        }
    }

    #[test]
    fn a_tiny_weight_still_has_an_entry() {
        assert_eq!(entries(&table(&[1, usize::MAX, 1]), 3), [1, ENTRIES - 2, 1]);
    }

    #[test]
    fn a_table_without_backends_has_no_owner() {
        assert_eq!(table(&[]).next(&mut Probe::of_key(b"a")), None);
        assert_eq!(table(&[0, 0]).next(&mut Probe::of_key(b"a")), None);
    }

    /// Section 5.3 of the paper: if the table is a hundred times as large as the number of backends, few entries change
    /// besides those of the removed backend.
    #[test]
    fn the_removal_of_a_backend_moves_few_other_keys() {
        for backends in [3, 10, 100] {
            let weights = vec![1; backends];
            let mut without = weights.clone();
            without[1] = 0;
            let (before, after) = (table(&weights), table(&without));
            let moved = before.owners.iter().zip(&after.owners).filter(|(a, b)| **a != 1 && a != b).count();
            let share = moved as f64 / ENTRIES as f64;
            assert!(share < 0.03, "{backends}: {share}");
        }
    }

    #[test]
    fn the_keys_of_a_rejected_backend_spread_over_all_others() {
        let table = table(&[1; 5]);
        let mut counts = [0usize; 5];
        for key in 0..50_000 {
            let mut probe = Probe::of_key(format!("key {key}").as_bytes());
            if table.next(&mut probe) == Some(2) {
                let next =
                    std::iter::repeat_with(|| table.next(&mut probe).unwrap()).find(|owner| *owner != 2);
                counts[next.unwrap()] += 1;
            }
        }
        assert!([0, 1, 3, 4].iter().all(|owner| counts[*owner].abs_diff(2500) < 250), "{counts:?}");
    }

    #[test]
    fn a_probe_visits_every_entry() {
        let mut probe = Probe::of_key(b"any");
        let met: std::collections::BTreeSet<usize> = (0..ENTRIES).map(|_| probe.advance()).collect();
        assert_eq!(met.len(), ENTRIES);
    }

    proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(32))]

        #[test]
        fn every_entry_has_an_owner_for_any_weights(weights in vec(any::<usize>(), 1..20), key in any::<u64>()) {
            prop_assume!(weights.iter().any(|weight| *weight > 0));
            let table = table(&weights);
            prop_assert!(table.owners.len() == ENTRIES);
            let owner = table.next(&mut Probe::of_key(&key.to_le_bytes())).unwrap();
            prop_assert!(weights[owner] > 0);
        }
    }
}
