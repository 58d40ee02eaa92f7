//! The choice of a pool for each request by listeners and routes.

use tests::{Connection, Lab, Origin};

use crate::pool;

/// Two origins, `one` and `two`, each of which is the only backend of a pool with the same name.
struct Pools {
    _origins: [Origin; 2],
    yaml: String,
}

impl Pools {
    fn start() -> Self {
        let (one, two) = (Origin::start("one"), Origin::start("two"));
        let pool = |origin: &Origin| {
            let (name, address) = (origin.name(), origin.address);
            format!("  {name}:\n    backends: [\"{address}\"]\n    health_check: {{type: none}}\n")
        };
        let yaml = format!("pools:\n{}{}", pool(&one), pool(&two));
        Self { _origins: [one, two], yaml }
    }

    /// The configuration of the pools with these routes.
    fn routed(&self, routes: &[&str]) -> String {
        let routes: String = routes.iter().map(|route| format!("  - {route}\n")).collect();
        format!("{}routes:\n{routes}", self.yaml)
    }
}

/// Sends a request, and returns the name of the origin that serves it, or the status if none does.
fn served_by(client: &mut Connection, method: &str, target: &str, headers: &[(&str, &str)]) -> String {
    let response = client.request(method, target, headers, b"").unwrap();
    match response.origin() {
        "" => response.status.to_string(),
        name => name.to_owned(),
    }
}

#[test]
fn one_pool_needs_no_route() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.start(&pool(&[&origin], ""));
    assert_eq!(daemon.get("/any/path?query").unwrap().origin(), "one");
}

#[test]
fn the_first_matching_route_wins_and_no_matching_route_is_404() {
    let lab = Lab::new();
    let pools = Pools::start();
    let routes = ["{match: {path_prefix: /a/b}, pool: two}", "{match: {path_prefix: /a}, pool: one}"];
    let daemon = lab.start(&pools.routed(&routes));
    let mut client = daemon.connect();
    assert_eq!(served_by(&mut client, "GET", "/a/b/c", &[]), "two");
    assert_eq!(served_by(&mut client, "GET", "/a/c", &[]), "one");
    let response = daemon.get("/b").unwrap();
    assert_eq!(response.status, 404);
    assert!(response.length < 200, "a short body: {}", response.text());
}

