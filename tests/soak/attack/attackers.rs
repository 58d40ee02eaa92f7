//! The attackers. Each has one connection, which it keeps open until the end of the attack, whatever the daemon does.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use socket2::SockRef;
use tests::client::head_bytes;
use tests::websocket;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::{Plan, SEGMENT};
use crate::setup::WEB_HOST;

/// The time within which the daemon must accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// The pause of an attacker that is slow.
const PAUSE: Duration = Duration::from_secs(1);
/// The receive buffer of an attacker that reads slowly, in bytes. The system doubles it.
const NARROW: u32 = 4096;
/// The bytes that such an attacker reads after each pause.
const SIP: usize = 16;
/// The length of the response that it requests, in bytes. No buffer of the system takes all of it.
const LARGE: u64 = 16 << 20;
/// The number of source addresses, so that the ports of one address suffice.
const SOURCES: usize = 20;
/// The number of requests that an attacker sends at once, and to which it reads no response.
const PIPELINED: usize = 100;
/// The daemon's defaults that end attacks: for the head of a request, for a connection without a request, for a pause
/// of a client in a body, until the minimum speed counts, and for discarding bytes after the last response.
const HEAD: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(75);
const BODY: Duration = Duration::from_secs(60);
const RATE_COUNTS: Duration = Duration::from_secs(10);
const DISCARD: Duration = Duration::from_secs(30);
/// The timeout of tunnels in `attack.yaml`.
const TUNNEL: Duration = Duration::from_secs(20);

/// A kind of attackers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attack {
    /// The head of a request arrives one byte per second.
    SlowHeads,
    /// Nothing is sent.
    Idle,
    /// The body of a request arrives one byte per second.
    SlowBodies,
    /// A large response is read a few bytes per second.
    SlowReaders,
    /// The bytes are not a request, or not a valid one.
    Garbage,
    /// A WebSocket is silent, and half of the clients have ended their sending half.
    Tunnels,
    /// Many requests are sent at once, and their responses are not read before the client resets the connection.
    Pipelining,
    /// The connection is reset, or closed, in the middle of a request or of a response.
    Disconnects,
}

/// The attackers of one kind.
pub(crate) struct Siege {
    front: Arc<Front>,
    attackers: usize,
    hang_up: watch::Sender<bool>,
    begun: JoinHandle<()>,
}

/// The state that attackers share.
struct Front {
    attack: Attack,
    address: SocketAddr,
    /// The attackers whose attempt to connect has ended.
    tried: AtomicUsize,
    ends: Mutex<Ends>,
    hang_up: watch::Receiver<bool>,
}

/// The numbers of attackers by what happened to them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ends {
    /// The attackers that connected.
    pub(crate) connected: usize,
    /// The attackers that had finished: the daemon had ended their connections, or they had left.
    pub(crate) finished: usize,
    /// The first response or, without one, the end of the connection, and the number of attackers that got it.
    pub(crate) ways: BTreeMap<String, usize>,
}

/// An attacker that is connected.
struct Attacker {
    stream: TcpStream,
    /// The status of the first response.
    status: Option<String>,
    /// Whether the daemon has sent its last byte.
    has_ended: bool,
}

// ===== impl Attack =====

impl Attack {
    /// All kinds, in the order of the run.
    pub(crate) const ALL: [Self; 8] = [
        Self::SlowHeads,
        Self::Idle,
        Self::SlowBodies,
        Self::SlowReaders,
        Self::Garbage,
        Self::Tunnels,
        Self::Pipelining,
        Self::Disconnects,
    ];

    /// Returns the name in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::SlowHeads => "slow heads",
            Self::Idle => "idle connections",
            Self::SlowBodies => "slow bodies",
            Self::SlowReaders => "slow readers",
            Self::Garbage => "garbage",
            Self::Tunnels => "half-open tunnels",
            Self::Pipelining => "pipelined requests",
            Self::Disconnects => "disconnects",
        }
    }

    /// Returns the kind with this name, whose spaces are hyphens.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|attack| attack.name().replace(' ', "-") == name)
    }

    /// Returns the time after which the daemon must have released a connection that the client keeps open.
    pub(crate) fn deadline(self) -> Duration {
        match self {
            Self::SlowHeads | Self::Garbage => HEAD + DISCARD,
            Self::Idle => IDLE,
            Self::SlowBodies => RATE_COUNTS + DISCARD,
            // Its first bytes, which the system takes for it, satisfy the minimum speed for longer.
            Self::SlowReaders => BODY,
            Self::Tunnels => TUNNEL,
            Self::Pipelining | Self::Disconnects => Duration::ZERO,
        }
    }

    /// Whether all attackers are connected at the same time.
    pub(crate) fn is_held(self) -> bool {
        !matches!(self, Self::Garbage | Self::Pipelining | Self::Disconnects)
    }
}

// ===== impl Siege =====

