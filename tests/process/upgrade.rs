//! Graceful upgrades: `pkill -SIGQUIT load_balancer` and `load_balancer -c conf.yaml -d -u`.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use tests::daemon::{Finished, path_str};
use tests::process::{Process, listening_sockets, started_with};
use tests::wait::{self, LONG};
use tests::{Answer, Background, Behaviour, Connection, Gate, Lab, LoadGenerator, Origin, Signal, ports};

use crate::reload::{assert_second_daemon_fails, at, movable};
use crate::{pool, pool_of};

/// Hands over from `old` to a process started as the quick start does it, and returns that.
#[track_caller]
fn upgrade(lab: &Lab, old: &Background) -> Background {
    old.process.signal(Signal::SIGQUIT);
    lab.daemonize_file(&lab.path("conf.yaml"), &["-u"])
}

#[test]
fn ten_upgrades_in_a_row_under_load_fail_and_refuse_no_request() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let mut daemon = lab.daemonize(&pool(&[&one, &two], ""));
    let load = LoadGenerator::start(lab.listener, 2, 2);
    for number in 1..=10 {
        let answered = load.report().ok;
        let new = upgrade(&lab, &daemon);
        daemon.process.wait_gone(LONG);
        assert_eq!(lab.pid_in_file(), Some(new.process), "after upgrade {number}");
        assert_eq!(listening_sockets(lab.listener), 1, "after upgrade {number}");
        assert_eq!(listening_sockets(lab.metrics), 1, "after upgrade {number}");
        wait::until(LONG, "the new process serves", || load.report().ok > answered + 20);
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
    origin.behave(Behaviour::Held(gate.clone(), Answer::ok("held")));
    let old = lab.daemonize(&pool(&[&origin], ""));
    let mut client = old.connect();
    client.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    origin.saw("/held");
    origin.behave(Behaviour::Answer(Answer::ok("new")));
    let new = upgrade(&lab, &old);
    assert_eq!(new.get("/").unwrap().text(), "new");
    assert!(old.process.alive(), "a request of it is still in flight");
    gate.open();
    assert_eq!(client.response("GET").unwrap().text(), "held");
    old.process.wait_gone(Duration::from_secs(5));
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
fn a_listener_moves_by_an_upgrade_and_no_request_is_lost() {
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
fn an_upgrade_that_fails_leaves_a_listener_where_it_is() {
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
    assert!(old.get("/").is_ok_and(|answer| answer.status == 200 && !answer.closes()));
}

#[test]
fn with_no_old_process_u_fails_and_says_so() {
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
fn when_no_new_process_comes_the_old_one_keeps_serving() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.daemonize(&pool(&[&origin], ""));
    daemon.process.signal(Signal::SIGQUIT);
    // The time that an offer stands, and then some.
    wait::until(Duration::from_secs(90), "the log says that nobody came", || {
        let answer = daemon.get("/").expect("the old process serves");
        assert!(answer.status == 200 && !answer.closes(), "{answer:?}");
        lab.error_log().contains("no process started with -u came")
    });
    wait::throughout(Duration::from_secs(1), "the old process serves", || {
        daemon.get("/").is_ok_and(|answer| answer.status == 200 && !answer.closes())
    });
    assert_eq!(lab.pid_in_file(), Some(daemon.process));
    let new = upgrade(&lab, &daemon);
    daemon.process.wait_gone(LONG);
    assert_eq!(new.get("/").unwrap().status, 200);
}

#[test]
fn when_the_new_process_dies_in_its_start_the_old_one_keeps_serving() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let good = pool(&[&origin], "");
    let daemon = lab.daemonize(&good);
    // One that fails before it takes the sockets, and one that fails with them in its hands.
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
        let answered = load.report().ok;
        wait::until(LONG, "the old process goes on", || load.report().ok > answered + 100);
        assert!(daemon.process.alive());
        assert_eq!(lab.pid_in_file(), Some(daemon.process));
    }
    let report = load.stop();
    assert_eq!(report.failed, 0, "{report:?}");
    let new = upgrade(&lab, &daemon);
    daemon.process.wait_gone(LONG);
    assert_eq!(new.get("/").unwrap().status, 200);
}

// === the daemon starts its successor itself ===

