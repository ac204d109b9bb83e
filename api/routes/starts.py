"""Starting runs: on a new project, on a thread."""

from datetime import timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, Field, model_validator

from agent.catalog import resolve_model
from api.auth import Caller
from api.deps import CallerDep, ResourcesDep
from api.errors import invalid, validated
from api.fields import Metadata, Prompt, Text, WebAddress
from api.uploads import Form, read_form
from services import agents, messages, projects, threads, uploads
from services.errors import Unprocessable
from services.messages import NewMessage
from services.postgres import Connection, transaction
from services.runs import starting, stopping
from services.runs.starting import NewRun, Started
from services.runs.stores import Stores
from services.settings import Settings
from services.threads import Thread

router = APIRouter(tags=["runs"])

MAX_DELAY_SECONDS = 30 * 24 * 3600
MAX_EXPIRY_SECONDS = 366 * 24 * 3600
PROJECT_NAME_CHARS = 50
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


class Initiated(BaseModel):
    thread_id: UUID
    agent_run_id: UUID
    project_id: UUID


class StartedOut(BaseModel):
    agent_run_id: UUID
    status: str
    phase: str


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
