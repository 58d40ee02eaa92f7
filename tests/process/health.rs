//! Health checks and their effects on traffic, metrics and readiness.

use std::process::Command;
use std::time::{Duration, Instant};

use tests::daemon::{View, path_str};
use tests::wait::{self, LONG};
use tests::{Authority, Behaviour, CannedResponse, Certified, Daemon, Lab, Origin, Unreachable};

use crate::{pool, pool_of};

/// The key `health_check` of a pool, with frequent checks and the keys in `more`.
fn check(kind: &str, more: &str) -> String {
    format!("health_check: {{type: {kind}, interval: 200ms, fast_interval: 200ms, jitter: 0, {more}}}")
}

/// Waits until the metrics show this backend as up or down.
#[track_caller]
fn wait_up(daemon: &Daemon, origin: &Origin, up: bool) {
    let label = format!("backend=\"{}\"", origin.address);
    let what = format!("{} is {}", origin.name(), if up { "up" } else { "down" });
    let wanted = if up { 1.0 } else { 0.0 };
    wait::until(LONG, &what, || daemon.metric("lb_backend_up", &[&label]) == wanted);
}

/// The names of the origins that serve ten requests.
fn served_by(daemon: &Daemon) -> Vec<String> {
    let names = (0..10).map(|_| daemon.get("/traffic").unwrap().origin().to_owned());
    crate::tally(names).into_iter().map(|(name, _)| name).collect()
}

/// Waits until an origin has received `count` requests for `path`, and returns the time of each.
#[track_caller]
fn check_times(origin: &Origin, path: &str, count: usize) -> Vec<Instant> {
    let checks = || origin.seen().iter().filter(|seen| seen.target() == path).count();
    let (mut known, mut times) = (checks(), Vec::new());
    wait::until(LONG, &format!("{count} checks have arrived"), || {
        let now = checks();
        times.extend(std::iter::repeat_n(Instant::now(), now - known));
        known = now;
        times.len() >= count
    });
    times
}

#[test]
fn tcp_checks_take_a_failed_backend_out_and_back_in() {
    let lab = Lab::new();
    let (one, mut two) = (Origin::start("one"), Origin::start("two"));
    let daemon = lab.start(&pool(&[&one, &two], &check("tcp", "rise: 1, fall: 1")));
    assert_eq!(served_by(&daemon), ["one", "two"]);
    two.refuse();
    wait_up(&daemon, &two, false);
    assert_eq!(served_by(&daemon), ["one"]);
    two.come_back();
    wait_up(&daemon, &two, true);
    assert_eq!(served_by(&daemon), ["one", "two"]);
    let address = two.address.to_string();
    daemon.logged(&["web", &address, "1 check", "failed", "refused"]);
}

#[test]
fn http_checks_send_what_is_configured() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let more = "path: \"/health?deep=1\", method: HEAD, host: checked.test";
    let _daemon = lab.start(&pool(&[&origin], &check("http", more)));
    let seen = origin.received("/health?deep=1");
    assert_eq!((seen.method(), seen.header("host")), ("HEAD", Some("checked.test")));
}

#[test]
fn http_checks_pass_when_the_status_is_expected() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    one.behave(Behaviour::Respond(CannedResponse::status(204, "")));
    two.behave(Behaviour::Respond(CannedResponse::status(404, "missing")));
    let daemon = lab.start(&pool(&[&one, &two], &check("http", "expect_status: [\"404\", \"500-502\"]")));
    wait_up(&daemon, &one, false);
    wait_up(&daemon, &two, true);
    one.behave(Behaviour::Respond(CannedResponse::status(501, "")));
    wait_up(&daemon, &one, true);
}

#[test]
fn http_checks_pass_by_default_when_the_status_is_2xx_or_3xx() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    one.behave(Behaviour::Respond(CannedResponse::status(302, "")));
    two.behave(Behaviour::Respond(CannedResponse::status(500, "")));
    let daemon = lab.start(&pool(&[&one, &two], &check("http", "path: /")));
    wait_up(&daemon, &one, true);
    wait_up(&daemon, &two, false);
}

#[test]
fn http_checks_pass_when_the_body_contains_the_expected_text() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    one.behave(Behaviour::Respond(CannedResponse::ok("status: ok")));
    two.behave(Behaviour::Respond(CannedResponse::ok("status: bad")));
    let daemon = lab.start(&pool(&[&one, &two], &check("http", "expect_body: \"status: ok\"")));
    wait_up(&daemon, &one, true);
    wait_up(&daemon, &two, false);
}

