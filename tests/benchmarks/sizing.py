"""How much of everything a load takes: measured figures, the arithmetic on them, and the table of docs/scaling.md.

python -m tests.benchmarks.sizing      # writes the table
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from tests.faults.report import write_between

DOCUMENT = Path(__file__).parents[2] / "docs" / "scaling.md"
FIGURES_HERE = ("<!-- figures -->", "<!-- end of figures -->")
NEEDS_HERE = ("<!-- needs -->", "<!-- end of needs -->")


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value and where it comes from."""

    value: float
    unit: str
    what: str
    source: str


WORKER_MB = Figure(90.9, "MB", "memory of an idle worker process", "`./dev bench chunks`")
RUN_KIB = Figure(104, "KiB", "memory of a live run in its worker", "`./dev bench chunks`")
CHUNK_US = Figure(119, "µs", "worker CPU for one streamed chunk, the model's stream included", "`./dev bench chunks`")
COMMAND_MS = Figure(8, "ms", "one command in a sandbox, without what it does", "docs/adr/0006-sandbox.md")
SHARED_US = Figure(13.1, "µs", "API CPU for one delivered event, many readers of one run", "`./dev bench stream`")
OWN_US = Figure(28.3, "µs", "API CPU for one delivered event, one reader of each run", "`./dev bench stream`")
STREAM_KB = Figure(22.0, "KB", "memory of an open stream, each of a run of its own", "`./dev bench idle`")
API_MB = Figure(92.9, "MB", "memory of an API process without streams", "`./dev bench simulate`")
OPEN_MS = Figure(1.85, "ms", "API CPU for opening one stream", "`./dev bench simulate`")
APPENDS = Figure(82_800, "events/s", "appends that one Redis takes in batches of ten", "`./dev bench write`")
REDIS_OPS = Figure(50_000, "/s", "small commands and messages that one Redis core is planned for", "assumed")
START_MS = Figure(
    11.1,
    "ms",
    "API and worker CPU for one run beside its chunks",
    "`./dev bench start`: 90 short runs/s on one core",
)

FIGURES = (
    WORKER_MB,
    RUN_KIB,
    CHUNK_US,
    COMMAND_MS,
    SHARED_US,
    OWN_US,
    STREAM_KB,
    API_MB,
    OPEN_MS,
    APPENDS,
    REDIS_OPS,
    START_MS,
)

BUSY = 0.6
"""The share of a core that is planned for: what is beyond is for the loss of a host, deploys and reconnects."""
SPARE = 1.25
"""Slots by runs: a host in five may be away."""
SLOTS = 63
"""Of a worker process with 64 threads: one stays free."""
MAX_STREAMS = 20_000
LIST_BYTES = 30
"""What Redis adds to an event in a list."""
POOLS = 23
"""Postgres connections of a process, at most: POSTGRES_POOL_MAX and POSTGRES_UPKEEP_CONNECTIONS."""
REDIS_CONNECTIONS = 7
"""Of a process to each Redis server: REDIS_POOL_SIZE, and one for all subscriptions."""
ARCHIVE_SECONDS = 1.0
HEARTBEAT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Load:
    """What is there at a time; `rate` events per second of each run on average, thinking and tools included.

    `spread_over` is how many API processes the readers of one run are on: 1 when the balancer sends all that ask for
    a run to the same process, else as many as there are, readers permitting.
    """

    runs: int = 1000
    readers: int = 100_000
    rate: float = 10.0
    event_bytes: int = 300
    run_seconds: float = 300.0
    log_hours: float = 24.0
    by_run: bool = False

    @property
    def written(self) -> float:
        return self.runs * self.rate

    @property
    def delivered(self) -> float:
        return self.readers * self.rate

    @property
    def starts(self) -> float:
        """Runs per second."""
        return self.runs / self.run_seconds

    @property
    def worker_processes(self) -> int:
        by_slots = ceil(self.runs * SPARE / SLOTS)
        return max(by_slots, ceil(self.worker_cores))

    @property
    def worker_cores(self) -> float:
        return (self.written * CHUNK_US.value / 1e6 + self.starts * START_MS.value / 2e3) / BUSY

    @property
    def worker_gb(self) -> float:
        return (self.worker_processes * WORKER_MB.value * 1e6 + self.runs * RUN_KIB.value * 1024) / 1e9

    @property
    def delivery_us(self) -> float:
        """Between the two measured cases, by how many readers of a run share a process."""
        together = max(self.readers / self.runs / self.spread_over, 1.0)
        return SHARED_US.value + (OWN_US.value - SHARED_US.value) / together

    @property
    def spread_over(self) -> float:
        return 1.0 if self.by_run else min(max(self.readers / self.runs, 1.0), 32.0)

    @property
    def api_cores(self) -> float:
        return (self.delivered * self.delivery_us / 1e6 + self.starts * START_MS.value / 2e3) / BUSY

    @property
    def api_processes(self) -> int:
        return max(ceil(self.api_cores), ceil(self.readers * SPARE / MAX_STREAMS))

    @property
    def api_gb(self) -> float:
        return (self.api_processes * API_MB.value * 1e6 + self.readers * STREAM_KB.value * 1e3) / 1e9

    @property
    def redis_commands(self) -> float:
        """Per second: one append per event at worst; a message and a look of each process that has readers of it."""
        return self.written * (1 + 2 * self.spread_over)

    @property
    def redis_servers(self) -> int:
        return ceil(max(self.redis_commands / REDIS_OPS.value, self.written / APPENDS.value))

    @property
    def redis_gb(self) -> float:
        """Logs of live runs, and of those that ended within RUN_LOG_TTL."""
        kept = self.runs + self.starts * self.log_hours * 3600
        return kept * self.rate * self.run_seconds * (self.event_bytes + LIST_BYTES) / 1e9

    @property
    def archive_mb(self) -> float:
        """Per second, into Postgres, before its own write-ahead log."""
        return self.written * self.event_bytes / 1e6

    @property
    def archive_gb_a_day(self) -> float:
        return self.archive_mb * 86.4

    @property
    def upkeep_statements(self) -> float:
        """Per second: archive and heartbeat of each worker process and Redis server."""
        each = 1 / ARCHIVE_SECONDS + 1 / HEARTBEAT_SECONDS
        return self.worker_processes * self.redis_servers * each

    @property
    def postgres_connections(self) -> int:
        return (self.worker_processes + self.api_processes) * POOLS

    @property
    def redis_connections(self) -> int:
        """At each Redis server."""
        return (self.worker_processes + self.api_processes) * REDIS_CONNECTIONS