/// Has the daemon replace itself by SIGUSR2, and returns the one that came.
#[track_caller]
fn usr2(lab: &Lab, old: &Background) -> Background {
    old.process.signal(Signal::SIGUSR2);
    let new = lab.successor(old.process);
    old.process.wait_gone(LONG);
    new
}

/// Orders an upgrade by the verb.
#[track_caller]
fn order(lab: &Lab) -> Finished {
    lab.run_built(&["upgrade", "-c", path_str(&lab.path("conf.yaml"))])
}

#[test]
fn ten_upgrades_by_signal_under_load_fail_no_request_and_leave_nobody_behind() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let mut daemon = lab.daemonize(&pool(&[&one, &two], ""));
    let (load, fresh) = (LoadGenerator::start(lab.listener, 2, 0), LoadGenerator::start(lab.listener, 0, 2));
    for number in 1..=10 {
        let answered = load.report().ok;
        let new = usr2(&lab, &daemon);
        assert_eq!(lab.pid_in_file(), Some(new.process), "after upgrade {number}");
        assert_eq!(listening_sockets(lab.listener), 1, "after upgrade {number}");
        assert_eq!(started_with(lab.directory()), [new.process], "after upgrade {number}");
        assert!(new.process.children().is_empty(), "no zombie");
        wait::until(LONG, "the new process serves", || load.report().ok > answered + 20);
        daemon = new;
    }
    let (kept, fresh) = (load.stop(), fresh.stop());
    println!("10 upgrades: {kept:?} {fresh:?}");
    assert_eq!((kept.failed, fresh.failed), (0, 0), "{kept:?} {fresh:?}\n{}", lab.error_log());
    assert_eq!(kept.reconnects, 0, "nobody found an idle connection closed: {kept:?}");
    assert!(kept.ok > 200, "{kept:?}");
    daemon.process.signal(Signal::SIGTERM);
    daemon.process.wait_gone(LONG);
    assert!(!lab.pid_file().exists() && !lab.path("upgrade.sock").exists());
}

#[test]
fn the_verb_waits_for_the_successor_and_takes_the_new_file() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let old = lab.daemonize(&pool(&[&one], ""));
    lab.config(&format!("threads: 1\n{}", pool(&[&two], "")));
    let finished = order(&lab);
    assert_eq!(finished.code, Some(0), "{finished:?}\n{}", lab.error_log());
    let new = lab.pid_in_file().unwrap();
    assert!(finished.stdout.contains(&format!("process {} has taken over", new.0)), "{finished:?}");
    assert_ne!(new, old.process);
    assert_eq!(old.get("/").unwrap().origin(), "two");
    old.process.wait_gone(LONG);
    // The new one can be controlled and upgraded like the old one.
    assert_eq!(order(&lab).code, Some(0));
    assert_ne!(lab.pid_in_file().unwrap(), new);
}

#[test]
fn in_the_foreground_it_goes_on_under_another_number() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let mut old = lab.start(&pool(&[&origin], ""));
    let finished = order(&lab);
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
fn what_operators_changed_goes_on_in_the_successor() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let old = lab.daemonize(&pool(&[&one, &two], ""));
    let config = lab.path("conf.yaml");
    let address = one.address.to_string();
    let changes = || old.status()["config"]["runtime_changes"].clone();
    let drained = format!("pool web: backend {address}: draining");
    assert_eq!(lab.run(&["drain", "web", &address, "-c", path_str(&config)]).code, Some(0));
    assert_eq!(lab.run(&["log-level", "debug", "-c", path_str(&config)]).code, Some(0));
    assert_eq!(changes(), json!([drained, "the log level is debug"]));
    let since = || old.backend_status("web", one.address)["since"].clone();
    let before = since();
    assert_eq!(order(&lab).code, Some(0), "{}", lab.error_log());
    old.process.wait_gone(LONG);
    assert_eq!(since(), before, "it has been so since then");
    assert!((0..6).all(|_| old.get("/").unwrap().origin() == "two"));
    assert_eq!(old.backend_status("web", one.address)["runtime"], "draining");
    assert_eq!(changes(), json!([drained, "the log level is debug"]));
    assert_eq!(lab.run(&["log-level", "-c", path_str(&config)]).stdout, "debug\n");
    // So they do when the new process is started by hand.
    let before = lab.pid_in_file().unwrap();
    before.signal(Signal::SIGQUIT);
    let new = lab.daemonize_file(&config, &["-u"]);
    before.wait_gone(LONG);
    assert_eq!(changes(), json!([drained, "the log level is debug"]));
    assert_eq!(new.backend_status("web", one.address)["state"], "draining");
    // The file says nothing of the log level.
    assert_eq!(lab.run(&["reload", "-c", path_str(&config)]).code, Some(0));
    assert_eq!(old.backend_status("web", one.address)["state"], "up");
    assert_eq!(changes(), json!(["the log level is debug"]));
}

