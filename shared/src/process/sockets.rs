//! The listening sockets: they are bound before anything starts, owned here, and lent to Pingora.
//!
//! Pingora binds inside a task that it has started, retries for half a minute while the process looks alive, and then
//! panics in that task only. Here, an address that cannot be bound is an error of the start, at once and with its
//! remedy.
//!
//! # Descriptors
//!
//! For each address there are two descriptors of one kernel socket: ours (to hand over to a new process) and a copy
//! that a service takes, and closes when it stops accepting. The proxy gets [copies](Sockets::copy) that it owns. The
//! copy for a service of Pingora is in the [table](Sockets::listen_fds), by address, and must be given to exactly one
//! service; otherwise it would stay open. A port closes when both descriptors are closed, so [`Sockets::close`] and
//! the end of the service belong together.
//!
//! # Addresses that overlap
//!
//! A new address might overlap with a removed one whose socket still listens; see [`moves`]. [`Sockets::take_over`]
//! binds it beside the old socket in a reload, and [`Sockets::adopt`] does so in an upgrade. In an upgrade the new
//! socket does not listen before [`Sockets::listen_beside`], because until then only the old process serves.
//!
//! # Socket files
//!
//! The file of a Unix socket outlives the socket. Files that we bound are removed with [`Sockets`]. Inherited
//! files are removed only after the old process has gone ([`Sockets::own_files`]). Files that we have handed over are
//! never removed ([`Sockets::keep_files`]).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use nix::unistd::Uid;
use parking_lot::{Mutex, MutexGuard};
use pingora::server::{Fds, ListenFds, RuntimeOpts, ShutdownWatch};
use pingora::services::Service;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::sync::{mpsc, watch};

use super::FileId;
use super::files::{check_creatable, reason};
use super::limits::BACKLOG;
use super::moves::{self, Beside, MoveError};
use super::privileges::{Identity, PrivilegeError};
use super::systemd::Pulse;

/// One listener that the configuration asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListenSpec {
    /// The address or the path to listen on.
    pub endpoint: Endpoint,
    /// The class, which decides when the listener closes.
    pub class: Class,
    /// Whether a Pingora service listens on it. Otherwise one of our services takes [a copy](Sockets::copy).
    pub is_lent: bool,
    /// The name in the configuration, for messages.
    pub name: String,
}

/// An address or a path to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// An IP address and a port. With port 0 the system chooses one.
    Tcp(SocketAddr),
    /// A socket file.
    Unix {
        /// The path of the file.
        path: PathBuf,
        /// Permission bits of the file, such as 0o660.
        mode: u32,
    },
}

/// The class of a listener, which decides when it closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Closes when a drain begins.
    Traffic,
    /// Stays open during a drain, so that operators can watch it. Closes at once when a new process serves.
    Admin,
}

/// The listening sockets of this process.
#[derive(Debug)]
pub(crate) struct Sockets {
    table: Table,
    open: Mutex<Vec<Listening>>,
    files: Mutex<Files>,
    moves: Mutex<Moves>,
}

/// The addresses of an upgrade that overlap with inherited ones.
#[derive(Debug, Default)]
struct Moves {
    /// The new sockets, until they listen.
    waiting: Vec<Beside>,
    /// The inherited sockets that they replace.
    moved: Vec<Moved>,
}

/// An inherited socket that is replaced by one with an overlapping address.
#[derive(Debug)]
pub(crate) struct Moved {
    /// The address on which it listens.
    pub from: SocketAddr,
    /// The address that replaces it, as written in the configuration.
    pub to: SocketAddr,
    /// The listening socket.
    pub fd: OwnedFd,
}

/// A listening socket on its way from the old process to the new one.
#[derive(Debug)]
pub(crate) struct InheritedSocket {
    /// The address as written in the configuration of the process that bound it. If the port was 0 there, it is 0 here.
    pub address: String,
    /// The listening socket.
    pub fd: OwnedFd,
}

/// The reason why the daemon cannot listen on an address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    #[error("cannot listen on {address}: it is in use by another process{remedy}")]
    InUse { address: String, remedy: &'static str },
    #[error("{}", lines(.0))]
    Several(Vec<Self>),
    #[error("cannot listen on {address}: permission denied; {remedy}")]
    Denied { address: String, remedy: &'static str },
    #[error(
        "cannot move a listener to {address}: its socket does not belong to the user of this process; move it in two \
         steps: remove the old address and reload, then add {address} and reload"
    )]
    Foreign { address: String },
    #[error("cannot listen on {address}: no interface of this machine has this address")]
    NotLocal { address: String },
    #[error("cannot listen on {address}: the file is not a socket; remove it or use another path")]
    NotASocket { address: String },
    #[error("cannot listen on {address}: {}", reason(source))]
    Io { address: String, source: io::Error },
    #[error("cannot listen on {address}: the descriptor from the old process is not a listening socket")]
    NotListening { address: String },
}

/// A Pingora service that starts with our sockets and our shutdown watch instead of the server's. It stops listening
/// when [`super::lifecycle`] says so, while the server continues.
pub(crate) struct Handed<S> {
    inner: S,
    table: ListenFds,
    shutdown: watch::Receiver<bool>,
    failures: mpsc::UnboundedSender<String>,
    pulse: Option<Pulse>,
}

/// The file of a Unix socket that this process created. Dropping it removes the file, if the path still names this
/// file.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    id: FileId,
}

/// Our descriptor of a listening socket.
#[derive(Debug)]
struct Listening {
    configured: String,
    class: Class,
    is_lent: bool,
    fd: OwnedFd,
}

