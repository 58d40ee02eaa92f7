//! Heads of requests as backends receive them, and heads that are refused.

use tests::{Behaviour, CannedResponse, Lab, Origin};

use crate::data_path::{Echoing, UPGRADE};
use crate::pool;

#[test]
fn methods_targets_and_fields_leave_as_they_came() {
    let lab = Echoing::start();
    let head = lab.forwarded("M-SEARCH / HTTP/1.1\r\nHost: a\r\nVia: 1.0 x\r\n\r\n");
    assert!(head.starts_with("M-SEARCH / HTTP/1.1\r\n"), "{head}");
    assert_eq!(head.to_lowercase().matches("via").count(), 1, "{head}");
    assert!(head.contains("\r\nVia: 1.0 x\r\n"), "{head}");
    let head = lab.forwarded("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(head.starts_with("OPTIONS * HTTP/1.1\r\n"), "{head}");

    let mut client = lab.daemon.connect();
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-B: \xff\x80\r\n\r\n").unwrap();
    let body = client.response("GET").unwrap().body;
    assert!(body.windows(9).any(|bytes| bytes == b"X-B: \xff\x80\r\n"), "{}", String::from_utf8_lossy(&body));
    for method in ["GET", "DELETE", "OPTIONS"] {
        let target = format!("/{method}");
        assert_eq!(client.request(method, &target, &[], b"abc").unwrap().status, 200);
        assert_eq!(lab.origin.received(&target).body.start, b"abc");
    }
}

#[test]
fn routes_match_the_path_without_its_dots_and_the_backend_gets_it_as_sent() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    origin.behave(Behaviour::Echo);
    let routes = "routes:\n  - {match: {path_prefix: /a}, pool: web}\n";
    let daemon = lab.start(&format!("{}{routes}", pool(&[&origin], "")));
    let send = |line: &str| {
        let mut client = daemon.connect();
        client.send(format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n")).unwrap();
        let response = client.response("GET").unwrap();
        (response.status, response.text().lines().next().unwrap_or_default().to_owned())
    };
    let line = "GET /b/../a/%2e/x?y=/..";
    assert_eq!(send(line), (200, format!("{line} HTTP/1.1")));
    for (line, status) in
        [("GET /a/../b", 404), ("GET /a/%2E%2e/b", 404), ("OPTIONS *", 404), ("GET /..", 400)]
    {
        assert_eq!(send(line).0, status, "{line}");
    }
    assert_eq!(origin.requests(), 1);
}

#[test]
fn features_that_are_missing_have_statuses_of_their_own() {
    let lab = Echoing::start();
    let of = |line: &str, fields: &str| format!("{line}\r\nHost: a\r\n{fields}\r\n");
    let post = "POST / HTTP/1.1";
    let expects = of(post, "Content-Length: 1\r\nExpect: x\r\n");
    lab.refuses(&expects, 417, "bad_expect");
    lab.refuses(&of(post, "Transfer-Encoding: gzip, chunked\r\n"), 501, "unsupported_coding");
    lab.refuses(&of("GET / HTTP/1.2", ""), 505, "unsupported_version");
    lab.refuses(&of(&format!("{} / HTTP/1.1", "A".repeat(33)), ""), 501, "method_too_long");
    lab.forwarded(&of(&format!("{} / HTTP/1.1", "A".repeat(32)), ""));
}

#[test]
fn an_empty_body_with_a_length_is_no_body() {
    let lab = Echoing::start();
    let head = lab.forwarded(&format!("GET / HTTP/1.1\r\n{UPGRADE}Content-Length: 0\r\n\r\n"));
    assert!(head.contains("\r\nUpgrade: websocket\r\n"), "{head}");
    let expects = "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n";
    let head = lab.forwarded(expects);
    assert!(!head.contains("Expect") && head.contains("Content-Length: 0"), "{head}");
}

#[test]
fn credentials_and_bodies_are_in_no_log_at_any_level() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    origin.behave(Behaviour::Respond(CannedResponse::ok("secret-1").with("Set-Cookie", "a=secret-2")));
    let daemon = lab.start(&format!("log_level: trace\n{}", pool(&[&origin], "")));
    let headers = [("Authorization", "Bearer secret-3"), ("Cookie", "a=secret-4")];
    let response = daemon.connect().request("POST", "/seen", &headers, b"secret-5").unwrap();
    assert_eq!(response.text(), "secret-1");
    // A rejected head is logged, too.
    let bad = "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: secret-6\r\nBad : secret-7\r\n\r\n";
    daemon.connect().send(bad).unwrap();
    daemon.logged(&["bad_field"]);
    daemon.logged(&["/seen", "200"]);
    let log = daemon.log();
    assert!(!log.contains("secret"), "{log}");
}
