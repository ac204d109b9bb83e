"""API keys over HTTP."""

import asyncio
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI

from services import api_keys
from services.errors import Unauthenticated
from services.postgres import Pool, transaction
from services.settings import Settings
from tests.api.conftest import Person
from tests.api.world import add_member, key_of, made
from tests.waiting import eventually


async def make(person: Person, **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = (await person.post("/api-keys", json={"title": "ci", **fields})).raise_for_status().json()
    return made


@pytest.fixture
def robot(app: FastAPI, settings: Settings) -> Person:
    """A client without a token."""
    robot = Person(app, settings)
    del robot.headers["Authorization"]
    return robot


def said(key: dict[str, Any]) -> str:
    """What a request says with a key."""
    return f"{key['public_key']}:{key['secret_key']}"


async def test_a_key_and_its_secret_are_shown_once(ann: Person) -> None:
    key = await make(ann, description="nightly", expires_in_days=30)
    assert set(key) == {
        "key_id", "public_key", "secret_key", "title", "description", "scopes", "status", "expires_at", "last_used_at",
        "created_at", "made_with",
    }  # fmt: skip
    assert (key["status"], key["scopes"], key["last_used_at"]) == ("active", ["runs:read", "runs:write"], None)
    listed = await ann.get("/api-keys")
    secret = key.pop("secret_key")
    assert listed.json() == [key]
    assert secret not in listed.text


async def test_a_key_starts_reads_and_stops_runs_as_its_person_does(ann: Person, robot: Person) -> None:
    robot.headers["X-API-Key"] = await key_of(ann, "runs:read", "runs:write")
    run_id = await robot.make_run()
    assert (await robot.post(f"/agent-run/{run_id}/stop")).json() == {"status": "stopped"}
    assert (await ann.get(f"/agent-run/{run_id}")).json() == (await robot.get(f"/agent-run/{run_id}")).json()
    assert (await robot.get("/api-keys")).json() == {"detail": "This API key does not have the scope admin."}


@pytest.mark.parametrize("end", ["revoke", "delete"])
async def test_a_key_that_a_key_made_ends_with_it(ann: Person, robot: Person, end: str) -> None:
    first = await make(ann, scopes=["admin"], expires_in_days=1)
    robot.headers["X-API-Key"] = said(first)
    second = await make(robot, scopes=["admin"], expires_in_days=3000)
    robot.headers["X-API-Key"] = said(second)
    third = await make(robot, scopes=["admin"])
    own = await make(ann, scopes=["admin"])
    assert [key["made_with"] for key in (first, second, third)] == [None, first["key_id"], second["key_id"]]
    assert first["expires_at"] == second["expires_at"] == third["expires_at"]
    for key in (second, third, own):
        robot.headers["X-API-Key"] = said(key)
        assert (await robot.get("/threads")).status_code == 200
    if end == "revoke":
        assert (await ann.patch(f"/api-keys/{first['key_id']}/revoke")).json()["key_id"] == first["key_id"]
    else:
        (await ann.delete(f"/api-keys/{first['key_id']}")).raise_for_status()
    for key in (second, third):
        robot.headers["X-API-Key"] = said(key)
        assert (await robot.get("/threads")).status_code == 401
    robot.headers["X-API-Key"] = said(own)
    assert (await robot.get("/threads")).status_code == 200


async def test_no_key_is_made_with_one_that_ends_in_the_same_moment(
    ann: Person, pool: Pool, settings: Settings
) -> None:
    first = await make(ann, scopes=["admin"])
    async with pool.acquire() as conn, conn.transaction():
        await api_keys.revoke(conn, ann.user_id, UUID(first["key_id"]))
        making = asyncio.create_task(make_with(pool, settings, ann.user_id, first["key_id"]))
        await eventually(lambda: pool.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"))
    with pytest.raises(Unauthenticated):
        await making


async def make_with(pool: Pool, settings: Settings, user_id: UUID, key_id: str) -> None:
    async with transaction(pool) as conn:
        await api_keys.create(
            conn, settings.api_keys, user_id, user_id, title="ci", description="", scopes=["admin"], days=None,
            made_with=UUID(key_id),
        )  # fmt: skip


async def test_a_revoked_key_and_a_deleted_one_open_nothing_any_more(ann: Person, robot: Person) -> None:
    for end in ("revoke", "delete"):
        key = await make(ann)
        robot.headers["X-API-Key"] = f"{key['public_key']}:{key['secret_key']}"
        assert (await robot.get("/threads")).status_code == 200
        if end == "revoke":
            assert (await ann.patch(f"/api-keys/{key['key_id']}/revoke")).json()["status"] == "revoked"
            assert (await ann.patch(f"/api-keys/{key['key_id']}/revoke")).status_code == 200
        else:
            assert (await ann.delete(f"/api-keys/{key['key_id']}")).status_code == 200
            assert (await ann.delete(f"/api-keys/{key['key_id']}")).status_code == 404
        assert (await robot.get("/threads")).status_code == 401


async def test_of_token_and_key_the_token_counts(ann: Person, bob: Person) -> None:
    headers = {"X-API-Key": await key_of(bob, "admin")}
    thread_id, _ = await ann.make_thread()
    assert (await ann.get(f"/threads/{thread_id}", headers=headers)).status_code == 200
    forged = {**headers, "Authorization": "Bearer junk"}
    assert (await bob.get("/threads", headers=forged)).status_code == 401


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"title": " "}, "title"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["runs:read", "root"]}, "scopes"),
        ({"expires_in_days": 0}, "expires_in_days"),
        ({"description": "x" * 2001}, "description"),
    ],
)
async def test_a_key_that_cannot_be_is_refused_by_name(ann: Person, wrong: dict[str, Any], field: str) -> None:
    answer = await ann.post("/api-keys", json={"title": "ci", **wrong})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][:2] == ["body", field]


async def test_the_keys_of_an_account_are_bounded(ann: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.api_keys.MAX_KEYS", 1)
    await make(ann)
    assert (await ann.post("/api-keys", json={"title": "one more"})).status_code == 409


async def test_the_key_of_somebody_who_was_removed_does_not_come_back_with_them(
    ann: Person, bob: Person, robot: Person
) -> None:
    team = (await made(ann, "/accounts", {"name": "Team"}))["account_id"]
    await add_member(ann, team, "owner", bob.user_id)
    robot.headers["X-API-Key"] = await key_of(bob, "admin", account_id=team)
    assert (await robot.get("/threads")).status_code == 200
    await ann.delete(f"/accounts/{team}/members/{bob.user_id}")
    assert (await robot.get("/threads")).status_code == 401
    await add_member(ann, team, "viewer", bob.user_id)
    assert (await robot.get("/threads")).status_code == 401
