//! Handles that all parts of the daemon hold.

use std::sync::Arc;

use lb_service::snapshot::CurrentSnapshot;
use lb_service::traffic::Traffic;
use metrics_service::Readiness;

use super::pools::Pools;
use crate::config::Plan;
use crate::events::{About, Events, Kind};
use crate::process::logging::Verbosity;

/// Handles that all parts of the daemon hold. They are created before the services. Clones share them.
#[derive(Clone)]
pub(crate) struct Core {
    /// The snapshot that new requests use.
    pub(crate) current: CurrentSnapshot,
    /// The counters of all requests.
    pub(crate) traffic: Arc<Traffic>,
    /// The pools of the plan in effect.
    pub(crate) pools: Pools,
    /// The log of events.
    pub(crate) events: Events,
    /// The conditions behind `/readyz`.
    pub(crate) readiness: Readiness,
    /// The filter of the log.
    pub(crate) verbosity: Verbosity,
}

// === impl Core ===

impl Core {
    /// Adopts the keys of a new plan that configure the handles themselves.
    pub(super) fn adopt(&self, plan: &Plan) {
        self.readiness.require(plan.readiness);
        self.verbosity.set_file(plan.log_level.clone());
    }

    /// Notes an event of the process itself.
    pub(crate) fn note(&self, text: impl Into<String>) {
        self.events.note(Kind::Process, About::default(), text);
    }
}
