//! An origin server whose behaviour a test can change while it runs.
//!
//! One thread accepts connections, and one thread per connection serves it. An origin records each request for the
//! test: its head byte by byte, the length and pattern of its body, and the TLS server name of its connection.

mod bridge;
mod grpc;
mod serve;
mod unreachable;

pub use bridge::UnixBridge;
pub use grpc::{GrpcBehaviour, GrpcOrigin, ReceivedCheck, Serving};
pub use unreachable::Unreachable;

use std::collections::VecDeque;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use rustls::ServerConfig;
use socket2::{Domain, Socket, Type};

use crate::pattern::Meter;
use crate::wire::Head;
use crate::{ports, wait};

/// The header of a response that names its origin.
pub const NAME_HEADER: &str = "X-Origin";

/// The number of requests that an origin keeps; older ones are dropped.
const KEPT_REQUESTS: usize = 2_000;

/// How an origin handles connections and requests.
#[derive(Debug, Clone)]
pub enum Behaviour {
    /// Sends a response.
    Respond(CannedResponse),
    /// Sends a response whose body is the head of the request.
    Echo,
    /// Sends a response after a delay.
    Slow(Duration, CannedResponse),
    /// Reads the request, waits until the gate opens, then sends a response.
    Held(Gate, CannedResponse),
    /// Sends the head and a first chunk, waits until the gate opens, then sends a second one.
    HeldWithin(Gate, [Vec<u8>; 2]),
    /// Accepts the connection and the request and never responds.
    Hang,
    /// Resets each connection at once.
    Reset,
    /// Reads the request, then resets the connection.
    ResetOnRequest,
    /// Sends bytes that are not HTTP.
    Garbage,
    /// Closes the connection before the end of the announced body.
    CutShort,
    /// Sends a response with these chunks and trailers.
    Chunked {
        /// The chunks of the body.
        chunks: Vec<Vec<u8>>,
        /// Names and values of the trailers.
        trailers: Vec<(String, String)>,
    },
    /// Sends a response whose body is this many bytes of [`crate::pattern`].
    Source(u64),
    /// Accepts any upgrade and then echoes every byte.
    Upgrade,
    /// Takes the response from the path: `/status/404` gives that status, `/bytes/100` gives that many bytes, and any
    /// other path gives 200.
    ByPath,
    /// Serves load in which every byte is checked. `/pattern/SEED/LENGTH` returns `LENGTH` bytes of [`crate::pattern`]
    /// from `SEED` on. `/digest/SEED` returns the length of the request body and whether it is that pattern. `/host`
    /// returns the `Host` of the request. A WebSocket echoes every message. The requests are counted but not kept.
    Service,
}

/// A complete response.
#[derive(Debug, Clone)]
pub struct CannedResponse {
    /// Status code.
    pub status: u16,
    /// Headers beside `Content-Length` and the name of the origin.
    pub headers: Vec<(String, String)>,
    /// Body; not sent in response to `HEAD`, nor with 204 and 304.
    pub body: Vec<u8>,
}

/// A request that an origin received.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Request line and headers.
    pub head: Head,
    /// Its body.
    pub body: Meter,
    /// Trailers of a chunked body.
    pub trailers: Vec<(String, String)>,
    /// Number of its connection, counted from 1.
    pub connection: u64,
    /// The peer of that connection.
    pub peer: Option<SocketAddr>,
    /// The TLS server name of that connection.
    pub sni: Option<String>,
}

/// Holds back responses until the test opens it.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

/// A running origin. Dropping it closes all its connections.
pub struct Origin {
    /// The address that it listens on.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    listener: Option<Listener>,
}

struct Shared {
    name: String,
    tls: Option<Arc<ServerConfig>>,
    behaviour: Mutex<Behaviour>,
    connections: AtomicU64,
    requests: AtomicU64,
    working: AtomicU64,
    busy: AtomicU64,
    most_at_once: AtomicU64,
    seen: Mutex<VecDeque<Seen>>,
    /// Open connections by number. The origin closes them when it goes down.
    open: Mutex<Vec<(u64, TcpStream)>>,
}

/// Counts a request from its head until its response begins.
struct Working<'a>(&'a Shared);

