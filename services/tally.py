"""What only the database and the message broker know, as metrics: read when somebody asks.

Cheap with a million rows; what cannot be read is left out.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from services import metrics
from services.background import stop
from services.errors import Unavailable
from services.log import logger
from services.postgres import LONG_SECONDS, Pool, Unreachable
from services.publisher import Publisher
from services.queues import lengths
from services.runs.store import COULD_BEGIN_SINCE, LIVE, PHASE
from services.schedules import overview
from services.webhooks import backlog

CACHE_SECONDS = 5.0
BROKER_CACHE_SECONDS = 15.0
READ_SECONDS = 4.0
BROKER_SECONDS = 2.0
COUNT_SECONDS = 2.0
"""How long ends are waited for; to count tens of millions for the first time takes longer."""
SETTLED_AFTER = timedelta(minutes=2)
"""No statement is under way for so long (POSTGRES_STATEMENT_TIMEOUT): of what ended before, all is committed."""
RECOUNT_SECONDS = 600.0
"""Until deletions of what ended long ago are noticed."""
NEVER = datetime.min.replace(tzinfo=UTC)
FINAL = ("completed", "failed", "stopped")
PHASES = ("waiting", "queued", "running", "stopping")

ENDED = """
SELECT status, completed_at <= now() - $2::interval AS settled, now() - $2::interval AS horizon, count(*) AS count
FROM agent_runs WHERE completed_at > $1 GROUP BY 1, 2
"""
"""Along the index agent_runs_ended alone."""

UNFINISHED = f"""
SELECT phase, count(*) AS count, coalesce(extract(epoch FROM now() - min(since)), 0)::float8 AS age FROM (
    SELECT {PHASE} AS phase, {COULD_BEGIN_SINCE} AS since
    FROM agent_runs AS run WHERE {LIVE}
) AS live GROUP BY phase
"""

OTHERS = """
SELECT (SELECT count(*) FROM agent_runs WHERE completed_at IS NOT NULL AND closed_at IS NULL) AS unclosed,
       (SELECT count(*) FROM removals) AS removals,
       (SELECT coalesce(extract(epoch FROM now() - min(heartbeat_at)), 0)::float8
        FROM agent_runs WHERE status = 'running') AS silence
"""


@dataclass
class Settled:
    """How many runs ended before `horizon`, by status, as they were counted since `counted_at`."""

    counted_at: float = float("-inf")
    horizon: datetime = NEVER
    by_status: Counter[str] = field(default_factory=Counter)


class Kept(ABC):
    """Read at most once in `seconds`, by one at a time, for all who ask."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.lock = asyncio.Lock()
        self.read_at = float("-inf")
        self.families: list[Metric] = []

    async def read(self) -> list[Metric]:
        """Never raises, and takes four seconds at most."""
        async with self.lock:
            if monotonic() - self.read_at > self.seconds:
                self.families = await self.read_in_time()
                self.read_at = monotonic()
            return self.families

    @abstractmethod
    async def read_in_time(self) -> list[Metric]: ...


class BrokerTally(Kept):
    """By the connection that messages are sent by."""

    def __init__(self, publisher: Publisher) -> None:
        super().__init__(BROKER_CACHE_SECONDS)
        self.publisher = publisher

    async def read_in_time(self) -> list[Metric]:
        says = "Whether the message broker told what it knows of its queues."
        try:
            found = await self.publisher.call(lengths, BROKER_SECONDS)
        except Unavailable as error:
            logger.warning("tally.broker_unreachable", error=repr(error.__cause__ or error))
            return [single("broker_up", says, 0)]
        messages = GaugeMetricFamily(
            "longrun_broker_messages",
            "Messages that wait at the broker: for a worker, for their time, or dead.",
            labels=["queue", "state"],
        )
        for (queue, state), count in found.items():
            messages.add_metric([queue, state], count)
        return [single("broker_up", says, 1), messages]


