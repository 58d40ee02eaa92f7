//! Hop-by-hop fields, which are meant for the next hop only (RFC 9110, section 7.6.1).
//!
//! Pingora drops those of a request but forwards those of a response, which [`strip`] drops. It forwards only WebSocket
//! upgrades; [`upgrade`] decides about the others.

use http::header::{CONNECTION, HeaderName, UPGRADE};
use http::{HeaderValue, StatusCode, Version};

use crate::head_edit::HeadEdit;
use crate::pool::{Fields, Head};

/// Hop-by-hop fields even if `Connection` does not name them. `Transfer-Encoding` is missing because Pingora frames the
/// response by it.
const ALWAYS: [&str; 3] = ["keep-alive", "proxy-connection", "upgrade"];

/// Fields that are never dropped, even if `Connection` names them: they frame the message or belong to the client.
const NEVER: [HeaderName; 4] =
    [CONNECTION, http::header::CONTENT_LENGTH, http::header::TRANSFER_ENCODING, http::header::SET_COOKIE];

/// Returns the protocol that a request asks to switch to, if it is one other than WebSocket that is forwarded.
///
/// HTTP/2 in plain text is not forwarded: requests after such an upgrade would bypass the routes.
pub(crate) fn upgrade(head: &impl Head) -> Option<HeaderValue> {
    let mut protocols = head.all(&UPGRADE);
    let protocol = protocols.next().filter(|_| protocols.next().is_none())?;
    let is_http2 = str::from_utf8(protocol).is_ok_and(|text| text.to_ascii_lowercase().contains("h2c"));
    let is_upgrade = head.version() == Version::HTTP_11 && nominated(head).any(|name| name == UPGRADE);
    HeaderValue::from_bytes(protocol).ok().filter(|_| is_upgrade && !is_http2)
}

/// Drops the hop-by-hop fields of a response. A response that switches protocols, or demands it (426), keeps them,
/// because the client needs them.
pub(crate) fn strip(status: u16, response: &mut (impl Fields + HeadEdit)) {
    if matches!(
        StatusCode::from_u16(status),
        Ok(StatusCode::SWITCHING_PROTOCOLS | StatusCode::UPGRADE_REQUIRED)
    ) {
        return;
    }
    for name in to_drop(response) {
        response.remove(&name);
    }
}

/// Looks at each field once. Most responses have nothing to drop and cost no allocation.
fn to_drop(fields: &impl Fields) -> Vec<HeaderName> {
    let always = |name: &[u8]| ALWAYS.into_iter().find(|known| name.eq_ignore_ascii_case(known.as_bytes()));
    let mut names: Vec<_> = fields.names().filter_map(always).map(HeaderName::from_static).collect();
    names.extend(nominated(fields));
    names
}

/// Returns the fields that `Connection` names.
fn nominated(fields: &impl Fields) -> impl Iterator<Item = HeaderName> {
    let named = fields.all(&CONNECTION).filter_map(|value| str::from_utf8(value).ok());
    named
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .filter(|name| fields.first(name).is_some() && !NEVER.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderMap;

    fn response(status: u16, lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let mut response: HeaderMap = lines.iter().map(line).collect();
        strip(status, &mut response);
        response
    }

    fn requested(lines: &[(&'static str, &'static str)]) -> Option<String> {
        let request = lines
            .iter()
            .fold(http::Request::get("/"), |request, (name, value)| request.header(*name, *value));
        let head = request.body(()).unwrap().into_parts().0;
        upgrade(&head).map(|protocol| protocol.to_str().unwrap().to_owned())
    }

    #[test]
    fn an_upgrade_is_one_protocol_that_connection_names_and_not_http_2() {
        let connection = ("connection", "keep-alive, Upgrade");
        assert_eq!(requested(&[connection, ("upgrade", "irc/6.9")]).as_deref(), Some("irc/6.9"));
        assert_eq!(requested(&[("upgrade", "irc/6.9")]), None);
        assert_eq!(requested(&[connection]), None);
        assert_eq!(requested(&[connection, ("upgrade", "h2c")]), None);
        assert_eq!(requested(&[connection, ("upgrade", "irc/6.9, H2C")]), None);
        assert_eq!(requested(&[connection, ("upgrade", "irc/6.9"), ("upgrade", "h2c")]), None);
    }

    #[test]
    fn fields_that_connection_names_are_dropped() {
        let sent = [
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("x-public", "2"),
        ];
        let response = response(200, &sent);
        assert!(!response.contains_key("x-private"));
        assert!(!response.contains_key("keep-alive"));
        assert!(response.contains_key("x-public"));
    }

    #[test]
    fn fields_that_frame_the_message_stay() {
        let sent = [("connection", "content-length, transfer-encoding"), ("content-length", "3")];
        assert!(response(200, &sent).contains_key("content-length"));
    }

    #[test]
    fn an_upgrade_field_stays_only_in_a_response_that_switches_protocols() {
        let sent = [("connection", "Upgrade"), ("upgrade", "websocket")];
        assert!(response(101, &sent).contains_key("upgrade"));
        assert!(!response(200, &sent).contains_key("upgrade"));
    }
}
