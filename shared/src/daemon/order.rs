//! Third step of a start: gives Pingora's server the services with their dependencies, and runs it.
//!
//! Traffic is accepted after the first health checks and, in an upgrade, after the [gate](super::gate) has opened. The
//! start is [announced](super::announce) after that. Metrics can be read immediately, but in an upgrade the old
//! process, which is ready, serves them until the announcement.

use std::mem::take;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_service::service::ProxyService;
use lb_service::traffic::Traffic;
use metrics_service::Endpoints;
use pingora::apps::http_app::HttpServer;
use pingora::server::{RunArgs, Server};
use pingora::services::background::{GenBackgroundService, background_service};
use pingora::services::listening::Service;
use pingora::services::{ServiceHandle, ServiceWithDependents};

use super::Extra;
use super::acquire::{Files, Held};
use super::announce::{Announce, Announcement};
use super::compose::{Composed, Services};
use super::gate::Gate;
use super::host::DaemonHost;
use super::operations::control;
use crate::config::Plan;
use crate::control::{ControlService, Farewells};
use crate::process::lifecycle::{Outcome, Parts, Signals};
use crate::process::sockets::{Class, Handed, Sockets};
use crate::process::upgrade::{self, PredecessorLink};
use crate::serving::AccessLogs;

/// The service of the metrics address.
type Metrics = Service<HttpServer<Endpoints>>;

/// Pingora's server with all services.
pub(super) struct Ordered {
    server: Server,
    signals: Signals,
    end: End,
}

/// Resources that are released at the end of the process.
struct End {
    outcome: Outcome,
    files: Files,
    logs: AccessLogs,
    traffic: Arc<Traffic>,
    /// The connections that receive the outcome.
    farewells: Farewells,
}

/// Server with the values that all services need.
struct Order<'a> {
    server: &'a mut Server,
    signals: &'a Signals,
    sockets: Arc<Sockets>,
    /// The services that must be ready before the first health checks.
    before_checks: Vec<ServiceHandle>,
    /// Whether the sockets belong to another process until this one is announced.
    takes_over: bool,
}

/// The longest time that the runtimes have to drop the requests that are cut off.
const CUT: Duration = Duration::from_secs(1);

// === impl Ordered ===

impl Ordered {
    /// Adds the services to the server in the order of their dependencies.
    pub(super) fn order(plan: &Plan, composed: Composed, held: Held, extra: Box<Extra<'_>>) -> Self {
        let Composed { mut server, services } = composed;
        server.bootstrap();
        let before_checks = extra(&mut server, &services);
        let signals = signals(plan, &services, &held);
        let end = End::new(&held, &signals, services.core.traffic.clone());
        let control = control(plan, &services, &held, &signals, end.farewells.clone());
        let (sockets, takes_over) = (held.files.sockets.clone(), held.link.is_some());
        let order = Order { server: &mut server, signals: &signals, sockets, before_checks, takes_over };
        order.add(plan, services, held, control);
        Self { server, signals, end }
    }

    /// Runs the services until the process must end, and returns the exit code. The last service announces that the
    /// daemon serves.
    pub(super) fn run_and_announce(self) -> u8 {
        self.server.run(RunArgs { shutdown_signal: Box::new(self.signals) });
        self.end.release()
    }
}

// === impl End ===

impl End {
    fn new(held: &Held, signals: &Signals, traffic: Arc<Traffic>) -> Self {
        Self {
            outcome: signals.outcome(),
            files: held.files.clone(),
            logs: held.logs.access.clone(),
            traffic,
            farewells: Farewells::default(),
        }
    }

    /// Releases the resources, and returns the exit code.
    fn release(self) -> u8 {
        self.files.release(&self.outcome);
        await_cut_requests(&self.traffic);
        self.logs.end();
        // This must come last: all resources have been released, so a new process can start.
        self.farewells.say(&self.outcome);
        self.outcome.exit_code()
    }
}

/// Waits until the requests that are cut off are logged. Their runtimes drop them while this runs.
fn await_cut_requests(traffic: &Traffic) {
    let end = Instant::now() + CUT;
    while traffic.in_flight() > 0 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn signals(plan: &Plan, services: &Services, held: &Held) -> Signals {
    Signals::new(Parts {
        timings: services.handles.timings.clone(),
        upgrade_sock: plan.server.upgrade_sock.clone(),
        window: upgrade::WINDOW,
        launch: held.launch.clone(),
        supervisor: held.supervisor.clone(),
        sockets: held.files.sockets.clone(),
        early: held.early.clone(),
        host: Arc::new(DaemonHost::new(services, held)),
    })
}

// === impl Order ===

impl Order<'_> {
    fn add(mut self, plan: &Plan, services: Services, held: Held, control: Option<ControlService>) {
        let Services { core, proxy, prober, metrics, changer, lookout, beginning, .. } = services;
        let (readiness, wanted) = (core.readiness.clone(), beginning.wanted.clone());
        let old = held.link.as_ref().map(PredecessorLink::process);
        let announcement = Announcement::new(plan, held, core, beginning);
        let announce = Arc::new(Announce::new(self.signals, announcement));
        let gate = Gate::new(readiness, wanted, announce.clone()).beside(old).opening(self.sockets.clone());
        self.service(background_service("operator", changer), &[]);
        self.service(background_service("lookout", lookout), &[]);
        let before_checks = take(&mut self.before_checks);
        let checks = self.service(background_service("health", prober), &before_checks);
        let gate = self.service(background_service("gate", gate), &[checks]);
        let traffic = self.service(self.traffic(proxy), &[gate]);
        let announced = self.service(GenBackgroundService::new("announce".to_owned(), announce), &[traffic]);
        self.add_admin(metrics, control, &[announced]);
    }

    /// Adds the services for operators. Both processes of an upgrade have their sockets, and the new process must not
    /// accept orders before it has taken over.
    fn add_admin(&mut self, metrics: Metrics, control: Option<ControlService>, announced: &[ServiceHandle]) {
        self.service(self.admin(metrics), if self.takes_over { announced } else { &[] });
        if let Some(control) = control {
            self.service(background_service("control", control), announced);
        }
    }

    /// Adds a service that starts when `dependencies` are ready.
    fn service(
        &mut self,
        service: impl ServiceWithDependents + 'static,
        dependencies: &[ServiceHandle],
    ) -> ServiceHandle {
        let handle = self.server.add_service(service);
        handle.add_dependencies(dependencies);
        handle
    }

    /// Returns the proxy with our sockets. It closes when a drain begins, and its runtime must respond for the process
    /// to count as alive.
    fn traffic(&self, proxy: ProxyService) -> Handed<ProxyService> {
        let closes = self.signals.shutdown(Class::Traffic);
        Handed::new(proxy, &self.sockets, closes, self.signals.failures()).watched(self.signals.pulse())
    }

    /// Returns the metrics with our sockets.
    fn admin(&self, metrics: Metrics) -> Handed<Metrics> {
        let closes = self.signals.shutdown(Class::Admin);
        Handed::new(metrics, &self.sockets, closes, self.signals.failures())
    }
}
