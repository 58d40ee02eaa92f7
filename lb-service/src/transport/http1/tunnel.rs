//! Bytes in both directions after a change of protocol (RFC 9110, section 7.8).
//!
//! When one side has sent its last byte, the other side gets an end as well, and the other direction goes on: a program
//! may send all its input and then wait for the output.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::AsyncWrite;

use super::super::input::Input;
use super::super::output::Output;
use super::super::stream::Stream;
use super::super::upstream::Upstream;
use super::client::{Client, LOOK};
use crate::wire::body::Frame;

/// The bytes that a tunnel has carried.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Carried {
    pub(super) to_backend: u64,
    pub(super) to_client: u64,
}

/// One direction of a tunnel.
struct Direction<'a> {
    from: &'a mut Stream,
    input: &'a mut Input,
    to: &'a mut Stream,
    output: &'a mut Output,
    carried: &'a mut u64,
    has_ended: &'a mut bool,
}

/// Carries bytes until both sides have sent their last one, a connection breaks, or both are quiet for too long.
///
/// # Errors
///
/// If a connection breaks or both sides are quiet for too long.
pub(super) async fn run(
    client: &mut Client,
    upstream: &mut Upstream,
    quiet: Option<Duration>,
    carried: &mut Carried,
) -> io::Result<()> {
    let mut ended = (false, false);
    let mut quiet_until = quiet.map(|quiet| Instant::now() + quiet);
    std::future::poll_fn(|cx| {
        loop {
            let before = (carried.to_backend, carried.to_client);
            let up = Direction {
                from: &mut client.stream,
                input: &mut client.input,
                to: &mut upstream.stream,
                output: &mut upstream.output,
                carried: &mut carried.to_backend,
                has_ended: &mut ended.0,
            };
            let up = up.poll(cx)?;
            let down = Direction {
                from: &mut upstream.stream,
                input: &mut upstream.input,
                to: &mut client.stream,
                output: &mut client.output,
                carried: &mut carried.to_client,
                has_ended: &mut ended.1,
            };
            let down = down.poll(cx)?;
            if up.is_ready() && down.is_ready() {
                return Poll::Ready(Ok(()));
            }
            let now = Instant::now();
            if before != (carried.to_backend, carried.to_client) {
                quiet_until = quiet.map(|quiet| now + quiet);
                continue;
            }
            if quiet_until.is_some_and(|until| until <= now) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            // A side that has sent its last byte is not read, so no event reports that it has left.
            let is_half_closed = up.is_ready() || down.is_ready();
            if is_half_closed && (client.stream.is_broken() || upstream.stream.is_broken()) {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            let look_at = is_half_closed.then(|| now + LOOK);
            let Some(at) = [quiet_until, look_at].into_iter().flatten().min() else { return Poll::Pending };
            client.timer.set_at(at);
            ready!(client.timer.poll_expired(cx));
        }
    })
    .await
}

// === impl Direction ===

impl Direction<'_> {
    /// Carries what is there. Is ready when the direction has ended.
    fn poll(self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        if *self.has_ended {
            return Ok(Poll::Ready(()));
        }
        loop {
            let bytes = self.input.bytes().len();
            if bytes > 0 && self.output.has_room() {
                *self.carried += bytes as u64;
                self.output.push(Frame::Plain, self.input.take(bytes));
            }
            if !self.output.is_empty() {
                match self.output.poll_write(self.to, cx)? {
                    Poll::Ready(_) => continue,
                    Poll::Pending => return Ok(Poll::Pending),
                }
            }
            match self.input.poll_fill(self.from, cx)? {
                Poll::Ready(true) => {}
                Poll::Ready(false) => break,
                Poll::Pending => {
                    let _ = Pin::new(&mut *self.to).poll_flush(cx)?;
                    return Ok(Poll::Pending);
                }
            }
        }
        match Pin::new(&mut *self.to).poll_shutdown(cx) {
            Poll::Ready(_) => *self.has_ended = true,
            Poll::Pending => return Ok(Poll::Pending),
        }
        Ok(Poll::Ready(()))
    }
}
