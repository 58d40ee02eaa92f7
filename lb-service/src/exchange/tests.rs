//! Tests of an exchange from its head to its log line, with a pool whose backends are only values.

use http::request::Parts;
use http::{HeaderMap, HeaderName};
use pingora::lb::HealthRegistry;

use super::*;
use crate::access_log::format_json;
use crate::explain::Token;
use crate::forwarded::TrustedProxies;
use crate::listener::{ListenAddress, Listener, Listeners};
use crate::pool::{BackendSettings, Contestant, PoolSettings, StickySettings, UpstreamError};
use crate::route::{PathPattern, Route, RouteTable};
use crate::snapshot::SnapshotParts;
use crate::traffic::Traffic;

const CLIENT: [u8; 4] = [192, 0, 2, 7];
const TRUSTED: [u8; 4] = [10, 0, 0, 9];
const UNTOUCHED: Progress = Progress { replayable: true, response_begun: false };

/// A bench whose requests for `/api` go to a pool of two backends.
struct Bench {
    snapshot: Arc<Snapshot>,
    now: Instant,
}

impl Bench {
    fn new(change: impl FnOnce(&mut PoolSettings)) -> Self {
        let backends = [1, 2].map(|last| BackendSettings::new(([10, 0, 0, last], 80).into()));
        let mut settings = PoolSettings::new("api", backends.into());
        change(&mut settings);
        let listener = Listener::new("web", ListenAddress::Tcp(([127, 0, 0, 1], 80).into()));
        let route = Route { path: PathPattern::Prefix("/api".into()).into(), ..Route::any(PoolId(0)) };
        let parts = SnapshotParts {
            listeners: Listeners::new([listener]),
            routes: RouteTable::new(vec![route]),
            pools: vec![Arc::new(Pool::new(&settings, Arc::new(HealthRegistry::new()), None))],
            trusted_proxies: TrustedProxies::new(vec!["10.0.0.9/32".parse().unwrap()]),
            explain_token: Some(Token::new("secret")),
            access_logs: vec![],
        };
        Self { snapshot: Arc::new(Snapshot::new(parts, &Traffic::new())), now: Instant::now() }
    }

    fn at(&self) -> Now {
        Now { time: self.now, draw: 0.0 }
    }

    fn begin(&self, head: &Parts) -> Exchange {
        self.begin_from(CLIENT, Scheme::Http, head)
    }

    fn begin_from(&self, peer: [u8; 4], scheme: Scheme, head: &Parts) -> Exchange {
        let peer = Some(Peer::new(peer.into()));
        let origin = Origin { snapshot: self.snapshot.clone(), listener: ListenerId(0), peer, scheme };
        Exchange::begin(origin, head, self.now)
    }

    /// Returns an exchange that is placed at a backend.
    fn placed(&self, head: &Parts) -> Exchange {
        let mut exchange = self.begin(head);
        exchange.route(head).unwrap();
        assert_eq!(exchange.admit(head, self.at()), Admission::Placed);
        exchange
    }

    fn end(&self, status: Option<u16>) -> End {
        let at = self.now + Duration::from_millis(5);
        End {
            at,
            clock: || SystemTime::UNIX_EPOCH + Duration::from_secs(100),
            status,
            request_bytes: 3,
            has_whole_request: true,
            response_bytes: 4,
        }
    }

    /// Returns the number of counted responses with this status, to requests with this pool or without one.
    fn responses(&self, pool: Option<PoolId>, status: u16) -> u64 {
        let counted = self.snapshot.requests(ListenerId(0), pool).responses.counted();
        counted.filter(|(known, _)| *known == status).map(|(_, count)| count).sum()
    }
}

fn head(method: &str, target: &str, fields: &[(&str, &str)]) -> Parts {
    let request = http::Request::builder().method(method).uri(target).header(HOST, "example.com");
    let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    request.body(()).unwrap().into_parts().0
}

fn get() -> Parts {
    head("GET", "/api", &[])
}

fn fields(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    let line = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    lines.iter().map(line).collect()
}

fn backend_fault(kind: FaultKind) -> Fault {
    Fault { response_read: true, ..Fault::of_backend(kind) }
}

