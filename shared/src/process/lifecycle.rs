//! The life of the process from serving to its end: the meaning of a signal in each state, and the actions that follow.
//!
//! [`Lifecycle`] decides. It is a state machine over events; the time and the number of requests in flight are passed
//! in. [`Signals`] carries out the decisions. It is the `ShutdownSignalWatch` that Pingora's server waits for, and runs
//! in its runtime.
//!
//! ```text
//!             Quit or Upgrade              NewProcessReady
//!  Serving ----------> HandingOver, -------------------------------+
//!     ^                Upgrading                                   |
//!     +--HandoverFailed--+     | Terminate                         |
//!     | Terminate              v      delay over                   v        drained, out of time,
//!     +--------------------> Delaying -------------------------> Draining ----------------------> Done
//!                              |                                           or Terminate again      ^
//!                              +-- Terminate again ------------------------------------------------+
//! ```
//!
//! There are two kinds of drain. When the daemon stops, idle connections close after a moment. After a handover they
//! stay open for a few seconds ([`IDLE`]): most clients then receive a response with `Connection: close`, and a
//! connection rarely closes just when its client sends a request. Nothing is lost if the old process lives a little
//! longer.

use std::future::{Future, pending};
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use nix::sys::signal::{Signal as NixSignal, kill};
use nix::unistd::Pid;
use once_cell::sync::OnceCell;
use parking_lot::Mutex;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use super::files::reason;
use super::handlers::{Came, Early, Handlers, Source};
use super::sockets::{Class, Sockets};
use super::successor::{self, Launch};
use super::systemd::{Pulse, Supervisor};
use super::upgrade::{
    Handover, Hold, Offer, ReadySuccessor, SuccessorLink, UpgradeError, UpgradeFailed, Upgraded,
};
use crate::words::count_of;

/// The exit code of a process that ended as requested.
pub(crate) const DONE: u8 = 0;
/// The exit code of a process that could not continue.
pub(crate) const FAILED: u8 = 1;
/// The exit code of a process that cut requests when it ended.
pub(crate) const CUT: u8 = 3;

/// The minimum duration of a drain, so that a request which a client had already sent when the listeners closed is read
/// and counted.
const SETTLE: Duration = Duration::from_millis(100);
/// The interval at which a drain checks for requests in flight.
const TICK: Duration = Duration::from_millis(10);
/// The time for which idle connections stay open after a handover. Most clients that reuse their connection do so
/// within this time, and client libraries usually close an idle connection after 5 s or less (Node.js, Gunicorn and
/// others).
pub(crate) const IDLE: Duration = Duration::from_secs(5);

/// The section `shutdown` of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timing {
    /// The time for which the daemon is not ready but still accepts, so that a load balancer in front of it can notice.
    pub delay: Duration,
    /// The time limit for requests in flight once the listeners are closed.
    pub drain: Duration,
}

/// The [`Timing`] of the configuration in effect, which is read when a delay or drain begins. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Timings(Arc<Mutex<Timing>>);

/// The state that the rest of the process must adopt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Accepting, but no longer ready.
    Delaying,
    /// Not accepting; requests in flight are finished. A process that has handed over enters it a second time when it
    /// is stopped.
    Draining,
    /// Draining while the new process accepts, so the drain is not urgent.
    HandedOver {
        /// The time for which idle connections stay open.
        idle: Duration,
    },
}

/// An event that the lifecycle might react to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// SIGTERM or SIGINT.
    Terminate,
    /// The subcommand `stop`, which acts like the first SIGTERM, however often it is given.
    Stop,
    /// The subcommand `stop --now`.
    StopNow,
    /// SIGQUIT: hand the sockets over to a process that is started with `-u`.
    Quit,
    /// SIGUSR2 or the subcommand `upgrade`: start the new process ourselves.
    Upgrade,
    /// The new process serves and has received our acknowledgement.
    NewProcessReady,
    /// The handover failed: the offer is withdrawn, and a new process that we have started is ended.
    HandoverFailed,
    /// A required service has ended.
    ServiceFailed,
    /// Time has passed, or requests have ended.
    Tick,
}

/// One step that [`Signals`] carries out. The order of the steps matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Notify all parts of the process.
    Enter(Phase),
    /// Offer the sockets to a process started with `-u`.
    OpenOffer,
    /// Offer the sockets, and start the new process that takes them.
    StartSuccessor,
    /// Withdraw the offer, and end a new process that we have started and that does not serve yet.
    WithdrawOffer,
    /// Stop accepting on the listeners of this class.
    Close(Class),
    /// Leave the socket files and the PID file to the new process.
    LeaveFiles,
    /// Change nothing, for this reason.
    Ignore(&'static str),
    /// Leave `Server::run`.
    End(End),
}

/// The end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    /// The reason of the end.
    pub reason: EndReason,
    /// The number of requests that were still in flight.
    pub cut: usize,
}

/// The reason why a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndReason {
    /// No request was left.
    Drained,
    /// `shutdown.drain` had elapsed.
    OutOfTime,
    /// A second SIGTERM or SIGINT, or the subcommand `stop --now`, ended it.
    Hurried,
    /// A required service had ended.
    ServiceFailed,
}

/// The work that a drain waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pending {
    /// The number of requests in flight, which the end of the process would cut.
    pub requests: usize,
    /// Whether a request might still be on its way on some connection. It is not counted as cut.
    pub settling: bool,
}

/// The state machine.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    timing: Timing,
    hindrance: Option<&'static str>,
    state: State,
    /// Whether SIGTERM or SIGINT has arrived. The second one ends the process at once, even if a subcommand started the
    /// drain.
    signalled: bool,
}

/// The state of the lifecycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Serving,
    /// Offering the sockets to a process started with `-u`.
    HandingOver,
    /// Offering the sockets to a process that we have started.
    Upgrading,
    Delaying {
        until: Instant,
    },
    Draining {
        settled: Instant,
        until: Instant,
        terminated: bool,
    },
    Done,
}

impl Lifecycle {
    /// Creates the lifecycle of a process that serves. A `hindrance` is the reason why this process cannot be upgraded.
    pub(crate) fn new(timing: Timing, hindrance: Option<&'static str>) -> Self {
        Self { timing, hindrance, state: State::Serving, signalled: false }
    }

    /// Sets the timing of delays and drains that begin from now on.
    pub(crate) fn set_timing(&mut self, timing: Timing) {
        self.timing = timing;
    }

    /// Returns whether [`Event::Tick`] can have an effect.
    pub(crate) fn is_timed(&self) -> bool {
        matches!(self.state, State::Delaying { .. } | State::Draining { .. })
    }

    /// Decides which actions follow from an event. `pending` is the work that the end of the process would cut.
    pub(crate) fn on(&mut self, event: Event, now: Instant, pending: Pending) -> Vec<Action> {
        let is_second = event == Event::Terminate && std::mem::replace(&mut self.signalled, true);
        match event {
            _ if self.state == State::Done => Vec::new(),
            Event::ServiceFailed => self.end(EndReason::ServiceFailed, pending.requests),
            Event::StopNow => {
                let withdrawn = self.withdraw();
                [withdrawn, self.end(EndReason::Hurried, pending.requests)].concat()
            }
            Event::Terminate | Event::Stop => self.stop(is_second, now, pending.requests),
            Event::Quit => self.begin_handover(State::HandingOver, Action::OpenOffer),
            Event::Upgrade => self.upgrade(),
            Event::NewProcessReady => self.hand_over(now),
            Event::HandoverFailed => {
                self.withdraw();
                Vec::new()
            }
            Event::Tick => self.tick(now, pending),
        }
    }

