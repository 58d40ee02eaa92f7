//! The tests that run the real daemon, against real origins, with real clients. One module per area.
//!
//! Every test has a [`Lab`](tests::Lab) of its own and shares nothing with the others, so they run side by side.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test says what went wrong by panicking")]

mod access_log;
mod balancing;
mod config;
mod control;
mod edges;
mod explain;
mod fixtures;
mod forms;
mod grpc_health;
mod health;
mod help;
mod instances;
mod keys;
mod limits;
mod logs;
mod metrics;
mod nginx;
mod paths;
mod proxying;
mod quickstart;
mod readme;
mod reload;
mod resilience;
mod retries;
mod routing;
mod server_keys;
mod session_keys;
mod stop;
mod systemd;
mod upgrade;
mod warnings;

use std::net::SocketAddr;

use tests::Origin;

/// The section `pools` with one pool, `web`, of these backends. `more` are further keys of the pool, a line each.
/// Nothing is checked unless `more` says so, so that origins see the requests of the test only.
fn pool_of(backends: &[SocketAddr], more: &str) -> String {
    let addresses: Vec<String> = backends.iter().map(|address| format!("\"{address}\"")).collect();
    let mut text = format!("pools:\n  web:\n    backends: [{}]\n", addresses.join(", "));
    if !more.contains("health_check") {
        text.push_str("    health_check: {type: none}\n");
    }
    for line in more.lines() {
        text.push_str(&format!("    {line}\n"));
    }
    text
}

/// As [`pool_of`], of these origins.
fn pool(origins: &[&Origin], more: &str) -> String {
    let addresses: Vec<SocketAddr> = origins.iter().map(|origin| origin.address).collect();
    pool_of(&addresses, more)
}

/// How often each value occurs, in order of the values.
fn tally<T: Ord>(values: impl IntoIterator<Item = T>) -> Vec<(T, usize)> {
    let mut counts = std::collections::BTreeMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    counts.into_iter().collect()
}
