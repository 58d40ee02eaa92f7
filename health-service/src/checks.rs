//! Changes of the checked pools while the [`Prober`](crate::Prober) runs.
//!
//! ```text
//! stage   checks each backend without a verdict once, all in parallel; changes nothing that runs
//! commit  replaces the old set of pools with the new one, and publishes the verdicts to each balancer
//! ```
//!
//! Dropping [`StagedChecks`] has no effect, because it holds the results until the commit. Commit before the new
//! balancers get requests: after the commit they have the state of each backend.

use std::sync::Arc;

use pingora::lb::LoadBalancer;
use pingora::lb::selection::{BackendIter, BackendSelection};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::backend::{CheckResult, Procedure};
use crate::check::Checker;
use crate::connect::Connect;
use crate::pool::{Balancer, FirstResults, PoolSetup};
use crate::settings::Settings;
use crate::verdicts::Verdicts;

/// Controls what a running [`Prober`](crate::Prober) checks. Clones control the same prober.
#[derive(Clone)]
pub struct Checks {
    pub(crate) commits: mpsc::Sender<Commit>,
}

/// A pool and its checks: the arguments of [`Prober::add_pool`](crate::Prober::add_pool).
pub struct CheckedPool {
    name: String,
    balancer: Arc<dyn Balancer>,
    settings: Settings,
    connect: Arc<dyn Connect>,
    verdicts: Verdicts,
}

/// A set of pools that is ready to replace the current one. Dropping it has no effect.
#[must_use = "staged checks have no effect without a commit"]
pub struct StagedChecks {
    pub(crate) pools: Vec<(PoolSetup, FirstResults)>,
}

/// The prober has ended because the server shuts down.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the health checks have ended")]
pub struct Stopped;

/// A set of pools on its way to the service.
pub(crate) struct Commit {
    pub(crate) staged: StagedChecks,
    pub(crate) done: oneshot::Sender<()>,
}

// === impl Checks ===

impl Checks {
    /// Checks each backend without a verdict once, all in parallel.
    ///
    /// This takes as long as the slowest check, at most the longest timeout of the settings. Dropping the future ends
    /// the checks.
    pub async fn stage(&self, pools: impl IntoIterator<Item = CheckedPool>) -> StagedChecks {
        stage(pools.into_iter().map(CheckedPool::setup).collect()).await
    }

    /// Checks these pools from now on, and no others. Returns when this is in effect; commits take effect in order.
    ///
    /// A pool continues an earlier one of the same name with the same [`Verdicts`]. Backends that stay keep their
    /// schedule and their count of results if they are checked in the same way; otherwise they keep their verdict only.
    /// The verdicts have been published to the balancer of each pool, so requests may use it. An earlier balancer with
    /// the same registry may stay in use: backends that were down when they left stay down in it.
    ///
    /// If the service has not started yet, this waits until it has. Dropping the future does not cancel the commit.
    ///
    /// # Errors
    /// When the service has ended.
    pub async fn commit(&self, staged: StagedChecks) -> Result<(), Stopped> {
        let (done, is_done) = oneshot::channel();
        self.commits.send(Commit { staged, done }).await.map_err(|_| Stopped)?;
        is_done.await.map_err(|_| Stopped)
    }
}

#[expect(clippy::indexing_slicing, reason = "the indexes are those of the same pools")]
async fn stage(pools: Vec<PoolSetup>) -> StagedChecks {
    // Dropping this future drops the set, which ends the checks.
    let mut checks = JoinSet::new();
    for (index, pool) in pools.iter().enumerate() {
        for address in pool.unchecked() {
            let check = Arc::clone(&pool.procedure.check);
            checks.spawn(async move {
                let finding = CheckResult::make(&*check, &address).await;
                (index, address, finding)
            });
        }
    }
    let mut pools: Vec<_> = pools.into_iter().map(|pool| (pool, FirstResults::new())).collect();
    while let Some(done) = checks.join_next().await {
        // Without a result, the backend is checked again after the commit.
        if let Ok((index, address, finding)) = done {
            pools[index].1.insert(address, finding);
        }
    }
    StagedChecks { pools }
}

