//! What systemd is told of the process (`sd_notify`), and how it knows that the process still works.
//!
//! ```text
//! READY=1 MAINPID=…      it serves; of the new process in an upgrade, so that systemd follows
//! RELOADING=1 … READY=1  around a reload
//! STOPPING=1             it drains, and no other process takes its place
//! WATCHDOG=1             twice in each `WatchdogSec`, as long as requests can be worked on
//! ```
//!
//! [`Supervisor`] sends; without `NOTIFY_SOCKET` it does nothing. [`Pulse`] ties the watchdog to the runtime that requests are
//! worked on in: the lifecycle asks, a task in that runtime answers, and only who was answered pings. A process that hangs, in
//! either of the two, is killed and started anew by systemd.
//!
//! The invariant: only the process that serves says anything. A successor is silent until it has taken over: what systemd took for
//! its end would be the end of the unit. A process that has handed over says nothing any more: a ping of it would hide that its
//! successor hangs.

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

/// The variable that makes a process the one whose pings are waited for. A successor has another number.
pub const WATCHDOG_PID: &str = "WATCHDOG_PID";
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
/// systemd reads at once. Should it not, the process goes on without having told it.
const PATIENCE: Duration = Duration::from_secs(1);

/// The service manager that has started this process, if it wants to be told. Clones speak for the same process.
#[derive(Clone, Debug, Default)]
pub struct Supervisor(Option<Arc<Link>>);

#[derive(Debug)]
struct Link {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
    /// Another process serves until this one has taken over.
    is_successor: bool,
    stage: Mutex<Stage>,
}

/// How far the process is in its life, for what may be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Starting,
    Serving,
    Stopping,
    /// Another process serves: this one has handed over, or has never taken over.
    Silent,
}

/// A sign of life of the runtime that [`beat`](Pulse::beat) runs in.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<Heart>);

#[derive(Debug)]
struct Heart {
    asked: watch::Sender<u64>,
    answered: AtomicU64,
    /// Nothing beats any more, and nothing needs to: the runtime's work has been ended.
    ended: AtomicBool,
}

/// Whether a service manager waits to be told that the process serves.
pub fn is_expected(variables: impl Fn(&str) -> Option<OsString>) -> bool {
    variables(NOTIFY_SOCKET).is_some_and(|address| !address.is_empty())
}

// === impl Supervisor ===

impl Supervisor {
    /// By the `variables` that systemd sets: `NOTIFY_SOCKET`, a path or an abstract name (`@…`), `WATCHDOG_USEC` and
    /// `WATCHDOG_PID`. What cannot be used is logged and left. `is_successor` tells whether another process serves until this one
    /// [`serves`](Self::serves).
    pub fn of(variables: impl Fn(&str) -> Option<OsString>, is_successor: bool) -> Self {
        let Some(address) = variables(NOTIFY_SOCKET).filter(|address| !address.is_empty()) else {
            return Self::default();
        };
        let watchdog = watchdog(&variables, std::process::id());
        match Link::open(&address, watchdog, is_successor) {
            Ok(link) => Self(Some(Arc::new(link))),
            Err(error) => {
                log::warn!("systemd: cannot use NOTIFY_SOCKET {}: {error}", address.display());
                Self::default()
            }
        }
    }

    /// The process serves from now on; `status` is what `systemctl status` shows.
    pub fn serves(&self, status: &str) {
        self.advance(Stage::Serving, || Some(self.ready(status)));
    }

    /// A reload is over, however it has ended.
    pub fn reloaded(&self, status: &str) {
        self.say(|stage| (stage == Stage::Serving).then(|| self.ready(status)));
    }

    fn ready(&self, status: &str) -> String {
        let pid = std::process::id();
        // In an upgrade the next ping may be half of the time away, and the old process's last one as well.
        let ping = if self.ping_interval().is_some() { "\nWATCHDOG=1" } else { "" };
        format!("READY=1\nMAINPID={pid}\n{}{ping}", status_line(status))
    }

    /// A reload begins. It must be followed by [`reloaded`](Self::reloaded).
    pub fn reloading(&self) {
        self.say(|stage| {
            (stage == Stage::Serving).then(|| format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_usec()))
        });
    }

    /// The process has begun to end.
    pub fn stopping(&self, status: &str) {
        if !self.advance_silently() {
            self.advance(Stage::Stopping, || Some(format!("STOPPING=1\n{}", status_line(status))));
        }
    }

    /// A successor is the main process now: this one has nothing more to say.
    pub fn hand_over(&self) {
        self.advance(Stage::Silent, || None);
    }

    /// How often to [`ping`](Self::ping); none when nobody waits for it.
    pub fn ping_interval(&self) -> Option<Duration> {
        self.0.as_ref().and_then(|link| link.watchdog)
    }

    /// The process still works. Nothing is said before it serves: until then systemd waits for that.
    pub fn ping(&self) {
        self.say(|stage| (stage > Stage::Starting).then(|| "WATCHDOG=1".to_owned()));
    }

    /// Life goes one way only: whoever is late has nothing to say.
    fn advance(&self, next: Stage, text: impl FnOnce() -> Option<String>) {
        let Some(link) = &self.0 else { return };
        let mut stage = link.stage();
        if *stage <= next && *stage != Stage::Silent {
            *stage = next;
            link.send(text());
        }
    }

    /// A successor that ends before it has taken over is not the end of what systemd has started.
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
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket, address, watchdog, is_successor, stage: Mutex::new(Stage::Starting) })
    }

    fn send(&self, text: Option<String>) {
        let Some(text) = text else { return };
        if let Err(error) = self.socket.send_to_addr(text.as_bytes(), &self.address) {
            log::warn!("systemd: cannot be told {:?}: {error}", text.lines().next().unwrap_or_default());
        }
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock()
    }
}

