//! What the checks of one pool have found, by the address of the backend.
//!
//! [`Verdicts`] is the meeting point: the [`Prober`](crate::Prober) writes, the status page reads, and Pingora's
//! `LoadBalancer` learns through [`Verdicts::publisher`], a `HealthCheck` that answers at once with what is already
//! known. No request ever reads it.
//!
//! Verdicts are kept by **address**. Pingora's own identity of a backend includes its weight, so that a new weight would
//! be a new backend, healthy until proven otherwise; [`registry`] makes Pingora, too, keep health by address.

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
    /// Why backends were down when they left the pool: balancers from before that still hold them learn nothing else.
    retired: HashMap<SocketAddr, String>,
}

/// A registry that keeps health by address, so that a change of weight keeps it.
///
/// Give it to `Backends::new_with_health_registry`, one registry for each pool, and set its check to
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
    /// Verdicts on nobody.
    pub fn new() -> Self {
        Self::default()
    }

    /// The verdict on the backend at `address`; `None` before its first check, and for pools without checks.
    pub fn get(&self, address: &SocketAddr) -> Option<HealthVerdict> {
        self.read().members.get(address).cloned()
    }

    /// The check to set on the `LoadBalancer` of the pool, or on its registry.
    ///
    /// It makes no connection: it tells Pingora the verdict, and each telling counts. A backend without a verdict
    /// passes, which is how Pingora begins, too.
    pub fn publisher(&self) -> Box<dyn HealthCheck + Send + Sync> {
        Box::new(Publisher(self.clone()))
    }

    /// Whether both are the same, and not only equal.
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

    /// Forgets the verdict, but goes on to publish that the backend is down, if it is, until it
    /// [need not](Self::keep_retired).
    pub(crate) fn retire(&self, address: &SocketAddr) {
        let mut contents = self.write();
        if let Some(verdict) = contents.members.remove(address).filter(|verdict| !verdict.up) {
            contents.retired.insert(address.clone(), verdict.reason);
        }
    }

    /// Goes on to publish of those that have left only the backends that balancers from before still `hold`.
    pub(crate) fn keep_retired(&self, hold: impl Fn(&SocketAddr) -> bool) {
        self.write().retired.retain(|address, _| hold(address));
    }

    /// How many are retired.
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

    // The thresholds were applied on the way to the verdict.
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
    async fn a_pass_tells_the_balancer_each_verdict() {
        let (membership, verdicts) = (Membership::default(), Verdicts::new());
        membership.set([("10.0.0.1:80", 1), ("10.0.0.2:80", 1)]);
        let balancer = balancer(&membership, &verdicts);
        balancer.update().await.expect("the membership is there");

        let first: SocketAddr = "10.0.0.1:80".parse().expect("valid address");
        verdicts.set(&first, down());
        balancer.backends().run_health_check(false).await;
        assert_eq!(ready(&balancer), [("10.0.0.1:80".to_owned(), false), ("10.0.0.2:80".to_owned(), true)]);

        verdicts.forget(&first);
        balancer.backends().run_health_check(false).await;
        assert!(ready(&balancer).iter().all(|(_, ready)| *ready));
    }

    #[tokio::test]
    async fn a_change_of_weight_keeps_the_state_and_a_removal_forgets_it() {
        let (membership, verdicts) = (Membership::default(), Verdicts::new());
        membership.set([("10.0.0.1:80", 1)]);
        let balancer = balancer(&membership, &verdicts);
        balancer.update().await.expect("the membership is there");
        verdicts.set(&"10.0.0.1:80".parse().expect("valid address"), down());
        balancer.backends().run_health_check(false).await;

        membership.set([("10.0.0.1:80", 7)]);
        balancer.update().await.expect("the membership is there");
        assert_eq!(balancer.backends().get_backend().first().map(|backend| backend.weight), Some(7));
        assert_eq!(ready(&balancer), [("10.0.0.1:80".to_owned(), false)]);

        membership.set([]);
        balancer.update().await.expect("the membership is there");
        membership.set([("10.0.0.1:80", 7)]);
        balancer.update().await.expect("the membership is there");
        assert_eq!(ready(&balancer), [("10.0.0.1:80".to_owned(), true)]);
    }

    // What Pingora's registry does when the balancer of a pool is replaced by another over the same registry.

    use crate::membership::{members, ready as readiness};

    const ONE: &str = "10.0.0.1:80";
    const TWO: &str = "10.0.0.2:80";
    const THREE: &str = "10.0.0.3:80";

    /// Verdicts by which these are down, and a registry that is told them.
    fn down_are(addresses: &[&str]) -> (Verdicts, Arc<HealthRegistry>) {
        let (verdicts, registry) = (Verdicts::new(), registry());
        registry.set_health_check(verdicts.publisher());
        for address in addresses {
            verdicts.set(&address.parse().expect("valid address"), down());
        }
        (verdicts, registry)
    }

    #[tokio::test]
    async fn a_second_balancer_has_the_health_of_those_that_stay_and_takes_the_new_ones_for_up() {
        let (verdicts, registry) = down_are(&[ONE]);
        let first = members(&[ONE, TWO], &registry).await;
        registry.run_health_check(false).await;
        let second = members(&[ONE, THREE], &registry).await;
        assert_eq!(readiness(&second), [false, true], "a backend that is new begins as healthy");
        assert_eq!(readiness(&first), [false, true], "the first balancer notices nothing");

        verdicts.set(&THREE.parse().expect("valid address"), down());
        first.backends().run_health_check(false).await;
        assert_eq!(readiness(&second), [false, false], "a pass over one tells both");
    }

    #[tokio::test]
    async fn the_end_of_one_balancer_takes_no_health_from_the_other() {
        let (_verdicts, registry) = down_are(&[ONE, TWO]);
        let first = members(&[ONE, TWO], &registry).await;
        registry.run_health_check(false).await;
        let second = members(&[ONE], &registry).await;
        drop(first);
        assert_eq!(registry.target_count(), 1, "the registry forgets those that only the first one had");
        assert_eq!(readiness(&second), [false]);
        let third = members(&[ONE, TWO], &registry).await;
        assert_eq!(readiness(&third), [false, true], "who comes back after that begins as healthy");
    }

    #[tokio::test]
    async fn fewer_members_in_one_balancer_take_no_health_from_the_other() {
        let (_verdicts, registry) = down_are(&[ONE]);
        let membership = Membership::default();
        membership.set([(ONE, 1), (TWO, 1)]);
        let first = crate::membership::view(&membership, &registry);
        first.update().await.expect("the membership is there");
        let second = members(&[ONE, TWO], &registry).await;
        registry.run_health_check(false).await;
        membership.set([]);
        first.update().await.expect("the membership is there");
        assert_eq!(readiness(&second), [false, true]);
    }

    #[tokio::test]
    async fn a_backend_that_was_down_when_it_left_stays_down_for_balancers_from_before() {
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
    async fn a_new_verdict_takes_the_place_of_the_one_from_before_the_backend_left() {
        let (verdicts, registry) = down_are(&[ONE]);
        let address = ONE.parse().expect("valid address");
        let balancer = members(&[ONE], &registry).await;
        verdicts.retire(&address);
        verdicts.set(&address, HealthVerdict { up: true, ..down() });
        registry.run_health_check(false).await;
        assert_eq!(readiness(&balancer), [true]);
    }
}
