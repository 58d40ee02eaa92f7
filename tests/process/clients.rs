//! Limits and deadlines for the clients of a listener, and the deadlines of a pool after the head of a response.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use tests::client::{Failure, head_bytes};
use tests::wait::{self, LONG};
use tests::{Behaviour, Connection, Daemon, Lab, Origin};

use crate::{pool, pool_of};

/// A daemon with one origin.
struct Served {
    daemon: Daemon,
    origin: Origin,
    lab: Lab,
}

impl Served {
    /// Starts a daemon whose listener has these keys.
    fn with_listener(keys: &str) -> Self {
        Self::start(keys, "")
    }

    /// Starts a daemon whose pool has these keys.
    fn with_pool(keys: &str) -> Self {
        Self::start("", keys)
    }

    fn start(listener: &str, keys: &str) -> Self {
        let (lab, origin) = (Lab::new(), Origin::start("one"));
        let daemon = lab.start_file(&config(&lab, listener, &pool(&[&origin], keys)));
        Self { daemon, origin, lab }
    }

    fn rejected(&self, reason: &str) -> f64 {
        self.daemon.metric("lb_rejected_total", &[&format!("reason=\"{reason}\"")])
    }

    #[track_caller]
    fn rejects(&self, request: impl AsRef<[u8]>, status: u16, reason: &str) {
        let mut client = self.daemon.connect();
        client.send(request).unwrap();
        let response = client.response("GET").unwrap();
        assert_eq!((response.status, response.closes()), (status, true));
        wait::until(LONG, "the rejection is counted", || self.rejected(reason) == 1.0);
        self.daemon.logged(&[&status.to_string(), reason]);
        assert_eq!(self.origin.requests(), 0);
    }

    #[track_caller]
    fn accepts(&self, request: impl AsRef<[u8]>) {
        let mut client = self.daemon.connect();
        client.send(request).unwrap();
        assert_eq!(client.response("GET").unwrap().status, 200);
    }
}

fn config(lab: &Lab, keys: &str, body: &str) -> std::path::PathBuf {
    lab.config_with(&format!("listeners: [{{address: \"{}\", {keys}}}]\n", lab.listener), body)
}

/// Returns a request whose head has this size.
fn head_of(bytes: usize) -> Vec<u8> {
    let frame = "GET / HTTP/1.1\r\nHost: a\r\nX-Fill: \r\n\r\n".len();
    format!("GET / HTTP/1.1\r\nHost: a\r\nX-Fill: {}\r\n\r\n", "x".repeat(bytes - frame)).into_bytes()
}

// ===== limits =====

#[test]
fn a_head_above_the_limit_is_431() {
    let served = Served::with_listener("limits: {head: 2KiB, target: 1KiB}");
    served.rejects(head_of(2049), 431, "head_too_large");
    served.accepts(head_of(2048));
}

#[test]
fn more_fields_than_the_limit_are_431() {
    let served = Served::with_listener("limits: {fields: 10}");
    // One of the fields is the host.
    let request = |fields: usize| {
        let fields: String = (1..fields).map(|number| format!("X-{number}: 1\r\n")).collect();
        format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
    };
    served.rejects(request(11), 431, "too_many_fields");
    served.accepts(request(10));
}

#[test]
fn a_target_above_the_limit_is_414() {
    let served = Served::with_listener("limits: {target: 1KiB}");
    let request = |length: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(length - 1));
    served.rejects(request(1025), 414, "target_too_long");
    served.accepts(request(1024));
}

#[test]
fn a_body_above_the_limit_is_413_before_it_is_read() {
    let served = Served::with_listener("limits: {body: 1KiB}");
    served.rejects(head_bytes("POST", "/", &[], 1025), 413, "body_too_large");
    let mut client = served.daemon.connect();
    assert_eq!(client.request("POST", "/", &[], &[0; 1024]).unwrap().status, 200);
}

#[test]
fn a_chunked_body_that_grows_above_the_limit_is_413() {
    let served = Served::with_listener("limits: {body: 1KiB}");
    let mut client = served.daemon.connect();
    client.send(head_bytes("POST", "/", &[("Transfer-Encoding", "chunked")], 0)).unwrap();
    for _ in 0..2 {
        client.send(format!("400\r\n{}\r\n", "x".repeat(1024))).unwrap();
    }
    let response = client.response("POST").unwrap();
    assert_eq!((response.status, response.closes()), (413, true));
    wait::until(LONG, "the rejection is counted", || served.rejected("body_too_large") == 1.0);
    let backend = served.daemon.backend_status("web", served.origin.address);
    assert_eq!(backend["failures"], 0, "{backend:#}");
}

