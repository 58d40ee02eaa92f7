//! Operations of the control socket, forwarded to the components that execute them.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use lb_service::pool::UpstreamAddress;

use super::acquire::Held;
use super::compose::{Handles, Services};
use crate::config::Plan;
use crate::control::{ControlService, DrainingSocket, Farewells, Operations, predecessors};
use crate::events::{About, Events, Kind};
use crate::explain::Request;
use crate::operator::{ChangeResult, Order, Reload};
use crate::process::files::reason;
use crate::process::lifecycle::{Signals, Stops, Upgrades};
use crate::process::logging::LogFilter;
use crate::process::sockets::Class;
use crate::process::upgrade::PredecessorLink;
use crate::serving::Core;

/// Handles of the components that execute operations.
struct DaemonControl {
    core: Core,
    handles: Handles,
    upgrades: Upgrades,
    stops: Stops,
    /// The connections that receive the outcome of the process.
    farewells: Farewells,
    /// The path of the control socket.
    socket: PathBuf,
    /// The base path of the old process's socket, if it differs from `socket`.
    earlier: Option<PathBuf>,
}

/// Returns the service on the control socket; `None` if this process has no control socket.
pub(super) fn control(
    plan: &Plan,
    services: &Services,
    held: &Held,
    signals: &Signals,
    farewells: Farewells,
) -> Option<ControlService> {
    let path = &plan.control.socket;
    let socket = held.files.sockets.copy(&path.to_string_lossy());
    let socket = socket.unwrap_or_else(|error| {
        log::error!("control: cannot copy the socket: {}", reason(&error));
        None
    })?;
    predecessors::sweep(path);
    let control = DaemonControl::new(plan, services, held, signals, farewells);
    let own = predecessors::socket_of(path, std::process::id());
    let service = ControlService::new(socket, Arc::new(control), signals.shutdown(Class::Admin));
    Some(service.with_draining_socket(DrainingSocket::new(own, signals.outcome())))
}

/// Returns the base path of the old process's separate socket if it differs from this process's control socket. An
/// older version does not report its socket and uses the common name.
fn earlier_draining_socket(plan: &Plan, link: Option<&PredecessorLink>) -> Option<PathBuf> {
    let link = link?;
    let old = link.old();
    let common = || (!old.is_said).then(|| plan.server.runtime.common().control_socket());
    let control = old.control.clone().or_else(common)?;
    (control != plan.control.socket).then(|| predecessors::socket_of(&control, link.old_pid()))
}

// === impl DaemonControl ===

impl DaemonControl {
    fn new(plan: &Plan, services: &Services, held: &Held, signals: &Signals, farewells: Farewells) -> Self {
        Self {
            core: services.core.clone(),
            handles: services.handles.clone(),
            upgrades: signals.upgrades(),
            stops: signals.stops(),
            farewells,
            socket: plan.control.socket.clone(),
            earlier: earlier_draining_socket(plan, held.link.as_ref()),
        }
    }
}

#[async_trait]
impl Operations for DaemonControl {
    async fn reload(&self, reload: Reload) -> ChangeResult {
        self.handles.operator.reload(reload).await
    }

    async fn order(&self, order: Order) -> ChangeResult {
        self.handles.operator.order(order).await
    }

    /// Waits for the backend in this process and in old processes. Old processes do not ask each other.
    async fn idle(&self, pool: &str, backend: &UpstreamAddress) -> Result<(), String> {
        self.handles.operator.idle(pool, backend).await?;
        if !self.handles.operator.is_draining() {
            predecessors::idle(self.predecessors(), pool, backend).await;
        }
        Ok(())
    }

    async fn upgrade(&self) -> Result<u32, String> {
        let upgraded = self.upgrades.upgrade().await;
        upgraded.map(|upgraded| upgraded.pid).map_err(|failed| failed.to_string())
    }

    fn stop(&self, now: bool, connection: OwnedFd) {
        self.farewells.promise(connection);
        self.stops.stop(now);
    }

    fn refusal(&self, wanted: &str) -> Option<String> {
        let config = self.handles.operator.config_status();
        if config.is_of(wanted.as_bytes()) {
            return None;
        }
        let pid = std::process::id();
        let runs = match &config.canonical_file {
            Some(own) => format!("runs with {}", own.display()),
            None => "runs without a configuration file".to_owned(),
        };
        Some(format!(
            "process {pid} at {} {runs}, not with the requested file; select the right daemon with `-c FILE`, or this one with \
             `--socket` alone",
            self.socket.display()
        ))
    }

    fn predecessors(&self) -> Vec<PathBuf> {
        let beside = predecessors::sockets(&self.socket).into_iter();
        beside.chain(self.earlier.clone().filter(|socket| socket.exists())).collect()
    }

    fn status(&self) -> String {
        self.handles.status.json()
    }

    fn events(&self) -> &Events {
        &self.core.events
    }

    fn explain(&self, query: &str) -> Result<String, String> {
        self.handles.explain.json(Some(query))
    }

    fn explain_text(&self, query: &str) -> Result<String, String> {
        self.handles.explain.text(&Request::parse(Some(query))?)
    }

    fn explain_token(&self) -> String {
        self.handles.secret.to_string()
    }

    async fn log_level(&self, filter: Option<&str>) -> Result<String, String> {
        if let Some(filter) = filter {
            let _turn = self.handles.operator.turn().await?;
            let filter = LogFilter::parse(filter).map_err(|problem| problem.replace('\n', "; "))?;
            log::info!("operator: log level {filter}");
            self.events().note(Kind::Operator, About::default(), format!("log level {filter}"));
            self.core.verbosity.order(Some(filter));
        }
        Ok(self.core.verbosity.in_effect().0.to_string())
    }
}
