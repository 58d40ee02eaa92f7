//! Composition of the three services, which share one `Arc<LoadBalancer<Policy>>` for each pool.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use health_service::Prober;
use lb_service::config::MAX_ATTEMPTS;
use lb_service::explain::Token;
use lb_service::service::ProxyService;
use lb_service::snapshot::CurrentSnapshot;
use lb_service::traffic::Traffic;
use metrics_service::{ConfigMetrics, Endpoints, LogCollector, PoolCollector, ProcessCollector, Readiness};
use pingora::apps::http_app::HttpServer;
use pingora::connectors::{ConnectorOptions, TransportConnector};
use pingora::listeners::ListenerConfig;
use pingora::server::configuration::ServerConf;
use pingora::services::listening::Service;
use prometheus::Registry;

use super::lookout::{Alarm, Lookout};
use super::moving::Moving;
use super::{Held, StartError};
use crate::condition::{Condition, Known};
use crate::config::{Plan, Problems};
use crate::events::{self, Events};
use crate::explain::{Conditions, ExplainSource};
use crate::http_message::FILE_HEADER;
use crate::operator::{self, Operator, OperatorService, Provenance, RestoredState};
use crate::process::lifecycle::{Timing, Timings};
use crate::process::logging::Verbosity;
use crate::process::upgrade::Hold;
use crate::purpose::Purpose;
use crate::serving::{AccessLogs, Checked, Opened, Pools, Running, served};
use crate::status::{ReopenFailures, StatusSource};

/// Maximum number of times that Pingora asks for a backend in one request. The pool limits the attempts of a request,
/// and its settings can change while this number cannot. This number must therefore never be the lower limit, and
/// leaves room for reused connections that turn out to be closed.
const TRIES: usize = 16 + MAX_ATTEMPTS as usize;

/// Origin of the plan of a process.
pub(super) struct Origin {
    /// The source of the configuration.
    pub(super) provenance: Provenance,
    pub(super) purpose: Purpose,
    /// The warnings about the configuration file.
    pub(super) warnings: Problems,
    /// The state of the old process.
    pub(super) inherited: RestoredState,
}

/// The three services and the values that they share.
pub struct Services {
    /// The snapshot that new requests use.
    pub current: CurrentSnapshot,
    /// The counters of all requests.
    pub traffic: Arc<Traffic>,
    /// The pools of the current plan.
    pub pools: Pools,
    /// The handle for changes while the daemon runs.
    pub operator: Operator,
    /// The source of the status document.
    pub status: Arc<StatusSource>,
    /// The source of explanations.
    pub explain: ExplainSource,
    /// The token that a request must have to get an explanation.
    pub(super) secret: Arc<str>,
    /// The time limits for the end of the process.
    pub(super) timings: Timings,
    pub(super) readiness: Readiness,
    pub(super) purpose: Purpose,
    /// The pools that must have a ready backend before this process takes over, because they had one in the old
    /// process.
    pub(super) wanted: Vec<String>,
    pub(super) proxy: ProxyService,
    pub(super) prober: Prober,
    pub(super) metrics: Service<HttpServer<Endpoints>>,
    pub(super) changer: OperatorService,
    pub(super) lookout: Lookout,
    /// The lock that prevents changes until the start is complete.
    pub(super) hold: Option<Hold>,
    /// The listeners of the old process that move to other addresses.
    pub(super) moving: Moving,
    pub(super) logs: AccessLogs,
}

