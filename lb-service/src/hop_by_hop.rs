//! Hop-by-hop fields, which are meant for the next hop only (RFC 9110, section 7.6.1).
//!
//! Pingora drops those of a request but forwards those of a response, which [`strip`] drops. It forwards only WebSocket
//! upgrades; [`upgrade`] decides about the others.

use http::header::{CONNECTION, HeaderName, UPGRADE};
use http::{HeaderMap, HeaderValue, StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};

/// Hop-by-hop fields even if `Connection` does not name them. `Transfer-Encoding` is missing because Pingora frames the
/// response by it.
const ALWAYS: [&str; 3] = ["keep-alive", "proxy-connection", "upgrade"];

/// Fields that are never dropped, even if `Connection` names them: they frame the message or belong to the client.
const NEVER: [HeaderName; 4] =
    [CONNECTION, http::header::CONTENT_LENGTH, http::header::TRANSFER_ENCODING, http::header::SET_COOKIE];

/// Returns the protocol that a request asks to switch to, if it is one other than WebSocket that is forwarded.
///
/// HTTP/2 in plain text is not forwarded: requests after such an upgrade would bypass the routes.
pub fn upgrade(sent: &RequestHeader) -> Option<&HeaderValue> {
    let protocol = sent.headers.get(UPGRADE)?;
    let is_http2 = protocol.to_str().is_ok_and(|text| text.to_ascii_lowercase().contains("h2c"));
    let asks = sent.version == Version::HTTP_11 && lists(&sent.headers, &UPGRADE);
    (asks && !is_http2 && sent.headers.get_all(UPGRADE).iter().count() == 1).then_some(protocol)
}

/// Returns whether `Connection` names this field.
fn lists(headers: &HeaderMap, name: &HeaderName) -> bool {
    nominated(headers).any(|nominated| nominated == *name)
}

/// Drops the hop-by-hop fields of a response. A response that switches protocols, or demands it (426), keeps them,
/// because the client needs them.
pub fn strip(answer: &mut ResponseHeader) {
    if matches!(answer.status, StatusCode::SWITCHING_PROTOCOLS | StatusCode::UPGRADE_REQUIRED) {
        return;
    }
    for name in to_drop(&answer.headers) {
        answer.remove_header(&name);
    }
}

/// Looks at each field once. Most responses have nothing to drop and cost no allocation.
fn to_drop(headers: &HeaderMap) -> Vec<HeaderName> {
    let is_always = |name: &&HeaderName| ALWAYS.contains(&name.as_str());
    let mut names: Vec<_> = headers.keys().filter(is_always).cloned().collect();
    if headers.contains_key(CONNECTION) {
        names.extend(nominated(headers));
    }
    names
}

/// Returns the fields that `Connection` names.
fn nominated(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    named
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .filter(|name| headers.contains_key(name) && !NEVER.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &'static str)]) -> ResponseHeader {
        let mut answer = ResponseHeader::build(status, None).unwrap();
        for (name, value) in headers {
            answer.append_header(*name, *value).unwrap();
        }
        strip(&mut answer);
        answer
    }

    fn asks(headers: &[(&'static str, &'static str)]) -> Option<String> {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        for (name, value) in headers {
            request.append_header(*name, *value).unwrap();
        }
        upgrade(&request).map(|protocol| protocol.to_str().unwrap().to_owned())
    }

    #[test]
    fn an_upgrade_is_one_protocol_that_connection_names_and_not_http_2() {
        let connection = ("connection", "keep-alive, Upgrade");
        assert_eq!(asks(&[connection, ("upgrade", "irc/6.9")]).as_deref(), Some("irc/6.9"));
        assert_eq!(asks(&[("upgrade", "irc/6.9")]), None);
        assert_eq!(asks(&[connection]), None);
        assert_eq!(asks(&[connection, ("upgrade", "h2c")]), None);
        assert_eq!(asks(&[connection, ("upgrade", "irc/6.9, H2C")]), None);
        assert_eq!(asks(&[connection, ("upgrade", "irc/6.9"), ("upgrade", "h2c")]), None);
    }

    #[test]
    fn fields_that_connection_names_are_dropped() {
        let sent = [
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("x-public", "2"),
        ];
        let answer = answer(200, &sent);
        assert!(!answer.headers.contains_key("x-private"));
        assert!(!answer.headers.contains_key("keep-alive"));
        assert!(answer.headers.contains_key("x-public"));
    }

    #[test]
    fn fields_that_frame_the_message_stay() {
        let sent = [("connection", "content-length, transfer-encoding"), ("content-length", "3")];
        assert!(answer(200, &sent).headers.contains_key("content-length"));
    }

    #[test]
    fn an_upgrade_field_stays_only_in_a_response_that_switches_protocols() {
        let sent = [("connection", "Upgrade"), ("upgrade", "websocket")];
        assert!(answer(101, &sent).headers.contains_key("upgrade"));
        assert!(!answer(200, &sent).headers.contains_key("upgrade"));
    }
}
