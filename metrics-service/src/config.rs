//! The sections `metrics` and `readiness` of the configuration, as written in the file.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use values::choice::{self, Choice, OtherWords};
use values::{TcpAddress, Text};

/// HTTP server for metrics, probes and status. It changes nothing.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// IP address and port of the HTTP server for metrics, probes and status.
    address: Text<TcpAddress>,
}

/// Condition under which `/readyz` responds 200, once the daemon has started and until it drains.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct ReadinessConfig {
    /// Pools that must have a ready backend. With `any`, a broken application does not take every load balancer in
    /// front of it out of service.
    #[serde(deserialize_with = "choice::read")]
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

// === impl MetricsConfig ===

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { address: Text::literal("127.0.0.1:6192") }
    }
}

impl MetricsConfig {
    /// The address of the server; the port is above 0.
    pub fn address(&self) -> SocketAddr {
        self.address.get().0
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

impl Choice for RequiredPools {
    const OTHER_WORDS: OtherWords = &[
        (&["every", "each", "everything", "full", "strict"], "all"),
        (&["one", "some", "at_least_one", "any_of", "default", "1"], "any"),
        (&["off", "never", "no", "nothing", "ignore", "disabled", "0"], "none"),
    ];
}

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
