//! Properties of whole messages: what arrives, what leaves, and what the next recipient reads.

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Version};

use super::super::body::{BodyReader, BodyWriter};
use super::super::chunked::{Sender, Step};
use super::super::connection::Named;
use super::super::delivery::Delivery;
use super::super::fields::FieldLines;
use super::super::framing::{Length, ResponseFraming};
use super::super::known::Known;
use super::super::request::RequestHead;
use super::super::response::{self, Informational, ResponseHead};
use super::super::scan::{Found, Scan};
use super::super::write::{self, Framing, Outgoing, Persistence};
use super::bodies::write_piece;
use super::heads::LIMITS;
use super::pieces::drawn;
use super::strict;
use crate::head_edit::HeadEdit;
use crate::pool::{Fields, Head};

/// A body as it arrived.
#[derive(Default)]
struct Content {
    pieces: Vec<Vec<u8>>,
    trailers: Option<FieldLines>,
    /// The index of the first byte behind it; `None` if it is incomplete.
    end: Option<usize>,
}

/// The fields that a message has for the next hop when it leaves.
const FOR_NEXT_HOP: [&[u8]; 4] = [b"connection", b"te", b"upgrade", b"transfer-encoding"];
/// The fields that we write or replace ourselves, even if `Connection` names them.
const WRITTEN: [&[u8]; 2] = [b"content-length", b"host"];

/// Reads the bytes as requests on one connection, and passes them on.
///
/// # Panics
///
/// Panics if a strict reader sees other requests than we do, in what arrives or in what leaves, if an incomplete
/// request looks complete, or if what leaves would leave in another form when it is passed on once more.
pub fn forwarded_request(bytes: &[u8]) {
    let mut rest = bytes;
    while let Some((head, start, end)) = request_head(rest) {
        let Some(content) = content(BodyReader::new(head.length(), Sender::Client), &rest[end..]) else {
            return;
        };
        let out = written_request(&head, &content);
        let Some(used) = content.end.map(|of_body| end + of_body) else {
            assert_eq!(strict::request(&out), None, "an incomplete request looks complete");
            return;
        };
        let (_, sent) = strict::request(&rest[start..used]).expect("a strict reader accepts what we accept");
        let (read, body) = strict::request(&out).expect("what leaves is a request");
        assert_eq!((sent.end, body.end), (used - start, out.len()), "the request ends elsewhere");
        assert_eq!((&sent.data, &body.data), (&content.data(), &content.data()), "the body is another one");
        check_request(&head, &read);
        rest = &rest[used..];
    }
}

/// Reads the bytes as responses on one connection, and passes the first final one on, to clients of both versions and
/// to requests with the method HEAD and others.
///
/// # Panics
///
/// Panics if a strict reader sees another response than we do, if an incomplete response looks complete, or if what
/// leaves would leave in another form when it is passed on once more.
pub fn forwarded_response(bytes: &[u8]) {
    let (mut rest, mut informational) = (bytes, Informational::default());
    while let Some((head, end)) = response_head(rest) {
        rest = &rest[end..];
        match head.status() {
            101 => check_switch(&head),
            100..200 => {
                if informational.add(&head).is_err() {
                    return;
                }
                check_informational(&head);
            }
            _ => {
                check_final(&head, rest);
                return;
            }
        }
    }
}

// === requests ===

fn request_head(bytes: &[u8]) -> Option<(RequestHead, usize, usize)> {
    let Ok(Found::Head { start, end }) = Scan::default().request(bytes, &LIMITS) else { return None };
    let head = RequestHead::parse(&Bytes::copy_from_slice(&bytes[start..end]), &LIMITS).ok()?;
    Some((head, start, end))
}

fn written_request(head: &RequestHead, content: &Content) -> Vec<u8> {
    let mut out = written_request_head(head);
    let mut writer = match head.length() {
        Length::Chunked => BodyWriter::Chunked,
        Length::Known(length) => BodyWriter::Length(length),
        Length::None | Length::UntilClose => BodyWriter::Length(0),
    };
    content.write(&mut out, &mut writer, &Named::of(head.fields(), head.options()));
    out
}

