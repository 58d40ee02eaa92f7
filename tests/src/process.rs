//! Reads `/proc` about a process and sends signals to it.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::wait;

/// A process by its PID. It need not be a child of the test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process(pub u32);

impl Process {
    /// Whether the process runs. A zombie does not.
    pub fn alive(self) -> bool {
        self.status_field("State").is_some_and(|state| !state.starts_with(['Z', 'X']))
    }

    /// Sends a signal. Does nothing if the process has ended.
    pub fn signal(self, signal: Signal) {
        if let Ok(id) = i32::try_from(self.0) {
            // This fails only if the process has ended in the meantime.
            let _ = signal::kill(Pid::from_raw(id), signal);
        }
    }

    /// Whether the process has installed a handler for this signal.
    pub fn catches(self, signal: Signal) -> bool {
        let caught = self.status_field("SigCgt").and_then(|mask| u64::from_str_radix(&mask, 16).ok());
        caught.is_some_and(|mask| mask >> (signal as i32 - 1) & 1 == 1)
    }

    /// Waits until the process has ended.
    #[track_caller]
    pub fn wait_gone(self, deadline: Duration) {
        wait::until(deadline, &format!("process {} has ended", self.0), || !self.alive());
    }

    /// Returns the resident memory in bytes, or 0 if the process has ended.
    pub fn resident_bytes(self) -> u64 {
        let kib = self.status_field("VmRSS").and_then(|line| line.split(' ').next()?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }

    /// Whether the kernel may use huge pages for the process; `None` if the kernel does not report it.
    pub fn may_have_huge_pages(self) -> Option<bool> {
        self.status_field("THP_enabled").map(|enabled| enabled == "1")
    }

    /// Returns the proportional set size in bytes: memory that several processes share is divided among them.
    pub fn proportional_bytes(self) -> u64 {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.0)).unwrap_or_default();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
    }

    /// How many of its threads have this name.
    pub fn threads_named(self, name: &str) -> usize {
        let threads = fs::read_dir(format!("/proc/{}/task", self.0)).into_iter().flatten().flatten();
        let names = threads.filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok());
        names.filter(|found| found.trim_end() == name).count()
    }

    /// Returns the parent process.
    pub fn parent(self) -> Option<Self> {
        self.status_field("PPid")?.parse().ok().map(Self)
    }

    /// Returns the working directory.
    pub fn directory(self) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{}/cwd", self.0)).ok()
    }

    /// Returns the targets of the open file descriptors, such as `socket:[1234]`.
    pub fn descriptors(self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(format!("/proc/{}/fd", self.0)) else { return Vec::new() };
        let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        links.map(|target| target.to_string_lossy().into_owned()).collect()
    }

    /// Returns the number of open sockets.
    pub fn sockets(self) -> usize {
        self.descriptors().iter().filter(|target| target.starts_with("socket:")).count()
    }

    /// Returns the child processes, zombies included.
    pub fn children(self) -> Vec<Self> {
        let own = self.0.to_string();
        all().filter(|process| process.status_field("PPid").as_deref() == Some(&own)).collect()
    }

    /// Returns the connections: sockets that have an address and do not listen. Socket pairs have no address.
    pub fn connections(self) -> Vec<String> {
        let known = connections();
        let number = |target: &String| target.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned);
        let numbers = self.descriptors();
        numbers.iter().filter_map(|target| known.get(&number(target)?).cloned()).collect()
    }

    /// Returns the arguments, beginning with the program.
    pub fn arguments(self) -> Vec<String> {
        let text = fs::read(format!("/proc/{}/cmdline", self.0)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        text.split_terminator('\0').map(str::to_owned).collect()
    }

    fn status_field(self, name: &str) -> Option<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().to_owned())
    }
}

/// Returns the running processes that have a path below `directory` among their arguments.
pub fn started_with(directory: &Path) -> Vec<Process> {
    let prefix = format!("{}/", directory.display());
    let names_it = |process: &Process| process.arguments().iter().any(|argument| argument.contains(&prefix));
    others().filter(names_it).collect()
}

