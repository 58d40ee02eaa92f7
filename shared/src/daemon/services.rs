//! The three services, put together over one `Arc<LoadBalancer<Policy>>` for each pool.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use health_service::{CheckKind, Prober, Verdicts};
use lb_service::forwarded::TrustedProxies;
use lb_service::pool::{Backend, Pool, PoolSettings, State};
use lb_service::route::RouteTable;
use lb_service::traffic::Traffic;
use metrics_service::{
    BackendState, ConfigMetrics, Endpoints, Member, PoolCollector, PoolView, ProcessCollector, Readiness,
};
use pingora::apps::http_app::HttpServer;
use pingora::connectors::{ConnectorOptions, TransportConnector};
use pingora::listeners::ListenerConfig;
use pingora::server::configuration::ServerConf;
use pingora::services::listening::Service;
use prometheus::Registry;

use crate::config::Plan;
use crate::status::{PoolHealth, StatusSource};

/// The three services and what they share.
pub struct Services {
    /// What requests are served by.
    pub plan: Arc<lb_service::plan::Plan>,
    /// What they count.
    pub traffic: Arc<Traffic>,
    pub(super) readiness: Readiness,
    pub(super) prober: Prober,
    pub(super) metrics: Service<HttpServer<Endpoints>>,
}

/// One pool and what is known of its health.
struct Checked {
    pool: Arc<Pool>,
    settings: health_service::Settings,
    verdicts: Verdicts,
}

impl Services {
    /// Whether the daemon is ready.
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// The services of `plan`, not yet running.
    ///
    /// # Errors
    /// When two of them have a metric of the same name.
    pub fn compose(plan: &Plan, conf: &ServerConf) -> prometheus::Result<Self> {
        let pools: Vec<_> = plan.pools.iter().map(|(pool, health)| Checked::new(pool, health)).collect();
        let traffic = Traffic::new(plan.listeners.len(), pools.len());
        let served = Arc::new(lb_service::plan::Plan {
            listeners: plan.listeners.clone(),
            routes: RouteTable::new(plan.routes.clone()),
            pools: pools.iter().map(|checked| checked.pool.clone()).collect(),
            trusted_proxies: TrustedProxies::new(plan.trusted_proxies.clone()),
        });
        let registry = Registry::new();
        let prober = prober(&pools, conf, &registry)?;
        let views: Vec<_> = pools.iter().map(Checked::view).collect();
        let readiness = Readiness::new(views.clone());
        lb_service::metrics::Metrics::register(&registry, served.clone(), traffic.clone())?;
        registry.register(Box::new(PoolCollector::new(views)))?;
        registry.register(Box::new(ProcessCollector::new()))?;
        ConfigMetrics::register(&registry)?;
        metrics_service::build_info(&registry, env!("CARGO_PKG_VERSION"))?;
        let health = pools.into_iter().map(Checked::into_health).collect();
        let status = StatusSource::new(served.clone(), traffic.clone(), health, SystemTime::now());
        let status = Arc::new(move || status.json(SystemTime::now()));
        let endpoints = Endpoints::new(registry, readiness.clone(), status);
        let mut metrics = metrics_service::service(endpoints, "metrics");
        metrics.add_listener(ListenerConfig::tcp(plan.metrics.to_string()));
        Ok(Self { plan: served, traffic, readiness, prober, metrics })
    }
}

/// Pingora's configuration, as ours has it. What Pingora would do on its own (daemon, pid file, hand-over, waiting at the end)
/// is off: [`crate::process`] does it.
pub(super) fn server_conf(plan: &Plan) -> ServerConf {
    let server = &plan.server;
    ServerConf {
        threads: server.threads,
        listener_tasks_per_fd: server.listener_tasks_per_fd,
        work_stealing: server.work_stealing,
        ca_file: server.ca_file.as_ref().map(|path| path.display().to_string()),
        client_bind_to_ipv4: server.client_bind_to_ipv4.iter().map(ToString::to_string).collect(),
        client_bind_to_ipv6: server.client_bind_to_ipv6.iter().map(ToString::to_string).collect(),
        upstream_keepalive_pool_size: server.upstream_keepalive_pool_size,
        upstream_connect_offload_threadpools: server.upstream_connect_offload.map(|offload| offload.pools),
        upstream_connect_offload_thread_per_pool: server
            .upstream_connect_offload
            .map(|offload| offload.threads_per_pool),
        max_retries: tries(plan),
        ..ServerConf::default()
    }
}

/// How often Pingora may call for a backend in one request. What ends a request's tries is its pool; this only must not end
/// them earlier, and leaves room for connections that turn out to be closed when they are used again.
fn tries(plan: &Plan) -> usize {
    let retries = plan.pools.iter().map(|(pool, _)| pool.retries.attempts).max();
    ServerConf::default().max_retries + retries.unwrap_or_default()
}

fn prober(pools: &[Checked], conf: &ServerConf, registry: &Registry) -> prometheus::Result<Prober> {
    let metrics = health_service::Metrics::new();
    metrics.register(registry)?;
    let connector = TransportConnector::new(Some(ConnectorOptions::from_server_conf(conf)));
    let mut prober = Prober::with_connector(metrics, connector);
    for Checked { pool, settings, verdicts } in pools {
        // All backends of a pool are spoken to in the same way; the address is replaced by each one's own.
        if let Some(any) = pool.backends().first() {
            let peer = any.peer().clone();
            prober.add_pool(&pool.name, pool.balancer.clone(), settings.clone(), peer, verdicts.clone());
        }
    }
    Ok(prober)
}

/// A pool as the metrics see it: with the states that only the proxy knows of.
struct ServedPool(Arc<Pool>);

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
                State::Ejected => BackendState::Ejected,
            },
        };
        self.0.backends().iter().map(member).collect()
    }
}

// === impl Checked ===

impl Checked {
    fn new(pool: &PoolSettings, settings: &health_service::Settings) -> Self {
        let verdicts = Verdicts::new();
        let check = (settings.kind != CheckKind::None).then(|| verdicts.publisher());
        let pool = Arc::new(Pool::new(pool, health_service::registry(), check));
        Self { pool, settings: settings.clone(), verdicts }
    }

    fn view(&self) -> Arc<dyn PoolView> {
        Arc::new(ServedPool(self.pool.clone()))
    }

    fn into_health(self) -> PoolHealth {
        PoolHealth { kind: self.settings.kind, verdicts: self.verdicts }
    }
}
