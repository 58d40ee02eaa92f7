//! The files of a process whose paths are not configured, and their directory.
//!
//! The directory depends on the user that *starts* the daemon, and belongs to the user as whom the daemon runs. In an
//! upgrade the new process uses the directory of the old one, which `Predecessor`
//! names.
//!
//! Daemons with different configuration files use different names in the directory, so that they can run side by side:
//!
//! ```text
//! /etc/load_balancer/load_balancer.yaml   control.sock               load_balancer.pid               upgrade.sock
//! (or no file)
//! /srv/shop/lb.yaml                       control.lb-1a2b3c4d.sock   load_balancer.lb-1a2b3c4d.pid   upgrade.…
//! ```
//!
//! A name contains the stem of the configuration file, for people, and a hash of its [canonical path](canonical), which
//! makes it unique. Earlier versions use the [common](RuntimeFiles::common) names for every configuration file.
//!
//! Invariant: a process never takes over a directory in which a daemon of another user runs. It takes over a directory
//! whose daemons have ended.

use std::ffi::OsStr;
use std::fs::{DirEntry, Metadata, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use nix::unistd::Uid;
use xxhash_rust::xxh3::xxh3_64;

use super::create_private_dir;
use super::files::{check_creatable, open_untrusted, reason};
use super::privileges::user_name;
use super::sockets::is_accepting;

/// The standard configuration file. Its daemon uses the same names as a daemon without a file.
pub(crate) const STANDARD: &str = "/etc/load_balancer/load_balancer.yaml";
/// The runtime directory of root's daemons.
pub(crate) const ROOTS_DIRECTORY: &str = "/run/load_balancer";
/// The name of the runtime directory of another user, in the directory of the user's session.
const SESSION_NAME: &str = "load_balancer";
/// The name of the runtime directory of a user without a session, up to the UID.
const TEMPORARY_PREFIX: &str = "load_balancer-";
/// The parent of the directories of sessions.
const SESSIONS: &str = "/run/user";
/// The maximum length of the path of a Unix socket, in bytes.
const MAX_SOCKET_PATH: usize = 107;
/// The length of a socket's name without the stem. The longest name is the one of a process that has handed over.
const AROUND_STEM: usize = "/control.-01234567.sock.4194304".len();
/// The maximum length of the stem in a name. A longer one would not help people.
const MAX_STEM: usize = 32;

/// The names of the files whose paths are not configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeFiles {
    directory: PathBuf,
    file: Option<PathBuf>,
    /// The part of the names that identifies the configuration file. `None` means the common names.
    instance: Option<String>,
}

/// The reason why the runtime directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DirectoryError {
    #[error(
        "cannot use the runtime directory {directory}: {}; set `pid_file`, `upgrade_sock` and `control: {{socket: PATH}}` to \
         paths in a directory that this user can write to",
        reason(source)
    )]
    Io { directory: PathBuf, source: io::Error },
    #[error(
        "cannot use the runtime directory {directory}: it is not a directory that only the user `{user}` can use; remove \
         it, or set `pid_file`, `upgrade_sock` and `control: {{socket: PATH}}`"
    )]
    NotPrivate { directory: PathBuf, user: String },
    #[error(
        "cannot use the runtime directory {directory} for the user `{user}`: a daemon of the user `{owner}` runs there \
         ({file}); set `pid_file`, `upgrade_sock` and `control: {{socket: PATH}}` to paths in a directory of the user \
         `{user}`"
    )]
    Shared { directory: PathBuf, user: String, owner: String, file: PathBuf },
}

// === impl RuntimeFiles ===

impl RuntimeFiles {
    /// Returns the names in `directory` for a daemon with this configuration file, by its [canonical] path, or without
    /// a file.
    pub fn new(directory: PathBuf, file: Option<PathBuf>) -> Self {
        let room = MAX_SOCKET_PATH.saturating_sub(directory.as_os_str().len() + AROUND_STEM);
        let named = file.as_deref().filter(|file| *file != Path::new(STANDARD));
        let instance = named.map(|file| instance_name(file, room));
        Self { directory, file, instance }
    }

    /// Returns the names that do not depend on the configuration file. All daemons of earlier versions use them.
    pub(crate) fn common(&self) -> Self {
        Self { instance: None, ..self.clone() }
    }

