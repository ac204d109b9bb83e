"""Runs: start, stop, look, list."""

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

import orjson
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, BeforeValidator, Field, model_validator

from agent.catalog import resolve_model
from api.auth import Caller
from api.deps import CallerDep, PoolDep, ResourcesDep
from api.errors import invalid, validated
from api.fields import Metadata, Prompt, Text, WebAddress
from api.paging import MAX_ROWS, LimitQuery, decode_moment, encode_moment
from api.uploads import Form, read_form
from services import agents, messages, projects, threads, uploads
from services.errors import NotFound, Unprocessable
from services.messages import NewMessage
from services.postgres import Connection, transaction
from services.runs import starting, stopping, store, waiting
from services.runs.starting import NewRun, Started
from services.runs.store import Run
from services.runs.stores import Stores
from services.settings import Settings
from services.threads import Thread

router = APIRouter(tags=["runs"])

MAX_DELAY_SECONDS = 30 * 24 * 3600
MAX_EXPIRY_SECONDS = 366 * 24 * 3600
MAX_STOPS = 1000
PROJECT_NAME_CHARS = 50

Status = Literal["running", "completed", "failed", "stopped"]
Phase = Literal["waiting", "queued", "running", "stopping", "completed", "failed", "stopped"]
OPTIONS_OF_RUN = (
    "enable_thinking",
    "reasoning_effort",
    "stream",
    "enable_context_manager",
    "is_agent_builder",
    "target_agent_id",
)


class RunOptions(BaseModel):
    model_name: Text | None = None
    enable_thinking: bool = False
    reasoning_effort: Literal["minimal", "low", "medium", "high"] = "low"
    stream: bool = True
    enable_context_manager: bool = False
    agent_id: UUID | None = None
    delay_seconds: float = Field(0, ge=0, le=MAX_DELAY_SECONDS, allow_inf_nan=False)
    priority: int = Field(5, ge=0, le=9)
    metadata: Metadata = Field(default_factory=dict)
    webhook_url: WebAddress | None = None

    @model_validator(mode="before")
    @classmethod
    def take_null_as_absent(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None}

    @property
    def delay(self) -> timedelta | None:
        return timedelta(seconds=self.delay_seconds) if self.delay_seconds else None

    @property
    def settings(self) -> dict[str, Any]:
        """What the worker needs to know of the request, as JSON."""
        return self.model_dump(mode="json", include=set(OPTIONS_OF_RUN))


class StartRequest(RunOptions):
    on_active: Literal["stop", "reject", "queue"] = "stop"
    expires_in: float | None = Field(None, gt=0, le=MAX_EXPIRY_SECONDS, allow_inf_nan=False)

    @property
    def expiry(self) -> timedelta | None:
        return timedelta(seconds=self.expires_in) if self.expires_in else None


def parse_json_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise ValueError("must be a JSON object") from error


class InitiateForm(RunOptions):
    """The fields of POST /agent/initiate; its files stand beside them."""

    prompt: Prompt
    is_agent_builder: bool = False
    target_agent_id: UUID | None = None
    metadata: Annotated[Metadata, BeforeValidator(parse_json_text)] = Field(default_factory=dict)


class StopRequest(BaseModel):
    ids: list[UUID] = Field(min_length=1, max_length=MAX_STOPS)


class Initiated(BaseModel):
    thread_id: UUID
    agent_run_id: UUID
    project_id: UUID


class StartedOut(BaseModel):
    agent_run_id: UUID
    status: str
    phase: str


class Stopped(BaseModel):
    status: str


class StoppedRun(Stopped):
    id: UUID


class StoppedMany(Stopped):
    agent_runs: list[StoppedRun]


class RunOut(BaseModel):
    id: UUID
    thread_id: UUID
    status: str
    phase: str
    started_at: datetime
    completed_at: datetime | None
    error: str | None
    created_at: datetime
    updated_at: datetime


class RunDetail(BaseModel):
    id: UUID
    threadId: UUID
    status: str
    startedAt: datetime
    completedAt: datetime | None
    error: str | None
    phase: str
    model_name: str
    attempt: int
    usage: dict[str, Any]
    metadata: dict[str, Any]


class ActiveRun(BaseModel):
    id: UUID
    thread_id: UUID
    status: str
    phase: str
    started_at: datetime


class RunsOfThread(BaseModel):
    agent_runs: list[RunOut]


class RunPage(RunsOfThread):
    next_cursor: str | None


class ActiveRuns(BaseModel):
    active_runs: list[ActiveRun]


def shown_run(run: Run) -> RunOut:
    return RunOut(
        id=run.id,
        thread_id=run.thread_id,
        status=run.public_status,
        phase=run.phase,
        started_at=run.started_at or run.created_at,
        completed_at=run.completed_at,
        error=run.error,
        created_at=run.created_at,
        updated_at=run.updated_at,
    )


