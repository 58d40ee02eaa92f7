//! Bytes on their way to a peer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};

use super::splice::Pipe;
use super::stream::{Peer, Sent, Stream};
use crate::wire::body::Frame;
use crate::wire::chunked::CHUNK_END;

/// Bytes that wait for the peer to take them, in order: the front, the data, the back, and those in the pipe.
///
/// Heads, frames and small pieces are gathered in the front and the back. A large piece of a body is not copied.
#[derive(Debug, Default)]
pub(crate) struct Output {
    front: Vec<u8>,
    data: Bytes,
    back: Vec<u8>,
    /// The bytes of the front that the peer has taken.
    taken: usize,
    /// The way of a large body past the process.
    pipe: Option<Box<Pipe>>,
}

/// A piece of a body that is not larger is copied, so that it leaves in one packet with its head.
const COPIED: usize = 2048;
/// The front takes no more pieces when it has this many bytes.
const FULL: usize = 16 * 1024;

// === impl Output ===

impl Output {
    /// Returns whether the peer has taken everything.
    pub(crate) fn is_empty(&self) -> bool {
        self.is_piped() && self.pipe.as_ref().is_none_or(|pipe| pipe.is_empty())
    }

    /// Returns whether the peer has taken everything except the bytes in the pipe.
    fn is_piped(&self) -> bool {
        self.front.is_empty() && self.data.is_empty() && self.back.is_empty()
    }

    /// Returns whether another piece can be added before the peer takes some.
    pub(crate) fn has_room(&self) -> bool {
        let is_full = self.pipe.as_ref().is_some_and(|pipe| !pipe.is_empty());
        self.data.is_empty() && self.front.len() < FULL && !is_full
    }

    /// Returns the pipe for more bytes, which must be [empty](Self::has_room) then.
    pub(crate) fn pipe(&mut self) -> Option<&mut Pipe> {
        self.pipe.as_deref_mut()
    }

    /// Sets the pipe for bytes that leave after those which wait, or removes an empty one.
    pub(crate) fn set_pipe(&mut self, pipe: Option<Pipe>) {
        self.pipe = pipe.map(Box::new);
    }

    /// Returns the bytes to which a head or the end of a body is appended.
    pub(crate) fn text(&mut self) -> &mut Vec<u8> {
        if self.data.is_empty() { &mut self.front } else { &mut self.back }
    }

    /// Adds a piece of a body. There must be [room](Self::has_room) for it.
    pub(crate) fn push(&mut self, frame: Frame, data: Bytes) {
        if let Frame::Chunk(head) = &frame {
            self.text().extend_from_slice(head.as_bytes());
        }
        if data.len() <= COPIED || !self.data.is_empty() {
            self.text().extend_from_slice(&data);
        } else {
            self.data = data;
        }
        if let Frame::Chunk(_) = frame {
            self.text().extend_from_slice(CHUNK_END);
        }
    }

    /// Gives the memory back if there are no bytes.
    pub(crate) fn release(&mut self) {
        if self.is_empty() {
            self.clear();
        }
    }

