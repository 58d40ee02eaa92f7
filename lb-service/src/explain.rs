//! Answers to "why?": where a request would go, and how one that was served came to its backend.
//!
//! [`Snapshot::explain`] answers a [`Question`] about a request that nobody sent. It asks what a request asks (routes, session, key,
//! pool), in the same order and of the same functions, and changes nothing.
//!
//! The header [`X_LB_EXPLAIN`] asks about the request that it comes with: its answer has a header of the same name, one line,
//! such as
//!
//! ```text
//! route=2 pool=api policy=least_request backend=10.0.0.1:80 tries=1 passed=10.0.0.2:80/down,10.0.0.3:80/full session=no
//! ```
//!
//! | part | |
//! |---|---|
//! | `route` | index of the route, from 0; `none`: no route matches, and nothing follows but `reason` |
//! | `pool`, `policy` | where it leads |
//! | `backend` | who answered, or was tried last; `none`: nobody took it |
//! | `tries` | how often it was sent, or tried to be sent |
//! | `tried` | who failed it and how, if anybody did |
//! | `passed` | who could not have it and why, if it was anybody's turn |
//! | `session` | `no`: there are none here; `new`: it had none; `kept`: it is at its backend; `moved`: it is not |
//! | `reason` | why the proxy itself answers |
//!
//! Invariant: whoever is not trusted learns nothing. The question of a peer is honoured when it is one of the
//! [`trusted_proxies`](Snapshot::trusted_proxies), or says the [`Token`]. It never reaches a backend, honoured or not: were it
//! passed on, a client could ask a load balancer behind this one, which trusts this one.

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

/// Asks how a request is served, and says it.
pub const X_LB_EXPLAIN: HeaderName = HeaderName::from_static("x-lb-explain");

/// A request that nobody sent.
#[derive(Debug)]
pub struct Question {
    /// The listener that it would come through.
    pub listener: ListenerId,
    /// Who would connect; none: somebody on a Unix socket.
    pub peer: Option<IpAddr>,
    head: Parts,
}

/// Why a text cannot be part of a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// It is no target.
    #[error("`{0}` is not a path: it begins with `/`, and has no spaces")]
    Target(String),
    /// It is no header.
    #[error("`{0}` is not a header: write NAME:VALUE")]
    Header(String),
}

/// Where a request would go.
#[derive(Debug)]
pub struct Explained<'a> {
    /// What each route is to it, in their order.
    pub routes: Vec<RouteMatch<'a>>,
    /// The index of the one that it takes.
    pub route: Option<usize>,
    /// Where that leads.
    pub pool: Option<InPool<'a>>,
}

/// What happens to a request in its pool.
#[derive(Debug)]
pub struct InPool<'a> {
    /// The pool.
    pub pool: &'a Arc<Pool>,
    /// What its hash is made of, if the policy hashes and it has that.
    pub key: Option<Vec<u8>>,
    /// The backend that its cookie names, as an index of [`Pool::backends`].
    pub session: Option<usize>,
    /// The choice.
    pub explanation: Explanation,
}

// === impl Question ===

impl Question {
    /// A `GET` of `target` (a path and maybe a query) through a listener, by somebody on a Unix socket.
    ///
    /// # Errors
    /// When `target` is none.
    pub fn new(listener: ListenerId, method: Method, target: &str) -> Result<Self, QuestionError> {
        let no_target = |()| QuestionError::Target(target.to_owned());
        let has_good_start = target.starts_with('/') || target == "*";
        has_good_start.then_some(()).ok_or(()).map_err(no_target)?;
        let target: Uri = target.parse().map_err(|_| no_target(()))?;
        let mut request = http::Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = target;
        Ok(Self { listener, peer: None, head: request.into_parts().0 })
    }

    /// The same with one more header.
    ///
    /// # Errors
    /// When name or value cannot be those of a header.
    pub fn with_header(mut self, name: &str, value: &str) -> Result<Self, QuestionError> {
        let no_header = || QuestionError::Header(format!("{name}:{value}"));
        let parsed: HeaderName = name.parse().map_err(|_| no_header())?;
        let value = HeaderValue::try_from(value).map_err(|_| no_header())?;
        self.head.headers.append(parsed, value);
        Ok(self)
    }

    /// The same from this address.
    #[must_use]
    pub fn from(self, peer: IpAddr) -> Self {
        Self { peer: Some(peer), ..self }
    }
}

// === impl Snapshot ===

