//! A bounded queue of lines and the thread that writes them, used by both logs.
//!
//! ```text
//! any thread --try_send--> queue (bounded) --> writer thread --write(2)--> sink
//!                            | full: dropped, counted
//! ```
//!
//! - A thread that queues a line never waits, even when the target accepts no bytes: a stalled disk, a pipe without a
//!   reader, a stopped terminal.
//! - A line is one element of the queue and only one thread writes, so lines never interleave. A batch is one `write`,
//!   so lines of two processes that append to one file during an upgrade do not interleave either.
//! - If [`Pace::gather`] is not zero, the thread waits that long between two batches instead of being woken for each
//!   line. It sleeps while the queue is empty.
//! - Reopening, flushing and the end are flags that the thread reads between two batches, so every line is written
//!   either before or after them. The thread reads the flags at least once per queue length.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Mutex, MutexGuard};

/// The capacity of the queue in lines: a tenth of a second of an access log at 160,000 requests per second.
const QUEUE: usize = 16_384;

/// The size in bytes at which a batch is written, even if the queue holds more lines.
const BATCH_BYTES: usize = 1 << 20;

/// The pause before the next write to a non-blocking target that is full.
const RETRY: Duration = Duration::from_millis(10);

/// The shortest time between two reports of dropped lines.
const REPORT: Duration = Duration::from_secs(1);

/// The time after its deadline within which the thread must report that it has ended.
const GRACE: Duration = Duration::from_millis(100);

/// The failure to open a log again after a log rotation.
#[derive(Clone, Debug)]
pub struct ReopenFailure {
    /// The time of the attempt.
    pub time: SystemTime,
    /// The reason, with the path.
    pub reason: String,
}

/// The target of the lines. Only the writer thread calls it.
pub trait Sink: Send + 'static {
    /// Writes a part of `bytes`, as [`io::Write::write`] does.
    ///
    /// # Errors
    /// If the target cannot be written to. The rest of the batch is then dropped.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Reopens the target.
    fn reopen(&mut self) {}

    /// Reports that a write has failed after one that succeeded.
    fn failed(&mut self, error: &io::Error);

    /// Reports that writing works and that this many lines were dropped since the last report.
    fn dropped(&mut self, lines: u64);
}

/// The timing of the writer thread.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The time for which lines are collected before they are written together. Zero: they are written at once.
    pub gather: Duration,
    /// The longest time that the end waits for a target that does not accept the last lines.
    pub farewell: Duration,
}

/// A handle to the queue. Clones share the queue.
#[derive(Clone, Debug)]
pub struct Lines {
    sender: SyncSender<Message>,
    shared: Arc<Shared>,
}

/// Keeps the writer thread alive. [`end`](Self::end) writes the queued lines; dropping the guard calls it.
///
/// Lines that are queued after the end are dropped and counted.
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
    /// Makes the thread read the flags in [`Shared`]. If the queue is too full for this message, the thread is awake
    /// anyway.
    Wake,
}

#[derive(Debug, Default)]
struct Shared {
    dropped: AtomicU64,
    reopen: AtomicBool,
    /// The callers that wait until all lines queued before their call have been written.
    flushes: Mutex<Vec<SyncSender<()>>>,
    /// Set once, at the end: the deadline for writing the last lines.
    stop: OnceLock<Instant>,
}

/// The state of the writer thread.
struct Writer<S> {
    receiver: Receiver<Message>,
    shared: Arc<Shared>,
    sink: S,
    gather: Duration,
    /// Lines taken from the queue and not yet written; empty between two batches.
    batch: Vec<u8>,
    batch_lines: u64,
    /// Whether the last write failed. A full disk is reported once, not once per batch.
    failing: bool,
    /// The number of dropped lines at the last report.
    reported: u64,
    /// The time of the next report at the earliest.
    report_after: Instant,
}

// === impl Lines ===

impl Lines {
    /// Starts the writer thread under this name.
    ///
    /// Threads do not survive a fork, so a daemon calls this after it has gone into the background.
    ///
    /// # Errors
    /// If the thread cannot be started.
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

