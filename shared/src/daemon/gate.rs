//! Gate of an upgrade: the new process accepts connections only when each pool that was ready in the old process has a
//! ready backend. Otherwise, a file with a wrong health check or a wrong CA would replace a process that works by one
//! that responds with 503.
//!
//! A pool that is down in both processes does not block the upgrade, nor does a new pool. The gate also opens if the
//! old process has ended: a process that responds with 503 is better than none.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use metrics_service::Readiness;
use pingora::server::ShutdownWatch;
use pingora::services::ServiceReadyNotifier;
use pingora::services::background::BackgroundService;
use tokio::time::{Instant, sleep};

use super::announce::{Announce, never};
use crate::process::other::OtherProcess;
use crate::process::sockets::Sockets;

/// Pingora service that runs once, after the first health checks. Dependent services start when the gate opens.
pub(super) struct Gate {
    /// Function that returns the pools without a ready backend.
    unready: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// The pools that must have a ready backend.
    wanted: Vec<String>,
    /// Function that receives the reason when the gate does not open.
    cancel: Box<dyn Fn(&str) + Send + Sync>,
    /// Function that returns whether the old process has ended.
    is_alone: Box<dyn Fn() -> bool + Send + Sync>,
    /// The sockets that start to listen when the gate opens; `None` if there are none.
    sockets: Option<Arc<Sockets>>,
}

/// Time that a backend has to become ready after its first check. With the defaults it takes two more checks, the first
/// after five seconds and the second one second later. With longer intervals a failed first check decides.
const LIMIT: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

// === impl Gate ===

impl Gate {
    /// Returns a gate that opens when each pool in `wanted` has a ready backend. If that takes too long, the
    /// announcement is cancelled.
    pub(super) fn new(readiness: Readiness, wanted: Vec<String>, announce: Arc<Announce>) -> Self {
        let unready = Box::new(move || readiness.pools(false));
        let cancel = Box::new(move |problem: &str| announce.cancel(problem));
        Self { unready, wanted, cancel, is_alone: Box::new(|| false), sockets: None }
    }

    /// Sets the old process. The gate opens if it ends. `None` means that there is no old process.
    pub(super) fn beside(self, old: Option<OtherProcess>) -> Self {
        let Some(old) = old else { return self };
        Self { is_alone: Box::new(move || old.has_ended()), ..self }
    }

    /// Adds sockets that start to listen when the gate opens, because their addresses overlap with those of the old
    /// process.
    pub(super) fn opening(self, sockets: Arc<Sockets>) -> Self {
        Self { sockets: Some(sockets), ..self }
    }

    async fn pass(&self) -> Result<(), String> {
        let ends = Instant::now() + LIMIT;
        loop {
            let unready = self.unready();
            if unready.is_empty() {
                return Ok(());
            }
            let pools = unready.join(", ");
            if (self.is_alone)() {
                log::warn!("upgrade: no backend of pool {pools} is ready, but the old process has ended");
                return Ok(());
            }
            if Instant::now() >= ends {
                return Err(format!(
                    "no backend of pool {pools} is ready, although the old process had one: check its `health_check`, `tls` and addresses"
                ));
            }
            sleep(LOOK).await;
        }
    }

    fn unready(&self) -> Vec<String> {
        let mut unready = (self.unready)();
        unready.retain(|pool| self.wanted.contains(pool));
        unready
    }
}

#[async_trait]
impl BackgroundService for Gate {
    async fn start_with_ready_notifier(&self, _shutdown: ShutdownWatch, ready: ServiceReadyNotifier) {
        let open = || self.sockets.as_ref().map_or(Ok(()), |sockets| sockets.listen_beside());
        match self.pass().await.and_then(|()| open().map_err(|error| error.to_string())) {
            Ok(()) => ready.notify_ready(),
            Err(problem) => {
                (self.cancel)(&problem);
                never(ready).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::sync::watch;
    use tokio::time::timeout;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Returns whether dependent services have started after an hour if the pool `down` is not ready for the time
    /// `recovery`, and the reported reasons.
    async fn after_an_hour(down: &'static str, recovery: Duration) -> (bool, Vec<String>) {
        after_an_hour_beside(|| false, down, recovery).await
    }

    /// Returns the result of [`after_an_hour`] if `is_alone` returns whether the old process has ended.
    async fn after_an_hour_beside(
        is_alone: impl Fn() -> bool + Send + Sync + 'static,
        down: &'static str,
        recovery: Duration,
    ) -> (bool, Vec<String>) {
        let began = Instant::now();
        let cancelled = Arc::new(Mutex::new(Vec::new()));
        let record = cancelled.clone();
        let gate = Gate {
            unready: Box::new(move || {
                [down].map(str::to_owned).into_iter().filter(|_| began.elapsed() < recovery).collect()
            }),
            wanted: vec!["web".to_owned(), "api".to_owned()],
            cancel: Box::new(move |problem| record.lock().unwrap().push(problem.to_owned())),
            is_alone: Box::new(is_alone),
            sockets: None,
        };
        let (ready, is_ready) = watch::channel(false);
        let (_stop, shutdown) = watch::channel(false);
        let mut started = gate.start_with_ready_notifier(shutdown, ServiceReadyNotifier::new(ready));
        // A gate that does not open never returns, so this waits for an hour at most.
        let _ = timeout(HOUR, &mut started).await;
        let seen = *is_ready.borrow();
        let cancelled = cancelled.lock().unwrap().clone();
        (seen, cancelled)
    }

    #[tokio::test(start_paused = true)]
    async fn the_gate_opens_when_each_wanted_pool_is_ready() {
        assert_eq!(after_an_hour("web", Duration::ZERO).await, (true, vec![]));
        assert_eq!(after_an_hour("web", LIMIT / 2).await, (true, vec![]));
        assert_eq!(
            after_an_hour("new", HOUR * 2).await,
            (true, vec![]),
            "a new pool does not block the gate"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_gate_stays_closed_if_a_pool_is_not_ready_in_time() {
        let (is_open, cancelled) = after_an_hour("api", LIMIT * 2).await;
        assert!(!is_open, "dependent services have started");
        assert!(cancelled.len() == 1 && cancelled[0].contains("pool api"), "{cancelled:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_gate_opens_for_any_pool_if_the_old_process_has_ended() {
        assert_eq!(after_an_hour_beside(|| true, "api", HOUR * 2).await, (true, vec![]));
    }
}
