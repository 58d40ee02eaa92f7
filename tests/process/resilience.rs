//! Failing backends that clients should not notice: ejection, panic mode, and the number of requests that still fail.

#![expect(clippy::print_stdout, reason = "these tests print what they measure")]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::load::{Outcome, burst};
use tests::wait::{self, LONG};
use tests::{Behaviour, CannedResponse, Daemon, Lab, LoadGenerator, Origin};

use crate::retries::{assert_no_failure, failing, status_of};
use crate::{pool, pool_of, tally};

/// Sends requests one after the other, and returns how many had each status.
#[track_caller]
fn statuses(daemon: &Daemon, count: usize) -> Vec<(u16, usize)> {
    tally((0..count).map(|_| daemon.get("/").unwrap().status))
}

fn failed(outcomes: &[Outcome]) -> usize {
    outcomes.iter().filter(|outcome| outcome.status() != 200).count()
}

fn label(origin: &Origin) -> String {
    format!("backend=\"{}\"", origin.address)
}

fn ejections(daemon: &Daemon) -> f64 {
    daemon.metric("lb_backend_ejections_total", &["pool=\"web\""])
}

fn is_ejected(daemon: &Daemon, origin: &Origin) -> bool {
    daemon.metric("lb_backend_state", &["state=\"ejected\"", &label(origin)]) == 1.0
}

// ===== ejection =====

#[test]
fn consecutive_failures_of_any_kind_eject_a_backend() {
    for failure in ["connect_failure", "timeout", "reset", "502", "503", "504"] {
        for enough in [2, 3] {
            let (lab, bad, up) = (Lab::new(), failing(failure), Origin::start("up"));
            let more = format!(
                "timeouts: {{response: 200ms}}\nretries: {{attempts: 0}}\n\
                 outlier_detection: {{consecutive_failures: {enough}, base_ejection: 60s}}"
            );
            let daemon = lab.start(&pool(&[&bad, &up], &more));
            let statuses = statuses(&daemon, 20);
            println!("{failure}, consecutive_failures: {enough}: {statuses:?}");
            assert_eq!(statuses, [(200, 20 - enough), (status_of(failure), enough)], "{failure}");
            assert_eq!(up.requests(), 20 - enough as u64);
            assert_eq!(ejections(&daemon), 1.0);
            assert!(is_ejected(&daemon, &bad) && !is_ejected(&daemon, &up), "{failure}");
        }
    }
}

#[test]
fn no_backend_is_ejected_when_consecutive_failures_is_0() {
    let (lab, bad, up) = (Lab::new(), failing("503"), Origin::start("up"));
    let more = "retries: {attempts: 0}\noutlier_detection: {consecutive_failures: 0}";
    let daemon = lab.start(&pool(&[&bad, &up], more));
    assert_eq!(statuses(&daemon, 20), [(200, 10), (503, 10)]);
    assert_eq!(ejections(&daemon), 0.0);
}

#[test]
fn the_status_shows_why_a_backend_is_ejected() {
    let (lab, bad, up) = (Lab::new(), failing("503"), Origin::start("up"));
    let more = "outlier_detection: {consecutive_failures: 2, base_ejection: 60s}";
    let daemon = lab.start(&pool(&[&bad, &up], more));
    assert_eq!(statuses(&daemon, 20), [(200, 20)]);
    assert_eq!(bad.requests(), 2, "the ejection comes after two failures");
    let status = daemon.backend_status("web", bad.address);
    assert_eq!((&status["state"], &status["ejections"]), (&"ejected".into(), &1.into()), "{status:#}");
    let reason = status["reason"].as_str().unwrap();
    assert!(reason.starts_with("2 failures in a row (the latest: 503); back in"), "{reason}");
    assert_eq!((&status["requests"], &status["failures"]), (&2.into(), &2.into()), "{status:#}");
    assert_eq!(daemon.backend_status("web", up.address)["failures"], 0);
    assert!(status["passed_over"]["ejected"].as_u64() > Some(0), "{status:#}");
    let address = bad.address.to_string();
    daemon.logged(&["WARN", "web", &address, "ejected", "failures in a row"]);
    daemon.logged(&[&format!("passed_over={address}:ejected")]);
    assert_eq!(daemon.metric("lb_backend_up", &[&label(&bad)]), 0.0);
}

