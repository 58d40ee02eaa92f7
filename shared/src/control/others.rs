//! The running daemons that a subcommand lists when it does not find the one that it is for.

use std::fmt;
use std::path::{Path, PathBuf};

use nix::unistd::Uid;

use crate::process::privileges::user_name;

/// Running daemons in the runtime directories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Others(pub(super) Vec<Found>);

/// A running daemon and its socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) socket: PathBuf,
    pub(super) kind: FoundKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FoundKind {
    /// The daemon reported this file; `None` means that it has no file.
    WithFile(Option<OwnFile>),
    /// The daemon is in the directory of another user and was not queried.
    OfUser(Uid),
}

/// The configuration file of a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OwnFile {
    /// The canonical path when the daemon was started.
    pub(super) canonical: PathBuf,
    /// The current canonical path of the path that the daemon was started with.
    pub(super) now: PathBuf,
}

// === impl Others ===

impl fmt::Display for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(f, "; start it, or select another one with `-c FILE` or `--socket PATH`");
        }
        write!(f, "; these daemons are running (select one with `-c FILE` or `--socket PATH`):")?;
        self.0.iter().try_for_each(|Found { socket, kind }| {
            write!(f, "\n  {}", socket.display())?;
            match kind {
                FoundKind::WithFile(Some(file)) => write!(f, "  with {}", file.canonical.display()),
                FoundKind::WithFile(None) => write!(f, "  without a configuration file"),
                FoundKind::OfUser(uid) => {
                    let user = user_name(*uid);
                    write!(f, "  of the user `{user}`: use `--socket`, or run this command as that user")
                }
            }
        })
    }
}

// === impl Found ===

impl Found {
    pub(super) fn is_of(&self, file: &Path) -> bool {
        let FoundKind::WithFile(Some(own)) = &self.kind else { return false };
        own.canonical == file || own.now == file
    }
}
