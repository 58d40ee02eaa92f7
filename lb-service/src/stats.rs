//! Counters of the request path: relaxed atomics that cost a few nanoseconds each and are read at scrape time.
//!
//! Each is a plain value inside the thing that it counts for (a listener, a pool, a backend), so counting needs neither
//! a lock nor a label lookup. [`crate::metrics`] adds names and labels.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// The number of things that exist at the moment. The code that increments it decrements it in a `Drop`.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

/// Counts of responses by status code, 100 to 599, and of all others together.
#[derive(Debug)]
pub struct Codes(Box<[Counter; Codes::COUNT]>);

/// Counts of durations in the buckets of a Prometheus histogram.
#[derive(Debug, Default)]
pub struct Histogram {
    /// The last one counts durations above all [`BUCKETS`].
    buckets: [Counter; BUCKETS.len() + 1],
    nanoseconds: Counter,
}

/// Upper bounds of the buckets of a [`Histogram`], in seconds: 0.5 ms to 10 s.
pub const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// A snapshot of a [`Histogram`].
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramSnapshot {
    /// The number of observations at or below each bound of [`BUCKETS`].
    pub cumulative: [u64; BUCKETS.len()],
    /// The number of all observations.
    pub count: u64,
    /// The sum of all observations, in seconds.
    pub sum: f64,
}

// === impl Counter ===

impl Counter {
    /// Adds one.
    pub(crate) fn increment(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Returns the count.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

// === impl Gauge ===

impl Gauge {
    /// Adds one; the caller's `Drop` subtracts it.
    pub(crate) fn enter(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Subtracts one.
    pub(crate) fn leave(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// Returns the current number.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed).try_into().unwrap_or(0)
    }
}

// === impl Codes ===

impl Codes {
    const FIRST: u16 = 100;
    const COUNT: usize = 501;
    /// Stands for every status outside 100 to 599.
    pub(crate) const OTHER: u16 = Self::FIRST + Self::COUNT as u16 - 1;

    /// Counts a response with this status.
    #[expect(clippy::indexing_slicing, reason = "the index is limited to the last counter")]
    pub(crate) fn increment(&self, status: u16) {
        let index = usize::from(status.wrapping_sub(Self::FIRST)).min(Self::COUNT - 1);
        self.0[index].increment();
    }

    /// Returns each counted status with its count, in ascending order. 600 stands for every status outside 100 to 599.
    pub fn counted(&self) -> impl Iterator<Item = (u16, u64)> {
        let read = |(counter, status): (&Counter, u16)| (status, counter.get());
        self.0.iter().zip(Self::FIRST..).map(read).filter(|(_, n)| *n > 0)
    }
}

impl Default for Codes {
    fn default() -> Self {
        Self(Box::new([const { Counter(AtomicU64::new(0)) }; Self::COUNT]))
    }
}

// === impl Histogram ===

impl Histogram {
    /// Counts a duration.
    #[expect(clippy::indexing_slicing, reason = "there is one bucket more than there are bounds")]
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        self.buckets[BUCKETS.partition_point(|bound| *bound < seconds)].increment();
        self.nanoseconds.add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Returns the current counts.
    #[expect(clippy::indexing_slicing, reason = "there is one bucket more than there are bounds")]
    pub fn snapshot(&self) -> HistogramSnapshot {
        let mut below = 0;
        let cumulative = std::array::from_fn(|bucket| {
            below += self.buckets[bucket].get();
            below
        });
        let count = below + self.buckets[BUCKETS.len()].get();
        HistogramSnapshot { cumulative, count, sum: self.nanoseconds.get() as f64 / 1e9 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_counted_one_by_one() {
        let codes = Codes::default();
        for status in [100, 200, 200, 599, 0, 999] {
            codes.increment(status);
        }
        assert_eq!(codes.counted().collect::<Vec<_>>(), [(100, 1), (200, 2), (599, 1), (Codes::OTHER, 2)]);
    }

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        for micros in [500, 501, 10_000_000, 11_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let seen = histogram.snapshot();
        assert_eq!(seen.cumulative[0], 1, "0.5 ms is at most 0.5 ms");
        assert_eq!(seen.cumulative[1], 2);
        assert_eq!(seen.cumulative[BUCKETS.len() - 1], 3, "10 s is at most 10 s");
        assert_eq!(seen.count, 4);
        assert!((seen.sum - 21.001_001).abs() < 1e-9);
    }
}
