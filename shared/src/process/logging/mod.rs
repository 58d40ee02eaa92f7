//! Log lines: where they go and which of them.
//!
//! Everything goes to standard error through `env_logger`. With `error_log`, standard error *is* that file, so panics and
//! whatever a library prints land there too. Lines are `[2026-01-31T12:00:00.123Z INFO target] text`, in UTC; the time is
//! left out where the journal adds its own.

mod filter;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use env_logger::{Builder, Logger, TimestampPrecision, WriteStyle};
pub use filter::LogFilter;

use super::files::{Unusable, open_or_create};

/// The environment variable that says what is logged.
const VARIABLE: &str = "RUST_LOG";

/// The file that standard error has become.
#[derive(Debug)]
pub struct ErrorLog {
    path: PathBuf,
    /// What standard error was, for errors of the start that a person waits for.
    terminal: Mutex<Option<File>>,
}

/// What is logged: it can be changed while the process runs. Clones are of the same logger.
#[derive(Clone)]
pub struct Verbosity(Arc<Switch>);

struct Switch {
    style: Style,
    levels: Mutex<Levels>,
    logger: ArcSwap<Logger>,
}

/// Every filter that somebody gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Levels {
    /// At run time.
    order: Option<LogFilter>,
    /// By `RUST_LOG`.
    variable: Option<LogFilter>,
    /// By the key `log_level`.
    file: Option<LogFilter>,
}

/// Where the filter in effect comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LevelSource {
    /// An operator has set it at run time.
    Operator,
    /// The environment variable `RUST_LOG`.
    Environment,
    /// The key `log_level`.
    File,
    /// Nobody has said anything.
    Default,
}

