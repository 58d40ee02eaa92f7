//! What the configuration says about a pool.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use serde::{Deserialize, Serialize};

use super::session_keys::SessionKeys;
use crate::policy::Algorithm;

/// Index of a pool in the plan; routes and metrics use it instead of the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PoolId(pub usize);

/// What the configuration says about a pool, checked and complete.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolSettings {
    /// Its name in the configuration, metrics and logs.
    pub name: Arc<str>,
    /// How the next backend is chosen.
    pub policy: Algorithm,
    /// What of a request a hash is made of; only the policies that hash look at it.
    pub hash_on: HashOn,
    /// The most that a hashed backend may hold, in percent of its share of the requests in flight, above 100; absent:
    /// no bound. Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2018).
    pub bounded_load: Option<u32>,
    /// The cookie that keeps a client at its backend; absent: nothing does.
    pub sticky: Option<StickySettings>,
    /// Never empty; no address twice; at least one is no backup.
    pub backends: Vec<BackendSettings>,
    /// TLS towards the backends; absent: plain HTTP.
    pub tls: Option<UpstreamTls>,
    /// The `Host` header sent to the backends; absent: the client's own.
    pub host: Option<http::HeaderValue>,
    /// How long the backends may take.
    pub timeouts: Timeouts,
    /// When a backend that fails requests is left out for a while.
    pub outlier_detection: OutlierSettings,
    /// The share of backends that must be available, in percent, for the others to be left out, 0 to 100; 0: none.
    /// Envoy's panic threshold; see [`Availability`](super::Availability).
    pub panic_threshold: u8,
    /// How long a backend that comes back takes to get its whole share again, from a tenth of it; absent: it has it at
    /// once. It never applies at the start of the process.
    pub slow_start: Option<Duration>,
    /// Which requests that failed are sent again.
    pub retries: RetrySettings,
    /// How many requests wait when every backend is at its `max_requests`; 0: none.
    pub queue: u32,
}

/// What of a request a hash is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HashOn {
    /// The address of the client, as told by a trusted proxy if there is one.
    #[default]
    ClientIp,
    /// Path and query, as sent.
    Uri,
    /// The value of a header.
    Header(HeaderName),
    /// The value of a cookie.
    Cookie(Arc<str>),
    /// The value of a query parameter, as sent.
    Query(Arc<str>),
}

/// The cookie that keeps a client at its backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StickySettings {
    /// Its name, a token of RFC 6265.
    pub cookie: Arc<str>,
    /// How long the client keeps it after its last request; absent: for its session.
    pub ttl: Option<Duration>,
    /// The keys that it is signed with; absent: it is a hash without a key.
    pub keys: Option<SessionKeys>,
}

/// When a backend that fails requests is left out for a while: Envoy's outlier detection by consecutive failures, with
/// probation.
///
/// A failure is any [`UpstreamError`](super::UpstreamError), or an answer of 502, 503 or 504. Any other answer that
/// is whole is a success, and clears the record. A backend comes back on its own; its first failure then ejects it
/// again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutlierSettings {
    /// So many failures in a row eject a backend; 0: none do.
    pub consecutive_failures: u32,
    /// How long the first ejection lasts; the n-th in a row lasts n times as long. Up to a tenth is added at random.
    pub base_ejection: Duration,
    /// The longest ejection.
    pub max_ejection: Duration,
    /// The largest share of a pool that is ejected at any moment, in percent, 0 to 100, rounded down to whole
    /// backends. The last available one is never ejected.
    pub max_ejected_percent: u8,
    /// When a backend that is much slower than the others is ejected; absent: never.
    pub slow_backends: Option<SlowBackendSettings>,
}

/// When a backend that is much slower than the others is ejected: a gray failure (Huang et al., HotOS 2017), which no
/// check finds.
///
/// Means of the time to the first byte are compared. A backend is ejected when it is too slow in two windows one
/// after the other, by 10 ms at least. At least three must be judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowBackendSettings {
    /// So many times the median of the pool is too slow; above 1.
    pub ratio: f64,
    /// A backend with fewer answers in a window is not judged; at least 1.
    pub min_samples: u32,
    /// Times are compared over windows of this length.
    pub window: Duration,
}

/// Which requests that failed are sent again, to another backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetrySettings {
    /// How many more backends are tried, each at most once.
    pub attempts: usize,
    /// How long one attempt may take to connect, and then from the end of the request to the head of its answer;
    /// absent: as long as [`Timeouts`] says.
    pub per_try: Option<Duration>,
    /// The share of the pool's requests in flight that may be retries, in percent, rounded down. Failed
    /// connections do not count, nor do connections that broke while another backend is well.
    pub budget_percent: u32,
    /// So many retries at a time are allowed whatever the budget says.
    pub min_concurrent: u32,
    /// The failures that are worth another attempt.
    pub on: RetryOn,
}

