//! Bodies of requests on their way, while one of the two sides does not read, or has left.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tests::certs::Certified;
use tests::client::head_bytes;
use tests::wait::{self, LONG};
use tests::{Behaviour, CannedResponse, Gate, Lab, Origin};

use super::{assert_not_blamed, daemon_of, daemon_with_listener, read_all};
use crate::data_path::{backend, connect, read_head, reset};
use crate::{pool, pool_of};

const KIB: usize = 1024;

/// The length of a body that the buffers of the system cannot take.
const LARGE: usize = 50_000_000;

// ===== early responses =====

#[test]
fn a_response_during_an_upload_is_delivered_although_the_backend_closes() {
    let address = backend(|_, mut stream| {
        let Some(head) = read_head(&mut stream) else { return };
        if !head.starts_with("POST /silent") {
            let close = if head.starts_with("POST /close") { "Connection: close\r\n" } else { "" };
            let response = format!("HTTP/1.1 413 Too Large\r\n{close}Content-Length: 3\r\n\r\nbig");
            stream.write_all(response.as_bytes()).unwrap();
        }
        // Bytes that were not read make this a reset, too.
        if head.starts_with("POST /close") { drop(stream) } else { reset(stream) }
    });
    let (_lab, daemon) = daemon_of(&[address], "retries: {attempts: 0}");
    for (target, status, body) in [("/reset", "413", "big"), ("/close", "413", "big"), ("/silent", "502", "")]
    {
        let mut client = connect(&daemon);
        // More than the system keeps, so the daemon cannot have read all of it before the response.
        client.write_all(&head_bytes("POST", target, &[], LARGE)).unwrap();
        let _ = client.write_all(&vec![b'x'; LARGE]);
        let (response, end) = read_all(&mut client);
        assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{target}: {response}");
        assert!(response.to_lowercase().contains("\r\nconnection: close\r\n"), "{target}: {response}");
        assert!(response.ends_with(body), "{target}: {response}");
        assert_eq!(end, None, "{target}");
    }
}

#[test]
fn a_backend_that_does_not_read_an_upload_is_504() {
    let address = backend(|_, mut stream| {
        let _ = read_head(&mut stream);
        thread::sleep(LONG);
    });
    let (_lab, daemon) = daemon_of(&[address], "timeouts: {response: 1s}");
    let mut client = connect(&daemon);
    client.write_all(&head_bytes("POST", "/", &[], LARGE)).unwrap();
    let _ = client.write_all(&vec![b'x'; LARGE]);
    let (response, end) = read_all(&mut client);
    assert!(response.starts_with("HTTP/1.1 504"), "{response}");
    assert_eq!(end, None);
}

#[test]
fn a_client_that_goes_on_sending_gets_the_response_that_ends_its_connection() {
    let address = backend(|_, mut stream| drop(read_head(&mut stream)));
    let (_lab, daemon) = daemon_with_listener("limits: {body: 1KiB}", &[address], "");
    let mut client = connect(&daemon);
    client.write_all(&head_bytes("POST", "/", &[], LARGE)).unwrap();
    client.write_all(&vec![b'x'; 20_000_000]).unwrap();
    let (response, end) = read_all(&mut client);
    assert!(response.starts_with("HTTP/1.1 413"), "{response}");
    assert_eq!(end, None);
}

