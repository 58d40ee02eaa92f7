//! Rules that span several keys. There is one function per rule, which reports all of its findings.
//!
//! The configuration is decoded, but wrong values might have been removed from it. A rule about something that is
//! *missing* must therefore call [`Node::is_damaged`] first.

mod authorities;
mod balancing;
mod client_certificates;
mod loops;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use health_service::{CheckType, HealthCheckConfig};
use lb_service::config::{
    BackendConfig, FormatConfig, ListenerConfig, MatchConfig, PoolConfig, PoolFiles, RouteConfig, TlsConfig,
};
use lb_service::listener::ListenAddress;
use lb_service::pool::UpstreamAddress;
use lb_service::route::shadowed_by;
use nix::unistd::Uid;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use values::{AbsolutePath, SocketPath, Text, did_you_mean};

pub(crate) use balancing::MAX_RING_WEIGHT;
pub(crate) use loops::own_address;

use super::context::{Account, Context, Denied, FileAccess};
use super::document::{Node, Step, Value};
use super::plan;
use super::problem::{Id, Problem, Span};
use super::secrets::{SecretError, session_keys};
use super::sections::Config;
use super::words::for_nothing;
use crate::process::files::reason;
use crate::process::privileges::user_name;
use crate::words::listed;

/// The maximum number of routes that a hint shows for pools, apart from the last route.
const MAX_EXAMPLES: usize = 5;

/// The keys of a health check that apply to HTTP only.
const HTTP_KEYS: [&str; 4] = ["path", "method", "expect_status", "expect_body"];

/// The result of the checks.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) problems: Vec<Problem>,
    /// The files that were read for each pool, by its name.
    pub(crate) files: BTreeMap<String, PoolFiles>,
}

/// Checks a complete configuration.
pub(crate) fn check(config: &Config, root: &Node, context: &Context<'_>) -> Findings {
    let mut checker = Checker { config, root, context, findings: Findings::default() };
    checker.check_ca_file();
    checker.check_ca_file_used();
    checker.check_system_authorities();
    checker.check_sources_used();
    checker.check_working_directory();
    checker.check_accounts();
    checker.check_access();
    checker.check_listeners_given();
    checker.check_listener_names();
    checker.check_addresses();
    checker.check_modes();
    checker.check_head_limits();
    checker.check_pools_given();
    for (name, pool) in &config.pools {
        checker.check_pool(name.written(), pool);
    }
    checker.check_routes_given();
    checker.check_route_targets();
    checker.check_route_paths();
    checker.check_route_asterisks();
    checker.check_route_order();
    checker.check_unused_pools();
    checker.check_access_log();
    checker.check_files();
    checker.findings
}

struct Checker<'a> {
    config: &'a Config,
    root: &'a Node,
    context: &'a Context<'a>,
    findings: Findings,
}

/// A path from the root, written as its keys and indexes.
macro_rules! path {
    ($($step:expr),* $(,)?) => { [$(Step::from($step)),*] };
}

// === the process ===

