//! The status document: the JSON of `/api/v1/status` and of `status --format json`, as types that the daemon writes and
//! the command line reads.
//!
//! A command line also talks to daemons of other versions. Fields that older daemons do not send have a default, and
//! unknown fields are ignored. Times are in UTC, as RFC 3339 writes them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::ProblemDocument;

/// A word from a fixed set. It is text, so that a word of a newer daemon is no error.
pub(crate) type Word = Cow<'static, str>;

/// The state of the daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    /// Everything that is wrong, the worst first. `None`: the daemon has an older version that does not report it.
    #[serde(default)]
    pub problems: Option<Vec<Problem>>,
    /// The version of the program.
    pub version: Word,
    /// The PID of the daemon.
    pub pid: u32,
    /// Whether the daemon runs the demo.
    #[serde(default, skip_serializing_if = "is_false")]
    pub demo: bool,
    /// `starting`, `serving` or `draining`.
    pub state: Word,
    /// Whether `/readyz` responds with 200. `None`: the daemon has an older version.
    #[serde(default)]
    pub ready: Option<bool>,
    /// The reasons why the daemon is not ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_ready: Vec<String>,
    /// The time of the start.
    pub started: String,
    /// Seconds since the start.
    #[serde(default)]
    pub uptime_seconds: u64,
    /// The configuration in effect.
    pub config: ConfigDocument,
    /// The listeners, in the order of the configuration.
    pub listeners: Vec<ListenerStatus>,
    /// The pools, in the order of the configuration.
    pub pools: Vec<PoolStatus>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Problem {
    /// The problem: `pool web: no backend is ready`.
    pub text: String,
    /// The time since when it lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// The time at which it happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// The cause or the consequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The configuration in effect.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ConfigDocument {
    /// The generation: 1 after the start, and one more after each change.
    pub generation: u64,
    /// The file as it was named. `None`: the configuration comes from the command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The canonical path of the file at the start, which default names and subcommands use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canonical_file: Option<String>,
    /// The time since when this generation is in effect.
    pub since: String,
    /// The last reload, if there was one.
    #[serde(default)]
    pub last_reload: Option<LastReload>,
    /// The warnings about the file.
    #[serde(default)]
    pub warnings: Vec<ProblemDocument>,
    /// The changes made by operators, one line each.
    #[serde(default)]
    pub runtime_changes: Vec<String>,
    /// The log filter in effect.
    #[serde(default)]
    pub log_level: Option<String>,
    /// The source of the log filter: `operator`, `RUST_LOG`, `file` or `default`.
    #[serde(default)]
    pub log_level_source: Word,
    /// The files of session keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub session_keys: Vec<KeyFileStatus>,
}

/// The result of a reload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LastReload {
    /// `applied`, `unchanged`, `refused` or `rolled_back`.
    pub result: Word,
    /// The time of the reload.
    pub time: String,
    /// The reason why the file is not in effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A file of session keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyFileStatus {
    /// The path.
    pub file: String,
    /// The pools that use the file.
    pub pools: Vec<String>,
    /// The number of keys in effect.
    pub keys: usize,
    /// The reason why the keys in the file now are not in effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The time since when they are not in effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

/// A listener and its clients.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ListenerStatus {
    /// The name.
    pub name: String,
    /// The address.
    pub address: String,
    /// Connections accepted so far.
    #[serde(default)]
    pub connections: u64,
    /// Open connections.
    pub connections_active: u64,
    /// Requests in flight.
    pub requests_in_flight: u64,
    /// Rejected requests by reason.
    #[serde(default)]
    pub rejected: BTreeMap<Word, u64>,
}

/// A pool and its backends.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PoolStatus {
    /// The name.
    pub name: String,
    /// The number of ready backends.
    pub ready: usize,
    /// The time since when no backend is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unready_since: Option<String>,
    /// Whether the pool is in panic mode.
    #[serde(default)]
    pub panic: bool,
    /// The time since when the pool is in panic mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub panic_since: Option<String>,
    /// The number of times that the pool entered panic mode.
    #[serde(default)]
    pub panics: u64,
    /// Whether the backups are in use.
    #[serde(default)]
    pub backups_in_use: bool,
    /// The time since when the backups are in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backups_since: Option<String>,
    /// Requests in flight.
    pub requests_in_flight: u64,
    /// The queue.
    pub queue: QueueStatus,
    /// Retries so far.
    #[serde(default)]
    pub retries: u64,
    /// Retries denied by the budget so far.
    #[serde(default)]
    pub retries_denied: u64,
    /// The backends, in the order of the configuration.
    pub backends: Vec<BackendStatus>,
}

/// The queue of a pool.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct QueueStatus {
    /// Requests that wait.
    pub waiting: u64,
    /// The maximum number of requests that can wait.
    #[serde(default)]
    pub places: u32,
}

/// A backend of a pool.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BackendStatus {
    /// The address.
    pub address: String,
    /// The weight.
    pub weight: usize,
    /// Whether it is a backup.
    #[serde(default, skip_serializing_if = "is_false")]
    pub backup: bool,
    /// `up`, `down`, `ejected`, `draining` or `disabled`.
    pub state: Word,
    /// The reason for the state.
    #[serde(default)]
    pub reason: String,
    /// The time since when it is in this state.
    pub since: String,
    /// The changes by operators, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// The time of the last health check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checked: Option<String>,
    /// Requests in flight.
    pub requests_in_flight: u64,
    /// The limit of requests in flight. `None`: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u64>,
    /// The expected time to first byte in milliseconds, from recent responses. `None` before the first response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_answer_ms: Option<f64>,
    /// The time in milliseconds that the policy `peak_ewma` adds for recent failures. `None` if it adds nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub penalty_ms: Option<f64>,
    /// Consecutive failures.
    #[serde(default)]
    pub consecutive_failures: u32,
    /// Ejections so far.
    #[serde(default)]
    pub ejections: u64,
    /// The number of times that the policy selected the backend and the pool skipped it, by reason.
    #[serde(default)]
    pub passed_over: BTreeMap<Word, u64>,
    /// Attempts so far.
    pub requests: u64,
    /// Attempts that count as failures for an ejection: all `errors`, and the responses 502, 503 and 504.
    #[serde(default)]
    pub failures: u64,
    /// Responses by status code.
    #[serde(default)]
    pub answers: BTreeMap<u16, u64>,
    /// Failed attempts by kind.
    #[serde(default)]
    pub errors: BTreeMap<Word, u64>,
    /// New connections so far.
    #[serde(default)]
    pub connections_new: u64,
    /// Attempts on a reused connection so far.
    #[serde(default)]
    pub connections_reused: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_false(value: &bool) -> bool {
    !value
}