#[test]
fn checks_use_tls_when_the_pool_does() {
    let lab = Lab::new();
    let (authority, stranger) = (Authority::new(), Authority::new());
    let ca = lab.path("ca.pem");
    authority.write(&ca).unwrap();
    let trusted = Origin::start_tls("trusted", authority.certify(&["a.test"]).server());
    let untrusted = Origin::start_tls("untrusted", stranger.certify(&["a.test"]).server());
    for kind in ["tcp", "http"] {
        let more = format!("tls: {{sni: a.test, ca: {}}}\n{}", ca.display(), check(kind, "fall: 1"));
        let daemon = lab.start(&pool(&[&trusted, &untrusted], &more));
        wait_up(&daemon, &trusted, true);
        wait_up(&daemon, &untrusted, false);
        assert_eq!(served_by(&daemon), ["trusted"]);
    }
    assert_eq!(trusted.received("/").sni.as_deref(), Some("a.test"));
}

#[test]
fn a_self_signed_certificate_that_ca_names_passes_the_check_and_serves() {
    let lab = Lab::new();
    let certificate = Certified::self_signed_authority(&["a.test"]);
    let ca = lab.path("ca.pem");
    certificate.write(&ca, &lab.path("key.pem")).unwrap();
    let origin = Origin::start_tls("one", certificate.server());
    for kind in ["tcp", "http"] {
        let more = format!("tls: {{sni: a.test, ca: {}}}\n{}", ca.display(), check(kind, "rise: 1, fall: 1"));
        let daemon = lab.start(&pool(&[&origin], &more));
        wait_up(&daemon, &origin, true);
        assert_eq!(daemon.get("/").unwrap().status, 200, "{kind}");
        assert!(!daemon.log().contains("is down"), "{kind}: {}", daemon.log());
    }
}

#[test]
fn checks_come_from_the_configured_source_address() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    let more = check("http", "path: /healthz");
    let daemon = lab.start(&format!("client_bind_to_ipv4: [127.0.0.77]\n{}", pool(&[&origin], &more)));
    wait_up(&daemon, &origin, true);
    assert_eq!(origin.received("/healthz").peer.unwrap().ip().to_string(), "127.0.0.77");
}

#[test]
fn checks_go_to_the_port_that_the_key_names() {
    let lab = Lab::new();
    let (traffic, beside) = (Origin::start("traffic"), Origin::start("beside"));
    // The check goes to this port on the IP address of the backend.
    let listener = std::net::TcpListener::bind((traffic.address.ip(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let more = check("tcp", &format!("port: {port}, rise: 1, fall: 1"));
    let daemon = lab.start(&pool(&[&traffic, &beside], &format!("{more}\nretries: {{attempts: 1}}")));
    wait_up(&daemon, &traffic, true);
    // Nothing listens on this port at the address of the other backend.
    wait_up(&daemon, &beside, false);
    drop(listener);
    wait_up(&daemon, &traffic, false);
    assert!(traffic.requests() == 0);
}

#[test]
fn a_backend_goes_down_after_fall_failures_and_comes_back_after_rise_successes() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let daemon = lab.start(&pool(&[&one, &two], &check("http", "path: /check, rise: 4, fall: 3")));
    wait_up(&daemon, &two, true);
    two.behave(Behaviour::Respond(CannedResponse::status(500, "")));
    let failed_before = two.requests();
    wait_up(&daemon, &two, false);
    let failed = two.requests() - failed_before;
    assert!((3..=5).contains(&failed), "down after {failed} failures");
    daemon.logged(&[&two.address.to_string(), "3 checks failed"]);
    two.behave(Behaviour::Respond(CannedResponse::ok("")));
    let passed_before = two.requests();
    wait_up(&daemon, &two, true);
    let passed = two.requests() - passed_before;
    assert!((4..=6).contains(&passed), "up after {passed} successes");
}

#[test]
fn checks_are_sent_at_the_interval() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let more = "health_check: {type: http, path: /check, interval: 600ms, fast_interval: 600ms, jitter: 0}";
    let _daemon = lab.start(&pool(&[&origin], more));
    let times = check_times(&origin, "/check", 4);
    let span = times[3] - times[0];
    assert!((1500..2600).contains(&span.as_millis()), "three intervals of 600 ms took {span:?}");
}

#[test]
fn checks_are_sent_at_the_fast_interval_while_the_state_changes() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let more =
        "health_check: {type: http, path: /check, interval: 2s, fast_interval: 100ms, fall: 10, jitter: 0}";
    let daemon = lab.start(&pool(&[&one, &two], more));
    two.behave(Behaviour::Respond(CannedResponse::status(500, "")));
    let begun = Instant::now();
    wait_up(&daemon, &two, false);
    // Ten checks at the slow interval would take 20 s.
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(8), "took {took:?}");
}

