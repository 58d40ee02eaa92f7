//! Status on one screen: first the problems with their time and reason, then the listeners, pools and backends.
//!
//! [`render`] is a plain function of the status document and the time. Problems come first, in the order of the
//! document. [`redraw`] draws a screen over the previous one on a terminal.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::SystemTime;

use jiff::Timestamp;

use crate::config::ProblemDocument;
use crate::status_document::{BackendStatus, ConfigDocument, ListenerStatus, PoolStatus, Problem, Status};
use crate::words::{self, count, count_of};

/// Size of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// The characters per line.
    pub columns: usize,
    /// The number of lines.
    pub rows: usize,
}

/// Returns the output that draws `picture` over another one. It draws only as much as fits into the window, because the
/// terminal would scroll otherwise, and does not clear the window first, which would flicker.
pub(crate) fn redraw(picture: &str, window: Window) -> String {
    let columns = window.columns.max(1);
    let mut drawn = String::from("\x1b[H");
    // The cursor needs the line after the last one.
    let mut room = window.rows.saturating_sub(1);
    let lines: Vec<_> = picture.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let length = line.chars().count();
        let rows = length.div_ceil(columns).max(1);
        let is_last = at + 1 == lines.len();
        if rows + usize::from(!is_last) > room {
            drawn.push_str(&format!("… {}\x1b[K\n", count((lines.len() - at) as u64, "more line")));
            break;
        }
        room -= rows;
        drawn.push_str(line);
        // A full row overwrites the old one completely.
        if length == 0 || length % columns != 0 {
            drawn.push_str("\x1b[K");
        }
        drawn.push('\n');
    }
    drawn + "\x1b[J"
}

/// Returns the screen as text. `before` are the old processes that still drain, each with its control socket.
pub(crate) fn render(status: &Status, before: &[(PathBuf, Status)], now: SystemTime) -> String {
    let mut text = String::new();
    // Writing to a `String` cannot fail.
    let _ = status.write(&mut text, before, now);
    text
}

// === impl Status ===

impl Status {
    fn write(&self, text: &mut String, before: &[(PathBuf, Self)], now: SystemTime) -> std::fmt::Result {
        let Self { problems, version, pid, demo, state, ready, started, config, listeners, pools, .. } = self;
        let demo = if *demo { " demo" } else { "" };
        let unready = if *ready == Some(false) { ", not ready" } else { "" };
        writeln!(
            text,
            "load_balancer {version}{demo}, process {pid}, {state}{unready}, started {}; configuration {}{}, in effect since {}",
            ago(started, now),
            config.generation,
            config.file.as_ref().map(|file| format!(" of {file}")).unwrap_or_default(),
            clock(&config.since),
        )?;
        if let Some(level) = &config.log_level {
            writeln!(text, "log level {level} ({})", level_source(&config.log_level_source))?;
        }
        write_problems(problems.as_deref(), text, now)?;
        config.write_warnings(text)?;
        if !config.runtime_changes.is_empty() {
            writeln!(text, "\nchanged at run time, not in the file:")?;
            config.runtime_changes.iter().try_for_each(|line| writeln!(text, "  {line}"))?;
        }
        for (socket, process) in before {
            let requests: u64 = process.pools.iter().map(|pool| pool.requests_in_flight).sum();
            let requests = count(requests, "request");
            write!(text, "\nprocess {} has handed over and still has {requests} in flight", process.pid)?;
            write!(text, " (status --socket {})", socket.display())?;
        }
        writeln!(text)?;
        for listener in listeners {
            let ListenerStatus { name, address, connections_active, requests_in_flight, .. } = listener;
            let on = if name == address { String::new() } else { format!(" on {address}") };
            let connections = count(*connections_active, "connection");
            writeln!(
                text,
                "listener {name}{on}: {connections}, {} in flight",
                count(*requests_in_flight, "request")
            )?;
        }
        pools.iter().try_for_each(|pool| pool.write(text, now))
    }
}

/// Returns the source of the log level as text.
fn level_source(source: &str) -> &str {
    match source {
        "operator" => "set at run time",
        "file" => "from the file",
        other => other,
    }
}

// === impl ConfigDocument ===

impl ConfigDocument {
    fn write_warnings(&self, text: &mut String) -> std::fmt::Result {
        if self.warnings.is_empty() {
            return Ok(());
        }
        writeln!(text, "\n{} about the file:", count_of(self.warnings.len(), "warning"))?;
        for ProblemDocument { id, line, message, .. } in &self.warnings {
            let line = line.map(|line| format!("line {line}: ")).unwrap_or_default();
            writeln!(text, "  {line}{message} ({id})")?;
        }
        Ok(())
    }
}

fn write_problems(problems: Option<&[Problem]>, text: &mut String, now: SystemTime) -> std::fmt::Result {
    let Some(problems) = problems else {
        return writeln!(text, "\nthe process runs an older version, which does not report problems");
    };
    match problems.len() {
        0 => return writeln!(text, "\nno problems"),
        some => writeln!(text, "\n{}:", count_of(some, "problem"))?,
    }
    problems.iter().try_for_each(|problem| writeln!(text, "  ! {}", line(problem, now)))
}

