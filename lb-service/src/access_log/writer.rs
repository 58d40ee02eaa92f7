//! Writes lines to the access log: the request formats a line, and the thread of [`lines`](crate::lines) writes it.
//!
//! The file is opened for appending, so lines of two processes do not mix during an upgrade.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::{Format, Record, Settings, Target, format_json, format_text};
use crate::lines::{Lines, LinesGuard, Pace, ReopenFailure, Sink};

/// The thread checks the queue every 10 ms, which costs less than a wake-up per line. At the end of the process it
/// waits for a blocked target for at most two seconds.
const PACE: Pace = Pace { gather: Duration::from_millis(10), farewell: Duration::from_secs(2) };

/// The bytes reserved for a line. Most lines fit, so their buffer does not grow.
const USUAL_LINE: usize = 320;

/// A handle that writes to the access log. A clone is cheap.
#[derive(Clone, Debug)]
pub struct AccessLog {
    format: Format,
    /// `None` if the log is off.
    lines: Option<Lines>,
    reopening: Reopening,
}

/// The result of the last attempt to open the target again. `None`: there was no attempt, or it succeeded.
type Reopening = Arc<Mutex<Option<ReopenFailure>>>;

/// Keeps the writer thread alive. Dropping it writes the queued lines and ends the thread, or gives up after two
/// seconds.
///
/// Later lines are dropped and counted.
#[derive(Debug)]
#[must_use = "the log ends when the guard is dropped"]
pub struct WriterGuard(Option<LinesGuard>);

/// The open target.
struct Opened {
    target: Target,
    file: File,
    reopening: Reopening,
}

// === impl AccessLog ===

impl AccessLog {
    /// Opens the target and starts the writer thread, unless the format is [`Format::Off`].
    ///
    /// Threads do not survive a fork, so a daemon calls this after it has gone to the background.
    ///
    /// # Errors
    ///
    /// Fails if the target cannot be opened, or if the thread cannot be started.
    pub fn open(settings: Settings) -> io::Result<(Self, WriterGuard)> {
        if settings.format == Format::Off {
            return Ok((Self::off(), WriterGuard(None)));
        }
        let file = open_target(&settings.target)?;
        Self::with_file(settings, file)
    }

    /// Starts the writer thread with a target that is already open, for instance because the process had more
    /// privileges before. After a log rotation, the target is opened again by its name.
    ///
    /// # Errors
    ///
    /// Fails if the thread cannot be started.
    pub fn with_file(settings: Settings, file: File) -> io::Result<(Self, WriterGuard)> {
        let Settings { format, target } = settings;
        let reopening = Reopening::default();
        let opened = Opened { target, file, reopening: reopening.clone() };
        let (lines, guard) = Lines::start("access-log", opened, PACE)?;
        Ok((Self { format, lines: Some(lines), reopening }, WriterGuard(Some(guard))))
    }

    /// Creates a log that writes nothing.
    pub fn off() -> Self {
        Self { format: Format::Off, lines: None, reopening: Reopening::default() }
    }

    /// Whether `record` writes anything. If not, a caller need not build a record.
    pub fn is_on(&self) -> bool {
        self.lines.is_some()
    }

    /// Formats and queues the line of a request. Never blocks, and drops the line if the queue is full.
    pub(crate) fn record(&self, record: &Record<'_>) {
        if self.lines.is_some() {
            let mut line = Vec::with_capacity(USUAL_LINE);
            match self.format {
                Format::Off => return,
                Format::Text => format_text(record, &mut line),
                Format::Json => format_json(record, &mut line),
            }
            self.write(line);
        }
    }

    /// Queues a line, which includes its line feed. Never blocks, and drops the line if the queue is full.
    pub fn write(&self, line: Vec<u8>) {
        if let Some(lines) = &self.lines {
            lines.push(line);
        }
    }

    /// Returns the number of lines that were not written, because the queue was full, a write failed, or the writer had
    /// ended.
    pub fn dropped(&self) -> u64 {
        self.lines.as_ref().map_or(0, Lines::dropped)
    }

