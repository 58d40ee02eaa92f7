//! The handover of the listening sockets and of the run-time state from the old process to the new one, over
//! `upgrade_sock`.
//!
//! ```text
//! old (SIGQUIT, SIGUSR2)                    new (-u)
//! listens on upgrade_sock, mode 0600        tries to connect for 10 s
//! checks the peer's user            <-----  Hello {version, pid}
//! Hello {version, pid}              ----->
//! finishes a change in progress
//! Listeners, State,                 ----->  has the same kernel sockets from here on
//! the descriptors, 100 at a time
//! continues to serve                        starts: adopts, binds new addresses, checks health
//!                                   <-----  Ready
//! withdraws the offer, Ack          ----->  takes over the PID file
//! drains                            <-----  closes the connection
//! `upgrade` returns
//! ```
//!
//! A new process that fails in between sends `Refused {reason}` instead of `Ready`. If the old process started it and
//! it fails before it connects, it sends `Refused` instead of `Hello`.
//!
//! A frame is one byte of kind, four bytes of length (big-endian), and that many bytes of payload. The descriptors
//! follow the `Listeners` frame, attached to single bytes of value 0. The beginning of `Hello` must stay the same in
//! all versions, so that two versions can always recognise each other. The description of the sender ([`About`])
//! follows it, as JSON.
//!
//! A [`Hold`] accompanies the state that is handed over. It blocks changes from the moment at which the state is
//! captured until the new process serves or has failed.
//!
//! The invariant: the old process serves until it has sent `Ack`. A failure before that (no process connects, the new
//! process dies, another version, garbage) does not change the old process.
//!
//! If the old process is killed in between, no process would serve. The new process therefore serves without it, with
//! the sockets if it has received them, or as after a start without `-u` ([`Search::take`]).

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Uid;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;

use super::create_private_dir;
use super::files::{check_creatable, reason};
use super::other::OtherProcess;
use super::sockets::{InheritedSocket, ListenError, SocketFile, clear_stale_socket};
use crate::words::count_of;

/// The lifetime of an offer, and the time limit for a new process from its connection until it serves.
pub(crate) const WINDOW: Duration = Duration::from_secs(60);
/// The time for which a process started with `-u` looks for an offer.
pub(crate) const SEARCH_TIME: Duration = Duration::from_secs(10);

/// The version of this protocol.
const VERSION: u16 = 2;
const MAGIC: [u8; 8] = *b"LBUPGRAD";
/// The maximum length of a frame, which limits the memory that a peer can make us allocate. Some hundred thousand
/// changes of operators fit.
const MAX_FRAME: usize = 64 << 20;
/// The number of descriptors in one message. The kernel accepts at most 253.
const BATCH: usize = 100;
/// The time limit for a response that needs no work on the other side.
const RESPONSE_TIME: Duration = Duration::from_secs(5);
/// The time limit for `Hello`. It is short, because a silent peer delays the new process in the queue behind it.
const GREETING_TIME: Duration = Duration::from_secs(1);
/// The time between two attempts to connect.
const RETRY: Duration = Duration::from_millis(50);
/// The time between two connections to a process with another file. It is longer, because that process logs each
/// connection.
const RETRY_OTHER_FILE: Duration = Duration::from_secs(1);

/// The offer of the old process to a new one. Dropping it withdraws the offer.
#[derive(Debug)]
pub(crate) struct Offer {
    listener: tokio::net::UnixListener,
    path: PathBuf,
    about: About,
    /// Removes the socket file.
    _file: Option<SocketFile>,
}

/// Everything that the new process receives.
#[derive(Debug)]
pub(crate) struct Handover {
    /// The listening sockets.
    pub sockets: Vec<InheritedSocket>,
    /// The run-time state, as text that this module does not interpret.
    pub state: String,
    /// The guard that blocks changes of the sockets and of the state.
    pub hold: Hold,
}

/// A guard that blocks changes of the sockets and of the run-time state during a handover.
pub(crate) type Hold = OwnedMutexGuard<()>;

/// A new process that serves.
#[derive(Debug)]
pub(crate) struct ReadySuccessor {
    /// Its PID.
    pub pid: u32,
    /// The guard of the handover. It must be dropped only after this process has begun to drain, so that a waiting
    /// change is rejected.
    pub hold: Hold,
    /// The connection to it.
    pub link: SuccessorLink,
}

/// The connection of the old process to a new one that serves. The new process closes it when its PID file is in place.
#[derive(Debug)]
pub(crate) struct SuccessorLink(tokio::net::UnixStream);

/// The connection of the new process to the old one, from receiving the sockets to serving on them. If it is dropped
/// without [`ready`](PredecessorLink::ready), the old process continues as before.
#[derive(Debug)]
pub(crate) struct PredecessorLink {
    stream: UnixStream,
    process: OtherProcess,
    old_pid: u32,
    state: String,
    old: About,
}

/// The description of a process in its `Hello`, beside version and PID. Earlier versions do not send it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct About {
    /// Whether the process has sent a description.
    pub is_said: bool,
    /// The canonical path of its configuration file. `None` means that it has no file.
    pub file: Option<PathBuf>,
    /// Whether it accepts only a process with the same file. It is set if only the file identifies the process that is
    /// meant.
    pub is_particular: bool,
    /// The path of its PID file. `None` means that it has none.
    pub pid_file: Option<PathBuf>,
    /// The path of its control socket. `None` means that it has none.
    pub control: Option<PathBuf>,
}

