//! Random numbers, and random backends with a probability proportional to their weight.
//!
//! The numbers are those of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
//! Each request takes one step of a counter that all requests of a balancer share, and its numbers follow from that
//! step and the seed. There is no state per thread, and equal seeds give equal sequences.
//!
//! The alias method draws in constant time (Walker, "An efficient method for generating discrete random variables with
//! general distributions", 1977; built as by Vose, 1991). The weights fill `n` columns of equal height. Each column has
//! a piece of its own backend, and a piece of one other backend fills the rest. A random number selects the column and
//! the height in it.

use super::weights::scaled;

/// `2^64 / φ`, rounded to odd: the step of SplitMix64's state.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The random numbers of one request.
#[derive(Clone, Debug)]
pub(super) struct Draws(u64);

/// A weighted choice among backends.
#[derive(Debug)]
pub(super) enum Alias {
    /// All weights are equal: this many backends.
    Equal(usize),
    /// One column per backend.
    Columns(Box<[Column]>),
}

/// The piece of a column that belongs to its own backend, and the owner of the rest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    /// The size of the own piece, in units of `2^-64` of the column's height.
    own: u64,
    other: u32,
}

/// SplitMix64: scatters consecutive numbers over all 64 bits.
pub(super) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(GAMMA);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

// === impl Draws ===

impl Draws {
    /// Returns the random numbers of the request that took this step.
    pub(super) fn new(seed: u64, step: usize) -> Self {
        Self(mix(seed.wrapping_add((step as u64).wrapping_mul(GAMMA))))
    }

    pub(super) fn next(&mut self) -> u64 {
        let number = mix(self.0);
        self.0 = self.0.wrapping_add(GAMMA);
        number
    }
}

// === impl Alias ===

impl Alias {
    /// Creates a choice among backends with these weights. Backends of weight 0 are never chosen, unless all weights
    /// are 0.
    pub(super) fn new(weights: &[usize]) -> Self {
        match weights.first() {
            Some(first) if weights.iter().any(|weight| weight != first) => Self::Columns(columns(weights)),
            _ => Self::Equal(weights.len()),
        }
    }

    /// Returns the backend for a random number, or `None` without backends.
    pub(super) fn at(&self, random: u64) -> Option<usize> {
        match self {
            Self::Equal(0) => None,
            Self::Equal(backends) => Some(split(random, *backends).0),
            Self::Columns(columns) => {
                let (index, height) = split(random, columns.len());
                let column = columns[index];
                Some(if height < column.own { index } else { column.other as usize })
            }
        }
    }
}

/// Splits a random number into a number below `n` and a fraction in units of `2^-64`. The fraction is independent of
/// the number, except for the bits that `n` uses.
fn split(random: u64, n: usize) -> (usize, u64) {
    let product = u128::from(random) * n as u128;
    ((product >> 64) as usize, product as u64)
}

/// Fills the columns: a column that is not full gets its rest from a backend with too much weight for its own.
fn columns(weights: &[usize]) -> Box<[Column]> {
    let scaled = scaled(weights);
    let height: u128 = scaled.iter().map(|weight| u128::from(*weight)).sum();
    let mut left: Vec<u128> =
        scaled.iter().map(|weight| u128::from(*weight) * weights.len() as u128).collect();
    let mut columns: Vec<Column> =
        (0..weights.len()).map(|index| Column { own: u64::MAX, other: index as u32 }).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) =
        (0..weights.len()).partition(|index| left[*index] < height);
    while let (Some(low), Some(high)) = (small.pop(), large.last().copied()) {
        // The rest of `low` is below the height, which is below 2^64.
        columns[low] = Column { own: ((left[low] << 64) / height) as u64, other: high as u32 };
        left[high] -= height - left[low];
        if left[high] < height {
            large.pop();
            small.push(high);
        }
    }
    columns.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert, proptest};

    fn shares(weights: &[usize], draws: usize) -> Vec<f64> {
        let alias = Alias::new(weights);
        let mut counts = vec![0usize; weights.len()];
        let mut numbers = Draws::new(7, 0);
        for _ in 0..draws {
            counts[alias.at(numbers.next()).unwrap()] += 1;
        }
        counts.into_iter().map(|count| count as f64 / draws as f64).collect()
    }

    /// Returns the probability of each backend, computed from the columns.
    fn chances(weights: &[usize]) -> Vec<f64> {
        let Alias::Columns(columns) = Alias::new(weights) else {
            return vec![1.0 / weights.len() as f64; weights.len()];
        };
        let mut chances = vec![0.0; weights.len()];
        for (index, column) in columns.iter().enumerate() {
            let own = column.own as f64 / (u64::MAX as f64) / columns.len() as f64;
            chances[index] += own;
            chances[column.other as usize] += 1.0 / columns.len() as f64 - own;
        }
        chances
    }

    #[test]
    fn a_choice_without_backends_is_none() {
        assert_eq!(Alias::new(&[]).at(5), None);
    }

    #[test]
    fn equal_weights_need_no_columns() {
        assert!(matches!(Alias::new(&[3, 3, 3]), Alias::Equal(3)));
        assert!(matches!(Alias::new(&[0, 0]), Alias::Equal(2)));
        for share in shares(&[3, 3, 3, 3], 100_000) {
            assert!((share - 0.25).abs() < 0.01);
        }
    }

    #[test]
    fn draws_follow_the_weights() {
        for (share, expected) in shares(&[6, 3, 0, 1], 100_000).into_iter().zip([0.6, 0.3, 0.0, 0.1]) {
            assert!((share - expected).abs() < 0.01, "{share} {expected}");
        }
    }

    #[test]
    fn draws_follow_the_largest_weights() {
        for (share, expected) in shares(&[usize::MAX, usize::MAX, 1], 10_000).into_iter().zip([0.5, 0.5, 0.0])
        {
            assert!((share - expected).abs() < 0.02, "{share} {expected}");
        }
    }

    #[test]
    fn equal_seeds_give_equal_numbers() {
        let numbers = |seed, step| {
            let mut draws = Draws::new(seed, step);
            [draws.next(), draws.next(), draws.next()]
        };
        assert_eq!(numbers(1, 5), numbers(1, 5));
        assert_ne!(numbers(1, 5), numbers(2, 5));
        assert_ne!(numbers(1, 5), numbers(1, 6));
    }

    proptest! {
        #[test]
        fn columns_hold_the_weights(weights in vec(0usize..1000, 1..50)) {
            let sum: usize = weights.iter().sum();
            for (chance, weight) in chances(&weights).into_iter().zip(&weights) {
                let expected = if sum == 0 { 1.0 / weights.len() as f64 } else { *weight as f64 / sum as f64 };
                prop_assert!((chance - expected).abs() < 1e-9, "{} {}", chance, expected);
            }
        }

        #[test]
        fn weight_0_is_never_drawn(weights in vec(any::<usize>(), 1..20), zero in any::<u64>(), random in any::<u64>()) {
            let mut weights = weights;
            let zero = zero as usize % weights.len();
            weights[zero] = 0;
            let drawn = Alias::new(&weights).at(random).unwrap();
            prop_assert!(weights[drawn] > 0 || weights.iter().all(|weight| *weight == 0));
        }
    }
}
