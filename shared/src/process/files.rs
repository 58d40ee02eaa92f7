//! The files that the operator names: reading them within limits, opening them for writing, checking them beforehand,
//! and the remedies for errors.
//!
//! [`check_writable`] and [`check_creatable`] ask the kernel and change nothing. A check of the configuration therefore
//! does not create a file or directory, which would belong to the wrong user.

use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{AccessFlags, Uid, access};
use rustix::fs::{OFlags, fcntl_setfl};
pub(crate) use values::reason;

use super::limits;
use super::privileges::{Identity, user_name};
use crate::words::size;

/// The reason why a file cannot be opened for writing, with the remedy.
#[derive(Debug)]
pub(crate) struct Unusable {
    path: PathBuf,
    source: io::Error,
    remedy: Option<String>,
}

/// The time within which the writer of a FIFO must open it, in milliseconds.
const WRITER_LIMIT: u16 = 2000;

/// Reads a file or another source to its end. A source without an end, such as `/dev/zero`, is an error.
///
/// # Errors
/// Fails if the source cannot be read, or if it is longer than `limit` bytes.
pub(crate) fn read_within(limit: u64, source: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte above the limit shows that the source is too long.
    let length = source.take(limit + 1).read_to_end(&mut bytes)? as u64;
    if length > limit {
        let reason = format!("it is longer than {}", size(limit));
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    Ok(bytes)
}

/// Opens a file for reading. A FIFO without a writer is an error; opening it in the usual way would block.
///
/// # Errors
/// Fails if the file cannot be opened.
pub(crate) fn open_for_reading(path: &Path) -> io::Result<impl Read> {
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
    let first = if is_fifo(&file)? { first_byte(&file)? } else { None };
    fcntl_setfl(&file, OFlags::empty())?;
    Ok(io::Cursor::new(Vec::from_iter(first)).chain(file))
}

/// Reads the first byte of a FIFO that has a writer; `None` if the writer has not written it yet.
fn first_byte(mut fifo: &File) -> io::Result<Option<u8>> {
    let mut first = [0];
    // The result of the read also shows whether the wait has failed.
    let _ = poll(&mut [PollFd::new(fifo.as_fd(), PollFlags::POLLIN)], PollTimeout::from(WRITER_LIMIT));
    match fifo.read(&mut first) {
        Ok(0) => Err(io::Error::other("it is a FIFO without a writer; start its writer first")),
        Ok(_) => Ok(Some(first[0])),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a file that is read more than once, which a FIFO does not allow.
///
/// # Errors
/// Fails if the file cannot be opened, or if it is a FIFO.
pub(crate) fn open_rereadable(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
    if is_fifo(&file)? {
        return Err(io::Error::other("it is a FIFO, which cannot be read more than once"));
    }
    fcntl_setfl(&file, OFlags::empty())?;
    Ok(file)
}

fn is_fifo(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.file_type().is_fifo())
}

/// Opens a file with these options, and creates it if it does not exist.
///
/// `O_CREAT` is not set for a file that exists, because in a sticky directory such as `/tmp` the kernel would then
/// refuse even root to open a file of another user (`fs.protected_regular`).
///
/// # Errors
/// Fails if the file cannot be opened or created.
pub(crate) fn open_or_create(path: &Path, options: &OpenOptions) -> io::Result<File> {
    match options.clone().create(false).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => options.clone().create(true).open(path),
        opened => opened,
    }
}

/// Opens a file to append log lines to, and creates it with mode 0640 if it does not exist. A FIFO needs no reader: its
/// lines wait until it has one, or are dropped when it is full.
///
/// With `user`, root opens it for this user, who might own the directory. The kernel applies the rights of the user
/// first. Only if they do not suffice, the file is opened as root, and then a link that the user could have created is
/// not followed. If root owns the file, the user becomes its owner. A file of a third user keeps its owner, because a
/// running daemon might write to it and this start can still fail. [`take_log`] changes its owner later.
///
/// # Errors
/// Fails if the file cannot be opened or created.
pub(crate) fn open_log(path: &Path, user: Option<&Identity>) -> io::Result<File> {
    match user {
        Some(user) => open_for(user, path, Uid::is_root),
        None => open_to_append(path, &log_options()),
    }
}

/// Opens a log. A FIFO without a reader is opened at both ends, because it cannot be opened for writing alone, and a
/// check cannot find out whether there is a reader without disturbing it.
fn open_to_append(path: &Path, options: &OpenOptions) -> io::Result<File> {
    match open_or_create(path, options) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ENXIO) => options.clone().read(true).open(path),
        opened => opened,
    }
}

