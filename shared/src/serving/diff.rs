//! Difference between the plan in effect and the wanted plan, both as text and as the work that it requires.
//!
//! Plans are destructured field by field, without `..`. A new field does not compile here until this module handles a
//! change of it.

use std::time::Duration;

use lb_service::listener::{Listener, ListenerId, Listeners};
use lb_service::pool::{
    Admin, BackendSettings, PoolId, PoolSettings, SessionKeys, StickySettings, UpstreamAddress,
};
use lb_service::route::{AnyOf, PathPattern, Route};
use metrics_service::config::RequiredPools;

use crate::config::{ControlPlan, KeyFile, Plan, ReloadPlan, ServerPlan, ShutdownPlan};
use crate::process::logging::LogFilter;
use crate::words::count_of;

/// The difference between two plans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Diff {
    /// The changed keys that need a new process.
    pub needs_process: Vec<&'static str>,
    /// The listeners to open.
    pub opened: Vec<Listener>,
    /// The listeners to close. A renamed listener is closed and opened on the same socket.
    pub closed: Vec<Listener>,
    /// The listeners whose socket file gets another mode.
    pub modes: Vec<Listener>,
    /// The changes that do not need a new process, one line each.
    pub lines: Vec<String>,
}

/// Function that returns the number of requests in flight of a backend, by pool and address.
type InFlight<'a> = &'a dyn Fn(&str, &UpstreamAddress) -> u64;

// === impl Diff ===

impl Diff {
    /// Returns the changes from `old` to `new`. The lines for removed backends contain the number of their requests
    /// `in_flight`.
    pub(crate) fn between(old: &Plan, new: &Plan, in_flight: InFlight<'_>) -> Self {
        let mut diff = Self::default();
        let Plan {
            server,
            shutdown,
            log_level,
            listeners,
            pools,
            routes: _,
            metrics,
            readiness,
            access_log,
            trusted_proxies,
            control,
            reload,
            key_files,
        } = old;
        diff.process(server, &new.server);
        diff.needs("metrics.address", metrics != &new.metrics);
        diff.control(control, &new.control);
        diff.listeners(listeners, &new.listeners);
        diff.pools(pools, &new.pools, in_flight);
        diff.routes(old, new);
        diff.changed("access_log", access_log != &new.access_log);
        diff.changed("trusted_proxies", trusted_proxies != &new.trusted_proxies);
        diff.readiness(*readiness, new.readiness);
        diff.shutdown(*shutdown, new.shutdown);
        diff.log_level(log_level.as_ref(), new.log_level.as_ref());
        diff.reload(*reload, new.reload);
        diff.key_files(key_files, &new.key_files);
        diff
    }

    fn needs(&mut self, key: &'static str, differs: bool) {
        self.needs_process.extend(differs.then_some(key));
    }

    fn changed(&mut self, key: &str, differs: bool) {
        self.lines.extend(differs.then(|| format!("{key} changed")));
    }

    fn process(&mut self, old: &ServerPlan, new: &ServerPlan) {
        let ServerPlan {
            daemon,
            threads,
            pid_file,
            error_log,
            upgrade_sock,
            user,
            group,
            working_directory,
            listener_tasks_per_fd,
            work_stealing,
            // Its certificates are part of the pools.
            ca_file: _,
            client_bind_to_ipv4,
            client_bind_to_ipv6,
            upstream_keepalive_pool_size,
            // The directory of files without a configured path; it does not come from the configuration.
            runtime: _,
        } = old;
        self.needs("daemon", *daemon != new.daemon);
        self.needs("threads", *threads != new.threads);
        self.needs("pid_file", *pid_file != new.pid_file);
        self.needs("error_log", *error_log != new.error_log);
        self.needs("upgrade_sock", *upgrade_sock != new.upgrade_sock);
        self.needs("user", *user != new.user);
        self.needs("group", *group != new.group);
        self.needs("working_directory", *working_directory != new.working_directory);
        self.needs("listener_tasks_per_fd", *listener_tasks_per_fd != new.listener_tasks_per_fd);
        self.needs("work_stealing", *work_stealing != new.work_stealing);
        self.needs("client_bind_to_ipv4", *client_bind_to_ipv4 != new.client_bind_to_ipv4);
        self.needs("client_bind_to_ipv6", *client_bind_to_ipv6 != new.client_bind_to_ipv6);
        let size = *upstream_keepalive_pool_size != new.upstream_keepalive_pool_size;
        self.needs("upstream_keepalive_pool_size", size);
    }

