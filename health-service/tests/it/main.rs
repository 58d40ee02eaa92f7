//! Tests of the checks and the prober with real sockets on loopback.

mod any_bytes;
mod checks;
mod grpc;
mod log_lines;
mod origin;
mod prober;
mod reload;
mod tls;
