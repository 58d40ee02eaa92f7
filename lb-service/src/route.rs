//! Routes: the first route of the table that matches a request decides its pool.
//!
//! A route can name a listener, hosts, paths, methods and headers. All criteria that it names must match. The table is
//! read from the top, so a route is unreachable when an earlier one matches every request that it matches:
//! [`shadowed_by`] finds such routes, and the configuration rejects them.
//!
//! Invariants: `RouteTable::find` allocates nothing and depends on its arguments alone. [`shadowed_by`] never reports
//! a route that some request could reach.
//!
//! Paths are compared without their dot segments, otherwise as the client sent them: case-sensitive, and without
//! decoding `%2F` and the like. A route is therefore not an access control for a backend that decodes them.

use std::fmt;
use std::net::Ipv6Addr;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::listener::ListenerId;
use crate::pool::{Fields, Head, PoolId};

/// A row of the table: the criteria, and the pool for requests that match them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The listener that the client connected to. `None` matches any.
    pub listener: Option<ListenerId>,
    /// The host that the client asked for. `None` matches any host, and also a request without one.
    pub host: Option<AnyOf<HostPattern>>,
    /// The path, without the query.
    pub path: AnyOf<PathPattern>,
    /// The methods. An empty list matches any.
    pub methods: Vec<Method>,
    /// Header lines that must all be present; further lines with the same name do not matter.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The pool for matching requests.
    pub pool: PoolId,
}

/// Alternative patterns, in the order of the configuration. One match is enough.
///
/// A single pattern is stored in the route itself, so a table without lists costs no further memory access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnyOf<T> {
    /// The only pattern.
    One(T),
    /// At least two patterns.
    Several(Box<[T]>),
}

/// A host name, or all names below a domain.
///
/// The comparison ignores ASCII case, the port of the request's `Host`, and a trailing dot. `*.example.com` matches
/// `a.example.com` and `b.a.example.com`, but not `example.com`. An IPv6 literal is compared as an address: `[::1]`
/// matches `[0:0::1]:8080`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPattern(HostRule);

/// Names are in lower case and without a trailing dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum HostRule {
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

/// The parts of a request that routes match on.
#[derive(Debug)]
pub(crate) struct RequestView<'a, F = HeaderMap> {
    /// The listener that the client connected to.
    pub listener: ListenerId,
    /// The host that the client asked for, with or without a port. The caller decides whether it is the `Host` header
    /// or the authority of the request's URI.
    pub host: Option<&'a str>,
    /// The path without the query.
    pub path: &'a str,
    /// The method.
    pub method: &'a Method,
    /// All fields.
    pub headers: &'a F,
}

impl<'a, H: Head> RequestView<'a, H> {
    /// The view of a request that came through this listener.
    pub(crate) fn of(listener: ListenerId, head: &'a H) -> Self {
        Self { listener, host: head.host(), path: head.path(), method: head.method(), headers: head }
    }
}

impl<F> Clone for RequestView<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for RequestView<'_, F> {}

/// Routes in the order in which they are tried.
#[derive(Clone, Debug)]
pub struct RouteTable(Box<[Route]>);