fn line(Problem { text, since, at, reason }: &Problem, now: SystemTime) -> String {
    let when = |word: &str, time: &Option<String>| {
        time.as_ref().map(|time| format!(" {word} {}, {}", clock(time), ago(time, now))).unwrap_or_default()
    };
    let reason = reason.as_ref().map(|reason| format!(": {}", reason.replace('\n', "\n      ")));
    format!("{text}{}{}{}", when("since", since), when("at", at), reason.unwrap_or_default())
}

// === impl PoolStatus ===

impl PoolStatus {
    fn write(&self, text: &mut String, now: SystemTime) -> std::fmt::Result {
        let Self { name, ready, requests_in_flight, queue, backends, .. } = self;
        let of = backends.len();
        writeln!(
            text,
            "\npool {name}: {ready} of {of} ready, {} in flight, {} waiting",
            count(*requests_in_flight, "request"),
            queue.waiting
        )?;
        let rows = backends.iter().map(|backend| backend.row(now));
        let head = ["backend", "state", "for", "weight", "in flight", "requests", "failures", "response"];
        table(text, &head.map(str::to_owned), &rows.collect::<Vec<_>>())
    }
}

// === impl BackendStatus ===

impl BackendStatus {
    fn row(&self, now: SystemTime) -> [String; 8] {
        let max = self.max_requests.map(|max| format!("/{max}")).unwrap_or_default();
        let marks = [self.backup.then_some(" backup"), self.runtime.as_ref().map(|_| " *")];
        [
            self.address.clone(),
            format!("{}{}", self.state, marks.into_iter().flatten().collect::<String>()),
            span(&self.since, now),
            self.weight.to_string(),
            format!("{}{max}", self.requests_in_flight),
            self.requests.to_string(),
            self.failures.to_string(),
            self.expected_answer_ms.map_or_else(|| "-".into(), |time| format!("{time:.1} ms")),
        ]
    }
}

