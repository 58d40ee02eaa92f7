//! The body of a message: its end in bytes that arrive in pieces, and the framing of what leaves.

use std::num::NonZeroUsize;

use super::chunked::{BadBody, ChunkHead, Decoder, Sender, Step};
use super::fields::FieldLines;
use super::framing::Length;

/// A reader of one body.
#[derive(Clone, Debug)]
pub(crate) enum BodyReader {
    /// The body has this many bytes left.
    Length(u64),
    /// The body is a series of chunks.
    Chunked(Box<Decoder>),
    /// The body ends with the connection.
    UntilClose,
}

/// The framing of one body that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyWriter {
    /// The head announced this many more bytes.
    Length(u64),
    /// Each piece is a chunk.
    Chunked,
    /// The end of the connection ends the body.
    UntilClose,
}

/// The bytes around a piece of data that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// The data leaves as it is.
    Plain,
    /// The data leaves as a chunk, between this line and [`CHUNK_END`](super::chunked::CHUNK_END).
    Chunk(ChunkHead),
}

/// A body is longer or shorter than its head announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WrongLength;

// === impl BodyReader ===

impl BodyReader {
    /// Returns a reader for a body of this length.
    pub(crate) fn new(length: Length, sender: Sender) -> Self {
        match length {
            Length::None => Self::Length(0),
            Length::Known(length) => Self::Length(length),
            Length::Chunked => Self::Chunked(Box::new(Decoder::new(sender))),
            Length::UntilClose => Self::UntilClose,
        }
    }

    /// Looks for the next data. The bytes that a step consumed must not be passed again.
    ///
    /// # Errors
    ///
    /// If the bytes do not follow the framing.
    pub(crate) fn step(&mut self, bytes: &[u8]) -> Result<Step, BadBody> {
        match self {
            Self::Length(0) => Ok(Step::End { end: 0 }),
            Self::Chunked(decoder) => decoder.step(bytes),
            _ if bytes.is_empty() => Ok(Step::Incomplete),
            Self::Length(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= take as u64;
                Ok(Step::Data { start: 0, end: take })
            }
            Self::UntilClose => Ok(Step::Data { start: 0, end: bytes.len() }),
        }
    }

    /// Returns the number of bytes that have not arrived of a body of known length, and 0 for any other body.
    pub(crate) fn rest(&self) -> u64 {
        if let Self::Length(left) = self { *left } else { 0 }
    }

    /// Counts bytes of a body of known length that passed without being read.
    pub(crate) fn pass(&mut self, size: NonZeroUsize) {
        if let Self::Length(left) = self {
            *left = left.saturating_sub(size.get() as u64);
        }
    }

    #[cfg(test)]
    /// Returns whether the body has ended. A body that ends with the connection never has.
    pub(crate) fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(decoder) => decoder.is_done(),
            Self::UntilClose => false,
        }
    }

    /// Returns whether these bytes, which stay unread, have the end of the body. A body that ends with the connection
    /// has its end nowhere else.
    ///
    /// # Errors
    ///
    /// If the bytes do not follow the framing.
    pub(crate) fn ends_within(&self, mut bytes: &[u8]) -> Result<bool, BadBody> {
        let mut reader = self.clone();
        loop {
            match reader.step(bytes)? {
                Step::Incomplete => return Ok(false),
                Step::Data { end, .. } => bytes = bytes.get(end..).unwrap_or_default(),
                Step::End { .. } => return reader.take_trailers().map(|_| true),
            }
        }
    }

    /// Returns whether the end of the connection ends the body as it should.
    pub(crate) fn ends_with_connection(&self) -> bool {
        matches!(self, Self::UntilClose)
    }

    /// Returns the trailers of a body that has ended; `None` if its framing has none.
    ///
    /// # Errors
    ///
    /// If they do not follow the grammar.
    pub(crate) fn take_trailers(&mut self) -> Result<Option<FieldLines>, BadBody> {
        match self {
            Self::Chunked(decoder) => decoder.take_trailers().map(Some),
            _ => Ok(None),
        }
    }
}

// === impl BodyWriter ===

impl BodyWriter {
    /// Returns the frame of the next piece.
    ///
    /// # Errors
    ///
    /// If the body is longer than announced.
    pub(crate) fn frame(&mut self, size: NonZeroUsize) -> Result<Frame, WrongLength> {
        match self {
            Self::Length(left) => {
                *left = left.checked_sub(size.get() as u64).ok_or(WrongLength)?;
                Ok(Frame::Plain)
            }
            Self::Chunked => Ok(Frame::Chunk(ChunkHead::new(size))),
            Self::UntilClose => Ok(Frame::Plain),
        }
    }

