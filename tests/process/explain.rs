//! Explanations: `/api/v1/explain` predicts where a request would go, and `X-Lb-Explain` reports how one was served.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tests::daemon::path_str;
use tests::wait::{self, LONG};
use tests::{Behaviour, CannedResponse, Daemon, Gate, Lab, Origin, Response};

use crate::balancing::pool_with;
use crate::{pool, pool_of};

/// Frequent TCP health checks.
const CHECKED: &str =
    "health_check: {type: tcp, interval: 200ms, fast_interval: 200ms, rise: 1, fall: 1, jitter: 0}";

/// The name of the response header with the explanation.
const EXPLAIN: &str = "x-lb-explain";

/// Sends a query to `/api/v1/explain`, and returns the document.
#[track_caller]
fn explain(daemon: &Daemon, query: &str) -> Value {
    let response = daemon.read(&format!("/api/v1/explain?{query}")).unwrap();
    assert_eq!(response.status, 200, "{}", response.text());
    serde_json::from_slice(&response.body).unwrap()
}

/// The part of the document about one backend.
#[track_caller]
fn of_backend(document: &Value, address: SocketAddr) -> Value {
    let address = address.to_string();
    let backends = document["backends"].as_array().unwrap();
    backends.iter().find(|backend| backend["address"] == address.as_str()).unwrap().clone()
}

/// The lines of the metrics about traffic.
fn counts(daemon: &Daemon) -> Vec<String> {
    let of_traffic = |line: &&str| line.starts_with("lb_") && !line.starts_with("lb_health_check");
    daemon.metrics_text().lines().filter(of_traffic).map(str::to_owned).collect()
}

/// Calls `explain`, asserts that it changes no metric of traffic, and returns its document. Repeats this if metrics of
/// earlier requests change meanwhile.
#[track_caller]
fn uncounted(daemon: &Daemon, explain: impl Fn() -> Value) -> Value {
    wait::until_some(LONG, "explaining changes no metric", || {
        let before = counts(daemon);
        let document = explain();
        (counts(daemon) == before).then_some(document)
    })
}

/// The name of the origin that the document predicts.
#[track_caller]
fn predicted<'a>(document: &Value, origins: &'a [Origin]) -> &'a str {
    let taken = document["taken"].as_str().unwrap_or_else(|| panic!("no backend is taken: {document:#}"));
    origins.iter().find(|origin| origin.address.to_string() == taken).unwrap().name()
}

/// Starts `count` origins named `o0`, `o1`, …, and one more named `dead` that refuses connections.
fn origins_and_a_dead_one(count: usize) -> Vec<Origin> {
    let mut origins: Vec<Origin> = (0..count).map(|number| Origin::start(&format!("o{number}"))).collect();
    origins.push(Origin::refusing("dead"));
    origins
}

/// Starts a daemon with these origins, of weights 3, 1, 2, …, and waits until the dead one is down.
fn checked(lab: &Lab, origins: &[Origin], more: &str) -> Daemon {
    let weights = ["weight: 3", "weight: 1", "weight: 2", "weight: 1"];
    let backends: Vec<_> = origins.iter().zip(weights).collect();
    let daemon = lab.start(&pool_with(&backends, &format!("{CHECKED}\n{more}")));
    let dead = origins.last().unwrap().address;
    wait::until(LONG, "the dead origin is down", || daemon.backend_status("web", dead)["state"] == "down");
    daemon
}

/// Explains a request twice, sends it, and asserts that the predicted origin serves it. Repeats this `requests` times,
/// and returns the names of the origins.
#[track_caller]
fn send_as_predicted(
    daemon: &Daemon,
    origins: &[Origin],
    requests: usize,
    query: impl Fn(usize) -> String,
    send: impl Fn(usize) -> Response,
) -> Vec<String> {
    let one = |number| {
        let document = uncounted(daemon, || explain(daemon, &query(number)));
        assert_eq!(explain(daemon, &query(number)), document, "explaining twice gives different documents");
        let dead = of_backend(&document, origins.last().unwrap().address);
        assert_eq!(
            (&dead["candidate"], &dead["refusal"], &dead["state"]),
            (&json!(false), &json!("down"), &json!("down"))
        );
        let response = send(number);
        assert_eq!(response.origin(), predicted(&document, origins), "request {number}: {document:#}");
        response.origin().to_owned()
    };
    (0..requests).map(one).collect()
}

