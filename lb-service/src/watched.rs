//! A client's stream that notices when Pingora answers a request by itself, and that waits as [`Patience`] says.
//!
//! Pingora refuses what it cannot read as HTTP, and CONNECT, before any callback of the proxy runs, and tells nobody. What is
//! written before the proxy has seen the request is such an answer.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::patience::Patience;
use crate::traffic::Connection;

/// A stream that looks at what is written before the proxy has seen a request.
#[derive(Debug)]
pub(crate) struct Watched {
    inner: Stream,
    connection: Arc<Connection>,
    /// What arrived while nothing was delivered.
    ahead: BytesMut,
    /// Wakes the reader at the deadline that it was set to.
    timer: Option<(Instant, Pin<Box<Sleep>>)>,
}

/// As much is read ahead; a client that sends more is not seen to leave.
const MAX_AHEAD: usize = 64 * 1024;
const AHEAD_STEP: usize = 4096;

/// The status in the first bytes of an HTTP/1 response: `HTTP/1.1 400 Bad Request`.
fn status(head: &[u8]) -> Option<u16> {
    let digits = head.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    str::from_utf8(digits).ok()?.parse().ok()
}

impl Watched {
    pub(crate) fn new(inner: Stream, connection: Arc<Connection>) -> Self {
        Self { inner, connection, ahead: BytesMut::new(), timer: None }
    }

    fn patience(&self) -> &Patience {
        &self.connection.patience
    }

    /// Reads until the end of the stream, and keeps it all.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut space = [const { MaybeUninit::uninit() }; AHEAD_STEP];
        while self.ahead.len() < MAX_AHEAD {
            let mut read = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.ahead.extend_from_slice(read.filled());
        }
        Poll::Pending
    }

    fn deliver_ahead(&mut self, buf: &mut ReadBuf<'_>) {
        let n = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead.split_to(n));
        if self.ahead.is_empty() {
            self.ahead = BytesMut::new();
        }
    }

    /// Whether the deadline has passed; wakes the reader when it does.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.patience().deadline() else { return Poll::Pending };
        if self.timer.as_ref().is_none_or(|(set, _)| *set != deadline) {
            self.timer = Some((deadline, Box::pin(tokio::time::sleep_until(deadline))));
        }
        let (_, timer) = self.timer.as_mut().expect("it was set");
        ready!(timer.as_mut().poll(cx));
        self.patience().expire();
        Poll::Ready(())
    }

    fn look_at(&self, written: &[u8]) {
        if self.connection.is_unseen()
            && let Some(status) = status(written)
        {
            self.connection.record_pingora_status(status);
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.patience().is_held() {
            return self.poll_end(cx);
        }
        if self.poll_deadline(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if !self.ahead.is_empty() {
            self.deliver_ahead(buf);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.look_at(buf);
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.look_at(bufs.first().map_or(&[], |first| first));
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for Watched {
    async fn shutdown(&mut self) {
        self.inner.shutdown().await;
    }
}

impl UniqueID for Watched {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

impl Ssl for Watched {}

#[async_trait]
impl Peek for Watched {
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        self.inner.try_peek(buf).await
    }
}

impl GetTimingDigest for Watched {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.inner.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.inner.get_write_pending_time()
    }
}

impl GetProxyDigest for Watched {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.get_proxy_digest()
    }
}

impl GetSocketDigest for Watched {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_read_from_the_first_bytes_of_an_answer() {
        assert_eq!(status(b"HTTP/1.1 400 Bad Request\r\n"), Some(400));
        assert_eq!(status(b"HTTP/1.0 405 "), Some(405));
        for other in [&b""[..], b"HTTP/1.", b"HTTP/1.1 4", b"HTTP/2 400 ", b"hello, world", b"HTTP/1.1 abc"] {
            assert_eq!(status(other), None, "{other:?}");
        }
    }
}
