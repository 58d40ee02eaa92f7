//! Explanations for `/api/v1/explain` and the subcommand `explain`: the backend that a request would go to and the
//! reasons, as JSON and as text.
//!
//! ```text
//! query or arguments ──> Request ──> SampleRequest ──> lb_service: Snapshot::explain ──> Document ──> JSON, text
//! ```
//!
//! Invariant: an explanation changes nothing, and both forms contain the same information.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use http::Method;
use lb_service::explain::{Explained, InPool, SampleRequest};
use lb_service::listener::ListenerId;
use lb_service::pool::{Backend, BackendState, Judged, Level, PickError, Score, SkipReason};
use lb_service::route::{AnyOf, Mismatch, RouteMatch};
use lb_service::snapshot::Snapshot;
use serde::Serialize;

use crate::condition::{Condition, Known, Moment};
use crate::http_message::parameters;
use crate::operator::Operator;
use crate::serving::Core;
use crate::time::rfc3339;
use crate::words::{count, span};

/// Source of explanations.
#[derive(Clone)]
pub(crate) struct ExplainSource {
    core: Core,
    operator: Operator,
}

/// Function that returns the condition of a backend of the pool with this name: the reason for its state, and since
/// when it has this state.
type Conditions<'a> = &'a dyn Fn(&str, &Backend, BackendState, Moment) -> Condition;

/// Request to explain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// The name of the listener; `None` means the first one.
    pub listener: Option<String>,
    /// The host; `None` means no host.
    pub host: Option<String>,
    /// The path and query.
    pub path: String,
    /// The method.
    pub method: String,
    /// The names and values of headers.
    pub headers: Vec<(String, String)>,
    /// The address of the client; `None` means a client on a Unix socket.
    pub client: Option<IpAddr>,
}

/// The parameters of a query.
const PARAMETERS: [&str; 6] = ["listener", "host", "path", "method", "header", "client"];

/// Explanation as a JSON document. Absent values are `null`, so that every key exists.
#[derive(Debug, Serialize)]
struct Document {
    listener: String,
    method: String,
    host: Option<String>,
    path: String,
    client: Option<IpAddr>,
    route: RouteDocument,
    pool: Option<String>,
    policy: Option<&'static str>,
    /// The hash key.
    key: Option<String>,
    /// The backend from the session cookie.
    session: Option<String>,
    availability: Option<AvailabilityDocument>,
    queue: Option<QueueDocument>,
    /// The backends in the order in which the policy would offer them, or by address if the policy is random.
    backends: Vec<BackendDocument>,
    /// The backend that would be selected; `None` also if the policy is random.
    taken: Option<String>,
    /// Whether the policy selects a backend at random.
    draw: bool,
    /// The result: `taken`, `draw`, `waits`, or the reason for a rejection in the words of the access log.
    outcome: &'static str,
}

#[derive(Debug, Serialize)]
struct RouteDocument {
    /// The index in the order of the configuration, starting with 0.
    index: Option<usize>,
    others: Vec<OtherRoute>,
}

#[derive(Debug, Serialize)]
struct OtherRoute {
    index: usize,
    reason: String,
}

#[derive(Debug, Serialize)]
struct AvailabilityDocument {
    panic: bool,
    backups_in_use: bool,
}

#[derive(Debug, Serialize)]
struct QueueDocument {
    waiting: u64,
    places: u32,
}

