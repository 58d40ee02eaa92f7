//! The rules of HTTP/1.1 on the wire, as raw bytes of clients and backends.

mod expectations;
mod heads;
mod requests;
mod responses;
mod tunnels;
mod uploads;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use tests::{Daemon, Lab};

use crate::data_path::connect;
use crate::pool_of;

/// A request that a client hides in the bytes of another one.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// The response that begins a WebSocket.
const SWITCHING: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// Starts a daemon with one pool of these backends, which has these keys.
fn daemon_of(backends: &[SocketAddr], keys: &str) -> (Lab, Daemon) {
    let lab = Lab::new();
    let daemon = lab.start(&pool_of(backends, keys));
    (lab, daemon)
}

/// Like [`daemon_of`], with keys of the listener.
fn daemon_with_listener(listener: &str, backends: &[SocketAddr], keys: &str) -> (Lab, Daemon) {
    let lab = Lab::new();
    let listeners = format!("listeners: [{{address: \"{}\", {listener}}}]\n", lab.listener);
    let daemon = lab.start_file(&lab.config_with(&listeners, &pool_of(backends, keys)));
    (lab, daemon)
}

/// Returns everything that arrives until the connection ends, and the error that ends it.
fn read_all(stream: &mut TcpStream) -> (String, Option<ErrorKind>) {
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes).err().map(|error| error.kind());
    (String::from_utf8_lossy(&bytes).into_owned(), end)
}

/// Sends these bytes on a new connection, and returns everything that arrives until it ends.
fn exchange(daemon: &Daemon, bytes: &str) -> (String, Option<ErrorKind>) {
    let mut client = connect(daemon);
    client.write_all(bytes.as_bytes()).unwrap();
    read_all(&mut client)
}

/// Reads exactly so many bytes.
fn read_exactly(stream: &mut TcpStream, length: usize) -> String {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Asserts that no failure of this backend is counted.
#[track_caller]
fn assert_not_blamed(daemon: &Daemon, backend: SocketAddr) {
    let status = daemon.backend_status("web", backend);
    assert_eq!((&status["failures"], &status["consecutive_failures"]), (&0.into(), &0.into()), "{status:#}");
    assert_eq!(daemon.metric("lb_upstream_errors_total", &[]), 0.0);
}
