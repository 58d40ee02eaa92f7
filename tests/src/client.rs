//! A client that sends exactly the given bytes and returns every byte of the response.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use socket2::SockRef;

use crate::pattern::Meter;
use crate::websocket::{self, Frame};
use crate::wire::{Framing, Head, Wire, header};

/// An upper bound for the time to a response in a passing test.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A complete response.
#[derive(Debug, Clone)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Status line and headers.
    pub head: Head,
    /// The body, at most [`Meter::KEPT`] bytes of it.
    pub body: Vec<u8>,
    /// Length of the whole body, in bytes.
    pub length: u64,
    /// Whether the whole body is [`crate::pattern`].
    pub is_pattern: bool,
    /// Trailers of a chunked body.
    pub trailers: Vec<(String, String)>,
    /// Status codes of the `1xx` responses that came before.
    pub informational: Vec<u16>,
}

/// The reason why there is no complete response.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The connection could not be established.
    #[error("not connected: {0}")]
    Connect(io::Error),
    /// The connection was closed before the first byte of a response.
    #[error("closed before the first byte of the response")]
    Closed,
    /// The response was cut off, is not HTTP, or timed out.
    #[error("broken response: {0}")]
    Broken(io::Error),
}

/// A connection to the daemon.
pub struct Connection {
    wire: Wire<Stream>,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Sends one `GET` on a new connection.
///
/// # Errors
///
/// See [`Failure`].
pub fn get(address: SocketAddr, target: &str) -> Result<Response, Failure> {
    Connection::open(address)?.get(target)
}

impl Response {
    /// Returns the first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// Returns the kept part of the body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns the name of the origin that sent the response.
    pub fn origin(&self) -> &str {
        self.header(crate::origin::NAME_HEADER).unwrap_or_default()
    }

    /// Whether the response announces that the peer closes the connection.
    pub fn closes(&self) -> bool {
        self.head.lists("connection", "close")
    }

    /// Returns the first value of a trailer.
    pub fn trailer(&self, name: &str) -> Option<&str> {
        header(&self.trailers, name)
    }
}

impl Connection {
    /// Connects over TCP.
    ///
    /// # Errors
    ///
    /// Returns [`Failure::Connect`].
    pub fn open(address: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect_timeout(&address, READ_TIMEOUT).map_err(Failure::Connect)?;
        stream.set_nodelay(true).map_err(Failure::Connect)?;
        stream.set_read_timeout(Some(READ_TIMEOUT)).map_err(Failure::Connect)?;
        Ok(Self { wire: Wire::new(Stream::Tcp(stream)) })
    }

    /// Connects over a Unix socket.
    ///
    /// # Errors
    ///
    /// Returns [`Failure::Connect`].
    pub fn open_unix(path: &Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(path).map_err(Failure::Connect)?;
        stream.set_read_timeout(Some(READ_TIMEOUT)).map_err(Failure::Connect)?;
        Ok(Self { wire: Wire::new(Stream::Unix(stream)) })
    }

    /// Limits the receive buffer to about `bytes`, so that a client which reads slowly stops the peer from sending.
    ///
    /// # Errors
    ///
    /// Returns the error of the system call.
    pub fn hold_at_most(&self, bytes: usize) -> io::Result<()> {
        match self.wire.stream() {
            Stream::Tcp(stream) => SockRef::from(stream).set_recv_buffer_size(bytes),
            Stream::Unix(stream) => SockRef::from(stream).set_recv_buffer_size(bytes),
        }
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    ///
    /// Returns [`Failure::Closed`] if the peer has closed the connection.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
        self.wire.send(bytes.as_ref()).map_err(classify)
    }

    /// Sends a `GET` with a `Host` and no other header, and reads the response.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub fn get(&mut self, target: &str) -> Result<Response, Failure> {
        self.request("GET", target, &[], b"")
    }

