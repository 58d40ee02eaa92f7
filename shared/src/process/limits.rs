//! Limits of the system that a proxy reaches, and one that the daemon sets itself.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The backlog of a listening socket, as in Pingora. The kernel lowers it to `net.core.somaxconn`.
pub(super) const BACKLOG: i32 = 65535;

/// Raises the limit of open files to the hard limit, because each request can need two. The initial soft limit is low
/// for the sake of programs that use `select`.
pub(crate) fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        log::warn!("cannot raise the limit of open files: {error}");
    }
}

/// Disables transparent huge pages for this process and its children. Such pages would double the memory of the daemon
/// and do not serve any request faster. This must be called before much memory is allocated.
pub fn refuse_huge_pages() {
    // A kernel without huge pages needs no call, and one that is too old for the call does not prevent the start.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}
