//! Hostile bytes: what clients and backends send ends no line of a log, commands no terminal, is in no response of the
//! daemon's own, and is no label of a metric.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::Value;
use tests::client::Connection;
use tests::daemon::path_str;
use tests::wait::{self, LONG};
use tests::{Daemon, Lab, Origin};

use crate::data_path::{backend, read_head};
use crate::{pool, pool_of};

/// A word that no output contains unless a client has sent it.
const MARK: &str = "FORGED";

/// Bytes that end a line, a quoted text or a JSON string, or that a terminal obeys.
const PREFIXES: [&[u8]; 15] = [
    b"",
    b"\r\n2026-01-01T00:00:00.000Z 10.0.0.1 ",
    b"\n",
    b"\r",
    b"\"",
    b"\\\"",
    b"\0",
    b"\x08",
    b"\x1b[31m",
    b"\x1b]0;",
    b"\x7f",
    b"\xff\xfe",
    // One of the control characters beyond ASCII, the line separator, and the override of the direction.
    b"\xc2\x9b",
    b"\xe2\x80\xa8",
    b"\xe2\x80\xae",
];

/// Requests with `@` at each place that the daemon reads or could log.
const REQUESTS: [&str; 32] = [
    "G@ET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /@ HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /%0d%0a%00@ HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /?@ HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET http://a@/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET ftp@://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1@\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a@\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX@: b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX_Forwarded_@: b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: @\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nReferer: @\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: @\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: @\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: @\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1, @\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Host: @\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: @\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nForwarded: for=@\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nCookie: lb_session=@\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX-Lb-Explain: @\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: @\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: @\r\n\r\n",
    "GET /none HTTP/1.1\r\nHost: a\r\nX-Lb-Explain: @\r\n\r\n",
    "GET /none/@ HTTP/1.1\r\nHost: a\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: a\r\nMax-Forwards: @\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nExpect: @\r\nContent-Length: 1\r\n\r\na",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: @\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: @\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;x=@\r\na\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n@\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: @\r\n\r\n",
];

/// Returns all requests with all prefixes, each followed by `mark`.
fn requests(mark: &str) -> Vec<Vec<u8>> {
    let filled = |request: &str, prefix: &[u8]| {
        let (before, after) = request.split_once('@').unwrap();
        [before.as_bytes(), prefix, mark.as_bytes(), after.as_bytes()].concat()
    };
    REQUESTS.iter().flat_map(|request| PREFIXES.map(|prefix| filled(request, prefix))).collect()
}

/// Sends each request on a connection of its own, and asserts that no response contains `mark`. Returns their number.
fn send_all(daemon: &Daemon, mark: &str) -> usize {
    let requests = requests(mark);
    for request in &requests {
        let text = String::from_utf8_lossy(request).into_owned();
        let mut client = daemon.connect();
        client.send(request).unwrap();
        let response = client.response("GET").unwrap_or_else(|error| panic!("{text:?}: {error:?}"));
        let received = [response.head.raw, response.body].concat();
        let received = String::from_utf8_lossy(&received).into_owned();
        assert!(!received.contains(mark), "{text:?}: {received:?}");
        if response.status >= 400 {
            let (_, said) = response.head.start.split_once(' ').unwrap();
            assert!(received.ends_with(&format!("\r\n\r\n{said}\n")), "{text:?}: {received:?}");
        }
    }
    requests.len()
}

/// A daemon that trusts the test as a proxy, has sessions, and logs everything.
fn daemon_of(lab: &Lab, origin: &Origin, format: &str, path: &Path) -> Daemon {
    let log = format!("access_log: {{format: {format}, path: {}}}\n", path.display());
    let routes =
        "routes:\n  - {match: {path: /}, pool: web}\n  - {match: {path_prefix: /FORGED}, pool: web}\n";
    let pool = pool(&[origin], "sticky: {cookie: lb_session}");
    lab.start(&format!("log_level: trace\ntrusted_proxies: [127.0.0.0/8]\n{log}{pool}{routes}"))
}

/// Waits until the access log has a line for each request, and returns them.
#[track_caller]
fn lines(path: &Path, count: usize) -> Vec<String> {
    let read = || fs::read(path).unwrap_or_default();
    let has_all = || read().iter().filter(|byte| **byte == b'\n').count() >= count;
    wait::until(LONG, "each request has a line", has_all);
    let text = String::from_utf8(read()).expect("the access log is UTF-8");
    let lines: Vec<String> = text.split_terminator('\n').map(str::to_owned).collect();
    assert_eq!(lines.len(), count, "requests have several lines");
    lines
}

/// Asserts that a terminal shows a text as it is: no control character, no separator of lines, no change of direction.
#[track_caller]
fn assert_plain(what: &str, text: &str) {
    let is_bad = |c: char| {
        (c.is_control() && c != '\n') || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
    };
    let bad = text.lines().find(|line| line.contains(is_bad));
    assert!(bad.is_none(), "{what}: {bad:?}");
}