/// Makes `user` the owner of a log that this user cannot write to, even if it belongs to a third user. The start must
/// hold the PID file and the sockets by then, so that no running daemon needs the file.
///
/// # Errors
/// Fails if the file cannot be opened or created, or if its owner cannot be changed.
pub(crate) fn take_log(path: &Path, user: &Identity) -> io::Result<()> {
    open_for(user, path, |_| true).map(drop)
}

/// Opens a log for a user. If the user cannot write to it and `may_give` accepts its owner, the user becomes the owner.
fn open_for(user: &Identity, path: &Path, may_give: impl FnOnce(Uid) -> bool) -> io::Result<File> {
    let mut options = log_options();
    let opened = user.act(|| open_to_append(path, &options))?;
    if !opened.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
        return opened;
    }
    if is_of_kernel(path) {
        return open_to_append(path, &options);
    }
    let file = open_to_append(path, options.custom_flags(O_NONBLOCK | O_NOFOLLOW))?;
    if may_give(Uid::from_raw(file.metadata()?.uid())) {
        user.give(&file)?;
    }
    Ok(file)
}

fn log_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.append(true).mode(0o640).custom_flags(O_NONBLOCK);
    options
}

/// Returns whether no user can create a link at this path. `/dev/stdout` and `/proc/self/fd/1` are links to open files
/// of the process.
fn is_of_kernel(path: &Path) -> bool {
    path.parent() == Some(Path::new("/dev")) || path.starts_with("/proc")
}

/// Opens a file for reading in a directory that another user can write to. A symbolic link is refused, and a FIFO does
/// not block.
///
/// # Errors
/// Fails if the file cannot be opened.
pub(crate) fn open_untrusted(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path)
}

/// Checks whether this thread could open the file for writing, or create it in its directory, which must exist. It does
/// not open the file, which the reader of a FIFO would notice.
///
/// # Errors
/// Returns the error that opening the file would return.
pub(crate) fn check_writable(path: &Path) -> io::Result<()> {
    match access(path, AccessFlags::W_OK) {
        Err(Errno::ENOENT) => Ok(access(directory_of(path), AccessFlags::W_OK | AccessFlags::X_OK)?),
        found => Ok(found.and_then(|()| check_type(path))?),
    }
}

fn check_type(path: &Path) -> nix::Result<()> {
    match std::fs::metadata(path).map(|metadata| metadata.file_type()) {
        Ok(there) if there.is_dir() => Err(Errno::EISDIR),
        Ok(there) if there.is_socket() => Err(Errno::ENXIO),
        _ => Ok(()),
    }
}

/// Checks whether this thread could create a file at this path, together with its missing parent directories.
///
/// # Errors
/// Returns the error that creating the file would return.
pub(crate) fn check_creatable(path: &Path) -> io::Result<()> {
    let mut directory = directory_of(path);
    loop {
        match access(directory, AccessFlags::W_OK | AccessFlags::X_OK) {
            Err(Errno::ENOENT) if directory.parent().is_some() => directory = directory_of(directory),
            found => return Ok(found?),
        }
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

// === impl Unusable ===

impl Unusable {
    /// Creates the error for a file that could not be opened for writing.
    pub(crate) fn new(path: &Path, source: io::Error) -> Self {
        let remedy = remedy(path, &source, Uid::effective());
        Self { path: path.to_owned(), source, remedy }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), reason(&self.source))?;
        self.remedy.iter().try_for_each(|remedy| write!(f, "; {remedy}"))
    }
}

