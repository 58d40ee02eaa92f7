//! The body of a request: decoded as it arrives, and kept for another attempt as long as it is small.

use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::client::{Client, fault};
use crate::exchange::{Fault, FaultKind};
use crate::wire::body::BodyReader;
use crate::wire::chunked::{BadBody, Sender, Step};
use crate::wire::fields::FieldLines;
use crate::wire::framing::Length;
use crate::wire::rejection::Rejection;

/// The body of one request.
#[derive(Debug)]
pub(super) struct RequestBody {
    reader: BodyReader,
    has_ended: bool,
    trailers: Option<FieldLines>,
    /// The bytes of the body that have arrived.
    pub(super) read: u64,
    /// The bytes that have arrived, for another attempt. They are copied: a piece would keep the whole buffer that it
    /// was read into.
    kept: Vec<u8>,
    /// Whether a byte that arrived is not kept.
    is_lost: bool,
    /// The largest number of bytes; `None` means no limit.
    limit: Option<u64>,
    /// The number of bytes that the head announced, or 0.
    announced: u64,
}

/// The next part of a body.
#[derive(Debug)]
pub(super) enum Piece {
    /// Some bytes.
    Data(Bytes),
    /// The body is complete.
    End,
}

/// The place of one attempt in the kept bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place(usize);

/// The bytes that are kept for another attempt. A longer body is sent once.
const KEPT: usize = 64 * 1024;

// === impl RequestBody ===

impl RequestBody {
    /// Returns the body of a request whose head announced this length, with at most `limit` bytes.
    pub(super) fn new(length: Length, limit: Option<u64>) -> Self {
        let announced = if let Length::Known(length) = length { length } else { 0 };
        Self {
            reader: BodyReader::new(length, Sender::Client),
            has_ended: matches!(length, Length::None | Length::Known(0)),
            trailers: None,
            read: 0,
            kept: Vec::new(),
            is_lost: false,
            limit,
            announced,
        }
    }

    /// Returns whether the head announced more bytes than are allowed.
    pub(super) fn is_announced_too_large(&self) -> bool {
        self.limit.is_some_and(|limit| self.announced > limit)
    }

    /// Returns whether all of it has arrived.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Returns whether another attempt can send all of it.
    pub(super) fn is_replayable(&self) -> bool {
        !self.is_lost
    }

    /// Returns the fault of a client that is gone. One that has ended its request before the end of the body may still
    /// read a response.
    pub(super) fn gone(&self, client: &Client) -> Fault {
        if self.has_ended || !client.input.has_ended() {
            return fault(FaultKind::Closed);
        }
        match self.reader.ends_within(client.input.bytes()) {
            Ok(true) => fault(FaultKind::Closed),
            Ok(false) => fault(FaultKind::Rejected(Rejection::TruncatedBody)),
            Err(reason) => rejected(reason),
        }
    }

    /// Returns the trailers, once it has ended.
    pub(super) fn trailers(&self) -> Option<&FieldLines> {
        self.trailers.as_ref()
    }

    /// Returns the next piece for an attempt.
    ///
    /// # Errors
    ///
    /// If the client leaves, or sends something else than the head announced.
    pub(super) fn poll_piece(
        &mut self,
        place: &mut Place,
        client: &mut Client,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Piece, Fault>> {
        let rest = self.kept.get(place.0..).unwrap_or_default();
        if !rest.is_empty() {
            place.0 = self.kept.len();
            return Poll::Ready(Ok(Piece::Data(Bytes::copy_from_slice(rest))));
        }
        let piece = ready!(self.poll_arriving(client, cx))?;
        if let Piece::Data(data) = &piece {
            self.keep(data);
            place.0 = self.kept.len();
        }
        Poll::Ready(Ok(piece))
    }

    fn poll_arriving(&mut self, client: &mut Client, cx: &mut Context<'_>) -> Poll<Result<Piece, Fault>> {
        loop {
            if self.has_ended {
                return Poll::Ready(Ok(Piece::End));
            }
            let step = self.reader.step(client.input.bytes());
            match step.map_err(rejected)? {
                Step::Incomplete => {
                    client.input.skip(client.input.bytes().len());
                    ready!(client.poll_more(cx)).map_err(|fault| truncated(client, fault))?;
                }
                Step::Data { start, end } => {
                    let data = client.input.take(start, end);
                    self.read += data.len() as u64;
                    if self.limit.is_some_and(|limit| self.read > limit) {
                        return Poll::Ready(Err(fault(FaultKind::TooLarge)));
                    }
                    return Poll::Ready(Ok(Piece::Data(data)));
                }
                Step::End { end } => {
                    client.input.skip(end);
                    self.has_ended = true;
                    let trailers = self.reader.take_trailers();
                    self.trailers = trailers.map_err(rejected)?;
                }
            }
        }
    }

    fn keep(&mut self, data: &Bytes) {
        self.is_lost |= self.announced > KEPT as u64 || self.kept.len() + data.len() > KEPT;
        if self.is_lost {
            self.kept = Vec::new();
        } else {
            self.kept.extend_from_slice(data);
        }
    }
}

/// Returns the fault of a client whose next bytes could not be read. It may still read a response if it has only ended
/// its own direction.
fn truncated(client: &Client, broken: Fault) -> Fault {
    if client.input.has_ended() { fault(FaultKind::Rejected(Rejection::TruncatedBody)) } else { broken }
}

/// Returns the fault of a client whose body does not follow the grammar.
fn rejected(reason: BadBody) -> Fault {
    fault(FaultKind::Rejected(Rejection::of_body(reason)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(length: Length) -> RequestBody {
        RequestBody::new(length, None)
    }

    #[test]
    fn small_pieces_of_a_large_buffer_are_kept_in_one_small_buffer() {
        let mut body = body(Length::Chunked);
        for _ in 0..1000 {
            let read = Bytes::from(vec![b'a'; 16 * 1024]);
            body.keep(&read.slice(..1));
        }
        assert!(body.is_replayable() && body.kept.len() == 1000);
        assert!(body.kept.capacity() < 4096, "{}", body.kept.capacity());
    }

    #[test]
    fn a_body_is_kept_up_to_a_limit() {
        let mut chunked = body(Length::Chunked);
        chunked.keep(&Bytes::from(vec![b'a'; KEPT]));
        assert!(chunked.is_replayable());
        chunked.keep(&Bytes::from_static(b"a"));
        assert!(!chunked.is_replayable() && chunked.kept.capacity() == 0);
        let mut announced = body(Length::Known(KEPT as u64 + 1));
        assert!(announced.is_replayable(), "no byte of it was sent");
        announced.keep(&Bytes::from_static(b"a"));
        assert!(!announced.is_replayable() && announced.kept.capacity() == 0);
    }
}
