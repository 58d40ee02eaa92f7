//! Requests on the control socket, parsed.

use std::str::FromStr;
use std::time::Duration;

use lb_service::pool::UpstreamAddress;
use serde::de::DeserializeOwned;
use values::{BackendAddress, Scalar};

use super::bodies::{Filter, NewBackend, NewWeight, Nothing, Stop};
use crate::config::loopback;
use crate::http_message::{decoded, parameters};
use crate::operator::{Change, Joining, Order, Reload};

/// Maximum time that a request can wait for an event.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(60);
/// Maximum time that a request can wait for an idle backend.
const MAX_IDLE_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Call that a request makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Return the status document.
    Status,
    /// Return the sockets of old processes that still drain.
    Predecessors,
    /// Return the events after a number, and wait for one if there is none.
    Events {
        /// The number of the last event that the client received, or 0.
        after: u64,
        /// The PID of the process that assigned the number; `None` means this process. Each process numbers its own
        /// events, so the number of another process selects all events.
        process: Option<u32>,
        /// The time to wait for an event, at most [`MAX_WAIT`].
        wait: Duration,
    },
    /// Explain how a request would be routed.
    Explain {
        /// The request, as a query string.
        query: String,
        /// Whether to return readable text instead of JSON.
        as_text: bool,
    },
    /// Return the token for the request header `X-Lb-Explain`.
    ExplainToken,
    /// Return the log level, after setting it if there is a filter.
    LogLevel(Option<String>),
    /// Reload the configuration file.
    Reload(Reload),
    /// Hand over to a new process.
    Upgrade,
    /// Drain and end the process.
    Stop {
        /// Whether to end without a drain.
        now: bool,
    },
    /// Change a backend.
    Order(Order),
    /// Wait until a backend is idle.
    Idle {
        /// The name of the pool.
        pool: String,
        /// The address of the backend.
        backend: UpstreamAddress,
        /// The maximum time to wait.
        wait: Duration,
    },
}

/// Reason why a request is rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unclear {
    /// The path does not exist.
    NotFound,
    /// The path supports only these methods.
    Method(&'static str),
    /// The request is invalid for the given reason.
    Bad(String),
}

// === impl Call ===

impl Call {
    /// Returns whether the call only waits and changes nothing, so that it can end when its client disconnects.
    pub(crate) fn only_waits(&self) -> bool {
        matches!(self, Self::Events { .. } | Self::Idle { .. })
    }
}

/// Parses a request.
///
/// # Errors
/// If the path, the method or the body is invalid.
pub(crate) fn parse(method: &str, path: &str, query: &str, body: &[u8]) -> Result<Call, Unclear> {
    let segments: Vec<_> = path.split('/').skip(1).collect();
    match segments.as_slice() {
        ["v1", "status"] => only(method, "GET", || none(body).map(|()| Call::Status)),
        ["v1", "predecessors"] => only(method, "GET", || none(body).map(|()| Call::Predecessors)),
        ["v1", "events"] => only(method, "GET", || events(query)),
        ["v1", "explain"] => only(method, "GET", || Ok(explain(query, false))),
        ["v1", "explain", "text"] => only(method, "GET", || Ok(explain(query, true))),
        ["v1", "explain", "token"] => only(method, "GET", || none(body).map(|()| Call::ExplainToken)),
        ["v1", "log_level"] => log_level(method, body),
        ["v1", "reload"] => only(method, "POST", || object(body).map(Call::Reload)),
        ["v1", "upgrade"] => only(method, "POST", || none(body).map(|()| Call::Upgrade)),
        ["v1", "stop"] => only(method, "POST", || object(body).map(|Stop { now }| Call::Stop { now })),
        ["v1", "pools", pool, "backends"] => only(method, "POST", || added(pool, body)),
        ["v1", "pools", pool, "backends", address] => {
            only(method, "DELETE", || none(body).and_then(|()| order(pool, address, Change::Remove)))
        }
        ["v1", "pools", pool, "backends", address, "weight"] => only(method, "PUT", || {
            let NewWeight { weight } = object(body)?;
            order(pool, address, Change::Weigh(weight))
        }),
        ["v1", "pools", pool, "backends", address, "idle"] => {
            only(method, "GET", || idle(pool, address, query))
        }
        ["v1", "pools", pool, "backends", address, action] => {
            let change = change(action).ok_or(Unclear::NotFound)?;
            only(method, "POST", || none(body).and_then(|()| order(pool, address, change)))
        }
        _ => Err(Unclear::NotFound),
    }
}

fn only(
    method: &str,
    allowed: &'static str,
    call: impl FnOnce() -> Result<Call, Unclear>,
) -> Result<Call, Unclear> {
    if method == allowed { call() } else { Err(Unclear::Method(allowed)) }
}

