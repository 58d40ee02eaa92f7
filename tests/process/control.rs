//! Changes of a running daemon, by subcommands and by requests on the control socket.

use std::cell::Cell;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::daemon::{Finished, View, path_str};
use tests::process::listening_sockets;
use tests::skip::unless_root;
use tests::wait::{self, LONG};
use tests::{Behaviour, CannedResponse, Connection, Daemon, Gate, Lab, LoadGenerator, Origin, Signal, ports};

use crate::{pool, tally};

/// Runs a subcommand for the daemon of this lab.
#[track_caller]
fn subcommand(lab: &Lab, words: &[&str]) -> Finished {
    let config = lab.path("conf.yaml");
    lab.run(&[words, &["-c", path_str(&config)]].concat())
}

/// Runs a subcommand that must succeed, and returns its standard output.
#[track_caller]
fn done(lab: &Lab, words: &[&str]) -> String {
    let finished = subcommand(lab, words);
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{words:?}: {finished:?}");
    finished.stdout
}

/// Runs a subcommand that must be refused, and returns its standard error.
#[track_caller]
fn refused(lab: &Lab, words: &[&str]) -> String {
    let finished = subcommand(lab, words);
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(2), ""), "{words:?}: {finished:?}");
    finished.stderr
}

/// Sends `requests` requests, and returns how many of them each origin serves.
fn names(view: &View, requests: usize) -> Vec<(String, usize)> {
    tally((0..requests).map(|_| view.get("/").unwrap().origin().to_owned()))
}

fn counted(expected: &[(&str, usize)]) -> Vec<(String, usize)> {
    expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

fn text(address: SocketAddr) -> String {
    address.to_string()
}

/// The permissions of a file.
fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Sends a request to the control socket with `curl`, and returns the status and the JSON document.
#[track_caller]
fn curl(lab: &Lab, arguments: &[&str], target: &str) -> (u16, Value) {
    let socket = lab.path("control.sock");
    let mut command = Command::new("curl");
    command.args(["--silent", "--max-time", "20", "--write-out", "\n%{http_code}", "--unix-socket"]);
    command.arg(socket).args(arguments).arg(format!("http://localhost{target}"));
    let output = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let (body, status) = output.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), serde_json::from_str(body).unwrap_or(Value::Null))
}

#[test]
fn backends_are_drained_disabled_and_used_again() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let daemon = lab.start(&pool(&[&one, &two], ""));
    let address = text(one.address);
    for (out, back, state) in [("drain", "undrain", "draining"), ("disable", "enable", "disabled")] {
        let said = done(&lab, &[out, "web", &address]);
        assert!(said.contains(&format!("{address}: in service -> {state}")), "{said}");
        assert_eq!(names(&daemon, 6), counted(&[("two", 6)]));
        let status = daemon.backend_status("web", one.address);
        assert_eq!((&status["state"], &status["runtime"]), (&json!(state), &json!(state)));
        assert!(done(&lab, &[out, "web", &address]).contains("nothing to change"));
        done(&lab, &[back, "web", &address]);
        assert_eq!(names(&daemon, 6), counted(&[("one", 3), ("two", 3)]));
        assert_eq!(daemon.backend_status("web", one.address)["runtime"], Value::Null);
    }
}

#[test]
fn sessions_stay_while_their_backend_drains_and_move_when_it_is_disabled() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let daemon = lab.start(&pool(&[&one, &two], "sticky: {cookie: lb}"));
    let first = daemon.get("/").unwrap();
    let cookie = first.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let (own, other) = if first.origin() == "one" { (&one, &two) } else { (&two, &one) };
    let again =
        || daemon.connect().request("GET", "/", &[("Cookie", &cookie)], b"").unwrap().origin().to_owned();
    done(&lab, &["drain", "web", &text(own.address)]);
    assert_eq!(again(), own.name());
    assert_eq!(names(&daemon, 5), counted(&[(other.name(), 5)]), "no new sessions");
    done(&lab, &["disable", "web", &text(own.address)]);
    assert_eq!(again(), other.name());
}

