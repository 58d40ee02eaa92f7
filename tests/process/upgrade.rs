//! Graceful upgrades, by `SIGQUIT` and a second start with `-u`, by `SIGUSR2`, and by the subcommand `upgrade`.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tests::daemon::{Finished, path_str};
use tests::process::{Process, listening_sockets, started_with};
use tests::skip::unless_root;
use tests::wait::{self, LONG};
use tests::{
    Background, Behaviour, CannedResponse, Connection, Gate, Lab, LoadGenerator, Origin, Signal, ports,
};

use crate::reload::{assert_second_daemon_fails, at, mode_of, movable};
use crate::{pool, pool_of};

/// Upgrades `old` as the quick start does, with SIGQUIT and `-u`, and returns the new process.
#[track_caller]
fn upgrade(lab: &Lab, old: &Background) -> Background {
    old.process.signal(Signal::SIGQUIT);
    lab.daemonize_file(&lab.path("conf.yaml"), &["-u"])
}

#[test]
fn ten_upgrades_under_load_fail_no_request_and_refuse_no_connection() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let mut daemon = lab.daemonize(&pool(&[&one, &two], ""));
    let load = LoadGenerator::start(lab.listener, 2, 2);
    for number in 1..=10 {
        let served = load.report().ok;
        let new = upgrade(&lab, &daemon);
        daemon.process.wait_gone(LONG);
        assert_eq!(lab.pid_in_file(), Some(new.process), "after upgrade {number}");
        assert_eq!(listening_sockets(lab.listener), 1, "after upgrade {number}");
        assert_eq!(listening_sockets(lab.metrics), 1, "after upgrade {number}");
        wait::until(LONG, "the new process serves", || load.report().ok > served + 20);
        daemon = new;
    }
    let report = load.stop();
    println!("{report:?}");
    assert_eq!(report.failed, 0, "{report:?}\n{}", lab.error_log());
    assert!(report.ok > 200, "{report:?}");
    daemon.process.signal(Signal::SIGTERM);
    daemon.process.wait_gone(LONG);
    assert_eq!(listening_sockets(lab.listener), 0);
    assert!(!lab.pid_file().exists());
}

#[test]
fn the_old_process_stays_until_its_last_request_ends() {
    let lab = Lab::new();
    let (origin, gate) = (Origin::start("one"), Gate::closed());
    origin.behave(Behaviour::Held(gate.clone(), CannedResponse::ok("held")));
    let old = lab.daemonize(&pool(&[&origin], ""));
    let mut client = old.connect();
    client.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    origin.received("/held");
    origin.behave(Behaviour::Respond(CannedResponse::ok("new")));
    let new = upgrade(&lab, &old);
    assert_eq!(new.get("/").unwrap().text(), "new");
    assert!(old.process.alive(), "the old process ended with a request in flight");
    gate.open();
    assert_eq!(client.response("GET").unwrap().text(), "held");
    let ended = Instant::now();
    old.process.wait_gone(LONG);
    // The client keeps its connection open, which must not delay the end.
    assert!(ended.elapsed() < Duration::from_secs(4), "{:?}", ended.elapsed());
    assert_eq!(lab.pid_in_file(), Some(new.process));
    assert_eq!(new.get("/").unwrap().status, 200);
}

#[test]
fn unix_sockets_are_handed_over_too() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let socket = lab.path("web.sock");
    let listeners = format!("listeners:\n  - address: unix:{}\n", socket.display());
    let old = lab.daemonize_file(&lab.config_with(&listeners, &pool(&[&origin], "")), &[]);
    assert_eq!(Connection::open_unix(&socket).unwrap().get("/").unwrap().status, 200);
    let new = upgrade(&lab, &old);
    old.process.wait_gone(LONG);
    assert_eq!(Connection::open_unix(&socket).unwrap().get("/").unwrap().status, 200);
    drop(new);
}

#[test]
fn an_upgrade_sets_the_new_mode_of_a_unix_listener() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let (socket, body) = (lab.path("web.sock"), pool(&[&origin], ""));
    let listeners =
        |mode: &str| format!("listeners: [{{address: \"unix:{}\", mode: \"{mode}\"}}]\n", socket.display());
    let mut old = lab.daemonize_file(&lab.config_with(&listeners("0600"), &body), &[]);
    for (mode, bits) in [("0600", 0o600), ("0660", 0o660)] {
        lab.config_with(&listeners(mode), &body);
        let new = upgrade(&lab, &old);
        old.process.wait_gone(LONG);
        assert_eq!(mode_of(&socket), bits);
        assert_eq!(Connection::open_unix(&socket).unwrap().get("/").unwrap().status, 200);
        old = new;
    }
}

#[test]
fn an_upgrade_moves_a_listener_and_loses_no_request() {
    let (lab, origin) = (movable(), Origin::start("one"));
    let body = pool(&[&origin], "");
    let own = lab.listener.ip().to_string();
    let mut old = lab.daemonize_file(&lab.config_with(&at(&lab, &own), &body), &[]);
    let load = LoadGenerator::start(lab.listener, 2, 4);
    for ip in ["0.0.0.0", &own, "::"] {
        lab.config_with(&at(&lab, ip), &body);
        let new = upgrade(&lab, &old);
        old.process.wait_gone(LONG);
        assert_eq!(new.get("/").unwrap().status, 200, "{ip}");
        assert_second_daemon_fails(&lab, &body);
        old = new;
    }
    let report = load.stop();
    assert_eq!(report.failed, 0, "{report:?}");
    assert!(report.ok > 100, "{report:?}");
}

