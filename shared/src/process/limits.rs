//! Limits of the system that a proxy runs into, and one that it sets itself.

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

/// Keeps the kernel from giving the process, and those that it starts, huge pages for small needs: half of the memory of this daemon
/// would be such pages, and no request is served faster. To be called before there is much to allocate.
pub fn refuse_huge_pages() {
    // A kernel without them gives none, and one that is too old to be told is no reason not to start.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}
