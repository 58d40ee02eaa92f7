//! The keys about failures: ejections of backends and retries of requests.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};
use values::choice::{self, OtherWords};
use values::number::MAX_COUNT;
use values::{AnyDuration, Number, Percent, PositiveDuration, Ratio, Rejection, Scalar, Text};

use super::scalars::unless_zero;
use crate::pool::{OutlierSettings, RetryCause, RetryOn, RetrySettings, SlowBackendSettings};

/// Ejects a backend for some time when its requests fail.
//
// A key is `None` if it was not written. `complete` fills in the keys that have an effect.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub struct OutlierConfig {
    /// The number of failures in a row that eject a backend; 0: never; default: 5. A failure is a failed connection or
    /// TLS handshake, a reset, a timeout, a status of 502, 503 or 504, or a truncated response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<Number<0, MAX_COUNT>>,
    /// The length of the first ejection; default: 30s. The second lasts twice as long, the third three times, and so
    /// on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_ejection: Option<Text<PositiveDuration>>,
    /// Longest duration of an ejection; default: `300s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ejection: Option<Text<PositiveDuration>>,
    /// The most backends that can be ejected at the same time, in percent of the pool; default: 50. The last backend is
    /// never ejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ejected_percent: Option<Percent<0, 100>>,
    /// Ejection of backends that are much slower than the others; default: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_backends: Option<SlowBackendsConfig>,
}

/// Detection of backends that are much slower than the others.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct SlowBackendsConfig {
    /// The multiple of the pool's median time to first byte above which a backend counts as slow.
    pub ratio: Ratio,
    /// The number of responses that a backend must have in a window to be compared.
    pub min_samples: Number<1, MAX_COUNT>,
    /// The window over which backends are compared.
    pub window: Text<PositiveDuration>,
}

/// The largest value of `attempts`.
pub const MAX_ATTEMPTS: u32 = 10;

/// Retries of failed requests at another backend.
//
// A key is `None` if it was not written. `complete` fills in the keys that have an effect.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub struct RetriesConfig {
    /// The most retries of a request, each at another backend; default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<Number<0, MAX_ATTEMPTS>>,
    /// The time limit of each attempt to connect, and then from the end of the request to the head of the response.
    /// Default: the limits of `timeouts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try: Option<Text<PositiveDuration>>,
    /// The most retries in flight, in percent of the pool's requests in flight; default: 20. Retries after a failed
    /// connection do not count, nor do retries after a reset while another backend is available. Connection races do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_percent: Option<Percent<0, 100>>,
    /// The number of retries in flight that are allowed regardless of `budget_percent`; default: 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_concurrent: Option<Number<0, 10_000>>,
    /// The failures that are retried; default: all. A failed connection is retried for every method, other failures
    /// only for idempotent methods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<RetryOnConfig>,
    /// The time after which a connection attempt starts one to another backend. The request goes over the connection
    /// that is ready first. 0s: never; default: 250ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_race: Option<Text<AnyDuration>>,
}

/// Failures in the order in which they were written. The list is never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryOnConfig(pub Vec<RetryWord>);

/// A failure by its name, or a response by its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryWord(pub RetryCause);

// === impl OutlierConfig ===

impl OutlierConfig {
    /// Whether failures in a row eject a backend.
    pub fn counts_failures(&self) -> bool {
        self.consecutive_failures.is_none_or(|count| count.get() > 0)
    }

    /// Whether any backend of a pool of more than one can be ejected.
    pub fn is_in_effect(&self) -> bool {
        let some = self.max_ejected_percent.is_none_or(|percent| percent.get() > 0);
        some && (self.counts_failures() || self.slow_backends.is_some())
    }

    /// Fills in the defaults of the keys that have an effect in a pool with this number of backends. A pool of one has
    /// no ejections, because the last backend is never ejected.
    pub(super) fn complete(&mut self, backends: usize) {
        if backends < 2 || !self.is_in_effect() {
            return;
        }
        let defaults = OutlierSettings::default();
        self.consecutive_failures.get_or_insert(Number::near(defaults.consecutive_failures));
        self.max_ejected_percent.get_or_insert(Percent::near(defaults.max_ejected_percent.into()));
        let (base, max) = self.lengths();
        self.base_ejection = Some(base);
        self.max_ejection = Some(max);
    }

    /// Returns the shortest and the longest ejection. If only one is written, the default of the other is adjusted to
    /// it.
    fn lengths(&self) -> (Text<PositiveDuration>, Text<PositiveDuration>) {
        let OutlierSettings { base_ejection, max_ejection, .. } = OutlierSettings::default();
        let (base, max) = (Text::of(base_ejection), Text::of(max_ejection));
        let is_longer =
            |one: &Text<PositiveDuration>, other: &Text<PositiveDuration>| one.duration() > other.duration();
        match (&self.base_ejection, &self.max_ejection) {
            (Some(base), Some(max)) => (base.clone(), max.clone()),
            (Some(base), None) => (base.clone(), if is_longer(base, &max) { base.clone() } else { max }),
            (None, Some(max)) => (if is_longer(&base, max) { max.clone() } else { base }, max.clone()),
            (None, None) => (base, max),
        }
    }

