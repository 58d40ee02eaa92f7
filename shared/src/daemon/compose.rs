//! Second step of a start: composes the services. The proxy, the prober and the metrics share one
//! `Arc<LoadBalancer<Policy>>` for each pool.
//!
//! The [`Core`] comes first. The services that depend on nothing else follow, then the operator, which changes them,
//! and then the documents, which show all of it.

use std::fs::File;
use std::io::Read;
use std::mem::take;
use std::sync::Arc;

use health_service::Prober;
use lb_service::config::MAX_ATTEMPTS;
use lb_service::explain::Token;
use lb_service::service::{Acceptors, Connector, ProxyService, service_without_sockets};
use lb_service::snapshot::CurrentSnapshot;
use lb_service::traffic::Traffic;
use metrics_service::{ConfigMetrics, Endpoints, LogCollector, PoolCollector, ProcessCollector, Readiness};
use pingora::apps::http_app::HttpServer;
use pingora::listeners::ListenerConfig;
use pingora::server::Server;
use pingora::server::configuration::ServerConf;
use pingora::services::listening::Service;
use prometheus::Registry;

use super::acquire::Held;
use super::lookout::{Alarm, Lookout};
use super::moving::Moving;
use super::{Start, StartError};
use crate::config::Plan;
use crate::events::{self, Event, Events};
use crate::explain::ExplainSource;
use crate::http_message::FILE_HEADER;
use crate::operator::{self, Operator, OperatorService, RestoredState};
use crate::process::lifecycle::Timings;
use crate::process::logging::Verbosity;
use crate::process::sockets::Sockets;
use crate::process::upgrade::Hold;
use crate::purpose::Purpose;
use crate::serving::{AccessLogs, Core, Pools, Running, served, timing};
use crate::status::StatusSource;

/// Maximum number of times that Pingora asks for a backend in one request. The pool limits the attempts of a request,
/// and its settings can change while this number cannot. This number must therefore never be the lower limit, and
/// leaves room for reused connections that turn out to be closed.
const TRIES: usize = 16 + MAX_ATTEMPTS as usize;

/// Pingora's server, and the services that it will run.
pub(super) struct Composed {
    pub(super) server: Server,
    pub(super) services: Services,
}

/// The services of the daemon, composed but not started.
pub(crate) struct Services {
    pub(crate) core: Core,
    pub(super) handles: Handles,
    pub(super) proxy: ProxyService,
    pub(super) prober: Prober,
    pub(super) metrics: Service<HttpServer<Endpoints>>,
    pub(super) changer: OperatorService,
    pub(super) lookout: Lookout,
    pub(super) beginning: Beginning,
}

/// Handles of the composed services, for signals and the control socket. Clones share them.
#[derive(Clone)]
pub(super) struct Handles {
    pub(super) operator: Operator,
    pub(super) status: Arc<StatusSource>,
    pub(super) explain: ExplainSource,
    /// The token that a request must have to get an explanation.
    pub(super) secret: Arc<str>,
    /// The time limits for the end of the process.
    pub(super) timings: Timings,
}

/// Values that only the start of the process needs.
pub(super) struct Beginning {
    /// The pools that must have a ready backend before this process takes over, because they had one in the old
    /// process.
    pub(super) wanted: Vec<String>,
    /// The served addresses, for messages: `on 0.0.0.0:80`.
    pub(super) serves: String,
    /// The lock that prevents changes until the start is complete.
    pub(super) hold: Hold,
    /// The listeners of the old process that move to other addresses.
    pub(super) moving: Moving,
}

/// Core with the services that depend on nothing else.
struct Foundation {
    core: Core,
    secret: Arc<str>,
    registry: Registry,
    lookout: Lookout,
    proxy: ProxyService,
    acceptors: Acceptors,
    prober: Prober,
    connector: Connector,
    timings: Timings,
}

// === impl Composed ===