impl Snapshot {
    /// Where the request in question would go at this moment, if it was the next one. Its listener must be one of this snapshot.
    /// Where a random number decides, it is taken for 0, so who starts slowly takes the request.
    pub fn explain(&self, question: &Question, now: Instant) -> Explained<'_> {
        let routes = self.routes.explain(&RequestView::of(question.listener, &question.head));
        let route = routes.iter().position(|found| *found == RouteMatch::Taken);
        let pool = route.map(|route| self.pool(self.routes.routes()[route].pool));
        Explained { routes, route, pool: pool.map(|pool| self.in_pool(pool, question, now)) }
    }

    fn in_pool<'a>(&self, pool: &'a Arc<Pool>, question: &Question, now: Instant) -> InPool<'a> {
        let head = &question.head;
        let client = question.peer.map(|peer| client_ip(peer, head, &self.trusted_proxies));
        let key = pool.hash_key(client, head);
        let session = pool.session(head).map(|session| session.backend);
        let bytes = key.as_deref().unwrap_or_default();
        let request = PickRequest { key: bytes, session, tried: &Tried::new(), now, draw: 0.0 };
        InPool { pool, key: key.as_deref().map(<[u8]>::to_vec), session, explanation: pool.explain(&request) }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::forwarded::TrustedProxies;
    use crate::listener::{ListenAddress, Listener, Listeners};
    use crate::policy::Algorithm;
    use crate::pool::{BackendSettings, Dispatch, HashOn, Now, PoolId, PoolSettings, StickySettings};
    use crate::route::{Mismatch, PathPattern, Route, RouteTable};
    use crate::snapshot::SnapshotParts;
    use crate::traffic::Traffic;
    use pingora::lb::HealthRegistry;

    const PROXY: [u8; 4] = [10, 0, 0, 9];

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 80))
    }

    fn settings(policy: Algorithm) -> PoolSettings {
        let backends = (1..=3).map(|last| BackendSettings::new(address(last))).collect();
        PoolSettings { policy, ..PoolSettings::new("api", backends) }
    }

    /// `/api` leads to the pool, nothing else anywhere.
    fn snapshot(settings: &PoolSettings) -> Snapshot {
        let pool = Pool::new(settings, Arc::new(HealthRegistry::new()), None);
        let listener = Listener { name: "web".into(), address: ListenAddress::Tcp(address(200)) };
        let route = Route { path: PathPattern::Prefix("/api".into()).into(), ..Route::any(PoolId(0)) };
        let parts = SnapshotParts {
            listeners: Listeners::new([listener]),
            routes: RouteTable::new(vec![route]),
            pools: vec![Arc::new(pool)],
            trusted_proxies: TrustedProxies::new(vec!["10.0.0.9/32".parse().unwrap()]),
            explain_token: Some(Token::new("secret")),
            access_logs: vec![],
        };
        Snapshot::new(parts, &Traffic::new())
    }

    fn get(target: &str) -> Question {
        Question::new(ListenerId(0), Method::GET, target).unwrap()
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
    fn the_key_is_that_of_the_client_whom_a_trusted_proxy_names() {
        let snapshot = snapshot(&settings(Algorithm::Maglev));
        let key = |question: &Question| snapshot.explain(question, Instant::now()).pool.unwrap().key;
        assert_eq!(key(&get("/api")), None);
        let from =
            |ip: [u8; 4]| get("/api").with_header("X-Forwarded-For", "192.0.2.1").unwrap().from(ip.into());
        assert_eq!(key(&from(PROXY)).unwrap(), b"192.0.2.1");
        assert_eq!(key(&from([192, 0, 2, 7])).unwrap(), b"192.0.2.7");
    }

    #[test]
    fn a_session_and_a_key_lead_where_they_lead_requests() {
        let mut settings = settings(Algorithm::ConsistentHash);
        settings.hash_on = HashOn::Query("user".into());
        settings.sticky = Some(StickySettings::new("lb"));
        let snapshot = snapshot(&settings);
        let pool = &snapshot.pools[0];
        for number in 0..50 {
            let question = get(&format!("/api?user={number}"));
            let explained = snapshot.explain(&question, Instant::now()).pool.unwrap();
            let key = number.to_string();
            let mut dispatch = Dispatch::default();
            dispatch.place(pool, key.as_bytes(), at()).unwrap();
            let backend = dispatch.attempt.as_ref().unwrap().backend.clone();
            assert_eq!(explained.explanation.taken.unwrap().address, backend.address);

            let cookie = pool.set_cookie(&backend, None, false, Instant::now()).unwrap();
            let pair = cookie.to_str().unwrap().split(';').next().unwrap();
            let question = get("/api?user=other").with_header("Cookie", pair).unwrap();
            let explained = snapshot.explain(&question, Instant::now()).pool.unwrap();
            assert!(explained.explanation.by_session);
            assert_eq!(explained.explanation.taken.unwrap().address, backend.address);
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let target = |text| Question::new(ListenerId(0), Method::GET, text).unwrap_err();
        for text in ["", "path", "/a b", "http://host/"] {
            assert_eq!(target(text), QuestionError::Target(text.into()));
        }
        for (name, value) in [("", "x"), ("a b", "x"), ("x", "a\nb")] {
            assert!(get("/").with_header(name, value).is_err(), "{name}:{value}");
        }
    }
}
