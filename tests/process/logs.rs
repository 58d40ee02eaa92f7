//! The daemon's own log: its level, and its behaviour when the log is not read.

use std::fs;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tests::daemon::{Finished, path_str};
use tests::process::Process;
use tests::wait::{self, LONG};
use tests::{Lab, Origin, Signal};

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
        ("quiet", "did you mean `none`?"),
        ("3", "the levels are none, error, warn, info, debug, trace"),
        ("health_service=chatty", "the levels are none, error, warn, info, debug, trace"),
        ("helth_service=debug", "did you mean `health_service`?"),
        ("info,sqlx=debug", "the modules are health_service"),
        ("", "the filter is empty"),
    ] {
        let refused = subcommand(&lab, &["log-level", filter]);
        assert_eq!((refused.code, refused.stdout.as_str()), (Some(2), ""), "{filter}: {refused:?}");
        assert!(refused.stderr.contains(hint), "{filter}: {refused:?}");
    }
    assert_eq!(level(&daemon.status()), ("info", "default"));
    assert_eq!(subcommand(&lab, &["log-level", "none"]).code, Some(0));
    assert_eq!(level(&daemon.status()), ("none", "operator"));
    assert_eq!(subcommand(&lab, &["log-level", "off"]).code, Some(0));
}

#[test]
fn an_unknown_word_in_rust_log_causes_a_warning_and_leaves_the_log_on() {
    let origin = Origin::start("one");
    for (variable, in_effect, warning) in [
        ("warning", ("info", "default"), "did you mean `warn`?"),
        ("3", ("info", "default"), "neither a log level nor a log module"),
        ("my_app=debug", ("info", "default"), "no log module `my_app`"),
        ("my_app=debug,info", ("my_app=debug,info", "RUST_LOG"), "no log module `my_app`"),
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
fn log_level_applies_until_a_reload_an_operator_or_rust_log_overrides_it() {
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
    for arguments in [&["--dry-run"][..], &[]] {
        assert_eq!(level(&daemon.status()), ("error", "operator"));
        let said = reload(arguments);
        assert!(said.contains("! dropped by this reload: the log level error"), "{said}");
        assert!(said.contains("log_level error -> debug") && !said.contains("nothing to change"), "{said}");
    }
    assert_eq!(level(&daemon.status()), ("debug", "file"));

    assert_eq!(subcommand(&lab, &["log-level", "warn"]).code, Some(0));
    file("");
    let stays = "! the log level stays warn: an operator set it at run time";
    for arguments in [&["--dry-run"][..], &[]] {
        let said = reload(arguments);
        assert!(said.contains("log_level debug -> info (the default)") && said.contains(stays), "{said}");
    }
    assert_eq!(
        level(&daemon.status()),
        ("warn", "operator"),
        "a file without the key does not change the level"
    );
    file("log_level: debug");
    assert!(reload(&["--keep-runtime"]).contains(stays));
    assert_eq!(level(&daemon.status()), ("warn", "operator"));
    drop(daemon);

    let daemon = lab.start_with(&file("log_level: error"), &[("RUST_LOG", "info")]);
    assert_eq!(level(&daemon.status()), ("info", "RUST_LOG"));
    daemon.logged(&["WARN", "log_level has no effect", "RUST_LOG"]);
    file("log_level: debug");
    assert!(reload(&[]).contains("! the log level stays info: RUST_LOG takes precedence over the file"));
}

// ===== a log that is not read =====

/// A daemon whose standard output and standard error are pipes that are full from the start.
struct Unread {
    child: Child,
    lab: Lab,
    stderr: PipeReader,
    _stdout: PipeReader,
    _origin: Origin,
}

/// A pipe whose buffer is full.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    // This is the size of a pipe's buffer on Linux.
    writer.write_all(&[b'\n'; 65_536]).unwrap();
    (reader, writer)
}

impl Unread {
    fn spawn(level: &str) -> Self {
        let (lab, origin) = (Lab::new(), Origin::start("one"));
        let text = fs::read_to_string(lab.config(&pool(&[&origin], ""))).unwrap();
        // Without `error_log`, the log goes to standard error.
        let lines = text.lines().filter(|line| !line.starts_with("error_log"));
        let config = lab.write("conf.yaml", &lines.collect::<Vec<_>>().join("\n"));
        let ((stderr, full), (stdout, also_full)) = (full_pipe(), full_pipe());
        let mut command = lab.command();
        command.args(["-c", path_str(&config)]).env("RUST_LOG", level).stderr(full).stdout(also_full);
        let child = command.spawn().unwrap();
        Self { child, lab, stderr, _stdout: stdout, _origin: origin }
    }

    fn get(&self, target: &str) -> u16 {
        tests::client::get(self.lab.listener, target).map_or(0, |response| response.status)
    }

    fn read(&self, target: &str) -> String {
        tests::client::get(self.lab.metrics, target).map(|response| response.text()).unwrap_or_default()
    }

    fn metric(&self, name: &str) -> f64 {
        let text = self.read("/metrics");
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or(0.0)
    }

    /// Waits until the daemon serves.
    #[track_caller]
    fn serves(&self) {
        wait::until(LONG, "the daemon serves", || self.get("/") == 200);
    }

    /// Sends requests until lines of the log have been dropped. At this level, each look at the state of the process
    /// writes some.
    #[track_caller]
    fn drops_lines(&self) {
        wait::until(Duration::from_secs(60), "lines of the log are dropped", || {
            assert!((0..100).all(|_| self.get("/") == 200), "a request has failed");
            assert!((0..100).all(|_| !self.read("/livez").is_empty()), "the process is not live");
            self.metric("lb_log_lines_dropped_total") > 0.0
        });
    }

    /// Starts to read standard error in a thread, and returns the text.
    fn read_on(&self) -> Arc<Mutex<Vec<u8>>> {
        let (text, mut reader) = (Arc::<Mutex<Vec<u8>>>::default(), self.stderr.try_clone().unwrap());
        let read = text.clone();
        thread::spawn(move || {
            let mut buffer = [0; 65_536];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                read.lock().unwrap().extend_from_slice(&buffer[..length]);
            }
        });
        text
    }

    #[track_caller]
    fn ends(&mut self) -> Option<i32> {
        Process(self.child.id()).signal(Signal::SIGTERM);
        wait::until_some(LONG, "the daemon ends", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        // Both calls fail only if the daemon has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn full_pipes_block_neither_requests_nor_the_shutdown() {
    let mut unread = Unread::spawn("trace");
    unread.serves();
    unread.drops_lines();
    assert_eq!(unread.ends(), Some(0));
}

#[test]
fn dropped_lines_are_reported_and_the_last_line_is_written_once_standard_error_is_read() {
    let mut unread = Unread::spawn("trace");
    unread.serves();
    unread.drops_lines();
    let log = unread.read_on();
    let has = |words: &str| String::from_utf8_lossy(&log.lock().unwrap()).contains(words);
    wait::until(LONG, "the dropped lines are reported", || {
        unread.get("/") == 200 && has("dropped: writing to standard error is too slow or fails")
    });
    assert_eq!(unread.ends(), Some(0));
    wait::until(LONG, "the last line is read", || has("drained: no request is left"));
}

#[test]
fn a_failed_start_ends_although_its_message_cannot_be_written() {
    let first = Unread::spawn("info");
    first.serves();
    let (_reader, full) = full_pipe();
    let mut command = first.lab.command();
    let mut second =
        command.args(["-c", path_str(&first.lab.path("conf.yaml"))]).stderr(full).spawn().unwrap();
    let ended = wait::poll(LONG, || second.try_wait().unwrap());
    // A process that hangs must not outlive the test.
    let _ = second.kill();
    assert_eq!(ended.expect("the start ends").code(), Some(1));
}

#[test]
fn a_start_in_the_background_without_an_error_log_warns() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let text = fs::read_to_string(lab.config(&pool(&[&origin], ""))).unwrap();
    let without: Vec<_> = text.lines().filter(|line| !line.starts_with("error_log")).collect();
    for (file, warns) in [(text.clone(), false), (without.join("\n"), true)] {
        let config = lab.write("conf.yaml", &file);
        let started = lab.run(&["-c", path_str(&config), "-d"]);
        assert_eq!(started.code, Some(0), "{started:?}");
        let warning = started.stderr.contains("runs in the background without a log")
            && started.stderr.contains("error_log: /");
        assert_eq!(warning, warns, "{started:?}");
        assert_eq!(subcommand(&lab, &["stop"]).code, Some(0));
    }
}

#[test]
fn a_start_in_the_background_returns_although_its_warning_cannot_be_written() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let text = fs::read_to_string(lab.config(&pool(&[&origin], ""))).unwrap();
    let without: Vec<_> = text.lines().filter(|line| !line.starts_with("error_log")).collect();
    let config = lab.write("conf.yaml", &without.join("\n"));
    let (_reader, full) = full_pipe();
    let mut parent = lab.command().args(["-c", path_str(&config), "-d"]).stderr(full).spawn().unwrap();
    let ended = wait::poll(LONG, || parent.try_wait().unwrap());
    // A process that hangs must not outlive the test.
    let _ = parent.kill();
    let served = tests::client::get(lab.listener, "/").map(|response| response.status);
    assert_eq!(subcommand(&lab, &["stop"]).code, Some(0));
    assert_eq!(ended.expect("the start returns").code(), Some(0));
    assert_eq!(served.unwrap(), 200);
}
