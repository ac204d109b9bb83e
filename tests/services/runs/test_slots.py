"""How many runs an account has at a time, whatever starts, waits, ends and dies."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.errors import TooManyRequests
from services.postgres import Pool, transaction
from services.runs import lifecycle, slots, starting
from services.runs.fence import Fence
from services.runs.starting import NewRun
from services.runs.store import Run
from services.runs.stores import Stores
from services.settings import LimitSettings
from tests.services.runs.seeds import Place, claim, eventually, make_place, row_of, set_columns, waiting_for_locks
from tests.services.runs.test_lifecycle import try_claim
from tests.waiting import PATIENT
from worker import sweeper

TWO = LimitSettings(max_concurrent_runs=2)
LATER = timedelta(minutes=5)


async def beside(pool: Pool, place: Place) -> Place:
    """Another project of the same account."""
    other = Place(place.account_id, uuid4(), uuid4())
    await pool.execute(
        "INSERT INTO projects (project_id, account_id, name) VALUES ($1, $2, 'p')", other.project_id, other.account_id
    )
    await pool.execute(
        "INSERT INTO threads (thread_id, account_id, project_id) VALUES ($1, $2, $3)",
        other.thread_id,
        other.account_id,
        other.project_id,
    )
    return other


async def places(pool: Pool, count: int) -> list[Place]:
    first = await make_place(pool)
    return [first, *[await beside(pool, first) for _ in range(count - 1)]]


async def start(stores: Stores, place: Place, limits: LimitSettings = TWO, **options: Any) -> Run:
    new = NewRun(place.account_id, place.project_id, place.thread_id, "demo/echo", **options)
    async with transaction(stores.pool) as conn:
        return (await starting.start(conn, new, limits)).run


async def refused(stores: Stores, place: Place, **options: Any) -> dict[str, Any]:
    with pytest.raises(TooManyRequests) as refusal:
        await start(stores, place, **options)
    assert int(refusal.value.headers["Retry-After"]) > 0
    assert isinstance(refusal.value.detail, dict)
    return refusal.value.detail


async def end(stores: Stores, run: Run) -> None:
    """As its driver would, whoever that was."""
    fence = Fence(run.id, run.attempt, "")
    assert await lifecycle.end(stores.pool, fence, "completed", error=None, usage={}), "it is not running"


async def due(stores: Stores, run: Run, *, seconds_ago: float = 0) -> Run:
    return await set_columns(stores.pool, run.id, not_before=datetime.now(UTC) - timedelta(seconds=seconds_ago))


async def judge(stores: Stores, limits: LimitSettings = TWO) -> None:
    """What the sweeper does of it."""
    for project_id in await slots.open_projects(stores.pool, limits, 100):
        async with transaction(stores.pool) as conn:
            await starting.judge(conn, project_id, limits)


async def phase(stores: Stores, run: Run) -> str:
    return (await row_of(stores.pool, run.id)).phase


async def override(stores: Stores, account_id: UUID, most: int | None) -> None:
    await stores.pool.execute(
        """
        INSERT INTO account_limits (account_id, max_concurrent_runs) VALUES ($1, $2)
        ON CONFLICT (account_id) DO UPDATE SET max_concurrent_runs = $2
        """,
        account_id,
        most,
    )


async def test_a_start_beyond_the_limit_is_refused_and_says_what_runs(stores: Stores) -> None:
    one, two, three = await places(stores.pool, 3)
    await start(stores, one)
    await claim(stores, await start(stores, two))
    said = await refused(stores, three)
    assert said["running_thread_ids"] == [str(one.thread_id), str(two.thread_id)]
    assert (said["running_count"], said["limit"]) == (2, 2)
    assert said["message"]
    assert await stores.pool.fetchval("SELECT count(*) FROM agent_runs") == 2
    await start(stores, await make_place(stores.pool))  # another account


async def test_an_end_frees_its_slot_at_once(stores: Stores) -> None:
    one, two, three = await places(stores.pool, 3)
    first, second = await claim(stores, await start(stores, one)), await start(stores, two)
    await refused(stores, three)
    await end(stores, first)
    third = await start(stores, three)
    await refused(stores, one)
    await lifecycle.request_stops(stores.pool, [second.id, third.id])
    await start(stores, one)
    await start(stores, two)


async def test_a_run_that_is_stopping_or_was_given_back_keeps_its_slot(stores: Stores) -> None:
    one, two, three = await places(stores.pool, 3)
    stopping, given_back = await claim(stores, await start(stores, one)), await claim(stores, await start(stores, two))
    await lifecycle.request_stops(stores.pool, [stopping.id])
    handed = lifecycle.HandOver(Fence(given_back.id, given_back.attempt, ""), None, False)
    assert await lifecycle.hand_over_all(stores.pool, [handed]) != [None]
    await refused(stores, three)
    await set_columns(stores.pool, given_back.id, status="running", heartbeat_at=datetime(2000, 1, 1, tzinfo=UTC))
    await refused(stores, three)  # its driver is dead: it goes on elsewhere


async def test_a_start_that_replaces_is_never_refused_for_what_it_replaces(stores: Stores) -> None:
    one, two, three = await places(stores.pool, 3)
    queued, running = await start(stores, one), await claim(stores, await start(stores, two))
    again, after = await start(stores, one), await start(stores, two)
    assert await phase(stores, queued) == "stopped"
    assert again.phase == "queued"
    assert (await phase(stores, running), after.phase) == ("stopping", "waiting")
    await refused(stores, three)
    await end(stores, running)
    assert await phase(stores, after) == "queued"
    await refused(stores, three)


async def test_what_queues_behind_a_run_holds_no_slot_and_takes_over_the_one_that_is_left(stores: Stores) -> None:
    one, two, three = await places(stores.pool, 3)
    first = await claim(stores, await start(stores, one))
    behind = [await start(stores, one, on_active="queue") for _ in range(3)]
    second = await start(stores, two)
    await refused(stores, three, on_active="queue")
    await end(stores, first)
    assert [await phase(stores, run) for run in behind] == ["queued", "waiting", "waiting"]
    await refused(stores, three)
    await lifecycle.request_stops(stores.pool, [run.id for run in behind])
    await start(stores, three)
    assert await phase(stores, second) == "queued"


async def test_a_delayed_run_holds_no_slot_and_waits_for_one_when_it_is_due(stores: Stores) -> None:
    one, two, three, four = await places(stores.pool, 4)
    late = await start(stores, three, delay=LATER)
    first, _ = await claim(stores, await start(stores, one)), await start(stores, two)
    later = await start(stores, four, delay=LATER, on_active="queue")  # not refused either
    late, later = await due(stores, late, seconds_ago=2), await due(stores, later, seconds_ago=1)
    await judge(stores)
    assert (await phase(stores, late), await phase(stores, later)) == ("waiting", "waiting")
    assert await try_claim(stores, late) is None
    await end(stores, first)
    await refused(stores, one)  # what was due before comes first
    await judge(stores)
    assert (await phase(stores, late), await phase(stores, later)) == ("queued", "waiting")
    late = await claim(stores, await row_of(stores.pool, late.id))
    assert await try_claim(stores, later) is None
    await end(stores, late)
    await judge(stores)
    assert await phase(stores, later) == "queued"


async def test_a_project_whose_run_is_being_deleted_holds_up_no_other_that_waits_to_be_judged(stores: Stores) -> None:
    one, *others = [await make_place(stores.pool) for _ in range(4)]
    doomed = await claim(stores, await start(stores, one))
    late = [await due(stores, await start(stores, place, delay=LATER)) for place in (one, *others)]
    async with stores.pool.acquire() as deleting, deleting.transaction():
        await deleting.execute("SELECT FROM agent_runs WHERE id = $1 FOR UPDATE", doomed.id)
        async with asyncio.timeout(PATIENT):
            await sweeper.judge_due(stores)
        assert [await phase(stores, run) for run in late] == ["waiting", "queued", "queued", "queued"]
    await sweeper.judge_due(stores)
    assert await phase(stores, doomed) == "stopping"


async def test_a_delayed_run_of_a_project_that_has_a_slot_needs_no_other(stores: Stores) -> None:
    one, two = await places(stores.pool, 2)
    running, other = await claim(stores, await start(stores, one)), await claim(stores, await start(stores, two))
    queues = await due(stores, await start(stores, one, delay=LATER, on_active="queue"))
    stops = await due(stores, await start(stores, two, delay=LATER))
    await judge(stores)
    assert (await phase(stores, running), await phase(stores, queues)) == ("running", "waiting")
    assert (await phase(stores, other), await phase(stores, stops)) == ("stopping", "waiting")
    await end(stores, running)
    await end(stores, other)
    assert (await phase(stores, queues), await phase(stores, stops)) == ("queued", "queued")


async def test_who_queues_behind_a_run_that_waits_for_a_slot_gets_none_by_that(stores: Stores) -> None:
    one, two, three = await places(stores.pool, 3)
    late = await due(stores, await start(stores, three, delay=LATER))
    await start(stores, one)
    await refused(stores, two)  # the run that is due comes first
    follower = await start(stores, three, on_active="queue")  # shares its slot
    await lifecycle.request_stops(stores.pool, [late.id])
    assert await phase(stores, follower) == "queued"
    await refused(stores, two)
    full = await due(stores, await start(stores, two, delay=LATER))
    await judge(stores)
    assert await phase(stores, full) == "waiting"
    await refused(stores, two, on_active="queue")
    await refused(stores, two)
    assert await phase(stores, full) == "waiting", "a start that is refused stops nothing"


async def test_a_run_that_is_set_aside_leaves_its_slot_unless_others_wait_behind_it(stores: Stores) -> None:
    one, two, three = await places(stores.pool, 3)
    alone, first = await claim(stores, await start(stores, one)), await claim(stores, await start(stores, two))
    behind = await start(stores, two, on_active="queue")
    until = datetime.now(UTC) + LATER
    for run in (alone, first):
        handed = lifecycle.HandOver(Fence(run.id, run.attempt, ""), None, False, until)
        assert await lifecycle.hand_over_all(stores.pool, [handed]) != [None]
    third = await start(stores, three)
    await refused(stores, await beside(stores.pool, one))
    await due(stores, alone)
    await judge(stores)
    assert await phase(stores, alone) == "waiting"
    await lifecycle.request_stops(stores.pool, [first.id])
    assert await phase(stores, behind) == "queued", "it takes over the slot that was kept for it"
    await refused(stores, await beside(stores.pool, one))
    await lifecycle.request_stops(stores.pool, [third.id])
    await judge(stores)
    assert await phase(stores, alone) == "queued"


async def test_a_run_that_waits_for_a_slot_until_it_expires_fails(stores: Stores) -> None:
    one, two, three = await places(stores.pool, 3)
    await start(stores, one)
    await start(stores, two)
    late = await due(stores, await start(stores, three, delay=LATER, expires_in=2 * LATER))
    await set_columns(stores.pool, late.id, expires_at=datetime.now(UTC))
    await judge(stores)
    await sweeper.end_expired(stores)
    assert await phase(stores, late) == "failed"


async def test_an_account_may_have_another_limit_or_none(stores: Stores) -> None:
    one, two, three = await places(stores.pool, 3)
    await override(stores, one.account_id, 1)
    await start(stores, one)
    assert (await refused(stores, two))["limit"] == 1
    late = await due(stores, await start(stores, two, delay=LATER))
    await judge(stores)
    assert await phase(stores, late) == "waiting"
    await override(stores, one.account_id, 0)
    await judge(stores)
    assert await phase(stores, late) == "queued"
    await start(stores, three)
    await override(stores, one.account_id, None)
    assert (await refused(stores, await beside(stores.pool, one)))["limit"] == 2


async def test_starts_of_an_account_take_turns_and_those_without_a_limit_do_not(stores: Stores) -> None:
    one, two = await places(stores.pool, 2)
    new = NewRun(one.account_id, one.project_id, one.thread_id, "demo/echo")
    async with transaction(stores.pool) as conn:
        await starting.start(conn, new, TWO)
        other = asyncio.create_task(start(stores, two))
        await eventually(lambda: waiting_for_locks(stores.pool))
        async with asyncio.timeout(PATIENT):
            await start(stores, await beside(stores.pool, one), LimitSettings(max_concurrent_runs=0))
            await judge(stores)
    with pytest.raises(TooManyRequests):
        await other  # it counts what was started while it waited


async def test_many_starts_on_several_pools_never_get_more_nor_less_than_the_limit(
    stores: Stores, other: Stores
) -> None:
    most, at_once = LimitSettings(max_concurrent_runs=3), 24
    everywhere = await places(stores.pool, at_once)
    for _ in range(4):
        starts = [start((stores, other)[number % 2], place, most) for number, place in enumerate(everywhere)]
        answers = await asyncio.gather(*starts, return_exceptions=True)
        accepted = [answer for answer in answers if isinstance(answer, Run)]
        assert len(accepted) == 3
        assert sum(isinstance(answer, TooManyRequests) for answer in answers) == at_once - 3
        await lifecycle.request_stops(stores.pool, [run.id for run in accepted])


async def test_projects_whose_runs_are_due_are_judged_in_the_order_in_which_they_became_due(stores: Stores) -> None:
    """A sweep takes some of them: those that came first."""
    waiting = [await make_place(stores.pool) for _ in range(8)]
    for minutes, place in enumerate(waiting):
        await due(stores, await start(stores, place, delay=LATER), seconds_ago=60 * (minutes + 1))
    for most in (1, 3, 8):
        found = await slots.open_projects(stores.pool, TWO, most)
        assert found == [place.project_id for place in reversed(waiting)][:most]