    /// Queues a line, which includes its line feed. Never waits; drops the line if the queue is full.
    pub fn push(&self, line: Vec<u8>) {
        if self.sender.try_send(Message::Line(line)).is_err() {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the number of lines that were not written because the queue was full, the write failed, or the writer
    /// had ended.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Reopens the target. Returns at once and loses no line.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
        self.wake();
    }

    /// Waits until all lines queued so far have been written or dropped, at most for `limit`. Returns whether that
    /// happened in time.
    pub fn flush(&self, limit: Duration) -> bool {
        let (done, flushed) = sync_channel(1);
        self.shared.flushes().push(done);
        if !self.wake() {
            return false;
        }
        flushed.recv_timeout(limit).is_ok()
    }

    /// Returns whether this is the last clone that can queue a line, apart from the guard's.
    pub fn is_last(&self) -> bool {
        // The writer thread also holds one.
        Arc::strong_count(&self.shared) <= 3
    }

    /// Wakes the writer thread and returns whether it exists. A thread whose queue is full is awake.
    fn wake(&self) -> bool {
        !matches!(self.sender.try_send(Message::Wake), Err(TrySendError::Disconnected(_)))
    }
}

// === impl LinesGuard ===

impl LinesGuard {
    /// Writes the queued lines and ends the thread, or gives up after [`Pace::farewell`]. Returns whether all lines
    /// were written in time.
    pub fn end(&mut self) -> bool {
        if std::mem::replace(&mut self.is_over, true) {
            return true;
        }
        let deadline = *self.lines.shared.stop.get_or_init(|| Instant::now() + self.farewell);
        self.lines.wake();
        // The thread keeps the deadline unless it hangs in a system call, so it gets a little more time to report.
        let limit = deadline.saturating_duration_since(Instant::now()) + GRACE;
        self.ended.recv_timeout(limit) != Err(RecvTimeoutError::Timeout)
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
            // Draining the queue might have removed the message that wakes the thread, so the flag is read after that.
            // Lines might have arrived in between, so the queue is drained once more.
            if self.shared.is_stopping() {
                self.drain();
                self.report();
                // The report might be a line of this queue.
                return self.flush();
            }
            if Instant::now() >= self.report_after {
                self.report();
            }
        }
    }

    /// Writes the queued lines and notifies the callers of `flush`, whose lines were queued before their call. A caller
    /// cannot wake the thread while the queue is full, so the list is read once more when there is room.
    fn flush(&mut self) {
        loop {
            let flushes = std::mem::take(&mut *self.shared.flushes());
            self.drain();
            for flush in flushes {
                // Fails if the caller of `flush` has timed out.
                let _ = flush.try_send(());
            }
            if self.shared.flushes().is_empty() {
                return;
            }
        }
    }

    /// Writes queued lines until the queue is empty, at most one queue length, so that constant traffic does not delay
    /// the flags.
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

    /// Writes or drops the batch, which is empty afterwards.
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
            // The report might be a line of this queue, which might be full again.
            self.drain();
            self.sink.dropped(dropped - self.reported);
            self.reported = dropped;
            self.report_after = Instant::now() + REPORT;
        }
    }
}

/// Writes all bytes. Waits for a non-blocking pipe that is full, at most until the end's deadline.
fn write_patiently(sink: &mut impl Sink, mut bytes: &[u8], stop: &OnceLock<Instant>) -> io::Result<()> {
    while !bytes.is_empty() {
        match sink.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
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
    const LIMIT: Duration = Duration::from_secs(10);

    /// A sink that records what is written and reported. While `closed` is set, a write hangs.
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
        /// The queue that gets a line about each report.
        log: Option<Lines>,
    }

    impl Target {
        fn close(&self, closed: bool) {
            self.state.lock().closed = closed;
            self.changed.notify_all();
        }

        fn wait(&self, condition: impl Fn(&State) -> bool) {
            let mut state = self.state.lock();
            let waited = self.changed.wait_while_for(&mut state, |state| !condition(state), LIMIT);
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
            let mut state = self.state.lock();
            state.dropped.push(lines);
            state.log.iter().for_each(|log| log.push(b"a report\n".to_vec()));
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
        assert!(lines.flush(LIMIT));
        assert!(target.state.lock().text.ends_with("\n999\n"));
    }

    #[test]
    fn a_hanging_target_does_not_delay_callers() {
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
    fn a_report_that_is_a_line_of_the_full_queue_is_not_dropped() {
        let (target, lines, _guard) = start();
        target.state.lock().log = Some(lines.clone());
        target.close(true);
        lines.push(b"first\n".to_vec());
        target.wait(|state| state.hanging);
        (0..QUEUE + 10).for_each(|_| lines.push(b"x\n".to_vec()));
        target.close(false);
        target.wait(|state| state.text.contains("a report"));
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
        assert!(lines.flush(LIMIT));
        assert_eq!(lines.dropped(), 10);
    }

    #[test]
    fn a_flush_after_the_end_does_not_wait() {
        let (_, lines, mut guard) = start();
        lines.push(b"last\n".to_vec());
        assert!(guard.end());
        let began = Instant::now();
        assert!(!lines.flush(LIMIT));
        assert!(began.elapsed() < LIMIT);
    }
}
