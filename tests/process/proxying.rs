//! Forwarding of requests and responses, and the response to a request that cannot be served.

use std::fs;
use std::time::{Duration, Instant};

use tests::client::head_bytes;
use tests::daemon::path_str;
use tests::pattern;
use tests::wait::{self, LONG};
use tests::{Authority, Behaviour, CannedResponse, Daemon, Gate, Lab, Origin, Unreachable, ports};

use crate::{pool, pool_of, tally};

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

/// A daemon with one origin.
struct Proxied {
    daemon: Daemon,
    origin: Origin,
    _lab: Lab,
}

impl Proxied {
    fn start(behaviour: Behaviour) -> Self {
        Self::with(behaviour, "", "")
    }

    /// Starts a daemon with further keys of the pool and of the file.
    fn with(behaviour: Behaviour, of_pool: &str, of_file: &str) -> Self {
        let (lab, origin) = (Lab::new(), Origin::start("one"));
        origin.behave(behaviour);
        let daemon = lab.start(&format!("{of_file}{}", pool(&[&origin], of_pool)));
        Self { daemon, origin, _lab: lab }
    }
}

// ===== messages =====

#[test]
fn requests_and_responses_pass_unchanged_and_connections_are_kept_on_both_sides() {
    let proxied =
        Proxied::start(Behaviour::Respond(CannedResponse::ok("hello").with("X-Two", "a").with("X-Two", "b")));
    let mut client = proxied.daemon.connect();
    for _ in 0..3 {
        let response =
            client.request("POST", "/path?q=1&r=%20", &[("X-In", "1"), ("X-In", "2")], b"sent").unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "hello"));
        assert_eq!(response.head.all("x-two"), ["a", "b"]);
        assert!(!response.closes());
    }
    let seen = proxied.origin.received("/path?q=1&r=%20");
    assert_eq!((seen.method(), seen.body.start.as_slice()), ("POST", b"sent".as_slice()));
    assert_eq!(seen.head.all("x-in"), ["1", "2"]);
    assert_eq!((proxied.origin.requests(), proxied.origin.connections()), (3, 1));
}

#[test]
fn an_http_1_0_client_is_served() {
    let proxied = Proxied::start(Behaviour::Respond(CannedResponse::ok("hello")));
    let mut client = proxied.daemon.connect();
    client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(client.response("GET").unwrap().text(), "hello");
    assert!(client.ends_within(LONG));
}

#[test]
fn connection_close_from_a_client_closes_the_connection() {
    let proxied = Proxied::start(Behaviour::Respond(CannedResponse::ok("hello")));
    let mut client = proxied.daemon.connect();
    let response = client.request("GET", "/", &[("Connection", "close")], b"").unwrap();
    assert!(response.closes());
    assert!(client.ends_within(LONG));
}

#[test]
fn responses_to_head_and_204_and_304_have_no_body_and_keep_the_connection() {
    let proxied = Proxied::start(Behaviour::ByPath);
    let mut client = proxied.daemon.connect();
    let head = client.request("HEAD", "/bytes/1000", &[], b"").unwrap();
    assert_eq!((head.status, head.header("content-length")), (200, Some("1000")));
    let no_content = client.get("/status/204").unwrap();
    assert_eq!((no_content.status, no_content.header("content-length")), (204, None));
    assert_eq!(no_content.header("transfer-encoding"), None);
    assert_eq!(client.get("/status/304").unwrap().status, 304);
    assert_eq!(client.get("/bytes/1000").unwrap().length, 1000);
}

#[test]
fn chunked_bodies_pass_in_both_directions() {
    let chunks = vec![b"first ".to_vec(), b"second".to_vec()];
    let proxied = Proxied::start(Behaviour::Chunked { chunks, trailers: Vec::new() });
    let mut client = proxied.daemon.connect();
    client.send(head_bytes("POST", "/c", &[("Transfer-Encoding", "chunked")], 0)).unwrap();
    client.send("3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n").unwrap();
    assert_eq!(client.response("POST").unwrap().text(), "first second");
    assert_eq!(proxied.origin.received("/c").body.start, b"abcdefg");
    assert_eq!(client.get("/again").unwrap().text(), "first second");
}

