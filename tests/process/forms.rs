//! Short forms that operators try first: addresses without a mapping, `localhost`, a file as an argument, and
//! standard input.

use std::process::{Child, Command};

use serde_json::Value;
use tests::daemon::path_str;
use tests::wait::{self, LONG};
use tests::{Connection, Lab, Origin, Signal};

use crate::{pool, pool_of};

/// A daemon in its own network namespace, where it can bind any address and is not reachable from outside.
pub(crate) struct Isolated<'a> {
    lab: &'a Lab,
    child: Child,
}

impl<'a> Isolated<'a> {
    /// Starts the daemon with `conf.yaml` once the loopback interface is up and the shell command `prepare` has run.
    fn start(lab: &'a Lab, prepare: &str) -> Self {
        Self::start_with(lab, prepare, &["-c", path_str(&lab.path("conf.yaml"))])
    }

    /// Starts the daemon like [`Isolated::start`], with these arguments. Programs that `prepare` starts end with it.
    pub(crate) fn start_with(lab: &'a Lab, prepare: &str, arguments: &[&str]) -> Self {
        let script = format!("ip link set lo up && {prepare} && exec \"$0\" \"$@\"");
        let program = lab.install();
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--net", "--pid", "--kill-child", "sh", "-c", &script]);
        unshare.arg(program).args(arguments).current_dir(lab.directory());
        let child = unshare.spawn().expect("util-linux and iproute2 are installed");
        Self { lab, child }
    }

    /// The status of the daemon, read from its control socket. Unix sockets do not depend on network namespaces.
    #[track_caller]
    fn status(&self) -> Value {
        let arguments =
            ["status", "--format", "json", "-c", path_str(&self.lab.path("conf.yaml"))].map(str::to_owned);
        let send = || {
            let finished = self.lab.run(&arguments.each_ref().map(String::as_str));
            (finished.code == Some(0)).then(|| serde_json::from_str(&finished.stdout).unwrap())
        };
        let response = wait::poll(LONG, send);
        response.unwrap_or_else(|| panic!("the daemon does not respond:\n{}", self.lab.error_log()))
    }

    /// The addresses of the listening TCP sockets of the namespace, in the notation of `/proc/net/tcp`.
    pub(crate) fn listens(&self, table: &str) -> Vec<String> {
        let text = std::fs::read_to_string(format!("/proc/{}/net/{table}", self.child.id())).unwrap();
        let rows = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.filter(|row| row[3] == "0A").map(|row| row[1].to_owned()).collect()
    }
}

impl Drop for Isolated<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_listener_may_be_an_address_alone() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let socket = lab.path("short.sock");
    let listeners = format!("listeners: [{}, \"unix:{}\"]\n", lab.listener, socket.display());
    let daemon = lab.start_file(&lab.config_with(&listeners, &pool(&[&origin], "")));
    assert_eq!(daemon.get("/").unwrap().origin(), "one");
    assert_eq!(Connection::open_unix(&socket).unwrap().get("/").unwrap().origin(), "one");
}

#[test]
fn a_port_alone_is_bound_on_every_ipv4_address_and_on_no_ipv6_address() {
    let lab = Lab::new();
    let listeners = "listeners: [\":8080\", {address: \":8081\", name: long}]\n";
    let route = "routes: [{match: {listener: \":8080\"}, pool: web}, {match: {listener: long}, pool: web}]\n";
    lab.config_with(listeners, &(pool_of(&[lab.metrics], "") + route));
    let daemon = Isolated::start(&lab, "true");
    let status = daemon.status();
    let addresses: Vec<_> =
        status["listeners"].as_array().unwrap().iter().map(|one| &one["address"]).collect();
    assert_eq!(addresses, ["0.0.0.0:8080", "0.0.0.0:8081"]);
    let (v4, v6) = (daemon.listens("tcp"), daemon.listens("tcp6"));
    for port in ["1F90", "1F91"] {
        assert!(v4.contains(&format!("00000000:{port}")), "{v4:?}");
        assert!(!v6.iter().any(|address| address.ends_with(port)), "{v6:?}");
    }
}

#[test]
fn localhost_is_ipv6_on_a_machine_without_ipv4() {
    let lab = Lab::new();
    let text = "pools: {web: {backends: [localhost:8081], health_check: {type: none}}}\n";
    let config = lab.config_with("listeners: [\"[::1]:8080\"]\n", text);
    let isolated = std::fs::read_to_string(&config).unwrap().replace(&lab.metrics.to_string(), "[::1]:8082");
    lab.write("conf.yaml", &isolated);
    let daemon = Isolated::start(&lab, "ip addr del 127.0.0.1/8 dev lo");
    let status = daemon.status();
    assert_eq!(status["pools"][0]["backends"][0]["address"], "[::1]:8081", "{status:#}");
}

