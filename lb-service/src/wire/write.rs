//! The head of a message that leaves: the fields that arrived, as they came, with some of them left out and others
//! added.
//!
//! All framing is written here and nowhere else: `Connection`, `Transfer-Encoding`, and the number in `Content-Length`.
//! Hop-by-hop fields never pass (RFC 9110, section 7.6.1).

use http::{HeaderName, HeaderValue};

use super::connection::{self, Named};
use super::fields::{Field, FieldLines, write_field};
use super::framing::Length;
use super::grammar::members;
use super::known::Known;
use super::request::RequestHead;
use super::response::ResponseHead;
use crate::head_edit::HeadEdit;
use crate::pool::{Fields, Head};

/// The fields of a message that leaves.
#[derive(Debug)]
pub(crate) struct Outgoing<'a> {
    received: &'a FieldLines,
    /// Whether `Connection` names fields, which then do not pass.
    names_fields: bool,
    /// Whether the server that gets the request is to say whether it wants the body.
    expects: bool,
    removed: Vec<HeaderName>,
    added: Vec<(HeaderName, HeaderValue)>,
}

/// The framing of a message that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is no body, and no field describes one.
    None,
    /// The body has this length. A response to HEAD may announce one without a body.
    Length(u64),
    /// The body leaves as a series of chunks.
    Chunked,
    /// The end of the connection ends the body.
    UntilClose,
}

/// What the `Connection` field of a message that leaves says, besides the fields that it names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Persistence {
    /// The connection is kept, as the version implies.
    #[default]
    Implied,
    /// The connection is kept, which a client of HTTP/1.0 must be told.
    KeepAlive,
    /// The connection is closed after this message.
    Close,
}

/// The status of a response that demands another protocol.
const UPGRADE_REQUIRED: u16 = 426;
/// The line end of a head.
const CRLF: &[u8] = b"\r\n";

// === impl Outgoing ===

impl<'a> Outgoing<'a> {
    /// Returns the fields of a request that is passed on.
    pub(crate) fn request(head: &'a RequestHead) -> Self {
        let expects = head.expects_continue();
        Self { expects, ..Self::new(head.fields(), head.options().names_fields) }
    }

    /// Returns the fields of a response that is passed on.
    pub(crate) fn response(head: &'a ResponseHead) -> Self {
        Self::new(head.fields(), head.options().names_fields)
    }

    fn new(received: &'a FieldLines, names_fields: bool) -> Self {
        Self { received, names_fields, expects: true, removed: Vec::new(), added: Vec::new() }
    }

    fn passes(&self, field: &Field<'_>) -> bool {
        let is_named = || {
            self.names_fields
                && connection::names(self.received).any(|name| name.eq_ignore_ascii_case(field.name))
        };
        let is_removed = |name: &HeaderName| is_of_name(field, name);
        match field.known {
            known if known.never_passes() => false,
            Known::Expect if !self.expects => false,
            _ => !is_named() && !self.removed.iter().any(is_removed),
        }
    }

    /// Writes the fields. Trailers are announced only if they can follow.
    fn write_fields(&self, out: &mut Vec<u8>, framing: Framing) {
        let may_announce = framing == Framing::Chunked;
        let is_written = |field: &Field<'_>| may_announce || field.known != Known::Trailer;
        self.received.write(out, |field| is_written(field) && self.passes(field));
        for (name, value) in &self.added {
            write_field(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
}

impl<'r> Fields for Outgoing<'r> {
    fn all<'a>(&'a self, name: &HeaderName) -> impl DoubleEndedIterator<Item = &'a [u8]> + use<'a, 'r> {
        let name = name.clone();
        self.received.iter().filter(move |field| is_of_name(field, &name)).map(|field| field.value)
    }

    fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.received.iter().map(|field| field.name)
    }
}

impl HeadEdit for Outgoing<'_> {
    fn contains(&self, name: &HeaderName) -> bool {
        let passes = |field: Field<'_>| is_of_name(&field, name) && self.passes(&field);
        self.added.iter().any(|(added, _)| added == name) || self.received.iter().any(passes)
    }

    fn set(&mut self, name: HeaderName, value: HeaderValue) {
        HeadEdit::remove(self, &name);
        self.added.push((name, value));
    }

    fn add(&mut self, name: HeaderName, value: HeaderValue) {
        self.added.push((name, value));
    }

    fn remove(&mut self, name: &HeaderName) {
        self.added.retain(|(added, _)| added != name);
        // Most removed fields were not sent, and each of the others is compared with each field.
        if self.received.iter().any(|field| is_of_name(&field, name)) {
            self.removed.push(name.clone());
        }
    }
}

fn is_of_name(field: &Field<'_>, name: &HeaderName) -> bool {
    field.name.eq_ignore_ascii_case(name.as_str().as_bytes())
}

