//! Failures of requests: the status that the client gets, and the reason in log and counters.

use http::StatusCode;

use crate::pool::{AdmissionError, UpstreamError};
use crate::wire::rejection as wire;
pub use crate::wire::rejection::Rejection as WireRejection;

/// The reason why a request got no response of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The proxy sent the request to no backend.
    Rejected(Rejection),
    /// The last backend failed.
    Upstream(UpstreamError),
    /// The last backend sent a response that was to be replaced by a retry, but no other backend took the request.
    Response(u16),
    /// The client disconnected.
    ClientGone,
    /// The client timed out while it sent its request.
    ClientTimeout,
    /// The client sent something that is not HTTP.
    BadRequest,
    /// The last backend paused for too long in the middle of its response. This is no failure of the backend: what it
    /// sends may have its own pace.
    ResponseStalled,
    /// The process has ended before the request.
    Shutdown,
    /// An internal error.
    Internal,
}

/// The reason why the proxy sent a request to no backend and responded itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// No route matches.
    NoRoute,
    /// The pool has no available backend.
    NoBackend,
    /// All backends are full, and the queue is full.
    QueueFull,
    /// The request timed out in the queue.
    QueueTimeout,
    /// The body of the request is larger than the listener allows.
    BodyTooLarge,
    /// An OPTIONS request is not to be forwarded, because its `Max-Forwards` is 0 (RFC 9110, section 7.6.2).
    LastHop,
    /// The request does not follow the grammar, or exceeds a limit.
    Wire(wire::Rejection),
}

/// The status in metrics and log for a client that disconnected before it got a response, as in nginx.
pub const CLIENT_CLOSED_REQUEST: u16 = 499;

impl Failure {
    /// Returns the status that is counted and logged.
    pub fn status(self) -> u16 {
        match self {
            Self::Rejected(Rejection::LastHop) => 200,
            Self::Rejected(Rejection::NoRoute) => 404,
            Self::Rejected(Rejection::NoBackend | Rejection::QueueFull | Rejection::QueueTimeout)
            | Self::Shutdown => 503,
            Self::Response(status) => status,
            Self::Rejected(Rejection::BodyTooLarge) => 413,
            Self::Upstream(UpstreamError::Timeout) | Self::ResponseStalled => 504,
            Self::Upstream(_) => 502,
            Self::ClientGone => CLIENT_CLOSED_REQUEST,
            Self::ClientTimeout => 408,
            Self::BadRequest => 400,
            Self::Rejected(Rejection::Wire(reason)) => reason.status(),
            Self::Internal => 500,
        }
    }

    /// Returns the status of the response; `None` if no client is left to read one.
    pub(crate) fn client_status(self) -> Option<StatusCode> {
        StatusCode::from_u16(self.status()).ok().filter(|_| self != Self::ClientGone)
    }

    /// Returns whether the failure ends a response that has begun, without a fault of the client.
    pub(crate) fn breaks_off(self) -> bool {
        matches!(self, Self::Upstream(_) | Self::Shutdown | Self::Internal)
    }

    /// Returns whether the client ended the request, which is a truncation if a part of the body is missing.
    pub(crate) fn is_truncation(self) -> bool {
        matches!(self, Self::ClientGone | Self::Rejected(Rejection::Wire(wire::Rejection::TruncatedBody)))
    }

    /// Returns the time after which a client can retry, in seconds; `None` if no time is known.
    pub(crate) fn retry_after(self) -> Option<u32> {
        matches!(self, Self::Rejected(Rejection::QueueFull | Rejection::QueueTimeout)).then_some(1)
    }

    /// Returns the word for the failure in the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rejected(rejection) => rejection.as_str(),
            Self::Upstream(error) => error.as_str(),
            Self::Response(_) => "answer",
            Self::ClientGone => "client_gone",
            Self::ClientTimeout => "client_timeout",
            Self::BadRequest => "bad_request",
            Self::ResponseStalled => "response_stalled",
            Self::Shutdown => "shutdown",
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
    /// The number of reasons.
    pub const COUNT: usize = Self::OWN.len() + wire::Rejection::ALL.len();

    const OWN: [Self; 6] = [
        Self::NoRoute,
        Self::NoBackend,
        Self::QueueFull,
        Self::QueueTimeout,
        Self::BodyTooLarge,
        Self::LastHop,
    ];

    /// Returns all reasons.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::OWN.into_iter().chain(wire::Rejection::ALL.into_iter().map(Self::Wire))
    }

    /// Returns the `reason` label, which is also the word in the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::NoBackend => "no_backend",
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::BodyTooLarge => "body_too_large",
            Self::LastHop => "last_hop",
            Self::Wire(reason) => reason.as_str(),
        }
    }

    /// The place of the reason in [`all`](Self::all).
    pub(crate) fn index(self) -> usize {
        match self {
            Self::NoRoute => 0,
            Self::NoBackend => 1,
            Self::QueueFull => 2,
            Self::QueueTimeout => 3,
            Self::BodyTooLarge => 4,
            Self::LastHop => 5,
            Self::Wire(reason) => Self::OWN.len() + reason as usize,
        }
    }
}
