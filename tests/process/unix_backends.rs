//! Backends on Unix sockets.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tests::daemon::{View, path_str};
use tests::skip::unless_root;
use tests::wait::{self, LONG};
use tests::{Authority, Behaviour, CannedResponse, Gate, GrpcOrigin, Lab, Origin, Serving, UnixBridge};

/// Frequent health checks of this type.
fn check(kind: &str, more: &str) -> String {
    format!("{{type: {kind}, interval: 200ms, fast_interval: 200ms, rise: 1, fall: 1{more}}}")
}

/// The section `pools` with one pool, `web`, of these backends.
fn pool(backends: &[&str], check: &str, more: &str) -> String {
    format!(
        "pools:\n  web:\n    backends: [{}]\n    health_check: {check}\n    {more}\n",
        backends.join(", ")
    )
}

/// Waits until the metrics show this backend as up or down.
#[track_caller]
fn wait_up(daemon: &View, pool: &str, backend: &str, up: bool) {
    let labels = [format!("pool=\"{pool}\""), format!("backend=\"{backend}\"")];
    let labels = labels.each_ref().map(String::as_str);
    let wanted = if up { 1.0 } else { 0.0 };
    wait::until(LONG, &format!("{backend} has up={up}"), || {
        daemon.metric("lb_backend_up", &labels) == wanted
    });
}

#[test]
fn requests_and_checks_of_each_type_reach_backends_on_unix_sockets() {
    let (lab, origin, grpc) = (Lab::new(), Origin::start("one"), GrpcOrigin::start());
    grpc.set("", Serving::Serving);
    let http = UnixBridge::start(&lab.path("http.sock"), origin.address);
    let calls = UnixBridge::start(&lab.path("grpc.sock"), grpc.address);
    let unset = format!("unix:{}", lab.path("missing.sock").display());
    let log = format!("access_log: {{format: json, path: {}}}\n", lab.path("access.log").display());
    let text = format!(
        "{log}pools:\n  web: {{backends: [\"{http}\", \"{unset}\"], health_check: {of_http}, retries: {{attempts: 0}}}}\n  \
         tcp: {{backends: [{{address: \"{http}\", weight: 2}}, \"{unset}\"], health_check: {of_tcp}}}\n  \
         grpc: {{backends: [\"{calls}\", \"{unset}\"], health_check: {of_grpc}}}\n\
         routes: [{{match: {{path: /tcp}}, pool: tcp}}, {{match: {{path: /grpc}}, pool: grpc}}, {{pool: web}}]\n",
        http = http.address(),
        calls = calls.address(),
        of_http = check("http", ", path: /checked"),
        of_tcp = check("tcp", ""),
        of_grpc = check("grpc", ""),
    );
    let daemon = lab.start(&text);
    for pool in ["web", "tcp", "grpc"] {
        daemon.logged(&[&format!("pool {pool}: backend {unset} is down"), "the socket does not exist"]);
    }
    let own = http.address();
    wait_up(&daemon, "web", &own, true);
    wait_up(&daemon, "grpc", &calls.address(), true);
    assert_eq!(origin.received("/checked").header("host"), Some("localhost"));
    assert_eq!(grpc.checks()[0].authority, "localhost");

    assert_eq!(daemon.get("/tcp").unwrap().origin(), "one");
    let mut client = daemon.connect();
    client.request("GET", "/named", &[("Host", "shop.test")], b"").unwrap();
    assert_eq!(origin.received("/named").header("host"), Some("shop.test"));
    let mut old = daemon.connect();
    old.send("GET /old HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(old.response("GET").unwrap().status, 200);
    assert_eq!(origin.received("/old").header("host"), Some("localhost"));

    let reused = format!("backend=\"{own}\"");
    let kept =
        || daemon.metric("lb_upstream_connections_total", &["pool=\"web\"", &reused, "reused=\"true\""]);
    wait::until(LONG, "a connection to the socket is used again", || {
        daemon.get("/again").unwrap();
        kept() > 0.0
    });
    let log = || fs::read_to_string(lab.path("access.log")).unwrap();
    let names_it = |line: &str| line.contains("/named") && line.contains(&own);
    wait::until(LONG, "the access log names the backend", || log().lines().any(names_it));
}

#[test]
fn operators_change_backends_on_unix_sockets_and_a_reload_keeps_the_change() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let (a, b) = (lab.path("a.sock"), lab.path("b.sock"));
    let bridges = [UnixBridge::start(&a, one.address), UnixBridge::start(&b, two.address)];
    let [a, b] = bridges.each_ref().map(UnixBridge::address);
    let daemon = lab.start(&pool(&[&format!("\"{a}\"")], "{type: none}", ""));
    let config = lab.path("conf.yaml");
    let run = |arguments: &[&str]| {
        let finished = lab.run(&[arguments, &["-c", path_str(&config)]].concat());
        assert_eq!(finished.code, Some(0), "{finished:?}");
        finished.stdout
    };
    run(&["add", "web", &b]);
    run(&["disable", "web", &a]);
    let served = || daemon.get("/").unwrap().origin().to_owned();
    assert!((0..4).all(|_| served() == "two"));
    run(&["reload", "--keep-runtime"]);
    assert!((0..4).all(|_| served() == "two"));
    let explained = run(&["explain"]);
    assert!(explained.contains(&a) && explained.contains(&b), "{explained}");
    assert!(run(&["names", "web"]).contains(&a));

    let gate = Gate::closed();
    two.behave(Behaviour::Held(gate.clone(), CannedResponse::ok("held")));
    let mut held = daemon.begin("/held");
    two.received("/held");
    run(&["enable", "web", &a]);
    run(&["drain", "web", &b]);
    gate.open();
    assert_eq!(held.response("GET").unwrap().text(), "held");
    run(&["remove", "web", &b]);
    assert!((0..4).all(|_| served() == "one"));
}

