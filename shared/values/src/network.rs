//! Networks, which are types of the crate `ipnet`.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::scalar::{Rejection, Scalar, TextScalar};

impl TextScalar for IpNet {
    const EXPECTED: &'static str = "a network such as 10.0.0.0/8, or an address";
    const PATTERN: &'static str = "^[0-9A-Fa-f.:]+(/[0-9]{1,3})?$";

    fn parse(text: &str) -> Result<Self, Rejection> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(address.into());
        }
        let Ok(network) = text.parse::<Self>() else {
            let all = ["all", "any", "*"].contains(&text);
            let hint = if all { "\nname the networks of the proxies" } else { "" };
            return Err(format!("expected {}, found {text:?}{hint}", Self::expected()).into());
        };
        if network.addr() != network.network() {
            let right = network.trunc();
            return Err(format!("{text:?} has bits set beyond its prefix\ndid you mean {right}?").into());
        }
        Ok(network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{accepts, rejection};

    #[test]
    fn networks_have_no_bits_beyond_their_prefix() {
        accepts::<IpNet>(&["10.0.0.0/8", "10.0.0.1", "::1", "fd00::/8"]);
        assert!(rejection::<IpNet>("10.0.0.1/8").contains("did you mean 10.0.0.0/8?"));
        assert!(rejection::<IpNet>("10.0.0.0/33").contains("expected a network"));
    }
}
