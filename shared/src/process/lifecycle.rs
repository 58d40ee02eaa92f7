//! From serving to the end: what a signal means when, and how it is carried out.
//!
//! [`Lifecycle`] decides: a state machine over events, with the time and the number of requests in flight passed in.
//! [`Signals`] carries out: it is the `ShutdownSignalWatch` that Pingora's server waits on, and lives in its runtime.
//!
//! ```text
//!             Quit                     NewProcessReady
//!  Serving ----------> HandingOver --------------------------------+
//!     ^                  |     |                                   |
//!     +--HandoverFailed--+     | Terminate                         v
//!     | Terminate              v      delay over                            drained, out of time,
//!     +--------------------> Delaying -------------------------> Draining ----------------------> Done
//!                              |                                           or Terminate again      ^
//!                              +-- Terminate again ------------------------------------------------+
//! ```

use std::future::{Future, pending};
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use once_cell::sync::OnceCell;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use super::sockets::{Class, Sockets};
use super::upgrade::{Offer, UpgradeError, WINDOW};

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

/// The section `shutdown` of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Not ready, but still accepting: the time that whoever balances over us needs to notice.
    pub delay: Duration,
    /// The longest that requests in flight may take once the listeners are closed.
    pub drain: Duration,
}

/// What the rest of the process should be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Accepting, and ready.
    Serving,
    /// Accepting, but no longer ready.
    Delaying,
    /// Not accepting; requests in flight are finished.
    Draining,
}

/// Something that the lifecycle may have to react to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// TERM or INT.
    Terminate,
    /// QUIT: hand the sockets over to a process started with `-u`.
    Quit,
    /// The successor serves and knows that we know.
    NewProcessReady,
    /// There will be no successor this time; the offer is withdrawn.
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
    /// No longer do.
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
    /// TERM or INT came a second time.
    Hurried,
    /// A service that must run had ended.
    ServiceFailed,
}

/// The state machine.
#[derive(Debug)]
pub struct Lifecycle {
    timing: Timing,
    state: State,
}

/// Where the lifecycle stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Serving,
    HandingOver,
    Delaying { until: Instant },
    Draining { settled: Instant, until: Instant, terminated: bool },
    Done,
}

impl Lifecycle {
    /// Serving.
    pub fn new(timing: Timing) -> Self {
        Self { timing, state: State::Serving }
    }

    /// Whether [`Event::Tick`] can make a difference.
    pub fn is_timed(&self) -> bool {
        matches!(self.state, State::Delaying { .. } | State::Draining { .. })
    }

    /// Decides. `requests` are those that would be cut if the process ended now.
    pub fn on(&mut self, event: Event, now: Instant, requests: usize) -> Vec<Action> {
        match (self.state, event) {
            (State::Done, _) => Vec::new(),
            (_, Event::ServiceFailed) => self.end(EndReason::ServiceFailed, requests),
            (State::Serving, Event::Terminate) => self.delay(now),
            (State::HandingOver, Event::Terminate) => {
                let mut actions = vec![Action::WithdrawOffer];
                actions.append(&mut self.delay(now));
                actions
            }
            (State::Draining { settled, until, terminated: false }, Event::Terminate) => {
                // The first one, of a process that drains because it has a successor.
                self.state = State::Draining { settled, until, terminated: true };
                vec![Action::Ignore("already draining")]
            }
            (State::Delaying { .. } | State::Draining { .. }, Event::Terminate) => {
                self.end(EndReason::Hurried, requests)
            }
            (State::Serving, Event::Quit) => {
                self.state = State::HandingOver;
                vec![Action::OpenOffer]
            }
            (State::HandingOver, Event::Quit) => vec![Action::Ignore("the sockets are already on offer")],
            (_, Event::Quit) => vec![Action::Ignore("already shutting down")],
            (State::HandingOver, Event::NewProcessReady) => self.succeed(now),
            (State::HandingOver, Event::HandoverFailed) => {
                self.state = State::Serving;
                Vec::new()
            }
            (_, Event::NewProcessReady | Event::HandoverFailed) => Vec::new(),
            (_, Event::Tick) => self.tick(now, requests),
        }
    }

