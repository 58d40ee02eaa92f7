//! The choice of a backend for each request: policies, hashes, sessions, backups and slow start.

#![expect(clippy::print_stdout, reason = "these tests print what they measure")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use tests::client::head_bytes;
use tests::daemon::View;
use tests::tools::Server;
use tests::wait::{self, LONG};
use tests::{Behaviour, CannedResponse, Connection, Daemon, Gate, Lab, Origin, Response};

use crate::{pool, tally};

/// The origin to which each key goes.
type Mapping = BTreeMap<String, String>;

/// Frequent TCP health checks.
const CHECKED: &str =
    "health_check: {type: tcp, interval: 200ms, fast_interval: 200ms, rise: 1, fall: 1, jitter: 0}";

/// Starts origins named `o0`, `o1`, ….
pub(crate) fn origins(count: usize) -> Vec<Origin> {
    (0..count).map(|number| Origin::start(&format!("o{number}"))).collect()
}

/// The section `pools` with one pool of these origins. Each origin comes with further keys, such as `weight: 2`.
pub(crate) fn pool_with(backends: &[(&Origin, &str)], more: &str) -> String {
    let one = |(origin, keys): &(&Origin, &str)| {
        let comma = if keys.is_empty() { "" } else { ", " };
        format!("      - {{address: \"{}\"{comma}{keys}}}\n", origin.address)
    };
    let list: String = backends.iter().map(one).collect();
    pool(&[], more).replace(" []\n", &format!("\n{list}"))
}

/// Like [`pool_with`], but takes a weight for each origin.
fn weighted(origins: &[Origin], weights: &[u32], more: &str) -> String {
    let keys: Vec<String> = weights.iter().map(|weight| format!("weight: {weight}")).collect();
    let backends: Vec<_> = origins.iter().zip(keys.iter().map(String::as_str)).collect();
    pool_with(&backends, more)
}

/// Like [`pool`](crate::pool), but takes a slice of origins.
pub(crate) fn equal(origins: &[Origin], more: &str) -> String {
    pool(&origins.iter().collect::<Vec<_>>(), more)
}

/// Sends `count` requests one after the other, and returns the name of the origin that serves each.
#[track_caller]
fn served_by(daemon: &Daemon, count: usize) -> Vec<String> {
    let mut client = daemon.connect();
    (0..count).map(|_| client.get("/").unwrap().origin().to_owned()).collect()
}

/// Sends `count` requests, prints how many of them each origin serves, and returns these numbers.
#[track_caller]
fn shares(what: &str, daemon: &Daemon, count: usize) -> BTreeMap<String, usize> {
    let shares: BTreeMap<_, _> = tally(served_by(daemon, count)).into_iter().collect();
    println!("{what}: {shares:?} of {count}");
    shares
}

fn share_of(shares: &BTreeMap<String, usize>, origin: &Origin) -> usize {
    shares.get(origin.name()).copied().unwrap_or(0)
}

/// The number of requests in flight at each origin.
fn working(origins: &[Origin]) -> Vec<u64> {
    origins.iter().map(Origin::working).collect()
}

/// Sends requests without reading their responses. Each is sent once the one before has arrived at an origin.
#[track_caller]
fn hold(daemon: &Daemon, origins: &[Origin], count: u64, target: &str) -> Vec<Connection> {
    let all = || working(origins).iter().sum::<u64>();
    let one = |_| {
        let before = all();
        let client = daemon.begin(target);
        wait::until(LONG, "the request has arrived at an origin", || all() > before);
        client
    };
    (0..count).map(one).collect()
}

/// Makes every origin hold back its responses until its gate opens. Returns one gate per origin.
fn close_gates(origins: &[Origin]) -> Vec<Gate> {
    let close = |origin: &Origin| {
        let gate = Gate::closed();
        origin.behave(Behaviour::Held(gate.clone(), CannedResponse::ok(origin.name())));
        gate
    };
    origins.iter().map(close).collect()
}

#[track_caller]
fn wait_up(daemon: &Daemon, origin: &Origin, up: f64) {
    let label = format!("backend=\"{}\"", origin.address);
    let what = format!("{} has lb_backend_up {up}", origin.name());
    wait::until(LONG, &what, || daemon.metric("lb_backend_up", &[&label]) == up);
}

// ===== policies without a key =====

#[test]
fn random_draws_by_weight_and_in_no_fixed_order() {
    let (lab, origins) = (Lab::new(), origins(3));
    let daemon = lab.start(&weighted(&origins, &[1, 2, 5], "policy: random"));
    let names = served_by(&daemon, 1600);
    let counts = tally(names.clone());
    println!("random: {counts:?} of 1600");
    // The bounds are seven standard deviations: one run in 10^11 exceeds them.
    for ((name, count), (expected, bound)) in counts.iter().zip([(200, 93), (400, 122), (1000, 136)]) {
        assert!(count.abs_diff(expected) <= bound, "{name}: {count}, not {expected} ± {bound}");
    }
    // Round robin would have counts of 1, 2 and 5 in every group of eight. Random draws have them in an eighth of the
    // groups.
    let as_turns = |eight: &&[String]| tally(eight.iter().cloned()).iter().map(|(_, n)| *n).eq([1, 2, 5]);
    let as_turns = names.chunks(8).filter(as_turns).count();
    println!("random: {as_turns} of 200 groups of eight are exactly even");
    assert!(as_turns < 100, "{as_turns}");
}