#[derive(Debug, Serialize)]
struct BackendDocument {
    address: String,
    state: &'static str,
    candidate: bool,
    /// The reason for skipping the backend in the words of the access log; `None` for a candidate.
    refusal: Option<&'static str>,
    reason: String,
    /// The time since which the backend has this state.
    since: String,
    /// The reason for the text form, which includes the duration of the state if the state is the reason.
    #[serde(skip)]
    reason_in_text: String,
    score: ScoreDocument,
    would_be_taken: bool,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum ScoreDocument {
    /// The position in the rotation; 1 is next.
    Turn(usize),
    /// The position for the key; 1 is the owner of the key.
    Position(usize),
    /// The probability, from 0 to 1.
    Chance(f64),
    InFlightOverWeight(f64),
    /// The expected cost of a response, in milliseconds.
    Cost {
        /// The cost, behind the requests in flight.
        ms: f64,
        /// The measured time to first byte; `None` if there is no response.
        response_ms: Option<f64>,
        /// The penalty for failures; `None` if there is none.
        penalty_ms: Option<f64>,
    },
}

// === impl Request ===

impl Request {
    /// Parses a query such as `host=H&path=P&method=M&header=Name:Value&client=IP&listener=NAME`, in which values are
    /// percent-encoded. All parameters are optional; `header` can be repeated.
    ///
    /// # Errors
    /// If the query is invalid.
    pub(crate) fn parse(query: Option<&str>) -> Result<Self, String> {
        let mut request = Self::default();
        for parameter in parameters(query.unwrap_or_default()) {
            let (name, value) = parameter?;
            request.set(&name, value.into_owned())?;
        }
        Ok(request)
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), String> {
        match name {
            "listener" => self.listener = Some(value),
            "host" => self.host = Some(value),
            "path" => self.path = value,
            "method" => self.method = value,
            "header" => self.headers.push(header(&value)?),
            "client" => self.client = Some(address(&value)?),
            unknown => {
                return Err(format!(
                    "unknown parameter `{unknown}`; the parameters are {}",
                    PARAMETERS.join(", ")
                ));
            }
        }
        Ok(())
    }

    fn sample(&self, plan: &Snapshot) -> Result<SampleRequest, String> {
        let listener = self.listener_of(plan)?;
        let method = Method::from_bytes(self.method.as_bytes())
            .map_err(|_| format!("`{}` is not a method", self.method))?;
        let sample = SampleRequest::new(listener, method, &self.path).map_err(|error| error.to_string())?;
        let host = self.host.iter().map(|host| ("Host", host.as_str()));
        let headers = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let sample = host
            .chain(headers)
            .try_fold(sample, |sample, (name, value)| sample.with_header(name, value))
            .map_err(|error| error.to_string())?;
        Ok(match self.client {
            Some(client) => sample.from(client),
            None => sample,
        })
    }

    fn listener_of(&self, plan: &Snapshot) -> Result<ListenerId, String> {
        let is_meant = |name: &str| self.listener.as_ref().is_none_or(|meant| meant == name);
        let mut listeners = plan.listeners.iter();
        let found = listeners.find(|(_, listener)| is_meant(&listener.name)).map(|(id, _)| id);
        found.ok_or_else(|| {
            let names: Vec<&str> = plan.listeners.iter().map(|(_, listener)| &*listener.name).collect();
            let meant = self.listener.as_deref().unwrap_or_default();
            format!("there is no listener `{meant}`; the listeners are {}", names.join(", "))
        })
    }
}

impl Default for Request {
    /// Returns `GET /`.
    fn default() -> Self {
        let (path, method) = ("/".to_owned(), "GET".to_owned());
        Self { listener: None, host: None, path, method, headers: Vec::new(), client: None }
    }
}

/// Parses `Name:Value`, with or without spaces around the value.
///
/// # Errors
/// If there is no colon.
pub(crate) fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) =
        text.split_once(':').ok_or_else(|| format!("`{text}` is not a header: write NAME:VALUE"))?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("`{text}` is not an IP address"))
}

// === impl ExplainSource ===

impl ExplainSource {
    /// Returns a source of explanations for the current snapshot.
    pub(crate) fn new(core: Core, operator: Operator) -> Self {
        Self { core, operator }
    }

    /// Explains a query, see [`Request::parse`], as JSON.
    ///
    /// # Errors
    /// If the query is invalid.
    pub(crate) fn json(&self, query: Option<&str>) -> Result<String, String> {
        let document = self.document(&Request::parse(query)?)?;
        let json = serde_json::to_string_pretty(&document).expect("strings, numbers and lists are JSON");
        Ok(json + "\n")
    }

