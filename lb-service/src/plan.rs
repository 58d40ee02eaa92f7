//! What a request is served by: one immutable snapshot, taken at its start and kept to its end.

use std::sync::Arc;

use crate::forwarded::TrustedProxies;
use crate::listener::Listeners;
use crate::pool::{Pool, PoolId};
use crate::route::RouteTable;

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
}

impl Plan {
    /// The pool with this id, which must come from this plan's routes.
    pub fn pool(&self, id: PoolId) -> &Arc<Pool> {
        &self.pools[id.0]
    }
}
