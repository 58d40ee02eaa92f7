//! Outlier detection: backends that fail requests, or are much slower than the others, are ejected for a while.
//!
//! The algorithm is Envoy's ejection by consecutive failures (its documentation, "Outlier detection"). A number of
//! failures in a row ejects a backend for the base time, and the n-th ejection in a row lasts n times as long, up to a
//! maximum. The backend then returns without an action of an operator. The differences from Envoy are:
//!
//! - A single host can exceed Envoy's default of 10 %, so even the only host can be ejected. Here the share is rounded
//!   down, and one available backend always remains.
//! - In Envoy, a backend that returned needs as many failures as before. Here it is **on probation**: the first failure
//!   ejects it again, for longer, and one success clears all failures.
//! - Envoy's count of ejections falls by one in each interval without a failure. Here the count is reset when the
//!   backend has shown that it is well again, like the count of failures.
//!
//! ```text
//!              a cause                           the time is over
//!   in use ───────────────▶ ejected (n) ─────────────────────────────▶ on probation (n)
//!     ▲                          ▲                                       │         │
//!     │                          └─────── a cause again: n + 1 ──────────┘         │
//!     └────────────────────────── no doubt is left: n = 0 ─────────────────────────┘
//! ```
//!
//! An ejection has one of two causes: failures, or slowness (a gray failure, which
//! [`slow_backends`](super::slow_backends) detects). Probation ends only when the cause is disproved: a backend that
//! was ejected for slowness gives good responses, so a success proves nothing about its speed. Therefore there are two
//! doubts:
//!
//! | doubt about    | begins with               | ejects again     | ends with                                |
//! |----------------|--------------------------|------------------|------------------------------------------|
//! | its responses  | each ejection            | one failure      | one success                              |
//! | its speed      | an ejection for slowness | one slow window  | one window in which it is judged as fine |
//!
//! - There is one count of ejections for both causes. It is reset when the last doubt ends.
//! - Without a doubt, the thresholds of normal use apply: `consecutive_failures`, or two slow windows. So a single
//!   failure long after the return does not eject a slow backend that gets too few requests to be judged.
//! - A backend that was ejected for slowness, and then for a failure on probation, has to end both doubts.
//! - A success always resets the count of failures.
//!
//! **The result of a request or a window counts only if it began while the backend was in use, after its latest
//! ejection.** The failure of a request that was sent before or during the ejection (in a pool in panic) does not
//! describe the backend that returned: it neither extends the ejection nor ends the probation, and neither does a late
//! success. The window in which a backend returned does not count, because its rest can be so short that a single pause
//! fills it. The next window is the first that counts on probation.
//!
//! Each backend has an [`OutlierRecord`], a set of atomics that requests read and write without a lock. Only an
//! [`Ejector`] can eject, one backend at a time: two simultaneous failures cannot together exceed the share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::settings::OutlierSettings;
use crate::stats::Counter;

/// The results of the requests to one backend.
#[derive(Debug)]
pub(super) struct OutlierRecord {
    /// The instant from which all times are counted, in nanoseconds.
    epoch: Instant,
    /// A packed [`Streak`].
    streak: AtomicU64,
    /// The end of the latest ejection; 0 if there was none. It is written before the streak that belongs to it.
    until: AtomicU64,
    /// The beginning of the latest ejection.
    since: AtomicU64,
    /// The cause of the latest ejection: a packed [`Blame`].
    blame: AtomicU64,
    ejections: Counter,
    /// Whether the backend was ejected and its return was not reported yet.
    is_away: AtomicBool,
}

/// The evidence against a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Streak {
    /// The ejections in a row. While this is above 0, the backend is ejected or on probation.
    ejections: u32,
    /// Whether the speed is in doubt: the backend was ejected for slowness and was not judged as fine since.
    slow: bool,
    /// Whether the responses are in doubt: the backend was ejected and had no success since.
    unproven: bool,
    /// The failures since the latest ejection or success.
    failures: u32,
}

/// The cause of an ejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The backend failed requests.
    Failures,
    /// The backend is much slower than the others.
    Slowness,
}

/// The details of an ejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blame {
    cause: Cause,
    /// The failures in a row at that time.
    failures: u32,
    /// Whether the backend was on probation.
    again: bool,
}

/// The speed of a backend in one window. A backend that is not judged has no verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SpeedVerdict {
    /// The backend is about as fast as the others.
    Fine,
    /// The backend is much slower than the others.
    Slow,
}

/// The decisions about the ejections of one pool, one after the other.
#[derive(Debug, Default)]
pub(super) struct Ejector(Mutex<()>);

/// The state of one backend of the pool when an ejection is decided.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    /// Whether the health checks pass and no operator disabled the backend.
    pub(super) ready: bool,
    /// Whether an operator drains the backend.
    pub(super) draining: bool,
    /// The results of its requests.
    pub(super) record: &'a OutlierRecord,
}

/// The reason for not ejecting a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotEjected {
    /// The pool has no such backend.
    Unknown,
    /// The backend is already ejected; the ejection is not extended.
    AlreadyEjected,
    /// No other backend is available.
    LastOne,
    /// `max_ejected_percent` of the pool is ejected.
    Share,
}

/// Returns the nanoseconds from `epoch` to `at`; 0 if `at` is earlier. The number can express 584 years.
pub(super) fn nanoseconds(epoch: Instant, at: Instant) -> u64 {
    saturated(at.saturating_duration_since(epoch).as_nanos())
}

fn saturated(nanoseconds: u128) -> u64 {
    u64::try_from(nanoseconds).unwrap_or(u64::MAX)
}

