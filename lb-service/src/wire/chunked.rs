//! The chunked transfer coding (RFC 9112, section 7.1).
//!
//! The decoder is stricter than the grammar where readers are known to disagree: each line ends with CR LF, and a size
//! has at most 16 digits and stays below 2^52, because some languages keep it as a float.

use bytes::Bytes;

use super::fields::FieldLines;
use super::trailers;

/// A decoder of one body, whose bytes arrive in pieces.
#[derive(Clone, Debug)]
pub(crate) struct Decoder {
    state: State,
    sender: Sender,
    /// The bytes of the extensions of this line, and of the whole body.
    extensions: (usize, usize),
    /// The bytes of the trailers that have arrived.
    trailers: Vec<u8>,
}

/// The sender of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// A client, which is read strictly.
    Client,
    /// A backend, which may write spaces behind the size of a chunk, as some old ones do.
    Backend,
}

/// What the decoder found at the start of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// All bytes were framing. More are needed.
    Incomplete,
    /// Data lies from `start` to `end`. The decoder has consumed everything before `end`.
    Data {
        /// The index of the first byte of the data.
        start: usize,
        /// The index of the first byte behind the data.
        end: usize,
    },
    /// The body has ended, and the bytes from `end` on do not belong to it.
    End {
        /// The index of the first byte behind the body.
        end: usize,
    },
}

/// Why a body cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadBody {
    /// A chunk does not follow the grammar.
    Chunk,
    /// The trailers do not follow the grammar, or they are too large.
    Trailers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the size, with the digits so far.
    Size {
        digits: u8,
        size: u64,
    },
    /// Behind the size, in the white space before an extension or the end of the line.
    Padding {
        size: u64,
    },
    Extension {
        size: u64,
        quote: Quote,
    },
    /// The CR of the line of a size was read.
    SizeEnd {
        size: u64,
    },
    Data {
        left: u64,
    },
    /// The data was read, and CR LF follow.
    DataEnd {
        cr: bool,
    },
    /// In the trailers, where `line` is the start of the current line.
    Trailers {
        line: usize,
    },
    Done,
}

/// The place in an extension, in or outside a quoted string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quote {
    Outside,
    Inside,
    /// Behind a backslash in a quoted string.
    Escape,
}

const MAX_DIGITS: u8 = 16;
/// Sizes must stay below this number.
const SIZE_LIMIT: u64 = 1 << 52;
const MAX_LINE_EXTENSIONS: usize = 1024;
const MAX_BODY_EXTENSIONS: usize = 16 * 1024;

// === impl Decoder ===

impl Decoder {
    /// Returns a decoder for the body of a message from `sender`.
    pub(crate) fn new(sender: Sender) -> Self {
        Self { state: State::START, sender, extensions: (0, 0), trailers: Vec::new() }
    }

    /// Looks for the next data. The bytes that a step consumed must not be passed again.
    ///
    /// # Errors
    ///
    /// If the bytes are not a chunked body.
    #[expect(clippy::indexing_slicing, reason = "at least one byte is left here")]
    pub(crate) fn step(&mut self, bytes: &[u8]) -> Result<Step, BadBody> {
        let mut at = 0;
        loop {
            match self.state {
                State::Done => return Ok(Step::End { end: at }),
                State::Data { left } if at < bytes.len() => return Ok(self.data(left, at, bytes.len())),
                State::Trailers { line } if at < bytes.len() => {
                    at += self.trailer_bytes(&bytes[at..], line)?;
                }
                state => {
                    let Some(byte) = bytes.get(at) else { return Ok(Step::Incomplete) };
                    self.state = self.framing(state, *byte)?;
                    at += 1;
                }
            }
        }
    }

    #[cfg(test)]
    /// Returns whether the body has ended.
    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Returns the trailers of a body that has ended.
    ///
    /// # Errors
    ///
    /// If they do not follow the grammar.
    pub(crate) fn take_trailers(&mut self) -> Result<FieldLines, BadBody> {
        let bytes = Bytes::from(std::mem::take(&mut self.trailers));
        trailers::parse(bytes).map_err(|_| BadBody::Trailers)
    }

