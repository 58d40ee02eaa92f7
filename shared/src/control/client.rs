//! Client of the control socket, which sends one request per connection and blocks for the response.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Uid;

use super::others::Others;
pub(crate) use crate::http_message::Reply;
use crate::http_message::Request;
use crate::process::files::reason;

/// Client for the daemon at one socket.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    socket: PathBuf,
    /// The configuration file that the daemon must have; `None` accepts any daemon.
    file: Option<PathBuf>,
    /// The users whose daemons are accepted; `None` accepts any user.
    trusted: Option<Vec<Uid>>,
}

/// Reason why there is no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreachable {
    #[error("no daemon listens at {path}: start it, or select another one with `-c FILE` or `--socket PATH`")]
    NotListening { path: PathBuf },
    #[error("no daemon runs with {file}: no daemon listens at {path}{others}")]
    NotFoundForFile { file: PathBuf, path: PathBuf, others: Others },
    #[error("no daemon listens at {path}, the default{others}")]
    NotFoundByDefault { path: PathBuf, others: Others },
    #[error(
        "cannot connect to the daemon at {path}: permission denied; run as root or as the user of the daemon"
    )]
    Denied { path: PathBuf },
    #[error(
        "the process at {path} runs as UID {uid}, so no request was sent; run this command as that user if this is the right \
         daemon, otherwise remove the socket"
    )]
    Foreign { path: PathBuf, uid: Uid },
    #[error("cannot communicate with the daemon at {path}: {}", reason(source))]
    Io { path: PathBuf, source: io::Error },
    #[error("the daemon at {path} did not respond within {limit:?}; it might still execute the request")]
    Silent { path: PathBuf, limit: Duration },
    #[error("the daemon at {path} ended before it responded")]
    Gone { path: PathBuf },
    #[error("{path} is not a load_balancer control socket")]
    Stranger { path: PathBuf },
}

/// Maximum size of a response, in bytes.
const MAX_RESPONSE: u64 = 64 * 1024 * 1024;

// === impl Client ===

impl Client {
    /// Returns a client for the daemon at `socket`.
    pub(crate) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), file: None, trusted: None }
    }

    /// Restricts the client to the daemon of this file, given by its canonical path. A daemon with another file refuses
    /// the requests.
    #[must_use]
    pub(crate) fn of_file(self, file: PathBuf) -> Self {
        Self { file: Some(file), ..self }
    }

    /// Restricts the client to daemons that run as root, as the current user, or as one of `others`.
    #[must_use]
    pub(crate) fn trusting(self, others: &[Uid]) -> Self {
        let trusted = [Uid::from_raw(0), Uid::effective()].iter().chain(others).copied().collect();
        Self { trusted: Some(trusted), ..self }
    }

    /// Returns the path of the socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Sends a request, and waits for the response for at most `limit`.
    ///
    /// # Errors
    /// If no daemon can be reached, or if it does not respond in time.
    pub(crate) fn send(
        &self,
        method: &str,
        target: &str,
        body: &str,
        limit: Duration,
    ) -> Result<Reply, Unreachable> {
        let explain = |error| self.explain(error, limit);
        let stream = UnixStream::connect(&self.socket).map_err(explain)?;
        if let Some(uid) = self.foreign(&stream).map_err(explain)? {
            return Err(Unreachable::Foreign { path: self.socket.clone(), uid });
        }
        let response = self.exchange(stream, method, target, body, limit).map_err(explain)?;
        if response.is_empty() {
            return Err(Unreachable::Gone { path: self.socket.clone() });
        }
        Reply::parse(&response).ok_or_else(|| Unreachable::Stranger { path: self.socket.clone() })
    }

    /// Returns the user of the peer if it is not one of the accepted users.
    fn foreign(&self, stream: &UnixStream) -> io::Result<Option<Uid>> {
        let Some(trusted) = &self.trusted else { return Ok(None) };
        let peer = Uid::from_raw(getsockopt(stream, PeerCredentials)?.uid());
        Ok((!trusted.contains(&peer)).then_some(peer))
    }

    fn exchange(
        &self,
        mut stream: UnixStream,
        method: &str,
        target: &str,
        body: &str,
        limit: Duration,
    ) -> io::Result<Vec<u8>> {
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        let request = Request { method, target, file: self.file.as_deref(), body };
        stream.write_all(&request.to_bytes())?;
        let mut response = Vec::new();
        stream.take(MAX_RESPONSE).read_to_end(&mut response)?;
        Ok(response)
    }

    fn explain(&self, source: io::Error, limit: Duration) -> Unreachable {
        let path = self.socket.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Unreachable::NotListening { path },
            io::ErrorKind::PermissionDenied => Unreachable::Denied { path },
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Unreachable::Silent { path, limit },
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Unreachable::Gone { path },
            _ => Unreachable::Io { path, source },
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::process::privileges::Identity;

    /// Creates a socket at which a process of the user `nobody` listens, which requires root.
    pub(in crate::control) fn foreign(socket: &Path) -> std::os::unix::net::UnixListener {
        let directory = socket.parent().unwrap();
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o777)).unwrap();
        let nobody = Identity::required(Some("nobody"), None).unwrap().unwrap();
        nobody.act(|| std::os::unix::net::UnixListener::bind(socket)).unwrap().unwrap()
    }

    #[test]
    fn a_process_of_another_user_receives_no_request() {
        if !Uid::effective().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control.sock");
        let listener = foreign(&socket);
        let client = Client::new(&socket).trusting(&[]);
        let error = client.send("GET", "/", "", Duration::from_secs(9)).unwrap_err();
        assert!(matches!(error, Unreachable::Foreign { .. }), "{error}");
        drop(client);
        let mut sent = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut sent).unwrap();
        assert!(sent.is_empty());
    }

    #[test]
    fn a_silent_daemon_is_distinguished_from_one_that_ended() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let client = Client::new(&socket);
        let error = client.send("GET", "/", "", Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, Unreachable::Silent { .. }), "{error}");
        drop(listener.accept().unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                // Reads the whole request, because closing earlier would send a reset.
                while stream.read(&mut [0; 1024]).unwrap() == 1024 {}
            });
            let error = client.send("GET", "/", "", Duration::from_secs(9)).unwrap_err();
            assert!(matches!(error, Unreachable::Gone { .. }), "{error}");
        });
    }

    #[test]
    fn a_missing_daemon_is_reported_with_a_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let client = Client::new(&directory.path().join("none.sock"));
        let error = client.send("GET", "/", "", Duration::from_secs(1)).unwrap_err();
        assert!(
            matches!(error, Unreachable::NotListening { .. }) && error.to_string().contains("-c FILE"),
            "{error}"
        );
    }
}
