//! The PID file, which is locked as long as its process lives, so that a stale PID file can be recognised.
//!
//! The lock (`flock`) belongs to the open file, not to the PID in it. It is released as soon as its process ends, for
//! whatever reason. The path might name another file later (an upgrade renames the file of the new process to this
//! path), so every decision compares the locked file with the file that the path names at that moment.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use nix::unistd::Uid;

use super::files::{check_creatable, check_writable, open_or_create, open_untrusted, reason};
use super::locks::users_with_lock;
use super::privileges::Identity;
use super::{FileId, create_private_dir};

/// The longest PID file, in bytes: a PID has at most ten digits.
const MAX_BYTES: u64 = 32;

/// A PID file that names this process. Dropping it removes the file, unless the path names another file by then.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    /// The open file, which holds the lock.
    file: File,
}

/// A PID file of a new process, beside the path that it takes over later. Dropping it removes the file.
#[derive(Debug)]
pub(crate) struct Prepared {
    pid_file: PidFile,
    path: PathBuf,
}

/// The reason why a PID file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PidFileError {
    #[error(
        "load_balancer already runs as {holder} (PID file {path}): run `load_balancer reload` to apply a changed file, \
         `load_balancer upgrade` to replace the process, or `load_balancer stop` to end it"
    )]
    AlreadyRuns { path: PathBuf, holder: Holder },
    #[error(
        "the PID file {path} (`pid_file`) contains something other than a PID and would be overwritten; name another \
         file, or remove this one"
    )]
    Foreign { path: PathBuf },
    #[error("cannot use the PID file {path} (`pid_file`): {}", reason(source))]
    Io { path: PathBuf, source: io::Error },
}

/// The process that holds a PID file. `None` means that the PID is unknown: between locking and writing, the file is
/// empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder(pub Option<u32>);

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "process {pid}"),
            None => f.write_str("another process"),
        }
    }
}

impl PidFile {
    /// Checks whether [`acquire`](Self::acquire) would succeed, without changing anything.
    ///
    /// # Errors
    /// Fails with [`PidFileError::AlreadyRuns`], or if the file cannot be opened or created.
    pub(crate) fn probe(path: &Path) -> Result<(), PidFileError> {
        let failed = |source| PidFileError::Io { path: path.to_owned(), source };
        match open_untrusted(path) {
            Ok(file) => {
                let mut file = if is_locked_by_stranger(&file) { file } else { lock(file, path)? };
                refuse_foreign(&mut file, path)?;
                check_writable(path).map_err(failed)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => check_creatable(path).map_err(failed),
            Err(error) => Err(failed(error)),
        }
    }

    /// Locks the file at `path` and writes the PID of this process into it. A PID file that no live process holds is
    /// taken over silently. If an unrelated user has locked it, it is replaced. Missing parent directories are created
    /// with mode 0700.
    ///
    /// # Errors
    /// Fails with [`PidFileError::AlreadyRuns`] if a live process holds the file, and with [`PidFileError::Foreign`] if
    /// it is not a PID file. The file is then unchanged.
    pub(crate) fn acquire(path: &Path) -> Result<Self, PidFileError> {
        let failed = |source| PidFileError::Io { path: path.to_owned(), source };
        create_parent(path).map_err(failed)?;
        loop {
            let mut file = open(path).map_err(failed)?;
            if is_locked_by_stranger(&file) && is_at(&file, path) {
                refuse_foreign(&mut file, path)?;
                std::fs::remove_file(path).map_err(failed)?;
                continue;
            }
            let mut file = lock(file, path)?;
            if is_at(&file, path) {
                refuse_foreign(&mut file, path)?;
                return Self::write(file, path).map_err(failed);
            }
            // The file was removed or replaced between our open and our lock, so the loop tries the new one.
        }
    }

    /// Prepares to make `path` name this process instead of `old_pid`. Everything that can fail is done here, so that a
    /// failure occurs before the old process drains.
    ///
    /// # Errors
    /// Fails with [`PidFileError::AlreadyRuns`] if a live process other than `old_pid` holds the file, and with
    /// [`PidFileError::Foreign`] if it is not a PID file.
    pub(crate) fn prepare(path: &Path, old_pid: u32) -> Result<Prepared, PidFileError> {
        let failed = |source| PidFileError::Io { path: path.to_owned(), source };
        create_parent(path).map_err(failed)?;
        refuse_stranger(path, old_pid)?;
        sweep(path);
        let beside = beside(path, std::process::id());
        let file = open(&beside).map_err(failed)?;
        let pid_file = Self::write(lock(file, &beside)?, &beside).map_err(failed)?;
        Ok(Prepared { pid_file, path: path.to_owned() })
    }

    /// Removes the file at `path` if it names the process `old_pid`. That process has handed over and leaves its file
    /// to this process, which has another PID file.
    pub(crate) fn remove_of(path: &Path, old_pid: u32) {
        let named = open_untrusted(path).map(|mut file| read_holder(&mut file));
        if named.is_ok_and(|holder| holder == Holder(Some(old_pid)))
            && let Err(error) = std::fs::remove_file(path)
        {
            log::warn!(
                "PID file {}: cannot remove the file of the old process {old_pid}: {}",
                path.display(),
                reason(&error)
            );
        }
    }

    /// Removes the file that the killed process `pid` has prepared for `path`.
    pub(crate) fn remove_prepared(path: &Path, pid: u32) {
        let beside = beside(path, pid);
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!(
                    "PID file {}: cannot remove the file of an ended process: {}",
                    beside.display(),
                    reason(&error)
                );
            }
            _ => {}
        }
    }

    /// Gives the file to the user as whom the process runs.
    ///
    /// # Errors
    /// Fails if the owner cannot be changed.
    pub(crate) fn give_to(&self, user: &Identity) -> Result<(), PidFileError> {
        let failed = |source| PidFileError::Io { path: self.path.clone(), source };
        user.give(&self.file).map_err(failed)
    }

    /// Releases the lock without removing the file, because the new process replaces it.
    pub(crate) fn leave(mut self) {
        self.path = PathBuf::new();
    }

    fn write(mut file: File, path: &Path) -> io::Result<Self> {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
        Ok(Self { path: path.to_owned(), file })
    }

    fn renamed(mut self, path: &Path) -> Self {
        self.path = path.to_owned();
        self
    }
}

