"""Runs of accounts that pay with credits, driven by a worker."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from uuid import UUID

import pytest
from redis.asyncio import Redis

from services.billing import gate_of, ledger, prices
from services.billing.calls import ModelCall
from services.billing.credits import USED_UP, CreditsGate
from services.billing.local import LocalGate
from services.postgres import Pool
from services.runs import closing, lifecycle, stopping
from services.runs.store import Run
from services.settings import BillingSettings, Price, Settings, Tier
from tests import fakes
from tests.agent.seeds import acts, model_settings, tool_parts
from tests.benchmarks import plans
from tests.fakes import FakeModel
from tests.services.runs.seeds import Driver, bury, closed, die, driving, eventually, make_run, row_of
from tests.worker.conftest import open_process
from tests.worker.test_runner import SLOW, drive, driven, said
from worker import sweeper
from worker.process import Process

PRICE = Price.model_validate({"input": 3, "output": 15})
COST = prices.cost(PRICE, fakes.USAGE)
CREDIT = 1_000_000


@pytest.fixture
def fake() -> Iterator[FakeModel]:
    with FakeModel() as fake:
        yield fake


@pytest.fixture
async def process(settings: Settings, redis: Redis, fake: FakeModel) -> AsyncIterator[Process]:
    """A worker of an installation that bills."""
    billing = BillingSettings(kind="credits", prices={"*": PRICE})
    billed = settings.model_copy(update={"models": model_settings(fake).models, "billing": billing})
    async with open_process(billed) as opened:
        yield replace(opened, gate=gate_of(billed))


async def granted(process: Process, amount: int = CREDIT, model: str = "openai/m") -> Run:
    """A run of an account that has so much."""
    run = await make_run(process.stores.pool, model=model)
    await ledger.grant(process.stores.pool, run.account_id, amount)
    return run


async def debits(pool: Pool, account_id: UUID) -> list[ledger.Entry]:
    """Oldest first."""
    found, _ = await ledger.page(pool, account_id, limit=100, kinds=("debit",))
    return found[::-1]


async def standing(process: Process, run: Run) -> tuple[int, int]:
    now = await ledger.standing(process.stores.pool, run.account_id)
    return now.balance, now.reserved


def calling(number: int) -> fakes.Reply:
    return acts(*tool_parts(0, "task_list", '{"tasks": []}', f"c{number}"))


async def test_each_call_of_a_run_is_billed_from_its_usage(process: Process, fake: FakeModel) -> None:
    fake.script(calling(1), fakes.says("Done."))
    run = await granted(process)
    assert (await drive(process, run)).status == "completed"
    assert [entry.amount for entry in await debits(process.stores.pool, run.account_id)] == [-COST, -COST]
    assert await standing(process, run) == (CREDIT - 2 * COST, 0)


async def test_a_run_out_of_credit_ends_stopped_with_the_reason(process: Process, fake: FakeModel) -> None:
    fake.script(*map(calling, range(5)))
    run = await granted(process, COST + 1)
    row = await drive(process, run)
    assert (row.status, row.error) == ("stopped", USED_UP)
    assert len(fake.requests) == 2, "the last credit can be used"
    assert await standing(process, run) == (1 - COST, 0)


async def test_a_model_that_is_not_of_the_tier_any_more_ends_its_run(process: Process, fake: FakeModel) -> None:
    """So a step of a workflow cannot name a model that a start would be refused."""
    fake.script(calling(1), fakes.says("Done."))
    run = await granted(process)
    tiers = {"free": Tier(), "small": Tier(models=("openai/n",))}
    billing = process.settings.billing.model_copy(update={"tiers": tiers})
    async with process.stores.pool.acquire() as conn:
        await ledger.set_tier(conn, run.account_id, "small")
    row = await drive(replace(process, gate=CreditsGate(billing)), run)
    assert (row.status, row.error) == ("stopped", "openai/m is not part of your plan.")
    assert not fake.requests
    assert await standing(process, run) == (CREDIT, 0)


@pytest.mark.parametrize("reply", [fakes.cut(3), fakes.wrong_key()], ids=["breaks off", "refused"])
async def test_a_call_that_fails_costs_nothing(process: Process, fake: FakeModel, reply: fakes.Reply) -> None:
    fake.script(reply)
    run = await granted(process)
    assert (await drive(process, run)).status == "failed"
    assert await standing(process, run) == (CREDIT, 0)
    assert not await debits(process.stores.pool, run.account_id)


async def test_words_that_a_stop_cut_off_are_billed_by_estimate(process: Process) -> None:
    run = await granted(process, model=SLOW)
    async with driven(process, run.id):
        await eventually(lambda: said(process, run, 8))
        await stopping.request_stop(process.stores, run.id)
        await closed(process.stores.pool, run.id)
    [entry] = await debits(process.stores.pool, run.account_id)
    assert entry.estimated
    assert entry.usage["prompt_tokens"] > 100, "the prompt was sent"
    assert entry.usage["completion_tokens"] > 0
    assert entry.amount == -prices.cost(PRICE, entry.usage)
    assert await standing(process, run) == (CREDIT + entry.amount, 0)


async def test_words_of_a_dead_driver_are_billed_by_whoever_closes_its_run(process: Process) -> None:
    run = await granted(process, model=SLOW)
    stores = process.stores
    async with driving(stores, run) as driver:
        await reserve_for(process, driver)
        await driver.say("a few ", "words")
        die(driver)
    await bury(stores, run.id)
    ended = await lifecycle.end_from_outside(stores.pool, run.id, driver.run.attempt, "stopped")
    assert ended
    for _ in range(2):
        await closing.close_from_outside(stores, ended)
    await closed(stores.pool, run.id)
    [entry] = await debits(stores.pool, run.account_id)
    assert (entry.estimated, entry.usage) == (True, {"prompt_tokens": 50, "completion_tokens": 4, "total_tokens": 54})
    assert await standing(process, run) == (CREDIT - prices.cost(PRICE, entry.usage), 0)


async def reserve_for(process: Process, driver: Driver) -> None:
    assert (await process.gate.reserve(process.stores.pool, driver.held.fence, ModelCall(SLOW, 50, 100))).allowed


async def test_the_sweeper_gives_back_what_a_dead_attempt_had_reserved(process: Process) -> None:
    run = await granted(process)
    stores = process.stores
    async with driving(stores, run) as driver:
        await reserve_for(process, driver)
        await lifecycle.end(stores.pool, driver.held.fence, "failed", error="x", usage={})
    await stores.pool.execute("UPDATE agent_runs SET closed_at = now()")
    await stores.pool.execute("UPDATE credit_reserves SET created_at = now() - interval '1 hour'")
    await sweeper.free_reserves(stores)
    assert await standing(process, run) == (CREDIT, 0)
    assert (await row_of(stores.pool, run.id)).status == "failed"


LOOKED_UP_ONCE = ("typeinfo_tree", "'jit'")
"""What asyncpg asks about types on each connection of its own accord, whoever happens to be the first there."""


async def statements(process: Process, fake: FakeModel) -> Counter[str]:
    """What a run of three answers asks Postgres, with how many balances looked at."""
    fake.script(calling(1), calling(2), fakes.says("Done."))
    run = await granted(process)
    async with plans.recorded(process.stores.pool) as said:
        assert (await drive(process, run)).status == "completed"
    ours = [one.query for one in said if not any(word in one.query for word in LOOKED_UP_ONCE)]
    return Counter({"all": len(ours), "of credits": sum("credit_" in query for query in ours)})


async def test_billing_costs_a_statement_for_each_call_and_local_mode_none(process: Process, fake: FakeModel) -> None:
    await statements(process, fake)  # what is prepared once, is
    billed, local = await statements(process, fake), await statements(replace(process, gate=LocalGate()), fake)
    assert local["of credits"] == 0
    assert billed["of credits"] == 6, "a reserve for each call, and the statement that stores its answer"
    assert billed["all"] - local["all"] <= 3
