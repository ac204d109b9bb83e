"""Webhooks over HTTP: who may start a workflow by one, what it is started with, and what is refused."""

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import orjson
import pytest
from fastapi import FastAPI
from httpx2 import Response
from redis.asyncio import Redis

from api.app import create_app
from api.routes import triggers
from services.postgres import Pool
from services.settings import LimitSettings, Settings
from services.webhooks import signatures, workflow_webhooks
from tests.api.conftest import Person
from tests.api.test_billing import BROKE, OTHER_MODEL, Refusing
from tests.api.test_executions import ASKING, step_of, workflow_of
from tests.api.world import made
from tests.services.metrics.reading import Counted

SLACK, TELEGRAM = "8f742231b10e8888abcd99yyyzzz85a5", "a-token_of-32-characters-or-more"
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
OUTCOMES = ("accepted", "refused", "limited", "declined", "failed")


@pytest.fixture
def sender(person: Callable[[], Person]) -> Person:
    """Somebody without a token."""
    stranger = person()
    del stranger.headers["Authorization"]
    return stranger


async def hook_of(person: Person, workflow_id: str, **asked: Any) -> dict[str, Any]:
    answer = await person.put(f"/workflows/{workflow_id}/webhook", json=asked)
    kept: dict[str, Any] = answer.raise_for_status().json()
    return kept


def signed(
    secret: str, body: bytes, *, webhook_id: str | None = None, late: timedelta = timedelta(0), content_type: str = JSON
) -> dict[str, Any]:
    """A request as the specification has it."""
    said = signatures.headers([secret], webhook_id or f"msg_{uuid4()}", datetime.now(UTC) - late, body)
    return {"content": body, "headers": {"content-type": content_type, **said}}


def from_slack(
    secret: str, body: bytes, content_type: str = JSON, *, late: timedelta = timedelta(0), **headers: str
) -> dict[str, Any]:
    stamp = str(int((datetime.now(UTC) - late).timestamp()))
    digest = hmac.new(secret.encode(), f"v0:{stamp}:".encode() + body, hashlib.sha256).hexdigest()
    said = {"x-slack-request-timestamp": stamp, "x-slack-signature": f"v0={digest}"}
    return {"content": body, "headers": {"content-type": content_type, **said, **headers}}


def from_telegram(token: str, update: dict[str, Any]) -> dict[str, Any]:
    said = {"content-type": JSON, "x-telegram-bot-api-secret-token": token}
    return {"content": orjson.dumps(update), "headers": said}


async def send(sender: Person, workflow_id: str, request: dict[str, Any]) -> Response:
    return await sender.post(f"/webhooks/trigger/{workflow_id}", **request)


async def executions(pool: Pool) -> list[dict[str, Any]]:
    return [dict(row) for row in await pool.fetch("SELECT * FROM workflow_executions ORDER BY created_at")]


BODY = b'{"who": "Ann", "more": [1, 2]}'


async def test_a_signed_webhook_starts_the_workflow_with_what_it_says(ann: Person, sender: Person, pool: Pool) -> None:
    workflow_id = await workflow_of(ann, **ASKING)
    kept = await hook_of(ann, workflow_id)
    assert kept["url"].endswith(f"/api/webhooks/trigger/{workflow_id}")
    answer = await send(sender, workflow_id, signed(kept["secret"], BODY))
    assert answer.status_code == 202, answer.text
    started = answer.json()
    assert set(started) == {"execution_id", "agent_run_id", "thread_id", "status"}
    assert started["status"] == "running"
    [execution] = await executions(pool)
    assert str(execution["execution_id"]) == started["execution_id"]
    assert execution["triggered_by"] == "WEBHOOK"
    assert execution["variables"] == {"who": "Ann", "payload": {"who": "Ann", "more": [1, 2]}}
    run = (await ann.get(f"/agent-run/{started['agent_run_id']}")).json()
    assert (run["status"], run["threadId"]) == ("running", started["thread_id"])


