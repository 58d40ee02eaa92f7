//! The endpoints on the metrics address, as promtool, Prometheus and people read them.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::client::Failure;
use tests::tools::Server;
use tests::wait::{self, LONG};
use tests::{Behaviour, Connection, Daemon, Lab, Origin, get};

use crate::pool;

#[test]
fn promtool_finds_no_problem() {
    let lab = Lab::new();
    let (one, down) = (Origin::start("one"), Origin::refusing("down"));
    let daemon = lab.start(&pool(&[&one, &down], "health_check: {type: tcp, interval: 1s}"));
    for _ in 0..10 {
        daemon.get("/").unwrap();
    }
    let file = std::fs::File::open(lab.write("metrics.txt", &daemon.metrics_text())).unwrap();
    let output = Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::from(file)).output();
    let output = output.expect("promtool runs: `make setup` installs it");
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

#[test]
fn every_documented_metric_family_is_served() {
    let lab = Lab::new();
    let (one, down) = (Origin::start("one"), Origin::refusing("down"));
    let daemon = lab.start(&pool(&[&one, &down], "health_check: {type: tcp, interval: 1s}"));
    daemon.get("/").unwrap();
    daemon.settle();
    let text = daemon.metrics_text();
    for (family, kind) in [
        ("lb_requests_total", "counter"),
        ("lb_request_duration_seconds", "histogram"),
        ("lb_requests_in_flight", "gauge"),
        ("lb_connections_total", "counter"),
        ("lb_connections_active", "gauge"),
        ("lb_request_bytes_total", "counter"),
        ("lb_response_bytes_total", "counter"),
        ("lb_rejected_total", "counter"),
        ("lb_headers_dropped_total", "counter"),
        ("lb_spliced_bytes_total", "counter"),
        ("lb_staged_closes_total", "counter"),
        ("lb_truncated_bodies_total", "counter"),
        ("lb_upstream_informational_total", "counter"),
        ("lb_upstream_connections_poisoned_total", "counter"),
        ("lb_upstream_requests_total", "counter"),
        ("lb_upstream_request_duration_seconds", "histogram"),
        ("lb_upstream_requests_in_flight", "gauge"),
        ("lb_upstream_connections_total", "counter"),
        ("lb_upstream_connections_idle", "gauge"),
        ("lb_upstream_connect_races_total", "counter"),
        ("lb_upstream_errors_total", "counter"),
        ("lb_upstream_retries_total", "counter"),
        ("lb_backend_up", "gauge"),
        ("lb_backend_weight", "gauge"),
        ("lb_backend_state", "gauge"),
        ("lb_backend_state_changes_total", "counter"),
        ("lb_health_checks_total", "counter"),
        ("lb_health_check_duration_seconds", "histogram"),
        ("lb_config_last_reload_successful", "gauge"),
        ("lb_config_generation", "gauge"),
        ("lb_build_info", "gauge"),
        ("process_cpu_seconds_total", "counter"),
        ("process_resident_memory_bytes", "gauge"),
        ("process_open_fds", "gauge"),
        ("process_start_time_seconds", "gauge"),
    ] {
        assert!(text.contains(&format!("# TYPE {family} {kind}\n")), "no {kind} {family} in\n{text}");
    }
}

// ===== exact counts =====

/// The counts of the clients on 8 connections.
#[derive(Default)]
struct Counted {
    /// The number of responses with each status.
    codes: BTreeMap<u16, u64>,
    /// The number of responses from each origin, by its name.
    origins: BTreeMap<String, u64>,
    /// The total size of all response bodies in bytes.
    bytes: u64,
}

impl Counted {
    /// Sends `requests` mixed requests over 8 connections, without retries.
    fn send(daemon: &Daemon, requests: usize) -> Self {
        let address = daemon.listener;
        let clients: Vec<_> = (0..8)
            .map(|client| thread::spawn(move || Self::send_over_one(address, client, requests / 8)))
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("a client ends"))
            .fold(Self::default(), Self::plus)
    }

    fn send_over_one(address: std::net::SocketAddr, client: usize, requests: usize) -> Self {
        const TARGETS: [(&str, &str); 8] = [
            ("GET", "/"),
            ("GET", "/bytes/5000"),
            ("GET", "/status/404"),
            ("POST", "/status/201"),
            ("GET", "/status/500"),
            ("HEAD", "/bytes/300"),
            ("GET", "/status/204"),
            ("GET", "/no-route"),
        ];
        let mut counted = Self::default();
        let mut connection = Connection::open(address).expect("the listener accepts");
        for number in 0..requests {
            let (method, target) = TARGETS[(number + client) % TARGETS.len()];
            let body: &[u8] = if method == "POST" { b"some body" } else { b"" };
            let host = if target == "/no-route" { "nowhere.test" } else { "web.test" };
            let response = connection.request(method, target, &[("Host", host)], body).expect("a response");
            *counted.codes.entry(response.status).or_default() += 1;
            counted.bytes += response.length;
            if !response.origin().is_empty() {
                *counted.origins.entry(response.origin().to_owned()).or_default() += 1;
            }
            if response.closes() {
                connection = Connection::open(address).expect("the listener accepts");
            }
        }
        counted
    }

    fn plus(mut self, other: Self) -> Self {
        for (code, count) in other.codes {
            *self.codes.entry(code).or_default() += count;
        }
        for (origin, count) in other.origins {
            *self.origins.entry(origin).or_default() += count;
        }
        self.bytes += other.bytes;
        self
    }

    fn total(&self) -> u64 {
        self.codes.values().sum()
    }
}

