//! Messages to the service manager by `sd_notify`. A socket of the test takes the place of systemd's.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use tests::daemon::path_str;
use tests::process::started_with;
use tests::wait::{self, LONG};
use tests::{Behaviour, Lab, Origin, Signal};

use crate::{pool, pool_of};

/// The socket that the daemon uses as that of systemd.
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

    /// Waits for the next message, and returns it.
    #[track_caller]
    fn receive(&self) -> String {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).expect("a message arrives in time");
        String::from_utf8(message[..length].to_vec()).unwrap()
    }

    /// Waits for the next message that has lines with all these beginnings, and returns it.
    #[track_caller]
    fn receives(&self, lines: &[&str]) -> String {
        wait::until_some(LONG, &format!("{lines:?}"), || {
            let message = self.receive();
            lines.iter().all(|line| message.lines().any(|said| said.starts_with(line))).then_some(message)
        })
    }
}

/// Without `NotifyAccess=all`, for example, systemd would ignore the messages of a new process.
#[test]
fn the_unit_file_has_the_settings_that_the_daemon_needs() {
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
fn systemd_is_notified_of_start_reload_and_shutdown() {
    let lab = Lab::new();
    let (manager, origin) = (Manager::new(&lab), Origin::start("one"));
    let config = lab.config(&pool(&[&origin], ""));
    let mut daemon = lab.start_with(&config, &[("NOTIFY_SOCKET", &manager.path)]);
    manager.receives(&["READY=1", &format!("MAINPID={}", daemon.process.0), "STATUS="]);
    lab.config(&pool(&[&origin], "policy: random"));
    daemon.signal(Signal::SIGHUP);
    let reloading = manager.receives(&["RELOADING=1", "MONOTONIC_USEC="]);
    assert!(!reloading.contains("READY"), "{reloading}");
    let ready = manager.receives(&["READY=1", "STATUS="]);
    assert!(ready.contains("configuration 2"), "{ready}");
    // A reload that is refused ends, too.
    lab.config("pools: 3");
    daemon.signal(Signal::SIGHUP);
    manager.receives(&["RELOADING=1"]);
    manager.receives(&["READY=1"]);
    origin.behave(Behaviour::Hang);
    daemon.signal(Signal::SIGTERM);
    manager.receives(&["STOPPING=1"]);
    daemon.wait_exit(LONG);
}

#[test]
fn systemd_follows_an_upgrade_to_the_new_process() {
    let lab = Lab::new();
    let (manager, origin) = (Manager::new(&lab), Origin::start("one"));
    let config = lab.config(&pool(&[&origin], ""));
    let mut old = lab.start_with(&config, &[("NOTIFY_SOCKET", &manager.path)]);
    manager.receives(&["READY=1"]);
    old.signal(Signal::SIGUSR2);
    let said = manager.receives(&["READY=1", "MAINPID="]);
    let new = lab.successor(old.process);
    assert!(said.contains(&format!("MAINPID={}", new.process.0)), "{said}");
    old.wait_exit(LONG);
    new.process.signal(Signal::SIGTERM);
    let last = manager.receives(&["STOPPING=1"]);
    assert!(!last.contains("MAINPID"), "only the new process sends this: {last}");
    new.process.wait_gone(LONG);
}

/// If systemd recorded the new process as the main process and it ended, systemd would end the old one, too.
#[test]
fn ending_the_new_process_before_it_serves_changes_nothing() {
    let lab = Lab::new();
    let (manager, origin) = (Manager::new(&lab), Origin::start("one"));
    let config = lab.config(&pool(&[&origin], ""));
    let old = lab.start_with(&config, &[("NOTIFY_SOCKET", &manager.path)]);
    manager.receives(&["READY=1"]);
    let silent = tests::Unreachable::start();
    let slow =
        pool_of(&[origin.address, silent.address], "health_check: {type: tcp, timeout: 3s, interval: 3s}");
    lab.config(&format!("shutdown: {{delay: 5s}}\nreload: {{watch: true}}\n{slow}"));
    old.signal(Signal::SIGUSR2);
    old.logged(&["takes", "listeners"]);
    let new = wait::until_some(LONG, "the new process runs", || {
        started_with(lab.directory()).into_iter().find(|process| *process != old.process)
    });
    wait::until(LONG, "the new process handles signals", || new.catches(Signal::SIGTERM));
    // After the handover, the new process would report the reload, and would wait for five seconds before it ends.
    new.signal(Signal::SIGHUP);
    new.signal(Signal::SIGTERM);
    old.logged(&["upgrade failed", "stopped before it was ready"]);
    new.wait_gone(LONG);
    assert_eq!(old.get("/").unwrap().status, 200);
    assert_eq!(lab.pid_in_file(), Some(old.process));
    manager.socket.set_nonblocking(true).unwrap();
    let mut message = [0; 4096];
    assert!(manager.socket.recv(&mut message).is_err(), "the new process has sent a message");
}

#[test]
fn a_running_daemon_keeps_notifying_the_watchdog() {
    let lab = Lab::new();
    let (manager, origin) = (Manager::new(&lab), Origin::start("one"));
    let config = lab.config(&pool(&[&origin], ""));
    let variables = [("NOTIFY_SOCKET", manager.path.as_str()), ("WATCHDOG_USEC", "400000")];
    let daemon = lab.start_with(&config, &variables);
    for _ in 0..5 {
        manager.receives(&["WATCHDOG=1"]);
    }
    // A process that hangs sends no message.
    daemon.signal(Signal::SIGSTOP);
    manager.socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    let mut message = [0; 4096];
    let silent = wait::poll(LONG, || manager.socket.recv(&mut message).is_err().then_some(()));
    assert!(silent.is_some(), "a stopped process must not send messages");
    daemon.signal(Signal::SIGCONT);
    manager.socket.set_read_timeout(Some(LONG)).unwrap();
    manager.receives(&["WATCHDOG=1"]);
}

#[test]
fn in_the_background_the_serving_process_notifies_systemd() {
    let lab = Lab::new();
    let (manager, origin) = (Manager::new(&lab), Origin::start("one"));
    let config = lab.config(&pool(&[&origin], ""));
    let mut command = lab.command();
    command.args(["-c", path_str(&config), "-d"]).env("NOTIFY_SOCKET", &manager.path);
    assert!(command.status().unwrap().success(), "{}", lab.error_log());
    let said = manager.receives(&["READY=1", "MAINPID="]);
    assert!(said.contains(&format!("MAINPID={}", lab.pid_in_file().unwrap().0)), "{said}");
}
