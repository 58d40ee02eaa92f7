//! Pingora's own keys, and the effect of each on the process or its traffic.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tests::daemon::path_str;
use tests::skip::is_root;
use tests::wait::{self, LONG};
use tests::{Authority, Daemon, Lab, Origin, Signal};

use crate::{pool, pool_of};

/// Waits until the names of exactly `count` threads of a daemon begin with `name`. Until a new thread runs, it has the
/// name of the thread that created it.
#[track_caller]
fn wait_for_threads(daemon: &Daemon, name: &str, count: usize) {
    let named = || thread_names(daemon).iter().filter(|thread| thread.starts_with(name)).count();
    let all = wait::poll(LONG, || (named() == count).then_some(()));
    assert!(all.is_some(), "there are not {count} threads named {name}: {:?}", thread_names(daemon));
}

/// The names of the threads of a daemon.
fn thread_names(daemon: &Daemon) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.process.0)).unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.map(|name| name.trim().to_owned()).collect()
}

/// The real, effective, saved and file system ids in the line `Uid:` or `Gid:` of a process's status.
fn ids(daemon: &Daemon, line: &str) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.process.0)).unwrap();
    let ids = status.lines().find_map(|text| text.strip_prefix(line)).unwrap();
    ids.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn threads_sets_the_number_of_threads_that_serve() {
    let origin = Origin::start("one");
    for threads in [1, 5] {
        let lab = Lab::new();
        let daemon = lab.start(&format!("threads: {threads}\n{}", pool(&[&origin], "")));
        wait_for_threads(&daemon, "proxy", threads);
    }
}

/// Each task logs its beginning, which is the only effect of the number of tasks that is visible from outside.
#[test]
fn listener_tasks_per_fd_sets_the_number_of_tasks_that_accept() {
    let origin = Origin::start("one");
    let accepting = |tasks: usize| {
        let lab = Lab::new();
        let config = lab.config(&format!("listener_tasks_per_fd: {tasks}\n{}", pool(&[&origin], "")));
        let mut daemon = lab.start_with(&config, &[("RUST_LOG", "debug")]);
        let listener = format!("accepting on {}", daemon.listener);
        assert_eq!(daemon.stop(), Some(0));
        daemon.log().lines().filter(|line| line.ends_with(&listener)).count()
    };
    assert_eq!((accepting(1), accepting(3)), (1, 3));
}

#[test]
fn without_work_stealing_each_thread_has_its_own_event_queue() {
    let origin = Origin::start("one");
    let event_queues = |stealing: bool| {
        let lab = Lab::new();
        let daemon = lab.start(&format!("threads: 4\nwork_stealing: {stealing}\n{}", pool(&[&origin], "")));
        assert_eq!(daemon.get("/").unwrap().status, 200);
        daemon.process.descriptors().iter().filter(|target| target.contains("eventpoll")).count()
    };
    let (shared, own) = (event_queues(true), event_queues(false));
    assert!(own >= shared + 3, "{shared} event queues with work stealing, {own} without");
}

#[test]
fn the_pool_size_limits_the_idle_connections_to_backends() {
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let kept = |size: usize| {
        let lab = Lab::new();
        let keys = format!("threads: 1\nupstream_keepalive_pool_size: {size}\n");
        let daemon = lab.start(&format!("{keys}{}", pool(&[&one, &two], "")));
        for _ in 0..2 {
            assert_eq!(daemon.get("/").unwrap().status, 200);
        }
        let open = || one.open_connections() + two.open_connections();
        let settled = wait::poll(LONG, || (open() == size.min(2)).then_some(()));
        assert!(settled.is_some(), "{} connections are kept with a pool size of {size}", open());
    };
    kept(1);
    wait::until(LONG, "all connections are closed", || one.open_connections() + two.open_connections() == 0);
    kept(128);
}

#[test]
fn connections_to_backends_come_from_the_configured_address() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.start(&format!("client_bind_to_ipv4: [127.0.0.77]\n{}", pool(&[&origin], "")));
    assert_eq!(daemon.get("/bound").unwrap().status, 200);
    assert_eq!(origin.received("/bound").peer.unwrap().ip().to_string(), "127.0.0.77");
}

#[test]
fn connections_to_ipv6_backends_come_from_the_configured_address() {
    let (lab, origin) = (Lab::new(), Origin::start_v6("six"));
    let daemon = lab.start(&pool(&[&origin], ""));
    assert_eq!(daemon.get("/").unwrap().origin(), "six");
    drop(daemon);
    // No interface has this address, so no connection can come from it.
    let keys = "client_bind_to_ipv6: [\"2001:db8::77\"]\n";
    let daemon = lab.start(&format!("{keys}{}", pool(&[&origin], "")));
    assert_eq!(daemon.get("/").unwrap().status, 502);
}

