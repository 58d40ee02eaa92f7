//! The limit of requests in flight at a backend, the queue, and the rejection of requests that find no place.

#![expect(clippy::print_stdout, reason = "these tests print what they measure")]

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use tests::client::head_bytes;
use tests::load::{Outcome, burst};
use tests::wait::{self, LONG};
use tests::{Behaviour, CannedResponse, Connection, Daemon, Gate, Lab, Origin, Response, pattern};

use crate::balancing::pool_with;
use crate::retries::failing;
use crate::{pool, tally};

/// A daemon with one origin that holds back its responses until the gate opens.
struct Narrow {
    daemon: Daemon,
    origin: Origin,
    gate: Gate,
    _lab: Lab,
}

impl Narrow {
    /// Starts a daemon with one origin and further keys of the pool.
    fn start(more: &str) -> Self {
        Self::before(Origin::start("one"), more)
    }

    fn before(origin: Origin, more: &str) -> Self {
        let (lab, gate) = (Lab::new(), Gate::closed());
        origin.behave(Behaviour::Held(gate.clone(), CannedResponse::ok("done")));
        let daemon = lab.start(&pool(&[&origin], more));
        Self { daemon, origin, gate, _lab: lab }
    }

    /// Begins one request for each place at the origin.
    #[track_caller]
    fn fill(&self, places: u64) -> Vec<Connection> {
        let held = (0..places).map(|_| self.daemon.begin("/held")).collect();
        wait::until(LONG, "the backend is full", || self.origin.working() == places);
        held
    }

    /// Begins a request, and waits until it is queued.
    #[track_caller]
    fn join(&self, target: &str) -> Connection {
        let before = queued(&self.daemon);
        let client = self.daemon.begin(target);
        wait_queued(&self.daemon, before + 1.0);
        client
    }

    /// Opens the gate. The origin behaves like this from now on.
    fn open(&self, behaviour: Behaviour) {
        self.origin.behave(behaviour);
        self.gate.open();
    }

    fn respond_to_all(&self) {
        self.open(Behaviour::Respond(CannedResponse::ok("done")));
    }
}

fn queued(daemon: &Daemon) -> f64 {
    daemon.metric("lb_upstream_queue_length", &["pool=\"web\""])
}

#[track_caller]
fn wait_queued(daemon: &Daemon, count: f64) {
    wait::until(LONG, &format!("{count} requests are queued"), || queued(daemon) == count);
}

/// Waits until `count` requests are rejected, and asserts that all have this reason. A rejection is counted after its
/// response is sent.
#[track_caller]
fn wait_rejected(daemon: &Daemon, reason: &str, count: f64) {
    let label = format!("reason=\"{reason}\"");
    let of_reason = || daemon.metric("lb_rejected_total", &[&label]);
    wait::until(LONG, &format!("{count} requests are rejected for {reason}"), || of_reason() >= count);
    assert_eq!((of_reason(), daemon.metric("lb_rejected_total", &[])), (count, count), "{reason}");
}

/// Waits until all metrics show that no request is in flight or queued.
#[track_caller]
fn assert_nothing_leaks(daemon: &Daemon) {
    let in_flight = || {
        let upstream = daemon.metric("lb_upstream_requests_in_flight", &[]);
        (upstream, daemon.metric("lb_requests_in_flight", &[]), queued(daemon))
    };
    wait::until(LONG, "no request is in flight or queued", || in_flight() == (0.0, 0.0, 0.0));
    println!("in flight at backends, in flight, and queued at the end: {:?}", in_flight());
}

/// Reads the response of each client, which must be 200.
#[track_caller]
fn assert_all_served(clients: Vec<Connection>) {
    for mut client in clients {
        assert_eq!(client.response("GET").unwrap().status, 200);
    }
}

// ===== the limit =====

