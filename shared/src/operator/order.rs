//! Orders that an operator can give while the daemon runs, and their results. Both travel over the control socket as
//! JSON.

use std::num::NonZeroU32;

use lb_service::pool::{UpstreamAddress, Weight};
use serde::{Deserialize, Serialize};

use crate::config::ProblemDocument;

/// A change of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// The name of the pool.
    pub pool: String,
    /// The address of the backend.
    pub backend: UpstreamAddress,
    /// The change.
    pub change: Change,
}

/// Change that an operator orders for a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Stop sending new sessions to the backend; existing sessions continue.
    Drain,
    /// End a drain: put the backend back in service.
    Undrain,
    /// End a disablement: put the backend back in service.
    Enable,
    /// Stop sending requests to the backend.
    Disable,
    /// Set the weight of the backend.
    Weigh(Weight),
    /// Add the backend to the pool.
    Add(Joining),
    /// Remove the backend from the pool; its requests in flight complete.
    Remove,
}

/// Settings of a backend that is added to a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Joining {
    /// The weight relative to the other backends.
    pub weight: Weight,
    /// Whether the backend receives requests only when no other backend is available.
    pub backup: bool,
    /// The maximum number of requests in flight. If it is `None`, the limit that all backends of the pool share
    /// applies; if their limits differ, there is no limit.
    pub max_requests: Option<NonZeroU32>,
}

/// Options of a reload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Reload {
    /// Whether to report the changes without making them.
    pub dry_run: bool,
    /// Whether to keep the changes that operators made at run time.
    pub keep_runtime: bool,
}

/// Result of an order or a reload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChangeResult {
    /// The result in one word.
    pub result: Outcome,
    /// The generation of the configuration that is now in effect.
    pub generation: u64,
    /// The changes that were made, or would be made, one line each.
    #[serde(default)]
    pub changes: Vec<String>,
    /// The reason for a refusal: the diagnostics of the file as they are printed, or one sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub problem: String,
    /// The errors in the format of `check --format json`; empty unless the file is invalid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<ProblemDocument>,
    /// The warnings about a file that is used, as they are printed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub warning: String,
    /// The warnings in the format of `check --format json`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<ProblemDocument>,
}

/// Result of a change in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// The change is in effect.
    Applied,
    /// There was nothing to change.
    Unchanged,
    /// The change would succeed; nothing changed, because it was a dry run.
    WouldApply,
    /// Nothing changed; the result contains the reason.
    Refused,
}

// === impl ChangeResult ===

impl ChangeResult {
    /// Returns a result with this outcome and no further details.
    pub(crate) fn of(result: Outcome, generation: u64) -> Self {
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

    /// Returns whether the order succeeded, or would succeed without a dry run.
    pub(crate) fn is_good(&self) -> bool {
        self.result != Outcome::Refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_survives_serialisation() {
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
