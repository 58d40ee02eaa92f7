//! The access logs of the plan that is in effect, and of those before it as long as requests write to them.

use std::io;
use std::path::Path;
use std::sync::Arc;

use lb_service::access_log::{AccessLog, Format, Settings, Target, WriterGuard};
use parking_lot::{Mutex, MutexGuard};

use crate::config::Plan;
use crate::process::files::{Unusable, check_writable, open_log};
use crate::process::privileges::Identity;

/// Keeps the writers. Clones share them; the last one that is dropped writes what is queued.
#[derive(Clone, Debug, Default)]
pub(super) struct AccessLogs {
    /// Names of the listeners that have none, whatever the configuration says.
    silent: Arc<[&'static str]>,
    kept: Arc<Mutex<Kept>>,
}

/// One log, not yet in use.
#[derive(Debug)]
pub(super) struct Opened {
    log: AccessLog,
    /// None: there is one for the same target already, or the log is off.
    writer: Option<Writer>,
}

/// One target that is written to.
#[derive(Debug)]
struct Writer {
    target: Target,
    log: AccessLog,
    guard: WriterGuard,
}

#[derive(Debug, Default)]
struct Kept {
    in_use: Option<AccessLog>,
    /// Of the log in use, and of those that requests of earlier plans write to.
    writers: Vec<Writer>,
    /// Lines that the writers before these did not write.
    dropped: u64,
}

// === impl AccessLogs ===

impl AccessLogs {
    /// Listeners of these names have no access log, whatever the configuration says.
    pub(super) fn without(silent: &[&'static str]) -> Self {
        Self { silent: silent.into(), kept: Arc::default() }
    }

    /// Opens the log that the settings name; a target that is written to already gets no second writer for another format. The
    /// process will run as `user`, if there is one.
    ///
    /// # Errors
    /// When its target cannot be written to.
    pub(super) fn open(&self, settings: &Settings, user: Option<&Identity>) -> Result<Opened, Unusable> {
        let Settings { format, target } = settings;
        let same_target =
            |writer: &Writer| writer.log.in_format(*format).filter(|_| writer.target == *target);
        if let Some(log) = self.lock().writers.iter().find_map(same_target) {
            return Ok(Opened { log, writer: None });
        }
        let opened = match target {
            Target::File(path) if *format != Format::Off => {
                open_log(path, user).and_then(|file| AccessLog::with_file(settings.clone(), file))
            }
            _ => AccessLog::open(settings.clone()),
        };
        let (log, guard) = opened.map_err(|error| unusable(&settings.target, error))?;
        let writer = log.is_on().then(|| Writer { target: target.clone(), log: log.clone(), guard });
        Ok(Opened { log, writer })
    }

    /// Whether the log that the settings name can be opened; nothing is made, and no reader of a FIFO sees it.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn check(&self, settings: &Settings) -> Result<(), Unusable> {
        let path = match &settings.target {
            Target::File(path) if settings.format != Format::Off => path,
            _ => return Ok(()),
        };
        if self.lock().writers.iter().any(|writer| writer.target == settings.target) {
            return Ok(());
        }
        check_writable(path).map_err(|error| Unusable::new(path, error))
    }

    /// One log for each listener of `plan`: of `opened`, or of the one in use.
    pub(super) fn of(&self, plan: &Plan, opened: Option<&Opened>) -> Vec<AccessLog> {
        let kept = self.lock();
        let log = opened.map(|opened| &opened.log).or(kept.in_use.as_ref());
        let log = log.cloned().unwrap_or_else(AccessLog::off);
        let of = |name: &str| if self.silent.contains(&name) { AccessLog::off() } else { log.clone() };
        plan.listeners.iter().map(|(_, listener)| of(&listener.name)).collect()
    }

    /// From now on `opened` is in use. The writer of the one before lives as long as any plan has it.
    pub(super) fn replace(&self, opened: Opened) {
        let mut kept = self.lock();
        kept.in_use = Some(opened.log);
        kept.writers.extend(opened.writer);
    }

    /// Has all files opened anew; each writer logs how that went. Returns how many files there are.
    pub(super) fn reopen(&self) -> usize {
        let kept = self.lock();
        let files = kept.writers.iter().filter(|writer| matches!(writer.target, Target::File(_)));
        files.map(|writer| writer.log.reopen()).count()
    }

    /// Lines that were not written, of all logs since the start.
    pub(super) fn dropped(&self) -> u64 {
        let kept = self.lock();
        kept.dropped + kept.writers.iter().map(|writer| writer.log.dropped()).sum::<u64>()
    }

    /// Ends all writers, when they have written what is queued.
    pub(super) fn end(&self) {
        let all = std::mem::take(&mut *self.lock());
        drop(all);
    }

    /// Ends the writers that no plan has any more, be it an old one that a request still works by. It waits until they have
    /// written what is queued.
    pub(super) fn end_unused(&self) {
        let mut kept = self.lock();
        let unused: Vec<_> = kept.writers.extract_if(.., |writer| writer.log.is_last()).collect();
        // The count never goes down.
        kept.dropped += unused.iter().map(|writer| writer.log.dropped()).sum::<u64>();
        drop(kept);
        for Writer { log, guard, .. } in unused {
            let before = log.dropped();
            // Outside of the lock: this waits.
            drop(guard);
            self.lock().dropped += log.dropped() - before;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock()
    }
}

fn unusable(target: &Target, error: io::Error) -> Unusable {
    match target {
        Target::File(path) => Unusable::new(path, error),
        Target::Stdout => Unusable::new(Path::new("/dev/stdout"), error),
    }
}
