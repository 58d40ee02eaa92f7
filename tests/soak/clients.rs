//! The load: one thread per client, and one kind of load per client, with pauses.
//!
//! A failure is what a person at the client would notice. A client reconnects without a failure if a response announced
//! the close, or if the connection was closed while idle. It also retries a `GET` once if no byte of a response has
//! arrived. Everything else is a failure: a `POST` without a response, a truncated body, a wrong byte, or a status
//! other than 200.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tests::client::{Failure, head_bytes};
use tests::pattern::{self, Meter};
use tests::wire::Head;
use tests::{Connection, websocket};

use crate::ledger::{Done, Kind, Ledger};
use crate::setup::{FRAIL_HOST, SOCKETS_HOST, WEB_HOST};

/// The number of clients of each kind.
const CROWD: [(Kind, usize); 7] = [
    (Kind::KeepAlive, 6),
    (Kind::Fresh, 3),
    (Kind::Post, 3),
    (Kind::SlowUpload, 2),
    (Kind::SlowDownload, 2),
    (Kind::LongDownload, 2),
    (Kind::WebSocket, 8),
];
/// Lengths of small bodies. They fit into the buffers of loopback sockets, so an origin writes the response at once.
/// The pool whose origins are killed gets only these, because no load balancer can repair a response that was cut off.
const SMALL: Range<u64> = 0..8 * 1024;
const MIDDLING: Range<u64> = 0..128 * 1024;
const SLOW_UPLOAD: u64 = 64 * 1024;
const SLOW_DOWNLOAD: u64 = 1024 * 1024;
const TRICKLE: usize = 2 * 1024;
/// The receive buffer of a slow client, in bytes.
const NARROW: usize = 16 * 1024;
/// The time that a client waits to find out whether an idle connection was closed.
const GLANCE: Duration = Duration::from_millis(1);

/// Sends a body.
type SendBody<'a> = dyn FnMut(&mut Connection, &[u8]) -> Result<(), Failure> + 'a;

/// The load that the clients produce.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// The addresses that clients connect to. Each client uses one of them.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Lengths of long downloads, in bytes. Clients read them at about 2 MB/s.
    pub(crate) long_download: Range<u64>,
    /// The time within which half of the WebSockets are opened one by one. The others are opened at the start.
    pub(crate) latecomers: Duration,
    /// The seed for the random choices of the clients.
    pub(crate) seed: u64,
}

/// All clients of a run.
pub(crate) struct Crowd {
    stop: Arc<AtomicBool>,
    rest: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// One client.
struct Client {
    kind: Kind,
    number: usize,
    address: SocketAddr,
    load: Load,
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    rest: Arc<AtomicBool>,
    random: fastrand::Rng,
    idle: Option<Connection>,
}

/// A request and the expected response.
struct PatternRequest {
    host: &'static str,
    seed: u64,
    length: u64,
}

/// An open WebSocket and the time at which it was opened.
struct Socket {
    connection: Connection,
    opened: Duration,
    offset: u64,
}

// ===== impl Crowd =====

impl Crowd {
    /// Starts all clients.
    pub(crate) fn start(load: &Load, ledger: &Arc<Ledger>) -> Self {
        let (stop, rest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let kinds = CROWD.into_iter().flat_map(|(kind, count)| (0..count).map(move |number| (kind, number)));
        let client = |(index, (kind, number)): (usize, (Kind, usize))| Client {
            kind,
            number,
            address: load.addresses[index % load.addresses.len()],
            load: load.clone(),
            ledger: Arc::clone(ledger),
            stop: Arc::clone(&stop),
            rest: Arc::clone(&rest),
            random: fastrand::Rng::with_seed(load.seed.wrapping_add(index as u64)),
            idle: None,
        };
        let clients: Vec<Client> = kinds.enumerate().map(client).collect();
        let threads = clients.into_iter().map(|client| thread::spawn(move || client.run())).collect();
        Self { stop, rest, threads }
    }

    /// Returns the number of clients.
    pub(crate) fn size() -> usize {
        CROWD.iter().map(|(_, count)| count).sum()
    }

    /// Pauses all clients while `look` runs. Each finishes its request quickly and keeps its connection open.
    pub(crate) fn at_rest<T>(&self, look: impl FnOnce() -> T) -> T {
        self.rest.store(true, Ordering::Relaxed);
        let seen = look();
        self.rest.store(false, Ordering::Relaxed);
        seen
    }

    /// Stops all clients after their current request.
    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a client records its failures and does not panic");
        }
    }
}

// ===== impl Client =====

impl Client {
    fn run(mut self) {
        if self.kind == Kind::WebSocket {
            return self.hold_sockets();
        }
        while !self.stopped() {
            if self.rest.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(20));
                continue;
            }
            match self.kind {
                Kind::Post => self.post(),
                Kind::SlowUpload => self.slow_upload(),
                _ => self.get(),
            }
            let pause = if self.kind == Kind::Fresh { 30..60 } else { 10..40 };
            thread::sleep(Duration::from_millis(self.random.u64(pause)));
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Sends one `GET` of this client's kind.
    fn get(&mut self) {
        let began = Instant::now();
        let request = self.request();
        let mut outcome = self.connection().and_then(|open| self.get_on(open, &request));
        if matches!(outcome, Err((Failure::Closed, true))) {
            self.ledger.found_closed(self.kind);
            outcome = self.connection().and_then(|open| self.get_on(open, &request));
        }
        self.judge(began, outcome, request.length);
    }