    fn data(&mut self, left: u64, start: usize, len: usize) -> Step {
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(len - start);
        let left = left - take as u64;
        self.state = if left == 0 { State::DataEnd { cr: false } } else { State::Data { left } };
        Step::Data { start, end: start + take }
    }

    /// Reads one byte that is not data.
    fn framing(&mut self, state: State, byte: u8) -> Result<State, BadBody> {
        match (state, byte) {
            (State::Size { digits, size }, _) if byte.is_ascii_hexdigit() => sized(digits, size, byte),
            (State::Size { digits: 0, .. }, _) => Err(BadBody::Chunk),
            (State::Size { size, .. } | State::Extension { size, quote: Quote::Outside }, b'\r') => {
                Ok(State::SizeEnd { size })
            }
            (State::Size { size, .. } | State::Padding { size }, b';') => {
                self.extension(size, Quote::Outside)
            }
            (State::Size { size, .. } | State::Padding { size }, b' ' | b'\t') => self.padding(size),
            (State::Padding { size }, b'\r') if self.sender == Sender::Backend => Ok(State::SizeEnd { size }),
            (State::Extension { size, quote }, _) => self.extension(size, quote.then(byte)?),
            (State::SizeEnd { size: 0 }, b'\n') => Ok(State::Trailers { line: 0 }),
            (State::SizeEnd { size }, b'\n') => {
                self.extensions.0 = 0;
                Ok(State::Data { left: size })
            }
            (State::DataEnd { cr: false }, b'\r') => Ok(State::DataEnd { cr: true }),
            (State::DataEnd { cr: true }, b'\n') => Ok(State::START),
            _ => Err(BadBody::Chunk),
        }
    }

    fn padding(&mut self, size: u64) -> Result<State, BadBody> {
        self.count_extension()?;
        Ok(State::Padding { size })
    }

    fn extension(&mut self, size: u64, quote: Quote) -> Result<State, BadBody> {
        self.count_extension()?;
        Ok(State::Extension { size, quote })
    }

    fn count_extension(&mut self) -> Result<(), BadBody> {
        let (line, body) = (self.extensions.0 + 1, self.extensions.1 + 1);
        self.extensions = (line, body);
        if line > MAX_LINE_EXTENSIONS || body > MAX_BODY_EXTENSIONS { Err(BadBody::Chunk) } else { Ok(()) }
    }

    /// Keeps the bytes of one line of the trailers, or of its start. Returns their number.
    #[expect(
        clippy::indexing_slicing,
        reason = "the length is that of the bytes or of a line in them, and lines begin within the trailers"
    )]
    fn trailer_bytes(&mut self, bytes: &[u8], line: usize) -> Result<usize, BadBody> {
        let line_end = memchr::memchr(b'\n', bytes).map(|at| at + 1);
        let len = line_end.unwrap_or(bytes.len());
        if self.trailers.len() + len > trailers::MAX_SIZE {
            return Err(BadBody::Trailers);
        }
        self.trailers.extend_from_slice(&bytes[..len]);
        if line_end.is_some() {
            let line = self.trailers[line..].strip_suffix(b"\r\n").ok_or(BadBody::Trailers)?;
            self.state =
                if line.is_empty() { State::Done } else { State::Trailers { line: self.trailers.len() } };
        }
        Ok(len)
    }
}

// === impl State ===

impl State {
    const START: Self = Self::Size { digits: 0, size: 0 };
}

fn sized(digits: u8, size: u64, digit: u8) -> Result<State, BadBody> {
    let value = char::from(digit).to_digit(16).map_or(0, u64::from);
    // Before the shift, the size is below 2^52, so no bit is lost.
    let size = (size << 4) + value;
    if digits >= MAX_DIGITS || size >= SIZE_LIMIT {
        return Err(BadBody::Chunk);
    }
    Ok(State::Size { digits: digits + 1, size })
}

// === impl Quote ===

impl Quote {
    fn then(self, byte: u8) -> Result<Self, BadBody> {
        match (self, byte) {
            // A line that ends in a quoted string is a line to one reader and none to another.
            (_, 0..=8 | 10..=31 | 127) => Err(BadBody::Chunk),
            (Self::Outside, b'"') | (Self::Escape, _) => Ok(Self::Inside),
            (Self::Inside, b'"') => Ok(Self::Outside),
            (Self::Inside, b'\\') => Ok(Self::Escape),
            (same, _) => Ok(same),
        }
    }
}