fn kinds(names: &[String]) -> usize {
    crate::tally(names.iter()).len()
}

#[test]
fn a_backend_that_is_down_or_ejected_is_explained_with_reason_and_time() {
    let lab = Lab::new();
    let (up, bad, dead) = (Origin::start("up"), Origin::start("bad"), Origin::refusing("dead"));
    bad.behave(Behaviour::Respond(CannedResponse::status(503, "")));
    let more = format!(
        "{CHECKED}\noutlier_detection: {{consecutive_failures: 2, base_ejection: 60s}}\npanic_threshold: 0"
    );
    let daemon = lab.start(&pool_of(&[up.address, bad.address, dead.address], &more));
    wait::until(LONG, "a backend is ejected", || {
        daemon.get("/").unwrap();
        daemon.backend_status("web", bad.address)["state"] == "ejected"
    });
    let document = explain(&daemon, "path=/");
    let (of_dead, of_bad) = (of_backend(&document, dead.address), of_backend(&document, bad.address));
    let failed = "it is down: 1 check failed: connection refused";
    assert!(of_dead["reason"].as_str().unwrap().starts_with(failed), "{document:#}");
    let ejected = "it is ejected: 2 failures in a row (the latest: 503); back in";
    assert!(of_bad["reason"].as_str().unwrap().starts_with(ejected), "{document:#}");
    for (origin, document) in [(&dead, &of_dead), (&bad, &of_bad)] {
        let status = daemon.backend_status("web", origin.address);
        let time = |of: &Value| of["since"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        let apart = (time(document) - time(&status)).get_milliseconds().abs();
        // Two readings of the clocks may differ slightly.
        assert!(apart < 1000, "{document:#} {status:#}");
    }
    let text = lab.run(&["explain", "-c", path_str(&lab.path("conf.yaml"))]).stdout;
    for (state, why) in [("down", "1 check failed: connection refused"), ("ejected", "2 failures in a row")] {
        let is_said = |line: &str| {
            line.contains(&format!("it has been {state} for ")) && line.contains(&format!("s: {why}"))
        };
        assert!(text.lines().any(is_said), "{state}: {text}");
    }
}

#[test]
fn a_backup_that_is_down_is_explained_as_down() {
    let (lab, dead, backup) = (Lab::new(), Origin::refusing("dead"), Origin::refusing("backup"));
    let text = pool_with(
        &[(&dead, "weight: 1"), (&backup, "backup: true")],
        &format!("{CHECKED}\npanic_threshold: 0"),
    );
    let daemon = lab.start_listening(&text);
    wait::until(LONG, "both backends are down", || daemon.pool_status("web")["ready"] == 0);
    let document = explain(&daemon, "path=/");
    let reason = of_backend(&document, backup.address)["reason"].clone();
    assert!(reason.as_str().unwrap().starts_with("it is down: 1 check failed"), "{document:#}");
}

#[test]
fn explain_predicts_round_robin_without_advancing_it() {
    let (lab, origins) = (Lab::new(), origins_and_a_dead_one(3));
    let daemon = checked(&lab, &origins, "policy: round_robin");
    let names = send_as_predicted(&daemon, &origins, 12, |_| "path=/".into(), |_| daemon.get("/").unwrap());
    assert_eq!(kinds(&names), 3, "{names:?}");
}

#[test]
fn explain_predicts_the_backend_of_a_key() {
    for policy in ["consistent_hash", "maglev"] {
        let (lab, origins) = (Lab::new(), origins_and_a_dead_one(3));
        let daemon = checked(&lab, &origins, &format!("policy: {policy}\nhash_on: {{header: X-Key}}"));
        let query = |number| format!("path=/&header=X-Key:key%20{number}");
        let send = |number| {
            let key = format!("key {number}");
            daemon.connect().request("GET", "/", &[("X-Key", &key)], b"").unwrap()
        };
        let names = send_as_predicted(&daemon, &origins, 12, query, send);
        assert!(kinds(&names) >= 2, "{policy}: {names:?}");
        let document = explain(&daemon, "path=/&header=X-Key:key%201");
        assert_eq!(document["key"], "key 1");
        // If the key belongs to the dead backend, the next backend of the order gets it.
        let taken = document["backends"].as_array().unwrap().iter().find(|one| one["would_be_taken"] == true);
        assert!(
            taken.unwrap()["score"]["position"].as_u64().is_some_and(|position| position <= 2),
            "{document:#}"
        );
    }
}

#[test]
fn explain_predicts_the_least_busy_backend_and_shows_its_load() {
    let (lab, origins) = (Lab::new(), origins_and_a_dead_one(3));
    let daemon = checked(&lab, &origins, "policy: least_request");
    let gate = Gate::closed();
    origins[0].behave(Behaviour::Held(gate.clone(), CannedResponse::ok("")));
    let mut held = Vec::new();
    while origins[0].working() == 0 {
        let taken = predicted(&explain(&daemon, "path=/"), &origins).to_owned();
        let mut client = daemon.begin("/");
        if taken == "o0" {
            wait::until(LONG, "the request has arrived at o0", || origins[0].working() == 1);
            held.push(client);
        } else {
            assert_eq!(client.response("GET").unwrap().origin(), taken);
        }
    }
    let busy = of_backend(&explain(&daemon, "path=/"), origins[0].address);
    assert_eq!(busy["score"], json!({"in_flight_over_weight": 0.333}), "one request over a weight of 3");
    let in_flight = || daemon.metric("lb_upstream_requests_in_flight", &["pool=\"web\""]);
    wait::until(LONG, "only one request is in flight", || in_flight() == 1.0);
    let send = |_| {
        let response = daemon.get("/").unwrap();
        wait::until(LONG, "the request is complete", || in_flight() == 1.0);
        response
    };
    let names = send_as_predicted(&daemon, &origins, 6, |_| "path=/".into(), send);
    assert!(!names.contains(&"o0".to_owned()), "{names:?}");
    gate.open();
}

#[test]
fn explain_predicts_the_quickest_backend() {
    let (lab, origins) = (Lab::new(), origins_and_a_dead_one(2));
    let daemon = checked(&lab, &origins, "policy: peak_ewma");
    let in_flight = || daemon.metric("lb_upstream_requests_in_flight", &["pool=\"web\""]);
    for _ in 0..8 {
        let document = explain(&daemon, "path=/");
        assert!(of_backend(&document, origins[0].address)["score"]["cost"]["ms"].is_number(), "{document:#}");
        assert_eq!(daemon.get("/").unwrap().origin(), predicted(&document, &origins));
        wait::until(LONG, "the request is complete", || in_flight() == 0.0);
    }
}

#[test]
fn explain_shows_the_penalty_for_failures_apart_from_the_response_time() {
    let (lab, origin, spare) = (Lab::new(), Origin::start("one"), Origin::start("two"));
    let keys = "policy: peak_ewma\nretries: {attempts: 0}\noutlier_detection: {consecutive_failures: 1000}";
    let daemon = lab.start(&pool(&[&origin, &spare], keys));
    let config = lab.path("conf.yaml");
    let score = || of_backend(&explain(&daemon, "path=/"), origin.address)["score"]["cost"].clone();
    wait::until(LONG, "the backend has responded", || {
        daemon.get("/").unwrap();
        score()["response_ms"].is_number()
    });
    assert!(score()["penalty_ms"].is_null(), "{}", score());
    let lasting = score()["response_ms"].as_f64().unwrap();
    let spare = spare.address.to_string();
    assert_eq!(lab.run(&["disable", "web", &spare, "-c", path_str(&config)]).code, Some(0));
    origin.behave(Behaviour::Respond(CannedResponse::status(503, "")));
    assert_eq!(daemon.get("/").unwrap().status, 503);
    let failed = score();
    assert!(failed["penalty_ms"].as_f64().unwrap() > 500.0, "{failed}");
    assert!(failed["response_ms"].as_f64().unwrap() < lasting + 500.0, "{failed}");
    let text = lab.run(&["explain", "-c", path_str(&config)]).stdout;
    assert!(text.contains(" ms, penalty for failures ") && text.contains("(response "), "{text}");
    let status = daemon.backend_status("web", origin.address);
    assert!(status["expected_answer_ms"].as_f64().unwrap() < lasting + 500.0, "{status:#}");
    assert!(status["penalty_ms"].as_f64().unwrap() > 500.0, "{status:#}");
}

#[test]
fn explain_predicts_the_backend_of_a_session() {
    let (lab, origins) = (Lab::new(), origins_and_a_dead_one(3));
    let daemon = checked(&lab, &origins, "sticky: {cookie: lb_session}");
    for _ in 0..3 {
        let first = daemon.get("/").unwrap();
        let cookie = first.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        let query = |_| format!("path=/&header=Cookie:{cookie}");
        let send = |_| daemon.connect().request("GET", "/", &[("Cookie", &cookie)], b"").unwrap();
        let names = send_as_predicted(&daemon, &origins, 2, query, send);
        assert_eq!(names, [first.origin(), first.origin()]);
        let document = explain(&daemon, &query(0));
        assert_eq!(document["session"], document["taken"]);
    }
}

#[test]
fn a_draining_backend_gets_its_sessions_and_no_other_requests() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let daemon = lab.start(&pool(&[&one, &two], "sticky: {cookie: lb_session}"));
    let first = daemon.get("/").unwrap();
    let cookie = first.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let (home, other) = if first.origin() == "one" { (&one, &two) } else { (&two, &one) };
    let config = lab.path("conf.yaml");
    let drained = lab.run(&["drain", "web", &home.address.to_string(), "-c", path_str(&config)]);
    assert_eq!(drained.code, Some(0), "{drained:?}");
    for _ in 0..2 {
        let document = explain(&daemon, "path=/");
        let draining = of_backend(&document, home.address);
        assert_eq!((&draining["state"], &draining["refusal"]), (&json!("draining"), &json!("draining")));
        assert_eq!(document["taken"], other.address.to_string());
        assert_eq!(daemon.get("/").unwrap().origin(), other.name());
    }
    let document = explain(&daemon, &format!("path=/&header=Cookie:{cookie}"));
    assert_eq!(document["taken"], home.address.to_string());
    assert_eq!(of_backend(&document, home.address)["candidate"], true);
    let response = daemon.connect().request("GET", "/", &[("Cookie", &cookie)], b"").unwrap();
    assert_eq!(response.origin(), home.name());
}

