//! Hints for keys and values in the words of other products.
//!
//! An unknown key is looked up in the table of its mapping. Each hint says what to write instead. If a section has one
//! value instead of a mapping, the hint shows a mapping that has this value in the most likely key.

use std::net::{Ipv6Addr, SocketAddr};

use super::document::{Entry, List, Map, Node, Step, Value};
use super::{ports, syntax};

/// The words for one mapping: lists of words, each with one hint.
type Words = &'static [(&'static [&'static str], &'static str)];

const SMALLEST: &str = "put the backends into a pool:\n\npools:\n  web:\n    backends: [10.0.0.1:8080]";
const NO_TLS: &str = "terminate TLS in front of the load balancer: listeners do not support it yet; the `tls` of a pool is for its backends";
const LEAVE_OUT: &str = "remove the key";
const NO_FEATURE: &str = "remove the key: the load balancer does not have this feature";
/// The features of other products that do not exist here.
const FEATURES: &[&str] = &[
    "headers",
    "add_headers",
    "request_headers",
    "response_headers",
    "rewrite",
    "strip_prefix",
    "compression",
    "compress",
    "gzip",
    "cache",
    "caching",
    "rate_limit",
    "rate_limits",
    "cors",
    "auth",
    "basic_auth",
    "middlewares",
    "plugins",
];
const A_ROUTE: &str = "write `routes: [{match: {path_prefix: /}, pool: web}]`";
const NO_REGEX: &str = "regular expressions are not supported: write `path_prefix: /v1`";

/// The words by the path of the mapping, in which `*` stands for any name or item.
const WORDS: &[(&str, Words)] = &[
    ("", ROOT),
    ("pools.*", POOL),
    (
        "pools.*.backends.*",
        &[
            (
                &["host", "hostname", "server", "url", "uri", "ip", "addr", "target", "endpoint", "port"],
                "write `address: 10.0.0.1:8080`, with the port",
            ),
            (
                &["socket", "unix", "unix_socket", "path", "pipe", "sock"],
                "write `address: unix:/run/app.sock`",
            ),
            (&["name", "id"], "remove the key: a backend is identified by its address"),
        ],
    ),
    (
        "pools.*.health_check",
        &[
            (&["uri", "url", "endpoint", "http_path", "target"], "write `path: /healthz`"),
            (
                &["status", "code", "codes", "status_code", "status_codes", "expected_status", "expect"],
                "write `expect_status: [\"200-399\"]`",
            ),
            (&["body", "response", "string"], "write `expect_body: ok`"),
            (&["unhealthy_threshold", "max_fails", "failures", "fails", "unhealthy"], "write `fall: 3`"),
            (&["healthy_threshold", "passes", "successes", "healthy"], "write `rise: 2`"),
            (&["inter", "period", "every", "frequency"], "write `interval: 5s`"),
            (&["protocol", "kind", "mode", "scheme"], "write `type: http`"),
            (&["enabled", "enable", "disabled"], "write `type: none` to turn checks off, or remove the key"),
        ],
    ),
    (
        "pools.*.timeouts",
        &[
            (
                &[
                    "read",
                    "request",
                    "total",
                    "server",
                    "write",
                    "send",
                    "client",
                    "response_timeout",
                    "read_timeout",
                ],
                "write `response: 60s`, which limits the wait for the response, and then each read and write",
            ),
            (&["connection", "dial"], "write `connect: 3s`"),
            (&["keepalive", "keep_alive"], "write `idle: 60s`"),
        ],
    ),
    (
        "pools.*.retries",
        &[
            (&["count", "max", "num", "number", "tries", "limit", "max_retries"], "write `attempts: 1`"),
            (
                &["race", "hedge", "hedging", "hedge_policy", "hedge_on_per_try_timeout", "happy_eyeballs"],
                "write `connect_race: 250ms`, which races connections; no request is sent twice",
            ),
        ],
    ),
    (
        "pools.*.outlier_detection",
        &[
            (&["interval"], "remove the key: each response is counted at once"),
            (&["enabled", "enable"], "remove the key; to turn ejection off, write `consecutive_failures: 0`"),
        ],
    ),
    (
        "pools.*.tls",
        &[
            (&["server_name", "servername", "name", "hostname", "host"], "write `sni: example.com`"),
            (
                &["insecure", "skip_verify", "insecure_skip_verify", "verify_peer", "ssl_verify"],
                "write `verify: false` to accept any certificate",
            ),
            (
                &["ca_file", "ca_cert", "cacert", "ca_certificate", "trusted_ca", "root_ca", "cafile"],
                "write `ca: /path/to/ca.pem`",
            ),
            (
                &["cert", "crt", "certificate", "cert_file", "client_certificate", "tls_client_auth"],
                "write `client_cert: /path/to/client.pem`",
            ),
            (
                &["key", "key_file", "private_key", "certificate_key", "client_private_key"],
                "write `client_key: /path/to/client.key`",
            ),
            (&["enabled", "enable"], "remove the key: every pool with `tls` uses TLS"),
        ],
    ),
    (
        "pools.*.sticky",
        &[
            (&["name", "cookie_name"], "write `cookie: lb_session`"),
            (&["max_age", "expires", "age", "lifetime"], "write `ttl: 1h`"),
            (&["enabled", "enable"], "remove the key: every pool with `sticky` has sticky sessions"),
            (&["type", "mode", "kind"], "remove the key: sticky sessions always use a cookie"),
        ],
    ),
    (
        "listeners.*",
        &[
            (
                &["listen", "bind", "port", "host", "ip", "addr", "hostname"],
                "write `address: \"0.0.0.0:8080\"`",
            ),
            (&["ssl", "https", "cert", "certs", "certificate", "certificates", "key"], NO_TLS),
            (&["protocol", "type"], "remove the key: every listener speaks HTTP"),
            (
                &["client_max_body_size", "max_body_size", "body_limit", "max_request_bytes"],
                "write `limits: {body: 100MiB}`",
            ),
            (
                &["large_client_header_buffers", "client_header_buffer_size", "max_header_size"],
                "write `limits: {head: 64KiB}`",
            ),
            (
                &["permissions", "permission", "perm", "perms", "chmod", "umask", "socket_mode", "file_mode"],
                "write `mode: \"0660\"`",
            ),
            (&["maxconn", "max_connections", "connection_limit"], "write `limits: {connections: 10000}`"),
            (&["keepalive_requests"], "write `limits: {requests: 1000}`"),
            (&["keepalive_timeout", "idle_timeout", "timeout"], "write `timeouts: {idle: 75s}`"),
            (
                &["client_header_timeout", "request_headers_timeout", "read_header_timeout"],
                "write `timeouts: {head: 10s}`",
            ),
            (
                &["client_body_timeout", "send_timeout", "read_timeout", "write_timeout"],
                "write `timeouts: {body: 60s}`",
            ),
        ],
    ),
    (
        "routes.*",
        &[
            (
                &[
                    "rewrite",
                    "strip_prefix",
                    "headers_to_add",
                    "rate_limit",
                    "auth",
                    "middlewares",
                    "plugins",
                ],
                NO_FEATURE,
            ),
            (&["path"], "write `match: {path: /v1}`"),
            (&["path_prefix", "prefix", "location", "url", "uri"], "write `match: {path_prefix: /v1}`"),
            (
                &["host", "hosts", "domain", "domains", "hostname", "server_name"],
                "write `match: {host: example.com}`",
            ),
            (&["method", "methods"], "write `match: {method: GET}`"),
            (&["header", "headers"], "write `match: {header: {X-Canary: \"1\"}}`"),
            (&["listener"], "write `match: {listener: web}`"),
            (&["when", "if", "rule", "rules", "matcher", "condition"], "write `match: {path_prefix: /v1}`"),
            (
                &[
                    "backend",
                    "backends",
                    "upstream",
                    "service",
                    "target",
                    "to",
                    "proxy_pass",
                    "cluster",
                    "use_backend",
                    "destination",
                    "dest",
                    "server",
                ],
                "write `pool: web`",
            ),
            (&["name", "id"], "remove the key: routes have no names"),
        ],
    ),
    (
        "routes.*.match",
        &[
            (&["prefix", "starts_with", "location"], "write `path_prefix: /v1`"),
            (&["uri", "url", "exact"], "write `path: /v1`, or `path_prefix: /v1`"),
            (&["domain", "domains", "server_name", "hostname", "authority"], "write `host: example.com`"),
            (&["regex", "regexp", "path_regex", "path_regexp", "pattern"], NO_REGEX),
            (
                &["query", "queries", "query_string", "cookie", "source_ip", "client_ip", "remote_ip"],
                "match by `listener`, `host`, `path`, `path_prefix`, `method` or `header`",
            ),
        ],
    ),
    (
        "metrics",
        &[
            (&["port", "listen", "bind", "host", "addr"], "write `address: \"127.0.0.1:6192\"`"),
            (&["path", "url"], "remove the key: the path is always /metrics"),
            (&["enabled", "enable"], "remove the key: metrics are always served"),
        ],
    ),
    (
        "access_log",
        &[
            (&["file", "filename", "output", "target", "destination"], "write `path: /var/log/access.log`"),
            (&["type", "style"], "write `format: json`"),
        ],
    ),
    (
        "control",
        &[
            (&["path", "address", "file", "sock"], "write `socket: /run/control.sock`"),
            (
                &["mode", "permissions"],
                "remove the key: only the user of the daemon can use the control socket",
            ),
        ],
    ),
    (
        "shutdown",
        &[(&["timeout", "grace", "grace_period", "graceful", "graceful_timeout"], "write `drain: 25s`")],
    ),
];

