//! One request: its attempts, its response, and what becomes of the connections of both sides.

use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::future::OptionFuture;
use http::header::{CONTENT_TYPE, DATE, UPGRADE};
use http::{HeaderValue, Method, Version};

use super::super::upstream::{Connector, Upstream};
use super::client::Client;
use super::relay::{Download, Event, Limits, Relay};
use super::request_body::RequestBody;
use super::tunnel::{self, Carried};
use crate::clock::Now;
use crate::exchange::{
    End, Exchange, Fault, FaultKind, OwnResponse, Progress, Response, Side, is_final, keeps_connection,
};
use crate::failure::{Failure, Rejection};
use crate::listener::{ClientLimits, ClientTimeouts};
use crate::pool::{Admission, Backend, Fields, Head, RuntimeId, Target};
use crate::traffic::Connection;
use crate::wire::body::{BodyReader, BodyWriter, Frame};
use crate::wire::chunked::Sender;
use crate::wire::connection::Named;
use crate::wire::framing::{Length, ResponseFraming};
use crate::wire::known::Known;
use crate::wire::request::RequestHead;
use crate::wire::response::{Informational, ResponseHead};
use crate::wire::write::{self, Framing, Outgoing, Persistence};

/// What a request needs of its connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Surroundings<'a> {
    pub(super) connection: &'a Connection,
    pub(super) connector: &'a Connector,
    pub(super) runtime: RuntimeId,
    /// The limits of the listener.
    pub(super) limits: ClientLimits,
    /// The deadlines of the listener.
    pub(super) timeouts: ClientTimeouts,
    /// Whether the connection has carried as many requests as the listener allows, with this one.
    pub(super) is_last: bool,
}

/// One request of a client.
struct Serving<'a> {
    around: Surroundings<'a>,
    client: &'a mut Client,
    body: RequestBody,
    story: Story,
}

/// A request and what has become of it.
struct Story {
    head: RequestHead,
    exchange: Exchange,
    /// The status of the final response, once its head was queued for the client.
    status: Option<u16>,
    /// Whether bytes of a response, including an informational one, were queued for the client.
    has_begun: bool,
    /// The informational responses of this attempt.
    informational: Informational,
    response_bytes: u64,
    /// The bytes that a tunnel carried to the backend.
    tunnel_bytes: u64,
}

/// What becomes of the connection of the client after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It waits for another request.
    Keep,
    /// It is closed when the client has read the response.
    Close,
    /// It is closed at once: the client has left, or nothing is on its way.
    Drop,
    /// It is reset, by which the client sees that the response is incomplete.
    Reset,
}

/// The result of an attempt.
enum Attempt {
    /// The response was passed on.
    Done(Next),
    /// The request needs another attempt.
    Retry,
}

/// The decision about a head of a response.
#[expect(
    clippy::large_enum_variant,
    reason = "one lives at a time, and a box would cost an allocation per response"
)]
enum Decision {
    /// Another head follows.
    More,
    /// The response is replaced by a retry.
    Retry,
    /// The body is passed on.
    PassOn(Passing),
    /// The connection changes its protocol.
    Switch,
}

/// A response whose head was queued for the client.
struct Passing {
    download: Download,
    /// What becomes of the client's connection if the response is complete.
    next: Next,
    /// Whether the client cannot tell the end of the response from a broken connection.
    is_undelimited: bool,
    /// Whether the backend's connection can carry another request after the response.
    keeps_upstream: bool,
}

/// Serves a request to its end, and counts it.
pub(super) async fn serve(
    around: Surroundings<'_>,
    client: &mut Client,
    head: RequestHead,
    exchange: Exchange,
) -> Next {
    let body = RequestBody::new(head.length(), around.limits.body.map(NonZeroU64::get));
    let mut serving = Serving { around, client, body, story: Story::new(head, exchange) };
    let next = match serving.attempts().await {
        Ok(next) => next,
        Err(failure) => serving.respond_ourselves(failure).await,
    };
    serving.story.finish(serving.body.read);
    next
}

// === impl Serving ===

