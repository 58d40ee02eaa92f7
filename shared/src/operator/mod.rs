//! Changes while the daemon runs: reloads of the configuration file, and orders of operators.
//!
//! ```text
//! file ── config::load ──> Plan ─┐
//!                                ├─ Runtime::applied_to ─> wanted ─┐
//! orders ───────────────> Runtime┘                                 ├─ Diff ─> stage ─> commit
//!                                                       in effect ─┘          (may fail, unseen)
//! ```
//!
//! The plan in effect is always the file as it was last read, plus the changes that operators made since. When one of
//! the two changes, the difference is computed, everything that it needs is [staged](crate::serving::Running::stage),
//! and all of it is committed at once. If staging fails, nothing changes.
//!
//! **Invariant:** one task makes all changes, one after the other, so a change is neither lost nor left half done when
//! the client that requested it disconnects. Changes wait while a new process starts, because that process would miss
//! them.

mod changer;
mod config_status;
mod file;
mod keys;
mod order;
mod rollback;
mod runtime;
mod watch;

use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use lb_service::pool::UpstreamAddress;
use metrics_service::ConfigMetrics;
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use crate::config::{Plan, Problems};
use crate::events::Event;
use crate::process::logging::{LogFilter, Verbosity};
use crate::process::systemd::Supervisor;
use crate::process::upgrade::Hold;
use crate::serving::{Core, Running};
use changer::Changer;
pub(crate) use config_status::ConfigStatus;
pub(crate) use file::{ConfigFile, Provenance};
use keys::KeyFiles;
pub(crate) use order::{Change, ChangeResult, Joining, Order, Outcome, Reload};
pub(crate) use runtime::{Portable, Runtime, Times};

/// Handle that requests changes and gives access to their results. All clones refer to the same daemon.
#[derive(Clone)]
pub(crate) struct Operator {
    commands: mpsc::UnboundedSender<Command>,
    status: Arc<ArcSwap<ConfigStatus>>,
    running: Running,
    turn: Arc<TurnLock>,
}

/// Lock that must be held while something is changed.
type TurnLock = tokio::sync::Mutex<()>;

/// Service that makes the changes. It is separate, so that a change continues after the client that requested it has
/// disconnected.
pub(crate) struct OperatorService(Mutex<Option<Changer>>);

/// Everything that a changer works with.
pub(crate) struct Parts {
    /// The running configuration, to which changes are applied.
    pub running: Running,
    /// Whether this process takes over from another process.
    pub takes_over: bool,
    /// The source of the configuration.
    pub provenance: Provenance,
    /// The plan from the configuration file. Together with `runtime` it is the plan in effect.
    pub plan: Plan,
    /// The warnings about the configuration file.
    pub warnings: Problems,
    /// The changes that operators made in the old process.
    pub runtime: Runtime,
    /// The times of these changes.
    pub times: Times,
    /// The metrics that count reloads.
    pub metrics: ConfigMetrics,
    /// The service manager, which is notified when a reload begins and ends.
    pub supervisor: Supervisor,
}

/// State that an upgrade passes on. A process of another version ignores fields that it does not support.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct HandoverState {
    /// The changes that operators made.
    backends: Vec<Portable>,
    log_level: Option<String>,
    /// The pools that have a ready backend.
    ready: Vec<String>,
    /// Events as separate JSON values, so that a process can skip those that it does not support.
    events: Vec<serde_json::Value>,
}

/// State that this process took over from the old process.
#[derive(Default)]
pub(crate) struct RestoredState {
    /// The changes that operators made to backends that still exist.
    pub runtime: Runtime,
    /// The times of these changes.
    pub times: Times,
    /// The pools that had a ready backend.
    pub ready: Vec<String>,
    /// The events of the old process.
    pub events: Vec<Event>,
}

/// A request for a change.
enum Command {
    Reload { reload: Reload, by: &'static str, result: Option<oneshot::Sender<ChangeResult>> },
    Order { order: Order, result: oneshot::Sender<ChangeResult> },
}

// === impl Operator ===

impl Operator {
    /// Returns an operator for `parts` and the service that makes the changes. Nothing changes until the returned hold
    /// is dropped, which happens at the end of the start.
    pub(crate) fn new(parts: Parts) -> (Self, OperatorService, Hold) {
        let (commands, received) = mpsc::unbounded_channel();
        let first = ConfigStatus::first(&parts.provenance, parts.runtime.clone(), parts.times.clone());
        let first = first.with_key_files(KeyFiles::default().status(&parts.plan));
        let first = first.with_warnings(Arc::new(parts.warnings.clone()));
        let status = Arc::new(ArcSwap::from_pointee(first));
        let running = parts.running.clone();
        let turn = Arc::<TurnLock>::default();
        let hold = turn.clone().try_lock_owned().expect("the lock is new");
        let changer = Changer::new(parts, received, status.clone(), turn.clone());
        let service = OperatorService(Mutex::new(Some(changer)));
        (Self { commands, status, running, turn }, service, hold)
    }