/// Returns the duration of the `n`-th ejection in a row: `base × n` plus up to a tenth by `jitter` (0 to 1), so that
/// backends that failed together do not return together. The maximum includes the jitter: an operator who reads "at
/// most five minutes" must not see more.
fn ejection(settings: &OutlierSettings, n: u32, jitter: f64) -> Duration {
    // The cast to an integer turns NaN and negative numbers into 0.
    let thousandths = ((jitter * 1000.0) as u128).min(1000);
    let plain = settings.base_ejection.as_nanos().saturating_mul(u128::from(n));
    let longest = settings.max_ejection.as_nanos();
    let plain = plain.min(longest);
    Duration::from_nanos(saturated((plain + plain / 10_000 * thousandths).min(longest)))
}

// === impl OutlierRecord ===

impl OutlierRecord {
    /// Returns an empty record. Later times must not be before `epoch`.
    pub(super) fn new(epoch: Instant) -> Self {
        Self {
            epoch,
            streak: AtomicU64::new(Streak::NONE.pack()),
            until: AtomicU64::new(0),
            since: AtomicU64::new(0),
            blame: AtomicU64::new(0),
            ejections: Counter::default(),
            is_away: AtomicBool::new(false),
        }
    }

    /// Returns whether the backend is ejected at this moment. This is one load if it was never ejected.
    pub(super) fn is_ejected(&self, now: Instant) -> bool {
        let until = self.until.load(Ordering::Acquire);
        until != 0 && nanoseconds(self.epoch, now) < until
    }

    /// Returns the end of the current ejection; `None` if the backend is not ejected.
    pub(super) fn ejected_until(&self, now: Instant) -> Option<Instant> {
        let until = self.until.load(Ordering::Acquire);
        let ejected = nanoseconds(self.epoch, now) < until;
        ejected.then(|| self.epoch.checked_add(Duration::from_nanos(until))).flatten()
    }

    /// Returns the beginning of the current ejection; `None` if the backend is not ejected.
    pub(super) fn ejected_since(&self, now: Instant) -> Option<Instant> {
        let since = Duration::from_nanos(self.since.load(Ordering::Relaxed));
        self.is_ejected(now).then(|| self.epoch.checked_add(since)).flatten()
    }

    /// Returns the details of the latest ejection; they are empty if there was none.
    pub(super) fn blame(&self) -> Blame {
        Blame::unpack(self.blame.load(Ordering::Relaxed))
    }

    /// Returns the end of the latest ejection; `None` if there was none or it is not over.
    pub(super) fn returned(&self, now: Instant) -> Option<Instant> {
        let until = self.until.load(Ordering::Acquire);
        let is_over = until != 0 && nanoseconds(self.epoch, now) >= until;
        is_over.then(|| self.epoch.checked_add(Duration::from_nanos(until))).flatten()
    }

    /// Returns whether the backend returned since the last call.
    pub(super) fn take_return(&self, now: Instant) -> bool {
        self.is_away.load(Ordering::Relaxed)
            && !self.is_ejected(now)
            && self.is_away.swap(false, Ordering::Relaxed)
    }

    /// Returns whether no ejection has begun or ended since `began`. Only then the result of a request or window
    /// counts.
    pub(super) fn was_in_use_since(&self, began: Instant) -> bool {
        nanoseconds(self.epoch, began) >= self.until.load(Ordering::Acquire)
    }

    /// Records that a request sent at `began` succeeded. This clears all failures, but not slowness. It is one load if
    /// there is nothing to clear.
    pub(super) fn succeeded(&self, began: Instant) {
        if self.streak.load(Ordering::Relaxed) & Streak::FORGIVEN != 0 {
            self.update(began, Streak::succeeded);
        }
    }

    /// Records that a request sent at `began` failed. Returns whether it is time to eject the backend.
    ///
    /// If the ejection is rejected, the next `true` comes only after as many failures as before: in an outage of the
    /// whole pool every request fails, and each decision takes a lock.
    pub(super) fn failed(&self, settings: &OutlierSettings, began: Instant) -> bool {
        let enough = settings.consecutive_failures;
        // Failures are counted even if ejection is off: a retry prefers a backend without a failure.
        self.update(began, Streak::failed).is_some_and(|streak| enough > 0 && streak.is_time(enough))
    }

    /// Records the verdict of a window that began at `began`. Returns whether it is time to eject the backend because
    /// its speed was in doubt.
    pub(super) fn judged(&self, verdict: SpeedVerdict, began: Instant) -> bool {
        // A backend that is not in doubt, the usual case, needs no exchange.
        self.streak().slow
            && self.update(began, |streak| streak.judged(verdict)).is_some_and(|streak| streak.slow)
    }

    /// Returns the number of ejections so far.
    pub(super) fn ejections(&self) -> u64 {
        self.ejections.get()
    }

    /// Returns the failures in a row since the latest success or ejection.
    pub(super) fn consecutive_failures(&self) -> u32 {
        self.streak().failures
    }

    fn streak(&self) -> Streak {
        Streak::unpack(self.streak.load(Ordering::Acquire))
    }

    /// Changes the streak and returns the new one; `None` if the request or window does not count because it began too
    /// early.
    ///
    /// The streak is loaded first: a thread that sees the streak of an ejection also sees its end. A thread that does
    /// not see it fails to exchange the streak, because an ejection always changes it.
    fn update(&self, began: Instant, change: impl Fn(Streak) -> Streak) -> Option<Streak> {
        let began = nanoseconds(self.epoch, began);
        let mut packed = self.streak.load(Ordering::Acquire);
        while began >= self.until.load(Ordering::Relaxed) {
            let changed = change(Streak::unpack(packed));
            match self.streak.compare_exchange_weak(
                packed,
                changed.pack(),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Some(changed),
                Err(current) => packed = current,
            }
        }
        None
    }

