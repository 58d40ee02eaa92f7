//! One request on its way through the pool: the very [`Dispatch`] that the proxy uses, without a proxy.

use lb_service::pool::{Dispatch, Replayability};

/// A request that has not ended.
#[derive(Debug, Default)]
pub(crate) struct Request {
    pub(crate) dispatch: Dispatch,
}

/// All requests are idempotent and without a body, over connections made for them.
pub(crate) const SENT: Replayability =
    Replayability { idempotent: true, replayable: true, response_begun: false, stale: false };
