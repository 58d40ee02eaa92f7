//! The option `-d`, which runs the daemon in the background, without a fork.
//!
//! The first process runs the program a second time, detached from the terminal, and waits until the second process
//! announces that it serves. So `load_balancer -d` returns with exit code 0 once clients can send requests. If the
//! start fails, its messages are on the terminal, and the command ends with the exit code of the second process. No
//! process with threads is forked, so no thread can be lost in a fork.
//!
//! The second process is recognised by an environment variable with the PID of its parent. A process that the second
//! process starts has another parent, so the variable has no effect there. In an upgrade the running process is the
//! parent, and sets the variable for the [new process](super::successor). The second process announces that it serves
//! with a line on standard output, which is a pipe until then and `/dev/null` from then on.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, parent_id};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::stat::{Mode, umask};

use super::files::reason;
use super::{input, systemd};

/// The environment variable with the PID of the parent whose second process, or new process, must run in the
/// background.
pub(super) const MARKER: &str = "LB_BACKGROUND";
const READY: &str = "load_balancer: ready";
/// The exit code of the command if the second process was killed.
const FAILED: u8 = 1;

/// The role of this process.
#[derive(Debug)]
pub(crate) enum Role {
    /// It starts, serves, and announces that it serves.
    Serve(Announcer),
    /// It ends with this exit code, because the process in the background serves or has failed.
    Parent(u8),
}

/// The means to announce that the start is complete.
#[derive(Debug)]
#[must_use = "a parent waits for the announcement"]
pub(crate) struct Announcer {
    background: bool,
}

/// An announcement that can no longer fail for want of a file. In the background it contains the new standard output.
#[derive(Debug)]
pub(crate) struct Prepared(Option<File>);

/// Decides the role of this process: it serves in the foreground, waits for the process in the background, or is that
/// process (with its own session and umask 027). `input` is the configuration that this process read from standard
/// input. This must be called before any thread is started and any file is opened.
///
/// # Errors
/// Fails if the program cannot be run a second time.
pub(crate) fn enter(daemon: bool, input: Option<&str>) -> io::Result<Role> {
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
    /// Returns whether a parent waits for the announcement.
    pub(crate) fn is_background(&self) -> bool {
        self.background
    }

    /// Opens the file that the announcement needs, so that a failure occurs before the start is irrevocable.
    ///
    /// # Errors
    /// Fails if `/dev/null` cannot be opened.
    pub(crate) fn prepare(self) -> io::Result<Prepared> {
        let open = || File::options().write(true).open("/dev/null");
        Ok(Prepared(self.background.then(open).transpose()?))
    }
}

impl Prepared {
    /// Lets the waiting parent end, and closes the terminal. Without an error log (`keep_stderr` is false), later log
    /// lines are lost, as with any daemon without a log file.
    ///
    /// In the foreground this does nothing.
    pub(crate) fn announce(self, keep_stderr: bool) -> io::Result<()> {
        let Some(null) = self.0 else { return Ok(()) };
        // Earlier log lines belong on the terminal, before its prompt.
        log::logger().flush();
        if let Err(error) = writeln!(io::stdout().lock(), "{READY}") {
            log::warn!("background: the parent process no longer waits for the start: {}", reason(&error));
        }
        nix::unistd::dup2_stdout(&null)?;
        if !keep_stderr {
            nix::unistd::dup2_stderr(&null)?;
        }
        Ok(())
    }
}

/// Returns whether this process is a direct child of the process that set the marker.
fn is_marked(marker: Option<&OsStr>, parent: u32) -> bool {
    marker.and_then(OsStr::to_str).and_then(|pid| pid.parse().ok()) == Some(parent)
}

fn detach() -> io::Result<()> {
    nix::unistd::setsid()?;
    umask(Mode::from_bits_truncate(0o027));
    name_process()
}

/// Sets the process name that `pkill load_balancer` looks for. Without this it would be `exe`, from `/proc/self/exe`.
fn name_process() -> io::Result<()> {
    let program = std::env::args_os().next().unwrap_or_default();
    match Path::new(&program).file_name().map(|name| CString::new(name.as_bytes())) {
        Some(Ok(name)) => Ok(nix::sys::prctl::set_name(&name)?),
        _ => Ok(()),
    }
}

/// Runs the executable of this process, even if its file has been replaced. The second process reads `input` from
/// standard input.
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

/// Forwards the output until the announcement or the end. Returns whether the announcement came.
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
    fn an_announcement_in_the_foreground_does_nothing() {
        let Role::Serve(announcer) = enter(false, None).unwrap() else { panic!("not serving") };
        assert!(!announcer.is_background());
        announcer.prepare().unwrap().announce(false).unwrap();
    }

    #[test]
    fn only_the_pid_of_the_parent_marks_the_second_process() {
        assert!(is_marked(Some(OsStr::new("12")), 12));
        assert!(!is_marked(Some(OsStr::new("12")), 13));
        assert!(!is_marked(Some(OsStr::new("yes")), 12));
        assert!(!is_marked(None, 12));
    }

    #[test]
    fn output_before_the_announcement_is_forwarded() {
        let mut seen = Vec::new();
        let output = format!("listening\n{READY}\nlater\n");
        assert!(is_ready(output.as_bytes(), &mut seen).unwrap());
        assert_eq!(seen, b"listening\n");
    }

    #[test]
    fn the_parent_ends_while_the_child_goes_on() {
        // `read` ends when the test closes the pipe, after the parent has returned.
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
    fn a_failed_start_ends_with_the_exit_code_of_the_second_process() {
        assert_eq!(wait_for(shell("echo partly; exit 2"), io::sink()).unwrap(), 2);
        assert_eq!(wait_for(shell("kill -9 $$"), io::sink()).unwrap(), FAILED);
        // With `-t` the second process ends with exit code 0 without having served.
        assert_eq!(wait_for(shell("exit 0"), io::sink()).unwrap(), 0);
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8)), 3);
    }
}
