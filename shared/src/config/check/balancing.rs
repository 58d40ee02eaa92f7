//! Rules about how a pool chooses, ejects, retries and limits.
//!
//! A key that has no effect is an error only when it contradicts another one. A generated file that is scaled must not
//! become one: what has no effect with few backends, without a limit, or while something is turned off is a warning.

use health_service::CheckType;
use lb_service::config::{Percent, PolicyName, RetryWord};

use super::{Checker, Id, Pool, Problem, Step};

/// The largest sum of weights of a pool on a ring: each makes 160 points, and there are at most 8 Mi of them.
pub(crate) const MAX_RING_WEIGHT: usize = 8 * 1024 * 1024 / 160;

/// Keys of `outlier_detection` that say how long and how many are ejected.
const EJECTION_KEYS: [&str; 3] = ["base_ejection", "max_ejection", "max_ejected_percent"];

/// The other keys of `outlier_detection`, which turn ejection on.
const EJECTION_CAUSES: [&str; 2] = ["consecutive_failures", "slow_backends"];

/// As many backends are compared at least to find one that is much slower than the others.
const MIN_COMPARED: usize = 3;

/// Keys of `retries` that the budget is made of.
const BUDGET_KEYS: [&str; 2] = ["budget_percent", "min_concurrent"];

/// What to do about keys that only choose between backends.
const ONE_BACKEND: &str = "no change is needed if a second backend may join; otherwise remove it";

/// A path from the root to a key of a pool.
macro_rules! path {
    ($name:expr $(, $step:expr)*) => { [Step::from("pools"), Step::from($name), $(Step::from($step)),*] };
}

impl Checker<'_> {
    pub(super) fn check_balancing(&mut self, name: &str, pool: &Pool) {
        self.check_backups(name, pool);
        self.check_hash_keys(name, pool);
        self.check_ring(name, pool);
        self.check_sticky(name, pool);
        self.check_ejections(name, pool);
        self.check_share_ejected(name, pool);
        self.check_slow_backends(name, pool);
        self.check_ejection_times(name, pool);
        self.check_slow_start(name, pool);
        self.check_retry_keys(name, pool);
        self.check_retry_causes(name, pool);
        self.check_per_try(name, pool);
        self.check_connect(name, pool);
        self.check_limit(name, pool);
        self.check_queue(name, pool);
        self.check_queue_timeout(name, pool);
    }

    fn without_effect(&mut self, id: Id, path: &[Step], message: String, hint: &str) {
        self.report_key(path, Problem::new(id, message).hint(hint));
    }

    /// How many backends there are; `None` when some of them were taken out because they were wrong, or none is given.
    fn count(&self, name: &str, pool: &Pool) -> Option<usize> {
        let damaged = self.root.is_damaged(&path![name, "backends"]);
        Some(pool.backends.len()).filter(|count| *count > 0 && !damaged)
    }

    /// Keys without effect in a pool with one backend, for this reason.
    fn useless_alone(&mut self, name: &str, paths: &[Vec<Step>], why: &str) {
        let only = self.root.place(&path![name, "backends"]);
        self.useless(Id::FewBackends, paths, why, |problem| {
            problem.related(only, "the only backend").hint(ONE_BACKEND)
        });
    }

    fn check_backups(&mut self, name: &str, pool: &Pool) {
        let path = path![name, "backends"];
        let only_backups = !pool.backends.is_empty() && pool.backends.iter().all(|backend| backend.backup);
        if only_backups && !self.root.is_damaged(&path) {
            let message = format!("every backend of the pool `{name}` is a backup");
            let problem = Problem::new(Id::OnlyBackups, message);
            self.report_key(
                &path,
                problem.hint("remove `backup: true` from those that are to be used first"),
            );
        }
    }
}

// === policies ===

