//! HTTP/1.1 messages on the wire: bytes in, heads and pieces of bodies out, and the way back.
//!
//! Nothing here reads or writes a socket, and no function waits. A head is read once, by a strict grammar, into an
//! index over the bytes that arrived, so the names of fields, their case and their order can be passed on as they came.
//!
//! | file | content |
//! |---|---|
//! | `scan.rs` | finds the end of a head in bytes that arrive in pieces |
//! | `request.rs`, `target.rs`, `host.rs` | the head of a request |
//! | `response.rs` | the head of a response |
//! | `fields.rs`, `known.rs` | the fields of both, and the names that the proxy acts on |
//! | `connection.rs` | what the `Connection` field says |
//! | `framing.rs` | the length of a body, by the head |
//! | `body.rs`, `chunked.rs` | the end of a body in bytes that arrive in pieces, and the chunked coding |
//! | `trailers.rs` | the fields behind a chunked body |
//! | `rejection.rs`, `offset.rs` | the reasons to reject a message, and their places |
//! | `write.rs` | the head of a message that leaves |
//! | `delivery.rs` | the framing of a response that leaves, by the version of the client |
//! | `fuzzing/` | properties of all of them, for tests and fuzz targets |
//!
//! Two rules stand behind all of them. A recipient of what leaves has exactly one way to read it. A message is rejected
//! if a sender could mean something else by it than what was read. The sources are RFC 9110 and RFC 9112; a comment
//! names the section where the code is stricter or looser than its letter.

pub(crate) mod body;
pub(crate) mod chunked;
pub(crate) mod connection;
pub(crate) mod delivery;
pub(crate) mod fields;
pub(crate) mod framing;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod grammar;
mod host;
pub(crate) mod known;
mod offset;
pub(crate) mod rejection;
pub(crate) mod request;
pub(crate) mod response;
pub(crate) mod scan;
mod target;
pub(crate) mod trailers;
pub(crate) mod write;

pub(crate) use grammar::{is_token, members};
pub(crate) use host::is_host;
pub(crate) use offset::offset;
pub(crate) use target::without_dot_segments;
