//! Reloads: the daemon reads its file again while it serves. Requests and connections in progress are not affected.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::daemon::{View, path_str};
use tests::process::listening_sockets;
use tests::skip::unless_root;
use tests::wait::{self, LONG};
use tests::{Behaviour, CannedResponse, Connection, Daemon, Gate, Lab, LoadGenerator, Origin, Signal, ports};

use crate::{pool, pool_of, tally};

/// Sends SIGHUP, waits for the result, and returns the part `config` of the status.
#[track_caller]
fn reload(daemon: &Daemon) -> Value {
    let before = daemon.status()["config"]["last_reload"]["time"].clone();
    daemon.signal(Signal::SIGHUP);
    wait::until_some(LONG, "the daemon has reloaded", || {
        let config = daemon.status()["config"].clone();
        let is_new = !config["last_reload"].is_null() && config["last_reload"]["time"] != before;
        is_new.then_some(config)
    })
}

/// Reloads a file with this body, which must be applied.
#[track_caller]
fn apply(lab: &Lab, daemon: &Daemon, body: &str) {
    lab.config(body);
    let config = reload(daemon);
    assert_eq!(config["last_reload"]["result"], "applied", "{config:#}\n{}", daemon.log());
}

/// Reloads a file with these listeners and this body, which must be applied.
#[track_caller]
fn listen(lab: &Lab, daemon: &Daemon, listeners: &str, body: &str) {
    lab.config_with(listeners, body);
    let config = reload(daemon);
    assert_eq!(config["last_reload"]["result"], "applied", "{config:#}\n{}", daemon.log());
}

/// A configuration with a pool of this origin and an access log at `path`.
fn logged(path: &Path, format: &str, origin: &Origin) -> String {
    format!("access_log: {{format: {format}, path: {}}}\n{}", path.display(), pool(&[origin], ""))
}

fn names(view: &View, requests: usize) -> Vec<(String, usize)> {
    tally((0..requests).map(|_| view.get("/").unwrap().origin().to_owned()))
}

#[test]
fn a_reload_changes_backends_pools_and_routes_and_keeps_counters() {
    let lab = Lab::new();
    let (one, two, api) = (Origin::start("one"), Origin::start("two"), Origin::start("api"));
    let daemon = lab.start(&pool(&[&one], ""));
    assert_eq!(names(&daemon, 10), [("one".to_owned(), 10)]);
    apply(&lab, &daemon, &pool(&[&one, &two], ""));
    assert_eq!(names(&daemon, 10), [("one".to_owned(), 5), ("two".to_owned(), 5)]);
    let weighted = format!(
        "pools:\n  web: {{backends: [{{address: \"{}\", weight: 4}}, \"{}\"], health_check: {{type: none}}}}\n  \
         api: {{backends: [\"{}\"], health_check: {{type: none}}}}\n\
         routes: [{{match: {{path_prefix: /api}}, pool: api}}, {{pool: web}}]\n",
        one.address, two.address, api.address
    );
    apply(&lab, &daemon, &weighted);
    assert_eq!(names(&daemon, 10), [("one".to_owned(), 8), ("two".to_owned(), 2)]);
    assert_eq!(daemon.get("/api/x").unwrap().origin(), "api");
    let sent = |origin: &Origin| {
        daemon.metric("lb_upstream_requests_total", &[&format!("backend=\"{}\"", origin.address)])
    };
    daemon.settle();
    assert_eq!((sent(&one), sent(&two)), (23.0, 7.0), "a reload keeps counters");
    assert_eq!(daemon.metric("lb_backend_weight", &[&format!("backend=\"{}\"", one.address)]), 4.0);
    apply(&lab, &daemon, &pool(&[&two], ""));
    assert_eq!(names(&daemon, 4), [("two".to_owned(), 4)]);
    assert!(!daemon.metrics_text().contains(&one.address.to_string()), "a removed backend has no metrics");
    assert!(!daemon.metrics_text().contains("pool=\"api\""));
    assert_eq!(daemon.metric("lb_config_generation", &[]), 4.0);
    assert_eq!(daemon.metric("lb_config_reloads_total", &["result=\"applied\""]), 3.0);
}

#[test]
fn an_invalid_file_changes_nothing_and_is_reported() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.start(&pool(&[&origin], ""));
    lab.config(&pool(&[&origin], "polcy: maglev"));
    let config = reload(&daemon);
    assert_eq!((&config["generation"], &config["last_reload"]["result"]), (&1.into(), &"refused".into()));
    let problem = config["last_reload"]["problem"].as_str().unwrap();
    assert!(problem.contains("LB010") && problem.contains("did you mean `policy`"), "{problem}");
    assert!(problem.contains("conf.yaml:"), "{problem}");
    daemon.logged(&["rejected", "nothing changed"]);
    assert_eq!(daemon.metric("lb_config_last_reload_successful", &[]), 0.0);
    assert_eq!(daemon.metric("lb_config_reloads_total", &["result=\"refused\""]), 1.0);
    assert_eq!(names(&daemon, 3), [("one".to_owned(), 3)]);
    lab.config(&pool(&[&origin], ""));
    assert_eq!(reload(&daemon)["last_reload"]["result"], "unchanged");
    assert_eq!(daemon.metric("lb_config_last_reload_successful", &[]), 1.0);
}