    fn stop(&mut self, is_second: bool, now: Instant, requests: usize) -> Vec<Action> {
        match self.state {
            State::Serving | State::HandingOver | State::Upgrading => {
                let withdrawn = self.withdraw();
                [withdrawn, self.delay(now)].concat()
            }
            State::Draining { settled, until, terminated: false } => {
                // The process drains because it has handed over, and this is its first stop.
                self.state = State::Draining { settled, until, terminated: true };
                vec![Action::Enter(Phase::Draining)]
            }
            State::Delaying { .. } | State::Draining { .. } if is_second => {
                self.end(EndReason::Hurried, requests)
            }
            State::Delaying { .. } | State::Draining { .. } | State::Done => Vec::new(),
        }
    }

    /// Ends the handover that is in progress, if there is one.
    fn withdraw(&mut self) -> Vec<Action> {
        if !self.is_handing_over() {
            return Vec::new();
        }
        self.state = State::Serving;
        vec![Action::WithdrawOffer]
    }

    fn is_handing_over(&self) -> bool {
        matches!(self.state, State::HandingOver | State::Upgrading)
    }

    fn upgrade(&mut self) -> Vec<Action> {
        match self.hindrance {
            Some(hindrance) if self.state == State::Serving => vec![Action::Ignore(hindrance)],
            _ => self.begin_handover(State::Upgrading, Action::StartSuccessor),
        }
    }

    fn begin_handover(&mut self, state: State, action: Action) -> Vec<Action> {
        let reason = match self.state {
            State::Serving => {
                self.state = state;
                return vec![action];
            }
            State::HandingOver => "the sockets are already offered to a process started with -u",
            State::Upgrading => "an upgrade is already in progress",
            State::Delaying { .. } | State::Draining { .. } | State::Done => "already shutting down",
        };
        vec![Action::Ignore(reason)]
    }

    fn delay(&mut self, now: Instant) -> Vec<Action> {
        if self.timing.delay.is_zero() {
            return self.drain(now, Phase::Draining);
        }
        self.state = State::Delaying { until: now + self.timing.delay };
        vec![Action::Enter(Phase::Delaying)]
    }

    fn drain(&mut self, now: Instant, phase: Phase) -> Vec<Action> {
        let terminated = phase == Phase::Draining;
        self.state = State::Draining { settled: now + SETTLE, until: now + self.timing.drain, terminated };
        vec![Action::Enter(phase), Action::Close(Class::Traffic)]
    }

    fn hand_over(&mut self, now: Instant) -> Vec<Action> {
        if !self.is_handing_over() {
            return Vec::new();
        }
        // Half of a short drain, so that a drain never times out only because of idle connections.
        let idle = IDLE.min(self.timing.drain / 2);
        let mut actions = vec![Action::LeaveFiles];
        actions.append(&mut self.drain(now, Phase::HandedOver { idle }));
        actions.push(Action::Close(Class::Admin));
        actions
    }

    fn tick(&mut self, now: Instant, pending: Pending) -> Vec<Action> {
        let Pending { requests, settling } = pending;
        match self.state {
            State::Delaying { until } if now >= until => self.drain(now, Phase::Draining),
            State::Draining { settled, .. } if requests == 0 && !settling && now >= settled => {
                self.end(EndReason::Drained, 0)
            }
            // Without requests in flight the process still settles, however short the drain is.
            State::Draining { until, .. } if requests > 0 && now >= until => {
                self.end(EndReason::OutOfTime, requests)
            }
            _ => Vec::new(),
        }
    }

    fn end(&mut self, reason: EndReason, cut: usize) -> Vec<Action> {
        self.state = State::Done;
        vec![Action::End(End { reason, cut })]
    }
}

impl EndReason {
    /// Returns the reason as one word, for programs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::OutOfTime => "out_of_time",
            Self::Hurried => "at_once",
            Self::ServiceFailed => "failed",
        }
    }
}

impl End {
    /// Returns the exit code of the process.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self { reason: EndReason::ServiceFailed, .. } => FAILED,
            Self { cut: 0, .. } => DONE,
            Self { .. } => CUT,
        }
    }
}

// === carrying out the decisions ===

/// The program that runs in the process, as far as the lifecycle acts on it.
#[async_trait]
pub(crate) trait Host: Send + Sync {
    /// Returns the work that a drain waits for. It is called on each event, and every 10 ms during a drain.
    fn pending(&self) -> Pending;

    /// Adopts a phase. Readiness and `Connection: close` depend on it.
    fn enter(&self, phase: Phase);

    /// Prepares for a handover that begins.
    fn handover_begins(&self);

    /// Returns everything that the new process receives.
    ///
    /// # Errors
    /// If a socket cannot be copied.
    async fn handover(&self) -> io::Result<Handover>;

    /// Records that a handover has failed, whether a signal or a subcommand requested it.
    fn handover_failed(&self, error: &UpgradeError);

    /// Reloads the configuration because of SIGHUP. It must not block.
    fn reload(&self);

    /// Reopens the log files because of SIGUSR1, and logs the result for each file.
    fn reopen_logs(&self);
}

/// The decision whether this process begins to serve or is stopped before that. The first call decides. Clones share
/// the decision.
#[derive(Clone, Debug, Default)]
pub(crate) struct StartDecision(Arc<AtomicBool>);