Pick = Callable[[Load], float]
NEEDS: Sequence[tuple[str, str, Pick]] = (
    ("starts", "/s", lambda load: load.starts),
    ("events written", "/s", lambda load: load.written),
    ("events delivered", "/s", lambda load: load.delivered),
    ("worker processes of 64 threads", "", lambda load: load.worker_processes),
    ("worker cores", "", lambda load: load.worker_cores),
    ("worker memory", "GB", lambda load: load.worker_gb),
    ("API processes", "", lambda load: load.api_processes),
    ("API cores", "", lambda load: load.api_cores),
    ("API memory", "GB", lambda load: load.api_gb),
    ("Redis commands and messages", "/s", lambda load: load.redis_commands),
    ("Redis servers", "", lambda load: load.redis_servers),
    ("Redis memory in all, `RUN_LOG_TTL` of a day", "GB", lambda load: load.redis_gb),
    ("the same, `RUN_LOG_TTL` of an hour", "GB", lambda load: replace(load, log_hours=1.0).redis_gb),
    ("Redis connections at each server", "", lambda load: load.redis_connections),
    ("archive into Postgres", "MB/s", lambda load: load.archive_mb),
    ("archive into Postgres", "GB/day", lambda load: load.archive_gb_a_day),
    ("upkeep statements", "/s", lambda load: load.upkeep_statements),
    ("Postgres connections, at most", "", lambda load: load.postgres_connections),
    ("messages of RabbitMQ", "/s", lambda load: load.starts),
)
SMALL, LARGE, BY_RUN = Load(100, 1000), Load(), Load(by_run=True)


def figures() -> str:
    head = "| figure | value | from |\n| --- | ---: | --- |\n"
    return head + "".join(f"| {one.what} | {number(one.value)} {one.unit} | {one.source} |\n" for one in FIGURES)


def needs() -> str:
    head = "| | 100 runs, 1,000 readers | 1,000 runs, 100,000 readers | the same, balanced by run |\n"
    lines = [
        f"| {name} | {' | '.join(shown(pick(load), unit) for load in (SMALL, LARGE, BY_RUN))} |\n"
        for name, unit, pick in NEEDS
    ]
    return head + "| --- | ---: | ---: | ---: |\n" + "".join(lines)


def shown(value: float, unit: str) -> str:
    return f"{number(value)} {unit}".strip()


def number(value: float) -> str:
    """Three digits that count; whole numbers whole."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def write(document: Path = DOCUMENT) -> None:
    write_between(document, *FIGURES_HERE, figures())
    write_between(document, *NEEDS_HERE, needs())


if __name__ == "__main__":
    write()