const ROOT: Words = &[
    (FEATURES, NO_FEATURE),
    (
        &[
            "upstream",
            "upstreams",
            "backend",
            "backends",
            "backend_servers",
            "server",
            "servers",
            "service",
            "services",
            "target",
            "targets",
            "target_group",
            "target_groups",
            "cluster",
            "clusters",
            "origin",
            "origins",
            "endpoint",
            "endpoints",
            "node",
            "nodes",
            "member",
            "members",
            "host",
            "hosts",
            "farm",
            "load_balancer",
            "load_balancers",
            "loadbalancer",
            "proxy",
            "proxies",
            "proxy_pass",
            "reverse_proxy",
            "instances",
        ],
        SMALLEST,
    ),
    (
        &[
            "frontend",
            "frontends",
            "bind",
            "binds",
            "listen",
            "listen_address",
            "listen_addr",
            "bind_address",
            "entrypoint",
            "entrypoints",
            "entry_point",
            "entry_points",
            "port",
            "ports",
            "address",
            "addr",
        ],
        "write `listeners: [\"0.0.0.0:8080\"]`",
    ),
    (
        &[
            "rule",
            "rules",
            "router",
            "routers",
            "routing",
            "location",
            "locations",
            "vhost",
            "vhosts",
            "virtual_host",
            "virtual_hosts",
            "path",
            "paths",
            "ingress",
            "domains",
        ],
        A_ROUTE,
    ),
    (
        &["workers", "worker_processes", "worker_threads", "nbthread", "nbproc", "cpus", "concurrency"],
        "write `threads: 4`; the default is the number of CPUs",
    ),
    (&["pid", "pidfile", "pid_path"], "write `pid_file: /run/load_balancer.pid`"),
    (&["daemonize", "background"], "write `daemon: true`"),
    (
        &["log", "logs", "logging", "log_file", "logfile"],
        "write `error_log: /path` for messages, and `access_log: {path: /path}` for requests",
    ),
    (
        &["prometheus", "stats", "monitoring", "admin", "telemetry", "dashboard", "api", "status"],
        "write `metrics: {address: \"127.0.0.1:6192\"}`",
    ),
    (&["ssl", "https", "tls", "cert", "certs", "certificate", "certificates", "ssl_certificate"], NO_TLS),
    (
        &[
            "timeout",
            "timeouts",
            "connect_timeout",
            "read_timeout",
            "send_timeout",
            "proxy_read_timeout",
            "request_timeout",
            "client_timeout",
            "server_timeout",
            "idle_timeout",
            "keepalive",
            "keepalive_timeout",
        ],
        "write it in each pool: `timeouts: {connect: 3s, response: 60s, idle: 60s}`",
    ),
    (
        &["client_max_body_size", "max_body_size", "client_header_timeout", "client_body_timeout", "maxconn"],
        "write it in each listener, such as `limits: {body: 100MiB, connections: 10000}` and `timeouts: {head: 10s, body: 60s}`",
    ),
    (
        &["health", "check", "checks", "health_check", "health_checks", "healthcheck", "healthchecks"],
        "write it in each pool: `health_check: {type: http, path: /healthz}`",
    ),
    (&["retry", "retries"], "write it in each pool: `retries: {attempts: 1}`"),
    (
        &["algorithm", "balance", "lb_policy", "strategy", "load_balancing", "lb_method", "policy"],
        "write it in each pool: `policy: round_robin`",
    ),
    (
        &["drain", "drain_timeout", "graceful_shutdown", "grace_period", "shutdown_timeout", "stop_timeout"],
        "write `shutdown: {drain: 25s}`",
    ),
    (
        &["trusted_ips", "real_ip", "set_real_ip_from", "trusted_proxy"],
        "write `trusted_proxies: [10.0.0.0/8]`",
    ),
    (
        &["global", "defaults", "default", "settings", "config", "main", "general"],
        "remove the key: write settings of the process at the top level, and settings for backends in each pool",
    ),
];

