"""Servers over HTTP, good and bad: each time the run goes on, and model and person read what happened."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest
from starlette.responses import Response

from agent.mcp import servers
from services.embedded.ports import pick
from services.settings import McpSettings, OutgoingSettings, Settings
from tests.agent.mcp import hosts
from tests.agent.mcp.hosts import Host, Rude, at
from tests.agent.mcp.runs import Meeting, patience
from tests.agent.seeds import eventually

SECRET = "sk-1234567890abcdef"


@pytest.mark.parametrize("kind", ["http", "sse"])
async def test_tools_of_a_real_server_are_offered_and_answer(kind: str) -> None:
    server = hosts.calculator()
    app, path = (server.sse_app(), "/sse") if kind == "sse" else (server.streamable_http_app(), "/mcp")
    with Host(app, path) as host:
        async with Meeting(patience(), at(host.url, kind)).held() as meeting:
            assert meeting.names == ["mcp_web_add", "mcp_web_whoami"]
            assert "Add carefully." in meeting.servers.prompt
            assert (await meeting.call("mcp_web_add", a="2", b=3)).output == "5"
            assert meeting.troubles == []
            began = time.monotonic()
        assert time.monotonic() - began < 5 * servers.LEAVING_SECONDS


async def test_headers_are_sent_and_never_told() -> None:
    with Host(hosts.calculator().streamable_http_app()) as host:
        server = at(f"{host.url}?key={SECRET}-q", headers={"Authorization": f"Bearer {SECRET}"})
        async with Meeting(patience(), server).held() as meeting:
            assert (await meeting.call("mcp_web_whoami")).output == "[secret]"
            assert SECRET not in meeting.everything


async def test_a_standard_server_is_reached_through_the_registry_with_its_config() -> None:
    with Host(hosts.calculator().streamable_http_app()) as host:
        registry = host.url.replace("/mcp", "/{qualifiedName}")
        settings = patience(registry_url=registry, registry_api_key=SECRET)
        standard = {"name": "Calculator", "qualifiedName": "mcp", "config": {"level": "high"}, "enabledTools": ["add"]}
        async with Meeting(settings, standard=[standard]).held() as meeting:
            assert meeting.names == ["mcp_calculator_add"]
            assert (await meeting.call("mcp_calculator_add", a=2, b=3)).output == "5"


async def test_a_standard_server_without_a_registry_is_told() -> None:
    standard = {"name": "Search", "qualifiedName": "@acme/search", "config": {}}
    async with Meeting(patience(), standard=[standard]).held() as meeting:
        assert meeting.troubles == [
            ("Search", "The MCP server Search has no url, and no registry is set up here (MCP_REGISTRY_URL).")
        ]


async def test_a_server_of_the_own_network_is_not_opened() -> None:
    with Host(hosts.calculator().streamable_http_app()) as host:
        settings = Settings(mcp=McpSettings(), outgoing=OutgoingSettings(allow_private=False))
        async with Meeting(settings, at(host.url)).held() as meeting:
            assert meeting.names == []
            assert "127.0.0.1" in meeting.troubles[0][1]


@pytest.mark.parametrize(
    ("method", "act", "words"),
    [
        ("initialize", hosts.refuses(401), "status 401"),
        ("initialize", hosts.hangs, "did not answer within 1 seconds"),
        ("tools_list", hosts.hangs, "did not answer within 1 seconds"),
        ("tools_list", hosts.refuses(500), "status 500"),
        ("tools_list", hosts.floods("application/json"), "it sent more than 2 MiB at once"),
    ],
)
async def test_a_server_that_cannot_be_used_is_told(method: str, act: Callable[[], Response], words: str) -> None:
    seconds = 1 if act is hosts.hangs else 20
    settings = patience(connect_timeout=f"{seconds}s", max_message_bytes=2 * hosts.MEGABYTE)
    with Host(Rude(**{method: act}).app) as host:
        async with Meeting(settings, at(host.url)).held() as meeting:
            assert meeting.names == []
            assert words in meeting.troubles[0][1]
            assert "secret words" not in meeting.everything
            began = time.monotonic()
        assert time.monotonic() - began < 5 * servers.LEAVING_SECONDS


@pytest.mark.parametrize(
    ("act", "status", "words"),
    [
        (hosts.floods("application/json"), "error", "it sent more than 2 MiB at once"),
        (hosts.floods("text/event-stream"), "error", "it sent more than 2 MiB at once"),
        (hosts.babbles, "error", "it sent more than 10000 messages at once"),
        (hosts.bombs, "error", "it compresses its answers"),
        (hosts.refuses(500), "failed", "status 500"),
    ],
)
async def test_a_call_that_goes_wrong_is_told(act: Callable[[], Response], status: str, words: str) -> None:
    settings = patience(max_message_bytes=2 * hosts.MEGABYTE)
    with Host(Rude(tools_call=act).app) as host:
        async with Meeting(settings, at(host.url)).held() as meeting:
            result = await meeting.call("mcp_web_echo", text="hello")
            assert result.status == status
            assert words in result.output
            assert "secret words" not in result.output


async def test_a_call_that_hangs_is_given_up() -> None:
    with Host(Rude(tools_call=hosts.hangs).app) as host:
        async with Meeting(patience(call_timeout="300ms"), at(host.url)).held() as meeting:
            result = await meeting.call("mcp_web_echo", text="hello")
            assert result.status == "error"
            assert "did not answer within 0.3 seconds" in result.output


async def test_a_server_that_is_gone_and_back_is_connected_again() -> None:
    port = pick(set())  # one that the machine gives nobody in between
    with Host(Rude().app, port=port) as first:
        async with Meeting(patience(), at(first.url)).held() as meeting:
            assert (await meeting.call("mcp_web_echo")).output == "echoed"
            first.__exit__()
            gone = await meeting.call("mcp_web_echo")
            assert "could not be connected" in gone.output
            with Host(Rude().app, port=port):
                assert (await meeting.call("mcp_web_echo")).output == "echoed"


async def test_a_session_that_the_server_has_forgotten_is_begun_again() -> None:
    server = Rude()

    def forget() -> Response:
        del server.how["tools/call"]
        return Response(status_code=404)

    server.how["tools/call"] = forget
    with Host(server.app) as host:
        async with Meeting(patience(), at(host.url)).held() as meeting:
            assert (await meeting.call("mcp_web_echo")).output == "echoed"


async def test_a_server_that_is_not_there_is_told_without_its_url() -> None:
    async with Meeting(patience(), at(f"http://127.0.0.1:9/{SECRET}?key={SECRET}")).held() as meeting:
        assert "could not be connected" in meeting.troubles[0][1]
        assert SECRET not in meeting.everything


async def test_a_stop_during_a_call_does_not_wait_for_the_server() -> None:
    called = threading.Event()

    def hangs() -> Response:
        called.set()
        return hosts.hangs()

    with Host(Rude(tools_call=hangs).app) as host:
        async with Meeting(patience(), at(host.url)).held() as meeting:
            call = asyncio.create_task(meeting.call("mcp_web_echo"))
            await eventually(called.is_set)
            began = time.monotonic()
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        assert time.monotonic() - began < 5 * servers.LEAVING_SECONDS


@pytest.mark.parametrize("method", ["initialize", "tools/list", "DELETE"])
async def test_a_stop_of_the_run_is_not_held_up_by_a_server_that_hangs(method: str) -> None:
    reached = threading.Event()
    with Host(hosts.hanging(method, reached)) as host:
        meeting = Meeting(patience(), at(host.url))

        async def meet() -> None:
            async with meeting.held():
                reached.set()  # one that hangs when it is left
                await asyncio.Event().wait()

        run = asyncio.create_task(meet())
        await eventually(reached.is_set)
        began = time.monotonic()
        run.cancel()
        await asyncio.wait({run})
        assert time.monotonic() - began < 5 * 0.2
        await eventually(lambda: not servers.leaving)


async def test_a_secret_that_is_also_a_word_of_schemas_spoils_none() -> None:
    with Host(Rude().app) as host:
        headers = {"A": "object", "B": "string", "C": "properties"}
        found = at(host.url)
        found["config"]["headers"] = headers
        async with Meeting(patience(), found).held() as meeting:
            (tool,) = meeting.servers.tools
            assert tool.schema["function"]["parameters"] == hosts.PLAIN
