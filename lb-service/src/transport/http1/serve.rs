//! One request: its attempts, its response, and what becomes of the connections of both sides.

use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::future::OptionFuture;
use http::{Method, Version};

use super::super::upstream::Upstream;
use super::client::Client;
use super::race;
use super::relay::{Limits, Relay};
use super::request_body::RequestBody;
use super::story::{Decision, Next, Passing, Story, Surroundings};
use super::tunnel::{self, Carried};
use crate::exchange::{Fault, FaultKind, OwnResponse, Side, keeps_connection};
use crate::failure::{Failure, Rejection};
use crate::pool::{Admission, Backend, Head, Target};
use crate::wire::body::{BodyWriter, Frame};
use crate::wire::connection::Named;
use crate::wire::framing::Length;
use crate::wire::write::{self, Persistence};

/// One request of a client.
struct Serving<'a> {
    around: Surroundings<'a>,
    client: &'a mut Client,
    body: RequestBody,
    story: Box<Story>,
    /// Whether the request has come to its end. The process can end before that, and drops the request then.
    has_ended: bool,
}

/// The result of an attempt.
enum Outcome {
    /// The response was passed on.
    Done(Next),
    /// The request needs another attempt.
    Retry,
}

/// Serves a request to its end, and counts it.
pub(super) async fn serve(around: Surroundings<'_>, client: &mut Client, story: Box<Story>) -> Next {
    let body = RequestBody::new(story.head.length(), around.limits.body.map(NonZeroU64::get));
    let mut serving = Serving { around, client, body, story, has_ended: false };
    let next = match serving.attempts().await {
        Ok(next) => next,
        Err(failure) => serving.respond_ourselves(failure).await,
    };
    serving.has_ended = true;
    next
}

