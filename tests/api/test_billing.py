"""The gate as clients meet it."""

from dataclasses import replace
from uuid import UUID

import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from services.billing.gate import Verdict
from services.postgres import Executor, Pool
from services.settings import Settings
from tests.api.conftest import Person

BROKE = Verdict(allowed=False, message="The budget is used up.", subscription={"plan_name": "Free"})
OTHER_MODEL = Verdict(allowed=False, message="Not with this model.", allowed_models=("openai/gpt-4o-mini",))


class Refusing:
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
