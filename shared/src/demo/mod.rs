//! The demo: three backends inside the process, one of them broken now and then, and traffic shown as it flows.
//!
//! It is the daemon itself, with a configuration made for the occasion: nothing here is simulated but the backends.

mod load;
mod origin;
mod show;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

pub use origin::Origin;
pub use show::{Once, Outcome, Show};

/// Where the demo listens when nobody else does.
const PROXY_PORT: u16 = 6188;
const METRICS_PORT: u16 = 6192;

/// The pool that the demo balances over.
pub const POOL: &str = "demo";

/// The backends and the addresses of one demo.
pub struct Demo {
    /// Inside this process.
    pub origins: Vec<Arc<Origin>>,
    /// Where people connect.
    pub proxy: SocketAddr,
    /// Where the demo's own traffic enters, so that the access log shows only what people do.
    pub traffic: SocketAddr,
    /// Where metrics are read.
    pub metrics: SocketAddr,
}

impl Demo {
    /// The listener of the demo's own traffic.
    pub const TRAFFIC: &'static str = "traffic";

    /// Chooses addresses that are free: the usual ones, else others.
    ///
    /// # Errors
    /// When the system has no port left.
    pub fn new() -> std::io::Result<Self> {
        let origins = ["north", "south", "west"].map(|name| Origin::new(name).map(Arc::new));
        Ok(Self {
            origins: origins.into_iter().collect::<Result<_, _>>()?,
            proxy: free_address(PROXY_PORT)?,
            traffic: free_address(0)?,
            metrics: free_address(METRICS_PORT)?,
        })
    }

    /// What is said when it runs because there is no configuration.
    pub fn notice(&self, in_background: bool) -> String {
        let Self { proxy, metrics, .. } = self;
        let where_ = if in_background { " in the background" } else { "" };
        let unready = if in_background { ", /readyz answers 503" } else { "" };
        format!(
            "This is the demo{where_}, over backends of its own: http://{proxy}/, status at http://{metrics}/api/v1/status\
             {unready}.\nTo serve your backends, name a file with -c, or put one at one of these places."
        )
    }

    /// The demo's configuration file.
    pub fn configuration(&self) -> String {
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

/// A free loopback address, on `preferred` if nobody has that port.
fn free_address(preferred: u16) -> std::io::Result<SocketAddr> {
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    bind(preferred).or_else(|_| bind(0))?.local_addr()
}
