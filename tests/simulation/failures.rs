//! The cost of failures: retries, ejections, and errors that look like speed.

use std::time::{Duration, Instant};

use fastrand::Rng;
use lb_service::policy::Algorithm;
use lb_service::pool::{BackendState, RetrySettings, SlowBackendSettings};

use crate::backend::{Fault, Model, When};
use crate::world::{Moment, Scenario};

const SECOND: Duration = Duration::from_secs(1);

// === Retries ===

/// At each beginning of a retry, the retries do not exceed the budget for the requests in flight.
#[test]
fn retries_never_exceed_the_budget() {
    let troubles = Fault { slower: 0.0, refuses: 0.05, resets: 0.2, unavailable: 0.3, hangs: 0.01 };
    let (mut begun, mut denied) = (0, 0);
    for seed in 0..20 {
        let mut rng = Rng::with_seed(seed);
        let (percent, min_concurrent) = (rng.u32(..60), rng.u32(..6));
        let mut scenario = Scenario::even(6, 0.7)
            .policy(rng.choice(Algorithm::ALL).unwrap())
            .requests(5000)
            .with(|scenario| {
                scenario.seed = seed;
                scenario.settings.timeouts.response = SECOND / 10;
                scenario.settings.retries = RetrySettings {
                    attempts: 3,
                    budget_percent: percent,
                    min_concurrent,
                    ..RetrySettings::default()
                };
            });
        for model in &mut scenario.models {
            model.when = When::Always(troubles);
        }
        let report = scenario.watch(&mut |moment, pool, _| {
            if let Moment::Repeats = moment {
                let limit = (pool.requests() * u64::from(percent) / 100).max(min_concurrent.into());
                let active = pool.retries_in_flight();
                assert!(active <= limit, "{active} of at most {limit}, seed {seed}");
                begun += 1;
            }
        });
        denied += report.retries_denied;
    }
    assert!(begun > 1000 && denied > 1000, "{begun} retries, {denied} denied: the limit was hardly reached");
}

/// Returns a pool whose backends all have this fault, with three retries for each request.
fn outage(fault: Fault) -> Scenario {
    let mut models = vec![Model::new(8); 10];
    models.iter_mut().for_each(|model| model.when = When::Always(fault));
    Scenario::new("outage", models, 0.6).policy(Algorithm::LeastRequest).with(|scenario| {
        scenario.seconds = 5.0;
        scenario.settings.timeouts.response = SECOND / 10;
        scenario.settings.retries.attempts = 3;
    })
}

/// Without a budget, three retries would make four requests out of one. By Little's law (1961), the average number of
/// retries is their rate r times the duration of one (its pause p and its time at the backend s). It is at most the
/// minimum of 3 or 20 % of the requests in flight, which are s times the total rate: r (p + s) <= 3 + 0.2 s (x + r).
/// With a mean first pause of 12.5 ms, r is at most 0.25 x, plus 3 / 12.5 ms = 240 in each second.
///
/// For backends that respond with 503 at once, s is nearly 0, and only the 240 remain. If the failure is a timeout of
/// 100 ms, the share matters, of which the pauses take a ninth.
#[test]
fn a_total_outage_is_not_multiplied() {
    for (fault, factor) in [(Fault::unavailable(1.0), 1.0), (Fault { hangs: 1.0, ..Fault::default() }, 1.25)]
    {
        let scenario = outage(fault);
        let report = scenario.run();
        assert_eq!(report.failed(), report.requests(), "every request fails");
        let (sent, requests) = (report.sent.iter().sum::<u64>() as f64, report.requests() as f64);
        let allowed = factor * requests + 240.0 * scenario.seconds;
        assert!(sent <= allowed, "{sent} were sent of {requests}, {allowed} allowed");
        assert!(report.retries > 0 && report.retries_denied > 1000);
    }
}

// === Ejections ===