/// Counts a request from its head to the end of its response.
struct Busy<'a>(&'a AtomicU64);

struct Listener {
    socket: Arc<Socket>,
    thread: thread::JoinHandle<()>,
}

// ===== impl CannedResponse =====

impl CannedResponse {
    /// Creates a response with status 200 and this body.
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::status(200, body)
    }

    /// Creates a response with this status and this body.
    pub fn status(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }

    /// Returns the response with one more header.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

// ===== impl Gate =====

impl Gate {
    /// Creates a closed gate.
    pub fn closed() -> Self {
        Self::default()
    }

    /// Opens the gate for the responses held back and for all later ones.
    pub fn open(&self) {
        let (open, changed) = &*self.0;
        *open.lock().expect("no holder panics") = true;
        changed.notify_all();
    }

    /// Waits until the gate opens, for at most two minutes, so that a failed test leaves no thread behind.
    fn pass(&self) {
        let (open, changed) = &*self.0;
        let guard = open.lock().expect("no holder panics");
        let longest = Duration::from_secs(120);
        drop(changed.wait_timeout_while(guard, longest, |open| !*open).expect("no holder panics"));
    }
}

// ===== impl Seen =====

impl Seen {
    /// Returns the method of the request.
    pub fn method(&self) -> &str {
        self.head.start.split(' ').next().unwrap_or_default()
    }

    /// Returns the path and query of the request.
    pub fn target(&self) -> &str {
        self.head.start.split(' ').nth(1).unwrap_or_default()
    }

    /// Returns the first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }
}

// ===== impl Origin =====

impl Origin {
    /// Starts an origin that responds with 200 and its name as the body.
    #[track_caller]
    pub fn start(name: &str) -> Self {
        Self::with(name, None)
    }

    /// Starts an origin with TLS.
    #[track_caller]
    pub fn start_tls(name: &str, server: Arc<ServerConfig>) -> Self {
        Self::with(name, Some(server))
    }

    /// Starts an origin at a given address.
    #[track_caller]
    pub fn start_at(address: SocketAddr, name: &str) -> Self {
        Self::at(address, name, None)
    }

    /// Starts an origin with TLS at a given address, for a certificate that names the address.
    #[track_caller]
    pub fn start_tls_at(address: SocketAddr, name: &str, server: Arc<ServerConfig>) -> Self {
        Self::at(address, name, Some(server))
    }

    /// Starts an origin on the IPv6 loopback address.
    #[track_caller]
    pub fn start_v6(name: &str) -> Self {
        Self::at(ports::free_v6(), name, None)
    }

    /// Starts an origin on 127.0.0.1.
    #[track_caller]
    pub fn start_on_localhost(name: &str) -> Self {
        Self::at(ports::free_on_localhost(), name, None)
    }

    /// Creates an origin whose address refuses connections until [`Origin::come_back`].
    #[track_caller]
    pub fn refusing(name: &str) -> Self {
        let mut origin = Self::with(name, None);
        origin.refuse();
        origin
    }

    /// Creates an origin with TLS whose address refuses connections until [`Origin::come_back`].
    #[track_caller]
    pub fn refusing_tls(name: &str, server: Arc<ServerConfig>) -> Self {
        let mut origin = Self::with(name, Some(server));
        origin.refuse();
        origin
    }

    /// Returns the name of the origin.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Changes the behaviour, from the next connection or request on.
    pub fn behave(&self, behaviour: Behaviour) {
        *lock(&self.shared.behaviour) = behaviour;
    }

    /// Returns the number of connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Returns the number of open connections.
    pub fn open_connections(&self) -> usize {
        lock(&self.shared.open).len()
    }

    /// Returns the number of requests received so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Returns the number of requests whose head has arrived and whose response has not begun.
    pub fn working(&self) -> u64 {
        self.shared.working.load(Ordering::SeqCst)
    }

    /// Returns the number of requests whose head has arrived and whose response is not complete. An upgraded connection
    /// counts until it is closed.
    pub fn busy(&self) -> u64 {
        self.shared.busy.load(Ordering::SeqCst)
    }