    /// Returns a handle for the same target with another format, or `None` if this log or `format` is off.
    pub fn in_format(&self, format: Format) -> Option<Self> {
        let lines = self.lines.clone().filter(|_| format != Format::Off)?;
        Some(Self { format, lines: Some(lines), reopening: self.reopening.clone() })
    }

    /// Whether this is the last clone.
    pub fn is_last(&self) -> bool {
        self.lines.as_ref().is_none_or(Lines::is_last)
    }

    /// Opens the file again after a log rotation has renamed it. Returns at once, and no line is lost.
    ///
    /// If the file cannot be opened, the old file stays in use and the error is logged.
    pub fn reopen(&self) {
        if let Some(lines) = &self.lines {
            lines.reopen();
        }
    }

    /// Returns the failure of the last [`reopen`](Self::reopen). `None` if it succeeded, or if there was none.
    pub fn reopen_failure(&self) -> Option<ReopenFailure> {
        self.reopening.lock().clone()
    }
}

// === impl WriterGuard ===

impl Drop for WriterGuard {
    fn drop(&mut self) {
        if self.0.as_mut().is_some_and(|guard| !guard.end()) {
            log::warn!("access log: the last lines could not be written in time");
        }
    }
}

// === impl Opened ===

impl Sink for Opened {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn reopen(&mut self) {
        let failure = match open_target(&self.target) {
            Ok(file) => {
                self.file = file;
                log::info!("access log: {} reopened", self.target);
                None
            }
            Err(error) => {
                let reason = values::reason(&error);
                log::error!("access log: cannot reopen {}, the old file stays in use: {reason}", self.target);
                Some(ReopenFailure { time: SystemTime::now(), reason: format!("{}: {reason}", self.target) })
            }
        };
        *self.reopening.lock() = failure;
    }

    fn failed(&mut self, error: &io::Error) {
        log::error!("access log: {}: {}", self.target, values::reason(error));
    }

    fn dropped(&mut self, lines: u64) {
        let lines = if lines == 1 { "1 line".to_owned() } else { format!("{lines} lines") };
        log::warn!("access log: {lines} dropped");
    }
}

fn open_target(target: &Target) -> io::Result<File> {
    match target {
        // This duplicates the descriptor, because `std::io::stdout` is line-buffered and makes one system call per
        // line.
        Target::Stdout => Ok(io::stdout().as_fd().try_clone_to_owned()?.into()),
        Target::File(path) => open_file(path),
    }
}

/// Opens a file or a FIFO for appending.
///
/// `O_NONBLOCK` has no effect on a file, but the open of a FIFO does not hang. A FIFO without a reader is opened at
/// both ends, because it cannot be opened for writing alone; its lines wait for the reader, or are dropped when it is
/// full.
/// `O_CREAT` is omitted for an existing file, because with it the kernel denies even root a file of another user in a
/// sticky directory (`fs.protected_regular`).
fn open_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).mode(0o640).custom_flags(libc::O_NONBLOCK);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => options.create(true).open(path),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => options.read(true).open(path),
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
    use std::thread;
    use std::time::Instant;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

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
        let deadline = Instant::now() + LIMIT;
        while !condition() {
            assert!(Instant::now() < deadline, "timed out while waiting until {what}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn dropping_the_guard_writes_all_lines_in_order() {
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
    fn a_file_is_appended_to_and_is_not_world_readable() {
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
    fn a_blocked_target_costs_lines_but_no_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        // Without a reader, the open does not fail either.
        drop(open(&path));

        let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        let (log, guard) = open(&path);
        let line = [b"x".repeat(199), b"\n".to_vec()].concat();
        let start = Instant::now();
        (0..100_000).for_each(|_| log.write(line.clone()));
        let took = start.elapsed();
        assert!(took < Duration::from_secs(1), "100,000 lines took {took:?}");
        assert!(log.dropped() > 50_000, "{}", log.dropped());

        drop(guard);
        assert!(start.elapsed() < Duration::from_secs(1) + PACE.farewell + LIMIT);
        // All lines that were not written are counted, except for the start of the batch that fills the pipe.
        wait_until("the rest is counted", || log.dropped() > 99_000);
        drop(reader);
    }

    #[test]
    fn lines_that_a_full_disk_rejects_are_counted() {
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