/// In random pools with random failures and flapping health checks, at most the share is ejected at every moment,
/// rounded down, and another backend is available at the moment of an ejection.
#[test]
fn ejections_never_exceed_their_share_and_never_take_the_last() {
    let mut ejections = 0;
    for seed in 0..200 {
        let mut rng = Rng::with_seed(seed);
        let backends = rng.usize(1..9);
        let percent = rng.u8(..=100);
        let mut scenario =
            Scenario::even(backends, 0.5).policy(rng.choice(Algorithm::ALL).unwrap()).with(|scenario| {
                scenario.seed = seed;
                scenario.probes = rng.bool().then_some(SECOND / 20);
                scenario.settings.timeouts.response = SECOND / 5;
                let outliers = &mut scenario.settings.outlier_detection;
                outliers.max_ejected_percent = percent;
                outliers.consecutive_failures = rng.u32(1..6);
                outliers.base_ejection = SECOND.mul_f64(0.05 + rng.f64());
            });
        for model in &mut scenario.models {
            let (unavailable, resets) = (0.6 * rng.f64(), 0.3 * rng.f64());
            let fault = Fault { unavailable, resets, hangs: 0.02, ..Fault::default() };
            model.when = if rng.f64() < 0.3 {
                When::Flapping(0.1 + rng.f64(), Fault::refuses())
            } else {
                When::Always(fault)
            };
        }
        let most = backends * usize::from(percent) / 100;
        let mut before = 0;
        let report = scenario.requests(1500).watch(&mut |moment, pool, now| {
            let Moment::Settled = moment else { return };
            let backends = pool.backends();
            let ejected = backends.iter().filter(|backend| backend.ejected_until(now).is_some()).count();
            assert!(ejected <= most, "{ejected} of at most {most} are ejected, seed {seed}");
            let so_far: u64 = backends.iter().map(|backend| backend.ejections()).sum();
            let is_up = backends.iter().any(|backend| pool.state(backend, now) == BackendState::Up);
            assert!(so_far == before || is_up, "the last one was ejected, seed {seed}");
            before = so_far;
        });
        ejections += report.ejections.iter().sum::<u64>();
    }
    assert!(ejections > 1000, "only {ejections} ejections were seen");
}

/// One of four backends fails everything. It costs at most the failures that eject it, once in each ejection: 5, and
/// then one for each return (30 s, 60 s, 90 s ...).
#[test]
fn a_backend_that_fails_everything_is_tried_once_in_each_longer_ejection() {
    let scenario = Scenario::even(4, 0.5).first_is(When::Always(Fault::unavailable(1.0)));
    let report = scenario.with(|scenario| {
        scenario.seconds = 200.0;
        // All its failures at the beginning are retried at the same time.
        scenario.settings.retries.min_concurrent = 10;
    });
    let report = report.run();
    // The few requests in flight at the fifth failure also fail.
    assert!(report.sent[0] <= 5 + 3 + 3, "{:?}", report.sent);
    assert_eq!(report.ejections, [4, 0, 0, 0], "at 0, 30, 90 and 180 s");
    assert_eq!(report.failed(), 0, "{:?}", report.failures);
}

// === Ejection of slow backends ===

/// Returns four backends with spare capacity. The first is ten times slower at times, but always responds correctly.
/// Windows last 1 s, and ejections 5 s times n, up to 18 s.
fn slow_backends(when: When) -> Scenario {
    Scenario::new("slow_backends", vec![Model::new(20); 4], 0.05).first_is(when).with(|scenario| {
        scenario.seconds = 100.0;
        let outliers = &mut scenario.settings.outlier_detection;
        (outliers.base_ejection, outliers.max_ejection) = (5 * SECOND, 18 * SECOND);
        outliers.slow_backends = Some(SlowBackendSettings { ratio: 3.0, min_samples: 10, window: SECOND });
    })
}

/// An ejection of the first backend.
#[derive(Debug)]
struct Ejection {
    /// The time in seconds.
    at: f64,
    lasts: Duration,
}

/// Returns the ejections of a scenario in which nothing fails and no other backend is ejected.
fn ejections_of_the_first(scenario: &Scenario) -> Vec<Ejection> {
    let (mut began, mut found) = (None, Vec::<(Instant, Instant)>::new());
    let report = scenario.watch(&mut |_, pool, now| {
        began.get_or_insert(now);
        let backend = &pool.backends()[0];
        let ejected = backend.ejected_since(now).zip(backend.ejected_until(now));
        found.extend(ejected.filter(|ejection| found.last() != Some(ejection)));
    });
    assert_eq!(report.failed(), 0, "{:?}", report.failures);
    assert_eq!(report.ejections, [found.len() as u64, 0, 0, 0]);
    let began = began.expect("there were requests");
    let ejection = |(since, until): (Instant, Instant)| Ejection {
        at: (since - began).as_secs_f64(),
        lasts: until.duration_since(since),
    };
    found.into_iter().map(ejection).collect()
}

