//! The settings of a pool.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use serde::{Deserialize, Serialize};

use super::address::UpstreamAddress;
use super::client_certificate::ClientCertificate;
use super::session_keys::SessionKeys;
use crate::policy::Algorithm;

/// The index of a pool in the snapshot; routes and metrics use it instead of the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PoolId(pub usize);

/// The settings of a pool, validated and complete.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolSettings {
    /// The name in the configuration, metrics and logs.
    pub name: Arc<str>,
    /// The algorithm that selects the next backend.
    pub policy: Algorithm,
    /// The part of a request that is hashed; only the policies that hash use it.
    pub hash_on: HashOn,
    /// The maximum that a hashed backend can hold, in percent of its share of the requests in flight, above 100; `None`
    /// means no bound. Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2018).
    pub bounded_load: Option<u32>,
    /// The cookie that keeps a client at its backend; `None` means no sessions.
    pub sticky: Option<StickySettings>,
    /// The backends: never empty, no address twice, and at least one is not a backup.
    pub backends: Vec<BackendSettings>,
    /// TLS towards the backends; `None` means plain HTTP.
    pub tls: Option<UpstreamTls>,
    /// The `Host` header sent to the backends; `None` means that the client's own is kept.
    pub host: Option<http::HeaderValue>,
    /// The protocols that clients can switch to; `None` means any that can be passed on.
    pub upgrades: Option<Vec<Arc<str>>>,
    /// The time limits of the backends.
    pub timeouts: Timeouts,
    /// The conditions for ejecting a backend.
    pub outlier_detection: OutlierSettings,
    /// The share of backends, in percent, that must be available for the others to be skipped, 0 to 100; 0 turns panic
    /// mode off. This is Envoy's panic threshold; see [`Availability`](super::Availability).
    pub panic_threshold: u8,
    /// The time that a backend takes after its return to get its whole share again, from a tenth of it; `None` means at
    /// once. It never applies at the start of the process.
    pub slow_start: Option<Duration>,
    /// The conditions for retrying failed requests.
    pub retries: RetrySettings,
    /// The maximum number of requests that wait if every backend is at its `max_requests`; 0 turns the queue off.
    pub queue: u32,
}

/// The part of a request that is hashed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HashOn {
    /// The address of the client, as reported by a trusted proxy if there is one.
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

/// The settings of the session cookie, which keeps a client at its backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StickySettings {
    /// The name of the cookie, a token of RFC 6265.
    pub cookie: Arc<str>,
    /// The time that the client keeps the cookie after its last request; `None` means for its session.
    pub ttl: Option<Duration>,
    /// The keys that sign the cookie; `None` means that the cookie is a hash without a key.
    pub keys: Option<SessionKeys>,
}

/// The conditions for ejecting a backend that fails requests: Envoy's outlier detection by consecutive failures, with
/// probation.
///
/// A failure is any [`UpstreamError`](super::UpstreamError), or a response of 502, 503 or 504. Any other complete
/// response is a success, and clears the record. A backend returns when its ejection ends; its first failure then
/// ejects it again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutlierSettings {
    /// The number of failures in a row that ejects a backend; 0 turns this off.
    pub consecutive_failures: u32,
    /// The duration of the first ejection; the n-th in a row lasts n times as long. Up to a tenth is added at random.
    pub base_ejection: Duration,
    /// The maximum duration of an ejection.
    pub max_ejection: Duration,
    /// The maximum share of a pool that is ejected at any moment, in percent, 0 to 100, rounded down to whole backends.
    /// The last available backend is never ejected.
    pub max_ejected_percent: u8,
    /// The conditions for ejecting a backend that is much slower than the others; `None` means never.
    pub slow_backends: Option<SlowBackendSettings>,
}

/// The conditions for ejecting a backend that is much slower than the others: a gray failure (Huang et al., HotOS
/// 2017), which no health check finds.
///
/// The means of the time to the first byte are compared. A backend is ejected if it is too slow in two consecutive
/// windows, by at least 10 ms. At least three backends must be judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowBackendSettings {
    /// The multiple of the pool's median above which a backend counts as slow; above 1.
    pub ratio: f64,
    /// The minimum of responses in a window, at least 1; a backend with fewer is not judged.
    pub min_samples: u32,
    /// The length of the windows over which times are compared.
    pub window: Duration,
}

/// The conditions for retrying failed requests on another backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetrySettings {
    /// The maximum number of further backends, each with at most one attempt.
    pub attempts: usize,
    /// The time limit of one attempt to connect, and then from the end of the request to the head of its response;
    /// `None` means that the limits of [`Timeouts`] apply.
    pub per_try: Option<Duration>,
    /// The maximum share of retries in the pool's requests in flight, in percent, rounded down. Retries after a
    /// failed connection do not count, nor do those after a connection that broke while another backend is available.
    /// A connection race counts.
    pub budget_percent: u32,
    /// The number of simultaneous retries that are always allowed.
    pub min_concurrent: u32,
    /// The failures that are retried.
    pub on: RetryOn,
    /// The time after which a connection attempt starts one to another backend, without a request being sent to either;
    /// `None` means never. It needs `attempts` and [`RetryCause::ConnectFailure`].
    pub connect_race: Option<Duration>,
}

