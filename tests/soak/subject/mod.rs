//! The programs under test. All are started, changed and observed in the same way, and each is configured as its
//! documentation advises.

mod haproxy;
mod load_balancer;
mod nginx;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tests::process::{self, Process};
use tests::{Lab, wait};

use crate::setup::{Order, Setup};

pub(crate) use haproxy::Haproxy;
pub(crate) use load_balancer::LoadBalancer;
pub(crate) use nginx::Nginx;

/// The longest time that a change may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A load balancer under test. An error contains the output of the program.
pub(crate) trait Subject {
    /// Returns the name and version for the report.
    fn name(&self) -> String;
    /// Starts the program with this setup.
    fn start(&mut self, setup: &Setup) -> Result<(), String>;
    /// Puts another setup into effect by the cheapest method of the program.
    fn reload(&mut self, setup: &Setup) -> Result<(), String>;
    /// Replaces the process by a new one, with this setup.
    fn upgrade(&mut self, setup: &Setup) -> Result<(), String>;
    /// Changes a backend at run time. `setup` is the setup after the change. After [`Order::Drain`], the caller waits
    /// until the backend has no request in flight.
    fn order(&mut self, order: &Order, setup: &Setup) -> Result<Ordered, String>;
    /// Returns the processes of an idle subject.
    fn shape(&self) -> Shape;
    /// Returns the directory and PID file of the subject.
    fn place(&self) -> Place;
    /// Sends the signal that stops the subject gracefully.
    fn stop(&mut self);
}

/// The way in which a change at run time was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ordered {
    /// By a command, in the running process.
    Live,
    /// By a new configuration file, because the program has no such command.
    ByReload,
}

/// The processes of an idle subject, and whether a reload replaces them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// The number of processes.
    pub(crate) processes: usize,
    /// Whether a reload replaces the processes.
    pub(crate) reload_replaces: bool,
}

/// The directory and the PID file of a subject.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The directory in which every process of the subject was started, or below which it has a path.
    pub(crate) directory: PathBuf,
    /// The file that contains the PID of the main process.
    pub(crate) pid_file: PathBuf,
}

// ===== impl Place =====

impl Place {
    fn of(lab: &Lab, pid_file: &str) -> Self {
        Self { directory: lab.directory().to_owned(), pid_file: lab.path(pid_file) }
    }

    /// Returns all processes of the subject.
    pub(crate) fn processes(&self) -> Vec<Process> {
        process::of(&self.directory)
    }

    /// Returns the process that the PID file names.
    pub(crate) fn main(&self) -> Option<Process> {
        let text = fs::read_to_string(&self.pid_file).ok()?;
        text.trim().parse().ok().map(Process).filter(|process| process.alive())
    }

    /// Returns the child processes of `of`.
    fn children(&self, of: Process) -> Vec<Process> {
        self.processes().into_iter().filter(|process| process.parent() == Some(of)).collect()
    }
}

/// Replaces each `@NAME@` by its value.
pub(crate) fn fill(template: &str, values: &[(&str, String)]) -> String {
    let mut text = template.to_owned();
    for (name, value) in values {
        text = text.replace(&format!("@{name}@"), value);
    }
    let left = text.lines().find(|line| !line.trim_start().starts_with('#') && line.contains('@'));
    assert_eq!(left, None, "a name in the template has no value");
    text
}

/// Runs a program until it exits, and returns its output.
fn finish(program: &str, arguments: &[&str], directory: &Path) -> Result<String, String> {
    let mut command = std::process::Command::new(program);
    let output = command.args(arguments).current_dir(directory).output();
    let output =
        output.map_err(|error| format!("cannot run {program}: {error}; run `make setup` to install it"))?;
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(said) } else { Err(format!("{program} {arguments:?}: {}", said.trim())) }
}

/// Waits until `attempt` returns a value, with [`LIMIT`] as the deadline.
pub(crate) fn awaited<T>(what: &str, attempt: impl FnMut() -> Option<T>) -> Result<T, String> {
    wait::poll(LIMIT, attempt).ok_or_else(|| format!("timed out after {LIMIT:?} while waiting until {what}"))
}