#[test]
fn a_success_resets_the_count_of_failures() {
    let (lab, bad, up) = (Lab::new(), failing("503"), Origin::start("up"));
    let more = "retries: {attempts: 0}\noutlier_detection: {consecutive_failures: 3, base_ejection: 60s}";
    let daemon = lab.start(&pool(&[&bad, &up], more));
    for _ in 0..3 {
        bad.behave(Behaviour::Respond(CannedResponse::status(503, "")));
        assert_eq!(statuses(&daemon, 4), [(200, 2), (503, 2)]);
        assert_eq!(daemon.backend_status("web", bad.address)["consecutive_failures"], 2);
        // A 500 is a fault of the request or of the application, and does not count as a failure of the backend.
        bad.behave(Behaviour::Respond(CannedResponse::status(500, "a bug")));
        assert_eq!(statuses(&daemon, 2), [(200, 1), (500, 1)]);
        wait::until(LONG, "the count of failures is reset", || {
            daemon.backend_status("web", bad.address)["consecutive_failures"] == 0
        });
    }
    assert_eq!(ejections(&daemon), 0.0);
}

/// The backend may have closed the connection while it was idle, so this is not a failure of the backend. But a POST is
/// not sent twice.
#[test]
fn a_post_over_a_stale_connection_is_502_and_not_a_failure_of_the_backend() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.start(&pool(&[&origin], ""));
    let post = || daemon.connect().request("POST", "/", &[], b"body").unwrap().status;
    assert_eq!(post(), 200);
    origin.behave(Behaviour::ResetOnRequest);
    assert_eq!((post(), origin.requests(), origin.connections()), (502, 2, 1));
    assert_no_failure(&daemon, &origin);
    // On a new connection, the same reset is a failure.
    assert_eq!((post(), origin.connections()), (502, 2));
    assert_eq!(daemon.backend_status("web", origin.address)["consecutive_failures"], 1);
}

/// Sends requests until a response has this status. Returns the time of the request and that of the response.
#[track_caller]
fn next_with(daemon: &Daemon, status: u16) -> (Instant, Instant) {
    wait::until_some(LONG, &format!("a response is {status}"), || {
        let sent = Instant::now();
        (daemon.get("/").unwrap().status == status).then(|| (sent, Instant::now()))
    })
}

#[test]
fn each_consecutive_ejection_lasts_longer_up_to_the_maximum() {
    const BASE: Duration = Duration::from_millis(500);
    const MAX: Duration = Duration::from_millis(1200);
    let (lab, bad, up) = (Lab::new(), failing("503"), Origin::start("up"));
    let more = "retries: {attempts: 0}\n\
                outlier_detection: {consecutive_failures: 2, base_ejection: 500ms, max_ejection: 1200ms}";
    let daemon = lab.start(&pool(&[&bad, &up], more));
    next_with(&daemon, 503);
    let mut last = next_with(&daemon, 503);
    let mut pauses = Vec::new();
    // After an ejection, one failure ejects the backend again.
    for expected in [BASE, 2 * BASE, MAX, MAX, MAX] {
        let next = next_with(&daemon, 503);
        let (longest, shortest) = (next.0.duration_since(last.1), next.1.duration_since(last.0));
        pauses.push(shortest);
        assert!(shortest >= expected, "{pauses:?}");
        assert!(longest < expected.mul_f64(1.1) + Duration::from_millis(700), "{pauses:?}");
        last = next;
    }
    println!("base 500 ms, max 1200 ms: {pauses:?}");
    assert_eq!(ejections(&daemon), 6.0);

    bad.behave(Behaviour::Respond(CannedResponse::ok("well again")));
    wait::until(LONG, "the backend has recovered", || daemon.get("/").unwrap().text() == "well again");
    assert!(!is_ejected(&daemon, &bad));
    bad.behave(Behaviour::Respond(CannedResponse::status(503, "")));
    next_with(&daemon, 503);
    assert!(!is_ejected(&daemon, &bad), "after a success, one failure must not eject the backend");
    let last = next_with(&daemon, 503);
    let next = next_with(&daemon, 503);
    let pause = next.0.duration_since(last.1);
    assert!(pause < 2 * BASE, "after a success, an ejection lasts for the base time: {pause:?}");
}

