//! Retries: requests that fail at one backend and succeed at another, and requests that must not be retried.

#![expect(clippy::print_stdout, reason = "these tests print what they measure")]

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use tests::client::head_bytes;
use tests::load::{Outcome, burst};
use tests::pattern;
use tests::wait::{self, LONG};
use tests::{Behaviour, CannedResponse, Connection, Daemon, Gate, Lab, Origin};

use crate::{pool, tally};

/// The failures that `retries.when` can list.
const FAILURES: [&str; 6] = ["connect_failure", "reset", "timeout", "502", "503", "504"];

/// Switches ejection off, so that only retries help, and makes hanging requests time out soon.
const NO_EJECTION: &str = "outlier_detection: {consecutive_failures: 0}\ntimeouts: {response: 300ms}";

/// The longest request body in bytes that can be retried.
const REPLAYABLE: usize = 64 * 1024;

/// An origin with one of the [`FAILURES`].
pub(crate) fn failing(how: &str) -> Origin {
    let behaviour = match how {
        "connect_failure" => return Origin::refusing(how),
        "reset" => Behaviour::ResetOnRequest,
        "timeout" => Behaviour::Hang,
        status => Behaviour::Respond(CannedResponse::status(status.parse().unwrap(), status)),
    };
    let origin = Origin::start(how);
    origin.behave(behaviour);
    origin
}

/// Asserts that no failure is counted for this backend.
#[track_caller]
pub(crate) fn assert_no_failure(daemon: &Daemon, origin: &Origin) {
    let status = daemon.backend_status("web", origin.address);
    let errors = status["errors"].as_object().is_none_or(serde_json::Map::is_empty);
    assert!(errors && status["consecutive_failures"] == 0, "{status:#}");
}

/// The status that a client gets when the only backend of a pool has this failure.
pub(crate) fn status_of(failure: &str) -> u16 {
    match failure {
        "connect_failure" | "reset" => 502,
        "timeout" => 504,
        status => status.parse().unwrap(),
    }
}

/// A daemon with one failing origin and one healthy one.
struct Pair {
    daemon: Daemon,
    bad: Origin,
    up: Origin,
    _lab: Lab,
}

impl Pair {
    #[track_caller]
    fn start(bad: Origin, more: &str) -> Self {
        let (lab, up) = (Lab::new(), Origin::start("up"));
        let daemon = lab.start(&pool(&[&bad, &up], &format!("{NO_EJECTION}\n{more}")));
        Self { daemon, bad, up, _lab: lab }
    }

    /// Sends two requests, and returns their statuses. At least one of them goes to the failing origin first.
    #[track_caller]
    fn two(&self, method: &str, body: &[u8]) -> Vec<(u16, usize)> {
        let request = || self.daemon.connect().request(method, "/two", &[], body).unwrap().status;
        tally([request(), request()])
    }
}

fn count(outcomes: &[Outcome], status: u16) -> usize {
    outcomes.iter().filter(|outcome| outcome.status() == status).count()
}

// ===== attempts =====

#[test]
fn no_backend_gets_two_attempts_of_one_request() {
    let lab = Lab::new();
    let all = [failing("503"), failing("502"), failing("504")];
    let origins = [&all[0], &all[1], &all[2]];
    let daemon = lab.start(&pool(&origins, &format!("{NO_EJECTION}\nretries: {{attempts: 10}}")));
    let response = daemon.get("/once").unwrap();
    assert_eq!(all.each_ref().map(Origin::requests), [1, 1, 1]);
    assert_eq!(
        response.status.to_string(),
        response.text(),
        "the response of the last backend passes unchanged"
    );
    drop(daemon);

    for attempts in 0..3 {
        let before: u64 = all.iter().map(Origin::requests).sum();
        let more = format!("{NO_EJECTION}\nretries: {{attempts: {attempts}}}");
        let daemon = lab.start(&pool(&origins, &more));
        assert!(daemon.get("/some").unwrap().status >= 502);
        let attempted = all.iter().map(Origin::requests).sum::<u64>() - before;
        assert_eq!(attempted, attempts + 1, "with attempts: {attempts}");
        assert_eq!(daemon.metric("lb_upstream_retries_total", &["pool=\"web\""]), attempts as f64);
    }
}

