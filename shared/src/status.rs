//! `/api/v1/status`: what the daemon is doing, in one JSON document composed from what each service knows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use health_service::{CheckKind, Verdict};
use lb_service::listener::Listener;
use lb_service::plan::{Current, Plan};
use lb_service::pool::{Backend, Level, State};
use lb_service::traffic::Traffic;
use metrics_service::Readiness;
use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use serde::Serialize;

use crate::daemon::{Checked, Pools, Purpose};
use crate::operator::{Document, Operator, Shown};
use crate::process::logging::Verbosity;
use crate::time::rfc3339;

/// Where the status is read from.
pub struct StatusSource {
    current: Current,
    traffic: Arc<Traffic>,
    pools: Pools,
    operator: Operator,
    verbosity: Verbosity,
    readiness: Readiness,
    purpose: Purpose,
    started: SystemTime,
}

#[derive(Serialize)]
struct Status<'a> {
    version: &'static str,
    pid: u32,
    #[serde(skip_serializing_if = "is_false")]
    demo: bool,
    /// `starting`, `serving` or `draining`.
    state: &'static str,
    /// Whether `/readyz` answers 200.
    ready: bool,
    /// Why it does not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_ready: Vec<String>,
    started: String,
    uptime_seconds: u64,
    config: Document<'a>,
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
    /// Whether so few backends are available that all are used.
    panic: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    panic_since: Option<String>,
    panics: u64,
    /// Whether the backups are used.
    backups_in_use: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    backups_since: Option<String>,
    requests_in_flight: u64,
    queue: QueueStatus,
    retries: u64,
    retries_denied: u64,
    backends: Vec<BackendStatus<'a>>,
}

#[derive(Serialize)]
struct QueueStatus {
    waiting: u64,
    places: u32,
}

#[derive(Serialize)]
struct BackendStatus<'a> {
    address: &'a str,
    weight: usize,
    #[serde(skip_serializing_if = "is_false")]
    backup: bool,
    state: &'static str,
    reason: String,
    since: String,
    /// What an operator changed about it, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checked: Option<String>,
    requests_in_flight: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_requests: Option<u64>,
    /// By the last answers; absent while there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_answer_ms: Option<f64>,
    consecutive_failures: u32,
    ejections: u64,
    /// How often it was the choice of the policy and was passed over, by reason.
    passed_over: BTreeMap<&'static str, u64>,
    requests: u64,
    answers: BTreeMap<u16, u64>,
    errors: BTreeMap<&'static str, u64>,
    connections_new: u64,
    connections_reused: u64,
}

// === impl StatusSource ===

impl StatusSource {
    /// A source over what the services share.
    pub fn new(
        (current, traffic, pools): (Current, Arc<Traffic>, Pools),
        operator: Operator,
        (verbosity, readiness, purpose): (Verbosity, Readiness, Purpose),
    ) -> Self {
        let started = SystemTime::now();
        Self { current, traffic, pools, operator, verbosity, readiness, purpose, started }
    }

    /// The document as it is at `now`.
    pub fn json(&self, now: SystemTime) -> String {
        let (plan, pools, shown) = (self.current.plan(), self.pools.now(), self.operator.shown());
        let not_ready = self.readiness.report().reasons();
        let status = Status {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            demo: self.purpose.is_demo(),
            state: self.state(),
            ready: not_ready.is_empty(),
            not_ready,
            started: rfc3339(self.started),
            uptime_seconds: now.duration_since(self.started).unwrap_or(Duration::ZERO).as_secs(),
            config: shown.document(self.verbosity.changed().as_deref()),
            listeners: listeners(&plan),
            pools: pools.iter().map(|checked| self.pool(checked, &shown)).collect(),
        };
        serde_json::to_string_pretty(&status).expect("strings, numbers and maps with string keys are JSON")
            + "\n"
    }

