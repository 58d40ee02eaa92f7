//! Composition root of the load balancer: the configuration, the command line, the process, and the three services as
//! one daemon.
//!
//! [`run`] is the whole program. [`guide`] is the manual for its users, and `ARCHITECTURE.md` is the map of the code.

mod app;
pub mod cli;
mod condition;
pub mod config;
mod control;
mod daemon;
mod demo;
mod events;
mod explain;
pub mod guide;
mod http_message;
mod operator;
mod places;
pub mod process;
mod purpose;
mod screen;
mod serving;
mod status;
mod status_document;
mod subcommands;
mod time;
mod words;

pub use app::run;
