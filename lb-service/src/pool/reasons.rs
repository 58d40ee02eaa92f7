//! The named reasons for skipping a backend and for failures of backends. Logs, labels and explanations use their
//! words.

use std::borrow::Cow;

use super::settings::RetryCause;

/// The reason for skipping a candidate of the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// This request already had an attempt at the backend.
    Tried,
    /// The backend is used only if no primary is available.
    Backup,
    /// An operator drains the backend.
    Draining,
    /// The health checks fail.
    Down,
    /// The backend failed requests and is ejected.
    Ejected,
    /// The backend failed its latest request. A retry prefers other backends.
    Failing,
    /// The backend has reached `max_requests`.
    Full,
    /// The backend holds more than its share of hashed requests.
    AboveBound,
    /// The backend is in slow start and does not get its whole share yet.
    SlowStart,
    /// An operator disabled the backend.
    Disabled,
}

/// The kind of error with which a backend failed a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamError {
    /// No connection could be made.
    Connect,
    /// The TLS handshake failed.
    Tls,
    /// The backend timed out.
    Timeout,
    /// The connection broke.
    Reset,
    /// The backend sent something that is not HTTP.
    Protocol,
}

/// The reason why the connection to a backend is not used again although it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poison {
    /// The backend sent a byte before the request.
    EarlyBytes,
    /// The backend sent a byte after the response.
    LateBytes,
    /// The length of the response was given twice, or in a way that its version does not have.
    AmbiguousLength,
}

/// The reason why an attempt at a backend did not serve its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttemptFailure {
    /// There was no complete response.
    Error(UpstreamError),
    /// The response had a status that can be retried.
    Status(u16),
    /// Another backend was connected first. This is no failure of the backend.
    Overtaken,
}

// === impl SkipReason ===

impl SkipReason {
    /// All reasons, in the order of their discriminants.
    pub const ALL: [Self; 10] = [
        Self::Tried,
        Self::Backup,
        Self::Draining,
        Self::Down,
        Self::Ejected,
        Self::Failing,
        Self::Full,
        Self::AboveBound,
        Self::SlowStart,
        Self::Disabled,
    ];

    /// Returns the word for the reason in the access log and the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tried => "tried",
            Self::Backup => "backup",
            Self::Draining => "draining",
            Self::Down => "down",
            Self::Ejected => "ejected",
            Self::Failing => "failing",
            Self::Full => "full",
            Self::AboveBound => "above_bound",
            Self::SlowStart => "slow_start",
            Self::Disabled => "disabled",
        }
    }

    /// Returns whether the reason only shifts load: such a backend is better than none.
    pub(super) fn only_shifts(self) -> bool {
        matches!(self, Self::AboveBound | Self::SlowStart)
    }
}

// === impl UpstreamError ===

impl UpstreamError {
    /// All errors, in the order of their discriminants.
    pub const ALL: [Self; 5] = [Self::Connect, Self::Tls, Self::Timeout, Self::Reset, Self::Protocol];

    /// Returns the `reason` label, which is also the word in the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Protocol => "protocol",
        }
    }
}

// === impl Poison ===

impl Poison {
    /// All reasons, in the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::EarlyBytes, Self::LateBytes, Self::AmbiguousLength];

    /// Returns the `reason` label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EarlyBytes => "early_bytes",
            Self::LateBytes => "late_bytes",
            Self::AmbiguousLength => "ambiguous_length",
        }
    }
}

// === impl AttemptFailure ===

impl AttemptFailure {
    /// Returns the word for the failure in the access log.
    pub(crate) fn word(self) -> Cow<'static, str> {
        match self {
            Self::Error(error) => error.as_str().into(),
            Self::Status(status) => status.to_string().into(),
            Self::Overtaken => "connect_race".into(),
        }
    }

    /// Returns the cause that `retries.when` names for the failure; `None` if it is not retried. A failed TLS handshake
    /// counts as a failed connection, and a response that is not HTTP as a reset.
    pub(crate) fn cause(self) -> Option<RetryCause> {
        match self {
            Self::Error(UpstreamError::Connect | UpstreamError::Tls) => Some(RetryCause::ConnectFailure),
            Self::Error(UpstreamError::Timeout) => Some(RetryCause::Timeout),
            Self::Error(UpstreamError::Reset | UpstreamError::Protocol) => Some(RetryCause::Reset),
            Self::Status(status) => RetryCause::of_status(status),
            Self::Overtaken => None,
        }
    }
}
