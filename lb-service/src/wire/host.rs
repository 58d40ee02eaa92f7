//! The host of a request: `host [ ":" port ]` (RFC 9110, section 7.2; RFC 3986, section 3.2.2).

use std::net::{Ipv4Addr, Ipv6Addr};

use super::grammar::{has_valid_escapes, is_reg_name};

/// The longest name of the Domain Name System.
const MAX_NAME: usize = 253;

/// Splits a host and a port. `None` if the text is not a host with an optional port; a port may be empty.
pub(super) fn split(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => bracketed(rest)?,
        None => match memchr::memchr(b':', text.as_bytes()).and_then(|colon| text.split_at_checked(colon)) {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => (text, None),
        },
    };
    let is_valid =
        if text.starts_with('[') { host.parse::<Ipv6Addr>().is_ok() } else { is_name_or_ipv4(host) };
    let port = match port.filter(|port| !port.is_empty()) {
        Some(port) => Some(number(port)?),
        None => None,
    };
    is_valid.then_some((host, port))
}

/// Returns whether a value is a host with an optional port.
pub(crate) fn is_host(value: &[u8]) -> bool {
    str::from_utf8(value).is_ok_and(|text| split(text).is_some())
}

/// Returns whether two hosts are the same. A missing port is `default`.
pub(super) fn is_same(one: &str, other: &str, default: u16) -> bool {
    let (Some((one, one_port)), Some((other, other_port))) = (split(one), split(other)) else { return false };
    one.eq_ignore_ascii_case(other) && one_port.unwrap_or(default) == other_port.unwrap_or(default)
}

/// Splits `address]` or `address]:port`.
fn bracketed(rest: &str) -> Option<(&str, Option<&str>)> {
    let (address, after) = rest.split_once(']')?;
    match after.strip_prefix(':') {
        Some(port) => Some((address, Some(port))),
        None => after.is_empty().then_some((address, None)),
    }
}

fn is_name_or_ipv4(host: &str) -> bool {
    let (mut before, mut is_numeric, mut has_escapes) = (b' ', true, false);
    for byte in host.bytes() {
        if !(is_reg_name(byte) || byte == b'%') || (before, byte) == (b'.', b'.') {
            return false;
        }
        is_numeric &= byte.is_ascii_digit() || byte == b'.';
        has_escapes |= byte == b'%';
        before = byte;
    }
    (1..=MAX_NAME).contains(&host.len())
        && (!has_escapes || has_valid_escapes(host.as_bytes()))
        // A host of digits and dots is an address or nothing: some programs read 127.1 as an address.
        && (!is_numeric || host.parse::<Ipv4Addr>().is_ok())
}

/// Parses a port. `str::parse` would accept a sign.
fn number(port: &str) -> Option<u16> {
    port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_with_an_optional_port() {
        for (text, host, port) in [
            ("example.com", "example.com", None),
            ("example.com:8080", "example.com", Some(8080)),
            ("example.com:", "example.com", None),
            ("EXAMPLE.com.", "EXAMPLE.com.", None),
            ("a_b.test", "a_b.test", None),
            ("127.0.0.1:0", "127.0.0.1", Some(0)),
            ("[::1]:80", "::1", Some(80)),
            ("[2001:db8::1]", "2001:db8::1", None),
            ("a%2Fb", "a%2Fb", None),
            ("localhost", "localhost", None),
        ] {
            assert_eq!(split(text), Some((host, port)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_no_host() {
        let long = "a".repeat(MAX_NAME + 1);
        for text in [
            "",
            ":80",
            "a b",
            "a,b",
            "a/b",
            "a?b",
            "a#b",
            "a@b",
            "a\\b",
            "a..b",
            "::1",
            "[::1",
            "[::1]a",
            "[::1%lo]",
            "[fe80::1%25lo]",
            "[127.0.0.1]",
            "a:+1",
            "a:65536",
            "a:b",
            "a:1:2",
            "127.1",
            "1.2.3.4.5",
            "a%",
            "a%00",
            "\u{e9}",
            "http://a",
            &long,
        ] {
            assert_eq!(split(text), None, "{text:?}");
        }
    }

    #[test]
    fn hosts_are_compared_without_case_and_with_the_default_port() {
        assert!(is_same("Example.com", "example.COM:80", 80));
        assert!(is_same("example.com:", "example.com", 80));
        assert!(!is_same("example.com", "example.com:81", 80));
        assert!(!is_same("example.com", "example.com:80", 443));
        assert!(!is_same("a", "b", 80));
    }
}
