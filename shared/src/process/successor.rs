//! The new process that an upgrade starts, until it serves.
//!
//! [`start_and_hand_over`] carries out one upgrade: it opens the [offer](Offer), runs the executable once more, and
//! waits until the new process serves or has failed. After any failure it ends the new process, waits for its end and
//! withdraws the offer, so that nothing remains of the attempt.
//!
//! The new process is started as this one was: with the same path (which might name another file by now), arguments,
//! working directory and environment, with `-u` added, and with the same text on standard input if this process read
//! its configuration there. It runs as the user that this process has become. With `user` in the configuration this is
//! no longer root, so anything new that needs root fails (another port below 1024, a file in root's directories), and
//! the old process continues. In that case SIGQUIT and a start with `-u` as root is the remedy.
//!
//! The new process receives its [`Predecessor`]: the path at which the sockets are offered, and the directory for files
//! whose paths are not configured. Both might differ from the values that it would derive itself, because it might run
//! as another user and its configuration file might have changed.
//!
//! In the background, this process is the parent of the new one as the first process of `-d` is the parent of the
//! second (see [`background`]): it reads the messages of the new process until that serves. A process in the foreground
//! shares its standard output and error with the new one. The new process therefore reports over the offer why it fails
//! ([`Predecessor::tell`]).
//!
//! The executable might be a script. It should `exec` the daemon, since only the process that was started here is
//! watched.

use std::ffi::{OsStr, OsString};
use std::future::ready;
use std::io;
use std::os::unix::process::{ExitStatusExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{AccessFlags, Pid, access};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::files::reason;
use super::other::OtherProcess;
use super::pid_file::PidFile;
use super::upgrade::{About, Handover, Offer, ReadySuccessor, UpgradeError};
use super::{FileId, background, input, systemd, upgrade};

/// The environment variable with the [`Predecessor`] of a new process.
const PREDECESSOR: &str = "LB_SUCCESSOR";
/// The time limit for a new process to end by itself after it has closed the connection.
const LAST_BREATH: Duration = Duration::from_secs(1);
/// The time limit for a new process to end after SIGTERM.
const END: Duration = Duration::from_secs(3);
/// The number of bytes that are kept of its messages, from the end. They are enough for a configuration diagnostic with
/// its lines.
const SAID: usize = 2048;

/// The command that runs this program once more as the new process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    program: PathBuf,
    name: OsString,
    arguments: Vec<OsString>,
    /// The working directory at the start. `None` means that it is unknown; the directory of this process is then used.
    directory: Option<PathBuf>,
    background: bool,
    /// The configuration that this process read from standard input. `None` means that it read a file.
    input: Option<Arc<str>>,
    /// Whether the path of the configuration file is relative to this directory.
    is_relative: bool,
    runtime_directory: PathBuf,
    about: About,
}

/// The facts about the start of this process that the operating system does not store.
#[derive(Clone, Debug)]
pub(crate) struct Started<'a> {
    /// Whether it was started with `-u`.
    pub upgraded: bool,
    /// Whether it runs in the background.
    pub in_background: bool,
    /// Whether the path of its configuration file is relative to its first working directory.
    pub is_relative: bool,
    /// The directory for files whose paths are not configured.
    pub runtime_directory: &'a Path,
    /// The description of this process for a new process.
    pub about: About,
}

/// The message of the old process to the new process that it starts, in an environment variable. It contains the PID of
/// the sender, so that only a direct child uses it, or a process whose sender has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Predecessor {
    parent: u32,
    /// The directory for files whose paths are not configured. It belongs to the user who started the first process;
    /// the new process might run as another user.
    pub runtime_directory: PathBuf,
    /// The path at which the sockets are offered.
    pub upgrade_sock: PathBuf,
}

/// A new process that does not serve yet. Dropping it kills it.
struct Successor {
    child: Child,
    pid: u32,
    /// The path of the PID file that it takes over once it serves. `None` means that there is none.
    pid_file: Option<PathBuf>,
    said: Arc<Mutex<Vec<u8>>>,
    /// The task that reads its standard error. `None` in the foreground.
    listening: Option<JoinHandle<()>>,
    is_running: bool,
}

/// Returns the reason why the process with this PID cannot be upgraded. `None` means that it can.
pub(crate) fn hindrance(pid: u32) -> Option<&'static str> {
    (pid == 1).then_some(
        "this is process 1 of a container, and the container ends with it; start a container of the new image, then stop \
         this one, which drains",
    )
}

