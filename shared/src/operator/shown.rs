//! What the status says about the configuration: which one is in effect, and what operators changed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::Serialize;

use super::runtime::Runtime;
use crate::time::rfc3339;

/// What is in effect. A new value takes the place of this one with each change.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Its number; that of the start is 1.
    pub generation: u64,
    /// The file it was read from; absent: the command line.
    pub file: Option<PathBuf>,
    /// Since when it is in effect.
    pub since: SystemTime,
    /// What became of the file when it was read again last.
    pub last_reload: Option<LastReload>,
    pub(super) runtime: Runtime,
}

/// What became of a file that was read again.
#[derive(Clone, Debug, Serialize)]
pub struct LastReload {
    /// In a word: `applied`, `unchanged`, `refused` or `rolled_back`.
    pub result: &'static str,
    /// When.
    pub time: String,
    /// Why it is not in effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// The part of the status.
#[derive(Serialize)]
pub struct Document<'a> {
    generation: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    since: String,
    last_reload: Option<&'a LastReload>,
    runtime_changes: Vec<String>,
}

// === impl Shown ===

impl Shown {
    /// The part of the status.
    pub fn document(&self) -> Document<'_> {
        Document {
            generation: self.generation,
            file: self.file.as_ref().map(|path| path.display().to_string()),
            since: rfc3339(self.since),
            last_reload: self.last_reload.as_ref(),
            runtime_changes: self.runtime.lines(),
        }
    }

    /// What operators changed about a backend.
    pub fn runtime(&self, pool: &str, backend: SocketAddr) -> Option<String> {
        self.runtime.of(pool, backend).map(ToString::to_string)
    }
}

// === impl LastReload ===

impl LastReload {
    pub(super) fn new(result: &'static str, problem: Option<&str>) -> Self {
        Self { result, time: rfc3339(SystemTime::now()), problem: problem.map(str::to_owned) }
    }
}