// === impl Prepared ===

impl Prepared {
    /// Gives the file to the user as whom the process runs.
    ///
    /// # Errors
    /// Fails if the owner cannot be changed.
    pub(crate) fn give_to(&self, user: &Identity) -> Result<(), PidFileError> {
        self.pid_file.give_to(user)
    }

    /// Returns the path that it takes over later.
    pub(crate) fn target(&self) -> &Path {
        &self.path
    }

    /// Makes the path name this process. At every moment the path names a process that serves.
    ///
    /// # Errors
    /// Fails if this process can no longer write to the directory. The process then continues, with its file beside the
    /// path.
    pub(crate) fn take_over(self) -> Result<PidFile, PidFileError> {
        let Self { pid_file, path } = self;
        match std::fs::rename(&pid_file.path, &path) {
            Ok(()) => Ok(pid_file.renamed(&path)),
            Err(source) => Err(PidFileError::Io { path, source }),
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if is_at(&self.file, &self.path)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            log::warn!("PID file {}: cannot remove it: {}", self.path.display(), reason(&error));
        }
    }
}

fn create_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => create_private_dir(dir),
        _ => Ok(()),
    }
}

/// Opens a file without truncating it, since it might belong to a live process. A symbolic link is refused, because it
/// could name a file that is not ours. Other users cannot open a new file, and thus cannot lock it, before this process
/// has locked it.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).truncate(false).mode(0o600).custom_flags(O_NOFOLLOW | O_NONBLOCK);
    open_or_create(path, &options)
}

fn lock(mut file: File, path: &Path) -> Result<File, PidFileError> {
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(PidFileError::AlreadyRuns { path: path.to_owned(), holder: read_holder(&mut file) })
        }
        Err(TryLockError::Error(source)) => Err(PidFileError::Io { path: path.to_owned(), source }),
    }
}

