//! The queue between requests and the file, and the thread that empties it.
//!
//! ```text
//! requests --try_send--> queue (bounded) --> writer thread --write(2)--> file or stdout
//!                          | full: dropped, counted
//! ```
//!
//! - A line is one element of the queue and only one thread writes, so lines never run into each other. The
//!   file is opened for appending and a batch is one `write`, so this also holds for two processes during an
//!   upgrade.
//! - The thread waits [`GATHER`] between batches instead of being woken for each line; without traffic it
//!   sleeps.
//! - Reopening is a flag that the thread sees between two batches, so every line lands in the old or in the
//!   new file.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use super::{Format, Record, Settings, Target, format_json, format_text};

/// Lines that wait at most: a tenth of a second at 160,000 requests a second.
const QUEUE: usize = 16_384;

/// How long lines gather before they are written together.
const GATHER: Duration = Duration::from_millis(10);

/// A batch is written when it has this many bytes, even if the queue holds more.
const BATCH_BYTES: usize = 1 << 20;

/// How long the end of the process waits for a target that does not take the last lines.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);

/// A queue that stays full is told this often.
const TELL_DROPPED: Duration = Duration::from_secs(1);

/// Bytes reserved for a line, so that a usual one does not grow twice.
const USUAL_LINE: usize = 320;

/// The way into the access log. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AccessLog {
    format: Format,
    /// Absent when the log is off.
    queue: Option<Queue>,
}

/// Keeps the writer alive. When dropped, writes what is queued and ends the thread, or gives up after two
/// seconds.
///
/// Lines that come after that are dropped and counted.
#[derive(Debug)]
#[must_use = "the log ends when the guard is dropped"]
pub struct WriterGuard(Option<(Queue, Receiver<()>)>);

#[derive(Clone, Debug)]
struct Queue {
    sender: SyncSender<Message>,
    shared: Arc<Shared>,
}

enum Message {
    Line(Vec<u8>),
    /// Look at the flags in [`Shared`]. When the queue is too full for this the thread is awake anyway.
    Wake,
}

#[derive(Debug, Default)]
struct Shared {
    dropped: AtomicU64,
    reopen: AtomicBool,
    /// Set once, when the log ends: until when the last lines may be written.
    stop: OnceLock<Instant>,
}

/// The thread's own state.
struct Writer {
    receiver: Receiver<Message>,
    shared: Arc<Shared>,
    target: Target,
    file: File,
    /// Lines taken from the queue and not yet written; empty between two batches.
    batch: Vec<u8>,
    batch_lines: u64,
    /// Whether the last write failed: a full disk is told once, not per batch.
    failing: bool,
    /// What had been dropped when it was last told.
    dropped_told: u64,
    /// Not told again before this.
    tell_after: Instant,
}

// === impl AccessLog ===

impl AccessLog {
    /// Opens the target and starts the writer thread, unless the format is [`Format::Off`].
    ///
    /// Threads do not survive a fork: a daemon calls this after it went into the background.
    ///
    /// # Errors
    ///
    /// The target cannot be opened (a FIFO needs a reader), or the thread cannot be started.
    pub fn open(settings: Settings) -> io::Result<(Self, WriterGuard)> {
        let Settings { format, target } = settings;
        if format == Format::Off {
            return Ok((Self::off(), WriterGuard(None)));
        }
        let (sender, receiver) = sync_channel(QUEUE);
        let queue = Queue { sender, shared: Arc::default() };
        let file = open_target(&target)?;
        let writer = Writer {
            receiver,
            shared: queue.shared.clone(),
            target,
            file,
            batch: Vec::new(),
            batch_lines: 0,
            failing: false,
            dropped_told: 0,
            tell_after: Instant::now(),
        };
        let (done, ended) = sync_channel(0);
        thread::Builder::new().name("access-log".into()).spawn(move || {
            writer.run();
            drop(done);
        })?;
        Ok((Self { format, queue: Some(queue.clone()) }, WriterGuard(Some((queue, ended)))))
    }

    /// A log that writes nothing.
    pub fn off() -> Self {
        Self { format: Format::Off, queue: None }
    }

    /// Whether [`record`](Self::record) does anything: a caller can save itself putting a record together.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Formats and queues the line of a request. Never waits; drops the line when the queue is full.
    pub fn record(&self, record: &Record<'_>) {
        if self.queue.is_some() {
            let mut line = Vec::with_capacity(USUAL_LINE);
            match self.format {
                Format::Off => return,
                Format::Text => format_text(record, &mut line),
                Format::Json => format_json(record, &mut line),
            }
            self.write(line);
        }
    }

