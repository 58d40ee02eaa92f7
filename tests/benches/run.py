#!/usr/bin/env python3
"""Compares CPU, latency and memory of the load balancer and other programs, with one and with two workers.

All entrants have the same nginx as their origin. `wrk` loads them in turn, in several rounds, so that other work of the
machine affects all of them equally. The tables show the median over the rounds. With one worker on a machine with at
least two CPUs, the entrant has one of them alone, and the origin and the load share the others. With two workers, this
needs three CPUs; on fewer, all share all CPUs. Memory per idle connection is measured on freshly started processes.
Programs that are not on this machine are skipped with a message.

Prints Markdown on the standard output and its progress on the standard error. With --write, a complete run without
problems also replaces RESULTS.md beside this file, which ends with the text of profile.md. Needs Linux, nginx and wrk.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

sys.dont_write_bytecode = True

from entrants import OTHER_BUILD, Entrant, Place, Running, StartError, all_entrants, origin  # noqa: E402
from measure import LoadError, idle_connection_kib, load, memory_kib  # noqa: E402
from report import RESULTS, Results, Run, published, report  # noqa: E402
from scenarios import IDLE, IDLE_TITLE, LARGE, MEDIUM, SCENARIOS, SMALL, WORKERS, Scenario, Workload  # noqa: E402


@dataclass(frozen=True)
class Stage:
    """An origin with the programs in front of it, all of which have the same number of workers."""

    workers: int
    directory: Path
    origin: str
    running: dict[str, Running] = field(default_factory=dict)


def main() -> int:
    options = parse_arguments()
    if missing := [name for name in ("nginx", "wrk") if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")]:
        print(f"the benchmark needs {' and '.join(missing)}: run `make setup`", file=sys.stderr)
        return 1
    raise_file_limit()
    # This lets the `finally` blocks stop the programs on SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    chosen = chosen_entrants(options)
    present = [entrant for entrant in chosen if entrant.program.path]
    absent = sorted({f"{entrant.family}: {entrant.program.absent}" for entrant in chosen if not entrant.program.path})
    for line in absent:
        progress(f"skipped: {line}")
    scenarios = chosen_scenarios(present, options)
    if not scenarios and not options.idle:
        print("nothing to measure: build the daemon with `make bench`, or check the options", file=sys.stderr)
        return 1

    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        results = measure(present, scenarios, Path(directory), options)
    run = Run(options.connections, options.rounds, options.seconds, options.idle)
    text = report({entrant.name: entrant.title() for entrant in present}, absent, results, run)
    print(text)
    if options.write:
        write(text, options, results)
    return 1 if results.problems else 0


# === options ===


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release/load_balancer", help="the daemon")
    parser.add_argument("--quickstart", default="target/release/examples/quickstart", help="the bare quick start")
    parser.add_argument("--other", metavar="PATH", help="another build of the daemon, to compare with")
    parser.add_argument("--rounds", type=int, default=5, help="measurements per entrant and scenario (%(default)s)")
    parser.add_argument("--seconds", type=int, default=3, help="length of a measurement (%(default)s)")
    parser.add_argument("--connections", type=int, default=64, help="connections under load (%(default)s)")
    parser.add_argument("--idle", type=int, default=4000,
                        help="idle connections for the measurement of memory, 0 for none (%(default)s)")
    parser.add_argument("--only", action="append", metavar="NAME",
                        help="only this entrant, or all configurations of this program; can be repeated")
    parser.add_argument("--scenario", action="append", metavar="TEXT",
                        help=f"only scenarios with this text in their title, or `{IDLE_TITLE}`; can be repeated")
    parser.add_argument("--workers", type=int, choices=sorted(WORKERS),
                        help="only scenarios with this number of workers")
    parser.add_argument("--quick", action="store_true", help="a short run that checks the benchmark itself")
    parser.add_argument("--write", action="store_true",
                        help=f"write {RESULTS.name}, unless the run is partial or has problems")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.idle = 1, 1, min(options.idle, 500)
    if not named(IDLE_TITLE, options) or options.workers == 2:
        options.idle = 0
    return options


def chosen_entrants(options: argparse.Namespace) -> list[Entrant]:
    entrants = all_entrants(options.bin, options.quickstart, options.other)
    return [entrant for entrant in entrants if not options.only or {entrant.name, entrant.family} & set(options.only)]


def chosen_scenarios(entrants: list[Entrant], options: argparse.Namespace) -> list[Scenario]:
    """The scenarios that the options name, without those in which no entrant takes part."""
    return [
        scenario for scenario in SCENARIOS
        if named(scenario.title, options)
        if options.workers in (None, scenario.workers)
        if any(takes_part(entrant, scenario.entrants) for entrant in entrants)
    ]


def named(title: str, options: argparse.Namespace) -> bool:
    return not options.scenario or any(text.lower() in title.lower() for text in options.scenario)


def takes_part(entrant: Entrant, names: tuple[str, ...]) -> bool:
    return entrant.name.removeprefix(OTHER_BUILD) in names


def raise_file_limit() -> None:
    """Each idle connection needs a file descriptor in this process and in the entrant, which inherits the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# === measuring ===