/// The highest number of requests in flight at one origin while 24 clients send ten requests each.
fn most_at_once(more: &str) -> u64 {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    origin.behave(Behaviour::Slow(Duration::from_millis(5), CannedResponse::ok("")));
    let daemon = lab.start(&pool(&[&origin], more));
    let address = daemon.listener;
    let client = |_| {
        thread::spawn(move || {
            let mut client = Connection::open(address).unwrap();
            (0..10).map(|_| client.get("/").unwrap().status).collect::<Vec<_>>()
        })
    };
    let clients: Vec<_> = (0..24).map(client).collect();
    let statuses: Vec<u16> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    println!("{more:?}: {:?}, at most {} at once", tally(statuses.clone()), origin.most_at_once());
    assert_eq!(tally(statuses), [(200, 240)]);
    assert_eq!(origin.requests(), 240);
    assert_nothing_leaks(&daemon);
    origin.most_at_once()
}

#[test]
fn a_backend_never_exceeds_its_limit_and_all_queued_requests_are_served() {
    let queue = "queue: 100}\ntimeouts: {queue: 20s}";
    assert_eq!(most_at_once(&format!("limits: {{max_requests: 3, {queue}")), 3);
    assert_eq!(most_at_once(&format!("limits: {{max_requests: 1, {queue}")), 1);
    assert!(most_at_once("") > 3);
    assert!(most_at_once("limits: {max_requests: 0}") > 3);
}

#[test]
fn a_backend_has_its_own_limit_or_that_of_the_pool() {
    let (lab, gate) = (Lab::new(), Gate::closed());
    let origins = ["own", "pool", "none"].map(Origin::start);
    for origin in &origins {
        origin.behave(Behaviour::Held(gate.clone(), CannedResponse::ok("")));
    }
    let [own, of_pool, none] = &origins;
    let backends = [(own, "max_requests: 1"), (of_pool, ""), (none, "max_requests: 0")];
    let daemon = lab.start(&pool_with(&backends, "limits: {max_requests: 3, queue: 0}"));
    let clients: Vec<_> = (0..12).map(|_| daemon.begin("/")).collect();
    let working = || origins.each_ref().map(Origin::working);
    wait::until(LONG, "all requests are held", || working().iter().sum::<u64>() == 12);
    println!("max_requests 1, 3 by the pool, and 0: 12 held requests are {:?}", working());
    assert_eq!(working(), [1, 3, 8]);
    gate.open();
    assert_all_served(clients);
    assert_nothing_leaks(&daemon);
}

// ===== the queue =====

#[test]
fn queued_requests_are_served_in_the_order_of_arrival() {
    let narrow = Narrow::start("limits: {max_requests: 1, queue: 100}\ntimeouts: {queue: 20s}");
    let mut clients = narrow.fill(1);
    let early: Vec<String> = (0..20).map(|number| format!("/early/{number}")).collect();
    clients.extend(early.iter().map(|target| narrow.join(target)));
    assert_eq!(queued(&narrow.daemon), 20.0);
    narrow.open(Behaviour::Slow(Duration::from_millis(20), CannedResponse::ok("")));
    // These arrive while places become free, and must not overtake the queued requests.
    let late: Vec<String> = (0..10).map(|number| format!("/late/{number}")).collect();
    clients.extend(late.iter().map(|target| narrow.daemon.begin(target)));
    assert_all_served(clients);
    let order: Vec<String> = narrow.origin.seen().iter().map(|seen| seen.target().to_owned()).collect();
    println!("served in this order: {order:?}");
    assert_eq!(order[1..21], early);
    assert!(order[21..].iter().all(|target| target.starts_with("/late/")) && order.len() == 31);
    assert_eq!(narrow.origin.most_at_once(), 1);
    assert_nothing_leaks(&narrow.daemon);
}

#[test]
fn a_request_is_rejected_at_once_when_the_queue_is_full() {
    // By default the queue has two places for each request that may be in flight.
    for (limits, held, places) in [
        ("limits: {max_requests: 1, queue: 2}\ntimeouts: {queue: 20s}", 1, 2),
        ("limits: {max_requests: 2}\ntimeouts: {queue: 20s}", 2, 4),
        ("limits: {max_requests: 2, queue: 0}", 2, 0),
    ] {
        let narrow = Narrow::start(limits);
        let mut clients = narrow.fill(held);
        clients.extend((0..places).map(|_| narrow.join("/waits")));
        for count in 1..=3 {
            let begun = Instant::now();
            let response = narrow.daemon.get("/too-many").unwrap();
            let took = begun.elapsed();
            println!(
                "{limits:?}: {} in {took:.1?}, Retry-After {:?}",
                response.status,
                response.header("retry-after")
            );
            assert_eq!((response.status, response.header("retry-after")), (503, Some("1")));
            assert!(took < Duration::from_secs(5), "{took:?}");
            wait_rejected(&narrow.daemon, "queue_full", f64::from(count));
        }
        narrow.daemon.logged(&["/too-many", "503", "queue_full"]);
        narrow.respond_to_all();
        assert_all_served(clients);
        assert_eq!(narrow.origin.most_at_once(), held);
        assert_nothing_leaks(&narrow.daemon);
    }
}