impl Checker<'_> {
    fn check_hash_keys(&mut self, name: &str, pool: &Pool) {
        let policy = path![name, "policy"];
        if pool.policy.hashes() || self.root.is_damaged(&policy) {
            return;
        }
        let default = if self.is_written(&policy) { "" } else { ", the default," };
        for key in ["hash_on", "bounded_load"] {
            let path = path![name, key];
            if self.is_written(&path) {
                let message =
                    format!("`{key}` has no effect: `policy: {}`{default} does not hash", pool.policy);
                let hint = "use `policy: consistent_hash` or `policy: maglev`, or remove the key";
                self.without_effect(Id::WithoutEffect, &path, message, hint);
            }
        }
    }

    fn check_ring(&mut self, name: &str, pool: &Pool) {
        let sum: usize = pool.backends.iter().map(|backend| backend.weight.get()).sum();
        if pool.policy != PolicyName::ConsistentHash || sum <= MAX_RING_WEIGHT {
            return;
        }
        let message = format!(
            "the weights of the pool `{name}` add up to {sum}, and `consistent_hash` takes at most {MAX_RING_WEIGHT}"
        );
        let divisor = sum.div_ceil(MAX_RING_WEIGHT);
        let hint = format!("divide each weight by {divisor}, or use `policy: maglev`");
        let policy = self.root.place(&path![name, "policy"]);
        let problem = Problem::new(Id::InvalidValue, message).hint(hint);
        self.report_key(
            &path![name, "backends"],
            problem.related(policy, "each unit of weight takes memory"),
        );
    }
}

// === sessions ===

impl Checker<'_> {
    fn check_sticky(&mut self, name: &str, pool: &Pool) {
        if self.count(name, pool) == Some(1) {
            let why = "every client has the same backend anyway";
            self.useless_alone(name, &[path![name, "sticky"].to_vec()], why);
        }
    }
}

// === ejection ===

impl Checker<'_> {
    /// Keys of an ejection that never happens.
    fn check_ejections(&mut self, name: &str, pool: &Pool) {
        if self.count(name, pool) == Some(1) {
            self.check_ejections_of_one(name, pool);
            return;
        }
        let config = &pool.outlier_detection;
        if config.is_in_effect() || self.root.is_damaged(&path![name, "outlier_detection"]) {
            return;
        }
        let path = |key: &str| path![name, "outlier_detection", key];
        if !config.counts_failures() && config.slow_backends.is_none() {
            let paths = EJECTION_KEYS.map(|key| path(key).to_vec());
            let hint = "to turn ejection on, write `consecutive_failures: 5`";
            let why = "`consecutive_failures: 0` ejects no backend";
            self.useless(Id::SwitchedOff, &paths, why, |problem| problem.hint(hint));
            return;
        }
        let causes = EJECTION_CAUSES.into_iter().chain(["base_ejection", "max_ejection"]);
        let paths: Vec<_> = causes.map(|key| path(key).to_vec()).collect();
        let zero = self.root.place(&path("max_ejected_percent"));
        let hint = "to turn ejection on, allow a share such as 50";
        self.useless(Id::SwitchedOff, &paths, "`max_ejected_percent: 0` ejects no backend", |problem| {
            problem.related(zero, "no backend is ejected").hint(hint)
        });
    }

    /// To turn ejection off is no mistake, even where there is none.
    fn check_ejections_of_one(&mut self, name: &str, pool: &Pool) {
        let keys = EJECTION_CAUSES.into_iter().chain(EJECTION_KEYS);
        let off = !pool.outlier_detection.counts_failures();
        let keys = keys.filter(|key| *key != "consecutive_failures" || !off);
        let paths: Vec<_> = keys.map(|key| path![name, "outlier_detection", key].to_vec()).collect();
        self.useless_alone(name, &paths, "the last backend of a pool is never ejected");
    }

    /// A share of the pool that is less than one backend.
    fn check_share_ejected(&mut self, name: &str, pool: &Pool) {
        let path = path![name, "outlier_detection", "max_ejected_percent"];
        let Some(count) = self.count(name, pool).filter(|count| *count > 1) else { return };
        let percent = pool.outlier_detection.max_ejected_percent.map_or(0, Percent::get);
        let ejected = count.saturating_mul(usize::try_from(percent).unwrap_or(usize::MAX)) / 100;
        let off = !pool.outlier_detection.is_in_effect();
        if !self.is_written(&path) || off || ejected > 0 {
            return;
        }
        let least = 100_usize.div_ceil(count);
        let message =
            format!("`max_ejected_percent` ejects no backend: {percent} % of {count} is less than one");
        self.report(&path, Problem::new(Id::FewBackends, message).hint(format!("write at least {least}")));
    }

    fn check_slow_backends(&mut self, name: &str, pool: &Pool) {
        let path = path![name, "outlier_detection", "slow_backends"];
        // With one, nothing is ejected at all: reported as such.
        let few = self.count(name, pool).filter(|count| (2..MIN_COMPARED).contains(count));
        if let Some(count) = few.filter(|_| self.is_written(&path)) {
            let message = format!(
                "`slow_backends` has no effect: it compares at least {MIN_COMPARED} backends, and there are {count}"
            );
            self.without_effect(Id::FewBackends, &path, message, "remove the key, or add a backend");
        }
    }

    fn check_slow_start(&mut self, name: &str, pool: &Pool) {
        let path = path![name, "slow_start"];
        if self.count(name, pool) == Some(1) {
            self.useless_alone(name, &[path.to_vec()], "no other backend can take the rest of its share");
            return;
        }
        let damaged =
            ["health_check", "outlier_detection"].iter().any(|key| self.root.is_damaged(&path![name, *key]));
        let returns =
            pool.health_check.r#type != CheckType::None || pool.outlier_detection.is_in_effect() || damaged;
        if self.is_written(&path) && !returns {
            let message =
                "`slow_start` has no effect: with neither health checks nor ejection no backend comes back";
            let hint = "remove the key, or turn checks on with `type: tcp`";
            self.without_effect(Id::SwitchedOff, &path, message.to_owned(), hint);
        }
    }

    fn check_ejection_times(&mut self, name: &str, pool: &Pool) {
        let config = &pool.outlier_detection;
        let Some((base, max)) = config.base_ejection.as_ref().zip(config.max_ejection.as_ref()) else {
            return;
        };
        if max.get().0 >= base.get().0 {
            return;
        }
        let path = |key: &str| path![name, "outlier_detection", key];
        let message = format!("`max_ejection` ({max}) is shorter than `base_ejection` ({base})");
        let problem = Problem::new(Id::EjectionTiming, message);
        let first = self.root.place(&path("base_ejection"));
        let hint = format!("make `max_ejection` at least {base}");
        self.report(&path("max_ejection"), problem.related(first, "the first ejection").hint(hint));
    }
}

