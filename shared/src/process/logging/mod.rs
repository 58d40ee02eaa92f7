//! The log: its destination, its format and its filter.
//!
//! `env_logger` formats a line, and a [separate thread](lb_service::lines) writes it to standard error, so that a
//! reader that has stopped (a full pipe, a stopped terminal, a disk that hangs) blocks neither requests nor the end of
//! the process. Lines that do not fit into the queue are dropped and counted. The queue is written before standard
//! error is redirected and before the process ends. Panic messages take the same path, after earlier log lines.
//!
//! With `error_log`, standard error *is* that file, so it also receives everything that a library prints. Lines are
//! `[2026-01-31T12:00:00.123Z INFO target] text`, in UTC. The time is omitted under systemd's journal, which adds its
//! own.

mod filter;

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use env_logger::{Builder, Logger, Target, TimestampPrecision, WriteStyle};
pub(crate) use filter::{LEVELS, LogFilter};
use lb_service::lines::{Lines, LinesGuard, Pace, ReopenFailure, Sink};
use parking_lot::{Mutex, MutexGuard};

use crate::words::count;

use super::files::{Unusable, open_log, reason};
use super::limits::no_thread;
use super::privileges::Identity;

/// The environment variable with a filter.
const VARIABLE: &str = "RUST_LOG";

/// The pace of writing. A line is written at once, so that it is not lost if the process is killed. The end of the
/// process waits for the last lines, but only for a limited time.
const PACE: Pace = Pace { gather: Duration::ZERO, farewell: Duration::from_secs(1) };

/// The logging that a start has set up.
#[derive(Debug)]
pub(crate) struct Logging {
    /// The file that standard error writes to. `None` means that standard error was not redirected.
    pub error_log: Option<ErrorLog>,
    /// The filter of the log.
    pub verbosity: Verbosity,
    /// The guard of the queue, which must be dropped last. Dropping it writes the queued lines, for a second at most.
    pub guard: LinesGuard,
}

/// The current standard error. It is written to without the lock of the standard library, which would block all other
/// writers while a write hangs.
struct Stderr;

/// The queue, to which `env_logger` writes one line at a time.
struct Queue(Lines);

/// The file to which standard error is redirected.
#[derive(Debug)]
pub(crate) struct ErrorLog {
    path: PathBuf,
    /// The former standard error, for errors during the start. `None` means that it was released.
    terminal: Mutex<Option<File>>,
    /// The failure of the last attempt to open the file again. `None`: there was no attempt, or it succeeded.
    reopening: Mutex<Option<ReopenFailure>>,
}

/// The filter of the log, which can be changed at run time. Clones change the same logger.
#[derive(Clone)]
pub(crate) struct Verbosity(Arc<Switch>);

struct Switch {
    style: Style,
    levels: Mutex<Levels>,
    logger: ArcSwap<Logger>,
}

/// The filters by their sources. `None` means that a source has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Levels {
    /// The filter that an operator has set at run time.
    order: Option<LogFilter>,
    /// The filter in `RUST_LOG`.
    variable: Option<LogFilter>,
    /// The filter of the key `log_level`.
    file: Option<LogFilter>,
}

/// The source of the filter in effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LevelSource {
    /// An operator has set it at run time.
    Operator,
    /// The environment variable `RUST_LOG` contains it.
    Environment,
    /// The key `log_level` contains it.
    File,
    /// It is the default of the program.
    Default,
}

/// The format and the destination of lines.
struct Style {
    timestamps: bool,
    coloured: bool,
    lines: Lines,
}

