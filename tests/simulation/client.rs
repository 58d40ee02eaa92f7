//! One request in its pool, with the same [`Dispatch`] that the proxy uses.

use lb_service::pool::{Dispatch, Replayability};

/// A request in progress.
#[derive(Debug, Default)]
pub(crate) struct Request {
    pub(crate) dispatch: Dispatch,
}

/// The replayability of all requests: they are idempotent and without a body, over new connections.
pub(crate) const SENT: Replayability = Replayability {
    idempotent: true,
    replayable: true,
    response_begun: false,
    stale: false,
    nothing_sent: false,
};
