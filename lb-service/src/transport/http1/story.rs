//! One request: its exchange, and what the client has got of its response so far.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::header::UPGRADE;
use http::{HeaderValue, Method, Version};

use super::super::upstream::{Connector, Upstream};
use super::client::Client;
use super::relay::{Download, Event, Relay};
use super::request_body::RequestBody;
use crate::clock::Now;
use crate::exchange::{End, Exchange, Fault, Progress, Response, body_pause, date, is_final};
use crate::failure::Failure;
use crate::listener::{ClientLimits, ClientTimeouts};
use crate::pool::{Admission, AdmissionError, Backend, Fields, Head, Poison, RuntimeId};
use crate::traffic::Connection;
use crate::upgrade;
use crate::wire::body::BodyReader;
use crate::wire::chunked::Sender;
use crate::wire::connection::Named;
use crate::wire::delivery::Delivery;
use crate::wire::request::RequestHead;
use crate::wire::response::{Informational, ResponseHead};
use crate::wire::write::{self, Framing, Outgoing, Persistence};

/// A request and what has become of it.
pub(super) struct Story {
    pub(super) head: RequestHead,
    pub(super) exchange: Exchange,
    /// The status of the final response, once its head was queued for the client.
    pub(super) status: Option<u16>,
    /// Whether bytes of a response, including an informational one, were queued for the client.
    has_begun: bool,
    /// The informational responses of this attempt.
    informational: Informational,
    pub(super) response_bytes: u64,
    /// The bytes that a tunnel carried to the backend.
    pub(super) tunnel_bytes: u64,
    /// The time of the latest step of an attempt, so that one look at the clock serves several purposes.
    pub(super) at: Instant,
}

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

/// The decision about a head of a response.
#[expect(
    clippy::large_enum_variant,
    reason = "one lives at a time, and a box would cost an allocation per response"
)]
pub(super) enum Decision {
    /// The response is replaced by a retry.
    Retry,
    /// The body is passed on.
    PassOn(Passing),
    /// The connection changes its protocol.
    Switch,
}

/// A response whose head was queued for the client.
pub(super) struct Passing {
    pub(super) download: Download,
    /// What becomes of the client's connection if the response is complete.
    pub(super) next: Next,
    /// Whether the client cannot tell the end of the response from a broken connection.
    pub(super) is_undelimited: bool,
    /// Whether the head of the response has both a length and a transfer coding.
    is_ambiguous: bool,
    /// Whether the backend's connection can carry another request after the response.
    pub(super) keeps_upstream: bool,
}

// === impl Story ===

impl Story {
    pub(super) fn new(head: RequestHead, exchange: Exchange, begun: Instant) -> Self {
        Self {
            head,
            exchange,
            status: None,
            has_begun: false,
            informational: Informational::default(),
            response_bytes: 0,
            tunnel_bytes: 0,
            at: begun,
        }
    }

    /// Places the request at a backend.
    ///
    /// # Errors
    ///
    /// If it has to wait, or is rejected.
    pub(super) fn admit(&mut self) -> Result<Arc<Backend>, Admission> {
        let now = now();
        self.at = now.time;
        match self.exchange.admit(&self.head, now) {
            Admission::Placed => {
                let attempt = self.exchange.dispatch.attempt.as_ref();
                let placed = attempt.map(|attempt| attempt.backend.clone());
                placed.ok_or(Admission::Rejected(AdmissionError::Unavailable))
            }
            other => Err(other),
        }
    }

    pub(super) fn failure(&self) -> Failure {
        self.exchange.failure().unwrap_or(Failure::Internal)
    }

    /// Records that there is a connection to the backend.
    pub(super) fn connected(&mut self, reused: bool) {
        if !reused {
            self.at = Instant::now();
        }
        self.exchange.dispatch.connected(reused);
    }

    /// Takes an idle connection to this backend that can carry the request.
    pub(super) fn idle(&self, around: Surroundings<'_>, backend: &Backend) -> Option<Box<Upstream>> {
        let recent = self.exchange.max_idle(&self.head)?;
        around.connector.idle(backend, around.runtime, recent, self.at)
    }

    /// Starts an attempt at a second backend while the first one is connecting; `None` if there is to be none.
    pub(super) fn race(&mut self) -> Option<Arc<Backend>> {
        let now = now();
        self.at = now.time;
        self.exchange.race(&self.head, now)
    }

    /// Sets `backend` to that of the current attempt.
    pub(super) fn current(&self, backend: &mut Arc<Backend>) {
        if let Some(attempt) = &self.exchange.dispatch.attempt {
            backend.clone_from(&attempt.backend);
        }
    }

    pub(super) fn write_request(&mut self, upstream: &mut Upstream) {
        self.informational = Informational::default();
        let mut fields = Outgoing::request(&self.head);
        self.exchange.edit_request(&self.head, &mut fields);
        let upgrade = self.upgrade();
        write::request(upstream.output.text(), &self.head, &fields, upgrade.as_ref());
        if self.head.has_body() {
            self.exchange.body_follows();
        }
    }

    /// Returns the protocol that the client asks for, if that is passed on.
    fn upgrade(&self) -> Option<HeaderValue> {
        self.exchange.upgrade(&self.head, self.head.has_body())
    }

    fn progress(&self, body: &RequestBody) -> Progress {
        Progress { replayable: body.is_replayable(), response_begun: self.has_begun }
    }

