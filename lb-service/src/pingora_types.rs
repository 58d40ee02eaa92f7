//! Pingora's heads and errors in the terms of [`exchange`](crate::exchange).

use http::request::Parts;
use http::{HeaderName, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::{Error, ErrorSource, ErrorType, RetryType};

use crate::exchange::{Fault, FaultKind, Side};
use crate::head_edit::HeadEdit;
use crate::pool::Fields;

/// Returns the head that Pingora's type contains.
pub(crate) fn head(request: &RequestHeader) -> &Parts {
    request
}

/// Converts an error of Pingora into a fault.
pub(crate) fn fault(error: &Error) -> Fault {
    let side = match error.esource() {
        ErrorSource::Upstream => Side::Backend,
        ErrorSource::Downstream => Side::Client,
        ErrorSource::Internal | ErrorSource::Unset => Side::Us,
    };
    Fault { side, kind: kind(error.etype()), response_read: !nothing_was_read(error) }
}

fn kind(error: &ErrorType) -> FaultKind {
    match error {
        ErrorType::ConnectTimedout
        | ErrorType::ConnectRefused
        | ErrorType::ConnectNoRoute
        | ErrorType::ConnectError
        | ErrorType::ConnectProxyFailure
        | ErrorType::BindError
        | ErrorType::SocketError => FaultKind::Connect,
        ErrorType::TLSWantX509Lookup
        | ErrorType::TLSHandshakeFailure
        | ErrorType::TLSHandshakeTimedout
        | ErrorType::InvalidCert
        | ErrorType::HandshakeError => FaultKind::Tls,
        ErrorType::ReadTimedout => FaultKind::ReadTimeout,
        ErrorType::WriteTimedout => FaultKind::WriteTimeout,
        ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed => FaultKind::Closed,
        _ => FaultKind::Protocol,
    }
}

/// Returns whether a connection ended before the first byte of a response, which Pingora reports only in the text of
/// the error.
fn nothing_was_read(error: &Error) -> bool {
    let says_so = |context: &str| context.ends_with("bytes already read: 0");
    error.retry == RetryType::ReusedOnly
        && error.context.as_ref().is_some_and(|context| says_so(context.as_str()))
}

impl Fields for ResponseHeader {
    fn all<'a>(&'a self, name: &HeaderName) -> impl DoubleEndedIterator<Item = &'a [u8]> + use<'a> {
        self.headers.all(name)
    }

    fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.headers.names()
    }
}

// Pingora rejects a field only if the head has 32,768 of them, and does not read such a head.

impl HeadEdit for ResponseHeader {
    fn set(&mut self, name: HeaderName, value: HeaderValue) {
        let _ = self.insert_header(name, value);
    }

    fn add(&mut self, name: HeaderName, value: HeaderValue) {
        let _ = self.append_header(name, value);
    }

    fn remove(&mut self, name: &HeaderName) {
        self.remove_header(name);
    }
}

impl HeadEdit for RequestHeader {
    fn set(&mut self, name: HeaderName, value: HeaderValue) {
        let _ = self.insert_header(name, value);
    }

    fn add(&mut self, name: HeaderName, value: HeaderValue) {
        let _ = self.append_header(name, value);
    }

    fn remove(&mut self, name: &HeaderName) {
        self.remove_header(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Failure;
    use crate::pool::UpstreamError;

    fn upstream(etype: ErrorType) -> Failure {
        let mut error = Error::new(etype);
        error.as_up();
        fault(&error).failure()
    }

    fn downstream(etype: ErrorType) -> Failure {
        let mut error = Error::new(etype);
        error.as_down();
        fault(&error).failure()
    }

    #[test]
    fn errors_of_a_backend_keep_their_kind() {
        for (etype, error) in [
            (ErrorType::ConnectRefused, UpstreamError::Connect),
            (ErrorType::ConnectTimedout, UpstreamError::Connect),
            (ErrorType::InvalidCert, UpstreamError::Tls),
            (ErrorType::ReadTimedout, UpstreamError::Timeout),
            (ErrorType::ConnectionClosed, UpstreamError::Reset),
            (ErrorType::InvalidHTTPHeader, UpstreamError::Protocol),
        ] {
            assert_eq!(upstream(etype), Failure::Upstream(error));
        }
    }

    #[test]
    fn errors_of_a_client_keep_their_kind() {
        assert_eq!(downstream(ErrorType::WriteError), Failure::ClientGone);
        assert_eq!(downstream(ErrorType::ConnectionClosed), Failure::ClientGone);
        assert_eq!(downstream(ErrorType::ReadTimedout), Failure::ClientTimeout);
        for etype in [ErrorType::InvalidHTTPHeader, ErrorType::Custom("invalid chunk")] {
            assert_eq!(downstream(etype), Failure::BadRequest);
        }
    }

    #[test]
    fn an_error_of_neither_side_is_ours() {
        assert_eq!(fault(&Error::new(ErrorType::InternalError)).failure(), Failure::Internal);
    }
}
