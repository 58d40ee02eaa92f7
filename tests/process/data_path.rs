//! What clients and backends can observe of the data path, as raw bytes.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};
use std::{fs, thread};

use socket2::SockRef;
use tests::certs::Certified;
use tests::client::head_bytes;
use tests::wait::{self, LONG};
use tests::{Behaviour, CannedResponse, Daemon, Lab, Origin};

use crate::{pool, pool_of};

pub(crate) const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A daemon with one origin that returns the head of the request.
pub(crate) struct Echoing {
    pub(crate) daemon: Daemon,
    pub(crate) origin: Origin,
    _lab: Lab,
}

impl Echoing {
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    /// Starts a daemon with these keys at the top level.
    fn start_with(keys: &str) -> Self {
        let (lab, origin) = (Lab::new(), Origin::start("one"));
        origin.behave(Behaviour::Echo);
        let daemon = lab.start(&format!("{keys}{}", pool(&[&origin], "")));
        Self { daemon, origin, _lab: lab }
    }

    /// Sends these bytes on a new connection. Returns the status and the body of the response, and whether it ends the
    /// connection.
    #[track_caller]
    pub(crate) fn send(&self, bytes: &str) -> (u16, String, bool) {
        let mut client = self.daemon.connect();
        client.send(bytes).unwrap();
        let response = client.response("GET").unwrap();
        (response.status, response.text(), response.closes())
    }

    /// Returns the head that the backend gets for this one.
    #[track_caller]
    pub(crate) fn forwarded(&self, head: &str) -> String {
        let (status, text, _) = self.send(head);
        assert_eq!(status, 200, "{text}");
        text
    }

    /// Asserts that these bytes get this status on a connection that ends.
    #[track_caller]
    pub(crate) fn refuses(&self, bytes: &str, status: u16, reason: &str) {
        assert_eq!((self.send(bytes).0, self.send(bytes).2), (status, true), "{bytes}");
        let label = format!("reason=\"{reason}\"");
        wait::until(LONG, "both are counted", || self.daemon.metric("lb_rejected_total", &[&label]) == 2.0);
    }
}

/// Starts a backend whose connections this function serves, each with its index, and returns the address.
pub(crate) fn backend(serve: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, serve) = (listener.local_addr().unwrap(), Arc::new(serve));
    thread::spawn(move || {
        for (index, stream) in listener.incoming().enumerate() {
            let (serve, stream) = (serve.clone(), stream.unwrap());
            thread::spawn(move || serve(index, stream));
        }
    });
    address
}

/// Reads the head of a request; `None` at the end of the connection.
pub(crate) fn read_head(stream: &mut TcpStream) -> Option<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

pub(crate) fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

pub(crate) fn connect(daemon: &Daemon) -> TcpStream {
    let stream = TcpStream::connect(daemon.listener).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.set_write_timeout(Some(LONG)).unwrap();
    stream
}

// ===== heads =====

#[test]
fn a_request_without_a_host_leaves_with_one() {
    let lab = Echoing::start();
    let backend = lab.origin.address;
    let head = lab.forwarded("GET / HTTP/1.0\r\n\r\n").to_lowercase();
    assert!(
        head.contains(&format!("\r\nhost: {backend}\r\n")) && !head.contains("x-forwarded-host"),
        "{head}"
    );
    let head = lab.forwarded("GET http://a.test/ HTTP/1.0\r\n\r\n").to_lowercase();
    assert!(head.starts_with("get / http/1.1\r\n"), "{head}");
    assert!(
        head.contains("\r\nhost: a.test\r\n") && head.contains("\r\nx-forwarded-host: a.test\r\n"),
        "{head}"
    );
}