#[test]
fn a_reload_refuses_and_names_keys_that_need_a_new_process() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let daemon = lab.start(&pool(&[&one], ""));
    lab.config(&format!("threads: 3\nupstream_keepalive_pool_size: 9\n{}", pool(&[&two], "")));
    let config = reload(&daemon);
    assert_eq!(config["last_reload"]["result"], "refused");
    let problem = config["last_reload"]["problem"].as_str().unwrap();
    assert!(problem.contains("threads, upstream_keepalive_pool_size"), "{problem}");
    assert!(problem.contains("load_balancer upgrade"), "{problem}");
    assert_eq!(names(&daemon, 3), [("one".to_owned(), 3)]);
}

#[test]
fn a_port_in_use_changes_nothing() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let daemon = lab.start(&pool(&[&one], ""));
    let (taken, free) = (ports::free(), ports::free());
    let _in_use = TcpListener::bind(taken).unwrap();
    let listeners = format!(
        "listeners: [{{address: \"{}\"}}, {{address: \"{free}\"}}, {{address: \"{taken}\"}}]\n",
        lab.listener
    );
    lab.config_with(&listeners, &pool(&[&two], ""));
    let config = reload(&daemon);
    assert_eq!(config["last_reload"]["result"], "refused", "{config:#}");
    assert!(config["last_reload"]["problem"].as_str().unwrap().contains("in use"), "{config:#}");
    assert_eq!(listening_sockets(free), 0, "the other new listener is closed again");
    assert_eq!(names(&daemon, 2), [("one".to_owned(), 2)]);
}

#[test]
fn a_reload_does_not_affect_open_requests_connections_and_websockets() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let daemon = lab.start(&pool(&[&one], ""));
    let mut idle = daemon.connect();
    assert_eq!(idle.get("/").unwrap().origin(), "one");
    one.behave(Behaviour::Upgrade);
    let mut socket = daemon.connect();
    socket.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").unwrap();
    assert_eq!(socket.response_head().unwrap().0, 101);
    let gate = Gate::closed();
    one.behave(Behaviour::Held(gate.clone(), CannedResponse::ok("held")));
    let mut held = daemon.begin("/held");
    one.received("/held");
    apply(&lab, &daemon, &pool(&[&two], ""));
    for word in ["first", "second"] {
        socket.send(word).unwrap();
        assert_eq!(socket.some_bytes(), word.as_bytes());
    }
    gate.open();
    assert_eq!(held.response("GET").unwrap().text(), "held");
    let response = idle.get("/").unwrap();
    assert_eq!(
        (response.origin(), response.closes()),
        ("two", false),
        "the connection stays open and uses the new snapshot"
    );
    socket.send("third").unwrap();
    assert_eq!(socket.some_bytes(), b"third");
}

#[test]
fn connections_to_remaining_backends_are_kept() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let daemon = lab.start(&pool(&[&one], ""));
    // A connection becomes idle when its request is no longer in flight, which may be after the response.
    let requests = |count| {
        for _ in 0..count {
            assert_eq!(daemon.get("/").unwrap().status, 200);
            daemon.settle();
        }
    };
    requests(3);
    apply(&lab, &daemon, &pool(&[&one, &two], "timeouts: {connect: 2s}"));
    requests(6);
    assert_eq!((one.connections(), two.connections()), (1, 1));
}

