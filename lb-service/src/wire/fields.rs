//! The fields of a message, as an index over the bytes that arrived.

use std::ops::Range;

use super::grammar::{token_length, trim, value_length};
use super::known::Known;
use bytes::Bytes;

/// The fields of a head or of trailers, in the order in which they arrived.
#[derive(Clone, Debug)]
pub(crate) struct FieldLines {
    bytes: Bytes,
    lines: Vec<Line>,
    /// The number of names that some backends read as others.
    pub(crate) look_alikes: usize,
}

/// One field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field<'a> {
    /// The name, as it was sent.
    pub(crate) name: &'a [u8],
    /// The value, without spaces and tabs around it.
    pub(crate) value: &'a [u8],
    /// The meaning of the name.
    pub(crate) known: Known,
}

/// A line that is not a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadField;

#[derive(Clone, Copy, Debug)]
struct Line {
    name: Span,
    value: Span,
    known: Known,
}

/// A range of bytes in a head, which is shorter than 4 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    start: u32,
    len: u32,
}

/// The end of a line.
const CRLF: &[u8] = b"\r\n";

// === impl Span ===

impl Span {
    /// Returns the place of `part`, which must be a slice of `whole`.
    #[expect(
        clippy::expect_used,
        reason = "the configuration limits a head to 1 MiB, and trailers have 16 KiB"
    )]
    pub(super) fn of(part: &[u8], whole: &[u8]) -> Self {
        let start = part.as_ptr().addr() - whole.as_ptr().addr();
        let place = |number: usize| u32::try_from(number).expect("a head is shorter than 4 GiB");
        Self { start: place(start), len: place(part.len()) }
    }

    fn end(self) -> usize {
        self.start as usize + self.len as usize
    }

    #[expect(clippy::indexing_slicing, reason = "the bytes are those that the span was made of")]
    pub(super) fn within(self, whole: &[u8]) -> &[u8] {
        let start = self.start as usize;
        &whole[start..start + self.len as usize]
    }
}

// === impl FieldLines ===

