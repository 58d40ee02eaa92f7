//! Items 1 to 6 and 8 of Pingora's quick start. Graceful upgrades are in [`crate::upgrade`].

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use tests::client::Failure;
use tests::daemon::path_str;
use tests::tools::curl;
use tests::wait::{self, LONG};
use tests::{Authority, Behaviour, CannedResponse, Connection, Gate, Lab, Origin, Signal};

use crate::forms::Isolated;
use crate::{pool, pool_of, tally};

const SNI: &str = "one.one.one.one";

/// The backends of the quick start: two that use TLS, and one that refuses connections.
struct Backends {
    one: Origin,
    two: Origin,
    broken: Origin,
    /// The key `tls` of the pool.
    tls: String,
}

impl Backends {
    fn start(lab: &Lab) -> Self {
        let authority = Authority::new();
        let ca = lab.path("ca.pem");
        authority.write(&ca).expect("the directory of the test is writable");
        let server = authority.certify(&[SNI]).server();
        Self {
            one: Origin::start_tls("one", server.clone()),
            two: Origin::start_tls("two", server.clone()),
            broken: Origin::refusing_tls("broken", server),
            tls: format!("tls: {{sni: {SNI}, verify: true, ca: {}}}\nhost: {SNI}", ca.display()),
        }
    }
}

// ===== 1. the daemon serves, and logs the backend that it chose =====

#[test]
fn backends_alternate_and_the_log_names_each_choice() {
    let lab = Lab::new();
    let backends = Backends::start(&lab);
    let daemon = lab.start(&pool(&[&backends.one, &backends.two], &backends.tls));
    let mut chosen = Vec::new();
    for _ in 0..6 {
        let named = |origin: &Origin| daemon.log().matches(&origin.address.to_string()).count();
        let before = [named(&backends.one), named(&backends.two)];
        let response = daemon.get("/").unwrap();
        let (origin, before) = match response.origin() {
            "one" => (&backends.one, before[0]),
            _ => (&backends.two, before[1]),
        };
        wait::until(LONG, "the log names the backend of the request", || named(origin) > before);
        chosen.push(origin.name());
    }
    assert!(chosen.windows(2).all(|pair| pair[0] != pair[1]), "not alternating: {chosen:?}");
}

#[test]
fn curl_gets_a_response() {
    let lab = Lab::new();
    let backends = Backends::start(&lab);
    let _daemon = lab.start(&pool(&[&backends.one, &backends.two], &backends.tls));
    let output = curl(&[&lab.listener.to_string(), "-v", "-o", "/dev/null"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("< HTTP/1.1 200"), "{said}");
}

#[test]
fn without_a_configuration_file_the_demo_serves() {
    let lab = Lab::new();
    let mut daemon = lab.spawn(&[]);
    let mut response = || {
        let log = daemon.log();
        let addresses = log.split(|c: char| !(c.is_ascii_digit() || ".:".contains(c)));
        let mut addresses = addresses.filter(|word| word.starts_with("127.0.0.1:"));
        addresses.find_map(|word| tests::get(word.trim_end_matches([':', '.']).parse().ok()?, "/").ok())
    };
    let response =
        wait::poll(LONG, &mut response).unwrap_or_else(|| panic!("no response:\n{}", daemon.log()));
    assert_eq!(response.status, 200);
    daemon.signal(Signal::SIGINT);
    assert_eq!(daemon.wait_exit(LONG).code(), Some(0), "{}", daemon.log());
}

/// Runs this shell script in a mount namespace with an empty `/run`. In the script, `lb` is the program.
fn in_a_mount_namespace(lab: &Lab, script: &str) -> std::process::Output {
    let program = lab.install();
    let whole =
        format!("mount -t tmpfs tmpfs /run || exit 99\nlb() {{ {} \"$@\"; }}\n{script}", program.display());
    let mut command = lab.command();
    let environment: Vec<_> =
        command.get_envs().map(|(name, value)| (name.to_owned(), value.map(ToOwned::to_owned))).collect();
    command = std::process::Command::new("unshare");
    for (name, value) in environment {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &whole]).current_dir(lab.directory());
    command.output().expect("util-linux is installed")
}

