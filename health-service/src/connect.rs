//! Connections for health checks.
//!
//! The checks of a pool connect through [`Connect`]. A program that also sends requests implements it with the code
//! that connects for requests, so both use the same TLS, addresses and sockets. [`PeerConnect`] implements it with
//! Pingora's own connector.

mod peer;

use std::any::Any;
use std::fmt::Debug;
use std::io;

use async_trait::async_trait;
use pingora::protocols::l4::socket::SocketAddr;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

pub use self::peer::PeerConnect;
pub(crate) use self::peer::root_cause;

/// Connects to the backends of one pool.
#[async_trait]
pub trait Connect: Any + Send + Sync {
    /// Makes a new connection to `address`, with a TLS handshake that offers `protocol` if the pool has TLS. A check
    /// has one timeout for the whole, so this needs none.
    ///
    /// # Errors
    /// If the backend cannot be reached, or the handshake fails.
    async fn connect(&self, address: &SocketAddr, protocol: Protocol) -> Result<Connection, ConnectError>;

    /// Whether connections use TLS.
    fn is_tls(&self) -> bool;

    /// The name that the backends have in TLS; `None` without TLS, or if the certificate of each backend is for its
    /// address. It is also the host of requests that configure no other.
    fn server_name(&self) -> Option<&str>;

    /// Whether `other` connects in the same way. If so, backends keep their schedule and their count of results when
    /// [`Checks::commit`](crate::Checks::commit) replaces one with the other.
    fn is_like(&self, other: &dyn Connect) -> bool;
}

/// The protocol that a check uses over a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1. Checks that only connect also offer it.
    Http1,
    /// HTTP/2.
    Http2,
}

/// A new connection.
#[derive(Debug)]
pub struct Connection {
    /// The bytes of the connection, inside TLS if there is any.
    pub stream: Box<dyn ByteStream>,
    /// The protocol that the TLS handshake negotiated, if any.
    pub protocol: Option<Protocol>,
}

/// A connection as a stream of bytes.
pub trait ByteStream: AsyncRead + AsyncWrite + Debug + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Debug + Send + Sync + Unpin> ByteStream for T {}

/// The reason why there is no connection. It is made from an [`io::Error`] unless the TLS handshake failed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConnectError {
    /// No process listens at the address.
    #[error("connection refused")]
    Refused,
    /// The network has no route to the address.
    #[error("no route to host")]
    NoRoute,
    /// This process has no resources for a connection. The text says which, and what to do.
    #[error("this process cannot open a connection: {0}")]
    Shortage(String),
    /// The TLS handshake failed, with the text of rustls.
    #[error("TLS: {0}")]
    Tls(String),
    /// Any other error.
    #[error("{0}")]
    Other(String),
}

// === impl Protocol ===

impl Protocol {
    /// The name of the protocol in ALPN.
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
        }
    }

    /// The protocol with this name in ALPN; `None` for any other name.
    pub fn from_alpn(name: &[u8]) -> Option<Self> {
        [Self::Http1, Self::Http2].into_iter().find(|protocol| protocol.alpn() == name)
    }
}

// === impl ConnectError ===

impl From<&io::Error> for ConnectError {
    fn from(error: &io::Error) -> Self {
        if let Some(shortage) = shortage(error) {
            return Self::Shortage(shortage.to_owned());
        }
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Self::NoRoute,
            _ => Self::Other(without_code(&error.to_string())),
        }
    }
}

/// The resource that this process lacks; `None` for any other error.
fn shortage(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error()? {
        libc::EMFILE => {
            Some("it has too many open files: raise `LimitNOFILE=` of the service, or `ulimit -n`")
        }
        libc::ENFILE => Some("the system has too many open files: raise `fs.file-max`"),
        libc::ENOBUFS | libc::ENOMEM => Some("the system has no memory for it"),
        _ => None,
    }
}

/// The text of an error without the error code of the system.
fn without_code(text: &str) -> String {
    text.split(" (os error").next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_are_told_apart() {
        let error = |code| ConnectError::from(&io::Error::from_raw_os_error(code));
        assert_eq!(error(libc::ECONNREFUSED), ConnectError::Refused);
        assert_eq!(error(libc::EHOSTUNREACH), ConnectError::NoRoute);
        assert_eq!(error(libc::ENETUNREACH), ConnectError::NoRoute);
        assert!(matches!(error(libc::EMFILE), ConnectError::Shortage(why) if why.contains("LimitNOFILE")));
        assert!(matches!(error(libc::ENFILE), ConnectError::Shortage(_)));
        let other = "Cannot assign requested address".to_owned();
        assert_eq!(error(libc::EADDRNOTAVAIL), ConnectError::Other(other));
    }

    #[test]
    fn a_protocol_has_one_name_in_alpn() {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            assert_eq!(Protocol::from_alpn(protocol.alpn()), Some(protocol));
        }
        assert_eq!(Protocol::from_alpn(b"h3"), None);
    }
}