// === impl CheckedPool ===

impl CheckedPool {
    /// A pool whose backends, which `balancer` has already discovered, are checked with `settings`. The results go to
    /// `verdicts`. See [`Prober::add_pool`](crate::Prober::add_pool).
    pub fn new<S>(
        name: &str,
        balancer: Arc<LoadBalancer<S>>,
        settings: Settings,
        connect: Arc<dyn Connect>,
        verdicts: Verdicts,
    ) -> Self
    where
        S: BackendSelection + Send + Sync + 'static,
        S::Iter: BackendIter,
    {
        Self { name: name.to_owned(), balancer, settings, connect, verdicts }
    }

    pub(crate) fn setup(self) -> PoolSetup {
        let Self { name, balancer, settings, connect, verdicts } = self;
        let check = Arc::new(Checker::new(Arc::clone(&connect), settings.clone()));
        PoolSetup { name, balancer, verdicts, procedure: Arc::new(Procedure { settings, connect, check }) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::check::CheckError;
    use crate::membership::members;
    use crate::script::{Script, addr, procedure};
    use crate::settings::CheckKind;
    use crate::verdicts::registry;

    const ONE: &str = "10.0.0.1:80";
    const TWO: &str = "10.0.0.2:80";
    const SECOND: Duration = Duration::from_secs(1);

    async fn pool(
        name: &str,
        settings: Settings,
        backends: &[&'static str],
        script: &Arc<Script>,
    ) -> PoolSetup {
        PoolSetup {
            name: name.to_owned(),
            balancer: members(backends, &registry()).await,
            verdicts: Verdicts::new(),
            procedure: procedure(settings, script),
        }
    }

    /// Two backends, whose checks take one second and three seconds. The second backend refuses connections.
    fn script() -> Arc<Script> {
        let script = Script::default();
        script.set(ONE, SECOND, Ok(()));
        script.set(TWO, 3 * SECOND, Err(CheckError::Refused));
        Arc::new(script)
    }

    #[tokio::test(start_paused = true)]
    async fn staging_checks_all_backends_in_parallel_and_writes_no_verdict() {
        let script = script();
        let web = pool("web", Settings::default(), &[ONE, TWO], &script).await;
        let api = pool("api", Settings::default(), &[TWO], &script).await;
        let begun = Instant::now();
        let staged = stage(vec![web.clone(), api]).await;
        assert_eq!(begun.elapsed().as_secs(), 3);
        let found: Vec<usize> = staged.pools.iter().map(|(_, findings)| findings.len()).collect();
        assert_eq!(found, [2, 1]);
        assert_eq!((web.verdicts.get(&addr(ONE)), web.verdicts.get(&addr(TWO))), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn staging_checks_only_backends_without_a_verdict() {
        let script = script();
        let web = pool("web", Settings::default(), &[ONE, TWO], &script).await;
        let known = crate::HealthVerdict {
            up: true,
            reason: "1 check passed".to_owned(),
            since: std::time::SystemTime::UNIX_EPOCH,
            checked: std::time::SystemTime::UNIX_EPOCH,
            last_failure: None,
        };
        web.verdicts.set(&addr(TWO), known);
        let unchecked = Settings { kind: CheckKind::None, ..Settings::default() };
        let left_alone = pool("static", unchecked, &[TWO], &script).await;
        let staged = stage(vec![web, left_alone]).await;
        assert!(staged.pools[0].1.contains_key(&addr(ONE)) && staged.pools[0].1.len() == 1);
        assert!(staged.pools[1].1.is_empty());
        assert!(script.starts(TWO).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn dropping_the_stage_ends_its_checks() {
        let script = script();
        let web = pool("web", Settings::default(), &[ONE, TWO], &script).await;
        assert!(timeout(2 * SECOND, stage(vec![web])).await.is_err());
        tokio::time::sleep(10 * SECOND).await;
        assert_eq!(script.ends(), 1, "the slow check did not continue");
    }
}
