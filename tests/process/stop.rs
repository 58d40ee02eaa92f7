//! The shutdown of the daemon: the subcommand `stop`, signals, and the number of requests that are cut.

use std::time::Duration;

use tests::daemon::{Daemon, Finished, path_str};
use tests::process::{listening_sockets, started_with};
use tests::wait::{self, LONG};
use tests::{Behaviour, CannedResponse, Connection, Gate, Lab, Origin, Signal};

use crate::pool;

/// A lab whose origin holds back its responses until the gate opens.
struct Held {
    lab: Lab,
    origin: Origin,
    gate: Gate,
}

impl Held {
    fn new(more: &str) -> Self {
        let (lab, origin, gate) = (Lab::new(), Origin::start("one"), Gate::closed());
        origin.behave(Behaviour::Held(gate.clone(), CannedResponse::ok("held")));
        lab.config(&format!("{more}{}", pool(&[&origin], "")));
        Self { lab, origin, gate }
    }

    /// Begins a request, and waits until it has arrived at the origin.
    fn request(&self) -> Connection {
        let before = self.origin.working();
        let mut client = Connection::open(self.lab.listener).unwrap();
        client.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        wait::until(LONG, "the request has arrived", || self.origin.working() > before);
        client
    }

    fn start(&self) -> Daemon {
        self.lab.start_file(&self.lab.path("conf.yaml"))
    }

    /// Starts `stop` in the background.
    fn stopping(&self, words: &[&str]) -> Daemon {
        self.lab.spawn(&[&["stop", "-c", path_str(&self.lab.path("conf.yaml"))], words].concat())
    }

    #[track_caller]
    fn stop(&self, words: &[&str]) -> Finished {
        self.lab.run(&[&["stop", "-c", path_str(&self.lab.path("conf.yaml"))], words].concat())
    }

    /// Asserts that no file and no listening socket is left that could prevent a start.
    #[track_caller]
    fn assert_clean(&self) {
        for file in ["lb.pid", "control.sock", "upgrade.sock"] {
            assert!(!self.lab.path(file).exists(), "{file}");
        }
        assert_eq!(listening_sockets(self.lab.listener) + listening_sockets(self.lab.metrics), 0);
    }
}

#[test]
fn two_signals_in_quick_succession_cut_nothing_when_nothing_is_in_flight() {
    let origin = Origin::start("one");
    for _ in 0..3 {
        let lab = Lab::new();
        let mut daemon = lab.start(&pool(&[&origin], ""));
        let mut idle = daemon.connect();
        idle.get("/").unwrap();
        daemon.settle();
        // The kernel might merge two signals of the same kind.
        daemon.signal(Signal::SIGTERM);
        daemon.signal(Signal::SIGINT);
        assert_eq!(daemon.wait_exit(LONG).code(), Some(0), "{}", daemon.log());
        assert!(!daemon.log().contains("1 request"), "{}", daemon.log());
    }
}

#[test]
fn a_request_cut_by_a_second_signal_is_counted_once() {
    let held = Held::new("shutdown: {drain: 60s}\n");
    let mut daemon = held.start();
    let _client = held.request();
    daemon.signal(Signal::SIGTERM);
    daemon.signal(Signal::SIGINT);
    assert_eq!(daemon.wait_exit(LONG).code(), Some(3), "{}", daemon.log());
    daemon.logged(&["ending at once: 1 request cut"]);
    daemon.logged(&["draining: listeners closed, 1 request in flight"]);
}

#[test]
fn stop_finishes_the_requests_in_flight_and_removes_all_runtime_files() {
    let held = Held::new("shutdown: {drain: 60s}\n");
    let daemon = held.lab.daemonize_file(&held.lab.path("conf.yaml"), &[]);
    let mut client = held.request();
    let (mut first, mut second) = (held.stopping(&[]), held.stopping(&[]));
    daemon.logged(&["draining"]);
    wait::until(LONG, "both subcommands have arrived", || {
        daemon.log().matches("stop: requested").count() == 2
    });
    assert!(daemon.process.alive(), "the daemon ended with a request in flight");
    held.gate.open();
    assert_eq!(client.response("GET").unwrap().text(), "held");
    for stop in [&mut first, &mut second] {
        assert_eq!(stop.wait_exit(LONG).code(), Some(0), "{}", stop.log());
        let line = format!("process {} drained in ", daemon.process.0);
        assert!(stop.log().contains(&line) && stop.log().contains("; 0 requests cut"), "{}", stop.log());
    }
    assert!(!daemon.process.alive());
    held.assert_clean();
    let _again = held.lab.daemonize_file(&held.lab.path("conf.yaml"), &[]);
    assert_eq!(held.stop(&[]).code, Some(0));
    let no_daemon = held.stop(&[]);
    assert_eq!(no_daemon.code, Some(1));
    assert!(no_daemon.stderr.contains("no daemon"), "{no_daemon:?}");
}

#[test]
fn stop_exits_with_3_and_reports_cut_requests_when_the_drain_times_out() {
    let held = Held::new("shutdown: {drain: 300ms}\n");
    let mut daemon = held.start();
    let _client = held.request();
    let stop = held.stop(&[]);
    assert_eq!((stop.code, daemon.wait_exit(LONG).code()), (Some(3), Some(3)), "{stop:?}");
    assert!(stop.stderr.contains("the drain timed out") && stop.stderr.contains("1 request cut"), "{stop:?}");
    held.assert_clean();
}