/// Half of the time after which systemd takes the process for hung; none when it does not wait for this process.
fn watchdog(variables: impl Fn(&str) -> Option<OsString>, pid: u32) -> Option<Duration> {
    let number = |name| variables(name)?.to_str()?.parse::<u64>().ok();
    let of_another = variables(WATCHDOG_PID).is_some() && number(WATCHDOG_PID) != Some(pid.into());
    let half = number("WATCHDOG_USEC").map(|usec| Duration::from_micros(usec / 2));
    half.filter(|half| !half.is_zero() && !of_another)
}

/// A line ends a value.
fn status_line(status: &str) -> String {
    format!("STATUS={}", status.replace('\n', " "))
}

fn monotonic_usec() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}

// === impl Pulse ===

impl Pulse {
    /// One that nothing beats for yet: [`is_felt`](Self::is_felt) once, and then no more.
    pub fn new() -> Self {
        let asked = watch::Sender::new(0);
        Self(Arc::new(Heart { asked, answered: AtomicU64::new(0), ended: AtomicBool::new(false) }))
    }

    /// Answers for as long as this is polled. Once it is dropped there is no more to watch over.
    pub async fn beat(&self) {
        let _ended = Ended(self);
        let mut asked = self.0.asked.subscribe();
        loop {
            let now = *asked.borrow_and_update();
            self.0.answered.store(now, Ordering::Relaxed);
            // The sender lives as long as `self`, so this cannot fail.
            let _ = asked.changed().await;
        }
    }

    /// Whether what was asked the last time has been answered; asks again.
    pub fn is_felt(&self) -> bool {
        let asked = *self.0.asked.borrow();
        let felt = self.0.answered.load(Ordering::Relaxed) == asked || self.0.ended.load(Ordering::Relaxed);
        if felt {
            self.0.asked.send_replace(asked + 1);
        }
        felt
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self::new()
    }
}

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

    /// A supervisor that speaks to the socket returned, in which every message is one datagram.
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

    /// Everything said so far.
    fn said(socket: &UnixDatagram) -> Vec<String> {
        let mut bytes = [0; 4096];
        let mut next = || socket.recv(&mut bytes).ok().map(|length| bytes[..length].to_vec());
        std::iter::from_fn(&mut next).map(|bytes| String::from_utf8(bytes).unwrap()).collect()
    }

    #[test]
    fn a_life_is_told_from_the_start_to_the_end() {
        let (supervisor, socket) = supervised(&[]);
        supervisor.serves("serves\nwell");
        supervisor.stopping("drains");
        let ready = format!("READY=1\nMAINPID={}\nSTATUS=serves well", std::process::id());
        assert_eq!(said(&socket), [&ready, "STOPPING=1\nSTATUS=drains"]);
        supervisor.reloaded("a reload that ended too late");
        assert!(said(&socket).is_empty());
    }

    #[test]
    fn a_reload_says_when_it_began_and_that_it_is_over() {
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
    fn who_has_handed_over_says_nothing() {
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
    fn a_successor_that_ends_before_it_has_taken_over_says_nothing() {
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
    fn pings_begin_with_the_service() {
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
    fn the_watchdog_waits_for_the_process_that_it_names() {
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
    fn without_systemd_nothing_is_said_and_a_bad_address_is_no_end() {
        let alone = Supervisor::of(|_| None, false);
        alone.serves("serves");
        assert_eq!(alone.ping_interval(), None);
        let long = OsString::from("/x".repeat(200));
        assert!(Supervisor::of(|_| Some(long.clone()), false).0.is_none());
        Supervisor::of(|_| Some("/no/such/socket".into()), false).serves("nobody reads it");
    }

    #[tokio::test]
    async fn a_pulse_is_felt_as_long_as_its_task_is_polled() {
        let pulse = Pulse::new();
        let mut beating = Box::pin(pulse.beat());
        for _ in 0..3 {
            assert!(futures_poll(&mut beating).await);
            assert!(pulse.is_felt());
        }
        // Asked a fourth time, and not polled since.
        assert!(!pulse.is_felt() && !pulse.is_felt());
        assert!(futures_poll(&mut beating).await);
        assert!(pulse.is_felt());
        drop(beating);
        assert!(pulse.is_felt() && pulse.is_felt(), "what was ended on purpose hangs not");
    }

    /// Polls once; whether it goes on.
    async fn futures_poll(future: &mut (impl Future<Output = ()> + Unpin)) -> bool {
        std::future::poll_fn(|cx| {
            std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_pending())
        })
        .await
    }
}