/// The search of a new process for an offer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Search {
    /// The paths at which an offer might be found. The first offer is taken.
    pub paths: Vec<PathBuf>,
    /// The user that the configuration names. `None` means that it names none.
    pub user: Option<Uid>,
    /// The description of the new process.
    pub about: About,
    /// The old process that has started this one. `None` means that it was started otherwise.
    pub starter: Option<OtherProcess>,
}

/// The result of a [`Search`].
#[derive(Debug)]
pub(crate) enum Found {
    /// The old process has sent its sockets.
    Handover(Vec<InheritedSocket>, PredecessorLink),
    /// The old process ended before it sent its sockets, so this process must bind them itself.
    Orphaned,
}

/// The progress of a new process at the moment at which it finds no offer, or the connection to the old process fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// There is no offer yet.
    Searching {
        /// Whether the time for the search has elapsed.
        is_late: bool,
    },
    /// The old process has accepted the connection.
    Receiving,
    /// The sockets have arrived.
    Holding,
}

/// The course that a new process takes at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    /// Look for the offer once more.
    Retry,
    /// Bind the sockets, as without an old process.
    StartAlone,
    /// Serve with the sockets of the old process.
    Serve,
    /// End. The old process continues to serve, or there never was one.
    Fail,
}

/// The reason why a handover failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpgradeError {
    #[error("cannot offer the sockets: {0}")]
    Offer(#[from] ListenError),
    #[error("another change is still in progress after {0:?}")]
    Busy(Duration),
    #[error("no process started with -u connected within {0:?}")]
    NoNewProcess(Duration),
    #[error("the new process {pid} ended before it was ready")]
    SuccessorEnded { pid: u32 },
    #[error(
        "cannot enter {}, where this process was started: {}; start it in a directory that its user can enter",
        directory.display(),
        reason(source)
    )]
    Directory { directory: PathBuf, source: io::Error },
    #[error("cannot start {}: {}", program.display(), reason(source))]
    NotStarted { program: PathBuf, source: io::Error },
    #[error("the new process {pid} {how}: {reason}")]
    SuccessorFailed { pid: u32, how: String, reason: String },
    #[error("the new process {pid} was not ready within {after:?}")]
    SuccessorSlow { pid: u32, after: Duration },
    #[error(
        "no running process offers its sockets at {path}; run `load_balancer upgrade`, or send SIGQUIT to the process first; \
         if it runs with another file, give both \
         files the same `upgrade_sock`"
    )]
    NoOffer { path: String },
    #[error(
        "the process that offers its sockets at {path} runs {theirs}, but this process runs {ours}: start it with the same \
         file, or give both files the same `upgrade_sock`"
    )]
    OtherFile { path: PathBuf, theirs: String, ours: String },
    #[error("cannot connect to {path}: {}", reason(source))]
    Connect { path: PathBuf, source: io::Error },
    #[error("the other process runs as the user with UID {0}, which is neither this user nor root")]
    Untrusted(Uid),
    #[error("the other process uses version {theirs} of the handover protocol, this one version {ours}")]
    Version { theirs: u16, ours: u16 },
    #[error("the other process rejected the handover: {0}")]
    Refused(String),
    #[error("the old process {old_pid} did not acknowledge the handover and is still running")]
    NotAcknowledged { old_pid: u32 },
    #[error("the other process violated the handover protocol: {0}")]
    Protocol(&'static str),
    #[error("received only {got} of {announced} sockets; raise the limit of open files (`ulimit -n`)")]
    Truncated { got: usize, announced: usize },
    #[error("the connection to the other process failed: {}", reason(.0))]
    Io(#[from] io::Error),
}

/// The result of an upgrade that was requested and succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Upgraded {
    /// The PID of the process that serves now.
    pub pid: u32,
}

/// The reason why a requested upgrade failed. This process continues as before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UpgradeFailed {
    /// The upgrade was not started, for this reason.
    #[error("cannot upgrade now: {0}")]
    Refused(&'static str),
    /// The new process failed, for this reason.
    #[error("{0}")]
    Failed(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Frame {
    Hello { version: u16, pid: u32, about: About },
    Listeners(Vec<String>),
    State(String),
    Refused(String),
    Ready,
    Ack,
}

/// The kind and the length of a frame.
type Header = [u8; 5];

/// Checks whether an offer could be made at the path, without changing anything.
///
/// # Errors
/// Fails if the path names a file that is not a socket, or a socket cannot be created there.
pub(crate) fn check_path(path: &Path) -> Result<(), UpgradeError> {
    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            Err(ListenError::NotASocket { address: path.display().to_string() }.into())
        }
        _ => check_creatable(path).map_err(|source| ListenError::no_file(path, source).into()),
    }
}

// === the old process ===

