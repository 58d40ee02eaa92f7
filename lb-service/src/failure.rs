//! What a failed request becomes: the status that the client sees, and the reason that log and counters say.

use bytes::Bytes;
use http::StatusCode;
use pingora::{Error, ErrorSource, ErrorType};

use crate::pool::UpstreamError;
use crate::traffic::Rejection;

/// Why a request was not answered by a backend.
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

/// The status that stands in metrics and log for a client that went away before it got an answer, as nginx has it.
pub const CLIENT_CLOSED_REQUEST: u16 = 499;

impl Failure {
    /// What Pingora's `error` means for the request.
    pub fn of(error: &Error) -> Self {
        match error.esource() {
            ErrorSource::Upstream => Self::Upstream(UpstreamError::of(error.etype())),
            ErrorSource::Downstream => match error.etype() {
                ErrorType::ReadTimedout => Self::ClientTimeout,
                ErrorType::ReadError
                | ErrorType::WriteError
                | ErrorType::WriteTimedout
                | ErrorType::ConnectionClosed => Self::ClientGone,
                _ => Self::BadRequest,
            },
            ErrorSource::Internal | ErrorSource::Unset => Self::Internal,
        }
    }

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

    /// The status to answer with; `None` when nobody is left to read an answer.
    pub fn answer(self) -> Option<StatusCode> {
        StatusCode::from_u16(self.status()).ok().filter(|_| self != Self::ClientGone)
    }

    /// Whether it ends an answer that has begun, through no fault of the client.
    pub fn breaks_off(self) -> bool {
        matches!(self, Self::Upstream(_) | Self::Internal)
    }

    /// When a client may come again, in seconds, if that is soon.
    pub fn retry_after(self) -> Option<u32> {
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

/// The body of an answer that the proxy gives itself: `502 Bad Gateway`.
///
/// It says no more than the status does: what is wrong behind the proxy is for its operator, not for its clients.
pub fn page(status: StatusCode) -> Bytes {
    let reason = status.canonical_reason().unwrap_or("Error");
    format!("{} {reason}\n", status.as_u16()).into()
}

impl UpstreamError {
    /// What kind of failure of a backend Pingora's error type stands for.
    pub fn of(error: &ErrorType) -> Self {
        match error {
            ErrorType::ConnectTimedout
            | ErrorType::ConnectRefused
            | ErrorType::ConnectNoRoute
            | ErrorType::ConnectError
            | ErrorType::ConnectProxyFailure
            | ErrorType::BindError
            | ErrorType::SocketError => Self::Connect,
            ErrorType::TLSWantX509Lookup
            | ErrorType::TLSHandshakeFailure
            | ErrorType::TLSHandshakeTimedout
            | ErrorType::InvalidCert
            | ErrorType::HandshakeError => Self::Tls,
            ErrorType::ReadTimedout | ErrorType::WriteTimedout => Self::Timeout,
            ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed => Self::Reset,
            _ => Self::Protocol,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(etype: ErrorType) -> Failure {
        let mut error = Error::new(etype);
        error.as_up();
        Failure::of(&error)
    }

    fn downstream(etype: ErrorType) -> Failure {
        let mut error = Error::new(etype);
        error.as_down();
        Failure::of(&error)
    }

    #[test]
    fn a_slow_backend_is_504_and_any_other_failure_of_it_502() {
        assert_eq!(upstream(ErrorType::ReadTimedout).status(), 504);
        assert_eq!(upstream(ErrorType::WriteTimedout).status(), 504);
        for etype in [ErrorType::ConnectRefused, ErrorType::ConnectTimedout, ErrorType::InvalidCert] {
            assert_eq!(upstream(etype).status(), 502);
        }
        assert_eq!(upstream(ErrorType::ConnectionClosed), Failure::Upstream(UpstreamError::Reset));
        assert_eq!(upstream(ErrorType::InvalidHTTPHeader), Failure::Upstream(UpstreamError::Protocol));
    }

    #[test]
    fn a_client_that_left_gets_no_answer() {
        assert_eq!(downstream(ErrorType::WriteError).answer(), None);
        assert_eq!(downstream(ErrorType::ConnectionClosed).status(), CLIENT_CLOSED_REQUEST);
    }

    #[test]
    fn a_client_that_sends_nonsense_is_told_so() {
        for etype in [ErrorType::InvalidHTTPHeader, ErrorType::Custom("invalid chunk")] {
            assert_eq!(downstream(etype).answer(), Some(StatusCode::BAD_REQUEST));
        }
        assert_eq!(downstream(ErrorType::ReadTimedout).status(), 408);
    }

    #[test]
    fn the_page_says_the_status_and_nothing_else() {
        assert_eq!(page(StatusCode::BAD_GATEWAY), "502 Bad Gateway\n");
    }
}
