//! The head of a request.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderName, Method, Version};

use super::connection::Options;
use super::fields::{Field, FieldLines, Span};
use super::framing::{self, Length};
use super::grammar::{decimal, split_once};
use super::host;
use super::known::Known;
use super::rejection::Rejection;
use super::scan::{Limits, MAX_METHOD};
pub(crate) use super::target::Scheme;
use super::target::{Target, path, without_dot_segments};
use crate::pool::{Fields, Head};

/// The head of a request, as an index over the bytes that arrived.
#[derive(Clone, Debug)]
pub(crate) struct RequestHead {
    method: Method,
    version: Version,
    scheme: Option<Scheme>,
    authority: Option<Span>,
    target: TargetText,
    /// The path without dot segments, if it has some.
    clean_path: Option<Box<str>>,
    fields: FieldLines,
    length: Length,
    options: Options,
}

/// The path and the query that are forwarded.
#[derive(Clone, Debug)]
enum TargetText {
    /// As they were sent.
    Sent(Span),
    /// The target names a host and has no path.
    Completed(Box<str>),
}

// === impl RequestHead ===

impl RequestHead {
    /// Parses a head that [`Scan`](super::scan::Scan) has found, with the empty line at its end.
    ///
    /// # Errors
    ///
    /// If the head is not valid, or if it could be read in two ways.
    pub(crate) fn parse(bytes: &Bytes, limits: &Limits) -> Result<Self, Rejection> {
        let (line, _) = split_once(bytes, b'\n').ok_or(Rejection::RequestLine)?;
        let [method, target, version] = split_line(line)?;
        let (method, version) = (read_method(method)?, read_version(version)?);
        if target.len() > limits.target {
            return Err(Rejection::TargetTooLong);
        }
        refuse(&method)?;
        let target = Target::parse(target, method == Method::OPTIONS)?;
        let fields = FieldLines::parse(bytes.clone(), line.len() + 1).map_err(|_| Rejection::Field)?;
        let head = Self {
            scheme: target.absolute.map(|absolute| absolute.scheme),
            authority: target.absolute.map(|absolute| Span::of(absolute.authority.as_bytes(), bytes)),
            clean_path: without_dot_segments(target.path())?.map(String::into_boxed_str),
            target: TargetText::of(target.path_and_query, bytes),
            length: framing::of_request(&fields, version)?,
            options: Options::of_request(&fields).map_err(|_| Rejection::Connection)?,
            method,
            version,
            fields,
        };
        head.check_host()?;
        head.check_body()?;
        head.check_expectation()?;
        head.check_max_forwards()?;
        head.check_upgrade()?;
        Ok(head)
    }

    /// Returns the length of the body.
    pub(crate) fn length(&self) -> Length {
        self.length
    }

    /// Returns what the `Connection` field says.
    pub(crate) fn options(&self) -> Options {
        self.options
    }

    /// Returns the fields in their order.
    pub(crate) fn fields(&self) -> &FieldLines {
        &self.fields
    }

    /// Returns the scheme of a target in absolute form.
    pub(crate) fn scheme(&self) -> Option<Scheme> {
        self.scheme
    }

    /// Returns whether a body with at least one byte, or of unknown length, follows.
    pub(crate) fn has_body(&self) -> bool {
        !matches!(self.length, Length::None | Length::Known(0))
    }

    /// Returns whether the client waits for a response with the status 100 before it sends the body.
    pub(crate) fn expects_continue(&self) -> bool {
        let is_understood = self.version == Version::HTTP_11 && self.has_body();
        is_understood && self.fields.values(Known::Expect).next().is_some()
    }

    /// Returns whether the client wants to send another request on the connection.
    pub(crate) fn keeps_alive(&self) -> bool {
        !self.options.close && (self.version == Version::HTTP_11 || self.options.keep_alive)
    }

    /// Returns the path and the query as they were sent, `/` if the target has no path, or `*`.
    pub(crate) fn target(&self) -> &str {
        match &self.target {
            TargetText::Sent(span) => self.text(*span),
            TargetText::Completed(text) => text,
        }
    }

    fn check_host(&self) -> Result<(), Rejection> {
        let sent = self.fields.only(Known::Host).map_err(|_| Rejection::Host)?;
        let Some(sent) = sent else {
            return if self.version == Version::HTTP_10 { Ok(()) } else { Err(Rejection::Host) };
        };
        let sent = str::from_utf8(sent).ok().filter(|sent| host::split(sent).is_some());
        let sent = sent.ok_or(Rejection::Host)?;
        let (Some(scheme), Some(authority)) = (self.scheme, self.authority()) else { return Ok(()) };
        // RFC 9112, section 3.2.2, prefers the target to the field. Two hosts in one request are never meant well.
        let is_same = host::is_same(sent, authority, scheme.default_port());
        if is_same { Ok(()) } else { Err(Rejection::HostMismatch) }
    }