async def test_the_variable_for_all_that_was_sent_is_named_by_the_trigger(
    ann: Person, sender: Person, pool: Pool
) -> None:
    triggers = [{"type": "SCHEDULE", "config": {}}, {"type": "webhook", "config": {"payload": "event"}}]
    workflow_id = await workflow_of(ann, **ASKING, triggers=triggers)
    kept = await hook_of(ann, workflow_id)
    assert (await send(sender, workflow_id, signed(kept["secret"], BODY))).status_code == 202
    [execution] = await executions(pool)
    assert execution["variables"] == {"who": "Ann", "event": orjson.loads(BODY)}
    wrong = {"triggers": [{"type": "WEBHOOK", "config": {"payload": "no name"}}]}
    assert (await ann.put(f"/workflows/{workflow_id}", json=wrong)).status_code == 422


async def test_bad_variables_are_named_and_nothing_is_started(ann: Person, sender: Person, pool: Pool) -> None:
    workflow_id = await workflow_of(ann, **ASKING)
    secret = (await hook_of(ann, workflow_id))["secret"]
    for body in (b"{}", b'{"who": 5}', b'{"who": null}'):
        answer = await send(sender, workflow_id, signed(secret, body))
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["body", "variables.who"]
    assert not await executions(pool)


async def test_whatever_is_forged_or_stale_starts_nothing_and_learns_nothing(
    ann: Person, bob: Person, sender: Person, pool: Pool
) -> None:
    workflow_id, without = await workflow_of(ann, **ASKING), await workflow_of(ann, **ASKING)
    secret = (await hook_of(ann, workflow_id))["secret"]
    of_other = (await hook_of(bob, await workflow_of(bob, **ASKING)))["secret"]
    good = signed(secret, BODY)
    minute = timedelta(minutes=1)
    forgeries = {
        "no signature": {"content": BODY, "headers": {"content-type": JSON}},
        "another secret": signed(signatures.make_secret(), BODY),
        "of another workflow": signed(of_other, BODY),
        "another body": {**good, "content": BODY + b" "},
        "another id": {**good, "headers": {**good["headers"], "webhook-id": "msg_1"}},
        "another time": {**good, "headers": {**good["headers"], "webhook-timestamp": str(10**9)}},
        "stale": signed(secret, BODY, late=6 * minute),
        "of the future": signed(secret, BODY, late=-6 * minute),
        "junk": {"content": BODY, "headers": {"content-type": JSON, "webhook-signature": "v1,junk"}},
        "as Slack": from_slack(secret, BODY),
        "as Telegram": from_telegram(secret, {"update_id": 1}),
        "empty token": {"content": BODY, "headers": {"content-type": JSON, "x-telegram-bot-api-secret-token": ""}},
    }
    for what, request in forgeries.items():
        answers = [await send(sender, each, request) for each in (workflow_id, without, str(uuid4()))]
        assert {answer.status_code for answer in answers} == {401}, what
        assert len({answer.content for answer in answers}) == 1, what
    for missing in (without, str(uuid4())):
        assert (await send(sender, missing, good)).status_code == 401
    assert not await executions(pool)
    assert (await send(sender, workflow_id, good)).status_code == 202


async def test_a_replay_is_answered_with_the_first_execution(ann: Person, sender: Person, pool: Pool) -> None:
    workflow_id, other = await workflow_of(ann, **ASKING), await workflow_of(ann, **ASKING)
    secret = (await hook_of(ann, workflow_id))["secret"]
    request = signed(secret, BODY, webhook_id="msg_1")
    answers = await asyncio.gather(*(send(sender, workflow_id, request) for _ in range(5)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["execution_id"] for answer in answers}) == 1
    again = await send(sender, workflow_id, signed(secret, BODY, webhook_id="msg_1", late=timedelta(minutes=1)))
    assert again.json()["execution_id"] == answers[0].json()["execution_id"]
    assert len(await executions(pool)) == 1
    assert (await send(sender, workflow_id, signed(secret, BODY, webhook_id="msg_2"))).status_code == 202
    theirs = (await hook_of(ann, other))["secret"]
    assert (await send(sender, other, signed(theirs, BODY, webhook_id="msg_1"))).status_code == 202
    assert len(await executions(pool)) == 3