#[test]
fn a_failed_upgrade_does_not_move_a_listener() {
    let (lab, origin) = (movable(), Origin::start("one"));
    let body = pool(&[&origin], "");
    let old = lab.daemonize_file(&lab.config_with(&at(&lab, "0.0.0.0"), &body), &[]);
    let load = LoadGenerator::start(lab.listener, 2, 4);
    let own = lab.listener.ip().to_string();
    lab.config_with(&at(&lab, &own), &pool_of(&[ports::free()], "health_check: {type: tcp, timeout: 1s}"));
    let upgraded = lab.run(&["upgrade", "-c", path_str(&lab.path("conf.yaml"))]);
    assert_eq!(upgraded.code, Some(1), "{upgraded:?}");
    assert_second_daemon_fails(&lab, &body);
    let report = load.stop();
    assert_eq!(report.failed, 0, "{report:?}");
    assert!(old.get("/").is_ok_and(|response| response.status == 200 && !response.closes()));
}

#[test]
fn option_u_fails_with_a_reason_when_no_old_process_runs() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let config = lab.config(&pool(&[&origin], ""));
    let finished = lab.run(&["-c", path_str(&config), "-u"]);
    assert!(matches!(finished.code, Some(1 | 2)), "{finished:?}");
    let said = finished.stderr + &lab.error_log();
    assert!(said.contains("upgrade"), "{said}");
    assert_eq!(listening_sockets(lab.listener), 0);
    assert!(!lab.pid_file().exists());
}

#[test]
fn the_old_process_keeps_serving_when_no_new_process_starts() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.daemonize(&pool(&[&origin], ""));
    daemon.process.signal(Signal::SIGQUIT);
    // The wait is longer than the time for which the old process offers its sockets.
    wait::until(Duration::from_secs(90), "the log reports that no new process came", || {
        let response = daemon.get("/").expect("the old process serves");
        assert!(response.status == 200 && !response.closes(), "{response:?}");
        lab.error_log().contains("no process started with -u connected")
    });
    wait::throughout(Duration::from_secs(1), "the old process serves", || {
        daemon.get("/").is_ok_and(|response| response.status == 200 && !response.closes())
    });
    assert_eq!(lab.pid_in_file(), Some(daemon.process));
    let new = upgrade(&lab, &daemon);
    daemon.process.wait_gone(LONG);
    assert_eq!(new.get("/").unwrap().status, 200);
}

#[test]
fn the_old_process_keeps_serving_when_the_new_process_fails_to_start() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let good = pool(&[&origin], "");
    let daemon = lab.daemonize(&good);
    // The first file fails before the new process has taken the sockets, and the second one after.
    let unreadable = lab.write("bad.yaml", "pools: {web: {backends: []}}\n");
    let taken = TcpListener::bind(ports::free()).unwrap();
    let another = format!("  - {{address: \"{}\"}}\n", taken.local_addr().unwrap());
    let listeners = format!("listeners:\n  - {{address: \"{}\"}}\n{another}", lab.listener);
    let clashing = fs::read_to_string(lab.config_with(&listeners, &good)).unwrap();
    let clashing = lab.write("clashing.yaml", &clashing);
    lab.config(&good);
    let load = LoadGenerator::start(lab.listener, 1, 1);
    for bad in [unreadable, clashing] {
        daemon.process.signal(Signal::SIGQUIT);
        let finished = lab.run(&["-c", path_str(&bad), "-d", "-u"]);
        assert!(matches!(finished.code, Some(1 | 2)), "{finished:?}");
        let served = load.report().ok;
        wait::until(LONG, "the old process keeps serving", || load.report().ok > served + 100);
        assert!(daemon.process.alive());
        assert_eq!(lab.pid_in_file(), Some(daemon.process));
    }
    let report = load.stop();
    assert_eq!(report.failed, 0, "{report:?}");
    let new = upgrade(&lab, &daemon);
    daemon.process.wait_gone(LONG);
    assert_eq!(new.get("/").unwrap().status, 200);
}

// === upgrades that the daemon performs itself ===

/// Upgrades the daemon with SIGUSR2, and returns the new process.
#[track_caller]
fn upgrade_by_signal(lab: &Lab, old: &Background) -> Background {
    old.process.signal(Signal::SIGUSR2);
    let new = lab.successor(old.process);
    old.process.wait_gone(LONG);
    new
}

/// Runs the subcommand `upgrade`.
#[track_caller]
fn upgrade_by_subcommand(lab: &Lab) -> Finished {
    lab.run_built(&["upgrade", "-c", path_str(&lab.path("conf.yaml"))])
}

