//! The keys by which a pool chooses a backend: the policy, the input of a hash, and the session cookie.

use std::borrow::Cow;
use std::fmt;

use http::HeaderName;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use values::choice::{self, Choice, OtherWords};
use values::{AbsolutePath, Text};

use super::scalars::{CookieAge, CookieName, QueryName};
use crate::policy::Algorithm;
use crate::pool::{HashOn, SessionKeys, StickySettings};

/// The name of a policy.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum PolicyName {
    /// Takes one backend after the other, in proportion to their weights.
    #[default]
    RoundRobin,
    /// Takes a random backend, in proportion to the weights.
    Random,
    /// Takes the backend with the fewest requests in flight for its weight: of two random ones, or of all in a pool of
    /// up to four.
    LeastRequest,
    /// Takes the backend with the shortest expected response time, of two random ones. The estimate uses recent
    /// response times and the requests in flight.
    PeakEwma,
    /// Hashes `hash_on` onto a ring, like nginx. Few requests move when a backend is added or removed.
    ConsistentHash,
    /// Hashes `hash_on` into a table, which distributes requests more evenly than a ring.
    Maglev,
}

/// The part of a request that is hashed.
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

/// The cookie that keeps a client at one backend.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct StickyConfig {
    /// Name of the cookie.
    pub cookie: Text<CookieName>,
    /// Time for which the client keeps the cookie after its last request; default: until the browser closes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Text<CookieAge>>,
    /// A file with the keys that sign the cookie: one per line, in hex, of 128 bits or more. The first key signs, and
    /// all keys verify. A change of the file takes effect without a reload. Default: the cookie is not signed, so a
    /// client can guess the backend's address in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<Text<AbsolutePath>>,
}

// === impl PolicyName ===

impl Choice for PolicyName {
    const OTHER_WORDS: OtherWords = &[
        (
            &[
                "leastconn",
                "least_conn",
                "least_connection",
                "least_connections",
                "least_requests",
                "leastrequest",
                "least_outstanding_requests",
                "least_active",
                "least_loaded",
                "least_load",
                "lc",
                "wlc",
                "p2c",
                "power_of_two",
                "power_of_two_choices",
                "power_of_two_random_choices",
                "random2",
                "random_two",
                "random_two_least_conn",
                "random_choose",
                "random_choose_2",
                "random_2",
                "random(2)",
            ],
            "least_request",
        ),
        (
            &[
                "ewma",
                "least_time",
                "leasttime",
                "least_response_time",
                "latency",
                "fastest",
                "response_time",
                "peakewma",
                "random_two_least_time",
            ],
            "peak_ewma",
        ),
        (&["maglev_hash", "maglevhash", "maglev_lb"], "maglev"),
        (
            &[
                "rr",
                "wrr",
                "roundrobin",
                "round",
                "weighted",
                "weighted_round_robin",
                "static_rr",
                "smooth",
                "default",
            ],
            "round_robin",
        ),
        (&["rand", "weighted_random"], "random"),
        (&["ring_hash", "ringhash", "ketama", "hash", "consistent", "hashing"], "consistent_hash"),
        (
            &[
                "ip_hash",
                "iphash",
                "source",
                "source_ip",
                "source_hash",
                "client_ip",
                "client_ip_hash",
                "remote_ip",
                "sh",
            ],
            "write consistent_hash, which hashes the address of the client unless `hash_on` says otherwise",
        ),
        (
            &["uri", "uri_hash", "url_hash", "url", "request_uri", "path_hash"],
            "write consistent_hash, and `hash_on: uri` beside it",
        ),
        (
            &["header", "hdr", "header_hash"],
            "write consistent_hash, and `hash_on: {header: X-User}` beside it",
        ),
        (
            &["query", "url_param", "query_hash"],
            "write consistent_hash, and `hash_on: {query: id}` beside it",
        ),
        (
            &["cookie", "cookie_hash", "sticky", "sticky_session", "session", "rdp_cookie"],
            "remove the key, and write `sticky: {cookie: lb_session}` beside it",
        ),
        (
            &["first", "failover", "priority", "active_passive"],
            "remove the key, and write `backup: true` for all backends except the first",
        ),
    ];
}