#[test]
fn least_request_avoids_a_busy_backend() {
    let (lab, origins) = (Lab::new(), origins(3));
    let daemon = lab.start(&equal(&origins, "policy: least_request"));
    let gates = close_gates(&origins);
    let mut held = hold(&daemon, &origins, 6, "/held");
    println!("least_request: six held requests are {:?}", working(&origins));
    assert_eq!(working(&origins), [2, 2, 2]);
    for (origin, gate) in origins.iter().zip(&gates).skip(1) {
        origin.behave(Behaviour::Respond(CannedResponse::ok("")));
        gate.open();
    }
    wait::until(LONG, "four requests are complete", || {
        daemon.metric("lb_upstream_requests_in_flight", &["pool=\"web\""]) == 2.0
    });
    let others = shares("least_request while o0 holds two", &daemon, 60);
    assert_eq!(share_of(&others, &origins[0]), 0);
    assert!(others.len() == 2 && others.values().all(|count| *count >= 10), "{others:?}");
    origins[0].behave(Behaviour::Respond(CannedResponse::ok("")));
    gates[0].open();
    for client in &mut held {
        assert_eq!(client.response("GET").unwrap().status, 200);
    }
    let all = shares("least_request when o0 is free again", &daemon, 60);
    assert!(origins.iter().all(|origin| share_of(&all, origin) >= 10), "{all:?}");
}

#[test]
fn round_robin_ignores_requests_in_flight() {
    let (lab, origins) = (Lab::new(), origins(3));
    let daemon = lab.start(&equal(&origins, "policy: round_robin"));
    let gates = close_gates(&origins[..1]);
    let held: Vec<_> = (0..12).map(|_| daemon.begin("/held")).collect();
    wait::until(LONG, "a third of the requests is held", || origins[0].working() == 4);
    println!("round_robin: 12 requests, {:?} held, {} and {} served", working(&origins), 4, 4);
    gates[0].open();
    drop(held);
}

#[test]
fn least_request_divides_the_load_by_weight() {
    let (lab, origins) = (Lab::new(), origins(2));
    let daemon = lab.start(&weighted(&origins, &[1, 3], "policy: least_request"));
    let gates = close_gates(&origins);
    let held = hold(&daemon, &origins, 8, "/held");
    println!("least_request, weights 1 and 3: eight held requests are {:?}", working(&origins));
    assert_eq!(working(&origins), [2, 6]);
    gates.iter().for_each(Gate::open);
    drop(held);
}

/// A pool of more than four backends does not compare all of them: it draws two and takes the less loaded one.
#[test]
fn least_request_among_many_backends_rarely_picks_the_busy_one() {
    let (lab, origins) = (Lab::new(), origins(8));
    let daemon = lab.start(&equal(&origins, "policy: least_request"));
    let gates = close_gates(&origins);
    let mut held = Vec::new();
    while origins[0].working() < 3 {
        held.extend(hold(&daemon, &origins, 1, "/held"));
        assert!(held.len() < 400, "{:?}", working(&origins));
    }
    println!("least_request of 8: {} held requests are {:?}", held.len(), working(&origins));
    for (origin, gate) in origins.iter().zip(&gates).skip(1) {
        origin.behave(Behaviour::Respond(CannedResponse::ok("")));
        gate.open();
    }
    let in_flight = || daemon.metric("lb_upstream_requests_in_flight", &["pool=\"web\""]);
    wait::until(LONG, "all but three requests are complete", || in_flight() == 3.0);
    let counts = || (origins[0].working(), origins[1..].iter().map(Origin::requests).sum::<u64>());
    for _ in 0..100 {
        let (before, mut client) = (counts(), daemon.begin("/"));
        wait::until(LONG, "the request has arrived at an origin", || counts() != before);
        if counts().0 == before.0 {
            client.response("GET").unwrap();
        }
        held.push(client);
    }
    let to_busy = origins[0].working() - 3;
    println!("least_request of 8: {to_busy} of 100 requests go to the backend that holds three");
    // The busy backend is taken only if all draws of the second candidate repeat the first: (1/8)^9 per request.
    assert!(to_busy <= 1, "{to_busy}");
    gates[0].open();
}

/// The number of requests, out of twelve, that `o0` gets after its behaviour changes. Before the change, `o0` is by far
/// the quickest of three origins and gets nearly all requests.
fn share_after_a_change(behaviour: Behaviour) -> usize {
    let (lab, origins) = (Lab::new(), origins(3));
    for origin in &origins[1..] {
        origin.behave(Behaviour::Slow(Duration::from_millis(300), CannedResponse::ok("")));
    }
    let daemon = lab.start(&equal(&origins, "policy: peak_ewma\nretries: {attempts: 0}"));
    let before = shares("peak_ewma while o0 is quick", &daemon, 40);
    assert!(share_of(&before, &origins[0]) >= 30, "{before:?}");
    let what = format!("peak_ewma when o0 does {behaviour:?}").chars().take(60).collect::<String>();
    origins[0].behave(behaviour);
    share_of(&shares(&what, &daemon, 12), &origins[0])
}

#[test]
fn peak_ewma_moves_away_from_a_backend_that_became_slow() {
    let slow = Behaviour::Slow(Duration::from_millis(1500), CannedResponse::ok(""));
    let after = share_after_a_change(slow);
    assert!((1..=2).contains(&after), "{after}");
}

