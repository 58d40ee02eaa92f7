//! Status document of the daemon for `/api/v1/status`: JSON composed from the state of all services.

use std::time::{Duration, SystemTime};

use lb_service::lines::ReopenFailure;
use lb_service::listener::Listener;
use lb_service::pool::{Backend, BackendState, Level};
use lb_service::snapshot::Snapshot;
use parking_lot::Mutex;

use crate::condition::{Condition, Moment};
use crate::operator::{ConfigStatus, Operator};
use crate::purpose::Purpose;
use crate::serving::{Checked, Core, Logs};
use crate::status_document::{
    BackendStatus, KeyFileStatus, LastReload, ListenerStatus, PoolStatus, Problem, QueueStatus, Status,
};
use crate::time::rfc3339;

/// Source of the status document.
pub(crate) struct StatusSource {
    core: Core,
    operator: Operator,
    logs: Logs,
    purpose: Purpose,
    started: SystemTime,
    failed_upgrade: Mutex<Option<FailedUpgrade>>,
}

/// The latest upgrade, which failed.
struct FailedUpgrade {
    time: SystemTime,
    reason: String,
}

// === impl StatusSource ===

impl StatusSource {
    /// Returns a source that reads the shared state of the services.
    pub(crate) fn new(core: Core, operator: Operator, logs: Logs, purpose: Purpose) -> Self {
        Self { core, operator, logs, purpose, started: SystemTime::now(), failed_upgrade: Mutex::default() }
    }

    /// Removes the problem of an earlier upgrade, because an upgrade begins.
    pub(crate) fn upgrade_begins(&self) {
        self.failed_upgrade.lock().take();
    }

    /// Reports a failed upgrade as a problem until the next one begins.
    pub(crate) fn upgrade_failed(&self, reason: String) {
        self.failed_upgrade.lock().replace(FailedUpgrade { time: SystemTime::now(), reason });
    }

    /// Returns the current document as JSON.
    pub(crate) fn json(&self) -> String {
        let at = Moment::now();
        let (plan, pools, config) =
            (self.core.current.load(), self.core.pools.now(), self.operator.config_status());
        let not_ready = self.core.readiness.report().reasons();
        let (level, source) = self.core.verbosity.in_effect();
        let pools: Vec<_> = pools.iter().map(|checked| pool_status(checked, &config, at)).collect();
        let status = Status {
            problems: Some(self.problems(&pools, &config)),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            demo: self.purpose.is_demo(),
            state: self.state().into(),
            ready: Some(not_ready.is_empty()),
            not_ready,
            started: rfc3339(self.started),
            uptime_seconds: at.since(self.started).as_secs(),
            config: config.document(&level, source),
            listeners: listeners(&plan),
            pools,
        };
        serde_json::to_string_pretty(&status).expect("strings, numbers and maps with string keys are JSON")
            + "\n"
    }

    fn state(&self) -> &'static str {
        if self.core.readiness.is_draining() || self.core.traffic.is_draining() {
            "draining"
        } else if self.core.readiness.is_listening() {
            "serving"
        } else {
            "starting"
        }
    }

    /// Returns the problems, the worst first.
    fn problems(&self, pools: &[PoolStatus], config: &ConfigStatus) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Purpose::Stopgap(missing) = &self.purpose {
            problems.push(Problem::new("this is the demo").because(missing.in_line()));
        }
        if self.state() != "serving" {
            problems.push(Problem::new(format!("the process is {}", self.state())));
        }
        problems.extend(pools.iter().filter_map(PoolStatus::unready));
        problems.extend(pools.iter().filter_map(PoolStatus::panicking));
        problems.extend(pools.iter().filter_map(PoolStatus::on_backups));
        problems.extend(config.last_reload.as_ref().and_then(Problem::of_reload));
        problems.extend(self.failed_upgrade.lock().as_ref().map(Problem::of_upgrade));
        problems.extend(self.logs.reopen_failures().iter().map(Problem::of_log));
        problems.extend(config.key_files.iter().filter_map(Problem::of_keys));
        for state in [BackendState::Down, BackendState::Ejected] {
            let backends =
                pools.iter().flat_map(|pool| pool.backends.iter().map(|backend| (&pool.name, backend)));
            let found = backends.filter(|(_, backend)| backend.state == state.as_str());
            problems.extend(found.map(|(pool, backend)| backend.problem(pool)));
        }
        problems
    }
}

fn pool_status(checked: &Checked, config: &ConfigStatus, at: Moment) -> PoolStatus {
    let pool = &checked.pool;
    let availability = pool.availability(at.instant);
    let since = |since: Option<_>| since.map(|since| rfc3339(at.time_of(since)));
    let backends = pool.backends().iter();
    PoolStatus {
        name: pool.name.to_string(),
        ready: backends.clone().filter(|backend| pool.state(backend, at.instant) == BackendState::Up).count(),
        unready_since: since(pool.unready_since()),
        panic: availability.panic,
        panic_since: since(pool.panic_since()),
        panics: pool.counters().panics.get(),
        backups_in_use: availability.level == Level::Backup,
        backups_since: since(pool.backups_since()),
        requests_in_flight: pool.in_flight(),
        queue: QueueStatus { waiting: pool.queue().len(), places: pool.queue().places() },
        retries: pool.counters().retries.get(),
        retries_denied: pool.counters().retries_denied.get(),
        backends: backends.map(|backend| backend_status(checked, backend, config, at)).collect(),
    }
}