#[test]
fn a_scheme_that_the_connection_does_not_have_is_refused() {
    let lab = Echoing::start();
    lab.refuses("GET https://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "scheme_mismatch");
}

#[test]
fn an_empty_line_before_a_request_begins_no_request() {
    let lab = Echoing::start();
    let mut client = lab.daemon.connect();
    client.send("\r\n").unwrap();
    drop(client);
    wait::until(LONG, "the connection has ended", || lab.daemon.metric("lb_connections_active", &[]) == 0.0);
    assert_eq!(lab.daemon.metric("lb_requests_total", &[]), 0.0);
    lab.forwarded("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(lab.send("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").0, 400);
}

#[test]
fn a_request_line_without_a_version_is_refused_at_once() {
    Echoing::start().refuses("GET /\r\n", 400, "bad_request_line");
}

#[test]
fn a_rejected_head_is_logged_with_its_place_and_the_daemon_counts_many_in_one_line() {
    let lab = Echoing::start_with("log_level: debug\n");
    for _ in 0..20 {
        assert_eq!(lab.send("GET / HTTP/1.1\r\nHost : a\r\n\r\n").0, 400);
    }
    lab.daemon.logged(&["400", "reason=\"bad_field\" offset=20"]);
    lab.daemon.logged(&["rejected 1 request head, the latest for `bad_field`"]);
    // The others come in a line of their own, a second later, with the next one.
    let mentioned = || {
        let log = lab.daemon.log();
        let counts =
            log.lines().filter_map(|line| line.split_once(": rejected ")?.1.split(' ').next()?.parse().ok());
        counts.collect::<Vec<u64>>()
    };
    let mut sent = 20;
    wait::until(LONG, "all are mentioned", || {
        assert_eq!(lab.send("get / HTTP/1.1\r\nHost: a\r\n\r\n").0, 400);
        sent += 1;
        mentioned().iter().sum::<u64>() == sent
    });
    assert!((mentioned().len() as u64) < sent / 2, "{:?}", mentioned());
}

#[test]
fn methods_that_are_not_served_have_reasons_of_their_own() {
    let lab = Echoing::start();
    lab.refuses("CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n", 405, "connect_method");
    lab.refuses("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405, "trace_method");
}

#[test]
fn an_empty_body_and_an_expectation_are_ignored_in_http_1_0() {
    let lab = Echoing::start();
    lab.forwarded("GET / HTTP/1.0\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    let head = lab.forwarded("POST / HTTP/1.0\r\nHost: a\r\nExpect: x\r\nContent-Length: 1\r\n\r\na");
    assert!(!head.contains("Expect"), "{head}");
    let head = lab.forwarded("GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n");
    assert!(!head.contains("Expect"), "{head}");
}

#[test]
fn an_expectation_that_is_repeated_is_a_bad_request() {
    let lab = Echoing::start();
    let twice = "Expect: 100-continue\r\nExpect: 100-continue\r\n";
    lab.refuses(
        &format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n{twice}\r\na"),
        400,
        "repeated_expect",
    );
    lab.refuses(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: other\r\n\r\na",
        417,
        "bad_expect",
    );
}

#[test]
fn max_forwards_of_options_is_decremented_and_ends_here_at_0() {
    let lab = Echoing::start();
    let options = |hops| format!("OPTIONS / HTTP/1.1\r\nHost: a\r\nMax-Forwards: {hops}\r\n\r\n");
    let head = lab.forwarded(&options(3)).to_lowercase();
    assert!(head.contains("\r\nmax-forwards: 2\r\n"), "{head}");
    let requests = lab.origin.requests();
    assert_eq!(lab.send(&options(0)), (200, String::new(), false));
    assert_eq!(lab.origin.requests(), requests);
}

// ===== upgrades =====

pub(crate) const UPGRADE: &str =
    "Host: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\n";

#[test]
fn only_one_key_may_ask_for_a_websocket() {
    let second = format!("GET / HTTP/1.1\r\n{UPGRADE}Sec-WebSocket-Key: b\r\n\r\n");
    Echoing::start().refuses(&second, 400, "bad_upgrade");
}

#[test]
fn a_websocket_with_a_body_is_an_ordinary_request() {
    let lab = Echoing::start();
    let head = lab.forwarded(&format!("POST / HTTP/1.1\r\n{UPGRADE}Content-Length: 1\r\n\r\na"));
    assert!(!head.contains("Upgrade"), "{head}");
    let head = lab.forwarded(&format!("GET / HTTP/1.1\r\n{UPGRADE}\r\n"));
    assert!(head.contains("Upgrade: websocket"), "{head}");
}

#[test]
fn bytes_behind_a_refused_upgrade_are_no_request() {
    let lab = Echoing::start();
    let upgrade = format!("GET /first HTTP/1.1\r\n{UPGRADE}\r\n");
    let (status, _, closes) = lab.send(&format!("{upgrade}GET /second HTTP/1.1\r\nHost: a\r\n\r\n"));
    assert_eq!((status, closes, lab.origin.requests()), (200, true, 1));
    let (status, _, closes) = lab.send(&upgrade);
    assert_eq!((status, closes), (200, false), "nothing follows");
}

#[test]
fn a_reset_of_one_side_of_a_tunnel_resets_the_other() {
    let switching = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let (sender, seen) = mpsc::channel();
    let address = backend(move |_, mut stream| {
        let Some(head) = read_head(&mut stream) else { return };
        stream.write_all(switching).unwrap();
        let mut byte = [0];
        if head.starts_with("GET /backend") {
            stream.read_exact(&mut byte).unwrap();
            return reset(stream);
        }
        let end = stream.read(&mut byte).map_err(|error| error.kind());
        sender.send(end).unwrap();
    });
    let lab = Lab::new();
    let daemon = lab.start(&pool_of(&[address], ""));
    let open = |path: &str| {
        let mut client = connect(&daemon);
        client.write_all(format!("GET {path} HTTP/1.1\r\n{UPGRADE}\r\n").as_bytes()).unwrap();
        assert!(read_head(&mut client).unwrap().starts_with("HTTP/1.1 101"));
        client
    };
    let mut client = open("/backend");
    client.write_all(b"a").unwrap();
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    reset(open("/client"));
    assert_eq!(seen.recv_timeout(LONG).unwrap(), Err(ErrorKind::ConnectionReset));
}

// ===== bodies =====

#[test]
fn a_truncated_request_gets_a_400() {
    let lab = Echoing::start();
    let mut client = lab.daemon.connect();
    client.send(head_bytes("POST", "/", &[("Content-Length", "10")], 3)).unwrap();
    client.send("abc").unwrap();
    client.finish_sending();
    let response = client.response("POST").unwrap();
    assert_eq!((response.status, response.closes()), (400, true));
    lab.daemon.logged(&["400", "truncated_body"]);
}

#[test]
fn trailers_are_announced_only_to_clients_that_can_get_them() {
    let lab = Lab::new();
    let address = backend(|_, mut stream| {
        while read_head(&mut stream).is_some() {
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, X-Own\r\n";
            let body = "Connection: x-own\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\nX-Own: 2\r\n\r\n";
            stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        }
    });
    let daemon = lab.start(&pool_of(&[address], ""));
    let get = |version: &str| {
        let mut client = daemon.connect();
        client.send(format!("GET / {version}\r\nHost: a\r\n\r\n")).unwrap();
        client.response("GET").unwrap()
    };
    let new = get("HTTP/1.1");
    assert!(new.header("trailer").is_some());
    assert_eq!((new.trailer("x-sum"), new.trailer("x-own")), (Some("1"), None));
    let old = get("HTTP/1.0");
    assert_eq!((old.text().as_str(), old.header("trailer")), ("ok", None));
}

#[test]
fn a_flood_of_informational_responses_is_no_response() {
    let address = backend(|_, mut stream| {
        let large = format!("HTTP/1.1 103 Early Hints\r\nX: {}\r\n\r\n", "a".repeat(50_000));
        if read_head(&mut stream).is_some() {
            // The daemon stops to read.
            let _ = stream.write_all(large.repeat(15).as_bytes()).and_then(|()| stream.write_all(OK));
        }
    });
    let lab = Lab::new();
    let daemon = lab.start(&pool_of(&[address], ""));
    let response = daemon.get("/").unwrap();
    assert_eq!((response.status, response.informational.as_slice()), (502, &[103][..]));
    assert_eq!(daemon.metric("lb_upstream_informational_total", &[]), 2.0, "the second one was too much");
}

#[test]
fn bodies_that_break_off_are_counted_by_their_side() {
    let address = backend(|_, mut stream| {
        if read_head(&mut stream).is_some_and(|head| head.starts_with("GET")) {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").unwrap();
        } else {
            let _ = stream.read(&mut [0; 100]);
        }
    });
    let lab = Lab::new();
    let daemon = lab.start(&pool_of(&[address], "retries: {attempts: 1}"));
    let truncated = |side: &str| daemon.metric("lb_truncated_bodies_total", &[&format!("side=\"{side}\"")]);
    assert!(daemon.get("/").is_err(), "the body is incomplete");
    wait::until(LONG, "the response is counted", || truncated("backend") == 1.0);
    let mut client = daemon.connect();
    client.send(head_bytes("POST", "/", &[("Content-Length", "10")], 3)).unwrap();
    client.send("abc").unwrap();
    client.finish_sending();
    assert_eq!(client.response("POST").unwrap().status, 400);
    wait::until(LONG, "the request is counted", || truncated("client") == 1.0);
    assert_eq!(truncated("backend"), 1.0);
}

#[test]
fn dropped_headers_are_counted() {
    let lab = Echoing::start();
    let dropped =
        |reason: &str| lab.daemon.metric("lb_headers_dropped_total", &[&format!("reason=\"{reason}\"")]);
    let head = "GET / HTTP/1.1\r\nHost: a\r\nX_Forwarded_For: b\r\nx.real.ip: c\r\napi_key: d\r\n";
    lab.forwarded(&format!("{head}Connection: x-own, te, x-absent\r\nX-Own: e\r\nTE: trailers\r\n\r\n"));
    assert_eq!((dropped("look_alike"), dropped("nominated")), (2.0, 1.0));
    lab.forwarded("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nKeep-Alive: b\r\n\r\n");
    assert_eq!((dropped("look_alike"), dropped("nominated")), (2.0, 1.0));
}

// ===== connections =====

/// On its first four connections, the backend sends a byte behind the response, a response with two lengths, a byte
/// while the connection is idle, and its end while the connection is idle.
#[test]
fn a_connection_to_a_backend_that_says_too_much_is_closed_and_counted() {
    let (send, ended) = mpsc::channel();
    let (idle, waits) = mpsc::channel();
    let waits = Mutex::new(waits);
    let address = backend(move |index, mut stream| {
        while read_head(&mut stream).is_some() {
            match index {
                0 => stream.write_all(&[OK, b"!"].concat()).unwrap(),
                1 => {
                    let both = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n";
                    stream.write_all(format!("{both}2\r\nok\r\n0\r\n\r\n").as_bytes()).unwrap();
                }
                2 | 3 => {
                    stream.write_all(OK).unwrap();
                    waits.lock().unwrap().recv().unwrap();
                    if index == 2 {
                        stream.write_all(b"!").unwrap();
                    } else {
                        stream.shutdown(Shutdown::Write).unwrap();
                    }
                }
                _ => stream.write_all(OK).unwrap(),
            }
        }
        send.send(index).unwrap();
    });
    let lab = Lab::new();
    let daemon = lab.start(&pool_of(&[address], ""));
    let get = || {
        let response = daemon.get("/").unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "ok"));
        daemon.settle();
    };
    for index in [0, 1] {
        get();
        assert_eq!(ended.recv_timeout(LONG), Ok(index));
    }
    for index in [2, 3] {
        get();
        idle.send(()).unwrap();
        // No request comes, so the sweep has to notice it.
        let began = Instant::now();
        assert_eq!(ended.recv_timeout(LONG), Ok(index));
        assert!(began.elapsed() < Duration::from_secs(5), "connection {index}: {:?}", began.elapsed());
    }
    get();
    for reason in ["late_bytes", "ambiguous_length", "early_bytes"] {
        let label = format!("reason=\"{reason}\"");
        let count = daemon.metric("lb_upstream_connections_poisoned_total", &[&label]);
        assert_eq!(count, 1.0, "{reason}");
    }
}

#[test]
fn a_staged_close_is_counted_by_its_end() {
    let lab = Echoing::start();
    let closes = |end: &str| lab.daemon.metric("lb_staged_closes_total", &[&format!("end=\"{end}\"")]);
    let close = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    lab.forwarded(close);
    wait::until(LONG, "the client has closed", || closes("closed") == 1.0);
    let mut silent = lab.daemon.connect();
    silent.send(close).unwrap();
    assert_eq!(silent.response("GET").unwrap().status, 200);
    wait::until(LONG, "the client is silent", || closes("quiet") == 1.0);
    assert_eq!((closes("closed"), closes("timeout"), closes("evicted")), (1.0, 0.0, 0.0));
}

#[test]
fn a_replay_uses_a_new_connection_although_others_are_idle() {
    let both = Arc::new(Barrier::new(2));
    let address = backend(move |index, mut stream| {
        while read_head(&mut stream).is_some() {
            if index < 2 {
                both.wait();
            }
            stream.write_all(OK).unwrap();
            if index < 2 {
                // The next request finds a connection that ends at this moment.
                let _ = stream.read(&mut [0]);
                return reset(stream);
            }
        }
    });
    let lab = Lab::new();
    let daemon = lab.start(&pool_of(&[address], ""));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert_eq!(daemon.get("/").unwrap().status, 200));
        }
    });
    daemon.settle();
    assert_eq!(daemon.get("/").unwrap().status, 200, "{}", daemon.log());
    assert_eq!(daemon.metric("lb_upstream_connections_total", &["reused=\"true\""]), 1.0);
}