#[test]
fn a_reload_opens_closes_and_renames_listeners() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let body = pool(&[&origin], "");
    let (first, second, unix) = (lab.listener, ports::free(), lab.path("web.sock"));
    let daemon = lab.start(&body);
    let mut old = daemon.connect();
    assert_eq!(old.get("/").unwrap().status, 200);
    listen(
        &lab,
        &daemon,
        &format!(
            "listeners: [{{address: \"{first}\"}}, {{address: \"{second}\", name: more}}, {{address: \"unix:{}\"}}]\n",
            unix.display()
        ),
        &body,
    );
    let serves = |address: SocketAddr| Connection::open(address).and_then(|mut c| c.get("/")).is_ok();
    wait::until(LONG, "the new listeners accept", || serves(second) && Connection::open_unix(&unix).is_ok());
    assert_eq!(Connection::open_unix(&unix).unwrap().get("/").unwrap().status, 200);
    daemon.settle();
    assert!(daemon.metric("lb_requests_total", &["listener=\"more\""]) >= 1.0);
    // When the first listener is removed, it accepts no new connections, and existing ones get a response.
    listen(&lab, &daemon, &format!("listeners: [{{address: \"{second}\", name: called}}]\n"), &body);
    // The listener closes at once, and not only when its idle connection ends.
    wait::until(Duration::from_secs(3), "the first listener is closed", || listening_sockets(first) == 0);
    assert!(Connection::open(first).is_err());
    assert!(!unix.exists(), "the socket file of a closed listener is removed");
    assert!(serves(second));
    assert_eq!(listening_sockets(second), 1);
    daemon.settle();
    assert!(daemon.metric("lb_requests_total", &["listener=\"called\""]) >= 1.0);
    assert!(!daemon.metrics_text().contains("listener=\"more\""));
    // Another reload restores the first listener.
    listen(&lab, &daemon, &format!("listeners: [{{address: \"{first}\"}}]\n"), &body);
    wait::until(LONG, "the first listener is back", || serves(first));
    wait::until(LONG, "the second listener is closed", || listening_sockets(second) == 0);
    assert_eq!(listening_sockets(first), 1);
}

/// The permission bits of a file.
pub(crate) fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_reload_changes_the_mode_of_a_unix_listener_and_keeps_its_connections() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let (open, closed, body) = (lab.path("open.sock"), lab.path("closed.sock"), pool(&[&origin], ""));
    let listeners = |mode: &str| {
        let (open, closed, tcp) = (open.display(), closed.display(), lab.listener);
        format!("listeners: [{tcp}, \"unix:{open}\", {{address: \"unix:{closed}\", mode: \"{mode}\"}}]\n")
    };
    let daemon = lab.start_file(&lab.config_with(&listeners("0600"), &body));
    assert_eq!((mode_of(&open), mode_of(&closed)), (0o666, 0o600));
    let mut client = Connection::open_unix(&closed).unwrap();
    assert_eq!(client.get("/").unwrap().status, 200);

    lab.config_with(&listeners("0660"), &body);
    let dry_run = lab.run(&["reload", "--dry-run", "-c", path_str(&lab.path("conf.yaml"))]);
    assert!(dry_run.stdout.contains("mode 0600 -> 0660"), "{dry_run:?}");
    assert_eq!(mode_of(&closed), 0o600);
    listen(&lab, &daemon, &listeners("0660"), &body);
    assert_eq!((mode_of(&open), mode_of(&closed)), (0o666, 0o660));
    assert_eq!(client.get("/").unwrap().status, 200);
    assert_eq!(Connection::open_unix(&closed).unwrap().get("/").unwrap().status, 200);
}

#[test]
fn a_user_without_permission_for_the_socket_cannot_connect() {
    if unless_root("only root can become another user") {
        return;
    }
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    fs::set_permissions(lab.directory(), fs::Permissions::from_mode(0o755)).unwrap();
    let (socket, body) = (lab.path("web.sock"), pool(&[&origin], ""));
    let listeners = |mode: &str| {
        format!(
            "listeners: [{}, {{address: \"unix:{}\", mode: \"{mode}\"}}]\n",
            lab.listener,
            socket.display()
        )
    };
    let daemon = lab.start_file(&lab.config_with(&listeners("0660"), &body));
    let curl = ["--silent", "--output", "/dev/null", "--unix-socket", path_str(&socket), "http://localhost/"];
    let connects = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups", "curl"]).args(curl);
        command.status().unwrap().success()
    };
    assert!(!connects());
    listen(&lab, &daemon, &listeners("0666"), &body);
    assert!(connects());
}

/// A lab whose listener has a port that is free on all addresses.
pub(crate) fn movable() -> Lab {
    let mut lab = Lab::new();
    let everywhere = TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0")).unwrap();
    lab.listener.set_port(everywhere.local_addr().unwrap().port());
    lab
}

/// A section `listeners` with the port of the lab on this IP address.
pub(crate) fn at(lab: &Lab, ip: &str) -> String {
    format!(
        "listeners: [{{address: \"{}\", name: web}}]\n",
        SocketAddr::new(ip.parse().unwrap(), lab.listener.port())
    )
}

/// Moves the listener from one address to the next by reloads under load, and asserts that no request fails.
#[track_caller]
fn assert_moves_without_loss(lab: &Lab, daemon: &Daemon, body: &str, places: &[&str]) {
    let load = LoadGenerator::start(lab.listener, 2, 4);
    wait::until(LONG, "100 requests have succeeded", || load.report().ok > 100);
    for ip in places {
        lab.config_with(&at(lab, ip), body);
        let dry_run = lab.run(&["reload", "--dry-run", "-c", path_str(&lab.path("conf.yaml"))]);
        assert_eq!(dry_run.code, Some(0), "{ip}: {dry_run:?}");
        listen(lab, daemon, &at(lab, ip), body);
        assert_eq!(daemon.get("/").unwrap().status, 200, "{ip}");
        assert_second_daemon_fails(lab, body);
        let before = load.report().ok;
        wait::until(LONG, "the load continues", || load.report().ok > before + 100);
    }
    let report = load.stop();
    assert_eq!(report.failed, 0, "{report:?}\n{}", daemon.log());
}