/// A backend that is always slow is used for at most two windows after each longer ejection: the one in which it
/// returns and a whole one.
#[test]
fn a_backend_that_stays_slow_is_ejected_for_longer_each_time() {
    for policy in [Algorithm::RoundRobin, Algorithm::Random] {
        let ejections =
            ejections_of_the_first(&slow_backends(When::Always(Fault::slower(10.0))).policy(policy));
        assert!(ejections.len() >= 6, "{policy:?}: {ejections:?}");
        for (ejection, seconds) in ejections.iter().zip([5, 10, 15, 18, 18, 18]) {
            let plain = seconds * SECOND;
            let longest = (plain * 11 / 10).min(18 * SECOND);
            assert!((plain..=longest).contains(&ejection.lasts), "{policy:?}: {ejections:?}");
        }
        for pair in ejections.windows(2) {
            let tried = pair[1].at - pair[0].at - pair[0].lasts.as_secs_f64();
            assert!((1.0..2.2).contains(&tried), "tried for {tried} s, {policy:?}: {ejections:?}");
        }
    }
}

/// The backend is slow from 30 s to 60 s and from 90 s on. In between it is judged as fine, so the count is reset.
#[test]
fn a_backend_that_was_fine_in_between_is_ejected_for_the_base_time_again() {
    let scenario =
        slow_backends(When::Flapping(30.0, Fault::slower(10.0))).with(|scenario| scenario.seconds = 110.0);
    let ejections = ejections_of_the_first(&scenario);
    // The durations in multiples of the base time; up to a tenth is added.
    let times = |from: f64, to: f64| -> Vec<_> {
        let there = ejections.iter().filter(|ejection| (from..to).contains(&ejection.at));
        there.map(|ejection| ejection.lasts.as_secs() / 5).collect()
    };
    assert_eq!(times(0.0, 30.0), [0; 0], "{ejections:?}");
    assert_eq!(times(30.0, 60.0), [1, 2, 3], "{ejections:?}");
    assert_eq!(times(60.0, 90.0), [0; 0], "{ejections:?}");
    assert_eq!(times(90.0, 110.0), [1, 2], "{ejections:?}");
}

// === Errors that look like speed ===

/// A backend that responds with 503 in 1 ms is the quickest of all. The penalty for failures has to outweigh that even
/// without ejection, or most requests would go to the failing backend.
#[test]
fn peak_ewma_is_not_attracted_by_quick_failures() {
    for fault in [Fault::unavailable(1.0), Fault::refuses(), Fault { resets: 1.0, ..Fault::default() }] {
        for backends in [3, 10] {
            let scenario =
                Scenario::even(backends, 0.5).first_is(When::Always(fault)).policy(Algorithm::PeakEwma);
            let report = scenario
                .with(|scenario| scenario.settings.outlier_detection.consecutive_failures = 0)
                .requests(20_000)
                .run();
            assert!(report.share(0) < 0.02, "{fault:?}: {:.3} of {backends}", report.share(0));
        }
    }
}

// === Panic ===

/// Four of five backends are down, and the health checks find it. Below the threshold the first attempt ignores the
/// health checks, because they might be wrong. The second attempt must use them: a failed request goes to a backend
/// that responds. Only those requests fail whose backend went down during the request, or that found no other backend
/// before the first check.
#[test]
fn retries_go_to_available_backends_even_in_panic() {
    for policy in Algorithm::ALL {
        let mut scenario = Scenario::even(5, 0.1).policy(policy).with(|scenario| {
            scenario.seconds = 30.0;
            scenario.probes = Some(SECOND);
        });
        for model in &mut scenario.models[1..] {
            model.when = When::During(5.0..100.0, Fault::refuses());
        }
        let report = scenario.run();
        let (failed, requests) = (report.failed(), report.requests());
        assert!(failed * 100 < requests, "{policy:?}: {failed} of {requests} failed: {:?}", report.failures);
    }
}