#[test]
fn a_client_that_resets_an_upload_is_noticed_while_the_backend_does_not_read() {
    let address = backend(|_, stream| {
        // It reads nothing until the test ends.
        thread::sleep(LONG * 4);
        drop(stream);
    });
    let lab = Lab::new();
    let daemon = lab.start(&pool_of(&[address], ""));
    let mut client = connect(&daemon);
    client.write_all(&head_bytes("POST", "/", &[("Content-Length", "1000000000")], 1)).unwrap();
    // Until nobody takes more: all buffers are full.
    client.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let piece = vec![b'a'; 256 * 1024];
    while client.write_all(&piece).is_ok() {}
    reset(client);
    wait::until(LONG, "the request has ended", || {
        daemon.metric("lb_requests_total", &["code=\"499\""]) == 1.0
    });
}

#[test]
fn both_connections_of_a_request_are_probed_when_they_are_silent() {
    let lab = Echoing::start();
    let mut client = lab.daemon.connect();
    client.get("/").unwrap();
    // The system has the addresses as hexadecimal numbers. Other tests use the same ports at other addresses.
    let text = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port()),
        IpAddr::V6(_) => unreachable!("the addresses are IPv4"),
    };
    let (listener, backend) = (text(lab.daemon.listener), text(lab.origin.address));
    let from = text(client.local_addr());
    let timers = |local: Option<&str>, remote: &str| -> Vec<String> {
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
        let rows = rows
            .filter(|row| local.is_none_or(|local| row[1] == local) && row[2] == remote && row[3] == "01");
        rows.map(|row| row[5][..2].to_owned()).collect()
    };
    // 02 is the timer of keepalive.
    wait::until(LONG, "both have a timer", || {
        timers(Some(&listener), &from) == ["02"] && timers(None, &backend) == ["02"]
    });
}

