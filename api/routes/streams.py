"""The stream of a run."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BaseModel
from redis.asyncio import Redis
from structlog.contextvars import bind_contextvars

from api import access
from api.auth import Caller, Identity, resolve_caller
from api.deps import AccountHeader, CallerDep, Resources, ResourcesDep, StreamIdentityDep
from api.errors import invalid
from api.sse import MEDIA_TYPE, EventStream, ending_comment
from services import stream_passes, stream_tokens, threads
from services.errors import Conflict, NotFound, Unauthenticated
from services.log import logger
from services.postgres import Unreachable as PostgresUnreachable
from services.redis import Unreachable as RedisUnreachable
from services.runs import tails
from services.runs.readable import Readable
from services.stream_tokens import StreamPass
from services.tokens import INVALID

router = APIRouter(tags=["runs"])

CursorHeader = Annotated[str | None, Header(alias="Last-Event-ID")]
MAX_CURSOR_DIGITS = 18


STREAM_EVENT = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "pattern": "^[0-9]+$"},
        "event": {"const": "message"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["id", "data"],
}
STREAM_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Events, until the last one.", "content": {MEDIA_TYPE: {"schema": STREAM_EVENT}}},
    204: {"description": "The last event was seen already."},
}
"""The schema is that of each event, as clients of event streams read one."""


@dataclass(frozen=True, slots=True)
class Follower:
    """Who asks for a stream, and which event was the last that it saw, -1 for none."""

    request: Request
    who: Identity | None
    resources: Resources
    account_id: UUID | None
    after: int


async def follower(
    request: Request,
    who: StreamIdentityDep,
    resources: ResourcesDep,
    account_id: AccountHeader = None,
    last_event_id: Annotated[str | None, Query()] = None,
    last_event_id_header: CursorHeader = None,
) -> Follower:
    return Follower(request, who, resources, account_id, cursor(last_event_id_header, last_event_id))


FollowerDep = Annotated[Follower, Depends(follower)]


class StreamToken(BaseModel):
    token: str
    expires_in: int


@router.get(
    "/agent-run/{run_id}/stream",
    status_code=200,
    response_class=EventStream,
    responses=STREAM_ANSWERS,
)
async def stream_run(run_id: UUID, asking: FollowerDep) -> Response:
    """Every event after the cursor, each once, then the last one; 204 when that was read already."""

    async def this_run(account_id: UUID) -> UUID:
        return run_id

    return await follow(asking, this_run)


async def follow(asking: Follower, run_of: Callable[[UUID], Awaitable[UUID]]) -> Response:
    """The stream of the run that `run_of(account_id)` names for whoever asks. Raises: what that raises."""
    resources = asking.resources
    if asking.who is None:
        return ending_comment(resources.settings.streams, "who you are cannot be checked right now")
    try:
        admitted = await admit(asking, asking.who, run_of)
        run = await resources.streams.find(admitted.account_id, admitted.run_id)
        if await is_read(resources.stores.of(run.id).redis, run, asking.after):
            return Response(status_code=204)
    except (*PostgresUnreachable, *RedisUnreachable) as error:
        logger.warning("stream.store_away", path=asking.request.url.path, error=repr(error))
        return ending_comment(resources.settings.streams, "a store is away")
    return EventStream(resources.streams, admitted, asking.after)


async def admit(asking: Follower, who: Identity, run_of: Callable[[UUID], Awaitable[UUID]]) -> StreamPass:
    """Who reads this stream, for which account.

    Raises: Unauthenticated for another run's stream token; NotFound for one of somebody who would get none now;
    Forbidden.
    """
    if who.stream is None:
        caller = await resolve_caller(asking.resources.pool, asking.resources.seen, who, asking.account_id)
        bind_contextvars(account_id=str(caller.account_id))
        access.check(caller, access.access_of(asking.request))
        return pass_of(caller, await run_of(caller.account_id))
    stream_tokens.require(who.stream, await run_for_token(who.stream, run_of))
    if await stream_passes.still_good(asking.resources.pool, [who.stream]) == [False]:
        raise NotFound(threads.MISSING_RUN)
    return who.stream


async def run_for_token(admitted: StreamPass, run_of: Callable[[UUID], Awaitable[UUID]]) -> UUID:
    """A token that is for another stream does not learn whether this one is there. Raises: Unauthenticated."""
    try:
        return await run_of(admitted.account_id)
    except (NotFound, Conflict) as error:
        raise Unauthenticated(INVALID) from error


def pass_of(caller: Caller, run_id: UUID) -> StreamPass:
    return StreamPass(run_id, caller.account_id, caller.user_id, caller.key.key_id if caller.key else None)


@router.post("/agent-run/{run_id}/stream-token")
async def create_stream_token(run_id: UUID, caller: CallerDep, resources: ResourcesDep) -> StreamToken:
    """A token that opens this one stream by `?token=`, as an EventSource needs it; `expires_in` is in seconds."""
    await threads.readable_by_run(resources.pool, caller.account_id, run_id)
    token = stream_tokens.sign(resources.settings, pass_of(caller, run_id))
    return StreamToken(token=token, expires_in=int(resources.settings.streams.token_lifetime.total_seconds()))


def cursor(header: str | None, query: str | None) -> int:
    """The id of the last event that was seen, -1 for none; the header wins, since a reconnect's URL is stale."""
    said, where = (header, ("header", "Last-Event-ID")) if header else (query, ("query", "last_event_id"))
    if not said:
        return -1
    if not said.isascii() or not said.isdigit() or len(said) > MAX_CURSOR_DIGITS:
        raise invalid(where[1], "must be the id of an event: a whole number from 0", where=where[0])
    return int(said)


async def is_read(redis: Redis, run: Readable, after: int) -> bool:
    """Whether the run has ended and its last event is at or before the cursor."""
    last = await tails.last_id(redis, run)
    return last is not None and after >= last