#[test]
fn the_error_response_of_the_only_backend_passes_unchanged() {
    let (lab, origin) = (Lab::new(), Origin::start("only"));
    origin
        .behave(Behaviour::Respond(CannedResponse::status(503, "closed for lunch").with("Retry-After", "7")));
    let daemon = lab.start(&pool(&[&origin], ""));
    for request in 1..=10 {
        let response = daemon.get("/").unwrap();
        assert_eq!((response.status, response.text().as_str()), (503, "closed for lunch"));
        assert_eq!((response.header("retry-after"), response.origin()), (Some("7"), "only"));
        assert_eq!(origin.requests(), request);
    }
    assert_eq!(daemon.metric("lb_upstream_retries_total", &[]), 0.0);
}

/// The backend that gets the replay may fail as well. The retry that the settings allow is then still available.
#[test]
fn a_replay_after_a_stale_connection_does_not_count_as_a_retry() {
    let lab = Lab::new();
    let mut origins = ["a", "b", "c"].map(Origin::start);
    let daemon = lab.start(&pool(
        &[&origins[0], &origins[1], &origins[2]],
        &format!("{NO_EJECTION}\nretries: {{attempts: 1}}"),
    ));
    let order: Vec<String> = (0..3).map(|_| daemon.get("/warm-up").unwrap().origin().to_owned()).collect();
    assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), 3, "{order:?}");
    let index = |turn: usize| origins.iter().position(|origin| origin.name() == order[turn]).unwrap();
    let (first, second) = (index(0), index(1));
    origins[first].behave(Behaviour::ResetOnRequest);
    origins[second].refuse();
    let response = daemon.get("/replayed").unwrap();
    assert_eq!((response.status, response.origin()), (200, order[2].as_str()), "{}", daemon.log());
}

// ===== requests that may be retried =====

#[test]
fn a_post_is_retried_only_when_the_connection_failed() {
    for failure in FAILURES {
        let pair = Pair::start(failing(failure), "retries: {attempts: 5}");
        let statuses = pair.two("POST", b"body");
        let sent = pair.bad.requests() + pair.up.requests();
        println!("POST, {failure}: {statuses:?}, the backends received {sent} of 2");
        assert_eq!(sent, 2, "{failure}: {statuses:?}");
        let expected = if failure == "connect_failure" {
            vec![(200, 2)]
        } else {
            vec![(200, 1), (status_of(failure), 1)]
        };
        assert_eq!(statuses, expected, "{failure}");
    }
}

#[test]
fn idempotent_requests_are_retried_after_any_failure() {
    for failure in FAILURES {
        let pair = Pair::start(failing(failure), "");
        for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"] {
            assert_eq!(pair.two(method, b""), [(200, 2)], "{method}, {failure}");
        }
        assert_eq!(pair.up.requests(), 10, "{failure}");
        assert!(pair.daemon.metric("lb_upstream_retries_total", &[]) >= 5.0, "{failure}");
    }
}

#[test]
fn a_reset_or_garbage_on_a_new_connection_is_retried() {
    for behaviour in [Behaviour::Reset, Behaviour::Garbage] {
        let bad = Origin::start("bad");
        bad.behave(behaviour.clone());
        let pair = Pair::start(bad, "");
        for _ in 0..10 {
            assert_eq!(pair.daemon.get("/").unwrap().origin(), "up", "{behaviour:?}");
        }
        assert!(pair.bad.connections() >= 5, "{behaviour:?}");
    }
}

