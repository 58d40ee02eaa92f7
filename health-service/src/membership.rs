//! Test helper: a balancer whose backends can change.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use pingora::lb::discovery::ServiceDiscovery;
use pingora::lb::selection::RoundRobin;
use pingora::lb::{Backend, Backends, HealthRegistry, LoadBalancer};

use crate::verdicts::{Verdicts, registry};

/// Backends that tests can change. The balancer sees a change at its next `update`.
#[derive(Clone, Default)]
pub(crate) struct Membership(Arc<Mutex<BTreeSet<Backend>>>);

impl Membership {
    /// Replaces the backends with these addresses and weights.
    pub(crate) fn set(&self, backends: impl IntoIterator<Item = (&'static str, usize)>) {
        *self.0.lock().expect("no test panics while it holds the lock") = backends
            .into_iter()
            .map(|(address, weight)| Backend::new_with_weight(address, weight).expect("valid address"))
            .collect();
    }
}

#[async_trait]
impl ServiceDiscovery for Membership {
    async fn discover(&self) -> pingora::Result<(BTreeSet<Backend>, HashMap<u64, bool>)> {
        let backends = self.0.lock().expect("no test panics while it holds the lock").clone();
        Ok((backends, HashMap::new()))
    }
}

/// A balancer of `membership`, still without backends, whose health check is the publisher of `verdicts`.
pub(crate) fn balancer(membership: &Membership, verdicts: &Verdicts) -> LoadBalancer<RoundRobin> {
    let registry = registry();
    registry.set_health_check(verdicts.publisher());
    view(membership, &registry)
}

/// A balancer of `membership`, still without backends, with a registry that may be shared.
pub(crate) fn view(membership: &Membership, registry: &Arc<HealthRegistry>) -> LoadBalancer<RoundRobin> {
    let backends = Backends::new_with_health_registry(Box::new(membership.clone()), Arc::clone(registry));
    LoadBalancer::from_backends(backends)
}

/// A balancer that has already discovered these addresses.
pub(crate) async fn members(
    addresses: &[&'static str],
    registry: &Arc<HealthRegistry>,
) -> Arc<LoadBalancer<RoundRobin>> {
    let membership = Membership::default();
    membership.set(addresses.iter().map(|address| (*address, 1)));
    let balancer = view(&membership, registry);
    balancer.update().await.expect("the membership is known");
    Arc::new(balancer)
}

/// Whether each of the members is ready, in the order of their addresses.
pub(crate) fn ready(balancer: &LoadBalancer<RoundRobin>) -> Vec<bool> {
    let backends = balancer.backends();
    backends.get_backend().iter().map(|backend| backends.ready(backend)).collect()
}
