//! The pools of the daemon, as the prober, the metrics and the status see them: with what is known of their health.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use health_service::{CheckKind, CheckedPool, Verdicts};
use lb_service::pool::{self, Backend, Pool, PoolObserver, PoolSettings};
use metrics_service::{BackendState, Member, PoolView, Views};
use pingora::lb::health_check::HealthCheck;
use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;

use crate::condition::{Condition, Known, Moment};
use crate::config::Plan;
use crate::operator::ConfigStatus;

/// The pools of the current plan, in its order. Clones share them.
#[derive(Clone)]
pub struct Pools {
    now: Arc<ArcSwap<Vec<Checked>>>,
    observer: Arc<dyn PoolObserver>,
}

/// One pool and what is known of its health. Clones share it.
#[derive(Clone)]
pub struct Checked {
    /// What requests are given to.
    pub pool: Arc<Pool>,
    /// How its backends are checked.
    pub settings: health_service::Settings,
    /// What was found, by address.
    pub verdicts: Verdicts,
}

/// A pool as the metrics see it: with the states that only the proxy knows of.
struct ServedPool(Arc<Pool>);

// === impl Pools ===

impl Pools {
    /// Those of `plan`, until others take their place; `observer` is told what happens in them.
    pub fn new(plan: &Plan, observer: Arc<dyn PoolObserver>) -> Self {
        let pools = plan.pools.iter().map(|(pool, health)| Checked::new(pool, health, observer.clone()));
        Self { now: Arc::new(ArcSwap::from_pointee(pools.collect())), observer }
    }

    /// The pools now.
    pub fn now(&self) -> Arc<Vec<Checked>> {
        self.now.load_full()
    }

    /// From now on there are these.
    pub fn replace(&self, pools: Vec<Checked>) {
        self.now.store(Arc::new(pools));
    }

    /// Who is told what happens in them.
    pub fn observer(&self) -> Arc<dyn PoolObserver> {
        self.observer.clone()
    }

    /// The same for the metrics.
    pub fn views(&self) -> Views {
        let pools = self.clone();
        Views::read_by(move || pools.now().iter().map(Checked::view).collect())
    }
}

// === impl Checked ===

impl Checked {
    /// Why a backend of this pool is in this state, and since when.
    pub fn condition(
        &self,
        backend: &Backend,
        state: pool::BackendState,
        status: &ConfigStatus,
        at: Moment,
    ) -> Condition {
        let verdict = self.verdicts.get(&PingoraAddr::Inet(backend.address));
        let changed = status.changed(&self.pool.name, backend.address);
        let known = Known { kind: &self.settings.kind, verdict: verdict.as_ref(), changed };
        Condition::of(backend, state, known, at)
    }

    /// A pool that nobody knew before.
    pub fn new(
        pool: &PoolSettings,
        settings: &health_service::Settings,
        observer: Arc<dyn PoolObserver>,
    ) -> Self {
        let verdicts = Verdicts::new();
        let check = publisher(settings, &verdicts);
        let pool = Pool::new(pool, health_service::registry(), check).observed_by(observer);
        Self { pool, settings: settings.clone(), verdicts }
    }

    /// The one that takes the place of this one, which was made by the settings `was`. If only the checks are others, the
    /// pool itself stays.
    pub fn successor(
        &self,
        was: &(PoolSettings, health_service::Settings),
        pool: &PoolSettings,
        settings: &health_service::Settings,
    ) -> Self {
        let is_checked = |settings: &health_service::Settings| settings.kind != CheckKind::None;
        let (verdicts, pool) = if is_checked(&self.settings) != is_checked(settings) {
            let verdicts = Verdicts::new();
            let check = publisher(settings, &verdicts);
            let pool = self.pool.successor_with_health(pool, health_service::registry(), check);
            (verdicts, Arc::new(pool))
        } else if was.0 == *pool {
            (self.verdicts.clone(), self.pool.clone())
        } else {
            (self.verdicts.clone(), Arc::new(self.pool.successor(pool)))
        };
        Self { pool, settings: settings.clone(), verdicts }
    }

    /// For the prober. All backends of a pool are spoken to in the same way; the address is replaced by each one's own.
    pub(super) fn to_check(&self) -> Option<CheckedPool> {
        let Self { pool, settings, verdicts } = self;
        let peer = pool.backends().first()?.peer_of_pool();
        Some(CheckedPool::new(&pool.name, pool.balancer.clone(), settings.clone(), peer, verdicts.clone()))
    }

    fn view(&self) -> Arc<dyn PoolView> {
        Arc::new(ServedPool(self.pool.clone()))
    }
}

/// What tells the pool the verdicts, if it is checked at all.
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
