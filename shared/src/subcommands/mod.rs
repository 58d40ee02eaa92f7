//! Subcommands that talk to a running daemon. Each sends requests over the control socket and prints the responses.

mod stop;

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cli::{BackendArgs, DaemonCommand, ExplainArgs, Format, WaitArgs};
use crate::control::Client;
use crate::control::bodies::{
    EventList, ExplainToken, ExplainedText, Failure, Filter, Idle, NewBackend, NewWeight, Nothing,
    Predecessors, Upgraded,
};
use crate::control::client::{Reply, Unreachable};
use crate::control::predecessors;
use crate::events::Event;
use crate::http_message::{backend_target, query};
use crate::operator::{ChangeResult, Outcome, Reload};
use crate::process::files::reason;
use crate::screen::{self, Window};
use crate::status_document::Status;

/// Time limit for a response that the daemon can send without waiting.
const SOON: Duration = Duration::from_secs(30);
/// Time limit for a response that needs health checks or the start of a process.
const LATER: Duration = Duration::from_secs(300);
/// Time for which one request waits for an event, in seconds. Between two requests the program checks whether its
/// output is still read.
const POLL_SECONDS: u64 = 2;
/// Pause between two screens of the status, and between attempts to reach a daemon that is being replaced.
const PAUSE: Duration = Duration::from_secs(1);
/// Time for which a daemon can be unreachable while it is being replaced.
const ABSENCE: Duration = Duration::from_secs(10);

/// Reason why a subcommand failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// The configuration file is invalid; the text contains its diagnostics as they are printed.
    #[error("{0}")]
    File(String),
    /// The command line is invalid, or the change cannot be made.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Failed(String),
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// The daemon ended and cut off requests.
    #[error("{0}")]
    Cut(String),
    #[error("cannot write: {}", reason(.0))]
    Write(#[from] io::Error),
}

/// Runs a subcommand against the daemon of `client`, and writes the result to `out`.
///
/// # Errors
/// If the daemon refuses the request, fails, or cannot be reached.
pub(crate) fn run(
    command: &DaemonCommand,
    client: &Client,
    out: &mut impl Write,
) -> Result<(), CommandError> {
    match command {
        DaemonCommand::Status { watch, format, .. } => status(client, *watch, *format, out),
        DaemonCommand::Events { follow, last, format, .. } => events(client, *follow, *last, *format, out),
        DaemonCommand::Explain(args) => explain(client, args, out),
        DaemonCommand::Reload { dry_run, keep_runtime, .. } => {
            let body = Reload { dry_run: *dry_run, keep_runtime: *keep_runtime };
            change_result(client, "POST", "/v1/reload", &body, out)
        }
        DaemonCommand::Upgrade { .. } => upgrade(client, out),
        DaemonCommand::Stop { now, timeout, .. } => stop::run(client, *now, *timeout, out),
        DaemonCommand::Drain { backend, wait } => {
            order(client, backend, "POST", "/drain", &Nothing {}, out)?;
            wait_idle(client, backend, wait, out)
        }
        DaemonCommand::Undrain(backend) => order(client, backend, "POST", "/undrain", &Nothing {}, out),
        DaemonCommand::Enable(backend) => order(client, backend, "POST", "/enable", &Nothing {}, out),
        DaemonCommand::Disable(backend) => order(client, backend, "POST", "/disable", &Nothing {}, out),
        DaemonCommand::Weight { backend, weight } => {
            order(client, backend, "PUT", "/weight", &NewWeight { weight: *weight }, out)
        }
        DaemonCommand::Add { backend, weight, backup, max_requests } => {
            let BackendArgs { pool, backend, .. } = backend;
            let (address, weight) = (backend.to_string(), *weight);
            let body = NewBackend { address, weight, backup: *backup, max_requests: *max_requests };
            change_result(client, "POST", &format!("/v1/pools/{pool}/backends"), &body, out)
        }
        DaemonCommand::Remove { backend, wait } => {
            order(client, backend, "DELETE", "", &Nothing {}, out)?;
            wait_idle(client, backend, wait, out)
        }
        DaemonCommand::LogLevel { filter, .. } => log_level(client, filter.as_deref(), out),
        DaemonCommand::Names { pool, .. } => names(client, pool.as_deref(), out),
    }
}

// === subcommands that change something ===

fn order(
    client: &Client,
    backend: &BackendArgs,
    method: &str,
    suffix: &str,
    body: &impl Serialize,
    out: &mut impl Write,
) -> Result<(), CommandError> {
    change_result(
        client,
        method,
        &format!("{}{suffix}", backend_target(&backend.pool, &backend.backend)),
        body,
        out,
    )
}