impl PolicyName {
    /// Returns the algorithm.
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

    /// Whether the policy hashes a part of the request.
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

/// The valid forms, for messages.
const HASH_ON: &[&str] = &["client_ip", "uri", "{header: NAME}", "{cookie: NAME}", "{query: NAME}"];

const OTHER_WORDS: OtherWords = &[
    (
        &[
            "ip",
            "client",
            "clientip",
            "remote_ip",
            "remote_addr",
            "remote_address",
            "binary_remote_addr",
            "source",
            "source_ip",
            "source_address",
            "src",
        ],
        "client_ip",
    ),
    (&["url", "request_uri", "path", "full_path", "path_and_query"], "uri"),
    (
        &["query_string", "query_param", "query_parameter", "parameter", "param", "arg", "url_param"],
        "write {query: id} with your name in place of id",
    ),
    (&["host", "hostname", "http_host"], "write {header: Host}"),
    (&["hdr", "header_name", "http_header"], "write {header: X-User} with your name in place of X-User"),
];

/// The long form. It has exactly one of these keys.
#[derive(Deserialize, Serialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
struct HashOnMapping {
    /// Hashes the value of this header.
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<Text<HeaderName>>,
    /// Hashes the value of this cookie.
    #[serde(skip_serializing_if = "Option::is_none")]
    cookie: Option<Text<CookieName>>,
    /// Hashes the value of this query parameter, as sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    query: Option<Text<QueryName>>,
}

/// Short form.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
enum HashOnWord {
    /// Hashes the IP address of the client. Behind a trusted proxy, that is the address which the proxy reports.
    ClientIp,
    /// Hashes path and query, as sent.
    Uri,
}

impl HashOnConfig {
    /// Returns the setting.
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
            (None, None, None) => {
                Err("`hash_on` does not say what to hash\nwrite {header: NAME}, or remove the key")
            }
            _ => Err("`hash_on` takes only one of header, cookie and query\nkeep one of them"),
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
            _ => {
                let rejection = choice::rejection(text, HASH_ON, OTHER_WORDS);
                return Err(rejection.into_error(Unexpected::Str(text), "client_ip, uri, or what to hash"));
            }
        };
        Err(E::custom(format!(
            "`{text}` needs the name of a {what}\nwrite {{{text}: {name}}} with your name in place of {name}"
        )))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<HashOnConfig, A::Error> {
        let mapping = HashOnMapping::deserialize(de::value::MapAccessDeserializer::new(map))?;
        mapping.only().map_err(de::Error::custom)
    }
}

// === impl StickyConfig ===

impl StickyConfig {
    /// Returns the settings, with the keys of the key file.
    pub fn plan(&self, keys: Option<SessionKeys>) -> StickySettings {
        let ttl = self.ttl.as_ref().map(|ttl| ttl.get().get());
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
    fn every_policy_has_its_name_in_the_configuration() {
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
    fn hash_on_is_a_word_or_exactly_one_name() {
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
            ("{}", "does not say what to hash"),
            (r#"{"header":"a","query":"b"}"#, "takes only one of"),
            (r#"{"header":"a b"}"#, "the name of a header"),
            ("7", "client_ip, uri, or"),
        ] {
            let message = json::<HashOnConfig>(text).expect_err("rejected");
            assert!(message.contains(why), "{text}: {message}");
        }
    }

    #[test]
    fn a_sticky_cookie_has_a_name_and_an_optional_ttl() {
        let sticky: StickyConfig = json(r#"{"cookie":"lb","ttl":"1h"}"#).expect("it is valid");
        assert_eq!(
            sticky.plan(None),
            StickySettings { ttl: Some(Duration::from_secs(3600)), ..StickySettings::new("lb") }
        );
        assert!(json::<StickyConfig>("{}").expect_err("rejected").contains("cookie"));
    }
}