/// The client sends more than the daemon reads, so a plain close would be a reset.
#[test]
fn a_bad_chunk_after_the_response_began_does_not_destroy_the_response() {
    let address = backend(|_, mut stream| {
        let _ = read_head(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").unwrap();
        let _ = read_all(&mut stream);
    });
    let (_lab, daemon) = daemon_of(&[address], "");
    let mut client = connect(&daemon);
    client.write_all(&head_bytes("POST", "/", &[("Transfer-Encoding", "chunked")], 0)).unwrap();
    assert!(read_head(&mut client).unwrap().starts_with("HTTP/1.1 200"));
    client.write_all(b"zz\r\n").unwrap();
    let _ = client.write_all(&vec![b'x'; 1_000_000]);
    assert_eq!(read_all(&mut client), ("5\r\nhello\r\n".to_owned(), None));
    daemon.logged(&["200", "bad_chunk"]);
    assert_not_blamed(&daemon, address);
}

// ===== sides that do not read =====

#[test]
fn a_stream_of_events_goes_on_although_the_backend_does_not_read_the_request() {
    let address = backend(|_, mut stream| {
        let _ = read_head(&mut stream);
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
        let _ = stream.write_all(head.as_bytes());
        while stream.write_all(b"event").is_ok() {
            thread::sleep(Duration::from_millis(100));
        }
    });
    let (_lab, daemon) = daemon_of(&[address], "timeouts: {response: 700ms}");
    let mut client = connect(&daemon);
    client.write_all(&head_bytes("POST", "/", &[], LARGE)).unwrap();
    let mut upload = client.try_clone().unwrap();
    let upload = thread::spawn(move || upload.write_all(&vec![b'x'; LARGE]));
    assert!(read_head(&mut client).unwrap().starts_with("HTTP/1.1 200"));
    // These take 3 s.
    let mut events = vec![0; 30 * "5\r\nevent\r\n".len()];
    client.read_exact(&mut events).unwrap();
    client.shutdown(Shutdown::Both).unwrap();
    assert!(upload.join().unwrap().is_err(), "the backend does not read");
    reset(client);
    daemon.settle();
    assert_not_blamed(&daemon, address);
}

#[test]
fn a_client_that_does_not_read_what_is_echoed_stops_the_backend_which_is_not_blamed() {
    let address = backend(|_, mut stream| {
        let _ = read_head(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let mut bytes = vec![0; 64 * KIB];
        while let Ok(read @ 1..) = stream.read(&mut bytes) {
            if stream.write_all(&bytes[..read]).is_err() {
                return;
            }
        }
    });
    let keys = "timeouts: {response: 1s}";
    let (_lab, daemon) = daemon_with_listener("timeouts: {body: 2s}", &[address], keys);
    let mut client = connect(&daemon);
    client.write_all(&head_bytes("POST", "/", &[], 100_000_000)).unwrap();
    assert!(client.write_all(&vec![b'x'; 100_000_000]).is_err(), "the daemon ends the connection");
    daemon.settle();
    daemon.logged(&["200", "client_gone"]);
    assert_not_blamed(&daemon, address);
}

#[test]
fn clients_that_do_not_read_cost_little_memory() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    origin.behave(Behaviour::Source(100 * 1024 * 1024));
    let daemon = lab.start(&pool(&[&origin], ""));
    let before = daemon.process.resident_bytes();
    let _clients: Vec<_> = (0..50)
        .map(|_| {
            let mut client = daemon.connect();
            client.hold_at_most(4096).unwrap();
            client.send(head_bytes("GET", "/", &[], 0)).unwrap();
            client
        })
        .collect();
    wait::until(LONG, "all responses have begun", || {
        daemon.metric("lb_upstream_requests_in_flight", &[]) == 50.0 && origin.working() == 0
    });
    wait::throughout(Duration::from_secs(1), "50 responses need less than 20 MiB", || {
        daemon.process.resident_bytes().saturating_sub(before) < 20 * 1024 * 1024
    });
}

/// The daemon reads so much ahead, and then no read notices that the client leaves.
#[test]
fn a_client_that_has_sent_much_ahead_and_resets_leaves_the_queue() {
    let gate = Gate::closed();
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    origin.behave(Behaviour::Held(gate.clone(), CannedResponse::ok("")));
    let keys = "limits: {max_requests: 1, queue: 1}\ntimeouts: {queue: 60s}";
    let daemon = lab.start(&pool(&[&origin], keys));
    let mut first = daemon.begin("/first");
    origin.received("/first");
    let mut client = connect(&daemon);
    client.write_all(&head_bytes("POST", "/ahead", &[], 1_000_000)).unwrap();
    client.write_all(&[b'x'; 200 * KIB]).unwrap();
    wait::until(LONG, "it waits", || daemon.metric("lb_upstream_queue_length", &[]) == 1.0);
    reset(client);
    daemon.logged(&["/ahead", "499", "client_gone"]);
    gate.open();
    assert_eq!(first.response("GET").unwrap().status, 200);
}

// ===== TLS =====

/// Returns the bytes that the system keeps on their way from one socket to the other.
fn on_the_way(from: SocketAddr, to: SocketAddr) -> usize {
    let hex = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port()),
        IpAddr::V6(_) => unreachable!("tests use IPv4"),
    };
    let (from, to) = (hex(from), hex(to));
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let count = |row: &str| {
        let fields: Vec<_> = row.split_whitespace().collect();
        let (sent, received) = fields[4].split_once(':').unwrap();
        let hex = |text: &str| usize::from_str_radix(text, 16).unwrap();
        match (fields[1], fields[2]) {
            sender if sender == (from.as_str(), to.as_str()) => hex(sent),
            receiver if receiver == (to.as_str(), from.as_str()) => hex(received),
            _ => 0,
        }
    };
    table.lines().skip(1).map(count).sum()
}

