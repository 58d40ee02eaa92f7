//! The simulation: the very code of lb-service that places, judges, ejects, repeats and queues requests,
//! driven in virtual time against modelled backends.
//!
//! ```text
//! cargo test -p tests --test simulation                               the promises
//! cargo test -p tests --test simulation the_table -- --nocapture      the table
//! ```
//!
//! Each test holds one promise of the theory against what the pool does. Bounds have a margin and say where
//! they come from. No sockets, no threads, no sleep: a scenario of minutes takes a moment, and the same seed
//! gives the same run.

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