#[test]
fn stop_now_cuts_the_requests_in_flight_even_during_a_drain() {
    let held = Held::new("shutdown: {delay: 60s, drain: 60s}\n");
    let mut daemon = held.start();
    let _client = held.request();
    let late = held.stop(&["--timeout", "300ms"]);
    assert_eq!(late.code, Some(1), "{late:?}");
    assert!(late.stderr.contains("continues to drain"), "{late:?}");
    assert!(daemon.process.alive());
    let stop = held.stop(&["--now"]);
    assert_eq!((stop.code, daemon.wait_exit(LONG).code()), (Some(0), Some(3)), "{stop:?}");
    assert!(stop.stdout.contains("1 request cut"), "{stop:?}");
    held.assert_clean();
}

#[test]
fn stop_fails_when_the_daemon_is_killed_during_its_drain() {
    let held = Held::new("shutdown: {drain: 60s}\n");
    let daemon = held.start();
    let _client = held.request();
    let mut stop = held.stopping(&[]);
    daemon.logged(&["draining"]);
    daemon.signal(Signal::SIGKILL);
    assert_eq!(stop.wait_exit(LONG).code(), Some(1), "{}", stop.log());
    assert!(stop.log().contains("ended without reporting the result of its drain"), "{}", stop.log());
}

#[test]
fn stop_ends_both_processes_of_an_upgrade() {
    let held = Held::new("");
    held.lab.install();
    let daemon = held.lab.daemonize_file(&held.lab.path("conf.yaml"), &[]);
    held.lab.replace_program(Some("exec sleep 60"));
    daemon.process.signal(Signal::SIGUSR2);
    let new = wait::until_some(LONG, "the new process starts", || daemon.process.children().first().copied());
    let stop = held.stop_built();
    assert_eq!(stop.code, Some(0), "{stop:?}");
    assert!(!daemon.process.alive());
    new.wait_gone(LONG);
    held.assert_clean();
}

#[test]
fn stop_also_waits_for_the_old_process_of_an_upgrade() {
    let held = Held::new("shutdown: {drain: 60s}\n");
    let old = held.lab.daemonize_file(&held.lab.path("conf.yaml"), &[]);
    let mut client = held.request();
    let upgraded = held.lab.run(&["upgrade", "-c", path_str(&held.lab.path("conf.yaml"))]);
    assert_eq!(upgraded.code, Some(0), "{upgraded:?}");
    let new = held.lab.successor(old.process);
    let mut stop = held.stopping(&[]);
    new.process.wait_gone(LONG);
    assert!(old.process.alive(), "the old process ended with a request in flight");
    held.gate.open();
    assert_eq!(client.response("GET").unwrap().text(), "held");
    assert_eq!(stop.wait_exit(LONG).code(), Some(0), "{}", stop.log());
    for process in [old.process, new.process] {
        assert!(stop.log().contains(&format!("process {} drained", process.0)), "{}", stop.log());
    }
    assert_eq!(started_with(held.lab.directory()), []);
}

#[test]
fn a_stop_also_waits_for_a_process_before_that_had_another_control_socket() {
    let held = Held::new("shutdown: {drain: 60s}\n");
    let config = held.lab.path("conf.yaml");
    let old = held.lab.daemonize_file(&config, &[]);
    let mut client = held.request();
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("control.sock", "moved.sock")).unwrap();
    let control = held.lab.path("control.sock");
    let upgraded = held.lab.run(&["upgrade", "--socket", path_str(&control)]);
    assert_eq!(upgraded.code, Some(0), "{upgraded:?}");
    let new = held.lab.successor(old.process);
    let status = held.lab.run(&["status", "-c", path_str(&config)]);
    assert!(status.stdout.contains(&format!("process {} has handed over", old.process.0)), "{status:?}");
    let mut stop = held.stopping(&[]);
    new.process.wait_gone(LONG);
    assert!(old.process.alive(), "it has a request in flight");
    held.gate.open();
    assert_eq!(client.response("GET").unwrap().text(), "held");
    assert_eq!(stop.wait_exit(LONG).code(), Some(0), "{}", stop.log());
    assert!(stop.log().contains(&format!("process {} drained", old.process.0)), "{}", stop.log());
}

impl Held {
    /// Runs `stop` with the original program, even if the lab has replaced the installed one.
    #[track_caller]
    fn stop_built(&self) -> Finished {
        self.lab.run_built(&["stop", "-c", path_str(&self.lab.path("conf.yaml")), "--timeout", "20s"])
    }
}

/// `stop` also waits for the delay, which comes before the drain.
#[test]
fn stop_serves_traffic_during_the_delay_as_a_signal_does() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.start(&format!("shutdown: {{delay: 1s}}\n{}", pool(&[&origin], "")));
    let mut stop = lab.spawn(&["stop", "-c", path_str(&lab.path("conf.yaml"))]);
    wait::until(LONG, "/readyz is 503", || daemon.read("/readyz").is_ok_and(|r| r.status == 503));
    assert_eq!(daemon.get("/").unwrap().status, 200);
    assert_eq!(stop.wait_exit(LONG + Duration::from_secs(1)).code(), Some(0), "{}", stop.log());
}
