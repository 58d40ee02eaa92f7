//! How a pool chooses: its policy, what a hash is made of, and the cookie that keeps a client at its backend.

use std::borrow::Cow;
use std::fmt;

use http::HeaderName;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::text::Text;
use super::values::{AbsolutePath, CookieAge, CookieName, QueryName};
use crate::policy::Algorithm;
use crate::pool::{HashOn, SessionKeys, StickySettings};

/// The policies by name.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum PolicyName {
    /// One backend after the other, each as often as its weight says.
    #[default]
    RoundRobin,
    /// Any backend, each as often as its weight says.
    Random,
    /// The one of two random backends with fewer requests in flight for its weight; of up to four, the least of all.
    LeastRequest,
    /// The one of two random backends that is likely to answer sooner: by its latest times, and by its requests in
    /// flight.
    PeakEwma,
    /// The backend that `hash_on` leads to on a ring; few requests move when backends come and go, as in nginx.
    ConsistentHash,
    /// The backend that `hash_on` leads to in a table; spread more evenly than on a ring.
    Maglev,
}

/// What of a request a hash is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashOnConfig {
    /// `client_ip`
    ClientIp,
    /// `uri`
    Uri,
    /// `{header: NAME}`
    Header(Text<HeaderName>),
    /// `{cookie: NAME}`
    Cookie(Text<CookieName>),
    /// `{query: NAME}`
    Query(Text<QueryName>),
}

/// The cookie that keeps a client at its backend.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct StickyConfig {
    /// The name of the cookie, which the load balancer sets.
    pub cookie: Text<CookieName>,
    /// How long the client keeps it after its last request; default: until it ends its session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Text<CookieAge>>,
    /// A file with the keys that sign it: one per line, in hex, 128 bits or more. The first key signs, and all verify. The
    /// file is read again when it changes. Default: the cookie is not signed, so that a client can guess the address in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<Text<AbsolutePath>>,
}

// === impl PolicyName ===

impl PolicyName {
    /// What it means.
    pub fn plan(self) -> Algorithm {
        match self {
            Self::RoundRobin => Algorithm::RoundRobin,
            Self::Random => Algorithm::Random,
            Self::LeastRequest => Algorithm::LeastRequest,
            Self::PeakEwma => Algorithm::PeakEwma,
            Self::ConsistentHash => Algorithm::ConsistentHash,
            Self::Maglev => Algorithm::Maglev,
        }
    }

    /// Whether it looks at the request.
    pub fn hashes(self) -> bool {
        matches!(self, Self::ConsistentHash | Self::Maglev)
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

// === impl HashOnConfig ===

/// What can be written, for messages.
const HASH_ON: &[&str] = &["client_ip", "uri", "{header: NAME}", "{cookie: NAME}", "{query: NAME}"];

/// The long form: exactly one of its keys.
#[derive(Deserialize, Serialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
struct HashOnMapping {
    /// The value of this header.
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<Text<HeaderName>>,
    /// The value of this cookie.
    #[serde(skip_serializing_if = "Option::is_none")]
    cookie: Option<Text<CookieName>>,
    /// The value of this query parameter, as sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    query: Option<Text<QueryName>>,
}

/// The short form.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
enum HashOnWord {
    /// The address of the client, as told by a trusted proxy if there is one.
    ClientIp,
    /// Path and query, as sent.
    Uri,
}

impl HashOnConfig {
    /// What it means.
    pub fn plan(&self) -> HashOn {
        match self {
            Self::ClientIp => HashOn::ClientIp,
            Self::Uri => HashOn::Uri,
            Self::Header(name) => HashOn::Header(name.get().clone()),
            Self::Cookie(name) => HashOn::Cookie(name.get().0.clone()),
            Self::Query(name) => HashOn::Query(name.get().0.clone()),
        }
    }
}

impl HashOnMapping {
    fn only(self) -> Result<HashOnConfig, &'static str> {
        match (self.header, self.cookie, self.query) {
            (Some(name), None, None) => Ok(HashOnConfig::Header(name)),
            (None, Some(name), None) => Ok(HashOnConfig::Cookie(name)),
            (None, None, Some(name)) => Ok(HashOnConfig::Query(name)),
            (None, None, None) => Err("nothing is named to hash\nwrite {header: NAME}, or remove the key"),
            _ => Err("a hash is made of one thing, and several are named\nkeep one of them"),
        }
    }
}

impl<'de> Deserialize<'de> for HashOnConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(HashOnVisitor)
    }
}

