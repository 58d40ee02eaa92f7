//! The response that the proxy sends itself if no backend responds.

use std::time::SystemTime;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, DATE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, StatusCode};

use super::date;
use crate::explain::X_LB_EXPLAIN;
use crate::failure::{Failure, Rejection};

/// A response that the proxy sends itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnResponse {
    /// The status.
    pub(crate) status: StatusCode,
    /// The fields of its head.
    pub(crate) fields: Vec<(HeaderName, HeaderValue)>,
    /// The body, which contains only the status. Details of a failure are for the operator and not for clients.
    pub(crate) body: Bytes,
}

/// The methods that a client can use instead of one that is refused here. Backends may know more.
const ALLOWED: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

// === impl OwnResponse ===

impl OwnResponse {
    /// Returns the response to a failed request; `None` if no client is left to read it.
    pub(crate) fn to(
        failure: Failure,
        explanation: Option<HeaderValue>,
        clock: fn() -> SystemTime,
    ) -> Option<Self> {
        let status = failure.client_status()?;
        // A response about the server itself has no page.
        let body = if status.is_success() { Bytes::new() } else { page(status) };
        let mut fields = vec![
            (CACHE_CONTROL, HeaderValue::from_static("no-store")),
            (CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8")),
            (CONTENT_LENGTH, HeaderValue::from(body.len())),
        ];
        fields.extend(failure.retry_after().map(|seconds| (RETRY_AFTER, HeaderValue::from(seconds))));
        fields.extend(
            (status == StatusCode::METHOD_NOT_ALLOWED).then(|| (ALLOW, HeaderValue::from_static(ALLOWED))),
        );
        fields.extend(explanation.map(|explanation| (X_LB_EXPLAIN, explanation)));
        fields.push((DATE, date::value(clock())));
        Some(Self { status, fields, body })
    }
}

/// Returns whether the client's connection can carry another request after this failure: not if the client itself broke
/// the protocol or was too slow, because the end of its request is then unknown.
pub(crate) fn keeps_connection(failure: Failure) -> bool {
    match failure {
        Failure::Rejected(rejection) => !matches!(rejection, Rejection::Wire(_) | Rejection::BodyTooLarge),
        Failure::Upstream(_) | Failure::Response(_) | Failure::ResponseStalled => true,
        Failure::ClientGone
        | Failure::ClientTimeout
        | Failure::BadRequest
        | Failure::Shutdown
        | Failure::Internal => false,
    }
}

/// Returns the body, such as `502 Bad Gateway`.
fn page(status: StatusCode) -> Bytes {
    let reason = status.canonical_reason().unwrap_or("Error");
    format!("{} {reason}\n", status.as_u16()).into()
}

#[cfg(test)]
mod tests {
    use http::header::SERVER;

    use super::*;
    use crate::pool::UpstreamError;

    fn own_response(failure: Failure, explanation: Option<HeaderValue>) -> Option<OwnResponse> {
        OwnResponse::to(failure, explanation, || SystemTime::UNIX_EPOCH)
    }

    fn field(response: &OwnResponse, name: &HeaderName) -> Option<HeaderValue> {
        response.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    #[test]
    fn the_page_contains_only_the_status() {
        let response = own_response(Failure::Upstream(UpstreamError::Tls), None).unwrap();
        assert_eq!(
            (response.status, &response.body[..]),
            (StatusCode::BAD_GATEWAY, &b"502 Bad Gateway\n"[..])
        );
        assert_eq!(field(&response, &CONTENT_LENGTH).unwrap(), "16");
        assert_eq!(field(&response, &CACHE_CONTROL).unwrap(), "no-store");
        assert_eq!(field(&response, &CONTENT_TYPE).unwrap(), "text/plain; charset=utf-8");
        assert_eq!((field(&response, &SERVER), field(&response, &RETRY_AFTER)), (None, None));
        assert_eq!(field(&response, &DATE).unwrap(), "Thu, 01 Jan 1970 00:00:00 GMT");
    }

    #[test]
    fn the_response_of_a_full_queue_has_a_retry_after() {
        let response = own_response(Failure::Rejected(Rejection::QueueFull), None).unwrap();
        assert_eq!(response.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(field(&response, &RETRY_AFTER).unwrap(), "1");
    }

    #[test]
    fn the_response_to_a_request_about_this_server_is_empty() {
        let response = own_response(Failure::Rejected(Rejection::LastHop), None).unwrap();
        assert_eq!((response.status, response.body.len()), (StatusCode::OK, 0));
        assert_eq!(field(&response, &CONTENT_LENGTH).unwrap(), "0");
    }

    #[test]
    fn an_explanation_is_a_field() {
        let explanation = HeaderValue::from_static("route=none");
        let response =
            own_response(Failure::Rejected(Rejection::NoRoute), Some(explanation.clone())).unwrap();
        assert_eq!(field(&response, &X_LB_EXPLAIN), Some(explanation));
    }

    #[test]
    fn a_client_that_disconnected_gets_no_response() {
        assert_eq!(own_response(Failure::ClientGone, None), None);
    }
}