    /// Ejects the backend from `now` on. The caller is an [`Ejector`] that holds its lock.
    fn eject(&self, settings: &OutlierSettings, cause: Cause, now: Instant, jitter: f64) -> Duration {
        let before = self.streak();
        let blame = Blame { cause, failures: before.failures, again: before.unproven };
        let streak = before.ejected(cause);
        let duration = ejection(settings, streak.ejections, jitter);
        let until = nanoseconds(self.epoch, now).saturating_add(saturated(duration.as_nanos())).max(1);
        self.since.store(nanoseconds(self.epoch, now), Ordering::Relaxed);
        self.blame.store(blame.pack(), Ordering::Relaxed);
        self.until.store(until, Ordering::Release);
        // This overwrites results that were recorded since the load. They began before the ejection; a moment later
        // they would not have counted.
        self.streak.store(streak.pack(), Ordering::Release);
        self.ejections.increment();
        self.is_away.store(true, Ordering::Relaxed);
        duration
    }
}

// === impl Streak ===

impl Streak {
    const NONE: Self = Self { ejections: 0, slow: false, unproven: false, failures: 0 };
    /// The position of the fields after the failures, which have the lowest 32 bits.
    const UNPROVEN: u32 = 32;
    const SLOW: u32 = 33;
    const EJECTIONS: u32 = 34;
    const MOST_EJECTIONS: u32 = u32::MAX >> (Self::EJECTIONS - 32);
    /// The bits that a success clears. If all of them are 0, a success changes nothing.
    const FORGIVEN: u64 = (1 << (Self::UNPROVEN + 1)) - 1;

    fn pack(self) -> u64 {
        u64::from(self.ejections) << Self::EJECTIONS
            | u64::from(self.slow) << Self::SLOW
            | u64::from(self.unproven) << Self::UNPROVEN
            | u64::from(self.failures)
    }

    fn unpack(packed: u64) -> Self {
        Self {
            ejections: (packed >> Self::EJECTIONS) as u32,
            slow: (packed >> Self::SLOW) & 1 == 1,
            unproven: (packed >> Self::UNPROVEN) & 1 == 1,
            failures: packed as u32,
        }
    }

    fn failed(self) -> Self {
        Self { failures: self.failures.saturating_add(1), ..self }
    }

    fn succeeded(self) -> Self {
        Self { unproven: false, failures: 0, ..self }.settled()
    }

    fn judged(self, verdict: SpeedVerdict) -> Self {
        Self { slow: self.slow && verdict == SpeedVerdict::Slow, ..self }.settled()
    }

    fn ejected(self, cause: Cause) -> Self {
        Self {
            ejections: self.ejections.saturating_add(1).min(Self::MOST_EJECTIONS),
            slow: self.slow || cause == Cause::Slowness,
            unproven: true,
            failures: 0,
        }
    }

    /// Resets the count of ejections if no doubt is left.
    fn settled(self) -> Self {
        let is_in_doubt = self.slow || self.unproven;
        Self { ejections: if is_in_doubt { self.ejections } else { 0 }, ..self }
    }

    /// Returns whether the last failure ejects: the first one since the return, or each `enough`-th.
    fn is_time(self, enough: u32) -> bool {
        (self.unproven && self.failures == 1) || self.failures.is_multiple_of(enough)
    }
}

// === impl Blame ===

impl Blame {
    const AGAIN: u64 = 1 << 32;
    const SLOW: u64 = 1 << 33;

    fn pack(self) -> u64 {
        let slow = if self.cause == Cause::Slowness { Self::SLOW } else { 0 };
        let again = if self.again { Self::AGAIN } else { 0 };
        slow | again | u64::from(self.failures)
    }

    fn unpack(packed: u64) -> Self {
        Self {
            cause: if packed & Self::SLOW == 0 { Cause::Failures } else { Cause::Slowness },
            failures: packed as u32,
            again: packed & Self::AGAIN != 0,
        }
    }

    /// Describes the cause in words. `latest` describes the latest of these failures.
    pub(super) fn words(self, latest: &str) -> String {
        let Self { cause, failures, again } = self;
        match (cause, failures, again) {
            (Cause::Slowness, ..) => "much slower than the others".to_owned(),
            (Cause::Failures, 0 | 1, true) => format!("1 failure after its return ({latest})"),
            (Cause::Failures, 0 | 1, false) => format!("1 failure ({latest})"),
            (Cause::Failures, more, _) => format!("{more} failures in a row (the latest: {latest})"),
        }
    }
}

// === impl Ejector ===

