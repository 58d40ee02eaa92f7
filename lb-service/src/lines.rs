//! Lines that a thread of its own writes: the queue in front of it, and what happens when the target takes no more.
//!
//! ```text
//! any thread --try_send--> queue (bounded) --> writer thread --write(2)--> sink
//!                            | full: dropped, counted
//! ```
//!
//! - Whoever has a line never waits, whatever the target does: a disk that stands still, a pipe without a reader, a terminal
//!   that is stopped.
//! - A line is one element of the queue and only one thread writes, so lines never run into each other. A batch is one `write`,
//!   so this also holds for two processes that append to one file during an upgrade.
//! - Between two batches the thread waits for [`Pace::gather`], if that is not zero, instead of being woken for each line.
//!   Without lines it sleeps.
//! - Reopening, flushing and the end are flags that the thread sees between two batches, so every line is written before or
//!   after them. A queue is never longer than what the thread writes between two looks at the flags.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

/// Lines that wait at most: a tenth of a second of an access log at 160,000 requests a second.
const QUEUE: usize = 16_384;

/// A batch is written when it has this many bytes, even if the queue holds more.
const BATCH_BYTES: usize = 1 << 20;

/// How long to wait for a target that is full and does not block.
const RETRY: Duration = Duration::from_millis(10);

/// Dropped lines are reported this often at most.
const REPORT: Duration = Duration::from_secs(1);

/// How much longer than its deadline the thread may take to say that it has ended.
const GRACE: Duration = Duration::from_millis(100);

/// Where lines go. Only the writer thread calls it.
pub trait Sink: Send + 'static {
    /// Writes a part of `bytes`, as [`io::Write::write`] does.
    ///
    /// # Errors
    /// The rest of the batch is dropped then.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Opens the target anew.
    fn reopen(&mut self) {}

    /// A write has failed, and the one before it had not.
    fn failed(&mut self, error: &io::Error);

    /// Writing works, and this many lines were dropped since the last report.
    fn dropped(&mut self, lines: u64);
}

/// When lines are written.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How long lines gather before they are written together; zero: not at all.
    pub gather: Duration,
    /// How long the end waits for a target that does not take the last lines.
    pub farewell: Duration,
}

/// The way into the queue. Clones lead to the same one.
#[derive(Clone, Debug)]
pub struct Lines {
    sender: SyncSender<Message>,
    shared: Arc<Shared>,
}

/// Keeps the writer alive. Its [`end`](Self::end), at the latest when it is dropped, writes what is queued.
///
/// Lines that come after that are dropped and counted.
#[derive(Debug)]
#[must_use = "the writer ends when the guard is dropped"]
pub struct LinesGuard {
    lines: Lines,
    ended: Receiver<()>,
    farewell: Duration,
    is_over: bool,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    /// Look at the flags in [`Shared`]. When the queue is too full for this the thread is awake anyway.
    Wake,
}

#[derive(Debug, Default)]
struct Shared {
    dropped: AtomicU64,
    reopen: AtomicBool,
    /// Those who wait until all lines that are queued now have been written.
    flushes: Mutex<Vec<SyncSender<()>>>,
    /// Set once, at the end: until when the last lines may be written.
    stop: OnceLock<Instant>,
}

/// The thread's own state.
struct Writer<S> {
    receiver: Receiver<Message>,
    shared: Arc<Shared>,
    sink: S,
    gather: Duration,
    /// Lines taken from the queue and not yet written; empty between two batches.
    batch: Vec<u8>,
    batch_lines: u64,
    /// Whether the last write failed: a full disk is reported once, not per batch.
    failing: bool,
    /// What had been dropped at the last report.
    reported: u64,
    /// No report before this.
    report_after: Instant,
}

// === impl Lines ===

