//! The `X-Forwarded-*` fields for backends, and the trust in those that a client sends.
//!
//! Any client can send `X-Forwarded-For` and related fields. They are therefore used only if the connection comes from
//! one of the [`TrustedProxies`]:
//!
//! | field | from a trusted proxy | from any other client |
//! |---|---|---|
//! | `X-Forwarded-For` | kept, the peer appended; 400 if it has more than 64 entries | replaced by the peer |
//! | `X-Forwarded-Proto`, `X-Forwarded-Host` | kept; ours if absent, repeated or invalid | replaced by ours |
//! | `Forwarded`, `X-Real-IP`, `X-Forwarded-Port`, `X-Forwarded-Prefix`, `X-Forwarded-Server` | kept | removed |
//!
//! The daemon never creates the fields of the last row. It removes them so that a client cannot mislead a backend that
//! reads them.
//!
//! A client on a Unix socket has no address: it is not trusted, and `X-Forwarded-For` is omitted.
//!
//! `decide` must run after the hop-by-hop fields were removed, otherwise `Connection: X-Forwarded-For` would remove
//! the field that is set here.

use std::net::{IpAddr, SocketAddr};

use http::HeaderValue;
use http::header::HeaderName;
use ipnet::IpNet;

use crate::head_edit::HeadEdit;
use crate::pool::Fields;
use crate::wire;

/// The chain of addresses that a request came through.
pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The scheme of the client's request: `http` or `https`.
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// The host that the client asked for.
pub(crate) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Related fields that are removed unless the peer is trusted.
const RELATIVES: [&str; 5] =
    ["forwarded", "x-real-ip", "x-forwarded-port", "x-forwarded-prefix", "x-forwarded-server"];

/// The networks of proxies whose fields about the client are used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

/// The peer of a connection. Created once for all its requests, because formatting an address costs more than copying
/// the text.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The address. An IPv4 client on an IPv6 socket has an IPv4 address.
    pub ip: IpAddr,
    /// The address as a field value.
    value: HeaderValue,
}

/// The facts about the client that the connection itself gives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Downstream<'a> {
    /// The peer. `None` on a Unix socket.
    pub peer: Option<&'a Peer>,
    /// The scheme.
    pub scheme: Scheme,
    /// The host that the client asked for, as it was sent.
    pub host: Option<&'a [u8]>,
}

/// The scheme of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// HTTP without TLS.
    Http,
    /// HTTP over TLS.
    Https,
}

/// The treatment of one field of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Edit {
    /// The field stays as the client sent it.
    Keep,
    /// This value replaces all that the client sent.
    Set(HeaderValue),
    /// The field is removed.
    Remove,
}

/// The fields about the client in the request to the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Forwarded {
    /// `X-Forwarded-For`.
    pub addresses: Edit,
    /// `X-Forwarded-Proto`.
    pub proto: Edit,
    /// `X-Forwarded-Host`.
    pub host: Edit,
    /// Whether `Forwarded`, `X-Real-IP` and the other related fields stay.
    pub keep_relatives: bool,
}

/// Decides the fields for the backend from those that the client sent.
pub(crate) fn decide(downstream: &Downstream<'_>, sent: &impl Fields, trusted: &TrustedProxies) -> Forwarded {
    let own_proto = || Edit::Set(HeaderValue::from_static(downstream.scheme.as_str()));
    let own_host = || {
        let host = downstream.host.and_then(|host| HeaderValue::from_bytes(host).ok());
        host.map_or(Edit::Remove, Edit::Set)
    };
    let is_trusted = downstream.peer.is_some_and(|peer| trusted.trusts(peer.ip));
    let keep = |name: &HeaderName| is_trusted && sent.first(name).is_some();
    Forwarded {
        addresses: match downstream.peer {
            Some(peer) if keep(&X_FORWARDED_FOR) => Edit::Set(appended(sent, peer)),
            Some(peer) => Edit::Set(peer.value.clone()),
            None => Edit::Remove,
        },
        proto: if is_trusted && proto_of(sent).is_some() { Edit::Keep } else { own_proto() },
        host: if is_trusted && has_valid_host(sent) { Edit::Keep } else { own_host() },
        keep_relatives: is_trusted,
    }
}

