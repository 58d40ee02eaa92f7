//! Addresses with a port. The rejection of another text says what to write instead.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::path::{UnixPath, unix_address};
use crate::scalar::{Rejection, TextScalar};

/// The address of a backend: an IP address or the name `localhost`, and a port above 0, or a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendAddress {
    /// An address of one machine.
    Ip(SocketAddr),
    /// This port of the loopback address of the machine that the load balancer runs on.
    Localhost(u16),
    /// A Unix socket, written `unix:/path`.
    Unix(UnixPath),
}

/// The address of the server for metrics: an IP address and a port above 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpAddress(pub SocketAddr);

/// The purpose of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The address that clients connect to: an IP address and a port, a port alone, or a Unix socket.
    Listener,
    /// The address that requests are sent to: an IP address or `localhost` and a port, or a Unix socket.
    Backend,
    /// The address that serves metrics: an IP address and a port.
    Metrics,
}

/// Parses an IP address with a port above 0.
///
/// # Errors
///
/// Returns the reason why the text is rejected.
pub fn parse(text: &str, purpose: Purpose) -> Result<SocketAddr, Rejection> {
    let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() > 0);
    address.ok_or_else(|| rejection(text, purpose).into())
}

/// Returns the reason why `text`, which is not an IP address with a port from 1 to 65535, is rejected. A second line
/// says what to write, if that is clear.
fn rejection(text: &str, purpose: Purpose) -> String {
    let reasons = [
        key,
        variable,
        unclean,
        several,
        with_options,
        other_socket,
        url,
        without_port,
        without_address,
        ipv6,
        bad_port,
        bad_number,
        socket,
        name,
    ];
    let reason = reasons.iter().find_map(|reason| reason(text, purpose));
    reason.unwrap_or_else(|| format!("expected {}, found {text:?}", purpose.expected()))
}

// === the reasons ===

/// Matches `address:10.0.0.1:80`, which YAML reads as a string.
fn key(text: &str, purpose: Purpose) -> Option<String> {
    let address = text.strip_prefix("address:").filter(|address| accepts(address, purpose))?;
    Some(format!("{text:?} has no space after its key\nwrite {{address: {address}}}"))
}

/// Matches `$NAME`, the shell notation of a variable.
fn variable(text: &str, _: Purpose) -> Option<String> {
    let rest = text.strip_prefix('$').filter(|rest| !rest.starts_with('{'))?;
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
    let (name, rest) = rest.split_at(end);
    (!name.is_empty())
        .then(|| format!("{text:?}: an environment variable needs braces\nwrite ${{{name}}}{rest}"))
}

/// Matches typographic quotes, and a trailing separator of another format.
fn unclean(text: &str, purpose: Purpose) -> Option<String> {
    let clean = text.trim_matches(|c: char| "“”„‘’«»\"'`".contains(c)).trim_end_matches([',', ';', '/']);
    (clean != text && accepts(clean, purpose)).then(|| format!("{text:?} is not an address\nwrite {clean}"))
}

fn several(text: &str, purpose: Purpose) -> Option<String> {
    let parts: Vec<&str> =
        text.split([',', ' ', ';', '\n']).filter(|part| !part.is_empty() && *part != "-").collect();
    let all = parts.len() > 1 && parts.iter().all(|part| accepts(part, purpose));
    let separated = match text.contains("- ") {
        true => "put each on its own line, with the same indentation as the first".to_owned(),
        false => format!("separate them by commas: [{}]", parts.join(", ")),
    };
    all.then(|| format!("{text:?} has more than one address\n{separated}"))
}

/// Matches an address with options, such as the weight in nginx and HAProxy.
fn with_options(text: &str, purpose: Purpose) -> Option<String> {
    let (address, options) = text.split_once(' ')?;
    let weight = options.split([' ', '=']).skip_while(|word| *word != "weight").nth(1);
    // A path can contain a space.
    if text.starts_with("unix:") && weight.is_none() {
        return None;
    }
    let weight =
        weight.and_then(|weight| weight.parse::<u16>().ok()).filter(|weight| (1..=1000).contains(weight));
    let right = match weight {
        Some(weight) => format!("{{address: {address}, weight: {weight}}}"),
        None => address.to_owned(),
    };
    let is_backend = purpose == Purpose::Backend && accepts(address, purpose);
    is_backend.then(|| format!("{text:?} contains more than an address\nwrite {right}"))
}

