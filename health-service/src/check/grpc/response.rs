//! The meaning of a response, or of its absence, for the check. Nothing here does I/O.
//!
//! The rules are those of gRPC over HTTP/2 (`PROTOCOL-HTTP2.md` in the repository of gRPC): the HTTP status is 200, the
//! content type is that of gRPC, and `grpc-status` is in the trailers, or in the head if there are no trailers. The
//! message counts only if `grpc-status` is zero.

use http::{HeaderMap, StatusCode};

use super::first_frame::FirstFrame;
use super::message;
use crate::check::CheckError;

/// Number of characters of a `grpc-message` that a reason contains.
const LONGEST_EXPLANATION: usize = 120;

/// Names of the values of `grpc-status`, from 0.
const STATUS_NAMES: [&str; 17] = [
    "ok",
    "cancelled",
    "unknown",
    "invalid argument",
    "deadline exceeded",
    "not found",
    "already exists",
    "permission denied",
    "resource exhausted",
    "failed precondition",
    "aborted",
    "out of range",
    "unimplemented",
    "internal",
    "unavailable",
    "data loss",
    "unauthenticated",
];

const OK: usize = 0;
const NOT_FOUND: usize = 5;
const UNIMPLEMENTED: usize = 12;

/// A complete response.
#[derive(Debug, Default)]
pub(super) struct GrpcResponse {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
    pub(super) trailers: Option<HeaderMap>,
}

/// Whether this response about `service` passes the check.
pub(super) fn judge(response: &GrpcResponse, service: &str) -> Result<(), CheckError> {
    if response.status != StatusCode::OK {
        return Err(CheckError::Status { status: response.status.as_u16(), expected: "200".to_owned() });
    }
    if !is_grpc(&response.headers) {
        return Err(CheckError::NotGrpc);
    }
    let end = response.trailers.as_ref().unwrap_or(&response.headers);
    match grpc_status(end).ok_or(CheckError::NotGrpc)? {
        OK => judge_serving(message::status(&response.body), service),
        NOT_FOUND => Err(CheckError::UnknownService(service.to_owned())),
        UNIMPLEMENTED => Err(CheckError::NoHealthService),
        status => Err(CheckError::Grpc(describe(status, end))),
    }
}

/// Judges the `ServingStatus` of the protocol.
fn judge_serving(status: Option<u64>, service: &str) -> Result<(), CheckError> {
    match status {
        Some(0) => Err(CheckError::ServingUnknown),
        Some(1) => Ok(()),
        Some(2) => Err(CheckError::NotServing),
        Some(3) => Err(CheckError::UnknownService(service.to_owned())),
        _ => Err(CheckError::NotGrpc),
    }
}

/// Whether the content type is `application/grpc`, with an optional format or parameters; `application/grpc-web` is
/// not.
fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(content_type) = text(headers, "content-type") else { return false };
    let rest = content_type.strip_prefix("application/grpc");
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']))
}

fn grpc_status(headers: &HeaderMap) -> Option<usize> {
    text(headers, "grpc-status")?.parse().ok()
}

