//! A connection of a client, from accept to close: finds its listener, counts it, and feeds its requests to the proxy.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::BytesMut;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ServerApp};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::access_log::Record;
use crate::failure::Failure;
use crate::forwarded::Peer;
use crate::listener::ListenerId;
use crate::proxy::Proxy;
use crate::snapshot::{CurrentSnapshot, Snapshot};
use crate::traffic::{Acceptor, Connection};
use crate::watched::Watched;

/// Pingora's HTTP proxy behind one socket. All of them share the proxy, and with it the connections to the backends.
pub(crate) struct Frontend {
    proxy: Arc<HttpProxy<Proxy>>,
    current: CurrentSnapshot,
    acceptor: Arc<Acceptor>,
}

/// What a request is served by, and the connection that it came over.
pub(crate) struct Turn {
    pub(crate) connection: Arc<Connection>,
    pub(crate) plan: Arc<Snapshot>,
    /// That of the connection, in this plan.
    pub(crate) listener: ListenerId,
}

/// What the latest request of a connection was served by. A connection that waits keeps no plan alive, with its pools: it may wait
/// for long, and plans may come often.
struct Seat {
    plan: Weak<Snapshot>,
    listener: ListenerId,
}

/// How long a client may take to begin its first request.
const FIRST_REQUEST: Duration = Duration::from_secs(60);
/// How long it may take to begin another one: nginx's default.
pub(crate) const IDLE: Duration = Duration::from_secs(75);
/// How long the head of a request may take, from its first byte to its last.
const HEAD: Duration = Duration::from_secs(10);
/// As much of a request as is read before Pingora takes over: more than the head of most, in one system call.
const FIRST_READ: usize = 4096;

impl Frontend {
    pub(crate) fn new(
        proxy: Arc<HttpProxy<Proxy>>,
        current: CurrentSnapshot,
        acceptor: Arc<Acceptor>,
    ) -> Self {
        Self { proxy, current, acceptor }
    }

    /// Feeds the requests of a connection to the proxy until there is none any more. What is left is a request that the proxy
    /// has never seen, if there is one: the status that stands for it, and why.
    ///
    /// Between two requests only this future is alive. Pingora would wait inside its proxy's, which with its buffers is
    /// most of what an idle connection costs there.
    async fn serve(
        &self,
        mut stream: Stream,
        connection: &Arc<Connection>,
        shutdown: &ShutdownWatch,
    ) -> Option<(u16, Failure)> {
        let mut farewell = pin!(self.acceptor.settled());
        let timer = pin!(sleep(FIRST_REQUEST));
        let mut wait = Wait::new(timer);
        let mut settings: Option<HttpPersistentSettings> = None;
        let mut seat = None;
        loop {
            // `None`: the client leaves, takes too long, or has to be sent away.
            let begun = tokio::select! {
                biased;
                begun = poll_fn(|cx| poll_first_bytes(cx, &mut stream)) => begun?,
                () = wait.ends() => return None,
                () = farewell.as_mut() => return None,
            };
            let _in_flight = connection.begin_request();
            let head = Head::of(&begun);
            let turn = self.turn(connection, &mut seat)?;
            connection.set_last(head == Head::AndMore);
            let session = session(stream, settings, begun, turn);
            let request = self.proxy.process_new_http(session, shutdown);
            let reusable = match head {
                Head::Incomplete => until_head(request, connection).await,
                Head::Complete | Head::AndMore => request.await,
            };
            let Some(reusable) = reusable else { return connection.unseen_request() };
            (stream, settings) = reusable.consume();
            wait.renew(IDLE);
        }
    }

    /// What a request is served by that begins now. None: its listener was removed before it was ever served.
    fn turn(&self, connection: &Arc<Connection>, seat: &mut Option<Seat>) -> Option<Turn> {
        let (connection, current) = (connection.clone(), self.current.load());
        if let Some(Seat { listener, .. }) = seat.as_ref().filter(|seat| seat.is_of(&current)) {
            return Some(Turn { connection, plan: current, listener: *listener });
        }
        let (plan, listener) = self.with_listener(current)?;
        *seat = Some(Seat { plan: Arc::downgrade(&plan), listener });
        Some(Turn { connection, plan, listener })
    }

    /// `current`, if it has our listener; else the last plan that had it.
    fn with_listener(&self, current: Arc<Snapshot>) -> Option<(Arc<Snapshot>, ListenerId)> {
        let plans = [current].into_iter().chain(self.acceptor.last_plan().cloned());
        plans
            .filter_map(|plan| plan.listener_of(&self.acceptor.listener).map(|listener| (plan, listener)))
            .next()
    }
}

// === impl Seat ===

impl Seat {
    fn is_of(&self, plan: &Arc<Snapshot>) -> bool {
        // The memory of a plan that is gone is not another's as long as it is remembered here.
        std::ptr::eq(self.plan.as_ptr(), Arc::as_ptr(plan))
    }
}