#[test]
fn the_ejected_share_stays_below_its_limit_and_one_backend_always_remains() {
    for (backends, percent, most) in
        [(4, 25, 1), (4, 50, 2), (5, 50, 2), (5, 39, 1), (4, 100, 3), (2, 100, 1)]
    {
        let lab = Lab::new();
        let origins: Vec<Origin> = (0..backends).map(|_| failing("503")).collect();
        let more = format!(
            "panic_threshold: 0\nretries: {{attempts: 0}}\noutlier_detection: \
             {{consecutive_failures: 1, base_ejection: 60s, max_ejected_percent: {percent}}}"
        );
        let daemon = lab.start(&pool(&origins.iter().collect::<Vec<_>>(), &more));
        assert_eq!(statuses(&daemon, 60), [(503, 60)]);
        let ejected = origins.iter().filter(|origin| is_ejected(&daemon, origin)).count();
        println!("{ejected} of {backends} ejected at {percent}%");
        assert_eq!(ejected, most, "of {backends} backends at {percent}%");
        assert_eq!(ejections(&daemon), most as f64);
        // The remaining backends got all requests.
        assert_eq!(origins.iter().map(Origin::requests).sum::<u64>(), 60);
        let none_left = daemon.metric("lb_rejected_total", &[]);
        assert_eq!(none_left, 0.0);
    }
    // The default settings keep the only backend, too.
    let (lab, only) = (Lab::new(), failing("503"));
    let daemon = lab.start(&pool(&[&only], "panic_threshold: 0"));
    assert_eq!((statuses(&daemon, 20), ejections(&daemon)), (vec![(503, 20)], 0.0));
}

/// Several pools have the same three backends. One backend takes 150 ms, the others 15 ms. Only the pool whose settings
/// are all strict ejects the slow one.
#[test]
fn a_backend_that_is_much_slower_than_the_others_is_ejected() {
    const POOLS: [(&str, &str); 5] = [
        ("strict", "slow_backends: {ratio: 3, min_samples: 5, window: 400ms}"),
        ("ratio", "slow_backends: {ratio: 100, min_samples: 5, window: 400ms}"),
        ("samples", "slow_backends: {ratio: 3, min_samples: 10000, window: 400ms}"),
        ("window", "slow_backends: {ratio: 3, min_samples: 5, window: 10m}"),
        ("off", "consecutive_failures: 5"),
    ];
    let lab = Lab::new();
    let origins = ["slow", "one", "two"].map(Origin::start);
    for (origin, millis) in origins.iter().zip([150, 15, 15]) {
        let response = CannedResponse::ok(origin.name());
        origin.behave(Behaviour::Slow(Duration::from_millis(millis), response));
    }
    let addresses: Vec<String> = origins.iter().map(|origin| format!("\"{}\"", origin.address)).collect();
    let listeners = POOLS.map(|_| tests::ports::free());
    let (mut pools, mut routes, mut listening) =
        (String::from("pools:\n"), String::from("routes:\n"), String::from("listeners:\n"));
    for ((name, detection), address) in POOLS.iter().zip(listeners) {
        pools.push_str(&format!(
            "  {name}:\n    health_check: {{type: none}}\n    backends: [{}]\n    \
             outlier_detection: {{base_ejection: 60s, {detection}}}\n",
            addresses.join(", ")
        ));
        routes.push_str(&format!("  - {{match: {{listener: {name}}}, pool: {name}}}\n"));
        listening.push_str(&format!("  - {{address: \"{address}\", name: {name}}}\n"));
    }
    let daemon = lab.start_file(&lab.config_with(&listening, &format!("{pools}{routes}")));
    let load = listeners.map(|address| LoadGenerator::start(address, 6, 0));
    let slow = label(&origins[0]);
    let ejected = |pool: &str| {
        let pool = format!("pool=\"{pool}\"");
        daemon.metric("lb_backend_state", &["state=\"ejected\"", &pool, &slow]) == 1.0
    };
    wait::until(LONG, "the slow backend is ejected", || ejected("strict"));
    // The other pools get many more requests, so that they could have ejected it, too.
    let seen = |report: &LoadGenerator| report.report().ok;
    let (before, target) = (seen(&load[1]), 400);
    wait::until(LONG, "the other pools have served 400 more", || seen(&load[1]) >= before + target);
    let states = POOLS.map(|(name, _)| (name, ejected(name)));
    let reports = load.map(LoadGenerator::stop);
    println!("{states:?}, responses: {:?}", reports.each_ref().map(|report| report.ok));
    assert_eq!(
        states,
        [("strict", true), ("ratio", false), ("samples", false), ("window", false), ("off", false)]
    );
    assert!(reports.iter().all(|report| report.failed == 0), "{reports:?}");
    assert!(reports[0].ok > reports[1].ok, "the ejection has not increased the throughput: {reports:?}");
    daemon.logged(&["strict", &origins[0].address.to_string(), "ejected", "much slower"]);
    assert_eq!(daemon.metric("lb_backend_ejections_total", &[]), 1.0);
}

