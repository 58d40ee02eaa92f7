//! Values of the configuration that more than one service reads, and what to write instead of a wrong one.
//!
//! A refusal is one sentence; a second line, if there is one, says what to write. Whatever that line says to write is accepted where
//! the refused text stood.
//!
//! This crate depends on no other crate of the workspace, and each of them may depend on it.

pub mod address;
pub mod duration;
