//! What backends are told about the client (`X-Forwarded-*`), and what a client's own such headers are worth.
//!
//! Anyone can send `X-Forwarded-For`. What a client says in it, and in its relatives, is therefore believed
//! only when the connection comes from one of the [`TrustedProxies`]:
//!
//! | header | from a trusted proxy | from anyone else |
//! |---|---|---|
//! | `X-Forwarded-For` | kept, the peer appended | replaced by the peer |
//! | `X-Forwarded-Proto`, `X-Forwarded-Host` | kept; ours if absent | replaced by ours |
//! | `Forwarded`, `X-Real-IP`, `X-Forwarded-Port`, `X-Forwarded-Prefix`, `X-Forwarded-Server` | kept | removed |
//!
//! The last row is never made here; a backend that reads one of those must not be misled by a client.
//!
//! A client on a Unix socket has no address: it is not trusted, and `X-Forwarded-For` is left out.
//!
//! [`decide`] must see the request after its hop-by-hop headers are gone, otherwise `Connection:
//! X-Forwarded-For` would remove what is set here.

use std::net::{IpAddr, SocketAddr};

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};
use ipnet::IpNet;
use pingora::http::RequestHeader;

/// The chain of addresses a request came through.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `http` or `https`, as the client spoke.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// The host the client asked for.
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Relatives that are not made here and are removed unless the peer is trusted.
const RELATIVES: [&str; 5] =
    ["forwarded", "x-real-ip", "x-forwarded-port", "x-forwarded-prefix", "x-forwarded-server"];

/// The networks whose word about the client is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

/// The other end of a connection. Made once for all its requests, since writing an address down costs more than copying
/// what was written.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address; that of an IPv4 client on an IPv6 socket is an IPv4 address.
    pub ip: IpAddr,
    /// The same for a header.
    value: HeaderValue,
}

/// What the connection itself tells about the client.
#[derive(Clone, Copy, Debug)]
pub struct Downstream<'a> {
    /// Who it is; absent on a Unix socket.
    pub peer: Option<&'a Peer>,
    /// How it speaks.
    pub scheme: Scheme,
    /// The host it asked for, as it was sent.
    pub host: Option<&'a HeaderValue>,
}

/// With or without TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Plain.
    Http,
    /// TLS.
    Https,
}

/// What happens to one header of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// As the client sent it.
    Keep,
    /// This value, instead of all that the client sent.
    Set(HeaderValue),
    /// Not sent to the backend.
    Remove,
}

/// What the request to the backend says about the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// `X-Forwarded-For`.
    pub addresses: Edit,
    /// `X-Forwarded-Proto`.
    pub proto: Edit,
    /// `X-Forwarded-Host`.
    pub host: Edit,
    /// Whether `Forwarded`, `X-Real-IP` and the other relatives stay.
    pub keep_relatives: bool,
}

/// What the backend is told, given what the client sent.
pub fn decide(downstream: &Downstream<'_>, sent: &HeaderMap, trusted: &TrustedProxies) -> Forwarded {
    let own_proto = || Edit::Set(HeaderValue::from_static(downstream.scheme.as_str()));
    let own_host = || downstream.host.cloned().map_or(Edit::Remove, Edit::Set);
    let is_trusted = downstream.peer.is_some_and(|peer| trusted.trusts(peer.ip));
    let keep = |name: &HeaderName| is_trusted && sent.contains_key(name);
    Forwarded {
        addresses: match downstream.peer {
            Some(peer) if keep(&X_FORWARDED_FOR) => Edit::Set(appended(sent, peer)),
            Some(peer) => Edit::Set(peer.value.clone()),
            None => Edit::Remove,
        },
        proto: if keep(&X_FORWARDED_PROTO) { Edit::Keep } else { own_proto() },
        host: if keep(&X_FORWARDED_HOST) { Edit::Keep } else { own_host() },
        keep_relatives: is_trusted,
    }
}