// ===== panic mode =====

/// The timestamp of a line of the log.
#[track_caller]
fn time_of(line: &str) -> &str {
    line.trim_start_matches('[').split(' ').next().unwrap_or_default()
}

/// This test reads only the log, since a request, the status or a scrape could make the pool update its state.
#[test]
fn panic_mode_begins_and_ends_without_any_request() {
    let lab = Lab::new();
    let (mut one, mut two) = (Origin::start("one"), Origin::start("two"));
    let check = "health_check: {type: tcp, interval: 100ms, fast_interval: 100ms, rise: 1, fall: 1}";
    let daemon = lab.start(&pool(&[&one, &two], check));
    one.refuse();
    two.refuse();
    daemon.logged(&["WARN", "pool web", "no backend is ready"]);
    let began = daemon.logged(&["WARN", "pool web", "panic"]);
    let pool = daemon.pool_status("web");
    let noted = |key: &str| pool[key].as_str().unwrap().to_owned();
    for key in ["panic_since", "unready_since"] {
        let apart = milliseconds_between(time_of(&began), &noted(key));
        assert!(apart.abs() <= 500, "{key}: {apart} ms after {began}: {pool:#}");
    }
    one.come_back();
    two.come_back();
    daemon.logged(&["INFO", "pool web", "panic is over"]);
    let events = daemon.read("/api/v1/events").unwrap().text();
    for text in ["no backend is ready", "all are used", "a backend is ready again", "panic is over"] {
        assert!(events.contains(text), "{text}: {events}");
    }
}

/// The milliseconds from one timestamp to another of the same day.
fn milliseconds_between(first: &str, second: &str) -> i64 {
    let of_day = |time: &str| {
        let (_, clock) = time.split_once('T').unwrap();
        let mut parts = clock.trim_end_matches('Z').split(':').map(|part| part.parse::<f64>().unwrap());
        let mut next = || parts.next().unwrap();
        ((next() * 60.0 + next()) * 60.0 + next()) * 1e3
    };
    (of_day(second) - of_day(first)) as i64
}

#[test]
fn an_ejection_and_its_panic_mode_end_in_time_without_any_request() {
    let (lab, bad, up) = (Lab::new(), failing("503"), Origin::start("up"));
    let more = "outlier_detection: {consecutive_failures: 2, base_ejection: 1s, max_ejection: 1s}\npanic_threshold: 100";
    let daemon = lab.start(&pool(&[&bad, &up], more));
    assert_eq!(statuses(&daemon, 8), [(200, 8)]);
    let ejected = daemon.logged(&["WARN", &bad.address.to_string(), "is ejected", "2 failures in a row"]);
    let panic = daemon.logged(&["WARN", "pool web", "panic"]);
    assert!(milliseconds_between(time_of(&ejected), time_of(&panic)) <= 500, "{ejected}\n{panic}");
    let back = daemon.logged(&["INFO", &bad.address.to_string(), "is over"]);
    let over = daemon.logged(&["INFO", "pool web", "panic is over"]);
    for line in [&back, &over] {
        let lasted = milliseconds_between(time_of(&ejected), time_of(line));
        assert!((999..3000).contains(&lasted), "{lasted} ms: {ejected}\n{line}");
    }
    let status = daemon.backend_status("web", bad.address);
    let up_for = milliseconds_between(time_of(&back), status["since"].as_str().unwrap());
    assert!(status["state"] == "up" && up_for.abs() <= 100, "{up_for} ms: {back}\n{status:#}");
}

/// A daemon with a pool of four backends, of which only some pass their health checks.
struct Sick {
    daemon: Daemon,
    origins: [Origin; 4],
    _lab: Lab,
}

