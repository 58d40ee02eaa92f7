//! Counters of the request path: relaxed atomics that cost a few nanoseconds and are read at the next scrape.
//!
//! They are plain values owned by what they count (a listener, a pool, a backend), so that counting needs neither
//! a lock nor a label lookup; [`crate::metrics`] puts names and labels on them.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// A number of things that exist at the moment. Whoever counts something in it counts it out again in a `Drop`.
#[derive(Debug, Default)]
pub struct Level(AtomicI64);

/// Answers by status code, 100 to 599.
#[derive(Debug)]
pub struct Codes(Box<[Counter; Codes::COUNT]>);

/// Durations in buckets, as Prometheus counts them.
#[derive(Debug, Default)]
pub struct Histogram {
    /// The last one has what is above all [`BUCKETS`].
    buckets: [Counter; BUCKETS.len() + 1],
    nanoseconds: Counter,
}

/// Upper bounds of the buckets of a [`Histogram`], in seconds: 0.5 ms to 10 s.
pub const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// What a [`Histogram`] held at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramSnapshot {
    /// Observations at or below each bound of [`BUCKETS`].
    pub cumulative: [u64; BUCKETS.len()],
    /// All observations.
    pub count: u64,
    /// Their sum, in seconds.
    pub sum: f64,
}

// === impl Counter ===

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

// === impl Level ===

impl Level {
    /// One more; the caller's `Drop` counts it out.
    pub(crate) fn enter(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// One less.
    pub(crate) fn leave(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// How many there are.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed).try_into().unwrap_or(0)
    }
}

// === impl Codes ===

impl Codes {
    const FIRST: u16 = 100;
    const COUNT: usize = 500;

    /// One more answer with this status; anything outside 100 to 599 counts as 599.
    pub fn increment(&self, status: u16) {
        let index = usize::from(status.wrapping_sub(Self::FIRST)).min(Self::COUNT - 1);
        self.0[index].increment();
    }

    /// Each status that was counted, with its number, in ascending order.
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
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        self.buckets[BUCKETS.partition_point(|bound| *bound < seconds)].increment();
        self.nanoseconds.add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// What it holds now.
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
        assert_eq!(codes.counted().collect::<Vec<_>>(), [(100, 1), (200, 2), (599, 3)]);
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