/// Returns the running processes that work in `directory` or have a path below it among their arguments. The first rule
/// also finds nginx, which overwrites its arguments.
pub fn of(directory: &Path) -> Vec<Process> {
    let works_in_it = |process: &Process| process.directory().is_some_and(|its| its.starts_with(directory));
    let mut all = started_with(directory);
    all.extend(others().filter(works_in_it));
    all.sort_unstable_by_key(|process| process.0);
    all.dedup();
    all.retain(|process| process.alive());
    all
}

/// Returns all connections by the inodes of their sockets, each as a line of `/proc/net`.
fn connections() -> HashMap<String, String> {
    let read = |name: &str| fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
    let entry = |line: &str, number: usize, listens: fn(&[&str]) -> bool| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let inode = fields.get(number).filter(|_| !listens(&fields))?;
        Some(((*inode).to_owned(), line.trim().to_owned()))
    };
    let internet = [read("tcp"), read("tcp6")].concat();
    let internet = internet.lines().filter_map(|line| entry(line, 9, |fields| fields[3] == "0A"));
    // A path, if there is one, is the eighth field.
    let unix = read("unix");
    let named = unix.lines().filter(|line| line.split_whitespace().count() > 7);
    let unix = named.filter_map(|line| entry(line, 6, |fields| fields[3] == "00010000"));
    internet.chain(unix).collect()
}

fn others() -> impl Iterator<Item = Process> {
    all().filter(|process| process.0 != std::process::id())
}

fn all() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).map(Process)
}

/// Returns the number of sockets that listen on exactly this IPv4 address, in any process.
pub fn listening_sockets(address: SocketAddr) -> usize {
    let SocketAddr::V4(v4) = address else { panic!("this function supports only IPv4") };
    let ip = u32::from_le_bytes(v4.ip().octets());
    let local = format!("{ip:08X}:{:04X}", v4.port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let listens = |line: &&str| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next() == Some(local.as_str()) && fields.nth(1) == Some("0A")
    };
    table.lines().filter(listens).count()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::ports;

    #[test]
    fn the_test_reads_its_own_process() {
        let own = Process(std::process::id());
        assert!(own.alive());
        assert!(own.resident_bytes() > 100_000);
        assert!(own.proportional_bytes() > 100_000);
        assert!(own.parent().is_some_and(Process::alive));
        assert!(!own.descriptors().is_empty());
    }

    #[test]
    fn a_process_is_found_by_its_directory_until_it_has_ended() {
        let directory = tempfile::tempdir().expect("there is room for a directory");
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .current_dir(directory.path())
            .spawn()
            .expect("every system has it");
        assert_eq!(of(directory.path()), [Process(child.id())]);
        child.kill().expect("it is our child");
        wait::until(wait::LONG, "it has ended", || of(directory.path()).is_empty());
        child.wait().expect("it is our child");
    }

    #[test]
    fn listening_sockets_of_one_address_are_counted() {
        let address = ports::free();
        assert_eq!(listening_sockets(address), 0);
        let listener = TcpListener::bind(address).expect("it is free");
        assert_eq!(listening_sockets(address), 1);
        drop(listener);
        assert_eq!(listening_sockets(address), 0);
    }

    #[test]
    fn listening_sockets_are_not_connections() {
        let own = Process(std::process::id());
        let listener = TcpListener::bind(ports::free()).expect("it is free");
        let address = listener.local_addr().expect("it is bound");
        // The table of the system shows ports in hexadecimal.
        let port = format!(":{:04X} ", address.port());
        let to_it = || own.connections().iter().filter(|line| line.contains(&port)).count();
        assert_eq!(to_it(), 0);
        let client = std::net::TcpStream::connect(address).expect("it listens");
        assert_eq!(to_it(), 1, "not accepted yet");
        let accepted = listener.accept().expect("the client has connected");
        assert_eq!(to_it(), 2);
        drop((client, accepted));
        assert_eq!(to_it(), 0);
    }
}
