//! The process that an upgrade starts: with what, and what becomes of it until it serves.
//!
//! [`succeed`] is one upgrade: it opens the [offer](Offer), runs the executable once more, and waits until that one serves or has
//! failed. Whatever fails, the new process is then ended and waited for, and the offer withdrawn: nothing is left of the attempt.
//!
//! The new process is run as this one was at its start: the same path (where meanwhile another file may stand), arguments, working
//! directory and environment, with `-u` added, and with the same text on standard input if this one read its configuration there. It runs as the user that this process has become. With `user` in the configuration
//! that is not root any more; so what needs root anew (a port below 1024 that was not there before, a file in root's directories)
//! fails, and the old process goes on. SIGQUIT and a start with `-u` as root is the way then.
//!
//! The new process is given its [`Predecessor`]: where the sockets are on offer, and where files lie whose paths are not given. Both may
//! differ from what it would work out by itself, as another user and from a file that has changed.
//!
//! In the background this process is to the new one what the first process of `-d` is to the second (see [`background`]): its
//! parent, which reads what it says until it serves. A process in the foreground shares its standard output and error with the
//! new one, which therefore says over the offer why it fails ([`Predecessor::tell`]).
//!
//! What the executable runs in turn is not known here: a script in its place should `exec` the daemon.

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

use super::pid_file::PidFile;
use super::upgrade::{About, Heir, Legacy, Offer, UpgradeError};
use super::{FileId, background, input, systemd, upgrade};

/// The variable that has the [`Predecessor`] of a successor.
const PREDECESSOR: &str = "LB_SUCCESSOR";
/// How long a new process that lets go of the connection may take to end by itself.
const LAST_BREATH: Duration = Duration::from_secs(1);
/// How long it may take to end once it was told to.
const END: Duration = Duration::from_secs(3);
/// Of what it says as much is kept, from the end: enough for a problem of the configuration with its lines.
const SAID: usize = 2048;

/// How to run this program once more as its own successor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    program: PathBuf,
    name: OsString,
    arguments: Vec<OsString>,
    /// None when it could not be told; then it is wherever this process is.
    directory: Option<PathBuf>,
    background: bool,
    /// What this process read from standard input as its configuration.
    input: Option<Arc<str>>,
    /// Whether the configuration file was named from this directory on.
    is_relative: bool,
    runtime_directory: PathBuf,
    about: About,
}

/// What this process knows of its start that the operating system does not.
#[derive(Clone, Debug)]
pub struct Started<'a> {
    /// With `-u`.
    pub upgraded: bool,
    /// In the background.
    pub in_background: bool,
    /// With a configuration file that was named from the directory of the start on.
    pub is_relative: bool,
    /// Where files lie whose paths are not given.
    pub runtime_directory: &'a Path,
    /// What it says of itself to a successor.
    pub about: About,
}

/// What a process that starts its successor says to it, in an environment variable with its own number, so that only its child is
/// meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Predecessor {
    parent: u32,
    /// Where files lie whose paths are not given. The successor may be another user than the one that the first process was started
    /// by, whose directory it is.
    pub runtime_directory: PathBuf,
    /// Where the sockets are on offer.
    pub upgrade_sock: PathBuf,
}

/// A new process that does not serve yet. Dropping it kills it.
struct Successor {
    child: Child,
    pid: u32,
    /// The pid file that it takes over once it serves.
    pid_file: Option<PathBuf>,
    said: Arc<Mutex<Vec<u8>>>,
    /// Ends when nobody can say anything any more; none in the foreground.
    listening: Option<JoinHandle<()>>,
    is_running: bool,
}

/// Why this process, by its number, cannot have a successor.
pub fn hindrance(pid: u32) -> Option<&'static str> {
    (pid == 1).then_some(
        "this is process 1 of a container, which ends with it: start a container of the new image and stop this one, \
         which drains then",
    )
}

