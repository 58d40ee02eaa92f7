//! What a request is served by: one immutable snapshot, taken at its start and kept to its end.
//!
//! [`Current`] is the one that new requests take. A reload puts another in its place, in one step; requests that began before
//! go on with theirs, and it is dropped with the last of them.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::access_log::AccessLog;
use crate::explain::Token;
use crate::forwarded::TrustedProxies;
use crate::listener::{Listener, ListenerId, Listeners};
use crate::pool::{Pool, PoolId};
use crate::route::RouteTable;
use crate::traffic::{ListenerTraffic, PoolTraffic, Traffic};

/// Listeners, routes and pools that belong together.
pub struct Plan {
    /// Where clients connect.
    pub listeners: Listeners,
    /// Which pool a request goes to.
    pub routes: RouteTable,
    /// Indexed by [`PoolId`].
    pub pools: Box<[Arc<Pool>]>,
    /// Whose `X-Forwarded-*` headers are believed.
    pub trusted_proxies: TrustedProxies,
    /// With which anybody may ask how a request was served; absent: only trusted proxies may.
    pub explain_token: Option<Token>,
    /// Indexed by [`ListenerId`].
    entries: Box<[Entry]>,
}

/// What a plan is made of.
pub struct Parts {
    /// Where clients connect.
    pub listeners: Listeners,
    /// Which pool a request goes to.
    pub routes: RouteTable,
    /// Indexed by [`PoolId`].
    pub pools: Vec<Arc<Pool>>,
    /// Whose `X-Forwarded-*` headers are believed.
    pub trusted_proxies: TrustedProxies,
    /// With which anybody may ask how a request was served; absent: only trusted proxies may.
    pub explain_token: Option<Token>,
    /// One for each listener, in the order of their ids.
    pub access_logs: Vec<AccessLog>,
}

/// The plan for requests that begin now. Clones share it.
#[derive(Clone)]
pub struct Current(Arc<ArcSwap<Plan>>);

/// What goes with a listener.
struct Entry {
    traffic: Arc<ListenerTraffic>,
    /// Indexed by [`PoolId`].
    pools: Box<[Arc<PoolTraffic>]>,
    log: AccessLog,
}

// === impl Plan ===

impl Plan {
    /// A plan whose requests are counted in `traffic`, under the names of its listeners and pools.
    pub fn new(parts: Parts, traffic: &Traffic) -> Self {
        let Parts { listeners, routes, pools, trusted_proxies, explain_token, access_logs } = parts;
        let logs = access_logs.into_iter().chain(std::iter::repeat_with(AccessLog::off));
        let entry = |((_, listener), log): ((ListenerId, &Listener), AccessLog)| {
            let traffic = traffic.listener(&listener.name);
            let pools = pools.iter().map(|pool| traffic.pool(&pool.name)).collect();
            Entry { traffic, pools, log }
        };
        let entries = listeners.iter().zip(logs).map(entry).collect();
        Self { listeners, routes, pools: pools.into(), trusted_proxies, explain_token, entries }
    }

    /// The pool with this id, which must come from this plan's routes.
    pub fn pool(&self, id: PoolId) -> &Arc<Pool> {
        &self.pools[id.0]
    }

    /// What the listener with this id counts.
    pub fn traffic(&self, id: ListenerId) -> &Arc<ListenerTraffic> {
        &self.entries[id.0].traffic
    }

    /// The requests of a listener to a pool, or those that no route sent anywhere.
    pub fn requests(&self, listener: ListenerId, pool: Option<PoolId>) -> &PoolTraffic {
        let entry = &self.entries[listener.0];
        pool.map_or(entry.traffic.without_pool(), |pool| &entry.pools[pool.0])
    }

    /// Where requests of a listener are written down.
    pub fn access_log(&self, id: ListenerId) -> &AccessLog {
        &self.entries[id.0].log
    }

    /// The listener that counts in `traffic`.
    pub(crate) fn listener_of(&self, traffic: &Arc<ListenerTraffic>) -> Option<ListenerId> {
        self.entries.iter().position(|entry| Arc::ptr_eq(&entry.traffic, traffic)).map(ListenerId)
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("listeners", &self.listeners).finish_non_exhaustive()
    }
}

// === impl Current ===

impl Current {
    /// This plan, until another takes its place.
    pub fn new(plan: Plan) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(plan)))
    }

    /// The plan for a request that begins now.
    pub fn plan(&self) -> Arc<Plan> {
        self.0.load_full()
    }

    /// From now on requests are served by `plan`.
    pub fn replace(&self, plan: Plan) {
        self.0.store(Arc::new(plan));
    }
}
