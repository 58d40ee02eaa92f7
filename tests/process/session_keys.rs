//! The keys of session cookies: signatures, rotation, and the secrecy of the keys.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::daemon::{View, path_str};
use tests::skip::unless_root;
use tests::wait::{self, LONG};
use tests::{Lab, Origin};

use crate::balancing::{Visit, assert_sessions_stay, cookies, equal, origins};
use crate::server_keys::id_of;

const OLD: &str = "5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e";
const NEW: &str = "0ddba11c0ddba11c0ddba11c0ddba11c0ddba11c0ddba11c0ddba11c0ddba11c";

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Replaces the file of keys atomically. Only its owner can read it.
fn write_keys(lab: &Lab, text: &str) -> PathBuf {
    let beside = lab.write("sticky.keys.new", text);
    set_mode(&beside, 0o600);
    let path = lab.path("sticky.keys");
    fs::rename(beside, &path).unwrap();
    path
}

fn pool(origins: &[Origin], keys: &Path) -> String {
    equal(origins, &format!("sticky: {{cookie: lb_session, key_file: {}}}", keys.display()))
}

/// The part of the status about the only file of keys.
fn shown(view: &View) -> Value {
    let files = view.status()["config"]["session_keys"].clone();
    assert_eq!(files.as_array().map(Vec::len), Some(1), "{files:#}");
    files[0].clone()
}

#[track_caller]
fn wait_for_keys(view: &View, what: &str, is_so: impl Fn(&Value) -> bool) {
    wait::until(LONG, what, || is_so(&shown(view)));
}

#[test]
fn every_instance_with_one_key_signs_and_accepts_the_same_cookies() {
    let (lab, other, origins) = (Lab::new(), Lab::new(), origins(3));
    let mut unsigned = lab.start(&equal(&origins, "sticky: {cookie: lb_session}"));
    let hashes = cookies(&unsigned, &origins);
    assert_eq!(unsigned.stop(), Some(0));
    let keys = write_keys(&lab, &format!("# signs\n{NEW}\n\n{OLD} # of last month\n"));
    let daemon = lab.start(&pool(&origins, &keys));
    let signed = cookies(&daemon, &origins);
    assert_sessions_stay("signed", &daemon, &signed);
    for hash in &hashes {
        assert!(!signed.contains(hash));
        assert!(Visit::pay(&daemon, Some(hash)).set_cookie.is_some(), "an unsigned cookie must not count");
    }
    let instance = other.start(&pool(&origins, &write_keys(&other, &format!("{NEW}\n"))));
    assert_sessions_stay("another instance", &instance, &signed);
    drop(instance);
    let stranger = other.start(&pool(&origins, &write_keys(&other, &format!("{OLD}{OLD}\n"))));
    for cookie in &signed {
        assert!(
            Visit::pay(&stranger, Some(cookie)).set_cookie.is_some(),
            "a cookie of another key must not count"
        );
    }
}

#[test]
fn keys_are_rotated_without_a_reload() {
    let (lab, origins) = (Lab::new(), origins(3));
    let keys = write_keys(&lab, &format!("{OLD}\n"));
    let daemon = lab.start(&pool(&origins, &keys));
    let old = cookies(&daemon, &origins);
    let weight = ["weight", "web", &origins[0].address.to_string(), "7"].map(str::to_owned);
    let weight: Vec<&str> = weight.iter().map(String::as_str).collect();
    let done = lab.run(&[&weight[..], &["-c", path_str(&lab.path("conf.yaml"))]].concat());
    assert_eq!(done.code, Some(0), "{done:?}");
    write_keys(&lab, &format!("{NEW}\n{OLD}\n"));
    wait_for_keys(&daemon, "both keys are in effect", |shown| shown["keys"] == 2);
    for (number, cookie) in old.iter().enumerate() {
        let visit = Visit::pay(&daemon, Some(cookie));
        assert_eq!((visit.status, visit.origin.as_str()), (200, format!("o{number}").as_str()));
        let renewed = visit.cookie();
        assert_ne!(&renewed, cookie, "the first key signs");
        let again = Visit::pay(&daemon, Some(&renewed));
        assert_eq!((again.origin, again.set_cookie), (format!("o{number}"), None));
    }
    let new = cookies(&daemon, &origins);
    write_keys(&lab, &format!("{NEW}\n"));
    wait_for_keys(&daemon, "the old key is dropped", |shown| shown["keys"] == 1);
    assert_sessions_stay("the new key", &daemon, &new);
    assert!(old.iter().all(|cookie| Visit::pay(&daemon, Some(cookie)).set_cookie.is_some()));
    let config = daemon.status()["config"].clone();
    assert!(config["last_reload"].is_null(), "{config:#}");
    assert_eq!(config["runtime_changes"].as_array().map(Vec::len), Some(1), "{config:#}");
    let events = daemon.read("/api/v1/events").unwrap().text();
    assert!(events.contains("2 keys are in effect; the first one signs"), "{events}");
}

