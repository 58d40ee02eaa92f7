//! The access log: one line per request, written by a separate thread.
//!
//! A request formats its line (`format_text`, `format_json`) and puts it into a bounded queue. Every few
//! milliseconds, the writer thread takes all queued lines and writes them with one system call. A slow or blocked disk
//! therefore delays no request: the queue fills up, and further lines are dropped and counted.

mod format;
mod writer;

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

pub(crate) use format::{format_json, format_text};
pub use writer::{AccessLog, WriterGuard};

/// The format and the target of the access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The format of a line.
    pub format: Format,
    /// The target of the lines.
    pub target: Target,
}

/// The format of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// No access log.
    #[default]
    Off,
    /// Plain text for people, see `format_text`.
    Text,
    /// One JSON object per line, see `format_json`.
    Json,
}

/// The target of the lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// Standard output.
    #[default]
    Stdout,
    /// A file to append to. It is created with mode 0640.
    File(PathBuf),
}

/// The data of a completed request.
///
/// Values from the network are bytes, because a client may send anything.
#[derive(Clone, Debug)]
pub(crate) struct Record<'a> {
    /// The time at which the request began.
    pub time: SystemTime,
    /// The client's IP address, as reported by trusted proxies. `None` on a Unix socket.
    pub client: Option<IpAddr>,
    /// The name of the listener.
    pub listener: &'a str,
    /// The method. `None` if the request could not be parsed.
    pub method: Option<&'a str>,
    /// The host that the client requested.
    pub host: Option<&'a [u8]>,
    /// The path without the query, which may contain secrets. `None` if the request could not be parsed.
    pub path: Option<&'a [u8]>,
    /// The version of HTTP on the client's connection. `None` if the request could not be parsed.
    pub version: Option<http::Version>,
    /// The status sent to the client. `None` if the client disconnected before.
    pub status: Option<u16>,
    /// The length of the request body, in bytes.
    pub bytes_in: u64,
    /// The length of the response body, in bytes.
    pub bytes_out: u64,
    /// The time from the request line to the end of the response.
    pub duration: Duration,
    /// The name of the pool. `None` if no route matched.
    pub pool: Option<&'a str>,
    /// The backend of the last attempt.
    pub backend: Option<&'a str>,
    /// The time from the choice of the backend to the first byte of its response.
    pub ttfb: Option<Duration>,
    /// The number of attempts.
    pub tries: u32,
    /// The backends of failed attempts, each with the failure.
    pub tried: Vec<(&'a str, Cow<'static, str>)>,
    /// The backends that were passed over, each with the reason.
    pub passed_over: Vec<(&'a str, Cow<'static, str>)>,
    /// Whether the connection to the backend was reused. `None` if there was no connection.
    pub reused: Option<bool>,
    /// The reason why the request failed.
    pub failure: Option<&'a str>,
    /// The index of the byte for which the head of the request was rejected.
    pub offset: Option<usize>,
    /// The message of TLS or of the system about the latest connection that could not be made.
    pub detail: Option<&'a str>,
}

// === impl Settings ===

impl Settings {
    /// Returns settings without an access log.
    pub fn off() -> Self {
        Self { format: Format::Off, target: Target::Stdout }
    }
}

// === impl Record ===

impl<'a> Record<'a> {
    /// Creates a record with only the time and the listener.
    pub(crate) fn new(time: SystemTime, listener: &'a str) -> Self {
        Self {
            time,
            client: None,
            listener,
            method: None,
            host: None,
            path: None,
            version: None,
            status: None,
            bytes_in: 0,
            bytes_out: 0,
            duration: Duration::ZERO,
            pool: None,
            backend: None,
            ttfb: None,
            tries: 0,
            tried: Vec::new(),
            passed_over: Vec::new(),
            reused: None,
            failure: None,
            offset: None,
            detail: None,
        }
    }
}

// === impl Target ===

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("stdout"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}