/// A daemon with two origins that respond according to the path, and a route for one host only.
fn mixed(lab: &Lab) -> (Daemon, [Origin; 2]) {
    let origins = ["one", "two"].map(Origin::start);
    for origin in &origins {
        origin.behave(Behaviour::ByPath);
    }
    let routes = "routes:\n  - {match: {host: web.test}, pool: web}\n";
    let daemon = lab.start(&format!("{}{routes}", pool(&[&origins[0], &origins[1]], "")));
    (daemon, origins)
}

#[test]
fn the_metrics_of_ten_thousand_mixed_requests_are_exact() {
    let lab = Lab::new();
    let (daemon, origins) = mixed(&lab);
    let counted = Counted::send(&daemon, 10_000);
    assert_eq!(counted.total(), 10_000);
    daemon.settle();
    let exact = |name: &str, labels: &[&str]| daemon.metric(name, labels) as u64;

    for (code, count) in &counted.codes {
        assert_eq!(exact("lb_requests_total", &[&format!("code=\"{code}\"")]), *count, "code {code}");
    }
    assert_eq!(exact("lb_requests_total", &[]), 10_000);
    assert_eq!(exact("lb_request_duration_seconds_count", &[]), 10_000);
    for origin in &origins {
        let label = format!("backend=\"{}\"", origin.address);
        let count = counted.origins[origin.name()];
        assert_eq!(exact("lb_upstream_requests_total", &[&label]), count, "{}", origin.name());
        assert_eq!(exact("lb_upstream_request_duration_seconds_count", &[&label]), count);
        assert_eq!(exact("lb_upstream_connections_total", &[&label]), count);
        assert_eq!(origin.requests(), count);
    }
    let unrouted = 10_000 - counted.origins.values().sum::<u64>();
    assert_eq!(exact("lb_rejected_total", &[]), unrouted);
    assert_eq!(exact("lb_response_bytes_total", &[]), counted.bytes);
    assert_eq!(exact("lb_request_bytes_total", &[]), 9 * counted.codes[&201]);
    assert_eq!(exact("lb_upstream_requests_in_flight", &[]), 0);
    assert!(exact("lb_connections_total", &[]) >= 8);
    wait::until(LONG, "the connections have ended", || daemon.metric("lb_connections_active", &[]) == 0.0);
}

#[test]
fn prometheus_reports_the_totals_that_the_clients_counted() {
    let lab = Lab::new();
    let (daemon, origins) = mixed(&lab);
    let prometheus = Server::prometheus(&lab, lab.metrics);
    let counted = Counted::send(&daemon, 800);
    let query = |query: &str| -> Option<u64> {
        let response = get(prometheus.address, &format!("/api/v1/query?query={}", escape(query))).ok()?;
        let value: Value = serde_json::from_slice(&response.body).ok()?;
        let sample = value["data"]["result"][0]["value"][1].as_str()?.parse::<f64>().ok()?;
        Some(sample as u64)
    };
    let mut expected = vec![("sum(lb_requests_total)".to_owned(), 800)];
    for (code, count) in &counted.codes {
        expected.push((format!("sum(lb_requests_total{{code=\"{code}\"}})"), *count));
    }
    for origin in &origins {
        let count = counted.origins[origin.name()];
        expected.push((format!("sum(lb_upstream_requests_total{{backend=\"{}\"}})", origin.address), count));
    }
    expected.push(("up{job=\"load_balancer\"}".to_owned(), 1));
    for (text, count) in expected {
        let response = wait::poll(LONG, || query(&text).filter(|response| *response == count));
        assert_eq!(response, Some(count), "{text}: Prometheus reports {:?}", query(&text));
    }
}

/// Escapes a query for a URL.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric();
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[test]
fn a_request_is_no_longer_in_flight_after_its_client_disconnects() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    origin.behave(Behaviour::Hang);
    let daemon = lab.start(&pool(&[&origin], ""));
    let mut client = daemon.connect();
    client.send("GET /left HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    origin.received("/left");
    assert_eq!(daemon.metric("lb_requests_in_flight", &[]), 1.0);
    drop(client);
    wait::until(LONG, "no request is in flight", || {
        daemon.metric("lb_requests_in_flight", &[]) == 0.0
            && daemon.metric("lb_upstream_requests_in_flight", &[]) == 0.0
    });
}