class Tally(Kept):
    """What the database knows."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(CACHE_SECONDS)
        self.pool = pool
        self.settled = Settled()
        self.counting: asyncio.Task[dict[str, int]] | None = None

    async def read_in_time(self) -> list[Metric]:
        try:
            async with asyncio.timeout(READ_SECONDS):
                return await self.look()
        except Unreachable as error:
            logger.warning("tally.postgres_unreachable", error=repr(error))
            metrics.scrape_errors.inc()
            return [single("database_up", "Whether Postgres told what it knows of runs.", 0)]

    async def look(self) -> list[Metric]:
        live = {row["phase"]: row for row in await self.pool.fetch(UNFINISHED)}
        [others] = await self.pool.fetch(OTHERS)
        schedules, webhooks = await overview.lateness(self.pool), await backlog.look(self.pool)
        ended = await self.ended_if_known()
        phases = {phase: live[phase]["count"] if phase in live else 0 for phase in PHASES}
        queued = live.get("queued")
        return [
            single("database_up", "Whether Postgres told what it knows of runs.", 1),
            *ended,
            by("runs_unfinished", "Runs in the database that have not ended.", "phase", phases),
            single("queued_runs", "Runs that a worker could begin now.", phases["queued"]),
            single(
                "queued_run_age_seconds",
                "Since when the longest queued could be begun.",
                queued["age"] if queued else 0,
            ),
            single("runs_unclosed", "Runs that have ended and whose logs are not complete.", others["unclosed"]),
            single("run_silence_seconds", "Since the oldest heartbeat of a running run.", others["silence"]),
            single("removals", "Deletions that are not finished outside of Postgres.", others["removals"]),
            single("schedules_due", "Schedules that are due and that nobody is firing.", schedules.due),
            single("schedule_due_age_seconds", "Since when the longest of them is due.", schedules.seconds),
            single(
                "webhooks_untold",
                f"Ends of runs that webhooks have not been told of; of each kind {backlog.MOST} are looked at.",
                webhooks.untold,
            ),
            single("webhook_untold_age_seconds", "Since when the oldest of them is one.", webhooks.age),
            single("webhook_due_age_seconds", "Since when the longest due waits for a worker.", webhooks.late),
        ]

    async def ended_if_known(self) -> list[Metric]:
        """Nothing while they are being counted for longer than that: it goes on, and a later look finds it done."""
        if self.counting is None or self.counting.done():
            self.counting = asyncio.create_task(self.count_ended(), name="count of ends")
            self.counting.add_done_callback(heed)
        done, _ = await asyncio.wait([self.counting], timeout=COUNT_SECONDS)
        if not done:
            logger.info("tally.counts")
            return []
        return [by("runs_ended", "Runs in the database that have ended.", "status", self.counting.result())]

    async def close(self) -> None:
        await stop([self.counting] if self.counting else [])

    async def count_ended(self) -> dict[str, int]:
        """By status, exactly; only what ended in the last minutes is counted again."""
        before = self.settled
        if monotonic() - before.counted_at > RECOUNT_SECONDS:
            before = Settled(monotonic())
        rows = await self.pool.fetch(ENDED, before.horizon, SETTLED_AFTER, timeout=LONG_SECONDS)
        settled, fresh = Counter(before.by_status), Counter[str]()
        for row in rows:
            (settled if row["settled"] else fresh)[row["status"]] += row["count"]
        horizon = max([before.horizon, *(row["horizon"] for row in rows)])
        self.settled = Settled(before.counted_at, horizon, settled)
        return {status: settled[status] + fresh[status] for status in FINAL}


def heed(counting: asyncio.Task[dict[str, int]]) -> None:
    """What it raised is told by whoever waits for it; nobody does after a while, and the next one raises the same."""
    if not counting.cancelled():
        counting.exception()


def single(name: str, says: str, value: float) -> Metric:
    return GaugeMetricFamily(f"longrun_{name}", says, value=value)


def by(name: str, says: str, label: str, values: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(f"longrun_{name}", says, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family
