//! Patterns for the host and the path of a request.

use std::fmt;
use std::net::Ipv6Addr;

/// A host name, or all names below a domain.
///
/// The comparison ignores ASCII case, the port of the request's `Host`, and a trailing dot. `*.example.com` matches
/// `a.example.com` and `b.a.example.com`, but not `example.com`. An IPv6 literal is compared as an address: `[::1]`
/// matches `[0:0::1]:8080`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPattern(HostRule);

/// Names are in lower case and without a trailing dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum HostRule {
    Exact(Box<str>),
    /// The part after the `*`, beginning with its dot: `.example.com`.
    Below(Box<str>),
    Ipv6(Ipv6Addr),
}

/// The reason why a text is not a [`HostPattern`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostPatternError {
    /// The text is empty.
    #[error("a host cannot be empty")]
    Empty,
    /// The text has a `*` outside a leading `*.`.
    #[error("`*` can only stand for the first labels, as in `*.example.com`")]
    Wildcard,
    /// The text has a port, which would be ignored.
    #[error("expected a host without a port, because routes ignore the port of a request")]
    Port,
    /// The brackets do not contain an IPv6 address.
    #[error("the text in brackets must be an IPv6 address")]
    Ipv6,
    /// The text has a character that is not allowed in a host name. Names in other scripts are written in their `xn--`
    /// form.
    #[error("`{0}` is not allowed in a host name (write other scripts as `xn--…`)")]
    Character(char),
    /// The text begins with a dot or has two dots in a row.
    #[error("a label between two dots is empty")]
    EmptyLabel,
    /// A label has more than 63 characters, or the name more than 253.
    #[error("a host name has at most 253 characters, and each label between two dots at most 63")]
    TooLong,
}

/// A path, or all paths below one. The query is not part of the path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathPattern {
    /// Any path, including the `*` of `OPTIONS *`.
    Any,
    /// This path only.
    Exact(Box<str>),
    /// This path and the paths below it. A prefix ends at the end of a segment: `/v1` matches `/v1`, `/v1/` and `/v1/x`
    /// but not `/v10`, and `/v1/` matches `/v1/` and `/v1/x` but not `/v1`.
    Prefix(Box<str>),
}

/// The host of a request, parsed once for all routes.
#[derive(Clone, Copy)]
pub(super) enum Host<'a> {
    Name(&'a str),
    Ipv6(Ipv6Addr),
}

/// The maximum length of a host name.
pub(super) const MAX_NAME: usize = 253;

/// The maximum length of a label.
const MAX_LABEL: usize = 63;

// === impl HostPattern ===

impl HostPattern {
    /// Reads `api.example.com`, `*.example.com`, `10.0.0.1`, `[::1]` or `::1`.
    ///
    /// # Errors
    ///
    /// If the text is none of these.
    pub fn parse(text: &str) -> Result<Self, HostPatternError> {
        if let Ok(address) = text.parse() {
            return Ok(Self(HostRule::Ipv6(address)));
        }
        if let Some(rest) = text.strip_prefix('[') {
            return ipv6_rule(rest);
        }
        if text.contains(':') {
            return Err(HostPatternError::Port);
        }
        match text.strip_prefix("*.") {
            Some(domain) => Ok(Self(HostRule::Below(format!(".{}", checked_name(domain)?).into()))),
            None => Ok(Self(HostRule::Exact(checked_name(text)?.into()))),
        }
    }

    /// Returns whether a request for `host`, with or without a port, matches.
    pub fn matches(&self, host: &str) -> bool {
        Host::parse(host).is_some_and(|host| self.matches_host(host))
    }

    pub(super) fn rule(&self) -> &HostRule {
        &self.0
    }

    pub(super) fn matches_host(&self, host: Host<'_>) -> bool {
        match (&self.0, host) {
            (HostRule::Exact(own), Host::Name(name)) => own.eq_ignore_ascii_case(name),
            (HostRule::Below(domain), Host::Name(name)) => is_below(name, domain),
            (HostRule::Ipv6(own), Host::Ipv6(address)) => *own == address,
            (HostRule::Ipv6(_), Host::Name(_)) | (_, Host::Ipv6(_)) => false,
        }
    }