    /// Forgets everything that the peer has not taken.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Writes until the peer has taken everything. The result is the number of bytes that were written, which is not
    /// lost when the write is interrupted: see [`poll_write`](Self::poll_write).
    pub(crate) fn poll_flush(
        &mut self,
        stream: &mut impl Peer,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            ready!(self.poll_write(stream, cx))?;
        }
        Pin::new(stream).poll_flush(cx)
    }

    /// Writes once, as much as the peer takes. Returns the number of bytes, which is not 0.
    pub(crate) fn poll_write(
        &mut self,
        stream: &mut impl Peer,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let is_piped = self.is_piped();
        let written = match (&mut self.pipe, stream.tcp()) {
            (Some(pipe), Some(tcp)) if is_piped => ready!(pipe.poll_drain(tcp, cx))?,
            _ => ready!(self.poll_write_slices(stream, cx))?,
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        Poll::Ready(Ok(written))
    }

    fn poll_write_slices(&mut self, stream: &mut impl Peer, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let slices = self.slices();
        let written = if self.data.is_empty() && self.back.is_empty() {
            ready!(Pin::new(stream).poll_write(cx, &slices[0]))?
        } else {
            ready!(Pin::new(stream).poll_write_vectored(cx, &slices))?
        };
        self.take(written);
        Poll::Ready(Ok(written))
    }

    /// Writes once without asking the runtime whether the system has room, and never waits. Returns the number of bytes
    /// that the system has taken, which is 0 if it has no room or the connection is broken.
    pub(crate) fn write_now(&mut self, stream: &mut Stream) -> usize {
        if self.is_empty() && !stream.is_tls() {
            return 0;
        }
        let is_piped = self.is_piped();
        if let (Some(pipe), Some(tcp)) = (&mut self.pipe, stream.tcp())
            && is_piped
        {
            return pipe.drain_now(tcp).unwrap_or_default();
        }
        let Sent { plain, total } = stream.send_now(&self.slices()).unwrap_or_default();
        self.take(plain);
        total
    }

    #[expect(clippy::indexing_slicing, reason = "`take` keeps the number of taken bytes within the front")]
    fn slices(&self) -> [IoSlice<'_>; 3] {
        [IoSlice::new(&self.front[self.taken..]), IoSlice::new(&self.data), IoSlice::new(&self.back)]
    }

    fn take(&mut self, written: usize) {
        let of_front = written.min(self.front.len() - self.taken);
        self.taken += of_front;
        if self.taken < self.front.len() {
            return;
        }
        self.front.clear();
        let of_data = (written - of_front).min(self.data.len());
        self.data.advance(of_data);
        self.taken = written - of_front - of_data;
        if self.data.is_empty() {
            // This also gives the buffer of the reader back, which it uses again.
            self.data = Bytes::new();
            // The back moves to the front, where more can be appended.
            std::mem::swap(&mut self.front, &mut self.back);
            if self.taken == self.front.len() {
                self.front.clear();
                self.taken = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use futures::task::noop_waker_ref;
    use proptest::prelude::*;
    use tokio::io::AsyncWrite;
    use tokio::net::TcpStream;

    use super::*;
    use crate::wire::chunked::ChunkHead;

    /// Takes a few bytes with each write.
    struct Slow(Vec<u8>, usize);

    impl AsyncWrite for Slow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let take = bytes.len().min(self.1);
            self.0.extend_from_slice(&bytes[..take]);
            Poll::Ready(Ok(take))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            let take = bytes.len().min(self.1);
            self.0.extend_from_slice(&bytes[..take]);
            Poll::Ready(Ok(take))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl Peer for Slow {
        fn tcp(&self) -> Option<&TcpStream> {
            None
        }
    }

    fn frame(is_chunk: bool, size: usize) -> Frame {
        match NonZeroUsize::new(size).filter(|_| is_chunk) {
            Some(size) => Frame::Chunk(ChunkHead::new(size)),
            None => Frame::Plain,
        }
    }

    #[test]
    fn an_output_without_bytes_gives_its_memory_back() {
        let (mut output, mut cx) = (Output::default(), Context::from_waker(noop_waker_ref()));
        output.text().extend_from_slice(&[b'a'; 100_000]);
        output.release();
        assert!(!output.is_empty(), "it has bytes for the peer");
        assert!(output.poll_flush(&mut Slow(Vec::new(), 70_000), &mut cx).is_ready());
        output.release();
        assert_eq!((output.front.capacity(), output.back.capacity()), (0, 0));
    }

    #[test]
    fn a_peer_that_takes_nothing_is_an_error() {
        let (mut output, mut cx) = (Output::default(), Context::from_waker(noop_waker_ref()));
        output.text().push(b'a');
        let Poll::Ready(Err(error)) = output.poll_flush(&mut Slow(Vec::new(), 0), &mut cx) else {
            panic!("an error")
        };
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }

    proptest! {
        #[test]
        fn bytes_leave_in_order_however_many_the_peer_takes(
            pieces in prop::collection::vec((0_usize..5000, any::<bool>()), 0..8),
            step in 1_usize..3000,
        ) {
            let mut cx = Context::from_waker(noop_waker_ref());
            let (mut output, mut peer, mut expected) = (Output::default(), Slow(Vec::new(), step), Vec::new());
            for (index, (size, is_chunk)) in pieces.into_iter().enumerate() {
                while !output.has_room() {
                    prop_assert!(output.poll_write(&mut peer, &mut cx).is_ready());
                }
                output.text().extend_from_slice(b"head");
                let data = vec![index as u8; size];
                output.push(frame(is_chunk, size), data.clone().into());
                expected.extend_from_slice(b"head");
                let head = NonZeroUsize::new(size).filter(|_| is_chunk).map(ChunkHead::new);
                expected.extend_from_slice(head.as_ref().map_or(b"", |head| head.as_bytes()));
                expected.extend_from_slice(&data);
                expected.extend_from_slice(head.map_or(b"", |_| CHUNK_END));
            }
            let Poll::Ready(Ok(())) = output.poll_flush(&mut peer, &mut cx) else { panic!("it takes everything") };
            prop_assert!(output.is_empty());
            prop_assert_eq!(peer.0, expected);
        }
    }
}