#[test]
fn ten_upgrades_by_signal_under_load_fail_no_request_and_leave_no_process() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let mut daemon = lab.daemonize(&pool(&[&one, &two], ""));
    let (load, fresh) = (LoadGenerator::start(lab.listener, 2, 0), LoadGenerator::start(lab.listener, 0, 2));
    for number in 1..=10 {
        let served = load.report().ok;
        let new = upgrade_by_signal(&lab, &daemon);
        assert_eq!(lab.pid_in_file(), Some(new.process), "after upgrade {number}");
        assert_eq!(listening_sockets(lab.listener), 1, "after upgrade {number}");
        assert_eq!(started_with(lab.directory()), [new.process], "after upgrade {number}");
        assert!(new.process.children().is_empty(), "a zombie is left");
        wait::until(LONG, "the new process serves", || load.report().ok > served + 20);
        daemon = new;
    }
    let (kept, fresh) = (load.stop(), fresh.stop());
    println!("10 upgrades: {kept:?} {fresh:?}");
    assert_eq!((kept.failed, fresh.failed), (0, 0), "{kept:?} {fresh:?}\n{}", lab.error_log());
    assert_eq!(kept.reconnects, 0, "an idle connection was closed: {kept:?}");
    assert!(kept.ok > 200, "{kept:?}");
    daemon.process.signal(Signal::SIGTERM);
    daemon.process.wait_gone(LONG);
    assert!(!lab.pid_file().exists() && !lab.path("upgrade.sock").exists());
}

#[test]
fn upgrade_waits_for_the_new_process_which_reads_the_new_file() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let old = lab.daemonize(&pool(&[&one], ""));
    lab.config(&format!("threads: 1\n{}", pool(&[&two], "")));
    let finished = upgrade_by_subcommand(&lab);
    assert_eq!(finished.code, Some(0), "{finished:?}\n{}", lab.error_log());
    let new = lab.pid_in_file().unwrap();
    assert!(finished.stdout.contains(&format!("process {} has taken over", new.0)), "{finished:?}");
    assert_eq!(old.get("/").unwrap().origin(), "two");
    old.process.wait_gone(LONG);
    // The new process can be controlled and upgraded like the old one.
    assert_eq!(upgrade_by_subcommand(&lab).code, Some(0));
    assert_ne!(lab.pid_in_file().unwrap(), new);
}

#[test]
fn the_pid_file_names_the_new_process_when_upgrade_returns() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let _daemon = lab.daemonize(&pool(&[&origin], ""));
    for _ in 0..10 {
        let finished = upgrade_by_subcommand(&lab);
        let named = lab.pid_in_file().expect("there is a PID file");
        assert_eq!(finished.code, Some(0), "{finished:?}\n{}", lab.error_log());
        assert_eq!(finished.stdout, format!("process {} has taken over\n", named.0));
    }
}

#[test]
fn an_upgrade_in_the_foreground_continues_under_another_pid() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let mut old = lab.start(&pool(&[&origin], ""));
    let finished = upgrade_by_subcommand(&lab);
    assert_eq!(finished.code, Some(0), "{finished:?}\n{}", old.log());
    assert_eq!(old.wait_exit(LONG).code(), Some(0));
    let new = lab.pid_in_file().unwrap();
    assert!(new.alive() && new != old.process);
    assert_eq!(old.get("/").unwrap().status, 200);
    new.signal(Signal::SIGTERM);
    new.wait_gone(LONG);
    assert_eq!(listening_sockets(lab.listener), 0);
}

#[test]
fn an_upgrade_keeps_changes_of_operators() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let old = lab.daemonize(&pool(&[&one, &two], ""));
    let config = lab.path("conf.yaml");
    let address = one.address.to_string();
    let changes = || old.status()["config"]["runtime_changes"].clone();
    let drained = format!("pool web: backend {address}: draining");
    assert_eq!(lab.run(&["drain", "web", &address, "-c", path_str(&config)]).code, Some(0));
    assert_eq!(lab.run(&["log-level", "debug", "-c", path_str(&config)]).code, Some(0));
    assert_eq!(changes(), json!([drained, "log level debug"]));
    let since = || old.backend_status("web", one.address)["since"].clone();
    let before = since();
    assert_eq!(upgrade_by_subcommand(&lab).code, Some(0), "{}", lab.error_log());
    old.process.wait_gone(LONG);
    assert_eq!(since(), before, "the state keeps its time");
    assert!((0..6).all(|_| old.get("/").unwrap().origin() == "two"));
    assert_eq!(old.backend_status("web", one.address)["runtime"], "draining");
    assert_eq!(changes(), json!([drained, "log level debug"]));
    assert_eq!(lab.run(&["log-level", "-c", path_str(&config)]).stdout, "debug\n");
    // The changes are also kept when the new process is started with `-u`.
    let before = lab.pid_in_file().unwrap();
    before.signal(Signal::SIGQUIT);
    let new = lab.daemonize_file(&config, &["-u"]);
    before.wait_gone(LONG);
    assert_eq!(changes(), json!([drained, "log level debug"]));
    assert_eq!(new.backend_status("web", one.address)["state"], "draining");
    // The file does not set the log level, so the reload keeps it.
    assert_eq!(lab.run(&["reload", "-c", path_str(&config)]).code, Some(0));
    assert_eq!(old.backend_status("web", one.address)["state"], "up");
    assert_eq!(changes(), json!(["log level debug"]));
}