    fn control(&mut self, old: &ControlPlan, new: &ControlPlan) {
        let ControlPlan { socket, is_named: _ } = old;
        self.needs("control.socket", *socket != new.socket);
    }

    fn readiness(&mut self, old: RequiredPools, new: RequiredPools) {
        if old != new {
            self.lines.push(format!("readiness.pools {} -> {}", old.as_str(), new.as_str()));
        }
    }

    fn shutdown(&mut self, old: ShutdownPlan, new: ShutdownPlan) {
        let ShutdownPlan { delay, drain } = old;
        if delay != new.delay {
            self.lines.push(format!("shutdown.delay {delay:?} -> {:?}", new.delay));
        }
        if drain != new.drain {
            self.lines.push(format!("shutdown.drain {drain:?} -> {:?}", new.drain));
        }
    }

    fn log_level(&mut self, old: Option<&LogFilter>, new: Option<&LogFilter>) {
        let level = |level: Option<&LogFilter>| match level {
            Some(level) => level.to_string(),
            None => format!("{} (the default)", LogFilter::default()),
        };
        if old != new {
            self.lines.push(format!("log_level {} -> {}", level(old), level(new)));
        }
    }

    fn reload(&mut self, old: ReloadPlan, new: ReloadPlan) {
        let ReloadPlan { watch, rollback } = old;
        if watch != new.watch {
            self.lines.push(format!("reload.watch {watch} -> {}", new.watch));
        }
        self.changed("reload.rollback", rollback != new.rollback);
    }

    /// Compares the paths of key files for pools that exist before and after. The keys themselves belong to the
    /// settings of the pool.
    fn key_files(&mut self, old: &[KeyFile], new: &[KeyFile]) {
        for KeyFile { pool, path } in new {
            let before = old.iter().find(|file| file.pool == *pool);
            if let Some(before) = before.filter(|before| before.path != *path) {
                let (before, path) = (before.path.display(), path.display());
                self.lines.push(format!("~ pool {pool}: sticky.key_file {before} -> {path}"));
            }
        }
    }

    fn listeners(&mut self, old: &Listeners, new: &Listeners) {
        let differ = |one: &Listeners, other: &Listeners| -> Vec<Listener> {
            let only = one
                .iter()
                .filter(|(_, listener)| !other.iter().any(|(_, known)| known.is_same_socket(listener)));
            only.map(|(_, listener)| listener.clone()).collect()
        };
        (self.closed, self.opened) = (differ(old, new), differ(new, old));
        for listener in &self.closed {
            self.lines.push(match self.opened.iter().find(|opened| opened.address == listener.address) {
                Some(opened) => format!("~ listener {} is renamed to {}", listener.name, opened.name),
                None => format!(
                    "- listener {}: accepts no more connections; open ones close after their next response",
                    on(listener)
                ),
            });
        }
        for (_, listener) in new.iter() {
            let before = old.iter().map(|(_, before)| before).find(|before| before.is_same_socket(listener));
            let limits = |listener: &Listener| (listener.limits, listener.timeouts);
            let differs = before.is_some_and(|before| limits(before) != limits(listener));
            self.changed(&format!("~ listener {}: its limits or timeouts", listener.name), differs);
        }
        self.modes(old, new);
        let is_new = |opened: &&Listener| !self.closed.iter().any(|closed| closed.address == opened.address);
        self.lines
            .extend(self.opened.iter().filter(is_new).map(|opened| format!("+ listener {}", on(opened))));
    }

