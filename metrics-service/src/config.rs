//! The sections `metrics` and `readiness` of the configuration, as written in the file.

use std::borrow::Cow;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use values::address::{self, Purpose};

/// HTTP server for metrics, probes and status. It changes nothing.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// IP address and port of the HTTP server for metrics, probes and status.
    address: Address,
}

/// Condition under which `/readyz` responds 200, once the daemon has started and until it drains.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct ReadinessConfig {
    /// Pools that must have a ready backend. With `any`, a broken application does not take every load balancer in
    /// front of it out of service.
    pools: RequiredPools,
}

/// The pools that must have a ready backend for the process to be ready.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum RequiredPools {
    /// At least one pool.
    #[default]
    Any,
    /// Every pool.
    All,
    /// No pool. Readiness does not depend on the pools.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Address(SocketAddr);

// === impl MetricsConfig ===

impl MetricsConfig {
    /// The address of the server; the port is above 0.
    pub fn address(&self) -> SocketAddr {
        self.address.0
    }
}

// === impl ReadinessConfig ===

impl ReadinessConfig {
    /// Which pools must have a ready backend.
    pub fn pools(&self) -> RequiredPools {
        self.pools
    }
}

// === impl RequiredPools ===

impl RequiredPools {
    /// The value of the key.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::All => "all",
            Self::None => "none",
        }
    }

    /// The variant with this discriminant.
    pub(crate) fn of(discriminant: u8) -> Self {
        match discriminant {
            all if all == Self::All as u8 => Self::All,
            none if none == Self::None as u8 => Self::None,
            _ => Self::Any,
        }
    }
}

// === impl Address ===

impl Default for Address {
    fn default() -> Self {
        Self((Ipv4Addr::LOCALHOST, 6192).into())
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(AddressVisitor)
    }
}

impl JsonSchema for Address {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "MetricsAddress".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^[0-9A-Fa-f.:%\\[\\]]+:[0-9]{1,5}$"})
    }
}

struct AddressVisitor;

impl Visitor<'_> for AddressVisitor {
    type Value = Address;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Purpose::Metrics.expected())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Address, E> {
        let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() > 0);
        address.map(Address).ok_or_else(|| E::custom(address::refusal(text, Purpose::Metrics)))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Address, E> {
        self.visit_str(&number.to_string())
    }
}

#[cfg(test)]
mod tests {
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error, StrDeserializer};

    use super::*;

    fn read(text: &str) -> Result<SocketAddr, String> {
        let text: StrDeserializer<'_, Error> = text.into_deserializer();
        Address::deserialize(text).map(|address| address.0).map_err(|error| error.to_string())
    }

    #[test]
    fn required_pools_are_found_by_their_discriminant() {
        for required in [RequiredPools::Any, RequiredPools::All, RequiredPools::None] {
            assert_eq!(RequiredPools::of(required as u8), required);
        }
    }

    #[test]
    fn the_default_address_is_loopback() {
        assert!(MetricsConfig::default().address().ip().is_loopback());
    }

    #[test]
    fn an_address_is_numeric_and_has_a_port() {
        assert_eq!(read("[::1]:9000"), Ok(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 9000))));
        assert!(read("localhost:9000").is_err());
        assert!(read("127.0.0.1:0").is_err());
        assert!(read("9000").is_err());
    }
}
