//! The background service that checks the backends of all pools.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::connectors::TransportConnector;
use pingora::lb::LoadBalancer;
use pingora::lb::selection::{BackendIter, BackendSelection};
use pingora::server::ShutdownWatch;
use pingora::services::ServiceReadyNotifier;
use pingora::services::background::BackgroundService;
use pingora::upstreams::peer::HttpPeer;
use tokio::sync::{Notify, mpsc};

use crate::backend::{Observer, Pending, Reports};
use crate::checks::{CheckedPool, Checks, Commit, StagedChecks};
use crate::metrics::Metrics;
use crate::pool::{FirstResults, PoolSetup, PoolTask};
use crate::settings::Settings;
use crate::verdicts::Verdicts;

/// Checks the backends of any number of pools, each backend on its own schedule.
///
/// It signals that it is ready when every backend of every pool has had its first check, bounded by the timeout of
/// each: a listening service that depends on it begins with knowing who is up. Backends that join later, by the
/// discovery of a balancer, count as up until their first check, which begins at most 250 ms after they join. Those that
/// join by [`Checks`] have had it before. Checks end when the server shuts down. It starts once.
pub struct Prober {
    metrics: Metrics,
    observer: Option<Arc<dyn Observer>>,
    checks: Checks,
    start: Mutex<Option<Start>>,
}

/// What the service takes over when it starts. It keeps nothing of it, so that a balancer lives no longer than its pool.
struct Start {
    pools: Vec<PoolSetup>,
    commits: mpsc::Receiver<Commit>,
}

/// The pools that are checked.
struct RunningPools<'a> {
    prober: &'a Prober,
    tasks: Vec<PoolTask>,
}

// === impl Prober ===

impl Prober {
    /// A prober with no pools yet, which verifies certificates with those of the system unless a peer has its own.
    pub fn new(metrics: Metrics) -> Self {
        Self::with_connector(metrics, TransportConnector::new(None))
    }

    /// The same with a connector made by the caller, for its certificates or source addresses.
    pub fn with_connector(metrics: Metrics, connector: TransportConnector) -> Self {
        let (commits, received) = mpsc::channel(1);
        let checks = Checks { connector: Arc::new(connector), commits };
        let start = Mutex::new(Some(Start { pools: Vec::new(), commits: received }));
        Self { metrics, observer: None, checks, start }
    }

    /// The same, and whoever is told when the health of a backend changes.
    #[must_use]
    pub fn observed_by(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Checks the backends of `balancer` from the start of the service on, and writes what it finds to `verdicts`.
    ///
    /// `peer` says how to connect: TLS or not, SNI, certificates. Its address is a placeholder. The balancer's
    /// health check must be the publisher of the same `verdicts`, so that it learns of them; its backends are read
    /// when the service starts, so let it discover them before. A pool with [`CheckKind::None`] is not checked.
    ///
    /// [`CheckKind::None`]: crate::CheckKind::None
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
        self.add(CheckedPool::new(name, balancer, settings, peer, verdicts));
    }

    /// The same.
    pub fn add(&mut self, pool: CheckedPool) {
        let pool = pool.checked_by(&self.checks.connector);
        if let Some(start) = self.start.get_mut() {
            start.pools.push(pool);
        }
    }

    /// What changes the pools while the service runs.
    pub fn checks(&self) -> Checks {
        self.checks.clone()
    }

    async fn run(&self, mut shutdown: ShutdownWatch, mut ready: Option<ServiceReadyNotifier>) {
        let start = self.start.lock().take();
        let Some(Start { pools, mut commits }) = start else {
            return;
        };
        // Dropped on return, which ends the task of each pool and with it those of its backends.
        let mut running = RunningPools { prober: self, tasks: Vec::new() };
        let (unchecked, mut all_checked) = mpsc::channel(1);
        for pool in pools {
            running.begin(pool, FirstResults::new(), Some(&unchecked)).await;
        }
        drop(unchecked);
        let mut is_first_round = true;
        loop {
            tokio::select! {
                biased;
                () = shut_down(&mut shutdown) => return,
                _ = all_checked.recv(), if is_first_round => {
                    is_first_round = false;
                    if let Some(ready) = ready.take() {
                        ready.notify_ready();
                    }
                }
                Some(Commit { staged, done }) = commits.recv() => {
                    running.change(staged).await;
                    // Whoever committed may have lost interest.
                    let _ = done.send(());
                }
            }
        }
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

// === impl RunningPools ===

impl RunningPools<'_> {
    /// Pools that stay go on, those that are gone end, and those that are new begin.
    async fn change(&mut self, staged: StagedChecks) {
        let mut staged = staged.pools;
        for task in std::mem::take(&mut self.tasks) {
            match staged.iter().position(|(pool, _)| task.is_continued_by(pool)) {
                Some(index) => {
                    let (pool, findings) = staged.swap_remove(index);
                    task.succeed(pool, findings).await;
                    self.tasks.push(task);
                }
                None => task.end().await,
            }
        }
        for (pool, findings) in staged {
            self.begin(pool, findings, None).await;
        }
    }

    async fn begin(&mut self, pool: PoolSetup, findings: FirstResults, first_round: Option<&Pending>) {
        if !pool.is_checked() {
            // It may have been until now: then all of its backends count as up again.
            return pool.balancer.publish().await;
        }
        let reports = Reports {
            pool: pool.name.clone(),
            verdicts: pool.verdicts.clone(),
            metrics: self.prober.metrics.clone(),
            observer: self.prober.observer.clone(),
            changed: Notify::new(),
        };
        self.tasks.push(PoolTask::begin(reports, pool, findings, first_round.cloned()).await);
    }
}
