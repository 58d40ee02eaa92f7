//! The sections of the configuration that this crate owns, as written in the file.
//!
//! Each value is parsed where it is read, so no section can hold a bad one. Rules that span several keys belong to
//! whoever reads the whole file, since a refusal there can point at all the places. Methods named `plan` turn what
//! was written into what was meant.

mod text;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use http::{HeaderName, Method};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::access_log;
use crate::listener::ListenAddress;
use crate::pool::{BackendSettings, PolicyKind, Timeouts, Weight};
use crate::route::{HostPattern, PathPattern};
pub use text::{FromText, Text};
pub use values::{
    AbsolutePath, AnyDuration, BackendAddress, HeaderText, HostHeader, Name, PositiveDuration, ReadPath,
    RequestPath, ServerName, TcpAddress,
};

/// Where clients connect.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// An IP address and a port, such as `0.0.0.0:6188`, or `unix:/path`.
    pub address: Text<ListenAddress>,
    /// What routes, metrics and the access log call it; default: the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Text<Name>>,
}

/// Backends that serve the same thing, and how they are spoken to.
//
// `Check` is the section `health_check`, which another crate owns. Doc comments are shown by editors.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct PoolConfig<Check: Default> {
    /// How the next backend is chosen.
    #[serde(default)]
    pub policy: PolicyConfig,
    /// The backends: `10.0.0.1:8080`, or `{address: 10.0.0.1:8080, weight: 2}`.
    pub backends: Vec<BackendConfig>,
    /// TLS to the backends; default: plain HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
    /// The `Host` header sent to the backends; default: the client's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Text<HostHeader>>,
    /// How long the backends may take.
    #[serde(default)]
    pub timeouts: TimeoutsConfig,
    /// How the backends are checked.
    #[serde(default)]
    pub health_check: Check,
    /// What happens to a request whose backend cannot be reached.
    #[serde(default)]
    pub retries: RetriesConfig,
}

/// The policies by name.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum PolicyConfig {
    /// One backend after the other, each as often as its weight says.
    #[default]
    RoundRobin,
}

/// One backend of a pool.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    /// Where it listens.
    pub address: Text<BackendAddress>,
    /// Its share of the traffic.
    pub weight: Weight,
}

/// TLS to the backends of a pool.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The name sent in the handshake, which the certificate must be for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sni: Option<Text<ServerName>>,
    /// Whether the certificate is verified.
    #[serde(default = "yes")]
    pub verify: bool,
    /// A PEM file of the authorities to trust instead of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<Text<ReadPath>>,
}

/// How long the backends of a pool may take.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct TimeoutsConfig {
    /// To make a connection, TLS included.
    pub connect: Text<PositiveDuration>,
    /// To the head of the response, and between any two reads or writes after it.
    pub response: Text<PositiveDuration>,
    /// A connection that nothing used for this long is closed.
    pub idle: Text<PositiveDuration>,
}

/// What happens to a request whose backend cannot be reached.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct RetriesConfig {
    /// How many more backends are tried, each at most once.
    pub attempts: usize,
}

/// Which pool a request goes to; the first route that matches decides.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// What a request must be like; all that is named must match. Default: any request.
    #[serde(default, skip_serializing_if = "MatchConfig::is_empty")]
    pub r#match: MatchConfig,
    /// The name of the pool.
    pub pool: String,
}

/// What a request must be like.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub struct MatchConfig {
    /// The name of the listener that it came through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<String>,
    /// The host: `example.com`, or `*.example.com` for all names below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Text<HostPattern>>,
    /// The whole path, without the query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<Text<RequestPath>>,
    /// The beginning of the path: `/v1` matches `/v1` and `/v1/users`, but not `/v10`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_prefix: Option<Text<RequestPath>>,
    /// One method, or a list of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<OneOrMany<Text<Method>>>,
    /// Headers with the values that they must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub header: BTreeMap<Text<HeaderName>, Text<HeaderText>>,
}