/// A daemon with the backends `one` and `two`, and a successor of it that has read its file and is kept busy by its checks for
/// three seconds.
struct Busy {
    lab: Lab,
    daemon: Background,
    origins: [Origin; 2],
    _unanswered: tests::Unreachable,
}

impl Busy {
    fn start() -> Self {
        let lab = Lab::new();
        let origins = [Origin::start("one"), Origin::start("two")];
        let daemon = lab.daemonize(&pool(&[&origins[0], &origins[1]], ""));
        let unanswered = tests::Unreachable::start();
        let all = [origins[0].address, origins[1].address, unanswered.address];
        lab.config(&pool_of(&all, "health_check: {type: tcp, timeout: 3s, interval: 3s}"));
        daemon.process.signal(Signal::SIGUSR2);
        daemon.logged(&["takes", "listeners"]);
        Self { lab, daemon, origins, _unanswered: unanswered }
    }

    /// The verb that drains the first.
    fn drain(&self) -> Finished {
        let address = self.origins[0].address.to_string();
        self.lab.run(&["drain", "web", &address, "-c", path_str(&self.lab.path("conf.yaml"))])
    }
}

#[test]
fn an_order_while_a_successor_starts_is_not_lost_in_silence() {
    let busy = Busy::start();
    let drained = busy.drain();
    let successor = busy.lab.successor(busy.daemon.process);
    assert_eq!(drained.code, Some(2), "{drained:?}");
    assert!(drained.stderr.contains("successor"), "{drained:?}");
    assert_eq!(busy.drain().code, Some(0));
    assert_eq!(successor.backend_status("web", busy.origins[0].address)["runtime"], "draining");
}

#[test]
fn an_order_while_a_successor_starts_is_carried_out_when_that_fails() {
    let busy = Busy::start();
    let new = wait::until_some(LONG, "the new process", || {
        let all = started_with(busy.lab.directory()).into_iter();
        all.filter(|process| *process != busy.daemon.process).max_by_key(|process| process.0)
    });
    let drained = std::thread::scope(|scope| {
        let draining = scope.spawn(|| busy.drain());
        wait::throughout(Duration::from_millis(300), "it waits", || !draining.is_finished());
        new.signal(Signal::SIGKILL);
        draining.join().unwrap()
    });
    assert_eq!(drained.code, Some(0), "{drained:?}");
    assert_eq!(busy.daemon.backend_status("web", busy.origins[0].address)["runtime"], "draining");
}

