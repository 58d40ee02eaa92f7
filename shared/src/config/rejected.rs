//! Keys that are known but not available, each with the reason and a remedy.
//!
//! There are two kinds: keys that are planned for a later version, and Pingora keys that have no effect here.

use super::document::{Node, Step};
use super::problem::{Id, Problem};

/// A key that is rejected.
struct Rejected {
    /// The path from the root; `*` stands for any key or item.
    path: &'static [&'static str],
    kind: Kind,
    /// The remedy.
    hint: &'static str,
}

#[derive(Clone, Copy)]
enum Kind {
    /// A key that is planned for a later version.
    Later,
    /// A Pingora key without effect, and the reason.
    Pingora(&'static str),
}

const fn later(path: &'static [&'static str], hint: &'static str) -> Rejected {
    Rejected { path, kind: Kind::Later, hint }
}

const fn pingora(key: &'static [&'static str], reason: &'static str, hint: &'static str) -> Rejected {
    Rejected { path: key, kind: Kind::Pingora(reason), hint }
}

const REMOVE: &str = "remove the key";
const DRAINED_BEFORE: &str = "requests are drained before Pingora's own shutdown begins";
const ALWAYS_WAITS: &str = "`-d` always waits until the daemon is ready or has failed";
const NEEDS_TOKIO: &str = "it needs a special build of tokio";
const NO_TLS_LISTENERS: &str = "listeners with TLS are not supported yet";
const OPENED_WHERE_USED: &str = "each thread opens the connections to backends that it uses";
const NOT_USED: &str = "the load balancer has nothing that this setting applies to";

const REJECTED: &[Rejected] = &[
    pingora(&["grace_period_seconds"], DRAINED_BEFORE, "use `shutdown: {drain: 25s}`"),
    pingora(&["graceful_shutdown_timeout_seconds"], DRAINED_BEFORE, "use `shutdown: {drain: 25s}`"),
    pingora(
        &["max_retries"],
        "each pool has its own limit of retries",
        "use `retries: {attempts: 1}` in the pools",
    ),
    pingora(&["upgrade_sock_connect_accept_max_retries"], "Pingora never reads it", REMOVE),
    pingora(&["daemon_wait_for_ready"], ALWAYS_WAITS, REMOVE),
    pingora(&["daemon_ready_timeout_seconds"], ALWAYS_WAITS, REMOVE),
    pingora(&["daemon_notify_timeout_seconds"], ALWAYS_WAITS, REMOVE),
    pingora(&["runtime_enable_alt_timer"], NEEDS_TOKIO, REMOVE),
    pingora(&["runtime_metrics_poll_time_histogram"], NEEDS_TOKIO, REMOVE),
    pingora(&["runtime_metrics_poll_time_histogram_scale"], NEEDS_TOKIO, REMOVE),
    pingora(&["runtime_metrics_poll_time_histogram_resolution_micros"], NEEDS_TOKIO, REMOVE),
    pingora(&["runtime_metrics_poll_time_histogram_buckets"], NEEDS_TOKIO, REMOVE),
    pingora(&["s2n_config_cache_size"], "the load balancer uses rustls for TLS, not s2n", REMOVE),
    pingora(&["downstream_tls_offload_threadpools"], NO_TLS_LISTENERS, REMOVE),
    pingora(&["downstream_tls_offload_thread_per_pool"], NO_TLS_LISTENERS, REMOVE),
    pingora(&["upstream_connect_offload_threadpools"], OPENED_WHERE_USED, REMOVE),
    pingora(&["upstream_connect_offload_thread_per_pool"], OPENED_WHERE_USED, REMOVE),
    pingora(&["upstream_debug_ssl_keylog"], "Pingora does not write keys with rustls", REMOVE),
    pingora(&["max_blocking_threads"], NOT_USED, REMOVE),
    pingora(&["blocking_threads_ttl_seconds"], NOT_USED, REMOVE),
    pingora(&["fast_timeout_to_tokio_threshold_seconds"], NOT_USED, REMOVE),
    later(&["listeners", "*", "tls"], "terminate TLS in front of the load balancer for now"),
];

/// Reports all unavailable keys in the tree, and removes them.
pub(crate) fn reject(root: &mut Node, problems: &mut Vec<Problem>) {
    for rejected in REJECTED {
        for path in root.matching(rejected.path) {
            problems.push(rejected.problem(root, &path));
            root.remove_wrong(&path);
        }
    }
}

// === impl Rejected ===

impl Rejected {
    fn problem(&self, root: &Node, path: &[Step]) -> Problem {
        let key = self.path.last().expect("no path in the table is empty");
        let (id, message) = match self.kind {
            Kind::Later => (Id::NotSupportedYet, format!("`{key}` is not supported yet")),
            Kind::Pingora(reason) => (Id::NoSuchSetting, format!("`{key}` has no effect here: {reason}")),
        };
        Problem::new(id, message).at(root.key_place(path)).hint(self.hint)
    }
}
