//! Pools as the metrics show them: their backends, weights and states.

use std::sync::Arc;

use pingora::lb::LoadBalancer;
use pingora::lb::selection::{BackendIter, BackendSelection};
use pingora::protocols::l4::socket::SocketAddr;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Metric, MetricFamily};

use crate::exposition::{Family, Kind};

/// A snapshot of one backend of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// `1.2.3.4:80`, `[::1]:80` or the path of a Unix socket.
    pub address: String,
    /// The configured weight.
    pub weight: usize,
    /// The current state.
    pub state: BackendState,
}

/// A pool that can be read while it is in use.
pub trait PoolView: Send + Sync {
    /// The name of the pool, which is unique in the program.
    fn name(&self) -> &str;

    /// The current backends, each address once.
    fn members(&self) -> Vec<Member>;
}

/// The current pools: a fixed list, or the result of a function. Clones share it.
#[derive(Clone)]
pub struct Views(Arc<dyn Fn() -> Vec<Arc<dyn PoolView>> + Send + Sync>);

/// A Pingora [`LoadBalancer`] with the name of its pool.
///
/// The proxy and the prober use the same balancer.
pub struct BalancedPool<S: BackendSelection> {
    name: String,
    balancer: Arc<LoadBalancer<S>>,
}

/// The states of a backend. Each has a series in `lb_backend_state`, and exactly one series is 1.
///
/// The backends of a plain Pingora balancer are either up or down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// It gets requests.
    Up,
    /// Its health checks fail.
    Down,
    /// An operator drains it.
    Draining,
    /// It failed requests or was too slow, and gets none until the ejection ends.
    Ejected,
    /// An operator has disabled it.
    Disabled,
}

/// `lb_backend_up`, `lb_backend_weight` and `lb_backend_state` of some pools, read at each scrape.
pub struct PoolCollector {
    pools: Views,
    up: Family,
    weight: Family,
    state: Family,
}

// === impl Views ===

impl Views {
    /// Calls `pools` for each scrape.
    pub fn read_by(pools: impl Fn() -> Vec<Arc<dyn PoolView>> + Send + Sync + 'static) -> Self {
        Views(Arc::new(pools))
    }

    pub(crate) fn now(&self) -> Vec<Arc<dyn PoolView>> {
        (self.0)()
    }
}

impl From<Vec<Arc<dyn PoolView>>> for Views {
    fn from(pools: Vec<Arc<dyn PoolView>>) -> Self {
        Views::read_by(move || pools.clone())
    }
}

// === impl BalancedPool ===

impl<S: BackendSelection> BalancedPool<S> {
    /// Shows `balancer` as the pool `name`.
    pub fn new(name: impl Into<String>, balancer: Arc<LoadBalancer<S>>) -> Self {
        BalancedPool { name: name.into(), balancer }
    }
}

impl<S> PoolView for BalancedPool<S>
where
    S: BackendSelection + Send + Sync + 'static,
    S::Iter: BackendIter,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn members(&self) -> Vec<Member> {
        let backends = self.balancer.backends();
        let members = backends.get_backend();
        let members = members.iter().map(|backend| Member {
            address: label(&backend.addr),
            weight: backend.weight,
            state: BackendState::of(backends.ready(backend)),
        });
        merge_addresses(members)
    }
}

/// Returns an address as labels and logs write it: `10.0.0.1:80` or `unix:/path`.
fn label(address: &SocketAddr) -> String {
    match address {
        SocketAddr::Inet(address) => address.to_string(),
        SocketAddr::Unix(_) => format!("unix:{address}"),
    }
}