/// Starts a new process, offers it the sockets and the run-time state at `upgrade_sock`, and returns once it serves.
/// All of this takes at most `window`.
///
/// # Errors
/// Fails if the new process does not serve in time. This process is unchanged, and the new process has ended.
pub(crate) async fn start_and_hand_over(
    launch: &Launch,
    upgrade_sock: &Path,
    handover: Handover,
    window: Duration,
) -> Result<ReadySuccessor, UpgradeError> {
    let offer = Offer::open(upgrade_sock)?.saying(launch.about.clone());
    let mut successor = Successor::start(launch, upgrade_sock)?;
    log::info!("upgrade: process {} is started from {}", successor.pid, launch.program.display());
    let served = tokio::select! {
        // If both are ready, the new process serves: our child can be a wrapper that ends while the daemon lives on.
        biased;
        // One limit for all of its steps.
        served = timeout(window, offer.serve(ready(Ok(handover)), Duration::MAX)) => {
            served.unwrap_or(Err(UpgradeError::SuccessorSlow { pid: successor.pid, after: window }))
        }
        _ = successor.child.wait() => Err(UpgradeError::SuccessorEnded { pid: successor.pid }),
    };
    match served {
        Ok(ready) => {
            successor.release();
            Ok(ready)
        }
        Err(error) => Err(successor.end(error).await),
    }
}

// === impl Predecessor ===

impl Predecessor {
    /// Reads the message of the process that has started this one in an upgrade. `None` means that this process was
    /// started otherwise. This is the only place that reads the variable.
    pub(crate) fn of_this_process() -> Option<Self> {
        Self::parse(&std::env::var(PREDECESSOR).ok()?, parent_id())
    }

    fn parse(text: &str, parent: u32) -> Option<Self> {
        // If the old process was killed, this process has another parent.
        let is_meant = |predecessor: &Self| predecessor.parent == parent || predecessor.process().has_ended();
        serde_json::from_str(text).ok().filter(is_meant)
    }

    /// Returns the old process.
    pub(crate) fn process(&self) -> OtherProcess {
        OtherProcess::of(self.parent)
    }

    /// Reports why this process ends instead of taking over. This is needed because the old process does not read the
    /// standard error of a new process in the foreground.
    pub(crate) fn tell(&self, reason: &str) {
        upgrade::refuse(&self.upgrade_sock, reason);
    }
}

// === impl Launch ===

impl Launch {
    /// Records how this process was started. It must be called before the process changes its working directory.
    pub(crate) fn of_this_process(started: &Started<'_>) -> io::Result<Self> {
        let mut arguments = std::env::args_os();
        let name = arguments.next().unwrap_or_default();
        let directory = std::env::current_dir().ok();
        let own = FileId::of(&std::fs::metadata("/proc/self/exe")?);
        let named = named(&name, directory.as_deref(), std::env::var_os("PATH").as_deref());
        let program = named.into_iter().find(|path| is_file(path, own));
        let program = program.map_or_else(|| std::env::current_exe().map(undeleted), Ok)?;
        Ok(Self {
            program,
            name,
            arguments: with_upgrade(arguments, started.upgraded),
            directory,
            background: started.in_background,
            is_relative: started.is_relative,
            runtime_directory: started.runtime_directory.to_owned(),
            about: started.about.clone(),
            input: None,
        })
    }

    /// Sets the text for the standard input of the new process, if this process read its configuration there.
    pub(crate) fn with_input(self, input: Option<Arc<str>>) -> Self {
        Self { input, ..self }
    }

    /// Returns the description of this process for a new process.
    pub(super) fn about(&self) -> About {
        self.about.clone()
    }

    /// Returns the directory in which the new process starts. If this user cannot enter it (root's home, for example)
    /// or a deployment has deleted it, the new process starts in `/`, unless the path of the configuration file is
    /// relative.
    fn directory(&self) -> Result<Option<&Path>, UpgradeError> {
        let Some(directory) = &self.directory else { return Ok(None) };
        match access(directory, AccessFlags::X_OK) {
            Ok(()) => Ok(Some(directory)),
            Err(Errno::EACCES | Errno::ENOENT | Errno::ENOTDIR) if !self.is_relative => {
                Ok(Some(Path::new("/")))
            }
            Err(error) => Err(UpgradeError::Directory { directory: directory.clone(), source: error.into() }),
        }
    }

