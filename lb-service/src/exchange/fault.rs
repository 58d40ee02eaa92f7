//! Faults of an exchange, as its transport reports them, in terms that apply to every transport.

use super::Progress;
use crate::failure::{Failure, Rejection};
use crate::pool::UpstreamError;
use crate::wire::rejection as wire;

/// A fault that ended an exchange or one of its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The side of the fault.
    pub(crate) side: Side,
    /// The kind of the fault.
    pub(crate) kind: FaultKind,
    /// Whether a byte of the response was read from the backend.
    pub(crate) response_read: bool,
    /// Whether the backend certainly has no byte of the request.
    pub(crate) nothing_sent: bool,
}

/// The side on which a fault happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The connection of the client.
    Client,
    /// The connection to the backend.
    Backend,
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
    /// The peer sent nothing for too long in the middle of a body.
    Stalled,
    /// The client sent a body that does not follow the grammar.
    Rejected(wire::Rejection),
    /// The peer sent a larger body than is allowed.
    TooLarge,
}

// === impl Fault ===

impl Fault {
    /// Returns a fault of the backend before a byte of its response was read.
    pub(crate) fn of_backend(kind: FaultKind) -> Self {
        Self { side: Side::Backend, kind, response_read: false, nothing_sent: false }
    }

    /// Returns a fault of the backend before a byte of the request was sent.
    pub(crate) fn before_request(kind: FaultKind) -> Self {
        Self { nothing_sent: true, ..Self::of_backend(kind) }
    }

    /// Returns a fault of the client.
    pub(crate) fn of_client(kind: FaultKind) -> Self {
        Self { side: Side::Client, ..Self::of_backend(kind) }
    }

    /// Returns the failure of the request.
    pub(crate) fn failure(self) -> Failure {
        match (self.side, self.kind) {
            (Side::Backend, FaultKind::Stalled) => Failure::ResponseStalled,
            (Side::Backend, kind) => Failure::Upstream(kind.of_backend()),
            (Side::Client, FaultKind::Rejected(reason)) => Failure::Rejected(Rejection::Wire(reason)),
            (Side::Client, FaultKind::TooLarge) => Failure::Rejected(Rejection::BodyTooLarge),
            (Side::Client, FaultKind::ReadTimeout | FaultKind::Stalled) => Failure::ClientTimeout,
            (Side::Client, FaultKind::Closed | FaultKind::WriteTimeout) => Failure::ClientGone,
            (Side::Client, _) => Failure::BadRequest,
        }
    }

    /// Returns the fault with regard to the progress of the response: a client that ends its request in the middle of
    /// the body gets a reason, unless it has left after a part of a response.
    pub(crate) fn since(self, progress: Progress) -> Self {
        let is_truncated = self.kind == FaultKind::Rejected(wire::Rejection::TruncatedBody);
        let kind = if is_truncated && progress.response_begun { FaultKind::Closed } else { self.kind };
        Self { kind, ..self }
    }

    /// Returns whether the fault shows that an idle connection was closed. `reused` is true if the connection was kept
    /// alive from an earlier request.
    pub(crate) fn is_stale(self, reused: bool) -> bool {
        self.side == Side::Backend && self.kind == FaultKind::Closed && reused && !self.response_read
    }
}

impl FaultKind {
    /// Returns the error of the backend.
    pub(crate) fn of_backend(self) -> UpstreamError {
        match self {
            Self::Connect => UpstreamError::Connect,
            Self::Tls => UpstreamError::Tls,
            Self::ReadTimeout | Self::WriteTimeout | Self::Stalled => UpstreamError::Timeout,
            Self::Closed => UpstreamError::Reset,
            Self::Protocol | Self::Rejected(_) | Self::TooLarge => UpstreamError::Protocol,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(side: Side, kind: FaultKind) -> Failure {
        Fault { side, ..Fault::of_backend(kind) }.failure()
    }

    #[test]
    fn a_backend_that_times_out_is_504_and_any_other_backend_fault_is_502() {
        for kind in [FaultKind::ReadTimeout, FaultKind::WriteTimeout] {
            assert_eq!(failure(Side::Backend, kind).status(), 504);
        }
        for kind in [FaultKind::Connect, FaultKind::Tls, FaultKind::Closed, FaultKind::Protocol] {
            assert_eq!(failure(Side::Backend, kind).status(), 502);
        }
    }

    #[test]
    fn a_client_that_disconnected_gets_no_response_and_a_slow_client_gets_one() {
        assert_eq!(failure(Side::Client, FaultKind::Closed), Failure::ClientGone);
        assert_eq!(failure(Side::Client, FaultKind::WriteTimeout), Failure::ClientGone);
        assert_eq!(failure(Side::Client, FaultKind::ReadTimeout), Failure::ClientTimeout);
        assert_eq!(failure(Side::Client, FaultKind::Protocol), Failure::BadRequest);
    }

    #[test]
    fn a_truncated_request_is_400_unless_a_response_has_begun() {
        let truncated = Fault::of_client(FaultKind::Rejected(wire::Rejection::TruncatedBody));
        let failure =
            |response_begun| truncated.since(Progress { replayable: true, response_begun }).failure();
        assert_eq!(failure(false).status(), 400);
        assert_eq!(failure(true), Failure::ClientGone);
    }

    #[test]
    fn a_connection_is_stale_if_it_was_reused_and_closed_before_the_response() {
        let closed = Fault::of_backend(FaultKind::Closed);
        assert!(closed.is_stale(true));
        assert!(!closed.is_stale(false));
        assert!(!Fault { response_read: true, ..closed }.is_stale(true));
        assert!(!Fault { side: Side::Client, ..closed }.is_stale(true));
        assert!(
            !Fault::of_backend(FaultKind::ReadTimeout).is_stale(true),
            "a timeout is not a closed connection"
        );
    }
}