/// A value, or a list of at least one.
#[derive(Clone, Debug)]
pub struct OneOrMany<T>(pub Vec<T>);

/// What is written about each request, and where.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLogConfig {
    /// How a line looks.
    pub format: FormatConfig,
    /// The file to append to; default: the standard output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<Text<AbsolutePath>>,
}

/// How a line of the access log looks.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum FormatConfig {
    /// Nothing is written.
    Off,
    /// For reading.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

fn yes() -> bool {
    true
}

// === impl PolicyConfig ===

impl PolicyConfig {
    /// What it means.
    pub fn plan(self) -> PolicyKind {
        match self {
            Self::RoundRobin => PolicyKind::RoundRobin,
        }
    }
}

// === impl BackendConfig ===

impl BackendConfig {
    /// What it means.
    pub fn plan(&self) -> BackendSettings {
        BackendSettings { address: self.address.get().0, weight: self.weight }
    }
}

/// The long form of a backend.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct BackendMapping {
    /// Where it listens.
    address: Text<BackendAddress>,
    /// Its share of the traffic relative to the other backends of the pool.
    #[serde(default)]
    weight: WeightNumber,
}

#[derive(Default)]
struct WeightNumber(Weight);

impl<'de> Deserialize<'de> for BackendConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BackendVisitor)
    }
}

impl Serialize for BackendConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        BackendMapping { address: self.address.clone(), weight: WeightNumber(self.weight) }
            .serialize(serializer)
    }
}

impl JsonSchema for BackendConfig {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
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
        f.write_str("an address such as 10.0.0.1:8080, or {address: 10.0.0.1:8080, weight: 2}")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<BackendConfig, E> {
        let address = Text::new(text).map_err(E::custom)?;
        Ok(BackendConfig { address, weight: Weight::default() })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<BackendConfig, A::Error> {
        let backend = BackendMapping::deserialize(de::value::MapAccessDeserializer::new(map))?;
        Ok(BackendConfig { address: backend.address, weight: backend.weight.0 })
    }
}

// === impl WeightNumber ===

impl Serialize for WeightNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.get().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for WeightNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(deserializer)?;
        let weight = u64::try_from(number).ok().and_then(Weight::new);
        let refusal = || match number {
            0 => "expected a weight from 1 to 1000, found 0\nremove a backend that is to have no traffic"
                .to_owned(),
            _ => format!("expected a weight from 1 to 1000, found {number}"),
        };
        weight.map(Self).ok_or_else(|| de::Error::custom(refusal()))
    }
}

impl JsonSchema for WeightNumber {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Weight".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "integer", "minimum": 1, "maximum": 1000})
    }
}

// === impl TimeoutsConfig ===

impl Default for TimeoutsConfig {
    fn default() -> Self {
        Self { connect: Text::literal("3s"), response: Text::literal("60s"), idle: Text::literal("60s") }
    }
}

impl TimeoutsConfig {
    /// What they mean.
    pub fn plan(&self) -> Timeouts {
        Timeouts { connect: self.connect.get().0, response: self.response.get().0, idle: self.idle.get().0 }
    }
}

// === impl RetriesConfig ===

impl Default for RetriesConfig {
    fn default() -> Self {
        Self { attempts: 1 }
    }
}

// === impl MatchConfig ===

impl MatchConfig {
    /// Whether it matches every request.
    pub fn is_empty(&self) -> bool {
        let Self { listener, host, path, path_prefix, method, header } = self;
        listener.is_none()
            && host.is_none()
            && path.is_none()
            && path_prefix.is_none()
            && method.is_none()
            && header.is_empty()
    }

    /// What `path` and `path_prefix` mean; when both are given, the whole path.
    pub fn path_pattern(&self) -> PathPattern {
        match (&self.path, &self.path_prefix) {
            (Some(path), _) => PathPattern::Exact(path.get().0.clone().into()),
            (None, Some(prefix)) => PathPattern::Prefix(prefix.get().0.clone().into()),
            (None, None) => PathPattern::Any,
        }
    }

