//! Clients that hold a body back until the backend asks for it, and informational responses.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tests::client::head_bytes;
use tests::wait::LONG;
use tests::{CannedResponse, Origin};

use super::{SMUGGLED, assert_not_blamed, daemon_of, daemon_with_listener, read_all, read_exactly};
use crate::data_path::{OK, backend, read_head};

const EXPECT: (&str, &str) = ("Expect", "100-continue");
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
const EARLY_HINTS: &[u8] = b"HTTP/1.1 103 Early Hints\r\n\r\n";

#[test]
fn a_final_response_to_a_body_that_is_held_back_ends_both_connections() {
    let (sender, rest) = mpsc::channel();
    let address = backend(move |index, mut stream| {
        while let Some(head) = read_head(&mut stream) {
            if head.starts_with("PUT") {
                stream.write_all(b"HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno").unwrap();
                return sender.send((index, read_all(&mut stream).0)).unwrap();
            }
            stream.write_all(OK).unwrap();
        }
    });
    let (_lab, daemon) = daemon_of(&[address], "");
    let mut client = daemon.connect();
    client.send(head_bytes("PUT", "/", &[EXPECT], SMUGGLED.len())).unwrap();
    let response = client.response("PUT").unwrap();
    assert_eq!((response.status, response.closes()), (401, true));
    assert_eq!(response.informational, [0; 0]);
    // The bytes are the body or the next request, and the daemon cannot tell which.
    let _ = client.send(SMUGGLED);
    assert!(client.ends_within(LONG), "a second response");
    assert_eq!(rest.recv_timeout(LONG).unwrap(), (0, String::new()));
    assert_eq!(daemon.get("/").unwrap().text(), "ok");
    assert_eq!(daemon.metric("lb_upstream_connections_total", &["reused=\"true\""]), 0.0);
}

/// Starts a backend that sends these bytes in response to a head, and then waits.
fn silent_after(bytes: &'static [u8]) -> SocketAddr {
    backend(move |_, mut stream| {
        let _ = read_head(&mut stream);
        let _ = stream.write_all(bytes);
        let _ = stream.read(&mut [0]);
    })
}

/// Whether the client waits for the 100 or sends nothing after it, the backend is not at fault.
#[test]
fn a_client_that_holds_its_body_back_for_too_long_is_408_and_the_backend_is_not_blamed() {
    let short = "timeouts: {response: 1s}";
    let rows = [
        ("timeouts: {body: 1s}", "", &b""[..], &[][..]),
        ("timeouts: {body: 60s}", short, b"", &[]),
        ("timeouts: {body: 1s}", "", CONTINUE, &[100]),
        ("timeouts: {body: 1s}", "", EARLY_HINTS, &[103]),
    ];
    for (listener, pool, sent, informational) in rows {
        let address = silent_after(sent);
        let (_lab, daemon) = daemon_with_listener(listener, &[address], pool);
        let mut client = daemon.connect();
        client.send(head_bytes("POST", "/", &[EXPECT], 10)).unwrap();
        let response = client.response("POST").unwrap();
        assert_eq!((response.status, response.closes()), (408, true), "{listener} {pool}");
        assert_eq!(response.informational, informational, "{listener} {pool}");
        daemon.logged(&["408", "client_timeout"]);
        assert_not_blamed(&daemon, address);
    }
}

#[test]
fn a_body_is_sent_without_a_100_and_a_late_100_is_dropped() {
    let address = backend(|_, mut stream| {
        while let Some(head) = read_head(&mut stream) {
            assert!(head.contains("Expect: 100-continue"), "{head}");
            assert_eq!(read_exactly(&mut stream, 2), "ab");
            if head.starts_with("PUT /late") {
                stream.write_all(CONTINUE).unwrap();
            }
            stream.write_all(OK).unwrap();
        }
    });
    let (_lab, daemon) = daemon_of(&[address], "");
    let mut client = daemon.connect();
    for target in ["/never", "/late"] {
        let response = client.request("PUT", target, &[EXPECT], b"ab").unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{target}");
        assert_eq!(response.informational, [0; 0], "{target}");
        assert!(!response.closes(), "{target}");
    }
}

#[test]
fn informational_responses_do_not_restart_the_wait_for_the_final_one() {
    let address = backend(|_, mut stream| {
        let _ = read_head(&mut stream);
        while stream.write_all(EARLY_HINTS).is_ok() {
            thread::sleep(Duration::from_millis(300));
        }
    });
    let (_lab, daemon) = daemon_of(&[address], "timeouts: {response: 1s}");
    let response = daemon.get("/").unwrap();
    // With a restart, it would be a 502 after 16 of them.
    assert_eq!(response.status, 504, "{:?}", response.informational);
    assert!(response.informational.contains(&103), "{:?}", response.informational);
}

#[test]
fn a_failed_attempt_does_not_use_up_a_body_that_is_held_back() {
    let bad = silent_after(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n");
    let good = Origin::start("good");
    good.behave(tests::Behaviour::Respond(CannedResponse::ok("good")));
    let keys = "outlier_detection: {consecutive_failures: 0}";
    let (_lab, daemon) = daemon_of(&[bad, good.address], keys);
    // At least one of the two goes to the bad backend first.
    for target in ["/one", "/two"] {
        let mut client = daemon.connect();
        client.send(head_bytes("PUT", target, &[EXPECT], 3)).unwrap();
        assert_eq!(client.response_head().unwrap().0, 100);
        client.send("abc").unwrap();
        assert_eq!(client.response("PUT").unwrap().text(), "good");
        assert_eq!(good.received(target).body.start, b"abc");
    }
    assert!(daemon.metric("lb_upstream_retries_total", &[]) >= 1.0);
}
