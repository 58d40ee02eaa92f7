//! Connection races: a connection attempt that takes too long, and another backend that is connected before.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};
use std::{fs, thread};

use tests::client::head_bytes;
use tests::wait::{self, LONG};
use tests::{Authority, Daemon, Lab, Origin, Unreachable};

use crate::{pool_of, tally};

/// A connection attempt takes longer than any test.
const PATIENT: &str = "timeouts: {connect: 5m}";

/// The state of a socket that is connecting, in `/proc/net/tcp`.
const SYN_SENT: &str = "02";

/// Returns the number of races with this result.
fn races(daemon: &Daemon, result: &str) -> f64 {
    daemon.metric("lb_upstream_connect_races_total", &["pool=\"web\"", &format!("result=\"{result}\"")])
}

fn of_backend(daemon: &Daemon, name: &str, address: SocketAddr) -> f64 {
    daemon.metric(name, &[&format!("backend=\"{address}\"")])
}

/// Sends requests until this many have been raced, and asserts that all of them succeed at the other backend.
#[track_caller]
fn race(daemon: &Daemon, method: &str, count: f64) {
    wait::until(LONG, "connections are raced", || {
        let response = daemon.connect().request(method, "/raced", &[], b"body").unwrap();
        assert_eq!((response.status, response.origin()), (200, "up"), "{}", daemon.log());
        races(daemon, "second") >= count
    });
}

/// Sends requests until one goes to this backend first and fails to connect there.
#[track_caller]
fn fails_to_connect(daemon: &Daemon, address: SocketAddr, statuses: [u16; 2]) {
    for _ in 0..2 {
        let status = daemon.get("/waits").unwrap().status;
        assert!(statuses.contains(&status), "{status}: {}", daemon.log());
    }
    daemon.logged(&["/waits", &format!("tried={address}:connect ")]);
    for result in ["first", "second", "neither"] {
        assert_eq!(races(daemon, result), 0.0, "{result}");
    }
}

#[test]
fn a_request_of_any_method_goes_to_another_backend_when_a_connection_takes_too_long() {
    let (lab, silent, up) = (Lab::new(), Unreachable::start(), Origin::start("up"));
    let daemon = lab.start(&pool_of(&[silent.address, up.address], PATIENT));
    race(&daemon, "POST", 2.0);
    race(&daemon, "GET", 3.0);
    assert!(up.seen().iter().all(|seen| seen.body.start == b"body"));
    daemon.logged(&["/raced", "200", "tries=2", &format!("tried={}:connect_race ", silent.address)]);
    // The attempt goes on in the background, but its request is over.
    assert_eq!(of_backend(&daemon, "lb_upstream_requests_in_flight", silent.address), 0.0);
    assert_eq!(daemon.metric("lb_upstream_retries_total", &[]), 0.0, "a race is not a retry");
}

#[test]
fn connect_race_sets_the_time_after_which_a_connection_is_raced() {
    const LATE: Duration = Duration::from_secs(2);
    let (lab, silent, up) = (Lab::new(), Unreachable::start(), Origin::start("up"));
    let more = format!("{PATIENT}\nretries: {{connect_race: 2s}}");
    let daemon = lab.start(&pool_of(&[silent.address, up.address], &more));
    let mut slowest = Duration::ZERO;
    for _ in 0..2 {
        let began = Instant::now();
        assert_eq!(daemon.get("/").unwrap().status, 200);
        slowest = slowest.max(began.elapsed());
    }
    assert!(races(&daemon, "second") >= 1.0);
    assert!(slowest >= LATE, "{slowest:?}");
}

#[test]
fn nothing_is_raced_when_connect_race_is_0s() {
    let (lab, silent, up) = (Lab::new(), Unreachable::start(), Origin::start("up"));
    let more = "timeouts: {connect: 1s}\nretries: {connect_race: 0s}";
    let daemon = lab.start(&pool_of(&[silent.address, up.address], more));
    fails_to_connect(&daemon, silent.address, [200, 200]);
}

#[test]
fn nothing_is_raced_when_failed_connections_are_not_retried() {
    for retries in ["attempts: 0", "when: [reset, timeout, 502, 503, 504]"] {
        let (lab, silent, up) = (Lab::new(), Unreachable::start(), Origin::start("up"));
        let more = format!("timeouts: {{connect: 1s}}\nretries: {{{retries}}}");
        let daemon = lab.start(&pool_of(&[silent.address, up.address], &more));
        fails_to_connect(&daemon, silent.address, [200, 502]);
    }
}

#[test]
fn nothing_is_raced_when_the_retry_budget_is_used_up() {
    let (lab, silent, up) = (Lab::new(), Unreachable::start(), Origin::start("up"));
    let more = "timeouts: {connect: 1s}\nretries: {budget_percent: 0, min_concurrent: 0}";
    let daemon = lab.start(&pool_of(&[silent.address, up.address], more));
    fails_to_connect(&daemon, silent.address, [200, 200]);
    assert!(races(&daemon, "denied") >= 1.0);
}