/// Whether the client speaks TLS: to us, or to a trusted proxy that says so.
pub fn is_https(downstream: &Downstream<'_>, sent: &HeaderMap, trusted: &TrustedProxies) -> bool {
    let is_trusted = || downstream.peer.is_some_and(|peer| trusted.trusts(peer.ip));
    match sent.get(X_FORWARDED_PROTO) {
        Some(proto) if is_trusted() => proto.as_bytes().eq_ignore_ascii_case(b"https"),
        _ => downstream.scheme == Scheme::Https,
    }
}

/// The client's address as far as trusted proxies tell: the rightmost address in `X-Forwarded-For` that is
/// not one of theirs (nginx: `real_ip_recursive on`).
///
/// `sent` are the client's headers, whose `X-Forwarded-For` lines count as one. The walk ends at an entry
/// that is not an address: nothing to the left of it was written by someone trusted. If all are trusted it is
/// the leftmost one.
pub fn client_ip(peer: IpAddr, sent: &HeaderMap, trusted: &TrustedProxies) -> IpAddr {
    let mut client = peer.to_canonical();
    let entries =
        sent.get_all(X_FORWARDED_FOR).iter().rev().flat_map(|line| line.as_bytes().rsplit(|b| *b == b','));
    for entry in entries {
        if !trusted.trusts(client) {
            break;
        }
        let Some(address) = parse_entry(entry) else { break };
        client = address;
    }
    client
}

/// Those of the [`RELATIVES`] that are there: one look at each header is cheaper than five look-ups.
fn relatives(headers: &HeaderMap) -> Vec<HeaderName> {
    headers.keys().filter(|name| RELATIVES.contains(&name.as_str())).cloned().collect()
}

/// An address, with or without a port; an IPv6 address with a port is in brackets.
fn parse_entry(entry: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(entry).ok()?.trim();
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    text.parse()
        .ok()
        .or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
        .or_else(in_brackets)
        .map(|ip: IpAddr| ip.to_canonical())
}

/// All that the client sent, as one line, and `peer`.
fn appended(sent: &HeaderMap, peer: &Peer) -> HeaderValue {
    let mut line = Vec::with_capacity(64);
    for value in sent.get_all(X_FORWARDED_FOR).iter().filter(|value| !value.is_empty()) {
        line.extend_from_slice(value.as_bytes());
        line.extend_from_slice(b", ");
    }
    line.extend_from_slice(peer.value.as_bytes());
    HeaderValue::try_from(line).expect("made of header values and an address")
}

// === impl Peer ===

impl Peer {
    /// The one at this address.
    pub fn new(address: IpAddr) -> Self {
        let ip = address.to_canonical();
        Self { ip, value: HeaderValue::try_from(ip.to_string()).expect("an address is ASCII") }
    }
}

// === impl TrustedProxies ===

