//! The messages to systemd about the process (`sd_notify`), including the watchdog.
//!
//! ```text
//! READY=1 MAINPID=…      the process serves; in an upgrade, the new process sends it so that systemd follows
//! RELOADING=1 … READY=1  before and after a reload
//! STOPPING=1             the process drains, and no other process replaces it
//! WATCHDOG=1             twice in each `WatchdogSec`, as long as requests can be processed
//! ```
//!
//! [`Supervisor`] sends the messages; without `NOTIFY_SOCKET` it does nothing. [`Pulse`] ties the watchdog to the
//! runtime that processes requests: the lifecycle asks, a task in that runtime responds, and the lifecycle pings only
//! after a response. If either of them hangs, systemd kills the process and restarts it.
//!
//! The invariant: only the process that serves sends messages. A new process sends nothing before it has taken over,
//! because systemd would take its failure for the end of the unit. A process that has handed over sends nothing more,
//! because its pings would hide that the new process hangs.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;

use super::files::reason;

/// The environment variable with the PID of the process that must ping. It is not passed on to a new process, which has
/// another PID.
pub(crate) const WATCHDOG_PID: &str = "WATCHDOG_PID";
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
/// The time limit for sending a message. systemd reads at once; if it does not, the message is lost and the process
/// continues.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The service manager that has started this process, if it expects messages. Clones send for the same process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Supervisor(Option<Arc<Link>>);

#[derive(Debug)]
struct Link {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
    /// Whether another process serves until this one has taken over.
    is_successor: bool,
    stage: Mutex<Stage>,
}

/// The stage of the process, which decides what messages it can send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Starting,
    Serving,
    Stopping,
    /// Another process serves, because this one has handed over or has never taken over.
    Silent,
}

/// The pulse of the runtime in which [`beat`](Pulse::beat) runs.
#[derive(Clone, Debug)]
pub(crate) struct Pulse(Arc<Heart>);

#[derive(Debug)]
struct Heart {
    requested: watch::Sender<u64>,
    responded: AtomicU64,
    /// Whether the task that beats has ended, so that no response is needed.
    ended: AtomicBool,
}

/// Returns whether a service manager expects a message when the process serves.
pub(crate) fn is_expected(variables: impl Fn(&str) -> Option<OsString>) -> bool {
    variables(NOTIFY_SOCKET).is_some_and(|address| !address.is_empty())
}

// === impl Supervisor ===

impl Supervisor {
    /// Creates the supervisor from the environment variables that systemd sets: `NOTIFY_SOCKET`, a path or an abstract
    /// name (`@…`), `WATCHDOG_USEC` and `WATCHDOG_PID`. An address that cannot be used is logged, and no messages are
    /// sent. `is_successor` says whether another process serves until this one [`serves`](Self::serves).
    pub(crate) fn of(variables: impl Fn(&str) -> Option<OsString>, is_successor: bool) -> Self {
        let Some(address) = variables(NOTIFY_SOCKET).filter(|address| !address.is_empty()) else {
            return Self::default();
        };
        let watchdog = watchdog(&variables, std::process::id());
        match Link::open(&address, watchdog, is_successor) {
            Ok(link) => Self(Some(Arc::new(link))),
            Err(error) => {
                log::warn!("systemd: cannot use NOTIFY_SOCKET {}: {}", address.display(), reason(&error));
                Self::default()
            }
        }
    }

    /// Reports that the process serves. `systemctl status` shows `status`.
    pub(crate) fn serves(&self, status: &str) {
        self.advance(Stage::Serving, || Some(self.ready(status)));
    }

    /// Reports the end of a reload, whether it succeeded or failed.
    pub(crate) fn reloaded(&self, status: &str) {
        self.say(|stage| (stage == Stage::Serving).then(|| self.ready(status)));
    }

    fn ready(&self, status: &str) -> String {
        let pid = std::process::id();
        // In an upgrade the last ping of the old process and the next ping of this one can be half of the limit away
        // from now.
        let ping = if self.ping_interval().is_some() { "\nWATCHDOG=1" } else { "" };
        format!("READY=1\nMAINPID={pid}\n{}{ping}", status_line(status))
    }

