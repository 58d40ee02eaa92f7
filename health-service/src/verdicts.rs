//! The results of the checks of one pool, by the address of the backend.
//!
//! The [`Prober`](crate::Prober) writes [`Verdicts`] and the status page reads them. Pingora's `LoadBalancer` gets them
//! through [`Verdicts::publisher`], a `HealthCheck` that returns the stored verdict at once. No request ever reads
//! them.
//!
//! Verdicts are keyed by **address**. To Pingora, the weight is part of the identity of a backend, so a backend with a
//! new weight would be a new one, which starts as healthy. [`registry`] makes Pingora key health by address, too.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use pingora::lb::health_check::HealthCheck;
use pingora::lb::{Backend, HealthRegistry};
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, ErrorType};

use crate::state::HealthVerdict;

/// The verdicts on the backends of one pool. Clones share their contents.
#[derive(Clone, Debug, Default)]
pub struct Verdicts(Arc<RwLock<Contents>>);

#[derive(Debug, Default)]
struct Contents {
    members: HashMap<SocketAddr, HealthVerdict>,
    /// Why backends were down when they left the pool. Earlier balancers that still hold them keep this state.
    retired: HashMap<SocketAddr, String>,
}

/// A registry that keys health by address, so a change of weight does not reset it.
///
/// Pass it to `Backends::new_with_health_registry`, one registry for each pool, and set its check to
/// [`Verdicts::publisher`].
pub fn registry() -> Arc<HealthRegistry> {
    Arc::new(HealthRegistry::with_equivalence(|backend| {
        let mut hasher = DefaultHasher::new();
        backend.addr.hash(&mut hasher);
        hasher.finish()
    }))
}

// === impl Verdicts ===

impl Verdicts {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// The verdict on the backend at `address`; `None` before its first check and in pools without checks.
    pub fn get(&self, address: &SocketAddr) -> Option<HealthVerdict> {
        self.read().members.get(address).cloned()
    }

    /// The health check to set on the `LoadBalancer` of the pool, or on its registry.
    ///
    /// It makes no connection: it returns the stored verdict, and Pingora applies each result at once. A backend
    /// without a verdict passes, since Pingora also starts backends as healthy.
    pub fn publisher(&self) -> Box<dyn HealthCheck + Send + Sync> {
        Box::new(Publisher(self.clone()))
    }

    /// Whether both share the same contents.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn set(&self, address: &SocketAddr, verdict: HealthVerdict) {
        let mut contents = self.write();
        contents.retired.remove(address);
        contents.members.insert(address.clone(), verdict);
    }

    pub(crate) fn forget(&self, address: &SocketAddr) {
        self.write().members.remove(address);
    }

    /// Removes the verdict. If the backend is down, it is still published as down until
    /// [`keep_retired`](Self::keep_retired) drops it.
    pub(crate) fn retire(&self, address: &SocketAddr) {
        let mut contents = self.write();
        if let Some(verdict) = contents.members.remove(address).filter(|verdict| !verdict.up) {
            contents.retired.insert(address.clone(), verdict.reason);
        }
    }

    /// Drops each retired backend that no earlier balancer `hold`s any more.
    pub(crate) fn keep_retired(&self, hold: impl Fn(&SocketAddr) -> bool) {
        self.write().retired.retain(|address, _| hold(address));
    }

    /// Number of retired backends.
    #[cfg(test)]
    pub(crate) fn retired(&self) -> usize {
        self.read().retired.len()
    }

    pub(crate) fn forget_all(&self) {
        *self.write() = Contents::default();
    }

    fn failure(&self, address: &SocketAddr) -> Option<String> {
        let contents = self.read();
        match contents.members.get(address) {
            Some(verdict) => (!verdict.up).then(|| verdict.reason.clone()),
            None => contents.retired.get(address).cloned(),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Contents> {
        self.0.read()
    }

    fn write(&self) -> RwLockWriteGuard<'_, Contents> {
        self.0.write()
    }
}

// === impl Publisher ===

struct Publisher(Verdicts);

#[async_trait]
impl HealthCheck for Publisher {
    async fn check(&self, target: &Backend) -> pingora::Result<()> {
        match self.0.failure(&target.addr) {
            None => Ok(()),
            Some(reason) => Error::e_explain(ErrorType::new("HealthCheck"), reason),
        }
    }

    fn backend_summary(&self, target: &Backend) -> String {
        format!("backend {}", target.addr)
    }

