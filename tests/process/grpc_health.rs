//! Health checks with the gRPC health protocol, `grpc.health.v1`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tests::origin::ReceivedCheck;
use tests::wait::{self, LONG};
use tests::{Authority, Daemon, GrpcBehaviour, GrpcOrigin, Lab, Origin, Serving, Unreachable, ports};

use crate::pool_of;

/// The key `health_check` of a pool, with frequent gRPC checks and the keys in `more`.
fn check(more: &str) -> String {
    format!(
        "health_check: {{type: grpc, interval: 200ms, fast_interval: 200ms, jitter: 0, rise: 1, fall: 1{more}}}"
    )
}

/// Starts a daemon with one pool of these backends.
#[track_caller]
fn start(lab: &Lab, backends: &[SocketAddr], more: &str) -> Daemon {
    lab.start_listening(&pool_of(backends, more))
}

/// Waits until the metrics show this backend as up or down, and show a check with that result: a backend counts as up
/// before its first check.
#[track_caller]
fn wait_up(daemon: &Daemon, backend: SocketAddr, up: bool) {
    let label = format!("backend=\"{backend}\"");
    let (state, wanted, result) = if up { ("up", 1.0, "pass") } else { ("down", 0.0, "fail") };
    let checks = || daemon.metric("lb_health_checks_total", &[&label, &format!("result=\"{result}\"")]);
    wait::until(LONG, &format!("{backend} is {state}"), || {
        daemon.metric("lb_backend_up", &[&label]) == wanted && checks() > 0.0
    });
}

/// Waits until the log reports this backend as down for this reason.
#[track_caller]
fn wait_down(daemon: &Daemon, backend: SocketAddr, reason: &str) {
    daemon.logged(&[&format!("backend {backend} is down"), reason]);
    wait_up(daemon, backend, false);
}

/// Waits for the check that follows `earlier` others, and returns it.
#[track_caller]
fn check_after(origin: &GrpcOrigin, earlier: usize) -> ReceivedCheck {
    wait::until_some(LONG, "another check has arrived", || origin.checks().get(earlier).cloned())
}

#[test]
fn a_backend_is_used_while_its_health_service_says_that_it_serves() {
    let lab = Lab::new();
    let (one, two) = (GrpcOrigin::start(), GrpcOrigin::start());
    let daemon = start(&lab, &[one.address, two.address], &check(""));
    wait_up(&daemon, one.address, true);
    wait_up(&daemon, two.address, true);
    two.set("", Serving::NotServing);
    wait_down(&daemon, two.address, "1 check failed: not serving");
    two.set("", Serving::Serving);
    wait_up(&daemon, two.address, true);
    two.set("", Serving::Unknown);
    wait_down(&daemon, two.address, "serving status UNKNOWN");
    assert!(one.checks().iter().all(|check| check.service.is_empty()));
    daemon.logged(&["backend", &two.address.to_string(), "is up: 1 check passed"]);
}

#[test]
fn the_status_shows_why_a_backend_is_down() {
    let lab = Lab::new();
    let origin = GrpcOrigin::start();
    origin.set("", Serving::NotServing);
    let daemon = start(&lab, &[origin.address], &check(""));
    wait_up(&daemon, origin.address, false);
    let status = daemon.read("/api/v1/status").unwrap().text();
    assert!(status.contains("1 check failed: not serving"), "{status}");
}

#[test]
fn service_names_the_service_to_check() {
    let lab = Lab::new();
    let (one, two) = (GrpcOrigin::start(), GrpcOrigin::start());
    one.set("shop.Orders", Serving::Serving);
    // The state of the server as a whole or of another service does not count.
    one.set("", Serving::NotServing);
    two.set("shop.Billing", Serving::Serving);
    let daemon = start(&lab, &[one.address, two.address], &check(", service: shop.Orders"));
    wait_up(&daemon, one.address, true);
    wait_down(&daemon, two.address, "the gRPC health service has no service shop.Orders");
    two.set("shop.Orders", Serving::Serving);
    wait_up(&daemon, two.address, true);
    assert_eq!(check_after(&one, 0).service, "shop.Orders");
}

#[test]
fn the_authority_of_a_check_is_the_host_and_by_default_the_address() {
    let lab = Lab::new();
    let origin = GrpcOrigin::start();
    let daemon = start(&lab, &[origin.address], &check(", host: checked.test"));
    assert_eq!(check_after(&origin, 0).authority, "checked.test");
    drop(daemon);
    // The origin sees the end of a connection only some time after the daemon has exited.
    wait::until(LONG, "no connection is open", || origin.open_connections() == 0);
    let earlier = origin.checks().len();
    let _daemon = start(&lab, &[origin.address], &check(""));
    assert_eq!(check_after(&origin, earlier).authority, origin.address.to_string());
}

