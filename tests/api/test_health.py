from datetime import datetime
from unittest.mock import AsyncMock

import pytest
from fastapi import FastAPI

from services.errors import Unavailable
from tests.api.conftest import Person


async def test_alive_needs_no_token(nobody: Person, app: FastAPI) -> None:
    answer = (await nobody.get("/health")).json()
    assert answer["status"] == "ok"
    assert answer["instance_id"] == app.state.resources.stores.instance_id
    assert datetime.fromisoformat(answer["timestamp"]).tzinfo


async def test_ready_tells_the_latency_of_each_dependency(nobody: Person) -> None:
    answer = await nobody.get("/health/ready")
    assert answer.status_code == 200
    dependencies = answer.json()["dependencies"]
    assert set(dependencies) == {"postgres", "redis", "broker"}
    assert all(it["ok"] and it["latency_ms"] >= 0 and it["error"] is None for it in dependencies.values())


async def test_a_dependency_that_is_down_makes_it_503_with_a_sentence(
    nobody: Person, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.state.resources.stores.dispatch, "ping", AsyncMock(side_effect=Unavailable))
    answer = await nobody.get("/health/ready")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    dependencies = answer.json()["dependencies"]
    assert dependencies["broker"]["error"] == "The message broker cannot be reached."
    assert dependencies["postgres"]["ok"]
    assert dependencies["redis"]["ok"]