impl StartDecision {
    /// Makes the decision, and returns whether this call was the first.
    pub(crate) fn decide(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// The parts of the process that [`Signals`] acts on.
pub(crate) struct Parts {
    /// `shutdown.delay` and `shutdown.drain`.
    pub timings: Timings,
    /// The socket on which the sockets are offered to a new process.
    pub upgrade_sock: PathBuf,
    /// The lifetime of an offer, and the time limit for a new process to serve; see [`WINDOW`](super::upgrade::WINDOW).
    pub window: Duration,
    /// The command that starts a new process.
    pub launch: Launch,
    /// The service manager, which is notified of the end and receives watchdog pings.
    pub supervisor: Supervisor,
    /// The listening sockets, which are closed, offered and left to the new process.
    pub sockets: Arc<Sockets>,
    /// The signals that arrived before the handlers were installed.
    pub early: Early,
    /// The program that runs in the process.
    pub host: Arc<dyn Host>,
}

/// The signal watch of Pingora's server.
///
/// Pass it to `Server::run`, which returns as soon as the process must end.
pub(crate) struct Signals {
    parts: Parts,
    traffic: watch::Sender<bool>,
    admin: watch::Sender<bool>,
    installed: watch::Sender<bool>,
    failures: mpsc::UnboundedSender<String>,
    upgrades: Upgrades,
    stops: Stops,
    inbox: Mutex<Option<Inbox>>,
    pulse: Pulse,
    decision: StartDecision,
    outcome: Outcome,
}

/// A handle that orders upgrades of this process. Clones act on the same process.
#[derive(Debug, Clone)]
pub(crate) struct Upgrades(mpsc::UnboundedSender<ResultSender>);

/// A handle that orders the end of this process. Clones act on the same process.
#[derive(Debug, Clone)]
pub(crate) struct Stops(mpsc::UnboundedSender<Event>);

/// The channel to the caller that waits for the result of an upgrade.
type ResultSender = oneshot::Sender<Result<(Upgraded, SuccessorLink), UpgradeFailed>>;

/// The messages from the rest of the process to the lifecycle.
struct Inbox {
    failed: mpsc::UnboundedReceiver<String>,
    upgrades: mpsc::UnboundedReceiver<ResultSender>,
    stops: mpsc::UnboundedReceiver<Event>,
}

/// The timers of the loop.
struct Timers {
    /// The checks of a delay and a drain.
    ticks: Interval,
    /// The pings of the service manager. `None` means that it receives none.
    pings: Option<Interval>,
}

/// The handover that is in progress, and the state that belongs to it.
#[derive(Default)]
struct Work {
    handover: Option<PendingHandover>,
    /// The caller that waits for the result; none after a signal.
    caller: Option<ResultSender>,
    /// Whether SIGHUP arrived meanwhile. The new process might have read the file before, so the process that serves
    /// afterwards reloads it.
    hangup: bool,
    /// Blocks changes until this process drains. A change that was waiting is then rejected with the advice to ask the
    /// new process.
    hold: Option<Hold>,
}

/// The result of the lifecycle, which can be read once `Server::run` has returned.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    end: Arc<OnceCell<End>>,
    handed_over: Arc<OnceCell<()>>,
}

type PendingHandover = Pin<Box<dyn Future<Output = Result<ReadySuccessor, UpgradeError>> + Send>>;

// === impl Timings ===

impl Timings {
    /// Creates the timings with the values of the configuration.
    pub(crate) fn new(timing: Timing) -> Self {
        Self(Arc::new(Mutex::new(timing)))
    }

    /// Returns the timing in effect.
    pub(crate) fn get(&self) -> Timing {
        *self.0.lock()
    }

    /// Sets the timing of delays and drains that begin from now on.
    pub(crate) fn set(&self, timing: Timing) {
        *self.0.lock() = timing;
    }
}

// === impl Upgrades ===

impl Upgrades {
    /// Starts a new process, and returns once the new process serves and its PID file is in place. This process drains
    /// from the moment at which the new process serves.
    ///
    /// # Errors
    /// Fails if the new process does not serve or the upgrade is refused. This process continues as before, unless it
    /// was already shutting down.
    pub(crate) async fn upgrade(&self) -> Result<Upgraded, UpgradeFailed> {
        let (sender, receiver) = oneshot::channel();
        // Once the lifecycle has ended, sending drops the sender, so that receiving fails.
        let _ = self.0.send(sender);
        let result = receiver.await.unwrap_or(Err(UpgradeFailed::Refused("already shutting down")));
        let (upgraded, link) = result?;
        link.settled().await;
        Ok(upgraded)
    }
}

// === impl Stops ===

impl Stops {
    /// Drains and ends the process, or ends it at once if `now` is set. Has no effect on a process that is already
    /// ending in this way.
    pub(crate) fn stop(&self, now: bool) {
        // Sending fails once the lifecycle has ended.
        let _ = self.0.send(if now { Event::StopNow } else { Event::Stop });
    }
}

// === impl Signals ===

impl Signals {
    /// Creates the signal watch. The signal handlers are installed when [`recv`](ShutdownSignalWatch::recv) runs.
    pub(crate) fn new(parts: Parts) -> Self {
        let (failures, failed) = mpsc::unbounded_channel();
        let (ordered, upgrades) = mpsc::unbounded_channel();
        let (stop, stops) = mpsc::unbounded_channel();
        Self {
            parts,
            traffic: watch::Sender::new(false),
            admin: watch::Sender::new(false),
            installed: watch::Sender::new(false),
            failures,
            upgrades: Upgrades(ordered),
            stops: Stops(stop),
            inbox: Mutex::new(Some(Inbox { failed, upgrades, stops })),
            pulse: Pulse::new(),
            decision: StartDecision::default(),
            outcome: Outcome::default(),
        }
    }

    /// Returns the handle that orders upgrades.
    pub(crate) fn upgrades(&self) -> Upgrades {
        self.upgrades.clone()
    }

    /// Returns the handle that orders the end of the process.
    pub(crate) fn stops(&self) -> Stops {
        self.stops.clone()
    }

    /// Returns the pulse, for the service whose runtime must respond for the process to count as alive.
    pub(crate) fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Returns the shutdown watch for the [`Handed`](super::sockets::Handed) services of a class.
    pub(crate) fn shutdown(&self, class: Class) -> watch::Receiver<bool> {
        match class {
            Class::Traffic => self.traffic.subscribe(),
            Class::Admin => self.admin.subscribe(),
        }
    }

    /// Returns the sender for the sentence that says why a service has ended unexpectedly. The process then ends with
    /// [`FAILED`].
    pub(crate) fn failures(&self) -> mpsc::UnboundedSender<String> {
        self.failures.clone()
    }

    /// Returns a watch that turns true when the signal handlers are installed. Readiness must not be announced earlier.
    pub(crate) fn installed(&self) -> watch::Receiver<bool> {
        self.installed.subscribe()
    }

    /// Returns the decision whether this process serves, for the task that announces it.
    pub(crate) fn start_decision(&self) -> StartDecision {
        self.decision.clone()
    }

    /// Returns the outcome, which is set when `Server::run` returns.
    pub(crate) fn outcome(&self) -> Outcome {
        self.outcome.clone()
    }

    async fn run(&self, mut signals: impl Source) -> io::Result<()> {
        self.installed.send_replace(true);
        let taken = self.inbox.lock().take();
        let mut inbox = taken.ok_or_else(|| io::Error::other("the signal watch is used twice"))?;
        let hindrance = successor::hindrance(std::process::id());
        let mut lifecycle = Lifecycle::new(self.parts.timings.get(), hindrance);
        let mut work = Work::default();
        let pings = self.parts.supervisor.ping_interval().map(every);
        let mut timers = Timers { ticks: every(TICK), pings };
        loop {
            let timed = lifecycle.is_timed();
            let (event, caller) = self.next(&mut signals, &mut inbox, &mut work, &mut timers, timed).await;
            let Some(event) = event else { continue };
            lifecycle.set_timing(self.parts.timings.get());
            let actions = lifecycle.on(event, Instant::now(), self.parts.host.pending());
            if self.carry_out(actions, &mut work, caller) {
                return Ok(());
            }
            if work.handover.is_none() {
                work.hold = None;
            }
        }
    }

    /// Waits for the next event, which is `None` if what happened does not concern the lifecycle. `timed` says whether
    /// ticks do.
    async fn next(
        &self,
        signals: &mut impl Source,
        inbox: &mut Inbox,
        work: &mut Work,
        timers: &mut Timers,
        timed: bool,
    ) -> (Option<Event>, Option<ResultSender>) {
        let event = tokio::select! {
            came = signals.next() => self.translate(came, work),
            Some(caller) = inbox.upgrades.recv() => {
                log::info!("upgrade: requested");
                return (Some(Event::Upgrade), Some(caller));
            }
            Some(event) = inbox.stops.recv() => {
                log::info!("stop: requested{}", if event == Event::StopNow { ", at once" } else { "" });
                Some(event)
            }
            result = poll(&mut work.handover) => Some(self.finish(result, work)),
            Some(problem) = inbox.failed.recv() => {
                log::error!("{problem}");
                Some(Event::ServiceFailed)
            }
            () = next(&mut timers.pings) => {
                self.ping();
                None
            }
            _ = timers.ticks.tick(), if timed => Some(Event::Tick),
        };
        (event, None)
    }

