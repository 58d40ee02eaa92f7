//! One request from its head to its log line: what is known of it, and what is decided about it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use http::header::{EXPECT, HOST, RETRY_AFTER};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::{Error, ErrorSource, ErrorType};

use crate::explain::{Asked, Served};
use crate::failure::Failure;
use crate::forwarded::{Peer, client_ip};
use crate::frontend::Turn;
use crate::listener::ListenerId;
use crate::pool::{Dispatch, KeySource, Now, PickError, Pool, PoolId, Replayability, UpstreamError};
use crate::route::RequestView;
use crate::traffic::{Connection, Rejection};
use crate::upgraded::Gate;

/// What one request carries with it.
pub(crate) struct RequestContext {
    /// Absent until the head of the request is there.
    pub(crate) turn: Option<Box<Turn>>,
    pub(crate) arrived: Instant,
    pub(crate) pool: Option<PoolId>,
    /// What has taken the place of its pool since.
    newer: Option<Arc<Pool>>,
    pub(crate) dispatch: Dispatch,
    pub(crate) failure: Option<Failure>,
    /// What holds back the answer to a request for another protocol.
    pub(crate) gate: Option<Arc<Gate>>,
    /// Whether its answer is to say how it was served.
    asked: Asked,
    /// Whether all of it has been passed on.
    whole: bool,
    /// Whether it was counted as a request without a key.
    key_is_missing: bool,
}

// === impl RequestContext ===

impl RequestContext {
    pub(crate) fn new() -> Self {
        Self {
            turn: None,
            arrived: Instant::now(),
            pool: None,
            newer: None,
            dispatch: Dispatch::default(),
            failure: None,
            gate: None,
            asked: Asked::No,
            whole: false,
            key_is_missing: false,
        }
    }

    pub(crate) fn connection(&self) -> Option<&Arc<Connection>> {
        self.turn.as_ref().map(|turn| &turn.connection)
    }

    pub(crate) fn pool(&self) -> Option<&Arc<Pool>> {
        pool_of(&self.newer, &self.turn, self.pool)
    }

    /// Sees whether its answer is to say how it was served.
    pub(crate) fn read_question(&mut self, request: &RequestHeader) {
        if let Some(turn) = &self.turn {
            self.asked = Asked::of(&request.headers, self.peer(), &turn.plan);
        }
    }

    /// Whether it came with a question, which is not for backends, whoever asks.
    pub(crate) fn has_question(&self) -> bool {
        self.asked != Asked::No
    }

    /// How it was served, if somebody asked who may.
    pub(crate) fn explanation(&self, request: &RequestHeader) -> Option<HeaderValue> {
        let turn = self.turn.as_ref().filter(|_| self.asked == Asked::ByRight)?;
        let served = Served {
            route: turn.plan.routes.position(&view(turn.listener, request)),
            pool: self.pool(),
            dispatch: &self.dispatch,
            failure: self.failure,
        };
        served.header()
    }

    /// Finds its pool, and the session in it.
    pub(crate) fn route(&mut self, request: &RequestHeader) -> Option<PoolId> {
        let turn = self.turn.as_ref()?;
        self.pool = turn.plan.routes.find(&view(turn.listener, request));
        self.dispatch.session = self.pool().and_then(|pool| pool.session(&request.headers));
        self.pool
    }

    /// From now on its pool is the one that has taken the place of it, if there is one.
    pub(crate) fn keep_up(&mut self, request: &RequestHeader) {
        if let Some(newer) = self.pool().and_then(|pool| pool.newest()) {
            self.dispatch.session = newer.session(&request.headers);
            self.newer = Some(newer);
        }
    }

    /// Gives it to a backend.
    pub(crate) fn place(&mut self, request: &RequestHeader) -> Result<(), PickError> {
        let Some(pool) = pool_of(&self.newer, &self.turn, self.pool) else {
            return Err(PickError::Unavailable);
        };
        if !pool.is_hashed() {
            return self.dispatch.place(pool, &[], moment());
        }
        let key = pool.hash_key(&key_source(self.client(request), request));
        if key.is_none() && !self.key_is_missing {
            self.key_is_missing = true;
            pool.counters().keys_missing.increment();
        }
        self.dispatch.place(pool, key.as_deref().unwrap_or_default(), moment())
    }

    /// The client's address, as far as trusted proxies tell.
    pub(crate) fn client(&self, request: &RequestHeader) -> Option<IpAddr> {
        let peer = self.peer()?;
        Some(client_ip(peer.ip, &request.headers, &self.turn.as_ref()?.plan.trusted_proxies))
    }

    /// Who connected to us; none on a Unix socket.
    pub(crate) fn peer(&self) -> Option<&Peer> {
        self.connection()?.peer.as_ref()
    }

