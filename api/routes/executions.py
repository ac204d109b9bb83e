"""Executions of workflows: begun, looked at, cancelled, followed."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, BaseModel, Field

from agent.workflows import beginning
from agent.workflows.beginning import Asked
from agent.workflows.definition import plain_json
from agent.workflows.inputs import BadInput
from api.auth import Caller
from api.deps import CallerDep, PoolDep, Resources, ResourcesDep
from api.errors import invalid
from api.fields import Metadata, Text, WebAddress
from api.idempotency import KeyHeader, request_key
from api.paging import decode_moment, decode_position, encode_moment
from api.routes.runs import status_after_stop
from api.routes.starts import check_billing
from api.routes.streams import STREAM_ANSWERS, FollowerDep, follow
from api.sse import EventStream
from services import workflow_executions, workflow_steps, workflows
from services.errors import Conflict, Unprocessable
from services.postgres import Connection, dump_json
from services.runs import starting, stopping
from services.runs.starting import Started
from services.workflow_executions import NewExecution, ShownExecution
from services.workflow_steps import Visit
from services.workflows import Workflow

router = APIRouter(prefix="/workflows", tags=["workflows"])

MAX_EXECUTIONS = 100
MAX_STEPS = 1000
MAX_VARIABLES_BYTES = 64 * 1024
NOT_BEGUN = "This execution has not been picked up by a worker yet."

ExecutionsQuery = Annotated[int, Query(ge=1, le=MAX_EXECUTIONS)]
StepsQuery = Annotated[int, Query(ge=1, le=MAX_STEPS)]


def not_too_many(value: dict[str, Any]) -> dict[str, Any]:
    if len(dump_json(plain_json(value))) > MAX_VARIABLES_BYTES:
        raise ValueError(f"must be at most {MAX_VARIABLES_BYTES} bytes of JSON")
    return value


class ExecuteRequest(BaseModel):
    """`on_active` is what becomes of unfinished runs of the workflow's project; unlike a start, it waits for them."""

    variables: Annotated[dict[str, Any], AfterValidator(not_too_many)] = Field(default_factory=dict)
    model_name: Text | None = None
    on_active: Literal["stop", "reject", "queue"] = "queue"
    priority: int = Field(5, ge=0, le=9)
    metadata: Metadata = Field(default_factory=dict)
    webhook_url: WebAddress | None = None


class Executed(BaseModel):
    execution_id: UUID
    thread_id: UUID
    agent_run_id: UUID
    status: str
    message: str


class ExecutionOut(BaseModel):
    """`status` and `phase` are those of the run; `waiting` also before a worker has picked the execution up."""

    execution_id: UUID
    workflow_id: UUID
    workflow_version: int
    agent_run_id: UUID | None
    thread_id: UUID | None
    project_id: UUID | None
    status: str
    phase: str
    deterministic: bool
    triggered_by: str
    variables: dict[str, Any]
    error: str | None
    usage: dict[str, Any]
    started_at: datetime
    completed_at: datetime | None
    created_at: datetime


class StepOut(BaseModel):
    """One visit of a step. `visit`: `0`, or the numbers of the iterations that it is inside of; `tries`: failed ones.

    `status` is `running`, `completed` or `failed`, and `stopped` for what was under way when the execution ended.
    """

    step_id: str
    visit: str
    status: str
    tries: int
    inputs: dict[str, Any]
    output: Any
    error: str | None
    usage: dict[str, Any]
    wake_at: datetime | None
    started_at: datetime
    completed_at: datetime | None


class ExecutionDetail(ExecutionOut):
    steps: list[StepOut]
    next_cursor: str | None


class ExecutionPage(BaseModel):
    executions: list[ExecutionOut]
    next_cursor: str | None


class Cancelled(BaseModel):
    execution_id: UUID
    status: str


def shown(execution: ShownExecution) -> ExecutionOut:
    return ExecutionOut(
        execution_id=execution.execution_id,
        workflow_id=execution.workflow_id,
        workflow_version=execution.version,
        agent_run_id=execution.agent_run_id,
        thread_id=execution.thread_id,
        project_id=execution.project_id,
        status=execution.status if execution.completed_at and execution.status else "running",
        phase=execution.phase or "waiting",
        deterministic=execution.deterministic,
        triggered_by=execution.triggered_by,
        variables=execution.variables,
        error=execution.error,
        usage=execution.usage or {},
        started_at=execution.started_at or execution.created_at,
        completed_at=execution.completed_at,
        created_at=execution.created_at,
    )


def shown_step(visit: Visit, *, over: bool) -> StepOut:
    return StepOut(
        step_id=visit.step_id,
        visit=visit.visit,
        status="stopped" if over and visit.status == "running" else visit.status,
        tries=visit.tries,
        inputs=visit.inputs,
        output=visit.output,
        error=visit.error,
        usage=visit.usage,
        wake_at=visit.wake_at,
        started_at=visit.started_at,
        completed_at=visit.completed_at,
    )