/// A daemon with the backends `one` and `two`, and a new process that has read its file. The health checks of the new
/// process take three seconds.
struct Busy {
    lab: Lab,
    daemon: Background,
    origins: [Origin; 2],
    _silent: tests::Unreachable,
}

impl Busy {
    fn start() -> Self {
        let lab = Lab::new();
        let origins = [Origin::start("one"), Origin::start("two")];
        let daemon = lab.daemonize(&pool(&[&origins[0], &origins[1]], ""));
        let silent = tests::Unreachable::start();
        let all = [origins[0].address, origins[1].address, silent.address];
        lab.config(&pool_of(&all, "health_check: {type: tcp, timeout: 3s, interval: 3s}"));
        daemon.process.signal(Signal::SIGUSR2);
        daemon.logged(&["takes", "listeners"]);
        Self { lab, daemon, origins, _silent: silent }
    }

    /// Runs the subcommand that drains the first backend.
    fn drain(&self) -> Finished {
        let address = self.origins[0].address.to_string();
        self.lab.run(&["drain", "web", &address, "-c", path_str(&self.lab.path("conf.yaml"))])
    }
}

#[test]
fn a_change_while_the_new_process_starts_is_refused_and_not_lost() {
    let busy = Busy::start();
    let drained = busy.drain();
    let successor = busy.lab.successor(busy.daemon.process);
    assert_eq!(drained.code, Some(2), "{drained:?}");
    assert!(drained.stderr.contains("repeat the command"), "{drained:?}");
    assert_eq!(busy.drain().code, Some(0));
    assert_eq!(successor.backend_status("web", busy.origins[0].address)["runtime"], "draining");
}

#[test]
fn a_change_while_the_new_process_starts_is_applied_when_the_upgrade_fails() {
    let busy = Busy::start();
    let new = wait::until_some(LONG, "the new process runs", || {
        let all = started_with(busy.lab.directory()).into_iter();
        all.filter(|process| *process != busy.daemon.process).max_by_key(|process| process.0)
    });
    let drained = thread::scope(|scope| {
        let draining = scope.spawn(|| busy.drain());
        wait::throughout(Duration::from_millis(300), "the subcommand waits", || !draining.is_finished());
        new.signal(Signal::SIGKILL);
        draining.join().unwrap()
    });
    assert_eq!(drained.code, Some(0), "{drained:?}");
    assert_eq!(busy.daemon.backend_status("web", busy.origins[0].address)["runtime"], "draining");
}

#[test]
fn a_backend_is_not_idle_while_an_old_process_has_a_request_in_flight() {
    let lab = Lab::new();
    let (one, two, gate) = (Origin::start("one"), Origin::start("two"), Gate::closed());
    let first = lab.daemonize(&pool(&[&one, &two], ""));
    let config = lab.path("conf.yaml");
    one.behave(Behaviour::Held(gate.clone(), CannedResponse::ok("held")));
    two.behave(Behaviour::Held(gate.clone(), CannedResponse::ok("held")));
    let mut held = [first.begin("/held"), first.begin("/held")];
    one.received("/held");
    // After two upgrades, another process stands between the first one and the newest one.
    assert_eq!(upgrade_by_subcommand(&lab).code, Some(0), "{}", lab.error_log());
    assert_eq!(upgrade_by_subcommand(&lab).code, Some(0), "{}", lab.error_log());
    let address = one.address.to_string();
    let drain = |more: &[&str]| {
        lab.run(&[&["drain", "web", &address, "--wait", "-c", path_str(&config)], more].concat())
    };
    let late = drain(&["--timeout", "300ms"]);
    assert_eq!(late.code, Some(1), "{late:?}");
    assert!(late.stderr.contains("still has requests in flight"), "{late:?}");
    let screen = lab.run(&["status", "-c", path_str(&config)]).stdout;
    let line = format!("process {} has handed over and still has 2 requests in flight", first.process.0);
    assert!(screen.contains(&line), "{screen}");
    // A request that follows the events of the old process waits until the next event.
    let mut following =
        Connection::open_unix(&lab.path(&format!("control.sock.{}", first.process.0))).unwrap();
    following.send("GET /v1/events?after=1000&wait=60 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(!following.ends_within(Duration::from_millis(300)));
    thread::scope(|scope| {
        let draining = scope.spawn(|| drain(&[]));
        wait::throughout(Duration::from_millis(300), "the subcommand waits", || !draining.is_finished());
        gate.open();
        let drained = draining.join().unwrap();
        assert_eq!(drained.code, Some(0), "{drained:?}");
    });
    held.iter_mut().for_each(|held| assert_eq!(held.response("GET").unwrap().text(), "held"));
    first.process.wait_gone(LONG);
    wait::until(LONG, "only one process is left", || started_with(lab.directory()).len() == 1);
    let files = fs::read_dir(lab.directory()).unwrap().map(|file| file.unwrap().file_name());
    let sockets: Vec<_> = files.filter(|name| name.to_string_lossy().starts_with("control.sock")).collect();
    assert_eq!(sockets, ["control.sock"], "a process that has ended left its control socket");
}

#[test]
fn a_reload_while_the_new_process_starts_is_done_by_the_new_process() {
    let busy = Busy::start();
    busy.lab.config(&pool(&[&busy.origins[1]], ""));
    busy.daemon.process.signal(Signal::SIGHUP);
    let successor = busy.lab.successor(busy.daemon.process);
    wait::until(LONG, "the file is in effect", || {
        (0..4).all(|_| successor.get("/").is_ok_and(|response| response.origin() == "two"))
    });
    // The new process loaded the changed file when its start was complete. The signal then finds nothing to change.
    wait::until(LONG, "the signal is passed on", || {
        successor.status()["config"]["last_reload"]["result"] == "unchanged"
    });
}

/// The old process reloads the file after the new one has read it. The upgrade must not undo this reload.
#[test]
fn a_reload_before_the_handover_stays_in_effect_after_it() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let old = lab.daemonize(&pool(&[&one], ""));
    let config = lab.path("conf.yaml");
    thread::scope(|scope| {
        // The new process reads the file, and waits for the sockets.
        let starting = scope.spawn(|| lab.daemonize_file(&config, &["-u"]));
        wait::until(LONG, "the new process waits", || started_with(lab.directory()).len() > 1);
        let began = Instant::now();
        wait::until(LONG, "the new process has read the file", || began.elapsed() > Duration::from_secs(1));
        lab.config(&pool(&[&two], ""));
        assert_eq!(lab.run(&["reload", "-c", path_str(&config)]).code, Some(0));
        old.process.signal(Signal::SIGQUIT);
        let new = starting.join().unwrap();
        old.process.wait_gone(LONG);
        wait::until(LONG, "the file of the reload is in effect", || {
            new.get("/").is_ok_and(|response| response.origin() == "two")
        });
    });
}

