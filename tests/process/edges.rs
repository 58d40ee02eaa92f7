//! What clients do that no client should, and what goes wrong at the worst moment.

use std::fs;
use std::time::{Duration, Instant};

use tests::client::head_bytes;
use tests::daemon::path_str;
use tests::wait::{self, LONG};
use tests::{Authority, Behaviour, Connection, Lab, LoadGenerator, Origin, Signal};

use crate::{pool, pool_of};

// ===== heads that come in pieces =====

#[test]
fn a_request_whose_head_has_begun_is_answered_in_a_drain() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let mut daemon = lab.start(&pool(&[&origin], ""));
    let (mut fresh, mut used) = (daemon.connect(), daemon.connect());
    assert_eq!(used.get("/").unwrap().status, 200);
    for client in [&mut fresh, &mut used] {
        client.send("GET /late HTTP/1.1\r\nHo").unwrap();
    }
    wait::until(LONG, "both have begun", || daemon.metric("lb_requests_in_flight", &[]) == 2.0);
    daemon.signal(Signal::SIGTERM);
    wait::until(LONG, "the listener is closed", || Connection::open(daemon.listener).is_err());
    // Longer than idle connections are kept open for.
    wait::until(LONG, "the idle grace is over", || daemon.log().contains("listeners closed"));
    for client in [&mut fresh, &mut used] {
        client.send("st: a\r\n\r\n").unwrap();
        let answer = client.response("GET").unwrap();
        assert_eq!((answer.status, answer.closes()), (200, true));
    }
    assert_eq!(daemon.wait_exit(LONG).code(), Some(0));
}

#[test]
fn a_head_that_takes_too_long_ends_the_connection_and_is_counted_and_logged() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.start(&pool(&[&origin], ""));
    let mut client = daemon.connect();
    let begun = Instant::now();
    client.send("GET / HTTP/1.1\r\n").unwrap();
    // Pingora only limits the time between two reads, which a client that drips never exceeds.
    while begun.elapsed() < Duration::from_secs(30) && client.send("X-Drip: 1\r\n").is_ok() {
        if client.ends_within(Duration::from_millis(500)) {
            break;
        }
    }
    assert!((8..25).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    wait::until(LONG, "it is counted", || daemon.metric("lb_requests_total", &["code=\"408\""]) == 1.0);
    daemon.logged(&["408", "client_timeout"]);
    daemon.settle();
}

#[test]
fn a_client_that_leaves_within_a_head_is_counted_and_logged() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.start(&pool(&[&origin], ""));
    let mut client = daemon.connect();
    client.send("GET / HTTP/1.1\r\nHos").unwrap();
    drop(client);
    wait::until(LONG, "it is counted", || daemon.metric("lb_requests_total", &["code=\"499\""]) == 1.0);
    daemon.logged(&["499", "client_gone"]);
}

#[test]
fn after_requests_sent_at_once_the_first_answer_says_that_it_is_the_last() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.start(&pool(&[&origin], ""));
    let mut client = daemon.connect();
    let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    client.send([request, request].concat()).unwrap();
    let answer = client.response("GET").unwrap();
    assert_eq!((answer.status, answer.closes()), (200, true));
    assert!(client.ends_within(LONG));
}

// ===== answers =====

#[test]
fn an_answer_that_ends_its_connection_says_so() {
    let lab = Lab::new();
    let down = Origin::refusing("down");
    let daemon = lab.start(&pool(&[&down], ""));
    let mut client = daemon.connect();
    let answer = client.get("/").unwrap();
    assert_eq!((answer.status, answer.closes()), (502, true));
    assert!(client.ends_within(LONG));
}

#[test]
fn a_client_of_http_1_0_gets_no_transfer_coding() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    origin.behave(Behaviour::Chunked { chunks: vec![b"hel".to_vec(), b"lo".to_vec()], trailers: Vec::new() });
    let daemon = lab.start(&pool(&[&origin], ""));
    let mut client = daemon.connect();
    client.send("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n").unwrap();
    let answer = client.response("GET").unwrap();
    assert_eq!((answer.text().as_str(), answer.header("transfer-encoding")), ("hello", None));
    assert!(answer.closes());
}

#[test]
fn a_client_that_leaves_after_100_continue_is_499() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.start(&pool(&[&origin], ""));
    let mut client = daemon.connect();
    client.send(head_bytes("PUT", "/up", &[("Expect", "100-continue")], 5)).unwrap();
    assert_eq!(client.response_head().unwrap().0, 100);
    drop(client);
    wait::until(LONG, "it is counted", || daemon.metric("lb_requests_total", &["code=\"499\""]) == 1.0);
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
    daemon.logged(&["/c", "400", "bad_request"]);
}

// ===== retries =====

#[test]
fn a_request_that_succeeds_at_the_second_try_is_no_failure_in_the_log() {
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
fn as_many_backends_are_tried_as_attempts_says_however_many() {
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
    wait::until(LONG, "there was some load", || load.report().ok > 500);
    let report = load.stop();
    let new = daemon.metric("lb_upstream_connections_total", &["reused=\"false\""]);
    assert!(new < report.ok as f64 / 20.0, "{new} connections for {report:?}");
    assert!(!daemon.log().contains("ERROR"), "{}", daemon.log());
}

// ===== starts =====

#[test]
fn an_upgrade_whose_pid_file_cannot_be_had_leaves_the_old_process_serving() {
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
fn t_refuses_what_a_start_would_fail_at() {
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
    refused(&format!("client_bind_to_ipv4: [203.0.113.7]\n{good}"), "203.0.113.7");
    drop(running);
}

#[test]
fn a_ca_file_with_a_key_in_it_is_refused_before_pingora_ends_the_process() {
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
fn flags_that_a_verb_would_not_look_at_are_refused() {
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
    assert_eq!(lab.run(&proxy).code, Some(0), "it is a test, and ends");
}

// ===== signals that come at once =====

/// Several starts, since each gives the signals some milliseconds only.
#[test]
fn a_signal_as_soon_as_there_is_a_pid_file_is_carried_out_and_does_not_end_the_process() {
    let origin = Origin::start("one");
    for _ in 0..5 {
        let lab = Lab::new();
        let daemon = lab.spawn(&["-c", path_str(&lab.config(&pool(&[&origin], "")))]);
        let begun = Instant::now();
        let process = loop {
            assert!(begun.elapsed() < LONG, "there is no pid file: {}", daemon.log());
            match lab.pid_in_file() {
                Some(process) => break process,
                None => std::thread::yield_now(),
            }
        };
        process.signal(Signal::SIGHUP);
        process.signal(Signal::SIGUSR1);
        wait::until(LONG, "the log files are opened again", || daemon.log().contains("error.log reopened"));
        wait::until(LONG, "the file is read again", || daemon.log().contains("reload"));
        wait::until(LONG, "it serves", || daemon.get("/").is_ok_and(|answer| answer.status == 200));
        assert_eq!(lab.pid_in_file(), Some(process));
    }
}
