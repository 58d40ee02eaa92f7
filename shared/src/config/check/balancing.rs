//! Rules about how a pool chooses, ejects, repeats and limits.

use lb_service::config::{PolicyName, RetryWord};

use super::{Checker, Id, Pool, Problem, Step};

/// The largest sum of weights of a pool on a ring: each makes 160 points, and there are at most 8 Mi of them.
const MAX_RING_WEIGHT: usize = 8 * 1024 * 1024 / 160;

/// Keys of `outlier_detection` that say how long and how many are ejected.
const EJECTION_KEYS: [&str; 3] = ["base_ejection", "max_ejection", "max_ejected_percent"];

/// Keys of `retries` that the budget is made of.
const BUDGET_KEYS: [&str; 2] = ["budget_percent", "min_concurrent"];

/// A path from the root to a key of a pool.
macro_rules! path {
    ($name:expr $(, $step:expr)*) => { [Step::from("pools"), Step::from($name), $(Step::from($step)),*] };
}

impl Checker<'_> {
    pub(super) fn check_balancing(&mut self, name: &str, pool: &Pool) {
        self.check_backups(name, pool);
        self.check_hash_keys(name, pool);
        self.check_ring(name, pool);
        self.check_ejections(name, pool);
        self.check_ejection_times(name, pool);
        self.check_retry_keys(name, pool);
        self.check_retry_causes(name, pool);
        self.check_per_try(name, pool);
        self.check_queue(name, pool);
        self.check_queue_timeout(name, pool);
    }

    fn without_effect(&mut self, path: &[Step], message: String, hint: &str) {
        self.report_key(path, Problem::new(Id::WithoutEffect, message).hint(hint));
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
                self.without_effect(&path, message, hint);
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

// === ejection ===

impl Checker<'_> {
    /// Keys of an ejection that never happens.
    fn check_ejections(&mut self, name: &str, pool: &Pool) {
        let config = &pool.outlier_detection;
        if config.is_in_effect() || self.root.is_damaged(&path![name, "outlier_detection"]) {
            return;
        }
        let path = |key: &str| path![name, "outlier_detection", key];
        if !config.counts_failures() && config.gray.is_none() {
            for key in EJECTION_KEYS.into_iter().filter(|key| self.is_written(&path(key))).collect::<Vec<_>>()
            {
                let message = format!("`{key}` has no effect: `consecutive_failures: 0` ejects nobody");
                self.without_effect(
                    &path(key),
                    message,
                    "remove the key, or write `consecutive_failures: 5`",
                );
            }
            return;
        }
        let mut others = ["consecutive_failures", "base_ejection", "max_ejection", "gray"].into_iter();
        if let Some(other) = others.find(|key| self.is_written(&path(key))) {
            let message = format!("`{other}` has no effect: `max_ejected_percent: 0` ejects nobody");
            let hint =
                "to turn ejection off, write only `consecutive_failures: 0`; else allow a share such as 50";
            let zero = self.root.place(&path("max_ejected_percent"));
            let problem = Problem::new(Id::WithoutEffect, message).hint(hint);
            self.report_key(&path(other), problem.related(zero, "nobody is ejected"));
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
    /// Keys about repetitions that never happen.
    fn check_retry_keys(&mut self, name: &str, pool: &Pool) {
        let path = |key: &str| path![name, "retries", key];
        let none = pool.retries.attempts.get() == 0;
        let budget = BUDGET_KEYS.into_iter().filter(|_| !pool.retries.needs_budget());
        let causes = ["on"].into_iter().filter(|_| none);
        let dead: Vec<&str> = budget.chain(causes).filter(|key| self.is_written(&path(key))).collect();
        if self.root.is_damaged(&path("on")) {
            return;
        }
        let (why, hint) = match none {
            true => ("`attempts: 0` sends nothing again", "remove the key, or write `attempts: 1`"),
            false => (
                "a failed connection needs no budget, and `on` has nothing else",
                "remove the key, or add other failures to `on`",
            ),
        };
        for key in dead {
            self.without_effect(&path(key), format!("`{key}` has no effect: {why}"), hint);
        }
    }

    fn check_retry_causes(&mut self, name: &str, pool: &Pool) {
        let causes: &[RetryWord] = pool.retries.on.as_ref().map_or(&[], |on| &on.0);
        for (index, cause) in causes.iter().enumerate() {
            let Some(first) = causes[..index].iter().position(|earlier| earlier == cause) else { continue };
            let first = self.root.place(&path![name, "retries", "on", first]);
            let problem = Problem::new(Id::InvalidValue, format!("`{cause}` is given twice"));
            let problem = problem.related(first, "first given here").hint("remove one of the two");
            self.report(&path![name, "retries", "on", index], problem);
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
}

// === limits ===

impl Checker<'_> {
    /// Whether no backend has a limit, and none lost its own because it was wrong.
    fn is_unlimited(&self, name: &str, pool: &Pool) -> bool {
        let damaged = ["backends", "limits"].iter().any(|key| self.root.is_damaged(&path![name, *key]));
        !pool.is_limited() && !damaged
    }

    fn check_queue(&mut self, name: &str, pool: &Pool) {
        let path = path![name, "limits", "queue"];
        let waits = pool.limits.queue.is_some_and(|queue| queue.get() > 0);
        if waits && self.is_unlimited(name, pool) {
            let message =
                "`queue` has no effect without `max_requests`: nobody waits for a backend without a limit";
            let problem = Problem::new(Id::Incomplete, message);
            self.report_key(&path, problem.hint("add `max_requests: 100`"));
        }
    }

    fn check_queue_timeout(&mut self, name: &str, pool: &Pool) {
        let (timeout, queue) = (path![name, "timeouts", "queue"], path![name, "limits", "queue"]);
        let waits = pool.limits.queue.is_some_and(|queue| queue.get() > 0);
        if !self.is_written(&timeout) || waits {
            return;
        }
        if self.is_written(&queue) {
            let problem = Problem::new(Id::WithoutEffect, "`queue` has no effect: `limits.queue` is 0");
            let problem = problem.related(self.root.place(&queue), "nobody waits");
            self.report_key(&timeout, problem.hint("remove one of the two"));
        } else if self.is_unlimited(name, pool) {
            let message =
                "`queue` has no effect without `limits`: nobody waits for a backend without a limit";
            let problem = Problem::new(Id::Incomplete, message);
            self.report_key(&timeout, problem.hint("add `limits: {max_requests: 100}`, or remove the key"));
        }
    }
}
