//! Finds backends that respond, but far more slowly than the others.
//!
//! Huang et al., "Gray Failure: The Achilles' Heel of Cloud-Scale Systems" (HotOS 2017), describe components that fail
//! for their users while every check finds them healthy. Here the requests themselves are the measurement. Over a
//! window, the mean time to first byte of each backend is compared with the median of these means. A backend is an
//! outlier when its mean
//!
//! - is more than `ratio` times the median, **and**
//! - is at least 10 ms above it, because a multiple of a very short time harms no client,
//!
//! in two consecutive windows, so that a single pause of a garbage collector ejects no backend. Backends with few
//! responses in the window are not compared.
//!
//! After such an ejection a backend is on probation, which [`outlier`](super::outlier) records. One window in which it
//! is an outlier ejects it again, for longer. One window in which it is compared and is no outlier ends the probation.
//! Successful responses do not end it, because the backend never gave bad ones. A window in which the backend is not
//! compared changes nothing. The window in which a backend comes back from an ejection of any kind does not count,
//! because what is left of it might be short enough for one pause to fill it.
//!
//! The median of an even number of means is the upper one of the two in the middle. So **fewer than half of the
//! compared backends are outliers**, whatever the ratio, and finding one takes at least three: when half of a pool is
//! slow, that is the speed of this pool. With fewer than three, no backend is compared, because none could be found
//! slow, and a slow backend must not end its probation only because the others are away.
//!
//! Each backend has a sum and a count for the window rather than a moving average. A window says how many responses it
//! represents, forgets everything before it, and costs a request one load and one addition. The first request that
//! finds the window over starts the next one with a single exchange and judges the backends; all others go on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::outlier::{OutlierRecord, SpeedVerdict, nanoseconds};
use super::settings::SlowBackendSettings;

/// The minimum distance of an outlier above the median, in microseconds.
const MIN_EXCESS: f64 = 10_000.0;
/// The minimum number of judged backends: with fewer means none can be an outlier.
const MIN_JUDGED: usize = 3;

/// The window of one pool.
#[derive(Debug)]
pub(super) struct SlowBackends {
    settings: SlowBackendSettings,
    /// The instant from which all times are counted, in nanoseconds.
    epoch: Instant,
    /// The beginning of the window.
    began: AtomicU64,
}

/// The response times of one backend in the window.
#[derive(Debug, Default)]
pub(super) struct Samples {
    /// A packed [`Sum`], so that the count and the sum always belong together.
    sum: AtomicU64,
    /// Whether the backend was an outlier in the previous window.
    was_slow: AtomicBool,
}

/// The number of responses and the sum of their times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    count: u64,
    microseconds: u64,
}

/// Returns whether each mean time, in microseconds, is an outlier. `None` is a backend that is not judged.
fn outliers(means: &[Option<f64>], ratio: f64) -> Vec<bool> {
    let mut judged: Vec<f64> = means.iter().flatten().copied().collect();
    judged.sort_unstable_by(f64::total_cmp);
    let Some(median) = judged.get(judged.len() / 2) else {
        return vec![false; means.len()];
    };
    let is_outlier = |mean: f64| mean > median * ratio.max(1.0) && mean >= median + MIN_EXCESS;
    means.iter().map(|mean| mean.is_some_and(is_outlier)).collect()
}

/// Returns the verdict about each backend; `None` if it is not judged.
fn verdicts(means: &[Option<f64>], ratio: f64) -> Vec<Option<SpeedVerdict>> {
    if means.iter().flatten().count() < MIN_JUDGED {
        return vec![None; means.len()];
    }
    let verdict = |is_outlier| if is_outlier { SpeedVerdict::Slow } else { SpeedVerdict::Fine };
    let are_outliers = outliers(means, ratio);
    means.iter().zip(are_outliers).map(|(mean, is_outlier)| mean.map(|_| verdict(is_outlier))).collect()
}

/// Returns whether the verdict about the window that began at `began` ejects. It is passed to both the samples and the
/// record, because both store it.
fn is_time(
    (samples, record): (&Samples, &OutlierRecord),
    verdict: Option<SpeedVerdict>,
    began: Instant,
) -> bool {
    let verdict = verdict.filter(|_| record.was_in_use_since(began));
    let stays_slow = samples.stays_slow(verdict == Some(SpeedVerdict::Slow));
    let is_slow_again = verdict.is_some_and(|verdict| record.judged(verdict, began));
    stays_slow || is_slow_again
}

// === impl SlowBackends ===

