"""RATE_LIMIT_PER_MINUTE as clients meet it."""

import re
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from fastapi import FastAPI
from redis.asyncio import Redis

from api import access
from api.app import create_app
from services.settings import Settings
from tests.api.conftest import Person
from tests.api.test_access import CASES

MOST = 5
UNCOUNTED = access.OPEN | {name for name in access.ROUTES if name.endswith("/stream")}


@pytest.fixture
async def app(settings: Settings, redis: Redis) -> AsyncIterator[FastAPI]:
    limits = settings.limits.model_copy(update={"rate_limit_per_minute": MOST})
    app = create_app(settings.model_copy(update={"limits": limits}))
    async with app.router.lifespan_context(app):
        yield app


async def use_up(person: Person) -> None:
    for _ in range(MOST):
        assert (await person.get("/threads")).status_code == 200
    assert (await person.get("/threads")).status_code == 429


async def test_a_user_beyond_the_limit_is_told_when_to_come_again_others_are_served(ann: Person, bob: Person) -> None:
    await use_up(ann)
    refused = await ann.get("/threads")
    detail = refused.json()["detail"]
    assert detail["limit"] == MOST
    assert detail["message"]
    assert refused.headers["Retry-After"] == str(detail["retry_after"])
    assert 0 < detail["retry_after"] <= 60
    assert (await bob.get("/threads")).status_code == 200


async def test_every_route_counts_but_health_and_streams(ann: Person) -> None:
    await use_up(ann)
    for name in [*access.ROUTES, *access.OPEN]:
        case = CASES[name]
        method, _, path = name.partition(" ")
        path = re.sub(r"\{\w+\}", str(uuid4()), path)
        answer = await ann.request(method, path, json=case.json, data=case.form or None)
        assert (answer.status_code == 429) == (name not in UNCOUNTED), f"{name}: {answer.status_code}"


async def test_keys_and_other_accounts_count_for_their_user(ann: Person, app: FastAPI, settings: Settings) -> None:
    made = (await ann.post("/api-keys", json={"title": "robot", "scopes": ["runs:read"]})).json()
    account = (await ann.post("/accounts", json={"name": "Garden"})).json()["account_id"]
    robot = Person(app, settings)
    robot.headers["X-API-Key"] = f"{made['public_key']}:{made['secret_key']}"
    del robot.headers["Authorization"]
    answers = [
        await robot.get("/threads"),
        await ann.get("/threads", headers={"X-Account-Id": account}),
        await ann.get("/threads", headers={"X-Account-Id": str(uuid4())}),  # somebody else's
        await ann.get("/threads"),
        await robot.get("/threads"),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 403, 429, 429]
    await robot.aclose()


async def test_who_cannot_be_told_is_not_counted(ann: Person, redis: Redis) -> None:
    del ann.headers["Authorization"]
    assert {(await ann.get("/threads")).status_code for _ in range(MOST + 2)} == {401}
    assert not [key async for key in redis.scan_iter("rate_limit:*")]