impl Serving<'_> {
    /// Sends the request to one backend after the other, until a response is passed on.
    ///
    /// # Errors
    ///
    /// If no response can be passed on.
    async fn attempts(&mut self) -> Result<Next, Failure> {
        self.story.exchange.check(&self.story.head, self.story.head.scheme())?;
        self.story.exchange.route(&self.story.head)?;
        if self.body.is_announced_too_large() {
            return Err(self.story.exchange.fail(Failure::Rejected(Rejection::BodyTooLarge)));
        }
        loop {
            let backend = self.place().await?;
            let Some(mut upstream) = self.connect(&backend).await? else { continue };
            let (attempt, is_kept) = self.attempt(&backend, &mut upstream).await?;
            if is_kept {
                self.around.connector.keep(upstream, &backend, self.around.runtime, Instant::now());
            }
            if let Attempt::Done(next) = attempt {
                return Ok(next);
            }
        }
    }

    /// Waits for a backend, at once or in the queue of the pool.
    async fn place(&mut self) -> Result<Arc<Backend>, Failure> {
        if let Some(pause) = self.story.exchange.end_attempt().filter(|pause| !pause.is_zero()) {
            self.unless_gone(tokio::time::sleep(pause)).await?;
        }
        loop {
            let until = match self.story.admit() {
                Ok(backend) => return Ok(backend),
                Err(Admission::Wait { until }) => until,
                Err(_) => return Err(self.story.failure()),
            };
            let turn = OptionFuture::from(self.story.exchange.dispatch.turn());
            let _ = self.unless_gone(tokio::time::timeout_at(until.into(), turn)).await?;
        }
    }

    /// Waits, but no longer than the client does.
    async fn unless_gone<T>(&mut self, done: impl Future<Output = T>) -> Result<T, Failure> {
        let done = self.client.unless_gone(done).await;
        done.ok_or_else(|| self.story.exchange.fail(self.body.gone(self.client).failure()))
    }

    /// Connects to the backend; `None` if that failed and there is to be another attempt.
    async fn connect(&mut self, backend: &Backend) -> Result<Option<Box<Upstream>>, Failure> {
        let Surroundings { connector, runtime, .. } = self.around;
        let recent = self.story.exchange.max_idle(&self.story.head);
        let connected =
            match recent.and_then(|recent| connector.idle(backend, runtime, recent, Instant::now())) {
                Some(upstream) => Ok(upstream),
                // In a box, because most requests need no new connection.
                None => self.unless_gone(Box::pin(connector.connect(backend))).await?,
            };
        match connected {
            Ok(upstream) => {
                self.story.connected(upstream.reused);
                Ok(Some(upstream))
            }
            Err(error) => {
                log::debug!("cannot connect to {}: {}", backend.label, error.reason);
                self.story.fault(Fault::before_request(error.kind), &self.body).map(|()| None)
            }
        }
    }

    /// Sends the request over one connection, and passes its response on. Returns whether the connection can carry
    /// another request as well.
    async fn attempt(
        &mut self,
        backend: &Backend,
        upstream: &mut Upstream,
    ) -> Result<(Attempt, bool), Failure> {
        self.story.write_request(upstream);
        let (limits, writer) = (self.limits(backend.target()), request_writer(self.story.head.length()));
        let named = Named::of(self.story.head.fields(), self.story.head.options());
        let mut relay = Relay::new(self.client, upstream, &mut self.body, writer, named, limits);
        let decision = loop {
            match self.story.next(&mut relay, backend, &self.around).await {
                Ok(Decision::More) => {}
                Ok(decision) => break decision,
                Err(fault) => {
                    return self.story.fault(fault, &self.body).map(|()| (Attempt::Retry, false));
                }
            }
        };
        match decision {
            Decision::PassOn(mut passing) => {
                let result = relay.bodies(&mut passing.download).await;
                let is_kept =
                    result.is_ok() && passing.keeps_upstream && relay.is_sent() && upstream.is_clean();
                Ok((Attempt::Done(self.end(passing, result).await), is_kept))
            }
            Decision::Switch => {
                let quiet = backend.target().tunnel_timeout;
                Ok((Attempt::Done(self.tunnel(upstream, quiet).await), false))
            }
            Decision::Retry | Decision::More => Ok((Attempt::Retry, false)),
        }
    }

    /// Ends a response, of which the client has everything or a part.
    async fn end(&mut self, passing: Passing, result: Result<(), Fault>) -> Next {
        self.story.response_bytes = passing.download.bytes;
        if passing.download.is_done() {
            self.story.exchange.response_complete();
        }
        let Err(fault) = result else { return passing.next };
        // The response has begun, so there is no other attempt.
        let _ = self.story.fault(fault, &self.body);
        match (fault.side, fault.kind) {
            // Its unread bytes would stay in the memory of the system.
            (Side::Client, FaultKind::WriteTimeout) => return Next::Reset,
            (Side::Client, _) => return Next::Drop,
            (Side::Backend, _) => {}
        }
        match self.client.flush().await {
            Ok(()) if passing.is_undelimited => Next::Reset,
            Ok(()) => Next::Close,
            Err(_) => Next::Drop,
        }
    }

    fn limits(&self, target: &Target) -> Limits {
        Limits {
            client: self.around.timeouts.body,
            min_rate: self.around.limits.min_rate,
            backend: target.response_timeout,
            stream: target.tunnel_timeout,
            holds_body: self.story.head.expects_continue(),
        }
    }

    async fn tunnel(&mut self, upstream: &mut Upstream, quiet: Option<Duration>) -> Next {
        let mut carried = Carried::default();
        let result = tunnel::run(self.client, upstream, quiet, &mut carried).await;
        self.story.response_bytes = carried.to_client;
        self.story.tunnel_bytes = carried.to_backend;
        match result {
            Err(error) if error.kind() != io::ErrorKind::TimedOut => {
                log::debug!("a tunnel broke: {error}");
                // Neither side takes it for an end.
                upstream.stream.reset_on_close();
                Next::Reset
            }
            _ => Next::Drop,
        }
    }

    /// Sends a response of our own, if no response has begun.
    async fn respond_ourselves(&mut self, failure: Failure) -> Next {
        let Some(own) = self.story.exchange.own_response(&self.story.head) else { return Next::Drop };
        let next = match keeps_connection(failure)
            && self.story.keeps_client(&self.body, self.client, &self.around)
        {
            true => Next::Keep,
            false => Next::Close,
        };
        let out = self.client.output.text();
        own_head(out, &own, self.story.persistence(next));
        self.story.status = Some(own.status.as_u16());
        if *self.story.head.method() != Method::HEAD {
            self.story.response_bytes = own.body.len() as u64;
            self.client.output.push(Frame::Plain, own.body);
        }
        match self.client.flush().await {
            Ok(()) => next,
            Err(_) => Next::Drop,
        }
    }
}

