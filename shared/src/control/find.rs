//! Which daemon a subcommand speaks to.
//!
//! 1. `--socket` names it. With `-c` as well, the daemon there must run with that file.
//! 2. The file names it: by its key `control.socket`, or by the default socket of this file. When no daemon has that socket, the
//!    daemons in the runtime directory of this user and in root's are asked for their files. This finds the daemon of a version before
//!    this one, which has the common default; one that another user has started, whose socket is in root's directory; and one whose
//!    directory was a symbolic link that leads elsewhere now.
//! 3. Without a file it is the one at the common default.
//!
//! What is not found is an error that lists the daemons that are there. No request goes to a daemon of another file. Root is also
//! shown the daemons in the directories of other users. These are listed and not asked, since any user can answer there.

use std::fmt;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Uid;
use serde::Deserialize;

use super::client::{Client, Unreachable};
use crate::process::privileges::user_name;
use crate::process::runtime::{ROOTS_DIRECTORY, RuntimeFiles, canonical, directories_of_users};
use crate::process::sockets::{is_answered, probe};

/// How long a daemon may take to say which file it runs with.
const SOON: Duration = Duration::from_secs(2);

/// Daemons that listen at sockets in runtime directories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others(Vec<Found>);

/// A daemon, by its socket.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    socket: PathBuf,
    kind: FoundKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum FoundKind {
    /// It says that it runs with this file, or with none.
    WithFile(Option<OwnFile>),
    /// It is in the directory of another user and was not asked.
    OfUser(Uid),
}

/// The configuration file of a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OwnFile {
    /// Its canonical path when the daemon was started.
    canonical: PathBuf,
    /// The canonical path now of the path that the daemon was started with.
    now: PathBuf,
}

/// The part of the status that is about the file.
#[derive(Deserialize)]
struct Status {
    config: Config,
}

#[derive(Deserialize)]
struct Config {
    file: Option<PathBuf>,
    /// A version before this one does not say it.
    canonical_file: Option<PathBuf>,
}

// === impl Others ===

impl fmt::Display for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(
                f,
                "; start one, or name another by its file (-c FILE) or its socket (--socket PATH)"
            );
        }
        write!(f, "; these daemons run, each named by -c FILE or --socket PATH:")?;
        self.0.iter().try_for_each(|Found { socket, kind }| {
            write!(f, "\n  {}", socket.display())?;
            match kind {
                FoundKind::WithFile(Some(file)) => write!(f, "  with {}", file.canonical.display()),
                FoundKind::WithFile(None) => write!(f, "  without a configuration file"),
                FoundKind::OfUser(uid) => {
                    let user = user_name(*uid);
                    write!(f, "  of the user `{user}`: name it by --socket, or run this as that user")
                }
            }
        })
    }
}

// === impl Found ===

impl Found {
    fn is_of(&self, file: &Path) -> bool {
        let FoundKind::WithFile(Some(own)) = &self.kind else { return false };
        own.canonical == file || own.now == file
    }
}

// === impl Config ===

impl Config {
    fn own_file(self) -> Option<OwnFile> {
        let file = self.file?;
        // Standard input has a name and no path.
        let path = Some(&file).filter(|file| file.is_absolute());
        let now = path.and_then(|path| canonical(path).ok()).unwrap_or_else(|| file.clone());
        Some(OwnFile { canonical: self.canonical_file.unwrap_or_else(|| now.clone()), now })
    }
}

/// A client for the daemon at the default socket of a file, or of none. `files` are the names in the directory of this user.
///
/// # Errors
/// When no daemon of this file is there.
pub fn by_default(files: &RuntimeFiles) -> Result<Client, Unreachable> {
    let (path, file) = (files.control_socket(), files.configuration());
    let client = |socket: &Path| match file {
        Some(file) => at(socket).of_file(file.to_owned()),
        None => at(socket),
    };
    if is_there(&path) {
        return Ok(client(&path));
    }
    let found = found(files);
    let Some(file) = file else {
        return Err(Unreachable::NobodyByDefault { path, others: listed(found) });
    };
    match found.iter().find(|daemon| daemon.is_of(file)) {
        Some(daemon) => Ok(client(&daemon.socket)),
        None => Err(Unreachable::NobodyWithFile { file: file.to_owned(), path, others: listed(found) }),
    }
}

