//! Sticky sessions: a cookie that keeps a client at one backend.
//!
//! The value of the cookie is a [`SessionId`], computed from the pool's name and the backend's address. Nothing is
//! stored, so every instance with the same configuration computes the same id, before and after a restart, whatever the
//! order and weights of the backends. If a client's backend is gone, its id matches no backend, and the client gets
//! another backend and a new cookie.
//!
//! Without keys, the id is a hash. It hides the address, but a client that guesses the pool's name and an address can
//! confirm the guess and can forge a cookie for a backend of its choice. With [`SessionKeys`], the id is a message
//! authentication code, and a client can do neither.
//!
//! The ids of all backends under all keys are computed when the pool is created, so a request costs one search,
//! whatever the number of keys. The response replaces an id that was signed with a key other than the first.

use std::fmt;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use http::{HeaderValue, header};
use ring::hmac;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::address::UpstreamAddress;
use super::head::Fields;
use super::session_keys::SessionKeys;
use super::settings::StickySettings;

/// The session that the cookie of a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// The index of the backend in [`Pool::backends`](super::Pool::backends).
    pub backend: usize,
    /// Whether the cookie was signed with the first key. Any other cookie is replaced.
    pub is_current: bool,
}

/// The value of a cookie: 128 bits computed from the address of a backend and the name of its pool.
///
/// The [computation](Maker) is part of the interface: a change would move every session, and two versions side by side
/// would move them at every request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SessionId(u128);

/// The computation of ids.
enum Maker {
    /// XXH3 with 128 bits, without keys.
    Hash,
    /// The first 128 bits of HMAC-SHA-256.
    Keyed(hmac::Key),
}

/// The cookies of one pool.
#[derive(Debug)]
pub(super) struct Sticky {
    cookie: Box<str>,
    renews: bool,
    /// The ids of all backends under all keys, sorted.
    ids: Box<[(SessionId, Session)]>,
    /// The `Set-Cookie` values for plain HTTP and for TLS, by the backend's index.
    headers: Box<[[HeaderValue; 2]]>,
}

/// The seed of the hash, so that no other use of XXH3 gives the same ids.
const SEED: u64 = u64::from_be_bytes(*b"lbsticky");

/// The characters of an id.
const DIGITS: usize = 32;

/// Returns the values of all cookies with this name, in the order in which they were sent, without optional quotes.
///
/// Reads every `Cookie` field, of which HTTP/2 can have several (RFC 9113, section 8.2.3), as pairs of RFC 6265,
/// section 4.2.1. Skips white space around names and values, and text that is not a pair. Names are case-sensitive.
pub(super) fn cookies<'a, 'n, F: Fields>(
    fields: &'a F,
    name: &'n str,
) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n, F> {
    let pairs = fields.all(&header::COOKIE).flat_map(|line| line.split(|byte| *byte == b';'));
    pairs.filter_map(move |pair| value_of(pair, name))
}

/// Returns the value of a pair if it has this name.
fn value_of<'a>(pair: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut sides = pair.splitn(2, |byte| *byte == b'=');
    let (left, right) = (sides.next()?, sides.next()?);
    (left.trim_ascii() == name.as_bytes()).then(|| unquoted(right.trim_ascii()))
}

fn unquoted(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value)
}

// === impl Sticky ===

