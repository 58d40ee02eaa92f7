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

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use pingora::http::RequestHeader;

use crate::failure::Failure;
use crate::forwarded::{Peer, client_ip};
use crate::listener::ListenerId;
use crate::pool::{Dispatch, Explanation, PickRequest, Pool, Tried};
use crate::request::{key_source, view};
use crate::route::RouteMatch;
use crate::snapshot::Snapshot;

/// Asks how a request is served, and says it.
pub const X_LB_EXPLAIN: HeaderName = HeaderName::from_static("x-lb-explain");

/// A secret that lets anybody who knows it ask.
#[derive(Clone)]
pub struct Token(Arc<str>);

/// A request that nobody sent.
#[derive(Debug)]
pub struct Question {
    /// The listener that it would come through.
    pub listener: ListenerId,
    /// Who would connect; none: somebody on a Unix socket.
    pub peer: Option<IpAddr>,
    head: RequestHeader,
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

/// Whether a request asks how it is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// It does not.
    No,
    /// It does, and may not.
    InVain,
    /// It does, and gets an answer.
    ByRight,
}

/// What is known of a request when its answer begins.
pub(crate) struct Served<'a> {
    pub(crate) route: Option<usize>,
    pub(crate) pool: Option<&'a Arc<Pool>>,
    pub(crate) dispatch: &'a Dispatch,
    pub(crate) failure: Option<Failure>,
}

// === impl Token ===

impl Token {
    /// This secret, which should be long and random. An empty one lets nobody in.
    pub fn new(secret: impl Into<Arc<str>>) -> Self {
        Self(secret.into())
    }

    /// Whether a text is the secret. How long that takes tells no more than the length of the secret.
    pub fn is(&self, text: &[u8]) -> bool {
        let own = self.0.as_bytes();
        let differences = own.iter().zip(text).fold(0, |all, (own, other)| all | (own ^ other));
        std::hint::black_box(differences) == 0 && own.len() == text.len() && !own.is_empty()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
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
        // Pingora takes anything; what it cannot read becomes a path that is no text.
        target.parse::<http::Uri>().map_err(|_| no_target(()))?;
        let head = RequestHeader::build(method, target.as_bytes(), None).map_err(|_| no_target(()))?;
        Ok(Self { listener, peer: None, head })
    }

    /// The same with one more header.
    ///
    /// # Errors
    /// When name or value cannot be those of a header.
    pub fn with_header(mut self, name: &str, value: &str) -> Result<Self, QuestionError> {
        let no_header = || QuestionError::Header(format!("{name}:{value}"));
        let parsed: HeaderName = name.parse().map_err(|_| no_header())?;
        let value = HeaderValue::try_from(value).map_err(|_| no_header())?;
        self.head.append_header(parsed, value).map_err(|_| no_header())?;
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
        let routes = self.routes.explain(&view(question.listener, &question.head));
        let route = routes.iter().position(|found| *found == RouteMatch::Taken);
        let pool = route.map(|route| self.pool(self.routes.routes()[route].pool));
        Explained { routes, route, pool: pool.map(|pool| self.in_pool(pool, question, now)) }
    }

    fn in_pool<'a>(&self, pool: &'a Arc<Pool>, question: &Question, now: Instant) -> InPool<'a> {
        let headers = &question.head.headers;
        let client = question.peer.map(|peer| client_ip(peer, headers, &self.trusted_proxies));
        let key = pool.hash_key(&key_source(client, &question.head));
        let session = pool.session(headers).map(|session| session.backend);
        let bytes = key.as_deref().unwrap_or_default();
        let request = PickRequest { key: bytes, session, tried: &Tried::new(), now, draw: 0.0 };
        InPool { pool, key: key.as_deref().map(<[u8]>::to_vec), session, explanation: pool.explain(&request) }
    }
}

// === impl Asked ===

impl Asked {
    /// Given the headers of a request and who sent it.
    pub(crate) fn of(headers: &HeaderMap, peer: Option<&Peer>, snapshot: &Snapshot) -> Self {
        let Some(question) = headers.get(&X_LB_EXPLAIN) else { return Self::No };
        let is_trusted = peer.is_some_and(|peer| snapshot.trusted_proxies.trusts(peer.ip));
        let knows = || snapshot.explain_token.as_ref().is_some_and(|token| token.is(question.as_bytes()));
        if is_trusted || knows() { Self::ByRight } else { Self::InVain }
    }
}

// === impl Served ===

impl Served<'_> {
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        HeaderValue::try_from(self.line()).ok()
    }

    fn line(&self) -> String {
        let mut line = match self.route {
            Some(route) => format!("route={route}"),
            None => "route=none".to_owned(),
        };
        if let Some(pool) = self.pool {
            self.push_pool(&mut line, pool);
        }
        if let Some(failure) = self.failure {
            push(&mut line, "reason", failure.as_str());
        }
        line
    }

    fn push_pool(&self, line: &mut String, pool: &Pool) {
        let attempt = self.dispatch.attempt.as_ref();
        push(line, "pool", &pool.name);
        push(line, "policy", pool.policy().as_str());
        push(line, "backend", attempt.map_or("none", |attempt| &*attempt.backend.label));
        push(line, "tries", &self.dispatch.tries.to_string());
        let failures = self.dispatch.failures();
        push_all(line, "tried", failures.map(|(backend, how)| format!("{}/{}", backend.label, how.word())));
        let passed = self.dispatch.passed.iter();
        push_all(line, "passed", passed.map(|(backend, why)| format!("{}/{}", backend.label, why.as_str())));
        push(line, "session", self.session(pool));
    }

    fn session(&self, pool: &Pool) -> &'static str {
        let home = self.dispatch.session.and_then(|session| pool.backends().get(session.backend));
        let Some(home) = home else { return if pool.is_sticky() { "new" } else { "no" } };
        let attempt = self.dispatch.attempt.as_ref();
        let is_there = attempt.is_some_and(|attempt| attempt.backend.address == home.address);
        if is_there { "kept" } else { "moved" }
    }
}

