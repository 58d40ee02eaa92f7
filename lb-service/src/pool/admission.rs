//! Whether a request is placed now, waits, or is rejected.
//!
//! [`Dispatch::admit`] decides. Its caller acts on the result:
//!
//! - [`Placed`](Admission::Placed): send the request to the backend of [`Dispatch::attempt`].
//! - [`Wait`](Admission::Wait): suspend the request until its [`turn`](Dispatch::turn) comes, but no longer than
//!   `until`, and ask again.
//! - [`Rejected`](Admission::Rejected): end the request.
//!
//! **Precedence.** A new request that finds others waiting joins the queue behind them. A retry arrived before them, so
//! it is placed at once if a backend has room.
//!
//! **Wake-up.** A place that becomes free and a change of health give the front of the queue its turn. The end of an
//! ejection gives no turn, so every waiting request asks again at that moment, and the first one to ask gives the front
//! its turn.
//!
//! The proxy and the simulation both drive this, so the simulation shows what the proxy does.

use std::sync::Arc;
use std::time::Instant;

use super::Pool;
use super::dispatch::{Dispatch, Waiting};
use super::pick::PickError;
use super::queue::{QueueFull, Turn};
use crate::clock::Now;

/// The decision about a request that needs a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The request has an attempt.
    Placed,
    /// The request waits in the queue.
    Wait {
        /// The time to ask again if the turn has not come before.
        until: Instant,
    },
    /// The request does not get a backend.
    Rejected(AdmissionError),
}

/// The reason why a request does not get a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdmissionError {
    /// No backend is available.
    Unavailable,
    /// All backends are at their limits, and the queue is full.
    QueueFull,
    /// The request waited in the queue for as long as the pool allows.
    QueueTimeout,
}

// === impl Dispatch ===

impl Dispatch {
    /// Places the request, lets it wait, or rejects it. An empty `key` means that there is none.
    ///
    /// `pool` may be a successor of the pool that an earlier call named: both have the same queue.
    pub fn admit(&mut self, pool: &Arc<Pool>, key: &[u8], at: Now) -> Admission {
        let tries = self.may_try(pool);
        if tries {
            match self.place(pool, key, at) {
                Ok(()) => return self.leave(Admission::Placed),
                Err(PickError::Unavailable) => return self.reject(AdmissionError::Unavailable),
                Err(PickError::Full) => {}
            }
        }
        match &self.waiting {
            None => self.join(pool, at.time),
            Some(waiting) if at.time >= waiting.deadline => self.reject(AdmissionError::QueueTimeout),
            Some(waiting) => {
                let deadline = waiting.deadline;
                if !tries {
                    pool.queue().wake();
                }
                wait(pool, deadline, at.time)
            }
        }
    }

    /// Returns the turn of a waiting request; `None` if it does not wait.
    pub fn turn(&self) -> Option<Turn> {
        self.waiting.as_ref().map(|waiting| waiting.waiter.turn())
    }

    fn may_try(&self, pool: &Pool) -> bool {
        match &self.waiting {
            Some(waiting) => waiting.waiter.take_turn(),
            None => !self.is_first() || pool.queue().is_empty(),
        }
    }

    fn join(&mut self, pool: &Pool, now: Instant) -> Admission {
        match pool.queue().join() {
            Ok(waiter) => {
                let deadline = now + pool.queue_timeout;
                self.waiting = Some(Waiting { waiter, deadline });
                wait(pool, deadline, now)
            }
            Err(QueueFull) => Admission::Rejected(AdmissionError::QueueFull),
        }
    }

    fn reject(&mut self, why: AdmissionError) -> Admission {
        self.leave(Admission::Rejected(why))
    }

    fn leave(&mut self, admission: Admission) -> Admission {
        self.waiting = None;
        admission
    }
}

