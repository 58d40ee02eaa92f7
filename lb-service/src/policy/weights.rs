//! Converts weights into the form that the algorithms need.

/// Returns the weights, or equal weights if all are 0. So at least one is positive if there are any.
pub(super) fn effective(weights: impl ExactSizeIterator<Item = usize> + Clone) -> Box<[usize]> {
    if weights.clone().all(|weight| weight == 0) { weights.map(|_| 1).collect() } else { weights.collect() }
}

/// Returns weights whose sum fits into 64 bits. If they are too large, they lose their lowest bits, but no positive
/// weight becomes 0.
pub(super) fn scaled(weights: &[usize]) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|weight| *weight as u128).sum();
    let shift = (u128::BITS - sum.leading_zeros()).saturating_sub(u64::BITS - 1);
    weights.iter().map(|weight| ((*weight as u64) >> shift).max(u64::from(*weight > 0))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    #[test]
    fn weights_that_are_all_0_count_as_equal() {
        assert_eq!(effective([0, 0].into_iter())[..], [1, 1]);
        assert_eq!(effective([0, 3].into_iter())[..], [0, 3]);
        assert!(effective(std::iter::empty()).is_empty());
    }

    proptest! {
        #[test]
        fn the_sum_of_scaled_weights_fits_into_64_bits(weights in proptest::collection::vec(any::<usize>(), 1..100)) {
            let scaled = scaled(&weights);
            prop_assert!(scaled.iter().try_fold(0u64, |sum, weight| sum.checked_add(*weight)).is_some());
            prop_assert!(weights.iter().zip(&scaled).all(|(weight, scaled)| (*weight == 0) == (*scaled == 0)));
        }

        #[test]
        fn small_weights_are_unchanged(weights in proptest::collection::vec(0usize..=1000, 1..100)) {
            let kept: Vec<usize> = scaled(&weights).into_iter().map(|weight| weight as usize).collect();
            prop_assert_eq!(kept, weights);
        }
    }
}
