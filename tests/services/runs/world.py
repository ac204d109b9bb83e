"""A few worker processes over real stores, in one loop that stands still between the steps of a test."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar, cast
from unittest.mock import patch
from uuid import UUID, uuid4

import dramatiq

from agent import history, response_processor, thread_manager, turns
from agent.context import Draft
from agent.response_processor import Answer
from services.http import open_client
from services.postgres import Pool, open_pool, open_upkeep_pool
from services.postgres import Unreachable as PostgresUnreachable
from services.publisher import Publisher
from services.redis import Unreachable as RedisUnreachable
from services.redis import open_redis
from services.runs import archive, keys, lifecycle, shards, store, stores
from services.runs.event_log import EventLog, LogRefused
from services.runs.fence import FenceLost
from services.runs.lease import Held
from services.runs.lifecycle import Claimable, Unclaimed
from services.runs.store import Run
from services.runs.stores import Stores, open_stores
from services.settings import RunSettings, Settings, StreamSettings
from tests.services.runs import seeds
from tests.services.runs.fuse import Fuse, Killed, Server, fused_channels, fused_pool, fused_redis
from tests.services.runs.ledger import Ledger, Sight, token
from tests.waiting import PATIENT
from worker import endings, runner, sweeper
from worker.attempt import Attempt
from worker.endings import Ended, Ending, HandedOver, Lost
from worker.process import Process

T = TypeVar("T")

NODES = 2
STEP_SECONDS = 20.0
IDLE_TURNS = 20
Away = (*RedisUnreachable, *PostgresUnreachable)

LONG = timedelta(hours=1)
SHORT = timedelta(minutes=10)
"""Nothing comes due by itself: time passes an hour at a time, in `World.pass_an_hour`."""

STILL = RunSettings(
    lock_ttl=LONG,
    heartbeat_interval=SHORT,
    dead_after=SHORT,
    sweep_interval=SHORT,
    resend_after=SHORT,
    close_after=SHORT,
    stop_grace=timedelta(0),
    append_interval=timedelta(0),
    archive_interval=LONG,
)

MOMENTS = (
    "heartbeat_at", "stop_requested_at", "not_before", "expires_at", "message_sent_at", "message_tried_at",
    "created_at", "updated_at", "started_at",
)  # fmt: skip


class Interrupted(Exception):
    """A store was away, or the process died: what was being done may be done, half done or not done."""


class Queue:
    """The message broker: it has what was sent to it, and confirms at once."""

    def __init__(self) -> None:
        self.run_ids: set[UUID] = set()

    def send(self, message: dramatiq.Message[Any], confirmed: Callable[[bool], None]) -> bool:
        self.run_ids.add(UUID(message.kwargs["agent_run_id"]))
        confirmed(True)
        return True

    async def call(self, _question: object, _timeout_seconds: float) -> int:
        """The queue's length, which is all that is asked."""
        return len(self.run_ids)

    async def close(self) -> None:
        self.run_ids.clear()


class Driver:
    """One attempt at a run by one process, as `worker.runner` holds it; the work is whatever a test makes it say."""

    def __init__(self, node: "Node", stack: AsyncExitStack, run: Run, held: Held, log: EventLog) -> None:
        self.node, self.stack, self.run, self.held, self.log = node, stack, run, held, log
        self.attempt = Attempt(node.process, run, held)
        self.context = self.attempt.open(log)
        self.said = 0

    def __repr__(self) -> str:
        return f"<attempt {self.run.attempt} at {self.node.world.name_of(self.run.id)} by {self.node}>"

    async def say(self, count: int) -> None:
        """Stream texts; they are pending until the writer's next tick."""
        for _ in range(count):
            self.said += 1
            text = token(self.run.attempt, self.said)
            self.context.draft.text += text
            await self.log.append(seeds.chunk(self.run, text))

    async def store(self) -> None:
        """Store what was streamed as a message, and tell of it. Raises: FenceLost."""
        answer = Answer(text=self.context.draft.text, finish_reason="stop")
        message = response_processor.message(answer, self.run.id, self.run.model_name)
        stored = await thread_manager.store(self.context, message)
        await self.log.append(response_processor.completed(stored))
        self.context.draft = Draft()

    async def resume(self) -> None:
        """The opening, and once more the message that an earlier attempt may have stored without telling."""
        await self.log.append(runner.opening(self.run, self.log))
        known = await history.load(self.context)
        answered = turns.newest_answer(known.of_run(self.run.id))
        if answered:
            await self.log.append(response_processor.completed(answered))

    async def conclude(self, ending: Ending) -> Ending:
        """What `worker.runner` does once the work is over."""
        try:
            if ending == Ended("completed") and self.context.draft.text:
                await self.store()
            ending = await endings.conclude(self.attempt, self.context, self.log, ending)
        except FenceLost:
            ending = Lost()
        except (*Away, LogRefused):
            ending = Lost()
        finally:
            await self.leave()
        if isinstance(ending, HandedOver):
            await runner.pass_on(self.node.process, self.run, self.held, ending)
        return ending

    async def leave(self) -> None:
        """Out of the lease; the log stays with the writer only if its last words are said."""
        if self.node.fuse.dead:
            return
        if self.log.failure or not self.log.closing:
            self.node.stores.writer.forget(self.log)
        self.node.drivers.remove(self)
        self.node.ghosts.append(self)
        await self.stack.aclose()