/// Formats `unavailable: "no database"`. The message comes from the backend, so it is quoted and truncated.
fn describe(status: usize, headers: &HeaderMap) -> String {
    let name = STATUS_NAMES.get(status).map_or_else(|| status.to_string(), |&name| name.to_owned());
    match text(headers, "grpc-message") {
        None | Some("") => name,
        Some(message) => {
            let message: String = message.chars().take(LONGEST_EXPLANATION).collect();
            format!("{name}: {message:?}")
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Why there is no response.
pub(super) fn failure(error: &h2::Error, first: &FirstFrame) -> CheckError {
    match (first.is_settings(), error.reason()) {
        (Some(false), _) => CheckError::NotHttp2,
        (None, _) => CheckError::ClosedAtOnce,
        (Some(true), None) => CheckError::Closed,
        (Some(true), Some(reason)) => CheckError::Http2(format!("{}: {reason}", blame(error))),
    }
}

fn blame(error: &h2::Error) -> &'static str {
    match (error.is_remote(), error.is_go_away()) {
        (true, true) => "connection ended by the backend",
        (true, false) => "stream reset by the backend",
        (false, _) => "malformed response",
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        pairs.iter().map(pair).collect()
    }

    const GRPC: (&str, &str) = ("content-type", "application/grpc");

    /// A response with this message, and the status 0 in its trailers.
    fn saying(message: &[u8]) -> GrpcResponse {
        let trailers = Some(headers(&[("grpc-status", "0")]));
        GrpcResponse {
            headers: headers(&[GRPC]),
            body: message.to_vec(),
            trailers,
            ..GrpcResponse::default()
        }
    }

    /// A response that consists of a head only.
    fn only_head(more: &[(&'static str, &'static str)]) -> GrpcResponse {
        GrpcResponse { headers: headers(&[&[GRPC], more].concat()), ..GrpcResponse::default() }
    }

    fn reason(response: &GrpcResponse) -> String {
        judge(response, "shop").expect_err("it should fail").to_string()
    }

    #[test]
    fn only_serving_passes() {
        assert_eq!(judge(&saying(b"\0\0\0\0\x02\x08\x01"), "shop"), Ok(()));
        assert_eq!(reason(&saying(b"\0\0\0\0\x02\x08\x02")), "not serving");
        assert_eq!(reason(&saying(b"\0\0\0\0\x02\x08\x03")), "the gRPC health service has no service shop");
        let unknown = "serving status UNKNOWN";
        assert_eq!(reason(&saying(b"\0\0\0\0\0")), unknown);
        assert_eq!(reason(&saying(b"\0\0\0\0\x02\x08\x00")), unknown);
        assert_eq!(reason(&saying(b"\0\0\0\0\x02\x08\x04")), "the response is not valid gRPC");
    }

    #[test]
    fn a_failed_call_fails_with_its_status_in_head_or_trailers() {
        let in_head = only_head(&[("grpc-status", "12"), ("grpc-message", "unknown service")]);
        assert_eq!(reason(&in_head), "the backend has no gRPC health service (unimplemented)");
        let in_trailers = GrpcResponse { trailers: Some(headers(&[("grpc-status", "5")])), ..only_head(&[]) };
        assert_eq!(reason(&in_trailers), "the gRPC health service has no service shop");
        let whole_server = judge(&in_trailers, "").expect_err("it should fail").to_string();
        assert_eq!(whole_server, "the gRPC health service has no status for the whole server: set `service`");
    }

    #[test]
    fn a_failed_status_counts_even_after_a_message() {
        let trailers = Some(headers(&[("grpc-status", "14")]));
        let response = GrpcResponse { trailers, ..saying(b"\0\0\0\0\x02\x08\x01") };
        assert_eq!(reason(&response), "gRPC status unavailable");
    }

    #[test]
    fn other_statuses_are_named_with_the_message_of_the_backend() {
        let denied = only_head(&[("grpc-status", "7"), ("grpc-message", "no token")]);
        assert_eq!(reason(&denied), r#"gRPC status permission denied: "no token""#);
        assert_eq!(reason(&only_head(&[("grpc-status", "99")])), "gRPC status 99");
        let long = Box::leak("x".repeat(1000).into_boxed_str());
        let long = reason(&only_head(&[("grpc-status", "2"), ("grpc-message", long)]));
        assert_eq!(long, format!("gRPC status unknown: \"{}\"", "x".repeat(120)));
    }

    #[test]
    fn another_http_status_fails() {
        let response =
            GrpcResponse { status: StatusCode::SERVICE_UNAVAILABLE, ..saying(b"\0\0\0\0\x02\x08\x01") };
        assert_eq!(reason(&response), "status 503, expected 200");
    }

    #[test]
    fn a_response_that_is_not_grpc_fails() {
        let not_grpc = "the response is not valid gRPC";
        for content_type in ["text/html", "application/grpc-web", "application/grpcx"] {
            let head = headers(&[("content-type", content_type)]);
            assert_eq!(reason(&GrpcResponse { headers: head, ..saying(b"\0\0\0\0\x02\x08\x01") }), not_grpc);
        }
        assert_eq!(reason(&GrpcResponse::default()), not_grpc);
        assert_eq!(reason(&only_head(&[])), not_grpc, "no grpc-status");
        assert_eq!(reason(&only_head(&[("grpc-status", "good")])), not_grpc);
        assert_eq!(reason(&only_head(&[("grpc-status", "0")])), not_grpc, "no message");
        assert_eq!(reason(&GrpcResponse { trailers: None, ..saying(b"\0\0\0\0\x02\x08\x01") }), not_grpc);
        assert_eq!(reason(&saying(b"\x01\0\0\0\x02\x08\x01")), not_grpc, "compressed");
    }

    #[test]
    fn content_types_with_a_format_or_parameters_are_grpc() {
        for content_type in ["application/grpc+proto", "application/grpc;charset=utf-8"] {
            let head = headers(&[("content-type", content_type)]);
            let response = GrpcResponse { headers: head, ..saying(b"\0\0\0\0\x02\x08\x01") };
            assert_eq!(judge(&response, "shop"), Ok(()));
        }
    }

    #[test]
    fn a_failure_depends_on_the_first_frame() {
        let broken = h2::Error::from(h2::Reason::FRAME_SIZE_ERROR);
        assert_eq!(failure(&broken, &FirstFrame::of(None)), CheckError::ClosedAtOnce);
        assert_eq!(failure(&broken, &FirstFrame::of(Some(b'P'))), CheckError::NotHttp2);
        let reason = failure(&broken, &FirstFrame::of(Some(4))).to_string();
        assert_eq!(reason, "HTTP/2: malformed response: frame with invalid size");
    }
}