/// Merges backends with equal addresses into one, which has the sum of the weights and is up if either is.
///
/// To Pingora, one address with two weights is two backends. Prometheus would refuse a scrape with two series of the
/// same labels. Equal addresses are adjacent, because the set of backends is ordered by address.
fn merge_addresses(members: impl Iterator<Item = Member>) -> Vec<Member> {
    let mut merged: Vec<Member> = Vec::new();
    for member in members {
        match merged.last_mut() {
            Some(last) if last.address == member.address => {
                last.weight = last.weight.saturating_add(member.weight);
                if member.is_ready() {
                    last.state = member.state;
                }
            }
            _ => merged.push(member),
        }
    }
    merged
}

// === impl Member ===

impl Member {
    /// Whether it gets requests.
    pub fn is_ready(&self) -> bool {
        self.state == BackendState::Up
    }
}

// === impl BackendState ===

impl BackendState {
    const ALL: [BackendState; 5] = [
        BackendState::Up,
        BackendState::Down,
        BackendState::Draining,
        BackendState::Ejected,
        BackendState::Disabled,
    ];

    /// Up if the backend is ready, otherwise down.
    pub fn of(ready: bool) -> Self {
        if ready { BackendState::Up } else { BackendState::Down }
    }

    /// The value of the label `state`.
    fn label(self) -> &'static str {
        match self {
            BackendState::Up => "up",
            BackendState::Down => "down",
            BackendState::Draining => "draining",
            BackendState::Ejected => "ejected",
            BackendState::Disabled => "disabled",
        }
    }
}

// === impl PoolCollector ===

impl PoolCollector {
    /// Collects metrics of `pools`, whose names must be unique.
    pub fn new(pools: impl Into<Views>) -> Self {
        PoolCollector {
            pools: pools.into(),
            up: Family::new(
                Kind::Gauge,
                "lb_backend_up",
                "1 if the backend gets requests, otherwise 0.",
                &["pool", "backend"],
            ),
            weight: Family::new(
                Kind::Gauge,
                "lb_backend_weight",
                "The configured weight of the backend.",
                &["pool", "backend"],
            ),
            state: Family::new(
                Kind::Gauge,
                "lb_backend_state",
                "1 for the current state of the backend, 0 for the others.",
                &["pool", "backend", "state"],
            ),
        }
    }

    fn state_samples(&self, pool: &str, member: &Member) -> impl Iterator<Item = Metric> {
        let current = member.state;
        BackendState::ALL.into_iter().map(move |state| {
            let labels = [pool, member.address.as_str(), state.label()];
            self.state.sample(&labels, one_if(state == current))
        })
    }
}

impl Collector for PoolCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![self.up.desc(), self.weight.desc(), self.state.desc()]
    }

    /// Reads each pool once, so the three families of a scrape are consistent.
    fn collect(&self) -> Vec<MetricFamily> {
        let (mut up, mut weight, mut state) = (Vec::new(), Vec::new(), Vec::new());
        for pool in self.pools.now() {
            for member in pool.members() {
                let labels = [pool.name(), member.address.as_str()];
                up.push(self.up.sample(&labels, one_if(member.is_ready())));
                weight.push(self.weight.sample(&labels, member.weight as f64));
                state.extend(self.state_samples(pool.name(), &member));
            }
        }
        vec![self.up.with(up), self.weight.with(weight), self.state.with(state)]
    }
}