    /// Returns the highest value that [`Origin::working`] has had.
    pub fn most_at_once(&self) -> u64 {
        self.shared.most_at_once.load(Ordering::SeqCst)
    }

    /// Returns the last requests, the oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.shared.seen).iter().cloned().collect()
    }

    /// Waits for a request with this target, and returns it.
    #[track_caller]
    pub fn received(&self, target: &str) -> Seen {
        let what = format!("origin {} has received {target}", self.name());
        wait::until_some(wait::LONG, &what, || self.seen().into_iter().rev().find(|s| s.target() == target))
    }

    /// Goes down: refuses new connections and closes the open ones.
    pub fn refuse(&mut self) {
        if let Some(listener) = self.listener.take() {
            // This interrupts `accept` in the thread.
            let _ = listener.socket.shutdown(Shutdown::Both);
            listener.thread.join().expect("the accepting thread does not panic");
        }
        self.cut_connections();
    }

    /// Listens again, on the same address.
    #[track_caller]
    pub fn come_back(&mut self) {
        if self.listener.is_none() {
            self.listener = Some(Listener::start(self.address, &self.shared));
        }
    }

    /// Closes all open connections.
    pub fn cut_connections(&self) {
        for (_, stream) in lock(&self.shared.open).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    #[track_caller]
    fn with(name: &str, tls: Option<Arc<ServerConfig>>) -> Self {
        Self::at(ports::free(), name, tls)
    }

    #[track_caller]
    fn at(address: SocketAddr, name: &str, tls: Option<Arc<ServerConfig>>) -> Self {
        let shared = Shared::new(name, tls);
        let listener = Some(Listener::start(address, &shared));
        Self { address, shared, listener }
    }

    /// Starts an origin on a socket that listens on this address.
    fn on(address: SocketAddr, name: &str, socket: Socket) -> Self {
        let shared = Shared::new(name, None);
        let listener = Some(Listener::on(socket, &shared));
        Self { address, shared, listener }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.refuse();
    }
}

// ===== impl Shared =====

impl Shared {
    fn new(name: &str, tls: Option<Arc<ServerConfig>>) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            tls,
            behaviour: Mutex::new(Behaviour::Respond(CannedResponse::ok(name))),
            connections: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            working: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            most_at_once: AtomicU64::new(0),
            seen: Mutex::default(),
            open: Mutex::default(),
        })
    }
}

// ===== impl Listener =====

impl Listener {
    #[track_caller]
    fn start(address: SocketAddr, shared: &Arc<Shared>) -> Self {
        // The first attempt can fail although no other test uses the address: between fork and exec, a process that
        // another test starts holds a copy of the socket that was used to find the free port.
        let listening = wait::poll(wait::LONG, || listen(address).ok());
        Self::on(listening.unwrap_or_else(|| panic!("cannot listen on {address}")), shared)
    }

    fn on(socket: Socket, shared: &Arc<Shared>) -> Self {
        let socket = Arc::new(socket);
        let (accepting, shared) = (Arc::clone(&socket), Arc::clone(shared));
        let thread = thread::spawn(move || accept_until_shut_down(&accepting, &shared));
        Self { socket, thread }
    }
}

fn listen(address: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket)
}

fn accept_until_shut_down(socket: &Socket, shared: &Arc<Shared>) {
    while let Ok((stream, _)) = socket.accept() {
        let number = shared.connections.fetch_add(1, Ordering::SeqCst) + 1;
        if matches!(*lock(&shared.behaviour), Behaviour::Reset) {
            reset(&stream);
            continue;
        }
        let stream = TcpStream::from(stream);
        if let Ok(clone) = stream.try_clone() {
            lock(&shared.open).push((number, clone));
        }
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            serve::connection(&shared, stream, number);
            shared.forget(number);
        });
    }
}

/// Makes the kernel send a reset when the last handle of this socket is dropped.
fn reset(socket: &Socket) {
    // This fails only if the connection is closed already.
    let _ = socket.set_linger(Some(Duration::ZERO));
}

// ===== impl Working =====

