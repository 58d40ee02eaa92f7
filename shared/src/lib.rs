//! Composition root of the load balancer: the configuration, the command line, the process, and the three services as
//! one daemon.
//!
//! [`run`] is the whole program. [`guide`] is the manual for its users, and `ARCHITECTURE.md` is the map of the code.

pub mod app;
pub mod cli;
pub mod condition;
pub mod config;
pub mod control;
pub mod daemon;
pub mod demo;
pub mod events;
pub mod explain;
pub mod guide;
mod http_message;
pub mod operator;
pub mod places;
pub mod process;
pub mod purpose;
pub mod screen;
pub mod serving;
pub mod status;
pub mod status_document;
pub mod subcommands;
pub mod time;
pub mod words;

pub use app::run;
