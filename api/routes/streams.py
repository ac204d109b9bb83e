"""The stream of a run."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Response
from redis.asyncio import Redis

from api.auth import resolve_caller
from api.deps import AccountHeader, ResourcesDep, stream_user
from api.errors import invalid
from api.sse import EventStream, ending_comment
from services.log import logger
from services.postgres import Unreachable as PostgresUnreachable
from services.redis import Unreachable as RedisUnreachable
from services.runs import tails
from services.runs.readable import Readable

router = APIRouter(tags=["runs"])

CursorHeader = Annotated[str | None, Header(alias="Last-Event-ID")]
MAX_CURSOR_DIGITS = 18


@router.get(
    "/agent-run/{run_id}/stream",
    status_code=200,
    response_class=EventStream,
    responses={204: {"description": "The last event was seen already."}},
)
async def stream_run(
    run_id: UUID,
    user_id: Annotated[UUID, Depends(stream_user)],
    resources: ResourcesDep,
    account_id: AccountHeader = None,
    last_event_id: Annotated[str | None, Query()] = None,
    last_event_id_header: CursorHeader = None,
) -> Response:
    """Every event after the cursor, each once, then the last one; 204 when that was read already."""
    after = cursor(last_event_id_header, last_event_id)
    try:
        caller = await resolve_caller(resources.pool, resources.seen, user_id, account_id)
        run = await resources.streams.find(caller.account_id, run_id)
        if await is_read(resources.stores.of(run_id).redis, run, after):
            return Response(status_code=204)
    except (*PostgresUnreachable, *RedisUnreachable) as error:
        logger.warning("stream.store_away", run_id=str(run_id), error=repr(error))
        return ending_comment(resources.settings.streams, "a store is away")
    return EventStream(resources.streams, run.id, after)


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