    /// Returns whether this pattern matches every host that `other` matches.
    pub(super) fn covers(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (HostRule::Below(domain), HostRule::Exact(name)) => is_below(name, domain),
            (HostRule::Below(domain), HostRule::Below(inner)) => inner.ends_with(&**domain),
            (own, other) => own == other,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            HostRule::Exact(name) => f.write_str(name),
            HostRule::Below(domain) => write!(f, "*{domain}"),
            HostRule::Ipv6(address) => write!(f, "[{address}]"),
        }
    }
}

/// Parses the rest of a pattern after its `[`.
fn ipv6_rule(rest: &str) -> Result<HostPattern, HostPatternError> {
    match rest.split_once(']') {
        Some((address, "")) => address
            .parse()
            .map(|address| HostPattern(HostRule::Ipv6(address)))
            .map_err(|_| HostPatternError::Ipv6),
        Some((_, port)) if port.starts_with(':') => Err(HostPatternError::Port),
        _ => Err(HostPatternError::Ipv6),
    }
}

/// Returns the name in lower case and without a trailing dot.
fn checked_name(name: &str) -> Result<String, HostPatternError> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        return Err(HostPatternError::Empty);
    }
    if name.contains('*') {
        return Err(HostPatternError::Wildcard);
    }
    if let Some(wrong) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))) {
        return Err(HostPatternError::Character(wrong));
    }
    if name.split('.').any(str::is_empty) {
        return Err(HostPatternError::EmptyLabel);
    }
    if name.len() > MAX_NAME || name.split('.').any(|label| label.len() > MAX_LABEL) {
        return Err(HostPatternError::TooLong);
    }
    Ok(name.to_ascii_lowercase())
}

/// Returns whether `name` is one or more labels followed by `domain`, which begins with its dot.
fn is_below(name: &str, domain: &str) -> bool {
    name.len().checked_sub(domain.len()).and_then(|at| name.split_at_checked(at)).is_some_and(
        |(labels, rest)| rest.eq_ignore_ascii_case(domain) && !labels.split('.').any(str::is_empty),
    )
}

// === impl Host ===

impl<'a> Host<'a> {
    /// Parses a host. `None` if it cannot be a host, so that no pattern matches it.
    pub(super) fn parse(host: &'a str) -> Option<Self> {
        let (host, port) = match host.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']')?;
                (Self::Ipv6(address.parse().ok()?), port)
            }
            None => {
                let (name, port) = host.split_at(host.find(':').unwrap_or(host.len()));
                (Self::Name(name.strip_suffix('.').unwrap_or(name)), port)
            }
        };
        is_port(port).then_some(host)
    }
}

/// Returns whether `text` is empty, or a colon and digits.
fn is_port(text: &str) -> bool {
    text.is_empty() || text.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()))
}

// === impl PathPattern ===