    /// Carries out the actions, and returns whether the process must end.
    fn carry_out(&self, actions: Vec<Action>, work: &mut Work, mut caller: Option<ResultSender>) -> bool {
        for action in actions {
            match action {
                Action::OpenOffer => work.handover = Some(self.offer_sockets()),
                Action::StartSuccessor => {
                    *work = Work {
                        handover: Some(self.start_successor()),
                        caller: caller.take(),
                        ..Work::default()
                    };
                }
                Action::WithdrawOffer => work.give_up(),
                Action::Ignore(reason) => ignore(reason, caller.take()),
                Action::End(end) => {
                    self.end(end);
                    return true;
                }
                action => self.apply(action),
            }
        }
        false
    }

    /// Translates a signal into an event. A signal that does not concern the lifecycle is handled here and returns
    /// `None`.
    fn translate(&self, came: Came, work: &mut Work) -> Option<Event> {
        match came {
            Came::Term | Came::Int => {
                log::info!("{came}: shutting down");
                return Some(Event::Terminate);
            }
            Came::Quit => {
                log::info!("{came}: handing over to a new process");
                return Some(Event::Quit);
            }
            Came::Usr2 => {
                log::info!("{came}: upgrading");
                return Some(Event::Upgrade);
            }
            Came::Hup if work.handover.is_some() => {
                log::info!("{came}: the reload waits for the end of the upgrade");
                work.hangup = true;
            }
            Came::Hup => self.parts.host.reload(),
            Came::Usr1 => {
                log::info!("{came}: reopening the log files");
                self.parts.host.reopen_logs();
            }
        }
        None
    }

    /// Pings the service manager if the runtime of the requests has responded since the last ping.
    fn ping(&self) {
        if self.pulse.is_felt() {
            self.parts.supervisor.ping();
        } else {
            log::error!("watchdog: the runtime of the proxy does not respond");
        }
    }

    fn apply(&self, action: Action) {
        match action {
            Action::Enter(phase) => {
                self.decision.decide();
                self.tell_phase(phase);
                self.parts.host.enter(phase);
            }
            Action::Close(class) => self.close(class),
            Action::LeaveFiles => {
                self.parts.sockets.keep_files();
                // The lifecycle hands over once, so the cell is empty.
                let _ = self.outcome.handed_over.set(());
            }
            // `carry_out` handles these.
            Action::OpenOffer
            | Action::StartSuccessor
            | Action::WithdrawOffer
            | Action::Ignore(_)
            | Action::End(_) => {}
        }
    }

    fn offer_sockets(&self) -> PendingHandover {
        self.parts.host.handover_begins();
        let (path, window) = (self.parts.upgrade_sock.clone(), self.parts.window);
        let (host, about) = (self.parts.host.clone(), self.parts.launch.about());
        Box::pin(async move {
            let offer = Offer::open(&path)?.saying(about);
            log::info!(
                "upgrade: a new process can take the sockets over at {} within {window:?}",
                path.display()
            );
            offer.serve(host.handover(), window).await
        })
    }

    fn start_successor(&self) -> PendingHandover {
        self.parts.host.handover_begins();
        let (path, window) = (self.parts.upgrade_sock.clone(), self.parts.window);
        let (host, launch) = (self.parts.host.clone(), self.parts.launch.clone());
        Box::pin(async move {
            let handover =
                timeout(window, host.handover()).await.map_err(|_| UpgradeError::Busy(window))??;
            successor::start_and_hand_over(&launch, &path, handover, window).await
        })
    }

    /// Ends the handover, and returns the event that follows from its result.
    fn finish(&self, result: Result<ReadySuccessor, UpgradeError>, work: &mut Work) -> Event {
        work.handover = None;
        let hangup = std::mem::take(&mut work.hangup);
        match result {
            Ok(ReadySuccessor { pid, hold, link }) => {
                log::info!("upgrade: process {pid} serves now");
                if hangup {
                    hang_up(pid);
                }
                work.hold = Some(hold);
                work.report(Ok((Upgraded { pid }, link)));
                Event::NewProcessReady
            }
            Err(error) => {
                log::error!("upgrade failed, this process continues to serve: {error}");
                self.parts.host.handover_failed(&error);
                if hangup {
                    self.parts.host.reload();
                }
                work.report(Err(UpgradeFailed::Failed(error.to_string())));
                Event::HandoverFailed
            }
        }
    }

    fn close(&self, class: Class) {
        match class {
            Class::Traffic => self.traffic.send_replace(true),
            Class::Admin => self.admin.send_replace(true),
        };
        self.parts.sockets.close(class);
    }

    fn end(&self, end: End) {
        // A service that ends from now on does not count as failed.
        self.close(Class::Traffic);
        self.close(Class::Admin);
        let cut = count_of(end.cut, "request");
        match end.reason {
            EndReason::Drained => log::info!("drained: no request is left"),
            EndReason::OutOfTime => {
                log::warn!("drain timed out after {:?}: {cut} cut", self.parts.timings.get().drain);
            }
            EndReason::Hurried => log::warn!("ending at once: {cut} cut"),
            EndReason::ServiceFailed => log::error!("ending because a service failed: {cut} cut"),
        }
        self.outcome.set(end);
    }

    fn tell_phase(&self, phase: Phase) {
        let Timing { delay, drain } = self.parts.timings.get();
        let requests = count_of(self.parts.host.pending().requests, "request");
        match phase {
            Phase::Delaying => {
                log::info!("no longer ready; still accepting for {delay:?}");
                self.parts.supervisor.stopping("no longer ready, still accepting");
            }
            Phase::Draining => {
                log::info!("draining: listeners closed, {requests} in flight, for at most {drain:?}");
                self.parts.supervisor.stopping(&format!("draining: {requests} in flight"));
            }
            Phase::HandedOver { .. } => {
                log::info!(
                    "draining: the new process serves; {requests} in flight here, for at most {drain:?}"
                );
                self.parts.supervisor.hand_over();
            }
        }
    }
}

// === impl Work ===

impl Work {
    /// Withdraws the offer and ends a new process that was started.
    fn give_up(&mut self) {
        self.handover = None;
        self.report(Err(UpgradeFailed::Failed("this process was stopped during the upgrade".to_owned())));
    }