#[test]
fn a_daemon_without_a_file_runs_the_demo_and_every_output_says_so() {
    let lab = Lab::new();
    let output = in_a_mount_namespace(
        &lab,
        "lb -d; echo \"start $?\"; lb status; lb status --format json; lb upgrade 2>&1; echo \"upgrade $?\"; lb events",
    );
    let (said, problems) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let all = format!("{said}\n{problems}");
    let word_after =
        |before: &str| all.split(before).nth(1).and_then(|rest| rest.split([' ', '/', ',']).next());
    let pid: u32 = word_after(" demo, process ").and_then(|pid| pid.parse().ok()).expect(&all);
    let demo = tests::process::Process(pid);
    assert!(all.contains("start 0\n") && demo.alive(), "the demo does not run in the background: {all}");
    for place in
        ["$LB_CONFIG, which is not set", &format!("\n  {}", lab.path("load_balancer.yaml").display())]
    {
        assert!(problems.contains(place), "{place}: {all}");
    }
    assert!(problems.contains("\n  /etc/load_balancer/load_balancer.yaml\n"), "{all}");
    let metrics = word_after("status at http://").and_then(|address| address.parse().ok()).expect(&all);
    let ready = tests::get(metrics, "/readyz").unwrap();
    assert!(ready.status == 503 && ready.text().starts_with("demo"), "{}", ready.text());
    assert_eq!(tests::get(metrics, "/livez").unwrap().status, 200);
    assert!(said.contains("serving, not ready") && said.contains("\"demo\": true"), "{all}");
    assert!(said.contains("serves the demo on 127.0.0.1:"), "{all}");
    assert!(said.contains("found no configuration") && said.contains("upgrade 1\n"), "{all}");
    demo.signal(Signal::SIGTERM);
    demo.wait_gone(LONG);
}

#[test]
fn commands_that_need_a_configuration_do_not_fall_back_to_the_demo() {
    let lab = Lab::new();
    let refused = |done: &tests::daemon::Finished| {
        assert_eq!(done.code, Some(2), "{done:?}");
        let place = format!("\n  {}\n", lab.path("load_balancer.yaml").display());
        assert!(done.stderr.contains("$LB_CONFIG") && done.stderr.contains(&place), "{done:?}");
    };
    for arguments in [&["-u"][..], &["-t"], &["-d", "-u"], &["check"], &["healthcheck"]] {
        refused(&lab.run(arguments));
    }
    for arguments in [&[][..], &["-d"]] {
        let done = lab.run_with(arguments, &[("NOTIFY_SOCKET", "/run/systemd/notify")]);
        refused(&done);
        assert!(done.stderr.contains("service manager"), "{done:?}");
    }
    // A file that is named, or that exists and cannot be read, is not skipped.
    let done = lab.run_with(&["-d"], &[("LB_CONFIG", "/no/such/file.yaml")]);
    assert!(done.code == Some(2) && done.stderr.contains("/no/such/file.yaml"), "{done:?}");
    assert!(done.stderr.contains("$LB_CONFIG names this file"), "{done:?}");
    // Docker Compose sets a variable without a value to the empty text.
    let done = lab.run_with(&["-t"], &[("LB_CONFIG", "")]);
    refused(&done);
    std::os::unix::fs::symlink("/no/such/file.yaml", lab.path("load_balancer.yaml")).unwrap();
    let done = lab.run(&["-d"]);
    assert!(done.code == Some(2) && done.stderr.contains("./load_balancer.yaml"), "{done:?}");
}