    // The verdict has already passed our own thresholds.
    fn health_threshold(&self, _success: bool) -> usize {
        1
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use pingora::lb::LoadBalancer;
    use pingora::lb::selection::RoundRobin;

    use super::*;
    use crate::membership::{Membership, balancer};
    use crate::state::CheckOutcome;

    fn down() -> HealthVerdict {
        let refused = CheckOutcome::Failed("connection refused".to_owned());
        HealthVerdict::entered(
            &refused,
            "1 check failed: connection refused".to_owned(),
            SystemTime::UNIX_EPOCH,
        )
    }

    fn ready(balancer: &LoadBalancer<RoundRobin>) -> Vec<(String, bool)> {
        let backends = balancer.backends();
        backends
            .get_backend()
            .iter()
            .map(|backend| (backend.addr.to_string(), backends.ready(backend)))
            .collect()
    }

    #[tokio::test]
    async fn a_pass_publishes_each_verdict_to_the_balancer() {
        let (membership, verdicts) = (Membership::default(), Verdicts::new());
        membership.set([("10.0.0.1:80", 1), ("10.0.0.2:80", 1)]);
        let balancer = balancer(&membership, &verdicts);
        balancer.update().await.expect("the membership is known");

        let first: SocketAddr = "10.0.0.1:80".parse().expect("valid address");
        verdicts.set(&first, down());
        balancer.backends().run_health_check(false).await;
        assert_eq!(ready(&balancer), [("10.0.0.1:80".to_owned(), false), ("10.0.0.2:80".to_owned(), true)]);

        verdicts.forget(&first);
        balancer.backends().run_health_check(false).await;
        assert!(ready(&balancer).iter().all(|(_, ready)| *ready));
    }

    #[tokio::test]
    async fn a_change_of_weight_keeps_the_state_and_a_removal_drops_it() {
        let (membership, verdicts) = (Membership::default(), Verdicts::new());
        membership.set([("10.0.0.1:80", 1)]);
        let balancer = balancer(&membership, &verdicts);
        balancer.update().await.expect("the membership is known");
        verdicts.set(&"10.0.0.1:80".parse().expect("valid address"), down());
        balancer.backends().run_health_check(false).await;

        membership.set([("10.0.0.1:80", 7)]);
        balancer.update().await.expect("the membership is known");
        assert_eq!(balancer.backends().get_backend().first().map(|backend| backend.weight), Some(7));
        assert_eq!(ready(&balancer), [("10.0.0.1:80".to_owned(), false)]);

        membership.set([]);
        balancer.update().await.expect("the membership is known");
        membership.set([("10.0.0.1:80", 7)]);
        balancer.update().await.expect("the membership is known");
        assert_eq!(ready(&balancer), [("10.0.0.1:80".to_owned(), true)]);
    }

    // How Pingora's registry behaves when the balancer of a pool is replaced by another one with the same registry.

    use crate::membership::{members, ready as readiness};

    const ONE: &str = "10.0.0.1:80";
    const TWO: &str = "10.0.0.2:80";
    const THREE: &str = "10.0.0.3:80";

    /// Verdicts with these backends down, and a registry that uses them.
    fn down_are(addresses: &[&str]) -> (Verdicts, Arc<HealthRegistry>) {
        let (verdicts, registry) = (Verdicts::new(), registry());
        registry.set_health_check(verdicts.publisher());
        for address in addresses {
            verdicts.set(&address.parse().expect("valid address"), down());
        }
        (verdicts, registry)
    }

    #[tokio::test]
    async fn a_second_balancer_keeps_the_health_of_known_backends_and_starts_new_ones_as_up() {
        let (verdicts, registry) = down_are(&[ONE]);
        let first = members(&[ONE, TWO], &registry).await;
        registry.run_health_check(false).await;
        let second = members(&[ONE, THREE], &registry).await;
        assert_eq!(readiness(&second), [false, true], "a new backend starts as healthy");
        assert_eq!(readiness(&first), [false, true], "the first balancer is unaffected");

        verdicts.set(&THREE.parse().expect("valid address"), down());
        first.backends().run_health_check(false).await;
        assert_eq!(readiness(&second), [false, false], "a pass over one balancer updates both");
    }

    #[tokio::test]
    async fn dropping_one_balancer_keeps_the_health_of_the_other() {
        let (_verdicts, registry) = down_are(&[ONE, TWO]);
        let first = members(&[ONE, TWO], &registry).await;
        registry.run_health_check(false).await;
        let second = members(&[ONE], &registry).await;
        drop(first);
        assert_eq!(registry.target_count(), 1, "the registry drops backends that only the first one had");
        assert_eq!(readiness(&second), [false]);
        let third = members(&[ONE, TWO], &registry).await;
        assert_eq!(readiness(&third), [false, true], "a backend that joins again starts as healthy");
    }

    #[tokio::test]
    async fn removing_members_from_one_balancer_keeps_the_health_of_the_other() {
        let (_verdicts, registry) = down_are(&[ONE]);
        let membership = Membership::default();
        membership.set([(ONE, 1), (TWO, 1)]);
        let first = crate::membership::view(&membership, &registry);
        first.update().await.expect("the membership is known");
        let second = members(&[ONE, TWO], &registry).await;
        registry.run_health_check(false).await;
        membership.set([]);
        first.update().await.expect("the membership is known");
        assert_eq!(readiness(&second), [false, true]);
    }

    #[tokio::test]
    async fn a_backend_that_was_down_when_it_left_stays_down_in_earlier_balancers() {
        let (verdicts, registry) = down_are(&[ONE, TWO]);
        let (one, two) = (ONE.parse().expect("valid address"), TWO.parse().expect("valid address"));
        let before = members(&[ONE, TWO], &registry).await;
        registry.run_health_check(false).await;
        verdicts.retire(&one);
        verdicts.forget(&two);
        assert_eq!((verdicts.get(&one), verdicts.get(&two)), (None, None));
        registry.run_health_check(false).await;
        assert_eq!(readiness(&before), [false, true]);
        verdicts.keep_retired(|_| false);
        registry.run_health_check(false).await;
        assert_eq!(readiness(&before), [true, true]);
    }

    #[tokio::test]
    async fn a_new_verdict_replaces_the_one_that_was_retired() {
        let (verdicts, registry) = down_are(&[ONE]);
        let address = ONE.parse().expect("valid address");
        let balancer = members(&[ONE], &registry).await;
        verdicts.retire(&address);
        verdicts.set(&address, HealthVerdict { up: true, ..down() });
        registry.run_health_check(false).await;
        assert_eq!(readiness(&balancer), [true]);
    }
}