    /// Explains a request as text for a terminal.
    ///
    /// # Errors
    /// If the request is invalid.
    pub(crate) fn text(&self, request: &Request) -> Result<String, String> {
        self.document(request).map(|document| document.text())
    }

    fn document(&self, request: &Request) -> Result<Document, String> {
        let conditions = |pool: &str, backend: &Backend, state, at| self.condition(pool, backend, state, at);
        Document::of(request, &self.core.current.load(), &conditions)
    }

    /// Returns the condition of a backend. A pool that has just been removed has no conditions.
    fn condition(&self, pool: &str, backend: &Backend, state: BackendState, at: Moment) -> Condition {
        let (pools, status) = (self.core.pools.now(), self.operator.config_status());
        match pools.iter().find(|checked| *checked.pool.name == *pool) {
            Some(checked) => checked.condition(backend, state, status.changed(pool, &backend.address), at),
            None => Condition::of(backend, state, Known::NOTHING, at),
        }
    }
}

// === impl Document ===

impl Document {
    /// Explains a request that would begin now under the snapshot `plan`.
    fn of(request: &Request, plan: &Snapshot, conditions: Conditions<'_>) -> Result<Self, String> {
        let at = Moment::now();
        let sample = request.sample(plan)?;
        let explained = plan.explain(&sample, at.instant);
        let listener = plan.listeners.get(sample.listener).name.to_string();
        Ok(Self::new(request, listener, &explained, conditions, at))
    }

