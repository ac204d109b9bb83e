"""The schedules table: what is started when."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from services.errors import Conflict, NotFound, Unprocessable
from services.postgres import Connection, Executor
from services.schedules.config import Config, Missed, stored
from services.schedules.times import Timetable

MISSING = "Schedule not found."
ENDED = "This schedule has ended; give it another config."
DETAILS = ("name", "description", "variables", "prompt", "agent_id", "model_name", "missed")


class NeverFires(Unprocessable):
    """would never fire"""


@dataclass(frozen=True, slots=True)
class Schedule:
    """It starts `workflow_id` with `variables`, or says `prompt` on `thread_id`; `next_fire_at` while it is active."""

    schedule_id: UUID
    account_id: UUID
    workflow_id: UUID | None
    thread_id: UUID | None
    agent_id: UUID | None
    name: str
    description: str
    config: dict[str, Any]
    variables: dict[str, Any]
    prompt: str | None
    model_name: str | None
    missed: Missed
    status: str
    anchor: datetime
    next_fire_at: datetime | None
    last_fired_at: datetime | None
    execution_count: int
    error_count: int
    revision: int
    told_revision: int | None
    telling_error: str | None
    created_by: UUID | None
    created_at: datetime
    updated_at: datetime

    @property
    def read_config(self) -> Config:
        return stored(self.config)

    @property
    def timetable(self) -> Timetable:
        return self.read_config.timetable(self.anchor)

    @property
    def target_id(self) -> UUID:
        """What QStash's deliveries name: the workflow, or of a schedule without one itself."""
        return self.workflow_id or self.schedule_id


@dataclass(frozen=True, slots=True)
class NewSchedule:
    """`schedule_id`: whoever makes it twice with the same one has made it once."""

    account_id: UUID
    name: str
    config: Config
    description: str = ""
    workflow_id: UUID | None = None
    thread_id: UUID | None = None
    agent_id: UUID | None = None
    variables: Mapping[str, Any] | None = None
    prompt: str | None = None
    model_name: str | None = None
    missed: Missed = "once"
    created_by: UUID | None = None
    schedule_id: UUID | None = None


NAMES = tuple(f.name for f in fields(Schedule))
COLUMNS = ", ".join(f"s.{name}" for name in NAMES)
LOCK = "hashtextextended($1::text, 5015)"


async def create(conn: Connection, new: NewSchedule, most: int) -> Schedule:
    """In the caller's transaction, which has checked what it starts. `most` an account may have; 0: any number.

    Raises: NeverFires; Unprocessable when the account has too many.
    """
    if new.schedule_id and (known := await find(conn, new.schedule_id)):
        return known
    await require_room(conn, new.account_id, most)
    now = await moment(conn)
    row = await conn.fetchrow(
        f"""
        INSERT INTO schedules AS s (
            schedule_id, account_id, workflow_id, thread_id, agent_id, name, description, config, variables, prompt,
            model_name, missed, status, anchor, next_fire_at, created_by
        ) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
        RETURNING {COLUMNS}
        """,
        new.schedule_id or uuid4(),
        new.account_id,
        new.workflow_id,
        new.thread_id,
        new.agent_id,
        new.name,
        new.description,
        as_json(new.config),
        new.variables or {},
        new.prompt,
        new.model_name,
        new.missed,
        "active" if new.config.enabled else "paused",
        anchor_at(now),
        first_time(new.config, now) if new.config.enabled else None,
        new.created_by,
    )
    assert row
    return Schedule(**row)


async def require_room(conn: Connection, account_id: UUID, most: int) -> None:
    """Parallel makers of one account wait for each other. Raises: Unprocessable."""
    if not most:
        return
    await conn.execute(f"SELECT pg_advisory_xact_lock({LOCK})", str(account_id))
    if await conn.fetchval("SELECT count(*) FROM schedules WHERE account_id = $1", account_id) >= most:
        raise Unprocessable(f"This account may have no more schedules: it has {most}.")


async def moment(conn: Executor) -> datetime:
    """What the clock of the database says."""
    now: datetime = await conn.fetchval("SELECT clock_timestamp()")
    return now


def as_json(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_none=True, exclude={"enabled"})


def anchor_at(now: datetime) -> datetime:
    """Simple intervals are met at whole minutes."""
    return now.astimezone(UTC).replace(second=0, microsecond=0)


def first_time(config: Config, now: datetime) -> datetime:
    """Raises: NeverFires."""
    found = config.timetable(anchor_at(now)).after(now)
    if found is None:
        raise NeverFires
    return found