#[test]
fn a_watched_file_that_changes_while_the_new_process_starts_is_loaded_by_it() {
    let lab = Lab::new();
    let (one, two, silent) = (Origin::start("one"), Origin::start("two"), tests::Unreachable::start());
    let watched = |body: &str| format!("reload: {{watch: true}}\n{body}");
    let check = "health_check: {type: tcp, timeout: 3s, interval: 3s}";
    let daemon = lab.daemonize(&watched(&pool_of(&[one.address, silent.address], check)));
    daemon.process.signal(Signal::SIGUSR2);
    daemon.logged(&["takes", "listeners"]);
    lab.config(&watched(&pool(&[&two], "")));
    let successor = lab.successor(daemon.process);
    wait::until(LONG, "the file is in effect", || {
        successor.get("/").is_ok_and(|response| response.origin() == "two")
    });
    assert_eq!(successor.status()["config"]["last_reload"]["result"], "applied");
}

/// A failing script takes the place of the new program, and the old process has to keep serving.
#[test]
fn an_upgrade_to_a_program_that_fails_changes_nothing() {
    let lab = Lab::new();
    let program = lab.install();
    let origin = Origin::start("one");
    let daemon = lab.daemonize(&pool(&[&origin], ""));
    let load = LoadGenerator::start(lab.listener, 2, 0);
    for (script, said) in
        [("echo cannot start >&2; exit 7", "exit"), ("kill -9 $$", "signal"), ("exec /nowhere/program", "")]
    {
        lab.replace_program(Some(script));
        let finished = upgrade_by_subcommand(&lab);
        assert_eq!(finished.code, Some(1), "{script}: {finished:?}");
        assert!(finished.stderr.contains(said), "{script}: {finished:?}");
        assert!(daemon.process.alive() && lab.pid_in_file() == Some(daemon.process), "{script}");
        assert_eq!(started_with(lab.directory()), [daemon.process], "{script}");
        assert!(daemon.process.children().is_empty(), "{script}: a zombie is left");
        assert!(!lab.path("upgrade.sock").exists(), "{script}: the upgrade socket is left");
        assert_eq!(daemon.get("/").unwrap().status, 200);
    }
    // An invalid file changes nothing, either.
    lab.replace_program(None);
    lab.config(&pool(&[&origin], "polcy: maglev"));
    let finished = upgrade_by_subcommand(&lab);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("unknown key `polcy`"), "{finished:?}");
    // With a valid file, the upgrade succeeds.
    lab.config(&pool(&[&origin], ""));
    assert_eq!(upgrade_by_subcommand(&lab).code, Some(0), "{}", lab.error_log());
    daemon.process.wait_gone(LONG);
    let report = load.stop();
    assert_eq!(report.failed, 0, "{report:?}");
    drop(program);
}

#[test]
fn a_new_process_that_dies_after_taking_the_sockets_changes_nothing() {
    let lab = Lab::new();
    lab.install();
    let origin = Origin::start("one");
    let daemon = lab.daemonize(&pool(&[&origin], ""));
    // Health checks delay the new process, so that it can be killed before it is ready.
    let silent = tests::Unreachable::start();
    let check = "health_check: {type: tcp, timeout: 5s, interval: 5s}";
    lab.config(&pool_of(&[origin.address, silent.address], check));
    daemon.process.signal(Signal::SIGUSR2);
    daemon.logged(&["takes", "listeners"]);
    let new = wait::until_some(LONG, "the new process runs", || {
        started_with(lab.directory()).into_iter().find(|process| *process != daemon.process)
    });
    new.signal(Signal::SIGKILL);
    daemon.logged(&["upgrade failed", "continues to serve", "SIGKILL"]);
    wait::until(LONG, "the events report the failure", || {
        let events = daemon.read("/api/v1/events").map(|response| response.text());
        events.is_ok_and(|events| events.contains("the upgrade failed") && events.contains("SIGKILL"))
    });
    wait::until(LONG, "only the old process runs", || started_with(lab.directory()) == [daemon.process]);
    assert_eq!(daemon.get("/").unwrap().status, 200);
    assert_eq!(lab.pid_in_file(), Some(daemon.process));
    lab.config(&pool(&[&origin], ""));
    upgrade_by_signal(&lab, &daemon);
}

