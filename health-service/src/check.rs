//! One check of one backend, with sockets.
//!
//! A [`Checker`] connects through [`Connect`], so it connects as requests do if the program implements that so. Every
//! check makes a new connection and closes it, so an old connection cannot hide a full accept queue or a broken
//! firewall. One timeout covers the whole check.

mod grpc;
mod http;
mod tcp;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{BError, ErrorType};
use thiserror::Error;

use crate::connect::{Connect, ConnectError, root_cause};
use crate::settings::{CheckKind, Settings};

/// The `User-Agent` of checks, by which the log of a backend identifies them.
const USER_AGENT: &str = "load_balancer-health";

/// Checks the backends of one pool.
pub struct Checker {
    connect: Arc<dyn Connect>,
    settings: Settings,
}

/// Why a check failed. The text appears in the log and in the status.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CheckError {
    /// The whole check took longer than its timeout.
    #[error("timed out after {0:?}")]
    Timeout(Duration),
    /// No process listens at the address.
    #[error("connection refused")]
    Refused,
    /// The network has no route to the address.
    #[error("no route to host")]
    NoRoute,
    /// This process has no resources for a connection. This says nothing about the backend.
    #[error("this process cannot open a connection: {0}")]
    Shortage(String),
    /// The TLS handshake failed.
    #[error("TLS: {0}")]
    Tls(String),
    /// The backend closed the connection before the response was complete.
    #[error("connection closed before the end of the response")]
    Closed,
    /// The backend closed the connection before it sent an HTTP/2 frame.
    #[error("connection closed before any HTTP/2 frame")]
    ClosedAtOnce,
    /// The backend uses a protocol other than HTTP/2.
    #[error("the backend does not speak HTTP/2")]
    NotHttp2,
    /// The backend ended the stream or the connection, or violated HTTP/2.
    #[error("HTTP/2: {0}")]
    Http2(String),
    /// The response is not HTTP.
    #[error("the response is not valid HTTP")]
    NotHttp,
    /// The response has an unexpected status.
    #[error("status {status}, expected {expected}")]
    Status {
        /// Status of the response.
        status: u16,
        /// Statuses that pass: `200-399, 404`.
        expected: String,
    },
    /// The body does not contain the expected text.
    #[error("body does not contain {0:?}")]
    Body(String),
    /// The response is HTTP/2, but not that of a gRPC health service.
    #[error("the response is not valid gRPC")]
    NotGrpc,
    /// The backend speaks gRPC, but has no health service.
    #[error("the backend has no gRPC health service (unimplemented)")]
    NoHealthService,
    /// The health service has no status for this service; the name is empty for the whole server.
    #[error("{}", unknown_service(.0))]
    UnknownService(String),
    /// The health service reports NOT_SERVING.
    #[error("not serving")]
    NotServing,
    /// The health service reports UNKNOWN.
    #[error("serving status UNKNOWN")]
    ServingUnknown,
    /// The call failed with this gRPC status.
    #[error("gRPC status {0}")]
    Grpc(String),
    /// The check panicked, which is a bug. What the backend has sent may have caused it.
    #[error("internal error of the check; see the log")]
    Panicked,
    /// Any other error.
    #[error("{0}")]
    Other(String),
}

/// Checks a backend. Tests of the schedule implement it without sockets.
#[async_trait]
pub(crate) trait Check: Send + Sync {
    /// Checks the backend at `address` once.
    async fn check(&self, address: &SocketAddr) -> Result<(), CheckError>;
}

// === impl Checker ===

impl Checker {
    /// A checker that connects through `connect`.
    pub fn new(connect: Arc<dyn Connect>, settings: Settings) -> Self {
        Self { connect, settings }
    }

    /// Checks the backend at `address` once, within the timeout of the settings.
    ///
    /// # Errors
    /// Why the check failed. With [`CheckKind::None`], the check always passes.
    pub async fn check(&self, address: &SocketAddr) -> Result<(), CheckError> {
        let timeout = self.settings.timeout;
        tokio::time::timeout(timeout, self.check_without_timeout(address))
            .await
            .unwrap_or(Err(CheckError::Timeout(timeout)))
    }

