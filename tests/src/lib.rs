//! The test harness: real daemon processes, real origins that can be slow, reset connections, send garbage or stop,
//! real TLS certificates, and clients that receive raw bytes.
//!
//! ```text
//!   Client, LoadGenerator, curl  ──>  Daemon (a process)  ──>  Origin (threads of the test)
//!            wire: HTTP/1.1 as bytes, used by both ends of the harness
//! ```
//!
//! Rules that keep tests independent of each other:
//!
//! - every address is on a loopback IP of its own (see [`ports`]), so no test can take a port of another test;
//! - a test waits for a condition with a deadline (see [`wait`]) and never sleeps for a fixed time;
//! - every file is in the private directory of a [`Lab`]. Dropping the lab ends every process that was started from its
//!   directory.
//!
//! The harness does not link the daemon. It uses only what an operator or a client uses: the command line, files and
//! sockets.

#![expect(clippy::panic, reason = "a harness reports failures by a panic in the test")]

pub mod certs;
pub mod client;
pub mod daemon;
pub mod load;
pub mod origin;
pub mod pattern;
pub mod ports;
pub mod process;
pub mod skip;
pub mod tools;
pub mod wait;
pub mod websocket;
pub mod wire;

pub use certs::{Authority, Certified};
pub use client::{Connection, Response, get};
pub use daemon::{Background, Daemon, Lab};
pub use load::LoadGenerator;
pub use nix::sys::signal::Signal;
pub use origin::{
    Behaviour, CannedResponse, Gate, GrpcBehaviour, GrpcOrigin, Origin, Serving, UnixBridge, Unreachable,
};