/// Returns whether `X-Forwarded-For` has more entries than a chain of proxies, which a loop produces.
pub(crate) fn has_too_many(sent: &impl Fields) -> bool {
    const MAX: usize = 64;
    let entries = sent.all(&X_FORWARDED_FOR).flat_map(|line| line.split(|byte| *byte == b','));
    entries.take(MAX + 1).count() > MAX
}

/// Returns the value of a field that occurs once.
fn only<'a>(sent: &'a impl Fields, name: &HeaderName) -> Option<&'a [u8]> {
    let mut lines = sent.all(name);
    lines.next().filter(|_| lines.next().is_none())
}

/// Returns the scheme in `X-Forwarded-Proto`; `None` if it is absent or not one scheme.
fn proto_of(sent: &impl Fields) -> Option<Scheme> {
    let value = only(sent, &X_FORWARDED_PROTO)?;
    let schemes = [Scheme::Http, Scheme::Https];
    schemes.into_iter().find(|scheme| value.eq_ignore_ascii_case(scheme.as_str().as_bytes()))
}

fn has_valid_host(sent: &impl Fields) -> bool {
    only(sent, &X_FORWARDED_HOST).is_some_and(wire::is_host)
}

/// Returns whether the client uses TLS, to us or to a trusted proxy that says so.
pub(crate) fn is_https(downstream: &Downstream<'_>, sent: &impl Fields, trusted: &TrustedProxies) -> bool {
    let is_trusted = || downstream.peer.is_some_and(|peer| trusted.trusts(peer.ip));
    proto_of(sent).filter(|_| is_trusted()).unwrap_or(downstream.scheme) == Scheme::Https
}

/// Returns the client's address as reported by trusted proxies: the rightmost address in `X-Forwarded-For` that is not
/// a trusted proxy (nginx: `real_ip_recursive on`).
///
/// `sent` are the client's fields, whose `X-Forwarded-For` lines count as one. The walk ends at an entry that is not an
/// address, because no trusted proxy wrote the entries to the left of it. If all addresses are trusted, the leftmost
/// one is returned.
pub(crate) fn client_ip(peer: IpAddr, sent: &impl Fields, trusted: &TrustedProxies) -> IpAddr {
    let mut client = peer.to_canonical();
    let lines = sent.all(&X_FORWARDED_FOR).rev();
    let entries = lines.flat_map(|line| line.rsplit(|byte| *byte == b','));
    for entry in entries {
        if !trusted.trusts(client) {
            break;
        }
        let Some(address) = parse_entry(entry) else { break };
        client = address;
    }
    client
}

/// Returns the [`RELATIVES`] that the request has. One pass over the fields is cheaper than five lookups.
fn relative(name: &[u8]) -> Option<HeaderName> {
    let known = RELATIVES.into_iter().find(|relative| name.eq_ignore_ascii_case(relative.as_bytes()));
    known.map(HeaderName::from_static)
}

/// Parses an address with or without a port. An IPv6 address with a port is in brackets.
fn parse_entry(entry: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(entry).ok()?.trim();
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    text.parse()
        .ok()
        .or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
        .or_else(in_brackets)
        .map(|ip: IpAddr| ip.to_canonical())
}

/// Joins all values that the client sent and `peer` into one line.
fn appended(sent: &impl Fields, peer: &Peer) -> HeaderValue {
    let mut line = Vec::with_capacity(64);
    for value in sent.all(&X_FORWARDED_FOR).filter(|value| !value.is_empty()) {
        line.extend_from_slice(value);
        line.extend_from_slice(b", ");
    }
    line.extend_from_slice(peer.value.as_bytes());
    // Values of fields cannot make an invalid value.
    HeaderValue::try_from(line).unwrap_or_else(|_| peer.value.clone())
}

// === impl Peer ===

impl Peer {
    /// Creates the peer at this address.
    #[expect(clippy::expect_used, reason = "an address is made of digits, letters, dots and colons")]
    pub fn new(address: IpAddr) -> Self {
        let ip = address.to_canonical();
        Self { ip, value: HeaderValue::try_from(ip.to_string()).expect("an address is ASCII") }
    }
}

// === impl TrustedProxies ===

