//! Limits of the system that a proxy runs into.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Lets the process open as many files as it may: each request can take two. The soft limit that processes start with is
/// low for the sake of programs that use `select`.
pub fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        log::warn!("cannot raise the limit of open files: {error}");
    }
}