    /// Reports that a reload begins. [`reloaded`](Self::reloaded) must follow.
    pub(crate) fn reloading(&self) {
        self.say(|stage| {
            (stage == Stage::Serving).then(|| format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_usec()))
        });
    }

    /// Reports that the process drains.
    pub(crate) fn stopping(&self, status: &str) {
        if !self.advance_silently() {
            self.advance(Stage::Stopping, || Some(format!("STOPPING=1\n{}", status_line(status))));
        }
    }

    /// Stops sending messages, because a new process is the main process now.
    pub(crate) fn hand_over(&self) {
        self.advance(Stage::Silent, || None);
    }

    /// Returns the interval of [`ping`](Self::ping). `None` means that no pings are expected.
    pub(crate) fn ping_interval(&self) -> Option<Duration> {
        self.0.as_ref().and_then(|link| link.watchdog)
    }

    /// Reports that the process still works. Before it serves, no ping is sent, since systemd waits for `READY=1` until
    /// then.
    pub(crate) fn ping(&self) {
        self.say(|stage| (stage > Stage::Starting).then(|| "WATCHDOG=1".to_owned()));
    }

    /// Enters a later stage and sends the text. A stage that is over is not entered again, and its text is not sent.
    fn advance(&self, next: Stage, text: impl FnOnce() -> Option<String>) {
        let Some(link) = &self.0 else { return };
        let mut stage = link.stage();
        if *stage <= next && *stage != Stage::Silent {
            *stage = next;
            link.send(text());
        }
    }

    /// Silences a new process that ends before it has taken over, because the unit continues with the old process.
    /// Returns whether this process is silent.
    fn advance_silently(&self) -> bool {
        let Some(link) = self.0.as_ref().filter(|link| link.is_successor) else { return false };
        let mut stage = link.stage();
        if *stage == Stage::Starting {
            *stage = Stage::Silent;
        }
        *stage == Stage::Silent
    }

    fn say(&self, text: impl FnOnce(Stage) -> Option<String>) {
        let Some(link) = &self.0 else { return };
        let stage = link.stage();
        if *stage != Stage::Silent {
            link.send(text(*stage));
        }
    }
}

// === impl Link ===

impl Link {
    fn open(address: &OsStr, watchdog: Option<Duration>, is_successor: bool) -> io::Result<Self> {
        let address = match address.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(address)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        Ok(Self { socket, address, watchdog, is_successor, stage: Mutex::new(Stage::Starting) })
    }

    fn send(&self, text: Option<String>) {
        let Some(text) = text else { return };
        if let Err(error) = self.socket.send_to_addr(text.as_bytes(), &self.address) {
            let first = text.lines().next().unwrap_or_default();
            log::warn!("systemd: cannot send {first:?}: {}", reason(&error));
        }
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock()
    }
}

/// Returns half of the time after which systemd considers the process to hang. `None` means that no pings of this
/// process are expected.
fn watchdog(variables: impl Fn(&str) -> Option<OsString>, pid: u32) -> Option<Duration> {
    let number = |name| variables(name)?.to_str()?.parse::<u64>().ok();
    let is_for_another = variables(WATCHDOG_PID).is_some() && number(WATCHDOG_PID) != Some(pid.into());
    let half = number("WATCHDOG_USEC").map(|usec| Duration::from_micros(usec / 2));
    half.filter(|half| !half.is_zero() && !is_for_another)
}

/// Formats the status on one line, because the end of a line ends a value.
fn status_line(status: &str) -> String {
    format!("STATUS={}", status.replace('\n', " "))
}

fn monotonic_usec() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}

// === impl Pulse ===

impl Pulse {
    /// Creates a pulse without a task that beats. [`is_felt`](Self::is_felt) returns true once, then false.
    pub(crate) fn new() -> Self {
        let requested = watch::Sender::new(0);
        Self(Arc::new(Heart { requested, responded: AtomicU64::new(0), ended: AtomicBool::new(false) }))
    }

    /// Responds as long as this future is polled. Once it is dropped, the pulse always counts as felt.
    pub(crate) async fn beat(&self) {
        let _ended = Ended(self);
        let mut requested = self.0.requested.subscribe();
        loop {
            let now = *requested.borrow_and_update();
            self.0.responded.store(now, Ordering::Relaxed);
            // This cannot fail, because the sender lives as long as `self`.
            let _ = requested.changed().await;
        }
    }

    /// Returns whether the task has responded since the last call, and requests another response if it has.
    pub(crate) fn is_felt(&self) -> bool {
        let requested = *self.0.requested.borrow();
        let felt =
            self.0.responded.load(Ordering::Relaxed) == requested || self.0.ended.load(Ordering::Relaxed);
        if felt {
            self.0.requested.send_replace(requested + 1);
        }
        felt
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self::new()
    }
}

