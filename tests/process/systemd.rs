//! What a service manager is told: by `sd_notify`, to a socket that stands for systemd's.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use tests::daemon::path_str;
use tests::process::started_with;
use tests::wait::{self, LONG};
use tests::{Behaviour, Lab, Origin, Signal};

use crate::{pool, pool_of};

/// Where the daemon thinks that systemd listens.
struct Manager {
    socket: UnixDatagram,
    path: String,
}

impl Manager {
    fn new(lab: &Lab) -> Self {
        let path = lab.path("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        Self { socket, path: path_str(&path).to_owned() }
    }

    /// The next message.
    #[track_caller]
    fn heard(&self) -> String {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).expect("a message comes in time");
        String::from_utf8(message[..length].to_vec()).unwrap()
    }

    /// The next message with all these lines; others are passed over.
    #[track_caller]
    fn hears(&self, lines: &[&str]) -> String {
        wait::until_some(LONG, &format!("{lines:?}"), || {
            let message = self.heard();
            lines.iter().all(|line| message.lines().any(|said| said.starts_with(line))).then_some(message)
        })
    }
}

/// What the daemon relies on: without `NotifyAccess=all` systemd would not listen to a successor.
#[test]
fn the_unit_has_what_the_daemon_needs_of_systemd() {
    let unit = include_str!("../../deploy/systemd/load_balancer.service");
    for line in [
        "Type=notify",
        "NotifyAccess=all",
        "WatchdogSec=10",
        "ExecReload=/usr/local/bin/load_balancer reload -c /etc/load_balancer/load_balancer.yaml",
        "RestartPreventExitStatus=2",
        "RuntimeDirectory=load_balancer",
        "Environment=XDG_RUNTIME_DIR=/run",
    ] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
}

#[test]
fn start_reload_and_end_are_told() {
    let lab = Lab::new();
    let (manager, origin) = (Manager::new(&lab), Origin::start("one"));
    let config = lab.config(&pool(&[&origin], ""));
    let mut daemon = lab.start_with(&config, &[("NOTIFY_SOCKET", &manager.path)]);
    manager.hears(&["READY=1", &format!("MAINPID={}", daemon.process.0), "STATUS="]);
    lab.config(&pool(&[&origin], "policy: random"));
    daemon.signal(Signal::SIGHUP);
    let reloading = manager.hears(&["RELOADING=1", "MONOTONIC_USEC="]);
    assert!(!reloading.contains("READY"), "{reloading}");
    let ready = manager.hears(&["READY=1", "STATUS="]);
    assert!(ready.contains("configuration 2"), "{ready}");
    // A reload that is refused ends, too.
    lab.config("pools: 3");
    daemon.signal(Signal::SIGHUP);
    manager.hears(&["RELOADING=1"]);
    manager.hears(&["READY=1"]);
    origin.behave(Behaviour::Hang);
    daemon.signal(Signal::SIGTERM);
    manager.hears(&["STOPPING=1"]);
    daemon.wait_exit(LONG);
}

#[test]
fn systemd_follows_an_upgrade_to_the_new_process() {
    let lab = Lab::new();
    let (manager, origin) = (Manager::new(&lab), Origin::start("one"));
    let config = lab.config(&pool(&[&origin], ""));
    let mut old = lab.start_with(&config, &[("NOTIFY_SOCKET", &manager.path)]);
    manager.hears(&["READY=1"]);
    old.signal(Signal::SIGUSR2);
    let said = manager.hears(&["READY=1", "MAINPID="]);
    let new = lab.successor(old.process);
    assert!(said.contains(&format!("MAINPID={}", new.process.0)), "{said}");
    old.wait_exit(LONG);
    new.process.signal(Signal::SIGTERM);
    let last = manager.hears(&["STOPPING=1"]);
    assert!(!last.contains("MAINPID"), "only the new one says so: {last}");
    new.process.wait_gone(LONG);
}

/// What systemd took for the end of the main process would be the end of the old one, too.
#[test]
fn a_successor_that_is_told_to_end_before_it_serves_changes_nothing() {
    let lab = Lab::new();
    let (manager, origin) = (Manager::new(&lab), Origin::start("one"));
    let config = lab.config(&pool(&[&origin], ""));
    let old = lab.start_with(&config, &[("NOTIFY_SOCKET", &manager.path)]);
    manager.hears(&["READY=1"]);
    let unanswered = tests::Unreachable::start();
    let slow = pool_of(
        &[origin.address, unanswered.address],
        "health_check: {type: tcp, timeout: 3s, interval: 3s}",
    );
    lab.config(&format!("shutdown: {{delay: 5s}}\nreload: {{watch: true}}\n{slow}"));
    old.signal(Signal::SIGUSR2);
    old.logged(&["takes", "listeners"]);
    let new = wait::until_some(LONG, "the new process", || {
        started_with(lab.directory()).into_iter().find(|process| *process != old.process)
    });
    wait::until(LONG, "it has its handlers", || new.catches(Signal::SIGTERM));
    // It would have told of the one, and have waited for five more seconds with the other.
    new.signal(Signal::SIGHUP);
    new.signal(Signal::SIGTERM);
    old.logged(&["upgrade failed", "told to end before it served"]);
    new.wait_gone(LONG);
    assert_eq!(old.get("/").unwrap().status, 200);
    assert_eq!(lab.pid_in_file(), Some(old.process));
    manager.socket.set_nonblocking(true).unwrap();
    let mut message = [0; 4096];
    assert!(manager.socket.recv(&mut message).is_err(), "the new process has said something");
}

#[test]
fn a_daemon_that_works_says_so_again_and_again() {
    let lab = Lab::new();
    let (manager, origin) = (Manager::new(&lab), Origin::start("one"));
    let config = lab.config(&pool(&[&origin], ""));
    let variables = [("NOTIFY_SOCKET", manager.path.as_str()), ("WATCHDOG_USEC", "400000")];
    let daemon = lab.start_with(&config, &variables);
    for _ in 0..5 {
        manager.hears(&["WATCHDOG=1"]);
    }
    // One that hangs does not.
    daemon.signal(Signal::SIGSTOP);
    manager.socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    let mut message = [0; 4096];
    let silent = wait::poll(LONG, || manager.socket.recv(&mut message).is_err().then_some(()));
    assert!(silent.is_some(), "a process that is stopped says nothing");
    daemon.signal(Signal::SIGCONT);
    manager.socket.set_read_timeout(Some(LONG)).unwrap();
    manager.hears(&["WATCHDOG=1"]);
}

#[test]
fn in_the_background_it_is_told_by_the_process_that_serves() {
    let lab = Lab::new();
    let (manager, origin) = (Manager::new(&lab), Origin::start("one"));
    let config = lab.config(&pool(&[&origin], ""));
    let mut command = lab.command();
    command.args(["-c", path_str(&config), "-d"]).env("NOTIFY_SOCKET", &manager.path);
    assert!(command.status().unwrap().success(), "{}", lab.error_log());
    let said = manager.hears(&["READY=1", "MAINPID="]);
    assert!(said.contains(&format!("MAINPID={}", lab.pid_in_file().unwrap().0)), "{said}");
}