#[test]
fn the_last_request_that_the_limit_allows_closes_the_connection() {
    let served = Served::with_listener("limits: {requests: 3}");
    let mut client = served.daemon.connect();
    let closes = |client: &mut Connection| client.get("/").unwrap().closes();
    assert_eq!([closes(&mut client), closes(&mut client), closes(&mut client)], [false, false, true]);
    assert!(client.ends_within(LONG));
}

#[test]
fn a_connection_above_the_limit_waits_until_another_one_ends() {
    let served = Served::with_listener("limits: {connections: 2}");
    let (mut one, mut two) = (served.daemon.connect(), served.daemon.connect());
    assert_eq!(one.get("/").unwrap().status, 200);
    assert_eq!(two.get("/").unwrap().status, 200);
    let mut three = served.daemon.connect();
    three.send(head_bytes("GET", "/three", &[], 0)).unwrap();
    assert!(!three.ends_within(Duration::from_millis(300)), "it waits");
    assert_eq!((served.origin.requests(), served.daemon.metric("lb_connections_active", &[])), (2, 2.0));
    drop(one);
    assert_eq!(three.response("GET").unwrap().status, 200);
}

/// Several tasks accept, and each of them could find room for a connection at the same time.
#[test]
fn several_accepting_tasks_keep_the_limit() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let config = config(&lab, "limits: {connections: 5}", &pool(&[&origin], ""));
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("listener_tasks_per_fd: 8\n{text}")).unwrap();
    let daemon = lab.start_file(&config);
    let mut clients: Vec<_> = (0..16).map(|_| daemon.connect()).collect();
    clients.iter_mut().for_each(|client| client.send(head_bytes("GET", "/", &[], 0)).unwrap());
    wait::until(LONG, "five are served", || origin.requests() == 5);
    assert_eq!(daemon.metric("lb_connections_active", &[]), 5.0);
    clients[..5].iter_mut().for_each(|client| assert_eq!(client.response("GET").unwrap().status, 200));
    assert_eq!((origin.requests(), daemon.metric("lb_connections_active", &[])), (5, 5.0));
}

/// The second connection has its last response, and its client does not close it.
#[test]
fn at_the_limit_a_connection_that_only_lingers_makes_room() {
    let served = Served::with_listener("limits: {connections: 1}");
    let mut lingering = served.daemon.connect();
    let response = lingering.request("GET", "/", &[("Connection", "close")], b"").unwrap();
    assert!(response.closes());
    let began = Instant::now();
    assert_eq!(served.daemon.get("/").unwrap().status, 200);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(served.daemon.metric("lb_staged_closes_total", &["end=\"evicted\""]), 1.0);
}

#[test]
fn a_reload_changes_the_limits_of_open_connections() {
    let served = Served::with_listener("limits: {body: 1KiB}");
    let mut client = served.daemon.connect();
    assert_eq!(client.request("POST", "/", &[], &[0; 1000]).unwrap().status, 200);
    config(&served.lab, "limits: {body: 100B}", &pool(&[&served.origin], ""));
    let reload = served.lab.run(&["reload", "-c", tests::daemon::path_str(&served.lab.path("conf.yaml"))]);
    assert!(reload.stdout.contains("limits"), "{}{}", reload.stdout, reload.stderr);
    assert_eq!(client.request("POST", "/", &[], &[0; 1000]).unwrap().status, 413);
}

// ===== deadlines of clients =====

#[test]
fn a_connection_without_a_request_ends_after_the_idle_timeout() {
    let served = Served::with_listener("timeouts: {idle: 1s}");
    let began = Instant::now();
    assert!(served.daemon.connect().ends_within(LONG));
    assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
    let mut used = served.daemon.connect();
    assert!(!used.get("/").unwrap().closes());
    assert!(used.ends_within(Duration::from_secs(5)));
}

#[test]
fn a_head_that_takes_longer_than_its_timeout_is_408() {
    let served = Served::with_listener("timeouts: {head: 1s}");
    let mut client = served.daemon.connect();
    client.send("GET / HTTP/1.1\r\n").unwrap();
    let response = client.response("GET").unwrap();
    assert_eq!((response.status, response.closes()), (408, true));
}

#[test]
fn a_pause_in_a_body_that_is_longer_than_its_timeout_is_408() {
    let served = Served::with_listener("timeouts: {body: 1s}");
    let mut client = served.daemon.connect();
    client.send(head_bytes("POST", "/", &[], 10)).unwrap();
    client.send("1").unwrap();
    assert_eq!(client.response("POST").unwrap().status, 408);
    served.daemon.logged(&["408", "client_timeout"]);
}

