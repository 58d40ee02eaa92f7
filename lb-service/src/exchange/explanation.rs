//! The field of a response that describes how its request was served. [`crate::explain`] documents it.

use std::sync::Arc;

use http::HeaderValue;

use crate::explain::X_LB_EXPLAIN;
use crate::failure::Failure;
use crate::forwarded::Peer;
use crate::pool::{Dispatch, Fields, Pool};
use crate::snapshot::Snapshot;

/// Whether a request requests an explanation, and whether the client is allowed to get it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExplainAccess {
    /// The request has no header for it.
    No,
    /// The client is not allowed to get an explanation.
    Denied,
    /// The client gets an explanation.
    Granted,
}

/// The state of a request when its response begins.
pub(crate) struct Served<'a> {
    pub(crate) route: Option<usize>,
    pub(crate) pool: Option<&'a Arc<Pool>>,
    pub(crate) dispatch: &'a Dispatch,
    pub(crate) failure: Option<Failure>,
}

// === impl ExplainAccess ===

impl ExplainAccess {
    /// Evaluates the fields of a request and its peer.
    pub(crate) fn of(fields: &impl Fields, peer: Option<&Peer>, snapshot: &Snapshot) -> Self {
        let Some(value) = fields.first(&X_LB_EXPLAIN) else { return Self::No };
        let is_trusted = peer.is_some_and(|peer| snapshot.trusted_proxies.trusts(peer.ip));
        let has_token = || snapshot.explain_token.as_ref().is_some_and(|token| token.is(value));
        if is_trusted || has_token() { Self::Granted } else { Self::Denied }
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
    line.extend([" ", name, "=", value]);
}

fn push_all(line: &mut String, name: &str, values: impl Iterator<Item = String>) {
    let values: Vec<String> = values.collect();
    if !values.is_empty() {
        push(line, name, &values.join(","));
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::failure::Rejection;
    use crate::policy::Algorithm;
    use crate::pool::{Admin, Now, Replayability, Session, StickySettings, UpstreamError};
    use crate::testing::{PROXY, settings, snapshot};
    use http::HeaderMap;

    fn at() -> Now {
        Now { time: Instant::now(), draw: 0.5 }
    }

    #[test]
    fn only_a_trusted_peer_or_the_token_gets_an_explanation() {
        let snapshot = snapshot(&settings(Algorithm::RoundRobin));
        let access = |peer: Option<[u8; 4]>, value: Option<&'static str>| {
            let line = value.map(|value| (X_LB_EXPLAIN, HeaderValue::from_static(value)));
            ExplainAccess::of(
                &line.into_iter().collect::<HeaderMap>(),
                peer.map(|ip| Peer::new(ip.into())).as_ref(),
                &snapshot,
            )
        };
        assert_eq!(access(Some(PROXY), None), ExplainAccess::No);
        assert_eq!(access(Some(PROXY), Some("1")), ExplainAccess::Granted);
        assert_eq!(access(Some([192, 0, 2, 7]), Some("1")), ExplainAccess::Denied);
        assert_eq!(access(Some([192, 0, 2, 7]), Some("secret")), ExplainAccess::Granted);
        assert_eq!(access(None, Some("secret")), ExplainAccess::Granted);
        for wrong in ["", "secre", "secrets", "Secret"] {
            assert_eq!(access(None, Some(wrong)), ExplainAccess::Denied, "{wrong}");
        }
    }

    #[test]
    fn the_line_describes_how_a_request_was_served() {
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
        let sent = Replayability {
            idempotent: true,
            replayable: true,
            response_begun: false,
            stale: false,
            nothing_sent: false,
        };
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
    fn the_line_describes_the_session() {
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