    fn delay(&mut self, now: Instant) -> Vec<Action> {
        if self.timing.delay.is_zero() {
            return self.drain(now, true);
        }
        self.state = State::Delaying { until: now + self.timing.delay };
        vec![Action::Enter(Phase::Delaying)]
    }

    fn drain(&mut self, now: Instant, terminated: bool) -> Vec<Action> {
        self.state = State::Draining { settled: now + SETTLE, until: now + self.timing.drain, terminated };
        vec![Action::Enter(Phase::Draining), Action::Close(Class::Traffic)]
    }

    fn succeed(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = vec![Action::LeaveFiles];
        actions.append(&mut self.drain(now, false));
        actions.push(Action::Close(Class::Admin));
        actions
    }

    fn tick(&mut self, now: Instant, requests: usize) -> Vec<Action> {
        match self.state {
            State::Delaying { until } if now >= until => self.drain(now, true),
            State::Draining { settled, .. } if requests == 0 && now >= settled => {
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
    /// Requests that have been read and not been answered in full; an implementation may count connections that were
    /// accepted and whose first request is still to come. Asked every 10 ms during a drain, and at no other time but the
    /// end.
    fn requests(&self) -> usize;
}

impl<F: Fn() -> usize + Send + Sync> InFlight for F {
    fn requests(&self) -> usize {
        self()
    }
}

/// What [`Signals`] works on.
pub struct Parts {
    /// `shutdown.delay` and `shutdown.drain`.
    pub timing: Timing,
    /// Where the sockets are offered to a successor.
    pub upgrade_sock: PathBuf,
    /// Closed, offered and left to the successor.
    pub sockets: Arc<Sockets>,
    /// Requests in flight.
    pub in_flight: Arc<dyn InFlight>,
    /// Called with each phase that is entered: readiness and `Connection: close` hang on it.
    pub on_phase: Box<dyn Fn(Phase) + Send + Sync>,
    /// Called on HUP; it must not wait.
    pub on_hangup: Box<dyn Fn() + Send + Sync>,
    /// Called on USR1.
    pub reopen_logs: Box<dyn Fn() + Send + Sync>,
}

/// The signals of the daemon, as Pingora's server waits for them.
///
/// Pass it to `Server::run`, which returns as soon as the process is to end.
pub struct Signals {
    parts: Parts,
    traffic: watch::Sender<bool>,
    admin: watch::Sender<bool>,
    installed: watch::Sender<bool>,
    failures: mpsc::UnboundedSender<String>,
    failed: Mutex<Option<mpsc::UnboundedReceiver<String>>>,
    outcome: Outcome,
}

/// How it ended, readable once `Server::run` has returned.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    end: Arc<OnceCell<u8>>,
    handed_over: Arc<OnceCell<()>>,
}

/// Where signals come from.
trait Source: Send {
    fn next(&mut self) -> impl Future<Output = Came> + Send;
}

/// The signal handlers of the process; installed for good, whatever becomes of this value.
struct Handlers {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
    user1: Signal,
    user2: Signal,
}

/// A signal as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    Term,
    Int,
    Quit,
    Hup,
    Usr1,
    Usr2,
}

type Handover = Pin<Box<dyn Future<Output = Result<u32, UpgradeError>> + Send>>;

impl Signals {
    /// Nothing is installed before [`recv`](ShutdownSignalWatch::recv) runs.
    pub fn new(parts: Parts) -> Self {
        let (failures, failed) = mpsc::unbounded_channel();
        Self {
            parts,
            traffic: watch::Sender::new(false),
            admin: watch::Sender::new(false),
            installed: watch::Sender::new(false),
            failures,
            failed: Mutex::new(Some(failed)),
            outcome: Outcome::default(),
        }
    }

    /// The shutdown watch for the [`Handed`](super::sockets::Handed) services of a class.
    pub fn shutdown(&self, class: Class) -> watch::Receiver<bool> {
        match class {
            Class::Traffic => self.traffic.subscribe(),
            Class::Admin => self.admin.subscribe(),
        }
    }

