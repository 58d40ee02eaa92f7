//! The configuration as written: the keys for Pingora, the sections of the services, and the keys of this crate.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use health_service::HealthCheckConfig;
use ipnet::IpNet;
use lb_service::config::{AccessLogConfig, ListenerConfig, PoolConfig, RouteConfig};
use metrics_service::config::{MetricsConfig, ReadinessConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use values::number::MAX_COUNT;
use values::{
    AbsolutePath, AnyDuration, Directory, Name, Number, Percent, PositiveDuration, ReadPath, Rejection,
    Scalar, SocketPath, Text, TextScalar,
};

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
    pub(crate) version: u32,
    /// Whether the daemon runs in the background, as with `-d`.
    #[serde(default)]
    pub(crate) daemon: bool,
    /// Number of threads of each service; default: the number of CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) threads: Option<Threads>,
    /// File for the PID; default: `load_balancer.pid` in the runtime directory, with the name of the configuration
    /// file inserted unless that is `/etc/load_balancer/load_balancer.yaml`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pid_file: Option<Text<AbsolutePath>>,
    /// File for the log; default: standard error, and no log in the background.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error_log: Option<Text<AbsolutePath>>,
    /// Log level: none, error, warn, info, debug or trace, also for single modules, as in
    /// `info,health_service=debug`. The environment variable `RUST_LOG` overrides it; default: `info`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) log_level: Option<Text<LogFilter>>,
    /// Unix socket through which a new process takes over the listening sockets; default: `upgrade.sock` in the
    /// runtime directory, with a name as for `pid_file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade_sock: Option<Text<SocketPath>>,
    /// User that the daemon runs as after it has opened its ports and logs. The daemon must be started as root;
    /// default: the user that starts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Group that the daemon runs as after it has opened its ports and logs; default: the group of `user`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Working directory; default: the directory in which the daemon starts, and `/` in the background.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) working_directory: Option<Text<Directory>>,
    /// Number of tasks per listener that accept connections.
    #[serde(default = "one")]
    pub(crate) listener_tasks_per_fd: Threads,
    /// Whether the threads of a service take work from each other. Otherwise, a connection stays on one thread, which
    /// costs less CPU time per request.
    #[serde(default)]
    pub(crate) work_stealing: bool,
    /// PEM file with the authorities that sign the certificates of backends; default: the authorities of the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca_file: Option<Text<ReadPath>>,
    /// Local IPv4 addresses for connections to backends; default: the system chooses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) client_bind_to_ipv4: Vec<Text<SourceIpv4>>,
    /// Local IPv6 addresses for connections to backends; default: the system chooses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) client_bind_to_ipv6: Vec<Text<SourceIpv6>>,
    /// Number of idle connections to backends that each thread keeps.
    #[serde(default = "keepalive_pool_size")]
    pub(crate) upstream_keepalive_pool_size: Number<1, MAX_COUNT>,
    /// Shutdown of the daemon after a signal or `stop`.
    #[serde(default)]
    pub(crate) shutdown: ShutdownConfig,
    /// Addresses that clients connect to; default: one listener, `0.0.0.0:6188`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) listeners: Option<Vec<ListenerConfig>>,
    /// Pools of backends, by name.
    #[serde(default)]
    pub(crate) pools: BTreeMap<Text<Name>, PoolConfig<HealthCheckConfig>>,
    /// Pool for each kind of request. The first matching route decides. Optional with a single pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) routes: Option<Vec<RouteConfig>>,
    /// Metrics, probes and status over HTTP.
    #[serde(default)]
    pub(crate) metrics: MetricsConfig,
    /// Condition under which `/readyz` responds 200.
    #[serde(default)]
    pub(crate) readiness: ReadinessConfig,
    /// Log of the requests; default: text on standard output, and none in the background.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) access_log: Option<AccessLogConfig>,
    /// Networks of the proxies whose `X-Forwarded-*` headers are trusted; default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) trusted_proxies: Vec<Text<IpNet>>,
    /// Control of the running daemon by subcommands.
    #[serde(default)]
    pub(crate) control: ControlConfig,
    /// Automatic reload and rollback of the configuration file.
    #[serde(default)]
    pub(crate) reload: ReloadConfig,
}

/// Control of the running daemon by subcommands.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ControlConfig {
    /// Path of the control socket, which has mode 0600; default: `control.sock` in the runtime directory, with a name
    /// as for `pid_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<Text<SocketPath>>,
}

/// Automatic reload and rollback of the configuration file.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ReloadConfig {
    /// Whether the daemon reloads the file whenever it changes.
    pub watch: bool,
    /// Condition that rolls a reload back; default: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackConfig>,
}

/// Rollback of a reload after which too many requests fail.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct RollbackConfig {
    /// Percentage of requests with a status of 500 or more, or with a truncated response, above which the reload is
    /// rolled back.
    pub error_rate: Percent<1, 99>,
    /// Time after a reload in which failed requests are counted.
    pub window: Text<PositiveDuration>,
}

/// Shutdown of the daemon after a signal or `stop`.
#[derive(Deserialize, Serialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ShutdownConfig {
    /// Time during which `/readyz` responds 503 and requests are still accepted.
    pub delay: Text<AnyDuration>,
    /// Longest time that requests in flight can take to finish. The process ends as soon as none is left.
    pub drain: Text<AnyDuration>,
}

/// A number of threads or tasks.
pub(super) type Threads = Number<1, 1024>;

/// An IPv4 address of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SourceIpv4(pub Ipv4Addr);

/// An IPv6 address of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SourceIpv6(pub Ipv6Addr);

fn first_version() -> u32 {
    1
}

fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match i64::deserialize(deserializer)? {
        1 => Ok(1),
        other => Err(serde::de::Error::custom(format!(
            "version {other} of the format is not supported\nwrite `version: 1`, or remove the key"
        ))),
    }
}

fn one() -> Threads {
    Number::near(1)
}

fn keepalive_pool_size() -> Number<1, MAX_COUNT> {
    Number::near(4096)
}

// === impl ShutdownConfig ===

impl Default for ShutdownConfig {
    fn default() -> Self {
        Self { delay: Text::literal("0s"), drain: Text::literal("25s") }
    }
}

// === strings ===

impl TextScalar for SourceIpv4 {
    const EXPECTED: &'static str = "an IPv4 address without a port";
    const PATTERN: &'static str = "^[0-9.]+$";

    fn parse(text: &str) -> Result<Self, Rejection> {
        let address = text.parse().map(Self);
        address.map_err(|_| Self::unexpected(text).into())
    }
}

impl TextScalar for SourceIpv6 {
    const EXPECTED: &'static str = "an IPv6 address without a port";
    const PATTERN: &'static str = "^[0-9A-Fa-f.:]+$";

    fn parse(text: &str) -> Result<Self, Rejection> {
        let address = text.parse().map(Self);
        address.map_err(|_| Self::unexpected(text).into())
    }
}
