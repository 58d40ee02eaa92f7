//! Times as people and programs read them.

use std::time::SystemTime;

use jiff::Timestamp;

/// UTC with milliseconds, as in the logs.
pub fn rfc3339(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| "unknown".into(), |time| format!("{time:.3}"))
}
