//! A client's connection: its requests one after the other, and its end.

use std::num::NonZeroU32;
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::sync::futures::Notified;

use super::super::stream::Stream;
use super::super::upstream::Connector;
use super::client::Client;
use super::serve::{own_head, serve};
use super::story::{Next, Story, Surroundings};
use crate::access_log::Record;
use crate::exchange::{Exchange, Origin, OwnResponse};
use crate::failure::{Failure, Rejection, WireRejection};
use crate::forwarded::Scheme;
use crate::listener::{HeadLimits, Listener, ListenerId};
use crate::pool::RuntimeId;
use crate::snapshot::{CurrentSnapshot, Snapshot};
use crate::traffic::{Acceptor, CloseEnd, Connection, ListenerTraffic};
use crate::wire::connection::count_named;
use crate::wire::offset;
use crate::wire::request::RequestHead;
use crate::wire::scan::{Found, Scan, has_begun};
use crate::wire::write::Persistence;

/// What the connections of one socket share.
#[derive(Clone)]
pub(crate) struct Acceptance {
    pub(crate) current: CurrentSnapshot,
    pub(crate) acceptor: Arc<Acceptor>,
    pub(crate) connector: Connector,
}

/// A connection, and what its requests need besides it.
#[derive(Clone, Copy)]
struct Established<'a> {
    acceptance: &'a Acceptance,
    connection: &'a Connection,
    /// The runtime of the thread that serves the connection.
    runtime: RuntimeId,
}

/// The snapshot and the listener of the latest request. A connection that waits keeps no snapshot alive.
struct Seat {
    snapshot: Weak<Snapshot>,
    listener: ListenerId,
}

/// The snapshot that a request uses, and its listener there.
struct Place {
    snapshot: Arc<Snapshot>,
    listener: ListenerId,
}

/// A connection's wait for the moment at which idle connections are to be closed.
struct Settling<'a, 'p> {
    acceptor: &'a Acceptor,
    notified: Pin<&'p mut Notified<'a>>,
    /// Whether `notified` wakes the task of the connection.
    is_registered: bool,
}

/// The reason why there is no head, and the index in it of the byte in which the reason lies, if it lies in one.
struct BadHead {
    failure: Failure,
    offset: Option<usize>,
}

/// The time limits of a staged close.
struct Linger {
    /// The time at which it ends in any case.
    end: Instant,
    /// The time at which the client has been silent for too long.
    silent: Instant,
}

/// The longest time for which bytes are discarded after the last response, and the longest silence in it.
const LINGER: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(5));

/// Serves the requests of a connection until it ends.
pub(crate) async fn run(acceptance: &Acceptance, stream: Stream, connection: &Arc<Connection>) {
    let Some(first) = acceptance.place(&mut None) else { return };
    let timeouts = first.listener().timeouts;
    drop(first);
    let pipes = (acceptance.connector.pipes.clone(), connection.acceptor.listener.clone());
    let mut client = Client::new(stream, timeouts.body, pipes);
    let established = Established { acceptance, connection, runtime: Handle::current().id() };
    match requests(established, &mut client, timeouts.idle).await {
        Next::Keep | Next::Drop => {}
        Next::Close => linger(&mut client, &acceptance.acceptor).await,
        Next::Reset => client.stream.reset_on_close(),
    }
}

/// Serves requests until one of them ends the connection.
async fn requests(established: Established<'_>, client: &mut Client, mut idle: Duration) -> Next {
    let Established { acceptance, connection, .. } = established;
    let mut seat = None;
    let notified = pin!(acceptance.acceptor.settling());
    let mut settling = Settling { acceptor: &acceptance.acceptor, notified, is_registered: false };
    for served in 1_u64.. {
        if !begins(&mut settling, client, idle).await {
            return Next::Drop;
        }
        let _in_flight = connection.begin_request();
        let Some(place) = acceptance.place(&mut seat) else { return Next::Drop };
        let timeouts = place.listener().timeouts;
        (client.pause, idle) = (timeouts.body, timeouts.idle);
        // In a box, so that a waiting connection has no room for it.
        match Box::pin(request(established, client, place, served)).await {
            Next::Keep => client.release(),
            next => return next,
        }
        // Another request may already be there. Other connections get their turn first.
        if !client.input.bytes().is_empty() {
            tokio::task::yield_now().await;
        }
    }
    Next::Close
}

