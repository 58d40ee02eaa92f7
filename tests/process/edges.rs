//! Misbehaving clients, and failures at inconvenient moments.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use tests::client::head_bytes;
use tests::daemon::path_str;
use tests::wait::{self, LONG};
use tests::{Authority, Behaviour, Connection, Lab, LoadGenerator, Origin, Signal};

use crate::{pool, pool_of};

// ===== incomplete heads =====

#[test]
fn a_request_whose_head_has_begun_is_served_during_a_drain() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let mut daemon = lab.start(&pool(&[&origin], ""));
    let (mut fresh, mut used) = (daemon.connect(), daemon.connect());
    assert_eq!(used.get("/").unwrap().status, 200);
    for client in [&mut fresh, &mut used] {
        client.send("GET /late HTTP/1.1\r\nHo").unwrap();
    }
    wait::until(LONG, "both requests have begun", || daemon.metric("lb_requests_in_flight", &[]) == 2.0);
    daemon.signal(Signal::SIGTERM);
    wait::until(LONG, "the listener is closed", || Connection::open(daemon.listener).is_err());
    // By then the daemon has closed all idle connections.
    wait::until(LONG, "the grace period for idle connections is over", || {
        daemon.log().contains("listeners closed")
    });
    for client in [&mut fresh, &mut used] {
        client.send("st: a\r\n\r\n").unwrap();
        let response = client.response("GET").unwrap();
        assert_eq!((response.status, response.closes()), (200, true));
    }
    assert_eq!(daemon.wait_exit(LONG).code(), Some(0));
}

#[test]
fn a_head_that_times_out_closes_the_connection_and_is_counted_and_logged() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.start(&pool(&[&origin], ""));
    let mut client = daemon.connect();
    let begun = Instant::now();
    client.send("GET / HTTP/1.1\r\n").unwrap();
    // Pingora limits only the time between two reads, which a client that sends a line at a time never exceeds.
    while begun.elapsed() < Duration::from_secs(30) && client.send("X-Drip: 1\r\n").is_ok() {
        if client.ends_within(Duration::from_millis(500)) {
            break;
        }
    }
    assert!((8..25).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    wait::until(LONG, "the request is counted", || {
        daemon.metric("lb_requests_total", &["code=\"408\""]) == 1.0
    });
    daemon.logged(&["408", "client_timeout"]);
    daemon.settle();
}

#[test]
fn a_client_that_disconnects_within_a_head_is_counted_and_logged() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.start(&pool(&[&origin], ""));
    let mut client = daemon.connect();
    client.send("GET / HTTP/1.1\r\nHos").unwrap();
    drop(client);
    wait::until(LONG, "the request is counted", || {
        daemon.metric("lb_requests_total", &["code=\"499\""]) == 1.0
    });
    daemon.logged(&["499", "client_gone"]);
}

#[test]
fn pipelined_requests_get_their_responses_in_order() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.start(&pool(&[&origin], ""));
    let mut client = daemon.connect();
    // A response to HEAD has no body, so a response out of order would be read wrongly.
    let methods = ["GET", "HEAD", "GET", "HEAD", "GET"];
    client.send(methods.map(|method| format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")).concat()).unwrap();
    for method in methods {
        let response = client.response(method).unwrap();
        assert_eq!((response.status, response.closes()), (200, false), "{method}");
    }
    assert_eq!((origin.requests(), origin.connections()), (5, 1));
}

// ===== responses =====

#[test]
fn a_connection_is_kept_after_a_502() {
    let lab = Lab::new();
    let down = Origin::refusing("down");
    let daemon = lab.start(&pool(&[&down], ""));
    let mut client = daemon.connect();
    for _ in 0..2 {
        let response = client.get("/").unwrap();
        assert_eq!((response.status, response.closes()), (502, false));
    }
}

#[test]
fn an_http_1_0_client_gets_no_transfer_encoding() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    origin.behave(Behaviour::Chunked { chunks: vec![b"hel".to_vec(), b"lo".to_vec()], trailers: Vec::new() });
    let daemon = lab.start(&pool(&[&origin], ""));
    let mut client = daemon.connect();
    client.send("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n").unwrap();
    let response = client.response("GET").unwrap();
    assert_eq!((response.text().as_str(), response.header("transfer-encoding")), ("hello", None));
    assert!(response.closes());
}

