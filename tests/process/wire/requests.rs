//! Requests that end early, and the bytes behind them.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use tests::client::head_bytes;
use tests::wait::{self, LONG};
use tests::{Behaviour, CannedResponse, Gate, Lab, Origin};

use super::{SMUGGLED, daemon_of, daemon_with_listener, read_all, read_exactly};
use crate::data_path::{Echoing, OK, backend, connect, read_head};
use crate::pool;

#[test]
fn bytes_behind_the_last_request_are_no_request() {
    let lab = Echoing::start();
    let rows = [
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
        ("GET /first HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 200),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ];
    for (request, status) in rows {
        let mut client = lab.daemon.connect();
        client.send(format!("{request}{SMUGGLED}")).unwrap();
        let response = client.response("GET").unwrap();
        assert_eq!((response.status, response.closes()), (status, true), "{request}");
        assert_eq!(response.header("allow").is_some(), status == 405, "{request}");
        assert!(client.ends_within(LONG), "a second response to {request}");
    }
    assert!(lab.origin.seen().iter().all(|seen| seen.target() != "/smuggled"));
}

#[test]
fn a_body_that_was_not_read_is_no_request() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let routes = "routes:\n  - {match: {path_prefix: /a}, pool: web}\n";
    let daemon = lab.start(&format!("{}{routes}", pool(&[&origin], "")));
    let length = SMUGGLED.len();
    let expect = [("Expect", "100-continue")];
    for (headers, body) in [(&[][..], SMUGGLED), (&expect[..], "")] {
        let mut client = daemon.connect();
        client.send(head_bytes("POST", "/b", headers, length)).unwrap();
        client.send(body).unwrap();
        let response = client.response("POST").unwrap();
        assert_eq!((response.status, response.closes()), (404, true), "{headers:?}");
        assert_eq!(response.informational, [0; 0]);
        // Some clients send the body only now.
        let _ = client.send(SMUGGLED);
        assert!(client.ends_within(LONG), "{headers:?}");
    }
    let mut client = daemon.connect();
    assert_eq!(client.request("HEAD", "/b", &[], b"").unwrap().header("content-length"), Some("14"));
    assert!(!client.get("/b").unwrap().closes(), "it has no body");
    assert_eq!(origin.requests(), 0);
}

/// Sends a head and a first part of the body, waits until the backend has these bytes of it, and then sends the rest
/// and the end. Returns what else the backend receives, and the status.
fn leaves_behind(head: &str, part: &str, bytes: &'static str, rest: &str) -> (String, u16) {
    let (sender, received) = mpsc::channel();
    let address = backend(move |_, mut stream| {
        let _ = read_head(&mut stream);
        sender.send(read_exactly(&mut stream, bytes.len())).unwrap();
        sender.send(read_all(&mut stream).0).unwrap();
    });
    let (_lab, daemon) = daemon_of(&[address], "");
    let mut client = daemon.connect();
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n{part}")).unwrap();
    assert_eq!(received.recv_timeout(LONG).unwrap(), bytes);
    client.send(rest).unwrap();
    client.finish_sending();
    let response = client.response("POST").unwrap();
    assert!(response.closes(), "{head}");
    (received.recv_timeout(LONG).unwrap(), response.status)
}

#[test]
fn a_broken_upload_leaves_without_its_end() {
    let (chunked, chunk, leaves) = ("Transfer-Encoding: chunked", "3;x=y\r\nabc\r\n", "3\r\nabc\r\n");
    let broken = (String::new(), 400);
    assert_eq!(leaves_behind(chunked, chunk, leaves, ""), broken);
    assert_eq!(leaves_behind(chunked, chunk, leaves, "0\r\na b: c\r\n\r\n"), broken);
    assert_eq!(leaves_behind(chunked, chunk, leaves, "3\r\nabcd\r\n").1, 400);
    assert_eq!(leaves_behind("Content-Length: 10", "abc", "abc", ""), broken);
}

/// The request waits in the queue when its end is noticed, so no attempt reads its body.
#[test]
fn a_chunked_body_that_is_truncated_in_the_queue_is_400() {
    let gate = Gate::closed();
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    origin.behave(Behaviour::Held(gate.clone(), CannedResponse::ok("")));
    let limits = "limits: {max_requests: 1, queue: 1}\ntimeouts: {queue: 20s}";
    let daemon = lab.start(&pool(&[&origin], limits));
    let mut first = daemon.begin("/first");
    origin.received("/first");
    let mut client = daemon.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab").unwrap();
    client.finish_sending();
    assert_eq!(client.response("POST").unwrap().status, 400);
    gate.open();
    assert_eq!(first.response("GET").unwrap().status, 200);
}

#[test]
fn a_client_may_end_its_direction_once_the_response_has_begun() {
    let gate = Gate::closed();
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    origin.behave(Behaviour::HeldWithin(gate.clone(), [b"first".to_vec(), b"second".to_vec()]));
    let daemon = lab.start(&pool(&[&origin], ""));
    let mut client = connect(&daemon);
    client.write_all(b"GET /begun HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(read_head(&mut client).unwrap().starts_with("HTTP/1.1 200"));
    client.shutdown(Shutdown::Write).unwrap();
    gate.open();
    let (body, end) = read_all(&mut client);
    assert_eq!((body.as_str(), end), ("5\r\nfirst\r\n6\r\nsecond\r\n0\r\n\r\n", None));
    let line = daemon.logged(&["/begun", "200"]);
    assert!(!line.contains("client_gone"), "{line}");
}

#[test]
fn a_client_that_ends_its_direction_before_the_response_is_gone() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    origin.behave(Behaviour::Hang);
    let daemon = lab.start(&pool(&[&origin], ""));
    let client = daemon.begin("/early");
    origin.received("/early");
    client.finish_sending();
    daemon.logged(&["/early", "499", "client_gone"]);
    wait::until(LONG, "the backend is released", || origin.open_connections() == 0);
}

#[test]
fn an_empty_line_does_not_restart_the_idle_timeout() {
    let address = backend(|_, mut stream| {
        let _ = stream.read(&mut [0]);
    });
    let (_lab, daemon) = daemon_with_listener("timeouts: {idle: 2s}", &[address], "");
    let mut client = daemon.connect();
    let began = Instant::now();
    thread::sleep(Duration::from_millis(1500));
    client.send("\r\n").unwrap();
    assert!(client.ends_within(LONG));
    // With a restart, it would last for 3.5 s.
    assert!(began.elapsed() < Duration::from_millis(3200), "{:?}", began.elapsed());
}

#[test]
fn an_http_1_0_client_is_kept_only_if_it_asks_for_that() {
    let address = backend(|_, mut stream| {
        while read_head(&mut stream).is_some() {
            stream.write_all(OK).unwrap();
        }
    });
    let (_lab, daemon) = daemon_of(&[address], "");
    let mut client = daemon.connect();
    for _ in 0..2 {
        client.send("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n").unwrap();
        let response = client.response("GET").unwrap();
        assert_eq!((response.status, response.header("connection")), (200, Some("keep-alive")));
    }
    client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n").unwrap();
    assert!(client.response("GET").unwrap().closes());
    assert!(client.ends_within(LONG));
}
