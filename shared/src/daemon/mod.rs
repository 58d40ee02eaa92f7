//! Composition root: starts a process that serves a plan, and runs it until its end.
//!
//! [`serve`] follows the order of steps that [`crate::process`] describes. `Services::compose` creates the three
//! services: the proxy, the prober and the metrics share one `Arc<LoadBalancer<Policy>>` for each pool.

mod announce;
mod gate;
mod host;
mod lookout;
mod moving;
mod operations;
mod services;

use std::io::{self, Write};
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::Uid;
use parking_lot::Mutex;
use pingora::server::{RunArgs, Server};
use pingora::services::ServiceHandle;
use pingora::services::background::{GenBackgroundService, background_service};

use crate::config::{self, Plan, Problems};
use crate::control::{ControlService, DrainingSocket, Farewells, find, predecessors};
use crate::events::Events;
use crate::operator::{self, ConfigFile, Provenance};
use crate::process;
use crate::process::background::{self, Announcer, Role};
use crate::process::files::{Unusable, check_writable, take_log};
use crate::process::handlers::Early;
use crate::process::lifecycle::{Outcome, Parts, Signals};
use crate::process::limits;
use crate::process::logging::{self, ErrorLog, LogError, Logging, Verbosity};
use crate::process::pid_file::{PidFile, PidFileError, Prepared};
use crate::process::privileges::{self, Identity, PrivilegeError};
use crate::process::runtime::DirectoryError;
use crate::process::sockets::{
    self, Class, Endpoint, Handed, InheritedSocket, ListenError, ListenSpec, Sockets,
};
use crate::process::successor::{Launch, Predecessor, Started};
use crate::process::systemd::Supervisor;
use crate::process::upgrade::{self, About as AboutProcess, Hold, PredecessorLink, Search, UpgradeError};
use crate::purpose::Purpose;
use crate::serving::{AccessLogs, listen_spec};
use announce::{Announce, Announcement};
use gate::Gate;
use host::DaemonHost;
use moving::Moving;
use operations::DaemonControl;
pub use services::Services;
use services::{Origin, server_conf};

/// Mode of the control socket: only root and the user of the daemon have access.
const CONTROL_SOCKET_MODE: u32 = 0o600;

/// Mode in which the process runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mode {
    /// Whether the process runs in the background.
    pub daemon: bool,
    /// Whether the process takes over the sockets of a running one.
    pub upgrade: bool,
}