/// Counts and logs a request that the proxy has never seen.
fn unseen(plan: &Snapshot, listener: ListenerId, connection: &Connection, (status, failure): (u16, Failure)) {
    if let Failure::Rejected(reason) = failure {
        connection.acceptor.listener.reject(reason);
    }
    plan.requests(listener, None).responses.increment(status);
    plan.access_log(listener).record(&Record {
        client: connection.peer.as_ref().map(|peer| peer.ip),
        status: Some(status),
        failure: Some(failure.as_str()),
        ..Record::new(SystemTime::now(), &connection.acceptor.listener.name)
    });
}

/// How long a connection waits for its client. Its timer is set anew only when it has rung too early: once a minute on a busy
/// connection, not once for each request.
struct Wait<'a> {
    ends: Instant,
    timer: Pin<&'a mut Sleep>,
}

/// How much of a request the first bytes hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Head {
    /// Not all of its head.
    Incomplete,
    /// Its head, and maybe of its body.
    Complete,
    /// Its head, and more although such a request has no body: another request, sent before the first was answered.
    /// Pingora would drop that one, so the answer to the first must be the last on the connection.
    AndMore,
}

impl Head {
    fn of(bytes: &[u8]) -> Self {
        let is_bodiless = || bytes.starts_with(b"GET ") || bytes.starts_with(b"HEAD ");
        match bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            None => Self::Incomplete,
            Some(end) if end + 4 < bytes.len() && is_bodiless() => Self::AndMore,
            Some(_) => Self::Complete,
        }
    }
}

// === impl Wait ===

impl<'a> Wait<'a> {
    fn new(timer: Pin<&'a mut Sleep>) -> Self {
        Self { ends: timer.deadline(), timer }
    }

    /// So long from now; it never becomes shorter.
    fn renew(&mut self, patience: Duration) {
        self.ends = Instant::now() + patience;
    }

    async fn ends(&mut self) {
        self.timer.as_mut().await;
        while self.timer.deadline() < self.ends {
            self.timer.as_mut().reset(self.ends);
            self.timer.as_mut().await;
        }
    }
}

/// A session whose first bytes have been read.
fn session(
    stream: Stream,
    settings: Option<HttpPersistentSettings>,
    begun: BytesMut,
    turn: Turn,
) -> ServerSession {
    let mut session = ServerSession::new_http1(stream);
    match settings {
        Some(settings) => settings.apply_to_session(&mut session),
        None => session.set_keepalive(Some(FIRST_REQUEST.as_secs())),
    }
    session.set_pipelined_prefix(begun);
    session.set_connection_user_context(Some(Box::new(turn)));
    session
}

/// Works on a request whose head is not complete, but gives it up when it is not [`HEAD`] later: Pingora only limits the time
/// between two reads.
async fn until_head<T>(request: impl Future<Output = Option<T>>, connection: &Connection) -> Option<T> {
    tokio::pin!(request);
    tokio::select! {
        biased;
        done = &mut request => return done,
        () = sleep(HEAD) => {}
    }
    if connection.is_unseen() {
        connection.timed_out();
        return None;
    }
    request.await
}

/// Reads into the stack, so that a connection has no buffer while it waits.
fn poll_first_bytes(cx: &mut Context<'_>, stream: &mut Stream) -> Poll<Option<BytesMut>> {
    let mut space = [const { MaybeUninit::uninit() }; FIRST_READ];
    let mut read = ReadBuf::uninit(&mut space);
    Pin::new(stream).poll_read(cx, &mut read).map(|result| {
        let bytes = read.filled();
        (result.is_ok() && !bytes.is_empty()).then(|| BytesMut::from(bytes))
    })
}

/// Who connected; none on a Unix socket.
fn peer(stream: &Stream) -> Option<Peer> {
    let digest = stream.get_socket_digest()?;
    digest.peer_addr()?.as_inet().map(|address| Peer::new(address.ip()))
}

#[async_trait]
impl ServerApp for Frontend {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let connection = self.acceptor.accept(peer(&stream));
        let stream = Box::new(Watched::new(stream, connection.clone()));
        if let Some(failed) = self.serve(stream, &connection, shutdown).await
            && let Some((plan, listener)) = self.with_listener(self.current.load())
        {
            unseen(&plan, listener, &connection, failed);
        }
        None
    }

    /// The socket is closed: lets what is on its way arrive. The connections then end by themselves, the idle ones at
    /// once. Pingora's own clean-up would also cut those on which a request has begun.
    async fn cleanup(&self) {
        self.acceptor.settle().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_so_long_after_it_was_renewed_last() {
        let began = Instant::now();
        let timer = pin!(sleep(FIRST_REQUEST));
        let mut wait = Wait::new(timer);
        for _ in 0..3 {
            sleep(FIRST_REQUEST / 2).await;
            wait.renew(IDLE);
        }
        wait.ends().await;
        let waited = began.elapsed() - FIRST_REQUEST * 3 / 2;
        assert!(waited >= IDLE && waited < IDLE + Duration::from_millis(10), "{waited:?}");
    }

    #[test]
    fn a_head_is_complete_with_its_empty_line() {
        assert_eq!(Head::of(b"GET / HTTP/1.1\r\nHost: a\r\n"), Head::Incomplete);
        assert_eq!(Head::of(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Head::Complete);
        assert_eq!(Head::of(b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx"), Head::Complete);
        assert_eq!(Head::of(b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n"), Head::AndMore);
    }
}