impl Ejector {
    /// Ejects the backend at index `which` of the pool's `members`, which must include all of them, also the backups.
    ///
    /// Returns the duration of the ejection. After it, at most `max_ejected_percent` of all members, rounded down, are
    /// ejected, and another member is available. `jitter` is a random number from 0 to 1.
    ///
    /// The decisions of one `Ejector` come one after the other, so a pool has exactly one. A `now` from before the wait
    /// for the lock is harmless: it can only count too many ejected and too few available members.
    pub(super) fn eject(
        &self,
        settings: &OutlierSettings,
        members: &[Candidate<'_>],
        which: usize,
        cause: Cause,
        now: Instant,
        jitter: f64,
    ) -> Result<Duration, NotEjected> {
        // The lock guards no data that a panic could leave half written.
        let _turn = self.0.lock();
        let record = members.get(which).ok_or(NotEjected::Unknown)?.record;
        obstacle(settings, members, which, now)
            .map_or_else(|| Ok(record.eject(settings, cause, now, jitter)), Err)
    }
}

/// Returns the reason why this member cannot be ejected now. `None` means that it can.
fn obstacle(
    settings: &OutlierSettings,
    members: &[Candidate<'_>],
    which: usize,
    now: Instant,
) -> Option<NotEjected> {
    let is_ejected = |member: &Candidate<'_>| member.record.is_ejected(now);
    let is_available = |member: &Candidate<'_>| member.ready && !member.draining && !is_ejected(member);
    let mut others = members.iter().enumerate().filter(|(index, _)| *index != which).map(|(_, other)| other);
    if members.get(which).is_some_and(is_ejected) {
        Some(NotEjected::AlreadyEjected)
    } else if !others.any(is_available) {
        Some(NotEjected::LastOne)
    } else if members.iter().filter(|member| is_ejected(member)).count() >= most(settings, members.len()) {
        Some(NotEjected::Share)
    } else {
        None
    }
}

/// Returns the maximum number of backends that can be ejected at the same time.
fn most(settings: &OutlierSettings, backends: usize) -> usize {
    backends.saturating_mul(usize::from(settings.max_ejected_percent.min(100))) / 100
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
    use proptest::test_runner::TestCaseError;

    const SECOND: Duration = Duration::from_secs(1);
    const NONE: [usize; 0] = [];

    /// Returns settings with which three failures eject for 10 s times n, at most 35 s, and at most half of the pool.
    fn settings() -> OutlierSettings {
        OutlierSettings {
            consecutive_failures: 3,
            base_ejection: 10 * SECOND,
            max_ejection: 35 * SECOND,
            max_ejected_percent: 50,
            slow_backends: None,
        }
    }

    /// A pool and its clock.
    struct Bench {
        settings: OutlierSettings,
        ejector: Ejector,
        records: Vec<OutlierRecord>,
        ready: Vec<bool>,
        draining: Vec<bool>,
        began: Instant,
        now: Instant,
    }

    impl Bench {
        fn new(backends: usize) -> Self {
            let began = Instant::now();
            Self {
                settings: settings(),
                ejector: Ejector::default(),
                records: (0..backends).map(|_| OutlierRecord::new(began)).collect(),
                ready: vec![true; backends],
                draining: vec![false; backends],
                began,
                now: began,
            }
        }

        fn with(backends: usize, change: impl FnOnce(&mut OutlierSettings)) -> Self {
            let mut bench = Self::new(backends);
            change(&mut bench.settings);
            bench
        }

        fn standings(&self) -> Vec<Candidate<'_>> {
            let flags = self.ready.iter().zip(&self.draining);
            let member = |(record, (&ready, &draining))| Candidate { ready, draining, record };
            self.records.iter().zip(flags).map(member).collect()
        }

        fn eject(&self, which: usize) -> Result<Duration, NotEjected> {
            self.eject_for(Cause::Failures, which)
        }

        fn eject_for(&self, cause: Cause, which: usize) -> Result<Duration, NotEjected> {
            self.ejector.eject(&self.settings, &self.standings(), which, cause, self.now, 0.0)
        }

        /// Ends a window with this verdict. Returns the result of the ejection if it was time for one.
        fn judge(&self, which: usize, verdict: SpeedVerdict) -> Option<Result<Duration, NotEjected>> {
            self.judge_since(which, verdict, self.now)
        }

        fn judge_since(
            &self,
            which: usize,
            verdict: SpeedVerdict,
            began: Instant,
        ) -> Option<Result<Duration, NotEjected>> {
            self.records[which].judged(verdict, began).then(|| self.eject_for(Cause::Slowness, which))
        }

        /// Returns a bench whose first backend was ejected for slowness and is back: its speed is in doubt.
        fn with_a_slow_one() -> Self {
            let mut bench = Self::new(3);
            assert_eq!(bench.eject_for(Cause::Slowness, 0), Ok(10 * SECOND));
            bench.now += 10 * SECOND;
            bench
        }

        /// Begins and fails a request. Returns the result of the ejection if it was time for one.
        fn fail(&self, which: usize) -> Option<Result<Duration, NotEjected>> {
            self.fail_since(which, self.now)
        }

        fn fail_since(&self, which: usize, began: Instant) -> Option<Result<Duration, NotEjected>> {
            self.records[which].failed(&self.settings, began).then(|| self.eject(which))
        }

        fn fail_until_ejected(&self, which: usize) -> Duration {
            let outcome = (0..self.settings.consecutive_failures).find_map(|_| self.fail(which));
            outcome.expect("the failures reach the threshold").expect("the ejection is possible")
        }

        fn ejected(&self) -> Vec<usize> {
            (0..self.records.len()).filter(|index| self.records[*index].is_ejected(self.now)).collect()
        }
    }

    #[test]
    fn consecutive_failures_eject() {
        let bench = Bench::new(3);
        assert_eq!(bench.fail(1), None);
        assert_eq!(bench.fail(1), None);
        assert_eq!(bench.records[1].consecutive_failures(), 2);
        assert_eq!(bench.ejected(), NONE);
        assert_eq!(bench.fail(1), Some(Ok(10 * SECOND)));
        assert_eq!(bench.ejected(), [1]);
        assert_eq!(bench.records[1].ejected_until(bench.now), Some(bench.now + 10 * SECOND));
        assert_eq!(bench.records[1].ejections(), 1);
        assert_eq!(bench.records[0].ejections(), 0);
    }

    #[test]
    fn an_ejection_states_its_cause() {
        let mut bench = Bench::new(3);
        bench.fail_until_ejected(1);
        let words = |bench: &Bench| bench.records[1].blame().words("503");
        assert_eq!(words(&bench), "3 failures in a row (the latest: 503)");
        assert_eq!(bench.records[1].returned(bench.now), None);
        bench.now += 10 * SECOND;
        assert_eq!(bench.records[1].returned(bench.now), Some(bench.now));
        assert_eq!(bench.fail(1), Some(Ok(20 * SECOND)));
        assert_eq!(words(&bench), "1 failure after its return (503)");
        let slow = Bench::with_a_slow_one();
        assert_eq!(slow.records[0].blame().words(""), "much slower than the others");
        let once = Bench::with(3, |settings| settings.consecutive_failures = 1);
        once.fail_until_ejected(1);
        assert_eq!(words(&once), "1 failure (503)");
    }

    #[test]
    fn a_success_resets_the_count_of_failures() {
        let bench = Bench::new(3);
        for _ in 0..10 {
            assert_eq!((bench.fail(0), bench.fail(0)), (None, None));
            bench.records[0].succeeded(bench.now);
            assert_eq!(bench.records[0].consecutive_failures(), 0);
        }
    }

    #[test]
    fn no_number_of_failures_ejects_if_the_detection_is_off() {
        let bench = Bench::with(3, |settings| settings.consecutive_failures = 0);
        assert!((0..100).all(|_| bench.fail(0).is_none()));
    }

    #[test]
    fn a_backend_returns_exactly_when_its_ejection_ends() {
        let mut bench = Bench::new(3);
        bench.fail_until_ejected(0);
        bench.now += 10 * SECOND - Duration::from_nanos(1);
        assert_eq!(bench.ejected(), [0]);
        bench.now += Duration::from_nanos(1);
        assert_eq!(bench.ejected(), NONE);
        assert_eq!(bench.records[0].ejected_until(bench.now), None);
    }

    #[test]
    fn the_first_failure_on_probation_ejects_for_longer_up_to_the_maximum() {
        let mut bench = Bench::new(3);
        let first = bench.fail_until_ejected(0);
        let mut lasted = vec![first];
        for _ in 0..4 {
            bench.now += *lasted.last().unwrap();
            lasted.push(bench.fail(0).expect("it is on probation").expect("the ejection is possible"));
        }
        assert_eq!(lasted, [10, 20, 30, 35, 35].map(|seconds| seconds * SECOND));
        assert_eq!(bench.records[0].ejections(), 5);
    }

    #[test]
    fn one_success_ends_probation_and_resets_the_count_of_ejections() {
        let mut bench = Bench::new(3);
        bench.fail_until_ejected(0);
        bench.now += 10 * SECOND;
        bench.records[0].succeeded(bench.now);
        assert_eq!((bench.fail(0), bench.fail(0)), (None, None));
        assert_eq!(bench.fail(0), Some(Ok(10 * SECOND)));
    }

    #[test]
    fn a_backend_that_stays_slow_is_ejected_for_longer_up_to_the_maximum() {
        let mut bench = Bench::with_a_slow_one();
        let mut lasted = Vec::new();
        for _ in 0..4 {
            bench.records[0].succeeded(bench.now);
            lasted.push(
                bench
                    .judge(0, SpeedVerdict::Slow)
                    .expect("its speed is in doubt")
                    .expect("the ejection is possible"),
            );
            bench.now += *lasted.last().unwrap();
        }
        assert_eq!(lasted, [20, 30, 35, 35].map(|seconds| seconds * SECOND));
        assert_eq!(bench.records[0].ejections(), 5);
    }

    #[test]
    fn a_fine_window_ends_the_doubt_about_speed() {
        let bench = Bench::with_a_slow_one();
        bench.records[0].succeeded(bench.now);
        assert_eq!(bench.judge(0, SpeedVerdict::Fine), None);
        assert_eq!(bench.records[0].streak(), Streak::NONE);
        assert_eq!(
            bench.judge(0, SpeedVerdict::Slow),
            None,
            "two windows are needed again, which are not counted here"
        );
        assert_eq!(bench.eject_for(Cause::Slowness, 0), Ok(10 * SECOND));
    }

    #[test]
    fn a_success_of_a_slow_backend_clears_only_its_failures() {
        let bench = Bench::with_a_slow_one();
        for _ in 0..10 {
            bench.records[0].succeeded(bench.now);
            assert_eq!((bench.fail(0), bench.fail(0)), (None, None), "its responses are not in doubt");
            assert_eq!(bench.records[0].consecutive_failures(), 2);
            bench.records[0].succeeded(bench.now);
            assert_eq!(bench.records[0].consecutive_failures(), 0);
        }
        assert_eq!(bench.judge(0, SpeedVerdict::Slow), Some(Ok(20 * SECOND)));
    }

    #[test]
    fn a_slow_backend_that_fails_after_its_return_has_to_end_both_doubts() {
        let slow_and_failed = || {
            let mut bench = Bench::with_a_slow_one();
            assert_eq!(bench.fail(0), Some(Ok(20 * SECOND)));
            bench.now += 20 * SECOND;
            bench
        };
        let bench = slow_and_failed();
        bench.records[0].succeeded(bench.now);
        assert_eq!(bench.judge(0, SpeedVerdict::Slow), Some(Ok(30 * SECOND)), "its speed is still in doubt");

        let bench = slow_and_failed();
        assert_eq!(bench.judge(0, SpeedVerdict::Fine), None);
        assert_eq!(bench.fail(0), Some(Ok(30 * SECOND)), "its responses are still in doubt");

        let bench = slow_and_failed();
        assert_eq!(bench.judge(0, SpeedVerdict::Fine), None);
        bench.records[0].succeeded(bench.now);
        assert_eq!(bench.records[0].streak(), Streak::NONE);
    }

    #[test]
    fn a_slow_backend_that_fails_later_is_ejected_for_longer() {
        let mut bench = Bench::with_a_slow_one();
        bench.records[0].succeeded(bench.now);
        assert_eq!(bench.fail_until_ejected(0), 20 * SECOND);
        bench.now += 20 * SECOND;
        bench.records[0].succeeded(bench.now);
        assert_eq!(bench.judge(0, SpeedVerdict::Slow), Some(Ok(30 * SECOND)));
    }

    #[test]
    fn an_ejection_for_failures_does_not_put_the_speed_in_doubt() {
        let mut bench = Bench::new(3);
        bench.fail_until_ejected(0);
        bench.now += 10 * SECOND;
        for verdict in [SpeedVerdict::Slow, SpeedVerdict::Fine] {
            assert_eq!(bench.judge(0, verdict), None);
        }
        assert_eq!(bench.fail(0), Some(Ok(20 * SECOND)), "its responses are still in doubt");
    }

    #[test]
    fn a_window_that_began_before_the_end_of_the_ejection_does_not_count() {
        let mut bench = Bench::with_a_slow_one();
        let during = bench.now - Duration::from_nanos(1);
        bench.now += SECOND;
        bench.records[0].succeeded(bench.now);
        for verdict in [SpeedVerdict::Slow, SpeedVerdict::Fine] {
            assert_eq!(bench.judge_since(0, verdict, during), None);
        }
        assert_eq!(bench.judge(0, SpeedVerdict::Slow), Some(Ok(20 * SECOND)), "it is still on probation");
    }

    #[test]
    fn a_rejected_ejection_for_slowness_is_requested_again_after_each_window() {
        let mut bench = Bench::with_a_slow_one();
        (bench.ready[1], bench.ready[2]) = (false, false);
        for _ in 0..3 {
            assert_eq!(bench.judge(0, SpeedVerdict::Slow), Some(Err(NotEjected::LastOne)));
        }
        bench.ready[1] = true;
        assert_eq!(bench.judge(0, SpeedVerdict::Slow), Some(Ok(20 * SECOND)));
    }

    #[test]
    fn a_request_that_began_before_the_end_of_the_ejection_does_not_count() {
        let mut bench = Bench::new(3);
        let before = bench.now;
        bench.now += SECOND;
        bench.fail_until_ejected(0);
        let during = bench.now + 5 * SECOND;
        let until = bench.records[0].ejected_until(bench.now);
        for _ in 0..10 {
            assert_eq!(bench.fail_since(0, before), None);
        }
        assert_eq!(bench.records[0].ejected_until(bench.now), until, "it is not extended");

        bench.now += 12 * SECOND;
        for began in [before, during] {
            bench.records[0].succeeded(began);
            assert!((0..10).all(|_| bench.fail_since(0, began).is_none()), "it is not ejected again");
        }
        assert_eq!(bench.fail(0), Some(Ok(20 * SECOND)), "it is still on probation");
    }

    #[test]
    fn an_ejection_is_not_extended() {
        let mut bench = Bench::new(3);
        bench.fail_until_ejected(0);
        bench.now += SECOND;
        assert_eq!(bench.eject(0), Err(NotEjected::AlreadyEjected));
        bench.now += 9 * SECOND;
        assert_eq!(bench.ejected(), NONE);
    }

    #[test]
    fn the_share_is_rounded_down() {
        for (backends, percent, most) in
            [(2, 50, 1), (3, 50, 1), (4, 50, 2), (5, 50, 2), (9, 10, 0), (10, 10, 1), (3, 0, 0), (5, 100, 4)]
        {
            let bench = Bench::with(backends, |settings| settings.max_ejected_percent = percent);
            let outcomes: Vec<_> = (0..backends).map(|which| bench.eject(which)).collect();
            let ejected = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
            assert_eq!(ejected, most, "{percent} % of {backends}: {outcomes:?}");
            let reason = if most + 1 == backends { NotEjected::LastOne } else { NotEjected::Share };
            assert_eq!(outcomes.last(), Some(&Err(reason)));
        }
    }

    #[test]
    fn the_last_available_backend_is_not_ejected() {
        assert_eq!(Bench::new(1).eject(0), Err(NotEjected::LastOne));
        assert_eq!(Bench::new(0).eject(0), Err(NotEjected::Unknown));

        let mut bench = Bench::with(3, |settings| settings.max_ejected_percent = 100);
        (bench.ready[1], bench.draining[2]) = (false, true);
        assert_eq!(bench.eject(0), Err(NotEjected::LastOne));
        bench.draining[2] = false;
        assert_eq!(bench.eject(0), Ok(10 * SECOND));
        assert_eq!(bench.eject(1), Ok(10 * SECOND), "2 is left");
        assert_eq!(bench.eject(2), Err(NotEjected::LastOne));
        bench.now += 10 * SECOND;
        assert_eq!(bench.eject(2), Ok(10 * SECOND), "0 is back");
    }

    #[test]
    fn a_rejected_ejection_is_requested_again_after_more_failures() {
        let mut bench = Bench::new(2);
        bench.ready[1] = false;
        let requested: Vec<_> = (0..9).map(|_| bench.fail(0).is_some()).collect();
        assert_eq!(requested, [false, false, true, false, false, true, false, false, true]);
        bench.ready[1] = true;
        assert_eq!((bench.fail(0), bench.fail(0)), (None, None));
        assert_eq!(bench.fail(0), Some(Ok(10 * SECOND)));
    }

    #[test]
    fn jitter_adds_a_tenth_at_most_and_never_exceeds_the_maximum() {
        let settings = settings();
        assert_eq!(ejection(&settings, 1, 0.5), Duration::from_millis(10_500));
        assert_eq!(ejection(&settings, 3, 0.999), Duration::from_millis(32_997));
        assert_eq!(ejection(&settings, 4, 0.999), 35 * SECOND);
        for odd in [f64::NAN, -1.0, f64::NEG_INFINITY] {
            assert_eq!(ejection(&settings, 1, odd), 10 * SECOND);
        }
        assert_eq!(ejection(&settings, 1, f64::INFINITY), 11 * SECOND);
        assert_eq!(ejection(&settings, u32::MAX, 0.0), 35 * SECOND);
    }

    #[test]
    fn the_count_of_ejections_saturates() {
        let mut streak = Streak { ejections: Streak::MOST_EJECTIONS - 1, ..Streak::NONE };
        for _ in 0..3 {
            streak = streak.ejected(Cause::Slowness);
            assert_eq!(Streak::unpack(streak.pack()), streak);
        }
        assert_eq!(streak.ejections, Streak::MOST_EJECTIONS);
    }

    #[test]
    fn nothing_overflows() {
        let longest = |settings: &mut OutlierSettings| {
            (settings.base_ejection, settings.max_ejection) = (Duration::MAX, Duration::MAX);
        };
        let bench = Bench::with(3, longest);
        assert!(bench.eject(0).is_ok());
        assert_eq!(bench.ejected(), [0]);
        let _ = bench.records[0].ejected_until(bench.now);
    }

    #[test]
    fn simultaneous_failures_are_all_counted() {
        const THREADS: usize = 8;
        const EACH: usize = 3000;
        let bench = Bench::new(2);
        let times = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    let requested =
                        (0..EACH).filter(|_| bench.records[0].failed(&bench.settings, bench.now)).count();
                    times.fetch_add(requested, Ordering::Relaxed);
                });
            }
        });
        assert_eq!(bench.records[0].consecutive_failures() as usize, THREADS * EACH);
        assert_eq!(times.into_inner(), THREADS * EACH / 3);
    }

    #[test]
    fn simultaneous_ejections_do_not_exceed_the_share() {
        const THREADS: usize = 4;
        const BACKENDS: usize = 64;
        for _ in 0..100 {
            let bench = Bench::new(BACKENDS);
            let start = Barrier::new(THREADS);
            std::thread::scope(|scope| {
                for thread in 0..THREADS {
                    let (bench, start) = (&bench, &start);
                    scope.spawn(move || {
                        start.wait();
                        (thread..BACKENDS)
                            .step_by(THREADS)
                            .filter(|which| bench.eject(*which).is_ok())
                            .count()
                    });
                }
            });
            assert_eq!(bench.ejected().len(), BACKENDS / 2);
        }
    }

    #[test]
    fn an_ejection_waits_for_the_decision_about_another() {
        let bench = Bench::new(3);
        let decision = bench.ejector.0.lock();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| bench.eject(1));
            let deadline = Instant::now() + Duration::from_millis(30);
            while Instant::now() < deadline && !waiting.is_finished() {
                std::thread::yield_now();
            }
            bench.records[0].eject(&bench.settings, Cause::Failures, bench.now, 0.0);
            drop(decision);
            assert_eq!(waiting.join().unwrap(), Err(NotEjected::Share));
        });
        assert_eq!(bench.ejected(), [0]);
    }

    #[test]
    fn a_success_that_races_with_an_ejection_does_not_undo_it() {
        for _ in 0..500 {
            let mut bench = Bench::new(3);
            assert_eq!((bench.fail(0), bench.fail(0)), (None, None));
            assert!(bench.records[0].failed(&bench.settings, bench.now));
            let start = Barrier::new(2);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    start.wait();
                    bench.records[0].succeeded(bench.now);
                });
                start.wait();
                bench.eject(0).expect("the ejection is possible");
            });
            assert_eq!(bench.ejected(), [0]);
            bench.now += 10 * SECOND;
            // In either order, the backend is on probation.
            assert!(matches!(bench.fail(0), Some(Ok(_))));
        }
    }

    /// A model of one record in plain values and milliseconds, without atomics.
    #[derive(Clone, Default)]
    struct Model {
        failures: u32,
        in_a_row: u32,
        may_fail: bool,
        may_be_slow: bool,
        until: u64,
        total: u64,
    }

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        Success {
            which: usize,
            age: u64,
        },
        Failure {
            which: usize,
            age: u64,
        },
        /// The backend is slow in two windows.
        Slow {
            which: usize,
        },
        Window {
            which: usize,
            verdict: SpeedVerdict,
            age: u64,
        },
        Ready(usize, bool),
        Draining(usize, bool),
    }

    fn any_step(backends: usize) -> impl Strategy<Value = Step> {
        let which = 0..backends;
        let age = prop_oneof![3 => Just(0u64), 1 => 0u64..40_000];
        prop_oneof![
            3 => prop_oneof![0u64..2000, Just(10_000u64), 0u64..40_000].prop_map(Step::Wait),
            1 => (which.clone(), age.clone()).prop_map(|(which, age)| Step::Success { which, age }),
            12 => (which.clone(), age.clone()).prop_map(|(which, age)| Step::Failure { which, age }),
            1 => which.clone().prop_map(|which| Step::Slow { which }),
            2 => (which.clone(), any_verdict(), age)
                .prop_map(|(which, verdict, age)| Step::Window { which, verdict, age }),
            1 => (which.clone(), any::<bool>()).prop_map(|(which, ready)| Step::Ready(which, ready)),
            1 => (which, any::<bool>()).prop_map(|(which, draining)| Step::Draining(which, draining)),
        ]
    }

    fn any_verdict() -> impl Strategy<Value = SpeedVerdict> {
        prop_oneof![Just(SpeedVerdict::Fine), Just(SpeedVerdict::Slow)]
    }

    fn any_steps() -> impl Strategy<Value = (usize, u8, Vec<Step>)> {
        (1usize..8, 0u8..=100).prop_flat_map(|(backends, percent)| {
            (Just(backends), Just(percent), vec(any_step(backends), 0..200))
        })
    }

    impl Model {
        fn no_longer(&mut self, doubt: fn(&mut Self) -> &mut bool) {
            *doubt(self) = false;
            if !self.may_fail && !self.may_be_slow {
                self.in_a_row = 0;
            }
        }
    }

    /// Returns what the model expects of a failure: the duration of the ejection in milliseconds, or `None`.
    fn model_failure(bench: &Bench, models: &mut [Model], which: usize, began: u64, now: u64) -> Option<u64> {
        let model = &mut models[which];
        if began < model.until {
            return None;
        }
        model.failures += 1;
        let is_time = (model.may_fail && model.failures == 1) || model.failures.is_multiple_of(3);
        is_time.then(|| model_ejection(bench, models, Cause::Failures, which, now)).flatten()
    }

    /// Returns what the model expects of a window.
    fn model_window(
        bench: &Bench,
        models: &mut [Model],
        (which, verdict): (usize, SpeedVerdict),
        began: u64,
        now: u64,
    ) -> Option<u64> {
        let model = &mut models[which];
        if began < model.until || !model.may_be_slow {
            return None;
        }
        if verdict == SpeedVerdict::Fine {
            model.no_longer(|model| &mut model.may_be_slow);
            return None;
        }
        model_ejection(bench, models, Cause::Slowness, which, now)
    }

    fn model_ejection(
        bench: &Bench,
        models: &mut [Model],
        cause: Cause,
        which: usize,
        now: u64,
    ) -> Option<u64> {
        let ejected = models.iter().filter(|model| now < model.until).count();
        let share = (ejected + 1) * 100 <= models.len() * usize::from(bench.settings.max_ejected_percent);
        let is_left = |other: usize| {
            other != which && bench.ready[other] && !bench.draining[other] && now >= models[other].until
        };
        if now < models[which].until || !share || !(0..models.len()).any(is_left) {
            return None;
        }
        let model = &mut models[which];
        model.in_a_row += 1;
        model.total += 1;
        (model.failures, model.may_fail) = (0, true);
        model.may_be_slow |= cause == Cause::Slowness;
        let lasts = (10_000 * u64::from(model.in_a_row)).min(35_000);
        model.until = now + lasts;
        Some(lasts)
    }

    fn check_against_model(backends: usize, percent: u8, steps: Vec<Step>) -> Result<(), TestCaseError> {
        let mut bench = Bench::with(backends, |settings| settings.max_ejected_percent = percent);
        let mut models = vec![Model::default(); backends];
        for step in steps {
            let now = u64::try_from((bench.now - bench.began).as_millis()).unwrap();
            let began = |age| now.saturating_sub(age);
            let instant = |millis| bench.began + Duration::from_millis(millis);
            match step {
                Step::Wait(millis) => bench.now += Duration::from_millis(millis),
                Step::Success { which, age } => {
                    bench.records[which].succeeded(instant(began(age)));
                    if began(age) >= models[which].until {
                        models[which].failures = 0;
                        models[which].no_longer(|model| &mut model.may_fail);
                    }
                }
                Step::Slow { which } => {
                    let expected = model_ejection(&bench, &mut models, Cause::Slowness, which, now);
                    let outcome = bench.eject_for(Cause::Slowness, which).ok();
                    prop_assert_eq!(outcome, expected.map(Duration::from_millis));
                }
                Step::Window { which, verdict, age } => {
                    let expected = model_window(&bench, &mut models, (which, verdict), began(age), now);
                    let outcome = bench.judge_since(which, verdict, instant(began(age))).and_then(Result::ok);
                    prop_assert_eq!(outcome, expected.map(Duration::from_millis));
                }
                Step::Failure { which, age } => {
                    let expected = model_failure(&bench, &mut models, which, began(age), now);
                    let outcome = bench.fail_since(which, instant(began(age))).and_then(Result::ok);
                    prop_assert_eq!(outcome, expected.map(Duration::from_millis));
                    if outcome.is_some() {
                        let left = bench.standings();
                        prop_assert!(
                            left.iter().any(|s| s.ready && !s.draining && !s.record.is_ejected(bench.now))
                        );
                    }
                }
                Step::Ready(which, ready) => bench.ready[which] = ready,
                Step::Draining(which, draining) => bench.draining[which] = draining,
            }
            let now = u64::try_from((bench.now - bench.began).as_millis()).unwrap();
            prop_assert!(bench.ejected().len() * 100 <= backends * usize::from(percent));
            for (record, model) in bench.records.iter().zip(&models) {
                prop_assert_eq!(record.is_ejected(bench.now), now < model.until);
                prop_assert_eq!(record.consecutive_failures(), model.failures);
                prop_assert_eq!(record.streak().ejections, model.in_a_row);
                prop_assert_eq!(record.ejections(), model.total);
            }
        }
        Ok(())
    }

    fn any_streak() -> impl Strategy<Value = Streak> {
        (0..=Streak::MOST_EJECTIONS, any::<bool>(), any::<bool>(), prop_oneof![Just(0), any::<u32>()])
            .prop_map(|(ejections, slow, unproven, failures)| Streak { ejections, slow, unproven, failures })
            .prop_map(Streak::settled)
    }

    proptest! {
        #[test]
        fn a_streak_fits_and_a_success_is_skipped_only_if_it_changes_nothing(streak in any_streak()) {
            prop_assert_eq!(Streak::unpack(streak.pack()), streak);
            let is_skipped = streak.pack() & Streak::FORGIVEN == 0;
            prop_assert_eq!(is_skipped, streak.succeeded() == streak);
        }

        #[test]
        fn any_sequence_matches_a_simple_model((backends, percent, steps) in any_steps()) {
            check_against_model(backends, percent, steps)?;
        }

        #[test]
        fn an_ejection_lasts_base_times_n_and_at_most_a_tenth_more(
            base in 0u64..1000, max in 0u64..10_000, n in 1u32..100, jitter in 0.0..1.0f64,
        ) {
            let (base_ejection, max_ejection) = (Duration::from_millis(base), Duration::from_millis(max));
            let settings = OutlierSettings { base_ejection, max_ejection, ..settings() };
            let plain = (base_ejection * n).min(max_ejection);
            let lasts = ejection(&settings, n, jitter);
            prop_assert!(plain <= lasts && lasts <= (plain * 11 / 10).min(max_ejection), "{:?}", lasts);
        }
    }
}