#[test]
fn a_backend_is_not_free_as_long_as_a_process_before_has_a_request_at_it() {
    let lab = Lab::new();
    let (one, two, gate) = (Origin::start("one"), Origin::start("two"), Gate::closed());
    let first = lab.daemonize(&pool(&[&one, &two], ""));
    let config = lab.path("conf.yaml");
    one.behave(Behaviour::Held(gate.clone(), Answer::ok("held")));
    two.behave(Behaviour::Held(gate.clone(), Answer::ok("held")));
    let mut held = [first.begin("/held"), first.begin("/held")];
    one.saw("/held");
    // With one more process between it and the last.
    assert_eq!(order(&lab).code, Some(0), "{}", lab.error_log());
    assert_eq!(order(&lab).code, Some(0), "{}", lab.error_log());
    let address = one.address.to_string();
    let drain = |more: &[&str]| {
        lab.run(&[&["drain", "web", &address, "--wait", "-c", path_str(&config)], more].concat())
    };
    let late = drain(&["--timeout", "300ms"]);
    assert_eq!(late.code, Some(1), "{late:?}");
    assert!(late.stderr.contains("still works on requests"), "{late:?}");
    let screen = lab.run(&["status", "-c", path_str(&config)]).stdout;
    let line = format!("process {} has handed over and still works on 2 requests", first.process.0);
    assert!(screen.contains(&line), "{screen}");
    // Who follows what it does is kept waiting until something happens.
    let mut following =
        Connection::open_unix(&lab.path(&format!("control.sock.{}", first.process.0))).unwrap();
    following.send("GET /v1/events?after=1000&wait=60 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(!following.ends_within(Duration::from_millis(300)));
    std::thread::scope(|scope| {
        let draining = scope.spawn(|| drain(&[]));
        wait::throughout(Duration::from_millis(300), "it waits", || !draining.is_finished());
        gate.open();
        let drained = draining.join().unwrap();
        assert_eq!(drained.code, Some(0), "{drained:?}");
    });
    held.iter_mut().for_each(|held| assert_eq!(held.response("GET").unwrap().text(), "held"));
    first.process.wait_gone(LONG);
    wait::until(LONG, "only one process is left", || started_with(lab.directory()).len() == 1);
    let files = fs::read_dir(lab.directory()).unwrap().map(|file| file.unwrap().file_name());
    let sockets: Vec<_> = files.filter(|name| name.to_string_lossy().starts_with("control.sock")).collect();
    assert_eq!(sockets, ["control.sock"], "each is removed with its process");
}

#[test]
fn a_file_that_changes_while_a_successor_starts_is_read_by_that_one() {
    let busy = Busy::start();
    busy.lab.config(&pool(&[&busy.origins[1]], ""));
    busy.daemon.process.signal(Signal::SIGHUP);
    let successor = busy.lab.successor(busy.daemon.process);
    wait::until(LONG, "the file is in effect", || {
        (0..4).all(|_| successor.get("/").is_ok_and(|answer| answer.origin() == "two"))
    });
    // That it had changed was seen when the start was over; then the signal came.
    wait::until(LONG, "the signal is passed on", || {
        successor.status()["config"]["last_reload"]["result"] == "unchanged"
    });
}

/// The old process reads it once more, after the new one has, which is to be no step back.
#[test]
fn a_file_that_was_read_again_before_the_sockets_are_taken_is_in_effect_after_it() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let old = lab.daemonize(&pool(&[&one], ""));
    let config = lab.path("conf.yaml");
    std::thread::scope(|scope| {
        // It reads the file, and waits for the offer.
        let starting = scope.spawn(|| lab.daemonize_file(&config, &["-u"]));
        wait::until(LONG, "the new process waits", || started_with(lab.directory()).len() > 1);
        let began = Instant::now();
        wait::until(LONG, "it has read the file", || began.elapsed() > Duration::from_secs(1));
        lab.config(&pool(&[&two], ""));
        assert_eq!(lab.run(&["reload", "-c", path_str(&config)]).code, Some(0));
        old.process.signal(Signal::SIGQUIT);
        let new = starting.join().unwrap();
        old.process.wait_gone(LONG);
        wait::until(LONG, "the file of the reload is in effect", || {
            new.get("/").is_ok_and(|answer| answer.origin() == "two")
        });
    });
}

#[test]
fn a_watched_file_that_changes_while_a_successor_starts_is_read_by_that_one() {
    let lab = Lab::new();
    let (one, two, unanswered) = (Origin::start("one"), Origin::start("two"), tests::Unreachable::start());
    let watched = |body: &str| format!("reload: {{watch: true}}\n{body}");
    let check = "health_check: {type: tcp, timeout: 3s, interval: 3s}";
    let daemon = lab.daemonize(&watched(&pool_of(&[one.address, unanswered.address], check)));
    daemon.process.signal(Signal::SIGUSR2);
    daemon.logged(&["takes", "listeners"]);
    lab.config(&watched(&pool(&[&two], "")));
    let successor = lab.successor(daemon.process);
    wait::until(LONG, "the file is in effect", || {
        successor.get("/").is_ok_and(|answer| answer.origin() == "two")
    });
    assert_eq!(successor.status()["config"]["last_reload"]["result"], "applied");
}