impl FieldLines {
    /// Parses lines that each end with CR LF; the last one may be empty. `bytes` is the whole that the lines are a part
    /// of.
    pub(super) fn parse(bytes: Bytes, from: usize) -> Result<Self, BadField> {
        // Most heads have between 5 and 15 fields. One allocation is enough for them.
        let (mut lines, mut look_alikes) = (Vec::with_capacity(16), 0);
        let mut rest = bytes.get(from..).unwrap_or_default();
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix(CRLF) {
                rest = after;
                continue;
            }
            let (line, after) = Line::parse(rest, &bytes)?;
            rest = after;
            look_alikes += usize::from(line.known == Known::LookAlike);
            lines.push(line);
        }
        Ok(Self { bytes, lines, look_alikes })
    }

    /// Returns the fields in their order.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = Field<'_>> + ExactSizeIterator + Clone {
        self.lines.iter().map(|line| line.within(&self.bytes))
    }

    /// Appends the fields that `passes` chooses. Lines that follow each other are copied together.
    pub(super) fn write(&self, out: &mut Vec<u8>, passes: impl Fn(&Field<'_>) -> bool) {
        let mut run = 0..0;
        for line in &self.lines {
            let field = line.within(&self.bytes);
            if !passes(&field) {
                continue;
            }
            match line.place(&self.bytes) {
                Some(place) if place.start == run.end => run.end = place.end,
                place => {
                    out.extend_from_slice(self.part(std::mem::take(&mut run)));
                    match place {
                        Some(place) => run = place,
                        None => write_field(out, field.name, field.value),
                    }
                }
            }
        }
        out.extend_from_slice(self.part(run));
    }

    fn part(&self, place: Range<usize>) -> &[u8] {
        self.bytes.get(place).unwrap_or_default()
    }

    /// Returns the values of all fields with this meaning.
    pub(crate) fn values(&self, known: Known) -> impl DoubleEndedIterator<Item = &[u8]> + Clone {
        let lines = self.lines.iter().filter(move |line| line.known == known);
        lines.map(|line| line.value.within(&self.bytes))
    }

    /// Returns the value of the only field with this meaning; an error if there are several.
    pub(super) fn only(&self, known: Known) -> Result<Option<&[u8]>, Repeated> {
        let mut values = self.values(known);
        let first = values.next();
        if values.next().is_some() { Err(Repeated) } else { Ok(first) }
    }

    /// Returns the index of the last field with this meaning in the bytes.
    pub(super) fn position(&self, known: Known) -> Option<usize> {
        let last = self.lines.iter().rev().find(|line| line.known == known);
        last.map(|line| line.name.start as usize)
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// Appends a field as a line.
pub(super) fn write_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    for part in [name, b": ", value, CRLF] {
        out.extend_from_slice(part);
    }
}

/// A field that may occur once occurs several times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Repeated;

// === impl Line ===

impl Line {
    /// Parses the line at the beginning of `text`, and returns it with what follows.
    fn parse<'a>(text: &'a [u8], whole: &[u8]) -> Result<(Self, &'a [u8]), BadField> {
        let (name, rest) = text.split_at(token_length(text));
        let rest = rest.strip_prefix(b":").filter(|_| !name.is_empty()).ok_or(BadField)?;
        let (value, rest) = rest.split_at(value_length(rest));
        let rest = rest.strip_prefix(CRLF).ok_or(BadField)?;
        let (name, value, known) = (Span::of(name, whole), Span::of(trim(value), whole), Known::of(name));
        Ok((Self { name, value, known }, rest))
    }

    /// Returns the place of the line if it is written as we write it: with one space and with nothing behind the value.
    fn place(self, bytes: &[u8]) -> Option<Range<usize>> {
        let (start, name, value) = (self.name.start as usize, self.name.end(), self.value.start as usize);
        let end = self.value.end() + CRLF.len();
        let is_plain =
            bytes.get(name..value) == Some(b": ") && bytes.get(self.value.end()..end) == Some(CRLF);
        is_plain.then_some(start..end)
    }

    fn within(self, bytes: &[u8]) -> Field<'_> {
        Field { name: self.name.within(bytes), value: self.value.within(bytes), known: self.known }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &'static str) -> Result<FieldLines, BadField> {
        FieldLines::parse(Bytes::from_static(text.as_bytes()), 0)
    }

    #[test]
    fn fields_keep_their_order_and_their_case() {
        let fields = parse("Host: a\r\nx-B:\t c d \t\r\nEmpty:\r\nHost:b\r\n\r\n").unwrap();
        let lines: Vec<_> = fields.iter().map(|field| (field.name, field.value)).collect();
        assert_eq!(lines, [(&b"Host"[..], &b"a"[..]), (b"x-B", b"c d"), (b"Empty", b""), (b"Host", b"b")]);
        assert_eq!(fields.values(Known::Host).collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(fields.only(Known::Host), Err(Repeated));
        assert_eq!(fields.only(Known::Te), Ok(None));
        assert_eq!((fields.look_alikes, parse("X_Real_IP: a\r\nb_c: d\r\n").unwrap().look_alikes), (0, 1));
    }

    #[test]
    fn a_line_that_is_not_a_field_is_rejected() {
        for text in [
            "no colon\r\n",
            ": no name\r\n",
            "a : b\r\n",
            " a: b\r\n",
            "a: b\r\n c\r\n",
            "a\0: b\r\n",
            "a: b\0\r\n",
            "a: b\rc\r\n",
            "a: \x7f\r\n",
            "a: b\n",
        ] {
            assert_eq!(parse(text).map(drop), Err(BadField), "{text:?}");
        }
    }

    #[test]
    fn a_value_may_have_bytes_above_ascii() {
        assert!(parse("a: \u{e9}\r\n").is_ok());
    }
}
