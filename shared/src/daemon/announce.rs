//! Last step of a start: notifies everything that waits for it that the daemon serves.

use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use metrics_service::Readiness;
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;
use pingora::services::ServiceReadyNotifier;
use pingora::services::background::BackgroundService;
use tokio::sync::{mpsc, watch};

use super::acquire::{Files, Held};
use super::compose::Beginning;
use super::moving::Moving;
use crate::config::Plan;
use crate::process::background::Announcer;
use crate::process::files::reason;
use crate::process::lifecycle::{Signals, StartDecision};
use crate::process::logging::ErrorLog;
use crate::process::pid_file::{PidFile, Prepared};
use crate::process::systemd::Supervisor;
use crate::process::upgrade::{Hold, PredecessorLink};
use crate::serving::Core;

/// Pingora service that runs once, when the listeners accept connections.
pub(super) struct Announce {
    readiness: Readiness,
    installed: watch::Receiver<bool>,
    failures: mpsc::UnboundedSender<String>,
    decision: StartDecision,
    once: Mutex<Option<Announcement>>,
}

/// Values that the announcement consumes.
pub(super) struct Announcement {
    announcer: Announcer,
    /// The takeover from the old process; `None` unless this is an upgrade.
    takeover: Option<Takeover>,
    /// The file that replaces standard error; `None` if it is unchanged.
    error_log: Option<Arc<ErrorLog>>,
    supervisor: Supervisor,
    core: Core,
    /// The served addresses, for messages: `on 0.0.0.0:80`.
    serves: String,
    /// The lock that prevents changes until the announcement is complete.
    hold: Hold,
    /// The listeners of the old process that move to other addresses.
    moving: Moving,
}

/// Takeover from the old process.
struct Takeover {
    link: PredecessorLink,
    files: Files,
    /// The file that becomes the PID file; `None` without a PID file.
    prepared: Option<Prepared>,
    /// The PID file that an older version might use.
    common_pid_file: PathBuf,
}

// === impl Announce ===

impl Announce {
    pub(super) fn new(signals: &Signals, once: Announcement) -> Self {
        Self {
            readiness: once.core.readiness.clone(),
            installed: signals.installed(),
            failures: signals.failures(),
            decision: signals.start_decision(),
            once: Mutex::new(Some(once)),
        }
    }
}

#[async_trait]
impl BackgroundService for Announce {
    /// Dependent services start after the announcement. In an upgrade they start when the old process has released the
    /// sockets; if it does not, they never start.
    async fn start_with_ready_notifier(&self, _shutdown: ShutdownWatch, ready: ServiceReadyNotifier) {
        if self.announce().await {
            ready.notify_ready();
        } else {
            never(ready).await;
        }
    }

    async fn start(&self, _shutdown: ShutdownWatch) {
        self.announce().await;
    }
}

impl Announce {
    /// Cancels the announcement. The old process receives the reason and continues to serve; this process ends.
    pub(super) fn cancel(&self, problem: &str) {
        let once = self.once.lock().take();
        let Some(once) = once else { return };
        if self.decision.decide() {
            let error_log = once.error_log.clone();
            // The reason must come first, or the old process would only see that this one has ended.
            once.cancel(problem);
            self.end(error_log, format!("upgrade: {problem}"));
        } else {
            once.give_up();
        }
    }

    /// Ends the process, and reports the problem in the error log and where the start was requested.
    fn end(&self, error_log: Option<Arc<ErrorLog>>, problem: String) {
        if let Some(error_log) = error_log {
            log::error!("{problem}");
            if let Err(error) = error_log.restore_terminal() {
                log::error!("{error}");
            }
        }
        // Sending fails if the process is already ending.
        let _ = self.failures.send(problem);
    }

    /// Announces the process when the listeners accept connections, and returns whether it serves. This function is
    /// allowed to block, because a background service has its own thread.
    async fn announce(&self) -> bool {
        // The signal handlers come first, because a stop signal can follow the announcement immediately.
        let installed = self.installed.clone().wait_for(|installed| *installed).await.is_ok();
        let once = self.once.lock().take();
        let Some(once) = once.filter(|_| installed) else { return false };
        if !self.decision.decide() {
            once.give_up();
            return false;
        }
        self.readiness.set_listening(true);
        let error_log = once.error_log.clone();
        let Err(problem) = once.announce() else { return true };
        self.end(error_log, problem);
        false
    }
}

/// Keeps dependent services from starting. Dropping the notifier would report the service as ready.
pub(super) async fn never(_ready: ServiceReadyNotifier) {
    pending::<()>().await;
}

// === impl Announcement ===

impl Announcement {
    /// Returns the announcement of a process that holds these resources.
    pub(super) fn new(plan: &Plan, held: Held, core: Core, beginning: Beginning) -> Self {
        let Beginning { serves, hold, moving, .. } = beginning;
        let Held { announcer, logs, supervisor, link, files, prepared, .. } = held;
        let common_pid_file = plan.server.runtime.common().pid_file();
        let takeover = link.map(|link| Takeover { link, files, prepared, common_pid_file });
        Self { announcer, takeover, error_log: logs.error, supervisor, core, serves, hold, moving }
    }

    fn announce(self) -> Result<(), String> {
        let announcer = self.announcer.prepare();
        let announcer =
            announcer.map_err(|error| format!("cannot detach from the terminal: {}", reason(&error)))?;
        self.takeover.map_or(Ok(()), Takeover::complete)?;
        let serves = &self.serves;
        log::info!("process {} serves {serves}", std::process::id());
        self.core.note(format!("serves {serves}"));
        // This comes before the end of the parent, which systemd might still regard as the main process.
        self.supervisor.serves(&format!("serving {serves}"));
        if let Some(error_log) = &self.error_log {
            error_log.release_terminal();
        }
        if let Err(error) = announcer.announce(self.error_log.is_some()) {
            log::error!("cannot detach from the terminal: {}", reason(&error));
        }
        self.moving.end(self.hold);
        Ok(())
    }

    /// Handles a request to end before the process served: the old process continues to serve.
    fn give_up(self) {
        log::info!("stopped before it was ready");
        self.cancel("it was stopped before it was ready");
    }

    /// Cancels the upgrade for this reason; the old process continues to serve.
    fn cancel(self, reason: &str) {
        if let Some(takeover) = self.takeover {
            takeover.link.failed(reason);
        }
    }
}

// === impl Takeover ===

impl Takeover {
    /// Reports to the old process that this one serves, and takes its files over once it drains.
    fn complete(mut self) -> Result<(), String> {
        let (left, old_pid) = (self.left_pid_file(), self.link.old_pid());
        self.link.ready().map_err(|error| format!("upgrade: {error}"))?;
        // From here on the old process drains, so this process continues even if a later step fails.
        self.files.sockets.own_files();
        match self.prepared.map(Prepared::take_over).transpose() {
            Ok(taken) => *self.files.pid_file.lock() = taken,
            Err(error) => log::error!("{error}"),
        }
        if let Some(left) = left {
            PidFile::remove_of(&left, old_pid);
        }
        // The subcommand `upgrade` returns when the link is closed.
        drop(self.link);
        log::info!("took over from process {old_pid}");
        Ok(())
    }

    /// Returns the PID file of the old process if the new one does not replace it. An older version does not report its
    /// PID file and might use the common one.
    fn left_pid_file(&self) -> Option<PathBuf> {
        let old = self.link.old();
        let left = if old.is_said { old.pid_file.clone() } else { Some(self.common_pid_file.clone()) };
        left.filter(|left| self.prepared.as_ref().is_none_or(|prepared| prepared.target() != left))
    }
}