/// Starts a successor that takes the legacy, offered to it at `upgrade_sock`, and returns once it serves. All of it takes at most
/// `window`.
///
/// # Errors
/// Nothing has changed for this process; the one that was started has ended.
pub async fn succeed(
    launch: &Launch,
    upgrade_sock: &Path,
    legacy: Legacy,
    window: Duration,
) -> Result<Heir, UpgradeError> {
    let offer = Offer::open(upgrade_sock)?.saying(launch.about.clone());
    let mut successor = Successor::start(launch, upgrade_sock)?;
    log::info!("upgrade: process {} is started from {}", successor.pid, launch.program.display());
    let served = tokio::select! {
        // The answer to a new process that serves comes before its parent's end, if it has one of its own.
        biased;
        // One limit for all of its steps.
        served = timeout(window, offer.serve(ready(Ok(legacy)), Duration::MAX)) => {
            served.unwrap_or(Err(UpgradeError::SuccessorSlow { pid: successor.pid, after: window }))
        }
        _ = successor.child.wait() => Err(UpgradeError::SuccessorEnded { pid: successor.pid }),
    };
    match served {
        Ok(heir) => {
            successor.release();
            Ok(heir)
        }
        Err(error) => Err(successor.end(error).await),
    }
}

// === impl Predecessor ===

impl Predecessor {
    /// Of the process that has started this one as its successor; none of any other process. This is the only place that reads the
    /// variable.
    pub fn of_this_process() -> Option<Self> {
        Self::parse(&std::env::var(PREDECESSOR).ok()?, parent_id())
    }

    fn parse(text: &str, parent: u32) -> Option<Self> {
        serde_json::from_str(text).ok().filter(|predecessor: &Self| predecessor.parent == parent)
    }

    /// Says why this process ends in place of taking over: in the foreground nobody reads its standard error.
    pub fn tell(&self, reason: &str) {
        upgrade::refuse(&self.upgrade_sock, reason);
    }
}

// === impl Launch ===

