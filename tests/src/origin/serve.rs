//! Serves one connection of an origin, from its first byte to its last.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use socket2::SockRef;

use super::{Behaviour, Busy, CannedResponse, NAME_HEADER, Seen, Shared, Working, reset};
use crate::pattern::{self, Meter};
use crate::websocket;
use crate::wire::{Framing, Head, Wire};

/// A connection, plain or TLS.
enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ServerConnection, TcpStream>>),
}

/// A received request.
struct Request<'a> {
    head: Head,
    body: Meter,
    trailers: Vec<(String, String)>,
    working: Working<'a>,
    busy: Busy<'a>,
}

/// Whether the connection can be used for another request.
#[derive(PartialEq, Eq)]
enum After {
    Keep,
    Close,
}

/// Serves requests until either side closes.
pub(super) fn connection(shared: &Shared, stream: TcpStream, number: u64) {
    let _ = stream.set_nodelay(true);
    let peer = stream.peer_addr().ok();
    let Ok(stream) = Stream::accept(stream, shared.tls.as_ref()) else { return };
    let sni = stream.server_name();
    let mut wire = Wire::new(stream);
    // An error means that the peer has closed the connection. The test observes that at its own end.
    while let Ok(Some(Request { head, body, trailers, working, busy })) = receive(shared, &mut wire) {
        let seen = Seen { head, body, trailers, connection: number, peer, sni: sni.clone() };
        shared.requests.fetch_add(1, Ordering::SeqCst);
        let behaviour = shared.behaviour();
        if !matches!(behaviour, Behaviour::Service) {
            shared.record(seen.clone());
        }
        hold_back(&behaviour);
        // This comes before the response, because the peer may send the next request as soon as it has the response.
        drop(working);
        let after = respond(&behaviour, &shared.name, &mut wire, &seen);
        drop(busy);
        match after {
            Ok(After::Keep) if !seen.head.lists("connection", "close") => {}
            _ => return,
        }
    }
}

fn receive<'a>(shared: &'a Shared, wire: &mut Wire<Stream>) -> io::Result<Option<Request<'a>>> {
    let Some(head) = wire.head()? else { return Ok(None) };
    let (working, busy) = (Working::new(shared), Busy::new(&shared.busy));
    if head.lists("expect", "100-continue") {
        wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let mut body = Meter::at(seed_of_body(&head));
    let framing = head.framing().unwrap_or(Framing::Empty);
    let trailers = wire.body(framing, &mut |piece| body.feed(piece))?;
    Ok(Some(Request { head, body, trailers, working, busy }))
}

/// Returns the position in the pattern at which the body of this request should begin.
fn seed_of_body(head: &Head) -> u64 {
    let target = head.start.split(' ').nth(1).unwrap_or_default();
    target.strip_prefix("/digest/").and_then(|seed| seed.parse().ok()).unwrap_or(0)
}

/// Waits before the response as the behaviour requires.
fn hold_back(behaviour: &Behaviour) {
    match behaviour {
        Behaviour::Slow(delay, _) => thread::sleep(*delay),
        Behaviour::Held(gate, _) => gate.pass(),
        _ => {}
    }
}

fn respond(behaviour: &Behaviour, name: &str, wire: &mut Wire<Stream>, seen: &Seen) -> io::Result<After> {
    match behaviour {
        Behaviour::Respond(response) | Behaviour::Slow(_, response) | Behaviour::Held(_, response) => {
            send(wire, seen, name, response)
        }
        Behaviour::Echo => send(wire, seen, name, &CannedResponse::ok(seen.head.raw.clone())),
        Behaviour::ByPath => send(wire, seen, name, &by_path(seen.target())),
        Behaviour::HeldWithin(gate, [first, second]) => {
            wire.send(chunked_head(name, &[]).as_bytes())?;
            wire.send(&chunk(first))?;
            gate.pass();
            wire.send(&[chunk(second), chunk(b"")].concat()).map(|()| After::Keep)
        }
        Behaviour::Hang => wire.some().map(|_| After::Close),
        Behaviour::Reset | Behaviour::ResetOnRequest => {
            wire.stream().reset();
            Ok(After::Close)
        }
        Behaviour::Garbage => wire.send(b"\x16\x03 this is not HTTP\r\n\r\n").map(|()| After::Close),
        Behaviour::CutShort => {
            let head =
                format!("HTTP/1.1 200 OK\r\n{NAME_HEADER}: {name}\r\nContent-Length: 1000\r\n\r\nshort");
            wire.send(head.as_bytes()).map(|()| After::Close)
        }
        Behaviour::Chunked { chunks, trailers } => send_chunks(wire, name, chunks, trailers),
        Behaviour::Source(length) => send_pattern(wire, name, 0, *length),
        Behaviour::Service => service(wire, name, seen),
        Behaviour::Upgrade => upgrade(wire, name, &seen.head),
    }
}

fn send(wire: &mut Wire<Stream>, seen: &Seen, name: &str, response: &CannedResponse) -> io::Result<After> {
    let mut bytes = head_of(name, response);
    if seen.method() != "HEAD" && !matches!(response.status, 204 | 304) {
        bytes.extend_from_slice(&response.body);
    }
    wire.send(&bytes).map(|()| After::Keep)
}