    /// A body in a request of HTTP/1.0 whose method has none is framed wrongly more often than not.
    fn check_body(&self) -> Result<(), Rejection> {
        let has_none = [Method::GET, Method::HEAD, Method::DELETE].contains(&self.method);
        let is_odd = self.version == Version::HTTP_10 && has_none && self.has_body();
        if is_odd { Err(Rejection::UnexpectedBody) } else { Ok(()) }
    }

    fn check_expectation(&self) -> Result<(), Rejection> {
        // RFC 9110, section 10.1.1: a server ignores it in HTTP/1.0.
        if self.version == Version::HTTP_10 {
            return Ok(());
        }
        let expected = self.fields.only(Known::Expect).map_err(|_| Rejection::RepeatedExpect)?;
        let is_known = expected.is_none_or(|expected| expected.eq_ignore_ascii_case(b"100-continue"));
        if is_known { Ok(()) } else { Err(Rejection::Expect) }
    }

    fn check_max_forwards(&self) -> Result<(), Rejection> {
        if self.method != Method::OPTIONS {
            return Ok(());
        }
        let limit = self.fields.only(Known::MaxForwards).map_err(|_| Rejection::MaxForwards)?;
        let is_number = limit.is_none_or(|limit| decimal(limit).is_some());
        if is_number { Ok(()) } else { Err(Rejection::MaxForwards) }
    }

    /// The fields that decide about another protocol must have one meaning.
    fn check_upgrade(&self) -> Result<(), Rejection> {
        if self.version != Version::HTTP_11 || !self.options.upgrade {
            return Ok(());
        }
        let is_repeated = |known| self.fields.only(known).is_err();
        let is_bad = is_repeated(Known::Upgrade) || is_repeated(Known::SecWebsocketKey);
        if is_bad { Err(Rejection::Upgrade) } else { Ok(()) }
    }

    #[expect(clippy::expect_used, reason = "`Target::parse` accepts only visible ASCII")]
    fn text(&self, span: Span) -> &str {
        str::from_utf8(span.within(self.fields.bytes())).expect("a target is ASCII")
    }
}

// === impl TargetText ===

impl TargetText {
    fn of(text: Cow<'_, str>, whole: &[u8]) -> Self {
        match text {
            Cow::Borrowed(sent) => Self::Sent(Span::of(sent.as_bytes(), whole)),
            Cow::Owned(text) => Self::Completed(text.into()),
        }
    }
}

impl Fields for RequestHead {
    fn all<'a>(&'a self, name: &HeaderName) -> impl DoubleEndedIterator<Item = &'a [u8]> + use<'a> {
        let name = name.clone();
        let of_name = move |field: &Field<'_>| field.name.eq_ignore_ascii_case(name.as_str().as_bytes());
        self.fields.iter().filter(of_name).map(|field| field.value)
    }

    fn first(&self, name: &HeaderName) -> Option<&[u8]> {
        if *name == HOST {
            return self.fields.values(Known::Host).next();
        }
        let name = name.as_str().as_bytes();
        self.fields.iter().find(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.fields.iter().map(|field| field.name)
    }
}

impl Head for RequestHead {
    fn method(&self) -> &Method {
        &self.method
    }

    fn version(&self) -> Version {
        self.version
    }

    fn authority(&self) -> Option<&str> {
        self.authority.map(|span| self.text(span))
    }

    fn host(&self) -> Option<&str> {
        // A host was checked when it was parsed.
        let sent = || str::from_utf8(self.fields.values(Known::Host).next()?).ok();
        self.authority().or_else(sent)
    }

    fn path(&self) -> &str {
        self.clean_path.as_deref().unwrap_or_else(|| path(self.target()))
    }

    fn query(&self) -> Option<&str> {
        self.target().split_once('?').map(|(_, query)| query)
    }

    fn path_and_query(&self) -> Option<&str> {
        Some(self.target())
    }
}

/// Splits the first line, which ends with CR, into the three parts that single spaces separate.
fn split_line(line: &[u8]) -> Result<[&[u8]; 3], Rejection> {
    let line = line.strip_suffix(b"\r").ok_or(Rejection::LineEnd)?;
    let mut parts = line.split(|byte| *byte == b' ');
    let parts = [parts.next(), parts.next(), parts.next(), parts.next()];
    let [Some(method), Some(target), Some(version), None] = parts else { return Err(Rejection::RequestLine) };
    Ok([method, target, version])
}

