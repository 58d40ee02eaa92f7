//! Sockets: the only part of the data path that does I/O. It decides nothing.
//!
//! | file | content |
//! |---|---|
//! | `listen.rs` | accepts connections on one socket |
//! | `http1/` | HTTP/1 on a client's connection |
//! | `upstream.rs` | connections to backends: new, idle, and in use |
//! | `dialer.rs` | connections to backends for other purposes than requests |
//! | `stream.rs`, `input.rs`, `output.rs`, `timer.rs` | the parts of a connection |
//! | `splice.rs` | large bodies through a pipe of the system |
//!
//! One future serves one connection. While it waits for a request, it holds no buffer, no snapshot and no state of a
//! request. Every wait has a deadline, and a step that is interrupted loses nothing: bytes stay in the [`Input`] or the
//! [`Output`] of their connection.
//!
//! [`Input`]: input::Input
//! [`Output`]: output::Output

pub(crate) mod dialer;
mod http1;
mod input;
pub(crate) mod listen;
mod output;
mod splice;
mod stream;
mod timer;
pub(crate) mod upstream;
