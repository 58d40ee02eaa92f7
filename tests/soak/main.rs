//! The soak run: a load of every kind, of which every byte is checked, while the daemon is changed in every way there is.
//!
//! ```text
//!   clients ──> Subject (load_balancer | nginx | HAProxy) ──> Origins (come, go and die)
//!      │            ^ reload, upgrade, orders                    ^ kill, restart
//!   Ledger ─┐       └────────────── Run: the script ─────────────┘
//!   Watch ──┴──> Outcome ──> report, faults
//! ```
//!
//! `make test` runs it for half a minute on the daemon, `make soak` for minutes, and on nginx and HAProxy as well, and writes
//! `target/soak/report.md` and `report.json`. `SOAK="nginx haproxy"` chooses who is run. The same seed gives the same script.
//!
//! The invariant: what every subject gets and what is counted is the same; only `subject/` knows whom it is dealing with.

#![expect(clippy::print_stdout, reason = "the report is for whoever runs it")]

mod clients;
mod control;
mod ledger;
mod report;
mod run;
mod script;
mod setup;
mod subject;
mod watch;

use std::path::Path;

use run::Outcome;
use script::Plan;
use subject::{Haproxy, LoadBalancer, Nginx, Subject};

const WRITABLE: &str = "cargo's directory is writable";

#[test]
fn nothing_is_lost_while_the_daemon_changes() {
    let mut daemon = LoadBalancer::new();
    let outcome = run::run(&Plan::short(), &mut daemon).unwrap();
    println!("{}", report::markdown(std::slice::from_ref(&outcome)));
    let faults = report::faults(&outcome);
    assert!(faults.is_empty(), "{faults:#?}\n{}", daemon.log());
}

#[test]
#[ignore = "takes half an hour: `make soak`"]
fn the_long_run_and_the_same_on_nginx_and_haproxy() {
    let wanted = std::env::var("SOAK").unwrap_or_default();
    let wanted = if wanted.is_empty() { "load_balancer nginx haproxy" } else { wanted.as_str() };
    let plan = if std::env::var_os("SOAK_SHORT").is_some() { Plan::short() } else { Plan::long() };
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut faults = Vec::new();
    for name in wanted.split_whitespace() {
        let mut subject: Box<dyn Subject> = match name {
            "load_balancer" => Box::new(LoadBalancer::new()),
            "nginx" => Box::new(Nginx::new()),
            "haproxy" => Box::new(Haproxy::new()),
            other => panic!("SOAK knows load_balancer, nginx and haproxy, not {other}"),
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
}

/// Also what is known so far: a run takes long.
fn write(outcomes: &[Outcome]) {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it lies in the target directory");
    let directory = target.join("soak");
    std::fs::create_dir_all(&directory).expect(WRITABLE);
    std::fs::write(directory.join("report.md"), report::markdown(outcomes)).expect(WRITABLE);
    std::fs::write(directory.join("report.json"), format!("{:#}", report::json(outcomes))).expect(WRITABLE);
    println!("written: {}", directory.join("report.md").display());
}