#[test]
fn jitter_spreads_the_checks() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let more = "health_check: {type: http, path: /check, interval: 300ms, fast_interval: 300ms, jitter: 50}";
    let _daemon = lab.start(&pool(&[&origin], more));
    let times = check_times(&origin, "/check", 12);
    let gaps: Vec<u128> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    let (least, most) = (gaps.iter().min().unwrap(), gaps.iter().max().unwrap());
    assert!(most - least > 60, "with 50% jitter of 300 ms, the gaps are {gaps:?}");
}

#[test]
fn a_check_fails_when_it_times_out() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    for origin in [&one, &two] {
        origin.behave(Behaviour::Slow(Duration::from_millis(600), CannedResponse::ok("")));
    }
    let checks = |timeout: &str| {
        format!("health_check: {{type: http, interval: 10s, fast_interval: 1s, fall: 1, timeout: {timeout}}}")
    };
    let patient = lab.start(&pool(&[&one, &two], &checks("9s")));
    wait_up(&patient, &one, true);
    wait_up(&patient, &two, true);
    drop(patient);
    let hasty = lab.start_listening(&pool(&[&one, &two], &checks("100ms")));
    wait_up(&hasty, &one, false);
    wait_up(&hasty, &two, false);
}

#[test]
fn the_type_none_sends_no_checks() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.start(&pool(&[&origin], "health_check: {type: none}"));
    assert_eq!(daemon.get("/").unwrap().status, 200);
    assert_eq!((origin.connections(), origin.requests()), (1, 1));
}

#[test]
fn the_first_check_precedes_the_first_request() {
    let lab = Lab::new();
    let (up, down) = (Origin::start("up"), Origin::refusing("down"));
    let more = "health_check: {type: tcp, interval: 60s, fast_interval: 60s}\nretries: {attempts: 0}";
    let daemon = lab.start(&pool(&[&down, &up], more));
    for _ in 0..6 {
        assert_eq!(daemon.get("/").unwrap().status, 200);
    }
}

#[test]
fn a_backend_that_hangs_delays_the_start_by_no_more_than_the_timeout() {
    let lab = Lab::new();
    let (up, hanging) = (Origin::start("up"), Unreachable::start());
    let more = "health_check: {type: tcp, interval: 60s, fast_interval: 60s, timeout: 500ms}";
    let begun = Instant::now();
    let daemon = lab.start(&pool_of(&[hanging.address, up.address], more));
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5), "took {took:?}");
    assert_eq!(served_by(&daemon), ["up"]);
}

#[test]
fn the_same_address_in_two_pools_has_two_states() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let pools: String = [("strict", "expect_body: never"), ("lenient", "expect_body: one")]
        .iter()
        .map(|(name, more)| {
            let (address, check) = (origin.address, check("http", more));
            format!("  {name}:\n    panic_threshold: 0\n    backends: [\"{address}\"]\n    {check}\n")
        })
        .collect();
    let routes = "routes:\n  - {match: {path: /strict}, pool: strict}\n  - {pool: lenient}\n";
    let daemon = lab.start_listening(&format!("pools:\n{pools}{routes}"));
    wait::until(LONG, "the strict pool has no backend", || daemon.get("/strict").unwrap().status == 503);
    assert_eq!(daemon.get("/lenient").unwrap().status, 200);
}

/// A configuration with the pool `web` of a healthy backend, the pool `api` of a broken one, and the keys in `more`.
fn two_pools(healthy: &Origin, broken: &Origin, more: &str) -> String {
    let check = check("tcp", "rise: 1, fall: 1");
    let of =
        |name: &str, origin: &Origin| format!("  {name}: {{backends: [\"{}\"], {check}}}\n", origin.address);
    let routes = "routes: [{match: {path: /api}, pool: api}, {pool: web}]\n";
    format!("{more}pools:\n{}{}{routes}", of("web", healthy), of("api", broken))
}

fn probe(daemon: &View, target: &str) -> (u16, String) {
    let response = daemon.read(target).unwrap();
    (response.status, response.text())
}

#[test]
fn one_pool_without_a_ready_backend_does_not_take_the_daemon_out_of_service() {
    let lab = Lab::new();
    let (healthy, broken) = (Origin::start("healthy"), Origin::refusing("broken"));
    let daemon = lab.start(&two_pools(&healthy, &broken, ""));
    for path in ["/readyz", "/healthz"] {
        assert_eq!(probe(&daemon, path), (200, "ok\n".to_owned()));
        let all = "ok\npool api: no backend is ready\npool web: its backend is ready\n";
        assert_eq!(probe(&daemon, &format!("{path}?verbose")), (200, all.to_owned()));
    }
    let config = lab.path("conf.yaml");
    assert_eq!(lab.run(&["healthcheck", "-c", path_str(&config)]).code, Some(0));
    let status = lab.run(&["status", "-c", path_str(&config)]).stdout;
    assert!(status.contains("! pool api: no backend is ready since"), "{status}");
    assert!(!status.contains("not ready"), "{status}");
    assert_eq!(daemon.status()["ready"], true);
}

