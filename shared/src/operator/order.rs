//! What an operator may order while the daemon runs, and what is answered: values that go over the control socket as JSON.

use std::net::SocketAddr;
use std::num::NonZeroU32;

use lb_service::pool::Weight;
use serde::{Deserialize, Serialize};

use crate::config::ProblemDocument;

/// A change of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The name of its pool.
    pub pool: String,
    /// Its address.
    pub backend: SocketAddr,
    /// What is to become of it.
    pub change: Change,
}

/// What is to become of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It gets no new sessions; those that it has go on.
    Drain,
    /// It is used again.
    Undrain,
    /// It is used again.
    Enable,
    /// It gets no requests.
    Disable,
    /// It gets this share.
    Weigh(Weight),
    /// It joins the pool.
    Add(Joining),
    /// It leaves the pool; its requests in flight are finished.
    Remove,
}

/// What is known of a backend that joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joining {
    /// Its share relative to the others.
    pub weight: Weight,
    /// Whether it is used only when no other is available.
    pub backup: bool,
    /// The most requests it is sent at a time; absent: the limit of the pool's settings for all, which is none when
    /// they differ.
    pub max_requests: Option<NonZeroU32>,
}

/// How the configuration file is to be read again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reload {
    /// Only say what would change.
    pub dry_run: bool,
    /// What operators changed at run time stays changed.
    pub keep_runtime: bool,
}

/// What became of an order or of a reload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeResult {
    /// In a word.
    pub result: Outcome,
    /// The number of the configuration that is in effect now.
    pub generation: u64,
    /// What changed, or would change: a line each.
    #[serde(default)]
    pub changes: Vec<String>,
    /// Why not: the diagnostics of the file as they are printed, or one sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub problem: String,
    /// The same for programs, as `check --format json` prints them; empty unless the file is wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<ProblemDocument>,
    /// What the author of the file should look at, although it is used: the diagnostics as they are printed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub warning: String,
    /// The warnings for programs, as `check --format json` prints them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<ProblemDocument>,
}

/// What became of it, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is in effect.
    Applied,
    /// There was nothing to change.
    Unchanged,
    /// It would be in effect: nothing has changed.
    WouldApply,
    /// Nothing has changed, and the result says why.
    Refused,
}

// === impl ChangeResult ===

impl ChangeResult {
    /// One that says nothing but this.
    pub fn of(result: Outcome, generation: u64) -> Self {
        Self {
            result,
            generation,
            changes: Vec::new(),
            problem: String::new(),
            problems: Vec::new(),
            warning: String::new(),
            warnings: Vec::new(),
        }
    }

    /// Whether what was asked for is so now, or would be.
    pub fn is_good(&self) -> bool {
        self.result != Outcome::Refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_result_survives_serialisation() {
        let change_result = ChangeResult {
            changes: vec!["pool web: backend 10.0.0.1:80 is added".into()],
            problem: "error[LB010]: unknown key `thread`".into(),
            problems: vec![serde_json::from_str(r#"{"id": "LB010"}"#).unwrap()],
            ..ChangeResult::of(Outcome::Refused, 3)
        };
        let text = serde_json::to_string(&change_result).unwrap();
        assert_eq!(serde_json::from_str::<ChangeResult>(&text).unwrap(), change_result);
        assert!(!change_result.is_good());
    }
}
