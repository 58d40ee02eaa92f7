//! The section `health_check` of a pool, as written in the configuration file.
//!
//! [`HealthCheckConfig`] holds the keys as written, each parsed into a type that holds only valid values.
//! [`HealthCheckConfig::plan`] turns it into [`Settings`]. Rules that span several keys (`timeout` at most `interval`,
//! no HTTP keys in a check of another type) belong to the code that reads the whole file, because its diagnostics can
//! point at both places. The keys of one type are `Option`s, so that rule can tell a written key from an absent one.

use std::num::NonZeroU32;

use http::uri::PathAndQuery;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use values::choice;
use values::number::MAX_COUNT;
use values::{HostHeader, Number, Percent, Port, PositiveDuration, Scalar, StatusRange, Text};

use crate::settings::{CheckKind, GrpcCheck, HttpCheck, Settings, Thresholds};
use crate::value::{BodyText, CheckMethod, CheckType, ServiceName};

/// Health checks of the backends of a pool.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct HealthCheckConfig {
    /// Kind of check.
    #[serde(deserialize_with = "choice::read")]
    pub r#type: CheckType,
    /// Time from the start of one check of a backend to the start of the next.
    pub interval: Text<PositiveDuration>,
    /// Interval while the backend is changing its state.
    pub fast_interval: Text<PositiveDuration>,
    /// Timeout of a whole check, including the connection.
    pub timeout: Text<PositiveDuration>,
    /// Number of checks in a row that must pass to bring a backend up.
    pub rise: Number<1, MAX_COUNT>,
    /// Number of checks in a row that must fail to take a backend down.
    pub fall: Number<1, MAX_COUNT>,
    /// Largest random change of an interval, in percent.
    pub jitter: Percent<0, 100>,
    /// Port to check; default: the port of the backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<Port>,
    /// Path of an HTTP check; default: `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<Text<PathAndQuery>>,
    /// Method of an HTTP check; default: `GET`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Text<CheckMethod>>,
    /// `Host` header of an HTTP check, or authority of a gRPC check; default: the `sni` of the pool, or else the
    /// address of the backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Text<HostHeader>>,
    /// Status codes that pass an HTTP check; default: `["200-399"]`.
    #[serde(deserialize_with = "status_ranges", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub expect_status: Option<Vec<Text<StatusRange>>>,
    /// Text that the first 256 KiB of the response to an HTTP check must contain; default: any body passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect_body: Option<Text<BodyText>>,
    /// Name of the service that a gRPC check asks for; default: the server as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<Text<ServiceName>>,
}

// === impl HealthCheckConfig ===

impl Default for HealthCheckConfig {
    fn default() -> Self {
        Self {
            r#type: CheckType::Tcp,
            interval: Text::literal("5s"),
            fast_interval: Text::literal("1s"),
            timeout: Text::literal("2s"),
            rise: Number::near(2),
            fall: Number::near(3),
            jitter: Percent::near(10),
            port: None,
            path: None,
            method: None,
            host: None,
            expect_status: None,
            expect_body: None,
            service: None,
        }
    }
}

impl HealthCheckConfig {
    /// The settings, with every default filled in. Disabled checks have the default times, whatever the section says.
    pub fn plan(&self) -> Settings {
        let kind = self.kind();
        if kind == CheckKind::None {
            return Settings { kind, ..Settings::default() };
        }
        Settings {
            kind,
            interval: self.interval.duration(),
            fast_interval: self.fast_interval.duration(),
            timeout: self.timeout.duration(),
            thresholds: Thresholds { rise: count(self.rise), fall: count(self.fall) },
            jitter: self.jitter,
            port: self.port.map(Port::get),
        }
    }

    fn kind(&self) -> CheckKind {
        match self.r#type {
            CheckType::None => CheckKind::None,
            CheckType::Tcp => CheckKind::Tcp,
            CheckType::Http => CheckKind::Http(self.http_check()),
            CheckType::Grpc => CheckKind::Grpc(GrpcCheck {
                service: self.service.as_ref().map(|service| service.get().0.clone()).unwrap_or_default(),
                host: self.host(),
            }),
        }
    }

    fn http_check(&self) -> HttpCheck {
        let default = HttpCheck::default();
        HttpCheck {
            method: self.method.as_ref().map_or(default.method, |method| method.get().0.clone()),
            path: self.path.as_ref().map_or(default.path, |path| path.get().clone()),
            host: self.host(),
            expect_status: self.statuses().unwrap_or(default.expect_status),
            expect_body: self.expect_body.as_ref().map(|text| text.get().0.clone()),
        }
    }

    fn host(&self) -> Option<String> {
        self.host.as_ref().map(|host| host.get().as_str().to_owned())
    }

    fn statuses(&self) -> Option<Vec<StatusRange>> {
        self.expect_status.as_ref().map(|ranges| ranges.iter().map(|range| *range.get()).collect())
    }
}

