//! From serving to the end: what a signal means when, and how it is carried out.
//!
//! [`Lifecycle`] decides: a state machine over events, with the time and the number of requests in flight passed in.
//! [`Signals`] carries out: it is the `ShutdownSignalWatch` that Pingora's server waits on, and lives in its runtime.
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
//! There are two kinds of drain. At an end, idle connections are closed after a moment. After a hand-over they stay for some
//! seconds ([`IDLE`]), so that most clients are told `Connection: close` in an answer and none finds its connection closed just
//! when it sends: nothing is lost by an old process that lives longer.

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

use super::handlers::{Came, Early, Handlers, Source};
use super::sockets::{Class, Sockets};
use super::successor::{self, Launch};
use super::systemd::{Pulse, Supervisor};
use super::upgrade::{Heir, Hold, Legacy, Offer, UpgradeError, UpgradeFailed, Upgraded};
use crate::words::count_of;

/// The exit code of a process that ended as it was told to.
pub const DONE: u8 = 0;
/// The exit code of a process that could not go on.
pub const FAILED: u8 = 1;
/// The exit code of a process that cut requests at its end.
pub const CUT: u8 = 3;

/// A drain lasts at least this long, so that a request which had already been sent when the listeners closed is read
/// and counted.
const SETTLE: Duration = Duration::from_millis(100);
/// How soon the last request's end is noticed.
const TICK: Duration = Duration::from_millis(10);
/// How long idle connections stay open after a hand-over: most clients that use theirs at all have done so once more by then. Also
/// the usual timeout of idle connections in client libraries (Node.js, Gunicorn and others wait 5 s or less).
pub const IDLE: Duration = Duration::from_secs(5);

/// The section `shutdown` of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Not ready, but still accepting: the time that whoever balances over us needs to notice.
    pub delay: Duration,
    /// The longest that requests in flight may take once the listeners are closed.
    pub drain: Duration,
}

/// The [`Timing`] of the configuration in effect, read when a delay or drain begins. Clones share it.
#[derive(Debug, Clone)]
pub struct Timings(Arc<Mutex<Timing>>);

/// What the rest of the process should be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Accepting, and ready.
    Serving,
    /// Accepting, but no longer ready.
    Delaying,
    /// Not accepting; requests in flight are finished. Entered a second time when a process that has handed over is told to end.
    Draining,
    /// The same while a successor accepts: nobody is in a hurry.
    HandedOver {
        /// How long idle connections stay open.
        idle: Duration,
    },
}

/// Something that the lifecycle may have to react to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// TERM or INT.
    Terminate,
    /// The command `stop`: as the first signal, however often it comes.
    Stop,
    /// The command `stop --now`.
    StopNow,
    /// QUIT: hand the sockets over to a process started with `-u`.
    Quit,
    /// USR2, or the command `upgrade`: start the successor ourselves.
    Upgrade,
    /// The successor serves and knows that we know.
    NewProcessReady,
    /// There will be no successor this time: the offer is withdrawn, and what we have started is ended.
    HandoverFailed,
    /// A service that must run has ended.
    ServiceFailed,
    /// Time has passed, or requests have ended.
    Tick,
}

/// What is to be done, in the order given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Tell everybody.
    Enter(Phase),
    /// Hold the sockets out to a successor.
    OpenOffer,
    /// The same, and start who is to take them.
    StartSuccessor,
    /// No longer do either: withdraw the offer, and end the successor that does not serve yet.
    WithdrawOffer,
    /// The listeners of this class stop accepting.
    Close(Class),
    /// The successor owns the socket files and the pid file.
    LeaveFiles,
    /// The event changes nothing, for this reason.
    Ignore(&'static str),
    /// Leave `Server::run`.
    End(End),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Why.
    pub reason: EndReason,
    /// Requests that were still in flight.
    pub cut: usize,
}

/// Why a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// No request was left.
    Drained,
    /// `shutdown.drain` was over.
    OutOfTime,
    /// TERM or INT came a second time, or the command `stop --now`.
    Hurried,
    /// A service that must run had ended.
    ServiceFailed,
}

/// What a drain has to wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pending {
    /// Requests that have been read and not been answered in full. The end of the process cuts them.
    pub requests: usize,
    /// Whether a connection may still have a request on its way. The end of the process cuts none that we know of.
    pub settling: bool,
}

/// The state machine.
#[derive(Debug)]
pub struct Lifecycle {
    timing: Timing,
    hindrance: Option<&'static str>,
    state: State,
    /// Whether TERM or INT has come. The second one ends the process at once, whatever else has told it to end.
    signalled: bool,
}

