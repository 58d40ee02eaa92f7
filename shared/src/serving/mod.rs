//! The parts of a daemon that serve, and their change from one plan to the next.
//!
//! [`Diff`] compares two plans, [`Running`] stages and commits the difference, [`Pools`] are the pools with the results
//! of their health checks, and `AccessLogs` are the open access logs.

pub(crate) mod diff;
pub(crate) mod logs;
mod pools;
mod running;

pub use diff::Diff;
pub(crate) use logs::{AccessLogs, Opened};
pub use pools::{Checked, Pools};
pub use running::{Running, Staged};
pub(crate) use running::{listen_spec, served};