class Node:
    """A worker process, its background loops replaced by the steps of the test."""

    def __init__(self, world: "World", number: int) -> None:
        self.world, self.number = world, number
        self.fuse = Fuse()
        self.drivers: list[Driver] = []
        self.ghosts: list[Driver] = []
        """Attempts that are over, and whose work did not let go."""
        self.turning = False

    def __repr__(self) -> str:
        return f"worker {self.number}"

    async def open(self, stack: AsyncExitStack) -> None:
        settings, server = self.world.settings, self.world.server

        async def pool(postgres: Any, **options: Any) -> Pool:
            return fused_pool(await open_pool(postgres, **options), self.fuse)

        async def upkeep(postgres: Any) -> Pool:
            return fused_pool(await open_upkeep_pool(postgres), self.fuse)

        with (
            patch.object(stores, "open_pool", pool),
            patch.object(stores, "open_upkeep_pool", upkeep),
            patch.object(shards, "open_redis", lambda redis: fused_redis(redis, self.fuse, server)),
            patch.object(shards, "Channels", lambda redis: fused_channels(redis, self.fuse)),
        ):
            opened = await stack.enter_async_context(open_stores(settings))
        http = await stack.enter_async_context(open_client(settings))
        loops = [*opened.background.tasks, *opened.writer.tasks, cast("asyncio.Task[None]", opened.dispatch.task)]
        for task in loops:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await opened.dispatch.publisher.close()
        opened.dispatch.publisher = cast(Publisher, self.world.queue)
        self.process = Process(settings, opened, http)

    @property
    def stores(self) -> Stores:
        return self.process.stores

    @property
    def tasks(self) -> list["asyncio.Task[Any]"]:
        """What goes on in the process beside its drivers."""
        stores = self.stores
        joined = [stores.hand_overs.task] if stores.hand_overs.task else []
        return [*stores.background.tasks, *stores.writer.mender.repairs.tasks, *stores.leases.retaking.tasks, *joined]

    def holds(self, run_id: UUID, attempt: int) -> bool:
        """Whether this process can say what the log of that attempt was, should Redis lose it."""
        logs = [*(driver.log for driver in (*self.drivers, *self.ghosts)), *self.stores.writer.logs]
        return any(log.fence.run_id == run_id and log.fence.attempt == attempt and not log.failure for log in logs)

    async def tick(self) -> bool:
        """One turn of the loops of the log writer, if they have something to do."""
        writer = self.stores.writer
        if self.turning or self.fuse.dead or not (writer.archiver.starving.is_set() or writer.pending.is_set()):
            return self.turning
        self.turning = True
        try:
            if writer.archiver.starving.is_set():
                writer.archiver.starving.clear()
                await writer.archiver.archive_all()
            if writer.pending.is_set():
                await writer.append_pending()
        finally:
            self.turning = False
        return True

    async def write(self) -> None:
        """Let the log writer append what is pending, as far as it comes."""
        writer, starving = self.stores.writer, self.stores.writer.archiver.starving
        while writer.pending.is_set() or starving.is_set() or writer.mender.repairs.tasks or self.turning:
            if any(log.starved for log in writer.logs):
                starving.set()
            await self.tick()
            await asyncio.sleep(0)

    async def archive(self) -> None:
        """Let the log writer store what is appended."""
        self.stores.writer.archiver.starving.set()
        await self.write()

    async def claim(self, run_id: UUID, *, unclaimed: bool) -> Driver | None:
        """What `worker.runner` does with a message, up to the work; `unclaimed`: as the message has it."""
        stores, settings = self.stores, self.world.settings.runs
        if unclaimed and (driver := await self.drive(Unclaimed(run_id))):
            return driver
        run = await store.get(stores.pool, run_id)
        if run is None or run.final:
            return None
        if run.status == "running" and not await lifecycle.is_abandoned(stores.pool, run.id, settings.dead_after):
            return None
        return await self.drive(run)

    async def drive(self, run: Claimable) -> Driver | None:
        async with AsyncExitStack() as stack:
            claim = await stack.enter_async_context(runner.claimed(self.process, run))
            if claim is None:
                return None
            held = claim.held
            log = await self.stores.writer.open_log(claim.run, held.fence, claim.listed)
            await stack.enter_async_context(runner.losing_with(held, log))
            driver = Driver(self, stack.pop_all(), claim.run, held, log)
            self.drivers.append(driver)
        await driver.resume()
        await self.write()
        return driver

    async def beat(self) -> None:
        await seeds.beat(self.stores)
        await asyncio.sleep(0)  # whoever waits for a loss hears of it

    async def sweep(self) -> None:
        await sweeper.sweep(self.stores)

    async def die(self) -> None:
        """The process is killed, and another one takes its place."""
        self.fuse.dead = True
        for driver in list(self.drivers):
            with suppress(Killed):
                await driver.stack.aclose()
        self.drivers.clear()
        self.ghosts.clear()
        tasks = self.tasks
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        stores, writer = self.stores, self.stores.writer
        for memory in (writer.logs, writer.dirty, writer.pending, writer.archiver.starving, stores.leases.held):
            memory.clear()
        stores.dispatch.confirmed.clear()
        stores.hand_overs.asked.clear()
        self.fuse.dead = False
        self.fuse.put_out()
        stores.leases.instance_id = uuid4().hex[:12]
        self.process = replace(self.process, stores=replace(stores, instance_id=stores.leases.instance_id))


