//! Addresses of backends: TCP ports and Unix sockets.

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::SocketAddr as UnixAddr;
use std::str::FromStr;

use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use values::{BackendAddress, UnixPath};

/// The address of a backend. It is written `10.0.0.1:80` or `unix:/path`, and TCP ports come before Unix sockets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum UpstreamAddress {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(UnixPath),
}

/// The reason why a text is not the address of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// The text is neither a TCP address nor begins with `unix:`.
    #[error("expected an IP address with a port, or unix:/path")]
    Malformed,
    /// No Unix socket can have this path.
    #[error("the path of a Unix socket must have 1 to 107 bytes, and none of them can be zero")]
    Path,
}

// === impl UpstreamAddress ===

impl UpstreamAddress {
    /// Returns the address of the Unix socket at this path.
    ///
    /// # Errors
    /// If no Unix socket can have this path.
    pub fn unix(path: &str) -> Result<Self, AddressError> {
        UnixPath::new(path).map(Self::Unix).ok_or(AddressError::Path)
    }

    /// Returns the address of a backend of the configuration, on a machine with this loopback address.
    pub fn resolve(address: &BackendAddress, loopback: IpAddr) -> Self {
        match address {
            BackendAddress::Ip(address) => Self::Tcp(*address),
            BackendAddress::Localhost(port) => Self::Tcp(SocketAddr::new(loopback, *port)),
            BackendAddress::Unix(path) => Self::Unix(path.clone()),
        }
    }

    /// Returns the TCP address. `None` means that this is a Unix socket.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// Returns the port of a TCP address.
    #[cfg(test)]
    pub(crate) fn port(&self) -> u16 {
        self.tcp().expect("a TCP address").port()
    }

    /// Converts the address to Pingora's type.
    pub fn to_pingora(&self) -> PingoraAddr {
        match self {
            Self::Tcp(address) => PingoraAddr::Inet(*address),
            Self::Unix(path) => PingoraAddr::Unix(socket_of(path)),
        }
    }

    /// Converts the address from Pingora's type. `None` means that it is a Unix socket without a path of UTF-8.
    pub fn from_pingora(address: &PingoraAddr) -> Option<Self> {
        match address {
            PingoraAddr::Inet(address) => Some(Self::Tcp(*address)),
            PingoraAddr::Unix(address) => Self::unix(address.as_pathname()?.to_str()?).ok(),
        }
    }

    /// Compares with an address of Pingora's type, in the order of this type and without a conversion.
    pub(super) fn cmp_pingora(&self, other: &PingoraAddr) -> Ordering {
        match (self, other) {
            (Self::Tcp(own), PingoraAddr::Inet(other)) => own.cmp(other),
            (Self::Unix(own), PingoraAddr::Unix(other)) => Some(own.as_path()).cmp(&other.as_pathname()),
            (Self::Tcp(_), PingoraAddr::Unix(_)) => Ordering::Less,
            (Self::Unix(_), PingoraAddr::Inet(_)) => Ordering::Greater,
        }
    }

    /// Returns the `Host` of a request that names no host.
    pub(crate) fn authority(&self) -> String {
        match self {
            // A zone is of no use to the backend.
            Self::Tcp(address) => SocketAddr::new(address.ip(), address.port()).to_string(),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }
}

impl From<SocketAddr> for UpstreamAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl<I: Into<IpAddr>> From<(I, u16)> for UpstreamAddress {
    fn from(address: (I, u16)) -> Self {
        Self::Tcp(address.into())
    }
}

impl FromStr for UpstreamAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.strip_prefix("unix:") {
            Some(path) => Self::unix(path),
            None => text.parse().map(Self::Tcp).map_err(|_| AddressError::Malformed),
        }
    }
}

impl TryFrom<String> for UpstreamAddress {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<UpstreamAddress> for String {
    fn from(address: UpstreamAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.as_path().display()),
        }
    }
}

#[expect(clippy::expect_used, reason = "the type checks the length")]
fn socket_of(path: &UnixPath) -> UnixAddr {
    UnixAddr::from_pathname(path.as_path()).expect("a `UnixPath` fits into the address of a socket")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SORTED: [&str; 5] =
        ["10.0.0.1:80", "10.0.0.1:81", "[2001:db8::1]:80", "unix:/run/a.sock", "unix:/run/b.sock"];

    fn addresses() -> Vec<UpstreamAddress> {
        SORTED.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn addresses_survive_the_conversion_to_pingora_and_back() {
        for address in addresses() {
            assert_eq!(UpstreamAddress::from_pingora(&address.to_pingora()), Some(address));
        }
    }

    #[test]
    fn addresses_have_one_order_in_both_types() {
        let all = addresses();
        assert!(all.is_sorted());
        for (one, other) in all.iter().flat_map(|one| all.iter().map(move |other| (one, other))) {
            assert_eq!(one.cmp_pingora(&other.to_pingora()), one.cmp(other), "{one} {other}");
            assert_eq!(one.to_pingora().cmp(&other.to_pingora()), one.cmp(other), "{one} {other}");
        }
    }

    #[test]
    fn addresses_are_written_as_they_are_parsed() {
        assert_eq!(addresses().iter().map(ToString::to_string).collect::<Vec<_>>(), SORTED);
    }

    #[test]
    fn addresses_are_texts_in_json_like_those_of_the_standard_library() {
        for address in addresses() {
            let json = serde_json::to_string(&address).unwrap();
            assert_eq!(json, format!("\"{address}\""));
            assert_eq!(serde_json::from_str::<UpstreamAddress>(&json).unwrap(), address);
            let of_tcp = address.tcp().map(|tcp| serde_json::to_string(&tcp).unwrap());
            assert!(of_tcp.is_none_or(|tcp| tcp == json));
        }
    }

    #[test]
    fn paths_that_no_socket_can_have_are_rejected() {
        for path in ["", "/a\0b", &"/".repeat(108)] {
            assert_eq!(UpstreamAddress::unix(path), Err(AddressError::Path), "{path:?}");
        }
        assert!(UpstreamAddress::unix(&"/".repeat(107)).is_ok());
        assert_eq!("/run/a.sock".parse::<UpstreamAddress>(), Err(AddressError::Malformed));
    }
}
