//! The leaf values of the section `health_check`. Each type refuses invalid input when it is read, so it holds only
//! valid values.

mod scalar;

use std::borrow::Cow;
use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use http::uri::PathAndQuery;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use values::duration;

use self::scalar::FromScalar;

/// A duration above zero, written `250ms`, `5s`, `1m` or `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DurationText(Duration);

/// A share from 0 to 100 percent, written as a whole number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u8);

/// A number of consecutive checks, at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CheckCount(NonZeroU32);

/// An inclusive range of status codes, written `200-399` or `204`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusRange {
    first: u16,
    last: u16,
}

/// The method of an HTTP check, written in upper case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckMethod(http::Method);

/// The path of an HTTP check, with an optional query; it begins with `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckPath(PathAndQuery);

/// The kind of check as written: `tcp`, `http`, `grpc` or `none`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CheckType {
    /// Connect, with a TLS handshake if the pool uses TLS.
    #[default]
    Tcp,
    /// Send a request and compare the response with what is expected.
    Http,
    /// Query the backend's gRPC health service.
    Grpc,
    /// No checks: every backend counts as up.
    None,
}

// === impl DurationText ===

impl DurationText {
    /// `None` when `duration` is zero.
    pub fn new(duration: Duration) -> Option<Self> {
        (!duration.is_zero()).then_some(Self(duration))
    }

    pub(crate) const fn from_secs(seconds: u64) -> Self {
        assert!(seconds > 0, "a duration is above zero");
        Self(Duration::from_secs(seconds))
    }

    /// The duration, above zero.
    pub fn get(self) -> Duration {
        self.0
    }
}

impl FromScalar for DurationText {
    const EXPECTED: &'static str = duration::EXPECTED;

    fn from_text(text: &str) -> Result<Self, String> {
        duration::read(text, |duration| {
            if duration == Duration::MAX {
                return Err(format!("the duration {text} is too long"));
            }
            Self::new(duration).ok_or_else(|| format!("a duration must be above zero, found {text}"))
        })
    }

    fn from_integer(number: i64) -> Result<Self, String> {
        Self::from_text(&number.to_string())
    }

    fn from_float(number: f64) -> Result<Self, String> {
        Self::from_text(&number.to_string())
    }
}

impl fmt::Display for DurationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0.as_millis();
        let (unit, name) = [(3_600_000, "h"), (60_000, "m"), (1_000, "s")]
            .into_iter()
            .find(|(unit, _)| milliseconds.is_multiple_of(*unit))
            .unwrap_or((1, "ms"));
        write!(f, "{}{name}", milliseconds / unit)
    }
}

// === impl Percent ===

impl Percent {
    /// `None` above 100.
    pub fn new(percent: u8) -> Option<Self> {
        (percent <= 100).then_some(Self(percent))
    }

    pub(crate) const TEN: Self = Self(10);

    /// The share as a number from 0.0 to 1.0.
    pub(crate) fn as_fraction(self) -> f64 {
        f64::from(self.0) / 100.0
    }

    /// The share as a number from 0 to 100.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl FromScalar for Percent {
    const EXPECTED: &'static str = "a whole number of percent from 0 to 100";

    fn from_text(text: &str) -> Result<Self, String> {
        let number = text.trim_end_matches('%').trim_end().parse::<u8>().ok().filter(|number| *number <= 100);
        let hint = number.map(|number| format!("\nwrite {number}")).unwrap_or_default();
        Err(format!("expected {}, found {text:?}{hint}", Self::EXPECTED))
    }

    fn from_integer(number: i64) -> Result<Self, String> {
        u8::try_from(number)
            .ok()
            .and_then(Self::new)
            .ok_or_else(|| format!("expected {}, found {number}", Self::EXPECTED))
    }
}

// === impl CheckCount ===

impl CheckCount {
    pub(crate) const fn of(count: u32) -> Self {
        Self(NonZeroU32::new(count).expect("a count of checks is at least 1"))
    }

    /// The number of checks, at least 1.
    pub fn get(self) -> NonZeroU32 {
        self.0
    }
}

impl FromScalar for CheckCount {
    const EXPECTED: &'static str = "a number of checks, at least 1";