impl Sick {
    /// Starts with `well` healthy backends, and waits until the health checks have found them.
    #[track_caller]
    fn start(well: usize, more: &str) -> Self {
        let lab = Lab::new();
        let origins = ["a", "b", "c", "d"].map(Origin::start);
        for origin in &origins[well..] {
            origin.behave(Behaviour::Respond(CannedResponse::ok("sick")));
        }
        for origin in &origins[..well] {
            origin.behave(Behaviour::Respond(CannedResponse::ok("well")));
        }
        let check = "health_check: {type: http, interval: 200ms, fast_interval: 200ms, rise: 1, fall: 1, expect_body: well}";
        let text = pool(&origins.each_ref(), &format!("{check}\n{more}"));
        let daemon = if well == 0 { lab.start_listening(&text) } else { lab.start(&text) };
        wait::until(LONG, "the checks have found the healthy backends", || {
            daemon.metric("lb_backend_up", &[]) == well as f64
        });
        Self { daemon, origins, _lab: lab }
    }

    fn in_panic(&self) -> (f64, Value) {
        let gauge = self.daemon.metric("lb_pool_panic", &["pool=\"web\""]);
        let status = self.daemon.pool_status("web");
        assert_eq!(status["panic"] == true, status["panic_since"].is_string(), "{status:#}");
        (gauge, status["panic"].clone())
    }

    /// Sends 40 requests, and returns how many of them each origin serves.
    #[track_caller]
    fn spread(&self) -> Vec<(String, usize)> {
        tally((0..40).map(|_| self.daemon.get("/").unwrap().origin().to_owned()))
    }
}

#[test]
fn all_backends_are_used_when_too_few_are_available() {
    let evenly = ["a", "b", "c", "d"].map(|name| (name.to_owned(), 10));
    let sick = Sick::start(1, "");
    let panics = || sick.daemon.metric("lb_pool_panics_total", &["pool=\"web\""]);
    assert_eq!(sick.spread(), evenly);
    assert_eq!((sick.in_panic(), panics()), ((1.0, true.into()), 1.0));
    sick.daemon.logged(&["WARN", "pool web", "panic", "50 %"]);
    sick.origins[1].behave(Behaviour::Respond(CannedResponse::ok("well")));
    wait::until(LONG, "panic is over", || sick.in_panic().0 == 0.0);
    sick.daemon.logged(&["INFO", "pool web", "panic is over"]);
    assert_eq!(sick.spread(), [("a".to_owned(), 20), ("b".to_owned(), 20)]);
    assert_eq!((sick.in_panic(), panics()), ((0.0, false.into()), 1.0));
    sick.origins[1].behave(Behaviour::Respond(CannedResponse::ok("sick")));
    wait::until(LONG, "the pool is in panic mode again", || sick.in_panic().0 == 1.0);
    assert_eq!(panics(), 2.0);
}

#[test]
fn panic_threshold_sets_the_share_of_available_backends_below_which_all_are_used() {
    for (threshold, panic) in [(25, false), (26, true)] {
        let sick = Sick::start(1, &format!("panic_threshold: {threshold}"));
        let used = sick.spread().len();
        println!("1 of 4 backends available, panic_threshold: {threshold}: {used} are used");
        assert_eq!(used, if panic { 4 } else { 1 });
        assert_eq!(sick.in_panic().1, panic);
    }
}

#[test]
fn without_panic_mode_a_pool_with_no_available_backend_is_503() {
    let sick = Sick::start(0, "panic_threshold: 0");
    assert_eq!(statuses(&sick.daemon, 10), [(503, 10)]);
    assert_eq!(sick.in_panic(), (0.0, false.into()));
    wait::until(LONG, "all requests are counted", || {
        sick.daemon.metric("lb_rejected_total", &["reason=\"no_backend\""]) == 10.0
    });
    let sick = Sick::start(0, "");
    assert_eq!(statuses(&sick.daemon, 10), [(200, 10)]);
    assert_eq!(sick.in_panic().0, 1.0);
}

// ===== requests that still fail =====

const CLIENTS: usize = 8;
const EACH: usize = 50;

/// The outcomes of requests to a pool with failing backends under load.
struct Scenario {
    name: &'static str,
    outcomes: Vec<Outcome>,
}

impl Scenario {
    /// Sends load to a daemon with these origins and further keys of the pool.
    #[track_caller]
    fn run(name: &'static str, origins: &[Origin], more: &str, method: &'static str) -> Self {
        let lab = Lab::new();
        let daemon = lab.start(&pool(&origins.iter().collect::<Vec<_>>(), more));
        Self { name, outcomes: burst(daemon.listener, method, CLIENTS, EACH) }.printed()
    }

    fn printed(self) -> Self {
        let statuses = tally(self.outcomes.iter().map(Outcome::status));
        println!(
            "| {:<42} | {:>3} failed of {} | {statuses:?}, the longest took {:?} |",
            self.name,
            self.failed(),
            self.outcomes.len(),
            self.longest()
        );
        self
    }

