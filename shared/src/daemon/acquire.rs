//! First step of a start: acquires everything that can be missing or in use, before any service exists.
//!
//! A failure in this step affects no other process. An old process that has already handed its sockets over receives
//! the reason and continues to serve.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::resources::{
    absent_sources, check_runtime_dir, control_spec, endpoints, take_runtime_dir, threads,
    warn_without_control,
};
use super::{Mode, Start, StartError};
use crate::config::{self, Plan};
use crate::operator::{self, ConfigFile, RestoredState};
use crate::process::background::Announcer;
use crate::process::files::{Unusable, take_log};
use crate::process::handlers::Early;
use crate::process::lifecycle::Outcome;
use crate::process::limits;
use crate::process::logging::{self, ErrorLog, LogError, Logging, Verbosity};
use crate::process::pid_file::{PidFile, PidFileError, Prepared};
use crate::process::privileges::{self, Identity};
use crate::process::sockets::{InheritedSocket, Sockets};
use crate::process::successor::{Launch, Predecessor, Started};
use crate::process::systemd::Supervisor;
use crate::process::upgrade::{self, About, Found, PredecessorLink, Search};
use crate::serving::logs::file_of;
use crate::serving::{AccessLogs, Logs};

/// User and log of the process, which every later step needs.
pub(super) struct Base {
    /// The user to run as; `None` if the configuration does not set one.
    identity: Option<Identity>,
    error_log: Option<Arc<ErrorLog>>,
    verbosity: Verbosity,
    /// The guard writes the last lines before the process ends.
    _guard: lb_service::lines::LinesGuard,
}

/// Resources of the process.
pub(super) struct Held {
    pub(super) announcer: Announcer,
    pub(super) early: Early,
    pub(super) launch: Launch,
    pub(super) supervisor: Supervisor,
    pub(super) verbosity: Verbosity,
    pub(super) logs: Logs,
    pub(super) files: Files,
    /// The PID file that replaces the one of the old process; `None` unless this is an upgrade.
    pub(super) prepared: Option<Prepared>,
    /// The connection to the old process; `None` unless this is an upgrade, or if the old process has ended.
    pub(super) link: Option<PredecessorLink>,
}

/// Files and sockets that the process releases at its end. Clones share them.
#[derive(Clone)]
pub(super) struct Files {
    pub(super) sockets: Arc<Sockets>,
    /// The PID file; `None` without one, and in an upgrade until the announcement.
    pub(super) pid_file: Arc<Mutex<Option<PidFile>>>,
}

/// Files and sockets that this process has acquired or, in an upgrade, received.
struct Taken {
    files: Files,
    prepared: Option<Prepared>,
    link: Option<PredecessorLink>,
}

/// PID files of a start.
struct PidFiles {
    own: Option<PidFile>,
    prepared: Option<Prepared>,
}

// === impl Base ===

impl Base {
    /// Starts the log.
    ///
    /// # Errors
    /// If the user does not exist or the log cannot be opened.
    pub(super) fn new(plan: &Plan) -> Result<Self, StartError> {
        let server = &plan.server;
        // The user must be known before a file is created, which would otherwise belong to the wrong user.
        let identity = Identity::required(server.user.as_deref(), server.group.as_deref())?;
        let logging = logging::init(server.error_log.as_deref(), identity.as_ref(), plan.log_level.as_ref())?;
        let Logging { error_log, verbosity, guard } = logging;
        Ok(Self { identity, error_log: error_log.map(Arc::new), verbosity, _guard: guard })
    }

    /// Runs `steps`. If they fail, the log contains the error, and the caller can print it on the terminal.
    pub(super) fn log_error(&self, steps: impl FnOnce() -> Result<u8, StartError>) -> Result<u8, StartError> {
        let served = steps();
        if let (Err(error), Some(error_log)) = (&served, &self.error_log) {
            log::error!("{error}");
            error_log.restore_terminal()?;
        }
        served
    }

