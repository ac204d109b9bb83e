import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from services.postgres import transaction
from services.runs import lifecycle, starting, store
from services.runs.starting import NewRun
from services.runs.store import Run
from services.runs.stores import Stores
from tests.conftest import NO_LIMITS
from tests.services.runs.seeds import (
    Place,
    age,
    claim,
    make_place,
    make_run,
    row_of,
    set_columns,
)
from tests.services.runs.test_lifecycle import try_claim
from tests.waiting import PATIENT

DELAY = timedelta(minutes=5)


async def start(stores: Stores, place: Place, **options: Any) -> Run:
    new = NewRun(place.account_id, place.project_id, place.thread_id, "demo/echo", **options)
    async with transaction(stores.pool) as conn:
        return (await starting.start(conn, new, NO_LIMITS)).run


async def delayed(stores: Stores, place: Place, **options: Any) -> Run:
    return await start(stores, place, delay=DELAY, **options)


async def make_due(stores: Stores, run: Run) -> Run:
    """The delay is over just now; what has been started so far was there before."""
    return await set_columns(stores.pool, run.id, not_before=datetime.now(UTC))


async def judge(stores: Stores, place: Place) -> set[Any]:
    async with transaction(stores.pool) as conn:
        return {run.id for run in await starting.judge(conn, place.project_id, NO_LIMITS)}


async def test_a_start_that_stopped_a_queued_run_waits_for_nothing(stores: Stores) -> None:
    place = await make_place(stores.pool)
    first = await start(stores, place)
    async with transaction(stores.pool) as conn:
        new = NewRun(place.account_id, place.project_id, place.thread_id, "demo/echo")
        started = await starting.start(conn, new, NO_LIMITS)
    assert [run.id for run in started.stopped] == [first.id]
    assert started.run.phase == "queued"
    assert (await start(stores, place, on_active="queue")).phase == "waiting"


async def test_a_delayed_run_stops_nothing_before_it_is_due(stores: Stores) -> None:
    place = await make_place(stores.pool)
    running = await claim(stores, await make_run(stores.pool, place))
    late = await delayed(stores, place)
    assert await judge(stores, place) == set()
    assert (await row_of(stores.pool, running.id)).phase == "running"
    assert (await row_of(stores.pool, late.id)).phase == "waiting"


async def test_a_due_run_that_is_not_judged_is_not_claimed(stores: Stores) -> None:
    place = await make_place(stores.pool)
    late = await make_due(stores, await delayed(stores, place))
    assert late.phase == "waiting"
    assert await try_claim(stores, late) is None
    await judge(stores, place)
    assert await try_claim(stores, late)


async def test_a_due_run_stops_what_runs_and_what_waits(stores: Stores) -> None:
    place = await make_place(stores.pool)
    running = await claim(stores, await make_run(stores.pool, place))
    late = await delayed(stores, place)
    waiting = await start(stores, place, on_active="queue")
    later = await delayed(stores, place, on_active="queue")
    elsewhere = await make_run(stores.pool)
    late = await make_due(stores, late)
    assert await judge(stores, place) == {running.id, waiting.id, later.id}
    assert (await row_of(stores.pool, running.id)).phase == "stopping"
    assert (await row_of(stores.pool, late.id)).phase == "waiting"
    assert (await row_of(stores.pool, elsewhere.id)).phase == "queued"
    assert await judge(stores, place) == set()


async def test_what_was_started_after_the_delay_was_over_is_not_stopped_and_comes_after(stores: Stores) -> None:
    place = await make_place(stores.pool)
    late = await make_due(stores, await delayed(stores, place))
    queued = await start(stores, place, on_active="queue")
    assert await try_claim(stores, queued) is None, "the run before it is not judged yet"
    assert await store.next_queued(stores.pool, place.project_id) is None
    assert await judge(stores, place) == set()
    assert (await store.next_queued(stores.pool, place.project_id)) == await row_of(stores.pool, late.id)
    await claim(stores, late)
    assert await store.next_queued(stores.pool, place.project_id) is None
    assert (await row_of(stores.pool, queued.id)).phase == "waiting"


async def test_of_two_that_are_due_together_the_earlier_stops_the_later(stores: Stores) -> None:
    place = await make_place(stores.pool)
    second, first = await delayed(stores, place), await delayed(stores, place)
    first = await make_due(stores, first)
    second = await make_due(stores, second)
    assert await judge(stores, place) == {second.id}
    assert (await row_of(stores.pool, first.id)).phase == "queued"


async def test_a_delayed_run_that_queues_stops_nothing_when_it_is_due(stores: Stores) -> None:
    place = await make_place(stores.pool)
    await claim(stores, await make_run(stores.pool, place))
    late = await make_due(stores, await delayed(stores, place, on_active="queue"))
    assert await judge(stores, place) == set()
    assert (await row_of(stores.pool, late.id)).phase == "waiting"


async def test_a_due_run_that_has_expired_stops_nothing(stores: Stores) -> None:
    place = await make_place(stores.pool)
    running = await claim(stores, await make_run(stores.pool, place))
    late = await make_due(stores, await delayed(stores, place))
    await age(stores.pool, late.id, "expires_at")
    assert await judge(stores, place) == set()
    assert (await row_of(stores.pool, running.id)).phase == "running"


async def test_a_start_in_progress_when_a_delay_ends_is_judged_too(stores: Stores) -> None:
    place = await make_place(stores.pool)
    late = await delayed(stores, place)
    new = NewRun(place.account_id, place.project_id, place.thread_id, "demo/echo", on_active="queue")
    async with transaction(stores.pool) as conn:
        started = await starting.start(conn, new, NO_LIMITS)
        await make_due(stores, late)
        assert await judge(stores, place) == set()
        assert (await row_of(stores.pool, late.id)).phase == "waiting"
    assert await judge(stores, place) == {started.run.id}


async def test_a_judgement_and_a_stop_of_the_same_runs_do_not_wait_for_each_other(stores: Stores) -> None:
    place = await make_place(stores.pool)
    queued = await start(stores, place, on_active="queue", run_id=UUID(int=1))
    late = await make_due(stores, await delayed(stores, place, run_id=UUID(int=2)))
    async with transaction(stores.pool) as conn:
        await lifecycle.request_stops(conn, [queued.id])
        async with asyncio.timeout(PATIENT):
            assert await judge(stores, place) == set()
        await lifecycle.request_stops(conn, [late.id])
    assert await judge(stores, place) == set()
    assert {(await row_of(stores.pool, run.id)).status for run in (queued, late)} == {"stopped"}


async def test_a_place_in_line_is_taken_when_it_is_a_starts_turn(stores: Stores) -> None:
    place = await make_place(stores.pool)
    new = NewRun(place.account_id, place.project_id, place.thread_id, "demo/echo", delay=timedelta(milliseconds=1))
    async with transaction(stores.pool) as conn:
        await conn.execute("SELECT now()")
        before = await start(stores, place)
        hasty = (await starting.start(conn, new, NO_LIMITS)).run
    assert hasty.not_before
    assert hasty.not_before > before.created_at


async def test_a_thread_is_added_while_a_run_of_the_project_is_being_started(stores: Stores) -> None:
    place = await make_place(stores.pool)
    new = NewRun(place.account_id, place.project_id, place.thread_id, "demo/echo")
    async with transaction(stores.pool) as conn, asyncio.timeout(PATIENT):
        await starting.start(conn, new, NO_LIMITS)
        await stores.pool.execute(
            "INSERT INTO threads (account_id, project_id) VALUES ($1, $2)", place.account_id, place.project_id
        )
