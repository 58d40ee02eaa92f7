//! Listeners: the addresses that clients connect to.

use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use crate::wire::scan::Limits as HeadLimits;

/// The index of a listener in [`Listeners`]. Metrics and routes use it instead of the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerId(pub usize);

/// An address that clients connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// A TCP port on one address, or on all of them (`0.0.0.0`, `[::]`).
    Tcp(SocketAddr),
    /// A Unix socket, written `unix:/path`.
    Unix(PathBuf),
}

/// A listener as the proxy uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The name in metrics, routes and the access log; the address by default.
    pub name: Arc<str>,
    /// The address that it listens on.
    pub address: ListenAddress,
    /// The permission bits of the file of a Unix socket. They have no meaning for a TCP port.
    pub mode: u32,
    /// The limits for its clients.
    pub limits: ClientLimits,
    /// The deadlines for its clients.
    pub timeouts: ClientTimeouts,
}

/// The limits for the clients of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    /// The connections at a time; `None` means no limit.
    pub connections: Option<NonZeroU32>,
    /// The size of the head of a request.
    pub head: HeadLimits,
    /// The bytes of the body of a request; `None` means no limit.
    pub body: Option<NonZeroU64>,
    /// The requests on one connection; `None` means no limit.
    pub requests: Option<NonZeroU32>,
    /// The lowest average speed, in bytes per second, at which a client sends a body or reads a response. The average
    /// is over the time in which the proxy waits for the client, and counts after 10 s; 0 means any speed.
    pub min_rate: u64,
}

/// The deadlines for the clients of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientTimeouts {
    /// The longest time until a request begins, including the first on a connection.
    pub idle: Duration,
    /// The longest time from the first byte of a request to the end of its head.
    pub head: Duration,
    /// The longest pause while the client sends or reads a body.
    pub body: Duration,
}

/// The default mode of Unix socket files: as with a TCP port, any local user that can enter the directory can connect.
pub const UNIX_SOCKET_MODE: u32 = 0o666;

/// All listeners, in the order of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listeners(Box<[Listener]>);

// === impl Listener ===

impl Listener {
    /// Returns a listener with the default limits and deadlines.
    pub fn new(name: impl Into<Arc<str>>, address: ListenAddress) -> Self {
        Self {
            name: name.into(),
            address,
            mode: UNIX_SOCKET_MODE,
            limits: ClientLimits::default(),
            timeouts: ClientTimeouts::default(),
        }
    }

    /// Returns whether both have the same address and name, so that a reload keeps the socket and its connections.
    pub fn is_same_socket(&self, other: &Self) -> bool {
        self.name == other.name && self.address == other.address
    }
}

// === impl ClientLimits ===

impl Default for ClientLimits {
    fn default() -> Self {
        let head = HeadLimits { head: 64 * 1024, fields: 128, target: 16 * 1024 };
        Self { connections: None, head, body: None, requests: None, min_rate: 240 }
    }
}

// === impl ClientTimeouts ===

impl Default for ClientTimeouts {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { idle: seconds(75), head: seconds(10), body: seconds(60) }
    }
}

// === impl ListenAddress ===

impl ListenAddress {
    /// Returns the key under which Pingora looks up a socket that is already bound: `1.2.3.4:80`, or the path.
    pub fn bind_key(&self) -> String {
        match self {
            Self::Tcp(address) => address.to_string(),
            Self::Unix(path) => path.display().to_string(),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

// === impl Listeners ===

impl Listeners {
    /// Creates the table, in the order of the configuration.
    pub fn new(listeners: impl IntoIterator<Item = Listener>) -> Self {
        Self(listeners.into_iter().collect())
    }

    /// Returns each listener with its id.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (ListenerId, &Listener)> {
        self.0.iter().enumerate().map(|(index, listener)| (ListenerId(index), listener))
    }

    /// Returns the number of listeners.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there is no listener.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the listener with this id, which must come from this table.
    #[expect(clippy::indexing_slicing, reason = "only the table makes ids, one for each listener")]
    pub fn get(&self, id: ListenerId) -> &Listener {
        &self.0[id.0]
    }
}
