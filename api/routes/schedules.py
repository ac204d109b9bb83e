"""Schedules: made, changed, looked at. Also served under /v1."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from agent.workflows import beginning
from agent.workflows.beginning import Asked
from agent.workflows.inputs import BadInput
from api.auth import Caller
from api.deps import CallerDep, PoolDep, Resources, ResourcesDep
from api.errors import invalid
from api.fields import Prompt, Text
from api.paging import PageQuery, decode_moment, encode_moment
from api.routes.executions import not_too_many
from api.routes.projects import Deleted
from api.routes.starts import model_of, project_name
from services import agents, projects, threads, workflows
from services.agent_fields import Description, Name
from services.errors import Conflict
from services.postgres import Connection, transaction
from services.schedules import firings, store, times
from services.schedules.config import Config, Missed, zone_of
from services.schedules.firings import Firing
from services.schedules.store import NeverFires, NewSchedule, Schedule
from services.schedules.templates import TEMPLATES
from services.schedules.times import BadCron, Cron

router = APIRouter(prefix="/schedules", tags=["schedules"])

MAX_SCHEDULES, MAX_LOGS = 100, 100
SHOWN_TIMES = 5

SchedulesQuery = Annotated[int, Query(ge=1, le=MAX_SCHEDULES)]
LogsQuery = Annotated[int, Query(ge=1, le=MAX_LOGS)]
Variables = Annotated[dict[str, Any], AfterValidator(not_too_many)]


class SchedulePatch(BaseModel):
    name: Name | None = None
    description: Description | None = None
    config: Config | None = None
    variables: Variables | None = None
    prompt: Prompt | None = None
    agent_id: UUID | None = None
    model_name: Text | None = None
    missed: Missed | None = None

    @property
    def details(self) -> dict[str, Any]:
        return {name: value for name in store.DETAILS if (value := getattr(self, name)) is not None}


class ScheduleIn(SchedulePatch):
    """A workflow with its variables, or a prompt that is said on a thread; without `thread_id` on a new one."""

    name: Name = "Schedule"
    config: Config
    workflow_id: UUID | None = None
    thread_id: UUID | None = None


class ScheduleOut(BaseModel):
    """`sync`: `pending` while QStash does not know of the last change yet; `sync_error` says why, if it failed."""

    id: UUID
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
    missed: str
    status: str
    sync: str
    sync_error: str | None
    next_execution: datetime | None
    last_execution: datetime | None
    execution_count: int
    error_count: int
    created_at: datetime
    updated_at: datetime


class SchedulePage(BaseModel):
    schedules: list[ScheduleOut]
    total: int
    page: int
    page_size: int


class LogOut(BaseModel):
    """What came of a fire time: `started`, `skipped` or `failed`; `run_status` is how what it started stands."""

    id: UUID
    schedule_id: UUID
    scheduled_time: datetime
    actual_time: datetime
    status: str
    agent_run_id: UUID | None
    execution_id: UUID | None
    run_status: str | None
    completed_at: datetime | None
    error: str | None


class LogPage(BaseModel):
    logs: list[LogOut]
    next_cursor: str | None


class CronIn(BaseModel):
    cron_expression: Annotated[str, StringConstraints(max_length=1_000)]
    timezone: Annotated[str, StringConstraints(max_length=1_000)] = "UTC"


class CronOut(BaseModel):
    valid: bool
    cron_expression: str
    next_executions: list[datetime] = Field(default_factory=list)
    description: str | None = None
    error: str | None = None


class TemplateOut(BaseModel):
    id: str
    name: str
    description: str
    icon: str
    category: str
    config: dict[str, Any]


class Templates(BaseModel):
    templates: list[TemplateOut]


def shown(resources: Resources, schedule: Schedule) -> ScheduleOut:
    remote = resources.settings.schedules.backend == "qstash"
    pending = remote and schedule.told_revision != schedule.revision
    return ScheduleOut(
        id=schedule.schedule_id,
        account_id=schedule.account_id,
        workflow_id=schedule.workflow_id,
        thread_id=schedule.thread_id,
        agent_id=schedule.agent_id,
        name=schedule.name,
        description=schedule.description,
        config={**schedule.config, "enabled": schedule.status == "active"},
        variables=schedule.variables,
        prompt=schedule.prompt,
        model_name=schedule.model_name,
        missed=schedule.missed,
        status=schedule.status,
        sync="pending" if pending else "ready",
        sync_error=schedule.telling_error if pending else None,
        next_execution=schedule.next_fire_at,
        last_execution=schedule.last_fired_at,
        execution_count=schedule.execution_count,
        error_count=schedule.error_count,
        created_at=schedule.created_at,
        updated_at=schedule.updated_at,
    )


def shown_log(found: Firing) -> LogOut:
    return LogOut(
        id=found.firing_id,
        schedule_id=found.schedule_id,
        scheduled_time=found.fire_time,
        actual_time=found.created_at,
        status=found.status,
        agent_run_id=found.agent_run_id,
        execution_id=found.execution_id,
        run_status=found.run_status,
        completed_at=found.completed_at,
        error=found.error,
    )


@router.post("")
async def create_schedule(asked: ScheduleIn, caller: CallerDep, resources: ResourcesDep) -> ScheduleOut:
    """A schedule of a workflow or of an agent; 422 names the field that is wrong."""
    check_target(asked)
    check_model(resources, asked)
    async with transaction(resources.pool) as conn:
        places = await places_of(conn, resources, caller, asked)
        new = NewSchedule(
            account_id=caller.account_id,
            config=asked.config,
            created_by=caller.user_id,
            **places,
            **asked.details,
        )
        try:
            made = await store.create(conn, new, resources.settings.schedules.max_per_account)
        except NeverFires as error:
            raise invalid("config", str(error)) from error
    return shown(resources, made)


def check_target(asked: ScheduleIn) -> None:
    """Raises: RequestValidationError for a schedule of nothing, or of both."""
    if asked.workflow_id and (asked.thread_id or asked.prompt or asked.agent_id):
        raise invalid("workflow_id", "cannot be had together with thread_id, prompt or agent_id")
    if not asked.workflow_id and not asked.prompt:
        raise invalid("prompt", "is required, or workflow_id")


def check_model(resources: Resources, asked: SchedulePatch) -> None:
    if asked.model_name:
        model_of(resources.settings, asked.model_name)
    if asked.prompt and len(asked.prompt) > resources.settings.api.max_prompt_chars:
        raise invalid("prompt", f"must be at most {resources.settings.api.max_prompt_chars} characters")


async def places_of(conn: Connection, resources: Resources, caller: Caller, asked: ScheduleIn) -> Mapping[str, Any]:
    """Raises: NotFound, Forbidden; RequestValidationError naming the variable."""
    if asked.workflow_id:
        await check_variables(conn, resources, caller, asked.workflow_id, asked.variables or {})
        return {"workflow_id": asked.workflow_id}
    if asked.agent_id:
        await agents.get(conn, caller.account_id, asked.agent_id)
    if asked.thread_id:
        return {"thread_id": (await threads.writable(conn, caller.account_id, asked.thread_id)).thread_id}
    project = await projects.create(conn, caller.account_id, project_name(asked.name))
    thread = await threads.create(conn, caller.account_id, project.project_id, {"title": asked.name})
    return {"thread_id": thread.thread_id}


async def check_variables(
    conn: Connection, resources: Resources, caller: Caller, workflow_id: UUID, variables: dict[str, Any]
) -> None:
    """A workflow that cannot be executed yet may be so by then: its variables are judged by what it is now."""
    workflow = await workflows.get(conn, caller.account_id, workflow_id)
    try:
        beginning.new_execution(resources.settings, workflow, Asked(variables=variables))
    except BadInput as error:
        raise invalid(f"variables.{error.name}", str(error)) from error
    except Conflict:
        return


@router.get("")
async def list_schedules(
    caller: CallerDep,
    resources: ResourcesDep,
    workflow_id: UUID | None = None,
    page: PageQuery = 1,
    page_size: SchedulesQuery = 20,
) -> SchedulePage:
    """The account's schedules, newest first; those of one workflow."""
    offset = (page - 1) * page_size
    async with resources.pool.acquire() as conn:
        found, total = await store.page(
            conn, caller.account_id, workflow_id=workflow_id, limit=page_size, offset=offset
        )
    listed = [shown(resources, each) for each in found]
    return SchedulePage(schedules=listed, total=total, page=page, page_size=page_size)