/// Writes the head. A request of HTTP/1.0 without a host gets one, as from the exchange.
fn written_request_head(head: &RequestHead) -> Vec<u8> {
    let (mut out, mut fields) = (Vec::new(), Outgoing::request(head));
    if head.first(&HOST).is_none() {
        let host = head.authority().unwrap_or("backend.test");
        fields.set(HOST, HeaderValue::from_str(host).expect("a host is visible ASCII"));
    }
    write::request(&mut out, head, &fields, None);
    out
}

fn check_request(head: &RequestHead, read: &strict::Head<'_>) {
    let line = format!("{} {} HTTP/1.1", Head::method(head), head.target());
    assert_eq!(read.line, line.as_bytes());
    assert_eq!(strict::values(&read.fields, b"host").len(), 1, "{:?}", read.fields);
    assert_eq!(strict::request_length(&read.fields), Some(head.length()));
    check_fields(&read.fields, head.fields());
    check_upgrade(head);
    // Another proxy like this one changes nothing.
    let out = written_request_head(head);
    let again = RequestHead::parse(&Bytes::copy_from_slice(&out), &LIMITS).expect("what leaves is accepted");
    assert_eq!(again.target(), head.target());
    assert!(again.keeps_alive(), "the next hop is asked to close the connection");
    assert_eq!(written_request_head(&again), out);
}

/// Asserts that a request for another protocol leaves with this protocol and no other.
fn check_upgrade(head: &RequestHead) {
    let mut out = Vec::new();
    let protocol = HeaderValue::from_static("websocket");
    write::request(&mut out, head, &Outgoing::request(head), Some(&protocol));
    let read = strict::head(&out).expect("what leaves is a head");
    assert_eq!(strict::values(&read.fields, b"connection"), [b"Upgrade"]);
    assert_eq!(strict::values(&read.fields, b"upgrade"), [b"websocket"]);
}

// === responses ===

fn response_head(bytes: &[u8]) -> Option<(ResponseHead, usize)> {
    let found = Scan::default().response(bytes, &response::LIMITS);
    let Ok(Found::Head { start: 0, end }) = found else { return None };
    Some((ResponseHead::parse(Bytes::copy_from_slice(&bytes[..end])).ok()?, end))
}

fn check_switch(head: &ResponseHead) {
    let Some(protocol) = head.fields().values(Known::Upgrade).next() else { return };
    let mut out = Vec::new();
    write::switching(&mut out, head.reason(), &Outgoing::response(head), protocol);
    let read = strict::head(&out).expect("what leaves is a head");
    assert_eq!(read.end, out.len());
    assert_eq!(strict::values(&read.fields, b"upgrade"), [protocol]);
    assert_eq!(strict::values(&read.fields, b"connection"), [b"Upgrade"]);
    check_fields(&read.fields, head.fields());
}

fn check_informational(head: &ResponseHead) {
    let out = written_response_head(head, Framing::None, Persistence::Implied);
    let (read, body) = strict::response(&out, false).expect("what leaves is a response");
    assert_eq!(body.end, out.len(), "bytes follow a response without a body");
    assert_eq!(strict::request_length(&read.fields), Some(Length::None));
    check_fields(&read.fields, head.fields());
}

fn check_final(head: &ResponseHead, rest: &[u8]) {
    for to_head in [false, true] {
        let Ok(framing) = head.framing(to_head) else { return };
        let Some(content) = content(BodyReader::new(framing.length, Sender::Backend), rest) else { return };
        for version in [Version::HTTP_10, Version::HTTP_11] {
            check_response(head, framing, &content, to_head, version);
        }
    }
}

fn check_response(
    head: &ResponseHead,
    received: ResponseFraming,
    content: &Content,
    to_head: bool,
    version: Version,
) {
    let Delivery { mut writer, framing } = Delivery::new(received, version);
    let persistence =
        if writer == BodyWriter::UntilClose { Persistence::Close } else { Persistence::Implied };
    let mut out = written_response_head(head, framing, persistence);
    content.write(&mut out, &mut writer, &Named::of(head.fields(), head.options()));
    let read = strict::response(&out, to_head);
    if content.end.is_none() && received.length != Length::UntilClose && framing != Framing::UntilClose {
        assert_eq!(read, None, "an incomplete response looks complete");
        return;
    }
    let (read, body) = read.expect("what leaves is a response");
    assert_eq!((body.end, body.data), (out.len(), content.data()), "the response ends elsewhere");
    assert!(read.line.starts_with(format!("HTTP/1.1 {} ", head.status()).as_bytes()));
    check_fields(&read.fields, head.fields());
    check_again(head, framing, to_head, version);
}

