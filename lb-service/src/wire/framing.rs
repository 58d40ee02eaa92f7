//! The length of a body, by the head of its message (RFC 9112, section 6).

use http::{StatusCode, Version};

use super::fields::FieldLines;
use super::grammar::{decimal, members};
use super::known::Known;
use super::rejection::{BadResponse, Rejection};

/// The length of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    /// There is no body.
    None,
    /// The body has this many bytes, at most 2^63 - 1.
    Known(u64),
    /// The body is a series of chunks.
    Chunked,
    /// The body ends with the connection. Only a response can have such a body.
    UntilClose,
}

/// The framing of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResponseFraming {
    /// The length of the body.
    pub(crate) length: Length,
    /// The length that the head announces, for a response without a body to HEAD or with the status 304.
    pub(crate) announced: Option<u64>,
    /// Whether the head has both a length and a transfer coding, so the connection to the backend cannot be used again.
    pub(crate) is_ambiguous: bool,
}

// === requests ===

/// Returns the length of the body of a request. It does not depend on the method.
///
/// # Errors
///
/// If a sender could mean another length.
pub(crate) fn of_request(fields: &FieldLines, version: Version) -> Result<Length, Rejection> {
    let length = fields.only(Known::ContentLength).map_err(|_| Rejection::ContentLength)?;
    let coding = fields.only(Known::TransferEncoding).map_err(|_| Rejection::TransferEncoding)?;
    match (length, coding) {
        (None, None) => Ok(Length::None),
        (Some(length), None) => decimal(length).map(Length::Known).ok_or(Rejection::ContentLength),
        (Some(_), Some(_)) => Err(Rejection::AmbiguousLength),
        (None, Some(_)) if version == Version::HTTP_10 => Err(Rejection::TransferEncoding),
        (None, Some(coding)) => coded(coding),
    }
}

/// Returns the length of a body with transfer codings. We decode `chunked` only: a backend would get a body that it
/// cannot read if another coding were forwarded without its name.
fn coded(value: &[u8]) -> Result<Length, Rejection> {
    if is_chunked(value) {
        return Ok(Length::Chunked);
    }
    // RFC 9112, section 6.3, demands 400 if `chunked` is not the last coding, and section 6.1 recommends 501 for an
    // unknown coding before it.
    let codings: Vec<_> = value.split(|byte| *byte == b',').map(super::grammar::trim).collect();
    let [before @ .., last] = &codings[..] else { return Err(Rejection::TransferEncoding) };
    let is_known_end =
        is_chunked(last) && before.iter().all(|coding| !coding.is_empty() && !is_chunked(coding));
    Err(if is_known_end { Rejection::UnsupportedCoding } else { Rejection::TransferEncoding })
}

fn is_chunked(coding: &[u8]) -> bool {
    coding.eq_ignore_ascii_case(b"chunked")
}

// === responses ===

/// Returns the framing of a response with this status to a request with the method HEAD (`to_head`) or with another
/// method.
///
/// # Errors
///
/// If the length is invalid, or the body has another transfer coding than `chunked`.
pub(crate) fn of_response(
    fields: &FieldLines,
    status: u16,
    to_head: bool,
) -> Result<ResponseFraming, BadResponse> {
    let announced = announced(fields)?;
    let is_chunked = is_chunked_response(fields)?;
    let is_ambiguous = is_chunked && announced.is_some();
    if is_bodiless(status) {
        return Ok(ResponseFraming { length: Length::None, announced: None, is_ambiguous });
    }
    if to_head || status == StatusCode::NOT_MODIFIED.as_u16() {
        return Ok(ResponseFraming {
            length: Length::None,
            announced: announced.filter(|_| !is_chunked),
            is_ambiguous,
        });
    }
    let length = match announced {
        _ if is_chunked => Length::Chunked,
        Some(length) => Length::Known(length),
        None => Length::UntilClose,
    };
    Ok(ResponseFraming { length, announced: None, is_ambiguous })
}

/// Returns whether a response with this status has no body and no fields that describe one.
fn is_bodiless(status: u16) -> bool {
    (100..200).contains(&status) || status == StatusCode::NO_CONTENT.as_u16()
}

/// Returns the announced length. Equal repetitions count as one (RFC 9112, section 6.3).
fn announced(fields: &FieldLines) -> Result<Option<u64>, BadResponse> {
    let mut lengths = fields.values(Known::ContentLength).flat_map(|line| line.split(|byte| *byte == b','));
    let parse = |length: &[u8]| decimal(super::grammar::trim(length)).ok_or(BadResponse::ContentLength);
    let Some(first) = lengths.next().map(parse).transpose()? else { return Ok(None) };
    for other in lengths {
        if parse(other)? != first {
            return Err(BadResponse::ContentLength);
        }
    }
    Ok(Some(first))
}