/// A TLS backend that reads the body only when the test says how long it is.
struct LateReader {
    address: SocketAddr,
    /// The address of the daemon's connection, once the head has arrived.
    begun: mpsc::Receiver<SocketAddr>,
    length: mpsc::Sender<usize>,
    /// The bytes of the body that arrived.
    arrived: mpsc::Receiver<usize>,
}

impl LateReader {
    fn start(config: Arc<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ((begin, begun), (length, expected), (arrive, arrived)) =
            (mpsc::channel(), mpsc::channel(), mpsc::channel());
        thread::spawn(move || {
            let (socket, peer) = listener.accept().unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let session = ServerConnection::new(config).unwrap();
            let mut stream = StreamOwned::new(session, socket);
            read_tls_head(&mut stream);
            begin.send(peer).unwrap();
            let expected: usize = expected.recv().unwrap();
            arrive.send(read_at_most(&mut stream, expected)).unwrap();
        });
        Self { address, begun, length, arrived }
    }
}

fn read_tls_head(stream: &mut StreamOwned<ServerConnection, TcpStream>) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
}

/// Reads until so many bytes have arrived, or the stream is silent for its timeout. Returns their number.
fn read_at_most(stream: &mut impl Read, length: usize) -> usize {
    let (mut bytes, mut total) = (vec![0; 64 * KIB], 0);
    while total < length {
        match stream.read(&mut bytes) {
            Ok(read @ 1..) => total += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    total
}

/// The client pauses when the socket of the backend is full and TLS has kept a part of what was sent.
#[test]
fn everything_that_a_client_has_sent_arrives_over_tls_while_the_client_pauses() {
    let backend = LateReader::start(Certified::self_signed(&["a.test"], false).server());
    let lab = Lab::new();
    let daemon = lab.start(&pool_of(&[backend.address], "tls: {sni: a.test, verify: false}"));
    let mut client = connect(&daemon);
    client.write_all(&head_bytes("POST", "/", &[], 1_000_000_000)).unwrap();
    let upstream = backend.begun.recv_timeout(LONG).unwrap();
    let (piece, mut sent) = (vec![b'x'; 32 * KIB], 0);
    let (from, to) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
    loop {
        client.write_all(&piece).unwrap();
        sent += piece.len();
        wait::until(LONG, "the daemon has read it", || on_the_way(from, to) == 0);
        // The rest is in the memory of the daemon. Records of TLS are larger than what they carry.
        let has_left = || on_the_way(upstream, backend.address) + 4 * KIB >= sent;
        if wait::poll(Duration::from_millis(200), || has_left().then_some(())).is_none() {
            break;
        }
    }
    backend.length.send(sent).unwrap();
    assert_eq!(backend.arrived.recv_timeout(LONG).unwrap(), sent);
}

#[test]
fn a_backend_that_does_not_finish_its_tls_handshake_is_502_after_the_connect_timeout() {
    let address = backend(|_, mut stream| {
        let _ = read_all(&mut stream);
    });
    let keys = "tls: {sni: a.test, verify: false}\ntimeouts: {connect: 300ms}\nretries: {attempts: 0}";
    let (_lab, daemon) = daemon_of(&[address], keys);
    let began = Instant::now();
    assert_eq!(daemon.get("/").unwrap().status, 502);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}