    fn new(
        request: &Request,
        listener: String,
        explained: &Explained<'_>,
        conditions: Conditions<'_>,
        at: Moment,
    ) -> Self {
        let pool = explained.pool.as_ref();
        let in_pool = |pool: &InPool<'_>| (outcome(pool), backends(pool, conditions, at));
        let (outcome, backends) = pool.map_or(("no_route", Vec::new()), in_pool);
        Self {
            listener,
            method: request.method.clone(),
            host: request.host.clone(),
            path: request.path.clone(),
            client: request.client,
            route: RouteDocument::new(explained),
            pool: pool.map(|pool| pool.pool.name.to_string()),
            policy: pool.map(|pool| pool.pool.policy().as_str()),
            key: pool
                .and_then(|pool| pool.key.as_deref())
                .map(|key| String::from_utf8_lossy(key).into_owned()),
            session: pool.and_then(session),
            availability: pool.map(|pool| AvailabilityDocument {
                panic: pool.explanation.availability.panic,
                backups_in_use: pool.explanation.availability.level == Level::Backup,
            }),
            queue: pool
                .map(|pool| pool.pool.queue())
                .map(|queue| QueueDocument { waiting: queue.len(), places: queue.places() }),
            taken: backends.iter().find(|backend| backend.would_be_taken).map(|taken| taken.address.clone()),
            backends,
            draw: outcome == "draw",
            outcome,
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let host = self.host.as_deref().unwrap_or_default();
        let from = self.client.map(|client| format!(" from {client}")).unwrap_or_default();
        line(
            &mut text,
            "request",
            &format!("{} {host}{}{from} through {}", self.method, self.path, self.listener),
        );
        self.push_routes(&mut text);
        if let (Some(pool), Some(policy)) = (&self.pool, self.policy) {
            line(&mut text, "pool", &format!("{pool}, {policy}{}", self.circumstances()));
            self.push_backends(&mut text);
        }
        line(&mut text, "outcome", &self.verdict());
        text
    }

    fn push_routes(&self, text: &mut String) {
        let index = self.route.index.map_or_else(|| "no match".to_owned(), |index| index.to_string());
        line(text, "route", &index);
        for other in &self.route.others {
            line(text, "", &format!("not {}: {}", other.index, other.reason));
        }
    }

    /// Returns the other inputs of the selection: hash key, session, availability and queue.
    fn circumstances(&self) -> String {
        let mut words = String::new();
        let mut add = |word: &str| {
            words.push_str(", ");
            words.push_str(word);
        };
        if let Some(key) = &self.key {
            add(&format!("key {key:?}"));
        }
        if let Some(session) = &self.session {
            add(&format!("session at {session}"));
        }
        if let Some(availability) = &self.availability {
            if availability.panic {
                add("panic: health is ignored");
            }
            if availability.backups_in_use {
                add("backups are in use");
            }
        }
        if let Some(queue) = self.queue.as_ref().filter(|queue| queue.waiting > 0) {
            add(&format!("{} waiting (limit {})", count(queue.waiting, "request"), queue.places));
        }
        words
    }

    fn push_backends(&self, text: &mut String) {
        let rows: Vec<[String; 4]> = self.backends.iter().map(BackendDocument::row).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let widths = [width(0), width(1), width(2)];
        for row in &rows {
            let [address, state, score, reason] = row;
            let [first, second, third] = widths;
            line(text, "", &format!("{address:first$}  {state:second$}  {score:third$}  {reason}"));
        }
    }

    fn verdict(&self) -> String {
        match (self.outcome, &self.taken) {
            (_, Some(taken)) => taken.clone(),
            ("draw", None) => "a backend selected at random".to_owned(),
            ("waits", None) => "waits until a backend is below its limit".to_owned(),
            (refused, None) => format!("rejected: {refused}"),
        }
    }
}

fn line(text: &mut String, title: &str, words: &str) {
    writeln!(text, "{title:8} {words}").expect("a String takes everything");
}

/// Returns the result for the request. If other requests are waiting, it must wait behind them.
fn outcome(pool: &InPool<'_>) -> &'static str {
    let (queue, explanation) = (pool.pool.queue(), &pool.explanation);
    let waits = || if queue.len() < queue.places().into() { "waits" } else { "queue_full" };
    match explanation.taken {
        _ if !queue.is_empty() => waits(),
        Ok(_) if explanation.draw => "draw",
        Ok(_) => "taken",
        Err(PickError::Full) => waits(),
        Err(PickError::Unavailable) => "no_backend",
    }
}

fn session(pool: &InPool<'_>) -> Option<String> {
    pool.pool.backends().get(pool.session?).map(|backend| backend.label.to_string())
}

fn backends(pool: &InPool<'_>, conditions: Conditions<'_>, at: Moment) -> Vec<BackendDocument> {
    let is_taken = |judged: &Judged| {
        let taken = pool.explanation.taken.as_ref();
        outcome(pool) == "taken" && taken.is_ok_and(|taken| taken.address == judged.backend.address)
    };
    let one = |judged: &Judged| {
        let condition = conditions(&pool.pool.name, &judged.backend, judged.state, at);
        BackendDocument::new(judged, is_taken(judged), pool, &condition, at)
    };
    pool.explanation.backends.iter().map(one).collect()
}

// === impl RouteDocument ===

impl RouteDocument {
    fn new(explained: &Explained<'_>) -> Self {
        let other = |(index, verdict): (usize, &RouteMatch<'_>)| {
            let reason = match verdict {
                RouteMatch::Taken => return None,
                RouteMatch::Behind(first) => format!("route {first} matches first"),
                RouteMatch::Not(Mismatch::Listener) => "it requires another listener".to_owned(),
                RouteMatch::Not(Mismatch::Host(hosts)) => none_of("host", hosts),
                RouteMatch::Not(Mismatch::Path(paths)) => none_of("path", paths),
                RouteMatch::Not(Mismatch::Method) => "it requires another method".to_owned(),
                RouteMatch::Not(Mismatch::Header(name)) => format!("header {name} does not match"),
            };
            Some(OtherRoute { index, reason })
        };
        let others = explained.routes.iter().enumerate().filter_map(other).collect();
        Self { index: explained.route, others }
    }
}

/// Returns a reason such as `its host is not a.test` or `its host is none of a.test, b.test`.
fn none_of<T: ToString>(what: &str, patterns: &AnyOf<T>) -> String {
    let patterns: Vec<String> = patterns.as_slice().iter().map(ToString::to_string).collect();
    let word = if patterns.len() == 1 { "not" } else { "none of" };
    format!("its {what} is {word} {}", patterns.join(", "))
}

// === impl BackendDocument ===

impl BackendDocument {
    fn new(judged: &Judged, is_taken: bool, pool: &InPool<'_>, condition: &Condition, at: Moment) -> Self {
        let state = judged.state.as_str();
        let lasting = span(at.since(condition.since).as_secs());
        let reason = |state: &str| reason(judged, is_taken, pool, state, &condition.reason);
        Self {
            address: judged.backend.label.to_string(),
            state,
            candidate: judged.skip_reason.is_none(),
            refusal: judged.skip_reason.map(SkipReason::as_str),
            reason: reason(&format!("it is {state}")),
            since: rfc3339(condition.since),
            reason_in_text: reason(&format!("it has been {state} for {lasting}")),
            score: ScoreDocument::new(judged, at.instant),
            would_be_taken: is_taken,
        }
    }

    fn row(&self) -> [String; 4] {
        [self.address.clone(), self.state.to_owned(), self.score.words(), self.reason_in_text.clone()]
    }
}

/// Returns the reason why a backend is or is not a candidate. `state` is a clause with its state, such as `it is down`;
/// `why` is the reason for this state.
fn reason(judged: &Judged, is_taken: bool, pool: &InPool<'_>, state: &str, why: &str) -> String {
    let Some(refusal) = judged.skip_reason else { return candidacy(judged, is_taken, pool, state, why) };
    let held = || count(judged.backend.load.in_flight(), "request");
    match refusal {
        // A backup that is down is skipped for both reasons; its state says more.
        SkipReason::Ejected | SkipReason::Down | SkipReason::Backup if is_ill(judged) => {
            format!("{state}: {why}")
        }
        SkipReason::Full => format!("it has {} in flight (limit {})", held(), judged.backend.max_requests),
        SkipReason::AboveBound => format!("it has {} in flight, more than its share", held()),
        SkipReason::SlowStart => slow(judged),
        SkipReason::Backup => "it is a backup, and other backends are available".to_owned(),
        SkipReason::Draining => "it is draining".to_owned(),
        SkipReason::Disabled => "it is disabled".to_owned(),
        SkipReason::Down => "its health checks fail".to_owned(),
        SkipReason::Ejected | SkipReason::Tried | SkipReason::Failing => "it failed requests".to_owned(),
    }
}

fn is_ill(judged: &Judged) -> bool {
    matches!(judged.state, BackendState::Down | BackendState::Ejected)
}

fn candidacy(judged: &Judged, is_taken: bool, pool: &InPool<'_>, state: &str, why: &str) -> String {
    let explanation = &pool.explanation;
    let mut words = match (is_taken, explanation.by_session) {
        (true, true) => "it has the session".to_owned(),
        (true, false) => "it would be selected".to_owned(),
        (false, true) => "another backend has the session".to_owned(),
        (false, false) if explanation.draw => "it can be selected at random".to_owned(),
        (false, false) => "another backend comes first".to_owned(),
    };
    if is_ill(judged) {
        write!(words, ", although {state}: panic ({why})").expect("a String takes everything");
    }
    if judged.share < 1.0 {
        write!(words, "; {}", slow(judged)).expect("a String takes everything");
    }
    words
}

fn slow(judged: &Judged) -> String {
    format!("it is in slow start, at {:.0} % of its share", judged.share * 100.0)
}

// === impl ScoreDocument ===

impl ScoreDocument {
    fn new(judged: &Judged, now: Instant) -> Self {
        let ms = |time: Duration| rounded(time.as_secs_f64() * 1e3);
        match judged.score {
            Score::Rotation(turn) => Self::Turn(turn),
            Score::Position(position) => Self::Position(position),
            Score::Chance(chance) => Self::Chance(rounded(chance)),
            Score::InFlight(value) => Self::InFlightOverWeight(rounded(value)),
            Score::Cost(seconds) => Self::Cost {
                ms: rounded(seconds * 1e3),
                response_ms: judged.backend.load.latest(now).map(ms),
                penalty_ms: judged.backend.load.penalty(now).map(ms),
            },
        }
    }

    fn words(self) -> String {
        match self {
            Self::Turn(turn) => format!("turn {turn}"),
            Self::Position(position) => format!("position {position}"),
            Self::Chance(chance) => format!("chance {:.1} %", chance * 100.0),
            Self::InFlightOverWeight(value) => format!("in flight/weight {value:.2}"),
            Self::Cost { ms, response_ms, penalty_ms: Some(penalty) } => {
                let response = response_ms.map(|time| format!("response {time:.1} ms, ")).unwrap_or_default();
                format!("cost {ms:.1} ms ({response}penalty for failures {penalty:.1} ms)")
            }
            Self::Cost { ms, .. } => format!("cost {ms:.1} ms"),
        }
    }
}

/// Rounds to three decimals.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use lb_service::forwarded::TrustedProxies;
    use lb_service::listener::{ListenAddress, Listener, Listeners};
    use lb_service::policy::Algorithm;
    use lb_service::pool::{Admin, BackendSettings, Pool, PoolId, PoolSettings};
    use lb_service::route::{HostPattern, PathPattern, Route, RouteTable};
    use lb_service::snapshot::SnapshotParts;
    use lb_service::traffic::Traffic;
    use pingora::lb::HealthRegistry;
    use proptest::prelude::{any, proptest};
    use serde_json::{Value, json};

    fn snapshot(policy: Algorithm) -> Snapshot {
        let mut backends: Vec<_> =
            (1..=3).map(|last| BackendSettings::new(([10, 0, 0, last], 80).into())).collect();
        backends[1].admin = Admin::Draining;
        let pool = Pool::new(
            &PoolSettings { policy, ..PoolSettings::new("shop", backends) },
            Arc::new(HealthRegistry::new()),
            None,
        );
        let listener =
            |name: &str, port| Listener::new(name, ListenAddress::Tcp(([127, 0, 0, 1], port).into()));
        let api = HostPattern::parse("api.test").unwrap();
        let routes = vec![
            Route { host: Some(api.into()), ..Route::any(PoolId(0)) },
            Route { path: PathPattern::Prefix("/shop".into()).into(), ..Route::any(PoolId(0)) },
        ];
        let parts = SnapshotParts {
            listeners: Listeners::new([listener("web", 1), listener("private", 2)]),
            routes: RouteTable::new(routes),
            pools: vec![Arc::new(pool)],
            trusted_proxies: TrustedProxies::default(),
            explain_token: None,
            access_logs: vec![],
        };
        Snapshot::new(parts, &Traffic::new())
    }

    fn document(snapshot: &Snapshot, query: &str) -> Result<Document, String> {
        let known = Known { kind: &health_service::CheckKind::Tcp, ..Known::NOTHING };
        let conditions = |_: &str, backend: &Backend, state, at| Condition::of(backend, state, known, at);
        Document::of(&Request::parse(Some(query))?, snapshot, &conditions)
    }

    fn json(snapshot: &Snapshot, query: &str) -> Value {
        json!(document(snapshot, query).unwrap())
    }

    #[test]
    fn a_percent_encoded_query_is_decoded() {
        let query = "host=a.test&path=%2Fa+b%3Fx%3D1%26y&method=PUT&header=X-One:%201&header=x:2&client=::1&listener=l";
        let read = Request::parse(Some(query)).unwrap();
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let expected = Request {
            listener: Some("l".into()),
            host: Some("a.test".into()),
            path: "/a+b?x=1&y".into(),
            method: "PUT".into(),
            headers: vec![header("X-One", "1"), header("x", "2")],
            client: Some("::1".parse().unwrap()),
        };
        assert_eq!(read, expected);
        assert_eq!(Request::parse(None).unwrap(), Request::default());
    }

    #[test]
    fn an_invalid_query_is_rejected_with_the_reason() {
        let snapshot = snapshot(Algorithm::RoundRobin);
        for (query, words) in [
            ("hots=a", "unknown parameter `hots`"),
            ("path=%zz", "`%zz`"),
            ("path=%e4", "`%e4`"),
            ("path=x", "`x` is not a path"),
            ("method=a%20b", "`a b` is not a method"),
            ("header=x", "`x` is not a header"),
            ("header=a%20b:1", "`a b:1` is not a header"),
            ("client=me", "`me` is not an IP address"),
            ("listener=none", "there is no listener `none`; the listeners are web, private"),
        ] {
            let problem = document(&snapshot, query).expect_err(query);
            assert!(problem.contains(words), "{query}: {problem}");
        }
    }

    #[test]
    fn the_document_contains_all_parts() {
        let snapshot = snapshot(Algorithm::RoundRobin);
        let document = json(&snapshot, "host=b.test&path=/shop");
        assert_eq!(document["listener"], "web");
        assert_eq!(
            document["route"],
            json!({"index": 1, "others": [{"index": 0, "reason": "its host is not api.test"}]})
        );
        assert_eq!((&document["pool"], &document["policy"]), (&json!("shop"), &json!("round_robin")));
        assert_eq!(document["availability"], json!({"panic": false, "backups_in_use": false}));
        assert_eq!((&document["taken"], &document["outcome"]), (&json!("10.0.0.1:80"), &json!("taken")));
        let mut second = document["backends"][1].clone();
        assert!(second.as_object_mut().unwrap().remove("since").unwrap().is_string());
        assert_eq!(
            second,
            json!({
                "address": "10.0.0.2:80", "state": "draining", "candidate": false, "refusal": "draining",
                "reason": "it is draining", "score": {"turn": 2}, "would_be_taken": false,
            })
        );
        let document = json(&snapshot, "host=api.test&path=/shop");
        assert_eq!(document["route"]["others"][0]["reason"], "route 0 matches first");
        let document = json(&snapshot, "path=/other");
        assert_eq!((&document["outcome"], &document["pool"]), (&json!("no_route"), &Value::Null));
    }

    #[test]
    fn a_route_that_does_not_match_lists_its_patterns() {
        let hosts = AnyOf::new(["a.test", "*.b.test"].map(|host| HostPattern::parse(host).unwrap())).unwrap();
        assert_eq!(none_of("host", &hosts), "its host is none of a.test, *.b.test");
        let path = AnyOf::One(PathPattern::Prefix("/v1".into()));
        assert_eq!(none_of("path", &path), "its path is not /v1…");
    }

    #[test]
    fn a_random_policy_does_not_name_a_backend() {
        let document = json(&snapshot(Algorithm::Random), "path=/shop");
        assert_eq!((&document["taken"], &document["draw"]), (&Value::Null, &json!(true)));
        assert_eq!(document["backends"][0]["score"], json!({"chance": 0.5}));
        assert!(document["backends"].as_array().unwrap().iter().all(|one| one["would_be_taken"] == false));
    }

    #[test]
    fn the_text_is_aligned() {
        let query = "host=b.test&path=/shop&client=192.0.2.1";
        let text = document(&snapshot(Algorithm::RoundRobin), query).unwrap().text();
        let expected = "\
request  GET b.test/shop from 192.0.2.1 through web
route    1
         not 0: its host is not api.test
pool     shop, round_robin
         10.0.0.1:80  up        turn 1  it would be selected
         10.0.0.2:80  draining  turn 2  it is draining
         10.0.0.3:80  up        turn 3  another backend comes first
outcome  10.0.0.1:80
";
        assert_eq!(text, expected);
    }

    proptest! {
        #[test]
        fn any_query_is_explained_or_rejected(query in "[a-z=&%:/ +]{0,40}", text in any::<String>()) {
            let snapshot = snapshot(Algorithm::Maglev);
            for query in [query, text.clone(), format!("path=/{text}")] {
                let _ = document(&snapshot, &query);
            }
        }
    }
}
