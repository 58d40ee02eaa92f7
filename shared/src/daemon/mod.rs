//! Composition root: starts a process that serves a plan, and runs it until its end.
//!
//! [`serve`] follows the order of steps that [`crate::process`] describes. It has four steps, each in a module of its
//! own:
//!
//! 1. `acquire`: the process takes its logs, files, sockets and user. What is missing or in use fails here.
//! 2. `compose`: the services are created. The proxy, the prober and the metrics share one
//!    `Arc<LoadBalancer<Policy>>` for each pool.
//! 3. `order`: Pingora's server receives the services with their dependencies, and runs them.
//! 4. `announce`: the last service reports that the daemon serves.
//!
//! `host` and `operations` connect the signals and the control socket with the composed services.

mod acquire;
mod announce;
mod compose;
mod gate;
mod host;
mod lookout;
mod moving;
mod operations;
mod order;
mod preflight;
mod resources;

use std::io::{self, Write};

use pingora::server::Server;
use pingora::services::ServiceHandle;

use crate::config::{Plan, Problems};
use crate::operator::Provenance;
use crate::process;
use crate::process::background::{self, Role};
use crate::process::files::{Unusable, reason};
use crate::process::limits::{TooFewOpenFiles, TooFewThreads, no_thread};
use crate::process::logging::LogError;
use crate::process::pid_file::PidFileError;
use crate::process::privileges::PrivilegeError;
use crate::process::runtime::DirectoryError;
use crate::process::sockets::ListenError;
use crate::process::successor::Predecessor;
use crate::process::upgrade::UpgradeError;
use crate::purpose::Purpose;
use acquire::{Base, Held};
use compose::Composed;
pub(crate) use compose::Services;
use order::Ordered;
pub(crate) use preflight::preflight;

/// Mode in which the process runs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mode {
    /// Whether the process runs in the background.
    pub daemon: bool,
    /// Whether the process takes over the sockets of a running one.
    pub upgrade: bool,
}

/// Reason why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("cannot run in the background: {}", no_thread(.0))]
    Background(#[source] io::Error),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("cannot install signal handlers: {}", reason(.0))]
    Signals(#[source] io::Error),
    #[error(transparent)]
    OpenFiles(#[from] TooFewOpenFiles),
    #[error(transparent)]
    Threads(#[from] TooFewThreads),
    #[error("cannot find the executable of this process: {}", reason(.0))]
    Executable(#[source] io::Error),
    #[error(transparent)]
    RuntimeDirectory(#[from] DirectoryError),
    #[error("cannot open the access log {0}")]
    AccessLog(#[source] Unusable),
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
    #[error("cannot read random numbers from /dev/urandom: {}", reason(.0))]
    Random(#[source] io::Error),
    #[error("cannot copy the descriptor of a listener: {0}")]
    Descriptors(#[source] io::Error),
    #[error("cannot register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Function that adds services to those of the daemon, as the demo does. It returns the services that must be ready
/// before the first health checks.
pub(crate) type Extra<'a> = dyn FnOnce(&mut Server, &Services) -> Vec<ServiceHandle> + 'a;

/// Parameters of a start.
#[derive(Default)]
pub(crate) struct Start<'a> {
    /// The mode in which the process runs.
    pub mode: Mode,
    /// The purpose of the process.
    pub purpose: Purpose,
    /// The source of the configuration.
    pub provenance: Provenance,
    /// The warnings about the configuration.
    pub warnings: Problems,
    /// The names of listeners that never have an access log, regardless of the configuration.
    pub silent: &'a [&'static str],
    /// The description of the old process that started this one; `None` without an upgrade.
    pub predecessor: Option<Predecessor>,
}

/// Serves `plan` until the process must end, and returns the exit code.
///
/// # Errors
/// If the daemon cannot start. A failed start does not affect other processes.
pub(crate) fn serve(plan: &Plan, start: Start<'_>, extra: Box<Extra<'_>>) -> Result<u8, StartError> {
    let announcer = match enter_background(plan, &start)? {
        Role::Parent(code) => return Ok(code),
        Role::Serve(announcer) => announcer,
    };
    let base = Base::new(plan)?;
    base.log_error(|| {
        let held = Held::acquire(plan, &start, announcer, &base)?;
        let composed = Composed::compose(plan, start, &held)?;
        let ordered = Ordered::order(plan, composed, held, extra);
        Ok(ordered.run_and_announce())
    })
}

/// Continues in the background if the mode asks for it. The parent returns after the start.
fn enter_background(plan: &Plan, start: &Start<'_>) -> Result<Role, StartError> {
    let input = start.provenance.input().cloned();
    let role = background::enter(start.mode.daemon, input.as_deref()).map_err(StartError::Background)?;
    if matches!(role, Role::Parent(0)) && plan.server.error_log.is_none() {
        warn_without_log();
    }
    Ok(role)
}

/// Warns that the daemon now runs without a log, so that its messages are lost.
fn warn_without_log() {
    let text = "warning: the daemon runs in the background without a log; to write one, add a line such as \
                `error_log: /var/log/load_balancer/error.log` to the configuration\n";
    process::write_message(|| {
        // The write fails if the terminal has closed.
        let _ = io::stderr().lock().write_all(text.as_bytes());
    });
}
