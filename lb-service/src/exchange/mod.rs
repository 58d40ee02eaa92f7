//! One request from its head to its log line, whatever carries it.
//!
//! An [`Exchange`] has no socket and never waits. What carries the request reports what happens and does what the
//! exchange returns. The time and random draws are arguments.
//!
//! | what happens | call | what it decides |
//! |---|---|---|
//! | the head has arrived | [`Exchange::begin`], [`route`](Exchange::route) | the snapshot, the pool and the session |
//! | a backend is wanted | [`admit`](Exchange::admit) | whether it is placed, waits or is rejected |
//! | the head is passed on | [`edit_request`](Exchange::edit_request) | what the backend is told of the client |
//! | the request has ended | [`request_complete`](Exchange::request_complete) | how long this attempt may still take |
//! | a head comes from the backend | [`respond`](Exchange::respond) | whether it is passed on, and with which fields |
//! | something goes wrong | [`fault`](Exchange::fault) | whether there is a retry, or how the request fails |
//! | it has failed | [`own_response`](Exchange::own_response) | what the client gets |
//! | it is over | [`finish`](Exchange::finish) | the counters and the log line, once: it takes the exchange |

mod explanation;
mod fault;
mod own_response;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::header::{CONNECTION, EXPECT, HOST, RETRY_AFTER, SET_COOKIE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Version};

pub(crate) use fault::{Fault, FaultKind, Side};
pub(crate) use own_response::{OwnResponse, keeps_connection};

use crate::access_log::Record;
use crate::clock::Now;
use crate::explain::X_LB_EXPLAIN;
use crate::failure::{CLIENT_CLOSED_REQUEST, Failure, Rejection};
use crate::forwarded::{self, Downstream, Peer, Scheme, client_ip};
use crate::head_edit::HeadEdit;
use crate::hop_by_hop;
use crate::listener::ListenerId;
use crate::pool::{Admission, AdmissionError, Attempt, Dispatch, Fields, Head, Pool, PoolId, Replayability};
use crate::route::RequestView;
use crate::snapshot::Snapshot;
use explanation::{Asked, Served};

/// A request that has not ended.
pub(crate) struct Exchange {
    /// Its way through its pool.
    pub(crate) dispatch: Dispatch,
    from: Origin,
    arrived: Instant,
    pool: Option<PoolId>,
    /// The pool that has taken the place of its pool since.
    newer: Option<Arc<Pool>>,
    failure: Option<Failure>,
    asked: Asked,
    /// Whether all of the request has been passed on.
    is_complete: bool,
    /// Whether it was counted as a request without a key.
    key_is_missing: bool,
}

/// Where a request comes from, and the snapshot that it uses.
pub(crate) struct Origin {
    /// The snapshot.
    pub(crate) snapshot: Arc<Snapshot>,
    /// The listener, in this snapshot.
    pub(crate) listener: ListenerId,
    /// The other end of the connection; none on a Unix socket.
    pub(crate) peer: Option<Peer>,
    /// Whether the client speaks TLS.
    pub(crate) scheme: Scheme,
}

/// How far a request has come, as far as its transport sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// Whether its body can be sent again: there is none, or all that was read of it is kept.
    pub(crate) replayable: bool,
    /// Whether bytes of a response, including one with a 1xx status, have reached the client.
    pub(crate) response_begun: bool,
}

/// What happens to the head of a backend's response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Response {
    /// It is passed on, and another one follows.
    Informational,
    /// It is passed on, and its body follows.
    Final,
    /// It is dropped, and the request is sent again.
    Retry,
}

/// How a request has ended, as far as its transport sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    /// When it ended.
    pub(crate) at: Instant,
    /// That moment on the calendar.
    pub(crate) time: SystemTime,
    /// The status of the final response whose head has reached the client.
    pub(crate) status: Option<u16>,
    /// The bytes of the request body.
    pub(crate) request_bytes: u64,
    /// The bytes of the response body.
    pub(crate) response_bytes: u64,
}

// === impl Exchange ===

impl Exchange {
    /// Begins with the head of the request.
    pub(crate) fn begin(from: Origin, head: &impl Head, now: Instant) -> Self {
        Self {
            dispatch: Dispatch::default(),
            asked: Asked::of(head, from.peer.as_ref(), &from.snapshot),
            from,
            arrived: now,
            pool: None,
            newer: None,
            failure: None,
            is_complete: false,
            key_is_missing: false,
        }
    }