fn backend_status(checked: &Checked, backend: &Backend, config: &ConfigStatus, at: Moment) -> BackendStatus {
    let Checked { pool, settings: _, verdicts } = checked;
    let verdict = verdicts.get(&backend.address.to_pingora());
    let state = pool.state(backend, at.instant);
    let Condition { reason, since } =
        checked.condition(backend, state, config.changed(&pool.name, &backend.address), at);
    BackendStatus {
        address: backend.label.to_string(),
        weight: backend.weight(),
        backup: backend.backup,
        state: state.as_str().into(),
        reason,
        since: rfc3339(since),
        runtime: config.runtime(&pool.name, &backend.address),
        checked: verdict.map(|verdict| rfc3339(verdict.checked)),
        requests_in_flight: backend.load.in_flight(),
        max_requests: Some(backend.max_requests).filter(|max| *max < u64::MAX),
        expected_answer_ms: backend.load.latest(at.instant).map(milliseconds),
        penalty_ms: backend.load.penalty(at.instant).map(milliseconds),
        consecutive_failures: backend.consecutive_failures(),
        ejections: backend.ejections(),
        passed_over: backend
            .passed_over()
            .filter(|(_, n)| *n > 0)
            .map(|(why, n)| (why.as_str().into(), n))
            .collect(),
        requests: backend.history.attempts.get(),
        failures: backend.history.failures.get(),
        answers: backend.history.responses.counted().collect(),
        errors: backend
            .errors()
            .filter(|(_, n)| *n > 0)
            .map(|(error, n)| (error.as_str().into(), n))
            .collect(),
        connections_new: backend.history.connections_new.get(),
        connections_reused: backend.history.connections_reused.get(),
    }
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

// === impl Problem ===

impl Problem {
    fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), since: None, at: None, reason: None }
    }

    fn since(self, since: Option<String>) -> Self {
        Self { since, ..self }
    }

    fn because(self, reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..self }
    }

    /// Returns the problem of session keys that are not in effect; `None` if they are.
    fn of_keys(keys: &KeyFileStatus) -> Option<Self> {
        let why = format!("the previous keys stay in effect: {}", keys.problem.as_ref()?);
        let problem = Self::new(format!("cannot use the session keys of {}", keys.file)).because(why);
        Some(problem.since(keys.since.clone()))
    }

    /// Returns the problem of an upgrade that failed.
    fn of_upgrade(FailedUpgrade { time, reason }: &FailedUpgrade) -> Self {
        let problem = Self::new("the last upgrade failed");
        Self {
            at: Some(rfc3339(*time)),
            ..problem.because(format!("this process continues to serve: {reason}"))
        }
    }

    /// Returns the problem of a log that could not be opened again.
    fn of_log(failure: &ReopenFailure) -> Self {
        let problem = Self::new("a log was not reopened after its rotation");
        let why = format!("lines are still written to the old file: {}", failure.reason);
        Self { at: Some(rfc3339(failure.time)), ..problem.because(why) }
    }

    /// Returns the problem of a reload whose file is not in effect; `None` if it is.
    fn of_reload(reload: &LastReload) -> Option<Self> {
        let why = reload.problem.as_deref().unwrap_or_default();
        let problem = match &*reload.result {
            "refused" => Self::new("the last reload was rejected")
                .because(format!("the previous configuration is still in effect: {why}")),
            "rolled_back" => Self::new("the last reload was rolled back").because(why),
            _ => return None,
        };
        Some(Self { at: Some(reload.time.clone()), ..problem })
    }
}

// === impl PoolStatus ===

impl PoolStatus {
    fn unready(&self) -> Option<Problem> {
        let problem = || Problem::new(format!("pool {}: no backend is ready", self.name));
        (self.ready == 0).then(|| problem().since(self.unready_since.clone()))
    }

    fn panicking(&self) -> Option<Problem> {
        let problem = || Problem::new(format!("pool {}: panic", self.name)).since(self.panic_since.clone());
        self.panic.then(|| problem().because("all its backends are used, whether ready or not"))
    }

    fn on_backups(&self) -> Option<Problem> {
        let problem = || Problem::new(format!("pool {}: its backups are in use", self.name));
        (self.backups_in_use && self.ready > 0).then(|| problem().since(self.backups_since.clone()))
    }
}

// === impl BackendStatus ===

impl BackendStatus {
    fn problem(&self, pool: &str) -> Problem {
        let Self { address, state, reason, since, .. } = self;
        Problem::new(format!("pool {pool}: backend {address} is {state}"))
            .since(Some(since.clone()))
            .because(reason.clone())
    }
}

fn listeners(plan: &Snapshot) -> Vec<ListenerStatus> {
    let status = |(id, listener)| {
        let listener: &Listener = listener;
        let traffic = plan.traffic(id);
        ListenerStatus {
            name: listener.name.to_string(),
            address: listener.address.to_string(),
            connections: traffic.connections.get(),
            connections_active: traffic.connections_active.get(),
            requests_in_flight: traffic.in_flight.get(),
            rejected: traffic.rejected().map(|(reason, n)| (reason.as_str().into(), n)).collect(),
        }
    };
    plan.listeners.iter().map(status).collect()
}
