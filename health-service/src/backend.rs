//! The checks of one backend: a task that checks, judges and sleeps, until it is ended.
//!
//! It begins with what is known already: nothing, the result of a first check that somebody else made, or a verdict that
//! was reached by other settings. What is known is taken in before the task exists, so whoever begins one can rely on
//! the verdict at once.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use log::{debug, info, warn};
use pingora::protocols::l4::socket::SocketAddr;
use pingora::upstreams::peer::HttpPeer;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::check::{Check, connect_alike};
use crate::metrics::{BackendSeries, Metrics};
use crate::schedule::{SchedulePhase, pause};
use crate::settings::Settings;
use crate::state::{BackendHealth, CheckOutcome, HealthVerdict, StateChange};
use crate::verdicts::Verdicts;

/// Is told when the health of a backend changes. The task that checks the backend waits for it.
pub trait Observer: Send + Sync {
    /// A backend of the pool of this name is up or down from now on.
    ///
    /// Backends count as up until their first check: one that passes it has not changed, one that fails it has.
    fn changed(&self, pool: &str, backend: &str, up: bool, reason: &str);
}

/// Where the tasks of a pool's backends report to.
pub(crate) struct Reports {
    pub(crate) pool: String,
    pub(crate) verdicts: Verdicts,
    pub(crate) metrics: Metrics,
    pub(crate) observer: Option<Arc<dyn Observer>>,
    /// Set when a verdict has changed and the balancer does not know yet.
    pub(crate) changed: Notify,
}

/// How the backends of a pool are checked.
pub(crate) struct Procedure {
    pub(crate) settings: Settings,
    pub(crate) peer: HttpPeer,
    pub(crate) check: Arc<dyn Check>,
}

/// One check that was made, and what it found.
#[derive(Clone, Debug)]
pub(crate) struct CheckResult {
    started: Instant,
    took: Duration,
    ended: SystemTime,
    outcome: CheckOutcome,
}

/// What is known of a backend when its task begins.
pub(crate) enum InitialHealth {
    /// Nothing. The token is dropped when there is a verdict.
    Unchecked(Option<Pending>),
    /// What its first check found.
    Checked(CheckResult),
    /// The verdict so far: it stays, while the counting begins anew.
    Known(HealthVerdict),
}

/// Proof that something has not happened yet: whoever waits learns when all copies are dropped.
pub(crate) type Pending = mpsc::Sender<Infallible>;

/// What the task of one backend works with.
pub(crate) struct BackendChecks {
    reports: Arc<Reports>,
    procedure: Arc<Procedure>,
    address: SocketAddr,
    label: String,
    series: Arc<BackendSeries>,
}

/// A task that ends when this is dropped.
pub(crate) struct Task(JoinHandle<()>);

// === impl Procedure ===

impl Procedure {
    /// Whether a backend is checked in the same way by both.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.settings == other.settings && connect_alike(&self.peer, &other.peer)
    }
}

// === impl CheckResult ===

impl CheckResult {
    /// Checks the backend at `address` once.
    pub(crate) async fn make(check: &dyn Check, address: &SocketAddr) -> Self {
        let started = Instant::now();
        let outcome = match check.check(address).await {
            Ok(()) => CheckOutcome::Passed,
            Err(error) => CheckOutcome::Failed(error.to_string()),
        };
        Self { started, took: started.elapsed(), ended: SystemTime::now(), outcome }
    }
}

// === impl InitialHealth ===

impl InitialHealth {
    /// A verdict says more than the `finding` of one check, which may be older.
    pub(crate) fn from(
        verdict: Option<HealthVerdict>,
        finding: Option<CheckResult>,
        unchecked: Option<&Pending>,
    ) -> Self {
        match (verdict, finding) {
            (Some(verdict), _) => Self::Known(verdict),
            (None, Some(finding)) => Self::Checked(finding),
            (None, None) => Self::Unchecked(unchecked.cloned()),
        }
    }
}

// === impl BackendChecks ===

impl BackendChecks {
    /// The checks of the backend at `address`, which do not begin yet.
    pub(crate) fn new(reports: &Arc<Reports>, procedure: &Arc<Procedure>, address: &SocketAddr) -> Self {
        let label = address.to_string();
        Self {
            reports: Arc::clone(reports),
            procedure: Arc::clone(procedure),
            address: address.clone(),
            series: reports.metrics.series(&reports.pool, &label),
            label,
        }
    }

