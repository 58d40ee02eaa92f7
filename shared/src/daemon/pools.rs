//! The pools of the daemon, as the prober, the metrics and the status see them: with what is known of their health.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use health_service::{CheckKind, Verdicts};
use lb_service::pool::{Backend, Pool, PoolSettings, State};
use metrics_service::{BackendState, Member, PoolView, Views};

/// The pools of the current plan, in its order. Clones share them.
#[derive(Clone)]
pub struct Pools(Arc<ArcSwap<Vec<Checked>>>);

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
    /// These, until others take their place.
    pub fn new(pools: Vec<Checked>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(pools)))
    }

    /// The pools now.
    pub fn now(&self) -> Arc<Vec<Checked>> {
        self.0.load_full()
    }

    /// From now on there are these.
    pub fn replace(&self, pools: Vec<Checked>) {
        self.0.store(Arc::new(pools));
    }

    /// The same for the metrics.
    pub fn views(&self) -> Views {
        let pools = self.clone();
        Views::read_by(move || pools.now().iter().map(Checked::view).collect())
    }
}

// === impl Checked ===

impl Checked {
    /// A pool that nobody knew before.
    pub fn new(pool: &PoolSettings, settings: &health_service::Settings) -> Self {
        let verdicts = Verdicts::new();
        let check = (settings.kind != CheckKind::None).then(|| verdicts.publisher());
        let pool = Arc::new(Pool::new(pool, health_service::registry(), check));
        Self { pool, settings: settings.clone(), verdicts }
    }

    fn view(&self) -> Arc<dyn PoolView> {
        Arc::new(ServedPool(self.pool.clone()))
    }
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
                State::Up => BackendState::Up,
                State::Down => BackendState::Down,
                State::Draining => BackendState::Draining,
                State::Disabled => BackendState::Disabled,
                State::Ejected => BackendState::Ejected,
            },
        };
        self.0.backends().iter().map(member).collect()
    }
}
