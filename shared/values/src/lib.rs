//! The values of the configuration: durations, numbers, addresses, paths and words, and the diagnostics for wrong ones.
//!
//! A value is one scalar of YAML. Its type implements [`Scalar`], which has the one grammar of the value, the one text
//! for messages, and the schema; [`TextScalar`] is the short form for texts. Types with a serde implementation of their
//! own use [`scalar!`]; all others are read as [`Text`], which also keeps what was written.
//!
//! A diagnostic is one sentence. A second line, if present, is the hint, which says what to write. If the operator
//! writes that in place of the rejected value, the value is accepted.
//!
//! This crate does not depend on any other crate of the workspace, so each of them can depend on it.

pub mod address;
pub mod choice;
pub mod duration;
mod mode;
mod network;
pub mod number;
pub mod path;
mod reason;
pub mod request;
pub mod scalar;
mod size;
mod status;
#[cfg(test)]
mod testing;
mod text;
mod tls_reason;

pub use address::{BackendAddress, TcpAddress};
pub use choice::did_you_mean;
pub use duration::{AnyDuration, PositiveDuration};
pub use mode::SocketMode;
pub use number::{Number, Percent, Port, Ratio};
pub use path::{AbsolutePath, Directory, ReadPath, SocketPath, UnixPath};
pub use reason::reason;
pub use request::{HeaderText, HostHeader, RequestPath};
pub use scalar::{Rejection, Scalar, TextScalar};
pub use size::Size;
pub use status::StatusRange;
pub use text::{Name, Text};
pub use tls_reason::tls_reason;
