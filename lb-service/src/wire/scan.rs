//! Finds the end of a head in bytes that arrive in pieces.
//!
//! Each byte is looked at once, whatever the size of the pieces: a sender of single bytes costs no more than any other.
//! An error is reported at the first byte that shows it, so the result does not depend on the pieces either.

use memchr::memchr;

/// The limits of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The bytes of the first line and the fields together, with the empty line behind them.
    pub head: usize,
    /// The number of fields.
    pub fields: usize,
    /// The bytes of the target of a request.
    pub target: usize,
}

/// The bytes of the longest method.
pub(super) const MAX_METHOD: usize = 32;
/// The bytes of a request line besides its target: the longest method, two spaces, the version and the line end.
const AROUND_TARGET: usize = MAX_METHOD + 2 + 8 + 2;

/// The search for the end of a head, which continues where it stopped.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scan {
    /// The start of the head, behind an empty line that precedes it.
    start: usize,
    /// The bytes that were searched.
    searched: usize,
    /// The start of the line that has not ended yet.
    line: usize,
    /// The lines that have ended.
    lines: usize,
}

/// The result of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The end of the head has not arrived.
    Incomplete,
    /// The head lies in this range. It includes the empty line at its end.
    Head {
        /// The index of its first byte.
        start: usize,
        /// The index of the first byte behind it.
        end: usize,
    },
}

/// The reason why the bytes cannot become a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScanError {
    /// The first byte cannot begin a head.
    Start,
    /// A line does not end with CR LF.
    LineEnd,
    /// The head is larger than [`Limits::head`].
    TooLarge,
    /// The head has more fields than [`Limits::fields`].
    TooManyFields,
    /// The method is longer than any that there is.
    MethodTooLong,
    /// The target is longer than [`Limits::target`].
    TargetTooLong,
    /// The first line of a request has ended, and single spaces do not split it into three parts.
    RequestLine,
}

// === impl Scan ===

impl Scan {
    /// Continues the search for the head of a request. `bytes` begins as it did at the previous call, and may have
    /// grown.
    ///
    /// One empty line before the request is skipped (RFC 9112, section 2.2). A first byte that no method has is
    /// rejected without waiting for more: it is most likely TLS on a plain port.
    ///
    /// # Errors
    ///
    /// If the bytes cannot become a head.
    #[expect(clippy::indexing_slicing, reason = "`skip_empty_line` has seen that a byte is there")]
    pub(crate) fn request(&mut self, bytes: &[u8], limits: &Limits) -> Result<Found, ScanError> {
        if !self.skip_empty_line(bytes)? {
            return Ok(Found::Incomplete);
        }
        if !bytes[self.start].is_ascii_uppercase() {
            return Err(ScanError::Start);
        }
        self.lines(bytes, limits, Some(limits.target.saturating_add(AROUND_TARGET)))
    }

    /// Continues the search for the head of a response, as [`request`](Self::request) does for a request.
    ///
    /// # Errors
    ///
    /// If the bytes cannot become a head.
    pub(crate) fn response(&mut self, bytes: &[u8], limits: &Limits) -> Result<Found, ScanError> {
        self.lines(bytes, limits, None)
    }

    /// Skips an empty line before the head. Returns whether a byte of the head is there.
    fn skip_empty_line(&mut self, bytes: &[u8]) -> Result<bool, ScanError> {
        if self.start == 0 && bytes.first() == Some(&b'\r') {
            match bytes.get(1) {
                Some(b'\n') => *self = Self { start: 2, searched: 2, line: 2, lines: 0 },
                Some(_) => return Err(ScanError::Start),
                None => return Ok(false),
            }
        }
        Ok(bytes.len() > self.start)
    }

