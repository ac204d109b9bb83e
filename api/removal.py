"""Deleting what runs may be under way in."""

from collections.abc import Awaitable, Callable
from uuid import UUID

from api.deps import Resources
from api.paging import MAX_ROWS
from services.billing import reserves
from services.errors import Unavailable
from services.log import logger
from services.postgres import Connection, transaction
from services.runs import starting, stopping, store

MAX_ROUNDS = 10
STILL_BEGINNING = "Runs are begun here again and again: nothing was deleted."
SETTLED_SECONDS = 3.0
"""A driver that hears of a stop has ended its run by then, or somebody else has."""


async def stop_and_delete(
    resources: Resources,
    account_id: UUID,
    delete: Callable[[Connection], Awaitable[None]],
    *,
    project_id: UUID,
    thread_id: UUID | None = None,
) -> None:
    """Delete a project, or one thread of it, whose runs are stopped; one that was begun meanwhile is stopped first.

    Raises: Unavailable when others are begun again and again.
    """
    place = {"thread_id": thread_id} if thread_id else {"project_id": project_id}
    for _ in range(MAX_ROUNDS):
        await stop_live_runs(resources, account_id, **place)
        async with transaction(resources.pool) as conn:
            await starting.take_turns(conn, project_id)
            if await store.lock_all(conn, **place):
                await delete(conn)
                return
    raise Unavailable(STILL_BEGINNING)


async def stop_live_runs(
    resources: Resources, account_id: UUID, *, thread_id: UUID | None = None, project_id: UUID | None = None
) -> None:
    """Stop whatever is not final of a thread or project that is about to be deleted.

    Where calls of models are billed, whoever ends the runs is given the time to settle them: nobody can once the rows
    are gone, and what was streamed would have cost nothing.
    """
    stores = resources.stores
    live = await store.list_runs(
        stores.pool, account_id, status="running", thread_id=thread_id, project_id=project_id, limit=MAX_ROWS
    )
    if live:
        await stopping.request_stops(stores, [run.id for run in live])
    if resources.gate.bills and not await reserves.are_settled(
        stores.pool, SETTLED_SECONDS, thread_id=thread_id, project_id=project_id
    ):
        logger.warning("run.deleted_unsettled", thread_id=str(thread_id), project_id=str(project_id))