fn change(action: &str) -> Option<Change> {
    match action {
        "drain" => Some(Change::Drain),
        "undrain" => Some(Change::Undrain),
        "enable" => Some(Change::Enable),
        "disable" => Some(Change::Disable),
        _ => None,
    }
}

fn order(pool: &str, address: &str, change: Change) -> Result<Call, Unclear> {
    Ok(Call::Order(Order { pool: pool.to_owned(), backend: backend(address)?, change }))
}

fn added(pool: &str, body: &[u8]) -> Result<Call, Unclear> {
    let NewBackend { address, weight, backup, max_requests } = object(body)?;
    let change = Change::Add(Joining { weight, backup, max_requests });
    order(pool, &address, change)
}

fn idle(pool: &str, address: &str, query: &str) -> Result<Call, Unclear> {
    let mut wait = MAX_IDLE_WAIT;
    for parameter in parameters(query) {
        let (name, value) = parameter.map_err(bad)?;
        match &*name {
            "wait" => wait = seconds(&value)?.min(MAX_IDLE_WAIT),
            other => return Err(unknown_parameter(other)),
        }
    }
    Ok(Call::Idle { pool: pool.to_owned(), backend: backend(address)?, wait })
}

fn events(query: &str) -> Result<Call, Unclear> {
    let (mut after, mut process, mut wait) = (0, None, Duration::ZERO);
    for parameter in parameters(query) {
        let (name, value) = parameter.map_err(bad)?;
        match &*name {
            "after" => after = number(&name, &value)?,
            "process" => process = Some(number(&name, &value)?),
            "wait" => wait = seconds(&value)?.min(MAX_WAIT),
            other => return Err(unknown_parameter(other)),
        }
    }
    Ok(Call::Events { after, process, wait })
}

fn explain(query: &str, as_text: bool) -> Call {
    Call::Explain { query: query.to_owned(), as_text }
}

fn log_level(method: &str, body: &[u8]) -> Result<Call, Unclear> {
    match method {
        "GET" => none(body).map(|()| Call::LogLevel(None)),
        "PUT" => object(body).map(|Filter { filter }| Call::LogLevel(Some(filter))),
        _ => Err(Unclear::Method("GET, PUT")),
    }
}

/// Parses the address of a backend, percent-encoded or not: `10.0.0.1:80`, `[::1]:80`, `%5B::1%5D:80`.
fn backend(text: &str) -> Result<UpstreamAddress, Unclear> {
    let address = BackendAddress::from_text(&decoded(text).map_err(bad)?);
    address
        .map(|address| UpstreamAddress::resolve(&address, loopback()))
        .map_err(|problem| bad(problem.to_string().replace('\n', ": ")))
}

fn number<N: FromStr>(name: &str, value: &str) -> Result<N, Unclear> {
    value.parse().map_err(|_| bad(format!("`{name}` is not a number: {value:?}")))
}

fn seconds(value: &str) -> Result<Duration, Unclear> {
    let seconds = value.parse().map_err(|_| bad(format!("`wait` is not a number of seconds: {value:?}")))?;
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| bad(format!("`wait` is not a number of seconds: {value:?}")))
}

fn unknown_parameter(name: &str) -> Unclear {
    bad(format!("unknown parameter `{name}`"))
}

fn none(body: &[u8]) -> Result<(), Unclear> {
    object(body).map(|Nothing {}| ())
}

/// Parses the JSON object of a body; an empty body counts as `{}`.
fn object<T: DeserializeOwned>(body: &[u8]) -> Result<T, Unclear> {
    let body = if body.trim_ascii().is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| bad(format!("cannot parse the body: {error}")))
}

