//! Which pool a request goes to: listeners and routes.

use tests::{Connection, Lab, Origin};

use crate::pool;

/// Two origins, `one` and `two`, each the only backend of a pool of its name.
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

    /// The pools with these routes, a line each.
    fn routed(&self, routes: &[&str]) -> String {
        let routes: String = routes.iter().map(|route| format!("  - {route}\n")).collect();
        format!("{}routes:\n{routes}", self.yaml)
    }
}

/// The origin that answers, or the status when none does.
fn answered_by(client: &mut Connection, method: &str, target: &str, headers: &[(&str, &str)]) -> String {
    let answer = client.request(method, target, headers, b"").unwrap();
    match answer.origin() {
        "" => answer.status.to_string(),
        name => name.to_owned(),
    }
}

#[test]
fn with_one_pool_no_route_is_needed() {
    let lab = Lab::new();
    let origin = Origin::start("one");
    let daemon = lab.start(&pool(&[&origin], ""));
    assert_eq!(daemon.get("/any/path?query").unwrap().origin(), "one");
}

#[test]
fn the_first_route_that_matches_wins_and_no_route_is_404() {
    let lab = Lab::new();
    let pools = Pools::start();
    let routes = ["{match: {path_prefix: /a/b}, pool: two}", "{match: {path_prefix: /a}, pool: one}"];
    let daemon = lab.start(&pools.routed(&routes));
    let mut client = daemon.connect();
    assert_eq!(answered_by(&mut client, "GET", "/a/b/c", &[]), "two");
    assert_eq!(answered_by(&mut client, "GET", "/a/c", &[]), "one");
    let answer = daemon.get("/b").unwrap();
    assert_eq!(answer.status, 404);
    assert!(answer.length < 200, "a short body: {}", answer.text());
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
    let mut by_host = |host: &str| answered_by(&mut client, "GET", "/", &[("Host", host)]);
    assert_eq!(by_host("api.example.com"), "one");
    assert_eq!(by_host("API.Example.com"), "one");
    assert_eq!(by_host("api.example.com:8080"), "one");
    assert_eq!(by_host("www.example.com"), "two");
    assert_eq!(by_host("example.com"), "404");
    assert_eq!(by_host("example.com.evil.test"), "404");
}

#[test]
fn one_of_several_hosts_and_paths_is_enough() {
    let lab = Lab::new();
    let routes = [
        "{match: {host: [api.test, \"*.api.test\"], path: [/a, /b]}, pool: one}",
        "{match: {path_prefix: [/x, /y]}, pool: two}",
    ];
    let pools = Pools::start();
    let daemon = lab.start(&pools.routed(&routes));
    let mut client = daemon.connect();
    let mut by = |host: &str, path: &str| answered_by(&mut client, "GET", path, &[("Host", host)]);
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
    let mut by_path = |path: &str| answered_by(&mut client, "GET", path, &[]);
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
    assert_eq!(answered_by(&mut client, "PUT", "/", &[]), "one");
    assert_eq!(answered_by(&mut client, "DELETE", "/", &[]), "one");
    assert_eq!(answered_by(&mut client, "GET", "/", &[]), "404");
    assert_eq!(answered_by(&mut client, "GET", "/", &[("x-canary", "1")]), "two");
    assert_eq!(answered_by(&mut client, "GET", "/", &[("x-canary", "2")]), "404");
}

#[test]
fn all_that_a_route_names_must_match() {
    let lab = Lab::new();
    let routes = ["{match: {host: a.test, path_prefix: /v1, method: [GET]}, pool: one}", "{pool: two}"];
    let pools = Pools::start();
    let daemon = lab.start(&pools.routed(&routes));
    let mut client = daemon.connect();
    assert_eq!(answered_by(&mut client, "GET", "/v1", &[("Host", "a.test")]), "one");
    assert_eq!(answered_by(&mut client, "POST", "/v1", &[("Host", "a.test")]), "two");
    assert_eq!(answered_by(&mut client, "GET", "/v2", &[("Host", "a.test")]), "two");
    assert_eq!(answered_by(&mut client, "GET", "/v1", &[("Host", "b.test")]), "two");
}

#[test]
fn several_listeners_on_tcp_and_unix_sockets_have_routes_of_their_own() {
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
