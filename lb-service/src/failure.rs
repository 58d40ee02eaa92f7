//! What a failed request becomes: the status that the client sees, and the reason that log and counters say.

use http::StatusCode;

use crate::pool::{AdmissionError, UpstreamError};

/// Why a request got no response of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The proxy sent it nowhere.
    Rejected(Rejection),
    /// The backend that it was sent to last failed.
    Upstream(UpstreamError),
    /// The backend that it was sent to last gave an answer that was to be made good by another, but there was none.
    Answer(u16),
    /// The client went away, or broke the connection.
    ClientGone,
    /// The client took too long to send its request.
    ClientTimeout,
    /// The client sent something that is not HTTP.
    BadRequest,
    /// Something that must not happen.
    Internal,
}

/// Why the proxy sent a request to no backend and responded itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// No route matches.
    NoRoute,
    /// The pool has no backend that is available.
    NoBackend,
    /// All backends are full, and no place is left to wait for one.
    QueueFull,
    /// It waited for a backend for too long.
    QueueTimeout,
    /// It is not HTTP as Pingora takes it, or CONNECT.
    Malformed,
}

/// The status that stands in metrics and log for a client that went away before it got an answer, as nginx has it.
pub const CLIENT_CLOSED_REQUEST: u16 = 499;

impl Failure {
    /// The status that is counted and logged.
    pub fn status(self) -> u16 {
        match self {
            Self::Rejected(Rejection::NoRoute) => 404,
            Self::Rejected(Rejection::NoBackend | Rejection::QueueFull | Rejection::QueueTimeout) => 503,
            Self::Answer(status) => status,
            Self::Upstream(UpstreamError::Timeout) => 504,
            Self::Upstream(_) => 502,
            Self::ClientGone => CLIENT_CLOSED_REQUEST,
            Self::ClientTimeout => 408,
            Self::BadRequest | Self::Rejected(Rejection::Malformed) => 400,
            Self::Internal => 500,
        }
    }

    /// The status of the response; `None`: no client is left to read one.
    pub(crate) fn client_status(self) -> Option<StatusCode> {
        StatusCode::from_u16(self.status()).ok().filter(|_| self != Self::ClientGone)
    }

    /// Whether it ends an answer that has begun, through no fault of the client.
    pub(crate) fn breaks_off(self) -> bool {
        matches!(self, Self::Upstream(_) | Self::Internal)
    }

    /// When a client may come again, in seconds, if that is soon.
    pub(crate) fn retry_after(self) -> Option<u32> {
        matches!(self, Self::Rejected(Rejection::QueueFull | Rejection::QueueTimeout)).then_some(1)
    }

    /// The word for it in the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rejected(rejection) => rejection.as_str(),
            Self::Upstream(error) => error.as_str(),
            Self::Answer(_) => "answer",
            Self::ClientGone => "client_gone",
            Self::ClientTimeout => "client_timeout",
            Self::BadRequest => "bad_request",
            Self::Internal => "internal",
        }
    }
}

impl From<AdmissionError> for Rejection {
    fn from(error: AdmissionError) -> Self {
        match error {
            AdmissionError::Unavailable => Self::NoBackend,
            AdmissionError::QueueFull => Self::QueueFull,
            AdmissionError::QueueTimeout => Self::QueueTimeout,
        }
    }
}

// === impl Rejection ===

impl Rejection {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 5] =
        [Self::NoRoute, Self::NoBackend, Self::QueueFull, Self::QueueTimeout, Self::Malformed];

    /// The `reason` label and the word in the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::NoBackend => "no_backend",
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::Malformed => "malformed",
        }
    }
}
