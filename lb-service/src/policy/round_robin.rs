//! Smooth weighted round robin as a function from a step to a backend.
//!
//! The sequence is nginx's (`src/http/ngx_http_upstream_round_robin.c`, "smooth weighted round-robin
//! balancing", 2012). At each step, every backend gains its weight. The backend with the highest gain is picked and
//! loses the sum of all weights. Weights 5, 1, 1 give `a a b a c a a`, where a plain weighted round robin gives `a a a
//! a a b c`. The sequence repeats after `W` steps, where `W` is the sum of the weights. nginx keeps the gains under a
//! lock and updates all of them at each request. This code computes one period when the set of backends changes, and a
//! request only looks up its step.
//!
//! Evenness: after `k` steps from the start, a backend of weight `w` has been picked less than `k·w/W + 1` times,
//! because the gain of a picked backend stays above `-W`. It has been picked at least `k·w/W + 1 - H(n)` times, where
//! `H(n) = 1 + 1/2 + … + 1/n`: by induction over the steps, no `j` backends together have a gain above `W·j·(H(n) -
//! H(j))`, as in the analysis of the cup game. So in any window of `k` steps, the count is within `H(n)` of `k·w/W`,
//! and in a window of `W` steps it is exact.
//!
//! One period has `W` steps after division by the greatest common divisor. If that is too long to compute or store, the
//! steps follow a Kronecker sequence instead (Weyl's equidistribution theorem). Step `k` is the point `frac(k·φ)` of a
//! line on which each backend has a piece as long as its weight. `φ` is the golden ratio, whose multiples are
//! distributed most evenly. Shares are then exact in the long run: the error of a count grows only with the logarithm
//! of the number of steps.

use super::weights::scaled;

/// The most additions for the computation of one period, which take about ten milliseconds.
const MAX_WORK: usize = 1 << 24;

/// The most steps of a stored period. Each takes two bytes.
const MAX_PERIOD: usize = 1 << 20;

/// `2^64 / φ`, rounded to odd: the fractional part of the golden ratio in 64-bit fixed point.
const GOLDEN_FRACTION: u64 = 0x9e37_79b9_7f4a_7c15;

/// The backend of each step.
#[derive(Debug)]
pub(super) enum RoundRobin {
    /// All weights are equal: this many backends follow one another.
    Equal(usize),
    /// One period of nginx's sequence.
    Period(Box<[u16]>),
    /// The end of each backend's piece of the line.
    Golden(Box<[u64]>),
}

// === impl RoundRobin ===

impl RoundRobin {
    /// Creates the sequence for backends with these weights. Backends of weight 0 have no turn, unless all weights are
    /// 0.
    pub(super) fn new(weights: &[usize]) -> Self {
        if weights.iter().all(|weight| *weight == weights[0]) {
            return Self::Equal(weights.len());
        }
        match reduced(weights) {
            Some(weights) => Self::Period(period(&weights)),
            None => Self::Golden(ends(weights)),
        }
    }

    /// Returns the index of the backend at this step, or `None` without backends.
    pub(super) fn at(&self, step: usize) -> Option<usize> {
        match self {
            Self::Equal(backends) => step.checked_rem(*backends),
            Self::Period(turns) => turns.get(step.checked_rem(turns.len())?).copied().map(usize::from),
            Self::Golden(ends) => Some(at_fraction(ends, (step as u64).wrapping_mul(GOLDEN_FRACTION))),
        }
    }
}