/// Matches a Unix socket in the notation of another product: `http://unix:/path:/` of nginx, `unix@/path` of HAProxy,
/// `unix//path` of Caddy.
fn other_socket(text: &str, purpose: Purpose) -> Option<String> {
    let notations = ["http://unix:", "https://unix:", "unix@", "unix/"];
    let path = notations.iter().find_map(|notation| text.strip_prefix(notation))?;
    let address = format!("unix:{}", path.split(':').next().unwrap_or_default());
    accepts(&address, purpose)
        .then(|| format!("{text:?} is not the notation of a Unix socket\nwrite {address}"))
}

fn url(text: &str, purpose: Purpose) -> Option<String> {
    let (scheme, rest) =
        text.split_once("://").or_else(|| text.split_once("//").filter(|(scheme, _)| scheme.is_empty()))?;
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let default = if scheme == "https" { 443 } else { purpose.port() };
    let with_port = format!("{authority}:{default}");
    let right = [authority.to_owned(), with_port].into_iter().find(|address| accepts(address, purpose));
    let tls = if purpose == Purpose::Backend && scheme == "https" {
        ", and `tls: {sni: NAME}` in the pool"
    } else {
        ""
    };
    let remedy = match right {
        Some(right) => format!("write {right}{tls}"),
        None => format!("use {}{tls}", purpose.expected()),
    };
    Some(format!("{text:?} is a URL\n{remedy}"))
}

fn without_port(text: &str, purpose: Purpose) -> Option<String> {
    let host = text.strip_suffix(':').unwrap_or(text);
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let ip = bare.parse::<IpAddr>().ok().filter(|_| split_ipv6(text).is_none())?;
    Some(format!("{text:?} has no port\nwrite {}", SocketAddr::new(ip, purpose.port())))
}

fn without_address(text: &str, purpose: Purpose) -> Option<String> {
    let port = text.strip_prefix(':').or_else(|| text.strip_prefix("*:")).unwrap_or(text);
    let port = port.parse::<u16>().ok()?;
    let (port, missing) = if port == 0 { (purpose.port(), "port above 0") } else { (port, "address") };
    let right = match purpose {
        Purpose::Listener => format!("\":{port}\" for all IPv4 addresses of this machine"),
        Purpose::Backend => format!("localhost:{port} for this machine"),
        Purpose::Metrics => format!("127.0.0.1:{port}"),
    };
    Some(format!("{text:?} has no {missing}\nwrite {right}"))
}

/// Matches an IPv6 address with a port and without brackets around the address.
fn ipv6(text: &str, _: Purpose) -> Option<String> {
    let (address, port) = split_ipv6(text)?;
    Some(format!("{text:?} has no brackets around its IPv6 address\nwrite \"[{address}]:{port}\""))
}

fn split_ipv6(text: &str) -> Option<(Ipv6Addr, u16)> {
    let (address, port) = text.rsplit_once(':')?;
    Some((address.parse().ok()?, port.parse().ok().filter(|port| *port > 0)?))
}

fn bad_port(text: &str, purpose: Purpose) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    let ip = host.trim_matches(['[', ']']).parse::<IpAddr>().ok()?;
    let number =
        port.split('/').next().and_then(|number| number.parse::<u16>().ok()).filter(|number| *number > 0);
    let port_of = |name: &str| match name {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    match number.or_else(|| port_of(port)) {
        Some(number) => {
            Some(format!("{port:?} is not a port for {ip}\nwrite {}", SocketAddr::new(ip, number)))
        }
        None if port == "0" => {
            let right = SocketAddr::new(ip, purpose.port());
            Some(format!("{text:?}: the port must be from 1 to 65535\nwrite {right}"))
        }
        None => Some(format!("{port:?} is not a port for {ip}\nuse a port from 1 to 65535")),
    }
}

/// Matches numbers with dots that are not an IPv4 address: too few numbers, or one that is too large.
fn bad_number(text: &str, _: Purpose) -> Option<String> {
    let host = text.split(':').next().unwrap_or_default();
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let looks_so = host.contains('.') && host.split('.').all(is_number) && host.parse::<IpAddr>().is_err();
    looks_so
        .then(|| format!("{host:?} is not an IPv4 address\nuse four numbers from 0 to 255, such as 10.0.0.1"))
}

/// Matches the path of a Unix socket without `unix:`.
fn socket(text: &str, purpose: Purpose) -> Option<String> {
    let is_path = text.starts_with('/') && accepts(&format!("unix:{text}"), purpose);
    is_path.then(|| format!("{text:?} is a path\nwrite unix:{text} for a Unix socket"))
}

