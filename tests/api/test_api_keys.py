"""API keys over HTTP."""

from typing import Any

import pytest
from fastapi import FastAPI

from services.settings import Settings
from tests.api.conftest import Person
from tests.api.world import add_member, key_of, made


async def make(person: Person, **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = (await person.post("/api-keys", json={"title": "ci", **fields})).raise_for_status().json()
    return made


@pytest.fixture
def robot(app: FastAPI, settings: Settings) -> Person:
    """A client without a token."""
    robot = Person(app, settings)
    del robot.headers["Authorization"]
    return robot


async def test_a_key_and_its_secret_are_shown_once(ann: Person) -> None:
    key = await make(ann, description="nightly", expires_in_days=30)
    assert set(key) == {
        "key_id", "public_key", "secret_key", "title", "description", "scopes", "status", "expires_at", "last_used_at",
        "created_at",
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
