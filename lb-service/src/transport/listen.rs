//! Accepts connections on one socket, and starts a task for each of them.
//!
//! The runtime of a service may be one of several threads without work stealing. A connection is registered with the
//! reactor of the thread that serves it, so the accepted socket moves there as a plain descriptor.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use pingora_runtime::current_handle;
use rustix::net::SocketFlags;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::task::JoinSet;

use super::http1::connection;
pub(crate) use super::http1::connection::Acceptance;
use super::stream::{Socket, Stream, keepalive};
use crate::forwarded::Peer;
use crate::listener::{ListenAddress, Listener};

/// A socket that accepts connections.
#[derive(Debug)]
pub(crate) struct ListenSocket(AsyncFd<OwnedFd>);

/// A connection that was accepted, not registered with any reactor.
struct Accepted {
    socket: OwnedFd,
    /// The address of the client; `None` on a Unix socket.
    peer: Option<IpAddr>,
}

/// The length of the queue of connections that the system has established and we have not accepted.
const BACKLOG: i32 = 4096;
/// The pause after a failure to accept. The usual reason is that the process has no descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

// === impl ListenSocket ===

impl ListenSocket {
    /// Returns the socket of a descriptor that already listens.
    ///
    /// # Errors
    ///
    /// If the descriptor cannot be registered with the runtime.
    #[expect(
        deprecated,
        reason = "unsound for types that can close their descriptor early, which OwnedFd cannot"
    )]
    pub(crate) fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        // Accepted connections inherit both. They fail on a Unix socket, which needs none. Without the second one, a
        // response waits for the acknowledgement of the previous one.
        let _ = SockRef::from(&fd).set_tcp_keepalive(&keepalive());
        let _ = SockRef::from(&fd).set_tcp_nodelay(true);
        AsyncFd::with_interest(fd, Interest::READABLE).map(Self)
    }

    /// Binds the address of the listener.
    ///
    /// # Errors
    ///
    /// If the address cannot be bound.
    pub(crate) fn bind(listener: &Listener) -> io::Result<Self> {
        match &listener.address {
            ListenAddress::Tcp(address) => {
                let domain = socket2::Domain::for_address(*address);
                let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
                socket.set_reuse_address(true)?;
                socket.bind(&(*address).into())?;
                socket.listen(BACKLOG)?;
                Self::from_fd(socket.into())
            }
            ListenAddress::Unix(path) => {
                let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
                socket.bind(&socket2::SockAddr::unix(path)?)?;
                // The mode is set before listening, so that no client connects while it is still the default.
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(listener.mode))?;
                socket.listen(BACKLOG)?;
                Self::from_fd(socket.into())
            }
        }
    }

    async fn accept(&self) -> io::Result<Accepted> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let accept = |fd: &OwnedFd| Ok(rustix::net::acceptfrom_with(fd, flags)?);
        let (socket, peer) = self.0.async_io(Interest::READABLE, accept).await?;
        let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).map(|peer| peer.ip());
        Ok(Accepted { socket, peer })
    }
}

/// Accepts connections in this number of tasks until `closes` turns true. Returns when idle connections may be closed
/// as well.
pub(crate) async fn accept(
    socket: ListenSocket,
    acceptance: Acceptance,
    closes: watch::Receiver<bool>,
    tasks: usize,
) {
    let (socket, turn) = (Arc::new(socket), Arc::default());
    let accept = |_| accept_until(socket.clone(), Arc::clone(&turn), acceptance.clone(), closes.clone());
    let accepting: JoinSet<()> = (0..tasks).map(accept).collect();
    accepting.join_all().await;
    drop(socket);
    acceptance.acceptor.settle().await;
}

async fn accept_until(
    socket: Arc<ListenSocket>,
    turn: Arc<Mutex<()>>,
    acceptance: Acceptance,
    mut closes: watch::Receiver<bool>,
) {
    let name = &acceptance.acceptor.listener.name;
    log::debug!("accepting on {name}");
    loop {
        let accepted = tokio::select! {
            biased;
            _ = closes.wait_for(|closes| *closes) => break,
            accepted = accept_one(&socket, &turn, &acceptance) => accepted,
        };
        match accepted {
            Ok((accepted, _turn)) => start(&acceptance, accepted),
            Err(error) if is_of_connection(&error) => {
                log::debug!("a client of {name} left before it was accepted: {error}");
            }
            Err(error) => {
                if acceptance.acceptor.cannot_accept(std::time::Instant::now()) {
                    log::warn!("cannot accept connections on {name}: {}; they wait", values::reason(&error));
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Accepts a connection once the listener has room for it. With a limit, the tasks take turns: a task keeps its turn
/// until the connection is counted, so that two of them never use the same room.
async fn accept_one<'a>(
    socket: &ListenSocket,
    turn: &'a Mutex<()>,
    acceptance: &Acceptance,
) -> io::Result<(Accepted, Option<MutexGuard<'a, ()>>)> {
    if acceptance.max_connections().is_none() {
        return Ok((socket.accept().await?, None));
    }
    let turn = turn.lock().await;
    acceptance.acceptor.room(|| acceptance.max_connections()).await;
    Ok((socket.accept().await?, Some(turn)))
}

/// Returns whether the error concerns one connection, and not the socket that accepts.
fn is_of_connection(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}

fn start(acceptance: &Acceptance, accepted: Accepted) {
    let connection = acceptance.acceptor.accept(accepted.peer.map(Peer::new));
    let acceptance = acceptance.clone();
    current_handle().spawn(async move {
        match accepted.into_stream() {
            Ok(stream) => connection::run(&acceptance, stream, &connection).await,
            Err(error) => log::warn!("cannot serve a connection: {error}"),
        }
    });
}

// === impl Accepted ===

impl Accepted {
    /// Registers the connection with the reactor of this thread.
    fn into_stream(self) -> io::Result<Stream> {
        let socket = match self.peer {
            Some(_) => Socket::Tcp(TcpStream::from_std(self.socket.into())?),
            None => Socket::Unix(UnixStream::from_std(self.socket.into())?),
        };
        Ok(Stream::Plain(socket))
    }
}