    /// Finds the pool of the request and its session there.
    ///
    /// # Errors
    /// When no route matches.
    pub(crate) fn route(&mut self, head: &impl Head) -> Result<(), Failure> {
        self.pool = self.from.snapshot.routes.find(&RequestView::of(self.from.listener, head));
        let Some(pool) = self.pool() else { return Err(self.fail(Failure::Rejected(Rejection::NoRoute))) };
        let session = pool.session(head);
        self.dispatch.session = session;
        Ok(())
    }

    /// The pool that the request goes to.
    pub(crate) fn pool(&self) -> Option<&Arc<Pool>> {
        self.newer.as_ref().or_else(|| Some(self.from.snapshot.pool(self.pool?)))
    }

    /// Ends an attempt that has failed; how long to wait before the next.
    pub(crate) fn end_attempt(&mut self) -> Option<Duration> {
        self.dispatch.end_attempt()
    }

    /// Places the request, lets it wait, or rejects it. A request whose pool has a successor goes on with that.
    pub(crate) fn admit(&mut self, head: &impl Head, at: Now) -> Admission {
        self.follow_successor(head);
        let admission = self.ask_pool(head, at);
        if let Admission::Rejected(why) = admission {
            // If a backend failed it before, that is the reason.
            self.failure.get_or_insert(Failure::Rejected(why.into()));
        }
        admission
    }

    fn follow_successor(&mut self, head: &impl Head) {
        if let Some(newer) = self.pool().and_then(|pool| pool.newest()) {
            self.dispatch.session = newer.session(head);
            self.newer = Some(newer);
        }
    }

    fn ask_pool(&mut self, head: &impl Head, at: Now) -> Admission {
        let Some(pool) = self.pool().cloned() else {
            return Admission::Rejected(AdmissionError::Unavailable);
        };
        if !pool.is_hashed() {
            return self.dispatch.admit(&pool, &[], at);
        }
        let key = pool.hash_key(self.client(head), head);
        if key.is_none() && !self.key_is_missing {
            self.key_is_missing = true;
            pool.counters().keys_missing.increment();
        }
        self.dispatch.admit(&pool, key.as_deref().unwrap_or_default(), at)
    }

    /// The client's address, as far as trusted proxies tell.
    fn client(&self, head: &impl Head) -> Option<IpAddr> {
        let peer = self.from.peer.as_ref()?;
        Some(client_ip(peer.ip, head, &self.from.snapshot.trusted_proxies))
    }

    fn downstream<'a>(&'a self, head: &'a impl Head) -> Downstream<'a> {
        Downstream { peer: self.from.peer.as_ref(), scheme: self.from.scheme, host: head.first(&HOST) }
    }

    /// Changes the head that the backend gets, without its hop-by-hop fields. `head` is what the client sent.
    pub(crate) fn edit_request(&self, head: &impl Head, request: &mut impl HeadEdit) {
        let trusted = &self.from.snapshot.trusted_proxies;
        forwarded::decide(&self.downstream(head), head, trusted).apply(head, request);
        if let Some(protocol) = hop_by_hop::upgrade(head) {
            request.set(CONNECTION, HeaderValue::from_static("Upgrade"));
            request.set(UPGRADE, protocol);
        }
        // A load balancer behind this one may trust this one, so the question of a client must not reach it.
        if self.asked != Asked::No {
            request.remove(&X_LB_EXPLAIN);
        }
        if let Some(host) = self.pool().and_then(|pool| pool.host.clone()) {
            request.set(HOST, host);
        }
    }

    /// A body follows the head, so the client is what takes time until [`request_complete`](Self::request_complete).
    pub(crate) fn body_follows(&mut self) {
        if let Some(attempt) = &mut self.dispatch.attempt {
            attempt.uploading();
        }
    }

    /// All of the request has been passed on, so the backend is what takes time from now on. Returns how long it may
    /// take until the head of the response, if this attempt has a limit.
    pub(crate) fn request_complete(&mut self, now: Instant) -> Option<Duration> {
        self.is_complete = true;
        let attempt = self.dispatch.attempt.as_mut()?;
        if attempt.is_uploading() {
            attempt.sent(now);
        }
        let waits = attempt.time_to_first_byte().is_none();
        self.pool().and_then(|pool| pool.per_try()).filter(|_| waits)
    }

