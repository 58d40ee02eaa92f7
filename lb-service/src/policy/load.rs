//! The load of each backend: its requests in flight and its response time.
//!
//! The cost is a peak EWMA, an exponentially weighted moving average that rises at once and falls slowly, as in
//! Finagle (`com.twitter.finagle.loadbalancer.PeakEwma`) and tower (`tower::load::PeakEwma`). A response that took
//! longer than the estimate becomes the estimate. A faster response moves it by `1 - exp(-t/10 s)`, where `t` is the
//! time since the last response. Without responses, the estimate falls towards 0 with `exp(-t/10 s)`, so that a slow
//! backend gets requests again.
//!
//! A penalty is for responses that are fast but unwanted. An overloaded backend that rejects requests (429, or 503 with
//! `Retry-After`), or a backend that fails at once, has the shortest time to first byte. Without a penalty, it would
//! get all requests. linkerd's `PenaltyPeakEwma` adds a decaying cost for such a response. [`penalize`](Load::penalize)
//! instead raises the estimate to at least that cost. A sum would grow with each failure of an outage, and then keep
//! requests away from a recovered backend for many times the decay.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pingora::protocols::l4::socket::SocketAddr;

/// The time in which an estimate falls to `1/e`, in seconds.
const DECAY: f64 = 10.0;

/// The cost of a backend without an estimate, in seconds.
const DEFAULT: f64 = 0.030;

/// The time without a response after which the estimate is dropped, in seconds.
///
/// By then, the estimate has fallen to 6 millionths of its value. Without this, a backend that returns after a long
/// time would get every request until its first response.
const FORGOTTEN: f64 = 12.0 * DECAY;

/// The smallest penalty that is displayed, in seconds.
const PERCEPTIBLE: f64 = 0.000_1;

/// The limit in milliseconds up to which a stamp in the future counts as written by a faster thread, and not as 49 days
/// old.
const AHEAD: u32 = 60_000;

/// The load of one backend: its requests in flight and its expected response time.
///
/// The time is a peak EWMA, as in Finagle and tower: a slower response replaces it at once, faster ones move it with a
/// decay of 10 s, and without responses it falls to `1/e` in 10 s. After 120 s without a response, there is no
/// estimate, and the backend costs 30 ms.
///
/// The program must call [`enter`](Self::enter) and [`responded`](Self::responded). Loads are stored by address outside
/// the selector ([`PolicyConfig::load`](super::PolicyConfig::load)), and survive changes of membership and weight while
/// a reference exists.
#[derive(Debug)]
pub struct Load {
    in_flight: AtomicU64,
    /// An [`Estimate`] in one word, so that it changes atomically.
    estimate: AtomicU64,
    /// The estimate without penalties, for display. 0 unless a penalty has raised `estimate`.
    measured: AtomicU64,
    /// The time from which stamps count.
    epoch: Instant,
}

/// One request in flight at a backend, until this is dropped.
#[derive(Debug)]
#[must_use = "the request counts as in flight until this is dropped"]
pub struct InFlight(Arc<Load>);

/// A cost and the time of its measurement. The word 0 means that there is no estimate.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Estimate {
    /// Seconds, more than 0.
    cost: f32,
    /// Milliseconds since the epoch. Wraps around after 49 days.
    stamp: u32,
}

/// The loads of all backends by address. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Loads(Arc<Mutex<HashMap<SocketAddr, Weak<Load>>>>);

// === impl Load ===

impl Load {
    pub(super) fn new(epoch: Instant) -> Self {
        Self { in_flight: AtomicU64::new(0), estimate: AtomicU64::new(0), measured: AtomicU64::new(0), epoch }
    }

    /// Returns the number of requests in flight.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts a request as in flight until the guard is dropped.
    pub fn enter(self: &Arc<Self>) -> InFlight {
        // `Relaxed` is enough here and below, because no other memory is published through the counter.
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }

    /// Counts a request as in flight unless `limit` or more are already. This holds for any number of concurrent
    /// callers.
    pub fn try_enter(self: &Arc<Self>, limit: u64) -> Option<InFlight> {
        let room = |count| (count < limit).then_some(count + 1);
        self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).ok()?;
        Some(InFlight(self.clone()))
    }

    /// Records a response time, from the choice of the backend to the first byte. Call it once per request.
    pub fn responded(&self, after: Duration, now: Instant) {
        let after = after.as_secs_f64();
        let (mut is_peak, stamp) = (false, self.stamp(now));
        self.change(now, |estimate, stamp| {
            let moved = moved(estimate, after, stamp);
            is_peak = moved <= after;
            moved
        });
        if let Some(measured) = self.measured_apart() {
            let measured = measured.filter(|old| !old.is_forgotten(stamp));
            // After a peak, nothing is left of a penalty.
            let word = if is_peak { 0 } else { Estimate::new(moved(measured, after, stamp), stamp).word() };
            self.measured.store(word, Ordering::Relaxed);
        }
    }

    /// Records a rejection or a failure: raises the estimate to at least `cost`, from where it decays. Penalties do not
    /// add up.
    pub fn penalize(&self, cost: Duration, now: Instant) {
        let cost = cost.as_secs_f64();
        let mut raised = None;
        self.change(now, |estimate, stamp| {
            let before = estimate.map_or(DEFAULT, |old| old.decayed(stamp));
            raised = (before < cost).then_some(estimate);
            before.max(cost)
        });
        // Concurrent changes can get lost here, because this value is only displayed.
        if let (Some(before), None) = (raised, self.measured_apart()) {
            self.measured.store(before.unwrap_or(Estimate::NONE).word(), Ordering::Relaxed);
        }
    }

    /// Returns the expected response time including penalties, or 30 ms if there is no estimate.
    pub fn cost(&self, now: Instant) -> Duration {
        duration(self.seconds(now))
    }

    /// Returns the estimate after the last response, without decay and penalties, for display. `None` if there is no
    /// estimate.
    pub fn latest(&self, now: Instant) -> Option<Duration> {
        self.measured(self.stamp(now)).map(|estimate| duration(estimate.cost.into()))
    }

    /// Returns the part of the [`cost`](Self::cost) that comes from penalties. `None` if there is no such part.
    pub fn penalty(&self, now: Instant) -> Option<Duration> {
        let stamp = self.stamp(now);
        self.measured_apart()?;
        let measured = self.measured(stamp).map_or(0.0, |measured| measured.decayed(stamp));
        let penalty = self.known(now)? - measured;
        (penalty > PERCEPTIBLE).then(|| duration(penalty))
    }

    /// Returns the estimate without penalties. `None` if there is no response.
    fn measured(&self, stamp: u32) -> Option<Estimate> {
        match self.measured_apart() {
            Some(measured) => measured.filter(|estimate| !estimate.is_forgotten(stamp)),
            None => self.estimate(stamp),
        }
    }

    /// Returns the estimate without penalties if a penalty has raised the estimate. The inner `None` means that there
    /// was no response.
    fn measured_apart(&self) -> Option<Option<Estimate>> {
        let measured = Estimate::from_word(self.measured.load(Ordering::Relaxed))?;
        Some((measured != Estimate::NONE).then_some(measured))
    }

    pub(super) fn seconds(&self, now: Instant) -> f64 {
        self.known(now).unwrap_or(DEFAULT)
    }

    pub(super) fn is_known(&self, now: Instant) -> bool {
        self.known(now).is_some()
    }

    fn known(&self, now: Instant) -> Option<f64> {
        let stamp = self.stamp(now);
        self.estimate(stamp).map(|estimate| estimate.decayed(stamp))
    }

    fn estimate(&self, stamp: u32) -> Option<Estimate> {
        Estimate::from_word(self.estimate.load(Ordering::Relaxed))
            .filter(|estimate| !estimate.is_forgotten(stamp))
    }

    /// Replaces the estimate by the result of `cost`.
    fn change(&self, now: Instant, mut cost: impl FnMut(Option<Estimate>, u32) -> f64) {
        let stamp = self.stamp(now);
        let next = |word| {
            let old = Estimate::from_word(word).filter(|estimate| !estimate.is_forgotten(stamp));
            Some(Estimate::new(cost(old, stamp), stamp).word())
        };
        // `next` always has a value, so this cannot fail.
        let _ = self.estimate.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    fn stamp(&self, now: Instant) -> u32 {
        // The high bits are cut off on purpose, because stamps wrap around.
        now.saturating_duration_since(self.epoch).as_millis() as u32
    }
}

