//! The sections of the configuration that this crate owns, as written in the file.
//!
//! Each value is parsed while it is read, so a section never holds an invalid one. Rules that span several keys are not
//! checked here: the crate that reads the whole file checks them, because its messages can point at every key involved.
//! Methods named `plan` convert what was written into settings.

mod backend;
mod balancing;
mod listener;
mod pool;
mod resilience;
mod scalars;

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use http::{HeaderName, Method};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use values::choice::{self, Choice, OtherWords};
use values::{AbsolutePath, HeaderText, RequestPath, Scalar, Text};

use crate::access_log;
use crate::route::{AnyOf, HostPattern, PathPattern};
pub use backend::BackendConfig;
pub use balancing::{HashOnConfig, PolicyName, StickyConfig};
pub use listener::{ClientLimitsConfig, ClientTimeoutsConfig, ListenerConfig};
pub use pool::{LimitsConfig, PoolConfig, PoolFiles, TimeoutsConfig, TlsConfig};
pub use resilience::{
    MAX_ATTEMPTS, OutlierConfig, RetriesConfig, RetryOnConfig, RetryWord, SlowBackendsConfig,
};
pub use scalars::{CookieAge, CookieName, QueryName, ServerName, UpgradeProtocol};

/// Sends the requests that match to a pool. The first route that matches a request decides.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// The conditions for a request, all of which must hold. Default: matches every request.
    #[serde(default, skip_serializing_if = "MatchConfig::is_empty")]
    pub r#match: MatchConfig,
    /// Name of the pool.
    pub pool: String,
}

/// The conditions for a request, all of which must hold.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub struct MatchConfig {
    /// The name of the listener that accepted the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<String>,
    /// The host: `example.com`, or `*.example.com` for all names below it. One value, or a list of alternatives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<OneOrMany<Text<HostPattern>>>,
    /// The whole path, without the query. One value, or a list of alternatives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<OneOrMany<Text<RequestPath>>>,
    /// The beginning of the path: `/v1` matches `/v1` and `/v1/users`, but not `/v10`. One value, or a list of
    /// alternatives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_prefix: Option<OneOrMany<Text<RequestPath>>>,
    /// The method. One value, or a list of alternatives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<OneOrMany<Text<Method>>>,
    /// Headers and the values that they must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub header: BTreeMap<Text<HeaderName>, Text<HeaderText>>,
}

/// One value, or a list of at least one.
#[derive(Clone, Debug)]
pub struct OneOrMany<T>(pub Vec<T>);

/// The format and the target of the access log.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLogConfig {
    /// The format of a line.
    #[serde(deserialize_with = "choice::read")]
    pub format: FormatConfig,
    /// The file to append to; default: standard output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<Text<AbsolutePath>>,
}

/// The format of a line in the access log.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum FormatConfig {
    /// No access log.
    None,
    /// Plain text for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

// === impl MatchConfig ===

impl MatchConfig {
    /// Whether every request matches.
    pub fn is_empty(&self) -> bool {
        let Self { listener, host, path, path_prefix, method, header } = self;
        listener.is_none()
            && host.is_none()
            && path.is_none()
            && path_prefix.is_none()
            && method.is_none()
            && header.is_empty()
    }

    /// Returns the alternatives for the host. `None` matches any request, even one without a host.
    pub fn hosts(&self) -> Option<AnyOf<HostPattern>> {
        self.host.as_ref().and_then(|hosts| AnyOf::new(hosts.values().cloned()))
    }

    /// Returns the alternatives for the path. If `path` is set, `path_prefix` is ignored.
    pub fn paths(&self) -> AnyOf<PathPattern> {
        let exact = |path: &RequestPath| PathPattern::Exact(path.0.as_str().into());
        let prefix = |path: &RequestPath| PathPattern::Prefix(path.0.as_str().into());
        let written = match (&self.path, &self.path_prefix) {
            (Some(paths), _) => AnyOf::new(paths.values().map(exact)),
            (None, Some(prefixes)) => AnyOf::new(prefixes.values().map(prefix)),
            (None, None) => None,
        };
        written.unwrap_or(AnyOf::One(PathPattern::Any))
    }

