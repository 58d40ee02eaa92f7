//! Bytes that a peer has sent and that were not used yet.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Bytes that a peer has sent.
#[derive(Debug, Default)]
pub(crate) struct Input {
    bytes: BytesMut,
    has_ended: bool,
    /// Whether a read has filled all its space, so that more bytes probably follow.
    is_flowing: bool,
}

/// The bytes of a read as long as little arrives. They go to the stack, so that a connection that waits has no buffer.
const STEP: usize = 16 * 1024;
/// The bytes of a read while many bytes flow. They stay where they were read into until the other side has taken them.
/// A peer that stops to read holds as much.
const FLOW_STEP: usize = 32 * 1024;

// === impl Input ===

impl Input {
    /// Returns the unused bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns whether the peer has sent its last byte.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Takes the bytes from `start` to `end`, and drops those before them.
    pub(crate) fn take(&mut self, start: usize, end: usize) -> Bytes {
        let mut taken = match end == self.bytes.len() && !self.is_flowing {
            // The whole buffer costs less than a part of it.
            true => std::mem::take(&mut self.bytes).freeze(),
            false => self.bytes.split_to(end).freeze(),
        };
        taken.advance(start);
        taken
    }

    /// Drops the bytes before `end`.
    pub(crate) fn skip(&mut self, end: usize) {
        self.bytes.advance(end);
    }

    /// Gives the memory back if there are no bytes.
    pub(crate) fn release(&mut self) {
        if self.bytes.is_empty() {
            (self.bytes, self.is_flowing) = (BytesMut::new(), false);
        }
    }

    /// Reads some bytes. Returns whether there were any; `false` means that the peer has sent its last byte.
    pub(crate) fn poll_fill(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<bool>> {
        if self.has_ended {
            return Poll::Ready(Ok(false));
        }
        let read = match self.is_flowing {
            true => ready!(self.poll_flow(stream, cx))?,
            false => ready!(self.poll_step(stream, cx))?,
        };
        self.has_ended = read == 0;
        Poll::Ready(Ok(!self.has_ended))
    }

    /// Reads without a copy, into a buffer that is used again once nothing refers to its bytes.
    fn poll_flow(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.bytes.reserve(FLOW_STEP);
        poll_read_buf(Pin::new(stream), cx, &mut self.bytes)
    }

    /// Reads onto the stack, and keeps as much memory as there are bytes.
    // Otherwise the space would be in the frame of the caller, below all calls that the caller makes.
    #[inline(never)]
    fn poll_step(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut space = [const { MaybeUninit::uninit() }; STEP];
        let mut read = ReadBuf::uninit(&mut space);
        ready!(Pin::new(stream).poll_read(cx, &mut read))?;
        self.bytes.extend_from_slice(read.filled());
        self.is_flowing = read.remaining() == 0;
        Poll::Ready(Ok(read.filled().len()))
    }
}