#[test]
fn a_request_without_a_route_is_404_and_keeps_its_connection() {
    let bench = Bench::new(|_| {});
    let head = head("GET", "/other", &[]);
    let mut exchange = bench.begin(&head);
    let failure = exchange.route(&head).unwrap_err();
    assert!(keeps_connection(failure));
    assert_eq!(exchange.own_response(&head, || SystemTime::UNIX_EPOCH).unwrap().status, 404);
    exchange.finish(&head, bench.end(Some(404)));
    assert_eq!(bench.responses(None, 404), 1);
    let rejected: u64 = bench.snapshot.traffic(ListenerId(0)).rejected().map(|(_, count)| count).sum();
    assert_eq!(rejected, 1);
}

#[test]
fn a_request_that_no_backend_takes_is_503() {
    let bench = Bench::new(|settings| settings.backends.clear());
    let mut exchange = bench.begin(&get());
    exchange.route(&get()).unwrap();
    assert_eq!(exchange.admit(&get(), bench.at()), Admission::Rejected(AdmissionError::Unavailable));
    assert_eq!(exchange.failure(), Some(Failure::Rejected(Rejection::NoBackend)));
    assert!(keeps_connection(exchange.failure().unwrap()));
    assert_eq!(exchange.own_response(&get(), || SystemTime::UNIX_EPOCH).unwrap().status, 503);
}

#[test]
fn the_backend_gets_forwarded_fields_and_the_host_of_its_pool_but_no_explain_header() {
    let bench = Bench::new(|settings| settings.host = Some(HeaderValue::from_static("origin.test")));
    let head = head("GET", "/api", &[("x-forwarded-for", "127.0.0.1"), ("x-lb-explain", "1")]);
    let mut request = head.headers.clone();
    bench.placed(&head).edit_request(&head, &mut request);
    assert_eq!(request["x-forwarded-for"], "192.0.2.7");
    assert_eq!(request["x-forwarded-host"], "example.com");
    assert_eq!(request["x-forwarded-proto"], "http");
    assert_eq!(request["host"], "origin.test");
    assert!(!request.contains_key("x-lb-explain"));
}

#[test]
fn a_response_gets_the_cookie_and_the_explanation() {
    let bench = Bench::new(|settings| settings.sticky = Some(StickySettings::new("lb")));
    let head = head("GET", "/api", &[("x-lb-explain", "secret")]);
    let mut exchange = bench.placed(&head);
    let mut response = fields(&[("set-cookie", "a=b")]);
    let found = exchange.respond(&head, 200, &mut response, UNTOUCHED, bench.at());
    assert_eq!(found, Response::PassOn);
    let cookies: Vec<_> = response.get_all("set-cookie").iter().collect();
    assert!(cookies.len() == 2 && cookies[1].to_str().unwrap().starts_with("lb="), "{cookies:?}");
    assert!(response["x-lb-explain"].to_str().unwrap().contains("pool=api"));
}

#[test]
fn a_client_without_the_token_gets_no_explanation() {
    let bench = Bench::new(|_| {});
    let head = head("GET", "/api", &[("x-lb-explain", "guess")]);
    let mut response = HeaderMap::new();
    bench.placed(&head).respond(&head, 200, &mut response, UNTOUCHED, bench.at());
    assert!(response.is_empty());
}

#[test]
fn an_informational_response_is_not_final_except_a_change_of_protocol() {
    let bench = Bench::new(|_| {});
    let mut exchange = bench.placed(&get());
    assert!(!is_final(100) && !is_final(103) && is_final(101) && is_final(200));
    let found = exchange.respond(&get(), 101, &mut HeaderMap::new(), UNTOUCHED, bench.at());
    assert_eq!(found, Response::PassOn, "another protocol follows");
}

#[test]
fn a_gateway_error_is_retried_and_the_last_one_is_passed_on() {
    let bench = Bench::new(|_| {});
    let mut exchange = bench.placed(&get());
    let respond = |exchange: &mut Exchange, status| {
        exchange.respond(&get(), status, &mut HeaderMap::new(), UNTOUCHED, bench.at())
    };
    assert_eq!(respond(&mut exchange, 503), Response::Retry);
    exchange.end_attempt().expect("the request is retried");
    assert_eq!(exchange.admit(&get(), bench.at()), Admission::Placed);
    assert_eq!(respond(&mut exchange, 503), Response::PassOn);
    assert_eq!(exchange.failure(), None);
}

