//! HTTP/1.1 over tokio, for both ends of the run: heads, and bodies with a length.

use std::io::{self, ErrorKind};

use tests::wire::{Framing, Head};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A connection, with the bytes that were received and not used yet.
pub(crate) struct Wire {
    /// The connection. A caller that reads from it loses the bytes that are in the buffer.
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

// ===== impl Wire =====

impl Wire {
    /// Wraps a stream from which nothing has been read.
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Sends bytes unchanged.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Reads a head. Returns `None` if the peer closed before its first byte.
    pub(crate) async fn head(&mut self) -> io::Result<Option<Head>> {
        let mut seen = 0;
        loop {
            let from = usize::saturating_sub(seen, 3);
            if let Some(at) = self.buffer[from..].windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let rest = self.buffer.split_off(from + at + 4);
                return Head::parse(std::mem::replace(&mut self.buffer, rest)).map(Some);
            }
            seen = self.buffer.len();
            if !self.fill().await? {
                return if seen == 0 { Ok(None) } else { Err(ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// Reads the body that belongs to a head, and passes it to `sink` piece by piece. A head without a length has no
    /// body.
    pub(crate) async fn body(&mut self, head: &Head, mut sink: impl FnMut(&[u8])) -> io::Result<()> {
        let Some(Framing::Length(mut left)) = head.framing() else { return Ok(()) };
        while left > 0 {
            if self.buffer.is_empty() && !self.fill().await? {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let length = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            sink(&self.buffer[..length]);
            self.buffer.drain(..length);
            left -= length as u64;
        }
        Ok(())
    }

    /// Reads some bytes. Returns whether there were any; `false` means that the peer has sent its last byte.
    pub(crate) async fn fill(&mut self) -> io::Result<bool> {
        self.buffer.reserve(4096);
        Ok(self.stream.read_buf(&mut self.buffer).await? > 0)
    }
}