const POOL: Words = &[
    (FEATURES, NO_FEATURE),
    (
        &[
            "server",
            "servers",
            "upstream",
            "upstreams",
            "target",
            "targets",
            "endpoint",
            "endpoints",
            "node",
            "nodes",
            "member",
            "members",
            "hosts",
            "address",
            "addresses",
            "url",
            "urls",
            "origins",
            "instances",
            "peers",
            "load_balancer",
        ],
        "write `backends: [10.0.0.1:8080]`",
    ),
    (
        &[
            "algorithm",
            "balance",
            "strategy",
            "lb_policy",
            "lb_method",
            "type",
            "mode",
            "load_balancing",
            "method",
        ],
        "write `policy: round_robin`, or random, least_request, peak_ewma, consistent_hash or maglev",
    ),
    (
        &[
            "timeout",
            "read_timeout",
            "response_timeout",
            "request_timeout",
            "proxy_read_timeout",
            "send_timeout",
        ],
        "write `timeouts: {response: 60s}`",
    ),
    (&["connect_timeout", "proxy_connect_timeout"], "write `timeouts: {connect: 3s}`"),
    (
        &["keepalive", "keep_alive", "idle_timeout", "keepalive_timeout", "keepalive_requests"],
        "write `timeouts: {idle: 60s}`; `upstream_keepalive_pool_size` at the top level limits how many are kept",
    ),
    (&["health", "check", "checks"], "write `health_check: {type: http, path: /healthz}`"),
    (&["retry", "tries", "max_retries"], "write `retries: {attempts: 1}`"),
    (&["ssl", "https"], "write `tls: {sni: example.com}`"),
    (
        &["skip_verify", "insecure", "insecure_skip_verify", "ssl_verify", "verify"],
        "write `tls: {verify: false}` to accept any certificate",
    ),
    (
        &[
            "sticky_session",
            "sticky_sessions",
            "session_affinity",
            "affinity",
            "cookie",
            "persistence",
            "session",
        ],
        "write `sticky: {cookie: lb_session}`",
    ),
    (
        &["fail_timeout", "ejection_time", "base_ejection_time"],
        "write `outlier_detection: {base_ejection: 30s}`",
    ),
    (&["backup"], "write `backup: true` for a backend: `backends: [{address: 10.0.0.1:8080, backup: true}]`"),
    (
        &["max_fails", "circuit_breaker", "outlier", "passive_health_check", "ejection"],
        "write `outlier_detection: {consecutive_failures: 5}`",
    ),
    (&["hash", "hash_key", "hash_by", "key"], "write `hash_on: uri`, with `policy: consistent_hash`"),
    (
        &["max_requests", "max_conns", "maxconn", "max_connections", "max_concurrent_requests"],
        "write `limits: {max_requests: 100}`",
    ),
    (&["name", "id"], "use the name as the key of the pool: `pools: {web: {backends: [10.0.0.1:8080]}}`"),
    (&["port"], "write the port after each address: `backends: [10.0.0.1:8080]`"),
    (&["host_header"], "write `host: example.com`"),
];

/// Examples of required keys.
const EXAMPLES: &[(&str, &str)] = &[
    ("pools", "\n\npools:\n  web:\n    backends: [10.0.0.1:8080]"),
    ("backends", "`backends: [10.0.0.1:8080]`"),
    ("address", "`address: 10.0.0.1:8080`"),
    ("pool", "`pool: web`"),
    ("listeners", "`listeners: [\"0.0.0.0:8080\"]`"),
    ("cookie", "`cookie: lb_session`"),
    ("error_rate", "`error_rate: 20`"),
    ("window", "`window: 10s`"),
];

/// Formats the path of a mapping like the keys of the schema, with `*` for names and items.
pub(super) fn pattern(path: &[Step]) -> String {
    let is_name = |at: usize| at == 1 && path.first() == Some(&Step::from("pools"));
    let names = path.iter().enumerate().map(|(at, step)| match step {
        Step::Key(key) if !is_name(at) => key.as_str(),
        _ => "*",
    });
    names.collect::<Vec<_>>().join(".")
}

/// Returns the hint for the unknown key `found` in the mapping at `at`. `None` means that no other product is known to
/// use it.
pub(super) fn for_key(at: &[Step], found: &str) -> Option<&'static str> {
    let (pattern, found) = (pattern(at), snake_case(found));
    let (_, words) = WORDS.iter().find(|(place, _)| *place == pattern)?;
    let known = |theirs: &[&str]| theirs.contains(&found.as_str());
    words.iter().find(|(theirs, _)| known(theirs)).map(|(_, hint)| *hint)
}