#[test]
fn a_body_of_up_to_64_kib_is_retried_unchanged() {
    let body: Vec<u8> =
        pattern::from(0).iter().chain(pattern::from(0)).copied().take(REPLAYABLE + 1).collect();
    for failure in ["reset", "timeout", "503"] {
        let pair = Pair::start(failing(failure), "");
        for length in [1, 1000, 40_000, REPLAYABLE] {
            assert_eq!(pair.two("PUT", &body[..length]), [(200, 2)], "{length} bytes, {failure}");
            for seen in pair.up.seen().iter().rev().take(2) {
                assert!(seen.body.is_pattern, "{length} bytes, {failure}");
                assert_eq!(seen.body.length, length as u64, "{failure}");
            }
        }
        let (before, failed) = (pair.up.requests(), (status_of(failure), 1));
        assert_eq!(pair.two("PUT", &body), [(200, 1), failed], "one byte too long, {failure}");
        assert_eq!(pair.up.requests(), before + 1, "{failure}");
    }
}

/// Such a body consists only of its last chunk, which arrives before the first backend has failed.
#[test]
fn an_empty_chunked_body_is_retried_with_its_last_chunk() {
    let pair = Pair::start(failing("503"), "");
    for _ in 0..2 {
        let (mut client, began) = (pair.daemon.connect(), Instant::now());
        let mut request = head_bytes("DELETE", "/empty", &[("Transfer-Encoding", "chunked")], 0);
        request.extend_from_slice(b"0\r\n\r\n");
        client.send(request).unwrap();
        assert_eq!(client.response("DELETE").unwrap().status, 200, "{}", pair.daemon.log());
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
    assert!(pair.bad.requests() >= 1);
    assert_eq!(pair.up.requests(), 2);
    assert!(pair.up.seen().iter().all(|seen| seen.method() == "DELETE" && seen.body.length == 0));
}

/// The first half is sent again from memory. The second half comes from the client as usual.
#[test]
fn a_partial_body_is_retried_and_arrives_complete_at_another_backend() {
    let bad = Origin::start("bad");
    bad.behave(Behaviour::Reset);
    let pair = Pair::start(bad, "");
    let body = &pattern::from(0)[..40_000];
    for _ in 0..2 {
        let (resets, requests) = (pair.bad.connections(), pair.up.requests());
        let mut client = pair.daemon.connect();
        client.send(head_bytes("PUT", "/halves", &[], body.len())).unwrap();
        client.send(&body[..20_000]).unwrap();
        wait::until(LONG, "the head has arrived at a backend", || {
            pair.bad.connections() > resets || pair.up.working() > 0
        });
        wait::until(LONG, "the head has arrived at the healthy backend", || pair.up.working() > 0);
        client.send(&body[20_000..]).unwrap();
        assert_eq!(client.response("PUT").unwrap().status, 200);
        assert_eq!(pair.up.requests(), requests + 1);
        let seen = pair.up.received("/halves");
        assert_eq!((seen.body.length, seen.body.is_pattern), (40_000, true));
    }
    assert!(pair.bad.connections() >= 1);
}

#[test]
fn no_request_is_retried_once_the_client_has_received_bytes_of_the_response() {
    let cut = Origin::start("cut");
    cut.behave(Behaviour::CutShort);
    let pair = Pair::start(cut, "retries: {attempts: 5}");
    let outcomes = burst(pair.daemon.listener, "GET", 1, 10);
    let failed = count(&outcomes, 0);
    println!(
        "closing mid-response: {failed} of {} failed, {} were sent",
        outcomes.len(),
        pair.bad.requests()
    );
    assert_eq!((failed, count(&outcomes, 200)), (5, 5), "{outcomes:?}");
    assert_eq!((pair.bad.requests(), pair.up.requests()), (5, 5));
    assert_eq!(pair.daemon.metric("lb_upstream_retries_total", &[]), 0.0);
}

#[test]
fn only_the_failures_that_when_lists_are_retried() {
    for failure in FAILURES {
        let pair = Pair::start(failing(failure), &format!("retries: {{when: [{failure}]}}"));
        assert_eq!(pair.two("GET", b""), [(200, 2)], "when: [{failure}]");
        let (origin, others) = (failing(failure), FAILURES.map(str::to_owned).to_vec());
        let others: Vec<String> = others.into_iter().filter(|other| other != failure).collect();
        let pair = Pair::start(origin, &format!("retries: {{when: [{}]}}", others.join(", ")));
        assert_eq!(pair.two("GET", b""), [(200, 1), (status_of(failure), 1)], "when: {others:?}");
    }
}

#[test]
fn the_access_log_shows_which_backend_failed_and_how() {
    let words = ["connect", "reset", "timeout", "502", "503", "504"];
    for (failure, word) in FAILURES.into_iter().zip(words) {
        for format in ["text", "json"] {
            let (lab, bad, up) = (Lab::new(), failing(failure), Origin::start("up"));
            let log = format!("access_log: {{format: {format}}}\n");
            let daemon = lab.start(&format!("{log}{}", pool(&[&bad, &up], NO_EJECTION)));
            for target in ["/first", "/second"] {
                assert_eq!(daemon.get(target).unwrap().status, 200);
            }
            let (bad, up) = (bad.address, up.address.to_string());
            let tried = match format {
                "text" => format!("tried={bad}:{word}"),
                _ => format!("\"tried\":{{\"{bad}\":\"{word}\"}}"),
            };
            let line = daemon.logged(&[&tried]);
            assert!(line.contains(" 200 ") || line.contains("\"status\":200"), "{line}");
            assert!(line.contains("tries=2") || line.contains("\"tries\":2"), "{line}");
            assert!(line.contains(&up), "{line}");
        }
    }
}

#[test]
fn the_access_log_also_shows_how_the_last_backend_failed() {
    let words = ["connect", "reset", "timeout", "502", "503", "504"];
    for (failure, word) in FAILURES.into_iter().zip(words) {
        for format in ["text", "json"] {
            let (lab, one, two) = (Lab::new(), failing(failure), failing("503"));
            let log = format!("access_log: {{format: {format}}}\n");
            let daemon = lab.start(&format!("{log}{}", pool(&[&one, &two], NO_EJECTION)));
            let status = daemon.get("/fails").unwrap().status;
            let entry = |origin: &Origin, word: &str| match format {
                "text" => format!("{}:{word}", origin.address),
                _ => format!("\"{}\":\"{word}\"", origin.address),
            };
            let (one, two) = (entry(&one, word), entry(&two, "503"));
            let both = [format!("{one},{two}"), format!("{two},{one}")];
            let line = daemon.logged(&["/fails", &status.to_string()]);
            assert!(both.iter().any(|both| line.contains(both)), "neither of {both:?} in {line}");
            assert!(line.contains("tries=2") || line.contains("\"tries\":2"), "{line}");
            let last = if line.contains(&both[0]) { 503 } else { status_of(failure) };
            assert_eq!(status, last, "{line}");
        }
    }
}

#[test]
fn the_access_log_shows_truncated_and_malformed_responses() {
    for (behaviour, word) in [(Behaviour::CutShort, "reset"), (Behaviour::Garbage, "protocol")] {
        let (lab, bad) = (Lab::new(), Origin::start("bad"));
        bad.behave(behaviour);
        let daemon = lab.start(&format!("access_log: {{format: text}}\n{}", pool(&[&bad], "")));
        // The client may get no complete response.
        let _ = daemon.get("/broken");
        let line = daemon.logged(&["/broken", &format!("tried={}:{word} ", bad.address)]);
        assert!(line.contains(&format!("reason=\"{word}\"")), "{line}");
    }
}

// ===== per_try =====

const PER_TRY: Duration = Duration::from_millis(400);

/// Allows a long time for the request, but a short one for each attempt.
const PATIENT: &str = "timeouts: {response: 60s}\nretries: {per_try: 400ms}";

#[test]
fn a_hanging_attempt_is_retried_after_per_try() {
    let (lab, hanging, up) = (Lab::new(), failing("timeout"), Origin::start("up"));
    let daemon = lab.start(&pool(&[&hanging, &up], PATIENT));
    let outcomes = burst(daemon.listener, "GET", 2, 4);
    let longest = outcomes.iter().map(|outcome| outcome.took).max().unwrap();
    println!("hanging, per_try {PER_TRY:?}: the slowest of {} requests took {longest:?}", outcomes.len());
    assert_eq!(count(&outcomes, 200), 8, "{outcomes:?}");
    assert!(longest >= PER_TRY && longest < Duration::from_secs(5), "{longest:?}");
    assert!(hanging.requests() >= 4);
    assert!(daemon.metric("lb_upstream_errors_total", &["reason=\"timeout\""]) >= 4.0);
}

#[test]
fn the_status_is_504_after_per_try_when_no_other_backend_exists() {
    let (lab, hanging) = (Lab::new(), failing("timeout"));
    let daemon = lab.start(&pool(&[&hanging], PATIENT));
    for (method, body) in [("GET", &b""[..]), ("POST", b"body"), ("PUT", b"body")] {
        let began = Instant::now();
        let response = daemon.connect().request(method, "/alone", &[], body).unwrap();
        let took = began.elapsed();
        assert_eq!(response.status, 504, "{method}");
        assert!(took >= PER_TRY && took < Duration::from_secs(5), "{method}: {took:?}");
    }
    assert_eq!(hanging.requests(), 3);
}

#[test]
fn a_response_that_begins_in_time_may_last_longer_than_per_try() {
    let (lab, origin, gate) = (Lab::new(), Origin::start("one"), Gate::closed());
    origin.behave(Behaviour::HeldWithin(gate.clone(), [b"begun, ".to_vec(), b"ended".to_vec()]));
    let daemon = lab.start(&pool(&[&origin], PATIENT));
    let mut client = daemon.connect();
    client.send(head_bytes("GET", "/long", &[], 0)).unwrap();
    let (status, head) = client.response_head().unwrap();
    assert_eq!(status, 200);
    thread::sleep(3 * PER_TRY);
    gate.open();
    assert_eq!(client.rest_of_body(&head).unwrap(), b"begun, ended");
    // The limit does not apply to the idle time after its request.
    origin.behave(Behaviour::Respond(CannedResponse::ok("next")));
    thread::sleep(2 * PER_TRY);
    assert_eq!(client.get("/next").unwrap().text(), "next");
}

#[test]
fn a_hanging_websocket_upgrade_is_retried_after_per_try() {
    let (lab, hanging, up) = (Lab::new(), failing("timeout"), Origin::start("up"));
    up.behave(Behaviour::Upgrade);
    let daemon = lab.start(&pool(&[&hanging, &up], PATIENT));
    for _ in 0..2 {
        let began = Instant::now();
        let mut client = daemon.connect();
        let headers = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
        client.send(head_bytes("GET", "/ws", &headers, 0)).unwrap();
        assert_eq!(client.response_head().unwrap().0, 101);
        assert!(began.elapsed() < Duration::from_secs(5));
        // The second message comes later than `per_try`.
        for message in [b"one", b"two"] {
            client.send(message).unwrap();
            assert_eq!(client.some_bytes(), message);
            thread::sleep(2 * PER_TRY);
        }
    }
    assert!(hanging.requests() >= 1);
}

/// Sends a request whose body takes three times as long as `per_try`.
fn upload_slowly(client: &mut Connection, method: &str) {
    client.send(head_bytes(method, "/up", &[], 6)).unwrap();
    for byte in b"slowly" {
        client.send([*byte]).unwrap();
        thread::sleep(PER_TRY / 2);
    }
}

#[test]
fn a_slow_upload_does_not_count_toward_per_try() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.start(&pool(&[&origin], PATIENT));
    for method in ["PUT", "POST"] {
        let mut client = daemon.connect();
        upload_slowly(&mut client, method);
        assert_eq!(client.response(method).unwrap().status, 200, "{method}: {}", daemon.log());
        assert_eq!(origin.received("/up").body.start, b"slowly", "{method}");
    }
    assert_eq!(daemon.metric("lb_upstream_errors_total", &[]), 0.0);
    assert_eq!(daemon.backend_status("web", origin.address)["consecutive_failures"], 0);
}