    fn modes(&mut self, old: &Listeners, new: &Listeners) {
        for (_, listener) in new.iter() {
            let before = old.iter().find(|(_, before)| before.address == listener.address);
            if let Some((_, before)) = before.filter(|(_, before)| before.mode != listener.mode) {
                let (was, is) = (before.mode, listener.mode);
                self.lines.push(format!("~ listener {}: mode {was:04o} -> {is:04o}", listener.name));
                self.modes.push(listener.clone());
            }
        }
    }

    fn routes(&mut self, old: &Plan, new: &Plan) {
        let words = |plan: &Plan| -> Vec<String> { plan.routes.iter().map(|r| route(r, plan)).collect() };
        let (before, after) = (words(old), words(new));
        if before == after {
            return;
        }
        let gone = before.iter().filter(|route| !after.contains(route));
        let come = after.iter().filter(|route| !before.contains(route));
        let lines: Vec<_> = gone
            .map(|route| format!("- route {route}"))
            .chain(come.map(|route| format!("+ route {route}")))
            .collect();
        self.lines.extend(lines);
        let stays_before = before.iter().filter(|route| after.contains(route));
        let stays_after = after.iter().filter(|route| before.contains(route));
        if !stays_before.eq(stays_after) {
            self.lines.push("~ routes are in a different order: the first match is used".into());
        }
    }

    fn pools<C: PartialEq>(
        &mut self,
        old: &[(PoolSettings, C)],
        new: &[(PoolSettings, C)],
        in_flight: InFlight<'_>,
    ) {
        for (pool, _) in old.iter().filter(|(pool, _)| find(new, &pool.name).is_none()) {
            let requests = pool.backends.iter().map(|backend| in_flight(&pool.name, &backend.address)).sum();
            self.lines.push(format!("- pool {}{}", pool.name, to_finish(requests)));
        }
        for (pool, check) in new {
            match find(old, &pool.name) {
                None => {
                    self.lines.push(format!("+ pool {} with {}", pool.name, backends(pool.backends.len())));
                }
                Some((before, checked_before)) => {
                    self.pool(before, pool, check != checked_before, in_flight);
                }
            }
        }
    }

    fn pool(&mut self, old: &PoolSettings, new: &PoolSettings, check: bool, in_flight: InFlight<'_>) {
        let name = &new.name;
        let keys = changed_keys(old, new, check);
        if !keys.is_empty() {
            self.lines.push(format!("~ pool {name}: {} changed", keys.join(", ")));
        }
        for gone in old.backends.iter().filter(|gone| backend(new, &gone.address).is_none()) {
            let finish = to_finish(in_flight(name, &gone.address));
            self.lines.push(format!("- pool {name}: backend {}{finish}", gone.address));
        }
        for now in &new.backends {
            match backend(old, &now.address) {
                None => self.lines.push(format!("+ pool {name}: backend {}{}", now.address, traits(now))),
                Some(before) => self.lines.extend(
                    changed_traits(before, now)
                        .map(|what| format!("~ pool {name}: backend {}: {what}", now.address)),
                ),
            }
        }
    }
}

fn find<'a, C>(pools: &'a [(PoolSettings, C)], name: &str) -> Option<&'a (PoolSettings, C)> {
    pools.iter().find(|(pool, _)| *pool.name == *name)
}

fn backend<'a>(pool: &'a PoolSettings, address: &UpstreamAddress) -> Option<&'a BackendSettings> {
    pool.backends.iter().find(|backend| backend.address == *address)
}

fn backends(count: usize) -> String {
    count_of(count, "backend")
}