/// Reads a method: an upper-case letter, then upper-case letters, digits, `-`, `_` and `.`. A backend that compares
/// methods without regard to case would respond to `head` without the body that we would wait for.
fn read_method(text: &[u8]) -> Result<Method, Rejection> {
    let is_allowed = |byte: &u8| is_method_byte(*byte);
    if !text.first().is_some_and(u8::is_ascii_uppercase) || !text.iter().all(is_allowed) {
        return Err(Rejection::Method);
    }
    if text.len() > MAX_METHOD {
        return Err(Rejection::MethodTooLong);
    }
    Method::from_bytes(text).map_err(|_| Rejection::Method)
}

/// Returns whether the byte may stand in a method.
pub(super) fn is_method_byte(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"-_.".contains(&byte)
}

fn read_version(text: &[u8]) -> Result<Version, Rejection> {
    match text {
        b"HTTP/1.1" => Ok(Version::HTTP_11),
        b"HTTP/1.0" => Ok(Version::HTTP_10),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Err(Rejection::UnsupportedVersion)
        }
        _ => Err(Rejection::Version),
    }
}

/// Rejects the methods that no request to a reverse proxy has.
fn refuse(method: &Method) -> Result<(), Rejection> {
    match *method {
        Method::CONNECT => Err(Rejection::Connect),
        Method::TRACE => Err(Rejection::Trace),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::scan::{Found, Scan};
    use super::*;

    const LIMITS: Limits = Limits { head: 64 * 1024, fields: 128, target: 16 * 1024 };

    fn parse(text: &str) -> Result<RequestHead, Rejection> {
        RequestHead::parse(&Bytes::copy_from_slice(text.as_bytes()), &LIMITS)
    }

    /// Parses a request with this first line and a host.
    fn line(line: &str) -> Result<RequestHead, Rejection> {
        parse(&format!("{line}\r\nHost: a.test\r\n\r\n"))
    }

    fn with_fields(fields: &str) -> Result<RequestHead, Rejection> {
        parse(&format!("GET / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n"))
    }

    #[test]
    fn a_request_is_read() {
        let head =
            parse("POST /a/../b?c HTTP/1.1\r\nHOST: a.test:80\r\nContent-Length: 3\r\nX: 1\r\nx: 2\r\n\r\n")
                .unwrap();
        assert_eq!((head.method(), Head::version(&head)), (&Method::POST, Version::HTTP_11));
        assert_eq!((head.target(), head.path(), head.query()), ("/a/../b?c", "/b", Some("c")));
        assert_eq!(
            (head.host(), head.authority(), head.length()),
            (Some("a.test:80"), None, Length::Known(3))
        );
        let x = HeaderName::from_static("x");
        assert_eq!(
            (head.all(&x).collect::<Vec<_>>(), head.first(&x)),
            (vec![&b"1"[..], b"2"], Some(&b"1"[..]))
        );
        assert_eq!(head.names().next(), Some(&b"HOST"[..]));
        assert!(head.keeps_alive() && !head.expects_continue());
    }

    #[test]
    fn a_request_for_another_protocol_has_one_of_each_field() {
        let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\n";
        assert!(with_fields(upgrade).is_ok());
        for second in ["Upgrade: irc\r\n", "Sec-WebSocket-Key: a\r\n"] {
            let twice = format!("{upgrade}{second}");
            assert_eq!(with_fields(&twice).map(drop), Err(Rejection::Upgrade), "{second}");
        }
        assert!(with_fields("Upgrade: a\r\nUpgrade: b\r\n").is_ok(), "no upgrade is asked for");
    }

    #[test]
    fn an_expectation_counts_in_http_1_1_only() {
        let old =
            |expect| parse(&format!("POST / HTTP/1.0\r\nContent-Length: 1\r\nExpect: {expect}\r\n\r\n"));
        assert!(old("x").is_ok_and(|head| !head.expects_continue()));
        assert!(old("100-continue").is_ok_and(|head| !head.expects_continue()));
        assert_eq!(with_fields("Expect: x\r\n").map(drop), Err(Rejection::Expect));
    }

    #[test]
    fn an_empty_body_is_no_body_in_http_1_0() {
        let get = |length| parse(&format!("GET / HTTP/1.0\r\nContent-Length: {length}\r\n\r\n")).map(drop);
        assert_eq!((get("0"), get("1")), (Ok(()), Err(Rejection::UnexpectedBody)));
    }

    #[test]
    fn a_target_in_absolute_form_is_forwarded_as_a_path() {
        let head = parse("GET http://b.test HTTP/1.0\r\n\r\n").unwrap();
        assert_eq!((head.target(), head.path(), head.host()), ("/", "/", Some("b.test")));
        let head = parse("GET http://A.test:80/x?y HTTP/1.1\r\nHost: a.test\r\n\r\n").unwrap();
        assert_eq!((head.target(), head.query(), head.scheme()), ("/x?y", Some("y"), Some(Scheme::Http)));
        let head = parse("OPTIONS http://a.test HTTP/1.1\r\nHost: a.test\r\n\r\n").unwrap();
        assert_eq!(head.target(), "*");
        let mismatch = parse("GET http://b.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n").map(drop);
        assert_eq!(mismatch, Err(Rejection::HostMismatch));
    }

    #[test]
    fn the_request_line_has_three_parts_and_single_spaces() {
        for text in
            ["GET /", "GET  / HTTP/1.1", "GET / HTTP/1.1 ", "GET /a b HTTP/1.1", "GET", "GET\t/\tHTTP/1.1"]
        {
            assert_eq!(line(text).map(drop), Err(Rejection::RequestLine), "{text:?}");
        }
    }

    #[test]
    fn a_carriage_return_alone_ends_no_line() {
        assert_eq!(line("GET /\r HTTP/1.1").map(drop), Err(Rejection::Target));
        assert_eq!(parse("GET / HTTP/1.1\r\r\nHost: a\r\n\r\n").map(drop), Err(Rejection::Version));
        assert_eq!(with_fields("A: b\rc\r\n").map(drop), Err(Rejection::Field));
    }

    #[test]
    fn a_nominated_transfer_encoding_still_frames_the_body() {
        let head = with_fields("Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n");
        assert_eq!(head.unwrap().length(), Length::Chunked);
    }

    #[test]
    fn a_method_is_an_upper_case_token_of_at_most_32_bytes() {
        assert!(line("M-SEARCH / HTTP/1.1").is_ok() && line("VERSION_2.0 / HTTP/1.1").is_ok());
        for method in ["Get", "G!T", "GE(T", ""] {
            assert_eq!(line(&format!("{method} / HTTP/1.1")).map(drop), Err(Rejection::Method), "{method}");
        }
        let method = |length| line(&format!("{} / HTTP/1.1", "A".repeat(length))).map(drop);
        assert_eq!((method(32), method(33)), (Ok(()), Err(Rejection::MethodTooLong)));
        assert_eq!(line("CONNECT a.test:443 HTTP/1.1").map(drop), Err(Rejection::Connect));
        assert_eq!(line("TRACE / HTTP/1.1").map(drop), Err(Rejection::Trace));
    }

    #[test]
    fn the_version_is_1_0_or_1_1() {
        for version in ["HTTP/2.0", "HTTP/1.2", "HTTP/0.9", "HTTP/9.9"] {
            assert_eq!(
                line(&format!("GET / {version}")).map(drop),
                Err(Rejection::UnsupportedVersion),
                "{version}"
            );
        }
        for version in ["http/1.1", "HTTP/1.1.", "HTTP/1", "HTTP/11", "", "HTTPS/1.1", "HTTP/1.01"] {
            assert_eq!(line(&format!("GET / {version}")).map(drop), Err(Rejection::Version), "{version}");
        }
        assert_eq!(parse("PRI * HTTP/2.0\r\n\r\n").map(drop), Err(Rejection::UnsupportedVersion));
    }

    #[test]
    fn a_target_that_is_too_long_is_rejected_as_that() {
        let target = |length: usize| line(&format!("GET /{} HTTP/1.1", "a".repeat(length - 1))).map(drop);
        assert_eq!(
            (target(LIMITS.target), target(LIMITS.target + 1)),
            (Ok(()), Err(Rejection::TargetTooLong))
        );
    }

    #[test]
    fn a_request_of_1_1_has_one_valid_host() {
        for fields in
            ["", "Host:\r\n", "Host: a\r\nHost: a\r\n", "Host: a,b\r\n", "Host: a/b\r\n", "Host: u@a\r\n"]
        {
            let result = parse(&format!("GET / HTTP/1.1\r\n{fields}\r\n")).map(drop);
            assert_eq!(result, Err(Rejection::Host), "{fields:?}");
        }
        assert!(parse("GET / HTTP/1.0\r\n\r\n").is_ok());
        assert_eq!(parse("GET / HTTP/1.0\r\nHost:\r\n\r\n").map(drop), Err(Rejection::Host));
    }

    #[test]
    fn an_expectation_counts_with_a_body_and_a_version_that_has_it() {
        let post = |version, fields| parse(&format!("POST / {version}\r\nHost: a\r\n{fields}\r\n"));
        let expects = "Expect: 100-Continue\r\nContent-Length: 1\r\n";
        assert!(post("HTTP/1.1", expects).unwrap().expects_continue());
        assert!(!post("HTTP/1.0", expects).unwrap().expects_continue());
        assert!(!post("HTTP/1.1", "Expect: 100-continue\r\n").unwrap().expects_continue());
        for fields in ["Expect: other\r\n", "Expect:\r\n"] {
            assert_eq!(post("HTTP/1.1", fields).map(drop), Err(Rejection::Expect), "{fields}");
        }
        let repeated = post("HTTP/1.1", "Expect: 100-continue\r\nExpect: 100-continue\r\n").map(drop);
        assert_eq!(repeated, Err(Rejection::RepeatedExpect));
    }

    #[test]
    fn a_connection_is_kept_unless_the_client_or_its_version_ends_it() {
        let keeps = |version, fields| {
            parse(&format!("GET / {version}\r\nHost: a\r\n{fields}\r\n")).unwrap().keeps_alive()
        };
        assert!(keeps("HTTP/1.1", "") && keeps("HTTP/1.0", "Connection: keep-alive\r\n"));
        assert!(!keeps("HTTP/1.0", "") && !keeps("HTTP/1.1", "Connection: keep-alive, close\r\n"));
    }

    #[test]
    fn a_body_where_1_0_has_none_and_an_endless_trace_are_rejected() {
        let get = |method, version| {
            parse(&format!("{method} / {version}\r\nHost: a\r\nContent-Length: 1\r\n\r\n")).map(drop)
        };
        assert_eq!(get("GET", "HTTP/1.0"), Err(Rejection::UnexpectedBody));
        assert_eq!((get("POST", "HTTP/1.0"), get("GET", "HTTP/1.1")), (Ok(()), Ok(())));
        assert!(with_fields("Max-Forwards: x\r\n").is_ok(), "only OPTIONS has it");
        let options = parse("OPTIONS * HTTP/1.1\r\nHost: a\r\nMax-Forwards: x\r\n\r\n").map(drop);
        assert_eq!(options, Err(Rejection::MaxForwards));
    }

    #[test]
    fn other_fields_are_checked() {
        assert_eq!(with_fields("a\r\n").map(drop), Err(Rejection::Field));
        assert_eq!(with_fields("Connection: host\r\n").map(drop), Err(Rejection::Connection));
        assert_eq!(with_fields("Content-Length: -1\r\n").map(drop), Err(Rejection::ContentLength));
    }

    /// Texts that are close to requests.
    fn texts() -> impl Strategy<Value = String> {
        let parts = prop::sample::select(vec![
            "GET",
            "POST",
            "OPTIONS",
            " ",
            "  ",
            "/",
            "/a?b",
            "*",
            "http://a",
            "..",
            "HTTP/1.1",
            "HTTP/1.0",
            "\r\n",
            "\r\n",
            "Host",
            ": ",
            ":",
            "a",
            "Content-Length",
            "1",
            "Transfer-Encoding",
            "chunked",
            "Connection",
            "close",
            "\t",
            "\0",
            "\u{e9}",
        ]);
        prop::collection::vec(parts, 0..30).prop_map(|parts| parts.concat())
    }

    proptest! {
        /// A strict reader on the other side splits an accepted head in the same way.
        #[test]
        fn an_accepted_head_can_be_read_in_one_way(text in texts()) {
            let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{text}\r\n\r\n");
            let found = Scan::default().request(text.as_bytes(), &LIMITS);
            let Ok(Found::Head { start, end }) = found else { return Ok(()) };
            let Ok(head) = parse(&text[start..end]) else { return Ok(()) };
            let mut fields = [httparse::EMPTY_HEADER; 128];
            let mut other = httparse::Request::new(&mut fields);
            let status = other.parse(text.as_bytes()).expect("an accepted head is valid for a lenient reader");
            prop_assert_eq!(status, httparse::Status::Complete(end));
            prop_assert_eq!(other.path, Some(head.target()));
            let ours: Vec<_> = head.fields().iter().map(|field| (field.name.to_vec(), field.value.to_vec())).collect();
            let theirs: Vec<_> = other.headers.iter().map(|field| (field.name.as_bytes().to_vec(), field.value.to_vec())).collect();
            prop_assert_eq!(ours, theirs);
        }

        #[test]
        fn no_bytes_cause_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = RequestHead::parse(&bytes.into(), &LIMITS);
        }
    }
}
