//! The scalars that only the sections of this crate have. None can hold an invalid value, because it is rejected while
//! it is read.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use schemars::Schema;
use values::address::{self, Purpose, is_host_name};
use values::{AnyDuration, PositiveDuration, Rejection, Scalar, Text, TextScalar, path};

use crate::listener::ListenAddress;
use crate::route::HostPattern;
use crate::upgrade;

/// The longest age of a cookie that browsers accept: 400 days, in hours.
const MAX_COOKIE_AGE: u64 = 9600;

/// A name in a certificate: a host name without wildcards, or an IP address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerName(pub String);

/// The name of a cookie: a token of RFC 6265.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieName(pub Arc<str>);

/// The lifetime of a cookie: whole seconds, at most 400 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CookieAge(PositiveDuration<MAX_COOKIE_AGE>);

/// The name of a query parameter, as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryName(pub Arc<str>);

/// A protocol that a connection can switch to, as in the field `Upgrade`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpgradeProtocol(pub Arc<str>);

/// Returns the limit; `None` if it is 0, which means that there is none.
pub(super) fn unless_zero(limit: &Text<AnyDuration>) -> Option<Duration> {
    Some(limit.duration()).filter(|limit| !limit.is_zero())
}

// === upgrades ===

impl TextScalar for UpgradeProtocol {
    const EXPECTED: &'static str = "a protocol such as websocket";
    const PATTERN: &'static str = "^[!#$%&'*+.^_`|~0-9A-Za-z-]+(/[!#$%&'*+.^_`|~0-9A-Za-z-]+)?$";

    fn parse(text: &str) -> Result<Self, Rejection> {
        let is_token = |part: &str| !part.is_empty() && part.bytes().all(is_token_byte);
        if !text.splitn(2, '/').all(is_token) {
            return Err(Self::unexpected(text).into());
        }
        if !upgrade::may_pass(text.as_bytes()) {
            return Err(format!("{text} cannot be passed on: later requests would bypass the routes").into());
        }
        Ok(Self(text.into()))
    }
}

/// Returns whether the byte can be part of a token (RFC 9110, section 5.6.2).
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

// === listeners ===

impl TextScalar for ListenAddress {
    const READS_NUMBERS: bool = true;
    const EXPECTED: &'static str = Purpose::Listener.expected();
    const PATTERN: &'static str = "^(unix:/\\S+|[0-9A-Fa-f.:%\\[\\]]*:[0-9]{1,5})$";

    fn parse(text: &str) -> Result<Self, Rejection> {
        if let Some(path) = text.strip_prefix("unix:") {
            return path::unix_address(path).map(|path| Self::Unix(path.as_path().to_owned()));
        }
        match text.strip_prefix(':').map(str::parse) {
            Some(Ok(port @ 1..)) => Ok(Self::Tcp((Ipv4Addr::UNSPECIFIED, port).into())),
            _ => address::parse(text, Purpose::Listener).map(Self::Tcp),
        }
    }
}

// === hosts ===

impl TextScalar for HostPattern {
    const EXPECTED: &'static str = "a host such as example.com or *.example.com";

    fn parse(text: &str) -> Result<Self, Rejection> {
        Self::parse(text).map_err(|error| {
            let hint = host_hint(text).map(|hint| format!("\n{hint}")).unwrap_or_default();
            let message = match text.contains("://") {
                true => format!("{text:?} is a URL, but a host is expected{hint}"),
                false => format!("{error}, found {text:?}{hint}"),
            };
            message.into()
        })
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

impl TextScalar for ServerName {
    const EXPECTED: &'static str = "a host name such as example.com";
    const PATTERN: &'static str = "^[A-Za-z0-9._:-]+$";

    fn parse(text: &str) -> Result<Self, Rejection> {
        let is_address = text.parse::<IpAddr>().is_ok();
        let empty_label = text.split('.').any(str::is_empty);
        if text.contains('*') {
            return Err(format!("expected a single host name, found {text:?} with a `*`").into());
        }
        if !is_address && (!is_host_name(text) || empty_label) {
            return Err(Self::unexpected(text).into());
        }
        Ok(Self(text.to_owned()))
    }
}

// === cookies and queries ===

impl CookieAge {
    /// Returns the lifetime.
    pub fn get(self) -> Duration {
        self.0.get()
    }
}

impl Scalar for CookieAge {
    const READS_NUMBERS: bool = true;

    fn expected() -> Cow<'static, str> {
        PositiveDuration::<MAX_COOKIE_AGE>::expected()
    }

    fn from_text(text: &str) -> Result<Self, Rejection> {
        let age = PositiveDuration::from_text(text)?;
        if age.get().subsec_nanos() > 0 {
            let right = age.get().as_secs() + 1;
            return Err(format!(
                "the age of a cookie is counted in whole seconds, found {text}\nwrite {right}s"
            )
            .into());
        }
        Ok(Self(age))
    }

    fn from_bool(value: bool) -> Result<Self, Rejection> {
        PositiveDuration::from_bool(value).map(Self)
    }

    fn schema() -> Schema {
        PositiveDuration::<MAX_COOKIE_AGE>::schema()
    }
}

impl TextScalar for CookieName {
    const EXPECTED: &'static str = "the name of a cookie such as lb_session";
    const PATTERN: &'static str = "^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}$";