fn to_finish(requests: u64) -> String {
    match requests {
        0 => String::new(),
        1 => "; its request in flight will complete".into(),
        more => format!("; its {more} requests in flight will complete"),
    }
}

fn on(listener: &Listener) -> String {
    let (name, address) = (&listener.name, listener.address.to_string());
    if **name == *address { address } else { format!("{name} on {address}") }
}

fn changed_keys(old: &PoolSettings, new: &PoolSettings, check: bool) -> Vec<&'static str> {
    let PoolSettings {
        name: _,
        policy,
        hash_on,
        bounded_load,
        sticky,
        backends: _,
        tls,
        host,
        upgrades,
        timeouts,
        outlier_detection,
        panic_threshold,
        slow_start,
        retries,
        queue,
    } = old;
    let changes = [
        ("policy", *policy != new.policy),
        ("hash_on", *hash_on != new.hash_on),
        ("bounded_load", *bounded_load != new.bounded_load),
        ("sticky", unkeyed(sticky.as_ref()) != unkeyed(new.sticky.as_ref())),
        ("session keys", keys(sticky.as_ref()) != keys(new.sticky.as_ref())),
        ("tls", *tls != new.tls),
        ("host", *host != new.host),
        ("upgrades", *upgrades != new.upgrades),
        ("timeouts", *timeouts != new.timeouts),
        ("health_check", check),
        ("outlier_detection", *outlier_detection != new.outlier_detection),
        ("panic_threshold", *panic_threshold != new.panic_threshold),
        ("slow_start", *slow_start != new.slow_start),
        ("retries", *retries != new.retries),
        ("limits.queue", *queue != new.queue),
    ];
    changes.into_iter().filter_map(|(key, changed)| changed.then_some(key)).collect()
}

/// Returns the settings of the cookie without its keys.
fn unkeyed(sticky: Option<&StickySettings>) -> Option<(&str, Option<Duration>)> {
    let StickySettings { cookie, ttl, keys: _ } = sticky?;
    Some((cookie, *ttl))
}

fn keys(sticky: Option<&StickySettings>) -> Option<&SessionKeys> {
    sticky?.keys.as_ref()
}

/// Returns the settings of a backend that differ from the defaults, as text.
fn traits(backend: &BackendSettings) -> String {
    let BackendSettings { address: _, weight, backup, max_requests, admin } = backend;
    let mut words = Vec::new();
    words.extend((weight.get() != 1).then(|| format!("weight {}", weight.get())));
    words.extend(backup.then(|| "backup".to_owned()));
    words.extend(max_requests.map(|max| format!("max_requests {max}")));
    words.extend((*admin != Admin::InService).then(|| state(*admin).to_owned()));
    if words.is_empty() { String::new() } else { format!(" ({})", words.join(", ")) }
}

fn changed_traits(old: &BackendSettings, new: &BackendSettings) -> impl Iterator<Item = String> {
    let BackendSettings { address: _, weight, backup, max_requests, admin } = old;
    let max = |max: Option<_>| max.map_or("none".into(), |max: std::num::NonZeroU32| max.to_string());
    let weight = (*weight != new.weight).then(|| format!("weight {} -> {}", weight.get(), new.weight.get()));
    let backup = (*backup != new.backup)
        .then(|| if new.backup { "now a backup".into() } else { "no longer a backup".into() });
    let limit = (*max_requests != new.max_requests)
        .then(|| format!("max_requests {} -> {}", max(*max_requests), max(new.max_requests)));
    let admin = (*admin != new.admin).then(|| format!("{} -> {}", state(*admin), state(new.admin)));
    [weight, backup, limit, admin].into_iter().flatten()
}

/// Returns the administrative state as text.
pub(crate) fn state(admin: Admin) -> &'static str {
    match admin {
        Admin::InService => "in service",
        Admin::Draining => "draining",
        Admin::Disabled => "disabled",
    }
}