impl Checker<'_> {
    fn report(&mut self, path: &[Step], problem: Problem) {
        self.findings.problems.push(problem.at(self.root.place(path)));
    }

    fn report_key(&mut self, path: &[Step], problem: Problem) {
        self.findings.problems.push(problem.at(self.root.key_place(path)));
    }

    fn is_written(&self, path: &[Step]) -> bool {
        self.root.get(path).is_some()
    }

    /// Returns whether the list at this path has exactly one item.
    fn is_written_alone(&self, path: &[Step]) -> bool {
        matches!(self.root.get(path).map(|node| &node.value), Some(Value::List(list)) if list.items.len() == 1)
    }

    fn check_ca_file(&mut self) {
        let Some(path) = &self.config.ca_file else { return };
        if let Some(certificates) = self.read_certificates(&path!["ca_file"], &path.get().0) {
            self.trust_in_pools(&certificates);
            self.check_nothing_else(&path!["ca_file"], &path.get().0);
        }
    }

    /// Makes the pools without a `ca` of their own trust these certificates.
    fn trust_in_pools(&mut self, certificates: &[Vec<u8>]) {
        let pools = self.config.pools.iter();
        let pools = pools.filter(|(_, pool)| pool.tls.as_ref().is_some_and(|tls| tls.ca.is_none()));
        for (name, _) in pools {
            self.findings.files.entry(name.to_string()).or_default().ca = certificates.to_vec();
        }
    }

    fn check_ca_file_used(&mut self) {
        let path = path!["ca_file"];
        if !self.is_written(&path) || self.root.is_damaged(&path!["pools"]) {
            return;
        }
        let mut with_tls = self.config.pools.values().filter_map(|pool| pool.tls.as_ref()).peekable();
        let (why, hint) = match with_tls.peek() {
            None => (
                "no pool has `tls`",
                "add `tls: {}` to the pools whose backends speak TLS, or remove the key",
            ),
            Some(_) => ("every pool with `tls` has its own `ca` or `verify: false`", "remove the key"),
        };
        if !with_tls.any(|tls| tls.verify && tls.ca.is_none()) {
            let message = format!("`ca_file` has no effect: {why}");
            self.report_key(&path, Problem::new(Id::NothingToActOn, message).hint(hint));
        }
    }

    /// Checks that there are backends in the address family of each local address.
    fn check_sources_used(&mut self) {
        let families = [("client_bind_to_ipv4", "IPv4", false), ("client_bind_to_ipv6", "IPv6", true)];
        let none_given = self.config.pools.values().all(|pool| pool.backends.is_empty());
        if none_given || self.root.is_damaged(&path!["pools"]) {
            return;
        }
        for (key, family, is_ipv6) in families {
            let backends = self.config.pools.values().flat_map(|pool| &pool.backends);
            let mut addresses = backends.filter_map(|backend| self.address_of(backend).tcp());
            if self.is_written(&path![key]) && !addresses.any(|address| address.is_ipv6() == is_ipv6) {
                let message = format!("`{key}` has no effect: no backend has an {family} address");
                let problem = Problem::new(Id::NothingToActOn, message);
                self.report_key(
                    &path![key],
                    problem.hint("remove the key, or keep it for backends that you add later"),
                );
            }
        }
    }

    /// Checks that the file contains nothing but certificates. A private key does not belong into a file that others
    /// read, and another kind of certificate would not be trusted.
    fn check_nothing_else(&mut self, at: &[Step], file: &Path) {
        let text = self.context.files.read(file).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut others = text.lines().filter_map(|line| line.trim().strip_prefix("-----BEGIN "));
        if let Some(other) = others.find(|label| *label != "CERTIFICATE-----") {
            let other = other.trim_end_matches('-');
            let message = format!("{} contains something other than certificates: {other}", file.display());
            let problem = Problem::new(Id::Certificates, message);
            self.report(
                at,
                problem.hint("keep only the certificates in it, and move the rest to another file"),
            );
        }
    }

    fn check_working_directory(&mut self) {
        let Some(directory) = &self.config.working_directory else { return };
        if !self.context.files.is_directory(&directory.get().0) {
            let problem = Problem::new(Id::Directory, format!("the directory {directory} does not exist"));
            self.report(&path!["working_directory"], problem.hint("create it, or name another directory"));
        } else {
            self.check_allowed(&path!["working_directory"], FileAccess::Enter(&directory.get().0));
        }
    }

    fn check_accounts(&mut self) {
        let (user, group) = (self.config.user.as_deref(), self.config.group.as_deref());
        for (key, user, group) in [("user", user, None), ("group", None, group)] {
            if let Some(reason) = self.context.files.account_error(user, group) {
                let problem = Problem::new(Id::Account, reason);
                let written = user.or(group).map(|name| Value::Text { text: name.to_owned(), plain: true });
                let absent = written.and_then(|written| for_nothing(&path![key], &written));
                let hint =
                    absent.unwrap_or_else(|| "create it, or use the name or ID of another one".to_owned());
                self.report(&path![key], problem.hint(hint));
            }
        }
    }

    /// Checks that the user that the daemon runs as can read the configuration. At the start, root reads it; a reload
    /// and an upgrade run as this user.
    fn check_access(&mut self) {
        if let Some(file) = self.context.runtime.configuration() {
            let key = if self.config.user.is_some() { "user" } else { "group" };
            self.check_allowed(&path![key], FileAccess::Read(file));
        }
    }

    fn account(&self) -> Account<'_> {
        Account { user: self.config.user.as_deref(), group: self.config.group.as_deref() }
    }

    fn check_allowed(&mut self, at: &[Step], access: FileAccess<'_>) {
        if let Some(denied) = self.context.files.denied(self.account(), access) {
            self.report(at, not_allowed(access, &denied));
        }
    }

    fn read_certificates(&mut self, at: &[Step], file: &Path) -> Option<Vec<Vec<u8>>> {
        let read = self.context.files.read(file);
        match read.map_err(|error| reason(&error)).and_then(|pem| certificates(&pem)) {
            Ok(certificates) => {
                self.check_allowed(at, FileAccess::Read(file));
                Some(certificates)
            }
            Err(reason) => {
                let message = format!("cannot read certificates from {}: {reason}", file.display());
                let problem = Problem::new(Id::Certificates, message);
                self.report(
                    at,
                    problem.hint("name a PEM file that contains at least one `BEGIN CERTIFICATE`"),
                );
                None
            }
        }
    }
}

fn not_allowed(access: FileAccess<'_>, denied: &Denied) -> Problem {
    let Denied { user, group, reason } = denied;
    let (path, what, remedy) = match access {
        FileAccess::Read(path) => (path, "read", "g+r"),
        FileAccess::Enter(path) => (path, "enter", "g+rx"),
        FileAccess::CreateIn(path) => (path, "create files in", "g+rwx"),
    };
    let path = path.display();
    let message = format!("the user `{user}`, which the daemon runs as, cannot {what} {path}: {reason}");
    let hint = format!(
        "run `chgrp {group} {path} && chmod {remedy} {path}`, or name another path; otherwise each reload fails"
    );
    Problem::new(Id::NotAllowed, message).hint(hint)
}

fn certificates(pem: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = parsed.map_err(|error| format!("it is not PEM: {error}"))?;
    if certificates.is_empty() {
        return Err("it contains none".to_owned());
    }
    let mut store = RootCertStore::empty();
    for certificate in &certificates {
        store.add(certificate.clone()).map_err(|error| format!("a certificate is invalid: {error}"))?;
    }
    Ok(certificates.iter().map(|certificate| certificate.to_vec()).collect())
}

// === listeners ===