/// Sends a request that is queued until it times out. Returns the response and the time it took.
fn queued_until_timeout(timeout: &str) -> (Response, Duration, Narrow) {
    let narrow = Narrow::start(&format!("limits: {{max_requests: 1}}\n{timeout}"));
    let clients = narrow.fill(1);
    let begun = Instant::now();
    let response = narrow.daemon.get("/waits").unwrap();
    let took = begun.elapsed();
    println!("{timeout:?}: {} after {took:.1?}", response.status);
    narrow.respond_to_all();
    assert_all_served(clients);
    (response, took, narrow)
}

#[test]
fn a_queued_request_is_rejected_after_the_queue_timeout() {
    for (timeout, least, most) in
        [("", 1000, 3000), ("timeouts: {queue: 200ms}", 200, 1000), ("timeouts: {queue: 4s}", 4000, 9000)]
    {
        let (mut response, mut took, mut narrow) = queued_until_timeout(timeout);
        if took.as_millis() >= most {
            // A busy machine may respond late once.
            (response, took, narrow) = queued_until_timeout(timeout);
        }
        assert_eq!((response.status, response.header("retry-after")), (503, Some("1")));
        assert!((least..most).contains(&took.as_millis()), "{timeout}: {took:?}");
        wait_rejected(&narrow.daemon, "queue_timeout", 1.0);
        narrow.daemon.logged(&["/waits", "503", "queue_timeout"]);
        assert_eq!(narrow.origin.requests(), 1, "the rejected request was sent to a backend");
        assert_eq!(narrow.daemon.get("/next").unwrap().status, 200);
        assert_nothing_leaks(&narrow.daemon);
    }
}

#[test]
fn the_metric_of_the_queue_length_goes_up_and_down() {
    let narrow = Narrow::start("limits: {max_requests: 1, queue: 10}\ntimeouts: {queue: 20s}");
    let mut lengths = vec![queued(&narrow.daemon)];
    let mut clients = narrow.fill(1);
    for _ in 0..3 {
        clients.push(narrow.join("/waits"));
        lengths.push(queued(&narrow.daemon));
    }
    narrow.respond_to_all();
    assert_all_served(clients);
    lengths.push(queued(&narrow.daemon));
    println!("lb_upstream_queue_length: {lengths:?}");
    assert_eq!(lengths, [0.0, 1.0, 2.0, 3.0, 0.0]);
    assert_nothing_leaks(&narrow.daemon);
}

