//! One check of one backend, with sockets.
//!
//! A [`Checker`] connects as the pool does: TLS, SNI, certificate authorities and verification come from the peer
//! template, and only the address is that of the backend. Every check makes a new connection and closes it, so an old
//! connection cannot hide a full accept queue or a broken firewall. One timeout covers the whole check.

mod grpc;
mod http;
mod tcp;
mod tls;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::connectors::TransportConnector;
use pingora::protocols::ALPN;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::upstreams::peer::{HttpPeer, Peer};
use pingora::utils::tls::WrappedX509;
use pingora::{BError, ErrorType};
use thiserror::Error;

use crate::settings::{CheckKind, Settings};

/// The `User-Agent` of checks, by which the log of a backend identifies them.
const USER_AGENT: &str = "load_balancer-health";

/// Checks the backends of one pool.
pub struct Checker {
    connector: Arc<TransportConnector>,
    peer: HttpPeer,
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
    /// Any other error, with Pingora's text.
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
    /// A checker that connects like `peer`, whose address is a placeholder. With TLS and an empty SNI, the certificate
    /// of each backend must be for its address.
    pub fn new(connector: Arc<TransportConnector>, peer: HttpPeer, settings: Settings) -> Self {
        let peer = template(peer, &settings.kind);
        Self { connector, peer, settings }
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
        let peer = self.peer_at(address);
        match &self.settings.kind {
            CheckKind::None => Ok(()),
            CheckKind::Tcp => tcp::check(&self.connector, &peer).await,
            CheckKind::Http(check) => http::check(&self.connector, &peer, check).await,
            CheckKind::Grpc(check) => grpc::check(&self.connector, &peer, check).await,
        }
    }

    fn peer_at(&self, address: &SocketAddr) -> HttpPeer {
        let mut peer = self.peer.clone();
        peer._address = address.clone();
        if let Some(port) = self.settings.port {
            peer._address.set_port(port.get());
        }
        if peer.is_tls() && peer.sni.is_empty() {
            // Pingora cannot connect with an empty name. rustls verifies an address, but does not send it as SNI.
            peer.sni = ip_of(address).unwrap_or_default();
        }
        peer
    }
}

#[async_trait]
impl Check for Checker {
    async fn check(&self, address: &SocketAddr) -> Result<(), CheckError> {
        Self::check(self, address).await
    }
}

/// The peer as checks use it: without its own timeouts, because a check has one for the whole, and with the HTTP
/// version of the check.
fn template(mut peer: HttpPeer, kind: &CheckKind) -> HttpPeer {
    let options = &mut peer.options;
    options.connection_timeout = None;
    options.total_connection_timeout = None;
    options.read_timeout = None;
    options.write_timeout = None;
    options.alpn = if matches!(kind, CheckKind::Grpc(_)) { ALPN::H2 } else { ALPN::H1 };
    peer
}

/// Whether checks connect to both peers in the same way. Addresses are placeholders and do not count.
pub(crate) fn connect_alike(one: &HttpPeer, other: &HttpPeer) -> bool {
    let hash = |peer: &HttpPeer| {
        let mut peer = peer.clone();
        peer._address = SocketAddr::Inet(std::net::SocketAddr::from(([0, 0, 0, 0], 0)));
        // The hash covers what separates connections, except for authorities and source addresses.
        peer.reuse_hash()
    };
    let source = |peer: &HttpPeer| peer.options.bind_to.as_ref().and_then(|bind_to| bind_to.addr);
    hash(one) == hash(other) && source(one) == source(other) && authorities(one) == authorities(other)
}

fn authorities(peer: &HttpPeer) -> Option<Vec<&Vec<u8>>> {
    peer.options.ca.as_ref().map(|ca| ca.iter().map(WrappedX509::borrow_raw_cert).collect())
}

fn ip_of(address: &SocketAddr) -> Option<String> {
    address.as_inet().map(|address| address.ip().to_canonical().to_string())
}

/// The authority of a request: the configured host, otherwise the SNI, otherwise the address.
fn authority(host: Option<&str>, peer: &HttpPeer) -> String {
    let is_named = !peer.sni.is_empty() && ip_of(&peer._address).as_ref() != Some(&peer.sni);
    match (host, &peer._address) {
        (Some(host), _) => host.to_owned(),
        (None, _) if is_named => peer.sni.clone(),
        (None, SocketAddr::Inet(address)) => address.to_string(),
        (None, SocketAddr::Unix(_)) => "localhost".to_owned(),
    }
}

// === impl CheckError ===

impl From<BError> for CheckError {
    fn from(error: BError) -> Self {
        if let Some(shortage) = shortage(&error) {
            return Self::Shortage(shortage);
        }
        match error.etype() {
            ErrorType::ConnectRefused => Self::Refused,
            ErrorType::ConnectNoRoute => Self::NoRoute,
            ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert | ErrorType::HandshakeError => {
                Self::Tls(tls::cause(&error))
            }
            ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError => Self::Closed,
            ErrorType::InvalidHTTPHeader | ErrorType::H1Error => Self::NotHttp,
            _ => Self::Other(root_cause(&error)),
        }
    }
}