/// Where the lifecycle stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Serving,
    /// To whoever comes.
    HandingOver,
    /// To a process that we have started.
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
    /// Serving. With a `hindrance` there is no upgrade, for this reason.
    pub fn new(timing: Timing, hindrance: Option<&'static str>) -> Self {
        Self { timing, hindrance, state: State::Serving, signalled: false }
    }

    /// For delays and drains that begin from now on.
    pub fn set_timing(&mut self, timing: Timing) {
        self.timing = timing;
    }

    /// Whether [`Event::Tick`] can make a difference.
    pub fn is_timed(&self) -> bool {
        matches!(self.state, State::Delaying { .. } | State::Draining { .. })
    }

    /// Decides. `pending` is what the end of the process would not wait for.
    pub fn on(&mut self, event: Event, now: Instant, pending: Pending) -> Vec<Action> {
        let signalled_again = event == Event::Terminate && std::mem::replace(&mut self.signalled, true);
        match (self.state, event) {
            (State::Done, _) => Vec::new(),
            (_, Event::ServiceFailed) => self.end(EndReason::ServiceFailed, pending.requests),
            (State::HandingOver | State::Upgrading, Event::StopNow) => {
                let mut actions = vec![Action::WithdrawOffer];
                actions.append(&mut self.end(EndReason::Hurried, pending.requests));
                actions
            }
            (_, Event::StopNow) => self.end(EndReason::Hurried, pending.requests),
            (State::Serving, Event::Terminate | Event::Stop) => self.delay(now),
            (State::HandingOver | State::Upgrading, Event::Terminate | Event::Stop) => {
                let mut actions = vec![Action::WithdrawOffer];
                actions.append(&mut self.delay(now));
                actions
            }
            (State::Draining { settled, until, terminated: false }, Event::Terminate | Event::Stop) => {
                // The first one, of a process that drains because it has a successor.
                self.state = State::Draining { settled, until, terminated: true };
                vec![Action::Enter(Phase::Draining)]
            }
            (State::Delaying { .. } | State::Draining { .. }, Event::Terminate) if signalled_again => {
                self.end(EndReason::Hurried, pending.requests)
            }
            (State::Serving, Event::Quit) => {
                self.state = State::HandingOver;
                vec![Action::OpenOffer]
            }
            (State::Serving, Event::Upgrade) => self.upgrade(),
            (State::HandingOver, Event::Quit | Event::Upgrade) => {
                vec![Action::Ignore("the sockets are on offer to a process started with -u already")]
            }
            (State::Upgrading, Event::Quit | Event::Upgrade) => {
                vec![Action::Ignore("an upgrade is under way already")]
            }
            (_, Event::Quit | Event::Upgrade) => vec![Action::Ignore("already shutting down")],
            (State::HandingOver | State::Upgrading, Event::NewProcessReady) => self.succeed(now),
            (State::HandingOver | State::Upgrading, Event::HandoverFailed) => {
                self.state = State::Serving;
                Vec::new()
            }
            // No hand-over is under way, or the end has begun already.
            (_, Event::NewProcessReady | Event::HandoverFailed | Event::Terminate | Event::Stop) => {
                Vec::new()
            }
            (_, Event::Tick) => self.tick(now, pending),
        }
    }

    fn upgrade(&mut self) -> Vec<Action> {
        if let Some(hindrance) = self.hindrance {
            return vec![Action::Ignore(hindrance)];
        }
        self.state = State::Upgrading;
        vec![Action::StartSuccessor]
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

    fn succeed(&mut self, now: Instant) -> Vec<Action> {
        // Half of a short drain, so that waiting for idle connections is never what makes it run out of time.
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
            // With nothing in flight the settling goes on, however short the drain.
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
    /// In a word, for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::OutOfTime => "out_of_time",
            Self::Hurried => "at_once",
            Self::ServiceFailed => "failed",
        }
    }
}

impl End {
    /// The exit code of the process.
    pub fn exit_code(self) -> u8 {
        match self {
            Self { reason: EndReason::ServiceFailed, .. } => FAILED,
            Self { cut: 0, .. } => DONE,
            Self { .. } => CUT,
        }
    }
}

// === carrying it out ===

/// Counts what must not be cut.
pub trait InFlight: Send + Sync {
    /// What a drain has to wait for. Called every 10 ms during a drain, and at no other time but the end.
    fn pending(&self) -> Pending;
}

impl<F: Fn() -> Pending + Send + Sync> InFlight for F {
    fn pending(&self) -> Pending {
        self()
    }
}

/// Whether this process comes to serve, or is told to end before that: what comes first holds. Clones decide the same.
#[derive(Clone, Debug, Default)]
pub struct Outset(Arc<AtomicBool>);