fn wait(pool: &Pool, deadline: Instant, now: Instant) -> Admission {
    Admission::Wait { until: pool.next_return(now).map_or(deadline, |at| at.min(deadline)) }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use pingora::lb::HealthRegistry;

    use super::*;
    use crate::clock::{Clock, ManualClock};
    use crate::policy::PolicyConfig;
    use crate::pool::{BackendSettings, PoolSettings, Replayability, UpstreamError};

    const SECOND: Duration = Duration::from_secs(1);
    const GET: Replayability = Replayability {
        idempotent: true,
        replayable: true,
        response_begun: false,
        stale: false,
        nothing_sent: false,
    };

    /// Returns backends that take one request at a time each, and a queue in which 2 requests can wait for the time
    /// `queue`.
    fn pool(backends: u8, queue: Duration) -> (Arc<Pool>, ManualClock) {
        let backend = |last| BackendSettings {
            max_requests: NonZeroU32::new(1),
            ..BackendSettings::new(([10, 0, 0, last], 80).into())
        };
        let mut settings = PoolSettings::new("web", (1..=backends).map(backend).collect());
        settings.queue = 2;
        settings.timeouts.queue = queue;
        settings.outlier_detection.consecutive_failures = 1;
        let (clock, manual) = Clock::manual();
        let registry = Arc::new(HealthRegistry::new());
        (Arc::new(Pool::with_policy(&settings, registry, None, PolicyConfig::default(), &clock)), manual)
    }

    fn admit(dispatch: &mut Dispatch, pool: &Arc<Pool>, manual: &ManualClock) -> Admission {
        dispatch.admit(pool, b"", Now { time: manual.now(), draw: 0.5 })
    }

    fn has_turn(dispatch: &Dispatch) -> bool {
        dispatch.turn().is_some_and(|turn| turn.is_given())
    }

    #[test]
    fn a_request_is_placed_then_waits_then_is_rejected() {
        let (pool, manual) = pool(1, SECOND);
        let mut requests: [Dispatch; 4] = Default::default();
        let until = manual.now() + SECOND;
        let found = requests.each_mut().map(|request| admit(request, &pool, &manual));
        let wait = Admission::Wait { until };
        assert_eq!(found, [Admission::Placed, wait, wait, Admission::Rejected(AdmissionError::QueueFull)]);
    }

    #[test]
    fn a_place_that_becomes_free_goes_to_the_front_and_not_to_a_new_request() {
        let (pool, manual) = pool(1, SECOND);
        let [mut first, mut front, mut new]: [Dispatch; 3] = Default::default();
        admit(&mut first, &pool, &manual);
        admit(&mut front, &pool, &manual);
        assert!(
            matches!(admit(&mut front, &pool, &manual), Admission::Wait { .. }),
            "its first turn finds no place"
        );
        assert!(!has_turn(&front));
        drop(first);
        assert!(matches!(admit(&mut new, &pool, &manual), Admission::Wait { .. }));
        assert!(has_turn(&front) && !has_turn(&new));
        assert_eq!(admit(&mut front, &pool, &manual), Admission::Placed);
        assert!(front.turn().is_none() && has_turn(&new), "the next one is the front now");
    }

    #[test]
    fn a_wait_ends_at_its_deadline() {
        let (pool, manual) = pool(1, SECOND);
        let [mut first, mut front]: [Dispatch; 2] = Default::default();
        admit(&mut first, &pool, &manual);
        admit(&mut front, &pool, &manual);
        manual.advance(SECOND);
        assert_eq!(admit(&mut front, &pool, &manual), Admission::Rejected(AdmissionError::QueueTimeout));
        assert!(pool.queue().is_empty());
    }

    #[test]
    fn a_retry_does_not_queue_behind_new_requests() {
        let (pool, manual) = pool(2, SECOND);
        let [mut retry, mut other, mut waiting]: [Dispatch; 3] = Default::default();
        admit(&mut retry, &pool, &manual);
        admit(&mut other, &pool, &manual);
        admit(&mut waiting, &pool, &manual);
        assert!(retry.broke(&pool, UpstreamError::Reset, GET, Now { time: manual.now(), draw: 0.5 }));
        drop(other);
        retry.end_attempt();
        assert_eq!(admit(&mut retry, &pool, &manual), Admission::Placed);
    }

    #[test]
    fn a_waiting_request_asks_again_when_an_ejection_ends() {
        let (pool, manual) = pool(2, 100 * SECOND);
        let [mut failed, mut held, mut front]: [Dispatch; 3] = Default::default();
        admit(&mut failed, &pool, &manual);
        admit(&mut held, &pool, &manual);
        let post = Replayability { idempotent: false, ..GET };
        assert!(!failed.broke(&pool, UpstreamError::Reset, post, Now { time: manual.now(), draw: 0.5 }));
        drop(failed);
        let returns = pool.next_return(manual.now()).expect("the backend is ejected");
        let waits = Admission::Wait { until: returns };
        assert_eq!([(); 2].map(|()| admit(&mut front, &pool, &manual)), [waits; 2]);
        assert!(!has_turn(&front));
        manual.advance(returns - manual.now());
        assert!(matches!(admit(&mut front, &pool, &manual), Admission::Wait { .. }));
        assert!(has_turn(&front));
        assert_eq!(admit(&mut front, &pool, &manual), Admission::Placed);
    }
}
