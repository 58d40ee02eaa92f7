//! The configuration as meant: every default filled in, every name resolved, nothing left to parse.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use health_service::HealthCheckConfig;
use health_service::Settings as CheckSettings;
use ipnet::IpNet;
use lb_service::access_log;
use lb_service::config::{
    AbsolutePath, AccessLogConfig, FormatConfig, FromText, ListenerConfig, Name, PoolConfig, PoolFiles,
    RouteConfig, SocketPath, Text,
};
use lb_service::listener::{ListenAddress, Listener, ListenerId, Listeners};
use lb_service::pool::{PoolId, PoolSettings, SessionKeys};
use lb_service::route::Route;
use metrics_service::config::RequiredPools;

use super::context::Context;
use super::document::Node;
use super::sections::{Config, ReloadConfig, RollbackConfig, ShutdownConfig};
use crate::process::logging::LogFilter;
use crate::process::runtime::RuntimeFiles;

/// Where the one listener listens when none is configured.
const DEFAULT_LISTENER: &str = "0.0.0.0:6188";

/// Everything that a start needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The process and Pingora's own settings.
    pub server: ServerPlan,
    /// How the process ends.
    pub shutdown: ShutdownPlan,
    /// What is logged, unless the environment or an operator says otherwise.
    pub log_level: Option<LogFilter>,
    /// Where clients connect; at least one.
    pub listeners: Listeners,
    /// Indexed by [`PoolId`], in the order of their names; at least one.
    pub pools: Vec<(PoolSettings, CheckSettings)>,
    /// In the order in which they are tried; at least one.
    pub routes: Vec<Route>,
    /// Where metrics, probes and status are read.
    pub metrics: SocketAddr,
    /// Which pools must have a ready backend for the process to be ready.
    pub readiness: RequiredPools,
    /// What is written about each request.
    pub access_log: access_log::Settings,
    /// Whose `X-Forwarded-*` headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Where the daemon is told to change.
    pub control: ControlPlan,
    /// When the file is read again, and when that is taken back.
    pub reload: ReloadPlan,
    /// Where the keys of session cookies stand.
    pub key_files: Vec<KeyFile>,
}

/// The file with the session keys of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFile {
    /// The name of the pool.
    pub pool: Arc<str>,
    /// Where it is.
    pub path: PathBuf,
}

/// Where the daemon is told to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPlan {
    /// The Unix socket.
    pub socket: PathBuf,
    /// Whether it is another than the default. That one may be another daemon's, which is no reason not to serve.
    pub is_named: bool,
}

/// When the file is read again, and when that is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReloadPlan {
    /// Whether it is read again when it has changed.
    pub watch: bool,
    /// When a reload is taken back; absent: never.
    pub rollback: Option<RollbackPlan>,
}

/// When a reload is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RollbackPlan {
    /// The share of failed requests above which it is, in percent.
    pub error_rate: u32,
    /// How long after the reload requests are looked at.
    pub window: Duration,
}

/// The process and Pingora's own settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerPlan {
    /// Whether the configuration or `-d` asks for a daemon.
    pub daemon: bool,
    /// Threads of each service.
    pub threads: usize,
    /// Where the process id is written; absent in the foreground unless it is given.
    pub pid_file: Option<PathBuf>,
    /// Where a daemon writes its log; absent: the standard error.
    pub error_log: Option<PathBuf>,
    /// Where a new process takes the sockets over.
    pub upgrade_sock: PathBuf,
    /// The user to run as.
    pub user: Option<String>,
    /// The group to run as.
    pub group: Option<String>,
    /// The directory to run in; absent: that of the start, and `/` for a daemon.
    pub working_directory: Option<PathBuf>,
    /// Tasks that accept connections, for each listener.
    pub listener_tasks_per_fd: usize,
    /// Whether the threads of a service take work from each other.
    pub work_stealing: bool,
    /// The authorities to trust for backends; absent: the system's.
    pub ca_file: Option<PathBuf>,
    /// Addresses to connect to IPv4 backends from.
    pub client_bind_to_ipv4: Vec<Ipv4Addr>,
    /// Addresses to connect to IPv6 backends from.
    pub client_bind_to_ipv6: Vec<Ipv6Addr>,
    /// Idle connections to backends that each thread keeps.
    pub upstream_keepalive_pool_size: usize,
    /// Threads that only make connections to backends.
    pub upstream_connect_offload: Option<ConnectOffload>,
    /// The names of files whose paths are not given.
    pub runtime: RuntimeFiles,
}

/// Threads that only make connections to backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectOffload {
    /// Number of pools of threads.
    pub pools: usize,
    /// Threads in each of them.
    pub threads_per_pool: usize,
}

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShutdownPlan {
    /// How long it is not ready but still accepts requests.
    pub delay: Duration,
    /// How long requests in flight may take to finish.
    pub drain: Duration,
}