    /// Searches line by line. `request_line` is the largest length of the first line if it is one of a request.
    #[expect(
        clippy::indexing_slicing,
        reason = "places are behind each other within the bytes, which only grow"
    )]
    fn lines(
        &mut self,
        bytes: &[u8],
        limits: &Limits,
        request_line: Option<usize>,
    ) -> Result<Found, ScanError> {
        let limit = self.start.saturating_add(limits.head);
        let within = &bytes[..bytes.len().min(limit)];
        while let Some(at) = memchr(b'\n', &within[self.searched..]) {
            let end = self.searched + at + 1;
            self.check_length(&within[..end], request_line)?;
            if is_empty_line(&within[self.line..end])? {
                return Ok(Found::Head { start: self.start, end });
            }
            if request_line.is_some() && self.lines == 0 && !has_three_parts(&within[self.line..end]) {
                return Err(ScanError::RequestLine);
            }
            // The first line is not a field.
            if self.lines > limits.fields {
                return Err(ScanError::TooManyFields);
            }
            (self.searched, self.line, self.lines) = (end, end, self.lines + 1);
        }
        self.searched = within.len();
        self.check_length(within, request_line)?;
        if bytes.len() > limit { Err(ScanError::TooLarge) } else { Ok(Found::Incomplete) }
    }

    /// Checks the length of the first line, which reaches at least to the end of `bytes` if no line has ended yet.
    #[expect(
        clippy::indexing_slicing,
        reason = "a line that is too long has more bytes than a method may have"
    )]
    fn check_length(&self, bytes: &[u8], request_line: Option<usize>) -> Result<(), ScanError> {
        let line = &bytes[self.start..];
        let is_too_long = self.lines == 0 && request_line.is_some_and(|limit| line.len() > limit);
        match () {
            () if !is_too_long => Ok(()),
            () if memchr(b' ', &line[..=MAX_METHOD]).is_none() => Err(ScanError::MethodTooLong),
            () => Err(ScanError::TargetTooLong),
        }
    }
}

/// Returns whether a request has begun: an empty line before it is no part of it (RFC 9112, section 2.2).
pub(crate) fn has_begun(bytes: &[u8]) -> bool {
    !matches!(bytes, b"" | b"\r" | b"\r\n")
}

/// Returns whether a line can be a method, a target and a version. A request of HTTP/0.9 has no version, and nothing
/// may follow it, so a wait for fields would be in vain.
fn has_three_parts(line: &[u8]) -> bool {
    memchr::memchr_iter(b' ', line).count() == 2
}

