//! Responses of backends: where they end, and what becomes of the connections.

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tests::client::head_bytes;
use tests::wait::LONG;
use tests::{Connection, Daemon};

use super::{daemon_of, exchange};
use crate::data_path::{OK, backend, read_head, reset};

/// An action of a backend after its response.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    /// Waits for the next request.
    Waits,
    /// Sends [`POISON`] when the response has arrived.
    Sends,
    /// Closes the connection.
    Closes,
    /// Resets the connection.
    Resets,
}

/// A method, the response to it, what the backend then does, and whether the connections of the backend and of the
/// client are kept.
type Row = (&'static str, String, Then, [bool; 2]);

const POISON: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";

/// Returns the number in the target `/NUMBER` of a request.
fn number_of(head: &str) -> Option<usize> {
    head.split(['/', ' ']).nth(2)?.parse().ok()
}

fn rows() -> Vec<Row> {
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let old = "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n";
    let both =
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    vec![
        ("GET", ok.to_owned(), Then::Waits, [true, true]),
        ("GET", format!("{ok}{POISON}"), Then::Waits, [false, true]),
        ("GET", ok.to_owned(), Then::Sends, [false, true]),
        ("GET", format!("HTTP/1.1 204 No\r\nContent-Length: 6\r\n\r\n{POISON}"), Then::Waits, [false, true]),
        ("GET", format!("HTTP/1.1 304 No\r\nContent-Length: 6\r\n\r\n{POISON}"), Then::Waits, [false, true]),
        ("HEAD", ok.to_owned(), Then::Waits, [false, true]),
        ("GET", ok.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"), Then::Waits, [false, true]),
        ("GET", format!("{old}\r\nok"), Then::Waits, [false, true]),
        ("GET", format!("{old}Connection: keep-alive\r\n\r\nok"), Then::Waits, [true, true]),
        ("GET", both.to_owned(), Then::Waits, [false, true]),
        ("GET", "HTTP/1.1 200 OK\r\n\r\nok".to_owned(), Then::Closes, [false, true]),
        ("POST", ok.to_owned(), Then::Waits, [false, false]),
    ]
}

/// After each row, another request shows whether the connection of the backend is used again.
#[test]
fn a_backend_connection_is_kept_only_after_an_unambiguous_end() {
    let served = Arc::new(AtomicUsize::new(0));
    let (sent, poisoned) = mpsc::channel();
    let latest = served.clone();
    let address = backend(move |index, mut stream| {
        while let Some(head) = read_head(&mut stream) {
            let Some(number) = number_of(&head) else {
                let own = format!("HTTP/1.1 200 OK\r\nX-Connection: {index}\r\nContent-Length: 2\r\n\r\nok");
                stream.write_all(own.as_bytes()).unwrap();
                continue;
            };
            let (_, response, then, _) = &rows()[number];
            latest.store(index, Ordering::SeqCst);
            stream.write_all(response.as_bytes()).unwrap();
            match then {
                Then::Waits => {}
                Then::Closes | Then::Resets => return,
                Then::Sends => {
                    thread::sleep(Duration::from_millis(100));
                    let _ = stream.write_all(POISON.as_bytes());
                    sent.send(()).unwrap();
                }
            }
        }
    });
    let (_lab, daemon) = daemon_of(&[address], "");
    for (number, (method, response, then, keeps)) in rows().iter().enumerate() {
        let mut client = daemon.connect();
        let length = if *method == "POST" { 3 } else { 0 };
        client.send(head_bytes(method, &format!("/{number}"), &[], length)).unwrap();
        let received = client.response(method).unwrap();
        if *then == Then::Sends {
            poisoned.recv_timeout(LONG).unwrap();
        }
        daemon.settle();
        let next = daemon.get("/x").unwrap();
        daemon.settle();
        assert_eq!(next.text(), "ok", "after row {number}: {response}");
        let is_used_again = next.header("x-connection") == Some(&served.load(Ordering::SeqCst).to_string());
        assert_eq!([is_used_again, !received.closes()], *keeps, "row {number}: {response}");
        if !received.closes() {
            assert_eq!(client.get("/x").unwrap().text(), "ok", "after row {number}: {response}");
            daemon.settle();
        }
    }
}

/// Starts a backend that sends the response with the number that a request names.
fn numbered(responses: Vec<(String, Then)>) -> SocketAddr {
    backend(move |_, mut stream| {
        while let Some(head) = read_head(&mut stream) {
            let (response, then) = &responses[number_of(&head).unwrap()];
            // The daemon may stop to read.
            let _ = stream.write_all(response.as_bytes());
            match then {
                Then::Closes => return,
                Then::Resets => return reset(stream),
                Then::Waits | Then::Sends => {}
            }
        }
    })
}

/// Starts a daemon before a backend of these responses.
fn daemon_before(responses: &[&str]) -> (tests::Lab, Daemon) {
    let waiting = responses.iter().map(|response| ((*response).to_owned(), Then::Waits));
    daemon_of(&[numbered(waiting.collect())], "retries: {attempts: 0}")
}

#[test]
fn a_truncated_response_never_looks_complete() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let until_close = "HTTP/1.1 200 OK\r\n\r\nhello";
    let known = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello";
    let address = numbered(vec![
        (chunked.to_owned(), Then::Closes),
        (format!("{chunked}0\r\na b: c\r\n\r\n"), Then::Waits),
        (until_close.to_owned(), Then::Resets),
        (known.to_owned(), Then::Closes),
        (until_close.to_owned(), Then::Closes),
    ]);
    let (_lab, daemon) = daemon_of(&[address], "");
    let get = |number: usize, version: &str| {
        let close = "Host: a\r\nConnection: close\r\n\r\n";
        let (response, end) = exchange(&daemon, &format!("GET /{number} {version}\r\n{close}"));
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{response}");
        (body.to_owned(), end)
    };
    let reset = Some(ErrorKind::ConnectionReset);
    for number in 0..3 {
        assert_eq!(get(number, "HTTP/1.1"), ("5\r\nhello\r\n".to_owned(), None), "{number}");
        assert_eq!(get(number, "HTTP/1.0"), ("hello".to_owned(), reset), "{number}");
    }
    for version in ["HTTP/1.1", "HTTP/1.0"] {
        assert_eq!(get(3, version), ("hello".to_owned(), None), "the length shows it");
    }
    assert_eq!(get(4, "HTTP/1.1"), ("5\r\nhello\r\n0\r\n\r\n".to_owned(), None));
    assert_eq!(get(4, "HTTP/1.0"), ("hello".to_owned(), None));
}

/// Returns the final response to a request for this number, and the informational ones before it.
fn get(daemon: &Daemon, number: usize, version: &str) -> tests::Response {
    let mut client = daemon.connect();
    client.send(format!("GET /{number} {version}\r\nHost: a\r\n\r\n")).unwrap();
    client.response("GET").unwrap()
}

#[test]
fn after_an_informational_response_no_other_backend_is_tried() {
    let early = "HTTP/1.1 103 Early Hints\r\nConnection: x-a\r\nX-A: b\r\nX-B: c\r\nKeep-Alive: 1\r\n\
                 Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n";
    let bad = numbered(vec![(early.to_owned(), Then::Resets)]);
    let good = backend(|_, mut stream| {
        while read_head(&mut stream).is_some() {
            stream.write_all(OK).unwrap();
        }
    });
    let keys = "outlier_detection: {consecutive_failures: 0}";
    let (_lab, daemon) = daemon_of(&[bad, good], keys);
    // One of two requests goes to the first backend first.
    let of = |version: &str| [get(&daemon, 0, version), get(&daemon, 0, version)];
    let mut new = of("HTTP/1.1").map(|response| (response.status, response.informational));
    new.sort();
    assert_eq!(new, [(200, vec![]), (502, vec![103])]);
    let old = of("HTTP/1.0").map(|response| (response.status, response.informational));
    assert_eq!(old, [(200, vec![]), (200, vec![])], "nothing had reached the client");
    let informational = || -> Option<String> {
        let mut client = daemon.connect();
        client.send("GET /0 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let (status, head) = client.response_head().unwrap();
        (status == 103).then(|| String::from_utf8(head.raw).unwrap().to_lowercase())
    };
    let head = informational().or_else(informational).unwrap();
    assert_eq!(head, "http/1.1 103 early hints\r\nx-b: c\r\n\r\n");
}

#[test]
fn responses_without_a_body_have_no_coding_and_a_length_only_where_it_says_something() {
    let chunked = |status: &str| format!("HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n");
    let known = |status: &str| format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n");
    let responses = [chunked("200 OK"), chunked("304 No"), known("304 No"), known("204 No"), known("200 OK")];
    let (_lab, daemon) = daemon_before(&responses.each_ref().map(String::as_str));
    let rows = [("HEAD", None), ("GET", None), ("GET", Some("5")), ("GET", None), ("HEAD", Some("5"))];
    // One connection shows that no byte of a body follows.
    let mut client = daemon.connect();
    for (number, (method, length)) in rows.into_iter().enumerate() {
        let response = client.request(method, &format!("/{number}"), &[], b"").unwrap();
        let row = &responses[number];
        assert!(!response.closes(), "{row}");
        assert_eq!(response.header("content-length"), length, "{row}");
        assert_eq!(response.header("transfer-encoding"), None, "{row}");
    }
}

#[test]
fn limits_and_line_ends_of_response_heads() {
    let fields = |count: usize| {
        let fields: String = (1..count).map(|number| format!("X-{number}: 1\r\n")).collect();
        format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{fields}\r\n")
    };
    let head_of = |size: usize| {
        let frame = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: \r\n\r\n".len();
        format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: {}\r\n\r\n", "x".repeat(size - frame))
    };
    let rows = [
        (fields(256), 200),
        (fields(257), 502),
        (head_of(65_536), 200),
        (head_of(65_537), 502),
        ("HTTP/1.1 799 Odd\r\nContent-Length: 0\r\n\r\n".to_owned(), 799),
        ("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n".to_owned(), 200),
        ("HTTP/1.1 200 OK\nContent-Length: 0\n\n".to_owned(), 502),
        ("HTTP/1.1 200 OK\r\nA: b\nContent-Length: 0\r\n\r\n".to_owned(), 502),
        ("HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n".to_owned(), 502),
        ("HTTP/1.1 200 OK\r\nA : b\r\nContent-Length: 0\r\n\r\n".to_owned(), 502),
        ("HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(), 502),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n".to_owned(), 502),
    ];
    let (_lab, daemon) = daemon_before(&rows.each_ref().map(|(response, _)| response.as_str()));
    for (number, (response, status)) in rows.iter().enumerate() {
        let shown = response.chars().take(60).collect::<String>();
        assert_eq!(get(&daemon, number, "HTTP/1.1").status, *status, "{number}: {shown}");
    }
}

/// Sends a request for this number on a kept connection. Returns the upgrade and whether `Connection` names it.
fn demanded(client: &mut Connection, number: usize) -> (Option<String>, bool) {
    let response = client.get(&format!("/{number}")).unwrap();
    (response.header("upgrade").map(str::to_owned), response.head.lists("connection", "upgrade"))
}

#[test]
fn only_a_response_that_demands_another_protocol_keeps_its_upgrade() {
    let rest = "Connection: Upgrade\r\nUpgrade: foo/2\r\nContent-Length: 0\r\n\r\n";
    let responses = ["426 Upgrade Required", "200 OK"].map(|status| format!("HTTP/1.1 {status}\r\n{rest}"));
    let (_lab, daemon) = daemon_before(&responses.each_ref().map(String::as_str));
    let mut client = daemon.connect();
    assert_eq!(demanded(&mut client, 0), (Some("foo/2".to_owned()), true));
    assert_eq!(demanded(&mut client, 1), (None, false));
}

#[test]
fn a_response_has_exactly_one_date() {
    let with = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 0\r\n\r\n");
    let own = "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n";
    let responses = [with(""), with(own), with(&format!("Connection: date\r\n{own}"))];
    let (_lab, daemon) = daemon_before(&responses.each_ref().map(String::as_str));
    for (number, response) in responses.iter().enumerate() {
        let received = get(&daemon, number, "HTTP/1.1");
        assert_eq!(received.head.all("date").len(), 1, "{response}");
        let is_passed = received.header("date").unwrap().contains("1970");
        assert_eq!(is_passed, number == 1, "{response}");
    }
}