#[test]
fn per_try_begins_when_the_request_is_complete() {
    let (lab, hanging) = (Lab::new(), failing("timeout"));
    let daemon = lab.start(&pool(&[&hanging], PATIENT));
    let mut client = daemon.connect();
    upload_slowly(&mut client, "POST");
    let began = Instant::now();
    assert_eq!(client.response("POST").unwrap().status, 504);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(hanging.received("/up").body.start, b"slowly");
}

#[test]
fn a_stalled_upload_is_not_a_failure_of_the_backend() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let listeners = format!("listeners: [{{address: \"{}\", timeouts: {{body: 1s}}}}]\n", lab.listener);
    let daemon =
        lab.start_file(&lab.config_with(&listeners, &pool(&[&origin], "timeouts: {response: 500ms}")));
    let mut client = daemon.connect();
    client.send(head_bytes("POST", "/stalls", &[], 10)).unwrap();
    client.send("1").unwrap();
    assert_eq!(client.response("POST").unwrap().status, 408);
    daemon.logged(&["/stalls", "408", "client_timeout"]);
    assert_no_failure(&daemon, &origin);
}

/// [`upload_slowly`] takes more than a second.
#[test]
fn a_slow_upload_does_not_count_toward_the_latency_of_the_backend() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.start(&pool(&[&origin], ""));
    let (mut client, began) = (daemon.connect(), Instant::now());
    upload_slowly(&mut client, "POST");
    assert_eq!(client.response("POST").unwrap().status, 200);
    let expected = daemon.backend_status("web", origin.address)["expected_answer_ms"].as_f64().unwrap();
    println!("an upload of {:.1?}: expected_answer_ms {expected}", began.elapsed());
    assert!(expected < 500.0, "{expected}");
}