    /// Returns the idle connection or a new one, and whether it was used before.
    fn connection(&mut self) -> Result<(Connection, bool), (Failure, bool)> {
        match self.idle.take() {
            Some(idle) => Ok((idle, true)),
            None => Ok((self.open().map_err(|error| (error, false))?, false)),
        }
    }

    fn open(&self) -> Result<Connection, Failure> {
        let open = Connection::open(self.address)?;
        if self.kind == Kind::SlowDownload {
            open.hold_at_most(NARROW).map_err(Failure::Connect)?;
        }
        Ok(open)
    }

    fn request(&mut self) -> PatternRequest {
        let frail = matches!(self.kind, Kind::KeepAlive | Kind::Fresh) && self.random.bool();
        let (host, length) = match self.kind {
            Kind::SlowDownload => (WEB_HOST, SLOW_DOWNLOAD..SLOW_DOWNLOAD + 1),
            Kind::LongDownload => (SOCKETS_HOST, self.load.long_download.clone()),
            _ if frail => (FRAIL_HOST, SMALL),
            _ => (WEB_HOST, MIDDLING),
        };
        PatternRequest { host, seed: self.random.u64(..1_000_000), length: self.random.u64(length) }
    }

    /// Sends one `GET` on this connection and checks every byte of the response. The error includes whether the
    /// connection was used before.
    fn get_on(
        &mut self,
        (mut open, used): (Connection, bool),
        request: &PatternRequest,
    ) -> Result<(), (Failure, bool)> {
        let target = format!("/pattern/{}/{}", request.seed, request.length);
        let mut headers = vec![("Host", request.host)];
        if self.kind == Kind::Fresh {
            headers.push(("Connection", "close"));
        }
        let mut meter = Meter::at(request.seed);
        let exchange = open.send(head_bytes("GET", &target, &headers, 0)).and_then(|()| {
            let (status, head) = open.response_head()?;
            open.pass_body(&head, &mut |piece| {
                meter.feed(piece);
                self.dawdle();
            })?;
            right(status, &head)?;
            Ok(head)
        });
        let head = exchange.map_err(|error| (error, used))?;
        if !meter.is_pattern || meter.length != request.length {
            return Err((
                wrong(format!(
                    "received {} bytes where {} were expected, or wrong bytes",
                    meter.length, request.length
                )),
                used,
            ));
        }
        self.keep(open, &head);
        Ok(())
    }

    /// Pauses between two reads of a slow client, unless the clients should stop or pause.
    fn dawdle(&self) {
        let pause = match self.kind {
            Kind::SlowDownload => 40,
            Kind::LongDownload => 30,
            _ => return,
        };
        if !hurries(&self.stop, &self.rest) {
            thread::sleep(Duration::from_millis(pause));
        }
    }

    /// Keeps a connection for the next request, unless the peer closes it.
    fn keep(&mut self, open: Connection, head: &Head) {
        if self.kind == Kind::Fresh {
            return;
        }
        if head.lists("connection", "close") {
            self.ledger.announced(self.kind);
            return;
        }
        self.idle = Some(open);
    }

    fn judge(&self, began: Instant, outcome: Result<(), (Failure, bool)>, bytes: u64) {
        match outcome {
            Ok(()) => self.ledger.done(self.kind, Done { began, bytes }),
            Err((error, used)) => {
                let place = if used { "on a kept connection" } else { "on a new connection" };
                self.ledger.failed(self.kind, format!("{error} {place}"));
            }
        }
    }

    /// Sends one `POST`. The origin returns the length of the body and whether it is correct.
    fn post(&mut self) {
        let length = self.random.u64(1..MIDDLING.end);
        self.upload(length, &mut |open, body| open.send(body));
    }

    fn slow_upload(&mut self) {
        let (stop, rest) = (Arc::clone(&self.stop), Arc::clone(&self.rest));
        self.upload(SLOW_UPLOAD, &mut |open, body| {
            body.chunks(TRICKLE).try_for_each(|piece| {
                open.send(piece)?;
                if !hurries(&stop, &rest) {
                    thread::sleep(Duration::from_millis(100));
                }
                Ok(())
            })
        });
    }

    fn upload(&mut self, length: u64, send: &mut SendBody) {
        let began = Instant::now();
        if self.idle.as_mut().is_some_and(|idle| idle.ends_within(GLANCE)) {
            self.ledger.found_closed(self.kind);
            self.idle = None;
        }
        let seed = self.random.u64(..1_000_000);
        let body = pattern::bytes(seed, usize::try_from(length).expect("uploads fit into memory"));
        let outcome = self.connection().and_then(|(mut open, used)| {
            let head = head_bytes("POST", &format!("/digest/{seed}"), &[("Host", WEB_HOST)], body.len());
            let response = open.send(head).and_then(|()| send(&mut open, &body));
            let response = response.and_then(|()| open.response("POST")).map_err(|error| (error, used))?;
            right(response.status, &response.head).map_err(|error| (error, used))?;
            if response.text() != format!("{length} true") {
                return Err((wrong(format!("the origin received wrong bytes: {}", response.text())), used));
            }
            self.keep(open, &response.head);
            Ok(())
        });
        self.judge(began, outcome, length);
    }