/// Reason why the daemon did not start.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum StartError {
    #[error("cannot run in the background: {0}")]
    Background(#[source] io::Error),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("cannot install signal handlers: {0}")]
    Signals(#[source] io::Error),
    #[error("cannot find the executable of this process: {0}")]
    Executable(#[source] io::Error),
    #[error(transparent)]
    RuntimeDirectory(#[from] DirectoryError),
    #[error("cannot connect to backends from {address}: {source}")]
    Source { address: IpAddr, source: io::Error },
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
    #[error("cannot read random numbers from /dev/urandom: {0}")]
    Random(#[source] io::Error),
    #[error("cannot register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Function that adds services to those of the daemon, as the demo does. It returns the services that must be ready
/// before the first health checks.
pub type Extra<'a> = dyn FnOnce(&mut Server, &Services) -> Vec<ServiceHandle> + 'a;

/// Resources that the process holds until its end.
struct Held {
    early: Early,
    error_log: Option<Arc<ErrorLog>>,
    pid_file: Arc<Mutex<Option<PidFile>>>,
    /// The PID file that replaces the one of the old process; `None` unless this is an upgrade.
    prepared: Option<Prepared>,
    sockets: Arc<Sockets>,
    link: Option<PredecessorLink>,
    announcer: Announcer,
    launch: Launch,
    supervisor: Supervisor,
    verbosity: Verbosity,
}

/// Values that a start has before it acquires resources.
struct StartContext {
    announcer: Announcer,
    error_log: Option<Arc<ErrorLog>>,
    verbosity: Verbosity,
    /// The user to run as; `None` if the configuration does not set one.
    identity: Option<Identity>,
    /// Whether the path of the configuration file is relative to the working directory of the start.
    is_relative: bool,
    /// The description of the old process that started this one; `None` without an upgrade.
    predecessor: Option<Predecessor>,
}

/// Parameters of a start.
#[derive(Default)]
pub struct Start<'a> {
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
pub fn serve(plan: &Plan, how: Start<'_>, extra: Box<Extra<'_>>) -> Result<u8, StartError> {
    let mode = how.mode;
    let input = how.provenance.input().cloned();
    let announcer = match background::enter(mode.daemon, input.as_deref()).map_err(StartError::Background)? {
        Role::Parent(code) => {
            if code == 0 && plan.server.error_log.is_none() {
                warn_without_log();
            }
            return Ok(code);
        }
        Role::Serve(announcer) => announcer,
    };
    // The user must be known before a file is created, which would otherwise belong to the wrong user.
    let identity = Identity::required(plan.server.user.as_deref(), plan.server.group.as_deref())?;
    let logging =
        logging::init(plan.server.error_log.as_deref(), identity.as_ref(), plan.log_level.as_ref())?;
    // The guard writes the last lines before the process ends.
    let Logging { error_log, verbosity, guard: _guard } = logging;
    let error_log = error_log.map(Arc::new);
    let context = StartContext {
        announcer,
        error_log: error_log.clone(),
        verbosity,
        identity,
        is_relative: how.provenance.file().is_some_and(ConfigFile::is_relative),
        predecessor: how.predecessor.clone(),
    };
    let started = start(plan, how, context, extra);
    if let (Err(error), Some(error_log)) = (&started, &error_log) {
        // This line is for the log; the caller prints the error on the terminal.
        log::error!("{error}");
        error_log.restore_terminal()?;
    }
    started
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

fn start(
    plan: &Plan,
    how: Start<'_>,
    context: StartContext,
    extra: Box<Extra<'_>>,
) -> Result<u8, StartError> {
    for line in config::lines(&how.warnings) {
        log::warn!("{line}");
    }
    let logs = AccessLogs::without(how.silent);
    // The log is opened early, so that a start that fails later does not leave a file that the daemon cannot open.
    let opened = logs.open(&plan.access_log, context.identity.as_ref()).map_err(StartError::AccessLog)?;
    let held = Held::acquire(plan, &how, context)?;
    let server = Server::new_with_opt_and_conf(None, server_conf(plan));
    let inherited = |link: &PredecessorLink| operator::restore(plan, &held.verbosity, link.state());
    let inherited = held.link.as_ref().map(inherited).unwrap_or_default();
    let (provenance, warnings, purpose) = (how.provenance, how.warnings, how.purpose.clone());
    let origin = Origin { provenance, warnings, purpose, inherited };
    let services = Services::compose(plan, &server.configuration, origin, &logs, opened, &held)?;
    if matches!(how.purpose, Purpose::Stopgap(_)) && held.announcer.is_background() {
        services.readiness.withhold("demo: started without a configuration");
    }
    let farewells = Farewells::default();
    let outcome = run(plan, server, services, held, farewells.clone(), extra);
    logs.end();
    // All resources have been released, so a new process can start.
    farewells.say(&outcome);
    Ok(outcome.exit_code())
}

fn run(
    plan: &Plan,
    mut server: Server,
    mut services: Services,
    held: Held,
    farewells: Farewells,
    extra: Box<Extra<'_>>,
) -> Outcome {
    server.bootstrap();
    let before_checks = extra(&mut server, &services);
    let signals = signals(plan, &services, &held);
    let outcome = signals.outcome();
    let (pid_file, sockets) = (held.pid_file.clone(), held.sockets.clone());
    let (events, takes_over) = (services.operator.events().clone(), held.link.is_some());
    let verbosity = held.verbosity.clone();
    let serves = services.purpose.on(plan);
    let earlier = earlier_draining_socket(plan, held.link.as_ref());
    let begun = (services.hold.take(), std::mem::take(&mut services.moving));
    let announcement = held.announcement(plan, serves, events, begun);
    let announce = Arc::new(Announce::new(services.readiness.clone(), &signals, announcement));
    let control = control(plan, &services, &sockets, &signals, (verbosity, farewells, earlier));
    let first = Before { checks: &before_checks, takes_over };
    let announced = add_services(&mut server, services, first, &sockets, &signals, announce);
    if let Some(control) = control {
        // Both processes of an upgrade have the socket; the new one must not accept orders before it has taken over.
        server.add_service(background_service("control", control)).add_dependency(&announced);
    }
    server.run(RunArgs { shutdown_signal: Box::new(signals) });
    sockets.remove_files();
    let pid_file = pid_file.lock().take();
    if outcome.is_handed_over() {
        // The new process replaces the file, so that the file always exists.
        if let Some(pid_file) = pid_file {
            pid_file.leave();
        }
    }
    outcome
}

// === impl Held ===

impl Held {
    fn acquire(plan: &Plan, how: &Start<'_>, context: StartContext) -> Result<Self, StartError> {
        let StartContext { announcer, error_log, verbosity, identity, is_relative, predecessor } = context;
        let (server, mode) = (&plan.server, how.mode);
        let early = Early::expect().map_err(StartError::Signals)?;
        let launch = Launch::of_this_process(&Started {
            upgraded: mode.upgrade,
            in_background: announcer.is_background(),
            is_relative,
            runtime_directory: server.runtime.directory(),
            about: about(plan),
        });
        let launch = launch.map(|launch| launch.with_input(how.provenance.input().cloned()));
        let launch = launch.map_err(StartError::Executable)?;
        limits::raise_open_files();
        let daemons_own = || mode.daemon.then(|| Path::new("/"));
        if let Some(directory) = server.working_directory.as_deref().or_else(daemons_own) {
            privileges::enter_directory(directory)?;
        }
        check_runtime_dir(plan, identity.as_ref(), mode.upgrade)?;
        let (inherited, mut link) = if mode.upgrade {
            let search = search(plan, identity.as_ref(), predecessor.as_ref());
            let (inherited, link) = search.take(upgrade::SEARCH_TIME)?;
            (inherited, Some(link))
        } else {
            (Vec::new(), None)
        };
        let files = take_files(plan, identity.as_ref(), inherited, link.as_ref());
        if let Err(error) = &files
            && let Some(link) = link.take()
        {
            link.failed(&error.to_string());
        }
        let (pid_file, prepared, sockets) = files?;
        Ok(Self {
            early,
            error_log,
            pid_file: Arc::new(Mutex::new(pid_file)),
            prepared,
            sockets: Arc::new(sockets),
            link,
            announcer,
            launch,
            supervisor: Supervisor::of(|name| std::env::var_os(name), mode.upgrade),
            verbosity,
        })
    }

    fn announcement(
        self,
        plan: &Plan,
        serves: String,
        events: Events,
        (hold, moving): (Option<Hold>, Moving),
    ) -> Announcement {
        Announcement {
            announcer: self.announcer,
            link: self.link,
            sockets: self.sockets,
            prepared: self.prepared,
            pid_file: self.pid_file,
            common_pid_file: plan.server.runtime.common().pid_file(),
            error_log: self.error_log,
            supervisor: self.supervisor,
            serves,
            events,
            hold,
            moving,
        }
    }
}

/// Returns the description of a process with this plan for an upgrade.
fn about(plan: &Plan) -> AboutProcess {
    let server = &plan.server;
    let about = AboutProcess::new(server.runtime.configuration(), server.pid_file.as_deref());
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
        return Search { paths: vec![predecessor.upgrade_sock.clone()], user, about };
    }
    let (default, common) = (server.runtime.upgrade_sock(), server.runtime.common().upgrade_sock());
    if server.upgrade_sock != default {
        return Search { paths: vec![server.upgrade_sock.clone()], user, about };
    }
    let mut paths = vec![default, common];
    paths.dedup();
    Search { paths, user, about: about.particular() }
}

/// Acquires the runtime directory, the PID file (in an upgrade, its replacement) and the sockets, changes their owner
/// if necessary, and switches to the user to run as.
fn take_files(
    plan: &Plan,
    identity: Option<&Identity>,
    inherited: Vec<InheritedSocket>,
    link: Option<&PredecessorLink>,
) -> Result<(Option<PidFile>, Option<Prepared>, Sockets), StartError> {
    // The link must come first: without it, the directory belongs to a process that continues.
    take_runtime_dir(plan, identity, link.is_some())?;
    let pid_path = plan.server.pid_file.as_deref();
    let prepared = pid_path.zip(link).map(|(path, link)| PidFile::prepare(path, link.old_pid()));
    let prepared = prepared.transpose()?;
    let pid_file = pid_path.filter(|_| link.is_none()).map(PidFile::acquire).transpose()?;
    let mut specs = endpoints(plan);
    specs.extend(control_spec(plan, &inherited));
    let sockets = Sockets::adopt(inherited, &specs)?;
    if let Some(identity) = identity {
        prepared.as_ref().map_or(Ok(()), |prepared| prepared.give_to(identity))?;
        pid_file.as_ref().map_or(Ok(()), |pid_file| pid_file.give_to(identity))?;
        sockets.give_to(identity)?;
        take_logs(plan, identity)?;
        identity.assume()?;
    }
    Ok((pid_file, prepared, sockets))
}

/// Gives the logs of a third user to the user that the process will run as.
fn take_logs(plan: &Plan, identity: &Identity) -> Result<(), StartError> {
    if let Some(path) = &plan.server.error_log {
        take_log(path, identity).map_err(|error| LogError::from(Unusable::new(path, error)))?;
    }
    if let Some(path) = crate::serving::logs::file_of(&plan.access_log) {
        take_log(path, identity).map_err(|error| StartError::AccessLog(Unusable::new(path, error)))?;
    }
    Ok(())
}

/// Checks whether a start with `plan` would succeed, beyond the checks of the configuration itself. It has no lasting
/// effects.
///
/// # Errors
/// Returns the first problem.
pub fn preflight(plan: &Plan, upgrade: bool) -> Result<(), StartError> {
    let server = &plan.server;
    let identity = Identity::required(server.user.as_deref(), server.group.as_deref())?;
    check_sources(plan)?;
    check_runtime_dir(plan, identity.as_ref(), upgrade)?;
    upgrade::check_path(&server.upgrade_sock)?;
    if let Some(path) = &server.error_log {
        check_writable(path).map_err(|error| LogError::from(Unusable::new(path, error)))?;
    }
    AccessLogs::default().check(&plan.access_log).map_err(StartError::AccessLog)?;
    if upgrade {
        // The PID file and the ports of the old process are in use and will be handed over.
        return Ok(());
    }
    server.pid_file.as_deref().map_or(Ok(()), PidFile::probe)?;
    let mut specs = endpoints(plan);
    // The directory of the default socket might not exist before the start.
    specs.extend(control_spec(plan, &[]).filter(|_| plan.control.is_named));
    Ok(sockets::check(&specs)?)
}

/// Checks that the source addresses of connections to backends belong to this machine. A start does not require this,
/// because an address that moves between machines can arrive later.
fn check_sources(plan: &Plan) -> Result<(), StartError> {
    let (v4, v6) = (&plan.server.client_bind_to_ipv4, &plan.server.client_bind_to_ipv6);
    let addresses = v4.iter().copied().map(IpAddr::from).chain(v6.iter().copied().map(IpAddr::from));
    addresses.into_iter().try_for_each(|address| {
        TcpListener::bind((address, 0)).map(drop).map_err(|source| StartError::Source { address, source })
    })
}

/// Returns the error that [`take_runtime_dir`] would return, without changing anything.
fn check_runtime_dir(
    plan: &Plan,
    identity: Option<&Identity>,
    takes_over: bool,
) -> Result<(), DirectoryError> {
    let owner = identity.map_or_else(Uid::effective, Identity::uid);
    if uses_runtime_dir(plan) { plan.server.runtime.check(owner, takes_over) } else { Ok(()) }
}

/// Creates the directory of files without a configured path, if there is one.
fn take_runtime_dir(
    plan: &Plan,
    identity: Option<&Identity>,
    takes_over: bool,
) -> Result<(), DirectoryError> {
    let owner = identity.map_or_else(Uid::effective, Identity::uid);
    if uses_runtime_dir(plan) { plan.server.runtime.take(owner, takes_over) } else { Ok(()) }
}

fn uses_runtime_dir(plan: &Plan) -> bool {
    let server = &plan.server;
    let files = [Some(&server.upgrade_sock), Some(&plan.control.socket), server.pid_file.as_ref()];
    files.into_iter().flatten().any(|file| file.parent() == Some(server.runtime.directory()))
}

/// Returns all sockets on which the daemon listens.
pub fn endpoints(plan: &Plan) -> Vec<ListenSpec> {
    let traffic = plan.listeners.iter().map(|(_, listener)| listen_spec(listener));
    let admin = ListenSpec::admin(Endpoint::Tcp(plan.metrics));
    traffic.chain([admin]).collect()
}

/// Returns the control socket; `None` if the default socket is in use by another daemon, so that two daemons can run
/// side by side.
fn control_spec(plan: &Plan, inherited: &[InheritedSocket]) -> Option<ListenSpec> {
    let path = &plan.control.socket;
    let address = path.to_string_lossy();
    let is_inherited = inherited.iter().any(|socket| socket.address == address);
    if !plan.control.is_named && !is_inherited && sockets::is_answered(path) {
        log::warn!("{}", socket_in_use(path, plan.server.runtime.configuration(), find::process_at(path)));
        return None;
    }
    Some(ListenSpec::own(Endpoint::Unix { path: path.clone(), mode: CONTROL_SOCKET_MODE }))
}

/// Returns the warning that another daemon, whose PID can be unknown, uses the default control socket of this file.
fn socket_in_use(socket: &Path, file: Option<&Path>, pid: Option<u32>) -> String {
    let daemon = match file {
        Some(file) => format!("a daemon with {}", file.display()),
        None => "a daemon without a configuration file".to_owned(),
    };
    let process = pid.map(|pid| format!(" as process {pid}")).unwrap_or_default();
    format!(
        "{daemon} already runs{process} and uses the control socket {}, so this process has none; to replace that daemon, \
         run `load_balancer upgrade`; to run both, set `control: {{socket: /path}}` for one of them",
        socket.display()
    )
}

fn signals(plan: &Plan, services: &Services, held: &Held) -> Signals {
    let host = DaemonHost {
        traffic: services.traffic.clone(),
        readiness: services.readiness.clone(),
        verbosity: held.verbosity.clone(),
        operator: services.operator.clone(),
        status: services.status.clone(),
        error_log: held.error_log.clone(),
        access_logs: services.logs.clone(),
        sockets: held.sockets.clone(),
    };
    Signals::new(Parts {
        timings: services.timings.clone(),
        upgrade_sock: plan.server.upgrade_sock.clone(),
        window: upgrade::WINDOW,
        launch: held.launch.clone(),
        supervisor: held.supervisor.clone(),
        sockets: held.sockets.clone(),
        early: held.early.clone(),
        host: Arc::new(host),
    })
}

/// Returns the service on the control socket; `None` if this process has no control socket.
fn control(
    plan: &Plan,
    services: &Services,
    sockets: &Sockets,
    signals: &Signals,
    (verbosity, farewells, earlier): (Verbosity, Farewells, Option<PathBuf>),
) -> Option<ControlService> {
    let socket = sockets.copy(&plan.control.socket.to_string_lossy());
    let socket = socket.unwrap_or_else(|error| {
        log::error!("control: {error}");
        None
    })?;
    let (operator, status) = (services.operator.clone(), services.status.clone());
    let (explain, secret) = (services.explain.clone(), services.secret.clone());
    let (path, upgrades, stops) = (plan.control.socket.clone(), signals.upgrades(), signals.stops());
    predecessors::sweep(&path);
    let draining_socket =
        DrainingSocket::new(predecessors::socket_of(&path, std::process::id()), signals.outcome());
    let control = DaemonControl {
        operator,
        status,
        verbosity,
        explain,
        secret,
        upgrades,
        stops,
        farewells,
        socket: path,
        earlier,
    };
    Some(
        ControlService::new(socket, Arc::new(control), signals.shutdown(Class::Admin))
            .with_draining_socket(draining_socket),
    )
}

/// Returns the base path of the old process's separate socket if it differs from this process's control socket. An
/// older version does not report its socket and uses the common name.
fn earlier_draining_socket(plan: &Plan, link: Option<&PredecessorLink>) -> Option<PathBuf> {
    let link = link?;
    let old = link.old();
    let common = || (!old.is_said).then(|| plan.server.runtime.common().control_socket());
    let control = old.control.clone().or_else(common)?;
    (control != plan.control.socket).then(|| predecessors::socket_of(&control, link.old_pid()))
}

/// Constraints on the order of services.
#[derive(Clone, Copy)]
struct Before<'a> {
    /// The services that must be ready before the first health checks.
    checks: &'a [ServiceHandle],
    /// Whether the sockets belong to another process until this one is announced.
    takes_over: bool,
}

/// Adds the services in the order of their dependencies, and returns the announcement. Traffic is accepted after the
/// first health checks and, in an upgrade, after the gate has opened; the start is announced after that. Metrics can be
/// read immediately, but in an upgrade the old process, which is ready, serves them until the announcement.
fn add_services(
    server: &mut Server,
    services: Services,
    before: Before<'_>,
    sockets: &Arc<Sockets>,
    signals: &Signals,
    announce: Arc<Announce>,
) -> ServiceHandle {
    let Services { proxy, prober, metrics, changer, readiness, wanted, lookout, .. } = services;
    server.add_service(background_service("operator", changer));
    server.add_service(background_service("lookout", lookout));
    let prober = server.add_service(background_service("health", prober));
    prober.add_dependencies(before.checks);
    let gate = Gate::new(readiness, wanted, announce.clone()).opening(sockets.clone());
    let gate = server.add_service(background_service("gate", gate));
    gate.add_dependency(&prober);
    let traffic_closes = signals.shutdown(Class::Traffic);
    let proxy = server.add_service(
        Handed::new(proxy, sockets, traffic_closes, signals.failures()).watched(signals.pulse()),
    );
    proxy.add_dependency(&gate);
    let announce = server.add_service(GenBackgroundService::new("announce".to_owned(), announce));
    announce.add_dependency(&proxy);
    let admin_closes = signals.shutdown(Class::Admin);
    let metrics = server.add_service(Handed::new(metrics, sockets, admin_closes, signals.failures()));
    if before.takes_over {
        metrics.add_dependency(&announce);
    }
    announce
}
