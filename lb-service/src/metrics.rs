//! The proxy's metrics: names and labels for the counters of [`Traffic`](crate::traffic::Traffic) and of the pools.
//!
//! `prometheus::*Vec` merges series whose concatenated label values are equal (`web` + `11` and `web1` + `1`), so these
//! families come from our own `Collector`. It reads the counters at scrape time; the request path only adds to atomics.

use std::sync::Arc;
use std::time::Instant;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Registry, Result};

use crate::counters::{ListenerTraffic, PoolTraffic};
use crate::pool::{Backend, Pool, PoolId};
use crate::snapshot::{CurrentSnapshot, Snapshot};
use crate::stats::{BUCKETS, Codes, HistogramSnapshot};

/// The collector of all metrics of the proxy.
pub struct Metrics {
    current: CurrentSnapshot,
    descriptions: Vec<Desc>,
}

/// The configuration that one scrape reports on. Backends that it no longer contains do not appear.
struct View<'a>(&'a Snapshot);

/// The name, help and labels of one metric family.
struct Family {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
}

const REQUESTS: Family = Family {
    name: "lb_requests_total",
    help: "Requests by the status sent to the client (499: the client closed the connection before a response).",
    labels: &["listener", "pool", "code"],
};
const REQUEST_DURATION: Family = Family {
    name: "lb_request_duration_seconds",
    help: "Time from the head of a request to the end of its response, in seconds.",
    labels: &["listener", "pool"],
};
const REQUEST_BYTES: Family = Family {
    name: "lb_request_bytes_total",
    help: "Bytes of request bodies received from clients.",
    labels: &["listener", "pool"],
};
const RESPONSE_BYTES: Family = Family {
    name: "lb_response_bytes_total",
    help: "Bytes of response bodies sent to clients.",
    labels: &["listener", "pool"],
};
const IN_FLIGHT: Family = Family {
    name: "lb_requests_in_flight",
    help: "Requests in flight, including upgraded connections.",
    labels: &["listener"],
};
const CONNECTIONS: Family =
    Family { name: "lb_connections_total", help: "Accepted client connections.", labels: &["listener"] };
const ACCEPT_ERRORS: Family = Family {
    name: "lb_accept_errors_total",
    help: "Failures to accept a client connection, usually because no file descriptor was left.",
    labels: &["listener"],
};
const CONNECTIONS_ACTIVE: Family =
    Family { name: "lb_connections_active", help: "Open client connections.", labels: &["listener"] };
const REJECTED: Family = Family {
    name: "lb_rejected_total",
    help: "Requests rejected by the load balancer without being sent to a backend, by reason.",
    labels: &["listener", "reason"],
};
const HEADERS_DROPPED: Family = Family {
    name: "lb_headers_dropped_total",
    help: "Headers of requests that were not passed on, by reason.",
    labels: &["listener", "reason"],
};
const SPLICED: Family = Family {
    name: "lb_spliced_bytes_total",
    help: "Bytes of response bodies that the system moved from a backend to a client without a copy in the process.",
    labels: &["listener"],
};
const STAGED_CLOSES: Family = Family {
    name: "lb_staged_closes_total",
    help: "Client connections that were read to their end after the last response, by what ended this.",
    labels: &["listener", "end"],
};
const TRUNCATED: Family = Family {
    name: "lb_truncated_bodies_total",
    help: "Bodies that broke off: of requests (side `client`), and of responses that had begun (side `backend`).",
    labels: &["listener", "pool", "side"],
};
const UPSTREAM_REQUESTS: Family = Family {
    name: "lb_upstream_requests_total",
    help: "Responses of backends, by status.",
    labels: &["pool", "backend", "code"],
};
const UPSTREAM_DURATION: Family = Family {
    name: "lb_upstream_request_duration_seconds",
    help: "Time from sending a request to a backend to the first byte of its response, in seconds.",
    labels: &["pool", "backend"],
};
const UPSTREAM_IN_FLIGHT: Family = Family {
    name: "lb_upstream_requests_in_flight",
    help: "Requests in flight at a backend.",
    labels: &["pool", "backend"],
};
const UPSTREAM_CONNECTIONS: Family = Family {
    name: "lb_upstream_connections_total",
    help: "Requests sent to backends, by whether their connection was reused.",
    labels: &["pool", "backend", "reused"],
};
const UPSTREAM_IDLE: Family = Family {
    name: "lb_upstream_connections_idle",
    help: "Idle connections to a backend, which wait for a request.",
    labels: &["pool", "backend"],
};
const UPSTREAM_INFORMATIONAL: Family = Family {
    name: "lb_upstream_informational_total",
    help: "Informational (1xx) responses of backends.",
    labels: &["pool", "backend"],
};
const UPSTREAM_POISONED: Family = Family {
    name: "lb_upstream_connections_poisoned_total",
    help: "Connections to backends that were closed because a further response could not be told apart, by reason.",
    labels: &["pool", "backend", "reason"],
};
const UPSTREAM_ERRORS: Family = Family {
    name: "lb_upstream_errors_total",
    help: "Failed attempts at backends, by reason.",
    labels: &["pool", "backend", "reason"],
};
const RETRIES: Family = Family {
    name: "lb_upstream_retries_total",
    help: "Requests retried on another backend.",
    labels: &["pool"],
};
const RETRIES_DENIED: Family = Family {
    name: "lb_upstream_retries_denied_total",
    help: "Retries denied because the retry budget was used up.",
    labels: &["pool"],
};
const RACES: Family = Family {
    name: "lb_upstream_connect_races_total",
    help: "Connection attempts that took so long that another backend was tried as well, by which was connected first.",
    labels: &["pool", "result"],
};
const QUEUE_LENGTH: Family =
    Family { name: "lb_upstream_queue_length", help: "Requests waiting in the queue.", labels: &["pool"] };
