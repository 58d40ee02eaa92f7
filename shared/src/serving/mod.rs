//! The parts of a daemon that serve, and their change from one plan to the next.
//!
//! [`Core`] contains the handles that all parts of the daemon hold. [`Diff`] compares two plans, [`Running`] stages and
//! commits the difference, [`Pools`] are the pools with the results of their health checks, and `Logs` are the open log
//! files.

mod connect;
mod core;
pub(crate) mod diff;
pub(crate) mod logs;
mod pools;
mod running;

pub(crate) use core::Core;
pub(crate) use diff::Diff;
pub(crate) use logs::{AccessLogs, Logs};
pub(crate) use pools::{Checked, Pools};
pub(crate) use running::Running;
pub(crate) use running::{listen_spec, served, timing};