def shown_detail(run: Run) -> RunDetail:
    return RunDetail(
        id=run.id,
        threadId=run.thread_id,
        status=run.public_status,
        startedAt=run.started_at or run.created_at,
        completedAt=run.completed_at,
        error=run.error,
        phase=run.phase,
        model_name=run.model_name,
        attempt=run.attempt,
        usage=run.usage,
        metadata=run.metadata,
    )


def status_after_stop(run: Run) -> str:
    """A run whose stop is committed can only end `stopped`; one that had ended says how."""
    return run.status if run.final else "stopped"


INITIATE_SCHEMA = InitiateForm.model_json_schema()
INITIATE_SCHEMA["properties"]["files"] = {"type": "array", "items": {"type": "string", "format": "binary"}}


@router.post(
    "/agent/initiate",
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": INITIATE_SCHEMA}}}},
)
async def initiate(request: Request, caller: CallerDep, resources: ResourcesDep) -> Initiated:
    """A new project with a thread, its first message, the files that came along, and a run, or nothing of it."""
    async with read_form(request, resources.settings.api) as form:
        asked = initiate_fields(form, resources.settings)
        model_name = model_of(resources.settings, asked)
        async with transaction(resources.pool) as conn:
            started = await store_initiated(conn, caller, asked, model_name, form)
    await send(resources.stores, started)
    run = started.run
    return Initiated(thread_id=run.thread_id, agent_run_id=run.id, project_id=run.project_id)


def initiate_fields(form: Form, settings: Settings) -> InitiateForm:
    """An empty field of a form counts as absent. Raises: RequestValidationError."""
    asked = validated(InitiateForm, {name: value for name, value in form.fields.items() if value or name == "prompt"})
    if len(asked.prompt) > settings.api.max_prompt_chars:
        raise invalid("prompt", f"must be at most {settings.api.max_prompt_chars} characters")
    return asked


def model_of(settings: Settings, asked: RunOptions) -> str:
    try:
        return resolve_model(settings, asked.model_name)
    except Unprocessable as error:
        raise invalid("model_name", str(error)) from error


async def store_initiated(
    conn: Connection, caller: Caller, asked: InitiateForm, model_name: str, form: Form
) -> Started:
    version_id = await pinned_version(conn, caller, asked.agent_id)
    await pinned_version(conn, caller, asked.target_agent_id)
    project = await projects.create(conn, caller.account_id, project_name(asked.prompt))
    thread = await threads.create(conn, caller.account_id, project.project_id)
    first = NewMessage("user", {"role": "user", "content": text_with_uploads(asked.prompt, form)})
    await messages.add(conn, thread.thread_id, [first])
    started = await starting.start(conn, new_run(caller, thread, asked, model_name, version_id))
    await uploads.store(conn, project.project_id, started.run.id, form.uploads)
    return started


