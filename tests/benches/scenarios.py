"""The scenarios of the benchmark, and the rows of the table that compares them with the project's goals."""

from __future__ import annotations

from dataclasses import dataclass

WORKERS = {1: "one worker", 2: "two workers"}
PEERS = ("nginx", "HAProxy")
# The number of routes and of backends in the scenarios with many of them.
MANY = 1000

OURS = "load_balancer"
ALL_FEATURES = "load_balancer (all features)"
QUICK_START = "bare quick start"
LOGS = tuple(f"{name} (access log)" for name in (OURS, *PEERS))
ROUTES = tuple(f"{name} (1,000 routes)" for name in (OURS, *PEERS))
ONE_ROUTE = "load_balancer (1 route)"
BUFFERED_LOG = "nginx (buffered access log)"
# For large bodies. Both settings differ from the default.
TUNED = ("nginx (16 buffers of 16 KiB)", "HAProxy (splice)")
BACKENDS = tuple(f"{name} (1,000 backends)" for name in (OURS, *PEERS))


@dataclass(frozen=True)
class Workload:
    """The requests of a scenario."""

    path: str
    # The length of the body of the response, in bytes.
    length: int
    # The length of the body of the request; 0 for a GET without a body.
    upload: int = 0
    # The `Host` of the request; empty for the address of the entrant.
    host: str = ""
    new_connections: bool = False


SMALL = Workload("/small", 36)
MEDIUM = Workload("/10k", 10 * 1024)
LARGE = Workload("/1m", 1024 * 1024)
# `configs/upload.lua` has the same length.
UPLOAD = Workload("/upload/", 36, upload=64 * 1024)
NEW_CONNECTIONS = Workload("/small", 36, new_connections=True)
# Only the last of the routes matches.
LAST_ROUTE = Workload(f"/route{MANY - 1}/page", 36, host=f"host{MANY - 1}.example")


@dataclass(frozen=True)
class Scenario:
    """A workload, and the entrants that take turns in it."""

    what: str
    workload: Workload
    workers: int
    entrants: tuple[str, ...]
    # The entrants that the table compares each entrant with.
    baselines: tuple[str, ...] = PEERS
    # The number of clients; 0 for the number that the options of the run give.
    connections: int = 0

    @property
    def title(self) -> str:
        return f"{self.what}, {WORKERS[self.workers]}"


ALL = (OURS, ALL_FEATURES, QUICK_START, *PEERS, "Envoy")
WITH_BARE = (OURS, QUICK_START, *PEERS, "Envoy")
MAIN = (OURS, *PEERS)

SMALL_ONE = Scenario("36 bytes, keep-alive", SMALL, 1, ALL, (QUICK_START, *PEERS))
SMALL_TWO = Scenario("36 bytes, keep-alive", SMALL, 2, ALL, (QUICK_START, *PEERS))
LOGGED = Scenario(
    "36 bytes, keep-alive, with an access log", SMALL, 1, (*LOGS, BUFFERED_LOG), LOGS[1:],
)
MEDIUM_ONE = Scenario("10 KiB, keep-alive", MEDIUM, 1, WITH_BARE, (QUICK_START, *PEERS))
MEDIUM_TWO = Scenario("10 KiB, keep-alive", MEDIUM, 2, MAIN)
LARGE_ONE = Scenario("1 MiB, keep-alive", LARGE, 1, (*MAIN, *TUNED))
LARGE_TWO = Scenario("1 MiB, keep-alive", LARGE, 2, (*MAIN, *TUNED))
UPLOAD_ONE = Scenario("uploads of 64 KiB, keep-alive", UPLOAD, 1, MAIN)
UPLOAD_TWO = Scenario("uploads of 64 KiB, keep-alive", UPLOAD, 2, MAIN)
CONNECTING = Scenario(
    "36 bytes, a new connection for each request", NEW_CONNECTIONS, 1, WITH_BARE, (QUICK_START, *PEERS),
)
MANY_ROUTES = Scenario(
    "1,000 routes, 36 bytes, keep-alive", LAST_ROUTE, 1, (ONE_ROUTE, *ROUTES, *PEERS), (ONE_ROUTE, *PEERS),
)
MANY_BACKENDS = Scenario(
    "1,000 backends, 1,000 clients, 36 bytes, keep-alive", SMALL, 1, (*MAIN, *BACKENDS), MAIN, connections=1000,
)
FEW_CLIENTS = Scenario("1,000 backends, few clients, 36 bytes, keep-alive", SMALL, 1, (*MAIN, *BACKENDS), MAIN)

SCENARIOS = [
    SMALL_ONE, SMALL_TWO, LOGGED, MEDIUM_ONE, MEDIUM_TWO, LARGE_ONE, LARGE_TWO, UPLOAD_ONE, UPLOAD_TWO, CONNECTING,
    MANY_ROUTES, MANY_BACKENDS, FEW_CLIENTS,
]

# The entrants whose memory is measured with idle connections.
IDLE = ALL
IDLE_TITLE = "Memory"


@dataclass(frozen=True)
class Goal:
    """A row of the table of goals: the CPU per request of one entrant compared with the best of others."""

    title: str
    scenario: Scenario
    reach: float
    aim: float
    ours: str = OURS
    others: tuple[str, ...] = PEERS


GOALS = [
    Goal("36 bytes, keep-alive, one worker", SMALL_ONE, 0.95, 0.85),
    Goal("the same, two workers", SMALL_TWO, 0.95, 0.8),
    Goal("the same with all features, one worker", SMALL_ONE, 1.05, 0.95, ours=ALL_FEATURES),
    Goal("the same with a JSON access log, all with their logs on", LOGGED, 1.0, 0.9, ours=LOGS[0], others=LOGS[1:]),
    Goal("10 KiB, keep-alive, one worker", MEDIUM_ONE, 0.9, 0.8),
    Goal("the same, two workers", MEDIUM_TWO, 0.95, 0.85),
    Goal("1 MiB responses, two workers", LARGE_TWO, 0.75, 0.5),
    Goal("a new connection for each request", CONNECTING, 1.05, 0.95),
]
# These compare the daemon with itself.
GOALS_OF_SCALE = [
    Goal("1,000 routes against one", MANY_ROUTES, 1.1, 1.0, ours=ROUTES[0], others=(ONE_ROUTE,)),
    Goal("1,000 backends against one", MANY_BACKENDS, 1.1, 1.0, ours=BACKENDS[0], others=(OURS,)),
]
# Memory for each idle connection, in KiB, whatever the other programs need.
IDLE_REACH_KIB = 2.0
IDLE_AIM_KIB = 1.0
