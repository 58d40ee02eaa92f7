//! The checks of one backend: a task that checks the backend, applies the result and sleeps, until it is ended.
//!
//! It starts from [`InitialHealth`]: nothing, the result of a staged first check, or a verdict of other settings. That
//! is applied before the task starts, so the verdict is there as soon as [`BackendChecks::begin`] returns.

use std::convert::Infallible;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use log::{debug, info, warn};
use pingora::protocols::l4::socket::SocketAddr;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::check::{Check, CheckError};
use crate::connect::Connect;
use crate::metrics::{BackendSeries, Metrics};
use crate::schedule::{SchedulePhase, pause};
use crate::settings::Settings;
use crate::state::{BackendHealth, CheckOutcome, HealthVerdict, StateChange};
use crate::verdicts::Verdicts;

/// Receives changes of health. The task that checks the backend calls it and waits until it returns.
pub trait Observer: Send + Sync {
    /// A backend of the pool with this name is now up or down.
    ///
    /// Backends count as up until their first check, so only a first check that fails is a change.
    fn changed(&self, pool: &str, backend: &str, up: bool, reason: &str);
}

/// The destinations of the results of a pool's checks.
pub(crate) struct Reports {
    pub(crate) pool: String,
    pub(crate) verdicts: Verdicts,
    pub(crate) metrics: Metrics,
    pub(crate) observer: Option<Arc<dyn Observer>>,
    /// Notified when a verdict has changed and is to be published to the balancer.
    pub(crate) changed: Notify,
}

/// The settings for the checks of a pool.
pub(crate) struct Procedure {
    pub(crate) settings: Settings,
    pub(crate) connect: Arc<dyn Connect>,
    pub(crate) check: Arc<dyn Check>,
}

/// The result of one check, with its times.
#[derive(Clone, Debug)]
pub(crate) struct CheckResult {
    started: Instant,
    took: Duration,
    ended: SystemTime,
    outcome: CheckOutcome,
}

/// The state of a backend when its task starts.
pub(crate) enum InitialHealth {
    /// Nothing. The token is dropped after the first check.
    Unchecked(Option<Pending>),
    /// The result of its first check.
    Checked(CheckResult),
    /// An earlier verdict. It stays, and the count of results starts at zero.
    Known(HealthVerdict),
}

/// A token for something that has not happened yet. The receiver ends when all clones are dropped.
pub(crate) type Pending = mpsc::Sender<Infallible>;

/// The checks of one backend.
pub(crate) struct BackendChecks {
    reports: Arc<Reports>,
    procedure: Arc<Procedure>,
    address: SocketAddr,
    label: String,
    series: Arc<BackendSeries>,
}

/// A task that is aborted when this is dropped.
pub(crate) struct Task(JoinHandle<()>);

// === impl Procedure ===

impl Procedure {
    /// Whether both check a backend in the same way.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.settings == other.settings && self.connect.is_like(&*other.connect)
    }
}

// === impl CheckResult ===

impl CheckResult {
    /// Checks the backend at `address` once.
    pub(crate) async fn make(check: &dyn Check, address: &SocketAddr) -> Self {
        let started = Instant::now();
        let checked = caught(check.check(address)).await.unwrap_or(Err(CheckError::Panicked));
        let outcome = match checked {
            Ok(()) => CheckOutcome::Passed,
            Err(error @ CheckError::Shortage(_)) => CheckOutcome::NotMade(error.to_string()),
            Err(error) => CheckOutcome::Failed(error.to_string()),
        };
        Self { started, took: started.elapsed(), ended: SystemTime::now(), outcome }
    }
}

/// Returns the output of a future; `None` if it panics. The checks of a backend go on then.
async fn caught<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        polled.map_or(Poll::Ready(None), |poll| poll.map(Some))
    })
    .await
}

// === impl InitialHealth ===