/// Returns the hint for an unknown key, with the value from the file if it fits in the place of the example value.
pub(super) fn for_entry(at: &[Step], found: &str, value: Option<&Node>) -> Option<String> {
    let hint = for_key(at, found)?;
    let is_rule = ["routes.*", "routes.*.match"].contains(&pattern(at).as_str());
    if let Some(Value::Text { text, .. }) = value.map(|node| &node.value).filter(|_| is_rule) {
        match text.strip_suffix('*') {
            Some("" | "/") => return Some("remove the key: without it, every request matches".to_owned()),
            Some(directory) if directory.starts_with('/') && hint.contains("path") => {
                let directory = directory.trim_end_matches('/');
                return Some(format!("write `match: {{path_prefix: {directory}}}`"));
            }
            _ => {}
        }
    }
    let written = value.and_then(|node| with_value(hint, &node.value));
    Some(written.unwrap_or_else(|| hint.to_owned()))
}

/// Returns the key that a hint such as "write `timeouts: {response: 60s}`" says to write.
pub(super) fn target(hint: &str) -> Option<&str> {
    Some(hint.strip_prefix("write `")?.split_once(": ")?.0)
}

/// Combines hints to write the same key: "write `timeouts: {response: 60s}`" and "write `timeouts: {connect: 3s}`"
/// become "write `timeouts: {response: 60s, connect: 3s}`". Other hints give the first one.
pub(super) fn combined(hints: &[String]) -> Option<String> {
    let inner = |hint: &String| {
        let (_, value) = hint.strip_prefix("write `")?.split('`').next()?.split_once(": ")?;
        Some(value.strip_prefix('{')?.strip_suffix('}')?.to_owned())
    };
    let first = hints.first()?;
    let Some(parts) = hints.iter().map(inner).collect::<Option<Vec<_>>>() else { return Some(first.clone()) };
    let name = |part: &String| part.split(':').next().unwrap_or_default().to_owned();
    let mut all: Vec<String> = Vec::new();
    for part in parts {
        if all.iter().all(|known| name(known) != name(&part)) {
            all.push(part);
        }
    }
    match all.len() {
        1 => Some(first.clone()),
        _ => Some(format!("write `{}: {{{}}}`", target(first)?, all.join(", "))),
    }
}

/// Replaces a hint to write a key that the mapping already has, since a key must not be given twice. `None` means that
/// the hint can be followed.
pub(super) fn beside(hint: &str, found: &str, mapping: Option<&Node>) -> Option<String> {
    let Value::Map(map) = &mapping?.value else { return None };
    let is_given = |key: &str| key != found && map.written_keys().any(|written| written == key);
    if hint == SMALLEST {
        return is_given("pools").then(|| "move these backends into a pool of `pools`".to_owned());
    }
    if let Some(meant) = hint.strip_prefix("did you mean `").and_then(|rest| rest.strip_suffix("`?")) {
        return is_given(meant).then(|| format!("remove the key: `{meant}` is given as well"));
    }
    if ["ssl", "https"].contains(&found) && is_given("tls") {
        return Some("remove the key: `tls` is given as well".to_owned());
    }
    let snippet = hint.strip_prefix("write `")?.split('`').next()?;
    let (key, value) = snippet.split_once(": ").filter(|(key, _)| is_given(key))?;
    if let Some(items) = value.strip_prefix('[').and_then(|value| value.strip_suffix(']')) {
        let is_value = map.get(found).is_some_and(|entry| text_of(&entry.node.value).is_some());
        return Some(match is_value {
            true => format!("add `{items}` to `{key}`, or remove the key"),
            false => format!("move its values to `{key}`, or remove the key"),
        });
    }
    let Some(inner) = value.strip_prefix('{').and_then(|value| value.strip_suffix('}')) else {
        return Some(format!("remove the key: `{key}` is given as well"));
    };
    let name = inner.split(':').next().unwrap_or_default();
    let is_new = map.get(key).is_none_or(|entry| entry.node.get(&[name.into()]).is_none());
    Some(match is_new {
        true => format!("add `{inner}` to `{key}`"),
        false => format!("remove the key: `{name}` is given in `{key}` as well"),
    })
}

/// Replaces the last value in the snippet of a hint such as "write `path: /healthz`".
fn with_value(hint: &str, value: &Value) -> Option<String> {
    let (before, rest) = hint.strip_prefix("write `")?.split_once('`')?;
    let has_choices = rest.starts_with(", or") || rest.contains('`') || before.starts_with("routes:");
    let literal = before.rsplit_once(": ")?.1.trim_matches(['{', '}', '[', ']', '"']);
    let written = in_place_of(literal, value).filter(|_| !has_choices)?;
    let is_quoted = before.contains(&format!("\"{literal}\""));
    let written = if is_quoted { written } else { quoted(&written) };
    let at = before.rfind(literal)?;
    Some(format!("write `{}{written}{}`{rest}", &before[..at], &before[at + literal.len()..]))
}

/// Returns the value as text, if it has the type of the example.
fn in_place_of(literal: &str, value: &Value) -> Option<String> {
    let text = text_of(value).filter(|text| !text.contains(char::is_whitespace))?;
    if let (Ok(mut address), Some(port)) = (literal.parse::<SocketAddr>(), ports::port(value)) {
        address.set_port(port);
        return Some(address.to_string());
    }
    if literal.starts_with("unix:") {
        let path = text.trim_start_matches("unix:");
        return path.starts_with('/').then(|| format!("unix:{path}"));
    }
    let is_number = literal.parse::<u64>().is_ok();
    let is_time = literal.ends_with(['s', 'h']) && literal.starts_with(|c: char| c.is_ascii_digit());
    let fits = match value {
        Value::Int(_) => is_number || literal.contains('-'),
        Value::Text { .. } if literal.parse::<SocketAddr>().is_ok() => text.parse::<SocketAddr>().is_ok(),
        Value::Text { .. } if literal.starts_with('/') => text.starts_with('/'),
        Value::Text { .. } if is_time => text.starts_with(|c: char| c.is_ascii_digit()),
        Value::Text { .. } => !is_number && !literal.contains('-') && !["true", "false"].contains(&literal),
        _ => false,
    };
    fits.then_some(text)
}