// === retries ===

impl Checker<'_> {
    /// Keys about retries that never happen.
    fn check_retry_keys(&mut self, name: &str, pool: &Pool) {
        let path = |key: &str| path![name, "retries", key];
        let none = !pool.retries.is_in_effect();
        if self.count(name, pool) == Some(1) && !none {
            let keys = ["attempts"].into_iter().chain(BUDGET_KEYS).chain(["when"]);
            let paths: Vec<_> = keys.map(|key| path(key).to_vec()).collect();
            self.useless_alone(name, &paths, "no backend is tried twice");
            return;
        }
        if self.root.is_damaged(&path("when")) {
            return;
        }
        let budget = BUDGET_KEYS.into_iter().filter(|_| !pool.retries.needs_budget());
        let causes = ["when"].into_iter().filter(|_| none);
        let dead: Vec<_> = budget.chain(causes).map(|key| path(key).to_vec()).collect();
        let (id, why, hint) = match none {
            true => {
                (Id::SwitchedOff, "`attempts: 0` retries nothing", "to turn retries on, write `attempts: 1`")
            }
            false => (
                Id::NothingToActOn,
                "a failed connection needs no budget, and `when` has nothing else",
                "add other failures to `when`, or remove this",
            ),
        };
        self.useless(id, &dead, why, |problem| problem.hint(hint));
    }

    fn check_retry_causes(&mut self, name: &str, pool: &Pool) {
        let causes: &[RetryWord] = pool.retries.when.as_ref().map_or(&[], |when| &when.0);
        for (index, cause) in causes.iter().enumerate() {
            let Some(first) = causes[..index].iter().position(|earlier| earlier == cause) else { continue };
            let first = self.root.place(&path![name, "retries", "when", first]);
            let problem = Problem::new(Id::InvalidValue, format!("`{cause}` is given twice"));
            let problem = problem.related(first, "first given here").hint("remove one of the two");
            self.report(&path![name, "retries", "when", index], problem);
        }
    }

    fn check_per_try(&mut self, name: &str, pool: &Pool) {
        let Some(per_try) = &pool.retries.per_try else { return };
        let response = &pool.timeouts.response;
        let path = path![name, "timeouts", "response"];
        if per_try.get().0 < response.get().0 || self.root.is_damaged(&path) {
            return;
        }
        let message = format!(
            "`per_try` ({per_try}) has no effect: it is not shorter than `timeouts.response` ({response})"
        );
        let hint = format!("make `per_try` shorter than {response}, or `timeouts.response` longer");
        let mut problem = Problem::new(Id::WithoutEffect, message).hint(hint);
        if self.is_written(&path) {
            problem = problem.related(self.root.place(&path), "ends every attempt");
        }
        self.report(&path![name, "retries", "per_try"], problem);
    }

    /// Each attempt to connect ends with the attempt.
    fn check_connect(&mut self, name: &str, pool: &Pool) {
        let path = path![name, "timeouts", "connect"];
        let Some((per_try, connect)) = pool.retries.per_try.as_ref().zip(pool.timeouts.connect.as_ref())
        else {
            return;
        };
        if !self.is_written(&path) || per_try.get().0 >= connect.get().0 {
            return;
        }
        let message = format!(
            "`connect` ({connect}) has no effect: it is longer than `retries.per_try` ({per_try}), which includes it"
        );
        let hint = format!("make `connect` at most {per_try}, or remove the key");
        let ends = self.root.place(&path![name, "retries", "per_try"]);
        let problem = Problem::new(Id::WithoutEffect, message).hint(hint);
        self.report(&path, problem.related(ends, "ends every attempt"));
    }
}

