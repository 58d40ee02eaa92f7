//! Consistent hashing with bounded loads: no backend has many more requests in flight than its share.
//!
//! Hashing sends a popular key to one backend regardless of its load. With a bound some percent above the average, such
//! a key spills over to the next backend in its order (Mirrokni, Thorup, Zadimoghaddam: "Consistent hashing with
//! bounded loads", 2018). The policy only offers candidates, and the caller that accepts them applies [`bound`].

/// Returns the most requests in flight at a backend, including the new one, for consistent hashing with bounded loads
/// (Mirrokni, Thorup, Zadimoghaddam, 2018).
///
/// If the caller rejects a candidate at its bound, the policy offers the next one for the key.
/// [`Load::try_enter`](super::Load::try_enter) checks the bound without a race.
///
/// The bound is `percent` of the backend's share by weight of `total_in_flight + 1` requests, rounded up. Usual values
/// are 125 to 200 percent, and less than 100 counts as 100. The bounds of all backends add up to at least
/// `total_in_flight + 1`, so at least one backend has room. A backend of weight 0 has a bound of 0. If `total_weight`
/// is 0, there is no bound.
///
/// ```
/// use lb_service::policy::bound;
///
/// // 11 requests over 4 equal backends are 2.75 on average, and 150 percent of that is 4.125.
/// assert_eq!(bound(150, 10, 1, 4), 5);
/// ```
pub fn bound(percent: u32, total_in_flight: u64, weight: usize, total_weight: usize) -> u64 {
    if total_weight == 0 {
        return u64::MAX;
    }
    // Both weights lose their lowest bits if they are too large to be multiplied. The share is then rounded up.
    let shift = (usize::BITS - total_weight.leading_zeros()).saturating_sub(56);
    let weight = ((weight.min(total_weight) as u128) + ((1 << shift) - 1)) >> shift;
    let whole = 100 * (total_weight >> shift) as u128;
    let allowed = u128::from(percent.max(100)) * (u128::from(total_in_flight) + 1);
    // This is allowed · weight / whole without the product, which could overflow.
    let bound = allowed / whole * weight + (allowed % whole * weight).div_ceil(whole);
    u64::try_from(bound).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

    fn weights() -> impl Strategy<Value = Vec<usize>> {
        let weight = prop_oneof![4 => 1usize..=1000, 1 => 0usize..2, 1 => 0..usize::MAX / 64];
        vec(weight, 1..40)
    }

    #[test]
    fn the_bound_is_the_share_rounded_up() {
        assert_eq!(bound(100, 0, 1, 4), 1);
        assert_eq!(bound(125, 99, 1, 10), 13);
        assert_eq!(bound(200, 99, 3, 10), 60);
        assert_eq!(bound(150, 9, 1, 1), 15);
    }

    #[test]
    fn less_than_100_percent_counts_as_100() {
        assert_eq!(bound(0, 99, 1, 10), 10);
        assert_eq!(bound(99, 99, 1, 10), 10);
    }

    #[test]
    fn a_weight_of_0_has_no_room_unless_all_weights_are_0() {
        assert_eq!(bound(150, 10, 0, 5), 0);
        assert_eq!(bound(150, 10, 0, 0), u64::MAX);
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        assert_eq!(bound(u32::MAX, u64::MAX, usize::MAX, usize::MAX), u64::MAX);
        assert_eq!(bound(100, u64::MAX - 1, usize::MAX, usize::MAX), u64::MAX);
        assert_eq!(bound(100, 9, usize::MAX, 1), 10);
    }

    proptest! {
        #[test]
        fn one_backend_always_has_room(weights in weights(), percent in any::<u32>(), total in 0u64..u64::MAX / 2) {
            let whole: usize = weights.iter().sum();
            let bounds = weights.iter().map(|weight| u128::from(bound(percent, total, *weight, whole)));
            prop_assert!(bounds.sum::<u128>() > u128::from(total));
        }

        #[test]
        fn the_bound_is_exact_for_usual_weights(
            weight in 0usize..=1000,
            others in 1usize..100_000,
            percent in 100u32..1000,
            total in 0u64..1_000_000,
        ) {
            let whole = weight + others;
            let share = u128::from(percent) * u128::from(total + 1) * weight as u128;
            let expected = share.div_ceil(100 * whole as u128);
            prop_assert_eq!(u128::from(bound(percent, total, weight, whole)), expected);
        }
    }
}
