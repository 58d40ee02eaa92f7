//! `consistent_hash` places every key on the same backend as nginx's `hash … consistent`.
//!
//! The test compares with a real nginx, which also serves as the origins. Each origin responds with its own address.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lb_service::Policy;
use lb_service::policy::{Algorithm, PolicyConfig};
use pingora::lb::Backend;
use pingora::lb::selection::{BackendIter, BackendSelection};

const KEYS: usize = 1000;
const TIMEOUT: Duration = Duration::from_secs(20);

/// An nginx process that ends with the test.
struct Nginx {
    process: Child,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

/// A client with a keep-alive connection.
struct Client {
    reader: BufReader<TcpStream>,
}

// === impl Nginx ===

impl Nginx {
    fn start(backends: &[(SocketAddr, usize)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = free_address("127.0.0.1:0").expect("loopback has a free port");
        let configuration = directory.path().join("nginx.conf");
        std::fs::write(&configuration, text(directory.path(), address, backends)).unwrap();
        let process = Command::new("nginx")
            .env("PATH", format!("{}:/usr/sbin:/usr/local/sbin", std::env::var("PATH").unwrap_or_default()))
            .args(["-e", "stderr", "-p"])
            .arg(directory.path())
            .arg("-c")
            .arg(&configuration)
            .stdout(Stdio::null())
            .spawn()
            .expect("this test needs nginx, which is not installed (Debian: nginx-light)");
        Self { process, address, _directory: directory }
    }

    fn client(&mut self) -> Client {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Ok(stream) = TcpStream::connect(self.address) {
                stream.set_read_timeout(Some(TIMEOUT)).unwrap();
                stream.set_nodelay(true).unwrap();
                return Client { reader: BufReader::new(stream) };
            }
            assert_eq!(self.process.try_wait().unwrap(), None, "nginx has ended");
            assert!(Instant::now() < deadline, "nginx does not listen");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // nginx runs as a single process, without a master or workers.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn text(directory: &Path, address: SocketAddr, backends: &[(SocketAddr, usize)]) -> String {
    let directory = directory.display();
    let servers: String =
        backends.iter().map(|(address, weight)| format!("    server {address} weight={weight};\n")).collect();
    let origins: String = backends
        .iter()
        .map(|(address, _)| format!("  server {{ listen {address}; return 200 \"{address}\"; }}\n"))
        .collect();
    format!(
        "daemon off; master_process off; pid {directory}/pid; error_log stderr error;\n\
         events {{ worker_connections 512; }}\n\
         http {{\n  access_log off; keepalive_requests 100000;\n  \
         client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;\n  \
         fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;\n  \
         upstream backends {{\n    hash $arg_k consistent;\n{servers}    keepalive 16;\n  }}\n  \
         server {{ listen {address}; location / {{ proxy_pass http://backends; proxy_http_version 1.1; \
         proxy_set_header Connection \"\"; }} }}\n{origins}}}\n"
    )
}

/// A free address, or `None` if no interface has this IP address.
fn free_address(address: &str) -> Option<SocketAddr> {
    TcpListener::bind(address).ok()?.local_addr().ok()
}

// === impl Client ===

impl Client {
    /// Sends a request with this key, and returns the backend that serves it.
    fn send(&mut self, key: &str) -> String {
        let request = format!("GET /?k={key} HTTP/1.1\r\nHost: test\r\n\r\n");
        self.reader.get_mut().write_all(request.as_bytes()).unwrap();
        let (mut line, mut length) = (String::new(), 0);
        self.reader.read_line(&mut line).unwrap();
        assert!(line.starts_with("HTTP/1.1 200 "), "{line:?}");
        while line != "\r\n" {
            line.clear();
            assert_ne!(self.reader.read_line(&mut line).unwrap(), 0, "nginx closed the connection");
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body).unwrap();
        String::from_utf8(body).unwrap()
    }
}

fn policy(backends: &[(SocketAddr, usize)]) -> Arc<Policy> {
    let members: BTreeSet<Backend> = backends
        .iter()
        .map(|(address, weight)| Backend::new_with_weight(&address.to_string(), *weight).unwrap())
        .collect();
    Arc::new(Policy::build_with_config(&members, &PolicyConfig::new(Algorithm::ConsistentHash)))
}

fn compare(backends: &[(SocketAddr, usize)]) {
    let mut nginx = Nginx::start(backends);
    let mut client = nginx.client();
    let policy = policy(backends);
    let mut seen = BTreeSet::new();
    for number in 0..KEYS {
        let key = format!("customer-{number}");
        let ours = policy.iter(key.as_bytes()).next().unwrap().addr.to_string();
        assert_eq!(client.send(&key), ours, "{key}");
        seen.insert(ours);
    }
    assert_eq!(seen.len(), backends.len(), "some backends got no key");
}

fn with_weights(addresses: &[&str], weights: &[usize]) -> Option<Vec<(SocketAddr, usize)>> {
    // All listeners stay open until the last one is bound, so that all addresses differ.
    let held: Vec<TcpListener> = addresses.iter().map(TcpListener::bind).collect::<Result<_, _>>().ok()?;
    Some(held.iter().map(|listener| listener.local_addr().unwrap()).zip(weights.iter().copied()).collect())
}

#[test]
fn nginx_gives_every_key_to_the_same_backend() {
    compare(&with_weights(&["127.0.0.1:0"; 5], &[2, 1, 1, 3, 1]).unwrap());
}

#[test]
fn nginx_gives_every_key_to_the_same_backend_over_ipv6() {
    let Some(backends) = with_weights(&["[::1]:0", "[::1]:0", "127.0.0.1:0", "[::1]:0"], &[1, 2, 1, 1])
    else {
        assert!(free_address("[::1]:0").is_none(), "IPv6 works, but no addresses were free");
        eprintln!("not compared: this machine has no IPv6 loopback");
        return;
    };
    compare(&backends);
}
