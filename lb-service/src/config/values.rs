//! The leaf values of the sections. None can hold an invalid value, because it is rejected while it is read.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use ipnet::IpNet;
use schemars::{Schema, json_schema};
use values::address::{self, Purpose, is_host_name};
use values::duration;

use super::text::FromText;
use crate::listener::ListenAddress;
use crate::route::HostPattern;

/// The longest path that fits into a Unix socket address, in bytes.
const MAX_UNIX_PATH: usize = 107;
/// The longest duration in the configuration.
const MAX_DURATION: Duration = Duration::from_secs(24 * 3600);
/// The longest age of a cookie that browsers accept: 400 days.
const MAX_COOKIE_AGE: Duration = Duration::from_secs(9600 * 3600);

/// The name of a pool or a listener: 1 to 64 letters, digits and `.`, `_`, `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(Box<str>);

/// A length of time above zero, at most a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PositiveDuration(pub Duration);

/// A length of time, zero included, at most a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnyDuration(pub Duration);

/// The address of a backend: an IP address or the name `localhost`, and a port above 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendAddress {
    /// An address of one machine.
    Ip(SocketAddr),
    /// This port of the loopback address of the machine that the load balancer runs on.
    Localhost(u16),
}

/// An IP address and a port above 0 to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpAddress(pub SocketAddr);

/// A host name with an optional port, as in a `Host` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostHeader(pub HeaderValue);

/// A name in a certificate: a host name without wildcards, or an IP address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerName(pub String);

/// The path of a request: begins with `/`, without query and fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestPath(pub String);

/// A path that does not depend on the working directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbsolutePath(pub PathBuf);

/// The path of a Unix socket, which does not depend on the working directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketPath(pub PathBuf);

/// A path of a file that is read when the configuration is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadPath(pub PathBuf);

/// The value of a request header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderText(pub HeaderValue);

/// The name of a cookie: a token of RFC 6265.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieName(pub Arc<str>);

/// The lifetime of a cookie: whole seconds, at most 400 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CookieAge(pub Duration);

/// The name of a query parameter, as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryName(pub Arc<str>);

// === names ===

impl Name {
    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromText for Name {
    const EXPECTED: &'static str = "a name of letters, digits, `.`, `_` and `-`";

    fn from_text(text: &str) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if text.is_empty() || text.len() > 64 || !text.chars().all(allowed) {
            return Err(format!("{text:?} cannot be a name\nuse 1 to 64 letters, digits, `.`, `_` and `-`"));
        }
        Ok(Self(text.into()))
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"})
    }
}

// === durations ===

impl FromText for PositiveDuration {
    const EXPECTED: &'static str = duration::EXPECTED;
    const READS_NUMBERS: bool = true;

    fn from_text(text: &str) -> Result<Self, String> {
        duration::read(text, |duration| above_zero(text, duration).and_then(|()| up_to_a_day(text, duration)))
            .map(Self)
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "pattern": "^0*[1-9][0-9]*(ms|s|m|h)$"})
    }
}

impl FromText for AnyDuration {
    const EXPECTED: &'static str = duration::EXPECTED;
    const READS_NUMBERS: bool = true;

    fn from_text(text: &str) -> Result<Self, String> {
        duration::read(text, |duration| up_to_a_day(text, duration)).map(Self)
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"})
    }
}

impl FromText for CookieAge {
    const EXPECTED: &'static str = duration::EXPECTED;
    const READS_NUMBERS: bool = true;

    fn from_text(text: &str) -> Result<Self, String> {
        duration::read(text, |age| above_zero(text, age).and_then(|()| cookie_age(text, age))).map(Self)
    }

    fn schema() -> Schema {
        PositiveDuration::schema()
    }
}

fn above_zero(text: &str, duration: Duration) -> Result<(), String> {
    if duration.is_zero() { Err(format!("the duration must be above zero, found {text}")) } else { Ok(()) }
}

fn up_to_a_day(text: &str, duration: Duration) -> Result<Duration, String> {
    if duration > MAX_DURATION {
        return Err(format!("the duration {text} is longer than a day\nwrite 24h, which is the longest"));
    }
    Ok(duration)
}

