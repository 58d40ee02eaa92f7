//! Warnings about a configuration, which `check`, a start, `reload` and the status show.

use serde_json::{Value, json};
use tests::daemon::{Finished, path_str};
use tests::wait::{self, LONG};
use tests::{Behaviour, CannedResponse, Daemon, Lab, Origin, Signal};

use crate::{pool, tally};

/// Keys that have an effect only in a pool of several backends.
const FOR_SEVERAL: &str = "\
sticky: {cookie: lb}
slow_start: 30s
retries: {attempts: 2, budget_percent: 20}
outlier_detection: {consecutive_failures: 3, max_ejected_percent: 50}
";

fn ids(warnings: &Value) -> Vec<String> {
    let warnings = warnings.as_array().unwrap_or_else(|| panic!("no list: {warnings:#}"));
    assert!(warnings.iter().all(|warning| warning["severity"] == "warning"), "{warnings:#?}");
    warnings.iter().map(|warning| warning["id"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn run(lab: &Lab, words: &[&str]) -> Finished {
    lab.run(&[words, &["-c", path_str(&lab.path("conf.yaml"))]].concat())
}

fn shown(daemon: &Daemon) -> Vec<String> {
    ids(&daemon.status()["config"]["warnings"])
}

#[test]
fn a_reload_that_leaves_one_backend_shows_warnings() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let daemon = lab.start(&pool(&[&one, &two], FOR_SEVERAL));
    assert_eq!(shown(&daemon), [""; 0]);
    lab.config(&pool(&[&two], FOR_SEVERAL));
    let dry = run(&lab, &["reload", "--dry-run"]);
    assert!(dry.code == Some(0) && dry.stdout.contains("warning[LB053]: `sticky`"), "{dry:?}");
    assert_eq!(shown(&daemon), [""; 0], "a dry run changes nothing");
    let reloaded = run(&lab, &["reload"]);
    assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
    for part in ["warning[LB053]: `sticky` has no effect", "configuration 2 is in effect", "4 warnings"] {
        assert!(reloaded.stdout.contains(part), "no {part:?} in {reloaded:?}");
    }
    assert_eq!(shown(&daemon), ["LB053"; 4]);
    daemon.logged(&["WARN", "conf.yaml:", "warning[LB053]", "`sticky` has no effect"]);
    let screen = run(&lab, &["status"]).stdout;
    assert!(screen.contains("no problems") && screen.contains("4 warnings about the file"), "{screen}");
    assert!(screen.contains("`sticky` has no effect: all clients"), "{screen}");
    assert_eq!(daemon.get("/").unwrap().origin(), "two");
    // A reload with two backends removes the warnings.
    lab.config(&pool(&[&one, &two], FOR_SEVERAL));
    daemon.signal(Signal::SIGHUP);
    wait::until(LONG, "no warnings are shown", || shown(&daemon).is_empty());
}

#[test]
fn check_and_option_t_print_warnings_and_only_strict_fails() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    lab.config(&pool(&[&origin], "sticky: {cookie: lb}"));
    for words in [&["check"][..], &["check", "--print"], &["-t"]] {
        let finished = run(&lab, words);
        assert_eq!(finished.code, Some(0), "{words:?}: {finished:?}");
        assert!(
            finished.stderr.contains("warning[LB053]: `sticky` has no effect"),
            "{words:?}: {finished:?}"
        );
        assert!(finished.stderr.contains("conf.yaml: 1 warning"), "{words:?}: {finished:?}");
        assert!(!finished.stdout.contains("LB053"), "{words:?}: {finished:?}");
    }
    let strict = run(&lab, &["check", "--strict"]);
    assert!(strict.code == Some(2) && strict.stderr.contains("LB053"), "{strict:?}");
    let strict = run(&lab, &["-t", "--strict"]);
    assert!(strict.code == Some(2) && strict.stderr.contains("LB053"), "{strict:?}");
    assert!(strict.stdout.contains("1 warning, which `--strict` rejects"), "{strict:?}");
    assert!(!strict.stdout.contains("would succeed"), "{strict:?}");
    let start = run(&lab, &["--strict"]);
    assert!(
        start.code == Some(2) && start.stderr.contains("add `-t`, or write `check --strict`"),
        "{start:?}"
    );
    let report = run(&lab, &["check", "--format", "json"]);
    assert_eq!((report.code, report.stderr.as_str()), (Some(0), ""), "{report:?}");
    assert_eq!(ids(&serde_json::from_str(&report.stdout).unwrap()), ["LB053"]);
    assert_eq!(run(&lab, &["check", "--strict", "--format", "json"]).code, Some(2));
    let explained = run(&lab, &["check", "--explain", "lb053"]).stdout;
    assert!(explained.starts_with("LB053 (warning): "), "{explained}");
    lab.config(&pool(&[&origin], ""));
    for words in [&["check", "--strict"][..], &["-t", "--strict"]] {
        assert_eq!(run(&lab, words).code, Some(0), "the file causes no warning");
    }
}

#[test]
fn warnings_are_shown_together_with_errors() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    lab.config(&pool(&[&origin], "sticky: {cookie: lb}\npolcy: random"));
    let finished = run(&lab, &["check"]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    for part in ["warning[LB053]", "error[LB010]", "1 problem, 1 warning"] {
        assert!(finished.stderr.contains(part), "no {part:?} in {finished:?}");
    }
    let report = run(&lab, &["check", "--format", "json"]).stdout;
    let report: Value = serde_json::from_str(&report).unwrap();
    let severities: Vec<_> = report.as_array().unwrap().iter().map(|problem| &problem["severity"]).collect();
    assert_eq!(json!(severities), json!(["warning", "error"]));
}

#[test]
fn a_start_logs_its_warnings_and_the_status_shows_them() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let routes = "routes:\n  - {match: {path: \"/api/*\"}, pool: web}\n  - pool: web\n";
    let daemon = lab.start(&format!("{}{routes}", pool(&[&origin], "limits: {queue: 3}")));
    daemon.logged(&["WARN", "conf.yaml:", "warning[LB054]", "`queue` has no effect"]);
    daemon.logged(&["WARN", "conf.yaml:", "warning[LB034]", "write `path_prefix: /api`"]);
    assert_eq!(shown(&daemon), ["LB054", "LB034"]);
    assert_eq!(daemon.get("/api/x").unwrap().status, 200);
}