/// Asserts that another proxy like this one changes nothing.
fn check_again(head: &ResponseHead, framing: Framing, to_head: bool, version: Version) {
    if version == Version::HTTP_10 {
        return;
    }
    let out = written_response_head(head, framing, Persistence::Implied);
    let again = ResponseHead::parse(Bytes::copy_from_slice(&out)).expect("what leaves is accepted");
    let received = again.framing(to_head).expect("what leaves has a length");
    assert!(again.is_reusable(received));
    assert_eq!(Delivery::new(received, version).framing, framing);
    assert_eq!(written_response_head(&again, framing, Persistence::Implied), out);
}

fn written_response_head(head: &ResponseHead, framing: Framing, persistence: Persistence) -> Vec<u8> {
    let mut out = Vec::new();
    write::response(&mut out, head.status(), head.reason(), &Outgoing::response(head), framing, persistence);
    out
}

// === both ===

/// Asserts that only fields that may pass leave, in their order, and those that we write.
fn check_fields(written: &[strict::Field<'_>], received: &FieldLines) {
    let lengths = strict::values(written, b"content-length").len();
    assert!(lengths + strict::values(written, b"transfer-encoding").len() <= 1, "{written:?}");
    let options = strict::members(written, b"connection");
    let is_ours = |option: &Vec<u8>| [&b"close"[..], b"te", b"upgrade"].contains(&&option[..]);
    assert!(options.iter().all(is_ours), "the next hop gets other options: {options:?}");
    let received: Vec<strict::Field<'_>> = received.iter().map(|field| (field.name, field.value)).collect();
    let mut nominated = strict::members(&received, b"connection");
    nominated.retain(|name| ![&b"close"[..], b"keep-alive", b"upgrade"].contains(&&name[..]));
    let mut rest = received.iter();
    for field @ (name, _) in written {
        let name = name.to_ascii_lowercase();
        if FOR_NEXT_HOP.contains(&&name[..]) || WRITTEN.contains(&&name[..]) {
            continue;
        }
        assert!(!nominated.contains(&name), "a nominated field leaves: {name:?}");
        assert!(passes(&name), "a field for this hop leaves: {name:?}");
        assert!(rest.any(|other| other == field), "a field was not received, or in another order: {name:?}");
    }
}

/// Returns whether a field with this name may leave as it came.
fn passes(name: &[u8]) -> bool {
    let is_for_hop = [&b"keep-alive"[..], b"proxy-connection", b"http2-settings", b"proxy"].contains(&name);
    let is_look_alike = name.starts_with(b"x_forwarded_") || name == b"content_length";
    !is_for_hop && !is_look_alike
}

/// Reads a body from bytes that arrive in pieces; `None` if it is not valid.
fn content(mut reader: BodyReader, bytes: &[u8]) -> Option<Content> {
    let (mut content, mut at) = (Content::default(), 0);
    for end in drawn(bytes) {
        loop {
            match reader.step(&bytes[at..end]).ok()? {
                Step::Incomplete => break,
                Step::Data { start, end } => {
                    content.pieces.push(bytes[at + start..at + end].to_vec());
                    at += end;
                }
                Step::End { end } => {
                    content.trailers = reader.take_trailers().ok()?;
                    content.end = Some(at + end);
                    return Some(content);
                }
            }
        }
        at = end;
    }
    if reader.ends_with_connection() {
        content.end = Some(bytes.len());
    }
    Some(content)
}

// === impl Content ===

impl Content {
    fn data(&self) -> Vec<u8> {
        self.pieces.concat()
    }

    /// Writes the pieces, and the end if it has arrived.
    fn write(&self, out: &mut Vec<u8>, writer: &mut BodyWriter, named: &Named) {
        self.pieces.iter().for_each(|piece| write_piece(out, writer, piece));
        if self.end.is_none() {
            return;
        }
        writer.end().expect("the body is not shorter than announced");
        if *writer == BodyWriter::Chunked {
            write::last_chunk(out, self.trailers.as_ref(), named);
        }
    }
}