/// The delays cover the whole start of the new process: before it connects, while it receives the sockets, during its
/// first health checks, and after it has taken over.
#[test]
fn a_new_process_serves_if_the_old_one_is_killed_during_the_upgrade() {
    let delays = [0, 3, 6, 9, 12, 15, 20, 25, 30, 45, 60].map(Duration::from_millis);
    for (delay, in_background) in delays.into_iter().flat_map(|delay| [(delay, true), (delay, false)]) {
        let lab = Lab::new();
        let origin = Origin::start("one");
        let body = pool(&[&origin], "");
        let (mut foreground, mut background) = (None, None);
        let old = if in_background {
            background.insert(lab.daemonize(&body)).process
        } else {
            foreground.insert(lab.start(&body)).process
        };
        old.signal(Signal::SIGUSR2);
        wait::until(LONG, "the new process runs", || started_with(lab.directory()).len() == 2);
        thread::sleep(delay);
        // In the foreground it stays a zombie, because the test does not reap it.
        old.signal(Signal::SIGKILL);
        let new = lab.successor(old);
        assert_eq!(new.get("/").unwrap().status, 200, "{delay:?} {in_background}\n{}", lab.error_log());
        assert_eq!(listening_sockets(lab.listener), 1);
        wait::until(LONG, "only the new process runs", || started_with(lab.directory()) == [new.process]);
        assert!(lab.run(&["status", "-c", path_str(&lab.path("conf.yaml"))]).code == Some(0));
    }
}

/// The old process is killed while the new one waits at its gate, where it would otherwise wait for a ready backend and
/// then give up.
#[test]
fn a_new_process_without_a_ready_backend_serves_if_the_old_one_is_killed() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let old = lab.daemonize(&pool(&[&origin], ""));
    lab.config(&pool_of(&[ports::free()], "health_check: {type: tcp, interval: 1s}"));
    old.process.signal(Signal::SIGUSR2);
    old.logged(&["pool", "no backend is ready"]);
    old.process.signal(Signal::SIGKILL);
    old.logged(&["WARN", "the old process has ended"]);
    let new = || lab.pid_in_file().filter(|new| *new != old.process && new.alive());
    wait::until(LONG, "the new process has the PID file", || new().is_some());
    wait::until(LONG, "the new process serves", || old.get("/").is_ok());
}

/// A new process that must bind a port which it cannot bind ends, and the log says why.
#[test]
fn a_new_process_that_cannot_replace_a_killed_one_logs_the_reason() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let (program, real, gate) = (lab.install(), lab.path("real"), lab.path("gate"));
    fs::copy(program, &real).unwrap();
    let old = lab.daemonize(&pool(&[&origin], ""));
    // The new process starts only when the old one has ended and its port is taken.
    let script =
        format!("while [ ! -e {} ]; do sleep 0.01; done; exec {} \"$@\"", gate.display(), real.display());
    lab.replace_program(Some(&script));
    old.process.signal(Signal::SIGUSR2);
    old.logged(&["is started from"]);
    old.process.signal(Signal::SIGKILL);
    old.process.wait_gone(LONG);
    // The threads of a killed process end one after the other.
    let _occupied = wait::until_some(LONG, "the port is free", || TcpListener::bind(lab.listener).ok());
    fs::write(&gate, "").unwrap();
    old.logged(&["WARN", "the old process ended before it handed over its sockets"]);
    old.logged(&["ERROR", "cannot listen on", "in use by another process"]);
    wait::until(LONG, "the new process has ended", || started_with(lab.directory()).is_empty());
}