impl std::error::Error for Unusable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

fn remedy(path: &Path, error: &io::Error, user: Uid) -> Option<String> {
    let directory = directory_of(path).display();
    match error.kind() {
        io::ErrorKind::NotFound => Some(format!("create the directory {directory}")),
        io::ErrorKind::PermissionDenied => Some(permission_remedy(path, user)),
        _ => match error.raw_os_error() {
            Some(nix::libc::ENXIO) => Some("it is a socket; name a file or a FIFO".to_owned()),
            Some(nix::libc::EISDIR) => Some("name a file in this directory".to_owned()),
            Some(nix::libc::EAGAIN) => Some(limits::MORE_THREADS.to_owned()),
            Some(nix::libc::ELOOP) => Some(
                "it is a symbolic link to a file that the user of the load balancer cannot write to; give that file to this \
                 user, or name it instead of the link"
                    .to_owned(),
            ),
            _ => None,
        },
    }
}

fn permission_remedy(path: &Path, user: Uid) -> String {
    let owner = |metadata: Metadata| user_name(Uid::from_raw(metadata.uid()));
    let user = user_name(user);
    let directory = directory_of(path);
    match (std::fs::metadata(path).map(owner), std::fs::metadata(directory).map(owner)) {
        (Ok(owner), _) => format!(
            "the file belongs to the user `{owner}`, but this is the user `{user}`; run `chown {user} {}`, or name \
             another file",
            path.display()
        ),
        (Err(_), Ok(owner)) => format!(
            "the directory {} belongs to the user `{owner}`, and the user `{user}` cannot create files in it; change its \
             mode or owner, or name another file",
            directory.display()
        ),
        (Err(_), Err(_)) => {
            format!(
                "the user `{user}` cannot enter a parent directory; change its mode or owner, or name another file"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn checks_create_nothing_and_report_missing_directories() {
        let directory = tempfile::tempdir().unwrap();
        let (file, deep) = (directory.path().join("log"), directory.path().join("a/b/log"));
        check_writable(&file).unwrap();
        check_creatable(&deep).unwrap();
        assert_eq!(check_writable(&deep).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_source_without_an_end_is_an_error_that_names_the_limit() {
        let zero = open_for_reading(Path::new("/dev/zero")).unwrap();
        assert_eq!(reason(&read_within(4 << 20, zero).unwrap_err()), "it is longer than 4 MiB");
        assert_eq!(read_within(3, &b"abc"[..]).unwrap(), b"abc");
        assert!(read_within(2, &b"abc"[..]).is_err());
    }

    #[test]
    fn a_fifo_is_read_if_it_has_a_writer_and_otherwise_does_not_block() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("Fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let refused = |opened: io::Result<()>| reason(&opened.unwrap_err());
        assert!(refused(open_for_reading(&fifo).map(drop)).starts_with("it is a FIFO without a writer"));
        assert!(refused(open_rereadable(&fifo).map(drop)).starts_with("it is a FIFO, which"));
        let writer = std::thread::spawn({
            let fifo = fifo.clone();
            move || std::fs::write(fifo, "pools: {}")
        });
        assert_eq!(read_within(100, open_for_reading(&fifo).unwrap()).unwrap(), b"pools: {}");
        writer.join().unwrap().unwrap();
    }

    #[test]
    fn a_missing_file_is_created_and_an_existing_file_is_opened() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("log");
        for _ in 0..2 {
            open_or_create(&file, OpenOptions::new().append(true)).unwrap();
        }
        assert!(file.exists());
    }

    #[test]
    fn root_opens_logs_with_the_rights_of_the_user_and_does_not_follow_links_of_that_user() {
        if !Uid::effective().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let nobody = Identity::resolve(Some("nobody"), None).unwrap().unwrap();
        let named = |name: &str| directory.path().join(name);
        let owner = |path: &Path| std::fs::metadata(path).unwrap().uid();
        let linked = |name: &str, to: &Path| {
            std::os::unix::fs::symlink(to, named(name)).unwrap();
            open_log(&named(name), Some(&nobody)).map(drop).map_err(|error| error.raw_os_error())
        };
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(named("secret"), "").unwrap();
        std::fs::set_permissions(named("secret"), std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(linked("to_secret", &named("secret")), Err(Some(nix::libc::ELOOP)));
        assert_eq!(linked("to_new", &named("new")), Err(Some(nix::libc::ELOOP)));
        assert_eq!((owner(&named("secret")), named("new").exists()), (0, false));
        open_log(&named("log"), Some(&nobody)).unwrap();
        assert_eq!(owner(&named("log")), nobody.uid().as_raw(), "root has created it for the user");
        assert_eq!(linked("to_log", &named("log")), Ok(()), "the user could follow this link too");
        open_log(&named("secret"), Some(&nobody)).unwrap();
        assert_eq!(owner(&named("secret")), nobody.uid().as_raw(), "a file that the configuration names");
        std::os::unix::fs::chown(named("secret"), Some(12345), None).unwrap();
        open_log(&named("secret"), Some(&nobody)).unwrap();
        assert_eq!(owner(&named("secret")), 12345, "a daemon of this user might write to it");
        take_log(&named("secret"), &nobody).unwrap();
        assert_eq!(owner(&named("secret")), nobody.uid().as_raw());
        open_log(Path::new("/dev/null"), Some(&nobody)).unwrap();
        assert_eq!(owner(Path::new("/dev/null")), 0);
        open_log(Path::new("/proc/self/fd/1"), Some(&nobody)).unwrap();
    }

    #[test]
    fn a_log_can_be_a_fifo_whose_reader_starts_later() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        check_writable(&fifo).unwrap();
        let mut log = open_log(&fifo, None).unwrap();
        log.write_all(b"line").unwrap();
        let mut read = [0; 4];
        open_untrusted(&fifo).unwrap().read_exact(&mut read).unwrap();
        assert_eq!(&read, b"line");
        open_log(&fifo, None).unwrap();
    }

    #[test]
    fn a_check_rejects_what_a_log_cannot_be() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, said) in [(&*socket, "it is a socket"), (directory.path(), "is a directory; name a file")]
        {
            let [checked, opened] = [check_writable(path), open_log(path, None).map(drop)]
                .map(|result| Unusable::new(path, result.unwrap_err()).to_string());
            assert_eq!(checked, opened);
            assert!(checked.contains(said), "{checked}");
        }
    }

    #[test]
    fn an_untrusted_link_is_refused_and_an_untrusted_fifo_does_not_block() {
        let directory = tempfile::tempdir().unwrap();
        let [file, link, fifo] = ["file", "link", "fifo"].map(|name| directory.path().join(name));
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(open_untrusted(&file).is_ok() && open_untrusted(&fifo).is_ok());
        assert_eq!(open_untrusted(&link).unwrap_err().raw_os_error(), Some(nix::libc::ELOOP));
    }

    #[test]
    fn a_message_names_the_file_its_owner_and_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("access.log");
        let denied = || io::Error::from_raw_os_error(nix::libc::EACCES);
        let said = Unusable::new(&file, denied()).to_string();
        assert!(
            said.contains("permission denied; the directory") && said.contains("cannot create"),
            "{said}"
        );
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o400)).unwrap();
        let said = Unusable::new(&file, denied()).to_string();
        assert!(said.starts_with(&file.display().to_string()) && said.contains("chown"), "{said}");
        let missing = directory.path().join("none/access.log");
        let said = Unusable::new(&missing, io::ErrorKind::NotFound.into()).to_string();
        assert!(said.contains("create the directory"), "{said}");
    }
}
