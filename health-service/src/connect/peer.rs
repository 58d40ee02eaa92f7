//! Connections through Pingora's connector, for programs that connect with it themselves.

use std::any::Any;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use pingora::ErrorType;
use pingora::connectors::TransportConnector;
use pingora::protocols::ALPN;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::upstreams::peer::{HttpPeer, Peer};
use pingora::utils::tls::WrappedX509;

use super::{Connect, ConnectError, Connection, Protocol, without_code};

/// Connects like a peer of Pingora, whose address is a placeholder.
pub struct PeerConnect {
    connector: Arc<TransportConnector>,
    peer: HttpPeer,
}

// === impl PeerConnect ===

impl PeerConnect {
    /// Connects like `peer`: with TLS or without, with its SNI and its certificates. Its address and its timeouts have
    /// no effect. With TLS and an empty SNI, the certificate of each backend must be for its address. A peer without
    /// certificate authorities of its own trusts those of the system.
    pub fn new(peer: HttpPeer) -> Self {
        Self::with_connector(Arc::new(TransportConnector::new(None)), peer)
    }

    /// As [`new`](Self::new), with a connector that may have its own certificates or source addresses.
    pub fn with_connector(connector: Arc<TransportConnector>, peer: HttpPeer) -> Self {
        Self { connector, peer: without_timeouts(peer) }
    }

    fn peer_at(&self, address: &SocketAddr, protocol: Protocol) -> HttpPeer {
        let mut peer = self.peer.clone();
        peer._address = address.clone();
        peer.options.alpn = match protocol {
            Protocol::Http1 => ALPN::H1,
            Protocol::Http2 => ALPN::H2,
        };
        if peer.is_tls() && peer.sni.is_empty() {
            // Pingora cannot connect with an empty name. rustls verifies an address, but does not send it as SNI.
            let ip = address.as_inet().map(|address| address.ip().to_canonical().to_string());
            peer.sni = ip.unwrap_or_default();
        }
        peer
    }
}

#[async_trait]
impl Connect for PeerConnect {
    async fn connect(&self, address: &SocketAddr, protocol: Protocol) -> Result<Connection, ConnectError> {
        let peer = self.peer_at(address, protocol);
        // Dropping the new connection closes it. It never enters the pool of the connector.
        let stream = self.connector.new_stream(&peer).await.map_err(|error| connect_error(&error))?;
        let protocol = match stream.selected_alpn_proto() {
            Some(ALPN::H1) => Some(Protocol::Http1),
            Some(ALPN::H2) => Some(Protocol::Http2),
            _ => None,
        };
        Ok(Connection { stream: Box::new(stream), protocol })
    }

    fn is_tls(&self) -> bool {
        self.peer.is_tls()
    }

    fn server_name(&self) -> Option<&str> {
        (!self.peer.sni.is_empty()).then_some(&*self.peer.sni)
    }

    fn is_like(&self, other: &dyn Connect) -> bool {
        let other: &dyn Any = other;
        other.downcast_ref::<Self>().is_some_and(|other| {
            Arc::ptr_eq(&self.connector, &other.connector) && connect_alike(&self.peer, &other.peer)
        })
    }
}

/// The peer without its own timeouts, because a check has one for the whole.
fn without_timeouts(mut peer: HttpPeer) -> HttpPeer {
    let options = &mut peer.options;
    options.connection_timeout = None;
    options.total_connection_timeout = None;
    options.read_timeout = None;
    options.write_timeout = None;
    peer
}

/// Whether Pingora connects to both peers in the same way. Addresses are placeholders and do not count.
fn connect_alike(one: &HttpPeer, other: &HttpPeer) -> bool {
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

fn connect_error(error: &pingora::Error) -> ConnectError {
    match error.etype() {
        ErrorType::ConnectRefused => ConnectError::Refused,
        ErrorType::ConnectNoRoute => ConnectError::NoRoute,
        ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert | ErrorType::HandshakeError => {
            ConnectError::Tls(handshake_cause(error))
        }
        _ => match error.root_cause().downcast_ref::<io::Error>() {
            Some(cause) => cause.into(),
            None => ConnectError::Other(root_cause(error)),
        },
    }
}

/// The cause of a failed handshake. Pingora keeps it only as text in the context:
/// `TLS connect() failed: … cause: invalid peer certificate: UnknownIssuer, SNI: example.com`.
fn handshake_cause(error: &pingora::Error) -> String {
    let text = error.context.as_ref().map_or("", |context| context.as_str());
    let text = text.rsplit_once(", SNI: ").map_or(text, |(text, _)| text);
    match text.rsplit_once("cause: ") {
        Some((_, cause)) => cause.trim().to_owned(),
        None => root_cause(error),
    }
}

/// The text of the innermost error. The outer ones name Pingora's functions.
pub(crate) fn root_cause(error: &pingora::Error) -> String {
    let cause = error.root_cause();
    let context = cause.downcast_ref::<pingora::Error>().and_then(|error| error.context.as_ref());
    without_code(&context.map_or_else(|| cause.to_string(), |context| context.as_str().to_owned()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn peer(sni: &str) -> HttpPeer {
        HttpPeer::new("10.0.0.1:443", true, sni.to_owned())
    }

    #[test]
    fn without_an_sni_the_certificate_must_be_for_the_address_of_the_backend() {
        let sni = |peer: &HttpPeer, address: &str| {
            PeerConnect::new(peer.clone()).peer_at(&address.parse().unwrap(), Protocol::Http1).sni
        };
        assert_eq!(sni(&peer(""), "10.0.0.2:443"), "10.0.0.2");
        assert_eq!(sni(&peer(""), "[fd00::2]:443"), "fd00::2");
        assert_eq!(sni(&peer("a.example"), "10.0.0.2:443"), "a.example");
        assert_eq!(sni(&HttpPeer::new("10.0.0.1:80", false, String::new()), "10.0.0.2:443"), "");
    }

    #[test]
    fn a_lack_of_descriptors_is_found_inside_the_errors_of_pingora() {
        let inner = pingora::Error::because(
            ErrorType::SocketError,
            "failed to create socket",
            io::Error::from_raw_os_error(libc::EMFILE),
        );
        let error = pingora::Error::because(ErrorType::InternalError, "Fail to connect", inner);
        assert!(matches!(connect_error(&error), ConnectError::Shortage(_)));
    }

    #[test]
    fn address_and_timeouts_do_not_affect_whether_peers_connect_alike() {
        let connector = Arc::new(TransportConnector::new(None));
        let connect = |peer| PeerConnect::with_connector(Arc::clone(&connector), peer);
        let mut patient = HttpPeer::new("10.0.0.2:80", true, "a.example".to_owned());
        patient.options.connection_timeout = Some(Duration::from_secs(1));
        assert!(connect(peer("a.example")).is_like(&connect(patient)));
        assert!(!connect(peer("a.example")).is_like(&PeerConnect::new(peer("a.example"))));
    }

    #[test]
    fn peers_with_different_names_or_trust_do_not_connect_alike() {
        let plain = HttpPeer::new("10.0.0.1:443", false, "a.example".to_owned());
        let mut trusting = peer("a.example");
        trusting.options.verify_cert = false;
        let mut with_authorities = peer("a.example");
        with_authorities.options.ca = Some(Arc::new([]));
        for other in [plain, peer("b.example"), trusting, with_authorities] {
            assert!(!connect_alike(&peer("a.example"), &other), "{other}");
        }
    }
}