#[derive(Debug, Default)]
struct Files {
    /// The files that belong to this process and are removed at its end.
    owned: Vec<SocketFile>,
    /// The files that belong to the old process as long as it might continue to serve, with the mode that each gets
    /// when it belongs to this one.
    inherited: Vec<(SocketFile, u32)>,
    /// The files of the old process whose listeners our configuration no longer has.
    unclaimed: Vec<SocketFile>,
}

/// Sockets that are bound but that no service accepts on yet. Dropping this closes them and removes their files.
#[derive(Debug, Default)]
pub(crate) struct Bound {
    open: Vec<Listening>,
    files: Vec<SocketFile>,
}

impl Bound {
    /// Adds other sockets to these.
    pub(crate) fn append(&mut self, mut other: Self) {
        self.open.append(&mut other.open);
        self.files.append(&mut other.files);
    }
}

/// Pingora's table of sockets, which does not implement `Debug`.
struct Table(ListenFds);

/// A guard that reports a service that ends before it is stopped. It does so in `Drop`, so that it also reports a
/// panic.
struct EndedEarly<'a> {
    name: &'a str,
    shutdown: &'a watch::Receiver<bool>,
    failures: &'a mpsc::UnboundedSender<String>,
}

impl ListenError {
    fn with_remedy(self, remedy: &'static str) -> Self {
        match self {
            Self::InUse { address, .. } => Self::InUse { address, remedy },
            other => other,
        }
    }

    /// Returns whether another process uses one of the addresses.
    pub(crate) fn is_in_use(&self) -> bool {
        match self {
            Self::InUse { .. } => true,
            Self::Several(errors) => errors.iter().any(Self::is_in_use),
            _ => false,
        }
    }

    /// Combines the errors into one, if there are any.
    fn all(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }

    /// Returns the error for a socket file that cannot be created.
    pub(super) fn no_file(path: &Path, source: io::Error) -> Self {
        explain(source, path.display().to_string(), UNIX_REMEDY)
    }
}

impl ListenSpec {
    /// Creates a listener for requests that are balanced.
    pub(crate) fn traffic(endpoint: Endpoint) -> Self {
        Self { endpoint, class: Class::Traffic, is_lent: false, name: "`listeners`".to_owned() }
    }

    /// Creates a listener for operators and monitoring.
    pub(crate) fn admin(endpoint: Endpoint) -> Self {
        Self { endpoint, class: Class::Admin, is_lent: true, name: "`metrics.address`".to_owned() }
    }

    /// Creates an admin listener for a service that is not one of Pingora's.
    pub(crate) fn own(endpoint: Endpoint) -> Self {
        Self { is_lent: false, name: "`control.socket`".to_owned(), ..Self::admin(endpoint) }
    }

    /// Sets the name for messages.
    #[must_use]
    pub(crate) fn called(self, name: String) -> Self {
        Self { name, ..self }
    }

    /// Returns the address together with its name in the configuration.
    fn title(&self) -> String {
        format!("{} ({})", self.endpoint.configured(), self.name)
    }

    /// Returns the remedy for an address that another process uses.
    fn in_use_remedy(&self) -> &'static str {
        match (self.class, self.is_lent) {
            (Class::Traffic, _) => {
                ". To replace a running load_balancer, run `load_balancer upgrade`, or send it SIGQUIT and start with -u; \
                 beside it, this one needs `listeners` of its own"
            }
            (Class::Admin, true) => {
                ". Beside another load_balancer, this one needs an address of its own, such as \
                 `metrics: {address: 127.0.0.1:6193}`"
            }
            (Class::Admin, false) => {
                ". Beside another load_balancer, this one needs a path of its own: `control: {socket: PATH}`"
            }
        }
    }
}

impl Endpoint {
    /// Returns the endpoint as written in the configuration: `1.2.3.4:80`, `[::1]:80` or a path.
    fn configured(&self) -> String {
        match self {
            Self::Tcp(address) => address.to_string(),
            Self::Unix { path, .. } => path.to_string_lossy().into_owned(),
        }
    }

    /// Returns the file of an inherited socket, with its mode.
    fn inherited_file(&self) -> Option<(SocketFile, u32)> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix { path, mode } => SocketFile::at(path).map(|file| (file, *mode)),
        }
    }

    fn path(&self) -> Option<&Path> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix { path, .. } => Some(path),
        }
    }
}

impl Sockets {
    /// Takes inherited sockets by their configured addresses, binds the others, and closes inherited sockets that no
    /// spec names. The error names every address that cannot be bound.
    pub(crate) fn adopt(
        mut inherited: Vec<InheritedSocket>,
        specs: &[ListenSpec],
    ) -> Result<Self, ListenError> {
        let (mut open, mut files, mut addresses) = (Vec::new(), Files::default(), Vec::new());
        let mut clashes = Vec::new();
        let claimed: Vec<_> =
            specs.iter().map(|spec| take_inherited(&mut inherited, &spec.endpoint)).collect();
        let mut moves = Moves::default();
        for (spec, claimed) in specs.iter().zip(claimed) {
            let configured = spec.endpoint.configured();
            let fd = match claimed {
                Some(fd) => {
                    check_listening(&fd, &configured)?;
                    files.inherited.extend(spec.endpoint.inherited_file());
                    fd
                }
                None => match moves.bind(spec, &inherited, &mut files.owned) {
                    Ok(fd) => fd,
                    Err(clash) => {
                        clashes.push(clash);
                        continue;
                    }
                },
            };
            addresses.push(bound_address(&fd, &spec.endpoint)?);
            open.push(Listening { configured, class: spec.class, is_lent: spec.is_lent, fd });
        }
        ListenError::all(clashes)?;
        files.unclaimed.extend(inherited.iter().filter_map(unclaimed_file));
        let table = lend(&addresses, &open)?;
        let (open, files, moves) = (Mutex::new(open), Mutex::new(files), Mutex::new(moves));
        Ok(Self { table, open, files, moves })
    }

