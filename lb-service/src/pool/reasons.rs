//! The named reasons for which a backend is passed over or fails a request. Logs, labels and explanations use their
//! words.

use std::borrow::Cow;

use super::settings::RetryCause;

/// Why a candidate of the policy was passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// This request was already sent to it.
    Tried,
    /// It is used only when no other is available.
    Backup,
    /// An operator lets it finish.
    Draining,
    /// Its health checks fail.
    Down,
    /// It failed requests and is left out for a while.
    Ejected,
    /// It failed its latest request. A request that has failed before prefers other backends.
    Failing,
    /// It has reached `max_requests`.
    Full,
    /// It holds more than its share of hashed requests.
    AboveBound,
    /// It came back a moment ago and does not get its whole share yet.
    SlowStart,
    /// An operator took it out.
    Disabled,
}

/// How a backend failed a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamError {
    /// No connection could be made.
    Connect,
    /// The TLS handshake failed.
    Tls,
    /// It exceeded a timeout.
    Timeout,
    /// The connection broke.
    Reset,
    /// It sent something that is not HTTP.
    Protocol,
}

/// How one attempt at a backend failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptFailure {
    /// There was no whole response.
    Error(UpstreamError),
    /// It responded with a status that is worth a retry.
    Status(u16),
}

// === impl SkipReason ===

impl SkipReason {
    /// All of them, in the order of their discriminants.
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

    /// The word for it in the access log and the status.
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

    /// Whether it only shifts load: better that backend than none.
    pub(super) fn only_shifts(self) -> bool {
        matches!(self, Self::AboveBound | Self::SlowStart)
    }
}

// === impl UpstreamError ===

impl UpstreamError {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 5] = [Self::Connect, Self::Tls, Self::Timeout, Self::Reset, Self::Protocol];

    /// The `reason` label and the word in the access log.
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

// === impl AttemptFailure ===

impl AttemptFailure {
    /// The word for it in the access log.
    pub fn word(self) -> Cow<'static, str> {
        match self {
            Self::Error(error) => error.as_str().into(),
            Self::Status(status) => status.to_string().into(),
        }
    }

    /// The cause that `retries.when` names for it; none: it is not worth a retry. A failed TLS handshake counts as a
    /// failed connection, and a response that is not HTTP as a reset.
    pub fn cause(self) -> Option<RetryCause> {
        match self {
            Self::Error(UpstreamError::Connect | UpstreamError::Tls) => Some(RetryCause::ConnectFailure),
            Self::Error(UpstreamError::Timeout) => Some(RetryCause::Timeout),
            Self::Error(UpstreamError::Reset | UpstreamError::Protocol) => Some(RetryCause::Reset),
            Self::Status(status) => RetryCause::of_status(status),
        }
    }
}
