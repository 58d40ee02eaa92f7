//! The TCP check: connect, with a TLS handshake if the peer has TLS.

use pingora::connectors::TransportConnector;
use pingora::upstreams::peer::HttpPeer;

use super::CheckError;

pub(super) async fn check(connector: &TransportConnector, peer: &HttpPeer) -> Result<(), CheckError> {
    // Dropping the new connection closes it. It never enters the pool of the connector.
    connector.new_stream(peer).await?;
    Ok(())
}