/// How lines look.
#[derive(Clone, Copy)]
struct Style {
    timestamps: bool,
    plain: bool,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum LogError {
    #[error("cannot open error_log {0}")]
    Open(#[from] Unusable),
    #[error("cannot redirect standard error: {0}")]
    Redirect(#[source] io::Error),
    #[error("a logger is already set up: {0}")]
    Logger(#[from] log::SetLoggerError),
}

/// Starts logging; to be called once, early. Messages of the start reach the file too. `level` is that of the configuration.
pub fn init(
    error_log: Option<&Path>,
    level: Option<&LogFilter>,
) -> Result<(Option<ErrorLog>, Verbosity), LogError> {
    let error_log = error_log.map(ErrorLog::attach).transpose()?;
    let (variable, warnings) =
        std::env::var(VARIABLE).map(|text| LogFilter::of_variable(&text)).unwrap_or_default();
    let journal = std::env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stderr(&stream));
    let style = Style { timestamps: !journal, plain: error_log.is_some() };
    let verbosity = Verbosity::new(style, Levels { order: None, variable, file: level.cloned() });
    log::set_boxed_logger(Box::new(verbosity.clone()))?;
    verbosity.publish();
    for warning in warnings {
        log::warn!("a part of {VARIABLE} is ignored: {warning}");
    }
    if let (Some(variable), true) = (verbosity.by_variable(), level.is_some()) {
        log::warn!("log_level has no effect: {VARIABLE} is set to `{variable}`, which wins");
    }
    Ok((error_log, verbosity))
}

// === impl Verbosity ===

impl Verbosity {
    fn new(style: Style, levels: Levels) -> Self {
        let logger = ArcSwap::from_pointee(style.logger(&levels.in_effect().0));
        Self(Arc::new(Switch { style, levels: Mutex::new(levels), logger }))
    }

    /// What is logged, and who says so.
    pub fn in_effect(&self) -> (LogFilter, LevelSource) {
        self.levels().in_effect()
    }

    /// What an operator has set, if anything.
    pub fn ordered(&self) -> Option<LogFilter> {
        self.levels().order.clone()
    }

    /// What `RUST_LOG` says, if anything: it wins over the file.
    pub fn by_variable(&self) -> Option<LogFilter> {
        self.levels().variable.clone()
    }

    /// From now on this is logged, because an operator says so. `None`: what the environment or the file says.
    pub fn order(&self, filter: Option<LogFilter>) {
        self.change(|levels| levels.order = filter);
    }

    /// The file says this now.
    pub fn set_file(&self, filter: Option<LogFilter>) {
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
        self.0.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lines below this level are not even formatted.
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
        self.0.logger.load().log(record);
    }

    fn flush(&self) {
        self.0.logger.load().flush();
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
    /// In a word, for the status.
    pub fn as_str(self) -> &'static str {
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
    fn logger(self, filter: &LogFilter) -> Logger {
        let mut builder = Builder::new();
        builder.parse_filters(filter.complete());
        builder.format_timestamp(self.timestamps.then_some(TimestampPrecision::Millis));
        if self.plain {
            builder.write_style(WriteStyle::Never);
        }
        builder.build()
    }
}

impl ErrorLog {
    /// Opens the file (append, created with mode 0640) and makes it standard error.
    pub fn attach(path: &Path) -> Result<Self, LogError> {
        let file = open(path)?;
        let terminal = nix::unistd::dup(io::stderr()).map_err(redirect)?;
        become_stderr(&file)?;
        Ok(Self { path: path.to_owned(), terminal: Mutex::new(Some(File::from(terminal))) })
    }

    /// Opens the file anew by its name, after it was moved away by log rotation, and logs how that went. On failure the old file
    /// stays in use.
    pub fn reopen(&self) {
        match open(&self.path).and_then(|file| become_stderr(&file)) {
            Ok(()) => log::info!("error_log: {} reopened", self.path.display()),
            Err(error) => log::error!("error_log not reopened, the old file is kept: {error}"),
        }
    }

    /// Gives up the former standard error: the daemon serves, nobody waits at the terminal any more.
    pub fn release_terminal(&self) {
        self.terminal().take();
    }

    /// Makes the terminal standard error again, to end with a message that a person can see.
    pub fn restore_terminal(&self) -> Result<(), LogError> {
        match self.terminal().take() {
            Some(terminal) => become_stderr(&terminal),
            None => Ok(()),
        }
    }

    fn terminal(&self) -> MutexGuard<'_, Option<File>> {
        self.terminal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(path: &Path) -> Result<File, LogError> {
    let opened = open_or_create(path, OpenOptions::new().append(true).mode(0o640));
    opened.map_err(|source| Unusable::new(path, source).into())
}

fn become_stderr(file: &File) -> Result<(), LogError> {
    nix::unistd::dup2_stderr(file).map_err(redirect)
}

fn redirect(errno: nix::Error) -> LogError {
    LogError::Redirect(errno.into())
}

/// Whether systemd's `JOURNAL_STREAM` speaks of this standard error, and not of one that was redirected since.
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
    fn the_journal_is_recognised_by_device_and_inode() {
        assert!(names("9:1234", 9, 1234));
        assert!(!names("9:1234", 9, 1235));
        assert!(!names("9", 9, 9) && !names("", 0, 0) && !names("a:b", 0, 0));
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let error = ErrorLog::attach(Path::new("/no/such/dir/error.log")).unwrap_err().to_string();
        assert!(error.contains("error_log /no/such/dir/error.log"), "{error}");
    }

    fn filter(text: &str) -> LogFilter {
        LogFilter::parse(text).unwrap()
    }

    #[test]
    fn an_operator_wins_over_the_variable_and_that_over_the_file() {
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
    fn what_is_logged_changes_while_it_runs() {
        let style = Style { timestamps: true, plain: true };
        let verbosity = Verbosity::new(style, Levels { file: Some(filter("warn")), ..Levels::default() });
        let logs = |level| verbosity.enabled(&Metadata::builder().target("shared").level(level).build());
        assert!(logs(Level::Warn) && !logs(Level::Info));
        verbosity.order(Some(filter("shared=debug")));
        assert!(logs(Level::Debug));
        verbosity.set_file(Some(filter("error")));
        assert!(logs(Level::Debug), "the order wins");
        verbosity.order(None);
        assert!(logs(Level::Error) && !logs(Level::Warn));
    }
}