    /// Starts to listen on the addresses of an upgrade that overlap with one of the old process.
    ///
    /// # Errors
    /// Fails at the first address that cannot be listened on.
    pub(crate) fn listen_beside(&self) -> Result<(), ListenError> {
        std::mem::take(&mut lock(&self.moves).waiting).into_iter().try_for_each(|beside| {
            let address = beside.address().to_string();
            beside.listen().map(drop).map_err(|error| cannot_move(error, address.clone(), address))
        })
    }

    /// Takes the inherited sockets of listeners that have moved.
    pub(crate) fn take_moved(&self) -> Vec<Moved> {
        std::mem::take(&mut lock(&self.moves).moved)
    }

    /// Returns the table in which all of Pingora's services find their sockets.
    pub(crate) fn listen_fds(&self) -> ListenFds {
        Arc::clone(&self.table.0)
    }

    /// Binds further addresses, all of them or none.
    ///
    /// # Errors
    /// Fails at the first address that cannot be bound.
    pub(crate) fn bind_more(&self, specs: &[ListenSpec]) -> Result<Bound, ListenError> {
        let mut bound = Bound::default();
        for spec in specs {
            let fd = listen(spec, &mut bound.files)?;
            let (configured, class) = (spec.endpoint.configured(), spec.class);
            bound.open.push(Listening { configured, class, is_lent: spec.is_lent, fd });
        }
        Ok(bound)
    }

    /// Returns whether an address overlaps with an open socket whose address is in `leaving`.
    pub(crate) fn overlaps(&self, spec: &ListenSpec, leaving: &[String]) -> bool {
        let Endpoint::Tcp(address) = spec.endpoint else { return false };
        lock(&self.open).iter().any(|listening| listening.is_left_for(address, leaving))
    }

    /// Binds further addresses that overlap with open ones in `leaving`, all of them or none.
    ///
    /// # Errors
    /// Fails at the first address that cannot be bound.
    pub(crate) fn take_over(&self, specs: &[ListenSpec], leaving: &[String]) -> Result<Bound, ListenError> {
        let mut bound = Bound::default();
        for spec in specs {
            let beside = self.bind_beside(spec, leaving)?;
            let fd = beside
                .listen()
                .map_err(|error| cannot_move(error, spec.endpoint.configured(), spec.title()))?;
            let configured = spec.endpoint.configured();
            bound.open.push(Listening { configured, class: spec.class, is_lent: spec.is_lent, fd });
        }
        Ok(bound)
    }

    /// Checks whether [`take_over`](Self::take_over) would succeed. The sockets are only bound, so they receive no
    /// connection.
    ///
    /// # Errors
    /// Fails at the first address that cannot be bound.
    pub(crate) fn check_take_over(
        &self,
        specs: &[ListenSpec],
        leaving: &[String],
    ) -> Result<(), ListenError> {
        specs.iter().try_for_each(|spec| self.bind_beside(spec, leaving).map(drop))
    }

    fn bind_beside(&self, spec: &ListenSpec, leaving: &[String]) -> Result<Beside, ListenError> {
        let open = lock(&self.open);
        let is_left = |listening: &&Listening| match spec.endpoint {
            Endpoint::Tcp(address) => listening.is_left_for(address, leaving),
            Endpoint::Unix { .. } => false,
        };
        bind_beside(spec, open.iter().filter(is_left).map(|listening| &listening.fd))
    }

    /// Makes the socket of an open address receive no new connections. Those that have begun can still be accepted.
    pub(crate) fn deafen(&self, address: &str) {
        let open = lock(&self.open);
        for listening in open.iter().filter(|listening| listening.configured == address) {
            if let Err(error) = moves::deafen(&listening.fd) {
                log::warn!("listener {address}: connections might be cut while it moves: {}", reason(&error));
            }
        }
    }

    /// Returns whether a socket is open at this address and can be reached. A Unix socket whose file is gone cannot be
    /// reached.
    pub(crate) fn is_reachable(&self, address: &str) -> bool {
        let is_open = lock(&self.open).iter().any(|listening| listening.configured == address);
        let path = Path::new(address);
        let is_there = |file: &SocketFile| FileId::at(path).is_ok_and(|there| there == file.id);
        let files = lock(&self.files);
        let mut of_it = files.all().filter(|file| file.path == path);
        is_open && (!path.is_absolute() || of_it.any(is_there))
    }

    /// Returns a copy of the bound or open socket of this address, for a Pingora service.
    ///
    /// # Errors
    /// Fails if there is no such socket or the process has too many open files.
    pub(crate) fn copy_for(&self, address: &str, bound: &Bound) -> io::Result<OwnedFd> {
        let new = bound.open.iter().find(|listening| listening.configured == address);
        match new {
            Some(listening) => listening.fd.try_clone(),
            None => self.copy(address)?.ok_or_else(|| io::ErrorKind::NotFound.into()),
        }
    }

    /// Adds bound sockets, which are handed over and closed like all others. A socket replaces an open one with the
    /// same address.
    pub(crate) fn add(&self, bound: Bound) {
        let Bound { open, files } = bound;
        let is_new = |address: &str| open.iter().any(|listening| listening.configured == address);
        lock(&self.open).retain(|listening| !is_new(&listening.configured));
        lock(&self.files).owned.extend(files);
        lock(&self.open).extend(open);
    }

