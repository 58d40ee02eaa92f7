//! A stream that records the type of the first frame it receives.
//!
//! An HTTP/2 server starts with a SETTINGS frame (RFC 9113, section 3.4). The `h2` crate reports anything else as a
//! broken frame or as the end of the stream. The first frame distinguishes a backend that uses another protocol from
//! one whose HTTP/2 connection failed.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Offset of the type of a frame, after three bytes of length.
const TYPE: usize = 3;

/// The type of a SETTINGS frame.
const SETTINGS: u8 = 4;

/// The type of the first frame, once it is known. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct FirstFrame(Arc<OnceLock<u8>>);

/// A stream that records the type of its first frame.
#[derive(Debug)]
pub(super) struct Noting<S> {
    stream: S,
    first: FirstFrame,
    /// Bytes read so far, up to the type of the first frame.
    read: usize,
}

// === impl FirstFrame ===

impl FirstFrame {
    /// Whether the first frame is SETTINGS; `None` before its type has arrived.
    pub(super) fn is_settings(&self) -> Option<bool> {
        self.0.get().map(|kind| *kind == SETTINGS)
    }

    #[cfg(test)]
    pub(super) fn of(kind: Option<u8>) -> Self {
        Self(Arc::new(kind.map_or_else(OnceLock::new, OnceLock::from)))
    }
}

// === impl Noting ===

impl<S> Noting<S> {
    pub(super) fn new(stream: S, first: FirstFrame) -> Self {
        Self { stream, first, read: 0 }
    }

    fn note(&mut self, bytes: &[u8]) {
        if self.read > TYPE {
            return;
        }
        if let Some(kind) = bytes.get(TYPE - self.read) {
            self.first.0.get_or_init(|| *kind);
        }
        self.read += bytes.len().min(TYPE + 1);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Noting<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.note(buffer.filled().get(before..).unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noting<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result after these reads.
    fn after(reads: &[&[u8]]) -> Option<bool> {
        let first = FirstFrame::default();
        let mut noting = Noting::new((), first.clone());
        for bytes in reads {
            noting.note(bytes);
        }
        first.is_settings()
    }

    const EMPTY_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

    #[test]
    fn settings_are_recognized_in_one_or_several_reads() {
        assert_eq!(after(&[EMPTY_SETTINGS]), Some(true));
        assert_eq!(after(&[&EMPTY_SETTINGS[..3], &EMPTY_SETTINGS[3..]]), Some(true));
        let bytes: Vec<&[u8]> = EMPTY_SETTINGS.chunks(1).collect();
        assert_eq!(after(&bytes), Some(true));
    }

    #[test]
    fn only_the_first_frame_counts() {
        assert_eq!(after(&[b"HTTP/1.1 400 Bad Request\r\n", EMPTY_SETTINGS]), Some(false));
        assert_eq!(after(&[EMPTY_SETTINGS, b"HTTP/1.1 400 Bad Request\r\n"]), Some(true));
    }

    #[test]
    fn the_result_is_unknown_before_the_type_has_arrived() {
        assert_eq!(after(&[]), None);
        assert_eq!(after(&[b"HTT"]), None);
    }
}