fn cookie_age(text: &str, age: Duration) -> Result<Duration, String> {
    if age > MAX_COOKIE_AGE {
        return Err(format!("no browser keeps a cookie for longer than 400 days (9600h), found {text}"));
    }
    if age.subsec_nanos() > 0 {
        return Err(format!("the age of a cookie is counted in whole seconds, found {text}"));
    }
    Ok(age)
}

// === addresses ===

impl FromText for BackendAddress {
    const EXPECTED: &'static str = Purpose::Backend.expected();
    const READS_NUMBERS: bool = true;

    fn from_text(text: &str) -> Result<Self, String> {
        if text.starts_with("unix:") {
            return Err(format!(
                "{text:?}: backends on Unix sockets are not supported yet\nuse an IP address and a port"
            ));
        }
        if let Some(port) = localhost(text) {
            return port.map(Self::Localhost);
        }
        let address = socket_address(text, Purpose::Backend)?;
        if address.ip().is_unspecified() {
            return Err(format!(
                "no backend can be reached at {}\nname the address of one machine, such as 127.0.0.1:{} for this one",
                address.ip(),
                address.port()
            ));
        }
        // Otherwise, one backend could appear twice under two spellings.
        let canonical = SocketAddr::new(address.ip().to_canonical(), address.port());
        if address.is_ipv6() && canonical.is_ipv4() {
            return Err(format!("{text:?} is an IPv4 address in the form of IPv6\nwrite {canonical}"));
        }
        Ok(Self::Ip(address))
    }

    fn schema() -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^([0-9A-Fa-f.:%\\[\\]]+|[Ll][Oo][Cc][Aa][Ll][Hh][Oo][Ss][Tt]):[0-9]{1,5}$",
        })
    }
}

impl BackendAddress {
    /// The address to connect to, where `loopback` is the loopback address of this machine.
    pub fn resolve(self, loopback: IpAddr) -> SocketAddr {
        match self {
            Self::Ip(address) => address,
            Self::Localhost(port) => SocketAddr::new(loopback, port),
        }
    }
}

/// The port after the name `localhost`; `None` if the text does not begin with that name.
fn localhost(text: &str) -> Option<Result<u16, String>> {
    let (host, port) = text.split_once(':').unwrap_or((text, ""));
    host.eq_ignore_ascii_case("localhost").then(|| match port.parse() {
        Ok(0) => Err(format!("{text:?}: the port must be from 1 to 65535")),
        Ok(port) => Ok(port),
        Err(_) if port.is_empty() => Err(format!("{text:?} has no port\nwrite {host}:80")),
        Err(_) => Err(format!("{port:?} is not a port for {host}\nuse a port from 1 to 65535")),
    })
}

impl FromText for TcpAddress {
    const EXPECTED: &'static str = Purpose::Metrics.expected();
    const READS_NUMBERS: bool = true;

    fn from_text(text: &str) -> Result<Self, String> {
        socket_address(text, Purpose::Metrics).map(Self)
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "pattern": "^[0-9A-Fa-f.:%\\[\\]]+:[0-9]{1,5}$"})
    }
}

impl FromText for ListenAddress {
    const EXPECTED: &'static str = Purpose::Listener.expected();
    const READS_NUMBERS: bool = true;

    fn from_text(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix_path(path).map(Self::Unix);
        }
        match text.strip_prefix(':').map(str::parse) {
            Some(Ok(port @ 1..)) => Ok(Self::Tcp((Ipv4Addr::UNSPECIFIED, port).into())),
            _ => socket_address(text, Purpose::Listener).map(Self::Tcp),
        }
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "pattern": "^(unix:/\\S+|[0-9A-Fa-f.:%\\[\\]]*:[0-9]{1,5})$"})
    }
}

fn unix_path(path: &str) -> Result<PathBuf, String> {
    if !path.starts_with('/') {
        return Err(format!("the path of a Unix socket must be absolute, found {path:?}\nwrite unix:/path"));
    }
    refuse_long(path)?;
    if path.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(format!("the path of a Unix socket cannot have white space, found {path:?}"));
    }
    Ok(PathBuf::from(path))
}

