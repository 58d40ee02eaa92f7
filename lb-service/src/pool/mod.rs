//! A pool: the backends that serve the same thing, and how they are spoken to.
//!
//! Who is there and who is ready is in Pingora's [`LoadBalancer`], which the proxy, the prober and the metrics share as
//! one `Arc`; who is next is in our [`Policy`]. What the proxy itself knows of a backend (counters, how to connect to it)
//! is in [`Backend`], kept by address beside the selector, because Pingora builds a new selector on every change.

mod backend;
mod settings;

use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderValue;
use pingora::lb::health_check::HealthCheck;
use pingora::lb::{Backends, HealthRegistry, LoadBalancer, discovery};

pub use backend::{Attempt, Backend, UpstreamError};
pub use settings::{BackendSettings, PolicyKind, PoolId, PoolSettings, Timeouts, UpstreamTls, Weight};

use crate::policy::{Policy, PolicyConfig};
use crate::stats::Counter;

/// A pool at work.
pub struct Pool {
    /// Its name in the configuration, metrics and logs.
    pub name: Arc<str>,
    /// Membership, readiness and selection, shared with the prober and the metrics.
    pub balancer: Arc<LoadBalancer<Policy>>,
    /// The `Host` header sent to the backends; absent: the client's own.
    pub host: Option<HeaderValue>,
    /// How many more backends are tried when a connection cannot be made.
    pub retry_attempts: usize,
    /// Requests that were sent to another backend because a connection could not be made.
    pub retries: Counter,
    /// Sorted by address, so that a pick finds its counters without hashing.
    backends: Box<[Arc<Backend>]>,
}

/// Why a candidate of the policy was passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its health checks fail, or an operator disabled it.
    Down,
    /// This request was already sent to it.
    Tried,
}

/// The backends that one request was sent to.
#[derive(Debug, Default)]
pub struct Tried(Vec<SocketAddr>);

// === impl Pool ===

impl Pool {
    /// A pool whose readiness is what `health_check` says; without one, every backend is always ready.
    ///
    /// Health is kept in `registry`, which decides which backends share a state: keyed by address, a change of weight
    /// loses none.
    pub fn new(
        settings: &PoolSettings,
        registry: Arc<HealthRegistry>,
        health_check: Option<Box<dyn HealthCheck + Send + Sync>>,
    ) -> Self {
        let mut backends: Vec<_> =
            settings.backends.iter().map(|backend| Arc::new(Backend::new(settings, backend))).collect();
        backends.sort_by_key(|backend| backend.address);
        Self {
            name: settings.name.clone(),
            balancer: Arc::new(balancer(settings, registry, health_check)),
            host: settings.host.clone(),
            retry_attempts: settings.retry_attempts,
            retries: Counter::default(),
            backends: backends.into(),
        }
    }

    /// The backend that the policy would send a request to, among those that are ready and were not tried.
    pub fn pick(&self, tried: &Tried) -> Option<&Arc<Backend>> {
        let accept = |address: SocketAddr, ready: bool| refusal(address, ready, tried).is_none();
        let picked = self.balancer.select_with(b"", self.backends.len(), |backend, ready| {
            backend.addr.as_inet().is_some_and(|address| accept(*address, ready))
        })?;
        self.backend(*picked.addr.as_inet()?)
    }

    /// Whether a request whose connection could not be made goes to yet another backend; counts it if so.
    pub fn retry_after_failed_connection(&self, tried: &Tried) -> bool {
        let again = tried.len() <= self.retry_attempts && self.has_candidate(tried);
        if again {
            self.retries.increment();
        }
        again
    }

    fn has_candidate(&self, tried: &Tried) -> bool {
        let balanced = self.balancer.backends();
        balanced.get_backend().iter().any(|backend| {
            let address = backend.addr.as_inet();
            address.is_some_and(|address| refusal(*address, balanced.ready(backend), tried).is_none())
        })
    }

