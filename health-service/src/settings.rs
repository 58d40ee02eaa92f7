//! The settings of a health check: [`Settings`] has every default filled in and nothing left to parse.
//!
//! Programs without a configuration file construct it directly:
//!
//! ```
//! use health_service::{CheckKind, HttpCheck, Settings};
//!
//! let settings = Settings {
//!     kind: CheckKind::Http(HttpCheck { expect_body: Some("ok".into()), ..HttpCheck::default() }),
//!     ..Settings::default()
//! };
//! # assert_eq!(settings.interval.as_secs(), 5);
//! ```

use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use http::uri::PathAndQuery;
use values::{Percent, StatusRange};

/// The health checks of one pool. The default equals an empty section `health_check`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The kind of a check.
    pub kind: CheckKind,
    /// Time from the start of one check of a backend to the start of the next.
    pub interval: Duration,
    /// Interval while recent results contradict the state of the backend, before a threshold is reached.
    pub fast_interval: Duration,
    /// Timeout of a whole check.
    pub timeout: Duration,
    /// Numbers of consecutive results that change the state.
    pub thresholds: Thresholds,
    /// Percentage by which each interval is shortened or lengthened at random.
    pub jitter: Percent<0, 100>,
    /// Port to check; `None`: the port of the backend. It has no effect on Unix sockets.
    pub port: Option<NonZeroU16>,
}

/// The kind of a check.
#[derive(Clone, Debug, PartialEq)]
pub enum CheckKind {
    /// No checks: every backend counts as up.
    None,
    /// Connect, with a TLS handshake if the pool has TLS.
    Tcp,
    /// Send a request and compare the response with what is expected.
    Http(HttpCheck),
    /// Query the backend's gRPC health service, which must report SERVING.
    Grpc(GrpcCheck),
}

/// The request of an HTTP check, and the response that passes it.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpCheck {
    /// Method of the request.
    pub method: http::Method,
    /// Path and query of the request.
    pub path: PathAndQuery,
    /// `Host` header; `None`: the server name of TLS, otherwise the address of the backend.
    pub host: Option<String>,
    /// Status codes that pass; an empty list fails every check.
    pub expect_status: Vec<StatusRange>,
    /// Text that the first 256 KiB of the body must contain.
    pub expect_body: Option<String>,
}

/// The request of a gRPC check, in the protocol `grpc.health.v1`. The default checks the whole server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrpcCheck {
    /// Name of the service to check; empty: the whole server.
    pub service: String,
    /// Authority of the request; `None`: the server name of TLS, otherwise the address of the backend.
    pub host: Option<String>,
}

/// Numbers of consecutive results that change the state of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Consecutive passed checks that mark a backend up.
    pub rise: NonZeroU32,
    /// Consecutive failed checks that mark a backend down.
    pub fall: NonZeroU32,
}

// === impl HttpCheck ===

impl Default for HttpCheck {
    fn default() -> Self {
        Self {
            method: http::Method::GET,
            path: PathAndQuery::from_static("/"),
            host: None,
            expect_status: vec![StatusRange::SUCCESS_OR_REDIRECT],
            expect_body: None,
        }
    }
}

impl HttpCheck {
    /// Whether a response with this status passes.
    pub(crate) fn expects_status(&self, status: u16) -> bool {
        self.expect_status.iter().any(|range| range.contains(status))
    }

    /// The expected statuses as text: `200-399, 404`.
    pub(crate) fn expected_statuses(&self) -> String {
        let ranges: Vec<String> = self.expect_status.iter().map(ToString::to_string).collect();
        ranges.join(", ")
    }
}