impl Checker<'_> {
    fn check_listeners_given(&mut self) {
        let is_empty = self.config.listeners.as_ref().is_some_and(Vec::is_empty);
        if is_empty && !self.root.is_damaged(&path!["listeners"]) {
            let problem = Problem::new(Id::NoListeners, "the list of listeners is empty");
            self.report_key(
                &path!["listeners"],
                problem.hint("add `- address: 0.0.0.0:6188`, or remove the key"),
            );
        }
    }

    fn check_listener_names(&mut self) {
        let names: Vec<String> = self.config.listeners.iter().flatten().map(ListenerConfig::name).collect();
        for (index, name) in names.iter().enumerate() {
            let Some(first) = names[..index].iter().position(|earlier| earlier == name) else { continue };
            let is_name = |at: usize| self.is_written(&path!["listeners", at, "name"]);
            if !is_name(index) || !is_name(first) {
                // Two listeners with one address are reported by another rule.
                continue;
            }
            let first = self.root.place(&path!["listeners", first, "name"]);
            let problem =
                Problem::new(Id::DuplicateListener, format!("two listeners have the name `{name}`"));
            self.report(
                &path!["listeners", index, "name"],
                problem.related(first, "the first one").hint("give each listener its own name"),
            );
        }
    }

    fn check_modes(&mut self) {
        for (index, listener) in self.config.listeners.iter().flatten().enumerate() {
            let (path, address) = (path!["listeners", index, "mode"], &listener.address);
            if matches!(address.get(), ListenAddress::Tcp(_)) && self.is_written(&path) {
                let message = format!("`mode` has no effect: {address} is a TCP port, which has no file");
                let problem = Problem::new(Id::WithoutEffect, message);
                self.report_key(&path, problem.hint("remove the key, or listen on `unix:/path`"));
            }
        }
    }

    fn check_head_limits(&mut self) {
        let limits = self.config.listeners.iter().flatten().map(|listener| listener.limits.clone());
        for (index, limits) in limits.collect::<Vec<_>>().into_iter().enumerate() {
            let at = path!["listeners", index, "limits", "target"];
            if self.is_written(&at) && limits.target.get().get() > limits.head.get().get() {
                let message = format!(
                    "`target` ({}) has no effect: `head` ({}), which includes the target, is smaller",
                    limits.target, limits.head
                );
                let hint = format!("write `target: {}`, or a larger `head`", limits.head);
                self.report(&at, Problem::new(Id::WithoutEffect, message).hint(hint));
            }
        }
    }

    fn check_addresses(&mut self) {
        let used = self.addresses();
        for (index, (path, address, what)) in used.iter().enumerate() {
            let conflict = used[..index].iter().find(|(_, earlier, _)| in_conflict(earlier, address));
            let Some((earlier_path, earlier, earlier_what)) = conflict else { continue };
            let message = match earlier == address {
                true => {
                    format!("{what} cannot listen on {address}: {earlier_what} already uses this address")
                }
                false => {
                    format!(
                        "{what} cannot listen on {address}: {earlier_what} already uses this port on {earlier}"
                    )
                }
            };
            let other = if matches!(address, ListenAddress::Unix(_)) { "path" } else { "port" };
            let hint = format!("give one of them another {other}");
            let mut problem = Problem::new(Id::AddressTaken, message).hint(hint);
            if self.is_written(earlier_path) {
                problem = problem.related(self.root.place(earlier_path), "used here");
            }
            self.report(path, problem);
        }
    }

    /// Returns the path of the address of a listener, in its long or its short form.
    fn listener_path(&self, index: usize) -> Vec<Step> {
        let long = path!["listeners", index, "address"];
        let path = if self.is_written(&long) { &long[..] } else { &long[..2] };
        path.to_vec()
    }

    /// Returns all listening addresses, with their paths in the file and the names of their owners.
    fn addresses(&self) -> Vec<(Vec<Step>, ListenAddress, &'static str)> {
        let listeners = self.config.listeners.iter().flatten().enumerate().map(|(index, listener)| {
            (self.listener_path(index), listener.address.get().clone(), "a listener")
        });
        let metrics = ListenAddress::Tcp(self.config.metrics.address());
        let metrics = (path!["metrics", "address"].to_vec(), metrics, "the metrics server");
        // The problem is reported at the second address, so a default address, which has no place in the file, comes
        // first.
        let (first, last) = match self.is_written(&metrics.0) {
            true => (None, Some(metrics)),
            false => (Some(metrics), None),
        };
        first.into_iter().chain(listeners).chain(last).collect()
    }
}

fn in_conflict(one: &ListenAddress, other: &ListenAddress) -> bool {
    match (one, other) {
        (ListenAddress::Unix(one), ListenAddress::Unix(other)) => one == other,
        (ListenAddress::Tcp(one), ListenAddress::Tcp(other)) => {
            one.port() == other.port() && (one == other || covers(one, other) || covers(other, one))
        }
        _ => false,
    }
}

/// Returns whether a socket bound to all addresses also covers the other address. `[::]` covers IPv4 as well.
fn covers(all: &SocketAddr, other: &SocketAddr) -> bool {
    all.ip().is_unspecified() && (all.is_ipv6() || other.is_ipv4())
        || (all.ip().is_unspecified() && other.ip().is_unspecified())
}

// === pools ===

type Pool = PoolConfig<HealthCheckConfig>;