#[test]
fn peak_ewma_moves_away_from_a_backend_that_sends_retry_after() {
    let busy = CannedResponse::status(429, "").with("Retry-After", "20");
    let after = share_after_a_change(Behaviour::Respond(busy));
    assert!((1..=2).contains(&after), "{after}");
}

/// Shows that the test above observes the effect of the status and `Retry-After`, and not of any other property.
#[test]
fn peak_ewma_stays_with_a_quick_backend_that_sends_no_retry_after() {
    let after = share_after_a_change(Behaviour::Respond(CannedResponse::status(404, "")));
    assert!(after >= 9, "{after}");
}

#[test]
fn peak_ewma_uses_all_of_several_equal_idle_backends() {
    let (lab, origins) = (Lab::new(), origins(3));
    let daemon = lab.start(&equal(&origins, "policy: peak_ewma"));
    let shares = shares("peak_ewma, all equal and idle", &daemon, 30);
    assert_eq!(shares.len(), 3, "{shares:?}");
}

/// The backend that follows the one that is down must not get both shares.
#[test]
fn least_request_is_even_between_idle_backends_when_another_is_down() {
    for down in 0..3 {
        let (lab, mut origins) = (Lab::new(), origins(3));
        let daemon = lab.start(&equal(&origins, &format!("policy: least_request\n{CHECKED}")));
        origins[down].refuse();
        wait_up(&daemon, &origins[down], 0.0);
        let shares = shares(&format!("least_request, o{down} is down"), &daemon, 60);
        assert!(shares.len() == 2 && shares.values().all(|count| *count >= 21), "{shares:?}");
    }
}

// ===== hashes =====

/// Sends `keys` requests, each with its own key in the query, and returns the origin that serves each key.
#[track_caller]
fn mapping(address: SocketAddr, keys: usize) -> Mapping {
    let mut client = Connection::open(address).unwrap();
    let mut send = |number: usize| {
        let key = format!("key-{number}");
        let response = client.get(&format!("/?k={key}")).unwrap();
        assert_eq!(response.status, 200, "{key}");
        (key, response.origin().to_owned())
    };
    (0..keys).map(&mut send).collect()
}

/// The keys that moved to another origin, each with the origin it had before.
fn moved<'a>(before: &'a Mapping, after: &Mapping) -> Vec<(&'a str, &'a str)> {
    let moved = before.iter().filter(|(key, origin)| after[*key] != **origin);
    moved.map(|(key, origin)| (key.as_str(), origin.as_str())).collect()
}

fn counts(mapping: &Mapping) -> Vec<(String, usize)> {
    tally(mapping.values().cloned())
}

fn hash(policy: &str) -> String {
    format!("policy: {policy}\nhash_on: {{query: k}}")
}

#[test]
fn consistent_hash_places_keys_as_nginx_does_and_moves_only_those_of_a_lost_backend() {
    let (lab, mut origins) = (Lab::new(), origins(5));
    let weights = [1, 2, 1, 3, 1];
    let of_nginx: Vec<_> = origins.iter().zip(weights).map(|(o, weight)| (o.address, weight)).collect();
    let nginx = Server::nginx_hashing(&lab, "$arg_k", &of_nginx);
    let more = format!("{}\n{CHECKED}", hash("consistent_hash"));
    let daemon = lab.start(&weighted(&origins, &weights, &more));
    let (ours, theirs) = (mapping(daemon.listener, 500), mapping(nginx.address, 500));
    let differences = moved(&ours, &theirs);
    println!(
        "consistent_hash: {} of 500 keys go to another backend than with nginx; {:?}",
        differences.len(),
        counts(&ours)
    );
    assert!(differences.is_empty(), "{differences:?}");
    assert_eq!(counts(&ours).len(), 5);

    origins[3].refuse();
    wait_up(&daemon, &origins[3], 0.0);
    let without = mapping(daemon.listener, 500);
    let gone = moved(&ours, &without);
    println!("consistent_hash: o3 is down, {} of 500 keys move, to {:?}", gone.len(), counts(&without));
    assert!(gone.iter().all(|(_, origin)| *origin == "o3"), "{gone:?}");
    assert_eq!(counts(&without).len(), 4);
    origins[3].come_back();
    wait_up(&daemon, &origins[3], 1.0);
    assert_eq!(mapping(daemon.listener, 500), ours);
}

#[test]
fn maglev_places_keys_identically_after_a_restart_and_on_every_instance() {
    let (lab, other, origins) = (Lab::new(), Lab::new(), origins(5));
    let mut daemon = lab.start(&equal(&origins, &hash("maglev")));
    let before = mapping(daemon.listener, 500);
    assert_eq!(daemon.stop(), Some(0));
    let again = lab.start(&equal(&origins, &hash("maglev")));
    let reversed: Vec<&Origin> = origins.iter().rev().collect();
    let instance = other.start(&pool(&reversed, &hash("maglev")));
    // With round robin, this request would move all keys.
    again.get("/?k=another").unwrap();
    let (after, there) = (mapping(again.listener, 500), mapping(instance.listener, 500));
    let (changed, different) = (moved(&before, &after), moved(&before, &there));
    println!(
        "maglev: {:?}; {} of 500 keys move after a restart, {} differ on another instance",
        counts(&before),
        changed.len(),
        different.len()
    );
    assert!(changed.is_empty() && different.is_empty(), "{changed:?} {different:?}");
    drop(again);
    let ring = lab.start(&equal(&origins, &hash("consistent_hash")));
    let elsewhere = moved(&before, &mapping(ring.listener, 500)).len();
    println!("maglev: {elsewhere} of 500 keys go to another backend than with consistent_hash");
    assert!(elsewhere > 250, "{elsewhere}");
    // The bound is seven standard deviations of 500 keys that fall on five backends at random.
    assert!(counts(&before).iter().all(|(_, count)| count.abs_diff(100) < 63), "{:?}", counts(&before));
}