#[test]
fn explain_shows_chances_when_the_policy_is_random() {
    let (lab, origins) = (Lab::new(), origins_and_a_dead_one(3));
    let daemon = checked(&lab, &origins, "policy: random");
    let document = explain(&daemon, "path=/");
    assert_eq!(
        (&document["draw"], &document["taken"], &document["outcome"]),
        (&json!(true), &Value::Null, &json!("draw"))
    );
    assert_eq!(of_backend(&document, origins[0].address)["score"], json!({"chance": 0.5}));
    assert_eq!(of_backend(&document, origins[3].address)["score"], json!({"chance": 0.0}));
}

#[test]
fn explain_shows_the_route_taken_and_why_the_others_are_not() {
    let (lab, one, two) = (Lab::new(), Origin::start("one"), Origin::start("two"));
    let pools = format!(
        "{}  other:\n    backends: [\"{}\"]\n    health_check: {{type: none}}\n",
        pool(&[&one], ""),
        two.address
    );
    let routes = "routes:\n  - {match: {host: a.test, method: [PUT]}, pool: web}\n  - {match: {path_prefix: /v1, header: {X-Canary: \"1\"}}, pool: other}\n  - {match: {path_prefix: /v1}, pool: web}\n";
    let daemon = lab.start(&format!("{pools}{routes}"));
    let document = explain(&daemon, "host=a.test&path=/v1/x&header=X-Canary:1");
    let others = json!([
        {"index": 0, "reason": "it requires another method"},
        {"index": 2, "reason": "route 1 matches first"},
    ]);
    assert_eq!(document["route"], json!({"index": 1, "others": others}));
    assert_eq!((&document["pool"], &document["policy"]), (&json!("other"), &json!("round_robin")));
    let canary = daemon.connect().request("GET", "/v1/x", &[("X-Canary", "1")], b"").unwrap();
    assert_eq!(canary.origin(), "two");
    let document = explain(&daemon, "host=b.test&path=/v1");
    let others = json!([
        {"index": 0, "reason": "its host is not a.test"},
        {"index": 1, "reason": "header x-canary does not match"},
    ]);
    assert_eq!((&document["route"]["others"], &document["pool"]), (&others, &json!("web")));
    let document = explain(&daemon, "host=b.test&path=/v2");
    assert_eq!((&document["route"]["index"], &document["outcome"]), (&Value::Null, &json!("no_route")));
    assert_eq!(daemon.get("/v2").unwrap().status, 404);
}

