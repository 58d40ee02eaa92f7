//! Samples the memory and the descriptors of the daemon four times a second.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tests::process::Process;

const PERIOD: Duration = Duration::from_millis(250);
/// The number of samples whose median is the current value. A single sample can contain a connection that is just
/// opened.
const CURRENT: usize = 4;

/// The memory and the descriptors of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// The resident memory, in bytes.
    pub(crate) memory: u64,
    /// The number of open descriptors.
    pub(crate) descriptors: u64,
}

/// Takes samples in a thread until it is dropped.
pub(crate) struct Gauge {
    stop: Arc<AtomicBool>,
    taken: Arc<Mutex<Taken>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: Vec<Reading>,
    most: Reading,
}

// ===== impl Gauge =====

impl Gauge {
    /// Starts to take samples.
    pub(crate) fn start(process: Process) -> Self {
        let (stop, taken) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Taken::default())));
        let (stopped, samples) = (Arc::clone(&stop), Arc::clone(&taken));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let reading = Reading::of(process);
                lock(&samples).add(reading);
                thread::sleep(PERIOD);
            }
        });
        Self { stop, taken, thread: Some(thread) }
    }

    /// Returns the medians of the latest samples.
    pub(crate) fn now(&self) -> Reading {
        lock(&self.taken).median_of(CURRENT)
    }

    /// Returns the medians of the samples in the latest `span`.
    pub(crate) fn over(&self, span: Duration) -> Reading {
        let count = span.as_millis() / PERIOD.as_millis();
        lock(&self.taken).median_of(usize::try_from(count).expect("a run is short"))
    }

    /// Returns the highest values since [`Self::forget_most`] was called.
    pub(crate) fn most(&self) -> Reading {
        lock(&self.taken).most
    }

    /// Begins a new search for the highest values.
    pub(crate) fn forget_most(&self) {
        lock(&self.taken).most = Reading::default();
    }

    /// Waits until the current value is a median of new samples.
    pub(crate) fn refresh(&self) {
        let taken = || lock(&self.taken).all.len();
        let enough = taken() + CURRENT;
        while taken() < enough {
            thread::sleep(PERIOD);
        }
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It does not panic, and there is nothing to do if it did.
            let _ = thread.join();
        }
    }
}

// ===== impl Taken =====

impl Taken {
    fn add(&mut self, reading: Reading) {
        self.all.push(reading);
        self.most.memory = self.most.memory.max(reading.memory);
        self.most.descriptors = self.most.descriptors.max(reading.descriptors);
    }

    fn median_of(&self, count: usize) -> Reading {
        let latest = &self.all[self.all.len().saturating_sub(count)..];
        let median = |of: fn(&Reading) -> u64| {
            let mut values: Vec<u64> = latest.iter().map(of).collect();
            values.sort_unstable();
            values.get(values.len() / 2).copied().unwrap_or_default()
        };
        Reading { memory: median(|taken| taken.memory), descriptors: median(|taken| taken.descriptors) }
    }
}

// ===== impl Reading =====

impl Reading {
    fn of(process: Process) -> Self {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", process.0)).map_or(0, Iterator::count);
        Self { memory: process.resident_bytes(), descriptors: descriptors as u64 }
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().expect("no thread panics while it holds this")
}

#[cfg(test)]
mod checks {
    use super::*;

    #[test]
    fn a_reading_is_the_median_of_the_latest_samples() {
        let mut taken = Taken::default();
        for value in [1, 2, 90, 4, 5, 3] {
            taken.add(Reading { memory: value, descriptors: 2 * value });
        }
        assert_eq!(taken.median_of(5), Reading { memory: 4, descriptors: 8 });
        assert_eq!(taken.median_of(100), Reading { memory: 4, descriptors: 8 });
        assert_eq!(taken.most, Reading { memory: 90, descriptors: 180 });
    }

    #[test]
    fn a_gauge_reads_memory_and_descriptors() {
        let gauge = Gauge::start(Process(std::process::id()));
        gauge.refresh();
        assert!(gauge.now().memory > 100_000 && gauge.now().descriptors > 2);
        assert!(gauge.most().memory >= gauge.now().memory);
    }
}