#[test]
fn maglev_moves_few_other_keys_when_a_backend_is_removed_and_none_when_it_is_down() {
    let (lab, other, mut origins) = (Lab::new(), Lab::new(), origins(5));
    let daemon = lab.start(&equal(&origins, &format!("{}\n{CHECKED}", hash("maglev"))));
    let all = mapping(daemon.listener, 500);
    let fewer = other.start(&equal(&origins[..4], &hash("maglev")));
    let without = mapping(fewer.listener, 500);
    let gone = moved(&all, &without);
    let others = gone.iter().filter(|(_, origin)| *origin != "o4").count();
    println!("maglev: without o4, {} of 500 keys move, {others} of them from other backends", gone.len());
    // The paper reports a few percent for tables of this size. A hash modulo the number of backends would move 80%.
    assert!(others <= 40, "{others}");
    origins[4].refuse();
    wait_up(&daemon, &origins[4], 0.0);
    let down = mapping(daemon.listener, 500);
    let gone = moved(&all, &down);
    println!("maglev: o4 is down, {} of 500 keys move", gone.len());
    assert!(!gone.is_empty() && gone.iter().all(|(_, origin)| *origin == "o4"), "{gone:?}");
}

/// Sends a request whose key stands where `source` looks for it.
fn send(client: &mut Connection, source: &str, key: Option<&str>) -> Response {
    let value = key.unwrap_or_default();
    let cookie = format!("a=b; room={value}");
    let (target, query) = (format!("/{value}"), format!("/?a=b&room={value}"));
    let (target, header) = match (source, key) {
        (_, None) => ("/", None),
        ("client_ip", _) => ("/", Some(("X-Forwarded-For", value))),
        ("uri", _) => (target.as_str(), None),
        ("{header: X-Room}", _) => ("/", Some(("X-Room", value))),
        ("{cookie: room}", _) => ("/", Some(("Cookie", cookie.as_str()))),
        _ => (query.as_str(), None),
    };
    client.request("GET", target, header.as_slice(), b"").unwrap()
}

/// The origins of 40 keys that stand where `source` looks for them. Each key is sent twice and must not move.
#[track_caller]
fn mapping_by(daemon: &Daemon, source: &str) -> Vec<String> {
    let mut client = daemon.connect();
    let mut round = || -> Vec<String> {
        let keys = (0..40).map(|number| format!("10.1.2.{number}"));
        keys.map(|key| send(&mut client, source, Some(&key)).origin().to_owned()).collect()
    };
    let (first, second) = (round(), round());
    assert_eq!(first, second, "{source}");
    let counts = tally(first.iter().cloned());
    println!("hash_on {source}: 40 keys on {counts:?}");
    assert!(counts.len() > 1, "{source}: {counts:?}");
    first
}

fn hashed_by(source: &str, origins: &[Origin]) -> String {
    let trusted = "trusted_proxies: [127.0.0.0/8]\n";
    format!("{trusted}{}", equal(origins, &format!("policy: consistent_hash\nhash_on: {source}")))
}

#[test]
fn hash_on_decides_which_part_of_a_request_is_its_key() {
    let (lab, origins) = (Lab::new(), origins(3));
    // A text is the same key in every source except `uri`, where it begins with a slash.
    let sources = ["client_ip", "{header: X-Room}", "{cookie: room}", "{query: room}", "uri"];
    let of = |source: &&str| {
        let daemon = lab.start(&hashed_by(source, &origins));
        let mapping = mapping_by(&daemon, source);
        // The other parts of the request do not matter.
        let mut client = daemon.connect();
        let other = sources[usize::from(*source == sources[0])];
        let elsewhere = (0..40).map(|number| format!("10.1.3.{number}"));
        let elsewhere = elsewhere.map(|key| send(&mut client, other, Some(&key)).origin().to_owned());
        let spread = tally(elsewhere).len();
        match *source {
            "client_ip" | "uri" => assert_eq!(spread, 1, "{source}, sent with {other}"),
            _ => assert_eq!(spread, 3, "{source}, sent with {other}: without a key, round robin applies"),
        }
        mapping
    };
    let mappings: Vec<_> = sources.iter().map(of).collect();
    assert!(mappings[..4].windows(2).all(|pair| pair[0] == pair[1]), "{mappings:?}");
    assert_ne!(mappings[4], mappings[0]);
}

#[test]
fn client_ip_ignores_x_forwarded_for_of_an_untrusted_peer() {
    let (lab, origins) = (Lab::new(), origins(3));
    let daemon = lab.start(&equal(&origins, "policy: consistent_hash\nhash_on: client_ip"));
    let mut client = daemon.connect();
    let names = (0..40)
        .map(|number| send(&mut client, "client_ip", Some(&format!("10.1.2.{number}"))).origin().to_owned());
    let counts = tally(names);
    println!("hash_on client_ip without trusted proxies: 40 addresses on {counts:?}");
    assert_eq!(counts.len(), 1, "{counts:?}");
}