/// A guard that marks the pulse as ended when the task is dropped.
struct Ended<'a>(&'a Pulse);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.0.ended.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Returns a supervisor that sends to the returned socket. Every message is one datagram.
    fn supervised_as(is_successor: bool, more: &[(&str, &str)]) -> (Supervisor, UnixDatagram) {
        let name = format!("lb-test-{}-{:?}", std::process::id(), std::thread::current().id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut variables: HashMap<_, _> =
            more.iter().map(|(name, value)| (*name, (*value).into())).collect();
        variables.insert("NOTIFY_SOCKET", OsString::from(format!("@{name}")));
        (Supervisor::of(|name| variables.get(name).cloned(), is_successor), socket)
    }

    fn supervised(more: &[(&str, &str)]) -> (Supervisor, UnixDatagram) {
        supervised_as(false, more)
    }

    /// Receives all messages that have been sent so far.
    fn said(socket: &UnixDatagram) -> Vec<String> {
        let mut bytes = [0; 4096];
        let mut next = || socket.recv(&mut bytes).ok().map(|length| bytes[..length].to_vec());
        std::iter::from_fn(&mut next).map(|bytes| String::from_utf8(bytes).unwrap()).collect()
    }

    #[test]
    fn the_start_and_the_drain_are_reported() {
        let (supervisor, socket) = supervised(&[]);
        supervisor.serves("serves\nwell");
        supervisor.stopping("drains");
        let ready = format!("READY=1\nMAINPID={}\nSTATUS=serves well", std::process::id());
        assert_eq!(said(&socket), [&ready, "STOPPING=1\nSTATUS=drains"]);
        supervisor.reloaded("a reload that ended too late");
        assert!(said(&socket).is_empty());
    }

    #[test]
    fn the_begin_and_the_end_of_a_reload_are_reported() {
        let (supervisor, socket) = supervised(&[]);
        supervisor.reloading();
        supervisor.reloaded("too early");
        assert!(said(&socket).is_empty(), "nothing was ready that could be reloaded");
        supervisor.serves("serves");
        let before = monotonic_usec();
        supervisor.reloading();
        supervisor.reloaded("serves the new configuration");
        let said = said(&socket);
        let began = said[1].strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().parse::<i64>().unwrap();
        assert!((before..=monotonic_usec()).contains(&began));
        assert!(said[2].starts_with("READY=1\n") && said[2].ends_with("STATUS=serves the new configuration"));
    }

    #[test]
    fn a_process_that_has_handed_over_sends_nothing() {
        let (supervisor, socket) = supervised(&[("WATCHDOG_USEC", "1000000")]);
        supervisor.serves("serves");
        said(&socket);
        supervisor.clone().hand_over();
        supervisor.ping();
        supervisor.reloading();
        supervisor.reloaded("serves");
        supervisor.stopping("drains");
        assert!(said(&socket).is_empty());
    }

    #[test]
    fn a_new_process_that_ends_before_it_has_taken_over_sends_nothing() {
        let (supervisor, socket) = supervised_as(true, &[("WATCHDOG_USEC", "1000000")]);
        supervisor.reloading();
        supervisor.reloaded("serves");
        supervisor.stopping("drains");
        supervisor.ping();
        supervisor.serves("too late");
        assert!(said(&socket).is_empty());
        drop(socket);
        let (supervisor, socket) = supervised_as(true, &[]);
        supervisor.serves("serves");
        supervisor.stopping("drains");
        assert_eq!(said(&socket).len(), 2);
    }

    #[test]
    fn pings_are_sent_only_once_the_process_serves() {
        let (supervisor, socket) = supervised(&[("WATCHDOG_USEC", "3000000")]);
        assert_eq!(supervisor.ping_interval(), Some(Duration::from_millis(1500)));
        supervisor.ping();
        assert!(said(&socket).is_empty());
        supervisor.serves("serves");
        supervisor.ping();
        let said = said(&socket);
        assert!(said[0].ends_with("STATUS=serves\nWATCHDOG=1"), "{said:?}");
        assert_eq!(said[1..], ["WATCHDOG=1"]);
    }

    #[test]
    fn the_watchdog_applies_only_to_the_process_that_it_names() {
        let with = |variables: &'static [(&str, &str)]| {
            let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
            watchdog(|name| find(name).map(|(_, value)| value.into()), 7)
        };
        let half = Some(Duration::from_secs(1));
        assert_eq!(with(&[("WATCHDOG_USEC", "2000000")]), half);
        assert_eq!(with(&[("WATCHDOG_USEC", "2000000"), (WATCHDOG_PID, "7")]), half);
        assert_eq!(with(&[("WATCHDOG_USEC", "2000000"), (WATCHDOG_PID, "8")]), None);
        assert_eq!(with(&[("WATCHDOG_USEC", "0")]), None);
        assert_eq!(with(&[("WATCHDOG_USEC", "soon")]), None);
        assert_eq!(with(&[]), None);
    }

    #[test]
    fn without_a_usable_address_nothing_is_sent() {
        let alone = Supervisor::of(|_| None, false);
        alone.serves("serves");
        assert_eq!(alone.ping_interval(), None);
        let long = OsString::from("/x".repeat(200));
        assert!(Supervisor::of(|_| Some(long.clone()), false).0.is_none());
        Supervisor::of(|_| Some("/no/such/socket".into()), false).serves("not delivered");
    }

    #[tokio::test]
    async fn a_pulse_is_felt_as_long_as_its_task_is_polled() {
        let pulse = Pulse::new();
        let mut beating = Box::pin(pulse.beat());
        for _ in 0..3 {
            assert!(futures_poll(&mut beating).await);
            assert!(pulse.is_felt());
        }
        // A response was requested a fourth time, and the task has not been polled since.
        assert!(!pulse.is_felt() && !pulse.is_felt());
        assert!(futures_poll(&mut beating).await);
        assert!(pulse.is_felt());
        drop(beating);
        assert!(pulse.is_felt() && pulse.is_felt(), "a task that was dropped does not hang");
    }

    /// Polls once, and returns whether the future is still pending.
    async fn futures_poll(future: &mut (impl Future<Output = ()> + Unpin)) -> bool {
        std::future::poll_fn(|cx| {
            std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_pending())
        })
        .await
    }
}