/// Asserts that another daemon cannot use the port of this lab, although the port is shared briefly while a listener
/// moves.
#[track_caller]
pub(crate) fn assert_second_daemon_fails(lab: &Lab, body: &str) {
    let other = Lab::new();
    for ip in [lab.listener.ip().to_string().as_str(), "0.0.0.0", "::"] {
        let config = other.config_with(&at(lab, ip), body);
        let second = other.run(&["-c", path_str(&config)]);
        assert_eq!(second.code, Some(1), "{ip}: {second:?}");
        assert!(second.stderr.contains("in use"), "{ip}: {second:?}");
    }
}

#[test]
fn a_listener_moves_between_overlapping_addresses_and_no_request_is_lost() {
    let (lab, origin) = (movable(), Origin::start("one"));
    let body = pool(&[&origin], "");
    let own = lab.listener.ip().to_string();
    let daemon = lab.start_file(&lab.config_with(&at(&lab, &own), &body));
    assert_moves_without_loss(&lab, &daemon, &body, &["0.0.0.0", &own, "::", "0.0.0.0", "::", &own]);
}

#[test]
fn a_listener_moves_after_privileges_are_dropped() {
    if unless_root("only root can give up its privileges") {
        return;
    }
    let (lab, origin) = (movable(), Origin::start("one"));
    fs::set_permissions(lab.directory(), fs::Permissions::from_mode(0o777)).unwrap();
    let body = format!("user: www-data\n{}", pool(&[&origin], ""));
    let own = lab.listener.ip().to_string();
    let daemon = lab.start_file(&lab.config_with(&at(&lab, &own), &body));
    assert_moves_without_loss(&lab, &daemon, &body, &["0.0.0.0", &own]);
}

#[test]
fn a_move_to_an_address_in_use_is_refused_and_changes_nothing() {
    let (lab, origin) = (movable(), Origin::start("one"));
    let body = pool(&[&origin], "");
    let daemon = lab.start(&body);
    let _other = TcpListener::bind(("127.99.99.99", lab.listener.port())).unwrap();
    lab.config_with(&at(&lab, "0.0.0.0"), &body);
    let dry_run = lab.run(&["reload", "--dry-run", "-c", path_str(&lab.path("conf.yaml"))]);
    assert!(dry_run.code == Some(2) && dry_run.stderr.contains("in use"), "{dry_run:?}");
    let config = reload(&daemon);
    assert_eq!(config["last_reload"]["result"], "refused", "{config:#}");
    let problem = config["last_reload"]["problem"].as_str().unwrap();
    assert!(problem.contains("0.0.0.0") && problem.contains("in use"), "{problem}");
    assert_eq!(daemon.get("/").unwrap().status, 200);
    assert_eq!(listening_sockets(lab.listener), 1);
}

#[test]
fn a_client_of_a_removed_listener_gets_a_response_with_connection_close() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let body = pool(&[&origin], "");
    let daemon = lab.start(&body);
    let gate = Gate::closed();
    origin.behave(Behaviour::Held(gate.clone(), CannedResponse::ok("held")));
    let mut held = daemon.begin("/held");
    origin.received("/held");
    listen(&lab, &daemon, &format!("listeners: [{{address: \"{}\"}}]\n", ports::free()), &body);
    gate.open();
    let response = held.response("GET").unwrap();
    assert_eq!((response.text().as_str(), response.closes()), ("held", true));
}

#[test]
fn a_reload_keeps_health_and_ejections_of_remaining_backends() {
    let lab = Lab::new();
    let (up, mut down, ejected) = (Origin::start("up"), Origin::start("down"), Origin::start("ejected"));
    down.refuse();
    let more = |weight: &str| {
        format!(
            "pools:\n  web:\n    panic_threshold: 0\n    outlier_detection: {{consecutive_failures: 2, base_ejection: 60s}}\n    \
             health_check: {{type: tcp, interval: 60s, fast_interval: 60s, rise: 1, fall: 1}}\n    \
             backends: [{{address: \"{}\", weight: {weight}}}, {{address: \"{}\", weight: {weight}}}, {{address: \"{}\", weight: {weight}}}]\n",
            up.address, down.address, ejected.address
        )
    };
    let daemon = lab.start(&more("1"));
    let state = |origin: &Origin| daemon.backend_status("web", origin.address)["state"].clone();
    assert_eq!(state(&down), "down");
    ejected.behave(Behaviour::Respond(CannedResponse::status(503, "")));
    wait::until(LONG, "a backend is ejected", || {
        daemon.get("/").unwrap();
        state(&ejected) == "ejected"
    });
    let requests = || daemon.backend_status("web", up.address)["requests"].clone();
    let before = requests();
    let weighted = more("3");
    down.come_back();
    apply(&lab, &daemon, &weighted);
    assert_eq!(daemon.backend_status("web", up.address)["weight"], 3);
    assert_eq!((state(&up), state(&down), state(&ejected)), ("up".into(), "down".into(), "ejected".into()));
    assert_eq!(requests(), before);
    assert_eq!(names(&daemon, 5), [("up".to_owned(), 5)], "new weights do not bring the other backends back");
}

