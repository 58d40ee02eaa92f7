//! The configuration as typed values, with all defaults and with resolved names.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use health_service::HealthCheckConfig;
use health_service::Settings as CheckSettings;
use ipnet::IpNet;
use lb_service::access_log;
use lb_service::config::{AccessLogConfig, FormatConfig, ListenerConfig, PoolConfig, PoolFiles, RouteConfig};
use lb_service::listener::{ListenerId, Listeners};
use lb_service::pool::{PoolId, PoolSettings, SessionKeys};
use lb_service::route::Route;
use metrics_service::config::RequiredPools;
use values::{AbsolutePath, Name, Number, Scalar, SocketPath, Text};

use super::context::Context;
use super::document::Node;
use super::sections::{Config, ReloadConfig, RollbackConfig, ShutdownConfig};
use crate::process::logging::LogFilter;
use crate::process::runtime::RuntimeFiles;

/// The address of the default listener.
const DEFAULT_LISTENER: &str = "0.0.0.0:6188";

/// The complete configuration of a daemon.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The settings of the process and of Pingora.
    pub(crate) server: ServerPlan,
    /// The shutdown of the process.
    pub(crate) shutdown: ShutdownPlan,
    /// The log level, unless the environment or an operator overrides it. `None` stands for the default.
    pub(crate) log_level: Option<LogFilter>,
    /// The addresses that clients connect to, at least one.
    pub(crate) listeners: Listeners,
    /// The pools in the order of their names, indexed by [`PoolId`]; at least one.
    pub pools: Vec<(PoolSettings, CheckSettings)>,
    /// The routes in the order in which they are compared, at least one.
    pub(crate) routes: Vec<Route>,
    /// The address that serves metrics, probes and status.
    pub(crate) metrics: SocketAddr,
    /// The pools that must have an available backend for the process to be ready.
    pub(crate) readiness: RequiredPools,
    /// The access log.
    pub(crate) access_log: access_log::Settings,
    /// The networks of proxies whose `X-Forwarded-*` headers are trusted.
    pub(crate) trusted_proxies: Vec<IpNet>,
    /// The control socket.
    pub(crate) control: ControlPlan,
    /// The automatic reload and rollback of the file.
    pub(crate) reload: ReloadPlan,
    /// The files with the keys of session cookies.
    pub(crate) key_files: Vec<KeyFile>,
}

/// The file with the session keys of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyFile {
    /// The name of the pool.
    pub pool: Arc<str>,
    /// The path of the file.
    pub path: PathBuf,
}

/// The control socket of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ControlPlan {
    /// The Unix socket.
    pub socket: PathBuf,
    /// Whether its path differs from the default. If it does not, a socket of another daemon at that path does not
    /// prevent the start.
    pub is_named: bool,
}

/// The automatic reload and rollback of the configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReloadPlan {
    /// Whether the daemon reloads the file whenever it changes.
    pub watch: bool,
    /// The condition that rolls a reload back. `None` means never.
    pub rollback: Option<RollbackPlan>,
}

/// The condition that rolls a reload back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RollbackPlan {
    /// The percentage of failed requests above which the reload is rolled back.
    pub error_rate: u32,
    /// The time after the reload in which requests are counted.
    pub window: Duration,
}

/// The settings of the process and of Pingora.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerPlan {
    /// Whether the process runs in the background, by its configuration or by `-d`.
    pub daemon: bool,
    /// The number of threads of each service.
    pub threads: usize,
    /// The file for the PID. `None` means that no PID is written: in the foreground, if no file is given.
    pub pid_file: Option<PathBuf>,
    /// The file for the log. `None` stands for standard error.
    pub error_log: Option<PathBuf>,
    /// The socket through which a new process takes over the listening sockets.
    pub upgrade_sock: PathBuf,
    /// The user that the daemon runs as. `None` stands for the user that starts it.
    pub user: Option<String>,
    /// The group that the daemon runs as. `None` stands for the group of the user.
    pub group: Option<String>,
    /// The working directory. `None` stands for the directory in which the daemon starts, or `/` in the background.
    pub working_directory: Option<PathBuf>,
    /// The number of tasks that accept connections, for each listener.
    pub listener_tasks_per_fd: usize,
    /// Whether the threads of a service take work from each other.
    pub work_stealing: bool,
    /// The file with the authorities that are trusted for backends. `None` stands for the authorities of the system.
    pub ca_file: Option<PathBuf>,
    /// The local addresses for connections to IPv4 backends.
    pub client_bind_to_ipv4: Vec<Ipv4Addr>,
    /// The local addresses for connections to IPv6 backends.
    pub client_bind_to_ipv6: Vec<Ipv6Addr>,
    /// The number of idle connections to backends that each thread keeps.
    pub upstream_keepalive_pool_size: usize,
    /// The default paths of files.
    pub runtime: RuntimeFiles,
}

