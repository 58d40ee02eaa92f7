//! The hash key: the part of a request that a hashing policy hashes.
//!
//! The bytes are those that nginx hashes for the corresponding variable (`$remote_addr`, `$request_uri`, `$http_NAME`,
//! `$cookie_NAME`, `$arg_NAME`), so that `hash … consistent` there and here select the same backend for a request.
//!
//! A missing or empty value is not a key, because all requests without it would go to one backend. The pool counts such
//! a request and falls back to weighted round robin.

use std::io::Write;
use std::net::IpAddr;
use std::ops::Deref;

use http::{HeaderName, header};

use super::head::Head;
use super::settings::HashOn;
use super::sticky::cookies;

/// The bytes to hash, never empty.
#[derive(Clone, Copy, Debug)]
pub struct Key<'a>(Bytes<'a>);

#[derive(Clone, Copy, Debug)]
enum Bytes<'a> {
    /// A part of the request.
    Sent(&'a [u8]),
    /// The text of an address, in the first bytes of the array.
    Address([u8; ADDRESS_TEXT], u8),
}

/// The longest text of an IP address: eight groups of four digits.
const ADDRESS_TEXT: usize = 39;

/// Returns the key of a request. `None` if the value is missing or empty. On Unix sockets there is no `client`.
pub(super) fn key<'a>(on: &HashOn, client: Option<IpAddr>, head: &'a impl Head) -> Option<Key<'a>> {
    let sent = match on {
        HashOn::ClientIp => return client.map(Key::of_address),
        HashOn::Uri => head.path_and_query().map(str::as_bytes),
        HashOn::Header(name) => header_value(head, name),
        HashOn::Cookie(name) => cookies(head, name).next(),
        HashOn::Query(name) => head.query().and_then(|query| parameter(query, name)),
    };
    sent.filter(|sent| !sent.is_empty()).map(|sent| Key(Bytes::Sent(sent)))
}

/// Returns the value of the first field with that name. HTTP/2 has `:authority` in place of `Host` (RFC 9113, section
/// 8.3.1).
fn header_value<'a>(head: &'a impl Head, name: &HeaderName) -> Option<&'a [u8]> {
    let authority = || head.authority().filter(|_| *name == header::HOST).map(str::as_bytes);
    head.first(name).or_else(authority)
}

/// Returns the value of the first `name=value`. Neither part is decoded, so two spellings of a value are two keys, as
/// in nginx.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a [u8]> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_bytes())
}

// === impl Key ===

impl Key<'_> {
    /// Returns the key of an address. An IPv4-mapped IPv6 address (`::ffff:192.0.2.1`) counts as IPv4, because the form
    /// depends on our socket and not on the client.
    #[expect(clippy::expect_used, reason = "the array has room for the longest address")]
    fn of_address(address: IpAddr) -> Self {
        let mut text = [0; ADDRESS_TEXT];
        let mut rest = &mut text[..];
        write!(rest, "{}", address.to_canonical()).expect("the longest address fits");
        let length = ADDRESS_TEXT - rest.len();
        Self(Bytes::Address(text, length as u8))
    }
}