impl TrustedProxies {
    /// Trusts these networks.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Returns whether `address` is in one of the networks. An IPv4-mapped IPv6 address counts as IPv4.
    pub(crate) fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

// === impl Scheme ===

impl Scheme {
    /// Returns the word for `X-Forwarded-Proto`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

// === impl Forwarded ===

impl Forwarded {
    /// Applies the decision to the head that the backend gets, given what the client sent.
    pub(crate) fn apply(self, sent: &impl Fields, request: &mut impl HeadEdit) {
        self.addresses.apply(X_FORWARDED_FOR, request);
        self.proto.apply(X_FORWARDED_PROTO, request);
        self.host.apply(X_FORWARDED_HOST, request);
        if !self.keep_relatives {
            sent.names().filter_map(relative).for_each(|name| request.remove(&name));
        }
    }
}

impl Edit {
    fn apply(self, name: HeaderName, request: &mut impl HeadEdit) {
        match self {
            Self::Keep => {}
            Self::Set(value) => request.set(name, value),
            Self::Remove => request.remove(&name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderMap;
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    const PROXY: &str = "10.0.0.1";
    const STRANGER: &str = "192.0.2.7";

    fn trusted() -> TrustedProxies {
        TrustedProxies::new(vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()])
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    /// The forwarding headers that a backend gets, in the order of their names.
    fn forwarded_lines(peer: Option<&str>, lines: &[(&'static str, &str)]) -> Vec<String> {
        let peer = peer.map(|ip| Peer::new(ip.parse().unwrap()));
        let downstream =
            Downstream { peer: peer.as_ref(), scheme: Scheme::Https, host: Some(b"example.com") };
        let sent = headers(lines);
        let mut request = sent.clone();
        decide(&downstream, &sent, &trusted()).apply(&sent, &mut request);
        let mut sent: Vec<String> =
            request.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        sent.sort();
        sent
    }

    fn client(peer: &str, lines: &[&str]) -> String {
        let lines: Vec<_> = lines.iter().map(|value| ("x-forwarded-for", *value)).collect();
        client_ip(peer.parse().unwrap(), &headers(&lines), &trusted()).to_string()
    }

    #[test]
    fn fields_of_a_trusted_proxy_are_kept_only_if_they_are_valid() {
        let ours = ["x-forwarded-for: 10.0.0.1", "x-forwarded-host: example.com", "x-forwarded-proto: https"];
        for wrong in [
            &[("x-forwarded-proto", "ftp")][..],
            &[("x-forwarded-proto", "http, https")],
            &[("x-forwarded-proto", "http"), ("x-forwarded-proto", "http")],
            &[("x-forwarded-host", "a/b")],
            &[("x-forwarded-host", "a"), ("x-forwarded-host", "b")],
            &[("x-forwarded-host", "")],
        ] {
            assert_eq!(forwarded_lines(Some(PROXY), wrong), ours, "{wrong:?}");
        }
        let kept =
            forwarded_lines(Some(PROXY), &[("x-forwarded-host", "a:1"), ("x-forwarded-proto", "http")]);
        assert_eq!(kept[1..], ["x-forwarded-host: a:1", "x-forwarded-proto: http"]);
    }

    #[test]
    fn a_chain_has_at_most_64_entries() {
        let entries = |count: usize| headers(&[("x-forwarded-for", &vec!["10.0.0.2"; count].join(","))]);
        assert!(!has_too_many(&entries(64)) && has_too_many(&entries(65)));
    }

    #[test]
    fn a_plain_request_gets_all_three_fields() {
        let expected =
            ["x-forwarded-for: 192.0.2.7", "x-forwarded-host: example.com", "x-forwarded-proto: https"];
        assert_eq!(forwarded_lines(Some(STRANGER), &[]), expected);
        assert_eq!(forwarded_lines(Some("::ffff:192.0.2.7"), &[]), expected);
    }

    #[test]
    fn fields_of_an_untrusted_client_are_replaced() {
        let forged = [
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-for", "127.0.0.2"),
            ("x-forwarded-proto", "ftp"),
            ("x-forwarded-host", "evil.example"),
            ("x-real-ip", "127.0.0.1"),
            ("forwarded", "for=127.0.0.1"),
            ("x-forwarded-port", "1"),
            ("x-forwarded-prefix", "/evil"),
            ("x-forwarded-server", "evil"),
        ];
        assert_eq!(forwarded_lines(Some(STRANGER), &forged), forwarded_lines(Some(STRANGER), &[]));
    }

    #[test]
    fn fields_of_a_trusted_proxy_are_kept() {
        let sent = [
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-for", "192.0.2.2, 10.0.0.9"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "outside.example"),
            ("x-real-ip", "192.0.2.1"),
        ];
        assert_eq!(
            forwarded_lines(Some(PROXY), &sent),
            [
                "x-forwarded-for: 192.0.2.1, 192.0.2.2, 10.0.0.9, 10.0.0.1",
                "x-forwarded-host: outside.example",
                "x-forwarded-proto: http",
                "x-real-ip: 192.0.2.1",
            ]
        );
    }

    #[test]
    fn fields_that_a_trusted_proxy_omits_are_set() {
        assert_eq!(
            forwarded_lines(Some(PROXY), &[("x-forwarded-for", "")]),
            ["x-forwarded-for: 10.0.0.1", "x-forwarded-host: example.com", "x-forwarded-proto: https"]
        );
    }

    #[test]
    fn unix_socket_client_has_no_address() {
        assert_eq!(
            forwarded_lines(None, &[("x-forwarded-for", "127.0.0.1"), ("x-real-ip", "127.0.0.1")]),
            ["x-forwarded-host: example.com", "x-forwarded-proto: https"]
        );
    }

    #[test]
    fn a_request_without_host_has_none_to_forward() {
        let downstream = Downstream { peer: None, scheme: Scheme::Http, host: None };
        assert_eq!(decide(&downstream, &HeaderMap::new(), &trusted()).host, Edit::Remove);
    }

    #[test]
    fn the_client_is_the_rightmost_untrusted_address() {
        assert_eq!(client(PROXY, &[]), PROXY);
        assert_eq!(client(PROXY, &["192.0.2.1"]), "192.0.2.1");
        assert_eq!(client(PROXY, &["198.51.100.1, 192.0.2.1, 10.1.1.1"]), "192.0.2.1");
        assert_eq!(client(PROXY, &["198.51.100.1", "192.0.2.1", "10.1.1.1"]), "192.0.2.1");
        assert_eq!(client(PROXY, &["10.3.3.3, 10.2.2.2"]), "10.3.3.3");
    }

    #[test]
    fn an_untrusted_client_cannot_choose_its_address() {
        assert_eq!(client(STRANGER, &["127.0.0.1"]), STRANGER);
        assert_eq!(client("::ffff:192.0.2.7", &["127.0.0.1"]), STRANGER);
    }

    #[test]
    fn an_entry_that_is_not_an_address_ends_the_walk() {
        assert_eq!(client(PROXY, &["192.0.2.1, unknown, 10.1.1.1"]), "10.1.1.1");
        assert_eq!(client(PROXY, &["192.0.2.1,"]), PROXY);
        assert_eq!(client(PROXY, &["192.0.2.1, \u{fc}"]), PROXY);
    }

    #[test]
    fn entries_can_have_ports_and_brackets() {
        assert_eq!(client(PROXY, &["192.0.2.1:5000"]), "192.0.2.1");
        assert_eq!(client(PROXY, &["[2001:db8::1]:5000 , fd00::1"]), "2001:db8::1");
        assert_eq!(client(PROXY, &["[2001:db8::1]"]), "2001:db8::1");
        assert_eq!(client(PROXY, &["::ffff:192.0.2.1"]), "192.0.2.1");
    }

    proptest! {
        #[test]
        fn whatever_is_sent_the_last_address_is_the_peer(
            lines in vec(vec(any::<u8>(), 0..40), 0..4),
            peer: IpAddr,
        ) {
            let values = lines.iter().filter_map(|line| HeaderValue::from_bytes(line).ok());
            let sent: HeaderMap = values.map(|value| (X_FORWARDED_FOR, value)).collect();
            let peer = Peer::new(peer);
            let downstream = Downstream { peer: Some(&peer), scheme: Scheme::Http, host: None };
            let Edit::Set(value) = decide(&downstream, &sent, &trusted()).addresses else { panic!("always set") };
            let last = value.as_bytes().rsplit(|byte| *byte == b',').next().and_then(parse_entry);
            prop_assert_eq!(last, Some(peer.ip));
            let client = client_ip(peer.ip, &sent, &trusted());
            prop_assert!(trusted().trusts(peer.ip) || client == peer.ip);
        }
    }
}