/// Serves one request, the first bytes of which are there. The connection has `served` requests with it.
async fn request(established: Established<'_>, client: &mut Client, place: Place, served: u64) -> Next {
    let Established { acceptance, connection, runtime } = established;
    let begun = Instant::now();
    let Listener { limits, timeouts, .. } = *place.listener();
    let head = match read_head(client, &limits.head, begun + timeouts.head).await {
        Ok(head) => head,
        Err(bad) => return reject(&place, client, connection, bad, begun).await,
    };
    count_dropped(&head, &connection.acceptor.listener);
    let (peer, scheme) = (connection.peer.clone(), Scheme::Http);
    let origin = Origin { snapshot: place.snapshot, listener: place.listener, peer, scheme };
    let exchange = Exchange::begin(origin, &head, begun);
    let story = Box::new(Story::new(head, exchange, begun));
    let is_last = limits.requests.is_some_and(|limit| served >= limit.get().into());
    let connector = &acceptance.connector;
    let around = Surroundings { connection, connector, runtime, limits, timeouts, is_last };
    serve(around, client, story).await
}

/// Waits until a request begins. `false`: the client leaves, takes too long, or has to be sent away.
async fn begins(settling: &mut Settling<'_, '_>, client: &mut Client, idle: Duration) -> bool {
    client.timer.set(Some(idle));
    std::future::poll_fn(|cx| {
        // An empty line before a request neither begins it nor restarts the deadline.
        while !has_begun(client.input.bytes()) {
            match client.input.poll_fill(&mut client.stream, cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(_) => return Poll::Ready(false),
                Poll::Pending => break,
            }
        }
        if has_begun(client.input.bytes()) {
            return Poll::Ready(true);
        }
        let is_over = client.timer.poll_expired(cx).is_ready() || settling.poll(cx).is_ready();
        if is_over { Poll::Ready(false) } else { Poll::Pending }
    })
    .await
}

/// Reads the head of a request, until this moment at most.
async fn read_head(client: &mut Client, limits: &HeadLimits, until: Instant) -> Result<RequestHead, BadHead> {
    let mut scan = Scan::default();
    client.timer.set_at(until);
    let bytes = std::future::poll_fn(|cx| poll_head(client, &mut scan, limits, cx)).await?;
    RequestHead::parse(&bytes, limits).map_err(|reason| BadHead::of(&bytes, reason))
}

fn poll_head(
    client: &mut Client,
    scan: &mut Scan,
    limits: &HeadLimits,
    cx: &mut Context<'_>,
) -> Poll<Result<Bytes, BadHead>> {
    loop {
        let bytes = client.input.bytes();
        let found = scan.request(bytes, limits);
        match found.map_err(|error| BadHead::of(bytes, WireRejection::of_head(error)))? {
            Found::Head { start, end } => return Poll::Ready(Ok(client.input.take(start, end))),
            Found::Incomplete => {}
        }
        match client.poll_more(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => return Poll::Ready(Err(Failure::ClientGone.into())),
            Poll::Pending => {
                std::task::ready!(client.timer.poll_expired(cx));
                return Poll::Ready(Err(Failure::ClientTimeout.into()));
            }
        }
    }
}

/// Counts the fields that are not passed on.
fn count_dropped(head: &RequestHead, listener: &ListenerTraffic) {
    if head.fields().look_alikes > 0 {
        listener.look_alikes.add(head.fields().look_alikes as u64);
    }
    if head.options().names_fields {
        listener.nominated.add(count_named(head.fields(), head.options()) as u64);
    }
}

/// Counts, logs and responds to a request whose head cannot be read.
async fn reject(
    place: &Place,
    client: &mut Client,
    connection: &Connection,
    BadHead { failure, offset }: BadHead,
    begun: Instant,
) -> Next {
    let own = OwnResponse::to(failure, None, SystemTime::now);
    let bytes_out = own.as_ref().map_or(0, |own| own.body.len() as u64);
    let next = match own {
        Some(own) => respond(client, own).await,
        None => Next::Drop,
    };
    let snapshot = &place.snapshot;
    if let Failure::Rejected(reason) = failure {
        connection.acceptor.listener.reject(reason);
        say_rejected(&connection.acceptor, reason);
    }
    let requests = snapshot.requests(place.listener, None);
    requests.responses.increment(failure.status());
    requests.response_bytes.add(bytes_out);
    let duration = begun.elapsed();
    snapshot.access_log(place.listener).record(&Record {
        client: connection.peer.as_ref().map(|peer| peer.ip),
        status: Some(failure.status()),
        failure: Some(failure.as_str()),
        bytes_out,
        offset,
        duration,
        ..Record::new(SystemTime::now() - duration, &connection.acceptor.listener.name)
    });
    next
}

/// Logs that heads were rejected, once a second at most: a client decides how many there are.
fn say_rejected(acceptor: &Acceptor, reason: Rejection) {
    if let Some(count) = acceptor.note_rejected(Instant::now()) {
        let (name, heads) =
            (&acceptor.listener.name, if count == 1 { "request head" } else { "request heads" });
        log::debug!("listener {name}: rejected {count} {heads}, the latest for `{}`", reason.as_str());
    }
}

