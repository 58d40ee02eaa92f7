//! A connection to a backend, from its making to its last use.

use std::any::Any;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::task::noop_waker_ref;
use pingora::server::configuration::ServerConf;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use socket2::SockRef;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::task::coop::unconstrained;
use tokio_rustls::TlsConnector;

use super::input::Input;
use super::output::Output;
use super::splice::Pipes;
use super::stream::{Socket, Stream, keepalive};
use crate::exchange::FaultKind;
use crate::pool::{Backend, History, IdleBudget, Parked, Poison, RuntimeId, UpstreamAddress};
use crate::snapshot::CurrentSnapshot;

/// The pause before another attempt to connect to a Unix socket whose queue of connections is full.
const FULL_QUEUE: Duration = Duration::from_millis(5);

/// A connection to a backend that carries one request at a time.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) stream: Stream,
    pub(crate) input: Input,
    pub(crate) output: Output,
    /// Whether the connection has carried a request before.
    pub(crate) reused: bool,
    expires: Instant,
    /// The history of the backend.
    history: Arc<History>,
}

/// What the backend has done on a connection that waits for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// Nothing.
    Quiet,
    /// The backend has sent a byte.
    Spoken,
    /// The backend has closed the connection.
    Closed,
}

/// Makes connections, and keeps the idle ones.
#[derive(Clone, Debug)]
pub struct Connector {
    /// The addresses to connect from.
    pub(crate) sources: Sources,
    pub(crate) budget: IdleBudget,
    pub(crate) pipes: Pipes,
}

/// A connection to a backend that is being made.
pub(crate) struct Connecting {
    connecting: Pin<Box<dyn Future<Output = Result<Box<Upstream>, ConnectError>> + Send>>,
    deadline: Instant,
}

/// The addresses to connect to backends from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sources {
    pub(crate) v4: Option<IpAddr>,
    pub(crate) v6: Option<IpAddr>,
}

/// The reason why there is no connection.
#[derive(Debug)]
pub(crate) struct ConnectError {
    /// The kind of the fault.
    pub(crate) kind: FaultKind,
    /// The reason, for the log.
    pub(crate) reason: io::Error,
}

impl ConnectError {
    /// Returns the reason for operators.
    pub(crate) fn in_words(&self) -> String {
        match self.kind {
            FaultKind::Tls => values::tls_reason(&self.reason.to_string()),
            _ => values::reason(&self.reason),
        }
    }
}

// === impl Connector ===

impl Connector {
    /// Returns the connector of a process with this configuration.
    pub fn of(conf: &ServerConf) -> Self {
        let first = |addresses: &[String]| addresses.first().and_then(|address| address.parse().ok());
        let sources = Sources { v4: first(&conf.client_bind_to_ipv4), v6: first(&conf.client_bind_to_ipv6) };
        let idle = conf.upstream_keepalive_pool_size.saturating_mul(conf.threads);
        Self { sources, budget: IdleBudget::new(idle), pipes: Pipes::default() }
    }

    /// Takes an idle connection to this backend, if there is one that was in use in this `recent` time.
    pub(crate) fn idle(
        &self,
        backend: &Backend,
        runtime: RuntimeId,
        recent: Duration,
        now: Instant,
    ) -> Option<Box<Upstream>> {
        let limit = backend.target().idle_timeout;
        let connection: Box<dyn Any> = backend.idle().take(runtime, limit, recent, now)?;
        // Only `keep` parks connections.
        let mut upstream = connection.downcast::<Upstream>().ok()?;
        upstream.reused = true;
        Some(upstream)
    }

    /// Begins a new connection to this backend, with TLS if its pool has it.
    pub(crate) fn connect(&self, backend: &Arc<Backend>) -> Connecting {
        let deadline = Instant::now() + backend.target().connect_timeout;
        let (connector, backend) = (self.clone(), backend.clone());
        Connecting { connecting: Box::pin(async move { connector.upstream(&backend).await }), deadline }
    }

    async fn upstream(&self, backend: &Backend) -> Result<Box<Upstream>, ConnectError> {
        let target = backend.target();
        let stream = self.stream(&target.address, target.tls.as_ref()).await?;
        let (input, output) = (Input::default(), Output::default());
        let expires = Instant::now() + jittered(target.max_age, fastrand::f64());
        let history = backend.history.clone();
        Upstream { stream, input, output, reused: false, expires, history }.untouched().map(Box::new)
    }

