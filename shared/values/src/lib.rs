//! Configuration values that more than one service reads, and the diagnostics for wrong values.
//!
//! A diagnostic is one sentence. A second line, if present, says what to write. If the operator writes that in place of
//! the rejected text, the value is accepted.
//!
//! This crate does not depend on any other crate of the workspace, so each of them can depend on it.

pub mod address;
pub mod duration;
