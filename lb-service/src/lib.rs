//! The load balancing proxy: listeners, routes, pools, policies and the access log, as a Pingora service.
//!
//! It speaks to the other services only in types of Pingora and of `prometheus`: whoever decides who is ready tells the pool's
//! `LoadBalancer`, and whoever serves metrics passes a `Registry`.
//!
//! ```text
//! Service<Frontend>                 accepts; counts connections                        service.rs, frontend.rs
//! └── HttpProxy<Proxy>              Pingora's proxy with our callbacks                 proxy.rs
//!     ├── Plan                      one snapshot per request                           plan.rs
//!     │   ├── Listeners             which listener a connection came through           listener.rs
//!     │   ├── RouteTable            which pool a request goes to                       route.rs
//!     │   ├── TrustedProxies        what backends are told about the client            forwarded.rs
//!     │   └── Pool                  which backend, and how to connect to it            pool/
//!     │       └── Arc<LoadBalancer<Policy>>   who is there and ready; who is next      policy/
//!     ├── Traffic                   what is counted, and when a drain is over          traffic.rs, stats.rs, metrics.rs
//!     └── AccessLog                 one line per request                               access_log/
//! ```
//!
//! What decides is plain functions over values; the callbacks only call them. `examples/proxy.rs` puts the proxy into a
//! Pingora server of its own, and [`policy::Policy`] works in any Pingora program.

pub mod access_log;
pub mod clock;
pub mod config;
pub mod failure;
pub mod forwarded;
pub mod frontend;
pub mod hop_by_hop;
pub mod listener;
pub mod metrics;
mod patience;
pub mod plan;
pub mod policy;
pub mod pool;
pub mod proxy;
mod request;
pub mod route;
pub mod service;
pub mod stats;
pub mod traffic;
mod watched;

pub use policy::{Algorithm, InFlight, Load, Policy, PolicyConfig};
