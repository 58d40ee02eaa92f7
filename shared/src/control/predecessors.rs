//! Processes that have handed over and finish their requests. Each goes on answering at a socket of its own, beside the control
//! socket and named by its number (`control.sock.1234`), until it ends: so a backend is not said to be free that one of them still
//! has a request at, and an operator can look at them.

use std::ffi::OsStr;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::is_trusted;
use crate::http_message::{Reply, Request, backend_target};

/// How long until one is asked again that could not say that it is done.
const PAUSE: Duration = Duration::from_millis(100);

/// How long one waits for the backend to become idle before it answers that it is not.
const WAIT_SECONDS: u64 = 30;
/// How long an exchange may take; longer than that.
const DEADLINE: Duration = Duration::from_secs(WAIT_SECONDS + 10);
/// The longest response.
const MAX_RESPONSE: u64 = 64 * 1024;

/// Where the process `pid` answers once it has handed over.
pub fn socket_of(control: &Path, pid: u32) -> PathBuf {
    let mut name = control.as_os_str().to_owned();
    name.push(format!(".{pid}"));
    name.into()
}

/// Those that may still be there, but this process.
pub fn sockets(control: &Path) -> Vec<PathBuf> {
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

/// Removes the files of those that were killed.
pub fn sweep(control: &Path) {
    for socket in sockets(control) {
        let nobody = std::os::unix::net::UnixStream::connect(&socket)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        if nobody && let Err(error) = std::fs::remove_file(&socket) {
            log::warn!("control: {} is left over and cannot be removed: {error}", socket.display());
        }
    }
}

/// Returns when none of them has a request at this backend.
pub async fn idle(sockets: impl IntoIterator<Item = PathBuf>, pool: &str, backend: SocketAddr) {
    let target = format!("{}/idle?wait={WAIT_SECONDS}", backend_target(pool, backend));
    for socket in sockets {
        // One that is not there any more has none.
        while let Ok(is_idle) = ask(&socket, &target).await
            && !is_idle
        {
            sleep(PAUSE).await;
        }
    }
}

/// Whether it says that it is so. One whose pool has another name, or that ends before it answers, is asked again or is gone. In a
/// directory that others may write to, a socket of another user is none of a process before this one.
async fn ask(socket: &Path, target: &str) -> io::Result<bool> {
    let mut stream = UnixStream::connect(socket).await?;
    if !is_trusted(stream.peer_cred()?.uid()) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let request = Request::get(target).to_bytes();
    let mut answer = Vec::new();
    let exchange = async {
        stream.write_all(&request).await?;
        stream.take(MAX_RESPONSE).read_to_end(&mut answer).await
    };
    let answered = timeout(DEADLINE, exchange).await.is_ok_and(|read| read.is_ok());
    let status = Reply::parse(&answer).filter(|_| answered).map(|reply| reply.status);
    // 404: it has no such pool.
    Ok(matches!(status, Some(200 | 404)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_by_its_number_and_nothing_else_is() {
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
    async fn one_that_is_gone_is_not_waited_for_and_is_swept() {
        let directory = tempfile::tempdir().unwrap();
        let control = directory.path().join("control.sock");
        drop(tokio::net::UnixListener::bind(socket_of(&control, 7)).unwrap());
        assert_eq!(sockets(&control).len(), 1, "a process that was killed has left it");
        idle(sockets(&control), "web", "10.0.0.1:80".parse().unwrap()).await;
        let _alive = tokio::net::UnixListener::bind(socket_of(&control, 8)).unwrap();
        sweep(&control);
        assert_eq!(sockets(&control), [socket_of(&control, 8)]);
    }

    #[tokio::test]
    async fn a_response_without_end_is_not_read_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let socket = socket_of(&directory.path().join("control.sock"), 7);
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let endless = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            while stream.write_all(&[b'x'; 1024]).await.is_ok() {}
        };
        let ((), asked) = tokio::join!(endless, ask(&socket, "/"));
        assert!(!asked.unwrap(), "it has said nothing that is understood");
    }

    #[tokio::test]
    async fn a_socket_of_another_user_is_none_of_a_process_before_this_one() {
        if !nix::unistd::Uid::effective().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let control = directory.path().join("control.sock");
        let _foreign = crate::control::client::tests::foreign(&socket_of(&control, 7));
        idle(sockets(&control), "web", "10.0.0.1:80".parse().unwrap()).await;
    }
}