/// Writes a table whose columns are as wide as their widest value; numbers are aligned to the right.
fn table(text: &mut String, head: &[String; 8], rows: &[[String; 8]]) -> std::fmt::Result {
    const TEXTS: usize = 2;
    let lines = || std::iter::once(head).chain(rows);
    let width = |column: usize| lines().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 8] = std::array::from_fn(width);
    for row in lines() {
        let mut line = String::from(" ");
        for (column, (value, width)) in row.iter().zip(widths).enumerate() {
            match column < TEXTS {
                true => write!(line, " {value:<width$} ")?,
                false => write!(line, " {value:>width$} ")?,
            }
        }
        writeln!(text, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Returns the time of day of a time in the document, in UTC.
fn clock(time: &str) -> String {
    let clock = time.split_once('T').and_then(|(_, clock)| clock.get(..8));
    clock.map_or_else(|| time.to_owned(), |clock| format!("{clock} UTC"))
}

fn ago(time: &str, now: SystemTime) -> String {
    format!("{} ago", span(time, now))
}

/// Returns the approximate duration since a time in the document.
fn span(time: &str, now: SystemTime) -> String {
    let (Ok(then), Ok(now)) = (time.parse::<Timestamp>(), Timestamp::try_from(now)) else {
        return "?".into();
    };
    words::span(now.as_second().saturating_sub(then.as_second()).try_into().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn document() -> Value {
        let backend = |address: &str, state: &str, reason: &str| {
            json!({
                "address": address, "weight": 1, "state": state, "reason": reason, "since": "2026-01-02T10:00:00.000Z",
                "requests_in_flight": 2, "expected_answer_ms": 3.26, "requests": 120, "failures": 3,
            })
        };
        json!({
            "problems": [], "version": "0.1.0", "pid": 7, "state": "serving", "started": "2026-01-02T09:00:00.000Z", "uptime_seconds": 1,
            "config": {
                "generation": 3, "file": "/etc/lb.yaml", "since": "2026-01-02T09:30:00.000Z",
                "last_reload": null, "runtime_changes": [],
            },
            "listeners": [{"name": "web", "address": "0.0.0.0:80", "connections_active": 5, "requests_in_flight": 4}],
            "pools": [{
                "name": "api", "ready": 2, "panic": false, "backups_in_use": false, "requests_in_flight": 4,
                "queue": {"waiting": 0, "places": 0},
                "backends": [backend("10.0.0.1:80", "up", "1 check passed"), backend("10.0.0.22:80", "up", "1 check passed")],
            }],
        })
    }

    fn screen(document: Value) -> String {
        let now: Timestamp = "2026-01-02T11:02:03Z".parse().unwrap();
        render(&serde_json::from_value(document).unwrap(), &[], now.into())
    }

    #[test]
    fn without_problems_the_screen_shows_listeners_pools_and_backends() {
        let expected = "\
load_balancer 0.1.0, process 7, serving, started 2h02m ago; configuration 3 of /etc/lb.yaml, in effect since 09:30:00 UTC

no problems

listener web on 0.0.0.0:80: 5 connections, 4 requests in flight

pool api: 2 of 2 ready, 4 requests in flight, 0 waiting
  backend       state    for  weight  in flight  requests  failures  response
  10.0.0.1:80   up     1h02m       1          2       120         3    3.3 ms
  10.0.0.22:80  up     1h02m       1          2       120         3    3.3 ms
";
        assert_eq!(screen(document()), expected);
    }

    #[test]
    fn the_response_time_of_a_backend_without_responses_is_a_dash() {
        let mut document = document();
        document["pools"][0]["backends"][0]["expected_answer_ms"].take();
        let screen = screen(document);
        assert_eq!(screen.lines().filter(|line| line.ends_with("  3         -")).count(), 1, "{screen}");
    }

    #[test]
    fn problems_come_first_in_the_order_of_the_document() {
        let mut document = document();
        document["problems"] = json!([
            {"text": "pool api: no backend is ready", "since": "2026-01-02T10:30:00.000Z"},
            {"text": "the last reload was rejected", "at": "2026-01-02T11:00:00.000Z", "reason": "error[LB010]: unknown key\n --> a:1:1"},
            {"text": "this is the demo"},
        ]);
        let expected = "
3 problems:
  ! pool api: no backend is ready since 10:30:00 UTC, 32m03s ago
  ! the last reload was rejected at 11:00:00 UTC, 2m03s ago: error[LB010]: unknown key
       --> a:1:1
  ! this is the demo

listener ";
        let screen = screen(document);
        assert!(screen.contains(expected), "{screen}");
    }

    #[test]
    fn an_older_process_is_not_shown_as_healthy() {
        let mut document = document();
        document.as_object_mut().unwrap().remove("problems");
        let screen = screen(document);
        assert!(!screen.contains("no problems") && screen.contains("older version"), "{screen}");
    }

    #[test]
    fn counts_of_one_are_singular() {
        let mut document = document();
        (document["listeners"][0]["connections_active"], document["listeners"][0]["requests_in_flight"]) =
            (1.into(), 1.into());
        document["pools"][0]["requests_in_flight"] = 1.into();
        let screen = screen(document);
        assert!(screen.contains(": 1 connection, 1 request in flight"), "{screen}");
        assert!(screen.contains("2 of 2 ready, 1 request in flight"), "{screen}");
    }

    #[test]
    fn changes_of_operators_are_shown_and_are_no_problem() {
        let mut document = document();
        document["config"]["runtime_changes"] = json!(["pool api: backend 10.0.0.1:80: draining"]);
        let backend = &mut document["pools"][0]["backends"][0];
        (backend["state"], backend["runtime"]) = ("draining".into(), "draining".into());
        let screen = screen(document);
        assert!(screen.contains("no problems"), "{screen}");
        assert!(screen.contains("not in the file:\n  pool api: backend 10.0.0.1:80: draining\n"), "{screen}");
        assert!(screen.contains("10.0.0.1:80   draining *"), "{screen}");
    }

    #[test]
    fn warnings_about_the_file_are_shown_and_are_no_problem() {
        let mut document = document();
        let warning = |line: Value| json!({"id": "LB053", "line": line, "message": "`sticky` has no effect"});
        document["config"]["warnings"] = json!([warning(7.into()), warning(Value::Null)]);
        let screen = screen(document);
        let expected =
            "no problems\n\n2 warnings about the file:\n  line 7: `sticky` has no effect (LB053)\n  `sticky`";
        assert!(screen.contains(expected), "{screen}");
    }

    #[test]
    fn a_screen_is_drawn_over_another_one_as_far_as_it_fits() {
        let draw = |picture, columns, rows| redraw(picture, Window { columns, rows });
        assert_eq!(draw("ab\n\nc\n", 80, 24), "\x1b[Hab\x1b[K\n\x1b[K\nc\x1b[K\n\x1b[J");
        assert_eq!(
            draw("a\nb\nc\n", 80, 4),
            "\x1b[Ha\x1b[K\nb\x1b[K\nc\x1b[K\n\x1b[J",
            "the screen just fits"
        );
        assert_eq!(draw("a\nb\nc\nd\n", 80, 4), "\x1b[Ha\x1b[K\nb\x1b[K\n… 2 more lines\x1b[K\n\x1b[J");
        assert_eq!(draw("abcd\ne\n", 4, 24), "\x1b[Habcd\ne\x1b[K\n\x1b[J", "the last column is not cleared");
        assert_eq!(
            draw("abcdef\ng\nh\n", 4, 4),
            "\x1b[Habcdef\x1b[K\n… 2 more lines\x1b[K\n\x1b[J",
            "wrapped"
        );
        assert_eq!(draw("a\n", 0, 0), "\x1b[H… 1 more line\x1b[K\n\x1b[J");
    }
}
