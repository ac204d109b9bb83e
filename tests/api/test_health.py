from datetime import datetime
from unittest.mock import AsyncMock

import pytest
from alembic.script import ScriptDirectory
from fastapi import FastAPI
from pydantic import SecretStr
from redis.asyncio import Redis

from api.app import create_app
from services import schema
from services.errors import Unavailable
from services.postgres import Pool
from services.settings import Settings
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
    assert set(dependencies) == {"postgres", "migrations", "redis", "broker"}
    assert all(it["ok"] and it["latency_ms"] >= 0 and it["error"] is None for it in dependencies.values())


@pytest.mark.parametrize(
    ("away", "code", "status"), [(1, 200, "degraded"), (2, 503, "unavailable")], ids=["one of two", "both"]
)
async def test_of_several_redis_servers_each_is_shown_and_one_that_answers_will_do(
    settings: Settings, redis: Redis, away: int, code: int, status: str
) -> None:
    urls = [settings.redis.dsn, "redis://127.0.0.1:1", "redis://127.0.0.1:2"][away - 1 :][:2]
    names = [f"{url}#{name}" for url, name in zip(urls, ("north", "south"), strict=True)]
    spread = settings.redis.model_copy(update={"urls": SecretStr(",".join(names))})
    app = create_app(settings.model_copy(update={"redis": spread}))
    async with app.router.lifespan_context(app), Person(app, settings) as nobody:
        answer = await nobody.get("/health/ready")
    assert answer.status_code == code
    assert answer.json()["status"] == status
    dependencies = answer.json()["dependencies"]
    assert set(dependencies) == {"postgres", "migrations", "redis north", "redis south", "broker"}
    assert [dependencies[name]["ok"] for name in ("redis north", "redis south")] == [away == 1, False]


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


async def test_a_schema_that_is_older_than_the_code_makes_it_503_and_a_newer_one_does_not(
    nobody: Person, pool: Pool
) -> None:
    for there, code in (("0001", 503), ("9999", 200)):
        await pool.execute("UPDATE alembic_version SET version_num = $1", there)
        answer = await nobody.get("/health/ready")
        assert answer.status_code == code
        assert answer.json()["dependencies"]["migrations"]["ok"] is (code == 200)
    await pool.execute("UPDATE alembic_version SET version_num = $1", "0001")
    error = (await nobody.get("/health/ready")).json()["dependencies"]["migrations"]["error"]
    assert error == f"The schema is at 0001, and {schema.NEEDED} is needed: run python -m migrations."
    await pool.execute("UPDATE alembic_version SET version_num = $1", schema.NEEDED)


def test_what_is_needed_is_the_newest_migration() -> None:
    scripts = ScriptDirectory(str(schema.VERSIONS.parent))
    assert scripts.get_current_head() == schema.NEEDED
