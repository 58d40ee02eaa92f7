//! Connections to backends for requests that ask for another protocol, such as WebSocket.
//!
//! Pingora 0.9.1 works on such a request in two halves. One sends the end of the request through a channel; the other reads that
//! end, and the backend's answer, in whatever order it finds them. If it finds the answer 101 first, it takes the end of the
//! request for the end of the new protocol, and cuts the connection. A backend that answers at once meets this now and then, most
//! often on a connection that is used again.
//!
//! So the answer is held back until that end has been taken: [`Held`] is a socket that gives nothing to read from
//! [`Gate::hold`], before the head of the request is sent, until [`Gate::request_ended`] and one more look.
//!
//! Why one look is enough: both halves are one task. `request_ended` is told in the very step that puts the end into the channel.
//! When the other half looks at the socket after that and finds nothing, it looks at the channel in the same step, and
//! takes the end out.
//!
//! Each such request has a connection of its own, which is never used again: its gate is the key that Pingora would find it by.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fmt, io};

use async_trait::async_trait;
use futures::task::AtomicWaker;
use pingora::connectors::l4::Connect;
use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, OrErr};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// Addresses to connect from; none: the system decides.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
}

/// Whether the answer to one request may be read.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: AtomicU8,
    waker: AtomicWaker,
}

/// The answer may be read.
const OPEN: u8 = 0;
/// The request has not ended.
const HELD: u8 = 1;
/// It has, and that may not have been noticed.
const ENDED: u8 = 2;

/// How to connect for such a request.
struct Connector {
    gate: Arc<Gate>,
    source: Option<IpAddr>,
    patience: Option<Duration>,
}

/// A connection whose answer is held back.
#[derive(Debug)]
struct Held {
    stream: TcpStream,
    gate: Arc<Gate>,
}

// === impl Sources ===

impl Sources {
    /// Those of `conf`: of several the first.
    pub(crate) fn of(conf: &ServerConf) -> Self {
        let first = |addresses: &[String]| addresses.first().and_then(|address| address.parse().ok());
        Self { v4: first(&conf.client_bind_to_ipv4), v6: first(&conf.client_bind_to_ipv6) }
    }

    fn to(&self, backend: SocketAddr) -> Option<IpAddr> {
        if backend.is_ipv4() { self.v4 } else { self.v6 }
    }
}

// === impl Gate ===

impl Gate {
    /// Has `peer` connected to by a connection of its own, behind this gate.
    pub(crate) fn guard(self: &Arc<Self>, peer: &mut HttpPeer, sources: &Sources) {
        let address = peer._address.as_inet().copied();
        peer.group_key = Arc::as_ptr(self).addr() as u64;
        peer.options.custom_l4 = Some(Arc::new(Connector {
            gate: self.clone(),
            source: address.and_then(|address| sources.to(address)),
            patience: peer.options.connection_timeout,
        }));
    }

    /// The request is about to be sent.
    pub(crate) fn hold(&self) {
        self.state.store(HELD, Ordering::Release);
    }

    /// The end of the request is on its way to the half that reads the answer.
    pub(crate) fn request_ended(&self) {
        // Not one that was never held.
        if self.state.compare_exchange(HELD, ENDED, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.waker.wake();
        }
    }

    /// Whether the answer may be read.
    fn poll_open(&self, cx: &Context<'_>) -> Poll<()> {
        match self.state.load(Ordering::Acquire) {
            OPEN => return Poll::Ready(()),
            ENDED => {
                self.state.store(OPEN, Ordering::Release);
                cx.waker().wake_by_ref();
            }
            _ => {
                self.waker.register(cx.waker());
                if self.state.load(Ordering::Acquire) != HELD {
                    cx.waker().wake_by_ref();
                }
            }
        }
        Poll::Pending
    }
}

// === impl Connector ===

impl Connector {
    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if let Some(source) = self.source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        socket.connect(address).await
    }
}

#[async_trait]
impl Connect for Connector {
    async fn connect(&self, address: &PingoraAddr) -> pingora::Result<Stream> {
        let address = address.as_inet().copied();
        let address = address.ok_or_else(|| Error::explain(ErrorType::ConnectError, "not an IP address"))?;
        let connecting = timeout(self.patience.unwrap_or(Duration::MAX), self.connect(address));
        let connected = connecting.await.or_err(ErrorType::ConnectTimedout, "connecting for an upgrade")?;
        let stream = connected.map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
                _ => ErrorType::ConnectError,
            };
            Error::because(kind, "connecting for an upgrade", error)
        })?;
        let held = Held { stream, gate: self.gate.clone() };
        Ok(VirtualSocketStream::new(Box::new(held)).into())
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("upgraded::Connector")
    }
}

// === impl Held ===

impl VirtualSocket for Held {
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        match option {
            VirtualSockOpt::NoDelay => self.stream.set_nodelay(true),
            // Pingora asks for no other unless a peer says so, which ours do not.
            _ => Ok(()),
        }
    }
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.gate.poll_open(cx) {
            Poll::Ready(()) => Pin::new(&mut self.stream).poll_read(cx, buf),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for Held {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(gate: &Gate) -> Poll<()> {
        gate.poll_open(&Context::from_waker(futures::task::noop_waker_ref()))
    }

    #[test]
    fn an_answer_is_held_back_until_the_end_of_the_request_and_one_look() {
        let gate = Gate::default();
        assert!(look(&gate).is_ready(), "a handshake is not held back");
        gate.hold();
        assert!(look(&gate).is_pending() && look(&gate).is_pending());
        gate.request_ended();
        assert!(look(&gate).is_pending(), "whoever looks now finds the end first");
        assert!(look(&gate).is_ready() && look(&gate).is_ready());
        gate.request_ended();
        assert!(look(&gate).is_ready());
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_the_end_of_the_request() {
        let gate = Arc::new(Gate::default());
        gate.hold();
        let waiting = tokio::spawn({
            let gate = gate.clone();
            std::future::poll_fn(move |cx| gate.poll_open(cx))
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        gate.request_ended();
        timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
    }

    #[test]
    fn the_address_to_connect_from_is_of_the_backends_kind() {
        let conf = ServerConf { client_bind_to_ipv4: vec!["127.0.0.9".into()], ..ServerConf::default() };
        let sources = Sources::of(&conf);
        assert_eq!(sources.to("10.0.0.1:80".parse().unwrap()), Some("127.0.0.9".parse().unwrap()));
        assert_eq!(sources.to("[::1]:80".parse().unwrap()), None);
    }
}