#[expect(clippy::expect_used, reason = "the type has this bound")]
fn count(number: Number<1, MAX_COUNT>) -> NonZeroU32 {
    NonZeroU32::new(number.get()).expect("it is at least 1")
}

fn status_ranges<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<Text<StatusRange>>>, D::Error> {
    let ranges = Vec::deserialize(deserializer)?;
    if ranges.is_empty() {
        return Err(serde::de::Error::custom(format!(
            "an empty list would fail every check\nname {}, or remove the key",
            StatusRange::expected()
        )));
    }
    Ok(Some(ranges))
}

// === impl Settings ===

impl Default for Settings {
    /// The settings of an empty section.
    fn default() -> Self {
        HealthCheckConfig::default().plan()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Map, Value};

    use super::*;

    /// Reads lines of `key: value`. A value that is not JSON is a text; these tests need no more of YAML.
    fn parse(text: &str) -> Result<HealthCheckConfig, String> {
        let value = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
        let fields = text.lines().filter_map(|line| line.split_once(": "));
        let section: Map<String, Value> = fields.map(|(key, text)| (key.to_owned(), value(text))).collect();
        serde_json::from_value(Value::Object(section)).map_err(|error| error.to_string())
    }

    fn rejection(text: &str) -> String {
        match parse(text) {
            Ok(config) => panic!("{text} was accepted as {config:?}"),
            Err(message) => message,
        }
    }

    #[test]
    fn an_empty_section_has_the_documented_defaults() {
        let settings = parse("").expect("an empty section is valid").plan();
        assert_eq!(settings, Settings::default());
        assert_eq!(settings.kind, CheckKind::Tcp);
        assert_eq!(settings.interval, Duration::from_secs(5));
        assert_eq!(settings.fast_interval, Duration::from_secs(1));
        assert_eq!(settings.timeout, Duration::from_secs(2));
        assert_eq!((settings.thresholds.rise.get(), settings.thresholds.fall.get()), (2, 3));
        assert_eq!(settings.jitter.get(), 10);
    }

    #[test]
    fn an_http_check_has_the_documented_defaults() {
        let settings = parse("type: http").expect("valid").plan();
        assert_eq!(settings.kind, CheckKind::Http(HttpCheck::default()));
    }

    #[test]
    fn every_key_is_read() {
        let config = parse(
            "type: http\ninterval: 250ms\nfast_interval: 100ms\ntimeout: 1h\nrise: 1\nfall: 4\njitter: 0\nport: 8081\n\
             path: /healthz?deep=1\nmethod: HEAD\nhost: example.com:80\nexpect_status: [\"200-299\", 304, \"404\"]\n\
             expect_body: ok\n",
        )
        .expect("valid");
        let settings = config.plan();
        assert_eq!(settings.interval, Duration::from_millis(250));
        assert_eq!(settings.timeout, Duration::from_secs(3600));
        assert_eq!(settings.port.map(std::num::NonZeroU16::get), Some(8081));
        let CheckKind::Http(check) = settings.kind else {
            panic!("expected an HTTP check");
        };
        assert_eq!(check.method, http::Method::HEAD);
        assert_eq!(check.path.as_str(), "/healthz?deep=1");
        assert_eq!(check.host.as_deref(), Some("example.com:80"));
        assert_eq!(check.expected_statuses(), "200-299, 304, 404");
        assert_eq!(check.expect_body.as_deref(), Some("ok"));
    }

    #[test]
    fn a_grpc_check_queries_one_service_or_the_whole_server() {
        let settings = parse("type: grpc").expect("valid").plan();
        assert_eq!(settings.kind, CheckKind::Grpc(GrpcCheck::default()));
        let settings = parse("type: grpc\nservice: shop.Orders\nhost: a.example").expect("valid").plan();
        let (service, host) = ("shop.Orders".to_owned(), Some("a.example".to_owned()));
        assert_eq!(settings.kind, CheckKind::Grpc(GrpcCheck { service, host }));
    }

