"""The gate as clients meet it."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

import pytest
from fastapi import FastAPI
from httpx2 import Response
from pydantic import SecretStr

from services import run_messages
from services.billing import gate_of, ledger, reserves
from services.billing.calls import Charge, ModelCall
from services.billing.gate import Verdict
from services.billing.ledger import Standing
from services.billing.local import LocalGate
from services.messages import NewMessage
from services.postgres import Executor, Pool
from services.runs import stopping
from services.runs.fence import Fence
from services.runs.store import Run
from services.runs.stores import Stores
from services.settings import BillingSettings, Price, Settings, Tier
from tests.api.conftest import Person

BROKE = Verdict(allowed=False, message="The budget is used up.", subscription={"plan_name": "Free"})
OTHER_MODEL = Verdict(allowed=False, message="Not with this model.", allowed_models=("openai/gpt-4o-mini",))


class Refusing(LocalGate):
    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.asked: list[tuple[UUID, str]] = []

    async def may_run(self, conn: Executor, account_id: UUID, model_name: str) -> Verdict:
        self.asked.append((account_id, model_name))
        return self.verdict


@pytest.mark.parametrize(
    ("verdict", "status", "detail"),
    [
        (BROKE, 402, {"message": "The budget is used up.", "subscription": {"plan_name": "Free"}}),
        (OTHER_MODEL, 403, {"message": "Not with this model.", "allowed_models": ["openai/gpt-4o-mini"]}),
    ],
)
async def test_a_start_that_the_gate_refuses_makes_nothing(
    app: FastAPI, ann: Person, pool: Pool, verdict: Verdict, status: int, detail: object
) -> None:
    thread_id, _ = await ann.make_thread()
    ended = await ann.make_run(thread_id)
    await ann.post(f"/agent-run/{ended}/stop")
    gate = Refusing(verdict)
    app.state.resources = replace(app.state.resources, gate=gate)
    form = {"prompt": (None, "hi"), "model_name": (None, "demo/echo")}
    answers = [
        await ann.post(f"/thread/{thread_id}/agent/start", json={"model_name": "demo/echo"}),
        await ann.post("/agent/initiate", files=form),
        await ann.post(f"/agent-run/{ended}/retry"),
    ]
    assert [(answer.status_code, answer.json()["detail"]) for answer in answers] == [(status, detail)] * 3
    assert gate.asked == [(ann.user_id, "demo/echo")] * 3
    assert await pool.fetchval("SELECT count(*) FROM agent_runs") == 1
    assert await pool.fetchval("SELECT count(*) FROM projects") == 1
    shown = (await ann.get("/billing/check-status")).json()
    assert shown == {"can_run": False, "message": verdict.message, "subscription": verdict.subscription}


async def test_local_mode_lets_everybody_run(ann: Person) -> None:
    status = (await ann.get("/billing/check-status")).json()
    assert status["can_run"] is True
    assert status["subscription"]["price_id"] == "local"


async def test_the_models_that_can_be_reached_are_offered(ann: Person, app: FastAPI, settings: Settings) -> None:
    keys = {"openrouter_api_key": "sk-x", "anthropic_api_key": "", "openai_api_key": ""}
    with_key = settings.models.model_copy(update={name: SecretStr(key) for name, key in keys.items()})
    named = settings.model_copy(update={"models": with_key})
    app.state.resources = replace(app.state.resources, settings=named)
    said = (await ann.get("/billing/available-models")).json()
    assert said["total_models"] == len(said["models"])
    assert said["subscription_tier"] == "local"
    offered = {model["id"]: model["short_name"] for model in said["models"]}
    assert offered["openrouter/moonshotai/kimi-k2"] == "kimi-k2"
    assert "demo/tour" in offered
    assert not any(name.startswith("anthropic/") for name in offered)


PRICES = {
    "demo/*": Price.model_validate({"input": 1, "output": 2, "cached_input": "0.5"}),
    "openrouter/*": Price.model_validate({"input": 3, "output": 15}),
}
TIERS = {"free": Tier(models=("demo/echo", "demo/tour")), "pro": Tier(models=("*",))}
CREDITS = BillingSettings(kind="credits", prices=PRICES, tiers=TIERS)


@pytest.fixture
def billed(app: FastAPI, settings: Settings) -> None:
    """An installation that bills, with a model of the free tier, one of another, and one that nobody sells."""
    keys = {"openrouter_api_key": SecretStr("sk-x"), "anthropic_api_key": SecretStr("sk-y")}
    models = settings.models.model_copy(update={**keys, "default_model": "demo/echo"})
    changed = settings.model_copy(update={"billing": CREDITS, "models": models})
    app.state.resources = replace(app.state.resources, settings=changed, gate=gate_of(changed))


async def start(person: Person, model: str) -> Response:
    thread_id, _ = await person.make_thread()
    return await person.post(f"/thread/{thread_id}/agent/start", json={"model_name": model})


@pytest.mark.usefixtures("billed")
async def test_who_has_no_credits_may_not_start(ann: Person, pool: Pool) -> None:
    refused = await start(ann, "demo/echo")
    assert refused.status_code == 402
    subscription = refused.json()["detail"]["subscription"]
    assert (subscription["plan_name"], subscription["balance"]) == ("free", 0)
    assert (await ann.get("/billing/check-status")).json()["can_run"] is False
    await ledger.grant(pool, ann.user_id, 1)
    assert (await start(ann, "demo/echo")).status_code == 200
    status = (await ann.get("/billing/check-status")).json()
    assert (status["can_run"], status["subscription"]["balance"]) == (True, 0.000001)


@pytest.mark.usefixtures("billed")
async def test_models_of_another_tier_and_without_a_price_are_refused_also_for_a_retry(ann: Person, pool: Pool) -> None:
    await ann.get("/threads")
    await ledger.grant(pool, ann.user_id, 1)
    for model in ("demo/lorem?chunks=1", "anthropic/claude-sonnet-4-6"):
        refused = await start(ann, model)
        assert refused.status_code == 403
        assert refused.json()["detail"]["allowed_models"] == ["demo/echo", "demo/tour"]
    async with pool.acquire() as conn:
        assert await ledger.set_tier(conn, ann.user_id, "pro")
    started = await start(ann, "demo/lorem?chunks=1")
    assert started.status_code == 200
    run_id = started.json()["agent_run_id"]
    await ann.post(f"/agent-run/{run_id}/stop")
    async with pool.acquire() as conn:
        await ledger.set_tier(conn, ann.user_id, "gone")
    assert (await ann.post(f"/agent-run/{run_id}/retry")).status_code == 403, "an unknown tier is the default one"


@pytest.mark.usefixtures("billed")
async def test_models_are_offered_with_their_prices_and_by_tier(ann: Person) -> None:
    said = (await ann.get("/billing/available-models")).json()
    assert said["subscription_tier"] == "free"
    offered = {model["id"]: model for model in said["models"]}
    echo, kimi = offered["demo/echo"], offered["openrouter/moonshotai/kimi-k2"]
    sonnet = offered["anthropic/claude-sonnet-4-6"]
    shown = ("is_available", "requires_subscription", "input_cost_per_million_tokens", "output_cost_per_million_tokens")
    assert [echo[name] for name in shown] == [True, False, 1, 2]
    assert echo["cached_input_cost_per_million_tokens"] == 0.5
    assert [kimi[name] for name in shown] == [False, True, 3, 15]
    assert [sonnet[name] for name in shown] == [False, False, None, None]


async def test_usage_is_logged_by_the_page_newest_first(ann: Person, bob: Person, pool: Pool) -> None:
    thread_id, project_id = await ann.make_thread()
    run_id = await ann.make_run(thread_id)
    await bob.make_thread()
    await ledger.grant(pool, ann.user_id, 1000)
    await pool.execute("UPDATE agent_runs SET status = 'running', attempt = 1")
    for number in range(3):
        call = ModelCall("openai/m", 1)
        usage = {"prompt_tokens": 1, "completion_tokens": number, "total_tokens": number + 1, "cached_tokens": 1}
        charge = Charge(call.call_id, call.model_name, usage, number + 5, estimated=number == 2)
        assert await reserves.settle(pool, Fence(UUID(run_id), 1, "w"), call, charge)
    first = (await ann.get("/billing/usage-logs?items_per_page=2")).json()
    second = (await ann.get("/billing/usage-logs?page=1&items_per_page=2")).json()
    assert (first["has_more"], second["has_more"]) == (True, False)
    logs = [*first["logs"], *second["logs"]]
    assert [log["cost_micros"] for log in logs] == [7, 6, 5]
    assert {(log["thread_id"], log["project_id"], log["agent_run_id"]) for log in logs} == {
        (thread_id, project_id, run_id)
    }
    newest = logs[0]
    assert newest["content"]["usage"] == {
        "prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "cached_tokens": 1,
    }  # fmt: skip
    assert (newest["content"]["model"], newest["total_tokens"]) == ("openai/m", 3)
    assert (newest["estimated_cost"], newest["estimated"]) == (0.000007, True)
    assert (await bob.get("/billing/usage-logs")).json() == {"logs": [], "has_more": False}
    for bad in ("page=-1", "items_per_page=0", "items_per_page=1001"):
        assert (await ann.get(f"/billing/usage-logs?{bad}")).status_code == 422


@pytest.mark.usefixtures("billed")
@pytest.mark.parametrize("what", ["threads", "projects"])
async def test_an_answer_whose_thread_is_deleted_while_it_is_streamed_is_paid_for(
    app: FastAPI, ann: Person, pool: Pool, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    thread_id, project_id = await ann.make_thread()
    await ledger.grant(pool, ann.user_id, 1000)
    fence = Fence(UUID(await ann.make_run(thread_id)), 1, "w")
    await pool.execute("UPDATE agent_runs SET status = 'running', attempt = 1, heartbeat_at = now()")
    call = ModelCall("demo/echo", 10)
    assert await reserves.reserve(pool, fence, call, 500)
    charge = Charge(call.call_id, call.model_name, {"prompt_tokens": 10, "completion_tokens": 5}, 20, estimated=True)

    async def end_as_its_driver(_stores: Stores, runs: Sequence[Run], _grace: float) -> None:
        """A little after the stop was said it keeps what it streamed."""
        assert [run.id for run in runs] == [fence.run_id]
        await asyncio.sleep(0.1)
        said = NewMessage("assistant", {"role": "assistant", "content": "A long"}, charge=charge)
        async with pool.acquire() as conn:
            await run_messages.add(conn, fence, UUID(thread_id), [said])

    monkeypatch.setattr(stopping, "see_them_end", end_as_its_driver)
    assert (await ann.delete(f"/{what}/{thread_id if what == 'threads' else project_id}")).status_code == 200
    assert not await pool.fetchval("SELECT count(*) FROM agent_runs")
    assert await ledger.standing(pool, ann.user_id) == Standing(None, 980, 0)