def project_name(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= PROJECT_NAME_CHARS else f"{line[:PROJECT_NAME_CHARS].rstrip()}…"


def text_with_uploads(prompt: str, form: Form) -> str:
    named = [f"[Uploaded File: /workspace/{upload.name}]" for upload in form.uploads]
    return "\n".join([f"{prompt}\n", *named]) if named else prompt


@router.post("/thread/{thread_id}/agent/start")
async def start_run(
    thread_id: UUID, caller: CallerDep, resources: ResourcesDep, body: StartRequest | None = None
) -> StartedOut:
    asked = body or StartRequest()
    if asked.on_active == "reject" and asked.delay:
        raise invalid("on_active", "reject cannot be combined with delay_seconds: it would be judged when due")
    model_name = model_of(resources.settings, asked)
    async with transaction(resources.pool) as conn:
        thread = await threads.writable(conn, caller.account_id, thread_id)
        version_id = await pinned_version(conn, caller, asked.agent_id)
        started = await starting.start(conn, new_run(caller, thread, asked, model_name, version_id))
    await send(resources.stores, started)
    return StartedOut(agent_run_id=started.run.id, status=started.run.public_status, phase=started.run.phase)


async def pinned_version(conn: Connection, caller: Caller, agent_id: UUID | None) -> UUID | None:
    return await agents.current_version(conn, caller.account_id, agent_id) if agent_id else None


def new_run(caller: Caller, thread: Thread, asked: RunOptions, model_name: str, version_id: UUID | None) -> NewRun:
    return NewRun(
        account_id=caller.account_id,
        project_id=thread.project_id,
        thread_id=thread.thread_id,
        model_name=model_name,
        created_by=caller.user_id,
        agent_id=asked.agent_id,
        agent_version_id=version_id,
        settings=asked.settings,
        metadata=asked.metadata,
        webhook_url=asked.webhook_url,
        priority=asked.priority,
        on_active=asked.on_active if isinstance(asked, StartRequest) else "stop",
        delay=asked.delay,
        expires_in=asked.expiry if isinstance(asked, StartRequest) else None,
    )


async def send(stores: Stores, started: Started) -> None:
    """After the commit: tell the drivers of what was stopped, and wake a worker unless the run is delayed.

    One that waits for an earlier run is sent too: that one may have ended before this start was committed.
    """
    await stopping.announce(stores, started.stopped)
    if started.run.not_before is None:
        stores.dispatch.send_run(started.run)


@router.post("/agent-run/{run_id}/stop")
async def stop_run(run_id: UUID, caller: CallerDep, resources: ResourcesDep) -> Stopped:
    """Answers once the stop is committed; a run that had ended answers its own status."""
    await threads.writable_by_runs(resources.pool, caller.account_id, [run_id])
    return Stopped(status=status_after_stop(await stopping.request_stop(resources.stores, run_id)))


@router.post("/agent-runs/stop")
async def stop_runs(asked: StopRequest, caller: CallerDep, resources: ResourcesDep) -> StoppedMany:
    """All or, when one of them is not the caller's, none."""
    run_ids = list(dict.fromkeys(asked.ids))
    await threads.writable_by_runs(resources.pool, caller.account_id, run_ids)
    stopped = {run.id: run for run in await stopping.request_stops(resources.stores, run_ids)}
    async with resources.pool.acquire() as conn:
        runs = [stopped.get(run_id) or await store.get(conn, run_id) for run_id in run_ids]
    return StoppedMany(
        status="stopped", agent_runs=[StoppedRun(id=run.id, status=status_after_stop(run)) for run in runs if run]
    )


async def stop_live_runs(
    stores: Stores, account_id: UUID, *, thread_id: UUID | None = None, project_id: UUID | None = None
) -> None:
    """Stop whatever is not final of a thread or project that is about to be deleted."""
    live = await store.list_runs(
        stores.pool, account_id, status="running", thread_id=thread_id, project_id=project_id, limit=MAX_ROWS
    )
    if live:
        await stopping.request_stops(stores, [run.id for run in live])


@router.get("/agent-run/{run_id}")
async def get_run(
    run_id: UUID,
    caller: CallerDep,
    resources: ResourcesDep,
    wait_seconds: Annotated[float, Query(ge=0, le=60, allow_inf_nan=False)] = 0,
) -> RunDetail:
    """With `wait_seconds`: when the run is final, or when the time is over."""
    await threads.readable_by_run(resources.pool, caller.account_id, run_id)
    if wait_seconds:
        return shown_detail(await waiting.until_final(resources.stores, run_id, wait_seconds))
    run = await store.get(resources.pool, run_id)
    if run is None:
        raise NotFound(threads.MISSING_RUN)
    return shown_detail(run)


@router.get("/thread/{thread_id}/agent-runs")
async def list_runs_of_thread(thread_id: UUID, caller: CallerDep, pool: PoolDep) -> RunsOfThread:
    async with pool.acquire() as conn:
        thread = await threads.readable(conn, caller.account_id, thread_id)
        runs = await store.list_runs(conn, thread.account_id, thread_id=thread_id, limit=MAX_ROWS)
    return RunsOfThread(agent_runs=[shown_run(run) for run in runs])


@router.get("/agent-runs")
async def list_runs(
    caller: CallerDep,
    pool: PoolDep,
    status: Status | None = None,
    phase: Phase | None = None,
    thread_id: UUID | None = None,
    project_id: UUID | None = None,
    limit: LimitQuery = 50,
    cursor: str | None = None,
) -> RunPage:
    """The account's runs, newest first. `status=running` means all that is not final; `phase` is exact."""
    before = None if cursor is None else decode_moment(cursor)
    async with pool.acquire() as conn:
        runs = await store.list_runs(
            conn,
            caller.account_id,
            status=status,
            phase=phase,
            thread_id=thread_id,
            project_id=project_id,
            before=before,
            limit=limit + 1,
        )
    shown, more = runs[:limit], len(runs) > limit
    next_cursor = encode_moment(shown[-1].created_at, shown[-1].id) if more else None
    return RunPage(agent_runs=[shown_run(run) for run in shown], next_cursor=next_cursor)


@router.get("/agent-runs/active")
async def list_active_runs(caller: CallerDep, pool: PoolDep) -> ActiveRuns:
    async with pool.acquire() as conn:
        runs = await store.list_runs(conn, caller.account_id, status="running", limit=MAX_ROWS)
    return ActiveRuns(
        active_runs=[
            ActiveRun(
                id=run.id,
                thread_id=run.thread_id,
                status=run.public_status,
                phase=run.phase,
                started_at=run.started_at or run.created_at,
            )
            for run in runs
        ]
    )