#[test]
fn a_wrong_query_is_refused_with_a_reason() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.start(&pool(&[&origin], ""));
    for (query, words) in [("hots=a", "unknown parameter `hots`"), ("client=me", "`me` is not an IP address")]
    {
        let response = daemon.read(&format!("/api/v1/explain?{query}")).unwrap();
        assert_eq!(response.status, 400);
        assert!(response.text().contains(words), "{}", response.text());
    }
}

// ===== X-Lb-Explain =====

const TRUSTED: &str = "trusted_proxies: [127.0.0.0/8]\n";

fn explained(daemon: &Daemon, target: &str) -> Response {
    daemon.connect().request("GET", target, &[("X-Lb-Explain", "1")], b"").unwrap()
}

#[test]
fn a_response_to_a_trusted_proxy_explains_how_it_was_served() {
    let (lab, up, bad) = (Lab::new(), Origin::start("up"), Origin::refusing("bad"));
    let routes =
        "routes:\n  - {match: {path: /none}, pool: web}\n  - {match: {path_prefix: /a}, pool: web}\n";
    let pools = pool(&[&up, &bad], "outlier_detection: {consecutive_failures: 0}");
    let daemon = lab.start(&format!("{TRUSTED}{pools}{routes}"));
    let said: Vec<String> =
        (0..2).map(|_| explained(&daemon, "/a").header(EXPLAIN).unwrap_or_default().to_owned()).collect();
    let start = format!("route=1 pool=web policy=round_robin backend={} tries=", up.address);
    assert!(said.iter().all(|line| line.starts_with(&start) && line.ends_with("session=no")), "{said:?}");
    let tried = format!("tries=2 tried={}/connect ", bad.address);
    assert_eq!(said.iter().filter(|line| line.contains(&tried)).count(), 1, "{said:?}");
    assert_eq!(daemon.get("/a").unwrap().header(EXPLAIN), None, "the request did not ask");
    let response = explained(&daemon, "/elsewhere");
    assert_eq!((response.status, response.header(EXPLAIN)), (404, Some("route=none reason=no_route")));
    assert!(up.seen().iter().all(|seen| seen.header(EXPLAIN).is_none()), "a backend received the header");
}