#[test]
fn a_client_that_does_not_read_a_response_is_reset_after_the_body_timeout() {
    let served = Served::with_listener("timeouts: {body: 1s}");
    served.origin.behave(Behaviour::Source(50_000_000));
    let mut client = served.daemon.connect();
    client.hold_at_most(4096).unwrap();
    client.send(head_bytes("GET", "/", &[], 0)).unwrap();
    wait::until(LONG, "the connection ends", || {
        served.daemon.metric("lb_requests_in_flight", &[]) == 0.0
            && served.daemon.metric("lb_connections_active", &[]) == 0.0
    });
    served.daemon.logged(&["200", "client_gone"]);
    // A plain close would deliver what is in the queue of the system, and then the end.
    let result = client.response("GET").map(|response| response.status);
    assert!(
        matches!(&result, Err(Failure::Broken(error)) if error.kind() == ErrorKind::ConnectionReset),
        "{result:?}"
    );
}

/// Returns a socket for which the system keeps few bytes that were not read.
fn narrow_socket() -> socket2::Socket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    socket
}

/// Reads 200 kB per second for longer than any limit of these tests.
fn read_steadily(mut stream: impl Read) -> std::io::Result<()> {
    let (began, mut bytes) = (Instant::now(), [0; 20_000]);
    while began.elapsed() < Duration::from_secs(6) {
        stream.read_exact(&mut bytes)?;
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// The system reports room for a write when a third of its buffer is free. At this speed, that takes longer than the
/// limit, although the client reads all the time.
#[test]
fn a_client_that_reads_slowly_but_steadily_keeps_its_response() {
    let served = Served::with_listener("timeouts: {body: 1s}");
    served.origin.behave(Behaviour::Source(50_000_000));
    let mut client = narrow_socket();
    client.connect(&served.daemon.listener.into()).unwrap();
    client.write_all(&head_bytes("GET", "/", &[], 0)).unwrap();
    read_steadily(client).unwrap();
}

#[test]
fn a_backend_that_reads_slowly_but_steadily_gets_its_request() {
    let socket = narrow_socket();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(16).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    let lab = Lab::new();
    let daemon = lab.start(&pool_of(&[address], "timeouts: {response: 1s}"));
    let mut client = std::net::TcpStream::connect(daemon.listener).unwrap();
    client.write_all(&head_bytes("POST", "/", &[], 50_000_000)).unwrap();
    thread::spawn(move || client.write_all(&vec![b'x'; 50_000_000]));
    read_steadily(listener.accept().unwrap().0).unwrap();
}

/// Each byte comes soon enough, but all of them together take too long. The speed counts after 10 s.
#[test]
fn an_upload_below_the_lowest_speed_is_408() {
    let (slow, any) = (Served::with_listener(""), Served::with_listener("min_rate: 0"));
    let began = Instant::now();
    let mut clients = [&slow, &any].map(|served| {
        let mut client = served.daemon.connect();
        client.send(head_bytes("POST", "/", &[], 1000)).unwrap();
        client
    });
    let is_over = || slow.daemon.metric("lb_requests_total", &["code=\"408\""]) == 1.0;
    while !is_over() && began.elapsed() < LONG {
        clients.iter_mut().for_each(|client| drop(client.send("x")));
        thread::sleep(Duration::from_millis(200));
    }
    assert!((9..15).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    let [slow_client, any_client] = &mut clients;
    assert_eq!(slow_client.response("POST").unwrap().status, 408);
    any_client.send("y".repeat(999)).unwrap();
    assert_eq!(any_client.response("POST").unwrap().status, 200);
}

// ===== deadlines of pools =====

/// Starts a backend that sends this head, then a byte, and then nothing until the client leaves.
fn quiet_after(head: &'static str) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut bytes = [0; 4096];
                if matches!(stream.read(&mut bytes), Ok(1..)) {
                    let _ = stream.write_all(head.as_bytes());
                    while matches!(stream.read(&mut bytes), Ok(1..)) {}
                }
            });
        }
    });
    address
}

fn daemon_before(backend: std::net::SocketAddr, keys: &str) -> (Lab, Daemon) {
    let lab = Lab::new();
    let body = format!(
        "pools:\n  web:\n    backends: [\"{backend}\"]\n    health_check: {{type: none}}\n    timeouts: {{{keys}}}\n"
    );
    let daemon = lab.start(&body);
    (lab, daemon)
}

/// Returns how long a response lasts, at most three seconds.
fn lasts(daemon: &Daemon, headers: &[(&str, &str)]) -> Duration {
    let mut client = daemon.connect();
    client.send(head_bytes("GET", "/", headers, 0)).unwrap();
    let _ = client.response_head().unwrap();
    let began = Instant::now();
    let _ = client.some_bytes();
    client.ends_within(Duration::from_secs(3));
    began.elapsed()
}

const PLAIN: &str = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx";
const EVENTS: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 10\r\n\r\nx";

