//! Listeners: the addresses that clients connect to.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

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
}

/// All listeners, in the order of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listeners(Box<[Listener]>);

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
    pub fn get(&self, id: ListenerId) -> &Listener {
        &self.0[id.0]
    }
}
