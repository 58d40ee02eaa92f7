//! The demo's clients.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TIMEOUT: Duration = Duration::from_secs(2);

/// Sends one request and returns whether the response was 200.
pub(super) async fn request(target: SocketAddr) -> bool {
    let response = tokio::time::timeout(TIMEOUT, exchange(target)).await;
    matches!(response, Ok(Ok(response)) if response.starts_with(b"HTTP/1.1 200 "))
}

async fn exchange(target: SocketAddr) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(target).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n").await?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await?;
    Ok(response)
}
