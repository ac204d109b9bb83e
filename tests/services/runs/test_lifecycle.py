import asyncio
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import uuid4

from services.postgres import Pool, transaction
from services.runs import lifecycle
from services.runs.archive import FIRST_EVENTS
from services.runs.fence import Fence
from services.runs.lifecycle import HandOver
from services.runs.store import Run
from services.runs.stores import Stores
from tests.services.runs.seeds import (
    age,
    claim,
    eventually,
    hand_over,
    make_place,
    make_run,
    row_of,
    set_columns,
    take_up,
    waiting_for_locks,
)

SOON = timedelta(minutes=5)


async def try_claim(stores: Stores, run: Run, instance_id: str = "w") -> Run | None:
    return await lifecycle.claim(stores.pool, run, instance_id, dead_after=stores.settings.runs.dead_after)


async def test_of_two_claims_at_once_one_wins(stores: Stores) -> None:
    for _ in range(20):
        run = await make_run(stores.pool)
        claims = await asyncio.gather(*(try_claim(stores, run, name) for name in ("one", "two")))
        [winner] = [claimed for claimed in claims if claimed]
        assert (winner.attempt, winner.crashes, winner.status) == (1, 0, "running")
        assert (await row_of(stores.pool, run.id)).instance_id == winner.instance_id


async def test_a_running_run_is_claimed_only_when_its_heartbeat_is_old(stores: Stores) -> None:
    run = await claim(stores, await make_run(stores.pool))
    assert await try_claim(stores, run) is None
    taken = await try_claim(stores, await age(stores.pool, run.id, "heartbeat_at"))
    assert taken
    assert (taken.attempt, taken.crashes) == (2, 1)


async def test_the_first_claim_reserves_the_first_ids_of_the_log_and_no_later_one_does(stores: Stores) -> None:
    run, dead_after = await make_run(stores.pool), stores.settings.runs.dead_after
    first = await lifecycle.claim(stores.pool, run, "w", dead_after=dead_after, epoch="of the first")
    assert first
    assert (first.reserved_events, first.log_epoch) == (FIRST_EVENTS, "of the first")
    late = await age(stores.pool, run.id, "heartbeat_at")
    second = await lifecycle.claim(stores.pool, late, "w", dead_after=dead_after, epoch="of the second")
    assert second
    assert (second.attempt, second.reserved_events, second.log_epoch) == (2, FIRST_EVENTS, "of the first")


async def test_a_claim_by_a_process_that_has_seen_no_redis_yet_reserves_nothing(stores: Stores) -> None:
    claimed = await try_claim(stores, await make_run(stores.pool))
    assert claimed
    assert (claimed.reserved_events, claimed.log_epoch) == (0, None)


async def test_a_claim_that_read_an_older_attempt_is_refused(stores: Stores) -> None:
    run = await make_run(stores.pool)
    await claim(stores, run)
    await age(stores.pool, run.id, "heartbeat_at")
    assert await try_claim(stores, run) is None


async def test_a_stopped_run_is_not_claimed(stores: Stores) -> None:
    run = await make_run(stores.pool)
    await lifecycle.request_stops(stores.pool, [run.id])
    assert await try_claim(stores, await row_of(stores.pool, run.id)) is None


async def test_a_run_whose_stop_is_asked_is_not_taken_over(stores: Stores) -> None:
    run = await claim(stores, await make_run(stores.pool))
    await lifecycle.request_stops(stores.pool, [run.id])
    assert await try_claim(stores, await age(stores.pool, run.id, "heartbeat_at")) is None


async def test_an_expired_run_is_not_claimed(stores: Stores) -> None:
    run = await make_run(stores.pool)
    assert await try_claim(stores, await age(stores.pool, run.id, "expires_at")) is None


async def test_a_run_that_was_started_once_does_not_expire(stores: Stores) -> None:
    run = await make_run(stores.pool)
    assert await try_claim(stores, await age(stores.pool, run.id, "expires_at", "started_at"))


async def test_a_run_that_is_not_due_is_not_claimed(stores: Stores) -> None:
    run = await make_run(stores.pool, not_before=datetime.now(UTC) + SOON)
    assert await try_claim(stores, run) is None


async def test_an_earlier_unfinished_run_of_the_project_goes_first(stores: Stores) -> None:
    place = await make_place(stores.pool)
    first, second = await make_run(stores.pool, place), await make_run(stores.pool, place)
    assert await try_claim(stores, second) is None
    await lifecycle.request_stops(stores.pool, [first.id])
    assert await try_claim(stores, second)