async def find(conn: Executor, schedule_id: UUID) -> Schedule | None:
    row = await conn.fetchrow(f"SELECT {COLUMNS} FROM schedules s WHERE schedule_id = $1", schedule_id)
    return Schedule(**row) if row else None


async def get(conn: Executor, account_id: UUID, schedule_id: UUID, locking: str = "") -> Schedule:
    """Raises: NotFound, alike for a schedule that is somebody else's and one that is not there."""
    query = f"SELECT {COLUMNS} FROM schedules s WHERE schedule_id = $1 AND account_id = $2 {locking}"
    row = await conn.fetchrow(query, schedule_id, account_id)
    if not row:
        raise NotFound(MISSING)
    return Schedule(**row)


async def lock(conn: Connection, account_id: UUID, schedule_id: UUID) -> Schedule:
    """As `get`, for a change: nobody fires it meanwhile."""
    return await get(conn, account_id, schedule_id, "FOR NO KEY UPDATE")


async def page(
    conn: Executor, account_id: UUID, *, workflow_id: UUID | None, limit: int, offset: int
) -> tuple[list[Schedule], int]:
    """The account's schedules, newest first, and how many there are."""
    wanted = "account_id = $1 AND ($2::uuid IS NULL OR workflow_id = $2)"
    rows = await conn.fetch(
        f"""
        SELECT {COLUMNS} FROM schedules s WHERE {wanted}
        ORDER BY created_at DESC, schedule_id DESC LIMIT $3 OFFSET $4
        """,
        account_id,
        workflow_id,
        limit,
        offset,
    )
    total: int = await conn.fetchval(f"SELECT count(*) FROM schedules WHERE {wanted}", account_id, workflow_id)
    return [Schedule(**row) for row in rows], total


async def change(
    conn: Connection, schedule: Schedule, details: Mapping[str, Any], config: Config | None = None
) -> Schedule:
    """Change one that is locked. Another config begins anew: what was missed under the old one is not made up for.

    Raises: NeverFires.
    """
    news = {name: value for name, value in details.items() if name in DETAILS}
    if config:
        news |= await restarted(conn, schedule, config)
    if not news:
        return schedule
    settings = ", ".join(f"{name} = ${number}" for number, name in enumerate(news, 2))
    row = await conn.fetchrow(
        f"""
        UPDATE schedules s SET {settings}, revision = revision + 1, updated_at = now() WHERE schedule_id = $1
        RETURNING {COLUMNS}
        """,
        schedule.schedule_id,
        *news.values(),
    )
    assert row
    return Schedule(**row)


async def restarted(conn: Connection, schedule: Schedule, config: Config) -> dict[str, Any]:
    now = await moment(conn)
    wanted = as_json(config)
    same = wanted == schedule.config
    anchor = schedule.anchor if same else anchor_at(now)
    following = config.timetable(anchor).after(now)
    if following is None:
        raise NeverFires
    if config.max_executions and config.max_executions <= schedule.execution_count:
        raise NeverFires(f"max_executions: it has fired {schedule.execution_count} times")
    if config.enabled and same and schedule.status == "active":
        return {}
    status = "active" if config.enabled else "paused"
    next_fire_at = following if config.enabled else None
    return {"config": wanted, "anchor": anchor, "status": status, "next_fire_at": next_fire_at}


async def set_enabled(conn: Connection, schedule: Schedule, enabled: bool) -> Schedule:
    """Pause or resume one that is locked; what it misses while it is paused is not made up for. Raises: Conflict."""
    if schedule.status == "completed":
        raise Conflict(ENDED)
    if (schedule.status == "active") == enabled:
        return schedule
    following = schedule.timetable.after(await moment(conn)) if enabled else None
    if enabled and following is None:
        raise Conflict(ENDED)
    row = await conn.fetchrow(
        f"""
        UPDATE schedules s SET status = $2, next_fire_at = $3, claimed_until = NULL, revision = revision + 1,
            updated_at = now()
        WHERE schedule_id = $1 RETURNING {COLUMNS}
        """,
        schedule.schedule_id,
        "active" if enabled else "paused",
        following,
    )
    assert row
    return Schedule(**row)


async def delete(conn: Connection, account_id: UUID, schedule_id: UUID) -> None:
    """Raises: NotFound."""
    statement = "DELETE FROM schedules WHERE schedule_id = $1 AND account_id = $2 RETURNING true"
    if not await conn.fetchval(statement, schedule_id, account_id):
        raise NotFound(MISSING)
