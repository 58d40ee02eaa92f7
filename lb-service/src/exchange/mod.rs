//! One request from its head to its log line, independent of the transport.
//!
//! An [`Exchange`] has no socket and never waits. The transport reports what happens and acts on the results. The time
//! and random draws are arguments.
//!
//! | what happens | call | what it decides |
//! |---|---|---|
//! | the head has arrived | [`Exchange::begin`], [`route`](Exchange::route) | the snapshot, the pool and the session |
//! | a backend is needed | [`admit`](Exchange::admit) | whether the request is placed, waits or is rejected |
//! | a connection attempt takes long | [`race`](Exchange::race) | whether another backend is tried as well |
//! | the head is passed on | [`edit_request`](Exchange::edit_request) | the fields about the client |
//! | the request has ended | [`request_complete`](Exchange::request_complete) | the time limit of this attempt |
//! | a head comes from the backend | [`respond`](Exchange::respond) | whether it is passed on, and with which fields |
//! | something goes wrong | [`fault`](Exchange::fault) | whether there is a retry, or how the request fails |
//! | the request has failed | [`own_response`](Exchange::own_response) | the response to the client |
//! | the exchange is over | [`finish`](Exchange::finish) | the counters and the log line; called once |

pub(crate) mod date;
mod deadlines;
mod explanation;
mod fault;
mod own_response;
mod race;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::header::{HOST, MAX_FORWARDS, RETRY_AFTER, SET_COOKIE};
use http::{HeaderValue, Method};

pub(crate) use deadlines::{Direction, Wait, body_pause};
pub(crate) use fault::{Fault, FaultKind, Side};
pub(crate) use own_response::{OwnResponse, keeps_connection};

use crate::access_log::Record;
use crate::clock::Now;
use crate::explain::X_LB_EXPLAIN;
use crate::failure::{CLIENT_CLOSED_REQUEST, Failure, Rejection};
use crate::forwarded::{self, Downstream, Peer, Scheme, client_ip};
use crate::head_edit::HeadEdit;
use crate::listener::ListenerId;
use crate::pool::{Admission, AdmissionError, Attempt, Dispatch, Fields, Head, Pool, PoolId, Replayability};
use crate::route::RequestView;
use crate::snapshot::Snapshot;
use crate::upgrade;
use crate::wire::rejection::Rejection as WireRejection;
use crate::wire::request as wire;
use explanation::{ExplainAccess, Served};

/// A request in progress.
pub(crate) struct Exchange {
    /// The attempts of the request in its pool.
    pub(crate) dispatch: Dispatch,
    from: Origin,
    arrived: Instant,
    pool: Option<PoolId>,
    /// The successor that has replaced the pool of the request.
    newer: Option<Arc<Pool>>,
    failure: Option<Failure>,
    explain_access: ExplainAccess,
    /// The message about the latest connection that could not be made.
    detail: Option<Box<str>>,
    /// Whether the head of a backend's response was passed on.
    is_passed_on: bool,
    /// Whether the backend broke off the response after that.
    is_truncated: bool,
    /// Whether it was counted as a request without a key.
    key_is_missing: bool,
}

/// The origin of a request, and the snapshot that it uses.
pub(crate) struct Origin {
    /// The snapshot.
    pub(crate) snapshot: Arc<Snapshot>,
    /// The listener, in this snapshot.
    pub(crate) listener: ListenerId,
    /// The peer of the connection; `None` on a Unix socket.
    pub(crate) peer: Option<Peer>,
    /// Whether the client speaks TLS.
    pub(crate) scheme: Scheme,
}

/// The progress of a request, as its transport reports it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// Whether the body can be sent again: there is none, or all that was read of it is kept.
    pub(crate) replayable: bool,
    /// Whether bytes of a response, including one with a 1xx status, have reached the client.
    pub(crate) response_begun: bool,
}

/// The decision about the head of a backend's [final](is_final) response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Response {
    /// The head is passed on, and its body follows.
    PassOn,
    /// The response is dropped, and the request is retried.
    Retry,
}

/// The end of a request, as its transport reports it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    /// The time of the end.
    pub(crate) at: Instant,
    /// The clock for calendar time, which is read only if the access log is on.
    pub(crate) clock: fn() -> SystemTime,
    /// The status of the final response whose head has reached the client.
    pub(crate) status: Option<u16>,
    /// The bytes of the request body.
    pub(crate) request_bytes: u64,
    /// Whether the whole request has arrived.
    pub(crate) has_whole_request: bool,
    /// The bytes of the response body.
    pub(crate) response_bytes: u64,
}

