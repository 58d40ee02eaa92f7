//! The head of a backend's response.

use bytes::Bytes;
use http::{HeaderName, Version};

use super::connection::Options;
use super::fields::{Field, FieldLines, Span};
use super::framing::{self, Length, ResponseFraming};
use super::grammar::split_once;
use super::rejection::BadResponse;
use super::scan::{Limits, ScanError};
use crate::pool::Fields;

/// The head of a response, as an index over the bytes that arrived.
#[derive(Clone, Debug)]
pub(crate) struct ResponseHead {
    version: Version,
    status: u16,
    reason: Span,
    fields: FieldLines,
    options: Options,
}

/// The informational responses before a final one. A flood of them is no response, so they are limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Informational {
    count: usize,
    bytes: usize,
}

/// The largest number of informational responses before a final one.
const MAX_INFORMATIONAL: usize = 16;

/// The limits of the head of a response. The informational responses before it have the same size together.
pub(crate) const LIMITS: Limits = Limits { head: 64 * 1024, fields: 256, target: usize::MAX };

// === impl ResponseHead ===

impl ResponseHead {
    /// Parses a head that [`Scan`](super::scan::Scan) has found, with the empty line at its end.
    ///
    /// # Errors
    ///
    /// If the head is not valid.
    pub(crate) fn parse(bytes: Bytes) -> Result<Self, BadResponse> {
        let (line, _) = split_once(&bytes, b'\n').ok_or(BadResponse::StatusLine)?;
        let fields = line.len() + 1;
        let line = line.strip_suffix(b"\r").ok_or(BadResponse::LineEnd)?;
        let (version, status, reason) = split_line(line).ok_or(BadResponse::StatusLine)?;
        let reason = Span::of(reason, &bytes);
        let fields = FieldLines::parse(bytes, fields).map_err(|_| BadResponse::Field)?;
        let options = Options::of_response(&fields);
        Ok(Self { version, status, reason, fields, options })
    }

    /// Returns the status, from 100 to 999.
    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// Returns the reason as it was sent; it can be empty.
    pub(crate) fn reason(&self) -> &[u8] {
        self.reason.within(self.fields.bytes())
    }

    /// Returns the fields in their order.
    pub(crate) fn fields(&self) -> &FieldLines {
        &self.fields
    }

    /// Returns what the `Connection` field says.
    pub(crate) fn options(&self) -> Options {
        self.options
    }

    /// Returns whether the backend keeps the connection open after this response, and its end is beyond doubt.
    pub(crate) fn is_reusable(&self, framing: ResponseFraming) -> bool {
        self.keeps_alive() && !framing.is_ambiguous && framing.length != Length::UntilClose
    }

    fn keeps_alive(&self) -> bool {
        !self.options.close && (self.version == Version::HTTP_11 || self.options.keep_alive)
    }

    /// Returns the length of the body, if the request had the method HEAD (`to_head`) or another method. A connection
    /// to a backend that speaks HTTP/1.0 and sends chunks is ambiguous, because that version has none.
    ///
    /// # Errors
    ///
    /// If the length is invalid.
    pub(crate) fn framing(&self, to_head: bool) -> Result<ResponseFraming, BadResponse> {
        let framing = framing::of_response(&self.fields, self.status, to_head)?;
        let is_odd = self.version == Version::HTTP_10 && framing.length == Length::Chunked;
        Ok(ResponseFraming { is_ambiguous: framing.is_ambiguous || is_odd, ..framing })
    }
}

// === impl Informational ===

impl Informational {
    /// Records another informational response.
    ///
    /// # Errors
    ///
    /// If there are too many, or if they are too large together.
    pub(crate) fn add(&mut self, head: &ResponseHead) -> Result<(), BadResponse> {
        self.count += 1;
        self.bytes += head.fields.bytes().len();
        match () {
            () if self.count > MAX_INFORMATIONAL => Err(BadResponse::TooManyInformational),
            () if self.bytes > LIMITS.head => Err(BadResponse::HeadTooLarge),
            () => Ok(()),
        }
    }
}

impl Fields for ResponseHead {
    fn all<'a>(&'a self, name: &HeaderName) -> impl DoubleEndedIterator<Item = &'a [u8]> + use<'a> {
        let name = name.clone();
        let of_name = move |field: &Field<'_>| field.name.eq_ignore_ascii_case(name.as_str().as_bytes());
        self.fields.iter().filter(of_name).map(|field| field.value)
    }

    fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.fields.iter().map(|field| field.name)
    }
}