fn refuse_long(socket: &str) -> Result<(), String> {
    let length = socket.len();
    if length <= MAX_UNIX_PATH {
        return Ok(());
    }
    Err(format!("the path of a Unix socket has at most {MAX_UNIX_PATH} bytes, this one has {length}"))
}

fn socket_address(text: &str, purpose: Purpose) -> Result<SocketAddr, String> {
    let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() > 0);
    address.ok_or_else(|| address::refusal(text, purpose))
}

impl FromText for IpNet {
    const EXPECTED: &'static str = "a network such as 10.0.0.0/8, or an address";

    fn from_text(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(address.into());
        }
        let Ok(network) = text.parse::<Self>() else {
            let all = ["all", "any", "*"].contains(&text);
            let hint = if all { "\nname the networks of the proxies" } else { "" };
            return Err(format!("expected {}, found {text:?}{hint}", Self::EXPECTED));
        };
        if network.addr() != network.network() {
            return Err(format!(
                "{text:?} has bits set beyond its prefix\ndid you mean {}?",
                network.trunc()
            ));
        }
        Ok(network)
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "pattern": "^[0-9A-Fa-f.:]+(/[0-9]{1,3})?$"})
    }
}

// === HTTP ===

impl FromText for HostPattern {
    const EXPECTED: &'static str = "a host such as example.com or *.example.com";

    fn from_text(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|error| {
            let hint = host_hint(text).map(|hint| format!("\n{hint}")).unwrap_or_default();
            match text.contains("://") {
                true => format!("{text:?} is a URL, and a host is asked for{hint}"),
                false => format!("{error}, found {text:?}{hint}"),
            }
        })
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "minLength": 1})
    }
}

/// Returns the hint for a host that was copied from another place, such as a URL.
fn host_hint(text: &str) -> Option<String> {
    if text == "*" {
        return Some("remove `host` to match every host".to_owned());
    }
    let host = text.split_once("://").map_or(text, |(_, rest)| rest).split('/').next().unwrap_or_default();
    let host =
        host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(host, _)| host);
    let is_right = host != text && HostPattern::parse(host).is_ok();
    let quoted = if host.starts_with(['*', '[']) { format!("\"{host}\"") } else { host.to_owned() };
    is_right.then(|| format!("write {quoted}"))
}

impl FromText for HostHeader {
    const EXPECTED: &'static str = "a host name, with a port if need be";

    fn from_text(text: &str) -> Result<Self, String> {
        let refusal = || format!("expected {}, found {text:?}", Self::EXPECTED);
        let authority = http::uri::Authority::try_from(text).map_err(|_| refusal())?;
        let value = HeaderValue::from_str(text).map_err(|_| refusal())?;
        if authority.host().is_empty() || text.contains('@') { Err(refusal()) } else { Ok(Self(value)) }
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "minLength": 1})
    }
}

impl FromText for ServerName {
    const EXPECTED: &'static str = "a host name such as example.com";

    fn from_text(text: &str) -> Result<Self, String> {
        let is_address = text.parse::<IpAddr>().is_ok();
        let empty_label = text.split('.').any(str::is_empty);
        if text.contains('*') {
            return Err(format!("{text:?}: one name is asked for, which cannot have a `*`"));
        }
        if !is_address && (!is_host_name(text) || empty_label) {
            return Err(format!("expected {}, found {text:?}", Self::EXPECTED));
        }
        Ok(Self(text.to_owned()))
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "pattern": "^[A-Za-z0-9._:-]+$"})
    }
}

impl FromText for RequestPath {
    const EXPECTED: &'static str = "a path that begins with / such as /v1";

    fn from_text(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') {
            let hint = match text.starts_with(['~', '^']) {
                true => {
                    "regular expressions are not supported: write the beginning of the path as `path_prefix`"
                        .to_owned()
                }
                false => format!("write /{}", text.trim_start_matches(['*', '.'])),
            };
            return Err(format!("expected {}, found {text:?}\n{hint}", Self::EXPECTED));
        }
        if text.contains(['?', '#']) {
            return Err(format!("{text:?}: routes look at the path only\ndrop what follows the path"));
        }
        if http::uri::PathAndQuery::try_from(text).is_err() {
            return Err(format!("{text:?} has a character that a path cannot have\npercent-encode it"));
        }
        Ok(Self(text.to_owned()))
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "pattern": "^/[^?#\\s]*$"})
    }
}

