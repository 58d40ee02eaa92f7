//! The daemon of this project, in the background, as its documentation describes.

use std::path::{Path, PathBuf};

use tests::daemon::path_str;
use tests::{Lab, Signal};

use super::{Ordered, Place, Shape, Subject, fill};
use crate::control;
use crate::setup::{Order, Policy, Pool, Setup};

/// The configuration. Names between `@` are replaced by values.
const TEMPLATE: &str = include_str!("../load_balancer.yaml");

/// A daemon in the background. Dropping its [`Lab`] kills its processes.
pub(crate) struct LoadBalancer {
    lab: Lab,
    upgrades: u32,
}

impl LoadBalancer {
    /// Creates a subject that is not started.
    pub(crate) fn new() -> Self {
        Self { lab: Lab::new(), upgrades: 0 }
    }

    /// Returns the whole log.
    pub(crate) fn log(&self) -> String {
        self.lab.error_log()
    }

    /// Runs the program in the background.
    fn run(&self, file: &Path, more: &[&str]) -> Result<(), String> {
        let finished = self.lab.run(&[&["-c", path_str(file), "-d"], more].concat());
        (finished.code == Some(0)).then_some(()).ok_or_else(|| format!("{finished:?}\n{}", self.log()))
    }

    fn write(&self, setup: &Setup) -> PathBuf {
        let listeners =
            setup.addresses().into_iter().map(|address| format!("  - {{address: \"{address}\"}}\n"));
        let listeners = format!("listeners:\n{}", listeners.collect::<String>());
        let log = if setup.access_log { "json" } else { "none" };
        let path = if setup.access_log { "path: @DIRECTORY@/access.log" } else { "" };
        let [web, frail, sockets] = setup.pools.each_ref().map(backends);
        let [web_policy, frail_policy, sockets_policy] = setup.pools.each_ref().map(policy);
        let canary = if setup.has_canary { "- {match: {host: canary.test}, pool: sockets}" } else { "" };
        let values = [
            ("LOG_FORMAT", log.to_owned()),
            ("LOG_PATH", path.to_owned()),
            ("DIRECTORY", self.lab.directory().display().to_string()),
            ("DRAIN", format!("{}s", setup.drain.as_secs())),
            ("WEB_BACKENDS", web),
            ("WEB_POLICY", web_policy),
            ("FRAIL_BACKENDS", frail),
            ("FRAIL_POLICY", frail_policy),
            ("SOCKETS_BACKENDS", sockets),
            ("SOCKETS_POLICY", sockets_policy),
            ("MARKER", setup.marker.to_string()),
            ("GENERATION", setup.generation.to_string()),
            ("RESPONSE_TIMEOUT", format!("{}s", setup.response_timeout)),
            ("CHECK_INTERVAL", format!("{}ms", setup.check_interval)),
            ("CANARY_ROUTE", canary.to_owned()),
        ];
        self.lab.config_with(&listeners, &fill(TEMPLATE, &values))
    }
}

fn backends(pool: &Pool) -> String {
    let members = pool.members.iter();
    let written =
        members.map(|member| format!("{{address: \"{}\", weight: {}}}", member.address, member.weight));
    written.collect::<Vec<_>>().join(", ")
}

fn policy(pool: &Pool) -> String {
    let more = match pool.policy {
        Policy::ConsistentHash | Policy::Maglev => ", hash_on: uri",
        _ => "",
    };
    format!("policy: {}{more}", pool.policy.name())
}

impl Subject for LoadBalancer {
    fn name(&self) -> String {
        "load_balancer".to_owned()
    }

    fn start(&mut self, setup: &Setup) -> Result<(), String> {
        let file = self.write(setup);
        self.run(&file, &[])
    }

    fn reload(&mut self, setup: &Setup) -> Result<(), String> {
        control::reload(&self.lab, &self.write(setup))
    }

    /// Alternates between the subcommand and the procedure of Pingora's quick start: SIGQUIT, then a process with `-u`.
    fn upgrade(&mut self, setup: &Setup) -> Result<(), String> {
        let file = self.write(setup);
        self.upgrades += 1;
        if self.upgrades % 2 == 1 {
            return control::upgrade(&self.lab, &file);
        }
        let old = self.place().main().ok_or("the daemon has exited")?;
        old.signal(Signal::SIGQUIT);
        self.run(&file, &["-u"])
    }

    fn order(&mut self, order: &Order, _setup: &Setup) -> Result<Ordered, String> {
        control::order(&self.lab, &self.lab.path("conf.yaml"), order).map(|()| Ordered::Live)
    }

    fn shape(&self) -> Shape {
        Shape { processes: 1, reload_replaces: false }
    }

    fn place(&self) -> Place {
        Place::of(&self.lab, "lb.pid")
    }

    fn stop(&mut self) {
        if let Some(process) = self.place().main() {
            process.signal(Signal::SIGTERM);
        }
    }
}