#[test]
fn invalid_keys_change_nothing_and_are_reported() {
    let (lab, origins) = (Lab::new(), origins(2));
    let keys = write_keys(&lab, &format!("{OLD}\n"));
    let daemon = lab.start(&pool(&origins, &keys));
    let signed = cookies(&daemon, &origins);
    let config = lab.path("conf.yaml");
    let half = &NEW[..24];
    let spoil: [(&dyn Fn(), &str); 4] = [
        (&|| drop(write_keys(&lab, &format!("{OLD}\n{half}\n"))), "line 2 has a key of 96 bits"),
        (&|| drop(write_keys(&lab, "# nothing yet\n")), "it has no key"),
        (&|| set_mode(&write_keys(&lab, NEW), 0o644), "its mode 0644 lets other users"),
        (&|| fs::remove_file(&keys).unwrap(), "no such file"),
    ];
    for (spoil, why) in spoil {
        spoil();
        let names = |shown: &Value| shown["problem"].as_str().is_some_and(|problem| problem.contains(why));
        wait_for_keys(&daemon, why, names);
        assert_sessions_stay(why, &daemon, &signed);
        daemon.logged(&["ERROR", "session keys of", why, "stay in effect"]);
        let screen = lab.run(&["status", "-c", path_str(&config)]).stdout;
        assert!(screen.contains("  ! cannot use the session keys of ") && screen.contains(why), "{screen}");
        let events = lab.run(&["events", "-c", path_str(&config)]).stdout;
        assert!(events.contains(why), "{events}");
        let reload = lab.run(&["reload", "-c", path_str(&config)]);
        assert_eq!(reload.code, Some(2), "{reload:?}");
        assert!(reload.stderr.contains("LB062"), "{reload:?}");
    }
    write_keys(&lab, &format!("{NEW}\n{OLD}\n"));
    wait_for_keys(&daemon, "the problem is solved", |shown| shown["problem"].is_null());
    assert_eq!(shown(&daemon)["keys"], 2);
    assert!(!daemon.log().contains(half), "the log must not contain a part of a key");
}

#[test]
fn keys_that_other_users_can_read_are_refused_by_check_and_start() {
    let (lab, origins) = (Lab::new(), origins(2));
    let keys = write_keys(&lab, &format!("{OLD}\n"));
    let config = lab.config(&pool(&origins, &keys));
    for arguments in [&["check"][..], &["-t"][..]] {
        let finished = lab.run(&[arguments, &["-c", path_str(&config)]].concat());
        assert_eq!(finished.code, Some(0), "{finished:?}");
    }
    set_mode(&keys, 0o604);
    for arguments in [&["check"][..], &["-t"][..], &[][..]] {
        let finished = lab.run(&[arguments, &["-c", path_str(&config)]].concat());
        assert_eq!(finished.code, Some(2), "{arguments:?}: {finished:?}");
        let said = &finished.stderr;
        assert!(said.contains("LB062") && said.contains("0604") && said.contains("chmod 600"), "{said}");
    }
}

#[test]
fn sessions_stay_during_an_upgrade_and_no_output_contains_a_key() {
    let (lab, origins) = (Lab::new(), origins(2));
    let keys = write_keys(&lab, &format!("{NEW}\n{OLD}\n"));
    let first = lab.daemonize(&pool(&origins, &keys));
    let signed = cookies(&first, &origins);
    let config = lab.path("conf.yaml");
    let run = |arguments: &[&str]| {
        let finished = lab.run(&[arguments, &["-c", path_str(&config)]].concat());
        assert_eq!(finished.code, Some(0), "{arguments:?}: {finished:?}");
        finished.stdout + &finished.stderr
    };
    let mut said = run(&["log-level", "trace"]);
    said += &run(&["upgrade"]);
    let second = lab.successor(first.process);
    assert_sessions_stay("the new process", &second, &signed);
    write_keys(&lab, &format!("{NEW}\n# {OLD}\n"));
    wait_for_keys(&second, "one key is in effect", |shown| shown["keys"] == 1);
    said += &run(&["reload"]);
    for arguments in [
        &["check", "--print"][..],
        &["status", "--format", "json"],
        &["events", "--format", "json"],
        &["explain", "--format", "json"],
    ] {
        said += &run(arguments);
    }
    said += &lab.error_log();
    said += &second.read("/api/v1/status").unwrap().text();
    assert!(said.contains("sticky.keys"), "the output must contain the path");
    for key in [NEW, OLD] {
        let bytes: Vec<u8> =
            (0..8).map(|at| u8::from_str_radix(&key[2 * at..2 * at + 2], 16).unwrap()).collect();
        let decimal = bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
        assert!(!said.contains(&key[..16]) && !said.contains(&decimal), "the output contains a key");
    }
}

#[test]
fn keys_are_rotated_by_a_daemon_without_root_privileges() {
    if unless_root("only root can give up its privileges") {
        return;
    }
    let (lab, origins) = (Lab::new(), origins(2));
    set_mode(lab.directory(), 0o755);
    let [user, group] =
        [("passwd", "www-data"), ("group", "www-data")].map(|(of, name)| id_of(of, name).parse().unwrap());
    let own = |text: &str, (uid, gid): (u32, u32), mode: u32| {
        let path = write_keys(&lab, text);
        chown(&path, Some(uid), Some(gid)).unwrap();
        set_mode(&path, mode);
        path
    };
    let keys = own(&format!("{OLD}\n"), (user, group), 0o600);
    let daemon = lab.start(&format!("user: www-data\n{}", pool(&origins, &keys)));
    own(&format!("{NEW}\n{OLD}\n"), (user, group), 0o400);
    wait_for_keys(&daemon, "its own file", |shown| shown["keys"] == 2);
    own(&format!("{NEW}\n"), (0, group), 0o640);
    wait_for_keys(&daemon, "a file of root for its group", |shown| {
        shown["keys"] == 1 && shown["problem"].is_null()
    });
    own(&format!("{NEW}\n{OLD}\n"), (0, 0), 0o600);
    wait_for_keys(&daemon, "a file for root only", |shown| {
        shown["problem"].as_str().is_some_and(|problem| problem.contains("permission denied"))
    });
    assert_eq!(shown(&daemon)["keys"], 1);
}
