//! Check of the pools at the end of each ejection.
//!
//! Every other change of available backends is recorded by the code that makes it. An ejection ends by the passage of
//! time: without this module, its end and the end of a panic would be recorded only with the next request.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use lb_service::pool::{PoolEvent, PoolObserver};
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::sync::Notify;
use tokio::time::sleep_until;

use crate::serving::Pools;

/// Observer that forwards the events of pools, and reports the start of each ejection.
pub(super) struct Alarm<O> {
    observer: O,
    ejected: Arc<Notify>,
}

/// Pingora service that checks the pools at the end of each ejection.
pub(super) struct Lookout {
    pools: Pools,
    ejected: Arc<Notify>,
}

// === impl Alarm ===

impl<O: PoolObserver> Alarm<O> {
    /// Returns an observer that forwards everything to `observer`.
    pub(super) fn new(observer: O) -> Self {
        Self { observer, ejected: Arc::default() }
    }

    /// Returns the observer that receives the events.
    pub(super) fn observer(&self) -> &O {
        &self.observer
    }

    /// Returns the notification of a started ejection.
    pub(super) fn ejected(&self) -> Arc<Notify> {
        self.ejected.clone()
    }
}

impl<O: PoolObserver> PoolObserver for Alarm<O> {
    fn observe(&self, pool: &str, event: &PoolEvent<'_>) {
        self.observer.observe(pool, event);
        if matches!(event, PoolEvent::Ejected { .. }) {
            self.ejected.notify_one();
        }
    }
}

// === impl Lookout ===

impl Lookout {
    pub(super) fn new(pools: Pools, ejected: Arc<Notify>) -> Self {
        Self { pools, ejected }
    }

    async fn run(&self) {
        loop {
            match self.next_return() {
                None => self.ejected.notified().await,
                Some(at) => tokio::select! {
                    () = sleep_until(at.into()) => {}
                    () = self.ejected.notified() => {}
                },
            }
        }
    }

    /// Checks each pool, and returns the time of the next check; `None` if there is no ejection.
    fn next_return(&self) -> Option<Instant> {
        let now = Instant::now();
        self.pools.now().iter().filter_map(|checked| checked.pool.next_return(now)).min()
    }
}

#[async_trait]
impl BackgroundService for Lookout {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        tokio::select! {
            () = self.run() => {}
            _ = shutdown.wait_for(|ends| *ends) => {}
        }
    }
}
