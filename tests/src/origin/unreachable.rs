//! An address at which a connection attempt gets no reply, so it times out.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::Origin;
use crate::{ports, wait};

/// A listener that never accepts and whose queue is full, so that the system drops further connection attempts.
pub struct Unreachable {
    /// The address that it listens on.
    pub address: SocketAddr,
    listener: Socket,
    _waiting: Vec<Socket>,
}

impl Unreachable {
    /// Listens on a new address and fills the queue.
    ///
    /// # Panics
    ///
    /// Panics if the queue does not fill.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_at(ports::free())
    }

    /// Listens on this address and fills the queue.
    ///
    /// # Panics
    ///
    /// Panics if the queue does not fill.
    #[track_caller]
    pub fn start_at(address: SocketAddr) -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("sockets can be made");
        listener.set_reuse_address(true).expect("a new socket can be set up");
        listener.bind(&address.into()).expect("no other test uses the address");
        listener.listen(0).expect("a bound socket can listen");
        let mut waiting = Vec::new();
        wait::until(wait::LONG, "the queue of a listener is full", || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("sockets can be made");
            let is_queued = socket.connect_timeout(&address.into(), Duration::from_millis(200)).is_ok();
            waiting.extend(is_queued.then_some(socket));
            !is_queued
        });
        Self { address, listener, _waiting: waiting }
    }

    /// Accepts connections from now on, as an origin that responds with 200 and its name. Attempts in progress succeed
    /// when the system repeats them, after a second or some.
    ///
    /// # Panics
    ///
    /// Panics if the socket cannot listen.
    #[track_caller]
    pub fn accepts(self, name: &str) -> Origin {
        self.listener.listen(1024).expect("a bound socket can listen");
        Origin::on(self.address, name, self.listener)
    }
}
