//! A load-balancing proxy as a Pingora service, and its parts for your own Pingora programs.
//!
//! | you want | take | begin with |
//! |---|---|---|
//! | one policy, in an existing proxy | [`Policy`] | [`policy`], and `examples/policy.rs`, a proxy in 100 lines |
//! | ejection, retries, queues and sessions as well | [`Pool`](pool::Pool) | [`pool`] |
//! | everything | [`service::service`] | `examples/proxy.rs` |
//!
//! # One policy
//!
//! [`Policy`] replaces Pingora's own selection in the type of the balancer. The rest of the program does not change:
//!
//! ```
//! use lb_service::policy::{Algorithm, Policy, PolicyConfig};
//! use pingora::lb::{Backends, LoadBalancer, discovery};
//!
//! let backends = Backends::new(discovery::Static::try_from_iter(["10.0.0.1:80", "10.0.0.2:80"])?);
//! let config = PolicyConfig::new(Algorithm::ConsistentHash);
//! let balancer = LoadBalancer::<Policy>::from_backends_with_config(backends, Some(config));
//! # futures::FutureExt::now_or_never(balancer.update()).unwrap().unwrap();
//! // For each request, in `upstream_peer`. Requests with the same key go to the same backend.
//! let backend = balancer.select(b"/images/cat.png", 2).expect("backends are healthy until a check fails");
//! # assert_eq!(balancer.select(b"/images/cat.png", 2), Some(backend));
//! # Ok::<_, std::io::Error>(())
//! ```
//!
//! [`policy`] helps to choose one of the six policies, and describes the input that two of them need. It uses nothing
//! else of this crate except [`clock`].
//!
//! # Structure of the proxy
//!
//! The crate exchanges only types of Pingora and of `prometheus` with the other services: health checks report to the
//! pool's `LoadBalancer`, and the server of metrics passes a `Registry`.
//!
//! ```text
//! ProxyService                      opens and closes sockets                           service.rs
//! └── transport                     connections of clients and to backends             transport/
//!     ├── wire                      messages as bytes: grammar and framing             wire/
//!     └── Exchange                  one request from its head to its log line          exchange/
//!         ├── Snapshot              one per request                                    snapshot.rs
//!         │   ├── Listeners         which listener a connection came through           listener.rs
//!         │   ├── RouteTable        which pool a request goes to                       route/
//!         │   ├── TrustedProxies    the client data that backends get                  forwarded.rs
//!         │   ├── Pool              which backend, and how to connect to it            pool/
//!         │   │   ├── Arc<LoadBalancer<Policy>>   members and readiness
//!         │   │   └── Arc<Policy>       the next backend                               policy/
//!         │   ├── TrafficCounters   counters of clients and requests                   counters.rs, metrics.rs
//!         │   └── AccessLog         one line per request                               access_log/, lines.rs
//!         └── Dispatch              the attempts of the request in its pool            pool/
//! Traffic                           open connections, and when a drain is over         traffic.rs
//! Snapshot::explain                 the backend that a request would go to             explain.rs
//! ```
//!
//! Decisions are plain functions over values; the transport only calls them.

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

pub mod access_log;
pub mod clock;
pub mod config;
mod counters;
mod exchange;
pub mod explain;
pub mod failure;
pub mod forwarded;
mod head_edit;
pub mod lines;
pub mod listener;
pub mod metrics;
pub mod policy;
pub mod pool;
pub mod route;
pub mod service;
pub mod snapshot;
pub mod stats;
#[cfg(test)]
mod testing;
mod token;
pub mod traffic;
mod transport;
mod upgrade;
mod wire;

pub use policy::{Algorithm, InFlight, Load, Policy, PolicyConfig};
#[cfg(any(test, fuzzing))]
pub use wire::fuzzing;