#[test]
fn error_responses_of_the_daemon_are_explained_too() {
    let (lab, one, two) = (Lab::new(), Origin::refusing("one"), Origin::refusing("two"));
    let daemon = lab.start(&format!("{TRUSTED}{}", pool(&[&one, &two], "")));
    let response = explained(&daemon, "/");
    assert_eq!(response.status, 502);
    let said = response.header(EXPLAIN).unwrap();
    assert!(said.contains("tries=2") && said.ends_with("reason=connect"), "{said}");
    for origin in [&one, &two] {
        assert!(said.contains(&format!("{}/connect", origin.address)), "{said}");
    }
    let nowhere = pool_of(&[one.address], "panic_threshold: 0\noutlier_detection: {consecutive_failures: 0}");
    let nowhere = nowhere.replace("health_check: {type: none}", CHECKED);
    let lab = Lab::new();
    let daemon = lab.start_listening(&format!("{TRUSTED}{nowhere}"));
    let response = explained(&daemon, "/");
    let expected = format!("backend=none tries=0 passed={}/down session=no reason=no_backend", one.address);
    assert_eq!(response.status, 503);
    assert!(
        response.header(EXPLAIN).is_some_and(|said| said.ends_with(&expected)),
        "{:?}",
        response.header(EXPLAIN)
    );
}

