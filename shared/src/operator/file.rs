//! Where the configuration of a running daemon came from. A file can be read again, in the surroundings of the start.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::watch::Fingerprint;
use crate::config::{self, Account, Context, Files, INPUT, Loaded, Problems, Protection, RealFiles};
use crate::process::runtime::RuntimeFiles;

/// Where the configuration came from.
#[derive(Clone, Debug, Default)]
pub enum Provenance {
    /// The command line, or the program itself as in the demo.
    #[default]
    Arguments,
    /// Standard input, which had this text.
    Input(Arc<str>),
    /// A file.
    File(ConfigFile),
}

/// A file that can be read again, whatever the process has become since: it may have another directory and another user.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// As the user wrote it, for messages.
    name: String,
    path: PathBuf,
    runtime: RuntimeFiles,
    cpus: usize,
    daemon: bool,
    loopback: IpAddr,
    first_seen: Option<Fingerprint>,
}

/// The file system as a process sees it that may have given up its rights: whether it can write to a directory says nothing
/// about the files that it has open. What has to be opened is tried when it comes to that.
struct OpenFiles;

// === impl Provenance ===

impl Provenance {
    /// The file that a reload reads.
    ///
    /// # Errors
    ///
    /// Why there is none, and what to do; `pid` is the id of this process.
    pub fn reloadable(&self, pid: u32) -> Result<&ConfigFile, String> {
        match self {
            Self::File(file) => Ok(file),
            Self::Arguments => {
                Err("the daemon runs without a configuration file, so there is none to read again; \
                                    start it with `-c FILE`"
                    .into())
            }
            Self::Input(_) => Err(format!(
                "the daemon read its configuration from standard input, which cannot be read again; start it with \
                 `-c FILE`, or let a process with another text take over: `kill -QUIT {pid}`, then \
                 `load_balancer -u -c -` with the options of this one"
            )),
        }
    }

    /// The file.
    pub fn file(&self) -> Option<&ConfigFile> {
        match self {
            Self::File(file) => Some(file),
            Self::Arguments | Self::Input(_) => None,
        }
    }

    /// The text of standard input, which another process of this program has to be given.
    pub fn input(&self) -> Option<&Arc<str>> {
        match self {
            Self::Input(text) => Some(text),
            Self::Arguments | Self::File(_) => None,
        }
    }

    /// What the status calls it; `None` for arguments.
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
    /// The file at `path`, which may be relative to the present directory; `context` is that of the start. To be called before it
    /// is read, so that no change after that is missed.
    ///
    /// # Errors
    /// When the present directory is unknown.
    pub fn new(path: &Path, context: &Context<'_>) -> io::Result<Self> {
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

    /// Where it is, from `/` on.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its canonical path at the start.
    pub fn canonical(&self) -> Option<&Path> {
        self.runtime.configuration()
    }

    /// Whether it was named by a path that starts in the directory of the start.
    pub fn is_relative(&self) -> bool {
        Path::new(&self.name).is_relative()
    }

    pub(super) fn first_seen(&self) -> Option<Fingerprint> {
        self.first_seen
    }

    /// Its text as it is now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn text(&self) -> io::Result<Vec<u8>> {
        std::fs::read(&self.path)
    }

    /// What it says now.
    ///
    /// # Errors
    /// Every problem of it, warnings included.
    pub fn load(&self) -> Result<Loaded, Problems> {
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

    fn read_secret(&self, path: &Path) -> io::Result<(Protection, Vec<u8>)> {
        RealFiles.read_secret(path)
    }

    fn uid_of(&self, account: Account<'_>) -> u32 {
        RealFiles.uid_of(account)
    }

    fn refuses_new_files(&self, _directory: &Path) -> Option<String> {
        None
    }

    fn is_directory(&self, path: &Path) -> bool {
        RealFiles.is_directory(path)
    }

    fn refuses_accounts(&self, _user: Option<&str>, _group: Option<&str>) -> Option<String> {
        None
    }
}
