//! Pools as the metrics see them: who is there, with which weight, and who is ready.

use std::sync::Arc;

use pingora::lb::LoadBalancer;
use pingora::lb::selection::{BackendIter, BackendSelection};
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Metric, MetricFamily};

use crate::exposition::{Family, Kind};

/// One backend of a pool, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// `1.2.3.4:80`, `[::1]:80` or the path of a Unix socket.
    pub address: String,
    /// The configured weight.
    pub weight: usize,
    /// What it is at the moment.
    pub state: BackendState,
}

/// A pool that can be looked at while others use it.
pub trait PoolView: Send + Sync {
    /// The pool's name, different from that of every other pool in the same program.
    fn name(&self) -> &str;

    /// The backends now, each address once.
    fn members(&self) -> Vec<Member>;
}

/// The pools that there are at the moment: the same all the time, or what a function says. Clones share it.
#[derive(Clone)]
pub struct Views(Arc<dyn Fn() -> Vec<Arc<dyn PoolView>> + Send + Sync>);

/// A Pingora [`LoadBalancer`] with the name of its pool.
///
/// The balancer is the very one that the proxy picks from and the prober checks.
pub struct BalancedPool<S: BackendSelection> {
    name: String,
    balancer: Arc<LoadBalancer<S>>,
}

/// The states a backend can be in; in `lb_backend_state` each has a series, and exactly one is 1.
///
/// A bare Pingora balancer tells ready from not ready, so its backends are up or down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// Requests are sent to it.
    Up,
    /// Its health checks fail.
    Down,
    /// An operator lets it finish.
    Draining,
    /// It failed requests, and is left out for a while.
    Ejected,
    /// An operator took it out.
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
    /// What `pools` returns whenever somebody looks.
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
    /// Shows `balancer` under the name `name`.
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
            address: backend.addr.to_string(),
            weight: backend.weight,
            state: BackendState::of(backends.ready(backend)),
        });
        merge_addresses(members)
    }
}

/// To Pingora one address with two weights is two backends. As two series of one name they would
/// make Prometheus refuse the whole scrape, so they are shown as the one they are: with the sum of
/// the weights, and up when either is.
///
/// Equal addresses come next to each other, as the set of backends is ordered by address.
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
    /// Whether requests are sent to it.
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

    /// The state of a backend of which only this is known.
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
    /// Reports on `pools`, whose names must differ.
    pub fn new(pools: impl Into<Views>) -> Self {
        PoolCollector {
            pools: pools.into(),
            up: Family::new(
                Kind::Gauge,
                "lb_backend_up",
                "Whether requests are sent to the backend (1) or not (0).",
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
                "1 for the state that the backend is in, 0 for the others.",
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

    /// Each pool is read once, so that the three families of one scrape agree with each other.
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

    /// A pool of given members.
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

    /// Finds whatever backends the test says there are.
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

    /// For the types' sake: a list of views is not one of fixed pools.
    pub(crate) fn views<P: PoolView + 'static>(pools: impl IntoIterator<Item = P>) -> Vec<Arc<dyn PoolView>> {
        pools.into_iter().map(|pool| Arc::new(pool) as Arc<dyn PoolView>).collect()
    }

    fn collector(pool: impl PoolView + 'static) -> PoolCollector {
        PoolCollector::new(views([pool]))
    }

    #[test]
    fn a_bare_balancer_is_shown_as_it_is() {
        let balancer = LoadBalancer::<RoundRobin>::try_from_iter(["127.0.0.1:2", "[::1]:1"]);
        let balancer = Arc::new(balancer.expect("addresses"));
        let down = Backend::new("[::1]:1").expect("an address");
        balancer.backends().set_enable(&down, false);
        assert_eq!(
            scrape(collector(BalancedPool::new("web", balancer))),
            r#"# HELP lb_backend_state 1 for the state that the backend is in, 0 for the others.
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
# HELP lb_backend_up Whether requests are sent to the backend (1) or not (0).
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
    fn pools_that_come_and_go_are_seen_at_each_scrape() {
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
    async fn a_backend_gone_from_the_pool_is_gone_from_the_next_scrape() {
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

    /// The label vectors of `prometheus` would make one series of these two.
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
    fn the_same_backend_in_two_pools_has_its_own_series_in_each() {
        let text = scrape(PoolCollector::new(views([
            FixedPool::new("a", vec![member("h:1", 1, true)]),
            FixedPool::new("b", vec![member("h:1", 2, false)]),
        ])));
        assert!(text.contains("lb_backend_up{pool=\"a\",backend=\"h:1\"} 1\n"));
        assert!(text.contains("lb_backend_up{pool=\"b\",backend=\"h:1\"} 0\n"));
    }
}