fn bad(text: String) -> Unclear {
    Unclear::Bad(text)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use lb_service::pool::Weight;

    use super::*;

    fn call(method: &str, target: &str, body: &str) -> Result<Call, Unclear> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        parse(method, path, query, body.as_bytes())
    }

    fn ordered(change: Change) -> Call {
        Call::Order(Order { pool: "web".into(), backend: "10.0.0.1:80".parse().unwrap(), change })
    }

    #[test]
    fn each_endpoint_has_its_own_call() {
        let of = "/v1/pools/web/backends/10.0.0.1:80";
        let weight = Weight::new(3).unwrap();
        let reload = Reload { dry_run: true, keep_runtime: false };
        assert_eq!(call("GET", "/v1/status", ""), Ok(Call::Status));
        assert_eq!(call("GET", "/v1/predecessors", ""), Ok(Call::Predecessors));
        assert_eq!(call("POST", "/v1/reload", ""), Ok(Call::Reload(Reload::default())));
        assert_eq!(call("POST", "/v1/reload", r#"{"dry_run": true}"#), Ok(Call::Reload(reload)));
        assert_eq!(call("POST", "/v1/upgrade", "{}"), Ok(Call::Upgrade));
        assert_eq!(call("POST", "/v1/stop", ""), Ok(Call::Stop { now: false }));
        assert_eq!(call("POST", "/v1/stop", r#"{"now": true}"#), Ok(Call::Stop { now: true }));
        assert_eq!(call("GET", "/v1/explain?host=a", ""), Ok(explain("host=a", false)));
        assert_eq!(call("GET", "/v1/explain/text?host=a", ""), Ok(explain("host=a", true)));
        assert_eq!(call("GET", "/v1/explain/token", ""), Ok(Call::ExplainToken));
        assert_eq!(call("GET", "/v1/log_level", ""), Ok(Call::LogLevel(None)));
        let debug = Call::LogLevel(Some("debug".into()));
        assert_eq!(call("PUT", "/v1/log_level", r#"{"filter": "debug"}"#), Ok(debug));
        for (action, change) in [
            ("drain", Change::Drain),
            ("undrain", Change::Undrain),
            ("enable", Change::Enable),
            ("disable", Change::Disable),
        ] {
            assert_eq!(call("POST", &format!("{of}/{action}"), ""), Ok(ordered(change)));
        }
        assert_eq!(call("DELETE", of, ""), Ok(ordered(Change::Remove)));
        let three = call("PUT", &format!("{of}/weight"), r#"{"weight": 3}"#);
        assert_eq!(three, Ok(ordered(Change::Weigh(weight))));
        let joining = Joining { weight, backup: true, max_requests: NonZeroU32::new(9) };
        let body = r#"{"address": "10.0.0.1:80", "weight": 3, "backup": true, "max_requests": 9}"#;
        assert_eq!(call("POST", "/v1/pools/web/backends", body), Ok(ordered(Change::Add(joining))));
    }

    #[test]
    fn waiting_times_are_limited() {
        let events =
            |after, process, seconds| Ok(Call::Events { after, process, wait: Duration::from_secs(seconds) });
        assert_eq!(call("GET", "/v1/events", ""), events(0, None, 0));
        assert_eq!(call("GET", "/v1/events?after=7&process=9&wait=3", ""), events(7, Some(9), 3));
        assert_eq!(call("GET", "/v1/events?wait=1e9", ""), events(0, None, 60));
        let wait = Duration::from_millis(500);
        for (address, backend) in
            [("%5B::1%5D:80", "[::1]:80"), ("unix:%2Frun%2Fapp.sock", "unix:/run/app.sock")]
        {
            let idle = call("GET", &format!("/v1/pools/web/backends/{address}/idle?wait=0.5"), "");
            let backend = backend.parse().unwrap();
            assert_eq!(idle, Ok(Call::Idle { pool: "web".into(), backend, wait }));
        }
    }

    #[test]
    fn invalid_requests_are_rejected_with_the_reason() {
        let why = |method, target, body| match call(method, target, body) {
            Err(Unclear::Bad(why)) => why,
            other => panic!("{other:?}"),
        };
        assert!(why("POST", "/v1/reload", r#"{"dry": true}"#).contains("unknown field `dry`"));
        assert!(why("POST", "/v1/upgrade", r#"{"now": true}"#).contains("unknown field `now`"));
        assert!(why("GET", "/v1/events?since=3", "").contains("unknown parameter `since`"));
        assert!(why("GET", "/v1/events?after=x", "").contains("not a number"));
        assert!(why("GET", "/v1/events?process=-1", "").contains("`process` is not a number"));
        assert!(why("GET", "/v1/events?wait=-1", "").contains("not a number"));
        assert!(why("DELETE", "/v1/pools/web/backends/web", "").contains("10.0.0.1:80"));
        let weight = why("PUT", "/v1/pools/web/backends/10.0.0.1:80/weight", r#"{"weight": 0}"#);
        assert!(weight.contains("1 to 1000"), "{weight}");
        let body = why("PUT", "/v1/pools/web/backends/10.0.0.1:80/weight", "weight=3");
        assert!(body.starts_with("cannot parse the body:"), "{body}");
    }

    #[test]
    fn unknown_paths_and_methods_are_rejected() {
        for path in ["/", "/v1", "/v1/", "/v1/status/", "/v2/status", "/v1/pools/web", "/metrics"] {
            assert_eq!(call("GET", path, ""), Err(Unclear::NotFound), "{path}");
        }
        assert_eq!(call("POST", "/v1/pools/web/backends/10.0.0.1:80/kill", ""), Err(Unclear::NotFound));
        assert_eq!(call("POST", "/v1/status", ""), Err(Unclear::Method("GET")));
        assert_eq!(call("GET", "/v1/reload", ""), Err(Unclear::Method("POST")));
        assert_eq!(call("POST", "/v1/log_level", ""), Err(Unclear::Method("GET, PUT")));
        assert_eq!(call("GET", "/v1/pools/web/backends/10.0.0.1:80", ""), Err(Unclear::Method("DELETE")));
    }
}
