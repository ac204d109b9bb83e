"""Webhooks: whether the end of a run was told, and what that is signed with."""

from datetime import datetime
from typing import Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel

from api.auth import MISSING_ACCOUNT
from api.deps import CallerDep, PoolDep, ResourcesDep
from services.errors import NotFound, Unavailable
from services.log import logger
from services.postgres import transaction
from services.secrets import Secrets, SecretUnreadable
from services.webhooks import account_secrets, deliveries, sending
from services.webhooks.account_secrets import AccountSecret
from services.webhooks.deliveries import Shown
from services.webhooks.secret_pair import SecretPair

router = APIRouter(tags=["webhooks"])

UNREADABLE = "The secret cannot be opened any more: rotate it."


class AttemptOut(BaseModel):
    """One try: the status that came back, or the sentence that says why there was none."""

    number: int
    started_at: datetime
    duration_ms: int | None = None
    status_code: int | None = None
    error: str | None = None
    response_excerpt: str | None = None


class Attempts(BaseModel):
    """`none`: the run names no webhook. `waiting`: it has not ended. `pending`: tried (again) at `next_attempt_at`.

    `gone`: the receiver said never again. `forgotten`: it was told, or tried, too long ago.
    """

    state: Shown
    webhook_id: str | None
    next_attempt_at: datetime | None
    attempts: list[AttemptOut]


class SecretOut(BaseModel):
    """`previous_secret` counts beside the other until `previous_until`."""

    secret: str
    previous_secret: str | None
    previous_until: datetime | None
    created_at: datetime
    rotated_at: datetime | None


def opened(kept: SecretPair, secrets: Secrets, **whose: str) -> list[str]:
    """What counts now, the newest first. Raises: Unavailable when no key opens it."""
    try:
        return kept.keys(secrets)
    except SecretUnreadable as error:
        logger.error("webhook.secret_unreadable", **whose)
        raise Unavailable(UNREADABLE) from error


def shown_pair(kept: SecretPair, secrets: Secrets, **whose: str) -> dict[str, Any]:
    """The fields of SecretOut. Raises: Unavailable."""
    secret, *previous = opened(kept, secrets, **whose)
    return {
        "secret": secret,
        "previous_secret": previous[0] if previous else None,
        "previous_until": kept.previous_until,
        "created_at": kept.created_at,
        "rotated_at": kept.rotated_at,
    }


def shown_secret(kept: AccountSecret, secrets: Secrets) -> SecretOut:
    return SecretOut(**shown_pair(kept, secrets, account_id=str(kept.account_id)))


@router.get("/agent-run/{run_id}/webhook-attempts")
async def list_webhook_attempts(run_id: UUID, caller: CallerDep, pool: PoolDep) -> Attempts:
    """How the run's `webhook_url` was told of its end, the oldest attempt first."""
    standing = await deliveries.of_run(pool, caller.account_id, run_id)
    return Attempts(
        state=standing.shown,
        webhook_id=sending.id_of(run_id) if standing.webhook_url else None,
        next_attempt_at=standing.due_at if standing.state == "pending" else None,
        attempts=[AttemptOut(**attempt) for attempt in standing.attempts or ()],
    )


@router.get("/accounts/{account_id}/webhook-secret")
async def get_webhook_secret(account_id: UUID, caller: CallerDep, resources: ResourcesDep) -> SecretOut:
    """What the account's completion webhooks are signed with; made when it is asked for, or needed, first."""
    kept = await account_secrets.of_accounts(resources.pool, resources.secrets, [caller.account_id])
    if caller.account_id not in kept:
        raise NotFound(MISSING_ACCOUNT)
    return shown_secret(kept[caller.account_id], resources.secrets)


@router.post("/accounts/{account_id}/webhook-secret/rotate")
async def rotate_webhook_secret(account_id: UUID, caller: CallerDep, resources: ResourcesDep) -> SecretOut:
    """A new secret; the one before goes on signing beside it for WEBHOOK_SECRET_GRACE."""
    grace = resources.settings.webhooks.secret_grace
    async with transaction(resources.pool) as conn:
        kept = await account_secrets.rotate(conn, resources.secrets, caller.account_id, grace)
    return shown_secret(kept, resources.secrets)
