"""Rows, drivers and readers that tests of the rooms start from."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast
from uuid import UUID, uuid4
from weakref import WeakKeyDictionary

import orjson

from services.postgres import Pool
from services.runs import archive, events, keys, lifecycle, starting, store
from services.runs.event_log import EventLog
from services.runs.events import Event
from services.runs.fence import Fence
from services.runs.lease import Held, Leases
from services.runs.lifecycle import HandOver
from services.runs.starting import NewRun
from services.runs.store import Run
from services.runs.stores import Stores
from services.settings import Settings
from tests import waiting
from tests.waiting import PATIENT

LONG_AGO = timedelta(hours=1)
beating: WeakKeyDictionary[Leases, asyncio.Lock] = WeakKeyDictionary()
"""Held while a beat is under way; one that was sent before a death would make the run look alive once more."""


async def eventually(look: Callable[[], Any], *, within: float = PATIENT, every: float = 0.02, says: str = "") -> Any:
    """`tests.waiting.eventually`, for coroutine functions as well as for plain ones."""
    return await waiting.eventually(look, within=within, every=every, says=says)


@dataclass(frozen=True)
class Place:
    """A thread, its project and its account."""

    account_id: UUID
    project_id: UUID
    thread_id: UUID


async def make_place(pool: Pool, account_id: UUID | None = None) -> Place:
    """With an account of its own, unless one is given."""
    place = Place(account_id or uuid4(), uuid4(), uuid4())
    if account_id is None:
        await pool.execute(
            "INSERT INTO accounts (account_id, name) VALUES ($1, $2)", place.account_id, str(place.account_id)
        )
    await pool.execute(
        "INSERT INTO projects (project_id, account_id, name) VALUES ($1, $2, 'p')", place.project_id, place.account_id
    )
    await pool.execute(
        "INSERT INTO threads (thread_id, account_id, project_id) VALUES ($1, $2, $3)",
        place.thread_id,
        place.account_id,
        place.project_id,
    )
    await pool.execute(
        "INSERT INTO messages (thread_id, type, content) VALUES ($1, 'user', $2)",
        place.thread_id,
        {"role": "user", "content": "What is new?"},
    )
    return place


async def make_run(
    pool: Pool, place: Place | None = None, *, model: str = "demo/lorem?chunks=5&delay_ms=1", **columns: Any
) -> Run:
    """A queued run; `columns` are written over the row afterwards."""
    place = place or await make_place(pool)
    new = NewRun(place.account_id, place.project_id, place.thread_id, model)
    async with pool.acquire() as conn:
        run = await starting.insert(conn, new)
    return await set_columns(pool, run.id, **columns)


async def set_columns(pool: Pool, run_id: UUID, **columns: Any) -> Run:
    for name, value in columns.items():
        await pool.execute(f"UPDATE agent_runs SET {name} = $2 WHERE id = $1", run_id, value)
    return await row_of(pool, run_id)


async def age(pool: Pool, run_id: UUID, *names: str) -> Run:
    """Move timestamps of a row an hour into the past."""
    for name in names:
        await pool.execute(f"UPDATE agent_runs SET {name} = now() - $2::interval WHERE id = $1", run_id, LONG_AGO)
    return await row_of(pool, run_id)


async def row_of(pool: Pool, run_id: UUID) -> Run:
    run = await store.get(pool, run_id)
    assert run
    return run


async def waiting_for_locks(pool: Pool) -> int:
    """How many statements in this database wait for another's transaction to end."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    count: int = await pool.fetchval(waiting)
    return count


async def place_of(pool: Pool, run: Run) -> Place:
    return Place(run.account_id, run.project_id, run.thread_id)


async def claim(stores: Stores, run: Run) -> Run:
    """As the runner does."""
    dead_after, epoch = stores.settings.runs.dead_after, stores.writer.archiver.epoch
    claimed = await lifecycle.claim(stores.pool, run, stores.instance_id, dead_after=dead_after, epoch=epoch)
    assert claimed
    return claimed


@dataclass
class Driver:
    """What a worker holds while it drives a run."""

    stores: Stores
    run: Run
    held: Held
    log: EventLog

    async def say(self, *texts: str) -> None:
        """Stream texts as an assistant's chunks, and wait until Redis has them."""
        await self.log.append(*(chunk(self.run, text) for text in texts))
        await self.log.flush()

    async def archived(self) -> None:
        await self.stores.of(self.run.id).writer.archiver.archive_run(self.log)


@asynccontextmanager
async def driving(stores: Stores, run: Run | None = None) -> AsyncIterator[Driver]:
    """A run that these stores own, its log open, as the runner does it."""
    run = run or await make_run(stores.pool)
    shard = stores.of(run.id)
    note_beats(shard.leases)
    async with shard.leases.hold(run.id, run.attempt + 1) as held:
        assert held, "another holds the lock"
        claimed = await claim(stores, run)
        log = await shard.writer.open_log(claimed, held.fence)
        try:
            yield Driver(stores, claimed, held, log)
        finally:
            if log.failure or not log.closing:
                shard.writer.forget(log)