// === impl Story ===

impl Story {
    fn new(head: RequestHead, exchange: Exchange) -> Self {
        Self {
            head,
            exchange,
            status: None,
            has_begun: false,
            informational: Informational::default(),
            response_bytes: 0,
            tunnel_bytes: 0,
        }
    }

    fn admit(&mut self) -> Result<Arc<Backend>, Admission> {
        match self.exchange.admit(&self.head, now()) {
            Admission::Placed => {
                let attempt = self.exchange.dispatch.attempt.as_ref();
                Ok(attempt.expect("the request was placed").backend.clone())
            }
            other => Err(other),
        }
    }

    fn failure(&self) -> Failure {
        self.exchange.failure().unwrap_or(Failure::Internal)
    }

    fn connected(&mut self, reused: bool) {
        if let Some(attempt) = &mut self.exchange.dispatch.attempt {
            attempt.connected(reused);
        }
    }

    fn write_request(&mut self, upstream: &mut Upstream) {
        self.informational = Informational::default();
        let mut fields = Outgoing::request(&self.head);
        self.exchange.edit_request(&self.head, &mut fields);
        let upgrade = self.upgrade();
        write::request(upstream.output.text(), &self.head, &fields, upgrade.as_ref());
        if self.head.length() != Length::None {
            self.exchange.body_follows();
        }
    }

    /// Returns the protocol that the client asks for, if that is passed on.
    fn upgrade(&self) -> Option<HeaderValue> {
        self.exchange.upgrade(&self.head, self.head.length() != Length::None)
    }

