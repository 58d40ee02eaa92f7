//! Response to `stop`, which the process sends after everything else is done.
//!
//! Only then is the result of the drain known. The connection stays open until the process has ended, so a client can
//! wait for the end of the process by waiting for the end of the connection. A killed process closes the connection
//! without a response.

use std::io::Write;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::process::lifecycle::Outcome;

/// Connections that receive a response at the end of the process. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Farewells(Arc<Mutex<Vec<UnixStream>>>);

/// Result of a stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Farewell {
    /// The PID of the process.
    pub pid: u32,
    /// The reason for the end: `drained`, `out_of_time`, `at_once` or `failed`.
    pub reason: String,
    /// The number of requests that were still in flight.
    pub cut: usize,
    /// Whether a new process had already taken over.
    pub handed_over: bool,
}

// === impl Farewells ===

impl Farewells {
    /// Adds a connection that receives a response at the end.
    pub(crate) fn promise(&self, connection: OwnedFd) {
        self.connections().push(UnixStream::from(connection));
    }

    /// Sends the responses. Call this function last, when the process no longer holds anything that a new process
    /// needs.
    pub(crate) fn say(&self, outcome: &Outcome) {
        let end = outcome.end();
        let farewell = Farewell {
            pid: std::process::id(),
            reason: end.reason.as_str().to_owned(),
            cut: end.cut,
            handed_over: outcome.is_handed_over(),
        };
        let body = json!(farewell).to_string();
        let length = body.len();
        let response = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        for mut connection in self.connections().drain(..) {
            // The write fails if the client has disconnected.
            let _ = connection.write_all(response.as_bytes());
            // The kernel closes the connection when the process has ended.
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
    fn the_response_is_sent_at_the_end_and_the_connection_stays_open() {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        let farewells = Farewells::default();
        farewells.promise(server.into());
        let mut response = [0; 1024];
        assert!(client.read(&mut response).is_err(), "no response yet");
        farewells.say(&Outcome::default());
        let length = client.read(&mut response).unwrap();
        let reply = crate::http_message::Reply::parse(&response[..length]).unwrap();
        let farewell: Farewell = serde_json::from_str(&reply.body).unwrap();
        assert_eq!((farewell.pid, farewell.reason.as_str()), (std::process::id(), "failed"));
        assert!(
            client.read(&mut response).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        );
    }
}
