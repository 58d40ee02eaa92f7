//! The results of a run, as a table and as JSON, and the faults that fail the test.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::clients::Crowd;
use crate::ledger::{Cut, Failure, Kind};
use crate::run::{Event, Outcome};

/// The time before the computed end of a drain at which a cut WebSocket still counts as cut by that end.
const TOLERANCE: Duration = Duration::from_millis(500);
/// The number of failures that are listed per subject.
const LISTED: usize = 12;

/// The beginning of `RESULTS.md`.
const INTRODUCTION: &str = "\
# Soak test

No request fails and no WebSocket is cut while the daemon changes: `make soak` checks this, and writes this file. 26 clients load the
daemon over kept and new connections with uploads, slow readers and writers, downloads of megabytes, and WebSockets that stay open for the
whole run. They compare every byte that they receive with the expected one. Meanwhile the test reloads 50 different files, upgrades ten
times, drains, weights, adds and removes backends, and kills some of them with requests in flight.

The test fails if a request fails, if a WebSocket is cut, or if a process, a connection or more than a tenth of a warm process's memory
is left over. It takes half an hour; `make test` includes half a minute of it.

Then nginx (`-s reload`; USR2, WINCH and QUIT) and HAProxy (master-worker, SIGUSR2) get the same load and the same changes. Each is
configured as its manual advises and has the same time to drain: half an hour, but 25 s for the first process, so that the timeout cuts
its WebSockets.
";

/// The end of `RESULTS.md`.
const NOTES: &str = "
- A **change at run time** is a reload if the program has no command for it.
- **Memory at rest** is the median of five measurements, because it varies how much freed memory has returned to the system. A process is
  warm after 80 s, when the timers of all of its timeouts exist.
- **nginx** replaces its workers at each reload, and the old ones close their idle connections at once. Clients find these connections closed,
  and a `POST` that is on its way then can be lost. nginx refuses an upgrade while the process before the last one still
  waits for a connection, as it does for WebSockets.
- **HAProxy** asks its clients to reconnect at each reload, and each of its old processes stays as long as one of its connections.
";

type Cell = fn(&Outcome) -> String;

/// The rows of the table.
const ROWS: [(&str, Cell); 22] = [
    ("time under load", |run| seconds(run.changing.1)),
    ("reloads, each with a new configuration file", |run| run.count("reloads").to_string()),
    ("upgrades", |run| run.count("upgrades").to_string()),
    ("changes at run time: drain, undrain, weight, add, remove", orders),
    ("backends killed with requests in flight", |run| run.count("kills").to_string()),
    ("GET on kept connections / on new connections", |run| requests(run, &[Kind::KeepAlive, Kind::Fresh])),
    ("POST / slow uploads", |run| requests(run, &[Kind::Post, Kind::SlowUpload])),
    ("slow / long downloads", |run| requests(run, &[Kind::SlowDownload, Kind::LongDownload])),
    ("WebSocket messages echoed", |run| requests(run, &[Kind::WebSocket])),
    ("bytes compared", |run| format!("{} MB", run.bytes() / 1_000_000)),
    ("**requests failed**", |run| format!("**{}**", run.failures(false).len())),
    ("changes that were refused or had no effect", |run| run.failures(true).len().to_string()),
    ("**WebSockets cut** before the drain timed out", |run| format!("**{}**", run.cuts(false).len())),
    ("WebSockets cut when the drain timed out", |run| run.cuts(true).len().to_string()),
    ("reconnects: after `Connection: close` / after a closed connection", anew),
    ("pause of a client: longest; 99.9th percentile", pauses),
    ("time until a reload was in effect: median / longest", in_effect),
    ("processes: at rest, on average, at most", |run| {
        format!("{}, {:.1}, {}", run.shape.processes, run.seen.average_processes(), run.seen.most_processes())
    }),
    ("memory of all processes: after warm-up, at most, at the end", memory),
    ("memory at rest: first process when warm, last process when warm, at the end", at_rest),
    ("left 20 s after the load: processes / connections / listening sockets", |run| {
        format!("{} / {} / {}", run.left.processes, run.left.connections.len(), run.left.listeners)
    }),
    ("processes left after the stop", |run| run.left.after_stop.to_string()),
];

/// Returns the table and, below it, the failures with the changes during which they happened.
pub(crate) fn markdown(runs: &[Outcome]) -> String {
    let mut text = String::from("| |");
    runs.iter().for_each(|run| _ = write!(text, " {} |", run.subject));
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(runs.len()));
    for (name, cell) in ROWS {
        _ = write!(text, "\n| {name} |");
        runs.iter().for_each(|run| _ = write!(text, " {} |", cell(run)));
    }
    _ = writeln!(
        text,
        "\n\n{} clients. Configurations: `tests/soak/load_balancer.yaml`, `nginx.conf`, `haproxy.cfg`.",
        Crowd::size()
    );
    runs.iter().for_each(|run| text.push_str(&troubles(run)));
    text
}