/// The reason why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error("cannot open error_log {0}")]
    Open(#[from] Unusable),
    #[error("cannot redirect standard error: {}", reason(.0))]
    Redirect(#[source] io::Error),
    #[error("cannot start the thread that writes the log: {}", no_thread(.0))]
    Thread(#[source] io::Error),
    #[error("a logger is already set up: {0}")]
    Logger(#[from] log::SetLoggerError),
}

/// Starts logging. It must be called once, and early, so that messages of the start reach the file. The process will
/// run as `user`; `level` is the key `log_level` of the configuration.
pub(crate) fn init(
    error_log: Option<&Path>,
    user: Option<&Identity>,
    level: Option<&LogFilter>,
) -> Result<Logging, LogError> {
    let error_log = error_log.map(|path| ErrorLog::attach(path, user)).transpose()?;
    let (variable, warnings) =
        std::env::var(VARIABLE).map(|text| LogFilter::of_variable(&text)).unwrap_or_default();
    let journal = std::env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stderr(&stream));
    let (lines, guard) = Lines::start("log", Stderr, PACE).map_err(LogError::Thread)?;
    let coloured = error_log.is_none() && shows_colours();
    let style = Style { timestamps: !journal, coloured, lines: lines.clone() };
    let verbosity = Verbosity::new(style, Levels { order: None, variable, file: level.cloned() });
    log::set_boxed_logger(Box::new(verbosity.clone()))?;
    verbosity.publish();
    std::panic::set_hook(Box::new(move |panic| lines.push(panic_text(panic).into_bytes())));
    for warning in warnings {
        log::warn!("a part of {VARIABLE} is ignored: {warning}");
    }
    if let (Some(variable), true) = (verbosity.by_variable(), level.is_some()) {
        log::warn!("log_level has no effect: {VARIABLE} is set to `{variable}`, which takes precedence");
    }
    Ok(Logging { error_log, verbosity, guard })
}

/// Formats a panic as the standard library does.
fn panic_text(panic: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let backtrace = std::backtrace::Backtrace::capture();
    let backtrace = match backtrace.status() {
        std::backtrace::BacktraceStatus::Captured => format!("{backtrace}\n"),
        _ => String::new(),
    };
    let panic = panic.to_string();
    format!("thread '{}' {}\n{backtrace}", thread.name().unwrap_or("<unnamed>"), printable(&panic))
}

/// Escapes the characters by which a peer whose text is logged could begin another line, command a terminal, or
/// reorder what is shown. A line feed stays: `env_logger` indents the next line, so it cannot pass for another record.
fn printable(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c == '\n' || c == '\t' || !(c.is_control() || commands_layout(c));
    if text.chars().all(is_plain) {
        return text.into();
    }
    let escaped = |c: char| if is_plain(c) { c.to_string() } else { c.escape_default().to_string() };
    text.chars().map(escaped).collect()
}

/// Returns whether a character separates lines or changes the direction of the text (Unicode Standard Annex 9).
fn commands_layout(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns whether standard error is a terminal that shows colours.
fn shows_colours() -> bool {
    let is = |name, value: &str| std::env::var_os(name).is_some_and(|found| found == value);
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() && !is("TERM", "dumb")
}

// === impl Stderr ===

impl Sink for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(io::stderr(), bytes)?)
    }

    fn failed(&mut self, _: &io::Error) {
        // There is no other place to report the failure; the lines are counted.
    }

    fn dropped(&mut self, lines: u64) {
        log::warn!("log: {} dropped: writing to standard error is too slow or fails", count(lines, "line"));
    }
}

// === impl Queue ===

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// === impl Verbosity ===

impl Verbosity {
    fn new(style: Style, levels: Levels) -> Self {
        let logger = ArcSwap::from_pointee(style.logger(&levels.in_effect().0));
        Self(Arc::new(Switch { style, levels: Mutex::new(levels), logger }))
    }

    /// Returns the filter in effect and its source.
    pub(crate) fn in_effect(&self) -> (LogFilter, LevelSource) {
        self.levels().in_effect()
    }

    /// Returns the filter that an operator has set. `None` means that no filter was set at run time.
    pub(crate) fn ordered(&self) -> Option<LogFilter> {
        self.levels().order.clone()
    }

    /// Returns the filter in `RUST_LOG`, which takes precedence over the file. `None` means that the variable has no
    /// valid filter.
    pub(crate) fn by_variable(&self) -> Option<LogFilter> {
        self.levels().variable.clone()
    }

    /// Returns the number of lines that were dropped because standard error was too slow.
    pub(crate) fn dropped(&self) -> u64 {
        self.0.style.lines.dropped()
    }

    /// Sets the filter of an operator. `None` restores the filter of the environment or of the file.
    pub(crate) fn order(&self, filter: Option<LogFilter>) {
        self.change(|levels| levels.order = filter);
    }

