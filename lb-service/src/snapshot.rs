//! The configuration that a request uses from beginning to end: listeners, routes and pools, in one immutable snapshot.
//!
//! A request takes the [`CurrentSnapshot`] when it begins. A reload replaces it in one step. Requests that began before
//! keep their own snapshot, which is dropped with the last of them.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::access_log::AccessLog;
use crate::counters::{ListenerTraffic, PoolTraffic, TrafficCounters};
use crate::forwarded::TrustedProxies;
use crate::listener::{Listener, ListenerId, Listeners};
use crate::pool::{Pool, PoolId};
use crate::route::RouteTable;
use crate::token::Token;

/// Listeners, routes and pools that belong together.
pub struct Snapshot {
    /// The listeners, to which clients connect.
    pub listeners: Listeners,
    /// The routes, which decide the pool of a request.
    pub routes: RouteTable,
    /// The pools, indexed by [`PoolId`].
    pub pools: Box<[Arc<Pool>]>,
    /// The peers whose `X-Forwarded-*` headers are used.
    pub trusted_proxies: TrustedProxies,
    /// The token with which any client can ask how a request was served; `None` means that only trusted proxies can.
    pub explain_token: Option<Token>,
    /// The data of each listener, indexed by [`ListenerId`].
    entries: Box<[ListenerEntry]>,
}

/// The parts of a [`Snapshot`].
pub struct SnapshotParts {
    /// The listeners, to which clients connect.
    pub listeners: Listeners,
    /// The routes, which decide the pool of a request.
    pub routes: RouteTable,
    /// The pools, indexed by [`PoolId`].
    pub pools: Vec<Arc<Pool>>,
    /// The peers whose `X-Forwarded-*` headers are used.
    pub trusted_proxies: TrustedProxies,
    /// The token with which any client can ask how a request was served; `None` means that only trusted proxies can.
    pub explain_token: Option<Token>,
    /// The access logs, one for each listener, in the order of their IDs.
    pub access_logs: Vec<AccessLog>,
}

/// The snapshot for requests that begin now. Clones share it.
#[derive(Clone)]
pub struct CurrentSnapshot(Arc<ArcSwap<Snapshot>>);

/// The data of one listener.
struct ListenerEntry {
    traffic: Arc<ListenerTraffic>,
    /// The counters of the pools, indexed by [`PoolId`].
    pools: Box<[Arc<PoolTraffic>]>,
    log: AccessLog,
}

// === impl Snapshot ===

impl Snapshot {
    /// Returns a snapshot whose requests are counted in `traffic`, under the names of its listeners and pools.
    pub fn new(parts: SnapshotParts, traffic: &TrafficCounters) -> Self {
        let SnapshotParts { listeners, routes, pools, trusted_proxies, explain_token, access_logs } = parts;
        let logs = access_logs.into_iter().chain(std::iter::repeat_with(AccessLog::off));
        let entry = |((_, listener), log): ((ListenerId, &Listener), AccessLog)| {
            let traffic = traffic.listener(&listener.name);
            let pools = pools.iter().map(|pool| traffic.pool(&pool.name)).collect();
            ListenerEntry { traffic, pools, log }
        };
        let entries = listeners.iter().zip(logs).map(entry).collect();
        Self { listeners, routes, pools: pools.into(), trusted_proxies, explain_token, entries }
    }

    /// Returns the pool with this ID, which must come from this snapshot's routes.
    #[expect(
        clippy::indexing_slicing,
        reason = "only the routes of this snapshot have ids of pools, which are checked when they are made"
    )]
    pub fn pool(&self, id: PoolId) -> &Arc<Pool> {
        &self.pools[id.0]
    }

    /// Returns the counters of the listener with this ID.
    #[expect(clippy::indexing_slicing, reason = "only the listeners of this snapshot make ids")]
    pub fn traffic(&self, id: ListenerId) -> &Arc<ListenerTraffic> {
        &self.entries[id.0].traffic
    }

    /// Returns the counters of the requests of a listener to a pool, or of those without a route if `pool` is `None`.
    #[expect(
        clippy::indexing_slicing,
        reason = "only the listeners and the routes of this snapshot make ids"
    )]
    pub fn requests(&self, listener: ListenerId, pool: Option<PoolId>) -> &PoolTraffic {
        let entry = &self.entries[listener.0];
        pool.map_or(entry.traffic.without_pool(), |pool| &entry.pools[pool.0])
    }

    /// Returns the access log of a listener.
    #[expect(clippy::indexing_slicing, reason = "only the listeners of this snapshot make ids")]
    pub fn access_log(&self, id: ListenerId) -> &AccessLog {
        &self.entries[id.0].log
    }

    /// Returns the listener that counts in `traffic`; `None` if there is none.
    pub(crate) fn listener_of(&self, traffic: &Arc<ListenerTraffic>) -> Option<ListenerId> {
        self.entries.iter().position(|entry| Arc::ptr_eq(&entry.traffic, traffic)).map(ListenerId)
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("listeners", &self.listeners).finish_non_exhaustive()
    }
}

// === impl CurrentSnapshot ===

impl CurrentSnapshot {
    /// Returns a current snapshot that begins with this one.
    pub fn new(snapshot: Snapshot) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(snapshot)))
    }

    /// Returns the snapshot for a request that begins now.
    pub fn load(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }

    /// Replaces the snapshot for requests that begin from now on.
    pub fn replace(&self, snapshot: Snapshot) {
        self.0.store(Arc::new(snapshot));
    }
}