/// Returns the estimate after a response that took `after` seconds.
fn moved(estimate: Option<Estimate>, after: f64, stamp: u32) -> f64 {
    match estimate.map(|old| (old.decayed(stamp), old.fading(stamp))) {
        Some((cost, fading)) if after < cost => cost + after * (1.0 - fading),
        _ => after,
    }
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

// === impl InFlight ===

impl InFlight {
    /// Returns the load that counts the request.
    pub fn load(&self) -> &Arc<Load> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Estimate ===

impl Estimate {
    /// The placeholder for an estimate that does not exist.
    const NONE: Self = Self { cost: f32::MIN_POSITIVE, stamp: 0 };

    fn new(seconds: f64, stamp: u32) -> Self {
        Self { cost: (seconds as f32).clamp(f32::MIN_POSITIVE, f32::MAX), stamp }
    }

    fn from_word(word: u64) -> Option<Self> {
        (word != 0).then(|| Self { cost: f32::from_bits((word >> 32) as u32), stamp: word as u32 })
    }

    fn word(self) -> u64 {
        u64::from(self.cost.to_bits()) << 32 | u64::from(self.stamp)
    }

    /// Returns the seconds from the measurement to `stamp`.
    fn age(self, stamp: u32) -> f64 {
        let age = stamp.wrapping_sub(self.stamp);
        if age > u32::MAX - AHEAD { 0.0 } else { f64::from(age) / 1000.0 }
    }

    fn is_forgotten(self, stamp: u32) -> bool {
        self.age(stamp) > FORGOTTEN
    }

    /// Returns the fraction that is left after the decay.
    fn fading(self, stamp: u32) -> f64 {
        let age = self.age(stamp);
        if age == 0.0 { 1.0 } else { (-age / DECAY).exp() }
    }

    fn decayed(self, stamp: u32) -> f64 {
        f64::from(self.cost) * self.fading(stamp)
    }
}

// === impl Loads ===

impl Loads {
    /// Returns the load of the backend at `address`, and creates it if there is none.
    pub(super) fn get(&self, address: &SocketAddr, epoch: Instant) -> Arc<Load> {
        let mut loads = self.0.lock();
        if let Some(load) = loads.get(address).and_then(Weak::upgrade) {
            return load;
        }
        if loads.len() == loads.capacity() {
            // Before the map grows, entries without references are removed.
            loads.retain(|_, load| load.strong_count() > 0);
        }
        let load = Arc::new(Load::new(epoch));
        loads.insert(address.clone(), Arc::downgrade(&load));
        load
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::{Strategy, any, prop_assert, prop_oneof, proptest};

    const MS: Duration = Duration::from_millis(1);

    fn load() -> (Arc<Load>, Instant) {
        let epoch = Instant::now();
        (Arc::new(Load::new(epoch)), epoch)
    }

    fn close(actual: Duration, expected: f64) {
        assert!((actual.as_secs_f64() / expected - 1.0).abs() < 1e-4, "{actual:?} is not {expected} s");
    }

    #[test]
    fn guards_count_up_and_down() {
        let (load, _) = load();
        let first = load.enter();
        let second = load.enter();
        assert_eq!(load.in_flight(), 2);
        assert!(Arc::ptr_eq(first.load(), &load));
        drop((first, second));
        assert_eq!(load.in_flight(), 0);
    }

    #[test]
    fn no_request_enters_above_the_limit() {
        let (load, _) = load();
        assert!(load.try_enter(0).is_none());
        let held = [load.try_enter(2), load.try_enter(2)];
        assert!(held.iter().all(Option::is_some) && load.try_enter(2).is_none());
        drop(held);
        assert!(load.try_enter(2).is_some());
    }

    #[test]
    fn concurrent_threads_never_exceed_the_limit() {
        let (load, _) = load();
        let work = || {
            for _ in 0..20_000 {
                let guard = load.try_enter(3);
                assert!(load.in_flight() <= 3);
                drop(guard);
            }
        };
        thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(work))));
        assert_eq!(load.in_flight(), 0);
    }

    #[test]
    fn concurrent_threads_lose_no_measurement() {
        let (load, now) = load();
        let work = |most| (1..=most).for_each(|ms| load.responded(ms * MS, now));
        thread::scope(|scope| [1000, 4030, 2000, 3000].map(|most| drop(scope.spawn(move || work(most)))));
        close(load.cost(now), 4.030);
    }

    #[test]
    fn a_new_backend_costs_30_ms() {
        let (load, now) = load();
        close(load.cost(now + 5000 * MS), 0.030);
    }

    #[test]
    fn a_slow_response_counts_at_once_and_a_fast_one_slowly() {
        let (load, now) = load();
        load.responded(100 * MS, now);
        close(load.cost(now), 0.1);
        load.responded(400 * MS, now);
        close(load.cost(now), 0.4);
        load.responded(10 * MS, now);
        close(load.cost(now), 0.4);
        let later = now + Duration::from_secs(10);
        load.responded(10 * MS, later);
        let left = (-1f64).exp();
        close(load.cost(later), 0.4 * left + 0.01 * (1.0 - left));
    }

    #[test]
    fn the_latest_estimate_does_not_decay_but_is_dropped() {
        let (load, now) = load();
        assert_eq!(load.latest(now), None);
        load.responded(1000 * MS, now);
        close(load.latest(now + 100_000 * MS).unwrap(), 1.0);
        assert_eq!(load.latest(now + 121_000 * MS), None);
    }

    #[test]
    fn the_first_response_replaces_the_default() {
        let (load, now) = load();
        load.responded(MS, now);
        close(load.cost(now), 0.001);
        load.responded(Duration::ZERO, now);
        assert!(load.cost(now) <= MS);
    }

    #[test]
    fn the_estimate_decays_and_is_dropped() {
        let (load, now) = load();
        load.responded(1000 * MS, now);
        close(load.cost(now + 5000 * MS), (-0.5f64).exp());
        close(load.cost(now + 100_000 * MS), (-10f64).exp());
        close(load.cost(now + 121_000 * MS), 0.030);
        load.responded(2 * MS, now + 121_000 * MS);
        close(load.cost(now + 121_000 * MS), 0.002);
    }

    #[test]
    fn a_penalty_is_a_minimum_that_decays() {
        let (load, now) = load();
        load.penalize(5000 * MS, now);
        load.penalize(5000 * MS, now);
        close(load.cost(now), 5.0);
        load.penalize(MS, now);
        close(load.cost(now), 5.0);
        // A fast response after a penalty lowers the cost only slowly.
        load.responded(MS, now + 1000 * MS);
        assert!(load.cost(now + 1000 * MS) > 4500 * MS);
        assert!(load.cost(now + 60_000 * MS) < 50 * MS);
    }

    #[test]
    fn a_penalty_is_displayed_apart_from_the_response_time() {
        let (load, now) = load();
        load.penalize(1000 * MS, now);
        assert_eq!(load.latest(now), None, "there was no response");
        close(load.penalty(now).unwrap(), 1.0);
        load.responded(3 * MS, now + 1000 * MS);
        close(load.latest(now + 1000 * MS).unwrap(), 0.003);
        load.penalize(1000 * MS, now + 1000 * MS);
        close(load.latest(now + 1000 * MS).unwrap(), 0.003);
        close(load.penalty(now + 1000 * MS).unwrap(), 0.997);
        close(load.penalty(now + 11_000 * MS).unwrap(), 0.997 * (-1f64).exp());
        load.responded(2000 * MS, now + 11_000 * MS);
        assert_eq!(load.penalty(now + 11_000 * MS), None, "the response took longer than the penalty");
        close(load.latest(now + 11_000 * MS).unwrap(), 2.0);
    }

    #[test]
    fn a_penalty_below_the_response_time_is_not_displayed() {
        let (load, now) = load();
        load.responded(2000 * MS, now);
        load.penalize(1000 * MS, now);
        assert_eq!(load.penalty(now), None);
        close(load.latest(now).unwrap(), 2.0);
    }

    #[test]
    fn stamps_may_stand_still_go_back_or_wrap_around() {
        let (load, epoch) = load();
        let now = epoch + Duration::from_millis(u64::from(u32::MAX));
        load.responded(100 * MS, now);
        close(load.cost(now - 50 * MS), 0.1);
        close(load.cost(now + 1000 * MS), 0.1 * (-0.1f64).exp());
        load.penalize(Duration::MAX, now);
        assert!(load.cost(now) > Duration::from_secs(u64::MAX / 2));
        assert!(load.cost(epoch - MS) > Duration::ZERO);
    }

    #[test]
    fn loads_are_kept_while_a_reference_exists() {
        let (loads, epoch) = (Loads::default(), Instant::now());
        let address = |port: u16| format!("10.0.0.1:{port}").parse::<SocketAddr>().unwrap();
        let kept = loads.get(&address(1), epoch);
        assert!(Arc::ptr_eq(&kept, &loads.get(&address(1), epoch)));
        for port in 2..2000 {
            loads.get(&address(port), epoch);
        }
        assert!(Arc::ptr_eq(&kept, &loads.get(&address(1), epoch)));
        assert!(loads.0.lock().len() < 10, "the others had no reference");
    }

    fn any_change() -> impl Strategy<Value = (bool, u64, u64)> {
        (any::<bool>(), prop_oneof![4 => 0u64..10_000, 1 => any::<u64>()], 0u64..200_000)
    }

    proptest! {
        #[test]
        fn the_cost_is_always_finite_and_positive(changes in vec(any_change(), 0..30)) {
            let (load, mut now) = load();
            for (responded, millis, after) in changes {
                now += Duration::from_millis(after);
                let cost = Duration::from_millis(millis);
                if responded { load.responded(cost, now) } else { load.penalize(cost, now) };
                let seconds = load.seconds(now);
                prop_assert!(seconds.is_finite() && seconds > 0.0, "{}", seconds);
                let least = if responded { 0.0 } else { cost.as_secs_f64() };
                prop_assert!(seconds >= least * 0.999_999);
            }
        }
    }
}