impl Deref for Key<'_> {
    type Target = [u8];

    #[expect(clippy::indexing_slicing, reason = "the length is that of a text in the array")]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Sent(sent) => sent,
            Bytes::Address(text, length) => &text[..usize::from(*length)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::request::Parts;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    fn head(uri: &str, lines: &[(&'static str, &'static str)]) -> Parts {
        let request = http::Request::builder().uri(uri);
        let request = lines.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(()).unwrap().into_parts().0
    }

    fn hashed(on: &HashOn, uri: &str, lines: &[(&'static str, &'static str)]) -> Option<String> {
        let client = Some("192.0.2.7".parse().unwrap());
        let head = head(uri, lines);
        key(on, client, &head).map(|key| String::from_utf8(key.to_vec()).unwrap())
    }

    fn address(client: &str) -> String {
        let client = client.parse().unwrap();
        String::from_utf8(Key::of_address(client).to_vec()).unwrap()
    }

    #[test]
    fn a_client_is_its_address_in_text() {
        assert_eq!(hashed(&HashOn::ClientIp, "/", &[]).unwrap(), "192.0.2.7");
        assert_eq!(address("2001:db8:0:0:0:0:0:1"), "2001:db8::1");
        let longest = "2001:1db8:1111:2222:3333:4444:5555:6666";
        assert_eq!(longest.len(), ADDRESS_TEXT);
        assert_eq!(address(longest), longest);
    }

    #[test]
    fn an_ipv4_client_is_the_same_on_an_ipv6_socket() {
        assert_eq!(address("::ffff:192.0.2.7"), "192.0.2.7");
    }

    #[test]
    fn a_client_without_an_address_has_no_key() {
        assert!(key(&HashOn::ClientIp, None, &head("/", &[])).is_none());
    }

    #[test]
    fn a_uri_is_path_and_query_as_sent() {
        let of = |uri| hashed(&HashOn::Uri, uri, &[]);
        assert_eq!(of("/a%20b/../c?x=1&y").unwrap(), "/a%20b/../c?x=1&y");
        assert_eq!(of("http://example.com/a?b").unwrap(), "/a?b", "a host is no part of it");
        assert_eq!(of("*").unwrap(), "*");
        assert_eq!(of("example.com:443"), None, "the target of a CONNECT has no path");
    }

    #[test]
    fn a_header_is_the_first_line_of_its_name() {
        let on = HashOn::Header(HeaderName::from_static("x-tenant"));
        let lines = [("accept", "*/*"), ("x-tenant", "a, b"), ("x-tenant", "c")];
        assert_eq!(hashed(&on, "/", &lines).unwrap(), "a, b");
        assert_eq!(hashed(&on, "/", &[("x-tenant", ""), ("x-tenant", "c")]), None);
        assert_eq!(hashed(&on, "/", &[]), None);
    }

    #[test]
    fn the_host_can_come_from_the_target() {
        let on = HashOn::Header(header::HOST);
        assert_eq!(hashed(&on, "https://a.example/", &[("host", "b.example")]).unwrap(), "b.example");
        assert_eq!(hashed(&on, "https://a.example/", &[]).unwrap(), "a.example");
        let other = HashOn::Header(header::FORWARDED);
        assert_eq!(hashed(&other, "https://a.example/", &[]), None);
    }

    #[test]
    fn a_cookie_is_the_first_of_its_name() {
        let on = HashOn::Cookie("id".into());
        let lines = [("cookie", "a=1"), ("cookie", "xid=2; id=3; id=4")];
        assert_eq!(hashed(&on, "/", &lines).unwrap(), "3");
        assert_eq!(hashed(&on, "/", &[("cookie", "id=")]), None);
        assert_eq!(hashed(&on, "/", &[("cookie", "id")]), None);
        assert_eq!(hashed(&on, "/", &[("cookie", "id=\"\"")]), None);
    }

    #[test]
    fn a_query_is_the_first_value_of_the_parameter_as_sent() {
        let on = HashOn::Query("user".into());
        let of = |uri| hashed(&on, uri, &[]);
        assert_eq!(of("/?a=b&user=x%20y=z&user=2").unwrap(), "x%20y=z");
        assert_eq!(of("/?user&user=2").unwrap(), "2", "a name alone has no value");
        assert_eq!(of("/?user=&user=2"), None, "an empty value is one");
        assert_eq!(of("/?superuser=1&User=2"), None);
        assert_eq!(of("/?"), None);
        assert_eq!(of("/"), None);
    }

    proptest! {
        #[test]
        fn every_address_has_a_key(client in any::<IpAddr>()) {
            prop_assert_eq!(address(&client.to_string()), client.to_canonical().to_string());
        }

        #[test]
        fn any_query_is_read_without_a_panic(query in "[&=a-c%]{0,20}") {
            let first = query.split('&').find_map(|pair| pair.strip_prefix("a="));
            let first = first.filter(|value| !value.is_empty()).map(str::to_owned);
            prop_assert_eq!(hashed(&HashOn::Query("a".into()), &format!("/?{query}"), &[]), first);
        }
    }
}