#[test]
fn old_names_of_keys_and_values_still_work() {
    let lab = Lab::new();
    let (bad, up) = (Origin::start("bad"), Origin::start("up"));
    let pools = pool(&[&bad, &up], "retries: {on: [503]}\noutlier_detection: {consecutive_failures: 0}");
    let daemon = lab.start(&format!("access_log: {{format: off}}\n{pools}"));
    assert_eq!(shown(&daemon), ["LB017", "LB017"]);
    daemon.logged(&["WARN", "warning[LB017]", "the key `on` has a new name, `when`"]);
    daemon.logged(&["WARN", "warning[LB017]", "the value `off` has a new name, `none`"]);
    // Every second request goes to the bad backend first.
    let two = || tally([(); 2].map(|()| daemon.get("/two").unwrap().status));
    bad.behave(Behaviour::Respond(CannedResponse::status(503, "bad")));
    assert_eq!(two(), [(200, 2)]);
    bad.behave(Behaviour::Respond(CannedResponse::status(502, "bad")));
    assert_eq!(two(), [(200, 1), (502, 1)], "only 503 is retried");
    assert!(!daemon.log().contains("/two"), "the access log is on:\n{}", daemon.log());
    let printed = run(&lab, &["check", "--print"]).stdout;
    assert!(printed.contains("when: [503]") && printed.contains("{format: none}"), "{printed}");
}

#[test]
fn two_names_of_one_key_or_a_yaml_1_1_boolean_as_a_key_are_refused() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    for (retries, said) in [
        ("{on: [503], when: [502]}", "LB003"),
        ("{true: [503]}", "write `when` if the key was `on` before a tool for YAML 1.1 wrote the file"),
    ] {
        lab.config(&pool(&[&one, &two], &format!("retries: {retries}")));
        let finished = run(&lab, &["check"]);
        assert!(finished.code == Some(2) && finished.stderr.contains(said), "{finished:?}");
    }
}

