//! `-d`: running in the background, without a fork.
//!
//! The program is run a second time, detached from the terminal, and the first one waits until the second says that it
//! serves. So `load_balancer -d` returns when requests can be sent, with exit code 0; when the start fails, its messages
//! are on the terminal and its exit code is that of the command. Nothing is forked after threads exist, so nothing can be
//! lost in a fork.
//!
//! The second process recognises itself by an environment variable with its parent's pid, which is no longer true for
//! any process that it may itself start. In an upgrade the running process is the parent, and sets the variable for its
//! [successor](super::successor). The second process says that it serves by a line on standard output, which is a pipe until then
//! and `/dev/null` from then on.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, parent_id};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::stat::{Mode, umask};

use super::{input, systemd};

/// The variable that has the pid of the parent whose second process, or successor, is to run in the background.
pub(super) const MARKER: &str = "LB_BACKGROUND";
const READY: &str = "load_balancer: ready";
/// The exit code for a second process that was killed.
const FAILED: u8 = 1;

/// What this process has to do.
#[derive(Debug)]
pub enum Role {
    /// Start and serve; then announce it.
    Serve(Announcer),
    /// Nothing any more: the process in the background serves, or has failed, and this is the exit code to end with.
    Parent(u8),
}

/// Says that the start is over.
#[derive(Debug)]
#[must_use = "a parent waits for the announcement"]
pub struct Announcer {
    background: bool,
}

/// An announcement that nothing is missing for; holds what standard output becomes, in the background.
#[derive(Debug)]
pub struct Prepared(Option<File>);

/// Decides the role of this process: serving in the foreground, waiting for the one in the background, or being it
/// (its own session, umask 027). `input` is what this process read from standard input as its configuration. To be called before any thread is started and anything is opened.
///
/// # Errors
/// When the program cannot be run a second time.
pub fn enter(daemon: bool, input: Option<&str>) -> io::Result<Role> {
    if !daemon {
        return Ok(Role::Serve(Announcer { background: false }));
    }
    let marker = std::env::var_os(MARKER);
    if is_marked(marker.as_deref(), parent_id()) {
        detach()?;
        return Ok(Role::Serve(Announcer { background: true }));
    }
    let (forward, child) = (io::stdout(), run_again(input)?);
    Ok(Role::Parent(wait_for(child, forward)?))
}

impl Announcer {
    /// Whether a parent waits for the announcement.
    pub fn is_background(&self) -> bool {
        self.background
    }

    /// Has what it needs at hand, so that nothing is missing once the announcement cannot be taken back.
    ///
    /// # Errors
    /// When `/dev/null` cannot be opened.
    pub fn prepare(self) -> io::Result<Prepared> {
        let open = || File::options().write(true).open("/dev/null");
        Ok(Prepared(self.background.then(open).transpose()?))
    }
}

impl Prepared {
    /// Lets the waiting parent end, and turns away from the terminal. Without an error log (`keep_stderr` false) what is
    /// logged from now on is lost, as with any daemon that is not told where to write.
    ///
    /// In the foreground nothing happens.
    pub fn announce(self, keep_stderr: bool) -> io::Result<()> {
        let Some(null) = self.0 else { return Ok(()) };
        // What has been logged is for the terminal, and comes before its prompt.
        log::logger().flush();
        if let Err(error) = writeln!(io::stdout().lock(), "{READY}") {
            log::warn!("background: nobody waits for the start any more: {error}");
        }
        nix::unistd::dup2_stdout(&null)?;
        if !keep_stderr {
            nix::unistd::dup2_stderr(&null)?;
        }
        Ok(())
    }
}

/// Only the direct child of the process that set the marker is meant.
fn is_marked(marker: Option<&OsStr>, parent: u32) -> bool {
    marker.and_then(OsStr::to_str).and_then(|pid| pid.parse().ok()) == Some(parent)
}

fn detach() -> io::Result<()> {
    nix::unistd::setsid()?;
    umask(Mode::from_bits_truncate(0o027));
    name_process()
}

/// `pkill load_balancer` goes by the name of the executed file, which is `exe` for `/proc/self/exe`.
fn name_process() -> io::Result<()> {
    let program = std::env::args_os().next().unwrap_or_default();
    match Path::new(&program).file_name().map(|name| CString::new(name.as_bytes())) {
        Some(Ok(name)) => Ok(nix::sys::prctl::set_name(&name)?),
        _ => Ok(()),
    }
}

/// Runs this very executable, also when its file has been replaced meanwhile. What this process read from standard input, the other
/// one reads there as well.
fn run_again(input: Option<&str>) -> io::Result<Child> {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    Command::new("/proc/self/exe")
        .arg0(program)
        .args(arguments)
        .env(MARKER, std::process::id().to_string())
        .env_remove(systemd::WATCHDOG_PID)
        .stdin(input.map(input::of).transpose()?.map_or_else(Stdio::null, Stdio::from))
        .stdout(Stdio::piped())
        .spawn()
}

fn wait_for(mut child: Child, forward: impl Write) -> io::Result<u8> {
    if let Some(stdout) = child.stdout.take()
        && is_ready(BufReader::new(stdout), forward)?
    {
        return Ok(0);
    }
    child.wait().map(exit_code)
}

/// Passes on what is written until the announcement (true) or the end (false).
fn is_ready(output: impl BufRead, mut forward: impl Write) -> io::Result<bool> {
    for line in output.split(b'\n') {
        let line = line?;
        if line == READY.as_bytes() {
            return Ok(true);
        }
        forward.write_all(&line)?;
        forward.write_all(b"\n")?;
    }
    Ok(false)
}

fn exit_code(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn shell(script: &str) -> Child {
        Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap()
    }

    #[test]
    fn in_the_foreground_there_is_nobody_to_tell() {
        let Role::Serve(announcer) = enter(false, None).unwrap() else { panic!("not serving") };
        assert!(!announcer.is_background());
        announcer.prepare().unwrap().announce(false).unwrap();
    }

    #[test]
    fn only_the_parents_pid_marks() {
        assert!(is_marked(Some(OsStr::new("12")), 12));
        assert!(!is_marked(Some(OsStr::new("12")), 13));
        assert!(!is_marked(Some(OsStr::new("yes")), 12));
        assert!(!is_marked(None, 12));
    }

    #[test]
    fn what_comes_before_the_announcement_is_passed_on() {
        let mut seen = Vec::new();
        let output = format!("listening\n{READY}\nlater\n");
        assert!(is_ready(output.as_bytes(), &mut seen).unwrap());
        assert_eq!(seen, b"listening\n");
    }

    #[test]
    fn the_parent_ends_while_the_child_goes_on() {
        // `read` ends with the test's pipe, not before the parent has returned.
        let mut child = Command::new("sh")
            .args(["-c", &format!("echo '{READY}'; read line")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let _open = child.stdin.take();
        assert_eq!(wait_for(child, io::sink()).unwrap(), 0);
    }

    #[test]
    fn a_failed_start_gives_its_exit_code() {
        assert_eq!(wait_for(shell("echo partly; exit 2"), io::sink()).unwrap(), 2);
        assert_eq!(wait_for(shell("kill -9 $$"), io::sink()).unwrap(), FAILED);
        // Ending well without having served is what `-t` does.
        assert_eq!(wait_for(shell("exit 0"), io::sink()).unwrap(), 0);
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8)), 3);
    }
}
