"""The lease: a short Redis lock, renewed while held, backed by the row's heartbeat; loss is noticed."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from services import metrics
from services.background import Background
from services.log import logger
from services.postgres import Pool
from services.postgres import Unreachable as PostgresUnreachable
from services.redis import Unreachable as RedisUnreachable
from services.runs import keys
from services.runs.fence import Fence
from services.settings import RunSettings

HOLD = """
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 0 end
redis.call('SET', KEYS[2], 'running', 'PX', ARGV[2])
return 1
"""
ATTEMPT_OF = """
local function attempt_of(owner) return tonumber(string.match(owner, ':(%d+)$')) or math.huge end
"""
"""Of a lock's owner. Only one of a higher attempt overtakes a driver: another has come by an old message, while Redis
had forgotten the lock, and cannot claim."""

RENEW = f"""
{ATTEMPT_OF}
local owner = redis.call('GET', KEYS[1])
if not owner then return 0 end
if owner ~= ARGV[1] then return attempt_of(owner) > attempt_of(ARGV[1]) and -1 or 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('SET', KEYS[2], 'running', 'PX', ARGV[2])
return 1
"""
RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2])
return redis.call('DEL', KEYS[1])
"""
SEIZE = """
local owner = redis.call('GET', KEYS[1])
local attempt = owner and tonumber(string.match(owner, ':(%d+)$')) or -1
if attempt > tonumber(ARGV[3]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""


def overtakes(owner: Any, fence: Fence) -> bool:
    """Whether the owner of a lock is of a higher attempt; one that cannot be read is."""
    attempt = (owner or b":0").rpartition(b":")[2]
    return not attempt.isdigit() or int(attempt) > fence.attempt


class Held:
    """A lease in hand. `lost` and `stop_asked` are set by whoever notices first."""

    def __init__(self, fence: Fence, now: float) -> None:
        self.fence = fence
        self.lost = asyncio.Event()
        self.stop_asked = asyncio.Event()
        self.seen_at = now
        """When one of the two stores last confirmed it (loop time)."""


class Leases:
    """The leases of one process, kept alive by one beat for all of them."""

    def __init__(self, settings: RunSettings, redis: Redis, pool: Pool, instance_id: str) -> None:
        self.settings, self.redis, self.pool, self.instance_id = settings, redis, pool, instance_id
        self.held: dict[Fence, Held] = {}
        self.retaking = Background()
        self.ttl_ms = int(settings.lock_ttl.total_seconds() * 1000)
        self.lock, self.renew = redis.register_script(HOLD), redis.register_script(RENEW)
        self.unlock, self.take = redis.register_script(RELEASE), redis.register_script(SEIZE)

    @asynccontextmanager
    async def hold(self, run_id: UUID, attempt: int) -> AsyncIterator[Held | None]:
        """The lock of `attempt` for the length of the block, or None when another holds the run.

        Raises: redis errors when Redis cannot be asked.
        """
        fence = Fence(run_id, attempt, self.instance_id)
        taken = await self.lock(keys=self.keys(fence), args=[fence.lock_value, self.ttl_ms])
        if not taken or fence in self.held:  # the lock of one that holds it here already may have been forgotten
            yield None
            return
        held = self.held[fence] = Held(fence, asyncio.get_running_loop().time())
        try:
            yield held
        finally:
            self.held.pop(fence, None)
            with suppress(*RedisUnreachable):
                await self.release(fence)

    async def seize(self, fence: Fence) -> bool:
        """Take the lock for whoever has raised the fence in the row; False when it was raised again since."""
        taken = await self.take(keys=[keys.lock(fence.run_id)], args=[fence.lock_value, self.ttl_ms, fence.attempt])
        return bool(taken)

    async def release(self, fence: Fence) -> None:
        """Give the lock back if it is still ours."""
        await self.unlock(keys=self.keys(fence), args=[fence.lock_value])

    async def retake(self, fence: Fence) -> bool:
        """A missing lock is nobody's: take it again, but only while the row shows our attempt.

        Looked at before and after: whoever raises the fence in between then finds us gone. False when we are overtaken;
        an attempt that is not above ours may have the lock for a moment.
        """
        if not await self.is_mine(fence):
            return False
        lock = keys.lock(fence.run_id)
        taken = await self.redis.set(lock, fence.lock_value, nx=True, px=self.ttl_ms)
        if not taken and overtakes(await self.redis.get(lock), fence):
            return False
        if await self.is_mine(fence):
            return True
        await self.release(fence)
        return False

    async def is_mine(self, fence: Fence) -> bool:
        """Whether the row shows our attempt. One that was given back shows it until the next claim, and is nobody's."""
        attempt = await self.pool.fetchval(
            "SELECT attempt FROM agent_runs WHERE id = $1 AND closed_at IS NULL AND status <> 'queued'", fence.run_id
        )
        return bool(attempt == fence.attempt)

    async def renew_later(self) -> None:
        """One interval, then the locks; apart from the rows, so that one store does not wait for the other."""
        await asyncio.sleep(self.settings.heartbeat_interval.total_seconds())
        await self.renew_locks(self.in_order())
        self.give_up_unseen(self.in_order())

    async def beat_later(self) -> None:
        """One interval, then every row's heartbeat."""
        await asyncio.sleep(self.settings.heartbeat_interval.total_seconds())
        await self.beat_rows(self.in_order())

    def in_order(self) -> list[Held]:
        """What is held, in one order for all statements: no deadlocks."""
        return sorted(self.held.values(), key=lambda held: held.fence.run_id)

    async def renew_locks(self, leases: list[Held]) -> None:
        """One pipeline for all; what is missing is taken again beside it, since that asks Postgres."""
        if not leases:
            return
        try:
            answers = await self.ask_to_renew(leases)
        except (*RedisUnreachable, ResponseError) as error:
            logger.warning("lease.redis_unreachable", error=repr(error))
            return
        now = asyncio.get_running_loop().time()
        for held, answer in zip(leases, answers, strict=True):
            held.seen_at = now
            if answer == 0:
                self.retaking.spawn(self.retake_or_lose(held))
            elif answer == -1:
                self.lose(held, "another holds the lock")

    async def ask_to_renew(self, leases: list[Held]) -> list[Any]:
        async with self.redis.pipeline(transaction=False) as pipeline:  # else it keeps the connection it broke with
            for held in leases:
                await self.renew(keys=self.keys(held.fence), args=[held.fence.lock_value, self.ttl_ms], client=pipeline)
            return await pipeline.execute()

    async def retake_or_lose(self, held: Held) -> None:
        try:
            if self.held.get(held.fence) is held and not await self.retake(held.fence):
                self.lose(held, "the lock was lost")
        except (*RedisUnreachable, *PostgresUnreachable) as error:
            logger.warning("lease.not_retaken", agent_run_id=str(held.fence.run_id), error=repr(error))

    async def beat_rows(self, leases: list[Held]) -> None:
        """One statement for all; it also learns of fences that rose and of stops that were asked."""
        if not leases:
            return
        try:
            rows = await self.pool.fetch(
                """
                WITH free AS (
                    SELECT id FROM agent_runs WHERE id = ANY($1) FOR NO KEY UPDATE SKIP LOCKED
                )
                UPDATE agent_runs AS run SET heartbeat_at = now()
                FROM unnest($1::uuid[], $2::int[]) AS beat (run_id, fence) JOIN free ON free.id = beat.run_id
                WHERE run.id = run_id AND attempt = fence AND status = 'running'
                RETURNING run.id, stop_requested_at IS NOT NULL AS stop_asked
                """,
                [held.fence.run_id for held in leases],
                [held.fence.attempt for held in leases],
            )
        except PostgresUnreachable as error:
            logger.warning("lease.postgres_unreachable", error=repr(error))
            return
        now, stop_asked = asyncio.get_running_loop().time(), {row["id"]: row["stop_asked"] for row in rows}
        for held in leases:
            held.seen_at = now
            if stop_asked.get(held.fence.run_id):
                held.stop_asked.set()
        await self.lose_unless_ended([held for held in leases if held.fence.run_id not in stop_asked])

    async def lose_unless_ended(self, leases: list[Held]) -> None:
        """No row answered the beat: it is locked, not claimed yet, ended by ourselves, or its fence rose."""
        if not leases:
            return
        try:
            rows = await self.pool.fetch(
                "SELECT id, attempt FROM agent_runs WHERE id = ANY($1)", [held.fence.run_id for held in leases]
            )
        except PostgresUnreachable as error:
            logger.warning("lease.postgres_unreachable", error=repr(error))
            return
        attempts = {row["id"]: row["attempt"] for row in rows}
        for held in leases:
            if attempts.get(held.fence.run_id, math.inf) > held.fence.attempt:
                self.lose(held, "the fence was raised")

    def give_up_unseen(self, leases: list[Held]) -> None:
        patience, now = self.settings.dead_after.total_seconds(), asyncio.get_running_loop().time()
        for held in leases:
            if now - held.seen_at > patience:
                self.lose(held, "neither store answered")

    def lose(self, held: Held, reason: str) -> None:
        if not held.lost.is_set():
            logger.warning("lease.lost", agent_run_id=str(held.fence.run_id), attempt=held.fence.attempt, reason=reason)
            metrics.lease_losses.labels(reason).inc()
            held.lost.set()

    def keys(self, fence: Fence) -> list[str]:
        return [keys.lock(fence.run_id), keys.active(fence.instance_id, fence.run_id)]
