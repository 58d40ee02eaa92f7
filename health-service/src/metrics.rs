//! The metrics of the checks.
//!
//! | family | labels | |
//! |---|---|---|
//! | `lb_health_checks_total` | `pool`, `backend`, `result` (`pass`, `fail`) | checks done |
//! | `lb_health_check_duration_seconds` | `pool`, `backend` | histogram of their duration |
//! | `lb_backend_state_changes_total` | `pool`, `backend` | changes between up and down |
//!
//! The values are our own atomics behind our own `Collector`, because the label vectors of the crate `prometheus` merge
//! different series whose label values run together. A series exists while the backend is checked, and is absent from
//! the next scrape after that.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::Registry;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Counter, Histogram, LabelPair, Metric, MetricFamily, MetricType};

const CHECKS: &str = "lb_health_checks_total";
const CHECKS_HELP: &str = "Completed health checks by result.";
const DURATION: &str = "lb_health_check_duration_seconds";
const DURATION_HELP: &str = "Duration of health checks, including failed ones.";
const CHANGES: &str = "lb_backend_state_changes_total";
const CHANGES_HELP: &str = "Changes of a backend between up and down; a backend starts as up.";

/// Upper bounds of the buckets, in seconds.
const BOUNDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The metrics of all checks of a process. Clones share their values.
#[derive(Clone)]
pub struct Metrics {
    descriptions: Arc<[Desc; 3]>,
    series: Arc<Mutex<BTreeMap<SeriesKey, Weak<BackendSeries>>>>,
}

/// Pool and backend.
type SeriesKey = (String, String);

/// The values of one backend in one pool. They are scraped while this is in use.
#[derive(Debug, Default)]
pub(crate) struct BackendSeries {
    passed: AtomicU64,
    failed: AtomicU64,
    changes: AtomicU64,
    duration_nanoseconds: AtomicU64,
    /// Checks by duration: one count for each of [`BOUNDS`], and one for longer checks.
    durations: [AtomicU64; BOUNDS.len() + 1],
}

// === impl Metrics ===

impl Metrics {
    /// Metrics without any series.
    #[expect(clippy::expect_used, reason = "names and labels are constants")]
    pub fn new() -> Self {
        let description = |name: &str, help: &str, labels: &[&str]| {
            let labels = labels.iter().map(ToString::to_string).collect();
            Desc::new(name.to_owned(), help.to_owned(), labels, std::collections::HashMap::new())
                .expect("names and labels are constants that Prometheus allows")
        };
        Self {
            descriptions: Arc::new([
                description(CHECKS, CHECKS_HELP, &["pool", "backend", "result"]),
                description(DURATION, DURATION_HELP, &["pool", "backend"]),
                description(CHANGES, CHANGES_HELP, &["pool", "backend"]),
            ]),
            series: Arc::default(),
        }
    }

    /// Registers the metrics.
    ///
    /// # Errors
    /// Fails if the registry already has one of the names.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.clone()))
    }

    /// The values of one backend; the existing ones, if they are in use. Sometimes also drops unused series, because
    /// the metrics may never be scraped.
    pub(crate) fn series(&self, pool: &str, backend: &str) -> Arc<BackendSeries> {
        let mut all = self.series.lock();
        // Only at powers of two, so the cost per backend stays constant on average.
        if all.len().is_power_of_two() {
            all.retain(|_, series| series.strong_count() > 0);
        }
        let slot = all.entry((pool.to_owned(), backend.to_owned())).or_default();
        slot.upgrade().unwrap_or_else(|| {
            let series = Arc::default();
            *slot = Arc::downgrade(&series);
            series
        })
    }

    /// All series in use, in the order of their labels. Drops unused ones.
    fn live(&self) -> Vec<(SeriesKey, Arc<BackendSeries>)> {
        let mut all = self.series.lock();
        all.retain(|_, series| series.strong_count() > 0);
        all.iter().filter_map(|(key, series)| Some((key.clone(), series.upgrade()?))).collect()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let live = self.live();
        if live.is_empty() {
            // The registry treats a family without a metric as an error.
            return Vec::new();
        }
        let checks = live.iter().flat_map(|(key, series)| {
            [("pass", &series.passed), ("fail", &series.failed)]
                .map(|(result, count)| counter(count, labels(key, Some(result))))
        });
        let durations = live.iter().map(|(key, series)| series.histogram(labels(key, None)));
        let changes = live.iter().map(|(key, series)| counter(&series.changes, labels(key, None)));
        vec![
            family(CHECKS, CHECKS_HELP, MetricType::COUNTER, checks.collect()),
            family(DURATION, DURATION_HELP, MetricType::HISTOGRAM, durations.collect()),
            family(CHANGES, CHANGES_HELP, MetricType::COUNTER, changes.collect()),
        ]
    }
}

// === impl BackendSeries ===