// === encoding ===

/// The line before the data of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkHead {
    /// The digits at the end, and CR LF.
    text: [u8; 18],
    start: u8,
}

/// The bytes behind the data of a chunk.
pub(crate) const CHUNK_END: &[u8] = b"\r\n";
/// The chunk that ends a body. Trailers and an empty line follow.
pub(crate) const LAST_CHUNK: &[u8] = b"0\r\n";

// === impl ChunkHead ===

impl ChunkHead {
    /// Returns the line before `size` bytes of data. There must be some, because an empty chunk would end the body.
    #[expect(clippy::indexing_slicing, reason = "a size has at most 16 digits")]
    pub(crate) fn new(size: std::num::NonZeroUsize) -> Self {
        let (mut text, mut start, mut rest) = (*b"................\r\n", 16_u8, size.get());
        while rest > 0 {
            start -= 1;
            text[usize::from(start)] = b"0123456789abcdef"[rest % 16];
            rest /= 16;
        }
        Self { text, start }
    }

    /// Returns the bytes of the line.
    #[expect(clippy::indexing_slicing, reason = "the start is at most 16")]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.text[usize::from(self.start)..]
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use proptest::prelude::*;

    use super::*;

    /// The data and the rest behind the body, or `None` if the body is incomplete.
    type Decoded = Result<Option<(Vec<u8>, Vec<u8>)>, BadBody>;

    /// Decodes bytes that arrive in pieces of these sizes, in turn.
    fn decode(sender: Sender, bytes: &[u8], pieces: &[usize]) -> Decoded {
        let (mut decoder, mut data, mut at, mut end) = (Decoder::new(sender), Vec::new(), 0, 0);
        for piece in pieces.iter().cycle() {
            end = (end + (*piece).max(1)).min(bytes.len());
            loop {
                match decoder.step(&bytes[at..end])? {
                    Step::Incomplete => break,
                    Step::Data { start, end } => {
                        data.extend_from_slice(&bytes[at + start..at + end]);
                        at += end;
                    }
                    Step::End { end } => return Ok(Some((data, bytes[at + end..].to_vec()))),
                }
            }
            at = end;
            if end == bytes.len() {
                return Ok(None);
            }
        }
        unreachable!("pieces are endless")
    }

    fn whole(text: &str) -> Decoded {
        decode(Sender::Client, text.as_bytes(), &[text.len()])
    }

    fn data(text: &str) -> (Vec<u8>, Vec<u8>) {
        (text.as_bytes().to_vec(), Vec::new())
    }

    #[test]
    fn chunks_are_joined_and_extensions_are_dropped() {
        assert_eq!(whole("3\r\nabc\r\n0a;x=\"\\\";\r\"\r\n"), Err(BadBody::Chunk));
        assert_eq!(whole("3\r\nabc\r\n2 ; x=\"\\\";\" ;y\r\nde\r\n00\r\n\r\n"), Ok(Some(data("abcde"))));
        assert_eq!(whole("A\r\n0123456789\r\n0\r\n\r\n"), Ok(Some(data("0123456789"))));
        assert_eq!(whole("0\r\n\r\nGET"), Ok(Some((Vec::new(), b"GET".to_vec()))));
        assert_eq!(whole("3\r\nabc\r\n0\r\n"), Ok(None));
    }

    #[test]
    fn a_size_is_up_to_16_hexadecimal_digits_below_2_to_the_52() {
        for size in ["", "+1", "-1", "0x1", " 1", "g", "1g", "10000000000000", "00000000000000001", "1_0"] {
            assert_eq!(whole(&format!("{size}\r\na\r\n0\r\n\r\n")), Err(BadBody::Chunk), "{size:?}");
        }
        assert_eq!(whole("0000000000000001\r\na\r\n0\r\n\r\n"), Ok(Some(data("a"))));
        assert_eq!(whole("fffffffffffff\r\na"), Ok(None));
    }

    #[test]
    fn each_line_ends_with_cr_lf_and_two_bytes_follow_the_data() {
        for text in ["1\na\r\n", "1\r\na\n", "1\r\nab\r\n", "1;x\na\r\n", "1\r\ra", "1\r\na\r\r", "\r\n"] {
            assert_eq!(whole(text), Err(BadBody::Chunk), "{text:?}");
        }
    }