/// A request that the end of the process or a panic cuts off is counted and logged, too.
impl Drop for Serving<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            let is_bug = std::thread::panicking();
            let _ = self.story.exchange.fail(if is_bug { Failure::Internal } else { Failure::Shutdown });
            // The end of the connection could pass for the end of the response.
            if self.story.head.version() == Version::HTTP_10 {
                self.client.stream.reset_on_close();
            }
        }
        self.story.finish(&self.body);
    }
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
            let mut backend = self.place().await?;
            let Some(mut upstream) = self.connect(&mut backend).await? else { continue };
            let (attempt, is_kept) = self.attempt(&backend, &mut upstream).await?;
            if is_kept {
                self.around.connector.keep(upstream, &backend, self.around.runtime, Instant::now());
            }
            if let Outcome::Done(next) = attempt {
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
        done.ok_or_else(|| self.gone())
    }

    fn gone(&mut self) -> Failure {
        self.story.exchange.fail(self.body.gone(self.client).failure())
    }

    /// Connects to the backend, or to another one that is connected before; `None` if that failed and there is to be
    /// another attempt.
    async fn connect(&mut self, backend: &mut Arc<Backend>) -> Result<Option<Box<Upstream>>, Failure> {
        let connected = match self.story.idle(self.around, backend) {
            Some(upstream) => Ok(upstream),
            None => {
                // In a box, because most requests need no new connection.
                let connecting = Box::pin(race::connect(&mut self.story, self.around, backend));
                let connected = self.client.unless_gone(connecting).await;
                connected.ok_or_else(|| self.gone())?
            }
        };
        match connected {
            Ok(upstream) => {
                self.story.connected(upstream.reused);
                Ok(Some(upstream))
            }
            Err(error) => {
                log::debug!("cannot connect to {}: {}", backend.label, error.reason);
                self.story.exchange.cannot_connect(error.in_words());
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
    ) -> Result<(Outcome, bool), Failure> {
        self.story.write_request(upstream);
        let (limits, writer) = (self.limits(backend.target()), request_writer(self.story.head.length()));
        let named = Named::of(self.story.head.fields(), self.story.head.options());
        let begun = self.story.at;
        let mut relay = Relay::new(self.client, upstream, &mut self.body, writer, named, limits, begun);
        match self.story.decision(&mut relay, backend, &self.around).await {
            Ok(Decision::PassOn(mut passing)) => {
                let result = relay.bodies(&mut passing.download, &mut self.story.response_bytes).await;
                let is_sent = relay.is_sent();
                if result.is_ok() {
                    passing.count_poison(backend, upstream);
                }
                let is_kept = result.is_ok() && passing.keeps_upstream && is_sent && upstream.is_clean();
                Ok((Outcome::Done(self.end(passing, result).await), is_kept))
            }
            Ok(Decision::Switch) => {
                let quiet = backend.target().tunnel_timeout;
                Ok((Outcome::Done(self.tunnel(upstream, quiet).await), false))
            }
            Ok(Decision::Retry) => Ok((Outcome::Retry, false)),
            Err(fault) => {
                if let Some(message) = relay.tls_error.take() {
                    self.story.exchange.cannot_connect(message);
                }
                self.story.fault(fault, &self.body).map(|()| (Outcome::Retry, false))
            }
        }
    }

    /// Ends a response, of which the client has everything or a part.
    async fn end(&mut self, passing: Passing, result: Result<(), Fault>) -> Next {
        if passing.download.is_done() {
            self.story.exchange.response_complete();
        }
        let Err(fault) = result else { return passing.next };
        // The response has begun, so there is no other attempt.
        let _ = self.story.fault(fault, &self.body);
        match (fault.side, fault.kind) {
            // Its unread bytes would stay in the memory of the system.
            (Side::Client, FaultKind::WriteTimeout) => return Next::Reset,
            (Side::Client, FaultKind::Closed) => return Next::Drop,
            (Side::Client | Side::Backend, _) => {}
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
        let carried =
            Carried { to_backend: &mut self.story.tunnel_bytes, to_client: &mut self.story.response_bytes };
        match tunnel::run(self.client, upstream, quiet, carried).await {
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
        let own = self.story.exchange.own_response(&self.story.head, SystemTime::now);
        let Some(own) = own else { return Next::Drop };
        let keeps =
            keeps_connection(failure) && self.story.keeps_client(&self.body, self.client, &self.around);
        let persistence = Persistence::new(keeps, self.story.head.version());
        own_head(self.client.output.text(), &own, persistence);
        self.story.status = Some(own.status.as_u16());
        if *self.story.head.method() != Method::HEAD {
            self.story.response_bytes = own.body.len() as u64;
            self.client.output.push(Frame::Plain, own.body);
        }
        match self.client.flush().await {
            Ok(()) if keeps => Next::Keep,
            Ok(()) => Next::Close,
            Err(_) => Next::Drop,
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

/// Writes the head of a response of our own.
pub(super) fn own_head(out: &mut Vec<u8>, own: &OwnResponse, persistence: Persistence) {
    let reason = own.status.canonical_reason().unwrap_or_default();
    write::own_response(out, own.status.as_u16(), reason, own.fields.iter().cloned(), persistence);
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use bytes::Bytes;
    use tokio::net::TcpStream;
    use tokio::runtime::Handle;

    use super::super::super::splice::Pipes;
    use super::super::super::stream::{Socket, Stream};
    use super::super::super::upstream::Connector;
    use super::*;
    use crate::exchange::{Exchange, Origin};
    use crate::forwarded::Scheme;
    use crate::listener::{ClientLimits, ClientTimeouts, ListenerId};
    use crate::policy::Algorithm;
    use crate::testing::{settings, snapshot};
    use crate::traffic::Traffic;
    use crate::wire::request::RequestHead;

    /// Returns a client, and the other end of its connection.
    async fn client() -> (Client, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (peer, _) = listener.accept().unwrap();
        let pipes = (Pipes::default(), Traffic::default().listener("web"));
        (Client::new(Stream::Plain(Socket::Tcp(stream)), Duration::from_secs(1), pipes), peer)
    }

    #[tokio::test]
    async fn a_request_that_a_panic_cuts_off_is_counted_as_500_and_its_connection_is_not_taken_for_complete()
    {
        let snapshot = Arc::new(snapshot(&settings(Algorithm::RoundRobin)));
        let (limits, timeouts) = (ClientLimits::default(), ClientTimeouts::default());
        let head =
            RequestHead::parse(&Bytes::from_static(b"GET /api HTTP/1.0\r\n\r\n"), &limits.head).unwrap();
        let origin =
            Origin { snapshot: snapshot.clone(), listener: ListenerId(0), peer: None, scheme: Scheme::Http };
        let exchange = Exchange::begin(origin, &head, Instant::now());
        let connection = Traffic::new().open("web").accept(None);
        let (connector, runtime) = (Connector::of(&Default::default()), Handle::current().id());
        let (connection, connector) = (&*connection, &connector);
        let around = Surroundings { connection, connector, runtime, limits, timeouts, is_last: false };
        let (mut client, mut peer) = client().await;
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let body = RequestBody::new(head.length(), None);
            let story = Box::new(Story::new(head, exchange, Instant::now()));
            let _serving = Serving { around, client: &mut client, body, story, has_ended: false };
            panic!("a bug");
        }));
        assert!(panicked.is_err());
        let counted: Vec<_> = snapshot.requests(ListenerId(0), None).responses.counted().collect();
        assert_eq!(counted, [(500, 1)]);
        drop(client);
        assert_eq!(peer.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}