#[test]
fn a_post_is_retried_only_if_no_connection_was_made() {
    let bench = Bench::new(|_| {});
    let post = head("POST", "/api", &[]);
    let retries = |kind| bench.placed(&post).fault(&post, backend_fault(kind), UNTOUCHED, bench.at());
    assert!(retries(FaultKind::Connect) && retries(FaultKind::Tls));
    assert!(!retries(FaultKind::Closed) && !retries(FaultKind::Protocol));
}

#[test]
fn a_request_whose_response_has_begun_is_not_retried() {
    let bench = Bench::new(|_| {});
    let mut exchange = bench.placed(&get());
    let begun = Progress { response_begun: true, ..UNTOUCHED };
    assert!(!exchange.fault(&get(), backend_fault(FaultKind::Closed), begun, bench.at()));
    exchange.finish(&get(), bench.end(Some(200)));
    assert_eq!(bench.snapshot.requests(ListenerId(0), Some(PoolId(0))).broken_off.get(), 1);
}

#[test]
fn a_stale_connection_is_replaced_without_a_failure() {
    let bench = Bench::new(|settings| settings.retries.attempts = 0);
    let mut exchange = bench.placed(&get());
    let attempt = exchange.dispatch.attempt.as_mut().unwrap();
    attempt.connected(true);
    let backend = attempt.backend.clone();
    assert!(exchange.fault(&get(), Fault::of_backend(FaultKind::Closed), UNTOUCHED, bench.at()));
    assert_eq!(backend.consecutive_failures(), 0);
}

#[test]
fn a_timeout_is_a_failure_of_the_side_that_was_waited_for() {
    let bench = Bench::new(|settings| settings.retries.attempts = 0);
    let failure = |fault: Fault| {
        let head = head("POST", "/api", &[]);
        let mut exchange = bench.placed(&head);
        exchange.body_follows();
        exchange.fault(&head, fault, UNTOUCHED, bench.at());
        exchange.failure().unwrap()
    };
    assert_eq!(failure(Fault::of_client(FaultKind::ReadTimeout)), Failure::ClientTimeout);
    for kind in [FaultKind::ReadTimeout, FaultKind::WriteTimeout] {
        assert_eq!(failure(backend_fault(kind)), Failure::Upstream(UpstreamError::Timeout));
    }
    assert_eq!(failure(backend_fault(FaultKind::Stalled)), Failure::ResponseStalled);
}

#[test]
fn the_first_failure_is_the_reason_when_no_other_backend_takes_the_request() {
    let bench = Bench::new(|_| {});
    let mut exchange = bench.placed(&get());
    assert!(exchange.fault(&get(), backend_fault(FaultKind::Connect), UNTOUCHED, bench.at()));
    assert_eq!(exchange.failure(), Some(Failure::Upstream(UpstreamError::Connect)));
    assert_eq!(exchange.own_response(&get(), || SystemTime::UNIX_EPOCH).unwrap().status, 502);
}

#[test]
fn an_attempt_is_limited_until_its_response_begins() {
    let second = Duration::from_secs(1);
    let bench = Bench::new(|settings| settings.retries.per_try = Some(second));
    let mut exchange = bench.placed(&get());
    assert_eq!(exchange.request_complete(|| bench.now), Some(second));
    exchange.respond(&get(), 200, &mut HeaderMap::new(), UNTOUCHED, bench.at());
    assert_eq!(exchange.request_complete(|| bench.now), None);
}

#[test]
fn a_request_whose_pool_is_replaced_continues_with_the_successor() {
    let bench = Bench::new(|_| {});
    let pool = bench.snapshot.pools[0].clone();
    let mut exchange = bench.begin(&get());
    exchange.route(&get()).unwrap();
    let settings = PoolSettings::new("api", vec![BackendSettings::new(([10, 0, 0, 3], 80).into())]);
    let successor = Arc::new(pool.successor(&settings));
    successor.enter(&pool);
    assert_eq!(exchange.admit(&get(), bench.at()), Admission::Placed);
    assert_eq!(&*exchange.dispatch.attempt.as_ref().unwrap().backend.label, "10.0.0.3:80");
}