async def test_a_body_of_another_type_is_refused(ann: Person, sender: Person, pool: Pool) -> None:
    workflow_id = await workflow_of(ann, **ASKING)
    secret = (await hook_of(ann, workflow_id))["secret"]
    for content_type in ("text/plain", FORM, "", "multipart/x", "application/jsonx", "text/json"):
        answer = await send(sender, workflow_id, signed(secret, BODY, content_type=content_type))
        assert answer.status_code == 415, content_type
    assert not await executions(pool)
    for content_type in (f"{JSON}; charset=utf-8", "Application/JSON"):
        answer = await send(sender, workflow_id, signed(secret, BODY, content_type=content_type))
        assert answer.status_code == 202, content_type


NO_PLAIN_OBJECTS = [
    b"",
    b"{",
    b"[1]",
    b'"text"',
    b"null",
    b"\xff\xfe",
    b'{"who": "a\\u0000b"}',
    b'{"who": "a", "n": 1e999}',
    b'{"who": "a", "deep": ' + b"[" * 200 + b"]" * 200 + b"}",
    b'{"who": "a", "half": "\\ud800"}',
]


async def test_what_is_no_plain_json_object_is_refused(ann: Person, sender: Person, pool: Pool) -> None:
    workflow_id = await workflow_of(ann, **ASKING)
    secret = (await hook_of(ann, workflow_id))["secret"]
    for body in NO_PLAIN_OBJECTS:
        answer = await send(sender, workflow_id, signed(secret, body))
        assert answer.status_code == 422, body
    assert not await executions(pool)


async def test_a_body_is_read_up_to_the_limit_and_no_further(
    ann: Person, sender: Person, pool: Pool, settings: Settings
) -> None:
    workflow_id = await workflow_of(ann, **ASKING)
    secret = (await hook_of(ann, workflow_id))["secret"]
    limit, sent = settings.webhooks.max_body_bytes, 0
    large = orjson.dumps({"who": "x" * limit})
    assert (await send(sender, workflow_id, signed(secret, large))).status_code == 413

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 65536
            yield b" " * 65536

    request = {**signed(secret, b""), "content": endless()}
    assert (await send(sender, workflow_id, request)).status_code == 413
    assert sent <= limit + 3 * 65536
    assert not await executions(pool)
    fits = orjson.dumps({"who": "x" * (limit - 100)})
    assert (await send(sender, workflow_id, signed(secret, fits))).status_code == 202


async def test_a_workflow_that_is_not_active_is_told_of_only_after_a_good_signature(
    ann: Person, sender: Person, pool: Pool
) -> None:
    for state in ("PAUSED", "DRAFT"):
        workflow_id = await workflow_of(ann, **ASKING, state=state)
        secret = (await hook_of(ann, workflow_id))["secret"]
        request = signed(secret, BODY, webhook_id="msg_1")
        assert (await send(sender, workflow_id, signed(signatures.make_secret(), BODY))).status_code == 401
        answer = await send(sender, workflow_id, request)
        assert (answer.status_code, state in answer.json()["detail"]) == (409, True)
        assert not await executions(pool)
    (await ann.put(f"/workflows/{workflow_id}", json={"state": "ACTIVE"})).raise_for_status()
    assert (await send(sender, workflow_id, request)).status_code == 202, "a refusal used its id up"


