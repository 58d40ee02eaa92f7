//! The purpose of the process: to serve a configuration, or to show the demo.

use crate::config::Plan;
use crate::places::Missing;

/// Purpose of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The process serves its configuration.
    #[default]
    Service,
    /// The process runs the demo on request.
    Demo,
    /// The process runs the demo because there is no configuration file at any of these paths.
    Stopgap(Missing),
}

// === impl Purpose ===

impl Purpose {
    /// Returns whether the process runs the demo.
    pub(crate) fn is_demo(&self) -> bool {
        *self != Self::Service
    }

    /// Returns the served addresses, for texts that begin with "serves".
    pub(crate) fn on(&self, plan: &Plan) -> String {
        let listeners = plan.listeners.iter().map(|(_, listener)| listener.address.to_string());
        let what = if self.is_demo() { "the demo on " } else { "on " };
        format!("{what}{}", listeners.collect::<Vec<_>>().join(", "))
    }
}