#[test]
fn a_client_that_disconnects_after_100_continue_is_499() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.start(&pool(&[&origin], ""));
    let mut client = daemon.connect();
    client.send(head_bytes("PUT", "/up", &[("Expect", "100-continue")], 5)).unwrap();
    assert_eq!(client.response_head().unwrap().0, 100);
    drop(client);
    wait::until(LONG, "the request is counted", || {
        daemon.metric("lb_requests_total", &["code=\"499\""]) == 1.0
    });
    assert_eq!(daemon.metric("lb_requests_total", &[]), 1.0);
}

#[test]
fn a_broken_chunk_is_400() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.start(&pool(&[&origin], ""));
    let mut client = daemon.connect();
    client.send(head_bytes("POST", "/c", &[("Transfer-Encoding", "chunked")], 0)).unwrap();
    client.send("zz\r\n").unwrap();
    assert_eq!(client.response("POST").unwrap().status, 400);
    daemon.logged(&["/c", "400", "bad_chunk"]);
}

// ===== retries =====

#[test]
fn a_request_that_succeeds_at_the_second_attempt_is_not_logged_as_a_failure() {
    let lab = Lab::new();
    let (down, up) = (Origin::refusing("down"), Origin::start("up"));
    let daemon = lab.start(&pool(&[&down, &up], ""));
    for _ in 0..2 {
        assert_eq!(daemon.get("/again").unwrap().status, 200);
    }
    let line = daemon.logged(&["/again", "tries=2"]);
    assert!(line.contains(" 200 ") && line.contains("reason=-"), "{line}");
}

#[test]
fn a_request_is_retried_ten_times_when_attempts_is_10() {
    let lab = Lab::new();
    let (down, up): (Vec<_>, _) = ((0..10).map(|_| Origin::refusing("down")).collect(), Origin::start("up"));
    let all: Vec<&Origin> = down.iter().chain([&up]).collect();
    let daemon = lab.start(&pool(&all, "retries: {attempts: 10}"));
    for _ in 0..3 {
        assert_eq!(daemon.get("/").unwrap().status, 200);
    }
}

#[test]
fn several_threads_share_the_connections_to_backends() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.start(&format!("threads: 2\n{}", pool(&[&origin], "")));
    let load = LoadGenerator::start(daemon.listener, 4, 0);
    wait::until(LONG, "500 requests have succeeded", || load.report().ok > 500);
    let report = load.stop();
    let new = daemon.metric("lb_upstream_connections_total", &["reused=\"false\""]);
    assert!(new < report.ok as f64 / 20.0, "{new} connections for {report:?}");
    assert!(!daemon.log().contains("ERROR"), "{}", daemon.log());
}

// ===== starts =====

