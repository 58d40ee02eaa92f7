//! The parts of a daemon that serve, and their change from one plan to the next.
//!
//! [`Core`] contains the handles that all parts of the daemon hold. [`Diff`] compares two plans, [`Running`] stages and
//! commits the difference, [`Pools`] are the pools with the results of their health checks, and `Logs` are the open log
//! files.

mod core;
pub(crate) mod diff;
pub(crate) mod logs;
mod pools;
mod running;

pub use core::Core;
pub use diff::Diff;
pub(crate) use logs::{AccessLogs, Logs};
pub use pools::{Checked, Pools};
pub use running::{Running, Staged};
pub(crate) use running::{listen_spec, served, timing};