    fn report(&mut self, result: Result<(Upgraded, SuccessorLink), UpgradeFailed>) {
        if let Some(caller) = self.caller.take() {
            // Sending fails if the caller no longer waits.
            let _ = caller.send(result);
        }
    }
}

/// Reports to the log and to the caller that nothing is done.
fn ignore(reason: &'static str, caller: Option<ResultSender>) {
    log::info!("ignored: {reason}");
    if let Some(caller) = caller {
        let _ = caller.send(Err(UpgradeFailed::Refused(reason)));
    }
}

/// Passes SIGHUP on to the new process, which then reloads its configuration.
fn hang_up(pid: u32) {
    let pid = i32::try_from(pid).map(Pid::from_raw);
    match pid.map(|pid| kill(pid, NixSignal::SIGHUP)) {
        Ok(Ok(())) => log::info!("upgrade: SIGHUP is passed on to the new process"),
        failed => log::error!("upgrade: SIGHUP cannot be passed on to the new process: {failed:?}"),
    }
}

fn every(time: Duration) -> Interval {
    let mut ticks = interval(time);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn next(ticks: &mut Option<Interval>) {
    match ticks {
        Some(ticks) => {
            ticks.tick().await;
        }
        None => pending().await,
    }
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let ended = match Handlers::install(&self.parts.early) {
            Ok(handlers) => self.run(handlers).await,
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            log::error!("cannot handle signals: {}", reason(&error));
            self.outcome.set(End { reason: EndReason::ServiceFailed, cut: 0 });
        }
        // The drain is over, so the server must not wait any longer.
        ShutdownSignal::FastShutdown
    }
}

impl Outcome {
    /// Returns the end of the process: a failure if the server returned for a reason of its own.
    pub(crate) fn end(&self) -> End {
        self.end.get().copied().unwrap_or(End { reason: EndReason::ServiceFailed, cut: 0 })
    }

    /// Returns the exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        self.end().exit_code()
    }

    /// Returns whether a new process has taken over, together with the PID file.
    pub(crate) fn is_handed_over(&self) -> bool {
        self.handed_over.get().is_some()
    }

    fn set(&self, end: End) {
        // The first end counts, so a later one is dropped.
        let _ = self.end.set(end);
    }
}

