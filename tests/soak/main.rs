//! The soak run: many kinds of load, in which every byte is checked, during reloads, upgrades and changes at run time.
//!
//! ```text
//!   clients ──> Subject (load_balancer | nginx | HAProxy) ──> Origins (are added, removed and killed)
//!      │            ^ reload, upgrade, orders                    ^ kill, restart
//!   Ledger ─┐       └────────────── Run: the script ─────────────┘
//!   Watch ──┴──> Outcome ──> report, faults
//! ```
//!
//! `make test` runs it for half a minute on the daemon. `make soak` runs it for minutes, also on nginx and HAProxy, and
//! writes `target/soak/report.md` and `report.json`. `SOAK="nginx haproxy"` chooses the subjects. A complete long run
//! with `SOAK_WRITE` set also replaces its part of `RESULTS.md` beside this file. One seed always gives one script.
//! `SOAK=attack` runs the daemon under attack instead: see [`attack`].
//!
//! Every subject gets the same load and is counted in the same way. Only `subject/` depends on the program under test.

#![expect(clippy::print_stdout, reason = "the report is printed for the person who runs it")]

mod attack;
mod clients;
mod control;
mod ledger;
mod report;
mod run;
mod script;
mod setup;
mod subject;
mod watch;

use std::path::{Path, PathBuf};

use run::Outcome;
use script::Plan;
use serde_json::Value;
use subject::{Haproxy, LoadBalancer, Nginx, Subject};

/// The subjects of a complete run.
const ALL: &str = "load_balancer nginx haproxy";
const CHECKOUT: &str = "the repository is writable";
const WRITABLE: &str = "cargo's directory is writable";

#[test]
fn no_request_fails_during_reloads_and_upgrades() {
    let mut daemon = LoadBalancer::new();
    let outcome = run::run(&Plan::short(), &mut daemon).unwrap();
    println!("{}", report::markdown(std::slice::from_ref(&outcome)));
    let faults = report::faults(&outcome);
    assert!(faults.is_empty(), "{faults:#?}\n{}", daemon.log());
}

#[test]
#[ignore = "takes half an hour: `make soak`"]
fn no_request_fails_during_the_long_run() {
    let wanted = std::env::var("SOAK").unwrap_or_default();
    let wanted = if wanted.is_empty() { ALL } else { wanted.as_str() };
    let plan = if std::env::var_os("SOAK_SHORT").is_some() { Plan::short() } else { Plan::long() };
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut faults = Vec::new();
    for name in wanted.split_whitespace() {
        let mut subject: Box<dyn Subject> = match name {
            "load_balancer" => Box::new(LoadBalancer::new()),
            "nginx" => Box::new(Nginx::new()),
            "haproxy" => Box::new(Haproxy::new()),
            other => panic!("unknown subject {other} in SOAK: use load_balancer, nginx or haproxy"),
        };
        println!("{name}: {} steps within {:?}", plan.steps().len(), plan.changes_within);
        let outcome = run::run(&plan, subject.as_mut()).unwrap();
        if name == "load_balancer" {
            faults = report::faults(&outcome);
        }
        outcomes.push(outcome);
        write(&outcomes);
    }
    println!("\n{}", report::markdown(&outcomes));
    assert!(faults.is_empty(), "{faults:#?}");
    let is_complete = wanted == ALL && std::env::var_os("SOAK_SHORT").is_none();
    if is_complete && std::env::var_os("SOAK_WRITE").is_some() {
        publish(&outcomes);
    }
}

/// Replaces the published results of the long run.
fn publish(outcomes: &[Outcome]) {
    let path = published();
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    let (_, attack) = parts(&before);
    std::fs::write(&path, [&report::results(outcomes, &today(), &machine()), attack].concat())
        .expect(CHECKOUT);
    println!("written: {}", path.display());
}

/// Replaces the published section about the run under attack.
fn publish_attack(section: &str) {
    let path = published();
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    let (long_run, _) = parts(&before);
    std::fs::write(&path, format!("{long_run}\n{section}")).expect(CHECKOUT);
    println!("written: {}", path.display());
}

fn published() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("soak/RESULTS.md")
}

/// Returns the published text about the long run, and the rest, which begins with the empty line before its heading.
fn parts(published: &str) -> (&str, &str) {
    published.split_at(published.find("\n## Under attack\n").unwrap_or(published.len()))
}

fn today() -> String {
    let date = std::process::Command::new("date").args(["-u", "+%F"]).output();
    String::from_utf8_lossy(&date.expect("coreutils are installed").stdout).trim().to_owned()
}

/// The number and the model of the processors.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        processors.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(": "));
    model.map_or_else(|| format!("{cores} cores"), |(_, model)| format!("{cores} cores ({model})"))
}

/// Writes the report. It is called after each subject, because a run takes long and a later one may fail.
fn write(outcomes: &[Outcome]) {
    write_files("report", &report::markdown(outcomes), &report::json(outcomes));
}

/// Writes results below the target directory.
fn write_files(name: &str, markdown: &str, json: &Value) {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is in the target directory");
    let directory = target.join("soak");
    std::fs::create_dir_all(&directory).expect(WRITABLE);
    std::fs::write(directory.join(format!("{name}.md")), markdown).expect(WRITABLE);
    std::fs::write(directory.join(format!("{name}.json")), format!("{json:#}")).expect(WRITABLE);
    println!("written: {}", directory.join(format!("{name}.md")).display());
}

#[test]
fn the_published_page_has_two_parts() {
    let page = "# Soak test\n\n| |\n\n## Under attack\n\nMeasured\n";
    assert_eq!(parts(page), ("# Soak test\n\n| |\n", "\n## Under attack\n\nMeasured\n"));
    assert_eq!(parts("# Soak test\n"), ("# Soak test\n", ""));
}
