//! Retries: whether a failed request is sent again, after which pause, and how many retries a pool can have in flight.
//!
//! A request can be sent again only if that cannot repeat an effect: either no part of it was sent, or its method is
//! idempotent, which a proxy must require (RFC 9110, 9.2.2). [`decide`] looks at the request and the settings, and
//! distinguishes three ways:
//!
//! - **Replay**: a connection that was kept alive ended before the first byte of a response. Servers close idle
//!   connections at any time, so this is not a failure of the backend, and RFC 9112, 9.3.1 lets a client send an
//!   idempotent request again over a new connection, as well as any request of which no byte was sent. A replay uses
//!   neither an attempt nor a place in the budget. It is done once: a client should not automatically retry a failed
//!   automatic retry (RFC 9110, 9.2.2).
//! - **Reconnect**: no connection could be made, or it ended before the first byte of the request. No part of the
//!   request was sent, so the method does not matter, and the backend did no work. A reconnect uses an attempt, but no
//!   place in the budget.
//! - **Retry**: everything else. The backend might have done the work already, so in an outage each retry adds load
//!   where there is too much of it. A retry uses an attempt and a place in the [`Budget`].
//!
//! The second attempt of a [connection race](super::race) takes a place in the budget as well, but no attempt.
//!
//! `Pool::retry` adds the conditions of the pool: another backend must be available, and a retry needs a place in the
//! budget, with one exception. If a connection broke while another backend is available, a single backend has ended,
//! and all its requests in flight are retried.
//!
//! The budget limits the retries in flight to a share of the requests in flight, like Envoy's retry budgets
//! (`source/common/upstream/upstream_impl.h`, `budget_percent` and `min_retry_concurrency`). The idea that the
//! allowance follows the traffic instead of being a number per request comes from Finagle (`RetryBudget`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::Pool;
use super::backend::Backend;
use super::pick::Tried;
use super::settings::{RetryCause, RetrySettings};
use crate::clock::Now;

/// The facts about a request after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// The failure. A stale connection counts as [`RetryCause::Reset`].
    pub cause: RetryCause,
    /// Whether the method is idempotent (RFC 9110, 9.2.2).
    pub idempotent: bool,
    /// Whether the body can be sent again: there is none, none of it was read yet, or all that was read is
    /// kept.
    pub replayable: bool,
    /// Whether bytes of a response, including one with a 1xx status, have reached the client.
    pub response_begun: bool,
    /// The attempts so far, including this one. A replay and the second attempt of a connection race do not count.
    pub tries: usize,
    /// Whether the connection was kept alive from an earlier request and ended before the first byte of a
    /// response.
    pub stale: bool,
    /// Whether the backend certainly has no byte of the request.
    pub nothing_sent: bool,
    /// Whether this request was already replayed because of a stale connection.
    pub replayed: bool,
}

/// The decision about a request after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The client gets an error.
    GiveUp(WhyNot),
    /// The request is sent again at once and uses neither attempts nor budget.
    Replay,
    /// The request goes to another backend after [`backoff`], outside the budget.
    Reconnect,
    /// The request goes to another backend after [`backoff`] if there is a place in the [`Budget`], or if the pool
    /// finds that a single backend has ended and this is not an outage.
    Retry,
}

/// The reason for not retrying a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhyNot {
    /// All attempts of the settings are used up.
    Attempts,
    /// The settings do not include this failure.
    NotConfigured,
    /// The backend might have processed the request, and processing it twice can have another effect.
    NotIdempotent,
    /// The body was sent and is no longer kept.
    BodyGone,
    /// The client has received a part of a response.
    ResponseBegun,
}

/// The limit of the retries in flight of a pool, as a share of its requests.
#[derive(Debug)]
pub(crate) struct Budget {
    percent: u32,
    min_concurrent: u32,
    /// The retries in flight, shared with the budgets before and after this one.
    active: Arc<AtomicU64>,
}

/// A further attempt that the pool has decided.
#[derive(Debug)]
pub(super) struct Retry {
    /// The pause before the attempt.
    pub(super) pause: Duration,
    /// The place in the budget, kept until the attempt ends.
    pub(super) permit: Option<RetryPermit>,
    /// Whether the attempt only replaces a stale connection.
    pub(super) replay: bool,
}