#[test]
fn a_reload_keeps_sessions_on_their_backends() {
    let lab = Lab::new();
    let (one, two, three) = (Origin::start("one"), Origin::start("two"), Origin::start("three"));
    let sticky = "sticky: {cookie: lb}";
    let daemon = lab.start(&pool(&[&one, &two], sticky));
    let first = daemon.get("/").unwrap();
    let cookie = first.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    apply(&lab, &daemon, &pool(&[&one, &two, &three], &format!("{sticky}\npolicy: random")));
    for _ in 0..10 {
        let mut connection = daemon.connect();
        let response = connection.request("GET", "/", &[("Cookie", &cookie)], b"").unwrap();
        assert_eq!(response.origin(), first.origin());
    }
}

#[test]
fn a_dead_backend_that_a_reload_adds_gets_no_request() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let check = "health_check: {type: tcp, interval: 60s, fast_interval: 60s}\nretries: {attempts: 0}\npanic_threshold: 0";
    let daemon = lab.start(&pool(&[&origin], check));
    let mut dead = Origin::start("dead");
    dead.refuse();
    apply(&lab, &daemon, &pool(&[&origin, &dead], check));
    assert_eq!(daemon.backend_status("web", dead.address)["state"], "down");
    assert_eq!(names(&daemon, 10), [("one".to_owned(), 10)]);
}

#[test]
fn health_checks_follow_a_reload() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let daemon = lab.start(&pool(&[&one, &two], "health_check: {type: http, path: /a, interval: 100ms}"));
    one.received("/a");
    apply(&lab, &daemon, &pool(&[&one, &two], "health_check: {type: http, path: /b, interval: 100ms}"));
    one.received("/b");
    let checks =
        |origin: &Origin, path: &str| origin.seen().iter().filter(|seen| seen.target() == path).count();
    let (a, b) = (checks(&one, "/a"), checks(&one, "/b"));
    wait::until(LONG, "further checks have arrived", || checks(&one, "/b") > b + 3);
    assert_eq!(checks(&one, "/a"), a, "the old checks have stopped");
    apply(&lab, &daemon, &pool(&[&one, &two], ""));
    let mut quiet = checks(&one, "/b");
    let began = Instant::now();
    wait::until(LONG, "no more checks arrive", || {
        let now = checks(&one, "/b");
        let is_quiet = now == quiet && began.elapsed() > Duration::from_millis(500);
        quiet = now;
        is_quiet
    });
    assert_eq!(daemon.get("/").unwrap().status, 200);
}

#[test]
fn renaming_a_listener_recreates_its_missing_socket_file() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let (body, path) = (pool(&[&origin], ""), lab.path("web.sock"));
    let named = |name: &str| {
        format!(
            "listeners: [{{address: \"{}\"}}, {{address: \"unix:{}\", name: {name}}}]\n",
            lab.listener,
            path.display()
        )
    };
    let daemon = lab.start_file(&lab.config_with(&named("first"), &body));
    let serves = || Connection::open_unix(&path).and_then(|mut c| c.get("/")).is_ok_and(|a| a.status == 200);
    wait::until(LONG, "the socket accepts", serves);
    fs::remove_file(&path).unwrap();
    listen(&lab, &daemon, &named("second"), &body);
    wait::until(LONG, "the new socket file accepts", serves);
    assert!(daemon.process.alive());
    assert_eq!(daemon.get("/").unwrap().status, 200);
    // A listener is also renamed while its socket file exists.
    listen(&lab, &daemon, &named("third"), &body);
    wait::until(LONG, "the socket still accepts", serves);
    daemon.settle();
    assert!(daemon.metric("lb_requests_total", &["listener=\"third\""]) >= 1.0);
    listen(&lab, &daemon, &format!("listeners: [{{address: \"{}\"}}]\n", lab.listener), &body);
    wait::until(LONG, "the socket file is removed", || !path.exists());
}