/// This happens if the new file has a wrong path for the health check or a wrong CA.
#[test]
fn a_new_process_does_not_take_over_when_it_finds_no_ready_backend_and_the_old_one_does() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let dead = ports::free();
    let body = |path: &str, also: &str| {
        let check = format!("health_check: {{type: http, path: {path}, interval: 1s}}");
        format!(
            "pools:\n  web: {{backends: [\"{}\"], {check}}}\n  dead: {{backends: [\"{dead}\"], {check}}}\n{also}\
             routes: [{{match: {{path_prefix: /dead}}, pool: dead}}, {{pool: web}}]\n",
            origin.address
        )
    };
    origin.behave(Behaviour::ByPath);
    let daemon = lab.start_listening(&body("/healthy", ""));
    wait::until(LONG, "the backend is up", || daemon.get("/").is_ok_and(|response| response.status == 200));
    let load = LoadGenerator::start(lab.listener, 2, 4);
    lab.config(&body("/status/404", ""));
    let refused = upgrade_by_subcommand(&lab);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    for said in ["no backend of pool web is ready", "the old process had one"] {
        assert!(refused.stderr.contains(said), "{refused:?}");
    }
    assert!(!refused.stderr.contains("dead,") && daemon.process.alive(), "{refused:?}");
    wait::until(LONG, "only the old process runs", || started_with(lab.directory()) == [daemon.process]);
    assert!(daemon.read("/api/v1/events").unwrap().text().contains("the upgrade failed"));
    // A pool that is down in both processes does not prevent the upgrade, and neither does a new pool that is down.
    let new = format!("  new: {{backends: [\"{dead}\"]}}\n");
    lab.config(
        &body("/healthy", &new).replace("{pool: web}", "{match: {method: PUT}, pool: new}, {pool: web}"),
    );
    assert_eq!(upgrade_by_subcommand(&lab).code, Some(0), "{}", lab.error_log());
    let report = load.stop();
    assert_eq!(report.failed, 0, "{report:?}");
}

#[test]
fn a_second_upgrade_is_refused_while_one_is_in_progress() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.daemonize(&pool(&[&origin], ""));
    let silent = tests::Unreachable::start();
    let check = "health_check: {type: tcp, timeout: 3s, interval: 3s}";
    lab.config(&pool_of(&[origin.address, silent.address], check));
    daemon.process.signal(Signal::SIGUSR2);
    daemon.logged(&["takes", "listeners"]);
    wait::throughout(Duration::from_millis(500), "the daemon is ready", || {
        daemon.read("/readyz").is_ok_and(|response| response.status == 200)
    });
    let second = upgrade_by_subcommand(&lab);
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.contains("in progress"), "{second:?}");
    lab.successor(daemon.process);
}

#[test]
fn websockets_and_downloads_stay_on_the_old_process_until_the_drain_times_out() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let old = lab.daemonize(&format!("shutdown: {{drain: 3s}}\n{}", pool(&[&origin], "")));
    origin.behave(Behaviour::Upgrade);
    let mut socket = old.connect();
    socket.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").unwrap();
    assert_eq!(socket.response_head().unwrap().0, 101);
    let gate = Gate::closed();
    origin.behave(Behaviour::HeldWithin(gate.clone(), [b"first".to_vec(), b"second".to_vec()]));
    let mut download = old.begin("/download");
    let (_, head) = download.response_head().unwrap();
    assert_eq!(upgrade_by_subcommand(&lab).code, Some(0), "{}", lab.error_log());
    for word in ["still", "there"] {
        socket.send(word).unwrap();
        assert_eq!(socket.some_bytes(), word.as_bytes());
    }
    gate.open();
    assert_eq!(download.rest_of_body(&head).unwrap(), b"firstsecond");
    assert!(old.process.alive(), "the WebSocket is open");
    old.process.wait_gone(LONG);
    assert!(socket.ends_within(LONG), "the WebSocket outlives the drain");
    assert_eq!(old.get("/").unwrap().status, 200, "the new process serves");
    lab.pid_in_file().unwrap().signal(Signal::SIGTERM);
}

#[test]
fn a_briefly_idle_client_gets_a_response_with_connection_close_after_an_upgrade() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let old = lab.daemonize(&pool(&[&origin], ""));
    let mut client = old.connect();
    assert!(!client.get("/").unwrap().closes());
    assert_eq!(upgrade_by_subcommand(&lab).code, Some(0), "{}", lab.error_log());
    let began = Instant::now();
    wait::until(LONG, "a second has passed", || began.elapsed() > Duration::from_secs(1));
    let response = client.get("/").unwrap();
    assert_eq!(
        (response.status, response.closes()),
        (200, true),
        "the connection must stay open until a response with Connection: close"
    );
    old.process.wait_gone(Duration::from_secs(10));
}

#[test]
fn forty_listeners_with_long_names_are_handed_over_through_a_private_socket() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let paths: Vec<_> =
        (0..40).map(|number| lab.path(&format!("{}-{number}.sock", "long".repeat(12)))).collect();
    let items: String = paths.iter().map(|path| format!("  - address: unix:{}\n", path.display())).collect();
    let config = lab.config_with(&format!("listeners:\n{items}"), &pool(&[&origin], ""));
    let mut old = lab.start_file(&config);
    old.signal(Signal::SIGQUIT);
    // The mode is set after the socket was bound. Until then, the user of the peer is checked.
    wait::until(LONG, "the upgrade socket is private", || {
        let file = fs::metadata(lab.path("upgrade.sock"));
        file.is_ok_and(|file| file.permissions().mode() & 0o777 == 0o600)
    });
    let mut new = lab.spawn(&["-c", path_str(&config), "-u"]);
    assert_eq!(old.wait_exit(LONG).code(), Some(0), "{}", old.log());
    for path in &paths {
        assert_eq!(Connection::open_unix(path).unwrap().get("/").unwrap().status, 200);
    }
    assert_eq!(new.stop(), Some(0));
    assert!(paths.iter().all(|path| !path.exists()));
}