/// A set of [`RetryCause`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryOn(u8);

/// A failure that can be retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryCause {
    /// No connection could be made, TLS included, so nothing was sent. Only this cause applies to every method.
    ConnectFailure,
    /// The connection broke before the head of a response, or the response was not HTTP.
    Reset,
    /// The head of the response exceeded the time limit.
    Timeout,
    /// The response was 502.
    BadGateway,
    /// The response was 503.
    Unavailable,
    /// The response was 504.
    GatewayTimeout,
}

/// The settings of one backend of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendSettings {
    /// The address of the backend.
    pub address: UpstreamAddress,
    /// The share relative to the other backends.
    pub weight: Weight,
    /// Whether the backend is used only if no primary is available.
    pub backup: bool,
    /// The maximum of requests in flight; `None` means no limit.
    pub max_requests: Option<NonZeroU32>,
    /// The state that an operator set. It is not a key of the configuration file: it changes while the daemon runs.
    pub admin: Admin,
}

/// The state of a backend that an operator set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Admin {
    /// The backend is used.
    #[default]
    InService,
    /// The backend gets no new sessions; existing sessions continue.
    Draining,
    /// The backend gets no requests.
    Disabled,
}

/// A backend's share of the traffic relative to the other backends of its pool: 1 to 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Weight(u16);

/// The TLS settings for the backends of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The name sent in the handshake, for which the certificate must be valid. `None` means that no name is sent and
    /// the certificate must be valid for the address of the backend.
    pub sni: Option<String>,
    /// Whether the certificate is verified.
    pub verify: bool,
    /// The DER-encoded certificates that are trusted instead of the system's; empty means the system's.
    pub ca: Vec<Vec<u8>>,
    /// The certificate for backends that demand one; `None` means that there is none.
    pub client: Option<ClientCertificate>,
}

/// The time limits of the backends of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// The limit to make a connection, TLS included.
    pub connect: Duration,
    /// The limit from the end of the request to the head of the response, and for a pause of the backend while it reads
    /// the request.
    pub response: Duration,
    /// The longest pause in the body of the response; `None` means no limit.
    pub body: Option<Duration>,
    /// The longest time in which a tunnel, a stream of events, or a body that flows in both directions is quiet; `None`
    /// means no limit.
    pub tunnel: Option<Duration>,
    /// The longest time from the creation of a connection to its last use, shortened by up to 10 % at random so that
    /// connections do not end together.
    pub max_age: Duration,
    /// The time after which an idle connection is closed.
    pub idle: Duration,
    /// The maximum time that a request waits for a backend below its `max_requests`.
    pub queue: Duration,
}

/// The default of [`PoolSettings::panic_threshold`], in percent.
pub(crate) const PANIC_THRESHOLD: u8 = 50;

// === impl PoolSettings ===

impl PoolSettings {
    /// Returns a pool with plain HTTP to these backends and the defaults of everything else: round robin, ejection
    /// after 5 failures, one retry, panic below 50 %, no limits and no queue.
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
            upgrades: None,
            timeouts: Timeouts::default(),
            outlier_detection: OutlierSettings::default(),
            panic_threshold: PANIC_THRESHOLD,
            slow_start: None,
            retries: RetrySettings::default(),
            queue: 0,
        }
    }
}

// === impl BackendSettings ===

impl BackendSettings {
    /// Returns a backend of weight 1 that is not a backup and has no limit.
    pub fn new(address: UpstreamAddress) -> Self {
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
    /// Returns a session cookie with this name, without keys.
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
        Self {
            attempts: 1,
            per_try: None,
            budget_percent: 20,
            min_concurrent: 3,
            on: RetryOn::ALL,
            connect_race: Some(Duration::from_millis(250)),
        }
    }
}

// === impl RetryOn ===

impl RetryOn {
    /// All causes.
    pub const ALL: Self = Self((1 << RetryCause::ALL.len()) - 1);

    /// Returns whether the set contains this cause.
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
    /// All causes, in the order of their discriminants.
    pub const ALL: [Self; 6] = [
        Self::ConnectFailure,
        Self::Reset,
        Self::Timeout,
        Self::BadGateway,
        Self::Unavailable,
        Self::GatewayTimeout,
    ];

    /// Returns the cause for a response with this status; `None` if there is none.
    pub(crate) fn of_status(status: u16) -> Option<Self> {
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
    /// The minimum.
    pub const MIN: Self = Self(1);
    /// The maximum.
    pub const MAX: Self = Self(1000);

    /// Returns a weight; `None` unless `value` is from 1 to 1000.
    pub fn new(value: u64) -> Option<Self> {
        u16::try_from(value).ok().map(Self).filter(|weight| (Self::MIN..=Self::MAX).contains(weight))
    }

    /// Returns the number.
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
            body: Some(Duration::from_secs(60)),
            tunnel: Some(Duration::from_secs(3600)),
            max_age: Duration::from_secs(3600),
            idle: Duration::from_secs(60),
            queue: Duration::from_secs(1),
        }
    }
}