// ===== the budget =====

const CLIENTS: usize = 50;
const EACH: usize = 20;

/// Sends requests from 50 clients to three backends that all have this behaviour, with these keys of `retries`. Returns
/// the number of denied retries, and the number of requests that the backends received.
#[track_caller]
fn outage(behaviour: &Behaviour, retries: &str) -> (f64, u64) {
    let lab = Lab::new();
    let origins = ["a", "b", "c"].map(Origin::start);
    for origin in &origins {
        origin.behave(behaviour.clone());
    }
    let more = format!("outlier_detection: {{consecutive_failures: 0}}\nretries: {{{retries}}}");
    let daemon = lab.start(&pool(&origins.each_ref(), &more));
    let outcomes = burst(daemon.listener, "GET", CLIENTS, EACH);
    assert!(outcomes.iter().all(|outcome| outcome.status() >= 502), "{}", daemon.log());
    let received = origins.iter().map(Origin::requests).sum();
    let metric = |name: &str| daemon.metric(name, &["pool=\"web\""]);
    let denied = metric("lb_upstream_retries_denied_total");
    println!(
        "outage, {retries}: {} requests, {} retries, {denied} denied, the backends received {received}",
        outcomes.len(),
        metric("lb_upstream_retries_total")
    );
    assert_eq!(daemon.pool_status("web")["retries_denied"], denied as u64);
    (denied, received)
}