impl FromText for Method {
    const EXPECTED: &'static str = "a method in upper case such as GET or POST";

    fn from_text(text: &str) -> Result<Self, String> {
        let upper = text.to_ascii_uppercase();
        match Self::from_bytes(text.as_bytes()) {
            Ok(method) if upper == text => Ok(method),
            Ok(_) => Err(format!("methods are case-sensitive, found {text:?}\ndid you mean {upper}?")),
            Err(_) => Err(format!("expected {}, found {text:?}", Self::EXPECTED)),
        }
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "pattern": "^[^a-z\\s]+$"})
    }
}

impl FromText for HeaderName {
    const EXPECTED: &'static str = "the name of a header such as X-Canary";

    fn from_text(text: &str) -> Result<Self, String> {
        Self::from_bytes(text.as_bytes()).map_err(|_| format!("expected {}, found {text:?}", Self::EXPECTED))
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "pattern": "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"})
    }
}

impl FromText for HeaderText {
    const EXPECTED: &'static str = "a string";

    fn from_text(text: &str) -> Result<Self, String> {
        if text.trim() != text {
            return Err(format!("white space around a header's value is never sent, found {text:?}"));
        }
        let value = HeaderValue::from_str(text);
        value.map(Self).map_err(|_| format!("{text:?} has a character that a header cannot have"))
    }

    fn schema() -> Schema {
        json_schema!({"type": "string"})
    }
}

impl FromText for CookieName {
    const EXPECTED: &'static str = "the name of a cookie such as lb_session";

    fn from_text(text: &str) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if text.is_empty() || text.len() > 128 || !text.chars().all(allowed) {
            return Err(format!(
                "{text:?} cannot be the name of a cookie\nuse 1 to 128 letters, digits, `_` and `-`"
            ));
        }
        Ok(Self(text.into()))
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "pattern": "^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}$"})
    }
}

impl FromText for QueryName {
    const EXPECTED: &'static str = "the name of a query parameter such as id";

    fn from_text(text: &str) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_graphic() && !"&=#\"<>".contains(c);
        if text.is_empty() {
            return Err(format!("expected {}, found an empty text", Self::EXPECTED));
        }
        if !text.chars().all(allowed) {
            return Err(format!(
                "{text:?} has a character that the name of a query parameter cannot have\n\
                 write it as it is sent: percent-encoded"
            ));
        }
        Ok(Self(text.into()))
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "pattern": "^[^&=#\"<>\\s]+$"})
    }
}

// === paths ===

impl FromText for AbsolutePath {
    const EXPECTED: &'static str = "an absolute path such as /run/name.sock";

    fn from_text(text: &str) -> Result<Self, String> {
        let path = readable_path(text)?;
        if ["stdout", "stderr", "none", "off", "-"].contains(&text) {
            return Err(format!("{text:?} is not a path\nremove the key"));
        }
        if !path.is_absolute() {
            return Err(format!(
                "the path {text:?} is not absolute\nwrite the whole path, from `/`: a daemon runs in another directory"
            ));
        }
        if text.ends_with('/') || path.file_name().is_none() {
            return Err(format!("{text:?} is a directory, expected a file"));
        }
        Ok(Self(path.to_owned()))
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "pattern": "^/.*[^/]$"})
    }
}

impl FromText for SocketPath {
    const EXPECTED: &'static str = AbsolutePath::EXPECTED;

    fn from_text(text: &str) -> Result<Self, String> {
        let AbsolutePath(path) = AbsolutePath::from_text(text)?;
        refuse_long(text)?;
        Ok(Self(path))
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "pattern": "^/.*[^/]$", "maxLength": MAX_UNIX_PATH})
    }
}

impl FromText for ReadPath {
    const EXPECTED: &'static str = "a path";

