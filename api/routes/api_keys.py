"""API keys of the account."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, Field

from api.deps import CallerDep, PoolDep, ResourcesDep
from api.fields import Line, Text
from api.routes.projects import Deleted
from services import api_keys
from services.api_keys import ApiKey
from services.postgres import transaction

router = APIRouter(prefix="/api-keys", tags=["api keys"])

Scope = Literal["runs:read", "runs:write", "admin"]


def distinct(scopes: list[Scope]) -> list[Scope]:
    return sorted(set(scopes))


class ApiKeyIn(BaseModel):
    """`admin` includes the other two scopes."""

    title: Line
    description: Annotated[Text, Field(max_length=2000)] = ""
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=10), AfterValidator(distinct)] = [
        "runs:read",
        "runs:write",
    ]
    expires_in_days: int | None = Field(None, ge=1, le=3650)


class ApiKeyOut(BaseModel):
    """`status`: active, expired or revoked. `last_used_at` may be a minute or two late.

    `made_with` is the key that made it, with which it ends; null when a person did.
    """

    key_id: UUID
    made_with: UUID | None
    public_key: str
    title: str
    description: str
    scopes: list[str]
    status: str
    expires_at: datetime | None
    last_used_at: datetime | None
    created_at: datetime


class ApiKeyMade(ApiKeyOut):
    """`secret_key` is shown here and never again; a request carries `X-API-Key: <public_key>:<secret_key>`."""

    secret_key: str


def shown(key: ApiKey) -> ApiKeyOut:
    return ApiKeyOut.model_validate(key, from_attributes=True)


@router.get("")
async def list_api_keys(caller: CallerDep, pool: PoolDep) -> list[ApiKeyOut]:
    """Newest first."""
    return [shown(key) for key in await api_keys.of_account(pool, caller.account_id)]


@router.post("")
async def create_api_key(asked: ApiKeyIn, caller: CallerDep, resources: ResourcesDep) -> ApiKeyMade:
    """A key that stands for whoever makes it, in this account, as long as they belong to it.

    One that is made with an API key ends with that one: no later, and at once when it is revoked or deleted.
    """
    async with transaction(resources.pool) as conn:
        key, secret = await api_keys.create(
            conn,
            resources.settings.api_keys,
            caller.account_id,
            caller.user_id,
            title=asked.title,
            description=asked.description,
            scopes=asked.scopes,
            days=asked.expires_in_days,
            made_with=caller.key.key_id if caller.key else None,
        )
    return ApiKeyMade(**shown(key).model_dump(), secret_key=secret)


@router.patch("/{key_id}/revoke")
async def revoke_api_key(key_id: UUID, caller: CallerDep, resources: ResourcesDep) -> ApiKeyOut:
    """Void at once in every process, and for good."""
    async with transaction(resources.pool) as conn:
        key = await api_keys.revoke(conn, caller.account_id, key_id)
    await resources.known_keys.announce(caller.account_id)
    return shown(key)


@router.delete("/{key_id}")
async def delete_api_key(key_id: UUID, caller: CallerDep, resources: ResourcesDep) -> Deleted:
    await api_keys.delete(resources.pool, caller.account_id, key_id)
    await resources.known_keys.announce(caller.account_id)
    return Deleted(message="API key deleted.")
