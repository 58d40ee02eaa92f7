//! `/api/v1/status`: what the daemon is doing, in one JSON document composed from what each service knows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use health_service::{CheckKind, Verdict, Verdicts};
use jiff::Timestamp;
use lb_service::listener::Listener;
use lb_service::plan::Plan;
use lb_service::pool::{Backend, Pool};
use lb_service::traffic::Traffic;
use serde::Serialize;

/// Where the status is read from.
pub struct StatusSource {
    plan: Arc<Plan>,
    traffic: Arc<Traffic>,
    health: Vec<PoolHealth>,
    started: SystemTime,
}

/// What the prober knows of one pool.
pub struct PoolHealth {
    /// How its backends are checked.
    pub kind: CheckKind,
    /// What was found, by address.
    pub verdicts: Verdicts,
}

#[derive(Serialize)]
struct Status<'a> {
    version: &'static str,
    pid: u32,
    state: &'static str,
    started: String,
    uptime_seconds: u64,
    listeners: Vec<ListenerStatus<'a>>,
    pools: Vec<PoolStatus<'a>>,
}

#[derive(Serialize)]
struct ListenerStatus<'a> {
    name: &'a str,
    address: String,
    connections: u64,
    connections_active: u64,
    requests_in_flight: u64,
    rejected: BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct PoolStatus<'a> {
    name: &'a str,
    ready: usize,
    retries: u64,
    backends: Vec<BackendStatus<'a>>,
}

#[derive(Serialize)]
struct BackendStatus<'a> {
    address: &'a str,
    weight: usize,
    state: &'static str,
    reason: String,
    since: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    checked: Option<String>,
    requests_in_flight: u64,
    requests: u64,
    answers: BTreeMap<u16, u64>,
    errors: BTreeMap<&'static str, u64>,
    connections_new: u64,
    connections_reused: u64,
}

// === impl StatusSource ===

impl StatusSource {
    /// A source over what the services share; `health` is in the order of the plan's pools.
    pub fn new(plan: Arc<Plan>, traffic: Arc<Traffic>, health: Vec<PoolHealth>, started: SystemTime) -> Self {
        Self { plan, traffic, health, started }
    }

    /// The document as it is at `now`.
    pub fn json(&self, now: SystemTime) -> String {
        let status = Status {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            state: if self.traffic.is_draining() { "draining" } else { "serving" },
            started: rfc3339(self.started),
            uptime_seconds: now.duration_since(self.started).unwrap_or(Duration::ZERO).as_secs(),
            listeners: self.listeners(),
            pools: self
                .plan
                .pools
                .iter()
                .zip(&self.health)
                .map(|(pool, health)| self.pool(pool, health))
                .collect(),
        };
        serde_json::to_string_pretty(&status).expect("strings, numbers and maps with string keys are JSON")
            + "\n"
    }

    fn listeners<'a>(&'a self) -> Vec<ListenerStatus<'a>> {
        let status = |(id, listener): (_, &'a Listener)| {
            let traffic = self.traffic.listener(id);
            ListenerStatus {
                name: &listener.name,
                address: listener.address.to_string(),
                connections: traffic.connections.get(),
                connections_active: traffic.connections_active.get(),
                requests_in_flight: traffic.in_flight.get(),
                rejected: traffic.rejected().map(|(reason, n)| (reason.as_str(), n)).collect(),
            }
        };
        self.plan.listeners.iter().map(status).collect()
    }

    fn pool<'a>(&self, pool: &'a Pool, health: &PoolHealth) -> PoolStatus<'a> {
        let members = pool.balancer.backends();
        let mut backends = Vec::new();
        let mut ready = 0;
        for member in members.get_backend().iter() {
            let is_ready = members.ready(member);
            ready += usize::from(is_ready);
            let verdict = health.verdicts.get(&member.addr);
            let backend = member.addr.as_inet().and_then(|address| pool.backend(*address));
            backends.extend(
                backend
                    .map(|backend| self.backend(backend, member.weight, is_ready, health, verdict.as_ref())),
            );
        }
        PoolStatus { name: &pool.name, ready, retries: pool.retries.get(), backends }
    }

    fn backend<'a>(
        &self,
        backend: &'a Backend,
        weight: usize,
        ready: bool,
        health: &PoolHealth,
        verdict: Option<&Verdict>,
    ) -> BackendStatus<'a> {
        let unchecked = match health.kind {
            CheckKind::None => "no health check",
            _ => "not checked yet",
        };
        let answers: BTreeMap<_, _> = backend.answers.counted().collect();
        BackendStatus {
            address: &backend.label,
            weight,
            state: if ready { "up" } else { "down" },
            reason: verdict.map_or_else(|| unchecked.into(), |verdict| verdict.reason.clone()),
            since: rfc3339(verdict.map_or(self.started, |verdict| verdict.since)),
            checked: verdict.map(|verdict| rfc3339(verdict.checked)),
            requests_in_flight: backend.in_flight.get(),
            requests: answers.values().sum(),
            answers,
            errors: backend.errors().filter(|(_, n)| *n > 0).map(|(error, n)| (error.as_str(), n)).collect(),
            connections_new: backend.connections_new.get(),
            connections_reused: backend.connections_reused.get(),
        }
    }
}

/// UTC with milliseconds, as in the logs.
fn rfc3339(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| "unknown".into(), |time| format!("{time:.3}"))
}
