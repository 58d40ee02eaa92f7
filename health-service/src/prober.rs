//! The background service that checks the backends of all pools.

use std::sync::Arc;

use async_trait::async_trait;
use pingora::connectors::TransportConnector;
use pingora::lb::LoadBalancer;
use pingora::lb::selection::{BackendIter, BackendSelection};
use pingora::server::ShutdownWatch;
use pingora::services::ServiceReadyNotifier;
use pingora::services::background::BackgroundService;
use pingora::upstreams::peer::HttpPeer;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::check::Checker;
use crate::metrics::Metrics;
use crate::pool::Pool;
use crate::settings::{CheckKind, Settings};
use crate::verdicts::Verdicts;

/// Checks the backends of any number of pools, each backend on its own schedule.
///
/// It signals that it is ready when every backend of every pool has had its first check, bounded by the timeout of
/// each: a listening service that depends on it begins with knowing who is up. Backends that join later count as up
/// until their first check, which begins at most 250 ms after they join. Checks end when the server shuts down.
pub struct Prober {
    metrics: Metrics,
    connector: Arc<TransportConnector>,
    pools: Vec<Arc<Pool>>,
}

// === impl Prober ===

impl Prober {
    /// A prober with no pools yet, which verifies certificates with those of the system unless a peer has its own.
    pub fn new(metrics: Metrics) -> Self {
        Self::with_connector(metrics, TransportConnector::new(None))
    }

    /// The same with a connector made by the caller, for its certificates or source addresses.
    pub fn with_connector(metrics: Metrics, connector: TransportConnector) -> Self {
        Self { metrics, connector: Arc::new(connector), pools: Vec::new() }
    }

    /// Checks the backends of `balancer` from the start of the service on, and writes what it finds to `verdicts`.
    ///
    /// `peer` says how to connect: TLS or not, SNI, certificates. Its address is a placeholder. The balancer's
    /// health check must be the publisher of the same `verdicts`, so that it learns of them; its backends are read
    /// when the service starts, so let it discover them before. A pool with [`CheckKind::None`] is left alone.
    pub fn add_pool<S>(
        &mut self,
        name: &str,
        balancer: Arc<LoadBalancer<S>>,
        settings: Settings,
        peer: HttpPeer,
        verdicts: Verdicts,
    ) where
        S: BackendSelection + Send + Sync + 'static,
        S::Iter: BackendIter,
    {
        if settings.kind == CheckKind::None {
            return;
        }
        self.pools.push(Arc::new(Pool {
            name: name.to_owned(),
            balancer,
            check: Arc::new(Checker::new(Arc::clone(&self.connector), peer, settings.clone())),
            settings,
            verdicts,
            metrics: self.metrics.clone(),
            changed: Notify::new(),
        }));
    }

    async fn run(&self, mut shutdown: ShutdownWatch, ready: Option<ServiceReadyNotifier>) {
        let (unchecked, mut all_checked) = mpsc::channel(1);
        // Dropped on return, which ends the task of each pool and with it those of its backends.
        let mut pools = JoinSet::new();
        for pool in &self.pools {
            pools.spawn(Arc::clone(pool).run(unchecked.clone()));
        }
        drop(unchecked);
        tokio::select! {
            biased;
            () = shut_down(&mut shutdown) => return,
            _ = all_checked.recv() => {}
        }
        if let Some(ready) = ready {
            ready.notify_ready();
        }
        shut_down(&mut shutdown).await;
    }
}

#[async_trait]
impl BackgroundService for Prober {
    async fn start_with_ready_notifier(&self, shutdown: ShutdownWatch, ready: ServiceReadyNotifier) {
        self.run(shutdown, Some(ready)).await;
    }

    async fn start(&self, shutdown: ShutdownWatch) {
        self.run(shutdown, None).await;
    }
}

/// Returns when shutdown is signalled.
async fn shut_down(shutdown: &mut ShutdownWatch) {
    if shutdown.wait_for(|&shutting_down| shutting_down).await.is_err() {
        // Without a sender nobody can signal any more: that is no reason to stop.
        std::future::pending::<()>().await;
    }
}