async def test_of_two_runs_that_are_claimed_in_one_instant_out_of_turn_one_is_claimed(stores: Stores) -> None:
    """The second got an earlier turn: the database's clock was set back between their starts."""
    place = await make_place(stores.pool)
    first = await make_run(stores.pool, place)
    async with transaction(stores.pool) as conn:
        assert await lifecycle.claim(conn, first, "w", dead_after=stores.settings.runs.dead_after)
        second = await age(stores.pool, (await make_run(stores.pool, place)).id, "created_at")
        claiming = asyncio.create_task(try_claim(stores, second))
        await eventually(lambda: waiting_for_locks(stores.pool))
    assert await claiming is None
    assert (await row_of(stores.pool, second.id)).status == "queued"


async def test_an_earlier_run_that_is_not_due_yet_does_not_hold_up_the_next(stores: Stores) -> None:
    place = await make_place(stores.pool)
    await make_run(stores.pool, place, not_before=datetime.now(UTC) + SOON)
    assert await try_claim(stores, await make_run(stores.pool, place))


async def test_a_delayed_run_that_is_due_waits_for_the_run_in_progress(stores: Stores) -> None:
    place = await make_place(stores.pool)
    delayed = await make_run(stores.pool, place, not_before=datetime.now(UTC) + SOON)
    await claim(stores, await make_run(stores.pool, place))
    assert await try_claim(stores, await age(stores.pool, delayed.id, "not_before")) is None


async def test_runs_of_other_projects_are_not_in_the_way(stores: Stores) -> None:
    await make_run(stores.pool)
    assert await try_claim(stores, await make_run(stores.pool))


async def test_a_stop_that_returned_first_can_only_end_stopped(stores: Stores) -> None:
    random = Random(7)
    for number in range(100):
        run = await claim(stores, await make_run(stores.pool))
        order: list[str] = []

        async def stop(run: Run = run, order: list[str] = order) -> list[Run]:
            asked = await lifecycle.request_stops(stores.pool, [run.id])
            order.append("stop")
            return asked

        async def end(run: Run = run, order: list[str] = order) -> Run | None:
            fence = Fence(run.id, run.attempt, stores.instance_id)
            row = await lifecycle.end(stores.pool, fence, "completed", error=None, usage={"n": 1})
            order.append("end")
            return row

        both = [stop(), end()]
        if random.random() < 0.5:
            both.reverse()
        answers = await asyncio.gather(*both)
        [asked] = [answer for answer in answers if isinstance(answer, list)]
        row = await row_of(stores.pool, run.id)
        assert row.status == ("stopped" if asked else "completed"), (number, order)
        assert row.final


async def test_a_final_status_is_written_once(stores: Stores) -> None:
    run = await claim(stores, await make_run(stores.pool))
    fence = Fence(run.id, run.attempt, stores.instance_id)
    ends = await asyncio.gather(
        *(lifecycle.end(stores.pool, fence, status, error=None, usage={}) for status in ("completed", "failed") * 5)
    )
    [written] = [row for row in ends if row]
    assert (await row_of(stores.pool, run.id)).status == written.status
    assert not await lifecycle.end_from_outside(stores.pool, run.id, run.attempt, "stopped")
    assert not await lifecycle.request_stops(stores.pool, [run.id])
    assert (await row_of(stores.pool, run.id)).status == written.status


async def test_a_fence_that_was_raised_refuses_the_end(stores: Stores) -> None:
    run = await claim(stores, await make_run(stores.pool))
    assert await lifecycle.end_from_outside(stores.pool, run.id, run.attempt, "failed", error="Sorry.")
    fence = Fence(run.id, run.attempt, stores.instance_id)
    assert not await lifecycle.end(stores.pool, fence, "completed", error=None, usage={})
    assert (await row_of(stores.pool, run.id)).error == "Sorry."


async def test_a_hand_over_is_refused_after_a_stop(stores: Stores) -> None:
    run = await claim(stores, await make_run(stores.pool))
    await lifecycle.request_stops(stores.pool, [run.id])
    fence = Fence(run.id, run.attempt, stores.instance_id)
    assert not await hand_over(stores.pool, fence)
    assert (await row_of(stores.pool, run.id)).status == "running"


async def test_a_hand_over_is_no_crash_and_gives_the_run_back(stores: Stores) -> None:
    run = await claim(stores, await make_run(stores.pool))
    queued = await hand_over(stores.pool, Fence(run.id, run.attempt, stores.instance_id))
    assert queued
    assert (queued.status, queued.instance_id) == ("queued", None)
    again = await claim(stores, queued)
    assert (again.attempt, again.crashes, again.started_at) == (2, 0, run.started_at)