#[test]
fn the_access_log_moves_and_no_line_is_lost() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let body = |name: &str| logged(&lab.path(name), "json", &origin);
    let daemon = lab.start(&body("a.log"));
    let lines = |name: &str| fs::read_to_string(lab.path(name)).unwrap_or_default().lines().count();
    let gate = Gate::closed();
    origin.behave(Behaviour::Held(gate.clone(), CannedResponse::ok("held")));
    let mut held = daemon.begin("/held");
    origin.received("/held");
    // No request uses this snapshot when the log moves.
    apply(&lab, &daemon, &format!("{}shutdown: {{drain: 7s}}\n", body("a.log")));
    apply(&lab, &daemon, &body("b.log"));
    origin.behave(Behaviour::Respond(CannedResponse::ok("new")));
    names(&daemon, 3);
    wait::throughout(Duration::from_millis(1200), "the old log gets no line yet", || lines("a.log") == 0);
    gate.open();
    held.response("GET").unwrap();
    wait::until(LONG, "each log has its lines", || lines("a.log") == 1 && lines("b.log") == 3);
}

#[test]
fn sigusr1_also_reopens_the_access_log_of_requests_from_before_a_reload() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let path = lab.path("a.log");
    let body = |name: &str| logged(&lab.path(name), "json", &origin);
    let daemon = lab.start(&body("a.log"));
    let gate = Gate::closed();
    origin.behave(Behaviour::Held(gate.clone(), CannedResponse::ok("held")));
    let mut held = daemon.begin("/held");
    origin.received("/held");
    apply(&lab, &daemon, &body("b.log"));
    let rotated = lab.path("a.log.1");
    fs::rename(&path, &rotated).unwrap();
    daemon.signal(Signal::SIGUSR1);
    let reopened = |name: &str| daemon.log().contains(&format!("{name} reopened"));
    wait::until(LONG, "both logs are reopened", || reopened("a.log") && reopened("b.log"));
    gate.open();
    held.response("GET").unwrap();
    wait::until(LONG, "the request is in the new file", || {
        fs::read_to_string(&path).is_ok_and(|log| log.contains("/held"))
    });
    assert_eq!(fs::read_to_string(&rotated).unwrap(), "");
}

#[test]
fn an_idle_connection_does_not_keep_the_old_snapshot() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let body = |name: &str| logged(&lab.path(name), "json", &origin);
    let daemon = lab.start(&body("a.log"));
    let mut idle = daemon.connect();
    assert_eq!(idle.get("/").unwrap().status, 200);
    apply(&lab, &daemon, &body("b.log"));
    wait::until(LONG, "the old writer ends", || daemon.process.threads_named("access-log") == 1);
    assert_eq!(idle.get("/").unwrap().status, 200, "the connection stays open");
    let is_logged = || fs::read_to_string(lab.path("b.log")).is_ok_and(|log| log.lines().count() == 1);
    wait::until(LONG, "the connection uses the new snapshot", is_logged);
}

#[test]
fn an_access_log_changes_its_format_and_has_one_writer() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let path = lab.path("a.log");
    let body = |format: &str| logged(&path, format, &origin);
    let daemon = lab.start(&body("json"));
    let gate = Gate::closed();
    origin.behave(Behaviour::Held(gate.clone(), CannedResponse::ok("held")));
    let mut held = daemon.begin("/held");
    origin.received("/held");
    apply(&lab, &daemon, &body("text"));
    assert_eq!(daemon.process.threads_named("access-log"), 1);
    origin.behave(Behaviour::Respond(CannedResponse::ok("new")));
    names(&daemon, 1);
    gate.open();
    held.response("GET").unwrap();
    let lines = || fs::read_to_string(&path).unwrap();
    wait::until(LONG, "both lines are written", || lines().lines().count() == 2);
    let is_json = |line: &str| serde_json::from_str::<Value>(line).is_ok();
    assert_eq!(lines().lines().map(is_json).collect::<Vec<_>>(), [false, true], "{}", lines());
    // After the log is switched off and on, a new writer appends to the file.
    apply(&lab, &daemon, &format!("access_log: {{format: none}}\n{}", pool(&[&origin], "")));
    names(&daemon, 1);
    wait::until(LONG, "no writer is left", || daemon.process.threads_named("access-log") == 0);
    apply(&lab, &daemon, &body("json"));
    names(&daemon, 1);
    wait::until(LONG, "the log has a new line", || lines().lines().count() == 3);
}