impl SlowBackends {
    /// Begins the first window. Later times must not be before `now`.
    pub(super) fn new(settings: SlowBackendSettings, now: Instant) -> Self {
        Self { settings, epoch: now, began: AtomicU64::new(0) }
    }

    /// Returns the indices of the backends to eject. The list is empty, after one load, unless this call finds that the
    /// window is over; then the next one begins.
    ///
    /// `members` has an entry for each backend of the pool, always in the same order. The caller calls this after each
    /// response: a window without responses lasts until the next one.
    pub(super) fn close_window<'a>(
        &self,
        now: Instant,
        members: impl Iterator<Item = (&'a Samples, &'a OutlierRecord)>,
    ) -> Vec<usize> {
        let Some(began) = self.next_window(nanoseconds(self.epoch, now)) else {
            return Vec::new();
        };
        let (members, means): (Vec<_>, Vec<_>) = members
            .map(|(samples, record)| ((samples, record), samples.take().mean(self.settings.min_samples)))
            .unzip();
        let verdicts = verdicts(&means, self.settings.ratio);
        let judged = members.into_iter().zip(verdicts).enumerate();
        judged
            .filter_map(|(index, (member, verdict))| is_time(member, verdict, began).then_some(index))
            .collect()
    }

    /// Returns the beginning of the window if it is over and no other thread ends it.
    fn next_window(&self, now: u64) -> Option<Instant> {
        let began = self.began.load(Ordering::Relaxed);
        let is_over = u128::from(now.saturating_sub(began)) >= self.settings.window.as_nanos().max(1);
        let turns = is_over && self.begin(began, now);
        turns.then(|| self.epoch.checked_add(Duration::from_nanos(began))).flatten()
    }

    /// Begins a window and returns true, unless another one has begun since the one at `began`.
    fn begin(&self, began: u64, now: u64) -> bool {
        self.began.compare_exchange(began, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

// === impl Samples ===

impl Samples {
    /// Adds a response. A full window, which has half a million responses or 100 days of time, ignores further ones:
    /// they would not change the mean.
    pub(super) fn observe(&self, time_to_first_byte: Duration) {
        if !Sum::unpack(self.sum.load(Ordering::Relaxed)).is_full() {
            self.sum.fetch_add(Sum::of(time_to_first_byte).pack(), Ordering::Relaxed);
        }
    }

    /// Takes the sum of the window; the next one begins at 0.
    fn take(&self) -> Sum {
        Sum::unpack(self.sum.swap(0, Ordering::Relaxed))
    }

    /// Returns whether the backend is an outlier for the second time in a row. After that, two more windows are needed.
    fn stays_slow(&self, is_slow: bool) -> bool {
        let stays = is_slow && self.was_slow.load(Ordering::Relaxed);
        self.was_slow.store(is_slow && !stays, Ordering::Relaxed);
        stays
    }
}

// === impl Sum ===

impl Sum {
    /// The width of the sum, in the lower bits. The count has the 20 bits above.
    const SUM_BITS: u32 = 44;
    /// The count at which a window is full. It is half of the range, so that threads that add to an almost full window
    /// at the same moment do not overflow it.
    const FULL_COUNT: u64 = 1 << 19;
    const FULL_SUM: u64 = 1 << 43;
    /// The longest time that is added, 71 minutes.
    const LONGEST: u64 = 1 << 32;

    fn of(duration: Duration) -> Self {
        let microseconds = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).min(Self::LONGEST);
        Self { count: 1, microseconds }
    }

    fn pack(self) -> u64 {
        self.count << Self::SUM_BITS | self.microseconds
    }

    fn unpack(packed: u64) -> Self {
        Self { count: packed >> Self::SUM_BITS, microseconds: packed & ((1 << Self::SUM_BITS) - 1) }
    }

    fn is_full(self) -> bool {
        self.count >= Self::FULL_COUNT || self.microseconds >= Self::FULL_SUM
    }

    /// Returns the mean in microseconds; `None` if there are too few responses.
    fn mean(self, min_samples: u32) -> Option<f64> {
        let enough = self.is_full() || self.count >= u64::from(min_samples.max(1));
        enough.then(|| self.microseconds as f64 / self.count as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::super::outlier::{Candidate, Cause, Ejector};
    use super::super::settings::OutlierSettings;
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};

    const WINDOW: Duration = Duration::from_secs(10);
    const NONE_EJECTED: [usize; 0] = [];
    const SLOW: [u64; 4] = [20, 20, 100, 20];
    const FINE: [u64; 4] = [20; 4];

    /// Returns settings with a ratio of 3 and 10 responses in 10 s.
    fn settings() -> SlowBackendSettings {
        SlowBackendSettings { ratio: 3.0, min_samples: 10, window: WINDOW }
    }

    /// A pool and its clock.
    struct Bench {
        slow_backends: SlowBackends,
        samples: Vec<Samples>,
        records: Vec<OutlierRecord>,
        ejector: Ejector,
        now: Instant,
    }

    impl Bench {
        fn new(backends: usize) -> Self {
            let now = Instant::now();
            let samples = (0..backends).map(|_| Samples::default()).collect();
            let records = (0..backends).map(|_| OutlierRecord::new(now)).collect();
            Self {
                slow_backends: SlowBackends::new(settings(), now),
                samples,
                records,
                ejector: Ejector::default(),
                now,
            }
        }

        fn respond(&self, which: usize, count: usize, millis: u64) {
            for _ in 0..count {
                self.samples[which].observe(Duration::from_millis(millis));
            }
        }

        fn close_window(&self) -> Vec<usize> {
            self.slow_backends.close_window(self.now, self.samples.iter().zip(&self.records))
        }

        /// Runs a window in which each backend sends 20 responses with these times in milliseconds.
        fn window(&mut self, millis: &[u64]) -> Vec<usize> {
            for (which, millis) in millis.iter().enumerate() {
                self.respond(which, 20, *millis);
            }
            self.now += WINDOW;
            self.close_window()
        }

        /// Ejects a backend for three windows times n, without jitter.
        fn eject(&self, which: usize, cause: Cause) -> Duration {
            let settings =
                OutlierSettings { base_ejection: 3 * WINDOW, max_ejection: 8 * WINDOW, ..Default::default() };
            let standing = |record| Candidate { ready: true, draining: false, record };
            let members: Vec<_> = self.records.iter().map(standing).collect();
            let ejected = self.ejector.eject(&settings, &members, which, cause, self.now, 0.0);
            ejected.expect("the ejection is possible")
        }

        /// Runs a window in which a backend returns just after its beginning, after an ejection of this duration.
        fn come_back(&mut self, after: Duration, millis: &[u64]) {
            self.now += after - Duration::from_nanos(1);
            self.close_window();
            assert_eq!(self.window(millis), NONE_EJECTED, "the backend returned in this window");
        }

        /// Returns a bench whose third backend of four was slow, was ejected, and is back.
        fn with_one_that_was_slow() -> Self {
            let mut bench = Self::new(4);
            bench.window(&SLOW);
            assert_eq!(bench.window(&SLOW), [2]);
            let lasts = bench.eject(2, Cause::Slowness);
            bench.come_back(lasts, &FINE);
            bench
        }
    }

    #[test]
    fn a_backend_that_stays_slow_is_found_after_two_windows() {
        let mut bench = Bench::new(4);
        assert_eq!(bench.window(&[20, 20, 100, 20]), NONE_EJECTED);
        assert_eq!(bench.window(&[20, 20, 100, 20]), [2]);
        assert_eq!(bench.window(&[20, 20, 100, 20]), NONE_EJECTED, "two windows are needed again");
        assert_eq!(bench.window(&[20, 20, 100, 20]), [2]);
    }

    #[test]
    fn a_window_that_is_not_slow_resets_the_count() {
        let mut bench = Bench::new(3);
        for slow_or_not in [100, 20, 100, 20] {
            assert_eq!(bench.window(&[20, slow_or_not, 20]), NONE_EJECTED);
        }
    }

    #[test]
    fn a_window_in_which_the_backend_is_not_judged_resets_the_count() {
        let mut bench = Bench::new(4);
        assert_eq!(bench.window(&[20, 20, 20, 100]), NONE_EJECTED);
        bench.respond(3, 9, 100);
        assert_eq!(bench.window(&[20, 20, 20]), NONE_EJECTED);
        assert_eq!(bench.window(&[20, 20, 20, 100]), NONE_EJECTED);
        assert_eq!(bench.window(&[20, 20, 20, 100]), [3]);
    }

    #[test]
    fn a_backend_that_stays_slow_is_ejected_for_longer_after_one_window_each() {
        let mut bench = Bench::new(4);
        bench.window(&SLOW);
        let mut lasted = Vec::new();
        for _ in 0..4 {
            assert_eq!(bench.window(&SLOW), [2]);
            let lasts = bench.eject(2, Cause::Slowness);
            lasted.push(lasts);
            bench.come_back(lasts, &SLOW);
            bench.records[2].succeeded(bench.now);
        }
        assert_eq!(lasted, [3, 6, 8, 8].map(|windows| windows * WINDOW));
    }

    #[test]
    fn a_fine_window_ends_probation() {
        let mut bench = Bench::with_one_that_was_slow();
        bench.records[2].succeeded(bench.now);
        assert_eq!(bench.window(&FINE), NONE_EJECTED);
        assert_eq!(bench.window(&SLOW), NONE_EJECTED, "two windows are needed again");
        assert_eq!(bench.window(&SLOW), [2]);
        assert_eq!(bench.eject(2, Cause::Slowness), 3 * WINDOW);
    }

    #[test]
    fn a_window_in_which_the_backend_is_not_judged_does_not_end_probation() {
        let mut bench = Bench::with_one_that_was_slow();
        bench.records[2].succeeded(bench.now);
        bench.respond(2, 9, 20);
        bench.respond(3, 20, 20);
        assert_eq!(bench.window(&[20, 20]), NONE_EJECTED, "there are too few responses");
        assert_eq!(bench.window(&SLOW), [2]);
    }

    #[test]
    fn a_window_with_fewer_than_three_judged_backends_does_not_end_probation() {
        let mut bench = Bench::with_one_that_was_slow();
        bench.records[2].succeeded(bench.now);
        for which in [0, 2] {
            bench.respond(which, 20, 20);
        }
        assert_eq!(bench.window(&[]), NONE_EJECTED);
        assert_eq!(bench.window(&SLOW), [2]);
    }

    #[test]
    fn a_rejected_ejection_is_requested_again_after_the_next_window() {
        let mut bench = Bench::with_one_that_was_slow();
        assert_eq!(bench.window(&SLOW), [2]);
        assert_eq!(bench.window(&SLOW), [2]);
    }

    #[test]
    fn a_failure_does_not_count_as_slowness() {
        let mut bench = Bench::new(4);
        let lasts = bench.eject(2, Cause::Failures);
        bench.come_back(lasts, &SLOW);
        assert_eq!(bench.window(&SLOW), NONE_EJECTED);
        assert_eq!(bench.window(&SLOW), [2]);
        assert_eq!(bench.eject(2, Cause::Slowness), 6 * WINDOW, "there was no success in between");
    }

    #[test]
    fn backends_are_judged_once_when_the_window_is_over() {
        let mut bench = Bench::new(3);
        bench.window(&[20, 20, 100]);
        (0..3).for_each(|which| bench.respond(which, 20, if which == 2 { 100 } else { 20 }));
        bench.now += WINDOW - Duration::from_nanos(1);
        assert_eq!(bench.close_window(), NONE_EJECTED);
        bench.now += Duration::from_nanos(1);
        assert_eq!(bench.close_window(), [2]);
        assert_eq!(bench.close_window(), NONE_EJECTED);
        assert!(bench.samples.iter().all(|samples| samples.take() == Sum::default()));
    }

    #[test]
    fn only_one_thread_ends_a_window() {
        let slow_backends = SlowBackends::new(settings(), Instant::now());
        assert!(slow_backends.begin(0, 10));
        assert!(!slow_backends.begin(0, 10), "another thread has ended the same window");
        assert!(!slow_backends.begin(0, 11));
        assert!(slow_backends.begin(10, 20));
    }

    #[test]
    fn fewer_than_three_backends_are_not_judged() {
        assert_eq!(outliers(&[Some(1.0), Some(1e9)], 2.0), [false, false]);
        assert_eq!(outliers(&[Some(1.0), None, Some(1e9)], 2.0), [false, false, false]);
        assert_eq!(outliers(&[Some(1.0), Some(1.0), Some(1e9)], 2.0), [false, false, true]);
        assert_eq!(outliers(&[], 2.0), [] as [bool; 0]);
    }

    #[test]
    fn fewer_than_three_backends_are_not_fine_either() {
        assert_eq!(verdicts(&[Some(1.0), None, Some(1.0)], 2.0), [None; 3]);
        let (fine, slow) = (Some(SpeedVerdict::Fine), Some(SpeedVerdict::Slow));
        assert_eq!(verdicts(&[Some(1.0), None, Some(1.0), Some(1e9)], 2.0), [fine, None, fine, slow]);
    }

    #[test]
    fn a_few_milliseconds_do_not_eject() {
        let means = |slow| [Some(1000.0), Some(1000.0), Some(slow)];
        assert_eq!(outliers(&means(10_999.0), 2.0), [false; 3]);
        assert_eq!(outliers(&means(11_000.0), 2.0), [false, false, true]);
    }

    #[test]
    fn a_mean_equal_to_the_ratio_is_not_an_outlier() {
        let means = |slow| [Some(20_000.0), Some(20_000.0), Some(slow)];
        assert_eq!(outliers(&means(60_000.0), 3.0), [false; 3]);
        assert_eq!(outliers(&means(60_001.0), 3.0), [false, false, true]);
    }

    #[test]
    fn in_a_pool_that_is_half_slow_no_backend_is_an_outlier() {
        let (fast, slow) = (Some(1000.0), Some(1_000_000.0));
        assert_eq!(outliers(&[fast, fast, slow, slow], 1.1), [false; 4]);
        assert_eq!(outliers(&[fast, slow, slow], 1.1), [false; 3]);
        assert_eq!(outliers(&[fast, fast, fast, slow, slow], 1.1), [false, false, false, true, true]);
    }

    #[test]
    fn a_ratio_that_is_nan_or_too_small_ejects_less_than_half() {
        let means = [Some(0.0), Some(20_000.0), Some(40_000.0)];
        for odd in [f64::NAN, -5.0, 0.0] {
            assert_eq!(outliers(&means, odd), [false, false, true]);
        }
        assert_eq!(outliers(&means, f64::INFINITY), [false; 3]);
    }

    #[test]
    fn a_full_window_keeps_its_mean() {
        let samples = Samples::default();
        for _ in 0..(2 * Sum::FULL_COUNT) {
            samples.observe(Duration::from_millis(7));
        }
        let sum = samples.take();
        assert_eq!(sum.count, Sum::FULL_COUNT);
        assert_eq!(sum.mean(u32::MAX), Some(7000.0), "the minimum is limited to a full window");

        for _ in 0..100_000 {
            samples.observe(Duration::MAX);
        }
        assert_eq!(samples.take().mean(10), Some(Sum::LONGEST as f64));
    }

    #[test]
    fn a_window_without_responses_has_no_mean() {
        assert_eq!(Sum::default().mean(0), None);
    }

    /// Returns a strategy of means in microseconds, some of them missing.
    fn any_means() -> impl Strategy<Value = Vec<Option<f64>>> {
        let mean = (any::<bool>(), 0.0..7.0f64).prop_map(|(there, power)| there.then(|| 10f64.powf(power)));
        vec(mean, 0..30)
    }

    proptest! {
        #[test]
        fn fewer_than_half_are_outliers(means in any_means(), ratio in 1.0..5.0f64) {
            let found = outliers(&means, ratio);
            prop_assert_eq!(found.len(), means.len());
            let judged = means.iter().flatten().count();
            let count = found.iter().filter(|outlier| **outlier).count();
            prop_assert!(count == 0 || 2 * count < judged, "{} of {}", count, judged);
            for (mean, outlier) in means.iter().zip(found) {
                prop_assert!(!outlier || mean.is_some());
            }
        }

        #[test]
        fn noise_below_the_ratio_does_not_eject(
            base in 1.0..1e6f64, noise in vec(1.0..2.0f64, 3..30),
        ) {
            let means: Vec<_> = noise.iter().map(|factor| Some(base * factor)).collect();
            prop_assert!(outliers(&means, 2.0).iter().all(|outlier| !outlier));
        }

        #[test]
        fn the_only_slow_backend_is_found(
            base in 100.0..1e5f64, noise in vec(1.0..1.5f64, 2..30), place in 0usize..30,
        ) {
            let mut means: Vec<_> = noise.iter().map(|factor| Some(base * factor)).collect();
            let place = place % (means.len() + 1);
            means.insert(place, Some(base * 3.1 + MIN_EXCESS * 2.0));
            let found: Vec<_> = (0..means.len()).filter(|index| outliers(&means, 2.0)[*index]).collect();
            prop_assert_eq!(found, [place]);
        }

        #[test]
        fn few_responses_never_eject(counts in vec(0usize..10, 3..8), slow in 0usize..8) {
            let mut bench = Bench::new(counts.len());
            for _ in 0..4 {
                for (which, count) in counts.iter().enumerate() {
                    bench.respond(which, *count, if which == slow { 5000 } else { 1 });
                }
                bench.now += WINDOW;
                prop_assert_eq!(bench.close_window(), NONE_EJECTED);
            }
        }

        #[test]
        fn the_mean_is_that_of_the_observed_times(millis in vec(0u64..100_000, 1..200)) {
            let samples = Samples::default();
            millis.iter().for_each(|millis| samples.observe(Duration::from_millis(*millis)));
            let expected = millis.iter().sum::<u64>() as f64 * 1000.0 / millis.len() as f64;
            prop_assert_eq!(samples.take().mean(1), Some(expected));
        }
    }
}