#[test]
fn a_body_that_breaks_off_is_counted_by_its_side() {
    let bench = Bench::new(|_| {});
    let begun = Progress { response_begun: true, ..UNTOUCHED };
    let counted = || {
        let counted = bench.snapshot.requests(ListenerId(0), Some(PoolId(0)));
        (counted.truncated_requests.get(), counted.truncated_responses.get())
    };
    let ended = |fault: Fault, is_passed_on: bool, has_whole_request: bool| {
        let mut exchange = bench.placed(&get());
        if is_passed_on {
            let decision = exchange.respond(&get(), 200, &mut fields(&[]), UNTOUCHED, bench.at());
            assert_eq!(decision, Response::PassOn);
        }
        exchange.fault(&get(), fault, begun, bench.at());
        exchange.finish(&get(), End { has_whole_request, ..bench.end(Some(200)) });
    };
    ended(backend_fault(FaultKind::Closed), false, true);
    assert_eq!(counted(), (0, 0), "no head was passed on");
    ended(backend_fault(FaultKind::Closed), true, true);
    ended(backend_fault(FaultKind::Stalled), true, false);
    assert_eq!(counted(), (0, 2));
    ended(Fault::of_client(FaultKind::Closed), true, true);
    assert_eq!(counted(), (0, 2), "the whole request has arrived");
    ended(Fault::of_client(FaultKind::Closed), false, false);
    assert_eq!(counted(), (1, 2));
}

#[test]
fn the_backend_that_loses_a_race_is_named_in_the_log_and_in_the_explanation() {
    let bench = Bench::new(|_| {});
    let head = head("POST", "/api", &[("X-Lb-Explain", "secret")]);
    let mut exchange = bench.placed(&head);
    assert_eq!(exchange.race_after(), Some(Duration::from_millis(250)));
    let second = exchange.race(&head, bench.at()).unwrap();
    let loser = exchange.win_race(Contestant::Second, bench.now).unwrap();
    exchange.dispatch.connected(false);
    assert_eq!(exchange.race_after(), None, "a request has one race");
    let (mut response, mut line) = (HeaderMap::new(), Vec::new());
    let decision = exchange.respond(&head, 200, &mut response, UNTOUCHED, bench.at());
    assert_eq!(decision, Response::PassOn);
    format_json(&exchange.record(&head, 200, bench.end(Some(200))), &mut line);
    let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
    assert_eq!((&line["backend"], &line["tries"]), (&(*second.label).into(), &2.into()));
    assert_eq!(line["tried"], serde_json::json!({ &*loser.backend.label: "connect_race" }));
    let explanation = response[&X_LB_EXPLAIN].to_str().unwrap();
    assert!(explanation.contains(&format!("tried={}/connect_race", loser.backend.label)), "{explanation}");
}

#[test]
fn an_attempt_that_drops_out_of_a_race_explains_a_request_that_fails() {
    let bench = Bench::new(|settings| settings.retries.attempts = 1);
    let mut exchange = bench.placed(&get());
    exchange.race(&get(), bench.at()).unwrap();
    exchange.drop_out(Contestant::Second, FaultKind::Tls, "no certificate".to_owned(), bench.now);
    let fault = Fault::before_request(FaultKind::Connect);
    assert!(!exchange.fault(&get(), fault, UNTOUCHED, bench.at()), "no other backend is left");
    let mut line = Vec::new();
    format_json(&exchange.record(&get(), 502, bench.end(None)), &mut line);
    let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
    assert_eq!((&line["tries"], &line["reason"]), (&2.into(), &"connect".into()));
    let mut tried: Vec<_> = line["tried"].as_object().unwrap().values().map(|how| how.as_str()).collect();
    tried.sort_unstable();
    assert_eq!(tried, [Some("connect"), Some("tls")]);
}

#[test]
fn a_request_is_counted_and_logged_with_what_the_client_saw() {
    let bench = Bench::new(|_| {});
    let exchange = bench.placed(&get());
    let end = bench.end(Some(200));
    let (head, mut line) = (get(), Vec::new());
    format_json(&exchange.record(&head, 200, end), &mut line);
    let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(
        (&line["listener"], &line["pool"], &line["status"]),
        (&"web".into(), &"api".into(), &200.into())
    );
    assert_eq!((&line["host"], &line["path"]), (&"example.com".into(), &"/api".into()));
    exchange.finish(&get(), end);
    let counted = bench.snapshot.requests(ListenerId(0), Some(PoolId(0)));
    assert_eq!((bench.responses(Some(PoolId(0)), 200), counted.broken_off.get()), (1, 0));
    assert_eq!((counted.request_bytes.get(), counted.response_bytes.get()), (3, 4));
}

