"""What routes ask for: the opened resources of the process and the caller of the request.

All of them are coroutines: FastAPI runs any other function on a thread of its own, which takes longer than they do.
"""

from dataclasses import dataclass, field
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Header, Query, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from structlog.contextvars import bind_contextvars

from api import access
from api.auth import Caller, Identity, SeenUsers, resolve_caller
from api.errors import Unreachable
from api.open_streams import Streams
from services import stream_tokens
from services.billing.gate import Gate
from services.errors import Unauthenticated, Unavailable
from services.known_keys import KnownKeys
from services.log import logger
from services.postgres import Pool
from services.rate_limit import RateLimit
from services.runs.stores import Stores
from services.sandbox.protocol import SandboxProvider
from services.secrets import Secrets
from services.settings import Settings
from services.tokens import AccessTokens


@dataclass(frozen=True, slots=True)
class Resources:
    """Everything a request may need, opened once per process."""

    settings: Settings
    stores: Stores
    streams: Streams
    sandboxes: SandboxProvider
    secrets: Secrets
    gate: Gate
    access_tokens: AccessTokens
    known_keys: KnownKeys
    rate_limit: RateLimit
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
KeyHeader = Annotated[str | None, Depends(APIKeyHeader(name="X-API-Key", auto_error=False))]
TokenQuery = Annotated[str | None, Query()]
AccountHeader = Annotated[UUID | None, Header(alias="X-Account-Id")]


async def identity(opened: ResourcesDep, bearer: BearerDep, key: KeyHeader = None) -> Identity:
    """Who the Authorization header says it is, or else X-API-Key. Raises: Unauthenticated, Unavailable."""
    if bearer:
        return Identity(await opened.access_tokens.user_of(bearer.credentials))
    if key is None:
        raise Unauthenticated
    holder = await opened.known_keys.holder(key)
    return Identity(holder.user_id, key=holder)


IdentityDep = Annotated[Identity, Depends(identity)]


async def stream_identity(
    opened: ResourcesDep, bearer: BearerDep, key: KeyHeader = None, token: TokenQuery = None
) -> Identity | None:
    """As `identity`, or as `?token=` says: an EventSource cannot send headers. None when nobody can tell right now."""
    said = bearer.credentials if bearer else token
    try:
        if said is None:
            return await identity(opened, bearer, key)
        admitted = stream_tokens.read(opened.settings, said)
        if admitted:
            return Identity(admitted.user_id, stream=admitted)
        return Identity(await opened.access_tokens.user_of(said))
    except (Unavailable, *Unreachable) as error:
        logger.warning("stream.identity_unknown", error=repr(error))
        return None


StreamIdentityDep = Annotated[Identity | None, Depends(stream_identity)]


async def caller(request: Request, opened: ResourcesDep, who: IdentityDep, named: AccountHeader = None) -> Caller:
    """Whoever may do what the route says in the account that is asked for.

    Raises: TooManyRequests; Unavailable; Forbidden; NotFound for an account in the path that is not the caller's.
    """
    wanted = access.access_of(request)
    account_id = who.key.account_id if who.key else who.user_id
    await opened.rate_limit.take(who.user_id, account_id, to_start=wanted.starts)
    found = await resolve_caller(opened.pool, opened.seen, who, named, path=account_of_path(request))
    bind_contextvars(account_id=str(found.account_id))
    access.check(found, wanted)
    return found


def account_of_path(request: Request) -> UUID | None:
    """The account that the path names; one that is malformed is refused by the route itself."""
    try:
        return UUID(request.path_params["account_id"])
    except (KeyError, ValueError):
        return None


CallerDep = Annotated[Caller, Depends(caller)]
