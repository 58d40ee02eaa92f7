//! Runs every valid configuration of the fixtures, with real backends of the kind that its pools need.
//!
//! A fixture may load and still describe something that can never work, which no test of the configuration alone finds.
//! Here an origin replaces each address of a backend. The origin uses TLS if the pool does, with a certificate that the
//! pool should accept, and gRPC if the health check does. Then every backend must be up, and requests must succeed.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::daemon::{View, path_str};
use tests::wait::{self, LONG};
use tests::{Authority, Certified, GrpcOrigin, Lab, Origin, Serving, UnixBridge, ports};

/// The prefixes of all backend addresses in the fixtures.
const PLACEHOLDERS: [&str; 4] = ["10.0.0.", "localhost:", "LocalHost:", SOCKET];

/// The beginning of the Unix sockets of backends in the fixtures.
const SOCKET: &str = "unix:/run/app";

/// The ports of listeners that have no IP address in the fixtures.
const PORTS: [&str; 3] = [":8080", ":8081", ":8082"];

/// The origins that replace the addresses of a fixture. They run as long as the daemon.
#[derive(Default)]
struct Origins {
    http: Vec<Origin>,
    grpc: Vec<GrpcOrigin>,
    sockets: Vec<UnixBridge>,
    directory: PathBuf,
}

/// The certificate authorities that sign the certificates of origins.
struct Authorities {
    trusted: Authority,
    unknown: Authority,
}

#[test]
fn every_valid_configuration_runs_with_backends_of_its_kind() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/config/valid");
    let entries = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|end| end == "yaml")).collect();
    assert!(files.len() >= 15, "only {} fixtures", files.len());
    for file in files {
        run(&file);
    }
}

#[track_caller]
fn run(fixture: &Path) {
    let lab = Lab::new();
    let mut origins = Origins { directory: lab.directory().to_owned(), ..Origins::default() };
    let authorities = Authorities { trusted: Authority::new(), unknown: Authority::new() };
    authorities.trusted.write(&lab.path("ca.pem")).unwrap();
    let client = authorities.trusted.certify(&["client.example"]);
    client.write(&lab.path("client.pem"), &lab.path("client.key")).unwrap();
    fs::set_permissions(lab.path("client.key"), fs::Permissions::from_mode(0o600)).unwrap();
    let text = fs::read_to_string(fixture).unwrap();
    let paths = requests(&text);
    let text = origins.put_into(&with_addresses(&lab, &text), &authorities);
    let text = with_files(&lab, &text);
    let config = lab.write("conf.yaml", &text);
    let name = fixture.file_name().unwrap().to_string_lossy();
    match text.contains("daemon: true") {
        true => assert_serves(&lab.daemonize_file(&config, &[]), &paths, &name, &origins),
        false => assert_serves(&lab.start_file(&config), &paths, &name, &origins),
    }
}

#[track_caller]
fn assert_serves(daemon: &View, paths: &[String], name: &str, origins: &Origins) {
    let backends = |status: &Value| -> Vec<Value> {
        let pools = status["pools"].as_array().cloned().unwrap_or_default();
        pools.iter().flat_map(|pool| pool["backends"].as_array().cloned().unwrap_or_default()).collect()
    };
    let up = || backends(&daemon.status()).iter().all(|backend| backend["state"] == "up");
    assert!(wait::poll(LONG, || up().then_some(())).is_some(), "{name}: {:#}", daemon.status());
    for path in paths {
        let response = daemon.get(path).unwrap();
        assert_eq!(response.status, 200, "{name}, {path}:\n{}", daemon.log());
    }
    let requests: u64 = origins.http.iter().map(Origin::requests).sum();
    assert!(requests >= paths.len() as u64, "{name}: {requests} requests for {paths:?}");
}