    /// Takes in what is known, and goes on from there in a task.
    pub(crate) fn begin(self, beginning: InitialHealth) -> Task {
        let thresholds = self.procedure.settings.thresholds;
        match beginning {
            InitialHealth::Unchecked(unchecked) => {
                Task::spawn(self.run(BackendHealth::new(thresholds), unchecked))
            }
            InitialHealth::Known(verdict) => {
                Task::spawn(self.run(BackendHealth::resumed(thresholds, verdict), None))
            }
            InitialHealth::Checked(finding) => {
                let mut health = BackendHealth::new(thresholds);
                self.take_in(&finding, &mut health);
                Task::spawn(self.go_on(health, finding.started))
            }
        }
    }

    async fn run(self, mut health: BackendHealth, unchecked: Option<Pending>) {
        let started = self.check(&mut health).await;
        drop(unchecked);
        self.go_on(health, started).await;
    }

    /// The checks after the first, which started at `started`.
    async fn go_on(self, mut health: BackendHealth, mut started: Instant) {
        let settings = &self.procedure.settings;
        let mut phase = if health.is_changing() { SchedulePhase::Changing } else { SchedulePhase::First };
        loop {
            sleep_until(started + pause(settings, phase, fastrand::f64())).await;
            started = self.check(&mut health).await;
            phase = if health.is_changing() { SchedulePhase::Changing } else { SchedulePhase::Steady };
        }
    }

    /// Checks once and takes in the result. Returns when the check started.
    async fn check(&self, health: &mut BackendHealth) -> Instant {
        let finding = CheckResult::make(&*self.procedure.check, &self.address).await;
        self.take_in(&finding, health);
        finding.started
    }

    fn take_in(&self, finding: &CheckResult, health: &mut BackendHealth) {
        self.series.checked(finding.outcome == CheckOutcome::Passed, finding.took);
        let change = health.observe(&finding.outcome, finding.ended);
        if let Some(verdict) = health.verdict() {
            self.reports.verdicts.set(&self.address, verdict.clone());
        }
        if let Some(change) = change {
            self.announce(&change);
        }
    }

    fn announce(&self, change: &StateChange) {
        let (pool, address, reason) = (&self.reports.pool, &self.label, &change.reason);
        match change {
            // The balancer takes a backend for up until told otherwise: being found up at first is no change to it.
            StateChange { up: true, first: true, .. } => {
                debug!("pool {pool}: backend {address} is up: {reason}");
                return;
            }
            StateChange { up: true, .. } => info!("pool {pool}: backend {address} is up: {reason}"),
            StateChange { up: false, .. } => warn!("pool {pool}: backend {address} is down: {reason}"),
        }
        self.series.changed();
        self.reports.changed.notify_one();
        if let Some(observer) = &self.reports.observer {
            observer.changed(pool, address, change.up, reason);
        }
    }
}

// === impl Task ===

impl Task {
    pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(future))
    }

    /// Ends the task and waits until it has, so that nothing it does comes after this.
    pub(crate) async fn end(self) {
        self.0.abort();
        self.ended().await;
    }

    /// Waits until the task ends by itself.
    pub(crate) async fn ended(mut self) {
        // Whether it finished, was cancelled or panicked: it is over.
        let _ = (&mut self.0).await;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict() -> HealthVerdict {
        HealthVerdict::entered(&CheckOutcome::Passed, "1 check passed".to_owned(), SystemTime::UNIX_EPOCH)
    }

    fn finding() -> CheckResult {
        let outcome = CheckOutcome::Failed("connection refused".to_owned());
        CheckResult { started: Instant::now(), took: Duration::ZERO, ended: SystemTime::UNIX_EPOCH, outcome }
    }

    #[test]
    fn a_task_begins_with_the_verdict_or_else_the_first_check_or_else_nothing() {
        let beginning = |verdict, finding| InitialHealth::from(verdict, finding, None);
        assert!(matches!(beginning(Some(verdict()), Some(finding())), InitialHealth::Known(_)));
        assert!(matches!(beginning(Some(verdict()), None), InitialHealth::Known(_)));
        assert!(matches!(beginning(None, Some(finding())), InitialHealth::Checked(_)));
        assert!(matches!(beginning(None, None), InitialHealth::Unchecked(None)));
    }
}
