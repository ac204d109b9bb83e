"""The sweeper, in every worker: finds runs that nobody looks after and sees to them. Database time only."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from uuid import UUID

from services import metrics
from services.billing import reserves
from services.errors import Unavailable
from services.log import logger
from services.postgres import Unreachable as PostgresUnreachable
from services.postgres import transaction
from services.redis import Unreachable as RedisUnreachable
from services.runs import closing, idempotency, keys, lifecycle, slots, starting, stopping
from services.runs.naming import about
from services.runs.shards import Shard
from services.runs.store import COLUMNS, EARLIER_UNFINISHED, Run
from services.runs.stores import Stores
from services.schedules import firings
from services.webhooks import deliveries

BATCH = 200
CLOSE_AT_ONCE = 20
LOCKS_SECONDS = 1.0
"""How long a server may take to tell of locks: the runs of the others are not to wait for one that hangs."""
NEVER = datetime.min.replace(tzinfo=UTC)
EXPIRED = "The run was not started in time: it expired in the queue."

Step = Callable[[Stores], Awaitable[None]]


async def keep_sweeping(stores: Stores) -> None:
    interval = stores.settings.runs.sweep_interval.total_seconds()
    while True:
        await asyncio.sleep(interval * random.uniform(0.75, 1.25))  # noqa: S311 - jitter, no secret
        await sweep(stores)


async def sweep(stores: Stores) -> None:
    """Every step once. A step that cannot reach a store is tried again at the next sweep."""
    for step in STEPS:
        try:
            await step(stores)
        except (*PostgresUnreachable, *RedisUnreachable, Unavailable) as error:
            metrics.sweeper_failures.labels(step.__name__).inc()
            logger.warning("sweeper.step_postponed", step=step.__name__, error=repr(error))
        except Exception:
            metrics.sweeper_failures.labels(step.__name__).inc()
            logger.exception("sweeper.step_failed", step=step.__name__)


async def judge_due(stores: Stores) -> None:
    """Delayed runs that are due, stop the others and take a slot, once there is one: only then may they be sent."""
    limits = stores.settings.limits
    for project_id in await slots.open_projects(stores.pool, limits, BATCH):
        async with transaction(stores.pool) as conn:
            stopped = await starting.judge(conn, project_id, limits)
        await stopping.announce(stores, stopped)


async def send_unsent(stores: Stores) -> None:
    """Queued rows whose message was never confirmed: at once when a delay is over, else after `resend_after`."""
    await send(
        stores,
        f"""
        status = 'queued' AND message_sent_at IS NULL AND (not_before IS NULL OR not_before <= now()) AND judged
        AND NOT {EARLIER_UNFINISHED} AND ((message_tried_at IS NULL AND not_before IS NOT NULL)
             OR coalesce(message_tried_at, created_at) < now() - $1::interval)
        """,
        "never confirmed",
    )


async def send_lost(stores: Stores) -> None:
    """Queued rows whose confirmed message is gone: only when the queue is empty and nothing else holds them up."""
    condition = f"""
        status = 'queued' AND message_sent_at < now() - $1::interval
        AND (message_tried_at IS NULL OR message_tried_at < now() - $1::interval)
        AND (not_before IS NULL OR not_before <= now()) AND NOT {EARLIER_UNFINISHED}
    """
    waiting = await stores.pool.fetchval(
        f"SELECT EXISTS (SELECT 1 FROM agent_runs AS run WHERE {condition})", stores.settings.runs.resend_after
    )
    if waiting and await stores.dispatch.queue_is_empty():
        await send(stores, condition, "message lost")


async def rescue(stores: Stores) -> None:
    """Running rows whose driver is dead: heartbeat old and lock absent. A worker that gets the message claims it."""
    dead = await dead_runs(stores)
    if dead:
        await send(
            stores,
            """
            id = ANY($2) AND status = 'running'
            AND (message_tried_at IS NULL OR message_tried_at < now() - $1::interval)
            """,
            "driver dead",
            dead,
        )


async def dead_runs(stores: Stores) -> list[UUID]:
    """Some of them, the longest dead first. Of those whose server is away nobody knows: they hide none behind them."""
    dead: list[UUID] = []
    away: set[str] = set()
    after: tuple[datetime, UUID] = NEVER, UUID(int=0)
    while not dead:
        rows = await stores.pool.fetch(
            f"""
            SELECT id, heartbeat_at FROM agent_runs
            WHERE status = 'running' AND heartbeat_at < now() - $1::interval AND (heartbeat_at, id) > ($2, $3)
            ORDER BY heartbeat_at, id LIMIT {BATCH}
            """,
            stores.settings.runs.dead_after,
            *after,
        )
        for shard, run_ids in stores.shards.group(row["id"] for row in rows):
            if shard.name not in away:
                dead += await without_lock(shard, run_ids, away)
        if len(rows) < BATCH or not away:
            break
        after = rows[-1]["heartbeat_at"], rows[-1]["id"]
    return dead


async def without_lock(shard: Shard, run_ids: Sequence[UUID], away: set[str]) -> list[UUID]:
    """Those of one server that nobody holds; none, and its name in `away`, when it cannot be asked."""
    pipeline = shard.redis.pipeline(transaction=False)
    for run_id in run_ids:
        pipeline.exists(keys.lock(run_id))
    try:
        async with asyncio.timeout(LOCKS_SECONDS):
            answers = await pipeline.execute()
    except RedisUnreachable as error:
        logger.warning("sweeper.server_away", server=shard.name, count=len(run_ids), error=repr(error))
        away.add(shard.name)
        return []
    return [run_id for run_id, locked in zip(run_ids, answers, strict=True) if not locked]


async def send(stores: Stores, condition: str, reason: str, *values: object) -> None:
    """Send the messages of rows that meet `condition` ($1 is `resend_after`); parallel sweepers share them."""
    rows = await stores.pool.fetch(
        f"""
        UPDATE agent_runs AS run SET message_tried_at = now() WHERE id IN (
            SELECT id FROM agent_runs AS run WHERE {condition}
            ORDER BY created_at LIMIT {BATCH} FOR UPDATE SKIP LOCKED
        ) RETURNING {COLUMNS}
        """,
        stores.settings.runs.resend_after,
        *values,
    )
    for row in rows:
        run = Run(**row)
        metrics.sweeper_sent.labels(reason).inc()
        logger.info("sweeper.sent", reason=reason, **about(run))
        stores.dispatch.send_run(run)


async def end_stopped(stores: Stores) -> None:
    """Runs whose stop is committed and whose driver has not ended them: whoever was asked may be dead."""
    await end(stores, "status = 'running' AND stop_requested_at < now() - $1::interval", "stopped", None)


async def end_expired(stores: Stores) -> None:
    """Runs that nobody started in time."""
    condition = "status = 'queued' AND started_at IS NULL AND expires_at <= now() AND $1::interval IS NOT NULL"
    await end(stores, condition, "failed", EXPIRED)


async def end(stores: Stores, condition: str, status: str, error: str | None) -> None:
    rows = await stores.pool.fetch(
        f"""
        SELECT id, attempt FROM agent_runs WHERE {condition}
        ORDER BY created_at LIMIT {BATCH} FOR NO KEY UPDATE SKIP LOCKED
        """,
        stores.settings.runs.sweep_interval,
    )
    if not rows:
        return
    attempts = [(row["id"], row["attempt"]) for row in rows]
    for run in await lifecycle.end_all_from_outside(stores.pool, attempts, status, error=error):
        metrics.sweeper_ended.labels("expired" if error else "stopped").inc()
        logger.info("sweeper.ended", status=run.status, **about(run))
        stores.background.spawn(closing.close_from_outside(stores, run))


async def close_cut(stores: Stores) -> None:
    """Final rows whose last event or archive was cut: raise the fence and finish them here."""
    rows = await stores.pool.fetch(
        f"""
        SELECT {COLUMNS} FROM agent_runs AS run
        WHERE completed_at IS NOT NULL AND closed_at IS NULL AND updated_at < now() - $1::interval
        ORDER BY updated_at LIMIT {CLOSE_AT_ONCE} FOR NO KEY UPDATE SKIP LOCKED
        """,
        stores.settings.runs.close_after,
    )
    for run in await lifecycle.take_up_closings(stores.pool, [Run(**row) for row in rows]) if rows else ():
        metrics.sweeper_ended.labels("end was cut").inc()
        logger.info("sweeper.closing", status=run.status, **about(run))
        stores.background.spawn(closing.close_from_outside(stores, run))


async def free_reserves(stores: Stores) -> None:
    """Credits that were set aside for calls of models that nobody waits for any more."""
    if stores.settings.billing.kind == "credits":
        await reserves.free_dead(stores.pool, stores.settings.runs.dead_after, BATCH)


async def forget_keys(stores: Stores) -> None:
    await idempotency.forget_old(stores.pool, BATCH)


async def end_deliveries(stores: Stores) -> None:
    """Of webhooks: those whose last attempt was lost are over, and those that are long over are forgotten."""
    webhooks = stores.settings.webhooks
    metrics.webhook_lost.inc(await deliveries.give_up(stores.pool, webhooks.attempts, BATCH))
    await deliveries.forget_old(stores.pool, webhooks.keep, BATCH)


async def forget_firings(stores: Stores) -> None:
    await firings.forget_old(stores.pool, stores.settings.schedules.keep_firings, BATCH)


STEPS: tuple[Step, ...] = (
    judge_due,
    send_unsent,
    send_lost,
    rescue,
    end_stopped,
    end_expired,
    close_cut,
    free_reserves,
    forget_keys,
    end_deliveries,
    forget_firings,
)

for each in STEPS:
    metrics.sweeper_failures.labels(each.__name__)  # told from the beginning, so that the first failure is an increase