    /// Returns a copy of an open socket, for a service that is not one of Pingora's. `None` means that no socket has
    /// this address.
    ///
    /// # Errors
    /// Fails if the process has too many open files.
    pub(crate) fn copy(&self, address: &str) -> io::Result<Option<OwnedFd>> {
        let open = lock(&self.open);
        let found = open.iter().find(|listening| listening.configured == address);
        found.map(|listening| listening.fd.try_clone()).transpose()
    }

    /// Closes our descriptor of one address and removes its file. The port closes when Pingora's service has closed its
    /// copy.
    pub(crate) fn remove(&self, address: &str) {
        lock(&self.open).retain(|listening| listening.configured != address);
        let mut files = lock(&self.files);
        let Files { owned, inherited, unclaimed: _ } = &mut *files;
        owned.retain(|file| file.path != Path::new(address));
        inherited.retain(|(file, _)| file.path != Path::new(address));
    }

    /// Sets the mode of the socket file at this address.
    pub(crate) fn set_mode(&self, address: &str, mode: u32) {
        let files = lock(&self.files);
        files.all().filter(|file| file.path == Path::new(address)).for_each(|file| file.set_mode(mode));
    }

    /// Returns copies of the open sockets, for a new process.
    pub(crate) fn to_hand_over(&self) -> io::Result<Vec<InheritedSocket>> {
        let copy = |listening: &Listening| {
            let fd = listening.fd.try_clone()?;
            Ok(InheritedSocket { address: listening.configured.clone(), fd })
        };
        lock(&self.open).iter().map(copy).collect()
    }

    /// Closes our descriptors of a class. The ports close when Pingora's services have closed their copies.
    pub(crate) fn close(&self, class: Class) {
        lock(&self.open).retain(|listening| listening.class != class);
    }

    /// Leaves the socket files to a new process, so that they are not removed when this process ends.
    pub(crate) fn keep_files(&self) {
        let mut files = lock(&self.files);
        files.owned.drain(..).for_each(SocketFile::disown);
    }

    /// Takes over the socket files of the old process, which has handed over. They are removed when this process ends;
    /// those of listeners that our configuration no longer has are removed now. The others get their configured mode.
    pub(crate) fn own_files(&self) {
        let mut files = lock(&self.files);
        let inherited = std::mem::take(&mut files.inherited);
        inherited.iter().for_each(|(file, mode)| file.set_mode(*mode));
        files.owned.extend(inherited.into_iter().map(|(file, _)| file));
        files.unclaimed.clear();
    }

    /// Removes the socket files of this process at its end. This must not be left to [`Drop`], because a task that was
    /// cut might still hold these sockets.
    pub(crate) fn remove_files(&self) {
        drop(std::mem::take(&mut *lock(&self.files)));
    }

    /// Gives the sockets and their files to the user as whom the daemon will run. This user must be able to move a
    /// listener, and to change the mode of a file and remove it.
    pub(crate) fn give_to(&self, identity: &Identity) -> Result<(), PrivilegeError> {
        let is_tcp = |listening: &&Listening| listening.configured.parse::<SocketAddr>().is_ok();
        let open = lock(&self.open);
        // Only root can give a socket away; for another user the sockets have the right owner already.
        for listening in open.iter().filter(is_tcp).filter(|_| Uid::effective().is_root()) {
            let what = || {
                format!("give the socket of {} to the user with UID {}", listening.configured, identity.uid())
            };
            moves::give(&listening.fd, identity)
                .map_err(|source| PrivilegeError::System { what: what(), source })?;
        }
        let files = lock(&self.files);
        files.all().try_for_each(|file| identity.own(&file.path))
    }
}

impl Files {
    /// Returns the files of our listeners.
    fn all(&self) -> impl Iterator<Item = &SocketFile> {
        self.owned.iter().chain(self.inherited.iter().map(|(file, _)| file))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // The handover was not completed, so the old process might still serve on these files.
        let inherited = self.inherited.drain(..).map(|(file, _)| file);
        inherited.chain(self.unclaimed.drain(..)).for_each(SocketFile::disown);
    }
}

impl Moves {
    /// Binds a socket for an address that was not inherited. If it overlaps with an inherited one, it does not listen
    /// yet.
    fn bind(
        &mut self,
        spec: &ListenSpec,
        inherited: &[InheritedSocket],
        files: &mut Vec<SocketFile>,
    ) -> Result<OwnedFd, ListenError> {
        let old = overlapping(inherited, &spec.endpoint);
        if old.is_empty() {
            return listen(spec, files);
        }
        let beside = bind_beside(spec, old.iter().map(|moved| &moved.fd))?;
        let fd = beside.socket().try_clone();
        self.waiting.push(beside);
        if spec.class == Class::Traffic {
            self.note(old);
        }
        fd.map_err(|source| ListenError::Io { address: spec.endpoint.configured(), source })
    }

    /// Records the sockets that are replaced, each once.
    fn note(&mut self, moved: Vec<Moved>) {
        for new in moved {
            if self.moved.iter().all(|known| known.from != new.from) {
                self.moved.push(new);
            }
        }
    }
}

impl Listening {
    /// Returns whether its address is in `leaving` and overlaps with `address`.
    fn is_left_for(&self, address: SocketAddr, leaving: &[String]) -> bool {
        let own = self.configured.parse();
        leaving.contains(&self.configured) && own.is_ok_and(|own| moves::overlap(own, address))
    }
}

impl<S> Handed<S> {
    /// Wraps a service. It stops listening when `shutdown` turns true. If it ends earlier (it could not build its
    /// listeners, or it panicked), a message with its name is sent to `failures`.
    pub(crate) fn new(
        inner: S,
        sockets: &Sockets,
        shutdown: watch::Receiver<bool>,
        failures: mpsc::UnboundedSender<String>,
    ) -> Self {
        Self { inner, table: sockets.listen_fds(), shutdown, failures, pulse: None }
    }

