//! The access logs of the plan that is in effect, and of those before it as long as requests write to them.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use lb_service::access_log::{AccessLog, Settings, WriterGuard};

use crate::config::Plan;

/// Keeps the writers. Clones share them; the last one that is dropped writes what is queued.
#[derive(Clone, Debug, Default)]
pub(super) struct AccessLogs {
    /// Names of the listeners that have none, whatever the configuration says.
    silent: Arc<[&'static str]>,
    kept: Arc<Mutex<Kept>>,
}

/// One log, with what keeps its writer alive.
#[derive(Debug)]
pub(super) struct Opened {
    log: AccessLog,
    _guard: WriterGuard,
}

#[derive(Debug, Default)]
struct Kept {
    in_use: Option<Opened>,
    /// Of earlier plans.
    former: Vec<Opened>,
}

// === impl AccessLogs ===

impl AccessLogs {
    /// Listeners of these names have no access log, whatever the configuration says.
    pub(super) fn without(silent: &[&'static str]) -> Self {
        Self { silent: silent.into(), kept: Arc::default() }
    }

    /// Opens the log that the settings name.
    ///
    /// # Errors
    /// When its target cannot be written to.
    pub(super) fn open(&self, settings: &Settings) -> io::Result<Opened> {
        let (log, guard) = AccessLog::open(settings.clone())?;
        Ok(Opened { log, _guard: guard })
    }

    /// One log for each listener of `plan`: of `opened`, or of the one in use.
    pub(super) fn of(&self, plan: &Plan, opened: Option<&Opened>) -> Vec<AccessLog> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let log = opened.or(kept.in_use.as_ref());
        let log = log.map_or_else(AccessLog::off, |opened| opened.log.clone());
        let of = |name: &str| if self.silent.contains(&name) { AccessLog::off() } else { log.clone() };
        plan.listeners.iter().map(|(_, listener)| of(&listener.name)).collect()
    }

    /// From now on `opened` is in use. The one before lives as long as any plan has it.
    pub(super) fn replace(&self, opened: Opened) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let before = kept.in_use.replace(opened);
        kept.former.extend(before);
    }

    /// Opens all files anew.
    pub(super) fn reopen(&self) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.in_use.iter().chain(&kept.former).for_each(|opened| opened.log.reopen());
    }

    /// Ends all writers, when they have written what is queued.
    pub(super) fn end(&self) {
        let all = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        drop(all);
    }

    /// Ends the writers that no plan has any more, be it an old one that a request still works by. It waits until they have
    /// written what is queued.
    pub(super) fn end_unused(&self) {
        let unused = {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.former.extract_if(.., |opened| opened.log.is_last()).collect::<Vec<_>>()
        };
        // Outside of the lock: this waits.
        drop(unused);
    }
}
