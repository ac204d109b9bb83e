"""What the calls of a run cost, whatever they came to."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast
from unittest.mock import patch

import pytest
from httpx2 import AsyncClient

from agent import charges, models
from agent.context import RunContext
from agent.loop import keep_draft, run_agent
from services.billing import ledger, prices
from services.billing.calls import ModelCall
from services.billing.credits import CreditsGate
from services.billing.gate import Verdict
from services.billing.ledger import Entry
from services.postgres import Executor, Pool
from services.runs.fence import Fence
from services.settings import BillingSettings, Price, Settings
from tests import fakes
from tests.agent.seeds import (
    RecordingLog,
    acts,
    eventually,
    make_context,
    make_run,
    make_thread,
    model_settings,
    rows_of,
    tool_parts,
)
from tests.agent.test_conversation import PROSE, TOO_LONG, fill, with_window
from tests.fakes import FakeModel

MODEL = "openai/m"
PRICE = Price.model_validate({"input": 3, "output": 15})
GATE = CreditsGate(BillingSettings(kind="credits", prices={"*": PRICE}))
COST = prices.cost(PRICE, fakes.USAGE)
CREDIT = 1_000_000
CALL = tool_parts(0, "task_list", '{"tasks": []}', "c1")


async def billed(
    pool: Pool, http: AsyncClient, settings: Settings, granted: int = CREDIT, **options: Any
) -> RunContext:
    """A run of an account that has so much."""
    ctx, _ = await make_context(pool, http, settings, MODEL, **options)
    await ledger.grant(pool, ctx.run.account_id, granted)
    ctx.gate = GATE
    return ctx


async def debits(ctx: RunContext) -> Sequence[Entry]:
    """Oldest first; nothing is reserved any more, and the balance is what they left."""
    entries, _ = await ledger.page(ctx.pool, ctx.run.account_id, limit=100)
    standing = await ledger.standing(ctx.pool, ctx.run.account_id)
    assert (standing.balance, standing.reserved) == (sum(entry.amount for entry in entries), 0)
    return [entry for entry in entries[::-1] if entry.kind == "debit"]


@pytest.mark.parametrize(("model", "name"), [("openai/m", "max_completion_tokens"), ("vllm/m", "max_tokens")])
async def test_an_answer_that_is_paid_for_may_be_no_longer_than_was_reserved(
    pool: Pool, http: AsyncClient, fake: FakeModel, model: str, name: str
) -> None:
    settings = model_settings(fake, vllm_base_url=fake.base_url)
    fake.script(fakes.says("Done."), fakes.says("Done."))
    free, _ = await make_context(pool, http, settings, model)
    await run_agent(free)
    paid, _ = await make_context(pool, http, settings, model)
    await ledger.grant(pool, paid.run.account_id, CREDIT)
    paid.gate = GATE
    await run_agent(paid)
    limits = [{key: said for key, said in asked.body.items() if key.startswith("max_")} for asked in fake.requests]
    assert limits == [{}, {name: models.look_up(model).max_output}]


async def test_a_summary_is_billed_like_an_answer(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx = await billed(pool, http, with_window(settings, 20_000), enable_context_manager=True)
    await fill(pool, ctx.run.thread_id, 60, PROSE * 40)
    fake.script(fakes.says("They counted."), fakes.says("It was 0."))
    await run_agent(ctx)
    entries = await debits(ctx)
    assert [entry.amount for entry in entries] == [-COST, -COST]
    stored = {row.message_id: row.type for row in await rows_of(ctx)}
    assert [stored[entry.message_id] for entry in entries if entry.message_id] == ["summary", "assistant"]


async def test_an_answer_that_is_stored_in_parts_is_billed_once(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx = await billed(pool, http, settings)
    ctx.config = replace(ctx.config, execute_on_stream=True)
    fake.script(
        acts(*CALL, *tool_parts(1, "task_list", '{"tasks": []}', "c2"), words="Two at once"), fakes.says("Done.")
    )
    await run_agent(ctx)
    assert len([row for row in await rows_of(ctx) if row.type == "assistant"]) > 2
    assert [entry.amount for entry in await debits(ctx)] == [-COST, -COST]


async def test_parts_of_an_answer_that_was_cut_off_are_billed_by_estimate(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx = await billed(pool, http, settings)
    ctx.config = replace(ctx.config, execute_on_stream=True)
    cut = acts(*CALL, *tool_parts(1, "task_list", '{"tasks": []}', "c2"), words="I will do two things")
    fake.script(replace(cut, ending="hang"))
    work = asyncio.create_task(run_agent(ctx))
    await eventually(lambda: bool(ctx.call and ctx.call.answered))
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    await keep_draft(ctx)
    await charges.settle_rest(ctx)
    await charges.settle_rest(ctx)
    [entry] = await debits(ctx)
    assert entry.estimated
    assert entry.usage["completion_tokens"] >= 5
    assert entry.usage["prompt_tokens"] > 100


@pytest.mark.parametrize("words", ["", "I will write it down."], ids=["nothing but a call", "words and a call"])
async def test_a_tool_call_that_readers_saw_half_of_is_billed_when_the_run_is_stopped(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel, words: str
) -> None:
    ctx = await billed(pool, http, settings)
    log = cast(RecordingLog, ctx.log)
    written = tool_parts(0, "create_file", '{"path": "a.txt", "content": "' + "many words of it, " * 200, "c1")
    fake.script(replace(acts(*written, words=words), ending="hang"))
    work = asyncio.create_task(run_agent(ctx))
    await eventually(lambda: sum("many words" in str(event.content) for event in log.events) == 3)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    await keep_draft(ctx)
    await charges.settle_rest(ctx)
    [entry] = await debits(ctx)
    assert entry.estimated
    assert entry.usage["completion_tokens"] > 500
    assert entry.usage["prompt_tokens"] > 100
    assert (entry.message_id is not None) == bool(words)


async def test_a_stop_before_the_first_word_costs_nothing(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx = await billed(pool, http, settings)
    fake.script(fakes.hangs(0))
    work = asyncio.create_task(run_agent(ctx))
    await eventually(lambda: len(fake.requests) == 1)
    assert (await ledger.standing(pool, ctx.run.account_id)).reserved
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    await keep_draft(ctx)
    await charges.settle_rest(ctx)
    assert not await debits(ctx)


async def test_a_request_that_was_too_long_costs_nothing(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx = await billed(pool, http, settings)
    await fill(pool, ctx.run.thread_id, 30)
    fake.script(TOO_LONG, fakes.says("It was 0."))
    await run_agent(ctx)
    assert [entry.amount for entry in await debits(ctx)] == [-COST]


async def test_an_answer_that_nobody_counted_is_billed_by_estimate(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx = await billed(pool, http, settings)
    fake.script(replace(fakes.says("Some ", "words ", "of an answer."), usage=None))
    await run_agent(ctx)
    [entry] = await debits(ctx)
    assert (entry.estimated, entry.message_id) == (True, (await rows_of(ctx))[-1].message_id)
    assert entry.amount == -prices.cost(PRICE, entry.usage) < 0


class Noting(CreditsGate):
    """Counts those whom it told to wait."""

    waiting = 0

    async def reserve(self, conn: Executor, fence: Fence, call: ModelCall) -> Verdict:
        verdict = await super().reserve(conn, fence, call)
        self.waiting += verdict.passing
        return verdict


@pytest.mark.parametrize("left", [1, 0], ids=["it goes on", "it ends"])
async def test_a_run_waits_for_credits_that_another_call_holds(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel, left: int
) -> None:
    ctx = await billed(pool, http, settings, granted=COST + left)
    async with pool.acquire() as conn:
        other = await make_run(conn, await make_thread(conn), MODEL)
        await conn.execute("UPDATE agent_runs SET account_id = $2 WHERE id = $1", other.id, ctx.run.account_id)
    fence = replace(ctx.fence, run_id=other.id)
    call = ModelCall(MODEL, 1, 1_000_000)
    assert (await GATE.reserve(pool, fence, call)).allowed
    ctx.gate = noting = Noting(GATE.settings)
    fake.script(fakes.says("Done."))
    with patch.object(charges, "PASSING_SECONDS", 0.01):
        work = asyncio.create_task(run_agent(ctx))
        await eventually(lambda: noting.waiting > 1)
        await GATE.settle(pool, fence, call, GATE.charge(call, fakes.USAGE, 0))
        [ended] = await asyncio.gather(work, return_exceptions=True)
    assert (str(ended) if ended else "went on") == ("went on" if left else "The credits of this account are used up.")
    assert len(await debits(ctx)) == 1 + left
