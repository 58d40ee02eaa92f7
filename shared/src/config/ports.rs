//! Diagnostics for a port in a key of its own, next to an address without a port.
//!
//! Both keys are replaced by one problem, whose hint contains the whole address. Otherwise each key would have a
//! problem that does not consider the value of the other key.

use std::net::{IpAddr, SocketAddr};

use super::document::{Map, Node, Step, Value};
use super::problem::{Id, Problem};

/// The mappings that contain an address.
const PLACES: [&[&str]; 3] = [&["listeners", "*"], &["pools", "*", "backends", "*"], &["metrics"]];

/// The keys that other products use for an address.
const ADDRESSES: [&str; 5] = ["address", "host", "ip", "addr", "hostname"];

/// Reports every port next to an address, and removes both keys from the tree.
pub(crate) fn reject(root: &mut Node, problems: &mut Vec<Problem>) {
    let mappings: Vec<_> = PLACES.iter().flat_map(|place| root.matching(place)).collect();
    for path in mappings {
        let Some(Value::Map(map)) = root.get(&path).map(|node| &node.value) else { continue };
        let Some((key, address)) = joined(map) else { continue };
        let [port, host] = ["port", key].map(|key| [&path[..], &[Step::from(key)]].concat());
        let problem = Problem::new(Id::UnknownKey, "unknown key `port`: the port is a part of `address`");
        let problem = problem.at(root.key_place(&port)).related(root.key_place(&host), "the address is here");
        problems.push(problem.hint(format!("write `address: {address}` instead of both keys")));
        root.remove_wrong(&host);
        root.remove_wrong(&port);
    }
}

/// Returns the key of the address, and the address joined with the port.
fn joined(map: &Map) -> Option<(&'static str, String)> {
    let port = port(&map.get("port")?.node.value)?;
    ADDRESSES.iter().find_map(|key| match &map.get(key)?.node.value {
        Value::Text { text, .. } => with_port(text, port).map(|address| (*key, address)),
        _ => None,
    })
}

/// Returns the value as a port number above 0.
pub(super) fn port(value: &Value) -> Option<u16> {
    let port = match value {
        Value::Int(port) => u16::try_from(*port).ok(),
        Value::Text { text, .. } => text.parse().ok(),
        _ => None,
    };
    port.filter(|port| *port > 0)
}

/// Joins a host and a port to an address. `None` means that the host is neither an IP address nor `localhost`.
pub(super) fn with_port(host: &str, port: u16) -> Option<String> {
    if host.eq_ignore_ascii_case("localhost") {
        return Some(format!("{host}:{port}"));
    }
    let ip = host.trim_matches(['[', ']']).parse::<IpAddr>().ok()?;
    let address = SocketAddr::new(ip, port).to_string();
    Some(if ip.is_ipv6() { format!("\"{address}\"") } else { address })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_joined_with_its_port() {
        assert_eq!(with_port("10.0.0.1", 80).as_deref(), Some("10.0.0.1:80"));
        assert_eq!(with_port("::1", 80).as_deref(), Some("\"[::1]:80\""));
        assert_eq!(with_port("localhost", 80).as_deref(), Some("localhost:80"));
        assert_eq!(with_port("app.internal", 80), None);
    }
}
