//! One request, from its head to its log line, as Pingora's callbacks tell it.
//!
//! Each callback is a few lines that call what decides: `request.rs`, [`crate::pool`], [`crate::forwarded`],
//! [`crate::failure`]. Nothing is decided here.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, RETRY_AFTER, SET_COOKIE, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderValue, StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result, RetryType};

use crate::access_log::Record;
use crate::explain::X_LB_EXPLAIN;
use crate::failure::{self, Failure};
use crate::forwarded::{self, Downstream, Scheme};
use crate::frontend::{IDLE, Turn};
use crate::hop_by_hop;
use crate::patience::unless_client_leaves;
use crate::pool::{Attempt, PickError, Pool, Replayability, UpstreamError, Waiter};
use crate::request::{RequestContext, host};
use crate::traffic::Rejection;
use crate::upgraded::Sources;

/// Pingora's callbacks for our requests.
pub(crate) struct Proxy {
    /// Where connections for other protocols are made from.
    pub(crate) sources: Sources,
}

/// A client that reads nothing for this long is given up.
const CLIENT_WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// What Pingora calls a keep-alive without a limit, and sets for every HTTP/1.1 request.
const PINGORA_KEEPS_FOR_EVER: Option<u64> = Some(0);

// === impl Proxy ===

impl Proxy {
    /// Keeps the connection for the next request, unless we are about to leave.
    fn limit_keepalive(&self, session: &mut Session, ctx: &RequestContext) {
        let is_last = ctx.connection().is_some_and(|connection| connection.is_last());
        if is_last {
            session.set_keepalive(None);
        } else if session.get_keepalive() == PINGORA_KEEPS_FOR_EVER {
            session.set_keepalive(Some(IDLE.as_secs()));
        }
    }

    /// Gives the request to a backend, at once or after it has waited for one.
    async fn place(&self, session: &mut Session, ctx: &mut RequestContext) -> Result<()> {
        ctx.keep_up(session.req_header());
        let Some(pool) = ctx.pool().cloned() else {
            return Err(ctx.fail(Failure::Internal));
        };
        // Whoever came before and waits has precedence; a repetition came before.
        let is_first = ctx.dispatch.is_first();
        if !is_first || pool.queue().is_empty() {
            match ctx.place(session.req_header()) {
                Ok(()) => return Ok(()),
                Err(PickError::Full) => {}
                Err(PickError::Unavailable) => return Err(ctx.unplaced(Rejection::NoBackend)),
            }
        }
        let Ok(waiter) = pool.queue().join() else {
            return Err(ctx.unplaced(Rejection::QueueFull));
        };
        Box::pin(self.queue(session, ctx, waiter, pool)).await
    }

    /// Waits in the line. A release and a change of health wake its front; an ejection that ends does not, so everybody
    /// looks then.
    async fn queue(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
        mut waiter: Waiter,
        mut pool: Arc<Pool>,
    ) -> Result<()> {
        let deadline = Instant::now() + pool.queue_timeout;
        loop {
            let look = pool.next_return(Instant::now()).map_or(deadline, |at| at.min(deadline));
            let turn = tokio::time::timeout_at(look.into(), waiter.turn());
            match wait(session, ctx, turn).await? {
                Ok(()) => {}
                Err(_) if look < deadline => {
                    pool.queue().wake();
                    continue;
                }
                Err(_) => return Err(ctx.unplaced(Rejection::QueueTimeout)),
            }
            ctx.keep_up(session.req_header());
            pool = ctx.pool().cloned().unwrap_or(pool);
            match ctx.place(session.req_header()) {
                Ok(()) => return Ok(()),
                Err(PickError::Full) => {}
                Err(PickError::Unavailable) => return Err(ctx.unplaced(Rejection::NoBackend)),
            }
        }
    }

    /// Whether the client speaks TLS, to us or to a proxy that we trust.
    fn is_secure(&self, session: &Session, ctx: &RequestContext) -> bool {
        let headers = &session.req_header().headers;
        ctx.turn.as_ref().is_some_and(|turn| {
            forwarded::is_https(&downstream(session, ctx), headers, &turn.plan.trusted_proxies)
        })
    }

