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

/// The bytes that a tunnel has carried, also if its future is dropped.
#[derive(Debug)]
pub(super) struct Carried<'a> {
    pub(super) to_backend: &'a mut u64,
    pub(super) to_client: &'a mut u64,
}

/// Both connections of a tunnel.
struct Tunnel<'a> {
    client: &'a mut Client,
    upstream: &'a mut Upstream,
    carried: Carried<'a>,
    /// Whether the direction to the backend, and the one to the client, has ended.
    ended: (bool, bool),
    /// The writes so far, in both directions.
    writes: u64,
    quiet: Option<Duration>,
    /// The time at which both sides have been quiet for too long; `None` means no limit.
    quiet_until: Option<Instant>,
    /// The next look at connections on which no event may happen.
    look_at: Instant,
}

/// One direction of a tunnel.
struct Direction<'a> {
    from: &'a mut Stream,
    input: &'a mut Input,
    to: &'a mut Stream,
    output: &'a mut Output,
    carried: &'a mut u64,
    writes: &'a mut u64,
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
    carried: Carried<'_>,
) -> io::Result<()> {
    let now = Instant::now();
    let quiet_until = quiet.map(|quiet| now + quiet);
    let (ended, writes, look_at) = ((false, false), 0, now + pause_between_looks(quiet));
    let mut tunnel = Tunnel { client, upstream, carried, ended, writes, quiet, quiet_until, look_at };
    std::future::poll_fn(|cx| tunnel.poll(cx)).await
}

// === impl Tunnel ===

impl Tunnel<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let before = self.progress();
            let (up, down) = (self.up().poll(cx)?, self.down().poll(cx)?);
            if up.is_ready() && down.is_ready() {
                return Poll::Ready(Ok(()));
            }
            let now = Instant::now();
            if self.progress() != before {
                self.quiet_until = self.quiet.map(|quiet| now + quiet);
                continue;
            }
            ready!(self.poll_waiting(now, cx))?;
        }
    }

    fn progress(&self) -> (u64, u64, u64) {
        (*self.carried.to_backend, *self.carried.to_client, self.writes)
    }

    /// Is ready when it is time for another look. Fails if both sides have been quiet for too long.
    fn poll_waiting(&mut self, now: Instant, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.quiet_until.is_some_and(|until| until <= now) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let is_stuck = self.is_stuck();
        if is_stuck && self.look_at <= now {
            self.look(now)?;
        }
        let look_at = is_stuck.then_some(self.look_at);
        let Some(at) = [self.quiet_until, look_at].into_iter().flatten().min() else { return Poll::Pending };
        self.client.timer.set_at(at);
        self.client.timer.poll_expired(cx).map(Ok)
    }

    /// Returns whether no event might report what a side does: a side that has sent its last byte is not read, and room
    /// for a write is reported late.
    fn is_stuck(&self) -> bool {
        let has_ended = self.client.input.has_ended() || self.upstream.input.has_ended();
        has_ended || !self.client.output.is_empty() || !self.upstream.output.is_empty()
    }

    /// Writes what the sides take now.
    ///
    /// # Errors
    ///
    /// If a side has left.
    fn look(&mut self, now: Instant) -> io::Result<()> {
        self.look_at = now + pause_between_looks(self.quiet);
        let (client, upstream) = (&mut *self.client, &mut *self.upstream);
        if client.stream.take_error() || upstream.stream.take_error() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let written =
            client.output.write_now(&mut client.stream) + upstream.output.write_now(&mut upstream.stream);
        if written > 0 {
            self.quiet_until = self.quiet.map(|quiet| now + quiet);
        }
        Ok(())
    }

    fn up(&mut self) -> Direction<'_> {
        Direction {
            from: &mut self.client.stream,
            input: &mut self.client.input,
            to: &mut self.upstream.stream,
            output: &mut self.upstream.output,
            carried: self.carried.to_backend,
            writes: &mut self.writes,
            has_ended: &mut self.ended.0,
        }
    }

    fn down(&mut self) -> Direction<'_> {
        Direction {
            from: &mut self.upstream.stream,
            input: &mut self.upstream.input,
            to: &mut self.client.stream,
            output: &mut self.client.output,
            carried: self.carried.to_client,
            writes: &mut self.writes,
            has_ended: &mut self.ended.1,
        }
    }
}

fn pause_between_looks(quiet: Option<Duration>) -> Duration {
    quiet.map_or(LOOK, |quiet| quiet.min(LOOK))
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
                self.output.push(Frame::Plain, self.input.take(0, bytes));
            }
            if !self.output.is_empty() {
                match self.output.poll_write(self.to, cx)? {
                    Poll::Ready(_) => *self.writes += 1,
                    Poll::Pending => return Ok(Poll::Pending),
                }
                continue;
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
