//! Servers for the checks: healthy, silent and faulty ones.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

/// The longest time to wait for a condition. A working machine never needs it.
pub(crate) const LIMIT: Duration = Duration::from_secs(15);

/// A server on a free loopback port. It ends when it is dropped.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

/// One connection that an origin has accepted.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    /// The head of the request once it is read, and empty before.
    pub(crate) request: String,
}

/// The behaviour of an origin on a connection.
#[derive(Clone)]
pub(crate) enum Manner {
    /// Reads the head of a request, sends these bytes, and closes the connection.
    Respond(Vec<u8>),
    /// Reads the head of a request, sends these bytes, and then one more byte every 20 ms until the client closes.
    Trickle(Vec<u8>),
    /// Sends these bytes without reading a request, and waits until the client closes.
    Banner(Vec<u8>),
    /// Sends nothing, and waits until the client closes.
    Silence,
}

impl Origin {
    pub(crate) async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound socket has an address");
        let seen = Arc::default();
        let task = tokio::spawn(serve(listener, manner, Arc::clone(&seen)));
        Self { address, seen, task }
    }

    pub(crate) async fn responding(response: impl Into<Vec<u8>>) -> Self {
        Self::start(Manner::Respond(response.into())).await
    }

    /// Starts an origin that responds with status 200 and this body.
    pub(crate) async fn healthy(body: &str) -> Self {
        Self::responding(ok(body)).await
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("not poisoned").clone()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, manner: Manner, seen: Arc<Mutex<Vec<Seen>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let number = {
            let mut seen = seen.lock().expect("not poisoned");
            seen.push(Seen { at: Instant::now(), request: String::new() });
            seen.len() - 1
        };
        let (manner, seen) = (manner.clone(), Arc::clone(&seen));
        tokio::spawn(async move {
            let note = |request| seen.lock().expect("not poisoned")[number].request = request;
            // The client may close the connection at any time.
            let _ = converse(stream, manner, note).await;
        });
    }
}

async fn converse(mut stream: TcpStream, manner: Manner, note: impl Fn(String)) -> std::io::Result<()> {
    match manner {
        Manner::Respond(response) => {
            note(read_head(&mut stream).await?);
            stream.write_all(&response).await?;
            stream.shutdown().await
        }
        Manner::Trickle(response) => {
            note(read_head(&mut stream).await?);
            stream.write_all(&response).await?;
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                stream.write_all(b".").await?;
            }
        }
        Manner::Banner(banner) => {
            stream.write_all(&banner).await?;
            read_to_end(&mut stream).await
        }
        Manner::Silence => read_to_end(&mut stream).await,
    }
}

async fn read_to_end(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut buffer = [0; 1024];
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}

async fn read_head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// The text of a response with status 200 and this body.
pub(crate) fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A port that refuses connections until the socket is dropped. The socket is bound but does not listen.
pub(crate) fn refusing() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().expect("a socket can be made");
    socket.bind("127.0.0.1:0".parse().expect("valid address")).expect("loopback has free ports");
    let address = socket.local_addr().expect("a bound socket has an address");
    (socket, address)
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