/// The longest time for which a connection may have been idle that gets a request which cannot be sent twice. The
/// backend may be about to close an older one.
const MAX_IDLE: Duration = Duration::from_secs(5);

// === impl Exchange ===

impl Exchange {
    /// Begins an exchange with the head of the request.
    pub(crate) fn begin(from: Origin, head: &impl Head, now: Instant) -> Self {
        Self {
            dispatch: Dispatch::default(),
            explain_access: ExplainAccess::of(head, from.peer.as_ref(), &from.snapshot),
            from,
            arrived: now,
            pool: None,
            newer: None,
            failure: None,
            detail: None,
            is_passed_on: false,
            is_truncated: false,
            key_is_missing: false,
        }
    }

    /// Checks what the grammar of the head cannot: the connection, the trust in its peer, and the number of hops.
    /// `named` is the scheme that the target names.
    ///
    /// # Errors
    /// If the request goes to no backend.
    pub(crate) fn check(&mut self, head: &impl Head, named: Option<wire::Scheme>) -> Result<(), Failure> {
        let is_trusted = self.is_trusted();
        let is_raised = named == Some(wire::Scheme::Https) && self.from.scheme == Scheme::Http;
        let rejection = match () {
            // Somebody on the way could have raised the scheme.
            () if is_raised && !is_trusted => Rejection::Wire(WireRejection::SchemeMismatch),
            () if is_trusted && forwarded::has_too_many(head) => {
                Rejection::Wire(WireRejection::TooManyForwarded)
            }
            () if hops_left(head) == Some(0) => Rejection::LastHop,
            () => return Ok(()),
        };
        Err(self.fail(Failure::Rejected(rejection)))
    }

    fn is_trusted(&self) -> bool {
        let Origin { peer, snapshot, .. } = &self.from;
        peer.as_ref().is_some_and(|peer| snapshot.trusted_proxies.trusts(peer.ip))
    }

    /// Finds the pool of the request and its session there.
    ///
    /// # Errors
    /// If no route matches.
    pub(crate) fn route(&mut self, head: &impl Head) -> Result<(), Failure> {
        self.pool = self.from.snapshot.routes.find(&RequestView::of(self.from.listener, head));
        let Some(pool) = self.pool() else { return Err(self.fail(Failure::Rejected(Rejection::NoRoute))) };
        let session = pool.session(head);
        self.dispatch.session = session;
        Ok(())
    }

    /// Returns the pool of the request; `None` before a route was found.
    pub(crate) fn pool(&self) -> Option<&Arc<Pool>> {
        self.newer.as_ref().or_else(|| Some(self.from.snapshot.pool(self.pool?)))
    }

    /// Ends a failed attempt, and returns the pause before the next one.
    pub(crate) fn end_attempt(&mut self) -> Option<Duration> {
        self.dispatch.end_attempt()
    }