    fn failed(&self) -> usize {
        failed(&self.outcomes)
    }

    fn longest(&self) -> Duration {
        self.outcomes.iter().map(|outcome| outcome.took).max().unwrap_or_default()
    }
}

/// One origin with this behaviour, and two healthy ones.
fn one_of_three(behaviour: Behaviour) -> [Origin; 3] {
    let origins = ["bad", "one", "two"].map(Origin::start);
    origins[0].behave(behaviour);
    origins
}

/// Allows concurrent retries for all clients, and a short time for each attempt.
const HELPFUL: &str = "retries: {per_try: 300ms, min_concurrent: 8}";

#[test]
fn one_failing_backend_of_three_fails_no_idempotent_request() {
    let slow = Behaviour::Slow(Duration::from_millis(100), CannedResponse::ok("slow"));
    for (name, behaviour) in [
        ("slow by 100 ms", slow),
        ("resetting on accept", Behaviour::Reset),
        ("resetting on request", Behaviour::ResetOnRequest),
        ("lying with 503", Behaviour::Respond(CannedResponse::status(503, ""))),
        ("hanging", Behaviour::Hang),
        ("garbage", Behaviour::Garbage),
    ] {
        let scenario = Scenario::run(name, &one_of_three(behaviour), HELPFUL, "GET");
        assert_eq!(scenario.failed(), 0, "{name}");
        assert!(scenario.longest() < Duration::from_secs(5), "{name}: {:?}", scenario.longest());
    }
}

/// Five consecutive failures eject a backend. Within one backoff of 25 ms there may be more failures than the three
/// concurrent retries of the budget, so a few reach the clients: those five and the requests in flight of the other
/// clients, less the three retries.
#[test]
fn with_the_default_budget_one_failing_backend_of_three_fails_few_requests() {
    for (name, behaviour) in [
        ("resetting on accept, defaults", Behaviour::Reset),
        ("resetting on request, defaults", Behaviour::ResetOnRequest),
        ("lying with 503, defaults", Behaviour::Respond(CannedResponse::status(503, ""))),
        ("garbage, defaults", Behaviour::Garbage),
    ] {
        let scenario = Scenario::run(name, &one_of_three(behaviour), "", "GET");
        assert!(scenario.failed() <= 5 + (CLIENTS - 1) - 3, "{name}");
    }
}

#[test]
fn one_backend_of_three_that_refuses_connections_fails_no_request_of_any_method() {
    for (name, method) in [("refusing, GET", "GET"), ("refusing, POST", "POST")] {
        let origins = [Origin::refusing("bad"), Origin::start("one"), Origin::start("two")];
        assert_eq!(Scenario::run(name, &origins, "", method).failed(), 0);
    }
}

/// No retry is possible once the response has begun, but the failure still counts.
#[test]
fn one_backend_of_three_that_truncates_its_responses_is_ejected() {
    let scenario = Scenario::run("closing mid-response", &one_of_three(Behaviour::CutShort), "", "GET");
    // Five consecutive failures, and the requests in flight of the other clients.
    assert!((5..=5 + CLIENTS - 1).contains(&scenario.failed()), "{}", scenario.failed());
}

#[test]
fn one_flapping_backend_of_three_fails_no_idempotent_request() {
    let lab = Lab::new();
    let mut origins = one_of_three(Behaviour::Respond(CannedResponse::ok("flapping")));
    let daemon = lab.start(&pool(&origins.each_ref(), "retries: {min_concurrent: 8}"));
    let (done, listener) = (AtomicBool::new(false), daemon.listener);
    let [flapping, ..] = &mut origins;
    let (mut outcomes, flaps) = thread::scope(|scope| {
        let flaps = scope.spawn(|| flap(flapping, &done));
        let began = Instant::now();
        let mut outcomes = Vec::new();
        while began.elapsed() < Duration::from_secs(6) {
            outcomes.extend(burst(listener, "GET", CLIENTS, EACH));
        }
        done.store(true, Ordering::Relaxed);
        (outcomes, flaps.join().unwrap())
    });
    println!("the backend flapped {flaps} times");
    outcomes.sort_by_key(Outcome::status);
    let scenario = Scenario { name: "flapping once a second", outcomes }.printed();
    assert_eq!(scenario.failed(), 0, "{:?}", scenario.outcomes[0]);
    assert!(flaps >= 4 && origins[0].requests() > 0);
}