#[test]
fn a_client_that_disconnects_before_the_response_is_counted_as_499() {
    let bench = Bench::new(|_| {});
    let mut exchange = bench.placed(&get());
    exchange.fail(Failure::ClientGone);
    assert_eq!(exchange.own_response(&get(), || SystemTime::UNIX_EPOCH), None);
    exchange.finish(&get(), bench.end(None));
    assert_eq!(bench.responses(Some(PoolId(0)), 499), 1);
}

#[test]
fn a_backend_can_ask_for_a_pause_in_seconds() {
    let pause = |status, value: &'static str| retry_after(status, &fields(&[("retry-after", value)]));
    assert_eq!(pause(503, "7"), Some(Duration::from_secs(7)));
    assert_eq!(pause(429, "Wed, 21 Oct 2026 07:28:00 GMT"), Some(Duration::from_secs(1)));
    assert_eq!(pause(301, "7"), None);
    assert_eq!(retry_after(503, &HeaderMap::new()), None);
}

#[test]
fn the_end_of_a_request_without_a_body_does_not_read_the_clock() {
    let bench = Bench::new(|_| {});
    let mut exchange = bench.placed(&get());
    exchange.request_complete(|| unreachable!("the attempt began when the head was sent"));
    exchange.body_follows();
    let mut is_read = false;
    exchange.request_complete(|| {
        is_read = true;
        bench.now
    });
    assert!(is_read, "the time of the backend begins when the body ends");
}

/// Returns the `Host` and the `X-Forwarded-Host` that a backend gets.
fn hosts(bench: &Bench, head: &Parts) -> [Option<String>; 2] {
    let mut request = head.headers.clone();
    bench.placed(head).edit_request(head, &mut request);
    ["host", "x-forwarded-host"].map(|name| Some(request.get(name)?.to_str().ok()?.to_owned()))
}

#[test]
fn a_request_without_a_host_gets_the_host_of_its_target_of_the_pool_or_of_the_backend() {
    let hostless = |target: &str| http::Request::get(target).body(()).unwrap().into_parts().0;
    let bench = Bench::new(|settings| settings.backends.truncate(1));
    let (some, path) = (|text: &str| Some(text.to_owned()), hostless("/api"));
    assert_eq!(hosts(&bench, &get()), [some("example.com"), some("example.com")]);
    assert_eq!(hosts(&bench, &path), [some("10.0.0.1:80"), None]);
    assert_eq!(hosts(&bench, &hostless("http://a.test:81/api")), [some("a.test:81"), some("a.test:81")]);
    let bench = Bench::new(|settings| settings.host = Some(HeaderValue::from_static("b.test")));
    assert_eq!(hosts(&bench, &path), [some("b.test"), None]);
    assert_eq!(hosts(&bench, &get()), [some("b.test"), some("example.com")]);
    let bench = Bench::new(|settings| {
        settings.backends = vec![BackendSettings::new("unix:/run/a.sock".parse().unwrap())];
    });
    assert_eq!(hosts(&bench, &path), [some("localhost"), None]);
}

#[test]
fn an_options_request_loses_a_hop_and_ends_here_at_the_last_one() {
    let bench = Bench::new(|_| {});
    let hops = |method, hops| head(method, "/api", &[("max-forwards", hops)]);
    let checked = |head: &Parts| bench.begin(head).check(head, None);
    assert_eq!(checked(&hops("OPTIONS", "0")), Err(Failure::Rejected(Rejection::LastHop)));
    let forwarded = |head: &Parts| {
        checked(head).unwrap();
        let mut request = head.headers.clone();
        bench.placed(head).edit_request(head, &mut request);
        request["max-forwards"].to_str().unwrap().to_owned()
    };
    assert_eq!(forwarded(&hops("OPTIONS", "7")), "6");
    assert_eq!(forwarded(&hops("GET", "0")), "0", "only OPTIONS and TRACE have hops");
}