@router.get("/templates")
async def list_schedule_templates(caller: CallerDep) -> Templates:
    """Configs to begin with."""
    return Templates(templates=[TemplateOut.model_validate(each, from_attributes=True) for each in TEMPLATES])


@router.post("/validate/cron")
async def validate_cron(asked: CronIn, caller: CallerDep) -> CronOut:
    """Whether an expression can be used, when it fires next by the clocks of a zone, and what it means in words."""
    try:
        zone, expression = zone_of(asked.timezone), times.read_cron(asked.cron_expression)
        upcoming = times.Timetable(Cron(expression, zone)).upcoming(datetime.now(UTC), SHOWN_TIMES)
        if not upcoming:
            raise BadCron(times.NEVER)
    except ValueError as error:
        return CronOut(valid=False, cron_expression=asked.cron_expression, error=str(error))
    return CronOut(
        valid=True,
        cron_expression=asked.cron_expression,
        next_executions=upcoming,
        description=times.describe(expression),
    )


@router.get("/{schedule_id}")
async def get_schedule(schedule_id: UUID, caller: CallerDep, resources: ResourcesDep) -> ScheduleOut:
    return shown(resources, await store.get(resources.pool, caller.account_id, schedule_id))


@router.put("/{schedule_id}")
async def change_schedule(
    schedule_id: UUID, asked: SchedulePatch, caller: CallerDep, resources: ResourcesDep
) -> ScheduleOut:
    """What is absent or null stays. Another config begins anew."""
    check_model(resources, asked)
    async with transaction(resources.pool) as conn:
        before = await store.lock(conn, caller.account_id, schedule_id)
        await check_change(conn, resources, caller, before, asked)
        try:
            return shown(resources, await store.change(conn, before, asked.details, asked.config))
        except NeverFires as error:
            raise invalid("config", str(error)) from error