/// Makes the origin refuse and accept connections, for a second each, until `done` is set. Returns the number of
/// changes.
fn flap(origin: &mut Origin, done: &AtomicBool) -> usize {
    let turn = || wait::poll(Duration::from_secs(1), || done.load(Ordering::Relaxed).then_some(())).is_none();
    let mut flaps = 0;
    while turn() {
        if flaps % 2 == 0 {
            origin.refuse();
        } else {
            origin.come_back();
        }
        flaps += 1;
    }
    flaps
}

fn four_of_five_dead() -> Vec<Origin> {
    let mut origins: Vec<_> = ["a", "b", "c", "d"].map(Origin::refusing).into();
    origins.push(Origin::start("up"));
    origins
}

#[test]
fn the_fifth_backend_serves_all_requests_when_four_of_five_are_dead() {
    for method in ["GET", "POST"] {
        let name =
            if method == "GET" { "4 of 5 dead, attempts: 4, GET" } else { "4 of 5 dead, attempts: 4, POST" };
        let scenario = Scenario::run(name, &four_of_five_dead(), "retries: {attempts: 4}", method);
        assert_eq!(scenario.failed(), 0, "{name}");
    }
    // With health checks, no retry is needed.
    let (lab, origins) = (Lab::new(), four_of_five_dead());
    let more = "panic_threshold: 0\nretries: {attempts: 0}\nhealth_check: {type: tcp, interval: 200ms, fast_interval: 200ms, fall: 1}";
    let daemon = lab.start(&pool(&origins.iter().collect::<Vec<_>>(), more));
    wait::until(LONG, "the checks have failed", || daemon.metric("lb_backend_up", &[]) == 1.0);
    let outcomes = burst(daemon.listener, "POST", CLIENTS, EACH);
    let scenario = Scenario { name: "4 of 5 dead, checked, no panic, POST", outcomes }.printed();
    assert_eq!(scenario.failed(), 0);
}

/// At most half of the pool is ejected, so two of the three remaining backends are dead. With one retry, a request can
/// still meet both of them.
#[test]
fn one_retry_serves_most_requests_when_four_of_five_backends_are_dead() {
    let scenario = Scenario::run("4 of 5 dead, defaults", &four_of_five_dead(), "", "GET");
    assert!(scenario.failed() <= scenario.outcomes.len() / 2, "{}", scenario.failed());
    assert!(scenario.longest() < Duration::from_secs(2), "{:?}", scenario.longest());
}

/// In panic mode all five backends get requests, but a retry goes to a backend that passes its checks.
#[test]
fn panic_mode_fails_no_request_when_four_of_five_backends_are_dead() {
    let (lab, origins) = (Lab::new(), four_of_five_dead());
    let more = "health_check: {type: tcp, interval: 200ms, fast_interval: 200ms, fall: 1}";
    let daemon = lab.start(&pool(&origins.iter().collect::<Vec<_>>(), more));
    wait::until(LONG, "the checks have failed", || daemon.metric("lb_pool_panic", &[]) == 1.0);
    for method in ["GET", "POST"] {
        let outcomes = burst(daemon.listener, method, CLIENTS, EACH);
        let scenario = Scenario { name: "4 of 5 dead, checked, panic", outcomes }.printed();
        assert_eq!(scenario.failed(), 0, "{method}");
    }
}

#[test]
fn every_request_fails_at_once_when_all_backends_are_dead() {
    for (name, more) in [
        ("all dead, defaults", ""),
        ("all dead, attempts: 4", "retries: {attempts: 4}"),
        ("all dead, no panic", "panic_threshold: 0\noutlier_detection: {max_ejected_percent: 100}"),
    ] {
        let dead: Vec<Origin> = ["a", "b", "c", "d", "e"].map(Origin::refusing).into();
        let scenario = Scenario::run(name, &dead, more, "GET");
        let statuses = tally(scenario.outcomes.iter().map(Outcome::status));
        assert_eq!(scenario.failed(), CLIENTS * EACH);
        assert!(statuses.iter().all(|(status, _)| matches!(status, 502 | 503)), "{name}: {statuses:?}");
        assert!(scenario.longest() < Duration::from_secs(2), "{name}: {:?}", scenario.longest());
    }
    let lab = Lab::new();
    let dead = ["a", "b", "c"].map(Origin::refusing);
    let more =
        "panic_threshold: 0\nhealth_check: {type: tcp, interval: 200ms, fast_interval: 200ms, fall: 1}";
    let daemon = lab.start_listening(&pool(&dead.each_ref(), more));
    wait::until(LONG, "the checks have failed", || daemon.metric("lb_backend_up", &[]) == 0.0);
    let outcomes = burst(daemon.listener, "GET", CLIENTS, EACH);
    let scenario = Scenario { name: "all dead, checked, no panic", outcomes }.printed();
    assert!(scenario.outcomes.iter().all(|outcome| outcome.status() == 503));
    assert!(scenario.longest() < Duration::from_secs(2), "{:?}", scenario.longest());
}

