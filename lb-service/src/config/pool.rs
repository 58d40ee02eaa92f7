//! The section of a pool: its backends, how one is chosen, and how requests are sent to it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use values::choice;
use values::number::MAX_COUNT;
use values::{AnyDuration, HostHeader, Number, Percent, PositiveDuration, ReadPath, Text};

use super::backend::BackendConfig;
use super::balancing::{HashOnConfig, PolicyName, StickyConfig};
use super::resilience::{OutlierConfig, RetriesConfig};
use super::scalars::{ServerName, UpgradeProtocol, unless_zero};
use crate::pool::{
    ClientCertificate, HashOn, PANIC_THRESHOLD, PoolSettings, SessionKeys, Timeouts, UpstreamTls,
};

/// Backends that serve the same requests, and the settings for them.
//
// `Check` is the section `health_check`, which belongs to another crate. Editors show these doc comments to users.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct PoolConfig<Check: Default> {
    /// The policy that chooses a backend for each request.
    #[serde(default, deserialize_with = "choice::read")]
    pub policy: PolicyName,
    /// The part of a request that the policies `consistent_hash` and `maglev` hash; default: `client_ip`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_on: Option<HashOnConfig>,
    /// The most requests in flight at a backend of a hash policy, in percent of the average. Further requests go to the
    /// next backend. Default: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounded_load: Option<Percent<101, 1000>>,
    /// The cookie that keeps a client at one backend; default: no sticky sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<StickyConfig>,
    /// Backends, such as `10.0.0.1:8080`, `localhost:8080`, `unix:/run/app.sock` or `{address: 10.0.0.1:8080, weight:
    /// 2}`.
    pub backends: Vec<BackendConfig>,
    /// TLS for connections to backends; default: plain HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
    /// The `Host` header for the backends; default: as sent by the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Text<HostHeader>>,
    /// The protocols that a client can switch its connection to, such as `[websocket]`; `[]`: none. Default: any single
    /// protocol except versions of HTTP and TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrades: Option<Vec<Text<UpgradeProtocol>>>,
    /// The timeouts for the backends.
    #[serde(default)]
    pub timeouts: TimeoutsConfig,
    /// The active health checks of the backends.
    #[serde(default)]
    pub health_check: Check,
    /// Ejects a backend for some time when its requests fail.
    #[serde(default)]
    pub outlier_detection: OutlierConfig,
    /// If less than this percentage of the backends is available, the pool is in panic mode and uses all of them,
    /// healthy or not. 0: never.
    #[serde(default = "panic_threshold")]
    pub panic_threshold: Percent<0, 100>,
    /// The time in which the share of a backend that has recovered rises from a tenth to its full size. Default: the
    /// backend gets its full share at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<Text<PositiveDuration>>,
    /// Retries of failed requests at another backend.
    #[serde(default)]
    pub retries: RetriesConfig,
    /// Limits for requests in flight, and for requests that wait.
    #[serde(default)]
    pub limits: LimitsConfig,
}

/// TLS for connections to the backends of a pool.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The name that is sent in the handshake and that the certificate must match. Backends on Unix sockets need it.
    /// Default: no name is sent, and the certificate must match the IP address of the backend, also for `localhost`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sni: Option<Text<ServerName>>,
    /// Whether the certificate is verified. `false` accepts any certificate.
    #[serde(default = "yes")]
    pub verify: bool,
    /// A PEM file with the authorities to trust instead of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<Text<ReadPath>>,
    /// A PEM file with the certificate to present to backends that demand one, followed by those of its intermediate
    /// authorities. It needs `client_key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<Text<ReadPath>>,
    /// A PEM file with the private key of `client_cert`. Only its owner can have access to it; a file of root can be
    /// readable for its group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_key: Option<Text<ReadPath>>,
}

/// The timeouts for the backends of a pool.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct TimeoutsConfig {
    /// The time to establish a connection, including TLS; default: 3s, or `retries.per_try` if that is shorter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect: Option<Text<PositiveDuration>>,
    /// The time from the end of the request to the head of the response, and the longest pause while the backend reads
    /// the request.
    pub response: Text<PositiveDuration>,
    /// The longest pause in the body of the response; 0s: no limit. `tunnel` applies to streams of events
    /// (`text/event-stream`) and to gRPC.
    pub body: Text<AnyDuration>,
    /// The longest time in which both sides of a WebSocket or of another tunnel, or the backend in a stream of events,
    /// send nothing; 0s: no limit.
    pub tunnel: Text<AnyDuration>,
    /// The time after which an idle connection to a backend is closed.
    pub idle: Text<PositiveDuration>,
    /// The age up to which a connection to a backend is used again. It is shortened by up to 10 % at random.
    pub max_age: Text<PositiveDuration>,
    /// The time that a request waits for a backend below its `max_requests`; default: 1s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<Text<PositiveDuration>>,
}