    /// Lets the service's runtime respond to this pulse, because the process depends on this runtime.
    pub(crate) fn watched(self, pulse: Pulse) -> Self {
        Self { pulse: Some(pulse), ..self }
    }
}

#[async_trait]
impl<S: Service> Service for Handed<S> {
    async fn start_service(
        &mut self,
        _server_fds: Option<ListenFds>,
        _server_shutdown: ShutdownWatch,
        listeners_per_fd: usize,
    ) {
        let name = self.inner.name().to_owned();
        let _guard = EndedEarly { name: &name, shutdown: &self.shutdown, failures: &self.failures };
        let table = Some(Arc::clone(&self.table));
        let serving = self.inner.start_service(table, self.shutdown.clone(), listeners_per_fd);
        match &self.pulse {
            None => serving.await,
            Some(pulse) => tokio::select! {
                () = serving => {}
                () = pulse.beat() => {}
            },
        }
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn threads(&self) -> Option<usize> {
        self.inner.threads()
    }

    fn runtime_opts_override(&self, global: &RuntimeOpts) -> Option<RuntimeOpts> {
        self.inner.runtime_opts_override(global)
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        // None of our sockets is in the server's own table.
        Some(Vec::new())
    }
}

impl Drop for EndedEarly<'_> {
    fn drop(&mut self) {
        if !*self.shutdown.borrow() {
            // Sending fails once the process is ending, when the message no longer matters.
            let _ = self.failures.send(format!(
                "service {} has ended: its listeners could not be started, or it panicked",
                self.name
            ));
        }
    }
}

impl SocketFile {
    /// Listens on a socket file that only this user can connect to.
    ///
    /// # Errors
    /// Fails if the socket cannot be bound.
    pub(crate) fn listen(path: &Path) -> Result<(UnixListener, Self), ListenError> {
        let mut files = Vec::new();
        let mode = 0o600;
        let spec = ListenSpec::own(Endpoint::Unix { path: path.to_owned(), mode });
        let socket = listen(&spec, &mut files)?;
        let file =
            files.pop().ok_or_else(|| ListenError::NotASocket { address: path.display().to_string() })?;
        Ok((socket.into(), file))
    }

    /// Returns the file that `path` names now. `None` means that there is no file.
    pub(super) fn at(path: &Path) -> Option<Self> {
        FileId::at(path).ok().map(|id| Self { path: path.to_owned(), id })
    }

    /// Sets the mode, if the path still names this file.
    fn set_mode(&self, mode: u32) {
        let is_ours = FileId::at(&self.path).is_ok_and(|there| there == self.id);
        let permissions = std::fs::Permissions::from_mode(mode);
        if is_ours && let Err(error) = std::fs::set_permissions(&self.path, permissions) {
            let path = self.path.display();
            log::error!("socket {path}: cannot set its mode to {mode:04o}: {}", reason(&error));
        }
    }

    fn disown(mut self) {
        self.path = PathBuf::new();
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if FileId::at(&self.path).is_ok_and(|there| there == self.id)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            log::warn!("socket {}: cannot remove it: {}", self.path.display(), reason(&error));
        }
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Table")
    }
}

/// Checks whether [`Sockets::bind`] would succeed. It does not create or remove a file, and no client can connect
/// meanwhile.
///
/// # Errors
/// Names every address that cannot be bound.
pub(crate) fn check(specs: &[ListenSpec]) -> Result<(), ListenError> {
    ListenError::all(specs.iter().filter_map(|spec| check_one(spec).err()).collect())
}

fn check_one(spec: &ListenSpec) -> Result<(), ListenError> {
    match &spec.endpoint {
        Endpoint::Tcp(address) => {
            // The socket does not listen, so a daemon that starts just now can still bind the port.
            bind_tcp(*address).map(drop).map_err(|error| explain(error, spec.title(), TCP_REMEDY))
        }
        Endpoint::Unix { path, .. } => stale_socket(path)
            .and_then(|_| check_creatable(path).map_err(|error| explain(error, spec.title(), UNIX_REMEDY))),
    }
    .map_err(|error| error.with_remedy(spec.in_use_remedy()))
}

fn lines(errors: &[ListenError]) -> String {
    let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
    lines.join("\n  ")
}

/// Returns whether a process accepts connections on this socket file.
pub(crate) fn is_accepting(path: &Path) -> bool {
    probe(path).is_ok()
}

/// Connects to a socket file and closes the connection at once. It never blocks, even if the process does not accept.
///
/// # Errors
/// Fails if no connection can be made.
pub(crate) fn probe(path: &Path) -> io::Result<()> {
    let stream = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    stream.set_nonblocking(true)?;
    match stream.connect(&SockAddr::unix(path)?) {
        // The queue of connections to accept is full.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        connected => connected,
    }
}

/// Removes a socket file that refuses connections, and fails if a process listens on it.
pub(super) fn clear_stale_socket(path: &Path) -> Result<(), ListenError> {
    if !stale_socket(path)? {
        return Ok(());
    }
    std::fs::remove_file(path).map_err(|error| explain(error, path.display().to_string(), UNIX_REMEDY))
}

/// Returns whether the path names a socket file that refuses connections. Fails if it names something else.
fn stale_socket(path: &Path) -> Result<bool, ListenError> {
    let address = || path.display().to_string();
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(explain(error, address(), UNIX_REMEDY)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket { address: address() });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ListenError::InUse { address: address(), remedy: "" }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        Err(error) => Err(explain(error, address(), UNIX_REMEDY)),
    }
}

