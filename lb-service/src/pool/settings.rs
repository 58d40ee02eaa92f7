//! What the configuration says about a pool.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Index of a pool in the plan; routes and metrics use it instead of the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PoolId(pub usize);

/// What the configuration says about a pool, checked and complete.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// Its name in the configuration, metrics and logs.
    pub name: Arc<str>,
    /// How the next backend is chosen.
    pub policy: PolicyKind,
    /// Never empty; no address twice.
    pub backends: Vec<BackendSettings>,
    /// TLS towards the backends; absent: plain HTTP.
    pub tls: Option<UpstreamTls>,
    /// The `Host` header sent to the backends; absent: the client's own.
    pub host: Option<http::HeaderValue>,
    /// How long the backends may take.
    pub timeouts: Timeouts,
    /// How many more backends are tried when a connection cannot be made.
    pub retry_attempts: usize,
}

/// The policies by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyKind {
    /// Smooth weighted round robin.
    #[default]
    RoundRobin,
}

/// One backend of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendSettings {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its share relative to the others.
    pub weight: Weight,
}

/// A backend's share of the traffic relative to the other backends of its pool: 1 to 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Weight(u16);

/// TLS towards the backends of a pool.
#[derive(Clone, Debug)]
pub struct UpstreamTls {
    /// The name sent in the handshake, which the certificate must match.
    pub sni: String,
    /// Whether the certificate is verified.
    pub verify: bool,
    /// Certificates that are trusted instead of the system's, DER encoded; empty: the system's.
    pub ca: Vec<Vec<u8>>,
}

/// How long the backends of a pool may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// To make a connection, TLS included.
    pub connect: Duration,
    /// To the head of the response, and between any two reads or writes after it.
    pub response: Duration,
    /// A connection that nothing used for this long is closed.
    pub idle: Duration,
}

// === impl PoolSettings ===

impl PoolSettings {
    /// Plain HTTP to these backends, with the defaults of everything else.
    pub fn new(name: &str, backends: Vec<BackendSettings>) -> Self {
        Self {
            name: name.into(),
            policy: PolicyKind::default(),
            backends,
            tls: None,
            host: None,
            timeouts: Timeouts::default(),
            retry_attempts: 1,
        }
    }
}

// === impl Weight ===

impl Weight {
    /// The smallest.
    pub const MIN: Self = Self(1);
    /// The largest.
    pub const MAX: Self = Self(1000);

    /// `None` unless `value` is within 1 to 1000.
    pub fn new(value: u64) -> Option<Self> {
        u16::try_from(value).ok().map(Self).filter(|weight| (Self::MIN..=Self::MAX).contains(weight))
    }

    /// The number itself.
    pub fn get(self) -> usize {
        usize::from(self.0)
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self::MIN
    }
}

// === impl Timeouts ===

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            response: Duration::from_secs(60),
            idle: Duration::from_secs(60),
        }
    }
}
