//! The TCP check: a connection can be made, with the TLS handshake where the peer has TLS.

use pingora::connectors::TransportConnector;
use pingora::upstreams::peer::HttpPeer;

use super::CheckError;

pub(super) async fn check(connector: &TransportConnector, peer: &HttpPeer) -> Result<(), CheckError> {
    // The new connection is closed as it is dropped: it never enters the connector's pool.
    connector.new_stream(peer).await?;
    Ok(())
}
