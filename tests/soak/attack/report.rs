//! The results of the run under attack, as a table and as JSON, and the faults that fail it.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::attackers::Ends;
use super::crowd::{CLIENTS, Page, RATE};
use super::gauge::Reading;
use super::{BACK, Outcome, Round, SLACK};
use crate::ledger::{Kind, Ledger};

/// The share of the requests of the fixed rate that must have been made, in percent. Otherwise the machine was too slow
/// for a measurement.
const MADE: u64 = 90;
/// The failures that are listed for an attack.
const LISTED: usize = 5;

const HEADING: &str = "\
| attack | connected | how they ended | all released after | failed of requests | p50, p99 | p99 of direct requests | most memory, after | most descriptors, after | back after |
|---|---|---|---|---|---|---|---|---|---|
";

const INTRODUCTION: &str = "\
## Under attack

`make soak SOAK=attack` checks that hostile clients do not disturb others, and writes this section. Well-behaved clients send requests at a
fixed rate and check every byte. Beside them, 5,000 attackers connect within ten seconds, one kind after the other:

- **slow heads**: one byte of a header per second;
- **idle connections**: no byte at all;
- **slow bodies**: a `POST` with one byte of its body per second;
- **slow readers**: 16 bytes per second of a response of 16 MiB;
- **garbage**: random bytes, a TLS ClientHello, the HTTP/2 preface, a head of 100 kB, 200 header lines, both kinds of framing at once, lines
  that end with LF, NUL bytes; half of the attackers then go on with one byte per second;
- **half-open tunnels**: a WebSocket that is silent; half of the clients have closed their sending half, which the backend ignores;
- **pipelined requests**: 100 requests at once, no response is read, a reset after a second;
- **disconnects**: a reset or a close in the middle of a head, a body, a response, or the wait for the backend.

Attackers keep their connections until the daemon has released all of them, also after its last byte. The test fails if a request of a
well-behaved client fails, if their p99 more than doubles, if the daemon releases a connection more than 10 s after its deadline, or if
memory or descriptors are more than 10 % above the start a minute after the attackers have left. All limits and timeouts have their
defaults, except for two: `timeouts.tunnel` is 20 s instead of 1 h, and idle connections to backends stay for 10 s instead of 60 s.

The attackers, the clients and the backends share the processors with the daemon. The **direct requests** go from the same clients to the
backends, past the daemon, and show the part of the delay that comes from the machine. The p99 may rise by twice that part as well, because
a request through the daemon waits for a processor twice as often.
";

/// Returns the table and the failures.
pub(crate) fn markdown(outcome: &Outcome) -> String {
    let (start, base) = (outcome.start, &outcome.baseline);
    let mut text = HEADING.to_owned();
    _ = writeln!(
        text,
        "| none | | | | {} | {} | {} | {} | {} | |",
        requests(&[base]),
        times(&base.through),
        millis(base.direct.permille(990)),
        mib(start.memory),
        start.descriptors
    );
    for round in &outcome.rounds {
        _ = writeln!(text, "{}", row(round, start));
    }
    for round in &outcome.rounds {
        text.push_str(&troubles(round));
    }
    text
}

/// Returns the row of an attack.
pub(crate) fn row(round: &Round, start: Reading) -> String {
    let Round { attack, ends, during, after, most, released, back, end } = round;
    let percent = |value: u64, of: u64| format!("{:+.0} %", value as f64 * 100.0 / of.max(1) as f64 - 100.0);
    format!(
        "| {} | {} | {} | {} | {} | {} | {} | {}, {} | {}, {} | {} |",
        attack.name(),
        ends.connected,
        ways(ends),
        released.map_or_else(|| "not".to_owned(), seconds),
        requests(&[during, after]),
        times(&during.through),
        millis(during.direct.permille(990)),
        mib(most.memory),
        percent(end.memory, start.memory),
        most.descriptors,
        percent(end.descriptors, start.descriptors),
        back.map_or_else(|| "not".to_owned(), seconds),
    )
}

/// Returns the section of `RESULTS.md` about a run that ended on `day` on `machine`.
pub(crate) fn section(outcome: &Outcome, day: &str, machine: &str) -> String {
    let through = RATE * 2 / 3;
    format!(
        "{INTRODUCTION}\nMeasured on {day} on {machine}, in {}. {CLIENTS} well-behaved clients send {through} requests per second to the \
         daemon,\nand {} more go to the backends directly. Configuration: `tests/soak/attack.yaml`.\n\n{}",
        seconds(outcome.took),
        RATE - through,
        markdown(outcome)
    )
}

/// Returns the results as JSON.
pub(crate) fn json(outcome: &Outcome) -> Value {
    let page = |page: &Page| {
        let shares = |ledger: &Ledger| [500, 990, 999].map(|share| ledger.permille(share).as_micros() as u64);
        let (through, direct) = (shares(&page.through), shares(&page.direct));
        json!({
            "seconds": page.lasted().as_secs_f64(),
            "requests": count(&page.through),
            "failed": page.through.failures().len(),
            "p50, p99, p99.9 in microseconds": through,
            "p50, p99, p99.9 of direct requests": direct,
        })
    };
    let reading = |reading: Reading| json!({"memory": reading.memory, "descriptors": reading.descriptors});
    let rounds = outcome.rounds.iter().map(|round| {
        json!({
            "attack": round.attack.name(),
            "connected": round.ends.connected,
            "finished": round.ends.finished,
            "ways": round.ends.ways,
            "released_after": round.released.map(|time| time.as_secs_f64()),
            "back_after": round.back.map(|time| time.as_secs_f64()),
            "during": page(&round.during),
            "after": page(&round.after),
            "most": reading(round.most),
            "end": reading(round.end),
        })
    });
    json!({
        "seconds": outcome.took.as_secs_f64(),
        "start": reading(outcome.start),
        "baseline": page(&outcome.baseline),
        "attacks": rounds.collect::<Vec<_>>(),
    })
}

