//! The evenness of policies, by weights and by the capacity of backends.

use std::collections::BTreeMap;
use std::time::Duration;

use lb_service::policy::Algorithm;

use crate::backend::{Fault, Model, When};
use crate::world::{Scenario, place, pool};

const SECOND: Duration = Duration::from_secs(1);

// === Determinism ===

#[test]
fn the_same_seed_gives_the_same_report() {
    let mut ejections = 0;
    for policy in Algorithm::ALL {
        let flapping =
            When::Flapping(0.5, Fault { refuses: 0.5, unavailable: 0.3, resets: 0.2, ..Fault::default() });
        let scenario =
            Scenario::even(10, 0.8).first_is(flapping).policy(policy).requests(20_000).with(|scenario| {
                scenario.settings.outlier_detection.base_ejection = SECOND;
                scenario.settings.queue = 20;
            });
        let report = scenario.run();
        ejections += report.ejections.iter().sum::<u64>();
        assert_eq!(report, scenario.run(), "{policy:?}");
        assert_ne!(report, scenario.with(|scenario| scenario.seed = 2).run(), "{policy:?}");
    }
    assert!(ejections > 10, "the report includes their jitter: {ejections}");
}

// === Shares ===

/// Returns the maximum of requests that a backend holds after this number of requests was placed and none has ended,
/// for each seed.
fn most_held(policy: Algorithm, backends: usize, requests: usize, seeds: u64) -> Vec<u64> {
    let run = |seed| {
        let (pool, _, _, manual) = pool(&Scenario::even(backends, 0.5).policy(policy).settings, seed);
        let _held: Vec<_> = (0..requests).map(|_| place(&pool, manual.now(), b"")).collect();
        pool.backends().iter().map(|backend| backend.load.in_flight()).max().unwrap()
    };
    (0..seeds).map(run).collect()
}

/// With n requests on n backends, the fullest backend has ln n / ln ln n · (1 + o(1)) if each is drawn at random, but
/// ln ln n / ln 2 + O(1) if the better of two is selected (Azar, Broder, Karlin, Upfal: "Balanced allocations", 1999;
/// Mitzenmacher, 2001). For n = 1000, the literature measured 5 to 6 against 3, and rarely 4.
#[test]
fn the_better_of_two_choices_limits_the_fullest_backend() {
    let two = most_held(Algorithm::LeastRequest, 1000, 1000, 20);
    let random = most_held(Algorithm::Random, 1000, 1000, 20);
    assert!(two.iter().all(|most| *most <= 4), "{two:?}");
    let mean = |most: &[u64]| most.iter().sum::<u64>() as f64 / most.len() as f64;
    assert!(mean(&random) >= mean(&two) + 1.5, "{random:?} at random, {two:?} of two");
}

/// With m = 10 n, the fullest backend is still only O(log log n) above the mean (Berenbrink, Czumaj, Steger, Vöcking:
/// "Balanced allocations: the heavily loaded case", 2000). At random it is about √(2 · 10 · ln 1000) = 11.7 above.
#[test]
fn the_better_of_two_choices_stays_close_to_the_mean_under_load() {
    let two = most_held(Algorithm::LeastRequest, 1000, 10_000, 5);
    let random = most_held(Algorithm::Random, 1000, 10_000, 5);
    assert!(two.iter().all(|most| *most <= 10 + 4), "{two:?}");
    assert!(random.iter().all(|most| *most >= 10 + 7), "{random:?}");
}

/// Requests arrive as a Poisson process at n backends that serve one request at a time, with exponential times of mean
/// 1, at utilisation λ. At random, each backend is a queue M/M/1, in which a request takes 1 / (1 - λ): 5 at 0.8. With
/// the better of two it takes the sum of λ^(2^i - 2) for i = 1, 2, ... as n grows: 1.95 (Mitzenmacher, 2001;
/// Vvedenskaya, Dobrushin, Karpelevich, 1996).
#[test]
fn waiting_times_match_the_supermarket_model() {
    let scenario = Scenario::new("supermarket", vec![Model::new(1); 200], 0.8).requests(150_000);
    let times = |policy| scenario.clone().policy(policy).run().mean().as_secs_f64() / 0.010;
    let two: f64 = (1..10).map(|i| 0.8f64.powi((1 << i) - 2)).sum();
    for (policy, expected, margin) in [(Algorithm::LeastRequest, two, 0.03), (Algorithm::Random, 5.0, 0.1)] {
        let time = times(policy);
        assert!((time / expected - 1.0).abs() < margin, "{policy:?}: {time:.3}, expected {expected:.3}");
    }
}