    /// Queues a line, which ends with its line end. Never waits; drops the line when the queue is full.
    pub fn write(&self, line: Vec<u8>) {
        if let Some(queue) = &self.queue
            && queue.sender.try_send(Message::Line(line)).is_err()
        {
            queue.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines that were not written, because the queue was full, the target refused them, or the writer had
    /// ended.
    pub fn dropped(&self) -> u64 {
        self.queue.as_ref().map_or(0, |queue| queue.shared.dropped.load(Ordering::Relaxed))
    }

    /// The same way to the same target in another format; none when either is off.
    pub fn in_format(&self, format: Format) -> Option<Self> {
        let queue = self.queue.clone().filter(|_| format != Format::Off)?;
        Some(Self { format, queue: Some(queue) })
    }

    /// Whether no other clone is left that could write a line.
    pub fn is_last(&self) -> bool {
        // Beside the clones the guard and the thread have it.
        self.queue.as_ref().is_none_or(|queue| Arc::strong_count(&queue.shared) <= 3)
    }

    /// Opens the file anew, for a log rotation that has renamed it. Returns at once; no line is lost.
    ///
    /// If that fails, the old file is kept and the failure is logged.
    pub fn reopen(&self) {
        if let Some(queue) = &self.queue {
            queue.shared.reopen.store(true, Ordering::Release);
            queue.wake();
        }
    }
}

// === impl WriterGuard ===

impl Drop for WriterGuard {
    fn drop(&mut self) {
        let Some((queue, ended)) = &self.0 else { return };
        let deadline = *queue.shared.stop.get_or_init(|| Instant::now() + FLUSH_DEADLINE);
        queue.wake();
        // The thread keeps the deadline unless it hangs in a system call; it gets a moment more to say so.
        let patience = deadline.saturating_duration_since(Instant::now()) + 10 * GATHER;
        if ended.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            log::warn!("access log: the last lines could not be written in time");
        }
    }
}

// === impl Queue ===

impl Queue {
    fn wake(&self) {
        // Full: the thread is awake. Disconnected: it has ended.
        let _ = self.sender.try_send(Message::Wake);
    }
}

// === impl Writer ===

impl Writer {
    fn run(mut self) {
        while let Ok(message) = self.receiver.recv() {
            self.take(message);
            if !self.is_stopping() {
                thread::sleep(GATHER);
            }
            self.drain();
            if self.shared.reopen.swap(false, Ordering::AcqRel) {
                self.reopen();
            }
            // The message to wake up may have been drained with the lines, so the flag is read after that;
            // and lines may have come between, so the queue is drained once more.
            if self.is_stopping() {
                self.drain();
                self.tell_dropped();
                return;
            }
            if Instant::now() >= self.tell_after {
                self.tell_dropped();
            }
        }
    }

    fn is_stopping(&self) -> bool {
        self.shared.stop.get().is_some()
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
        match write_patiently(&mut self.file, &self.batch, &self.shared.stop) {
            Ok(()) => self.failing = false,
            Err(error) => {
                self.shared.dropped.fetch_add(self.batch_lines, Ordering::Relaxed);
                if !std::mem::replace(&mut self.failing, true) {
                    log::error!("access log: {}: {error}", self.target);
                }
            }
        }
        self.batch.clear();
        self.batch_lines = 0;
    }

    fn reopen(&mut self) {
        match open_target(&self.target) {
            Ok(file) => {
                self.file = file;
                log::info!("access log: {} reopened", self.target);
            }
            Err(error) => {
                log::error!("access log: {} not reopened, the old file is kept: {error}", self.target);
            }
        }
    }