fn head_of(name: &str, response: &CannedResponse) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {} Status\r\n{NAME_HEADER}: {name}\r\n", response.status);
    if response.status != 204 {
        head.push_str(&format!("Content-Length: {}\r\n", response.body.len()));
    }
    for (name, value) in &response.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    head.into_bytes()
}

fn by_path(target: &str) -> CannedResponse {
    let path = target.split('?').next().unwrap_or_default();
    let number = |prefix| path.strip_prefix(prefix).and_then(|rest: &str| rest.parse::<u32>().ok());
    if let Some(status) = number("/status/").and_then(|status| u16::try_from(status).ok()) {
        return CannedResponse::status(status, if matches!(status, 204 | 304) { "" } else { "by path" });
    }
    if let Some(length) = number("/bytes/") {
        let body = (0..u64::from(length)).map(|offset| pattern::from(offset)[0]).collect::<Vec<_>>();
        return CannedResponse::ok(body);
    }
    CannedResponse::ok("by path")
}

fn send_chunks(
    wire: &mut Wire<Stream>,
    name: &str,
    chunks: &[Vec<u8>],
    trailers: &[(String, String)],
) -> io::Result<After> {
    wire.send(chunked_head(name, trailers).as_bytes())?;
    for bytes in chunks {
        wire.send(&chunk(bytes))?;
    }
    let trailers: String = trailers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    wire.send(format!("0\r\n{trailers}\r\n").as_bytes()).map(|()| After::Keep)
}

fn chunked_head(name: &str, trailers: &[(String, String)]) -> String {
    let names: Vec<&str> = trailers.iter().map(|(name, _)| name.as_str()).collect();
    let announced = match names.is_empty() {
        true => String::new(),
        false => format!("Trailer: {}\r\n", names.join(", ")),
    };
    format!("HTTP/1.1 200 OK\r\n{NAME_HEADER}: {name}\r\nTransfer-Encoding: chunked\r\n{announced}\r\n")
}

/// Returns the bytes of a chunk. An empty chunk ends the body.
fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn service(wire: &mut Wire<Stream>, name: &str, seen: &Seen) -> io::Result<After> {
    if websocket::accepts(&seen.head).is_some() {
        return echo_frames(wire, name, &seen.head);
    }
    let mut parts = seen.target().split('/').skip(1);
    let kind = parts.next();
    let mut number = || parts.next().and_then(|part| part.parse().ok());
    match (kind, number(), number()) {
        (Some("pattern"), Some(seed), Some(length)) => send_pattern(wire, name, seed, length),
        (Some("digest"), ..) => {
            let said = format!("{} {}", seen.body.length, seen.body.is_pattern);
            send(wire, seen, name, &CannedResponse::ok(said))
        }
        (Some("host"), ..) => {
            send(wire, seen, name, &CannedResponse::ok(seen.header("host").unwrap_or_default()))
        }
        _ => send(wire, seen, name, &CannedResponse::status(404, "the service has no such path")),
    }
}

/// Echoes every message of a WebSocket until either side closes.
fn echo_frames(wire: &mut Wire<Stream>, name: &str, request: &Head) -> io::Result<After> {
    let accept = websocket::accepts(request).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\n{NAME_HEADER}: {name}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    wire.send(head.as_bytes())?;
    while let Some(frame) = websocket::read(wire)? {
        wire.send(&frame.plain())?;
        if frame.is_close() {
            break;
        }
    }
    Ok(After::Close)
}

fn send_pattern(wire: &mut Wire<Stream>, name: &str, seed: u64, length: u64) -> io::Result<After> {
    let head = format!("HTTP/1.1 200 OK\r\n{NAME_HEADER}: {name}\r\nContent-Length: {length}\r\n\r\n");
    wire.send(head.as_bytes())?;
    let mut sent = 0;
    while sent < length {
        let bytes = pattern::from(seed + sent);
        let piece = usize::try_from(length - sent).map_or(bytes.len(), |left| left.min(bytes.len()));
        wire.send(&bytes[..piece])?;
        sent += piece as u64;
    }
    Ok(After::Keep)
}

fn upgrade(wire: &mut Wire<Stream>, name: &str, request: &Head) -> io::Result<After> {
    let protocol = request.header("upgrade").filter(|_| request.lists("connection", "upgrade"));
    let Some(protocol) = protocol else {
        let refusal =
            format!("HTTP/1.1 426 Upgrade Required\r\n{NAME_HEADER}: {name}\r\nContent-Length: 0\r\n\r\n");
        return wire.send(refusal.as_bytes()).map(|()| After::Keep);
    };
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\n{NAME_HEADER}: {name}\r\nUpgrade: {protocol}\r\nConnection: Upgrade\r\n\r\n"
    );
    wire.send(head.as_bytes())?;
    loop {
        let bytes = wire.some()?;
        if bytes.is_empty() {
            return Ok(After::Close);
        }
        wire.send(&bytes)?;
    }
}

// ===== impl Stream =====

impl Stream {
    fn accept(mut stream: TcpStream, tls: Option<&Arc<ServerConfig>>) -> io::Result<Self> {
        let Some(config) = tls else { return Ok(Self::Plain(stream)) };
        let mut session = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut stream)?;
        }
        Ok(Self::Tls(Box::new(StreamOwned::new(session, stream))))
    }

    fn server_name(&self) -> Option<String> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.conn.server_name().map(str::to_owned),
        }
    }

    fn reset(&self) {
        let socket = match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        };
        reset(&SockRef::from(socket));
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(buffer),
            Self::Tls(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