async fn respond(client: &mut Client, own: OwnResponse) -> Next {
    let out = client.output.text();
    own_head(out, &own, Persistence::Close);
    out.extend_from_slice(&own.body);
    if client.flush().await.is_ok() { Next::Close } else { Next::Drop }
}

/// Ends the sending half, and discards what the client still sends, so that the last response is not destroyed by a
/// reset (RFC 9112, section 9.6). Ends early if the listener needs room for another connection.
async fn linger(client: &mut Client, acceptor: &Acceptor) {
    let stream = &mut client.stream;
    if std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_shutdown(cx)).await.is_err() {
        return;
    }
    if client.input.has_ended() {
        return;
    }
    let _lingering = acceptor.linger();
    let mut room_needed = pin!(acceptor.room_needed());
    let mut limits = Linger::new(Instant::now());
    let end = std::future::poll_fn(|cx| match limits.poll_discard(client, cx) {
        Poll::Pending => room_needed.as_mut().poll(cx).map(|()| CloseEnd::Evicted),
        ended => ended,
    });
    acceptor.listener.closed(end.await);
}

/// Discards some bytes; `false` at the end.
fn poll_discard(stream: &mut Stream, cx: &mut Context<'_>) -> Poll<bool> {
    let mut space = [0; 4096];
    let mut read = ReadBuf::new(&mut space);
    Pin::new(stream).poll_read(cx, &mut read).map(|result| result.is_ok() && !read.filled().is_empty())
}

// === impl Settling ===

impl Settling<'_, '_> {
    /// Is ready when idle connections are to be closed. The task registers itself only once, because its waker stays
    /// the same.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_registered {
            self.is_registered = self.notified.as_mut().poll(cx).is_pending();
        }
        if self.acceptor.is_settled() { Poll::Ready(()) } else { Poll::Pending }
    }
}

// === impl Linger ===

impl Linger {
    fn new(now: Instant) -> Self {
        let (total, silence) = LINGER;
        Self { end: now + total, silent: now + silence }
    }

    /// Discards bytes until the client has sent its last one or takes too long.
    fn poll_discard(&mut self, client: &mut Client, cx: &mut Context<'_>) -> Poll<CloseEnd> {
        while let Poll::Ready(has_more) = poll_discard(&mut client.stream, cx) {
            let now = Instant::now();
            self.silent = now + LINGER.1;
            match has_more {
                false => return Poll::Ready(CloseEnd::Closed),
                true if now >= self.end => return Poll::Ready(CloseEnd::Timeout),
                true => {}
            }
        }
        client.timer.set_at(self.silent.min(self.end));
        std::task::ready!(client.timer.poll_expired(cx));
        Poll::Ready(if self.end <= self.silent { CloseEnd::Timeout } else { CloseEnd::Quiet })
    }
}

// === impl BadHead ===

impl BadHead {
    /// Returns the rejection of these bytes, which hold the head or its beginning.
    fn of(bytes: &[u8], reason: WireRejection) -> Self {
        Self { failure: Failure::Rejected(Rejection::Wire(reason)), offset: offset(bytes, reason) }
    }
}

impl From<Failure> for BadHead {
    fn from(failure: Failure) -> Self {
        Self { failure, offset: None }
    }
}

// === impl Acceptance ===

impl Acceptance {
    /// Returns the limit of connections that the listener has now.
    pub(crate) fn max_connections(&self) -> Option<NonZeroU32> {
        self.place(&mut None)?.listener().limits.connections
    }

    /// Returns the snapshot for a request that begins now. `None`: its listener was removed before it was ever served.
    fn place(&self, seat: &mut Option<Seat>) -> Option<Place> {
        let current = self.current.load();
        if let Some(Seat { listener, .. }) = seat.as_ref().filter(|seat| seat.is_of(&current)) {
            return Some(Place { snapshot: current, listener: *listener });
        }
        let place = self.with_listener(current)?;
        *seat = Some(Seat { snapshot: Arc::downgrade(&place.snapshot), listener: place.listener });
        Some(place)
    }

    /// Returns `current`, if it has our listener; else the last snapshot that had it.
    fn with_listener(&self, current: Arc<Snapshot>) -> Option<Place> {
        let snapshots = [current].into_iter().chain(self.acceptor.last_plan().cloned());
        let places = snapshots.filter_map(|snapshot| {
            snapshot.listener_of(&self.acceptor.listener).map(|listener| Place { snapshot, listener })
        });
        { places }.next()
    }
}

// === impl Place ===

impl Place {
    fn listener(&self) -> &Listener {
        self.snapshot.listeners.get(self.listener)
    }
}

// === impl Seat ===

impl Seat {
    fn is_of(&self, snapshot: &Arc<Snapshot>) -> bool {
        // Another snapshot cannot have the memory of this one while it is remembered here.
        std::ptr::eq(self.snapshot.as_ptr(), Arc::as_ptr(snapshot))
    }
}