#[test]
fn demo_once_checks_itself_and_exits() {
    let finished = Lab::new().run(&["demo", "--once"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
}

#[test]
fn proxy_runs_without_a_file() {
    let (lab, listener) = (Lab::new(), "proxy.sock");
    let (directory, socket) = (lab.directory().display(), lab.path(listener));
    let server =
        |port: u16, name: &str| format!("server {{ listen 127.0.0.1:{port}; return 200 {name}; }}\n");
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {directory}/{kind};\n"))
        .concat();
    let nginx = lab.write(
        "nginx.conf",
        &format!(
            "user root;\nmaster_process off;\npid {directory}/nginx.pid;\nerror_log {directory}/nginx.log;\nevents {{}}\n\
             http {{\naccess_log off;\n{temporary}{}{}}}\n",
            server(8081, "one"),
            server(8082, "two")
        ),
    );
    // The default metrics port might be in use on this machine, so everything runs in a network namespace.
    let to = ["--to", "127.0.0.1:8081", "--to", "127.0.0.1:8082"];
    let listen = format!("unix:{}", socket.display());
    let daemon = Isolated::start_with(
        &lab,
        &format!("nginx -c {}", nginx.display()),
        &[&["proxy"], &to[..], &["--listen", &listen]].concat(),
    );
    let get = || Connection::open_unix(&socket)?.get("/");
    wait::until(LONG, "the daemon serves", || get().is_ok_and(|response| response.status == 200));
    let names = (0..4).map(|_| get().unwrap().text());
    assert_eq!(tally(names), [("one".to_owned(), 2), ("two".to_owned(), 2)]);
    assert!(daemon.listens("tcp").contains(&"0100007F:1830".to_owned()), "the default metrics address");
}

// ===== 2. the final program as configuration =====

/// The shipped file with addresses of the test, since a test cannot reach the original ones.
fn shipped_file(lab: &Lab, backends: &Backends) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/quickstart.yaml");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let text = text
        .replace("1.1.1.1:443", &backends.one.address.to_string())
        .replace("1.0.0.1:443", &backends.two.address.to_string())
        .replace("127.0.0.1:343", &backends.broken.address.to_string())
        .replace("0.0.0.0:6188", &lab.listener.to_string())
        .replace("127.0.0.1:6192", &lab.metrics.to_string());
    let ca = lab.path("ca.pem");
    let mut file = String::new();
    for line in text.lines() {
        // Adds the authority of the test, in either of YAML's styles.
        match line.find(&format!("sni: {SNI}")) {
            Some(_) if line.contains('{') => {
                let with_ca = format!("sni: {SNI}, ca: {}", ca.display());
                file.push_str(&line.replace(&format!("sni: {SNI}"), &with_ca));
            }
            Some(indent) => file.push_str(&format!("{line}\n{:indent$}ca: {}", "", ca.display())),
            None => file.push_str(line),
        }
        file.push('\n');
    }
    let directory = lab.directory().display();
    for (key, value) in [
        ("pid_file", format!("{directory}/lb.pid")),
        ("upgrade_sock", format!("{directory}/upgrade.sock")),
        ("metrics", format!("{{address: \"{}\"}}", lab.metrics)),
        ("listeners", format!("[{{address: \"{}\"}}]", lab.listener)),
    ] {
        if !file.lines().any(|line| line.starts_with(&format!("{key}:"))) {
            file.push_str(&format!("{key}: {value}\n"));
        }
    }
    file
}

#[test]
fn the_shipped_quick_start_file_balances_over_tls_and_avoids_the_broken_backend() {
    let lab = Lab::new();
    let backends = Backends::start(&lab);
    let file = lab.write("quickstart.yaml", &shipped_file(&lab, &backends));
    let daemon = lab.start_file(&file);
    let names = (0..20).map(|_| daemon.get("/").unwrap().origin().to_owned());
    assert_eq!(tally(names), [("one".to_owned(), 10), ("two".to_owned(), 10)]);
    daemon.get("/host").unwrap();
    let seen = [backends.one.seen(), backends.two.seen()].concat();
    let seen = seen.iter().find(|seen| seen.target() == "/host").unwrap();
    assert_eq!((seen.header("host"), seen.sni.as_deref()), (Some(SNI), Some(SNI)));
}

#[test]
fn without_health_checks_and_retries_one_request_in_three_fails_with_502() {
    let lab = Lab::new();
    let backends = Backends::start(&lab);
    let more = format!("{}\nretries: {{attempts: 0}}\nhealth_check: {{type: none}}", backends.tls);
    let daemon = lab.start(&pool(&[&backends.one, &backends.two, &backends.broken], &more));
    let statuses: Vec<u16> = (0..9).map(|_| daemon.get("/").unwrap().status).collect();
    assert_eq!(tally(statuses.clone()), [(200, 6), (502, 3)]);
    let turns = statuses.chunks(3).map(|turn| turn.iter().filter(|status| **status == 502).count());
    assert!(
        turns.into_iter().all(|failed| failed == 1),
        "three requests must have one failure: {statuses:?}"
    );
}

#[test]
fn with_health_checks_no_request_fails_and_a_recovered_backend_is_used_after_one_check() {
    let lab = Lab::new();
    let mut backends = Backends::start(&lab);
    let check = "health_check: {type: tcp, interval: 1s, fast_interval: 1s, rise: 1, fall: 1, jitter: 0}";
    let more = format!("{}\nretries: {{attempts: 0}}\n{check}", backends.tls);
    let daemon = lab.start(&pool(&[&backends.one, &backends.two, &backends.broken], &more));
    for _ in 0..30 {
        assert_eq!(daemon.get("/").unwrap().status, 200);
    }
    backends.broken.come_back();
    let back = Instant::now();
    wait::until(LONG, "the recovered backend is used", || {
        let response = daemon.get("/").unwrap();
        assert_eq!(response.status, 200);
        response.origin() == "broken"
    });
    let took = back.elapsed();
    assert!(took < Duration::from_millis(2500), "checks run every second, but this took {took:?}");
}

// ===== 3. the command line explains itself =====

#[test]
fn help_explains_the_options_of_the_quick_start_and_our_subcommands() {
    let lab = Lab::new();
    for flag in ["-h", "--help"] {
        let help = lab.run(&[flag]);
        assert_eq!(help.code, Some(0), "{help:?}");
        for option in ["-c, --conf", "-d, --daemon", "-t, --test", "-u, --upgrade"] {
            assert!(help.stdout.contains(option), "{flag} does not show {option}:\n{}", help.stdout);
        }
        for subcommand in ["proxy", "demo", "check", "schema"] {
            let explained = help.stdout.lines().any(|line| {
                let mut words = line.split_whitespace();
                words.next() == Some(subcommand) && words.count() > 1
            });
            assert!(explained, "{flag} does not explain {subcommand}:\n{}", help.stdout);
        }
    }
}

#[test]
fn an_unknown_option_is_a_command_line_error() {
    let finished = Lab::new().run(&["--no-such-option"]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert!(finished.stderr.contains("--no-such-option"), "{finished:?}");
}

#[test]
fn the_daemon_uses_no_huge_pages() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.start(&pool(&[&origin], ""));
    assert_ne!(daemon.process.may_have_huge_pages(), Some(true));
}

// ===== 4. in the background =====

#[test]
fn a_daemon_writes_its_pid_file_and_error_log_and_removes_the_pid_file_when_it_ends() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.daemonize(&pool(&[&origin], ""));
    assert_eq!(daemon.get("/").unwrap().origin(), "one");
    wait::until(LONG, "the error log has lines", || !lab.error_log().is_empty());
    daemon.process.signal(Signal::SIGTERM);
    daemon.process.wait_gone(LONG);
    assert!(!lab.pid_file().exists());
}

