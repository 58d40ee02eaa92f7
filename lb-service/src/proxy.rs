//! One request, from its head to its log line, as Pingora's callbacks tell it.
//!
//! Each callback is a few lines that call what decides: `exchange`. Nothing is decided here.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::OptionFuture;
use http::Version;
use http::request::Parts;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};

use crate::clock::Now;
use crate::exchange::{
    End, Exchange, Fault, FaultKind, Origin, OwnResponse, Progress, Response, is_final, keeps_connection,
    unframe,
};
use crate::failure::Failure;
use crate::forwarded::Scheme;
use crate::frontend::{IDLE, Turn};
use crate::patience::unless_client_leaves;
use crate::pingora_types::{self, fault};
use crate::pool::Admission;
use crate::traffic::Connection;
use crate::upgraded::{Gate, Sources};

/// Pingora's callbacks for our requests.
pub(crate) struct Proxy {
    /// Where connections for other protocols are made from.
    pub(crate) sources: Sources,
}

/// What one request carries with it.
#[derive(Default)]
pub(crate) struct RequestContext {
    connection: Option<Arc<Connection>>,
    /// Absent until the head of the request is there, and when it is over.
    exchange: Option<Exchange>,
    /// What holds back the response to a request for another protocol.
    gate: Option<Arc<Gate>>,
}

/// A client that reads nothing for this long is given up.
const CLIENT_WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// What Pingora calls a keep-alive without a limit, and sets for every HTTP/1.1 request.
const PINGORA_KEEPS_FOR_EVER: Option<u64> = Some(0);

// === impl Proxy ===

impl Proxy {
    /// Keeps the connection for the next request, unless we are about to leave.
    fn limit_keepalive(&self, session: &mut Session, ctx: &RequestContext) {
        let is_last = ctx.connection.as_ref().is_some_and(|connection| connection.is_last());
        if is_last {
            session.set_keepalive(None);
        } else if session.get_keepalive() == PINGORA_KEEPS_FOR_EVER {
            session.set_keepalive(Some(IDLE.as_secs()));
        }
    }

    /// Gives the request to a backend, at once or after it has waited for one.
    async fn place(&self, session: &mut Session, ctx: &mut RequestContext) -> Result<()> {
        loop {
            let exchange = ctx.exchange()?;
            let until = match exchange.admit(head(session), now()) {
                Admission::Placed => return Ok(()),
                Admission::Wait { until } => until,
                Admission::Rejected(_) => return Err(ctx.failed()),
            };
            let turn = OptionFuture::from(exchange.dispatch.turn());
            // In a box, since the future of this callback is made, and moved, for every request.
            let _ = Box::pin(wait(session, ctx, tokio::time::timeout_at(until.into(), turn))).await?;
        }
    }
}

// === impl RequestContext ===

impl RequestContext {
    fn exchange(&mut self) -> Result<&mut Exchange> {
        self.exchange.as_mut().ok_or_else(|| Error::new(ErrorType::InternalError))
    }

    /// Pingora's error for the failure of the exchange.
    fn failed(&self) -> Box<Error> {
        let failure = self.exchange.as_ref().and_then(Exchange::failure).unwrap_or(Failure::Internal);
        Error::explain(ErrorType::HTTPStatus(failure.status()), failure.as_str())
    }

    /// Reading from the client fails after this time. `None`: it does not.
    fn limit_attempt(&self, limit: Option<Duration>) {
        if let Some(connection) = &self.connection {
            connection.patience.limit(limit.map(|limit| tokio::time::Instant::now() + limit));
        }
    }

