//! Connections for health checks, made as those of requests.

use std::any::Any;

use async_trait::async_trait;
use health_service::{Connect, ConnectError, Connection, Protocol};
use lb_service::pool::UpstreamAddress;
use lb_service::service::{DialError, Dialer};
use pingora::protocols::l4::socket::SocketAddr;

/// Connects the health checks of a pool as requests connect.
pub(super) struct PoolConnect(pub(super) Dialer);

#[async_trait]
impl Connect for PoolConnect {
    async fn connect(&self, address: &SocketAddr, protocol: Protocol) -> Result<Connection, ConnectError> {
        let address = UpstreamAddress::from_pingora(address);
        let address = address.ok_or_else(|| ConnectError::Other("the address has no path".to_owned()))?;
        let (stream, negotiated) = self.0.connect(&address, protocol.alpn()).await.map_err(in_words)?;
        let protocol = negotiated.and_then(|name| Protocol::from_alpn(&name));
        Ok(Connection { stream: Box::new(stream), protocol })
    }

    fn is_tls(&self) -> bool {
        self.0.is_tls()
    }

    fn server_name(&self) -> Option<&str> {
        self.0.server_name()
    }

    fn is_like(&self, other: &dyn Connect) -> bool {
        let other: &dyn Any = other;
        other.downcast_ref::<Self>().is_some_and(|other| self.0.is_like(&other.0))
    }
}

fn in_words(error: DialError) -> ConnectError {
    match error {
        DialError::Connect(reason) => ConnectError::from(&reason),
        DialError::Tls(reason) => ConnectError::Tls(reason.to_string()),
    }
}