    /// Returns the settings.
    pub(super) fn plan(&self) -> OutlierSettings {
        let defaults = OutlierSettings::default();
        let (base, max) = self.lengths();
        let percent = self.max_ejected_percent.map(Percent::get).and_then(|percent| percent.try_into().ok());
        OutlierSettings {
            consecutive_failures: self
                .consecutive_failures
                .map_or(defaults.consecutive_failures, Number::get),
            base_ejection: base.duration(),
            max_ejection: max.duration(),
            max_ejected_percent: percent.unwrap_or(defaults.max_ejected_percent),
            slow_backends: self.slow_backends.as_ref().map(SlowBackendsConfig::plan),
        }
    }
}

// === impl SlowBackendsConfig ===

impl Default for SlowBackendsConfig {
    fn default() -> Self {
        Self { ratio: Ratio::from(5), min_samples: Number::near(50), window: Text::literal("10s") }
    }
}

impl SlowBackendsConfig {
    fn plan(&self) -> SlowBackendSettings {
        SlowBackendSettings {
            ratio: self.ratio.get(),
            min_samples: self.min_samples.get(),
            window: self.window.duration(),
        }
    }
}

// === impl RetriesConfig ===

impl RetriesConfig {
    /// Whether requests are retried.
    pub fn is_in_effect(&self) -> bool {
        self.attempts.is_none_or(|attempts| attempts.get() > 0)
    }

    /// Whether the budget limits anything. It does not limit retries after a failed connection, because nothing was
    /// sent, but connection races.
    pub fn needs_budget(&self) -> bool {
        let other = |when: &RetryOnConfig| when.0.iter().any(|word| word.0 != RetryCause::ConnectFailure);
        self.races() || self.is_in_effect() && self.when.as_ref().is_none_or(other)
    }

    /// Whether failed connections are retried.
    pub fn retries_connections(&self) -> bool {
        let listed = |when: &RetryOnConfig| when.0.contains(&RetryWord(RetryCause::ConnectFailure));
        self.is_in_effect() && self.when.as_ref().is_none_or(listed)
    }

    /// Whether `connect_race` does not turn connection races off.
    pub fn wants_races(&self) -> bool {
        self.connect_race.as_ref().is_none_or(|race| !race.duration().is_zero())
    }

    /// Whether connection attempts are raced.
    fn races(&self) -> bool {
        self.retries_connections() && self.wants_races()
    }

    /// Fills in the defaults of the keys that have an effect in a pool with this number of backends. A pool of one has
    /// no retries, because each goes to another backend. `connect` is the time in which a connection must be made.
    pub(super) fn complete(&mut self, backends: usize, connect: Duration) {
        if backends < 2 {
            return;
        }
        let defaults = RetrySettings::default();
        self.attempts.get_or_insert(Number::near(u32::try_from(defaults.attempts).unwrap_or(u32::MAX)));
        if self.needs_budget() {
            self.budget_percent.get_or_insert(Percent::near(defaults.budget_percent));
            self.min_concurrent.get_or_insert(Number::near(defaults.min_concurrent));
        }
        if self.is_in_effect() {
            self.when.get_or_insert_with(|| RetryOnConfig(RetryCause::ALL.map(RetryWord).into()));
        }
        let race = defaults.connect_race.filter(|race| *race < connect && self.retries_connections());
        if let Some(race) = race {
            self.connect_race.get_or_insert_with(|| Text::of(race));
        }
    }

    /// Returns the settings.
    pub(super) fn plan(&self) -> RetrySettings {
        let defaults = RetrySettings::default();
        RetrySettings {
            attempts: self.attempts.map_or(defaults.attempts, Number::as_usize),
            per_try: self.per_try.as_ref().map(Text::duration),
            budget_percent: self.budget_percent.map_or(defaults.budget_percent, Percent::get),
            min_concurrent: self.min_concurrent.map_or(defaults.min_concurrent, Number::get),
            on: self.when.as_ref().map_or(defaults.on, RetryOnConfig::plan),
            connect_race: self.connect_race.as_ref().map_or(defaults.connect_race, unless_zero),
        }
    }
}

// === impl RetryOnConfig ===

impl RetryOnConfig {
    fn plan(&self) -> RetryOn {
        self.0.iter().map(|word| word.0).collect()
    }
}

