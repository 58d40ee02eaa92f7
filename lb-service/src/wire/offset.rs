//! The place of a rejected head in which the reason lies, for the log.
//!
//! The parsers stop at the first error and do not keep its place, because accepted heads would pay for it. So the place
//! is searched here, in the bytes of a head that was rejected.

use bytes::Bytes;

use super::fields::FieldLines;
use super::grammar::{is_target, is_token, is_value, split_once};
use super::known::Known;
use super::rejection::Rejection;
use super::request::is_method_byte;

/// Returns the index in the head of the byte for which the head is rejected; `None` if the reason lies in no byte, such
/// as a limit or a field that is missing. The head may be incomplete. An empty line before it is no part of it.
pub(crate) fn offset(bytes: &[u8], reason: Rejection) -> Option<usize> {
    let head = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    let line = split_once(head, b'\n').map_or(head, |(line, _)| line);
    match reason {
        Rejection::LineEnd => bare_line_feed(head),
        Rejection::RequestLine => Some(of_request_line(line)),
        Rejection::Method => line.iter().position(|byte| !is_method_byte(*byte)),
        Rejection::Target => of_target(line),
        Rejection::Version | Rejection::UnsupportedVersion => part(line, 2),
        Rejection::Field => bad_field(head, line.len() + 1),
        other => of_known(head, line.len() + 1, known(other)?),
    }
}

/// Returns the name of the fields with which a rejection deals.
fn known(reason: Rejection) -> Option<Known> {
    Some(match reason {
        Rejection::Host | Rejection::HostMismatch => Known::Host,
        Rejection::ContentLength | Rejection::UnexpectedBody => Known::ContentLength,
        Rejection::TransferEncoding | Rejection::UnsupportedCoding | Rejection::AmbiguousLength => {
            Known::TransferEncoding
        }
        Rejection::Connection => Known::Connection,
        Rejection::Expect | Rejection::RepeatedExpect => Known::Expect,
        Rejection::MaxForwards => Known::MaxForwards,
        _ => return None,
    })
}

/// Returns the index of the first line feed that no CR precedes.
fn bare_line_feed(head: &[u8]) -> Option<usize> {
    memchr::memchr_iter(b'\n', head).find(|at| !head.get(..*at).unwrap_or_default().ends_with(b"\r"))
}

/// Returns the index of a first byte that begins no method, of the third space, or of the end of the line.
fn of_request_line(line: &[u8]) -> usize {
    if !line.first().is_some_and(u8::is_ascii_uppercase) {
        return 0;
    }
    memchr::memchr_iter(b' ', line).nth(2).unwrap_or(line.len())
}

/// Returns the index of a part of the request line.
fn part(line: &[u8], index: usize) -> Option<usize> {
    memchr::memchr_iter(b' ', line).nth(index - 1).map(|space| space + 1)
}

/// Returns the index of the first byte that no target has, or of the target.
fn of_target(line: &[u8]) -> Option<usize> {
    let (start, end) = (part(line, 1)?, part(line, 2)? - 1);
    let bad = line.get(start..end)?.iter().position(|byte| !is_target(&[*byte]));
    Some(start + bad.unwrap_or(0))
}

/// Returns the index of the first byte that no field has at its place.
fn bad_field(head: &[u8], mut at: usize) -> Option<usize> {
    while let Some((line, _)) = split_once(head.get(at..)?, b'\n') {
        if let Some(bad) = bad_byte(line.strip_suffix(b"\r")?) {
            return Some(at + bad);
        }
        at += line.len() + 1;
    }
    None
}

fn bad_byte(line: &[u8]) -> Option<usize> {
    let name = line.iter().take_while(|byte| is_token(&[**byte])).count();
    if line.get(name) != Some(&b':') || name == 0 {
        return (!line.is_empty()).then_some(name);
    }
    line.get(name..)?.iter().position(|byte| !is_value(&[*byte])).map(|at| name + at)
}