    fn progress(&self, body: &RequestBody) -> Progress {
        Progress { replayable: body.is_replayable(), response_begun: self.has_begun }
    }

    /// Records a fault.
    ///
    /// # Errors
    ///
    /// If there is no other attempt.
    fn fault(&mut self, fault: Fault, body: &RequestBody) -> Result<(), Failure> {
        let progress = self.progress(body);
        let is_retried = self.exchange.fault(&self.head, fault, progress, now());
        if is_retried { Ok(()) } else { Err(self.failure()) }
    }

    /// Waits for the next head of the response, and decides about it.
    async fn next(
        &mut self,
        relay: &mut Relay<'_>,
        backend: &Backend,
        around: &Surroundings<'_>,
    ) -> Result<Decision, Fault> {
        match relay.next_event().await? {
            Event::RequestComplete => {
                let limit = self.exchange.request_complete(Instant::now);
                relay.await_response(limit.unwrap_or(backend.target().response_timeout));
                Ok(Decision::More)
            }
            Event::Head(response) if !is_final(response.status()) => self.inform(&response, relay),
            Event::Head(response) if response.status() == 101 => self.switch(&response, relay),
            Event::Head(response) => self.decide(&response, relay, backend.target(), around),
        }
    }

    /// Passes an informational response on, unless the client speaks HTTP/1.0.
    fn inform(&mut self, response: &ResponseHead, relay: &mut Relay<'_>) -> Result<Decision, Fault> {
        self.informational.add(response).map_err(|_| relay.bad_response())?;
        if self.head.version() == Version::HTTP_11 && !(response.status() == 100 && relay.body.has_ended()) {
            let fields = Outgoing::response(response);
            let out = relay.client.output.text();
            write::response(
                out,
                response.status(),
                response.reason(),
                &fields,
                Framing::None,
                Persistence::Implied,
            );
            self.has_begun = true;
        }
        Ok(Decision::More)
    }

    /// Accepts the change to the protocol that the client has asked for, after the whole request was sent.
    fn switch(&mut self, response: &ResponseHead, relay: &mut Relay<'_>) -> Result<Decision, Fault> {
        let asked = self.upgrade();
        let agreed = response.first(&UPGRADE).filter(|_| response.options().upgrade);
        let is_asked =
            asked.zip(agreed).is_some_and(|(asked, agreed)| agreed.eq_ignore_ascii_case(asked.as_bytes()));
        if !is_asked || !relay.is_sent() {
            return Err(relay.bad_response());
        }
        let mut fields = Outgoing::response(response);
        let progress = self.progress(relay.body);
        let _ = self.exchange.respond(&self.head, response.status(), &mut fields, progress, now());
        let protocol = agreed.unwrap_or_default();
        write::switching(relay.client.output.text(), response.reason(), &fields, protocol);
        self.begin(response.status());
        Ok(Decision::Switch)
    }

    fn begin(&mut self, status: u16) {
        self.status = Some(status);
        self.has_begun = true;
    }

    /// Decides about the head of a final response, and queues it for the client if it is passed on.
    fn decide(
        &mut self,
        response: &ResponseHead,
        relay: &mut Relay<'_>,
        target: &Target,
        around: &Surroundings<'_>,
    ) -> Result<Decision, Fault> {
        let framing = response.framing(*self.head.method() == Method::HEAD);
        let framing = framing.map_err(|_| relay.bad_response())?;
        let mut fields = Outgoing::response(response);
        let progress = self.progress(relay.body);
        let decision = self.exchange.respond(&self.head, response.status(), &mut fields, progress, now());
        if decision == Response::Retry {
            return Ok(Decision::Retry);
        }
        if response.fields().values(Known::Date).next().is_none() {
            crate::head_edit::HeadEdit::add(&mut fields, DATE, date());
        }
        let keeps = self.keeps_client(relay.body, relay.client, around);
        let pause = if is_stream(response) { target.tunnel_timeout } else { target.body_timeout };
        let passing = self.passing(response, framing, pause, relay.is_sent(), keeps);
        let out = relay.client.output.text();
        let (status, persistence) = (response.status(), self.persistence(passing.next));
        write::response(out, status, response.reason(), &fields, passing.framing(framing), persistence);
        self.begin(status);
        Ok(Decision::PassOn(passing))
    }