const TCP_REMEDY: &str = "ports below 1024 need root or the capability CAP_NET_BIND_SERVICE (setcap cap_net_bind_service=+ep FILE)";
const MOVE_REMEDY: &str = "ports below 1024 need root or the capability CAP_NET_BIND_SERVICE, which this process does not have: stop the daemon, then start it with the new file";
const UNIX_REMEDY: &str = "the directory must be writable for this user";

fn take_inherited(inherited: &mut Vec<InheritedSocket>, endpoint: &Endpoint) -> Option<OwnedFd> {
    let configured = endpoint.configured();
    let index = inherited.iter().position(|socket| socket.address == configured)?;
    let socket = inherited.remove(index);
    // No client can connect to a socket whose file was removed, so a new socket is bound.
    let reachable = endpoint.path().is_none_or(Path::exists);
    reachable.then_some(socket.fd)
}

fn check_listening(fd: &OwnedFd, address: &str) -> Result<(), ListenError> {
    match nix::sys::socket::getsockopt(fd, nix::sys::socket::sockopt::AcceptConn) {
        Ok(true) => Ok(()),
        _ => Err(ListenError::NotListening { address: address.to_owned() }),
    }
}

fn unclaimed_file(socket: &InheritedSocket) -> Option<SocketFile> {
    log::info!("listener {}: closed, because the configuration no longer has it", socket.address);
    let is_file = socket.address.parse::<SocketAddr>().is_err();
    is_file.then(|| SocketFile::at(Path::new(&socket.address))).flatten()
}

fn listen(spec: &ListenSpec, files: &mut Vec<SocketFile>) -> Result<OwnedFd, ListenError> {
    let (result, remedy) = match &spec.endpoint {
        Endpoint::Tcp(address) => (listen_tcp(*address), TCP_REMEDY),
        Endpoint::Unix { path, mode } => {
            clear_stale_socket(path).map_err(|error| error.with_remedy(spec.in_use_remedy()))?;
            (listen_unix(path, *mode, files), UNIX_REMEDY)
        }
    };
    let explained = result.map_err(|error| explain(error, spec.title(), remedy));
    explained.map_err(|error| error.with_remedy(spec.in_use_remedy()))
}

fn listen_tcp(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = bind_tcp(address)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn bind_tcp(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // Connections of a former process in TIME_WAIT must not block the port.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Copies the inherited sockets whose addresses overlap with this endpoint.
fn overlapping(inherited: &[InheritedSocket], endpoint: &Endpoint) -> Vec<Moved> {
    let Endpoint::Tcp(to) = *endpoint else { return Vec::new() };
    let moved = |socket: &InheritedSocket| {
        let from = socket.address.parse().ok().filter(|from| moves::overlap(*from, to))?;
        Some(Moved { from, to, fd: socket.fd.try_clone().ok()? })
    };
    inherited.iter().filter_map(moved).collect()
}

fn bind_beside<'a>(spec: &ListenSpec, old: impl Iterator<Item = &'a OwnedFd>) -> Result<Beside, ListenError> {
    let Endpoint::Tcp(address) = spec.endpoint else {
        return Err(ListenError::InUse { address: spec.title(), remedy: "" });
    };
    let old = old.map(OwnedFd::try_clone).collect::<io::Result<Vec<_>>>().map_err(MoveError::Io);
    let bound = old.and_then(|old| Beside::bind(address, old));
    bound.map_err(|error| {
        cannot_move(error, address.to_string(), spec.title()).with_remedy(spec.in_use_remedy())
    })
}

/// Turns the error of a move into one for operators. `title` is the address with its name in the configuration.
fn cannot_move(error: MoveError, address: String, title: String) -> ListenError {
    match error {
        MoveError::Foreign => ListenError::Foreign { address },
        MoveError::Io(error) => explain(error, title, MOVE_REMEDY),
    }
}

fn listen_unix(path: &Path, mode: u32, files: &mut Vec<SocketFile>) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    files.extend(SocketFile::at(path));
    // The mode is set before listening, so that no client connects while the mode is still the default.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn bound_address(fd: &OwnedFd, endpoint: &Endpoint) -> Result<String, ListenError> {
    let local = || SockRef::from(fd).local_addr();
    match endpoint {
        Endpoint::Unix { .. } => Ok(endpoint.configured()),
        Endpoint::Tcp(configured) => match local() {
            Ok(address) => Ok(address.as_socket().unwrap_or(*configured).to_string()),
            Err(source) => Err(ListenError::Io { address: configured.to_string(), source }),
        },
    }
}

/// Makes the copies for Pingora. Its table takes bare file descriptors, so from here on only the service that takes a
/// copy can close it.
fn lend(addresses: &[String], open: &[Listening]) -> Result<Table, ListenError> {
    let mut fds = Fds::new();
    for (address, listening) in addresses.iter().zip(open).filter(|(_, listening)| listening.is_lent) {
        let copy = listening.fd.as_fd().try_clone_to_owned();
        let copy = copy.map_err(|source| ListenError::Io { address: address.clone(), source })?;
        fds.add(address.clone(), copy.into_raw_fd());
    }
    Ok(Table(Arc::new(fds.into())))
}