#[test]
fn a_watched_file_is_reloaded_however_it_is_replaced() {
    let lab = Lab::new();
    let origins = ["one", "two", "three", "four"].map(Origin::start);
    let body = |origin: &Origin| format!("reload: {{watch: true}}\n{}", pool(&[origin], ""));
    let daemon = lab.start(&body(&origins[0]));
    let serves = |name: &str| {
        wait::until(LONG, name, || daemon.get("/").is_ok_and(|response| response.origin() == name));
    };
    serves("one");
    // The file is written in place.
    lab.config(&body(&origins[1]));
    serves("two");
    // Another file is renamed to it, as editors do.
    let text = fs::read_to_string(lab.path("conf.yaml")).unwrap();
    let text = text.replace(&origins[1].address.to_string(), &origins[2].address.to_string());
    fs::rename(lab.write("conf.new", &text), lab.path("conf.yaml")).unwrap();
    serves("three");
    // A symbolic link is swapped, as Kubernetes does.
    let text = text.replace(&origins[2].address.to_string(), &origins[3].address.to_string());
    fs::create_dir(lab.path("next")).unwrap();
    lab.write("next/conf.yaml", &text);
    symlink(lab.path("next/conf.yaml"), lab.path("link")).unwrap();
    fs::rename(lab.path("link"), lab.path("conf.yaml")).unwrap();
    serves("four");
    // An invalid file is reported and changes nothing.
    lab.write("next/conf.yaml", "pools: {");
    daemon.logged(&["reload", "rejected"]);
    serves("four");
}

#[test]
fn a_dry_run_does_not_prevent_the_reload_of_a_watched_file() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let body = |origin: &Origin| format!("reload: {{watch: true}}\n{}", pool(&[origin], ""));
    let daemon = lab.start(&body(&one));
    let config = lab.config(&body(&two));
    let dry_run = lab.run(&["reload", "--dry-run", "-c", path_str(&config)]);
    assert_eq!(dry_run.code, Some(0), "{dry_run:?}");
    wait::until(LONG, "the file is in effect", || {
        daemon.get("/").is_ok_and(|response| response.origin() == "two")
    });
}

#[test]
fn a_file_that_is_not_watched_is_not_reloaded() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let daemon = lab.start(&pool(&[&one], ""));
    lab.config(&pool(&[&two], ""));
    wait::throughout(Duration::from_millis(1500), "the old file is in effect", || {
        daemon.get("/").is_ok_and(|response| response.origin() == "one")
    });
}

#[test]
fn a_reload_is_rolled_back_when_requests_fail() {
    let lab = Lab::new();
    let (good, bad) = (Origin::start("good"), Origin::start("bad"));
    bad.behave(Behaviour::Respond(CannedResponse::status(500, "broken")));
    let body = |origin: &Origin, rule: &str| format!("reload: {{rollback: {rule}}}\n{}", pool(&[origin], ""));
    let daemon = lab.start(&body(&good, "{error_rate: 30, window: 20s}"));
    let load = LoadGenerator::start(lab.listener, 2, 0);
    wait::until(LONG, "100 requests have succeeded", || load.report().ok > 100);
    apply(&lab, &daemon, &body(&bad, "{error_rate: 30, window: 20s}"));
    daemon.logged(&["rolled back", "limit: 30 %"]);
    wait::until(LONG, "the old configuration is in effect", || {
        daemon.get("/").is_ok_and(|response| response.origin() == "good")
    });
    let config = daemon.status()["config"].clone();
    assert_eq!(config["last_reload"]["result"], "rolled_back", "{config:#}");
    assert_eq!(daemon.metric("lb_config_reloads_total", &["result=\"rolled_back\""]), 1.0);
    assert_eq!(daemon.metric("lb_config_generation", &[]), 3.0);
    drop(load.stop());
    // Without a rollback rule, the pool stays in effect although its requests fail.
    lab.config(&pool(&[&bad], ""));
    assert_eq!(reload(&daemon)["last_reload"]["result"], "applied");
    assert!((0..100).all(|_| daemon.get("/").unwrap().status == 500));
    wait::throughout(Duration::from_millis(1500), "the new configuration stays in effect", || {
        daemon.get("/").unwrap().status == 500
    });
}

#[test]
fn a_reload_is_rolled_back_when_responses_are_truncated() {
    let lab = Lab::new();
    let (good, bad) = (Origin::start("good"), Origin::start("bad"));
    bad.behave(Behaviour::CutShort);
    let rule = "reload: {rollback: {error_rate: 30, window: 20s}}\n";
    let daemon = lab.start(&format!("{rule}{}", pool(&[&good], "")));
    apply(&lab, &daemon, &format!("{rule}{}", pool(&[&bad], "")));
    let load = LoadGenerator::start(lab.listener, 2, 0);
    daemon.logged(&["rolled back", "limit: 30 %"]);
    drop(load.stop());
    assert_eq!(daemon.get("/").unwrap().origin(), "good");
    let ok = daemon.metric("lb_requests_total", &["code=\"200\""]);
    assert!(ok >= 20.0, "truncated responses have the status 200: {ok}");
}