    /// Where a service reports that it has ended unasked; the process then ends with [`FAILED`].
    pub fn failures(&self) -> mpsc::UnboundedSender<String> {
        self.failures.clone()
    }

    /// Turns true when the signal handlers are installed; readiness must not be announced before.
    pub fn installed(&self) -> watch::Receiver<bool> {
        self.installed.subscribe()
    }

    /// To be read after `Server::run`.
    pub fn outcome(&self) -> Outcome {
        self.outcome.clone()
    }

    async fn run(&self, mut signals: impl Source) -> io::Result<()> {
        self.installed.send_replace(true);
        let taken = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut failed = taken.ok_or_else(|| io::Error::other("the signal watch is used twice"))?;
        let mut lifecycle = Lifecycle::new(self.parts.timing);
        let mut handover: Option<Handover> = None;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                came = signals.next() => self.translate(came),
                result = poll(&mut handover) => {
                    handover = None;
                    Some(report(&result))
                }
                Some(service) = failed.recv() => {
                    log::error!("service {service} has ended: its listeners could not be started, or it panicked");
                    Some(Event::ServiceFailed)
                }
                _ = ticks.tick(), if lifecycle.is_timed() => Some(Event::Tick),
            };
            let Some(event) = event else { continue };
            for action in lifecycle.on(event, Instant::now(), self.parts.in_flight.requests()) {
                match action {
                    Action::OpenOffer => handover = Some(self.hand_over()),
                    Action::WithdrawOffer => handover = None,
                    Action::End(end) => {
                        self.end(end);
                        return Ok(());
                    }
                    action => self.apply(action),
                }
            }
        }
    }

    /// What a signal means to the lifecycle; those that mean nothing to it are dealt with here.
    fn translate(&self, came: Came) -> Option<Event> {
        match came {
            Came::Term | Came::Int => {
                log::info!("signal {came:?}: shutting down");
                return Some(Event::Terminate);
            }
            Came::Quit => {
                log::info!("signal Quit: handing over to a new process");
                return Some(Event::Quit);
            }
            Came::Hup => (self.parts.on_hangup)(),
            Came::Usr2 => {
                log::warn!("signal Usr2: not supported yet; send QUIT and start with -u to upgrade");
            }
            Came::Usr1 => {
                (self.parts.reopen_logs)();
                log::info!("signal Usr1: log files reopened");
            }
        }
        None
    }

    fn apply(&self, action: Action) {
        match action {
            Action::Enter(phase) => {
                self.log_phase(phase);
                (self.parts.on_phase)(phase);
            }
            Action::Close(class) => self.close(class),
            Action::LeaveFiles => {
                self.parts.sockets.keep_files();
                // Set twice only if the lifecycle could hand over twice, and then to the same value.
                let _ = self.outcome.handed_over.set(());
            }
            Action::Ignore(reason) => log::info!("signal ignored: {reason}"),
            Action::OpenOffer | Action::WithdrawOffer | Action::End(_) => {}
        }
    }

    fn hand_over(&self) -> Handover {
        let (path, sockets) = (self.parts.upgrade_sock.clone(), Arc::clone(&self.parts.sockets));
        Box::pin(async move {
            let offer = Offer::open(&path)?;
            log::info!("upgrade: sockets on offer at {} for {WINDOW:?}", path.display());
            offer.serve(sockets.to_hand_over()?, WINDOW).await
        })
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
        match end.reason {
            EndReason::Drained => log::info!("drained: no request is left"),
            EndReason::OutOfTime => {
                log::warn!("drain out of time after {:?}: {} requests cut", self.parts.timing.drain, end.cut);
            }
            EndReason::Hurried => log::warn!("second signal: ending at once, {} requests cut", end.cut),
            EndReason::ServiceFailed => log::error!("ending, {} requests cut", end.cut),
        }
        self.outcome.set(end.exit_code());
    }

    fn log_phase(&self, phase: Phase) {
        let Timing { delay, drain } = self.parts.timing;
        match phase {
            Phase::Serving => {}
            Phase::Delaying => log::info!("no longer ready; still accepting for {delay:?}"),
            Phase::Draining => {
                let requests = self.parts.in_flight.requests();
                log::info!("draining: listeners closed, {requests} requests in flight, at most {drain:?}");
            }
        }
    }
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let ended = match Handlers::install() {
            Ok(handlers) => self.run(handlers).await,
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            log::error!("cannot handle signals: {error}");
            self.outcome.set(FAILED);
        }
        // All waiting is done: the server has nothing left to wait for.
        ShutdownSignal::FastShutdown
    }
}