/// Returns the index of the last field with this name, which is the second one if it is repeated.
fn of_known(head: &[u8], from: usize, known: Known) -> Option<usize> {
    let fields = FieldLines::parse(Bytes::copy_from_slice(head), from).ok()?;
    fields.position(known)
}

#[cfg(test)]
mod tests {
    use super::super::request::RequestHead;
    use super::super::scan::{Found, Limits, Scan};
    use super::*;

    const LIMITS: Limits = Limits { head: 200, fields: 5, target: 20 };

    /// Returns the reason for which the bytes are rejected, and the rest of the bytes from its place.
    fn place(bytes: &str) -> (Rejection, Option<&str>) {
        let reason = match Scan::default().request(bytes.as_bytes(), &LIMITS) {
            Ok(Found::Head { start, end }) => {
                RequestHead::parse(&Bytes::copy_from_slice(&bytes.as_bytes()[start..end]), &LIMITS)
                    .unwrap_err()
            }
            Ok(Found::Incomplete) => panic!("{bytes:?} is incomplete"),
            Err(error) => Rejection::of_head(error),
        };
        let head = bytes.strip_prefix("\r\n").unwrap_or(bytes);
        (reason, offset(bytes.as_bytes(), reason).map(|at| &head[at..]))
    }

    #[test]
    fn the_place_of_a_bad_request_line_is_found() {
        for (bytes, reason, rest) in [
            ("\u{16}a", Rejection::RequestLine, "\u{16}a"),
            ("GET / a HTTP/1.1\r\n", Rejection::RequestLine, " HTTP/1.1\r\n"),
            ("GET /\r\n", Rejection::RequestLine, "\n"),
            ("GeT / HTTP/1.1\r\n\r\n", Rejection::Method, "eT / HTTP/1.1\r\n\r\n"),
            ("\r\nGET /a#b HTTP/1.1\r\n\r\n", Rejection::Target, "#b HTTP/1.1\r\n\r\n"),
            ("GET a HTTP/1.1\r\n\r\n", Rejection::Target, "a HTTP/1.1\r\n\r\n"),
            ("GET / HTTP/3.0\r\n\r\n", Rejection::UnsupportedVersion, "HTTP/3.0\r\n\r\n"),
            ("GET / HTTP/1.1\n", Rejection::LineEnd, "\n"),
        ] {
            assert_eq!(place(bytes), (reason, Some(rest)), "{bytes:?}");
        }
    }

    #[test]
    fn the_place_of_a_bad_field_is_found() {
        let line = "GET / HTTP/1.1\r\n";
        for (fields, reason, rest) in [
            ("Host: a\r\nX y: b\r\n\r\n", Rejection::Field, " y: b\r\n\r\n"),
            ("Host: a\r\nX: b\0\r\n\r\n", Rejection::Field, "\0\r\n\r\n"),
            ("Host: a\r\n: b\r\n\r\n", Rejection::Field, ": b\r\n\r\n"),
            ("Host: a\r\nXy\r\n\r\n", Rejection::Field, "\r\n\r\n"),
            ("Host: a\r\nHost: a\r\nX: y\r\n\r\n", Rejection::Host, "Host: a\r\nX: y\r\n\r\n"),
            ("Host: a\r\nContent-Length: +1\r\n\r\n", Rejection::ContentLength, "Content-Length: +1\r\n\r\n"),
        ] {
            assert_eq!(
                place(&format!("{line}{fields}")).1.map(str::to_owned),
                Some(rest.to_owned()),
                "{fields:?}"
            );
            assert_eq!(place(&format!("{line}{fields}")).0, reason, "{fields:?}");
        }
    }

    #[test]
    fn a_reason_that_lies_in_no_byte_has_no_place() {
        assert_eq!(place("GET / HTTP/1.1\r\n\r\n"), (Rejection::Host, None));
        assert_eq!(place(&format!("GET /{}", "a".repeat(100))), (Rejection::TargetTooLong, None));
        assert_eq!(place("CONNECT a:1 HTTP/1.1\r\n\r\n"), (Rejection::Connect, None));
    }
}