fn change_result(
    client: &Client,
    method: &str,
    target: &str,
    body: &impl Serialize,
    out: &mut impl Write,
) -> Result<(), CommandError> {
    let reply = client.send(method, target, &json(body), LATER)?;
    let Ok(change_result) = serde_json::from_str::<ChangeResult>(&reply.body) else {
        return Err(failure(&reply));
    };
    for line in &change_result.changes {
        writeln!(out, "{line}")?;
    }
    out.write_all(change_result.warning.as_bytes())?;
    match change_result.result {
        Outcome::Applied => writeln!(out, "configuration {} is in effect", change_result.generation)?,
        Outcome::Unchanged => writeln!(out, "nothing to change")?,
        Outcome::WouldApply => writeln!(out, "nothing changed: this was a dry run")?,
        Outcome::Refused if change_result.problems.is_empty() => {
            return Err(CommandError::Refused(change_result.problem));
        }
        Outcome::Refused => return Err(CommandError::File(change_result.problem)),
    }
    Ok(())
}

fn upgrade(client: &Client, out: &mut impl Write) -> Result<(), CommandError> {
    let reply = client.send("POST", "/v1/upgrade", "", LATER)?;
    let Upgraded { pid } = document(&reply)?;
    writeln!(out, "process {pid} has taken over")?;
    Ok(())
}

fn wait_idle(
    client: &Client,
    backend: &BackendArgs,
    wait: &WaitArgs,
    out: &mut impl Write,
) -> Result<(), CommandError> {
    if !wait.wait {
        return Ok(());
    }
    let limit = wait.timeout.unwrap_or(Duration::from_secs(24 * 3600));
    let target =
        format!("{}/idle?wait={}", backend_target(&backend.pool, &backend.backend), limit.as_secs_f64());
    let Idle { .. } = document(&client.send("GET", &target, "", limit + SOON)?)?;
    writeln!(out, "{} is idle", backend.backend)?;
    Ok(())
}

fn log_level(client: &Client, filter: Option<&str>, out: &mut impl Write) -> Result<(), CommandError> {
    let reply = match filter {
        None => client.send("GET", "/v1/log_level", "", SOON)?,
        Some(filter) => {
            client.send("PUT", "/v1/log_level", &json(&Filter { filter: filter.to_owned() }), LATER)?
        }
    };
    let Filter { filter } = document(&reply)?;
    writeln!(out, "{filter}")?;
    Ok(())
}

// === subcommands that only read ===

fn status(client: &Client, watch: bool, format: Format, out: &mut impl Write) -> Result<(), CommandError> {
    if !watch {
        let reply = client.send("GET", "/v1/status", "", SOON)?;
        return Ok(out.write_all(picture(client, &reply, format)?.as_bytes())?);
    }
    let mut seen = None;
    loop {
        match client.send("GET", "/v1/status", "", SOON) {
            Ok(reply) => {
                seen = Some(Instant::now());
                let picture = picture(client, &reply, format)?;
                let drawn = window().map(|window| screen::redraw(&picture, window));
                out.write_all(drawn.unwrap_or(picture).as_bytes())?;
                out.flush()?;
            }
            Err(_) if seen.is_some_and(|at| at.elapsed() < ABSENCE) => {}
            Err(error) => return Err(error.into()),
        }
        sleep(PAUSE);
    }
}

/// Returns the size of the terminal; `None` if standard output is not a terminal.
fn window() -> Option<Window> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(Window { columns: size.ws_col.into(), rows: size.ws_row.into() })
}

fn picture(client: &Client, reply: &Reply, format: Format) -> Result<String, CommandError> {
    let document = document(reply)?;
    if format == Format::Json {
        return Ok(format!("{document:#}\n"));
    }
    let status: Status = serde_json::from_value(document)
        .map_err(|error| CommandError::Failed(format!("cannot parse the status of the daemon: {error}")))?;
    Ok(screen::render(&status, &predecessors(client), SystemTime::now()))
}

/// Returns the status of the old processes that still drain, each with its socket.
fn predecessors(client: &Client) -> Vec<(PathBuf, Status)> {
    let status = |socket: PathBuf| {
        let reply = Client::new(&socket).send("GET", "/v1/status", "", PAUSE).ok()?;
        Some((socket, serde_json::from_str(&reply.body).ok()?))
    };
    sockets_before(client).unwrap_or_default().into_iter().filter_map(status).collect()
}

/// Returns the sockets of the old processes. A daemon of an older version, or one that has just ended, does not list
/// them; the sockets are then searched next to its own.
///
/// # Errors
/// If the daemon runs with another file.
fn sockets_before(client: &Client) -> Result<Vec<PathBuf>, CommandError> {
    match client.send("GET", "/v1/predecessors", "", SOON) {
        Ok(reply) if reply.status == 421 => Err(failure(&reply)),
        Ok(reply) if reply.status == 200 => document(&reply).map(|Predecessors { sockets }| sockets),
        _ => Ok(predecessors::sockets(client.socket())),
    }
}

