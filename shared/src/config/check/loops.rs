//! The rule about backends that are this daemon itself.
//!
//! It is a warning, because one listener can pass requests on to another one whose routes lead to other pools. The
//! addresses of the machine's network interfaces are not looked up: they can change after the check, and the check can
//! run on another machine.

use std::net::SocketAddr;

use lb_service::listener::ListenAddress;
use lb_service::pool::UpstreamAddress;

use crate::config::Plan;

use super::{Checker, Id, Pool, Problem, Step, covers};

impl Checker<'_> {
    /// Warns about backends with the address of a listener or of the metrics server.
    pub(super) fn check_own_addresses(&mut self, name: &str, pool: &Pool) {
        let own = self.addresses();
        for (index, backend) in pool.backends.iter().enumerate() {
            let address = self.address_of(backend);
            if let Some((path, listen, _)) = own.iter().find(|(_, listen, _)| reaches(&address, listen)) {
                let place = self.backend_place(name, index);
                let problem = self.own_address(&address, path, listen).at(place);
                self.findings.problems.push(problem);
            }
        }
    }

    fn own_address(&self, address: &UpstreamAddress, path: &[Step], listen: &ListenAddress) -> Problem {
        let (what, consequence, hint) = match path.first() == Some(&Step::from("metrics")) {
            true => (
                "metrics address",
                "which serves no application",
                "write the address of the application, or keep this one to pass requests on to the metrics",
            ),
            false => (
                "listener",
                "so requests can loop",
                "write the address of the application, or make sure that the routes of this listener lead to other pools",
            ),
        };
        let is_written = self.is_written(path);
        let default = if is_written { String::new() } else { format!(" ({listen}, the default)") };
        let message = format!("the backend {address} is this daemon's own {what}{default}, {consequence}");
        let problem = Problem::new(Id::OwnAddress, message).hint(hint);
        match is_written {
            true => problem.related(self.root.place(path), format!("the {what}")),
            false => problem,
        }
    }
}

/// Returns what a backend is if it is the daemon of `plan` itself, with the consequence.
pub(crate) fn own_address(plan: &Plan, backend: &UpstreamAddress) -> Option<&'static str> {
    if reaches(backend, &ListenAddress::Tcp(plan.metrics)) {
        return Some("this daemon's own metrics address, which serves no application");
    }
    let is_reached = plan.listeners.iter().any(|(_, listener)| reaches(backend, &listener.address));
    is_reached.then_some("this daemon's own listener, so requests can loop")
}

/// Returns whether a connection to `address` certainly arrives at the socket that is bound to `listen`.
fn reaches(address: &UpstreamAddress, listen: &ListenAddress) -> bool {
    match (address, listen) {
        (UpstreamAddress::Tcp(address), ListenAddress::Tcp(listen)) => reaches_port(*address, listen),
        (UpstreamAddress::Unix(path), ListenAddress::Unix(listen)) => path.as_path() == listen,
        _ => false,
    }
}

fn reaches_port(address: SocketAddr, listen: &SocketAddr) -> bool {
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    let is_here = address.ip().is_loopback() && covers(listen, &address);
    address.port() == listen.port() && (address == *listen || is_here)
}

#[cfg(test)]
mod tests {
    use values::Scalar;

    use super::*;

    fn reached(address: &str, listen: &str) -> bool {
        let listen = ListenAddress::from_text(listen).expect("it is an address");
        reaches(&address.parse().expect("it is an address"), &listen)
    }

    #[test]
    fn a_connection_to_the_address_of_a_listener_arrives_there() {
        assert!(reached("10.0.0.1:80", "10.0.0.1:80"));
        assert!(!reached("10.0.0.1:80", "10.0.0.1:81"));
        assert!(!reached("10.0.0.2:80", "10.0.0.1:80"));
        assert!(reached("unix:/run/lb.sock", "unix:/run/lb.sock"));
        assert!(!reached("unix:/run/app.sock", "unix:/run/lb.sock"));
        assert!(!reached("unix:/run/lb.sock", "0.0.0.0:80"));
    }

    #[test]
    fn a_wildcard_listener_receives_connections_to_loopback_addresses_of_its_family() {
        assert!(reached("127.0.0.1:80", "0.0.0.0:80"));
        assert!(reached("127.0.0.2:80", "[::]:80"));
        assert!(reached("[::1]:80", "[::]:80"));
        assert!(reached("[::ffff:127.0.0.1]:80", "0.0.0.0:80"));
        assert!(!reached("[::1]:80", "0.0.0.0:80"));
        assert!(!reached("127.0.0.1:81", "0.0.0.0:80"));
        assert!(!reached("10.0.0.1:80", "0.0.0.0:80"), "the address can be that of another machine");
    }
}