// ===== a killed backend =====

/// An origin in a separate process, so that a kill ends all its connections at one instant.
struct Killable {
    child: Child,
    address: SocketAddr,
}

impl Killable {
    #[track_caller]
    fn start(name: &str, millis: u32) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_origin"));
        let mut child = command
            .args([name, &millis.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, address: line.trim().parse().unwrap() }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Killable {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends requests over 200 connections, and kills the backend with the index `victim` meanwhile. Returns the number of
/// failures, and the log lines about them.
#[track_caller]
fn failures_after_killing_one_of_three(victim: usize) -> (u64, String) {
    let lab = Lab::new();
    let mut origins = ["one", "two", "three"].map(|name| Killable::start(name, 5));
    let daemon = lab.start(&pool_of(&origins.each_ref().map(|origin| origin.address), ""));
    let load = LoadGenerator::start(daemon.listener, 200, 0);
    wait::until(LONG, "all connections are busy", || load.report().ok > 2_000);
    let before = load.report().ok;
    origins[victim].kill();
    wait::until(LONG, "4000 requests have ended after the kill", || {
        let report = load.report();
        report.ok + report.failed > before + 4_000
    });
    let report = load.stop();
    let metric = |name: &str, labels: &[&str]| daemon.metric(name, labels);
    let refused = metric("lb_upstream_errors_total", &["reason=\"connect\""]);
    println!(
        "{} failed of {}, {} closed; {} retries, {} denied, {} resets, {refused} refused",
        report.failed,
        report.ok + report.failed,
        report.reconnects,
        metric("lb_upstream_retries_total", &[]),
        metric("lb_upstream_retries_denied_total", &[]),
        metric("lb_upstream_errors_total", &["reason=\"reset\""]),
    );
    assert!(refused > 0.0, "no connection was refused after the kill");
    (report.failed + report.reconnects, format!("{:?}\n{}", report.errors, failures(&daemon)))
}

#[test]
fn killing_a_backend_under_200_connections_fails_no_idempotent_request() {
    let runs: Vec<_> = (0..10).map(|run| failures_after_killing_one_of_three(run % 3)).collect();
    for (run, (failed, why)) in runs.iter().enumerate() {
        assert_eq!(*failed, 0, "run {run}: {why}");
    }
}

/// In the worst case, a third of all requests in flight fails at once. They are more than the budget allows to retry,
/// and none of them used a kept-alive connection.
#[test]
fn killing_a_backend_during_the_first_request_of_200_connections_fails_no_idempotent_request() {
    let lab = Lab::new();
    let mut origins = ["one", "two", "three"].map(|name| Killable::start(name, 2_000));
    let daemon = lab.start(&pool_of(&origins.each_ref().map(|origin| origin.address), ""));
    let (listener, victim) = (daemon.listener, format!("backend=\"{}\"", origins[0].address));
    let clients = thread::spawn(move || burst(listener, "GET", 200, 1));
    wait::until(LONG, "all requests are in flight", || {
        daemon.metric("lb_upstream_requests_in_flight", &[]) == 200.0
    });
    let lost = daemon.metric("lb_upstream_requests_in_flight", &[&victim]);
    origins[0].kill();
    let outcomes = clients.join().unwrap();
    let denied = daemon.metric("lb_upstream_retries_denied_total", &[]);
    println!(
        "{} of 200 failed; {lost} were in flight at the killed backend, {denied} retries were denied",
        failed(&outcomes)
    );
    assert!(lost > 60.0);
    assert_eq!(failed(&outcomes), 0, "{}", failures(&daemon));
}

/// The first 20 lines of the log that do not contain the status 200.
fn failures(daemon: &Daemon) -> String {
    let log = daemon.log();
    let failures: Vec<&str> = log.lines().filter(|line| !line.contains(" 200 ")).take(20).collect();
    failures.join("\n")
}
