//! The load balancing proxy: listeners, routes, pools, policies and the access log, as Pingora services.

pub mod access_log;
pub mod config;
pub mod failure;
pub mod forwarded;
pub mod frontend;
pub mod listener;
pub mod metrics;
pub mod plan;
pub mod policy;
pub mod pool;
pub mod proxy;
pub mod route;
pub mod service;
pub mod stats;
pub mod traffic;

pub use policy::{Policy, PolicyConfig};
