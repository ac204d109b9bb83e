"""What starts a workflow from outside: webhooks, signed with the secret of `api.routes.workflow_webhooks`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from agent.workflows import beginning, inputs
from agent.workflows.beginning import Asked
from agent.workflows.definition import Definition, plain_json
from agent.workflows.inputs import BadInput
from api.body_limit import widen
from api.deps import Resources, ResourcesDep
from api.errors import invalid
from api.routes.webhooks import opened
from services import metrics, workflow_executions, workflows
from services.errors import AppError, Conflict, Unauthenticated, UnsupportedMediaType
from services.postgres import Connection
from services.rate_limit import Rate
from services.runs import idempotency, starting
from services.runs.idempotency import RequestKey
from services.runs.starting import Started
from services.runs.store import Run
from services.settings import Settings
from services.webhooks import senders, signatures, workflow_webhooks
from services.webhooks.senders import BadPayload, Format, Said
from services.webhooks.signatures import BadSignature
from services.webhooks.workflow_webhooks import WorkflowWebhook
from services.workflow_executions import NewExecution
from services.workflows import Workflow

router = APIRouter(tags=["webhooks"])

REFUSED = "The signature is missing, wrong, or too old; or there is no such webhook."
STARTED = "Started."
NOBODY = signatures.make_secret()
"""What is verified with where there is no webhook: that takes as long."""
PLAIN = TypeAdapter[dict[str, Any]](Annotated[dict[str, Any], AfterValidator(plain_json)])


class Triggered(BaseModel):
    """The execution that was started; of a repeated webhook the one that its first started."""

    execution_id: UUID
    agent_run_id: UUID
    thread_id: UUID
    status: str


@router.post(
    "/webhooks/trigger/{workflow_id}",
    status_code=202,
    response_model=Triggered,
    responses={200: {"description": "Slack's question whether we are here, a slash command or a click is answered."}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {senders.JSON: {"schema": {"type": "object"}}, senders.FORM: {"schema": {"type": "object"}}},
        }
    },
)
async def trigger(workflow_id: UUID, request: Request, resources: ResourcesDep) -> Response:
    """Start an execution of an active workflow, signed with the secret of its webhook (docs/webhooks.md).

    Whoever cannot sign is told nothing of the workflow, not even whether there is one. A repeat within a day answers
    the execution that the first one started.
    """
    with counted():
        return await answered(workflow_id, request, resources)


@contextmanager
def counted() -> Iterator[None]:
    """What comes of a webhook, by how it is answered."""
    try:
        yield
    except Exception as error:
        metrics.triggers.labels(outcome_of(error)).inc()
        raise
    metrics.triggers.labels("accepted").inc()


def outcome_of(error: Exception) -> str:
    match error:
        case AppError():
            status = error.status
        case HTTPException():
            status = error.status_code
        case RequestValidationError() | ClientDisconnect():
            status = 422
        case _:
            status = 500
    return {401: "refused", 429: "limited"}.get(status, "declined" if status < 500 else "failed")


async def answered(workflow_id: UUID, request: Request, resources: Resources) -> Response:
    webhook, said = await verified(workflow_id, request, resources)
    if said.challenge is not None:
        return JSONResponse({"challenge": said.challenge})
    rate = Rate(f"rate_limit:{workflow_id}:webhook", resources.settings.webhooks.rate_per_minute)
    await resources.rate_limit.spend(rate, to_start=True)
    run = await started(webhook, said, resources)
    if said.is_interaction:
        return Response()
    answer = Triggered(
        execution_id=UUID(run.settings["execution_id"]),
        agent_run_id=run.id,
        thread_id=run.thread_id,
        status=run.public_status,
    ).model_dump(mode="json")
    if said.is_command:  # Slack takes 200 only, and shows the text to whoever gave the command
        return JSONResponse({"response_type": "ephemeral", "text": STARTED, **answer})
    return JSONResponse(answer, 202)


async def verified(workflow_id: UUID, request: Request, resources: Resources) -> tuple[WorkflowWebhook, Said]:
    """What a request says that is signed as it should be; the cheapest questions first.

    Raises: Unauthenticated, alike for all that is wrong with a signature and for a webhook that is not there;
    UnsupportedMediaType; HTTPException 413; RequestValidationError.
    """
    limits, headers = resources.settings.webhooks, dict(request.headers)
    try:
        kind = senders.format_of(headers)
        senders.check_freshness(kind, headers, datetime.now(UTC), limits.replay_window)
        check_type(kind, headers)
        body = await bounded_body(request, limits.max_body_bytes)
        webhook = await workflow_webhooks.find(resources.pool, workflow_id)
        keys = opened(webhook, resources.secrets, workflow_id=str(workflow_id)) if webhook else [NOBODY]
        kind = webhook.format if webhook else kind
        senders.verify(kind, keys, headers, body, datetime.now(UTC), limits.replay_window)
        if webhook is None:
            raise BadSignature
    except BadSignature as error:
        raise Unauthenticated(REFUSED) from error
    check_type(kind, headers)
    return webhook, payload(kind, headers, body)


def check_type(kind: Format, headers: Mapping[str, str]) -> None:
    if senders.media_type(headers) not in senders.CONTENT_TYPES[kind]:
        raise UnsupportedMediaType(f"Content-Type must be {' or '.join(senders.CONTENT_TYPES[kind])}.")


async def bounded_body(request: Request, limit: int) -> bytes:
    """Raises: HTTPException 413, as soon as it is known."""
    widen(request, limit, f"The body of a webhook may have {limit} bytes.")
    return await request.body()


def payload(kind: Format, headers: Mapping[str, str], body: bytes) -> Said:
    try:
        said = senders.read(kind, headers, body)
        PLAIN.validate_python(said.payload)
    except BadPayload as error:
        raise invalid("payload", str(error)) from error
    except ValidationError as error:
        raise invalid("payload", error.errors()[0]["msg"]) from error
    return said


async def started(webhook: WorkflowWebhook, said: Said, resources: Resources) -> Run:
    """The run that a webhook starts, or that it started when it came first.

    Raises: Conflict for a workflow that is not active; RequestValidationError naming the variable; and as a start.
    """
    account_id, workflow_id = webhook.account_id, webhook.workflow_id
    same = idempotency.fingerprint({"workflow_id": str(workflow_id)})
    key = RequestKey(account_id, "webhook", f"{workflow_id}:{said.key}", same)

    async def make(conn: Connection, run_id: UUID) -> Started:
        workflow = await workflows.get(conn, account_id, workflow_id)
        new = execution_of(resources.settings, workflow, said)
        (await resources.gate.may_run(conn, account_id, new.model_name)).enforce()
        return await workflow_executions.start(conn, run_id, new, resources.settings.limits)

    return await starting.begin(resources.stores, account_id, make, key)


def execution_of(settings: Settings, workflow: Workflow, said: Said) -> NewExecution:
    """Raises: Conflict for a workflow that is not active; RequestValidationError naming the variable."""
    if workflow.state != "ACTIVE":
        raise Conflict(f"This workflow is {workflow.state}: webhooks start it when it is ACTIVE.")
    variables = inputs.of_webhook(Definition.model_validate(workflow.definition), said.fields, said.payload)
    asked = Asked(variables=variables, triggered_by="WEBHOOK", created_by=workflow.created_by)
    try:
        return beginning.new_execution(settings, workflow, asked)
    except BadInput as error:
        raise invalid(f"variables.{error.name}", str(error)) from error