/// The paths that lead to the pools of a fixture. Routes that match on more than a path have none. A pool with gRPC
/// checks on the port of its traffic has none either, since its origins do not speak HTTP/1.
fn requests(text: &str) -> Vec<String> {
    let pools = blocks(text);
    let is_http = |pool: &str| {
        let block = pools.iter().find(|block| block.trim_start().starts_with(&format!("{pool}:")));
        block.is_none_or(|block| !block.contains("type: grpc") || block.contains("port: "))
    };
    let routes = text.split_once("routes:").map_or("  - pool: web", |(_, routes)| routes);
    let routes = routes.lines().filter(|line| line.contains("pool: ") && !line.contains("listener: "));
    let routes = routes.filter(|line| value(line, "pool: ").is_some_and(is_http));
    let path = |line: &str| value(line, "path: ").or_else(|| value(line, "path_prefix: ")).map(str::to_owned);
    routes
        .filter_map(|line| path(line).or_else(|| line.contains("- pool: ").then(|| "/".to_owned())))
        .collect()
}

/// The word that follows `key`.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(key)?;
    rest.split([',', '}', '\n']).next().map(str::trim)
}

/// Splits a fixture into pieces with at most one pool each.
fn blocks(text: &str) -> Vec<String> {
    text.split_inclusive('\n').fold(Vec::new(), |mut blocks: Vec<String>, line| {
        let is_name = line.starts_with("  ") && !line.starts_with("   ") && !line.starts_with("  -");
        match blocks.last_mut().filter(|_| !is_name) {
            Some(block) => block.push_str(line),
            None => blocks.push(line.to_owned()),
        }
        blocks
    })
}

// === backends ===

impl Origins {
    fn put_into(&mut self, text: &str, authorities: &Authorities) -> String {
        blocks(text).iter().map(|block| self.put_into_pool(block, authorities)).collect()
    }

    fn put_into_pool(&mut self, block: &str, authorities: &Authorities) -> String {
        let checked_port = value(block, "port: ").filter(|_| block.contains("type: grpc"));
        let is_grpc = checked_port.is_none() && block.contains("type: grpc");
        let (mut text, mut rest, mut last) = (String::new(), block, None);
        while let Some((at, placeholder)) = first_of(rest, &PLACEHOLDERS) {
            let is_local = placeholder.ends_with(':');
            let address = if is_local { ports::free_on_localhost() } else { ports::free() };
            self.start(address, is_grpc, block, authorities);
            if placeholder == SOCKET {
                let (name, length) = self.bridge(&rest[at..], address);
                text.push_str(&format!("{}{name}", &rest[..at]));
                rest = &rest[at + length..];
                continue;
            }
            // The port may follow a variable. A host name stays in the text.
            let start = at + if is_local { placeholder.len() } else { 0 };
            let part = |c: char| c.is_ascii_digit() || ".:}".contains(c);
            let length = rest[start..].find(|c| !part(c)).unwrap_or(rest.len() - start);
            let closing = if rest[start..start + length].contains("}:") { "}" } else { "" };
            let own = if is_local { String::new() } else { format!("{}{closing}:", address.ip()) };
            let tail = if rest[start..start + length].ends_with('}') { "}" } else { "" };
            text.push_str(&format!("{}{own}{}{tail}", &rest[..start], address.port()));
            (rest, last) = (&rest[start + length..], Some(address));
        }
        text.push_str(rest);
        match checked_port.zip(last) {
            Some((port, backend)) => {
                let checked = free_beside(backend);
                self.start(checked, true, block, authorities);
                text.replacen(&format!("port: {port}"), &format!("port: {}", checked.port()), 1)
            }
            None => text,
        }
    }

    /// Puts a Unix socket in front of the origin at `address`. Returns the address of the socket, and the length of the
    /// address at the beginning of `text`, which it replaces.
    fn bridge(&mut self, text: &str, address: SocketAddr) -> (String, usize) {
        let length = text.find([',', ']', '}', '"', '\n']).unwrap_or(text.len());
        let path = self.directory.join(format!("{}.sock", self.sockets.len()));
        self.sockets.push(UnixBridge::start(&path, address));
        (format!("unix:{}", path.display()), length)
    }