async def test_after_a_rotation_the_old_secret_counts_for_a_while(ann: Person, sender: Person, pool: Pool) -> None:
    workflow_id = await workflow_of(ann, **ASKING)
    old = (await hook_of(ann, workflow_id))["secret"]
    rotated = (await ann.post(f"/workflows/{workflow_id}/webhook/rotate")).json()
    new = rotated["secret"]
    assert (rotated["previous_secret"], new != old) == (old, True)
    for secret in (old, new):
        assert (await send(sender, workflow_id, signed(secret, BODY))).status_code == 202
    await pool.execute("UPDATE workflow_webhooks SET previous_until = now()")
    assert (await send(sender, workflow_id, signed(old, BODY))).status_code == 401
    assert (await send(sender, workflow_id, signed(new, BODY))).status_code == 202
    assert (await ann.get(f"/workflows/{workflow_id}/webhook")).json()["previous_secret"] is None
    stored = await pool.fetchrow("SELECT secret, previous FROM workflow_webhooks")
    assert not [each for each in (old, new) if each in str(stored)]


async def test_a_webhook_that_is_removed_or_replaced_counts_no_more(ann: Person, sender: Person) -> None:
    workflow_id = await workflow_of(ann, **ASKING)
    first = (await hook_of(ann, workflow_id))["secret"]
    second = (await hook_of(ann, workflow_id))["secret"]
    assert (await send(sender, workflow_id, signed(first, BODY))).status_code == 401
    assert (await send(sender, workflow_id, signed(second, BODY))).status_code == 202
    (await ann.delete(f"/workflows/{workflow_id}/webhook")).raise_for_status()
    assert (await send(sender, workflow_id, signed(second, BODY))).status_code == 401
    for method in ("GET", "DELETE"):
        assert (await ann.request(method, f"/workflows/{workflow_id}/webhook")).status_code == 404
    assert (await ann.post(f"/workflows/{workflow_id}/webhook/rotate")).status_code == 404


async def test_a_secret_that_its_format_cannot_have_is_refused(ann: Person) -> None:
    workflow_id = await workflow_of(ann, **ASKING)
    for asked in (
        {"format": "slack"},
        {"format": "slack", "secret": "short"},
        {"format": "telegram", "secret": "with spaces in it and more"},
        {"format": "standard", "secret": "whsec_short"},
        {"format": "email"},
        {"format": "slack", "secret": "8f742231b10e8888abcd99yyyzzz85\u0000"},
    ):
        answer = await ann.put(f"/workflows/{workflow_id}/webhook", json=asked)
        assert answer.status_code == 422, asked
        assert answer.json()["detail"][0]["loc"][-1] in ("secret", "format"), asked


async def test_slack_is_answered_its_challenge_and_starts_nothing_with_it(
    ann: Person, sender: Person, pool: Pool
) -> None:
    workflow_id = await workflow_of(ann, **ASKING, state="PAUSED")
    await hook_of(ann, workflow_id, format="slack", secret=SLACK)
    body = orjson.dumps({"type": "url_verification", "challenge": "3eZbrw1aB", "token": "x"})
    answer = await send(sender, workflow_id, from_slack(SLACK, body))
    assert (answer.status_code, answer.json()) == (200, {"challenge": "3eZbrw1aB"})
    assert (await send(sender, workflow_id, from_slack("another-secret-of-32-characters!", body))).status_code == 401
    assert not await executions(pool)


EVENT = {"type": "event_callback", "event_id": "Ev1", "event": {"type": "app_mention", "who": "U1", "text": "hi"}}


async def test_an_event_of_slack_starts_once_however_often_it_is_repeated(
    ann: Person, sender: Person, pool: Pool
) -> None:
    workflow_id = await workflow_of(ann, **ASKING)
    await hook_of(ann, workflow_id, format="slack", secret=SLACK)
    body = orjson.dumps(EVENT)
    first = await send(sender, workflow_id, from_slack(SLACK, body))
    retry = {"x-slack-retry-num": "1", "x-slack-retry-reason": "http_timeout"}
    again = await send(sender, workflow_id, from_slack(SLACK, body, late=timedelta(seconds=-60), **retry))
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["execution_id"] == again.json()["execution_id"]
    [execution] = await executions(pool)
    assert execution["variables"] == {"who": "U1", "payload": EVENT}