#[test]
fn a_response_keeps_its_trailers() {
    let trailers = vec![("X-Checksum".to_owned(), "12345".to_owned())];
    let proxied = Proxied::start(Behaviour::Chunked { chunks: vec![b"body".to_vec()], trailers });
    let mut client = proxied.daemon.connect();
    for _ in 0..3 {
        let response = client.request("GET", "/", &[("TE", "trailers")], b"").unwrap();
        assert_eq!((response.text().as_str(), response.trailer("x-checksum")), ("body", Some("12345")));
    }
}

#[test]
fn a_request_keeps_its_trailers() {
    let proxied = Proxied::start(Behaviour::Respond(CannedResponse::ok("")));
    let mut client = proxied.daemon.connect();
    let headers = [("Transfer-Encoding", "chunked"), ("Trailer", "X-Checksum")];
    for path in ["/t/1", "/t/2", "/t/3"] {
        client.send(head_bytes("POST", path, &headers, 0)).unwrap();
        client.send("3\r\nabc\r\n0\r\nX-Checksum: 9\r\n\r\n").unwrap();
        assert_eq!(client.response("POST").unwrap().status, 200);
        let seen = proxied.origin.received(path);
        assert_eq!((&seen.body.start[..], seen.trailers.len()), (&b"abc"[..], 1));
    }
}

#[test]
fn a_client_that_waits_for_100_continue_gets_it_and_then_the_response() {
    let proxied = Proxied::start(Behaviour::Respond(CannedResponse::ok("got it")));
    let mut client = proxied.daemon.connect();
    client.send(head_bytes("PUT", "/up", &[("Expect", "100-continue")], 5)).unwrap();
    assert_eq!(client.response_head().unwrap().0, 100);
    client.send("12345").unwrap();
    assert_eq!(client.response("PUT").unwrap().text(), "got it");
    assert_eq!(proxied.origin.received("/up").body.start, b"12345");
}