async fn poll(handover: &mut Option<PendingHandover>) -> Result<ReadySuccessor, UpgradeError> {
    match handover {
        Some(handover) => handover.await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::process::sockets::{Endpoint, ListenSpec};
    use crate::process::upgrade;

    const DELAY: Duration = Duration::from_secs(2);
    const DRAIN: Duration = Duration::from_secs(25);
    const TIMING: Timing = Timing { delay: Duration::ZERO, drain: DRAIN };
    const DRAINING: [Action; 2] = [Action::Enter(Phase::Draining), Action::Close(Class::Traffic)];

    const HANDED_OVER: [Action; 3] = [
        Action::Enter(Phase::HandedOver { idle: IDLE }),
        Action::Close(Class::Traffic),
        Action::Close(Class::Admin),
    ];

    /// Returns this number of requests in flight, and nothing else to wait for.
    fn requests(requests: usize) -> Pending {
        Pending { requests, settling: false }
    }

    fn end(reason: EndReason, cut: usize) -> Vec<Action> {
        vec![Action::End(End { reason, cut })]
    }

    fn serving() -> Lifecycle {
        Lifecycle::new(TIMING, None)
    }

    fn draining(now: Instant) -> Lifecycle {
        let mut lifecycle = serving();
        assert_eq!(lifecycle.on(Event::Terminate, now, requests(1)), DRAINING);
        lifecycle
    }

    fn handed_over(now: Instant) -> Lifecycle {
        let mut lifecycle = Lifecycle::new(Timing { delay: DELAY, drain: DRAIN }, None);
        assert_eq!(lifecycle.on(Event::Quit, now, requests(1)), [Action::OpenOffer]);
        let actions = lifecycle.on(Event::NewProcessReady, now, requests(1));
        let [Action::LeaveFiles, rest @ ..] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!(rest, HANDED_OVER);
        lifecycle
    }

    #[test]
    fn a_drain_ends_as_soon_as_no_request_is_left() {
        let now = Instant::now();
        let mut lifecycle = draining(now);
        assert_eq!(lifecycle.on(Event::Tick, now + SETTLE, requests(1)), []);
        assert_eq!(lifecycle.on(Event::Tick, now + SETTLE * 2, requests(0)), end(EndReason::Drained, 0));
        assert_eq!(lifecycle.on(Event::Terminate, now + SETTLE * 2, requests(0)), []);
        assert!(!lifecycle.is_timed());
    }

    #[test]
    fn a_drain_waits_for_a_request_that_has_already_been_sent() {
        let now = Instant::now();
        let mut lifecycle = draining(now);
        assert_eq!(lifecycle.on(Event::Tick, now + SETTLE / 2, requests(0)), []);
        assert_eq!(lifecycle.on(Event::Tick, now + SETTLE, requests(1)), []);
        assert_eq!(lifecycle.on(Event::Tick, now + SETTLE + TICK, requests(0)), end(EndReason::Drained, 0));
    }

    #[test]
    fn a_drain_that_times_out_cuts_requests() {
        let now = Instant::now();
        let mut lifecycle = draining(now);
        assert_eq!(lifecycle.on(Event::Tick, now + DRAIN - TICK, requests(2)), []);
        assert_eq!(lifecycle.on(Event::Tick, now + DRAIN, requests(2)), end(EndReason::OutOfTime, 2));
    }

    #[test]
    fn a_drain_of_zero_cuts_requests_in_flight_at_once() {
        let now = Instant::now();
        let mut lifecycle = Lifecycle::new(Timing { delay: Duration::ZERO, drain: Duration::ZERO }, None);
        lifecycle.on(Event::Terminate, now, requests(0));
        assert_eq!(lifecycle.on(Event::Tick, now, requests(0)), []);
        assert_eq!(lifecycle.on(Event::Tick, now + TICK, requests(1)), end(EndReason::OutOfTime, 1));
    }

    #[test]
    fn the_delay_comes_before_the_drain() {
        let now = Instant::now();
        let mut lifecycle = Lifecycle::new(Timing { delay: DELAY, drain: DRAIN }, None);
        assert!(!lifecycle.is_timed());
        assert_eq!(lifecycle.on(Event::Terminate, now, requests(0)), [Action::Enter(Phase::Delaying)]);
        assert!(lifecycle.is_timed());
        assert_eq!(lifecycle.on(Event::Tick, now + DELAY - TICK, requests(0)), []);
        assert_eq!(lifecycle.on(Event::Tick, now + DELAY, requests(0)), DRAINING);
        assert_eq!(lifecycle.on(Event::Tick, now + DELAY + SETTLE, requests(0)), end(EndReason::Drained, 0));
    }

    #[test]
    fn a_second_signal_ends_the_process_at_once() {
        let now = Instant::now();
        assert_eq!(draining(now).on(Event::Terminate, now, requests(3)), end(EndReason::Hurried, 3));
        let mut delaying = Lifecycle::new(Timing { delay: DELAY, drain: DRAIN }, None);
        delaying.on(Event::Terminate, now, requests(0));
        assert_eq!(delaying.on(Event::Terminate, now, requests(0)), end(EndReason::Hurried, 0));
    }

    #[test]
    fn an_end_cuts_only_requests_that_are_in_flight() {
        let now = Instant::now();
        let settling = Pending { requests: 0, settling: true };
        assert_eq!(draining(now).on(Event::Tick, now + DRAIN, settling), [], "a request might be on its way");
        assert_eq!(draining(now).on(Event::Terminate, now, settling), end(EndReason::Hurried, 0));
        assert_eq!(draining(now).on(Event::ServiceFailed, now, settling), end(EndReason::ServiceFailed, 0));
    }

    #[test]
    fn the_subcommand_stop_drains_however_often_it_is_given() {
        let now = Instant::now();
        let mut lifecycle = serving();
        assert_eq!(lifecycle.on(Event::Stop, now, requests(1)), DRAINING);
        assert_eq!(lifecycle.on(Event::Stop, now, requests(1)), []);
        assert_eq!(lifecycle.on(Event::Terminate, now, requests(1)), [], "the first signal");
        assert_eq!(lifecycle.on(Event::Terminate, now, requests(1)), end(EndReason::Hurried, 1));
        let mut successor = handed_over(now);
        assert_eq!(successor.on(Event::Stop, now, requests(1)), [Action::Enter(Phase::Draining)]);
        let mut upgrading = serving();
        upgrading.on(Event::Upgrade, now, requests(0));
        assert_eq!(
            upgrading.on(Event::Stop, now, requests(0)),
            [Action::WithdrawOffer, DRAINING[0], DRAINING[1]]
        );
    }

    #[test]
    fn a_stop_now_ends_the_process_at_once_in_any_state() {
        let now = Instant::now();
        for mut lifecycle in [serving(), draining(now), handed_over(now)] {
            assert_eq!(lifecycle.on(Event::StopNow, now, requests(2)), end(EndReason::Hurried, 2));
        }
        let mut upgrading = serving();
        upgrading.on(Event::Upgrade, now, requests(0));
        let ended = [&[Action::WithdrawOffer][..], &end(EndReason::Hurried, 2)].concat();
        assert_eq!(upgrading.on(Event::StopNow, now, requests(2)), ended);
    }

    #[test]
    fn only_cut_requests_and_failures_have_other_exit_codes_than_0() {
        let code = |reason, cut| End { reason, cut }.exit_code();
        assert_eq!(code(EndReason::Drained, 0), 0);
        assert_eq!(code(EndReason::Hurried, 0), 0);
        assert_eq!(code(EndReason::Hurried, 1), 3);
        assert_eq!(code(EndReason::OutOfTime, 1), 3);
        assert_eq!(code(EndReason::ServiceFailed, 0), 1);
    }

    #[test]
    fn sigquit_is_ignored_once_the_process_is_ending() {
        let now = Instant::now();
        let ignored = [Action::Ignore("already shutting down")];
        assert_eq!(draining(now).on(Event::Quit, now, requests(0)), ignored);
        let mut delaying = Lifecycle::new(Timing { delay: DELAY, drain: DRAIN }, None);
        delaying.on(Event::Terminate, now, requests(0));
        assert_eq!(delaying.on(Event::Quit, now, requests(0)), ignored);
        assert_eq!(handed_over(now).on(Event::Quit, now, requests(0)), ignored);
    }

    #[test]
    fn a_failed_handover_changes_nothing_and_can_be_retried() {
        let now = Instant::now();
        let mut lifecycle = serving();
        assert_eq!(lifecycle.on(Event::Quit, now, requests(0)), [Action::OpenOffer]);
        let ignored = [Action::Ignore("the sockets are already offered to a process started with -u")];
        assert_eq!(lifecycle.on(Event::Quit, now, requests(0)), ignored);
        assert_eq!(lifecycle.on(Event::Upgrade, now, requests(0)), ignored);
        assert_eq!(lifecycle.on(Event::HandoverFailed, now, requests(0)), []);
        assert!(!lifecycle.is_timed());
        assert_eq!(lifecycle.on(Event::Quit, now, requests(0)), [Action::OpenOffer]);
    }

    #[test]
    fn an_upgrade_starts_a_new_process_and_drains_once_that_is_ready() {
        let now = Instant::now();
        let mut lifecycle = serving();
        assert_eq!(lifecycle.on(Event::Upgrade, now, requests(1)), [Action::StartSuccessor]);
        assert!(!lifecycle.is_timed(), "it continues to serve");
        let actions = lifecycle.on(Event::NewProcessReady, now, requests(1));
        assert_eq!(actions, [&[Action::LeaveFiles][..], &HANDED_OVER].concat());
        let ignored = [Action::Ignore("already shutting down")];
        assert_eq!(lifecycle.on(Event::Upgrade, now, requests(1)), ignored);
    }

    #[test]
    fn an_upgrade_is_ignored_during_another_one() {
        let now = Instant::now();
        let mut lifecycle = serving();
        lifecycle.on(Event::Upgrade, now, requests(0));
        let ignored = [Action::Ignore("an upgrade is already in progress")];
        assert_eq!(lifecycle.on(Event::Upgrade, now, requests(0)), ignored);
        assert_eq!(lifecycle.on(Event::Quit, now, requests(0)), ignored);
        assert_eq!(lifecycle.on(Event::HandoverFailed, now, requests(0)), []);
        assert_eq!(lifecycle.on(Event::Upgrade, now, requests(0)), [Action::StartSuccessor]);
    }

    #[test]
    fn a_process_that_cannot_be_upgraded_gives_the_reason() {
        let now = Instant::now();
        let mut lifecycle = Lifecycle::new(TIMING, successor::hindrance(1));
        let actions = lifecycle.on(Event::Upgrade, now, requests(0));
        assert!(matches!(actions[..], [Action::Ignore(reason)] if reason.contains("start a container")));
        assert_eq!(
            lifecycle.on(Event::Quit, now, requests(0)),
            [Action::OpenOffer],
            "a process that others start is possible"
        );
        assert_eq!(successor::hindrance(2), None);
    }

    #[test]
    fn sigterm_ends_an_upgrade() {
        let now = Instant::now();
        let mut lifecycle = serving();
        lifecycle.on(Event::Upgrade, now, requests(0));
        assert_eq!(
            lifecycle.on(Event::Terminate, now, requests(0)),
            [Action::WithdrawOffer, DRAINING[0], DRAINING[1]]
        );
        assert_eq!(lifecycle.on(Event::NewProcessReady, now, requests(0)), []);
        let mut failing = serving();
        failing.on(Event::Upgrade, now, requests(0));
        assert_eq!(failing.on(Event::ServiceFailed, now, requests(0)), end(EndReason::ServiceFailed, 0));
    }

    #[test]
    fn waiting_for_idle_connections_never_uses_up_the_drain() {
        let now = Instant::now();
        let idle = |drain| {
            let mut lifecycle = Lifecycle::new(Timing { delay: DELAY, drain }, None);
            lifecycle.on(Event::Upgrade, now, requests(0));
            let actions = lifecycle.on(Event::NewProcessReady, now, requests(0));
            actions.into_iter().find_map(|action| match action {
                Action::Enter(Phase::HandedOver { idle }) => Some(idle),
                _ => None,
            })
        };
        assert_eq!(idle(DRAIN), Some(IDLE));
        assert_eq!(idle(Duration::from_secs(1)), Some(Duration::from_millis(500)));
        assert_eq!(idle(Duration::ZERO), Some(Duration::ZERO));
    }

    #[test]
    fn a_drain_uses_the_timing_of_the_moment_at_which_it_begins() {
        let now = Instant::now();
        let mut lifecycle = serving();
        lifecycle.set_timing(Timing { delay: DELAY, drain: DRAIN * 2 });
        assert_eq!(lifecycle.on(Event::Terminate, now, requests(1)), [Action::Enter(Phase::Delaying)]);
        assert_eq!(lifecycle.on(Event::Tick, now + DELAY, requests(1)), DRAINING);
        lifecycle.set_timing(TIMING);
        assert_eq!(lifecycle.on(Event::Tick, now + DELAY + DRAIN, requests(1)), []);
        assert_eq!(
            lifecycle.on(Event::Tick, now + DELAY + DRAIN * 2, requests(1)),
            end(EndReason::OutOfTime, 1)
        );
    }

    #[test]
    fn sigterm_withdraws_the_offer() {
        let now = Instant::now();
        let mut lifecycle = serving();
        lifecycle.on(Event::Quit, now, requests(0));
        assert_eq!(
            lifecycle.on(Event::Terminate, now, requests(0)),
            [Action::WithdrawOffer, DRAINING[0], DRAINING[1]]
        );
        assert_eq!(lifecycle.on(Event::NewProcessReady, now, requests(0)), []);
    }

    #[test]
    fn a_process_that_has_handed_over_drains_without_delay() {
        let now = Instant::now();
        let mut lifecycle = handed_over(now);
        assert_eq!(lifecycle.on(Event::Tick, now + SETTLE, requests(0)), end(EndReason::Drained, 0));
    }

    #[test]
    fn the_first_sigterm_after_a_handover_cuts_nothing() {
        let now = Instant::now();
        let mut lifecycle = handed_over(now);
        assert_eq!(lifecycle.on(Event::Terminate, now, requests(1)), [Action::Enter(Phase::Draining)]);
        assert_eq!(lifecycle.on(Event::Tick, now + DRAIN - TICK, requests(1)), []);
        assert_eq!(lifecycle.on(Event::Terminate, now, requests(1)), end(EndReason::Hurried, 1));
    }

    #[test]
    fn a_failed_service_ends_the_process_in_any_state() {
        let now = Instant::now();
        assert_eq!(serving().on(Event::ServiceFailed, now, requests(0)), end(EndReason::ServiceFailed, 0));
        assert_eq!(
            draining(now).on(Event::ServiceFailed, now, requests(4)),
            end(EndReason::ServiceFailed, 4)
        );
    }

    #[test]
    fn ticks_have_no_effect_while_serving() {
        let now = Instant::now();
        assert_eq!(serving().on(Event::Tick, now + DRAIN, requests(0)), []);
    }

    /// The host of a test, which records the calls.
    struct Recorder {
        sockets: Arc<Sockets>,
        requests: AtomicUsize,
        phases: Mutex<Vec<Phase>>,
        hangups: AtomicUsize,
    }

    #[async_trait]
    impl Host for Recorder {
        fn pending(&self) -> Pending {
            requests(self.requests.load(Ordering::Relaxed))
        }

        fn enter(&self, phase: Phase) {
            self.phases.lock().push(phase);
        }

        fn handover_begins(&self) {}

        async fn handover(&self) -> io::Result<Handover> {
            Ok(Handover::of(self.sockets.to_hand_over()?).await)
        }

        fn handover_failed(&self, _error: &UpgradeError) {}

        fn reload(&self) {
            self.hangups.fetch_add(1, Ordering::Relaxed);
        }

        fn reopen_logs(&self) {}
    }

    /// The time limit for the new processes of these tests.
    const WINDOW: Duration = Duration::from_secs(2);

    /// Creates a signal watch over one traffic and one admin listener, with this script as its new process.
    fn signals_with(
        upgrade_sock: PathBuf,
        script: &str,
        supervisor: Supervisor,
    ) -> (Arc<Signals>, Arc<Recorder>) {
        let any = || Endpoint::Tcp("127.0.0.1:0".parse().unwrap());
        let sockets = Sockets::bind(&[ListenSpec::traffic(any()), ListenSpec::admin(any())]).unwrap();
        let sockets = Arc::new(sockets);
        let host = Arc::new(Recorder {
            sockets: sockets.clone(),
            requests: AtomicUsize::default(),
            phases: Mutex::default(),
            hangups: AtomicUsize::default(),
        });
        let signals = Signals::new(Parts {
            timings: Timings::new(TIMING),
            upgrade_sock,
            window: WINDOW,
            launch: Launch::script(script, true),
            supervisor,
            sockets,
            early: Early::default(),
            host: host.clone(),
        });
        (Arc::new(signals), host)
    }

    fn signals(upgrade_sock: PathBuf) -> (Arc<Signals>, Arc<Recorder>) {
        signals_with(upgrade_sock, "exit 0", Supervisor::default())
    }

    type Running = tokio::task::JoinHandle<io::Result<()>>;

    /// Runs the signal watch, and returns the sender of signals.
    async fn run(signals: &Arc<Signals>) -> (mpsc::UnboundedSender<Came>, Running) {
        let (send, came) = mpsc::unbounded_channel();
        let running = tokio::spawn({
            let signals = Arc::clone(signals);
            async move { signals.run(came).await }
        });
        signals.installed().wait_for(|installed| *installed).await.unwrap();
        (send, running)
    }

    /// The signals of a test. Real signals would reach the whole test process.
    impl Source for mpsc::UnboundedReceiver<Came> {
        async fn next(&mut self) -> Came {
            match self.recv().await {
                Some(came) => came,
                None => pending().await,
            }
        }
    }

    #[tokio::test]
    async fn a_failed_service_ends_the_process_with_its_exit_code() {
        let dir = tempfile::tempdir().unwrap();
        let (signals, _) = signals(dir.path().join("sock"));
        signals.failures().send("web".to_owned()).unwrap();
        let (_send, came) = mpsc::unbounded_channel();
        signals.run(came).await.unwrap();
        assert_eq!(signals.outcome().exit_code(), FAILED);
        assert!(!signals.outcome().is_handed_over());
        assert!(*signals.shutdown(Class::Traffic).borrow() && *signals.shutdown(Class::Admin).borrow());
    }

    #[tokio::test]
    async fn the_second_signal_counts_what_it_cuts() {
        let dir = tempfile::tempdir().unwrap();
        let (signals, seen) = signals(dir.path().join("sock"));
        seen.requests.store(2, Ordering::Relaxed);
        let (send, came) = mpsc::unbounded_channel();
        for signal in [Came::Hup, Came::Usr1, Came::Int, Came::Usr2, Came::Quit, Came::Term] {
            send.send(signal).unwrap();
        }
        signals.run(came).await.unwrap();
        assert_eq!(signals.outcome().exit_code(), CUT);
        assert_eq!(*seen.phases.lock(), [Phase::Draining]);
        assert_eq!(seen.hangups.load(Ordering::Relaxed), 1);
    }

    /// Acts as a process started with `-u`.
    async fn take_over(path: &std::path::Path, signals: &Signals) {
        let path = path.to_owned();
        let taking = tokio::task::spawn_blocking(move || upgrade::take(&path, None, Duration::from_secs(5)));
        let (inherited, mut link) = taking.await.unwrap().unwrap();
        assert_eq!(inherited.len(), 2);
        assert!(!*signals.shutdown(Class::Traffic).borrow());
        tokio::task::spawn_blocking(move || link.ready()).await.unwrap().unwrap();
    }

    async fn is_handed_over(signals: &Signals, seen: &Recorder, running: Running) {
        signals.shutdown(Class::Admin).wait_for(|closed| *closed).await.unwrap();
        assert!(*signals.shutdown(Class::Traffic).borrow());
        seen.requests.store(0, Ordering::Relaxed);
        running.await.unwrap().unwrap();
        assert_eq!(signals.outcome().exit_code(), DONE);
        assert!(signals.outcome().is_handed_over());
        assert_eq!(*seen.phases.lock(), [Phase::HandedOver { idle: IDLE }]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sigquit_hands_over_to_a_process_started_with_u() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upgrade.sock");
        let (signals, seen) = signals(path.clone());
        seen.requests.store(1, Ordering::Relaxed);
        let (send, running) = run(&signals).await;
        send.send(Came::Quit).unwrap();
        take_over(&path, &signals).await;
        is_handed_over(&signals, &seen, running).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_ordered_upgrade_returns_once_the_new_process_serves() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upgrade.sock");
        // The new process lives on after the handover, so it must end by itself after this test.
        let script = format!("while [ -d {} ]; do sleep 0.1; done", dir.path().display());
        let (signals, seen) = signals_with(path.clone(), &script, Supervisor::default());
        seen.requests.store(1, Ordering::Relaxed);
        let (_send, running) = run(&signals).await;
        let upgrading = tokio::spawn({
            let upgrades = signals.upgrades();
            async move { upgrades.upgrade().await }
        });
        take_over(&path, &signals).await;
        // The test acts as the process that was started.
        assert_eq!(upgrading.await.unwrap(), Ok(Upgraded { pid: std::process::id() }));
        is_handed_over(&signals, &seen, running).await;
        let late = signals.upgrades().upgrade().await;
        assert_eq!(late, Err(UpgradeFailed::Refused("already shutting down")));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_reload_during_an_upgrade_waits_for_its_failure() {
        let dir = tempfile::tempdir().unwrap();
        let script = "exec sleep 60";
        let (signals, seen) = signals_with(dir.path().join("sock"), script, Supervisor::default());
        let hangups = || seen.hangups.load(Ordering::Relaxed);
        let (send, running) = run(&signals).await;
        let (first, second) = (signals.upgrades(), signals.upgrades());
        let meanwhile = async {
            assert!(
                matches!(second.upgrade().await, Err(UpgradeFailed::Refused(_))),
                "the first is in progress"
            );
            send.send(Came::Hup).unwrap();
            let (began, soon) = (Instant::now(), WINDOW / 4);
            while began.elapsed() < soon {
                assert_eq!(hangups(), 0);
                tokio::time::sleep(TICK).await;
            }
        };
        let (first, ()) = tokio::join!(first.upgrade(), meanwhile);
        assert!(matches!(first, Err(UpgradeFailed::Failed(_))), "{first:?}");
        while hangups() == 0 {
            tokio::time::sleep(TICK).await;
        }
        send.send(Came::Hup).unwrap();
        while hangups() == 1 {
            tokio::time::sleep(TICK).await;
        }
        running.abort();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_second_upgrade_at_the_same_time_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upgrade.sock");
        let (signals, _) = signals_with(path.clone(), "exec sleep 60", Supervisor::default());
        let (_send, running) = run(&signals).await;
        let (first, second) = (signals.upgrades(), signals.upgrades());
        let (first, second) = tokio::join!(first.upgrade(), second.upgrade());
        assert_eq!(second, Err(UpgradeFailed::Refused("an upgrade is already in progress")));
        let Err(UpgradeFailed::Failed(reason)) = first else { panic!("{first:?}") };
        assert!(reason.contains("was not ready within 2s"), "{reason}");
        assert!(!path.exists(), "the offer is withdrawn");
        running.abort();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_failed_upgrade_gives_the_reason_and_leaves_nothing_behind() {
        for (script, expected) in [
            ("echo 'no such pool' >&2; exit 1", "ended with exit code 1: no such pool"),
            ("exit 2", "ended with exit code 2 (the command line or the configuration is wrong)"),
            ("kill -SEGV $$", "was killed by signal 11 (SIGSEGV)"),
            ("trap '' TERM; echo $$ > pid; while :; do sleep 0.1; done", "was not ready within 2s"),
            ("exit 0", "ended with exit code 0"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("upgrade.sock");
            let script = format!("cd {}; {script}", dir.path().display());
            let (signals, seen) = signals_with(path.clone(), &script, Supervisor::default());
            let (send, running) = run(&signals).await;
            let failed = signals.upgrades().upgrade().await.unwrap_err().to_string();
            assert!(failed.contains(expected), "{failed} for {script}");
            assert!(!path.exists(), "the offer is withdrawn");
            if let Ok(pid) = std::fs::read_to_string(dir.path().join("pid")) {
                assert!(!std::path::Path::new(&format!("/proc/{}", pid.trim())).exists(), "left over");
            }
            assert!(seen.phases.lock().is_empty(), "the old process continues");
            send.send(Came::Term).unwrap();
            running.await.unwrap().unwrap();
            assert!(!signals.outcome().is_handed_over());
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_process_that_is_stopped_during_an_upgrade_ends_the_new_process() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let script = format!("echo $$ > {}; exec sleep 60", pid_file.display());
        let (signals, _) = signals_with(dir.path().join("sock"), &script, Supervisor::default());
        let (send, running) = run(&signals).await;
        let upgrades = signals.upgrades();
        let end = async {
            while !std::fs::read_to_string(&pid_file).is_ok_and(|pid| pid.ends_with('\n')) {
                tokio::time::sleep(TICK).await;
            }
            send.send(Came::Term).unwrap();
        };
        let (upgraded, ()) = tokio::join!(upgrades.upgrade(), end);
        assert!(matches!(upgraded, Err(UpgradeFailed::Failed(_))), "{upgraded:?}");
        running.await.unwrap().unwrap();
        let pid = std::fs::read_to_string(&pid_file).unwrap();
        let gone = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", pid.trim()));
            status.map_or(true, |status| status.contains("State:\tZ"))
        };
        let ended = timeout(WINDOW, async {
            while !gone() {
                tokio::time::sleep(TICK).await;
            }
        });
        ended.await.expect("it is killed at once");
    }

    #[tokio::test]
    async fn the_service_manager_receives_pings_and_then_the_drain() {
        let dir = tempfile::tempdir().unwrap();
        let socket = tokio::net::UnixDatagram::bind(dir.path().join("notify")).unwrap();
        let variables = |name: &str| match name {
            "NOTIFY_SOCKET" => Some(dir.path().join("notify").into_os_string()),
            "WATCHDOG_USEC" => Some("40000".into()),
            _ => None,
        };
        let (signals, _) = signals_with(dir.path().join("sock"), "exit 0", Supervisor::of(variables, false));
        signals.parts.supervisor.serves("serving");
        let beating = tokio::spawn({
            let pulse = signals.pulse();
            async move { pulse.beat().await }
        });
        let (send, running) = run(&signals).await;
        let mut bytes = [0; 256];
        let mut said = Vec::new();
        while said.iter().filter(|said| *said == "WATCHDOG=1").count() < 3 {
            let length = socket.recv(&mut bytes).await.unwrap();
            said.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
        }
        send.send(Came::Term).unwrap();
        running.await.unwrap().unwrap();
        beating.abort();
        while !said.iter().any(|said| said.starts_with("STOPPING=1\nSTATUS=draining: 0 requests")) {
            let length = socket.recv(&mut bytes).await.unwrap();
            said.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
        }
    }
}
