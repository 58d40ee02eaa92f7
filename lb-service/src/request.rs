//! One request from its head to its log line: what is known of it, and what is decided about it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::header::{HOST, RETRY_AFTER};
use http::{HeaderMap};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::{Error, ErrorType};

use crate::failure::Failure;
use crate::forwarded::client_ip;
use crate::plan::Plan;
use crate::pool::{
    Again, Attempt, Failed, KeySource, Mishap, Passed, Pool, PoolId, Repetition, Tried, Unplaced,
    UpstreamError, Wish,
};
use crate::route::RequestView;
use crate::traffic::{Connection, Rejection};

/// What one request carries with it.
pub struct RequestContext {
    pub(crate) plan: Arc<Plan>,
    pub(crate) arrived: Instant,
    pub(crate) arrived_at: SystemTime,
    pub(crate) connection: Option<Arc<Connection>>,
    pub(crate) pool: Option<PoolId>,
    pub(crate) attempt: Option<Attempt>,
    /// How often it was sent, or tried to be sent.
    pub(crate) tries: u32,
    pub(crate) tried: Tried,
    pub(crate) passed: Passed,
    pub(crate) failure: Option<Failure>,
    /// The backend that its cookie names.
    session: Option<usize>,
    /// How long to wait before the next attempt, if there is to be one.
    next: Option<Duration>,
    /// The place of this attempt in the budget of its pool.
    repetition: Option<Repetition>,
    /// Whether its one replay on account of a stale connection is used up.
    replayed: bool,
    /// Whether it was counted as a request without a key.
    key_is_missing: bool,
}

/// What is known about a request when a backend has failed it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    /// Whether it may be sent twice (RFC 9110, 9.2.2).
    pub(crate) idempotent: bool,
    /// Whether its body can be sent again.
    pub(crate) replayable: bool,
    /// Whether bytes of an answer have reached the client.
    pub(crate) answered: bool,
    /// Whether its connection had been kept alive, and ended before the first byte of an answer.
    pub(crate) stale: bool,
}

// === impl RequestContext ===

impl RequestContext {
    pub(crate) fn new(plan: Arc<Plan>) -> Self {
        Self {
            plan,
            arrived: Instant::now(),
            arrived_at: SystemTime::now(),
            connection: None,
            pool: None,
            attempt: None,
            tries: 0,
            tried: Tried::default(),
            passed: Passed::default(),
            failure: None,
            session: None,
            next: None,
            repetition: None,
            replayed: false,
            key_is_missing: false,
        }
    }

    pub(crate) fn pool(&self) -> Option<&Arc<Pool>> {
        self.pool.map(|id| self.plan.pool(id))
    }

    /// Finds its pool, and the session in it.
    pub(crate) fn route(&mut self, request: &RequestHeader) -> Option<PoolId> {
        let connection = self.connection.as_ref()?;
        self.pool = self.plan.routes.find(&RequestView {
            listener: connection.listener,
            host: host(request),
            path: request.uri.path(),
            method: &request.method,
            headers: &request.headers,
        });
        self.session = self.pool().and_then(|pool| pool.session(&request.headers));
        self.pool
    }

    /// Ends the attempt that was, if any; how long to wait before the next.
    pub(crate) fn end_attempt(&mut self) -> Option<Duration> {
        self.attempt = None;
        self.next.take()
    }

    /// Whether it was never sent before, so that it may wait for a backend.
    pub(crate) fn may_queue(&self) -> bool {
        self.tries == 0
    }

    /// Gives it to a backend.
    pub(crate) fn place(&mut self, request: &RequestHeader, peer: Option<IpAddr>) -> Result<(), Unplaced> {
        let plan = self.plan.clone();
        let Some(pool) = self.pool.map(|id| plan.pool(id)) else { return Err(Unplaced::Nobody) };
        let client = peer.map(|peer| client_ip(peer, &request.headers, &plan.trusted_proxies));
        let key = pool.hash_key(&KeySource { client, uri: &request.uri, headers: &request.headers });
        if key.is_none() && pool.is_hashed() && !self.key_is_missing {
            self.key_is_missing = true;
            pool.keys_missing.increment();
        }
        let wish = Wish {
            key: key.as_deref().unwrap_or_default(),
            session: self.session,
            tried: &self.tried,
            now: Instant::now(),
            draw: fastrand::f64(),
        };
        self.attempt = Some(pool.place(&wish, &mut self.passed)?);
        self.tries += 1;
        Ok(())
    }