impl Outset {
    /// Whether nothing was decided before.
    pub fn decide(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// What [`Signals`] works on.
pub struct Parts {
    /// `shutdown.delay` and `shutdown.drain`.
    pub timings: Timings,
    /// Where the sockets are offered to a successor.
    pub upgrade_sock: PathBuf,
    /// How long an offer stands, and how long a successor may take until it serves; see [`WINDOW`](super::upgrade::WINDOW).
    pub window: Duration,
    /// How a successor is started.
    pub launch: Launch,
    /// What a successor gets: asked for before one is started, or once it has come by itself.
    pub legacy: Box<dyn Fn() -> Later<io::Result<Legacy>> + Send + Sync>,
    /// Told of the end, and that the process works.
    pub supervisor: Supervisor,
    /// Closed, offered and left to the successor.
    pub sockets: Arc<Sockets>,
    /// What came before there were handlers.
    pub early: Early,
    /// Requests in flight.
    pub in_flight: Arc<dyn InFlight>,
    /// Called with each phase that is entered: readiness and `Connection: close` hang on it.
    pub on_phase: Box<dyn Fn(Phase) + Send + Sync>,
    /// Called when an upgrade, whoever asked for it, has failed.
    pub on_failed_upgrade: Box<dyn Fn(&UpgradeError) + Send + Sync>,
    /// Called on HUP; it must not wait.
    pub on_hangup: Box<dyn Fn() + Send + Sync>,
    /// Called on USR1; logs of each file whether it was reopened.
    pub reopen_logs: Box<dyn Fn() + Send + Sync>,
}

/// What takes a while.
pub type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The signals of the daemon, as Pingora's server waits for them.
///
/// Pass it to `Server::run`, which returns as soon as the process is to end.
pub struct Signals {
    parts: Parts,
    traffic: watch::Sender<bool>,
    admin: watch::Sender<bool>,
    installed: watch::Sender<bool>,
    failures: mpsc::UnboundedSender<String>,
    upgrades: Upgrades,
    stops: Stops,
    inbox: Mutex<Option<Inbox>>,
    pulse: Pulse,
    outset: Outset,
    outcome: Outcome,
}

/// Orders upgrades. Clones order them of the same process.
#[derive(Debug, Clone)]
pub struct Upgrades(mpsc::UnboundedSender<Asker>);

/// Orders the end of the process. Clones order that of the same process.
#[derive(Debug, Clone)]
pub struct Stops(mpsc::UnboundedSender<Event>);

/// Who waits for the result of an upgrade.
type Asker = oneshot::Sender<Result<Upgraded, UpgradeFailed>>;

/// What the rest of the process tells the lifecycle.
struct Inbox {
    failed: mpsc::UnboundedReceiver<String>,
    upgrades: mpsc::UnboundedReceiver<Asker>,
    stops: mpsc::UnboundedReceiver<Event>,
}

/// What the lifecycle has under way.
#[derive(Default)]
struct Work {
    handover: Option<Handover>,
    /// Who asked for it, if anybody waits.
    asker: Option<Asker>,
    /// HUP came meanwhile, when the successor may have read the file already: whoever serves in the end reads it again.
    hangup: bool,
    /// Until this process drains: whoever wants a change then is told to ask the successor.
    hold: Option<Hold>,
}

/// How it ended, readable once `Server::run` has returned.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    end: Arc<OnceCell<End>>,
    handed_over: Arc<OnceCell<()>>,
}

type Handover = Later<Result<Heir, UpgradeError>>;

// === impl Timings ===

impl Timings {
    /// As the configuration says.
    pub fn new(timing: Timing) -> Self {
        Self(Arc::new(Mutex::new(timing)))
    }

    /// The one in effect.
    pub fn get(&self) -> Timing {
        *self.0.lock()
    }

    /// For delays and drains that begin from now on.
    pub fn set(&self, timing: Timing) {
        *self.0.lock() = timing;
    }
}

// === impl Upgrades ===

impl Upgrades {
    /// Has a successor started, and returns once that serves: this process then drains.
    ///
    /// # Errors
    /// This process goes on as if nothing had happened, unless it was shutting down anyway.
    pub async fn upgrade(&self) -> Result<Upgraded, UpgradeFailed> {
        let (asker, answer) = oneshot::channel();
        // Without a lifecycle both fail, since the asker is dropped.
        let _ = self.0.send(asker);
        answer.await.unwrap_or(Err(UpgradeFailed::Refused("already shutting down")))
    }
}

// === impl Stops ===

impl Stops {
    /// Drains, then ends; `now`: ends at once. Has no effect on a process that is ending in this way already.
    pub fn stop(&self, now: bool) {
        // It fails once the lifecycle is over.
        let _ = self.0.send(if now { Event::StopNow } else { Event::Stop });
    }
}

// === impl Signals ===

impl Signals {
    /// Nothing is installed before [`recv`](ShutdownSignalWatch::recv) runs.
    pub fn new(parts: Parts) -> Self {
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
            outset: Outset::default(),
            outcome: Outcome::default(),
        }
    }