#[test]
fn a_client_that_leaves_the_queue_frees_its_place_at_once() {
    let narrow = Narrow::start("limits: {max_requests: 1, queue: 1}\ntimeouts: {queue: 20s}");
    let clients = narrow.fill(1);
    // Requests without a body, with complete and incomplete bodies, with chunks, and with `Expect`.
    let requests = [
        ("GET", "/get", "Accept", "*/*", String::new()),
        ("POST", "/whole", "Content-Length", "5", "whole".to_owned()),
        ("POST", "/large", "Content-Length", "40000", "x".repeat(40_000)),
        ("POST", "/begun", "Content-Length", "40000", "begun".to_owned()),
        ("POST", "/chunks", "Transfer-Encoding", "chunked", "3\r\nabc\r\n".to_owned()),
        ("POST", "/whole-chunks", "Transfer-Encoding", "chunked", "3\r\nabc\r\n0\r\n\r\n".to_owned()),
        ("PUT", "/expects", "Expect", "100-continue\r\nContent-Length: 9", String::new()),
    ];
    for (method, target, header, value, body) in requests {
        let mut client = narrow.daemon.connect();
        client.send(head_bytes(method, target, &[(header, value)], 0)).unwrap();
        client.send(body).unwrap();
        wait_queued(&narrow.daemon, 1.0);
        assert_eq!(narrow.daemon.get("/full").unwrap().status, 503, "the only place is taken");
        let left = Instant::now();
        drop(client);
        wait_queued(&narrow.daemon, 0.0);
        println!("{method} {target}: the place is free after {:.1?}", left.elapsed());
        assert!(left.elapsed() < Duration::from_secs(5), "{:?}", left.elapsed());
        let is_truncated = ["/begun", "/chunks", "/expects"].contains(&target);
        let [status, reason] = if is_truncated { ["400", "truncated_body"] } else { ["499", "client_gone"] };
        narrow.daemon.logged(&[target, status, reason]);
    }
    let waiting = narrow.join("/last");
    narrow.respond_to_all();
    assert_all_served(clients.into_iter().chain([waiting]).collect());
    let targets: Vec<String> = narrow.origin.seen().iter().map(|seen| seen.target().to_owned()).collect();
    println!("the backend received {targets:?}");
    assert_eq!(targets, ["/held", "/last"]);
    // Each request found the queue full once. Of the clients that disconnected, only those with a truncated body count.
    for (reason, count) in [("queue_full", 7.0), ("truncated_body", 3.0)] {
        let label = format!("reason=\"{reason}\"");
        let rejected = || narrow.daemon.metric("lb_rejected_total", &[&label]);
        wait::until(LONG, &format!("{count} requests are rejected for {reason}"), || rejected() >= count);
        assert_eq!(rejected(), count, "{reason}");
    }
    assert_nothing_leaks(&narrow.daemon);
}

#[test]
fn clients_that_leave_the_queue_do_not_hold_up_the_others() {
    let narrow = Narrow::start("limits: {max_requests: 1, queue: 10}\ntimeouts: {queue: 20s}");
    let mut clients = narrow.fill(1);
    let mut waiting: Vec<_> = (0..6).map(|number| Some(narrow.join(&format!("/{number}")))).collect();
    for number in [0, 3, 1] {
        waiting[number] = None;
    }
    wait_queued(&narrow.daemon, 3.0);
    narrow.respond_to_all();
    clients.extend(waiting.into_iter().flatten());
    assert_all_served(clients);
    let order: Vec<String> = narrow.origin.seen().iter().map(|seen| seen.target().to_owned()).collect();
    println!("six waited, 0, 1 and 3 left, served: {order:?}");
    assert_eq!(order, ["/held", "/2", "/4", "/5"]);
    assert_nothing_leaks(&narrow.daemon);
}

#[test]
fn a_client_that_disconnects_while_its_request_is_in_flight_frees_the_place() {
    let narrow = Narrow::start("limits: {max_requests: 1, queue: 1}\ntimeouts: {queue: 20s}");
    let held = narrow.fill(1);
    let waiting = narrow.join("/waits");
    drop(held);
    // Both requests are in flight at the origin, which does not notice that the first client has disconnected.
    wait::until(LONG, "the queued request is sent", || narrow.origin.requests() == 2);
    println!("the client of the request in flight left, {} requests were sent", narrow.origin.requests());
    narrow.respond_to_all();
    assert_all_served(vec![waiting]);
    assert_nothing_leaks(&narrow.daemon);
}