/// The shutdown of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShutdownPlan {
    /// The time during which the process is not ready but still accepts requests.
    pub delay: Duration,
    /// The maximum time for requests in flight to finish.
    pub drain: Duration,
}

// === impl Plan ===

impl Plan {
    /// Replaces the session keys of all pools whose keys are in the file at `path`.
    #[must_use]
    pub(crate) fn with_session_keys(mut self, path: &Path, keys: &SessionKeys) -> Self {
        let users = self.key_files.iter().filter(|file| file.path == path);
        for KeyFile { pool: name, .. } in users {
            let pool = self.pools.iter_mut().find(|(pool, _)| pool.name == *name);
            if let Some(sticky) = pool.and_then(|(pool, _)| pool.sticky.as_mut()) {
                sticky.keys = Some(keys.clone());
            }
        }
        self
    }
}

/// Fills in the defaults that depend on other keys or on the surroundings.
pub(crate) fn complete(config: &mut Config, root: &Node, context: &Context<'_>) {
    let runtime = context.runtime;
    config.daemon |= context.daemon;
    config.threads.get_or_insert(Number::near(u32::try_from(context.cpus).unwrap_or(u32::MAX)));
    if config.daemon {
        config.pid_file = config.pid_file.take().or_else(|| as_text(&runtime.pid_file()));
    }
    config.upgrade_sock = config.upgrade_sock.take().or_else(|| as_text(&runtime.upgrade_sock()));
    config.control.socket = config.control.socket.take().or_else(|| as_text(&runtime.control_socket()));
    let listeners = config.listeners.get_or_insert_with(|| vec![default_listener()]);
    listeners.iter_mut().for_each(ListenerConfig::complete);
    let daemon = config.daemon;
    config.access_log.get_or_insert_with(|| default_access_log(daemon));
    for (name, pool) in &mut config.pools {
        pool.complete();
        complete_check(&mut pool.health_check, |key| {
            root.get(&["pools".into(), name.written().into(), "health_check".into(), key.into()]).is_some()
        });
    }
    if config.routes.is_none() && config.pools.len() == 1 {
        let only = config.pools.keys().map(catch_all);
        config.routes = Some(only.collect());
    }
}

/// Converts a path to the value of a key. `None` means that the path is not valid for the key, such as a runtime
/// directory whose path is too long for a socket. It becomes an error when the file is needed.
fn as_text<T: Scalar>(path: &Path) -> Option<Text<T>> {
    Text::new(&path.to_string_lossy()).ok()
}

fn default_listener() -> ListenerConfig {
    ListenerConfig::at(Text::literal(DEFAULT_LISTENER))
}

/// Returns the default access log. A process in the background has no standard output, so the access log is off.
fn default_access_log(daemon: bool) -> AccessLogConfig {
    let format = if daemon { FormatConfig::None } else { FormatConfig::Text };
    AccessLogConfig { format, path: None }
}

/// Limits missing durations to the interval, so that `interval: 1s` alone is valid.
fn complete_check(check: &mut HealthCheckConfig, is_written: impl Fn(&str) -> bool) {
    let interval = &check.interval;
    for (key, duration) in [("timeout", &mut check.timeout), ("fast_interval", &mut check.fast_interval)] {
        if !is_written(key) && duration.duration() > interval.duration() {
            duration.clone_from(interval);
        }
    }
}

