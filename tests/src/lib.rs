//! The test harness: real daemon processes, real origins that can be slow, reset, lie or die, real TLS
//! certificates, and clients that see every byte.
//!
//! ```text
//!   Client, LoadGenerator, curl  ──>  Daemon (a process)  ──>  Origin (threads of the test)
//!            wire: HTTP/1.1 bytes, spoken by both ends of the harness
//! ```
//!
//! Rules that keep tests independent of each other:
//!
//! - every address lies on a loopback IP of its own (see [`ports`]), so no test can take another's port;
//! - a test waits for a condition with a deadline (see [`wait`]), it never sleeps and hopes;
//! - every file lies in the private directory of a [`Lab`], and every process started from that directory ends
//!   with it.
//!
//! The harness does not link the daemon: it knows it only as a user does, by its command line, its files and its
//! sockets.

#![expect(clippy::panic, reason = "a harness says what went wrong by panicking in the test")]

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
pub use origin::{Answer, Behaviour, Gate, GrpcBehaviour, GrpcOrigin, Origin, Serving, Unreachable};