impl Checker<'_> {
    fn check_pools_given(&mut self) {
        if self.config.pools.is_empty() && !self.root.is_damaged(&path!["pools"]) {
            let problem =
                Problem::new(Id::NoPools, "there are no pools, so the daemon could not serve any request");
            let hint =
                "start with the smallest configuration:\n\npools:\n  web:\n    backends: [10.0.0.1:8080]";
            self.report_key(&path!["pools"], problem.hint(hint));
        }
    }

    fn check_pool(&mut self, name: &str, pool: &Pool) {
        self.check_backends_given(name, pool);
        self.check_backend_addresses(name, pool);
        self.check_own_addresses(name, pool);
        self.check_balancing(name, pool);
        if let Some(tls) = &pool.tls {
            self.check_tls_name(name, pool, tls);
            self.check_tls_name_of_sockets(name, pool, tls);
            self.check_tls_authorities(name, tls);
            self.check_client_certificate(name, tls);
        }
        self.check_session_keys(name, pool);
        self.check_check_times(name, &pool.health_check);
        self.check_check_keys(name, &pool.health_check);
        self.check_check_port(name, pool);
    }

    fn check_backends_given(&mut self, name: &str, pool: &Pool) {
        let path = path!["pools", name, "backends"];
        if pool.backends.is_empty() && !self.root.is_damaged(&path) {
            let problem = Problem::new(Id::NoBackends, format!("the pool `{name}` has no backends"));
            self.report_key(&path, problem.hint("add one, such as `backends: [10.0.0.1:8080]`"));
        }
    }

    fn check_backend_addresses(&mut self, name: &str, pool: &Pool) {
        let mut seen: BTreeMap<UpstreamAddress, usize> = BTreeMap::new();
        for (index, backend) in pool.backends.iter().enumerate() {
            let address = self.address_of(backend);
            let Some(first) = seen.get(&address) else {
                seen.insert(address, index);
                continue;
            };
            let first = self.backend_place(name, *first);
            let message = format!("the pool `{name}` lists the backend {address} twice");
            let problem = Problem::new(Id::DuplicateBackend, message).at(self.backend_place(name, index));
            let hint = format!("to give it a larger share, write {{address: {address}, weight: 2}}");
            self.findings.problems.push(problem.related(first, "first listed here").hint(hint));
        }
    }

    fn address_of(&self, backend: &BackendConfig) -> UpstreamAddress {
        UpstreamAddress::resolve(backend.address.get(), self.context.loopback)
    }

    fn backend_place(&self, pool: &str, index: usize) -> Span {
        let long = path!["pools", pool, "backends", index, "address"];
        self.root.place(if self.is_written(&long) { &long } else { &long[..4] })
    }

    /// Warns about a missing `sni`, without which certificates must be issued for IP addresses. A pool that has a
    /// `host`, or the backend `localhost`, most likely needs it.
    fn check_tls_name(&mut self, name: &str, pool: &Pool, tls: &TlsConfig) {
        let path = path!["pools", name, "tls"];
        let has_socket = pool.backends.iter().any(|backend| self.address_of(backend).tcp().is_none());
        if !tls.verify || tls.sni.is_some() || has_socket || self.root.is_damaged(&path) {
            return;
        }
        if let Some((host, place)) = self.name_of_backends(name, pool) {
            let message =
                "`tls` has no `sni`, so the certificates must be issued for the IP addresses of the backends";
            let problem = Problem::new(Id::MissingName, message).related(place, "the name is given here");
            self.report_key(
                &path,
                problem.hint(format!("if they are issued for a host name, add `sni: {host}`")),
            );
        }
    }

    /// Checks that `sni` names what the certificate of a backend on a Unix socket must be issued for.
    fn check_tls_name_of_sockets(&mut self, name: &str, pool: &Pool, tls: &TlsConfig) {
        let path = path!["pools", name, "tls"];
        let socket = pool.backends.iter().position(|backend| self.address_of(backend).tcp().is_none());
        let Some(socket) = socket.filter(|_| tls.verify && tls.sni.is_none()) else { return };
        if self.root.is_damaged(&path) {
            return;
        }
        let message = format!(
            "`tls` has no `sni`, and the backend {} has no IP address that its certificate could be issued for",
            pool.backends[socket].address
        );
        let problem =
            Problem::new(Id::SocketName, message).related(self.backend_place(name, socket), "this backend");
        self.report_key(&path, problem.hint("add `sni: NAME`, such as `sni: localhost`, or `verify: false`"));
    }

    /// Returns the host name that the backends most likely have in their certificates, and its place.
    fn name_of_backends(&self, name: &str, pool: &Pool) -> Option<(String, Span)> {
        let host_of = |address: &str| address.split(':').next().unwrap_or_default().to_owned();
        let is_name = |host: &String| host.contains(|c: char| c.is_ascii_alphabetic());
        let host = pool.host.as_ref().map(|host| host_of(host.written())).filter(is_name);
        if let Some(host) = host {
            return Some((host, self.root.place(&path!["pools", name, "host"])));
        }
        let is_local = |host: &String| host.eq_ignore_ascii_case("localhost");
        let hosts = pool.backends.iter().map(|backend| host_of(backend.address.written()));
        let (index, host) = hosts.enumerate().find(|(_, host)| is_local(host))?;
        Some((host, self.backend_place(name, index)))
    }

    fn check_tls_authorities(&mut self, name: &str, tls: &TlsConfig) {
        let path = path!["pools", name, "tls", "ca"];
        let Some(ca) = &tls.ca else { return };
        if !tls.verify {
            let problem = Problem::new(
                Id::WithoutEffect,
                "`ca` has no effect: `verify: false` accepts any certificate",
            );
            self.report_key(
                &path,
                problem.hint("remove `verify: false` to verify certificates, or remove `ca`"),
            );
        }
        if let Some(certificates) = self.read_certificates(&path, &ca.get().0) {
            self.findings.files.entry(name.to_owned()).or_default().ca = certificates;
        }
    }

    fn check_session_keys(&mut self, name: &str, pool: &Pool) {
        let Some(file) = pool.sticky.as_ref().and_then(|sticky| sticky.key_file.as_ref()) else { return };
        let (path, file) = (path!["pools", name, "sticky", "key_file"], &file.get().0);
        let uid = self.context.files.uid_of(self.account());
        match session_keys(file, self.context.files, uid) {
            Ok(keys) => {
                self.check_allowed(&path, FileAccess::Read(file));
                self.findings.files.entry(name.to_owned()).or_default().session_keys = Some(keys);
            }
            Err(SecretError { why, remedy }) => {
                let message = format!("cannot use the session keys of {}: {why}", file.display());
                self.report(&path, Problem::new(Id::SessionKeys, message).hint(remedy));
            }
        }
    }

    fn check_check_times(&mut self, name: &str, check: &HealthCheckConfig) {
        if check.r#type == CheckType::None {
            return;
        }
        for (key, duration) in [("timeout", &check.timeout), ("fast_interval", &check.fast_interval)] {
            if duration.duration() > check.interval.duration() {
                let message = format!("`{key}` ({duration}) is longer than `interval` ({})", check.interval);
                let problem = Problem::new(Id::CheckTiming, message);
                let hint = format!("make `{key}` at most {}", check.interval);
                self.report(&path!["pools", name, "health_check", key], problem.hint(hint));
            }
        }
    }

    fn check_check_keys(&mut self, name: &str, check: &HealthCheckConfig) {
        let section = path!["pools", name, "health_check"];
        let Some(Value::Map(map)) = self.root.get(&section).map(|node| &node.value) else { return };
        if check.r#type == CheckType::None {
            let others = map.entries.iter().filter(|entry| entry.key != "type");
            let paths = others.map(|entry| [&section[..], &path![entry.key.as_str()]].concat());
            let paths: Vec<_> = paths.collect();
            let hint = "to turn health checks on, write `type: tcp`";
            self.useless(Id::SwitchedOff, &paths, "`type: none` turns health checks off", |problem| {
                problem.hint(hint)
            });
            return;
        }
        for entry in &map.entries {
            let key = entry.key.as_str();
            let Some(hint) = without_effect(key, check.r#type) else { continue };
            let message = format!("`{key}` has no effect on a health check of type {}", check.r#type);
            let problem = Problem::new(Id::WithoutEffect, message).at(entry.key_span).hint(hint);
            self.findings.problems.push(problem);
        }
    }

    fn check_check_port(&mut self, name: &str, pool: &Pool) {
        let path = path!["pools", name, "health_check", "port"];
        let is_off = pool.health_check.r#type == CheckType::None || pool.backends.is_empty();
        let has_port = pool.backends.iter().any(|backend| self.address_of(backend).tcp().is_some());
        if self.is_written(&path) && !is_off && !has_port && !self.root.is_damaged(&path!["pools", name]) {
            let message = "`port` has no effect: every backend of the pool is a Unix socket";
            let problem = Problem::new(Id::NothingToActOn, message);
            self.report_key(
                &path,
                problem.hint("remove the key, or keep it for backends that you add later"),
            );
        }
    }

    /// Reports one problem for all of these keys that are in the file, at the first of them.
    fn useless(&mut self, id: Id, paths: &[Vec<Step>], why: &str, rest: impl FnOnce(Problem) -> Problem) {
        let mut written: Vec<_> = paths.iter().filter(|path| self.is_written(path)).collect();
        written.sort_by_key(|path| self.root.key_place(path));
        let Some(first) = written.first() else { return };
        let keys = written.iter().filter_map(|path| match path.last() {
            Some(Step::Key(key)) => Some(key.as_str()),
            _ => None,
        });
        let keys: Vec<_> = keys.collect();
        let has = if keys.len() == 1 { "has" } else { "have" };
        let message = format!("{} {has} no effect: {why}", listed(&keys));
        self.report_key(first, rest(Problem::new(id, message)));
    }
}