/// Returns whether all locks on a PID file belong to users who cannot run the daemon: neither root, nor the user of
/// this process, nor the owner of the file. Such a user can lock the file only because everyone can read it.
fn is_locked_by_stranger(file: &File) -> bool {
    let Ok(owner) = file.metadata().map(|metadata| metadata.uid()) else { return false };
    let is_stranger = |user: &u32| ![0, Uid::effective().as_raw(), owner].contains(user);
    match users_with_lock(file) {
        Ok(Some(users)) => !users.is_empty() && users.iter().all(is_stranger),
        // Without evidence against it, the lock counts.
        Ok(None) | Err(_) => false,
    }
}

fn read_holder(file: &mut File) -> Holder {
    let mut text = String::new();
    let read = file.take(MAX_BYTES).read_to_string(&mut text);
    Holder(read.ok().and_then(|_| text.trim().parse().ok()))
}

/// Fails if the file is neither empty nor contains exactly one PID. Another program wrote it, and the end of this
/// process would remove it.
fn refuse_foreign(file: &mut File, path: &Path) -> Result<(), PidFileError> {
    let failed = |source| PidFileError::Io { path: path.to_owned(), source };
    let metadata = file.metadata().map_err(failed)?;
    let is_pid = metadata.len() <= MAX_BYTES && read_holder(file).0.is_some();
    let is_ours = metadata.is_file() && (metadata.len() == 0 || is_pid);
    is_ours.then_some(()).ok_or_else(|| PidFileError::Foreign { path: path.to_owned() })
}

/// Fails if a live process other than `expected` holds the file at `path`, or if the file is not a PID file.
fn refuse_stranger(path: &Path, expected: u32) -> Result<(), PidFileError> {
    let Ok(mut file) = open_untrusted(path) else { return Ok(()) };
    if is_locked_by_stranger(&file) {
        return refuse_foreign(&mut file, path);
    }
    match lock(file, path) {
        Err(PidFileError::AlreadyRuns { path, holder }) if holder != Holder(Some(expected)) => {
            Err(PidFileError::AlreadyRuns { path, holder })
        }
        Ok(mut file) => refuse_foreign(&mut file, path),
        Err(_) => Ok(()),
    }
}

/// Removes the prepared files of killed processes. There is at most one new process at a time, so no other process is
/// preparing one.
fn sweep(path: &Path) {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str)) else {
        return;
    };
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let is_beside = |other: &OsStr| {
        let suffix = other.to_str().and_then(|other| other.strip_prefix(name)?.strip_prefix('.'));
        suffix.is_some_and(|pid| pid.parse::<u32>().is_ok())
    };
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let other = entry.path();
        if is_beside(&entry.file_name())
            && open_untrusted(&other).is_ok_and(|file| file.try_lock().is_ok())
            && let Err(error) = std::fs::remove_file(&other)
        {
            let (file, reason) = (other.display(), reason(&error));
            log::warn!("PID file {file}: cannot remove the file of an ended process: {reason}");
        }
    }
}