/// The place of a retry in the budget, until this is dropped.
#[derive(Debug)]
pub(crate) struct RetryPermit(Arc<Budget>);

/// The longest pause before the first retry. It doubles with each further retry.
const BACKOFF_BASE: Duration = Duration::from_millis(25);
/// The longest pause before any retry.
const BACKOFF_MAX: Duration = Duration::from_millis(250);

/// Decides about a request after a failed attempt, as far as the request and the settings matter.
///
/// Reasons of the request come before reasons of the settings.
pub(super) fn decide(settings: &RetrySettings, failed: &Failed) -> Decision {
    if failed.response_begun {
        return Decision::GiveUp(WhyNot::ResponseBegun);
    }
    let nothing_sent = failed.nothing_sent || failed.cause == RetryCause::ConnectFailure;
    if !nothing_sent && !failed.idempotent {
        return Decision::GiveUp(WhyNot::NotIdempotent);
    }
    if !failed.replayable {
        return Decision::GiveUp(WhyNot::BodyGone);
    }
    if failed.cause != RetryCause::ConnectFailure && failed.stale && !failed.replayed {
        return Decision::Replay;
    }
    match obstacle(settings, failed) {
        Some(why) => Decision::GiveUp(why),
        None if nothing_sent => Decision::Reconnect,
        None => Decision::Retry,
    }
}

/// Returns the setting that excludes a retry. `None` means that the settings allow it.
fn obstacle(settings: &RetrySettings, failed: &Failed) -> Option<WhyNot> {
    if !settings.on.contains(failed.cause) {
        Some(WhyNot::NotConfigured)
    } else if failed.tries > settings.attempts {
        Some(WhyNot::Attempts)
    } else {
        None
    }
}

/// Returns the pause before the `retry`-th retry of a request, counted from 1, for a `random` from 0 up to but
/// excluding 1. Any other `random` counts as 0.
///
/// The pause is uniform between 0 and a bound that doubles: the "full jitter" of M. Brooker, "Exponential Backoff And
/// Jitter", AWS Architecture Blog, 2015. So requests that failed together do not return together.
pub(super) fn backoff(retry: usize, random: f64) -> Duration {
    let doublings = u32::try_from(retry.saturating_sub(1)).unwrap_or(u32::MAX);
    let bound = BACKOFF_BASE.saturating_mul(2u32.saturating_pow(doublings)).min(BACKOFF_MAX);
    let random = if (0.0..1.0).contains(&random) { random } else { 0.0 };
    bound.mul_f64(random)
}

// === impl Budget ===

impl Budget {
    /// Returns a budget of at most `percent` of the requests in flight, rounded down, but at least `min_concurrent`.
    pub(crate) fn new(percent: u32, min_concurrent: u32) -> Arc<Self> {
        Arc::new(Self { percent, min_concurrent, active: Arc::default() })
    }

    /// Returns the budget of these settings.
    pub(crate) fn of(settings: &RetrySettings) -> Arc<Self> {
        Self::new(settings.budget_percent, settings.min_concurrent)
    }

    /// Returns a budget with other limits that continues the count of retries in flight.
    pub(super) fn successor(&self, settings: &RetrySettings) -> Arc<Self> {
        let RetrySettings { budget_percent: percent, min_concurrent, .. } = *settings;
        Arc::new(Self { percent, min_concurrent, active: self.active.clone() })
    }

    /// Takes a place for a retry while the pool has `in_flight` requests; `None` if there is none.
    ///
    /// The limit is checked only here: retries that have begun continue when `in_flight` falls.
    pub(crate) fn try_begin(self: &Arc<Self>, in_flight: u64) -> Option<RetryPermit> {
        let limit = self.limit(in_flight);
        // No other data is published with this number, so `Relaxed` is enough: every exchange sees the latest value.
        let taken =
            self.active.fetch_update(Relaxed, Relaxed, |active| (active < limit).then_some(active + 1));
        taken.is_ok().then(|| RetryPermit(Arc::clone(self)))
    }

