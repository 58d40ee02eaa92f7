//! Addresses that stay free until a test uses them.
//!
//! A test chooses the address of a daemon before it starts the daemon, so a free port has to stay free for a while. A
//! port on 127.0.0.1 may not: the system can assign it to an outgoing connection of another test. Connections to other
//! loopback addresses also start from 127.0.0.1, so a port on a loopback address of its own stays free.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Returns a free address `127.x.y.z:port`. Each call uses another IP, and the system chooses the port.
///
/// # Panics
///
/// Panics if the test cannot bind to loopback addresses.
pub fn free() -> SocketAddr {
    let listener = TcpListener::bind((own_ip(), 0)).expect("loopback addresses can be bound");
    listener.local_addr().expect("a bound socket has an address")
}

/// Returns a free port on `::1`, for the few tests about IPv6. It is below the range of ephemeral ports.
///
/// # Panics
///
/// Panics if the machine has no IPv6.
pub fn free_v6() -> SocketAddr {
    below_ephemeral(Ipv6Addr::LOCALHOST.into())
}

/// Returns a free port on 127.0.0.1, for the few tests that need exactly this address.
pub fn free_on_localhost() -> SocketAddr {
    below_ephemeral(Ipv4Addr::LOCALHOST.into())
}

fn below_ephemeral(ip: IpAddr) -> SocketAddr {
    let ports = (0..10_000).map(|step| {
        let offset = process::id().wrapping_add(step * 7).wrapping_add(next() * 131) % 20_000;
        u16::try_from(10_000 + offset).expect("below 30000")
    });
    let mut addresses = ports.map(|port| SocketAddr::new(ip, port));
    addresses.find(|address| TcpListener::bind(address).is_ok()).expect("one of 10,000 ports is free")
}

/// Test processes that run at the same time use different addresses because their PIDs differ. Calls in one process use
/// different addresses because they are numbered.
fn own_ip() -> Ipv4Addr {
    let (id, call) = (process::id(), next());
    let [.., high, low] = (id % (100 * 256)).to_be_bytes();
    let last = u8::try_from(1 + call % 254).expect("below 255");
    Ipv4Addr::new(127, 101 + high, low, last)
}

fn next() -> u32 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_returns_another_address_that_can_be_bound() {
        let (one, two) = (free(), free());
        assert_ne!(one.ip(), two.ip());
        TcpListener::bind(one).expect("it is free");
        TcpListener::bind(free_on_localhost()).expect("it is free");
    }
}