    /// The head of a response has come from the backend: decides what happens to it, and changes it for the client.
    pub(crate) fn respond(
        &mut self,
        head: &impl Head,
        status: u16,
        response: &mut (impl Fields + HeadEdit),
        progress: Progress,
        at: Now,
    ) -> Response {
        hop_by_hop::strip(status, response);
        if !is_final(status) {
            return Response::Informational;
        }
        if self.is_retried(head, status, retry_after(status, response), progress, at) {
            return Response::Retry;
        }
        if let Some(cookie) = self.cookie(head, at.time) {
            response.add(SET_COOKIE, cookie);
        }
        if let Some(explanation) = self.explanation(head) {
            response.set(X_LB_EXPLAIN, explanation);
        }
        Response::Final
    }

    fn is_retried(
        &mut self,
        head: &impl Head,
        status: u16,
        retry_after: Option<Duration>,
        progress: Progress,
        at: Now,
    ) -> bool {
        let Some(pool) = self.pool().cloned() else { return false };
        let replayability = progress.replayability(head, false);
        let retries = self.dispatch.answered(&pool, status, retry_after, replayability, at);
        // This response replaces what went wrong before, unless it is to be replaced itself.
        self.failure = retries.then_some(Failure::Answer(status));
        retries
    }

    /// The cookie that the response sets, if any.
    fn cookie(&self, head: &impl Head, now: Instant) -> Option<HeaderValue> {
        let pool = self.pool().filter(|pool| pool.is_sticky())?;
        let backend = &self.dispatch.attempt.as_ref()?.backend;
        let trusted = &self.from.snapshot.trusted_proxies;
        let secure = forwarded::is_https(&self.downstream(head), head, trusted);
        pool.set_cookie(backend, self.dispatch.session, secure, now)
    }

    /// How the request was served, if the client has asked and is allowed to.
    fn explanation(&self, head: &impl Head) -> Option<HeaderValue> {
        if self.asked != Asked::Granted {
            return None;
        }
        let Origin { snapshot, listener, .. } = &self.from;
        let served = Served {
            route: snapshot.routes.position(&RequestView::of(*listener, head)),
            pool: self.pool(),
            dispatch: &self.dispatch,
            failure: self.failure,
        };
        served.header()
    }

    /// The body of the response is complete, so the backend has succeeded.
    pub(crate) fn response_complete(&mut self) {
        if let Some(attempt) = &mut self.dispatch.attempt {
            attempt.finished();
        }
    }

    /// Something has gone wrong with the attempt. Whether the request is sent again.
    pub(crate) fn fault(&mut self, head: &impl Head, fault: Fault, progress: Progress, at: Now) -> bool {
        let fault = self.blamed(head, fault);
        if self.dispatch.goes_on() {
            return true;
        }
        let failure = self.fail(fault.failure());
        let (Failure::Upstream(error), Some(pool)) = (failure, self.pool().cloned()) else { return false };
        let reused = self.dispatch.attempt.as_ref().and_then(|attempt| attempt.reused) == Some(true);
        let replayability = progress.replayability(head, fault.is_stale(reused));
        self.dispatch.broke(&pool, error, replayability, at)
    }

    /// Blames the client for a backend that seems slow but still waits for the rest of the request, unless the client
    /// waits for the backend to ask for the body.
    fn blamed(&self, head: &impl Head, fault: Fault) -> Fault {
        let is_slow_backend = fault.side == Side::Backend && fault.kind == FaultKind::ReadTimeout;
        let waits_for_client = !self.is_complete && head.first(&EXPECT).is_none();
        if is_slow_backend && waits_for_client { Fault { side: Side::Client, ..fault } } else { fault }
    }

    /// The request ends without a response of a backend, for this reason.
    pub(crate) fn fail(&mut self, failure: Failure) -> Failure {
        self.failure = Some(failure);
        failure
    }

    /// The request has ended with a fault. An earlier failure is the reason, if there is one.
    pub(crate) fn end_with(&mut self, fault: Fault) -> Failure {
        *self.failure.get_or_insert_with(|| fault.failure())
    }

