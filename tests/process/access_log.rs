//! The access log, which has one line per request, whether it succeeds or fails.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tests::wait::{self, LONG};
use tests::{Lab, Origin, Signal};

use crate::pool;

/// The section `access_log` that writes to the file `path`.
fn to_file(format: &str, path: &Path) -> String {
    format!("access_log: {{format: {format}, path: {}}}\n", path.display())
}

/// Waits until a log has `count` lines, and returns them.
#[track_caller]
fn lines(path: &Path, count: usize) -> Vec<String> {
    let read = || fs::read_to_string(path).unwrap_or_default();
    wait::until(LONG, &format!("the access log has {count} lines"), || read().lines().count() >= count);
    let lines: Vec<String> = read().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), count, "{lines:#?}");
    lines
}

#[test]
fn the_text_format_has_one_line_per_request_with_every_field() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let path = lab.path("access.log");
    let daemon = lab.start(&format!("{}{}", to_file("text", &path), pool(&[&origin], "")));
    daemon.connect().request("POST", "/path?secret=1", &[("Host", "shop.test")], b"body").unwrap();
    let line = &lines(&path, 1)[0];
    let backend = origin.address.to_string();
    for part in [
        "127.0.0.1",
        "POST shop.test/path HTTP/1.1",
        " 200 ",
        "web",
        &backend,
        "tries=1",
        "reused=no",
        "ttfb=",
    ] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    assert!(!line.contains("secret"), "the query is in {line}");
}

#[test]
fn the_json_format_has_one_object_per_request_with_every_field() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let path = lab.path("access.log");
    let daemon = lab.start(&format!("{}{}", to_file("json", &path), pool(&[&origin], "")));
    let mut client = daemon.connect();
    client.request("PUT", "/a?secret=1", &[("Host", "shop.test")], b"body").unwrap();
    client.get("/b").unwrap();
    let entries = lines(&path, 2);
    let entries: Vec<Value> = entries.iter().map(|line| serde_json::from_str(line).expect(line)).collect();
    let first = &entries[0];
    for (key, value) in [
        ("client", "127.0.0.1"),
        ("method", "PUT"),
        ("host", "shop.test"),
        ("path", "/a"),
        ("protocol", "HTTP/1.1"),
        ("pool", "web"),
        ("backend", &origin.address.to_string()),
    ] {
        assert_eq!(first[key], value, "{key} of {first}");
    }
    assert_eq!(
        (&first["status"], &first["tries"], &first["reused"]),
        (&200.into(), &1.into(), &false.into())
    );
    assert_eq!((&first["bytes_in"], &first["bytes_out"]), (&4.into(), &3.into()));
    assert!(first["duration_ms"].as_f64() >= first["ttfb_ms"].as_f64(), "{first}");
    assert!(first["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{first}");
    assert!(first["reason"].is_null(), "{first}");
    assert_eq!(entries[1]["reused"], true, "{}", entries[1]);
}

#[test]
fn failed_requests_are_logged_with_their_reason() {
    let (lab, down) = (Lab::new(), Origin::refusing("down"));
    let path = lab.path("access.log");
    let routes = "routes:\n  - {match: {path_prefix: /down}, pool: web}\n";
    let pools = pool(&[&down], "");
    let daemon = lab.start(&format!("{}{pools}{routes}", to_file("json", &path)));
    assert_eq!(daemon.get("/down").unwrap().status, 502);
    assert_eq!(daemon.get("/nowhere").unwrap().status, 404);
    let entries = lines(&path, 2);
    let mut entries: Vec<Value> =
        entries.iter().map(|line| serde_json::from_str(line).expect(line)).collect();
    // A line is written after the response, so two connections write theirs in any order.
    entries.sort_by_key(|entry| entry["status"].as_u64().map(std::cmp::Reverse));
    assert_eq!((&entries[0]["status"], &entries[1]["status"]), (&502.into(), &404.into()));
    assert_eq!(entries[0]["backend"], down.address.to_string());
    for entry in &entries {
        assert!(entry["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{entry}");
    }
    assert_ne!(entries[0]["reason"], entries[1]["reason"]);
}

#[test]
fn sigusr1_reopens_the_access_log_and_loses_no_line() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let (path, moved) = (lab.path("access.log"), lab.path("access.log.1"));
    let daemon = lab.start(&format!("{}{}", to_file("text", &path), pool(&[&origin], "")));
    daemon.get("/before").unwrap();
    lines(&path, 1);
    fs::rename(&path, &moved).unwrap();
    daemon.get("/between").unwrap();
    lines(&moved, 2);
    daemon.signal(Signal::SIGUSR1);
    wait::until(LONG, "the file exists again", || path.exists());
    daemon.get("/after").unwrap();
    assert!(lines(&path, 1)[0].contains("/after"));
    lines(&moved, 2);
}

#[test]
fn sigusr1_reopens_the_error_log() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.daemonize(&pool(&[&origin], ""));
    let (path, moved) = (lab.path("error.log"), lab.path("error.log.1"));
    fs::rename(&path, &moved).unwrap();
    daemon.process.signal(Signal::SIGUSR1);
    wait::until(LONG, "the file exists again", || path.exists());
    daemon.process.signal(Signal::SIGTERM);
    daemon.process.wait_gone(LONG);
    assert!(!fs::read_to_string(&path).unwrap().is_empty(), "the new file lacks the last lines");
}

#[test]
fn format_none_writes_nothing_and_the_default_path_is_standard_output() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.start(&format!("access_log: {{format: none}}\n{}", pool(&[&origin], "")));
    daemon.get("/silent").unwrap();
    drop(daemon);
    let mut daemon = lab.start(&format!("access_log: {{format: json}}\n{}", pool(&[&origin], "")));
    daemon.get("/spoken").unwrap();
    daemon.logged(&["\"path\":\"/spoken\""]);
    assert_eq!(daemon.stop(), Some(0));
    assert!(!daemon.log().contains("/silent"), "{}", daemon.log());
}

#[test]
fn client_input_stays_within_its_log_line() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let path = lab.path("access.log");
    let daemon = lab.start(&format!("{}{}", to_file("json", &path), pool(&[&origin], "")));
    daemon.connect().request("GET", "/a%0a\"b", &[("Host", "a\"b")], b"").unwrap();
    daemon.get("/c").unwrap();
    for line in lines(&path, 2) {
        serde_json::from_str::<Value>(&line).expect(&line);
    }
}
