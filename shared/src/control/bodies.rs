//! The JSON bodies of the control socket, as types that both sides use: requests that the command line writes and the
//! daemon reads, and responses that the daemon writes and the command line reads.
//!
//! Requests reject unknown fields, so that a misspelt one is never ignored. Responses ignore them, so that a daemon can
//! be newer than the command line. The status is in [`status_document`](crate::status_document), a reload in
//! [`Reload`](crate::operator::Reload), and the result of a change in [`ChangeResult`](crate::operator::ChangeResult).

use std::num::NonZeroU32;
use std::path::PathBuf;

use lb_service::pool::Weight;
use serde::{Deserialize, Serialize};

use crate::events::Event;

/// A request that adds a backend.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewBackend {
    /// The address.
    pub address: String,
    /// The weight.
    #[serde(default)]
    pub weight: Weight,
    /// Whether the backend is a backup.
    #[serde(default)]
    pub backup: bool,
    /// The limit of its requests in flight. `None`: the limit of the pool's other backends.
    #[serde(default)]
    pub max_requests: Option<NonZeroU32>,
}

/// A request that changes a weight.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewWeight {
    /// The new weight.
    pub weight: Weight,
}

/// The log filter: a request that changes it, and the response.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Filter {
    /// The filter, as `RUST_LOG` has it.
    pub filter: String,
}

/// A request that stops the process.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Stop {
    /// Whether to end at once instead of draining.
    pub now: bool,
}

/// A request without fields.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

/// A response that says why a request failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// The reason.
    pub problem: String,
}

/// The response with events.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct EventList {
    /// The PID of the daemon, whose numbers the events have.
    pub process: u32,
    /// The events, the oldest first.
    pub events: Vec<Event>,
}

/// The response with the control sockets of old processes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Predecessors {
    /// The paths of the sockets.
    pub sockets: Vec<PathBuf>,
}

/// The response with an explanation as text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ExplainedText {
    /// The explanation.
    pub text: String,
}

/// The response with the token of `X-Lb-Explain`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ExplainToken {
    /// The token.
    pub token: String,
}

/// The response to an upgrade.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Upgraded {
    /// The PID of the new process.
    pub pid: u32,
}

/// The response when a backend is idle.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Idle {
    /// Always true; a backend that is not idle in time gets status 408.
    pub idle: bool,
}
