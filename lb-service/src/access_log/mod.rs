//! The access log: one line per request, written by a thread of its own.
//!
//! A request formats its line ([`format_text`], [`format_json`]) and puts it into a bounded queue; the writer
//! thread takes what has gathered every few milliseconds and writes it with one system call. A disk that is
//! slow or stands still therefore costs no request any time: the queue fills, further lines are dropped and
//! counted.

mod format;
mod writer;

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

pub use format::{format_json, format_text};
pub use writer::{AccessLog, WriterGuard};

/// What is written, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How a line looks.
    pub format: Format,
    /// Where lines go.
    pub target: Target,
}

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Nothing is written.
    #[default]
    Off,
    /// Made for reading, see [`format_text`].
    Text,
    /// One JSON object per line, see [`format_json`].
    Json,
}

/// Where lines go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// The standard output.
    #[default]
    Stdout,
    /// A file, appended to, made with mode 0640.
    File(PathBuf),
}

/// What is known about a request when it is over.
///
/// What came from the network is given as bytes: a client may send anything.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// When the request began.
    pub time: SystemTime,
    /// The client, as far as trusted proxies tell; absent on a Unix socket.
    pub client: Option<IpAddr>,
    /// The name of the listener it came through.
    pub listener: &'a str,
    /// The method; absent when the request could not be read.
    pub method: Option<&'a str>,
    /// The host the client asked for.
    pub host: Option<&'a [u8]>,
    /// The path without the query, which may hold secrets; absent when the request could not be read.
    pub path: Option<&'a [u8]>,
    /// The version of HTTP spoken with the client; absent when the request could not be read.
    pub version: Option<http::Version>,
    /// The status sent to the client; absent when it went away before there was one.
    pub status: Option<u16>,
    /// Bytes of the request's body.
    pub bytes_in: u64,
    /// Bytes of the response's body.
    pub bytes_out: u64,
    /// From the request's first line to the end of the response.
    pub duration: Duration,
    /// The name of the pool; absent when no route matched.
    pub pool: Option<&'a str>,
    /// The last backend tried.
    pub backend: Option<&'a str>,
    /// From the choice of the backend to the first byte of its response.
    pub ttfb: Option<Duration>,
    /// How many backends were tried.
    pub tries: u32,
    /// Of them, those that failed it, each with how.
    pub tried: Vec<(&'a str, Cow<'static, str>)>,
    /// Those that were passed over, each with why.
    pub passed_over: Vec<(&'a str, Cow<'static, str>)>,
    /// Whether the connection to the backend had been used before; absent when there was none.
    pub reused: Option<bool>,
    /// Why the request failed.
    pub failure: Option<&'a str>,
}

// === impl Settings ===

impl Settings {
    /// No access log.
    pub fn off() -> Self {
        Self { format: Format::Off, target: Target::Stdout }
    }
}

// === impl Record ===

impl<'a> Record<'a> {
    /// A request of which nothing is known but when it came, and through which listener.
    pub fn new(time: SystemTime, listener: &'a str) -> Self {
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
