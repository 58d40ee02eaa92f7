//! The prober in a Pingora server with a plain `LoadBalancer`: no proxy, only the state of the backends.
//!
//! ```text
//! cargo run -p health-service --example prober -- 127.0.0.1:8081 127.0.0.1:8082
//! ```
//!
//! Start and stop servers on these ports, and watch the log. Ctrl-C ends the program. With `--grpc` before the
//! addresses, it queries the health services of gRPC servers.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use health_service::{CheckKind, GrpcCheck, Metrics, PeerConnect, Prober, Settings, Verdicts};
use pingora::lb::LoadBalancer;
use pingora::lb::selection::RoundRobin;
use pingora::server::Server;
use pingora::services::background::background_service;
use pingora::upstreams::peer::HttpPeer;

fn main() -> Result<(), Box<dyn Error>> {
    // Pingora also logs changes of health. Only our line has the reason.
    env_logger::Builder::new().parse_filters("info,pingora_load_balancing=error").init();
    let (options, mut addresses): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|argument| argument == "--grpc");
    let kind = if options.is_empty() { CheckKind::Tcp } else { CheckKind::Grpc(GrpcCheck::default()) };
    if addresses.is_empty() {
        addresses = vec!["127.0.0.1:8081".to_owned(), "127.0.0.1:8082".to_owned()];
    }

    let verdicts = Verdicts::new();
    let mut balancer = LoadBalancer::<RoundRobin>::try_from_iter(&addresses)?;
    balancer.set_health_check(verdicts.publisher());

    let metrics = Metrics::new();
    metrics.register(prometheus::default_registry())?;
    let mut prober = Prober::new(metrics);
    let settings = Settings { kind, interval: Duration::from_secs(1), ..Settings::default() };
    let plain = HttpPeer::new("0.0.0.0:1", false, String::new());
    let connect = Arc::new(PeerConnect::new(plain));
    prober.add_pool("example", Arc::new(balancer), settings, connect, verdicts);

    let mut server = Server::new(None)?;
    server.bootstrap();
    server.add_service(background_service("health checks", prober));
    server.run_forever()
}
