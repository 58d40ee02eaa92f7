//! Large responses between plain TCP connections, which the system moves through a pipe.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, mpsc};

use tests::certs::Authority;
use tests::client::{Failure, head_bytes};
use tests::pattern::{self, Meter};
use tests::wait::{self, LONG};
use tests::{Behaviour, Connection, Daemon, Lab, Origin};

use crate::data_path::{backend, read_head, reset};
use crate::{pool, pool_of};

/// The smallest rest of a body that passes through a pipe, as in the daemon.
const WORTHWHILE: usize = 256 * 1024;
const MIB: usize = 1024 * 1024;

fn spliced(daemon: &Daemon) -> f64 {
    daemon.metric("lb_spliced_bytes_total", &[])
}

/// Returns the head of a response with a body of this length.
fn head(length: usize) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")
}

/// Returns the length that a path such as `/1000` asks for.
fn asked(head: &str) -> usize {
    head.split(['/', ' ']).nth(2).unwrap().parse().unwrap()
}

/// Starts a backend that responds to `/LENGTH` with that many bytes of the pattern, and whose connections end after
/// `more` was sent behind a response.
fn source(more: &'static [u8]) -> SocketAddr {
    backend(move |_, mut stream| {
        while let Some(request) = read_head(&mut stream) {
            let length = asked(&request);
            let body = if request.starts_with("HEAD") { Vec::new() } else { pattern::bytes(0, length) };
            if stream.write_all(&[head(length).as_bytes(), &body, more].concat()).is_err() {
                return;
            }
        }
    })
}

/// Reads a response to the end. Returns the length of its body, if that is the pattern.
fn read_pattern(client: &mut Connection) -> Result<u64, Failure> {
    let (status, head) = client.response_head()?;
    assert_eq!(status, 200);
    let mut meter = Meter::new();
    client.pass_body(&head, &mut |piece| meter.feed(piece))?;
    assert!(meter.is_pattern, "the body is changed");
    Ok(meter.length)
}

#[track_caller]
fn get(client: &mut Connection, length: usize) {
    client.send(head_bytes("GET", &format!("/{length}"), &[], 0)).unwrap();
    assert_eq!(read_pattern(client).unwrap(), length as u64);
}

#[test]
fn bodies_of_any_size_arrive_complete_and_both_connections_are_kept() {
    let lab = Lab::new();
    let daemon = lab.start(&format!("threads: 1\n{}", pool_of(&[source(b"")], "")));
    let mut client = daemon.connect();
    let around = [WORTHWHILE - 1, WORTHWHILE, WORTHWHILE + 1, WORTHWHILE + 20_000, MIB, 5 * MIB + 7];
    for length in [2, WORTHWHILE / 2].into_iter().chain(around).chain([3]) {
        get(&mut client, length);
    }
    client.send(head_bytes("HEAD", &format!("/{MIB}"), &[], 0)).unwrap();
    assert_eq!(client.response("HEAD").unwrap().status, 200);
    get(&mut client, 5);
    daemon.settle();
    assert!(spliced(&daemon) > 5.0 * MIB as f64, "{}", spliced(&daemon));
    assert_eq!(daemon.metric("lb_upstream_connections_total", &["reused=\"false\""]), 1.0);
}

#[test]
fn small_and_chunked_bodies_are_copied() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.start(&pool(&[&origin], ""));
    origin.behave(Behaviour::Source(WORTHWHILE as u64 - 1));
    daemon.get("/").unwrap();
    origin.behave(Behaviour::Chunked { chunks: vec![vec![b'a'; 4 * MIB]], trailers: Vec::new() });
    let mut client = daemon.begin("/");
    let (_, head) = client.response_head().unwrap();
    let mut length = 0;
    client.pass_body(&head, &mut |piece| length += piece.len()).unwrap();
    assert_eq!(length, 4 * MIB);
    assert_eq!(spliced(&daemon), 0.0);
    origin.behave(Behaviour::Source(4 * MIB as u64));
    assert!(pattern::matches(0, &daemon.get("/").unwrap().body));
    assert!(spliced(&daemon) > 0.0);
}

#[test]
fn bodies_of_tls_backends_are_copied() {
    let (lab, authority) = (Lab::new(), Authority::new());
    authority.write(&lab.path("ca.pem")).unwrap();
    let origin = Origin::start_tls("tls", authority.certify(&["a.test"]).server());
    origin.behave(Behaviour::Source(4 * MIB as u64));
    let tls = format!("tls: {{ca: {}, sni: a.test}}", lab.path("ca.pem").display());
    let daemon = lab.start(&pool(&[&origin], &tls));
    assert!(pattern::matches(0, &daemon.get("/").unwrap().body));
    assert_eq!(spliced(&daemon), 0.0);
}

