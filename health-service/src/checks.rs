//! Changing what is checked while the [`Prober`](crate::Prober) runs.
//!
//! ```text
//! stage   the backends that nobody has checked are checked once, all at a time; nothing that runs notices
//! commit  the new set takes the place of the old one, and each balancer is told who is up
//! ```
//!
//! What is staged leaves no trace when it is dropped, because the results are in the [`StagedChecks`] value until the commit.
//! So commit first, and give requests to the new balancers after that: they know then who is up.

use std::sync::Arc;

use pingora::connectors::TransportConnector;
use pingora::lb::LoadBalancer;
use pingora::lb::selection::{BackendIter, BackendSelection};
use pingora::upstreams::peer::HttpPeer;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::backend::{CheckResult, Procedure};
use crate::check::Checker;
use crate::pool::{Balancer, FirstResults, PoolSetup};
use crate::settings::Settings;
use crate::verdicts::Verdicts;

/// Says what a running [`Prober`](crate::Prober) checks. Clones speak to the same one.
#[derive(Clone)]
pub struct Checks {
    pub(crate) connector: Arc<TransportConnector>,
    pub(crate) commits: mpsc::Sender<Commit>,
}

/// One pool, and how it is checked: the arguments of [`Prober::add_pool`](crate::Prober::add_pool).
pub struct CheckedPool {
    name: String,
    balancer: Arc<dyn Balancer>,
    settings: Settings,
    peer: HttpPeer,
    verdicts: Verdicts,
}

/// A set of pools, ready to take the place of the one that is checked. Dropped, it never was.
#[must_use = "nothing changes before the commit"]
pub struct StagedChecks {
    pub(crate) pools: Vec<(PoolSetup, FirstResults)>,
}

/// The service that checks has ended, because the server shuts down.
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
    /// Makes the first check of each backend that has no verdict, all at once.
    ///
    /// It takes as long as the slowest of them, which is at most the longest timeout of the settings. Drop the future to
    /// give up.
    pub async fn stage(&self, pools: impl IntoIterator<Item = CheckedPool>) -> StagedChecks {
        stage(pools.into_iter().map(|pool| pool.checked_by(&self.connector)).collect()).await
    }

    /// From now on these pools are checked, and no others. Returns when it is so; commits take effect in turn.
    ///
    /// A pool goes on where one of the same name with the same [`Verdicts`] was. Its backends that stay keep their
    /// schedule and count if they are checked in the same way, and otherwise their verdict. The balancer of each pool
    /// has been told all verdicts, so requests may be given to it. A predecessor of it over the same registry may go
    /// on to be used: it does not learn that backends which are gone are up again.
    ///
    /// Before the service has started, it waits for that. What is on its way is not called back by dropping the future.
    ///
    /// # Errors
    /// When the service has ended.
    pub async fn commit(&self, staged: StagedChecks) -> Result<(), Stopped> {
        let (done, is_done) = oneshot::channel();
        self.commits.send(Commit { staged, done }).await.map_err(|_| Stopped)?;
        is_done.await.map_err(|_| Stopped)
    }
}

async fn stage(pools: Vec<PoolSetup>) -> StagedChecks {
    // Dropped with this future, which ends the checks.
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
        // A check that panicked found nothing: the backend is checked once more after the commit.
        if let Ok((index, address, finding)) = done {
            pools[index].1.insert(address, finding);
        }
    }
    StagedChecks { pools }
}

// === impl CheckedPool ===

impl CheckedPool {
    /// The backends of `balancer`, which has them already, are checked by `settings`; `verdicts` has the results.
    ///
    /// [`Prober::add_pool`](crate::Prober::add_pool) says more.
    pub fn new<S>(
        name: &str,
        balancer: Arc<LoadBalancer<S>>,
        settings: Settings,
        peer: HttpPeer,
        verdicts: Verdicts,
    ) -> Self
    where
        S: BackendSelection + Send + Sync + 'static,
        S::Iter: BackendIter,
    {
        Self { name: name.to_owned(), balancer, settings, peer, verdicts }
    }

    pub(crate) fn checked_by(self, connector: &Arc<TransportConnector>) -> PoolSetup {
        let Self { name, balancer, settings, peer, verdicts } = self;
        let check = Arc::new(Checker::new(Arc::clone(connector), peer.clone(), settings.clone()));
        PoolSetup { name, balancer, verdicts, procedure: Arc::new(Procedure { settings, peer, check }) }
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

    /// Two backends that need a second and three; the second one is dead.
    fn script() -> Arc<Script> {
        let script = Script::default();
        script.answer(ONE, SECOND, Ok(()));
        script.answer(TWO, 3 * SECOND, Err(CheckError::Refused));
        Arc::new(script)
    }

    #[tokio::test(start_paused = true)]
    async fn all_first_checks_are_made_at_the_same_time_and_leave_no_verdict() {
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
    async fn only_those_that_nobody_has_checked_are_checked() {
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
    async fn whoever_gives_up_ends_the_checks() {
        let script = script();
        let web = pool("web", Settings::default(), &[ONE, TWO], &script).await;
        assert!(timeout(2 * SECOND, stage(vec![web])).await.is_err());
        tokio::time::sleep(10 * SECOND).await;
        assert_eq!(script.ends(), 1, "the slow one did not go on");
    }
}