impl Lines {
    /// Starts the writer thread of this name.
    ///
    /// Threads do not survive a fork: a daemon calls this after it went into the background.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(name: &str, sink: impl Sink, pace: Pace) -> io::Result<(Self, LinesGuard)> {
        let (sender, receiver) = sync_channel(QUEUE);
        let lines = Self { sender, shared: Arc::default() };
        let writer = Writer {
            receiver,
            shared: lines.shared.clone(),
            sink,
            gather: pace.gather,
            batch: Vec::new(),
            batch_lines: 0,
            failing: false,
            reported: 0,
            report_after: Instant::now(),
        };
        let (done, ended) = sync_channel(0);
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            writer.run();
            drop(done);
        })?;
        let guard = LinesGuard { lines: lines.clone(), ended, farewell: pace.farewell, is_over: false };
        Ok((lines, guard))
    }

    /// Queues a line, which ends with its line end. Never waits; drops the line when the queue is full.
    pub fn push(&self, line: Vec<u8>) {
        if self.sender.try_send(Message::Line(line)).is_err() {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines that were not written, because the queue was full, the target refused them, or the writer had ended.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Opens the target anew. Returns at once; no line is lost.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
        self.wake();
    }

    /// Waits until all lines that are queued now have been written, or dropped by the target, but no longer than `patience`.
    /// Whether it was so.
    pub fn flush(&self, patience: Duration) -> bool {
        let (done, flushed) = sync_channel(1);
        self.shared.flushes().push(done);
        if !self.wake() {
            return false;
        }
        flushed.recv_timeout(patience).is_ok()
    }

    /// Whether no other clone is left that could write a line, but for that of the guard.
    pub fn is_last(&self) -> bool {
        // The thread has it, too.
        Arc::strong_count(&self.shared) <= 3
    }

    /// Whether there is a thread. One whose queue is full is awake.
    fn wake(&self) -> bool {
        !matches!(self.sender.try_send(Message::Wake), Err(TrySendError::Disconnected(_)))
    }
}

// === impl LinesGuard ===

impl LinesGuard {
    /// Writes what is queued and ends the thread, or gives up after [`Pace::farewell`]. Whether all was written in time.
    pub fn end(&mut self) -> bool {
        if std::mem::replace(&mut self.is_over, true) {
            return true;
        }
        let deadline = *self.lines.shared.stop.get_or_init(|| Instant::now() + self.farewell);
        self.lines.wake();
        // The thread keeps the deadline unless it hangs in a system call; it gets a moment more to say so.
        let patience = deadline.saturating_duration_since(Instant::now()) + GRACE;
        self.ended.recv_timeout(patience) != Err(RecvTimeoutError::Timeout)
    }
}

impl Drop for LinesGuard {
    fn drop(&mut self) {
        self.end();
    }
}

// === impl Shared ===

impl Shared {
    fn flushes(&self) -> MutexGuard<'_, Vec<SyncSender<()>>> {
        // A list is never half changed.
        self.flushes.lock()
    }

    fn is_stopping(&self) -> bool {
        self.stop.get().is_some()
    }
}

// === impl Writer ===

impl<S: Sink> Writer<S> {
    fn run(mut self) {
        while let Ok(message) = self.receiver.recv() {
            self.take(message);
            if !self.gather.is_zero() && !self.shared.is_stopping() {
                thread::sleep(self.gather);
            }
            self.flush();
            if self.shared.reopen.swap(false, Ordering::AcqRel) {
                self.sink.reopen();
            }
            // The message to wake up may have been drained with the lines, so the flag is read after that;
            // and lines may have come between, so the queue is drained once more.
            if self.shared.is_stopping() {
                self.drain();
                self.report();
                // The report may be a line of this very queue.
                return self.flush();
            }
            if Instant::now() >= self.report_after {
                self.report();
            }
        }
    }

    /// Writes what is queued, and says so to those who wait for it. They have queued their lines before they asked. One who asks
    /// while the queue is full cannot wake the thread, so the list is looked at once more when there is room.
    fn flush(&mut self) {
        loop {
            let flushes = std::mem::take(&mut *self.shared.flushes());
            self.drain();
            for flush in flushes {
                // A caller of flush that waited for too long is gone.
                let _ = flush.try_send(());
            }
            if self.shared.flushes().is_empty() {
                return;
            }
        }
    }

    /// Writes what is queued, until nothing is.
    ///
    /// Stops after one queue's worth at the latest, so that constant traffic delays no flag.
    fn drain(&mut self) {
        for _ in 0..QUEUE {
            let Ok(message) = self.receiver.try_recv() else { break };
            self.take(message);
            if self.batch.len() >= BATCH_BYTES {
                self.write_batch();
            }
        }
        self.write_batch();
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Line(line) => {
                self.batch.extend_from_slice(&line);
                self.batch_lines += 1;
            }
            Message::Wake => {}
        }
    }

    /// After this the batch is empty: written, or dropped.
    fn write_batch(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        match write_patiently(&mut self.sink, &self.batch, &self.shared.stop) {
            Ok(()) => self.failing = false,
            Err(error) => {
                self.shared.dropped.fetch_add(self.batch_lines, Ordering::Relaxed);
                if !std::mem::replace(&mut self.failing, true) {
                    self.sink.failed(&error);
                }
            }
        }
        self.batch.clear();
        self.batch_lines = 0;
    }

    fn report(&mut self) {
        let dropped = self.shared.dropped.load(Ordering::Relaxed);
        if dropped > self.reported && !self.failing {
            self.sink.dropped(dropped - self.reported);
            self.reported = dropped;
            self.report_after = Instant::now() + REPORT;
        }
    }
}