    /// Returns the names for this configuration file in another directory.
    pub(crate) fn within(&self, directory: &Path) -> Self {
        Self::new(directory.to_owned(), self.file.clone())
    }

    /// Returns the directory of the files.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the absolute path of the configuration file. `None` means that the daemon has no file.
    pub(crate) fn configuration(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Returns the path of the PID file.
    pub fn pid_file(&self) -> PathBuf {
        self.named("load_balancer", "pid")
    }

    /// Returns the path of the socket on which a new process takes over the listening sockets.
    pub(crate) fn upgrade_sock(&self) -> PathBuf {
        self.named("upgrade", "sock")
    }

    /// Returns the path of the control socket.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.named("control", "sock")
    }

    fn named(&self, what: &str, kind: &str) -> PathBuf {
        self.directory.join(match &self.instance {
            Some(instance) => format!("{what}.{instance}.{kind}"),
            None => format!("{what}.{kind}"),
        })
    }

    /// Returns the control sockets of all daemons in the directory. The daemon of a socket might have ended.
    pub(crate) fn control_sockets(&self) -> Vec<PathBuf> {
        let is_one = |name: &str| name.starts_with("control.") && name.ends_with(".sock");
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let sockets = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_one));
        let mut sockets: Vec<_> = sockets.map(|entry| entry.path()).collect();
        sockets.sort();
        sockets
    }

    /// Returns whether this is the name of one of these files, or of a file beside them that exists during an upgrade.
    fn has(&self, name: &OsStr) -> bool {
        let Some(name) = name.to_str() else { return false };
        let own = [self.pid_file(), self.upgrade_sock(), self.control_socket()];
        let mut own = own.iter().filter_map(|path| path.file_name()?.to_str());
        own.any(|own| name.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
    }

    /// Checks whether [`take`](Self::take) would succeed, without changing anything.
    ///
    /// # Errors
    /// See [`DirectoryError`].
    pub(crate) fn check(&self, owner: Uid, takes_over: bool) -> Result<(), DirectoryError> {
        match std::fs::symlink_metadata(&self.directory) {
            Ok(found) => self.judge(&found, owner, takes_over),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                check_creatable(&self.directory).map_err(|error| self.failed(error))
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Creates the directory for `owner`, the user as whom the daemon runs, or makes sure that only this user can use
    /// it. The check is needed because another user might have created the directory in a parent that everybody can
    /// write to. If `takes_over` is set, the files of the old process can be there.
    ///
    /// # Errors
    /// See [`DirectoryError`]. A daemon that uses the directory is then unaffected.
    pub(crate) fn take(&self, owner: Uid, takes_over: bool) -> Result<(), DirectoryError> {
        create_private_dir(&self.directory).map_err(|error| self.failed(error))?;
        self.check(owner, takes_over)?;
        if Uid::effective().is_root() {
            self.give(owner).map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    fn judge(&self, found: &Metadata, owner: Uid, takes_over: bool) -> Result<(), DirectoryError> {
        let is_owned = found.uid() == owner.as_raw();
        let is_private = is_owned && found.mode() & 0o077 == 0;
        if !found.is_dir() || !is_private && !Uid::effective().is_root() {
            let (directory, user) = (self.directory.clone(), user_name(owner));
            return Err(DirectoryError::NotPrivate { directory, user });
        }
        match (!is_owned).then(|| self.inhabitant(takes_over)).flatten() {
            None => Ok(()),
            Some(file) => Err(DirectoryError::Shared {
                directory: self.directory.clone(),
                user: user_name(owner),
                owner: user_name(Uid::from_raw(found.uid())),
                file,
            }),
        }
    }

    /// Returns a file that a running daemon holds. Files of the old process in an upgrade do not count.
    fn inhabitant(&self, takes_over: bool) -> Option<PathBuf> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let mut others = entries.filter(|entry| !(takes_over && self.has(&entry.file_name())));
        others.find(is_held).map(|entry| entry.path())
    }

    /// Gives the directory to `owner`. Sockets and PID files of stopped daemons of another user are removed: the daemon
    /// could not replace them, and root must not change the owner of a file that another user can exchange.
    fn give(&self, owner: Uid) -> io::Result<()> {
        if std::fs::symlink_metadata(&self.directory)?.uid() != owner.as_raw() {
            lchown(&self.directory, Some(owner.as_raw()), None)?;
            std::fs::read_dir(&self.directory)?
                .flatten()
                .filter(is_left_over)
                .try_for_each(|entry| remove(&entry))?;
        }
        std::fs::set_permissions(&self.directory, Permissions::from_mode(0o700))
    }

    fn failed(&self, source: io::Error) -> DirectoryError {
        DirectoryError::Io { directory: self.directory.clone(), source }
    }
}

/// Looks up an environment variable.
type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Returns the directory for files whose paths are not configured. It is created with mode 0700, and a directory of
/// another user is refused.
///
/// For root it is `/run/load_balancer`. For other users it is `$XDG_RUNTIME_DIR/load_balancer`, or else a private
/// directory in `$TMPDIR`.
pub(crate) fn runtime_directory(uid: u32, variables: Lookup<'_>) -> PathBuf {
    if uid == 0 {
        return PathBuf::from(ROOTS_DIRECTORY);
    }
    match directory_in(variables, "XDG_RUNTIME_DIR") {
        Some(session) => session.join(SESSION_NAME),
        None => temporary_directory(variables).join(format!("{TEMPORARY_PREFIX}{uid}")),
    }
}

/// Returns the runtime directories of other users that this user can see.
pub(crate) fn directories_of_users(variables: Lookup<'_>) -> Vec<PathBuf> {
    let is_of_user = |path: &PathBuf| {
        let name = path.file_name().and_then(OsStr::to_str);
        name.and_then(|name| name.strip_prefix(TEMPORARY_PREFIX))
            .is_some_and(|uid| uid.parse::<u32>().is_ok())
    };
    let sessions = entries(Path::new(SESSIONS)).map(|session| session.join(SESSION_NAME));
    let temporary = entries(&temporary_directory(variables)).filter(is_of_user);
    let is_directory = |path: &PathBuf| std::fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    sessions.chain(temporary).filter(is_directory).collect()
}

fn temporary_directory(variables: Lookup<'_>) -> PathBuf {
    directory_in(variables, "TMPDIR").unwrap_or_else(|| "/tmp".into())
}

fn directory_in(variables: Lookup<'_>, name: &str) -> Option<PathBuf> {
    variables(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Returns the canonical path of a configuration file. Symbolic links in its directory are resolved. If the file itself
/// is a link, it is not resolved, because deployments exchange the target of such a link.
///
/// # Errors
/// Fails if the directory does not exist or cannot be entered.
pub(crate) fn canonical(file: &Path) -> io::Result<PathBuf> {
    let resolved = resolved(file)?;
    let is_standard =
        resolved == Path::new(STANDARD) || self::resolved(Path::new(STANDARD)).is_ok_and(|it| it == resolved);
    Ok(if is_standard { STANDARD.into() } else { resolved })
}

fn resolved(file: &Path) -> io::Result<PathBuf> {
    let file = std::path::absolute(file)?;
    match (file.parent(), file.file_name()) {
        (Some(directory), Some(name)) => Ok(directory.canonicalize()?.join(name)),
        _ => Ok(file),
    }
}

/// Returns the stem of the file, shortened and with special characters replaced, and a hash of its path that must be
/// the same in every version.
fn instance_name(file: &Path, room: usize) -> String {
    let hash = xxh3_64(file.as_os_str().as_bytes()) & 0xffff_ffff;
    let harmless = |letter: char| if letter.is_ascii_alphanumeric() || letter == '-' { letter } else { '_' };
    let stem = file.file_stem().map(|stem| stem.to_string_lossy()).unwrap_or_default();
    let stem: String = stem.chars().map(harmless).take(room.min(MAX_STEM)).collect();
    if stem.is_empty() { format!("{hash:08x}") } else { format!("{stem}-{hash:08x}") }
}

/// Returns whether a running process listens on a socket or holds the lock of a PID file.
fn is_held(entry: &DirEntry) -> bool {
    match entry.file_type() {
        Ok(kind) if kind.is_socket() => is_accepting(&entry.path()),
        Ok(kind) if kind.is_file() && is_pid_file(entry) => {
            open_untrusted(&entry.path()).is_ok_and(|file| file.try_lock().is_err())
        }
        _ => false,
    }
}

/// Returns whether this is a socket or a PID file of a daemon that has ended.
fn is_left_over(entry: &DirEntry) -> bool {
    let is_ours = entry.file_type().is_ok_and(|kind| kind.is_socket() || is_pid_file(entry));
    is_ours && !is_held(entry)
}

fn is_pid_file(entry: &DirEntry) -> bool {
    entry.path().extension() == Some(OsStr::new("pid"))
}

fn remove(entry: &DirEntry) -> io::Result<()> {
    match std::fs::remove_file(entry.path()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn files(directory: &Path) -> RuntimeFiles {
        RuntimeFiles::new(directory.to_owned(), None)
    }

    fn names(directory: &str, file: &str) -> [String; 3] {
        let files = RuntimeFiles::new(directory.into(), Some(file.into()));
        [files.pid_file(), files.upgrade_sock(), files.control_socket()]
            .map(|path| path.display().to_string())
    }

    #[test]
    fn the_error_for_a_directory_that_cannot_be_created_names_the_keys_to_set() {
        let source = io::Error::from_raw_os_error(30);
        let error = DirectoryError::Io { directory: "/run/load_balancer".into(), source }.to_string();
        let expected =
            "cannot use the runtime directory /run/load_balancer: read-only file system; set `pid_file`,";
        assert!(error.starts_with(expected), "{error}");
    }

    #[test]
    fn runtime_files_lie_in_a_private_directory() {
        let none = |_: &str| None;
        let session = |name: &str| (name == "XDG_RUNTIME_DIR").then(|| "/run/user/7".to_owned());
        let relative = |name: &str| (name == "XDG_RUNTIME_DIR").then(|| "run".to_owned());
        assert_eq!(runtime_directory(0, &session), Path::new("/run/load_balancer"));
        assert_eq!(runtime_directory(7, &session), Path::new("/run/user/7/load_balancer"));
        assert_eq!(runtime_directory(7, &none), Path::new("/tmp/load_balancer-7"));
        assert_eq!(runtime_directory(7, &relative), Path::new("/tmp/load_balancer-7"));
    }

    #[test]
    fn directories_of_users_without_a_session_are_found_by_their_names() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["load_balancer-7", "load_balancer-x", "other-7"] {
            std::fs::create_dir(parent.path().join(name)).unwrap();
        }
        std::fs::write(parent.path().join("load_balancer-8"), "").unwrap();
        let variables = |name: &str| (name == "TMPDIR").then(|| parent.path().display().to_string());
        let found = directories_of_users(&variables);
        let ours: Vec<_> = found.iter().filter(|path| path.starts_with(parent.path())).collect();
        assert_eq!(ours, [&parent.path().join("load_balancer-7")]);
    }

    #[test]
    fn the_names_contain_the_stem_of_the_file_and_never_change() {
        let common = ["/run/lb/load_balancer.pid", "/run/lb/upgrade.sock", "/run/lb/control.sock"];
        assert_eq!(names("/run/lb", STANDARD), common);
        let without = RuntimeFiles::new("/run/lb".into(), None);
        assert_eq!(without.control_socket(), Path::new(common[2]));
        let hash = format!("{:08x}", xxh3_64(b"/srv/shop/lb.yaml") & 0xffff_ffff);
        assert_eq!(
            hash, "a680ae3d",
            "a version with another hash does not find the daemons of earlier versions"
        );
        let shop = names("/run/lb", "/srv/shop/lb.yaml");
        assert_eq!(shop[2], format!("/run/lb/control.lb-{hash}.sock"));
        assert_eq!(shop[0], format!("/run/lb/load_balancer.lb-{hash}.pid"));
        assert_ne!(shop, names("/run/lb", "/srv/blog/lb.yaml"));
        let files = RuntimeFiles::new("/run/lb".into(), Some("/srv/shop/lb.yaml".into()));
        assert_eq!(files.common().control_socket(), without.control_socket());
    }

    #[test]
    fn names_have_no_special_characters_and_fit_into_the_address_of_a_socket() {
        let strange = &names("/run/lb", "/srv/a b\u{e4}\n.d.yaml")[2];
        assert!(strange.starts_with("/run/lb/control.a_b___d-"), "{strange}");
        let long = format!("/srv/{}.yaml", "long".repeat(60));
        for directory in [10, 40, 75].map(|length| format!("/{}", "d".repeat(length))) {
            let socket = &names(&directory, &long)[2];
            assert!(socket.len() + ".4194304".len() <= MAX_SOCKET_PATH, "{socket}");
        }
    }

    #[test]
    fn a_canonical_path_resolves_the_directory_but_not_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().canonicalize().unwrap().join("real");
        std::fs::create_dir(&real).unwrap();
        let (link, file) = (directory.path().join("link"), real.join("a.yaml"));
        std::os::unix::fs::symlink(&real, &link).unwrap();
        std::os::unix::fs::symlink("elsewhere.yaml", &file).unwrap();
        assert_eq!(canonical(&link.join("a.yaml")).unwrap(), file);
        assert_eq!(canonical(&link.join("../real/./a.yaml")).unwrap(), file);
        assert!(canonical(&directory.path().join("none/a.yaml")).is_err());
        assert_eq!(canonical(Path::new(STANDARD)).unwrap_or_else(|_| STANDARD.into()), Path::new(STANDARD));
    }

    #[test]
    fn control_sockets_of_all_daemons_are_found_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        for name in
            ["control.sock", "control.a-1.sock", "control.sock.12", "upgrade.sock", "load_balancer.pid"]
        {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        let found = files(directory.path()).control_sockets();
        let names: Vec<_> = found.iter().filter_map(|path| path.file_name()?.to_str()).collect();
        assert_eq!(names, ["control.a-1.sock", "control.sock"]);
    }

    #[test]
    fn the_runtime_directory_is_created_for_this_user_only() {
        let parent = tempfile::tempdir().unwrap();
        let files = files(&parent.path().join("a/b"));
        files.check(Uid::effective(), false).unwrap();
        assert!(!files.directory().exists(), "a check leaves no trace");
        for _ in 0..2 {
            files.take(Uid::effective(), false).unwrap();
            assert_eq!(std::fs::metadata(files.directory()).unwrap().mode() & 0o777, 0o700);
        }
    }

    #[test]
    fn a_runtime_directory_that_is_a_file_or_a_link_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let (file, link) = (parent.path().join("file"), parent.path().join("link"));
        std::fs::write(&file, "").unwrap();
        assert!(files(&file).take(Uid::effective(), false).is_err());
        std::os::unix::fs::symlink(parent.path(), &link).unwrap();
        assert!(files(&link).take(Uid::effective(), false).is_err());
    }

    #[test]
    fn a_runtime_directory_that_others_can_enter_is_refused_or_made_private() {
        let parent = tempfile::tempdir().unwrap();
        std::fs::set_permissions(parent.path(), Permissions::from_mode(0o755)).unwrap();
        let taken = files(parent.path()).take(Uid::effective(), false);
        let mode = std::fs::metadata(parent.path()).unwrap().mode() & 0o777;
        assert!(if Uid::effective().is_root() { taken.is_ok() && mode == 0o700 } else { taken.is_err() });
    }

    #[test]
    fn a_directory_of_another_user_is_taken_over_only_if_no_daemon_runs_there() {
        if !Uid::effective().is_root() {
            return;
        }
        let (parent, other) = (tempfile::tempdir().unwrap(), Uid::from_raw(54321));
        let files = files(parent.path());
        let living = UnixListener::bind(files.control_socket()).unwrap();
        let error = files.take(other, false).unwrap_err().to_string();
        for said in ["the user `root` runs there", "control.sock", "`pid_file`, `upgrade_sock` and `control"]
        {
            assert!(error.contains(said), "{error}");
        }
        assert!(
            files.check(other, false).is_err() && files.check(other, true).is_ok(),
            "the old process of an upgrade"
        );
        drop(living);
        files.take(other, false).unwrap();
        assert_eq!(std::fs::metadata(parent.path()).unwrap().uid(), 54321);
        assert!(!files.control_socket().exists(), "the socket of the stopped daemon is removed");
    }
}