async def check_change(
    conn: Connection, resources: Resources, caller: Caller, before: Schedule, asked: SchedulePatch
) -> None:
    """Raises: NotFound; RequestValidationError."""
    if before.workflow_id:
        if asked.prompt or asked.agent_id:
            raise invalid("prompt" if asked.prompt else "agent_id", "a schedule of a workflow has none")
        if asked.variables is not None:
            await check_variables(conn, resources, caller, before.workflow_id, asked.variables)
    elif asked.agent_id:
        await agents.get(conn, caller.account_id, asked.agent_id)


@router.delete("/{schedule_id}")
async def delete_schedule(schedule_id: UUID, caller: CallerDep, resources: ResourcesDep) -> Deleted:
    """With its logs; what it has started goes on."""
    async with transaction(resources.pool) as conn:
        await store.delete(conn, caller.account_id, schedule_id)
    return Deleted(message="Schedule deleted.")


@router.post("/{schedule_id}/pause")
async def pause_schedule(schedule_id: UUID, caller: CallerDep, resources: ResourcesDep) -> ScheduleOut:
    """It fires no more until it is resumed; repeating it changes nothing. One that has ended: 409."""
    return await set_enabled(schedule_id, caller, resources, False)


@router.post("/{schedule_id}/resume")
async def resume_schedule(schedule_id: UUID, caller: CallerDep, resources: ResourcesDep) -> ScheduleOut:
    """It fires at its next time; what it missed while it was paused is not made up for. One that has ended: 409."""
    return await set_enabled(schedule_id, caller, resources, True)


async def set_enabled(schedule_id: UUID, caller: Caller, resources: Resources, enabled: bool) -> ScheduleOut:
    async with transaction(resources.pool) as conn:
        before = await store.lock(conn, caller.account_id, schedule_id)
        return shown(resources, await store.set_enabled(conn, before, enabled))


@router.get("/{schedule_id}/logs")
async def list_firings(
    schedule_id: UUID, caller: CallerDep, pool: PoolDep, limit: LogsQuery = 20, cursor: str | None = None
) -> LogPage:
    """What came of each fire time, newest first."""
    before = None if cursor is None else decode_moment(cursor)
    async with pool.acquire() as conn:
        await store.get(conn, caller.account_id, schedule_id)
        found = await firings.page(conn, schedule_id, before=before, limit=limit + 1)
    page = found[:limit]
    next_cursor = encode_moment(page[-1].created_at, page[-1].firing_id) if len(found) > limit else None
    return LogPage(logs=[shown_log(each) for each in page], next_cursor=next_cursor)
