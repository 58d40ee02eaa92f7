//! The simulation: the code of lb-service that places, judges, ejects, retries and queues requests, driven in virtual
//! time against models of backends.
//!
//! ```text
//! cargo test -p tests --test simulation                               the tests
//! cargo test -p tests --test simulation the_table -- --nocapture      the table
//! ```
//!
//! Each test compares one prediction of the theory with the pool. Bounds have a margin and cite their source. There are
//! no sockets, threads or sleeps: a scenario of minutes takes a moment, and the same seed gives the same run.

#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod backend;
mod client;
mod report;
mod world;

mod failures;
mod hashes;
mod queue;
mod shares;
mod slow_start;
mod table;