#[test]
fn a_request_with_a_hash_key_is_not_raced() {
    let (lab, silent, up) = (Lab::new(), Unreachable::start(), Origin::start("up"));
    let more = "policy: consistent_hash\nhash_on: {header: X-Key}\ntimeouts: {connect: 1s}";
    let daemon = lab.start(&pool_of(&[silent.address, up.address], more));
    let mut keys = 0..100;
    wait::until(LONG, "a key belongs to the backend that cannot be reached", || {
        let key = keys.next().expect("keys are spread over both backends").to_string();
        let response = daemon.connect().request("GET", "/keyed", &[("X-Key", &key)], b"").unwrap();
        assert_eq!(response.status, 200, "{}", daemon.log());
        daemon.metric("lb_upstream_errors_total", &["reason=\"connect\""]) == 1.0
    });
    assert_eq!(races(&daemon, "second"), 0.0);
    let (lab, more) = (Lab::new(), more.replace("connect: 1s", "connect: 5m"));
    let daemon = lab.start(&pool_of(&[silent.address, up.address], &more));
    // Without a key, requests are balanced by round robin, and raced.
    race(&daemon, "GET", 1.0);
}

#[test]
fn a_request_with_a_session_is_not_raced() {
    let (lab, up) = (Lab::new(), Origin::start("up"));
    let home = Origin::start("home");
    let address = home.address;
    let daemon = lab.start(&pool_of(&[address, up.address], "sticky: {cookie: lb}\ntimeouts: {connect: 1s}"));
    let cookie = wait::until_some(LONG, "a session begins at the first backend", || {
        let response = daemon.get("/").unwrap();
        let cookie = response.header("Set-Cookie").unwrap().split(';').next().unwrap().to_owned();
        (response.origin() == "home").then_some(cookie)
    });
    drop(home);
    let _silent = Unreachable::start_at(address);
    let of_session = |target| daemon.connect().request("GET", target, &[("Cookie", &cookie)], b"").unwrap();
    assert_eq!(of_session("/session").status, 200, "{}", daemon.log());
    daemon.logged(&["/session", &format!("tried={address}:connect ")]);
    assert_eq!(races(&daemon, "second"), 0.0);
    // A client that has no session yet gets one at the backend that is connected first.
    let new = wait::until_some(LONG, "a connection is raced", || {
        let response = daemon.get("/new").unwrap();
        assert_eq!((response.status, response.origin()), (200, "up"));
        (races(&daemon, "second") > 0.0).then(|| response.header("Set-Cookie").unwrap().to_owned())
    });
    assert!(!new.starts_with(&cookie), "{new}");
}

#[test]
fn a_handshake_that_takes_too_long_is_raced() {
    let lab = Lab::new();
    let authority = Authority::new();
    let up = Origin::start_tls("up", authority.certify(&["a.test"]).server());
    // The system accepts the connections, and no handshake ever begins.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    authority.write(&lab.path("ca.pem")).unwrap();
    let more = format!("{PATIENT}\ntls: {{sni: a.test, ca: {}}}", lab.path("ca.pem").display());
    let daemon = lab.start(&pool_of(&[silent.local_addr().unwrap(), up.address], &more));
    race(&daemon, "POST", 1.0);
}

#[test]
fn the_connection_of_the_loser_serves_a_later_request() {
    let (lab, silent, up) = (Lab::new(), Unreachable::start(), Origin::start("up"));
    let address = silent.address;
    let daemon = lab.start(&pool_of(&[address, up.address], PATIENT));
    race(&daemon, "GET", 1.0);
    let late = silent.accepts("late");
    wait::until(LONG, "the connection is idle", || {
        of_backend(&daemon, "lb_upstream_connections_idle", address) == 1.0
    });
    let served = wait::until_some(LONG, "the backend gets a request", || {
        Some(daemon.get("/later").unwrap()).filter(|response| response.origin() == "late")
    });
    assert_eq!(served.status, 200);
    assert_eq!(late.requests(), 1);
    daemon.logged(&["/later", &format!(" {address} "), "reused=yes", "tried=- "]);
    assert_eq!(daemon.metric("lb_upstream_errors_total", &[]), 0.0);
}

