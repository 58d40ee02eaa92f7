//! Old processes that have handed over and still drain. Each of them has a control socket of its own until it ends,
//! next to the control socket and with its PID as suffix (`control.sock.1234`). A backend is therefore not reported as
//! idle while an old process still has a request in flight to it, and operators can inspect these processes.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lb_service::pool::UpstreamAddress;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::is_trusted;
use crate::http_message::{Reply, Request, backend_target};
use crate::process::files::reason;

/// Pause before an old process is queried again.
const PAUSE: Duration = Duration::from_millis(100);

/// Time that an old process waits for the backend to become idle before it responds, in seconds.
const WAIT_SECONDS: u64 = 30;
/// Time limit for one exchange, which must be longer than `WAIT_SECONDS`.
const DEADLINE: Duration = Duration::from_secs(WAIT_SECONDS + 10);
/// Maximum size of a response, in bytes.
const MAX_RESPONSE: u64 = 64 * 1024;

/// Returns the path of the socket of process `pid` after it has handed over.
pub(crate) fn socket_of(control: &Path, pid: u32) -> PathBuf {
    let mut name = control.as_os_str().to_owned();
    name.push(format!(".{pid}"));
    name.into()
}

/// Returns the sockets of old processes that might still run, without the one of this process.
pub(crate) fn sockets(control: &Path) -> Vec<PathBuf> {
    let (Some(directory), Some(name)) = (control.parent(), control.file_name().and_then(OsStr::to_str))
    else {
        return Vec::new();
    };
    let own = std::process::id();
    let is_other = |other: &OsStr| {
        let pid = other.to_str().and_then(|other| other.strip_prefix(name)?.strip_prefix('.'));
        pid.and_then(|pid| pid.parse::<u32>().ok()).is_some_and(|pid| pid != own)
    };
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| is_other(&entry.file_name())).map(|entry| entry.path()).collect()
}

/// Removes the socket files of processes that were killed.
pub(crate) fn sweep(control: &Path) {
    for socket in sockets(control) {
        let is_stale = std::os::unix::net::UnixStream::connect(&socket)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        if is_stale && let Err(error) = std::fs::remove_file(&socket) {
            log::warn!("control: cannot remove the stale socket {}: {}", socket.display(), reason(&error));
        }
    }
}

/// Returns when no process at `sockets` has a request in flight to this backend.
pub(crate) async fn idle(sockets: impl IntoIterator<Item = PathBuf>, pool: &str, backend: &UpstreamAddress) {
    let target = format!("{}/idle?wait={WAIT_SECONDS}", backend_target(pool, backend));
    for socket in sockets {
        // A process that has ended has no requests.
        while let Ok(idle) = is_idle(&socket, &target).await
            && !idle
        {
            sleep(PAUSE).await;
        }
    }
}

/// Returns whether the process at `socket` reports the backend as idle. A process without this pool counts as idle. A
/// socket of another user is rejected: in a directory that others can write to, it does not belong to an old process.
async fn is_idle(socket: &Path, target: &str) -> io::Result<bool> {
    let mut stream = UnixStream::connect(socket).await?;
    if !is_trusted(stream.peer_cred()?.uid()) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let request = Request::get(target).to_bytes();
    let mut response = Vec::new();
    let exchange = async {
        stream.write_all(&request).await?;
        stream.take(MAX_RESPONSE).read_to_end(&mut response).await
    };
    let is_complete = timeout(DEADLINE, exchange).await.is_ok_and(|read| read.is_ok());
    let status = Reply::parse(&response).filter(|_| is_complete).map(|reply| reply.status);
    // 404: this process does not have the pool.
    Ok(matches!(status, Some(200 | 404)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_with_a_pid_as_suffix_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let control = directory.path().join("control.sock");
        let own = std::process::id();
        for name in ["control.sock", "control.sock.7", "control.sock.new", "other.sock.8"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        std::fs::write(socket_of(&control, own), "").unwrap();
        assert_eq!(sockets(&control), [directory.path().join("control.sock.7")]);
        assert!(sockets(Path::new("/nowhere/control.sock")).is_empty());
    }

    #[tokio::test]
    async fn the_socket_of_an_ended_process_is_ignored_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let control = directory.path().join("control.sock");
        drop(tokio::net::UnixListener::bind(socket_of(&control, 7)).unwrap());
        assert_eq!(sockets(&control).len(), 1, "a killed process left its socket");
        idle(sockets(&control), "web", &"10.0.0.1:80".parse().unwrap()).await;
        let _alive = tokio::net::UnixListener::bind(socket_of(&control, 8)).unwrap();
        sweep(&control);
        assert_eq!(sockets(&control), [socket_of(&control, 8)]);
    }

    #[tokio::test]
    async fn an_endless_response_is_not_read_completely() {
        let directory = tempfile::tempdir().unwrap();
        let socket = socket_of(&directory.path().join("control.sock"), 7);
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let endless = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            while stream.write_all(&[b'x'; 1024]).await.is_ok() {}
        };
        let ((), idle) = tokio::join!(endless, is_idle(&socket, "/"));
        assert!(!idle.unwrap(), "the response is invalid");
    }

    #[tokio::test]
    async fn a_socket_of_another_user_is_ignored() {
        if !nix::unistd::Uid::effective().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let control = directory.path().join("control.sock");
        let _foreign = crate::control::client::tests::foreign(&socket_of(&control, 7));
        idle(sockets(&control), "web", &"10.0.0.1:80".parse().unwrap()).await;
    }
}