    /// All of the request has been passed on: from here on it is the backend that takes its time.
    pub(crate) fn is_whole(&mut self) {
        self.whole = true;
        let Some(attempt) = self.dispatch.attempt.as_mut() else { return };
        if attempt.is_uploading() {
            attempt.sent(Instant::now());
        }
        let waits = attempt.time_to_first_byte().is_none();
        let limit = self.pool().and_then(|pool| pool.per_try()).filter(|_| waits);
        if let (Some(connection), Some(limit)) = (self.connection(), limit) {
            connection.patience.limit(Some(tokio::time::Instant::now() + limit));
        }
    }

    /// Whether a backend seems to take too long, but it is the client that has not sent its request: unless it waits for the
    /// backend to ask for that.
    pub(crate) fn client_stalled(&self, error: &Error, request: &RequestHeader) -> bool {
        let timed_out =
            *error.esource() == ErrorSource::Upstream && *error.etype() == ErrorType::ReadTimedout;
        timed_out && !self.whole && !request.headers.contains_key(EXPECT)
    }

    /// The head is there: what follows may take its time.
    pub(crate) fn unlimit_attempt(&self) {
        if let Some(connection) = self.connection() {
            connection.patience.limit(None);
        }
    }

    /// Whether this attempt took too long.
    pub(crate) fn take_expired(&self) -> bool {
        self.connection().is_some_and(|connection| connection.patience.take_expired())
    }

    /// No backend takes it. If one failed it before, that is why.
    pub(crate) fn unplaced(&mut self, otherwise: Rejection) -> Box<Error> {
        let failure = self.failure.unwrap_or(Failure::Rejected(otherwise));
        self.fail(failure)
    }

    pub(crate) fn fail(&mut self, failure: Failure) -> Box<Error> {
        self.failure = Some(failure);
        Error::explain(ErrorType::HTTPStatus(failure.status()), failure.as_str())
    }

    /// The head of the final answer is there. Whether it is left for another attempt.
    pub(crate) fn answered(&mut self, answer: &ResponseHeader, sent: Replayability) -> bool {
        let Some(pool) = pool_of(&self.newer, &self.turn, self.pool) else { return false };
        let status = answer.status.as_u16();
        let again = self.dispatch.answered(pool, status, retry_after(answer), sent, moment());
        // Whatever went wrong before has been made good, unless this is to be made good itself.
        self.failure = again.then_some(Failure::Answer(status));
        again
    }

    /// The backend failed the request. Whether there is to be another attempt.
    pub(crate) fn broke(&mut self, error: UpstreamError, sent: Replayability) -> bool {
        self.failure = Some(Failure::Upstream(error));
        let Some(pool) = pool_of(&self.newer, &self.turn, self.pool) else { return false };
        self.dispatch.broke(pool, error, sent, moment())
    }

    /// Whether its answer may have to set a cookie.
    pub(crate) fn is_sticky(&self) -> bool {
        self.pool().is_some_and(|pool| pool.is_sticky())
    }

    /// The cookie that its answer is to set, if any.
    pub(crate) fn set_cookie(&self, secure: bool) -> Option<HeaderValue> {
        let backend = &self.dispatch.attempt.as_ref()?.backend;
        self.pool()?.set_cookie(backend, self.dispatch.session, secure, Instant::now())
    }
}

/// What routes look at.
pub(crate) fn view(listener: ListenerId, request: &RequestHeader) -> RequestView<'_> {
    RequestView {
        listener,
        host: host(request),
        path: request.uri.path(),
        method: &request.method,
        headers: &request.headers,
    }
}

/// What a hash is made of.
pub(crate) fn key_source(client: Option<IpAddr>, request: &RequestHeader) -> KeySource<'_> {
    KeySource { client, uri: &request.uri, headers: &request.headers }
}

fn pool_of<'a>(
    newer: &'a Option<Arc<Pool>>,
    turn: &'a Option<Box<Turn>>,
    pool: Option<PoolId>,
) -> Option<&'a Arc<Pool>> {
    if newer.is_some() { newer.as_ref() } else { Some(turn.as_ref()?.plan.pool(pool?)) }
}

/// The time, and a random number.
fn moment() -> Now {
    Now { time: Instant::now(), draw: fastrand::f64() }
}

/// The host a request is for: of its target if that is absolute (RFC 9112, 3.2.2), else of its `Host` header.
pub(crate) fn host(request: &RequestHeader) -> Option<&str> {
    let of_target = request.uri.authority().map(http::uri::Authority::as_str);
    of_target.or_else(|| request.headers.get(HOST)?.to_str().ok())
}

/// How long a backend that refuses asks to be left alone, when it says so in seconds; a date stands for one second.
fn retry_after(answer: &ResponseHeader) -> Option<Duration> {
    let is_refusal = answer.status.is_client_error() || answer.status.is_server_error();
    let value = is_refusal.then(|| answer.headers.get(RETRY_AFTER)).flatten()?;
    let seconds = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    Some(Duration::from_secs(seconds.unwrap_or(1)))
}
