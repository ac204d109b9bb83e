"""What is known of one run, wherever it stands, and what to look at."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

from services import workers
from services.admin.output import ago, lasting, without_secrets
from services.errors import NotFound
from services.redis import Unreachable
from services.runs import archive, events, keys, overview, store
from services.runs.store import Run
from services.runs.stores import Stores
from services.workers import Worker

ABOUT_CHARS = 160
EVENTS_BACK = 2000
IN_REDIS = "Redis does not answer"


@dataclass(frozen=True, slots=True)
class Said:
    """One event, in a line."""

    id: int
    type: str
    about: str


@dataclass(frozen=True, slots=True)
class InRedis:
    """`lock`: its owner and how long it holds; `listeners`: who hears a stop; `length`: events in the list."""

    server: str
    answers: bool = True
    lock: str | None = None
    lock_left: timedelta | None = None
    active: bool = False
    listeners: int = 0
    length: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    run: Run
    redis: InRedis
    worker: Worker | None
    """The process that drives it, when it has announced itself."""
    waits_for: Sequence[UUID]
    events: Sequence[Said]
    dead_after: timedelta
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def document(self) -> dict[str, Any]:
        return {
            "run": without_secrets(asdict(self.run)),
            "redis": asdict(self.redis),
            "worker": asdict(self.worker) if self.worker else None,
            "waits_for": self.waits_for,
            "events": [asdict(event) for event in self.events],
            "advice": self.advice,
        }

    @property
    def heartbeat_is_old(self) -> bool:
        beat = self.run.heartbeat_at
        return beat is not None and self.now - beat > self.dead_after

    @property
    def advice(self) -> list[str]:
        return list(advice(self))

    @property
    def facts(self) -> list[tuple[str, str]]:
        """The row and what stands beside it, for a table."""
        run, now = self.run, self.now
        return [
            ("phase", run.phase + (f" (row: {run.status})" if run.phase != run.status else "")),
            ("kind, model", f"{run.kind}, {run.model_name}"),
            ("account, project, thread", f"{run.account_id}, {run.project_id}, {run.thread_id}"),
            ("created", ago(run.created_at, now)),
            ("started", ago(run.started_at, now) if run.started_at else "no"),
            ("ended", ago(run.completed_at, now) if run.completed_at else "no"),
            ("attempts", f"{run.attempt}, of which {run.crashes} were ended by the death of their worker"),
            ("driver", driver(self)),
            ("lock", lock(self.redis)),
            ("messages", messages(run, now)),
            ("events", f"{run.archived_events} in Postgres, {self.redis.length} in Redis ({self.redis.server})"),
            ("usage", str(run.usage.get("total_tokens", 0)) + " tokens"),
            ("error", str(without_secrets(run.error or "none"))),
        ]


def driver(report: Report) -> str:
    run, worker = report.run, report.worker
    if not run.instance_id:
        return "none"
    where = f" on {worker.host}, process {worker.pid} of group {worker.group_pid}" if worker else ""
    if run.status != "running":
        return f"last: {run.instance_id}{where}"
    return f"{run.instance_id}{where}; heartbeat {ago(run.heartbeat_at, report.now)}"


def lock(redis: InRedis) -> str:
    if not redis.answers:
        return IN_REDIS
    if not redis.lock:
        return "free"
    left = f", for {lasting(redis.lock_left)} more" if redis.lock_left else ""
    return f"{redis.lock}{left}; {redis.listeners} hear a stop"


def messages(run: Run, now: datetime) -> str:
    begun = "begun before one was confirmed" if run.attempt else "none confirmed"
    sent = f"confirmed {ago(run.message_sent_at, now)}" if run.message_sent_at else begun
    return f"{sent}; a sweeper tried {ago(run.message_tried_at, now)}" if run.message_tried_at else sent


async def look(stores: Stores, run_id: UUID, count: int) -> Report:
    """Raises: NotFound; Postgres errors. Redis may be away."""
    run = await store.get(stores.pool, run_id)
    if run is None:
        raise NotFound(f"There is no run {run_id}.")
    redis = await in_redis(stores, run)
    worker = None
    with suppress(*Unreachable):
        worker = next(
            (one for one in await workers.known(stores.shards.home.redis) if one.instance_id == run.instance_id), None
        )
    waits_for = await overview.before_in_project(stores.pool, run.id) if run.phase == "waiting" else []
    said = await last_events(stores, run, redis, count)
    return Report(run, redis, worker, waits_for, said, stores.settings.runs.dead_after)


async def in_redis(stores: Stores, run: Run) -> InRedis:
    shard, name = stores.of(run.id), keys.lock(run.id)
    try:
        owner, left, active, (_, listeners), length = await shard.redis.ask(
            [
                ("GET", name),
                ("PTTL", name),
                ("EXISTS", keys.active(run.instance_id or "", run.id)),
                ("PUBSUB", "NUMSUB", keys.control(run.id)),
                ("LLEN", keys.responses(run.id)),
            ]
        )
    except Unreachable:
        return InRedis(shard.name, answers=False)
    held = owner.decode(errors="replace") if owner else None
    return InRedis(
        shard.name, True, held, timedelta(milliseconds=left) if left > 0 else None, bool(active), listeners, length
    )


async def last_events(stores: Stores, run: Run, redis: InRedis, count: int) -> list[Said]:
    """The last ones that say something: streamed text is told once."""
    start = max(max(redis.length, run.archived_events) - EVENTS_BACK, 0)
    raw: list[bytes] = []
    if redis.length > start:
        with suppress(*Unreachable):
            raw = cast(list[bytes], await stores.of(run.id).redis.lrange(keys.responses(run.id), start, -1))
    while not raw and start < run.archived_events:
        raw = await archive.read(stores.pool, run.id, start, blocks=100)
        start = start if raw else run.archived_events
    told = [said for number, event in enumerate(raw, start) if (said := in_a_line(number, event))]
    newest = start + len(raw) - 1
    if raw and (not told or told[-1].id < newest):
        told.append(Said(newest, "text", "is being streamed"))
    return told[-count:]


def in_a_line(number: int, raw: bytes) -> Said | None:
    said = events.parse(raw)
    if said is None:
        return Said(number, "unreadable", raw[:ABOUT_CHARS].decode(errors="replace"))
    content, metadata = events.loads(said.get("content")), events.loads(said.get("metadata"))
    if metadata.get("stream_status") == "chunk":
        return None
    kind = str(content.get("status_type") or said.get("status") or said.get("type"))
    telling = ("function_name", "message", "finish_reason", "error", "content", "attempt")
    about = " ".join(
        str(value) for name in telling if (value := content.get(name, said.get(name) if name == "message" else None))
    )
    return Said(number, kind, " ".join(str(without_secrets(about)).split())[:ABOUT_CHARS])


def advice(report: Report) -> Iterator[str]:
    """What to look at, or to do. One sentence each."""
    if report.run.final:
        yield from of_ended(report)
    elif report.run.status == "running":
        yield from of_running(report)
    else:
        yield from of_queued(report)
    if not report.redis.answers:
        yield f"Redis server {report.redis.server} does not answer: its runs wait and keep their claim."


def of_ended(report: Report) -> Iterator[str]:
    run = report.run
    if run.closed_at is None and run.completed_at and report.now - run.completed_at > report.dead_after:
        yield "Its last event is not published or archived yet: sweepers do it once Redis and Postgres answer."
    if run.status == "stopped" and run.error:
        yield f"It was stopped because: {run.error}"
    if run.status != "failed":
        return
    log = f"the log of worker {run.instance_id or '?'}: lines with this run's id"
    error = run.error or ""
    for part, sentence in CAUSES:
        if part in error:
            yield sentence.format(log=log, run=run.id)
            break
    else:
        yield f"The error is what its user sees; what led to it stands in the last events and in {log}."
    yield f"Once the cause is gone: POST /api/agent-run/{run.id}/retry makes a new run over the same thread."


CAUSES = (
    ("internal error", "A bug or a surprise: the traceback is `run.crashed` in {log}."),
    (
        "its worker died",
        "Each of its workers died while it drove: look for `worker.loop_blocked` in their logs, and for the kernel's"
        " out-of-memory killer on their hosts. RUN_MAX_CRASHES says how often is too often.",
    ),
    (
        "expired in the queue",
        "No worker began it in time: `queues` and `workers list` say whether slots were free and the broker answered.",
    ),
    ("it took longer than", "RUN_TIMEOUT is over; the last events say what it spent the time with ({log})."),
    (" needs a key", "The workers have no key of its provider: set it where they run, and start them anew."),
    ("credits", "The account has too few: `credits show`, `credits grant`."),
    ("cannot be reached", "Is the address right, and does a firewall or proxy let the workers out? See {log}."),
    ("model", "The model or its provider refused: `model.` lines in {log}, the provider's key and its status page."),
    ("provider", "The model's provider refused: `model.` lines in {log}, the provider's key and its status page."),
    ("sandbox", "Its sandbox was not to be had: `sandbox.` lines in {log}."),
    ("log", "What it said was too much or was refused: RUN_MAX_EVENTS, RUN_MAX_LOG_BYTES; `log.` lines in {log}."),
)
"""Parts of the sentences that users see, and where their causes are seen; the first that fits counts."""


def of_running(report: Report) -> Iterator[str]:
    run, redis = report.run, report.redis
    if run.stop_requested_at:
        yield "A stop is committed: it can only end stopped, and sweepers end it when its driver does not."
    if not report.heartbeat_is_old:
        yield DRIVEN.format(run=run.id)
    if redis.answers:
        yield from (DEAD if report.heartbeat_is_old else FORGOTTEN) if not redis.lock else ()
        yield from HUNG if report.heartbeat_is_old and redis.lock else ()


DRIVEN = (
    "It is driven. If it makes no headway all the same: `runs requeue {run}` gives it to another worker,"
    " `runs stop {run}` ends it."
)
DEAD = (
    "Its driver is dead and the lock is free: a sweeper wakes another worker within seconds, if one lives"
    " (`workers list`).",
)
HUNG = (
    "Its heartbeat is old and the lock is held: its worker hangs or cannot reach Postgres. Another takes over when the"
    " lock has expired.",
)
FORGOTTEN = ("Its driver lives and the lock is gone: Redis lost it, and the driver takes it again.",)
BEGUN_BY_NONE = (
    "Its message is at the broker and nobody has begun it: is a slot free (`workers list`, `queues`)?"
    " `runs requeue {run}` sends another."
)
UNCONFIRMED = (
    "The broker has confirmed no message for it: `queues` says whether it answers. Sweepers send again every few"
    " seconds, if a worker lives (`workers list`)."
)


def of_queued(report: Report) -> Iterator[str]:
    run = report.run
    if run.not_before and run.not_before > report.now:
        yield f"It is delayed until {run.not_before:%Y-%m-%d %H:%M:%S} UTC."
    elif report.waits_for:
        yield f"It waits for earlier runs of its project: {', '.join(map(str, report.waits_for))}."
    elif run.phase == "waiting":
        yield "It is due and has no slot: its account has as many runs as it may (`limits show`)."
    else:
        yield BEGUN_BY_NONE.format(run=run.id) if run.message_sent_at else UNCONFIRMED
