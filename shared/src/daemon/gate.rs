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
use crate::process::sockets::Sockets;

/// A Pingora service that runs once, after the first health checks: who depends on it starts when the gate is passed.
pub(super) struct Gate {
    /// The pools that have no ready backend now.
    unready: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// The pools that must have one.
    wanted: Vec<String>,
    /// Told why the gate is not passed.
    refuse: Box<dyn Fn(&str) + Send + Sync>,
    /// Those that listen only when the gate is passed.
    sockets: Option<Arc<Sockets>>,
}

/// How long after its first check a backend may take to become ready: with the defaults it takes two more checks, after five
/// seconds and one more. With longer intervals a first check that fails decides.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

// === impl Gate ===

impl Gate {
    /// One that is passed when each pool in `wanted` has a ready backend; if that takes too long, nothing is announced.
    pub(super) fn new(readiness: Readiness, wanted: Vec<String>, announce: Arc<Announce>) -> Self {
        let unready = Box::new(move || readiness.pools(false));
        Self { unready, wanted, refuse: Box::new(move |problem| announce.refuse(problem)), sockets: None }
    }

    /// The same, for addresses that overlap with those of the old process: they listen when the gate is passed.
    pub(super) fn opening(self, sockets: Arc<Sockets>) -> Self {
        Self { sockets: Some(sockets), ..self }
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
                (self.refuse)(&problem);
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

    /// Whether who depends on the gate has started after an hour, when `down` has no ready backend for so long, and what was refused.
    async fn after_an_hour(down: &'static str, recovery: Duration) -> (bool, Vec<String>) {
        let began = Instant::now();
        let refused = Arc::new(Mutex::new(Vec::new()));
        let told = refused.clone();
        let gate = Gate {
            unready: Box::new(move || {
                [down].map(str::to_owned).into_iter().filter(|_| began.elapsed() < recovery).collect()
            }),
            wanted: vec!["web".to_owned(), "api".to_owned()],
            refuse: Box::new(move |problem| told.lock().unwrap().push(problem.to_owned())),
            sockets: None,
        };
        let (ready, is_ready) = watch::channel(false);
        let (_stop, shutdown) = watch::channel(false);
        let mut started = gate.start_with_ready_notifier(shutdown, ServiceReadyNotifier::new(ready));
        // Looked at while a gate that is refused still stands: it is over when the gate is passed.
        let _ = timeout(HOUR, &mut started).await;
        let seen = *is_ready.borrow();
        let refused = refused.lock().unwrap().clone();
        (seen, refused)
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_when_each_wanted_pool_is_ready() {
        assert_eq!(after_an_hour("web", Duration::ZERO).await, (true, vec![]));
        assert_eq!(after_an_hour("web", PATIENCE / 2).await, (true, vec![]));
        assert_eq!(after_an_hour("new", HOUR * 2).await, (true, vec![]), "nobody waits for this one");
    }

    #[tokio::test(start_paused = true)]
    async fn it_stays_shut_when_one_is_not_ready_in_time() {
        let (is_open, refused) = after_an_hour("api", PATIENCE * 2).await;
        assert!(!is_open, "who depends on it has started");
        assert!(refused.len() == 1 && refused[0].contains("pool api"), "{refused:?}");
    }
}
