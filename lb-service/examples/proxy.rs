//! The proxy in a Pingora server, without health checks and metrics.
//!
//! It listens on the first address and balances over the others:
//!
//! ```text
//! cargo run -p lb-service --example proxy -- 127.0.0.1:6188 10.0.0.1:8080 10.0.0.2:8080
//! ```

use std::net::SocketAddr;
use std::sync::Arc;

use lb_service::access_log::{self, AccessLog, Format, Target};
use lb_service::forwarded::TrustedProxies;
use lb_service::listener::{ListenAddress, Listener, Listeners};
use lb_service::pool::{BackendSettings, Pool, PoolId, PoolSettings};
use lb_service::route::{Route, RouteTable};
use lb_service::snapshot::{CurrentSnapshot, Snapshot, SnapshotParts};
use lb_service::traffic::Traffic;
use pingora::lb::HealthRegistry;
use pingora::server::Server;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut addresses = std::env::args().skip(1).map(|text| text.parse::<SocketAddr>());
    let listen = addresses.next().ok_or("usage: proxy LISTEN BACKEND...")??;
    let backends = addresses
        .map(|address| Ok(BackendSettings::new(address?.into())))
        .collect::<Result<Vec<_>, std::net::AddrParseError>>()?;

    let pool = Pool::new(&PoolSettings::new("web", backends), Arc::new(HealthRegistry::new()), None);
    let settings = access_log::Settings { format: Format::Text, target: Target::Stdout };
    let (log, _flush_at_end) = AccessLog::open(settings)?;
    let parts = SnapshotParts {
        listeners: Listeners::new([Listener::new("web", ListenAddress::Tcp(listen))]),
        routes: RouteTable::new(vec![Route::any(PoolId(0))]),
        pools: vec![Arc::new(pool)],
        trusted_proxies: TrustedProxies::default(),
        explain_token: None,
        access_logs: vec![log],
    };
    let traffic = Traffic::new();
    let current = CurrentSnapshot::new(Snapshot::new(parts, &traffic));

    let mut server = Server::new(None)?;
    server.bootstrap();
    // `acceptors` opens and closes sockets while the server runs, and `current.replace` changes everything else.
    let (proxy, _acceptors) = lb_service::service::service(&server.configuration, &current, &traffic);
    server.add_service(proxy);
    server.run_forever();
}