/// Each script stands where the new program should, and the old process has to go on.
#[test]
fn a_new_program_that_fails_changes_nothing() {
    let lab = Lab::new();
    let program = lab.install();
    let origin = Origin::start("one");
    let daemon = lab.daemonize(&pool(&[&origin], ""));
    let load = LoadGenerator::start(lab.listener, 2, 0);
    for (script, said) in
        [("echo cannot start >&2; exit 7", "exit"), ("kill -9 $$", "signal"), ("exec /nowhere/program", "")]
    {
        lab.replace_program(Some(script));
        let finished = order(&lab);
        assert_eq!(finished.code, Some(1), "{script}: {finished:?}");
        assert!(finished.stderr.contains(said), "{script}: {finished:?}");
        assert!(daemon.process.alive() && lab.pid_in_file() == Some(daemon.process), "{script}");
        assert_eq!(started_with(lab.directory()), [daemon.process], "{script}");
        assert!(daemon.process.children().is_empty(), "{script}: no zombie");
        assert!(!lab.path("upgrade.sock").exists(), "{script}: the offer is withdrawn");
        assert_eq!(daemon.get("/").unwrap().status, 200);
    }
    // A file that is wrong is as good a reason.
    lab.replace_program(None);
    lab.config(&pool(&[&origin], "polcy: maglev"));
    let finished = order(&lab);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("unknown key `polcy`"), "{finished:?}");
    // And with all mended it works.
    lab.config(&pool(&[&origin], ""));
    assert_eq!(order(&lab).code, Some(0), "{}", lab.error_log());
    daemon.process.wait_gone(LONG);
    let report = load.stop();
    assert_eq!(report.failed, 0, "{report:?}");
    drop(program);
}

#[test]
fn a_new_process_that_dies_after_it_has_the_sockets_changes_nothing() {
    let lab = Lab::new();
    lab.install();
    let origin = Origin::start("one");
    let daemon = lab.daemonize(&pool(&[&origin], ""));
    // Its checks take a while, so it can be killed before it is ready.
    let unanswered = tests::Unreachable::start();
    let check = "health_check: {type: tcp, timeout: 5s, interval: 5s}";
    lab.config(&pool_of(&[origin.address, unanswered.address], check));
    daemon.process.signal(Signal::SIGUSR2);
    daemon.logged(&["takes", "listeners"]);
    let new = wait::until_some(LONG, "the new process", || {
        started_with(lab.directory()).into_iter().find(|process| *process != daemon.process)
    });
    new.signal(Signal::SIGKILL);
    daemon.logged(&["upgrade failed", "goes on serving", "SIGKILL"]);
    wait::until(LONG, "it is told among the events", || {
        let events = daemon.read("/api/v1/events").map(|answer| answer.text());
        events.is_ok_and(|events| events.contains("the upgrade has failed") && events.contains("SIGKILL"))
    });
    wait::until(LONG, "nobody is left", || started_with(lab.directory()) == [daemon.process]);
    assert_eq!(daemon.get("/").unwrap().status, 200);
    assert_eq!(lab.pid_in_file(), Some(daemon.process));
    lab.config(&pool(&[&origin], ""));
    usr2(&lab, &daemon);
}

/// As when the file that the new process reads has a wrong path, or the wrong CA.
#[test]
fn a_new_process_that_finds_no_backend_where_the_old_one_has_some_does_not_take_over() {
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
    wait::until(LONG, "the backend is up", || daemon.get("/").is_ok_and(|answer| answer.status == 200));
    let load = LoadGenerator::start(lab.listener, 2, 4);
    lab.config(&body("/status/404", ""));
    let refused = order(&lab);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    for said in ["no backend of pool web is ready", "the process before had some"] {
        assert!(refused.stderr.contains(said), "{refused:?}");
    }
    assert!(!refused.stderr.contains("dead,") && daemon.process.alive(), "{refused:?}");
    wait::until(LONG, "nobody is left", || started_with(lab.directory()) == [daemon.process]);
    assert!(daemon.read("/api/v1/events").unwrap().text().contains("the upgrade has failed"));
    // A pool that is down in both is no hindrance, nor is a new one.
    let new = format!("  new: {{backends: [\"{dead}\"]}}\n");
    lab.config(
        &body("/healthy", &new).replace("{pool: web}", "{match: {method: PUT}, pool: new}, {pool: web}"),
    );
    assert_eq!(order(&lab).code, Some(0), "{}", lab.error_log());
    let report = load.stop();
    assert_eq!(report.failed, 0, "{report:?}");
}

