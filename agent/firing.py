"""What a schedule starts when it fires, in one transaction with the row that says so."""

from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID, uuid4

from agent.catalog import resolve_model
from agent.workflows import beginning
from agent.workflows.beginning import Asked
from agent.workflows.inputs import BadInput
from services import agents, messages, metrics, threads, workflow_executions, workflows
from services.billing.gate import Gate
from services.errors import AppError, TooManyRequests
from services.log import logger
from services.messages import NewMessage
from services.postgres import Connection, Unreachable, transaction
from services.runs import starting
from services.runs.starting import NewRun, Started
from services.runs.stores import Stores
from services.schedules import claims, firings, missed
from services.schedules.claims import Due
from services.schedules.firings import Outcome
from services.schedules.missed import Turn
from services.schedules.store import Schedule
from services.settings import Settings

LOCK_WAIT = timedelta(seconds=1)
IN_LINE = timedelta(microseconds=1)
"""The delay of a run that meets the account's limit: due at once, and judged when there is a slot for it."""
CROWDED = "It was skipped: {count} runs of this schedule have not ended yet."
BROKEN = "It could not be started because of an internal error."
TRIGGER = "SCHEDULE"


class Place(Protocol):
    """The part of a process that firing needs; the API has one, and so has every worker."""

    @property
    def settings(self) -> Settings: ...
    @property
    def stores(self) -> Stores: ...
    @property
    def gate(self) -> Gate: ...


class Held(Exception):
    """Somebody else holds what would have to be locked, maybe to delete it: try again a little later."""


async def fire(
    place: Place,
    due: Due,
    *,
    early: timedelta = timedelta(0),
    late: timedelta = timedelta(0),
    message_id: str | None = None,
) -> Outcome | None:
    """Fire a schedule once if it is due (or will be within `early`), and send what was started.

    `late`: the clock of `due` is slow by so much: what comes so late still counts as in time, and is told as late.
    None when there is nothing to do any more. Raises: Held; what the store raises while it is away.
    """
    async with transaction(place.stores.pool) as conn:
        if not await claims.take_turns(conn, due, LOCK_WAIT):
            raise Held
        schedule = await claims.lock(conn, due, early)
        if schedule is None:
            if await claims.is_due(conn, due, early):
                raise Held
            return None
        turn = missed.turn_of(schedule, due.now, place.settings.schedules)
        if await firings.is_noted(conn, schedule.schedule_id, turn.fire_time):
            await firings.move_on(conn, schedule, turn.following)
            return None
        outcome, started = await fire_locked(conn, place, schedule, turn, message_id)
    if started:
        await starting.send(place.stores, started)
    tell(schedule, outcome, due.now + late)
    return outcome


def tell(schedule: Schedule, outcome: Outcome, now: datetime) -> None:
    late_seconds = (now - outcome.fire_time).total_seconds()
    metrics.schedule_firings.labels("missed" if outcome.error == missed.LATE else outcome.status).inc()
    if outcome.run:
        metrics.schedule_late_seconds.observe(max(late_seconds, 0.0))
    logger.info(
        "schedule.fired",
        schedule_id=str(schedule.schedule_id),
        status=outcome.status,
        run_id=str(outcome.run.id) if outcome.run else None,
        late_seconds=round(late_seconds, 3),
        error=outcome.error,
    )


async def fire_locked(
    conn: Connection, place: Place, schedule: Schedule, turn: Turn, message_id: str | None
) -> tuple[Outcome, Started | None]:
    """Raises: Held when as many of its runs as there may be have not ended and nothing is to be left out."""
    if not turn.skipped and (crowd := await crowd_of(conn, place, schedule)):
        if schedule.missed == "all":
            raise Held
        turn = Turn(turn.fire_time, turn.following, CROWDED.format(count=crowd))
    outcome, started = await come_to(conn, place, schedule, turn)
    most = schedule.read_config.max_executions
    ends = started and most and schedule.execution_count + 1 >= most
    following = None if ends else turn.following
    await firings.note(conn, schedule, outcome, following, message_id=message_id)
    return outcome, started