#[test]
fn a_backend_that_is_this_daemon_itself_causes_a_warning() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let text = pool(&[&origin], "");
    let more = |own: &str| {
        format!(
            "  own:\n    backends: [\"{own}\"]\nroutes: [{{match: {{path: /}}, pool: own}}, {{pool: web}}]\n"
        )
    };
    for (own, what) in [
        ("127.0.0.1:7001", "listener"),
        ("localhost:7002", "listener"),
        ("[::1]:7003", "listener"),
        ("127.0.0.1:7004", "metrics address"),
    ] {
        let listeners =
            "listeners: [\"127.0.0.1:7001\", \":7002\", \"[::]:7003\"]\nmetrics: {address: 127.0.0.1:7004}\n";
        std::fs::write(lab.path("conf.yaml"), format!("{listeners}{text}{}", more(own))).unwrap();
        let lenient = run(&lab, &["check"]);
        assert_eq!(lenient.code, Some(0), "{own}: {lenient:?}");
        assert!(
            lenient
                .stderr
                .contains(&format!("warning[LB025]: the backend {}", own.replace("localhost", "127.0.0.1"))),
            "{lenient:?}"
        );
        assert!(lenient.stderr.contains(&format!("is this daemon's own {what}")), "{lenient:?}");
        assert_eq!(run(&lab, &["check", "--strict"]).code, Some(2), "{own}");
    }
    let quick = [
        "-t",
        "proxy",
        "--listen",
        "127.0.0.1:7001",
        "--metrics",
        "127.0.0.1:7004",
        "--to",
        "127.0.0.1:7001",
    ];
    let quick = lab.run(&quick);
    assert!(quick.stderr.contains("LB025"), "{quick:?}");
}

/// Runs the program with these two variables only, or without one of them if it is empty.
fn run_with_authorities(lab: &Lab, words: &[&str], file: Option<&str>, directory: Option<&str>) -> Finished {
    let mut command = lab.command();
    command.env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR");
    command.envs(file.map(|file| ("SSL_CERT_FILE", file)));
    command.envs(directory.map(|directory| ("SSL_CERT_DIR", directory)));
    lab.finish(command, &[words, &["-c", path_str(&lab.path("conf.yaml"))]].concat())
}

#[test]
fn a_variable_that_names_no_authorities_is_an_error_and_not_a_panic() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let none = lab.path("None");
    let none = path_str(&none);
    lab.config(&pool(&[&origin], "tls: {}"));
    for words in [&["check"][..], &["-t"], &[]] {
        for (file, directory, name) in
            [(Some(none), None, "SSL_CERT_FILE"), (None, Some(none), "SSL_CERT_DIR")]
        {
            let wrong = run_with_authorities(&lab, words, file, directory);
            assert_eq!(wrong.code, Some(2), "{words:?}: {wrong:?}");
            assert!(wrong.stderr.contains("error[LB061]") && !wrong.stderr.contains("panicked"), "{wrong:?}");
            assert!(wrong.stderr.contains(&format!("{name}={none}: no such file or directory")), "{wrong:?}");
            let unset = format!("unset the environment variable {name}");
            assert!(wrong.stderr.contains(&unset), "{wrong:?}");
        }
    }
}

#[test]
fn authorities_are_not_read_if_no_pool_needs_them() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    for more in ["", "tls: {verify: false}"] {
        lab.config(&pool(&[&origin], more));
        let fine = run_with_authorities(&lab, &["check"], Some(path_str(&lab.path("None"))), None);
        assert_eq!((fine.code, &*fine.stderr), (Some(0), ""), "{more}: {fine:?}");
    }
}

#[test]
fn pools_that_verify_without_authorities_cause_a_warning() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let check = |more: &str| {
        lab.config(&pool(&[&origin], more));
        run_with_authorities(&lab, &["check"], Some("/dev/null"), None)
    };
    let warned = check("tls: {}");
    assert_eq!(warned.code, Some(0), "{warned:?}");
    assert!(
        warned.stderr.contains("warning[LB063]") && warned.stderr.contains("SSL_CERT_FILE=/dev/null"),
        "{warned:?}"
    );
    for fine in ["", "tls: {verify: false}"] {
        assert_eq!(check(fine).stderr, "", "{fine}");
    }
}
