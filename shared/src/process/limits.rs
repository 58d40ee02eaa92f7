//! Limits of the system that a proxy reaches, and one that the daemon sets itself.

use std::io;
use std::thread;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use parking_lot::Mutex;
use values::reason;

/// The backlog of a listening socket, as in Pingora. The kernel lowers it to `net.core.somaxconn`.
pub(super) const BACKLOG: i32 = 65535;

/// The minimum for the limit of open files, in addition to the listening sockets: the runtimes, logs, control socket
/// and health checks need fewer than 64, and the rest is for requests.
const MIN_OPEN_FILES: u64 = 128;

/// Error of a limit of open files that is too low for the daemon.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error(
    "the limit of open files is {limit}, but the daemon needs at least {needed}: raise the hard limit, for example with \
     `ulimit -n 1024`, or with `LimitNOFILE=1024` in the systemd unit"
)]
pub(crate) struct TooFewOpenFiles {
    limit: u64,
    needed: u64,
}

/// The number of threads that the daemon needs in addition to those for requests: one for each other service, for the
/// runtime of the server, for each log, and a few that block.
const MIN_THREADS: usize = 16;

/// The remedy if the system does not start another thread.
pub(super) const MORE_THREADS: &str = "the limit of processes and threads is reached; raise it, for example with `ulimit -u 4096`, or with \
    `LimitNPROC=` and `TasksMax=` in the systemd unit";

/// Error of a system that does not start all threads of the daemon.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {needed} threads, only {started}: {}", no_thread(source))]
pub(crate) struct TooFewThreads {
    needed: usize,
    started: usize,
    source: io::Error,
}

/// Checks that the daemon can start its threads, of which `serving` are for requests. A thread that cannot be started
/// later would be a panic.
///
/// # Errors
/// If the system does not start all of them.
pub(crate) fn check_threads(serving: usize) -> Result<(), TooFewThreads> {
    let (needed, gate) = (serving.saturating_add(MIN_THREADS), Mutex::new(()));
    thread::scope(|scope| {
        // All threads exist at the same time, until the gate opens.
        let closed = gate.lock();
        let start = |_| thread::Builder::new().spawn_scoped(scope, || drop(gate.lock())).map(drop);
        let failed =
            (0..needed).map(start).enumerate().find_map(|(started, result)| Some((started, result.err()?)));
        drop(closed);
        failed.map_or(Ok(()), |(started, source)| Err(TooFewThreads { needed, started, source }))
    })
}

/// Returns the reason why a thread or a process was not started, with the remedy.
pub(crate) fn no_thread(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock => MORE_THREADS.to_owned(),
        _ => reason(error),
    }
}

/// Raises the limit of open files to the hard limit, because each request can need two. The initial soft limit is low
/// for the sake of programs that use `select`.
pub(crate) fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        log::warn!("cannot raise the limit of open files: {}", reason(&error.into()));
    }
}

/// Checks that the hard limit of open files is sufficient for a daemon with this number of listening sockets.
///
/// # Errors
/// If the limit is too low.
pub(crate) fn check_open_files(sockets: usize) -> Result<(), TooFewOpenFiles> {
    // The start does not fail if the limit cannot be read.
    getrlimit(Resource::RLIMIT_NOFILE).map_or(Ok(()), |(_, hard)| is_sufficient(hard, sockets))
}

fn is_sufficient(limit: u64, sockets: usize) -> Result<(), TooFewOpenFiles> {
    let needed = MIN_OPEN_FILES.saturating_add(u64::try_from(sockets).unwrap_or(u64::MAX));
    if limit < needed { Err(TooFewOpenFiles { limit, needed }) } else { Ok(()) }
}

/// Disables transparent huge pages for this process and its children. Such pages would double the memory of the daemon
/// and do not serve any request faster. This must be called before much memory is allocated.
pub fn refuse_huge_pages() {
    // A kernel without huge pages needs no call, and one that is too old for the call does not prevent the start.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_open_files_that_is_too_low_is_rejected_with_a_remedy() {
        let error = is_sufficient(30, 2).expect_err("30 is too low");
        assert_eq!(error, TooFewOpenFiles { limit: 30, needed: 130 });
        let text = error.to_string();
        assert!(
            text.contains("is 30") && text.contains("ulimit -n") && text.contains("LimitNOFILE="),
            "{text}"
        );
        assert_eq!(is_sufficient(130, 2), Ok(()));
        assert_eq!(is_sufficient(1024, 100), Ok(()));
        assert_eq!(check_open_files(1), Ok(()));
    }

    #[test]
    fn a_system_without_more_threads_is_an_error_with_a_remedy() {
        check_threads(1).expect("this system starts some threads");
        let source = io::Error::from_raw_os_error(nix::libc::EAGAIN);
        let text = TooFewThreads { needed: 17, started: 3, source }.to_string();
        assert!(text.contains("17 threads, only 3") && text.contains("ulimit -u"), "{text}");
    }
}
