//! The configuration file of a running daemon: the same one, read again in the same surroundings.

use std::io;
use std::path::{Path, PathBuf};

use super::watch::Print;
use crate::config::{self, Context, Files, Loaded, Problems, RealFiles};

/// A file that can be read again, whatever the process has become since: it may have another directory and another user.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// As the user wrote it, for messages.
    name: String,
    path: PathBuf,
    uid: u32,
    cpus: usize,
    daemon: bool,
    first_seen: Option<Print>,
}

/// The file system as a process sees it that may have given up its rights: whether it can write to a directory says nothing
/// about the files that it has open. What has to be opened is tried when it comes to that.
struct OpenFiles;

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
            first_seen: Print::of(path),
            path: std::path::absolute(path)?,
            uid: context.uid,
            cpus: context.cpus,
            daemon: context.daemon,
        })
    }

    /// Where it is, from `/` on.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn first_seen(&self) -> Option<Print> {
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
    /// Every problem of it.
    pub fn load(&self) -> Result<Loaded, Problems> {
        let context = Context {
            variables: &|name| std::env::var(name).ok(),
            uid: self.uid,
            cpus: self.cpus,
            daemon: self.daemon,
            files: &OpenFiles,
        };
        let mut loaded = config::load(&self.path, &context);
        if let Err(problems) = &mut loaded {
            problems.source.name.clone_from(&self.name);
        }
        loaded
    }
}

// === impl OpenFiles ===

impl Files for OpenFiles {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        RealFiles.read(path)
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
