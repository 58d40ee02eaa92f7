//! What time it is, for code that Pingora calls without telling it.
//!
//! Whatever decides is given the time as an argument. Only a [`Policy`](crate::Policy) and a health check cannot be:
//! Pingora's traits have no place for it. They ask a clock, which is the system's, or one whose hands a test or a
//! simulation moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A source of the time. Clones show the same time.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Hands>);

/// The hands of a clock that stands still until it is told.
#[derive(Clone, Debug)]
pub struct Hands {
    began: Instant,
    nanoseconds: Arc<AtomicU64>,
}

// === impl Clock ===

impl Clock {
    /// The system's monotonic clock.
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that stands still, and its hands.
    pub fn manual() -> (Self, Hands) {
        let hands = Hands { began: Instant::now(), nanoseconds: Arc::default() };
        (Self(Some(hands.clone())), hands)
    }

    /// The time.
    pub fn now(&self) -> Instant {
        self.0.as_ref().map_or_else(Instant::now, Hands::now)
    }
}

// === impl Hands ===

impl Hands {
    /// The time they show.
    pub fn now(&self) -> Instant {
        self.began + Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed))
    }

    /// Moves them forward.
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
        let (clock, hands) = Clock::manual();
        let before = clock.now();
        assert_eq!(clock.now(), before);
        hands.advance(Duration::from_secs(3));
        assert_eq!(clock.now() - before, Duration::from_secs(3));
    }
}