fn events(
    client: &Client,
    follow: bool,
    last: Option<usize>,
    format: Format,
    out: &mut impl Write,
) -> Result<(), CommandError> {
    let EventList { mut events, .. } = events_after(client, None, 0)?;
    let mut seen = latest(&events);
    events.drain(..events.len().saturating_sub(last.unwrap_or(usize::MAX)));
    write_events(&events, format, out)?;
    if !follow {
        return Ok(());
    }
    let mut responded = Instant::now();
    while is_read() {
        match events_after(client, seen, POLL_SECONDS) {
            Ok(received) => {
                responded = Instant::now();
                write_events(&received.events, format, out)?;
                seen = latest(&received.events).or(seen);
            }
            Err(CommandError::Unreachable(_)) if responded.elapsed() < ABSENCE => sleep(PAUSE / 10),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns whether standard output is still read; it is not if it is a pipe or socket without a reader, as after `|
/// head`. A write would fail as well, but there might be nothing to write for hours.
fn is_read() -> bool {
    let output = io::stdout();
    let mut state = [PollFd::new(output.as_fd(), PollFlags::empty())];
    let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
    poll(&mut state, PollTimeout::ZERO).is_err() || !state[0].revents().is_some_and(|is| is.intersects(gone))
}

/// Returns the process and the number of the last event.
fn latest(events: &[Event]) -> Option<(u32, u64)> {
    events.last().map(|event| (event.process, event.id))
}

/// Requests the events after the last one that was received.
fn events_after(client: &Client, seen: Option<(u32, u64)>, wait: u64) -> Result<EventList, CommandError> {
    let after = seen.map(|(process, id)| format!("&process={process}&after={id}")).unwrap_or_default();
    let target = format!("/v1/events?wait={wait}{after}");
    let reply = client.send("GET", &target, "", Duration::from_secs(wait) + SOON)?;
    document(&reply)
}

fn write_events(events: &[Event], format: Format, out: &mut impl Write) -> Result<(), CommandError> {
    for event in events {
        match format {
            Format::Text => writeln!(out, "{event}")?,
            Format::Json => writeln!(out, "{}", json(event))?,
        }
    }
    Ok(out.flush()?)
}

fn explain(client: &Client, args: &ExplainArgs, out: &mut impl Write) -> Result<(), CommandError> {
    if args.token {
        let ExplainToken { token } = document(&client.send("GET", "/v1/explain/token", "", SOON)?)?;
        writeln!(out, "{token}")?;
        return Ok(());
    }
    let ExplainArgs { to: _, token: _, host, path, method, header, client: from, listener, format } = args;
    let mut parameters = vec![("path", path.clone()), ("method", method.clone())];
    parameters.extend(host.clone().map(|host| ("host", host)));
    parameters.extend(header.iter().map(|header| ("header", header.clone())));
    parameters.extend(from.map(|from| ("client", from.to_string())));
    parameters.extend(listener.clone().map(|listener| ("listener", listener)));
    let parameters: Vec<_> = parameters.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let path = if *format == Format::Text { "/v1/explain/text" } else { "/v1/explain" };
    let reply = client.send("GET", &format!("{path}?{}", query(&parameters)), "", SOON)?;
    match format {
        Format::Text => {
            let ExplainedText { text } = document(&reply)?;
            out.write_all(text.as_bytes())?;
        }
        Format::Json => writeln!(out, "{:#}", document::<Value>(&reply)?)?,
    }
    Ok(())
}

fn names(client: &Client, pool: Option<&str>, out: &mut impl Write) -> Result<(), CommandError> {
    let Status { pools, .. } = document(&client.send("GET", "/v1/status", "", SOON)?)?;
    match pool {
        None => pools.iter().try_for_each(|known| writeln!(out, "{}", known.name))?,
        Some(pool) => {
            let known = pools.iter().filter(|known| known.name == pool).flat_map(|known| &known.backends);
            known.into_iter().try_for_each(|backend| writeln!(out, "{}", backend.address))?;
        }
    }
    Ok(())
}

// === responses ===

/// Reads the body of a response.
fn document<T: DeserializeOwned>(reply: &Reply) -> Result<T, CommandError> {
    if reply.status != 200 {
        return Err(failure(reply));
    }
    let problem = |error| CommandError::Failed(format!("cannot read the response of the daemon: {error}"));
    serde_json::from_str(&reply.body).map_err(problem)
}

/// Writes the body of a request.
fn json(body: &impl Serialize) -> String {
    serde_json::to_string(body).expect("texts, numbers and lists are JSON")
}

fn failure(reply: &Reply) -> CommandError {
    let failure = serde_json::from_str(&reply.body);
    let problem = failure.map_or_else(|_| reply.body.trim().to_owned(), |Failure { problem }| problem);
    match reply.status {
        400 | 404 | 405 | 421 => CommandError::Refused(problem),
        _ => CommandError::Failed(problem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_distinguished_from_failures() {
        let reply = |status, body: &str| Reply { status, body: body.into() };
        let refused = failure(&reply(400, r#"{"problem": "no such parameter"}"#));
        assert!(matches!(&refused, CommandError::Refused(problem) if problem == "no such parameter"));
        assert!(matches!(failure(&reply(409, r#"{"problem": "it died"}"#)), CommandError::Failed(_)));
        assert!(matches!(failure(&reply(500, "oh")), CommandError::Failed(problem) if problem == "oh"));
    }
}