const EJECTIONS: Family = Family {
    name: "lb_backend_ejections_total",
    help: "Ejections of a backend by outlier detection.",
    labels: &["pool", "backend"],
};
const PANIC: Family = Family {
    name: "lb_pool_panic",
    help: "1 while the pool is in panic mode, otherwise 0.",
    labels: &["pool"],
};
const PANICS: Family = Family {
    name: "lb_pool_panics_total",
    help: "Times that the pool entered panic mode.",
    labels: &["pool"],
};
const HASH_KEYS_MISSING: Family = Family {
    name: "lb_hash_keys_missing_total",
    help: "Requests without a hash key, balanced by round robin.",
    labels: &["pool"],
};

const FAMILIES: [&Family; 29] = [
    &REQUESTS,
    &REQUEST_DURATION,
    &REQUEST_BYTES,
    &RESPONSE_BYTES,
    &IN_FLIGHT,
    &CONNECTIONS,
    &ACCEPT_ERRORS,
    &CONNECTIONS_ACTIVE,
    &REJECTED,
    &HEADERS_DROPPED,
    &SPLICED,
    &STAGED_CLOSES,
    &TRUNCATED,
    &UPSTREAM_REQUESTS,
    &UPSTREAM_DURATION,
    &UPSTREAM_IN_FLIGHT,
    &UPSTREAM_CONNECTIONS,
    &UPSTREAM_IDLE,
    &UPSTREAM_INFORMATIONAL,
    &UPSTREAM_POISONED,
    &UPSTREAM_ERRORS,
    &RETRIES,
    &RETRIES_DENIED,
    &RACES,
    &QUEUE_LENGTH,
    &EJECTIONS,
    &PANIC,
    &PANICS,
    &HASH_KEYS_MISSING,
];

// === impl Metrics ===

impl Metrics {
    /// Registers the metrics of the current configuration with `registry`.
    ///
    /// # Errors
    /// If `registry` already has a family with the same name.
    pub fn register(registry: &Registry, current: CurrentSnapshot) -> Result<()> {
        let descriptions = FAMILIES.iter().map(|family| family.describe()).collect::<Result<_>>()?;
        registry.register(Box::new(Self { current, descriptions }))
    }
}

// === impl View ===

