"""Accounts and their members over HTTP."""

from collections import Counter
from uuid import UUID

import orjson

from services.billing import ledger
from services.postgres import Pool
from tests.api.conftest import Person
from tests.api.world import add_member, made


async def test_the_personal_account_comes_first_and_others_follow(ann: Person) -> None:
    team = await made(ann, "/accounts", {"name": " Team "})
    listed = (await ann.get("/accounts")).json()["accounts"]
    assert [(each["name"], each["personal"], each["role"]) for each in listed] == [
        (str(ann.user_id), True, "owner"),
        ("Team", False, "owner"),
    ]
    assert listed[1] == team


async def test_members_work_in_an_account_together(ann: Person, bob: Person) -> None:
    team = (await made(ann, "/accounts", {"name": "Team"}))["account_id"]
    in_team = {"X-Account-Id": team}
    assert (await bob.get("/threads", headers=in_team)).status_code == 403
    await add_member(ann, team, "member", bob.user_id)
    thread_id = (await bob.post("/threads", data={"name": "Garden"}, headers=in_team)).json()["thread_id"]
    assert (await ann.get(f"/threads/{thread_id}", headers=in_team)).status_code == 200
    assert (await ann.get(f"/threads/{thread_id}")).status_code == 404
    roles = {each["user_id"]: each["role"] for each in (await bob.get(f"/accounts/{team}/members")).json()["members"]}
    assert roles == {str(ann.user_id): "owner", str(bob.user_id): "member"}


async def test_a_viewer_reads_and_is_told_why_nothing_more(ann: Person, bob: Person) -> None:
    team = (await made(ann, "/accounts", {"name": "Team"}))["account_id"]
    await add_member(ann, team, "viewer", bob.user_id)
    answer = await bob.post("/threads", data={"name": "Garden"}, headers={"X-Account-Id": team})
    assert answer.status_code == 403
    assert answer.json() == {"detail": "Your role in this account is viewer; this takes owner or member."}


async def test_somebody_who_leaves_is_out_at_once(ann: Person, bob: Person) -> None:
    team = (await made(ann, "/accounts", {"name": "Team"}))["account_id"]
    await add_member(ann, team, "viewer", bob.user_id)
    assert (await bob.post(f"/accounts/{team}/leave")).status_code == 200
    assert (await bob.get(f"/accounts/{team}/members")).status_code == 404
    assert (await bob.get("/threads", headers={"X-Account-Id": team})).status_code == 403


async def test_the_last_owner_can_neither_leave_nor_become_less(ann: Person, bob: Person) -> None:
    team = (await made(ann, "/accounts", {"name": "Team"}))["account_id"]
    await add_member(ann, team, "member", bob.user_id)
    me = f"/accounts/{team}/members/{ann.user_id}"
    answers = [
        await ann.delete(me),
        await ann.post(f"/accounts/{team}/leave"),
        await ann.patch(me, json={"role": "member"}),
    ]
    assert [answer.status_code for answer in answers] == [409] * 3
    assert (await ann.post(f"/accounts/{ann.user_id}/leave")).status_code == 409
    await ann.patch(f"/accounts/{team}/members/{bob.user_id}", json={"role": "owner"})
    assert (await ann.delete(me)).status_code == 200


async def test_an_export_has_every_row_once_and_no_secret(ann: Person, bob: Person, pool: Pool) -> None:
    mcp = {"name": "w", "type": "http", "config": {"url": "https://w.example/mcp", "headers": {"X-Key": "hidden-word"}}}
    await made(ann, "/agents", {"name": "Gardener", "custom_mcps": [mcp]})
    key = await made(ann, "/api-keys", {"title": "ci"})
    threads = [(await ann.make_thread())[0] for _ in range(53)]
    for number in range(103):
        await made(ann, f"/threads/{threads[0]}/messages/add", {"message": f"message {number}"})
    run_id = await ann.make_run(threads[1])
    for number in range(51):
        await ledger.grant(pool, ann.user_id, number + 1, "welcome")
    other, _ = await bob.make_thread()
    answer = await ann.get(f"/accounts/{ann.user_id}/export")
    rows = [orjson.loads(line) for line in answer.text.splitlines()]
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{ann.user_id}.ndjson"'
    kinds = Counter(row["record"] for row in rows)
    assert kinds == {
        "account": 1, "member": 1, "agent": 1, "agent_version": 1, "api_key": 1, "project": 53, "thread": 53,
        "message": 103, "agent_run": 1, "credit": 51,
    }  # fmt: skip
    texts = [row["content"]["content"] for row in rows if row["record"] == "message"]
    assert texts == [f"message {number}" for number in range(103)]
    assert run_id in answer.text
    for secret in ("hidden-word", "sealed", key["secret_key"], "secret_hash", other, str(bob.user_id)):
        assert secret not in answer.text


async def test_a_deleted_account_takes_all_that_is_in_it_along(ann: Person, bob: Person, pool: Pool) -> None:
    team = (await made(ann, "/accounts", {"name": "Team"}))["account_id"]
    await add_member(ann, team, "member", bob.user_id)
    in_team = {"X-Account-Id": team}
    mine, theirs = await ann.make_run(), (await bob.post("/threads", data={"name": "G"}, headers=in_team)).json()
    start = {"model_name": "demo/echo"}
    await bob.post(f"/thread/{theirs['thread_id']}/agent/start", json=start, headers=in_team)
    await made(ann, "/agents", {"name": "Gardener"})
    await ledger.grant(pool, UUID(team), 5)
    assert (await bob.delete(f"/accounts/{team}")).status_code == 403
    assert (await ann.delete(f"/accounts/{team}")).json() == {"message": "Account deleted."}
    assert (await ann.delete(f"/accounts/{team}")).status_code == 404
    assert (await bob.get("/threads", headers=in_team)).status_code == 403
    for table in (
        "projects",
        "threads",
        "agent_runs",
        "api_keys",
        "account_members",
        "credit_ledger",
        "credit_balances",
    ):
        rows = await pool.fetch(f"SELECT * FROM {table}")
        assert team not in repr([dict(row) for row in rows]), table
    assert (await ann.get(f"/agent-run/{mine}")).status_code == 200


async def test_a_deleted_personal_account_begins_anew_and_empty(ann: Person, pool: Pool) -> None:
    await ann.make_run()
    assert (await ann.delete(f"/accounts/{ann.user_id}")).status_code == 200
    assert (await ann.get("/threads")).json()["threads"] == []
    await ann.make_thread()
    await pool.execute("DELETE FROM accounts")  # as another process would, of which this one hears nothing
    assert (await ann.post("/threads", data={"name": "Garden"})).status_code == 404
    await ann.make_thread()


async def test_malformed_ids_in_a_path_are_named(ann: Person) -> None:
    answer = await ann.get("/accounts/mine/members")
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["path", "account_id"]
