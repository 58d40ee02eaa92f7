//! The certificate that a pool presents to backends that demand one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;
use tests::daemon::{View, path_str};
use tests::skip::unless_root;
use tests::wait::{self, LONG};
use tests::{Authority, Certified, Daemon, GrpcOrigin, Lab, Origin, Serving, Signal};

use crate::pool;

/// Authorities of servers and of clients, with their files in a lab.
struct Pki {
    lab: Lab,
    servers: Authority,
    clients: Authority,
}

impl Pki {
    fn new() -> Self {
        let (lab, servers, clients) = (Lab::new(), Authority::new(), Authority::new());
        servers.write(&lab.path("ca.pem")).unwrap();
        Self { lab, servers, clients }
    }

    /// An origin that demands a certificate of the authority of clients.
    fn origin(&self, name: &str) -> Origin {
        let server = self.servers.certify(&["a.test"]);
        Origin::start_tls(name, server.server_for_clients_of(&self.clients))
    }

    /// Writes the certificate and the key of the pool.
    fn write(&self, certified: &Certified) {
        let (cert, key) = (self.lab.path("client.pem"), self.lab.path("client.key"));
        certified.write(&cert, &key).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// The section `tls`, with these further keys.
    fn tls(&self, more: &str) -> String {
        format!("tls: {{sni: a.test, ca: {}{more}}}", self.lab.path("ca.pem").display())
    }

    fn tls_with_certificate(&self) -> String {
        let (cert, key) = (self.lab.path("client.pem"), self.lab.path("client.key"));
        self.tls(&format!(", client_cert: {}, client_key: {}", cert.display(), key.display()))
    }
}

fn check(kind: &str) -> String {
    format!("health_check: {{type: {kind}, interval: 200ms, fast_interval: 200ms, rise: 1, fall: 1}}")
}

#[track_caller]
fn reload(daemon: &Daemon) -> Value {
    let before = daemon.status()["config"]["last_reload"]["time"].clone();
    daemon.signal(Signal::SIGHUP);
    wait::until_some(LONG, "the daemon has reloaded", || {
        let last = daemon.status()["config"]["last_reload"].clone();
        (!last.is_null() && last["time"] != before).then_some(last)
    })
}

#[track_caller]
fn wait_checked(daemon: &View, backend: &str, up: bool) {
    let result = format!("result=\"{}\"", if up { "pass" } else { "fail" });
    let backend = format!("backend=\"{backend}\"");
    wait::until(LONG, &format!("{backend} has up={up}"), || {
        daemon.metric("lb_health_checks_total", &[&backend, &result]) > 0.0
            && daemon.metric("lb_backend_up", &[&backend]) == f64::from(up)
    });
}

#[test]
fn requests_and_checks_present_the_certificate_of_the_pool() {
    let pki = Pki::new();
    let origin = pki.origin("one");
    let server = pki.servers.certify(&["a.test"]).server_for_clients_of(&pki.clients);
    let grpc = GrpcOrigin::start_tls(&server);
    grpc.set("", Serving::Serving);
    pki.write(&pki.clients.certify(&["lb.test"]));
    for (tls, up) in [(pki.tls_with_certificate(), true), (pki.tls(""), false)] {
        let text = format!(
            "pools:\n  web:\n    backends: [\"{}\"]\n    {tls}\n    panic_threshold: 0\n    {}\n  \
             grpc:\n    backends: [\"{}\"]\n    {tls}\n    {}\n\
             routes: [{{match: {{path: /grpc}}, pool: grpc}}, {{pool: web}}]\n",
            origin.address,
            check("http"),
            grpc.address,
            check("grpc"),
        );
        let mut daemon = pki.lab.start_listening(&text);
        wait_checked(&daemon, &origin.address.to_string(), up);
        wait_checked(&daemon, &grpc.address.to_string(), up);
        assert_eq!(daemon.get("/").unwrap().status, if up { 200 } else { 503 });
        daemon.stop();
    }
}

#[test]
fn a_reload_reads_the_files_again_and_does_not_reuse_connections_with_the_old_certificate() {
    let pki = Pki::new();
    let origin = pki.origin("one");
    pki.write(&pki.clients.certify(&["old.test"]));
    // A connection with TLS stays on its thread.
    let body = format!("threads: 1\n{}", pool(&[&origin], &pki.tls_with_certificate()));
    let daemon = pki.lab.start(&body);
    let connection_of = |target: &str| {
        assert_eq!(daemon.get(target).unwrap().status, 200);
        origin.received(target).connection
    };
    let first = connection_of("/first");
    reload(&daemon);
    assert_eq!(connection_of("/unchanged"), first);

    pki.write(&pki.clients.certify(&["new.test"]));
    let last = reload(&daemon);
    assert_eq!(last["result"], "applied", "{last:#}");
    let renewed = connection_of("/renewed");
    assert!(renewed > first);
    assert_eq!(connection_of("/again"), renewed);

    // A key that belongs to another certificate is rejected, and the daemon continues with the old pair.
    let stranger = Certified::self_signed(&["stranger.test"], false);
    stranger.write(&pki.lab.path("stranger.pem"), &pki.lab.path("client.key")).unwrap();
    let last = reload(&daemon);
    assert_eq!(last["result"], "refused", "{last:#}");
    assert!(last.to_string().contains("does not belong to the certificate"), "{last:#}");
    assert_eq!(connection_of("/kept"), renewed);
}

#[test]
fn a_changed_authority_ends_the_use_of_idle_connections() {
    let pki = Pki::new();
    let origin = Origin::start_tls("one", pki.servers.certify(&["a.test"]).server());
    let daemon = pki.lab.start(&pool(&[&origin], &format!("{}\npanic_threshold: 0", pki.tls(""))));
    assert_eq!(daemon.get("/").unwrap().status, 200);
    pki.clients.write(&pki.lab.path("ca.pem")).unwrap();
    assert_eq!(reload(&daemon)["result"], "applied");
    assert_eq!(
        daemon.get("/").unwrap().status,
        502,
        "the certificate of the backend is not trusted any more"
    );
}

/// With TLS 1.3, the backend ends the connection after the handshake.
#[test]
fn a_request_says_that_the_backend_demands_a_certificate() {
    let pki = Pki::new();
    let origin = pki.origin("one");
    let daemon = pki.lab.start(&pool(&[&origin], &pki.tls("")));
    assert_eq!(daemon.get("/").unwrap().status, 502);
    daemon.logged(&["reason=\"tls\"", "detail=\"the backend demands a client certificate"]);
    assert_eq!(origin.requests(), 0);
}

#[test]
fn no_output_contains_the_private_key() {
    let pki = Pki::new();
    let origin = pki.origin("one");
    pki.write(&pki.clients.certify(&["lb.test"]));
    let body = format!("log_level: trace\n{}", pool(&[&origin], &pki.tls_with_certificate()));
    let config = pki.lab.config(&body);
    let daemon = pki.lab.start_file(&config);
    assert_eq!(daemon.get("/").unwrap().status, 200);
    reload(&daemon);
    let key = fs::read_to_string(pki.lab.path("client.key")).unwrap();
    let secret = key.lines().nth(1).unwrap();
    let printed = pki.lab.run(&["check", "--print", path_str(&config)]);
    assert_eq!(printed.code, Some(0), "{printed:?}");
    assert!(printed.stdout.contains("client.key"), "{printed:?}");
    let outputs =
        [printed.stdout, printed.stderr, daemon.status().to_string(), daemon.log(), daemon.metrics_text()];
    assert!(outputs.iter().all(|output| !output.contains(secret)));
}

/// Runs `check` and returns what it says.
fn checked(lab: &Lab, config: &Path) -> String {
    let finished = lab.run(&["check", path_str(config)]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    finished.stdout + &finished.stderr
}

#[test]
fn the_private_key_is_readable_for_the_user_of_the_daemon_and_for_no_other() {
    let pki = Pki::new();
    let origin = pki.origin("one");
    pki.write(&pki.clients.certify(&["lb.test"]));
    let key = pki.lab.path("client.key");
    let body = pool(&[&origin], &pki.tls_with_certificate());
    let config = pki.lab.config(&body);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let said = checked(&pki.lab, &config);
    assert!(said.contains("LB079") && said.contains("mode 0644 lets other users"), "{said}");
    if unless_root("only root can start a daemon that becomes another user") {
        return;
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(pki.lab.directory(), fs::Permissions::from_mode(0o777)).unwrap();
    let said = checked(&pki.lab, &pki.lab.config(&format!("user: www-data\n{body}")));
    assert!(said.contains("LB077") && said.contains("client.key"), "{said}");
}