fn name(text: &str, purpose: Purpose) -> Option<String> {
    let host = text.split(['/', ':']).next().unwrap_or_default();
    let port = text.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok()).unwrap_or(purpose.port());
    if !is_host_name(host) || text.starts_with("unix:") {
        return None;
    }
    let remedy = match purpose {
        _ if host.eq_ignore_ascii_case("localhost") => format!("write 127.0.0.1:{port}"),
        Purpose::Backend => {
            format!(
                "use its IP address, such as 10.0.0.1:{port}; `localhost` is the only name that is accepted"
            )
        }
        Purpose::Listener => {
            format!("use an IP address of this machine, or \":{port}\" for all of its IPv4 addresses")
        }
        Purpose::Metrics => format!("use an IP address of this machine, such as 127.0.0.1:{port}"),
    };
    Some(format!("{host:?} is a host name, and host names are not supported\n{remedy}"))
}

/// Returns the port after the name `localhost`, or `None` if the text does not begin with that name.
fn localhost(text: &str) -> Option<Result<u16, String>> {
    let (host, port) = text.split_once(':').unwrap_or((text, ""));
    host.eq_ignore_ascii_case("localhost").then(|| match port.parse() {
        Ok(0) => Err(format!("{text:?}: the port must be from 1 to 65535")),
        Ok(port) => Ok(port),
        Err(_) if port.is_empty() => Err(format!("{text:?} has no port\nwrite {host}:80")),
        Err(_) => Err(format!("{port:?} is not a port for {host}\nuse a port from 1 to 65535")),
    })
}

/// Returns whether a text looks like a host name.
pub fn is_host_name(text: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphabetic();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    text.contains(letter) && text.chars().all(allowed) && text.len() <= 253
}

/// Returns whether a text is a valid address for this purpose.
fn accepts(text: &str, purpose: Purpose) -> bool {
    let is_local = purpose == Purpose::Backend && localhost(text).is_some_and(|port| port.is_ok());
    let is_socket = || text.strip_prefix("unix:").is_some_and(|path| unix_address(path).is_ok());
    text.parse::<SocketAddr>().is_ok_and(|address| address.port() > 0)
        || is_local
        || purpose != Purpose::Metrics && is_socket()
}

/// Parses the address of a backend on a Unix socket, which comes after `unix:`. One spelling of each path is accepted;
/// otherwise, one backend could appear twice.
fn unix_backend(text: &str, path: &str) -> Result<UnixPath, Rejection> {
    let slips = [unclean, several, with_options];
    if let Some(slip) = slips.iter().find_map(|slip| slip(text, Purpose::Backend)) {
        return Err(slip.into());
    }
    let socket = unix_address(path)?;
    let plain: PathBuf = Path::new(path).components().collect();
    if plain.as_os_str() != path {
        let plain = plain.display();
        return Err(format!("the path {path:?} has unnecessary characters\nwrite unix:{plain}").into());
    }
    Ok(socket)
}

// === impl BackendAddress ===

impl TextScalar for BackendAddress {
    const READS_NUMBERS: bool = true;
    const EXPECTED: &'static str = Purpose::Backend.expected();
    const PATTERN: &'static str =
        "^(unix:/\\S+|([0-9A-Fa-f.:%\\[\\]]+|[Ll][Oo][Cc][Aa][Ll][Hh][Oo][Ss][Tt]):[0-9]{1,5})$";

    fn parse(text: &str) -> Result<Self, Rejection> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix_backend(text, path).map(Self::Unix);
        }
        if let Some(port) = localhost(text) {
            return Ok(Self::Localhost(port?));
        }
        let address = parse(text, Purpose::Backend)?;
        let (ip, port) = (address.ip(), address.port());
        if ip.is_unspecified() {
            let hint = format!("name the address of one machine, such as 127.0.0.1:{port} for this one");
            return Err(format!("a backend cannot have the address {ip}\n{hint}").into());
        }
        // Otherwise, one backend could appear twice under two spellings.
        let canonical = SocketAddr::new(ip.to_canonical(), port);
        if address.is_ipv6() && canonical.is_ipv4() {
            let message = "is an IPv4 address in the form of IPv6";
            return Err(format!("{text:?} {message}\nwrite {canonical}").into());
        }
        Ok(Self::Ip(address))
    }
}

impl fmt::Display for BackendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Localhost(port) => write!(f, "localhost:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.as_path().display()),
        }
    }
}

// === impl TcpAddress ===