    /// Sets the filter of the key `log_level`.
    pub(crate) fn set_file(&self, filter: Option<LogFilter>) {
        self.change(|levels| levels.file = filter);
    }

    fn change(&self, change: impl FnOnce(&mut Levels)) {
        let mut levels = self.levels();
        let before = levels.in_effect().0;
        change(&mut levels);
        let filter = levels.in_effect().0;
        if filter != before {
            self.0.logger.store(Arc::new(self.0.style.logger(&filter)));
            self.publish();
        }
    }

    fn levels(&self) -> MutexGuard<'_, Levels> {
        self.0.levels.lock()
    }

    /// Publishes the maximum level, so that lines with a lower priority are not even formatted.
    fn publish(&self) {
        log::set_max_level(self.0.logger.load().filter());
    }
}

impl fmt::Debug for Verbosity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Verbosity").field(&self.in_effect()).finish()
    }
}

impl log::Log for Verbosity {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        self.0.logger.load().enabled(metadata)
    }

    fn log(&self, record: &log::Record<'_>) {
        let logger = self.0.logger.load();
        if !logger.matches(record) {
            return;
        }
        let text = record.args().to_string();
        match printable(&text) {
            Cow::Borrowed(_) => logger.log(record),
            Cow::Owned(text) => {
                let metadata = record.metadata().clone();
                logger.log(&log::Record::builder().metadata(metadata).args(format_args!("{text}")).build());
            }
        }
    }

    fn flush(&self) {
        self.0.style.lines.flush(PACE.farewell);
    }
}

// === impl Levels ===

impl Levels {
    fn in_effect(&self) -> (LogFilter, LevelSource) {
        let Self { order, variable, file } = self;
        let said =
            [(order, LevelSource::Operator), (variable, LevelSource::Environment), (file, LevelSource::File)];
        let first = said.into_iter().find_map(|(filter, source)| Some((filter.clone()?, source)));
        first.unwrap_or((LogFilter::default(), LevelSource::Default))
    }
}

impl LevelSource {
    /// Returns the source as one word, for the status.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Environment => VARIABLE,
            Self::File => "file",
            Self::Default => "default",
        }
    }
}

// === impl Style ===

impl Style {
    fn logger(&self, filter: &LogFilter) -> Logger {
        let mut builder = Builder::new();
        builder.parse_filters(filter.complete());
        builder.format_timestamp(self.timestamps.then_some(TimestampPrecision::Millis));
        builder.write_style(if self.coloured { WriteStyle::Always } else { WriteStyle::Never });
        builder.target(Target::Pipe(Box::new(Queue(self.lines.clone()))));
        builder.build()
    }
}

impl ErrorLog {
    /// Opens the file for the user as whom the process will run, and redirects standard error to it.
    pub(crate) fn attach(path: &Path, user: Option<&Identity>) -> Result<Self, LogError> {
        let file = open(path, user)?;
        let terminal = nix::unistd::dup(io::stderr()).map_err(redirect)?;
        become_stderr(&file)?;
        let terminal = Mutex::new(Some(File::from(terminal)));
        Ok(Self { path: path.to_owned(), terminal, reopening: Mutex::default() })
    }

    /// Opens the file again by its path, after log rotation has moved it, and logs the result. On failure the old file
    /// stays in use.
    pub(crate) fn reopen(&self) {
        let reopened = open(&self.path, None).and_then(|file| become_stderr(&file));
        match &reopened {
            Ok(()) => log::info!("error_log: {} reopened", self.path.display()),
            Err(error) => log::error!("error_log: cannot reopen it, the old file stays in use: {error}"),
        }
        let failed = |error: LogError| ReopenFailure { time: SystemTime::now(), reason: error.to_string() };
        *self.reopening.lock() = reopened.err().map(failed);
    }

    /// Returns the failure of the last [`reopen`](Self::reopen). `None` if it succeeded, or if there was none.
    pub(crate) fn reopen_failure(&self) -> Option<ReopenFailure> {
        self.reopening.lock().clone()
    }

    /// Closes the former standard error. It is called when the daemon serves, since errors no longer belong on the
    /// terminal.
    pub(crate) fn release_terminal(&self) {
        self.terminal().take();
    }

