//! Consistent hashing with bounded loads: no backend holds much more than its share.
//!
//! Hashing sends a popular key to one backend however much that has to do. A bound on what each may hold, some percent
//! above the average, makes such a key go on to the next backend of its order (Mirrokni, Thorup, Zadimoghaddam:
//! "Consistent hashing with bounded loads", 2018). The policy only offers candidates; whoever accepts them applies
//! [`bound`].

/// The requests that a backend may hold at most, the new one included, when hashing has bounded loads (Mirrokni, Thorup,
/// Zadimoghaddam, 2018).
///
/// Refuse a candidate that holds as many, and the policy offers the next for the same key;
/// [`Load::try_enter`](super::Load::try_enter) does it without a race.
///
/// This is `percent` of its share by weight of `total_in_flight + 1` requests, rounded up; 125 to 200 percent are
/// usual, and less than 100 is taken for 100. The bounds of all backends add up to at least `total_in_flight + 1`, so
/// one of them always has room. A backend of weight 0 may hold none, unless `total_weight` is 0 too: then there is no
/// bound.
///
/// ```
/// use lb_service::policy::bound;
///
/// // 11 requests over 4 equal backends: 2.75 each on average, and a half more.
/// assert_eq!(bound(150, 10, 1, 4), 5);
/// ```
pub fn bound(percent: u32, total_in_flight: u64, weight: usize, total_weight: usize) -> u64 {
    if total_weight == 0 {
        return u64::MAX;
    }
    // Both weights lose their lowest bits when they are too large to be multiplied; the share is rounded up then.
    let shift = (usize::BITS - total_weight.leading_zeros()).saturating_sub(56);
    let weight = ((weight.min(total_weight) as u128) + ((1 << shift) - 1)) >> shift;
    let whole = 100 * (total_weight >> shift) as u128;
    let allowed = u128::from(percent.max(100)) * (u128::from(total_in_flight) + 1);
    // allowed · weight / whole, without the product, which may be too large.
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
    fn bound_is_the_share_rounded_up() {
        assert_eq!(bound(100, 0, 1, 4), 1);
        assert_eq!(bound(125, 99, 1, 10), 13);
        assert_eq!(bound(200, 99, 3, 10), 60);
        assert_eq!(bound(150, 9, 1, 1), 15);
    }

    #[test]
    fn less_than_everything_is_taken_for_everything() {
        assert_eq!(bound(0, 99, 1, 10), 10);
        assert_eq!(bound(99, 99, 1, 10), 10);
    }

    #[test]
    fn weights_of_0() {
        assert_eq!(bound(150, 10, 0, 5), 0);
        assert_eq!(bound(150, 10, 0, 0), u64::MAX);
    }

    #[test]
    fn largest_numbers_do_not_overflow() {
        assert_eq!(bound(u32::MAX, u64::MAX, usize::MAX, usize::MAX), u64::MAX);
        assert_eq!(bound(100, u64::MAX - 1, usize::MAX, usize::MAX), u64::MAX);
        assert_eq!(bound(100, 9, usize::MAX, 1), 10);
    }

    proptest! {
        #[test]
        fn somebody_always_has_room(weights in weights(), percent in any::<u32>(), total in 0u64..u64::MAX / 2) {
            let whole: usize = weights.iter().sum();
            let bounds = weights.iter().map(|weight| u128::from(bound(percent, total, *weight, whole)));
            prop_assert!(bounds.sum::<u128>() > u128::from(total));
        }

        #[test]
        fn bound_is_exact_for_usual_weights(
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