    /// Makes a new connection without a time limit, with TLS if there are settings for it.
    pub(super) async fn stream(
        &self,
        address: &UpstreamAddress,
        tls: Option<&(Arc<ClientConfig>, ServerName<'static>)>,
    ) -> Result<Stream, ConnectError> {
        let socket = self.socket(address).await;
        let socket = socket.map_err(|reason| ConnectError { kind: FaultKind::Connect, reason })?;
        let Some((config, name)) = tls else { return Ok(Stream::Plain(socket)) };
        let handshake = TlsConnector::from(config.clone()).connect(name.clone(), socket).await;
        let stream = handshake.map_err(|reason| ConnectError { kind: FaultKind::Tls, reason })?;
        Ok(Stream::Tls(Box::new(stream)))
    }

    async fn socket(&self, address: &UpstreamAddress) -> io::Result<Socket> {
        let address = match address {
            UpstreamAddress::Unix(path) => {
                return connect_unix(path.as_path()).await.map(Socket::Unix);
            }
            UpstreamAddress::Tcp(address) => *address,
        };
        let stream = match self.sources.to(address) {
            Some(source) => {
                let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
                socket.bind(SocketAddr::new(source, 0))?;
                socket.connect(address).await
            }
            None => TcpStream::connect(address).await,
        }?;
        stream.set_nodelay(true)?;
        SockRef::from(&stream).set_tcp_keepalive(&keepalive())?;
        Ok(Socket::Tcp(stream))
    }

    /// Keeps a connection for another request.
    pub(crate) fn keep(
        &self,
        mut upstream: Box<Upstream>,
        backend: &Backend,
        runtime: RuntimeId,
        now: Instant,
    ) {
        upstream.input.release();
        upstream.output.release();
        backend.idle().park(upstream, runtime, &self.budget, now);
    }
}

// === impl Connecting ===

impl Connecting {
    /// Waits for the connection.
    ///
    /// # Errors
    ///
    /// If the backend cannot be reached in time, or the handshake fails.
    pub(crate) async fn finish(&mut self) -> Result<Box<Upstream>, ConnectError> {
        let connected = tokio::time::timeout_at(self.deadline.into(), &mut self.connecting).await;
        connected.unwrap_or_else(|_| Err(timed_out()))
    }

    /// Waits for the connection, but no longer than `pause`; `None` if it is still being made.
    ///
    /// # Errors
    ///
    /// As [`finish`](Self::finish).
    pub(crate) async fn within(&mut self, pause: Duration) -> Option<Result<Box<Upstream>, ConnectError>> {
        let until = Instant::now() + pause;
        if until >= self.deadline {
            return Some(self.finish().await);
        }
        tokio::time::timeout_at(until.into(), &mut self.connecting).await.ok()
    }
}

fn timed_out() -> ConnectError {
    ConnectError { kind: FaultKind::Connect, reason: io::ErrorKind::TimedOut.into() }
}

/// Connects to a Unix socket. While its queue of connections is full, this waits, as TCP does.
async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(FULL_QUEUE).await,
            result => return result.map_err(in_words),
        }
    }
}

/// Returns the error with words that fit a Unix socket.
fn in_words(error: io::Error) -> io::Error {
    let words = match error.kind() {
        io::ErrorKind::NotFound => "the socket does not exist",
        io::ErrorKind::PermissionDenied => {
            "permission denied; the user that the daemon runs as needs write permission for the socket, and access to \
             its directory"
        }
        _ => return error,
    };
    io::Error::new(error.kind(), words)
}

/// Closes idle connections that are too old or that their backend has closed, once a second.
pub(crate) async fn sweep(current: CurrentSnapshot) {
    let mut every = tokio::time::interval(Duration::from_secs(1));
    loop {
        every.tick().await;
        let (snapshot, now) = (current.load(), Instant::now());
        let backends = snapshot.pools.iter().flat_map(|pool| pool.backends());
        backends.for_each(|backend| backend.idle().sweep(backend.target().idle_timeout, now));
    }
}

/// Returns the age, shortened by up to 10 %, so that connections that were made together do not end together.
fn jittered(age: Duration, draw: f64) -> Duration {
    age.mul_f64(1.0 - draw / 10.0)
}

// === impl Sources ===

impl Sources {
    fn to(self, backend: SocketAddr) -> Option<IpAddr> {
        if backend.is_ipv4() { self.v4 } else { self.v6 }
    }
}

// === impl Upstream ===

impl Upstream {
    /// Returns whether the backend has sent nothing that was not used, and has not closed the connection.
    pub(crate) fn is_clean(&self) -> bool {
        self.input.bytes().is_empty() && !self.input.has_ended() && self.output.is_empty()
    }