/// The first criterion of a route that a request does not match, in the order of the variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch<'a> {
    /// The request came through another listener.
    Listener,
    /// The request asks for none of these hosts, or for no host.
    Host(&'a AnyOf<HostPattern>),
    /// The path is none of these.
    Path(&'a AnyOf<PathPattern>),
    /// The method is none of these.
    Method,
    /// The request has no header line with this name and value.
    Header(&'a HeaderName),
}

/// The relation of a route to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteMatch<'a> {
    /// The first route that matches, which the request takes.
    Taken,
    /// The route matches as well, but the one at this index comes first.
    Behind(usize),
    /// The route does not match.
    Not(Mismatch<'a>),
}

/// The host of a request, parsed once for all routes.
#[derive(Clone, Copy)]
enum Host<'a> {
    Name(&'a str),
    Ipv6(Ipv6Addr),
}

/// Returns the routes that no request can reach, each with the first earlier route that matches everything it matches:
/// `(unreachable, because of)`, as positions in `routes`.
///
/// A route that only several earlier ones together cover is not reported.
pub fn shadowed_by(routes: &[Route]) -> Vec<(usize, usize)> {
    let cover = |index: usize| routes[..index].iter().position(|earlier| earlier.covers(&routes[index]));
    (0..routes.len()).filter_map(|index| cover(index).map(|earlier| (index, earlier))).collect()
}

// === impl RouteTable ===

impl RouteTable {
    /// Creates a table that tries `routes` in this order.
    pub fn new(routes: Vec<Route>) -> Self {
        Self(routes.into())
    }

    /// Returns the pool of the first route that matches.
    pub(crate) fn find(&self, request: &RequestView<'_, impl Fields>) -> Option<PoolId> {
        self.position(request).map(|index| self.0[index].pool)
    }

    /// Returns the index of the first route that matches.
    pub(crate) fn position(&self, request: &RequestView<'_, impl Fields>) -> Option<usize> {
        let host = request.host.and_then(Host::parse);
        self.0.iter().position(|route| route.mismatch(request, host).is_none())
    }

    /// Returns the relation of each route to a request, in the order of the table. At most one is
    /// [`RouteMatch::Taken`], the one that [`find`](Self::find) returns.
    pub(crate) fn explain<'a>(&'a self, request: &RequestView<'_, impl Fields>) -> Vec<RouteMatch<'a>> {
        let host = request.host.and_then(Host::parse);
        let mut taken = None;
        let verdict = |(index, route): (usize, &'a Route)| match (route.mismatch(request, host), taken) {
            (Some(mismatch), _) => RouteMatch::Not(mismatch),
            (None, Some(first)) => RouteMatch::Behind(first),
            (None, None) => {
                taken = Some(index);
                RouteMatch::Taken
            }
        };
        self.0.iter().enumerate().map(verdict).collect()
    }

    /// Returns the routes in the order of the table.
    pub fn routes(&self) -> &[Route] {
        &self.0
    }
}

// === impl Route ===

impl Route {
    /// Creates a route that sends every request to `pool`.
    pub fn any(pool: PoolId) -> Self {
        let path = AnyOf::One(PathPattern::Any);
        Self { listener: None, host: None, path, methods: vec![], headers: vec![], pool }
    }

    /// Returns the first criterion that the request does not match, `None` if it matches the route.
    fn mismatch(
        &self,
        request: &RequestView<'_, impl Fields>,
        host: Option<Host<'_>>,
    ) -> Option<Mismatch<'_>> {
        if self.listener.is_some_and(|listener| listener != request.listener) {
            Some(Mismatch::Listener)
        } else if let Some(hosts) = self.host.as_ref().filter(|hosts| !is_any_host(hosts, host)) {
            Some(Mismatch::Host(hosts))
        } else if !self.path.any(|path| path.matches(request.path)) {
            Some(Mismatch::Path(&self.path))
        } else if !(self.methods.is_empty() || self.methods.contains(request.method)) {
            Some(Mismatch::Method)
        } else {
            self.missing_header(request.headers).map(Mismatch::Header)
        }
    }

    fn missing_header(&self, fields: &impl Fields) -> Option<&HeaderName> {
        let is_there = |name, value: &HeaderValue| fields.all(name).any(|found| found == value.as_bytes());
        self.headers.iter().find(|(name, value)| !is_there(name, value)).map(|(name, _)| name)
    }

    /// Returns whether this route matches every request that `later` matches.
    fn covers(&self, later: &Self) -> bool {
        self.listener.is_none_or(|listener| later.listener == Some(listener))
            && self.host.as_ref().is_none_or(|hosts| {
                later.host.as_ref().is_some_and(|others| hosts.cover(others, HostPattern::covers))
            })
            && self.path.cover(&later.path, PathPattern::covers)
            && self.covers_methods(later)
            && self.headers.iter().all(|line| later.headers.contains(line))
    }

    fn covers_methods(&self, later: &Self) -> bool {
        self.methods.is_empty()
            || (!later.methods.is_empty() && later.methods.iter().all(|method| self.methods.contains(method)))
    }
}

/// Returns whether `host` is one of `hosts`.
fn is_any_host(hosts: &AnyOf<HostPattern>, host: Option<Host<'_>>) -> bool {
    host.is_some_and(|host| hosts.any(|pattern| pattern.matches_host(host)))
}

// === impl AnyOf ===

impl<T> AnyOf<T> {
    /// Creates the alternatives. `None` if there is none, because nothing would match.
    pub fn new(patterns: impl IntoIterator<Item = T>) -> Option<Self> {
        let mut patterns: Vec<T> = patterns.into_iter().collect();
        match patterns.len() {
            0 | 1 => patterns.pop().map(Self::One),
            _ => Some(Self::Several(patterns.into())),
        }
    }

    /// Returns all patterns.
    pub fn as_slice(&self) -> &[T] {
        match self {
            Self::One(pattern) => std::slice::from_ref(pattern),
            Self::Several(patterns) => patterns,
        }
    }

    /// Returns whether `is_meant` holds for one pattern.
    fn any(&self, meant: impl Fn(&T) -> bool) -> bool {
        match self {
            Self::One(pattern) => meant(pattern),
            Self::Several(patterns) => patterns.iter().any(meant),
        }
    }

    /// Returns whether each of `others` is covered by a single one of these patterns, where `covers` compares two
    /// patterns.
    ///
    /// Several patterns that only together cover another one do not count, so `true` is always correct.
    fn cover(&self, others: &Self, covers: impl Fn(&T, &T) -> bool) -> bool {
        others.as_slice().iter().all(|other| self.any(|own| covers(own, other)))
    }
}

impl<T> From<T> for AnyOf<T> {
    fn from(pattern: T) -> Self {
        Self::One(pattern)
    }
}

impl<T: fmt::Display> fmt::Display for AnyOf<T> {
    /// Writes several patterns in brackets: `[a.test, b.test]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(pattern) => pattern.fmt(f),
            Self::Several(patterns) => {
                let patterns: Vec<_> = patterns.iter().map(ToString::to_string).collect();
                write!(f, "[{}]", patterns.join(", "))
            }
        }
    }
}

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

    fn matches_host(&self, host: Host<'_>) -> bool {
        match (&self.0, host) {
            (HostRule::Exact(own), Host::Name(name)) => own.eq_ignore_ascii_case(name),
            (HostRule::Below(domain), Host::Name(name)) => is_below(name, domain),
            (HostRule::Ipv6(own), Host::Ipv6(address)) => *own == address,
            (HostRule::Ipv6(_), Host::Name(_)) | (_, Host::Ipv6(_)) => false,
        }
    }

    /// Returns whether this pattern matches every host that `other` matches.
    fn covers(&self, other: &Self) -> bool {
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
    if name.len() > 253 || name.split('.').any(|label| label.len() > 63) {
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
    fn parse(host: &'a str) -> Option<Self> {
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
    fn covers(&self, other: &Self) -> bool {
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
    use proptest::collection::{btree_set, vec};
    use proptest::option;
    use proptest::prelude::{Just, Strategy, prop_assert, prop_assert_eq, prop_oneof, proptest};
    use proptest::sample::select;

    fn host(text: &str) -> HostPattern {
        HostPattern::parse(text).unwrap()
    }

    fn prefix(text: &str) -> PathPattern {
        PathPattern::Prefix(text.into())
    }

    fn exact(text: &str) -> PathPattern {
        PathPattern::Exact(text.into())
    }

    fn header(name: &'static str, value: &'static str) -> (HeaderName, HeaderValue) {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    }

    fn route() -> Route {
        Route::any(PoolId(0))
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

    #[test]
    fn one_of_several_lines_of_a_header_is_enough() {
        let table =
            RouteTable::new(vec![Route { headers: vec![header("x", "1"), header("y", "1")], ..route() }]);
        let find = |headers: &HeaderMap| {
            let request =
                RequestView { listener: ListenerId(0), host: None, path: "/", method: &Method::GET, headers };
            table.find(&request)
        };
        let mut headers: HeaderMap = [header("x", "2"), header("y", "1")].into_iter().collect();
        assert_eq!(find(&headers), None);
        headers.append("x", HeaderValue::from_static("1"));
        assert_eq!(find(&headers), Some(PoolId(0)));
    }

    #[test]
    fn a_route_without_host_matches_a_request_without_host() {
        let headers = HeaderMap::new();
        let request = RequestView {
            listener: ListenerId(0),
            host: None,
            path: "/",
            method: &Method::GET,
            headers: &headers,
        };
        assert_eq!(RouteTable::new(vec![route()]).find(&request), Some(PoolId(0)));
        let named = Route { host: Some(host("a.com").into()), ..route() };
        assert_eq!(RouteTable::new(vec![named]).find(&request), None);
        assert_eq!(RouteTable::new(vec![]).find(&request), None);
    }

    #[test]
    fn a_route_is_shadowed_by_an_earlier_one_that_matches_all_it_matches() {
        let on = |listener| Route { listener: Some(ListenerId(listener)), ..route() };
        let at = |text| Route { host: Some(host(text).into()), ..route() };
        let at_any = |texts: &[&str]| Route { host: AnyOf::new(texts.iter().copied().map(host)), ..route() };
        let under = |path: PathPattern| Route { path: path.into(), ..route() };
        let under_any = |paths: Vec<PathPattern>| Route { path: AnyOf::new(paths).unwrap(), ..route() };
        let by = |methods: &[Method]| Route { methods: methods.to_vec(), ..route() };
        let with = |headers: &[(HeaderName, HeaderValue)]| Route { headers: headers.to_vec(), ..route() };
        for (earlier, later, shadowed) in [
            (route(), on(0), true),
            (on(0), on(0), true),
            (on(0), on(1), false),
            (on(0), route(), false),
            (at("*.a.com"), at("x.a.com"), true),
            (at("*.a.com"), at("*.x.a.com"), true),
            (at("*.a.com"), at("a.com"), false),
            (at("*.x.a.com"), at("*.a.com"), false),
            (at("A.com."), at("a.com"), true),
            (at("[::1]"), at("[::2]"), false),
            (under(prefix("/v1")), under(prefix("/v1/")), true),
            (under(prefix("/v1")), under(exact("/v1/x")), true),
            (under(prefix("/v1/")), under(prefix("/v1")), false),
            (under(prefix("/v1")), under(prefix("/v10")), false),
            (under(prefix("/")), route(), false),
            (under(exact("/v1")), under(prefix("/v1")), false),
            (at_any(&["a.com", "*.b.com"]), at("x.b.com"), true),
            (at_any(&["a.com", "*.b.com"]), at_any(&["x.b.com", "a.com", "y.b.com"]), true),
            (at_any(&["a.com", "b.com"]), at_any(&["a.com", "c.com"]), false),
            (at("a.com"), at_any(&["a.com", "b.com"]), false),
            (at_any(&["a.com", "b.com"]), route(), false),
            (under_any(vec![exact("/a"), prefix("/v1")]), under_any(vec![exact("/v1/x"), exact("/a")]), true),
            (under_any(vec![exact("/a"), prefix("/v1")]), under(prefix("/a")), false),
            (under(prefix("/v1")), under_any(vec![prefix("/v1"), prefix("/v2")]), false),
            (by(&[Method::GET, Method::HEAD]), by(&[Method::GET]), true),
            (by(&[Method::GET]), by(&[Method::GET, Method::HEAD]), false),
            (by(&[Method::GET]), route(), false),
            (with(&[header("x", "1")]), with(&[header("y", "1"), header("x", "1")]), true),
            (with(&[header("x", "1")]), with(&[header("x", "2")]), false),
            (with(&[header("x", "1")]), route(), false),
        ] {
            let expected = if shadowed { vec![(1, 0)] } else { vec![] };
            assert_eq!(shadowed_by(&[earlier.clone(), later.clone()]), expected, "{earlier:?} {later:?}");
        }
    }

    #[test]
    fn one_of_several_hosts_and_paths_is_enough() {
        let both = Route {
            host: AnyOf::new([host("a.com"), host("*.b.com")]),
            path: AnyOf::new([exact("/x"), exact("/y")]).unwrap(),
            ..route()
        };
        let table = RouteTable::new(vec![both]);
        let headers = HeaderMap::new();
        let finds = |host, path| {
            let (listener, method) = (ListenerId(0), &Method::GET);
            let request = RequestView { listener, host: Some(host), path, method, headers: &headers };
            table.find(&request).is_some()
        };
        assert!(finds("a.com", "/x") && finds("a.com", "/y") && finds("x.b.com", "/y"));
        assert!(!finds("b.com", "/x") && !finds("a.com", "/z") && !finds("c.com", "/x"));
    }

    #[test]
    fn the_first_covering_route_is_reported() {
        assert_eq!(shadowed_by(&[route(), route(), route()]), [(1, 0), (2, 0)]);
    }

    #[test]
    fn the_first_criterion_that_differs_is_reported() {
        let full = Route {
            listener: Some(ListenerId(0)),
            host: AnyOf::new([host("a.test"), host("b.test")]),
            path: AnyOf::new([prefix("/v0"), prefix("/v1")]).unwrap(),
            methods: vec![Method::GET],
            headers: vec![header("x-one", "1"), header("x-two", "2")],
            pool: PoolId(0),
        };
        let (hosts, paths) = (full.host.clone().unwrap(), full.path.clone());
        let table = RouteTable::new(vec![full, route(), route()]);
        let headers: HeaderMap = [header("x-one", "1"), header("x-two", "2")].into_iter().collect();
        let one: HeaderMap = [header("x-one", "1")].into_iter().collect();
        let good = RequestView {
            listener: ListenerId(0),
            host: Some("a.test"),
            path: "/v1/x",
            method: &Method::GET,
            headers: &headers,
        };
        assert_eq!(table.explain(&good), [RouteMatch::Taken, RouteMatch::Behind(0), RouteMatch::Behind(0)]);
        for (request, mismatch) in [
            (RequestView { listener: ListenerId(1), host: None, ..good }, Mismatch::Listener),
            (RequestView { host: None, path: "/", ..good }, Mismatch::Host(&hosts)),
            (RequestView { path: "/v10", method: &Method::PUT, ..good }, Mismatch::Path(&paths)),
            (RequestView { method: &Method::PUT, headers: &one, ..good }, Mismatch::Method),
            (RequestView { headers: &one, ..good }, Mismatch::Header(&HeaderName::from_static("x-two"))),
        ] {
            let expected = [RouteMatch::Not(mismatch), RouteMatch::Taken, RouteMatch::Behind(1)];
            assert_eq!(table.explain(&request), expected);
            assert_eq!(table.position(&request), Some(1));
        }
    }

    // === properties ===

    const HOSTS: [&str; 7] = ["com", "a.com", "b.a.com", "c.b.a.com", "*.com", "*.a.com", "*.b.a.com"];
    const PATHS: [&str; 7] = ["/", "/v1", "/v1/", "/v1/x", "/v1/x/", "/v10", "/v1//"];

    #[derive(Debug)]
    struct Request {
        listener: ListenerId,
        host: Option<String>,
        path: &'static str,
        method: Method,
        headers: HeaderMap,
    }

    impl Request {
        fn view(&self) -> RequestView<'_> {
            let Self { listener, host, path, method, headers } = self;
            RequestView { listener: *listener, host: host.as_deref(), path, method, headers }
        }
    }

    fn any_header() -> impl Strategy<Value = (HeaderName, HeaderValue)> {
        select(vec![header("x", "1"), header("x", "2"), header("y", "1")])
    }

    fn any_method() -> impl Strategy<Value = Method> {
        select(vec![Method::GET, Method::POST, Method::HEAD])
    }

    fn any_path() -> impl Strategy<Value = PathPattern> {
        prop_oneof![
            Just(PathPattern::Any),
            select(&PATHS[..]).prop_map(exact),
            select(&PATHS[..]).prop_map(prefix)
        ]
    }

    fn any_of<T: fmt::Debug>(pattern: impl Strategy<Value = T>) -> impl Strategy<Value = AnyOf<T>> {
        vec(pattern, 1..4).prop_map(|patterns| AnyOf::new(patterns).unwrap())
    }

    fn any_route() -> impl Strategy<Value = Route> {
        (
            option::weighted(0.3, (0..2usize).prop_map(ListenerId)),
            option::of(any_of(select(&HOSTS[..]).prop_map(host))),
            any_of(any_path()),
            vec(any_method(), 0..3),
            vec(any_header(), 0..2),
        )
            .prop_map(|(listener, host, path, methods, headers)| Route {
                listener,
                host,
                path,
                methods,
                headers,
                ..route()
            })
    }

    /// Gives each route its position as its pool.
    fn any_routes() -> impl Strategy<Value = Vec<Route>> {
        vec(any_route(), 0..8).prop_map(|mut routes| {
            routes.iter_mut().enumerate().for_each(|(index, route)| route.pool = PoolId(index));
            routes
        })
    }

    fn any_request() -> impl Strategy<Value = Request> {
        let host = (select(&HOSTS[..4]), select(&["", ":80", ".", ".:8080"][..]), proptest::bool::ANY)
            .prop_map(|(name, rest, upper)| {
                format!("{}{rest}", if upper { name.to_uppercase() } else { name.into() })
            });
        let headers = btree_set(0..3usize, 0..3).prop_map(|chosen| {
            let all = [header("x", "1"), header("x", "2"), header("y", "1")];
            let mut headers = HeaderMap::new();
            for (name, value) in chosen.into_iter().map(|index| all[index].clone()) {
                headers.append(name, value);
            }
            headers
        });
        (
            (0..2usize).prop_map(ListenerId),
            option::weighted(0.8, host),
            select(&PATHS[..]),
            any_method(),
            headers,
        )
            .prop_map(|(listener, host, path, method, headers)| Request {
                listener,
                host,
                path,
                method,
                headers,
            })
    }

    /// A second implementation of the decision.
    fn matches_by_definition(route: &Route, request: &Request) -> bool {
        let name =
            request.host.as_ref().map(|host| host.to_lowercase().split(':').next().unwrap().to_owned());
        let labels: Option<Vec<&str>> =
            name.as_ref().map(|name| name.trim_end_matches('.').split('.').collect());
        let is_host = |pattern: &HostPattern| {
            let pattern = pattern.to_string();
            let wanted: Vec<&str> = pattern.split('.').collect();
            labels.as_ref().is_some_and(|labels| match wanted.split_first() {
                Some((&"*", domain)) => labels.len() > domain.len() && labels.ends_with(domain),
                _ => *labels == wanted,
            })
        };
        let host = route.host.as_ref().is_none_or(|hosts| hosts.as_slice().iter().any(is_host));
        let is_path = |path: &PathPattern| match path {
            PathPattern::Any => true,
            PathPattern::Exact(path) => request.path == &**path,
            PathPattern::Prefix(path) if path.ends_with('/') => request.path.starts_with(&**path),
            PathPattern::Prefix(path) => {
                request.path == &**path || request.path.starts_with(&format!("{path}/"))
            }
        };
        let path = route.path.as_slice().iter().any(is_path);
        let has = |(name, value): &(HeaderName, HeaderValue)| {
            request.headers.iter().any(|(own, its)| own == name && its == value)
        };
        route.listener.is_none_or(|listener| listener == request.listener)
            && host
            && path
            && (route.methods.is_empty() || route.methods.contains(&request.method))
            && route.headers.iter().all(has)
    }

    proptest! {
        #[test]
        fn first_match_wins(routes in any_routes(), requests in vec(any_request(), 20)) {
            let table = RouteTable::new(routes.clone());
            for request in &requests {
                let expected = routes.iter().find(|route| matches_by_definition(route, request));
                prop_assert_eq!(table.find(&request.view()), expected.map(|route| route.pool));
            }
        }

        #[test]
        fn a_shadowed_route_is_never_found(routes in any_routes(), requests in vec(any_request(), 50)) {
            let table = RouteTable::new(routes.clone());
            for (shadowed, by) in shadowed_by(&routes) {
                prop_assert!(by < shadowed);
                for request in &requests {
                    prop_assert!(table.find(&request.view()) != Some(PoolId(shadowed)));
                    let matches = |index: usize| matches_by_definition(&routes[index], request);
                    prop_assert!(!matches(shadowed) || matches(by));
                }
            }
        }

        #[test]
        fn any_host_is_read_without_panic(text in ".{0,20}", pattern in ".{0,20}") {
            if let Ok(pattern) = HostPattern::parse(&pattern) {
                pattern.matches(&text);
                prop_assert!(HostPattern::parse(&pattern.to_string()).as_ref() == Ok(&pattern));
            }
        }
    }
}
