//! What a subject is made of, looked at twice a second: its processes, their memory, their sockets.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tests::process::Process;

use crate::ledger::Ledger;
use crate::subject::Place;

const PERIOD: Duration = Duration::from_millis(500);

/// One look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// Since the start.
    pub(crate) at: Duration,
    /// The process that the pid file names.
    pub(crate) main: Process,
    /// Its resident memory, in bytes.
    pub(crate) main_memory: u64,
    /// Number of processes.
    pub(crate) processes: usize,
    /// The memory of all of them, in bytes; what they share is counted once.
    pub(crate) memory: u64,
}

/// Looks until it is told to stop.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    samples: Arc<Mutex<Vec<Sample>>>,
    thread: JoinHandle<()>,
}

/// All that was seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen(pub(crate) Vec<Sample>);

// ===== impl Watch =====

impl Watch {
    /// Begins to look.
    pub(crate) fn start(place: Place, ledger: Arc<Ledger>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let samples = Arc::new(Mutex::new(Vec::new()));
        let (stopped, all) = (Arc::clone(&stop), Arc::clone(&samples));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let sample = look(&place, ledger.now());
                all.lock().expect("nobody panics with it").extend(sample);
                thread::sleep(PERIOD);
            }
        });
        Self { stop, samples, thread }
    }

    /// Stops, and returns what was seen.
    pub(crate) fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("looking at /proc does not panic");
        Seen(self.samples.lock().expect("nobody panics with it").clone())
    }
}

fn look(place: &Place, at: Duration) -> Option<Sample> {
    let main = place.main()?;
    let all = place.processes();
    let memory = all.iter().map(|process| process.proportional_bytes()).sum();
    Some(Sample { at, main, main_memory: main.resident_bytes(), processes: all.len(), memory })
}

// ===== impl Seen =====

impl Seen {
    /// The processes that the pid file named, one after the other, each with the memory that it had once it had run for
    /// `warm_up`, and that at its end: the medians over a `span`.
    pub(crate) fn generations(&self, warm_up: Duration, span: Duration) -> Vec<(Process, u64, u64)> {
        let same = |one: &Sample, other: &Sample| one.main == other.main;
        let each = self.0.chunk_by(same).map(|samples| {
            let (first, last) = (samples[0].at, samples[samples.len() - 1].at);
            let memory = |from, to| median(samples, from, to, |sample| sample.main_memory);
            let warm = (first + warm_up).min(last);
            (samples[0].main, memory(warm, warm + span), memory(last.saturating_sub(span), last))
        });
        each.collect()
    }

    /// The memory of all processes in the time before this.
    pub(crate) fn memory_at(&self, at: Duration, span: Duration) -> u64 {
        median(&self.0, at.saturating_sub(span), at, |sample| sample.memory)
    }

    /// How many processes there were on average.
    pub(crate) fn average_processes(&self) -> f64 {
        let sum: usize = self.0.iter().map(|sample| sample.processes).sum();
        sum as f64 / self.0.len().max(1) as f64
    }

    /// The most processes at a time.
    pub(crate) fn most_processes(&self) -> usize {
        self.0.iter().map(|sample| sample.processes).max().unwrap_or_default()
    }

    /// The most memory at a time, of all processes, in bytes.
    pub(crate) fn most_memory(&self) -> u64 {
        self.0.iter().map(|sample| sample.memory).max().unwrap_or_default()
    }
}

fn median(samples: &[Sample], from: Duration, to: Duration, of: impl Fn(&Sample) -> u64) -> u64 {
    let within = samples.iter().filter(|sample| (from..=to).contains(&sample.at));
    let mut values: Vec<u64> = within.map(of).collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod checks {
    use super::*;

    #[test]
    fn memory_is_that_of_each_process_after_its_warm_up_and_at_its_end() {
        let sample = |second, main, main_memory| Sample {
            at: Duration::from_secs(second),
            main: Process(main),
            main_memory,
            processes: 1 + usize::from(main > 1),
            memory: 2 * main_memory,
        };
        let first = (0..20).map(|second| sample(second, 1, 10 + second));
        let seen = Seen(first.chain((20..40).map(|second| sample(second, 2, 5))).collect());
        let generations = seen.generations(Duration::from_secs(10), Duration::from_secs(4));
        assert_eq!(generations, [(Process(1), 22, 27), (Process(2), 5, 5)]);
        assert_eq!((seen.most_processes(), seen.most_memory()), (2, 58));
        assert!((seen.average_processes() - 1.5).abs() < 0.01);
    }
}