// === limits ===

impl Checker<'_> {
    fn check_limit(&mut self, name: &str, pool: &Pool) {
        let path = path![name, "limits", "max_requests"];
        let damaged = self.root.is_damaged(&path![name, "backends"]);
        if self.is_written(&path) && pool.is_limited_by_backends() && !damaged {
            let message = "`max_requests` has no effect: every backend of the pool has its own".to_owned();
            let hint = "remove the key, or that of a backend";
            self.without_effect(Id::NothingToActOn, &path, message, hint);
        }
    }

    /// Whether no backend has a limit, and none lost its own because it was wrong.
    fn is_unlimited(&self, name: &str, pool: &Pool) -> bool {
        let damaged = ["backends", "limits"].iter().any(|key| self.root.is_damaged(&path![name, *key]));
        !pool.is_limited() && !damaged
    }

    fn check_queue(&mut self, name: &str, pool: &Pool) {
        let path = path![name, "limits", "queue"];
        let waits = pool.limits.queue.is_some_and(|queue| queue.get() > 0);
        if waits && self.is_unlimited(name, pool) {
            let message = "`queue` has no effect without `max_requests`: no request waits for a backend without a limit";
            let problem = Problem::new(Id::NothingToActOn, message);
            self.report_key(&path, problem.hint("add `max_requests: 100`, or remove the key"));
        }
    }

    fn check_queue_timeout(&mut self, name: &str, pool: &Pool) {
        let (timeout, queue) = (path![name, "timeouts", "queue"], path![name, "limits", "queue"]);
        let waits = pool.limits.queue.is_some_and(|queue| queue.get() > 0);
        if !self.is_written(&timeout) || waits {
            return;
        }
        if self.is_written(&queue) {
            let problem = Problem::new(Id::SwitchedOff, "`queue` has no effect: `limits.queue` is 0");
            let problem = problem.related(self.root.place(&queue), "no request waits");
            self.report_key(&timeout, problem.hint("remove one of the two"));
        } else if self.is_unlimited(name, pool) {
            let message =
                "`queue` has no effect without `limits`: no request waits for a backend without a limit";
            let problem = Problem::new(Id::NothingToActOn, message);
            self.report_key(&timeout, problem.hint("add `limits: {max_requests: 100}`, or remove the key"));
        }
    }
}
