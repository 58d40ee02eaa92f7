//! Rules about policies, ejection, retries and limits of a pool.
//!
//! A key without effect is an error only if it contradicts another key. A generated file must remain valid when the
//! number of backends changes. Therefore a key that has no effect with few backends, without a limit, or because a
//! feature is turned off causes only a warning.

use health_service::CheckType;
use lb_service::config::{PolicyName, RetryWord};
use values::Percent;

use super::{Checker, Id, Pool, Problem, Step};

/// The maximum sum of weights of a pool with a hash ring: each unit adds 160 points, and the ring has at most 8 Mi
/// points.
pub(crate) const MAX_RING_WEIGHT: usize = 8 * 1024 * 1024 / 160;

/// The keys of `outlier_detection` for the duration and the number of ejections.
const EJECTION_KEYS: [&str; 3] = ["base_ejection", "max_ejection", "max_ejected_percent"];

/// The keys of `outlier_detection` that turn ejection on.
const EJECTION_CAUSES: [&str; 2] = ["consecutive_failures", "slow_backends"];

/// The minimum number of backends for the detection of slow backends.
const MIN_COMPARED: usize = 3;

/// The keys of `retries` that define the budget.
const BUDGET_KEYS: [&str; 2] = ["budget_percent", "min_concurrent"];

/// The hint for keys that need more than one backend.
const ONE_BACKEND: &str = "remove it, or keep it for a second backend that you add later";

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
        self.check_connect_race(name, pool);
        self.check_per_try(name, pool);
        self.check_connect(name, pool);
        self.check_limit(name, pool);
        self.check_queue(name, pool);
        self.check_queue_timeout(name, pool);
    }

    fn without_effect(&mut self, id: Id, path: &[Step], message: String, hint: &str) {
        self.report_key(path, Problem::new(id, message).hint(hint));
    }

    /// Returns the number of backends. `None` means that there are none, or that wrong ones were removed.
    fn count(&self, name: &str, pool: &Pool) -> Option<usize> {
        let damaged = self.root.is_damaged(&path![name, "backends"]);
        Some(pool.backends.len()).filter(|count| *count > 0 && !damaged)
    }

    /// Reports keys that have no effect in a pool with one backend.
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
                problem.hint("remove `backup: true` from the backends that should be used first"),
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
            "the weights of the pool `{name}` add up to {sum}, but `consistent_hash` accepts at most {MAX_RING_WEIGHT}"
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
            let why = "all clients use the only backend in any case";
            self.useless_alone(name, &[path![name, "sticky"].to_vec()], why);
        }
    }
}

// === ejection ===