/// Limits for requests in flight, and for requests that wait.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// The most requests in flight at each backend that has no `max_requests` of its own. 0, the default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<Number<0, MAX_COUNT>>,
    /// The number of requests that can wait while every backend is at its limit. Further requests get a 503 at once. 0:
    /// no request waits. Default: twice the sum of the limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<Number<0, MAX_COUNT>>,
}

/// The contents of the files that a pool names.
#[derive(Clone, Debug, Default)]
pub struct PoolFiles {
    /// The certificates of `tls.ca`, DER encoded.
    pub ca: Vec<Vec<u8>>,
    /// The certificate of `tls.client_cert` with the key of `tls.client_key`.
    pub client: Option<ClientCertificate>,
    /// The keys of `sticky.key_file`.
    pub session_keys: Option<SessionKeys>,
}

fn yes() -> bool {
    true
}

fn panic_threshold() -> Percent<0, 100> {
    Percent::near(PANIC_THRESHOLD.into())
}

// === impl PoolConfig ===

impl<Check: Default> PoolConfig<Check> {
    /// Fills in the defaults that depend on other keys. Keys without effect stay absent.
    pub fn complete(&mut self) {
        if self.policy.hashes() {
            self.hash_on.get_or_insert(HashOnConfig::ClientIp);
        }
        self.outlier_detection.complete(self.backends.len());
        let connect = self.timeouts.complete(self.retries.per_try.as_ref());
        self.retries.complete(self.backends.len(), connect);
        if !self.is_limited_by_backends() {
            self.limits.max_requests.get_or_insert(Number::near(0));
        }
        let queue = self.queue();
        if self.is_limited() {
            self.limits.queue = Some(queue);
        }
        if queue.get() > 0 && self.is_limited() {
            self.timeouts.queue.get_or_insert_with(|| Text::of(Timeouts::default().queue));
        }
    }

    /// Whether any backend has a limit.
    pub fn is_limited(&self) -> bool {
        self.backends.iter().any(|backend| backend.limit(self.limits.each()).is_some())
    }

    /// Whether every backend has a limit of its own, so that the limit of the pool has no effect.
    pub fn is_limited_by_backends(&self) -> bool {
        !self.backends.is_empty() && self.backends.iter().all(|backend| backend.max_requests.is_some())
    }

    /// Returns the number of requests that can wait: as written, or twice the sum of the limits.
    fn queue(&self) -> Number<0, MAX_COUNT> {
        let limits = self.backends.iter().filter_map(|backend| backend.limit(self.limits.each()));
        let twice = |sum: u32| sum.saturating_mul(2);
        self.limits.queue.unwrap_or_else(|| {
            Number::near(twice(limits.fold(0, |sum: u32, limit| sum.saturating_add(limit.get()))))
        })
    }

    /// Returns the settings, with the contents of the files and the loopback address of the machine.
    pub fn plan(&self, name: &str, files: PoolFiles, loopback: IpAddr) -> PoolSettings {
        let PoolFiles { ca, client, session_keys } = files;
        let backends = self.backends.iter().map(|backend| backend.plan(self.limits.each(), loopback));
        PoolSettings {
            name: Arc::from(name),
            policy: self.policy.plan(),
            hash_on: self.hash_on.as_ref().map_or_else(HashOn::default, HashOnConfig::plan),
            bounded_load: self.bounded_load.map(Percent::get),
            sticky: self.sticky.as_ref().map(|sticky| sticky.plan(session_keys)),
            backends: backends.collect(),
            tls: self.tls.as_ref().map(|tls| tls.plan(ca, client)),
            host: self.host.as_ref().map(|host| host.get().0.clone()),
            upgrades: self
                .upgrades
                .as_ref()
                .map(|protocols| protocols.iter().map(|protocol| protocol.get().0.clone()).collect()),
            timeouts: self.timeouts.plan(),
            outlier_detection: self.outlier_detection.plan(),
            panic_threshold: u8::try_from(self.panic_threshold.get()).unwrap_or(100),
            slow_start: self.slow_start.as_ref().map(Text::duration),
            retries: self.retries.plan(),
            queue: self.queue().get(),
        }
    }
}

// === impl TlsConfig ===

impl TlsConfig {
    fn plan(&self, ca: Vec<Vec<u8>>, client: Option<ClientCertificate>) -> UpstreamTls {
        let sni = self.sni.as_ref().map(|sni| sni.get().0.clone());
        UpstreamTls { sni, verify: self.verify, ca, client }
    }
}

