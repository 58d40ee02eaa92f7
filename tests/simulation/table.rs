//! The table: every policy in every scenario. Printed with `--nocapture`.

use std::num::NonZeroU32;
use std::time::Duration;

use lb_service::policy::Algorithm;
use lb_service::pool::SlowBackendSettings;

use crate::backend::{Fault, Model, Service, When};
use crate::report::{HEAD, Report, line, shares};
use crate::world::Scenario;

/// A scenario, its special backend, and the maximum of failed requests per thousand.
struct Row {
    scenario: Scenario,
    special: Option<usize>,
    may_fail: f64,
}

const REQUESTS: usize = 50_000;

fn row(scenario: Scenario, special: Option<usize>, may_fail: f64) -> Row {
    Row { scenario: scenario.requests(REQUESTS), special, may_fail }
}

/// Returns backends that serve two requests at once, of which the first has a fault.
fn one_faulty(name: &'static str, backends: usize, utilisation: f64, when: When) -> Scenario {
    let mut models = vec![Model::new(2); backends];
    models[0].when = when;
    Scenario::new(name, models, utilisation)
}

/// Returns five backends of which all but the last refuse connections.
fn mostly_down(name: &'static str, panic_threshold: u8) -> Scenario {
    let mut scenario = one_faulty(name, 5, 0.1, When::Never).with(|scenario| {
        scenario.probes = Some(Duration::from_secs(1));
        scenario.settings.panic_threshold = panic_threshold;
    });
    scenario.models[..4].iter_mut().for_each(|model| model.when = When::Always(Fault::refuses()));
    scenario
}

fn rows() -> Vec<Row> {
    let service = Service::LogNormal { mean: Duration::from_millis(10), sigma: 1.5 };
    let heavy = Model { service, ..Model::new(2) };
    let uneven = [1, 1, 1, 2, 2, 2, 4, 4, 8, 8];
    let capacities = uneven.map(Model::new).to_vec();
    let faulty = |name, when| one_faulty(name, 10, 0.6, when);
    vec![
        row(one_faulty("10 even backends at 80 %", 10, 0.8, When::Never), None, 0.0),
        row(Scenario::new("the same with a long tail of response times", vec![heavy; 10], 0.8), None, 0.0),
        row(
            Scenario::new("capacities and weights 1 to 8, at 80 %", capacities.clone(), 0.8).weights(&uneven),
            None,
            0.0,
        ),
        row(Scenario::new("capacities 1 to 8 with equal weights, at 30 %", capacities, 0.3), Some(0), 0.0),
        row(faulty("one is 10 times slower, at 60 %", When::Always(Fault::slower(10.0))), Some(0), 0.0),
        row(
            faulty("the same with ejection of slow backends", When::Always(Fault::slower(10.0))).with(
                |scenario| {
                    let slow_backends =
                        SlowBackendSettings { ratio: 3.0, min_samples: 10, window: Duration::from_secs(1) };
                    scenario.settings.outlier_detection.slow_backends = Some(slow_backends);
                },
            ),
            Some(0),
            0.0,
        ),
        row(faulty("one refuses connections, at 60 %", When::Always(Fault::refuses())), Some(0), 0.1),
        row(
            faulty(
                "one refuses connections in every second second, at 60 %",
                When::Flapping(1.0, Fault::refuses()),
            ),
            Some(0),
            0.1,
        ),
        row(
            faulty(
                "the same with health checks every 100 ms and slow start",
                When::Flapping(1.0, Fault::refuses()),
            )
            .with(|scenario| {
                scenario.probes = Some(Duration::from_millis(100));
                scenario.settings.slow_start = Some(Duration::from_secs(2));
            }),
            Some(0),
            0.1,
        ),
        row(
            faulty("one responds to 20 % with 503 at once, at 60 %", When::Always(Fault::unavailable(0.2))),
            Some(0),
            1.0,
        ),
        row(
            faulty(
                "one responds to all requests with 503 at once, at 60 %",
                When::Always(Fault::unavailable(1.0)),
            ),
            Some(0),
            1.0,
        ),
        row(
            faulty(
                "one never responds, per_try 200 ms, at 60 %",
                When::Always(Fault { hangs: 1.0, ..Fault::default() }),
            )
            .with(|scenario| scenario.settings.retries.per_try = Some(Duration::from_millis(200))),
            Some(0),
            10.0,
        ),
        // In panic, which these settings cause, the first attempt goes to a backend that is down; the second one uses
        // the health checks.
        row(mostly_down("4 of 5 refuse connections, health checks every second", 50), Some(4), 5.0),
        row(mostly_down("the same with panic_threshold: 0", 0), Some(4), 5.0),
        row(
            one_faulty("10 of max_requests: 2 and a queue of 50, at 95 %", 10, 0.95, When::Never).with(
                |scenario| {
                    scenario.settings.queue = 50;
                    for backend in &mut scenario.settings.backends {
                        backend.max_requests = NonZeroU32::new(2);
                    }
                },
            ),
            None,
            10.0,
        ),
        row(one_faulty("100 even backends at 80 %", 100, 0.8, When::Never), None, 0.0),
        Row {
            scenario: one_faulty("1000 even backends at 80 %", 1000, 0.8, When::Never).requests(150_000),
            special: None,
            may_fail: 0.0,
        },
    ]
}

fn run_all(row: &Row) -> Vec<(String, Report)> {
    let plain =
        Algorithm::ALL.map(|policy| (policy.as_str().to_owned(), row.scenario.clone().policy(policy)));
    let bounded = row.scenario.clone().policy(Algorithm::Maglev).with(|scenario| {
        scenario.settings.bounded_load = Some(125);
    });
    let all = plain.into_iter().chain([("maglev, bounded 125".to_owned(), bounded)]);
    all.map(|(name, scenario)| (name, scenario.run())).collect()
}

#[test]
fn the_table() {
    for row in rows() {
        let name = row.scenario.name;
        let reports = run_all(&row);
        println!("\n**{name}** ({} requests)\n\n{HEAD}", reports[0].1.requests());
        for (policy, report) in &reports {
            println!("{}", line(policy, report, row.special));
        }
        if row.scenario.models.len() <= 10 {
            println!("\n{}", shares(&reports));
        }
        for (policy, report) in &reports {
            let allowed = (row.may_fail * report.requests() as f64 / 1000.0) as usize;
            let (failed, failures) = (report.failed(), &report.failures);
            assert!(failed <= allowed, "{name}: {policy}: {failed} failed, {allowed} allowed: {failures:?}");
        }
    }
}