    fn count(&self, session: &Session, ctx: &RequestContext, status: u16, duration: Duration) {
        let Some(turn) = &ctx.turn else { return };
        if let Some(Failure::Rejected(reason)) = ctx.failure {
            turn.connection.door.listener.reject(reason);
        }
        let requests = turn.plan.requests(turn.listener, ctx.pool);
        requests.answers.increment(status);
        if status < 500 && ctx.failure.is_some_and(Failure::breaks_off) {
            requests.broken_off.increment();
        }
        requests.duration.observe(duration);
        requests.request_bytes.add(session.body_bytes_read() as u64);
        requests.response_bytes.add(session.body_bytes_sent() as u64);
    }

    fn log(&self, session: &Session, ctx: &RequestContext, status: u16, duration: Duration) {
        let Some(turn) = &ctx.turn else { return };
        let log = turn.plan.access_log(turn.listener);
        if !log.is_on() {
            return;
        }
        let request = session.req_header();
        let attempt = ctx.dispatch.attempt.as_ref();
        log.record(&Record {
            time: SystemTime::now() - duration,
            client: ctx.client(request),
            listener: &turn.connection.door.listener.name,
            method: Some(request.method.as_str()),
            host: host(request).map(str::as_bytes),
            path: Some(request.uri.path().as_bytes()),
            version: Some(request.version),
            status: Some(status),
            bytes_in: session.body_bytes_read() as u64,
            bytes_out: session.body_bytes_sent() as u64,
            duration,
            pool: ctx.pool().map(|pool| &*pool.name),
            backend: attempt.map(|attempt| &*attempt.backend.label),
            ttfb: attempt.and_then(Attempt::time_to_first_byte),
            tries: ctx.dispatch.tries,
            tried: ctx.dispatch.failures().map(|(backend, how)| (&*backend.label, how.word())).collect(),
            passed_over: ctx
                .dispatch
                .passed
                .iter()
                .map(|(b, why)| (&*b.label, why.as_str().into()))
                .collect(),
            reused: attempt.and_then(|attempt| attempt.reused),
            failure: ctx.failure.map(Failure::as_str),
        });
    }
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = RequestContext;

    fn new_ctx(&self) -> RequestContext {
        RequestContext::new()
    }

