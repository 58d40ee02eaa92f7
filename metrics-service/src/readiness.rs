//! Whether this process should be sent traffic, and if not, why.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::pools::{Member, Views};

/// The conditions behind `/readyz`. Clones share them.
///
/// Ready means all of: every listener accepts, every pool has a ready backend, no drain runs.
/// Starts as not listening and not draining.
#[derive(Clone)]
pub struct Readiness {
    conditions: Arc<Conditions>,
}

struct Conditions {
    pools: Views,
    listening: AtomicBool,
    draining: AtomicBool,
}

impl Readiness {
    /// Every one of `pools` must have a ready backend for the process to be ready.
    pub fn new(pools: impl Into<Views>) -> Self {
        let conditions = Conditions {
            pools: pools.into(),
            listening: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        };
        Readiness { conditions: Arc::new(conditions) }
    }

    /// To be called with `true` once every listener is bound and accepts.
    pub fn set_listening(&self, listening: bool) {
        self.conditions.listening.store(listening, Ordering::Release);
    }

    /// To be called with `true` when a drain begins, before the listeners close.
    pub fn set_draining(&self, draining: bool) {
        self.conditions.draining.store(draining, Ordering::Release);
    }

    /// # Errors
    ///
    /// Every reason for not being ready, each a line for a person to read.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let mut reasons = Vec::new();
        if self.conditions.draining.load(Ordering::Acquire) {
            reasons.push("draining".to_owned());
        }
        if !self.conditions.listening.load(Ordering::Acquire) {
            reasons.push("starting: the listeners do not accept yet".to_owned());
        }
        let unready = self.pools(false).into_iter();
        reasons.extend(unready.map(|pool| format!("pool {pool}: no backend is ready")));
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    /// The names of the pools that have a ready backend, or of those that have none.
    pub fn pools(&self, ready: bool) -> Vec<String> {
        let pools = self.conditions.pools.now().into_iter();
        let wanted = pools.filter(|pool| pool.members().iter().any(Member::is_ready) == ready);
        wanted.map(|pool| pool.name().to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pools::tests::{FixedPool, member, views};

    fn readiness(pools: Vec<FixedPool>) -> Readiness {
        Readiness::new(views(pools))
    }

    fn healthy() -> FixedPool {
        FixedPool::new("web", vec![member("a", 1, false), member("b", 1, true)])
    }

    #[test]
    fn starts_as_not_listening() {
        let readiness = readiness(vec![healthy()]);
        let reasons = vec!["starting: the listeners do not accept yet".to_owned()];
        assert_eq!(readiness.check(), Err(reasons));
    }

    #[test]
    fn one_ready_backend_in_each_pool_is_enough() {
        let readiness = readiness(vec![healthy(), healthy()]);
        readiness.set_listening(true);
        assert_eq!(readiness.check(), Ok(()));
    }

    #[test]
    fn a_pool_with_no_ready_backend_is_named() {
        let down = FixedPool::new("api", vec![member("a", 1, false)]);
        let empty = FixedPool::new("void", vec![]);
        let readiness = readiness(vec![healthy(), down, empty]);
        readiness.set_listening(true);
        let reasons =
            vec!["pool api: no backend is ready".to_owned(), "pool void: no backend is ready".to_owned()];
        assert_eq!(readiness.check(), Err(reasons));
        assert_eq!((readiness.pools(true), readiness.pools(false).len()), (vec!["web".to_owned()], 2));
    }

    #[test]
    fn a_drain_is_seen_through_every_clone_and_can_be_taken_back() {
        let readiness = readiness(vec![healthy()]);
        readiness.set_listening(true);
        let clone = readiness.clone();
        clone.set_draining(true);
        assert_eq!(readiness.check(), Err(vec!["draining".to_owned()]));
        clone.set_draining(false);
        assert_eq!(readiness.check(), Ok(()));
    }
}