fn is_chunked_response(fields: &FieldLines) -> Result<bool, BadResponse> {
    let mut lines = fields.values(Known::TransferEncoding);
    match (lines.next(), lines.next()) {
        (None, _) => Ok(false),
        (Some(line), None) if is_chunked(line) && members(line).count() == 1 => Ok(true),
        _ => Err(BadResponse::TransferEncoding),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn fields(text: &str) -> FieldLines {
        FieldLines::parse(Bytes::copy_from_slice(text.as_bytes()), 0).unwrap()
    }

    fn request(text: &str) -> Result<Length, Rejection> {
        of_request(&fields(text), Version::HTTP_11)
    }

    fn response(text: &str) -> Result<Length, BadResponse> {
        of_response(&fields(text), 200, false).map(|framing| framing.length)
    }

    #[test]
    fn a_request_has_a_length_chunks_or_no_body() {
        assert_eq!(request("A: b\r\n"), Ok(Length::None));
        assert_eq!(request("Content-Length: 007\r\n"), Ok(Length::Known(7)));
        assert_eq!(request("Transfer-Encoding: Chunked\r\n"), Ok(Length::Chunked));
    }

    #[test]
    fn a_request_with_an_unclear_length_is_rejected() {
        for value in ["", "+1", "-1", "1 1", "1,1", "0x1", "1.0", "9223372036854775808"] {
            assert_eq!(
                request(&format!("Content-Length: {value}\r\n")),
                Err(Rejection::ContentLength),
                "{value}"
            );
        }
        assert_eq!(request("Content-Length: 1\r\nContent-Length: 1\r\n"), Err(Rejection::ContentLength));
        let both = "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n";
        assert_eq!(request(both), Err(Rejection::AmbiguousLength));
    }

    #[test]
    fn a_request_with_other_codings_is_rejected() {
        for value in [
            "",
            "identity",
            "gzip",
            "chunked, gzip",
            "chunked, chunked",
            "chunked;a=b",
            ",chunked",
            "xchunked",
        ] {
            let refused = request(&format!("Transfer-Encoding: {value}\r\n"));
            assert_eq!(refused, Err(Rejection::TransferEncoding), "{value:?}");
        }
        assert_eq!(request("Transfer-Encoding: gzip, chunked\r\n"), Err(Rejection::UnsupportedCoding));
        let two_lines = "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n";
        assert_eq!(request(two_lines), Err(Rejection::TransferEncoding));
        let http_10 = of_request(&fields("Transfer-Encoding: chunked\r\n"), Version::HTTP_10);
        assert_eq!(http_10, Err(Rejection::TransferEncoding));
    }

    #[test]
    fn a_response_has_a_length_chunks_or_ends_with_the_connection() {
        assert_eq!(response("Content-Length: 5\r\n"), Ok(Length::Known(5)));
        assert_eq!(response("Content-Length: 5, 5\r\nContent-Length: 5\r\n"), Ok(Length::Known(5)));
        assert_eq!(response("Transfer-Encoding: chunked\r\n"), Ok(Length::Chunked));
        assert_eq!(response(""), Ok(Length::UntilClose));
    }

    #[test]
    fn a_response_with_an_invalid_length_cannot_be_passed_on() {
        for text in
            ["Content-Length: 5\r\nContent-Length: 6\r\n", "Content-Length: 5,6\r\n", "Content-Length: a\r\n"]
        {
            assert_eq!(response(text), Err(BadResponse::ContentLength), "{text}");
        }
        for value in ["gzip", "gzip, chunked", "chunked, chunked", "identity", ""] {
            let refused = response(&format!("Transfer-Encoding: {value}\r\n"));
            assert_eq!(refused, Err(BadResponse::TransferEncoding), "{value}");
        }
    }

    #[test]
    fn chunks_take_precedence_over_a_length_in_a_response() {
        let both = fields("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n");
        let framing = of_response(&both, 200, false).unwrap();
        assert_eq!((framing.length, framing.is_ambiguous), (Length::Chunked, true));
    }

    #[test]
    fn some_responses_have_no_body_whatever_their_fields_say() {
        let with_length = fields("Content-Length: 5\r\n");
        let of = |status, to_head| of_response(&with_length, status, to_head).unwrap();
        for (framing, announced) in [
            (of(204, false), None),
            (of(103, false), None),
            (of(304, false), Some(5)),
            (of(200, true), Some(5)),
        ] {
            assert_eq!((framing.length, framing.announced), (Length::None, announced));
        }
        assert_eq!(of(205, false).length, Length::Known(5));
    }
}
