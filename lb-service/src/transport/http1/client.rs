//! The side of the client: its bytes in both directions, and the time that it takes.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::super::input::Input;
use super::super::output::Output;
use super::super::splice::Pipes;
use super::super::stream::{Peer as _, Stream};
use super::super::timer::Timer;
use crate::exchange::{Fault, FaultKind};
use crate::traffic::ListenerTraffic;

/// The connection of a client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) stream: Stream,
    pub(super) input: Input,
    pub(super) output: Output,
    /// The timer for everything that the connection waits for.
    pub(super) timer: Timer,
    /// The pipes for large bodies, and what counts their bytes.
    pipes: (Pipes, Arc<ListenerTraffic>),
    /// The longest time in which the client reads nothing of a response.
    pub(super) pause: Duration,
}

/// The bytes that are read ahead while the proxy waits for something else. A client that sends more is no longer
/// watched for a disconnect.
const READ_AHEAD: usize = 64 * 1024;

/// The longest pause between two looks at connections on which no event may happen.
pub(super) const LOOK: Duration = Duration::from_secs(1);

// === impl Client ===

impl Client {
    pub(super) fn new(stream: Stream, pause: Duration, pipes: (Pipes, Arc<ListenerTraffic>)) -> Self {
        Self { stream, input: Input::default(), output: Output::default(), timer: Timer::new(), pipes, pause }
    }

    /// Gets a pipe for bytes from this connection. Returns whether there is one.
    pub(super) fn open_pipe(&mut self, from: &Stream) -> bool {
        let (pipes, traffic) = &self.pipes;
        let both = self.stream.tcp().and(from.tcp());
        self.output.set_pipe(both.and_then(|_| pipes.make(traffic)));
        self.output.pipe().is_some()
    }

    /// Gives the memory back of buffers without bytes.
    pub(super) fn release(&mut self) {
        self.input.release();
        self.output.release();
    }

    /// Is ready when the client has left. Bytes that arrive are kept.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_read_ahead(cx).map(drop)
    }

    /// Is ready when the connection is broken. A client that has sent its last byte may still read (RFC 9112, section
    /// 9.6).
    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match ready!(self.poll_read_ahead(cx)) {
            Ok(()) => Poll::Pending,
            Err(_) => Poll::Ready(()),
        }
    }

    /// Reads ahead. Is ready when the client has sent its last byte, or has broken the connection.
    fn poll_read_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.input.bytes().len() < READ_AHEAD {
            if !ready!(self.input.poll_fill(&mut self.stream, cx))? {
                return Poll::Ready(Ok(()));
            }
        }
        Poll::Pending
    }

    /// Returns whether no read notices that the client leaves: so much was read ahead that nothing more is read now, or
    /// the client has sent its last byte.
    pub(super) fn is_unwatched(&self) -> bool {
        self.input.bytes().len() >= READ_AHEAD || self.input.has_ended()
    }

    /// Waits for `done`, but no longer than the client: `None` if the client left.
    pub(super) async fn unless_gone<T>(&mut self, done: impl Future<Output = T>) -> Option<T> {
        let mut done = std::pin::pin!(done);
        std::future::poll_fn(|cx| match done.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending => self.poll_gone_or_broken(cx).map(|()| None),
        })
        .await
    }

    /// Is ready when the client has left. A client that is not read is looked at from time to time.
    fn poll_gone_or_broken(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.poll_gone(cx).is_ready() {
                return Poll::Ready(());
            }
            if !self.is_unwatched() {
                return Poll::Pending;
            }
            if self.stream.take_error() {
                return Poll::Ready(());
            }
            self.timer.set(Some(LOOK));
            ready!(self.timer.poll_expired(cx));
        }
    }

    /// Writes everything that waits.
    ///
    /// # Errors
    ///
    /// If the client has left, or reads nothing for too long.
    pub(super) async fn flush(&mut self) -> Result<(), Fault> {
        self.timer.set(Some(self.pause));
        std::future::poll_fn(|cx| self.poll_flush(cx)).await
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        while !self.output.is_empty() {
            match self.output.poll_write(&mut self.stream, cx) {
                Poll::Ready(Ok(_)) => self.timer.set(Some(self.pause)),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(fault(FaultKind::Closed))),
                Poll::Pending => {
                    ready!(self.timer.poll_expired(cx));
                    if self.output.write_now(&mut self.stream) == 0 {
                        return Poll::Ready(Err(fault(FaultKind::WriteTimeout)));
                    }
                    self.timer.set(Some(self.pause));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads bytes of the request.
    ///
    /// # Errors
    ///
    /// If the client has left, or has sent its last byte.
    pub(super) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let filled: io::Result<bool> = ready!(self.input.poll_fill(&mut self.stream, cx));
        Poll::Ready(if filled.unwrap_or(false) { Ok(()) } else { Err(fault(FaultKind::Closed)) })
    }
}

/// Returns a fault of the client.
pub(super) fn fault(kind: FaultKind) -> Fault {
    Fault::of_client(kind)
}
