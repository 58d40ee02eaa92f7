//! Source of a running daemon's configuration. A file can be reloaded in the same context as at the start.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::Uid;

use super::watch::Fingerprint;
use crate::config::{
    self, Account, Context, Denied, FileAccess, Files, INPUT, Loaded, Problems, Protection, RealFiles,
};
use crate::process::runtime::RuntimeFiles;

/// Source of the configuration.
#[derive(Clone, Debug, Default)]
pub(crate) enum Provenance {
    /// The command line, or the program itself in the demo.
    #[default]
    Arguments,
    /// Standard input, with the text that was read.
    Input(Arc<str>),
    /// A file.
    File(ConfigFile),
}

/// Configuration file that can be reloaded even after the process changed its working directory and its user.
#[derive(Clone, Debug)]
pub(crate) struct ConfigFile {
    /// The path as the operator wrote it, for messages.
    name: String,
    path: PathBuf,
    runtime: RuntimeFiles,
    cpus: usize,
    daemon: bool,
    loopback: IpAddr,
    first_seen: Option<Fingerprint>,
}

/// File system as seen by a process that might have given up its privileges. Write permission for a directory says
/// nothing about files that are already open, so files are checked only when they are opened.
struct OpenFiles;

// === impl Provenance ===

impl Provenance {
    /// Returns the file that a reload reads. `pid` is the PID of this process.
    ///
    /// # Errors
    ///
    /// If there is no file; the error contains the remedy.
    pub(crate) fn reloadable(&self, pid: u32) -> Result<&ConfigFile, String> {
        match self {
            Self::File(file) => Ok(file),
            Self::Arguments => {
                Err("the daemon runs without a configuration file, so there is nothing to reload; \
                                    start it with `-c FILE`"
                    .into())
            }
            Self::Input(_) => Err(format!(
                "the daemon read its configuration from standard input, which cannot be read again; start it with \
                 `-c FILE`, or start a new process with the new text: `kill -QUIT {pid}`, then \
                  `load_balancer -u -c -` with the same options"
            )),
        }
    }

    /// Returns the configuration file; `None` for other sources.
    pub(crate) fn file(&self) -> Option<&ConfigFile> {
        match self {
            Self::File(file) => Some(file),
            Self::Arguments | Self::Input(_) => None,
        }
    }

    /// Returns the text that was read from standard input, which an upgrade must pass to the new process.
    pub(crate) fn input(&self) -> Option<&Arc<str>> {
        match self {
            Self::Input(text) => Some(text),
            Self::Arguments | Self::File(_) => None,
        }
    }

    /// Returns the name of the source in the status; `None` for arguments.
    pub(super) fn shown(&self) -> Option<PathBuf> {
        match self {
            Self::Arguments => None,
            Self::Input(_) => Some(INPUT.into()),
            Self::File(file) => Some(file.path().to_owned()),
        }
    }
}

// === impl ConfigFile ===

impl ConfigFile {
    /// Returns the file at `path`, which can be relative to the working directory; `context` is the one of the start.
    /// Call this function before reading the file, so that no later change is missed.
    ///
    /// # Errors
    /// If the working directory cannot be determined.
    pub(crate) fn new(path: &Path, context: &Context<'_>) -> io::Result<Self> {
        Ok(Self {
            name: path.display().to_string(),
            first_seen: Fingerprint::of(path),
            path: std::path::absolute(path)?,
            runtime: context.runtime.clone(),
            cpus: context.cpus,
            daemon: context.daemon,
            loopback: context.loopback,
        })
    }

    /// Returns the absolute path of the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the canonical path that the file had at the start.
    pub(crate) fn canonical(&self) -> Option<&Path> {
        self.runtime.configuration()
    }

    /// Returns whether the operator gave a relative path.
    pub(crate) fn is_relative(&self) -> bool {
        Path::new(&self.name).is_relative()
    }

    pub(super) fn first_seen(&self) -> Option<Fingerprint> {
        self.first_seen
    }

    /// Reads and checks the file as it is now.
    ///
    /// # Errors
    /// Returns all problems of an invalid file, including warnings.
    pub(crate) fn load(&self) -> Result<Loaded, Problems> {
        let context = Context {
            variables: &|name| std::env::var(name).ok(),
            runtime: &self.runtime,
            cpus: self.cpus,
            daemon: self.daemon,
            loopback: self.loopback,
            files: &OpenFiles,
        };
        let mut loaded = config::load(&self.path, &context);
        let problems = match &mut loaded {
            Ok(loaded) => &mut loaded.warnings,
            Err(problems) => problems,
        };
        problems.source.name.clone_from(&self.name);
        loaded
    }
}

// === impl OpenFiles ===

impl Files for OpenFiles {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        RealFiles.read(path)
    }

    fn read_configuration(&self, path: &Path) -> io::Result<Vec<u8>> {
        RealFiles.read_configuration(path)
    }

    fn read_secret(&self, path: &Path) -> io::Result<(Protection, Vec<u8>)> {
        RealFiles.read_secret(path)
    }

    fn uid_of(&self, account: Account<'_>) -> u32 {
        RealFiles.uid_of(account)
    }

    fn creation_error(&self, _directory: &Path) -> Option<String> {
        None
    }

    fn is_directory(&self, path: &Path) -> bool {
        RealFiles.is_directory(path)
    }

    fn denied(&self, account: Account<'_>, access: FileAccess<'_>) -> Option<Denied> {
        // The rights of this process are those of the account only if it already runs as this user.
        let runs_as_account = self.uid_of(account) == Uid::effective().as_raw();
        runs_as_account.then(|| RealFiles.denied(account, access)).flatten()
    }

    fn account_error(&self, _user: Option<&str>, _group: Option<&str>) -> Option<String> {
        None
    }
}
