//! What happens to a subject in a run, and when: a list that follows from a seed.

use std::ops::Range;
use std::time::Duration;

use crate::setup::Change;

/// How long a run is and how much happens in it.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// For all choices.
    pub(crate) seed: u64,
    /// Configuration files with another content.
    pub(crate) reloads: usize,
    /// New processes.
    pub(crate) upgrades: usize,
    /// Of each kind of change at run time.
    pub(crate) orders: usize,
    /// Backends killed with requests under way.
    pub(crate) kills: usize,
    /// Load before the first change, and the age at which a process counts as warm: in the long run that is after the longest of
    /// the timeouts, since what is set up for each is there for as long.
    pub(crate) warm_up: Duration,
    /// From the first change to the last.
    pub(crate) changes_within: Duration,
    /// Load after the last change.
    pub(crate) calm: Duration,
    /// How much memory there may be at the end, in percent of that of a warm process. After the few seconds of a short run a
    /// process is not quite warm.
    pub(crate) memory_limit: u64,
    /// How often the clients rest for one look at the memory, of which the median counts: how much of what was freed has gone back
    /// to the system is a matter of chance.
    pub(crate) rests: usize,
    /// The time that the first process has to finish, so short that WebSockets are cut by it.
    pub(crate) short_drain: Duration,
    /// The time that all others have, longer than the run.
    pub(crate) long_drain: Duration,
    /// Bytes of a long download. It must be over before `short_drain` is.
    pub(crate) long_download: Range<u64>,
}

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// A new configuration file is put into effect.
    Reload(Change),
    /// A new process takes over.
    Upgrade,
    /// A backend is drained, killed, started and taken back.
    Rotate,
    /// A backend has another weight for a while.
    Reweigh,
    /// A backend comes and goes.
    Guest,
    /// A backend is killed with requests under way, and started two steps later.
    Kill,
}

impl Plan {
    /// The run of `make soak`.
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

    /// The run of `make test`.
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

    /// All that happens, in its order. The last upgrade comes early enough that the last process lives through a third of it.
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
    fn a_plan_has_all_its_steps_in_an_order_of_its_seed() {
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
