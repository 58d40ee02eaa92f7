//! The move of a listener to an address that overlaps with its old one, such as from `127.0.0.1:80` to `0.0.0.0:80`.
//!
//! The kernel gives a port to two sockets only if both belong to one user and both have `SO_REUSEPORT` while the second
//! socket is bound and begins to listen. The option is set for these two calls and then cleared on both sockets, so
//! that a second daemon fails at once, before the move and after it. A socket belongs to the user that created it. This
//! is root if the daemon dropped its privileges afterwards, so the start gives the socket to the user of the daemon.
//!
//! Both sockets then listen. The kernel prefers the more specific address, so connections might still arrive at the old
//! socket, and closing it would cut those that are not accepted yet. The old socket is therefore made deaf (`deafen`)
//! first: new connections reach the new socket, and the old socket keeps those that have begun.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::fchown;
use std::time::Duration;

use rustix::fs::fstat;
use socket2::{Domain, SockRef, Socket, Type};

use super::files::reason;
use super::limits::BACKLOG;
use super::privileges::Identity;

/// The time for which a deaf socket stays open, for handshakes that have begun.
pub(crate) const DEAF: Duration = Duration::from_secs(1);

/// The index of an interface that does not exist: the largest one, since the kernel counts from 1.
const NO_INTERFACE: u32 = i32::MAX.cast_unsigned();

/// The reason why an address cannot be bound beside another one.
#[derive(Debug)]
pub(super) enum MoveError {
    /// The old socket belongs to another user.
    Foreign,
    Io(io::Error),
}

/// A socket that is bound to an address that overlaps with others, and does not listen yet.
#[derive(Debug)]
pub(super) struct Beside {
    address: SocketAddr,
    new: OwnedFd,
    old: Vec<OwnedFd>,
}

/// Sockets that have `SO_REUSEPORT` set. Dropping this clears the option.
struct Shared<'a>(Vec<SockRef<'a>>);

/// Returns whether two sockets need `SO_REUSEPORT` to listen on these addresses. `[::]` includes IPv4.
pub(crate) fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port() && (one.ip() == other.ip() || takes(one.ip(), other) || takes(other.ip(), one))
}

fn takes(all: IpAddr, other: SocketAddr) -> bool {
    all.is_unspecified() && (all.is_ipv6() || other.is_ipv4())
}

/// Gives a socket to the user as whom the daemon will run.
pub(super) fn give(socket: &OwnedFd, identity: &Identity) -> io::Result<()> {
    fchown(socket, Some(identity.uid().as_raw()), None)
}

/// Makes a socket receive no new connections. Those that have begun can still be accepted.
///
/// The socket is bound to an interface that does not exist, at which nothing arrives. Unlike a packet filter, this
/// needs no privileges, and new connections reach the other socket at once.
pub(crate) fn deafen(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).bind_device_by_index_v4(NonZeroU32::new(NO_INTERFACE))
}

// === impl Beside ===

impl Beside {
    /// Binds `address`, which overlaps with those of the `old` sockets.
    pub(super) fn bind(address: SocketAddr, old: Vec<OwnedFd>) -> Result<Self, MoveError> {
        let shared = Shared::new(&old)?;
        let new = bound(address, &old)?;
        drop(shared);
        Ok(Self { address, new, old })
    }

    /// Begins to listen.
    pub(super) fn listen(self) -> Result<OwnedFd, MoveError> {
        let Self { address: _, new, old } = self;
        let shared = Shared::new(&old)?;
        let socket = SockRef::from(&new);
        socket.listen(BACKLOG)?;
        socket.set_reuse_port(false)?;
        drop(shared);
        Ok(new)
    }

    /// Returns the address on which it will listen.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the socket that will listen.
    pub(super) fn socket(&self) -> &OwnedFd {
        &self.new
    }
}