    /// For whoever may order an upgrade.
    pub fn upgrades(&self) -> Upgrades {
        self.upgrades.clone()
    }

    /// For whoever may order the end.
    pub fn stops(&self) -> Stops {
        self.stops.clone()
    }

    /// For the service whose runtime must work for the process to count as alive.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// The shutdown watch for the [`Handed`](super::sockets::Handed) services of a class.
    pub fn shutdown(&self, class: Class) -> watch::Receiver<bool> {
        match class {
            Class::Traffic => self.traffic.subscribe(),
            Class::Admin => self.admin.subscribe(),
        }
    }

    /// Where it is said, in a sentence, why a service has ended unasked; the process then ends with [`FAILED`].
    pub fn failures(&self) -> mpsc::UnboundedSender<String> {
        self.failures.clone()
    }

    /// Turns true when the signal handlers are installed; readiness must not be announced before.
    pub fn installed(&self) -> watch::Receiver<bool> {
        self.installed.subscribe()
    }

    /// For whoever says that the process serves.
    pub fn outset(&self) -> Outset {
        self.outset.clone()
    }

    /// To be read after `Server::run`.
    pub fn outcome(&self) -> Outcome {
        self.outcome.clone()
    }

    async fn run(&self, mut signals: impl Source) -> io::Result<()> {
        self.installed.send_replace(true);
        let taken = self.inbox.lock().take();
        let mut inbox = taken.ok_or_else(|| io::Error::other("the signal watch is used twice"))?;
        let hindrance = successor::hindrance(std::process::id());
        let mut lifecycle = Lifecycle::new(self.parts.timings.get(), hindrance);
        let mut work = Work::default();
        let mut ticks = every(TICK);
        let mut pings = self.parts.supervisor.ping_interval().map(every);
        loop {
            let (event, asker) = tokio::select! {
                came = signals.next() => (self.translate(came, &mut work), None),
                Some(asker) = inbox.upgrades.recv() => {
                    log::info!("upgrade: ordered");
                    (Some(Event::Upgrade), Some(asker))
                }
                Some(event) = inbox.stops.recv() => {
                    log::info!("stop: ordered{}", if event == Event::StopNow { ", at once" } else { "" });
                    (Some(event), None)
                }
                result = poll(&mut work.handover) => (Some(self.finish(result, &mut work)), None),
                Some(problem) = inbox.failed.recv() => {
                    log::error!("{problem}");
                    (Some(Event::ServiceFailed), None)
                }
                () = next(&mut pings) => {
                    self.ping();
                    (None, None)
                }
                _ = ticks.tick(), if lifecycle.is_timed() => (Some(Event::Tick), None),
            };
            let Some(event) = event else { continue };
            lifecycle.set_timing(self.parts.timings.get());
            let actions = lifecycle.on(event, Instant::now(), self.parts.in_flight.pending());
            if self.carry_out(actions, &mut work, asker) {
                return Ok(());
            }
            if work.handover.is_none() {
                work.hold = None;
            }
        }
    }

    /// Does what was decided; true when that was the end.
    fn carry_out(&self, actions: Vec<Action>, work: &mut Work, mut asker: Option<Asker>) -> bool {
        for action in actions {
            match action {
                Action::OpenOffer => work.handover = Some(self.hand_over()),
                Action::StartSuccessor => {
                    *work = Work { handover: Some(self.succeed()), asker: asker.take(), ..Work::default() };
                }
                Action::WithdrawOffer => work.give_up(),
                Action::Ignore(reason) => ignore(reason, asker.take()),
                Action::End(end) => {
                    self.end(end);
                    return true;
                }
                action => self.apply(action),
            }
        }
        false
    }

    /// What a signal means to the lifecycle; those that mean nothing to it are dealt with here.
    fn translate(&self, came: Came, work: &mut Work) -> Option<Event> {
        match came {
            Came::Term | Came::Int => {
                log::info!("signal {came:?}: shutting down");
                return Some(Event::Terminate);
            }
            Came::Quit => {
                log::info!("signal Quit: handing over to a new process");
                return Some(Event::Quit);
            }
            Came::Usr2 => {
                log::info!("signal Usr2: upgrading");
                return Some(Event::Upgrade);
            }
            Came::Hup if work.handover.is_some() => {
                log::info!("signal Hup: the file is read again when it is known which process serves");
                work.hangup = true;
            }
            Came::Hup => (self.parts.on_hangup)(),
            Came::Usr1 => {
                log::info!("signal Usr1: reopening the log files");
                (self.parts.reopen_logs)();
            }
        }
        None
    }

