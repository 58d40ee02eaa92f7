//! What a configuration depends on beside its text: the process, the machine and its files.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::libc::O_NONBLOCK;
use nix::unistd::{AccessFlags, Uid, access};

use super::MAX_BYTES;
use super::env::Lookup;
use crate::process::files::{Unusable, check_writable};
use crate::process::privileges::{Identity, user_name};
use crate::process::runtime::RuntimeFiles;

/// The longest file with a secret, in bytes.
pub(super) const MAX_SECRET: u64 = 64 * 1024;

/// The owner and the mode of a file, which decide whether it can hold a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// Whether it is a regular file, and no directory, pipe or device.
    pub is_file: bool,
    /// Its length in bytes.
    pub length: u64,
    /// The id of the user that it belongs to.
    pub owner: u32,
    /// Its permission bits.
    pub mode: u32,
}

/// The surroundings that a configuration is loaded in.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Looks environment variables up.
    pub variables: Lookup<'a>,
    /// The names of files whose paths the configuration does not give.
    pub runtime: &'a RuntimeFiles,
    /// The number of CPUs; the default for `threads`.
    pub cpus: usize,
    /// Whether `-d` was given.
    pub daemon: bool,
    /// What the name `localhost` means; see [`loopback`].
    pub loopback: IpAddr,
    /// The files and accounts that the configuration names.
    pub files: &'a dyn Files,
}

/// What checking a configuration needs of the files of a machine, those of its users and groups among them.
pub trait Files {
    /// The content of a file.
    ///
    /// # Errors
    ///
    /// As reading a file does.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// All of standard input, for a configuration that is named `-`.
    ///
    /// # Errors
    ///
    /// As reading it does; by default there is none.
    fn read_input(&self) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The content of a file with a secret, and who may read the file. Both are of one file, even if the path comes to name another.
    /// Of a file that is too long only the beginning is read, and nothing of what is no regular file.
    ///
    /// # Errors
    ///
    /// As reading a file does.
    fn read_secret(&self, path: &Path) -> io::Result<(Protection, Vec<u8>)>;

    /// The id of the user that the daemon runs as; of the one that starts it if there is no such user.
    fn uid_of(&self, account: Account<'_>) -> u32;

    /// Why no file can be created in a directory, in words; `None` if it can.
    fn refuses_new_files(&self, directory: &Path) -> Option<String>;

    /// Whether what is at the path is a regular file; `None` if nothing is there.
    fn is_regular_file(&self, _path: &Path) -> Option<bool> {
        None
    }

    /// Why an existing file cannot be written to, with its name and the remedy; `None` if it can.
    fn refuses_writing(&self, _file: &Path) -> Option<String> {
        None
    }

    /// Whether the path is that of an existing directory.
    fn is_directory(&self, path: &Path) -> bool;

    /// Why the user and group that the daemon runs as could not do this, in words; `None` if they could, or nobody can tell.
    fn denied(&self, _account: Account<'_>, _wish: Wish<'_>) -> Option<Denied> {
        None
    }

    /// Why the process cannot run as this user and group, in words, whoever starts it; `None` if there are such.
    fn refuses_accounts(&self, user: Option<&str>, group: Option<&str>) -> Option<String>;
}

/// Whom the daemon runs as, as the configuration names them.
#[derive(Clone, Copy, Debug)]
pub struct Account<'a> {
    /// The user; absent: the one that starts it.
    pub user: Option<&'a str>,
    /// The group; absent: the user's own.
    pub group: Option<&'a str>,
}

/// What the daemon will want to do.
#[derive(Clone, Copy, Debug)]
pub enum Wish<'a> {
    /// Read a file.
    Read(&'a Path),
    /// Enter a directory.
    Enter(&'a Path),
    /// Create files in a directory.
    CreateIn(&'a Path),
}

/// Why the daemon could not do what it will want to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The user that it runs as.
    pub user: String,
    /// The group that it runs as.
    pub group: String,
    /// In words.
    pub reason: String,
}

/// The real file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFiles;

/// The loopback address of this machine: 127.0.0.1, or ::1 where only that one can be used.
pub fn loopback() -> IpAddr {
    let works = |address: IpAddr| UdpSocket::bind((address, 0)).is_ok();
    choose_loopback(works)
}

/// 127.0.0.1 is also chosen when neither address works, since its errors are the better known ones.
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
        // One byte more than is allowed shows that it is too long.
        io::stdin().lock().take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn read_secret(&self, path: &Path) -> io::Result<(Protection, Vec<u8>)> {
        // A FIFO must not block.
        let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        let mut bytes = Vec::new();
        if metadata.is_file() {
            // One byte more than is allowed shows that it is too long.
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

    fn uid_of(&self, account: Account<'_>) -> u32 {
        let identity = Identity::resolve(account.user, account.group).ok().flatten();
        identity.map_or_else(Uid::effective, |identity| identity.uid()).as_raw()
    }

    fn is_regular_file(&self, path: &Path) -> Option<bool> {
        fs::metadata(path).ok().map(|metadata| metadata.is_file())
    }

    fn refuses_new_files(&self, directory: &Path) -> Option<String> {
        match fs::metadata(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some("does not exist".to_owned()),
            Err(error) => Some(format!("cannot be looked at: {error}")),
            Ok(metadata) if !metadata.is_dir() => Some("is not a directory".to_owned()),
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

    fn denied(&self, account: Account<'_>, wish: Wish<'_>) -> Option<Denied> {
        let identity = Identity::resolve(account.user, account.group).ok()??;
        // Nobody but root can find out; anyone else could not start it as that user either.
        let reason = identity.act(|| obstacle(wish)).ok()??;
        Some(Denied { user: identity.user_name(), group: identity.group_name(), reason })
    }

    fn refuses_accounts(&self, user: Option<&str>, group: Option<&str>) -> Option<String> {
        Identity::resolve(user, group).err().map(|error| error.to_string())
    }
}

fn not_writable(error: Errno) -> String {
    let user = user_name(Uid::effective());
    format!("cannot be written to by the user `{user}`: {}", error.desc().to_lowercase())
}

/// What stands in the way of this thread.
fn obstacle(wish: Wish<'_>) -> Option<String> {
    let (path, flags) = match wish {
        Wish::Read(path) => (path, AccessFlags::R_OK),
        Wish::Enter(path) => (path, AccessFlags::X_OK),
        Wish::CreateIn(path) => (path, AccessFlags::W_OK | AccessFlags::X_OK),
    };
    let error = access(path, flags).err().filter(|error| *error == Errno::EACCES)?;
    let is_closed = |directory: &&Path| access(*directory, AccessFlags::X_OK) == Err(Errno::EACCES);
    // The outermost: that is what has to be changed first.
    let closed = path.ancestors().skip(1).collect::<Vec<_>>().into_iter().rev().find(is_closed);
    Some(match closed {
        Some(directory) => format!("the directory {} is closed to that user", directory.display()),
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
        assert_eq!(why(&file).as_deref(), Some("is not a directory"));
        assert_eq!(why(&directory.path().join("none")).as_deref(), Some("does not exist"));
    }
}
