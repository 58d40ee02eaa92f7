//! Active health checks for any Pingora `LoadBalancer`.
//!
//! Pingora's own checks run in passes. A pass takes as long as its slowest check, all backends share one schedule, and
//! traffic is accepted before the first pass. Here each backend has its own schedule, one timeout covers a whole check,
//! and the service is ready only after every backend has been checked once.
//!
//! # Use
//!
//! A [`Prober`] is a Pingora `BackgroundService`. Each pool has its own [`Verdicts`], which the prober writes and any
//! code may read. They also act as the health check of the `LoadBalancer`, which thus learns which backends are up:
//!
//! ```
//! use std::sync::Arc;
//!
//! use health_service::{Metrics, PeerConnect, Prober, Settings, Verdicts, registry};
//! use pingora::lb::{Backends, LoadBalancer, discovery, selection::RoundRobin};
//! use pingora::services::background::background_service;
//! use pingora::upstreams::peer::HttpPeer;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let verdicts = Verdicts::new();
//! let registry = registry(); // keeps health by address, so a change of weight does not reset it
//! registry.set_health_check(verdicts.publisher());
//! let discovery = discovery::Static::try_from_iter(["10.0.0.1:80", "10.0.0.2:80"])?;
//! let balancer = LoadBalancer::<RoundRobin>::from_backends(Backends::new_with_health_registry(discovery, registry));
//! balancer.update().await?;
//!
//! let metrics = Metrics::new();
//! metrics.register(&prometheus::Registry::new())?;
//! let peer = HttpPeer::new("0.0.0.0:1", false, String::new()); // how to connect; the address is a placeholder
//! let connect = Arc::new(PeerConnect::new(peer));
//! let mut prober = Prober::new(metrics);
//! prober.add_pool("web", Arc::new(balancer), Settings::default(), connect, verdicts.clone());
//! let service = background_service("health checks", prober);
//! // server.add_service(service); and let the listening services depend on it
//! # drop(service);
//! # Ok(())
//! # })
//! # }
//! ```
//!
//! `examples/prober.rs` is a complete program.
//!
//! # Changes while it runs
//!
//! Before the prober becomes a service, [`Prober::checks`] returns a handle that replaces its pools later, in two
//! steps. *Stage* checks each backend without a verdict once and changes nothing that runs; *commit* replaces the old
//! set of pools with the new one. A balancer that replaces another one shares its registry and verdicts:
//!
//! ```
//! # use std::sync::Arc;
//! # use health_service::{CheckedPool, Checks, Connect, Settings, Stopped, Verdicts};
//! # use pingora::lb::{Backends, HealthRegistry, LoadBalancer, discovery, selection::RoundRobin};
//! # async fn reload(
//! #     checks: Checks, registry: Arc<HealthRegistry>, verdicts: Verdicts, connect: Arc<dyn Connect>,
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! let discovery = discovery::Static::try_from_iter(["10.0.0.2:80", "10.0.0.3:80"])?;
//! let balancer = LoadBalancer::<RoundRobin>::from_backends(Backends::new_with_health_registry(discovery, registry));
//! balancer.update().await?;
//! let balancer = Arc::new(balancer);
//!
//! let pool = CheckedPool::new("web", balancer.clone(), Settings::default(), connect, verdicts);
//! let staged = checks.stage([pool]).await; // checks 10.0.0.3, which is new; has no effect if it is dropped
//! checks.commit(staged).await?; // 10.0.0.1 is no longer checked
//! // `balancer` has the state of every backend, so requests may use it now
//! # Ok(())
//! # }
//! ```
//!
//! # What a check does
//!
//! Depending on [`CheckKind`], a check connects (`Tcp`), sends an HTTP/1.1 request and examines the response (`Http`),
//! or queries the backend's own health service over HTTP/2 (`Grpc`) with the protocol [`grpc.health.v1`]. Without TLS,
//! `Grpc` uses HTTP/2 with prior knowledge.
//!
//! Checks connect through [`Connect`]. [`PeerConnect`] connects as Pingora's proxy does, with TLS if the peer has TLS.
//! A program that connects in another way implements the trait, so that checks and requests use the same TLS and
//! sockets.
//!
//! [`grpc.health.v1`]: https://github.com/grpc/grpc/blob/master/doc/health-checking.md
//!
//! # How it works
//!
//! 1. Each backend has a task. It checks the backend (`check`), applies the result (`state`), and sleeps until the next
//!    check (`schedule`).
//! 2. The task writes the verdict to [`Verdicts`]. If the state has changed, it logs one line, calls the [`Observer`]
//!    and wakes the task of the pool.
//! 3. The task of the pool makes the `LoadBalancer` run its health check, [`Verdicts::publisher`], which returns at
//!    once. From then on, `select` skips the backend or includes it again.
//! 4. A commit goes to the service, which passes it to the task of each pool. That task keeps, starts and ends the
//!    tasks of its backends.
//!
//! Pingora also logs each change, as `backend 10.0.0.1:80 becomes unhealthy`, with the target `pingora_load_balancing`.
//! Set that target to `error` to get one line per change.

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

mod backend;
mod check;
mod checks;
mod config;
mod connect;
#[cfg(test)]
mod membership;
mod metrics;
mod pool;
mod prober;
mod schedule;
#[cfg(test)]
mod script;
mod settings;
mod state;
mod value;
mod verdicts;

pub use backend::Observer;
pub use check::{CheckError, Checker};
pub use checks::{CheckedPool, Checks, StagedChecks, Stopped};
pub use config::HealthCheckConfig;
pub use connect::{ByteStream, Connect, ConnectError, Connection, PeerConnect, Protocol};
pub use metrics::Metrics;
pub use prober::Prober;
pub use schedule::{SchedulePhase, pause};
pub use settings::{CheckKind, GrpcCheck, HttpCheck, Settings, Thresholds};
pub use state::{BackendHealth, CheckOutcome, HealthVerdict, StateChange};
pub use value::{BodyText, CheckMethod, CheckType, ServiceName};
pub use verdicts::{Verdicts, registry};