fn bound(address: SocketAddr, old: &[OwnedFd]) -> Result<OwnedFd, MoveError> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    for old in old {
        let owner = fstat(old).map_err(io::Error::from)?.st_uid;
        if fstat(&socket).map_err(io::Error::from)?.st_uid != owner {
            // Only root can change the owner.
            fchown(&socket, Some(owner), None).map_err(|_| MoveError::Foreign)?;
        }
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

// === impl Shared ===

impl<'a> Shared<'a> {
    fn new(sockets: &'a [OwnedFd]) -> io::Result<Self> {
        let shared = Self(sockets.iter().map(SockRef::from).collect());
        shared.0.iter().try_for_each(|socket| socket.set_reuse_port(true))?;
        Ok(shared)
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        for socket in &self.0 {
            if let Err(error) = socket.set_reuse_port(false) {
                log::error!(
                    "a listening socket keeps SO_REUSEPORT, so another process of this user can share its port: {}",
                    reason(&error)
                );
            }
        }
    }
}

impl From<io::Error> for MoveError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn listening(ip: &str) -> (TcpListener, u16) {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    fn beside(ip: &str, port: u16, old: &TcpListener) -> Result<OwnedFd, MoveError> {
        let old = vec![old.as_fd().try_clone_to_owned().unwrap()];
        Beside::bind(SocketAddr::new(ip.parse().unwrap(), port), old)?.listen()
    }

    #[test]
    fn addresses_overlap_when_one_takes_the_connections_of_the_other() {
        for (one, other, expected) in [
            ("127.0.0.1:80", "0.0.0.0:80", true),
            ("127.0.0.1:80", "[::]:80", true),
            ("[::1]:80", "[::]:80", true),
            ("0.0.0.0:80", "[::]:80", true),
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "0.0.0.0:81", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("[::1]:80", "0.0.0.0:80", false),
        ] {
            assert_eq!(overlap(address(one), address(other)), expected, "{one} {other}");
            assert_eq!(overlap(address(other), address(one)), expected, "{other} {one}");
        }
    }

    #[test]
    fn a_port_is_shared_only_with_the_old_socket_and_only_during_the_move() {
        for (from, to) in [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "::")] {
            let (old, port) = listening(from);
            assert!(TcpListener::bind((to, port)).is_err(), "before");
            let _new = beside(to, port, &old).unwrap();
            assert!(TcpListener::bind((to, port)).is_err(), "beside both");
            drop(old);
            assert!(TcpListener::bind((to, port)).is_err(), "beside the new one");
            assert!(TcpListener::bind((from, port)).is_err(), "at the old place");
            TcpStream::connect(("127.0.0.1", port)).unwrap();
        }
    }

    #[test]
    fn a_socket_that_is_only_bound_receives_no_connection() {
        let (old, port) = listening("0.0.0.0");
        let copy = vec![old.as_fd().try_clone_to_owned().unwrap()];
        let _new = Beside::bind(SocketAddr::new([127, 0, 0, 1].into(), port), copy).unwrap();
        let _client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        old.accept().unwrap();
    }

    #[test]
    fn a_deaf_socket_keeps_its_connections_and_the_new_socket_receives_later_ones() {
        let moves = [
            ("127.0.0.1", "0.0.0.0"),
            ("0.0.0.0", "127.0.0.1"),
            ("0.0.0.0", "::"),
            ("::", "0.0.0.0"),
            ("::", "127.0.0.1"),
        ];
        for (from, to) in moves {
            let (old, port) = listening(from);
            let new: TcpListener = beside(to, port, &old).unwrap().into();
            new.set_nonblocking(false).unwrap();
            let reaches = |listener: &TcpListener, client: TcpStream| {
                drop(listener.accept().unwrap());
                let mut client = client;
                assert_eq!(client.read(&mut [0]).unwrap(), 0, "{from} {to}");
            };
            let early = TcpStream::connect(("127.0.0.1", port)).unwrap();
            deafen(&old).unwrap();
            let late = TcpStream::connect(("127.0.0.1", port)).unwrap();
            // If the new address is the more specific one, the kernel prefers it at once.
            reaches(if to == "127.0.0.1" || from == "::" { &new } else { &old }, early);
            reaches(&new, late);
        }
    }
}