    /// Places the request, lets it wait, or rejects it. If the pool has a successor, the request continues there.
    pub(crate) fn admit(&mut self, head: &impl Head, at: Now) -> Admission {
        self.follow_successor(head);
        let admission = self.ask_pool(head, at);
        if let Admission::Rejected(why) = admission {
            // If a backend failed before, that failure is the reason.
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

    /// Returns the client's address, as trusted proxies report it.
    fn client(&self, head: &impl Head) -> Option<IpAddr> {
        let peer = self.from.peer.as_ref()?;
        Some(client_ip(peer.ip, head, &self.from.snapshot.trusted_proxies))
    }

    fn downstream<'a>(&'a self, head: &'a impl Head) -> Downstream<'a> {
        let host = head.first(&HOST).or_else(|| head.authority().map(str::as_bytes));
        Downstream { peer: self.from.peer.as_ref(), scheme: self.from.scheme, host }
    }

    /// Changes the head that the backend gets, without its hop-by-hop fields. `head` is the head that the client sent.
    pub(crate) fn edit_request(&self, head: &impl Head, request: &mut impl HeadEdit) {
        let trusted = &self.from.snapshot.trusted_proxies;
        forwarded::decide(&self.downstream(head), head, trusted).apply(head, request);
        // A load balancer behind this one can trust this one, so the header of a client must not reach it.
        if self.explain_access != ExplainAccess::No {
            request.remove(&X_LB_EXPLAIN);
        }
        if let Some(hops) = hops_left(head) {
            request.set(MAX_FORWARDS, hops.saturating_sub(1).into());
        }
        if let Some(host) = self.other_host(head) {
            request.set(HOST, host);
        }
    }

    /// Returns the protocol that the request asks to switch to, if the pool passes it on.
    pub(crate) fn upgrade(&self, head: &impl Head, has_body: bool) -> Option<HeaderValue> {
        let pool = self.pool();
        upgrade::requested(head, has_body, |protocol| pool.is_none_or(|pool| pool.allows_upgrade(protocol)))
    }

    /// Returns the `Host` for the backend, unless it is the one that the client sent. A request of HTTP/1.0 may have
    /// none, but what leaves is HTTP/1.1, in which a server refuses that.
    fn other_host(&self, head: &impl Head) -> Option<HeaderValue> {
        let of_pool = self.pool().and_then(|pool| pool.host.clone());
        if of_pool.is_some() || head.first(&HOST).is_some() {
            return of_pool;
        }
        let of_backend =
            || self.dispatch.attempt.as_ref().map(|attempt| attempt.backend.target().address.authority());
        let host = head.authority().map(str::to_owned).or_else(of_backend)?;
        HeaderValue::try_from(host).ok()
    }

    /// Records that a body follows the head. The client determines the delay until
    /// [`request_complete`](Self::request_complete).
    pub(crate) fn body_follows(&mut self) {
        if let Some(attempt) = &mut self.dispatch.attempt {
            attempt.uploading();
        }
    }

    /// Records that the whole request was passed on, so the backend determines the delay from now on. Returns the time
    /// limit until the head of the response, if this attempt has one. `now` is only called for a request with a body,
    /// so the others do not read the clock.
    pub(crate) fn request_complete(&mut self, now: impl FnOnce() -> Instant) -> Option<Duration> {
        let attempt = self.dispatch.attempt.as_mut()?;
        if attempt.is_uploading() {
            attempt.sent(now());
        }
        let waits = attempt.time_to_first_byte().is_none();
        self.pool().and_then(|pool| pool.per_try()).filter(|_| waits)
    }

    /// Decides what happens to the head of a backend's [final](is_final) response, and changes it for the client.
    pub(crate) fn respond(
        &mut self,
        head: &impl Head,
        status: u16,
        response: &mut (impl Fields + HeadEdit),
        progress: Progress,
        at: Now,
    ) -> Response {
        if self.is_retried(head, status, retry_after(status, response), progress, at) {
            return Response::Retry;
        }
        self.is_passed_on = true;
        if let Some(cookie) = self.cookie(head, at.time) {
            response.add(SET_COOKIE, cookie);
        }
        if let Some(explanation) = self.explanation(head) {
            response.set(X_LB_EXPLAIN, explanation);
        }
        Response::PassOn
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
        let retries = self.dispatch.responded(&pool, status, retry_after, replayability, at);
        // This response replaces earlier failures, unless it is itself replaced by a retry.
        self.failure = retries.then_some(Failure::Response(status));
        retries
    }

    /// Returns the cookie that the response sets, if any.
    fn cookie(&self, head: &impl Head, now: Instant) -> Option<HeaderValue> {
        let pool = self.pool().filter(|pool| pool.is_sticky())?;
        let backend = &self.dispatch.attempt.as_ref()?.backend;
        let trusted = &self.from.snapshot.trusted_proxies;
        let secure = forwarded::is_https(&self.downstream(head), head, trusted);
        pool.set_cookie(backend, self.dispatch.session, secure, now)
    }

    /// Returns the explanation, if the client requested it and is allowed to get it.
    fn explanation(&self, head: &impl Head) -> Option<HeaderValue> {
        if self.explain_access != ExplainAccess::Granted {
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

    /// Records that the body of the response is complete, so the backend has succeeded.
    pub(crate) fn response_complete(&mut self) {
        if let Some(attempt) = &mut self.dispatch.attempt {
            attempt.finished();
        }
    }

    /// Returns the longest time for which a connection may have been idle that this attempt uses; `None` if it needs a
    /// new one, because an idle connection has just failed it (RFC 9112, section 9.3.1).
    pub(crate) fn max_idle(&self, head: &impl Head) -> Option<Duration> {
        match () {
            () if self.dispatch.is_replayed() => None,
            () if head.method().is_idempotent() => Some(Duration::MAX),
            () => Some(MAX_IDLE),
        }
    }

    /// Records the message of TLS or of the system about a connection that could not be made.
    pub(crate) fn cannot_connect(&mut self, message: String) {
        self.detail = Some(message.into());
    }

    /// Records a fault of the attempt. Returns whether the request is retried.
    pub(crate) fn fault(&mut self, head: &impl Head, fault: Fault, progress: Progress, at: Now) -> bool {
        let fault = fault.since(progress);
        self.is_truncated |= self.is_passed_on && fault.side == Side::Backend;
        if self.dispatch.goes_on() {
            return true;
        }
        let failure = self.fail(fault.failure());
        if let (Failure::ResponseStalled, Some(attempt)) = (failure, &mut self.dispatch.attempt) {
            attempt.cancelled();
        }
        let (Failure::Upstream(error), Some(pool)) = (failure, self.pool().cloned()) else { return false };
        let reused = self.dispatch.attempt.as_ref().and_then(|attempt| attempt.reused) == Some(true);
        let replayability = Replayability {
            nothing_sent: fault.nothing_sent,
            ..progress.replayability(head, fault.is_stale(reused))
        };
        self.dispatch.broke(&pool, error, replayability, at)
    }

    /// Ends the request without a response of a backend, for this reason.
    pub(crate) fn fail(&mut self, failure: Failure) -> Failure {
        self.failure = Some(failure);
        failure
    }

    /// Returns the reason why the request has failed so far; `None` if it has not.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.failure
    }

    /// Returns the response that the proxy sends itself; `None` if no client is left or nothing has failed.
    pub(crate) fn own_response(&self, head: &impl Head, clock: fn() -> SystemTime) -> Option<OwnResponse> {
        OwnResponse::to(self.failure?, self.explanation(head), clock)
    }

    /// Counts the request and writes its log line.
    pub(crate) fn finish(&self, head: &impl Head, end: End) {
        let status = self.status(end);
        self.count(status, end);
        let log = self.from.snapshot.access_log(self.from.listener);
        if log.is_on() {
            log.record(&self.record(head, status, end));
        }
    }

    /// Returns the status that the client received, or the status that stands for it.
    fn status(&self, end: End) -> u16 {
        end.status.or(self.failure.map(Failure::status)).unwrap_or(CLIENT_CLOSED_REQUEST)
    }

    fn count(&self, status: u16, end: End) {
        let Origin { snapshot, listener, .. } = &self.from;
        if let Some(Failure::Rejected(reason)) = self.failure {
            snapshot.traffic(*listener).reject(reason);
        }
        let requests = snapshot.requests(*listener, self.pool);
        requests.responses.increment(status);
        if status < 500 && self.failure.is_some_and(Failure::breaks_off) {
            requests.broken_off.increment();
        }
        if self.is_truncated {
            requests.truncated_responses.increment();
        }
        if !end.has_whole_request && self.failure.is_some_and(Failure::is_truncation) {
            requests.truncated_requests.increment();
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
            time: (end.clock)() - duration,
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
            offset: None,
            detail: self.detail.as_deref(),
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
            nothing_sent: false,
        }
    }
}

/// Returns how often an OPTIONS request may still be forwarded (RFC 9110, section 7.6.2); `None` means no limit.
fn hops_left(head: &impl Head) -> Option<u64> {
    if *head.method() != Method::OPTIONS {
        return None;
    }
    str::from_utf8(head.first(&MAX_FORWARDS)?).ok()?.parse().ok()
}

/// Returns whether a response ends its request, or hands the connection over to another protocol.
pub(crate) fn is_final(status: u16) -> bool {
    const SWITCHING_PROTOCOLS: u16 = 101;
    status >= 200 || status == SWITCHING_PROTOCOLS
}

/// Returns the pause that a backend asks for in a rejection. A date counts as one second.
fn retry_after(status: u16, response: &impl Fields) -> Option<Duration> {
    let value = (400..600).contains(&status).then(|| response.first(&RETRY_AFTER)).flatten()?;
    let seconds = str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok());
    Some(Duration::from_secs(seconds.unwrap_or(1)))
}

#[cfg(test)]
mod tests;
