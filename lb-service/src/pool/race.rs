//! Connection races: a connection attempt that takes too long starts a second one, to another backend, and the first
//! connection that is ready carries the request.
//!
//! No byte of the request was sent before that, so a race is safe for every method. A backend whose host is down, or
//! whose queue of connections is full, costs a request `connect_race` instead of `timeouts.connect`. "Happy Eyeballs"
//! (RFC 8305) does the same with the addresses of a host.
//!
//! 1. [`Dispatch::race_after`](super::Dispatch) returns the time after which there is a race.
//! 2. `Dispatch::race` starts the second attempt. It takes a place in the retry budget, and keeps it as a retry does if
//!    it carries the request. It uses no attempt of `retries.attempts`.
//! 3. If one attempt fails, it drops out (`Dispatch::drop_out`), and the request goes on with the other one. If one is
//!    connected (`Dispatch::win`), the other one no longer belongs to the request, and goes on in the background as a
//!    [`Loser`]: its connection becomes idle, and its failure counts for ejection. A backend has at most one of them.
//! 4. `Dispatch::connected` ends the race.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Pool;
use super::attempt::Attempt;
use super::backend::{Backend, Background};
use super::reasons::UpstreamError;
use super::retry::RetryPermit;
use super::settings::{RetryCause, RetrySettings};

/// One of the two attempts of a race.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contestant {
    /// The attempt that took too long.
    First,
    /// The attempt that the race started.
    Second,
}

/// The result of a race.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RaceResult {
    /// The first attempt was connected first.
    First,
    /// The second attempt was connected first.
    Second,
    /// Neither was connected: both failed, or the client left.
    Neither,
    /// The race did not begin, because the retry budget was used up.
    Denied,
}

/// A race in progress. It is counted when it is dropped.
#[derive(Debug)]
pub(super) struct Race {
    /// The attempt that is not the current one of the dispatch, while both connect.
    pub(super) rival: Option<Attempt>,
    /// Which one the current attempt of the dispatch is.
    pub(super) current: Contestant,
    /// The place of the second attempt in the retry budget.
    permit: Option<RetryPermit>,
    pool: Arc<Pool>,
    result: RaceResult,
}

/// The facts about a request that decide whether it can race.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Racer {
    /// Whether the request belongs to a session.
    pub(super) has_session: bool,
    /// Whether the request has a key that is hashed.
    pub(super) has_key: bool,
    /// Whether the request had its race.
    pub(super) has_raced: bool,
}

/// An attempt that has lost its race, and that connects in the background.
#[derive(Debug)]
pub(crate) struct Loser {
    /// The backend.
    pub(crate) backend: Arc<Backend>,
    pool: Arc<Pool>,
    started: Instant,
    _only: Background,
}

/// Returns the time after which a connection attempt of this request is raced; `None` if it is not.
fn race_after(settings: &RetrySettings, request: Racer) -> Option<Duration> {
    let is_allowed = settings.attempts > 0 && settings.on.contains(RetryCause::ConnectFailure);
    settings.connect_race.filter(|_| is_allowed && request == Racer::default())
}

// === impl Contestant ===

impl Contestant {
    /// Returns the other one.
    pub(crate) fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    fn result(self) -> RaceResult {
        match self {
            Self::First => RaceResult::First,
            Self::Second => RaceResult::Second,
        }
    }
}

// === impl RaceResult ===

impl RaceResult {
    /// All results, in the order of their discriminants.
    pub const ALL: [Self; 4] = [Self::First, Self::Second, Self::Neither, Self::Denied];

    /// Returns the `result` label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Second => "second",
            Self::Neither => "neither",
            Self::Denied => "denied",
        }
    }
}

// === impl Race ===

impl Race {
    pub(super) fn new(pool: Arc<Pool>, rival: Attempt, permit: RetryPermit) -> Self {
        let (current, result) = (Contestant::First, RaceResult::Neither);
        Self { rival: Some(rival), current, permit: Some(permit), pool, result }
    }

    /// Ends the race, because the current attempt is connected. Returns the place in the budget if it belongs to that
    /// attempt.
    pub(super) fn won(mut self) -> Option<RetryPermit> {
        self.result = self.current.result();
        self.permit.take().filter(|_| self.current == Contestant::Second)
    }
}

impl Drop for Race {
    fn drop(&mut self) {
        self.pool.counters().raced(self.result);
    }
}

// === impl Attempt ===

