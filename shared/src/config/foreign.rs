//! Recognition of files of other products.
//!
//! A product is recognised by a line that does not occur in a configuration of the load balancer. Only files with
//! problems are examined. A file with the key `pools` is never treated as a file of another product.

use std::net::SocketAddr;

use values::{BackendAddress, Scalar};

use super::problem::{Id, Problem, Span};

/// A line of a text, with its place.
#[derive(Clone, Copy)]
struct Line<'a> {
    start: usize,
    text: &'a str,
}

/// A function that returns the index of the line that identifies the product.
type Recogniser = fn(&[Line<'_>]) -> Option<usize>;

/// The maximum number of backends that the hint takes from the file.
const MAX_BACKENDS: usize = 8;

/// Returns the problem for a file of another product. The hint is a small configuration with the backends of the file.
pub(super) fn recognise(text: &str) -> Option<Problem> {
    let lines = lines(text);
    if lines.iter().any(|line| line.text.starts_with("pools:") || line.text.starts_with("\"pools\"")) {
        return None;
    }
    let products: [(&str, Recogniser); 8] = [
        ("an nginx configuration", nginx),
        ("an HAProxy configuration", haproxy),
        ("a Caddyfile", caddy),
        ("an Envoy configuration", envoy),
        ("a Traefik configuration", traefik),
        ("a Kubernetes manifest", kubernetes),
        ("a Docker Compose file", compose),
        ("TOML or INI, not YAML", toml),
    ];
    let (product, index) = products.iter().find_map(|(product, is)| Some((*product, is(&lines)?)))?;
    let line = lines[index];
    let problem = Problem::new(Id::Foreign, format!("this is {product}"));
    let span = Span::new(line.start, line.start + line.text.len());
    Some(problem.at(span).hint(format!(
        "write it in the format of the load balancer; the smallest file is\n\npools:\n  web:\n    backends: [{}]",
        backends(&lines).join(", ")
    )))
}

/// Returns the addresses of the backends in the file, or an example if there are none.
fn backends(lines: &[Line<'_>]) -> Vec<String> {
    let is_backend = |line: &&Line<'_>| {
        let words = ["server ", "reverse_proxy ", "to ", "url", "- url", "proxy_pass "];
        words.iter().any(|word| line.text.starts_with(word))
    };
    let tokens = lines.iter().filter(is_backend).flat_map(|line| {
        line.text.split(|c: char| c.is_whitespace() || ";,\"'=/".contains(c)).collect::<Vec<_>>()
    });
    let addresses = tokens.filter_map(|token| token.parse::<SocketAddr>().ok());
    let addresses = addresses.filter(|address| !address.ip().is_unspecified() && address.port() > 0);
    let addresses = addresses.map(|address| match address {
        SocketAddr::V4(_) => address.to_string(),
        SocketAddr::V6(_) => format!("\"{address}\""),
    });
    let words = lines.iter().filter(is_backend).flat_map(|line| line.text.split([' ', '\t', ';', ',']));
    let mut found: Vec<String> = Vec::new();
    for text in addresses.chain(words.filter_map(unix_socket)) {
        if !found.contains(&text) && found.len() < MAX_BACKENDS {
            found.push(text);
        }
    }
    if found.is_empty() { vec!["10.0.0.1:8080".to_owned()] } else { found }
}

/// Returns the Unix socket in a word such as `unix:/path` or `http://unix:/path:/` of nginx.
fn unix_socket(word: &str) -> Option<String> {
    let (_, path) = word.split_once("unix:")?;
    let address = format!("unix:{}", path.split(':').next()?);
    BackendAddress::from_text(&address).is_ok().then_some(address)
}

// === the products ===

fn nginx(lines: &[Line<'_>]) -> Option<usize> {
    let block = |line: &Line<'_>| {
        let words = ["server", "http", "events", "stream", "upstream", "location"];
        let head = line.text.split_once('{').map(|(head, _)| first_word(head));
        head.is_some_and(|head| words.contains(&head)) && line.text.ends_with(['{', '}'])
    };
    // A block that is closed on its line, such as `events { }`, is sufficient.
    let statement = |line: &Line<'_>| line.text.ends_with(';') || line.text.ends_with('}') && block(line);
    lines.iter().position(block).filter(|_| lines.iter().any(statement))
}

fn haproxy(lines: &[Line<'_>]) -> Option<usize> {
    let section = |line: &Line<'_>| {
        let words: Vec<&str> = line.text.split_whitespace().collect();
        match words.as_slice() {
            ["global" | "defaults"] => true,
            ["frontend" | "backend" | "listen" | "defaults", name] => !name.ends_with('{'),
            _ => false,
        }
    };
    let statement = |line: &Line<'_>| {
        let words =
            ["bind", "server", "mode", "balance", "default_backend", "use_backend", "timeout", "maxconn"];
        words.contains(&first_word(line.text)) && line.text.contains(' ') && !line.text.contains(": ")
    };
    lines.iter().position(section).filter(|_| lines.iter().any(statement))
}