async def crowd_of(conn: Connection, place: Place, schedule: Schedule) -> int:
    """How many of its runs have not ended, if there may be no more; 0 if there may."""
    most = place.settings.schedules.max_waiting
    waiting = await firings.unfinished(conn, schedule.schedule_id) if most else 0
    return waiting if waiting >= most else 0


async def come_to(conn: Connection, place: Place, schedule: Schedule, turn: Turn) -> tuple[Outcome, Started | None]:
    """Start what is to be started; what keeps it from that is a sentence in the log, and undoes nothing else."""
    if turn.skipped:
        return Outcome("skipped", turn.fire_time, error=turn.skipped), None
    try:
        async with conn.transaction():
            started = await start(conn, place, schedule)
    except AppError as refused:
        return Outcome("failed", turn.fire_time, error=sentence(refused)), None
    except BadInput as refused:
        return Outcome("failed", turn.fire_time, error=f"The variable {refused}."), None
    except Unreachable:
        raise
    except Exception:
        logger.exception("schedule.broken", schedule_id=str(schedule.schedule_id))
        return Outcome("failed", turn.fire_time, error=BROKEN), None
    return Outcome("started", turn.fire_time, run=started.run), started


def sentence(refused: AppError) -> str:
    return str(refused.detail["message"] if isinstance(refused.detail, dict) else refused.detail)


async def start(conn: Connection, place: Place, schedule: Schedule) -> Started:
    """At once, or in line for a slot when the account has none left. Raises: AppError, BadInput."""
    try:
        async with conn.transaction():
            return await start_after(conn, place, schedule, None)
    except TooManyRequests:
        return await start_after(conn, place, schedule, IN_LINE)


async def start_after(conn: Connection, place: Place, schedule: Schedule, delay: timedelta | None) -> Started:
    if schedule.workflow_id:
        return await start_workflow(conn, place, schedule, schedule.workflow_id, delay)
    assert schedule.thread_id
    return await start_agent(conn, place, schedule, schedule.thread_id, delay)


async def start_workflow(
    conn: Connection, place: Place, schedule: Schedule, workflow_id: UUID, delay: timedelta | None
) -> Started:
    workflow = await workflows.get(conn, schedule.account_id, workflow_id)
    asked = Asked(
        variables=schedule.variables,
        model_name=schedule.model_name,
        triggered_by=TRIGGER,
        created_by=schedule.created_by,
        metadata=marks(schedule),
        delay=delay,
    )
    new = beginning.new_execution(place.settings, workflow, asked)
    await require_funds(conn, place, schedule, new.model_name)
    return await workflow_executions.start(conn, uuid4(), new, place.settings.limits)


async def start_agent(
    conn: Connection, place: Place, schedule: Schedule, thread_id: UUID, delay: timedelta | None
) -> Started:
    """The prompt in the thread and a run behind those of its project; of the agent that was chosen, or the default."""
    thread = await threads.writable(conn, schedule.account_id, thread_id)
    model_name = resolve_model(place.settings, schedule.model_name)
    await require_funds(conn, place, schedule, model_name)
    named = await agents.get(conn, schedule.account_id, schedule.agent_id) if schedule.agent_id else None
    agent = named or await agents.default_of(conn, schedule.account_id)
    said = NewMessage("user", {"role": "user", "content": schedule.prompt}, metadata=marks(schedule))
    await messages.add(conn, thread_id, [said])
    new = NewRun(
        account_id=schedule.account_id,
        project_id=thread.project_id,
        thread_id=thread_id,
        model_name=model_name,
        created_by=schedule.created_by,
        agent_id=agent.agent_id if agent else None,
        agent_version_id=agent.current_version_id if agent else None,
        metadata=marks(schedule),
        on_active="queue",
        delay=delay,
    )
    return await starting.start(conn, new, place.settings.limits)


def marks(schedule: Schedule) -> dict[str, str]:
    return {"schedule_id": str(schedule.schedule_id)}


async def require_funds(conn: Connection, place: Place, schedule: Schedule, model_name: str) -> None:
    """Raises: PaymentRequired, Forbidden."""
    (await place.gate.may_run(conn, schedule.account_id, model_name)).enforce()