#[test]
fn an_upgrade_with_the_pid_file_of_another_daemon_leaves_the_old_process_serving() {
    let (lab, other) = (Lab::new(), Lab::new());
    let origin = Origin::start("one");
    let old = lab.daemonize(&pool(&[&origin], ""));
    let stranger = other.daemonize(&pool(&[&origin], ""));
    let text = fs::read_to_string(lab.path("conf.yaml")).unwrap();
    let (ours, theirs) = (lab.pid_file(), other.pid_file());
    let config = lab.write("other.yaml", &text.replace(path_str(&ours), path_str(&theirs)));
    old.process.signal(Signal::SIGQUIT);
    let finished = lab.run(&["-c", path_str(&config), "-d", "-u"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("already runs"), "{finished:?}");
    assert_eq!(old.get("/").unwrap().status, 200);
    assert_eq!(lab.pid_in_file(), Some(old.process));
    assert_eq!(other.pid_in_file(), Some(stranger.process));
}

#[test]
fn option_t_refuses_a_configuration_that_a_start_would_refuse() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let running = lab.start(&pool(&[&origin], ""));
    let other = Lab::new();
    let refused = |text: &str, said: &str| {
        let config = other.write("refused.yaml", text);
        let finished = other.run(&["-c", path_str(&config), "-t"]);
        assert_eq!(finished.code, Some(2), "{said}: {finished:?}");
        assert!(finished.stderr.contains(said), "{said}: {finished:?}");
    };
    let good = fs::read_to_string(other.config(&pool_of(&[origin.address], ""))).unwrap();
    let with = |from: &std::path::Path, to: &std::path::Path| good.replace(path_str(from), path_str(to));
    refused(&with(&other.pid_file(), &lab.pid_file()), "already runs as process");
    let no_socket = other.write("no-socket", "");
    refused(&with(&other.path("upgrade.sock"), &no_socket), "no-socket");
    refused(&format!("user: no-such-user\n{good}"), "no-such-user");
    drop(running);
}

#[test]
fn a_ca_file_that_contains_a_private_key_is_refused() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let file = lab.path("mixed.pem");
    Authority::new().write(&file).unwrap();
    let key = "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n";
    fs::write(&file, fs::read_to_string(&file).unwrap() + key).unwrap();
    let config = lab.config(&format!("ca_file: {}\n{}", file.display(), pool(&[&origin], "")));
    let finished = lab.run(&["-c", path_str(&config)]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert!(finished.stderr.contains("PRIVATE KEY"), "{finished:?}");
}

#[test]
fn options_that_a_subcommand_would_ignore_are_refused() {
    let lab = Lab::new();
    for arguments in
        [&["-t", "demo"][..], &["-u", "schema"], &["-c", "a.yaml", "proxy", "--to", "127.0.0.1:1"]]
    {
        let finished = lab.run(arguments);
        assert_eq!(finished.code, Some(2), "{arguments:?}: {finished:?}");
    }
    let (to, listen) = (tests::ports::free().to_string(), lab.listener.to_string());
    let metrics = lab.metrics.to_string();
    let proxy = ["-t", "proxy", "--to", &to, "--listen", &listen, "--metrics", &metrics];
    assert_eq!(lab.run(&proxy).code, Some(0), "`-t` only tests and exits");
}

// ===== early signals =====

/// Starts the daemon several times, since each start leaves only a few milliseconds for the signals to come early.
#[test]
fn signals_take_effect_as_soon_as_the_pid_file_exists() {
    let origin = Origin::start("one");
    for _ in 0..5 {
        let lab = Lab::new();
        let daemon = lab.spawn(&["-c", path_str(&lab.config(&pool(&[&origin], "")))]);
        let begun = Instant::now();
        let process = loop {
            assert!(begun.elapsed() < LONG, "there is no PID file: {}", daemon.log());
            match lab.pid_in_file() {
                Some(process) => break process,
                None => std::thread::yield_now(),
            }
        };
        process.signal(Signal::SIGHUP);
        process.signal(Signal::SIGUSR1);
        wait::until(LONG, "the log files are reopened", || daemon.log().contains("error.log reopened"));
        wait::until(LONG, "the configuration is reloaded", || daemon.log().contains("reload"));
        wait::until(LONG, "the daemon serves", || {
            daemon.get("/").is_ok_and(|response| response.status == 200)
        });
        assert_eq!(lab.pid_in_file(), Some(process));
    }
}