impl Serialize for RetryOnConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RetryOnConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let words = Vec::<RetryWord>::deserialize(deserializer)?;
        match words.is_empty() {
            true => Err(de::Error::custom(
                "the list is empty, so no request would be retried\nwrite `attempts: 0` to switch retries off, or name failures such as reset",
            )),
            false => Ok(Self(words)),
        }
    }
}

impl JsonSchema for RetryOnConfig {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "RetryOn".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let word = RetryWord::json_schema(generator);
        json_schema!({"type": "array", "items": word, "minItems": 1, "uniqueItems": true})
    }
}

// === impl RetryWord ===

/// The failures that have a name. Responses are named by their status.
const NAMED: [(&str, RetryCause); 3] = [
    ("connect_failure", RetryCause::ConnectFailure),
    ("reset", RetryCause::Reset),
    ("timeout", RetryCause::Timeout),
];

/// The valid values, for messages.
const RETRY_ON: &[&str] = &["connect_failure", "reset", "timeout", "502", "503", "504"];

const OTHER_WORDS: OtherWords = &[
    (
        &[
            "connect",
            "connection",
            "conn_failure",
            "connect_error",
            "connection_error",
            "connection_failure",
            "connection_refused",
            "refused",
            "connect_timeout",
            "connection_timeout",
            "dial",
            "network",
        ],
        "connect_failure",
    ),
    (
        &[
            "error",
            "invalid_header",
            "invalid_response",
            "empty_response",
            "junk_response",
            "connection_reset",
            "close",
            "closed",
            "eof",
            "broken_pipe",
            "reset_before_request",
            "refused_stream",
            "http3_post_connect_failure",
        ],
        "reset",
    ),
    (
        &["response_timeout", "read_timeout", "timeouts", "per_try_timeout", "request_timeout", "deadline"],
        "timeout",
    ),
    (&["http_502", "bad_gateway"], "502"),
    (&["http_503", "service_unavailable", "unavailable"], "503"),
    (&["http_504", "gateway_timeout"], "504"),
    (
        &["5xx", "server_error", "server_errors", "gateway_error", "gateway_errors", "http_5xx"],
        "write 502, 503 and 504 instead: other statuses are not retried",
    ),
    (
        &[
            "4xx",
            "retriable_4xx",
            "retriable_status_codes",
            "retriable_headers",
            "http_500",
            "http_403",
            "http_404",
            "http_429",
            "internal_server_error",
        ],
        "use 502, 503 and 504: other statuses are not retried",
    ),
    (&["all", "any", "all_retryable_errors"], "remove `when` to retry all failures"),
    (&["non_idempotent", "post"], "remove the word: only a failed connection is retried for every method"),
    (&["none", "off", "never"], "write `attempts: 0` in place of `when` to switch retries off"),
];

const STATUSES: std::ops::RangeInclusive<u16> = 502..=504;

impl fmt::Display for RetryWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = RetryCause::ALL.iter().zip(RETRY_ON).find(|(cause, _)| **cause == self.0);
        f.write_str(word.map_or("", |(_, word)| word))
    }
}

impl Serialize for RetryWord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match STATUSES.clone().find(|status| RetryCause::of_status(*status) == Some(self.0)) {
            Some(status) => serializer.serialize_u16(status),
            None => serializer.collect_str(self),
        }
    }
}

impl Scalar for RetryWord {
    fn expected() -> Cow<'static, str> {
        format!("one of {}", RETRY_ON.join(", ")).into()
    }

    fn from_text(text: &str) -> Result<Self, Rejection> {
        if let Ok(status) = text.parse() {
            return Self::from_integer(status);
        }
        let named = NAMED.iter().find(|(word, _)| *word == text);
        named.map(|(_, cause)| Self(*cause)).ok_or_else(|| choice::rejection(text, RETRY_ON, OTHER_WORDS))
    }

    fn from_integer(status: i64) -> Result<Self, Rejection> {
        let cause = u16::try_from(status).ok().and_then(RetryCause::of_status).map(Self);
        cause.ok_or_else(|| format!("a response of {status} cannot be retried\nuse 502, 503 or 504").into())
    }

    fn schema() -> Schema {
        json_schema!({"anyOf": [
            {"const": "connect_failure", "description": "No connection could be established, so nothing was sent."},
            {"const": "reset", "description": "The connection was reset or closed before a response, or the response is not HTTP."},
            {"const": "timeout", "description": "The head of the response did not arrive in time."},
            {"enum": [502, 503, 504, "502", "503", "504"], "description": "The backend responded with this status."},
        ]})
    }
}

values::scalar!(RetryWord);

#[cfg(test)]
mod tests {
    use super::*;

    fn json<T: de::DeserializeOwned>(text: &str) -> Result<T, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    fn outliers(text: &str) -> OutlierConfig {
        let mut section: OutlierConfig = json(text).expect("it is valid");
        section.complete(2);
        section
    }

