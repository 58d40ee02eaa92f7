//! The daemon as the host of its lifecycle.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use lb_service::traffic::Traffic;
use metrics_service::Readiness;

use crate::events::{About, Kind};
use crate::operator::Operator;
use crate::process::lifecycle::{Host, Pending, Phase};
use crate::process::logging::{ErrorLog, Verbosity};
use crate::process::sockets::Sockets;
use crate::process::upgrade::{Handover, UpgradeError};
use crate::serving::AccessLogs;
use crate::status::StatusSource;

/// Handles of the components that the lifecycle acts on.
pub(super) struct DaemonHost {
    pub(super) traffic: Arc<Traffic>,
    pub(super) readiness: Readiness,
    pub(super) verbosity: Verbosity,
    pub(super) operator: Operator,
    pub(super) status: Arc<StatusSource>,
    /// The file that replaces standard error; `None` if it is unchanged.
    pub(super) error_log: Option<Arc<ErrorLog>>,
    pub(super) access_logs: AccessLogs,
    pub(super) sockets: Arc<Sockets>,
}

// === impl DaemonHost ===

impl DaemonHost {
    fn note(&self, text: &str) {
        self.operator.events().note(Kind::Process, About::default(), text);
    }
}

#[async_trait]
impl Host for DaemonHost {
    fn pending(&self) -> Pending {
        let requests = usize::try_from(self.traffic.in_flight()).unwrap_or(usize::MAX);
        Pending { requests, settling: !self.traffic.is_settled() }
    }

    fn enter(&self, phase: Phase) {
        match phase {
            Phase::Serving => return,
            Phase::Delaying => self.note("is no longer ready but still accepts connections"),
            Phase::Draining => self.note("drains"),
            Phase::HandedOver { .. } => self.note("has handed over and drains"),
        }
        self.readiness.set_draining(true);
        match phase {
            Phase::Serving | Phase::Delaying => {}
            Phase::Draining => self.traffic.drain(),
            Phase::HandedOver { idle } => self.traffic.drain_patiently(idle),
        }
    }

    fn handover_begins(&self) {
        self.status.upgrade_begins();
    }

    async fn handover(&self) -> io::Result<Handover> {
        let (state, hold) =
            self.operator.handover_state(&self.verbosity, || self.readiness.pools(true)).await;
        Ok(Handover { sockets: self.sockets.to_hand_over()?, state, hold })
    }

    fn handover_failed(&self, error: &UpgradeError) {
        self.note(&format!("the upgrade failed: {error}"));
        self.status.upgrade_failed(error.to_string());
    }

    fn reload(&self) {
        self.operator.reload_by_signal();
    }

    fn reopen_logs(&self) {
        let count = self.access_logs.reopen();
        match &self.error_log {
            Some(log) => log.reopen(),
            None if count == 0 => log::info!("there is no log file to reopen"),
            None => {}
        }
    }
}
