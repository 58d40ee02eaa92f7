//! Routes: the first route of the table that matches a request decides its pool.
//!
//! A route can name a listener, hosts, paths, methods and headers. All criteria that it names must match. The table is
//! read from the top, so a route is unreachable when an earlier one matches every request that it matches:
//! [`shadowed_by`] finds such routes, and the configuration rejects them.
//!
//! Invariants: `RouteTable::find` allocates nothing and depends on its arguments alone. It takes the first matching
//! route, at a cost that does not grow with the number of routes for other hosts and paths. [`shadowed_by`] never
//! reports a route that some request could reach.
//!
//! Paths are compared without their dot segments, otherwise as the client sent them: case-sensitive, and without
//! decoding `%2F` and the like. A route is therefore not an access control for a backend that decodes them.

mod index;
mod pattern;
mod prefixes;
mod shadow;

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::listener::ListenerId;
use crate::pool::{Fields, Head, PoolId};
use index::{Index, Reversed};
use pattern::Host;
pub use pattern::{HostPattern, HostPatternError, PathPattern};
use prefixes::Sought;
pub use shadow::shadowed_by;

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
pub struct RouteTable {
    routes: Box<[Route]>,
    /// Finds the routes for a request. A table with few patterns has no index, because it is faster to try all routes.
    index: Option<Index>,
}

/// The number of patterns from which an index is faster. Two of them are the host and the path of one route.
const MANY_PATTERNS: usize = 64;

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

// === impl RouteTable ===

impl RouteTable {
    /// Creates a table that tries `routes` in this order.
    pub fn new(routes: Vec<Route>) -> Self {
        let patterns: usize = routes.iter().map(Route::patterns).sum();
        let index = (patterns >= MANY_PATTERNS).then(|| Index::new(&routes));
        Self { index, routes: routes.into() }
    }

    /// Returns the pool of the first route that matches.
    pub(crate) fn find(&self, request: &RequestView<'_, impl Fields>) -> Option<PoolId> {
        self.routes.get(self.position(request)?).map(|route| route.pool)
    }

    /// Returns the index of the first route that matches.
    pub(crate) fn position(&self, request: &RequestView<'_, impl Fields>) -> Option<usize> {
        match &self.index {
            Some(index) => self.look_up(index, request),
            None => self.scan(request),
        }
    }

    fn look_up(&self, index: &Index, request: &RequestView<'_, impl Fields>) -> Option<usize> {
        let mut space = Reversed::new();
        let host = index.host_of(request.host, &mut space);
        let path = Some(Sought::Text(request.path.as_bytes()));
        index.first(host, path, self.routes.len(), |index| {
            self.routes.get(index).is_some_and(|route| route.accepts(request))
        })
    }

    fn scan(&self, request: &RequestView<'_, impl Fields>) -> Option<usize> {
        let host = request.host.and_then(Host::parse);
        self.routes.iter().position(|route| route.mismatch(request, host).is_none())
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
        self.routes.iter().enumerate().map(verdict).collect()
    }

    /// Returns the routes in the order of the table.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }
}

// === impl Route ===

impl Route {
    /// Creates a route that sends every request to `pool`.
    pub fn any(pool: PoolId) -> Self {
        let path = AnyOf::One(PathPattern::Any);
        Self { listener: None, host: None, path, methods: vec![], headers: vec![], pool }
    }

    /// Returns the number of patterns for hosts and paths.
    fn patterns(&self) -> usize {
        self.host.as_ref().map_or(0, |hosts| hosts.as_slice().len()) + self.path.as_slice().len()
    }

    /// Returns whether a request that matches by its host and path also matches by the other criteria.
    fn accepts(&self, request: &RequestView<'_, impl Fields>) -> bool {
        self.is_on(request.listener)
            && self.has_method(request.method)
            && self.missing_header(request.headers).is_none()
    }

