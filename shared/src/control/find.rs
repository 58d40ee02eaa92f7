//! Selection of the daemon to which a subcommand sends its request.
//!
//! 1. `--socket` selects the daemon at that path. With `-c` as well, this daemon must run with that file.
//! 2. The file selects it by its key `control.socket`, or by the default socket of this file. If no daemon has that
//!    socket, the daemons in the runtime directories of this user and of root are queried for their files. This search
//!    finds a daemon of an older version, which uses the common default; a daemon that another user started, whose
//!    socket is in root's directory; and a daemon whose directory was a symbolic link that has changed since.
//! 3. Without a file, the daemon at the common default is selected.
//!
//! If no daemon is found, the error lists the running daemons. A daemon of another file never receives a request. For
//! root the list also contains the daemons in the directories of other users; these are listed but not queried, because
//! any user can listen there.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Uid;
use serde::Deserialize;

use super::client::{Client, Unreachable};
use super::others::{Found, FoundKind, Others, OwnFile};
use crate::process::runtime::{ROOTS_DIRECTORY, RuntimeFiles, canonical, directories_of_users};
use crate::process::sockets::{is_accepting, probe};

/// Time limit for a daemon to report its configuration file.
const SOON: Duration = Duration::from_secs(2);

/// Section of the status document about the file.
#[derive(Deserialize)]
struct Status {
    config: Config,
}

#[derive(Deserialize)]
struct Config {
    file: Option<PathBuf>,
    /// The canonical path at the start; `None` from older versions.
    canonical_file: Option<PathBuf>,
}

/// The part of the status that is about the process.
#[derive(Deserialize)]
struct Process {
    pid: u32,
}

// === impl Config ===

impl Config {
    fn own_file(self) -> Option<OwnFile> {
        let file = self.file?;
        // Standard input has a name but no path.
        let path = Some(&file).filter(|file| file.is_absolute());
        let now = path.and_then(|path| canonical(path).ok()).unwrap_or_else(|| file.clone());
        Some(OwnFile { canonical: self.canonical_file.unwrap_or_else(|| now.clone()), now })
    }
}

/// Returns a client for the daemon at the default socket of a file, or at the common default. `files` are the names in
/// the directory of this user.
///
/// # Errors
/// If no daemon runs with this file.
pub(crate) fn by_default(files: &RuntimeFiles) -> Result<Client, Unreachable> {
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
        return Err(Unreachable::NotFoundByDefault { path, others: listed(found) });
    };
    match found.iter().find(|daemon| daemon.is_of(file)) {
        Some(daemon) => Ok(client(&daemon.socket)),
        None => Err(Unreachable::NotFoundForFile { file: file.to_owned(), path, others: listed(found) }),
    }
}

/// Returns a client for a default socket. Another user might have created the runtime directory in a shared place
/// before this user did, so the user of the daemon is checked, except for root's directory, whose daemons can run as
/// any user.
fn at(socket: &Path) -> Client {
    let client = Client::new(socket);
    if Uid::effective().is_root() { client } else { client.trusting(&[]) }
}

/// Returns the daemons in the runtime directories of this user and of root.
fn found(files: &RuntimeFiles) -> Vec<Found> {
    let mut sockets = files.control_sockets();
    sockets.extend(files.within(Path::new(ROOTS_DIRECTORY)).control_sockets());
    sockets.sort();
    sockets.dedup();
    let with_file = |socket: PathBuf| Some(Found { kind: FoundKind::WithFile(runs_with(&socket)?), socket });
    sockets.into_iter().filter_map(with_file).collect()
}

/// Returns all daemons that this user is allowed to see.
fn listed(mut found: Vec<Found>) -> Others {
    if Uid::effective().is_root() {
        let directories = directories_of_users(&|name| std::env::var(name).ok());
        found.extend(directories.iter().flat_map(|directory| of_users(directory)));
    }
    Others(found)
}

/// Returns the daemons in the runtime directory of another user.
fn of_users(directory: &Path) -> Vec<Found> {
    let Ok(metadata) = directory.symlink_metadata() else { return Vec::new() };
    let kind = FoundKind::OfUser(Uid::from_raw(metadata.uid()));
    let sockets = RuntimeFiles::new(directory.to_owned(), None).control_sockets().into_iter();
    let found = sockets.filter(|socket| is_accepting(socket));
    found.map(|socket| Found { socket, kind: kind.clone() }).collect()
}

/// Returns whether a daemon listens at `socket`. A denied connection counts as a daemon.
fn is_there(socket: &Path) -> bool {
    probe(socket).map_or_else(|error| error.kind() == ErrorKind::PermissionDenied, |()| true)
}

/// Returns the configuration file of the daemon at a socket. The outer `None` means that no daemon responded, the inner
/// one that it has no file.
fn runs_with(socket: &Path) -> Option<Option<OwnFile>> {
    let reply = at(socket).send("GET", "/v1/status", "", SOON).ok()?;
    serde_json::from_str(&reply.body).ok().map(|Status { config }| config.own_file())
}

/// Returns the PID of the daemon at a default socket; `None` if it does not respond.
pub(crate) fn process_at(socket: &Path) -> Option<u32> {
    let reply = at(socket).send("GET", "/v1/status", "", SOON).ok()?;
    serde_json::from_str(&reply.body).ok().map(|Process { pid }| pid)
}

/// Returns the PID of the daemon at a default socket that runs with this file; `None` if there is none.
pub(crate) fn process_with(socket: &Path, file: &Path) -> Option<u32> {
    let reply = at(socket).of_file(file.to_owned()).send("GET", "/v1/status", "", SOON).ok()?;
    let process = serde_json::from_str(&reply.body).ok().filter(|_| reply.status == 200);
    process.map(|Process { pid }| pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_daemon_is_reported_with_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let files =
            |file: Option<&str>| RuntimeFiles::new(directory.path().to_owned(), file.map(PathBuf::from));
        let said = by_default(&files(Some("/srv/b.yaml"))).unwrap_err().to_string();
        assert!(said.starts_with("no daemon runs with /srv/b.yaml: no daemon listens at "), "{said}");
        let said = by_default(&files(None)).unwrap_err().to_string();
        assert!(said.contains("control.sock, the default"), "{said}");
    }

    #[test]
    fn running_daemons_are_listed() {
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
    fn a_daemon_is_found_by_its_original_path_and_by_its_path_after_a_link_moved() {
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
