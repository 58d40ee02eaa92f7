//! Requests for another protocol on the same connection (RFC 9110, section 7.8), such as WebSocket.

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Method, Version};

use crate::pool::{Fields, Head};
use crate::wire::{is_token, members};

/// Returns the protocol that a request asks to switch to, if the proxy passes that on: exactly one of those that it
/// lists is `allowed`. A request that it does not pass on is served as if it had not asked.
///
/// Versions of HTTP and TLS are not passed on: requests after such an upgrade would bypass the routes. A request for
/// WebSocket has the method GET and no body (RFC 6455, section 4.1); other protocols may begin after a body.
pub(crate) fn requested(
    head: &impl Head,
    has_body: bool,
    allowed: impl Fn(&[u8]) -> bool,
) -> Option<HeaderValue> {
    let listed = head.all(&UPGRADE).flat_map(members).filter(|protocol| may_pass(protocol));
    let mut listed = listed.filter(|protocol| allowed(protocol));
    let protocol = listed.next().filter(|_| listed.next().is_none())?;
    let asks = head.version() == Version::HTTP_11 && names_upgrade(head);
    let is_plain_get = *head.method() == Method::GET && !has_body;
    let is_complete = is_plain_get || !protocol.eq_ignore_ascii_case(b"websocket");
    HeaderValue::from_bytes(protocol).ok().filter(|_| asks && is_complete)
}

/// Returns whether a response with the status 101 switches to the protocol that was asked for (RFC 9110, section 7.8).
pub(crate) fn is_accepted(asked: &HeaderValue, response: &impl Fields) -> bool {
    let mut agreed = response.all(&UPGRADE);
    let first = agreed.next().filter(|_| agreed.next().is_none());
    first.is_some_and(|agreed| agreed.eq_ignore_ascii_case(asked.as_bytes())) && names_upgrade(response)
}

fn names_upgrade(fields: &impl Fields) -> bool {
    { fields.all(&CONNECTION).flat_map(members) }.any(|name| name.eq_ignore_ascii_case(b"upgrade"))
}

/// Returns whether the text is a protocol, such as `websocket` or `SPDY/3.1`, and none that carries requests.
pub(crate) fn may_pass(protocol: &[u8]) -> bool {
    let mut parts = protocol.split(|byte| *byte == b'/');
    let name = parts.next().unwrap_or_default();
    let is_denied =
        [&b"h2c"[..], b"h2", b"http", b"tls"].iter().any(|denied| name.eq_ignore_ascii_case(denied));
    is_token(name) && parts.next().is_none_or(is_token) && parts.next().is_none() && !is_denied
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(lines: &[(&'static str, &'static str)]) -> Option<String> {
        let request = lines
            .iter()
            .fold(http::Request::get("/"), |request, (name, value)| request.header(*name, *value));
        let head = request.body(()).unwrap().into_parts().0;
        requested(&head, false, |_| true).map(|protocol| protocol.to_str().unwrap().to_owned())
    }

    #[test]
    fn an_upgrade_is_one_protocol_that_connection_names() {
        let connection = ("connection", "keep-alive, Upgrade");
        for protocol in ["websocket", "irc/6.9", "tcp", "SPDY/3.1"] {
            assert_eq!(asks(&[connection, ("upgrade", protocol)]).as_deref(), Some(protocol));
            assert_eq!(asks(&[("upgrade", protocol)]), None);
        }
        assert_eq!(asks(&[connection]), None);
        assert_eq!(asks(&[connection, ("upgrade", "irc/6.9, websocket")]), None);
        assert_eq!(asks(&[connection, ("upgrade", "h2c, websocket")]).as_deref(), Some("websocket"));
        assert_eq!(asks(&[connection, ("upgrade", "irc/6.9"), ("upgrade", "websocket")]), None);
    }

    #[test]
    fn a_switch_is_accepted_only_to_the_protocol_that_was_asked_for() {
        let accepted = |lines: &[(&'static str, &'static str)]| {
            let lines = lines
                .iter()
                .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
            is_accepted(&HeaderValue::from_static("websocket"), &lines.collect::<http::HeaderMap>())
        };
        let connection = ("connection", "Upgrade");
        assert!(accepted(&[connection, ("upgrade", "WebSocket")]));
        assert!(!accepted(&[connection, ("upgrade", "tcp")]) && !accepted(&[connection]));
        assert!(!accepted(&[connection, ("upgrade", "websocket"), ("upgrade", "tcp")]));
        assert!(!accepted(&[("upgrade", "websocket")]) && !accepted(&[]));
    }

    #[test]
    fn of_several_protocols_exactly_one_must_be_allowed() {
        let request = http::Request::get("/").header("connection", "upgrade");
        let head = request.header("upgrade", "tcp, websocket").body(()).unwrap().into_parts().0;
        let asked = |allowed: &[&[u8]]| requested(&head, false, |protocol| allowed.contains(&protocol));
        assert_eq!(asked(&[b"websocket"]).unwrap(), "websocket");
        assert_eq!(asked(&[b"websocket", b"tcp"]), None);
        assert_eq!(asked(&[]), None);
    }

    #[test]
    fn a_websocket_begins_with_a_get_without_a_body() {
        let asks = |method, protocol, has_body| {
            let request = http::Request::builder().method(method).uri("/").header("connection", "upgrade");
            let head = request.header("upgrade", protocol).body(()).unwrap().into_parts().0;
            requested(&head, has_body, |_| true).is_some()
        };
        assert!(asks("GET", "websocket", false));
        assert!(!asks("GET", "websocket", true) && !asks("POST", "WebSocket", false));
        assert!(asks("POST", "tcp", true), "docker and kubectl do this");
    }

    #[test]
    fn protocols_that_carry_requests_past_the_routes_are_not_passed_on() {
        for protocol in [
            "h2c",
            "H2C",
            "h2",
            "HTTP/2.0",
            "http/3",
            "TLS/1.0",
            "",
            "\"h2c\"",
            "websocket;h2c",
            "a h2c",
            "a/b/c",
            "a/",
        ] {
            assert_eq!(asks(&[("connection", "upgrade"), ("upgrade", protocol)]), None, "{protocol}");
        }
    }
}
