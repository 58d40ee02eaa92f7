"""The report of a run: the table of goals, a table for each scenario, and memory. All figures are computed."""

from __future__ import annotations

import datetime
import os
import platform
import re
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from measure import Sample
from scenarios import (
    GOALS, GOALS_OF_SCALE, IDLE_AIM_KIB, IDLE_REACH_KIB, IDLE_TITLE, OURS, PEERS, QUICK_START, SCENARIOS, Goal,
    Scenario,
)

RESULTS = Path(__file__).parent / "RESULTS.md"
# A text for the end of RESULTS, which is written by hand.
PROFILE = Path(__file__).parent / "profile.md"
NONE = "–"

INTRODUCTION = """\
# Benchmark

`make bench` compares this daemon with a bare Pingora proxy (the program of Pingora's quick start), nginx, HAProxy and Envoy, and writes
this file. All programs stand in front of the same nginx and take turns in one run, so that whatever else the machine does affects all of
them alike. Programs that are not installed are skipped. With one worker, a program has a CPU alone, and the origin and the load generator
share the others. With two workers, a program has two CPUs, which it shares with the origin and the load generator if there are no others.

- **CPU per request** is the user and system time of all processes of the program. It is the figure to compare: the other figures also
  depend on the load generator, which shares the machine.
- **All features** are `least_request`, a session cookie, limits, retries, ejection (also of slow backends), slow start and HTTP health
  checks. The clients do not return the cookie, so each response sets one. The goal compares with nginx and HAProxy without such features.
- **Access logs** go to a file, and each program writes as it does by default. The daemon logs JSON in the background. nginx logs similar
  fields as JSON, with one `write` per request; the table also shows it with a buffer of 64 KiB. HAProxy has `option httplog` and logs to
  its standard output, which is a file.
- **nginx** has `worker_processes` 1 or 2, without `reuseport`, as by default, and buffers request bodies in memory, because it would
  write those of 64 KiB to files by default. **HAProxy** has `nbthread` 1 or 2 and `http-reuse always`.
- **1 MiB**: the goal compares with the default buffers of nginx and HAProxy. The tables also show nginx with larger buffers, and HAProxy
  with `splice-auto`.
- **Uploads** are POST requests. The origin reads the whole body before it responds, and counts its bytes.
- **1,000 routes** differ in host and path, and only the last one matches. nginx has a `server` with a `location` for each, HAProxy a map.
- **1,000 backends** are addresses of the same origin, which take turns (round robin). All programs can keep a connection to each of them,
  and check none of them. The goal is for 1,000 clients, so that the number of connections is alike with one backend. With few clients,
  requests to many backends use far more connections than requests to one, which costs the system, and thus every program, more.
"""

LEGEND = """\
The ratio is computed from the medians below. *Aim* and *reach* say which goal the ratio, or the memory, meets."""


class Results:
    """The measurements, by scenario and entrant."""

    def __init__(self) -> None:
        self.samples: dict[tuple[Scenario, str], list[Sample]] = defaultdict(list)
        self.memory_kib: dict[str, int] = {}
        self.idle_kib: dict[str, float] = {}
        self.problems: list[str] = []

    def median(self, scenario: Scenario, name: str, field: str) -> float | None:
        samples = self.samples.get((scenario, name))
        return statistics.median(getattr(sample, field) for sample in samples) if samples else None

    def cpu(self, scenario: Scenario, name: str) -> float | None:
        return self.median(scenario, name, "cpu_us")

    def errors(self, scenario: Scenario, name: str) -> int:
        return sum(sample.errors for sample in self.samples.get((scenario, name), []))

    def entrants(self, scenario: Scenario) -> list[str]:
        return [name for measured, name in self.samples if measured == scenario]


@dataclass(frozen=True)
class Run:
    """The options of a run that the report mentions."""

    connections: int
    rounds: int
    seconds: int
    idle: int


def report(titles: dict[str, str], absent: list[str], results: Results, run: Run) -> str:
    """The report as Markdown. `titles` has the entrants of the run in the order of the tables."""
    lines = [
        f"Measured on {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}: {machine()}. "
        f"{run.connections} connections, median of {run.rounds} turns of {run.seconds} s.",
        *(f"Skipped: {line}." for line in absent),
        *(f"Problem: {line}" for line in results.problems),
        "", "## Goals", "", *goals_table(results), "", LEGEND,
    ]
    for scenario in SCENARIOS:
        if results.entrants(scenario):
            lines += ["", f"## {scenario.title}", "", *load_table(scenario, titles, results)]
    if results.idle_kib:
        lines += ["", f"## {IDLE_TITLE}", "", *memory_table(titles, results, run)]
    return "\n".join(lines)


def published(text: str) -> str:
    """The content of RESULTS."""
    return f"{INTRODUCTION}\n{text}\n\n{PROFILE.read_text()}"