#[test]
fn readiness_depends_on_the_pools_that_the_key_selects() {
    let lab = Lab::new();
    let (mut healthy, broken) = (Origin::start("healthy"), Origin::refusing("broken"));
    let text = |pools: &str| two_pools(&healthy, &broken, &format!("readiness: {{pools: {pools}}}\n"));
    let texts = ["all", "none", "any"].map(text);
    let daemon = lab.start_listening(&texts[0]);
    let config = lab.path("conf.yaml");
    let reload = |text: &str| {
        lab.config(text);
        let done = lab.run(&["reload", "-c", path_str(&config)]);
        assert_eq!(done.code, Some(0), "{done:?}");
        done.stdout
    };
    let down =
        |pools: &[&str]| (503, pools.iter().map(|p| format!("pool {p}: no backend is ready\n")).collect());
    wait::until(LONG, "only the pool api is not ready", || probe(&daemon, "/readyz") == down(&["api"]));
    let check = lab.run(&["healthcheck", "-c", path_str(&config)]);
    assert_eq!((check.code, check.stderr.as_str()), (Some(1), "error: pool api: no backend is ready\n"));
    assert_eq!(daemon.status()["not_ready"][0], "pool api: no backend is ready");
    assert!(lab.run(&["status", "-c", path_str(&config)]).stdout.contains("serving, not ready"));
    healthy.refuse();
    wait::until(LONG, "no pool is ready", || probe(&daemon, "/readyz") == down(&["api", "web"]));
    assert!(reload(&texts[1]).contains("readiness.pools all -> none"));
    assert_eq!(probe(&daemon, "/readyz"), (200, "ok\n".to_owned()));
    reload(&texts[2]);
    assert_eq!(probe(&daemon, "/readyz"), down(&["api", "web"]));
    healthy.come_back();
    wait::until(LONG, "one ready pool suffices", || probe(&daemon, "/readyz").0 == 200);
}

#[test]
fn readyz_is_503_while_the_only_pool_has_no_ready_backend() {
    let lab = Lab::new();
    let mut origin = Origin::start("one");
    let daemon = lab.start(&pool(&[&origin], &check("tcp", "rise: 1, fall: 1")));
    assert_eq!(daemon.read("/readyz").unwrap().status, 200);
    origin.refuse();
    wait::until(LONG, "/readyz is 503", || daemon.read("/readyz").unwrap().status == 503);
    assert!(daemon.read("/readyz").unwrap().text().contains("web"));
    origin.come_back();
    wait::until(LONG, "/readyz is 200", || daemon.read("/readyz").unwrap().status == 200);
}

#[test]
fn a_lack_of_file_descriptors_is_reported_and_does_not_take_backends_down() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.start(&pool(&[&origin], &check("tcp", "rise: 1, fall: 1")));
    let limit = |limit: &str| {
        let pid = daemon.process.0.to_string();
        let done = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={limit}:")]).status();
        assert!(done.expect("prlimit can be started").success());
    };
    limit("1");
    daemon.logged(&["WARN", "pool web", "was not checked", "too many open files", "LimitNOFILE"]);
    limit("1024");
    let address = origin.address;
    let latest = || daemon.backend_status("web", address)["reason"].as_str().unwrap_or_default().to_owned();
    wait::until(LONG, "a check has been made", || !latest().contains("too many open files"));
    assert!(!daemon.log().contains("is down"), "{}", daemon.log());
}

#[test]
fn a_wrong_certificate_is_described_in_plain_words() {
    let lab = Lab::new();
    let (authority, other) = (Authority::new(), Authority::new());
    let ca = lab.path("ca.pem");
    authority.write(&ca).unwrap();
    let named = Origin::start_tls("named", authority.certify(&["b.test"]).server());
    let stranger = Origin::start_tls("stranger", other.certify(&["a.test"]).server());
    let tls = format!("tls: {{sni: a.test, ca: {}}}\n{}", ca.display(), check("tcp", "rise: 1, fall: 1"));
    let config = lab.config(&pool(&[&named, &stranger], &tls));
    let daemon = lab.spawn(&["-c", path_str(&config)]);
    for (origin, reason) in [
        (&named, "TLS: the certificate is not valid for a.test, only for b.test"),
        (&stranger, "TLS: the certificate is not signed by the trusted authority"),
    ] {
        daemon.logged(&[&origin.address.to_string(), reason]);
    }
}