def die(driver: Driver) -> None:
    """The worker is killed: nobody beats for the run and its log is written no more."""
    shard = driver.stores.of(driver.run.id)
    shard.leases.held.pop(driver.held.fence, None)
    shard.writer.forget(driver.log)


async def beat(stores: Stores) -> None:
    """What the two beats of a process do, now."""
    leases = stores.leases
    await leases.renew_locks(leases.in_order())
    await leases.beat_rows(leases.in_order())
    await asyncio.gather(*leases.retaking.tasks)


def note_beats(keeper: Leases) -> None:
    """Have `bury` know of beats that are under way."""
    if keeper in beating:
        return
    under_way, beat_rows = asyncio.Lock(), keeper.beat_rows

    async def beat_alone(leases: list[Held]) -> None:
        async with under_way:
            await beat_rows(leases)

    beating[keeper] = under_way
    keeper.beat_rows = beat_alone  # type: ignore[method-assign]


async def bury(stores: Stores, run_id: UUID) -> Run:
    """Time passes after a worker's death: its lock is gone, its heartbeat old, and its last beat has arrived."""
    for under_way in list(beating.values()):
        async with under_way:
            pass
    await stores.of(run_id).redis.delete(keys.lock(run_id))
    return await age(stores.pool, run_id, "heartbeat_at")


async def end(driver: Driver, status: str = "completed") -> Run:
    row = await lifecycle.end(driver.stores.pool, driver.held.fence, status, error=None, usage={})
    assert row
    return row


async def hand_over(pool: Pool, fence: Fence, *, length: int | None = 0) -> Run | None:
    [answer] = await lifecycle.hand_over_all(pool, [HandOver(fence, length, settled=True)])
    return answer


async def take_up(pool: Pool, run: Run) -> Run | None:
    taken = await lifecycle.take_up_closings(pool, [run])
    return taken[0] if taken else None


def chunk(run: Run, text: str) -> Event:
    metadata = {"stream_status": "chunk", "thread_run_id": str(run.id)}
    return Event("assistant", {"role": "assistant", "content": text}, metadata, is_llm_message=True)


async def listed(stores: Stores, run_id: UUID) -> list[bytes]:
    """The log as Redis has it."""
    return cast(list[bytes], await stores.of(run_id).redis.lrange(keys.responses(run_id), 0, -1))


async def archived(pool: Pool, run_id: UUID) -> list[bytes]:
    """The log as Postgres has it."""

    found: list[bytes] = []
    while part := await archive.read(pool, run_id, len(found)):
        found += part
    return found


async def closed(pool: Pool, run_id: UUID, within: float = PATIENT) -> Run:
    """The row once its log is closed."""

    async def look() -> Run | None:
        run = await row_of(pool, run_id)
        return run if run.closed_at else None

    run = await eventually(look, within=within, says="the log was not closed")
    assert isinstance(run, Run)
    return run


async def read_all(stores: Stores, run_id: UUID, *, after: int = -1) -> list[tuple[int, bytes]]:
    """Follow a run to its last event."""
    seen: list[tuple[int, bytes]] = []
    async with stores.of(run_id).tails.follow(run_id, after=after) as reader:
        while not reader.over:
            batch = await reader.next()
            if batch:
                seen += enumerate(batch.events, batch.first_id)
    return seen


def kinds(log: list[bytes]) -> list[str]:
    """Each event in a word: `chunk`, `complete`, a status type, or `last:<status>`."""
    return [kind(event) for event in log]


def kind(event: bytes) -> str:
    final = events.final_status(event)
    if final:
        return f"last:{final}"
    said = orjson.loads(event)
    if "content" not in said:
        return "foreign"
    status_type = orjson.loads(said["content"]).get("status_type")
    return str(status_type or orjson.loads(said["metadata"]).get("stream_status"))


def text_of(log: list[bytes]) -> str:
    chunks = [orjson.loads(event) for event in log if kind(event) == "chunk"]
    return "".join(orjson.loads(said["content"])["content"] for said in chunks)


async def assistant_texts(pool: Pool, run: Run) -> list[str]:
    rows = await pool.fetch(
        "SELECT content FROM messages WHERE thread_id = $1 AND type = 'assistant' ORDER BY position", run.thread_id
    )
    return [row["content"]["content"] for row in rows]


def with_runs(settings: Settings, **changes: Any) -> Settings:
    """Settings whose run section differs."""
    return settings.model_copy(update={"runs": settings.runs.model_copy(update=changes)})


def fence_of(run: Run, instance_id: str = "somebody") -> Fence:
    return Fence(run.id, run.attempt, instance_id)


@dataclass
class Statements:
    """How many UPDATE statements have named one column of agent_runs."""

    pool: Pool

    @classmethod
    async def naming(cls, pool: Pool, column: str) -> "Statements":
        await pool.execute(
            f"""
            CREATE SEQUENCE statements;
            CREATE FUNCTION count_statement() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM nextval('statements'); RETURN NULL; END $$;
            CREATE TRIGGER count_statement AFTER UPDATE OF {column} ON agent_runs
                FOR EACH STATEMENT EXECUTE FUNCTION count_statement();
            """
        )
        return cls(pool)

    async def count(self) -> int:
        return int(await self.pool.fetchval("SELECT last_value - (NOT is_called)::int FROM statements"))