async def test_a_hand_over_of_a_log_that_is_not_archived_is_refused(stores: Stores) -> None:
    run = await claim(stores, await make_run(stores.pool))
    assert not await hand_over(stores.pool, Fence(run.id, run.attempt, stores.instance_id), length=3)


async def test_the_end_of_a_closed_run_is_not_taken_up_again(stores: Stores) -> None:
    run = await make_run(stores.pool)
    [stopped] = await lifecycle.request_stops(stores.pool, [run.id])
    taken = await take_up(stores.pool, stopped)
    assert taken
    assert await take_up(stores.pool, stopped) is None, "the fence rose"
    closed = await set_columns(stores.pool, run.id, closed_at=datetime.now(UTC))
    assert await take_up(stores.pool, closed) is None


async def test_a_log_that_could_not_be_archived_keeps_its_reserved_ids_at_a_hand_over(stores: Stores) -> None:
    run = await claim(stores, await make_run(stores.pool, archived_events=3, reserved_events=300))
    fence = Fence(run.id, run.attempt, stores.instance_id)
    queued = await hand_over(stores.pool, fence, length=None)
    assert queued
    assert (queued.status, queued.archived_events, queued.reserved_events) == ("queued", 3, 300)


async def test_many_hand_overs_are_answered_each_for_itself(stores: Stores) -> None:
    runs = [await claim(stores, await make_run(stores.pool)) for _ in range(5)]
    ended, stopped, taken = runs[1:4]
    await lifecycle.end_from_outside(stores.pool, ended.id, ended.attempt, "failed")
    await lifecycle.request_stops(stores.pool, [stopped.id])
    await claim(stores, await age(stores.pool, taken.id, "heartbeat_at"))
    handed = [HandOver(Fence(run.id, run.attempt, stores.instance_id), 0, True) for run in reversed(runs)]
    answers = await lifecycle.hand_over_all(stores.pool, handed)
    assert [answer and answer.id for answer in answers] == [runs[4].id, None, None, None, runs[0].id]


async def test_many_ends_from_outside_raise_each_fence_once(stores: Stores) -> None:
    runs = [await claim(stores, await make_run(stores.pool)) for _ in range(4)]
    attempts = [(run.id, run.attempt) for run in runs]
    await lifecycle.end_from_outside(stores.pool, *attempts[1], "failed")
    both = [lifecycle.end_all_from_outside(stores.pool, each, "stopped") for each in (attempts, attempts[::-1])]
    ended = [run for answer in await asyncio.gather(*both) for run in answer]
    assert {run.id for run in ended} == {run.id for run in runs if run.id != attempts[1][0]}
    assert len(ended) == 3
    rows = [await row_of(stores.pool, run.id) for run in runs]
    assert [(row.attempt, row.status) for row in rows] == [
        (2, "stopped"),
        (2, "failed"),
        (2, "stopped"),
        (2, "stopped"),
    ]


async def test_stops_of_the_same_runs_never_deadlock_whatever_their_order_and_plans(stores: Stores) -> None:
    """A plan that walks the index and one that walks the table meet the same rows in different orders."""
    pool, run_ids = stores.pool, sorted((uuid4() for _ in range(9)), reverse=True)
    for run_id in run_ids:
        place = await make_place(pool)
        await pool.execute(
            """
            INSERT INTO agent_runs (id, account_id, project_id, thread_id, model_name, status)
            VALUES ($1, $2, $3, $4, 'demo/echo', 'running')
            """,
            run_id,
            place.account_id,
            place.project_id,
            place.thread_id,
        )
    async with pool.acquire() as one, pool.acquire() as two:
        await one.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
        await two.execute("SET enable_indexscan = off; SET enable_bitmapscan = off")
        async with pool.acquire() as conn, conn.transaction():
            await conn.execute("SELECT FROM agent_runs WHERE id = $1 FOR UPDATE", run_ids[4])
            stops = [
                asyncio.create_task(lifecycle.request_stops(one, run_ids)),
                asyncio.create_task(lifecycle.request_stops(two, run_ids[::-1])),
            ]
            await eventually(lambda: all_wait(stores.upkeep, 2))
        assert [len(stopped) for stopped in await asyncio.gather(*stops)] == [9, 9]


async def all_wait(pool: Pool, count: int) -> bool:
    return await waiting_for_locks(pool) == count
