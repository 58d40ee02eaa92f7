//! The surroundings of a configuration: the process, the machine and its files.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, Uid, access};
use pingora::tls::load_native_certs;
use rustls::RootCertStore;

use super::env::Lookup;
use super::{MAX_BYTES, is_input};
use crate::process::files::{
    Unusable, check_writable, open_for_reading, open_rereadable, read_within, reason,
};
use crate::process::privileges::{Identity, user_name};
use crate::process::runtime::RuntimeFiles;

/// The maximum length of a file with a secret, in bytes.
pub(super) const MAX_SECRET: u64 = 64 * 1024;

/// The owner and the mode of a file, which decide whether it can hold a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// Whether it is a regular file.
    pub is_file: bool,
    /// The user ID of its owner.
    pub owner: u32,
    /// Its permission bits.
    pub mode: u32,
}

/// The surroundings that a configuration is loaded in.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Looks environment variables up.
    pub variables: Lookup<'a>,
    /// The default paths of files that the configuration does not name.
    pub runtime: &'a RuntimeFiles,
    /// The number of CPUs; the default for `threads`.
    pub cpus: usize,
    /// Whether `-d` was given.
    pub daemon: bool,
    /// The address that `localhost` stands for; see `loopback`.
    pub loopback: IpAddr,
    /// The files and accounts that the configuration names.
    pub files: &'a dyn Files,
}

/// Access to the files and accounts of the machine, for the checks of a configuration.
pub trait Files {
    /// Reads a file that is read more than once, such as a file with certificates.
    ///
    /// # Errors
    ///
    /// Returns the reason if the file cannot be read, is a FIFO, or is longer than 4 MiB.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Reads the text of a configuration: a file, a FIFO with a writer, or standard input for the name `-`. The default
    /// implementation calls [`read`](Self::read).
    ///
    /// # Errors
    ///
    /// Returns the reason if the text cannot be read, or is longer than 4 MiB.
    fn read_configuration(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.read(path)
    }

    /// Reads a file with a secret and its permissions. Both come from one open file, even if the path is replaced
    /// meanwhile. If it is not a regular file, nothing is read.
    ///
    /// # Errors
    ///
    /// Returns the reason if the file cannot be read, or is longer than 64 KiB.
    fn read_secret(&self, path: &Path) -> io::Result<(Protection, Vec<u8>)>;

    /// Loads the certificate authorities of the system with the rights of this account, and returns how many there are.
    ///
    /// # Errors
    ///
    /// Returns the reason if they cannot be loaded. The default implementation always finds one.
    fn system_authorities(&self, _account: Account<'_>) -> Result<usize, String> {
        Ok(1)
    }

    /// Returns the ID of the user that the daemon runs as. If this user does not exist, it is the user that starts the
    /// daemon.
    fn uid_of(&self, account: Account<'_>) -> u32;

    /// Returns the reason why a file cannot be created in a directory. `None` means that it can.
    fn creation_error(&self, directory: &Path) -> Option<String>;

    /// Returns whether there is a regular file at the path. `None` means that nothing exists there.
    fn is_regular_file(&self, _path: &Path) -> Option<bool> {
        None
    }

    /// Returns the reason why an existing file cannot be written to, with its name and the remedy. `None` means that it
    /// can.
    fn write_error(&self, _file: &Path) -> Option<String> {
        None
    }

    /// Returns whether there is a directory at the path.
    fn is_directory(&self, path: &Path) -> bool;

    /// Returns the reason why the account that the daemon runs as cannot do this. `None` means that it can, or that
    /// this process cannot find out.
    fn denied(&self, _account: Account<'_>, _access: FileAccess<'_>) -> Option<Denied> {
        None
    }

    /// Returns the reason why no process can run as this user and group. `None` means that both exist.
    fn account_error(&self, user: Option<&str>, group: Option<&str>) -> Option<String>;
}

/// The account that the daemon runs as, from the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Account<'a> {
    /// The user. `None` stands for the user that starts the daemon.
    pub user: Option<&'a str>,
    /// The group. `None` stands for the group of the user.
    pub group: Option<&'a str>,
}