/// The clients read nothing at first, so the downloads that have a pipe keep it.
#[test]
fn more_downloads_than_pipes_arrive_complete() {
    const PIPES: usize = 128;
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    origin.behave(Behaviour::Source(8 * MIB as u64));
    let daemon = lab.start(&pool(&[&origin], ""));
    let ends = || daemon.process.descriptors().iter().filter(|name| name.starts_with("pipe:")).count();
    let others = ends();
    let begin = |_| {
        let mut client = daemon.connect();
        client.hold_at_most(64 * 1024).unwrap();
        client.send(head_bytes("GET", "/", &[], 0)).unwrap();
        client
    };
    let clients: Vec<Connection> = (0..PIPES + 4).map(begin).collect();
    wait::until(LONG, "all pipes are in use", || ends() == others + 2 * PIPES);
    for mut client in clients {
        client.hold_at_most(MIB).unwrap();
        assert_eq!(read_pattern(&mut client).unwrap(), 8 * MIB as u64);
    }
    daemon.settle();
    assert_eq!(ends(), others);
}

#[test]
fn bytes_beyond_the_announced_length_end_the_connection_to_the_backend() {
    let lab = Lab::new();
    let daemon = lab.start(&pool_of(&[source(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")], ""));
    let mut client = daemon.connect();
    for length in [MIB, 2 * MIB] {
        get(&mut client, length);
        daemon.settle();
    }
    assert!(spliced(&daemon) > MIB as f64);
    let poisoned = || daemon.metric("lb_upstream_connections_poisoned_total", &[]);
    wait::until(LONG, "both connections are counted", || poisoned() == 2.0);
    assert_eq!(daemon.metric("lb_upstream_connections_total", &["reused=\"true\""]), 0.0);
}

/// The client gets all that the backend has sent, and no more.
#[test]
fn a_body_that_breaks_off_is_incomplete() {
    for resets in [false, true] {
        let (send, sent) = mpsc::channel::<()>();
        let sent = Mutex::new(sent);
        let address = backend(move |_, mut stream| {
            let Some(_) = read_head(&mut stream) else { return };
            stream.write_all(&[head(4 * MIB).as_bytes(), &pattern::bytes(0, 3 * MIB)].concat()).unwrap();
            sent.lock().unwrap().recv().unwrap();
            if resets {
                reset(stream);
            }
        });
        let lab = Lab::new();
        let daemon = lab.start(&pool_of(&[address], ""));
        let mut client = daemon.begin("/");
        let (_, head) = client.response_head().unwrap();
        let (mut meter, mut once) = (Meter::new(), Some(send));
        let result = client.pass_body(&head, &mut |piece| {
            meter.feed(piece);
            if meter.length == 3 * MIB as u64 {
                once.take().unwrap().send(()).unwrap();
            }
        });
        assert!(result.is_err() && meter.is_pattern && meter.length == 3 * MIB as u64, "{}", meter.length);
        wait::until(LONG, "it is counted", || {
            daemon.metric("lb_truncated_bodies_total", &["side=\"backend\""]) == 1.0
        });
        assert!(spliced(&daemon) > MIB as f64);
    }
}

#[test]
fn a_client_that_resets_ends_the_connection_to_the_backend() {
    let (ended, waits) = mpsc::channel();
    let address = backend(move |_, mut stream| {
        let Some(_) = read_head(&mut stream) else { return };
        stream.write_all(head(1 << 40).as_bytes()).unwrap();
        let piece = pattern::bytes(0, MIB);
        while stream.write_all(&piece).is_ok() {}
        ended.send(()).unwrap();
    });
    let lab = Lab::new();
    let daemon = lab.start(&pool_of(&[address], ""));
    let mut client = TcpStream::connect(daemon.listener).unwrap();
    client.write_all(&head_bytes("GET", "/", &[], 0)).unwrap();
    client.read_exact(&mut vec![0; 4 * MIB]).unwrap();
    reset(client);
    waits.recv_timeout(LONG).unwrap();
    daemon.settle();
    daemon.logged(&["200", "client_gone"]);
}

/// The backend pauses within the body, when the pipe is empty and no byte is on its way.
#[test]
fn a_backend_that_pauses_within_a_body_goes_on_or_is_given_up() {
    let (go, waits) = mpsc::channel::<()>();
    let waits = Mutex::new(waits);
    let address = backend(move |_, mut stream| {
        let Some(_) = read_head(&mut stream) else { return };
        let bytes = pattern::bytes(0, 2 * MIB);
        stream.write_all(&[head(3 * MIB).as_bytes(), &bytes[..MIB]].concat()).unwrap();
        waits.lock().unwrap().recv().unwrap();
        stream.write_all(&bytes[MIB..]).unwrap();
        let _ = waits.lock().unwrap().recv();
    });
    let lab = Lab::new();
    let daemon = lab.start(&pool_of(&[address], "timeouts: {body: 2s}"));
    let mut client = daemon.begin("/");
    let (_, head) = client.response_head().unwrap();
    let mut meter = Meter::new();
    let result = client.pass_body(&head, &mut |piece| {
        meter.feed(piece);
        if meter.length == MIB as u64 {
            go.send(()).unwrap();
        }
    });
    assert!(result.is_err() && meter.is_pattern);
    assert_eq!(meter.length, 2 * MIB as u64);
    daemon.logged(&["200", "response_stalled"]);
}