/// Returns the known key that `found` is another spelling of: `header` for `headers`, `health_check` for `healthCheck`.
pub(super) fn respelled(found: &str, known: &[&'static str]) -> Option<&'static str> {
    let bare = |text: &str| snake_case(text).replace('_', "").trim_end_matches('s').to_owned();
    known.iter().copied().find(|key| bare(key) == bare(found))
}

/// Returns whether the unknown key `found` was meant to be `key`.
pub(super) fn means(at: &[Step], found: &str, key: &str) -> bool {
    let is_written = |hint: &str| hint.contains(&format!("`{key}: ")) || hint.contains(&format!("\n{key}:"));
    for_key(at, found).is_some_and(is_written) || split_address(found).is_some() && key == "address"
}

/// Returns whether an unknown key stands for `pools`, or for a pool that is not below `pools`.
pub(super) fn is_for_pools(at: &[Step], found: &str, value: Option<&Node>) -> bool {
    at.is_empty() && for_key(at, found) == Some(SMALLEST) || is_stray_pool(at, found, value)
}

/// Returns whether an unknown key is the name of a pool that is not below `pools`.
fn is_stray_pool(at: &[Step], found: &str, value: Option<&Node>) -> bool {
    let Some(node) = value.filter(|_| at.is_empty()) else { return false };
    let has_backends = node.get(&["backends".into()]).is_some();
    has_backends || for_key(at, found).is_none() && is_pool(node)
}

/// Returns whether a value is a pool: a mapping with backends, possibly under another name.
pub(super) fn is_pool(node: &Node) -> bool {
    let pool = [Step::from("pools"), Step::from("*")];
    let is_backends = |key: &str| key == "backends" || means(&pool, key, "backends");
    matches!(&node.value, Value::Map(map) if map.entries.iter().any(|entry| is_backends(&entry.key)))
}

/// Returns the hint for an unknown key with a problem that does not depend on its name: a character that is invisible
/// or looks like another, a comment of another language, an address that was split by a space, or a pool next to
/// `pools`.
pub(super) fn oddity(at: &[Step], found: &str, value: Option<&Node>) -> Option<String> {
    if let Some(hidden) = found.chars().find(|c| syntax::is_invisible(*c)) {
        let code = u32::from(hidden);
        return Some(format!("type the key again: it contains the invisible character U+{code:04X}"));
    }
    if let Some(odd) = found.chars().find(|c| (c.is_whitespace() && *c != ' ') || "“”‘’".contains(*c))
    {
        let code = u32::from(odd);
        return Some(format!(
            "type the spaces and quotes again: the key contains the character U+{code:04X}, which only looks like one of them"
        ));
    }
    if found.starts_with("//") || found.starts_with("/*") || found.starts_with("--") {
        return Some("begin a comment with `#`".to_owned());
    }
    if let (Some(address), Some(Value::Int(port))) = (split_address(found), value.map(|node| &node.value)) {
        return Some(format!("write {address}:{port}, without a space after the colon"));
    }
    is_stray_pool(at, found, value)
        .then(|| format!("move the pool under `pools`:\n\npools:\n  {found}:\n    backends: …"))
}

/// Returns the key if it is an address without a port.
fn split_address(key: &str) -> Option<String> {
    let is_local = key.eq_ignore_ascii_case("localhost");
    (is_local || key.parse::<std::net::Ipv4Addr>().is_ok()).then(|| key.to_owned())
}

/// Returns an example of a required key.
pub(super) fn example(key: &str) -> Option<&'static str> {
    EXAMPLES.iter().find(|(known, _)| *known == key).map(|(_, example)| *example)
}

// === values of the wrong type ===

/// Returns the hint for a value in the place of a mapping.
pub(super) fn for_mapping(path: &[Step], found: &Value) -> Option<String> {
    if *found == Value::Null {
        return match path.last() {
            Some(Step::Key(key)) => example(key).map(|example| format!("write {example}")),
            _ => None,
        };
    }
    let pattern = pattern(path);
    let found = if is_off(found) { &Value::Bool(false) } else { found };
    let written = match found {
        Value::List(list) if pattern == "pools.*" && list.items.iter().all(is_text) => {
            format!("{{backends: {}}}", in_brackets(list))
        }
        Value::List(list) if pattern == "pools" && list.items.iter().all(is_text) => {
            return Some(format!(
                "give the pool a name, which is its key:\n\npools:\n  web:\n    backends: {}",
                in_brackets(list)
            ));
        }
        Value::List(list) if pattern == "pools" => {
            let pools: Vec<String> = list.items.iter().map(named_pool).collect();
            return Some(format!("give each pool a name, which is its key:\n\npools:{}", pools.concat()));
        }
        Value::List(_) if pattern == "routes.*.match" => {
            let how = "write one mapping, with a list for a key that has several values";
            return Some(format!("{how}: `match: {{host: [example.com, example.org]}}`"));
        }
        Value::List(_) | Value::Map(_) => return None,
        Value::Bool(true) if section(&pattern, found).is_none() => {
            return Some(format!("{LEAVE_OUT}: the defaults apply without it"));
        }
        Value::Bool(false) if section(&pattern, found).is_none() => {
            return for_nothing(path, found).or_else(|| Some(LEAVE_OUT.to_owned()));
        }
        scalar => section(&pattern, scalar)?,
    };
    Some(match path.last() {
        Some(Step::Key(key)) if pattern == "pools" => format!("write\n\n{key}:\n  web:\n    {written}"),
        Some(Step::Key(key)) => format!("write `{key}: {written}`"),
        _ => format!("write {written}"),
    })
}

/// The keys that people turn off with a word, and the hint for each: what the daemon does without the key.
const WITHOUT: &[(&str, &str)] = &[
    (
        "error_log",
        "remove the key: the log then goes to standard error; in the background, nothing is logged",
    ),
    ("pid_file", "remove the key: a daemon in the foreground then writes no PID file"),
    ("upgrade_sock", "remove the key: the daemon then chooses a path, because an upgrade needs this socket"),
    ("control", "remove the key: the daemon always has a control socket, which subcommands need"),
    (
        "control.socket",
        "remove the key: the daemon then chooses a path, because subcommands need this socket",
    ),
    ("ca_file", "remove the key: backends are then verified with the authorities of the system"),
    ("pools.*.tls.ca", "remove the key: the authorities of the system, or `ca_file`, are then trusted"),
    ("threads", "remove the key: the daemon then uses one thread for each CPU"),
    ("user", "remove the key: the daemon then runs as the user that starts it"),
    ("group", "remove the key: the daemon then runs with the group of its user"),
    (
        "working_directory",
        "remove the key: the daemon then stays in the directory in which it was started, or in / if it is in the background",
    ),
    ("log_level", "write `log_level: error` for the fewest lines"),
    ("access_log.path", "to turn the access log off, write `format: none` instead"),
    ("metrics", "remove the key: metrics are always served, by default at 127.0.0.1:6192"),
    ("listeners", "remove the key: the daemon then listens on 0.0.0.0:6188"),
    ("routes", "remove the key: without routes, the only pool gets all requests"),
    ("trusted_proxies", "remove the key: without it, the daemon trusts no proxy"),
    ("shutdown", "write `shutdown: {drain: 0s}` to end without waiting for requests"),
    ("pools.*.tls", "remove the key: without it, backends get plain HTTP"),
    ("pools.*.sticky", "remove the key: without it, there are no sticky sessions"),
    ("pools.*.host", "remove the key: backends then get the `Host` of the client"),
    ("pools.*.limits", "remove the key: there are no limits without it"),
    ("pools.*.health_check.interval", "to turn the health checks off, write `type: none` instead"),
    ("pools.*.retries.connect_race", "to turn connection races off, write `connect_race: 0s`"),
    ("pools.*.retries.per_try", "remove the key: the limits of `timeouts` then apply to each attempt"),
    ("pools.*.sticky.ttl", "remove the key: clients then keep the cookie until the browser closes"),
    ("pools.*.timeouts.queue", "to let no request wait, write `limits: {queue: 0}` instead"),
    ("pools.*.slow_start", "remove the key: a backend that returns then gets its full share at once"),
    ("pools.*.bounded_load", "remove the key: there is no bound without it"),
    ("pools.*.outlier_detection.slow_backends", "remove the key: slow backends are not ejected without it"),
    ("reload.rollback", "remove the key: a reload is not rolled back without it"),
];

/// Returns the hint for `false`, or for a word such as `off` or `none`, in the place of another value. It says what
/// happens without the key.
pub(super) fn for_nothing(path: &[Step], found: &Value) -> Option<String> {
    let pattern = pattern(path);
    let without = WITHOUT.iter().find(|(known, _)| *known == pattern).map(|(_, hint)| *hint);
    let is_stream = matches!(found, Value::Text { text, .. } if ["stdout", "stderr", "console", "-"].contains(&text.as_str()));
    let hint = match pattern.as_str() {
        "access_log.path" if is_stream => Some("remove the key: the access log then goes to standard output"),
        "error_log" if is_stream => without,
        "threads" if matches!(found, Value::Text { text, .. } if text == "auto") => without,
        _ => without.filter(|_| is_off(found)),
    };
    hint.map(str::to_owned)
}

/// Returns the hint for `true` in the place of a value that is neither a section nor a boolean.
pub(super) fn for_true(path: &[Step], found: &Value) -> Option<String> {
    let is_level = pattern(path) == "log_level" && *found == Value::Bool(true);
    is_level.then(|| "write `log_level: info`, or `log_level: debug` for more lines".to_owned())
}

/// Returns whether a value says that something is turned off or does not exist.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Text { text, .. } => {
            let words = ["false", "off", "no", "none", "never", "disabled", "0s", "0ms", "0m", "0h"];
            words.contains(&text.to_ascii_lowercase().as_str())
        }
        other => [Value::Bool(false), Value::Int(0)].contains(other),
    }
}

