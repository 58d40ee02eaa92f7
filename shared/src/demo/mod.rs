//! The demo: three backends inside the process, one of which breaks from time to time, and a display of the traffic.
//!
//! It is the real daemon with a generated configuration. Only the backends are simulated.

mod load;
mod origin;
mod show;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

pub(crate) use origin::Origin;
pub(crate) use show::{Once, Show};

/// The port that the demo listens on if it is free.
const PROXY_PORT: u16 = 6188;
const METRICS_PORT: u16 = 6192;

/// The pool that the demo balances over.
pub(crate) const POOL: &str = "demo";

/// The backends and the addresses of one demo.
pub(crate) struct Demo {
    /// The backends inside this process.
    pub origins: Vec<Arc<Origin>>,
    /// The address for people.
    pub proxy: SocketAddr,
    /// The address for the demo's own traffic, so that the access log shows only requests by people.
    pub traffic: SocketAddr,
    /// The metrics address.
    pub metrics: SocketAddr,
}

impl Demo {
    /// The listener of the demo's own traffic.
    pub(crate) const TRAFFIC: &'static str = "traffic";

    /// Chooses free addresses, preferably the default ones.
    ///
    /// # Errors
    /// When no port is free.
    pub(crate) fn new() -> std::io::Result<Self> {
        let origins = ["north", "south", "west"].map(|name| Origin::new(name).map(Arc::new));
        Ok(Self {
            origins: origins.into_iter().collect::<Result<_, _>>()?,
            proxy: free_address(PROXY_PORT)?,
            traffic: free_address(0)?,
            metrics: free_address(METRICS_PORT)?,
        })
    }

    /// Returns the notice for a demo that runs because there is no configuration.
    pub(crate) fn notice(&self, in_background: bool) -> String {
        let Self { proxy, metrics, .. } = self;
        let where_ = if in_background { " in the background" } else { "" };
        let unready = if in_background { ", /readyz responds with 503" } else { "" };
        format!(
            "This is the demo{where_}, with built-in backends: http://{proxy}/, status at http://{metrics}/api/v1/status\
             {unready}.\nTo serve your backends, select a file with `-c FILE`, or create one at one of these paths."
        )
    }

    /// Returns the demo's configuration file.
    pub(crate) fn configuration(&self) -> String {
        let backends: Vec<_> = self.origins.iter().map(|origin| origin.address().to_string()).collect();
        format!(
            "listeners:\n\
             \x20 - {{address: \"{proxy}\", name: web}}\n\
             \x20 - {{address: \"{traffic}\", name: {TRAFFIC}}}\n\
             pools:\n\
             \x20 {POOL}:\n\
             \x20   backends: [{backends}]\n\
             \x20   health_check: {{type: http, interval: 500ms, fast_interval: 500ms, timeout: 400ms, rise: 1, fall: 1}}\n\
             metrics: {{address: \"{metrics}\"}}\n\
             shutdown: {{drain: 2s}}\n",
            TRAFFIC = Self::TRAFFIC,
            proxy = self.proxy,
            traffic = self.traffic,
            backends = backends.join(", "),
            metrics = self.metrics,
        )
    }
}

/// Returns a free loopback address, on the port `preferred` if it is free.
fn free_address(preferred: u16) -> std::io::Result<SocketAddr> {
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    bind(preferred).or_else(|_| bind(0))?.local_addr()
}