#[test]
fn a_route_that_can_never_match_is_refused() {
    let lab = Lab::new();
    let config =
        lab.config(&Pools::start().routed(&["{pool: one}", "{match: {path_prefix: /a}, pool: two}"]));
    let finished = lab.run(&["check", "-c", tests::daemon::path_str(&config)]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert!((finished.stdout + &finished.stderr).contains("never"));
}

#[test]
fn hosts_match_exactly_or_by_wildcard_without_regard_to_case_and_port() {
    let lab = Lab::new();
    let routes =
        ["{match: {host: api.example.com}, pool: one}", "{match: {host: \"*.example.com\"}, pool: two}"];
    let pools = Pools::start();
    let daemon = lab.start(&pools.routed(&routes));
    let mut client = daemon.connect();
    let mut by_host = |host: &str| served_by(&mut client, "GET", "/", &[("Host", host)]);
    assert_eq!(by_host("api.example.com"), "one");
    assert_eq!(by_host("API.Example.com"), "one");
    assert_eq!(by_host("api.example.com:8080"), "one");
    assert_eq!(by_host("www.example.com"), "two");
    assert_eq!(by_host("example.com"), "404");
    assert_eq!(by_host("example.com.evil.test"), "404");
}

#[test]
fn one_matching_host_and_path_of_several_suffices() {
    let lab = Lab::new();
    let routes = [
        "{match: {host: [api.test, \"*.api.test\"], path: [/a, /b]}, pool: one}",
        "{match: {path_prefix: [/x, /y]}, pool: two}",
    ];
    let pools = Pools::start();
    let daemon = lab.start(&pools.routed(&routes));
    let mut client = daemon.connect();
    let mut by = |host: &str, path: &str| served_by(&mut client, "GET", path, &[("Host", host)]);
    for (host, path) in
        [("api.test", "/a"), ("api.test", "/b"), ("v1.api.test", "/a"), ("v1.API.test", "/b?q")]
    {
        assert_eq!(by(host, path), "one", "{host}{path}");
    }
    assert_eq!(by("other.test", "/a"), "404");
    assert_eq!(by("api.test", "/a/below"), "404");
    for (host, path) in [("api.test", "/x"), ("other.test", "/y/below")] {
        assert_eq!(by(host, path), "two", "{host}{path}");
    }
    let explained = daemon.read("/api/v1/explain?host=other.test&path=/a").unwrap().text();
    assert!(explained.contains("its host is none of api.test, *.api.test"), "{explained}");
    assert!(explained.contains("its path is none of /x…, /y…"), "{explained}");
}

#[test]
fn paths_match_exactly_or_by_prefix_of_whole_segments() {
    let lab = Lab::new();
    let routes = ["{match: {path: /exact}, pool: one}", "{match: {path_prefix: /v1}, pool: two}"];
    let pools = Pools::start();
    let daemon = lab.start(&pools.routed(&routes));
    let mut client = daemon.connect();
    let mut by_path = |path: &str| served_by(&mut client, "GET", path, &[]);
    assert_eq!(by_path("/exact"), "one");
    assert_eq!(by_path("/exact?query"), "one");
    assert_eq!(by_path("/exact/more"), "404");
    assert_eq!(by_path("/v1"), "two");
    assert_eq!(by_path("/v1/users"), "two");
    assert_eq!(by_path("/v2"), "404");
}

#[test]
fn methods_and_headers_match() {
    let lab = Lab::new();
    let routes =
        ["{match: {method: [PUT, DELETE]}, pool: one}", "{match: {header: {X-Canary: \"1\"}}, pool: two}"];
    let pools = Pools::start();
    let daemon = lab.start(&pools.routed(&routes));
    let mut client = daemon.connect();
    assert_eq!(served_by(&mut client, "PUT", "/", &[]), "one");
    assert_eq!(served_by(&mut client, "DELETE", "/", &[]), "one");
    assert_eq!(served_by(&mut client, "GET", "/", &[]), "404");
    assert_eq!(served_by(&mut client, "GET", "/", &[("x-canary", "1")]), "two");
    assert_eq!(served_by(&mut client, "GET", "/", &[("x-canary", "2")]), "404");
}

#[test]
fn all_conditions_of_a_route_must_match() {
    let lab = Lab::new();
    let routes = ["{match: {host: a.test, path_prefix: /v1, method: [GET]}, pool: one}", "{pool: two}"];
    let pools = Pools::start();
    let daemon = lab.start(&pools.routed(&routes));
    let mut client = daemon.connect();
    assert_eq!(served_by(&mut client, "GET", "/v1", &[("Host", "a.test")]), "one");
    assert_eq!(served_by(&mut client, "POST", "/v1", &[("Host", "a.test")]), "two");
    assert_eq!(served_by(&mut client, "GET", "/v2", &[("Host", "a.test")]), "two");
    assert_eq!(served_by(&mut client, "GET", "/v1", &[("Host", "b.test")]), "two");
}

#[test]
fn tcp_and_unix_listeners_have_their_own_routes() {
    let lab = Lab::new();
    let pools = Pools::start();
    let socket = lab.path("private.sock");
    let listeners = format!(
        "listeners:\n  - {{address: \"{}\", name: public}}\n  - {{address: \"unix:{}\", name: private}}\n",
        lab.listener,
        socket.display()
    );
    let routes = ["{match: {listener: public}, pool: one}", "{match: {listener: private}, pool: two}"];
    let daemon = lab.start_file(&lab.config_with(&listeners, &pools.routed(&routes)));
    assert_eq!(daemon.get("/").unwrap().origin(), "one");
    assert_eq!(Connection::open_unix(&socket).unwrap().get("/").unwrap().origin(), "two");
}