/// Returns the hint for `false` in the place of another value: remove the key. There is no hint for most numbers and
/// durations, since without the key their default would apply.
pub(super) fn for_false(path: &[Step], expected: &str, found: &Value) -> Option<String> {
    let nothing_by_default = ["pools.*.slow_start", "pools.*.bounded_load"].contains(&&*pattern(path));
    let has_default = ["number", "percent", "duration"].iter().any(|noun| expected.contains(noun));
    let is_key = matches!(path.last(), Some(Step::Key(_)));
    (is_key && *found == Value::Bool(false) && (nothing_by_default || !has_default))
        .then(|| LEAVE_OUT.to_owned())
}

/// Formats an item of a list of pools as a key of `pools`, under the name that the item has.
fn named_pool(item: &Node) -> String {
    let text = |key: &str| text_of(&item.get(&[key.into()])?.value);
    let backends = |pool: &Node| match pool.get(&["backends".into()]).map(|node| &node.value) {
        Some(Value::List(list)) if list.items.iter().all(is_text) => in_brackets(list),
        _ => "…".to_owned(),
    };
    let (name, backends) = match &item.value {
        Value::Map(map) if map.entries.len() == 1 && is_pool(&map.entries[0].node) => {
            (map.entries[0].key.clone(), backends(&map.entries[0].node))
        }
        _ => (text("name").or(text("id")).unwrap_or_else(|| "web".to_owned()), backends(item)),
    };
    format!("\n  {name}:\n    backends: {backends}")
}

/// Formats a list of strings in the notation with brackets.
fn in_brackets(list: &List) -> String {
    let items: Vec<String> = list.items.iter().filter_map(|item| text_of(&item.value)).collect();
    let items: Vec<String> = items.iter().map(|item| quoted(item)).collect();
    format!("[{}]", items.join(", "))
}

fn is_text(node: &Node) -> bool {
    matches!(node.value, Value::Text { .. })
}

