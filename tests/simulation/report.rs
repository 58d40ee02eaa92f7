//! The results of a run, for clients and for backends.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use lb_service::pool::{AdmissionError, Pool, UpstreamError};

/// The end of a request for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Good,
    /// The response of a backend was 503.
    Unavailable,
    Upstream(UpstreamError),
    /// The request got no backend.
    Rejected(AdmissionError),
}

/// The measurements of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Report {
    /// The times from the arrival to a good response, in nanoseconds; sorted at the end.
    times: Vec<u64>,
    /// Failed requests, by kind.
    pub(crate) failures: BTreeMap<&'static str, usize>,
    /// Requests sent to each backend.
    pub(crate) sent: Vec<u64>,
    /// Requests sent to each backend, by second of virtual time from the beginning.
    pub(crate) by_second: Vec<Vec<u32>>,
    /// The maximum of requests that each backend held.
    pub(crate) most: Vec<u64>,
    /// Requests in flight times seconds, over all backends.
    held: f64,
    measured: f64,
    pub(crate) retries: u64,
    pub(crate) retries_denied: u64,
    pub(crate) ejections: Vec<u64>,
}

// === impl Ending ===

impl Ending {
    fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Unavailable => "503",
            Self::Upstream(error) => error.as_str(),
            Self::Rejected(AdmissionError::Unavailable) => "no_backend",
            Self::Rejected(AdmissionError::QueueFull) => "queue_full",
            Self::Rejected(AdmissionError::QueueTimeout) => "queue_timeout",
        }
    }
}

// === impl Report ===

impl Report {
    pub(crate) fn new(backends: usize) -> Self {
        Self { sent: vec![0; backends], most: vec![0; backends], ..Self::default() }
    }

    /// Records that a backend got a request and holds `holds` requests with it.
    pub(crate) fn sent(&mut self, backend: usize, holds: u64, seconds: f64, is_measured: bool) {
        let second = seconds as usize;
        if self.by_second.len() <= second {
            self.by_second.resize(second + 1, vec![0; self.sent.len()]);
        }
        self.by_second[second][backend] += 1;
        if is_measured {
            self.sent[backend] += 1;
            self.most[backend] = self.most[backend].max(holds);
        }
    }

    /// Records that a number of requests was in flight for a number of seconds.
    pub(crate) fn in_flight_for(&mut self, requests: u64, seconds: f64) {
        self.held += requests as f64 * seconds;
        self.measured += seconds;
    }

    pub(crate) fn ended(&mut self, ending: Ending, after: u64) {
        match ending {
            Ending::Good => self.times.push(after),
            failure => *self.failures.entry(failure.word()).or_default() += 1,
        }
    }

    pub(crate) fn finish(&mut self, pool: &Pool) {
        self.times.sort_unstable();
        self.retries = pool.counters().retries.get();
        self.retries_denied = pool.counters().retries_denied.get();
        self.ejections = pool.backends().iter().map(|backend| backend.ejections()).collect();
    }

    /// Returns the number of all requests.
    pub(crate) fn requests(&self) -> usize {
        self.times.len() + self.failed()
    }

    pub(crate) fn failed(&self) -> usize {
        self.failures.values().sum()
    }

    /// Returns the time that this share of the good requests did not exceed.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let index = (self.times.len() as f64 * share) as usize;
        let nanoseconds = self.times.get(index.min(self.times.len().saturating_sub(1)));
        Duration::from_nanos(nanoseconds.copied().unwrap_or_default())
    }

    /// Returns the mean time of the good requests.
    pub(crate) fn mean(&self) -> Duration {
        Duration::from_nanos(self.times.iter().sum::<u64>() / self.times.len().max(1) as u64)
    }

    /// Returns the share of this backend in all attempts.
    pub(crate) fn share(&self, backend: usize) -> f64 {
        self.sent[backend] as f64 / self.sent.iter().sum::<u64>().max(1) as f64
    }

    /// Returns the share of this backend in the attempts of these seconds.
    pub(crate) fn share_in(&self, backend: usize, seconds: Range<usize>) -> f64 {
        let rows = self.by_second.get(seconds).unwrap_or_default();
        let all: u32 = rows.iter().flatten().sum();
        let its: u32 = rows.iter().map(|row| row[backend]).sum();
        f64::from(its) / f64::from(all.max(1))
    }

    /// Returns the largest share of a single backend.
    pub(crate) fn largest_share(&self) -> f64 {
        (0..self.sent.len()).map(|backend| self.share(backend)).fold(0.0, f64::max)
    }

    /// Returns the maximum of requests that one backend held at any moment, and the average per backend.
    pub(crate) fn most_and_mean(&self) -> (u64, f64) {
        let mean = self.held / self.measured.max(f64::MIN_POSITIVE) / self.sent.len() as f64;
        (self.most.iter().copied().max().unwrap_or_default(), mean)
    }
}

/// The head of a table of reports.
pub(crate) const HEAD: &str = "\
| policy | p50 ms | p99 ms | p99.9 ms | share | most / mean in flight | failed | retries (denied) | ejections |
|---|---:|---:|---:|---:|---:|---:|---:|---:|";

/// Returns one line of the table. The share is that of the backend `of`, or else the largest one.
pub(crate) fn line(name: &str, report: &Report, of: Option<usize>) -> String {
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| report.quantile(share).as_secs_f64() * 1000.0);
    let share = 100.0 * of.map_or_else(|| report.largest_share(), |backend| report.share(backend));
    let (most, mean) = report.most_and_mean();
    let (failed, retries, denied) = (report.failed(), report.retries, report.retries_denied);
    let ejections: u64 = report.ejections.iter().sum();
    let times = format!("{p50:.1} | {p99:.1} | {p999:.1}");
    let retries = format!("{retries} ({denied})");
    format!("| {name} | {times} | {share:.2} % | {most} / {mean:.1} | {failed} | {retries} | {ejections} |")
}

/// Returns a table of the shares of each backend.
pub(crate) fn shares(reports: &[(String, Report)]) -> String {
    let line = |(name, report): &(String, Report)| {
        let shares = (0..report.sent.len()).map(|backend| format!(" {:.1}", 100.0 * report.share(backend)));
        format!("\n| {name} |{} |", shares.collect::<String>())
    };
    let lines: String = reports.iter().map(line).collect();
    format!("| policy | share of each backend, % |\n|---|---|{lines}")
}