/// Returns the hint for a key that has no effect on a health check of this type. `None` means that it has one.
fn without_effect(key: &str, kind: CheckType) -> Option<&'static str> {
    let is_http = HTTP_KEYS.contains(&key);
    match kind {
        CheckType::Tcp if is_http || key == "host" => Some("add `type: http`, or remove the key"),
        CheckType::Tcp if key == "service" => Some("add `type: grpc`, or remove the key"),
        CheckType::Http if key == "service" => Some("remove the key, or use `type: grpc`"),
        CheckType::Grpc if is_http => Some("remove the key, or use `type: http`"),
        _ => None,
    }
}

// === routes ===

impl Checker<'_> {
    /// Returns the names of all pools in the file, including pools that are wrong.
    fn pool_names(&self) -> Vec<&str> {
        match self.root.get(&path!["pools"]).map(|node| &node.value) {
            Some(Value::Map(map)) => map.written_keys().collect(),
            _ => Vec::new(),
        }
    }

    fn check_routes_given(&mut self) {
        let is_empty = self.config.routes.as_ref().is_none_or(Vec::is_empty);
        let damaged = self.root.is_damaged(&path!["routes"]);
        if !is_empty || damaged || (self.pool_names().len() < 2 && self.config.routes.is_none()) {
            return;
        }
        let names = self.pool_names();
        let message = match names.len() {
            0 | 1 => "the list of routes is empty, so no request reaches a pool".to_owned(),
            count => format!("there are {count} pools, but no routes that assign requests to them"),
        };
        let written = self.is_written(&path!["routes"]);
        let (place, action) = if written { ("routes", "write") } else { ("pools", "add") };
        let hint = format!("{action} a route for each pool, such as\n\nroutes:{}", routes_to(&names));
        self.report_key(&path![place], Problem::new(Id::NoRoutes, message).hint(hint));
    }

    fn routes(&self) -> impl Iterator<Item = (usize, &'_ RouteConfig)> + use<'_> {
        let written = self.config.routes.iter().flatten().enumerate();
        written.filter(|_| self.is_written(&path!["routes"]))
    }

    fn check_route_targets(&mut self) {
        let mut problems = Vec::new();
        for (index, route) in self.routes() {
            problems.extend(self.unknown_pool(index, route));
            problems.extend(self.unknown_listener(index, route));
        }
        self.findings.problems.extend(problems);
    }

    fn unknown_pool(&self, index: usize, route: &RouteConfig) -> Option<Problem> {
        let names = self.pool_names();
        let unknown = !names.contains(&route.pool.as_str()) && self.is_written(&path!["pools"]);
        unknown.then(|| {
            let problem = Problem::new(Id::UnknownPool, format!("there is no pool `{}`", route.pool));
            one_of(problem, &route.pool, &names, "pools").at(self.root.place(&path!["routes", index, "pool"]))
        })
    }

    fn unknown_listener(&self, index: usize, route: &RouteConfig) -> Option<Problem> {
        let wanted = route.r#match.listener.as_ref()?;
        let names: Vec<String> = self.config.listeners.iter().flatten().map(ListenerConfig::name).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let known = self.config.listeners.iter().flatten().any(|listener| listener.is_called(wanted));
        let unknown = !known && !self.root.is_damaged(&path!["listeners"]);
        unknown.then(|| {
            let problem = Problem::new(Id::UnknownListener, format!("there is no listener `{wanted}`"));
            let place = self.root.place(&path!["routes", index, "match", "listener"]);
            one_of(problem, wanted, &names, "listeners").at(place)
        })
    }

    fn check_route_paths(&mut self) {
        let both = |rule: &MatchConfig| rule.path.is_some() && rule.path_prefix.is_some();
        let found: Vec<usize> =
            self.routes().filter(|(_, route)| both(&route.r#match)).map(|(index, _)| index).collect();
        for index in found {
            let path = path!["routes", index, "match", "path_prefix"];
            let problem = Problem::new(Id::WithoutEffect, "`path_prefix` has no effect together with `path`");
            let whole = self.root.place(&path!["routes", index, "match", "path"]);
            self.report_key(
                &path,
                problem.related(whole, "the full path is given here").hint("remove one of the two"),
            );
        }
    }

    /// Warns about asterisks in paths. Other products treat them as patterns, but here they are compared literally.
    fn check_route_asterisks(&mut self) {
        let mut problems = Vec::new();
        for (index, route) in self.routes() {
            let MatchConfig { path, path_prefix, .. } = &route.r#match;
            for (key, written) in [("path", path), ("path_prefix", path_prefix)] {
                for (nth, path) in written.iter().flat_map(|many| &many.0).enumerate() {
                    problems.extend(
                        self.literal_asterisk(&path!["routes", index, "match", key, nth], path.written()),
                    );
                }
            }
        }
        self.findings.problems.extend(problems);
    }

    /// Returns the warning for one path. `at` ends with the key and the index in its list, which does not exist for a
    /// single path.
    fn literal_asterisk(&self, at: &[Step], text: &str) -> Option<Problem> {
        let (before, _) = text.split_once('*')?;
        let alone = &at[..at.len() - 1];
        let Some(Step::Key(key)) = alone.last() else { return None };
        let message =
            format!("the asterisk in `{key}` matches only the character itself, not arbitrary text");
        let is_one_of_several = self.is_written(at) && !self.is_written_alone(alone);
        let how = if key == "path" && is_one_of_several { "give it its own route with" } else { "write" };
        let hint = format!("to match everything below, {how} `path_prefix: {}`", directory_of(before));
        let place = self.root.place(if self.is_written(at) { at } else { alone });
        Some(Problem::new(Id::LiteralAsterisk, message).at(place).hint(hint))
    }

    fn check_route_order(&mut self) {
        let planned = self.routes().filter_map(|(index, route)| self.without_target(index, route));
        let (indexes, routes): (Vec<usize>, Vec<_>) = planned.unzip();
        for (late, early) in shadowed_by(&routes) {
            let (late, early) = (indexes[late], indexes[early]);
            let catch_all =
                self.config.routes.iter().flatten().nth(early).is_some_and(|route| route.r#match.is_empty());
            let why = match catch_all {
                true => "this route matches every request",
                false => "this route already matches all of its requests",
            };
            let early = self.root.place(&path!["routes", early]);
            let problem =
                Problem::new(Id::UnreachableRoute, "this route can never match").related(early, why);
            self.report(
                &path!["routes", late],
                problem.hint("move the route up, or remove it: the first match wins"),
            );
        }
    }

    /// Returns the route for comparisons of its match only, even if its pool does not exist.
    fn without_target(&self, index: usize, route: &RouteConfig) -> Option<(usize, lb_service::route::Route)> {
        if self.root.is_damaged(&path!["routes", index]) {
            return None;
        }
        let some_pool = self.config.pools.keys().next()?.written().to_owned();
        let route = RouteConfig { pool: some_pool, ..route.clone() };
        plan::route(&route, self.config).map(|route| (index, route))
    }

    fn check_unused_pools(&mut self) {
        let given = self.config.routes.as_ref().is_some_and(|routes| !routes.is_empty());
        if !given || !self.is_written(&path!["routes"]) || self.root.is_damaged(&path!["routes"]) {
            return;
        }
        let known = self.pool_names();
        let is_meant = |route: &RouteConfig, name: &str| {
            // A misspelt pool is reported separately.
            !known.contains(&route.pool.as_str()) && did_you_mean(&route.pool, [name]).is_some()
        };
        let leads = |route: &RouteConfig, name: &str| route.pool == name || is_meant(route, name);
        let used = |name: &str| self.config.routes.iter().flatten().any(|route| leads(route, name));
        let unused = self.config.pools.keys().map(Text::written).filter(|name| !used(name));
        for name in unused.map(str::to_owned).collect::<Vec<_>>() {
            let problem = Problem::new(Id::UnusedPool, format!("no route leads to the pool `{name}`"));
            self.report_key(&path!["pools", name.as_str()], problem.hint("add a route, or remove the pool"));
        }
    }
}

/// Formats a route to each pool. The first pool gets the requests that match no other route, so its route is the last
/// one.
fn routes_to(pools: &[&str]) -> String {
    let (first, others) = pools.split_first().unwrap_or((&"web", &[]));
    let others = others.iter().take(MAX_EXAMPLES);
    let others = others.map(|pool| format!("\n  - {{match: {{path_prefix: /{pool}}}, pool: {pool}}}"));
    format!("{}\n  - pool: {first}", others.collect::<String>())
}

/// Returns a value for the key at `path`: a file in this directory under its usual name.
fn example_in(directory: &Path, path: &[Step]) -> String {
    let (prefix, name) = match path.last().and_then(Step::key) {
        Some("pid_file") => ("", "load_balancer.pid"),
        Some("error_log") => ("", "error.log"),
        Some("path") => ("", "access.log"),
        Some("upgrade_sock") => ("", "upgrade.sock"),
        Some("socket") => ("", "control.sock"),
        _ => ("unix:", "http.sock"),
    };
    format!("{prefix}{}", directory.join(name).display())
}

/// Returns the directory part of a path.
fn directory_of(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some((directory, _)) if !directory.is_empty() => directory,
        _ => "/",
    }
}

fn one_of(problem: Problem, found: &str, names: &[&str], what: &str) -> Problem {
    match did_you_mean(found, names.iter().copied()) {
        Some(meant) => problem.hint(format!("did you mean `{meant}`?")),
        None if names.is_empty() => problem,
        None => problem.hint(format!("use one of these {what}: {}", names.join(", "))),
    }
}

// === files ===

impl Checker<'_> {
    fn check_access_log(&mut self) {
        let Some(log) = &self.config.access_log else { return };
        let path = path!["access_log", "path"];
        if log.format == FormatConfig::None && log.path.is_some() {
            let problem = Problem::new(
                Id::SwitchedOff,
                "`path` has no effect: `format: none` turns the access log off",
            );
            self.report_key(&path, problem.hint("remove `path`, or choose `text` or `json`"));
        }
        let to_stdout =
            log.format != FormatConfig::None && log.path.is_none() && !self.root.is_damaged(&path);
        if self.config.daemon && to_stdout {
            let message =
                "the daemon runs in the background, so it has no standard output for the access log";
            let problem = Problem::new(Id::NoStandardOutput, message);
            self.report_key(
                &path!["access_log"],
                problem.hint("add `path: /var/log/load_balancer/access.log`"),
            );
        }
    }

    fn check_files(&mut self) {
        let files = self.files();
        let runtime = self.context.runtime.directory();
        for (index, (path, file)) in files.iter().enumerate() {
            if let Some((earlier, _)) = files[..index].iter().find(|(_, earlier)| earlier == file) {
                let message = format!("two keys name the same file {}", file.display());
                let problem = Problem::new(Id::PathTaken, message).hint("give each key its own file");
                self.report(path, problem.related(self.root.place(earlier), "first named here"));
            } else {
                self.check_not_read(path, file);
                self.check_directory(path, file, runtime);
            }
        }
    }

    /// Reports a file that would be written although another key reads it.
    fn check_not_read(&mut self, path: &[Step], file: &Path) {
        let key = self.files_read().into_iter().find_map(|(key, read)| (read == file).then_some(key));
        let is_configuration = self.context.runtime.configuration() == Some(file);
        let what = match &key {
            Some(_) => "is read for another key",
            None if is_configuration => "is the configuration file",
            None => return,
        };
        let message = format!("{} {what} and would be overwritten", file.display());
        let problem = Problem::new(Id::PathTaken, message).hint("name another file");
        let problem = match key {
            Some(key) => problem.related(self.root.place(&key), "named here"),
            None => problem,
        };
        self.report(path, problem);
    }

    /// Returns the files that are read, with the keys that name them.
    fn files_read(&self) -> Vec<(Vec<Step>, PathBuf)> {
        let pools = self.config.pools.iter().flat_map(|(name, pool)| {
            let name = name.written();
            let ca = pool.tls.as_ref().and_then(|tls| tls.ca.as_ref()).map(|ca| ca.get().0.clone());
            let keys = pool.sticky.as_ref().and_then(|sticky| sticky.key_file.as_ref());
            let keys = keys.map(|keys| keys.get().0.clone());
            [
                (path!["pools", name, "tls", "ca"].to_vec(), ca),
                (path!["pools", name, "sticky", "key_file"].to_vec(), keys),
            ]
        });
        let ca_file = self.config.ca_file.as_ref().map(|file| file.get().0.clone());
        let all = pools.chain([(path!["ca_file"].to_vec(), ca_file)]);
        all.filter_map(|(key, file)| Some((key, file?))).collect()
    }

    fn check_directory(&mut self, path: &[Step], file: &Path, runtime: &Path) {
        // The runtime directory is created at the start.
        let Some(directory) = file.parent().filter(|directory| *directory != runtime) else { return };
        let files = self.context.files;
        let is_log = path == path!["error_log"] || path == path!["access_log", "path"];
        if files.is_directory(file) {
            let message = format!("{} is a directory, expected a file", file.display());
            let hint = format!("write {}", example_in(file, path));
            self.report(path, Problem::new(Id::Directory, message).hint(hint));
        } else if is_log && let Some(is_regular) = files.is_regular_file(file) {
            self.check_existing_log(path, file);
            if is_regular {
                self.check_rotation(path, directory);
            }
        } else if let Some(why) = files.creation_error(directory) {
            let message = format!("cannot create a file in {}: {why}", directory.display());
            let hint = self.directory_hint(path, directory);
            self.report(path, Problem::new(Id::Directory, message).hint(hint));
        } else if is_log {
            self.check_rotation(path, directory);
        }
    }

    /// Checks an existing log. It needs write permission for the file only, not for its directory.
    fn check_existing_log(&mut self, path: &[Step], file: &Path) {
        if let Some(why) = self.context.files.write_error(file) {
            self.report(path, Problem::new(Id::Directory, format!("cannot write to {why}")));
        }
    }

    /// Warns if the user of the daemon cannot create files next to a log: on SIGUSR1 the daemon creates a log that was
    /// moved.
    fn check_rotation(&mut self, path: &[Step], directory: &Path) {
        if self.config.user.is_none() {
            return;
        }
        if let Some(denied) = self.context.files.denied(self.account(), FileAccess::CreateIn(directory)) {
            let Denied { user, reason, .. } = denied;
            let message = format!(
                "the user `{user}`, which the daemon runs as, cannot create files in {}: {reason}",
                directory.display()
            );
            let hint = format!(
                "{}; otherwise SIGUSR1 cannot reopen a moved log",
                self.directory_hint(path, directory)
            );
            self.report(path, Problem::new(Id::Rotation, message).hint(hint));
        }
    }

    /// Returns the hint that gives the user of the daemon a directory to write to. A directory near the root, such as
    /// `/var/log`, is shared with other programs and must keep its owner.
    fn directory_hint(&self, path: &[Step], directory: &Path) -> String {
        if self.context.files.is_regular_file(directory).is_some_and(|is_file| is_file) {
            return format!("write {}", example_in(directory.parent().unwrap_or(directory), path));
        }
        if !self.context.files.is_directory(directory) {
            return "create it for the user that the load balancer runs as, or name another directory"
                .to_owned();
        }
        let user = self.user();
        match directory.components().count() {
            ..=3 => format!(
                "run `install -d -o {user} {}` as root, and write {}",
                directory.join("load_balancer").display(),
                example_in(&directory.join("load_balancer"), path),
            ),
            _ => format!(
                "run `install -d -o {user} {}` as root, or name another directory",
                directory.display()
            ),
        }
    }

    fn user(&self) -> String {
        user_name(Uid::from_raw(self.context.files.uid_of(self.account())))
    }

    /// Returns the files that the daemon creates, with the keys that name them. Listeners with the same Unix socket
    /// count once, since they are reported as addresses.
    fn files(&self) -> Vec<(Vec<Step>, PathBuf)> {
        let config = self.config;
        let path = |written: &Option<Text<AbsolutePath>>| written.as_ref().map(|path| path.get().0.clone());
        let socket = |written: &Option<Text<SocketPath>>| written.as_ref().map(|path| path.get().0.clone());
        let keys = [
            (path!["pid_file"].to_vec(), path(&config.pid_file)),
            (path!["error_log"].to_vec(), path(&config.error_log)),
            (path!["upgrade_sock"].to_vec(), socket(&config.upgrade_sock)),
            (path!["control", "socket"].to_vec(), socket(&config.control.socket)),
            (
                path!["access_log", "path"].to_vec(),
                config.access_log.as_ref().and_then(|log| path(&log.path)),
            ),
        ];
        let mut seen = BTreeSet::new();
        let sockets = config.listeners.iter().flatten().enumerate().filter_map(|(index, listener)| {
            let ListenAddress::Unix(socket) = listener.address.get() else { return None };
            let key = self.listener_path(index);
            seen.insert(socket).then(|| (key, socket.clone()))
        });
        let named = keys.into_iter().filter_map(|(key, file)| Some((key, file?)));
        named.chain(sockets).filter(|(key, _)| self.is_written(key)).collect()
    }
}