impl Services {
    /// Returns the readiness of the daemon.
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Composes the services for `plan` without starting them. `plan` is the plan of the file in `origin`, if there is
    /// one, plus the changes that operators made in the old process.
    ///
    /// # Errors
    /// If two services register a metric of the same name, or if the system provides no random numbers.
    pub(super) fn compose(
        plan: &Plan,
        conf: &Arc<ServerConf>,
        origin: Origin,
        logs: &AccessLogs,
        log: Opened,
        held: &Held,
    ) -> Result<Self, StartError> {
        let Origin { provenance, warnings, purpose, inherited } = origin;
        let RestoredState { runtime, times, ready: wanted, events } = inherited;
        let events = Events::continued(events, std::process::id());
        let written = plan.clone();
        let plan = &runtime.applied_to(plan);
        let alarm = Alarm::new(events.clone());
        let ejected = alarm.ejected();
        let pools = Pools::new(plan, Arc::new(alarm));
        let lookout = Lookout::new(pools.clone(), ejected);
        let traffic = Traffic::new();
        let secret = secret()?;
        let token = Token::new(&*secret);
        let listeners_logs = logs.of(plan, Some(&log));
        let current = CurrentSnapshot::new(served(plan, &pools.now(), listeners_logs, &traffic, &token));
        logs.replace(log);
        let registry = registry(&current, &pools, log_collector(&held.verbosity, logs))?;
        let prober = prober(&pools.now(), conf, &registry, Arc::new(events.clone()))?;
        let readiness = Readiness::new(pools.views());
        readiness.require(plan.readiness);
        let (proxy, doors) = lb_service::service::service(conf, &current, &traffic);
        let moving = Moving::begin(plan, &held.sockets, &doors);
        let running = Running {
            current: current.clone(),
            traffic: traffic.clone(),
            pools: pools.clone(),
            doors,
            checks: prober.checks(),
            sockets: held.sockets.clone(),
            logs: logs.clone(),
            token,
            leaving: Arc::default(),
        };
        let timings = Timings::new(timing(plan));
        let (operator, changer, hold) = Operator::new(operator::Parts {
            running,
            takes_over: held.link.is_some(),
            provenance,
            plan: written,
            warnings,
            runtime,
            times,
            events,
            verbosity: held.verbosity.clone(),
            metrics: ConfigMetrics::register(&registry)?,
            supervisor: held.supervisor.clone(),
            observer: follow(timings.clone(), readiness.clone(), held.verbosity.clone()),
        });
        let shared = (current.clone(), traffic.clone(), pools.clone());
        let process = (held.verbosity.clone(), readiness.clone(), purpose.clone());
        let status =
            Arc::new(StatusSource::new(shared, operator.clone(), process, reopen_failures(held, logs)));
        let explain = ExplainSource::new(current.clone(), conditions(pools.clone(), operator.clone()));
        let documents = (status.clone(), operator.clone(), explain.clone());
        let metrics = readable(plan, registry, &readiness, documents);
        Ok(Self {
            current,
            traffic,
            pools,
            operator,
            status,
            explain,
            secret,
            timings,
            readiness,
            purpose,
            wanted,
            proxy,
            prober,
            metrics,
            changer,
            lookout,
            hold: Some(hold),
            moving,
            logs: logs.clone(),
        })
    }
}

fn timing(plan: &Plan) -> Timing {
    Timing { delay: plan.shutdown.delay, drain: plan.shutdown.drain }
}

/// Returns a function that updates the time limits, the pools required for readiness, and the log level from a new
/// plan.
fn follow(timings: Timings, readiness: Readiness, verbosity: Verbosity) -> Box<dyn Fn(&Plan) + Send + Sync> {
    Box::new(move |plan| {
        timings.set(timing(plan));
        readiness.require(plan.readiness);
        verbosity.set_file(plan.log_level.clone());
    })
}

/// Returns the conditions of backends for explanations. A pool that has just been removed has no conditions.
fn conditions(pools: Pools, operator: Operator) -> Conditions {
    Arc::new(move |pool, backend, state, at| {
        let (pools, status) = (pools.now(), operator.config_status());
        match pools.iter().find(|checked| *checked.pool.name == *pool) {
            Some(checked) => checked.condition(backend, state, status.changed(pool, backend.address), at),
            None => Condition::of(backend, state, Known::NOTHING, at),
        }
    })
}

fn reopen_failures(held: &Held, logs: &AccessLogs) -> ReopenFailures {
    let (error_log, logs) = (held.error_log.clone(), logs.clone());
    Box::new(move || {
        let of_error_log = error_log.as_ref().and_then(|log| log.reopen_failure());
        of_error_log.into_iter().chain(logs.reopen_failures()).collect()
    })
}