    fn passing(
        &self,
        response: &ResponseHead,
        framing: ResponseFraming,
        pause: Option<Duration>,
        is_sent: bool,
        keeps: bool,
    ) -> Passing {
        let (writer, is_undelimited) = match framing.length {
            Length::None => (BodyWriter::Length(0), false),
            Length::Known(length) => (BodyWriter::Length(length), false),
            _ if self.head.version() == Version::HTTP_11 => (BodyWriter::Chunked, false),
            Length::Chunked | Length::UntilClose => (BodyWriter::UntilClose, true),
        };
        let reader = BodyReader::new(framing.length, Sender::Backend);
        let named = Named::of(response.fields(), response.options());
        let keeps_upstream = is_sent
            && response.keeps_alive()
            && !framing.is_ambiguous
            && framing.length != Length::UntilClose;
        Passing {
            download: Download::new(reader, writer, named, pause),
            next: if keeps && !is_undelimited { Next::Keep } else { Next::Close },
            is_undelimited,
            keeps_upstream,
        }
    }

    /// Returns whether the client's connection can carry another request, as far as the request decides that.
    fn keeps_client(&self, body: &RequestBody, client: &Client, around: &Surroundings<'_>) -> bool {
        let is_last = around.is_last || around.connection.is_last();
        // Bytes behind a request for another protocol were meant for that protocol, which was refused.
        let is_followed = || !client.input.bytes().is_empty() && self.upgrade().is_some();
        self.head.keeps_alive() && body.has_ended() && !client.input.has_ended() && !is_last && !is_followed()
    }

    fn persistence(&self, next: Next) -> Persistence {
        match next {
            Next::Keep if self.head.version() == Version::HTTP_10 => Persistence::KeepAlive,
            Next::Keep => Persistence::Implied,
            _ => Persistence::Close,
        }
    }

    fn finish(self, body_bytes: u64) {
        let end = End {
            at: Instant::now(),
            clock: SystemTime::now,
            status: self.status,
            request_bytes: body_bytes + self.tunnel_bytes,
            response_bytes: self.response_bytes,
        };
        self.exchange.finish(&self.head, end);
    }
}

// === impl Passing ===

impl Passing {
    /// Returns the framing that the client gets.
    fn framing(&self, received: ResponseFraming) -> Framing {
        match (received.length, self.is_undelimited) {
            (Length::None, _) => received.announced.map_or(Framing::None, Framing::Length),
            (Length::Known(length), _) => Framing::Length(length),
            (Length::Chunked | Length::UntilClose, false) => Framing::Chunked,
            (Length::Chunked | Length::UntilClose, true) => Framing::UntilClose,
        }
    }
}

fn request_writer(length: Length) -> BodyWriter {
    match length {
        Length::Chunked => BodyWriter::Chunked,
        Length::Known(length) => BodyWriter::Length(length),
        Length::None | Length::UntilClose => BodyWriter::Length(0),
    }
}

/// Returns whether the response is a stream of events or calls, which may be quiet for as long as a tunnel.
fn is_stream(response: &ResponseHead) -> bool {
    let kind = response.first(&CONTENT_TYPE).unwrap_or_default().trim_ascii_start();
    let begins =
        |prefix: &[u8]| kind.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    begins(b"text/event-stream") || begins(b"application/grpc")
}

/// Writes the head of a response of our own.
pub(super) fn own_head(out: &mut Vec<u8>, own: &OwnResponse, persistence: Persistence) {
    let reason = own.status.canonical_reason().unwrap_or_default();
    let fields = own.fields.iter().cloned().chain([(DATE, date())]);
    write::own_response(out, own.status.as_u16(), reason, fields, persistence);
}

/// Returns the time, and a random number.
fn now() -> Now {
    Now { time: Instant::now(), draw: fastrand::f64() }
}

/// Returns the time as a field.
fn date() -> HeaderValue {
    let text = httpdate::fmt_http_date(SystemTime::now());
    HeaderValue::try_from(text).expect("a date is visible ASCII")
}
