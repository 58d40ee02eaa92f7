//! Operations of the control socket, forwarded to the components that execute them.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use crate::control::{Farewells, Operations, predecessors};
use crate::events::{About, Events, Kind};
use crate::explain::{ExplainSource, Request};
use crate::operator::{ChangeResult, Operator, Order, Reload};
use crate::process::lifecycle::{Stops, Upgrades};
use crate::process::logging::{LogFilter, Verbosity};
use crate::status::StatusSource;

/// Handles of the components that execute operations.
pub(super) struct DaemonControl {
    pub(super) operator: Operator,
    pub(super) status: Arc<StatusSource>,
    pub(super) verbosity: Verbosity,
    pub(super) explain: ExplainSource,
    /// The token that a request must have to get an explanation.
    pub(super) secret: Arc<str>,
    pub(super) upgrades: Upgrades,
    pub(super) stops: Stops,
    /// The connections that receive the outcome of the process.
    pub(super) farewells: Farewells,
    /// The path of the control socket.
    pub(super) socket: PathBuf,
    /// The base path of the old process's socket, if it differs from `socket`.
    pub(super) earlier: Option<PathBuf>,
}

#[async_trait]
impl Operations for DaemonControl {
    async fn reload(&self, reload: Reload) -> ChangeResult {
        self.operator.reload(reload).await
    }

    async fn order(&self, order: Order) -> ChangeResult {
        self.operator.order(order).await
    }

    /// Waits for the backend in this process and in old processes. Old processes do not ask each other.
    async fn idle(&self, pool: &str, backend: SocketAddr) -> Result<(), String> {
        self.operator.idle(pool, backend).await?;
        if !self.operator.is_draining() {
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
        let config = self.operator.config_status();
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
        self.status.json()
    }

    fn events(&self) -> &Events {
        self.operator.events()
    }

    fn explain(&self, query: &str) -> Result<String, String> {
        self.explain.json(Some(query))
    }

    fn explain_text(&self, query: &str) -> Result<String, String> {
        self.explain.text(&Request::parse(Some(query))?)
    }

    fn explain_token(&self) -> String {
        self.secret.to_string()
    }

    async fn log_level(&self, filter: Option<&str>) -> Result<String, String> {
        if let Some(filter) = filter {
            let _turn = self.operator.turn().await?;
            let filter = LogFilter::parse(filter).map_err(|problem| problem.replace('\n', "; "))?;
            log::info!("operator: log level {filter}");
            self.events().note(Kind::Operator, About::default(), format!("log level {filter}"));
            self.verbosity.order(Some(filter));
        }
        Ok(self.verbosity.in_effect().0.to_string())
    }
}
