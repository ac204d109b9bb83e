"""Which tools a server has."""

import asyncio
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.app import create_app
from api.routes import mcp
from services.sandbox import places
from services.sandbox.bubblewrap import Bubblewrap
from services.settings import McpSettings, OutgoingSettings, SandboxSettings, Settings
from tests.agent.mcp import hosts, programs
from tests.agent.mcp.hosts import Host, Rude
from tests.api.conftest import Person
from tests.waiting import PATIENT, eventually

ROUTE = "/mcp/discover-custom-tools"


@pytest.fixture
def sandboxes() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sandboxes-"))
    yield folder
    for place in places.all_in(folder).values():
        place.end()
    shutil.rmtree(folder)


@pytest.fixture
def connect_seconds() -> float:
    """To open a sandbox and to start a program in it are part of it."""
    return PATIENT


@pytest.fixture
async def app(settings: Settings, sandboxes: Path, connect_seconds: float) -> AsyncIterator[FastAPI]:
    sections: dict[str, Any] = {
        "mcp": McpSettings(connect_timeout=timedelta(seconds=connect_seconds)),
        "outgoing": OutgoingSettings(allow_private=True),
    }
    app = create_app(settings.model_copy(update=sections))
    async with app.router.lifespan_context(app):
        provider = Bubblewrap(SandboxSettings(folder=str(sandboxes)))
        app.state.resources = replace(app.state.resources, sandboxes=provider)
        yield app


async def test_the_tools_of_a_server_on_the_web_are_listed(person: Callable[[], Person]) -> None:
    with Host(hosts.calculator().streamable_http_app()) as host:
        config = {"url": host.url, "headers": {"X-Key": "k"}}
        answer = await person().post(ROUTE, json={"type": "http", "config": config})
    assert answer.status_code == 200
    found = answer.json()
    assert [tool["name"] for tool in found["tools"]] == ["add", "whoami"]
    assert found["tools"][0]["description"] == "Add two numbers."
    assert found["tools"][0]["inputSchema"]["required"] == ["a", "b"]
    assert (found["success"], found["count"]) == (True, 2)
    assert (found["serverName"], found["processedConfig"]) == ("calculator", config)


async def test_a_program_is_run_in_the_sandbox_of_a_project_of_ones_own(person: Callable[[], Person]) -> None:
    somebody = person()
    _, project_id = await somebody.make_thread()
    source = programs.FAULTY.read_text()
    asked: dict[str, Any] = {"type": "stdio", "config": {"command": "python3", "args": ["-c", source]}}
    answer = await somebody.post(ROUTE, json={**asked, "project_id": project_id})
    assert answer.status_code == 200, answer.text
    assert [tool["name"] for tool in answer.json()["tools"]] == ["echo", "other"]
    without = await somebody.post(ROUTE, json=asked)
    assert without.status_code == 422
    assert without.json()["detail"][0]["loc"] == ["body", "project_id"]
    assert (await person().post(ROUTE, json={**asked, "project_id": project_id})).status_code == 404
    assert (await somebody.post(ROUTE, json={**asked, "project_id": str(uuid4())})).status_code == 404


@pytest.mark.parametrize(
    ("asked", "where"),
    [
        ({"type": "pigeon", "config": {}}, ["body", "type"]),
        ({"type": "http", "config": {}}, ["body", "config", "url"]),
        ({"type": "sse", "config": {"url": "ftp://a.org"}}, ["body", "config", "url"]),
        ({"type": "http", "config": {"url": "https://a.org", "headers": []}}, ["body", "config", "headers"]),
        ({"type": "stdio", "config": {"args": []}}, ["body", "config", "command"]),
        ({"config": {}}, ["body", "type"]),
    ],
)
async def test_what_is_wrong_is_told_with_its_field(
    person: Callable[[], Person], asked: dict[str, Any], where: list[str]
) -> None:
    answer = await person().post(ROUTE, json=asked)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == where


@pytest.mark.parametrize("connect_seconds", [2])
async def test_a_server_that_refuses_or_hangs_is_a_gateways_error(person: Callable[[], Person]) -> None:
    somebody = person()
    for act, status, words in ((hosts.refuses(401), 502, "status 401"), (hosts.hangs, 504, "within 2 seconds")):
        with Host(Rude(initialize=act).app) as host:
            answer = await somebody.post(ROUTE, json={"type": "http", "config": {"url": host.url}})
        assert answer.status_code == status
        assert words in answer.json()["detail"]


async def test_discovery_is_for_people_who_are_signed_in(person: Callable[[], Person]) -> None:
    stranger = person()
    del stranger.headers["Authorization"]
    answer = await stranger.post(ROUTE, json={"type": "http", "config": {"url": "https://a.org"}})
    assert answer.status_code == 401


async def test_slow_servers_of_one_keep_nobody_else_waiting(ann: Person, bob: Person) -> None:
    release, rude = threading.Event(), Rude()

    async def answer_late(request: Request) -> Response:
        while not release.is_set():  # noqa: ASYNC110 - it is set in another thread
            await asyncio.sleep(0.01)
        return await rude.answer(request)

    late = Starlette(routes=[Route("/mcp", answer_late, methods=["GET", "POST", "DELETE"])])
    with Host(late) as slow, Host(hosts.calculator().streamable_http_app()) as quick:
        asked = {"type": "http", "config": {"url": slow.url}}
        slowly = [asyncio.create_task(ann.post(ROUTE, json=asked)) for _ in range(12)]
        await eventually(lambda: sum(task.done() for task in slowly) >= 12 - mcp.OF_ONE_USER)
        answer = await bob.post(ROUTE, json={"type": "http", "config": {"url": quick.url}})
        assert answer.status_code == 200
        release.set()
        answers = await asyncio.gather(*slowly)
    assert sorted(each.status_code for each in answers) == [200] * 4 + [429] * 8
    assert all("Retry-After" in each.headers for each in answers if each.status_code == 429)
    assert not mcp.asking