    fn predecessor(&self, upgrade_sock: &Path) -> Predecessor {
        Predecessor {
            parent: std::process::id(),
            runtime_directory: self.runtime_directory.clone(),
            upgrade_sock: upgrade_sock.to_owned(),
        }
    }

    fn command(&self, upgrade_sock: &Path) -> Result<Command, UpgradeError> {
        let predecessor = serde_json::to_string(&self.predecessor(upgrade_sock)).map_err(io::Error::from)?;
        let mut command = Command::new(&self.program);
        command.arg0(&self.name).args(&self.arguments).env_remove(systemd::WATCHDOG_PID);
        command.env(PREDECESSOR, predecessor);
        if let Some(directory) = self.directory()? {
            command.current_dir(directory);
        }
        if self.background {
            command.env(background::MARKER, std::process::id().to_string());
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        } else {
            command.env_remove(background::MARKER);
        }
        if let Some(text) = &self.input {
            command.stdin(input::of(text)?);
        }
        Ok(command)
    }
}

/// Returns the paths at which the shell looked for the program. Symbolic links are not followed, because an upgrade
/// might change their target.
fn named(name: &OsStr, directory: Option<&Path>, path: Option<&OsStr>) -> Vec<PathBuf> {
    let name = Path::new(name);
    if name.components().count() > 1 {
        return vec![directory.map_or_else(|| name.to_owned(), |directory| directory.join(name))];
    }
    let directories = path.into_iter().flat_map(std::env::split_paths);
    directories.map(|directory| directory.join(name)).collect()
}

fn is_file(path: &Path, id: FileId) -> bool {
    path.is_absolute() && std::fs::metadata(path).is_ok_and(|found| FileId::of(&found) == id)
}

/// Returns the path of an executable without the suffix that the kernel adds when its file was replaced.
fn undeleted(path: PathBuf) -> PathBuf {
    let undeleted = path.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map(PathBuf::from);
    undeleted.unwrap_or(path)
}

/// Adds `-u` in front of the arguments, because Pingora's flags must come before a subcommand.
fn with_upgrade(arguments: impl Iterator<Item = OsString>, already: bool) -> Vec<OsString> {
    let added = (!already).then(|| OsString::from("-u"));
    added.into_iter().chain(arguments).collect()
}

// === impl Successor ===

impl Successor {
    fn start(launch: &Launch, upgrade_sock: &Path) -> Result<Self, UpgradeError> {
        let failed = |source| UpgradeError::NotStarted { program: launch.program.clone(), source };
        let mut child = launch.command(upgrade_sock)?.spawn().map_err(failed)?;
        let pid = child.id().ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let said = Arc::default();
        let stderr = child.stderr.take();
        let listening = stderr.map(|stderr| tokio::spawn(listen(stderr, Arc::clone(&said))));
        let pid_file = launch.about.pid_file.clone();
        Ok(Self { child, pid, pid_file, said, listening, is_running: true })
    }

    /// Lets a new process that serves live on without us. If it ends before this process, it is reaped.
    fn release(mut self) {
        self.is_running = false;
        tokio::spawn(async move { self.child.wait().await });
    }

    /// Ends the new process if it does not end by itself, waits for its end, and returns the reason of the failure:
    /// `error`, or the exit code and the messages of a process that ended by itself.
    async fn end(mut self, error: UpgradeError) -> UpgradeError {
        let by_itself = match &error {
            UpgradeError::SuccessorSlow { .. } => None,
            _ => timeout(LAST_BREATH, self.child.wait()).await.ok(),
        };
        let Some(status) = by_itself else {
            self.signal(Signal::SIGTERM);
            if timeout(END, self.child.wait()).await.is_err() {
                self.kill();
                // SIGKILL cannot be blocked, so this wait is short; only freeing its memory can take a moment.
                let _ = self.child.wait().await;
            }
            self.is_running = false;
            return error;
        };
        self.is_running = false;
        let how = status.map_or_else(|error| format!("has ended: {}", reason(&error)), describe);
        let reason = match error {
            UpgradeError::Refused(reason) => reason,
            _ => self.last_words().await,
        };
        UpgradeError::SuccessorFailed { pid: self.pid, how, reason }
    }

    async fn last_words(&mut self) -> String {
        if let Some(listening) = self.listening.take() {
            // Its last messages might not be read yet. The wait is limited, because a child of it can keep the pipe
            // open.
            let _ = timeout(LAST_BREATH, listening).await;
        }
        let said = self.said.lock();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        if said.is_empty() { "it printed nothing; the log might have its messages".to_owned() } else { said }
    }

