//! The whole configuration as written: Pingora's keys, the sections of the services, and what belongs to neither.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::NonZeroUsize;

use health_service::HealthCheckConfig;
use ipnet::IpNet;
use lb_service::config::{
    AbsolutePath, AccessLogConfig, AnyDuration, FromText, ListenerConfig, Name, Percent, PoolConfig,
    PositiveDuration, ReadPath, RouteConfig, SocketPath, Text,
};
use metrics_service::config::{MetricsConfig, ReadinessConfig};
use schemars::{JsonSchema, Schema, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

use crate::process::logging::LogFilter;

/// A configuration file of the load balancer.
///
/// Only `pools` must be given. Durations are written `250ms`, `5s`, `1m` or `1h`; `${NAME}` and `${NAME:-default}`
/// in values are replaced by environment variables.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The version of this format: 1.
    #[serde(default = "first_version", deserialize_with = "version")]
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// Whether to run in the background, as with `-d`.
    #[serde(default)]
    pub daemon: bool,
    /// Threads of each service; default: the number of CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1024))]
    pub threads: Option<NonZeroUsize>,
    /// Where the process id is written; default: `load_balancer.pid` in the runtime directory, with the name of this file
    /// in it unless that is `/etc/load_balancer/load_balancer.yaml`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_file: Option<Text<AbsolutePath>>,
    /// Where a daemon writes its log; default: the standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_log: Option<Text<AbsolutePath>>,
    /// What is logged: none, error, warn, info, debug or trace; also for single modules, as in
    /// `info,health_service=debug`. The environment variable `RUST_LOG` wins over it; default: info.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_level: Option<Text<LogFilter>>,
    /// Where a new process takes the sockets over; default: `upgrade.sock` in the runtime directory, named as that of `pid_file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade_sock: Option<Text<SocketPath>>,
    /// The user to run as once ports and logs are open; needs a start as root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The group to run as once ports and logs are open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The directory to run in; default: that of the start, and `/` for a daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<Text<Directory>>,
    /// Tasks that accept connections, for each listener.
    #[serde(default = "one")]
    #[schemars(range(max = 1024))]
    pub listener_tasks_per_fd: NonZeroUsize,
    /// Whether the threads of a service take work from each other; default: true with more than one thread. With one
    /// thread, false costs less for each request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_stealing: Option<bool>,
    /// A PEM file of the authorities to trust for backends; default: the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<Text<ReadPath>>,
    /// IPv4 addresses of this machine to connect to backends from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub client_bind_to_ipv4: Vec<Text<SourceIpv4>>,
    /// IPv6 addresses of this machine to connect to backends from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub client_bind_to_ipv6: Vec<Text<SourceIpv6>>,
    /// Idle connections to backends that each thread keeps.
    #[serde(default = "keepalive_pool_size")]
    pub upstream_keepalive_pool_size: NonZeroUsize,
    /// Pools of threads that only make connections to backends; needs the next key as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1024))]
    pub upstream_connect_offload_threadpools: Option<NonZeroUsize>,
    /// Threads of each of these pools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1024))]
    pub upstream_connect_offload_thread_per_pool: Option<NonZeroUsize>,
    /// What happens between a signal to stop and the end of the process.
    #[serde(default)]
    pub shutdown: ShutdownConfig,
    /// Where clients connect; default: one listener, `0.0.0.0:6188`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listeners: Option<Vec<ListenerConfig>>,
    /// The pools of backends, by name.
    #[serde(default)]
    pub pools: BTreeMap<Text<Name>, PoolConfig<HealthCheckConfig>>,
    /// Which requests go to which pool; the first match decides. May be left out when there is one pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<RouteConfig>>,
    /// Metrics, probes and status over HTTP.
    #[serde(default)]
    pub metrics: MetricsConfig,
    /// When `/readyz` says that this process may be sent requests.
    #[serde(default)]
    pub readiness: ReadinessConfig,
    /// What is written about each request; default: text to the standard output, and for a daemon nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLogConfig>,
    /// Networks of proxies whose `X-Forwarded-*` headers are believed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusted_proxies: Vec<Text<IpNet>>,
    /// Where a running daemon is told to change.
    #[serde(default)]
    pub control: ControlConfig,
    /// When this file is read again, and when that is taken back.
    #[serde(default)]
    pub reload: ReloadConfig,
}

/// Where a running daemon is told to change.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub struct ControlConfig {
    /// A Unix socket of mode 0600; default: `control.sock` in the runtime directory, named as that of `pid_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<Text<SocketPath>>,
}

/// When this file is read again, and when that is taken back.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub struct ReloadConfig {
    /// Whether the file is read again whenever it has changed.
    pub watch: bool,
    /// When a reload is taken back; default: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackConfig>,
}

/// When a reload is taken back: too many requests fail after it.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct RollbackConfig {
    /// The share of requests answered with 500 or more, in percent, above which it is.
    pub error_rate: Percent<1, 99>,
    /// How long after a reload the requests are looked at.
    pub window: Text<PositiveDuration>,
}

/// What happens between a signal to stop and the end of the process.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct ShutdownConfig {
    /// How long `/readyz` answers 503 while requests are still accepted.
    pub delay: Text<AnyDuration>,
    /// How long requests in flight may take to finish; the process ends as soon as none is left.
    pub drain: Text<AnyDuration>,
}

/// An IPv4 address of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceIpv4(pub Ipv4Addr);

/// An IPv6 address of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceIpv6(pub Ipv6Addr);

/// A directory, written as an absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory(pub std::path::PathBuf);

fn first_version() -> u32 {
    1
}

fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match i64::deserialize(deserializer)? {
        1 => Ok(1),
        other => Err(serde::de::Error::custom(format!(
            "this program reads version 1 of the format, not {other}\nwrite `version: 1`, or remove the key"
        ))),
    }
}

fn one() -> NonZeroUsize {
    NonZeroUsize::MIN
}

fn keepalive_pool_size() -> NonZeroUsize {
    NonZeroUsize::new(128).expect("128 is not 0")
}

// === impl ShutdownConfig ===

impl Default for ShutdownConfig {
    fn default() -> Self {
        let duration = |text| Text::new(text).expect("a default is valid");
        Self { delay: duration("0s"), drain: duration("25s") }
    }
}

// === texts ===

impl FromText for SourceIpv4 {
    const EXPECTED: &'static str = "an IPv4 address without a port";

    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| format!("expected {}, found {text:?}", Self::EXPECTED))
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "pattern": "^[0-9.]+$"})
    }
}

impl FromText for SourceIpv6 {
    const EXPECTED: &'static str = "an IPv6 address without a port";

    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| format!("expected {}, found {text:?}", Self::EXPECTED))
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "pattern": "^[0-9A-Fa-f.:]+$"})
    }
}

impl FromText for Directory {
    const EXPECTED: &'static str = "a directory such as /var/lib/load_balancer";

    fn from_text(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') || text.contains('\0') {
            return Err(format!("the directory {text:?} is relative\nwrite it from / on"));
        }
        Ok(Self(text.into()))
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "pattern": "^/"})
    }
}