impl TrustedProxies {
    /// These networks, and no other.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Whether `address` is in one of the networks. An IPv4 address seen on an IPv6 socket is an IPv4
    /// address.
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

// === impl Scheme ===

impl Scheme {
    /// As `X-Forwarded-Proto` says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

// === impl Forwarded ===

impl Forwarded {
    /// Carries the decision out on the request to the backend.
    ///
    /// # Errors
    ///
    /// Pingora's, for a header that cannot be set; there is none among these.
    pub fn apply(self, request: &mut RequestHeader) -> pingora::Result<()> {
        self.addresses.apply(X_FORWARDED_FOR, request)?;
        self.proto.apply(X_FORWARDED_PROTO, request)?;
        self.host.apply(X_FORWARDED_HOST, request)?;
        if !self.keep_relatives {
            for name in relatives(&request.headers) {
                request.remove_header(&name);
            }
        }
        Ok(())
    }
}

impl Edit {
    fn apply(self, name: HeaderName, request: &mut RequestHeader) -> pingora::Result<()> {
        match self {
            Self::Keep => Ok(()),
            Self::Set(value) => request.insert_header(name, value),
            Self::Remove => {
                request.remove_header(&name);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    fn request(lines: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        for (name, value) in lines {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    /// The forwarding headers that a backend gets, in the order of their names.
    fn told(peer: Option<&str>, lines: &[(&'static str, &str)]) -> Vec<String> {
        let host = HeaderValue::from_static("example.com");
        let peer = peer.map(|ip| Peer::new(ip.parse().unwrap()));
        let downstream = Downstream { peer: peer.as_ref(), scheme: Scheme::Https, host: Some(&host) };
        let mut request = request(lines);
        decide(&downstream, &request.headers, &trusted()).apply(&mut request).unwrap();
        let mut told: Vec<String> = request
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        told.sort();
        told
    }

    fn client(peer: &str, lines: &[&str]) -> String {
        let lines: Vec<_> = lines.iter().map(|value| ("x-forwarded-for", *value)).collect();
        client_ip(peer.parse().unwrap(), &headers(&lines), &trusted()).to_string()
    }

    #[test]
    fn plain_request_gets_all_three() {
        let expected =
            ["x-forwarded-for: 192.0.2.7", "x-forwarded-host: example.com", "x-forwarded-proto: https"];
        assert_eq!(told(Some(STRANGER), &[]), expected);
        assert_eq!(told(Some("::ffff:192.0.2.7"), &[]), expected);
    }

    #[test]
    fn a_stranger_is_not_believed() {
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
        assert_eq!(told(Some(STRANGER), &forged), told(Some(STRANGER), &[]));
    }

    #[test]
    fn a_trusted_proxy_is_believed() {
        let sent = [
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-for", "192.0.2.2, 10.0.0.9"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "outside.example"),
            ("x-real-ip", "192.0.2.1"),
        ];
        assert_eq!(
            told(Some(PROXY), &sent),
            [
                "x-forwarded-for: 192.0.2.1, 192.0.2.2, 10.0.0.9, 10.0.0.1",
                "x-forwarded-host: outside.example",
                "x-forwarded-proto: http",
                "x-real-ip: 192.0.2.1",
            ]
        );
    }

    #[test]
    fn what_a_trusted_proxy_leaves_out_is_ours() {
        assert_eq!(
            told(Some(PROXY), &[("x-forwarded-for", "")]),
            ["x-forwarded-for: 10.0.0.1", "x-forwarded-host: example.com", "x-forwarded-proto: https"]
        );
    }

    #[test]
    fn unix_socket_client_has_no_address() {
        assert_eq!(
            told(None, &[("x-forwarded-for", "127.0.0.1"), ("x-real-ip", "127.0.0.1")]),
            ["x-forwarded-host: example.com", "x-forwarded-proto: https"]
        );
    }

    #[test]
    fn a_request_without_host_has_none_to_forward() {
        let downstream = Downstream { peer: None, scheme: Scheme::Http, host: None };
        assert_eq!(decide(&downstream, &HeaderMap::new(), &trusted()).host, Edit::Remove);
    }

    #[test]
    fn client_is_the_rightmost_that_is_not_trusted() {
        assert_eq!(client(PROXY, &[]), PROXY);
        assert_eq!(client(PROXY, &["192.0.2.1"]), "192.0.2.1");
        assert_eq!(client(PROXY, &["198.51.100.1, 192.0.2.1, 10.1.1.1"]), "192.0.2.1");
        assert_eq!(client(PROXY, &["198.51.100.1", "192.0.2.1", "10.1.1.1"]), "192.0.2.1");
        assert_eq!(client(PROXY, &["10.3.3.3, 10.2.2.2"]), "10.3.3.3");
    }

    #[test]
    fn a_stranger_does_not_choose_its_address() {
        assert_eq!(client(STRANGER, &["127.0.0.1"]), STRANGER);
        assert_eq!(client("::ffff:192.0.2.7", &["127.0.0.1"]), STRANGER);
    }

    #[test]
    fn garbage_ends_the_walk() {
        assert_eq!(client(PROXY, &["192.0.2.1, unknown, 10.1.1.1"]), "10.1.1.1");
        assert_eq!(client(PROXY, &["192.0.2.1,"]), PROXY);
        assert_eq!(client(PROXY, &["192.0.2.1, \u{fc}"]), PROXY);
    }

    #[test]
    fn entries_with_ports_and_brackets() {
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
