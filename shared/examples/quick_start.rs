//! Pingora's quick start, with parts of this project in the places of Pingora's: [`Policy`] picks the backends,
//! `health-service` checks them, and `metrics-service` shows the result. The three share one
//! `Arc<LoadBalancer<Policy>>`. Pingora's proxy carries the requests, as in the quick start.
//!
//! ```console
//! $ cargo run -p shared --example quick_start
//! $ curl 127.0.0.1:6188 -svo /dev/null
//! $ curl 127.0.0.1:6192/metrics
//! ```
//!
//! The options of the quick start work: `-c conf.yaml` with Pingora's keys, `-d`, `-t` and `-u`. The environment
//! variables `UPSTREAMS` (separated by commas), `LISTEN` and `METRICS` replace the addresses.

use std::env;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use health_service::{CheckKind, Metrics, PeerConnect, Prober, Settings, Verdicts};
use lb_service::{Algorithm, Policy, PolicyConfig};
use metrics_service::{BalancedPool, Endpoints, PoolCollector, PoolView, Readiness};
use pingora::connectors::{ConnectorOptions, TransportConnector};
use pingora::http::RequestHeader;
use pingora::lb::{Backends, LoadBalancer, discovery};
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::Server;
use pingora::server::configuration::Opt;
use pingora::services::background::background_service;
use pingora::upstreams::peer::HttpPeer;
use pingora::{ErrorType, Result};
use prometheus::Registry;

/// The name that the certificates of the backends must have.
const NAME: &str = "one.one.one.one";

struct LB(Arc<LoadBalancer<Policy>>);

#[async_trait]
impl ProxyHttp for LB {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> Result<Box<HttpPeer>> {
        let upstream = self.0.select(b"", 256);
        let upstream = upstream
            .ok_or_else(|| pingora::Error::explain(ErrorType::HTTPStatus(503), "no backend is ready"))?;
        Ok(Box::new(HttpPeer::new(upstream, true, NAME.to_owned())))
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        upstream_request: &mut RequestHeader,
        _ctx: &mut Self::CTX,
    ) -> Result<()> {
        upstream_request.insert_header("Host", NAME)
    }
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let variable = |name: &str, default: &str| env::var(name).unwrap_or_else(|_| default.to_owned());
    let mut server = Server::new(Some(Opt::parse_args()))?;
    server.bootstrap();

    let upstreams = variable("UPSTREAMS", "1.1.1.1:443,1.0.0.1:443");
    let members = discovery::Static::try_from_iter(upstreams.split(','))?;
    let policy = PolicyConfig::new(Algorithm::RoundRobin);
    let mut balancer =
        LoadBalancer::<Policy>::from_backends_with_config(Backends::new(members), Some(policy));
    let verdicts = Verdicts::new();
    balancer.set_health_check(verdicts.publisher());
    futures::FutureExt::now_or_never(balancer.update()).ok_or("the list of backends is not ready")??;
    let balancer = Arc::new(balancer);

    let registry = Registry::new();
    let metrics = Metrics::new();
    metrics.register(&registry)?;
    let options = ConnectorOptions::from_server_conf(&server.configuration);
    let connector = Arc::new(TransportConnector::new(Some(options)));
    let mut prober = Prober::new(metrics);
    let settings = Settings { kind: CheckKind::Tcp, interval: Duration::from_secs(1), ..Settings::default() };
    let peer = HttpPeer::new("0.0.0.0:443", true, NAME.to_owned());
    let connect = Arc::new(PeerConnect::with_connector(connector, peer));
    prober.add_pool("quick_start", balancer.clone(), settings, connect, verdicts);

    let pools: Vec<Arc<dyn PoolView>> = vec![Arc::new(BalancedPool::new("quick_start", balancer.clone()))];
    registry.register(Box::new(PoolCollector::new(pools.clone())))?;
    let readiness = Readiness::new(pools);
    readiness.set_listening(true);
    let mut endpoints = metrics_service::service(Endpoints::new(registry, readiness), "metrics");
    endpoints.add_tcp(&variable("METRICS", "127.0.0.1:6192"));

    let mut lb = http_proxy_service(&server.configuration, LB(balancer));
    lb.add_tcp(&variable("LISTEN", "0.0.0.0:6188"));

    server.add_service(background_service("health checks", prober));
    server.add_service(endpoints);
    server.add_service(lb);
    server.run_forever()
}
