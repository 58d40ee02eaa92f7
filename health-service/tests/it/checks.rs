//! Single TCP and HTTP checks, and the reasons of their failures.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use health_service::{CheckError, CheckKind, Checker, HttpCheck, PeerConnect, Settings};
use pingora::upstreams::peer::HttpPeer;
use values::StatusRange;

use crate::origin::{Manner, Origin, ok, refusing};

fn plain() -> Arc<PeerConnect> {
    Arc::new(PeerConnect::new(HttpPeer::new("0.0.0.0:1", false, String::new())))
}

fn tcp() -> Settings {
    Settings { timeout: Duration::from_secs(10), ..Settings::default() }
}

fn http(check: HttpCheck) -> Settings {
    Settings { kind: CheckKind::Http(check), ..tcp() }
}

fn with_body(text: &str) -> Settings {
    http(HttpCheck { expect_body: Some(text.to_owned()), ..HttpCheck::default() })
}

async fn check(settings: Settings, address: SocketAddr) -> Result<(), CheckError> {
    Checker::new(plain(), settings).check(&address.into()).await
}

async fn reason(settings: Settings, address: SocketAddr) -> String {
    check(settings, address).await.expect_err("the check should fail").to_string()
}

#[tokio::test]
async fn a_tcp_check_passes_when_the_port_listens() {
    let origin = Origin::start(Manner::Silence).await;
    assert_eq!(check(tcp(), origin.address).await, Ok(()));
}

#[tokio::test]
async fn a_closed_port_is_connection_refused() {
    let (_socket, address) = refusing();
    assert_eq!(reason(tcp(), address).await, "connection refused");
    assert_eq!(reason(http(HttpCheck::default()), address).await, "connection refused");
}

#[tokio::test]
async fn the_port_of_the_settings_replaces_that_of_the_backend() {
    let origin = Origin::start(Manner::Silence).await;
    let (_socket, refusing) = refusing();
    let port = NonZeroU16::new(origin.address.port());
    assert_eq!(check(Settings { port, ..tcp() }, refusing).await, Ok(()));
}

#[tokio::test]
async fn every_check_opens_a_new_connection() {
    let origin =
        Origin::responding("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n").await;
    let checker = Checker::new(plain(), http(HttpCheck::default()));
    for _ in 0..3 {
        assert_eq!(checker.check(&origin.address.into()).await, Ok(()));
    }
    assert_eq!(origin.seen().len(), 3);
}

#[tokio::test]
async fn the_request_matches_the_settings() {
    let origin = Origin::responding("HTTP/1.1 204 No Content\r\n\r\n").await;
    let settings = http(HttpCheck {
        method: http::Method::HEAD,
        path: "/healthz?deep=1".parse().expect("valid path"),
        host: Some("example.com".to_owned()),
        expect_status: vec![StatusRange::new(204, 204).expect("valid range")],
        expect_body: None,
    });
    assert_eq!(check(settings, origin.address).await, Ok(()));
    let request = origin.seen()[0].request.clone();
    assert!(request.starts_with("HEAD /healthz?deep=1 HTTP/1.1\r\n"), "{request}");
    for header in ["Host: example.com", "User-Agent: load_balancer-health", "Connection: close"] {
        assert!(request.contains(&format!("\r\n{header}\r\n")), "no {header} in {request}");
    }
}

#[tokio::test]
async fn without_a_host_the_address_is_the_host() {
    let origin = Origin::healthy("").await;
    assert_eq!(check(http(HttpCheck::default()), origin.address).await, Ok(()));
    let request = origin.seen()[0].request.clone();
    assert!(request.contains(&format!("\r\nHost: {}\r\n", origin.address)), "{request}");
}

#[tokio::test]
async fn a_status_out_of_range_fails() {
    let origin = Origin::responding("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(reason(http(HttpCheck::default()), origin.address).await, "status 503, expected 200-399");
}

#[tokio::test]
async fn interim_responses_are_skipped() {
    let origin =
        Origin::responding(format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{}", ok("ok"))).await;
    assert_eq!(check(with_body("ok"), origin.address).await, Ok(()));
}

#[tokio::test]
async fn the_body_must_contain_the_text() {
    let origin = Origin::healthy("status: ok\n").await;
    assert_eq!(check(with_body("s: ok"), origin.address).await, Ok(()));
    assert_eq!(reason(with_body("fine"), origin.address).await, r#"body does not contain "fine""#);
}

#[tokio::test]
async fn the_text_may_be_split_over_chunks() {
    let origin = Origin::responding(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nall\r\n3\r\n is\r\n6\r\n well!\r\n0\r\n\r\n",
    )
    .await;
    assert_eq!(check(with_body("all is well"), origin.address).await, Ok(()));
}

#[tokio::test]
async fn a_body_is_searched_up_to_256_kib() {
    let within = Origin::healthy(&format!("{}ok", "x".repeat(256 * 1024 - 2))).await;
    assert_eq!(check(with_body("ok"), within.address).await, Ok(()));
    let beyond = Origin::healthy(&format!("{}ok", "x".repeat(256 * 1024 - 1))).await;
    assert_eq!(reason(with_body("ok"), beyond.address).await, r#"body does not contain "ok""#);
}

#[tokio::test]
async fn an_endless_body_passes_once_it_contains_the_text() {
    let origin = Origin::start(Manner::Trickle(b"HTTP/1.1 200 OK\r\n\r\ndata: ok\n".to_vec())).await;
    assert_eq!(check(with_body("ok"), origin.address).await, Ok(()));
}

#[tokio::test]
async fn the_timeout_covers_the_whole_check() {
    let silent = Origin::start(Manner::Silence).await;
    let trickling = Origin::start(Manner::Trickle(b"HTTP/1.1 200 OK\r\n\r\n".to_vec())).await;
    let begun = Instant::now();
    for address in [silent.address, trickling.address] {
        let settings = Settings { timeout: Duration::from_millis(250), ..with_body("ok") };
        assert_eq!(reason(settings, address).await, "timed out after 250ms");
    }
    assert!(begun.elapsed() >= Duration::from_millis(500));
}

#[tokio::test]
async fn a_truncated_response_fails() {
    let without_response = Origin::responding("").await;
    let broken_off = "connection closed before the end of the response";
    assert_eq!(reason(http(HttpCheck::default()), without_response.address).await, broken_off);
    let half_a_body = Origin::responding("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
    assert_eq!(reason(with_body("ok"), half_a_body.address).await, broken_off);
}

#[tokio::test]
async fn a_response_that_is_not_http_fails() {
    let origin = Origin::responding("220 mail.example.com ESMTP\r\n\r\n").await;
    assert_eq!(reason(http(HttpCheck::default()), origin.address).await, "the response is not valid HTTP");
}