# === goals ===


def goals_table(results: Results) -> list[str]:
    head = ["CPU per request", OURS, "the better of nginx and HAProxy", "ratio", "reach", "aim", "met"]
    rows = [
        *(goal_row(goal, results) for goal in GOALS),
        memory_row(results),
        *(goal_row(goal, results) for goal in GOALS_OF_SCALE),
    ]
    # A partial run leaves out what it did not measure.
    return table(head, [row for row in rows if row[-1] != NONE])


def goal_row(goal: Goal, results: Results) -> list[str]:
    ours = results.cpu(goal.scenario, goal.ours)
    cpu = {name: value for name in goal.others if (value := results.cpu(goal.scenario, name)) is not None}
    best = min(cpu, key=lambda name: cpu[name], default="")
    limits = [f"{goal.reach:.2f}", f"{goal.aim:.2f}"]
    if ours is None or not best:
        return [goal.title, microseconds(ours), NONE, NONE, *limits, NONE]
    errors = sum(results.errors(goal.scenario, name) for name in (goal.ours, best))
    met = f"no: {errors} errors" if errors else verdict(round(ours / cpu[best], 2), goal.reach, goal.aim)
    against = f"{microseconds(cpu[best])} ({short(best)})"
    return [goal.title, microseconds(ours), against, ratio(ours, cpu[best]), *limits, met]


def short(name: str) -> str:
    """The name of a program without its configuration, or a phrase for the daemon itself."""
    return "itself with one" if name.startswith(OURS) else name.partition(" (")[0]


def memory_row(results: Results) -> list[str]:
    ours = results.idle_kib.get(OURS)
    kib = {name: results.idle_kib[name] for name in PEERS if name in results.idle_kib}
    best = min(kib, key=lambda name: kib[name], default="")
    return [
        "memory per idle keep-alive connection",
        kibibytes(ours),
        f"{kibibytes(kib[best])} ({best})" if best else NONE,
        ratio(ours, kib.get(best)),
        kibibytes(IDLE_REACH_KIB),
        kibibytes(IDLE_AIM_KIB),
        verdict(round(ours, 1), IDLE_REACH_KIB, IDLE_AIM_KIB) if ours is not None else NONE,
    ]


def verdict(value: float, reach: float, aim: float) -> str:
    """The goal that the value meets. The value is rounded as in the table, which thus never contradicts itself."""
    return "aim" if value <= aim else "reach" if value <= reach else "**no**"


# === scenarios and memory ===


def load_table(scenario: Scenario, titles: dict[str, str], results: Results) -> list[str]:
    measured = results.entrants(scenario)
    bases = [name for name in scenario.baselines if name in measured]
    versus = [f"vs {name}" for name in bases]
    head = ["", "CPU per request", "from – to", *versus, "requests/s", "p50", "p99", "errors"]
    rows = [load_row(scenario, name, title, bases, results) for name, title in titles.items() if name in measured]
    return table(head, rows)


def load_row(scenario: Scenario, name: str, title: str, bases: list[str], results: Results) -> list[str]:
    each = [sample.cpu_us for sample in results.samples[scenario, name]]
    cpu, errors = statistics.median(each), results.errors(scenario, name)
    rate, p50, p99 = (results.median(scenario, name, field) for field in ("rate", "p50_ms", "p99_ms"))
    return [
        title, microseconds(cpu), f"{microseconds(min(each))} – {microseconds(max(each))}",
        *(ratio(cpu, results.cpu(scenario, base)) for base in bases),
        f"{rate:.0f}", f"{p50:.2f} ms", f"{p99:.2f} ms", f"**{errors}**" if errors else "0",
    ]


def memory_table(titles: dict[str, str], results: Results, run: Run) -> list[str]:
    bases = [name for name in (QUICK_START, *PEERS) if name in results.idle_kib]
    each_of = f"for each of {run.idle} idle connections"
    head = ["one worker", "after the load", each_of, *(f"vs {name}" for name in bases)]
    rows = []
    for name, title in titles.items():
        memory, each = results.memory_kib.get(name), results.idle_kib.get(name)
        if each is not None:
            after = f"{memory / 1024:.1f} MiB" if memory is not None else NONE
            rows.append([title, after, kibibytes(each), *(ratio(each, results.idle_kib[base]) for base in bases)])
    return table(head, rows)


# === words ===


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(row) + " |" for row in [head, rule, *rows]]


def microseconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f} µs" if value < 100 else f"{value:.0f} µs"


def kibibytes(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f} KiB"


def ratio(value: float | None, base: float | None) -> str:
    return f"{value / base:.2f}" if value is not None and base else NONE


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    name = f" ({model.group(1)})" if model else ""
    return f"{len(os.sched_getaffinity(0))} cores{name}, {memory:.0f} GiB, Linux {platform.release()}"