    /// Tells the service manager that the process works, if it does: this loop, and the runtime of the requests.
    fn ping(&self) {
        if self.pulse.is_felt() {
            self.parts.supervisor.ping();
        } else {
            log::error!("watchdog: the runtime of the proxy does not answer");
        }
    }

    fn apply(&self, action: Action) {
        match action {
            Action::Enter(phase) => {
                self.outset.decide();
                self.tell_phase(phase);
                (self.parts.on_phase)(phase);
            }
            Action::Close(class) => self.close(class),
            Action::LeaveFiles => {
                self.parts.sockets.keep_files();
                // Set twice only if the lifecycle could hand over twice, and then to the same value.
                let _ = self.outcome.handed_over.set(());
            }
            // Of `carry_out`.
            Action::OpenOffer
            | Action::StartSuccessor
            | Action::WithdrawOffer
            | Action::Ignore(_)
            | Action::End(_) => {}
        }
    }

    fn hand_over(&self) -> Handover {
        let ((path, window, legacy), about) = (self.offered(), self.parts.launch.about());
        Box::pin(async move {
            let offer = Offer::open(&path)?.saying(about);
            log::info!("upgrade: sockets on offer at {} for {window:?}", path.display());
            offer.serve(legacy, window).await
        })
    }

    fn succeed(&self) -> Handover {
        let ((path, window, legacy), launch) = (self.offered(), self.parts.launch.clone());
        Box::pin(async move {
            let legacy = timeout(window, legacy).await.map_err(|_| UpgradeError::Busy(window))??;
            successor::succeed(&launch, &path, legacy, window).await
        })
    }

    fn offered(&self) -> (PathBuf, Duration, Later<io::Result<Legacy>>) {
        (self.parts.upgrade_sock.clone(), self.parts.window, (self.parts.legacy)())
    }

    /// The hand-over is over, one way or the other.
    fn finish(&self, result: Result<Heir, UpgradeError>, work: &mut Work) -> Event {
        work.handover = None;
        let hangup = std::mem::take(&mut work.hangup);
        match result {
            Ok(Heir { pid, hold }) => {
                log::info!("upgrade: process {pid} serves now");
                if hangup {
                    hang_up(pid);
                }
                work.hold = Some(hold);
                work.answer(Ok(Upgraded { pid }));
                Event::NewProcessReady
            }
            Err(error) => {
                log::error!("upgrade failed, this process goes on serving: {error}");
                (self.parts.on_failed_upgrade)(&error);
                if hangup {
                    (self.parts.on_hangup)();
                }
                work.answer(Err(UpgradeFailed::Failed(error.to_string())));
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
        // So that a service which ends now is not taken for a failed one.
        self.close(Class::Traffic);
        self.close(Class::Admin);
        let cut = count_of(end.cut, "request");
        match end.reason {
            EndReason::Drained => log::info!("drained: no request is left"),
            EndReason::OutOfTime => {
                log::warn!("drain out of time after {:?}: {cut} cut", self.parts.timings.get().drain);
            }
            EndReason::Hurried => log::warn!("ending at once: {cut} cut"),
            EndReason::ServiceFailed => log::error!("ending, {cut} cut"),
        }
        self.outcome.set(end);
    }

    fn tell_phase(&self, phase: Phase) {
        let Timing { delay, drain } = self.parts.timings.get();
        let requests = count_of(self.parts.in_flight.pending().requests, "request");
        match phase {
            Phase::Serving => {}
            Phase::Delaying => {
                log::info!("no longer ready; still accepting for {delay:?}");
                self.parts.supervisor.stopping("no longer ready, still accepting");
            }
            Phase::Draining => {
                log::info!("draining: listeners closed, {requests} in flight, at most {drain:?}");
                self.parts.supervisor.stopping(&format!("draining: {requests} in flight"));
            }
            Phase::HandedOver { .. } => {
                log::info!("handed over, draining: {requests} in flight, at most {drain:?}");
                self.parts.supervisor.hand_over();
            }
        }
    }
}

// === impl Work ===

impl Work {
    /// Withdraws the offer and ends a successor that was started.
    fn give_up(&mut self) {
        self.handover = None;
        self.answer(Err(UpgradeFailed::Failed("this process was told to end meanwhile".to_owned())));
    }

    fn answer(&mut self, answer: Result<Upgraded, UpgradeFailed>) {
        if let Some(asker) = self.asker.take() {
            // Who does not wait any more need not know.
            let _ = asker.send(answer);
        }
    }
}

/// Tells who asked, by a signal or otherwise, that nothing is done.
fn ignore(reason: &'static str, asker: Option<Asker>) {
    log::info!("ignored: {reason}");
    if let Some(asker) = asker {
        let _ = asker.send(Err(UpgradeFailed::Refused(reason)));
    }
}

/// The successor reads its file again.
fn hang_up(pid: u32) {
    let pid = i32::try_from(pid).map(Pid::from_raw);
    match pid.map(|pid| kill(pid, NixSignal::SIGHUP)) {
        Ok(Ok(())) => log::info!("upgrade: signal Hup is passed on"),
        failed => log::error!("upgrade: signal Hup cannot be passed on: {failed:?}"),
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
            log::error!("cannot handle signals: {error}");
            self.outcome.set(End { reason: EndReason::ServiceFailed, cut: 0 });
        }
        // All waiting is done: the server has nothing left to wait for.
        ShutdownSignal::FastShutdown
    }
}

impl Outcome {
    /// How it ended; as a failure when the server returned for a reason of its own.
    pub fn end(&self) -> End {
        self.end.get().copied().unwrap_or(End { reason: EndReason::ServiceFailed, cut: 0 })
    }

    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        self.end().exit_code()
    }