impl Attempt {
    /// Ends the attempt for its request, because another one was connected first. Returns what is left of it, unless
    /// its backend has another attempt in the background.
    pub(super) fn lose(self, now: Instant) -> Option<Loser> {
        self.overtaken(now);
        let only = self.backend.history.background()?;
        let (backend, pool) = (self.backend.clone(), self.pool().clone());
        Some(Loser { backend, pool, started: self.started(), _only: only })
    }
}

// === impl Loser ===

impl Loser {
    /// Records a failure of the backend, which can eject it.
    pub(crate) fn failed(&self, error: UpstreamError, now: Instant) {
        let time = now.saturating_duration_since(self.started);
        self.pool.charge(&self.backend, error, self.started, time, now);
    }
}

// === impl Pool ===

impl Pool {
    /// Returns the time after which a connection attempt of this request is raced; `None` if it is not.
    pub(super) fn race_after(&self, request: Racer) -> Option<Duration> {
        race_after(&self.settings.retries, request)
    }

    /// Takes a place in the budget for a race.
    pub(super) fn race_permit(&self) -> Option<RetryPermit> {
        let permit = self.budget_place();
        if permit.is_none() {
            self.counters().raced(RaceResult::Denied);
        }
        permit
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use pingora::lb::HealthRegistry;

    use super::super::settings::RetryOn;
    use super::*;
    use crate::clock::{Clock, ManualClock, Now};
    use crate::policy::PolicyConfig;
    use crate::pool::{BackendSettings, Dispatch, PoolSettings, Replayability, Session, StickySettings};

    const SECOND: Duration = Duration::from_secs(1);
    const POST: Replayability = Replayability {
        idempotent: false,
        replayable: true,
        response_begun: false,
        stale: false,
        nothing_sent: true,
    };

    /// A pool, and a request that is placed there.
    struct Bench {
        pool: Arc<Pool>,
        manual: ManualClock,
        request: Dispatch,
    }

    impl Bench {
        fn new(backends: u8) -> Self {
            Self::with(backends, |_| {})
        }

        fn with(backends: u8, change: impl FnOnce(&mut PoolSettings)) -> Self {
            let backend = |last| BackendSettings::new(([10, 0, 0, last], 80).into());
            let mut settings = PoolSettings::new("web", (1..=backends).map(backend).collect());
            settings.outlier_detection.consecutive_failures = 1;
            change(&mut settings);
            let (clock, manual) = Clock::manual();
            let registry = Arc::new(HealthRegistry::new());
            let pool = Pool::with_policy(&settings, registry, None, PolicyConfig::default(), &clock);
            let mut bench = Self { pool: Arc::new(pool), manual, request: Dispatch::default() };
            bench.request = bench.placed();
            bench
        }

        fn at(&self) -> Now {
            Now { time: self.manual.now(), draw: 0.5 }
        }

        fn placed(&self) -> Dispatch {
            let mut request = Dispatch::default();
            request.place(&self.pool, b"", self.at()).expect("a backend is available");
            request
        }

        /// Starts a race, and returns the backends of both attempts.
        fn race(&mut self) -> Option<[Arc<Backend>; 2]> {
            let first = self.request.attempt.as_ref()?.backend.clone();
            self.manual.advance(SECOND / 4);
            let (pool, at) = (self.pool.clone(), self.at());
            Some([first, self.request.race(&pool, at)?])
        }

        fn win(&mut self, winner: Contestant) -> Option<Loser> {
            let loser = self.request.win(winner, self.manual.now());
            self.request.connected(false);
            loser
        }

        fn breaks(&mut self) -> bool {
            let (pool, at) = (self.pool.clone(), self.at());
            self.request.broke(&pool, UpstreamError::Connect, POST, at)
        }

        fn current(&self) -> &Backend {
            &self.request.attempt.as_ref().expect("there is an attempt").backend
        }

        fn tried(&self) -> Vec<(&str, String)> {
            self.request.failures().map(|(backend, how)| (&*backend.label, how.word().into_owned())).collect()
        }

        /// Returns the results of the races, in the order of [`RaceResult::ALL`].
        fn results(&self) -> Vec<u64> {
            self.pool.counters().races().map(|(_, count)| count).collect()
        }

        fn in_flight(&self) -> (u64, Vec<u64>) {
            let each = self.pool.backends().iter().map(|backend| backend.load.in_flight());
            (self.pool.in_flight(), each.collect())
        }
    }

    #[test]
    fn only_the_settings_of_connection_failures_allow_a_race() {
        let settings = RetrySettings::default();
        let after = |settings: RetrySettings| race_after(&settings, Racer::default());
        assert_eq!(after(settings), Some(SECOND / 4));
        assert_eq!(after(RetrySettings { connect_race: Some(SECOND), ..settings }), Some(SECOND));
        assert_eq!(after(RetrySettings { connect_race: None, ..settings }), None);
        assert_eq!(after(RetrySettings { attempts: 0, ..settings }), None);
        let others = RetryCause::ALL.into_iter().filter(|cause| *cause != RetryCause::ConnectFailure);
        assert_eq!(after(RetrySettings { on: others.collect(), ..settings }), None);
        let on: RetryOn = [RetryCause::ConnectFailure].into_iter().collect();
        assert_eq!(after(RetrySettings { on, ..settings }), Some(SECOND / 4));
    }

    #[test]
    fn a_request_with_a_session_a_key_or_an_earlier_race_does_not_race() {
        let settings = RetrySettings::default();
        for racer in [
            Racer { has_session: true, ..Racer::default() },
            Racer { has_key: true, ..Racer::default() },
            Racer { has_raced: true, ..Racer::default() },
        ] {
            assert_eq!(race_after(&settings, racer), None, "{racer:?}");
        }
    }

    #[test]
    fn a_key_and_a_session_belong_to_the_request() {
        let mut bench = Bench::with(3, |settings| settings.sticky = Some(StickySettings::new("lb")));
        let pool = bench.pool.clone();
        assert_eq!(bench.request.race_after(&pool), Some(SECOND / 4), "a client without a session can race");
        bench.request.place(&pool, b"key", bench.at()).unwrap();
        assert_eq!(bench.request.race_after(&pool), None);
        bench.request = bench.placed();
        bench.request.session = Some(Session { backend: 0, is_current: true });
        assert_eq!(bench.request.race_after(&pool), None);
    }

    #[test]
    fn the_second_attempt_is_at_another_backend_that_was_not_tried() {
        let mut bench = Bench::new(3);
        assert!(bench.breaks());
        bench.request.end_attempt();
        let (pool, at) = (bench.pool.clone(), bench.at());
        bench.request.place(&pool, b"", at).unwrap();
        let failed = bench.tried()[0].0.to_owned();
        let [first, second] = bench.race().expect("a third backend is available");
        let mut all = [failed, first.label.to_string(), second.label.to_string()];
        all.sort();
        assert_eq!(all, ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
        assert_eq!(bench.request.tries, 3);
    }

    #[test]
    fn there_is_no_race_without_another_available_backend() {
        assert!(Bench::new(1).race().is_none());
        let mut bench = Bench::new(2);
        let other = bench.placed();
        let mut failing = other;
        assert!(failing.broke(&bench.pool, UpstreamError::Connect, POST, bench.at()));
        assert!(bench.race().is_none(), "the other backend is ejected");
        let mut bench = Bench::with(2, |settings| settings.backends[1].max_requests = NonZeroU32::new(1));
        let _full = bench.placed();
        assert!(bench.race().is_none(), "the other backend is full");
        assert_eq!(bench.results(), [0; 4]);
        assert_eq!((bench.request.tries, bench.pool.retries_in_flight()), (1, 0));
    }

    #[test]
    fn a_request_has_one_race() {
        let mut bench = Bench::new(4);
        bench.race().expect("the first one");
        bench.win(Contestant::First);
        assert!(bench.race().is_none());
    }

    #[test]
    fn the_second_backend_takes_the_request_and_keeps_the_place_in_the_budget() {
        let mut bench = Bench::new(2);
        let [first, second] = bench.race().expect("there is another backend");
        assert_eq!((bench.in_flight(), bench.pool.retries_in_flight()), ((2, vec![1, 1]), 1));
        let loser = bench.win(Contestant::Second).expect("it goes on in the background");
        assert_eq!(loser.backend.address, first.address);
        assert_eq!(bench.current().address, second.address);
        assert_eq!(bench.tried(), [(&*first.label, "connect_race".to_owned())]);
        assert_eq!((bench.pool.in_flight(), first.load.in_flight(), second.load.in_flight()), (1, 0, 1));
        assert_eq!((bench.results(), bench.pool.retries_in_flight()), (vec![0, 1, 0, 0], 1));
        let (pool, at) = (bench.pool.clone(), bench.at());
        assert!(!bench.request.responded(&pool, 200, None, POST, at));
        assert_eq!(bench.pool.retries_in_flight(), 0, "the response has begun");
        assert_eq!((first.consecutive_failures(), bench.pool.counters().retries.get()), (0, 0));
    }

    #[test]
    fn the_first_backend_keeps_the_request_and_gives_the_place_in_the_budget_back() {
        let mut bench = Bench::new(2);
        let [first, second] = bench.race().expect("there is another backend");
        let loser = bench.win(Contestant::First).expect("it goes on in the background");
        assert_eq!(loser.backend.address, second.address);
        assert_eq!(bench.current().address, first.address);
        assert_eq!(bench.tried(), [(&*second.label, "connect_race".to_owned())]);
        assert_eq!((bench.in_flight().0, bench.results()), (1, vec![1, 0, 0, 0]));
        assert_eq!(bench.pool.retries_in_flight(), 0);
    }

    #[test]
    fn a_backend_has_one_attempt_in_the_background() {
        let mut bench = Bench::new(2);
        let [first, _] = bench.race().expect("there is another backend");
        let held = bench.win(Contestant::Second).expect("it is the only one");
        let again = |bench: &mut Bench| {
            bench.request = bench.placed();
            while bench.current().address != first.address {
                bench.request = bench.placed();
            }
            bench.race().expect("there is another backend");
            bench.win(Contestant::Second)
        };
        assert!(again(&mut bench).is_none());
        assert_eq!(bench.in_flight().0, 1, "the one that is dropped counts no longer");
        drop(held);
        assert!(again(&mut bench).is_some());
    }

    #[test]
    fn a_failure_in_the_background_ejects_the_backend() {
        let mut bench = Bench::new(3);
        let [first, _] = bench.race().expect("there is another backend");
        let loser = bench.win(Contestant::Second).expect("it goes on in the background");
        bench.manual.advance(SECOND);
        loser.failed(UpstreamError::Connect, bench.manual.now());
        assert!(first.ejected_until(bench.manual.now()).is_some());
        let counted = |error| first.errors().find(|(known, _)| *known == error).map(|(_, count)| count);
        assert_eq!(counted(UpstreamError::Connect), Some(1));
    }

    #[test]
    fn a_request_whose_two_attempts_fail_is_retried_as_after_one() {
        let mut bench = Bench::new(4);
        let [first, second] = bench.race().expect("there is another backend");
        bench.request.drop_out(Contestant::First, UpstreamError::Tls, bench.manual.now());
        assert_eq!(bench.current().address, second.address);
        assert_eq!(first.consecutive_failures(), 0, "it is ejected, which resets the count");
        assert!(first.ejected_until(bench.manual.now()).is_some());
        assert!(bench.breaks(), "the one attempt of the settings is left");
        let both = [(&*first.label, "tls".to_owned()), (&*second.label, "connect".to_owned())];
        assert_eq!(bench.tried(), both);
        assert_eq!((bench.results(), bench.pool.retries_in_flight()), (vec![0, 0, 1, 0], 0));
        bench.request.end_attempt();
        assert_eq!(bench.in_flight().0, 0);
        let (pool, at) = (bench.pool.clone(), bench.at());
        bench.request.place(&pool, b"", at).unwrap();
        assert_eq!(bench.request.tries, 3);
        assert!(!bench.breaks(), "no attempt is left");
    }

    #[test]
    fn the_attempt_that_is_left_can_win() {
        for (who, result) in [(Contestant::First, vec![0, 1, 0, 0]), (Contestant::Second, vec![1, 0, 0, 0])] {
            let mut bench = Bench::new(3);
            bench.race().expect("there is another backend");
            bench.request.drop_out(who, UpstreamError::Connect, bench.manual.now());
            assert_eq!(bench.in_flight().0, 1);
            bench.request.connected(false);
            assert_eq!(bench.results(), result);
        }
    }

    #[test]
    fn a_race_needs_a_place_in_the_budget() {
        let mut bench = Bench::with(3, |settings| {
            settings.retries.budget_percent = 0;
            settings.retries.min_concurrent = 1;
        });
        let mut other = bench.placed();
        assert!(other.race(&bench.pool, bench.at()).is_some());
        assert!(bench.race().is_none());
        assert_eq!((bench.results(), bench.request.tries), (vec![0, 0, 0, 1], 1));
        assert_eq!(bench.pool.counters().retries_denied.get(), 0, "no retry was denied");
        assert!(bench.breaks(), "a retry after a failed connection needs none");
    }

    #[test]
    fn a_client_that_leaves_ends_both_attempts() {
        let mut bench = Bench::new(2);
        bench.race().expect("there is another backend");
        bench.request = Dispatch::default();
        assert_eq!((bench.in_flight(), bench.pool.requests()), ((0, vec![0, 0]), 0));
        assert_eq!((bench.results(), bench.pool.retries_in_flight()), (vec![0, 0, 1, 0], 0));
    }
}
