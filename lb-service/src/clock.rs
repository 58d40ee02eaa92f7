//! The clock, for code that Pingora calls without passing the time.
//!
//! Every decision takes the time as an argument ([`Now`]). A [`Policy`](crate::Policy) and a health check cannot,
//! because Pingora's traits have no parameter for it. They read a [`Clock`]: the system's, or a [`ManualClock`] that a
//! test or a simulation moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A source of the time. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<ManualClock>);

/// The time and the random number that one step of a decision uses.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// The time.
    pub time: Instant,
    /// A random number from 0 to below 1.
    pub draw: f64,
}

/// A clock that stands still until a test or a simulation advances it. Clones share it.
#[derive(Clone, Debug)]
pub struct ManualClock {
    began: Instant,
    nanoseconds: Arc<AtomicU64>,
}

// === impl Clock ===

impl Clock {
    /// The system's monotonic clock.
    pub fn system() -> Self {
        Self(None)
    }

    /// Creates a clock that stands still, and the handle that advances it.
    pub fn manual() -> (Self, ManualClock) {
        let manual = ManualClock { began: Instant::now(), nanoseconds: Arc::default() };
        (Self(Some(manual.clone())), manual)
    }

    /// The time.
    pub fn now(&self) -> Instant {
        self.0.as_ref().map_or_else(Instant::now, ManualClock::now)
    }
}

// === impl ManualClock ===

impl ManualClock {
    /// Returns the time.
    pub fn now(&self) -> Instant {
        self.began + Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed))
    }

    /// Advances the time.
    pub fn advance(&self, by: Duration) {
        let nanoseconds = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_stands_still_until_it_is_moved() {
        let (clock, manual) = Clock::manual();
        let before = clock.now();
        assert_eq!(clock.now(), before);
        manual.advance(Duration::from_secs(3));
        assert_eq!(clock.now() - before, Duration::from_secs(3));
    }
}