    #[test]
    fn none_disables_checks() {
        assert_eq!(parse("type: none").expect("valid").plan().kind, CheckKind::None);
    }

    #[test]
    fn errors_say_what_was_expected_and_what_was_found() {
        for (text, expected) in [
            ("interval: 5", "\"5\" has no unit"),
            ("interval: \"5\"", "has no unit"),
            ("interval: 1d", "a duration such as 250ms, 5s, 1m or 1h, found \"1d\"\nwrite 24h"),
            ("interval: 1.5s", "found \"1.5s\""),
            ("interval: 1.5", "\"1.5\" has no unit"),
            ("interval: -5s", "found \"-5s\""),
            ("interval: 0s", "must be above zero, found 0s"),
            ("interval: 99999999999999999999s", "longer than a day"),
            ("interval: 48h", "the duration 48h is longer than a day\nwrite 24h, which is the longest"),
            ("interval: [5s]", "a duration such as"),
            ("timeout: soon", "found \"soon\""),
            ("rise: 2.0", "floating point `2.0`, expected a whole number from 1 to 1000000\nwrite 2"),
            ("rise: 0", "a whole number from 1 to 1000000, found 0"),
            ("fall: -1", "found -1"),
            ("fall: 4294967296", "found 4294967296"),
            ("jitter: 101", "a percentage from 0 to 100, found 101"),
            ("jitter: 10%", "write 10, without the percent sign"),
            ("port: 0", "a port from 1 to 65535, found 0"),
            ("port: 65536", "found 65536"),
            ("path: healthz", "begins with / such as /healthz, found \"healthz\""),
            ("path: \"/a b\"", "percent-encode"),
            ("path: \"/a#b\"", "write /a"),
            ("method: get", "expected a method in upper case such as GET or POST, found \"get\"\nwrite GET"),
            ("method: CONNECT", "CONNECT opens a tunnel"),
            ("method: \"\"", "found \"\""),
            ("host: \"a b\"", "a host name"),
            ("host: \"user@example.com\"", "a host name"),
            ("expect_status: []", "an empty list would fail every check"),
            ("expect_status: [600]", "within 100 to 599, found 600"),
            ("expect_status: [\"399-200\"]", "found \"399-200\""),
            ("expect_status: [\"2xx\"]", "found \"2xx\""),
            ("expect_status: [\"+99\"]", "found \"+99\""),
            ("expect_body: \"\"", "every body contains an empty text"),
            ("expect_body: 1", "expected a text that the body must contain"),
            ("service: \"\"", "remove the key to check the whole server"),
            ("service: 1", "expected the name of a gRPC service"),
            (
                "type: ftp",
                "expected one of tcp, http, grpc, none\nuse one of these values: tcp, http, grpc, none",
            ),
            ("type: https", "write http; with `tls` in its pool, checks use TLS"),
            ("type: htp", "did you mean `http`?"),
            ("intervall: 5s", "unknown field `intervall`"),
        ] {
            let message = rejection(text);
            assert!(message.contains(expected), "{text}: {message:?} does not say {expected:?}");
        }
    }

    #[test]
    fn a_serialized_section_parses_to_the_same_settings() {
        let text =
            "type: http\ninterval: 90s\ntimeout: 1500ms\nexpect_status: [\"200-299\", 304]\nhost: a.example";
        let config = parse(text).expect("valid");
        let written = serde_json::to_string(&config).expect("a configuration can be written");
        assert!(written.contains(r#""interval":"90s""#), "{written}");
        assert!(written.contains(r#""expect_status":["200-299","304"]"#), "{written}");
        let again: HealthCheckConfig = serde_json::from_str(&written).expect("serialized text is valid");
        assert_eq!(again.plan(), config.plan());
    }

    #[test]
    fn the_schema_shows_defaults_patterns_and_no_other_keys() {
        let schema = schemars::schema_for!(HealthCheckConfig).to_value();
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["properties"]["interval"]["default"], "5s");
        assert_eq!(schema["properties"]["interval"]["type"], "string");
        let words = schema["properties"]["type"]["oneOf"].as_array().expect("it has choices");
        let words: Vec<_> = words.iter().map(|word| &word["const"]).collect();
        assert_eq!(words, ["tcp", "http", "grpc", "none"]);
        assert_eq!(schema["properties"]["rise"]["minimum"], 1);
        assert_eq!(schema["properties"]["jitter"]["maximum"], 100);
    }
}
