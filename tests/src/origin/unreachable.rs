//! An address where connections neither succeed nor fail.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::{ports, wait};

/// Listens and never accepts, with its queue full: the system drops whatever tries to connect.
pub struct Unreachable {
    /// Where it listens.
    pub address: SocketAddr,
    _listener: Socket,
    _waiting: Vec<Socket>,
}

impl Unreachable {
    /// Fills the queue of an address of its own.
    ///
    /// # Panics
    ///
    /// Panics when the queue does not fill.
    #[track_caller]
    pub fn start() -> Self {
        let address = ports::free();
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("sockets can be made");
        listener.bind(&address.into()).expect("the address is its own");
        listener.listen(0).expect("a bound socket can listen");
        let mut waiting = Vec::new();
        wait::until(wait::LONG, "the queue of a listener is full", || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("sockets can be made");
            let refused = socket.connect_timeout(&address.into(), Duration::from_millis(200)).is_err();
            waiting.push(socket);
            refused
        });
        Self { address, _listener: listener, _waiting: waiting }
    }
}