#[test]
fn a_pause_in_a_response_ends_after_the_body_timeout_and_is_no_failure_of_the_backend() {
    let backend = quiet_after(PLAIN);
    let (_lab, daemon) = daemon_before(backend, "body: 1s, response: 30s");
    let took = lasts(&daemon, &[]);
    assert!((900..2500).contains(&took.as_millis()), "{took:?}");
    daemon.logged(&["200", "response_stalled"]);
    let status = daemon.backend_status("web", backend);
    assert_eq!(status["failures"], 0, "{status:#}");
    assert_eq!(daemon.metric("lb_requests_broken_off_total", &[]), 0.0);
}

#[test]
fn without_a_body_timeout_a_response_may_pause() {
    let (_lab, daemon) = daemon_before(quiet_after(PLAIN), "body: 0s, response: 1s");
    assert!(lasts(&daemon, &[]) > Duration::from_millis(2800));
}

#[test]
fn a_stream_of_events_may_be_quiet_until_the_tunnel_timeout() {
    let (_lab, daemon) = daemon_before(quiet_after(EVENTS), "body: 1s, response: 1s");
    assert!(lasts(&daemon, &[]) > Duration::from_millis(2800));
    let (_lab, daemon) = daemon_before(quiet_after(EVENTS), "tunnel: 1s");
    let took = lasts(&daemon, &[]);
    assert!((900..2500).contains(&took.as_millis()), "{took:?}");
}

#[test]
fn a_websocket_may_be_quiet_until_the_tunnel_timeout() {
    let headers = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
    let quiet = |keys: &str| {
        let served = Served::with_pool(keys);
        served.origin.behave(Behaviour::Upgrade);
        let mut client = served.daemon.connect();
        client.send(head_bytes("GET", "/ws", &headers, 0)).unwrap();
        assert_eq!(client.response_head().unwrap().0, 101);
        let ends = client.ends_within(Duration::from_secs(3));
        (ends, served.daemon.backend_status("web", served.origin.address)["failures"].clone())
    };
    assert_eq!(quiet("timeouts: {response: 1s, body: 1s}"), (false, 0.into()));
    assert_eq!(quiet("timeouts: {tunnel: 1s}"), (true, 0.into()));
}

#[test]
fn a_pool_can_name_the_protocols_that_clients_switch_to() {
    let status = |keys: &str, protocol: &str| {
        let served = Served::with_pool(keys);
        served.origin.behave(Behaviour::Upgrade);
        let mut client = served.daemon.connect();
        let headers = [("Connection", "Upgrade"), ("Upgrade", protocol)];
        client.send(head_bytes("GET", "/ws", &headers, 0)).unwrap();
        client.response_head().unwrap().0
    };
    assert_eq!([status("", "tcp"), status("upgrades: [websocket]", "WebSocket")], [101, 101]);
    // The origin demands the protocol of a request that does not ask for one.
    assert_eq!([status("upgrades: [websocket]", "tcp"), status("upgrades: []", "websocket")], [426, 426]);
}

#[test]
fn a_connection_to_a_backend_is_not_used_beyond_its_age() {
    let served = Served::with_pool("timeouts: {max_age: 1s}");
    let began = Instant::now();
    wait::until(LONG, "a second connection is made", || {
        assert_eq!(served.daemon.get("/").unwrap().status, 200);
        served.origin.connections() == 2
    });
    // The age is shortened by up to a tenth.
    assert!(began.elapsed() >= Duration::from_millis(850), "{:?}", began.elapsed());
}

/// Starts a backend that responds to a head at once, and ends its response when a `Z` has arrived.
fn early_responder() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = [0; 4096];
        let mut has_begun = false;
        while let Ok(read @ 1..) = stream.read(&mut bytes) {
            if !std::mem::replace(&mut has_begun, true) {
                stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n").unwrap();
            }
            if bytes[..read].contains(&b'Z') {
                stream.write_all(b"1\r\nb\r\n0\r\n\r\n").unwrap();
            }
        }
    });
    address
}

/// Once the response has begun, both bodies may be a stream, in which the client pauses for longer than its timeout.
#[test]
fn a_request_body_may_pause_once_its_response_has_begun() {
    let lab = Lab::new();
    let backend = early_responder();
    let body = format!("pools:\n  web:\n    backends: [\"{backend}\"]\n    health_check: {{type: none}}\n");
    let daemon = lab.start_file(&config(&lab, "timeouts: {body: 1s}", &body));
    let mut client = daemon.connect();
    client.send(head_bytes("POST", "/", &[], 2)).unwrap();
    client.send("1").unwrap();
    let (status, head) = client.response_head().unwrap();
    assert_eq!(status, 200);
    thread::sleep(Duration::from_secs(2));
    client.send("Z").unwrap();
    assert_eq!(client.rest_of_body(&head).unwrap(), b"ab");
}
