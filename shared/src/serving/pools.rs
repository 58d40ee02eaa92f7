//! Pools of the daemon together with the results of their health checks, for the prober, the metrics and the status.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use health_service::{CheckKind, CheckedPool, Verdicts};
use lb_service::pool::{self, Backend, Pool, PoolObserver, PoolSettings};
use lb_service::service::Connector;
use metrics_service::{BackendState, Member, PoolView, Views};
use pingora::lb::health_check::HealthCheck;

use super::connect::PoolConnect;
use crate::condition::{Condition, Known, Moment};
use crate::config::Plan;

/// Pools of the current plan, in the order of the plan. Clones share them.
#[derive(Clone)]
pub(crate) struct Pools {
    now: Arc<ArcSwap<Vec<Checked>>>,
    observer: Arc<dyn PoolObserver>,
}

/// Pool with the results of its health checks. Clones share it.
#[derive(Clone)]
pub(crate) struct Checked {
    /// The pool that requests use.
    pub pool: Arc<Pool>,
    /// The settings of its health checks.
    pub settings: health_service::Settings,
    /// The results of its health checks, by address.
    pub verdicts: Verdicts,
}

/// View of a pool for the metrics, with the states that only the proxy has.
struct ServedPool(Arc<Pool>);

// === impl Pools ===

impl Pools {
    /// Returns the pools of `plan`; `observer` receives their events.
    pub(crate) fn new(plan: &Plan, observer: Arc<dyn PoolObserver>) -> Self {
        let pools = plan.pools.iter().map(|(pool, health)| Checked::new(pool, health, observer.clone()));
        Self { now: Arc::new(ArcSwap::from_pointee(pools.collect())), observer }
    }

    /// Returns the current pools.
    pub(crate) fn now(&self) -> Arc<Vec<Checked>> {
        self.now.load_full()
    }

    /// Replaces all pools.
    pub(crate) fn replace(&self, pools: Vec<Checked>) {
        self.now.store(Arc::new(pools));
    }

    /// Returns the observer of the pools.
    pub(crate) fn observer(&self) -> Arc<dyn PoolObserver> {
        self.observer.clone()
    }

    /// Returns the current pools as views for the metrics.
    pub(crate) fn views(&self) -> Views {
        let pools = self.clone();
        Views::read_by(move || pools.now().iter().map(Checked::view).collect())
    }
}

// === impl Checked ===

impl Checked {
    /// Returns the condition of a backend of this pool: its state, the reason, and the time since which it has this
    /// state. `changed`: the time at which an operator changed its state.
    pub(crate) fn condition(
        &self,
        backend: &Backend,
        state: pool::BackendState,
        changed: Option<SystemTime>,
        at: Moment,
    ) -> Condition {
        let verdict = self.verdicts.get(&backend.address.to_pingora());
        let known = Known { kind: &self.settings.kind, verdict: verdict.as_ref(), changed };
        Condition::of(backend, state, known, at)
    }

    /// Returns a pool that did not exist before.
    pub(crate) fn new(
        pool: &PoolSettings,
        settings: &health_service::Settings,
        observer: Arc<dyn PoolObserver>,
    ) -> Self {
        let verdicts = Verdicts::new();
        let check = publisher(settings, &verdicts);
        let pool = Pool::new(pool, health_service::registry(), check).observed_by(observer);
        Self { pool, settings: settings.clone(), verdicts }
    }

    /// Returns the pool that replaces this one, which has the settings `was`. If only the health checks change, the
    /// pool itself stays the same.
    pub(crate) fn successor(
        &self,
        was: &PoolSettings,
        pool: &PoolSettings,
        settings: &health_service::Settings,
    ) -> Self {
        let is_checked = |settings: &health_service::Settings| settings.kind != CheckKind::None;
        let (verdicts, pool) = if is_checked(&self.settings) != is_checked(settings) {
            let verdicts = Verdicts::new();
            let check = publisher(settings, &verdicts);
            let pool = self.pool.successor_with_health(pool, health_service::registry(), check);
            (verdicts, Arc::new(pool))
        } else if was == pool {
            (self.verdicts.clone(), self.pool.clone())
        } else {
            (self.verdicts.clone(), Arc::new(self.pool.successor(pool)))
        };
        Self { pool, settings: settings.clone(), verdicts }
    }

    /// Returns this pool for the prober. Its checks connect as requests do with `connector`.
    pub(crate) fn to_check(&self, connector: &Connector) -> CheckedPool {
        let Self { pool, settings, verdicts } = self;
        let connect = Arc::new(PoolConnect(connector.dialer(pool)));
        CheckedPool::new(&pool.name, pool.balancer.clone(), settings.clone(), connect, verdicts.clone())
    }

    fn view(&self) -> Arc<dyn PoolView> {
        Arc::new(ServedPool(self.pool.clone()))
    }
}

/// Returns the callback that passes health check results to the pool; `None` if the pool has no health checks.
fn publisher(
    settings: &health_service::Settings,
    verdicts: &Verdicts,
) -> Option<Box<dyn HealthCheck + Send + Sync>> {
    (settings.kind != CheckKind::None).then(|| verdicts.publisher())
}

// === impl ServedPool ===

impl PoolView for ServedPool {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn members(&self) -> Vec<Member> {
        let now = Instant::now();
        let member = |backend: &Arc<Backend>| Member {
            address: backend.label.to_string(),
            weight: backend.weight(),
            state: match self.0.state(backend, now) {
                pool::BackendState::Up => BackendState::Up,
                pool::BackendState::Down => BackendState::Down,
                pool::BackendState::Draining => BackendState::Draining,
                pool::BackendState::Disabled => BackendState::Disabled,
                pool::BackendState::Ejected => BackendState::Ejected,
            },
        };
        self.0.backends().iter().map(member).collect()
    }
}
