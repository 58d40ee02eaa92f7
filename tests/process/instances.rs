//! Several daemons on one machine with default paths. Each is found by its own configuration file only.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::daemon::{Finished, path_str};
use tests::process::Process;
use tests::skip::is_root;
use tests::wait::{self, LONG};
use tests::{Lab, Origin, Signal, ports};

use crate::pool;

/// A lab with a runtime directory that no other test uses, for root and for other users.
fn lab() -> Lab {
    if is_root() { Lab::of_root().unwrap_or_default() } else { Lab::new() }
}

/// The configuration file and the listener of one of several daemons.
struct Instance {
    config: PathBuf,
    listener: SocketAddr,
}

/// Writes a configuration file that contains only `head`, addresses and pools.
fn instance(lab: &Lab, name: &str, origins: &[&Origin], head: &str) -> Instance {
    let (listener, metrics) = (ports::free(), ports::free());
    let text = format!(
        "{head}listeners: [{{address: \"{listener}\"}}]\nmetrics: {{address: \"{metrics}\"}}\n{}",
        pool(origins, "")
    );
    Instance { config: lab.write(&format!("{name}.yaml"), &text), listener }
}

#[track_caller]
fn start(lab: &Lab, instance: &Instance, more: &[&str]) {
    let finished = lab.run(&[&["-d", "-c", path_str(&instance.config)], more].concat());
    assert_eq!(finished.code, Some(0), "{finished:?}");
    wait::until(LONG, "the daemon serves", || {
        tests::get(instance.listener, "/").is_ok_and(|response| response.status == 200)
    });
}

fn run_for(lab: &Lab, words: &[&str], config: &Path) -> Finished {
    lab.run(&[words, &["-c", path_str(config)]].concat())
}

/// The status of the daemon with this configuration file.
#[track_caller]
fn status(lab: &Lab, config: &Path) -> Value {
    let finished = run_for(lab, &["status", "--format", "json"], config);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    serde_json::from_str(&finished.stdout).unwrap()
}