    /// Returns the maximum of retries in flight for this number of requests in flight.
    pub(crate) fn limit(&self, in_flight: u64) -> u64 {
        let share = u128::from(in_flight) * u128::from(self.percent) / 100;
        u64::try_from(share).unwrap_or(u64::MAX).max(u64::from(self.min_concurrent))
    }

    /// Returns the number of retries in flight.
    pub(crate) fn active(&self) -> u64 {
        self.active.load(Relaxed)
    }
}

// === impl Pool ===

impl Pool {
    /// Decides the next attempt of a request that `backend` has failed; `None` if there is to be none.
    pub(super) fn retry(&self, failed: &Failed, tried: &Tried, backend: &Backend, at: Now) -> Option<Retry> {
        let decision = decide(&self.settings.retries, failed);
        if decision == Decision::Replay {
            return Some(Retry { pause: Duration::ZERO, permit: None, replay: true });
        }
        if matches!(decision, Decision::GiveUp(_)) || !self.has_another(tried, backend, at.time) {
            return None;
        }
        let permit = match decision {
            Decision::Retry if self.is_budgeted(failed, tried, backend, at) => Some(self.retry_permit()?),
            _ => None,
        };
        self.shared.counters.retries.increment();
        Some(Retry { pause: backoff(failed.tries, at.draw), permit, replay: false })
    }

    /// Returns the time limit from the end of the request to the head of its response, for one attempt; `None` if there
    /// is none. `timeouts.connect` limits the time to connect.
    pub fn per_try(&self) -> Option<Duration> {
        self.settings.retries.per_try
    }

    /// Returns whether a retry needs a place in the budget. It needs none if a connection broke and another backend is
    /// available that did not fail its latest request: then a single backend has ended and this is not an outage. The
    /// requests in flight at that backend can be more than the budget. A budget of 0 allows no retry at all.
    fn is_budgeted(&self, failed: &Failed, tried: &Tried, backend: &Backend, at: Now) -> bool {
        failed.cause != RetryCause::Reset
            || self.shared.budget.limit(u64::MAX) == 0
            || self.others(tried, backend, at.time).all(|other| other.consecutive_failures() > 0)
    }

    /// Takes a place in the budget; `None` if there is none.
    pub(super) fn budget_place(&self) -> Option<RetryPermit> {
        self.shared.budget.try_begin(self.requests())
    }

    fn retry_permit(&self) -> Option<RetryPermit> {
        let permit = self.budget_place();
        if permit.is_none() {
            self.shared.counters.retries_denied.increment();
        }
        permit
    }
}

// === impl RetryPermit ===

impl Drop for RetryPermit {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::RetryOn;
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::{
        Just, Strategy, any, prop_assert, prop_assert_eq, prop_compose, prop_oneof, proptest,
    };
    use proptest::sample::select;

    /// Returns a GET without a body whose first attempt failed.
    fn failed(cause: RetryCause) -> Failed {
        Failed {
            cause,
            idempotent: true,
            replayable: true,
            response_begun: false,
            tries: 1,
            stale: false,
            nothing_sent: false,
            replayed: false,
        }
    }

    fn settings(attempts: usize, on: &[RetryCause]) -> RetrySettings {
        RetrySettings { attempts, on: on.iter().copied().collect(), ..RetrySettings::default() }
    }

    fn after_connecting() -> impl Iterator<Item = RetryCause> {
        RetryCause::ALL.into_iter().filter(|cause| *cause != RetryCause::ConnectFailure)
    }

    #[test]
    fn a_failed_request_has_one_more_attempt_by_default() {
        let settings = RetrySettings::default();
        for cause in after_connecting() {
            assert_eq!(decide(&settings, &failed(cause)), Decision::Retry, "{cause:?}");
            let second = Failed { tries: 2, ..failed(cause) };
            assert_eq!(decide(&settings, &second), Decision::GiveUp(WhyNot::Attempts), "{cause:?}");
        }
    }

    #[test]
    fn a_failed_connection_is_outside_the_budget_for_every_method() {
        let post = Failed { idempotent: false, ..failed(RetryCause::ConnectFailure) };
        assert_eq!(decide(&RetrySettings::default(), &post), Decision::Reconnect);
        assert_eq!(
            decide(&RetrySettings::default(), &Failed { tries: 2, ..post }),
            Decision::GiveUp(WhyNot::Attempts)
        );
    }

