"""Deliveries of QStash, which fire the schedules that it wakes. Also served under /v1."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from importlib import import_module
from typing import Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel

from agent import firing
from agent.firing import Held
from api.deps import Resources, ResourcesDep
from api.errors import invalid
from services.errors import AppError, NotFound, PayloadTooLarge, Unauthenticated, Unavailable
from services.schedules import claims, firings, store
from services.schedules.claims import Due
from services.schedules.firings import Firing
from services.schedules.store import Schedule

router = APIRouter(prefix="/schedules", tags=["schedules"])

EARLY = timedelta(seconds=30)
"""By how much the clock of QStash may be ahead: half of what lies between two times at the least."""
MAX_DELIVERY_BYTES = 64 * 1024
MAX_MESSAGE_ID_CHARS = 200


class Unwanted(AppError):
    """The workers fire schedules themselves here (SCHEDULES=local): have QStash forget this one."""

    status = 489
    headers: Mapping[str, str] = {"Upstash-NonRetryable-Error": "true"}
    """With this status QStash does not try again: https://upstash.com/docs/qstash/features/retry"""


class Delivered(BaseModel):
    """`ignored`: nothing was due."""

    status: str
    schedule_id: UUID
    agent_run_id: UUID | None = None
    execution_id: UUID | None = None
    error: str | None = None


@router.post("/trigger/{workflow_id}", responses={Unwanted.status: {"description": Unwanted.__doc__}})
async def trigger_schedule(workflow_id: UUID, request: Request, resources: ResourcesDep) -> Delivered:
    """A delivery of QStash, signed with one of its keys: fires what is due, and the same message only once.

    `workflow_id` is that of the schedule, or of one without a workflow its own; the body names the schedule.
    """
    body = await request.body()
    await verify(request, resources, body)
    schedule = await delivered_schedule(resources, workflow_id, body)
    message_id = request.headers.get("Upstash-Message-Id", "")
    if not message_id or len(message_id) > MAX_MESSAGE_ID_CHARS or not message_id.isprintable():
        raise invalid("Upstash-Message-Id", "must name the message", where="header")
    async with resources.pool.acquire() as conn:
        known = await firings.of_message(conn, schedule.schedule_id, message_id)
    return shown_delivery(known) if known else await deliver(resources, schedule, message_id)


async def verify(request: Request, resources: Resources, body: bytes) -> None:
    """Raises: Unauthenticated; Unwanted where schedules are not woken by QStash; PayloadTooLarge."""
    signature = request.headers.get("Upstash-Signature", "")
    if resources.settings.schedules.backend != "qstash":
        raise Unwanted if signature else Unauthenticated
    if len(body) > MAX_DELIVERY_BYTES:
        raise PayloadTooLarge(f"A delivery may have {MAX_DELIVERY_BYTES} bytes.")
    qstash: Any = await asyncio.to_thread(import_module, "services.schedules.qstash")
    qstash.verify(resources.settings, signature, body, request.url.path)


async def delivered_schedule(resources: Resources, target_id: UUID, body: bytes) -> Schedule:
    """Raises: NotFound; RequestValidationError."""
    try:
        schedule_id = UUID(orjson.loads(body)["schedule_id"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise invalid("schedule_id", "must name a schedule") from error
    schedule = await store.find(resources.pool, schedule_id)
    if schedule is None or schedule.target_id != target_id:
        raise NotFound(store.MISSING)
    return schedule


async def deliver(resources: Resources, schedule: Schedule, message_id: str) -> Delivered:
    """Raises: Unavailable while what it starts is locked: QStash tries again."""
    ignored = Delivered(status="ignored", schedule_id=schedule.schedule_id)
    due = await claims.of_delivery(resources.pool, schedule.schedule_id)
    if due is None:
        return ignored
    try:
        outcome = await firing.fire(resources, due, early=EARLY, message_id=message_id)
        if outcome and schedule.missed == "all":
            await make_up(resources, due)
    except Held as error:
        raise Unavailable from error
    if outcome is None:
        return ignored
    run = outcome.run
    return Delivered(
        status=outcome.status,
        schedule_id=schedule.schedule_id,
        agent_run_id=run.id if run else None,
        execution_id=run.settings.get("execution_id") if run else None,
        error=outcome.error,
    )


async def make_up(resources: Resources, due: Due) -> None:
    """What was missed before the time of this delivery; what is too much for now is left to the next one."""
    for _ in range(resources.settings.schedules.max_catch_up):
        try:
            if await firing.fire(resources, due) is None:
                return
        except Held:
            return


def shown_delivery(known: Firing) -> Delivered:
    return Delivered(
        status=known.status,
        schedule_id=known.schedule_id,
        agent_run_id=known.agent_run_id,
        execution_id=known.execution_id,
        error=known.error,
    )