#[test]
fn retries_during_an_outage_stay_within_the_budget() {
    let requests = (CLIENTS * EACH) as u64;
    let overloaded = Behaviour::Slow(Duration::from_millis(30), CannedResponse::status(503, "overloaded"));
    let (denied, received) = outage(&overloaded, "attempts: 2");
    assert!(denied > 0.0);
    assert!(received <= requests * 120 / 100 + 20, "{received} of {requests}");
    assert!(received > requests, "no request was retried");

    let (_, generous) = outage(&overloaded, "attempts: 2, budget_percent: 100");
    assert!(generous > requests * 150 / 100, "{generous} of {requests}");

    let (denied, least) = outage(&overloaded, "attempts: 2, budget_percent: 0, min_concurrent: 1");
    assert!(denied > 0.0 && least > requests && least < received, "{least} of {requests}");
}

/// The bound allows each client one retry before all backends have failed.
#[test]
fn retries_stay_within_the_budget_when_all_backends_reset() {
    let (denied, received) = outage(&Behaviour::ResetOnRequest, "attempts: 2");
    let requests = (CLIENTS * EACH) as u64;
    assert!(denied > 0.0);
    assert!(received <= requests * 120 / 100 + CLIENTS as u64, "{received} of {requests}");
}

#[test]
fn min_concurrent_retries_are_allowed_whatever_the_budget() {
    let pair = Pair::start(failing("503"), "retries: {budget_percent: 20, min_concurrent: 0}");
    let statuses = tally((0..10).map(|_| pair.daemon.get("/").unwrap().status));
    assert_eq!(statuses, [(200, 5), (503, 5)], "20% of one request allow no retry");
    assert_eq!(pair.daemon.metric("lb_upstream_retries_denied_total", &[]), 5.0);

    let pair = Pair::start(failing("503"), "retries: {budget_percent: 20, min_concurrent: 1}");
    let statuses = tally((0..10).map(|_| pair.daemon.get("/").unwrap().status));
    assert_eq!(statuses, [(200, 10)]);
    assert_eq!(pair.daemon.metric("lb_upstream_retries_denied_total", &[]), 0.0);
}