    /// Sends one request and reads the response. Adds a `Host` if there is none, and the length of the body.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response, Failure> {
        let mut bytes = head_bytes(method, target, headers, body.len());
        bytes.extend_from_slice(body);
        self.send(bytes)?;
        self.response(method)
    }

    /// Reads the next final response, to a request with this method.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub fn response(&mut self, method: &str) -> Result<Response, Failure> {
        let mut informational = Vec::new();
        loop {
            let (status, head) = self.response_head()?;
            if (100..200).contains(&status) && status != 101 {
                informational.push(status);
                continue;
            }
            let mut meter = Meter::new();
            let framing = framing(method, status, &head);
            let body = self.wire.body(framing, &mut |piece| meter.feed(piece));
            let trailers = body.map_err(Failure::Broken)?;
            let Meter { length, is_pattern, start: body, .. } = meter;
            return Ok(Response { status, head, body, length, is_pattern, trailers, informational });
        }
    }

    /// Reads one status line and its headers, `1xx` included.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub fn response_head(&mut self) -> Result<(u16, Head), Failure> {
        let head = match self.wire.head() {
            Ok(Some(head)) => head,
            Ok(None) => return Err(Failure::Closed),
            Err(error) if self.wire.unread().is_empty() => return Err(classify(error)),
            Err(error) => return Err(Failure::Broken(error)),
        };
        let status = head.start.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
        let not_http = || Failure::Broken(io::Error::new(ErrorKind::InvalidData, head.start.clone()));
        Ok((status.ok_or_else(not_http)?, head.clone()))
    }

    /// Reads the whole body that belongs to a head from [`Connection::response_head`].
    ///
    /// # Errors
    ///
    /// Returns [`Failure::Broken`] if the body is cut short.
    pub fn rest_of_body(&mut self, head: &Head) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        self.pass_body(head, &mut |piece| bytes.extend_from_slice(piece))?;
        Ok(bytes)
    }

    /// Reads the body like [`Connection::rest_of_body`], but passes it to `sink` piece by piece.
    ///
    /// # Errors
    ///
    /// Returns [`Failure::Broken`] if the body is cut short.
    pub fn pass_body(&mut self, head: &Head, sink: &mut dyn FnMut(&[u8])) -> Result<(), Failure> {
        let framing = head.framing().unwrap_or(Framing::ToEnd);
        self.wire.body(framing, sink).map(|_| ()).map_err(Failure::Broken)
    }

    /// Sends `payload` in a WebSocket frame after the handshake, and reads the next frame.
    ///
    /// # Errors
    ///
    /// Returns [`Failure::Closed`] if the peer has closed, and [`Failure::Broken`] if the frame is cut off or times
    /// out.
    pub fn exchange_frame(&mut self, payload: &[u8]) -> Result<Frame, Failure> {
        self.send(Frame::binary(payload.to_vec()).masked())?;
        websocket::read(&mut self.wire).map_err(classify)?.ok_or(Failure::Closed)
    }

    /// Returns the next bytes as they arrive. Returns nothing if the connection has been closed or reset.
    pub fn some_bytes(&mut self) -> Vec<u8> {
        self.wire.some().unwrap_or_default()
    }

    /// Whether the peer closes the connection within `timeout`. Returns early if bytes arrive instead.
    pub fn ends_within(&mut self, timeout: Duration) -> bool {
        self.set_read_timeout(timeout);
        let ended = match self.wire.some() {
            Ok(bytes) => bytes.is_empty(),
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        };
        self.set_read_timeout(READ_TIMEOUT);
        ended
    }

    /// Closes the sending side of the connection.
    pub fn finish_sending(&self) {
        // This fails only if the connection is closed already.
        let _ = match self.wire.stream() {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    /// Returns the client's address.
    ///
    /// # Panics
    ///
    /// Panics on a Unix socket.
    pub fn local_addr(&self) -> SocketAddr {
        match self.wire.stream() {
            Stream::Tcp(stream) => stream.local_addr().expect("a connected socket has an address"),
            Stream::Unix(_) => panic!("a Unix socket has no IP address"),
        }
    }

    fn set_read_timeout(&self, timeout: Duration) {
        let timeout = Some(timeout);
        let set = match self.wire.stream() {
            Stream::Tcp(stream) => stream.set_read_timeout(timeout),
            Stream::Unix(stream) => stream.set_read_timeout(timeout),
        };
        set.expect("a timeout above zero can be set");
    }
}

/// Returns the head of a request. Adds a `Host` if there is none, and the length of the body.
pub fn head_bytes(method: &str, target: &str, headers: &[(&str, &str)], length: usize) -> Vec<u8> {
    let given = |name: &str| headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name));
    let mut head = format!("{method} {target} HTTP/1.1\r\n");
    if !given("host") {
        head.push_str("Host: client.test\r\n");
    }
    if length > 0 && !given("content-length") {
        head.push_str(&format!("Content-Length: {length}\r\n"));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    head.into_bytes()
}

fn framing(method: &str, status: u16, head: &Head) -> Framing {
    if method == "HEAD" || matches!(status, 101 | 204 | 304) {
        return Framing::Empty;
    }
    head.framing().unwrap_or(Framing::ToEnd)
}

fn classify(error: io::Error) -> Failure {
    match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => Failure::Closed,
        _ => Failure::Broken(error),
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buffer),
            Self::Unix(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