    /// Kills the process, and removes the PID file that it has prepared and can no longer remove itself.
    fn kill(&self) {
        self.signal(Signal::SIGKILL);
        if let Some(path) = &self.pid_file {
            PidFile::remove_prepared(path, self.pid);
        }
    }

    fn signal(&self, signal: Signal) {
        // It has not been reaped, so the PID still belongs to it.
        if let Ok(pid) = i32::try_from(self.pid) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if self.is_running {
            self.kill();
        }
    }
}

/// Reads the standard error of the new process until it is closed, and keeps the end of the text.
async fn listen(mut stderr: ChildStderr, said: Arc<Mutex<Vec<u8>>>) {
    let mut bytes = [0; 1024];
    while let Ok(length @ 1..) = stderr.read(&mut bytes).await {
        let mut said = said.lock();
        said.extend(&bytes[..length]);
        let surplus = said.len().saturating_sub(SAID);
        said.drain(..surplus);
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(2), _) => "ended with exit code 2 (the command line or the configuration is wrong)".to_owned(),
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => {
            let name = Signal::try_from(signal).map_or("unknown", Signal::as_str);
            format!("was killed by signal {signal} ({name})")
        }
        (None, None) => "ended".to_owned(),
    }
}

#[cfg(test)]
impl Launch {
    /// Runs a shell script instead of this program.
    pub(super) fn script(script: &str, background: bool) -> Self {
        Self {
            program: "/bin/sh".into(),
            name: "sh".into(),
            arguments: vec!["-c".into(), script.into()],
            directory: None,
            background,
            input: None,
            is_relative: true,
            runtime_directory: "/run".into(),
            about: About::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_program_is_found_as_the_shell_finds_it() {
        let directory = Some(Path::new("/srv"));
        let path = Some(OsStr::new("/bin:/usr/bin"));
        assert_eq!(
            named(OsStr::new("lb"), directory, path),
            [Path::new("/bin/lb"), Path::new("/usr/bin/lb")]
        );
        assert_eq!(named(OsStr::new("./lb"), directory, path), [Path::new("/srv/./lb")]);
        assert_eq!(named(OsStr::new("/opt/lb"), directory, path), [Path::new("/opt/lb")]);
        assert!(named(OsStr::new("lb"), directory, None).is_empty());
    }

    #[test]
    fn a_path_names_the_executable_if_it_or_its_target_is_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link, other) = (dir.path().join("lb-1"), dir.path().join("lb"), dir.path().join("other"));
        std::fs::write(&file, "").unwrap();
        std::fs::write(&other, "").unwrap();
        symlink(&file, &link).unwrap();
        let own = FileId::at(&file).unwrap();
        assert!(is_file(&file, own) && is_file(&link, own));
        assert!(!is_file(&other, own) && !is_file(Path::new("lb"), own));
    }

    #[test]
    fn the_path_of_a_replaced_executable_has_no_suffix() {
        assert_eq!(undeleted("/opt/lb (deleted)".into()), Path::new("/opt/lb"));
        assert_eq!(undeleted("/opt/lb".into()), Path::new("/opt/lb"));
    }

    #[test]
    fn the_flag_is_added_once_and_before_a_subcommand() {
        let with = |arguments: &[&str], already| with_upgrade(arguments.iter().map(OsString::from), already);
        assert_eq!(with(&["-c", "f", "-d"], false), ["-u", "-c", "f", "-d"]);
        assert_eq!(with(&["proxy", "--to", "a"], false), ["-u", "proxy", "--to", "a"]);
        assert_eq!(with(&["-du"], true), ["-du"]);
    }

    #[test]
    fn a_launch_records_how_this_process_was_started() {
        let runtime_directory = Path::new("/run/user/7");
        let about = About::default();
        let started =
            Started { upgraded: false, in_background: false, is_relative: false, runtime_directory, about };
        let launch = Launch::of_this_process(&started).unwrap();
        assert_eq!(launch.predecessor(Path::new("/a.sock")).runtime_directory, runtime_directory);
        assert!(launch.program.is_absolute());
        let own = FileId::of(&std::fs::metadata("/proc/self/exe").unwrap());
        assert!(is_file(&launch.program, own));
        assert_eq!(launch.directory, std::env::current_dir().ok());
    }