impl InitialHealth {
    /// Prefers the verdict to the `finding` of one check, which may be older.
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
    /// The checks of the backend at `address`, not started yet.
    pub(crate) fn new(reports: &Arc<Reports>, procedure: &Arc<Procedure>, address: &SocketAddr) -> Self {
        let label = label(address);
        Self {
            reports: Arc::clone(reports),
            procedure: Arc::clone(procedure),
            address: address.clone(),
            series: reports.metrics.series(&reports.pool, &label),
            label,
        }
    }

    /// Applies what is known, and starts the task.
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

    /// Checks once and applies the result. Returns the time at which the check started.
    async fn check(&self, health: &mut BackendHealth) -> Instant {
        let finding = CheckResult::make(&*self.procedure.check, &self.address).await;
        self.take_in(&finding, health);
        finding.started
    }

    fn take_in(&self, finding: &CheckResult, health: &mut BackendHealth) {
        match &finding.outcome {
            CheckOutcome::NotMade(reason) => self.warn_once(reason, health),
            outcome => self.series.checked(*outcome == CheckOutcome::Passed, finding.took),
        }
        let change = health.observe(&finding.outcome, finding.ended);
        if let Some(verdict) = health.verdict() {
            self.reports.verdicts.set(&self.address, verdict.clone());
        }
        if let Some(change) = change {
            self.announce(&change);
        }
    }

    /// Warns that a check could not be made, unless this is also the reason of the check before.
    fn warn_once(&self, reason: &str, health: &BackendHealth) {
        let earlier = health.verdict().and_then(|verdict| verdict.last_failure.as_deref());
        if earlier != Some(reason) {
            warn!("pool {}: backend {} was not checked: {reason}", self.reports.pool, self.label);
        }
    }

    fn announce(&self, change: &StateChange) {
        let (pool, address, reason) = (&self.reports.pool, &self.label, &change.reason);
        match change {
            // The balancer starts backends as up, so a first check that passes changes nothing.
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

/// Returns an address as labels and logs write it: `10.0.0.1:80` or `unix:/path`.
fn label(address: &SocketAddr) -> String {
    match address {
        SocketAddr::Inet(address) => address.to_string(),
        SocketAddr::Unix(_) => format!("unix:{address}"),
    }
}

// === impl Task ===

impl Task {
    pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(future))
    }

    /// Aborts the task and waits until it has ended, so it does nothing after this returns.
    pub(crate) async fn end(self) {
        self.0.abort();
        self.ended().await;
    }

    /// Waits until the task ends by itself.
    pub(crate) async fn ended(mut self) {
        // It has ended, whether it finished, was canceled or panicked.
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
    fn a_task_starts_from_the_verdict_otherwise_the_first_check_otherwise_nothing() {
        let beginning = |verdict, finding| InitialHealth::from(verdict, finding, None);
        assert!(matches!(beginning(Some(verdict()), Some(finding())), InitialHealth::Known(_)));
        assert!(matches!(beginning(Some(verdict()), None), InitialHealth::Known(_)));
        assert!(matches!(beginning(None, Some(finding())), InitialHealth::Checked(_)));
        assert!(matches!(beginning(None, None), InitialHealth::Unchecked(None)));
    }

    struct Buggy;

    #[async_trait::async_trait]
    impl Check for Buggy {
        async fn check(&self, _: &SocketAddr) -> Result<(), CheckError> {
            tokio::task::yield_now().await;
            panic!("a bug");
        }
    }

    #[tokio::test]
    async fn a_check_that_panics_has_failed() {
        let result = CheckResult::make(&Buggy, &"127.0.0.1:1".parse().unwrap()).await;
        assert_eq!(result.outcome, CheckOutcome::Failed(CheckError::Panicked.to_string()));
    }

    #[test]
    fn labels_are_written_as_in_the_configuration() {
        for text in ["10.0.0.1:80", "[::1]:80", "unix:/run/app.sock"] {
            assert_eq!(label(&text.parse().unwrap()), text);
        }
    }
}
