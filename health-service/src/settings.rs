//! What a health check is meant to do: [`Settings`], with every default filled in and nothing left to parse.
//!
//! Programs without a configuration file build one by hand:
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

use crate::value::{Percent, StatusRange};

/// How one pool is checked. The default is that of an empty section `health_check`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// What a check does.
    pub kind: CheckKind,
    /// Time between the starts of two checks of one backend.
    pub interval: Duration,
    /// The same while the backend is changing its state.
    pub fast_interval: Duration,
    /// Time that a whole check may take.
    pub timeout: Duration,
    /// How many checks in a row change the state.
    pub thresholds: Thresholds,
    /// By how much an interval may be shorter or longer, at random.
    pub jitter: Percent,
    /// Port to check; `None`: the backend's own. Without effect on Unix sockets.
    pub port: Option<NonZeroU16>,
}

/// What a check does.
#[derive(Clone, Debug, PartialEq)]
pub enum CheckKind {
    /// No checks: every backend counts as up.
    None,
    /// A connection can be made, with the TLS handshake where the peer has TLS.
    Tcp,
    /// A request is answered as expected.
    Http(HttpCheck),
    /// The backend's gRPC health service says that it serves.
    Grpc(GrpcCheck),
}

/// The request of an HTTP check, and the answer that passes it.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpCheck {
    /// Method of the request.
    pub method: http::Method,
    /// Path and query of the request.
    pub path: PathAndQuery,
    /// Host header; `None`: the peer's SNI, else the address of the backend.
    pub host: Option<String>,
    /// Status codes that pass; an empty list lets none pass.
    pub expect_status: Vec<StatusRange>,
    /// Text that the body must contain, within its first 256 KiB.
    pub expect_body: Option<String>,
}

/// The question of a gRPC check, by the protocol `grpc.health.v1`. The default asks about the server as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrpcCheck {
    /// Name of the service that is asked about; empty: the server as a whole.
    pub service: String,
    /// Authority of the request; `None`: the peer's SNI, else the address of the backend.
    pub host: Option<String>,
}

/// How many checks in a row change the state of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Passed checks that bring a backend up.
    pub rise: NonZeroU32,
    /// Failed checks that take a backend down.
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
    /// Whether an answer with this status passes.
    pub fn expects_status(&self, status: u16) -> bool {
        self.expect_status.iter().any(|range| range.contains(status))
    }

    /// The expected statuses as they are written: `200-399, 404`.
    pub fn expected_statuses(&self) -> String {
        let ranges: Vec<String> = self.expect_status.iter().map(ToString::to_string).collect();
        ranges.join(", ")
    }
}