/// A daemon with two backends, each of which holds one request until [`let_go`](Held::let_go).
struct Held {
    lab: Lab,
    _daemon: Daemon,
    /// The address of the first backend.
    address: String,
    gate: Gate,
    requests: [Connection; 2],
    _origins: [Origin; 2],
}

impl Held {
    fn start() -> Self {
        let (lab, origins, gate) = (Lab::new(), [Origin::start("one"), Origin::start("two")], Gate::closed());
        let daemon = lab.start(&pool(&[&origins[0], &origins[1]], ""));
        for origin in &origins {
            origin.behave(Behaviour::Held(gate.clone(), CannedResponse::ok("held")));
        }
        let requests = [daemon.begin("/held"), daemon.begin("/held")];
        origins[0].received("/held");
        let address = text(origins[0].address);
        Self { lab, _daemon: daemon, address, gate, requests, _origins: origins }
    }

    fn let_go(mut self) {
        self.gate.open();
        for request in &mut self.requests {
            assert_eq!(request.response("GET").unwrap().text(), "held");
        }
    }
}

#[test]
fn drain_with_wait_returns_when_no_request_is_in_flight() {
    let held = Held::start();
    let late = subcommand(&held.lab, &["drain", "web", &held.address, "--wait", "--timeout", "200ms"]);
    assert_eq!(late.code, Some(1), "{late:?}");
    assert!(late.stderr.contains("still has requests in flight"), "{late:?}");
    std::thread::scope(|scope| {
        let began = Instant::now();
        let waiting =
            scope.spawn(|| (done(&held.lab, &["drain", "web", &held.address, "--wait"]), Instant::now()));
        wait::until(LONG, "the subcommand waits", || began.elapsed() > Duration::from_millis(300));
        let opened = Instant::now();
        held.gate.open();
        let (said, ended) = waiting.join().unwrap();
        assert!(ended >= opened, "the subcommand did not wait for the request");
        assert!(said.contains("is idle"), "{said}");
    });
    held.let_go();
}

#[test]
fn a_reload_drops_changes_of_operators_unless_keep_runtime_is_given() {
    let lab = Lab::new();
    let (one, two, three) = (Origin::start("one"), Origin::start("two"), Origin::start("three"));
    let daemon = lab.start(&pool(&[&one, &two], ""));
    done(&lab, &["weight", "web", &text(one.address), "4"]);
    assert_eq!(names(&daemon, 10), counted(&[("one", 8), ("two", 2)]));
    lab.config(&pool(&[&one, &two, &three], ""));
    let kept = done(&lab, &["reload", "--keep-runtime"]);
    assert!(kept.contains(&format!("+ pool web: backend {}", three.address)), "{kept}");
    assert_eq!(names(&daemon, 12), counted(&[("one", 8), ("three", 2), ("two", 2)]));
    let changes = daemon.status()["config"]["runtime_changes"].clone();
    assert_eq!(changes, json!([format!("pool web: backend {}: weight 4", one.address)]));
    let dropped = done(&lab, &["reload"]);
    let line = "weight 4 -> 1; this reload drops the run-time change (weight 4)";
    assert!(dropped.contains(line) && dropped.matches("weight 4").count() == 2, "{dropped}");
    assert_eq!(names(&daemon, 9), counted(&[("one", 3), ("three", 3), ("two", 3)]));
    assert_eq!(daemon.status()["config"]["runtime_changes"], json!([]));
}

#[test]
fn backends_are_added_and_removed_under_load_and_no_request_fails() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let daemon = lab.start(&pool(&[&one], ""));
    let load = LoadGenerator::start(lab.listener, 3, 0);
    let (first, second) = (text(one.address), text(two.address));
    for _ in 0..5 {
        done(&lab, &["add", "web", &second, "--weight", "3"]);
        assert_eq!(names(&daemon, 40).len(), 2);
        let removed = done(&lab, &["remove", "web", &first, "--wait"]);
        assert!(removed.contains("is idle"), "{removed}");
        assert_eq!(names(&daemon, 3), counted(&[("two", 3)]));
        done(&lab, &["add", "web", &first]);
        done(&lab, &["remove", "web", &second, "--wait"]);
    }
    let report = load.stop();
    assert_eq!((report.failed, report.reconnects), (0, 0), "{report:?}");
    assert_eq!(names(&daemon, 3), counted(&[("one", 3)]));
    assert_eq!(daemon.status()["config"]["runtime_changes"], json!([]), "the state matches the file");
}