/// Returns the faults of a run. A run must have none.
pub(crate) fn faults(outcome: &Outcome) -> Vec<String> {
    let mut faults = failures(outcome);
    let baseline = Tail::of(&outcome.baseline);
    for round in &outcome.rounds {
        let name = round.attack.name();
        let (tail, limit) = (Tail::of(&round.during), baseline.limit(Tail::of(&round.during)));
        if tail.through > limit {
            let (is, limit) = (millis(tail.through), millis(limit));
            faults.push(format!("{name}: the p99 of other clients is {is}, and the limit is {limit}"));
        }
        if round.released.is_none() {
            let limit = seconds(round.attack.deadline() + SLACK);
            let left = round.ends.connected - round.ends.finished;
            faults.push(format!(
                "{name}: {limit} later the daemon had not released all connections ({left} open)"
            ));
        }
        if round.back.is_none() {
            let (limit, end, start) = (seconds(outcome.plan.recovery), round.end, outcome.start);
            faults.push(format!(
                "{name}: {limit} later more than {BACK} % were in use: {end:?}, {start:?} at the start"
            ));
        }
    }
    faults
}

/// Returns the faults that do not depend on the speed of the machine.
pub(crate) fn failures(outcome: &Outcome) -> Vec<String> {
    let mut faults = Vec::new();
    let mut must = |holds: bool, what: String| {
        if !holds {
            faults.push(what);
        }
    };
    must(outcome.is_sound, "the daemon has exited, or a request has caused a panic".to_owned());
    must(is_loaded(&outcome.baseline), "there was too little load before the attacks".to_owned());
    for round in &outcome.rounds {
        let (name, wanted) = (round.attack.name(), outcome.plan.attackers);
        let failed = round.during.through.failures().len() + round.after.through.failures().len();
        must(failed == 0, format!("{name}: {failed} requests of other clients failed{}", troubles(round)));
        must(is_loaded(&round.during), format!("{name}: there was too little load beside it"));
        let connected = round.ends.connected;
        must(connected == wanted, format!("{name}: {connected} of {wanted} attackers connected"));
        let held = round.most.descriptors.saturating_sub(outcome.start.descriptors);
        let is_felt = !round.attack.is_held() || held >= wanted as u64 * 9 / 10;
        must(is_felt, format!("{name}: the daemon had at most {held} more descriptors than before"));
    }
    faults
}

fn is_loaded(page: &Page) -> bool {
    let made = count(&page.through) + page.through.failures().len() as u64;
    let due = page.lasted().as_secs_f64() * f64::from(RATE * 2 / 3);
    made as f64 * 100.0 >= due * MADE as f64
}

/// The 99th percentiles of a page.
#[derive(Debug, Clone, Copy)]
struct Tail {
    /// The percentile of requests through the daemon.
    through: Duration,
    /// The percentile of direct requests.
    direct: Duration,
}

// ===== impl Tail =====

impl Tail {
    fn of(page: &Page) -> Self {
        Self { through: page.through.permille(990), direct: page.direct.permille(990) }
    }

    /// Returns the limit for the requests through the daemon at another time: twice the time of `self`, and twice what
    /// direct requests have become slower.
    fn limit(self, then: Self) -> Duration {
        2 * (self.through + then.direct.saturating_sub(self.direct))
    }
}

// ===== cells =====

fn count(ledger: &Ledger) -> u64 {
    Kind::ALL.iter().map(|kind| ledger.counts(*kind).requests()).sum()
}

fn requests(pages: &[&Page]) -> String {
    let failed: usize = pages.iter().map(|page| page.through.failures().len()).sum();
    let made: u64 = pages.iter().map(|page| count(&page.through)).sum();
    format!("{failed} of {}", made + failed as u64)
}

fn ways(ends: &Ends) -> String {
    let mut ways: Vec<(usize, &str)> = ends.ways.iter().map(|(way, count)| (*count, way.as_str())).collect();
    ways.sort_unstable_by(|one, other| other.cmp(one));
    let open = ends.connected - ends.finished;
    let open = (open > 0).then(|| format!("{open} open"));
    let all = ways.into_iter().map(|(count, way)| format!("{way}: {count}")).chain(open);
    all.collect::<Vec<_>>().join(", ")
}

fn troubles(round: &Round) -> String {
    let failures = [round.during.through.failures(), round.after.through.failures()].concat();
    let mut text = String::new();
    for failure in failures.iter().take(LISTED) {
        let (at, kind) = (failure.at.as_secs_f64(), failure.kind.name());
        _ = write!(text, "\n- {}, {at:.1} s, {kind}: {}", round.attack.name(), failure.text);
    }
    text
}

fn times(ledger: &Ledger) -> String {
    format!("{}, {}", millis(ledger.permille(500)), millis(ledger.permille(990)))
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn millis(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

fn seconds(time: Duration) -> String {
    format!("{:.0} s", time.as_secs_f64())
}

#[cfg(test)]
mod checks {
    use super::*;

    #[test]
    fn the_limit_is_twice_the_baseline_and_twice_what_the_machine_became_slower() {
        let tail = |through, direct| Tail {
            through: Duration::from_millis(through),
            direct: Duration::from_millis(direct),
        };
        assert_eq!(tail(4, 2).limit(tail(100, 2)), Duration::from_millis(8));
        assert_eq!(tail(4, 2).limit(tail(100, 5)), Duration::from_millis(14));
        assert_eq!(tail(4, 2).limit(tail(100, 1)), Duration::from_millis(8));
    }
}
