//! Tests with real servers and clients: Debian's nginx, `curl` and `wrk`.

use tests::tools::{Server, curl, run};
use tests::{Authority, Lab};

use crate::{pool_of, tally};

/// The bodies that `curl` gets for `count` requests.
#[track_caller]
fn curl_bodies(lab: &Lab, count: usize) -> Vec<String> {
    let url = format!("http://{}/?[1-{count}]", lab.listener);
    let output = curl(&["--fail", &url]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn plain_nginx_backends_share_the_requests_of_curl() {
    let lab = Lab::new();
    let (one, two) = (Server::nginx(&lab, "one", None), Server::nginx(&lab, "two", None));
    let more = "health_check: {type: http, interval: 1s}";
    let daemon = lab.start(&pool_of(&[one.address, two.address], more));
    let bodies = curl_bodies(&lab, 20);
    let saw = |name: &str| format!("{name} saw {}", lab.listener);
    assert_eq!(tally(bodies), [(saw("one"), 10), (saw("two"), 10)], "{}", daemon.log());
}

#[test]
fn tls_nginx_backends_are_verified_by_name() {
    let lab = Lab::new();
    let authority = Authority::new();
    let ca = lab.path("ca.pem");
    authority.write(&ca).unwrap();
    let one = Server::nginx(&lab, "one", Some((&authority, "one.one.one.one")));
    let two = Server::nginx(&lab, "two", Some((&authority, "one.one.one.one")));
    let tls =
        format!("tls: {{sni: one.one.one.one, verify: true, ca: {}}}\nhost: one.one.one.one", ca.display());
    let more = format!("{tls}\nhealth_check: {{type: http, interval: 1s}}");
    let daemon = lab.start(&pool_of(&[one.address, two.address], &more));
    let bodies = tally(curl_bodies(&lab, 20));
    let saw = |name: &str| format!("{name} saw one.one.one.one");
    assert_eq!(bodies, [(saw("one"), 10), (saw("two"), 10)], "{}", daemon.log());
}

#[test]
fn a_stopped_nginx_gets_no_requests() {
    let lab = Lab::new();
    let (one, two) = (Server::nginx(&lab, "one", None), Server::nginx(&lab, "two", None));
    let more = "health_check: {type: tcp, interval: 500ms, fall: 1}";
    let daemon = lab.start(&pool_of(&[one.address, two.address], more));
    drop(two);
    daemon.logged(&["web", "1 check failed"]);
    let bodies = curl_bodies(&lab, 10);
    assert!(bodies.iter().all(|body| body.starts_with("one")), "{bodies:?}");
}

#[test]
fn wrk_gets_no_errors() {
    let lab = Lab::new();
    let (one, two) = (Server::nginx(&lab, "one", None), Server::nginx(&lab, "two", None));
    let daemon = lab.start(&pool_of(&[one.address, two.address], ""));
    let output = run("wrk", &["-t1", "-c8", "-d2s", &format!("http://{}/", lab.listener)]);
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{report}");
    assert!(!report.contains("Socket errors") && !report.contains("Non-2xx"), "{report}");
    let requests =
        report.lines().find_map(|line| line.trim().split_once(" requests in")?.0.parse::<u64>().ok());
    let requests = requests.unwrap_or_else(|| panic!("no count in {report}"));
    assert!(requests > 100, "{report}");
    daemon.settle();
    let counted = daemon.metric("lb_requests_total", &["code=\"200\""]);
    assert!(counted >= requests as f64, "the daemon counted {counted} requests, but wrk got {requests}");
    println!("{report}");
}