async def test_a_slash_command_is_answered_as_slack_wants_it(ann: Person, sender: Person, pool: Pool) -> None:
    asking = {"variables": [{"name": "text", "type": "string"}]}
    workflow_id = await workflow_of(ann, entry_point="given", steps=[step_of("given", "INPUT", asking)], triggers=[])
    await hook_of(ann, workflow_id, format="slack", secret=SLACK)
    said = {"command": "/water", "text": "Grüße & more", "trigger_id": "13345224609.738474920.8088930838d88f008e0"}
    body = urlencode(said).encode()
    answers = [await send(sender, workflow_id, from_slack(SLACK, body, FORM)) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json()["response_type"] == "ephemeral"
    assert answers[0].json() == answers[1].json()
    [execution] = await executions(pool)
    assert execution["variables"] == {"text": "Grüße & more", "payload": said}
    pressed = {"type": "block_actions", "text": "pressed", "trigger_id": "2"}
    interaction = urlencode({"payload": orjson.dumps(pressed).decode()}).encode()
    answer = await send(sender, workflow_id, from_slack(SLACK, interaction, FORM))
    assert (answer.status_code, answer.content) == (200, b""), "Slack takes nothing else of whoever hears of a click"
    assert (await executions(pool))[-1]["variables"] == {"text": "pressed", "payload": pressed}
    for bad in (b"\xff=1", urlencode({"payload": "{"}).encode(), b"&".join(b"a%d=1" % n for n in range(200))):
        assert (await send(sender, workflow_id, from_slack(SLACK, bad, FORM))).status_code == 422


async def test_what_is_not_from_the_slack_app_is_refused(ann: Person, sender: Person, pool: Pool) -> None:
    workflow_id = await workflow_of(ann, **ASKING)
    await hook_of(ann, workflow_id, format="slack", secret=SLACK)
    body = orjson.dumps(EVENT)
    good = from_slack(SLACK, body)
    changes = {
        "stale": from_slack(SLACK, body, late=timedelta(minutes=6)),
        "another body": {**good, "content": body + b" "},
        "another time": {**good, "headers": {**good["headers"], "x-slack-request-timestamp": "1"}},
        "no time": {**good, "headers": {**good["headers"], "x-slack-request-timestamp": ""}},
        "junk": {**good, "headers": {**good["headers"], "x-slack-signature": "v0=junk"}},
        "as a standard webhook": signed(signatures.make_secret(), body),
        "as telegram": from_telegram(SLACK, {"update_id": 1}),
    }
    for what, request in changes.items():
        assert (await send(sender, workflow_id, request)).status_code == 401, what
    assert (await send(sender, workflow_id, from_slack(SLACK, body, "text/plain"))).status_code == 415
    assert not await executions(pool)


async def test_an_update_of_telegram_starts_once(ann: Person, sender: Person, pool: Pool) -> None:
    asking = {"variables": [{"name": "text", "type": "string"}, {"name": "update_id", "type": "integer"}]}
    workflow_id = await workflow_of(ann, entry_point="given", steps=[step_of("given", "INPUT", asking)])
    kept = await hook_of(ann, workflow_id, format="telegram", secret=TELEGRAM)
    assert kept["secret"] == TELEGRAM
    update = {"update_id": 7, "message": {"message_id": 1, "text": "hello", "chat": {"id": 5}}}
    answers = [await send(sender, workflow_id, from_telegram(TELEGRAM, update)) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {202}
    [execution] = await executions(pool)
    assert execution["variables"] == {"text": "hello", "update_id": 7, "payload": update}
    for token in ("", TELEGRAM[:-1], TELEGRAM + "x", TELEGRAM.upper(), "ü"):
        request = from_telegram("x", update)
        request["headers"]["x-telegram-bot-api-secret-token"] = token.encode("latin-1")
        assert (await send(sender, workflow_id, request)).status_code == 401, token
    for bad in ({"update_id": "7"}, {"update_id": True}, {}):
        assert (await send(sender, workflow_id, from_telegram(TELEGRAM, bad))).status_code == 422
    rotated = (await ann.post(f"/workflows/{workflow_id}/webhook/rotate")).json()
    assert rotated["secret"] != TELEGRAM
    assert (await send(sender, workflow_id, from_telegram(rotated["secret"], {**update, "update_id": 8}))).is_success


async def test_only_who_may_change_the_workflow_sees_its_secret(ann: Person, bob: Person, sender: Person) -> None:
    workflow_id = await workflow_of(ann, **ASKING)
    await hook_of(ann, workflow_id)
    for method, path in (("GET", ""), ("PUT", ""), ("DELETE", ""), ("POST", "/rotate")):
        url = f"/workflows/{workflow_id}/webhook{path}"
        assert (await bob.request(method, url)).status_code == 404
        assert (await sender.request(method, url)).status_code == 401


async def test_a_forged_webhook_costs_one_look_up_and_one_that_is_unsigned_or_stale_none(
    ann: Person, sender: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow_id = await workflow_of(ann, **ASKING)
    secret = (await hook_of(ann, workflow_id))["secret"]
    find, found = workflow_webhooks.find, list[object]()

    async def counted(*asked: Any) -> Any:
        found.append(asked)
        return await find(*asked)

    monkeypatch.setattr(workflow_webhooks, "find", counted)
    await send(sender, workflow_id, {"content": BODY, "headers": {"content-type": JSON}})
    await send(sender, workflow_id, signed(secret, BODY, late=timedelta(hours=1)))
    assert not found
    await send(sender, workflow_id, signed(signatures.make_secret(), BODY))
    assert len(found) == 1


@pytest.fixture
async def narrow(settings: Settings, redis: Redis) -> AsyncIterator[FastAPI]:
    limits = LimitSettings(max_concurrent_runs=1, rate_limit_per_minute=0)
    webhooks = settings.webhooks.model_copy(update={"rate_per_minute": 3})
    app = create_app(settings.model_copy(update={"limits": limits, "webhooks": webhooks}))
    async with app.router.lifespan_context(app):
        yield app


async def test_a_sender_is_told_of_limits_and_forgeries_do_not_count(
    narrow: FastAPI, settings: Settings, pool: Pool
) -> None:
    async with Person(narrow, settings) as ann, Person(narrow, settings) as sender:
        del sender.headers["Authorization"]
        workflow_id, other = await workflow_of(ann, **ASKING), await workflow_of(ann, **ASKING)
        secret = (await hook_of(ann, workflow_id))["secret"]
        for _ in range(5):
            assert (await send(sender, workflow_id, signed(signatures.make_secret(), BODY))).status_code == 401
        assert (await send(sender, workflow_id, signed(secret, BODY))).status_code == 202
        full = await send(sender, workflow_id, signed(secret, BODY, webhook_id="msg_9"))
        assert (full.status_code, full.json()["detail"]["limit"]) == (429, 1)
        assert full.headers["retry-after"]
        await send(sender, workflow_id, signed(secret, BODY))
        counted = Counted()
        fast = await send(sender, workflow_id, signed(secret, BODY))
        assert fast.status_code == 429
        assert counted("webhook_triggers_total", outcome="limited") == 1
        assert "minute" in fast.json()["detail"]["message"]
        theirs = (await hook_of(ann, other))["secret"]
        assert "minute" not in (await send(sender, other, signed(theirs, BODY))).text
        assert len(await executions(pool)) == 1


async def test_webhooks_that_come_in_are_counted_by_how_they_are_answered(
    ann: Person, sender: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted()
    workflow_id = await workflow_of(ann, **ASKING)
    secret = (await hook_of(ann, workflow_id))["secret"]
    await send(sender, workflow_id, signed(secret, BODY))
    await send(sender, workflow_id, signed(signatures.make_secret(), BODY))
    await send(sender, str(uuid4()), {"content": BODY, "headers": {"content-type": JSON}})
    await send(sender, workflow_id, signed(secret, b"{}"))
    await send(sender, workflow_id, signed(secret, BODY, content_type="text/plain"))

    async def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(triggers, "started", broken)
    assert (await send(sender, workflow_id, signed(secret, BODY))).status_code == 500
    assert {each: counted("webhook_triggers_total", outcome=each) for each in OUTCOMES} == {
        "accepted": 1, "refused": 2, "limited": 0, "declined": 2, "failed": 1,
    }  # fmt: skip


async def test_the_gate_refuses_what_a_webhook_would_start_and_the_same_webhook_counts_later(
    app: FastAPI, ann: Person, sender: Person, pool: Pool
) -> None:
    workflow_id = await workflow_of(ann, **ASKING)
    request = signed((await hook_of(ann, workflow_id))["secret"], BODY)
    resources = app.state.resources
    for verdict, status in ((BROKE, 402), (OTHER_MODEL, 403)):
        app.state.resources = replace(resources, gate=Refusing(verdict))
        answer = await send(sender, workflow_id, request)
        assert (answer.status_code, answer.json()["detail"]["message"]) == (status, verdict.message)
    assert await pool.fetchval("SELECT count(*) FROM agent_runs") == 0
    app.state.resources = resources
    assert (await send(sender, workflow_id, request)).status_code == 202


async def test_the_secret_of_an_account_is_made_once_shown_and_rotated(ann: Person, bob: Person, pool: Pool) -> None:
    path = f"/accounts/{ann.user_id}/webhook-secret"
    first, again = (await ann.get(path)).json(), (await ann.get(path)).json()
    assert first == again
    assert first["secret"].startswith("whsec_")
    assert first["previous_secret"] is None
    rotated = (await ann.post(f"{path}/rotate")).json()
    assert rotated["previous_secret"] == first["secret"]
    assert rotated["secret"] != first["secret"]
    assert (await ann.get(path)).json() == rotated
    assert (await bob.get(path)).status_code == 404
    stored = await pool.fetchrow("SELECT secret, previous FROM account_webhook_secrets")
    assert not [each for each in (rotated["secret"], first["secret"]) if each in str(stored)]
    await pool.execute("UPDATE account_webhook_secrets SET secret = 'junk'")
    assert (await ann.get(path)).status_code == 503
    assert (await ann.post(f"{path}/rotate")).json()["previous_secret"] is None


async def test_the_attempts_of_a_run_are_shown_to_its_account_alone(ann: Person, bob: Person, pool: Pool) -> None:
    plain = await ann.make_run()
    nothing: dict[str, Any] = {"state": "none", "webhook_id": None, "next_attempt_at": None, "attempts": []}
    assert (await ann.get(f"/agent-run/{plain}/webhook-attempts")).json() == nothing
    run_id = await ann.make_run(webhook_url="https://example.com/hook")
    path = f"/agent-run/{run_id}/webhook-attempts"
    assert (await ann.get(path)).json()["state"] == "waiting"
    assert (await bob.get(path)).status_code == 404
    await ann.post(f"/agent-run/{run_id}/stop")
    shown = (await ann.get(path)).json()
    assert (shown["state"], shown["webhook_id"]) == ("pending", f"run_{run_id}")


async def test_deleting_a_workflow_or_an_account_takes_its_secrets_along(ann: Person, pool: Pool) -> None:
    workflow_id = await workflow_of(ann, **ASKING)
    await hook_of(ann, workflow_id)
    account = (await made(ann, "/accounts", {"name": "Team"}))["account_id"]
    (await ann.get(f"/accounts/{account}/webhook-secret")).raise_for_status()
    (await ann.delete(f"/workflows/{workflow_id}")).raise_for_status()
    (await ann.delete(f"/accounts/{account}")).raise_for_status()
    for table in ("workflow_webhooks", "account_webhook_secrets"):
        assert not await pool.fetchval(f"SELECT count(*) FROM {table}")
