//! HTTP/1.1 messages of the daemon's own endpoints as bytes: the requests that the command line sends, the responses
//! that it reads, and the parameters of a query.
//!
//! The endpoints send a `Content-Length` with each response and close the connection after it, so a response is
//! complete when its body has that length.

use std::borrow::Cow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use lb_service::pool::UpstreamAddress;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

/// Header with the configuration file of the daemon that must handle the request.
pub(crate) const FILE_HEADER: &str = "Lb-Config-File";

/// Characters to escape in a query: all but the unreserved characters of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Characters to escape in the path of a file.
const NOT_IN_PATH: &AsciiSet = &RESERVED.remove(b'/');

/// Request to an endpoint of the daemon.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    pub(crate) target: &'a str,
    /// The configuration file that the daemon must have; `None` accepts any daemon.
    pub(crate) file: Option<&'a Path>,
    pub(crate) body: &'a str,
}

/// Complete response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// The status code.
    pub status: u16,
    /// The body, which is text.
    pub body: String,
}

// === impl Request ===

impl<'a> Request<'a> {
    /// Returns a GET request without a body.
    pub(crate) fn get(target: &'a str) -> Self {
        Self { method: "GET", target, file: None, body: "" }
    }

    /// Returns the bytes to send.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let Self { method, target, file, body } = self;
        let file =
            file.map(|file| format!("{FILE_HEADER}: {}\r\n", file_in_header(file))).unwrap_or_default();
        let length = body.len();
        format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{file}Content-Length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

// === impl Reply ===

impl Reply {
    /// Parses a response. Returns `None` if it is not a complete response of a daemon.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
        });
        (length == Some(body.len())).then(|| Self { status, body: body.to_owned() })
    }
}

// === targets ===

/// Returns the path of a configuration file as encoded in [`FILE_HEADER`].
pub(crate) fn file_in_header(file: &Path) -> String {
    percent_encode(file.as_os_str().as_bytes(), NOT_IN_PATH).to_string()
}

/// Returns the target of requests about one backend.
pub(crate) fn backend_target(pool: &str, backend: &UpstreamAddress) -> String {
    let address = backend.to_string();
    format!("/v1/pools/{pool}/backends/{}", percent_encode(address.as_bytes(), NOT_IN_ADDRESS))
}

/// Characters to escape in the address of a backend. A colon is allowed in a path segment.
const NOT_IN_ADDRESS: &AsciiSet = &RESERVED.remove(b':');

/// Returns a query with these parameters.
pub(crate) fn query(parameters: &[(&str, &str)]) -> String {
    let pair =
        |(name, value): &(&str, &str)| format!("{name}={}", percent_encode(value.as_bytes(), RESERVED));
    parameters.iter().map(pair).collect::<Vec<_>>().join("&")
}

/// Parses the parameters of a query, in their order. A parameter without `=` has an empty value. A `+` is a plus sign,
/// not a space.
///
/// # Errors
/// If a name or a value is not percent-encoded UTF-8.
pub(crate) fn parameters(query: &str) -> impl Iterator<Item = Result<(Cow<'_, str>, Cow<'_, str>), String>> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Ok((decoded(name)?, decoded(value)?))
    })
}

/// Decodes percent-encoded UTF-8.
///
/// # Errors
/// If the text is not percent-encoded UTF-8.
pub(crate) fn decoded(text: &str) -> Result<Cow<'_, str>, String> {
    let decoded = percent_decode_str(text).decode_utf8().ok().filter(|_| escapes_are_complete(text));
    decoded.ok_or_else(|| format!("`{text}` is not percent-encoded UTF-8"))
}

/// Returns whether each `%` is followed by two hexadecimal digits. The decoder does not reject other escapes.
fn escapes_are_complete(text: &str) -> bool {
    let mut pieces = text.split('%').skip(1);
    pieces.all(|piece| piece.len() >= 2 && piece.bytes().take(2).all(|digit| digit.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_complete_when_its_body_has_the_announced_length() {
        let parse = |text: &str| Reply::parse(text.as_bytes()).map(|reply| (reply.status, reply.body));
        let ok = "HTTP/1.1 200 OK\r\nContent-Type: a\r\ncontent-length: 2\r\n\r\nok";
        assert_eq!(parse(ok), Some((200, "ok".into())));
        assert_eq!(parse(&ok[..ok.len() - 1]), None, "it was cut off");
        assert_eq!(parse("HTTP/1.1 200 OK\r\n\r\nok"), None, "it has no length");
        assert_eq!(parse("SSH-2.0-OpenSSH\r\n\r\n"), None);
    }

    #[test]
    fn a_request_contains_the_configuration_file_in_ascii() {
        let file = Some(Path::new("/etc/lb ä.yaml"));
        let request = Request { method: "POST", target: "/v1/stop", file, body: "{}" };
        let text = String::from_utf8(request.to_bytes()).unwrap();
        assert!(text.starts_with("POST /v1/stop HTTP/1.1\r\n"), "{text}");
        assert!(text.contains("\r\nLb-Config-File: /etc/lb%20%C3%A4.yaml\r\n"), "{text}");
        assert!(text.ends_with("\r\nContent-Length: 2\r\n\r\n{}"), "{text}");
    }

    #[test]
    fn queries_are_read_as_they_were_written() {
        let written = query(&[("path", "/a b&c=ä+"), ("empty", "")]);
        assert_eq!(written, "path=%2Fa%20b%26c%3D%C3%A4%2B&empty=");
        let read: Result<Vec<_>, _> = parameters(&written).collect();
        let read = read.unwrap();
        assert_eq!(read[0], ("path".into(), "/a b&c=ä+".into()));
        assert_eq!(read[1], ("empty".into(), "".into()));
        assert_eq!(parameters("&a&").next(), Some(Ok(("a".into(), "".into()))));
        assert_eq!(decoded("a+b"), Ok("a+b".into()));
    }

    #[test]
    fn text_that_is_not_percent_encoded_utf8_is_rejected() {
        for text in ["%", "%4", "%zz", "a%", "%ff", "%C3"] {
            assert_eq!(decoded(text), Err(format!("`{text}` is not percent-encoded UTF-8")));
        }
    }

    #[test]
    fn addresses_in_targets_have_no_brackets_and_no_slashes() {
        let target = backend_target("web", &"[::1]:80".parse().unwrap());
        assert_eq!(target, "/v1/pools/web/backends/%5B::1%5D:80");
        assert_eq!(
            backend_target("web", &"10.0.0.1:80".parse().unwrap()),
            "/v1/pools/web/backends/10.0.0.1:80"
        );
        let target = backend_target("web", &"unix:/run/app.sock".parse().unwrap());
        assert_eq!(target.split('/').count(), 6, "{target}");
    }
}