    /// Starts the time that this attempt may take to the head of its answer.
    pub(crate) fn limit_attempt(&self) {
        let limit = self.pool().and_then(|pool| pool.per_try());
        if let (Some(connection), Some(limit)) = (&self.connection, limit) {
            connection.patience.limit(Some(tokio::time::Instant::now() + limit));
        }
    }

    /// The head is there: what follows may take its time.
    pub(crate) fn unlimit_attempt(&self) {
        if let Some(connection) = &self.connection {
            connection.patience.limit(None);
        }
    }

    /// Whether this attempt took too long.
    pub(crate) fn take_expired(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.patience.take_expired())
    }

    /// No backend takes it. If one failed it before, that is why.
    pub(crate) fn unplaced(&mut self) -> Box<Error> {
        let failure = self.failure.unwrap_or(Failure::Rejected(Rejection::NoBackend));
        self.fail(failure)
    }

    pub(crate) fn fail(&mut self, failure: Failure) -> Box<Error> {
        self.failure = Some(failure);
        Error::explain(ErrorType::HTTPStatus(failure.status()), failure.as_str())
    }

    /// The head of the final answer is there. Whether it is left for another attempt.
    pub(crate) fn answered(&mut self, answer: &ResponseHeader, sent: Sent) -> bool {
        let (status, now) = (answer.status.as_u16(), Instant::now());
        let Some(attempt) = self.attempt.as_mut() else { return false };
        attempt.answered(status, retry_after(&answer.headers), now);
        // Whatever went wrong before has been made good.
        self.failure = None;
        let mishap = Mishap::Status(status);
        let Some(again) = self.decide(mishap, sent, now) else { return false };
        self.failure = Some(Failure::Answer(status));
        self.take_up(again, mishap, now);
        true
    }

    /// The backend failed the request. Whether there is to be another attempt.
    pub(crate) fn broke(&mut self, error: UpstreamError, sent: Sent) -> bool {
        let (mishap, now) = (Mishap::Error(error), Instant::now());
        self.failure = Some(Failure::Upstream(error));
        let again = self.decide(mishap, sent, now);
        let is_replay = again.as_ref().is_some_and(|again| again.replay);
        // A connection that was closed while it was idle says nothing about the backend.
        if let Some(attempt) = self.attempt.as_mut().filter(|_| !is_replay) {
            attempt.failed(error, now);
        }
        again.map(|again| self.take_up(again, mishap, now)).is_some()
    }

    /// Whether another attempt was decided on that has not begun.
    pub(crate) fn goes_on(&self) -> bool {
        self.next.is_some()
    }

    fn take_up(&mut self, again: Again, mishap: Mishap, now: Instant) {
        self.replayed |= again.replay;
        self.repetition = again.repetition;
        self.next = Some(again.pause);
        let Some(backend) = self.attempt.as_ref().map(|attempt| attempt.backend.clone()) else { return };
        // Only a replay goes on when there is no other: to the same backend, over a new connection.
        if self.pool().is_some_and(|pool| pool.has_another(&self.tried, &backend, now)) {
            self.tried.insert(backend, mishap);
        }
    }

    fn decide(&self, mishap: Mishap, sent: Sent, now: Instant) -> Option<Again> {
        let failed = Failed {
            cause: mishap.cause()?,
            idempotent: sent.idempotent,
            replayable: sent.replayable,
            answered: sent.answered,
            tries: self.tried.len() + 1,
            stale: sent.stale,
            replayed: self.replayed,
        };
        let backend = &self.attempt.as_ref()?.backend;
        self.pool()?.again(&failed, &self.tried, backend, now, fastrand::f64())
    }

    /// The cookie that its answer is to set, if any.
    pub(crate) fn set_cookie(&self, secure: bool) -> Option<http::HeaderValue> {
        let backend = &self.attempt.as_ref()?.backend;
        self.pool()?.set_cookie(backend, self.session, secure, Instant::now())
    }
}

/// The host a request is for: of its target if that is absolute (RFC 9112, 3.2.2), else of its `Host` header.
pub(crate) fn host(request: &RequestHeader) -> Option<&str> {
    let of_target = request.uri.authority().map(http::uri::Authority::as_str);
    of_target.or_else(|| request.headers.get(HOST)?.to_str().ok())
}

/// How long a backend asks to be left alone, when it says so in seconds; a date stands for one second.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?;
    let seconds = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    Some(Duration::from_secs(seconds.unwrap_or(1)))
}