fn catch_all(pool: &Text<Name>) -> RouteConfig {
    RouteConfig { r#match: Default::default(), pool: pool.written().to_owned() }
}

/// Makes the plan of a complete and valid configuration. `files` contains the files that were read for each pool, by
/// its name.
pub(crate) fn plan(config: &Config, context: &Context<'_>, files: &mut BTreeMap<String, PoolFiles>) -> Plan {
    Plan {
        server: server(config, context),
        shutdown: shutdown(&config.shutdown),
        log_level: config.log_level.as_ref().map(|level| level.get().clone()),
        listeners: Listeners::new(config.listeners.iter().flatten().map(ListenerConfig::plan)),
        pools: config
            .pools
            .iter()
            .map(|(name, config)| {
                let files = files.remove(name.written()).unwrap_or_default();
                (config.plan(name.written(), files, context.loopback), config.health_check.plan())
            })
            .collect(),
        routes: config.routes.iter().flatten().filter_map(|written| route(written, config)).collect(),
        metrics: config.metrics.address(),
        readiness: config.readiness.pools(),
        access_log: config.access_log.clone().unwrap_or_default().plan(),
        trusted_proxies: config.trusted_proxies.iter().map(|network| *network.get()).collect(),
        control: control(config, context),
        reload: reload(&config.reload),
        key_files: config.pools.iter().filter_map(|(name, pool)| key_file(name.written(), pool)).collect(),
    }
}

fn key_file(name: &str, pool: &PoolConfig<HealthCheckConfig>) -> Option<KeyFile> {
    let path = pool.sticky.as_ref()?.key_file.as_ref()?;
    Some(KeyFile { pool: name.into(), path: path.get().0.clone() })
}

fn control(config: &Config, context: &Context<'_>) -> ControlPlan {
    let default = context.runtime.control_socket();
    let socket = socket(&config.control.socket).unwrap_or_else(|| default.clone());
    ControlPlan { is_named: socket != default, socket }
}

fn socket(written: &Option<Text<SocketPath>>) -> Option<PathBuf> {
    written.as_ref().map(|path| path.get().0.clone())
}

fn reload(config: &ReloadConfig) -> ReloadPlan {
    let rollback = |rollback: &RollbackConfig| RollbackPlan {
        error_rate: rollback.error_rate.get(),
        window: rollback.window.duration(),
    };
    ReloadPlan { watch: config.watch, rollback: config.rollback.as_ref().map(rollback) }
}

fn server(config: &Config, context: &Context<'_>) -> ServerPlan {
    let runtime = context.runtime.clone();
    let path = |written: &Option<Text<AbsolutePath>>| written.as_ref().map(|path| path.get().0.clone());
    ServerPlan {
        daemon: config.daemon,
        threads: config.threads.map_or(1, Number::as_usize),
        pid_file: path(&config.pid_file),
        error_log: path(&config.error_log),
        upgrade_sock: socket(&config.upgrade_sock).unwrap_or_else(|| runtime.upgrade_sock()),
        user: config.user.clone(),
        group: config.group.clone(),
        working_directory: config.working_directory.as_ref().map(|directory| directory.get().0.clone()),
        listener_tasks_per_fd: config.listener_tasks_per_fd.as_usize(),
        work_stealing: config.work_stealing,
        ca_file: config.ca_file.as_ref().map(|path| path.get().0.clone()),
        client_bind_to_ipv4: config.client_bind_to_ipv4.iter().map(|source| source.get().0).collect(),
        client_bind_to_ipv6: config.client_bind_to_ipv6.iter().map(|source| source.get().0).collect(),
        upstream_keepalive_pool_size: config.upstream_keepalive_pool_size.as_usize(),
        runtime,
    }
}

fn shutdown(config: &ShutdownConfig) -> ShutdownPlan {
    ShutdownPlan { delay: config.delay.duration(), drain: config.drain.duration() }
}

/// Converts a route. `None` means that it names a listener or a pool that does not exist.
pub(crate) fn route(written: &RouteConfig, config: &Config) -> Option<Route> {
    let rule = &written.r#match;
    let listener = match &rule.listener {
        Some(name) => Some(ListenerId(config.listeners.iter().flatten().position(|l| l.is_called(name))?)),
        None => None,
    };
    Some(Route {
        listener,
        host: rule.hosts(),
        path: rule.paths(),
        methods: rule.methods(),
        headers: rule
            .header
            .iter()
            .map(|(name, value)| (name.get().clone(), value.get().0.clone()))
            .collect(),
        pool: PoolId(config.pools.keys().position(|name| name.written() == written.pool)?),
    })
}
