//! Origins for thousands of connections, in one thread.
//!
//! `/pattern/SEED/LENGTH` returns `LENGTH` bytes of [`pattern`] from `SEED` on, and `/digest/SEED` returns the length
//! of the request body and whether it is that pattern. `/slow` responds after two seconds. An upgrade is accepted, and
//! then the origin is silent.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::SockRef;
use tests::pattern::{self, Meter};
use tests::{ports, websocket};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;

use super::wire::Wire;
use super::{SEGMENT, runtime};

/// The number of origins.
const COUNT: usize = 4;
/// The time until `/slow` responds.
const SLOW: Duration = Duration::from_secs(2);
/// The time for which an origin keeps a tunnel open after the daemon has closed it in one direction.
const HALF_OPEN: Duration = Duration::from_secs(40);
/// The send buffer of a connection, in bytes. It keeps the memory small that the system needs for slow readers.
const SEND_BUFFER: u32 = 16 * 1024;

/// Running origins. Dropping it closes all connections.
pub(crate) struct Origins {
    /// The addresses of the origins.
    pub(crate) addresses: Vec<SocketAddr>,
    _runtime: Runtime,
}

// ===== impl Origins =====

impl Origins {
    /// Starts all origins.
    pub(crate) fn start() -> Self {
        let runtime = runtime("origins");
        let addresses: Vec<SocketAddr> = (0..COUNT).map(|_| ports::free()).collect();
        for address in &addresses {
            let listener = runtime.block_on(async { listen(*address) }).expect("the address is free");
            runtime.spawn(accept(listener));
        }
        Self { addresses, _runtime: runtime }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    SockRef::from(&socket).set_tcp_mss(SEGMENT)?;
    socket.bind(address)?;
    socket.listen(4096)
}

async fn accept(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            // The daemon closes connections in the middle of a message, as its attackers make it do.
            let _: io::Result<()> = serve(stream).await;
        });
    }
}

async fn serve(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut wire = Wire::new(stream);
    while let Some(head) = wire.head().await? {
        let target = head.start.split(' ').nth(1).unwrap_or_default().to_owned();
        if head.lists("connection", "upgrade") {
            return tunnel(&mut wire).await;
        }
        match target.split('/').collect::<Vec<_>>()[..] {
            ["", "pattern", seed, length] => send_pattern(&mut wire, number(seed), number(length)).await?,
            ["", "digest", seed] => {
                let mut meter = Meter::at(number(seed));
                wire.body(&head, |bytes| meter.feed(bytes)).await?;
                respond(&mut wire, &format!("{} {}", meter.length, meter.is_pattern)).await?;
            }
            _ => {
                tokio::time::sleep(SLOW).await;
                respond(&mut wire, "slow").await?;
            }
        }
    }
    Ok(())
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_default()
}

async fn respond(wire: &mut Wire, body: &str) -> io::Result<()> {
    let length = body.len();
    wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes()).await
}

async fn send_pattern(wire: &mut Wire, seed: u64, length: u64) -> io::Result<()> {
    let mut bytes = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
    let mut sent = 0;
    while sent < length {
        let piece = pattern::from(seed + sent);
        let piece = &piece[..piece.len().min(usize::try_from(length - sent).unwrap_or(usize::MAX))];
        bytes.extend_from_slice(piece);
        sent += piece.len() as u64;
        wire.send(&bytes).await?;
        bytes.clear();
    }
    if length == 0 { wire.send(&bytes).await } else { Ok(()) }
}

/// Accepts a WebSocket, sends nothing, and ignores the end of the other side for a while.
async fn tunnel(wire: &mut Wire) -> io::Result<()> {
    let accept = websocket::ACCEPT;
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    wire.send(head.as_bytes()).await?;
    while wire.fill().await? {}
    tokio::time::sleep(HALF_OPEN).await;
    wire.stream.shutdown().await
}