/// Returns the published page: the table of a run of every subject that began on `day` on `machine`.
pub(crate) fn results(runs: &[Outcome], day: &str, machine: &str) -> String {
    let measured =
        format!("Measured on {day} in one run on {machine}, which also ran the clients and the backends.");
    format!("{INTRODUCTION}\n{measured}\n\n{}{NOTES}", markdown(runs))
}

/// Returns the results as JSON.
pub(crate) fn json(runs: &[Outcome]) -> Value {
    let one = |run: &Outcome| {
        let kinds = Kind::ALL.map(|kind| {
            let counts = run.ledger.counts(kind);
            json!({
                "kind": kind.name(),
                "requests": counts.requests(),
                "bytes": counts.bytes(),
                "told_to_connect_anew": counts.announced(),
                "found_closed": counts.found_closed(),
            })
        });
        let events = run.events.iter().map(|event| {
            json!({"at": event.at.as_secs_f64(), "took": event.took.as_secs_f64(), "what": event.text})
        });
        let failures = run.ledger.failures().into_iter().map(|failure| {
            let during = during(run, failure.at);
            json!({"at": failure.at.as_secs_f64(), "kind": failure.kind.name(), "text": failure.text, "during": during})
        });
        let cuts = run.ledger.cuts().into_iter().map(|cut| {
            let late = is_past_drain(&run.events, &cut);
            json!({"opened": cut.opened.as_secs_f64(), "at": cut.at.as_secs_f64(), "past_drain": late, "text": cut.text})
        });
        let samples = run.seen.0.iter().map(|sample| {
            json!([
                sample.at.as_secs_f64(),
                sample.main.0,
                sample.main_memory,
                sample.processes,
                sample.memory
            ])
        });
        json!({
            "subject": run.subject,
            "seconds": run.changing.1.as_secs_f64(),
            "done": run.done,
            "load": kinds,
            "failures": failures.collect::<Vec<_>>(),
            "websockets_cut": cuts.collect::<Vec<_>>(),
            "memory_at_rest": run.weighed,
            "longest_pause": run.ledger.longest_pause().1.as_secs_f64(),
            "left": {
                "processes": run.left.processes,
                "connections": run.left.connections.len(),
                "listeners": run.left.listeners,
                "after_stop": run.left.after_stop,
            },
            "changes": events.collect::<Vec<_>>(),
            "samples: time, process, its memory, processes, their memory": samples.collect::<Vec<_>>(),
        })
    };
    runs.iter().map(one).collect()
}

/// Returns the faults of a run. A run of the daemon must have none.
pub(crate) fn faults(run: &Outcome) -> Vec<String> {
    let mut faults = Vec::new();
    let mut must = |holds: bool, what: String| {
        if !holds {
            faults.push(what);
        }
    };
    must(run.failures(false).is_empty(), format!("{} requests failed", run.failures(false).len()));
    must(run.failures(true).is_empty(), format!("{} changes did not come about", run.failures(true).len()));
    let cut = run.cuts(false).len();
    must(cut == 0, format!("{cut} WebSockets were cut before the drain time was over"));
    let left = &run.left;
    must(
        left.processes + left.connections.len() + left.listeners + left.after_stop == 0,
        format!("something was left: {left:?}"),
    );
    for (what, wanted) in
        [("reloads", run.plan.reloads), ("upgrades", run.plan.upgrades), ("orders", 6 * run.plan.orders)]
    {
        must(run.count(what) == wanted, format!("{} of {wanted} {what} were done", run.count(what)));
    }
    must(run.count("kills") > 0, "no backend was killed".to_owned());
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Change) {
        must(run.ledger.counts(kind).requests() > 0, format!("there was no {}", kind.name()));
    }
    if let [first, warm, end] = run.weighed[..] {
        for (whose, before) in [("the first process", first), ("the last process", warm)] {
            let percent = end * 100 / before.max(1);
            must(
                percent <= run.plan.memory_limit,
                format!("memory is {percent} % of that of {whose} when it was warm"),
            );
        }
    }
    must(run.weighed.len() == 3, format!("the memory was looked at {} times", run.weighed.len()));
    faults
}

// ===== impl Outcome =====

impl Outcome {
    fn count(&self, what: &str) -> usize {
        self.done.get(what).copied().unwrap_or_default()
    }

    fn bytes(&self) -> u64 {
        Kind::ALL.iter().map(|kind| self.ledger.counts(*kind).bytes()).sum()
    }

    /// Returns the failed changes if `changes` is set, and the failed requests otherwise.
    fn failures(&self, changes: bool) -> Vec<Failure> {
        let all = self.ledger.failures().into_iter();
        all.filter(|failure| (failure.kind == Kind::Change) == changes).collect()
    }

    /// Returns the WebSockets that were cut at the end of a drain if `past_drain` is set, and all other cut ones
    /// otherwise.
    fn cuts(&self, past_drain: bool) -> Vec<Cut> {
        self.ledger.cuts().into_iter().filter(|cut| is_past_drain(&self.events, cut) == past_drain).collect()
    }
}

