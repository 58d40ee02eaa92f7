//! The subcommands of the daemon, as an operator types them. All uses of the command line in the soak run are here.

use std::path::Path;

use tests::Lab;
use tests::daemon::path_str;

use crate::setup::Order;

/// Runs `load_balancer SUBCOMMAND ARGUMENTS -c FILE`. The error contains its output.
fn run(lab: &Lab, file: &Path, subcommand: &str, arguments: &[&str]) -> Result<(), String> {
    let finished = lab.run(&[&[subcommand], arguments, &["-c", path_str(file)]].concat());
    if finished.code == Some(0) {
        return Ok(());
    }
    let output = format!("{}{}", finished.stdout, finished.stderr);
    Err(format!("`{subcommand} {}` exited with {:?}: {}", arguments.join(" "), finished.code, output.trim()))
}

/// Reloads the configuration and waits until it is in effect.
pub(crate) fn reload(lab: &Lab, file: &Path) -> Result<(), String> {
    run(lab, file, "reload", &[])
}

/// Starts a new process, and waits until it has taken over.
pub(crate) fn upgrade(lab: &Lab, file: &Path) -> Result<(), String> {
    run(lab, file, "upgrade", &[])
}

/// Changes a backend of the pool `web` at run time. A drain waits until the backend has no request in flight.
pub(crate) fn order(lab: &Lab, file: &Path, order: &Order) -> Result<(), String> {
    let (subcommand, member, more) = match order {
        Order::Drain(member) => ("drain", member, vec!["--wait".to_owned()]),
        Order::Undrain(member) => ("undrain", member, Vec::new()),
        Order::Weight(member, weight) => ("weight", member, vec![weight.to_string()]),
        Order::Add(member) => ("add", member, vec![format!("--weight={}", member.weight)]),
        Order::Remove(member) => ("remove", member, Vec::new()),
    };
    let address = member.address.to_string();
    let mut arguments = vec!["web", address.as_str()];
    arguments.extend(more.iter().map(String::as_str));
    run(lab, file, subcommand, &arguments)
}