impl View<'_> {
    fn listener_families(&self) -> Vec<MetricFamily> {
        let per_listener = |read: fn(&ListenerTraffic) -> u64| {
            self.listeners().map(move |(name, listener)| (vec![name], read(listener))).collect::<Vec<_>>()
        };
        let rejected = self.listeners().flat_map(|(name, listener)| {
            listener.rejected().map(move |(reason, n)| (vec![name, reason.as_str()], n))
        });
        let dropped = self.listeners().flat_map(|(name, listener)| {
            let by_reason = [("look_alike", &listener.look_alikes), ("nominated", &listener.nominated)];
            by_reason.map(|(reason, counter)| (vec![name, reason], counter.get()))
        });
        let closes = self.listeners().flat_map(|(name, listener)| {
            listener.staged_closes().map(move |(end, n)| (vec![name, end.as_str()], n))
        });
        vec![
            HEADERS_DROPPED.counter(dropped),
            SPLICED.counter(per_listener(|listener| listener.spliced.get())),
            STAGED_CLOSES.counter(closes),
            IN_FLIGHT.gauge(per_listener(|listener| listener.in_flight.get())),
            CONNECTIONS.counter(per_listener(|listener| listener.connections.get())),
            ACCEPT_ERRORS.counter(per_listener(|listener| listener.accept_errors.get())),
            CONNECTIONS_ACTIVE.gauge(per_listener(|listener| listener.connections_active.get())),
            REJECTED.counter(rejected),
        ]
    }

    fn request_families(&self) -> Vec<MetricFamily> {
        let cells: Vec<_> = self.cells().collect();
        let requests = cells.iter().flat_map(|(listener, pool, cell)| {
            cell.responses.counted().map(move |(code, n)| (strings([listener, pool, &code_label(code)]), n))
        });
        let bytes = |read: fn(&PoolTraffic) -> u64| {
            cells.iter().map(move |(listener, pool, cell)| (vec![*listener, *pool], read(cell)))
        };
        let durations =
            cells.iter().map(|(listener, pool, cell)| (vec![*listener, *pool], cell.duration.snapshot()));
        let truncated = cells.iter().flat_map(|(listener, pool, cell)| {
            let by_side = [("client", &cell.truncated_requests), ("backend", &cell.truncated_responses)];
            by_side.map(|(side, counter)| (vec![*listener, *pool, side], counter.get()))
        });
        vec![
            TRUNCATED.counter(truncated),
            REQUESTS.counter(requests),
            REQUEST_DURATION.histogram(durations),
            REQUEST_BYTES.counter(bytes(|cell| cell.request_bytes.get())),
            RESPONSE_BYTES.counter(bytes(|cell| cell.response_bytes.get())),
        ]
    }

    fn upstream_families(&self) -> Vec<MetricFamily> {
        let responses = self.backends().flat_map(|(pool, backend)| {
            backend
                .history
                .responses
                .counted()
                .map(move |(code, n)| (strings([pool, &backend.label, &code_label(code)]), n))
        });
        let connections = self.backends().flat_map(|(pool, backend)| {
            [
                (vec![pool, &backend.label, "true"], backend.history.connections_reused.get()),
                (vec![pool, &backend.label, "false"], backend.history.connections_new.get()),
            ]
        });
        let errors = self.backends().flat_map(|(pool, backend)| {
            backend.errors().map(move |(error, n)| (vec![pool, &*backend.label, error.as_str()], n))
        });
        let poisoned = self.backends().flat_map(|(pool, backend)| {
            let by_reason = backend.history.poisoned();
            by_reason.map(move |(reason, n)| (vec![pool, &*backend.label, reason.as_str()], n))
        });
        vec![
            UPSTREAM_POISONED.counter(poisoned),
            UPSTREAM_INFORMATIONAL.counter(
                self.backends().map(|(pool, b)| (vec![pool, &*b.label], b.history.informational.get())),
            ),
            UPSTREAM_REQUESTS.counter(responses),
            UPSTREAM_DURATION.histogram(
                self.backends()
                    .map(|(pool, b)| (vec![pool, &*b.label], b.history.time_to_first_byte.snapshot())),
            ),
            UPSTREAM_IN_FLIGHT
                .gauge(self.backends().map(|(pool, b)| (vec![pool, &*b.label], b.load.in_flight()))),
            UPSTREAM_CONNECTIONS.counter(connections),
            UPSTREAM_IDLE
                .gauge(self.backends().map(|(pool, b)| (vec![pool, &*b.label], b.idle().len() as u64))),
            UPSTREAM_ERRORS.counter(errors),
            EJECTIONS.counter(self.backends().map(|(pool, b)| (vec![pool, &*b.label], b.ejections()))),
        ]
    }

    fn pool_families(&self) -> Vec<MetricFamily> {
        let now = Instant::now();
        let each = |read: &dyn Fn(&Pool) -> u64| {
            self.pools().map(|pool| (vec![&*pool.name], read(pool))).collect::<Vec<_>>()
        };
        let races = self.pools().flat_map(|pool| {
            pool.counters().races().map(|(result, n)| (vec![&*pool.name, result.as_str()], n))
        });
        vec![
            RACES.counter(races),
            RETRIES.counter(each(&|pool| pool.counters().retries.get())),
            RETRIES_DENIED.counter(each(&|pool| pool.counters().retries_denied.get())),
            QUEUE_LENGTH.gauge(each(&|pool| pool.queue().len())),
            PANIC.gauge(each(&|pool| pool.availability(now).panic.into())),
            PANICS.counter(each(&|pool| pool.counters().panics.get())),
            HASH_KEYS_MISSING.counter(each(&|pool| pool.counters().keys_missing.get())),
        ]
    }

    fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.0.pools.iter()
    }

    fn backends(&self) -> impl Iterator<Item = (&str, &Arc<Backend>)> {
        self.pools().flat_map(|pool| pool.backends().iter().map(|backend| (&*pool.name, backend)))
    }

    fn listeners(&self) -> impl Iterator<Item = (&str, &ListenerTraffic)> {
        self.0.listeners.iter().map(|(id, listener)| (&*listener.name, &**self.0.traffic(id)))
    }

    /// Returns each listener with each pool, and with no pool: requests that matched no route have an empty pool label.
    fn cells(&self) -> impl Iterator<Item = (&str, &str, &PoolTraffic)> {
        self.0.listeners.iter().flat_map(move |(id, listener)| {
            let named = self.pools().enumerate().map(|(pool, named)| (Some(PoolId(pool)), &*named.name));
            let cells = named.chain([(None, "")]);
            cells.map(move |(pool, name)| (&*listener.name, name, self.0.requests(id, pool)))
        })
    }
}

impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let snapshot = self.current.load();
        let view = View(&snapshot);
        let families = [
            view.listener_families(),
            view.request_families(),
            view.upstream_families(),
            view.pool_families(),
        ];
        families.into_iter().flatten().filter(|family| !family.get_metric().is_empty()).collect()
    }
}

// === impl Family ===

impl Family {
    fn describe(&self) -> Result<Desc> {
        let labels = self.labels.iter().map(ToString::to_string).collect();
        Desc::new(self.name.into(), self.help.into(), labels, Default::default())
    }

    fn counter<S: Into<String>>(&self, series: impl IntoIterator<Item = (Vec<S>, u64)>) -> MetricFamily {
        self.family(MetricType::COUNTER, series, |metric, value| {
            let mut counter = Counter::default();
            counter.set_value(value as f64);
            metric.set_counter(counter);
        })
    }

    fn gauge<S: Into<String>>(&self, series: impl IntoIterator<Item = (Vec<S>, u64)>) -> MetricFamily {
        self.family(MetricType::GAUGE, series, |metric, value| {
            let mut gauge = Gauge::default();
            gauge.set_value(value as f64);
            metric.set_gauge(gauge);
        })
    }

    fn histogram<S: Into<String>>(
        &self,
        series: impl IntoIterator<Item = (Vec<S>, HistogramSnapshot)>,
    ) -> MetricFamily {
        self.family(MetricType::HISTOGRAM, series, |metric, value| metric.set_histogram(histogram(&value)))
    }

    fn family<S: Into<String>, V>(
        &self,
        kind: MetricType,
        series: impl IntoIterator<Item = (Vec<S>, V)>,
        set: impl Fn(&mut Metric, V),
    ) -> MetricFamily {
        let metrics = series.into_iter().map(|(labels, value)| {
            let mut metric = Metric::default();
            metric.set_label(self.pairs(labels));
            set(&mut metric, value);
            metric
        });
        let mut family = MetricFamily::default();
        family.set_name(self.name.into());
        family.set_help(self.help.into());
        family.set_field_type(kind);
        family.set_metric(metrics.collect());
        family
    }

    fn pairs<S: Into<String>>(&self, values: Vec<S>) -> Vec<LabelPair> {
        let pair = |(name, value): (&&str, S)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).into());
            pair.set_value(value.into());
            pair
        };
        self.labels.iter().zip(values).map(pair).collect()
    }
}

fn histogram(seen: &HistogramSnapshot) -> Histogram {
    let bucket = |(bound, cumulative): (&f64, &u64)| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(*cumulative);
        bucket
    };
    let mut histogram = Histogram::default();
    histogram.set_bucket(BUCKETS.iter().zip(&seen.cumulative).map(bucket).collect());
    histogram.set_sample_count(seen.count);
    histogram.set_sample_sum(seen.sum);
    histogram
}

fn strings<const N: usize>(values: [&str; N]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

/// Returns the label of a counted status. A backend can send any number up to 999, so most of them share one.
fn code_label(code: u16) -> String {
    if code == Codes::OTHER { "other".to_owned() } else { code.to_string() }
}
