//! The growth of the share of a backend that returned.

use std::time::Duration;

use lb_service::policy::Algorithm;

use crate::backend::{Fault, Service, When};
use crate::world::Scenario;

const SECOND: Duration = Duration::from_secs(1);

/// One of ten backends returns. It gets a tenth of its share at first and all of it 30 s later, in a straight line:
/// 0.145 on average over the first three seconds, and 0.55 over the middle three. A rotation offers a rejected turn to
/// the next backend, which turns a share s of its weight into 10 s / (9 + s) of an even share: 0.16 and 0.58. Each is
/// counted in about 1500 requests, with 500 in its even share.
#[test]
fn a_backend_that_returned_gets_its_share_gradually() {
    for policy in [Algorithm::RoundRobin, Algorithm::Random, Algorithm::ConsistentHash, Algorithm::Maglev] {
        let parts = comeback(policy, 10);
        for (part, expected) in parts.into_iter().zip([0.15, 0.56, 1.0]) {
            assert!((part - expected).abs() < 0.04 + 0.1 * expected, "{policy:?}: {parts:?}");
        }
    }
}

/// A policy that uses the requests in flight offers an idle backend more often than its share: of two that are drawn
/// the idle one always wins, so it is offered twice as often, and always in pools of up to four. Its chance to be
/// skipped does not change, so the ramp is steeper, but it is still a ramp.
#[test]
fn least_request_does_not_flood_a_backend_that_returned() {
    for backends in [2, 4, 10] {
        let [first, middle, all] = comeback(Algorithm::LeastRequest, backends);
        assert!((0.1..0.5).contains(&first), "{first} of {backends}");
        assert!(middle > first + 0.2 && middle < 0.9, "{first} {middle} of {backends}");
        assert!((0.9..1.1).contains(&all), "{all} of {backends}");
    }
}

/// Returns the load of a backend just after its return, in the middle of the slow start and after it, in parts of its
/// even share.
fn comeback(policy: Algorithm, backends: usize) -> [f64; 3] {
    let mut scenario = Scenario::even(backends, 0.5).policy(policy).with(|scenario| {
        scenario.seconds = 60.0;
        scenario.probes = Some(SECOND / 20);
        scenario.settings.slow_start = Some(30 * SECOND);
        // The backend returns exactly when its health checks pass.
        scenario.settings.outlier_detection.consecutive_failures = 0;
    });
    scenario.models.iter_mut().for_each(|model| model.service = Service::Constant(SECOND / 100));
    scenario.models[0].when = When::During(0.0..10.0, Fault::refuses());
    let report = scenario.run();
    let share = |seconds| report.share_in(0, seconds) * backends as f64;
    [share(10..13), share(24..27), share(42..60)]
}