#[test]
fn impossible_changes_are_refused_with_a_remedy() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.start(&pool(&[&origin], ""));
    let address = text(origin.address);
    assert!(refused(&lab, &["drain", "api", &address]).contains("there is no pool api; the pools are: web"));
    assert!(refused(&lab, &["drain", "web", "10.9.9.9:80"]).contains(&format!("it has: {address}")));
    assert!(refused(&lab, &["remove", "web", &address]).contains("last backend"));
    assert!(refused(&lab, &["add", "web", &address]).contains("already"));
    // The configuration file would be refused for these addresses too.
    assert!(refused(&lab, &["add", "web", "0.0.0.0:80"]).contains("name the address of one machine"));
    assert!(refused(&lab, &["add", "web", "127.0.0.1:0"]).contains("the port must be from 1 to 65535"));
    assert!(refused(&lab, &["add", "web", "[::ffff:127.0.0.1]:80"]).contains("write 127.0.0.1:80"));
    assert!(refused(&lab, &["log-level", "shared=loud"]).contains("loud"));
    assert_eq!(names(&daemon, 3), counted(&[("one", 3)]));
    let no_daemon = lab.run(&["drain", "web", &address, "--socket", "/nowhere/control.sock"]);
    assert_eq!(no_daemon.code, Some(1), "{no_daemon:?}");
    assert!(no_daemon.stderr.contains("no daemon listens at"), "{no_daemon:?}");
}

#[test]
fn the_last_backend_in_service_may_be_disabled_with_a_warning() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.start(&pool(&[&origin], ""));
    let said = done(&lab, &["disable", "web", &text(origin.address)]);
    assert!(said.contains("! pool web: no backend is in service now"), "{said}");
    assert_eq!(daemon.get("/").unwrap().status, 503);
}

#[test]
fn reload_reports_an_invalid_file_as_check_does() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.start(&pool(&[&origin], ""));
    lab.config(&pool(&[&origin], "polcy: maglev"));
    let checked = subcommand(&lab, &["check"]);
    let reloaded = subcommand(&lab, &["reload"]);
    assert_eq!((reloaded.code, &reloaded.stderr), (Some(2), &checked.stderr));
    assert!(reloaded.stderr.contains("did you mean `policy`"), "{reloaded:?}");
    assert_eq!(daemon.status()["config"]["last_reload"]["result"], "refused");
    let screen = done(&lab, &["status"]);
    assert!(screen.contains("1 problem:") && screen.contains("the last reload was rejected"), "{screen}");
}

#[test]
fn a_dry_run_reports_what_would_change_and_changes_nothing() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let daemon = lab.start(&pool(&[&one], ""));
    let before = daemon.status()["config"].clone();
    lab.config(&pool(&[&two], "policy: maglev"));
    let said = done(&lab, &["reload", "--dry-run"]);
    for line in [
        "~ pool web: policy changed".to_owned(),
        format!("- pool web: backend {}", one.address),
        format!("+ pool web: backend {}", two.address),
    ] {
        assert!(said.contains(&line), "{said}");
    }
    lab.config(&format!("threads: 3\n{}", pool(&[&two], "")));
    let refused = subcommand(&lab, &["reload", "--dry-run"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stdout.contains(&format!("+ pool web: backend {}", two.address)), "{refused:?}");
    assert!(refused.stderr.contains("threads") && refused.stderr.contains("upgrade"), "{refused:?}");
    assert_eq!(daemon.status()["config"], before);
    assert_eq!(names(&daemon, 2), counted(&[("one", 2)]));
}