    /// Why the request has failed so far.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.failure
    }

    /// The response that the client gets in place of a backend's; none: no client is left, or nothing has failed.
    pub(crate) fn own_response(&self, head: &impl Head) -> Option<OwnResponse> {
        OwnResponse::to(self.failure?, self.explanation(head))
    }

    /// Counts the request and writes its log line.
    pub(crate) fn finish(self, head: &impl Head, end: End) {
        let status = self.status(end);
        self.count(status, end);
        let log = self.from.snapshot.access_log(self.from.listener);
        if log.is_on() {
            log.record(&self.record(head, status, end));
        }
    }

    /// The status that the client saw, or what stands for it.
    fn status(&self, end: End) -> u16 {
        end.status.or(self.failure.map(Failure::status)).unwrap_or(CLIENT_CLOSED_REQUEST)
    }

    fn count(&self, status: u16, end: End) {
        let Origin { snapshot, listener, .. } = &self.from;
        if let Some(Failure::Rejected(reason)) = self.failure {
            snapshot.traffic(*listener).reject(reason);
        }
        let requests = snapshot.requests(*listener, self.pool);
        requests.answers.increment(status);
        if status < 500 && self.failure.is_some_and(Failure::breaks_off) {
            requests.broken_off.increment();
        }
        requests.duration.observe(end.at.saturating_duration_since(self.arrived));
        requests.request_bytes.add(end.request_bytes);
        requests.response_bytes.add(end.response_bytes);
    }

    fn record<'a>(&'a self, head: &'a impl Head, status: u16, end: End) -> Record<'a> {
        let duration = end.at.saturating_duration_since(self.arrived);
        let attempt = self.dispatch.attempt.as_ref();
        let passed = self.dispatch.passed.iter();
        Record {
            time: end.time - duration,
            client: self.client(head),
            listener: &self.from.snapshot.traffic(self.from.listener).name,
            method: Some(head.method().as_str()),
            host: head.host().map(str::as_bytes),
            path: Some(head.path().as_bytes()),
            version: Some(head.version()),
            status: Some(status),
            bytes_in: end.request_bytes,
            bytes_out: end.response_bytes,
            duration,
            pool: self.pool().map(|pool| &*pool.name),
            backend: attempt.map(|attempt| &*attempt.backend.label),
            ttfb: attempt.and_then(Attempt::time_to_first_byte),
            tries: self.dispatch.tries,
            tried: self.dispatch.failures().map(|(backend, how)| (&*backend.label, how.word())).collect(),
            passed_over: passed.map(|(backend, why)| (&*backend.label, why.as_str().into())).collect(),
            reused: attempt.and_then(|attempt| attempt.reused),
            failure: self.failure.map(Failure::as_str),
        }
    }
}

// === impl Progress ===

impl Progress {
    fn replayability(self, head: &impl Head, stale: bool) -> Replayability {
        Replayability {
            idempotent: head.method().is_idempotent(),
            replayable: self.replayable,
            response_begun: self.response_begun,
            stale,
        }
    }
}

/// Whether a response ends its request, or hands the connection over to another protocol.
pub(crate) fn is_final(status: u16) -> bool {
    const SWITCHING_PROTOCOLS: u16 = 101;
    status >= 200 || status == SWITCHING_PROTOCOLS
}

/// Frames a response for a client of HTTP/1.0, which cannot decode transfer codings: the end of the connection ends its
/// body (RFC 9112, section 6.1). Returns whether the connection has to be closed for that.
pub(crate) fn unframe(head: &impl Head, response: &mut (impl Fields + HeadEdit)) -> bool {
    let is_coded = head.version() == Version::HTTP_10 && response.first(&TRANSFER_ENCODING).is_some();
    if is_coded {
        response.remove(&TRANSFER_ENCODING);
    }
    is_coded
}

/// Returns how long a backend that refuses a request asks for a pause. A date counts as one second.
fn retry_after(status: u16, response: &impl Fields) -> Option<Duration> {
    let value = response.first(&RETRY_AFTER).filter(|_| (400..600).contains(&status))?;
    let seconds = str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok());
    Some(Duration::from_secs(seconds.unwrap_or(1)))
}

#[cfg(test)]
mod tests;