    fn tell_dropped(&mut self) {
        let dropped = self.shared.dropped.load(Ordering::Relaxed);
        if dropped > self.dropped_told {
            log::warn!("access log: {} lines dropped", dropped - self.dropped_told);
            self.dropped_told = dropped;
            self.tell_after = Instant::now() + TELL_DROPPED;
        }
    }
}

/// Writes everything; waits for a pipe that is full and does not block, but not beyond the end of the log.
fn write_patiently(file: &mut File, mut bytes: &[u8], stop: &OnceLock<Instant>) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if stop.get().is_some_and(|deadline| Instant::now() >= *deadline) {
                    return Err(error);
                }
                thread::sleep(GATHER);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn open_target(target: &Target) -> io::Result<File> {
    match target {
        // A descriptor of its own: `std::io::stdout` is line-buffered, one system call per line.
        Target::Stdout => Ok(io::stdout().as_fd().try_clone_to_owned()?.into()),
        Target::File(path) => open_file(path),
    }
}

/// `O_NONBLOCK` changes nothing for a file, but a FIFO without a reader is then an error instead of a start
/// that hangs. `O_CREAT` is left out for a file that exists: in a sticky directory the kernel then refuses even root
/// a file of another user (`fs.protected_regular`).
fn open_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).mode(0o640).custom_flags(libc::O_NONBLOCK);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => options.create(true).open(path),
        opened => opened,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn open(path: &Path) -> (AccessLog, WriterGuard) {
        AccessLog::open(Settings { format: Format::Text, target: Target::File(path.into()) }).unwrap()
    }

    fn write_number(log: &AccessLog, number: usize) {
        log.write(format!("{number}\n").into_bytes());
    }

    fn numbers(path: &Path) -> Vec<usize> {
        fs::read_to_string(path).unwrap().lines().map(|line| line.parse().unwrap()).collect()
    }

    fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < deadline, "waited in vain until {what}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn dropping_the_guard_writes_everything_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let (log, guard) = open(&path);
        (0..10_000).for_each(|number| write_number(&log, number));
        drop(guard);
        assert_eq!(numbers(&path), (0..10_000).collect::<Vec<_>>());
        assert_eq!(log.dropped(), 0);
        write_number(&log, 10_000);
        assert_eq!(log.dropped(), 1);
    }

    #[test]
    fn lines_appear_while_the_log_is_open() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let (log, _guard) = open(&path);
        for number in 1..=3 {
            write_number(&log, number);
            wait_until("the line is there", || numbers(&path).len() == number);
        }
    }

    #[test]
    fn file_is_appended_to_and_not_for_everyone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        for number in 0..2 {
            let (log, _guard) = open(&path);
            write_number(&log, number);
        }
        assert_eq!(numbers(&path), [0, 1]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o137, 0);
    }

    #[test]
    fn lines_of_many_threads_do_not_interleave() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let (log, guard) = open(&path);
        thread::scope(|scope| {
            for name in ["a", "bb", "ccc", "dddd"] {
                let log = log.clone();
                scope.spawn(move || {
                    for length in 1..=1000 {
                        log.write((name.repeat(length) + "\n").into_bytes());
                    }
                });
            }
        });
        drop(guard);
        assert_eq!(log.dropped(), 0);
        let mut lengths: HashMap<char, usize> = HashMap::new();
        for line in fs::read_to_string(&path).unwrap().lines() {
            let letter = line.chars().next().unwrap();
            let width = usize::from(letter as u8 - b'a') + 1;
            let length = lengths.entry(letter).or_default();
            *length += 1;
            assert_eq!(line, letter.to_string().repeat(*length * width));
        }
        assert!(lengths.values().all(|count| *count == 1000) && lengths.len() == 4);
    }

    #[test]
    fn reopening_after_a_rename_loses_no_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let (log, guard) = open(&path);
        let rotated: Vec<PathBuf> =
            (0..5).map(|turn| directory.path().join(format!("access.log.{turn}"))).collect();
        let mut number = 0;
        for old in &rotated {
            fs::rename(&path, old).unwrap();
            log.reopen();
            wait_until("the new file is there", || {
                write_number(&log, number);
                number += 1;
                path.exists()
            });
        }
        drop(guard);
        let all: Vec<usize> = rotated.iter().chain([&path]).flat_map(|file| numbers(file)).collect();
        assert_eq!(all, (0..number).collect::<Vec<_>>());
        assert_eq!(log.dropped(), 0);
    }

    #[test]
    fn a_failed_reopen_keeps_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let (inside, moved) = (directory.path().join("logs"), directory.path().join("moved"));
        fs::create_dir(&inside).unwrap();
        let (log, guard) = open(&inside.join("access.log"));
        write_number(&log, 0);
        fs::rename(&inside, &moved).unwrap();
        log.reopen();
        write_number(&log, 1);
        wait_until("the line is in the old file", || numbers(&moved.join("access.log")).len() == 2);
        write_number(&log, 2);
        drop(guard);
        assert_eq!(numbers(&moved.join("access.log")), [0, 1, 2]);
    }

    #[test]
    fn a_target_that_stands_still_costs_lines_but_no_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert!(
            AccessLog::open(Settings { format: Format::Json, target: Target::File(path.clone()) }).is_err()
        );

        let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        let (log, guard) = open(&path);
        let line = [b"x".repeat(199), b"\n".to_vec()].concat();
        let start = Instant::now();
        (0..100_000).for_each(|_| log.write(line.clone()));
        let took = start.elapsed();
        assert!(took < Duration::from_secs(1), "100,000 lines took {took:?}");
        assert!(log.dropped() > 50_000, "{}", log.dropped());

        drop(guard);
        assert!(start.elapsed() < Duration::from_secs(1) + FLUSH_DEADLINE + PATIENCE);
        // All that was not written is counted, except for the start of the batch that fills the pipe.
        wait_until("the rest is counted", || log.dropped() > 99_000);
        drop(reader);
    }

    #[test]
    fn a_full_disk_is_counted() {
        let (log, guard) = open(Path::new("/dev/full"));
        (0..100).for_each(|number| write_number(&log, number));
        drop(guard);
        assert_eq!(log.dropped(), 100);
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        let target = Target::File("/nonexistent/access.log".into());
        let error = AccessLog::open(Settings { format: Format::Text, target }).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_log_that_is_off_does_nothing() {
        let target = Target::File("/nonexistent/access.log".into());
        let (log, _guard) = AccessLog::open(Settings { format: Format::Off, target }).unwrap();
        assert!(!log.is_on());
        write_number(&log, 0);
        log.reopen();
        assert_eq!(log.dropped(), 0);
    }

    #[test]
    fn stdout_can_be_opened() {
        assert!(open_target(&Target::Stdout).is_ok());
    }
}