#[test]
fn a_shortage_of_descriptors_is_counted_and_logged_once() {
    let lab = Echoing::start();
    let pid = lab.daemon.process.0.to_string();
    let limit = |limit: &str| tests::tools::run("prlimit", &["--pid", &pid, &format!("--nofile={limit}")]);
    limit("3:");
    let clients: Vec<_> = (0..3).map(|_| connect(&lab.daemon)).collect();
    wait::until(LONG, "a few failures are logged", || {
        lab.daemon.log().matches("cannot accept connections").count() == 1
    });
    thread::sleep(Duration::from_millis(500));
    limit("1000:");
    for mut client in clients {
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert!(read_head(&mut client).unwrap().starts_with("HTTP/1.1 200"));
        client.shutdown(Shutdown::Both).unwrap();
    }
    assert!(lab.daemon.metric("lb_accept_errors_total", &[]) > 1.0);
    assert_eq!(lab.daemon.log().matches("cannot accept connections").count(), 1);
}

#[test]
fn a_certificate_that_is_named_itself_must_not_have_expired() {
    let lab = Lab::new();
    for (is_expired, status) in [(false, 200), (true, 502)] {
        let certificate = Certified::self_signed(&["a.test"], is_expired);
        let (ca, key) = (lab.path("ca.pem"), lab.path("key.pem"));
        certificate.write(&ca, &key).unwrap();
        let origin = Origin::start_tls("one", certificate.server());
        origin.behave(Behaviour::Respond(CannedResponse::ok("")));
        let daemon = lab.start(&pool(&[&origin], &format!("tls: {{sni: a.test, ca: {}}}", ca.display())));
        assert_eq!(daemon.get("/").unwrap().status, status, "{}", daemon.log());
    }
}
