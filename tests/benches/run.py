#!/usr/bin/env python3
"""Compares CPU, latency and memory of the load balancer and other programs, with one worker each and the same origin.

All entrants have the same nginx as their origin. `wrk` loads them in turn, in several rounds, so that other work of the
machine affects all of them equally. The table shows the median over the rounds. On a machine with at least two CPUs, the
entrant has one of them alone, and the origin and the load share the others. Memory per idle connection is measured on
freshly started processes. Programs that are not on this machine are skipped with a message.

Prints Markdown on the standard output and its progress on the standard error. With --write, a complete run without
problems also replaces RESULTS.md beside this file. Needs Linux, nginx and wrk.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import re
import resource
import shutil
import signal
import statistics
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

sys.dont_write_bytecode = True

from entrants import BODIES, Entrant, Running, StartError, all_entrants, origin  # noqa: E402
from measure import LoadError, Sample, idle_connection_kib, load, memory_kib  # noqa: E402

BASELINES = ("bare quick start", "nginx")

RESULTS = Path(__file__).parent / "RESULTS.md"
INTRODUCTION = """\
# Benchmark

`make bench` compares this daemon with a bare Pingora proxy (the program of Pingora's quick start), nginx, HAProxy and Envoy, and writes
this file. Every program has one worker and stands in front of the same nginx. They take turns in one run, so that whatever else the
machine does affects all of them alike. Programs that are not installed are skipped.

- **CPU per request** is the user and system time of all processes of the program. It is the figure to compare: the other figures also
  depend on the load generator, which shares the machine.
- **load_balancer (all features)** has `peak_ewma`, sticky sessions, limits, retries, ejection of slow backends and slow start turned on.
- **load_balancer (access log)** writes the access log to a file.
"""


@dataclass(frozen=True)
class Scenario:
    title: str
    path: str
    new_connections: bool


SCENARIOS = [
    Scenario("36 bytes, keep-alive", "/small", False),
    Scenario("10 KiB, keep-alive", "/10k", False),
    Scenario("36 bytes, a new connection for each request", "/small", True),
    Scenario("10 KiB, a new connection for each request", "/10k", True),
]


@dataclass
class Placement:
    """The CPUs of the entrant and of the load; empty for no limit."""

    entrant: str
    load: str


class Results:
    """The measurements, by scenario and entrant."""

    def __init__(self) -> None:
        self.samples: dict[tuple[Scenario, str], list[Sample]] = defaultdict(list)
        self.memory_kib: dict[str, int] = {}
        self.idle_kib: dict[str, float] = {}
        self.problems: list[str] = []

    def problem(self, text: str) -> None:
        progress(f"problem: {text}")
        self.problems.append(text)

    def median(self, scenario: Scenario, name: str, field: str) -> float | None:
        samples = self.samples.get((scenario, name))
        return statistics.median(getattr(sample, field) for sample in samples) if samples else None


def main() -> int:
    options = parse_arguments()
    if missing := [name for name in ("nginx", "wrk") if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")]:
        print(f"the benchmark needs {' and '.join(missing)}: run `make setup`", file=sys.stderr)
        return 1
    raise_file_limit()
    # This lets the `finally` blocks stop the programs on SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    entrants = all_entrants(options.bin, options.quickstart, options.other)
    if options.only:
        entrants = [entrant for entrant in entrants if entrant.name in options.only]
    present = [entrant for entrant in entrants if entrant.program]
    absent = [f"{entrant.name}: {entrant.absent}" for entrant in entrants if not entrant.program]
    for line in absent:
        progress(f"skipped: {line}")
    if not present:
        print("no program to measure: build the daemon with `make bench`, or check --only", file=sys.stderr)
        return 1

    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        results = measure(present, Path(directory), options)
    text = report(present, absent, results, options)
    print(text)
    if options.write:
        write(text, options, results)
    return 1 if results.problems else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release/load_balancer", help="the daemon")
    parser.add_argument("--quickstart", default="target/release/examples/quickstart", help="the bare quick start")
    parser.add_argument("--other", metavar="PATH", help="another build of the daemon, to compare with")
    parser.add_argument("--rounds", type=int, default=3, help="measurements per entrant and scenario (%(default)s)")
    parser.add_argument("--seconds", type=int, default=4, help="length of a measurement (%(default)s)")
    parser.add_argument("--connections", type=int, default=64, help="connections under load (%(default)s)")
    parser.add_argument("--idle", type=int, default=4000, help="idle connections for the measurement of memory (%(default)s)")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this entrant; may be repeated")
    parser.add_argument("--quick", action="store_true", help="a short run that checks the benchmark itself")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}, unless the run is partial or has problems")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.idle = 1, 1, min(options.idle, 500)
    return options


def raise_file_limit() -> None:
    """Each idle connection needs a file descriptor in this process and in the entrant, which inherits the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def placement() -> Placement:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2 or not shutil.which("taskset"):
        return Placement("", "")
    return Placement(str(cpus[0]), ",".join(map(str, cpus[1:])))


# === measuring ===


def measure(entrants: list[Entrant], directory: Path, options: argparse.Namespace) -> Results:
    """Measures load on programs that run side by side, then idle connections on one program after the other."""
    results = Results()
    cpus = placement()
    html = directory / "origin" / "html"
    html.mkdir(parents=True)
    (html / "10k").write_bytes(b"x" * BODIES["/10k"])
    behind = Running(origin(), directory / "origin", "127.0.1.1", "", cpus.load)
    try:
        under_load(entrants, directory / "load", behind, cpus, options, results)
        idle(entrants, directory / "idle", behind, cpus, options, results)
    finally:
        behind.stop()
    return results


def under_load(entrants: list[Entrant], directory: Path, behind: Running, cpus: Placement,
               options: argparse.Namespace, results: Results) -> None:
    with contextlib.ExitStack() as stack:
        running = []
        for number, entrant in enumerate(entrants):
            if started := start(entrant, directory, number, behind, cpus, results):
                stack.callback(started.stop)
                running.append(started)
        for turn in range(options.rounds):
            for scenario in SCENARIOS:
                # Each round begins with another entrant.
                shift = turn % len(running) if running else 0
                for entrant in running[shift:] + running[:shift]:
                    take_turn(entrant, scenario, turn, cpus, options, results)
        for entrant in running:
            results.memory_kib[entrant.entrant.name] = memory_kib(entrant)


def take_turn(running: Running, scenario: Scenario, turn: int, cpus: Placement, options: argparse.Namespace,
              results: Results) -> None:
    name = running.entrant.name
    try:
        sample = load(running, scenario.path, scenario.new_connections, options.connections, options.seconds, cpus.load)
    except LoadError as error:
        results.problem(f"{name}, {scenario.title}: {error}")
        return
    results.samples[scenario, name].append(sample)
    progress(f"round {turn + 1}, {scenario.title}: {name}: {sample.cpu_us:.1f} us, {sample.rate:.0f}/s, "
             f"{sample.errors} errors")


def idle(entrants: list[Entrant], directory: Path, behind: Running, cpus: Placement, options: argparse.Namespace,
         results: Results) -> None:
    for number, entrant in enumerate(entrants):
        running = start(entrant, directory, number, behind, cpus, results)
        if not running:
            continue
        try:
            each = results.idle_kib[entrant.name] = idle_connection_kib(running, options.idle)
            progress(f"{options.idle} idle connections: {entrant.name}: {each:.1f} KiB each")
        except (LoadError, StartError, OSError) as error:
            results.problem(f"{entrant.name}, idle connections: {error}")
        finally:
            running.stop()


def start(entrant: Entrant, directory: Path, number: int, behind: Running, cpus: Placement,
          results: Results) -> Running | None:
    """Starts an entrant on its own loopback address. Records a problem and returns None if it does not start."""
    try:
        return Running(entrant, directory / str(number), f"127.0.2.{number + 1}", behind.address, cpus.entrant)
    except StartError as error:
        results.problem(str(error))
        return None


# === reporting ===


def report(entrants: list[Entrant], absent: list[str], results: Results, options: argparse.Namespace) -> str:
    lines = [
        f"Measured on {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}: {machine()}. One worker each, "
        f"{options.connections} connections, median of {options.rounds} turns of {options.seconds} s.",
        *(f"Skipped: {line}." for line in absent),
        *(f"Problem: {line}" for line in results.problems),
    ]
    titles = {entrant.name: entrant.title() for entrant in entrants}
    for scenario in SCENARIOS:
        lines += ["", f"## {scenario.title}", "", *load_table(scenario, titles, results)]
    lines += ["", "## Memory", "", *memory_table(titles, results, options)]
    return "\n".join(lines)


def write(text: str, options: argparse.Namespace, results: Results) -> None:
    """Replaces the published figures by those of a complete run; other runs leave them alone."""
    if options.quick or options.only or options.other or results.problems:
        progress(f"{RESULTS} is unchanged: the run is partial or has problems")
        return
    RESULTS.write_text(f"{INTRODUCTION}\n{text}\n")
    progress(f"written: {RESULTS}")


def load_table(scenario: Scenario, titles: dict[str, str], results: Results) -> list[str]:
    head = ["", "CPU per request", *(f"vs {name}" for name in BASELINES), "requests/s", "p50", "p99", "errors"]
    rows = []
    for name, title in titles.items():
        if (scenario, name) not in results.samples:
            continue
        cpu, rate, p50, p99 = (results.median(scenario, name, field) for field in ("cpu_us", "rate", "p50_ms", "p99_ms"))
        errors = sum(sample.errors for sample in results.samples[scenario, name])
        rows.append([
            title, f"{cpu:.1f} µs", *(ratio(cpu, results.median(scenario, base, "cpu_us")) for base in BASELINES),
            f"{rate:.0f}", f"{p50:.2f} ms", f"{p99:.2f} ms", str(errors),
        ])
    return table(head, rows)


def memory_table(titles: dict[str, str], results: Results, options: argparse.Namespace) -> list[str]:
    head = ["", "after the load", f"for each of {options.idle} idle connections", *(f"vs {name}" for name in BASELINES)]
    rows = []
    for name, title in titles.items():
        memory, each = results.memory_kib.get(name), results.idle_kib.get(name)
        rows.append([
            title,
            f"{memory / 1024:.1f} MiB" if memory is not None else "–",
            f"{each:.1f} KiB" if each is not None else "–",
            *(ratio(each, results.idle_kib.get(base)) for base in BASELINES),
        ])
    return table(head, rows)


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(row) + " |" for row in [head, rule, *rows]]


def ratio(value: float | None, base: float | None) -> str:
    return f"{value / base:.2f}" if value is not None and base else "–"


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    name = f" ({model.group(1)})" if model else ""
    return f"{len(os.sched_getaffinity(0))} cores{name}, {memory:.0f} GiB, Linux {platform.release()}"


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