/// A set of [`RetryCause`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryOn(u8);

/// A failure that may be worth another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryCause {
    /// No connection could be made, TLS included, so nothing was sent. The only one that is for every method.
    ConnectFailure,
    /// The connection broke before the head of an answer, or what came was not HTTP.
    Reset,
    /// The head of the answer took too long.
    Timeout,
    /// The backend answered 502.
    BadGateway,
    /// The backend answered 503.
    Unavailable,
    /// The backend answered 504.
    GatewayTimeout,
}

/// One backend of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendSettings {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its share relative to the others.
    pub weight: Weight,
    /// Whether it is used only when no other is available.
    pub backup: bool,
    /// The most requests it is sent at a time; absent: no limit.
    pub max_requests: Option<NonZeroU32>,
    /// What an operator decided about it. No key of the configuration: it is changed while the daemon runs.
    pub admin: Admin,
}

/// What an operator decided about a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Admin {
    /// It is used.
    #[default]
    InService,
    /// It gets no new sessions; those that it has go on.
    Draining,
    /// It gets no requests.
    Disabled,
}

/// A backend's share of the traffic relative to the other backends of its pool: 1 to 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Weight(u16);

/// TLS towards the backends of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The name sent in the handshake, which the certificate must be for; absent: no name is sent, and the certificate
    /// must be for the address of the backend.
    pub sni: Option<String>,
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
    /// How long a request waits at most for a backend that is below its `max_requests`.
    pub queue: Duration,
}

// === impl PoolSettings ===

impl PoolSettings {
    /// Plain HTTP to these backends, with the defaults of everything else: round robin, ejection after 5 failures,
    /// one more attempt, panic below 50 %, no limits and no queue.
    pub fn new(name: &str, backends: Vec<BackendSettings>) -> Self {
        Self {
            name: name.into(),
            policy: Algorithm::default(),
            hash_on: HashOn::default(),
            bounded_load: None,
            sticky: None,
            backends,
            tls: None,
            host: None,
            timeouts: Timeouts::default(),
            outlier_detection: OutlierSettings::default(),
            panic_threshold: 50,
            slow_start: None,
            retries: RetrySettings::default(),
            queue: 0,
        }
    }
}

// === impl BackendSettings ===

impl BackendSettings {
    /// A backend of weight 1, no backup, without a limit.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            weight: Weight::default(),
            backup: false,
            max_requests: None,
            admin: Admin::InService,
        }
    }
}

// === impl StickySettings ===

impl StickySettings {
    /// A cookie of this name for the client's session, without keys.
    pub fn new(cookie: &str) -> Self {
        Self { cookie: cookie.into(), ttl: None, keys: None }
    }
}

// === impl OutlierSettings ===

impl Default for OutlierSettings {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejected_percent: 50,
            slow_backends: None,
        }
    }
}

// === impl RetrySettings ===

impl Default for RetrySettings {
    fn default() -> Self {
        Self { attempts: 1, per_try: None, budget_percent: 20, min_concurrent: 3, on: RetryOn::ALL }
    }
}

// === impl RetryOn ===

impl RetryOn {
    /// All of them.
    pub const ALL: Self = Self((1 << RetryCause::ALL.len()) - 1);

    /// Whether it holds this one.
    pub fn contains(self, cause: RetryCause) -> bool {
        self.0 & (1 << cause as u8) != 0
    }
}

impl FromIterator<RetryCause> for RetryOn {
    fn from_iter<I: IntoIterator<Item = RetryCause>>(causes: I) -> Self {
        Self(causes.into_iter().fold(0, |set, cause| set | 1 << cause as u8))
    }
}

// === impl RetryCause ===

impl RetryCause {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 6] = [
        Self::ConnectFailure,
        Self::Reset,
        Self::Timeout,
        Self::BadGateway,
        Self::Unavailable,
        Self::GatewayTimeout,
    ];

    /// The one that an answer with this status is.
    pub fn of_status(status: u16) -> Option<Self> {
        match status {
            502 => Some(Self::BadGateway),
            503 => Some(Self::Unavailable),
            504 => Some(Self::GatewayTimeout),
            _ => None,
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

impl TryFrom<u64> for Weight {
    type Error = &'static str;

    fn try_from(value: u64) -> Result<Self, Self::Error> {
        Self::new(value).ok_or("a weight is 1 to 1000")
    }
}

impl From<Weight> for u64 {
    fn from(weight: Weight) -> Self {
        weight.0.into()
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
            queue: Duration::from_secs(1),
        }
    }
}
