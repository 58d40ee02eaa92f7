//! Limits of the system that a proxy reaches, and one that the daemon sets itself.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

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

/// Raises the limit of open files to the hard limit, because each request can need two. The initial soft limit is low
/// for the sake of programs that use `select`.
pub(crate) fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        log::warn!("cannot raise the limit of open files: {error}");
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
}
