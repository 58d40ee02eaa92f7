//! A backend of a pool, in its short form (an address) and its long form (a mapping).

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use values::number::{MAX_COUNT, Number};
use values::{BackendAddress, Rejection, Scalar, Text};

use crate::pool::{Admin, BackendSettings, UpstreamAddress, Weight};

/// One backend of a pool.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    /// The address of the backend.
    pub address: Text<BackendAddress>,
    /// The weight relative to the other backends of the pool.
    pub weight: Weight,
    /// Whether the backend is used only while no other backend is available.
    pub backup: bool,
    /// The most requests in flight; 0: no limit. `None` means the limit of the pool.
    pub max_requests: Option<Number<0, MAX_COUNT>>,
}

/// Long form of a backend.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct BackendMapping {
    /// The address of the backend: an IP address or `localhost` with a port, such as `10.0.0.1:8080`, or `unix:/path`.
    address: Text<BackendAddress>,
    /// The share of requests relative to the other backends of the pool: a backend of weight 2 gets twice as many as
    /// one of weight 1. From 1 to 1000.
    #[serde(default)]
    weight: WeightNumber,
    /// Whether the backend is used only while no other backend of the pool is available.
    #[serde(default)]
    backup: bool,
    /// The most requests in flight at this backend; 0: no limit. Default: `limits.max_requests` of the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_requests: Option<Number<0, MAX_COUNT>>,
}

#[derive(Default)]
struct WeightNumber(Weight);

type WeightRange = Number<1, 1000>;

// === impl BackendConfig ===

impl BackendConfig {
    /// Returns the most requests in flight, in a pool whose limit is `default`. `None` means no limit.
    pub(super) fn limit(&self, default: Number<0, MAX_COUNT>) -> Option<NonZeroU32> {
        NonZeroU32::new(self.max_requests.unwrap_or(default).get())
    }

    /// Returns the settings, in a pool whose limit is `default` and on a machine with this loopback address.
    pub(super) fn plan(&self, default: Number<0, MAX_COUNT>, loopback: IpAddr) -> BackendSettings {
        BackendSettings {
            address: UpstreamAddress::resolve(self.address.get(), loopback),
            weight: self.weight,
            backup: self.backup,
            max_requests: self.limit(default),
            admin: Admin::InService,
        }
    }
}

impl From<BackendMapping> for BackendConfig {
    fn from(mapping: BackendMapping) -> Self {
        let BackendMapping { address, weight, backup, max_requests } = mapping;
        Self { address, weight: weight.0, backup, max_requests }
    }
}

impl<'de> Deserialize<'de> for BackendConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BackendVisitor)
    }
}

impl Serialize for BackendConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { address, weight, backup, max_requests } = self.clone();
        BackendMapping { address, weight: WeightNumber(weight), backup, max_requests }.serialize(serializer)
    }
}

impl JsonSchema for BackendConfig {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Backend".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let long = BackendMapping::json_schema(generator);
        json_schema!({"anyOf": [BackendAddress::schema(), long]})
    }
}

struct BackendVisitor;

impl<'de> Visitor<'de> for BackendVisitor {
    type Value = BackendConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address such as 10.0.0.1:8080 or unix:/path, or {address: 10.0.0.1:8080, weight: 2}")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<BackendConfig, E> {
        let address = Text::new(text).map_err(E::custom)?;
        Ok(BackendConfig { address, weight: Weight::default(), backup: false, max_requests: None })
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<BackendConfig, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<BackendConfig, A::Error> {
        BackendMapping::deserialize(de::value::MapAccessDeserializer::new(map)).map(BackendConfig::from)
    }
}

// === impl WeightNumber ===

impl Serialize for WeightNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.get().serialize(serializer)
    }
}

impl Scalar for WeightNumber {
    fn expected() -> Cow<'static, str> {
        WeightRange::expected()
    }

    fn from_text(text: &str) -> Result<Self, Rejection> {
        WeightRange::from_text(text).map(Self::from)
    }

    fn from_integer(number: i64) -> Result<Self, Rejection> {
        if number == 0 {
            let hint = "remove a backend that should get no requests";
            return Err(format!("expected {}, found 0\n{hint}", Self::expected()).into());
        }
        WeightRange::from_integer(number).map(Self::from)
    }

    fn from_float(number: f64) -> Result<Self, Rejection> {
        WeightRange::from_float(number).map(Self::from)
    }

    fn schema() -> Schema {
        WeightRange::schema()
    }
}

values::scalar!(WeightNumber);

impl From<WeightRange> for WeightNumber {
    #[expect(clippy::expect_used, reason = "the two ranges are the same")]
    fn from(number: WeightRange) -> Self {
        Self(Weight::new(number.get().into()).expect("the bounds are those of a weight"))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn json(text: &str) -> Result<BackendConfig, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn backends_have_a_short_and_a_long_form() {
        let none = Number::near(0);
        let short = json(r#""10.0.0.1:80""#).expect("it is valid");
        let long = json(r#"{"address": "10.0.0.1:80", "weight": 1, "backup": false}"#).expect("it is valid");
        let plan = |backend: &BackendConfig| backend.plan(none, Ipv4Addr::LOCALHOST.into());
        assert_eq!(plan(&short), plan(&long));
        assert_eq!(plan(&short), BackendSettings::new(([10, 0, 0, 1], 80).into()));
        for weight in ["0", "1001", "-1"] {
            let text = format!(r#"{{"address": "10.0.0.1:80", "weight": {weight}}}"#);
            assert!(json(&text).expect_err("rejected").contains("from 1 to 1000"), "{weight}");
        }
        assert!(json("true").expect_err("rejected").contains("an address such as"));
    }

    #[test]
    fn a_backend_can_be_on_a_unix_socket() {
        for text in [r#""unix:/run/app.sock""#, r#"{"address": "unix:/run/app.sock"}"#] {
            let backend = json(text).expect("it is valid").plan(Number::near(0), Ipv4Addr::LOCALHOST.into());
            assert_eq!(backend.address, UpstreamAddress::unix("/run/app.sock").expect("it is a path"));
        }
    }

    #[test]
    fn localhost_means_the_loopback_address_of_the_machine() {
        let none = Number::near(0);
        for text in [r#""localhost:8081""#, r#"{"address": "LocalHost:8081"}"#] {
            let backend = json(text).expect("it is valid");
            for loopback in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
                assert_eq!(backend.plan(none, loopback), BackendSettings::new((loopback, 8081).into()));
            }
        }
    }

    #[test]
    fn the_limit_of_a_backend_overrides_that_of_the_pool() {
        let limit = |text: &str, pool| json(text).expect("it is valid").limit(Number::near(pool));
        assert_eq!(limit(r#""10.0.0.1:80""#, 0), None);
        assert_eq!(limit(r#""10.0.0.1:80""#, 7), NonZeroU32::new(7));
        assert_eq!(limit(r#"{"address": "10.0.0.1:80", "max_requests": 3}"#, 7), NonZeroU32::new(3));
        assert_eq!(limit(r#"{"address": "10.0.0.1:80", "max_requests": 0}"#, 7), None);
    }
}
