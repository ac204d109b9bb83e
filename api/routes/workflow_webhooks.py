"""The webhook of a workflow: in which format it may be started from outside, and with which secrets."""

from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel

from api.deps import CallerDep, PoolDep, Resources, ResourcesDep
from api.errors import invalid
from api.fields import Text
from api.routes.projects import Deleted
from api.routes.webhooks import SecretOut, shown_pair
from services import workflows
from services.postgres import transaction
from services.webhooks import senders, workflow_webhooks
from services.webhooks.senders import Format
from services.webhooks.workflow_webhooks import WorkflowWebhook

router = APIRouter(tags=["webhooks"])


class WebhookRequest(BaseModel):
    """`secret` is Slack's, or one that the sender chose; without it one is made."""

    format: Format = "standard"
    secret: Text | None = None


class RotateRequest(BaseModel):
    secret: Text | None = None


class WebhookOut(SecretOut):
    """Whoever signs with `secret`, or until `previous_until` with the one before, may start the workflow at `url`."""

    workflow_id: UUID
    url: str
    format: Format


def shown(kept: WorkflowWebhook, resources: Resources) -> WebhookOut:
    """Raises: Unavailable when no key opens it."""
    return WebhookOut(
        workflow_id=kept.workflow_id,
        url=f"{resources.settings.api.public_url.rstrip('/')}/api/webhooks/trigger/{kept.workflow_id}",
        format=kept.format,
        **shown_pair(kept, resources.secrets, workflow_id=str(kept.workflow_id)),
    )


def chosen_secret(kind: Format, given: str | None) -> str:
    """Raises: RequestValidationError naming `secret`."""
    try:
        return senders.make_secret(kind) if given is None else senders.check_secret(kind, given)
    except ValueError as error:
        raise invalid("secret", str(error)) from error


@router.get("/workflows/{workflow_id}/webhook")
async def get_webhook(workflow_id: UUID, caller: CallerDep, resources: ResourcesDep) -> WebhookOut:
    """404 for a workflow without one, too."""
    async with resources.pool.acquire() as conn:
        await workflows.get(conn, caller.account_id, workflow_id)
        return shown(await workflow_webhooks.get(conn, workflow_id), resources)


@router.put("/workflows/{workflow_id}/webhook")
async def put_webhook(
    workflow_id: UUID, caller: CallerDep, resources: ResourcesDep, body: WebhookRequest | None = None
) -> WebhookOut:
    """Let webhooks of a format start the workflow. One that is there already counts no more from now on."""
    asked = body or WebhookRequest()
    sealed = resources.secrets.seal(chosen_secret(asked.format, asked.secret))
    async with transaction(resources.pool) as conn:
        await workflows.lock(conn, caller.account_id, workflow_id)
        kept = await workflow_webhooks.put(conn, workflow_id, asked.format, sealed, created_by=caller.user_id)
        return shown(kept, resources)


@router.post("/workflows/{workflow_id}/webhook/rotate")
async def rotate_webhook(
    workflow_id: UUID, caller: CallerDep, resources: ResourcesDep, body: RotateRequest | None = None
) -> WebhookOut:
    """Another secret; the one before counts for WEBHOOK_SECRET_GRACE beside it."""
    grace = resources.settings.webhooks.secret_grace
    async with transaction(resources.pool) as conn:
        await workflows.lock(conn, caller.account_id, workflow_id)
        before = await workflow_webhooks.get(conn, workflow_id)
        sealed = resources.secrets.seal(chosen_secret(before.format, body.secret if body else None))
        return shown(await workflow_webhooks.rotate(conn, workflow_id, sealed, grace), resources)


@router.delete("/workflows/{workflow_id}/webhook")
async def delete_webhook(workflow_id: UUID, caller: CallerDep, pool: PoolDep) -> Deleted:
    """From now on no webhook starts the workflow."""
    async with transaction(pool) as conn:
        await workflows.lock(conn, caller.account_id, workflow_id)
        await workflow_webhooks.delete(conn, workflow_id)
    return Deleted(message="Webhook deleted.")