#[test]
fn ca_file_is_trusted_by_pools_without_their_own_ca() {
    let (lab, authority) = (Lab::new(), Authority::new());
    let ca = lab.path("ca.pem");
    authority.write(&ca).unwrap();
    let origin = Origin::start_tls("one", authority.certify(&["a.test"]).server());
    let pools = pool(&[&origin], "tls: {sni: a.test}");
    let daemon = lab.start(&format!("ca_file: {}\n{pools}", ca.display()));
    assert_eq!(daemon.get("/").unwrap().status, 200);
    drop(daemon);
    let daemon = lab.start(&pools);
    assert_eq!(daemon.get("/").unwrap().status, 502);
}

#[test]
fn working_directory_sets_the_directory_of_the_process() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let directory = lab.path("elsewhere");
    fs::create_dir(&directory).unwrap();
    let daemon = lab.start(&format!("working_directory: {}\n{}", directory.display(), pool(&[&origin], "")));
    let now = fs::read_link(format!("/proc/{}/cwd", daemon.process.0)).unwrap();
    assert_eq!(now, directory);
}

#[test]
fn the_key_daemon_has_the_effect_of_the_option() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let config = lab.config(&format!("daemon: true\n{}", pool(&[&origin], "")));
    let finished = lab.run(&["-c", path_str(&config)]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let process = lab.pid_in_file().expect("the daemon has written its PID file");
    assert!(process.alive());
    assert_eq!(tests::get(lab.listener, "/").unwrap().origin(), "one");
    process.signal(Signal::SIGTERM);
    process.wait_gone(LONG);
}

#[test]
fn user_and_group_set_the_ids_of_the_process() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    fs::set_permissions(lab.directory(), fs::Permissions::from_mode(0o777)).unwrap();
    let text = format!("user: www-data\ngroup: nogroup\n{}", pool(&[&origin], ""));
    if !is_root() {
        let config = lab.config(&text);
        let finished = lab.run(&["-c", path_str(&config)]);
        assert!(matches!(finished.code, Some(1 | 2)), "{finished:?}");
        assert!((finished.stderr + &lab.error_log()).contains("www-data"), "the message must name the user");
        return;
    }
    let daemon = lab.start(&text);
    assert_eq!(daemon.get("/").unwrap().status, 200);
    let (user, group) = (id_of("passwd", "www-data"), id_of("group", "nogroup"));
    assert_eq!(ids(&daemon, "Uid:"), vec![user; 4]);
    assert_eq!(ids(&daemon, "Gid:"), vec![group; 4]);
}

/// The id of a user or group of this machine.
pub(crate) fn id_of(database: &str, name: &str) -> String {
    let output = tests::tools::run("getent", &[database, name]);
    let line = String::from_utf8(output.stdout).unwrap();
    line.split(':').nth(2).unwrap_or_else(|| panic!("no {name} in {database}")).to_owned()
}

#[test]
fn version_accepts_only_1() {
    let lab = Lab::new();
    for (version, code) in [("1", 0), ("2", 2)] {
        let config = lab.config(&format!("version: {version}\n{}", pool_of(&[tests::ports::free()], "")));
        let finished = lab.run(&["-c", path_str(&config), "-t"]);
        assert_eq!(finished.code, Some(code), "version {version}: {finished:?}");
    }
}

#[test]
fn a_source_address_that_the_machine_does_not_have_is_a_warning_in_a_test_and_at_the_start() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let config = lab.config(&format!("client_bind_to_ipv4: [203.0.113.7]\n{}", pool(&[&origin], "")));
    let warning = "client_bind_to_ipv4: this machine does not have the address 203.0.113.7";
    for (options, code) in [(&["-t"][..], 0), (&["-t", "--strict"], 2)] {
        let tested = lab.run(&[options, &["-c", path_str(&config)]].concat());
        assert_eq!(tested.code, Some(code), "{tested:?}");
        assert!(tested.stderr.contains(&format!("warning: {warning}")), "{tested:?}");
    }
    let checked = lab.run(&["check", "-c", path_str(&config)]);
    assert!(checked.code == Some(0) && checked.stderr.is_empty(), "another machine can have it: {checked:?}");
    let daemon = lab.start_file(&config);
    daemon.logged(&["WARN", warning]);
}