    async fn check_without_timeout(&self, address: &SocketAddr) -> Result<(), CheckError> {
        let (connect, address) = (&*self.connect, &self.checked_address(address));
        match &self.settings.kind {
            CheckKind::None => Ok(()),
            CheckKind::Tcp => tcp::check(connect, address).await,
            CheckKind::Http(check) => http::check(connect, address, check).await,
            CheckKind::Grpc(check) => grpc::check(connect, address, check).await,
        }
    }

    /// The address of the backend, with the port of the settings if there is one.
    fn checked_address(&self, backend: &SocketAddr) -> SocketAddr {
        let mut address = backend.clone();
        if let Some(port) = self.settings.port {
            address.set_port(port.get());
        }
        address
    }
}

#[async_trait]
impl Check for Checker {
    async fn check(&self, address: &SocketAddr) -> Result<(), CheckError> {
        Self::check(self, address).await
    }
}

/// The authority of a request: the configured host, otherwise the server name of TLS, otherwise the address.
fn authority(host: Option<&str>, server_name: Option<&str>, address: &SocketAddr) -> String {
    let ip = address.as_inet().map(|address| address.ip().to_canonical().to_string());
    let name = server_name.filter(|name| ip.as_deref() != Some(*name));
    match (host.or(name), address) {
        (Some(host), _) => host.to_owned(),
        (None, SocketAddr::Inet(address)) => address.to_string(),
        (None, SocketAddr::Unix(_)) => "localhost".to_owned(),
    }
}

// === impl CheckError ===

impl From<ConnectError> for CheckError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Refused => Self::Refused,
            ConnectError::NoRoute => Self::NoRoute,
            ConnectError::Shortage(shortage) => Self::Shortage(shortage),
            ConnectError::Tls(cause) => Self::Tls(values::tls_reason(&cause)),
            ConnectError::Other(cause) => Self::Other(cause),
        }
    }
}

impl From<BError> for CheckError {
    fn from(error: BError) -> Self {
        let cause = root_cause(&error);
        match error.etype() {
            // With TLS 1.3, a backend rejects the certificate of a client after the handshake.
            _ if cause.contains("fatal alert") => Self::Tls(values::tls_reason(&cause)),
            ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError => Self::Closed,
            ErrorType::InvalidHTTPHeader | ErrorType::H1Error => Self::NotHttp,
            _ => Self::Other(cause),
        }
    }
}

fn unknown_service(name: &str) -> String {
    match name {
        "" => "the gRPC health service has no status for the whole server: set `service`".to_owned(),
        name => format!("the gRPC health service has no service {name}"),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use pingora::Error;

    use super::*;

    #[test]
    fn an_alert_after_the_handshake_is_a_failure_of_tls() {
        let alert = |name| {
            let alert = io::Error::new(io::ErrorKind::InvalidData, format!("received fatal alert: {name}"));
            CheckError::from(Error::because(ErrorType::ReadError, "while reading", alert)).to_string()
        };
        assert!(alert("CertificateRequired").contains("the backend demands a client certificate"));
        assert!(alert("UnknownCA").contains("does not trust the authority of the client certificate"));
        let closed = Error::because(ErrorType::ReadError, "while reading", io::Error::other("reset"));
        assert_eq!(CheckError::from(closed), CheckError::Closed);
    }

    #[test]
    fn the_authority_is_the_configured_host_otherwise_the_server_name_otherwise_the_address() {
        let authority = |host, name, address: &str| authority(host, name, &address.parse().unwrap());
        assert_eq!(authority(Some("a.example"), Some("b.example"), "10.0.0.1:8080"), "a.example");
        assert_eq!(authority(None, Some("b.example"), "10.0.0.1:8080"), "b.example");
        assert_eq!(authority(None, None, "10.0.0.1:8080"), "10.0.0.1:8080");
        assert_eq!(authority(None, Some("10.0.0.1"), "10.0.0.1:8080"), "10.0.0.1:8080");
        assert_eq!(authority(None, None, "unix:/run/app.sock"), "localhost");
    }
}
