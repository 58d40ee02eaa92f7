//! The access logs of the plan that is in effect, and of those before it as long as requests write to them.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use lb_service::access_log::{AccessLog, Settings, WriterGuard};
use lb_service::plan::Plan as Served;

use crate::config::Plan;

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
    guard: WriterGuard,
}

/// One that requests of an earlier plan write to.
#[derive(Debug)]
struct Former {
    plan: Weak<Served>,
    log: AccessLog,
    _guard: WriterGuard,
}

#[derive(Debug, Default)]
struct Kept {
    log: Option<(AccessLog, WriterGuard)>,
    former: Vec<Former>,
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
        Ok(Opened { log, guard })
    }

    /// One log for each listener of `plan`: of `opened`, or of the one in use.
    pub(super) fn of(&self, plan: &Plan, opened: Option<&Opened>) -> Vec<AccessLog> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let in_use = kept.log.as_ref().map(|(log, _)| log);
        let log = opened.map(|opened| &opened.log).or(in_use).cloned().unwrap_or_else(AccessLog::off);
        let of = |name: &str| if self.silent.contains(&name) { AccessLog::off() } else { log.clone() };
        plan.listeners.iter().map(|(_, listener)| of(&listener.name)).collect()
    }

    /// From now on `opened` is in use. The one before lives as long as requests of `former`, the plan that it belongs to.
    pub(super) fn replace(&self, opened: Opened, former: Weak<Served>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let before = kept.log.replace((opened.log, opened.guard));
        kept.former.extend(before.map(|(log, guard)| Former { plan: former, log, _guard: guard }));
    }

    /// Opens all files anew.
    pub(super) fn reopen(&self) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let former = kept.former.iter().map(|former| &former.log);
        kept.log.iter().map(|(log, _)| log).chain(former).for_each(AccessLog::reopen);
    }

    /// Ends all writers, when they have written what is queued.
    pub(super) fn end(&self) {
        let all = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        drop(all);
    }

    /// Ends the writers of plans that no request has any more. It waits until they have written what is queued.
    pub(super) fn end_unused(&self) {
        let unused = {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.former.extract_if(.., |former| former.plan.strong_count() == 0).collect::<Vec<_>>()
        };
        // Outside of the lock: this waits.
        drop(unused);
    }
}