def measure(entrants: list[Entrant], scenarios: list[Scenario], directory: Path,
            options: argparse.Namespace) -> Results:
    """Measures load on programs that run side by side, then idle connections on one program after the other."""
    results = Results()
    with contextlib.ExitStack() as stack:
        stages = {}
        for workers in sorted({scenario.workers for scenario in scenarios}):
            stage = stages[workers] = stage_with_origin(workers, directory / f"load-{workers}", stack)
            start_all(stage, entrants, scenarios, stack, results)
        under_load(stages, scenarios, options, results)
    if options.idle:
        with contextlib.ExitStack() as stack:
            idle(stage_with_origin(1, directory / "idle", stack), entrants, options.idle, results)
    return results


def stage_with_origin(workers: int, directory: Path, stack: contextlib.ExitStack) -> Stage:
    html = directory / "origin" / "html"
    html.mkdir(parents=True)
    for workload in (MEDIUM, LARGE):
        (html / workload.path[1:]).write_bytes(b"x" * workload.length)
    place = Place(directory / "origin", "127.0.1.1", "", 1, cpus_of_load(workers))
    behind = Running(origin(), place, [SMALL, MEDIUM, LARGE])
    stack.callback(behind.stop)
    return Stage(workers, directory, behind.address)


def start_all(stage: Stage, entrants: list[Entrant], scenarios: list[Scenario], stack: contextlib.ExitStack,
              results: Results) -> None:
    """Starts the entrants that take part in a scenario of this stage."""
    for number, entrant in enumerate(entrants):
        own = [each.workload for each in scenarios
               if each.workers == stage.workers and takes_part(entrant, each.entrants)]
        if own and (running := start(entrant, stage, number, own, results)):
            stack.callback(running.stop)
            stage.running[entrant.name] = running


def start(entrant: Entrant, stage: Stage, number: int, workloads: list[Workload], results: Results) -> Running | None:
    """Starts an entrant on its own loopback address. Records a problem and returns None if it does not serve."""
    place = Place(stage.directory / str(number), f"127.0.{stage.workers + 1}.{number + 1}", stage.origin, stage.workers,
                  cpus_of_entrant(stage.workers))
    try:
        return Running(entrant, place, workloads)
    except StartError as error:
        problem(results, str(error))
        return None


def under_load(stages: dict[int, Stage], scenarios: list[Scenario], options: argparse.Namespace,
               results: Results) -> None:
    for turn in range(options.rounds):
        for scenario in scenarios:
            running = stages[scenario.workers].running.values()
            entrants = [each for each in running if takes_part(each.entrant, scenario.entrants)]
            # Each round begins with another entrant.
            shift = turn % len(entrants) if entrants else 0
            for entrant in entrants[shift:] + entrants[:shift]:
                take_turn(entrant, scenario, turn, options, results)
    if 1 in stages:
        results.memory_kib = {name: memory_kib(running) for name, running in stages[1].running.items()}


def take_turn(running: Running, scenario: Scenario, turn: int, options: argparse.Namespace, results: Results) -> None:
    name = running.entrant.name
    cpus = cpus_of_load(scenario.workers)
    try:
        sample = load(running, scenario.workload, scenario.connections or options.connections, options.seconds, cpus)
    except LoadError as error:
        return problem(results, f"{name}, {scenario.title}: {error}")
    finally:
        running.discard_logs()
    results.samples[scenario, name].append(sample)
    progress(f"round {turn + 1}, {scenario.title}: {name}: {sample.cpu_us:.1f} us, {sample.rate:.0f}/s, "
             f"{sample.errors} errors")


def idle(stage: Stage, entrants: list[Entrant], count: int, results: Results) -> None:
    for number, entrant in enumerate(entrants):
        if not takes_part(entrant, IDLE) or not (running := start(entrant, stage, number, [SMALL], results)):
            continue
        try:
            each = results.idle_kib[entrant.name] = idle_connection_kib(running, count)
            progress(f"{count} idle connections: {entrant.name}: {each:.1f} KiB each")
        except (LoadError, StartError, OSError) as error:
            problem(results, f"{entrant.name}, idle connections: {error}")
        finally:
            running.stop()


def cpus_of_entrant(workers: int) -> str:
    cpus = usable_cpus()
    return "" if len(cpus) <= workers else ",".join(cpus[:workers])


def cpus_of_load(workers: int) -> str:
    cpus = usable_cpus()
    return "" if len(cpus) <= workers else ",".join(cpus[workers:])


def usable_cpus() -> list[str]:
    """The CPUs of this process, or none without a program that can pin to them."""
    return [str(cpu) for cpu in sorted(os.sched_getaffinity(0))] if shutil.which("taskset") else []


# === output ===


def write(text: str, options: argparse.Namespace, results: Results) -> None:
    """Replaces the published figures by those of a complete run; other runs leave them alone."""
    partial = options.quick or options.only or options.other or options.scenario or options.workers or not options.idle
    if partial or results.problems:
        progress(f"{RESULTS} is unchanged: the run is partial or has problems")
        return
    RESULTS.write_text(published(text))
    progress(f"written: {RESULTS}")


def problem(results: Results, text: str) -> None:
    progress(f"problem: {text}")
    results.problems.append(text)


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