/// Writes everything; waits for a pipe that is full and does not block, but not beyond the end.
fn write_patiently(sink: &mut impl Sink, mut bytes: &[u8], stop: &OnceLock<Instant>) -> io::Result<()> {
    while !bytes.is_empty() {
        match sink.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if stop.get().is_some_and(|deadline| Instant::now() >= *deadline) {
                    return Err(error);
                }
                thread::sleep(RETRY);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use parking_lot::Condvar;

    use super::*;

    const PACE: Pace = Pace { gather: Duration::ZERO, farewell: Duration::from_millis(50) };
    const PATIENCE: Duration = Duration::from_secs(10);

    /// What was written and reported; closed: a write hangs.
    #[derive(Default)]
    struct Target {
        state: Mutex<State>,
        changed: Condvar,
    }

    #[derive(Default)]
    struct State {
        closed: bool,
        hanging: bool,
        text: String,
        dropped: Vec<u64>,
    }

    impl Target {
        fn close(&self, closed: bool) {
            self.state.lock().closed = closed;
            self.changed.notify_all();
        }

        fn wait(&self, condition: impl Fn(&State) -> bool) {
            let mut state = self.state.lock();
            let waited = self.changed.wait_while_for(&mut state, |state| !condition(state), PATIENCE);
            assert!(!waited.timed_out());
        }
    }

    impl Sink for Arc<Target> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut state = self.state.lock();
            state.hanging = true;
            self.changed.notify_all();
            self.changed.wait_while(&mut state, |state| state.closed);
            state.text.push_str(std::str::from_utf8(bytes).unwrap());
            self.changed.notify_all();
            Ok(bytes.len())
        }

        fn failed(&mut self, error: &io::Error) {
            panic!("{error}");
        }

        fn dropped(&mut self, lines: u64) {
            self.state.lock().dropped.push(lines);
            self.changed.notify_all();
        }
    }

    fn start() -> (Arc<Target>, Lines, LinesGuard) {
        let target = Arc::<Target>::default();
        let (lines, guard) = Lines::start("test", target.clone(), PACE).unwrap();
        (target, lines, guard)
    }

    #[test]
    fn a_flush_returns_when_all_lines_before_it_are_written() {
        let (target, lines, _guard) = start();
        for number in 0..1000 {
            lines.push(format!("{number}\n").into_bytes());
        }
        assert!(lines.flush(PATIENCE));
        assert!(target.state.lock().text.ends_with("\n999\n"));
    }

    #[test]
    fn a_target_that_hangs_holds_up_nobody() {
        let (target, lines, mut guard) = start();
        target.close(true);
        lines.push(b"first\n".to_vec());
        target.wait(|state| state.hanging);
        for _ in 0..QUEUE + 10 {
            lines.push(b"x\n".to_vec());
        }
        assert_eq!(lines.dropped(), 10);
        assert!(!lines.flush(Duration::from_millis(10)), "the queue is full and nothing moves");
        assert!(!guard.end());
        target.close(false);
    }

    #[test]
    fn dropped_lines_are_reported_once_the_target_takes_lines_again() {
        let (target, lines, _guard) = start();
        target.close(true);
        lines.push(b"first\n".to_vec());
        target.wait(|state| state.hanging);
        for _ in 0..QUEUE + 10 {
            lines.push(b"x\n".to_vec());
        }
        assert_eq!(target.state.lock().dropped, [0; 0]);
        target.close(false);
        target.wait(|state| state.dropped == [10]);
        assert!(lines.flush(PATIENCE));
        assert_eq!(lines.dropped(), 10);
    }

    #[test]
    fn a_flush_after_the_end_does_not_wait() {
        let (_, lines, mut guard) = start();
        lines.push(b"last\n".to_vec());
        assert!(guard.end());
        let began = Instant::now();
        assert!(!lines.flush(PATIENCE));
        assert!(began.elapsed() < PATIENCE);
    }
}
