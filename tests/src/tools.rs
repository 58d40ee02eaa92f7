//! Runs real programs: `curl`, `wrk`, nginx, Prometheus. A missing program fails the test instead of skipping it.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::daemon::Lab;
use crate::{Authority, ports, wait};

/// Runs `curl` with these arguments, without progress output.
#[track_caller]
pub fn curl(arguments: &[&str]) -> Output {
    run("curl", &[&["--silent", "--show-error", "--max-time", "30"], arguments].concat())
}

/// Runs a program until it exits.
///
/// # Panics
///
/// Panics if the program is not installed.
#[track_caller]
pub fn run(tool: &str, arguments: &[&str]) -> Output {
    Command::new(tool)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| missing(tool, &error))
}

/// A server program that is stopped when this is dropped.
pub struct Server {
    child: Child,
    /// The address that it listens on.
    pub address: SocketAddr,
}

/// The authority that signs the certificate of a TLS server, and the name in it.
pub type Identity<'a> = (&'a Authority, &'a str);

impl Server {
    /// Starts an nginx that responds to every request with `name` and the request's `Host`, over TLS if `tls` is set.
    #[track_caller]
    pub fn nginx(lab: &Lab, name: &str, tls: Option<Identity>) -> Self {
        let (address, directory) = (ports::free(), nginx_directory(lab, name));
        let mut listen = format!("listen {address};");
        if let Some((authority, host)) = tls {
            let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
            authority.certify(&[host]).write(&certificate, &key).expect("the directory is writable");
            listen = format!("listen {address} ssl; ssl_certificate cert.pem; ssl_certificate_key key.pem;");
        }
        let server = format!(
            "server {{ {listen} add_header X-Origin {name} always;\n\
             location / {{ default_type text/plain; return 200 \"{name} saw $http_host\\n\"; }}\n\
             location /missing {{ return 404; }} }}"
        );
        Self::nginx_with(lab, &directory, &server, address)
    }

    /// Starts an nginx that balances over these weighted origins with `hash KEY consistent`.
    #[track_caller]
    pub fn nginx_hashing(lab: &Lab, key: &str, origins: &[(SocketAddr, u32)]) -> Self {
        let (address, directory) = (ports::free(), nginx_directory(lab, "hashing"));
        let servers: String =
            origins.iter().map(|(origin, weight)| format!("server {origin} weight={weight};\n")).collect();
        let http = format!(
            "upstream origins {{ hash {key} consistent;\n{servers} }}\n\
             server {{ listen {address}; location / {{ proxy_pass http://origins; }} }}"
        );
        Self::nginx_with(lab, &directory, &http, address)
    }

    /// Starts an nginx with this text in its section `http`.
    #[track_caller]
    fn nginx_with(lab: &Lab, directory: &Path, http: &str, address: SocketAddr) -> Self {
        let path = directory.join("nginx.conf");
        std::fs::write(&path, nginx_config(directory, http)).expect("the directory of the test is writable");
        let mut command = Command::new("nginx");
        command.arg("-p").arg(directory).arg("-c").arg(path).args(["-e", "stderr"]);
        Self::start(lab, "nginx", command, address)
    }

    /// Starts a Prometheus that scrapes this metrics address every second.
    #[track_caller]
    pub fn prometheus(lab: &Lab, target: SocketAddr) -> Self {
        let address = ports::free();
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\n\
             scrape_configs:\n  - job_name: load_balancer\n    static_configs: [{{targets: ['{target}']}}]\n"
        );
        let path = lab.write("prometheus.yml", &config);
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", path.display()));
        command.arg(format!("--storage.tsdb.path={}", lab.path("prometheus").display()));
        command.arg(format!("--web.listen-address={address}"));
        Self::start(lab, "prometheus", command, address)
    }

    #[track_caller]
    fn start(lab: &Lab, tool: &str, mut command: Command, address: SocketAddr) -> Self {
        let log = lab.path(&format!("{tool}-{address}.log"));
        let file = File::create(&log).expect("the directory of the test is writable");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let child = command.spawn().unwrap_or_else(|error| missing(tool, &error));
        let mut server = Self { child, address };
        let started = wait::poll(wait::LONG, || {
            let ended = server.child.try_wait().ok()?.is_some();
            let listens = std::net::TcpStream::connect(address).is_ok();
            (ended || listens).then_some(listens)
        });
        let text = || std::fs::read_to_string(&log).unwrap_or_default();
        assert_eq!(started, Some(true), "{tool} did not start:\n{}", text());
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // On SIGTERM, nginx also ends its workers.
        crate::process::Process(self.child.id()).signal(crate::Signal::SIGTERM);
        let _ = wait::poll(wait::LONG, || self.child.try_wait().ok().flatten());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn nginx_directory(lab: &Lab, name: &str) -> PathBuf {
    let directory = lab.path(&format!("nginx-{name}"));
    std::fs::create_dir(&directory).expect("the directory of the test is writable");
    directory
}

fn nginx_config(directory: &Path, http: &str) -> String {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {}/{kind};\n", directory.display()))
        .collect();
    format!(
        "daemon off; worker_processes 1; pid {}/nginx.pid; error_log stderr;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n{temporary}access_log off; keepalive_requests 100000;\n{http} }}\n",
        directory.display()
    )
}

/// Fails a test that needs this tool.
///
/// # Panics
///
/// Always.
#[track_caller]
pub fn missing(tool: &str, error: &std::io::Error) -> ! {
    panic!("cannot run {tool}: {error}; run `make setup` to install the programs that the tests need")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::get;

    #[test]
    fn nginx_responds_with_its_name_in_plain_text_and_over_tls() {
        let (lab, authority) = (Lab::new(), Authority::new());
        let plain = Server::nginx(&lab, "plain", None);
        let response = get(plain.address, "/").unwrap();
        assert_eq!((response.origin(), response.text().as_str()), ("plain", "plain saw client.test\n"));
        let secret = Server::nginx(&lab, "secret", Some((&authority, "a.test")));
        let ca = lab.path("ca.pem");
        authority.write(&ca).unwrap();
        let resolve = format!("a.test:{}:{}", secret.address.port(), secret.address.ip());
        let url = format!("https://a.test:{}/", secret.address.port());
        let output = curl(&["--cacert", &ca.display().to_string(), "--resolve", &resolve, &url]);
        assert!(output.stdout.starts_with(b"secret saw a.test"), "{output:?}");
    }

    #[test]
    fn prometheus_runs_and_responds_to_queries() {
        let lab = Lab::new();
        let prometheus = Server::prometheus(&lab, lab.metrics);
        wait::until(wait::LONG, "it responds to a query", || {
            get(prometheus.address, "/api/v1/query?query=up").is_ok_and(|response| response.status == 200)
        });
    }
}