    #[test]
    fn a_failed_connection_after_the_body_was_read_needs_the_body() {
        let gone = Failed { replayable: false, ..failed(RetryCause::ConnectFailure) };
        assert_eq!(decide(&RetrySettings::default(), &gone), Decision::GiveUp(WhyNot::BodyGone));
    }

    #[test]
    fn a_failure_that_is_not_configured_is_not_retried() {
        for cause in RetryCause::ALL {
            let others: Vec<_> = RetryCause::ALL.into_iter().filter(|other| *other != cause).collect();
            let decision = decide(&settings(5, &others), &failed(cause));
            assert_eq!(decision, Decision::GiveUp(WhyNot::NotConfigured), "{cause:?}");
        }
    }

    #[test]
    fn a_post_that_was_sent_is_not_retried() {
        for cause in after_connecting() {
            let post = Failed { idempotent: false, ..failed(cause) };
            assert_eq!(decide(&settings(5, &[cause]), &post), Decision::GiveUp(WhyNot::NotIdempotent));
        }
    }

    #[test]
    fn a_stale_connection_is_replayed_once_without_attempts_or_configuration() {
        let never = settings(0, &[]);
        let stale = Failed { stale: true, ..failed(RetryCause::Reset) };
        assert_eq!(decide(&never, &stale), Decision::Replay);
        let again = Failed { replayed: true, ..stale };
        assert_eq!(decide(&never, &again), Decision::GiveUp(WhyNot::NotConfigured));
        assert_eq!(
            decide(&settings(0, &[RetryCause::Reset]), &again),
            Decision::GiveUp(WhyNot::Attempts),
            "the second time it is a reset like any other"
        );
        assert_eq!(decide(&settings(1, &[RetryCause::Reset]), &again), Decision::Retry);
    }

    #[test]
    fn a_request_of_which_no_byte_was_sent_is_sent_again_whatever_its_method() {
        let post = Failed { nothing_sent: true, idempotent: false, ..failed(RetryCause::Reset) };
        assert_eq!(decide(&RetrySettings::default(), &post), Decision::Reconnect);
        assert_eq!(decide(&settings(0, &[]), &Failed { stale: true, ..post }), Decision::Replay);
        let gone = Failed { replayable: false, ..post };
        assert_eq!(decide(&RetrySettings::default(), &gone), Decision::GiveUp(WhyNot::BodyGone));
    }

    #[test]
    fn a_stale_connection_does_not_make_a_post_safe() {
        let post = Failed { stale: true, idempotent: false, ..failed(RetryCause::Reset) };
        assert_eq!(decide(&RetrySettings::default(), &post), Decision::GiveUp(WhyNot::NotIdempotent));
        let gone = Failed { stale: true, replayable: false, ..failed(RetryCause::Reset) };
        assert_eq!(decide(&RetrySettings::default(), &gone), Decision::GiveUp(WhyNot::BodyGone));
    }

    #[test]
    fn the_bound_of_the_backoff_doubles_up_to_250_ms() {
        let bounds = [0, 1, 2, 3, 4, 5, 6, 100, usize::MAX].map(|n| (backoff(n, 0.5) * 2).as_millis());
        assert_eq!(bounds, [25, 25, 50, 100, 200, 250, 250, 250, 250]);
        assert_eq!(backoff(1, 0.0), Duration::ZERO);
        for strange in [f64::NAN, f64::INFINITY, -1.0, 1.0] {
            assert_eq!(backoff(3, strange), Duration::ZERO);
        }
    }

    #[test]
    fn the_budget_is_a_share_of_the_requests_in_flight_but_never_less_than_the_minimum() {
        let budget = Budget::of(&RetrySettings::default());
        let limits = [0, 1, 15, 19, 20, 24, 25, 1000, u64::MAX].map(|in_flight| budget.limit(in_flight));
        assert_eq!(limits, [3, 3, 3, 3, 4, 4, 5, 200, u64::MAX / 5]);
        assert_eq!(Budget::new(u32::MAX, 0).limit(u64::MAX), u64::MAX);
    }

    #[test]
    fn without_a_budget_there_is_no_retry() {
        assert!(Budget::new(0, 0).try_begin(1_000_000).is_none());
    }

