//! Requests that wait for a backend: the time, and the order.

use std::num::NonZeroU32;
use std::time::Duration;

use lb_service::policy::Algorithm;
use lb_service::pool::{Passed, PickError, PickRequest, Tried};

use crate::backend::{Fault, Model, When};
use crate::world::{Moment, Scenario, address, place, pool, probe};

const SECOND: Duration = Duration::from_secs(1);

/// There are twice as many requests as the backends can take. Served requests are served in the order of arrival; no
/// more requests wait than the queue holds, and none for longer than the timeout; no request waits while a backend has
/// room; and the capacity of the backends is always used.
#[test]
fn the_queue_is_first_come_first_served_bounded_and_timely() {
    for (policy, timeout) in [(Algorithm::LeastRequest, SECOND / 50), (Algorithm::RoundRobin, SECOND)] {
        let models = vec![Model { servers: 100, ..Model::new(4) }; 5];
        let scenario =
            Scenario::new("queue", models, 0.08).policy(policy).requests(20_000).with(|scenario| {
                scenario.settings.queue = 50;
                scenario.settings.timeouts.queue = timeout;
                for backend in &mut scenario.settings.backends {
                    backend.max_requests = NonZeroU32::new(4);
                }
            });
        let (mut served, mut gave_up, mut last) = (0, 0, None);
        let report = scenario.watch(&mut |moment, pool, _| match moment {
            Moment::Served { request, waited } => {
                assert!(last < Some(*request), "{request} came before {last:?}");
                assert!(*waited <= timeout, "{waited:?}");
                last = Some(*request);
                served += 1;
            }
            Moment::GaveUp { waited } => {
                assert!(waited.abs_diff(timeout) < SECOND / 1_000_000, "{waited:?}");
                gave_up += 1;
            }
            Moment::Settled => {
                assert!(pool.queue().len() <= 50);
                let room =
                    pool.backends().iter().any(|backend| backend.load.in_flight() < backend.max_requests);
                assert!(pool.queue().is_empty() || !room, "a request waits while there is room");
                assert!(pool.backends().iter().all(|backend| backend.load.in_flight() <= 4));
            }
            Moment::Placed { .. } | Moment::Repeats => {}
        });
        assert!(served > 5000, "{served}");
        assert_eq!(gave_up > 0, timeout < SECOND, "50 wait at most 50 / (20 places / 10 ms) = 25 ms");
        assert!(report.failures.keys().all(|how| how.starts_with("queue_")), "{:?}", report.failures);
        let (_, mean) = report.most_and_mean();
        assert!(mean > 3.9, "4 can be served at once, {mean} were");
    }
}

/// If half of the backends fail, waiting requests are served by the others, or fail in time.
#[test]
fn no_request_stays_in_the_queue_when_backends_go_down_and_up() {
    for seed in 0..20 {
        let mut scenario =
            Scenario::even(4, 1.5).policy(Algorithm::LeastRequest).requests(3000).with(|scenario| {
                scenario.seed = seed;
                scenario.probes = Some(SECOND / 20);
                scenario.settings.queue = 30;
                scenario.settings.timeouts.queue = SECOND / 10;
                for backend in &mut scenario.settings.backends {
                    backend.max_requests = NonZeroU32::new(2);
                }
            });
        scenario.models[0].when = When::Flapping(0.3, Fault::refuses());
        scenario.models[1].when = When::Flapping(0.2, Fault { resets: 0.5, ..Fault::default() });
        // The run itself asserts that nothing waits and nothing is in flight at its end.
        let report = scenario.watch(&mut |moment, _, _| {
            if let Moment::Served { waited, .. } | Moment::GaveUp { waited } = moment {
                assert!(*waited <= SECOND / 10 + SECOND / 1_000_000, "{waited:?}");
            }
        });
        assert!(report.requests() > 2000);
    }
}

/// A request that waits because all backends are full must stop waiting when all are down.
#[test]
fn a_waiting_request_is_rejected_at_once_if_no_backend_is_left() {
    let mut settings = Scenario::even(2, 0.5).settings;
    settings.panic_threshold = 0;
    settings.backends.iter_mut().for_each(|backend| backend.max_requests = NonZeroU32::new(1));
    let (pool, registry, down, manual) = pool(&settings, 1);
    let _held = [place(&pool, manual.now(), b""), place(&pool, manual.now(), b"")];
    let request = PickRequest { key: b"", session: None, tried: &Tried::new(), now: manual.now(), draw: 0.5 };
    let mut passed = Passed::new();
    assert_eq!(pool.place(&request, &mut passed).err(), Some(PickError::Full));
    down.set([address(0), address(1)]);
    probe(&registry);
    assert_eq!(pool.place(&request, &mut passed).err(), Some(PickError::Unavailable));
}