#[test]
fn requests_without_a_key_fall_back_to_round_robin_and_are_counted() {
    let (lab, origins) = (Lab::new(), origins(3));
    for source in ["{header: X-Room}", "{cookie: room}", "{query: room}"] {
        for policy in ["consistent_hash", "maglev"] {
            let more = format!("policy: {policy}\nhash_on: {source}");
            let daemon = lab.start(&equal(&origins, &more));
            let mut client = daemon.connect();
            let missing = || daemon.metric("lb_hash_keys_missing_total", &["pool=\"web\""]);
            assert_eq!(send(&mut client, source, Some("x")).status, 200);
            assert_eq!(missing(), 0.0);
            let mut names: Vec<_> =
                (0..27).map(|_| send(&mut client, source, None).origin().to_owned()).collect();
            // An empty key counts as no key.
            names.extend((0..3).map(|_| send(&mut client, source, Some("")).origin().to_owned()));
            let counts = tally(names);
            println!("{policy} on {source}: 30 requests without a key on {counts:?}, {} counted", missing());
            assert!(counts.len() == 3 && counts.iter().all(|(_, count)| *count == 10), "{counts:?}");
            assert_eq!(missing(), 30.0);
        }
    }
}

/// Sends 24 requests with one key, and returns the requests that each origin holds after each of them.
fn held_with_one_key(more: &str) -> Vec<Vec<u64>> {
    let (lab, origins) = (Lab::new(), origins(4));
    let daemon = lab.start(&equal(&origins, more));
    let gates = close_gates(&origins);
    let mut clients = Vec::new();
    let mut one = |_| {
        clients.extend(hold(&daemon, &origins, 1, "/?k=popular"));
        working(&origins)
    };
    let steps: Vec<_> = (0..24).map(&mut one).collect();
    gates.iter().for_each(Gate::open);
    for client in &mut clients {
        assert_eq!(client.response("GET").unwrap().status, 200);
    }
    steps
}

#[test]
fn bounded_load_spreads_a_popular_key() {
    for policy in ["consistent_hash", "maglev"] {
        let unbounded = held_with_one_key(&hash(policy)).pop().unwrap();
        println!("{policy}: 24 held requests with one key are {unbounded:?}");
        assert_eq!(tally(unbounded), [(0, 3), (24, 1)]);
        for percent in [150, 200] {
            let steps = held_with_one_key(&format!("{}\nbounded_load: {percent}", hash(policy)));
            for (held, total) in steps.iter().zip(1u64..) {
                // The bound is this percentage of a quarter of all requests, rounded up.
                let bound = (percent * total).div_ceil(400);
                assert!(held.iter().all(|held| *held <= bound), "{held:?} with a bound of {bound}");
            }
            let (last, bound) = (&steps[23], (percent * 24) / 400);
            println!("{policy}, bounded_load {percent}: 24 held requests are {last:?}, the bound is {bound}");
            assert_eq!(last.iter().max(), Some(&bound), "the key fills its backends to the bound");
        }
    }
}

#[test]
fn bounded_load_holds_when_requests_come_all_at_once() {
    let (lab, origins) = (Lab::new(), origins(4));
    let more = format!("{}\nbounded_load: 101", hash("consistent_hash"));
    let daemon = lab.start(&format!("threads: 4\n{}", equal(&origins, &more)));
    let gates = close_gates(&origins);
    let mut clients: Vec<_> = (0..200).map(|_| daemon.connect()).collect();
    thread::scope(|scope| {
        for some in clients.chunks_mut(25) {
            let request = head_bytes("GET", "/?k=popular", &[], 0);
            scope.spawn(move || some.iter_mut().for_each(|client| client.send(&request).unwrap()));
        }
    });
    wait::until(LONG, "all requests are held", || working(&origins).iter().sum::<u64>() == 200);
    println!("bounded_load 101: 200 requests at once are {:?}, the bound is 51", working(&origins));
    assert!(working(&origins).iter().all(|held| *held <= 51));
    gates.iter().for_each(Gate::open);
    for client in &mut clients {
        assert_eq!(client.response("GET").unwrap().status, 200);
    }
}

// ===== sessions =====

/// One response to a client, with the session cookie that it sets.
pub(crate) struct Visit {
    pub(crate) status: u16,
    pub(crate) origin: String,
    pub(crate) set_cookie: Option<String>,
}

impl Visit {
    #[track_caller]
    pub(crate) fn pay(daemon: &View, cookie: Option<&str>) -> Self {
        Self::pay_with(daemon, &cookie.map(|cookie| ("Cookie", cookie)).into_iter().collect::<Vec<_>>())
    }

    #[track_caller]
    fn pay_with(daemon: &View, headers: &[(&str, &str)]) -> Self {
        let response = daemon.connect().request("GET", "/", headers, b"").unwrap();
        let cookies = response.head.all("set-cookie");
        assert!(cookies.len() <= 1, "{cookies:?}");
        let set_cookie = cookies.first().map(|cookie| (*cookie).to_owned());
        Self { status: response.status, origin: response.origin().to_owned(), set_cookie }
    }

    /// The name and the value of the cookie, as a client sends them.
    #[track_caller]
    pub(crate) fn cookie(&self) -> String {
        let set = self.set_cookie.as_ref().expect("the response sets a cookie");
        set.split(';').next().unwrap_or_default().to_owned()
    }
}

