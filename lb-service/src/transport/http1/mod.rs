//! HTTP/1 between clients and backends.
//!
//! | file | content |
//! |---|---|
//! | `connection.rs` | a client's connection: its requests one after the other, and its end |
//! | `serve.rs` | one request: its attempts, and what becomes of both connections |
//! | `story.rs` | the exchange of a request, and the heads of its response |
//! | `race.rs` | a new connection, to the backend of an attempt or to the one that is connected first |
//! | `relay.rs` | one attempt: bytes in both directions between the client and a backend |
//! | `tunnel.rs` | bytes in both directions after a change of protocol |
//! | `client.rs`, `request_body.rs` | the side of the client |

mod client;
pub(super) mod connection;
mod race;
mod relay;
mod request_body;
mod serve;
mod story;
mod tunnel;
