//! The users that have locked a file with `flock`, according to `/proc/locks`.
//!
//! Any user who can read a file can lock it. A lock on the PID file therefore shows a running daemon only if it belongs
//! to a user who can run the daemon.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::sys::stat::{major, minor};

/// Returns the users of the processes that have locked a file. `None` if a process or its user is unknown, for instance
/// because the process is in another PID namespace.
///
/// # Errors
/// Fails if the metadata of the file or `/proc/locks` cannot be read.
pub(super) fn users_with_lock(file: &File) -> io::Result<Option<Vec<u32>>> {
    let metadata = file.metadata()?;
    let (device, inode) = (metadata.dev(), metadata.ino());
    let name = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    let locks = std::fs::read_to_string("/proc/locks")?;
    Ok(processes_with_lock(&locks, &name).map(user_of_process).collect())
}

/// Returns the PIDs that `locks` lists for a file. Processes that only wait for a lock are listed with an arrow and are
/// omitted.
fn processes_with_lock<'a>(locks: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    locks.lines().filter_map(move |line| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [_, "FLOCK", _, _, pid, file, ..] if file == name => Some(pid),
        _ => None,
    })
}

/// Returns the real user of a process. The effective user would be root while a program with the set-user-ID bit runs.
fn user_of_process(pid: &str) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    users.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_processes_that_hold_a_lock_on_this_file_are_found() {
        let locks = "1: FLOCK  ADVISORY  WRITE 70 00:1f:9 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 71 00:1f:9 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 72 00:1f:9 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 73 00:1f:9 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 74 00:1f:99 0 EOF\n";
        assert_eq!(processes_with_lock(locks, "00:1f:9").collect::<Vec<_>>(), ["70", "73"]);
    }

    #[test]
    fn the_user_of_a_lock_of_this_process_is_found() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(users_with_lock(&file).unwrap(), Some(Vec::new()));
        file.lock().unwrap();
        // The file system might have another device number in `/proc/locks`.
        let users = users_with_lock(&file).unwrap().unwrap();
        assert!(users.iter().all(|user| *user == nix::unistd::Uid::current().as_raw()), "{users:?}");
    }
}
