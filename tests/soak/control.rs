//! The daemon's own commands, as an operator types them. One function for each, so that what the harness needs of the command
//! line stands in one place.

use std::path::Path;

use tests::Lab;
use tests::daemon::path_str;

use crate::setup::Order;

/// Runs `load_balancer VERB ARGUMENTS -c FILE`; the error is what it said.
fn run(lab: &Lab, file: &Path, verb: &str, arguments: &[&str]) -> Result<(), String> {
    let finished = lab.run(&[&[verb], arguments, &["-c", path_str(file)]].concat());
    if finished.code == Some(0) {
        return Ok(());
    }
    let said = format!("{}{}", finished.stdout, finished.stderr);
    Err(format!("`{verb} {}` ended with {:?}: {}", arguments.join(" "), finished.code, said.trim()))
}

/// Puts the file into effect, and waits until it is.
pub(crate) fn reload(lab: &Lab, file: &Path) -> Result<(), String> {
    run(lab, file, "reload", &[])
}

/// Starts a new process, and waits until it has taken over.
pub(crate) fn upgrade(lab: &Lab, file: &Path) -> Result<(), String> {
    run(lab, file, "upgrade", &[])
}

/// Changes a backend of the pool `web` at run time. A drain waits until the backend has no request left.
pub(crate) fn order(lab: &Lab, file: &Path, order: &Order) -> Result<(), String> {
    let (verb, member, more) = match order {
        Order::Drain(member) => ("drain", member, vec!["--wait".to_owned()]),
        Order::Undrain(member) => ("undrain", member, Vec::new()),
        Order::Weight(member, weight) => ("weight", member, vec![weight.to_string()]),
        Order::Add(member) => ("add", member, vec![format!("--weight={}", member.weight)]),
        Order::Remove(member) => ("remove", member, Vec::new()),
    };
    let address = member.address.to_string();
    let mut arguments = vec!["web", address.as_str()];
    arguments.extend(more.iter().map(String::as_str));
    run(lab, file, verb, &arguments)
}
