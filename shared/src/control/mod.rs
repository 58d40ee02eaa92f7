//! The control socket: HTTP/1.1 with JSON inside, on a Unix socket that only the daemon's user and root can open.
//!
//! ```text
//! GET    /v1/status                                     as /api/v1/status
//! GET    /v1/events?after=N&process=PID&wait=SECONDS    {"process": PID, "events": […]}: the events after number N
//!                                                       of the process PID; waits for one, at most 60 s
//! GET    /v1/predecessors                               {"sockets": […]}: the sockets of old processes that drain
//! GET    /v1/explain?host=H&path=P&…                    as /api/v1/explain
//! GET    /v1/explain/text?…                             {"text": "…"}: the explanation as text
//! GET    /v1/explain/token                              {"token": "…"}: for the header X-Lb-Explain of a request
//! GET    /v1/log_level                                  {"filter": "info"}
//! PUT    /v1/log_level                                  {"filter": "debug"}
//! POST   /v1/reload                                     {"dry_run": false, "keep_runtime": false}
//! POST   /v1/upgrade
//! POST   /v1/stop                                       {"now": false}: drains and ends; responds at the end with
//!                                                       {"pid": PID, "reason": "drained", "cut": 0,
//!                                                       "handed_over": false}, and closes with the process
//! POST   /v1/pools/POOL/backends                        {"address": "10.0.0.1:80", "weight": 1, "backup": false,
//!                                                       "max_requests": 9}
//! DELETE /v1/pools/POOL/backends/ADDRESS
//! PUT    /v1/pools/POOL/backends/ADDRESS/weight         {"weight": 3}
//! POST   /v1/pools/POOL/backends/ADDRESS/drain          also undrain, enable, disable
//! GET    /v1/pools/POOL/backends/ADDRESS/idle?wait=S    200 when the backend is idle, or 408 after S seconds
//! ```
//!
//! The header `Lb-Config-File` contains the percent-encoded canonical path of a configuration file. A daemon with
//! another file rejects such a request with 421.
//!
//! Status 200 means that the request was executed or that there was nothing to change, 400 that it is invalid, and 409
//! that it was refused and nothing changed; 404, 405 and 413 have their usual meaning. The response to a change is a
//! [`ChangeResult`]. `curl --unix-socket PATH http://localhost/v1/status` works.
//!
//! A connection carries one request: each response contains `Connection: close`. A body has at most 64 KiB and must
//! arrive within 10 s. The daemon executes up to 64 requests at a time. In addition, up to 512 requests can wait (for
//! an event or for an idle backend); they end when their client disconnects. A change continues after its client has
//! disconnected.
//!
//! - [`predecessors`] finds and queries old processes.
//! - [`api`] parses requests: a plain function from method, path, query and body to a [`Call`].
//! - [`bodies`] are the JSON bodies of requests and responses.
//! - [`server`] executes calls through [`Operations`], and is the only module that uses the socket.
//! - [`farewell`] sends the response to a stop.
//! - [`find`] selects the daemon for a subcommand, and `others` lists the ones that run.
//! - [`client`] sends the requests of subcommands.

pub(crate) mod api;
pub(crate) mod bodies;
pub(crate) mod client;
pub(crate) mod farewell;
pub(crate) mod find;
mod others;
pub(crate) mod predecessors;
pub(crate) mod server;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use async_trait::async_trait;
use lb_service::pool::UpstreamAddress;
use nix::unistd::Uid;

pub(crate) use client::Client;
pub(crate) use farewell::{Farewell, Farewells};
pub(crate) use server::{ControlService, DrainingSocket};

use crate::events::Events;
use crate::operator::{ChangeResult, Order, Reload};

/// Returns whether a process of this user is accepted as peer of a control socket: root, or the user of this process.
fn is_trusted(peer: u32) -> bool {
    let peer = Uid::from_raw(peer);
    peer.is_root() || peer == Uid::effective()
}

/// Operations that the control socket offers.
#[async_trait]
pub(crate) trait Operations: Send + Sync {
    /// Reloads the configuration file.
    async fn reload(&self, reload: Reload) -> ChangeResult;

    /// Changes a backend.
    async fn order(&self, order: Order) -> ChangeResult;

    /// Returns when the backend is idle. A backend that does not exist counts as idle.
    ///
    /// # Errors
    /// If the pool does not exist.
    async fn idle(&self, pool: &str, backend: &UpstreamAddress) -> Result<(), String>;

    /// Starts a new process, hands over to it, and returns its PID.
    ///
    /// # Errors
    /// If the upgrade fails; this process then continues to serve.
    async fn upgrade(&self) -> Result<u32, String>;

    /// Makes the process drain and end, or end immediately. The connection receives its [response](Farewell) at the
    /// end.
    fn stop(&self, now: bool, connection: OwnedFd);

    /// Returns the reason for rejecting a request for the daemon of the configuration file `_wanted`, encoded as in the
    /// header; `None` if this daemon runs with that file.
    fn refusal(&self, _wanted: &str) -> Option<String> {
        None
    }

    /// Returns the control sockets of old processes that still drain.
    fn predecessors(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Returns the status document as JSON.
    fn status(&self) -> String;

    /// Returns the log of events.
    fn events(&self) -> &Events;

    /// Explains how a request would be routed, as JSON.
    ///
    /// # Errors
    /// If the query is invalid.
    fn explain(&self, query: &str) -> Result<String, String>;

    /// Explains how a request would be routed, as text.
    ///
    /// # Errors
    /// If the query is invalid.
    fn explain_text(&self, query: &str) -> Result<String, String>;

    /// Returns the token that a request must have in the header `X-Lb-Explain` to get an explanation.
    fn explain_token(&self) -> String;

    /// Sets the log level if there is a filter, and returns the filter in effect.
    ///
    /// # Errors
    /// If the filter is invalid or the process is ending.
    async fn log_level(&self, filter: Option<&str>) -> Result<String, String>;
}