impl From<ScanError> for BadResponse {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::LineEnd => Self::LineEnd,
            ScanError::TooLarge => Self::HeadTooLarge,
            ScanError::TooManyFields => Self::TooManyFields,
            // Only the head of a request causes the others.
            ScanError::Start
            | ScanError::MethodTooLong
            | ScanError::TargetTooLong
            | ScanError::RequestLine => Self::StatusLine,
        }
    }
}

/// Splits `HTTP/1.1 200 OK`. The space before an absent reason may be absent, too.
fn split_line(line: &[u8]) -> Option<(Version, u16, &[u8])> {
    let (version, rest) = line.split_at_checked(b"HTTP/1.1 ".len())?;
    let version = match version {
        b"HTTP/1.1 " => Version::HTTP_11,
        b"HTTP/1.0 " => Version::HTTP_10,
        _ => return None,
    };
    let (digits, rest) = rest.split_at_checked(3)?;
    let status = super::grammar::decimal(digits).and_then(|status| u16::try_from(status).ok())?;
    let reason = if rest.is_empty() { rest } else { rest.strip_prefix(b" ")? };
    ((100..=999).contains(&status) && super::grammar::is_value(reason)).then_some((version, status, reason))
}

#[cfg(test)]
mod tests {
    use super::super::framing::Length;
    use super::*;

    fn parse(text: &str) -> Result<ResponseHead, BadResponse> {
        ResponseHead::parse(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn a_response_is_read() {
        let head = parse("HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\nX: 1\r\n\r\n").unwrap();
        assert_eq!((head.status(), head.reason()), (404, &b"Not Found"[..]));
        assert_eq!(head.first(&HeaderName::from_static("x")), Some(&b"1"[..]));
        assert_eq!(head.framing(false).unwrap().length, Length::Known(3));
        assert!(head.keeps_alive());
    }

    #[test]
    fn the_reason_may_be_empty_or_absent() {
        for line in ["HTTP/1.1 200 ", "HTTP/1.1 200"] {
            assert_eq!(parse(&format!("{line}\r\n\r\n")).unwrap().reason(), b"", "{line:?}");
        }
        assert_eq!(parse("HTTP/1.1 299 \u{e9}  a\r\n\r\n").unwrap().reason(), "\u{e9}  a".as_bytes());
    }

    #[test]
    fn a_status_line_of_another_form_cannot_be_passed_on() {
        for line in [
            "HTTP/2 200 OK",
            "HTTP/1.2 200 OK",
            "http/1.1 200 OK",
            "HTTP/1.1  200 OK",
            "HTTP/1.1 20 OK",
            "HTTP/1.1 099 OK",
            "HTTP/1.1 2000 OK",
            "HTTP/1.1 +20 OK",
            "HTTP/1.1 200\tOK",
            "HTTP/1.1 200 O\0K",
            "hello",
            "",
        ] {
            assert_eq!(parse(&format!("{line}\r\n\r\n")).map(drop), Err(BadResponse::StatusLine), "{line:?}");
        }
    }

    #[test]
    fn bad_fields_cannot_be_passed_on() {
        for field in ["a", "a : b", " a: b", "a: b\r\n c", "a: \0"] {
            let text = format!("HTTP/1.1 200 OK\r\n{field}\r\n\r\n");
            assert_eq!(parse(&text).map(drop), Err(BadResponse::Field), "{field:?}");
        }
    }

    #[test]
    fn a_connection_is_kept_as_the_version_and_the_field_say() {
        let keeps = |text: &str| parse(&format!("{text}\r\n\r\n")).unwrap().keeps_alive();
        assert!(keeps("HTTP/1.1 200 OK") && keeps("HTTP/1.0 200 OK\r\nConnection: keep-alive"));
        assert!(!keeps("HTTP/1.0 200 OK") && !keeps("HTTP/1.1 200 OK\r\nConnection: close"));
    }

    #[test]
    fn informational_responses_are_limited_in_number_and_in_size() {
        let small = parse("HTTP/1.1 103 Early Hints\r\n\r\n").unwrap();
        let mut seen = Informational::default();
        assert!((0..MAX_INFORMATIONAL).all(|_| seen.add(&small).is_ok()));
        assert_eq!(seen.add(&small), Err(BadResponse::TooManyInformational));
        let large = parse(&format!("HTTP/1.1 103 E\r\nA: {}\r\n\r\n", "a".repeat(40_000))).unwrap();
        let mut seen = Informational::default();
        assert_eq!((seen.add(&large), seen.add(&large)), (Ok(()), Err(BadResponse::HeadTooLarge)));
    }

    #[test]
    fn chunks_in_a_version_without_chunks_are_ambiguous() {
        let head = parse("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        let framing = head.framing(false).unwrap();
        assert_eq!((framing.length, framing.is_ambiguous), (Length::Chunked, true));
    }
}