/// The text of the innermost error, without the error code of the system. The outer ones name Pingora's functions.
fn root_cause(error: &pingora::Error) -> String {
    let cause = error.root_cause();
    let context = cause.downcast_ref::<pingora::Error>().and_then(|error| error.context.as_ref());
    let text = context.map_or_else(|| cause.to_string(), |context| context.as_str().to_owned());
    text.split(" (os error").next().unwrap_or_default().trim().to_owned()
}

/// The resource that this process lacks; `None` for any other error.
fn shortage(error: &pingora::Error) -> Option<String> {
    let missing = match error.root_cause().downcast_ref::<io::Error>()?.raw_os_error()? {
        libc::EMFILE => "it has too many open files: raise `LimitNOFILE=` of the service, or `ulimit -n`",
        libc::ENFILE => "the system has too many open files: raise `fs.file-max`",
        libc::ENOBUFS | libc::ENOMEM => "the system has no memory for it",
        _ => return None,
    };
    Some(missing.to_owned())
}

fn unknown_service(name: &str) -> String {
    match name {
        "" => "the gRPC health service has no status for the whole server: set `service`".to_owned(),
        name => format!("the gRPC health service has no service {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority_of(host: Option<&str>, sni: &str) -> String {
        authority(host, &HttpPeer::new("10.0.0.1:8080", !sni.is_empty(), sni.to_owned()))
    }

    #[test]
    fn the_authority_is_the_configured_host_otherwise_the_sni_otherwise_the_address() {
        assert_eq!(authority_of(Some("a.example"), "b.example"), "a.example");
        assert_eq!(authority_of(None, "b.example"), "b.example");
        assert_eq!(authority_of(None, ""), "10.0.0.1:8080");
        assert_eq!(authority_of(None, "10.0.0.1"), "10.0.0.1:8080");
    }

    #[test]
    fn without_an_sni_the_certificate_must_be_for_the_address_of_the_backend() {
        let checker = |is_tls, sni: &str| {
            let peer = HttpPeer::new("10.0.0.1:443", is_tls, sni.to_owned());
            Checker::new(Arc::new(TransportConnector::new(None)), peer, Settings::default())
        };
        let sni = |checker: &Checker, address: &str| checker.peer_at(&address.parse().unwrap()).sni;
        let unnamed = checker(true, "");
        assert_eq!(sni(&unnamed, "10.0.0.2:443"), "10.0.0.2");
        assert_eq!(sni(&unnamed, "[fd00::2]:443"), "fd00::2");
        assert_eq!(sni(&checker(true, "a.example"), "10.0.0.2:443"), "a.example");
        assert_eq!(sni(&checker(false, ""), "10.0.0.2:443"), "");
    }

    #[test]
    fn a_lack_of_descriptors_is_a_shortage_of_this_process_and_not_a_fault_of_the_backend() {
        let error = |code| {
            let inner = pingora::Error::because(
                ErrorType::SocketError,
                "failed to create socket",
                io::Error::from_raw_os_error(code),
            );
            CheckError::from(pingora::Error::because(ErrorType::InternalError, "Fail to connect", inner))
        };
        assert!(matches!(error(libc::EMFILE), CheckError::Shortage(why) if why.contains("LimitNOFILE")));
        assert!(matches!(error(libc::ENFILE), CheckError::Shortage(_)));
        assert_eq!(
            error(libc::EADDRNOTAVAIL),
            CheckError::Other("Cannot assign requested address".to_owned())
        );
    }

    #[test]
    fn address_and_timeouts_do_not_affect_whether_peers_connect_alike() {
        let peer = |address: &str, sni: &str| HttpPeer::new(address, true, sni.to_owned());
        let mut patient = peer("10.0.0.2:80", "a.example");
        patient.options.connection_timeout = Some(Duration::from_secs(1));
        assert!(connect_alike(&peer("10.0.0.1:80", "a.example"), &patient));
    }

    #[test]
    fn peers_with_different_names_or_trust_do_not_connect_alike() {
        let peer = |sni: &str| HttpPeer::new("10.0.0.1:80", true, sni.to_owned());
        let plain = HttpPeer::new("10.0.0.1:80", false, "a.example".to_owned());
        let mut trusting = peer("a.example");
        trusting.options.verify_cert = false;
        let mut with_authorities = peer("a.example");
        with_authorities.options.ca = Some(Arc::new([]));
        for other in [plain, peer("b.example"), trusting, with_authorities] {
            assert!(!connect_alike(&peer("a.example"), &other), "{other}");
        }
    }
}
