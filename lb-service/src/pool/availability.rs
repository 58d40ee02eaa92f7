//! Availability: the backends of a pool that can be selected at all.
//!
//! The idea is Envoy's (its documentation, "Panic threshold" and "Priority levels"): if too few backends are available,
//! the whole load would overload them, so it is better to ignore health and use every backend. Two levels replace
//! Envoy's priorities: backups serve only if no primary is available, and never together with one. The differences from
//! Envoy are:
//!
//! - The level changes as a whole. Envoy moves a growing part of the traffic to the next priority as the first one
//!   loses hosts.
//! - Backups come before panic: only the level in use can be in panic, so primaries that are all down stay unused while
//!   a backup is available. Envoy sums the health of all priorities before any of them panics.
//! - A draining backend never counts, neither as available nor as missing, and panic does not use it: an operator
//!   drains it, not a health check.
//! - The share is compared in integers: at a threshold of 50, 1 of 2 is not panic and 1 of 3 is.

/// The properties of a backend that availability depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    /// Whether the health checks pass and no operator disabled the backend.
    pub(super) ready: bool,
    /// Whether the backend is ejected.
    pub(super) ejected: bool,
    /// Whether an operator drains the backend.
    pub(super) draining: bool,
    /// Whether the backend serves only if no primary is available.
    pub(super) backup: bool,
    /// The share relative to the other backends.
    pub(super) weight: usize,
}

/// The level of backends that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The backends that are not backups.
    Primary,
    /// The backups, because no primary is available.
    Backup,
}

/// The backends that can be selected: those of the level that do not drain, if they are available or the pool is in
/// panic.
///
/// A backend is available if it passes its health checks, is not ejected and does not drain. In panic, less than
/// [`panic_threshold`](super::PoolSettings::panic_threshold) percent of the level are available, and the whole level is
/// used. Levels and panic are those of Envoy, simplified: backups serve only if no primary is available, and that is
/// decided before panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Availability {
    /// The level in use.
    pub level: Level,
    /// Whether readiness and ejections are ignored.
    pub panic: bool,
    /// The sum of the weights of the backends that can be selected; 0 if there are none.
    pub weight: usize,
}

/// The numbers of one level, among its members that do not drain.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    members: u64,
    weight: usize,
    available: u64,
    available_weight: usize,
}

/// Computes the availability from every backend of a pool. `panic_threshold` is in percent; 0 turns panic off.
///
/// If every primary drains, the backups are the level in use even if none of them is available: they then panic as
/// primaries would.
pub(super) fn assess(members: impl Iterator<Item = Member>, panic_threshold: u8) -> Availability {
    let (mut primaries, mut backups) = (Tally::default(), Tally::default());
    for member in members.filter(|member| !member.draining) {
        if member.backup { backups.count(member) } else { primaries.count(member) }
    }
    let is_backup = match primaries.members {
        0 => backups.members > 0,
        _ => primaries.available == 0 && backups.available > 0,
    };
    if is_backup {
        backups.availability(Level::Backup, panic_threshold)
    } else {
        primaries.availability(Level::Primary, panic_threshold)
    }
}

// === impl Member ===

impl Member {
    /// Returns whether the backend can be selected without panic.
    pub(super) fn is_available(self) -> bool {
        self.ready && !self.ejected && !self.draining
    }
}

// === impl Tally ===

impl Tally {
    fn count(&mut self, member: Member) {
        self.members += 1;
        self.weight = self.weight.saturating_add(member.weight);
        if member.is_available() {
            self.available += 1;
            self.available_weight = self.available_weight.saturating_add(member.weight);
        }
    }

    fn availability(self, level: Level, panic_threshold: u8) -> Availability {
        let panic = self.available * 100 < self.members * u64::from(panic_threshold.min(100));
        Availability { level, panic, weight: if panic { self.weight } else { self.available_weight } }
    }
}

// === impl Availability ===

impl Availability {
    const BACKUP: u64 = 1 << 63;
    const PANIC: u64 = 1 << 62;
    const WEIGHT: u64 = Self::PANIC - 1;

    /// Returns the value as one number, so that one atomic holds it. A weight of 2^62 or more becomes 2^62 - 1.
    pub fn pack(self) -> u64 {
        let level = if self.level == Level::Backup { Self::BACKUP } else { 0 };
        let panic = if self.panic { Self::PANIC } else { 0 };
        level | panic | u64::try_from(self.weight).unwrap_or(u64::MAX).min(Self::WEIGHT)
    }