#[test]
fn a_new_process_that_is_not_ready_after_a_minute_is_ended() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    lab.install();
    let daemon = lab.daemonize(&pool(&[&origin], ""));
    lab.replace_program(Some("trap '' TERM; while :; do sleep 1; done"));
    let begun = Instant::now();
    daemon.process.signal(Signal::SIGUSR2);
    let hanging =
        wait::until_some(LONG, "the new process starts", || daemon.process.children().first().copied());
    wait::until(Duration::from_secs(90), "the start of the new process times out", || {
        let response = daemon.get("/").expect("the old process serves");
        assert!(response.status == 200 && !response.closes(), "{response:?}");
        lab.error_log().contains("was not ready within 60s")
    });
    assert!(begun.elapsed() >= Duration::from_secs(60));
    assert!(!hanging.alive() && daemon.process.children().is_empty());
    lab.replace_program(None);
    let new = upgrade_by_signal(&lab, &daemon);
    assert_eq!(new.get("/").unwrap().status, 200);
}

#[test]
fn ending_the_old_process_during_an_upgrade_also_ends_the_new_one() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let mut daemon = lab.start(&pool(&[&origin], ""));
    let silent = tests::Unreachable::start();
    let check = "health_check: {type: tcp, timeout: 60s, interval: 60s}";
    lab.config(&pool_of(&[origin.address, silent.address], check));
    daemon.signal(Signal::SIGUSR2);
    daemon.logged(&["takes", "listeners"]);
    let children = daemon.process.children();
    assert_eq!(children.len(), 1, "{children:?}");
    assert_eq!(daemon.stop(), Some(0), "{}", daemon.log());
    children[0].wait_gone(LONG);
    assert_eq!(listening_sockets(lab.listener), 0);
}

#[test]
fn idle_connections_keep_the_old_process_for_a_few_seconds_only() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let old = lab.daemonize(&pool(&[&origin], ""));
    let mut idle = old.connect();
    idle.get("/").unwrap();
    let begun = Instant::now();
    let new = upgrade_by_signal(&lab, &old);
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(4) && took < Duration::from_secs(10), "{took:?}");
    assert!(idle.ends_within(LONG));
    assert!(
        lab.error_log().contains("drained: no request is left"),
        "a request was cut:\n{}",
        lab.error_log()
    );

    // With SIGTERM, the old process does not wait for idle connections.
    let mut idle = new.connect();
    idle.get("/").unwrap();
    new.process.signal(Signal::SIGUSR2);
    let next = lab.successor(new.process);
    let begun = Instant::now();
    new.process.signal(Signal::SIGTERM);
    new.process.wait_gone(LONG);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    drop(next);
}

/// The user id of a process.
fn user(process: Process) -> u32 {
    fs::metadata(format!("/proc/{}", process.0)).unwrap().uid()
}

#[test]
fn an_upgrade_without_root_privileges_keeps_the_user() {
    if unless_root("only root can give up its privileges") {
        return;
    }
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    lab.install();
    fs::set_permissions(lab.directory(), fs::Permissions::from_mode(0o777)).unwrap();
    let body = format!("user: www-data\n{}", pool(&[&origin], ""));
    let old = lab.daemonize(&body);
    let became = user(old.process);
    assert_ne!(became, 0);
    let new = upgrade_by_signal(&lab, &old);
    assert_eq!(user(new.process), became);
    assert_eq!(new.get("/").unwrap().status, 200);

    // An upgrade that needs root fails, and does not affect the old process.
    let closed = lab.path("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let another = format!("  - {{address: \"unix:{}/web.sock\"}}\n", closed.display());
    lab.config_with(&format!("listeners:\n  - {{address: \"{}\"}}\n{another}", lab.listener), &body);
    new.process.signal(Signal::SIGUSR2);
    let reason =
        new.logged(&["upgrade failed", "closed: the user `www-data` cannot write to it: permission denied"]);
    assert!(reason.contains("ended with exit code"), "{reason}");
    assert_eq!(new.get("/").unwrap().status, 200);

    // A process that root starts can take over.
    lab.config(&body);
    let third = upgrade(&lab, &new);
    new.process.wait_gone(LONG);
    assert_eq!(third.get("/").unwrap().status, 200);
    assert_eq!(user(third.process), became);
}

#[test]
fn process_1_refuses_an_upgrade_and_says_what_to_do() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let config = lab.config(&pool(&[&origin], ""));
    let program = lab.install();
    // The daemon is process 1 in its own PID namespace.
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child"]);
    let log = fs::File::create(lab.path("log")).unwrap();
    unshare.arg(program).arg("-c").arg(&config).stdout(log.try_clone().unwrap()).stderr(log);
    let mut child = unshare.spawn().expect("util-linux is installed");
    wait::until(LONG, "the daemon serves", || tests::get(lab.listener, "/").is_ok());
    let daemon = Process(child.id()).children()[0];
    daemon.signal(Signal::SIGUSR2);
    wait::until(LONG, "the log names the remedy", || {
        lab.error_log()
            .contains("this is process 1 of a container, and the container ends with it; start a container")
    });
    assert!(daemon.children().is_empty());
    assert_eq!(tests::get(lab.listener, "/").unwrap().status, 200);
    daemon.signal(Signal::SIGTERM);
    child.wait().unwrap();
}
