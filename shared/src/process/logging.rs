//! Log lines: where they go and which of them.
//!
//! Everything goes to standard error through `env_logger`. With `error_log`, standard error *is* that file, so panics and
//! whatever a library prints land there too. Lines are `[2026-01-31T12:00:00.123Z INFO target] text`, in UTC; the time is
//! left out where the journal adds its own.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use env_logger::{Builder, Logger, TimestampPrecision, WriteStyle};

use super::files::{Unusable, open_or_create};

/// What is logged unless `RUST_LOG` says otherwise. Names are prefixes, so `pingora` covers all of Pingora's crates; its
/// load balancer reports each health change, which our prober does itself and with the reason, and its proxy each request
/// that a client breaks off, which is in our access log and would let clients fill this one.
const DEFAULT_FILTER: &str = "info,pingora=warn,pingora_load_balancing=off,pingora_proxy=off";

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
    /// The filter of the start.
    first: String,
    chosen: ArcSwap<Chosen>,
}

struct Chosen {
    logger: Logger,
    filter: String,
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

/// Starts logging; to be called once, early. Messages of the start reach the file too.
pub fn init(error_log: Option<&Path>) -> Result<(Option<ErrorLog>, Verbosity), LogError> {
    let error_log = error_log.map(ErrorLog::attach).transpose()?;
    let rust_log = std::env::var("RUST_LOG").ok();
    let journal = std::env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stderr(&stream));
    let style = Style { timestamps: !journal, plain: error_log.is_some() };
    let verbosity = Verbosity::new(style, filter(rust_log.as_deref()));
    log::set_boxed_logger(Box::new(verbosity.clone()))?;
    verbosity.publish();
    Ok((error_log, verbosity))
}

// === impl Verbosity ===

impl Verbosity {
    fn new(style: Style, filter: &str) -> Self {
        let chosen = Chosen { logger: style.logger(filter), filter: filter.to_owned() };
        Self(Arc::new(Switch { style, first: filter.to_owned(), chosen: ArcSwap::from_pointee(chosen) }))
    }

    /// What is logged, as `RUST_LOG` would be written.
    pub fn filter(&self) -> String {
        self.0.chosen.load().filter.clone()
    }

    /// The same if it is not that of the start.
    pub fn changed(&self) -> Option<String> {
        Some(self.filter()).filter(|filter| *filter != self.0.first)
    }

    /// From now on this is logged, written as `RUST_LOG` is.
    ///
    /// # Errors
    /// What is wrong with it; nothing changes.
    pub fn set(&self, filter: &str) -> Result<(), String> {
        if filter.trim().is_empty() {
            return Err("the filter is empty: write `info`, or `info,health_service=debug`".into());
        }
        env_filter::Builder::new().try_parse(filter).map_err(|error| error.to_string())?;
        let chosen = Chosen { logger: self.0.style.logger(filter), filter: filter.to_owned() };
        self.0.chosen.store(Arc::new(chosen));
        self.publish();
        Ok(())
    }

    /// Lines that nobody wants are not even made.
    fn publish(&self) {
        log::set_max_level(self.0.chosen.load().logger.filter());
    }
}

impl fmt::Debug for Verbosity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Verbosity").field(&self.filter()).finish()
    }
}

impl log::Log for Verbosity {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        self.0.chosen.load().logger.enabled(metadata)
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.chosen.load().logger.log(record);
    }

    fn flush(&self) {
        self.0.chosen.load().logger.flush();
    }
}

// === impl Style ===

impl Style {
    fn logger(self, filter: &str) -> Logger {
        let mut builder = Builder::new();
        builder.parse_filters(filter);
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

    fn terminal(&self) -> std::sync::MutexGuard<'_, Option<File>> {
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

/// The filter to use, given `RUST_LOG`, which wins altogether when it says anything.
fn filter(rust_log: Option<&str>) -> &str {
    match rust_log {
        Some(filter) if !filter.trim().is_empty() => filter,
        _ => DEFAULT_FILTER,
    }
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
    use log::{Level, Log, Metadata};

    use super::*;

    #[test]
    fn rust_log_wins_when_it_says_something() {
        assert_eq!(filter(None), DEFAULT_FILTER);
        assert_eq!(filter(Some("  ")), DEFAULT_FILTER);
        assert_eq!(filter(Some("INFO")), "INFO");
    }

    #[test]
    fn the_default_quietens_pingora_only() {
        let logger = Builder::new().parse_filters(filter(None)).build();
        let shows = |target: &str, level: Level| {
            Log::enabled(&logger, &Metadata::builder().target(target).level(level).build())
        };
        assert!(shows("lb_service::proxy", Level::Info));
        assert!(!shows("lb_service::proxy", Level::Debug));
        assert!(!shows("pingora_core::server", Level::Info));
        assert!(shows("pingora_core::server", Level::Warn));
        assert!(!shows("pingora_load_balancing", Level::Error));
    }

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

    #[test]
    fn what_is_logged_changes_while_it_runs_and_nonsense_changes_nothing() {
        let verbosity = Verbosity::new(Style { timestamps: true, plain: true }, "info,quiet=off");
        let logs =
            |target, level| verbosity.enabled(&Metadata::builder().target(target).level(level).build());
        assert!(logs("a", Level::Info) && !logs("a", Level::Debug) && !logs("quiet", Level::Error));
        verbosity.set("warn,a=debug").unwrap();
        assert!(logs("a", Level::Debug) && !logs("b", Level::Info) && logs("quiet", Level::Warn));
        for nonsense in ["", "a=loud", "a=b=c"] {
            assert!(verbosity.set(nonsense).is_err(), "{nonsense}");
        }
        assert_eq!(verbosity.filter(), "warn,a=debug");
    }
}
