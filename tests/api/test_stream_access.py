"""Who opens a stream, and whose stream is closed again, over a real uvicorn."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from httpx2 import AsyncClient
from redis.asyncio import Redis

from api.app import create_app
from services import stream_passes
from services.postgres import Executor
from services.settings import RedisSettings, Settings, StreamSettings
from services.stream_tokens import StreamPass
from services.tokens import sign_access_token
from tests.acceptance.client import Client
from tests.api.conftest import Person
from tests.api.test_sse import Server, serving
from tests.waiting import eventually

RECHECK = timedelta(seconds=0.3)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"streams": StreamSettings(recheck_interval=RECHECK)})


@pytest.fixture
async def server(settings: Settings, redis: Redis) -> AsyncIterator[Server]:
    async with serving(settings) as server:
        yield server


class People:
    """Clients of a server, each signed in as somebody else."""

    def __init__(self, url: str, settings: Settings, stack: AsyncExitStack) -> None:
        self.url, self.secret, self.stack = url, settings.auth.secrets[0], stack

    def arrive(self) -> tuple[Client, str]:
        """A client and the id of its user."""
        user_id = uuid4()
        client = Client.signed_in(self.url, self.secret, user_id)
        self.stack.push_async_callback(client.http.aclose)
        return client, str(user_id)

    def stranger(self) -> AsyncClient:
        client = AsyncClient(base_url=f"{self.url}/api", trust_env=False)
        self.stack.push_async_callback(client.aclose)
        return client


@pytest.fixture
async def people(server: Server, settings: Settings) -> AsyncIterator[People]:
    async with AsyncExitStack() as stack:
        yield People(server.url, settings, stack)


async def stream_token(client: Client, run_id: str) -> str:
    answer = (await client.http.post(f"/agent-run/{run_id}/stream-token")).raise_for_status().json()
    assert answer["expires_in"] == 900
    token: str = answer["token"]
    return token


async def status_of(client: AsyncClient, run_id: str, token: str, **headers: str) -> int:
    address = f"/agent-run/{run_id}/stream"
    async with client.stream("GET", address, params={"token": token}, headers=headers) as response:
        return response.status_code


async def test_a_stream_token_opens_one_stream_and_nothing_else(people: People) -> None:
    ann, _ = people.arrive()
    run, other = await ann.initiate(), await ann.initiate()
    token, stranger = await stream_token(ann, run.run_id), people.stranger()
    assert await status_of(stranger, run.run_id, token) == 200
    assert await status_of(stranger, other.run_id, token) == 401
    assert await status_of(stranger, str(uuid4()), token) == 401
    as_bearer = {"Authorization": f"Bearer {token}"}
    assert (await stranger.get(f"/agent-run/{run.run_id}", headers=as_bearer)).status_code == 401
    assert (await stranger.post(f"/agent-run/{run.run_id}/stop", params={"token": token})).status_code == 401
    assert (await stranger.post(f"/agent-run/{run.run_id}/stream-token", headers=as_bearer)).status_code == 401


async def test_an_access_token_in_the_address_opens_what_its_person_may_read(people: People) -> None:
    ann, _ = people.arrive()
    mine = await ann.initiate()
    bob, _ = people.arrive()
    theirs = await bob.initiate()
    token, stranger = ann.http.headers["Authorization"].removeprefix("Bearer "), people.stranger()
    assert await status_of(stranger, mine.run_id, token) == 200
    assert await status_of(stranger, theirs.run_id, token) == 404


async def test_a_header_counts_before_a_token_in_the_address(people: People) -> None:
    ann, _ = people.arrive()
    run_id = (await ann.initiate()).run_id
    token = await stream_token(ann, run_id)
    assert await status_of(people.stranger(), run_id, token, Authorization="Bearer junk") == 401


async def test_stream_tokens_are_made_and_hold_without_redis(settings: Settings) -> None:
    nowhere = RedisSettings.model_validate({"url": "redis://127.0.0.1:9/0", "socket_timeout": "300ms"})
    app = create_app(settings.model_copy(update={"redis": nowhere}))
    async with app.router.lifespan_context(app), Person(app, settings) as ann:
        run_id = await ann.make_run()
        token = (await ann.post(f"/agent-run/{run_id}/stream-token")).json()["token"]
        del ann.headers["Authorization"]
        answer = await ann.get(f"/agent-run/{run_id}/stream", params={"token": token})
        assert answer.status_code == 200
        assert "is away, reconnect" in answer.text
        assert (await ann.get(f"/agent-run/{uuid4()}/stream", params={"token": token})).status_code == 401


async def test_a_token_that_cannot_be_judged_now_does_not_end_an_eventsource(settings: Settings) -> None:
    auth = settings.auth.model_copy(update={"algorithms": ("ES256",), "jwks_url": "http://127.0.0.1:9/jwks.json"})
    app = create_app(settings.model_copy(update={"auth": auth}))
    es256 = "eyJhbGciOiJFUzI1NiIsImtpZCI6ImEifQ.e30.AAAA"
    async with app.router.lifespan_context(app), Person(app, settings) as ann:
        ann.headers["Authorization"] = f"Bearer {es256}"
        answer = await ann.get(f"/agent-run/{uuid4()}/stream")
        assert answer.status_code == 200
        assert "cannot be checked right now" in answer.text
        assert (await ann.get("/threads")).status_code == 503


@pytest.mark.parametrize("end", ["run deleted", "made private", "key revoked", "member removed"])
async def test_a_stream_ends_soon_after_its_reader_may_not_read_it_any_more(people: People, end: str) -> None:
    ann, _ = people.arrive()
    bob, bobs_id = people.arrive()
    run = await ann.initiate()
    reader = bob.http
    change: tuple[str, str, Any] = ("PATCH", f"/projects/{run.project_id}", {"is_public": False})
    if end == "made private":
        await ann.http.patch(f"/projects/{run.project_id}", json={"is_public": True})
    if end == "run deleted":
        reader, change = ann.http, ("DELETE", f"/projects/{run.project_id}", None)
    if end == "member removed":
        account_id = (await ann.http.get("/accounts")).json()["accounts"][0]["account_id"]
        member = {"user_id": bobs_id, "role": "viewer"}
        (await ann.http.post(f"/accounts/{account_id}/members", json=member)).raise_for_status()
        bob.http.headers["X-Account-Id"] = account_id
        change = ("DELETE", f"/accounts/{account_id}/members/{bobs_id}", None)
    if end == "key revoked":
        key = (await ann.http.post("/api-keys", json={"title": "ci"})).json()
        reader = people.stranger()
        reader.headers["X-API-Key"] = f"{key['public_key']}:{key['secret_key']}"
        change = ("PATCH", f"/api-keys/{key['key_id']}/revoke", None)
    token = (await reader.post(f"/agent-run/{run.run_id}/stream-token")).raise_for_status().json()["token"]
    by_token = people.stranger()
    address = f"/agent-run/{run.run_id}/stream"
    async with (
        reader.stream("GET", address) as headed,
        by_token.stream("GET", address, params={"token": token}) as tokened,
    ):
        assert (headed.status_code, tokened.status_code) == (200, 200)
        method, path, body = change
        (await ann.http.request(method, path, json=body)).raise_for_status()
        for response in (headed, tokened):
            said = [line async for line in response.aiter_lines()]
            if end != "run deleted":  # there the last event may come first
                assert ": this stream is not yours any more" in said
    assert await status_of(by_token, run.run_id, token) == 404


async def test_those_who_may_read_on_are_not_disturbed(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[list[bool]] = []
    still_good = stream_passes.still_good

    async def look(conn: Executor, passes: Sequence[StreamPass]) -> list[bool]:
        looks.append(await still_good(conn, passes))
        return looks[-1]

    monkeypatch.setattr(stream_passes, "still_good", look)
    ann, _ = people.arrive()
    run_id = (await ann.initiate()).run_id
    async with ann.stream(run_id) as stream:
        await eventually(lambda: len(looks) >= 2)
        assert looks[:2] == [[True], [True]]
        assert await ann.stop(run_id) == "stopped"
        assert (await stream.rest())[-1].final == "stopped"


async def test_tokens_are_in_no_access_log(
    settings: Settings, redis: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    token = sign_access_token(settings.auth.secrets[0], uuid4(), lifetime=timedelta(hours=1))
    async with serving(settings) as server, AsyncClient(trust_env=False, timeout=60) as client:
        await client.get(f"{server.url}/api/agent-run/{uuid4()}/stream", params={"token": token, "x": "1"})
        await client.get(f"{server.url}/api/threads", params={"access_token": token})
    said = capsys.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if "uvicorn.access" in line]
    assert [("/stream?" in line, "/api/threads?" in line) for line in lines] == [(True, False), (False, True)]
    assert "x=1" in lines[0]
    for part in token.split("."):
        assert part not in said.out + said.err
