//! Check whether a start would succeed, for `-t` and `check`.

use super::StartError;
use super::resources::{absent_sources, check_runtime_dir, control_spec, endpoints, threads};
use crate::config::Plan;
use crate::process::files::{Unusable, check_writable};
use crate::process::logging::LogError;
use crate::process::pid_file::PidFile;
use crate::process::privileges::Identity;
use crate::process::{limits, sockets, upgrade};
use crate::serving::AccessLogs;

/// Checks whether a start with `plan` would succeed, beyond the checks of the configuration itself, and returns the
/// warnings of such a start. It has no lasting effects.
///
/// # Errors
/// Returns the first problem.
pub(crate) fn preflight(plan: &Plan, upgrade: bool) -> Result<Vec<String>, StartError> {
    let server = &plan.server;
    limits::check_open_files(endpoints(plan).len())?;
    limits::check_threads(threads(plan))?;
    let identity = Identity::required(server.user.as_deref(), server.group.as_deref())?;
    check_runtime_dir(plan, identity.as_ref(), upgrade)?;
    upgrade::check_path(&server.upgrade_sock)?;
    if let Some(path) = &server.error_log {
        check_writable(path).map_err(|error| LogError::from(Unusable::new(path, error)))?;
    }
    AccessLogs::default().check(&plan.access_log).map_err(StartError::AccessLog)?;
    if upgrade {
        // The PID file and the ports of the old process are in use and will be handed over.
        return Ok(absent_sources(plan));
    }
    server.pid_file.as_deref().map_or(Ok(()), PidFile::probe)?;
    let mut specs = endpoints(plan);
    specs.extend(control_spec(plan, &[]));
    sockets::check(&specs)?;
    Ok(absent_sources(plan))
}