// === requests ===

/// Writes the head of a request for a backend. `upgrade` is the protocol that the client asks for, if that is passed
/// on.
pub(crate) fn request(
    out: &mut Vec<u8>,
    head: &RequestHead,
    fields: &Outgoing<'_>,
    upgrade: Option<&HeaderValue>,
) {
    out.reserve(head.fields().bytes().len() + 256);
    for part in [head.method().as_str().as_bytes(), b" ", head.target().as_bytes(), b" HTTP/1.1\r\n"] {
        out.extend_from_slice(part);
    }
    fields.write_fields(out, request_framing(head));
    write_framing(out, request_framing(head));
    write_request_connection(out, head, upgrade);
    out.extend_from_slice(CRLF);
}

fn request_framing(head: &RequestHead) -> Framing {
    match head.length() {
        Length::None | Length::UntilClose => Framing::None,
        Length::Known(length) => Framing::Length(length),
        Length::Chunked => Framing::Chunked,
    }
}

/// Writes the fields for the next hop: trailers that the client accepts, and a protocol that it asks for.
fn write_request_connection(out: &mut Vec<u8>, head: &RequestHead, upgrade: Option<&HeaderValue>) {
    let mut te = head.fields().values(Known::Te).flat_map(members);
    let takes_trailers = te.any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
    match (takes_trailers, upgrade) {
        (_, Some(protocol)) => {
            write_field(out, b"Connection", b"Upgrade");
            write_field(out, b"Upgrade", protocol.as_bytes());
        }
        (true, None) => {
            write_field(out, b"TE", b"trailers");
            write_field(out, b"Connection", b"TE");
        }
        (false, None) => {}
    }
}

// === responses ===

/// Writes the head of a response for a client.
pub(crate) fn response(
    out: &mut Vec<u8>,
    status: u16,
    reason: &[u8],
    fields: &Outgoing<'_>,
    framing: Framing,
    persistence: Persistence,
) {
    out.reserve(fields.received.bytes().len() + 256);
    write_status_line(out, status, reason);
    fields.write_fields(out, framing);
    if status == UPGRADE_REQUIRED {
        write_demanded_protocols(out, fields.received);
    }
    write_framing(out, framing);
    write_persistence(out, persistence);
    out.extend_from_slice(CRLF);
}

/// Writes the protocols that a backend demands (RFC 9110, section 15.5.22). The client needs them.
fn write_demanded_protocols(out: &mut Vec<u8>, received: &FieldLines) {
    let mut protocols = received.values(Known::Upgrade).peekable();
    if protocols.peek().is_some() {
        write_field(out, b"Connection", b"Upgrade");
    }
    protocols.for_each(|protocol| write_field(out, b"Upgrade", protocol));
}

/// Writes the head of a response that switches protocols.
pub(crate) fn switching(out: &mut Vec<u8>, reason: &[u8], fields: &Outgoing<'_>, protocol: &[u8]) {
    write_status_line(out, 101, reason);
    fields.write_fields(out, Framing::None);
    write_field(out, b"Connection", b"Upgrade");
    write_field(out, b"Upgrade", protocol);
    out.extend_from_slice(CRLF);
}

/// Writes the head of a response of our own, which has these fields.
pub(crate) fn own_response(
    out: &mut Vec<u8>,
    status: u16,
    reason: &str,
    fields: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
    persistence: Persistence,
) {
    write_status_line(out, status, reason.as_bytes());
    for (name, value) in fields {
        write_field(out, name.as_str().as_bytes(), value.as_bytes());
    }
    write_persistence(out, persistence);
    out.extend_from_slice(CRLF);
}

/// Writes the end of a chunked body, with the trailers that may pass. Those that the head names in `Connection` may
/// not.
pub(crate) fn last_chunk(out: &mut Vec<u8>, trailers: Option<&FieldLines>, named: &Named) {
    out.extend_from_slice(super::chunked::LAST_CHUNK);
    let may_pass = |field: &Field<'_>| super::trailers::may_pass(field) && !named.contains(field.name);
    for field in trailers.into_iter().flat_map(FieldLines::iter).filter(may_pass) {
        write_field(out, field.name, field.value);
    }
    out.extend_from_slice(CRLF);
}

fn write_status_line(out: &mut Vec<u8>, status: u16, reason: &[u8]) {
    out.extend_from_slice(b"HTTP/1.1 ");
    write_number(out, u64::from(status));
    out.push(b' ');
    out.extend_from_slice(reason);
    out.extend_from_slice(CRLF);
}