fn push(line: &mut String, name: &str, value: &str) {
    write!(line, " {name}={value}").expect("a String takes everything");
}

fn push_all(line: &mut String, name: &str, values: impl Iterator<Item = String>) {
    let values: Vec<String> = values.collect();
    if !values.is_empty() {
        push(line, name, &values.join(","));
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;
    use crate::forwarded::TrustedProxies;
    use crate::listener::{ListenAddress, Listener, Listeners};
    use crate::policy::Algorithm;
    use crate::pool::{
        Admin, BackendSettings, HashOn, Now, PoolId, PoolSettings, Replayability, Session, StickySettings,
        UpstreamError,
    };
    use crate::route::{Mismatch, PathPattern, Route, RouteTable};
    use crate::snapshot::SnapshotParts;
    use crate::traffic::{Rejection, Traffic};
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

    #[test]
    fn only_who_is_trusted_or_knows_the_token_may_ask() {
        let snapshot = snapshot(&settings(Algorithm::RoundRobin));
        let asked = |peer: Option<[u8; 4]>, value: Option<&'static str>| {
            let line = value.map(|value| (X_LB_EXPLAIN, HeaderValue::from_static(value)));
            Asked::of(&line.into_iter().collect(), peer.map(|ip| Peer::new(ip.into())).as_ref(), &snapshot)
        };
        assert_eq!(asked(Some(PROXY), None), Asked::No);
        assert_eq!(asked(Some(PROXY), Some("1")), Asked::ByRight);
        assert_eq!(asked(Some([192, 0, 2, 7]), Some("1")), Asked::InVain);
        assert_eq!(asked(Some([192, 0, 2, 7]), Some("secret")), Asked::ByRight);
        assert_eq!(asked(None, Some("secret")), Asked::ByRight);
        for wrong in ["", "secre", "secrets", "Secret"] {
            assert_eq!(asked(None, Some(wrong)), Asked::InVain, "{wrong}");
        }
        assert!(!Token::new("").is(b""));
    }

    #[test]
    fn the_line_says_how_a_request_was_served() {
        let mut settings = settings(Algorithm::RoundRobin);
        settings.backends[0].admin = Admin::Draining;
        let snapshot = snapshot(&settings);
        let pool = &snapshot.pools[0];
        let mut dispatch = Dispatch::default();
        let line = |dispatch: &Dispatch, failure| {
            Served { route: Some(0), pool: Some(pool), dispatch, failure }.line()
        };
        dispatch.place(pool, b"", at()).unwrap();
        let start = "route=0 pool=api policy=round_robin";
        let passed = "passed=10.0.0.1:80/draining session=no";
        assert_eq!(line(&dispatch, None), format!("{start} backend=10.0.0.2:80 tries=1 {passed}"));
        let sent = Replayability { idempotent: true, replayable: true, response_begun: false, stale: false };
        assert!(dispatch.broke(pool, UpstreamError::Reset, sent, at()));
        assert!(dispatch.end_attempt().is_some_and(|pause| pause < Duration::from_secs(1)));
        dispatch.place(pool, b"", at()).unwrap();
        let failure = Failure::Upstream(UpstreamError::Connect);
        assert!(!dispatch.broke(pool, UpstreamError::Connect, sent, at()));
        let tried = "tries=2 tried=10.0.0.2:80/reset,10.0.0.3:80/connect";
        let said = line(&dispatch, Some(failure));
        assert!(said.starts_with(&format!("{start} backend=10.0.0.3:80 {tried} ")), "{said}");
        assert!(said.ends_with("session=no reason=connect"), "{said}");
        let nowhere = Failure::Rejected(Rejection::NoRoute);
        let served = Served { route: None, pool: None, dispatch: &dispatch, failure: Some(nowhere) };
        assert_eq!(served.line(), "route=none reason=no_route");
    }

    #[test]
    fn the_line_says_what_became_of_a_session() {
        let mut settings = settings(Algorithm::RoundRobin);
        settings.sticky = Some(StickySettings::new("lb"));
        settings.backends[2].admin = Admin::Disabled;
        let snapshot = snapshot(&settings);
        let pool = &snapshot.pools[0];
        for (session, word) in [(None, "new"), (Some(1), "kept"), (Some(2), "moved")] {
            let mut dispatch = Dispatch::default();
            dispatch.session = session.map(|backend| Session { backend, is_current: true });
            dispatch.place(pool, b"", at()).unwrap();
            let served = Served { route: Some(0), pool: Some(pool), dispatch: &dispatch, failure: None };
            assert_eq!(served.session(pool), word);
        }
    }
}
