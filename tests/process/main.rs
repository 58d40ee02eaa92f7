//! Tests that run the real daemon with real origins and real clients. Each area has one module.
//!
//! Every test has its own [`Lab`](tests::Lab) and shares nothing with the others, so all tests can run in parallel.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test reports a failure by panicking")]

mod access_log;
mod balancing;
mod client_certificates;
mod clients;
mod config;
mod connect_races;
mod control;
mod data_path;
mod edges;
mod explain;
mod fixtures;
mod forms;
mod grpc_health;
mod guide;
mod health;
mod help;
mod hostile;
mod instances;
mod keys;
mod limits;
mod logs;
mod metrics;
mod nginx;
mod paths;
mod proxying;
mod quickstart;
mod reload;
mod resilience;
mod retries;
mod routing;
mod server_keys;
mod session_keys;
mod splicing;
mod stop;
mod systemd;
mod unix_backends;
mod upgrade;
mod warnings;
mod wire;

use std::net::SocketAddr;

use tests::Origin;

/// The section `pools` with one pool, `web`, of these backends. `more` holds further keys of the pool, one per line.
/// Health checks are off unless `more` configures them, so that origins see only the requests of the test.
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

/// Like [`pool_of`], but takes origins.
fn pool(origins: &[&Origin], more: &str) -> String {
    let addresses: Vec<SocketAddr> = origins.iter().map(|origin| origin.address).collect();
    pool_of(&addresses, more)
}

/// The number of occurrences of each value, sorted by value.
fn tally<T: Ord>(values: impl IntoIterator<Item = T>) -> Vec<(T, usize)> {
    let mut counts = std::collections::BTreeMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    counts.into_iter().collect()
}
