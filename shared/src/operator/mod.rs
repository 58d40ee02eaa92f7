//! What changes while the daemon runs: a file that is read again, and what operators order.
//!
//! ```text
//! file ── config::load ──> Plan ─┐
//!                                ├─ Runtime::applied_to ─> wanted ─┐
//! orders ───────────────> Runtime┘                                 ├─ Diff ─> stage ─> commit
//!                                                       in effect ─┘          (may fail, unseen)
//! ```
//!
//! The plan in effect is always the file as it was read last, with what operators changed since. Either may change: then the
//! difference is computed, everything that it needs is [staged](crate::daemon::Running::stage), and put in place at once. What
//! cannot be staged changes nothing.
//!
//! **Invariant:** one task makes all changes, one after the other, so a change that is asked for by somebody who leaves meanwhile
//! is neither lost nor half done. While a successor starts nothing is changed, since it would not know; what is asked for
//! meanwhile waits.

mod changer;
mod config_status;
mod diff;
mod file;
mod keys;
mod order;
mod rollback;
mod runtime;
#[cfg(test)]
mod testing;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use metrics_service::ConfigMetrics;
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use crate::config::{Plan, Problems};
use crate::daemon::Running;
use crate::events::{Event, Events};
use crate::process::logging::{LogFilter, Verbosity};
use crate::process::systemd::Supervisor;
use crate::process::upgrade::Hold;
use changer::Changer;
pub use config_status::ConfigStatus;
pub use diff::Diff;
pub use file::{ConfigFile, Provenance};
use keys::KeyFiles;
pub use order::{Change, ChangeResult, Joining, Order, Outcome, Reload};
pub use runtime::{Portable, Runtime, Times};

/// Asks for changes, and knows what they led to. Clones ask the same daemon.
#[derive(Clone)]
pub struct Operator {
    commands: mpsc::UnboundedSender<Command>,
    status: Arc<ArcSwap<ConfigStatus>>,
    running: Running,
    events: Events,
    turn: Arc<TurnLock>,
}

/// Who has it may change something.
type TurnLock = tokio::sync::Mutex<()>;

/// Makes the changes: a service of its own, so that a change goes on when whoever asked for it has left.
pub struct OperatorService(Mutex<Option<Changer>>);

/// What a changer works with.
pub struct Parts {
    /// What serves.
    pub running: Running,
    /// Whether it takes over from another process.
    pub takes_over: bool,
    /// Where its configuration came from.
    pub provenance: Provenance,
    /// What the file says; with the next, it is in effect.
    pub plan: Plan,
    /// What the author of the file should look at.
    pub warnings: Problems,
    /// What operators had changed in the process before this one.
    pub runtime: Runtime,
    /// When.
    pub times: Times,
    /// Where changes are told.
    pub events: Events,
    /// What is logged, by the file or by an operator.
    pub verbosity: Verbosity,
    /// Where reloads are counted.
    pub metrics: ConfigMetrics,
    /// Told when a reload begins and ends.
    pub supervisor: Supervisor,
    /// Is told of each change that is in effect.
    pub observer: Box<dyn Fn(&Plan) + Send + Sync>,
}

/// What is handed on. What a process before or after this one does not know is left out by it.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct HandoverState {
    /// What operators have changed.
    backends: Vec<Portable>,
    log_level: Option<String>,
    /// The pools that have a ready backend.
    ready: Vec<String>,
    /// Each by itself: one that is not understood is left out.
    events: Vec<serde_json::Value>,
}

/// What this process has from the one before it.
#[derive(Default)]
pub struct RestoredState {
    /// What operators changed, of the backends that there still are.
    pub runtime: Runtime,
    /// When.
    pub times: Times,
    /// The pools that had a ready backend.
    pub ready: Vec<String>,
    /// What had changed.
    pub events: Vec<Event>,
}

/// Somebody wants a change.
enum Command {
    Reload { reload: Reload, by: &'static str, answer: Option<oneshot::Sender<ChangeResult>> },
    Order { order: Order, answer: oneshot::Sender<ChangeResult> },
}

// === impl Operator ===

impl Operator {
    /// One that changes what `parts` say, and the service that does it. It changes nothing as long as the hold lives: that is for
    /// the time of the start.
    pub fn new(parts: Parts) -> (Self, OperatorService, Hold) {
        let (commands, received) = mpsc::unbounded_channel();
        let first = ConfigStatus::first(&parts.provenance, parts.runtime.clone(), parts.times.clone());
        let first = first.with_key_files(KeyFiles::default().status(&parts.plan));
        let first = first.with_warnings(Arc::new(parts.warnings.clone()));
        let status = Arc::new(ArcSwap::from_pointee(first));
        let (running, events) = (parts.running.clone(), parts.events.clone());
        let turn = Arc::<TurnLock>::default();
        let hold = turn.clone().try_lock_owned().expect("nobody else knows of it");
        let changer = Changer::new(parts, received, status.clone(), turn.clone());
        let service = OperatorService(Mutex::new(Some(changer)));
        (Self { commands, status, running, events, turn }, service, hold)
    }