    fn from_text(text: &str) -> Result<Self, String> {
        Err(format!("expected {}, found {text:?}", Self::EXPECTED))
    }

    fn from_integer(number: i64) -> Result<Self, String> {
        u32::try_from(number)
            .ok()
            .and_then(NonZeroU32::new)
            .map(Self)
            .ok_or_else(|| format!("expected {}, found {number}", Self::EXPECTED))
    }
}

// === impl StatusRange ===

impl StatusRange {
    /// The default of `expect_status`: 200 to 399.
    pub(crate) const SUCCESS_OR_REDIRECT: Self = Self { first: 200, last: 399 };

    /// `None` unless `100 <= first <= last <= 599`.
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (100 <= first && first <= last && last <= 599).then_some(Self { first, last })
    }

    /// Whether `status` lies in the range.
    pub fn contains(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

impl FromScalar for StatusRange {
    const EXPECTED: &'static str = "a status code such as 204 or a range such as 200-399, within 100 to 599";

    fn from_text(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        // `u16::from_str` takes a leading `+`; a status code has none.
        let code = |text: &str| (text.len() == 3).then(|| text.parse().ok()).flatten();
        code(first).zip(code(last)).and_then(|(first, last)| Self::new(first, last)).ok_or_else(|| {
            let class = text.to_lowercase().strip_suffix("xx").and_then(|class| class.parse::<u16>().ok());
            let class = class.filter(|class| (1..=5).contains(class));
            let hint = class.map(|class| format!("\nwrite \"{class}00-{class}99\"")).unwrap_or_default();
            format!("expected {}, found {text:?}{hint}", Self::EXPECTED)
        })
    }

    fn from_integer(number: i64) -> Result<Self, String> {
        u16::try_from(number)
            .ok()
            .and_then(|code| Self::new(code, code))
            .ok_or_else(|| format!("expected {}, found {number}", Self::EXPECTED))
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

// === impl CheckMethod ===

impl CheckMethod {
    /// The method.
    pub fn get(&self) -> &http::Method {
        &self.0
    }
}

impl FromScalar for CheckMethod {
    const EXPECTED: &'static str = "an HTTP method in upper case such as GET or HEAD";

    fn from_text(text: &str) -> Result<Self, String> {
        let upper_case = text.bytes().all(|byte| byte.is_ascii_uppercase());
        match http::Method::from_bytes(text.as_bytes()) {
            // CONNECT opens a tunnel: the request has no path, and the response has no body.
            Ok(method) if upper_case && method != http::Method::CONNECT => Ok(Self(method)),
            Ok(_) if !upper_case => {
                let upper = text.to_ascii_uppercase();
                Err(format!("expected {}, found {text:?}\nwrite {upper}", Self::EXPECTED))
            }
            _ => Err(format!("expected {}, found {text:?}", Self::EXPECTED)),
        }
    }
}

// === impl CheckPath ===

impl CheckPath {
    /// The path and the query.
    pub fn get(&self) -> &PathAndQuery {
        &self.0
    }
}

impl FromScalar for CheckPath {
    const EXPECTED: &'static str = "a path that begins with / such as /healthz";

    fn from_text(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err(format!("expected {}, found {text:?}\nwrite /{text}", Self::EXPECTED));
        }
        if text.contains('#') {
            return Err(format!("a fragment is never sent to a server: drop the # in {text:?}"));
        }
        PathAndQuery::try_from(text)
            .map(Self)
            .map_err(|_| format!("{text:?} has a character that a path cannot have: percent-encode it"))
    }
}

// === impl CheckType ===

impl FromScalar for CheckType {
    const EXPECTED: &'static str = "tcp, http, grpc or none";

    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "http" => Ok(Self::Http),
            "grpc" => Ok(Self::Grpc),
            "none" => Ok(Self::None),
            "https" => Err(format!(
                "unknown type of health check {text:?}: expected {}\nwrite http; with `tls` in its pool, checks use TLS",
                Self::EXPECTED
            )),
            _ => Err(format!("unknown type of health check {text:?}: expected {}", Self::EXPECTED)),
        }
    }
}

impl fmt::Display for CheckType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::None => "none",
        })
    }
}

// === values of plain types ===

struct Port(NonZeroU16);

impl FromScalar for Port {
    const EXPECTED: &'static str = "a port from 1 to 65535";

