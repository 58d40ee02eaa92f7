//! How the configuration file is found, and the subcommands that check and print it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use serde_json::Value;
use tests::daemon::path_str;
use tests::wait::{self, LONG};
use tests::{Authority, Lab, Origin, ports};

use crate::{pool, pool_of};

const THREE_LINES: &str = "pools:\n  web:\n    backends: [\"127.0.0.1:1\", \"127.0.0.1:2\"]\n";

#[test]
fn check_accepts_a_file_of_three_lines() {
    let lab = Lab::new();
    let file = lab.write("three.yaml", THREE_LINES);
    let finished = lab.run(&["check", "-c", path_str(&file)]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
}

#[test]
fn check_reports_all_problems_at_once_as_text_with_place_id_and_hint() {
    let lab = Lab::new();
    let file = lab.write("bad.yaml", "thread: 2\npools:\n  web:\n    backendz: []\n");
    let finished = lab.run(&["check", "-c", path_str(&file)]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    let said = finished.stdout + &finished.stderr;
    for part in ["LB", "bad.yaml:1:1", "bad.yaml:4:5", "threads", "backends", "^"] {
        assert!(said.contains(part), "no {part} in\n{said}");
    }
}

#[test]
fn check_reports_json_for_programs() {
    let lab = Lab::new();
    let file = lab.write("bad.yaml", "thread: 2\npools:\n  web:\n    backendz: []\n");
    let finished = lab.run(&["check", "--format", "json", "-c", path_str(&file)]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    let report: Value = serde_json::from_str(&finished.stdout).expect("standard output is JSON");
    let problems = report.as_array().or_else(|| report["problems"].as_array()).expect("a list of problems");
    assert!(problems.len() >= 2, "{report:#}");
    for problem in problems {
        assert!(problem["id"].as_str().is_some_and(|id| id.starts_with("LB")), "{problem:#}");
        assert!(problem["line"].is_u64() && problem["column"].is_u64(), "{problem:#}");
        assert!(problem["message"].is_string(), "{problem:#}");
    }

    let good = lab.write("good.yaml", THREE_LINES);
    let finished = lab.run(&["check", "--format", "json", "-c", path_str(&good)]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    serde_json::from_str::<Value>(&finished.stdout).expect("standard output is JSON");
}

#[test]
fn check_needs_no_free_port() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.start(&pool(&[&origin], ""));
    let finished = lab.run(&["check", "-c", path_str(&lab.path("conf.yaml"))]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(daemon.get("/").unwrap().status, 200);
}

#[test]
fn check_print_shows_the_effective_configuration_as_a_valid_file() {
    let lab = Lab::new();
    let file = lab.write("three.yaml", THREE_LINES);
    let printed = lab.run(&["check", "--print", "-c", path_str(&file)]);
    assert_eq!(printed.code, Some(0), "{printed:?}");
    assert!(printed.stdout.contains("round_robin"), "{}", printed.stdout);
    // Every key of the process is either a key or a comment.
    let schema: Value = serde_json::from_str(&lab.run(&["schema"]).stdout).unwrap();
    let dependent = ["access_log.path", "control.socket", "reload.rollback"];
    let keys = schema["properties"].as_object().unwrap().keys().map(String::as_str);
    for key in keys.chain(dependent) {
        let is_of_key = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{key}:"));
        assert!(printed.stdout.lines().any(is_of_key), "{key}: {}", printed.stdout);
    }
    // A default that depends on the machine or on the path of the file does not become a key.
    for key in ["threads", "pid_file", "upgrade_sock", "control.socket", "log_level"] {
        assert!(printed.stdout.contains(&format!("\n# {key}: ")), "{key}: {}", printed.stdout);
    }
    let again = lab.write("printed.yaml", &printed.stdout);
    let finished = lab.run(&["check", "-c", path_str(&again)]);
    assert_eq!(finished.code, Some(0), "{finished:?}\n{}", printed.stdout);
}

#[test]
fn the_printed_schema_is_the_shipped_one() {
    let printed = Lab::new().run(&["schema"]);
    assert_eq!(printed.code, Some(0), "{printed:?}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/load_balancer.schema.json");
    let shipped = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let parse = |text: &str| serde_json::from_str::<Value>(text).expect("a schema is JSON");
    assert_eq!(
        parse(&printed.stdout),
        parse(&shipped),
        "`load_balancer schema` differs from deploy/load_balancer.schema.json"
    );
}

/// Lets only `www-data` read a file with a secret. The example configuration runs as this user.
fn make_private(file: &Path) {
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    let www_data = nix::unistd::User::from_name("www-data").unwrap();
    if let Some(user) = www_data.filter(|_| nix::unistd::Uid::effective().is_root()) {
        chown(file, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
}

#[test]
fn every_shipped_configuration_passes_the_check() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config");
    let lab = Lab::new();
    let [ca, cert, key] = ["ca.pem", "client.pem", "client.key"].map(|name| lab.path(name));
    let authority = Authority::new();
    authority.write(&ca).unwrap();
    authority.certify(&["lb.test"]).write(&cert, &key).unwrap();
    let keys = lab.write("sticky.keys", &format!("{}\n", "5e".repeat(32)));
    make_private(&key);
    make_private(&keys);
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    let files: Vec<_> = files.iter().filter(|path| path.extension().is_some_and(|e| e == "yaml")).collect();
    assert!(!files.is_empty());
    for shipped in files {
        // The shipped file names directories and certificates of the target machine; those of the lab replace them.
        let text = fs::read_to_string(shipped).unwrap();
        let files =
            [("internal-ca.pem", &ca), ("client.pem", &cert), ("client.key", &key), ("sticky.keys", &keys)];
        let text = files.iter().fold(text, |text, (name, file)| {
            text.replace(&format!("/etc/load_balancer/{name}"), path_str(file))
        });
        let text = ["/run/load_balancer", "/var/log/load_balancer"]
            .iter()
            .fold(text, |text, directory| text.replace(directory, path_str(lab.directory())));
        let file = lab.write("shipped.yaml", &text);
        let finished = lab.run(&["check", "-c", path_str(&file)]);
        assert_eq!(finished.code, Some(0), "{}: {finished:?}", shipped.display());
    }
}

#[test]
fn without_c_the_file_comes_from_lb_config_or_the_working_directory() {
    let lab = Lab::new();
    // The error message of each run names the file that it found.
    lab.write("load_balancer.yaml", "pools: {here: {backends: []}}\n");
    let finished = lab.run(&["-t"]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert!(finished.stderr.contains("load_balancer.yaml"), "{finished:?}");

    let named = lab.write("named.yaml", "pools: {there: {backends: []}}\n");
    let output = lab.command().arg("-t").env("LB_CONFIG", &named).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("named.yaml"), "{said}");
}

#[test]
fn variables_are_expanded_in_values_and_may_have_defaults() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let text = "pools:\n  web:\n    backends: [\"${TEST_BACKEND}\"]\n    host: \"${TEST_HOST:-fallback.test}\"\n    \
                health_check: {type: none}\n";
    let config = lab.config(text);
    let mut command = lab.command();
    command.args(["-c", path_str(&config)]).env("TEST_BACKEND", origin.address.to_string());
    let mut child = command.spawn().unwrap();
    let response = wait::poll(LONG, || tests::get(lab.listener, "/expanded").ok());
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!(response.expect("the daemon serves").origin(), "one");
    assert_eq!(origin.received("/expanded").header("host"), Some("fallback.test"));

    let finished = lab.run(&["check", "-c", path_str(&config)]);
    assert_eq!(finished.code, Some(2), "an unset variable without a default: {finished:?}");
    assert!((finished.stdout + &finished.stderr).contains("TEST_BACKEND"));
}

#[test]
fn healthcheck_exits_with_0_while_ready_and_with_1_otherwise() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let mut daemon = lab.start(&pool(&[&origin], ""));
    let config = lab.path("conf.yaml");
    let healthcheck = || lab.run(&["healthcheck", "-c", path_str(&config)]).code;
    assert_eq!(healthcheck(), Some(0));
    daemon.stop();
    assert_eq!(healthcheck(), Some(1));
}

#[test]
fn healthcheck_fails_when_the_daemon_of_another_file_has_the_metrics_address() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.start(&pool(&[&origin], ""));
    let config = lab.path("conf.yaml");
    let text = fs::read_to_string(&config).unwrap();
    let other = lab.write("never_started.yaml", &text);
    let done = lab.run(&["healthcheck", "-c", path_str(&other)]);
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!([&config, &other].iter().all(|file| done.stderr.contains(path_str(file))), "{done:?}");
    assert_eq!(daemon.read("/readyz").unwrap().status, 200, "a probe without the header is served");
    assert_eq!(lab.run(&["healthcheck", "-c", path_str(&config)]).code, Some(0));
}

#[test]
fn completions_and_the_manual_are_printed() {
    let lab = Lab::new();
    for (arguments, parts) in [
        (&["completions", "bash"][..], &["load_balancer", "drain", "upgrade"][..]),
        (&["completions", "zsh"], &["#compdef load_balancer", "drain", "upgrade"]),
        (&["completions", "fish"], &["complete -c load_balancer", "drain", "upgrade"]),
        (&["man"], &[".TH"]),
    ] {
        let finished = lab.run(arguments);
        assert_eq!(finished.code, Some(0), "{arguments:?}: {finished:?}");
        assert!(parts.iter().all(|part| finished.stdout.contains(part)), "{arguments:?}");
        let refused = lab.run(&[arguments, &["-c", "any.yaml"]].concat());
        assert_eq!(refused.code, Some(2), "the subcommand takes no file: {refused:?}");
    }
}

#[test]
fn two_listeners_on_one_address_are_refused() {
    let lab = Lab::new();
    let address = lab.listener;
    let listeners = format!("listeners:\n  - {{address: \"{address}\"}}\n  - {{address: \"{address}\"}}\n");
    let config = lab.config_with(&listeners, &pool_of(&[ports::free()], ""));
    let finished = lab.run(&["check", "-c", path_str(&config)]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
}

#[test]
fn a_file_without_an_end_is_an_error_that_names_the_limit() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    for arguments in [&["check", "/dev/zero"][..], &["-t", "-c", "/dev/zero"], &["-c", "/dev/zero"]] {
        let finished = lab.run(arguments);
        assert_eq!(finished.code, Some(2), "{arguments:?}: {finished:?}");
        assert!(
            finished.stderr.contains("/dev/zero") && finished.stderr.contains("longer than 4 MiB"),
            "{finished:?}"
        );
    }
    let sticky = "sticky: {cookie: lb, key_file: /dev/zero}";
    for (text, said) in [
        (
            format!("ca_file: /dev/zero\n{}", pool(&[&origin], "tls: {}")),
            "/dev/zero: it is longer than 4 MiB",
        ),
        (pool(&[&origin], sticky), "/dev/zero: it is not a regular file"),
    ] {
        let finished = lab.run(&["check", "-c", path_str(&lab.config(&text))]);
        assert_eq!(finished.code, Some(2), "{finished:?}");
        assert!(finished.stderr.contains(said), "{finished:?}");
    }
    let config = lab.config(&pool(&[&origin], "tls: {}"));
    let endless = lab.run_with(&["check", "-c", path_str(&config)], &[("SSL_CERT_FILE", "/dev/zero")]);
    assert_eq!(endless.code, Some(2), "{endless:?}");
    assert!(endless.stderr.contains("SSL_CERT_FILE=/dev/zero: it is longer than 4 MiB"), "{endless:?}");
}

#[test]
fn a_reload_of_a_file_without_an_end_fails_and_the_daemon_continues() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.start(&pool(&[&origin], ""));
    let config = lab.path("conf.yaml");
    let socket = lab.path("control.sock");
    fs::remove_file(&config).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &config).unwrap();
    let reload = lab.run(&["reload", "--socket", path_str(&socket)]);
    assert_eq!(reload.code, Some(2), "{reload:?}");
    assert!(reload.stderr.contains("longer than 4 MiB"), "{reload:?}");
    assert_eq!(daemon.get("/").unwrap().status, 200);
}

#[test]
fn a_configuration_can_be_a_fifo_with_a_writer_and_one_without_a_writer_is_an_error() {
    let lab = Lab::new();
    let fifo = lab.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let alone = lab.run(&["check", path_str(&fifo)]);
    assert_eq!(alone.code, Some(2), "{alone:?}");
    assert!(alone.stderr.contains("it is a FIFO without a writer"), "{alone:?}");
    let writer = std::thread::spawn({
        let fifo = fifo.clone();
        move || fs::write(fifo, THREE_LINES)
    });
    let written = lab.run(&["check", path_str(&fifo)]);
    writer.join().unwrap().unwrap();
    assert_eq!(written.code, Some(0), "{written:?}");
}

#[test]
fn a_directory_in_place_of_a_configuration_is_an_error_with_the_file_to_name() {
    let lab = Lab::new();
    let finished = lab.run(&["check", path_str(lab.directory())]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    let hint = format!("-c {}", lab.path("load_balancer.yaml").display());
    assert!(finished.stderr.contains("is a directory") && finished.stderr.contains(&hint), "{finished:?}");
}
