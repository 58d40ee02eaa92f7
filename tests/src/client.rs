//! A client that sends bytes as they are told and sees every byte of the answer.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use socket2::SockRef;

use crate::pattern::Meter;
use crate::websocket::{self, Frame};
use crate::wire::{Framing, Head, Wire, header};

/// No answer takes longer in a test that passes.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// One whole answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Status line and headers.
    pub head: Head,
    /// The body, at most [`Meter::KEPT`] bytes of it.
    pub body: Vec<u8>,
    /// Length of the whole body.
    pub length: u64,
    /// Whether the whole body is [`crate::pattern`].
    pub is_pattern: bool,
    /// Trailers of a chunked body.
    pub trailers: Vec<(String, String)>,
    /// Status codes of the `1xx` answers that came before.
    pub informational: Vec<u16>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The connection could not be made.
    #[error("not connected: {0}")]
    Connect(io::Error),
    /// The connection was found closed: not one byte of an answer came.
    #[error("closed before the first byte of the answer")]
    Closed,
    /// The answer began and did not end, is not HTTP, or did not come in time.
    #[error("broken answer: {0}")]
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

/// One `GET` on a connection of its own.
///
/// # Errors
///
/// See [`Failure`].
pub fn get(address: SocketAddr, target: &str) -> Result<Response, Failure> {
    Connection::open(address)?.get(target)
}

impl Response {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// The kept part of the body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The name of the origin that answered.
    pub fn origin(&self) -> &str {
        self.header(crate::origin::NAME_HEADER).unwrap_or_default()
    }

    /// Whether the peer said that it closes the connection after this answer.
    pub fn closes(&self) -> bool {
        self.head.lists("connection", "close")
    }

    /// The first value of a trailer.
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

    /// Makes the system hold no more than about so many bytes that the client has not read, so that a client which reads
    /// slowly is felt by the peer.
    ///
    /// # Errors
    ///
    /// Fails as the system does.
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
    /// Returns [`Failure::Closed`] when the peer is gone.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
        self.wire.send(bytes.as_ref()).map_err(classify)
    }

    /// A `GET` with a host and nothing else.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub fn get(&mut self, target: &str) -> Result<Response, Failure> {
        self.request("GET", target, &[], b"")
    }

    /// One request and its answer. A `Host` is added when none is given, and the length of a body.
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

    /// Reads the next final answer, to a request with this method.
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

    /// Reads the body, however long, that belongs to a head read by [`Connection::response_head`].
    ///
    /// # Errors
    ///
    /// Returns [`Failure::Broken`] when it is cut short.
    pub fn rest_of_body(&mut self, head: &Head) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        self.pass_body(head, &mut |piece| bytes.extend_from_slice(piece))?;
        Ok(bytes)
    }

    /// As [`Connection::rest_of_body`], piece by piece.
    ///
    /// # Errors
    ///
    /// Returns [`Failure::Broken`] when it is cut short.
    pub fn pass_body(&mut self, head: &Head, sink: &mut dyn FnMut(&[u8])) -> Result<(), Failure> {
        let framing = head.framing().unwrap_or(Framing::ToEnd);
        self.wire.body(framing, sink).map(|_| ()).map_err(Failure::Broken)
    }

    /// Sends this in a frame of a WebSocket that was agreed to, and reads the frame that answers it.
    ///
    /// # Errors
    ///
    /// Returns [`Failure::Closed`] when the peer has closed, [`Failure::Broken`] when the answer is cut or comes too late.
    pub fn exchange_frame(&mut self, payload: &[u8]) -> Result<Frame, Failure> {
        self.send(Frame::binary(payload.to_vec()).masked())?;
        websocket::read(&mut self.wire).map_err(classify)?.ok_or(Failure::Closed)
    }

    /// The next bytes, whatever they are; empty at the end of the connection, however it ended.
    pub fn some_bytes(&mut self) -> Vec<u8> {
        self.wire.some().unwrap_or_default()
    }

    /// Whether the peer has closed; waits for it or for more bytes, at most `patience`.
    pub fn ends_within(&mut self, patience: Duration) -> bool {
        self.set_read_timeout(patience);
        let ended = match self.wire.some() {
            Ok(bytes) => bytes.is_empty(),
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        };
        self.set_read_timeout(READ_TIMEOUT);
        ended
    }

    /// Says that no more bytes will be sent.
    pub fn finish_sending(&self) {
        // A peer that is gone already needs no telling.
        let _ = match self.wire.stream() {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    /// The client's own address.
    ///
    /// # Panics
    ///
    /// Panics on a Unix socket.
    pub fn local_addr(&self) -> SocketAddr {
        match self.wire.stream() {
            Stream::Tcp(stream) => stream.local_addr().expect("a connected socket has an address"),
            Stream::Unix(_) => panic!("a Unix socket has no such address"),
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

/// Head of a request. A `Host` is added when none is given, and the length of a body.
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
