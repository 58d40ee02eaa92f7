//! The HTTP endpoints that describe a load balancer: `/metrics` for Prometheus, `/livez` and `/readyz` for
//! orchestrators, and JSON documents such as `/api/v1/status` for people and programs.
//!
//! The interface of the crate has only types of Pingora and of `prometheus`, so it fits into any Pingora `Server`:
//!
//! ```text
//!   Registry <-- PoolCollector ----+
//!      ^    <-- ProcessCollector   |-- PoolView -- Arc<LoadBalancer<S>>, shared with the proxy
//!      |    <-- ConfigMetrics, …   |
//!   Endpoints -- Readiness --------+
//!      |
//!   service() -> Service<HttpServer<Endpoints>>, to which the caller adds the listeners
//! ```
//!
//! Nothing is copied in the background: membership, health and process metrics are read for each request. A backend
//! that has left its pool is therefore absent from the next scrape.
//!
//! Nothing here changes the program: only GET and HEAD are allowed, and the body of a request is never read.
//!
//! `examples/endpoint.rs` is a complete program with a plain `LoadBalancer::<RoundRobin>::try_from_iter`.

// What arrives from the network never ends a task: each remaining place that could panic says why it cannot.
#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::expect_used,
        clippy::unreachable,
        clippy::get_unwrap
    )
)]

pub mod config;
mod endpoints;
mod exposition;
mod info;
mod logs;
mod pools;
mod process;
mod readiness;

pub use endpoints::{Endpoints, service};
pub use info::{ConfigMetrics, Reload, build_info};
pub use logs::LogCollector;
pub use pools::{BackendState, BalancedPool, Member, PoolCollector, PoolView, Views};
pub use process::ProcessCollector;
pub use readiness::{Readiness, Report};