const STICKY: &str = "sticky: {cookie: lb_session}";

/// One session cookie for each origin. Sends requests without a cookie until each origin has set one.
#[track_caller]
pub(crate) fn cookies(daemon: &View, origins: &[Origin]) -> Vec<String> {
    let mut cookies = BTreeMap::new();
    wait::until(LONG, "there is a cookie for each origin", || {
        let visit = Visit::pay(daemon, None);
        cookies.insert(visit.origin.clone(), visit.cookie());
        cookies.len() == origins.len()
    });
    origins.iter().map(|origin| cookies[origin.name()].clone()).collect()
}

/// Asserts that every session still reaches its origin, and that no response sets a cookie again.
#[track_caller]
pub(crate) fn assert_sessions_stay(what: &str, daemon: &View, cookies: &[String]) {
    let mut visits = 0;
    for _ in 0..5 {
        for (number, cookie) in cookies.iter().enumerate() {
            let visit = Visit::pay(daemon, Some(cookie));
            assert_eq!((visit.origin, visit.set_cookie), (format!("o{number}"), None), "{what}");
            visits += 1;
        }
    }
    println!("{what}: {visits} of {visits} visits reach the backend of the cookie, 0 cookies set");
}

#[test]
fn a_session_cookie_has_the_documented_attributes() {
    let (lab, origins) = (Lab::new(), origins(2));
    let trusted = "trusted_proxies: [127.0.0.0/8]\n";
    let https = [("X-Forwarded-Proto", "https")];
    for (head, ttl, age, secure) in [
        (trusted, "", "", "; Secure"),
        (trusted, ", ttl: 1h", "; Max-Age=3600", "; Secure"),
        ("", ", ttl: 90s", "; Max-Age=90", ""),
    ] {
        let sticky = format!("sticky: {{cookie: my_session{ttl}}}");
        let daemon = lab.start(&format!("{head}{}", equal(&origins, &sticky)));
        for (headers, secure) in [(&https[..0], ""), (&https[..], secure)] {
            let set = Visit::pay_with(&daemon, headers).set_cookie.unwrap();
            println!("sticky{ttl}, {headers:?}, trusted: {}: {set}", !head.is_empty());
            let (pair, attributes) = set.split_once(';').unwrap();
            let value = pair.strip_prefix("my_session=").unwrap();
            assert!(value.len() == 32 && value.bytes().all(|byte| byte.is_ascii_hexdigit()), "{value}");
            assert_eq!(attributes, format!(" Path=/; HttpOnly; SameSite=Lax{age}{secure}"));
        }
    }
    let without = lab.start(&equal(&origins, ""));
    assert_eq!(Visit::pay(&without, None).set_cookie, None);
}

#[test]
fn a_session_cookie_is_set_once_without_a_ttl_and_by_every_response_with_one() {
    let (lab, origins) = (Lab::new(), origins(2));
    for (sticky, renewed) in [(STICKY, false), ("sticky: {cookie: lb_session, ttl: 1h}", true)] {
        let daemon = lab.start(&equal(&origins, sticky));
        let first = Visit::pay(&daemon, None);
        let more: Vec<_> = (0..10).map(|_| Visit::pay(&daemon, Some(&first.cookie()))).collect();
        let set = more.iter().filter(|visit| visit.set_cookie.is_some()).count();
        println!("{sticky}: {set} of 10 further responses set the cookie");
        assert_eq!(set, if renewed { 10 } else { 0 });
        assert!(more.iter().all(|visit| visit.origin == first.origin));
        assert!(more.iter().all(|visit| visit.set_cookie.is_none() || visit.set_cookie == first.set_cookie));
    }
}

/// Encodes bytes as base64 (RFC 4648) without padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let three = |group: &[u8]| {
        let bits = (0..3).fold(0, |bits, at| bits << 8 | usize::from(group.get(at).copied().unwrap_or(0)));
        let digits = [18, 12, 6, 0].map(|shift| char::from(DIGITS[bits >> shift & 63]));
        digits[..=group.len()].iter().collect::<String>()
    };
    bytes.chunks(3).map(three).collect()
}

/// The forms in which a cookie might reveal parts of an address.
fn spellings(address: SocketAddr) -> Vec<(&'static str, String)> {
    let SocketAddr::V4(v4) = address else { panic!("the origins of this test are IPv4") };
    let (octets, port) = (v4.ip().octets(), address.port());
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let reversed: Vec<u8> = octets.iter().rev().copied().collect();
    let ports = [port.to_be_bytes(), port.to_le_bytes()];
    vec![
        ("IP", v4.ip().to_string()),
        ("port", port.to_string()),
        ("IP in hex", hex(&octets)),
        ("IP in hex, reversed", hex(&reversed)),
        ("port in hex", hex(&ports[0])),
        ("port in hex, reversed", hex(&ports[1])),
        ("IP as a number", u32::from_be_bytes(octets).to_string()),
        ("IP as a number, reversed", u32::from_le_bytes(octets).to_string()),
        ("address in base64", base64(address.to_string().as_bytes())),
        ("IP in base64", base64(v4.ip().to_string().as_bytes())),
        ("octets in base64", base64(&octets)[..5].to_owned()),
        ("address in hex", hex(address.to_string().as_bytes())),
    ]
}