    fn from_text(text: &str) -> Result<Self, String> {
        readable_path(text).map(|path| Self(path.to_owned()))
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "minLength": 1})
    }
}

fn readable_path(text: &str) -> Result<&Path, String> {
    if text.is_empty() || text.contains('\0') {
        return Err(format!("{text:?} is not a path"));
    }
    Ok(Path::new(text))
}

// === Display ===

impl fmt::Display for BackendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Localhost(port) => write!(f, "localhost:{port}"),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Text;

    fn refusal<T: FromText>(text: &str) -> String {
        match Text::<T>::new(text) {
            Ok(value) => panic!("{text:?} was accepted as {value}"),
            Err(message) => message,
        }
    }

    fn accepts<T: FromText>(texts: &[&str]) {
        for text in texts {
            Text::<T>::new(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        }
    }

    #[test]
    fn durations_have_a_number_and_a_unit() {
        let read = |text| AnyDuration::from_text(text).map(|duration| duration.0);
        assert_eq!(read("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(read("1m"), Ok(Duration::from_secs(60)));
        assert_eq!(read("24h"), Ok(MAX_DURATION));
        assert_eq!(read("0s"), Ok(Duration::ZERO));
        assert!(refusal::<PositiveDuration>("0ms").contains("above zero"));
        assert!(refusal::<AnyDuration>("1m30s").ends_with("write 90s"));
        assert!(refusal::<AnyDuration>("2d").contains("longer than a day"));
        for text in ["", "s", "5 s", "1d", "-5s", "1.5s", "+5s", "5S", "ms"] {
            assert!(refusal::<AnyDuration>(text).contains("expected a duration"), "{text}");
        }
        assert!(refusal::<AnyDuration>("5").contains("no unit"));
        assert!(refusal::<AnyDuration>("25h").contains("longer than a day"));
        assert!(refusal::<AnyDuration>("99999999999999999999h").contains("longer than a day"));
    }

    #[test]
    fn cookies_have_a_valid_name_and_an_age_in_whole_seconds() {
        accepts::<CookieName>(&["lb", "__Host-lb", "a.b"]);
        for text in ["", "a b", "a=b", "a;b", "ä", "a\"", "a,b"] {
            assert!(refusal::<CookieName>(text).contains("cannot be the name of a cookie"), "{text}");
        }
        accepts::<CookieAge>(&["1s", "1h", "168h", "9600h", "2000ms"]);
        assert!(refusal::<CookieAge>("0s").contains("above zero"));
        assert!(refusal::<CookieAge>("1500ms").contains("whole seconds"));
        assert!(refusal::<CookieAge>("9601h").contains("400 days"));
        assert!(refusal::<CookieAge>("99999999999999999999h").contains("400 days"));
        assert!(refusal::<CookieAge>("7d").ends_with("write 168h"));
        assert!(refusal::<CookieAge>("500d").contains("400 days"));
    }

    #[test]
    fn query_parameters_are_named_as_they_are_sent() {
        accepts::<QueryName>(&["id", "a[]", "a%20b", "a?b"]);
        assert!(refusal::<QueryName>("").contains("empty"));
        for text in ["a b", "a=b", "a&b", "ä", "#"] {
            assert!(refusal::<QueryName>(text).contains("percent-encoded"), "{text}");
        }
    }

    #[test]
    fn addresses_are_numeric_and_have_a_port() {
        accepts::<BackendAddress>(&["1.1.1.1:443", "[::1]:80", "localhost:8081", "Localhost:1"]);
        for (text, why) in [
            ("example.com:80", "names are not resolved yet"),
            ("localhost", "has no port\nwrite localhost:80"),
            ("localhost:0", "must be from 1 to 65535"),
            ("localhost:x", "is not a port for localhost"),
            ("localhost.:80", "names are not resolved yet"),
            ("http://1.1.1.1:80", "is a URL"),
            ("1.1.1.1", "has no port\nwrite 1.1.1.1:80"),
            ("::1", "has no port\nwrite [::1]:80"),
            ("1.1.1.1:0", "must be from 1 to 65535"),
            ("1.1.1.1:65536", "is not a port for 1.1.1.1"),
            ("1.1.1.1:http", "is not a port for 1.1.1.1"),
            ("0.0.0.0:80", "no backend can be reached"),
            ("[::ffff:10.0.0.1]:80", "write 10.0.0.1:80"),
            ("unix:/a", "not supported yet"),
            ("1.1.1:80", "is not an IPv4 address"),
            ("", "expected an address"),
            (":80", "has no address"),
        ] {
            assert!(
                refusal::<BackendAddress>(text).contains(why),
                "{text}: {}",
                refusal::<BackendAddress>(text)
            );
        }
    }

    #[test]
    fn listeners_may_be_unix_sockets_with_an_absolute_path() {
        accepts::<ListenAddress>(&["0.0.0.0:80", "[::]:80", ":80", "unix:/run/a.sock"]);
        assert_eq!(ListenAddress::from_text(":80"), ListenAddress::from_text("0.0.0.0:80"));
        assert!(refusal::<ListenAddress>("unix:a.sock").contains("absolute"));
        assert!(refusal::<ListenAddress>("unix:/run/a b").contains("white space"));
        assert!(refusal::<ListenAddress>(&format!("unix:/{}", "a".repeat(107))).contains("this one has 108"));
        assert!(refusal::<ListenAddress>("*:80").contains("write \":80\""));
    }

    #[test]
    fn networks_have_no_bits_beyond_their_prefix() {
        accepts::<IpNet>(&["10.0.0.0/8", "10.0.0.1", "::1", "fd00::/8"]);
        assert!(refusal::<IpNet>("10.0.0.1/8").contains("did you mean 10.0.0.0/8?"));
        assert!(refusal::<IpNet>("10.0.0.0/33").contains("expected a network"));
    }

    #[test]
    fn http_values_are_valid_in_a_request() {
        accepts::<Method>(&["GET", "PATCH", "M-SEARCH"]);
        assert!(refusal::<Method>("get").contains("did you mean GET?"));
        assert!(refusal::<Method>("").contains("expected a method"));
        accepts::<RequestPath>(&["/", "/a/b", "/a%20b"]);
        assert!(refusal::<RequestPath>("a").ends_with("write /a"));
        assert!(refusal::<RequestPath>("~ ^/a").contains("regular expressions are not supported"));
        assert!(refusal::<HostPattern>("https://a.com:80/x").ends_with("write a.com"));
        assert!(refusal::<HostPattern>("*").ends_with("remove `host` to match every host"));
        assert!(refusal::<RequestPath>("/a?b").contains("path only"));
        assert!(refusal::<RequestPath>("/a b").contains("percent-encode"));
        accepts::<HostHeader>(&["example.com", "example.com:80", "[::1]:80"]);
        assert!(refusal::<HostHeader>("a b").contains("a host name"));
        assert!(refusal::<HostHeader>("me@example.com").contains("a host name"));
        accepts::<ServerName>(&["one.one.one.one", "127.0.0.1", "a_b.example"]);
        assert!(refusal::<ServerName>("*.example.com").contains("cannot have a `*`"));
        assert!(refusal::<ServerName>("a..b").contains("a host name"));
        assert!(refusal::<HeaderName>("X Canary").contains("the name of a header"));
        assert!(refusal::<HeaderText>(" 1").contains("white space"));
    }

    #[test]
    fn paths_of_files_to_create_are_absolute() {
        accepts::<AbsolutePath>(&["/run/a.pid"]);
        assert!(refusal::<AbsolutePath>("a.pid").contains("not absolute"));
        assert!(refusal::<AbsolutePath>("/run/").contains("directory"));
        assert!(refusal::<AbsolutePath>("/").contains("directory"));
        assert!(refusal::<ReadPath>("").contains("not a path"));
    }

    #[test]
    fn names_are_short_and_plain() {
        accepts::<Name>(&["web", "web-1.eu_west"]);
        for text in ["", "a b", "a/b", "ä"] {
            assert!(refusal::<Name>(text).contains("cannot be a name"), "{text}");
        }
        assert!(refusal::<Name>(&"a".repeat(65)).contains("cannot be a name"));
    }
}