impl Offer {
    /// Listens at `path`. Missing parent directories are created with mode 0700, and a stale socket is replaced.
    ///
    /// Must be called inside a tokio runtime.
    pub(crate) fn open(path: &Path) -> Result<Self, UpgradeError> {
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            create_private_dir(dir)?;
        }
        clear_stale_socket(path)?;
        let listener = tokio::net::UnixListener::bind(path)?;
        let file = SocketFile::at(path);
        // The user of a process that connects before this line is still checked.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path: path.to_owned(), about: About::default(), _file: file })
    }

    /// Sets the description of this process.
    #[must_use]
    pub(crate) fn saying(self, about: About) -> Self {
        Self { about, ..self }
    }

    /// Waits up to `window` for a new process, sends it the result of `handover`, and returns once the new process
    /// serves and our acknowledgement is sent. Cancelling this future withdraws the offer.
    ///
    /// # Errors
    /// Fails if no new process serves in time. The offer is withdrawn and this process is unchanged. A peer that fails
    /// before it receives the sockets (another user, another version, garbage) is logged and does not end the offer.
    pub(crate) async fn serve(
        self,
        handover: impl Future<Output = io::Result<Handover>>,
        window: Duration,
    ) -> Result<ReadySuccessor, UpgradeError> {
        let greeted = async {
            loop {
                let (mut stream, _) = self.listener.accept().await?;
                match greet(&mut stream, VERSION, &self.about, &self.path).await {
                    Ok(pid) => return Ok::<_, UpgradeError>((stream, pid)),
                    // Only a process that this one has started sends `Refused` instead of `Hello`.
                    Err(error @ UpgradeError::Refused(_)) => return Err(error),
                    Err(error) => log::warn!("upgrade: a process was rejected: {error}"),
                }
            }
        };
        let (mut stream, pid) =
            timeout(window, greeted).await.map_err(|_| UpgradeError::NoNewProcess(window))??;
        let Handover { sockets, state, hold } = bounded(window, async { Ok(handover.await?) }).await?;
        log::info!("upgrade: process {pid} takes {}", count_of(sockets.len(), "listener"));
        bounded(RESPONSE_TIME, send(&mut stream, &sockets, state)).await?;
        await_ready(&mut stream, pid, window).await?;
        // The offer ends before the acknowledgement, because the new process can offer at this path at any time after
        // it.
        drop(self);
        bounded(RESPONSE_TIME, async { Ok(stream.write_all(&Frame::Ack.encode()).await?) }).await?;
        Ok(ReadySuccessor { pid, hold, link: SuccessorLink(stream) })
    }
}

impl SuccessorLink {
    /// Waits up to five seconds until the PID file of the new process is in place. The new process serves regardless.
    pub(crate) async fn settled(mut self) {
        let _ = timeout(RESPONSE_TIME, self.0.read_u8()).await;
    }
}

/// Checks the user, the version and the file of a process that has connected, and returns its PID.
async fn greet(
    stream: &mut tokio::net::UnixStream,
    version: u16,
    about: &About,
    path: &Path,
) -> Result<u32, UpgradeError> {
    let credentials = getsockopt(stream, PeerCredentials).map_err(io::Error::from)?;
    check_user(credentials.uid(), &[Uid::effective()])?;
    let hello = Frame::Hello { version, pid: std::process::id(), about: about.clone() };
    bounded(GREETING_TIME, async {
        let (theirs, pid, successor) = match receive(stream).await? {
            Frame::Hello { version, pid, about } => (version, pid, about),
            Frame::Refused(reason) => return Err(UpgradeError::Refused(reason)),
            _ => return Err(UpgradeError::Protocol("the first frame is not Hello")),
        };
        stream.write_all(&hello.encode()).await?;
        let error = if theirs == version {
            match successor.refuse(about, path) {
                Ok(()) => return Ok(pid),
                Err(error) => error,
            }
        } else {
            UpgradeError::Version { theirs, ours: version }
        };
        // Sending fails if the peer has read our version and has already closed the connection.
        let _ = stream.write_all(&Frame::Refused(error.to_string()).encode()).await;
        Err(error)
    })
    .await
}

async fn send(
    stream: &mut tokio::net::UnixStream,
    sockets: &[InheritedSocket],
    state: String,
) -> Result<(), UpgradeError> {
    let addresses = sockets.iter().map(|socket| socket.address.clone()).collect();
    for frame in [Frame::Listeners(addresses), Frame::State(state)] {
        stream.write_all(&frame.encode()).await?;
    }
    let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(|socket| socket.fd.as_fd()).collect();
    for batch in fds.chunks(BATCH) {
        stream.async_io(Interest::WRITABLE, || send_fds(stream.as_fd(), batch)).await?;
    }
    Ok(())
}

async fn await_ready(
    stream: &mut tokio::net::UnixStream,
    pid: u32,
    window: Duration,
) -> Result<(), UpgradeError> {
    match timeout(window, receive(stream)).await {
        Ok(Ok(Frame::Ready)) => Ok(()),
        Ok(Ok(Frame::Refused(reason))) => Err(UpgradeError::Refused(reason)),
        Ok(Ok(_)) => Err(UpgradeError::Protocol("expected Ready")),
        Ok(Err(UpgradeError::Io(_))) => Err(UpgradeError::SuccessorEnded { pid }),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(UpgradeError::SuccessorSlow { pid, after: window }),
    }
}

