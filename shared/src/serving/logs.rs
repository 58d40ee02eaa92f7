//! Access logs of the plan in effect, and of earlier plans while requests still write to them.

use std::io;
use std::path::Path;
use std::sync::Arc;

use lb_service::access_log::{AccessLog, Format, Settings, Target, WriterGuard};
use lb_service::lines::ReopenFailure;
use parking_lot::{Mutex, MutexGuard};

use crate::config::Plan;
use crate::process::files::{Unusable, check_writable, open_log};
use crate::process::logging::ErrorLog;
use crate::process::privileges::Identity;

/// Log files of the process. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Logs {
    /// The file that replaces standard error; `None` if it is unchanged.
    pub(crate) error: Option<Arc<ErrorLog>>,
    /// The access logs.
    pub(crate) access: AccessLogs,
}

/// Writers of all access logs. Clones share them; dropping the last clone writes the queued lines.
#[derive(Clone, Debug, Default)]
pub(crate) struct AccessLogs {
    /// The names of listeners that never have an access log, regardless of the configuration.
    silent: Arc<[&'static str]>,
    kept: Arc<Mutex<Kept>>,
}

/// Opened log that is not in use yet.
#[derive(Debug)]
pub(crate) struct Opened {
    log: AccessLog,
    /// The writer; `None` if one for the same target exists already, or if the log is off.
    writer: Option<Writer>,
}

/// Writer for one target.
#[derive(Debug)]
struct Writer {
    target: Target,
    log: AccessLog,
    guard: WriterGuard,
}

#[derive(Debug, Default)]
struct Kept {
    in_use: Option<AccessLog>,
    /// The writers of the log in use, and of logs to which requests of earlier plans write.
    writers: Vec<Writer>,
    /// The number of lines that earlier writers dropped.
    dropped: u64,
}

// === impl Logs ===

impl Logs {
    /// Opens all files again, after log rotation has moved them.
    pub(crate) fn reopen(&self) {
        let count = self.access.reopen();
        match &self.error {
            Some(log) => log.reopen(),
            None if count == 0 => log::info!("there is no log file to reopen"),
            None => {}
        }
    }

    /// Returns the failures to open a file again after the last log rotation.
    pub(crate) fn reopen_failures(&self) -> Vec<ReopenFailure> {
        let of_error_log = self.error.as_ref().and_then(|log| log.reopen_failure());
        of_error_log.into_iter().chain(self.access.reopen_failures()).collect()
    }
}

// === impl AccessLogs ===

impl AccessLogs {
    /// Returns access logs without the listeners of these names, regardless of the configuration.
    pub(crate) fn without(silent: &[&'static str]) -> Self {
        Self { silent: silent.into(), kept: Arc::default() }
    }

    /// Opens the log of the settings. A target that is already open does not get a second writer for another format.
    /// The process will run as `user`, if there is one.
    ///
    /// # Errors
    /// If the target cannot be opened for writing.
    pub(crate) fn open(&self, settings: &Settings, user: Option<&Identity>) -> Result<Opened, Unusable> {
        let Settings { format, target } = settings;
        let same_target =
            |writer: &Writer| writer.log.in_format(*format).filter(|_| writer.target == *target);
        if let Some(log) = self.lock().writers.iter().find_map(same_target) {
            return Ok(Opened { log, writer: None });
        }
        let opened = match file_of(settings) {
            Some(path) => open_log(path, user).and_then(|file| AccessLog::with_file(settings.clone(), file)),
            None => AccessLog::open(settings.clone()),
        };
        let (log, guard) = opened.map_err(|error| unusable(&settings.target, error))?;
        let writer = log.is_on().then(|| Writer { target: target.clone(), log: log.clone(), guard });
        Ok(Opened { log, writer })
    }

    /// Checks that the log of the settings can be opened. This does not create a file, and the reader of a FIFO does
    /// not notice it.
    ///
    /// # Errors
    /// If the log cannot be opened.
    pub(crate) fn check(&self, settings: &Settings) -> Result<(), Unusable> {
        let Some(path) = file_of(settings) else { return Ok(()) };
        if self.lock().writers.iter().any(|writer| writer.target == settings.target) {
            return Ok(());
        }
        check_writable(path).map_err(|error| Unusable::new(path, error))
    }

    /// Returns one log for each listener of `plan`, from `opened` or from the log in use.
    pub(crate) fn of(&self, plan: &Plan, opened: Option<&Opened>) -> Vec<AccessLog> {
        let kept = self.lock();
        let log = opened.map(|opened| &opened.log).or(kept.in_use.as_ref());
        let log = log.cloned().unwrap_or_else(AccessLog::off);
        let of = |name: &str| if self.silent.contains(&name) { AccessLog::off() } else { log.clone() };
        plan.listeners.iter().map(|(_, listener)| of(&listener.name)).collect()
    }

    /// Puts `opened` into use. The previous writer exists as long as any plan refers to it.
    pub(crate) fn replace(&self, opened: Opened) {
        let mut kept = self.lock();
        kept.in_use = Some(opened.log);
        kept.writers.extend(opened.writer);
    }

    /// Reopens all files and returns their number. Each writer logs the result.
    pub(crate) fn reopen(&self) -> usize {
        let kept = self.lock();
        let files = kept.writers.iter().filter(|writer| matches!(writer.target, Target::File(_)));
        files.map(|writer| writer.log.reopen()).count()
    }

    /// Returns the failures to open a file again after the last log rotation.
    pub(crate) fn reopen_failures(&self) -> Vec<ReopenFailure> {
        self.lock().writers.iter().filter_map(|writer| writer.log.reopen_failure()).collect()
    }

    /// Returns the number of lines that all logs dropped since the start.
    pub(crate) fn dropped(&self) -> u64 {
        let kept = self.lock();
        kept.dropped + kept.writers.iter().map(|writer| writer.log.dropped()).sum::<u64>()
    }

    /// Writes the queued lines, and ends all writers.
    pub(crate) fn end(&self) {
        let all = std::mem::take(&mut *self.lock());
        drop(all);
    }

    /// Ends the writers to which no plan refers, including old plans that requests in flight still use. This function
    /// waits until the queued lines are written.
    pub(crate) fn end_unused(&self) {
        let mut kept = self.lock();
        let unused: Vec<_> = kept.writers.extract_if(.., |writer| writer.log.is_last()).collect();
        // The count must never decrease.
        kept.dropped += unused.iter().map(|writer| writer.log.dropped()).sum::<u64>();
        drop(kept);
        for Writer { log, guard, .. } in unused {
            let before = log.dropped();
            // Dropping waits for the disk, so it must happen outside of the lock.
            drop(guard);
            self.lock().dropped += log.dropped() - before;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock()
    }
}

/// The file that a log with these settings is written to, if it is on.
pub(crate) fn file_of(settings: &Settings) -> Option<&Path> {
    match &settings.target {
        Target::File(path) if settings.format != Format::Off => Some(path),
        _ => None,
    }
}

fn unusable(target: &Target, error: io::Error) -> Unusable {
    match target {
        Target::File(path) => Unusable::new(path, error),
        Target::Stdout => Unusable::new(Path::new("/dev/stdout"), error),
    }
}