fn write_framing(out: &mut Vec<u8>, framing: Framing) {
    match framing {
        Framing::None | Framing::UntilClose => {}
        Framing::Length(length) => {
            out.extend_from_slice(b"Content-Length: ");
            write_number(out, length);
            out.extend_from_slice(CRLF);
        }
        Framing::Chunked => write_field(out, b"Transfer-Encoding", b"chunked"),
    }
}

fn write_persistence(out: &mut Vec<u8>, persistence: Persistence) {
    match persistence {
        Persistence::Implied => {}
        Persistence::KeepAlive => write_field(out, b"Connection", b"keep-alive"),
        Persistence::Close => write_field(out, b"Connection", b"close"),
    }
}

#[expect(clippy::indexing_slicing, reason = "a number has at most 20 digits")]
fn write_number(out: &mut Vec<u8>, number: u64) {
    let (mut digits, mut start, mut rest) = ([b'0'; 20], 20, number);
    loop {
        start -= 1;
        digits[start] = b"0123456789"[(rest % 10) as usize];
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::header::{HOST, SET_COOKIE};
    use proptest::prelude::*;

    use super::super::scan::{Found, Limits, Scan};
    use super::*;

    const LIMITS: Limits = Limits { head: 64 * 1024, fields: 128, target: 16 * 1024 };
    const X_PRIVATE: HeaderName = HeaderName::from_static("x-private");

    fn read(text: &str) -> RequestHead {
        RequestHead::parse(&Bytes::copy_from_slice(text.as_bytes()), &LIMITS).unwrap()
    }

    fn forwarded(text: &str) -> String {
        let head = read(text);
        let mut out = Vec::new();
        request(&mut out, &head, &Outgoing::request(&head), None);
        String::from_utf8(out).unwrap()
    }

    fn returned(text: &str, framing: Framing, persistence: Persistence) -> String {
        let head = ResponseHead::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap();
        let mut out = Vec::new();
        response(&mut out, head.status(), head.reason(), &Outgoing::response(&head), framing, persistence);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn names_case_and_order_of_fields_pass_as_they_came() {
        let text = "GET /a?b HTTP/1.1\r\nhOST: a\r\nX-b:c\r\nx-B:  d \r\nAccept: */*\r\n\r\n";
        let expected = "GET /a?b HTTP/1.1\r\nhOST: a\r\nX-b: c\r\nx-B: d\r\nAccept: */*\r\n\r\n";
        assert_eq!(forwarded(text), expected);
    }

    #[test]
    fn a_request_leaves_with_the_version_and_the_target_that_we_understand() {
        let text = "GET http://a/b HTTP/1.0\r\n\r\n";
        assert_eq!(forwarded(text), "GET /b HTTP/1.1\r\n\r\n");
    }

    #[test]
    fn hop_by_hop_fields_and_look_alikes_do_not_pass() {
        let text = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Private\r\nx-private: 1\r\nKeep-Alive: 5\r\n\
                    Upgrade: h2c\r\nHTTP2-Settings: a\r\nTE: gzip\r\nProxy: http://evil\r\nX_Forwarded_For: 1\r\n\
                    Proxy-Authorization: kept\r\napi_key: kept\r\n\r\n";
        let expected = "GET / HTTP/1.1\r\nHost: a\r\nProxy-Authorization: kept\r\napi_key: kept\r\n\r\n";
        assert_eq!(forwarded(text), expected);
    }

    #[test]
    fn the_length_of_a_request_is_written_anew() {
        let post = |fields| forwarded(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
        let with = |line| format!("POST / HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n");
        assert_eq!(post("content-length: 007\r\n"), with("Content-Length: 7"));
        assert_eq!(post("Transfer-Encoding: CHUNKED\r\n"), with("Transfer-Encoding: chunked"));
        assert_eq!(post("Content-Length: 0\r\n"), with("Content-Length: 0"));
        assert_eq!(post(""), "POST / HTTP/1.1\r\nHost: a\r\n\r\n");
    }

    #[test]
    fn accepted_trailers_and_an_upgrade_are_passed_to_the_next_hop() {
        let text = "GET / HTTP/1.1\r\nHost: a\r\nTE: deflate, Trailers\r\n\r\n";
        assert_eq!(forwarded(text), "GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\n\r\n");
        let head = read("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\n\r\n");
        let mut out = Vec::new();
        let protocol = HeaderValue::from_static("websocket");
        request(&mut out, &head, &Outgoing::request(&head), Some(&protocol));
        let expected = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn trailers_are_announced_only_if_they_can_follow() {
        let of_length =
            |length| forwarded(&format!("POST / HTTP/1.1\r\nHost: a\r\nTrailer: b\r\n{length}\r\n"));
        assert!(of_length("Transfer-Encoding: chunked\r\n").contains("Trailer: b"));
        assert!(!of_length("Content-Length: 1\r\n").contains("Trailer"));
        let text = "HTTP/1.1 200 OK\r\nTrailer: b\r\n\r\n";
        assert!(returned(text, Framing::Chunked, Persistence::Implied).contains("Trailer: b"));
        assert!(!returned(text, Framing::UntilClose, Persistence::Close).contains("Trailer"));
    }

    #[test]
    fn an_expectation_passes_only_if_a_body_waits_for_it() {
        let with = |line: &str| forwarded(&format!("{line}\r\nHost: a\r\nExpect: 100-continue\r\n\r\n"));
        let with_body = |version| with(&format!("POST / {version}\r\nContent-Length: 1"));
        assert!(with_body("HTTP/1.1").contains("Expect"));
        assert!(!with_body("HTTP/1.0").contains("Expect"));
        assert!(!with("POST / HTTP/1.1").contains("Expect"));
    }

    #[test]
    fn fields_are_replaced_added_and_removed() {
        let head = read("GET / HTTP/1.1\r\nHost: a\r\nX-Private: 1\r\nX-Private: 2\r\n\r\n");
        let mut fields = Outgoing::request(&head);
        fields.set(HOST, HeaderValue::from_static("b"));
        fields.set(HOST, HeaderValue::from_static("c"));
        fields.add(SET_COOKIE, HeaderValue::from_static("d"));
        fields.add(SET_COOKIE, HeaderValue::from_static("e"));
        HeadEdit::remove(&mut fields, &X_PRIVATE);
        let mut out = Vec::new();
        request(&mut out, &head, &fields, None);
        let expected = "GET / HTTP/1.1\r\nhost: c\r\nset-cookie: d\r\nset-cookie: e\r\n\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn a_response_is_framed_by_us() {
        let text = "HTTP/1.0 200 Fine\r\nServer: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\
                    Connection: keep-alive, x-a\r\nX-A: b\r\nKeep-Alive: timeout=5\r\n\r\n";
        assert_eq!(
            returned(text, Framing::Chunked, Persistence::Close),
            "HTTP/1.1 200 Fine\r\nServer: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(
            returned(text, Framing::Length(10), Persistence::KeepAlive),
            "HTTP/1.1 200 Fine\r\nServer: x\r\nContent-Length: 10\r\nConnection: keep-alive\r\n\r\n"
        );
        assert_eq!(
            returned("HTTP/1.1 204\r\n\r\n", Framing::None, Persistence::Implied),
            "HTTP/1.1 204 \r\n\r\n"
        );
    }

    #[test]
    fn the_last_chunk_has_the_trailers_that_may_pass() {
        let trailers = Bytes::from_static(b"a: b\r\nHost: c\r\nX-Private: d\r\n\r\n");
        let trailers = super::super::trailers::parse(trailers).unwrap();
        let head = read("GET / HTTP/1.1\r\nHost: a\r\nConnection: x-private\r\n\r\n");
        let named = Named::of(head.fields(), head.options());
        let mut out = Vec::new();
        last_chunk(&mut out, Some(&trailers), &named);
        assert_eq!(out, b"0\r\na: b\r\n\r\n");
        out.clear();
        last_chunk(&mut out, None, &named);
        assert_eq!(out, b"0\r\n\r\n");
    }

    #[test]
    fn numbers_are_written_in_decimal() {
        for number in [0, 7, 10, 1234, u64::MAX] {
            let mut out = Vec::new();
            write_number(&mut out, number);
            assert_eq!(out, number.to_string().as_bytes());
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            target in "/[a-z%0-9?]{0,10}",
            lines in prop::collection::vec(("[A-Za-z_-]{1,12}", "( |[ \t]{0,2})", "[a-z ,;=]{0,20}"), 0..8),
        ) {
            let line = |(name, blank, value): &(String, String, String)| format!("{name}:{blank}{value}\r\n");
            let lines: String = lines.iter().map(line).collect();
            let text = format!("GET {target} HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
            let Ok(head) = RequestHead::parse(&text.into(), &LIMITS) else { return Ok(()) };
            let mut out = Vec::new();
            let fields = Outgoing::request(&head);
            request(&mut out, &head, &fields, None);
            let end = out.len();
            prop_assert_eq!(Scan::default().request(&out, &LIMITS), Ok(Found::Head { start: 0, end }));
            let again = RequestHead::parse(&out.into(), &LIMITS).expect("what leaves is valid");
            prop_assert_eq!(again.target(), head.target());
            let passed: Vec<_> = head.fields().iter().filter(|field| fields.passes(field)).collect();
            let read: Vec<_> = again.fields().iter().collect();
            prop_assert_eq!(&read[..passed.len()], &passed[..]);
            prop_assert!(read.len() <= passed.len() + 2, "at most TE and Connection are added");
        }
    }
}