@router.post("/{workflow_id}/execute")
async def execute(
    workflow_id: UUID,
    caller: CallerDep,
    resources: ResourcesDep,
    body: ExecuteRequest | None = None,
    deterministic: bool = True,
    idempotency_key: KeyHeader = None,
) -> Executed:
    """A run that walks through the workflow's steps, or (`deterministic=false`) whose agent is told of them.

    A paused workflow, or one without steps: 409. A variable that is missing or has the wrong type: 422.
    """
    asked = body or ExecuteRequest()
    fields = asked.model_dump(mode="json", exclude_defaults=True)
    key = request_key(
        caller, "execute", idempotency_key, workflow_id=workflow_id, fields=fields, deterministic=deterministic
    )

    async def make(conn: Connection, run_id: UUID) -> Started:
        workflow = await workflows.get(conn, caller.account_id, workflow_id)
        new = new_execution(resources, caller, workflow, asked, deterministic)
        await check_billing(conn, resources.gate, caller, new.model_name)
        return await workflow_executions.start(conn, run_id, new, resources.settings.limits)

    run = await starting.begin(resources.stores, caller.account_id, make, key)
    return Executed(
        execution_id=UUID(run.settings["execution_id"]),
        thread_id=run.thread_id,
        agent_run_id=run.id,
        status=run.public_status,
        message="The workflow is being executed.",
    )


def new_execution(
    resources: Resources, caller: Caller, workflow: Workflow, asked: ExecuteRequest, deterministic: bool
) -> NewExecution:
    """Raises: Conflict; RequestValidationError naming the variable or the model."""
    wanted = Asked(**dict(asked), deterministic=deterministic, created_by=caller.user_id)
    try:
        return beginning.new_execution(resources.settings, workflow, wanted)
    except BadInput as error:
        raise invalid(f"variables.{error.name}", str(error)) from error
    except Unprocessable as error:
        raise invalid("model_name", str(error)) from error


@router.get("/{workflow_id}/executions")
async def list_executions(
    workflow_id: UUID, caller: CallerDep, pool: PoolDep, limit: ExecutionsQuery = 20, cursor: str | None = None
) -> ExecutionPage:
    """Newest first, without their steps."""
    before = None if cursor is None else decode_moment(cursor)
    async with pool.acquire() as conn:
        await workflows.get(conn, caller.account_id, workflow_id)
        found = await workflow_executions.page(conn, workflow_id, before=before, limit=limit + 1)
    page, more = found[:limit], len(found) > limit
    next_cursor = encode_moment(page[-1].created_at, page[-1].execution_id) if more else None
    return ExecutionPage(executions=[shown(each) for each in page], next_cursor=next_cursor)


@router.get("/executions/{execution_id}")
async def get_execution(
    execution_id: UUID, caller: CallerDep, pool: PoolDep, limit: StepsQuery = 200, cursor: str | None = None
) -> ExecutionDetail:
    """With its steps in the order in which they began, so many at a time."""
    after = 0 if cursor is None else decode_position(cursor)
    async with pool.acquire() as conn:
        execution = await workflow_executions.get(conn, caller.account_id, execution_id)
        visits, more = await workflow_steps.page(conn, execution_id, after=after, limit=limit)
    over = execution.completed_at is not None
    return ExecutionDetail(
        **shown(execution).model_dump(),
        steps=[shown_step(visit, over=over) for visit in visits],
        next_cursor=str(visits[-1].position) if more else None,
    )


@router.post("/executions/{execution_id}/cancel")
async def cancel_execution(execution_id: UUID, caller: CallerDep, resources: ResourcesDep) -> Cancelled:
    """As the stop of its run: answers once it is committed; an execution that had ended answers its own status."""
    stopped = await stopping.request_stop(resources.stores, await run_of(resources, caller.account_id, execution_id))
    return Cancelled(execution_id=execution_id, status=status_after_stop(stopped))


async def run_of(resources: Resources, account_id: UUID, execution_id: UUID) -> UUID:
    """The id of its run. Raises: NotFound; Conflict when it has none yet."""
    execution = await workflow_executions.get(resources.pool, account_id, execution_id)
    if execution.agent_run_id is None:
        raise Conflict(NOT_BEGUN)
    return execution.agent_run_id


@router.get(
    "/executions/{execution_id}/stream",
    status_code=200,
    response_class=EventStream,
    responses=STREAM_ANSWERS,
)
async def stream_execution(execution_id: UUID, asking: FollowerDep) -> Response:
    """The stream of its run, with the same ids: `workflow_status` events beside what its agent says."""
    return await follow(asking, lambda account_id: run_of(asking.resources, account_id, execution_id))