    #[test]
    fn a_place_in_the_budget_is_free_after_its_permit_is_dropped() {
        let budget = Budget::new(0, 1);
        let first = budget.try_begin(0);
        assert!(first.is_some() && budget.try_begin(0).is_none());
        drop(first);
        assert_eq!(budget.active(), 0);
        assert!(budget.try_begin(0).is_some());
    }

    #[test]
    fn threads_never_get_more_than_the_limit() {
        const LIMIT: u64 = 5;
        let budget = Budget::new(50, 2);
        let (held, peak, begun) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let work = || {
            for _ in 0..20_000 {
                let Some(place) = budget.try_begin(2 * LIMIT) else { continue };
                peak.fetch_max(held.fetch_add(1, Relaxed) + 1, Relaxed);
                begun.fetch_add(1, Relaxed);
                std::thread::yield_now();
                held.fetch_sub(1, Relaxed);
                drop(place);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(work);
            }
        });
        assert!(peak.load(Relaxed) <= LIMIT, "{peak:?}");
        assert!(begun.load(Relaxed) > 0);
        assert_eq!(budget.active(), 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Begin(u64),
        End(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let in_flight = prop_oneof![0u64..100, Just(u64::MAX), any::<u64>()];
        prop_oneof![3 => in_flight.prop_map(Step::Begin), 1 => any::<usize>().prop_map(Step::End)]
    }

    prop_compose! {
        fn any_failure()(
            cause in select(&RetryCause::ALL[..]),
            (idempotent, replayable, response_begun) in any::<(bool, bool, bool)>(),
            (stale, nothing_sent, replayed) in any::<(bool, bool, bool)>(),
            tries in 1usize..6,
        ) -> Failed {
            Failed { cause, idempotent, replayable, response_begun, tries, stale, nothing_sent, replayed }
        }
    }

    proptest! {
        #[test]
        fn a_request_that_must_not_be_sent_twice_is_never_retried(
            failed in any_failure(),
            attempts in 0usize..5,
            on in vec(select(&RetryCause::ALL[..]), 0..6),
        ) {
            let on: RetryOn = on.into_iter().collect();
            let settings = RetrySettings { attempts, on, ..RetrySettings::default() };
            let decision = decide(&settings, &failed);
            if matches!(decision, Decision::GiveUp(_)) {
                return Ok(());
            }
            prop_assert!(!failed.response_begun && failed.replayable);
            let nothing_sent = failed.nothing_sent || failed.cause == RetryCause::ConnectFailure;
            prop_assert!(failed.idempotent || nothing_sent);
            match decision {
                Decision::Replay => prop_assert!(failed.stale && !failed.replayed),
                _ => prop_assert!(on.contains(failed.cause) && failed.tries <= attempts),
            }
        }

        #[test]
        fn a_backoff_stays_below_its_bound(retry in any::<usize>(), random in 0.0..1.0f64) {
            let wait = backoff(retry, random);
            let doublings = retry.saturating_sub(1).min(4);
            let bound = Duration::from_millis((25 << doublings).min(250));
            prop_assert!(wait <= bound);
            prop_assert!((wait.as_secs_f64() - bound.as_secs_f64() * random).abs() < 1e-6);
        }

        #[test]
        fn no_order_of_beginnings_and_ends_exceeds_the_budget(
            percent in 0u32..200,
            min_concurrent in 0u32..10,
            steps in vec(step(), 0..200),
        ) {
            let budget = Budget::new(percent, min_concurrent);
            let mut places = Vec::new();
            for step in steps {
                match step {
                    Step::Begin(in_flight) => {
                        let exact = u128::from(in_flight) * u128::from(percent) / 100;
                        let limit = exact.max(u128::from(min_concurrent));
                        let free = (places.len() as u128) < limit;
                        let place = budget.try_begin(in_flight);
                        prop_assert_eq!(place.is_some(), free);
                        places.extend(place);
                    }
                    Step::End(_) if places.is_empty() => {}
                    Step::End(index) => drop(places.swap_remove(index % places.len())),
                }
                prop_assert_eq!(budget.active(), places.len() as u64);
            }
            drop(places);
            prop_assert_eq!(budget.active(), 0);
        }
    }
}