#[test]
fn an_untrusted_client_gets_no_explanation_and_its_header_is_not_forwarded() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let daemon = lab.start(&pool(&[&origin], ""));
    assert_eq!(explained(&daemon, "/").header(EXPLAIN), None);
    assert_eq!(explained(&daemon, "/").status, 200);
    let seen = origin.seen();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|seen| seen.header(EXPLAIN).is_none()));
}

#[test]
fn the_subcommand_explains_as_text_and_json_over_the_control_socket() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let routes =
        "routes: [{match: {header: {X-A: b & c}, method: PUT, path_prefix: /put}, pool: web}, {pool: web}]";
    let daemon = lab.start(&format!("{}{routes}\n", pool(&[&one, &two], "")));
    let config = lab.path("conf.yaml");
    let explain = |more: &[&str]| lab.run(&[&["explain", "-c", path_str(&config)], more].concat());
    let request = [
        "--host",
        "shop.example.com",
        "--path",
        "/a%20b?c",
        "--header",
        "X-A: b & c",
        "--client",
        "10.0.0.9",
    ];
    let json = explain(&[&request[..], &["--format", "json"]].concat());
    assert_eq!(json.code, Some(0), "{json:?}");
    let document: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((&document["host"], &document["pool"]), (&"shop.example.com".into(), &"web".into()));
    assert_eq!((&document["path"], &document["client"]), (&"/a%20b?c".into(), &"10.0.0.9".into()));
    assert_eq!(document["method"], "GET");
    let matched = |document: &Value| document["route"]["index"].clone();
    assert_eq!(matched(&document), 1);
    let put = explain(
        &[&request[..2], &request[4..], &["--path", "/put", "--method", "PUT", "--format", "json"]].concat(),
    );
    assert_eq!(matched(&serde_json::from_str(&put.stdout).unwrap()), 0, "{put:?}");
    let taken = document["taken"].as_str().unwrap();
    let text = explain(&request);
    assert!(text.stdout.contains(taken) && text.stdout.contains("round_robin"), "{text:?}");
    let actual = daemon.get("/").unwrap().origin().to_owned();
    let expected = [&one, &two].into_iter().find(|origin| origin.address.to_string() == taken).unwrap();
    assert_eq!(actual, expected.name());
    let wrong = explain(&["--listener", "none"]);
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
    assert!(wrong.stderr.contains("no listener `none`"), "{wrong:?}");
}

#[test]
fn a_request_with_the_token_of_the_control_socket_is_explained() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.start(&pool(&[&origin], ""));
    let token = lab.run(&["explain", "--token", "-c", path_str(&lab.path("conf.yaml"))]).stdout;
    let explanation = |value: &str| {
        let response = daemon.connect().request("GET", "/", &[("X-Lb-Explain", value)], b"").unwrap();
        response.header("x-lb-explain").map(str::to_owned)
    };
    assert!(explanation(token.trim()).unwrap().contains(&format!("backend={}", origin.address)));
    assert_eq!(explanation("1"), None);
    assert!(origin.seen().iter().all(|seen| seen.header("x-lb-explain").is_none()));
    // A reload keeps the token.
    lab.config(&pool(&[&origin], "policy: random"));
    assert_eq!(lab.run(&["reload", "-c", path_str(&lab.path("conf.yaml"))]).code, Some(0));
    assert!(explanation(token.trim()).unwrap().contains("policy=random"));
}
