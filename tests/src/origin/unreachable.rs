//! An address at which a connection attempt gets no reply, so it times out.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::{ports, wait};

/// A listener that never accepts and whose queue is full, so that the system drops further connection attempts.
pub struct Unreachable {
    /// The address that it listens on.
    pub address: SocketAddr,
    _listener: Socket,
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
        let address = ports::free();
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("sockets can be made");
        listener.bind(&address.into()).expect("no other test uses the address");
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
