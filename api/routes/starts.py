"""Starting runs: on a new project, on a thread, once more."""

from datetime import timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, Field, model_validator

from agent.catalog import resolve_model
from api.auth import Caller
from api.deps import CallerDep, Resources, ResourcesDep
from api.errors import invalid, validated
from api.fields import Metadata, Prompt, Text, WebAddress
from api.idempotency import KeyHeader, request_key
from api.uploads import Form, read_form
from services import agents, messages, projects, threads, uploads, workflow_executions
from services.agents import Agent
from services.billing.gate import Gate
from services.errors import Conflict, NotFound, Unprocessable
from services.messages import NewMessage
from services.postgres import Connection
from services.runs import footing, starting, store
from services.runs.starting import NewRun, Started
from services.runs.store import Run
from services.settings import Settings
from services.threads import Thread

router = APIRouter(tags=["runs"])

MAX_DELAY_SECONDS = 30 * 24 * 3600
MAX_EXPIRY_SECONDS = 366 * 24 * 3600
PROJECT_NAME_CHARS = 50
OPTIONS_OF_RUN = ("enable_thinking", "reasoning_effort", "stream", "enable_context_manager")
OPTIONS_OF_THREAD = ("is_agent_builder", "target_agent_id")


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
        return timedelta(seconds=self.delay_seconds) or None

    @property
    def settings(self) -> dict[str, Any]:
        """What the worker needs to know of the request, as JSON."""
        return self.model_dump(mode="json", include=set(OPTIONS_OF_RUN))

    @property
    def fields(self) -> dict[str, Any]:
        """What was asked for, as JSON: a field that says its default is like one that is absent."""
        return self.model_dump(mode="json", exclude_defaults=True)


class StartRequest(RunOptions):
    on_active: Literal["stop", "reject", "queue"] = "stop"
    expires_in: float | None = Field(None, gt=0, le=MAX_EXPIRY_SECONDS, allow_inf_nan=False)

    @property
    def expiry(self) -> timedelta | None:
        return timedelta(seconds=self.expires_in) if self.expires_in else None

    def check(self) -> None:
        """Raises: RequestValidationError for fields that cannot be had together."""
        if self.delay and self.on_active == "reject":
            raise invalid("on_active", "reject cannot be combined with delay_seconds: it would be judged when due")
        if self.delay and self.expiry and self.expiry <= self.delay:
            raise invalid("expires_in", "must be more than delay_seconds: the run would expire before it may start")


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
    """The agent that all runs of a thread begun with `is_agent_builder` are there to change."""
    metadata: Annotated[Metadata, BeforeValidator(parse_json_text)] = Field(default_factory=dict)

    @property
    def thread_metadata(self) -> dict[str, Any]:
        return self.model_dump(mode="json", include=set(OPTIONS_OF_THREAD)) if self.is_agent_builder else {}


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
async def initiate(
    request: Request, caller: CallerDep, resources: ResourcesDep, idempotency_key: KeyHeader = None
) -> Initiated:
    """A new project with a thread, its first message, the files that came along, and a run, or nothing of it."""
    async with read_form(request, resources.settings.api) as form:
        asked = initiate_fields(form, resources.settings)
        files = [(upload.name, upload.size, upload.sha256.hex()) for upload in form.uploads]
        key = request_key(caller, "initiate", idempotency_key, fields=asked.fields, files=files)

        async def make(conn: Connection, run_id: UUID) -> Started:
            model_name = model_of(resources.settings, asked.model_name)
            return await store_initiated(conn, run_id, caller, asked, model_name, form, resources)

        run = await starting.begin(resources.stores, caller.account_id, make, key)
    return Initiated(thread_id=run.thread_id, agent_run_id=run.id, project_id=run.project_id)


def initiate_fields(form: Form, settings: Settings) -> InitiateForm:
    """An empty field of a form counts as absent. Raises: RequestValidationError."""
    asked = validated(InitiateForm, {name: value for name, value in form.fields.items() if value or name == "prompt"})
    if len(asked.prompt) > settings.api.max_prompt_chars:
        raise invalid("prompt", f"must be at most {settings.api.max_prompt_chars} characters")
    if asked.is_agent_builder and not asked.target_agent_id:
        raise invalid("target_agent_id", "must name the agent that is_agent_builder is to change")
    return asked


def model_of(settings: Settings, name: str | None) -> str:
    """Raises: RequestValidationError naming `model_name`."""
    try:
        return resolve_model(settings, name)
    except Unprocessable as error:
        raise invalid("model_name", str(error)) from error


