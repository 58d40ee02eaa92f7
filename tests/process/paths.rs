//! Paths and owners of files: checks create no files, and a daemon that root starts as another user creates files that
//! this user owns and can use later.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use tests::daemon::path_str;
use tests::process::{Process, started_with};
use tests::wait::{self, LONG};
use tests::{Authority, Background, Lab, Origin, Signal};

use crate::pool;

/// The user id of a process.
fn user(process: Process) -> u32 {
    fs::metadata(format!("/proc/{}", process.0)).unwrap().uid()
}

/// The user that owns a file.
fn owner(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).uid()
}

fn nobody() -> u32 {
    let output = tests::tools::run("id", &["-u", "nobody"]);
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Every file below a directory, with its inode, owner and mode.
fn traces(directory: &Path) -> BTreeMap<String, (u64, u32, u32)> {
    let mut traces = BTreeMap::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, found) = (entry.path(), entry.metadata().unwrap());
        if found.is_dir() {
            traces.append(&mut self::traces(&path));
        }
        traces.insert(path.display().to_string(), (found.ino(), found.uid(), found.mode()));
    }
    traces
}

// === a check ===

#[test]
fn a_check_changes_no_files() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let listeners = format!("listeners:\n  - address: unix:{}\n", lab.path("web.sock").display());
    let access_log = format!("access_log: {{format: text, path: {}}}\n", lab.path("access.log").display());
    let config = lab.config_with(&listeners, &format!("{access_log}{}", pool(&[&origin], "")));
    // No process listens on this socket, so a start would replace it.
    drop(UnixListener::bind(lab.path("web.sock")).unwrap());
    // The lab writes the output of the commands that it runs into the directory.
    let now = || {
        let mut traces = traces(lab.directory());
        traces.retain(|path, _| !path.contains("/stdout-") && !path.contains("/stderr-"));
        traces
    };
    let before = now();
    for arguments in [&["-t"][..], &["-t", "-d"], &["-t", "-u"], &["check"]] {
        let finished = lab.run(&[arguments, &["-c", path_str(&config)]].concat());
        assert_eq!(finished.code, Some(0), "{arguments:?}: {finished:?}");
        assert_eq!(now(), before, "{arguments:?}");
    }
}