fn log_collector(verbosity: &Verbosity, logs: &AccessLogs) -> LogCollector {
    let (verbosity, logs) = (verbosity.clone(), logs.clone());
    LogCollector::new(move || verbosity.dropped(), move || logs.dropped())
}

/// Returns a registry with all metrics except those of the prober and the operator, which register their own.
fn registry(current: &CurrentSnapshot, pools: &Pools, logs: LogCollector) -> prometheus::Result<Registry> {
    let registry = Registry::new();
    lb_service::metrics::Metrics::register(&registry, current.clone())?;
    registry.register(Box::new(PoolCollector::new(pools.views())))?;
    registry.register(Box::new(ProcessCollector::new()))?;
    registry.register(Box::new(logs))?;
    metrics_service::build_info(&registry, env!("CARGO_PKG_VERSION"))?;
    Ok(registry)
}

/// Returns 128 random bits as a secret.
fn secret() -> Result<Arc<str>, StartError> {
    let mut bytes = [0; 16];
    let read = File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes));
    read.map_err(StartError::Random)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into())
}

/// Returns the documents that the metrics address serves.
fn readable(
    plan: &Plan,
    registry: Registry,
    readiness: &Readiness,
    (status, operator, explain): (Arc<StatusSource>, Operator, ExplainSource),
) -> Service<HttpServer<Endpoints>> {
    let events = operator.events().clone();
    let endpoints = Endpoints::new(registry, readiness.clone())
        .with_document("/api/v1/status", move |_| Ok(status.json()))
        .with_document("/api/v1/events", move |query| events::document(&events, query))
        .with_document("/api/v1/explain", move |query| explain.json(query))
        .refusing(FILE_HEADER, refusal(operator));
    let mut metrics = metrics_service::service(endpoints, "metrics");
    metrics.add_listener(ListenerConfig::tcp(plan.metrics.to_string()));
    metrics
}

/// Returns the check that rejects requests for the daemon of another configuration file, which can arrive here if both
/// files have the same metrics address.
fn refusal(operator: Operator) -> impl Fn(&[u8]) -> Option<String> {
    move |wanted| {
        let status = operator.config_status();
        if status.is_of(wanted) {
            return None;
        }
        let runs = match &status.canonical_file {
            Some(own) => format!("with {}", own.display()),
            None => "without a configuration file".to_owned(),
        };
        Some(format!("process {} at this address runs {runs}", std::process::id()))
    }
}

/// Returns Pingora's configuration for `plan`. Pingora's own daemon mode, PID file, handover and final wait are
/// switched off, because [`crate::process`] implements them.
pub(super) fn server_conf(plan: &Plan) -> ServerConf {
    let server = &plan.server;
    ServerConf {
        threads: server.threads,
        listener_tasks_per_fd: server.listener_tasks_per_fd,
        work_stealing: server.work_stealing,
        ca_file: server.ca_file.as_ref().map(|path| path.display().to_string()),
        client_bind_to_ipv4: server.client_bind_to_ipv4.iter().map(ToString::to_string).collect(),
        client_bind_to_ipv6: server.client_bind_to_ipv6.iter().map(ToString::to_string).collect(),
        upstream_keepalive_pool_size: server.upstream_keepalive_pool_size,
        upstream_connect_offload_threadpools: server.upstream_connect_offload.map(|offload| offload.pools),
        upstream_connect_offload_thread_per_pool: server
            .upstream_connect_offload
            .map(|offload| offload.threads_per_pool),
        max_retries: TRIES,
        ..ServerConf::default()
    }
}

fn prober(
    pools: &[Checked],
    conf: &ServerConf,
    registry: &Registry,
    observer: Arc<dyn health_service::Observer>,
) -> prometheus::Result<Prober> {
    let metrics = health_service::Metrics::new();
    metrics.register(registry)?;
    let connector = TransportConnector::new(Some(ConnectorOptions::from_server_conf(conf)));
    let mut prober = Prober::with_connector(metrics, connector).observed_by(observer);
    pools.iter().filter_map(Checked::to_check).for_each(|pool| prober.add(pool));
    Ok(prober)
}