#[test]
fn a_retry_after_a_failed_connection_needs_no_budget() {
    let more = "retries: {budget_percent: 20, min_concurrent: 0}";
    let pair = Pair::start(failing("connect_failure"), more);
    let outcomes = burst(pair.daemon.listener, "POST", 4, 10);
    assert_eq!(count(&outcomes, 200), 40, "{outcomes:?}");
    assert_eq!(pair.daemon.metric("lb_upstream_retries_denied_total", &[]), 0.0);
}

/// Switches ejection off, and allows one concurrent retry.
const ONE_AT_A_TIME: &str = "outlier_detection: {consecutive_failures: 0}\n\
                             retries: {attempts: 2, budget_percent: 0, min_concurrent: 1}";

#[test]
fn a_second_retry_does_not_compete_with_the_first_for_the_budget() {
    let lab = Lab::new();
    let origins = [failing("503"), failing("503"), Origin::start("up")];
    let daemon = lab.start(&pool(&origins.each_ref(), ONE_AT_A_TIME));
    for _ in 0..6 {
        let response = daemon.get("/third").unwrap();
        assert_eq!((response.status, response.origin()), (200, "up"), "{}", daemon.log());
    }
    assert_eq!(daemon.metric("lb_upstream_retries_denied_total", &[]), 0.0);
}

/// The response may last for hours, and its request can no longer be retried.
#[test]
fn a_retry_leaves_the_budget_when_its_response_begins() {
    let (lab, bad, up) = (Lab::new(), failing("503"), Origin::start("up"));
    up.behave(Behaviour::Upgrade);
    let daemon = lab.start(&pool(&[&bad, &up], ONE_AT_A_TIME));
    let open = |_| {
        let mut client = daemon.connect();
        let headers = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
        client.send(head_bytes("GET", "/ws", &headers, 0)).unwrap();
        assert_eq!(client.response_head().unwrap().0, 101);
        client
    };
    // At least one of the two WebSockets went to the failing backend first, and both stay open.
    let mut sockets = [0, 1].map(open);
    assert!(daemon.metric("lb_upstream_retries_total", &[]) >= 1.0);
    up.behave(Behaviour::Respond(CannedResponse::ok("")));
    let statuses = tally((0..10).map(|_| daemon.get("/").unwrap().status));
    println!("while a retried WebSocket is open: {statuses:?}");
    assert_eq!(statuses, [(200, 10)], "{}", daemon.log());
    for socket in &mut sockets {
        socket.send(b"still open").unwrap();
        assert_eq!(socket.some_bytes(), b"still open");
    }
}
