//! Samples the processes of a subject and their memory twice a second.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tests::process::Process;

use crate::ledger::Ledger;
use crate::subject::Place;

const PERIOD: Duration = Duration::from_millis(500);
/// The time over which memory under load is a median.
const SPAN: Duration = Duration::from_secs(5);

/// One sample.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// The time since the start.
    pub(crate) at: Duration,
    /// The process that the PID file names.
    pub(crate) main: Process,
    /// Its resident memory, in bytes.
    pub(crate) main_memory: u64,
    /// The number of processes.
    pub(crate) processes: usize,
    /// The memory of all processes, in bytes. Shared memory is counted once.
    pub(crate) memory: u64,
}

/// Takes samples in a thread until it is stopped.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    samples: Arc<Mutex<Vec<Sample>>>,
    thread: JoinHandle<()>,
}

/// All samples of a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen(pub(crate) Vec<Sample>);

// ===== impl Watch =====

impl Watch {
    /// Starts to take samples.
    pub(crate) fn start(place: Place, ledger: Arc<Ledger>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let samples = Arc::new(Mutex::new(Vec::new()));
        let (stopped, all) = (Arc::clone(&stop), Arc::clone(&samples));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let sample = look(&place, ledger.now());
                all.lock().expect("no thread panics while it holds this").extend(sample);
                thread::sleep(PERIOD);
            }
        });
        Self { stop, samples, thread }
    }

    /// Stops and returns the samples.
    pub(crate) fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("reading /proc does not panic");
        Seen(self.samples.lock().expect("no thread panics while it holds this").clone())
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
    /// Returns the memory of all processes in the [`SPAN`] before `at`, in bytes.
    pub(crate) fn memory_at(&self, at: Duration) -> u64 {
        let within = self.0.iter().filter(|sample| (at.saturating_sub(SPAN)..=at).contains(&sample.at));
        let mut values: Vec<u64> = within.map(|sample| sample.memory).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or_default()
    }

    /// Returns the average number of processes.
    pub(crate) fn average_processes(&self) -> f64 {
        let sum: usize = self.0.iter().map(|sample| sample.processes).sum();
        sum as f64 / self.0.len().max(1) as f64
    }

    /// Returns the highest number of processes in a sample.
    pub(crate) fn most_processes(&self) -> usize {
        self.0.iter().map(|sample| sample.processes).max().unwrap_or_default()
    }

    /// Returns the most memory of all processes in a sample, in bytes.
    pub(crate) fn most_memory(&self) -> u64 {
        self.0.iter().map(|sample| sample.memory).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod checks {
    use super::*;

    #[test]
    fn memory_is_the_median_of_the_last_samples() {
        let sample = |second, memory| Sample {
            at: Duration::from_secs(second),
            main: Process(1),
            main_memory: 0,
            processes: 1 + usize::from(second >= 10),
            memory,
        };
        let samples = (0..20).map(|second| sample(second, if second == 18 { 900 } else { second }));
        let seen = Seen(samples.collect());
        assert_eq!(seen.memory_at(Duration::from_secs(19)), 17);
        assert_eq!((seen.most_processes(), seen.most_memory()), (2, 900));
        assert!((seen.average_processes() - 1.5).abs() < 0.01);
    }
}