async def store_initiated(
    conn: Connection,
    run_id: UUID,
    caller: Caller,
    asked: InitiateForm,
    model_name: str,
    form: Form,
    resources: Resources,
) -> Started:
    await check_billing(conn, resources.gate, caller, model_name)
    project = await projects.create(conn, caller.account_id, project_name(asked.prompt))
    thread = await threads.create(conn, caller.account_id, project.project_id, asked.thread_metadata)
    agent = await chosen_agent(conn, caller, asked, thread, await agents.default_of(conn, caller.account_id))
    first = NewMessage("user", {"role": "user", "content": text_with_uploads(asked.prompt, form)})
    await messages.add(conn, thread.thread_id, [first])
    new = new_run(run_id, caller, thread, asked, model_name, agent)
    started = await starting.start(conn, new, resources.settings.limits)
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
    thread_id: UUID,
    caller: CallerDep,
    resources: ResourcesDep,
    body: StartRequest | None = None,
    idempotency_key: KeyHeader = None,
) -> StartedOut:
    asked = body or StartRequest()
    asked.check()
    key = request_key(caller, "start", idempotency_key, thread_id=thread_id, fields=asked.fields)

    async def make(conn: Connection, run_id: UUID) -> Started:
        model_name = model_of(resources.settings, asked.model_name)
        thread, default = await footing.take(conn, caller.account_id, thread_id)
        await check_billing(conn, resources.gate, caller, model_name)
        agent = await chosen_agent(conn, caller, asked, thread, default)
        new = new_run(run_id, caller, thread, asked, model_name, agent)
        return await starting.start(conn, new, resources.settings.limits)

    return shown_start(await starting.begin(resources.stores, caller.account_id, make, key))


def shown_start(run: Run) -> StartedOut:
    return StartedOut(agent_run_id=run.id, status=run.public_status, phase=run.phase)


async def check_billing(conn: Connection, gate: Gate, caller: Caller, model_name: str) -> None:
    """Raises: PaymentRequired, Forbidden."""
    (await gate.may_run(conn, caller.account_id, model_name)).enforce()


async def chosen_agent(
    conn: Connection, caller: Caller, asked: RunOptions, thread: Thread, default: Agent | None
) -> Agent | None:
    """The agent that the run works as, in the version that is current now: the account's default when none is named.

    A run that builds an agent works as none. Raises: NotFound for either agent.
    """
    named = await agents.get(conn, caller.account_id, asked.agent_id) if asked.agent_id else None
    if thread.metadata.get("is_agent_builder"):
        await agents.get(conn, caller.account_id, UUID(thread.metadata["target_agent_id"]))
        return None
    return named or default


def new_run(
    run_id: UUID, caller: Caller, thread: Thread, asked: RunOptions, model_name: str, agent: Agent | None
) -> NewRun:
    of_thread = {name: thread.metadata[name] for name in OPTIONS_OF_THREAD if name in thread.metadata}
    return NewRun(
        run_id=run_id,
        account_id=caller.account_id,
        project_id=thread.project_id,
        thread_id=thread.thread_id,
        model_name=model_name,
        created_by=caller.user_id,
        agent_id=agent.agent_id if agent else None,
        agent_version_id=agent.current_version_id if agent else None,
        settings={**asked.settings, **of_thread},
        metadata=asked.metadata,
        webhook_url=asked.webhook_url,
        priority=asked.priority,
        on_active=asked.on_active if isinstance(asked, StartRequest) else "stop",
        delay=asked.delay,
        expires_in=asked.expiry if isinstance(asked, StartRequest) else None,
    )


@router.post("/agent-run/{run_id}/retry")
async def retry_run(run_id: UUID, caller: CallerDep, resources: ResourcesDep) -> StartedOut:
    """A new run over the thread and with the settings of one that has ended, neither delayed nor expiring."""

    async def make(conn: Connection, new_id: UUID) -> Started:
        run = await ended_run(conn, caller, run_id)
        model_name = model_of(resources.settings, run.model_name)
        await check_billing(conn, resources.gate, caller, model_name)
        agent_id = run.settings.get("agent_id") or run.agent_id
        version_id = await agents.current_version(conn, caller.account_id, UUID(str(agent_id))) if agent_id else None
        again = run_again(run, new_id, caller, model_name, version_id)
        if run.kind == "workflow":
            return await workflow_executions.start_again(conn, run, again, resources.settings.limits)
        return await starting.start(conn, again, resources.settings.limits)

    return shown_start(await starting.begin(resources.stores, caller.account_id, make))


async def ended_run(conn: Connection, caller: Caller, run_id: UUID) -> Run:
    """Raises: NotFound, Forbidden as a start on its thread; Conflict `{message, agent_run_id}` until it is final."""
    await threads.writable_by_runs(conn, caller.account_id, [run_id])
    run = await store.get(conn, run_id)
    if run is None:
        raise NotFound(threads.MISSING_RUN)
    if not run.final:
        raise Conflict({"message": "This run has not finished yet.", "agent_run_id": str(run_id)})
    return run


def run_again(run: Run, new_id: UUID, caller: Caller, model_name: str, version_id: UUID | None) -> NewRun:
    return NewRun(
        run_id=new_id,
        kind=run.kind,
        account_id=run.account_id,
        project_id=run.project_id,
        thread_id=run.thread_id,
        model_name=model_name,
        created_by=caller.user_id,
        agent_id=run.agent_id,
        agent_version_id=version_id,
        settings=run.settings,
        metadata=run.metadata,
        webhook_url=run.webhook_url,
        priority=run.priority,
        on_active=run.on_active,
    )