    /// Returns the alternatives for the method. An empty list matches any method.
    pub fn methods(&self) -> Vec<Method> {
        self.method.iter().flat_map(OneOrMany::values).cloned().collect()
    }
}

// === impl OneOrMany ===

impl<T> OneOrMany<Text<T>> {
    /// Returns the values in order.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(Text::get)
    }
}

impl<T: Serialize> Serialize for OneOrMany<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(serializer),
            many => many.serialize(serializer),
        }
    }
}

impl<'de, T: Scalar> Deserialize<'de> for OneOrMany<Text<T>> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrManyVisitor(PhantomData))
    }
}

impl<T: Scalar> JsonSchema for OneOrMany<Text<T>> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("{}, or a list", T::expected()).into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [T::schema(), {"type": "array", "items": T::schema(), "minItems": 1}]})
    }
}

struct OneOrManyVisitor<T>(PhantomData<T>);

impl<'de, T: Scalar> Visitor<'de> for OneOrManyVisitor<T> {
    type Value = OneOrMany<Text<T>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, or a list of them", T::expected())
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
                "an empty list does not match any request\nremove the key to match everything",
            ));
        }
        Ok(OneOrMany(many))
    }
}

// === impl FormatConfig ===

impl Choice for FormatConfig {
    const OTHER_WORDS: OtherWords = &[
        (
            &[
                "common", "combined", "clf", "plain", "console", "line", "main", "default", "apache",
                "nginx", "httplog", "tcplog", "logfmt", "txt", "string",
            ],
            "text",
        ),
        (&["jsonl", "json_lines", "ndjson", "structured", "ecs"], "json"),
        (&["disabled", "disable", "no", "never", "null"], "none"),
    ];
}

// === impl AccessLogConfig ===

impl AccessLogConfig {
    /// Returns the settings.
    pub fn plan(&self) -> access_log::Settings {
        access_log::Settings {
            format: match self.format {
                FormatConfig::None => access_log::Format::Off,
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
    fn a_match_takes_one_or_more_methods() {
        let methods = |text: &str| json::<MatchConfig>(text).map(|written| written.methods());
        assert_eq!(methods(r#"{"method": "GET"}"#), Ok(vec![Method::GET]));
        assert_eq!(methods(r#"{"method": ["GET", "POST"]}"#), Ok(vec![Method::GET, Method::POST]));
        assert_eq!(methods("{}"), Ok(vec![]));
        assert!(methods(r#"{"method": []}"#).expect_err("rejected").contains("does not match any request"));
    }

    #[test]
    fn a_match_takes_one_or_more_hosts_and_paths() {
        let read = |text: &str| json::<MatchConfig>(text).expect("it is valid");
        let host = |text: &str| HostPattern::parse(text).expect("it is a host");
        let prefix = |text: &str| PathPattern::Prefix(text.into());
        assert_eq!(read(r#"{"host": "a.test"}"#).hosts(), Some(AnyOf::One(host("a.test"))));
        assert_eq!(read(r#"{"host": ["a.test"]}"#).hosts(), Some(AnyOf::One(host("a.test"))));
        let two = AnyOf::Several([host("a.test"), host("*.b.test")].into());
        assert_eq!(read(r#"{"host": ["a.test", "*.b.test"]}"#).hosts(), Some(two));
        assert_eq!(
            read(r#"{"path_prefix": ["/a", "/b"]}"#).paths(),
            AnyOf::Several([prefix("/a"), prefix("/b")].into())
        );
        assert_eq!(read(r#"{"path": "/a"}"#).paths(), AnyOf::One(PathPattern::Exact("/a".into())));
        assert_eq!(read("{}").paths(), AnyOf::One(PathPattern::Any));
        for key in ["host", "path", "path_prefix"] {
            let rejection = json::<MatchConfig>(&format!(r#"{{"{key}": []}}"#)).expect_err("rejected");
            assert!(rejection.contains("does not match any request"), "{rejection}");
        }
    }

    #[test]
    fn a_written_route_reads_back_unchanged() {
        let text = r#"{"match":{"host":"*.a.example","path":["/a","/b"],"method":"GET","header":{"x-a":"1"}},"pool":"one"}"#;
        let route: RouteConfig = json(text).expect("it is valid");
        assert_eq!(serde_json::to_string(&route).expect("it can be written"), text);
    }
}