fn caddy(lines: &[Line<'_>]) -> Option<usize> {
    lines
        .iter()
        .position(|line| first_word(line.text) == "reverse_proxy" && !line.text.contains(':'))
        .or_else(|| lines.iter().position(|line| line.text.starts_with("reverse_proxy ")))
}

fn envoy(lines: &[Line<'_>]) -> Option<usize> {
    any_key(lines, &["static_resources", "dynamic_resources", "lb_endpoints", "envoy_on_reverse_bridge"])
}

fn traefik(lines: &[Line<'_>]) -> Option<usize> {
    let table = |line: &Line<'_>| {
        ["[http.", "[[http.", "[entryPoints", "[providers"].iter().any(|table| line.text.starts_with(table))
    };
    let routers = || any_key(lines, &["routers"]).filter(|_| any_key(lines, &["services"]).is_some());
    let keys = || any_key(lines, &["entryPoints", "loadBalancer", "certificatesResolvers"]).or_else(routers);
    lines.iter().position(table).or_else(keys)
}

fn kubernetes(lines: &[Line<'_>]) -> Option<usize> {
    any_key(lines, &["apiVersion"]).filter(|_| any_key(lines, &["kind"]).is_some())
}

fn compose(lines: &[Line<'_>]) -> Option<usize> {
    any_key(lines, &["services"]).filter(|_| any_key(lines, &["image", "build", "container_name"]).is_some())
}

fn toml(lines: &[Line<'_>]) -> Option<usize> {
    let is_table = |line: &Line<'_>| {
        let name = line.text.trim_matches(['[', ']']);
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '"');
        line.text.starts_with('[') && line.text.ends_with(']') && !name.is_empty() && name.chars().all(plain)
    };
    let has_values = lines.iter().any(|line| line.text.contains('='));
    lines.first().filter(|line| is_table(line)).map(|_| 0).filter(|_| has_values)
}

/// Returns the index of the first line with one of these keys, in YAML or JSON.
fn any_key(lines: &[Line<'_>], keys: &[&str]) -> Option<usize> {
    let is_key = |line: &Line<'_>| {
        let text = line.text.trim_start_matches(['{', '-', ' ', '"']);
        let has = |key: &&&str| {
            text.strip_prefix(**key).is_some_and(|rest| rest.trim_start_matches('"').starts_with(':'))
        };
        keys.iter().any(|key| has(&key))
    };
    lines.iter().position(is_key)
}

fn first_word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}

/// Returns the lines that are neither blank nor a comment, without white space around them.
fn lines(text: &str) -> Vec<Line<'_>> {
    let mut start = 0;
    let mut lines = Vec::new();
    for line in text.split_inclusive('\n') {
        let indent = line.len() - line.trim_start().len();
        let trimmed = line.trim();
        if !trimmed.is_empty() && !trimmed.starts_with('#') {
            lines.push(Line { start: start + indent, text: trimmed });
        }
        start += line.len();
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Option<String> {
        recognise(text).map(|problem| format!("{}\n{}", problem.message, problem.hint.unwrap_or_default()))
    }

    #[test]
    fn files_of_other_products_are_recognised() {
        for (text, product) in [
            ("events {}\nhttp {\n  server { listen 80; }\n}\n", "nginx"),
            ("upstream a {\n  server 10.0.0.1:80;\n}\n", "nginx"),
            ("worker_processes 1;\nevents { }\n", "nginx"),
            ("events { } http { }\n", "nginx"),
            ("events{}\n", "nginx"),
            ("global\n  maxconn 10\nbackend b\n  server a 10.0.0.1:80 check\n", "HAProxy"),
            ("listen web\n  bind *:80\n  server a 10.0.0.1:80\n", "HAProxy"),
            ("example.com\n\nreverse_proxy 10.0.0.1:80\n", "Caddyfile"),
            ("example.com {\n  reverse_proxy {\n    to 10.0.0.1:80\n  }\n}\n", "Caddyfile"),
            ("static_resources: {}\n", "Envoy"),
            ("{\"static_resources\": {}}\n", "Envoy"),
            ("entryPoints:\n  web: {address: \":80\"}\n", "Traefik"),
            ("[entryPoints.web]\naddress = \":80\"\n", "Traefik"),
            ("apiVersion: v1\nkind: Service\n", "Kubernetes"),
            ("services:\n  app:\n    image: nginx\n", "Docker Compose"),
            ("[server]\nlisten = 80\n", "TOML"),
        ] {
            assert!(said(text).is_some_and(|said| said.contains(product)), "{text}: {:?}", said(text));
        }
    }

    #[test]
    fn a_configuration_of_the_load_balancer_is_not_foreign() {
        for text in [
            "pools:\n  web:\n    backends: [10.0.0.1:80]\nservices:\n  image: x\n",
            "upstreams:\n  web:\n    servers: [10.0.0.1:80]\n",
            "listen: 80\nbackend: web\n",
            "server: 10.0.0.1:80\n",
            "threads = 2\n",
            "[10.0.0.1:80]\n",
            "",
        ] {
            assert_eq!(said(text), None, "{text}");
        }
    }

    #[test]
    fn the_remedy_has_the_backends_of_the_file() {
        let text =
            "upstream a {\n  server 10.0.0.1:80 weight=2;\n  server [::1]:81;\n  server 10.0.0.1:80;\n}\n";
        assert!(said(text).is_some_and(|said| said.ends_with("backends: [10.0.0.1:80, \"[::1]:81\"]")));
        assert!(
            said("http {\n  server { listen 80; }\n}\n")
                .is_some_and(|said| said.ends_with("[10.0.0.1:8080]"))
        );
    }
}