    /// The methods; empty: any.
    pub fn methods(&self) -> Vec<Method> {
        let written = self.method.iter().flat_map(|methods| &methods.0);
        written.map(|method| method.get().clone()).collect()
    }
}

// === impl OneOrMany ===

impl<T: Serialize> Serialize for OneOrMany<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: FromText> Deserialize<'de> for OneOrMany<Text<T>> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrManyVisitor(PhantomData))
    }
}

impl<T: FromText> JsonSchema for OneOrMany<Text<T>> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("{}, or a list", T::EXPECTED).into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [T::schema(), {"type": "array", "items": T::schema(), "minItems": 1}]})
    }
}

struct OneOrManyVisitor<T>(PhantomData<T>);

impl<'de, T: FromText> Visitor<'de> for OneOrManyVisitor<T> {
    type Value = OneOrMany<Text<T>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, or a list of them", T::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Text::new(text).map(|one| OneOrMany(vec![one])).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut many = Vec::new();
        while let Some(item) = items.next_element()? {
            many.push(item);
        }
        if many.is_empty() {
            return Err(de::Error::custom(
                "an empty list would never match\nremove the key to match everything",
            ));
        }
        Ok(OneOrMany(many))
    }
}

// === impl AccessLogConfig ===

impl Default for AccessLogConfig {
    fn default() -> Self {
        Self { format: FormatConfig::Text, path: None }
    }
}

impl AccessLogConfig {
    /// What it means.
    pub fn plan(&self) -> access_log::Settings {
        access_log::Settings {
            format: match self.format {
                FormatConfig::Off => access_log::Format::Off,
                FormatConfig::Text => access_log::Format::Text,
                FormatConfig::Json => access_log::Format::Json,
            },
            target: match &self.path {
                Some(path) => access_log::Target::File(path.get().0.clone()),
                None => access_log::Target::Stdout,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json<T: de::DeserializeOwned>(text: &str) -> Result<T, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_smallest_pool_has_the_documented_defaults() {
        let pool: PoolConfig<()> =
            json(r#"{"backends": ["10.0.0.1:80"], "health_check": null}"#).expect("it is valid");
        assert_eq!(pool.timeouts.plan(), Timeouts::default());
        assert_eq!(pool.retries.attempts, 1);
        assert_eq!(pool.policy.plan(), PolicyKind::RoundRobin);
        assert!(pool.tls.is_none());
    }

    #[test]
    fn backends_have_a_short_and_a_long_form() {
        let short: BackendConfig = json(r#""10.0.0.1:80""#).expect("it is valid");
        let long: BackendConfig = json(r#"{"address": "10.0.0.1:80", "weight": 1}"#).expect("it is valid");
        assert_eq!(short.plan(), long.plan());
        for weight in ["0", "1001", "-1"] {
            let text = format!(r#"{{"address": "10.0.0.1:80", "weight": {weight}}}"#);
            assert!(
                json::<BackendConfig>(&text).expect_err("refused").contains("from 1 to 1000"),
                "{weight}"
            );
        }
        assert!(json::<BackendConfig>("7").expect_err("refused").contains("an address such as"));
    }

    #[test]
    fn a_match_takes_one_method_or_several_but_not_none() {
        let methods = |text: &str| json::<MatchConfig>(text).map(|written| written.methods());
        assert_eq!(methods(r#"{"method": "GET"}"#), Ok(vec![Method::GET]));
        assert_eq!(methods(r#"{"method": ["GET", "POST"]}"#), Ok(vec![Method::GET, Method::POST]));
        assert_eq!(methods("{}"), Ok(vec![]));
        assert!(methods(r#"{"method": []}"#).expect_err("refused").contains("never match"));
    }

    #[test]
    fn what_is_written_out_reads_back_the_same() {
        let text = r#"{"match":{"host":"*.a.example","method":["GET"],"header":{"x-a":"1"}},"pool":"one"}"#;
        let route: RouteConfig = json(text).expect("it is valid");
        assert_eq!(serde_json::to_string(&route).expect("it can be written"), text);
    }
}
