//! Properties of the parsers that must hold for all bytes.
//!
//! Each public function is the body of a fuzz target in `tests/fuzz`, and has its name. It panics if a property does
//! not hold. `cargo test` calls them with the corpus of their target, and with texts that are close to messages. The
//! module exists in tests and under cargo-fuzz only.
//!
//! | file | content |
//! |---|---|
//! | `heads.rs` | the heads of requests and responses |
//! | `bodies.rs` | chunked bodies and trailers |
//! | `parts.rs` | targets, hosts, and fields that are lists |
//! | `forwarding.rs` | whole messages, as they arrive and as they leave |
//! | `pieces.rs` | the ways to split bytes into pieces |
//! | `strict.rs` | a second reader, which the others are compared with |

#![expect(
    clippy::indexing_slicing,
    clippy::expect_used,
    reason = "a property reports its violation by a panic"
)]

mod bodies;
mod forwarding;
mod heads;
mod parts;
mod pieces;
mod strict;

pub use bodies::{chunked_body, trailers};
pub use forwarding::{forwarded_request, forwarded_response};
pub use heads::{request_head, response_head};
pub use parts::{fields, request_target};

#[cfg(test)]
mod tests;