#[test]
fn localhost_is_a_backend_in_the_file_and_on_the_command_line() {
    let lab = Lab::new();
    let (origin, other) = (Origin::start_on_localhost("one"), Origin::start_on_localhost("two"));
    let port = origin.address.port();
    let text = format!("pools: {{web: {{backends: [localhost:{port}], health_check: {{type: none}}}}}}\n");
    let daemon = lab.start(&text);
    assert_eq!(daemon.get("/").unwrap().origin(), "one");
    assert_eq!(daemon.pool_status("web")["backends"][0]["address"], origin.address.to_string());

    let config = lab.path("conf.yaml");
    let named = format!("localhost:{}", other.address.port());
    for subcommand in ["add", "drain", "undrain", "disable", "enable", "remove"] {
        let finished = lab.run(&[subcommand, "web", &named, "-c", path_str(&config)]);
        assert_eq!(finished.code, Some(0), "{subcommand}: {finished:?}");
        assert!(finished.stdout.contains(&other.address.to_string()), "{subcommand}: {finished:?}");
    }
}

#[test]
fn proxy_takes_localhost_as_a_backend() {
    let lab = Lab::new();
    let origin = Origin::start_on_localhost("one");
    let to = format!("localhost:{}", origin.address.port());
    let (listen, metrics) = (lab.listener.to_string(), lab.metrics.to_string());
    let _daemon = lab.spawn(&["proxy", "--to", &to, "--listen", &listen, "--metrics", &metrics]);
    let response = wait::poll(LONG, || tests::get(lab.listener, "/").ok());
    assert_eq!(response.expect("the daemon serves").origin(), "one");
    let refused = lab.run(&["proxy", "--to", "example.com:80"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("is a host name"), "{refused:?}");
}

#[test]
fn check_takes_the_file_as_an_argument() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let config = lab.config(&pool(&[&origin], ""));
    let file = path_str(&config);
    let finished = lab.run(&["check", file]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(finished.stdout.contains(file), "{finished:?}");
    let finished = lab.run(&["check", file, "-c", file]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert!(finished.stderr.contains("given twice"), "{finished:?}");
}

#[test]
fn a_configuration_from_standard_input_is_checked() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let good = lab.config(&pool(&[&origin], ""));
    let bad = lab.write("bad.yaml", "pools:\n  web:\n    backendz: [127.0.0.1:1]\n");
    for arguments in [&["check", "-c", "-"][..], &["check", "-"], &["-t", "-c", "-"]] {
        let finished = lab.run_with_input(&good, arguments);
        assert_eq!(finished.code, Some(0), "{arguments:?}: {finished:?}");
        assert!(finished.stdout.contains("<standard input>"), "{arguments:?}: {finished:?}");
        let finished = lab.run_with_input(&bad, arguments);
        assert_eq!(finished.code, Some(2), "{arguments:?}: {finished:?}");
        assert!(finished.stderr.contains("<standard input>:3:5"), "{arguments:?}: {finished:?}");
    }
    let printed = lab.run_with_input(&good, &["check", "--print", "-c", "-"]);
    assert_eq!(printed.stdout, lab.run(&["check", "--print", path_str(&good)]).stdout);
}

#[test]
fn a_daemon_configured_from_standard_input_refuses_to_reload_and_says_what_to_do() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let config = lab.config(&(pool(&[&origin], "") + "reload: {watch: true}\n"));
    let daemon = lab.start_with_input(&config);
    assert_eq!(daemon.get("/").unwrap().origin(), "one");
    assert_eq!(daemon.status()["config"]["file"], "<standard input>");
    daemon.logged(&["`watch` has no effect", "standard input"]);
    let take_over = format!("kill -QUIT {}", daemon.process.0);
    let socket = lab.path("control.sock");
    let finished = lab.run(&["reload", "--socket", path_str(&socket)]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert!(
        finished.stderr.contains("standard input") && finished.stderr.contains(&take_over),
        "{finished:?}"
    );
    daemon.signal(Signal::SIGHUP);
    daemon.logged(&["SIGHUP"]);
    wait::until(LONG, "the refusal is logged", || daemon.log().matches(&take_over).count() >= 3);
    assert_eq!(daemon.get("/").unwrap().origin(), "one");
    let refusals = ["reload", "upgrade", "stop"].map(|subcommand| {
        let finished = lab.run_with_input(&config, &[subcommand, "-c", "-"]);
        assert_eq!(finished.code, Some(2), "{finished:?}");
        assert!(finished.stderr.contains("select the daemon with `--socket PATH`"), "{finished:?}");
        finished.stderr
    });
    assert!(refusals.iter().all(|refusal| *refusal == refusals[0]), "{refusals:?}");
    assert!(daemon.process.alive());
    // Other subcommands find the daemon by a configuration from standard input as they do by a file.
    let finished = lab.run_with_input(&config, &["status", "-c", "-"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
}

#[test]
fn standard_input_is_passed_on_to_the_background_and_to_each_new_process() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    // The text is larger than the buffer of a pipe.
    let comments = "# a line of a generated file\n".repeat(5_000);
    let config = lab.config(&(pool(&[&origin], "") + &comments));
    let first = lab.daemonize_with_input(&config);
    std::fs::remove_file(&config).unwrap();
    assert_eq!(first.get("/").unwrap().origin(), "one");
    let socket = lab.path("control.sock");
    let finished = lab.run(&["upgrade", "--socket", path_str(&socket)]);
    assert_eq!(finished.code, Some(0), "{finished:?}\n{}", lab.error_log());
    let second = lab.successor(first.process);
    first.process.wait_gone(LONG);
    second.process.signal(Signal::SIGUSR2);
    let third = lab.successor(second.process);
    second.process.wait_gone(LONG);
    assert_eq!(third.get("/").unwrap().origin(), "one");
    assert_eq!(third.status()["config"]["file"], "<standard input>");
}

#[test]
fn a_daemon_in_the_foreground_passes_standard_input_on_to_the_new_process() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let mut daemon = lab.start_with_input(&lab.config(&pool(&[&origin], "")));
    daemon.signal(Signal::SIGUSR2);
    let successor = lab.successor(daemon.process);
    assert_eq!(daemon.wait_exit(LONG).code(), Some(0));
    assert_eq!(successor.get("/").unwrap().origin(), "one");
}

/// The hint of the only problem of a file.
#[track_caller]
fn only_hint(lab: &Lab, text: &str) -> String {
    let file = lab.write("wrong.yaml", text);
    let finished = lab.run(&["check", "--format", "json", path_str(&file)]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    let problems: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(problems.as_array().map(Vec::len), Some(1), "{problems:#}");
    problems[0]["hint"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn the_hint_for_a_file_of_another_product_is_a_configuration_that_runs() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let nginx = format!(
        "upstream web {{\n  server {};\n}}\nserver {{\n  listen 80;\n  location / {{ proxy_pass http://web; }}\n}}\n",
        origin.address
    );
    let hint = only_hint(&lab, &nginx);
    let (_, lines) = hint.split_once("\n\n").expect("the hint contains a configuration");
    let daemon = lab.start(lines);
    assert_eq!(daemon.get("/").unwrap().origin(), "one");
}

#[test]
fn a_file_runs_after_its_hint_is_followed_once() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let pools = pool(&[&origin], "");
    let hint = only_hint(&lab, &format!("listeners: {}\n{pools}", lab.listener));
    let list = hint.strip_prefix("put it in brackets: ").expect("the hint shows the list");
    let daemon = lab.start_file(&lab.config_with(&format!("listeners: {list}\n"), &pools));
    assert_eq!(daemon.get("/").unwrap().origin(), "one");

    assert_eq!(only_hint(&lab, &format!("{pools}shutdown: {{drain: 1m30s}}\n")), "write 90s");
    assert_eq!(only_hint(&lab, &format!("listeners: [\"::1:8080\"]\n{pools}")), "write \"[::1]:8080\"");
    assert!(only_hint(&lab, &pools.replace("pools:", "upstreams:")).contains("\n\npools:\n"));
    let deeper = pools.replace("    health_check", "      health_check");
    assert!(only_hint(&lab, &deeper).contains("indent it by 4 spaces, like `backends` above"), "{deeper}");
}

#[test]
fn a_file_without_the_option_c_gets_a_hint() {
    let lab = Lab::new();
    let file = lab.write("lb.yaml", "");
    let finished = lab.run(&[path_str(&file)]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert!(finished.stderr.contains(&format!("load_balancer -c {}", path_str(&file))), "{finished:?}");
}
