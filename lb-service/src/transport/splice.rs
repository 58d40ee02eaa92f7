//! Large bodies between two TCP connections: the system moves them through a pipe, and no byte is copied to the
//! process.
//!
//! A pipe costs two descriptors, memory of the system, and several system calls. So only a large rest of a body passes
//! through one, and only [`MAX_PIPES`] do at the same time. Everything else is copied.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::io::retry_on_intr;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use rustix::process::{Resource, getrlimit};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::traffic::ListenerTraffic;

/// The pipes of a process. Clones share their number.
#[derive(Clone, Debug)]
pub(crate) struct Pipes(Arc<Semaphore>);

/// A pipe between a backend and a client.
#[derive(Debug)]
pub(crate) struct Pipe {
    entry: OwnedFd,
    exit: OwnedFd,
    /// The bytes in the pipe.
    filled: usize,
    /// Counts the bytes.
    traffic: Arc<ListenerTraffic>,
    _place: OwnedSemaphorePermit,
}

/// The rest of a body that is worth a pipe.
const WORTHWHILE: u64 = 256 * 1024;
/// The size of a pipe, which is 64 pages on most systems.
const SIZE: usize = 256 * 1024;
/// The largest number of pipes. They have half of the 16,384 pages that an unprivileged user has for pipes, so that two
/// processes can take turns. Beyond that the system makes pipes of one or two pages.
const MAX_PIPES: usize = 128;
/// One pipe is allowed for this number of open files, so that most of them are left for connections.
const FILES_PER_PIPE: u64 = 32;

/// Nothing waits: neither for the pipe, nor for sockets, which are non-blocking anyway.
const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);

/// Returns whether a body of which so much has not arrived is worth a pipe.
pub(crate) fn is_worthwhile(rest: u64) -> bool {
    rest >= WORTHWHILE
}

fn move_bytes(from: &impl AsFd, to: &impl AsFd, most: usize) -> io::Result<usize> {
    Ok(retry_on_intr(|| splice(from, None, to, None, most, FLAGS))?)
}

// === impl Pipes ===

impl Default for Pipes {
    /// Returns as many pipes as the limit of open files allows.
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(number(getrlimit(Resource::Nofile).current))))
    }
}

/// Returns the number of pipes for this limit of open files; `None` means that there is no limit.
fn number(files: Option<u64>) -> usize {
    let pipes = files.map(|files| files / FILES_PER_PIPE);
    pipes.and_then(|pipes| usize::try_from(pipes).ok()).unwrap_or(MAX_PIPES).min(MAX_PIPES)
}

impl Pipes {
    /// Makes a pipe for a connection of this listener; `None` if there are too many, or the system allows none.
    pub(crate) fn make(&self, traffic: &Arc<ListenerTraffic>) -> Option<Pipe> {
        let place = self.0.clone().try_acquire_owned().ok()?;
        let (exit, entry) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        // A small pipe would need more system calls than copies do.
        fcntl_setpipe_size(&entry, SIZE).ok()?;
        Some(Pipe { entry, exit, filled: 0, traffic: traffic.clone(), _place: place })
    }
}

// === impl Pipe ===

impl Pipe {
    /// Returns whether there are no bytes in the pipe.
    pub(crate) fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Moves at most `rest` bytes from the socket to the pipe. Returns their number, which is 0 if the peer has sent
    /// its last byte.
    ///
    /// The pipe must be empty: the system gives the same error for a full pipe as for a socket without bytes.
    pub(crate) fn poll_fill(
        &mut self,
        from: &TcpStream,
        rest: u64,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        debug_assert!(self.is_empty());
        let most = usize::try_from(rest).unwrap_or(SIZE).min(SIZE);
        let fill = || move_bytes(from, &self.entry, most);
        let moved = loop {
            ready!(from.poll_read_ready(cx))?;
            match from.try_io(Interest::READABLE, fill) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => break result?,
            }
        };
        self.filled = moved;
        self.traffic.spliced.add(moved as u64);
        Poll::Ready(Ok(moved))
    }

    /// Moves bytes from the pipe to the socket. Returns their number.
    pub(crate) fn poll_drain(&mut self, to: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            ready!(to.poll_write_ready(cx))?;
            match to.try_io(Interest::WRITABLE, || self.drain_now(to)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// Moves bytes from the pipe to the socket without asking the runtime whether the system has room.
    ///
    /// # Errors
    ///
    /// If the system has no room, or the connection is broken.
    pub(crate) fn drain_now(&mut self, to: &TcpStream) -> io::Result<usize> {
        let moved = move_bytes(&self.exit, to, self.filled)?;
        self.filled -= moved;
        Ok(moved)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{Read as _, Write as _};

    use tokio::net::TcpListener;

    use super::*;
    use crate::counters::TrafficCounters;

    /// Returns a connection and its peer.
    async fn connected() -> (TcpStream, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().await.unwrap().0, peer)
    }

    fn pipes(number: usize) -> (Pipes, Arc<ListenerTraffic>) {
        (Pipes(Arc::new(Semaphore::new(number))), TrafficCounters::default().listener("web"))
    }

    #[test]
    fn only_a_large_rest_is_worth_a_pipe() {
        assert!(!is_worthwhile(0) && !is_worthwhile(WORTHWHILE - 1) && is_worthwhile(WORTHWHILE));
    }

    #[test]
    fn pipes_take_a_small_part_of_the_open_files() {
        assert_eq!([None, Some(0), Some(1024), Some(1 << 20)].map(number), [MAX_PIPES, 0, 32, MAX_PIPES]);
    }

    #[test]
    fn the_number_of_pipes_is_limited() {
        let (pipes, traffic) = pipes(1);
        let first = pipes.make(&traffic);
        assert!(first.is_some() && pipes.clone().make(&traffic).is_none());
        drop(first);
        assert!(pipes.make(&traffic).is_some());
    }

    #[tokio::test]
    async fn bytes_pass_in_order_and_no_more_than_the_rest() {
        let ((pipes, traffic), (from, mut backend), (to, mut client)) =
            (pipes(1), connected().await, connected().await);
        let mut pipe = pipes.make(&traffic).unwrap();
        backend.write_all(b"abcdef").unwrap();
        let mut got = [0; 4];
        assert_eq!(poll_fn(|cx| pipe.poll_fill(&from, 4, cx)).await.unwrap(), 4);
        assert_eq!(poll_fn(|cx| pipe.poll_drain(&to, cx)).await.unwrap(), 4);
        client.read_exact(&mut got).unwrap();
        assert_eq!((&got, pipe.is_empty(), traffic.spliced.get()), (b"abcd", true, 4));
        let mut late = [0; 2];
        assert_eq!(from.try_read(&mut late).unwrap(), 2);
        assert_eq!(&late, b"ef");
    }

    #[tokio::test]
    async fn a_fill_waits_for_bytes_and_sees_the_end() {
        let ((pipes, traffic), (from, backend)) = (pipes(1), connected().await);
        let mut pipe = pipes.make(&traffic).unwrap();
        let mut fill = poll_fn(|cx| pipe.poll_fill(&from, 4, cx));
        assert!(futures::poll!(&mut fill).is_pending());
        drop(backend);
        assert_eq!(fill.await.unwrap(), 0);
    }
}