impl Checker<'_> {
    /// Reports keys of ejection if no backend can be ejected.
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
            let why = "`consecutive_failures: 0` turns ejection off";
            self.useless(Id::SwitchedOff, &paths, why, |problem| problem.hint(hint));
            return;
        }
        let causes = EJECTION_CAUSES.into_iter().chain(["base_ejection", "max_ejection"]);
        let paths: Vec<_> = causes.map(|key| path(key).to_vec()).collect();
        let zero = self.root.place(&path("max_ejected_percent"));
        let hint = "to turn ejection on, write `max_ejected_percent: 50`";
        self.useless(Id::SwitchedOff, &paths, "`max_ejected_percent: 0` turns ejection off", |problem| {
            problem.related(zero, "turns ejection off").hint(hint)
        });
    }

    /// Reports keys of ejection in a pool with one backend. A key that turns ejection off is accepted.
    fn check_ejections_of_one(&mut self, name: &str, pool: &Pool) {
        let keys = EJECTION_CAUSES.into_iter().chain(EJECTION_KEYS);
        let off = !pool.outlier_detection.counts_failures();
        let keys = keys.filter(|key| *key != "consecutive_failures" || !off);
        let paths: Vec<_> = keys.map(|key| path![name, "outlier_detection", key].to_vec()).collect();
        self.useless_alone(name, &paths, "the last backend of a pool is never ejected");
    }

    /// Reports a maximum share of ejected backends that is less than one backend.
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
        let message = format!(
            "`max_ejected_percent` prevents every ejection: {percent} % of {count} backends is less than one"
        );
        self.report(&path, Problem::new(Id::FewBackends, message).hint(format!("write at least {least}")));
    }

    fn check_slow_backends(&mut self, name: &str, pool: &Pool) {
        let path = path![name, "outlier_detection", "slow_backends"];
        // A single backend is never ejected, which is reported separately.
        let few = self.count(name, pool).filter(|count| (2..MIN_COMPARED).contains(count));
        if let Some(count) = few.filter(|_| self.is_written(&path)) {
            let message = format!(
                "`slow_backends` has no effect: it needs at least {MIN_COMPARED} backends, and the pool has {count}"
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
            let message = "`slow_start` has no effect: without health checks and ejection, no backend ever returns to the pool";
            let hint = "remove the key, or turn health checks on with `type: tcp`";
            self.without_effect(Id::SwitchedOff, &path, message.to_owned(), hint);
        }
    }

    fn check_ejection_times(&mut self, name: &str, pool: &Pool) {
        let config = &pool.outlier_detection;
        let Some((base, max)) = config.base_ejection.as_ref().zip(config.max_ejection.as_ref()) else {
            return;
        };
        if max.duration() >= base.duration() {
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
    /// Reports keys of retries if there are no retries.
    fn check_retry_keys(&mut self, name: &str, pool: &Pool) {
        let path = |key: &str| path![name, "retries", key];
        let none = !pool.retries.is_in_effect();
        if self.count(name, pool) == Some(1) && !none {
            let race = ["connect_race"].into_iter().filter(|_| pool.retries.wants_races());
            let keys = ["attempts"].into_iter().chain(BUDGET_KEYS).chain(["when"]).chain(race);
            let paths: Vec<_> = keys.map(|key| path(key).to_vec()).collect();
            self.useless_alone(name, &paths, "a retry needs a second backend");
            return;
        }
        if self.root.is_damaged(&path("when")) {
            return;
        }
        let budget = BUDGET_KEYS.into_iter().filter(|_| !pool.retries.needs_budget());
        let causes = ["when"].into_iter().filter(|_| none);
        let race = ["connect_race"].into_iter().filter(|_| none && pool.retries.wants_races());
        let dead: Vec<_> = budget.chain(causes).chain(race).map(|key| path(key).to_vec()).collect();
        let (id, why, hint) = match none {
            true => (
                Id::SwitchedOff,
                "`attempts: 0` turns retries off",
                "to turn retries on, write `attempts: 1`",
            ),
            false => (
                Id::NothingToActOn,
                "retries after a failed connection do not use the budget, `when` lists no other failure, and \
                 `connect_race: 0s` turns connection races off",
                "add other failures to `when`, or remove the budget",
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

    /// Reports a race that never begins: because failed connections are not retried, or because the connection attempt
    /// has failed by then.
    fn check_connect_race(&mut self, name: &str, pool: &Pool) {
        let path = |section: &'static str, key: &'static str| path![name, section, key];
        let race_path = path("retries", "connect_race");
        let Some(race) = pool.retries.connect_race.as_ref().filter(|_| pool.retries.wants_races()) else {
            return;
        };
        if !self.is_written(&race_path) || self.count(name, pool) == Some(1) || !pool.retries.is_in_effect() {
            return;
        }
        if !pool.retries.retries_connections() && !self.root.is_damaged(&path("retries", "when")) {
            let message = "`connect_race` has no effect: `when` does not list `connect_failure`".to_owned();
            let hint = "add `connect_failure` to `when`, or remove the key";
            self.without_effect(Id::NothingToActOn, &race_path, message, hint);
            return;
        }
        let connect_path = path("timeouts", "connect");
        let Some(connect) = pool.timeouts.connect.as_ref() else { return };
        if race.duration() < connect.duration() || self.root.is_damaged(&connect_path) {
            return;
        }
        let message = format!(
            "`connect_race` ({race}) has no effect: it is not shorter than `timeouts.connect` ({connect})"
        );
        let hint = format!("make `connect_race` shorter than {connect}, or write `connect_race: 0s`");
        let mut problem = Problem::new(Id::WithoutEffect, message).hint(hint);
        if self.is_written(&connect_path) {
            problem = problem.related(self.root.place(&connect_path), "limits every attempt");
        }
        self.report(&race_path, problem);
    }

    fn check_per_try(&mut self, name: &str, pool: &Pool) {
        let Some(per_try) = &pool.retries.per_try else { return };
        let response = &pool.timeouts.response;
        let path = path![name, "timeouts", "response"];
        if per_try.duration() < response.duration() || self.root.is_damaged(&path) {
            return;
        }
        let message = format!(
            "`per_try` ({per_try}) has no effect: it is not shorter than `timeouts.response` ({response})"
        );
        let hint = format!("make `per_try` shorter than {response}, or `timeouts.response` longer");
        let mut problem = Problem::new(Id::WithoutEffect, message).hint(hint);
        if self.is_written(&path) {
            problem = problem.related(self.root.place(&path), "limits every attempt");
        }
        self.report(&path![name, "retries", "per_try"], problem);
    }

    /// Reports a connect timeout above `per_try`: an attempt includes the time to connect.
    fn check_connect(&mut self, name: &str, pool: &Pool) {
        let path = path![name, "timeouts", "connect"];
        let Some((per_try, connect)) = pool.retries.per_try.as_ref().zip(pool.timeouts.connect.as_ref())
        else {
            return;
        };
        if !self.is_written(&path) || per_try.duration() >= connect.duration() {
            return;
        }
        let message = format!(
            "`connect` ({connect}) has no effect: it is longer than `retries.per_try` ({per_try}), which includes it"
        );
        let hint = format!("make `connect` at most {per_try}, or remove the key");
        let ends = self.root.place(&path![name, "retries", "per_try"]);
        let problem = Problem::new(Id::WithoutEffect, message).hint(hint);
        self.report(&path, problem.related(ends, "limits every attempt"));
    }
}

// === limits ===

impl Checker<'_> {
    fn check_limit(&mut self, name: &str, pool: &Pool) {
        let path = path![name, "limits", "max_requests"];
        let damaged = self.root.is_damaged(&path![name, "backends"]);
        if self.is_written(&path) && pool.is_limited_by_backends() && !damaged {
            let message =
                "`max_requests` has no effect: every backend of the pool has its own limit".to_owned();
            let hint = "remove the key, or the limit of a backend";
            self.without_effect(Id::NothingToActOn, &path, message, hint);
        }
    }

    /// Returns whether no backend has a limit. The result is `false` if wrong limits were removed.
    fn is_unlimited(&self, name: &str, pool: &Pool) -> bool {
        let damaged = ["backends", "limits"].iter().any(|key| self.root.is_damaged(&path![name, *key]));
        !pool.is_limited() && !damaged
    }

    fn check_queue(&mut self, name: &str, pool: &Pool) {
        let path = path![name, "limits", "queue"];
        let waits = pool.limits.queue.is_some_and(|queue| queue.get() > 0);
        if waits && self.is_unlimited(name, pool) {
            let message =
                "`queue` has no effect without `max_requests`: requests wait only for backends with a limit";
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
            let problem = problem.related(self.root.place(&queue), "turns the queue off");
            self.report_key(&timeout, problem.hint("remove one of the two"));
        } else if self.is_unlimited(name, pool) {
            let message =
                "`queue` has no effect without `limits`: requests wait only for backends with a limit";
            let problem = Problem::new(Id::NothingToActOn, message);
            self.report_key(&timeout, problem.hint("add `limits: {max_requests: 100}`, or remove the key"));
        }
    }
}