/// The chunked coding of `length` bytes of the pattern, in chunks of 1000 bytes.
fn chunks(length: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in body(length).chunks(1000) {
        bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

fn body(length: u64) -> Vec<u8> {
    let length = usize::try_from(length).unwrap();
    pattern::from(0).iter().copied().cycle().take(length).collect()
}

/// Sends a request with a body of this length. A thread sends the body, since the daemon does not read a large body
/// completely before it forwards the request.
fn send(daemon: &Daemon, target: &str, length: u64, is_chunked: bool) -> thread::JoinHandle<Connection> {
    let (mut client, size) = (daemon.connect(), length.to_string());
    let (header, body) = match is_chunked {
        true => (("Transfer-Encoding", "chunked"), chunks(length)),
        false => (("Content-Length", size.as_str()), body(length)),
    };
    client.send(head_bytes("POST", target, &[header], 0)).unwrap();
    thread::spawn(move || {
        client.send(body).unwrap();
        client
    })
}

#[test]
fn the_body_of_a_queued_request_arrives_unchanged() {
    let narrow = Narrow::start("limits: {max_requests: 1, queue: 20}\ntimeouts: {queue: 20s}");
    let clients = narrow.fill(1);
    let mut senders = Vec::new();
    for length in [5, 4_096, 65_536, 65_537, 200_000, 5_000_000] {
        for (kind, is_chunked) in [("whole", false), ("chunks", true)] {
            let target = format!("/{kind}/{length}");
            let sender = send(&narrow.daemon, &target, length, is_chunked);
            senders.push((target, length, sender));
            wait_queued(&narrow.daemon, senders.len() as f64);
        }
    }
    narrow.respond_to_all();
    assert_all_served(clients);
    for (target, length, sender) in senders {
        let mut client = sender.join().unwrap();
        assert_eq!(client.response("POST").unwrap().status, 200, "{target}");
        let body = narrow.origin.received(&target).body;
        println!("{target}: {} bytes, unchanged: {}", body.length, body.is_pattern);
        assert_eq!((body.length, body.is_pattern), (length, true), "{target}");
        // The next request on the connection is read correctly, too.
        assert_eq!(client.get("/after").unwrap().status, 200);
    }
    assert_nothing_leaks(&narrow.daemon);
}

#[test]
fn a_client_that_waits_for_100_continue_gets_it_after_the_queue() {
    let narrow = Narrow::start("limits: {max_requests: 1}\ntimeouts: {queue: 20s}");
    let clients = narrow.fill(1);
    let mut client = narrow.daemon.connect();
    client.send(head_bytes("PUT", "/up", &[("Expect", "100-continue")], 5)).unwrap();
    wait_queued(&narrow.daemon, 1.0);
    narrow.respond_to_all();
    assert_eq!(client.response_head().unwrap().0, 100);
    client.send("12345").unwrap();
    assert_eq!(client.response("PUT").unwrap().status, 200);
    assert_eq!(narrow.origin.received("/up").body.start, b"12345");
    assert_all_served(clients);
    assert_nothing_leaks(&narrow.daemon);
}

/// A request must not wait for a place if no backend can ever offer one.
#[test]
fn queued_requests_are_rejected_when_no_backend_is_left() {
    let origin = Origin::start("one");
    // The health check uses another port, so that the backend can be down while a request is in flight there.
    let checked = TcpListener::bind((origin.address.ip(), 0)).unwrap();
    let port = checked.local_addr().unwrap().port();
    let check =
        format!("health_check: {{type: tcp, port: {port}, interval: 200ms, fast_interval: 200ms, fall: 1}}");
    let more = format!("{check}\npanic_threshold: 0\nlimits: {{max_requests: 1}}\ntimeouts: {{queue: 15s}}");
    let narrow = Narrow::before(origin, &more);
    let clients = narrow.fill(1);
    let mut waiting = narrow.join("/waits");
    let begun = Instant::now();
    drop(checked);
    let response = waiting.response("GET").unwrap();
    println!("no backend is left: {} after {:.1?}", response.status, begun.elapsed());
    assert_eq!(response.status, 503);
    wait_rejected(&narrow.daemon, "no_backend", 1.0);
    narrow.respond_to_all();
    assert_all_served(clients);
    assert_nothing_leaks(&narrow.daemon);
}

#[test]
fn no_place_leaks_when_clients_disconnect_at_any_moment() {
    let (lab, origin) = (Lab::new(), Origin::start("one"));
    origin.behave(Behaviour::Slow(Duration::from_millis(3), CannedResponse::ok("done")));
    let more = "limits: {max_requests: 2, queue: 8}\ntimeouts: {queue: 20s}";
    let daemon = lab.start(&pool(&[&origin], more));
    let address = daemon.listener;
    let client = |number: u64| {
        thread::spawn(move || {
            for step in 0..60u64 {
                let mut client = Connection::open(address).unwrap();
                let (head, pause) = match step % 3 {
                    0 => (head_bytes("GET", "/leaves", &[], 0), step * 7 + number),
                    1 => (head_bytes("POST", "/leaves", &[], 100), step * 11 + number),
                    _ => (head_bytes("GET", "/stays", &[], 0), 0),
                };
                client.send(head).unwrap();
                match step % 3 {
                    2 => assert!(matches!(client.response("GET").unwrap().status, 200 | 503)),
                    // These clients disconnect between immediately and after their turn.
                    _ => thread::sleep(Duration::from_millis(pause % 23)),
                }
            }
        })
    };
    let clients: Vec<_> = (0..12).map(client).collect();
    let mut longest = 0.0f64;
    while clients.iter().any(|client| !client.is_finished()) {
        longest = longest.max(queued(&daemon));
        thread::sleep(Duration::from_millis(10));
    }
    clients.into_iter().for_each(|client| client.join().unwrap());
    println!("720 requests, 480 of them abandoned; the longest queue had {longest} requests");
    assert_nothing_leaks(&daemon);
    // Every place can be taken again: two requests are in flight, eight are queued, and the next is rejected.
    let gate = Gate::closed();
    origin.behave(Behaviour::Held(gate.clone(), CannedResponse::ok("done")));
    let clients: Vec<_> = (0..10).map(|_| daemon.begin("/held")).collect();
    wait_queued(&daemon, 8.0);
    wait::until(LONG, "two requests are in flight", || origin.working() == 2);
    assert_eq!(daemon.get("/full").unwrap().status, 503);
    gate.open();
    assert_all_served(clients);
    assert_nothing_leaks(&daemon);
}

/// No event signals the end of an ejection, so a queued request has to wake up by itself.
#[test]
fn a_queued_request_goes_to_a_backend_whose_ejection_ends() {
    let (lab, gate) = (Lab::new(), Gate::closed());
    let (busy, ejected) = (Origin::start("busy"), Origin::start("ejected"));
    let more = "outlier_detection: {consecutive_failures: 1, base_ejection: 2s}\nretries: {attempts: 0}\n\
                limits: {max_requests: 1}\ntimeouts: {queue: 15s}";
    let daemon = lab.start(&pool(&[&busy, &ejected], more));
    ejected.behave(Behaviour::Respond(CannedResponse::status(503, "")));
    wait::until(LONG, "one backend has failed", || daemon.get("/fails").unwrap().status == 503);
    ejected.behave(Behaviour::Respond(CannedResponse::ok("")));
    busy.behave(Behaviour::Held(gate.clone(), CannedResponse::ok("")));
    let mut clients = vec![daemon.begin("/held")];
    wait::until(LONG, "the other backend is full", || {
        if busy.working() == 0 && ejected.requests() > clients.len() as u64 {
            clients.push(daemon.begin("/held"));
        }
        busy.working() == 1
    });
    let begun = Instant::now();
    let response = daemon.begin("/waits").response("GET").unwrap();
    println!(
        "the ejection ends: {} from {} after {:.1?}",
        response.status,
        response.origin(),
        begun.elapsed()
    );
    assert_eq!((response.status, response.origin()), (200, "ejected"));
    gate.open();
    assert_all_served(clients);
    assert_nothing_leaks(&daemon);
}

// ===== after a failure =====

/// The good backend is at its limit nearly all the time, so a retry has to queue like any other request.
#[test]
fn a_retry_waits_for_another_backend_that_is_full() {
    for (how, bad) in [("refuses", failing("connect_failure")), ("resets", failing("reset"))] {
        let (lab, good) = (Lab::new(), Origin::start("good"));
        good.behave(Behaviour::Slow(Duration::from_millis(50), CannedResponse::ok("")));
        let more = "limits: {max_requests: 2, queue: 50}\ntimeouts: {queue: 5s}\n\
                    outlier_detection: {consecutive_failures: 0}";
        let daemon = lab.start(&pool(&[&good, &bad], more));
        let outcomes = burst(daemon.listener, "GET", 8, 10);
        let statuses = tally(outcomes.iter().map(Outcome::status));
        let retries = daemon.metric("lb_upstream_retries_total", &[]);
        println!("one of two {how}: {statuses:?}, {retries} retries");
        assert_eq!(statuses, [(200, 80)], "{how}: {}", daemon.log());
        assert!(retries > 0.0 && good.most_at_once() <= 2, "{how}");
        assert_nothing_leaks(&daemon);
    }
}