#[test]
fn a_second_order_is_refused_while_one_is_carried_out() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.daemonize(&pool(&[&origin], ""));
    let unanswered = tests::Unreachable::start();
    let check = "health_check: {type: tcp, timeout: 3s, interval: 3s}";
    lab.config(&pool_of(&[origin.address, unanswered.address], check));
    daemon.process.signal(Signal::SIGUSR2);
    daemon.logged(&["takes", "listeners"]);
    wait::throughout(Duration::from_millis(500), "whoever asks is told that all is well", || {
        daemon.read("/readyz").is_ok_and(|answer| answer.status == 200)
    });
    let second = order(&lab);
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.contains("under way"), "{second:?}");
    lab.successor(daemon.process);
}

#[test]
fn websockets_and_downloads_live_on_the_old_process_until_the_drain_is_over() {
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
    assert_eq!(order(&lab).code, Some(0), "{}", lab.error_log());
    for word in ["still", "there"] {
        socket.send(word).unwrap();
        assert_eq!(socket.some_bytes(), word.as_bytes());
    }
    gate.open();
    assert_eq!(download.rest_of_body(&head).unwrap(), b"firstsecond");
    assert!(old.process.alive(), "the WebSocket is open");
    old.process.wait_gone(LONG);
    assert!(socket.ends_within(LONG), "it is cut when the time is over");
    assert_eq!(old.get("/").unwrap().status, 200, "the new one serves");
    lab.pid_in_file().unwrap().signal(Signal::SIGTERM);
}

#[test]
fn a_client_that_is_idle_for_a_moment_hears_of_the_hand_over_in_an_answer() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let old = lab.daemonize(&pool(&[&origin], ""));
    let mut client = old.connect();
    assert!(!client.get("/").unwrap().closes());
    assert_eq!(order(&lab).code, Some(0), "{}", lab.error_log());
    let began = Instant::now();
    wait::until(LONG, "a second has passed", || began.elapsed() > Duration::from_secs(1));
    let answer = client.get("/").unwrap();
    assert_eq!(
        (answer.status, answer.closes()),
        (200, true),
        "its connection was still there, and the last answer says so"
    );
    old.process.wait_gone(Duration::from_secs(10));
}

#[test]
fn the_sockets_of_forty_listeners_with_long_names_are_handed_over_to_nobody_else() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let paths: Vec<_> =
        (0..40).map(|number| lab.path(&format!("{}-{number}.sock", "long".repeat(12)))).collect();
    let items: String = paths.iter().map(|path| format!("  - address: unix:{}\n", path.display())).collect();
    let config = lab.config_with(&format!("listeners:\n{items}"), &pool(&[&origin], ""));
    let mut old = lab.start_file(&config);
    old.signal(Signal::SIGQUIT);
    wait::until(LONG, "the offer", || lab.path("upgrade.sock").exists());
    let mode = fs::metadata(lab.path("upgrade.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut new = lab.spawn(&["-c", path_str(&config), "-u"]);
    assert_eq!(old.wait_exit(LONG).code(), Some(0), "{}", old.log());
    for path in &paths {
        assert_eq!(Connection::open_unix(path).unwrap().get("/").unwrap().status, 200);
    }
    assert_eq!(new.stop(), Some(0));
    assert!(paths.iter().all(|path| !path.exists()));
}

#[test]
fn a_new_process_that_never_gets_ready_is_ended_after_a_minute() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    lab.install();
    let daemon = lab.daemonize(&pool(&[&origin], ""));
    lab.replace_program(Some("trap '' TERM; while :; do sleep 1; done"));
    let begun = Instant::now();
    daemon.process.signal(Signal::SIGUSR2);
    let hanging = wait::until_some(LONG, "it is started", || daemon.process.children().first().copied());
    wait::until(Duration::from_secs(90), "the old process has had enough", || {
        let answer = daemon.get("/").expect("the old process serves");
        assert!(answer.status == 200 && !answer.closes(), "{answer:?}");
        lab.error_log().contains("was not ready within 60s")
    });
    assert!(begun.elapsed() >= Duration::from_secs(60));
    assert!(!hanging.alive() && daemon.process.children().is_empty());
    lab.replace_program(None);
    let new = usr2(&lab, &daemon);
    assert_eq!(new.get("/").unwrap().status, 200);
}