    /// No modules: Pingora would add one that compresses, and pay for it on every request.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    fn on_connection_reuse(
        &self,
        _session: &mut Session,
        ctx: &mut RequestContext,
        turn: Box<dyn Any + Send + Sync>,
    ) {
        if let Ok(turn) = turn.downcast::<Turn>() {
            turn.connection.saw_head();
            ctx.turn = Some(turn);
        }
    }

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut RequestContext) -> Result<()> {
        self.limit_keepalive(session, ctx);
        session.set_write_timeout(Some(CLIENT_WRITE_TIMEOUT));
        if session.req_header().version == Version::HTTP_10 {
            // RFC 9110, 15.2: a client of HTTP/1.0 does not know informational answers.
            session.set_ignore_info_resp(true);
        }
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut RequestContext) -> Result<bool> {
        ctx.read_question(session.req_header());
        match ctx.route(session.req_header()) {
            Some(_) => Ok(false),
            None => Err(ctx.fail(Failure::Rejected(Rejection::NoRoute))),
        }
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut RequestContext) -> Result<Box<HttpPeer>> {
        if let Some(pause) = ctx.dispatch.end_attempt().filter(|pause| !pause.is_zero()) {
            // In a box, as the queue is: the future of this callback is made, and moved, for every request.
            Box::pin(wait(session, ctx, tokio::time::sleep(pause))).await?;
        }
        self.place(session, ctx).await?;
        let attempt = ctx.dispatch.attempt.as_ref().expect("it was placed");
        let mut peer = Box::new(attempt.backend.peer().clone());
        if session.is_upgrade_req() && session.is_body_empty() {
            ctx.gate.insert(Arc::default()).guard(&mut peer, &self.sources);
        }
        Ok(peer)
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut RequestContext,
        mut error: Box<Error>,
    ) -> Box<Error> {
        log::debug!("connection to a backend failed: {error}");
        let kind = match UpstreamError::of(error.etype()) {
            UpstreamError::Tls => UpstreamError::Tls,
            _ => UpstreamError::Connect,
        };
        error.set_retry(ctx.broke(kind, sent(session, false)));
        error
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        _fd: std::os::unix::io::RawFd,
        _digest: Option<&Digest>,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        if let Some(attempt) = &mut ctx.dispatch.attempt {
            attempt.connected(reused);
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        let sent = &session.req_header().headers;
        if let Some(turn) = &ctx.turn {
            let trusted = &turn.plan.trusted_proxies;
            forwarded::decide(&downstream(session, ctx), sent, trusted).apply(request)?;
        }
        if let Some(protocol) = hop_by_hop::upgrade(session.req_header()) {
            request.insert_header(CONNECTION, "Upgrade")?;
            request.insert_header(UPGRADE, protocol)?;
        }
        if let Some(attempt) = ctx.dispatch.attempt.as_mut().filter(|_| !session.is_body_empty()) {
            attempt.uploading();
        }
        if ctx.has_question() {
            request.remove_header(&X_LB_EXPLAIN);
        }
        if let Some(host) = ctx.pool().and_then(|pool| pool.host.clone()) {
            request.insert_header(HOST, host)?;
        }
        if let Some(gate) = &ctx.gate {
            gate.hold();
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        _body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        // Also called for a request without a body. What the client takes its time for is no fault of the backend.
        if end_of_stream {
            ctx.is_whole();
            if let Some(gate) = &ctx.gate {
                gate.request_ended();
            }
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        hop_by_hop::strip(response);
        if !is_final(response) {
            return Ok(());
        }
        ctx.unlimit_attempt();
        if ctx.answered(response, sent(session, false)) {
            return Error::e_explain(
                ErrorType::HTTPStatus(response.status.as_u16()),
                "another backend is tried",
            );
        }
        if ctx.is_sticky()
            && let Some(cookie) = ctx.set_cookie(self.is_secure(session, ctx))
        {
            response.append_header(SET_COOKIE, cookie)?;
        }
        if let Some(explanation) = ctx.explanation(session.req_header()) {
            response.insert_header(X_LB_EXPLAIN, explanation)?;
        }
        self.limit_keepalive(session, ctx);
        Ok(())
    }

    fn upstream_response_body_filter(
        &self,
        _session: &mut Session,
        _body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut RequestContext,
    ) -> Result<Option<Duration>> {
        if let Some(attempt) = ctx.dispatch.attempt.as_mut().filter(|_| end_of_stream) {
            attempt.finished();
        }
        Ok(None)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        _ctx: &mut RequestContext,
    ) -> Result<()> {
        if session.req_header().version == Version::HTTP_10
            && response.headers.contains_key(TRANSFER_ENCODING)
        {
            // RFC 9112, 6.1: a client of HTTP/1.0 does not know transfer codings; the end of the connection ends the body.
            response.remove_header(&TRANSFER_ENCODING);
            session.set_keepalive(None);
        }
        Ok(())
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut RequestContext,
        reused: bool,
    ) -> Box<Error> {
        log::debug!("request failed: {error}");
        if ctx.take_expired() {
            error = Error::explain(ErrorType::ReadTimedout, "the attempt took too long").into_up();
        } else if ctx.client_stalled(&error, session.req_header()) {
            error.as_down();
        }
        let stale = error.retry == RetryType::ReusedOnly && reused && nothing_was_read(&error);
        let again = ctx.dispatch.goes_on()
            || match Failure::of(&error) {
                Failure::Upstream(kind) => ctx.broke(kind, sent(session, stale)),
                failure => {
                    ctx.failure = Some(failure);
                    false
                }
            };
        error.set_retry(again);
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut RequestContext,
    ) -> FailToProxy {
        let failure = *ctx.failure.get_or_insert_with(|| Failure::of(error));
        self.limit_keepalive(session, ctx);
        if failure != Failure::Rejected(Rejection::NoRoute) {
            // Pingora keeps the connection only when a request fails before it is sent to a backend; say so.
            session.set_keepalive(None);
        }
        let can_reuse_downstream = match failure.answer() {
            Some(status) => {
                let explanation = ctx.explanation(session.req_header());
                answer(session, status, failure.retry_after(), explanation).await.unwrap_or(false)
            }
            None => false,
        };
        FailToProxy { error_code: failure.status(), can_reuse_downstream }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut RequestContext) {
        ctx.unlimit_attempt();
        if let Some(error) = error {
            ctx.failure.get_or_insert_with(|| Failure::of(error));
        }
        let (status, duration) = (status(session, ctx), ctx.arrived.elapsed());
        self.count(session, ctx, status, duration);
        self.log(session, ctx, status, duration);
    }

    /// A failed request has its access log line and its counters; a second line would flood the log in an outage.
    fn suppress_error_log(&self, _session: &Session, _ctx: &RequestContext, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &RequestContext,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}

/// What the connection itself tells about the client.
fn downstream<'a>(session: &'a Session, ctx: &'a RequestContext) -> Downstream<'a> {
    Downstream { peer: ctx.peer(), scheme: Scheme::Http, host: session.req_header().headers.get(HOST) }
}

/// Waits, but not longer than the client does.
async fn wait<T>(
    session: &mut Session,
    ctx: &mut RequestContext,
    done: impl Future<Output = T>,
) -> Result<T> {
    let Some(connection) = ctx.connection().cloned() else { return Ok(done.await) };
    let done = unless_client_leaves(session, &connection, done).await;
    done.ok_or_else(|| ctx.fail(Failure::ClientGone))
}

/// Whether a connection ended before the first byte of an answer, which Pingora says in words only.
fn nothing_was_read(error: &Error) -> bool {
    error.context.as_ref().is_some_and(|context| context.as_str().ends_with("bytes already read: 0"))
}

/// What a request whose attempt has failed can still expect.
fn sent(session: &Session, stale: bool) -> Replayability {
    Replayability {
        idempotent: session.req_header().method.is_idempotent(),
        replayable: !session.as_ref().retry_buffer_truncated(),
        response_begun: session.response_written().is_some(),
        stale,
    }
}

/// Whether an answer ends its request, or hands the connection over to another protocol.
fn is_final(answer: &ResponseHeader) -> bool {
    !answer.status.is_informational() || answer.status == StatusCode::SWITCHING_PROTOCOLS
}

/// Sends an answer of our own; whether the connection can be kept.
async fn answer(
    session: &mut Session,
    status: StatusCode,
    retry_after: Option<u32>,
    explanation: Option<HeaderValue>,
) -> Result<bool> {
    if session.response_written().is_some_and(is_final) {
        return Ok(false);
    }
    let page = failure::page(status);
    let mut head = ResponseHeader::build(status, Some(5))?;
    head.insert_header(CONTENT_TYPE, "text/plain; charset=utf-8")?;
    head.insert_header(CONTENT_LENGTH, page.len())?;
    if let Some(seconds) = retry_after {
        head.insert_header(RETRY_AFTER, seconds)?;
    }
    if let Some(explanation) = explanation {
        head.insert_header(X_LB_EXPLAIN, explanation)?;
    }
    session.write_response_header(Box::new(head), false).await?;
    session.write_response_body(Some(page), true).await?;
    Ok(true)
}

/// The status that the client saw, or what stands for it.
fn status(session: &Session, ctx: &RequestContext) -> u16 {
    let is_final = |sent: &&ResponseHeader| is_final(sent);
    match (session.response_written().filter(is_final), ctx.failure) {
        (Some(sent), _) => sent.status.as_u16(),
        (None, Some(failure)) => failure.status(),
        (None, None) => failure::CLIENT_CLOSED_REQUEST,
    }
}