    fn retries(text: &str) -> RetriesConfig {
        let mut section: RetriesConfig = json(text).expect("it is valid");
        section.complete(2, Duration::from_secs(3));
        section
    }

    #[test]
    fn empty_sections_mean_the_defaults() {
        assert_eq!(outliers("{}").plan(), OutlierSettings::default());
        assert_eq!(retries("{}").plan(), RetrySettings::default());
        let slow_backends =
            SlowBackendSettings { ratio: 5.0, min_samples: 50, window: Duration::from_secs(10) };
        assert_eq!(outliers(r#"{"slow_backends":{}}"#).plan().slow_backends, Some(slow_backends));
    }

    #[test]
    fn the_default_of_one_ejection_length_adjusts_to_the_other() {
        let lengths = |text| (outliers(text).plan().base_ejection, outliers(text).plan().max_ejection);
        let seconds = |base, max| (Duration::from_secs(base), Duration::from_secs(max));
        assert_eq!(lengths(r#"{"base_ejection":"10m"}"#), seconds(600, 600));
        assert_eq!(lengths(r#"{"base_ejection":"1s"}"#), seconds(1, 300));
        assert_eq!(lengths(r#"{"max_ejection":"10s"}"#), seconds(10, 10));
        assert_eq!(lengths(r#"{"max_ejection":"60s"}"#), seconds(30, 60));
    }

    #[test]
    fn keys_of_a_feature_that_is_off_are_not_filled_in() {
        for text in [r#"{"consecutive_failures":0}"#, r#"{"max_ejected_percent":0}"#] {
            assert_eq!(serde_json::to_string(&outliers(text)).expect("it can be written"), text);
        }
        assert!(outliers(r#"{"consecutive_failures":0,"slow_backends":{}}"#).base_ejection.is_some());
        let text = r#"{"attempts":0}"#;
        assert_eq!(serde_json::to_string(&retries(text)).expect("it can be written"), text);
        let text = r#"{"attempts":1,"when":["connect_failure"],"connect_race":"0s"}"#;
        assert_eq!(serde_json::to_string(&retries(text)).expect("it can be written"), text);
        assert!(retries(r#"{"when":["reset"]}"#).connect_race.is_none());
        let races = retries(r#"{"when":["connect_failure"]}"#);
        assert!(races.connect_race.is_some() && races.budget_percent.is_some());
    }

    #[test]
    fn a_race_that_would_begin_after_the_connect_timeout_is_not_filled_in() {
        let races = |connect| {
            let mut retries = RetriesConfig::default();
            retries.complete(2, Duration::from_millis(connect));
            retries.connect_race.is_some()
        };
        assert_eq!([100, 250, 251].map(races), [false, false, true]);
    }

    #[test]
    fn zero_turns_connection_races_off() {
        assert_eq!(retries(r#"{"connect_race":"0s"}"#).plan().connect_race, None);
        let half = Some(Duration::from_millis(500));
        assert_eq!(retries(r#"{"connect_race":"500ms"}"#).plan().connect_race, half);
    }

    #[test]
    fn keys_that_need_a_second_backend_are_not_filled_in_without_one() {
        let mut outliers: OutlierConfig = json("{}").expect("it is valid");
        outliers.complete(1);
        assert_eq!(serde_json::to_string(&outliers).expect("it can be written"), "{}");
        assert_eq!(outliers.plan(), OutlierSettings::default());
        let mut retries: RetriesConfig = json("{}").expect("it is valid");
        retries.complete(1, Duration::from_secs(3));
        assert_eq!(serde_json::to_string(&retries).expect("it can be written"), "{}");
        assert_eq!(retries.plan(), RetrySettings::default());
    }

    #[test]
    fn causes_are_words_and_statuses() {
        let all = r#"["connect_failure","reset","timeout",502,503,504]"#;
        let written: RetryOnConfig = json(all).expect("it is valid");
        assert_eq!(written.plan(), RetryOn::ALL);
        assert_eq!(serde_json::to_string(&written).expect("it can be written"), all);
        assert_eq!(written.0.iter().map(ToString::to_string).collect::<Vec<_>>(), RETRY_ON);
        let text: RetryOnConfig = json(r#"["502"]"#).expect("it is valid");
        assert!(text.plan().contains(RetryCause::BadGateway) && !text.plan().contains(RetryCause::Reset));
        for (text, why) in [
            ("[]", "write `attempts: 0` to switch retries off, or name failures such as reset"),
            ("[500]", "use 502, 503 or 504"),
            (r#"["500"]"#, "use 502, 503 or 504"),
            ("[-1]", "use 502, 503 or 504"),
            (r#"["5xx"]"#, "write 502, 503 and 504 instead"),
            (r#"["rset"]"#, "did you mean `reset`?"),
        ] {
            let message = json::<RetryOnConfig>(text).expect_err("rejected");
            assert!(message.contains(why), "{text}: {message}");
        }
    }
}
