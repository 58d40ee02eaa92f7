//! The daemon as the host of its lifecycle: the effect of signals and phases on the services.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;

use super::acquire::Held;
use super::compose::Services;
use crate::operator::Operator;
use crate::process::lifecycle::{Host, Pending, Phase};
use crate::process::sockets::Sockets;
use crate::process::upgrade::{Handover, UpgradeError};
use crate::serving::{Core, Logs};
use crate::status::StatusSource;

/// Handles of the components that the lifecycle acts on.
pub(super) struct DaemonHost {
    core: Core,
    operator: Operator,
    status: Arc<StatusSource>,
    logs: Logs,
    sockets: Arc<Sockets>,
}

// === impl DaemonHost ===

impl DaemonHost {
    pub(super) fn new(services: &Services, held: &Held) -> Self {
        Self {
            core: services.core.clone(),
            operator: services.handles.operator.clone(),
            status: services.handles.status.clone(),
            logs: held.logs.clone(),
            sockets: held.files.sockets.clone(),
        }
    }
}

#[async_trait]
impl Host for DaemonHost {
    fn pending(&self) -> Pending {
        let traffic = &self.core.traffic;
        let requests = usize::try_from(traffic.in_flight()).unwrap_or(usize::MAX);
        Pending { requests, settling: !traffic.is_settled() }
    }

    fn enter(&self, phase: Phase) {
        let Core { traffic, readiness, .. } = &self.core;
        match phase {
            Phase::Delaying => {
                self.core.note("is no longer ready but still accepts connections");
                readiness.set_draining(true);
            }
            Phase::Draining => {
                self.core.note("drains");
                readiness.set_draining(true);
                traffic.drain();
            }
            Phase::HandedOver { idle } => {
                self.core.note("has handed over and drains");
                readiness.set_draining(true);
                traffic.drain_patiently(idle);
            }
        }
    }

    fn handover_begins(&self) {
        self.status.upgrade_begins();
    }

    async fn handover(&self) -> io::Result<Handover> {
        let (state, hold) = self.operator.handover_state().await;
        Ok(Handover { sockets: self.sockets.to_hand_over()?, state, hold })
    }

    fn handover_failed(&self, error: &UpgradeError) {
        self.core.note(format!("the upgrade failed: {error}"));
        self.status.upgrade_failed(error.to_string());
    }

    fn reload(&self) {
        self.operator.reload_by_signal();
    }

    fn reopen_logs(&self) {
        self.logs.reopen();
    }
}
