//! Files and sockets that a start acquires and that a check before the start looks at.

use std::net::{IpAddr, UdpSocket};
use std::path::Path;

use nix::unistd::Uid;

use crate::config::Plan;
use crate::control::find;
use crate::process::privileges::Identity;
use crate::process::runtime::DirectoryError;
use crate::process::sockets::{self, Endpoint, InheritedSocket, ListenSpec};
use crate::serving::listen_spec;

/// Mode of the control socket: only root and the user of the daemon have access.
const CONTROL_SOCKET_MODE: u32 = 0o600;

/// Returns the error that [`take_runtime_dir`] would return, without changing anything.
pub(super) fn check_runtime_dir(
    plan: &Plan,
    identity: Option<&Identity>,
    takes_over: bool,
) -> Result<(), DirectoryError> {
    let owner = identity.map_or_else(Uid::effective, Identity::uid);
    if uses_runtime_dir(plan) { plan.server.runtime.check(owner, takes_over) } else { Ok(()) }
}

/// Creates the directory of files without a configured path, if there is one.
pub(super) fn take_runtime_dir(
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
pub(super) fn endpoints(plan: &Plan) -> Vec<ListenSpec> {
    let traffic = plan.listeners.iter().map(|(_, listener)| listen_spec(listener));
    let admin = ListenSpec::admin(Endpoint::Tcp(plan.metrics));
    traffic.chain([admin]).collect()
}

/// Returns a warning for each source address of connections to backends that this machine does not have. It is not an
/// error, because an address that moves between machines can arrive later.
pub(super) fn absent_sources(plan: &Plan) -> Vec<String> {
    let (v4, v6) = (&plan.server.client_bind_to_ipv4, &plan.server.client_bind_to_ipv6);
    let v4 = v4.iter().map(|address| ("client_bind_to_ipv4", IpAddr::from(*address)));
    let v6 = v6.iter().map(|address| ("client_bind_to_ipv6", IpAddr::from(*address)));
    let is_absent = |address: IpAddr| UdpSocket::bind((address, 0)).is_err();
    let absent = v4.chain(v6).filter(|(_, address)| is_absent(*address));
    let warning = |(key, address)| {
        format!(
            "{key}: this machine does not have the address {address}, so connections from it to backends fail"
        )
    };
    absent.map(warning).collect()
}

/// Returns the control socket; `None` if the default socket is in use by another daemon, so that two daemons can run
/// side by side.
pub(super) fn control_spec(plan: &Plan, inherited: &[InheritedSocket]) -> Option<ListenSpec> {
    let path = &plan.control.socket;
    let address = path.to_string_lossy();
    let is_inherited = inherited.iter().any(|socket| socket.address == address);
    let is_free = plan.control.is_named || is_inherited || !sockets::is_accepting(path);
    is_free.then(|| ListenSpec::own(Endpoint::Unix { path: path.clone(), mode: CONTROL_SOCKET_MODE }))
}

/// Warns that this process has no control socket, because another daemon uses the default one.
pub(super) fn warn_without_control(plan: &Plan) {
    let path = &plan.control.socket;
    log::warn!("{}", socket_in_use(path, plan.server.runtime.configuration(), find::process_at(path)));
}

/// Returns the number of threads that serve requests.
pub(super) fn threads(plan: &Plan) -> usize {
    plan.server.threads
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