    #[test]
    fn only_a_backend_may_pad_a_size() {
        let text = "1 \t\r\na\r\n0\r\n\r\n";
        assert_eq!(whole(text), Err(BadBody::Chunk));
        assert_eq!(decode(Sender::Backend, text.as_bytes(), &[3]), Ok(Some(data("a"))));
    }

    #[test]
    fn extensions_are_limited_in_a_line_and_in_a_body() {
        let line = |length| format!("1;{}\r\na\r\n", "x".repeat(length - 1));
        assert_eq!(whole(&line(MAX_LINE_EXTENSIONS)), Ok(None));
        assert_eq!(whole(&line(MAX_LINE_EXTENSIONS + 1)), Err(BadBody::Chunk));
        let lines = MAX_BODY_EXTENSIONS / MAX_LINE_EXTENSIONS;
        assert_eq!(whole(&line(MAX_LINE_EXTENSIONS).repeat(lines)), Ok(None));
        assert_eq!(whole(&line(MAX_LINE_EXTENSIONS).repeat(lines + 1)), Err(BadBody::Chunk));
    }

    #[test]
    fn trailers_are_kept_and_limited() {
        let mut decoder = Decoder::new(Sender::Client);
        let text = b"0\r\nA: b\r\nc: d\r\n\r\nrest";
        assert_eq!(decoder.step(text), Ok(Step::End { end: text.len() - 4 }));
        assert!(decoder.is_done());
        let trailers = decoder.take_trailers().unwrap();
        assert_eq!(trailers.iter().map(|field| field.name).collect::<Vec<_>>(), [b"A", b"c"]);

        assert_eq!(whole("0\r\nA: b\n"), Err(BadBody::Trailers));
        let long = format!("0\r\na: {}", "b".repeat(trailers::MAX_SIZE));
        assert_eq!(whole(&long), Err(BadBody::Trailers));
    }

    #[test]
    fn a_chunk_begins_with_its_size_in_hexadecimal() {
        for (size, text) in
            [(1, "1\r\n"), (16, "10\r\n"), (65_535, "ffff\r\n"), (usize::MAX, "ffffffffffffffff\r\n")]
        {
            assert_eq!(ChunkHead::new(NonZeroUsize::new(size).unwrap()).as_bytes(), text.as_bytes());
        }
    }

    fn encode(chunks: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for chunk in chunks {
            if let Some(size) = NonZeroUsize::new(chunk.len()) {
                bytes.extend_from_slice(ChunkHead::new(size).as_bytes());
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(CHUNK_END);
            }
        }
        [&bytes, LAST_CHUNK, CHUNK_END].concat()
    }

    /// Texts that are close to chunked bodies.
    fn texts() -> impl Strategy<Value = Vec<u8>> {
        let parts = prop::sample::select(vec![
            "0", "1", "2", "a", "\r\n", "\r\n", "\r", "\n", ";", "\"", "\\", " ", "\t", "x: y", "\0",
        ]);
        prop::collection::vec(parts, 0..30).prop_map(|parts| parts.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..6),
            rest in prop::collection::vec(any::<u8>(), 0..5),
            pieces in prop::collection::vec(1_usize..20, 1..8),
        ) {
            let bytes = [encode(&chunks), rest.clone()].concat();
            prop_assert_eq!(decode(Sender::Client, &bytes, &pieces).map(|decoded| decoded.map(|(data, _)| data)), Ok(Some(chunks.concat())));
            prop_assert_eq!(decode(Sender::Client, &bytes, &[bytes.len()]), Ok(Some((chunks.concat(), rest))));
        }

        #[test]
        fn the_result_does_not_depend_on_the_pieces(
            bytes in texts(),
            pieces in prop::collection::vec(1_usize..4, 1..8),
        ) {
            let in_pieces = decode(Sender::Backend, &bytes, &pieces).map(|decoded| decoded.map(|(data, _)| data));
            let whole = decode(Sender::Backend, &bytes, &[bytes.len()]).map(|decoded| decoded.map(|(data, _)| data));
            prop_assert_eq!(in_pieces, whole);
        }
    }
}