impl Launch {
    /// As this process was started, to be called before it changes its working directory.
    pub fn of_this_process(started: &Started<'_>) -> io::Result<Self> {
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

    /// The same with this text as standard input, for a process that read its configuration there.
    pub fn with_input(self, input: Option<Arc<str>>) -> Self {
        Self { input, ..self }
    }

    /// What this process says of itself to a successor.
    pub(super) fn about(&self) -> About {
        self.about.clone()
    }

    /// Where the new process starts. A directory that this user may not enter, such as root's home, or that a deployment has
    /// deleted, matters only to a path that starts there.
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

/// Where the shell found the program, by its name. A symbolic link is not followed: an upgrade may point it elsewhere.
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

/// The path of an executable whose file was replaced already: the kernel says so at the end of its name.
fn undeleted(path: PathBuf) -> PathBuf {
    let undeleted = path.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map(PathBuf::from);
    undeleted.unwrap_or(path)
}

/// Pingora's flags stand before a verb.
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

    /// It serves: it lives on without us. As long as we live, it is waited for should it end.
    fn release(mut self) {
        self.is_running = false;
        tokio::spawn(async move { self.child.wait().await });
    }

    /// Waits for its end, seeing to it that it comes, and tells why there is no successor: `error`, or what it ended with if it
    /// did so by itself.
    async fn end(mut self, error: UpgradeError) -> UpgradeError {
        let by_itself = match &error {
            UpgradeError::SuccessorSlow { .. } => None,
            _ => timeout(LAST_BREATH, self.child.wait()).await.ok(),
        };
        let Some(status) = by_itself else {
            self.signal(Signal::SIGTERM);
            if timeout(END, self.child.wait()).await.is_err() {
                self.kill();
                // Nothing can keep it from ending now; only its memory may take a moment.
                let _ = self.child.wait().await;
            }
            self.is_running = false;
            return error;
        };
        self.is_running = false;
        let how = status.map_or_else(|error| format!("has ended: {error}"), describe);
        let reason = match error {
            UpgradeError::Refused(reason) => reason,
            _ => self.last_words().await,
        };
        UpgradeError::SuccessorFailed { pid: self.pid, how, reason }
    }

    async fn last_words(&mut self) -> String {
        if let Some(listening) = self.listening.take() {
            // What it has said is still on its way; somebody that it has started may hold the line open, though.
            let _ = timeout(LAST_BREATH, listening).await;
        }
        let said = self.said.lock();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        if said.is_empty() { "the log has its messages, if it had any".to_owned() } else { said }
    }

    /// A killed process cannot remove the pid file that it has prepared.
    fn kill(&self) {
        self.signal(Signal::SIGKILL);
        if let Some(path) = &self.pid_file {
            PidFile::remove_prepared(path, self.pid);
        }
    }

    fn signal(&self, signal: Signal) {
        // It has not been waited for, so the number is still its own.
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

/// Keeps the end of what is said, until it turns away from us.
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
    /// A shell script in place of this program.
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
    fn a_program_is_looked_for_as_the_shell_does() {
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
    fn a_link_to_this_very_file_is_kept_and_another_file_is_not_meant() {
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
    fn a_file_that_was_replaced_is_named_as_before() {
        assert_eq!(undeleted("/opt/lb (deleted)".into()), Path::new("/opt/lb"));
        assert_eq!(undeleted("/opt/lb".into()), Path::new("/opt/lb"));
    }

    #[test]
    fn the_flag_is_added_once_and_before_a_verb() {
        let with = |arguments: &[&str], already| with_upgrade(arguments.iter().map(OsString::from), already);
        assert_eq!(with(&["-c", "f", "-d"], false), ["-u", "-c", "f", "-d"]);
        assert_eq!(with(&["proxy", "--to", "a"], false), ["-u", "proxy", "--to", "a"]);
        assert_eq!(with(&["-du"], true), ["-du"]);
    }

    #[test]
    fn this_process_knows_how_it_was_started() {
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
    fn only_a_child_has_a_predecessor() {
        let predecessor = Launch::script("", false).predecessor(Path::new("/run/a/upgrade.sock"));
        let text = serde_json::to_string(&predecessor).unwrap();
        assert_eq!(Predecessor::parse(&text, std::process::id()), Some(predecessor));
        assert_eq!(Predecessor::parse(&text, std::process::id() + 1), None);
        assert_eq!(Predecessor::parse("", std::process::id()), None);
    }

    #[tokio::test]
    async fn a_successor_in_the_foreground_says_why_it_fails() {
        let dir = tempfile::tempdir().unwrap();
        let sock = dir.path().join("sock");
        // The test process in place of the new one: nobody reads its standard error either.
        let predecessor = Launch::script("", false).predecessor(&sock);
        let telling = tokio::task::spawn_blocking(move || {
            while !predecessor.upgrade_sock.exists() {
                std::thread::yield_now();
            }
            predecessor.tell("the file is wrong");
        });
        let launch = Launch::script("exec sleep 60", false);
        let failed = succeed(&launch, &sock, Legacy::of(Vec::new()).await, END).await.unwrap_err();
        telling.await.unwrap();
        assert!(failed.to_string().ends_with("the file is wrong"), "{failed}");
    }

    #[test]
    fn ends_are_described() {
        assert_eq!(describe(ExitStatus::from_raw(1 << 8)), "ended with exit code 1");
        assert_eq!(describe(ExitStatus::from_raw(9)), "was killed by signal 9 (SIGKILL)");
    }

    #[tokio::test]
    async fn what_cannot_be_started_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let launch = Launch { program: "/no/such/program".into(), ..Launch::script("", false) };
        let failed = succeed(&launch, &dir.path().join("sock"), Legacy::of(Vec::new()).await, END)
            .await
            .unwrap_err()
            .to_string();
        assert!(failed.contains("cannot start /no/such/program"), "{failed}");
        assert!(!dir.path().join("sock").exists());
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_entered_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        let launch = Launch { directory: Some(gone.clone()), ..Launch::script("", false) };
        let sock = dir.path().join("sock");
        let failed =
            succeed(&launch, &sock, Legacy::of(Vec::new()).await, END).await.unwrap_err().to_string();
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
    async fn a_successor_that_is_killed_leaves_no_pid_file() {
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
    async fn only_the_end_of_what_is_said_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let script = "i=0; while [ $i -lt 2000 ]; do echo line $i >&2; i=$((i+1)); done; exit 3";
        let launch = Launch::script(script, true);
        let failed = succeed(&launch, &dir.path().join("sock"), Legacy::of(Vec::new()).await, END * 3)
            .await
            .unwrap_err();
        let UpgradeError::SuccessorFailed { how, reason, .. } = failed else { panic!("{failed}") };
        assert_eq!(how, "ended with exit code 3");
        assert!(reason.len() <= SAID && reason.ends_with("line 1999"), "{reason}");
    }
}
