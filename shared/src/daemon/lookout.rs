//! Looks at the pools when an ejection ends.
//!
//! Everything else that changes which backends are available is noted by what changes it. An ejection ends by itself: without this
//! its end, and the end of a panic with it, would be noted with the next request.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use lb_service::pool::{PoolEvent, PoolObserver};
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::sync::Notify;
use tokio::time::sleep_until;

use super::Pools;

/// Passes on what happens in pools, and notices the beginning of each ejection.
pub(super) struct Alarm<O> {
    observer: O,
    ejected: Arc<Notify>,
}

/// A Pingora service that looks at the pools at the end of each ejection.
pub(super) struct Lookout {
    pools: Pools,
    ejected: Arc<Notify>,
}

// === impl Alarm ===

impl<O: PoolObserver> Alarm<O> {
    /// One that passes everything on to `observer`.
    pub(super) fn new(observer: O) -> Self {
        Self { observer, ejected: Arc::default() }
    }

    /// Raised by the beginning of an ejection.
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

    /// Looks at each pool, and says when it has to be looked at next.
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