/// A later operation of the daemon that needs permission.
#[derive(Clone, Copy, Debug)]
pub enum FileAccess<'a> {
    /// Read a file.
    Read(&'a Path),
    /// Enter a directory.
    Enter(&'a Path),
    /// Create files in a directory.
    CreateIn(&'a Path),
}

/// An operation that the account of the daemon has no permission for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The user that the daemon runs as.
    pub user: String,
    /// The group that the daemon runs as.
    pub group: String,
    /// The reason.
    pub reason: String,
}

/// The real file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFiles;

/// Returns the loopback address of this machine: 127.0.0.1, or ::1 if only that works.
pub(crate) fn loopback() -> IpAddr {
    let works = |address: IpAddr| UdpSocket::bind((address, 0)).is_ok();
    choose_loopback(works)
}

/// Selects the loopback address. If neither address works it is 127.0.0.1, since operators recognise errors with that
/// address.
fn choose_loopback(works: impl Fn(IpAddr) -> bool) -> IpAddr {
    let (v4, v6) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
    if !works(v4) && works(v6) { v6 } else { v4 }
}

// === impl RealFiles ===

impl Files for RealFiles {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        read_within(MAX_BYTES, open_rereadable(path)?)
    }

    fn read_configuration(&self, path: &Path) -> io::Result<Vec<u8>> {
        match is_input(path) {
            true => read_within(MAX_BYTES, io::stdin().lock()),
            false => read_within(MAX_BYTES, open_for_reading(path)?),
        }
    }

    fn read_secret(&self, path: &Path) -> io::Result<(Protection, Vec<u8>)> {
        let file = open_rereadable(path)?;
        let metadata = file.metadata()?;
        let is_file = metadata.is_file();
        let protection = Protection { is_file, owner: metadata.uid(), mode: metadata.mode() };
        let bytes = if is_file { read_within(MAX_SECRET, file)? } else { Vec::new() };
        Ok((protection, bytes))
    }

    fn system_authorities(&self, account: Account<'_>) -> Result<usize, String> {
        match Identity::resolve(account.user, account.group) {
            Ok(Some(identity)) => identity.act(load_authorities).map_err(|error| reason(&error))?,
            _ => load_authorities(),
        }
    }

    fn uid_of(&self, account: Account<'_>) -> u32 {
        let identity = Identity::resolve(account.user, account.group).ok().flatten();
        identity.map_or_else(Uid::effective, |identity| identity.uid()).as_raw()
    }

    fn is_regular_file(&self, path: &Path) -> Option<bool> {
        fs::metadata(path).ok().map(|metadata| metadata.is_file())
    }

    fn creation_error(&self, directory: &Path) -> Option<String> {
        match fs::metadata(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some("it does not exist".to_owned()),
            Err(error) => Some(format!("it cannot be accessed: {error}")),
            Ok(metadata) if !metadata.is_dir() => Some("it is not a directory".to_owned()),
            Ok(_) => match access(directory, AccessFlags::W_OK | AccessFlags::X_OK) {
                Ok(()) => None,
                Err(error) => Some(not_writable(error)),
            },
        }
    }

    fn write_error(&self, file: &Path) -> Option<String> {
        check_writable(file).err().map(|source| Unusable::new(file, source).to_string())
    }

    fn is_directory(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn denied(&self, account: Account<'_>, access: FileAccess<'_>) -> Option<Denied> {
        let identity = Identity::resolve(account.user, account.group).ok()??;
        // Only root can find out, and only root can start the daemon as another user.
        let reason = identity.act(|| obstacle(access)).ok()??;
        Some(Denied { user: identity.user_name(), group: identity.group_name(), reason })
    }

    fn account_error(&self, user: Option<&str>, group: Option<&str>) -> Option<String> {
        Identity::resolve(user, group).err().map(|error| error.to_string())
    }
}

/// Loads the certificate authorities of the system with the rights of this thread.
fn load_authorities() -> Result<usize, String> {
    check_named_authorities()?;
    let certificates = load_native_certs().map_err(|error| reason(&error))?;
    let mut store = RootCertStore::empty();
    certificates
        .into_iter()
        .try_for_each(|certificate| store.add(certificate))
        .map_err(|error| format!("a certificate is invalid: {error}"))?;
    Ok(store.len())
}

/// Checks that the file of `SSL_CERT_FILE` has an end. Reading it never returns otherwise.
fn check_named_authorities() -> Result<(), String> {
    let Some(file) = std::env::var_os("SSL_CERT_FILE") else { return Ok(()) };
    match RealFiles.read(Path::new(&file)) {
        // The other errors are those of the system, which are reported when the certificates are loaded.
        Err(error) if error.raw_os_error().is_none() => {
            Err(format!("cannot read {}: {}", file.display(), reason(&error)))
        }
        _ => Ok(()),
    }
}

fn not_writable(error: Errno) -> String {
    let user = user_name(Uid::effective());
    format!("the user `{user}` cannot write to it: {}", error.desc().to_lowercase())
}

/// Returns the reason why this thread has no permission. `None` means that it has.
fn obstacle(wanted: FileAccess<'_>) -> Option<String> {
    let (path, flags) = match wanted {
        FileAccess::Read(path) => (path, AccessFlags::R_OK),
        FileAccess::Enter(path) => (path, AccessFlags::X_OK),
        FileAccess::CreateIn(path) => (path, AccessFlags::W_OK | AccessFlags::X_OK),
    };
    let error = access(path, flags).err().filter(|error| *error == Errno::EACCES)?;
    let is_closed = |directory: &&Path| access(*directory, AccessFlags::X_OK) == Err(Errno::EACCES);
    // The outermost directory has to be changed first.
    let closed = path.ancestors().skip(1).collect::<Vec<_>>().into_iter().rev().find(is_closed);
    Some(match closed {
        Some(directory) => format!("that user cannot enter the directory {}", directory.display()),
        None => error.desc().to_lowercase(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_from_a_regular_file_within_the_limit() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let [file, fifo] = ["file", "fifo"].map(|name| directory.path().join(name));
        for (length, is_read) in [(64 << 10, true), (1 << 20, false)] {
            fs::write(&file, vec![b'a'; length]).expect("a file can be written");
            let read = RealFiles.read_secret(&file);
            assert_eq!(read.is_ok_and(|(protection, _)| protection.is_file), is_read, "{length}");
        }
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO can be made");
        assert!(RealFiles.read_secret(&fifo).is_err());
        let (protection, bytes) = RealFiles.read_secret(Path::new("/dev/zero")).expect("it can be opened");
        assert!(!protection.is_file && bytes.is_empty());
    }

    #[test]
    fn localhost_is_ipv6_only_where_ipv4_does_not_work() {
        let (v4, v6): (IpAddr, IpAddr) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
        assert_eq!(choose_loopback(|_| true), v4);
        assert_eq!(choose_loopback(|address| address.is_ipv6()), v6);
        assert_eq!(choose_loopback(|address| address.is_ipv4()), v4);
        assert_eq!(choose_loopback(|_| false), v4);
    }

    #[test]
    fn a_directory_that_is_missing_or_a_file_has_a_creation_error() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let file = directory.path().join("file");
        fs::write(&file, "").expect("a file can be written");
        assert_eq!(RealFiles.creation_error(directory.path()), None);
        let why = |path: &Path| RealFiles.creation_error(path);
        assert_eq!(why(&file).as_deref(), Some("it is not a directory"));
        assert_eq!(why(&directory.path().join("none")).as_deref(), Some("it does not exist"));
    }
}
