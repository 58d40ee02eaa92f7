//! Another process: whether it still runs.
//!
//! A closed connection does not say that its process has ended, because a process can close a connection and continue.
//! And a process that was killed closes its connections a moment before the kernel reports its end. [`OtherProcess`]
//! distinguishes these cases.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open, test_kill_process};

/// The time that the kernel has to complete the end of a process after it has closed the connections of that process.
const REMOVAL: Duration = Duration::from_secs(2);
/// The flag of a process that the kernel is ending, in `/proc/PID/stat` (`PF_EXITING`).
const EXITING: u64 = 4;

/// Another process. It stays this process even if the system later gives its PID to a new one. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct OtherProcess {
    pid: u32,
    handle: Arc<Handle>,
}

#[derive(Debug)]
enum Handle {
    /// The process existed. The descriptor becomes readable at its end, even if its parent has not reaped it.
    Open(OwnedFd),
    /// There was no such process.
    Gone,
    /// The kernel does not support such descriptors.
    Unsupported(Pid),
    /// This is not the PID of a process, so nothing is known about it.
    Invalid,
}

impl OtherProcess {
    /// Opens the process with this PID.
    pub(crate) fn of(pid: u32) -> Self {
        let id = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let handle = id.map_or(Handle::Invalid, |id| match pidfd_open(id, PidfdFlags::empty()) {
            Ok(handle) => Handle::Open(handle),
            Err(Errno::SRCH) => Handle::Gone,
            Err(_) => Handle::Unsupported(id),
        });
        Self { pid, handle: Arc::new(handle) }
    }

    /// Returns whether the process has ended. If the kernel is ending it, this waits for the end.
    pub(crate) fn has_ended(&self) -> bool {
        self.ends_within(if is_exiting(self.pid) { REMOVAL } else { Duration::ZERO })
    }

    /// Waits until the kernel has removed a process that has closed its connections, and returns whether it has ended.
    pub(crate) fn ends_soon(&self) -> bool {
        self.ends_within(REMOVAL)
    }

    fn ends_within(&self, limit: Duration) -> bool {
        let handle = match &*self.handle {
            Handle::Open(handle) => handle,
            Handle::Gone => return true,
            Handle::Unsupported(pid) => return test_kill_process(*pid) == Err(Errno::SRCH),
            Handle::Invalid => return false,
        };
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
        let ended = poll(&mut [PollFd::new(handle.as_fd(), PollFlags::POLLIN)], limit);
        ended.is_ok_and(|ready| ready > 0)
    }
}

fn is_exiting(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| flags(&stat) & EXITING != 0)
}

/// Returns the flags of a process from its line in `/proc/PID/stat`. They follow six fields after the name, which can
/// contain spaces and parentheses.
fn flags(stat: &str) -> u64 {
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    after_name.split(' ').nth(6).and_then(|flags| flags.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_that_has_ended_is_distinguished_from_one_that_runs() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let process = OtherProcess::of(child.id());
        assert!(!process.has_ended());
        child.kill().unwrap();
        assert!(process.ends_soon(), "it has ended, although it is not reaped");
        assert!(OtherProcess::of(child.id()).has_ended(), "a zombie has ended");
        child.wait().unwrap();
        assert!(process.has_ended() && OtherProcess::of(child.id()).has_ended());
        assert!(!OtherProcess::of(std::process::id()).has_ended());
    }

    #[test]
    fn an_invalid_pid_counts_as_running() {
        assert!(!OtherProcess::of(0).has_ended() && !OtherProcess::of(u32::MAX).has_ended());
    }

    #[test]
    fn the_flags_of_a_process_are_found_behind_any_name() {
        assert_eq!(flags("7 (a) b) R 1 7 7 0 -1 4194308 113"), 4_194_308);
        assert_eq!(flags(""), 0);
        let own = std::fs::read_to_string("/proc/self/stat").unwrap();
        assert!(flags(&own) != 0 && flags(&own) & EXITING == 0);
    }
}