/// A client for a default socket. Another user may have made the runtime directory in a shared place before this user did; root's
/// daemons may run as any user.
fn at(socket: &Path) -> Client {
    let client = Client::new(socket);
    if Uid::effective().is_root() { client } else { client.trusting(&[]) }
}

/// The daemons in the runtime directory of this user and in root's.
fn found(files: &RuntimeFiles) -> Vec<Found> {
    let mut sockets = files.control_sockets();
    sockets.extend(files.within(Path::new(ROOTS_DIRECTORY)).control_sockets());
    sockets.sort();
    sockets.dedup();
    let ask = |socket: PathBuf| Some(Found { kind: FoundKind::WithFile(runs_with(&socket)?), socket });
    sockets.into_iter().filter_map(ask).collect()
}

/// All daemons that this user can be shown.
fn listed(mut found: Vec<Found>) -> Others {
    if Uid::effective().is_root() {
        let directories = directories_of_users(&|name| std::env::var(name).ok());
        found.extend(directories.iter().flat_map(|directory| of_users(directory)));
    }
    Others(found)
}

/// The daemons in the runtime directory of another user.
fn of_users(directory: &Path) -> Vec<Found> {
    let Ok(metadata) = directory.symlink_metadata() else { return Vec::new() };
    let kind = FoundKind::OfUser(Uid::from_raw(metadata.uid()));
    let sockets = RuntimeFiles::new(directory.to_owned(), None).control_sockets().into_iter();
    let found = sockets.filter(|socket| is_answered(socket));
    found.map(|socket| Found { socket, kind: kind.clone() }).collect()
}

/// Whether a daemon listens there. One that this user may not connect to is there.
fn is_there(socket: &Path) -> bool {
    probe(socket).map_or_else(|error| error.kind() == ErrorKind::PermissionDenied, |()| true)
}

/// The configuration file of the daemon at a socket, if it has one; none when no daemon answers.
fn runs_with(socket: &Path) -> Option<Option<OwnFile>> {
    let reply = at(socket).ask("GET", "/v1/status", "", SOON).ok()?;
    serde_json::from_str(&reply.body).ok().map(|Status { config }| config.own_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_is_not_there_is_named_by_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let files =
            |file: Option<&str>| RuntimeFiles::new(directory.path().to_owned(), file.map(PathBuf::from));
        let said = by_default(&files(Some("/srv/b.yaml"))).unwrap_err().to_string();
        assert!(said.starts_with("no daemon runs with /srv/b.yaml: no daemon listens at "), "{said}");
        let said = by_default(&files(None)).unwrap_err().to_string();
        assert!(said.contains("control.sock, the default"), "{said}");
    }

    #[test]
    fn daemons_that_are_there_are_listed() {
        let file = OwnFile { canonical: "/srv/a.yaml".into(), now: "/srv/b.yaml".into() };
        let found = |socket: &str, file| Found { socket: socket.into(), kind: FoundKind::WithFile(file) };
        let others = Others(vec![found("/run/a.sock", Some(file)), found("/run/b.sock", None)]).to_string();
        assert!(
            others
                .ends_with("\n  /run/a.sock  with /srv/a.yaml\n  /run/b.sock  without a configuration file")
        );
        assert!(Others::default().to_string().contains("-c FILE"));
    }

    #[test]
    fn a_daemon_is_found_by_its_path_at_the_start_and_by_where_a_moved_link_leads_now() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().canonicalize().unwrap();
        for version in ["v1", "v2"] {
            std::fs::create_dir(real.join(version)).unwrap();
        }
        std::os::unix::fs::symlink("v2", real.join("current")).unwrap();
        let (started, first) = (real.join("current/lb.yaml"), real.join("v1/lb.yaml"));
        let config = Config { file: Some(started.clone()), canonical_file: Some(first.clone()) };
        let found = Found { socket: "/run/a.sock".into(), kind: FoundKind::WithFile(config.own_file()) };
        assert!(found.is_of(&first) && found.is_of(&real.join("v2/lb.yaml")));
        assert!(!found.is_of(&real.join("v3/lb.yaml")));
        let older = Config { file: Some(started), canonical_file: None }.own_file().unwrap();
        assert_eq!(older.canonical, real.join("v2/lb.yaml"));
    }
}
