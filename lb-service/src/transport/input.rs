//! Bytes that a peer has sent and that were not used yet.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Bytes that a peer has sent.
#[derive(Debug, Default)]
pub(crate) struct Input {
    bytes: BytesMut,
    has_ended: bool,
}

/// The bytes that are read at a time.
const STEP: usize = 16 * 1024;
/// The bytes of the first read of a head, which goes to the stack, so that a waiting connection has no buffer.
const FIRST_STEP: usize = 4096;

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

    /// Takes the bytes before `end`.
    pub(crate) fn take(&mut self, end: usize) -> Bytes {
        self.bytes.split_to(end).freeze()
    }

    /// Drops the bytes before `end`.
    pub(crate) fn skip(&mut self, end: usize) {
        let _ = self.bytes.split_to(end);
    }

    /// Gives the memory back if there are no bytes.
    pub(crate) fn release(&mut self) {
        if self.bytes.is_empty() {
            self.bytes = BytesMut::new();
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
        self.bytes.reserve(STEP);
        let read = ready!(poll_read_buf(Pin::new(stream), cx, &mut self.bytes))?;
        Poll::Ready(Ok(self.has_read(read)))
    }

    /// Reads the first bytes of a message, as [`poll_fill`](Self::poll_fill) does, with no large buffer while it waits.
    pub(crate) fn poll_first(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<bool>> {
        if self.has_ended {
            return Poll::Ready(Ok(false));
        }
        let mut space = [const { MaybeUninit::uninit() }; FIRST_STEP];
        let mut read = ReadBuf::uninit(&mut space);
        ready!(Pin::new(stream).poll_read(cx, &mut read))?;
        self.bytes.extend_from_slice(read.filled());
        Poll::Ready(Ok(self.has_read(read.filled().len())))
    }

    /// Records the result of a read, and returns whether there were any bytes.
    fn has_read(&mut self, length: usize) -> bool {
        self.has_ended = length == 0;
        !self.has_ended
    }
}