#[test]
fn a_second_start_on_the_same_pid_file_fails_at_once_and_leaves_the_first_alone() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.daemonize(&pool(&[&origin], ""));
    let elsewhere = format!("listeners: [{{address: \"{}\"}}]\n", tests::ports::free());
    let text = fs::read_to_string(lab.config_with(&elsewhere, &pool(&[&origin], ""))).unwrap();
    let metrics = tests::ports::free().to_string();
    let second = lab.write("second.yaml", &text.replace(&lab.metrics.to_string(), &metrics));
    for background in [&[][..], &["-d"]] {
        let begun = Instant::now();
        let finished = lab.run(&[&["-c", path_str(&second)], background].concat());
        assert!(begun.elapsed() < Duration::from_secs(5), "took {:?}", begun.elapsed());
        assert!(matches!(finished.code, Some(1 | 2)), "{finished:?}");
        let pid = daemon.process.0.to_string();
        assert!(finished.stderr.contains(&pid) && finished.stderr.contains("lb.pid"), "{finished:?}");
    }
    assert_eq!(lab.pid_in_file(), Some(daemon.process));
    assert_eq!(daemon.get("/").unwrap().status, 200);
}

#[test]
fn a_second_start_on_the_same_port_fails_at_once_and_leaves_the_first_alone() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.daemonize(&pool(&[&origin], ""));
    let other = Lab::new();
    let listeners = format!("listeners: [{{address: \"{}\"}}]\n", lab.listener);
    let second = other.config_with(&listeners, &pool(&[&origin], ""));
    for background in [&[][..], &["-d"]] {
        let begun = Instant::now();
        let finished = other.run(&[&["-c", path_str(&second)], background].concat());
        assert!(begun.elapsed() < Duration::from_secs(5), "took {:?}", begun.elapsed());
        assert!(matches!(finished.code, Some(1 | 2)), "{finished:?}");
        assert!(finished.stderr.contains(&lab.listener.to_string()), "{finished:?}");
        assert!(!other.pid_file().exists());
    }
    assert_eq!(lab.pid_in_file(), Some(daemon.process));
    assert_eq!(daemon.get("/").unwrap().status, 200);
}

// ===== 5. shutdown =====

