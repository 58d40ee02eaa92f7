//! The surroundings of a configuration: the process, the machine and its files.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::libc::O_NONBLOCK;
use nix::unistd::{AccessFlags, Uid, access};
use pingora::tls::load_native_certs;
use rustls::RootCertStore;

use super::MAX_BYTES;
use super::env::Lookup;
use crate::process::files::{Unusable, check_writable};
use crate::process::privileges::{Identity, user_name};
use crate::process::runtime::RuntimeFiles;

/// The maximum length of a file with a secret, in bytes.
pub(super) const MAX_SECRET: u64 = 64 * 1024;

/// The owner and the mode of a file, which decide whether it can hold a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// Whether it is a regular file.
    pub is_file: bool,
    /// Its length in bytes.
    pub length: u64,
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
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// Returns the error of the system if the file cannot be read.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Reads standard input to its end, for a configuration with the name `-`.
    ///
    /// # Errors
    ///
    /// Returns the error of the system. The default implementation always fails with `Unsupported`.
    fn read_input(&self) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Reads a file with a secret and its permissions. Both come from one open file, even if the path is replaced
    /// meanwhile. If the file is too long, only its beginning is read. If it is not a regular file, nothing is read.
    ///
    /// # Errors
    ///
    /// Returns the error of the system if the file cannot be read.
    fn read_secret(&self, path: &Path) -> io::Result<(Protection, Vec<u8>)>;

    /// Loads the certificate authorities of the system, as Pingora does, and returns how many there are.
    ///
    /// # Errors
    ///
    /// Returns the reason if they cannot be loaded. The default implementation always finds one.
    fn system_authorities(&self) -> Result<usize, String> {
        Ok(1)
    }

    /// Returns the ID of the user that the daemon runs as. If this user does not exist, it is the user that starts the
    /// daemon.
    fn uid_of(&self, account: Account<'_>) -> u32;

    /// Returns the reason why a file cannot be created in a directory. `None` means that it can.
    fn refuses_new_files(&self, directory: &Path) -> Option<String>;

    /// Returns whether there is a regular file at the path. `None` means that nothing exists there.
    fn is_regular_file(&self, _path: &Path) -> Option<bool> {
        None
    }

    /// Returns the reason why an existing file cannot be written to, with its name and the remedy. `None` means that it
    /// can.
    fn refuses_writing(&self, _file: &Path) -> Option<String> {
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
    fn refuses_accounts(&self, user: Option<&str>, group: Option<&str>) -> Option<String>;
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
        fs::read(path)
    }

    fn read_input(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        // One byte above the limit shows that the input is too long.
        io::stdin().lock().take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn read_secret(&self, path: &Path) -> io::Result<(Protection, Vec<u8>)> {
        // A FIFO must not block.
        let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        let mut bytes = Vec::new();
        if metadata.is_file() {
            // One byte above the limit shows that the input is too long.
            file.take(MAX_SECRET + 1).read_to_end(&mut bytes)?;
        }
        let protection = Protection {
            is_file: metadata.is_file(),
            length: metadata.len().max(bytes.len() as u64),
            owner: metadata.uid(),
            mode: metadata.mode(),
        };
        Ok((protection, bytes))
    }

    fn system_authorities(&self) -> Result<usize, String> {
        let certificates = load_native_certs().map_err(|error| without_code(&error))?;
        let mut store = RootCertStore::empty();
        certificates
            .into_iter()
            .try_for_each(|certificate| store.add(certificate))
            .map_err(|error| format!("a certificate is invalid: {error}"))?;
        Ok(store.len())
    }

    fn uid_of(&self, account: Account<'_>) -> u32 {
        let identity = Identity::resolve(account.user, account.group).ok().flatten();
        identity.map_or_else(Uid::effective, |identity| identity.uid()).as_raw()
    }

    fn is_regular_file(&self, path: &Path) -> Option<bool> {
        fs::metadata(path).ok().map(|metadata| metadata.is_file())
    }

    fn refuses_new_files(&self, directory: &Path) -> Option<String> {
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

    fn refuses_writing(&self, file: &Path) -> Option<String> {
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

    fn refuses_accounts(&self, user: Option<&str>, group: Option<&str>) -> Option<String> {
        Identity::resolve(user, group).err().map(|error| error.to_string())
    }
}

/// Formats an error without the error code of the system. The case of paths in it is kept.
fn without_code(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
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
    fn a_secret_is_read_from_a_regular_file_and_not_beyond_the_limit() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let [file, fifo] = ["file", "fifo"].map(|name| directory.path().join(name));
        fs::write(&file, vec![b'a'; 1 << 20]).expect("a file can be written");
        let (protection, bytes) = RealFiles.read_secret(&file).expect("it can be read");
        assert_eq!((protection.length, bytes.len() as u64), (1 << 20, MAX_SECRET + 1));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO can be made");
        let (protection, bytes) = RealFiles.read_secret(&fifo).expect("it does not block");
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
    fn a_directory_that_is_missing_or_a_file_refuses_new_files() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let file = directory.path().join("file");
        fs::write(&file, "").expect("a file can be written");
        assert_eq!(RealFiles.refuses_new_files(directory.path()), None);
        let why = |path: &Path| RealFiles.refuses_new_files(path);
        assert_eq!(why(&file).as_deref(), Some("it is not a directory"));
        assert_eq!(why(&directory.path().join("none")).as_deref(), Some("it does not exist"));
    }
}