/// The label vectors of the crate `prometheus` hash label values without a separator. They would merge the series of
/// listener `x` with pool `yz` and of listener `xy` with pool `z`.
#[test]
fn labels_with_equal_concatenations_are_separate_series() {
    let lab = Lab::new();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let (first, second) = (tests::ports::free(), tests::ports::free());
    let config = lab.config_with(
        &format!(
            "listeners:\n  - {{address: \"{first}\", name: x}}\n  - {{address: \"{second}\", name: xy}}\n"
        ),
        &format!(
            "pools:\n  yz:\n    backends: [\"{}\"]\n  z:\n    backends: [\"{}\"]\n\
             routes:\n  - {{match: {{listener: x}}, pool: yz}}\n  - {{pool: z}}\n",
            one.address, two.address
        ),
    );
    let daemon = lab.start_file(&config);
    for listener in [first, second, second] {
        assert_eq!(get(listener, "/").unwrap().status, 200);
    }
    wait::until(LONG, "all requests are counted", || daemon.metric("lb_requests_total", &[]) == 3.0);
    let requests = |labels: &[&str]| daemon.metric("lb_requests_total", labels);
    assert_eq!(requests(&["listener=\"x\"", "pool=\"yz\""]), 1.0);
    assert_eq!(requests(&["listener=\"xy\"", "pool=\"z\""]), 2.0);
}

// ===== endpoints =====

#[test]
fn endpoints_respond_as_documented_and_anything_else_is_404_or_405() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.start(&pool(&[&origin], ""));
    for target in ["/metrics", "/livez", "/readyz", "/healthz", "/api/v1/status"] {
        assert_eq!(daemon.read(target).unwrap().status, 200, "{target}");
        let mut client = Connection::open(lab.metrics).unwrap();
        assert_eq!(client.request("HEAD", target, &[], b"").unwrap().status, 200, "HEAD {target}");
        for method in ["POST", "PUT", "DELETE"] {
            let mut client = Connection::open(lab.metrics).unwrap();
            let response = client.request(method, target, &[], b"").unwrap();
            assert_eq!(response.status, 405, "{method} {target}");
            assert!(response.header("allow").is_some_and(|allow| allow.contains("GET")));
        }
    }
    for target in ["/", "/metrics/x", "/api/v1/nothing"] {
        assert_eq!(daemon.read(target).unwrap().status, 404, "{target}");
    }
    assert!(daemon.read("/metrics").unwrap().header("content-type").unwrap().starts_with("text/plain"));
}

#[test]
fn status_shows_pools_and_backends_with_state_reason_and_counters() {
    let lab = Lab::new();
    let (up, down) = (Origin::start("up"), Origin::refusing("down"));
    let daemon = lab.start(&pool(&[&up, &down], "health_check: {type: tcp, interval: 200ms, fall: 1}"));
    daemon.get("/").unwrap();
    let response = daemon.read("/api/v1/status").unwrap();
    assert_eq!(response.header("content-type"), Some("application/json"));
    let status: Value = serde_json::from_slice(&response.body).expect("JSON");
    let pool = object_with(&status, "web").unwrap_or_else(|| panic!("no pool web in {status:#}"));
    let of = |origin: &Origin| {
        let backend = object_with(pool, &origin.address.to_string());
        backend.unwrap_or_else(|| panic!("no backend {} in {pool:#}", origin.address)).clone()
    };
    let (up, down) = (of(&up), of(&down));
    assert_eq!((&up["state"], &down["state"]), (&"up".into(), &"down".into()), "{pool:#}");
    assert!(down["reason"].as_str().is_some_and(|reason| reason.contains("refused")), "{down:#}");
    assert!(down["since"].is_string(), "{down:#}");
    assert!(up["expected_answer_ms"].as_f64().is_some_and(|time| time > 0.0), "{up:#}");
    assert!(down.get("expected_answer_ms").is_none(), "the backend has never responded: {down:#}");
}

/// The object that has `name` as one of its values, or that is the value of the key `name`.
fn object_with<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Object(fields) if fields.values().any(|field| field == name) => Some(value),
        Value::Object(fields) => match fields.get(name).filter(|field| field.is_object()) {
            Some(found) => Some(found),
            None => fields.values().find_map(|field| object_with(field, name)),
        },
        Value::Array(items) => items.iter().find_map(|item| object_with(item, name)),
        _ => None,
    }
}

#[test]
fn metrics_can_be_read_during_a_drain() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    origin.behave(Behaviour::Hang);
    let mut daemon = lab.start(&format!("shutdown: {{drain: 5s}}\n{}", pool(&[&origin], "")));
    let mut client = daemon.connect();
    client.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    origin.received("/held");
    daemon.signal(tests::Signal::SIGTERM);
    wait::until(LONG, "the listener is closed", || {
        matches!(Connection::open(lab.listener), Err(Failure::Connect(_)))
    });
    assert_eq!(daemon.read("/livez").unwrap().status, 200);
    assert_eq!(daemon.read("/readyz").unwrap().status, 503);
    assert_eq!(daemon.metric("lb_requests_in_flight", &[]), 1.0);
    let begun = Instant::now();
    drop(client);
    daemon.wait_exit(LONG);
    assert!(begun.elapsed() < Duration::from_secs(5));
}
