//! A snapshot for the unit tests of explanations: one pool of three backends behind a route from `/api`.

use std::net::SocketAddr;
use std::sync::Arc;

use pingora::lb::HealthRegistry;

use crate::forwarded::TrustedProxies;
use crate::listener::{ListenAddress, Listener, Listeners};
use crate::policy::Algorithm;
use crate::pool::{BackendSettings, Pool, PoolId, PoolSettings};
use crate::route::{PathPattern, Route, RouteTable};
use crate::snapshot::{Snapshot, SnapshotParts};
use crate::token::Token;
use crate::traffic::Traffic;

/// The address of the trusted proxy.
pub(crate) const PROXY: [u8; 4] = [10, 0, 0, 9];

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 80))
}

pub(crate) fn settings(policy: Algorithm) -> PoolSettings {
    let backends = (1..=3).map(|last| BackendSettings::new(address(last).into())).collect();
    PoolSettings { policy, ..PoolSettings::new("api", backends) }
}

/// Returns a snapshot with a route from `/api` to the pool, and no other route.
pub(crate) fn snapshot(settings: &PoolSettings) -> Snapshot {
    let pool = Pool::new(settings, Arc::new(HealthRegistry::new()), None);
    let listener = Listener::new("web", ListenAddress::Tcp(address(200)));
    let route = Route { path: PathPattern::Prefix("/api".into()).into(), ..Route::any(PoolId(0)) };
    let parts = SnapshotParts {
        listeners: Listeners::new([listener]),
        routes: RouteTable::new(vec![route]),
        pools: vec![Arc::new(pool)],
        trusted_proxies: TrustedProxies::new(vec!["10.0.0.9/32".parse().unwrap()]),
        explain_token: Some(Token::new("secret")),
        access_logs: vec![],
    };
    Snapshot::new(parts, &Traffic::new())
}