/// Returns the text of a section that has the value in the most likely key.
fn section(pattern: &str, found: &Value) -> Option<String> {
    let text = text_of(found)?;
    let is_path = text.starts_with('/');
    let template = match (pattern, found) {
        ("pools", Value::Text { .. }) => "backends: [%]",
        ("pools.*", Value::Text { .. }) => "{backends: [%]}",
        ("pools.*.health_check", Value::Bool(true)) => "{type: tcp}",
        ("pools.*.health_check", Value::Bool(false)) => "{type: none}",
        ("pools.*.health_check", Value::Text { .. }) if is_path => "{type: http, path: %}",
        ("pools.*.health_check", Value::Text { .. }) if ["tcp", "http", "grpc", "none"].contains(&&*text) => {
            "{type: %}"
        }
        ("pools.*.retries", Value::Bool(false)) => "{attempts: 0}",
        ("pools.*.outlier_detection", Value::Bool(false)) => "{consecutive_failures: 0}",
        ("pools.*.outlier_detection.slow_backends", Value::Bool(true)) => "{}",
        ("access_log", Value::Bool(false)) => "{format: none}",
        ("readiness", Value::Bool(false)) => "{pools: none}",
        ("readiness", Value::Text { .. }) => "{pools: %}",
        ("reload.rollback", Value::Int(_)) => "{error_rate: %, window: 10s}",
        ("reload.rollback", Value::Bool(true)) => "{error_rate: 20, window: 10s}",
        ("pools.*.retries", Value::Int(_)) => "{attempts: %}",
        ("pools.*.sticky", Value::Bool(true)) => "{cookie: lb_session}",
        ("pools.*.sticky", Value::Text { .. }) => "{cookie: %}",
        ("pools.*.tls", Value::Bool(true)) => "{sni: example.com}",
        ("pools.*.tls", Value::Text { .. }) => "{sni: %}",
        ("pools.*.timeouts", Value::Int(_)) => "{response: %s}",
        ("pools.*.timeouts", Value::Text { .. }) => "{response: %}",
        ("pools.*.limits", Value::Int(_)) => "{max_requests: %}",
        ("pools.*.outlier_detection", Value::Int(_)) => "{consecutive_failures: %}",
        ("shutdown", Value::Int(_)) => "{drain: %s}",
        ("shutdown", Value::Text { .. }) => "{drain: %}",
        ("metrics", Value::Int(_)) => "{address: \"127.0.0.1:%\"}",
        ("metrics", Value::Text { .. }) => "{address: \"%\"}",
        ("access_log", Value::Text { .. }) if is_path => "{path: %}",
        ("access_log", Value::Text { .. }) if text.contains(['/', '.']) => {
            "{path: /var/log/load_balancer/access.log}"
        }
        ("access_log", Value::Text { .. }) => "{format: %}",
        ("control", Value::Text { .. }) => "{socket: %}",
        ("reload", Value::Bool(_)) => "{watch: %}",
        ("routes.*", Value::Text { .. }) if !is_path => "{pool: %}",
        ("routes.*.match", Value::Text { .. }) if is_path => "{path_prefix: %}",
        ("routes.*.match", Value::Text { .. }) => "{host: \"%\"}",
        ("routes.*.match.header", Value::Text { .. }) => {
            let (name, value) = text.split_once(':')?;
            return Some(format!("{{{}: \"{}\"}}", name.trim(), value.trim()));
        }
        _ => return None,
    };
    // `backends:[10.0.0.1:80]` is a key without a space, not a value.
    (syntax::with_colon(&text).is_none() || !text.contains(['[', '{', '=']))
        .then(|| template.replace('%', &text))
}

/// Returns the hint for a value in the place of a list.
pub(super) fn for_list(path: &[Step], found: &Value) -> Option<String> {
    let pattern = pattern(path);
    match found {
        Value::Null => match path.last() {
            Some(Step::Key(key)) => example(key).map(|example| format!("write {example}")),
            _ => None,
        },
        off if is_off(off) => for_nothing(path, off).or_else(|| Some(LEAVE_OUT.to_owned())),
        Value::Map(map) if pattern == "pools.*.backends" => Some(weights(map)),
        Value::Map(map) if pattern == "routes" => Some(list_of_routes(map)),
        Value::Map(_) => Some("write a list: put `- ` in front of the first key of each item".to_owned()),
        Value::Int(port) if pattern == "listeners" => Some(format!("put it in brackets: [\":{port}\"]")),
        Value::Int(port) if pattern == "pools.*.backends" => {
            Some(format!("put it in brackets: [\"localhost:{port}\"]"))
        }
        Value::Text { text, .. } if pattern.ends_with(".expect_status") && text.ends_with("xx") => {
            let class = text.trim_end_matches("xx");
            Some(format!("put it in brackets: [\"{class}00-{class}99\"]"))
        }
        Value::Text { text, .. } if text.starts_with('-') => {
            Some(format!("put a space after the `-`: `- {}`", text.trim_start_matches('-')))
        }
        Value::Text { text, .. } => {
            let items = text.split([',', ' ']).filter(|item| !item.is_empty());
            let items: Vec<String> = items.map(|item| quoted(&bracketed(&pattern, item))).collect();
            Some(format!("put it in brackets: [{}]", items.join(", ")))
        }
        _ => None,
    }
}

/// Puts brackets around the IPv6 address of a listener or a backend, as in `[::1]:80`. Other texts are returned as they
/// are.
fn bracketed(pattern: &str, item: &str) -> String {
    let is_address = ["listeners", "pools.*.backends"].contains(&pattern);
    match item.rsplit_once(':').filter(|_| is_address) {
        Some((address, port)) if address.parse::<Ipv6Addr>().is_ok() && port.parse::<u16>().is_ok() => {
            format!("[{address}]:{port}")
        }
        _ => item.to_owned(),
    }
}

/// Returns the hint for routes written as a mapping of paths to pools. The longest paths come first, since the first
/// match wins.
fn list_of_routes(map: &Map) -> String {
    let route = |entry: &Entry| match &entry.node.value {
        Value::Text { text, .. } if entry.key.starts_with('/') => Some((entry.key.clone(), text.clone())),
        _ => None,
    };
    let Some(mut routes) = map.entries.iter().map(route).collect::<Option<Vec<_>>>() else {
        return "write a list: `- {match: {path_prefix: /}, pool: web}`".to_owned();
    };
    routes.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
    let line =
        |(path, pool): &(String, String)| format!("\n  - {{match: {{path_prefix: {path}}}, pool: {pool}}}");
    format!("write a list:\n\nroutes:{}", routes.iter().map(line).collect::<String>())
}

