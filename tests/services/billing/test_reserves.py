"""Reserves and the balance that they guard."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from services import run_messages
from services.billing import ledger, reserves
from services.billing.calls import Charge, ModelCall
from services.messages import NewMessage
from services.postgres import Pool
from services.runs.fence import Fence, FenceLost
from services.runs.store import Run
from tests.services.runs.seeds import eventually, make_place, make_run, set_columns, waiting_for_locks

CALL = ("openai/m", 100)


async def running(pool: Pool, beside: Run | None = None) -> Run:
    """A run of an account of its own, or of that of another."""
    place = await make_place(pool, beside.account_id if beside else None)
    return await make_run(pool, place, status="running", attempt=1)


def fence_of(run: Run, attempt: int = 1) -> Fence:
    return Fence(run.id, attempt, "worker")


async def reserve(pool: Pool, run: Run, amount: int, call: ModelCall | None = None, attempt: int = 1) -> bool | None:
    reserved = await reserves.reserve(pool, fence_of(run, attempt), call or ModelCall(*CALL), amount)
    return reserved.taken if reserved else None


async def account(pool: Pool, account_id: UUID) -> tuple[int, int]:
    """Balance and what is reserved of it."""
    standing = await ledger.standing(pool, account_id)
    return standing.balance, standing.reserved


async def test_parallel_reserves_of_one_account_never_take_more_than_one_beyond_its_balance(pool: Pool) -> None:
    first = await running(pool)
    runs = [first, *[await running(pool, first) for _ in range(7)]]
    await ledger.grant(pool, first.account_id, 250)
    taken = await asyncio.gather(*(reserve(pool, run, 100) for run in runs))
    assert taken.count(True) == 3
    assert await account(pool, first.account_id) == (250, 300)


async def test_who_was_never_granted_anything_can_reserve_nothing(pool: Pool) -> None:
    run = await running(pool)
    assert await reserve(pool, run, 1) is False
    assert not await pool.fetch("SELECT * FROM credit_reserves")


async def test_a_reserve_takes_the_place_of_the_one_before_of_its_run(pool: Pool) -> None:
    run = await running(pool)
    await ledger.grant(pool, run.account_id, 100)
    call = ModelCall(*CALL)
    assert [await reserve(pool, run, 90, call) for _ in range(2)] == [True, True]
    await set_columns(pool, run.id, attempt=2)
    assert await reserve(pool, run, 100) is None, "the fence is lost"
    assert await reserve(pool, run, 120, attempt=2) is True
    assert await account(pool, run.account_id) == (100, 120)
    [row] = await pool.fetch("SELECT attempt, amount FROM credit_reserves")
    assert tuple(row) == (2, 120)


async def test_a_try_whose_answer_was_lost_and_that_commits_late_is_counted_once(pool: Pool) -> None:
    run = await running(pool)
    await ledger.grant(pool, run.account_id, 1000)
    call = ModelCall(*CALL)
    async with pool.acquire() as conn:
        late = conn.transaction()
        await late.start()
        assert await reserves.reserve(conn, fence_of(run), call, 90)
        again = asyncio.create_task(reserve(pool, run, 90, call))
        await eventually(lambda: waiting_for_locks(pool))
        await late.commit()
    with pytest.raises(asyncpg.UniqueViolationError):
        await again
    assert await reserve(pool, run, 90, call) is True, "so the gate asks once more"
    assert await account(pool, run.account_id) == (1000, 90)


async def store(pool: Pool, run: Run, charge: Charge, message_id: UUID) -> None:
    new = NewMessage("assistant", {"role": "assistant", "content": "x"}, message_id=message_id, charge=charge)
    async with pool.acquire() as conn:
        await run_messages.add(conn, fence_of(run), run.thread_id, [new])


async def test_a_call_is_settled_by_the_statement_that_stores_its_message(pool: Pool) -> None:
    run = await running(pool)
    await ledger.grant(pool, run.account_id, 1000)
    call, message_id = ModelCall(*CALL), uuid4()
    await reserve(pool, run, 90, call)
    charge = Charge(call.call_id, "openai/m", {"prompt_tokens": 7, "total_tokens": 7}, 21)
    await set_columns(pool, run.id, attempt=2)
    with pytest.raises(FenceLost):
        await store(pool, run, charge, message_id)
    assert await account(pool, run.account_id) == (1000, 90)
    await set_columns(pool, run.id, attempt=1)
    await store(pool, run, charge, message_id)
    await store(pool, run, charge, uuid4())
    assert await account(pool, run.account_id) == (979, 0)
    [entry], _ = await ledger.page(pool, run.account_id, limit=9, kinds=("debit",))
    assert (entry.amount, entry.message_id, entry.agent_run_id) == (-21, message_id, run.id)
    assert (entry.thread_id, entry.project_id, entry.model_name) == (run.thread_id, run.project_id, "openai/m")
    assert (entry.usage, entry.estimated) == ({"prompt_tokens": 7, "total_tokens": 7}, False)


async def test_a_call_without_a_message_is_given_back_once(pool: Pool) -> None:
    run = await running(pool)
    await ledger.grant(pool, run.account_id, 1000)
    call = ModelCall(*CALL)
    await reserve(pool, run, 90, call)
    assert [await reserves.settle(pool, fence_of(run), call, None) for _ in range(2)] == [True, True]
    assert not await reserves.settle(pool, fence_of(run, 2), call, None)
    assert await account(pool, run.account_id) == (1000, 0)


@pytest.mark.parametrize(
    ("columns", "stays"),
    [
        ({}, True),
        ({"attempt": 2}, False),
        ({"status": "queued"}, False),
        ({"status": "stopped", "completed_at": "now"}, True),
        ({"status": "stopped", "completed_at": "now", "closed_at": "now"}, False),
        (None, False),
    ],
    ids=["live", "taken over", "handed over", "not closed yet", "closed", "deleted"],
)
async def test_reserves_of_the_dead_are_given_back(pool: Pool, columns: dict[str, Any] | None, stays: bool) -> None:
    run = await running(pool)
    await ledger.grant(pool, run.account_id, 1000)
    await reserve(pool, run, 90)
    if columns is None:
        await pool.execute("DELETE FROM projects WHERE project_id = $1", run.project_id)
    else:
        settings = ", ".join(f"{name} = {value!r}" for name, value in columns.items()) or "attempt = attempt"
        await pool.execute(f"UPDATE agent_runs SET {settings} WHERE id = $1", run.id)
    assert await reserves.free_dead(pool, timedelta(minutes=1), 10) == 0, "it is young"
    await pool.execute("UPDATE credit_reserves SET created_at = now() - interval '1 hour'")
    assert await reserves.free_dead(pool, timedelta(minutes=1), 10) == (not stays)
    assert await account(pool, run.account_id) == (1000, 90 if stays else 0)