/// Returns whether a line is empty, which includes its line feed.
fn is_empty_line(line: &[u8]) -> Result<bool, ScanError> {
    line.strip_suffix(b"\r\n").map(<[u8]>::is_empty).ok_or(ScanError::LineEnd)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { head: 200, fields: 3, target: 20 };

    fn whole(bytes: &[u8]) -> Result<Found, ScanError> {
        Scan::default().request(bytes, &LIMITS)
    }

    /// Feeds the bytes one by one until there is a result.
    fn one_by_one(bytes: &[u8]) -> Result<Found, ScanError> {
        let mut scan = Scan::default();
        let results = (0..=bytes.len()).map(|end| scan.request(&bytes[..end], &LIMITS));
        results.into_iter().find(|result| *result != Ok(Found::Incomplete)).unwrap_or(Ok(Found::Incomplete))
    }

    #[test]
    fn a_head_ends_with_its_empty_line() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody";
        assert_eq!(whole(head), Ok(Found::Head { start: 0, end: head.len() - 4 }));
        assert_eq!(whole(&head[..head.len() - 5]), Ok(Found::Incomplete));
        assert_eq!(whole(b""), Ok(Found::Incomplete));
    }

    #[test]
    fn one_empty_line_before_a_request_is_skipped() {
        assert_eq!(whole(b"\r\nGET / HTTP/1.1\r\n\r\n"), Ok(Found::Head { start: 2, end: 20 }));
        assert_eq!(whole(b"\r\n"), Ok(Found::Incomplete));
        for bytes in [&b"\r\n\r\nGET"[..], b"\nGET", b"\rGET"] {
            assert_eq!(whole(bytes), Err(ScanError::Start), "{bytes:?}");
        }
    }

    #[test]
    fn a_line_without_a_space_has_a_method_that_is_too_long() {
        let line =
            |method: usize, target: usize| [vec![b'A'; method], vec![b' '], vec![b'/'; target]].concat();
        assert_eq!(one_by_one(&line(100, 0)), Err(ScanError::MethodTooLong));
        assert_eq!(one_by_one(&line(33, 100)), Err(ScanError::MethodTooLong));
        assert_eq!(one_by_one(&line(32, 100)), Err(ScanError::TargetTooLong));
    }

    #[test]
    fn a_first_byte_that_begins_no_method_is_rejected_at_once() {
        for bytes in [&b"\x16"[..], b"get", b" GET", b"\0", b"1"] {
            assert_eq!(whole(&bytes[..1]), Err(ScanError::Start), "{bytes:?}");
        }
    }

    #[test]
    fn a_line_that_ends_with_a_line_feed_alone_is_rejected_at_once() {
        assert_eq!(whole(b"GET / HTTP/1.1\n"), Err(ScanError::LineEnd));
        assert_eq!(whole(b"GET / HTTP/1.1\r\nHost: a\n"), Err(ScanError::LineEnd));
        assert_eq!(whole(b"GET / HTTP/1.1\r\n\n"), Err(ScanError::LineEnd));
    }

    #[test]
    fn a_request_line_without_three_parts_is_rejected_at_its_end() {
        for line in ["GET /", "GET / HTTP/1.1 ", "GET  / HTTP/1.1", "GET"] {
            assert_eq!(whole(format!("{line}\r\n").as_bytes()), Err(ScanError::RequestLine), "{line:?}");
        }
        assert_eq!(whole(b"GET / HTTP/0.9\r\n"), Ok(Found::Incomplete), "its version is looked at later");
        assert_eq!(Scan::default().response(b"HTTP/1.1 200\r\n", &LIMITS), Ok(Found::Incomplete));
    }

    #[test]
    fn an_empty_line_does_not_begin_a_request() {
        assert!(!has_begun(b"") && !has_begun(b"\r") && !has_begun(b"\r\n"));
        assert!(has_begun(b"\r\n\r") && has_begun(b"G") && has_begun(b"\n") && has_begun(b"\r\nG"));
    }

    #[test]
    fn limits_are_inclusive_and_need_no_complete_head() {
        let fields = |count| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(count));
        assert!(matches!(whole(fields(3).as_bytes()), Ok(Found::Head { .. })));
        assert_eq!(whole(fields(4).as_bytes()), Err(ScanError::TooManyFields));

        let head = |value| format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(value));
        assert_eq!(head(177).len(), LIMITS.head);
        assert!(matches!(whole(head(177).as_bytes()), Ok(Found::Head { .. })));
        assert_eq!(whole(head(178).as_bytes()), Err(ScanError::TooLarge));
        assert_eq!(whole(&head(1000).as_bytes()[..201]), Err(ScanError::TooLarge));

        let line = format!("GET /{}", "a".repeat(LIMITS.target + AROUND_TARGET));
        assert_eq!(whole(line.as_bytes()), Err(ScanError::TargetTooLong));
        let response = Scan::default().response(line.as_bytes(), &LIMITS);
        assert_eq!(response, Ok(Found::Incomplete), "a response has no target");
    }

    /// Texts that are close to heads.
    fn texts() -> impl Strategy<Value = Vec<u8>> {
        let parts = prop::sample::select(vec![
            "GET",
            " ",
            "/",
            "HTTP/1.1",
            "\r\n",
            "\n",
            "\r",
            "a: b",
            ":",
            "\0",
            "aaaaaaaaaaaaaaaaaaaaaaaaaa",
            "POST",
        ]);
        prop::collection::vec(parts, 0..40).prop_map(|parts| parts.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn the_result_does_not_depend_on_the_pieces(bytes in texts()) {
            prop_assert_eq!(whole(&bytes), one_by_one(&bytes));
        }
    }
}