impl Sticky {
    /// Creates the cookies of a pool with these backends, in the order of their indexes.
    ///
    /// # Panics
    ///
    /// If the name of the cookie is not a token of RFC 6265.
    pub(super) fn new<'a>(
        settings: &StickySettings,
        pool_name: &str,
        addresses: impl Iterator<Item = &'a UpstreamAddress>,
    ) -> Self {
        let addresses: Vec<_> = addresses.collect();
        let (current, former) = Maker::all(settings.keys.as_ref());
        let ids_of = |maker: &Maker| -> Vec<_> {
            addresses.iter().map(|address| maker.id(pool_name, address)).collect()
        };
        let current = ids_of(&current);
        let mut ids = sessions(&current, true);
        ids.extend(former.iter().flat_map(|maker| sessions(&ids_of(maker), false)));
        ids.sort_unstable_by_key(|(id, _)| *id);
        Self {
            cookie: (*settings.cookie).into(),
            renews: settings.ttl.is_some(),
            ids: ids.into(),
            headers: current.into_iter().map(|id| set_cookie_headers(settings, id)).collect(),
        }
    }

    /// Returns the session of a request: the first cookie whose value is the id of a backend. Other values, such as the
    /// id of a backend that is gone, are ignored.
    pub(super) fn find(&self, fields: &impl Fields) -> Option<Session> {
        cookies(fields, &self.cookie).find_map(|value| self.session_of(SessionId::parse(value)?))
    }

    /// Returns the `Set-Cookie` value that keeps a client at the backend with this index. `secure`: the request came
    /// over TLS.
    ///
    /// # Panics
    ///
    /// If there is no backend with this index.
    #[expect(
        clippy::indexing_slicing,
        reason = "a documented panic: the index is one of a backend of this pool"
    )]
    pub(super) fn set_cookie(&self, index: usize, secure: bool) -> HeaderValue {
        self.headers[index][usize::from(secure)].clone()
    }

    /// Returns whether the cookie is sent with every response, so that its lifetime begins with the last request.
    pub(super) fn renews(&self) -> bool {
        self.renews
    }

    fn session_of(&self, id: SessionId) -> Option<Session> {
        let place = self.ids.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        self.ids.get(place).map(|(_, session)| *session)
    }
}

/// Returns the ids in the order of the backends, with their sessions.
fn sessions(ids: &[SessionId], is_current: bool) -> Vec<(SessionId, Session)> {
    ids.iter().copied().zip((0..).map(|backend| Session { backend, is_current })).collect()
}

#[expect(
    clippy::expect_used,
    reason = "a documented panic: the name is checked when the configuration is read"
)]
fn set_cookie_headers(settings: &StickySettings, id: SessionId) -> [HeaderValue; 2] {
    let age = settings.ttl.map(|ttl| format!("; Max-Age={}", seconds(ttl))).unwrap_or_default();
    ["", "; Secure"].map(|secure| {
        let cookie = format!("{}={id}; Path=/; HttpOnly; SameSite=Lax{age}{secure}", settings.cookie);
        HeaderValue::try_from(cookie).expect("a token and what is written here fit into a header")
    })
}

/// Rounds up to whole seconds, because `Max-Age=0` would delete the cookie.
fn seconds(ttl: Duration) -> u64 {
    ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0)).max(1)
}

// === impl Maker ===

impl Maker {
    /// Returns the maker of new cookies first, then the makers whose cookies are also accepted.
    fn all(keys: Option<&SessionKeys>) -> (Self, Vec<Self>) {
        let mut keyed = keys.into_iter().flat_map(SessionKeys::signers).map(Self::Keyed);
        let current = keyed.next().unwrap_or(Self::Hash);
        (current, keyed.collect())
    }

    /// Returns the id of a backend of a pool.
    fn id(&self, pool_name: &str, address: &UpstreamAddress) -> SessionId {
        let mut input = address_bytes(address);
        input.extend_from_slice(pool_name.as_bytes());
        SessionId(match self {
            Self::Hash => xxh3_128_with_seed(&input, SEED),
            Self::Keyed(key) => first_128_bits(hmac::sign(key, &input).as_ref()),
        })
    }
}

fn first_128_bits(bytes: &[u8]) -> u128 {
    bytes.iter().take(16).fold(0, |number, byte| number << 8 | u128::from(*byte))
}

// === impl SessionId ===

impl SessionId {
    /// Parses exactly the text that [`Display`](fmt::Display) writes.
    fn parse(value: &[u8]) -> Option<Self> {
        if value.len() != DIGITS {
            return None;
        }
        value.iter().try_fold(0, |number, digit| Some(number << 4 | hex(*digit)?)).map(Self)
    }
}