    /// Records a fault.
    ///
    /// # Errors
    ///
    /// If there is no other attempt.
    pub(super) fn fault(&mut self, fault: Fault, body: &RequestBody) -> Result<(), Failure> {
        let progress = self.progress(body);
        let is_retried = self.exchange.fault(&self.head, fault, progress, now());
        if is_retried { Ok(()) } else { Err(self.failure()) }
    }

    /// Waits for the head of the final response, and decides about it.
    ///
    /// # Errors
    ///
    /// If a side fails before that.
    pub(super) async fn decision(
        &mut self,
        relay: &mut Relay<'_>,
        backend: &Backend,
        around: &Surroundings<'_>,
    ) -> Result<Decision, Fault> {
        loop {
            match relay.next_event().await? {
                Event::RequestComplete => {
                    let limit = self.exchange.request_complete(Instant::now);
                    relay.await_response(limit.unwrap_or(backend.target().response_timeout));
                }
                Event::Head(response) if !is_final(response.status()) => {
                    backend.history.informational.increment();
                    self.inform(&response, relay)?;
                }
                Event::Head(response) if response.status() == 101 => return self.switch(&response, relay),
                Event::Head(response) => return self.decide(&response, relay, backend, around),
            }
        }
    }

    /// Passes an informational response on, unless the client speaks HTTP/1.0 or no longer waits for it.
    fn inform(&mut self, response: &ResponseHead, relay: &mut Relay<'_>) -> Result<(), Fault> {
        self.informational.add(response).map_err(|_| relay.bad_response())?;
        if response.status() == 100 {
            relay.continued();
        }
        let is_useless = response.status() == 100 && relay.body.has_ended();
        if self.head.version() == Version::HTTP_11 && !is_useless {
            let (fields, out) = (Outgoing::response(response), relay.client.output.text());
            let (status, reason) = (response.status(), response.reason());
            write::response(out, status, reason, &fields, Framing::None, Persistence::Implied);
            self.has_begun = true;
        }
        Ok(())
    }

    /// Accepts the change to the protocol that the client has asked for, after the whole request was sent.
    fn switch(&mut self, response: &ResponseHead, relay: &mut Relay<'_>) -> Result<Decision, Fault> {
        let is_accepted = self.upgrade().is_some_and(|asked| upgrade::is_accepted(&asked, response));
        if !is_accepted || !relay.is_sent() {
            return Err(relay.bad_response());
        }
        let mut fields = Outgoing::response(response);
        let progress = self.progress(relay.body);
        let _ = self.exchange.respond(&self.head, response.status(), &mut fields, progress, now());
        let protocol = response.first(&UPGRADE).unwrap_or_default();
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
        backend: &Backend,
        around: &Surroundings<'_>,
    ) -> Result<Decision, Fault> {
        let framing = response.framing(*self.head.method() == Method::HEAD);
        let framing = framing.map_err(|_| relay.bad_response())?;
        let mut fields = Outgoing::response(response);
        let progress = self.progress(relay.body);
        let now = now();
        let decision = self.exchange.respond(&self.head, response.status(), &mut fields, progress, now);
        if decision == Response::Retry {
            return Ok(Decision::Retry);
        }
        date::complete(&mut fields, SystemTime::now);
        let delivery = Delivery::new(framing, self.head.version());
        let keeps = !delivery.is_undelimited() && self.keeps_client(relay.body, relay.client, around);
        let persistence = Persistence::new(keeps, self.head.version());
        let (status, out) = (response.status(), relay.client.output.text());
        write::response(out, status, response.reason(), &fields, delivery.framing, persistence);
        self.begin(status);
        let reader = BodyReader::new(framing.length, Sender::Backend);
        let named = Named::of(response.fields(), response.options());
        Ok(Decision::PassOn(Passing {
            download: Download::new(
                reader,
                delivery.writer,
                named,
                body_pause(response, backend.target()),
                now.time,
            ),
            next: if keeps { Next::Keep } else { Next::Close },
            is_undelimited: delivery.is_undelimited(),
            is_ambiguous: framing.is_ambiguous,
            keeps_upstream: relay.is_sent() && response.is_reusable(framing),
        }))
    }

    /// Returns whether the client's connection can carry another request, as far as the request decides that.
    pub(super) fn keeps_client(
        &self,
        body: &RequestBody,
        client: &Client,
        around: &Surroundings<'_>,
    ) -> bool {
        let is_last = around.is_last || around.connection.is_last();
        // Bytes behind a request for another protocol were meant for that protocol, which was refused.
        let is_followed = || !client.input.bytes().is_empty() && self.upgrade().is_some();
        self.head.keeps_alive() && body.has_ended() && !client.input.has_ended() && !is_last && !is_followed()
    }

    /// Counts the request, and writes its log line.
    pub(super) fn finish(&self, body: &RequestBody) {
        let end = End {
            at: Instant::now(),
            clock: SystemTime::now,
            status: self.status,
            request_bytes: body.read + self.tunnel_bytes,
            has_whole_request: body.has_ended(),
            response_bytes: self.response_bytes,
        };
        self.exchange.finish(&self.head, end);
    }
}

// === impl Passing ===

impl Passing {
    /// Counts a connection to a backend that cannot be used again because of what the backend has sent.
    pub(super) fn count_poison(&self, backend: &Backend, upstream: &Upstream) {
        match () {
            () if self.is_ambiguous => backend.history.poison(Poison::AmbiguousLength),
            () if !upstream.input.bytes().is_empty() => backend.history.poison(Poison::LateBytes),
            () => {}
        }
    }
}

/// Returns the time, and a random number.
fn now() -> Now {
    Now { time: Instant::now(), draw: fastrand::f64() }
}