fn one_if(condition: bool) -> f64 {
    f64::from(u8::from(condition))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::{BTreeSet, HashMap};
    use std::sync::Mutex;

    use async_trait::async_trait;
    use pingora::lb::discovery::ServiceDiscovery;
    use pingora::lb::selection::RoundRobin;
    use pingora::lb::{Backend, Backends};

    use crate::exposition::tests::scrape;

    /// A pool with these members.
    pub(crate) struct FixedPool {
        name: &'static str,
        members: Vec<Member>,
    }

    impl FixedPool {
        pub(crate) fn new(name: &'static str, members: Vec<Member>) -> Self {
            FixedPool { name, members }
        }
    }

    impl PoolView for FixedPool {
        fn name(&self) -> &str {
            self.name
        }

        fn members(&self) -> Vec<Member> {
            self.members.clone()
        }
    }

    pub(crate) fn member(address: &str, weight: usize, ready: bool) -> Member {
        Member { address: address.to_owned(), weight, state: BackendState::of(ready) }
    }

    /// Discovers the backends that a test sets.
    #[derive(Clone, Default)]
    struct Scripted(Arc<Mutex<BTreeSet<Backend>>>);

    impl Scripted {
        fn set(&self, backends: &[(&str, usize)]) {
            let backend = |(address, weight): &(&str, usize)| {
                Backend::new_with_weight(address, *weight).expect("an address")
            };
            *self.0.lock().expect("no test panics with it") = backends.iter().map(backend).collect();
        }
    }

    #[async_trait]
    impl ServiceDiscovery for Scripted {
        async fn discover(&self) -> pingora::Result<(BTreeSet<Backend>, HashMap<u64, bool>)> {
            let backends = self.0.lock().expect("no test panics with it").clone();
            Ok((backends, HashMap::new()))
        }
    }

    fn scripted_balancer() -> (Scripted, Arc<LoadBalancer<RoundRobin>>) {
        let script = Scripted::default();
        let backends = Backends::new(Box::new(script.clone()));
        (script, Arc::new(LoadBalancer::from_backends(backends)))
    }

    /// Converts fixed pools to views.
    pub(crate) fn views<P: PoolView + 'static>(pools: impl IntoIterator<Item = P>) -> Vec<Arc<dyn PoolView>> {
        pools.into_iter().map(|pool| Arc::new(pool) as Arc<dyn PoolView>).collect()
    }

    fn collector(pool: impl PoolView + 'static) -> PoolCollector {
        PoolCollector::new(views([pool]))
    }

    #[test]
    fn a_plain_balancer_shows_its_backends_as_up_or_down() {
        let balancer = LoadBalancer::<RoundRobin>::try_from_iter(["127.0.0.1:2", "[::1]:1"]);
        let balancer = Arc::new(balancer.expect("addresses"));
        let down = Backend::new("[::1]:1").expect("an address");
        balancer.backends().set_enable(&down, false);
        assert_eq!(
            scrape(collector(BalancedPool::new("web", balancer))),
            r#"# HELP lb_backend_state 1 for the current state of the backend, 0 for the others.
# TYPE lb_backend_state gauge
lb_backend_state{pool="web",backend="127.0.0.1:2",state="disabled"} 0
lb_backend_state{pool="web",backend="127.0.0.1:2",state="down"} 0
lb_backend_state{pool="web",backend="127.0.0.1:2",state="draining"} 0
lb_backend_state{pool="web",backend="127.0.0.1:2",state="ejected"} 0
lb_backend_state{pool="web",backend="127.0.0.1:2",state="up"} 1
lb_backend_state{pool="web",backend="[::1]:1",state="disabled"} 0
lb_backend_state{pool="web",backend="[::1]:1",state="down"} 1
lb_backend_state{pool="web",backend="[::1]:1",state="draining"} 0
lb_backend_state{pool="web",backend="[::1]:1",state="ejected"} 0
lb_backend_state{pool="web",backend="[::1]:1",state="up"} 0
# HELP lb_backend_up 1 if the backend gets requests, otherwise 0.
# TYPE lb_backend_up gauge
lb_backend_up{pool="web",backend="127.0.0.1:2"} 1
lb_backend_up{pool="web",backend="[::1]:1"} 0
# HELP lb_backend_weight The configured weight of the backend.
# TYPE lb_backend_weight gauge
lb_backend_weight{pool="web",backend="127.0.0.1:2"} 1
lb_backend_weight{pool="web",backend="[::1]:1"} 1
"#
        );
    }

    #[test]
    fn each_scrape_shows_the_current_pools() {
        let pools: Arc<Mutex<Vec<Arc<dyn PoolView>>>> = Arc::default();
        let seen = pools.clone();
        let shown = Views::read_by(move || seen.lock().expect("no test panics with it").clone());
        let registry = prometheus::Registry::new();
        registry.register(Box::new(PoolCollector::new(shown))).expect("registers");
        let scrape = || crate::exposition::text(&registry).expect("encodes");
        assert_eq!(scrape(), "");
        *pools.lock().expect("no test panics with it") =
            views([FixedPool::new("web", vec![member("a", 1, true)])]);
        assert!(scrape().contains("lb_backend_up{pool=\"web\",backend=\"a\"} 1\n"));
        pools.lock().expect("no test panics with it").clear();
        assert_eq!(scrape(), "");
    }

    #[tokio::test]
    async fn a_removed_backend_is_absent_from_the_next_scrape() {
        let (script, balancer) = scripted_balancer();
        let registry = prometheus::Registry::new();
        let pool = BalancedPool::new("web", Arc::clone(&balancer));
        registry.register(Box::new(collector(pool))).expect("registers");
        let scrape = || crate::exposition::text(&registry).expect("encodes");

        script.set(&[("10.0.0.1:80", 1), ("10.0.0.2:80", 7)]);
        balancer.update().await.expect("updates");
        assert!(scrape().contains("lb_backend_weight{pool=\"web\",backend=\"10.0.0.2:80\"} 7\n"));

        script.set(&[("10.0.0.1:80", 3)]);
        balancer.update().await.expect("updates");
        let text = scrape();
        assert!(!text.contains("10.0.0.2"), "{text}");
        assert!(text.contains("lb_backend_weight{pool=\"web\",backend=\"10.0.0.1:80\"} 3\n"));

        script.set(&[]);
        balancer.update().await.expect("updates");
        assert_eq!(scrape(), "");
    }

    #[tokio::test]
    async fn one_address_with_two_weights_is_one_member() {
        let (script, balancer) = scripted_balancer();
        script.set(&[("10.0.0.1:80", 1), ("10.0.0.1:80", 3), ("10.0.0.2:80", 1)]);
        balancer.update().await.expect("updates");
        let light = Backend::new("10.0.0.1:80").expect("an address");
        balancer.backends().set_enable(&light, false);
        assert_eq!(
            BalancedPool::new("web", balancer).members(),
            [member("10.0.0.1:80", 4, true), member("10.0.0.2:80", 1, true)]
        );
    }

    /// The label vectors of `prometheus` would merge these two series.
    #[test]
    fn label_values_that_run_together_stay_two_series() {
        let text = scrape(PoolCollector::new(views([
            FixedPool::new("web", vec![member("11", 5, true)]),
            FixedPool::new("web1", vec![member("1", 7, false)]),
        ])));
        for line in [
            "lb_backend_weight{pool=\"web\",backend=\"11\"} 5\n",
            "lb_backend_weight{pool=\"web1\",backend=\"1\"} 7\n",
            "lb_backend_up{pool=\"web\",backend=\"11\"} 1\n",
            "lb_backend_up{pool=\"web1\",backend=\"1\"} 0\n",
            "lb_backend_state{pool=\"web\",backend=\"11\",state=\"up\"} 1\n",
            "lb_backend_state{pool=\"web1\",backend=\"1\",state=\"up\"} 0\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_backend_in_two_pools_has_a_series_in_each() {
        let text = scrape(PoolCollector::new(views([
            FixedPool::new("a", vec![member("h:1", 1, true)]),
            FixedPool::new("b", vec![member("h:1", 2, false)]),
        ])));
        assert!(text.contains("lb_backend_up{pool=\"a\",backend=\"h:1\"} 1\n"));
        assert!(text.contains("lb_backend_up{pool=\"b\",backend=\"h:1\"} 0\n"));
    }

    #[test]
    fn labels_are_written_as_in_the_configuration() {
        for text in ["10.0.0.1:80", "[::1]:80", "unix:/run/app.sock"] {
            assert_eq!(label(&text.parse().unwrap()), text);
        }
    }
}
