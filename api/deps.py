"""What routes ask for: the opened resources of the process and the caller of the request.

All of them are coroutines: FastAPI hands anything else to a thread, which costs more than most of them do.
"""

from dataclasses import dataclass, field
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Header, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.auth import Caller, SeenUsers, resolve_caller
from api.sse import Streams
from services.billing.gate import Gate
from services.errors import Unauthenticated
from services.postgres import Pool
from services.runs.stores import Stores
from services.sandbox.protocol import SandboxProvider
from services.secrets import Secrets
from services.settings import Settings
from services.tokens import verify_access_token


@dataclass(frozen=True, slots=True)
class Resources:
    """Everything a request may need, opened once per process."""

    settings: Settings
    stores: Stores
    streams: Streams
    sandboxes: SandboxProvider
    secrets: Secrets
    gate: Gate
    seen: SeenUsers = field(default_factory=SeenUsers)

    @property
    def pool(self) -> Pool:
        return self.stores.pool


async def resources(request: Request) -> Resources:
    opened: Resources = request.app.state.resources
    return opened


ResourcesDep = Annotated[Resources, Depends(resources)]


async def pool(opened: ResourcesDep) -> Pool:
    return opened.pool


PoolDep = Annotated[Pool, Depends(pool)]

BearerDep = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
AccountHeader = Annotated[UUID | None, Header(alias="X-Account-Id")]


async def user(opened: ResourcesDep, bearer: BearerDep) -> UUID:
    """The user of the Authorization header.

    Raises: Unauthenticated.
    """
    if bearer is None:
        raise Unauthenticated
    return verify_access_token(opened.settings.auth, bearer.credentials)


async def stream_user(opened: ResourcesDep, bearer: BearerDep, token: Annotated[str | None, Query()] = None) -> UUID:
    """As `user`, or of `?token=`: an EventSource cannot send headers."""
    said = bearer.credentials if bearer else token
    if said is None:
        raise Unauthenticated
    return verify_access_token(opened.settings.auth, said)


async def caller(
    opened: ResourcesDep, user_id: Annotated[UUID, Depends(user)], account_id: AccountHeader = None
) -> Caller:
    return await resolve_caller(opened.pool, opened.seen, user_id, account_id)


CallerDep = Annotated[Caller, Depends(caller)]