#[test]
fn a_reload_that_renames_the_pool_can_be_rolled_back() {
    let lab = Lab::new();
    let (good, bad) = (Origin::start("good"), Origin::start("bad"));
    bad.behave(Behaviour::Respond(CannedResponse::status(500, "broken")));
    let rule = "reload: {rollback: {error_rate: 30, window: 20s}}\n";
    let daemon = lab.start(&format!("{rule}{}", pool(&[&good], "")));
    assert!((0..2000).all(|_| daemon.get("/").unwrap().status == 200));
    // No request and no connection holds the old pool, so its counters are dropped.
    apply(&lab, &daemon, &format!("{rule}{}", pool(&[&bad], "").replace("web:", "other:")));
    wait::until(LONG, "the reload is rolled back", || {
        let _ = daemon.get("/");
        daemon.status()["config"]["last_reload"]["result"] == "rolled_back"
    });
    assert_eq!(daemon.get("/").unwrap().origin(), "good");
}

#[test]
fn a_rollback_keeps_changes_of_operators() {
    let lab = Lab::new();
    let (good, other, bad) = (Origin::start("good"), Origin::start("other"), Origin::start("bad"));
    bad.behave(Behaviour::Respond(CannedResponse::status(500, "broken")));
    let rule = "reload: {rollback: {error_rate: 30, window: 20s}}\n";
    let daemon = lab.start(&format!("{rule}{}", pool(&[&good, &other], "")));
    apply(&lab, &daemon, &format!("{rule}{}", pool(&[&good, &other, &bad], "policy: random")));
    let address = other.address.to_string();
    let config = lab.path("conf.yaml");
    assert_eq!(lab.run(&["drain", "web", &address, "-c", path_str(&config)]).code, Some(0));
    let load = LoadGenerator::start(lab.listener, 2, 0);
    daemon.logged(&["rolled back", "limit: 30 %"]);
    drop(load.stop());
    assert!((0..6).all(|_| daemon.get("/").unwrap().origin() == "good"));
    assert_eq!(daemon.backend_status("web", other.address)["runtime"], "draining");
}

#[test]
fn no_rollback_happens_after_its_window() {
    let lab = Lab::new();
    let (good, turns) = (Origin::start("good"), Origin::start("turns"));
    let body = |origin: &Origin| {
        format!("reload: {{rollback: {{error_rate: 30, window: 1s}}}}\n{}", pool(&[origin], ""))
    };
    let daemon = lab.start(&body(&good));
    apply(&lab, &daemon, &body(&turns));
    let began = Instant::now();
    wait::until(LONG, "the window is over", || began.elapsed() > Duration::from_secs(2));
    turns.behave(Behaviour::Respond(CannedResponse::status(500, "broken")));
    assert!((0..100).all(|_| daemon.get("/").unwrap().status == 500));
    wait::throughout(Duration::from_millis(1500), "the new configuration stays in effect", || {
        daemon.get("/").unwrap().status == 500
    });
}

#[test]
fn a_reload_changes_the_drain_timeout_in_place() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let mut daemon = lab.start(&format!("shutdown: {{drain: 60s}}\n{}", pool(&[&origin], "")));
    apply(&lab, &daemon, &format!("shutdown: {{drain: 200ms}}\n{}", pool(&[&origin], "")));
    origin.behave(Behaviour::Hang);
    let _hangs = daemon.begin("/hangs");
    origin.received("/hangs");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait_exit(Duration::from_secs(10)).code(), Some(3), "{}", daemon.log());
}

#[test]
fn fifty_reloads_under_load_fail_no_request() {
    let lab = Lab::new();
    let origins = ["one", "two", "three", "four"].map(Origin::start);
    let of = |number: usize| -> Vec<SocketAddr> {
        let chosen = origins.iter().enumerate().filter(|(index, _)| !(number + index).is_multiple_of(3));
        chosen.map(|(_, origin)| origin.address).collect()
    };
    let policies = ["round_robin", "random", "least_request", "peak_ewma", "consistent_hash", "maglev"];
    let body = |number: usize| {
        let policy = policies[number % policies.len()];
        pool_of(&of(number), &format!("policy: {policy}\nhealth_check: {{interval: 100ms}}"))
    };
    let daemon = lab.start(&body(0));
    let (load, fresh) = (LoadGenerator::start(lab.listener, 3, 0), LoadGenerator::start(lab.listener, 0, 2));
    for number in 1..=50 {
        let served = load.report().ok;
        apply(&lab, &daemon, &body(number));
        wait::until(LONG, "requests continue", || load.report().ok > served + 5);
    }
    let (report, fresh) = (load.stop(), fresh.stop());
    println!("{report:?} {fresh:?}");
    assert_eq!((report.failed, report.reconnects, report.announced_closes), (0, 0, 0), "{report:?}");
    assert_eq!(fresh.failed, 0, "{fresh:?}");
    assert_eq!(daemon.metric("lb_config_generation", &[]), 51.0);
    daemon.settle();
}