#[track_caller]
fn process(lab: &Lab, config: &Path) -> Process {
    Process(status(lab, config)["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).unwrap())
}

/// The names of the files in the runtime directory.
fn runtime_files(lab: &Lab) -> Vec<String> {
    let entries = fs::read_dir(lab.runtime_directory()).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

#[test]
fn a_second_start_with_the_same_file_names_the_running_process() {
    let lab = lab();
    let origin = Origin::start("one");
    let a = instance(&lab, "a", &[&origin], "");
    start(&lab, &a, &[]);
    let first = process(&lab, &a.config);
    let second = run_for(&lab, &[], &a.config);
    assert_eq!(second.code, Some(1), "{second:?}");
    let file = a.config.display();
    let said = format!("error: load_balancer already runs as process {} with {file}: run", first.0);
    assert!(second.stderr.starts_with(&said), "{second:?}");
    assert!(second.stderr.contains(&format!("`load_balancer upgrade -c {file}`")), "{second:?}");
}

#[test]
fn two_daemons_run_side_by_side_and_each_is_found_by_its_configuration_file() {
    let lab = lab();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let [a, b] = ["a", "b"].map(|name| instance(&lab, name, &[&one, &two], ""));
    start(&lab, &a, &[]);
    start(&lab, &b, &[]);
    let (first, second) = (process(&lab, &a.config), process(&lab, &b.config));
    assert_ne!(first, second);
    let names = runtime_files(&lab);
    for prefix in ["control.a-", "control.b-", "load_balancer.a-", "load_balancer.b-"] {
        assert!(names.iter().any(|name| name.starts_with(prefix)), "{prefix}: {names:?}");
    }
    // A subcommand reaches the daemon whose file it names.
    let state = |config: &Path| status(&lab, config)["pools"][0]["backends"][0]["state"].clone();
    let drained = run_for(&lab, &["drain", "web", &one.address.to_string()], &b.config);
    assert_eq!(drained.code, Some(0), "{drained:?}");
    assert_eq!((state(&a.config) == "draining", state(&b.config) == "draining"), (false, true));
    let text = fs::read_to_string(&b.config).unwrap();
    fs::write(&b.config, text.replace(&format!("\"{}\", ", one.address), "")).unwrap();
    assert_eq!(run_for(&lab, &["reload"], &b.config).code, Some(0));
    let backends = |config: &Path| status(&lab, config)["pools"][0]["backends"].as_array().map(Vec::len);
    assert_eq!((backends(&a.config), backends(&b.config)), (Some(2), Some(1)));
    // An upgrade replaces one daemon and leaves the other alone.
    let upgraded = run_for(&lab, &["upgrade"], &b.config);
    assert_eq!(upgraded.code, Some(0), "{upgraded:?}");
    second.wait_gone(LONG);
    assert_eq!(process(&lab, &a.config), first);
    first.signal(Signal::SIGQUIT);
    start(&lab, &a, &["-u"]);
    first.wait_gone(LONG);
    let (first, second) = (process(&lab, &a.config), process(&lab, &b.config));
    let stopped = run_for(&lab, &["stop"], &b.config);
    assert_eq!(stopped.code, Some(0), "{stopped:?}");
    second.wait_gone(LONG);
    let left = runtime_files(&lab);
    assert!(left.len() == 2 && left.iter().all(|name| name.contains(".a-")), "{left:?}");
    assert_eq!(tests::get(a.listener, "/").unwrap().status, 200);
    first.signal(Signal::SIGTERM);
    first.wait_gone(LONG);
    assert!(runtime_files(&lab).is_empty(), "{:?}", runtime_files(&lab));
}

#[test]
fn a_second_start_with_the_same_file_says_that_the_daemon_already_runs() {
    let lab = lab();
    let origin = Origin::start("one");
    let a = instance(&lab, "a", &[&origin], "");
    let unready = run_for(&lab, &["healthcheck"], &a.config);
    assert!(unready.code == Some(1) && unready.stderr.ends_with(": connection refused\n"), "{unready:?}");
    start(&lab, &a, &[]);
    let pid = process(&lab, &a.config).0;
    let file = path_str(&a.config);
    for (arguments, code) in [(&[][..], 1), (&["-t"], 2)] {
        let second = run_for(&lab, arguments, &a.config);
        assert_eq!(second.code, Some(code), "{second:?}");
        let said = format!(
            "error: load_balancer already runs as process {pid} with {file}: run `load_balancer reload"
        );
        assert!(second.stderr.contains(&said), "{second:?}");
    }
    let b = instance(&lab, "b", &[&origin], "");
    let text = fs::read_to_string(&b.config).unwrap();
    fs::write(&b.config, text.replace(&b.listener.to_string(), &a.listener.to_string())).unwrap();
    let other = run_for(&lab, &[], &b.config);
    assert_eq!(other.code, Some(1), "{other:?}");
    assert!(other.stderr.starts_with("error: cannot listen on "), "{other:?}");
    assert_eq!(run_for(&lab, &["stop"], &a.config).code, Some(0));
}

#[test]
fn a_subcommand_never_reaches_the_daemon_of_another_file() {
    let lab = lab();
    let origin = Origin::start("one");
    let a = instance(&lab, "a", &[&origin], "");
    let b = instance(&lab, "b", &[&origin], "");
    start(&lab, &a, &[]);
    let generation = || status(&lab, &a.config)["config"]["last_reload"].clone();
    let before = generation();
    let (a_file, b_file) = (path_str(&a.config), path_str(&b.config));
    let missed = run_for(&lab, &["reload"], &b.config);
    assert_eq!(missed.code, Some(1), "{missed:?}");
    for said in [&format!("no daemon runs with {b_file}"), "control.a-", &format!("with {a_file}")] {
        assert!(missed.stderr.contains(said), "{said}: {missed:?}");
    }
    let socket =
        missed.stderr.split_whitespace().find(|word| word.contains("control.a-")).unwrap().to_owned();
    let refused = run_for(&lab, &["reload", "--socket", &socket], &b.config);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains(a_file) && refused.stderr.contains("--socket"), "{refused:?}");
    // The key `control.socket` leads to the daemon, too.
    let keyed = instance(&lab, "keyed", &[&origin], &format!("control: {{socket: {socket}}}\n"));
    let refused = run_for(&lab, &["upgrade"], &keyed.config);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    let refused = run_for(&lab, &["stop"], &keyed.config);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert_eq!(generation(), before, "the daemon has not reloaded");
    let alone = lab.run(&["reload", "--socket", &socket]);
    assert_eq!(alone.code, Some(0), "{alone:?}");
    assert_ne!(generation(), before);
}

#[test]
fn without_a_file_a_subcommand_lists_the_daemons_that_run() {
    let lab = lab();
    let origin = Origin::start("one");
    let a = instance(&lab, "a", &[&origin], "");
    start(&lab, &a, &[]);
    let missed = lab.run(&["status"]);
    assert_eq!(missed.code, Some(1), "{missed:?}");
    for said in ["control.sock, the default", "control.a-", &format!("with {}", path_str(&a.config))] {
        assert!(missed.stderr.contains(said), "{said}: {missed:?}");
    }
}

#[test]
fn a_second_start_names_every_address_that_clashes() {
    let lab = lab();
    let origin = Origin::start("one");
    let a = instance(&lab, "a", &[&origin], "");
    start(&lab, &a, &[]);
    let text = fs::read_to_string(&a.config).unwrap();
    let copy = lab.write("copy.yaml", &text.replace("[{address", "[{name: web, address"));
    for arguments in [&["-t"][..], &[], &["-d"]] {
        let finished = lab.run(&[arguments, &["-c", path_str(&copy)]].concat());
        assert!(matches!(finished.code, Some(1 | 2)), "{finished:?}");
        for said in [
            &format!("{} (listener `web`)", a.listener),
            "(`metrics.address`)",
            "in use",
            "metrics: {address",
        ] {
            assert!(finished.stderr.contains(said), "{said}: {finished:?}");
        }
    }
    assert_eq!(tests::get(a.listener, "/").unwrap().status, 200);
}

/// The previous version used names that do not contain the name of the configuration file.
#[test]
fn a_daemon_with_the_file_names_of_the_previous_version_is_found_and_leaves_no_files() {
    let lab = lab();
    let origin = Origin::start("one");
    let a = instance(&lab, "a", &[&origin], "");
    let now = fs::read_to_string(&a.config).unwrap();
    let directory = if lab.runtime_directory().starts_with("/proc") {
        "/run/load_balancer".to_owned()
    } else {
        lab.runtime_directory().display().to_string()
    };
    let names = format!(
        "pid_file: {directory}/load_balancer.pid\nupgrade_sock: {directory}/upgrade.sock\n\
         control: {{socket: {directory}/control.sock}}\n"
    );
    fs::write(&a.config, names + &now).unwrap();
    start(&lab, &a, &[]);
    fs::write(&a.config, now).unwrap();
    let old = process(&lab, &a.config);
    assert_eq!(runtime_files(&lab), ["control.sock", "load_balancer.pid"]);
    let other = instance(&lab, "b", &[&origin], "");
    assert_eq!(run_for(&lab, &["reload"], &other.config).code, Some(1), "the daemon uses another file");
    old.signal(Signal::SIGQUIT);
    let refused = lab.run(&["-u", "-c", path_str(&other.config)]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains(path_str(&a.config)) && refused.stderr.contains("`upgrade_sock`"),
        "{refused:?}"
    );
    start(&lab, &a, &["-u"]);
    old.wait_gone(LONG);
    let new = process(&lab, &a.config);
    assert_ne!(new, old);
    let files = runtime_files(&lab);
    assert!(files.len() == 2 && files.iter().all(|name| name.contains(".a-")), "{files:?}");
    new.signal(Signal::SIGTERM);
    new.wait_gone(LONG);
    assert!(runtime_files(&lab).is_empty(), "{:?}", runtime_files(&lab));
}

#[test]
fn with_the_same_upgrade_sock_a_daemon_can_be_replaced_by_one_with_another_file() {
    let lab = lab();
    let origin = Origin::start("one");
    let head = format!("upgrade_sock: {}\n", lab.path("upgrade.sock").display());
    let a = instance(&lab, "a", &[&origin], &head);
    start(&lab, &a, &[]);
    let old = process(&lab, &a.config);
    let b = Instance { config: lab.path("b.yaml"), listener: a.listener };
    fs::copy(&a.config, &b.config).unwrap();
    old.signal(Signal::SIGQUIT);
    start(&lab, &b, &["-u"]);
    old.wait_gone(LONG);
    assert_ne!(process(&lab, &b.config), old);
    let files = runtime_files(&lab);
    assert!(files.iter().all(|name| name.contains(".b-")), "files of the old process are left: {files:?}");
}

#[test]
fn a_daemon_is_found_after_the_link_to_the_directory_of_its_file_was_moved() {
    let lab = lab();
    let origin = Origin::start("one");
    let link = lab.path("current");
    let point = |version: &str| {
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(version, &link).unwrap();
    };
    for version in ["v1", "v2"] {
        fs::create_dir(lab.path(version)).unwrap();
    }
    let a = instance(&lab, "v1/lb", &[&origin], "");
    fs::copy(&a.config, lab.path("v2/lb.yaml")).unwrap();
    point("v1");
    let a = Instance { config: link.join("lb.yaml"), listener: a.listener };
    start(&lab, &a, &[]);
    let first = status(&lab, &a.config);
    let canonical = lab.directory().canonicalize().unwrap().join("v1/lb.yaml");
    assert_eq!(first["config"]["canonical_file"], path_str(&canonical));
    point("v2");
    assert_eq!(status(&lab, &a.config)["pid"], first["pid"]);
    assert_eq!(status(&lab, &canonical)["pid"], first["pid"]);
    for words in [&["reload"][..], &["healthcheck"], &["stop"]] {
        let finished = run_for(&lab, words, &a.config);
        assert_eq!(finished.code, Some(0), "{words:?}: {finished:?}");
    }
}

#[test]
fn root_is_shown_the_daemons_of_other_users_with_their_names() {
    let Some(lab) = Lab::of_root() else { return };
    let origin = Origin::start("one");
    let a = instance(&lab, "a", &[&origin], "");
    let started = lab.finish(lab.command_as("nobody"), &["-d", "-c", path_str(&a.config)]);
    assert_eq!(started.code, Some(0), "{started:?}");
    let directory = path_str(lab.directory()).to_owned();
    let run_in = |words: &[&str]| lab.run_with(words, &[("TMPDIR", &directory)]);
    let missed = run_in(&["status", "-c", path_str(&a.config)]);
    assert_eq!(missed.code, Some(1), "{missed:?}");
    assert!(missed.stderr.contains("of the user `nobody`: use `--socket`"), "{missed:?}");
    let socket = missed.stderr.split_whitespace().find(|word| word.contains("/load_balancer-")).unwrap();
    let stopped = run_in(&["stop", "--socket", socket, "-c", path_str(&a.config)]);
    assert_eq!(stopped.code, Some(0), "{stopped:?}");
}
