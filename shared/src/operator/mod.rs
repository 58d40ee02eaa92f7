//! What changes while the daemon runs: a file that is read again, and what operators order.
mod order;

pub use order::{Change, Joining, Order, Reload, Verb, Verdict};