#[test]
fn a_dry_run_reports_requests_in_flight_routes_and_listeners() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let (first, second) = (ports::free(), ports::free());
    let on = |addresses: &[SocketAddr]| {
        let listeners: Vec<_> =
            addresses.iter().map(|address| format!("{{address: \"{address}\"}}")).collect();
        format!("listeners: [{}]\n", listeners.join(", "))
    };
    let weighted = |weight: u32, more: &str, routes: &str| {
        format!(
            "pools: {{web: {{backends: [{{address: \"{}\", weight: {weight}}}{more}]}}}}\nroutes: [{routes}{{pool: web}}]\n",
            one.address
        )
    };
    let gate = Gate::closed();
    two.behave(Behaviour::Held(gate.clone(), CannedResponse::ok("held")));
    let more = format!(", \"{}\"", two.address);
    let config = lab.config_with(&on(&[lab.listener, first]), &weighted(1, &more, ""));
    let daemon = lab.start_file(&config);
    let mut held: Vec<_> = (0..2).map(|_| daemon.begin("/")).collect();
    two.received("/");
    lab.config_with(
        &on(&[lab.listener, second]),
        &weighted(3, "", "{match: {path_prefix: /a}, pool: web}, "),
    );
    let said = done(&lab, &["reload", "--dry-run"]);
    for line in [
        format!("- pool web: backend {}; its request in flight will complete", two.address),
        format!("~ pool web: backend {}: weight 1 -> 3", one.address),
        "+ route path_prefix /a to pool web".to_owned(),
    ] {
        assert!(said.contains(&line), "{line}\n{said}");
    }
    for (sign, address) in [('-', first), ('+', second)] {
        let has_line = |line: &str| line.trim().starts_with(sign) && line.contains(&address.to_string());
        assert!(said.lines().any(has_line), "{sign} {address}\n{said}");
    }
    assert_eq!((listening_sockets(first), listening_sockets(second)), (1, 0));
    gate.open();
    held.iter_mut().for_each(|client| assert_eq!(client.response("GET").unwrap().status, 200));
}

#[test]
fn a_dry_run_finds_the_errors_that_a_reload_would_hit() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.start(&pool(&[&origin], ""));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let also = format!("listeners: [{{address: \"{}\"}}, {{address: \"{taken}\"}}]\n", lab.listener);
    let (missing, fresh) = (lab.path("missing/a.log"), lab.path("a.log"));
    let log = |path: &Path| format!("access_log: {{format: json, path: {}}}\n", path.display());
    for (listeners, body, said) in
        [(also.as_str(), String::new(), taken.to_string()), ("", log(&missing), "access log".to_owned())]
    {
        let body = format!("{body}{}", pool(&[&origin], ""));
        if listeners.is_empty() {
            lab.config(&body)
        } else {
            lab.config_with(listeners, &body)
        };
        for arguments in [&["reload", "--dry-run"][..], &["reload"]] {
            let refused = subcommand(&lab, arguments);
            assert_eq!(refused.code, Some(2), "{refused:?}");
            assert!(refused.stderr.contains(&said), "{refused:?}");
        }
    }
    lab.config(&format!("{}{}", log(&fresh), pool(&[&origin], "")));
    done(&lab, &["reload", "--dry-run"]);
    assert!(!fresh.exists(), "a dry run must not create the file");
    assert_eq!(names(&daemon, 1), counted(&[("one", 1)]));
}

#[test]
fn the_key_socket_sets_the_path_of_the_control_socket() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let _daemon = lab.start(&pool(&[&origin], ""));
    assert_eq!(mode(&lab.path("control.sock")), 0o600);
    let (status, document) = curl(&lab, &[], "/v1/status");
    assert_eq!((status, &document["state"]), (200, &json!("serving")));
}

/// The default socket may belong to another daemon.
#[test]
fn an_unreadable_file_does_not_make_a_subcommand_use_the_default_socket() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let daemon = lab.start(&pool(&[&one, &two], ""));
    let (address, socket) = (text(one.address), lab.path("control.sock"));
    let drained = || daemon.status()["pools"][0]["backends"][0]["state"].clone();
    let typo = lab.path("cnof.yaml");
    for (file, said) in
        [(typo.as_path(), "name an existing file"), (lab.directory(), "name a file, for example")]
    {
        let refused = lab.run(&["drain", "web", &address, "-c", path_str(file)]);
        assert_eq!((refused.code, refused.stdout.as_str()), (Some(2), ""), "{refused:?}");
        assert!(refused.stderr.contains("LB001") && refused.stderr.contains(said), "{refused:?}");
    }
    assert_ne!(drained(), "draining");
    let other = lab.run(&["drain", "web", &address, "-c", path_str(&typo), "--socket", path_str(&socket)]);
    assert_eq!(other.code, Some(2), "the daemon on this socket uses another file: {other:?}");
    let done = lab.run(&["drain", "web", &address, "--socket", path_str(&socket)]);
    assert_eq!((done.code, drained()), (Some(0), json!("draining")), "{done:?}");
}