    fn start(&mut self, address: SocketAddr, is_grpc: bool, pool: &str, authorities: &Authorities) {
        let server = pool.contains("tls:").then(|| authorities.certificate(pool, address).server());
        let name = format!("origin {address}");
        match (is_grpc, server) {
            (true, server) => {
                let origin = GrpcOrigin::start_at(address, server.as_deref());
                value(pool, "service: ")
                    .into_iter()
                    .for_each(|service| origin.set(service, Serving::Serving));
                self.grpc.push(origin);
            }
            (false, Some(server)) => self.http.push(Origin::start_tls_at(address, &name, server)),
            (false, None) => self.http.push(Origin::start_at(address, &name)),
        }
    }
}

/// The position of the first of these words in the text, and the word.
fn first_of<'a>(text: &str, words: &[&'a str]) -> Option<(usize, &'a str)> {
    words.iter().filter_map(|word| Some((text.find(word)?, *word))).min()
}

/// A free port on the IP address of a backend.
fn free_beside(backend: SocketAddr) -> SocketAddr {
    TcpListener::bind((backend.ip(), 0)).and_then(|listener| listener.local_addr()).unwrap()
}

impl Authorities {
    /// A certificate that the pool should accept. It is valid for the pool's `sni` or for the address. An unknown
    /// authority signs it if the pool does not verify certificates.
    fn certificate(&self, pool: &str, address: SocketAddr) -> Certified {
        let authority = if pool.contains("verify: false") { &self.unknown } else { &self.trusted };
        authority.certify(&[value(pool, "sni: ").unwrap_or(&address.ip().to_string())])
    }
}

// === addresses and files ===

/// Replaces the addresses and ports of a fixture with those of the lab, and adds them where the fixture has none.
fn with_addresses(lab: &Lab, text: &str) -> String {
    let ipv6 = format!("[::1]:{}", ports::free().port());
    let free =
        |text: String, port: &&str| text.replace(port, &format!(":{}", ports::free_on_localhost().port()));
    let text = PORTS.iter().fold(text.replace("[::1]:80", &ipv6), free);
    let listener = lab.listener.to_string();
    let text = ["0.0.0.0:80\"", "127.0.0.1:80\n"].iter().fold(text, |text, address| {
        text.replace(address, &format!("{listener}{}", &address[address.len() - 1..]))
    });
    let listeners = format!("\"listeners\": [{{\"address\": \"{}\"}}]", lab.listener);
    let metrics = format!("\"metrics\": {{\"address\": \"{}\"}}", lab.metrics);
    with_key(&with_key(&text, "listeners", &listeners), "metrics", &metrics)
}

/// Replaces the files of a fixture with files in the directory of the lab, and adds them where the fixture has none.
fn with_files(lab: &Lab, text: &str) -> String {
    let directory = path_str(lab.directory());
    let keys = lab.write("sticky.keys", &format!("{}\n", "5e".repeat(32)));
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o600)).unwrap();
    let text = text.replace("/etc/lb", directory).replace("/run/lb/", &format!("{directory}/"));
    let text = text
        .replace("/run/lb.sock", &format!("{directory}/lb.sock"))
        .replace("/tmp/load_balancer", &format!("{directory}/load_balancer"));
    let files = [("pid_file", "lb.pid"), ("error_log", "error.log"), ("upgrade_sock", "upgrade.sock")];
    let text = files
        .iter()
        .fold(text, |text, (key, file)| with_key(&text, key, &format!("\"{key}\": \"{directory}/{file}\"")));
    // The authority of the test replaces those of the system.
    let text = match text.contains("tls:") {
        true => with_key(&text, "ca_file", &format!("\"ca_file\": \"{directory}/ca.pem\"")),
        false => text,
    };
    with_key(&text, "control", &format!("\"control\": {{\"socket\": \"{directory}/control.sock\"}}"))
}

/// Adds a key to a fixture that does not have it.
fn with_key(text: &str, key: &str, entry: &str) -> String {
    let has_it = text.lines().any(|line| line.starts_with(&format!("{key}:")));
    match text.strip_prefix('{') {
        _ if has_it => text.to_owned(),
        Some(rest) => format!("{{{entry}, {rest}"),
        None => text.replacen("pools:\n", &format!("{entry}\npools:\n"), 1),
    }
}
