//! Explanations: the backend that a request would go to, and how a served request came to its backend.
//!
//! [`Snapshot::explain`] explains a [`SampleRequest`], which is a request that is not sent. It applies the same checks
//! as a real request (routes, session, key, pool), in the same order and with the same functions, and changes nothing.
//!
//! The header [`X_LB_EXPLAIN`] asks for an explanation of the request that it comes with. The response has a header of
//! the same name, with one line such as:
//!
//! ```text
//! route=2 pool=api policy=least_request backend=10.0.0.1:80 tries=1 passed=10.0.0.2:80/down session=no
//! ```
//!
//! | part | |
//! |---|---|
//! | `route` | index of the route, from 0; `none`: no route matches, and nothing follows but `reason` |
//! | `pool`, `policy` | the pool of the route, and its policy |
//! | `backend` | the backend that responded, or that was tried last; `none`: no backend was selected |
//! | `tries` | the number of attempts, including failed connections |
//! | `tried` | the backends that failed, each with its failure |
//! | `passed` | the backends that were skipped, each with the reason |
//! | `session` | `no`: no sessions; `new`: the request had none; `kept`: it went to its backend; `moved`: it did not |
//! | `reason` | why the proxy itself responds |
//!
//! Invariant: only trusted clients get explanations. A request for one is honoured if the peer is one of the
//! [`trusted_proxies`](Snapshot::trusted_proxies), or if the header contains the [`Token`]. The header never reaches a
//! backend, honoured or not: otherwise a client could get an explanation from a load balancer behind this one, which
//! trusts this one.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Uri};

use crate::forwarded::client_ip;
use crate::listener::ListenerId;
use crate::pool::{Explanation, PickRequest, Pool, Tried};
use crate::route::{RequestView, RouteMatch};
use crate::snapshot::Snapshot;
pub use crate::token::Token;
use crate::wire::without_dot_segments;

/// The name of the header that asks for an explanation and of the one that contains it.
pub const X_LB_EXPLAIN: HeaderName = HeaderName::from_static("x-lb-explain");

/// A request to explain, which is not sent.
#[derive(Debug)]
pub struct SampleRequest {
    /// The listener that the request would come through.
    pub listener: ListenerId,
    /// The address of the client; `None` means a Unix socket.
    pub peer: Option<IpAddr>,
    head: Parts,
    /// The path without dot segments, if it has some: routes are found by it.
    clean_path: Option<String>,
}

/// The reason why a text cannot be part of a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The text is not a target.
    #[error("`{0}` is not a path: it begins with `/`, has no spaces, and does not leave `/` by `..`")]
    Target(String),
    /// The text is not a header.
    #[error("`{0}` is not a header: write NAME:VALUE")]
    Header(String),
}

/// The explained route and pool of a request.
#[derive(Debug)]
pub struct Explained<'a> {
    /// The match of each route, in their order.
    pub routes: Vec<RouteMatch<'a>>,
    /// The index of the route that the request takes; `None` if no route matches.
    pub route: Option<usize>,
    /// The pool of that route.
    pub pool: Option<InPool<'a>>,
}

/// The explained choice of a backend in the pool.
#[derive(Debug)]
pub struct InPool<'a> {
    /// The pool.
    pub pool: &'a Arc<Pool>,
    /// The key that is hashed; `None` if the policy does not hash or the request has no key.
    pub key: Option<Vec<u8>>,
    /// The backend that the session cookie names, as an index of [`Pool::backends`].
    pub session: Option<usize>,
    /// The choice of the pool.
    pub explanation: Explanation,
}

// === impl SampleRequest ===

impl SampleRequest {
    /// Returns a request with this method for `target` (a path and an optional query) through a listener, from a client
    /// on a Unix socket.
    ///
    /// # Errors
    /// If `target` is not a target.
    pub fn new(listener: ListenerId, method: Method, target: &str) -> Result<Self, RequestError> {
        let no_target = |()| RequestError::Target(target.to_owned());
        let has_good_start = target.starts_with('/') || target == "*";
        has_good_start.then_some(()).ok_or(()).map_err(no_target)?;
        let path = target.split('?').next().unwrap_or_default();
        let clean_path = without_dot_segments(path).map_err(|_| no_target(()))?;
        let target: Uri = target.parse().map_err(|_| no_target(()))?;
        let mut request = http::Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = target;
        Ok(Self { listener, peer: None, head: request.into_parts().0, clean_path })
    }

    /// Adds a header.
    ///
    /// # Errors
    /// If the name or the value is not valid for a header.
    pub fn with_header(mut self, name: &str, value: &str) -> Result<Self, RequestError> {
        let no_header = || RequestError::Header(format!("{name}:{value}"));
        let parsed: HeaderName = name.parse().map_err(|_| no_header())?;
        let value = HeaderValue::try_from(value).map_err(|_| no_header())?;
        self.head.headers.append(parsed, value);
        Ok(self)
    }

    fn view(&self) -> RequestView<'_, Parts> {
        let view = RequestView::of(self.listener, &self.head);
        RequestView { path: self.clean_path.as_deref().unwrap_or(view.path), ..view }
    }

    /// Sets the address of the client.
    #[must_use]
    pub fn from(self, peer: IpAddr) -> Self {
        Self { peer: Some(peer), ..self }
    }
}