fn explain(source: io::Error, address: String, remedy: &'static str) -> ListenError {
    match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse { address, remedy: "" },
        io::ErrorKind::PermissionDenied => ListenError::Denied { address, remedy },
        io::ErrorKind::AddrNotAvailable => ListenError::NotLocal { address },
        _ => ListenError::Io { address, source },
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

#[cfg(test)]
impl Sockets {
    /// Binds every address, without inherited sockets.
    pub(crate) fn bind(specs: &[ListenSpec]) -> Result<Self, ListenError> {
        Self::adopt(Vec::new(), specs)
    }

    /// Returns the addresses in the order of the specs. In place of port 0 they have the port that the system chose.
    fn addresses(&self) -> Vec<String> {
        let bound = |open: &Listening| SockRef::from(&open.fd).local_addr().ok()?.as_socket();
        let address =
            |open| bound(open).map_or_else(|| open.configured.clone(), |address| address.to_string());
        lock(&self.open).iter().map(address).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpStream;
    use std::time::{Duration, Instant};

    use pingora::apps::ServerApp;
    use pingora::protocols::Stream;
    use pingora::services::listening::Service as Listener;

    use super::*;

    fn any_port() -> ListenSpec {
        ListenSpec::traffic(Endpoint::Tcp("127.0.0.1:0".parse().unwrap()))
    }

    fn unix(path: &Path) -> ListenSpec {
        ListenSpec::traffic(Endpoint::Unix { path: path.to_owned(), mode: 0o660 })
    }

    /// Closes the copies, which no service of the test takes.
    fn close_table(sockets: &Sockets) {
        for fd in sockets.listen_fds().lock().serialize().1 {
            nix::unistd::close(fd).unwrap();
        }
    }

    #[test]
    fn addresses_have_the_ports_that_the_system_chose() {
        let v6 = ListenSpec::admin(Endpoint::Tcp("[::1]:0".parse().unwrap()));
        let sockets = Sockets::bind(&[any_port(), any_port(), v6]).unwrap();
        for address in sockets.addresses() {
            assert!(!address.ends_with(":0"));
            let is_lent = address.starts_with("[::1]");
            assert_eq!(sockets.listen_fds().lock().get(&address).is_some(), is_lent);
            TcpStream::connect(address).unwrap();
        }
        assert!(sockets.addresses()[2].starts_with("[::1]:"));
    }

    #[test]
    fn the_error_for_a_port_in_use_gives_a_remedy() {
        let first = Sockets::bind(&[any_port()]).unwrap();
        let address = first.addresses()[0].clone();
        let spec = ListenSpec::traffic(Endpoint::Tcp(address.parse().unwrap()));
        let error = Sockets::bind(&[spec]).unwrap_err().to_string();
        assert!(error.contains(&address) && error.contains("SIGQUIT"), "{error}");
    }

    #[test]
    fn one_error_names_all_addresses_in_use_with_their_keys() {
        let taken = Sockets::bind(&[any_port(), any_port()]).unwrap();
        let [one, two] = [0, 1].map(|index| Endpoint::Tcp(taken.addresses()[index].parse().unwrap()));
        let specs = [ListenSpec::traffic(one).called("listener `web`".to_owned()), ListenSpec::admin(two)];
        for said in [Sockets::bind(&specs).unwrap_err().to_string(), check(&specs).unwrap_err().to_string()] {
            let lines: Vec<_> = said.lines().collect();
            let [first, second] = lines[..] else { panic!("{said}") };
            assert!(first.contains(&format!("{} (listener `web`)", taken.addresses()[0])), "{said}");
            assert!(
                second.contains(&taken.addresses()[1]) && second.contains("(`metrics.address`)"),
                "{said}"
            );
            assert!(second.contains("`metrics: {address: 127.0.0.1:6193}`"), "{said}");
        }
    }

    #[test]
    fn a_check_opens_no_port() {
        let socket = tests_port();
        check(&[ListenSpec::traffic(Endpoint::Tcp(socket))]).unwrap();
        Sockets::bind(&[ListenSpec::traffic(Endpoint::Tcp(socket))]).unwrap();
    }

    /// Returns a port that was free a moment ago.
    fn tests_port() -> SocketAddr {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    #[test]
    fn an_address_of_another_machine_is_rejected() {
        let spec = ListenSpec::traffic(Endpoint::Tcp("192.0.2.1:0".parse().unwrap()));
        assert!(matches!(Sockets::bind(&[spec]), Err(ListenError::NotLocal { .. })));
    }

    #[test]
    fn the_error_for_a_privileged_port_names_the_capability() {
        let error = explain(io::ErrorKind::PermissionDenied.into(), "0.0.0.0:80".to_owned(), TCP_REMEDY);
        assert!(error.to_string().contains("CAP_NET_BIND_SERVICE"));
    }

    #[test]
    fn the_error_for_an_impossible_move_gives_the_steps() {
        let spec = ListenSpec::traffic(Endpoint::Tcp("0.0.0.0:80".parse().unwrap()));
        let spec = spec.called("listener `web`".to_owned());
        let said = |error| cannot_move(error, spec.endpoint.configured(), spec.title()).to_string();
        let foreign = said(MoveError::Foreign);
        assert!(
            foreign.contains("remove the old address and reload, then add 0.0.0.0:80 and reload"),
            "{foreign}"
        );
        let denied = said(MoveError::Io(io::ErrorKind::PermissionDenied.into()));
        assert!(denied.contains("stop the daemon, then start it with the new file"), "{denied}");
    }

    #[test]
    fn closing_a_class_closes_only_its_ports() {
        let admin = ListenSpec::admin(Endpoint::Tcp("127.0.0.1:0".parse().unwrap()));
        let sockets = Sockets::bind(&[any_port(), admin]).unwrap();
        close_table(&sockets);
        let addresses = sockets.addresses();
        sockets.close(Class::Traffic);
        assert!(TcpStream::connect(&addresses[0]).is_err());
        TcpStream::connect(&addresses[1]).unwrap();
    }

    #[test]
    fn a_socket_file_has_its_mode_and_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lb.sock");
        let sockets = Sockets::bind(&[unix(&path)]).unwrap();
        assert_eq!(sockets.addresses()[0], path.to_str().unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        UnixStream::connect(&path).unwrap();
        assert!(matches!(Sockets::bind(&[unix(&path)]), Err(ListenError::InUse { .. })));
        drop(sockets);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_file_is_replaced_and_any_other_file_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (stale, file) = (dir.path().join("stale"), dir.path().join("file"));
        drop(UnixListener::bind(&stale).unwrap());
        Sockets::bind(&[unix(&stale)]).unwrap();
        std::fs::write(&file, "data").unwrap();
        assert!(matches!(Sockets::bind(&[unix(&file)]), Err(ListenError::NotASocket { .. })));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "data");
    }

    #[test]
    fn a_failed_start_leaves_no_socket_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lb.sock");
        let elsewhere = ListenSpec::traffic(Endpoint::Tcp("192.0.2.1:0".parse().unwrap()));
        Sockets::bind(&[unix(&path), elsewhere]).unwrap_err();
        assert!(!path.exists());
    }

    #[test]
    fn a_new_process_takes_the_sockets_that_it_configures_and_closes_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, gone) = (dir.path().join("kept"), dir.path().join("gone"));
        let old = Sockets::bind(&[any_port(), unix(&kept), unix(&gone), any_port()]).unwrap();
        let private = ListenSpec::traffic(Endpoint::Unix { path: kept.clone(), mode: 0o600 });
        let new = Sockets::adopt(old.to_hand_over().unwrap(), &[private, any_port()]).unwrap();
        assert_eq!(new.addresses()[0], old.addresses()[1]);
        assert_eq!(new.addresses()[1], old.addresses()[0], "port 0 is inherited in order");

        let mode = || std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o660, "until the handover is complete, the old process decides");
        new.own_files();
        assert_eq!(mode(), 0o600);
        new.set_mode(kept.to_str().unwrap(), 0o622);
        assert_eq!(mode(), 0o622);
        old.keep_files();
        drop(old);
        assert!(kept.exists() && !gone.exists());
        UnixStream::connect(&kept).unwrap();
        drop(new);
        assert!(!kept.exists());
    }

    #[test]
    fn a_new_process_that_fails_leaves_the_files_of_the_old_process() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, gone) = (dir.path().join("kept"), dir.path().join("gone"));
        let old = Sockets::bind(&[unix(&kept), unix(&gone)]).unwrap();
        drop(Sockets::adopt(old.to_hand_over().unwrap(), &[unix(&kept)]).unwrap());
        assert!(kept.exists() && gone.exists());
    }

    #[test]
    fn an_inherited_descriptor_that_does_not_listen_is_an_error() {
        let (stream, _peer) = UnixStream::pair().unwrap();
        let inherited = vec![InheritedSocket { address: "127.0.0.1:0".to_owned(), fd: stream.into() }];
        assert!(matches!(Sockets::adopt(inherited, &[any_port()]), Err(ListenError::NotListening { .. })));
    }

    /// Closes each connection at once.
    struct Hello;

    #[async_trait]
    impl ServerApp for Hello {
        async fn process_new(self: &Arc<Self>, _: Stream, _: &ShutdownWatch) -> Option<Stream> {
            None
        }
    }

    fn refused_by(deadline: Instant, address: &str) -> bool {
        while Instant::now() < deadline {
            if TcpStream::connect(address).is_err() {
                return true;
            }
            std::thread::yield_now();
        }
        false
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_pingora_service_takes_the_socket_and_closes_it_when_it_is_stopped() {
        let spec = ListenSpec::admin(Endpoint::Tcp("127.0.0.1:0".parse().unwrap()));
        let sockets = Sockets::bind(&[spec]).unwrap();
        let address = sockets.addresses()[0].clone();
        let mut listener = Listener::new("test".to_owned(), Hello);
        listener.add_tcp(&address);
        let (stop, stopped) = watch::channel(false);
        let (failures, mut failed) = mpsc::unbounded_channel();
        let (_server, server_shutdown) = watch::channel(false);
        let mut handed = Handed::new(listener, &sockets, stopped, failures);
        let running = tokio::spawn(async move {
            Service::start_service(&mut handed, None, server_shutdown, 1).await;
        });
        let connected = address.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(connected).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            stream.read(&mut [0])
        });
        assert_eq!(read.await.unwrap().unwrap(), 0);

        sockets.close(Class::Admin);
        stop.send(true).unwrap();
        running.await.unwrap();
        assert!(refused_by(Instant::now() + Duration::from_secs(5), &address));
        assert_eq!(failed.recv().await, None, "a service that is stopped is not a failure");
    }

    struct Broken;

    #[async_trait]
    impl Service for Broken {
        async fn start_service(&mut self, _: Option<ListenFds>, _: ShutdownWatch, _: usize) {
            panic!("cannot build listeners");
        }

        fn name(&self) -> &str {
            "broken"
        }
    }

    #[tokio::test]
    async fn a_service_that_panics_is_reported() {
        let sockets = Sockets::bind(&[]).unwrap();
        let (_stop, stopped) = watch::channel(false);
        let (failures, mut failed) = mpsc::unbounded_channel();
        let mut handed = Handed::new(Broken, &sockets, stopped.clone(), failures);
        let task = tokio::spawn(async move { Service::start_service(&mut handed, None, stopped, 1).await });
        assert!(task.await.unwrap_err().is_panic());
        assert!(failed.recv().await.is_some_and(|problem| problem.starts_with("service broken has ended")));
    }
}