    /// Returns the new connection, unless the backend has already closed it or sent a byte: that would pass for the
    /// response to our request.
    fn untouched(mut self) -> Result<Self, ConnectError> {
        // With TLS, the bytes may be tickets. Without it, no event may have reported them yet.
        match self.stream.arrived().filter(|_| !self.stream.is_tls()) {
            Some(true) => self.history.poison(Poison::EarlyBytes),
            None if self.is_quiet() => return Ok(self),
            Some(false) | None => {}
        }
        let reason = io::Error::other("the backend closed the connection or sent bytes before the request");
        Err(ConnectError { kind: FaultKind::Closed, reason })
    }
}

impl Parked for Upstream {
    fn can_move(&self) -> bool {
        !self.stream.is_tls()
    }

    fn moved(self: Box<Self>) -> Option<Box<dyn Parked>> {
        let Self { stream, input, output, reused, expires, history } = *self;
        let stream = stream.moved()?;
        // The new reactor has reported nothing yet, so a look at the socket is needed.
        match stream.arrived() {
            Some(true) => history.poison(Poison::EarlyBytes),
            None => return Some(Box::new(Self { stream, input, output, reused, expires, history })),
            Some(false) => {}
        }
        None
    }

    fn expires(&self) -> Instant {
        self.expires
    }

    fn is_quiet(&mut self) -> bool {
        let waiting = self.waiting();
        if waiting == Waiting::Spoken {
            self.history.poison(Poison::EarlyBytes);
        }
        waiting == Waiting::Quiet
    }
}

impl Upstream {
    /// Looks at a connection that has no request, without waiting.
    fn waiting(&mut self) -> Waiting {
        if !self.is_clean() {
            return Waiting::Closed;
        }
        let mut byte = [0];
        let mut buf = ReadBuf::new(&mut byte);
        let mut cx = Context::from_waker(noop_waker_ref());
        let stream = &mut self.stream;
        // Without `unconstrained`, a task that has used up its budget would see nothing.
        let mut probe = unconstrained(poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, &mut buf)));
        match Future::poll(Pin::new(&mut probe), &mut cx) {
            Poll::Pending => Waiting::Quiet,
            Poll::Ready(Ok(())) if !buf.filled().is_empty() => Waiting::Spoken,
            Poll::Ready(_) => Waiting::Closed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpListener;

    use super::*;

    /// Returns a connection whose backend has sent these bytes, or has closed it, before a request.
    async fn connected(bytes: &[u8], closes: bool) -> Result<Upstream, ConnectError> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut backend, _) = listener.accept().unwrap();
        backend.write_all(bytes).unwrap();
        let backend = (!closes).then_some(backend);
        if closes || !bytes.is_empty() {
            stream.peek(&mut [0]).await.unwrap();
        }
        let (input, output) = (Input::default(), Output::default());
        let stream = Stream::Plain(Socket::Tcp(stream));
        let (expires, history) = (Instant::now(), Arc::new(History::new(Instant::now())));
        let upstream = Upstream { stream, input, output, reused: false, expires, history: history.clone() };
        let result = upstream.untouched();
        let counted: Vec<_> = history.poisoned().map(|(_, count)| count).collect();
        assert_eq!(counted, [u64::from(!bytes.is_empty()), 0, 0]);
        drop(backend);
        result
    }

    #[tokio::test]
    async fn a_full_queue_of_a_unix_socket_delays_the_connection() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.sock");
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        socket.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
        socket.listen(0).unwrap();
        let mut waiting = Vec::new();
        let full = loop {
            match UnixStream::connect(&path).await {
                Ok(connection) => waiting.push(connection),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let mut connecting = Box::pin(connect_unix(&path));
        assert!(futures::poll!(&mut connecting).is_pending());
        socket.accept().unwrap();
        connecting.await.unwrap();
    }

    #[tokio::test]
    async fn the_error_of_a_missing_socket_names_the_socket() {
        let error = connect_unix(Path::new("/no/such/app.sock")).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (io::ErrorKind::NotFound, "the socket does not exist")
        );
    }

    #[tokio::test]
    async fn a_connection_on_which_the_backend_came_first_is_not_used() {
        assert!(connected(b"", false).await.is_ok());
        let kind = |result: Result<Upstream, ConnectError>| result.map(drop).map_err(|error| error.kind);
        assert_eq!(kind(connected(b"HTTP/1.1 200 OK\r\n", false).await), Err(FaultKind::Closed));
        assert_eq!(kind(connected(b"", true).await), Err(FaultKind::Closed));
    }
}