/// In smooth weighted round robin, each backend has exactly its weight in any window as long as the sum of the weights.
#[test]
fn round_robin_is_exact() {
    let weights = [1, 2, 3, 5, 8, 13];
    let scenario = Scenario::new("weights", vec![Model::new(2); 6], 0.5).weights(&weights);
    let (pool, _, _, manual) = pool(&scenario.settings, 1);
    let period: usize = weights.iter().sum();
    for _ in 0..5 {
        let mut counts = BTreeMap::new();
        for _ in 0..period {
            *counts.entry(place(&pool, manual.now(), b"").backend.address.clone()).or_insert(0) += 1;
        }
        assert_eq!(counts.into_values().collect::<Vec<_>>(), weights);
    }
    let report = Scenario::even(10, 0.8).requests(20_000).with(|scenario| scenario.warm_up = 0.0).run();
    let (least, most) = (report.sent.iter().min().unwrap(), report.sent.iter().max().unwrap());
    assert!(most - least <= 1, "{:?}", report.sent);
}

/// Shares match the weights: exactly for rotations; within five deviations of a binomial for draws; and within a tenth
/// for policies that use requests in flight over weight, because capacities are in proportion. A ketama ring of 160
/// points for each weight has shares with a deviation of 1/√(160 w) (about 8 % for weight 1), and a Maglev table of
/// 65537 entries is even to 1 %; both have the deviation of their 100 000 keys in addition.
#[test]
fn weights_are_respected_by_every_policy() {
    let weights = [1, 1, 2, 2, 4, 4, 8, 8];
    let whole: usize = weights.iter().sum();
    for policy in Algorithm::ALL {
        let models = weights.map(Model::new).to_vec();
        let scenario =
            Scenario::new("weights", models, 0.7).weights(&weights).policy(policy).requests(60_000);
        let report = scenario.with(|scenario| scenario.keys = 100_000).run();
        let requests = report.sent.iter().sum::<u64>() as f64;
        for (index, weight) in weights.into_iter().enumerate() {
            let expected = weight as f64 / whole as f64;
            let chance = 5.0 * ((1.0 - expected) / (expected * requests)).sqrt();
            let margin = match policy {
                Algorithm::RoundRobin => 0.01,
                Algorithm::Random => chance,
                Algorithm::LeastRequest | Algorithm::PeakEwma => 0.25,
                Algorithm::ConsistentHash => chance + 4.0 / (160.0 * weight as f64).sqrt(),
                Algorithm::Maglev => 2.0 * chance + 0.01,
            };
            let off = report.share(index) / expected - 1.0;
            assert!(
                off.abs() <= margin,
                "{policy:?}: weight {weight} has {off:+.3} of its share, {margin:.3} allowed"
            );
        }
    }
}

// === Slow backends ===

/// The decay of the peak EWMA is 10 s. One of ten backends becomes 20 times slower from 20 s to 50 s. The first slow
/// responses raise its cost at once, so in the next ten seconds it gets less than 2 % instead of 10 %. While it gets no
/// requests, its cost falls to 1/20 within 10 s · ln 20 = 30 s, so it has its share again within 40 s after the end of
/// the slowness.
#[test]
fn peak_ewma_avoids_a_slow_backend_until_it_is_fast_again() {
    let slow = When::During(20.0..50.0, Fault::slower(20.0));
    let report =
        Scenario::even(10, 0.5).first_is(slow).policy(Algorithm::PeakEwma).with(|s| s.seconds = 120.0).run();
    let before = report.share_in(0, 10..20);
    let within_decay = report.share_in(0, 21..31);
    let later = report.share_in(0, 31..50);
    let after = report.share_in(0, 90..120);
    assert!((0.07..0.13).contains(&before), "{before}");
    assert!(within_decay < 0.02 && later < 0.02, "{within_decay} {later}");
    assert!((0.07..0.13).contains(&after), "{after}");
}

/// Round robin would send a tenth of all requests to the slow backend and let them wait. least_request sends it no more
/// than its capacity, about a twentieth of the others'.
#[test]
fn least_request_sends_a_slow_backend_no_more_than_its_capacity() {
    let slow = Scenario::even(10, 0.5).first_is(When::Always(Fault::slower(20.0))).requests(30_000);
    let report = slow.clone().policy(Algorithm::LeastRequest).run();
    assert!(report.share(0) < 0.02, "{}", report.share(0));
    assert_eq!(report.failed(), 0);
    let turns = slow.policy(Algorithm::RoundRobin).run();
    assert!(turns.quantile(0.99) > 10 * report.quantile(0.99), "{:?}", turns.quantile(0.99));
}