#[test]
fn a_session_cookie_reveals_no_address() {
    let (lab, origins) = (Lab::new(), origins(8));
    assert_eq!(base64(b"Man") + &base64(b"Ma") + &base64(b"M"), "TWFuTWETQ");
    let daemon = lab.start(&equal(&origins, STICKY));
    let cookies = cookies(&daemon, &origins);
    let mut found = BTreeMap::<&str, usize>::new();
    for (origin, cookie) in origins.iter().zip(&cookies) {
        let value = cookie.strip_prefix("lb_session=").unwrap();
        for (spelling, text) in spellings(origin.address) {
            let is_there = value.to_lowercase().contains(&text.to_lowercase());
            *found.entry(spelling).or_default() += usize::from(is_there);
        }
    }
    println!("of 8 cookies, an address is found in: {found:?}");
    // By chance, four given hexadecimal digits occur in one of 2000 cookies, but never in half of them.
    assert!(found.values().all(|count| *count < 4), "{found:?}");
    assert_eq!(tally(cookies).len(), 8, "each backend has its own cookie");
}

#[test]
fn sessions_stay_under_every_policy_after_a_restart_and_on_another_instance() {
    let (lab, other, origins) = (Lab::new(), Lab::new(), origins(3));
    let mut first = lab.start(&equal(&origins, STICKY));
    let cookies = cookies(&first, &origins);
    assert_sessions_stay("round_robin", &first, &cookies);
    assert_eq!(first.stop(), Some(0));
    assert_sessions_stay("after a restart", &lab.start(&equal(&origins, STICKY)), &cookies);
    // Neither the order of the backends nor their weights affect sessions.
    let backends: Vec<_> = origins.iter().rev().map(|origin| (origin, "weight: 3")).collect();
    let instance = other.start(&pool_with(&backends, STICKY));
    assert_sessions_stay("another instance", &instance, &cookies);
    for policy in ["random", "least_request", "peak_ewma", "consistent_hash", "maglev"] {
        let daemon = lab.start(&equal(&origins, &format!("policy: {policy}\n{STICKY}")));
        assert_sessions_stay(policy, &daemon, &cookies);
    }
}

#[test]
fn a_session_moves_when_its_backend_is_down_and_does_not_move_back() {
    let (lab, mut origins) = (Lab::new(), origins(3));
    let daemon = lab.start(&equal(&origins, &format!("{STICKY}\n{CHECKED}")));
    let cookies = cookies(&daemon, &origins);
    origins[0].refuse();
    wait_up(&daemon, &origins[0], 0.0);
    let moved = Visit::pay(&daemon, Some(&cookies[0]));
    println!("o0 is down: its session goes to {} with {:?}", moved.origin, moved.set_cookie);
    assert!(moved.status == 200 && moved.origin != "o0");
    assert_ne!(moved.cookie(), cookies[0]);
    for cookie in &cookies[1..] {
        assert_eq!(Visit::pay(&daemon, Some(cookie)).set_cookie, None);
    }
    origins[0].come_back();
    wait_up(&daemon, &origins[0], 1.0);
    for _ in 0..5 {
        let visit = Visit::pay(&daemon, Some(&moved.cookie()));
        assert_eq!((visit.origin, visit.set_cookie), (moved.origin.clone(), None));
    }
}

#[test]
fn a_session_moves_when_its_backend_is_ejected() {
    let (lab, origins) = (Lab::new(), origins(3));
    let more = format!("{STICKY}\nretries: {{attempts: 0}}\noutlier_detection: {{consecutive_failures: 2}}");
    let daemon = lab.start(&equal(&origins, &more));
    let cookies = cookies(&daemon, &origins);
    origins[0].behave(Behaviour::Respond(CannedResponse::status(503, "broken")));
    let visits: Vec<_> = (0..3).map(|_| Visit::pay(&daemon, Some(&cookies[0]))).collect();
    let seen: Vec<_> = visits.iter().map(|visit| (visit.status, visit.origin.as_str())).collect();
    println!("o0 fails twice and is ejected: {seen:?}");
    assert_eq!(seen[..2], [(503, "o0"), (503, "o0")]);
    assert!(seen[2].0 == 200 && seen[2].1 != "o0", "{seen:?}");
    assert!(visits[..2].iter().all(|visit| visit.set_cookie.is_none()));
    let again = Visit::pay(&daemon, Some(&visits[2].cookie()));
    assert_eq!((again.origin, again.set_cookie), (visits[2].origin.clone(), None));
}

#[test]
fn a_forged_session_cookie_is_replaced() {
    let (lab, origins) = (Lab::new(), origins(3));
    let daemon = lab.start(&equal(&origins, STICKY));
    let cookies = cookies(&daemon, &origins);
    let id = cookies[0].strip_prefix("lb_session=").unwrap();
    let (upper, longer, shorter) = (id.to_uppercase(), format!("{id}0"), &id[1..]);
    let (zeros, long) = ("0".repeat(32), "a".repeat(6000));
    let address = origins[0].address.to_string();
    // A cookie for this backend in another pool has this form.
    let foreign: String = id.chars().map(|digit| if digit == '0' { '1' } else { '0' }).collect();
    let forged =
        ["", "x", &longer, shorter, &zeros, &long, &foreign, &address, "%00", "\"", "=;=", "\u{e4}", "o0"];
    let all = forged.iter().map(|value| format!("lb_session={value}"));
    let all = all.chain([format!("LB_SESSION={id}"), format!("lb_sessionx={id}"), "lb_session".to_owned()]);
    let mut origins_of_forged = Vec::new();
    for cookie in all.chain((upper != id).then(|| format!("lb_session={upper}"))) {
        let visit = Visit::pay(&daemon, Some(&cookie));
        assert_eq!(visit.status, 200, "{cookie}");
        let again = Visit::pay(&daemon, Some(&visit.cookie()));
        assert_eq!((&again.origin, again.set_cookie), (&visit.origin, None), "{cookie}");
        origins_of_forged.push(visit.origin);
    }
    println!("forged cookies are replaced, and their requests go to {:?}", tally(origins_of_forged));
    // A valid cookie is found among others and after an invalid one of the same name.
    let mixed = format!("a=b; lb_session=x; {}; c=d", cookies[2]);
    let visit = Visit::pay(&daemon, Some(&mixed));
    assert_eq!((visit.origin.as_str(), visit.set_cookie), ("o2", None));
}