    /// Restores the former standard error, so that the error that ends the start is visible on the terminal.
    pub(crate) fn restore_terminal(&self) -> Result<(), LogError> {
        // Earlier log lines belong into the file.
        log::logger().flush();
        match self.terminal().take() {
            Some(terminal) => become_stderr(&terminal),
            None => Ok(()),
        }
    }

    fn terminal(&self) -> MutexGuard<'_, Option<File>> {
        self.terminal.lock()
    }
}

fn open(path: &Path, user: Option<&Identity>) -> Result<File, LogError> {
    open_log(path, user).map_err(|source| Unusable::new(path, source).into())
}

fn become_stderr(file: &File) -> Result<(), LogError> {
    nix::unistd::dup2_stderr(file).map_err(redirect)
}

fn redirect(errno: nix::Error) -> LogError {
    LogError::Redirect(errno.into())
}

/// Returns whether systemd's `JOURNAL_STREAM` names the current standard error. It does not after standard error was
/// redirected.
fn is_stderr(journal_stream: &str) -> bool {
    nix::sys::stat::fstat(io::stderr()).is_ok_and(|stat| names(journal_stream, stat.st_dev, stat.st_ino))
}

fn names(journal_stream: &str, device: u64, inode: u64) -> bool {
    let Some((named_device, named_inode)) = journal_stream.split_once(':') else { return false };
    named_device.parse() == Ok(device) && named_inode.parse() == Ok(inode)
}

#[cfg(test)]
mod tests {
    use log::{Level, Log as _, Metadata};

    use super::*;

    #[test]
    fn characters_that_command_a_terminal_are_escaped() {
        for plain in ["", "pool web: \u{fc}", "a\n  b\tc", "\"a\\b\""] {
            assert!(matches!(printable(plain), Cow::Borrowed(same) if same == plain), "{plain:?}");
        }
        let hostile = "a\r\u{1b}[31m\0\u{7f}\u{9b}b\u{2028}\u{202e}\u{2066}";
        assert_eq!(printable(hostile), r"a\r\u{1b}[31m\u{0}\u{7f}\u{9b}b\u{2028}\u{202e}\u{2066}");
    }

    #[test]
    fn the_journal_is_recognised_by_device_and_inode_of_standard_error() {
        assert!(names("9:1234", 9, 1234));
        assert!(!names("9:1234", 9, 1235));
        assert!(!names("9", 9, 9) && !names("", 0, 0) && !names("a:b", 0, 0));
    }

    #[test]
    fn the_error_names_a_file_that_cannot_be_opened() {
        let error = ErrorLog::attach(Path::new("/no/such/dir/error.log"), None).unwrap_err().to_string();
        assert!(error.contains("error_log /no/such/dir/error.log"), "{error}");
    }

    fn filter(text: &str) -> LogFilter {
        LogFilter::parse(text).unwrap()
    }

    #[test]
    fn an_operator_takes_precedence_over_the_variable_and_the_variable_over_the_file() {
        let mut levels = Levels::default();
        assert_eq!(levels.in_effect(), (filter("info"), LevelSource::Default));
        levels.file = Some(filter("warn"));
        assert_eq!(levels.in_effect(), (filter("warn"), LevelSource::File));
        levels.variable = Some(filter("error"));
        assert_eq!(levels.in_effect(), (filter("error"), LevelSource::Environment));
        levels.order = Some(filter("debug"));
        assert_eq!(levels.in_effect(), (filter("debug"), LevelSource::Operator));
    }

    #[test]
    fn the_filter_can_be_changed_at_run_time() {
        let (lines, _guard) = Lines::start("log", Stderr, PACE).unwrap();
        let style = Style { timestamps: true, coloured: false, lines };
        let verbosity = Verbosity::new(style, Levels { file: Some(filter("warn")), ..Levels::default() });
        let logs = |level| verbosity.enabled(&Metadata::builder().target("shared").level(level).build());
        assert!(logs(Level::Warn) && !logs(Level::Info));
        verbosity.order(Some(filter("shared=debug")));
        assert!(logs(Level::Debug));
        verbosity.set_file(Some(filter("error")));
        assert!(logs(Level::Debug), "the order takes precedence");
        verbosity.order(None);
        assert!(logs(Level::Error) && !logs(Level::Warn));
    }
}