    /// Whether this attempt took too long.
    fn take_expired(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.patience.take_expired())
    }

    fn fault(&mut self, session: &Session, fault: Fault) -> bool {
        let progress = progress(session);
        self.exchange.as_mut().is_some_and(|exchange| exchange.fault(head(session), fault, progress, now()))
    }
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = RequestContext;

    fn new_ctx(&self) -> RequestContext {
        RequestContext::default()
    }

    /// No modules: Pingora would add one that compresses, and pay for it on every request.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    fn on_connection_reuse(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
        turn: Box<dyn Any + Send + Sync>,
    ) {
        if let Ok(turn) = turn.downcast::<Turn>() {
            let Turn { connection, plan, listener } = *turn;
            connection.saw_head();
            let peer = connection.peer.clone();
            let origin = Origin { snapshot: plan, listener, peer, scheme: Scheme::Http };
            ctx.exchange = Some(Exchange::begin(origin, head(session), Instant::now()));
            ctx.connection = Some(connection);
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
        match ctx.exchange()?.route(head(session)) {
            Ok(()) => Ok(false),
            Err(_) => Err(ctx.failed()),
        }
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut RequestContext) -> Result<Box<HttpPeer>> {
        if let Some(pause) = ctx.exchange()?.end_attempt().filter(|pause| !pause.is_zero()) {
            // In a box, as the queue is: the future of this callback is made, and moved, for every request.
            Box::pin(wait(session, ctx, tokio::time::sleep(pause))).await?;
        }
        self.place(session, ctx).await?;
        let attempt = ctx.exchange()?.dispatch.attempt.as_ref().expect("it was placed");
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
        let kind = match fault(&error).kind {
            FaultKind::Tls => FaultKind::Tls,
            _ => FaultKind::Connect,
        };
        error.set_retry(ctx.fault(session, Fault::of_backend(kind)));
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
        if let Some(attempt) = &mut ctx.exchange()?.dispatch.attempt {
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
        let exchange = ctx.exchange()?;
        exchange.edit_request(head(session), request);
        if !session.is_body_empty() {
            exchange.body_follows();
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
            let limit = ctx.exchange()?.request_complete(Instant::now);
            if limit.is_some() {
                ctx.limit_attempt(limit);
            }
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
        let (status, progress) = (response.status.as_u16(), progress(session));
        match ctx.exchange()?.respond(head(session), status, response, progress, now()) {
            Response::Informational => return Ok(()),
            Response::Final => ctx.limit_attempt(None),
            Response::Retry => {
                ctx.limit_attempt(None);
                return Error::e_explain(ErrorType::HTTPStatus(status), "another backend is tried");
            }
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
        if end_of_stream {
            ctx.exchange()?.response_complete();
        }
        Ok(None)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        _ctx: &mut RequestContext,
    ) -> Result<()> {
        if unframe(head(session), response) {
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
        _reused: bool,
    ) -> Box<Error> {
        log::debug!("request failed: {error}");
        let fault = match ctx.take_expired() {
            true => Fault::of_backend(FaultKind::ReadTimeout),
            false => fault(&error),
        };
        error.set_retry(ctx.fault(session, fault));
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut RequestContext,
    ) -> FailToProxy {
        let Some(exchange) = &mut ctx.exchange else {
            return FailToProxy { error_code: Failure::Internal.status(), can_reuse_downstream: false };
        };
        let failure = exchange.end_with(fault(error));
        let response = exchange.own_response(head(session));
        self.limit_keepalive(session, ctx);
        if !keeps_connection(failure) {
            // Pingora keeps the connection only when a request fails before it is sent to a backend; say so.
            session.set_keepalive(None);
        }
        let can_reuse_downstream = match response {
            Some(response) => send(session, response).await.unwrap_or(false),
            None => false,
        };
        FailToProxy { error_code: failure.status(), can_reuse_downstream }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut RequestContext) {
        ctx.limit_attempt(None);
        let Some(mut exchange) = ctx.exchange.take() else { return };
        if let Some(error) = error {
            exchange.end_with(fault(error));
        }
        exchange.finish(head(session), end(session));
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

/// The head of the request.
fn head(session: &Session) -> &Parts {
    pingora_types::head(session.req_header())
}

/// The time, and a random number.
fn now() -> Now {
    Now { time: Instant::now(), draw: fastrand::f64() }
}

/// Waits, but not longer than the client does.
async fn wait<T>(
    session: &mut Session,
    ctx: &mut RequestContext,
    done: impl Future<Output = T>,
) -> Result<T> {
    let Some(connection) = ctx.connection.clone() else { return Ok(done.await) };
    match unless_client_leaves(session, &connection, done).await {
        Some(done) => Ok(done),
        None => {
            ctx.exchange()?.fail(Failure::ClientGone);
            Err(ctx.failed())
        }
    }
}

fn progress(session: &Session) -> Progress {
    Progress {
        replayable: !session.as_ref().retry_buffer_truncated(),
        response_begun: session.response_written().is_some(),
    }
}

fn end(session: &Session) -> End {
    let status = session.response_written().map(|sent| sent.status.as_u16());
    End {
        at: Instant::now(),
        clock: SystemTime::now,
        status: status.filter(|status| is_final(*status)),
        request_bytes: session.body_bytes_read() as u64,
        response_bytes: session.body_bytes_sent() as u64,
    }
}

/// Sends a response of our own; whether the connection can be kept.
async fn send(session: &mut Session, response: OwnResponse) -> Result<bool> {
    if session.response_written().is_some_and(|sent| is_final(sent.status.as_u16())) {
        return Ok(false);
    }
    let mut head = ResponseHeader::build(response.status, Some(response.fields.len()))?;
    for (name, value) in response.fields {
        head.insert_header(name, value)?;
    }
    session.write_response_header(Box::new(head), false).await?;
    session.write_response_body(Some(response.body), true).await?;
    Ok(true)
}