impl PathPattern {
    /// Returns whether `path`, which has no query, matches.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(own) => **own == *path,
            Self::Prefix(prefix) => path
                .strip_prefix(&**prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/')),
        }
    }

    /// Returns the path or prefix as the configuration has it, `None` if any path matches.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Any => None,
            Self::Exact(text) | Self::Prefix(text) => Some(text),
        }
    }

    /// Returns whether this pattern matches every path that `other` matches.
    ///
    /// A prefix that matches another prefix as a path also matches the paths below it, because the match ended at the
    /// end of a segment.
    pub(super) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (Self::Exact(own), Self::Exact(path)) => own == path,
            (Self::Prefix(_), Self::Exact(path) | Self::Prefix(path)) => self.matches(path),
            (Self::Exact(_) | Self::Prefix(_), _) => false,
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any path"),
            Self::Exact(path) => f.write_str(path),
            Self::Prefix(prefix) => write!(f, "{prefix}…"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{prop_assert, proptest};

    fn host(text: &str) -> HostPattern {
        HostPattern::parse(text).unwrap()
    }

    fn prefix(text: &str) -> PathPattern {
        PathPattern::Prefix(text.into())
    }

    fn exact(text: &str) -> PathPattern {
        PathPattern::Exact(text.into())
    }

    #[test]
    fn host_patterns_match_hosts_without_case_port_and_trailing_dot() {
        for (pattern, matching, other) in [
            (
                "Api.Example.com",
                &["api.example.com", "API.EXAMPLE.COM", "api.example.com:8080", "api.example.com."][..],
                &["example.com", "x.api.example.com", "api.example.com:x", "api.example.com..", ""][..],
            ),
            ("api.example.com.", &["api.example.com", "api.example.com.:80"], &["api.example.co"]),
            (
                "*.example.com",
                &["a.example.com", "b.a.EXAMPLE.com:1", "a.example.com."],
                &[
                    "example.com",
                    ".example.com",
                    "a..example.com",
                    "aexample.com",
                    "a.example.com.evil",
                    "ü.com",
                ],
            ),
            ("[::1]", &["[::1]", "[0:0::1]:8080", "[::1]:"], &["::1", "[::2]", "[::1", "[::1]x"]),
            ("2001:DB8::1", &["[2001:db8::1]"], &["2001:db8::1"]),
            ("10.0.0.1", &["10.0.0.1", "10.0.0.1:80"], &["10.0.0.10", "10.0.0.1:80:80"]),
        ] {
            for text in matching {
                assert!(host(pattern).matches(text), "{pattern} {text}");
            }
            for text in other {
                assert!(!host(pattern).matches(text), "{pattern} {text}");
            }
        }
    }

    #[test]
    fn texts_that_are_not_host_patterns_are_rejected() {
        use HostPatternError::{Character, Empty, EmptyLabel, Ipv6, Port, TooLong, Wildcard};
        for (text, error) in [
            ("", Empty),
            (".", Empty),
            ("*.", Empty),
            ("*", Wildcard),
            ("a.*.com", Wildcard),
            ("*.*.com", Wildcard),
            ("*a.com", Wildcard),
            ("a.com:80", Port),
            ("[::1]:80", Port),
            ("[a.com]", Ipv6),
            ("[::1", Ipv6),
            ("grün.de", Character('ü')),
            ("a.com/x", Character('/')),
            ("a b", Character(' ')),
            (".a.com", EmptyLabel),
            ("a..com", EmptyLabel),
            ("*..com", EmptyLabel),
            (&"a".repeat(64), TooLong),
            (&["a"; 128].join("."), TooLong),
        ] {
            assert_eq!(HostPattern::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_host_pattern_is_written_as_it_is_read() {
        for text in ["api.example.com", "*.example.com", "[::1]"] {
            assert_eq!(host(text).to_string(), text);
        }
    }

    #[test]
    fn path_prefixes_end_at_the_end_of_a_segment() {
        for (pattern, matching, other) in [
            (prefix("/v1"), &["/v1", "/v1/", "/v1/x"][..], &["/v10", "/V1", "/", "", "/v1%2fx"][..]),
            (prefix("/v1/"), &["/v1/", "/v1/x"], &["/v1", "/v10"]),
            (prefix("/"), &["/", "/x", "//"], &["*", ""]),
            (exact("/v1"), &["/v1"], &["/v1/", "/v1/x"]),
            (PathPattern::Any, &["/", "*", ""], &[]),
        ] {
            for path in matching {
                assert!(pattern.matches(path), "{pattern:?} {path}");
            }
            for path in other {
                assert!(!pattern.matches(path), "{pattern:?} {path}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_host_is_read_without_panic(text in ".{0,20}", pattern in ".{0,20}") {
            if let Ok(pattern) = HostPattern::parse(&pattern) {
                pattern.matches(&text);
                prop_assert!(HostPattern::parse(&pattern.to_string()).as_ref() == Ok(&pattern));
            }
        }
    }
}
