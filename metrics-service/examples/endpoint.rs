//! A metrics endpoint in a Pingora `Server`, for a plain Pingora load balancer.
//!
//! ```console
//! $ cargo run -p metrics-service --example endpoint
//! $ curl 127.0.0.1:6192/metrics
//! $ curl 127.0.0.1:6192/readyz
//! ```
//!
//! The two backends are checked every second. Start a server on one of the ports, for example
//! `python3 -m http.server 8081`, and `lb_backend_up` changes.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use metrics_service::{
    BalancedPool, Endpoints, PoolCollector, PoolView, ProcessCollector, Readiness, build_info, service,
};
use pingora::lb::LoadBalancer;
use pingora::lb::health_check::TcpHealthCheck;
use pingora::lb::selection::RoundRobin;
use pingora::server::Server;
use pingora::services::background::background_service;
use prometheus::Registry;

const LISTEN: &str = "127.0.0.1:6192";

fn main() -> Result<(), Box<dyn Error>> {
    let mut server = Server::new(None)?;
    server.bootstrap();

    let mut balancer = LoadBalancer::<RoundRobin>::try_from_iter(["127.0.0.1:8081", "127.0.0.1:8082"])?;
    balancer.set_health_check(TcpHealthCheck::new());
    balancer.health_check_frequency = Some(Duration::from_secs(1));
    let health = background_service("health", balancer);
    let pools: Vec<Arc<dyn PoolView>> = vec![Arc::new(BalancedPool::new("web", health.task()))];

    let registry = Registry::new();
    build_info(&registry, env!("CARGO_PKG_VERSION"))?;
    registry.register(Box::new(ProcessCollector::new()))?;
    registry.register(Box::new(PoolCollector::new(pools.clone())))?;

    // A proxy would say this once its listeners accept; here is none.
    let readiness = Readiness::new(pools);
    readiness.set_listening(true);

    let endpoints = Endpoints::new(registry, readiness)
        .with_document("/api/v1/status", |_query| Ok(r#"{"example":"standalone"}"#.to_owned()));
    let mut metrics = service(endpoints, "metrics");
    metrics.add_tcp(LISTEN);

    server.add_service(health);
    server.add_service(metrics);
    server.run_forever()
}
