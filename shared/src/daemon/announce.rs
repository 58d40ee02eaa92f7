//! The end of the start: tells everybody who waits for it that the daemon serves.

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

use super::moving::Moving;
use crate::events::{About, Events, Kind};
use crate::process::background::Announcer;
use crate::process::lifecycle::{Signals, StartDecision};
use crate::process::logging::ErrorLog;
use crate::process::pid_file::{PidFile, Prepared};
use crate::process::sockets::Sockets;
use crate::process::systemd::Supervisor;
use crate::process::upgrade::{Hold, PredecessorLink};

/// A Pingora service that runs once, when the listeners accept.
pub(super) struct Announce {
    readiness: Readiness,
    installed: watch::Receiver<bool>,
    failures: mpsc::UnboundedSender<String>,
    decision: StartDecision,
    once: Mutex<Option<Announcement>>,
}

/// What is used up by it.
pub(super) struct Announcement {
    pub(super) announcer: Announcer,
    /// Present when the sockets were taken over.
    pub(super) link: Option<PredecessorLink>,
    pub(super) sockets: Arc<Sockets>,
    /// The listeners of the old process that have other addresses here.
    pub(super) moving: Moving,
    /// What becomes the pid file when the sockets were taken over.
    pub(super) prepared: Option<Prepared>,
    /// Where a pid file goes that is taken over.
    pub(super) pid_file: Arc<Mutex<Option<PidFile>>>,
    /// The pid file that a version before this one may have.
    pub(super) common_pid_file: PathBuf,
    /// What standard error has become, if anything.
    pub(super) error_log: Option<Arc<ErrorLog>>,
    pub(super) supervisor: Supervisor,
    /// What is served where: `on 0.0.0.0:80`.
    pub(super) serves: String,
    pub(super) events: Events,
    /// Until it is over nothing is changed.
    pub(super) hold: Option<Hold>,
}

// === impl Announce ===

impl Announce {
    pub(super) fn new(readiness: Readiness, signals: &Signals, once: Announcement) -> Self {
        Self {
            readiness,
            installed: signals.installed(),
            failures: signals.failures(),
            decision: signals.start_decision(),
            once: Mutex::new(Some(once)),
        }
    }
}

#[async_trait]
impl BackgroundService for Announce {
    /// Whoever depends on it starts when everybody has been told. In an upgrade that is when the old process has let go; should
    /// it not, they never start.
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
    /// Nothing will be announced, for this reason: the process before this one is told, and goes on; this one ends.
    pub(super) fn refuse(&self, problem: &str) {
        let once = self.once.lock().take();
        let Some(once) = once else { return };
        if self.decision.decide() {
            let error_log = once.error_log.clone();
            // First, or the old one would only see that this one has ended.
            once.refuse(problem);
            self.end(error_log, format!("upgrade: {problem}"));
        } else {
            once.give_up();
        }
    }

    /// The end of the process is to be seen where its start was asked for.
    fn end(&self, error_log: Option<Arc<ErrorLog>>, problem: String) {
        if let Some(Err(error)) = error_log.map(|log| log.restore_terminal()) {
            log::error!("{error}");
        }
        // Nobody listens any more when the process ends anyway.
        let _ = self.failures.send(problem);
    }

    /// Called when the listeners accept; whether this process is the one that serves. It may block: a background service has a
    /// thread of its own.
    async fn announce(&self) -> bool {
        // The signal handlers come first: who is told that we serve may at once tell us to stop.
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

/// Nobody who depends on it starts. A notifier that is dropped says that its service is ready.
pub(super) async fn never(_ready: ServiceReadyNotifier) {
    pending::<()>().await;
}

// === impl Announcement ===

impl Announcement {
    fn announce(self) -> Result<(), String> {
        let left = self.link.as_ref().and_then(|link| self.left_pid_file(link));
        let announcer = self.announcer.prepare();
        let announcer = announcer.map_err(|error| format!("cannot leave the terminal: {error}"))?;
        if let Some(link) = self.link {
            let old_pid = link.old_pid();
            link.ready().map_err(|error| format!("upgrade: {error}"))?;
            // From here on the old process drains: whatever fails now, this one goes on.
            self.sockets.own_files();
            match self.prepared.map(Prepared::take_over).transpose() {
                Ok(taken) => *self.pid_file.lock() = taken,
                Err(error) => log::error!("{error}"),
            }
            if let Some(left) = left {
                PidFile::remove_of(&left, old_pid);
            }
            log::info!("took over from process {old_pid}");
        }
        let serves = &self.serves;
        log::info!("process {} serves {serves}", std::process::id());
        self.events.note(Kind::Process, About::default(), format!("serves {serves}"));
        // Before a parent ends that systemd may still take for the main process.
        self.supervisor.serves(&format!("serving {serves}"));
        if let Some(error_log) = &self.error_log {
            error_log.release_terminal();
        }
        if let Err(error) = announcer.announce(self.error_log.is_some()) {
            log::error!("cannot leave the terminal: {error}");
        }
        self.moving.end(self.hold);
        Ok(())
    }

    /// The pid file of the old process, if this one's does not take its place. A version before this one does not say which it is, and
    /// may have the common one.
    fn left_pid_file(&self, link: &PredecessorLink) -> Option<PathBuf> {
        let old = link.old();
        let left = if old.is_said { old.pid_file.clone() } else { Some(self.common_pid_file.clone()) };
        left.filter(|left| self.prepared.as_ref().is_none_or(|prepared| prepared.target() != left))
    }

    /// The process was told to end before it served: the old one goes on.
    fn give_up(self) {
        log::info!("told to end before it served");
        self.refuse("it was told to end before it served");
    }

    /// The old process goes on, for this reason.
    fn refuse(self, reason: &str) {
        if let Some(link) = self.link {
            link.failed(reason);
        }
    }
}
