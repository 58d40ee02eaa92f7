//! A port that stands in a key of its own, beside an address without one.
//!
//! Both keys are replaced by one problem, whose hint is the whole address. Otherwise each key would have a problem that says nothing of
//! the value of the other.

use std::net::{IpAddr, SocketAddr};

use super::document::{Map, Node, Step, Value};
use super::problem::{Id, Problem};

/// The mappings that have an address.
const PLACES: [&[&str]; 3] = [&["listeners", "*"], &["pools", "*", "backends", "*"], &["metrics"]];

/// The keys in which other products write an address.
const ADDRESSES: [&str; 5] = ["address", "host", "ip", "addr", "hostname"];

/// Reports every port beside an address, and takes both out of the tree.
pub(crate) fn refuse(root: &mut Node, problems: &mut Vec<Problem>) {
    let mappings: Vec<_> = PLACES.iter().flat_map(|place| root.matching(place)).collect();
    for path in mappings {
        let Some(Value::Map(map)) = root.get(&path).map(|node| &node.value) else { continue };
        let Some((key, address)) = joined(map) else { continue };
        let [port, host] = ["port", key].map(|key| [&path[..], &[Step::from(key)]].concat());
        let problem =
            Problem::new(Id::UnknownKey, "unknown key `port`: an address has its port after a colon");
        let problem = problem.at(root.key_place(&port)).related(root.key_place(&host), "the address is here");
        problems.push(problem.hint(format!("write `address: {address}` in place of both keys")));
        root.remove_wrong(&host);
        root.remove_wrong(&port);
    }
}

/// The key of the address, and the address together with the port.
fn joined(map: &Map) -> Option<(&'static str, String)> {
    let port = port(&map.get("port")?.node.value)?;
    ADDRESSES.iter().find_map(|key| match &map.get(key)?.node.value {
        Value::Text { text, .. } => with_port(text, port).map(|address| (*key, address)),
        _ => None,
    })
}

/// The port that a value stands for.
pub(super) fn port(value: &Value) -> Option<u16> {
    let port = match value {
        Value::Int(port) => u16::try_from(*port).ok(),
        Value::Text { text, .. } => text.parse().ok(),
        _ => None,
    };
    port.filter(|port| *port > 0)
}

fn with_port(host: &str, port: u16) -> Option<String> {
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
