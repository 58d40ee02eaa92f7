//! Which daemon a subcommand speaks to.
//!
//! 1. `--socket` names it. With `-c` as well, the daemon there must run with that file.
//! 2. The file names it: by its key `control.socket`, or by the default socket of this file. A daemon of a version before this one has
//!    the common default, and one that another user has started has its socket in root's runtime directory; there the daemon must say
//!    that it runs with this file.
//! 3. Without a file it is the one at the common default.
//!
//! What is not found is an error that lists the daemons that are there. No request goes to a daemon of another file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Uid;

use super::client::{Client, Unreachable};
use crate::process::runtime::{RuntimeFiles, canonical};
use crate::process::sockets::is_answered;

/// Where root's daemons have their sockets.
const ROOTS_DIRECTORY: &str = "/run/load_balancer";
/// How long a daemon may take to say which file it runs with.
const SOON: Duration = Duration::from_secs(2);

/// Daemons that answer at sockets in the runtime directory, with their configuration files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others(Vec<(PathBuf, Option<PathBuf>)>);

impl fmt::Display for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(
                f,
                "; start one, or name another by its file (-c FILE) or its socket (--socket PATH)"
            );
        }
        write!(f, "; these daemons run, each named by -c FILE or --socket PATH:")?;
        self.0.iter().try_for_each(|(socket, file)| {
            write!(f, "\n  {}", socket.display())?;
            match file {
                Some(file) => write!(f, "  with {}", file.display()),
                None => write!(f, "  without a configuration file"),
            }
        })
    }
}

/// A client for the daemon at the default socket of a file, or of none. `files` are the names in the directory of this user.
///
/// # Errors
/// When no daemon of this file is there.
pub fn by_default(files: &RuntimeFiles) -> Result<Client, Unreachable> {
    let socket = files.control_socket();
    let Some(file) = files.configuration() else {
        if is_there(&socket) {
            return Ok(at(&socket));
        }
        return Err(Unreachable::NobodyByDefault { path: socket, others: others(files) });
    };
    let client = |socket: &Path| at(socket).of_file(file.to_owned());
    if is_there(&socket) {
        return Ok(client(&socket));
    }
    let found = elsewhere(files)
        .into_iter()
        .find(|socket| runs_with(socket).is_some_and(|it| it == Some(file.to_owned())));
    found.map(|socket| client(&socket)).ok_or_else(|| Unreachable::NobodyWithFile {
        file: file.to_owned(),
        path: socket,
        others: others(files),
    })
}

/// A client for a default socket. Another user may have made the runtime directory in a shared place before this user did; root's
/// daemons may run as any user.
fn at(socket: &Path) -> Client {
    let client = Client::new(socket);
    if Uid::effective().is_root() { client } else { client.trusting(&[]) }
}

/// Other places where the daemon of this file may have its socket.
fn elsewhere(files: &RuntimeFiles) -> Vec<PathBuf> {
    let roots = files.within(Path::new(ROOTS_DIRECTORY));
    vec![files.common().control_socket(), roots.control_socket(), roots.common().control_socket()]
}

fn others(files: &RuntimeFiles) -> Others {
    let mut sockets = files.control_sockets();
    sockets.extend(files.within(Path::new(ROOTS_DIRECTORY)).control_sockets());
    sockets.sort();
    sockets.dedup();
    Others(sockets.into_iter().filter_map(|socket| runs_with(&socket).map(|file| (socket, file))).collect())
}

/// Whether a daemon listens there, or this user may not know.
fn is_there(socket: &Path) -> bool {
    is_answered(socket)
        || std::os::unix::net::UnixStream::connect(socket)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

/// The configuration file of the daemon at a socket, if it has one, by its canonical path; none when no daemon answers.
fn runs_with(socket: &Path) -> Option<Option<PathBuf>> {
    let reply = at(socket).ask("GET", "/v1/status", "", SOON).ok()?;
    let status: serde_json::Value = serde_json::from_str(&reply.body).ok()?;
    let file = status["config"]["file"].as_str().map(Path::new);
    // A version before this one names it as it was started.
    Some(file.map(|file| canonical(file).unwrap_or_else(|_| file.to_owned())))
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
        let file = Some(PathBuf::from("/srv/a.yaml"));
        let others = Others(vec![("/run/a.sock".into(), file), ("/run/b.sock".into(), None)]).to_string();
        assert!(
            others
                .ends_with("\n  /run/a.sock  with /srv/a.yaml\n  /run/b.sock  without a configuration file")
        );
        assert!(Others::default().to_string().contains("-c FILE"));
    }
}