    /// Whether a successor has taken over, and with it the pid file.
    pub fn is_handed_over(&self) -> bool {
        self.handed_over.get().is_some()
    }

    fn set(&self, end: End) {
        // The first end counts.
        let _ = self.end.set(end);
    }
}

async fn poll(handover: &mut Option<Handover>) -> Result<Heir, UpgradeError> {
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

    /// So many in flight, and nothing else to wait for.
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
    fn a_request_already_sent_is_waited_for() {
        let now = Instant::now();
        let mut lifecycle = draining(now);
        assert_eq!(lifecycle.on(Event::Tick, now + SETTLE / 2, requests(0)), []);
        assert_eq!(lifecycle.on(Event::Tick, now + SETTLE, requests(1)), []);
        assert_eq!(lifecycle.on(Event::Tick, now + SETTLE + TICK, requests(0)), end(EndReason::Drained, 0));
    }

    #[test]
    fn a_drain_out_of_time_cuts() {
        let now = Instant::now();
        let mut lifecycle = draining(now);
        assert_eq!(lifecycle.on(Event::Tick, now + DRAIN - TICK, requests(2)), []);
        assert_eq!(lifecycle.on(Event::Tick, now + DRAIN, requests(2)), end(EndReason::OutOfTime, 2));
    }

    #[test]
    fn no_time_to_drain_cuts_at_once_but_only_what_there_is() {
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
    fn a_second_signal_ends_at_once() {
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
        assert_eq!(draining(now).on(Event::Tick, now + DRAIN, settling), [], "a request may be on its way");
        assert_eq!(draining(now).on(Event::Terminate, now, settling), end(EndReason::Hurried, 0));
        assert_eq!(draining(now).on(Event::ServiceFailed, now, settling), end(EndReason::ServiceFailed, 0));
    }

    #[test]
    fn an_ordered_stop_drains_and_never_hurries() {
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
    fn a_stop_at_once_waits_for_nothing_in_any_state() {
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
    fn exit_codes() {
        let code = |reason, cut| End { reason, cut }.exit_code();
        assert_eq!(code(EndReason::Drained, 0), 0);
        assert_eq!(code(EndReason::Hurried, 0), 0);
        assert_eq!(code(EndReason::Hurried, 1), 3);
        assert_eq!(code(EndReason::OutOfTime, 1), 3);
        assert_eq!(code(EndReason::ServiceFailed, 0), 1);
    }

    #[test]
    fn quit_is_ignored_once_the_end_has_begun() {
        let now = Instant::now();
        let ignored = [Action::Ignore("already shutting down")];
        assert_eq!(draining(now).on(Event::Quit, now, requests(0)), ignored);
        let mut delaying = Lifecycle::new(Timing { delay: DELAY, drain: DRAIN }, None);
        delaying.on(Event::Terminate, now, requests(0));
        assert_eq!(delaying.on(Event::Quit, now, requests(0)), ignored);
        assert_eq!(handed_over(now).on(Event::Quit, now, requests(0)), ignored);
    }

    #[test]
    fn a_failed_hand_over_changes_nothing_and_can_be_tried_again() {
        let now = Instant::now();
        let mut lifecycle = serving();
        assert_eq!(lifecycle.on(Event::Quit, now, requests(0)), [Action::OpenOffer]);
        let ignored = [Action::Ignore("the sockets are on offer to a process started with -u already")];
        assert_eq!(lifecycle.on(Event::Quit, now, requests(0)), ignored);
        assert_eq!(lifecycle.on(Event::Upgrade, now, requests(0)), ignored);
        assert_eq!(lifecycle.on(Event::HandoverFailed, now, requests(0)), []);
        assert!(!lifecycle.is_timed());
        assert_eq!(lifecycle.on(Event::Quit, now, requests(0)), [Action::OpenOffer]);
    }

    #[test]
    fn an_upgrade_starts_a_successor_and_drains_for_it() {
        let now = Instant::now();
        let mut lifecycle = serving();
        assert_eq!(lifecycle.on(Event::Upgrade, now, requests(1)), [Action::StartSuccessor]);
        assert!(!lifecycle.is_timed(), "it goes on serving");
        let actions = lifecycle.on(Event::NewProcessReady, now, requests(1));
        assert_eq!(actions, [&[Action::LeaveFiles][..], &HANDED_OVER].concat());
        let ignored = [Action::Ignore("already shutting down")];
        assert_eq!(lifecycle.on(Event::Upgrade, now, requests(1)), ignored);
    }

    #[test]
    fn one_upgrade_at_a_time() {
        let now = Instant::now();
        let mut lifecycle = serving();
        lifecycle.on(Event::Upgrade, now, requests(0));
        let ignored = [Action::Ignore("an upgrade is under way already")];
        assert_eq!(lifecycle.on(Event::Upgrade, now, requests(0)), ignored);
        assert_eq!(lifecycle.on(Event::Quit, now, requests(0)), ignored);
        assert_eq!(lifecycle.on(Event::HandoverFailed, now, requests(0)), []);
        assert_eq!(lifecycle.on(Event::Upgrade, now, requests(0)), [Action::StartSuccessor]);
    }

    #[test]
    fn a_process_that_cannot_have_a_successor_says_why() {
        let now = Instant::now();
        let mut lifecycle = Lifecycle::new(TIMING, successor::hindrance(1));
        let actions = lifecycle.on(Event::Upgrade, now, requests(0));
        assert!(matches!(actions[..], [Action::Ignore(reason)] if reason.contains("start a container")));
        assert_eq!(
            lifecycle.on(Event::Quit, now, requests(0)),
            [Action::OpenOffer],
            "whoever comes is somebody else's"
        );
        assert_eq!(successor::hindrance(2), None);
    }

    #[test]
    fn a_termination_ends_an_upgrade() {
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
    fn the_timing_is_that_of_the_moment_in_which_a_drain_begins() {
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
    fn a_termination_withdraws_the_offer() {
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
    fn a_process_with_a_successor_drains_without_delay() {
        let now = Instant::now();
        let mut lifecycle = handed_over(now);
        assert_eq!(lifecycle.on(Event::Tick, now + SETTLE, requests(0)), end(EndReason::Drained, 0));
    }

    #[test]
    fn the_first_termination_of_a_process_with_a_successor_cuts_nothing() {
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
    fn ticks_mean_nothing_while_serving() {
        let now = Instant::now();
        assert_eq!(serving().on(Event::Tick, now + DRAIN, requests(0)), []);
    }

    /// What a test reads of the parts.
    #[derive(Clone, Default)]
    struct Seen {
        requests: Arc<AtomicUsize>,
        phases: Arc<Mutex<Vec<Phase>>>,
        hangups: Arc<AtomicUsize>,
    }

    /// How long successors of these tests have.
    const WINDOW: Duration = Duration::from_secs(2);

    /// A watch over one traffic and one admin listener, whose successor is this script.
    fn signals_with(upgrade_sock: PathBuf, script: &str, supervisor: Supervisor) -> (Arc<Signals>, Seen) {
        let any = || Endpoint::Tcp("127.0.0.1:0".parse().unwrap());
        let sockets = Sockets::bind(&[ListenSpec::traffic(any()), ListenSpec::admin(any())]).unwrap();
        let sockets = Arc::new(sockets);
        let (seen, offered) = (Seen::default(), sockets.clone());
        let (requests, phases, hangups) = (seen.requests.clone(), seen.phases.clone(), seen.hangups.clone());
        let signals = Signals::new(Parts {
            timings: Timings::new(TIMING),
            upgrade_sock,
            window: WINDOW,
            launch: Launch::script(script, true),
            legacy: Box::new(move || Box::pin(legacy(offered.clone()))),
            supervisor,
            sockets,
            early: Early::default(),
            in_flight: Arc::new(move || self::requests(requests.load(Ordering::Relaxed))),
            on_phase: Box::new(move |phase| phases.lock().push(phase)),
            on_failed_upgrade: Box::new(|_| {}),
            reopen_logs: Box::new(|| {}),
            on_hangup: Box::new(move || {
                hangups.fetch_add(1, Ordering::Relaxed);
            }),
        });
        (Arc::new(signals), seen)
    }

    async fn legacy(sockets: Arc<Sockets>) -> io::Result<Legacy> {
        Ok(Legacy::of(sockets.to_hand_over()?).await)
    }

    fn signals(upgrade_sock: PathBuf) -> (Arc<Signals>, Seen) {
        signals_with(upgrade_sock, "exit 0", Supervisor::default())
    }

    type Running = tokio::task::JoinHandle<io::Result<()>>;

    /// The signals at work, and where signals are sent.
    async fn run(signals: &Arc<Signals>) -> (mpsc::UnboundedSender<Came>, Running) {
        let (send, came) = mpsc::unbounded_channel();
        let running = tokio::spawn({
            let signals = Arc::clone(signals);
            async move { signals.run(came).await }
        });
        signals.installed().wait_for(|installed| *installed).await.unwrap();
        (send, running)
    }

    /// Signals as a test sends them: real ones would be for the whole test process.
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

    /// Does what a process started with `-u` does.
    async fn take_over(path: &std::path::Path, signals: &Signals) {
        let path = path.to_owned();
        let taking = tokio::task::spawn_blocking(move || upgrade::take(&path, None, Duration::from_secs(5)));
        let (inherited, claim) = taking.await.unwrap().unwrap();
        assert_eq!(inherited.len(), 2);
        assert!(!*signals.shutdown(Class::Traffic).borrow());
        tokio::task::spawn_blocking(move || claim.ready()).await.unwrap().unwrap();
    }

    async fn is_handed_over(signals: &Signals, seen: &Seen, running: Running) {
        signals.shutdown(Class::Admin).wait_for(|closed| *closed).await.unwrap();
        assert!(*signals.shutdown(Class::Traffic).borrow());
        seen.requests.store(0, Ordering::Relaxed);
        running.await.unwrap().unwrap();
        assert_eq!(signals.outcome().exit_code(), DONE);
        assert!(signals.outcome().is_handed_over());
        assert_eq!(*seen.phases.lock(), [Phase::HandedOver { idle: IDLE }]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_hand_over_is_carried_out() {
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
    async fn an_upgrade_is_carried_out_and_who_asked_is_told_once_it_serves() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upgrade.sock");
        // Its successor lives on after the hand-over, so it ends by itself with this test.
        let script = format!("while [ -d {} ]; do sleep 0.1; done", dir.path().display());
        let (signals, seen) = signals_with(path.clone(), &script, Supervisor::default());
        seen.requests.store(1, Ordering::Relaxed);
        let (_send, running) = run(&signals).await;
        let upgrading = tokio::spawn({
            let upgrades = signals.upgrades();
            async move { upgrades.upgrade().await }
        });
        take_over(&path, &signals).await;
        // The test stands in for the process that was started.
        assert_eq!(upgrading.await.unwrap(), Ok(Upgraded { pid: std::process::id() }));
        is_handed_over(&signals, &seen, running).await;
        let late = signals.upgrades().upgrade().await;
        assert_eq!(late, Err(UpgradeFailed::Refused("already shutting down")));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_file_is_read_again_after_an_upgrade_that_failed_and_not_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let script = "exec sleep 60";
        let (signals, seen) = signals_with(dir.path().join("sock"), script, Supervisor::default());
        let hangups = || seen.hangups.load(Ordering::Relaxed);
        let (send, running) = run(&signals).await;
        let (first, second) = (signals.upgrades(), signals.upgrades());
        let meanwhile = async {
            assert!(
                matches!(second.upgrade().await, Err(UpgradeFailed::Refused(_))),
                "the first is under way"
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
        assert_eq!(second, Err(UpgradeFailed::Refused("an upgrade is under way already")));
        let Err(UpgradeFailed::Failed(reason)) = first else { panic!("{first:?}") };
        assert!(reason.contains("was not ready within 2s"), "{reason}");
        assert!(!path.exists(), "the offer is withdrawn");
        running.abort();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whatever_a_successor_fails_by_is_said_and_nothing_of_it_is_left() {
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
            assert!(seen.phases.lock().is_empty(), "the old process goes on");
            send.send(Came::Term).unwrap();
            running.await.unwrap().unwrap();
            assert!(!signals.outcome().is_handed_over());
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_process_that_is_told_to_end_ends_its_successor_too() {
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
    async fn the_service_manager_is_told_of_the_end_and_of_life_before_it() {
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