/// Encodes an address so that the end of its bytes is clear, because the name of the pool follows.
fn address_bytes(address: &UpstreamAddress) -> Vec<u8> {
    match address {
        UpstreamAddress::Tcp(address) => fixed_bytes(*address).to_vec(),
        // The first byte differs from those of TCP addresses, and no path contains a zero byte.
        UpstreamAddress::Unix(path) => [&[1], path.as_path().as_os_str().as_bytes(), &[0]].concat(),
    }
}

/// Encodes the family, the address, the port and the scope in a fixed length, so that no two backends have the same
/// encoding.
fn fixed_bytes(address: SocketAddr) -> [u8; 23] {
    let (family, octets, scope) = match address {
        SocketAddr::V4(v4) => (4, v4.ip().to_ipv6_mapped().octets(), 0),
        SocketAddr::V6(v6) => (6, v6.ip().octets(), v6.scope_id()),
    };
    let mut bytes = [0; 23];
    bytes[0] = family;
    bytes[1..17].copy_from_slice(&octets);
    bytes[17..19].copy_from_slice(&address.port().to_be_bytes());
    bytes[19..].copy_from_slice(&scope.to_be_bytes());
    bytes
}

fn hex(digit: u8) -> Option<u128> {
    match digit {
        b'0'..=b'9' => Some(u128::from(digit - b'0')),
        b'a'..=b'f' => Some(u128::from(digit - b'a') + 10),
        _ => None,
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderMap;
    use proptest::collection::vec;
    use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest};
    use std::collections::HashSet;

    const HOUR: Duration = Duration::from_secs(3600);
    const ADDRESSES: [&str; 3] = ["10.0.0.1:8080", "10.0.0.2:8080", "[2001:db8::1]:443"];

    fn addresses() -> Vec<UpstreamAddress> {
        ADDRESSES.iter().map(|address| address.parse().unwrap()).collect()
    }

    fn sticky(ttl: Option<Duration>) -> Sticky {
        Sticky::new(&StickySettings { ttl, ..StickySettings::new("lb_session") }, "web", addresses().iter())
    }

    /// With these bytes, sixteen times each, as keys.
    fn keyed(keys: &[u8]) -> Sticky {
        let text: String = keys.iter().map(|key| format!("{key:02x}").repeat(16) + "\n").collect();
        let keys = Some(SessionKeys::parse(text.as_bytes()).unwrap());
        Sticky::new(&StickySettings { keys, ..StickySettings::new("lb_session") }, "web", addresses().iter())
    }

    fn id(index: usize) -> String {
        Maker::Hash.id("web", &addresses()[index]).to_string()
    }

    /// The cookie as a client sends it.
    fn pair(sticky: &Sticky, index: usize) -> String {
        let set = sticky.set_cookie(index, false);
        set.to_str().unwrap().split(';').next().unwrap().to_owned()
    }

    fn headers(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (header::COOKIE, HeaderValue::from_str(line).unwrap())).collect()
    }

    fn found(lines: &[&str]) -> Option<usize> {
        sticky(None).find(&headers(lines)).map(|session| session.backend)
    }

    #[test]
    fn ids_never_change() {
        let ids = [
            "a78515a41af6c72acdf07d53ac74a96a",
            "541fd7302e85e791dec031c85f2c2b94",
            "583e52387e81e5b91e8d6ff2455bb93f",
        ];
        assert_eq!([0, 1, 2].map(id), ids, "a change moves every session of every client");
        // By Python's hmac: the family, the address as IPv6, the port, the scope, "web".
        let keyed_ids = [
            "f42780ea92939f0a384c50214ed31d12",
            "6a2902bd58e249d03852f6fc56f491b4",
            "4ee48fbf2f34682463612ca3ff2f86c4",
        ];
        let keyed = keyed(&[7]);
        assert_eq!(
            [0, 1, 2].map(|index| pair(&keyed, index)),
            keyed_ids.map(|id| format!("lb_session={id}"))
        );
    }

    #[test]
    fn the_first_key_signs_and_all_verify() {
        let (old, both, new) = (keyed(&[1]), keyed(&[2, 1]), keyed(&[2]));
        for index in 0..ADDRESSES.len() {
            let (before, after) = (pair(&old, index), pair(&both, index));
            let found = |sticky: &Sticky, pair: &str| {
                sticky.find(&headers(&[pair])).map(|session| (session.backend, session.is_current))
            };
            assert_eq!(after, pair(&new, index));
            assert_eq!(found(&both, &before), Some((index, false)));
            assert_eq!(found(&both, &after), Some((index, true)));
            assert_eq!((found(&old, &after), found(&new, &before)), (None, None));
        }
    }

    #[test]
    fn a_hash_is_rejected_when_there_are_keys() {
        let cookie = pair(&sticky(None), 0);
        assert_eq!(keyed(&[1]).find(&headers(&[&cookie])), None, "a client can make it up");
    }

    #[test]
    fn every_pool_and_every_address_has_its_own_id() {
        let others = [
            "10.0.0.1:8081",
            "[::ffff:10.0.0.1]:8080",
            "[fe80::1%1]:80",
            "[fe80::1%2]:80",
            "unix:/run/a",
            "unix:/run/aw",
        ];
        let all: Vec<UpstreamAddress> =
            addresses().into_iter().chain(others.iter().map(|other| other.parse().unwrap())).collect();
        let pools = ["web", "api", "", "w"];
        let ids: HashSet<_> =
            pools.iter().flat_map(|pool| all.iter().map(|address| Maker::Hash.id(pool, address))).collect();
        assert_eq!(ids.len(), pools.len() * all.len());
    }

    #[test]
    fn no_address_can_be_read_in_a_cookie() {
        for (index, address) in addresses().iter().filter_map(UpstreamAddress::tcp).enumerate() {
            let cookie = sticky(Some(HOUR)).set_cookie(index, true);
            let cookie = cookie.to_str().unwrap();
            let hex: String = fixed_bytes(address)[1..17].iter().map(|byte| format!("{byte:02x}")).collect();
            let (ip, port) = (address.ip().to_string(), format!("{:04x}", address.port()));
            for text in [ip, address.port().to_string(), port, hex[24..].to_owned(), "web".into()] {
                assert!(!cookie.contains(&text), "{text} in {cookie}");
            }
        }
    }

    #[test]
    fn a_cookie_is_for_the_session_or_for_its_ttl_and_secure_on_tls() {
        let id = id(1);
        let written = |ttl, secure| sticky(ttl).set_cookie(1, secure).to_str().unwrap().to_owned();
        let session = format!("lb_session={id}; Path=/; HttpOnly; SameSite=Lax");
        assert_eq!(written(None, false), session);
        assert_eq!(written(None, true), format!("{session}; Secure"));
        assert_eq!(written(Some(HOUR), false), format!("{session}; Max-Age=3600"));
        assert_eq!(written(Some(HOUR), true), format!("{session}; Max-Age=3600; Secure"));
        assert_eq!(written(Some(Duration::from_millis(1500)), false), format!("{session}; Max-Age=2"));
        assert_eq!(written(Some(Duration::ZERO), false), format!("{session}; Max-Age=1"));
    }

    #[test]
    fn only_a_cookie_with_a_ttl_is_renewed() {
        assert!(sticky(Some(HOUR)).renews());
        assert!(!sticky(None).renews());
    }

    #[test]
    fn the_cookie_that_was_set_leads_back() {
        for index in 0..ADDRESSES.len() {
            assert_eq!(found(&[&pair(&sticky(Some(HOUR)), index)]), Some(index));
        }
    }

    #[test]
    fn the_first_known_id_counts_at_any_position() {
        let (one, two) = (format!("lb_session={}", id(1)), format!("lb_session={}", id(2)));
        assert_eq!(found(&[&format!("a=b; {one}; {two}")]), Some(1));
        assert_eq!(found(&["a=b", &two, &one]), Some(2));
        let unknown = format!("lb_session={}", "0".repeat(DIGITS));
        assert_eq!(found(&["lb_session=; lb_session=x; lb_session", &unknown, &one]), Some(1));
        assert_eq!(found(&[&format!("lb_session = \"{}\" ;", id(0))]), Some(0));
    }

    #[test]
    fn a_value_that_is_not_an_id_is_ignored() {
        let id = id(1);
        let upper = id.to_uppercase();
        assert_ne!(upper, id);
        for value in [
            upper.as_str(),
            &id[1..],
            &format!("{id}0"),
            &format!("0{id}"),
            &format!("\"{id}"),
            &format!("+{}", &id[1..]),
        ] {
            assert_eq!(found(&[&format!("lb_session={value}")]), None, "{value}");
        }
        for line in [format!("LB_SESSION={id}"), format!("xlb_session={id}"), format!("lb_session{id}"), id] {
            assert_eq!(found(&[&line]), None, "{line}");
        }
        assert_eq!(found(&[]), None);
    }

    #[test]
    fn a_backend_that_is_gone_is_not_found() {
        let fewer = Sticky::new(&StickySettings::new("lb_session"), "web", addresses().iter().skip(1));
        let cookie = |index| headers(&[&format!("lb_session={}", id(index))]);
        assert_eq!(fewer.find(&cookie(0)), None);
        let other = Session { backend: 1, is_current: true };
        assert_eq!(fewer.find(&cookie(2)), Some(other), "the others keep their ids");
    }

    #[test]
    fn cookies_of_one_name_come_in_order_without_quotes() {
        let headers = headers(&["a=1;b=2 ;  a = \"3\"; a", "a=;a=x=y; a=\"; =; ;;"]);
        let values: Vec<_> =
            cookies(&headers, "a").map(|value| std::str::from_utf8(value).unwrap()).collect();
        assert_eq!(values, ["1", "3", "", "x=y", "\""]);
    }

    /// A pair of a `Cookie` header, and the backend that it names.
    fn any_pair() -> impl Strategy<Value = (String, Option<usize>)> {
        let known = (0..ADDRESSES.len(), "[ \t]{0,2}", any::<bool>()).prop_map(|(index, space, quoted)| {
            let quote = if quoted { "\"" } else { "" };
            (format!("{space}lb_session={quote}{}{quote}{space}", id(index)), Some(index))
        });
        prop_oneof![
            2 => known,
            2 => "lb_session=[0-9a-f]{31,33}".prop_map(|pair| (pair, None)),
            2 => "[a-z_= \"]{0,12}".prop_map(|pair| (pair, None)),
            1 => Just((String::new(), None)),
        ]
    }

    proptest! {
        #[test]
        fn the_first_known_id_of_all_lines_is_found(lines in vec(vec(any_pair(), 0..5), 0..4)) {
            let expected = lines.iter().flatten().find_map(|(_, index)| *index);
            let joined = |line: &Vec<(String, Option<usize>)>| {
                line.iter().map(|(pair, _)| pair.as_str()).collect::<Vec<_>>().join(";")
            };
            let lines: Vec<_> = lines.iter().map(joined).collect();
            let lines: Vec<_> = lines.iter().map(String::as_str).collect();
            prop_assert_eq!(found(&lines), expected);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(lines in vec(vec(any::<u8>(), 0..80), 0..4)) {
            let lines = lines.iter().filter_map(|line| HeaderValue::from_bytes(line).ok());
            let headers: HeaderMap = lines.map(|line| (header::COOKIE, line)).collect();
            prop_assert_eq!(sticky(None).find(&headers), None);
        }

        #[test]
        fn an_id_is_read_as_it_is_written(number in any::<u128>()) {
            let id = SessionId(number);
            prop_assert_eq!(SessionId::parse(id.to_string().as_bytes()), Some(id));
        }
    }
}
