//! Connections to backends for other purposes than requests.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

use super::upstream::{ConnectError, Connector};
use crate::exchange::FaultKind;
use crate::pool::{Pool, UpstreamAddress, Upstreams};

/// Makes connections as requests to one pool do, for another purpose such as a health check: with the same settings of
/// TLS and from the same source address. They never become idle connections of the pool.
#[derive(Clone, Debug)]
pub struct Dialer {
    connector: Connector,
    upstreams: Arc<Upstreams>,
}

/// The reason why there is no connection.
#[derive(Debug, Error)]
pub enum DialError {
    /// The backend cannot be reached.
    #[error(transparent)]
    Connect(io::Error),
    /// The TLS handshake failed.
    #[error(transparent)]
    Tls(io::Error),
}

// === impl Connector ===

impl Connector {
    /// Returns a dialer that connects as requests to `pool` do. It does not keep the pool.
    pub fn dialer(&self, pool: &Pool) -> Dialer {
        Dialer { connector: self.clone(), upstreams: pool.upstreams().clone() }
    }
}

// === impl Dialer ===

impl Dialer {
    /// Returns whether connections use TLS.
    pub fn is_tls(&self) -> bool {
        self.upstreams.is_tls()
    }

    /// Returns the name of all backends in TLS. `None` means that there is no TLS, or that each certificate is for the
    /// address of its backend.
    pub fn server_name(&self) -> Option<&str> {
        self.upstreams.server_name()
    }

    /// Returns whether `other` connects in the same way. This holds for the dialers of a pool and of its successor
    /// unless TLS has changed.
    pub fn is_like(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.upstreams, &other.upstreams) && self.connector.sources == other.connector.sources
    }

    /// Makes a new connection to `address`, without a time limit. With TLS, the handshake offers `protocol` in ALPN,
    /// and does not resume an earlier session, so the certificate is always verified. Returns the connection and the
    /// negotiated protocol.
    ///
    /// # Errors
    /// If the backend cannot be reached, or the handshake fails.
    pub async fn connect(
        &self,
        address: &UpstreamAddress,
        protocol: &[u8],
    ) -> Result<(impl AsyncRead + AsyncWrite + Debug + Send + Sync + Unpin + use<>, Option<Vec<u8>>), DialError>
    {
        let tls = self.upstreams.tls_to(address);
        let tls = tls.map(|(config, name)| (offering(&config, protocol), name));
        let stream = self.connector.stream(address, tls.as_ref()).await?;
        let protocol = stream.alpn_protocol().map(<[u8]>::to_vec);
        Ok((stream, protocol))
    }
}

fn offering(config: &ClientConfig, protocol: &[u8]) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.alpn_protocols = vec![protocol.to_vec()];
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

// === impl DialError ===

impl From<ConnectError> for DialError {
    fn from(error: ConnectError) -> Self {
        match error.kind {
            FaultKind::Tls => Self::Tls(error.reason),
            _ => Self::Connect(error.reason),
        }
    }
}