async fn receive(stream: &mut tokio::net::UnixStream) -> Result<Frame, UpgradeError> {
    let mut header = Header::default();
    stream.read_exact(&mut header).await?;
    let mut payload = vec![0; payload_len(header)?];
    stream.read_exact(&mut payload).await?;
    Frame::parse(header[0], &payload)
}

async fn bounded<T>(
    time: Duration,
    response: impl Future<Output = Result<T, UpgradeError>>,
) -> Result<T, UpgradeError> {
    timeout(time, response).await.map_err(|_| UpgradeError::Io(io::ErrorKind::TimedOut.into()))?
}

// === the new process ===

impl Search {
    /// Looks for an offer until `limit` has elapsed, connects to the process that offers its sockets, and receives
    /// them. That process must run as this user, as root, or as `user`.
    ///
    /// Blocks, so it must be called before the server starts.
    ///
    /// # Errors
    /// Fails if there is no offer or the handover fails. An offer of a process with another file does not end the
    /// search, because the right process might still appear.
    pub(crate) fn take(&self, limit: Duration) -> Result<Found, UpgradeError> {
        let deadline = Instant::now() + limit;
        let mut refused = None;
        let mut attempts: Vec<_> = self.paths.iter().map(|path| (path, Instant::now())).collect();
        loop {
            for (path, next) in attempts.iter_mut().filter(|(_, next)| *next <= Instant::now()) {
                match self.take_at(path) {
                    Ok(None) => {}
                    Ok(Some(found)) => return Ok(found),
                    Err(error @ UpgradeError::OtherFile { .. }) => {
                        refused = Some(error);
                        *next = Instant::now() + RETRY_OTHER_FILE;
                    }
                    Err(error) => return Err(error),
                }
            }
            let progress = Progress::Searching { is_late: Instant::now() >= deadline };
            match course(progress, self.starter.as_ref().is_some_and(OtherProcess::has_ended)) {
                Course::Retry => std::thread::sleep(RETRY),
                Course::StartAlone | Course::Serve => return Ok(Found::Orphaned),
                Course::Fail => {
                    return Err(
                        refused.unwrap_or_else(|| UpgradeError::NoOffer { path: either(&self.paths) })
                    );
                }
            }
        }
    }

    /// Receives the sockets that are offered at a path. `None` means that there is no offer.
    fn take_at(&self, path: &Path) -> Result<Option<Found>, UpgradeError> {
        let Some(stream) = connect(path)? else { return Ok(None) };
        let credentials = getsockopt(&stream, PeerCredentials).map_err(io::Error::from)?;
        let trusted: Vec<Uid> = [Uid::effective()].into_iter().chain(self.user).collect();
        check_user(credentials.uid(), &trusted)?;
        // A PID of 0 means that the process is not visible from here.
        let old = OtherProcess::of(u32::try_from(credentials.pid()).unwrap_or(0));
        match take_from(stream, &old, VERSION, &self.about, path) {
            Ok((sockets, link)) => Ok(Some(Found::Handover(sockets, link))),
            Err(error)
                if error.is_of_connection()
                    && course(Progress::Receiving, old.has_ended()) == Course::StartAlone =>
            {
                Ok(Some(Found::Orphaned))
            }
            Err(error) => Err(error),
        }
    }
}

/// Decides what a new process does without a connection to the old process. Only the end of the old process makes it
/// serve; a connection that a living process has closed is a refusal.
fn course(progress: Progress, old_has_ended: bool) -> Course {
    match (progress, old_has_ended) {
        (Progress::Searching { .. } | Progress::Receiving, true) => Course::StartAlone,
        (Progress::Holding, true) => Course::Serve,
        (Progress::Searching { is_late: false }, false) => Course::Retry,
        (Progress::Searching { is_late: true } | Progress::Receiving | Progress::Holding, false) => {
            Course::Fail
        }
    }
}

impl UpgradeError {
    /// Returns whether the connection failed, and not what the other process has sent over it.
    fn is_of_connection(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Truncated { .. })
    }
}

impl About {
    /// Creates the description of a process with this configuration file and this PID file.
    pub(crate) fn new(file: Option<&Path>, pid_file: Option<&Path>) -> Self {
        let (file, pid_file) = (file.map(Path::to_owned), pid_file.map(Path::to_owned));
        Self { is_said: true, file, is_particular: false, pid_file, control: None }
    }

    /// Sets the path of its control socket.
    #[must_use]
    pub(crate) fn controlled_at(self, socket: &Path) -> Self {
        Self { control: Some(socket.to_owned()), ..self }
    }

    /// Makes the process accept only a process with the same file.
    #[must_use]
    pub(crate) fn particular(self) -> Self {
        Self { is_particular: true, ..self }
    }

    /// Fails if the process that offers its sockets at `path` is not the one that this new process means.
    fn refuse(&self, old: &Self, path: &Path) -> Result<(), UpgradeError> {
        if !self.is_particular || !old.is_said || self.file == old.file {
            return Ok(());
        }
        let path = path.to_owned();
        Err(UpgradeError::OtherFile { path, theirs: old.with_file(), ours: self.with_file() })
    }

    fn with_file(&self) -> String {
        self.file.as_ref().map_or_else(
            || "without a configuration file".to_owned(),
            |file| format!("with the configuration file {}", file.display()),
        )
    }
}