    /// Holds one WebSocket at a time, and opens the next one if it is cut.
    fn hold_sockets(mut self) {
        let late = self.number / 2 * (self.number % 2);
        let delay = self.load.latecomers.mul_f64(late as f64 / 4.0);
        let begin = Instant::now() + delay;
        while Instant::now() < begin && !self.stopped() {
            thread::sleep(Duration::from_millis(50));
        }
        let mut socket = None;
        while !self.stopped() {
            if socket.is_some() && self.rest.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(20));
                continue;
            }
            let open = socket.take().map_or_else(|| self.agree(), Ok);
            socket = match open {
                Ok(open) => self.message(open),
                Err(error) => {
                    self.ledger.failed(self.kind, format!("the WebSocket handshake failed: {error}"));
                    None
                }
            };
            thread::sleep(Duration::from_millis(self.random.u64(80..160)));
        }
        if let Some(Socket { mut connection, .. }) = socket {
            // The run is over, so the result does not matter.
            let _ = connection.send(websocket::Frame::close().masked());
        }
    }

    fn agree(&mut self) -> Result<Socket, Failure> {
        let mut connection = Connection::open(self.address)?;
        let headers = [&[("Host", SOCKETS_HOST)], websocket::handshake().as_slice()].concat();
        connection.send(head_bytes("GET", "/socket", &headers, 0))?;
        let (status, head) = connection.response_head()?;
        if status != 101 || head.header("sec-websocket-accept") != Some(websocket::ACCEPT) {
            return Err(wrong(format!("the response is {}", head.start)));
        }
        Ok(Socket { connection, opened: self.ledger.now(), offset: self.random.u64(..1_000_000) })
    }

    /// Sends a message and checks the echo. Returns the WebSocket if it is still open.
    fn message(&mut self, mut socket: Socket) -> Option<Socket> {
        let began = Instant::now();
        let sent = pattern::bytes(socket.offset, self.random.usize(1..2000));
        match socket.connection.exchange_frame(&sent) {
            Ok(echo) if echo.payload == sent => {
                self.ledger.done(self.kind, Done { began, bytes: sent.len() as u64 });
                socket.offset += sent.len() as u64;
                Some(socket)
            }
            Ok(echo) => {
                self.ledger
                    .failed(self.kind, format!("received an echo of {} wrong bytes", echo.payload.len()));
                None
            }
            Err(error) => {
                self.ledger.cut(socket.opened, error.to_string());
                None
            }
        }
    }
}

fn hurries(stop: &AtomicBool, rest: &AtomicBool) -> bool {
    stop.load(Ordering::Relaxed) || rest.load(Ordering::Relaxed)
}

fn right(status: u16, head: &Head) -> Result<(), Failure> {
    if status == 200 { Ok(()) } else { Err(wrong(format!("the response is {}", head.start))) }
}

fn wrong(what: String) -> Failure {
    Failure::Broken(std::io::Error::other(what))
}

#[cfg(test)]
mod checks {
    use tests::wait::{LONG, until};
    use tests::{Behaviour, CannedResponse, Origin};

    use super::*;

    /// The clients connect to an origin directly, without a load balancer.
    #[test]
    fn the_load_accepts_correct_responses_and_reports_wrong_ones() {
        let origin = Origin::start("one");
        origin.behave(Behaviour::Service);
        let ledger = Arc::new(Ledger::new());
        let load = Load {
            addresses: vec![origin.address],
            long_download: 100_000..200_000,
            latecomers: Duration::ZERO,
            seed: 1,
        };
        let crowd = Crowd::start(&load, &ledger);
        let loaded = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Change);
        for kind in loaded {
            until(LONG, kind.name(), || {
                ledger.counts(kind).requests() > 0 && ledger.counts(kind).bytes() > 0
            });
        }
        assert!(ledger.failures().is_empty() && ledger.cuts().is_empty(), "{:?}", ledger.failures());
        origin.cut_connections();
        until(LONG, "WebSockets were cut", || !ledger.cuts().is_empty());
        origin.behave(Behaviour::Source(70_000));
        let failed = |kind| ledger.failures().iter().any(|failure| failure.kind == kind);
        for kind in [Kind::KeepAlive, Kind::Fresh, Kind::Post, Kind::LongDownload] {
            until(LONG, kind.name(), || failed(kind));
        }
        origin.behave(Behaviour::Respond(CannedResponse::status(503, "")));
        until(LONG, "a response with 503 is a failure", || {
            ledger.failures().iter().any(|failure| failure.text.contains("503"))
        });
        crowd.stop();
    }
}