    /// Returns the first criterion that the request does not match, `None` if it matches the route.
    fn mismatch(
        &self,
        request: &RequestView<'_, impl Fields>,
        host: Option<Host<'_>>,
    ) -> Option<Mismatch<'_>> {
        if !self.is_on(request.listener) {
            Some(Mismatch::Listener)
        } else if let Some(hosts) = self.host.as_ref().filter(|hosts| !is_any_host(hosts, host)) {
            Some(Mismatch::Host(hosts))
        } else if !self.path.any(|path| path.matches(request.path)) {
            Some(Mismatch::Path(&self.path))
        } else if !self.has_method(request.method) {
            Some(Mismatch::Method)
        } else {
            self.missing_header(request.headers).map(Mismatch::Header)
        }
    }

    fn is_on(&self, listener: ListenerId) -> bool {
        self.listener.is_none_or(|own| own == listener)
    }

    fn has_method(&self, method: &Method) -> bool {
        self.methods.is_empty() || self.methods.contains(method)
    }

    fn missing_header(&self, fields: &impl Fields) -> Option<&HeaderName> {
        let is_there = |name, value: &HeaderValue| fields.all(name).any(|found| found == value.as_bytes());
        self.headers.iter().find(|(name, value)| !is_there(name, value)).map(|(name, _)| name)
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

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;
    use proptest::collection::{btree_set, vec};
    use proptest::option;
    use proptest::prelude::{Just, Strategy, prop_assert, prop_assert_eq, prop_oneof, proptest};
    use proptest::sample::select;

    pub(super) fn host(text: &str) -> HostPattern {
        HostPattern::parse(text).unwrap()
    }

    pub(super) fn prefix(text: &str) -> PathPattern {
        PathPattern::Prefix(text.into())
    }

    pub(super) fn exact(text: &str) -> PathPattern {
        PathPattern::Exact(text.into())
    }

    pub(super) fn header(name: &'static str, value: &'static str) -> (HeaderName, HeaderValue) {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    }

    pub(super) fn route() -> Route {
        Route::any(PoolId(0))
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

    #[test]
    fn a_long_host_is_below_a_domain_and_equal_to_no_name() {
        let long = [&"a".repeat(63)[..]; 4].join(".")[..253].to_owned();
        let at = |text: String, pool| Route { host: Some(host(&text).into()), pool: PoolId(pool), ..route() };
        let rest = &long[64..];
        let routes = vec![at(long.clone(), 0), at(format!("*.{long}"), 1), at(format!("*.{rest}"), 2)];
        let (table, headers) = (RouteTable::new(routes), HeaderMap::new());
        let find = |host: &str| {
            let (listener, method) = (ListenerId(0), &Method::GET);
            table.find(&RequestView { listener, host: Some(host), path: "/", method, headers: &headers })
        };
        assert_eq!(find(&long), Some(PoolId(0)));
        assert_eq!(find(&format!("x.{long}")), Some(PoolId(1)));
        assert_eq!(find(&format!("x{long}")), Some(PoolId(2)));
        assert_eq!(find(&format!("{}{rest}", "x.".repeat(5000))), Some(PoolId(2)));
        assert_eq!(find(&format!("{}.{rest}", "x.".repeat(5000))), None, "an empty label");
    }

    // === properties ===

    const NAMES: [&str; 8] =
        ["com", "a.com", "b.a.com", "c.b.a.com", "b-a.com", "bb.a.com", "c.b.a.co", "d.c.b-a.com"];
    const DOMAINS: [&str; 6] = ["*.com", "*.a.com", "*.b.a.com", "*.c.b.a.com", "*.b-a.com", "*.co"];
    const ADDRESSES: [&str; 2] = ["[::1]", "[::2]"];
    /// `.` sorts before the slash, and `x` after it.
    const PATHS: [&str; 12] = [
        "/", "//", "/v1", "/v1/", "/v1//", "/v1/x", "/v1/x/", "/v1/x/y", "/v1/x.y", "/v1.x", "/v10", "/v1x/y",
    ];
    const OTHER_PATHS: [&str; 4] = ["*", "", "/v1/x/y/z", "/v"];

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

    fn any_host() -> impl Strategy<Value = HostPattern> {
        prop_oneof![4 => select(&NAMES[..]), 4 => select(&DOMAINS[..]), 1 => select(&ADDRESSES[..])]
            .prop_map(host)
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
            option::of(any_of(any_host())),
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
    pub(super) fn any_routes() -> impl Strategy<Value = Vec<Route>> {
        prop_oneof![3 => vec(any_route(), 0..8), 1 => vec(any_route(), 20..80)].prop_map(|mut routes| {
            routes.iter_mut().enumerate().for_each(|(index, route)| route.pool = PoolId(index));
            routes
        })
    }

    fn any_request() -> impl Strategy<Value = Request> {
        const ODD: [&str; 9] =
            ["", ".com", ".a.com", "x..a.com", "a..com", "0.a.com", "x.b-a.com", "[0::1]", "[::3]"];
        let name = prop_oneof![8 => select(&NAMES[..]), 2 => select(&ADDRESSES[..]), 2 => select(&ODD[..])];
        let rest = prop_oneof![Just(""), Just(":80")];
        let host =
            (name, proptest::bool::ANY, rest, proptest::bool::ANY).prop_map(|(name, dot, rest, upper)| {
                let dot = if dot && !name.contains([':', ']']) { "." } else { "" };
                format!("{}{dot}{rest}", if upper { name.to_uppercase() } else { name.into() })
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
            prop_oneof![4 => select(&PATHS[..]), 1 => select(&OTHER_PATHS[..])],
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

    fn is_host_by_definition(pattern: &str, request: &Request) -> bool {
        let Some(host) = request.host.as_ref().map(|host| host.to_lowercase()) else { return false };
        if let Some((address, _)) = host.split_once(']') {
            return pattern == format!("[{}]", address[1..].parse::<Ipv6Addr>().unwrap());
        }
        let name = host.split(':').next().unwrap();
        let labels: Vec<&str> = name.strip_suffix('.').unwrap_or(name).split('.').collect();
        let wanted: Vec<&str> = pattern.split('.').collect();
        match wanted.split_first() {
            Some((&"*", domain)) => {
                labels.len() > domain.len() && labels.ends_with(domain) && !labels.contains(&"")
            }
            _ => labels == wanted,
        }
    }

    /// A second implementation of the decision.
    fn matches_by_definition(route: &Route, request: &Request) -> bool {
        let host = route.host.as_ref().is_none_or(|hosts| {
            let is_host = |pattern: &HostPattern| is_host_by_definition(&pattern.to_string(), request);
            hosts.as_slice().iter().any(is_host)
        });
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
                let explained = table.explain(&request.view());
                let taken = explained.iter().position(|found| *found == RouteMatch::Taken);
                prop_assert_eq!(taken, table.position(&request.view()));
                prop_assert_eq!(taken, table.look_up(&Index::new(&routes), &request.view()));
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

    }
}