impl Composed {
    /// Composes the services for `plan` without starting them. In an upgrade, the changes that operators made in the
    /// old process are applied to the plan.
    ///
    /// # Errors
    /// If two services register a metric of the same name, or if the system provides no random numbers.
    pub(super) fn compose(plan: &Plan, start: Start<'_>, held: &Held) -> Result<Self, StartError> {
        let server = Server::new_with_opt_and_conf(None, server_conf(plan));
        let restored = held.restored(plan);
        let services = Services::compose(plan, &server.configuration, start, restored, held)?;
        Ok(Self { server, services })
    }
}

// === impl Services ===

impl Services {
    fn compose(
        plan: &Plan,
        conf: &Arc<ServerConf>,
        start: Start<'_>,
        mut restored: RestoredState,
        held: &Held,
    ) -> Result<Self, StartError> {
        let (purpose, serves) = (start.purpose.clone(), start.purpose.on(plan));
        let (wanted, events) = (take(&mut restored.ready), take(&mut restored.events));
        let effective = restored.runtime.applied_to(plan);
        let base = Foundation::new(&effective, conf, events, held)?;
        let moving = Moving::begin(&effective, &held.files.sockets, &base.acceptors);
        let (operator, changer, hold) = base.operator(plan, start, restored, held)?;
        let handles = base.handles(operator, purpose, held);
        let metrics = metrics(&effective, &base, &handles);
        let Foundation { core, lookout, proxy, prober, .. } = base;
        let beginning = Beginning { wanted, serves, hold, moving };
        Ok(Self { core, handles, proxy, prober, metrics, changer, lookout, beginning })
    }
}

// === impl Foundation ===

impl Foundation {
    fn new(plan: &Plan, conf: &Arc<ServerConf>, events: Vec<Event>, held: &Held) -> Result<Self, StartError> {
        let secret = secret()?;
        let alarm = Alarm::new(Events::continued(events, std::process::id()));
        let (events, ejected) = (alarm.observer().clone(), alarm.ejected());
        let core = core(plan, Pools::new(plan, Arc::new(alarm)), events, &Token::new(&*secret), held);
        let lookout = Lookout::new(core.pools.clone(), ejected);
        let registry = registry(&core, &held.logs.access)?;
        let connector = Connector::of(conf);
        let prober = prober(&core, &connector, &registry)?;
        let (proxy, acceptors) = proxy(conf, &core, &held.files.sockets)?;
        let timings = Timings::new(timing(plan));
        Ok(Self { core, secret, registry, lookout, proxy, acceptors, prober, connector, timings })
    }

    /// Returns the operator, the service that makes changes, and the lock that prevents changes until the start is
    /// complete.
    fn operator(
        &self,
        plan: &Plan,
        start: Start<'_>,
        restored: RestoredState,
        held: &Held,
    ) -> Result<(Operator, OperatorService, Hold), StartError> {
        Ok(Operator::new(operator::Parts {
            running: self.running(held),
            takes_over: held.link.is_some(),
            provenance: start.provenance,
            plan: plan.clone(),
            warnings: start.warnings,
            runtime: restored.runtime,
            times: restored.times,
            metrics: ConfigMetrics::register(&self.registry)?,
            supervisor: held.supervisor.clone(),
        }))
    }

    /// Returns the parts that a change of the plan affects.
    fn running(&self, held: &Held) -> Running {
        Running {
            core: self.core.clone(),
            timings: self.timings.clone(),
            acceptors: self.acceptors.clone(),
            checks: self.prober.checks(),
            connector: self.connector.clone(),
            sockets: held.files.sockets.clone(),
            logs: held.logs.access.clone(),
            token: Token::new(&*self.secret),
            leaving: Arc::default(),
        }
    }

    fn handles(&self, operator: Operator, purpose: Purpose, held: &Held) -> Handles {
        if matches!(purpose, Purpose::Stopgap(_)) && held.announcer.is_background() {
            self.core.readiness.withhold("demo: started without a configuration");
        }
        let status = StatusSource::new(self.core.clone(), operator.clone(), held.logs.clone(), purpose);
        Handles {
            status: Arc::new(status),
            explain: ExplainSource::new(self.core.clone(), operator.clone()),
            operator,
            secret: self.secret.clone(),
            timings: self.timings.clone(),
        }
    }
}