/// Makes one thing of each kind that a path can name, and returns their paths.
fn things(lab: &Lab) -> Vec<(&'static str, PathBuf)> {
    let [file, directory, fifo, socket] = ["file", "directory", "fifo", "socket"].map(|name| lab.path(name));
    fs::write(&file, "text").unwrap();
    fs::create_dir(&directory).unwrap();
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    drop(UnixListener::bind(&socket).unwrap());
    vec![
        ("a file", file),
        ("a directory", directory),
        ("a FIFO", fifo),
        ("a socket", socket),
        ("a missing directory", lab.path("missing/name")),
    ]
}

#[test]
fn option_t_and_a_start_give_the_same_verdict_on_each_path() {
    let origin = Origin::start("one");
    for key in ["upgrade_sock", "control", "pid_file", "error_log", "access_log"] {
        for number in 0..5 {
            let lab = Lab::new();
            let text = fs::read_to_string(lab.config(&pool(&[&origin], ""))).unwrap();
            let (kind, path) = things(&lab).swap_remove(number);
            let path = path.display();
            let line = match key {
                "control" => format!("control: {{socket: {path}}}\n"),
                "access_log" => format!("access_log: {{path: {path}}}\n"),
                _ => format!("{key}: {path}\n"),
            };
            let others = text.split_inclusive('\n').filter(|line| !line.starts_with(&format!("{key}:")));
            let config = lab.write("conf.yaml", &others.chain([&*line]).collect::<String>());
            let before = files(&lab);
            let checked = lab.run(&["-c", path_str(&config), "-t"]);
            assert_eq!(files(&lab), before, "{key} is {kind}: -t leaves a trace");
            let started = lab.run(&["-c", path_str(&config), "-d"]);
            let agree = (checked.code == Some(0)) == (started.code == Some(0));
            assert!(agree, "{key} is {kind}:\n{checked:?}\n{started:?}\n{}", lab.error_log());
        }
    }
}

/// Returns the names of the files in the directory of the test. The harness creates files for the output of programs.
fn files(lab: &Lab) -> Vec<String> {
    let names = fs::read_dir(lab.directory()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.retain(|name| !name.starts_with("std"));
    names.sort();
    names
}

#[test]
fn a_second_start_only_says_that_the_daemon_runs_and_what_to_do() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    // A pool without a route is a warning.
    let unused = format!("  unused: {{backends: [\"{}\"]}}\nroutes: [{{pool: web}}]\n", origin.address);
    let daemon = lab.daemonize(&(pool(&[&origin], "") + &unused));
    let second = lab.run(&["-c", path_str(&lab.path("conf.yaml")), "-d"]);
    assert_eq!(second.code, Some(1), "{second:?}");
    let first = format!("error: load_balancer already runs as process {}", daemon.process.0);
    assert!(second.stderr.starts_with(&first), "{second:?}");
    for said in ["`load_balancer reload`", "`load_balancer upgrade`", "`load_balancer stop`"] {
        assert!(second.stderr.contains(said), "{second:?}");
    }
}

#[test]
fn a_low_limit_of_threads_is_an_error_with_a_remedy() {
    let Some(lab) = Lab::of_root() else { return };
    let origin = Origin::start("one");
    let body = format!("access_log: {{path: access.log}}\n{}", pool(&[&origin], ""));
    let config = lab.config(&body.replace("access.log", path_str(&lab.path("access.log"))));
    fs::set_permissions(&config, fs::Permissions::from_mode(0o644)).unwrap();
    for (threads, option) in [(3, "-c"), (8, "-c"), (8, "-tc")] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups", "prlimit"]);
        command.arg(format!("--nproc={threads}")).arg(lab.path("load_balancer"));
        command.current_dir(lab.directory());
        let finished = lab.finish(command, &[option, path_str(&config)]);
        assert!([Some(1), Some(2)].contains(&finished.code), "{threads}: {finished:?}");
        for said in ["thread", "the limit of processes and threads is reached", "ulimit -u"] {
            assert!(finished.stderr.contains(said), "{threads}: {finished:?}");
        }
        assert!(!finished.stderr.contains("panicked"), "{threads}: {finished:?}");
    }
}