#[test]
fn checks_over_tls_without_a_name_verify_the_address() {
    let lab = Lab::new();
    let (authority, ca) = (Authority::new(), lab.path("ca.pem"));
    authority.write(&ca).unwrap();
    let address = ports::free();
    let server = authority.certify(&[&address.ip().to_string()]).server();
    let addressed = GrpcOrigin::start_at(address, Some(&server));
    let named = GrpcOrigin::start_tls(&authority.certify(&["a.test"]).server());
    let backends = [addressed.address, named.address];
    let daemon = start(&lab, &backends, &format!("tls: {{ca: {}}}\n{}", ca.display(), check("")));
    wait_up(&daemon, addressed.address, true);
    wait_up(&daemon, named.address, false);
    drop(daemon);
    let daemon = start(&lab, &backends, &format!("tls: {{verify: false}}\n{}", check("")));
    wait_up(&daemon, addressed.address, true);
    wait_up(&daemon, named.address, true);
}

#[test]
fn checks_use_tls_when_the_pool_does() {
    let lab = Lab::new();
    let (authority, stranger) = (Authority::new(), Authority::new());
    let ca = lab.path("ca.pem");
    authority.write(&ca).unwrap();
    let trusted = GrpcOrigin::start_tls(&authority.certify(&["a.test"]).server());
    let untrusted = GrpcOrigin::start_tls(&stranger.certify(&["a.test"]).server());
    // This origin negotiates no protocol, like HTTP/1.1 servers that do not support ALPN.
    let http1 = Origin::start_tls("http1", authority.certify(&["a.test"]).server());
    let more = format!("tls: {{sni: a.test, ca: {}}}\n{}", ca.display(), check(""));
    let backends = [trusted.address, untrusted.address, http1.address];
    let daemon = start(&lab, &backends, &more);
    wait_up(&daemon, trusted.address, true);
    wait_down(&daemon, untrusted.address, "TLS: the certificate is");
    wait_down(&daemon, http1.address, "the backend does not speak HTTP/2");
    let check = check_after(&trusted, 0);
    assert_eq!((check.sni.as_deref(), check.authority.as_str()), (Some("a.test"), "a.test"));
    trusted.set("", Serving::NotServing);
    wait_down(&daemon, trusted.address, "not serving");
}

#[test]
fn a_backend_without_a_health_service_or_http_2_is_down_with_a_reason_in_the_log() {
    let lab = Lab::new();
    let (bare, http1) = (GrpcOrigin::start(), Origin::start("http1"));
    bare.behave(GrpcBehaviour::Unimplemented);
    let refusing = Origin::refusing("refusing");
    let daemon = start(&lab, &[bare.address, http1.address, refusing.address], &check(""));
    wait_down(&daemon, bare.address, "the backend has no gRPC health service (unimplemented)");
    wait_down(&daemon, http1.address, "the backend does not speak HTTP/2");
    wait_down(&daemon, refusing.address, "connection refused");
}

#[test]
fn a_backend_that_hangs_is_down_after_the_timeout_and_no_connection_is_left() {
    let lab = Lab::new();
    let (hanging, unreachable) = (GrpcOrigin::start(), Unreachable::start());
    hanging.behave(GrpcBehaviour::Hang);
    let more = "health_check: {type: grpc, interval: 60s, fast_interval: 60s, timeout: 500ms}";
    let begun = Instant::now();
    let daemon = start(&lab, &[hanging.address, unreachable.address], more);
    wait_down(&daemon, hanging.address, "timed out after 500ms");
    wait_down(&daemon, unreachable.address, "timed out after 500ms");
    let took = begun.elapsed();
    assert!((Duration::from_millis(500)..Duration::from_secs(10)).contains(&took), "took {took:?}");
    wait::until(LONG, "no connection is open", || hanging.open_connections() == 0);
}

#[test]
fn checks_go_to_the_port_that_the_key_names() {
    let lab = Lab::new();
    let health = GrpcOrigin::start();
    // Traffic goes to another port on the IP address of the health service.
    let listener = std::net::TcpListener::bind((health.address.ip(), 0)).unwrap();
    let traffic = listener.local_addr().unwrap();
    let daemon = start(&lab, &[traffic], &check(&format!(", port: {}", health.address.port())));
    wait_up(&daemon, traffic, true);
    health.set("", Serving::NotServing);
    wait_down(&daemon, traffic, "not serving");
}