    fn state(&self) -> &'static str {
        if self.readiness.is_draining() || self.traffic.is_draining() {
            "draining"
        } else if self.readiness.is_listening() {
            "serving"
        } else {
            "starting"
        }
    }

    fn pool<'a>(&self, checked: &'a Checked, shown: &Shown) -> PoolStatus<'a> {
        let pool = &checked.pool;
        let now = Instant::now();
        let availability = pool.availability(now);
        let backends = pool.backends().iter();
        PoolStatus {
            name: &pool.name,
            ready: backends.clone().filter(|backend| pool.state(backend, now) == State::Up).count(),
            panic: availability.panic,
            panic_since: pool.panic_since().map(|since| rfc3339(time_of(since, now))),
            panics: pool.counters().panics.get(),
            backups_in_use: availability.level == Level::Backup,
            backups_since: pool.backups_since().map(|since| rfc3339(time_of(since, now))),
            requests_in_flight: pool.in_flight(),
            queue: QueueStatus { waiting: pool.queue().len(), places: pool.queue().places() },
            retries: pool.counters().retries.get(),
            retries_denied: pool.counters().retries_denied.get(),
            backends: backends.map(|backend| self.backend(checked, backend, shown, now)).collect(),
        }
    }

    fn backend<'a>(
        &self,
        checked: &Checked,
        backend: &'a Backend,
        shown: &Shown,
        now: Instant,
    ) -> BackendStatus<'a> {
        let Checked { pool, settings, verdicts } = checked;
        let verdict = verdicts.get(&PingoraAddr::Inet(backend.address));
        let state = pool.state(backend, now);
        let answers: BTreeMap<_, _> = backend.history.answers.counted().collect();
        BackendStatus {
            address: &backend.label,
            weight: backend.weight(),
            backup: backend.backup,
            state: state.as_str(),
            reason: reason(backend, state, &settings.kind, verdict.as_ref(), now),
            since: rfc3339(
                match state {
                    State::Ejected => ejected_since(backend, now),
                    State::Draining | State::Disabled => shown.changed(&pool.name, backend.address),
                    State::Up | State::Down => None,
                }
                .or(verdict.as_ref().map(|verdict| verdict.since))
                .unwrap_or(self.started),
            ),
            runtime: shown.runtime(&pool.name, backend.address),
            checked: verdict.map(|verdict| rfc3339(verdict.checked)),
            requests_in_flight: backend.load.in_flight(),
            max_requests: Some(backend.max_requests).filter(|max| *max < u64::MAX),
            expected_answer_ms: backend.load.latest(now).map(|time| (time.as_secs_f64() * 1e6).round() / 1e3),
            consecutive_failures: backend.consecutive_failures(),
            ejections: backend.ejections(),
            passed_over: backend
                .passed_over()
                .filter(|(_, n)| *n > 0)
                .map(|(why, n)| (why.as_str(), n))
                .collect(),
            requests: answers.values().sum(),
            answers,
            errors: backend.errors().filter(|(_, n)| *n > 0).map(|(error, n)| (error.as_str(), n)).collect(),
            connections_new: backend.history.connections_new.get(),
            connections_reused: backend.history.connections_reused.get(),
        }
    }
}

fn listeners(plan: &Plan) -> Vec<ListenerStatus<'_>> {
    let status = |(id, listener)| {
        let listener: &Listener = listener;
        let traffic = plan.traffic(id);
        ListenerStatus {
            name: &listener.name,
            address: listener.address.to_string(),
            connections: traffic.connections.get(),
            connections_active: traffic.connections_active.get(),
            requests_in_flight: traffic.in_flight.get(),
            rejected: traffic.rejected().map(|(reason, n)| (reason.as_str(), n)).collect(),
        }
    };
    plan.listeners.iter().map(status).collect()
}

fn ejected_since(backend: &Backend, now: Instant) -> Option<SystemTime> {
    backend.ejected_since(now).map(|since| time_of(since, now))
}

fn time_of(instant: Instant, now: Instant) -> SystemTime {
    SystemTime::now() - now.saturating_duration_since(instant)
}

/// Why a backend is what it is.
fn reason(
    backend: &Backend,
    state: State,
    kind: &CheckKind,
    verdict: Option<&Verdict>,
    now: Instant,
) -> String {
    match (state, backend.ejected_until(now), verdict) {
        (State::Ejected, Some(until), _) => {
            let left = until.saturating_duration_since(now).as_secs_f64();
            format!("it failed requests or was too slow; back in {left:.1} s")
        }
        (State::Draining, ..) => "it is draining".into(),
        (State::Disabled, ..) => "it is disabled".into(),
        (_, _, Some(verdict)) => verdict.reason.clone(),
        (_, _, None) if *kind == CheckKind::None => "no health check".into(),
        (_, _, None) => "not checked yet".into(),
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(value: &bool) -> bool {
    !value
}