    fn from_text(text: &str) -> Result<Self, String> {
        Err(format!("expected {}, found {text:?}", Self::EXPECTED))
    }

    fn from_integer(number: i64) -> Result<Self, String> {
        u16::try_from(number)
            .ok()
            .and_then(NonZeroU16::new)
            .map(Self)
            .ok_or_else(|| format!("expected {}, found {number}", Self::EXPECTED))
    }
}

pub(crate) fn port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NonZeroU16>, D::Error> {
    scalar::read(deserializer).map(|Port(port)| Some(port))
}

struct Host(String);

impl FromScalar for Host {
    const EXPECTED: &'static str = "a host name, with a port if need be";

    fn from_text(text: &str) -> Result<Self, String> {
        match http::uri::Authority::try_from(text) {
            Ok(authority) if !text.contains('@') => Ok(Self(authority.as_str().to_owned())),
            _ => Err(format!("expected {}, found {text:?}", Self::EXPECTED)),
        }
    }
}

pub(crate) fn host<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    scalar::read(deserializer).map(|Host(host)| Some(host))
}

struct BodyText(String);

impl FromScalar for BodyText {
    const EXPECTED: &'static str = "a text that the body must contain";

    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err(format!("expected {}: every body contains an empty text", Self::EXPECTED));
        }
        Ok(Self(text.to_owned()))
    }

    fn from_integer(number: i64) -> Result<Self, String> {
        Err(format!("expected {}, found the number {number}: put it in quotes", Self::EXPECTED))
    }
}

pub(crate) fn body_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    scalar::read(deserializer).map(|BodyText(text)| Some(text))
}

struct Service(String);

impl FromScalar for Service {
    const EXPECTED: &'static str = "the name of a gRPC service such as shop.Orders";

    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err(format!("expected {}: omit the key to check the whole server", Self::EXPECTED));
        }
        Ok(Self(text.to_owned()))
    }

    fn from_integer(number: i64) -> Result<Self, String> {
        Err(format!("expected {}, found the number {number}: put it in quotes", Self::EXPECTED))
    }
}

pub(crate) fn service<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    scalar::read(deserializer).map(|Service(service)| Some(service))
}

pub(crate) fn status_ranges<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<StatusRange>>, D::Error> {
    let ranges = Vec::deserialize(deserializer)?;
    if ranges.is_empty() {
        return Err(serde::de::Error::custom(format!(
            "an empty list would fail every check: name {}",
            StatusRange::EXPECTED
        )));
    }
    Ok(Some(ranges))
}

// === serde and schema ===

/// Implements `Deserialize`, `Serialize` (to the written form) and `JsonSchema` for a leaf value.
///
/// Schemas are inlined, so their names cannot collide with those of another crate's section.
macro_rules! leaf {
    ($type:ident, $name:literal, |$value:ident| $written:expr, $schema:tt) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                scalar::read(deserializer)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let $value = self;
                $written.serialize(serializer)
            }
        }

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

leaf!(DurationText, "Duration", |value| value.to_string(), {
    "type": "string",
    "pattern": "^0*[1-9][0-9]*(ms|s|m|h)$"
});
leaf!(Percent, "Percent", |value| value.0, {
    "type": "integer",
    "minimum": 0,
    "maximum": 100
});
leaf!(CheckCount, "CheckCount", |value| value.0, {
    "type": "integer",
    "minimum": 1,
    "maximum": 4_294_967_295_u32
});
leaf!(StatusRange, "StatusRange", |value| value.to_string(), {
    "anyOf": [
        {"type": "string", "pattern": "^[1-5][0-9]{2}(-[1-5][0-9]{2})?$"},
        {"type": "integer", "minimum": 100, "maximum": 599}
    ]
});
leaf!(CheckMethod, "HttpMethod", |value| value.0.as_str(), {
    "type": "string",
    "pattern": "^[A-Z]+$",
    "not": {"const": "CONNECT"}
});
leaf!(CheckPath, "HttpPath", |value| value.0.as_str(), {
    "type": "string",
    "pattern": "^/[^#\\s]*$"
});
leaf!(CheckType, "CheckType", |value| value.to_string(), {
    "type": "string",
    "enum": ["tcp", "http", "grpc", "none"]
});