// === impl TimeoutsConfig ===

impl Default for TimeoutsConfig {
    fn default() -> Self {
        let Timeouts { response, body, tunnel, idle, max_age, .. } = Timeouts::default();
        Self {
            connect: None,
            response: Text::of(response),
            body: Text::of(body.unwrap_or_default()),
            tunnel: Text::of(tunnel.unwrap_or_default()),
            idle: Text::of(idle),
            max_age: Text::of(max_age),
            queue: None,
        }
    }
}

impl TimeoutsConfig {
    /// Fills in the default for `connect`, which is at most `per_try`. Returns `connect`.
    fn complete(&mut self, per_try: Option<&Text<PositiveDuration>>) -> Duration {
        let default: Text<PositiveDuration> = Text::of(Timeouts::default().connect);
        let shorter = per_try.filter(|per_try| per_try.duration() < default.duration()).cloned();
        self.connect.get_or_insert(shorter.unwrap_or(default)).duration()
    }

    fn plan(&self) -> Timeouts {
        let defaults = Timeouts::default();
        Timeouts {
            connect: self.connect.as_ref().map_or(defaults.connect, Text::duration),
            response: self.response.duration(),
            body: unless_zero(&self.body),
            tunnel: unless_zero(&self.tunnel),
            max_age: self.max_age.duration(),
            idle: self.idle.duration(),
            queue: self.queue.as_ref().map_or(defaults.queue, Text::duration),
        }
    }
}

// === impl LimitsConfig ===

impl LimitsConfig {
    /// Returns the limit of a backend without a limit of its own.
    fn each(&self) -> Number<0, MAX_COUNT> {
        self.max_requests.unwrap_or(Number::near(0))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn pool(keys: &str) -> PoolConfig<()> {
        let text = format!(r#"{{"backends": ["10.0.0.1:80", "10.0.0.2:80"], "health_check": null{keys}}}"#);
        let mut pool: PoolConfig<()> = serde_json::from_str(&text).expect("it is valid");
        pool.complete();
        pool
    }

    #[test]
    fn the_smallest_pool_has_the_documented_defaults() {
        let settings = pool("").plan("web", PoolFiles::default(), LOOPBACK);
        let defaults = PoolSettings::new("web", settings.backends.clone());
        assert_eq!(format!("{settings:?}"), format!("{defaults:?}"));
    }

    #[test]
    fn the_default_queue_is_twice_the_sum_of_the_limits() {
        let queue = |keys| pool(keys).plan("web", PoolFiles::default(), LOOPBACK).queue;
        assert_eq!(queue(""), 0);
        assert_eq!(queue(r#", "limits": {"max_requests": 10}"#), 40);
        assert_eq!(queue(r#", "limits": {"max_requests": 10, "queue": 7}"#), 7);
        assert_eq!(queue(r#", "limits": {"max_requests": 10, "queue": 0}"#), 0);
        assert_eq!(queue(r#", "limits": {"max_requests": 1000000}"#), MAX_COUNT);
    }

    #[test]
    fn only_keys_with_an_effect_are_filled_in() {
        let plain = pool("");
        assert!(plain.hash_on.is_none() && plain.timeouts.queue.is_none());
        assert_eq!(plain.limits.max_requests, Some(Number::near(0)));
        assert_eq!(pool(r#", "policy": "maglev""#).hash_on, Some(HashOnConfig::ClientIp));
        assert!(pool(r#", "limits": {"max_requests": 10}"#).timeouts.queue.is_some());
    }

    #[test]
    fn the_limit_of_the_pool_stays_absent_if_every_backend_has_its_own() {
        let text = r#"{"backends": [{"address": "10.0.0.1:80", "max_requests": 5}], "health_check": null}"#;
        let mut pool: PoolConfig<()> = serde_json::from_str(text).expect("it is valid");
        pool.complete();
        assert!(pool.limits.max_requests.is_none() && pool.is_limited());
        assert_eq!(pool.plan("web", PoolFiles::default(), LOOPBACK).queue, 10);
    }

    #[test]
    fn the_default_connect_timeout_is_at_most_that_of_an_attempt() {
        let connect = |keys| pool(keys).plan("web", PoolFiles::default(), LOOPBACK).timeouts.connect;
        assert_eq!(connect(""), Duration::from_secs(3));
        assert_eq!(connect(r#", "retries": {"per_try": "2s"}"#), Duration::from_secs(2));
        assert_eq!(connect(r#", "retries": {"per_try": "5s"}"#), Duration::from_secs(3));
        let both = r#", "retries": {"per_try": "5s"}, "timeouts": {"connect": "4s"}"#;
        assert_eq!(connect(both), Duration::from_secs(4));
    }
}
