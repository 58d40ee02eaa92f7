//! Whether this process should receive traffic, and if not, why.
//!
//! Readiness describes this process: its configuration is loaded, its first checks are done, its listeners accept
//! connections, and it is not draining. Pools are shared between load balancers, and one broken application must not
//! take all of them out of service. Therefore [`RequiredPools`] says which pools count. By default, one pool with a
//! ready backend is enough.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use crate::config::RequiredPools;
use crate::pools::{Member, PoolView, Views};

/// The conditions behind `/readyz`. Clones share them.
///
/// The process is ready when every listener accepts connections, no drain runs, and the pools that [`RequiredPools`]
/// names have a ready backend. At first it is neither listening nor draining.
#[derive(Clone)]
pub struct Readiness {
    conditions: Arc<Conditions>,
}

struct Conditions {
    pools: Views,
    /// A [`RequiredPools`].
    required: AtomicU8,
    listening: AtomicBool,
    draining: AtomicBool,
    /// Why the process is never ready, if it is not.
    withheld: OnceLock<&'static str>,
}

/// The conditions at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Why the process itself is not ready, one reason per line.
    process: Vec<String>,
    required: RequiredPools,
    pools: Vec<PoolReport>,
}

/// The number of ready backends of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PoolReport {
    name: String,
    ready: usize,
    members: usize,
}

// === impl Readiness ===

impl Readiness {
    /// Requires a ready backend in one of `pools`, until [`require`](Self::require) changes that.
    pub fn new(pools: impl Into<Views>) -> Self {
        let conditions = Conditions {
            pools: pools.into(),
            required: AtomicU8::new(RequiredPools::default() as u8),
            listening: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            withheld: OnceLock::new(),
        };
        Readiness { conditions: Arc::new(conditions) }
    }

    /// Sets the pools that must have a ready backend.
    pub fn require(&self, pools: RequiredPools) {
        self.conditions.required.store(pools as u8, Ordering::Release);
    }

    /// Call this with `true` once every listener is bound and accepts connections.
    pub fn set_listening(&self, listening: bool) {
        self.conditions.listening.store(listening, Ordering::Release);
    }

    /// Call this with `true` when a drain begins, before the listeners close.
    pub fn set_draining(&self, draining: bool) {
        self.conditions.draining.store(draining, Ordering::Release);
    }

    /// Makes the process never ready, for this reason. Only the first reason counts.
    pub fn withhold(&self, reason: &'static str) {
        let _ = self.conditions.withheld.set(reason);
    }

    /// Whether every listener accepts connections.
    pub fn is_listening(&self) -> bool {
        self.conditions.listening.load(Ordering::Acquire)
    }

    /// Whether a drain has begun.
    pub fn is_draining(&self) -> bool {
        self.conditions.draining.load(Ordering::Acquire)
    }

    /// The current conditions.
    pub fn report(&self) -> Report {
        let withheld = self.conditions.withheld.get().copied();
        let mut process: Vec<_> = withheld.into_iter().map(str::to_owned).collect();
        if self.is_draining() {
            process.push("draining".to_owned());
        }
        if !self.is_listening() {
            process.push("starting: the listeners do not accept yet".to_owned());
        }
        let required = RequiredPools::of(self.conditions.required.load(Ordering::Acquire));
        let pools = self.conditions.pools.now();
        Report { process, required, pools: pools.iter().map(|pool| PoolReport::of(&**pool)).collect() }
    }

    /// # Errors
    ///
    /// Every reason why the process is not ready, one per line, for people to read.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let reasons = self.report().reasons();
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    /// The names of the pools with a ready backend, or of those without one, required or not.
    pub fn pools(&self, ready: bool) -> Vec<String> {
        let pools = self.report().pools.into_iter();
        pools.filter(|pool| (pool.ready > 0) == ready).map(|pool| pool.name).collect()
    }
}

// === impl Report ===

impl Report {
    /// Why the process is not ready, one reason per line; empty if it is ready.
    pub fn reasons(&self) -> Vec<String> {
        let lacking = self.lacking().into_iter().map(PoolReport::line);
        self.process.iter().cloned().chain(lacking).collect()
    }

    /// The state of the process, and of every pool, required or not. Pools without a ready backend come first.
    pub fn lines(&self) -> Vec<String> {
        let ok = self.reasons().is_empty().then(|| "ok".to_owned());
        let (down, up): (Vec<_>, Vec<_>) = self.pools.iter().partition(|pool| pool.ready == 0);
        let pools = down.into_iter().chain(up).map(PoolReport::line);
        ok.into_iter().chain(self.process.iter().cloned()).chain(pools).collect()
    }

    /// The pools because of which the process is not ready.
    fn lacking(&self) -> Vec<&PoolReport> {
        let down: Vec<_> = self.pools.iter().filter(|pool| pool.ready == 0).collect();
        match self.required {
            RequiredPools::All => down,
            RequiredPools::Any if down.len() == self.pools.len() => down,
            RequiredPools::Any | RequiredPools::None => Vec::new(),
        }
    }
}