impl Outcome {
    /// The exit code; [`FAILED`] when the server returned for a reason of its own.
    pub fn exit_code(&self) -> u8 {
        self.end.get().copied().unwrap_or(FAILED)
    }

    /// Whether a successor has taken over, and with it the pid file.
    pub fn is_handed_over(&self) -> bool {
        self.handed_over.get().is_some()
    }

    fn set(&self, code: u8) {
        // The first end counts.
        let _ = self.end.set(code);
    }
}

impl Handlers {
    fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }
}

impl Source for Handlers {
    async fn next(&mut self) -> Came {
        tokio::select! {
            _ = self.terminate.recv() => Came::Term,
            _ = self.interrupt.recv() => Came::Int,
            _ = self.quit.recv() => Came::Quit,
            _ = self.hangup.recv() => Came::Hup,
            _ = self.user1.recv() => Came::Usr1,
            _ = self.user2.recv() => Came::Usr2,
        }
    }
}

async fn poll(handover: &mut Option<Handover>) -> Result<u32, UpgradeError> {
    match handover {
        Some(handover) => handover.await,
        None => pending().await,
    }
}

fn report(result: &Result<u32, UpgradeError>) -> Event {
    match result {
        Ok(pid) => {
            log::info!("upgrade: process {pid} serves now");
            Event::NewProcessReady
        }
        Err(error) => {
            log::error!("upgrade failed, this process goes on serving: {error}");
            Event::HandoverFailed
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::process::sockets::{Endpoint, ListenSpec};
    use crate::process::upgrade;

    const DELAY: Duration = Duration::from_secs(2);
    const DRAIN: Duration = Duration::from_secs(25);
    const TIMING: Timing = Timing { delay: Duration::ZERO, drain: DRAIN };
    const DRAINING: [Action; 2] = [Action::Enter(Phase::Draining), Action::Close(Class::Traffic)];

    fn end(reason: EndReason, cut: usize) -> Vec<Action> {
        vec![Action::End(End { reason, cut })]
    }

    fn draining(now: Instant) -> Lifecycle {
        let mut lifecycle = Lifecycle::new(TIMING);
        assert_eq!(lifecycle.on(Event::Terminate, now, 1), DRAINING);
        lifecycle
    }

    fn handed_over(now: Instant) -> Lifecycle {
        let mut lifecycle = Lifecycle::new(Timing { delay: DELAY, drain: DRAIN });
        assert_eq!(lifecycle.on(Event::Quit, now, 1), [Action::OpenOffer]);
        let actions = lifecycle.on(Event::NewProcessReady, now, 1);
        let [Action::LeaveFiles, rest @ ..] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!(rest, [DRAINING[0], DRAINING[1], Action::Close(Class::Admin)]);
        lifecycle
    }

    #[test]
    fn a_drain_ends_as_soon_as_no_request_is_left() {
        let now = Instant::now();
        let mut lifecycle = draining(now);
        assert_eq!(lifecycle.on(Event::Tick, now + SETTLE, 1), []);
        assert_eq!(lifecycle.on(Event::Tick, now + SETTLE * 2, 0), end(EndReason::Drained, 0));
        assert_eq!(lifecycle.on(Event::Terminate, now + SETTLE * 2, 0), []);
        assert!(!lifecycle.is_timed());
    }

    #[test]
    fn a_request_already_sent_is_waited_for() {
        let now = Instant::now();
        let mut lifecycle = draining(now);
        assert_eq!(lifecycle.on(Event::Tick, now + SETTLE / 2, 0), []);
        assert_eq!(lifecycle.on(Event::Tick, now + SETTLE, 1), []);
        assert_eq!(lifecycle.on(Event::Tick, now + SETTLE + TICK, 0), end(EndReason::Drained, 0));
    }

    #[test]
    fn a_drain_out_of_time_cuts() {
        let now = Instant::now();
        let mut lifecycle = draining(now);
        assert_eq!(lifecycle.on(Event::Tick, now + DRAIN - TICK, 2), []);
        assert_eq!(lifecycle.on(Event::Tick, now + DRAIN, 2), end(EndReason::OutOfTime, 2));
    }

    #[test]
    fn no_time_to_drain_cuts_at_once_but_only_what_there_is() {
        let now = Instant::now();
        let mut lifecycle = Lifecycle::new(Timing { delay: Duration::ZERO, drain: Duration::ZERO });
        lifecycle.on(Event::Terminate, now, 0);
        assert_eq!(lifecycle.on(Event::Tick, now, 0), []);
        assert_eq!(lifecycle.on(Event::Tick, now + TICK, 1), end(EndReason::OutOfTime, 1));
    }

    #[test]
    fn the_delay_comes_before_the_drain() {
        let now = Instant::now();
        let mut lifecycle = Lifecycle::new(Timing { delay: DELAY, drain: DRAIN });
        assert!(!lifecycle.is_timed());
        assert_eq!(lifecycle.on(Event::Terminate, now, 0), [Action::Enter(Phase::Delaying)]);
        assert!(lifecycle.is_timed());
        assert_eq!(lifecycle.on(Event::Tick, now + DELAY - TICK, 0), []);
        assert_eq!(lifecycle.on(Event::Tick, now + DELAY, 0), DRAINING);
        assert_eq!(lifecycle.on(Event::Tick, now + DELAY + SETTLE, 0), end(EndReason::Drained, 0));
    }

    #[test]
    fn a_second_signal_ends_at_once() {
        let now = Instant::now();
        assert_eq!(draining(now).on(Event::Terminate, now, 3), end(EndReason::Hurried, 3));
        let mut delaying = Lifecycle::new(Timing { delay: DELAY, drain: DRAIN });
        delaying.on(Event::Terminate, now, 0);
        assert_eq!(delaying.on(Event::Terminate, now, 0), end(EndReason::Hurried, 0));
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
        assert_eq!(draining(now).on(Event::Quit, now, 0), ignored);
        let mut delaying = Lifecycle::new(Timing { delay: DELAY, drain: DRAIN });
        delaying.on(Event::Terminate, now, 0);
        assert_eq!(delaying.on(Event::Quit, now, 0), ignored);
        assert_eq!(handed_over(now).on(Event::Quit, now, 0), ignored);
    }

    #[test]
    fn a_failed_hand_over_changes_nothing_and_can_be_tried_again() {
        let now = Instant::now();
        let mut lifecycle = Lifecycle::new(TIMING);
        assert_eq!(lifecycle.on(Event::Quit, now, 0), [Action::OpenOffer]);
        assert_eq!(lifecycle.on(Event::Quit, now, 0), [Action::Ignore("the sockets are already on offer")]);
        assert_eq!(lifecycle.on(Event::HandoverFailed, now, 0), []);
        assert!(!lifecycle.is_timed());
        assert_eq!(lifecycle.on(Event::Quit, now, 0), [Action::OpenOffer]);
    }

    #[test]
    fn a_termination_withdraws_the_offer() {
        let now = Instant::now();
        let mut lifecycle = Lifecycle::new(TIMING);
        lifecycle.on(Event::Quit, now, 0);
        assert_eq!(lifecycle.on(Event::Terminate, now, 0), [Action::WithdrawOffer, DRAINING[0], DRAINING[1]]);
        assert_eq!(lifecycle.on(Event::NewProcessReady, now, 0), []);
    }

    #[test]
    fn a_process_with_a_successor_drains_without_delay() {
        let now = Instant::now();
        let mut lifecycle = handed_over(now);
        assert_eq!(lifecycle.on(Event::Tick, now + SETTLE, 0), end(EndReason::Drained, 0));
    }

    #[test]
    fn the_first_termination_of_a_process_with_a_successor_cuts_nothing() {
        let now = Instant::now();
        let mut lifecycle = handed_over(now);
        assert_eq!(lifecycle.on(Event::Terminate, now, 1), [Action::Ignore("already draining")]);
        assert_eq!(lifecycle.on(Event::Tick, now + DRAIN - TICK, 1), []);
        assert_eq!(lifecycle.on(Event::Terminate, now, 1), end(EndReason::Hurried, 1));
    }

    #[test]
    fn a_failed_service_ends_the_process_in_any_state() {
        let now = Instant::now();
        assert_eq!(Lifecycle::new(TIMING).on(Event::ServiceFailed, now, 0), end(EndReason::ServiceFailed, 0));
        assert_eq!(draining(now).on(Event::ServiceFailed, now, 4), end(EndReason::ServiceFailed, 4));
    }

    #[test]
    fn ticks_mean_nothing_while_serving() {
        let now = Instant::now();
        assert_eq!(Lifecycle::new(TIMING).on(Event::Tick, now + DRAIN, 0), []);
    }

    /// A watch over one traffic and one admin listener, and the phases that it went through.
    fn signals(upgrade_sock: PathBuf, requests: Arc<AtomicUsize>) -> (Arc<Signals>, Arc<Mutex<Vec<Phase>>>) {
        let any = || Endpoint::Tcp("127.0.0.1:0".parse().unwrap());
        let sockets = Sockets::bind(&[ListenSpec::traffic(any()), ListenSpec::admin(any())]).unwrap();
        let phases = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&phases);
        let signals = Signals::new(Parts {
            timing: TIMING,
            upgrade_sock,
            sockets: Arc::new(sockets),
            in_flight: Arc::new(move || requests.load(Ordering::Relaxed)),
            on_phase: Box::new(move |phase| seen.lock().unwrap().push(phase)),
            on_hangup: Box::new(|| {}),
            reopen_logs: Box::new(|| {}),
        });
        (Arc::new(signals), phases)
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
        let (signals, _) = signals(dir.path().join("sock"), Arc::default());
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
        let (signals, phases) = signals(dir.path().join("sock"), Arc::new(AtomicUsize::new(2)));
        let (send, came) = mpsc::unbounded_channel();
        for signal in [Came::Hup, Came::Usr1, Came::Usr2, Came::Int, Came::Quit, Came::Term] {
            send.send(signal).unwrap();
        }
        signals.run(came).await.unwrap();
        assert_eq!(signals.outcome().exit_code(), CUT);
        assert_eq!(*phases.lock().unwrap(), [Phase::Draining]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_hand_over_is_carried_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upgrade.sock");
        let requests = Arc::new(AtomicUsize::new(1));
        let (signals, phases) = signals(path.clone(), Arc::clone(&requests));
        let (send, came) = mpsc::unbounded_channel();
        let running = tokio::spawn({
            let signals = Arc::clone(&signals);
            async move { signals.run(came).await }
        });
        signals.installed().wait_for(|installed| *installed).await.unwrap();
        send.send(Came::Quit).unwrap();

        let taking = tokio::task::spawn_blocking(move || upgrade::take(&path, None, Duration::from_secs(5)));
        let (inherited, claim) = taking.await.unwrap().unwrap();
        assert_eq!(inherited.len(), 2);
        assert!(!*signals.shutdown(Class::Traffic).borrow());
        tokio::task::spawn_blocking(move || claim.ready()).await.unwrap().unwrap();

        signals.shutdown(Class::Admin).wait_for(|closed| *closed).await.unwrap();
        assert!(*signals.shutdown(Class::Traffic).borrow());
        requests.store(0, Ordering::Relaxed);
        running.await.unwrap().unwrap();
        assert_eq!(signals.outcome().exit_code(), DONE);
        assert!(signals.outcome().is_handed_over());
        assert_eq!(*phases.lock().unwrap(), [Phase::Draining]);
    }
}