    /// Opens the access log. This comes early, so that a start that fails later does not leave a file that the daemon
    /// cannot open.
    fn logs(&self, plan: &Plan, silent: &[&'static str]) -> Result<Logs, StartError> {
        let access = AccessLogs::without(silent);
        let opened = access.open(&plan.access_log, self.identity.as_ref());
        access.replace(opened.map_err(StartError::AccessLog)?);
        Ok(Logs { error: self.error_log.clone(), access })
    }
}

// === impl Held ===

impl Held {
    /// Acquires the resources in the order in which a later one depends on an earlier one.
    ///
    /// # Errors
    /// Returns the first problem.
    pub(super) fn acquire(
        plan: &Plan,
        start: &Start<'_>,
        announcer: Announcer,
        base: &Base,
    ) -> Result<Self, StartError> {
        let (identity, upgrade) = (base.identity.as_ref(), start.mode.upgrade);
        refuse_second_daemon(plan, upgrade)?;
        config::lines(&start.warnings).iter().for_each(|line| log::warn!("{line}"));
        limits::check_threads(threads(plan))?;
        absent_sources(plan).iter().for_each(|warning| log::warn!("{warning}"));
        let logs = base.logs(plan, start.silent)?;
        let early = Early::expect().map_err(StartError::Signals)?;
        let launch = launch(plan, start, &announcer)?;
        limits::check_open_files(endpoints(plan).len())?;
        limits::raise_open_files();
        enter_directory(plan, start.mode)?;
        check_runtime_dir(plan, identity, upgrade)?;
        upgrade::check_path(&plan.server.upgrade_sock)?;
        let Taken { files, prepared, link } = Taken::take(plan, start, identity)?;
        let supervisor = Supervisor::of(|name| std::env::var_os(name), upgrade);
        let verbosity = base.verbosity.clone();
        Ok(Self { announcer, early, launch, supervisor, verbosity, logs, files, prepared, link })
    }