#[test]
fn a_websocket_passes_bytes_both_ways_until_it_ends() {
    switches_to(
        "websocket",
        &[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="), ("Sec-WebSocket-Version", "13")],
    );
}

#[test]
fn an_upgrade_to_another_protocol_passes_too() {
    switches_to("irc/6.9", &[]);
}

/// Requests after such an upgrade would bypass the routes.
#[test]
fn an_upgrade_to_cleartext_http_2_does_not_pass() {
    let proxied = Proxied::start(Behaviour::Upgrade);
    let mut client = proxied.daemon.connect();
    let headers =
        [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABk")];
    assert_eq!(client.request("GET", "/h2c", &headers, b"").unwrap().status, 426);
    let seen = proxied.origin.received("/h2c");
    assert_eq!((seen.header("upgrade"), seen.header("http2-settings")), (None, None));
}

#[track_caller]
fn switches_to(protocol: &str, more: &[(&str, &str)]) {
    let proxied = Proxied::start(Behaviour::Upgrade);
    let mut client = proxied.daemon.connect();
    let headers = [&[("Connection", "Upgrade"), ("Upgrade", protocol)], more].concat();
    client.send(head_bytes("GET", "/ws", &headers, 0)).unwrap();
    let (status, head) = client.response_head().unwrap();
    assert_eq!(status, 101);
    assert!(head.lists("upgrade", protocol) && head.lists("connection", "upgrade"), "{head:?}");
    for message in [&b"\x81\x02hi"[..], &[0, 255, 13, 10, 13, 10], b"GET / HTTP/1.1\r\n\r\n"] {
        client.send(message).unwrap();
        let mut echoed = Vec::new();
        while echoed.len() < message.len() {
            let bytes = client.some_bytes();
            assert!(!bytes.is_empty(), "the connection is closed");
            echoed.extend(bytes);
        }
        assert_eq!(echoed, message);
    }
    drop(client);
    wait::until(LONG, "the connection to the backend is closed", || proxied.origin.open_connections() == 0);
}

#[test]
fn a_chunk_reaches_the_client_before_the_next_one_is_sent() {
    let gate = Gate::closed();
    let chunks = [b"event one".to_vec(), b"event two".to_vec()];
    let proxied = Proxied::start(Behaviour::HeldWithin(gate.clone(), chunks));
    let mut client = proxied.daemon.connect();
    client.send(head_bytes("GET", "/", &[], 0)).unwrap();
    assert_eq!(client.response_head().unwrap().0, 200);
    let mut received = Vec::new();
    while !received.windows(9).any(|bytes| bytes == b"event one") {
        let bytes = client.some_bytes();
        assert!(!bytes.is_empty(), "the first event has not arrived");
        received.extend(bytes);
    }
    gate.open();
    while !received.ends_with(b"0\r\n\r\n") {
        let bytes = client.some_bytes();
        assert!(!bytes.is_empty(), "the body has no end");
        received.extend(bytes);
    }
}

#[test]
fn a_gibibyte_up_and_down_takes_less_than_20_mib_of_memory() {
    let proxied = Proxied::start(Behaviour::Source(8 * MIB));
    let process = proxied.daemon.process;
    let mut client = proxied.daemon.connect();
    // The first request allocates the memory that every request needs.
    assert!(client.request("PUT", "/warm-up", &[], &vec![1; 1 << 20]).unwrap().is_pattern);
    let before = process.resident_bytes();
    let mut most = before;
    let mut watch = |position: u64| {
        if position.is_multiple_of(64) {
            most = most.max(process.resident_bytes());
        }
    };

    proxied.origin.behave(Behaviour::Respond(CannedResponse::ok("taken")));
    client.send(head_bytes("PUT", "/up", &[], usize::try_from(GIB).unwrap())).unwrap();
    let (mut sent, mut pieces) = (0, 0);
    while sent < GIB {
        let bytes = pattern::from(sent);
        let piece = usize::try_from(GIB - sent).unwrap().min(bytes.len());
        client.send(&bytes[..piece]).unwrap();
        sent += piece as u64;
        pieces += 1;
        watch(pieces);
    }
    assert_eq!(client.response("PUT").unwrap().text(), "taken");
    let body = proxied.origin.received("/up").body;
    assert_eq!((body.length, body.is_pattern), (GIB, true));

    proxied.origin.behave(Behaviour::Source(GIB));
    client.send(head_bytes("GET", "/down", &[], 0)).unwrap();
    let (status, head) = client.response_head().unwrap();
    assert_eq!((status, head.header("content-length")), (200, Some(GIB.to_string().as_str())));
    let mut meter = pattern::Meter::new();
    let mut pieces = 0;
    let received = client.pass_body(&head, &mut |bytes| {
        meter.feed(bytes);
        pieces += 1;
        watch(pieces);
    });
    received.expect("the complete body arrives");
    assert_eq!((meter.length, meter.is_pattern), (GIB, true));

    let growth = most.saturating_sub(before);
    assert!(growth < 20 * MIB, "resident memory grew by {} MiB", growth / MIB);
}

// ===== headers =====

#[test]
fn hop_by_hop_headers_are_dropped_in_both_directions() {
    let response = CannedResponse::ok("x")
        .with("Connection", "X-Hop-Out")
        .with("X-Hop-Out", "1")
        .with("Keep-Alive", "timeout=5")
        .with("X-End-Out", "1");
    let proxied = Proxied::start(Behaviour::Respond(response));
    let headers = [
        ("Connection", "keep-alive, X-Hop-In"),
        ("X-Hop-In", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("X-End-In", "1"),
    ];
    let response = proxied.daemon.connect().request("GET", "/hops", &headers, b"").unwrap();
    let seen = proxied.origin.received("/hops");
    for dropped in ["x-hop-in", "keep-alive", "proxy-connection"] {
        assert_eq!(seen.header(dropped), None, "{dropped} reached the backend");
    }
    assert_eq!(seen.header("x-end-in"), Some("1"));
    for dropped in ["x-hop-out", "keep-alive"] {
        assert_eq!(response.header(dropped), None, "{dropped} reached the client");
    }
    assert!(!response.head.lists("connection", "x-hop-out"));
    assert_eq!(response.header("x-end-out"), Some("1"));
}

const FORGED: [(&str, &str); 4] = [
    ("Host", "shop.test"),
    ("X-Forwarded-For", "6.6.6.6"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "forged.test"),
];

#[test]
fn x_forwarded_headers_name_the_client_and_forged_ones_are_dropped() {
    let proxied = Proxied::start(Behaviour::Respond(CannedResponse::ok("x")));
    proxied.daemon.connect().request("GET", "/f", &FORGED, b"").unwrap();
    let seen = proxied.origin.received("/f");
    assert_eq!(seen.head.all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(seen.head.all("x-forwarded-proto"), ["http"]);
    assert_eq!(seen.head.all("x-forwarded-host"), ["shop.test"]);
}

#[test]
fn x_forwarded_headers_of_a_trusted_proxy_are_kept() {
    let trusted = "trusted_proxies: [127.0.0.0/8]\n";
    let proxied = Proxied::with(Behaviour::Respond(CannedResponse::ok("x")), "", trusted);
    proxied.daemon.connect().request("GET", "/f", &FORGED, b"").unwrap();
    let seen = proxied.origin.received("/f");
    let chain = seen.head.all("x-forwarded-for").join(", ").replace(' ', "");
    assert_eq!(chain, "6.6.6.6,127.0.0.1");
    assert_eq!(seen.head.all("x-forwarded-proto"), ["https"]);
    assert_eq!(seen.head.all("x-forwarded-host"), ["forged.test"]);
}

#[test]
fn a_backend_gets_the_host_of_the_client_unless_the_pool_sets_one() {
    let proxied = Proxied::start(Behaviour::Respond(CannedResponse::ok("x")));
    proxied.daemon.connect().request("GET", "/h", &[("Host", "shop.test")], b"").unwrap();
    assert_eq!(proxied.origin.received("/h").head.all("host"), ["shop.test"]);

    let named = Proxied::with(Behaviour::Respond(CannedResponse::ok("x")), "host: inner.test", "");
    named.daemon.connect().request("GET", "/h", &[("Host", "shop.test")], b"").unwrap();
    let seen = named.origin.received("/h");
    assert_eq!(seen.head.all("host"), ["inner.test"]);
    assert_eq!(seen.header("x-forwarded-host"), Some("shop.test"));
}

// ===== weights =====

#[test]
fn weights_give_the_smooth_round_robin_sequence() {
    let lab = Lab::new();
    let [a, b, c] = ["a", "b", "c"].map(Origin::start);
    let yaml = format!(
        "pools:\n  web:\n    health_check: {{type: none}}\n    backends:\n      - {{address: \"{}\", weight: 5}}\n      \
         - \"{}\"\n      - {{address: \"{}\", weight: 1}}\n",
        a.address, b.address, c.address
    );
    let daemon = lab.start(&yaml);
    let names: String = (0..14).map(|_| daemon.get("/").unwrap().origin().to_owned()).collect();
    assert_eq!(names, "aabacaa".repeat(2));
}

// ===== TLS to backends =====

#[test]
fn a_certificate_of_an_unknown_authority_is_refused_unless_verify_is_off() {
    let lab = Lab::new();
    let (authority, stranger) = (Authority::new(), Authority::new());
    let ca = lab.path("ca.pem");
    authority.write(&ca).unwrap();
    let origin = Origin::start_tls("one", stranger.certify(&["a.test"]).server());
    let tls = format!("tls: {{sni: a.test, ca: {}}}", ca.display());
    let daemon = lab.start(&pool(&[&origin], &tls));
    assert_eq!(daemon.get("/").unwrap().status, 502);
    assert_eq!(origin.requests(), 0);
    daemon.logged(&["reason=\"tls\"", "detail=\"the certificate is not signed by the trusted authority"]);
    drop(daemon);

    let daemon = lab.start(&pool(&[&origin], "tls: {sni: a.test, verify: false}"));
    assert_eq!(daemon.get("/").unwrap().status, 200);
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let lab = Lab::new();
    let authority = Authority::new();
    let ca = lab.path("ca.pem");
    authority.write(&ca).unwrap();
    let origin = Origin::start_tls("one", authority.certify(&["other.test"]).server());
    let daemon = lab.start(&pool(&[&origin], &format!("tls: {{sni: a.test, ca: {}}}", ca.display())));
    assert_eq!(daemon.get("/").unwrap().status, 502);
    daemon.logged(&[
        "reason=\"tls\"",
        "detail=\"the certificate is not valid for a.test, only for other.test\"",
    ]);
}

/// Types of health checks. All but the first use TLS as requests do.
const CHECKS: [&str; 3] = ["none", "tcp", "http"];

#[test]
fn without_sni_the_certificate_must_be_for_the_address_and_no_name_is_sent() {
    let lab = Lab::new();
    let (authority, ca) = (Authority::new(), lab.path("ca.pem"));
    authority.write(&ca).unwrap();
    let address = ports::free();
    let certificate = authority.certify(&[&address.ip().to_string()]);
    let good = Origin::start_tls_at(address, "good", certificate.server());
    let named = Origin::start_tls("named", authority.certify(&["a.test"]).server());
    for kind in CHECKS {
        let more = format!("tls: {{ca: {}}}\nhealth_check: {{type: {kind}}}", ca.display());
        let daemon = lab.start(&pool(&[&good], &more));
        assert_eq!(daemon.get("/good").unwrap().status, 200, "{kind}: {}", daemon.log());
        assert_eq!(good.received("/good").sni, None, "{kind}");
        drop(daemon);
        let daemon = lab.start_listening(&pool(&[&named], &more));
        assert_eq!(daemon.get("/named").unwrap().status, 502, "{kind}");
        assert_eq!(named.requests(), 0, "{kind}");
    }
    // Each certificate is verified against the address of its own backend, and not of the first one.
    let other = Origin::start_tls("other", certificate.server());
    let more = format!("tls: {{ca: {}}}\nhealth_check: {{type: tcp, fall: 1}}", ca.display());
    let daemon = lab.start(&pool(&[&good, &other], &more));
    let state = |origin: &Origin| daemon.backend_status("web", origin.address)["state"].clone();
    wait::until(LONG, "only the other backend is down", || state(&other) == "down" && state(&good) == "up");
}

#[test]
fn without_sni_and_verification_any_certificate_is_accepted() {
    let lab = Lab::new();
    let origin = Origin::start_tls("any", Authority::new().certify(&["a.test"]).server());
    for kind in CHECKS {
        let more = format!("tls: {{verify: false}}\nhealth_check: {{type: {kind}}}");
        let daemon = lab.start(&pool(&[&origin], &more));
        assert_eq!(daemon.get("/any").unwrap().status, 200, "{kind}: {}", daemon.log());
        assert_eq!(origin.received("/any").sni, None, "{kind}");
    }
}

#[test]
fn without_verification_no_authorities_are_needed() {
    let lab = Lab::new();
    let origin = Origin::start_tls("any", Authority::new().certify(&["a.test"]).server());
    let none = lab.path("no-authorities");
    fs::create_dir(&none).unwrap();
    let variables = [("SSL_CERT_FILE", "/dev/null"), ("SSL_CERT_DIR", path_str(&none))];
    for kind in CHECKS {
        for name in ["", "sni: a.test, "] {
            let more = format!("tls: {{{name}verify: false}}\nhealth_check: {{type: {kind}}}");
            let daemon = lab.start_with(&lab.config(&pool(&[&origin], &more)), &variables);
            assert_eq!(daemon.get("/any").unwrap().status, 200, "{kind}, {name}: {}", daemon.log());
        }
    }
}

// ===== failures =====

/// Sends one request, and asserts that it fails with this status, a short body and a line in the log.
#[track_caller]
fn fails_with(daemon: &Daemon, status: u16) {
    let response = daemon.get("/failing").unwrap();
    assert_eq!(response.status, status, "{}", daemon.log());
    assert!((1..200).contains(&response.length), "a short body: {:?}", response.text());
    daemon.logged(&["/failing", &status.to_string()]);
}

#[test]
fn a_refused_connection_is_retried_at_another_backend() {
    let lab = Lab::new();
    let (down, up) = (Origin::refusing("down"), Origin::start("up"));
    let daemon = lab.start(&pool(&[&down, &up], ""));
    let mut client = daemon.connect();
    for _ in 0..10 {
        let response = client.request("POST", "/", &[], b"body").unwrap();
        assert_eq!((response.status, response.origin()), (200, "up"));
    }
    assert_eq!(up.requests(), 10);
    assert!(daemon.metric("lb_upstream_retries_total", &["pool=\"web\""]) >= 1.0);
}

#[test]
fn each_backend_gets_one_attempt_and_attempts_limits_the_retries() {
    let lab = Lab::new();
    let downs = ["a", "b", "c"].map(Origin::refusing);
    let up = Origin::start("up");
    let all = [&downs[0], &downs[1], &downs[2], &up];
    let daemon = lab.start(&pool(&all, "retries: {attempts: 3}"));
    for _ in 0..8 {
        assert_eq!(daemon.get("/").unwrap().origin(), "up");
    }
    drop(daemon);
    let daemon = lab.start(&pool(&all, "retries: {attempts: 1}"));
    let statuses = (0..4).map(|_| daemon.get("/").unwrap().status);
    // The first request meets two backends that are down. Later retries avoid backends that have failed.
    assert_eq!(tally(statuses), [(200, 3), (502, 1)]);
}

#[test]
fn the_status_is_502_when_no_backend_accepts_the_connection() {
    let lab = Lab::new();
    let down = Origin::refusing("down");
    let daemon = lab.start(&pool(&[&down], ""));
    fails_with(&daemon, 502);
    let address = down.address.to_string();
    assert!(daemon.metric("lb_upstream_errors_total", &["reason=\"connect\"", &address]) >= 1.0);
}

#[test]
fn the_status_is_503_when_no_backend_is_ready() {
    let lab = Lab::new();
    let down = Origin::refusing("down");
    let more = "health_check: {type: tcp, interval: 1s}\npanic_threshold: 0";
    let daemon = lab.start_listening(&pool(&[&down], more));
    wait::until(LONG, "the backend is down", || daemon.get("/").unwrap().status == 503);
    fails_with(&daemon, 503);
    assert!(daemon.metric("lb_rejected_total", &[]) >= 1.0);
}

#[test]
fn the_status_is_504_when_a_backend_times_out() {
    let proxied = Proxied::with(Behaviour::Hang, "timeouts: {response: 300ms}", "");
    let begun = Instant::now();
    fails_with(&proxied.daemon, 504);
    let took = begun.elapsed();
    assert!((300..5_000).contains(&took.as_millis()), "a timeout of 300 ms took {took:?}");
    assert_eq!(proxied.origin.requests(), 1, "the request must not be sent twice");
}

#[test]
fn a_slow_response_within_the_timeout_is_delivered() {
    let slow = Behaviour::Slow(Duration::from_millis(700), CannedResponse::ok("slow"));
    let proxied = Proxied::with(slow, "timeouts: {response: 20s}", "");
    assert_eq!(proxied.daemon.get("/").unwrap().text(), "slow");
}

#[test]
fn a_connection_to_a_backend_fails_after_the_connect_timeout() {
    let lab = Lab::new();
    let unreachable = Unreachable::start();
    let more = "timeouts: {connect: 300ms}\nretries: {attempts: 0}";
    let daemon = lab.start(&pool_of(&[unreachable.address], more));
    let begun = Instant::now();
    fails_with(&daemon, 502);
    let took = begun.elapsed();
    assert!((300..2_500).contains(&took.as_millis()), "a timeout of 300 ms took {took:?}");
}

#[test]
fn an_idle_connection_to_a_backend_ends_after_the_idle_timeout() {
    let response = Behaviour::Respond(CannedResponse::ok("x"));
    let kept = Proxied::with(response.clone(), "timeouts: {idle: 60s}", "");
    let ended = Proxied::with(response, "timeouts: {idle: 500ms}", "");
    for proxied in [&kept, &ended] {
        proxied.daemon.get("/").unwrap();
    }
    wait::until(LONG, "the connection is closed", || ended.origin.open_connections() == 0);
    assert_eq!(kept.origin.open_connections(), 1);
}

#[test]
fn a_backend_that_resets_or_does_not_speak_http_is_502_and_the_next_request_is_served() {
    let proxied = Proxied::with(Behaviour::ResetOnRequest, "retries: {attempts: 0}", "");
    fails_with(&proxied.daemon, 502);
    proxied.origin.behave(Behaviour::Garbage);
    fails_with(&proxied.daemon, 502);
    proxied.origin.behave(Behaviour::Respond(CannedResponse::ok("fine")));
    assert_eq!(proxied.daemon.get("/").unwrap().text(), "fine");
}

#[test]
fn a_truncated_response_is_not_delivered_as_complete() {
    let proxied = Proxied::start(Behaviour::CutShort);
    assert!(proxied.daemon.get("/").is_err());
    proxied.origin.behave(Behaviour::Respond(CannedResponse::ok("fine")));
    assert_eq!(proxied.daemon.get("/").unwrap().text(), "fine");
}

#[test]
fn an_idle_connection_that_the_backend_closed_fails_no_request() {
    let proxied = Proxied::start(Behaviour::Respond(CannedResponse::ok("x")));
    for _ in 0..5 {
        assert_eq!(proxied.daemon.get("/").unwrap().status, 200);
        proxied.origin.cut_connections();
        wait::until(LONG, "the connection is cut", || proxied.origin.open_connections() == 0);
    }
}

#[test]
fn a_malformed_request_is_400_and_affects_no_other_client() {
    let proxied = Proxied::start(Behaviour::Respond(CannedResponse::ok("x")));
    let mut client = proxied.daemon.connect();
    client.send("this is not HTTP\r\n\r\n").unwrap();
    let response = client.response("GET");
    assert_eq!(response.unwrap().status, 400);
    assert_eq!(proxied.daemon.get("/").unwrap().status, 200);
    assert_eq!(proxied.origin.requests(), 1);
    let count = |name, label| proxied.daemon.metric(name, &[label]);
    wait::until(LONG, "the request is counted", || count("lb_requests_total", "code=\"400\"") == 1.0);
    assert_eq!(count("lb_rejected_total", "reason=\"bad_request_line\""), 1.0);
    proxied.daemon.logged(&["400", "bad_request_line"]);
}

/// Pingora itself never closes an idle connection that has served a request.
#[test]
fn an_idle_client_connection_is_closed_75_seconds_after_its_last_request() {
    let proxied = Proxied::start(Behaviour::Respond(CannedResponse::ok("x")));
    let mut client = proxied.daemon.connect();
    assert!(!client.get("/").unwrap().closes());
    let idle_since = Instant::now();
    assert!(client.ends_within(Duration::from_secs(90)));
    assert!(idle_since.elapsed() > Duration::from_secs(70), "{:?}", idle_since.elapsed());
}

/// The daemon must keep the connection to a backend whose 101 response arrives before Pingora has seen the end of the
/// request.
#[test]
fn no_websocket_fails_when_the_backend_upgrades_at_once() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    origin.behave(Behaviour::Upgrade);
    let daemon = lab.start(&pool(&[&origin], ""));
    let talk = || {
        let mut socket = daemon.connect();
        socket
            .send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .unwrap();
        let agreed = socket.response_head().is_ok_and(|(status, _)| status == 101);
        agreed && socket.send("hello").is_ok() && socket.some_bytes() == b"hello"
    };
    let clients = || (0..500).filter(|_| !talk()).count();
    let lost: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(clients)).collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    assert_eq!(lost, 0, "of 2000 WebSockets");
}

#[test]
fn websockets_go_to_tls_backends_and_come_from_the_configured_address() {
    let lab = Lab::new();
    let authority = Authority::new();
    let ca = lab.path("ca.pem");
    authority.write(&ca).unwrap();
    let origin = Origin::start_tls("one", authority.certify(&["a.test"]).server());
    origin.behave(Behaviour::Upgrade);
    let tls = format!("tls: {{sni: a.test, ca: {}}}", ca.display());
    let daemon = lab.start(&format!("client_bind_to_ipv4: [127.0.0.77]\n{}", pool(&[&origin], &tls)));
    let mut socket = daemon.connect();
    socket.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").unwrap();
    assert_eq!(socket.response_head().unwrap().0, 101);
    socket.send("hello").unwrap();
    assert_eq!(socket.some_bytes(), b"hello");
    assert_eq!(origin.received("/ws").peer.unwrap().ip().to_string(), "127.0.0.77");
}

#[test]
fn a_refused_or_failed_websocket_upgrade_is_handled_like_any_request() {
    let lab = Lab::new();
    let (mut dead, origin) = (Origin::start("dead"), Origin::start("one"));
    origin.behave(Behaviour::Respond(CannedResponse::status(403, "no")));
    dead.refuse();
    let daemon = lab.start(&pool(&[&dead, &origin], ""));
    let mut client = daemon.connect();
    for _ in 0..4 {
        let headers = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
        let response = client.request("GET", "/ws", &headers, b"").unwrap();
        assert_eq!((response.status, response.text().as_str()), (403, "no"));
        if response.closes() {
            client = daemon.connect();
        }
    }
    let refused = format!("backend=\"{}\"", dead.address);
    assert!(daemon.metric("lb_upstream_errors_total", &[&refused, "reason=\"connect\""]) >= 1.0);
}