#[test]
fn the_first_backend_keeps_the_request_if_it_is_connected_first() {
    let (lab, first, second) = (Lab::new(), Unreachable::start(), Unreachable::start());
    let (one, two) = (first.address, second.address);
    let text = pool_of(&[one, two], PATIENT);
    let heavy = text.replace(&format!("\"{one}\""), &format!("{{address: \"{one}\", weight: 2}}"));
    let daemon = lab.start(&heavy);
    let mut client = daemon.connect();
    client.send(head_bytes("POST", "/late", &[], 4)).unwrap();
    client.send("body").unwrap();
    wait::until(LONG, "both backends are being connected", || {
        [one, two]
            .iter()
            .all(|address| of_backend(&daemon, "lb_upstream_requests_in_flight", *address) == 1.0)
    });
    let origin = first.accepts("first");
    let response = client.response("POST").unwrap();
    assert_eq!((response.status, response.origin()), (200, "first"));
    assert_eq!((origin.requests(), origin.received("/late").body.start), (1, b"body".to_vec()));
    daemon.logged(&["/late", "tries=2", "reused=no", &format!("tried={two}:connect_race ")]);
    assert_eq!(races(&daemon, "first"), 1.0);
}

#[test]
fn a_backend_that_loses_every_race_is_ejected() {
    let (lab, silent, up) = (Lab::new(), Unreachable::start(), Origin::start("up"));
    let more = "timeouts: {connect: 600ms}\nretries: {connect_race: 50ms}\n\
                outlier_detection: {consecutive_failures: 2, base_ejection: 60s}";
    let daemon = lab.start(&pool_of(&[silent.address, up.address], more));
    wait::until(LONG, "the backend is ejected", || {
        let response = daemon.get("/").unwrap();
        assert_eq!((response.status, response.origin()), (200, "up"), "{}", daemon.log());
        of_backend(&daemon, "lb_backend_ejections_total", silent.address) == 1.0
    });
    assert_eq!(daemon.metric("lb_upstream_errors_total", &["reason=\"connect\""]), 2.0);
    assert!(races(&daemon, "second") >= 2.0);
    assert_eq!(daemon.metric("lb_upstream_retries_total", &[]), 0.0);
    daemon.logged(&["WARN", "ejected", "failures in a row (the latest: connect)"]);
}

#[test]
fn a_request_fails_when_neither_backend_can_be_reached() {
    let (lab, silents) = (Lab::new(), [Unreachable::start(), Unreachable::start()]);
    let more = "timeouts: {connect: 1s}\nretries: {connect_race: 100ms}";
    let daemon = lab.start(&pool_of(&[silents[0].address, silents[1].address], more));
    assert_eq!(daemon.get("/gone").unwrap().status, 502);
    let [one, two] = silents.each_ref().map(|silent| format!("{}:connect", silent.address));
    let line = daemon.logged(&["/gone", "502", "tries=2", &one, &two, "timed out"]);
    assert!(!line.contains("connect_race"), "{line}");
    assert_eq!(races(&daemon, "neither"), 1.0);
    for silent in &silents {
        assert_eq!(of_backend(&daemon, "lb_upstream_errors_total", silent.address), 1.0);
    }
}

#[test]
fn a_client_that_leaves_ends_the_race() {
    let (lab, silents) = (Lab::new(), [Unreachable::start(), Unreachable::start()]);
    let daemon = lab.start(&pool_of(&[silents[0].address, silents[1].address], PATIENT));
    let in_flight =
        |silent: &Unreachable| of_backend(&daemon, "lb_upstream_requests_in_flight", silent.address);
    let mut client = daemon.connect();
    client.send(head_bytes("GET", "/left", &[], 0)).unwrap();
    wait::until(LONG, "both backends are being connected", || {
        silents.iter().all(|silent| in_flight(silent) == 1.0)
    });
    drop(client);
    daemon.logged(&["/left", "499"]);
    assert_eq!(silents.iter().map(in_flight).sum::<f64>(), 0.0);
    assert_eq!(races(&daemon, "neither"), 1.0);
}

/// The requests come at once, so their attempts at the backend are in progress at the same time. The first one to lose
/// goes on in the background, and the others are dropped.
#[test]
fn a_backend_has_one_connection_attempt_in_the_background() {
    let (lab, silent, up) = (Lab::new(), Unreachable::start(), Origin::start("up"));
    let more = format!("{PATIENT}\nretries: {{min_concurrent: 100}}");
    let daemon = lab.start(&pool_of(&[silent.address, up.address], &more));
    let statuses = thread::scope(|scope| {
        let clients: Vec<_> = (0..10).map(|_| scope.spawn(|| daemon.get("/many").unwrap().status)).collect();
        tally(clients.into_iter().map(|client| client.join().unwrap()))
    });
    assert_eq!(statuses, [(200, 10)]);
    assert!(races(&daemon, "second") >= 2.0);
    wait::until(LONG, "one attempt is left", || connecting(silent.address) == 1);
}

/// Returns the number of sockets that are connecting to this address.
fn connecting(address: SocketAddr) -> usize {
    let SocketAddr::V4(address) = address else { panic!("the addresses are IPv4") };
    let ip = u32::from_ne_bytes(address.ip().octets());
    let of_address = format!("{ip:08X}:{:04X}", address.port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let sockets = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    sockets.filter(|fields| fields.get(2..4) == Some(&[of_address.as_str(), SYN_SENT])).count()
}