#[test]
fn proxy_takes_a_unix_socket_as_a_backend() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let bridge = UnixBridge::start(&lab.path("app.sock"), origin.address);
    let (listen, metrics) = (lab.listener.to_string(), lab.metrics.to_string());
    let proxy = ["proxy", "--to", &bridge.address(), "--listen", &listen, "--metrics", &metrics];
    let _daemon = lab.spawn(&proxy);
    let response = wait::poll(LONG, || tests::get(lab.listener, "/").ok());
    assert_eq!(response.expect("the daemon serves").origin(), "one");
    let refused = lab.run(&["proxy", "--to", "unix:app.sock"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("must be absolute"), "{refused:?}");
}

#[test]
fn sessions_and_hashes_stay_at_a_backend_on_a_unix_socket() {
    let lab = Lab::new();
    let origins = [Origin::start("one"), Origin::start("two")];
    let bridges = [("a.sock", &origins[0]), ("b.sock", &origins[1])]
        .map(|(name, origin)| UnixBridge::start(&lab.path(name), origin.address));
    let backends = bridges.each_ref().map(|bridge| format!("\"{}\"", bridge.address()));
    let backends = backends.each_ref().map(String::as_str);
    for policy in ["consistent_hash", "maglev"] {
        let text = pool(&backends, "{type: none}", &format!("policy: {policy}\n    hash_on: uri"));
        let mut daemon = lab.start(&text);
        let owner = |key: usize| daemon.get(&format!("/{key}")).unwrap().origin().to_owned();
        let owners: Vec<_> = (0..40).map(owner).collect();
        assert!(["one", "two"].iter().all(|name| owners.iter().any(|owner| owner == name)), "{owners:?}");
        assert_eq!((0..40).map(owner).collect::<Vec<_>>(), owners);
        daemon.stop();
    }
    let daemon = lab.start(&pool(&backends, "{type: none}", "sticky: {cookie: lb}"));
    let first = daemon.get("/").unwrap();
    let cookie = first.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    for _ in 0..6 {
        let response =
            daemon.connect().request("GET", "/", &[("Host", "a"), ("Cookie", &cookie)], b"").unwrap();
        assert_eq!(response.origin(), first.origin());
    }
}

#[test]
fn tls_to_a_unix_socket_verifies_the_certificate_for_the_configured_name() {
    let lab = Lab::new();
    let (authority, ca) = (Authority::new(), lab.path("ca.pem"));
    authority.write(&ca).unwrap();
    let origin = Origin::start_tls("one", authority.certify(&["app.test"]).server());
    let bridge = UnixBridge::start(&lab.path("app.sock"), origin.address);
    let backend = format!("\"{}\"", bridge.address());
    for (sni, up) in [("app.test", true), ("other.test", false)] {
        let more = format!("tls: {{sni: {sni}, ca: {}}}\n    panic_threshold: 0", ca.display());
        let mut daemon = lab.start_listening(&pool(&[&backend], &check("http", ""), &more));
        let checks = || {
            daemon.metric("lb_health_checks_total", &[if up { "result=\"pass\"" } else { "result=\"fail\"" }])
        };
        wait::until(LONG, "the backend has been checked", || checks() > 0.0);
        wait_up(&daemon, "web", &bridge.address(), up);
        assert_eq!(daemon.get("/").unwrap().status, if up { 200 } else { 503 });
        daemon.stop();
    }
    assert!(origin.seen().iter().all(|seen| seen.sni.as_deref() == Some("app.test")));
}

#[test]
fn a_socket_that_the_user_of_the_daemon_cannot_write_to_is_down_with_the_reason() {
    if unless_root("only root can start a daemon that becomes another user") {
        return;
    }
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    fs::set_permissions(lab.directory(), fs::Permissions::from_mode(0o777)).unwrap();
    let path = lab.path("app.sock");
    let bridge = UnixBridge::start(&path, origin.address);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let backend = format!("\"{}\"", bridge.address());
    let daemon =
        lab.start_listening(&format!("user: www-data\n{}", pool(&[&backend], &check("tcp", ""), "")));
    daemon.logged(&[
        &bridge.address(),
        "is down",
        "permission denied",
        "needs write permission for the socket",
    ]);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    wait_up(&daemon, "web", &bridge.address(), true);
    assert_eq!(daemon.get("/").unwrap().origin(), "one");
}