#[test]
fn a_target_with_https_needs_tls_or_a_trusted_peer() {
    let bench = Bench::new(|_| {});
    let checked = |peer, scheme, named| bench.begin_from(peer, scheme, &get()).check(&get(), Some(named));
    let mismatch = Failure::Rejected(Rejection::Wire(WireRejection::SchemeMismatch));
    assert_eq!(checked(CLIENT, Scheme::Http, wire::Scheme::Https), Err(mismatch));
    assert!(!keeps_connection(mismatch));
    assert_eq!(checked(CLIENT, Scheme::Https, wire::Scheme::Https), Ok(()));
    assert_eq!(checked(CLIENT, Scheme::Http, wire::Scheme::Http), Ok(()));
    assert_eq!(checked(TRUSTED, Scheme::Http, wire::Scheme::Https), Ok(()));
}

#[test]
fn a_target_with_https_does_not_choose_the_scheme_that_backends_see() {
    let bench = Bench::new(|_| {});
    let head = head("GET", "https://example.com/api", &[]);
    let mut exchange = bench.begin_from(TRUSTED, Scheme::Http, &head);
    exchange.route(&head).unwrap();
    assert_eq!(exchange.admit(&head, bench.at()), Admission::Placed);
    let mut request = head.headers.clone();
    exchange.edit_request(&head, &mut request);
    assert_eq!(request["x-forwarded-proto"], "http");
}

#[test]
fn a_chain_of_proxies_that_is_too_long_is_rejected_from_trusted_peers_only() {
    let bench = Bench::new(|_| {});
    let head = head("GET", "/api", &[("X-Forwarded-For", &["192.0.2.1"; 65].join(", "))]);
    let checked = |peer| bench.begin_from(peer, Scheme::Http, &head).check(&head, None);
    let too_many = Failure::Rejected(Rejection::Wire(WireRejection::TooManyForwarded));
    assert_eq!((checked(TRUSTED), checked(CLIENT)), (Err(too_many), Ok(())));
    assert_eq!(too_many.status(), 400);
}

#[test]
fn a_request_that_cannot_be_sent_twice_uses_only_connections_that_were_just_used() {
    let bench = Bench::new(|_| {});
    let post = head("POST", "/api", &[]);
    assert_eq!(bench.placed(&get()).max_idle(&get()), Some(Duration::MAX));
    assert_eq!(bench.placed(&post).max_idle(&post), Some(MAX_IDLE));
}

#[test]
fn the_replay_after_a_stale_connection_uses_a_new_one() {
    let bench = Bench::new(|_| {});
    let mut exchange = bench.placed(&get());
    exchange.dispatch.attempt.as_mut().unwrap().connected(true);
    assert!(exchange.fault(&get(), Fault::of_backend(FaultKind::Closed), UNTOUCHED, bench.at()));
    exchange.end_attempt();
    assert_eq!(exchange.admit(&get(), bench.at()), Admission::Placed);
    assert_eq!(exchange.max_idle(&get()), None);
}

#[test]
fn a_post_of_which_no_byte_was_sent_goes_to_another_connection() {
    let bench = Bench::new(|_| {});
    let post = head("POST", "/api", &[]);
    for (reused, expected) in [(true, true), (false, true)] {
        let mut exchange = bench.placed(&post);
        exchange.dispatch.attempt.as_mut().unwrap().connected(reused);
        let fault = Fault::before_request(FaultKind::Closed);
        assert_eq!(exchange.fault(&post, fault, UNTOUCHED, bench.at()), expected, "{reused}");
    }
    let mut exchange = bench.placed(&post);
    exchange.dispatch.attempt.as_mut().unwrap().connected(true);
    assert!(!exchange.fault(&post, Fault::of_backend(FaultKind::Closed), UNTOUCHED, bench.at()));
}

#[test]
fn a_response_that_stalls_is_neither_a_success_nor_a_failure_of_its_backend() {
    let bench = Bench::new(|settings| settings.backends.truncate(1));
    let end = |fault: Option<FaultKind>| {
        let mut exchange = bench.placed(&get());
        exchange.respond(&get(), 200, &mut HeaderMap::new(), UNTOUCHED, bench.at());
        if let Some(kind) = fault {
            let begun = Progress { response_begun: true, ..UNTOUCHED };
            assert!(!exchange.fault(&get(), backend_fault(kind), begun, bench.at()));
        }
    };
    let failures = || bench.snapshot.pools[0].backends()[0].consecutive_failures();
    end(Some(FaultKind::Closed));
    assert_eq!(failures(), 1);
    end(Some(FaultKind::Stalled));
    assert_eq!(failures(), 1);
    end(None);
    assert_eq!(failures(), 0);
}