    /// The backend with this address.
    pub fn backend(&self, address: SocketAddr) -> Option<&Arc<Backend>> {
        let index = self.backends.binary_search_by_key(&address, |backend| backend.address).ok()?;
        self.backends.get(index)
    }

    /// All backends, in the order of their addresses.
    pub fn backends(&self) -> &[Arc<Backend>] {
        &self.backends
    }
}

fn balancer(
    settings: &PoolSettings,
    registry: Arc<HealthRegistry>,
    health_check: Option<Box<dyn HealthCheck + Send + Sync>>,
) -> LoadBalancer<Policy> {
    let members = settings.backends.iter().map(|backend| pingora::lb::Backend {
        addr: pingora::protocols::l4::socket::SocketAddr::Inet(backend.address),
        weight: backend.weight.get(),
        ext: http::Extensions::new(),
    });
    if let Some(check) = health_check {
        registry.set_health_check(check);
    }
    let backends = Backends::new_with_health_registry(discovery::Static::new(members.collect()), registry);
    let config = match settings.policy {
        PolicyKind::RoundRobin => PolicyConfig::default(),
    };
    let balancer = LoadBalancer::from_backends_with_config(backends, Some(config));
    futures::FutureExt::now_or_never(balancer.update())
        .expect("a static list of backends is there at once")
        .expect("a static list of backends cannot fail");
    balancer
}

/// Why a request may not go to this backend; `None` if it may.
fn refusal(address: SocketAddr, ready: bool, tried: &Tried) -> Option<Refusal> {
    if !ready {
        Some(Refusal::Down)
    } else if tried.contains(address) {
        Some(Refusal::Tried)
    } else {
        None
    }
}

// === impl Tried ===

impl Tried {
    /// Remembers that the request was sent to this backend.
    pub fn insert(&mut self, address: SocketAddr) {
        self.0.push(address);
    }

    /// Whether the request was sent to this backend.
    pub fn contains(&self, address: SocketAddr) -> bool {
        self.0.contains(&address)
    }

    /// How many backends were tried.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(addresses: &[&str]) -> Pool {
        let backend =
            |address: &&str| BackendSettings { address: address.parse().unwrap(), weight: Weight::default() };
        let settings = PoolSettings::new("web", addresses.iter().map(backend).collect());
        Pool::new(&settings, Arc::new(HealthRegistry::new()), None)
    }

    #[test]
    fn picks_alternate() {
        let pool = pool(&["127.0.0.1:2", "127.0.0.1:1"]);
        let picks: Vec<_> =
            (0..4).filter_map(|_| pool.pick(&Tried::default())).map(|b| b.address.port()).collect();
        assert_eq!(picks[..2], picks[2..]);
        assert_ne!(picks[0], picks[1]);
    }

    #[test]
    fn a_tried_backend_is_not_picked_again() {
        let pool = pool(&["127.0.0.1:1", "127.0.0.1:2"]);
        let mut tried = Tried::default();
        let first = pool.pick(&tried).unwrap().address;
        tried.insert(first);
        let second = pool.pick(&tried).unwrap().address;
        assert_ne!(first, second);
        tried.insert(second);
        assert!(pool.pick(&tried).is_none());
    }

    #[test]
    fn a_disabled_backend_is_not_picked() {
        let pool = pool(&["127.0.0.1:1", "127.0.0.1:2"]);
        for backend in
            pool.balancer.backends().get_backend().iter().filter(|b| b.addr.as_inet().unwrap().port() == 1)
        {
            pool.balancer.backends().set_enable(backend, false);
        }
        for _ in 0..4 {
            assert_eq!(pool.pick(&Tried::default()).unwrap().address.port(), 2);
        }
    }

    #[test]
    fn down_is_said_before_tried() {
        let mut tried = Tried::default();
        let address = "127.0.0.1:1".parse().unwrap();
        assert_eq!(refusal(address, true, &tried), None);
        tried.insert(address);
        assert_eq!(refusal(address, true, &tried), Some(Refusal::Tried));
        assert_eq!(refusal(address, false, &tried), Some(Refusal::Down));
    }
}