    /// Returns the value that [`Self::pack`] packed.
    pub(crate) fn unpack(packed: u64) -> Self {
        Self {
            level: if packed & Self::BACKUP == 0 { Level::Primary } else { Level::Backup },
            panic: packed & Self::PANIC != 0,
            weight: usize::try_from(packed & Self::WEIGHT).unwrap_or(usize::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::{Strategy, any, prop_assert_eq, proptest};

    /// Returns one member for each letter: `u`p, `d`own, `e`jected, draining `x` (ready) or `y` (not); capitals are
    /// backups. The weight of the i-th member is 2^i, so a sum identifies its members.
    fn members(letters: &str) -> Vec<Member> {
        let member = |(index, letter): (usize, char)| Member {
            ready: !matches!(letter.to_ascii_lowercase(), 'd' | 'y'),
            ejected: letter.eq_ignore_ascii_case(&'e'),
            draining: matches!(letter.to_ascii_lowercase(), 'x' | 'y'),
            backup: letter.is_ascii_uppercase(),
            weight: 1 << index,
        };
        letters.chars().enumerate().map(member).collect()
    }

    fn check(letters: &str, threshold: u8, level: Level, panic: bool, weight: usize) {
        let assessed = assess(members(letters).into_iter(), threshold);
        assert_eq!(assessed, Availability { level, panic, weight }, "{letters} at {threshold} %");
    }

    #[test]
    fn only_available_primaries_are_used() {
        check("uuU", 50, Level::Primary, false, 0b011);
        check("udUuD", 50, Level::Primary, false, 0b01001);
        check("ueU", 50, Level::Primary, false, 0b001);
    }

    #[test]
    fn backups_are_used_if_no_primary_is_available() {
        check("deU", 50, Level::Backup, false, 0b100);
        check("xxU", 50, Level::Backup, false, 0b100);
        check("dduU", 0, Level::Primary, false, 0b0100);
    }

    #[test]
    fn backups_come_before_panic() {
        check("dddU", 100, Level::Backup, false, 0b1000);
        check("ddUD", 50, Level::Backup, false, 0b0100);
        check("ddUDE", 50, Level::Backup, true, 0b11100);
    }

    #[test]
    fn a_share_equal_to_the_threshold_is_not_panic() {
        check("ud", 50, Level::Primary, false, 0b01);
        check("ud", 51, Level::Primary, true, 0b11);
        check("udd", 50, Level::Primary, true, 0b111);
        check("udd", 33, Level::Primary, false, 0b001);
        check("udd", 34, Level::Primary, true, 0b111);
    }

    #[test]
    fn a_pool_whose_backends_are_all_down_panics_with_its_primaries() {
        check("deDE", 50, Level::Primary, true, 0b0011);
        check("deDE", 1, Level::Primary, true, 0b0011);
        check("deDE", 0, Level::Primary, false, 0);
    }

    #[test]
    fn backups_panic_if_they_are_all_down_and_there_is_no_primary() {
        check("DE", 50, Level::Backup, true, 0b11);
        check("xyDE", 50, Level::Backup, true, 0b1100);
        check("DE", 0, Level::Backup, false, 0);
        check("X", 50, Level::Primary, false, 0);
    }

    #[test]
    fn a_threshold_of_100_panics_exactly_when_a_backend_is_missing() {
        check("uuu", 100, Level::Primary, false, 0b111);
        check("uuu", 255, Level::Primary, false, 0b111);
        check("uue", 100, Level::Primary, true, 0b111);
    }

    #[test]
    fn a_draining_backend_does_not_count_and_is_not_used_in_panic() {
        check("uxxx", 50, Level::Primary, false, 0b0001);
        check("uyyy", 100, Level::Primary, false, 0b0001);
        check("dyx", 50, Level::Primary, true, 0b001);
        check("xy", 50, Level::Primary, false, 0);
        check("", 50, Level::Primary, false, 0);
    }

    #[test]
    fn weights_saturate() {
        let heavy = Member { weight: usize::MAX, ..members("u")[0] };
        let assessed = assess([heavy, heavy].into_iter(), 50);
        assert_eq!(assessed.weight, usize::MAX);
        assert_eq!(Availability::unpack(assessed.pack()), Availability { weight: (1 << 62) - 1, ..assessed });
    }

    fn any_members() -> impl Strategy<Value = Vec<Member>> {
        let member =
            (any::<[bool; 4]>(), 0usize..2000).prop_map(|([ready, ejected, draining, backup], weight)| {
                Member { ready, ejected, draining, backup, weight }
            });
        vec(member, 0..20)
    }

    proptest! {
        #[test]
        fn the_weight_is_the_sum_of_all_selectable_backends(members in any_members(), threshold in 0u8..=100) {
            let assessed = assess(members.iter().copied(), threshold);
            let backups = assessed.level == Level::Backup;
            let in_use = |member: &&Member| member.backup == backups && !member.draining;
            let may = |member: &&Member| assessed.panic || (member.ready && !member.ejected);
            let weight: usize = members.iter().filter(in_use).filter(may).map(|member| member.weight).sum();
            prop_assert_eq!(assessed.weight, weight);

            let level = members.iter().filter(in_use).count();
            let available = members.iter().filter(in_use).filter(|m| m.ready && !m.ejected).count();
            prop_assert_eq!(assessed.panic, available * 100 < level * usize::from(threshold));
        }

        #[test]
        fn backups_are_used_if_and_only_if_only_they_are_available_or_exist(
            members in any_members(), threshold in 0u8..=100,
        ) {
            let assessed = assess(members.iter().copied(), threshold);
            let available = |backup| members.iter().any(|m| m.backup == backup && m.is_available());
            let there = |backup| members.iter().any(|m| m.backup == backup && !m.draining);
            let alone = if there(false) { available(true) && !available(false) } else { there(true) };
            prop_assert_eq!(assessed.level == Level::Backup, alone);
        }

        #[test]
        fn packing_loses_nothing(backup: bool, panic: bool, weight in 0usize..1 << 62) {
            let level = if backup { Level::Backup } else { Level::Primary };
            let availability = Availability { level, panic, weight };
            prop_assert_eq!(Availability::unpack(availability.pack()), availability);
        }
    }
}