    /// Checks that the body is complete.
    ///
    /// # Errors
    ///
    /// If it is shorter than announced.
    pub(crate) fn end(self) -> Result<(), WrongLength> {
        if matches!(self, Self::Length(1..)) { Err(WrongLength) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(length: Length) -> BodyReader {
        BodyReader::new(length, Sender::Client)
    }

    #[test]
    fn a_body_of_known_length_ends_with_its_last_byte() {
        let mut body = reader(Length::Known(5));
        assert_eq!(body.step(b"abc"), Ok(Step::Data { start: 0, end: 3 }));
        assert_eq!(body.step(b""), Ok(Step::Incomplete));
        assert!(!body.is_done());
        assert_eq!(body.step(b"defg"), Ok(Step::Data { start: 0, end: 2 }));
        assert!(body.is_done());
        assert_eq!(body.step(b"fg"), Ok(Step::End { end: 0 }));
        assert_eq!(reader(Length::None).step(b"GET"), Ok(Step::End { end: 0 }));
    }

    #[test]
    fn bytes_that_are_not_read_count_for_a_known_length_only() {
        let size = NonZeroUsize::new(3).unwrap();
        let mut body = reader(Length::Known(5));
        assert_eq!(body.rest(), 5);
        body.pass(size);
        assert_eq!((body.rest(), body.step(b"defg")), (2, Ok(Step::Data { start: 0, end: 2 })));
        let rests = [Length::None, Length::Chunked, Length::UntilClose].map(|length| reader(length).rest());
        assert_eq!(rests, [0, 0, 0]);
    }

    #[test]
    fn a_body_that_ends_with_the_connection_is_never_done() {
        let mut body = reader(Length::UntilClose);
        assert_eq!(body.step(b"abc"), Ok(Step::Data { start: 0, end: 3 }));
        assert!(!body.is_done() && body.ends_with_connection());
    }

    #[test]
    fn the_end_of_a_body_is_seen_in_bytes_that_stay_unread() {
        let mut body = reader(Length::Known(5));
        assert_eq!((body.ends_within(b"abcd"), body.ends_within(b"abcdef")), (Ok(false), Ok(true)));
        assert_eq!(body.step(b"abc"), Ok(Step::Data { start: 0, end: 3 }));
        assert_eq!((body.ends_within(b"d"), body.ends_within(b"de")), (Ok(false), Ok(true)));
        let chunked = reader(Length::Chunked);
        assert_eq!(chunked.ends_within(b"1\r\na\r\n0\r\n"), Ok(false));
        assert_eq!(chunked.ends_within(b"1\r\na\r\n0\r\n\r\nGET"), Ok(true));
        assert_eq!(chunked.ends_within(b"x"), Err(BadBody::Chunk));
        assert_eq!(chunked.ends_within(b"0\r\na\r\n\r\n"), Err(BadBody::Trailers));
        assert_eq!(reader(Length::UntilClose).ends_within(b"a"), Ok(false));
        assert_eq!(reader(Length::None).ends_within(b""), Ok(true));
    }

    #[test]
    fn only_a_chunked_body_has_trailers() {
        let mut body = reader(Length::Chunked);
        assert_eq!(body.step(b"0\r\na: b\r\n\r\n"), Ok(Step::End { end: 11 }));
        assert_eq!(body.take_trailers().unwrap().unwrap().iter().len(), 1);
        assert!(reader(Length::Known(0)).take_trailers().unwrap().is_none());
    }

    #[test]
    fn a_body_leaves_with_the_announced_length_or_not_at_all() {
        let size = |size| NonZeroUsize::new(size).unwrap();
        let mut body = BodyWriter::Length(5);
        assert_eq!(body.frame(size(3)), Ok(Frame::Plain));
        assert_eq!((body.end(), body.frame(size(3))), (Err(WrongLength), Err(WrongLength)));
        assert_eq!(body.frame(size(2)), Ok(Frame::Plain));
        assert_eq!(body.end(), Ok(()));
        let head = ChunkHead::new(size(10));
        assert_eq!(BodyWriter::Chunked.frame(size(10)), Ok(Frame::Chunk(head)));
        assert_eq!(
            (BodyWriter::UntilClose.frame(size(1)), BodyWriter::UntilClose.end()),
            (Ok(Frame::Plain), Ok(()))
        );
    }
}