impl TextScalar for TcpAddress {
    const READS_NUMBERS: bool = true;
    const EXPECTED: &'static str = Purpose::Metrics.expected();
    const PATTERN: &'static str = "^[0-9A-Fa-f.:%\\[\\]]+:[0-9]{1,5}$";

    fn parse(text: &str) -> Result<Self, Rejection> {
        parse(text, Purpose::Metrics).map(Self)
    }
}

// === impl Purpose ===

impl Purpose {
    /// Returns the description of a valid address in diagnostics.
    pub const fn expected(self) -> &'static str {
        match self {
            Self::Listener => "an address such as 0.0.0.0:6188 or unix:/path",
            Self::Backend => "an address such as 10.0.0.1:8080 or unix:/path",
            Self::Metrics => "an address such as 127.0.0.1:6192",
        }
    }

    const fn port(self) -> u16 {
        match self {
            Self::Listener | Self::Backend => 80,
            Self::Metrics => 6192,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[track_caller]
    fn rejects(purpose: Purpose, cases: &[(&str, &str, &str)]) {
        for (text, reason, hint) in cases {
            let said = rejection(text, purpose);
            let (first, second) = said.split_once('\n').unwrap_or((&said, ""));
            assert!(first.contains(reason), "{text}: {said}");
            assert_eq!(second, *hint, "{text}: {said}");
        }
    }

    #[test]
    fn diagnostics_of_backends_say_what_to_write() {
        let expected = Purpose::Backend.expected();
        rejects(
            Purpose::Backend,
            &[
                ("1.1.1.1", "no port", "write 1.1.1.1:80"),
                ("1.1.1.1:", "no port", "write 1.1.1.1:80"),
                ("::1", "no port", "write [::1]:80"),
                ("[::1]", "no port", "write [::1]:80"),
                ("::1:8080", "no brackets", "write \"[::1]:8080\""),
                ("2001:db8::1:443", "no brackets", "write \"[2001:db8::1]:443\""),
                ("1:2:3:4:5:6:7:8:80", "no brackets", "write \"[1:2:3:4:5:6:7:8]:80\""),
                ("8080", "no address", "write localhost:8080 for this machine"),
                ("*:80", "no address", "write localhost:80 for this machine"),
                ("http://10.0.0.1:8080", "is a URL", "write 10.0.0.1:8080"),
                ("http://10.0.0.1/x", "is a URL", "write 10.0.0.1:80"),
                ("https://10.0.0.1", "is a URL", "write 10.0.0.1:443, and `tls: {sni: NAME}` in the pool"),
                ("http://localhost:3000/", "is a URL", "write localhost:3000"),
                ("http://app", "is a URL", &format!("use {expected}")),
                ("/run/app.sock", "is a path", "write unix:/run/app.sock for a Unix socket"),
                ("http://unix:/run/app.sock:/", "notation of a Unix socket", "write unix:/run/app.sock"),
                ("unix@/run/app.sock", "notation of a Unix socket", "write unix:/run/app.sock"),
                ("unix//run/app.sock", "notation of a Unix socket", "write unix:/run/app.sock"),
                ("address:unix:/a", "no space", "write {address: unix:/a}"),
                ("10.0.0.1:80/", "is not an address", "write 10.0.0.1:80"),
                ("10.0.0.1:80;", "is not an address", "write 10.0.0.1:80"),
                ("“10.0.0.1:80”", "is not an address", "write 10.0.0.1:80"),
                ("10.0.0.1:http", "is not a port", "write 10.0.0.1:80"),
                ("10.0.0.1:80/tcp", "is not a port", "write 10.0.0.1:80"),
                ("address:10.0.0.1:80", "no space", "write {address: 10.0.0.1:80}"),
                ("$BACKEND:80", "needs braces", "write ${BACKEND}:80"),
                ("10.0.0.256:80", "not an IPv4", "use four numbers from 0 to 255, such as 10.0.0.1"),
                ("1.1.1:80", "not an IPv4", "use four numbers from 0 to 255, such as 10.0.0.1"),
                ("10.0.0.1:0", "must be from 1 to 65535", "write 10.0.0.1:80"),
                ("10.0.0.1:70000", "is not a port", "use a port from 1 to 65535"),
                ("10.0.0.1:80 weight=3", "more than an address", "write {address: 10.0.0.1:80, weight: 3}"),
                (
                    "10.0.0.1:80 check weight 3",
                    "more than an address",
                    "write {address: 10.0.0.1:80, weight: 3}",
                ),
                ("10.0.0.1:80 backup", "more than an address", "write 10.0.0.1:80"),
                (
                    "10.0.0.1:80 10.0.0.2:80",
                    "more than one",
                    "separate them by commas: [10.0.0.1:80, 10.0.0.2:80]",
                ),
                (
                    "10.0.0.1:80 - 10.0.0.2:80",
                    "more than one",
                    "put each on its own line, with the same indentation as the first",
                ),
                (
                    "app:8080",
                    "host name",
                    "use its IP address, such as 10.0.0.1:8080; `localhost` is the only name that is accepted",
                ),
            ],
        );
        for text in ["", "a b", "ü:80"] {
            assert_eq!(rejection(text, Purpose::Backend), format!("expected {expected}, found {text:?}"));
        }
    }

    #[test]
    fn diagnostics_of_listeners_say_what_to_write() {
        rejects(
            Purpose::Listener,
            &[
                ("8080", "no address", "write \":8080\" for all IPv4 addresses of this machine"),
                ("*:80", "no address", "write \":80\" for all IPv4 addresses of this machine"),
                (":0", "no port above 0", "write \":80\" for all IPv4 addresses of this machine"),
                ("localhost:80", "host name", "write 127.0.0.1:80"),
                ("http://0.0.0.0:80", "is a URL", "write 0.0.0.0:80"),
                ("/run/lb.sock", "is a path", "write unix:/run/lb.sock for a Unix socket"),
                (":::80", "no brackets", "write \"[::]:80\""),
            ],
        );
    }

    #[test]
    fn diagnostics_of_metrics_say_what_to_write() {
        rejects(
            Purpose::Metrics,
            &[
                (":9090", "no address", "write 127.0.0.1:9090"),
                ("9090", "no address", "write 127.0.0.1:9090"),
                ("127.0.0.1", "no port", "write 127.0.0.1:6192"),
                ("localhost:9090", "host name", "write 127.0.0.1:9090"),
            ],
        );
    }

    #[test]
    fn addresses_are_numeric_and_have_a_port() {
        testing::accepts::<BackendAddress>(&[
            "1.1.1.1:443",
            "[::1]:80",
            "localhost:8081",
            "Localhost:1",
            "unix:/run/app.sock",
            "unix:/run/a,b.sock",
        ]);
        for (text, why) in [
            ("example.com:80", "host names are not supported"),
            ("localhost", "has no port\nwrite localhost:80"),
            ("localhost:0", "must be from 1 to 65535"),
            ("localhost:x", "is not a port for localhost"),
            ("localhost.:80", "host names are not supported"),
            ("http://1.1.1.1:80", "is a URL"),
            ("1.1.1.1", "has no port\nwrite 1.1.1.1:80"),
            ("::1", "has no port\nwrite [::1]:80"),
            ("1.1.1.1:0", "must be from 1 to 65535"),
            ("1.1.1.1:65536", "is not a port for 1.1.1.1"),
            ("1.1.1.1:http", "is not a port for 1.1.1.1"),
            ("0.0.0.0:80", "a backend cannot have the address 0.0.0.0"),
            ("[::ffff:10.0.0.1]:80", "write 10.0.0.1:80"),
            ("unix:app.sock", "must be absolute"),
            ("unix:", "must be absolute"),
            ("unix:@app", "abstract namespace"),
            ("unix:///run/app.sock", "write unix:/run/app.sock"),
            ("unix:/run//app.sock", "write unix:/run/app.sock"),
            ("unix:/run/app.sock/", "write unix:/run/app.sock"),
            ("unix:/run/app.sock;", "write unix:/run/app.sock"),
            ("unix:/run/app.sock weight=2", "write {address: unix:/run/app.sock, weight: 2}"),
            ("unix:/run/a.sock,unix:/run/b.sock", "[unix:/run/a.sock, unix:/run/b.sock]"),
            (&format!("unix:/{}", "a".repeat(107)), "this one has 108"),
            ("1.1.1:80", "is not an IPv4 address"),
            ("", "expected an address"),
            (":80", "has no address"),
        ] {
            let rejection = testing::rejection::<BackendAddress>(text);
            assert!(rejection.contains(why), "{text}: {rejection}");
        }
    }

    #[test]
    fn the_address_for_metrics_is_numeric_and_has_a_port() {
        testing::accepts::<TcpAddress>(&["[::1]:9000"]);
        for text in ["localhost:9000", "127.0.0.1:0", "9000"] {
            testing::rejection::<TcpAddress>(text);
        }
    }
}
