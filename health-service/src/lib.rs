//! Active health checks for any Pingora `LoadBalancer`.
//!
//! Pingora's own checks run in passes: a pass is as slow as its slowest check, all backends share one schedule, and
//! traffic is accepted before the first pass. Here each backend has a schedule of its own, one timeout covers a whole
//! check, and the service is ready only when every backend was checked once.
//!
//! # Use
//!
//! A [`Prober`] is a Pingora `BackgroundService`. Each pool has its [`Verdicts`], which the prober writes and anyone
//! may read, and which tell the `LoadBalancer` who is up by standing in for its health check:
//!
//! ```
//! use std::sync::Arc;
//!
//! use health_service::{Metrics, Prober, Settings, Verdicts, registry};
//! use pingora::lb::{Backends, LoadBalancer, discovery, selection::RoundRobin};
//! use pingora::services::background::background_service;
//! use pingora::upstreams::peer::HttpPeer;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let verdicts = Verdicts::new();
//! let registry = registry(); // keeps health by address, so that a change of weight loses none
//! registry.set_health_check(verdicts.publisher());
//! let discovery = discovery::Static::try_from_iter(["10.0.0.1:80", "10.0.0.2:80"])?;
//! let balancer = LoadBalancer::<RoundRobin>::from_backends(Backends::new_with_health_registry(discovery, registry));
//! balancer.update().await?;
//!
//! let metrics = Metrics::new();
//! metrics.register(&prometheus::Registry::new())?;
//! let peer = HttpPeer::new("0.0.0.0:1", false, String::new()); // how to connect; the address is a placeholder
//! let mut prober = Prober::new(metrics);
//! prober.add_pool("web", Arc::new(balancer), Settings::default(), peer, verdicts.clone());
//! let service = background_service("health checks", prober);
//! // server.add_service(service); and let the listening services depend on it
//! # drop(service);
//! # Ok(())
//! # })
//! # }
//! ```
//!
//! `examples/prober.rs` is a whole program.
//!
//! # Changes while it runs
//!
//! [`Prober::checks`] gives a handle, before the prober becomes a service, by which its pools are replaced later, in two
//! steps. *Stage* makes the first checks of backends that nobody has checked, and touches nothing that runs; *commit* puts
//! the new set in the place of the old one. A balancer that takes the place of another shares its registry and verdicts:
//!
//! ```
//! # use std::sync::Arc;
//! # use health_service::{CheckedPool, Checks, Settings, Stopped, Verdicts};
//! # use pingora::lb::{Backends, HealthRegistry, LoadBalancer, discovery, selection::RoundRobin};
//! # use pingora::upstreams::peer::HttpPeer;
//! # async fn reload(
//! #     checks: Checks, registry: Arc<HealthRegistry>, verdicts: Verdicts, peer: HttpPeer,
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! let discovery = discovery::Static::try_from_iter(["10.0.0.2:80", "10.0.0.3:80"])?;
//! let balancer = LoadBalancer::<RoundRobin>::from_backends(Backends::new_with_health_registry(discovery, registry));
//! balancer.update().await?;
//! let balancer = Arc::new(balancer);
//!
//! let pool = CheckedPool::new("web", balancer.clone(), Settings::default(), peer, verdicts);
//! let staged = checks.stage([pool]).await; // checks 10.0.0.3, which is new; dropped, it leaves no trace
//! checks.commit(staged).await?; // from now on 10.0.0.1 is not checked any more
//! // `balancer` knows who is up: requests may be given to it
//! # Ok(())
//! # }
//! ```
//!
//! # What a check does
//!
//! [`CheckKind`] says: connect (`Tcp`), send an HTTP/1.1 request and look at the answer (`Http`), or ask the backend's
//! own health service over HTTP/2 (`Grpc`), by the protocol [`grpc.health.v1`]. Each is done with TLS when the peer has
//! TLS; without it, `Grpc` takes for granted that the backend speaks HTTP/2 in plain text.
//!
//! [`grpc.health.v1`]: https://github.com/grpc/grpc/blob/master/doc/health-checking.md
//!
//! # How it works
//!
//! 1. A task for each backend checks it (`check`), judges the result (`state`), and sleeps until the next (`schedule`).
//! 2. It writes the verdict to [`Verdicts`]; when the state changed, it logs one line, tells the [`Observer`] and wakes
//!    the task of the pool.
//! 3. The task of the pool has the `LoadBalancer` ask its health check, which is [`Verdicts::publisher`] and answers
//!    at once. From then on `select` leaves the backend out, or takes it in again.
//! 4. A commit goes to the service, and from there to the task of each pool, which keeps, begins and ends the tasks of
//!    its backends.
//!
//! Pingora logs that, too, as `backend 10.0.0.1:80 becomes unhealthy`, from the target `pingora_load_balancing`. Log
//! that target from `error` up to have one line for each change.

mod backend;
mod check;
mod checks;
mod config;
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
pub use metrics::Metrics;
pub use prober::Prober;
pub use schedule::{SchedulePhase, pause};
pub use settings::{CheckKind, GrpcCheck, HttpCheck, Settings, Thresholds};
pub use state::{BackendHealth, CheckOutcome, HealthVerdict, StateChange};
pub use value::{CheckCount, CheckMethod, CheckPath, CheckType, DurationText, Percent, StatusRange};
pub use verdicts::{Verdicts, registry};
