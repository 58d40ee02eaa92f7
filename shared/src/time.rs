//! The format of times in logs and documents.

use std::time::SystemTime;

use jiff::Timestamp;

/// Formats a time in UTC with milliseconds (RFC 3339), as in the logs.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| "unknown".into(), |time| format!("{time:.3}"))
}