impl<'a> Working<'a> {
    fn new(shared: &'a Shared) -> Self {
        let now = shared.working.fetch_add(1, Ordering::SeqCst) + 1;
        shared.most_at_once.fetch_max(now, Ordering::SeqCst);
        Self(shared)
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.working.fetch_sub(1, Ordering::SeqCst);
    }
}

// ===== impl Busy =====

impl<'a> Busy<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

// ===== impl Shared =====

impl Shared {
    fn behaviour(&self) -> Behaviour {
        lock(&self.behaviour).clone()
    }

    fn record(&self, seen: Seen) {
        let mut all = lock(&self.seen);
        if all.len() == KEPT_REQUESTS {
            all.pop_front();
        }
        all.push_back(seen);
    }

    fn forget(&self, number: u64) {
        lock(&self.open).retain(|(open, _)| *open != number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics while it holds this")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Connection, Failure, get};
    use crate::{pattern, websocket};

    fn origin(behaviour: Behaviour) -> Origin {
        let origin = Origin::start("one");
        origin.behave(behaviour);
        origin
    }

    #[test]
    fn an_origin_keeps_a_connection_open_and_records_its_requests() {
        let origin = Origin::start("one");
        let mut client = Connection::open(origin.address).unwrap();
        assert_eq!(client.get("/a").unwrap().text(), "one");
        let posted = client.request("POST", "/b?c", &[("X-Two", "2")], b"body").unwrap();
        assert_eq!(posted.origin(), "one");
        assert_eq!((origin.connections(), origin.requests()), (1, 2));
        let seen = origin.received("/b?c");
        assert_eq!((seen.method(), seen.header("x-two")), ("POST", Some("2")));
        assert_eq!(seen.body.start, b"body");
    }

    #[test]
    fn head_204_and_304_have_no_body() {
        let origin = origin(Behaviour::ByPath);
        let mut client = Connection::open(origin.address).unwrap();
        let head = client.request("HEAD", "/bytes/7", &[], b"").unwrap();
        assert_eq!((head.header("content-length"), head.length), (Some("7"), 0));
        assert_eq!(client.get("/status/204").unwrap().length, 0);
        assert_eq!(client.get("/status/304").unwrap().status, 304);
        assert_eq!(client.get("/bytes/100000").unwrap().length, 100_000);
    }

    #[test]
    fn an_origin_goes_down_and_comes_back_on_the_same_address() {
        let mut origin = Origin::start("one");
        let mut kept = Connection::open(origin.address).unwrap();
        kept.get("/").unwrap();
        origin.refuse();
        assert!(matches!(get(origin.address, "/"), Err(Failure::Connect(_))));
        assert!(kept.ends_within(wait::LONG));
        origin.come_back();
        assert_eq!(get(origin.address, "/").unwrap().status, 200);
    }

    #[test]
    fn an_origin_fails_in_each_configured_way() {
        let origin = origin(Behaviour::Reset);
        assert!(get(origin.address, "/").is_err());
        origin.behave(Behaviour::Garbage);
        assert!(matches!(get(origin.address, "/"), Err(Failure::Broken(_))));
        origin.behave(Behaviour::CutShort);
        assert!(matches!(get(origin.address, "/"), Err(Failure::Broken(_))));
        origin.behave(Behaviour::ResetOnRequest);
        assert!(matches!(get(origin.address, "/"), Err(Failure::Closed)));
        origin.behave(Behaviour::Hang);
        let mut client = Connection::open(origin.address).unwrap();
        client.send("GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(!client.ends_within(Duration::from_millis(50)));
    }

    #[test]
    fn a_gate_holds_back_a_response_until_it_opens() {
        let gate = Gate::closed();
        let origin = origin(Behaviour::Held(gate.clone(), CannedResponse::ok("late")));
        let mut client = Connection::open(origin.address).unwrap();
        client.send("GET /held HTTP/1.1\r\n\r\n").unwrap();
        origin.received("/held");
        gate.open();
        assert_eq!(client.response("GET").unwrap().text(), "late");
    }

    #[test]
    fn an_origin_counts_concurrent_requests() {
        let gate = Gate::closed();
        let origin = origin(Behaviour::Held(gate.clone(), CannedResponse::ok("")));
        let clients = [(); 3].map(|()| {
            let mut client = Connection::open(origin.address).unwrap();
            client.send("GET / HTTP/1.1\r\n\r\n").unwrap();
            client
        });
        wait::until(wait::LONG, "it has received all requests", || origin.working() == 3);
        gate.open();
        for mut client in clients {
            client.response("GET").unwrap();
        }
        assert_eq!((origin.working(), origin.most_at_once()), (0, 3));
    }

    #[test]
    fn an_origin_sends_and_reads_chunks_with_trailers() {
        let trailers = vec![("X-Sum".to_owned(), "1".to_owned())];
        let origin = origin(Behaviour::Chunked { chunks: vec![b"ab".to_vec(), b"c".to_vec()], trailers });
        let mut client = Connection::open(origin.address).unwrap();
        let request = "POST /t HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-In: 2\r\n\r\n";
        client.send(request).unwrap();
        let response = client.response("POST").unwrap();
        assert_eq!((response.text().as_str(), response.trailer("x-sum")), ("abc", Some("1")));
        assert_eq!(origin.received("/t").trailers, [("X-In".to_owned(), "2".to_owned())]);
    }

    #[test]
    fn an_origin_sends_100_continue_and_a_large_body() {
        let origin = origin(Behaviour::Source(1_000_000));
        let mut client = Connection::open(origin.address).unwrap();
        client.send("PUT /up HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n").unwrap();
        assert_eq!(client.response_head().unwrap().0, 100);
        client.send("abc").unwrap();
        let response = client.response("PUT").unwrap();
        assert_eq!((response.length, response.is_pattern), (1_000_000, true));
        assert_eq!(origin.received("/up").body.length, 3);
    }

    #[test]
    fn an_upgraded_connection_echoes_bytes() {
        let origin = origin(Behaviour::Upgrade);
        let mut client = Connection::open(origin.address).unwrap();
        client.send("GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n").unwrap();
        assert_eq!(client.response("GET").unwrap().status, 101);
        client.send([0, 1, 2, 255]).unwrap();
        assert_eq!(client.some_bytes(), [0, 1, 2, 255]);
    }

    #[test]
    fn an_origin_with_tls_records_the_server_name() {
        let lab = crate::Lab::new();
        let authority = crate::Authority::new();
        let ca = lab.path("ca.pem");
        authority.write(&ca).unwrap();
        let origin = Origin::start_tls("tls", authority.certify(&["one.one.one.one"]).server());
        let resolve = format!("one.one.one.one:{}:{}", origin.address.port(), origin.address.ip());
        let url = format!("https://one.one.one.one:{}/secret", origin.address.port());
        let output =
            crate::tools::curl(&["--cacert", &ca.display().to_string(), "--resolve", &resolve, &url]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "tls", "{output:?}");
        assert_eq!(origin.received("/secret").sni.as_deref(), Some("one.one.one.one"));
    }

    #[test]
    fn the_service_sends_checks_and_echoes_bodies() {
        let origin = origin(Behaviour::Service);
        let mut client = Connection::open(origin.address).unwrap();
        let sent = client.get("/pattern/5/70000").unwrap();
        assert_eq!((sent.status, sent.length, sent.body), (200, 70_000, pattern::bytes(5, Meter::KEPT)));
        let body = pattern::bytes(9, 1000);
        assert_eq!(client.request("POST", "/digest/9", &[], &body).unwrap().text(), "1000 true");
        assert_eq!(client.request("POST", "/digest/8", &[], &body).unwrap().text(), "1000 false");
        assert_eq!(client.get("/host").unwrap().text(), "client.test");
        assert_eq!(client.get("/else").unwrap().status, 404);
        let agreed = client.request("GET", "/socket", &websocket::handshake(), b"").unwrap();
        assert_eq!((agreed.status, agreed.header("sec-websocket-accept")), (101, Some(websocket::ACCEPT)));
        assert_eq!(client.exchange_frame(&body).unwrap().payload, body);
        assert_eq!(origin.busy(), 1, "the WebSocket");
        origin.cut_connections();
        assert!(client.exchange_frame(&body).is_err());
        wait::until(wait::LONG, "no request is left", || origin.busy() == 0);
    }
}