    /// Reads the file again, and says what became of it.
    pub async fn reload(&self, reload: Reload) -> ChangeResult {
        self.ask(|answer| Command::Reload { reload, by: "command", answer: Some(answer) }).await
    }

    /// The same for a signal, which nobody waits for.
    pub fn reload_by_signal(&self) {
        // A process that has no changer any more is about to end.
        let reload = Reload::default();
        let _ = self.commands.send(Command::Reload { reload, by: "signal HUP", answer: None });
    }

    /// Carries an order out.
    pub async fn order(&self, order: Order) -> ChangeResult {
        self.ask(|answer| Command::Order { order, answer }).await
    }

    /// Returns when a backend works on no request. One that is not there works on none.
    ///
    /// # Errors
    /// When there is no such pool.
    pub async fn idle(&self, pool: &str, backend: SocketAddr) -> Result<(), String> {
        self.running.idle(pool, backend).await
    }

    /// What the process that takes over should know, as a text: beside what operators changed, which pools are `ready`. Nothing is
    /// changed any more as long as the hold lives.
    pub async fn handover_state(
        &self,
        verbosity: &Verbosity,
        ready: impl FnOnce() -> Vec<String>,
    ) -> (String, Hold) {
        let hold = self.turn.clone().lock_owned().await;
        let state = HandoverState {
            backends: self.status.load().portable(),
            log_level: verbosity.ordered().map(|level| level.to_string()),
            ready: ready(),
            events: self.events.after(self.events.process(), 0).iter().map(|event| json!(event)).collect(),
        };
        (serde_json::to_string(&state).expect("texts and numbers are JSON"), hold)
    }

    /// For a change that somebody else makes, which is to be made as long as the hold lives. Waits until no successor starts that
    /// would not know of it.
    ///
    /// # Errors
    /// When the process is ending.
    pub async fn turn(&self) -> Result<Hold, String> {
        let hold = self.turn.clone().lock_owned().await;
        if self.running.is_draining() { Err(ENDING.into()) } else { Ok(hold) }
    }

    /// Whether the process is about to end.
    pub fn is_draining(&self) -> bool {
        self.running.is_draining()
    }

    /// Which configuration is in effect.
    pub fn config_status(&self) -> Arc<ConfigStatus> {
        self.status.load_full()
    }

    /// What changed.
    pub fn events(&self) -> &Events {
        &self.events
    }

    async fn ask(&self, command: impl FnOnce(oneshot::Sender<ChangeResult>) -> Command) -> ChangeResult {
        let (answer, answered) = oneshot::channel();
        // Both fail when the process ends.
        let _ = self.commands.send(command(answer));
        answered.await.unwrap_or_else(|_| ChangeResult {
            problem: "the process is ending".into(),
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

/// What this process has from the one before it, by its [state](Operator::handover_state): of the changed backends, those that `plan`
/// has a place for. The log level is changed here and now.
pub fn restore(plan: &Plan, verbosity: &Verbosity, state: &str) -> RestoredState {
    let state = serde_json::from_str(state).unwrap_or_else(|error| {
        log::error!(
            "upgrade: what operators have changed is lost, the program before says it otherwise: {error}"
        );
        HandoverState::default()
    });
    let HandoverState { backends, log_level, ready, events } = state;
    match log_level.map(|level| LogFilter::parse(&level)).transpose() {
        Ok(level) => verbosity.order(level),
        Err(problem) => log::error!("upgrade: the log level that an operator has set is lost: {problem}"),
    }
    let (runtime, times) = Runtime::from_portable(backends);
    let (kept, lost) = runtime.rebased(plan);
    lost.iter().for_each(|line| log::warn!("upgrade: dropped, since the file has changed: {line}"));
    let events = events.into_iter().filter_map(|event| serde_json::from_value(event).ok()).collect();
    RestoredState { runtime: kept, times, ready, events }
}

const ENDING: &str =
    "the process is draining and changes nothing any more: if it has a successor, ask that one";
