//! What can be read from a load balancer over HTTP: `/metrics` for Prometheus, `/livez` and
//! `/readyz` for orchestrators, JSON documents such as `/api/v1/status` for people and programs.
//!
//! The crate speaks only in types of Pingora and of `prometheus`, so that it fits into any
//! Pingora `Server`:
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
//! Nothing is copied in the background: membership, health and process numbers are read when a
//! request asks for them. Hence a backend that left a pool is gone from the very next scrape.
//!
//! Nothing here changes the program it reports on: only GET and HEAD are answered, and the body
//! of a request is never read.
//!
//! `examples/endpoint.rs` shows the whole of it around a bare
//! `LoadBalancer::<RoundRobin>::try_from_iter`.

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
