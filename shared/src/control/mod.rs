//! The control socket: HTTP/1.1 with JSON inside, on a Unix socket that nobody but the daemon's user and root can open.
//!
//! ```text
//! GET    /v1/status                                     as /api/v1/status
//! GET    /v1/events?after=N&process=PID&wait=SECONDS    {"process": PID, "events": […]}: changes after number N of this process, or
//!                                                       of one before it; waits for one, at most 60 s
//! GET    /v1/predecessors                               {"sockets": […]}: where processes answer that have handed over, directly or
//!                                                       not, to this one and work on requests
//! GET    /v1/explain?host=H&path=P&…                    as /api/v1/explain
//! GET    /v1/explain/text?…                             {"text": "…"}: the same for people
//! GET    /v1/explain/token                              {"token": "…"}: for the header X-Lb-Explain of a request
//! GET    /v1/log_level                                  {"filter": "info"}
//! PUT    /v1/log_level                                  {"filter": "debug"}
//! POST   /v1/reload                                     {"dry_run": false, "keep_runtime": false}
//! POST   /v1/upgrade
//! POST   /v1/stop                                       {"now": false}: drains and ends. The answer comes when all is over, and the
//!                                                       connection ends with the process: {"pid": PID, "reason": "drained", "cut": 0,
//!                                                       "handed_over": false}
//! POST   /v1/pools/POOL/backends                        {"address": "10.0.0.1:80", "weight": 1, "backup": false, "max_requests": 9}
//! DELETE /v1/pools/POOL/backends/ADDRESS
//! PUT    /v1/pools/POOL/backends/ADDRESS/weight         {"weight": 3}
//! POST   /v1/pools/POOL/backends/ADDRESS/drain          also undrain, enable, disable
//! GET    /v1/pools/POOL/backends/ADDRESS/idle?wait=S    returns when it works on no request: 200, or 408 after S seconds
//! ```
//!
//! A request with the header `Lb-Config-File` is for the daemon of that file only, named by its canonical path, percent-encoded. Any
//! other daemon refuses it with 421.
//!
//! 200: done, or nothing to do. 400: the request cannot be understood. 404, 405, 413. 409: refused, nothing has changed. The answer
//! to what changes something is a [`ChangeResult`]. `curl --unix-socket PATH http://localhost/v1/status` works.
//!
//! A connection is for one request: each answer says `Connection: close`. A body is at most 64 KiB, and comes within
//! 10 s. 64 requests are carried out at a time; beside them 512 only wait (for an event, or until a backend has no request
//! left), as long as whoever asked is there. What changes something goes on when that has left.
//!
//! - [`before`] knows of the processes before this one.
//! - [`api`] reads requests: a plain function from method, path, query and body to a [`Call`].
//! - [`server`] carries calls out by [`Operations`], and is the only place that touches the socket.
//! - [`farewell`] answers who has told the process to end.
//! - [`find`] says which daemon a subcommand is for.
//! - [`client`] is the other side, for the verbs of the command line.

pub mod api;
pub mod client;
pub mod farewell;
pub mod find;
pub mod predecessors;
pub mod server;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use async_trait::async_trait;
use nix::unistd::Uid;

pub use api::Call;
pub use client::Client;
pub use farewell::{Farewell, Farewells};
pub use server::{ControlService, DrainingSocket};

use crate::events::Events;
use crate::operator::{ChangeResult, Order, Reload};

/// Whether a process of this user may be at the other end of a control socket: root, or this process's own user.
fn is_trusted(peer: u32) -> bool {
    let peer = Uid::from_raw(peer);
    peer.is_root() || peer == Uid::effective()
}

/// What can be asked of a daemon.
#[async_trait]
pub trait Operations: Send + Sync {
    /// Reads the file again.
    async fn reload(&self, reload: Reload) -> ChangeResult;

    /// Changes a backend.
    async fn order(&self, order: Order) -> ChangeResult;

    /// Returns when the backend works on no request. One that is not there works on none.
    ///
    /// # Errors
    /// When there is no such pool.
    async fn idle(&self, pool: &str, backend: SocketAddr) -> Result<(), String>;

    /// Starts a successor and hands over to it; its process id.
    ///
    /// # Errors
    /// Why there is none; this process goes on.
    async fn upgrade(&self) -> Result<u32, String>;

    /// Has the process drain and end, or end at once. The connection gets its [answer](Farewell) at the end.
    fn stop(&self, now: bool, connection: OwnedFd);

    /// Why a request is refused that is meant for the daemon of another configuration file, which is written as in the header.
    fn refusal(&self, _wanted: &str) -> Option<String> {
        None
    }

    /// The sockets of the processes before this one that still work on requests.
    fn predecessors(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// What the daemon is doing, as JSON.
    fn status(&self) -> String;

    /// What changed.
    fn events(&self) -> &Events;

    /// Where a request would go, as JSON.
    ///
    /// # Errors
    /// What is wrong with the query.
    fn explain(&self, query: &str) -> Result<String, String>;

    /// The same for people.
    ///
    /// # Errors
    /// What is wrong with the query.
    fn explain_text(&self, query: &str) -> Result<String, String>;

    /// What lets a request ask, by the header `X-Lb-Explain`, how it is served.
    fn explain_token(&self) -> String;

    /// Sets what is logged, if there is a filter; returns the filter that is in effect.
    ///
    /// # Errors
    /// What is wrong with the filter, or that the process is ending.
    async fn log_level(&self, filter: Option<&str>) -> Result<String, String>;
}