impl Siege {
    /// Starts the attackers one by one.
    pub(crate) fn begin(attack: Attack, runtime: &Runtime, plan: &Plan, address: SocketAddr) -> Self {
        let (hang_up, receiver) = watch::channel(false);
        let (tried, ends) = (AtomicUsize::new(0), Mutex::default());
        let front = Arc::new(Front { attack, address, tried, ends, hang_up: receiver });
        let (count, per_second) = (plan.attackers, plan.per_second);
        let begun = runtime.spawn(begin(Arc::clone(&front), count, per_second));
        Self { front, attackers: count, hang_up, begun }
    }

    /// Waits until every attacker has connected or failed to.
    pub(crate) fn wait_connected(&self) {
        while !self.begun.is_finished() || self.front.tried.load(Ordering::SeqCst) < self.attackers {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Makes all attackers leave, and returns what happened to them before.
    pub(crate) fn end(self) -> Ends {
        let ends = self.front.ends.lock().expect("no attacker panics").clone();
        // The attackers that have left already do not receive it.
        let _ = self.hang_up.send(true);
        ends
    }
}

async fn begin(front: Arc<Front>, count: usize, per_second: u32) {
    let mut ticks = interval(Duration::from_secs(1) / per_second);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0..count {
        ticks.tick().await;
        tokio::spawn(Arc::clone(&front).attack(number));
    }
}

// ===== impl Front =====

impl Front {
    async fn attack(self: Arc<Self>, number: usize) {
        let connected = timeout(CONNECT, self.connect(number)).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        self.record(connected.is_ok(), |ends| ends.connected += 1);
        self.tried.fetch_add(1, Ordering::SeqCst);
        let mut hang_up = self.hang_up.clone();
        match connected {
            Ok(stream) => {
                let attacker = Attacker { stream, status: None, has_ended: false };
                tokio::select! {
                    () = attacker.carry_out(&self, number) => {}
                    _ = hang_up.wait_for(|hangs_up| *hangs_up) => {}
                }
            }
            Err(error) => self.record(true, |ends| ends.count(format!("cannot connect: {error}"))),
        }
    }

    async fn connect(&self, number: usize) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        SockRef::from(&socket).set_tcp_mss(SEGMENT)?;
        if matches!(self.attack, Attack::SlowReaders | Attack::Pipelining) {
            socket.set_recv_buffer_size(NARROW)?;
        }
        let source = Ipv4Addr::new(127, 99, 0, u8::try_from(1 + number % SOURCES).expect("few sources"));
        socket.bind((source, 0).into())?;
        let stream = socket.connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn record(&self, happened: bool, change: impl FnOnce(&mut Ends)) {
        if happened {
            change(&mut self.ends.lock().expect("no attacker panics"));
        }
    }
}

// ===== impl Ends =====

impl Ends {
    fn count(&mut self, way: String) {
        *self.ways.entry(way).or_default() += 1;
    }
}

// ===== impl Attacker =====

impl Attacker {
    /// Attacks until the connection is gone. An attacker that is not cut off does not return.
    async fn carry_out(mut self, front: &Front, number: usize) {
        let begun = self.stream.write_all(&opening(front.attack, number)).await;
        if let Err(error) = begun {
            return self.finish(front, Some(error));
        }
        match front.attack {
            Attack::SlowHeads | Attack::SlowBodies => self.trickle(front).await,
            Attack::SlowReaders => self.sip(front).await,
            Attack::Garbage if number.is_multiple_of(2) => self.trickle(front).await,
            Attack::Idle | Attack::Garbage => self.hold(front).await,
            Attack::Tunnels => self.tunnel(front, number).await,
            Attack::Pipelining => {
                sleep(PAUSE).await;
                self.leave(front, true);
            }
            Attack::Disconnects => {
                sleep(PAUSE / 5).await;
                self.leave(front, number % 8 < 4);
            }
        }
    }

    /// Sends a byte after each pause until the system reports an error. The last byte of the daemon does not stop it.
    async fn trickle(mut self, front: &Front) {
        let mut ticks = interval(PAUSE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let error = tokio::select! {
                read = self.read(front), if !self.has_ended => read.err(),
                _ = ticks.tick() => self.stream.write_all(b"a").await.err(),
            };
            if let Some(error) = error {
                return self.finish(front, Some(error));
            }
        }
    }

    /// Reads until the end, and then keeps the connection.
    async fn hold(mut self, front: &Front) {
        while !self.has_ended {
            if let Err(error) = self.read(front).await {
                self.finish(front, Some(error));
                break;
            }
        }
        std::future::pending::<()>().await;
    }

    /// Reads a few bytes after each pause until the system reports an error.
    async fn sip(mut self, front: &Front) {
        loop {
            sleep(PAUSE).await;
            // Unread bytes hide a reset from a read.
            if let Some(error) = self.stream.take_error().ok().flatten() {
                return self.finish(front, Some(error));
            }
            match self.stream.read(&mut [0; SIP]).await {
                Ok(0) => return self.finish(front, None),
                Ok(_) => {}
                Err(error) => return self.finish(front, Some(error)),
            }
        }
    }

    async fn tunnel(mut self, front: &Front, number: usize) {
        while self.status.is_none() && !self.has_ended {
            if let Err(error) = self.read(front).await {
                return self.finish(front, Some(error));
            }
        }
        if number.is_multiple_of(2) {
            // It fails only if the daemon has reset the connection, which the next read reports.
            let _ = self.stream.shutdown().await;
        }
        self.hold(front).await;
    }

    /// Closes the connection, or resets it.
    fn leave(self, front: &Front, resets: bool) {
        if resets {
            // It fails only if the connection is gone already.
            let _ = self.stream.set_zero_linger();
        }
        front.record(true, |ends| {
            ends.finished += 1;
            ends.count(if resets { "reset by the client" } else { "closed by the client" }.to_owned());
        });
    }

    /// Reads some bytes, and records the end of the connection.
    async fn read(&mut self, front: &Front) -> io::Result<()> {
        let mut space = [0; 1024];
        let length = self.stream.read(&mut space).await?;
        if length == 0 {
            self.finish(front, None);
            self.has_ended = true;
        } else if self.status.is_none() {
            self.status = Some(status(&space[..length]));
        }
        Ok(())
    }

    /// Records the end of the connection, unless it is recorded already.
    fn finish(&self, front: &Front, error: Option<io::Error>) {
        let way = match (&self.status, error) {
            (Some(status), _) => status.clone(),
            (None, None) => "closed".to_owned(),
            (None, Some(error)) => error.kind().to_string(),
        };
        front.record(!self.has_ended, |ends| {
            ends.finished += 1;
            ends.count(way);
        });
    }
}

/// Returns the status in the first bytes of a response.
fn status(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.split(' ').nth(1).map_or_else(|| "no response".to_owned(), |rest| rest.chars().take(3).collect())
}

/// Returns the first bytes of an attacker.
fn opening(attack: Attack, number: usize) -> Vec<u8> {
    let host = [("Host", WEB_HOST)];
    let get = |target: &str| head_bytes("GET", target, &host, 0);
    match attack {
        Attack::SlowHeads => {
            format!("GET /pattern/1/1 HTTP/1.1\r\nHost: {WEB_HOST}\r\nX-Slow: ").into_bytes()
        }
        Attack::Idle => Vec::new(),
        Attack::SlowBodies => head_bytes("POST", "/digest/1", &host, 100_000),
        Attack::SlowReaders => get(&format!("/pattern/{number}/{LARGE}")),
        Attack::Garbage => garbage(number),
        Attack::Tunnels => {
            let headers = [&host[..], websocket::handshake().as_slice()].concat();
            head_bytes("GET", "/socket", &headers, 0)
        }
        Attack::Pipelining => head_bytes("GET", "/", &[("Host", "nowhere.test")], 0).repeat(PIPELINED),
        Attack::Disconnects => match number % 4 {
            0 => b"GET /pattern/1/1 HTT".to_vec(),
            1 => [head_bytes("POST", "/digest/1", &host, 100_000), vec![b'a'; 10_000]].concat(),
            2 => get(&format!("/pattern/1/{LARGE}")),
            _ => get("/slow"),
        },
    }
}

/// Returns bytes that are not a request, or not a valid one.
fn garbage(number: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(number as u64);
    let request = |fields: &str| format!("GET / HTTP/1.1\r\nHost: {WEB_HOST}\r\n{fields}\r\n").into_bytes();
    match number / 2 % 8 {
        0 => std::iter::repeat_with(|| random.u8(..)).take(512).collect(),
        // The beginning of a ClientHello.
        1 => [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], &[7; 500]].concat(),
        2 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
        3 => request(&format!("X-Long: {}\r\n", "a".repeat(100_000))),
        4 => request(&"X-Many: 1\r\n".repeat(200)),
        5 => request("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
        6 => format!("GET / HTTP/1.1\nHost: {WEB_HOST}\n\n").into_bytes(),
        _ => b"\0".repeat(4096),
    }
}

#[cfg(test)]
mod checks {
    use super::*;

    #[test]
    fn the_status_is_in_the_first_bytes() {
        assert_eq!(status(b"HTTP/1.1 408 Request Timeout\r\n"), "408");
        assert_eq!(status(b"HTTP"), "no response");
    }

    #[test]
    fn every_kind_of_garbage_is_sent_by_both_kinds_of_attackers() {
        let kinds = |rest| (0..16).filter(move |number| number % 2 == rest).map(garbage).collect::<Vec<_>>();
        for rest in [0, 1] {
            let mut openings = kinds(rest);
            openings.sort();
            openings.dedup();
            assert_eq!(openings.len(), 8);
        }
    }
}