// === impl Snapshot ===

impl Snapshot {
    /// Returns where the request would go at this moment if it were the next one. Its listener must be one of this
    /// snapshot. Random numbers count as 0, so a backend in slow start takes the request.
    pub fn explain(&self, sample: &SampleRequest, now: Instant) -> Explained<'_> {
        let routes = self.routes.explain(&sample.view());
        let route = routes.iter().position(|found| *found == RouteMatch::Taken);
        let pool = route.and_then(|route| self.routes.routes().get(route)).map(|route| self.pool(route.pool));
        Explained { routes, route, pool: pool.map(|pool| self.in_pool(pool, sample, now)) }
    }

    fn in_pool<'a>(&self, pool: &'a Arc<Pool>, sample: &SampleRequest, now: Instant) -> InPool<'a> {
        let head = &sample.head;
        let client = sample.peer.map(|peer| client_ip(peer, head, &self.trusted_proxies));
        let key = pool.hash_key(client, head);
        let session = pool.session(head).map(|session| session.backend);
        let bytes = key.as_deref().unwrap_or_default();
        let request = PickRequest { key: bytes, session, tried: &Tried::new(), now, draw: 0.0 };
        InPool { pool, key: key.as_deref().map(<[u8]>::to_vec), session, explanation: pool.explain(&request) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Algorithm;
    use crate::pool::{Dispatch, HashOn, Now, StickySettings};
    use crate::route::{Mismatch, PathPattern};
    use crate::testing::{PROXY, settings, snapshot};

    fn get(target: &str) -> SampleRequest {
        SampleRequest::new(ListenerId(0), Method::GET, target).unwrap()
    }

    fn at() -> Now {
        Now { time: Instant::now(), draw: 0.5 }
    }

    #[test]
    fn a_request_without_a_route_has_no_pool() {
        let snapshot = snapshot(&settings(Algorithm::RoundRobin));
        let explained = snapshot.explain(&get("/other"), Instant::now());
        assert_eq!(
            explained.routes,
            [RouteMatch::Not(Mismatch::Path(&PathPattern::Prefix("/api".into()).into()))]
        );
        assert!(explained.route.is_none() && explained.pool.is_none());
    }

    #[test]
    fn a_route_is_found_by_the_path_without_dot_segments() {
        let snapshot = snapshot(&settings(Algorithm::RoundRobin));
        let route = |target| snapshot.explain(&get(target), Instant::now()).route;
        assert_eq!((route("/other/../api?a=/.."), route("/api/%2e%2e/other")), (Some(0), None));
        let outside = SampleRequest::new(ListenerId(0), Method::GET, "/..");
        assert!(matches!(outside, Err(RequestError::Target(_))));
    }

    #[test]
    fn the_key_comes_from_the_client_that_a_trusted_proxy_reports() {
        let snapshot = snapshot(&settings(Algorithm::Maglev));
        let key = |sample: &SampleRequest| snapshot.explain(sample, Instant::now()).pool.unwrap().key;
        assert_eq!(key(&get("/api")), None);
        let from =
            |ip: [u8; 4]| get("/api").with_header("X-Forwarded-For", "192.0.2.1").unwrap().from(ip.into());
        assert_eq!(key(&from(PROXY)).unwrap(), b"192.0.2.1");
        assert_eq!(key(&from([192, 0, 2, 7])).unwrap(), b"192.0.2.7");
    }

    #[test]
    fn a_session_and_a_key_select_the_same_backend_as_for_a_request() {
        let mut settings = settings(Algorithm::ConsistentHash);
        settings.hash_on = HashOn::Query("user".into());
        settings.sticky = Some(StickySettings::new("lb"));
        let snapshot = snapshot(&settings);
        let pool = &snapshot.pools[0];
        for number in 0..50 {
            let sample = get(&format!("/api?user={number}"));
            let explained = snapshot.explain(&sample, Instant::now()).pool.unwrap();
            let key = number.to_string();
            let mut dispatch = Dispatch::default();
            dispatch.place(pool, key.as_bytes(), at()).unwrap();
            let backend = dispatch.attempt.as_ref().unwrap().backend.clone();
            assert_eq!(explained.explanation.taken.unwrap().address, backend.address);

            let cookie = pool.set_cookie(&backend, None, false, Instant::now()).unwrap();
            let pair = cookie.to_str().unwrap().split(';').next().unwrap();
            let sample = get("/api?user=other").with_header("Cookie", pair).unwrap();
            let explained = snapshot.explain(&sample, Instant::now()).pool.unwrap();
            assert!(explained.explanation.by_session);
            assert_eq!(explained.explanation.taken.unwrap().address, backend.address);
        }
    }

    #[test]
    fn an_invalid_request_is_rejected() {
        let target = |text| SampleRequest::new(ListenerId(0), Method::GET, text).unwrap_err();
        for text in ["", "path", "/a b", "http://host/"] {
            assert_eq!(target(text), RequestError::Target(text.into()));
        }
        for (name, value) in [("", "x"), ("a b", "x"), ("x", "a\nb")] {
            assert!(get("/").with_header(name, value).is_err(), "{name}:{value}");
        }
    }
}