/// Returns the weights divided by their greatest common divisor, if their period is short enough.
fn reduced(weights: &[usize]) -> Option<Vec<u32>> {
    let divisor = weights.iter().copied().fold(0, gcd);
    let period = weights.iter().try_fold(0usize, |sum, weight| sum.checked_add(weight / divisor))?;
    let fits = period <= MAX_PERIOD
        && period.checked_mul(weights.len())? <= MAX_WORK
        && weights.len() <= usize::from(u16::MAX);
    // Each weight is at most the period, which is far below 2^32.
    fits.then(|| weights.iter().map(|weight| (weight / divisor) as u32).collect())
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Returns one period of nginx's sequence. In a tie, the first backend is picked.
fn period(weights: &[u32]) -> Box<[u16]> {
    let sum: i32 = weights.iter().map(|weight| *weight as i32).sum();
    let mut gains = vec![0i32; weights.len()];
    let mut step = || {
        let mut best = 0;
        for (index, weight) in weights.iter().enumerate() {
            gains[index] += *weight as i32;
            if gains[index] > gains[best] {
                best = index;
            }
        }
        gains[best] -= sum;
        best as u16
    };
    (0..sum).map(|_| step()).collect()
}

/// Returns the end of each backend's piece of the line.
fn ends(weights: &[usize]) -> Box<[u64]> {
    let mut end = 0;
    let add = |weight| {
        end += weight;
        end
    };
    scaled(weights).into_iter().map(add).collect()
}

/// Returns the backend whose piece contains the point at `fraction / 2^64` of the line. A piece of length 0 contains
/// none.
fn at_fraction(ends: &[u64], fraction: u64) -> usize {
    let length = ends.last().copied().unwrap_or(0);
    let point = ((u128::from(fraction) * u128::from(length)) >> 64) as u64;
    ends.partition_point(|end| *end <= point)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

    fn letters(weights: &[usize], steps: usize) -> String {
        let order = RoundRobin::new(weights);
        (0..steps).map(|step| char::from(b'a' + order.at(step).unwrap() as u8)).collect()
    }

    /// nginx's original loop, for comparison.
    fn nginx(weights: &[usize], steps: usize) -> Vec<usize> {
        let mut current = vec![0i64; weights.len()];
        let mut pick = || {
            let mut total = 0;
            let mut best: Option<usize> = None;
            for (index, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0) {
                current[index] += *weight as i64;
                total += *weight as i64;
                if best.is_none_or(|best| current[index] > current[best]) {
                    best = Some(index);
                }
            }
            let best = best.unwrap();
            current[best] -= total;
            best
        };
        (0..steps).map(|_| pick()).collect()
    }

    fn counts(order: &RoundRobin, backends: usize, steps: std::ops::Range<usize>) -> Vec<usize> {
        let mut counts = vec![0; backends];
        for step in steps {
            counts[order.at(step).unwrap()] += 1;
        }
        counts
    }

    fn harmonic(n: usize) -> f64 {
        (1..=n).map(|i| 1.0 / i as f64).sum()
    }

    fn small_weights() -> impl Strategy<Value = Vec<usize>> {
        vec(prop_oneof![1 => Just(0usize), 4 => 1usize..40], 1..12)
            .prop_filter("at least one weight is positive", |weights| {
                weights.iter().any(|weight| *weight > 0)
            })
    }

    #[test]
    fn weights_5_1_1_give_the_sequence_of_nginx() {
        assert_eq!(letters(&[5, 1, 1], 14), "aabacaaaabacaa");
    }

    #[test]
    fn equal_weights_take_turns() {
        assert_eq!(letters(&[7, 7, 7], 7), "abcabca");
        assert_eq!(letters(&[0, 0], 4), "abab");
    }

    #[test]
    fn a_common_divisor_does_not_change_the_sequence() {
        assert_eq!(letters(&[500, 100, 100], 7), "aabacaa");
    }

    #[test]
    fn a_backend_of_weight_0_has_no_turn() {
        assert_eq!(letters(&[0, 1, 0, 1], 4), "bdbd");
    }

    #[test]
    fn a_sequence_without_backends_has_no_turn() {
        assert_eq!(RoundRobin::new(&[]).at(5), None);
    }

    #[test]
    fn the_weights_of_a_configuration_have_a_period() {
        assert!(matches!(RoundRobin::new(&[1000, 999]), RoundRobin::Period(turns) if turns.len() == 1999));
        let hundred: Vec<usize> = (901..=1000).collect();
        assert!(matches!(RoundRobin::new(&hundred), RoundRobin::Period(_)));
    }

    #[test]
    fn shares_of_the_golden_sequence_are_even_at_every_scale() {
        let weights: Vec<usize> = (0..2000).map(|index| index % 1000 + 1).collect();
        let order = RoundRobin::new(&weights);
        assert!(matches!(order, RoundRobin::Golden(_)));
        let sum: usize = weights.iter().sum();
        for steps in [10_000, 1_000_000] {
            for (weight, count) in weights.iter().zip(counts(&order, weights.len(), 0..steps)) {
                let expected = steps as f64 * *weight as f64 / sum as f64;
                assert!((count as f64 - expected).abs() < 5.0, "{weight}: {count} of {expected}");
            }
        }
    }

    #[test]
    fn the_golden_sequence_supports_the_largest_weights() {
        let order = RoundRobin::new(&[usize::MAX, usize::MAX - 1, 0, 1]);
        assert!(matches!(order, RoundRobin::Golden(_)));
        let counts = counts(&order, 4, 0..10_000);
        assert!(counts[0].abs_diff(5000) < 5 && counts[1].abs_diff(5000) < 5, "{counts:?}");
        assert_eq!(counts[2], 0);
        let order = RoundRobin::new(&[1, 1 << 40]);
        assert_eq!((0..1000).filter(|step| order.at(*step) == Some(0)).count(), 1);
    }

    proptest! {
        #[test]
        fn the_sequence_equals_that_of_nginx(weights in small_weights()) {
            let order = RoundRobin::new(&weights);
            let steps = 2 * weights.iter().sum::<usize>() + 3;
            let ours: Vec<usize> = (0..steps).map(|step| order.at(step).unwrap()).collect();
            if weights.iter().any(|weight| *weight != 0) {
                prop_assert_eq!(ours, nginx(&weights, steps));
            }
        }

        #[test]
        fn shares_are_exact_over_a_period(weights in small_weights(), start in any::<u32>()) {
            let order = RoundRobin::new(&weights);
            let start = start as usize;
            let sum = weights.iter().sum::<usize>();
            prop_assert_eq!(counts(&order, weights.len(), start..start + sum), weights);
        }

        #[test]
        fn every_window_is_even(weights in small_weights(), start in any::<u32>(), length in 0usize..500) {
            let order = RoundRobin::new(&weights);
            let sum = weights.iter().sum::<usize>() as f64;
            let positive = weights.iter().filter(|weight| **weight > 0).count();
            let start = start as usize;
            let share = |weight: usize| length as f64 * weight as f64 / sum;
            for (weight, count) in weights.iter().zip(counts(&order, weights.len(), start..start + length)) {
                prop_assert!((count as f64 - share(*weight)).abs() < harmonic(positive) + 1e-9);
            }
            for (weight, count) in weights.iter().zip(counts(&order, weights.len(), 0..length)) {
                let ahead = count as f64 - share(*weight);
                prop_assert!(ahead < 1.0 && ahead > -(harmonic(positive) - 1.0) - 1e-9);
            }
        }

        #[test]
        fn the_backend_of_a_step_has_a_positive_weight(
            weights in vec(any::<usize>(), 1..20),
            step in any::<usize>(),
        ) {
            let turn = RoundRobin::new(&weights).at(step).unwrap();
            prop_assert!(weights[turn] > 0 || weights.iter().all(|weight| *weight == 0));
        }
    }
}