impl BackendSeries {
    /// Counts one check.
    #[expect(clippy::indexing_slicing, reason = "there is one bucket more than there are bounds")]
    pub(crate) fn checked(&self, passed: bool, took: Duration) {
        let results = if passed { &self.passed } else { &self.failed };
        results.fetch_add(1, Relaxed);
        let bucket = BOUNDS.partition_point(|bound| *bound < took.as_secs_f64());
        self.durations[bucket].fetch_add(1, Relaxed);
        self.duration_nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Counts one change between up and down.
    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Relaxed);
    }

    #[expect(clippy::indexing_slicing, reason = "there is one bucket more than there are bounds")]
    fn histogram(&self, labels: Vec<LabelPair>) -> Metric {
        let mut count = 0;
        let mut buckets = Vec::with_capacity(BOUNDS.len());
        for (bound, checks) in BOUNDS.iter().zip(&self.durations) {
            count += checks.load(Relaxed);
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(count);
            buckets.push(bucket);
        }
        // The total is the sum of the values read, so it agrees with the buckets although checks continue.
        count += self.durations[BOUNDS.len()].load(Relaxed);
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(count);
        histogram.set_sample_sum(Duration::from_nanos(self.duration_nanoseconds.load(Relaxed)).as_secs_f64());
        let mut metric = Metric::from_label(labels);
        metric.set_histogram(histogram);
        metric
    }
}

#[expect(clippy::cast_precision_loss, reason = "a counter beyond 2^53 is out of reach")]
fn counter(count: &AtomicU64, labels: Vec<LabelPair>) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(count.load(Relaxed) as f64);
    let mut metric = Metric::from_label(labels);
    metric.set_counter(counter);
    metric
}

/// The labels in the order of their names, which the text format preserves.
fn labels((pool, backend): &SeriesKey, result: Option<&str>) -> Vec<LabelPair> {
    [("backend", Some(backend.as_str())), ("pool", Some(pool.as_str())), ("result", result)]
        .into_iter()
        .filter_map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.to_owned());
            pair.set_value(value?.to_owned());
            Some(pair)
        })
        .collect()
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    fn scrape(registry: &Registry) -> String {
        TextEncoder::new().encode_to_string(&registry.gather()).expect("metrics can be encoded")
    }

    fn registered() -> (Metrics, Registry) {
        let (metrics, registry) = (Metrics::new(), Registry::new());
        metrics.register(&registry).expect("the registry is empty");
        (metrics, registry)
    }

    #[test]
    fn checks_are_counted_by_result_and_duration() {
        let (metrics, registry) = registered();
        let series = metrics.series("web", "10.0.0.1:80");
        series.checked(true, Duration::from_millis(1));
        series.checked(true, Duration::from_millis(3));
        series.checked(false, Duration::from_secs(20));
        series.changed();
        let text = scrape(&registry);
        for line in [
            r#"lb_health_checks_total{backend="10.0.0.1:80",pool="web",result="pass"} 2"#,
            r#"lb_health_checks_total{backend="10.0.0.1:80",pool="web",result="fail"} 1"#,
            r#"lb_backend_state_changes_total{backend="10.0.0.1:80",pool="web"} 1"#,
            r#"lb_health_check_duration_seconds_bucket{backend="10.0.0.1:80",pool="web",le="0.001"} 1"#,
            r#"lb_health_check_duration_seconds_bucket{backend="10.0.0.1:80",pool="web",le="0.005"} 2"#,
            r#"lb_health_check_duration_seconds_bucket{backend="10.0.0.1:80",pool="web",le="10"} 2"#,
            r#"lb_health_check_duration_seconds_bucket{backend="10.0.0.1:80",pool="web",le="+Inf"} 3"#,
            r#"lb_health_check_duration_seconds_sum{backend="10.0.0.1:80",pool="web"} 20.004"#,
            r#"lb_health_check_duration_seconds_count{backend="10.0.0.1:80",pool="web"} 3"#,
        ] {
            assert!(text.lines().any(|found| found == line), "no line {line} in:\n{text}");
        }
    }

    #[test]
    fn series_of_removed_backends_are_dropped_without_a_scrape() {
        let metrics = Metrics::new();
        let stays = metrics.series("web", "10.0.0.1:80");
        for port in 0..1000 {
            drop(metrics.series("web", &format!("10.0.0.2:{port}")));
        }
        assert!(metrics.series.lock().len() < 4);
        assert!(Arc::ptr_eq(&stays, &metrics.series("web", "10.0.0.1:80")));
    }

    #[test]
    fn labels_that_run_together_stay_two_series() {
        let (metrics, registry) = registered();
        let (one, other) = (metrics.series("web", "11"), metrics.series("web1", "1"));
        one.changed();
        other.changed();
        other.changed();
        let text = scrape(&registry);
        assert!(text.contains(r#"changes_total{backend="11",pool="web"} 1"#), "{text}");
        assert!(text.contains(r#"changes_total{backend="1",pool="web1"} 2"#), "{text}");
    }

    #[test]
    fn a_series_is_dropped_with_its_last_user() {
        let (metrics, registry) = registered();
        let series = metrics.series("web", "10.0.0.1:80");
        let second_user = metrics.series("web", "10.0.0.1:80");
        second_user.changed();
        drop(second_user);
        assert!(scrape(&registry).contains(r#"changes_total{backend="10.0.0.1:80",pool="web"} 1"#));
        drop(series);
        assert_eq!(scrape(&registry), "");
    }

    #[test]
    fn registering_twice_fails() {
        let (metrics, registry) = registered();
        assert!(metrics.register(&registry).is_err());
    }
}
