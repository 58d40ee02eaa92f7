//! The background service that checks the backends of all pools.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::lb::LoadBalancer;
use pingora::lb::selection::{BackendIter, BackendSelection};
use pingora::server::ShutdownWatch;
use pingora::services::ServiceReadyNotifier;
use pingora::services::background::BackgroundService;
use tokio::sync::{Notify, mpsc};

use crate::backend::{Observer, Pending, Reports};
use crate::checks::{CheckedPool, Checks, Commit, StagedChecks};
use crate::connect::Connect;
use crate::metrics::Metrics;
use crate::pool::{FirstResults, PoolSetup, PoolTask};
use crate::settings::Settings;
use crate::verdicts::Verdicts;

/// Checks the backends of any number of pools, each backend on its own schedule.
///
/// It signals readiness after the first check of every backend of every pool, which takes at most the longest timeout.
/// A listening service that depends on it thus starts with the state of each backend. Backends that join later through
/// the discovery of a balancer count as up until their first check, which starts within 250 ms. Backends that join
/// through [`Checks`] have been checked before. Checks end when the server shuts down. The service can be started only
/// once.
pub struct Prober {
    metrics: Metrics,
    observer: Option<Arc<dyn Observer>>,
    checks: Checks,
    start: Mutex<Option<Start>>,
}

/// The input of the service when it starts. The service keeps none of it, so a balancer is dropped with its pool.
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
    /// A prober without pools.
    pub fn new(metrics: Metrics) -> Self {
        let (commits, received) = mpsc::channel(1);
        let checks = Checks { commits };
        let start = Mutex::new(Some(Start { pools: Vec::new(), commits: received }));
        Self { metrics, observer: None, checks, start }
    }

    /// Sets the observer that is called when the health of a backend changes.
    #[must_use]
    pub fn observed_by(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Checks the backends of `balancer` once the service has started, and writes the results to `verdicts`.
    ///
    /// `connect` makes the connections; a program that connects with Pingora passes a [`PeerConnect`]. The health check
    /// of the balancer must be the publisher of the same `verdicts`. Its backends are read when the service starts, so
    /// they must be discovered before. A pool with [`CheckKind::None`] is not checked.
    ///
    /// [`PeerConnect`]: crate::PeerConnect
    /// [`CheckKind::None`]: crate::CheckKind::None
    pub fn add_pool<S>(
        &mut self,
        name: &str,
        balancer: Arc<LoadBalancer<S>>,
        settings: Settings,
        connect: Arc<dyn Connect>,
        verdicts: Verdicts,
    ) where
        S: BackendSelection + Send + Sync + 'static,
        S::Iter: BackendIter,
    {
        self.add(CheckedPool::new(name, balancer, settings, connect, verdicts));
    }

    /// As [`add_pool`](Self::add_pool), with its arguments as one value.
    pub fn add(&mut self, pool: CheckedPool) {
        if let Some(start) = self.start.get_mut() {
            start.pools.push(pool.setup());
        }
    }

    /// The handle that changes the pools while the service runs.
    pub fn checks(&self) -> Checks {
        self.checks.clone()
    }

    async fn run(&self, mut shutdown: ShutdownWatch, mut ready: Option<ServiceReadyNotifier>) {
        let start = self.start.lock().take();
        let Some(Start { pools, mut commits }) = start else {
            return;
        };
        // Dropping this on return ends the task of each pool, and with it the tasks of its backends.
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
                    // The caller may have stopped waiting.
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

/// Returns when shutdown is signaled.
async fn shut_down(shutdown: &mut ShutdownWatch) {
    if shutdown.wait_for(|&shutting_down| shutting_down).await.is_err() {
        // The sender is gone, so no signal can come any more. That is no reason to stop.
        std::future::pending::<()>().await;
    }
}

// === impl RunningPools ===

impl RunningPools<'_> {
    /// Continues the pools that stay, ends those that are gone, and starts those that are new.
    async fn change(&mut self, staged: StagedChecks) {
        let mut staged = staged.pools;
        for task in std::mem::take(&mut self.tasks) {
            match staged.iter().position(|(pool, _)| task.is_continued_by(pool)) {
                Some(index) => {
                    let (pool, findings) = staged.swap_remove(index);
                    task.continue_with(pool, findings).await;
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
            // If it was checked until now, all of its backends count as up again.
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