#[test]
fn who_is_told_to_end_ends_the_new_process_too() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let mut daemon = lab.start(&pool(&[&origin], ""));
    let unanswered = tests::Unreachable::start();
    let check = "health_check: {type: tcp, timeout: 60s, interval: 60s}";
    lab.config(&pool_of(&[origin.address, unanswered.address], check));
    daemon.signal(Signal::SIGUSR2);
    daemon.logged(&["takes", "listeners"]);
    let children = daemon.process.children();
    assert_eq!(children.len(), 1, "{children:?}");
    assert_eq!(daemon.stop(), Some(0), "{}", daemon.log());
    children[0].wait_gone(LONG);
    assert_eq!(listening_sockets(lab.listener), 0);
}

#[test]
fn connections_that_stay_idle_hold_the_old_process_for_some_seconds_only() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let old = lab.daemonize(&pool(&[&origin], ""));
    let mut idle = old.connect();
    idle.get("/").unwrap();
    let begun = Instant::now();
    let new = usr2(&lab, &old);
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(4) && took < Duration::from_secs(10), "{took:?}");
    assert!(idle.ends_within(LONG));
    assert!(lab.error_log().contains("drained: no request is left"), "nothing was cut:\n{}", lab.error_log());

    // Told to end on top, it does not keep anybody waiting.
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

/// The real user id of a process.
fn user(process: Process) -> u32 {
    fs::metadata(format!("/proc/{}", process.0)).unwrap().uid()
}

#[test]
fn who_gave_up_root_starts_its_successor_as_the_user_it_has_become() {
    if user(Process(std::process::id())) != 0 {
        // There is nothing to give up.
        return;
    }
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    lab.install();
    fs::set_permissions(lab.directory(), fs::Permissions::from_mode(0o777)).unwrap();
    let body = format!("user: www-data\n{}", pool(&[&origin], ""));
    let old = lab.daemonize(&body);
    let became = user(old.process);
    assert_ne!(became, 0);
    let new = usr2(&lab, &old);
    assert_eq!(user(new.process), became);
    assert_eq!(new.get("/").unwrap().status, 200);

    // What needs root fails, and leaves the old one alone.
    let closed = lab.path("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let another = format!("  - {{address: \"unix:{}/web.sock\"}}\n", closed.display());
    lab.config_with(&format!("listeners:\n  - {{address: \"{}\"}}\n{another}", lab.listener), &body);
    new.process.signal(Signal::SIGUSR2);
    let reason = new
        .logged(&["upgrade failed", "closed cannot be written to by the user `www-data`: permission denied"]);
    assert!(reason.contains("ended with exit code"), "{reason}");
    assert_eq!(new.get("/").unwrap().status, 200);

    // Who is still root can take over from it.
    lab.config(&body);
    let third = upgrade(&lab, &new);
    new.process.wait_gone(LONG);
    assert_eq!(third.get("/").unwrap().status, 200);
    assert_eq!(user(third.process), became);
}

#[test]
fn process_1_refuses_and_says_what_to_do() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let config = lab.config(&pool(&[&origin], ""));
    let program = lab.install();
    // A namespace of its own, in which the daemon is process 1.
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child"]);
    let log = fs::File::create(lab.path("log")).unwrap();
    unshare.arg(program).arg("-c").arg(&config).stdout(log.try_clone().unwrap()).stderr(log);
    let mut child = unshare.spawn().expect("util-linux is installed");
    wait::until(LONG, "the daemon serves", || tests::get(lab.listener, "/").is_ok());
    let daemon = Process(child.id()).children()[0];
    daemon.signal(Signal::SIGUSR2);
    wait::until(LONG, "the remedy is named", || {
        lab.error_log().contains("this is process 1 of a container, which ends with it: start a container")
    });
    assert!(daemon.children().is_empty());
    assert_eq!(tests::get(lab.listener, "/").unwrap().status, 200);
    daemon.signal(Signal::SIGTERM);
    child.wait().unwrap();
}
