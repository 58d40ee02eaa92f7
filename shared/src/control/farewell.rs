//! The answer to `stop`: given by the process when everything else is over.
//!
//! Only then is it known how the drain went. The connection stays open until the process is gone, so whoever waits for its end waits
//! for that of the process. A process that is killed closes the connection without an answer.

use std::io::Write;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::process::lifecycle::Outcome;

/// The connections that are answered at the end. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Farewells(Arc<Mutex<Vec<UnixStream>>>);

/// How a process has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Farewell {
    /// Which process.
    pub pid: u32,
    /// Why: `drained`, `out_of_time`, `at_once` or `failed`.
    pub reason: String,
    /// Requests that were still in flight.
    pub cut: usize,
    /// Whether another process had taken over, so that this one was not the daemon any more.
    pub handed_over: bool,
}

// === impl Farewells ===

impl Farewells {
    /// This connection is answered at the end.
    pub fn promise(&self, connection: OwnedFd) {
        self.connections().push(UnixStream::from(connection));
    }

    /// Answers all of them. To be called last: the process holds nothing any more that a new one needs.
    pub fn say(&self, outcome: &Outcome) {
        let end = outcome.end();
        let farewell = Farewell {
            pid: std::process::id(),
            reason: end.reason.as_str().to_owned(),
            cut: end.cut,
            handed_over: outcome.is_handed_over(),
        };
        let body = json!(farewell).to_string();
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        for mut connection in self.connections().drain(..) {
            // A client that has left does not read it.
            let _ = connection.write_all(answer.as_bytes());
            // The kernel closes it, with everything else of the process.
            let _open = connection.into_raw_fd();
        }
    }

    fn connections(&self) -> MutexGuard<'_, Vec<UnixStream>> {
        self.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_answer_comes_at_the_end_and_the_connection_stays_open() {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        let farewells = Farewells::default();
        farewells.promise(server.into());
        let mut answer = [0; 1024];
        assert!(client.read(&mut answer).is_err(), "no answer yet");
        farewells.say(&Outcome::default());
        let length = client.read(&mut answer).unwrap();
        let reply = crate::http_message::Reply::parse(&answer[..length]).unwrap();
        let farewell: Farewell = serde_json::from_str(&reply.body).unwrap();
        assert_eq!((farewell.pid, farewell.reason.as_str()), (std::process::id(), "failed"));
        assert!(client.read(&mut answer).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
    }
}