/// Returns a route as one line: its conditions and its pool.
fn route(route: &Route, plan: &Plan) -> String {
    let Route { listener, host, path, methods, headers, pool } = route;
    let mut words = Vec::new();
    words.extend(listener.map(|ListenerId(index)| {
        let name = plan.listeners.iter().nth(index).map(|(_, listener)| listener.name.to_string());
        format!("listener {}", name.unwrap_or_default())
    }));
    words.extend(host.as_ref().map(|host| format!("host {host}")));
    words.extend(path_words(path));
    words.extend(methods.iter().map(|method| format!("method {method}")));
    words.extend(headers.iter().map(|(name, value)| format!("header {name}: {value:?}")));
    if words.is_empty() {
        words.push("for all requests".into());
    }
    let PoolId(index) = *pool;
    let pool = plan.pools.get(index).map(|(pool, _)| pool.name.to_string()).unwrap_or_default();
    format!("{} to pool {pool}", words.join(", "))
}

/// Returns the path condition as the configuration has it; `None` if every path matches.
fn path_words(paths: &AnyOf<PathPattern>) -> Option<String> {
    let key = match paths.as_slice().first() {
        None | Some(PathPattern::Any) => return None,
        Some(PathPattern::Exact(_)) => "path",
        Some(PathPattern::Prefix(_)) => "path_prefix",
    };
    let texts = paths.as_slice().iter().filter_map(PathPattern::text);
    Some(format!("{key} {}", AnyOf::new(texts)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::plan;

    const BASE: &str = "
listeners: [{address: '127.0.0.1:8080', name: web}]
pools:
  a: {backends: ['10.0.0.1:80', {address: '10.0.0.2:80', weight: 2}]}
  b: {backends: ['10.0.1.1:80']}
routes: [{match: {path_prefix: /b}, pool: b}, {pool: a}]
";

    fn diff(new: &str) -> Diff {
        Diff::between(&plan(BASE), &plan(new), &|_, address| {
            u64::from(address.to_string().ends_with(":80")) * 2
        })
    }

    #[track_caller]
    fn lines(new: &str, expected: &[&str]) {
        let found = diff(new);
        assert_eq!(found.lines, expected);
        assert_eq!(found.needs_process, [""; 0]);
    }

    #[test]
    fn equal_files_have_no_difference() {
        let found = diff(BASE);
        assert_eq!((found.lines.len(), found.needs_process.len()), (0, 0));
    }

    #[test]
    fn added_removed_and_changed_backends_are_reported() {
        lines(
            &BASE.replace("'10.0.0.1:80', {address: '10.0.0.2:80', weight: 2}", "{address: '10.0.0.2:80', weight: 3, max_requests: 9}, {address: '10.0.0.3:80', backup: true}"),
            &[
                "~ pool a: limits.queue changed",
                "- pool a: backend 10.0.0.1:80; its 2 requests in flight will complete",
                "~ pool a: backend 10.0.0.2:80: weight 2 -> 3",
                "~ pool a: backend 10.0.0.2:80: max_requests none -> 9",
                "+ pool a: backend 10.0.0.3:80 (backup)",
            ],
        );
    }

    #[test]
    fn a_new_order_of_routes_is_reported_together_with_other_changes() {
        let reordered = "~ routes are in a different order: the first match is used";
        let (b, get, c, rest) = (
            "{match: {path_prefix: /b}, pool: b}, ",
            "{match: {method: GET}, pool: a}, ",
            "{match: {path: /c}, pool: a}, ",
            "{pool: a}",
        );
        let with = |routes: &[&str]| {
            BASE.replace(
                "[{match: {path_prefix: /b}, pool: b}, {pool: a}]",
                &format!("[{}]", routes.concat()),
            )
        };
        let changes =
            |new: &[&str]| Diff::between(&plan(&with(&[b, get, rest])), &plan(&with(new)), &|_, _| 0).lines;
        assert_eq!(changes(&[get, b, rest]), [reordered]);
        assert_eq!(changes(&[get, c, b, rest]), ["+ route path /c to pool a", reordered]);
        assert_eq!(changes(&[b, c, get, rest]), ["+ route path /c to pool a"]);
    }

    #[test]
    fn added_and_removed_pools_and_routes_are_reported() {
        let new = "
listeners: [{address: '127.0.0.1:8080', name: web}]
pools:
  a: {backends: ['10.0.0.1:80', {address: '10.0.0.2:80', weight: 2}], policy: maglev, health_check: {interval: 9s}}
  c: {backends: ['10.0.1.1:80', '10.0.1.2:80']}
routes: [{match: {host: 'c.example.com', path: [/x, /y], method: GET, header: {X-C: '1'}, listener: web}, pool: c}, {pool: a}]
";
        lines(
            new,
            &[
                "- pool b; its 2 requests in flight will complete",
                "~ pool a: policy, health_check changed",
                "+ pool c with 2 backends",
                "- route path_prefix /b to pool b",
                "+ route listener web, host c.example.com, path [/x, /y], method GET, header x-c: \"1\" to pool c",
            ],
        );
    }

    #[test]
    fn a_new_position_of_a_pool_does_not_change_routes() {
        lines(
            &BASE
                .replace("  b:", "  aa: {backends: ['10.0.2.1:80']}\n  b:")
                .replace("routes: [", "routes: [{match: {path: /aa}, pool: aa}, "),
            &["+ pool aa with 1 backend", "+ route path /aa to pool aa"],
        );
        let other = BASE.replace(
            "routes: [{match: {path_prefix: /b}, pool: b}, {pool: a}]",
            "routes: [{match: {path: /x}, pool: a}, {match: {path_prefix: /b}, pool: b}, {pool: a}]",
        );
        lines(&other, &["+ route path /x to pool a"]);
    }

    #[test]
    fn opened_closed_and_renamed_listeners_are_reported() {
        let renamed = diff(&BASE.replace("name: web", "name: www"));
        assert_eq!(renamed.lines, ["~ listener web is renamed to www"]);
        assert_eq!((renamed.opened.len(), renamed.closed.len()), (1, 1));
        lines(
            &BASE.replace("{address: '127.0.0.1:8080', name: web}", "{address: '127.0.0.1:8081'}"),
            &[
                "- listener web on 127.0.0.1:8080: accepts no more connections; open ones close after their next response",
                "+ listener 127.0.0.1:8081",
            ],
        );
    }

    #[test]
    fn changes_of_the_whole_daemon_are_reported() {
        let more = "shutdown: {drain: 9s}\nreload: {watch: true, rollback: {error_rate: 5, window: 1s}}\n\
                    trusted_proxies: [10.0.0.0/8]\naccess_log: {format: json}\nreadiness: {pools: all}\n";
        lines(
            &format!("{BASE}{more}"),
            &[
                "access_log changed",
                "trusted_proxies changed",
                "readiness.pools any -> all",
                "shutdown.drain 25s -> 9s",
                "reload.watch false -> true",
                "reload.rollback changed",
            ],
        );
    }

    #[test]
    fn keys_that_need_a_new_process_are_listed_separately() {
        let more = "threads: 7\nmetrics: {address: '127.0.0.1:7'}\ncontrol: {socket: /tmp/c.sock}\n\
                    upgrade_sock: /tmp/u.sock\nlistener_tasks_per_fd: 2\nupstream_keepalive_pool_size: 5\n";
        let found = diff(&format!("{BASE}{more}"));
        assert!(found.lines.is_empty());
        let keys = [
            "threads",
            "upgrade_sock",
            "listener_tasks_per_fd",
            "upstream_keepalive_pool_size",
            "metrics.address",
            "control.socket",
        ];
        assert!(keys.iter().all(|key| found.needs_process.contains(key)), "{:?}", found.needs_process);
    }
}
