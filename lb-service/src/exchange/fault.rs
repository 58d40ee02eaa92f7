//! What went wrong with an exchange, as its transport reports it, in words that every transport has.

use crate::failure::Failure;
use crate::pool::UpstreamError;

/// Something that ended an exchange or one of its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Where it happened.
    pub(crate) side: Side,
    /// What happened.
    pub(crate) kind: FaultKind,
    /// Whether a byte of the response was read from the backend.
    pub(crate) response_read: bool,
}

/// The side on which a fault happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The connection of the client.
    Client,
    /// The connection to the backend.
    Backend,
    /// The proxy itself.
    Us,
}

/// The kind of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// No connection could be made.
    Connect,
    /// The TLS handshake failed.
    Tls,
    /// The peer sent nothing for too long.
    ReadTimeout,
    /// The peer read nothing for too long.
    WriteTimeout,
    /// The connection was closed or reset.
    Closed,
    /// The peer sent something that is not HTTP.
    Protocol,
}

// === impl Fault ===

impl Fault {
    /// A fault of the backend, before a byte of its response was read.
    pub(crate) fn of_backend(kind: FaultKind) -> Self {
        Self { side: Side::Backend, kind, response_read: false }
    }

    /// What it makes of the request.
    pub(crate) fn failure(self) -> Failure {
        match (self.side, self.kind) {
            (Side::Backend, kind) => Failure::Upstream(kind.of_backend()),
            (Side::Client, FaultKind::ReadTimeout) => Failure::ClientTimeout,
            (Side::Client, FaultKind::Closed | FaultKind::WriteTimeout) => Failure::ClientGone,
            (Side::Client, _) => Failure::BadRequest,
            (Side::Us, _) => Failure::Internal,
        }
    }

    /// Whether a connection that was kept alive has turned out to be closed, given whether it was `reused`.
    pub(crate) fn is_stale(self, reused: bool) -> bool {
        self.side == Side::Backend && self.kind == FaultKind::Closed && reused && !self.response_read
    }
}

impl FaultKind {
    fn of_backend(self) -> UpstreamError {
        match self {
            Self::Connect => UpstreamError::Connect,
            Self::Tls => UpstreamError::Tls,
            Self::ReadTimeout | Self::WriteTimeout => UpstreamError::Timeout,
            Self::Closed => UpstreamError::Reset,
            Self::Protocol => UpstreamError::Protocol,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(side: Side, kind: FaultKind) -> Failure {
        Fault { side, kind, response_read: false }.failure()
    }

    #[test]
    fn a_slow_backend_is_504_and_any_other_fault_of_it_502() {
        for kind in [FaultKind::ReadTimeout, FaultKind::WriteTimeout] {
            assert_eq!(failure(Side::Backend, kind).status(), 504);
        }
        for kind in [FaultKind::Connect, FaultKind::Tls, FaultKind::Closed, FaultKind::Protocol] {
            assert_eq!(failure(Side::Backend, kind).status(), 502);
        }
    }

    #[test]
    fn a_client_that_left_gets_no_response_and_a_slow_one_does() {
        assert_eq!(failure(Side::Client, FaultKind::Closed), Failure::ClientGone);
        assert_eq!(failure(Side::Client, FaultKind::WriteTimeout), Failure::ClientGone);
        assert_eq!(failure(Side::Client, FaultKind::ReadTimeout), Failure::ClientTimeout);
        assert_eq!(failure(Side::Client, FaultKind::Protocol), Failure::BadRequest);
    }

    #[test]
    fn a_connection_is_stale_if_it_was_reused_and_closed_before_the_response() {
        let closed = Fault::of_backend(FaultKind::Closed);
        assert!(closed.is_stale(true));
        assert!(!closed.is_stale(false));
        assert!(!Fault { response_read: true, ..closed }.is_stale(true));
        assert!(!Fault { side: Side::Client, ..closed }.is_stale(true));
        assert!(!Fault::of_backend(FaultKind::ReadTimeout).is_stale(true), "a slow backend is slow");
    }
}