/// A daemon with one request in flight that the gate holds.
fn with_a_request_in_flight(lab: &Lab, more: &str) -> (tests::Daemon, Origin, Gate, Connection) {
    let (origin, gate) = (Origin::start("one"), Gate::closed());
    origin.behave(Behaviour::Held(gate.clone(), CannedResponse::ok("held")));
    let daemon = lab.start(&format!("{more}{}", pool(&[&origin], "")));
    let mut client = daemon.connect();
    client.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    origin.received("/held");
    (daemon, origin, gate, client)
}

#[track_caller]
fn drains_after(signal: Signal) {
    let lab = Lab::new();
    let (mut daemon, _origin, gate, mut client) = with_a_request_in_flight(&lab, "shutdown: {drain: 60s}\n");
    let mut idle = daemon.connect();
    daemon.signal(signal);
    wait::until(LONG, "connections are refused", || {
        matches!(Connection::open(lab.listener), Err(Failure::Connect(_)))
    });
    assert!(daemon.process.alive(), "the daemon ended with a request in flight");
    gate.open();
    let response = client.response("GET").expect("the request in flight gets a response");
    assert_eq!((response.status, response.text().as_str()), (200, "held"));
    assert!(response.closes(), "no Connection: close in {:?}", response.head);
    assert!(client.ends_within(LONG), "the connection stays open after Connection: close");
    let completed = Instant::now();
    assert_eq!(daemon.wait_exit(LONG).code(), Some(0), "{}", daemon.log());
    let took = completed.elapsed();
    assert!(took < Duration::from_secs(5), "the daemon took {took:?} to end with no request in flight");
    assert!(idle.ends_within(LONG));
}

#[test]
fn sigterm_finishes_the_request_in_flight_and_then_ends_the_daemon_at_once() {
    drains_after(Signal::SIGTERM);
}

#[test]
fn sigint_finishes_the_request_in_flight_and_then_ends_the_daemon_at_once() {
    drains_after(Signal::SIGINT);
}

#[test]
fn an_idle_daemon_ends_at_once() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let mut daemon = lab.start(&pool(&[&origin], ""));
    let mut idle = daemon.connect();
    idle.get("/").unwrap();
    let begun = Instant::now();
    assert_eq!(daemon.stop(), Some(0), "{}", daemon.log());
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(3), "an idle connection delayed the end by {took:?}");
}

#[test]
fn a_drain_that_times_out_exits_with_3() {
    let lab = Lab::new();
    let (mut daemon, _origin, _gate, _client) = with_a_request_in_flight(&lab, "shutdown: {drain: 1s}\n");
    let begun = Instant::now();
    assert_eq!(daemon.stop(), Some(3), "{}", daemon.log());
    let took = begun.elapsed();
    assert!((900..5_000).contains(&took.as_millis()), "a drain of 1 s took {took:?}");
}

#[test]
fn a_second_signal_ends_the_drain_at_once() {
    let lab = Lab::new();
    let (mut daemon, _origin, _gate, _client) = with_a_request_in_flight(&lab, "shutdown: {drain: 60s}\n");
    daemon.signal(Signal::SIGTERM);
    wait::until(LONG, "the drain has begun", || {
        matches!(Connection::open(lab.listener), Err(Failure::Connect(_)))
    });
    daemon.signal(Signal::SIGTERM);
    let begun = Instant::now();
    assert_ne!(
        daemon.wait_exit(LONG).code(),
        Some(0),
        "the exit code must report the requests that were cut"
    );
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(3), "took {took:?}");
}

#[test]
fn the_shutdown_delay_serves_traffic_while_not_ready() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let mut daemon = lab.start(&format!("shutdown: {{delay: 2s}}\n{}", pool(&[&origin], "")));
    let begun = Instant::now();
    daemon.signal(Signal::SIGTERM);
    wait::until(LONG, "/readyz is 503", || daemon.read("/readyz").is_ok_and(|r| r.status == 503));
    assert_eq!(daemon.get("/").expect("traffic is still accepted").status, 200);
    assert_eq!(daemon.wait_exit(LONG).code(), Some(0), "{}", daemon.log());
    assert!(begun.elapsed() >= Duration::from_millis(1900), "ended after {:?}", begun.elapsed());
}

// ===== 6. the five keys =====

