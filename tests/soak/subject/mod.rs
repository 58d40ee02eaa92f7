//! Who is put to the test: started, changed and watched in the same way, each configured as its own documentation advises.

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

/// Longest that a change may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A load balancer under test. Errors are what it said when it refused.
pub(crate) trait Subject {
    /// As the report calls it, with its version.
    fn name(&self) -> String;
    /// Starts it with this setup.
    fn start(&mut self, setup: &Setup) -> Result<(), String>;
    /// Puts another setup into effect, in the way that costs least.
    fn reload(&mut self, setup: &Setup) -> Result<(), String>;
    /// Puts a new process of the program in its place, with this setup.
    fn upgrade(&mut self, setup: &Setup) -> Result<(), String>;
    /// Changes a backend at run time; `setup` is what that amounts to. After [`Order::Drain`] the caller waits until the backend
    /// has nothing to do, unless this has waited for it.
    fn order(&mut self, order: &Order, setup: &Setup) -> Result<Ordered, String>;
    /// What it is made of in rest.
    fn shape(&self) -> Shape;
    /// Where it runs, for whoever watches it.
    fn place(&self) -> Place;
    /// Tells it to end.
    fn stop(&mut self);
}

/// How an order was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ordered {
    /// By a command, in the running process.
    Live,
    /// By a new configuration file, since it takes no such commands.
    ByReload,
}

/// What a subject is made of in rest, and how it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Number of its processes.
    pub(crate) processes: usize,
    /// Whether a reload puts new processes in the place of the old ones.
    pub(crate) reload_replaces: bool,
}

/// The directory of a subject and the file that names its process.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Every process of the subject was started in it, or with a path below it.
    pub(crate) directory: PathBuf,
    /// Names the one that others are under.
    pub(crate) pid_file: PathBuf,
}

// ===== impl Place =====

impl Place {
    fn of(lab: &Lab, pid_file: &str) -> Self {
        Self { directory: lab.directory().to_owned(), pid_file: lab.path(pid_file) }
    }

    /// All its processes.
    pub(crate) fn processes(&self) -> Vec<Process> {
        process::of(&self.directory)
    }

    /// The process that the pid file names.
    pub(crate) fn main(&self) -> Option<Process> {
        let text = fs::read_to_string(&self.pid_file).ok()?;
        text.trim().parse().ok().map(Process).filter(|process| process.alive())
    }

    /// The processes that this one has started.
    fn children(&self, of: Process) -> Vec<Process> {
        self.processes().into_iter().filter(|process| process.parent() == Some(of)).collect()
    }
}

/// Puts values in the place of `@NAMES@`.
fn fill(template: &str, values: &[(&str, String)]) -> String {
    let mut text = template.to_owned();
    for (name, value) in values {
        text = text.replace(&format!("@{name}@"), value);
    }
    let left = text.lines().find(|line| !line.trim_start().starts_with('#') && line.contains('@'));
    assert_eq!(left, None, "the template has a name that nobody fills in");
    text
}

/// The result of a program that ends by itself.
fn finish(program: &str, arguments: &[&str], directory: &Path) -> Result<String, String> {
    let mut command = std::process::Command::new(program);
    let output = command.args(arguments).current_dir(directory).output();
    let output = output.map_err(|error| format!("cannot run {program} ({error}): see `make setup`"))?;
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(said) } else { Err(format!("{program} {arguments:?}: {}", said.trim())) }
}

/// Waits for a change that somebody else carries out.
pub(crate) fn awaited<T>(what: &str, attempt: impl FnMut() -> Option<T>) -> Result<T, String> {
    wait::poll(PATIENCE, attempt).ok_or_else(|| format!("waited {PATIENCE:?} in vain until {what}"))
}
