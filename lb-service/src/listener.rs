//! Where clients connect, and how an accepted connection finds the listener it came through.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// Index of a listener in [`Listeners`]; metrics and routes use it instead of the name.
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

/// One listener as the proxy needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// What metrics, routes and the access log call it; the address unless it was given a name.
    pub name: Arc<str>,
    /// Where it listens.
    pub address: ListenAddress,
}

/// All listeners, in the order of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listeners(Box<[Listener]>);

// === impl ListenAddress ===

impl ListenAddress {
    /// The key under which Pingora looks an already bound socket up: `1.2.3.4:80`, or the path.
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
    /// Listeners in the order of the configuration.
    pub fn new(listeners: impl IntoIterator<Item = Listener>) -> Self {
        Self(listeners.into_iter().collect())
    }

    /// Each listener with its id.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (ListenerId, &Listener)> {
        self.0.iter().enumerate().map(|(index, listener)| (ListenerId(index), listener))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The listener with this id, which must come from this table.
    pub fn get(&self, id: ListenerId) -> &Listener {
        &self.0[id.0]
    }

    /// The listener whose socket accepted a TCP connection with this local address: the one bound to
    /// exactly that address, else the one bound to all addresses on that port.
    ///
    /// Two listeners cannot be bound to the same port of the same address, so the answer is unique.
    pub fn accepted_tcp(&self, local: SocketAddr) -> Option<ListenerId> {
        let on_port = |(_, listener): &(ListenerId, &Listener)| match listener.address {
            ListenAddress::Tcp(bound) => bound.port() == local.port(),
            ListenAddress::Unix(_) => false,
        };
        let exact = |(_, listener): &(ListenerId, &Listener)| match listener.address {
            ListenAddress::Tcp(bound) => bound.ip().to_canonical() == local.ip().to_canonical(),
            ListenAddress::Unix(_) => false,
        };
        let wildcard = |(_, listener): &(ListenerId, &Listener)| match listener.address {
            ListenAddress::Tcp(bound) => bound.ip().is_unspecified(),
            ListenAddress::Unix(_) => false,
        };
        self.iter()
            .filter(on_port)
            .find(exact)
            .or_else(|| self.iter().filter(on_port).find(wildcard))
            .map(|(id, _)| id)
    }

    /// The listener bound to this Unix socket path.
    pub fn accepted_unix(&self, local: &std::path::Path) -> Option<ListenerId> {
        self.iter()
            .find(|(_, listener)| matches!(&listener.address, ListenAddress::Unix(path) if path == local))
            .map(|(id, _)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listeners(addresses: &[&str]) -> Listeners {
        Listeners::new(addresses.iter().map(|text| Listener {
            name: (*text).into(),
            address: match text.strip_prefix("unix:") {
                Some(path) => ListenAddress::Unix(path.into()),
                None => ListenAddress::Tcp(text.parse().unwrap()),
            },
        }))
    }

    fn tcp(table: &Listeners, local: &str) -> Option<usize> {
        table.accepted_tcp(local.parse().unwrap()).map(|id| id.0)
    }

    #[test]
    fn exact_address_wins_over_all_addresses() {
        let table = listeners(&["0.0.0.0:80", "127.0.0.1:81", "0.0.0.0:81"]);
        assert_eq!(tcp(&table, "10.0.0.1:80"), Some(0));
        assert_eq!(tcp(&table, "127.0.0.1:81"), Some(1));
        assert_eq!(tcp(&table, "10.0.0.1:81"), Some(2));
        assert_eq!(tcp(&table, "10.0.0.1:82"), None);
    }

    #[test]
    fn ipv4_client_of_a_dual_stack_listener_is_found() {
        let table = listeners(&["[::]:80"]);
        assert_eq!(tcp(&table, "[::ffff:10.0.0.1]:80"), Some(0));
    }

    #[test]
    fn unix_socket_is_found_by_its_path() {
        let table = listeners(&["0.0.0.0:80", "unix:/run/a.sock"]);
        assert_eq!(table.accepted_unix("/run/a.sock".as_ref()), Some(ListenerId(1)));
        assert_eq!(table.accepted_unix("/run/b.sock".as_ref()), None);
    }
}
