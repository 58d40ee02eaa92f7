//! Graceful upgrades: `pkill -SIGQUIT load_balancer` and `load_balancer -c conf.yaml -d -u`.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use tests::daemon::path_str;
use tests::process::listening_sockets;
use tests::wait::{self, LONG};
use tests::{Answer, Background, Behaviour, Connection, Gate, Lab, LoadGenerator, Origin, Signal, ports};

use crate::pool;

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