fn beside(path: &Path, pid: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{pid}"));
    PathBuf::from(name)
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), FileId::at(path)) {
        (Ok(ours), Ok(there)) => FileId::of(&ours) == there,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    fn own_pid() -> String {
        format!("{}\n", std::process::id())
    }

    #[test]
    fn a_pid_file_is_written_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/deep/lb.pid");
        let held = PidFile::acquire(&path).unwrap();
        assert_eq!(contents(&path), own_pid());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o644);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        drop(held);
        assert!(!path.exists());
    }

    #[test]
    fn the_error_for_a_held_file_names_the_holder_and_the_file_is_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lb.pid");
        let _held = PidFile::acquire(&path).unwrap();
        let error = PidFile::acquire(&path).unwrap_err().to_string();
        let expected = format!("already runs as process {} (PID file {}", std::process::id(), path.display());
        assert!(error.contains(&expected), "{error}");
        assert_eq!(contents(&path), own_pid());
    }

    #[test]
    fn a_locked_file_without_a_pid_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lb.pid");
        let file = File::create(&path).unwrap();
        file.lock().unwrap();
        let error = PidFile::acquire(&path).unwrap_err().to_string();
        assert!(error.contains("runs as another process"), "{error}");
    }

    #[test]
    fn a_stale_file_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lb.pid");
        std::fs::write(&path, "4000000\n").unwrap();
        let _held = PidFile::acquire(&path).unwrap();
        assert_eq!(contents(&path), own_pid());
    }

    #[test]
    fn a_file_that_is_not_a_pid_file_is_rejected_and_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("conf.yaml");
        let long = format!("12\n{}", " ".repeat(40));
        for text in ["pools: {}\n", "12\n13\n", "-1\n", "\n", &long] {
            std::fs::write(&path, text).unwrap();
            let refusals = [
                PidFile::probe(&path).unwrap_err(),
                PidFile::acquire(&path).unwrap_err(),
                PidFile::prepare(&path, 1).unwrap_err(),
            ];
            for error in refusals {
                assert!(matches!(error, PidFileError::Foreign { .. }), "{text:?}: {error}");
                assert!(error.to_string().contains("`pid_file`"), "{error}");
            }
            assert_eq!(contents(&path), text);
        }
        for text in ["", "12", "12\n"] {
            std::fs::write(&path, text).unwrap();
            PidFile::probe(&path).unwrap();
            PidFile::prepare(&path, 1).map(drop).unwrap();
            PidFile::acquire(&path).unwrap();
        }
    }

    #[test]
    fn a_lock_of_an_unrelated_user_does_not_count() {
        use std::os::unix::process::CommandExt;
        if !Uid::effective().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lb.pid");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(&path, "4000000\n").unwrap();
        let mut command = std::process::Command::new("flock");
        command.args(["--no-fork"]).arg(&path).args(["sleep", "60"]).uid(65534).gid(65534);
        let mut stranger = command.spawn().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while !is_locked_by_stranger(&File::open(&path).unwrap()) {
            assert!(std::time::Instant::now() < deadline, "the other user has not locked the file");
            std::thread::yield_now();
        }
        PidFile::probe(&path).unwrap();
        PidFile::prepare(&path, 1).map(drop).unwrap();
        let _held = PidFile::acquire(&path).unwrap();
        assert_eq!(contents(&path), own_pid());
        let error = PidFile::acquire(&path).unwrap_err();
        assert!(matches!(error, PidFileError::AlreadyRuns { .. }), "{error}");
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, target) = (dir.path().join("lb.pid"), dir.path().join("precious"));
        std::fs::write(&target, "data").unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        assert!(matches!(PidFile::acquire(&path), Err(PidFileError::Io { .. })));
        assert_eq!(contents(&target), "data");
    }

    #[test]
    fn the_old_process_does_not_remove_the_file_after_a_takeover() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lb.pid");
        let old = PidFile::acquire(&path).unwrap();
        let new = PidFile::prepare(&path, std::process::id()).unwrap().take_over().unwrap();
        drop(old);
        assert_eq!(contents(&path), own_pid());
        assert!(matches!(PidFile::acquire(&path), Err(PidFileError::AlreadyRuns { .. })));
        drop(new);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_prepared_files_of_killed_processes_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lb.pid");
        let live = File::create(dir.path().join("lb.pid.7")).unwrap();
        live.lock().unwrap();
        for name in ["lb.pid.4000000", "lb.pid.old", "other.pid.8"] {
            std::fs::write(dir.path().join(name), "4000000\n").unwrap();
        }
        let _new = PidFile::prepare(&path, 1).unwrap().take_over().unwrap();
        let entries = std::fs::read_dir(dir.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["lb.pid", "lb.pid.7", "lb.pid.old", "other.pid.8"]);
    }

    #[test]
    fn the_file_of_an_old_process_is_removed_if_it_still_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lb.pid");
        std::fs::write(&path, "12\n").unwrap();
        PidFile::remove_of(&path, 1);
        assert!(path.exists());
        PidFile::remove_of(&path, 12);
        assert!(!path.exists());
        PidFile::remove_of(&path, 12);
    }

    #[test]
    fn a_takeover_from_another_process_than_expected_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lb.pid");
        let stranger = PidFile::acquire(&path).unwrap();
        let refused = PidFile::prepare(&path, std::process::id() + 1);
        assert!(matches!(refused, Err(PidFileError::AlreadyRuns { .. })));
        drop(stranger);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_was_left_stays_and_can_be_acquired_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lb.pid");
        PidFile::acquire(&path).unwrap().leave();
        assert!(path.exists());
        PidFile::acquire(&path).unwrap();
    }
}
