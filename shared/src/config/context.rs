//! What a configuration depends on beside its text: the process, the machine and its files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::env::Lookup;
use crate::process::privileges::Identity;

/// The surroundings that a configuration is loaded in.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Looks environment variables up.
    pub variables: Lookup<'a>,
    /// The effective user id.
    pub uid: u32,
    /// The number of CPUs; the default for `threads`.
    pub cpus: usize,
    /// Whether `-d` was given.
    pub daemon: bool,
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

    /// Why no file can be created in a directory, in words; `None` if it can.
    fn refuses_new_files(&self, directory: &Path) -> Option<String>;

    /// Whether the path is that of an existing directory.
    fn is_directory(&self, path: &Path) -> bool;

    /// Why the process cannot run as this user and group, in words, whoever starts it; `None` if there are such.
    fn refuses_accounts(&self, user: Option<&str>, group: Option<&str>) -> Option<String>;
}

/// The real file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFiles;

/// The directory for files whose paths are not given. Whoever creates it gives it the mode 0700, and refuses one that
/// belongs to somebody else.
///
/// For root `/run/load_balancer`; for others `$XDG_RUNTIME_DIR/load_balancer`, or else a directory of their own in
/// `$TMPDIR`.
pub fn runtime_directory(uid: u32, variables: Lookup<'_>) -> PathBuf {
    let directory = |name: &str| variables(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if uid == 0 {
        return PathBuf::from("/run/load_balancer");
    }
    match directory("XDG_RUNTIME_DIR") {
        Some(runtime) => runtime.join("load_balancer"),
        None => directory("TMPDIR").unwrap_or_else(|| "/tmp".into()).join(format!("load_balancer-{uid}")),
    }
}

// === impl RealFiles ===

impl Files for RealFiles {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn refuses_new_files(&self, directory: &Path) -> Option<String> {
        match fs::metadata(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some("does not exist".to_owned()),
            Err(error) => Some(format!("cannot be looked at: {error}")),
            Ok(metadata) if !metadata.is_dir() => Some("is not a directory".to_owned()),
            Ok(_) => match access(directory, AccessFlags::W_OK | AccessFlags::X_OK) {
                Ok(()) => None,
                Err(error) => Some(format!("cannot be written to: {}", error.desc())),
            },
        }
    }

    fn is_directory(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn refuses_accounts(&self, user: Option<&str>, group: Option<&str>) -> Option<String> {
        Identity::resolve(user, group).err().map(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
