"""The workflow_webhooks table: the secret with which a workflow is started from outside, and in which format."""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from services.errors import NotFound
from services.postgres import Connection, Executor
from services.webhooks.secret_pair import PAIR, SecretPair
from services.webhooks.senders import Format

MISSING = "This workflow has no webhook."


@dataclass(frozen=True, slots=True)
class WorkflowWebhook(SecretPair):
    workflow_id: UUID
    account_id: UUID
    format: Format


COLUMNS = f"h.workflow_id, w.account_id, h.format, {PAIR.format('h.')}"
WITH_WORKFLOW = "workflow_webhooks h JOIN workflows w USING (workflow_id)"


async def find(conn: Executor, workflow_id: UUID) -> WorkflowWebhook | None:
    """The webhook of a workflow of any account, for a stranger who names it."""
    row = await conn.fetchrow(f"SELECT {COLUMNS} FROM {WITH_WORKFLOW} WHERE h.workflow_id = $1", workflow_id)
    return WorkflowWebhook(**row) if row else None


async def get(conn: Executor, workflow_id: UUID) -> WorkflowWebhook:
    """Of a workflow that the caller may change. Raises: NotFound."""
    found = await find(conn, workflow_id)
    if found is None:
        raise NotFound(MISSING)
    return found


async def put(
    conn: Connection, workflow_id: UUID, kind: Format, sealed: str, *, created_by: UUID | None = None
) -> WorkflowWebhook:
    """Give a workflow its webhook, or another one in the place of its own, which counts no more."""
    await conn.execute(
        """
        INSERT INTO workflow_webhooks (workflow_id, format, secret, created_by) VALUES ($1, $2, $3, $4)
        ON CONFLICT (workflow_id) DO UPDATE SET
            format = excluded.format, secret = excluded.secret, previous = NULL, previous_until = NULL,
            created_by = excluded.created_by, created_at = now(), rotated_at = NULL
        """,
        workflow_id,
        kind,
        sealed,
        created_by,
    )
    return await get(conn, workflow_id)


async def rotate(conn: Connection, workflow_id: UUID, sealed: str, grace: timedelta) -> WorkflowWebhook:
    """A new secret; the one before counts for `grace`, and the one before that no more. Raises: NotFound."""
    await conn.execute(
        """
        UPDATE workflow_webhooks SET
            secret = $2, previous = secret, previous_until = now() + $3::interval, rotated_at = now()
        WHERE workflow_id = $1
        """,
        workflow_id,
        sealed,
        grace,
    )
    return await get(conn, workflow_id)


async def delete(conn: Connection, workflow_id: UUID) -> None:
    """Raises: NotFound."""
    if not await conn.fetchval("DELETE FROM workflow_webhooks WHERE workflow_id = $1 RETURNING true", workflow_id):
        raise NotFound(MISSING)