/// Returns the hint for backends written as a mapping: of addresses to weights, such as `{10.0.0.1:80: 2}`, of names to
/// addresses, or of addresses to ports.
fn weights(map: &Map) -> String {
    let is_address = |text: &str| text.parse::<SocketAddr>().is_ok();
    let item = |entry: &Entry| match &entry.node.value {
        Value::Int(weight) if is_address(&entry.key) => {
            Some(format!("{{address: {}, weight: {weight}}}", entry.key))
        }
        _ if is_address(&entry.key) => Some(quoted(&entry.key)),
        Value::Text { text, .. } if is_address(text) => Some(quoted(text)),
        port => ports::with_port(&entry.key, ports::port(port)?),
    };
    match map.entries.iter().map(item).collect::<Option<Vec<_>>>() {
        Some(items) => format!("write [{}]", items.join(", ")),
        None => "write a list: put `- ` in front of the first key of each item".to_owned(),
    }
}

/// Formats a string as an item of a list in brackets.
fn quoted(text: &str) -> String {
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/');
    if is_plain { text.to_owned() } else { format!("\"{text}\"") }
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::Bool(value) => Some(value.to_string()),
        Value::Int(number) => Some(number.to_string()),
        Value::Text { text, .. } => Some(text.clone()),
        _ => None,
    }
}

/// Converts `healthCheck` and `health-check` to `health_check`.
fn snake_case(text: &str) -> String {
    let mut snake = String::new();
    for (at, c) in text.char_indices() {
        let after_lower = text[..at].ends_with(|before: char| before.is_lowercase());
        if c.is_uppercase() && after_lower {
            snake.push('_');
        }
        snake.extend(if c == '-' { vec!['_'] } else { c.to_lowercase().collect() });
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_looked_up_by_their_mapping() {
        let pool: [Step; 2] = ["pools".into(), "timeout".into()];
        assert_eq!(for_key(&[], "upstreams"), Some(SMALLEST));
        assert_eq!(for_key(&pool, "timeout"), Some("write `timeouts: {response: 60s}`"));
        assert_eq!(for_key(&["routes".into(), 3.into()], "backend"), Some("write `pool: web`"));
        assert_eq!(for_key(&["metrics".into()], "upstreams"), None);
    }

    #[test]
    fn a_hint_has_the_value_that_was_written_where_that_fits() {
        let text = |text: &str| Value::Text { text: text.to_owned(), plain: true };
        let at = |place: &[&str], key: &str, value: Value| {
            let steps: Vec<Step> = place.iter().map(|step| Step::from(*step)).collect();
            let node = Node { span: Default::default(), value };
            for_entry(&steps, key, Some(&node)).expect(key)
        };
        let (pool, check) = (["pools", "web"], ["pools", "web", "health_check"]);
        for (place, key, value, hint) in [
            (&pool[..], "timeout", text("30s"), "write `timeouts: {response: 30s}`"),
            (&pool, "timeout", text("soon"), "write `timeouts: {response: 60s}`"),
            (&pool, "timeout", Value::Int(30), "write `timeouts: {response: 60s}`"),
            (&pool, "retry", Value::Int(3), "write `retries: {attempts: 3}`"),
            (&pool, "cookie", text("lb"), "write `sticky: {cookie: lb}`"),
            (&pool, "insecure", Value::Bool(true), "write `tls: {verify: false}` to accept any certificate"),
            (&check, "url", text("/up"), "write `path: /up`"),
            (&check, "url", text("http://a/up"), "write `path: /healthz`"),
            (&check, "status", Value::Int(204), "write `expect_status: [\"204\"]`"),
            (&[], "listen", text("10.0.0.1:80"), "write `listeners: [\"10.0.0.1:80\"]`"),
            (&[], "frontend", text("web"), "write `listeners: [\"0.0.0.0:8080\"]`"),
            (&[], "workers", Value::Int(2), "write `threads: 2`; the default is the number of CPUs"),
            (&[], "workers", text("auto"), "write `threads: 4`; the default is the number of CPUs"),
            (&[], "path", text("/x"), A_ROUTE),
        ] {
            assert_eq!(at(place, key, value), hint, "{key}");
        }
        assert!(at(&pool, "algorithm", text("rr")).starts_with("write `policy: round_robin`, or"));
    }

    #[test]
    fn an_invisible_character_in_a_key_is_named() {
        for (key, code) in
            [("thr\u{200b}eads", "200B"), ("\u{202e}threads", "202E"), ("threads\u{feff}", "FEFF")]
        {
            let hint = oddity(&[], key, None).expect(code);
            assert_eq!(hint, format!("type the key again: it contains the invisible character U+{code}"));
        }
        assert_eq!(oddity(&[], "threads", None), None);
    }

    #[test]
    fn an_ipv6_address_in_place_of_a_list_gets_brackets() {
        let hint = |key: &str, text: &str| {
            for_list(&[key.into()], &Value::Text { text: text.to_owned(), plain: true }).expect(text)
        };
        assert_eq!(hint("listeners", "::1:8080"), "put it in brackets: [\"[::1]:8080\"]");
        assert_eq!(hint("listeners", "10.0.0.1:80"), "put it in brackets: [10.0.0.1:80]");
        assert_eq!(hint("trusted_proxies", "fd00::1:2"), "put it in brackets: [fd00::1:2]");
    }

    #[test]
    fn a_key_is_found_in_another_spelling() {
        let known = ["header", "health_check", "backends", "tls"];
        for (found, key) in [("headers", "header"), ("healthCheck", "health_check"), ("Backend", "backends")]
        {
            assert_eq!(respelled(found, &known), Some(key));
        }
        assert_eq!(respelled("heads", &known), None);
    }

    #[test]
    fn camel_case_and_kebab_case_become_snake_case() {
        assert_eq!(snake_case("entryPoints"), "entry_points");
        assert_eq!(snake_case("read-timeout"), "read_timeout");
        assert_eq!(snake_case("TLS"), "tls");
    }

    #[test]
    fn no_word_is_a_key_of_the_same_mapping() {
        let keys = super::super::keys::keys();
        for (place, words) in WORDS {
            for word in words.iter().flat_map(|(theirs, _)| *theirs) {
                let key = if place.is_empty() { (*word).to_owned() } else { format!("{place}.{word}") };
                assert!(!keys.contains(&key), "{key} is a key");
            }
        }
    }
}