fn core(plan: &Plan, pools: Pools, events: Events, token: &Token, held: &Held) -> Core {
    let traffic = Traffic::new();
    let logs = held.logs.access.of(plan, None);
    let current = CurrentSnapshot::new(served(plan, &pools.now(), logs, &traffic, token));
    let readiness = Readiness::new(pools.views());
    readiness.require(plan.readiness);
    Core { current, traffic, pools, events, readiness, verbosity: held.verbosity.clone() }
}

fn log_collector(verbosity: &Verbosity, logs: &AccessLogs) -> LogCollector {
    let (verbosity, logs) = (verbosity.clone(), logs.clone());
    LogCollector::new(move || verbosity.dropped(), move || logs.dropped())
}

/// Returns a registry with all metrics except those of the prober and the operator, which register their own.
fn registry(core: &Core, logs: &AccessLogs) -> prometheus::Result<Registry> {
    let registry = Registry::new();
    lb_service::metrics::Metrics::register(&registry, core.current.clone())?;
    registry.register(Box::new(PoolCollector::new(core.pools.views())))?;
    registry.register(Box::new(ProcessCollector::new()))?;
    registry.register(Box::new(log_collector(&core.verbosity, logs)))?;
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

/// Returns the service of the metrics address: the metrics and the documents.
fn metrics(plan: &Plan, base: &Foundation, handles: &Handles) -> Service<HttpServer<Endpoints>> {
    let Handles { operator, status, explain, .. } = handles.clone();
    let events = base.core.events.clone();
    let endpoints = Endpoints::new(base.registry.clone(), base.core.readiness.clone())
        .with_document("/api/v1/status", move |_| Ok(status.json()))
        .with_document("/api/v1/events", move |query| events::document(&events, query))
        .with_document("/api/v1/explain", move |query| explain.json(query))
        .rejecting(FILE_HEADER, of_another_file(operator));
    let mut metrics = metrics_service::service(endpoints, "metrics");
    metrics.add_listener(ListenerConfig::tcp(plan.metrics.to_string()));
    metrics
}

/// Returns the check that rejects requests for the daemon of another configuration file, which can arrive here if both
/// files have the same metrics address.
fn of_another_file(operator: Operator) -> impl Fn(&[u8]) -> Option<String> {
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
fn server_conf(plan: &Plan) -> ServerConf {
    let server = &plan.server;
    ServerConf {
        threads: server.threads,
        listener_tasks_per_fd: server.listener_tasks_per_fd,
        work_stealing: server.work_stealing,
        client_bind_to_ipv4: server.client_bind_to_ipv4.iter().map(ToString::to_string).collect(),
        client_bind_to_ipv6: server.client_bind_to_ipv6.iter().map(ToString::to_string).collect(),
        upstream_keepalive_pool_size: server.upstream_keepalive_pool_size,
        max_retries: TRIES,
        ..ServerConf::default()
    }
}

/// Returns the service that proxies, on copies of the sockets that this process has bound.
fn proxy(conf: &ServerConf, core: &Core, sockets: &Sockets) -> Result<(ProxyService, Acceptors), StartError> {
    let (service, acceptors) = service_without_sockets(conf, &core.current, &core.traffic);
    for (_, listener) in core.current.load().listeners.iter() {
        let socket = sockets.copy(&listener.address.bind_key()).map_err(StartError::Descriptors)?;
        match socket {
            Some(socket) => acceptors.open_on(listener.clone(), socket),
            None => acceptors.open(listener.clone()),
        }
    }
    Ok((service, acceptors))
}

fn prober(core: &Core, connector: &Connector, registry: &Registry) -> prometheus::Result<Prober> {
    let metrics = health_service::Metrics::new();
    metrics.register(registry)?;
    let mut prober = Prober::new(metrics).observed_by(Arc::new(core.events.clone()));
    core.pools.now().iter().for_each(|pool| prober.add(pool.to_check(connector)));
    Ok(prober)
}
