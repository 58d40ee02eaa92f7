//! A connection as bytes: TCP, a Unix socket, or TLS over either.

use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

/// A connected socket.
#[derive(Debug)]
pub(crate) enum Socket {
    /// A TCP connection.
    Tcp(TcpStream),
    /// A connection on a Unix socket.
    Unix(UnixStream),
}

/// Returns the probes of a silent TCP connection, by which the end of a peer that has lost its power or its network is
/// noticed: a tunnel may be silent for an hour otherwise.
pub(crate) fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15))
}

/// A connection to a client or to a backend.
#[derive(Debug)]
pub(crate) enum Stream {
    /// Without TLS.
    Plain(Socket),
    /// TLS in which we are the client.
    Tls(Box<TlsStream<Socket>>),
}

/// What an output can be written to.
pub(crate) trait Peer: AsyncWrite + Unpin {
    /// Returns the TCP connection, if bytes leave as they are.
    fn tcp(&self) -> Option<&TcpStream>;
}

/// The bytes that the system has taken in one write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// The bytes of the given slices. With TLS these are none, because only records are sent that rustls already holds.
    pub(crate) plain: usize,
    /// All bytes, which with TLS are those of records.
    pub(crate) total: usize,
}

/// Writes to a socket without asking the runtime whether there is room.
struct Direct<'a>(&'a Socket);

/// What [`Socket`] and [`Stream`] pass their calls on to.
trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

// === impl Socket ===

impl Socket {
    fn inner(&mut self) -> Pin<&mut dyn Duplex> {
        match self {
            Self::Tcp(stream) => Pin::new(stream),
            Self::Unix(stream) => Pin::new(stream),
        }
    }

    fn with<T>(&self, call: impl FnOnce(SockRef<'_>) -> T) -> T {
        call(match self {
            Self::Tcp(stream) => SockRef::from(stream),
            Self::Unix(stream) => SockRef::from(stream),
        })
    }

    /// Registers the connection with the reactor of this thread instead of its own.
    fn moved(self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => TcpStream::from_std(stream.into_std()?).map(Self::Tcp),
            Self::Unix(stream) => UnixStream::from_std(stream.into_std()?).map(Self::Unix),
        }
    }

    /// Makes the close of the connection a reset, by which the peer sees that what it got is incomplete.
    fn reset_on_close(&self) {
        if let Self::Tcp(stream) = self {
            // Without the option the peer sees an end instead of a reset. There is no better way then.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

// === impl Stream ===

impl Stream {
    /// Returns whether the connection has TLS.
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Moves the connection to the reactor of this thread; `None` if it has TLS or the system refuses.
    pub(crate) fn moved(self) -> Option<Self> {
        match self {
            Self::Plain(socket) => socket.moved().ok().map(Self::Plain),
            Self::Tls(_) => None,
        }
    }

    /// Returns whether the system has recorded an error, such as a reset, and clears it. A peer that has only sent its
    /// last byte has caused none, and neither has one that closes a Unix socket.
    pub(crate) fn take_error(&self) -> bool {
        self.socket().with(|socket| socket.take_error()).is_ok_and(|error| error.is_some())
    }

    /// Returns whether the system has a byte of the peer that was not read (`true`), or its end (`false`); `None` if it
    /// has neither.
    pub(crate) fn arrived(&self) -> Option<bool> {
        match self.socket().with(|socket| socket.peek(&mut [MaybeUninit::uninit()])) {
            Ok(count) => Some(count > 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(_) => Some(false),
        }
    }

    /// Writes as much as the system takes now.
    ///
    /// # Errors
    ///
    /// If the system has no room, or the connection is broken.
    pub(crate) fn send_now(&mut self, slices: &[IoSlice<'_>]) -> io::Result<Sent> {
        match self {
            Self::Plain(socket) => {
                let plain = Direct(socket).write_vectored(slices)?;
                Ok(Sent { plain, total: plain })
            }
            Self::Tls(stream) => {
                let (socket, session) = stream.get_mut();
                let total = session.write_tls(&mut Direct(socket))?;
                Ok(Sent { plain: 0, total })
            }
        }
    }

    fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    fn inner(&mut self) -> Pin<&mut dyn Duplex> {
        match self {
            Self::Plain(socket) => socket.inner(),
            Self::Tls(stream) => Pin::new(&mut **stream),
        }
    }

    /// Returns the protocol that the TLS handshake negotiated, if any.
    pub(crate) fn alpn_protocol(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol(),
        }
    }

    /// Makes the close of the connection a reset, by which the peer sees that what it got is incomplete.
    pub(crate) fn reset_on_close(&self) {
        self.socket().reset_on_close();
    }
}

// === impl Direct ===

impl Write for Direct<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.with(|socket| socket.send(bytes))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.with(|socket| socket.send_vectored(slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Implements reading and writing for a type with a method `inner`.
macro_rules! passes_on {
    ($kind:ident) => {
        impl AsyncRead for $kind {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                self.get_mut().inner().poll_read(cx, buf)
            }
        }

        impl AsyncWrite for $kind {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                self.get_mut().inner().poll_write(cx, bytes)
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                slices: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                self.get_mut().inner().poll_write_vectored(cx, slices)
            }

            fn is_write_vectored(&self) -> bool {
                // Sockets and rustls gather what is written.
                true
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.get_mut().inner().poll_flush(cx)
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.get_mut().inner().poll_shutdown(cx)
            }
        }
    };
}

impl Peer for Stream {
    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(Socket::Tcp(stream)) => Some(stream),
            Self::Plain(Socket::Unix(_)) | Self::Tls(_) => None,
        }
    }
}

passes_on!(Socket);
passes_on!(Stream);