    fn parse(text: &str) -> Result<Self, Rejection> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if text.is_empty() || text.len() > 128 || !text.chars().all(allowed) {
            let hint = "use 1 to 128 letters, digits, `_` and `-`";
            return Err(format!("{text:?} cannot be the name of a cookie\n{hint}").into());
        }
        Ok(Self(text.into()))
    }
}

impl TextScalar for QueryName {
    const EXPECTED: &'static str = "the name of a query parameter such as id";
    const PATTERN: &'static str = "^[^&=#\"<>\\s]+$";

    fn parse(text: &str) -> Result<Self, Rejection> {
        let allowed = |c: char| c.is_ascii_graphic() && !"&=#\"<>".contains(c);
        if text.is_empty() {
            return Err(format!("expected {}, found an empty text", Self::expected()).into());
        }
        if !text.chars().all(allowed) {
            let message = "has a character that the name of a query parameter cannot have";
            return Err(format!("{text:?} {message}\nwrite it as it is sent: percent-encoded").into());
        }
        Ok(Self(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn rejection<T: Scalar>(text: &str) -> String {
        match T::from_text(text) {
            Ok(_) => panic!("{text:?} was accepted"),
            Err(rejection) => rejection.to_string(),
        }
    }

    #[track_caller]
    fn accepts<T: Scalar>(texts: &[&str]) {
        for text in texts {
            assert!(T::from_text(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn cookies_have_a_valid_name_and_an_age_in_whole_seconds() {
        accepts::<CookieName>(&["lb", "__Host-lb", "a.b"]);
        for text in ["", "a b", "a=b", "a;b", "ä", "a\"", "a,b"] {
            assert!(rejection::<CookieName>(text).contains("cannot be the name of a cookie"), "{text}");
        }
        accepts::<CookieAge>(&["1s", "1h", "168h", "9600h", "2000ms"]);
        assert!(rejection::<CookieAge>("0s").contains("above zero"));
        assert!(rejection::<CookieAge>("1500ms").contains("whole seconds"));
        assert!(rejection::<CookieAge>("9601h").contains("400 days\nwrite 9600h"));
        assert!(rejection::<CookieAge>("99999999999999999999h").contains("400 days"));
        assert!(rejection::<CookieAge>("7d").ends_with("write 168h"));
        assert!(rejection::<CookieAge>("500d").contains("400 days"));
    }

    #[test]
    fn query_parameters_are_named_as_they_are_sent() {
        accepts::<QueryName>(&["id", "a[]", "a%20b", "a?b"]);
        assert!(rejection::<QueryName>("").contains("empty"));
        for text in ["a b", "a=b", "a&b", "ä", "#"] {
            assert!(rejection::<QueryName>(text).contains("percent-encoded"), "{text}");
        }
    }

    #[test]
    fn listeners_can_be_unix_sockets_with_an_absolute_path() {
        accepts::<ListenAddress>(&["0.0.0.0:80", "[::]:80", ":80", "unix:/run/a.sock"]);
        assert_eq!(ListenAddress::from_text(":80"), ListenAddress::from_text("0.0.0.0:80"));
        assert!(rejection::<ListenAddress>("unix:a.sock").contains("absolute"));
        assert!(rejection::<ListenAddress>("unix:/run/a b").contains("white space"));
        assert!(
            rejection::<ListenAddress>(&format!("unix:/{}", "a".repeat(107))).contains("this one has 108")
        );
        assert!(rejection::<ListenAddress>("*:80").contains("write \":80\""));
    }

    #[test]
    fn hosts_have_neither_scheme_nor_port() {
        assert!(rejection::<HostPattern>("https://a.com:80/x").ends_with("write a.com"));
        assert!(rejection::<HostPattern>("*").ends_with("remove `host` to match every host"));
        assert!(rejection::<HostPattern>("a.com:80").contains("expected a host without a port, because"));
    }

    #[test]
    fn names_in_certificates_have_no_wildcard() {
        accepts::<ServerName>(&["one.one.one.one", "127.0.0.1", "a_b.example"]);
        assert!(rejection::<ServerName>("*.example.com").contains("with a `*`"));
        assert!(rejection::<ServerName>("a..b").contains("a host name"));
    }
}