fn either(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(" or ")
}

/// Reports to the process that offers its sockets at `path` why the new process fails.
pub(super) fn refuse(path: &Path, reason: &str) {
    // An offer that has ended needs no report.
    if let Ok(mut stream) = UnixStream::connect(path) {
        let _ = stream.write_all(&Frame::Refused(reason.to_owned()).encode());
    }
}

impl PredecessorLink {
    /// Returns the PID of the old process.
    pub(crate) fn old_pid(&self) -> u32 {
        self.old_pid
    }

    /// Returns the old process.
    pub(crate) fn process(&self) -> OtherProcess {
        self.process.clone()
    }

    /// Returns the description of the old process.
    pub(crate) fn old(&self) -> &About {
        &self.old
    }

    /// Returns the run-time state of the old process.
    pub(crate) fn state(&self) -> &str {
        &self.state
    }

    /// Reports to the old process that this one serves, and waits up to five seconds for its acknowledgement, after
    /// which the old process drains. If the old process has ended, no acknowledgement is needed. The old process
    /// reports the upgrade as complete once this link is dropped.
    ///
    /// # Errors
    /// [`UpgradeError::NotAcknowledged`] if the old process has withdrawn its offer and continues. This process must
    /// then end.
    pub(crate) fn ready(&mut self) -> Result<(), UpgradeError> {
        let response = match self.stream.write_all(&Frame::Ready.encode()) {
            Ok(()) => receive_blocking(&mut self.stream),
            Err(error) => Err(error.into()),
        };
        if response.is_ok_and(|frame| frame == Frame::Ack) {
            return Ok(());
        }
        if course(Progress::Holding, self.process.has_ended()) != Course::Serve {
            return Err(UpgradeError::NotAcknowledged { old_pid: self.old_pid });
        }
        log::warn!("upgrade: the old process {} has ended, so this process serves without it", self.old_pid);
        Ok(())
    }

    /// Reports to the old process why this one ends instead of serving.
    pub(crate) fn failed(mut self, reason: &str) {
        // If the old process no longer reads, it notices the closed connection instead.
        let _ = self.stream.write_all(&Frame::Refused(reason.to_owned()).encode());
    }
}

/// Connects to a socket file. `None` means that no process listens on it.
fn connect(path: &Path) -> Result<Option<UnixStream>, UpgradeError> {
    match UnixStream::connect(path) {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused].contains(&error.kind()) => {
            Ok(None)
        }
        Err(source) => Err(UpgradeError::Connect { path: path.to_owned(), source }),
    }
}

fn take_from(
    mut stream: UnixStream,
    process: &OtherProcess,
    version: u16,
    about: &About,
    path: &Path,
) -> Result<(Vec<InheritedSocket>, PredecessorLink), UpgradeError> {
    stream.set_read_timeout(Some(RESPONSE_TIME))?;
    stream.set_write_timeout(Some(RESPONSE_TIME))?;
    let hello = Frame::Hello { version, pid: std::process::id(), about: about.clone() };
    stream.write_all(&hello.encode())?;
    let (old_pid, old) = match receive_blocking(&mut stream)? {
        Frame::Hello { version: theirs, pid, about } if theirs == version => (pid, about),
        Frame::Hello { version: theirs, .. } => return Err(UpgradeError::Version { theirs, ours: version }),
        _ => return Err(UpgradeError::Protocol("the first frame is not Hello")),
    };
    about.refuse(&old, path)?;
    // The old process finishes a change first, and this change might wait for health checks.
    stream.set_read_timeout(Some(WINDOW))?;
    let addresses = match receive_blocking(&mut stream)? {
        Frame::Listeners(addresses) => addresses,
        Frame::Refused(reason) => return Err(UpgradeError::Refused(reason)),
        _ => return Err(UpgradeError::Protocol("expected Listeners")),
    };
    stream.set_read_timeout(Some(RESPONSE_TIME))?;
    let Frame::State(state) = receive_blocking(&mut stream)? else {
        return Err(UpgradeError::Protocol("expected State"));
    };
    let fds = receive_fds(&stream, addresses.len())?;
    let inherited = addresses.into_iter().zip(fds).map(|(address, fd)| InheritedSocket { address, fd });
    let process = process.clone();
    Ok((inherited.collect(), PredecessorLink { stream, process, old_pid, state, old }))
}

fn receive_blocking(stream: &mut UnixStream) -> Result<Frame, UpgradeError> {
    let mut header = Header::default();
    stream.read_exact(&mut header)?;
    let mut payload = vec![0; payload_len(header)?];
    stream.read_exact(&mut payload)?;
    Frame::parse(header[0], &payload)
}

// === both ===

/// Fails if the peer is neither root nor a trusted user. The modes of the directory and of the file already exclude
/// other users, but the mode of a shared directory does not.
fn check_user(peer: u32, trusted: &[Uid]) -> Result<(), UpgradeError> {
    let peer = Uid::from_raw(peer);
    if peer.is_root() || trusted.contains(&peer) { Ok(()) } else { Err(UpgradeError::Untrusted(peer)) }
}

