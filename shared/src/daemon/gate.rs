//! What a process that takes over waits for before it accepts: a pool that the one before it can serve must have a ready backend
//! here as well. A file with a wrong check or a wrong CA would else put a process that answers 503 in the place of one that works.
//!
//! A pool that is down for both is no hindrance, nor is one that is new.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use metrics_service::Readiness;
use pingora::server::ShutdownWatch;
use pingora::services::ServiceReadyNotifier;
use pingora::services::background::BackgroundService;
use tokio::time::{Instant, sleep};

use super::announce::{Announce, never};

/// A Pingora service that runs once, after the first health checks: who depends on it starts when the gate is passed.
pub(super) struct Gate {
    readiness: Readiness,
    /// The pools that must have a ready backend.
    wanted: Vec<String>,
    announce: Arc<Announce>,
}

/// How long after its first check a backend may take to become ready: with the defaults it takes two more checks, after five
/// seconds and one more. With longer intervals a first check that fails decides.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

// === impl Gate ===

impl Gate {
    /// One that is passed when each pool in `wanted` has a ready backend; if that takes too long, nothing is announced.
    pub(super) fn new(readiness: Readiness, wanted: Vec<String>, announce: Arc<Announce>) -> Self {
        Self { readiness, wanted, announce }
    }

    async fn pass(&self) -> Result<(), String> {
        let ends = Instant::now() + PATIENCE;
        loop {
            let unready = self.unready();
            if unready.is_empty() {
                return Ok(());
            }
            if Instant::now() >= ends {
                return Err(format!(
                    "no backend of pool {} is ready, but the process before had some: see its health_check, tls and addresses",
                    unready.join(", ")
                ));
            }
            sleep(LOOK).await;
        }
    }

    fn unready(&self) -> Vec<String> {
        let mut unready = self.readiness.pools(false);
        unready.retain(|pool| self.wanted.contains(pool));
        unready
    }
}

#[async_trait]
impl BackgroundService for Gate {
    async fn start_with_ready_notifier(&self, _shutdown: ShutdownWatch, ready: ServiceReadyNotifier) {
        match self.pass().await {
            Ok(()) => ready.notify_ready(),
            Err(problem) => {
                self.announce.refuse(&problem);
                never(ready).await;
            }
        }
    }
}
