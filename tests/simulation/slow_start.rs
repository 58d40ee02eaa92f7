//! How a backend that came back gets its share again.

use std::time::Duration;

use lb_service::policy::Algorithm;

use crate::backend::{Fault, Service, When};
use crate::world::Scenario;

const SECOND: Duration = Duration::from_secs(1);

/// A backend of ten that comes back gets a tenth of its share at first and all of it 30 s later, in a
/// straight line: over the first three seconds 0.145 of it in the mean, over the middle three 0.55. What
/// takes turns passes its turn on, which makes of a share s of its weight 10 s / (9 + s) of an even share:
/// 0.16 and 0.58. Each is counted in some 1500 requests, of 500 in its even share.
#[test]
fn a_backend_that_came_back_gets_its_share_little_by_little() {
    for policy in [Algorithm::RoundRobin, Algorithm::Random, Algorithm::ConsistentHash, Algorithm::Maglev] {
        let parts = comeback(policy, 10);
        for (part, expected) in parts.into_iter().zip([0.15, 0.56, 1.0]) {
            assert!((part - expected).abs() < 0.04 + 0.1 * expected, "{policy:?}: {parts:?}");
        }
    }
}

/// What looks at the requests in flight is offered an idle backend more often than its turn: of two that are
/// drawn it always wins, so it is offered twice as often; in pools of up to four always. Its chance to be
/// refused is the same, so the ramp is steeper, but it is one.
#[test]
fn a_backend_that_came_back_is_not_flooded_by_least_request() {
    for backends in [2, 4, 10] {
        let [first, middle, all] = comeback(Algorithm::LeastRequest, backends);
        assert!((0.1..0.5).contains(&first), "{first} of {backends}");
        assert!(middle > first + 0.2 && middle < 0.9, "{first} {middle} of {backends}");
        assert!((0.9..1.1).contains(&all), "{all} of {backends}");
    }
}

/// What a backend of so many gets just after it came back, in the middle of the slow start and after it, in
/// parts of its even share.
fn comeback(policy: Algorithm, backends: usize) -> [f64; 3] {
    let mut scenario = Scenario::even(backends, 0.5).policy(policy).with(|scenario| {
        scenario.seconds = 60.0;
        scenario.probes = Some(SECOND / 20);
        scenario.settings.slow_start = Some(30 * SECOND);
        // It comes back when its health checks say so, and not later.
        scenario.settings.outlier_detection.consecutive_failures = 0;
    });
    scenario.models.iter_mut().for_each(|model| model.service = Service::Constant(SECOND / 100));
    scenario.models[0].when = When::During(0.0..10.0, Fault::refuses());
    let report = scenario.run();
    let share = |seconds| report.share_in(0, seconds) * backends as f64;
    [share(10..13), share(24..27), share(42..60)]
}