// === impl Plan ===

impl Plan {
    /// The same with these keys for the pools that have theirs in the file at `path`.
    #[must_use]
    pub fn with_session_keys(mut self, path: &Path, keys: &SessionKeys) -> Self {
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
    config.threads = config.threads.or(NonZeroUsize::new(context.cpus));
    // With several threads that share nothing, Pingora loses every tenth connection to a backend to a race between the
    // one that watches it and the one that takes it again.
    config.work_stealing.get_or_insert(config.threads.is_none_or(|threads| threads.get() > 1));
    if config.daemon {
        config.pid_file = config.pid_file.take().or_else(|| as_text(&runtime.pid_file()));
    }
    config.upgrade_sock = config.upgrade_sock.take().or_else(|| as_text(&runtime.upgrade_sock()));
    config.control.socket = config.control.socket.take().or_else(|| as_text(&runtime.control_socket()));
    config.listeners.get_or_insert_with(|| vec![default_listener()]);
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

/// None when the runtime directory has a path that no key could be given, as one that is too long for a socket. Where the file is
/// needed, that is an error then.
fn as_text<T: FromText>(path: &Path) -> Option<Text<T>> {
    Text::new(&path.to_string_lossy()).ok()
}

fn default_listener() -> ListenerConfig {
    ListenerConfig { address: Text::new(DEFAULT_LISTENER).expect("it is an address"), name: None }
}

/// A daemon has no standard output, so its log is off unless it is given a path.
fn default_access_log(daemon: bool) -> AccessLogConfig {
    let format = if daemon { FormatConfig::None } else { FormatConfig::Text };
    AccessLogConfig { format, path: None }
}

/// What is not written is at most the interval: `interval: 1s` alone makes sense.
fn complete_check(check: &mut HealthCheckConfig, is_written: impl Fn(&str) -> bool) {
    if !is_written("timeout") {
        check.timeout = check.timeout.min(check.interval);
    }
    if !is_written("fast_interval") {
        check.fast_interval = check.fast_interval.min(check.interval);
    }
}

fn catch_all(pool: &Text<Name>) -> RouteConfig {
    RouteConfig { r#match: Default::default(), pool: pool.written().to_owned() }
}

/// The plan of a complete configuration in which nothing is wrong. `files` is what was read for each pool, by its name.
pub(crate) fn plan(config: &Config, context: &Context<'_>, files: &mut BTreeMap<String, PoolFiles>) -> Plan {
    Plan {
        server: server(config, context),
        shutdown: shutdown(&config.shutdown),
        log_level: config.log_level.as_ref().map(|level| level.get().clone()),
        listeners: Listeners::new(config.listeners.iter().flatten().map(listener)),
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
        window: rollback.window.get().0,
    };
    ReloadPlan { watch: config.watch, rollback: config.rollback.as_ref().map(rollback) }
}

fn server(config: &Config, context: &Context<'_>) -> ServerPlan {
    let runtime = context.runtime.clone();
    let path = |written: &Option<Text<AbsolutePath>>| written.as_ref().map(|path| path.get().0.clone());
    let offload =
        config.upstream_connect_offload_threadpools.zip(config.upstream_connect_offload_thread_per_pool);
    ServerPlan {
        daemon: config.daemon,
        threads: config.threads.map_or(1, NonZeroUsize::get),
        pid_file: path(&config.pid_file),
        error_log: path(&config.error_log),
        upgrade_sock: socket(&config.upgrade_sock).unwrap_or_else(|| runtime.upgrade_sock()),
        user: config.user.clone(),
        group: config.group.clone(),
        working_directory: config.working_directory.as_ref().map(|directory| directory.get().0.clone()),
        listener_tasks_per_fd: config.listener_tasks_per_fd.get(),
        work_stealing: config.work_stealing.unwrap_or(true),
        ca_file: config.ca_file.as_ref().map(|path| path.get().0.clone()),
        client_bind_to_ipv4: config.client_bind_to_ipv4.iter().map(|source| source.get().0).collect(),
        client_bind_to_ipv6: config.client_bind_to_ipv6.iter().map(|source| source.get().0).collect(),
        upstream_keepalive_pool_size: config.upstream_keepalive_pool_size.get(),
        upstream_connect_offload: offload
            .map(|(pools, threads)| ConnectOffload { pools: pools.get(), threads_per_pool: threads.get() }),
        runtime,
    }
}

fn shutdown(config: &ShutdownConfig) -> ShutdownPlan {
    ShutdownPlan { delay: config.delay.get().0, drain: config.drain.get().0 }
}

fn listener(config: &ListenerConfig) -> Listener {
    let address: ListenAddress = config.address.get().clone();
    Listener { name: config.name().into(), address }
}

/// `None` when it names a listener or a pool that does not exist.
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