class Viewer:
    """A reader that follows one run, drops and resumes."""

    def __init__(self, world: "World", run_id: UUID, after: int) -> None:
        self.world, self.run_id, self.cursor = world, run_id, after
        self.unchecked: list[tuple[int, bytes]] = []
        self.task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<viewer of {self.world.name_of(self.run_id)} at {self.cursor}>"

    async def connect(self) -> None:
        await self.drop()
        self.task = asyncio.create_task(self.follow())

    async def follow(self) -> None:
        async with self.world.window.tails.follow(self.run_id, after=self.cursor) as reader:
            while not reader.over:
                batch = await reader.next()
                if batch:
                    assert batch.first_id == self.cursor + 1, f"{self} was shown {batch.first_id} next"
                    self.unchecked += enumerate(batch.events, batch.first_id)
                    self.cursor = batch.end - 1

    async def drop(self) -> None:
        if self.task:
            self.task.cancel()
            with suppress(asyncio.CancelledError):
                await self.task
            self.task = None

    def check(self) -> None:
        record = self.world.ledger.records[self.run_id]
        for number, event in self.unchecked:
            assert record.agrees(number, event), f"{self} was shown id {number} as {event!r}"
        self.unchecked.clear()
        if self.task and self.task.done():
            self.task.result()


class World:
    """Workers, a window through which viewers look, and the ledger of what they saw."""

    def __init__(self, settings: Settings) -> None:
        streams = StreamSettings(silence=timedelta(milliseconds=50))
        self.settings = settings.model_copy(update={"runs": STILL, "streams": streams})
        self.server, self.queue = Server(), Queue()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.nodes = [Node(self, number) for number in range(NODES)]
        self.ledger = Ledger()
        self.viewers: list[Viewer] = []

    def run(self, work: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await work

        return self.runner.run(awaited())

    def __enter__(self) -> "World":
        self.run(self.open())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self.stack.aclose())
        self.runner.close()

    async def open(self) -> None:
        self.pool = await open_pool(self.settings.postgres)
        self.stack.push_async_callback(self.pool.close)
        self.redis = open_redis(self.settings.redis)
        self.stack.push_async_callback(self.redis.aclose)
        self.window = await self.stack.enter_async_context(open_stores(self.settings))
        for node in self.nodes:
            await node.open(self.stack)

    # One example.

    async def begin(self) -> None:
        self.ledger, self.viewers, self.server.life, self.stale = Ledger(), [], 0, True
        self.place = await seeds.make_place(self.pool)

    async def clear(self) -> None:
        for viewer in self.viewers:
            await viewer.drop()
        for node in self.nodes:
            await node.die()
        await self.pool.execute("DELETE FROM accounts")
        await self.redis.flushdb()
        self.queue.run_ids.clear()

    def name_of(self, run_id: UUID) -> str:
        record = self.ledger.records.get(run_id)
        return record.name if record else f"run {len(self.ledger.records)}"

    # One step.

    async def play(self, node: Node, work: Awaitable[T]) -> T:
        """Do `work` in the process `node`, while the log writers of all processes turn; then all is at rest.

        Raises: Interrupted when a store was away or the process died.
        """
        burned, self.stale = node.fuse.burned, True
        task: asyncio.Task[T] = asyncio.ensure_future(self.named(work))
        await asyncio.sleep(0)  # begun before anything can cancel it
        async with asyncio.timeout(STEP_SECONDS):
            await self.rest(node, task)
        try:
            return task.result()
        except Killed as killed:
            raise Interrupted from killed
        except asyncio.CancelledError as cancelled:
            raise Interrupted from cancelled
        except Away as error:
            if node.fuse.burned == burned:
                raise AssertionError("a store was away, and nobody had cut it off") from error
            raise Interrupted from error

    async def named(self, work: Awaitable[T]) -> T:
        return await work

    async def rest(self, node: Node, task: "asyncio.Task[Any]") -> None:
        """Turn the writers whenever everything waits for them, until nothing is left to do."""
        idle = 0
        while busy := [waiting for waiting in (task, *self.background) if not waiting.done()]:
            await self.bury(node, task)
            idle = 0 if await self.something_flies() or await self.tick() else idle + 1
            if idle > IDLE_TURNS:
                for each in self.nodes:
                    each.stores.writer.archiver.starving.set()  # as the archive's interval does
            await asyncio.wait(busy, timeout=0.001, return_when=asyncio.FIRST_COMPLETED)
        await self.bury(node, task)

    async def something_flies(self) -> bool:
        """Whether a process waits for a store: looked at more than once, since between two commands none is."""
        for _ in range(5):
            if any(node.fuse.flying for node in self.nodes):
                return True
            await asyncio.sleep(0)
        return False

    @property
    def background(self) -> list["asyncio.Task[Any]"]:
        return [task for node in self.nodes for task in node.tasks]

    async def tick(self) -> bool:
        acted = False
        for node in self.nodes:
            with suppress(Killed):
                acted = await node.tick() or acted
        return acted

    async def bury(self, busy: Node, task: "asyncio.Task[Any]") -> None:
        for node in self.nodes:
            if not node.fuse.dead:
                continue
            if node is busy and not task.done():
                task.cancel()
                await asyncio.wait({task})
            await node.die()

    # What may happen to all of them.

    async def pass_an_hour(self, stalled: Sequence[Node]) -> None:
        """Every moment is an hour longer ago; locks that nobody renews are gone."""
        self.stale = True
        shifts = ", ".join(f"{name} = {name} - interval '1 hour'" for name in MOMENTS)
        for node in self.nodes:
            if node.stores.dispatch.confirmed:
                with suppress(Interrupted):
                    await self.play(node, node.stores.dispatch.note())
        await self.pool.execute(f"UPDATE agent_runs SET {shifts}")
        renewed: set[str] = set()
        for node in self.nodes:
            if node not in stalled:
                leases = node.stores.leases
                renewed.update(name for held in leases.held.values() for name in leases.keys(held.fence))
        async for key in self.redis.scan_iter(count=1000):
            if not key.endswith(b":responses") and key.decode() not in renewed:
                await self.redis.delete(key)

    async def lose(self, *names: str) -> None:
        """Redis has no such keys any more; without names, none at all."""
        self.stale = True
        if names:
            await self.redis.delete(*names)
        else:
            await self.redis.flushdb()
        if not names or any(name.endswith(":responses") for name in names):
            self.ledger.voids_expected = True

    async def kill(self, node: Node) -> None:
        self.stale = True
        await node.die()

    async def restart_redis(self, lost: int) -> None:
        """The server comes back without the newest `lost` events of every log, and with an identity of its own."""
        self.server.life += 1
        self.stale = True
        self.ledger.voids_expected = True
        await self.redis.script_flush()
        async for key in self.redis.scan_iter("*:responses", count=1000):
            await self.redis.ltrim(key, 0, -1 - lost)

    # Looking.

    async def look(self) -> None:
        """Tell the ledger what the stores hold, if anything was done since, and what viewers were shown."""
        if self.stale:
            self.stale = False
            await self.tell_ledger()
            await self.check_ttls()
        for viewer in self.viewers:
            viewer.check()

    async def tell_ledger(self) -> None:
        rows = await self.pool.fetch("SELECT * FROM agent_runs ORDER BY created_at")
        pipeline = self.redis.pipeline(transaction=False)
        for row in rows:
            pipeline.lrange(keys.responses(row["id"]), 0, -1)
            pipeline.get(keys.lock(row["id"]))
        answers = await pipeline.execute()
        archives = await self.archives()
        sights = {}
        for row, listed, lock in zip(rows, answers[::2], answers[1::2], strict=True):
            remembered = any(node.holds(row["id"], row["attempt"]) for node in self.nodes)
            sights[row["id"]] = Sight(dict(row), listed, archives[row["id"]], lock, remembered)
        messages = await self.pool.fetch("SELECT message_id, content FROM messages")
        self.ledger.see(sights, {message["message_id"]: message["content"] for message in messages})

    async def archives(self) -> dict[UUID, list[bytes]]:
        found: dict[UUID, list[bytes]] = defaultdict(list)
        for block in await self.pool.fetch("SELECT * FROM agent_run_event_blocks ORDER BY agent_run_id, first_id"):
            events = found[block["agent_run_id"]]
            assert block["first_id"] == len(events), "the archive has a gap"
            events += archive.unpack(block["events"])
        return found

    async def check_ttls(self) -> None:
        names = [key async for key in self.redis.scan_iter(count=1000)]
        pipeline = self.redis.pipeline(transaction=False)
        for name in names:
            pipeline.ttl(name)
        endless = [name for name, ttl in zip(names, await pipeline.execute(), strict=True) if ttl == -1]
        assert not endless, f"keys without a TTL: {endless}"

    async def sight(self, run_id: UUID) -> Sight:
        await self.look()
        sight = self.ledger.records[run_id].before
        assert sight
        return sight

    # The end.

    async def finish(self) -> None:
        """All workers die at once, others take their place: whatever is unfinished ends, and all is archived."""
        for node in self.nodes:
            await self.kill(node)
        self.queue.run_ids.clear()  # and every message is lost
        for turn in range(4 * (1 + len(self.ledger.records))):
            if await self.all_closed():
                break
            await self.look()
            await self.pass_an_hour(stalled=self.nodes)
            await self.look()
            await self.work(self.nodes[turn % NODES])
        assert await self.all_closed(), f"unfinished: {[dict(row) for row in await self.unclosed()]}"
        await self.pass_an_hour(stalled=self.nodes)
        await self.look()
        await self.check_remains()
        await self.check_readers()

    async def work(self, node: Node) -> None:
        """Sweep, then drive every run that a message asks for to its end."""
        await self.play(node, node.sweep())
        run_ids, self.queue.run_ids = self.queue.run_ids, set()
        for run_id in sorted(run_ids, key=self.name_of):
            driver = await self.play(node, node.claim(run_id, unclaimed=False))
            await self.look()
            if driver:
                await self.play(node, driver.say(1))
                await self.play(node, driver.conclude(self.ending_of(driver)))
                await self.look()
        await self.play(node, node.archive())
        await self.look()

    def ending_of(self, driver: Driver) -> Ending:
        given_up = driver.run.crashes >= self.settings.runs.max_crashes
        return Ended("failed", "It was given up.") if given_up else Ended("completed")

    async def unclosed(self) -> list[Any]:
        return cast(list[Any], await self.pool.fetch("SELECT * FROM agent_runs WHERE closed_at IS NULL"))

    async def all_closed(self) -> bool:
        return not await self.unclosed()

    async def check_remains(self) -> None:
        left = [key async for key in self.redis.scan_iter(count=1000) if not key.endswith(b":responses")]
        assert not left, f"keys that outlived the runs: {left}"
        for record in self.ledger.records.values():
            record.check_whole()

    async def check_readers(self) -> None:
        """Those who follow reach the end; who comes later, with Redis or without, reads the archive's bytes."""
        for viewer in self.viewers:
            if viewer.task:
                async with asyncio.timeout(PATIENT):
                    await viewer.task
            viewer.check()
        for emptied in (False, True):
            if emptied:
                await self.redis.flushdb()
            for run_id, record in self.ledger.records.items():
                assert record.before
                log = list(enumerate(record.before.archived))
                for after in (-1, len(log) // 2):
                    async with asyncio.timeout(PATIENT):
                        assert await seeds.read_all(self.window, run_id, after=after) == log[after + 1 :]