#[test]
fn a_client_can_forge_no_line_of_the_text_log_and_no_response() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let path = lab.path("access.log");
    let daemon = daemon_of(&lab, &origin, "text", &path);
    let count = send_all(&daemon, MARK);
    for line in lines(&path, count) {
        assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line:?}");
        assert!(line.starts_with("20") && line.contains(" listener="), "{line}");
        // A quote in a value is escaped, so every second part is outside of the quotes.
        assert!(line.split('"').step_by(2).all(|outside| !outside.contains(MARK)), "{line}");
    }
    let log = daemon.log();
    assert!(!log.contains(MARK), "{log}");
    assert_plain("the log", &log);
}

#[test]
fn a_client_can_forge_no_line_of_the_json_log() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let path = lab.path("access.log");
    let daemon = daemon_of(&lab, &origin, "json", &path);
    let count = send_all(&daemon, MARK);
    for line in lines(&path, count) {
        assert_plain("the access log", &line);
        let entry: Value = serde_json::from_str(&line).expect(&line);
        let entry = entry.as_object().unwrap();
        assert_eq!(entry.len(), 21, "{line}");
        let marked = entry.iter().filter(|(_, value)| value.to_string().contains(MARK));
        let of_client = ["method", "host", "path"];
        assert!({ marked }.all(|(key, _)| of_client.contains(&key.as_str())), "{line}");
    }
}

#[test]
fn a_client_can_choose_no_label_of_a_metric() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = daemon_of(&lab, &origin, "none", &lab.path("access.log"));
    let series = |text: &str| -> BTreeSet<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
    };
    send_all(&daemon, MARK);
    daemon.settle();
    let before = daemon.metrics_text();
    send_all(&daemon, "ANOTHER");
    daemon.settle();
    let after = daemon.metrics_text();
    assert!(!after.contains(MARK) && !after.contains("ANOTHER"), "{after}");
    let new: Vec<_> = series(&after).difference(&series(&before)).cloned().collect();
    assert_eq!(new, [""; 0], "other requests have other series");
}

#[test]
fn the_metrics_address_writes_no_control_character_to_the_log() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = daemon_of(&lab, &origin, "none", &lab.path("access.log"));
    for request in requests(MARK) {
        let mut client = Connection::open(daemon.metrics).unwrap();
        client.send(&request).unwrap();
        client.finish_sending();
        // Some of them are no requests, and get no response.
        let _ = client.response("GET").map(|response| {
            let said = String::from_utf8_lossy(&response.body).into_owned();
            assert!(!said.contains(MARK), "{said}");
        });
    }
    assert!(daemon.read("/readyz").is_ok_and(|response| response.status == 200));
    assert_plain("the log", &daemon.log());
}

#[test]
fn malformed_requests_to_the_metrics_address_are_not_logged() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let mut daemon = lab.start(&pool(&[&origin], ""));
    for request in ["FORGED\r\n\r\n", "GET / HTTP/1.1\r\nFORGED\r\n\r\n", "GET / FORGED\r\n\r\n"] {
        let mut client = Connection::open(daemon.metrics).unwrap();
        client.send(request).unwrap();
        assert!(!client.response("GET").is_ok_and(|response| response.status < 400), "{request:?}");
    }
    // The end of the process writes all lines.
    assert_eq!(daemon.stop(), Some(0));
    assert!(!daemon.log().contains(MARK), "{}", daemon.log());
}

/// Responses to health checks and requests. None of them is valid HTTP.
const RESPONSES: [&[u8]; 6] = [
    b"HTTP/1.1 200 \x1b[31mFORGED\r\n\r\n",
    b"HTTP/1.1 \x1b[31m\r\nFORGED\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX\x1b[31m: FORGED\r\n\r\n",
    b"\x1b]0;FORGED\x07\xc2\x9b\xe2\x80\xae\r\n\r\n",
    b"HTTP/1.1 503 No\r\nX: \x1b[31m\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\x1b[31mFORGED\r\n",
];

#[test]
fn a_backend_writes_no_control_character_to_the_log_the_status_and_explanations() {
    let lab = Lab::new();
    let backends = RESPONSES.map(|response| {
        backend(move |_, mut stream| {
            let _ = read_head(&mut stream);
            let _ = stream.write_all(response);
        })
    });
    let check = "health_check: {type: http, expect_body: ok, interval: 200ms, fast_interval: 200ms, fall: 1}";
    let daemon = lab.start_listening(&format!("log_level: trace\n{}", pool_of(&backends, check)));
    wait::until(LONG, "all backends are down", || daemon.pool_status("web")["ready"] == 0);
    for _ in 0..12 {
        // The client sees the end of its connection where a response had begun.
        assert!(!daemon.get("/").is_ok_and(|response| response.status < 500));
    }
    for document in ["/api/v1/status", "/api/v1/events", "/api/v1/explain", "/readyz?verbose", "/metrics"] {
        let text = daemon.read(document).unwrap().text();
        assert_plain(document, &text);
        // A JSON string could hide the character from the text, and show it to a person.
        assert!(!text.contains("\\u001b") && !text.contains("\\u009b"), "{document}: {text}");
    }
    for subcommand in ["status", "events", "explain"] {
        let said = lab.run(&[subcommand, "-c", path_str(&lab.path("conf.yaml"))]);
        assert_plain(subcommand, &said.stdout);
    }
    assert_plain("the log", &daemon.log());
}
