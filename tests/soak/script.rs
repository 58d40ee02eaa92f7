//! The steps of a run and their order, which follow from a seed.

use std::ops::Range;
use std::time::Duration;

use crate::setup::Change;

/// The length of a run and the number of its changes.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The seed for all random choices.
    pub(crate) seed: u64,
    /// The number of reloads, each with a changed configuration file.
    pub(crate) reloads: usize,
    /// The number of upgrades.
    pub(crate) upgrades: usize,
    /// The number of changes of each kind at run time.
    pub(crate) orders: usize,
    /// The number of backends that are killed with requests in flight.
    pub(crate) kills: usize,
    /// The time under load before the first change, and the age at which a process counts as warm. In the long run,
    /// this exceeds the longest timeout, because each timer uses memory until it ends.
    pub(crate) warm_up: Duration,
    /// The time from the first change to the last.
    pub(crate) changes_within: Duration,
    /// The time under load after the last change.
    pub(crate) calm: Duration,
    /// The limit for memory at the end, in percent of the memory of a warm process. In a short run it is higher,
    /// because a process is not quite warm after a few seconds.
    pub(crate) memory_limit: u64,
    /// The number of pauses for one measurement of memory, of which the median counts. The amount of freed memory that
    /// the allocator has returned to the system varies at random.
    pub(crate) rests: usize,
    /// The drain time of the first process. It is so short that WebSockets are cut.
    pub(crate) short_drain: Duration,
    /// The drain time of all other processes. It is longer than the run.
    pub(crate) long_drain: Duration,
    /// The length of a long download, in bytes. The download must end before `short_drain` does.
    pub(crate) long_download: Range<u64>,
}

/// One step of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// A reload puts a changed configuration file into effect.
    Reload(Change),
    /// A new process takes over.
    Upgrade,
    /// A backend is drained, killed, started and undrained.
    Rotate,
    /// The weight of a backend is changed and restored.
    Reweigh,
    /// A backend is added and removed.
    Guest,
    /// A backend is killed with requests in flight, and started two steps later.
    Kill,
}

impl Plan {
    /// Returns the plan of `make soak`.
    pub(crate) fn long() -> Self {
        Self {
            seed: 4,
            reloads: 50,
            upgrades: 10,
            orders: 4,
            kills: 8,
            warm_up: Duration::from_secs(80),
            changes_within: Duration::from_secs(360),
            calm: Duration::from_secs(10),
            memory_limit: 110,
            rests: 5,
            short_drain: Duration::from_secs(25),
            long_drain: Duration::from_secs(1800),
            long_download: 8_000_000..20_000_000,
        }
    }

    /// Returns the plan of `make test`.
    pub(crate) fn short() -> Self {
        Self {
            reloads: 8,
            upgrades: 2,
            orders: 1,
            kills: 2,
            warm_up: Duration::from_secs(3),
            changes_within: Duration::from_secs(20),
            calm: Duration::from_secs(3),
            memory_limit: 125,
            rests: 1,
            short_drain: Duration::from_secs(8),
            long_download: 2_000_000..4_000_000,
            ..Self::long()
        }
    }

    /// Returns all steps in order. The last upgrade comes early enough that the last process runs for a third of them.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let mut steps: Vec<Step> =
            Change::some(self.reloads, &mut random).into_iter().map(Step::Reload).collect();
        for (step, count) in [
            (Step::Rotate, self.orders),
            (Step::Reweigh, self.orders),
            (Step::Guest, self.orders),
            (Step::Kill, self.kills),
        ] {
            steps.extend(std::iter::repeat_n(step, count));
        }
        random.shuffle(&mut steps);
        let (before, last) = (steps.len() / 12, steps.len() * 2 / 3);
        for number in (0..self.upgrades).rev() {
            let place = before + (last - before) * number / (self.upgrades - 1).max(1);
            steps.insert(place, Step::Upgrade);
        }
        steps
    }
}

#[cfg(test)]
mod checks {
    use super::*;

    #[test]
    fn a_plan_has_all_steps_in_an_order_given_by_the_seed() {
        for plan in [Plan::long(), Plan::short()] {
            let steps = plan.steps();
            let count = |wanted: fn(&Step) -> bool| steps.iter().filter(|step| wanted(step)).count();
            assert_eq!(count(|step| matches!(step, Step::Reload(_))), plan.reloads);
            assert_eq!(count(|step| *step == Step::Upgrade), plan.upgrades);
            assert_eq!(count(|step| *step == Step::Guest), plan.orders);
            assert_eq!(count(|step| *step == Step::Kill), plan.kills);
            assert_eq!(steps, plan.steps());
            assert_ne!(steps, Plan { seed: plan.seed + 1, ..plan.clone() }.steps());
            let last = steps.iter().rposition(|step| *step == Step::Upgrade);
            assert!(last.is_some_and(|last| last <= steps.len() * 3 / 4), "{last:?} of {}", steps.len());
        }
    }
}