/// Whether a change replaced the process of a WebSocket after it was opened, and the drain time of that process was
/// over when the WebSocket was cut.
fn is_past_drain(events: &[Event], cut: &Cut) -> bool {
    let due = |event: &Event| {
        let end = event.drain.map(|drain| event.at + drain);
        cut.opened < event.at + event.took && end.is_some_and(|end| cut.at + TOLERANCE >= end)
    };
    events.iter().any(due)
}

/// Describes the change at that time, or the last one before it.
fn during(run: &Outcome, at: Duration) -> String {
    let event = run.events.iter().rev().find(|event| event.at <= at);
    event.map_or_else(
        || "before the first change".to_owned(),
        |event| {
            let since = at - event.at;
            format!(
                "{:.2} s after the begin of `{}`, which took {:.2} s",
                since.as_secs_f64(),
                event.text,
                event.took.as_secs_f64()
            )
        },
    )
}

fn troubles(run: &Outcome) -> String {
    let mut text = String::new();
    let failures = run.ledger.failures();
    let cuts = run.cuts(false);
    if failures.is_empty() && cuts.is_empty() {
        return text;
    }
    _ = writeln!(text, "\n{}: failed, and when:\n", run.subject);
    for failure in failures.iter().take(LISTED) {
        let (at, kind) = (failure.at.as_secs_f64(), failure.kind.name());
        _ = writeln!(text, "- {at:.2} s, {kind}: {}; {}", failure.text, during(run, failure.at));
    }
    for cut in cuts.iter().take(LISTED) {
        let (at, opened) = (cut.at.as_secs_f64(), cut.opened.as_secs_f64());
        _ = writeln!(text, "- {at:.2} s, WebSocket of {opened:.2} s: {}; {}", cut.text, during(run, cut.at));
    }
    let more = failures.len().saturating_sub(LISTED) + cuts.len().saturating_sub(LISTED);
    if more > 0 {
        _ = writeln!(text, "- and {more} more");
    }
    text
}

// ===== cells =====

fn orders(run: &Outcome) -> String {
    match run.count("orders that were reloads") {
        0 => run.count("orders").to_string(),
        reloads => format!("{}, {reloads} of them by reloads", run.count("orders")),
    }
}

fn requests(run: &Outcome, kinds: &[Kind]) -> String {
    let counts = kinds.iter().map(|kind| run.ledger.counts(*kind).requests().to_string());
    counts.collect::<Vec<_>>().join(" / ")
}

fn anew(run: &Outcome) -> String {
    let sum = |of: fn(&crate::ledger::Counts) -> u64| -> u64 {
        Kind::ALL.iter().map(|kind| of(run.ledger.counts(*kind))).sum()
    };
    format!("{} / {}", sum(crate::ledger::Counts::announced), sum(crate::ledger::Counts::found_closed))
}

fn pauses(run: &Outcome) -> String {
    format!("{}; {}", millis(run.ledger.longest_pause().1), millis(run.ledger.permille(999)))
}

fn in_effect(run: &Outcome) -> String {
    let changes = run.events.iter().filter(|event| event.text.starts_with("reload"));
    let mut times: Vec<Duration> = changes.map(|event| event.took).collect();
    times.sort_unstable();
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    format!("{} / {}", millis(middle), millis(times.last().copied().unwrap_or_default()))
}

fn memory(run: &Outcome) -> String {
    let (began, ended) = run.changing;
    let [begin, most, end] =
        [run.seen.memory_at(began), run.seen.most_memory(), run.seen.memory_at(ended)].map(mib);
    format!("{begin}, {most}, {end}")
}

fn at_rest(run: &Outcome) -> String {
    if run.shape.processes > 1 {
        return "–".to_owned();
    }
    run.weighed.iter().map(|bytes| mib(*bytes)).collect::<Vec<_>>().join(", ")
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn millis(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1000.0)
}

fn seconds(time: Duration) -> String {
    format!("{:.0} s", time.as_secs_f64())
}

#[cfg(test)]
mod checks {
    use super::*;

    #[test]
    fn a_websocket_may_be_cut_at_the_end_of_the_drain_of_its_process() {
        let seconds = Duration::from_secs;
        let event = |at, drain| Event { at: seconds(at), took: seconds(1), text: String::new(), drain };
        let events = [event(10, Some(seconds(20))), event(50, None)];
        let cut = |opened, at| Cut { opened: seconds(opened), at: seconds(at), text: String::new() };
        assert!(is_past_drain(&events, &cut(5, 30)));
        assert!(!is_past_drain(&events, &cut(5, 29)), "too early");
        assert!(!is_past_drain(&events, &cut(12, 40)), "it belongs to the new process");
        assert!(!is_past_drain(&events[1..], &cut(5, 60)), "no process was replaced");
    }
}