#[test]
fn the_control_socket_is_removed_when_the_daemon_ends() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let mut daemon = lab.start(&pool(&[&origin], ""));
    assert!(lab.path("control.sock").exists());
    assert_eq!(daemon.stop(), Some(0));
    assert!(!lab.path("control.sock").exists());
}

#[test]
fn another_user_is_refused() {
    if unless_root("only root can become another user") {
        return;
    }
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.start(&pool(&[&origin], ""));
    let (directory, socket) = (lab.directory(), lab.path("control.sock"));
    let open = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let request = || {
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "curl",
            "--silent",
            "--max-time",
            "10",
        ]);
        command.arg("--unix-socket").arg(&socket).arg("http://localhost/v1/status");
        let output = command.output().unwrap();
        (output.status.success(), output.stdout.len())
    };
    open(directory, 0o700);
    assert_eq!(request(), (false, 0), "the permissions of the directory deny access");
    open(directory, 0o755);
    assert_eq!(request(), (false, 0), "the permissions of the socket deny access");
    open(&socket, 0o666);
    assert_eq!(request(), (false, 0), "the daemon refuses the user");
    daemon.logged(&["control", "rejected a connection of UID 65534"]);
}

#[test]
fn the_control_socket_works_with_curl() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let daemon = lab.start(&pool(&[&one], ""));
    let backends = "/v1/pools/web/backends";
    let of = format!("{backends}/{}", two.address);
    let post = |body: &str, target: &str| curl(&lab, &["--data", body], target);
    let (status, verdict) = post(&json!({"address": text(two.address)}).to_string(), backends);
    assert_eq!((status, &verdict["result"], &verdict["generation"]), (200, &json!("applied"), &json!(2)));
    let (status, _) =
        curl(&lab, &["--request", "PUT", "--data", r#"{"weight": 3}"#], &format!("{of}/weight"));
    assert_eq!(status, 200);
    assert_eq!(names(&daemon, 8), counted(&[("one", 2), ("two", 6)]));
    let (status, verdict) = post("", &format!("{of}/drain"));
    assert_eq!((status, &verdict["result"]), (200, &json!("applied")));
    assert_eq!(curl(&lab, &[], &format!("{of}/idle?wait=5")), (200, json!({"idle": true})));
    assert_eq!(curl(&lab, &["--request", "DELETE"], &of).0, 200);
    assert_eq!(
        curl(&lab, &[], &format!("{of}/idle")),
        (200, json!({"idle": true})),
        "a removed backend is idle"
    );
    assert_eq!(curl(&lab, &[], &format!("/v1/pools/api/backends/{}/idle", two.address)).0, 404);
    let (status, verdict) = curl(&lab, &["--request", "DELETE"], &of);
    assert_eq!((status, &verdict["result"]), (409, &json!("refused")));
    assert_eq!(post("", "/v1/reload").1["result"], "unchanged");
    assert_eq!(curl(&lab, &["--request", "PUT", "--data", r#"{"filter": "debug"}"#], "/v1/log_level").0, 200);
    assert_eq!(curl(&lab, &[], "/v1/log_level").1, json!({"filter": "debug"}));
}

#[test]
fn wrong_requests_get_the_right_status_and_a_reason() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.start(&pool(&[&origin], ""));
    let huge = "x".repeat(70_000);
    let cases: [(&[&str], &str, u16, &str); 6] = [
        (&[], "/v2/status", 404, "no such path"),
        (&["--request", "PATCH"], "/v1/reload", 405, "POST"),
        (&["--data", "{"], "/v1/reload", 400, "the body"),
        (&["--data", r#"{"dry": 1}"#], "/v1/reload", 400, "unknown field"),
        (&["--data", &huge], "/v1/reload", 413, "64 KiB"),
        (&[], "/v1/events?since=1", 400, "since"),
    ];
    for (arguments, target, expected, reason) in cases {
        let (status, document) = curl(&lab, arguments, target);
        assert_eq!(status, expected, "{target} {document}");
        assert!(document["problem"].as_str().unwrap().contains(reason), "{document}");
    }
    let mut garbage = Connection::open_unix(&lab.path("control.sock")).unwrap();
    garbage.send("\x00\x01 nonsense\r\n\r\n").unwrap();
    let response = garbage.response("POST").unwrap();
    assert_eq!(response.status, 400);
    assert!(response.text().contains("not valid HTTP"), "{response:?}");
    daemon.logged(&["WARN", "control: rejected a request"]);
    assert_eq!(daemon.get("/").unwrap().status, 200);
}

#[test]
fn events_are_printed_as_text_and_json_and_followed() {
    let lab = Lab::new();
    let (one, mut two) = (Origin::start("one"), Origin::start("two"));
    let check = "health_check: {type: tcp, interval: 100ms, fast_interval: 100ms, rise: 1, fall: 1}";
    let daemon = lab.start(&pool(&[&one, &two], check));
    let mut following = lab.spawn(&["events", "--follow", "-c", path_str(&lab.path("conf.yaml"))]);
    two.refuse();
    // The line has the format of `events`, not of the daemon's log.
    following.logged(&[&format!(" health   web {} is down", two.address), "refused"]);
    two.come_back();
    following.logged(&[&format!(" health   web {} is up", two.address)]);
    done(&lab, &["drain", "web", &text(one.address)]);
    following.logged(&[&format!(" operator web {} in service -> draining", one.address)]);
    lab.config(&pool(&[&one], check));
    done(&lab, &["reload"]);
    following.logged(&[" reload   configuration 3 is in effect"]);
    following.signal(Signal::SIGTERM);
    following.wait_exit(LONG);
    let last = done(&lab, &["events", "--last", "1", "--format", "json"]);
    let event: Value = serde_json::from_str(&last).unwrap();
    assert_eq!((&event["kind"], last.lines().count()), (&json!("reload"), 1), "{last}");
    // With `--last 0`, earlier events are not printed.
    let mut late = lab.spawn(&["events", "--last", "0", "--follow", "-c", path_str(&lab.path("conf.yaml"))]);
    let reported = format!(" operator web {} draining -> in service", one.address);
    wait::until(LONG, "a new event is printed", || {
        done(&lab, &["drain", "web", &text(one.address)]);
        done(&lab, &["undrain", "web", &text(one.address)]);
        late.log().contains(&reported)
    });
    let before = format!(" health   web {}", two.address);
    assert!(!late.log().contains(&before), "{}", late.log());
    late.signal(Signal::SIGTERM);
    late.wait_exit(LONG);
    let read = daemon.read("/api/v1/events?after=1").unwrap();
    let read: Vec<Value> = serde_json::from_slice(&read.body).unwrap();
    assert!(read.iter().all(|event| event["id"].as_u64() > Some(1)) && read.len() >= 3, "{read:?}");
    assert_eq!(daemon.read("/api/v1/events?since=1").unwrap().status, 400);
}

/// Event ids start at 1 again in the new process, which also serves the events of the old one.
#[test]
fn following_events_shows_those_of_the_new_process_at_once_and_none_twice() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let daemon = lab.start(&pool(&[&one, &two], ""));
    let address = text(one.address);
    for change in ["drain", "undrain", "drain", "undrain"] {
        done(&lab, &[change, "web", &address]);
    }
    let mut following = lab.spawn(&["events", "--follow", "-c", path_str(&lab.path("conf.yaml"))]);
    following.logged(&[&format!("operator web {address} draining -> in service")]);
    let said = done(&lab, &["upgrade"]);
    let pid = said.split_whitespace().nth(1).unwrap().parse().unwrap();
    let began = Instant::now();
    done(&lab, &["disable", "web", &address]);
    // The line has the format of `events`, not of the daemon's log.
    let reported = format!(" operator web {address} in service -> disabled");
    following.logged(&[&reported]);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let log = following.log();
    let line = |words: &str| log.lines().filter(|line| line.ends_with(words)).count();
    assert_eq!((line("process  has handed over and drains"), line(&reported)), (1, 1), "{log}");
    assert_eq!(line(&format!("operator web {address} draining -> in service")), 2, "{log}");
    let (_, document) = curl(&lab, &[], "/v1/events");
    let events = document["events"].as_array().unwrap();
    let of = |process: u32| events.iter().filter(|event| event["process"] == process).count();
    assert!(of(daemon.process.0) >= 5 && of(pid) >= 2, "{document:#}");
    assert_eq!(of(daemon.process.0) + of(pid), events.len(), "{document:#}");
    following.signal(Signal::SIGTERM);
    following.wait_exit(LONG);
    let successor = tests::process::Process(pid);
    successor.signal(Signal::SIGTERM);
    successor.wait_gone(LONG);
}

#[test]
fn a_removed_backend_gets_no_retry_of_an_earlier_request() {
    let lab = Lab::new();
    let origins = [Origin::start("one"), Origin::start("two")];
    let daemon = lab.start(&pool(&[&origins[0], &origins[1]], ""));
    let gate = Gate::closed();
    for origin in &origins {
        origin.behave(Behaviour::Held(gate.clone(), CannedResponse::status(503, "no")));
    }
    let mut held = daemon.begin("/held");
    wait::until(LONG, "a backend has the request", || origins.iter().any(|origin| origin.requests() == 1));
    let idle = origins.iter().find(|origin| origin.requests() == 0).unwrap();
    done(&lab, &["remove", "web", &text(idle.address), "--wait"]);
    gate.open();
    assert_eq!(held.response("GET").unwrap().status, 503);
    assert_eq!(idle.requests(), 0, "the removed backend was reported idle");
}

#[test]
fn a_queued_request_goes_to_a_backend_that_is_added() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let limits = "limits: {max_requests: 1, queue: 5}\ntimeouts: {queue: 20s}";
    let daemon = lab.start(&pool(&[&one], limits));
    let gate = Gate::closed();
    one.behave(Behaviour::Held(gate.clone(), CannedResponse::ok("held")));
    let mut held = daemon.begin("/held");
    one.received("/held");
    let mut waits = daemon.begin("/waits");
    let waiting = || daemon.metric("lb_upstream_queue_length", &["pool=\"web\""]);
    wait::until(LONG, "the request is queued", || waiting() == 1.0);
    // Each change makes a new pool, so the request is queued in one pool and served by a much later one.
    done(&lab, &["weight", "web", &text(one.address), "2"]);
    done(&lab, &["weight", "web", &text(one.address), "3"]);
    done(&lab, &["add", "web", &text(two.address)]);
    assert_eq!(waits.response("GET").unwrap().origin(), "two");
    assert_eq!(daemon.get("/").unwrap().origin(), "two");
    gate.open();
    assert_eq!(held.response("GET").unwrap().text(), "held");
}

/// Opens one connection more than the limit for other requests on the control socket.
#[test]
fn requests_that_wait_do_not_block_other_operators() {
    let held = Held::start();
    let wait = format!("GET /v1/pools/web/backends/{}/idle HTTP/1.1\r\nHost: a\r\n\r\n", held.address);
    let _waiting: Vec<_> = (0..=64)
        .map(|_| {
            let mut connection = Connection::open_unix(&held.lab.path("control.sock")).unwrap();
            connection.send(&wait).unwrap();
            connection
        })
        .collect();
    assert!(done(&held.lab, &["status"]).contains("no problems"));
    held.let_go();
}

#[test]
fn remove_with_wait_times_out_while_requests_are_in_flight() {
    let held = Held::start();
    let late = subcommand(&held.lab, &["remove", "web", &held.address, "--wait", "--timeout", "200ms"]);
    assert_eq!(late.code, Some(1), "{late:?}");
    assert!(late.stderr.contains("still has requests in flight"), "{late:?}");
    held.let_go();
}

#[test]
fn status_shows_what_is_wrong_since_when_and_why() {
    let lab = Lab::new();
    let (one, mut two) = (Origin::start("one"), Origin::start("two"));
    let check = "health_check: {type: tcp, interval: 100ms, fast_interval: 100ms, rise: 1, fall: 1}";
    let daemon = lab.start(&pool(&[&one, &two], check));
    assert!(done(&lab, &["status"]).contains("no problems"));
    two.refuse();
    wait::until(LONG, "two is down", || daemon.backend_status("web", two.address)["state"] == "down");
    let screen = done(&lab, &["status"]);
    let line = format!("! pool web: backend {} is down since", two.address);
    assert!(screen.contains("1 problem:") && screen.contains(&line), "{screen}");
    assert!(screen.contains("connection refused"), "{screen}");
    let document: Value = serde_json::from_str(&done(&lab, &["status", "--format", "json"])).unwrap();
    assert_eq!(document["pools"][0]["ready"], 1);
    let mut watching = lab.spawn(&["status", "--watch", "-c", path_str(&lab.path("conf.yaml"))]);
    watching.logged(&["1 problem:"]);
    two.come_back();
    watching.logged(&["no problems"]);
    watching.signal(Signal::SIGTERM);
    watching.wait_exit(LONG);
}

#[test]
fn the_log_level_changes_while_the_daemon_runs() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.start(&pool(&[&origin], "health_check: {type: tcp, interval: 100ms}"));
    assert!(done(&lab, &["log-level"]).starts_with("info"));
    done(&lab, &["log-level", "debug"]);
    assert!(done(&lab, &["events"]).contains(" operator log level debug"));
    daemon.logged(&["DEBUG"]);
    assert_eq!(done(&lab, &["log-level", "info"]), "info\n");
}

#[test]
fn completion_offers_subcommands_pools_and_backends() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let _daemon = lab.start(&pool(&[&one, &two], ""));
    let script = lab.write("complete.bash", &done_without_config(&lab, &["completions", "bash"]));
    let program = lab.command().get_program().to_str().unwrap().to_owned();
    let config = Cell::new("conf.yaml");
    let complete = |words: &str| {
        let test = format!(
            "source {}; COMP_WORDS=({program} {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _load_balancer_live {program} \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        let mut bash = Command::new("bash");
        bash.args(["-c", &test]).env("LB_CONFIG", lab.path(config.get()));
        String::from_utf8(bash.output().unwrap().stdout).unwrap()
    };
    assert_eq!(complete("dra"), "drain\n");
    assert_eq!(complete("drain ''"), "web\n");
    let backends = complete("drain web ''");
    assert!(backends.contains(&text(one.address)) && backends.contains(&text(two.address)), "{backends}");
    assert_eq!(
        complete(&format!("drain web {}", &text(one.address)[..text(one.address).len() - 1])).trim(),
        text(one.address)
    );
    lab.write("nowhere.yaml", "control: {socket: /nowhere/control.sock}");
    config.set("nowhere.yaml");
    assert_eq!(complete("drain ''"), "\n");
    for daemon in [format!("-c {}", lab.path("conf.yaml").display()), socket_of(&lab)] {
        assert_eq!(complete(&format!("drain {daemon} ''")), "web\n");
        let named = complete(&format!("{daemon} add --weight 3 web {}", &text(two.address)[..11]));
        assert!(named.contains(&text(two.address)), "{daemon}: {named}");
        let all = complete(&format!("add web {daemon} 10.0.0.1:80 ''"));
        assert!(!all.contains(&text(two.address)), "all arguments are already given: {all}");
    }
}

fn socket_of(lab: &Lab) -> String {
    format!("--socket {}", lab.path("control.sock").display())
}

#[test]
fn an_added_backend_that_is_the_daemon_itself_is_a_warning() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.start(&pool(&[&origin], ""));
    for (address, said) in [
        (daemon.listener, "this daemon's own listener, so requests can loop"),
        (daemon.metrics, "this daemon's own metrics address, which serves no application"),
    ] {
        let added = done(&lab, &["add", "web", &address.to_string()]);
        assert!(added.contains(&format!("! pool web: backend {address} is {said}")), "{added}");
        daemon.logged(&["operator: ! pool web", said]);
    }
}

#[track_caller]
fn done_without_config(lab: &Lab, words: &[&str]) -> String {
    let finished = lab.run(words);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    finished.stdout
}