    #[test]
    fn a_child_of_the_old_process_has_a_predecessor_and_so_has_its_orphan() {
        let mut predecessor = Launch::script("", false).predecessor(Path::new("/run/a/upgrade.sock"));
        let text = serde_json::to_string(&predecessor).unwrap();
        assert_eq!(Predecessor::parse(&text, std::process::id()).as_ref(), Some(&predecessor));
        assert_eq!(Predecessor::parse(&text, std::process::id() + 1), None);
        assert_eq!(Predecessor::parse("", std::process::id()), None);
        let mut killed = std::process::Command::new("true").spawn().unwrap();
        killed.wait().unwrap();
        predecessor.parent = killed.id();
        let text = serde_json::to_string(&predecessor).unwrap();
        assert_eq!(Predecessor::parse(&text, std::process::id()), Some(predecessor));
    }

    #[tokio::test]
    async fn a_new_process_in_the_foreground_reports_over_the_offer_why_it_fails() {
        let dir = tempfile::tempdir().unwrap();
        let sock = dir.path().join("sock");
        // The test acts as the new process. The old process does not read its standard error either.
        let predecessor = Launch::script("", false).predecessor(&sock);
        let telling = tokio::task::spawn_blocking(move || {
            while !predecessor.upgrade_sock.exists() {
                std::thread::yield_now();
            }
            predecessor.tell("the file is wrong");
        });
        let launch = Launch::script("exec sleep 60", false);
        let failed =
            start_and_hand_over(&launch, &sock, Handover::of(Vec::new()).await, END).await.unwrap_err();
        telling.await.unwrap();
        assert!(failed.to_string().ends_with("the file is wrong"), "{failed}");
    }

    #[test]
    fn the_end_of_a_process_is_described_by_exit_code_or_signal() {
        assert_eq!(describe(ExitStatus::from_raw(1 << 8)), "ended with exit code 1");
        assert_eq!(describe(ExitStatus::from_raw(9)), "was killed by signal 9 (SIGKILL)");
    }

    #[tokio::test]
    async fn the_error_names_a_program_that_cannot_be_started() {
        let dir = tempfile::tempdir().unwrap();
        let launch = Launch { program: "/no/such/program".into(), ..Launch::script("", false) };
        let failed =
            start_and_hand_over(&launch, &dir.path().join("sock"), Handover::of(Vec::new()).await, END)
                .await
                .unwrap_err()
                .to_string();
        assert!(failed.contains("cannot start /no/such/program"), "{failed}");
        assert!(!dir.path().join("sock").exists());
    }

    #[tokio::test]
    async fn the_error_names_a_directory_that_cannot_be_entered() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        let launch = Launch { directory: Some(gone.clone()), ..Launch::script("", false) };
        let sock = dir.path().join("sock");
        let failed = start_and_hand_over(&launch, &sock, Handover::of(Vec::new()).await, END)
            .await
            .unwrap_err()
            .to_string();
        assert!(failed.contains(&format!("cannot enter {}", gone.display())), "{failed}");
    }

    #[test]
    fn a_deleted_directory_matters_only_to_a_relative_path() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        for directory in [dir.path().join("gone"), file.join("below")] {
            let launch = Launch { directory: Some(directory), ..Launch::script("", false) };
            assert!(launch.directory().is_err());
            let launch = Launch { is_relative: false, ..launch };
            assert_eq!(launch.directory().unwrap(), Some(Path::new("/")));
        }
    }

    #[tokio::test]
    async fn a_new_process_that_is_killed_leaves_no_pid_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lb.pid");
        let script = format!("echo $$ > {}.$$; exec sleep 100", path.display());
        let about = About::new(None, Some(&path));
        let launch = Launch { about, ..Launch::script(&script, false) };
        let successor = Successor::start(&launch, &dir.path().join("sock")).unwrap();
        let beside = dir.path().join(format!("lb.pid.{}", successor.pid));
        while !beside.exists() {
            tokio::task::yield_now().await;
        }
        drop(successor);
        assert!(!beside.exists());
    }

    #[tokio::test]
    async fn only_the_end_of_the_messages_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let script = "i=0; while [ $i -lt 2000 ]; do echo line $i >&2; i=$((i+1)); done; exit 3";
        let launch = Launch::script(script, true);
        let failed =
            start_and_hand_over(&launch, &dir.path().join("sock"), Handover::of(Vec::new()).await, END * 3)
                .await
                .unwrap_err();
        let UpgradeError::SuccessorFailed { how, reason, .. } = failed else { panic!("{failed}") };
        assert_eq!(how, "ended with exit code 3");
        assert!(reason.len() <= SAID && reason.ends_with("line 1999"), "{reason}");
    }
}