impl Serialize for HashOnConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mapping = HashOnMapping::default();
        match self.clone() {
            Self::ClientIp => HashOnWord::ClientIp.serialize(serializer),
            Self::Uri => HashOnWord::Uri.serialize(serializer),
            Self::Header(name) => HashOnMapping { header: Some(name), ..mapping }.serialize(serializer),
            Self::Cookie(name) => HashOnMapping { cookie: Some(name), ..mapping }.serialize(serializer),
            Self::Query(name) => HashOnMapping { query: Some(name), ..mapping }.serialize(serializer),
        }
    }
}

impl JsonSchema for HashOnConfig {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "HashOn".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (word, mapping) = (HashOnWord::json_schema(generator), HashOnMapping::json_schema(generator));
        json_schema!({"anyOf": [word, mapping]})
    }
}

struct HashOnVisitor;

impl<'de> Visitor<'de> for HashOnVisitor {
    type Value = HashOnConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("client_ip, uri, or what to hash, such as {header: X-User}")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<HashOnConfig, E> {
        let (what, name) = match text {
            "client_ip" => return Ok(HashOnConfig::ClientIp),
            "uri" => return Ok(HashOnConfig::Uri),
            "header" => ("header", "X-User"),
            "cookie" => ("cookie", "session"),
            "query" => ("parameter", "id"),
            _ => return Err(E::unknown_variant(text, HASH_ON)),
        };
        Err(E::custom(format!(
            "`{text}` does not say which {what}\nwrite {{{text}: {name}}}, with the name of yours"
        )))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<HashOnConfig, A::Error> {
        let mapping = HashOnMapping::deserialize(de::value::MapAccessDeserializer::new(map))?;
        mapping.only().map_err(de::Error::custom)
    }
}

// === impl StickyConfig ===

impl StickyConfig {
    /// What it means. `keys` are those of the key file.
    pub fn plan(&self, keys: Option<SessionKeys>) -> StickySettings {
        let ttl = self.ttl.as_ref().map(|ttl| ttl.get().0);
        StickySettings { cookie: self.cookie.get().0.clone(), ttl, keys }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn json<T: de::DeserializeOwned>(text: &str) -> Result<T, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_policy_is_called_what_it_is_written_as() {
        for (word, algorithm) in [
            ("round_robin", Algorithm::RoundRobin),
            ("random", Algorithm::Random),
            ("least_request", Algorithm::LeastRequest),
            ("peak_ewma", Algorithm::PeakEwma),
            ("consistent_hash", Algorithm::ConsistentHash),
            ("maglev", Algorithm::Maglev),
        ] {
            let name: PolicyName = json(&format!("{word:?}")).expect("it is a policy");
            assert_eq!((name.plan(), name.to_string()), (algorithm, word.to_owned()));
        }
        assert_eq!(PolicyName::default().plan(), Algorithm::default());
    }

    #[test]
    fn a_hash_is_made_of_a_word_or_of_one_name() {
        for (text, meaning) in [
            (r#""client_ip""#, HashOn::ClientIp),
            (r#""uri""#, HashOn::Uri),
            (r#"{"header":"X-User"}"#, HashOn::Header(HeaderName::from_static("x-user"))),
            (r#"{"cookie":"session"}"#, HashOn::Cookie("session".into())),
            (r#"{"query":"id"}"#, HashOn::Query("id".into())),
        ] {
            let written: HashOnConfig = json(text).expect("it is valid");
            assert_eq!(written.plan(), meaning);
            assert_eq!(serde_json::to_string(&written).expect("it can be written"), text);
        }
        for (text, why) in [
            (r#""header""#, "write {header: X-User}"),
            (r#""ip""#, "client_ip"),
            ("{}", "nothing is named"),
            (r#"{"header":"a","query":"b"}"#, "several are named"),
            (r#"{"header":"a b"}"#, "the name of a header"),
            ("7", "client_ip, uri, or"),
        ] {
            let message = json::<HashOnConfig>(text).expect_err("refused");
            assert!(message.contains(why), "{text}: {message}");
        }
    }

    #[test]
    fn a_sticky_cookie_has_a_name_and_perhaps_an_age() {
        let sticky: StickyConfig = json(r#"{"cookie":"lb","ttl":"1h"}"#).expect("it is valid");
        assert_eq!(
            sticky.plan(None),
            StickySettings { ttl: Some(Duration::from_secs(3600)), ..StickySettings::new("lb") }
        );
        assert!(json::<StickyConfig>("{}").expect_err("refused").contains("cookie"));
    }
}
