//! Requests for another protocol on the same connection (RFC 9110, section 7.8), such as WebSocket.

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Method, Version};

use crate::pool::Head;

/// Returns the protocol that a request asks to switch to, if the proxy passes that on. A request that it does not pass
/// on is served as if it had not asked.
///
/// Versions of HTTP and TLS are not passed on: requests after such an upgrade would bypass the routes. A request for
/// WebSocket has the method GET and no body (RFC 6455, section 4.1); other protocols may begin after a body.
pub(crate) fn requested(head: &impl Head, has_body: bool) -> Option<HeaderValue> {
    let mut protocols = head.all(&UPGRADE);
    let protocol = protocols.next().filter(|_| protocols.next().is_none())?;
    let asks = head.version() == Version::HTTP_11 && connection_names_upgrade(head);
    let is_plain_get = *head.method() == Method::GET && !has_body;
    let is_complete = is_plain_get || !protocol.eq_ignore_ascii_case(b"websocket");
    HeaderValue::from_bytes(protocol).ok().filter(|_| asks && is_complete && may_pass(protocol))
}

fn connection_names_upgrade(head: &impl Head) -> bool {
    let named = head.all(&CONNECTION).flat_map(|value| value.split(|byte| *byte == b','));
    { named }.any(|name| name.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
}

/// Returns whether the value is one protocol, and none that carries requests.
pub(crate) fn may_pass(protocol: &[u8]) -> bool {
    let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default();
    let is_denied =
        [&b"h2c"[..], b"h2", b"http", b"tls"].iter().any(|denied| name.eq_ignore_ascii_case(denied));
    !name.is_empty() && !protocol.contains(&b',') && !is_denied
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(lines: &[(&'static str, &'static str)]) -> Option<String> {
        let request = lines
            .iter()
            .fold(http::Request::get("/"), |request, (name, value)| request.header(*name, *value));
        let head = request.body(()).unwrap().into_parts().0;
        requested(&head, false).map(|protocol| protocol.to_str().unwrap().to_owned())
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
        assert_eq!(asks(&[connection, ("upgrade", "irc/6.9"), ("upgrade", "websocket")]), None);
    }

    #[test]
    fn a_websocket_begins_with_a_get_without_a_body() {
        let asks = |method, protocol, has_body| {
            let request = http::Request::builder().method(method).uri("/").header("connection", "upgrade");
            let head = request.header("upgrade", protocol).body(()).unwrap().into_parts().0;
            requested(&head, has_body).is_some()
        };
        assert!(asks("GET", "websocket", false));
        assert!(!asks("GET", "websocket", true) && !asks("POST", "WebSocket", false));
        assert!(asks("POST", "tcp", true), "docker and kubectl do this");
    }

    #[test]
    fn protocols_that_carry_requests_past_the_routes_are_not_passed_on() {
        for protocol in ["h2c", "H2C", "h2", "HTTP/2.0", "http/3", "TLS/1.0", ""] {
            assert_eq!(asks(&[("connection", "upgrade"), ("upgrade", protocol)]), None, "{protocol}");
        }
    }
}
