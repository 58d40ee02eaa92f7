//! The model of a backend: its service times, its capacity, and its faults over time.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;

/// The distribution of the service time of a request, with the given mean.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Service {
    /// The time is constant.
    Constant(Duration),
    /// The time is memoryless, as in most models of queueing theory.
    Exponential(Duration),
    /// The time has the usual shape of real response times, with a long tail. `sigma` is that of the logarithm.
    LogNormal { mean: Duration, sigma: f64 },
}

/// The faults of a backend, each as the share of the requests that it affects.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fault {
    /// The addition to the service time, as a multiple of it: 9 means ten times as long.
    pub(crate) slower: f64,
    /// The share of connections that are refused. If all are, the health checks fail.
    pub(crate) refuses: f64,
    /// The share of connections that break before a response.
    pub(crate) resets: f64,
    /// The share of requests that get a 503 at once.
    pub(crate) unavailable: f64,
    /// The share of requests that never get a response.
    pub(crate) hangs: f64,
}

/// The schedule of a fault, in seconds of virtual time.
#[derive(Clone, Debug, Default)]
pub(crate) enum When {
    #[default]
    Never,
    Always(Fault),
    During(Range<f64>, Fault),
    /// The fault applies in every second interval of this length.
    Flapping(f64, Fault),
}

/// The properties of a backend.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    /// The number of requests that the backend serves at the same time; the others wait inside it.
    pub(crate) servers: usize,
    pub(crate) service: Service,
    pub(crate) when: When,
}

/// A request at a backend: its number and the number of its attempt.
pub(crate) type Job = (usize, u32);

/// The reception of a request at a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reception {
    Refused,
    Reset,
    Unavailable,
    Hung,
    /// The request is served, now or later.
    Taken,
}

/// A running backend.
#[derive(Debug)]
pub(crate) struct Origin {
    model: Model,
    busy: usize,
    waiting: VecDeque<Job>,
}

// === impl Service ===

impl Service {
    pub(crate) fn mean(self) -> Duration {
        match self {
            Self::Constant(mean) | Self::Exponential(mean) | Self::LogNormal { mean, .. } => mean,
        }
    }

    fn sample(self, rng: &mut Rng) -> f64 {
        let mean = self.mean().as_secs_f64();
        match self {
            Self::Constant(_) => mean,
            Self::Exponential(_) => mean * exponential(rng),
            // The mean of exp(N(m, s²)) is exp(m + s²/2).
            Self::LogNormal { sigma, .. } => mean * (sigma * normal(rng) - sigma * sigma / 2.0).exp(),
        }
    }
}

/// Returns a random number with mean 1: the time between two events of a Poisson process.
pub(crate) fn exponential(rng: &mut Rng) -> f64 {
    -(1.0 - rng.f64()).ln()
}

/// Returns a random number with mean 0 and deviation 1 (Box and Muller, 1958).
fn normal(rng: &mut Rng) -> f64 {
    (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos()
}

// === impl Fault ===

impl Fault {
    pub(crate) fn slower(times: f64) -> Self {
        Self { slower: times - 1.0, ..Self::default() }
    }

    pub(crate) fn refuses() -> Self {
        Self { refuses: 1.0, ..Self::default() }
    }

    pub(crate) fn unavailable(share: f64) -> Self {
        Self { unavailable: share, ..Self::default() }
    }

    fn reception(&self, draw: f64) -> Reception {
        let faults = [
            (self.refuses, Reception::Refused),
            (self.resets, Reception::Reset),
            (self.unavailable, Reception::Unavailable),
            (self.hangs, Reception::Hung),
        ];
        let mut below = 0.0;
        let met = faults.into_iter().find(|(share, _)| {
            below += share;
            draw < below
        });
        met.map_or(Reception::Taken, |(_, reception)| reception)
    }
}

// === impl When ===

impl When {
    /// Returns whether a request can wait forever.
    pub(crate) fn may_hang(&self) -> bool {
        match self {
            Self::Never => false,
            Self::Always(fault) | Self::During(_, fault) | Self::Flapping(_, fault) => fault.hangs > 0.0,
        }
    }

    fn fault(&self, seconds: f64) -> Fault {
        match self {
            Self::Always(fault) => *fault,
            Self::During(range, fault) if range.contains(&seconds) => *fault,
            Self::Flapping(interval, fault) if (seconds / interval) as u64 % 2 == 1 => *fault,
            Self::Never | Self::During(..) | Self::Flapping(..) => Fault::default(),
        }
    }
}

// === impl Model ===

impl Model {
    /// Returns a backend with exponential times of 10 ms on average and without faults.
    pub(crate) fn new(servers: usize) -> Self {
        Self { servers, service: Service::Exponential(Duration::from_millis(10)), when: When::Never }
    }

    /// Returns the requests per second that the backend can serve without faults.
    pub(crate) fn capacity(&self) -> f64 {
        self.servers as f64 / self.service.mean().as_secs_f64()
    }

    pub(crate) fn is_down(&self, seconds: f64) -> bool {
        self.when.fault(seconds).refuses >= 1.0
    }
}

// === impl Origin ===

impl Origin {
    pub(crate) fn new(model: Model) -> Self {
        Self { model, busy: 0, waiting: VecDeque::new() }
    }

    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    /// Draws the reception of the next request.
    pub(crate) fn receive(&self, seconds: f64, rng: &mut Rng) -> Reception {
        self.model.when.fault(seconds).reception(rng.f64())
    }

    /// Takes a request and returns its service time in seconds, unless it has to wait.
    pub(crate) fn take(&mut self, job: Job, seconds: f64, rng: &mut Rng) -> Option<f64> {
        if self.busy == self.model.servers {
            self.waiting.push_back(job);
            return None;
        }
        self.busy += 1;
        Some(self.work(seconds, rng))
    }

    /// Completes a request. Returns the next one and its service time in seconds.
    pub(crate) fn next(&mut self, seconds: f64, rng: &mut Rng) -> Option<(Job, f64)> {
        let Some(job) = self.waiting.pop_front() else {
            self.busy -= 1;
            return None;
        };
        Some((job, self.work(seconds, rng)))
    }

    fn work(&self, seconds: f64, rng: &mut Rng) -> f64 {
        self.model.service.sample(rng) * (1.0 + self.model.when.fault(seconds).slower)
    }
}