    /// Returns the state of the old process, which is empty without an upgrade.
    pub(super) fn restored(&self, plan: &Plan) -> RestoredState {
        let restore = |link: &PredecessorLink| operator::restore(plan, &self.verbosity, link.state());
        self.link.as_ref().map(restore).unwrap_or_default()
    }
}

// === impl Files ===

impl Files {
    /// Releases the files at the end of the process. After a handover they belong to the new process, which replaces
    /// the PID file, so that the file always exists.
    pub(super) fn release(self, outcome: &Outcome) {
        self.sockets.remove_files();
        let pid_file = self.pid_file.lock().take();
        if let Some(pid_file) = pid_file.filter(|_| outcome.is_handed_over()) {
            pid_file.leave();
        }
    }
}

// === impl Taken ===

impl Taken {
    /// Takes the files and sockets. If this fails in an upgrade, the old process receives the reason.
    fn take(plan: &Plan, start: &Start<'_>, identity: Option<&Identity>) -> Result<Self, StartError> {
        let (inherited, link) = inherit(plan, start, identity)?;
        match take_files(plan, identity, inherited, link.as_ref()) {
            Ok((PidFiles { own, prepared }, sockets)) => {
                let files = Files { sockets: Arc::new(sockets), pid_file: Arc::new(Mutex::new(own)) };
                Ok(Self { files, prepared, link })
            }
            Err(error) => {
                if let Some(link) = link {
                    link.failed(&error.to_string());
                }
                Err(error)
            }
        }
    }
}

/// Fails if a daemon with this PID file runs. This comes before any warning, because none matters then.
fn refuse_second_daemon(plan: &Plan, upgrade: bool) -> Result<(), PidFileError> {
    let path = plan.server.pid_file.as_deref().filter(|_| !upgrade);
    match path.map_or(Ok(()), PidFile::probe) {
        Err(error @ PidFileError::AlreadyRuns { .. }) => Err(error),
        // A later step reports any other problem.
        _ => Ok(()),
    }
}

/// Returns the command that starts this program again in an upgrade.
fn launch(plan: &Plan, start: &Start<'_>, announcer: &Announcer) -> Result<Launch, StartError> {
    let launch = Launch::of_this_process(&Started {
        upgraded: start.mode.upgrade,
        in_background: announcer.is_background(),
        is_relative: start.provenance.file().is_some_and(ConfigFile::is_relative),
        runtime_directory: plan.server.runtime.directory(),
        about: about(plan),
    });
    let launch = launch.map_err(StartError::Executable)?;
    Ok(launch.with_input(start.provenance.input().cloned()))
}

fn enter_directory(plan: &Plan, mode: Mode) -> Result<(), StartError> {
    let of_a_daemon = || mode.daemon.then(|| Path::new("/"));
    let directory = plan.server.working_directory.as_deref().or_else(of_a_daemon);
    Ok(directory.map_or(Ok(()), privileges::enter_directory)?)
}

/// Receives the sockets of the old process if this is an upgrade. There are none if the old process has ended.
fn inherit(
    plan: &Plan,
    start: &Start<'_>,
    identity: Option<&Identity>,
) -> Result<(Vec<InheritedSocket>, Option<PredecessorLink>), StartError> {
    if !start.mode.upgrade {
        return Ok((Vec::new(), None));
    }
    let search = search(plan, identity, start.predecessor.as_ref());
    match search.take(upgrade::SEARCH_TIME)? {
        Found::Handover(inherited, link) => Ok((inherited, Some(link))),
        Found::Orphaned => {
            log::warn!(
                "upgrade: the old process ended before it handed over its sockets, so this process binds them; changes \
                 made at run time are lost"
            );
            Ok((Vec::new(), None))
        }
    }
}

/// Returns the description of a process with this plan for an upgrade.
fn about(plan: &Plan) -> About {
    let server = &plan.server;
    let about = About::new(server.runtime.configuration(), server.pid_file.as_deref());
    about.controlled_at(&plan.control.socket)
}

/// Returns the paths at which the old process can offer its sockets: the path that it gave to the process it started,
/// the path from the file, or the default. An older version uses the common default.
fn search(plan: &Plan, identity: Option<&Identity>, predecessor: Option<&Predecessor>) -> Search {
    let server = &plan.server;
    let about = about(plan);
    let user = identity.map(Identity::uid);
    if let Some(predecessor) = predecessor {
        // The file might have changed and contain another path.
        let (paths, starter) = (vec![predecessor.upgrade_sock.clone()], Some(predecessor.process()));
        return Search { paths, user, about, starter };
    }
    let (default, common) = (server.runtime.upgrade_sock(), server.runtime.common().upgrade_sock());
    if server.upgrade_sock != default {
        return Search { paths: vec![server.upgrade_sock.clone()], user, about, starter: None };
    }
    let mut paths = vec![default, common];
    paths.dedup();
    Search { paths, user, about: about.particular(), starter: None }
}

/// Acquires the runtime directory, the PID file (in an upgrade, its replacement) and the sockets, changes their owner
/// if necessary, and switches to the user to run as.
fn take_files(
    plan: &Plan,
    identity: Option<&Identity>,
    inherited: Vec<InheritedSocket>,
    link: Option<&PredecessorLink>,
) -> Result<(PidFiles, Sockets), StartError> {
    // The link must come first: without it, the directory belongs to a process that continues.
    take_runtime_dir(plan, identity, link.is_some())?;
    let pid_files = PidFiles::take(plan.server.pid_file.as_deref(), link)?;
    let (mut specs, control) = (endpoints(plan), control_spec(plan, &inherited));
    let has_control = control.is_some();
    specs.extend(control);
    let sockets = Sockets::adopt(inherited, &specs)?;
    if !has_control {
        warn_without_control(plan);
    }
    if let Some(identity) = identity {
        pid_files.give_to(identity)?;
        sockets.give_to(identity)?;
        take_logs(plan, identity)?;
        identity.assume()?;
        // The limit of threads is that of the user.
        limits::check_threads(threads(plan))?;
    }
    Ok((pid_files, sockets))
}

// === impl PidFiles ===

impl PidFiles {
    /// Acquires the PID file. In an upgrade it belongs to the old process, so this prepares its replacement.
    fn take(path: Option<&Path>, link: Option<&PredecessorLink>) -> Result<Self, StartError> {
        let prepared = path.zip(link).map(|(path, link)| PidFile::prepare(path, link.old_pid()));
        let prepared = prepared.transpose()?;
        let own = path.filter(|_| link.is_none()).map(PidFile::acquire).transpose()?;
        Ok(Self { own, prepared })
    }

    fn give_to(&self, identity: &Identity) -> Result<(), StartError> {
        self.prepared.as_ref().map_or(Ok(()), |prepared| prepared.give_to(identity))?;
        Ok(self.own.as_ref().map_or(Ok(()), |own| own.give_to(identity))?)
    }
}

/// Gives the logs of a third user to the user that the process will run as.
fn take_logs(plan: &Plan, identity: &Identity) -> Result<(), StartError> {
    if let Some(path) = &plan.server.error_log {
        take_log(path, identity).map_err(|error| LogError::from(Unusable::new(path, error)))?;
    }
    if let Some(path) = file_of(&plan.access_log) {
        take_log(path, identity).map_err(|error| StartError::AccessLog(Unusable::new(path, error)))?;
    }
    Ok(())
}
