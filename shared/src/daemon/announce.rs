//! The end of the start: tells everybody who waits for it that the daemon serves.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use metrics_service::Readiness;
use pingora::server::ShutdownWatch;
use pingora::services::ServiceReadyNotifier;
use pingora::services::background::BackgroundService;
use tokio::sync::{mpsc, watch};

use crate::events::{About, Events, Kind};
use crate::process::background::Announcer;
use crate::process::lifecycle::Signals;
use crate::process::logging::ErrorLog;
use crate::process::pid_file::{PidFile, Prepared};
use crate::process::sockets::Sockets;
use crate::process::systemd::Supervisor;
use crate::process::upgrade::Claim;

/// A Pingora service that runs once, when the listeners accept.
pub(super) struct Announce {
    readiness: Readiness,
    installed: watch::Receiver<bool>,
    failures: mpsc::UnboundedSender<String>,
    once: Mutex<Option<Announcement>>,
}

/// What is used up by it.
pub(super) struct Announcement {
    pub(super) announcer: Announcer,
    /// Present when the sockets were taken over.
    pub(super) claim: Option<Claim>,
    pub(super) sockets: Arc<Sockets>,
    /// What becomes the pid file when the sockets were taken over.
    pub(super) prepared: Option<Prepared>,
    /// Where a pid file goes that is taken over.
    pub(super) pid_file: Arc<Mutex<Option<PidFile>>>,
    /// What standard error has become, if anything.
    pub(super) error_log: Option<Arc<ErrorLog>>,
    pub(super) supervisor: Supervisor,
    /// For the log line.
    pub(super) listeners: String,
    pub(super) events: Events,
}

// === impl Announce ===

impl Announce {
    pub(super) fn new(readiness: Readiness, signals: &Signals, once: Announcement) -> Self {
        Self {
            readiness,
            installed: signals.installed(),
            failures: signals.failures(),
            once: Mutex::new(Some(once)),
        }
    }
}

#[async_trait]
impl BackgroundService for Announce {
    /// Whoever depends on it starts when everybody has been told. In an upgrade that is when the old process has let go.
    async fn start_with_ready_notifier(&self, shutdown: ShutdownWatch, ready: ServiceReadyNotifier) {
        self.start(shutdown).await;
        ready.notify_ready();
    }

    /// Started when the listeners accept. It may block: a background service has a thread of its own.
    async fn start(&self, _shutdown: ShutdownWatch) {
        // The signal handlers come first: who is told that we serve may at once tell us to stop.
        let installed = self.installed.clone().wait_for(|installed| *installed).await.is_ok();
        let once = self.once.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(once) = once.filter(|_| installed) else { return };
        self.readiness.set_listening(true);
        let error_log = once.error_log.clone();
        if let Err(problem) = once.announce() {
            // The end of the process is to be seen where its start was asked for.
            if let Some(Err(error)) = error_log.map(|log| log.restore_terminal()) {
                log::error!("{error}");
            }
            // Nobody listens any more when the process ends anyway.
            let _ = self.failures.send(problem);
        }
    }
}

// === impl Announcement ===

impl Announcement {
    fn announce(self) -> Result<(), String> {
        if let Some(claim) = self.claim {
            let old_pid = claim.old_pid();
            claim.ready().map_err(|error| format!("upgrade: {error}"))?;
            // From here on the old process drains: whatever fails now, this one goes on.
            self.sockets.own_files();
            match self.prepared.map(Prepared::take_over).transpose() {
                Ok(taken) => *self.pid_file.lock().unwrap_or_else(PoisonError::into_inner) = taken,
                Err(error) => log::error!("{error}"),
            }
            log::info!("took over from process {old_pid}");
        }
        log::info!("process {} serves on {}", std::process::id(), self.listeners);
        self.events.note(Kind::Process, About::default(), format!("serves on {}", self.listeners));
        // Before a parent ends that systemd may still take for the main process.
        self.supervisor.ready(&format!("serving on {}", self.listeners));
        if let Some(error_log) = &self.error_log {
            error_log.release_terminal();
        }
        self.announcer
            .announce(self.error_log.is_some())
            .map_err(|error| format!("cannot leave the terminal: {error}"))
    }
}
