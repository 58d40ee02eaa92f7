"""Measurements: CPU and memory of a process tree from `/proc`, load from `wrk`, and idle connections."""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from entrants import CONFIGS, Running, on_cpus
from scenarios import SMALL, Workload

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
SETTLE_SECONDS = 5.0


@dataclass
class Sample:
    """One measurement of one entrant under load."""

    cpu_us: float  # user and system time of all its processes, per request
    rate: float  # requests per second
    p50_ms: float
    p99_ms: float
    errors: int  # failed connections, reads, writes, timeouts, and responses other than 2xx


class LoadError(Exception):
    """A measurement failed."""


def load(running: Running, workload: Workload, connections: int, seconds: int, cpus: str) -> Sample:
    """Runs `wrk` for `seconds`."""
    words = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "5s", "--latency", *wrk_options(workload)]
    before = cpu_seconds(running)
    said = subprocess.run(on_cpus(cpus, [*words, f"http://{running.address}{workload.path}"]), capture_output=True,
                          text=True, timeout=seconds + 20)
    spent = cpu_seconds(running) - before
    if said.returncode != 0:
        raise LoadError(said.stderr.strip() or said.stdout.strip())
    return parse_wrk(said.stdout, spent)


def wrk_options(workload: Workload) -> list[str]:
    return [
        *(["-H", f"Host: {workload.host}"] if workload.host else []),
        *(["-H", "Connection: close"] if workload.new_connections else []),
        *(["-s", str(CONFIGS / "upload.lua")] if workload.upload else []),
    ]


def parse_wrk(text: str, cpu: float) -> Sample:
    """Parses the output of `wrk --latency`. `cpu` is the CPU time of the entrant in seconds."""
    requests = re.search(r"(\d+) requests in ", text)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    if not requests or not rate or int(requests.group(1)) == 0:
        raise LoadError(f"no response was received:\n{text}")
    socket_errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    counts = (*(socket_errors.groups() if socket_errors else ()), *(refused.groups() if refused else ()))
    return Sample(
        cpu_us=cpu / int(requests.group(1)) * 1e6,
        rate=float(rate.group(1)),
        p50_ms=percentile_ms(text, 50),
        p99_ms=percentile_ms(text, 99),
        errors=sum(int(count) for count in counts),
    )


def percentile_ms(text: str, percent: int) -> float:
    found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s|m)\s*$", text, re.MULTILINE)
    if not found:
        raise LoadError(f"no {percent}% in:\n{text}")
    return float(found.group(1)) * {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}[found.group(2)]


def process_tree(pid: int) -> list[int]:
    """`pid` and its descendants: a master and its workers."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat_fields(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    tree = [pid]
    for parent in tree:
        tree += children.get(parent, [])
    return tree


def cpu_seconds(running: Running) -> float:
    """User and system time of the whole process tree since it started."""
    fields = filter(None, map(stat_fields, process_tree(running.process.pid)))
    return sum(int(user) + int(system) for *_, user, system in (f[:13] for f in fields)) / TICKS_PER_SECOND


def stat_fields(pid: int) -> list[str]:
    """`/proc/PID/stat` from field 3 on, or an empty list if the process has ended. Field 2 may contain spaces."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def memory_kib(running: Running) -> int:
    """Memory of the whole tree. Pages shared between master and workers count once if the kernel reports PSS."""
    return sum(kib_in(pid) for pid in process_tree(running.process.pid))


def kib_in(pid: int) -> int:
    for file, name in (("smaps_rollup", "Pss"), ("status", "VmRSS")):
        try:
            text = Path(f"/proc/{pid}/{file}").read_text(errors="replace")
        except OSError:
            continue
        if found := re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE):
            return int(found.group(1))
    return 0


def settled_memory_kib(running: Running) -> int:
    """Memory as soon as it no longer changes, or after SETTLE_SECONDS."""
    deadline = time.monotonic() + SETTLE_SECONDS
    last = memory_kib(running)
    while time.monotonic() < deadline:
        time.sleep(0.25)
        now = memory_kib(running)
        if abs(now - last) <= 4:
            return now
        last = now
    return last


def idle_connection_kib(running: Running, count: int) -> float:
    """Memory per connection, for `count` connections that have sent one request and stay open."""
    # These requests allocate what an entrant needs once, so that it does not count as memory of a connection.
    for _ in range(3):
        running.check([SMALL])
    before = settled_memory_kib(running)
    connections: list[socket.socket] = []
    try:
        for _ in range(count):
            connections.append(connect_and_ask(running.address))
        after = settled_memory_kib(running)
        if closed := count_closed(connections):
            raise LoadError(f"{closed} of {count} idle connections were closed")
        return (after - before) / count
    finally:
        for connection in connections:
            connection.close()


def connect_and_ask(address: str) -> socket.socket:
    """A connection on which one complete response was received."""
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=5)
    connection.sendall(f"GET {SMALL.path} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
    response = b""
    while len(response.partition(b"\r\n\r\n")[2]) < SMALL.length:
        received = connection.recv(4096)
        if not received:
            raise LoadError(f"connection closed after {response!r}")
        response += received
    return connection


def count_closed(connections: list[socket.socket]) -> int:
    """The number of readable connections. After a complete response, this means that the peer has closed them."""
    poll = select.poll()
    for connection in connections:
        poll.register(connection, select.POLLIN)
    return len(poll.poll(0))