fn send_fds(stream: BorrowedFd<'_>, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("more descriptors than fit into a message"));
    }
    rustix::net::sendmsg(stream, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive_fds(stream: &UnixStream, announced: usize) -> Result<Vec<OwnedFd>, UpgradeError> {
    let mut fds = Vec::new();
    while fds.len() < announced {
        let before = fds.len();
        let complete = receive_batch(stream, &mut fds)?;
        if !complete || fds.len() == before || fds.len() > announced {
            return Err(UpgradeError::Truncated { got: fds.len(), announced });
        }
    }
    Ok(fds)
}

/// Receives one byte and the descriptors that are attached to it. Returns whether the kernel delivered all of them.
fn receive_batch(stream: &UnixStream, fds: &mut Vec<OwnedFd>) -> io::Result<bool> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    // The flag prevents a child process from inheriting the sockets.
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok(!received.flags.contains(ReturnFlags::CTRUNC))
}

fn payload_len(header: Header) -> Result<usize, UpgradeError> {
    let [_, length @ ..] = header;
    match usize::try_from(u32::from_be_bytes(length)) {
        Ok(length) if length <= MAX_FRAME => Ok(length),
        _ => Err(UpgradeError::Protocol("a frame is too long")),
    }
}

impl Frame {
    fn parse(kind: u8, payload: &[u8]) -> Result<Self, UpgradeError> {
        match kind {
            b'H' => parse_hello(payload).ok_or(UpgradeError::Protocol("invalid Hello")),
            b'L' => parse_listeners(payload).ok_or(UpgradeError::Protocol("invalid list of listeners")),
            b'C' => Ok(Self::State(String::from_utf8_lossy(payload).into_owned())),
            b'X' => Ok(Self::Refused(String::from_utf8_lossy(payload).into_owned())),
            b'R' => Ok(Self::Ready),
            b'A' => Ok(Self::Ack),
            _ => Err(UpgradeError::Protocol("unknown kind of frame")),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        let kind = match self {
            Self::Hello { version, pid, about } => {
                payload.extend(MAGIC);
                payload.extend(version.to_be_bytes());
                payload.extend(pid.to_be_bytes());
                if about.is_said {
                    payload.extend(serde_json::to_vec(about).unwrap_or_default());
                }
                b'H'
            }
            Self::Listeners(addresses) => {
                for address in addresses {
                    payload.extend(length(address.len()));
                    payload.extend(address.as_bytes());
                }
                b'L'
            }
            Self::State(text) => {
                payload.extend(text.as_bytes());
                b'C'
            }
            Self::Refused(reason) => {
                payload.extend(reason.as_bytes());
                b'X'
            }
            Self::Ready => b'R',
            Self::Ack => b'A',
        };
        let mut frame = vec![kind];
        frame.extend(length(payload.len()));
        frame.append(&mut payload);
        frame
    }
}

fn length(bytes: usize) -> [u8; 4] {
    // An impossible length saturates, and the other side then rejects the frame.
    u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes()
}

/// Parses a `Hello`. The one of an earlier version ends after the PID; the one of a later version might contain more.
fn parse_hello(payload: &[u8]) -> Option<Frame> {
    let rest = payload.strip_prefix(&MAGIC)?;
    let (version, rest) = rest.split_first_chunk()?;
    let (pid, rest) = rest.split_first_chunk()?;
    let about = serde_json::from_slice(rest).unwrap_or_default();
    Some(Frame::Hello { version: u16::from_be_bytes(*version), pid: u32::from_be_bytes(*pid), about })
}

fn parse_listeners(mut payload: &[u8]) -> Option<Frame> {
    let mut addresses = Vec::new();
    while let Some((length, rest)) = payload.split_first_chunk() {
        let (address, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        addresses.push(String::from_utf8(address.to_vec()).ok()?);
        payload = rest;
    }
    payload.is_empty().then_some(Frame::Listeners(addresses))
}

/// Receives the sockets that any process offers at `path`.
#[cfg(test)]
pub(super) fn take(
    path: &Path,
    user: Option<Uid>,
    limit: Duration,
) -> Result<(Vec<InheritedSocket>, PredecessorLink), UpgradeError> {
    let search = Search { paths: vec![path.to_owned()], user, ..Search::default() };
    match search.take(limit)? {
        Found::Handover(sockets, link) => Ok((sockets, link)),
        Found::Orphaned => panic!("there is no old process that could end"),
    }
}

#[cfg(test)]
impl Handover {
    /// Creates a handover without run-time state.
    pub(super) async fn of(sockets: Vec<InheritedSocket>) -> Self {
        let hold = std::sync::Arc::<tokio::sync::Mutex<()>>::default().lock_owned().await;
        Self { sockets, state: String::new(), hold }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn round_trip(frame: &Frame) -> Frame {
        let bytes = frame.encode();
        let (header, payload) = bytes.split_first_chunk::<5>().unwrap();
        assert_eq!(payload_len(*header).unwrap(), payload.len());
        Frame::parse(header[0], payload).unwrap()
    }

    /// Creates listeners on ports that the system chooses, with the addresses that `name` returns.
    fn listeners(count: usize, name: impl Fn(usize) -> String) -> Vec<(TcpListener, InheritedSocket)> {
        let listener = |index| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let fd = listener.try_clone().unwrap().into();
            (listener, InheritedSocket { address: name(index), fd })
        };
        (0..count).map(listener).collect()
    }

    async fn handover(sockets: Vec<InheritedSocket>) -> io::Result<Handover> {
        Ok(Handover { state: "drained".to_owned(), ..Handover::of(sockets).await })
    }

    async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    #[test]
    fn frames_are_parsed_as_they_were_encoded() {
        let long = "unix:/".to_owned() + &"x".repeat(5000);
        for frame in [
            Frame::Hello { version: 7, pid: 123_456, about: About::default() },
            Frame::Hello {
                version: 7,
                pid: 1,
                about: About::new(Some(Path::new("/a.yaml")), None).particular(),
            },
            Frame::Listeners(vec![]),
            Frame::Listeners(vec![String::new(), "[::1]:443".to_owned(), "/a path/ü".to_owned(), long]),
            Frame::State("{\"ü\": 1}".to_owned()),
            Frame::Refused("no".to_owned()),
            Frame::Ready,
            Frame::Ack,
        ] {
            assert_eq!(round_trip(&frame), frame);
        }
    }

    #[test]
    fn a_hello_of_a_later_version_can_contain_more() {
        let mut payload = Frame::Hello { version: 9, pid: 1, about: About::default() }.encode().split_off(5);
        payload.extend(b"and more");
        let hello = Frame::Hello { version: 9, pid: 1, about: About::default() };
        assert_eq!(Frame::parse(b'H', &payload).unwrap(), hello);
    }

    #[test]
    fn invalid_frames_are_errors() {
        assert!(Frame::parse(b'?', b"").is_err());
        assert!(Frame::parse(b'H', b"GET / HTTP/1.1").is_err());
        assert!(Frame::parse(b'L', &[0, 0, 0, 9, b'x']).is_err());
        assert!(Frame::parse(b'L', &[0, 0]).is_err());
        assert!(Frame::parse(b'L', &[0, 0, 0, 1, 0xff]).is_err());
        assert!(payload_len(*b"GET /").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(header in any::<[u8; 5]>(), payload in any::<Vec<u8>>()) {
            let _ = payload_len(header);
            for kind in [header[0], b'H', b'L', b'C', b'X', b'R', b'A'] {
                let _ = Frame::parse(kind, &payload);
            }
        }

        #[test]
        fn every_list_of_addresses_is_parsed_as_it_was_encoded(addresses in any::<Vec<String>>()) {
            let frame = Frame::Listeners(addresses);
            prop_assert_eq!(round_trip(&frame), frame);
        }
    }

    #[test]
    fn only_root_and_the_users_named_are_trusted() {
        let own = [Uid::from_raw(1000)];
        assert!(check_user(1000, &own).is_ok());
        assert!(check_user(0, &own).is_ok());
        assert!(matches!(check_user(1001, &own), Err(UpgradeError::Untrusted(_))));
        assert!(check_user(1000, &[Uid::from_raw(0)]).is_err());
    }

    #[tokio::test]
    async fn a_hundred_listeners_with_long_addresses_are_handed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("private/upgrade.sock");
        let offer = Offer::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let name = |index| format!("/{}/{index}", "very-long".repeat(20));
        let (old, sockets): (Vec<_>, Vec<_>) = listeners(103, name).into_iter().unzip();
        let serving = tokio::spawn(offer.serve(handover(sockets), SOON));
        let at = path.clone();
        let (inherited, mut link) = blocking(move || take(&at, None, SOON)).await.unwrap();
        assert_eq!((link.old_pid(), link.state()), (std::process::id(), "drained"));
        assert_eq!(inherited.len(), 103);
        for (index, (socket, old)) in inherited.into_iter().zip(old).enumerate() {
            assert_eq!(socket.address, name(index));
            let address = old.local_addr().unwrap();
            // The old descriptor is closed, so only the inherited one can accept.
            drop(old);
            let listener = TcpListener::from(socket.fd);
            TcpStream::connect(address).unwrap();
            listener.accept().unwrap();
        }
        blocking(move || link.ready()).await.unwrap();
        assert_eq!(serving.await.unwrap().unwrap().pid, std::process::id());
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn the_new_process_can_start_before_the_offer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upgrade.sock");
        let at = path.clone();
        let taking =
            tokio::task::spawn_blocking(move || take(&at, None, SOON).map(|(_, mut link)| link.ready()));
        let offer = Offer::open(&path).unwrap();
        offer.serve(handover(Vec::new()), SOON).await.unwrap();
        taking.await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_new_process_that_dies_changes_nothing_and_another_can_take_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upgrade.sock");
        let (mut old, sockets): (Vec<_>, Vec<_>) = listeners(1, |_| "a".to_owned()).into_iter().unzip();
        let serving = tokio::spawn(Offer::open(&path).unwrap().serve(handover(sockets), SOON));
        let at = path.clone();
        drop(blocking(move || take(&at, None, SOON)).await.unwrap());
        assert!(matches!(serving.await.unwrap(), Err(UpgradeError::SuccessorEnded { .. })));
        assert!(!path.exists());

        let old = old.pop().unwrap();
        TcpStream::connect(old.local_addr().unwrap()).unwrap();
        let fd = old.try_clone().unwrap().into();
        let sockets = vec![InheritedSocket { address: "a".to_owned(), fd }];
        let serving = tokio::spawn(Offer::open(&path).unwrap().serve(handover(sockets), SOON));
        let (_, mut link) = blocking(move || take(&path, None, SOON)).await.unwrap();
        blocking(move || link.ready()).await.unwrap();
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_offer_ends_if_no_process_connects() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upgrade.sock");
        let served = Offer::open(&path).unwrap().serve(handover(Vec::new()), Duration::from_millis(20)).await;
        assert!(matches!(served, Err(UpgradeError::NoNewProcess(_))));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn garbage_and_silence_do_not_end_an_offer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upgrade.sock");
        let serving = tokio::spawn(Offer::open(&path).unwrap().serve(handover(Vec::new()), SOON));
        drop(UnixStream::connect(&path).unwrap());
        UnixStream::connect(&path).unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let (_, mut link) = blocking(move || take(&path, None, SOON)).await.unwrap();
        blocking(move || link.ready()).await.unwrap();
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn both_processes_report_versions_that_differ() {
        let (old, new) = UnixStream::pair().unwrap();
        old.set_nonblocking(true).unwrap();
        let mut old = tokio::net::UnixStream::from_std(old).unwrap();
        let taking = tokio::task::spawn_blocking(move || {
            let own = OtherProcess::of(std::process::id());
            take_from(new, &own, 2, &About::default(), Path::new("/sock"))
        });
        let greeted =
            greet(&mut old, 1, &About::default(), Path::new("/sock")).await.unwrap_err().to_string();
        let taken = taking.await.unwrap().unwrap_err().to_string();
        assert!(greeted.contains("version 2") && greeted.contains("this one version 1"), "{greeted}");
        assert!(taken.contains("version 1") && taken.contains("this one version 2"), "{taken}");
    }

    #[test]
    fn the_error_for_a_missing_offer_gives_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let error = take(&dir.path().join("none"), None, Duration::ZERO).unwrap_err().to_string();
        assert!(
            error.contains("no running process offers its sockets") && error.contains("SIGQUIT"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_new_process_does_not_reconnect_at_once_to_a_process_with_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upgrade.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let about = |file| About::new(Some(Path::new(file)), None);
        let (theirs, ours) = (about("/a.yaml"), about("/b.yaml").particular());
        let search = Search { paths: vec![path.clone()], about: ours, ..Search::default() };
        let searching = blocking(move || search.take(RETRY * 5));
        let counting = async {
            for attempts in 1.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                greet(&mut stream, VERSION, &theirs, &path).await.unwrap_err();
                assert_eq!(attempts, 1);
            }
        };
        let searched = tokio::select! { searched = searching => searched, () = counting => unreachable!() };
        assert!(matches!(searched, Err(UpgradeError::OtherFile { .. })), "{searched:?}");
    }

    #[tokio::test]
    async fn a_withdrawn_offer_is_not_mistaken_for_an_acknowledgement() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upgrade.sock");
        let serving = tokio::spawn(Offer::open(&path).unwrap().serve(handover(Vec::new()), SOON));
        let at = path.clone();
        let (_, mut link) = blocking(move || take(&at, None, SOON)).await.unwrap();
        serving.abort();
        assert!(serving.await.unwrap_err().is_cancelled());
        assert!(!path.exists());
        let refused = blocking(move || link.ready()).await;
        assert!(matches!(refused, Err(UpgradeError::NotAcknowledged { .. })));
    }

    #[test]
    fn fewer_sockets_than_announced_are_an_error() {
        let (old, new) = UnixStream::pair().unwrap();
        new.set_read_timeout(Some(SOON)).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        send_fds(old.as_fd(), &[file.as_fd()]).unwrap();
        drop(old);
        assert!(matches!(receive_fds(&new, 2), Err(UpgradeError::Truncated { got: 1, announced: 2 })));
    }

    #[test]
    fn a_new_process_serves_without_the_old_one_only_if_that_has_ended() {
        let searching = |is_late| Progress::Searching { is_late };
        for (progress, if_ended, if_running) in [
            (searching(false), Course::StartAlone, Course::Retry),
            (searching(true), Course::StartAlone, Course::Fail),
            (Progress::Receiving, Course::StartAlone, Course::Fail),
            (Progress::Holding, Course::Serve, Course::Fail),
        ] {
            assert_eq!(course(progress, true), if_ended, "{progress:?}");
            assert_eq!(course(progress, false), if_running, "{progress:?}");
        }
    }

    #[test]
    fn a_search_ends_at_once_if_the_process_that_started_it_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut killed = std::process::Command::new("true").spawn().unwrap();
        killed.wait().unwrap();
        let paths = vec![dir.path().join("upgrade.sock")];
        let search = Search { paths, starter: Some(OtherProcess::of(killed.id())), ..Search::default() };
        assert!(matches!(search.take(SOON), Ok(Found::Orphaned)));
        let own = Some(OtherProcess::of(std::process::id()));
        let search = Search { starter: own, ..search };
        assert!(matches!(search.take(Duration::ZERO), Err(UpgradeError::NoOffer { .. })));
    }
}