    /// Reloads the configuration file and returns the result.
    pub(crate) async fn reload(&self, reload: Reload) -> ChangeResult {
        self.request(|result| Command::Reload { reload, by: "command", result: Some(result) }).await
    }

    /// Requests a reload because of a signal, and does not wait for it.
    pub(crate) fn reload_by_signal(&self) {
        // A process without a changer is about to end.
        let reload = Reload::default();
        let _ = self.commands.send(Command::Reload { reload, by: "SIGHUP", result: None });
    }

    /// Executes an order and returns the result.
    pub(crate) async fn order(&self, order: Order) -> ChangeResult {
        self.request(|result| Command::Order { order, result }).await
    }

    /// Returns when a backend is idle. A backend that does not exist counts as idle.
    ///
    /// # Errors
    /// If the pool does not exist.
    pub(crate) async fn idle(&self, pool: &str, backend: &UpstreamAddress) -> Result<(), String> {
        self.running.idle(pool, backend).await
    }

    /// Returns the state for the new process as text: the changes of operators, the log level, the pools that have a
    /// ready backend, and the events. Nothing changes until the returned hold is dropped.
    pub(crate) async fn handover_state(&self) -> (String, Hold) {
        let hold = self.turn.clone().lock_owned().await;
        let Core { events, readiness, verbosity, .. } = &self.running.core;
        let state = HandoverState {
            backends: self.status.load().portable(),
            log_level: verbosity.ordered().map(|level| level.to_string()),
            ready: readiness.pools(true),
            events: events.after(events.process(), 0).iter().map(|event| json!(event)).collect(),
        };
        (serde_json::to_string(&state).expect("texts and numbers are JSON"), hold)
    }

    /// Waits for permission to make a change outside the changer; the change must end before the hold is dropped. While
    /// a new process starts, this function waits, because the new process would miss the change.
    ///
    /// # Errors
    /// If the process is ending.
    pub(crate) async fn turn(&self) -> Result<Hold, String> {
        let hold = self.turn.clone().lock_owned().await;
        if self.running.is_draining() { Err(ENDING.into()) } else { Ok(hold) }
    }

    /// Returns whether the process is about to end.
    pub(crate) fn is_draining(&self) -> bool {
        self.running.is_draining()
    }

    /// Returns the description of the configuration in effect.
    pub(crate) fn config_status(&self) -> Arc<ConfigStatus> {
        self.status.load_full()
    }

    async fn request(&self, command: impl FnOnce(oneshot::Sender<ChangeResult>) -> Command) -> ChangeResult {
        let (sender, receiver) = oneshot::channel();
        // Both operations fail when the process ends.
        let _ = self.commands.send(command(sender));
        receiver.await.unwrap_or_else(|_| ChangeResult {
            problem: "the process is shutting down".into(),
            ..ChangeResult::of(Outcome::Refused, self.status.load().generation)
        })
    }
}

// === impl OperatorService ===

#[async_trait]
impl BackgroundService for OperatorService {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let changer = self.0.lock().take();
        let Some(changer) = changer else { return };
        tokio::select! {
            () = changer.run() => {}
            _ = shutdown.wait_for(|ends| *ends) => {}
        }
    }
}

/// Restores the state of the old process from its [handover_state](Operator::handover_state). Changes of backends that
/// `plan` does not have are dropped. The log level is set immediately.
pub(crate) fn restore(plan: &Plan, verbosity: &Verbosity, state: &str) -> RestoredState {
    let state = serde_json::from_str(state).unwrap_or_else(|error| {
        log::error!("upgrade: cannot read the runtime changes of the old process, so they are lost: {error}");
        HandoverState::default()
    });
    let HandoverState { backends, log_level, ready, events } = state;
    match log_level.map(|level| LogFilter::parse(&level)).transpose() {
        Ok(level) => verbosity.order(level),
        Err(problem) => log::error!("upgrade: cannot restore the log level that an operator set: {problem}"),
    }
    let (runtime, times) = Runtime::from_portable(backends);
    let (kept, lost) = runtime.rebased(plan);
    lost.iter()
        .for_each(|line| log::warn!("upgrade: dropped because the configuration file changed: {line}"));
    let events = events.into_iter().filter_map(|event| serde_json::from_value(event).ok()).collect();
    RestoredState { runtime: kept, times, ready, events }
}

const ENDING: &str =
    "this process is draining and accepts no changes; if an upgrade is in progress, repeat the command";