#[test]
fn a_check_as_root_creates_no_runtime_directory() {
    let Some(lab) = Lab::of_root() else { return };
    let origin = Origin::start("one");
    let config =
        lab.config_by_default("conf.yaml", &format!("user: nobody\n{}", pool(&[&origin], "tls: {}")));
    let finished = lab.run(&["-t", "-d", "-c", path_str(&config)]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(!lab.runtime_directory().exists() && !lab.path("error.log").exists());
}

#[test]
fn a_log_file_of_another_user_is_named_with_its_owner_and_the_remedy() {
    let Some(lab) = Lab::of_root() else { return };
    let origin = Origin::start("one");
    let (access, error) = (lab.path("access.log"), lab.path("error.log"));
    let access_log = format!("access_log: {{format: text, path: {}}}\n", access.display());
    let config = lab.config_by_default("conf.yaml", &format!("{access_log}{}", pool(&[&origin], "")));
    for closed in [&access, &error] {
        for file in [&access, &error] {
            fs::write(file, "").unwrap();
            chmod(file, if file == closed { 0o640 } else { 0o666 });
        }
        for arguments in [&["-t"][..], &[]] {
            let arguments = [arguments, &["-c", path_str(&config)]].concat();
            let finished = lab.finish(lab.command_as("nobody"), &arguments);
            let said = format!("{}{}", finished.stderr, lab.error_log());
            assert!(matches!(finished.code, Some(1 | 2)), "{arguments:?}: {finished:?}");
            for word in [path_str(closed), "permission denied", "the user `root`", "chown nobody"] {
                assert!(said.contains(word), "{arguments:?}, {word}: {said}");
            }
        }
        assert_eq!((owner(&access), owner(&error)), (0, 0), "the owner of a log has changed");
    }
}

#[test]
fn a_check_finds_files_that_the_user_of_the_daemon_cannot_use() {
    let Some(lab) = Lab::of_root() else { return };
    let origin = Origin::start("one");
    let closed = lab.path("closed");
    fs::create_dir(&closed).unwrap();
    chmod(&closed, 0o700);
    let ca = lab.path("ca.pem");
    Authority::new().write(&ca).unwrap();
    let body = |more: &str| format!("user: nobody\n{more}{}", pool(&[&origin], ""));
    let in_closed = |name: &str| format!("{}/{name}", closed.display());
    fs::copy(&ca, in_closed("ca.pem")).unwrap();
    let checked = |text: &str, mode: u32, expected: &[&str]| {
        let config = lab.config_by_default("conf.yaml", text);
        chmod(&config, mode);
        for arguments in [&["check"][..], &["-t"]] {
            let finished = lab.run(&[arguments, &["-c", path_str(&config)]].concat());
            let code = if expected.is_empty() { 0 } else { 2 };
            assert_eq!(finished.code, Some(code), "{text}: {finished:?}");
            let words = expected.iter().all(|word| finished.stderr.contains(word));
            assert!(words, "{expected:?}: {finished:?}");
        }
    };
    chmod(&ca, 0o644);
    let tls = |ca: &str| body(&format!("ca_file: {ca}\n"));
    checked(&tls(path_str(&ca)), 0o644, &[]);
    let who = "the user `nobody`, which the daemon runs as";
    checked(&body(""), 0o600, &[who, " cannot read ", "conf.yaml: ", "chgrp nogroup"]);
    chmod(&ca, 0o600);
    checked(&tls(path_str(&ca)), 0o644, &[who, " cannot read ", "ca.pem: ", "ca_file:"]);
    checked(&tls(&in_closed("ca.pem")), 0o644, &[who, "that user cannot enter the directory "]);
    checked(&body(&format!("working_directory: {}\n", closed.display())), 0o644, &[who, " cannot enter "]);
}

// === another user with default paths ===

/// Starts a daemon in the background that runs as the user `nobody` with default paths.
fn of_nobody(lab: &Lab, origin: &Origin) -> Background {
    let access = format!("access_log: {{format: text, path: {}}}\n", lab.path("access.log").display());
    let config =
        lab.config_by_default("conf.yaml", &format!("user: nobody\n{access}{}", pool(&[origin], "")));
    let daemon = lab.daemonize_file(&config, &[]);
    assert_eq!(user(daemon.process), nobody());
    daemon
}

#[test]
fn files_that_a_start_creates_belong_to_the_user_even_when_it_fails() {
    let Some(lab) = Lab::of_root() else { return };
    let origin = Origin::start("one");
    let taken = TcpListener::bind(lab.listener).unwrap();
    let logs = [lab.path("error.log"), lab.path("access.log")];
    let access = format!("access_log: {{format: text, path: {}}}\n", logs[1].display());
    let config =
        lab.config_by_default("conf.yaml", &format!("user: nobody\n{access}{}", pool(&[&origin], "")));
    let finished = lab.run(&["-c", path_str(&config), "-d"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(logs.iter().all(|log| owner(log) == nobody()), "{finished:?}");
    drop(taken);
    let daemon = of_nobody(&lab, &origin);
    let runtime = lab.runtime_directory();
    assert_eq!(owner(&runtime), nobody());
    let files: Vec<_> = fs::read_dir(&runtime).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 2 && files.iter().all(|file| owner(file) == nobody()), "{files:?}");
    daemon.process.signal(Signal::SIGTERM);
    daemon.process.wait_gone(LONG);
    assert_eq!(fs::read_dir(&runtime).unwrap().count(), 0, "files are left: {files:?}");
}

#[test]
fn a_device_used_as_a_log_keeps_its_owner() {
    let Some(lab) = Lab::of_root() else { return };
    let origin = Origin::start("one");
    let body =
        format!("user: nobody\naccess_log: {{format: text, path: /dev/null}}\n{}", pool(&[&origin], ""));
    let daemon = lab.daemonize_file(&lab.config_by_default("conf.yaml", &body), &[]);
    assert_eq!((user(daemon.process), owner(Path::new("/dev/null"))), (nobody(), 0));
}

#[test]
fn upgrades_as_another_user_work_with_default_paths() {
    let Some(lab) = Lab::of_root() else { return };
    let origin = Origin::start("one");
    // The user cannot enter this directory, which is as closed as root's home.
    let home = lab.path("home");
    fs::create_dir(&home).unwrap();
    chmod(&home, 0o700);
    lab.start_in(home);
    let config = lab.path("conf.yaml");
    let mut old = of_nobody(&lab, &origin);
    for how in ["the subcommand", "the second subcommand", "SIGUSR2", "SIGQUIT and -u", "the subcommand"] {
        let new = match how {
            "SIGUSR2" => {
                old.process.signal(Signal::SIGUSR2);
                lab.successor(old.process)
            }
            "SIGQUIT and -u" => {
                old.process.signal(Signal::SIGQUIT);
                lab.daemonize_file(&config, &["-u"])
            }
            _ => {
                let finished = lab.run(&["upgrade", "-c", path_str(&config)]);
                assert_eq!(finished.code, Some(0), "{how}: {finished:?}\n{}", lab.error_log());
                lab.successor(old.process)
            }
        };
        old.process.wait_gone(LONG);
        assert_eq!(user(new.process), nobody(), "{how}");
        assert_eq!(new.get("/").unwrap().status, 200, "{how}");
        assert_eq!(started_with(lab.directory()), [new.process], "{how}");
        old = new;
    }
    let runtime = lab.runtime_directory();
    old.process.signal(Signal::SIGTERM);
    old.process.wait_gone(LONG);
    let left: Vec<_> = fs::read_dir(&runtime).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Creates a directory that root owns, like `/var/log/load_balancer` on many machines, and a configuration with both
/// logs in it. Returns their paths.
fn logs_of_root(lab: &Lab, origin: &Origin) -> (PathBuf, PathBuf) {
    let logs = lab.path("logs");
    fs::create_dir(&logs).unwrap();
    chmod(&logs, 0o755);
    let access = format!("access_log: {{format: text, path: {}/access.log}}\n", logs.display());
    let body = format!("user: nobody\n{access}{}", pool(&[origin], ""));
    let config = lab.config_by_default("conf.yaml", &body);
    let text = fs::read_to_string(&config).unwrap();
    let error_log = |directory: &Path| format!("error_log: {}/error.log", directory.display());
    let text = text.replace(&error_log(lab.directory()), &error_log(&logs));
    (logs, lab.write("conf.yaml", &text))
}

#[test]
fn upgrades_work_with_logs_in_a_directory_of_root_and_a_warning_about_rotation() {
    let Some(lab) = Lab::of_root() else { return };
    let origin = Origin::start("one");
    let (logs, config) = logs_of_root(&lab, &origin);
    let checked = lab.run(&["check", "-c", path_str(&config)]);
    let remedy = format!("install -d -o nobody {}", logs.display());
    assert_eq!((checked.code, checked.stderr.matches("warning[LB078]").count()), (Some(0), 2), "{checked:?}");
    assert!(checked.stderr.contains(&remedy), "{checked:?}");
    let old = lab.daemonize_file(&config, &[]);
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text + "log_level: debug\n").unwrap();
    let reloaded = lab.run(&["reload", "-c", path_str(&config)]);
    assert_eq!(reloaded.stdout.matches("warning[LB078]").count(), 2, "{reloaded:?}");
    let status = lab.run(&["status", "-c", path_str(&config)]);
    assert!(status.stdout.contains("2 warnings about the file"), "{status:?}");
    let upgraded = lab.run(&["upgrade", "-c", path_str(&config)]);
    assert_eq!(upgraded.code, Some(0), "{upgraded:?}");
    let new = lab.successor(old.process);
    old.process.wait_gone(LONG);
    assert_eq!((user(new.process), new.get("/").unwrap().status), (nobody(), 200));
    tests::tools::run("install", &["-d", "-o", "nobody", path_str(&logs)]);
    let checked = lab.run(&["check", "--strict", "-c", path_str(&config)]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
}

#[test]
fn a_log_directory_without_permissions_is_refused_with_a_command_to_run() {
    let Some(lab) = Lab::of_root() else { return };
    let origin = Origin::start("one");
    let (logs, config) = logs_of_root(&lab, &origin);
    let check = || lab.finish(lab.command_as("nobody"), &["check", "-c", path_str(&config)]);
    let refused = check();
    let words = [
        "error[LB070]",
        "the user `nobody` cannot write to it",
        &format!("install -d -o nobody {}", logs.display()),
    ];
    assert!(refused.code == Some(2) && words.iter().all(|word| refused.stderr.contains(word)), "{refused:?}");
    for log in ["error.log", "access.log"] {
        fs::write(logs.join(log), "").unwrap();
        chmod(&logs.join(log), 0o666);
    }
    let accepted = check();
    assert_eq!(accepted.code, Some(0), "{accepted:?}");
}

#[test]
fn a_file_that_is_read_is_never_written() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let ca = lab.path("ca.pem");
    Authority::new().write(&ca).unwrap();
    let tls = format!("tls: {{sni: a.test, ca: {}}}", ca.display());
    for (key, file) in [("pid_file", "conf.yaml"), ("error_log", "ca.pem")] {
        let config = lab.config_with("", &pool(&[&origin], &tls));
        let text = fs::read_to_string(&config).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with(key)).collect::<Vec<_>>().join("\n");
        let text = format!("{key}: {}\n{lines}\n", lab.path(file).display());
        lab.write("conf.yaml", &text);
        let before = fs::read_to_string(lab.path(file)).unwrap();
        for arguments in [&["check"][..], &["-t"], &["-d"]] {
            let finished = lab.run(&[arguments, &["-c", path_str(&config)]].concat());
            assert_eq!(finished.code, Some(2), "{finished:?}");
            assert!(
                finished.stderr.contains("error[LB071]") && finished.stderr.contains(file),
                "{finished:?}"
            );
        }
        assert_eq!(fs::read_to_string(lab.path(file)).unwrap(), before);
    }
}

#[test]
fn a_reload_and_a_rotation_of_logs_work_as_another_user() {
    let Some(lab) = Lab::of_root() else { return };
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let daemon = of_nobody(&lab, &one);
    let config = lab.path("conf.yaml");
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace(&one.address.to_string(), &two.address.to_string());
    fs::write(&config, text).unwrap();
    let finished = lab.run(&["reload", "-c", path_str(&config)]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(daemon.get("/").unwrap().origin(), "two");
    let status = lab.finish(lab.command_as("nobody"), &["status", "-c", path_str(&config)]);
    assert_eq!(status.code, Some(0), "{status:?}");
    let rotate = |name: &str| fs::rename(lab.path(name), lab.path(&format!("{name}.1"))).unwrap();
    rotate("error.log");
    rotate("access.log");
    daemon.process.signal(Signal::SIGUSR1);
    for name in ["error.log", "access.log"] {
        daemon.logged(&[name, "reopened"]);
        wait::until(LONG, "the log is a new file", || lab.path(name).exists());
        assert_eq!(owner(&lab.path(name)), nobody());
    }
}

#[test]
fn a_rotation_reports_which_log_could_not_be_reopened() {
    let Some(lab) = Lab::of_root() else { return };
    let origin = Origin::start("one");
    let daemon = of_nobody(&lab, &origin);
    fs::rename(lab.path("access.log"), lab.path("access.log.1")).unwrap();
    // The daemon can reopen the error log, but can no longer create files.
    chmod(lab.directory(), 0o755);
    daemon.process.signal(Signal::SIGUSR1);
    daemon.logged(&["error_log: ", "error.log reopened"]);
    daemon.logged(&["cannot reopen", "access.log, the old file stays in use", "permission denied"]);
    fs::rename(lab.path("error.log"), lab.path("error.log.1")).unwrap();
    daemon.process.signal(Signal::SIGUSR1);
    let status = || lab.run(&["status", "-c", path_str(&lab.path("conf.yaml"))]).stdout;
    wait::until(LONG, "both failures are in the status", || {
        ["access.log: permission denied", "error.log: permission denied"]
            .iter()
            .all(|said| status().contains(said))
    });
    let log = || fs::read_to_string(lab.path("error.log.1")).unwrap();
    wait::until(LONG, "the failure is in the error log", || {
        log().contains("error_log: cannot reopen it, the old file stays in use")
    });
    let said = log();
    assert!(!said.contains("log files reopened") && said.contains("cannot create files in it"), "{said}");
    chmod(lab.directory(), 0o777);
    daemon.process.signal(Signal::SIGUSR1);
    wait::until(LONG, "the status has no problems", || status().contains("\nno problems"));
}

#[test]
fn daemons_of_two_users_do_not_share_a_runtime_directory() {
    let Some(lab) = Lab::of_root() else { return };
    let origin = Origin::start("one");
    let first = of_nobody(&lab, &origin);
    let other = Lab::new();
    let text = fs::read_to_string(lab.path("conf.yaml")).unwrap();
    let text = text.replace("user: nobody", "user: www-data").replace("error.log", "other.log");
    let text = text.replace(&lab.listener.to_string(), &other.listener.to_string());
    let text = text.replace(&lab.metrics.to_string(), &other.metrics.to_string());
    let second = lab.write("second.yaml", &text.replace("access.log", "other-access.log"));
    for arguments in [&["-t"][..], &["-d"]] {
        let finished = lab.run(&[arguments, &["-c", path_str(&second)]].concat());
        assert!(matches!(finished.code, Some(1 | 2)), "{arguments:?}: {finished:?}");
        for said in
            ["the user `nobody` runs there", "`pid_file`, `upgrade_sock` and `control: {socket: PATH}`"]
        {
            assert!(finished.stderr.contains(said), "{said}: {finished:?}");
        }
    }
    let runtime = lab.runtime_directory();
    assert_eq!(owner(&runtime), nobody(), "the directory still belongs to the first daemon");
    assert_eq!(first.get("/").unwrap().status, 200);
    first.process.signal(Signal::SIGKILL);
    first.process.wait_gone(LONG);
    let finished = lab.run(&["-d", "-c", path_str(&second)]);
    assert_eq!(finished.code, Some(0), "the directory of a stopped daemon can be reused: {finished:?}");
    assert_ne!(owner(&runtime), nobody());
    assert_eq!(tests::get(other.listener, "/").unwrap().status, 200);
}

#[test]
fn a_failed_start_leaves_directory_and_logs_to_the_running_daemon() {
    let Some(lab) = Lab::of_root() else { return };
    let origin = Origin::start("one");
    let daemon = of_nobody(&lab, &origin);
    let config = lab.path("conf.yaml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("user: nobody", "user: www-data")).unwrap();
    for arguments in [&["-d", "-u"][..], &["-d"]] {
        let finished = lab.run(&[arguments, &["-c", path_str(&config)]].concat());
        assert_eq!(finished.code, Some(1), "{finished:?}");
        assert!(daemon.process.alive());
        for path in [lab.runtime_directory(), lab.path("error.log"), lab.path("access.log")] {
            assert_eq!(owner(&path), nobody(), "{}: {finished:?}", path.display());
        }
    }
    let status = lab.finish(lab.command_as("nobody"), &["status", "-c", path_str(&config)]);
    assert_eq!(status.code, Some(0), "{status:?}");
    fs::write(&config, text).unwrap();
    let upgraded = lab.run(&["upgrade", "-c", path_str(&config)]);
    assert_eq!(upgraded.code, Some(0), "{upgraded:?}");
}

#[test]
fn a_start_takes_over_the_logs_of_a_stopped_daemon_of_another_user() {
    let Some(lab) = Lab::of_root() else { return };
    let origin = Origin::start("one");
    let first = of_nobody(&lab, &origin);
    first.process.signal(Signal::SIGTERM);
    first.process.wait_gone(LONG);
    let config = lab.path("conf.yaml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("user: nobody", "user: www-data")).unwrap();
    let second = lab.daemonize_file(&config, &[]);
    for log in ["error.log", "access.log"] {
        assert_eq!(owner(&lab.path(log)), user(second.process), "{log}");
    }
}

// === failed upgrades ===

#[test]
fn an_upgrade_in_the_foreground_reports_why_it_fails() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.start(&pool(&[&origin], ""));
    let config = lab.config(&pool(&[&origin], "polcy: maglev"));
    let finished = lab.run(&["upgrade", "-c", path_str(&config)]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("unknown key `polcy`"), "{finished:?}");
    daemon.logged(&["upgrade failed", "exit code 2", "unknown key `polcy`"]);
    let problems = || daemon.status()["problems"].clone();
    assert_eq!(problems()[0]["text"], "the last upgrade failed", "{}", problems());
    assert!(problems()[0]["reason"].as_str().unwrap().contains("unknown key `polcy`"), "{}", problems());
    let taken = TcpListener::bind(tests::ports::free()).unwrap();
    let another = taken.local_addr().unwrap();
    let listeners = format!("listeners: [{{address: \"{}\"}}, {{address: \"{another}\"}}]\n", lab.listener);
    lab.config_with(&listeners, &pool(&[&origin], ""));
    let finished = lab.run(&["upgrade", "-c", path_str(&config)]);
    assert!(finished.stderr.contains(&format!("cannot listen on {another}")), "{finished:?}");
    assert_eq!(problems().as_array().map(Vec::len), Some(1), "{}", problems());
    assert!(problems()[0]["reason"].as_str().unwrap().contains("cannot listen on"), "{}", problems());
    assert_eq!(daemon.get("/").unwrap().status, 200);
}

#[test]
fn an_upgrade_finds_the_old_process_although_the_file_names_another_socket() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let old = lab.daemonize(&pool(&[&origin], ""));
    let config = lab.path("conf.yaml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("upgrade.sock", "moved.sock")).unwrap();
    let finished = lab.run(&["upgrade", "-c", path_str(&config)]);
    assert_eq!(finished.code, Some(0), "{finished:?}\n{}", lab.error_log());
    let new = lab.successor(old.process);
    old.process.wait_gone(LONG);
    assert_eq!(new.get("/").unwrap().status, 200);
}

#[test]
fn authorities_of_a_variable_are_read_as_the_user_of_the_daemon() {
    let Some(lab) = Lab::of_root() else { return };
    let origin = Origin::start("one");
    let closed = lab.path("closed");
    fs::create_dir(&closed).unwrap();
    let ca = closed.join("ca.pem");
    Authority::new().write(&ca).unwrap();
    let config =
        lab.config_by_default("conf.yaml", &format!("user: nobody\n{}", pool(&[&origin], "tls: {}")));
    chmod(&config, 0o644);
    for (mode, code) in [(0o700, 2), (0o755, 0)] {
        chmod(&closed, mode);
        for (name, path) in [("SSL_CERT_FILE", &ca), ("SSL_CERT_DIR", &closed)] {
            for arguments in [&["check"][..], &["-t"]] {
                let mut command = lab.command();
                command.env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR").env(name, path);
                let finished = lab.finish(command, &[arguments, &["-c", path_str(&config)]].concat());
                assert_eq!(finished.code, Some(code), "{arguments:?} {name}: {finished:?}");
                let said = format!("{name}={}, as the user `nobody`: permission denied", path.display());
                assert_eq!(finished.stderr.contains(&said), code == 2, "{finished:?}");
            }
        }
    }
}