#[test]
fn a_session_whose_backend_is_full_goes_elsewhere_and_comes_back() {
    let (lab, origins) = (Lab::new(), origins(2));
    let daemon = lab.start(&equal(&origins, &format!("{STICKY}\nlimits: {{max_requests: 1}}")));
    let cookies = cookies(&daemon, &origins);
    let gates = close_gates(&origins[..1]);
    let mut busy = daemon.connect();
    busy.send(head_bytes("GET", "/", &[("Cookie", &cookies[0])], 0)).unwrap();
    wait::until(LONG, "o0 is full", || origins[0].working() == 1);
    let visit = Visit::pay(&daemon, Some(&cookies[0]));
    println!("o0 is full: its session goes to {} with {:?}", visit.origin, visit.set_cookie);
    assert_eq!((visit.origin.as_str(), visit.set_cookie), ("o1", None));
    gates[0].open();
    busy.response("GET").unwrap();
    wait::until(LONG, "the session is back on o0", || {
        let visit = Visit::pay(&daemon, Some(&cookies[0]));
        assert_eq!(visit.set_cookie, None);
        visit.origin == "o0"
    });
}

// ===== backups and slow starts =====

#[test]
fn backups_are_used_only_when_no_other_backend_is_available() {
    let (lab, mut origins) = (Lab::new(), origins(3));
    let backends = [(&origins[0], ""), (&origins[1], ""), (&origins[2], "backup: true")];
    let daemon = lab.start(&pool_with(&backends, CHECKED));
    assert!(shares("all are up", &daemon, 20).values().eq([&10, &10]));
    assert_eq!(origins[2].requests(), 0);
    origins[0].refuse();
    wait_up(&daemon, &origins[0], 0.0);
    assert_eq!(share_of(&shares("o0 is down", &daemon, 20), &origins[1]), 20);
    origins[1].refuse();
    wait_up(&daemon, &origins[1], 0.0);
    assert_eq!(share_of(&shares("o0 and o1 are down", &daemon, 20), &origins[2]), 20);
    origins[0].come_back();
    wait_up(&daemon, &origins[0], 1.0);
    assert_eq!(share_of(&shares("o0 is back", &daemon, 20), &origins[0]), 20);
}

#[test]
fn slow_start_ramps_a_recovered_backend_up_from_a_tenth_of_its_share() {
    const WINDOW: f64 = 8.0;
    let (lab, mut origins) = (Lab::new(), origins(2));
    let more = format!("slow_start: {WINDOW}s\n{CHECKED}");
    let daemon = lab.start(&equal(&origins, &more));
    let begun = shares("slow_start: after the start of the process", &daemon, 40);
    assert!(begun.values().eq([&20, &20]), "{begun:?}");
    origins[1].refuse();
    wait_up(&daemon, &origins[1], 0.0);
    // Slow start begins after the origin listens again, so this instant gives an upper bound of the share.
    let listens = Instant::now();
    origins[1].come_back();
    wait_up(&daemon, &origins[1], 1.0);
    let first = shares("slow_start: when o1 is back", &daemon, 400);
    let largest = 0.1 + 0.9 * listens.elapsed().as_secs_f64() / WINDOW;
    // Half of the requests are offered to o1. The bound adds seven standard deviations.
    let bound = 200.0 * largest + 7.0 * (200.0 * largest).sqrt();
    let got = share_of(&first, &origins[1]);
    println!("slow_start: {got} of 400 at {largest:.2} of its share, at most {bound:.0} by chance");
    assert!(got > 0 && (got as f64) < bound, "{got}");
    wait::until(LONG, "o1 has its full share", || {
        tally(served_by(&daemon, 80)).iter().map(|(_, count)| *count).eq([40, 40])
    });
    println!("slow_start: the full share after {:.1?}", listens.elapsed());
    // At half of the window, with a share of 0.55, o1 takes 40 of 40 offers by chance once in 10^10 runs.
    assert!(listens.elapsed().as_secs_f64() > WINDOW / 2.0, "{:?}", listens.elapsed());
}

#[test]
fn without_slow_start_a_recovered_backend_gets_its_full_share_at_once() {
    let (lab, mut origins) = (Lab::new(), origins(2));
    let daemon = lab.start(&equal(&origins, CHECKED));
    origins[1].refuse();
    wait_up(&daemon, &origins[1], 0.0);
    origins[1].come_back();
    wait_up(&daemon, &origins[1], 1.0);
    let first = shares("no slow_start: when o1 is back", &daemon, 400);
    assert!(first.values().eq([&200, &200]), "{first:?}");
}