#[test]
fn the_five_keys_of_the_quick_start_work_with_ours() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let path = |name: &str| lab.path(name).display().to_string();
    let text = format!(
        "---\nversion: 1\nthreads: 2\npid_file: {}\nerror_log: {}\nupgrade_sock: {}\n\
         listeners: [{{address: \"{}\"}}]\nmetrics: {{address: \"{}\"}}\n{}",
        path("lb.pid"),
        path("load_balancer_err.log"),
        path("load_balancer.sock"),
        lab.listener,
        lab.metrics,
        pool(&[&origin], "")
    );
    let daemon = lab.daemonize_file(&lab.write("conf.yaml", &text), &[]);
    assert_eq!(daemon.get("/").unwrap().status, 200);
    assert!(lab.path("load_balancer_err.log").exists());
    assert_eq!(lab.pid_in_file(), Some(daemon.process));
}

// ===== 8. -t checks everything =====

#[track_caller]
fn refused_by_test(lab: &Lab, config: &Path, words: &[&str]) {
    let finished = lab.run(&["-c", path_str(config), "-t"]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    for word in words {
        assert!(finished.stderr.contains(word), "-t does not mention {word:?}: {finished:?}");
    }
}

#[test]
fn option_t_accepts_a_valid_file_and_creates_no_files() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let finished = lab.run(&["-c", path_str(&lab.config(&pool(&[&origin], ""))), "-t"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(!lab.pid_file().exists());
    assert!(TcpListener::bind(lab.listener).is_ok());
}

#[test]
fn option_t_refuses_a_misspelt_key_and_suggests_the_right_one() {
    let lab = Lab::new();
    let config = lab.config("pools:\n  web:\n    backendz: [\"127.0.0.1:1\"]\n");
    refused_by_test(&lab, &config, &["backendz", "backends", "conf.yaml"]);
}

#[test]
fn option_t_refuses_a_missing_ca_file() {
    let lab = Lab::new();
    let ca = lab.path("missing-ca.pem");
    let more = format!("tls: {{sni: a.test, ca: {}}}", ca.display());
    let config = lab.config(&pool_of(&[tests::ports::free()], &more));
    refused_by_test(&lab, &config, &["missing-ca.pem"]);
}

#[test]
fn option_t_refuses_a_port_in_use() {
    let lab = Lab::new();
    let _taken = TcpListener::bind(lab.listener).unwrap();
    let config = lab.config(&pool_of(&[tests::ports::free()], ""));
    refused_by_test(&lab, &config, &[&lab.listener.to_string()]);
}

#[test]
fn option_t_refuses_a_missing_file() {
    let lab = Lab::new();
    refused_by_test(&lab, &lab.path("missing.yaml"), &["missing.yaml"]);
}

#[test]
fn a_start_with_an_invalid_file_exits_with_2() {
    let lab = Lab::new();
    let config = lab.config("pools:\n  web:\n    backends: []\n");
    let finished = lab.run(&["-c", path_str(&config)]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
}

// ===== the quick start's program with our parts =====

/// A running example program, which ends with this.
struct Example(std::process::Child);

impl Drop for Example {
    fn drop(&mut self) {
        // Both calls fail only if the program has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_quick_starts_program_runs_with_our_policy_checks_and_metrics() {
    let (lab, authority) = (Lab::new(), Authority::new());
    let ca = lab.path("ca.pem");
    authority.write(&ca).unwrap();
    let server = authority.certify(&[SNI]).server();
    let (one, two) = (Origin::start_tls("one", server.clone()), Origin::start_tls("two", server.clone()));
    let broken = Origin::refusing_tls("broken", server);
    let conf = lab.write("pingora.yaml", &format!("version: 1\nca_file: {}\n", ca.display()));
    let upstreams = [&one, &two, &broken].map(|origin| origin.address.to_string()).join(",");
    let _program = Example(
        std::process::Command::new(tests::daemon::example("quick_start"))
            .args(["-c", path_str(&conf)])
            .envs([("UPSTREAMS", &upstreams), ("LISTEN", &lab.listener.to_string())])
            .env("METRICS", lab.metrics.to_string())
            .spawn()
            .unwrap(),
    );
    let up = |origin: &Origin| {
        let line = format!("lb_backend_up{{pool=\"quick_start\",backend=\"{}\"}} 1", origin.address);
        tests::get(lab.metrics, "/metrics").is_ok_and(|metrics| metrics.text().contains(&line))
    };
    wait::until(LONG, "the checks have found the backends", || up(&one) && up(&two) && !up(&broken));
    let names = (0..20).map(|_| tests::get(lab.listener, "/").unwrap().origin().to_owned());
    assert_eq!(tally(names), [("one".to_owned(), 10), ("two".to_owned(), 10)]);
    assert_eq!(one.seen()[0].header("host"), Some(SNI));
}
