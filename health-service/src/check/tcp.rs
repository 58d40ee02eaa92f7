//! The TCP check: connect, with a TLS handshake if the pool has TLS.

use pingora::protocols::l4::socket::SocketAddr;

use super::CheckError;
use crate::connect::{Connect, Protocol};

pub(super) async fn check(connect: &dyn Connect, address: &SocketAddr) -> Result<(), CheckError> {
    // Dropping the connection closes it.
    connect.connect(address, Protocol::Http1).await?;
    Ok(())
}
