//! The daemon's own log: what is logged, and where that is said.

use serde_json::Value;
use tests::daemon::{Finished, path_str};
use tests::{Lab, Origin};

use crate::pool;

/// Runs a subcommand for the daemon of this lab.
#[track_caller]
fn subcommand(lab: &Lab, words: &[&str]) -> Finished {
    lab.run(&[words, &["-c", path_str(&lab.path("conf.yaml"))]].concat())
}

/// The level in effect and where it comes from.
fn level(status: &Value) -> (&str, &str) {
    let text = |key| status["config"][key].as_str().unwrap();
    (text("log_level"), text("log_level_source"))
}

#[test]
fn unknown_levels_and_modules_are_refused_and_change_nothing() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.start(&pool(&[&origin], ""));
    for (filter, hint) in [
        ("warning", "did you mean `warn`?"),
        ("notice", "did you mean `info`?"),
        ("verbose", "did you mean `debug`?"),
        ("3", "the levels are off, error, warn, info, debug, trace"),
        ("health_service=chatty", "the levels are off, error, warn, info, debug, trace"),
        ("helth_service=debug", "did you mean `health_service`?"),
        ("info,sqlx=debug", "the modules are health_service"),
        ("", "the filter is empty"),
    ] {
        let refused = subcommand(&lab, &["log-level", filter]);
        assert_eq!((refused.code, refused.stdout.as_str()), (Some(2), ""), "{filter}: {refused:?}");
        assert!(refused.stderr.contains(hint), "{filter}: {refused:?}");
    }
    assert_eq!(level(&daemon.status()), ("info", "default"));
    assert_eq!(subcommand(&lab, &["log-level", "off"]).code, Some(0));
    assert_eq!(level(&daemon.status()), ("off", "operator"));
}

#[test]
fn an_unknown_word_in_rust_log_is_warned_about_and_does_not_switch_the_log_off() {
    let origin = Origin::start("one");
    for (variable, in_effect, warning) in [
        ("warning", ("info", "default"), "did you mean `warn`?"),
        ("3", ("info", "default"), "neither a log level nor a module"),
        ("my_app=debug", ("info", "default"), "no module `my_app`"),
        ("my_app=debug,info", ("my_app=debug,info", "RUST_LOG"), "no module `my_app`"),
    ] {
        let lab = Lab::new();
        let mut daemon = lab.start_with(&lab.config(&pool(&[&origin], "")), &[("RUST_LOG", variable)]);
        daemon.logged(&["WARN", "RUST_LOG", warning]);
        daemon.logged(&["INFO", "serves on"]);
        assert_eq!(level(&daemon.status()), in_effect, "{variable}");
        assert_eq!(daemon.stop(), Some(0));
    }
}

#[test]
fn the_key_is_in_effect_until_a_reload_an_operator_or_the_environment_says_otherwise() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let pools = pool(&[&origin], "health_check: {type: tcp, interval: 100ms}");
    let file = |key: &str| lab.config(&format!("{key}\n{pools}"));
    let reload = |more: &[&str]| {
        let reloaded = subcommand(&lab, &[&["reload"], more].concat());
        assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
        reloaded.stdout
    };
    let daemon = lab.start_file(&file("log_level: warn"));
    assert_eq!(level(&daemon.status()), ("warn", "file"));
    assert!(!daemon.log().contains("INFO"), "{}", daemon.log());
    file("log_level: debug");
    assert!(reload(&[]).contains("log_level warn -> debug"));
    daemon.logged(&["DEBUG"]);
    assert_eq!(level(&daemon.status()), ("debug", "file"));
    let screen = subcommand(&lab, &["status"]).stdout;
    assert!(screen.contains("log level debug (from the file)"), "{screen}");

    assert_eq!(subcommand(&lab, &["log-level", "error"]).stdout, "error\n");
    assert_eq!(level(&daemon.status()), ("error", "operator"));
    reload(&["--keep-runtime"]);
    assert_eq!(level(&daemon.status()), ("error", "operator"));
    assert!(
        reload(&["--dry-run"]).contains("! no longer, since the file is read again: the log level is error")
    );
    assert_eq!(level(&daemon.status()), ("error", "operator"));
    assert!(reload(&[]).contains("! no longer, since the file is read again: the log level is error"));
    assert_eq!(level(&daemon.status()), ("debug", "file"));

    assert_eq!(subcommand(&lab, &["log-level", "warn"]).code, Some(0));
    file("");
    assert!(reload(&[]).contains("log_level debug -> info (the default)"));
    assert_eq!(level(&daemon.status()), ("warn", "operator"), "a file without the key leaves it");
    drop(daemon);

    let daemon = lab.start_with(&file("log_level: error"), &[("RUST_LOG", "info")]);
    assert_eq!(level(&daemon.status()), ("info", "RUST_LOG"));
    daemon.logged(&["WARN", "log_level has no effect", "RUST_LOG"]);
}