// === impl PoolReport ===

impl PoolReport {
    fn of(pool: &dyn PoolView) -> Self {
        let members = pool.members();
        let ready = members.iter().filter(|member| Member::is_ready(member)).count();
        Self { name: pool.name().to_owned(), ready, members: members.len() }
    }

    fn line(&self) -> String {
        let Self { name, ready, members } = self;
        match (ready, members) {
            (0, _) => format!("pool {name}: no backend is ready"),
            (1, 1) => format!("pool {name}: its backend is ready"),
            (1, members) => format!("pool {name}: 1 of {members} backends is ready"),
            (ready, members) => format!("pool {name}: {ready} of {members} backends are ready"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pools::tests::{FixedPool, member, views};

    fn readiness(pools: Vec<FixedPool>) -> Readiness {
        Readiness::new(views(pools))
    }

    fn listening(required: RequiredPools, pools: Vec<FixedPool>) -> Readiness {
        let readiness = readiness(pools);
        readiness.set_listening(true);
        readiness.require(required);
        readiness
    }

    fn healthy() -> FixedPool {
        FixedPool::new("web", vec![member("a", 1, false), member("b", 1, true)])
    }

    fn down() -> FixedPool {
        FixedPool::new("api", vec![member("a", 1, false)])
    }

    fn no_backend(pools: &[&str]) -> Result<(), Vec<String>> {
        Err(pools.iter().map(|pool| format!("pool {pool}: no backend is ready")).collect())
    }

    #[test]
    fn readiness_starts_as_not_listening() {
        let readiness = readiness(vec![healthy()]);
        let reasons = vec!["starting: the listeners do not accept yet".to_owned()];
        assert_eq!(readiness.check(), Err(reasons));
    }

    #[test]
    fn by_default_one_pool_with_a_ready_backend_is_enough() {
        let readiness = readiness(vec![down(), healthy()]);
        readiness.set_listening(true);
        assert_eq!(readiness.check(), Ok(()));
    }

    #[test]
    fn with_any_the_process_is_not_ready_when_no_pool_is() {
        let empty = FixedPool::new("void", vec![]);
        let readiness = listening(RequiredPools::Any, vec![down(), empty]);
        assert_eq!(readiness.check(), no_backend(&["api", "void"]));
    }

    #[test]
    fn with_all_each_pool_without_a_ready_backend_is_a_reason() {
        let empty = FixedPool::new("void", vec![]);
        let readiness = listening(RequiredPools::All, vec![healthy(), down(), empty]);
        assert_eq!(readiness.check(), no_backend(&["api", "void"]));
        assert_eq!(listening(RequiredPools::All, vec![healthy()]).check(), Ok(()));
    }

    #[test]
    fn with_none_pools_do_not_count() {
        assert_eq!(listening(RequiredPools::None, vec![down()]).check(), Ok(()));
    }

    #[test]
    fn the_required_pools_can_change() {
        let readiness = listening(RequiredPools::Any, vec![healthy(), down()]);
        readiness.clone().require(RequiredPools::All);
        assert_eq!(readiness.check(), no_backend(&["api"]));
        readiness.require(RequiredPools::None);
        assert_eq!(readiness.check(), Ok(()));
    }

    #[test]
    fn all_pools_are_named_required_or_not() {
        for required in [RequiredPools::Any, RequiredPools::All, RequiredPools::None] {
            let readiness = listening(required, vec![healthy(), down()]);
            assert_eq!(readiness.pools(true), ["web"]);
            assert_eq!(readiness.pools(false), ["api"]);
        }
    }

    #[test]
    fn the_lines_name_every_pool_and_start_with_those_without_a_ready_backend() {
        let readiness = listening(RequiredPools::Any, vec![healthy(), down()]);
        let pools = ["pool api: no backend is ready", "pool web: 1 of 2 backends is ready"];
        assert_eq!(readiness.report().lines(), [&["ok"], &pools[..]].concat());
        readiness.set_draining(true);
        assert_eq!(readiness.report().lines(), [&["draining"], &pools[..]].concat());
        readiness.set_draining(false);
        readiness.require(RequiredPools::All);
        assert_eq!(readiness.report().lines(), pools, "the pool is the reason");
    }

    #[test]
    fn a_process_whose_readiness_is_withheld_is_never_ready() {
        let readiness = listening(RequiredPools::None, vec![healthy()]);
        readiness.clone().withhold("demo");
        assert_eq!(readiness.check(), Err(vec!["demo".to_owned()]));
    }

    #[test]
    fn a_drain_is_visible_in_every_clone_and_can_be_cancelled() {
        let readiness = readiness(vec![healthy()]);
        readiness.set_listening(true);
        let clone = readiness.clone();
        clone.set_draining(true);
        assert_eq!(readiness.check(), Err(vec!["draining".to_owned()]));
        clone.set_draining(false);
        assert_eq!(readiness.check(), Ok(()));
    }
}
