"""Servers that are programs, good and bad: each time the run goes on, and model and person read what happened."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from agent.mcp import servers
from agent.mcp.connection import Connection
from agent.mcp.server import Server
from tests.agent.mcp.programs import faulty, time_server
from tests.agent.mcp.runs import Meeting, patience
from tests.agent.seeds import eventually


async def test_the_tools_of_a_real_server_are_offered_and_answer() -> None:
    async with Meeting(patience(), time_server()).held() as meeting:
        assert meeting.names == ["mcp_time_get_current_time", "mcp_time_convert_time"]
        schema = meeting.servers.tools[0].schema["function"]
        assert schema["parameters"]["required"] == ["timezone"]
        assert "`mcp_time_get_current_time`: Get current time" in meeting.servers.prompt
        result = await meeting.call("mcp_time_get_current_time", timezone="Europe/Berlin")
        assert result.success
        assert "Europe/Berlin" in result.output
        assert meeting.troubles == []
    assert meeting.here.running == 0


async def test_a_server_that_speaks_its_own_words_too_is_understood() -> None:
    async with Meeting(patience(), faulty("noise")).held() as meeting:
        assert (await meeting.call("mcp_faulty_echo", text="hello")).output == "hello"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("hang-on-connect", "did not answer within 3 seconds"),
        ("hang-on-list", "did not answer within 3 seconds"),
        ("die-on-connect", "could not be connected: its process ended"),
        ("flood-on-list", "could not be connected: it sent more than 1 MiB at once"),
    ],
)
async def test_a_server_that_cannot_be_used_is_told_and_the_others_go_on(how: str, words: str) -> None:
    seconds = 3 if how.startswith("hang") else 20
    settings = patience(connect_timeout=f"{seconds}s", max_message_bytes=1024 * 1024)
    async with Meeting(settings, faulty(how, name="Bad one"), faulty(name="good")).held() as meeting:
        assert meeting.names == ["mcp_good_echo", "mcp_good_other"]
        assert [server for server, _ in meeting.troubles] == ["Bad one"]
        assert f"The MCP server Bad one {words}" in meeting.troubles[0][1]
        assert meeting.troubles[0][1] in meeting.servers.prompt
        assert (await meeting.call("mcp_good_echo", text="still here")).output == "still here"


async def test_servers_are_connected_side_by_side() -> None:
    hanging = [faulty("hang-on-connect", name=f"server {number}") for number in range(4)]
    meeting = Meeting(patience(connect_timeout="60s"), *hanging)

    async def meet() -> None:
        async with meeting.held():
            raise AssertionError("they do not answer")

    run = asyncio.create_task(meet())
    await eventually(lambda: meeting.here.running == 4)
    assert meeting.troubles == []
    run.cancel()
    await asyncio.wait({run})
    assert run.cancelled()
    await eventually(lambda: meeting.here.running == 0)


@pytest.mark.parametrize("how", [["hang-on-call"], ["hang-on-call", "deaf"]])
async def test_a_call_that_hangs_is_given_up_and_the_server_is_left_in_time(how: list[str]) -> None:
    async with Meeting(patience(call_timeout="300ms"), faulty(*how)).held() as meeting:
        result = await meeting.call("mcp_faulty_echo", text="hello")
        assert result.status == "error"
        assert "did not answer within 0.3 seconds" in result.output
        assert "Whether the call took effect is not known" in result.output
        began = time.monotonic()
    assert time.monotonic() - began < 5 * servers.LEAVING_SECONDS
    await eventually(lambda: meeting.here.running == 0)


async def test_a_cancelled_call_is_told_to_the_server_and_does_not_wait_for_it(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.touch()
    async with Meeting(patience(), faulty("hang-on-call", env={"NOTES": str(notes)})).held() as meeting:
        call = asyncio.create_task(meeting.call("mcp_faulty_echo", text="hello"))
        await eventually(lambda: "called" in notes.read_text())
        began = time.monotonic()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert time.monotonic() - began < 5 * 0.2
        assert call.cancelled()
        await eventually(lambda: "cancelled" in notes.read_text())


async def test_a_stop_of_the_run_leaves_every_server_in_time() -> None:
    meeting = Meeting(patience(), faulty("hang-on-call", "deaf"), faulty("hang-on-connect", name="other"))

    async def run() -> None:
        async with meeting.held():
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await eventually(lambda: meeting.here.running == 2)
    began = time.monotonic()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert time.monotonic() - began < 5 * servers.LEAVING_SECONDS
    await eventually(lambda: meeting.here.running == 0)


async def test_a_server_that_dies_in_a_call_is_told_and_started_again_for_the_next(tmp_path: Path) -> None:
    notes = {"NOTES": str(tmp_path / "notes")}
    async with Meeting(patience(), faulty("die-on-first-call", env=notes)).held() as meeting:
        died = await meeting.call("mcp_faulty_echo", text="hello")
        assert died.status == "error"
        assert "The MCP server faulty broke off during the call: its process ended" in died.output
        assert "Whether the call took effect is not known" in died.output
        assert (await meeting.call("mcp_faulty_echo", text="hello")).output == "hello"


async def test_a_call_that_does_no_harm_is_made_again_when_its_server_died(tmp_path: Path) -> None:
    notes = {"NOTES": str(tmp_path / "notes")}
    async with Meeting(patience(), faulty("die-on-first-call", "look", env=notes)).held() as meeting:
        assert [tool.repeatable for tool in meeting.servers.tools] == [True, True]
        assert (await meeting.call("mcp_faulty_echo", text="hello")).output == "hello"
        assert len(meeting.here.processes) == 2


async def test_a_server_that_died_between_two_calls_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    connections, begin = list[Connection](), Server.begin

    def note(server: Server) -> Connection:
        connections.append(begin(server))
        return connections[-1]

    monkeypatch.setattr(Server, "begin", note)
    async with Meeting(patience(), faulty()).held() as meeting:
        assert not meeting.servers.tools[0].repeatable
        meeting.here.processes[0].kill()
        await eventually(lambda: not connections[0].alive)
        assert (await meeting.call("mcp_faulty_echo", text="hello")).output == "hello"


async def test_a_server_that_always_dies_is_not_started_for_ever() -> None:
    async with Meeting(patience(max_restarts=2), faulty("die-on-call", "look")).held() as meeting:
        results = [await meeting.call("mcp_faulty_echo", text="hello") for _ in range(4)]
        assert [result.status for result in results] == ["error"] * 4
        assert "it is not started more than 2 times" in results[-1].output
        assert len(meeting.here.processes) == 3


async def test_a_server_that_does_not_come_back_is_told(tmp_path: Path) -> None:
    notes = {"NOTES": str(tmp_path / "notes")}
    server = faulty("die-on-call", "die-on-second-connect", "look", env=notes)
    async with Meeting(patience(), server).held() as meeting:
        result = await meeting.call("mcp_faulty_echo", text="hello")
        assert "could not be connected: its process ended" in result.output


async def test_a_flood_of_50_mb_ends_the_call_and_not_the_run() -> None:
    async with Meeting(patience(max_message_bytes=1024 * 1024), faulty("flood-on-call")).held() as meeting:
        result = await meeting.call("mcp_faulty_echo", text="hello")
        assert result.status == "error"
        assert "broke off during the call: it sent more than 1 MiB at once" in result.output
        assert len(result.output) < 1_000


async def test_an_error_of_a_tool_is_a_failed_result() -> None:
    async with Meeting(patience(), faulty("error")).held() as meeting:
        result = await meeting.call("mcp_faulty_echo", text="this")
        assert (result.status, result.output.split(";")[0]) == ("failed", "this cannot be done")


async def test_a_result_that_is_none_is_refused_in_words() -> None:
    async with Meeting(patience(), faulty("nonsense")).held() as meeting:
        result = await meeting.call("mcp_faulty_echo", text="this")
        assert result.status == "failed"
        assert "refused the call: its answer is not valid: content" in result.output


async def test_parts_that_are_no_text_are_named() -> None:
    async with Meeting(patience(), faulty("rich")).held() as meeting:
        lines = (await meeting.call("mcp_faulty_echo", text="hello")).output.splitlines()
    assert lines == [
        "hello",
        "[image image/png, 3 KiB, left out]",
        "[a.txt](file:///a.txt) A file.",
        "file:///b.txt:",
        "inside b",
        "{",
        '  "answer": 42',
        "}",
    ]


async def test_tools_that_lie_about_their_schema_are_offered_in_a_shape_that_providers_take() -> None:
    async with Meeting(patience(), faulty("lie")).held() as meeting:
        tools = {tool.name: tool.schema["function"]["parameters"] for tool in meeting.servers.tools}
        plain = {"type": "object", "properties": {}}
        assert len(tools) == 7
        assert tools["mcp_faulty_no_object"] == plain
        assert sum(name.startswith("mcp_faulty_no_object_") for name in tools) == 2
        assert tools["mcp_faulty_recursive"] == plain
        assert tools["mcp_faulty_types"] == {"type": "object", "properties": {"a": {}, "b": {}, "c": {}}}
        assert tools["mcp_faulty_tree"] == {
            "type": "object",
            "properties": {
                "root": {"type": "object", "properties": {"children": {"items": {}}}},
                "many": {"type": "array", "items": {}},
            },
            "required": ["root"],
        }
        assert all(len(name) <= 64 for name in tools)
        assert (await meeting.call("mcp_faulty_recursive", text="yes")).output == "yes"


async def test_an_endless_list_of_tools_is_cut_and_told() -> None:
    async with Meeting(patience(max_tools=5), faulty("endless-list")).held() as meeting:
        assert len(meeting.names) == 5
        assert "more than 5 tools" in meeting.troubles[0][1]


async def test_all_servers_together_add_no_more_tools_than_allowed() -> None:
    servers = [faulty(name=f"s{number}") for number in range(3)]
    async with Meeting(patience(max_tools=4), *servers).held() as meeting:
        assert meeting.names == ["mcp_s0_echo", "mcp_s0_other", "mcp_s1_echo", "mcp_s1_other"]
        assert meeting.troubles == [("", "Only the first 4 of 6 MCP tools are offered.")]


@pytest.mark.parametrize(
    ("enabled", "names"),
    [
        (["other"], ["mcp_faulty_other"]),
        ([], ["mcp_faulty_echo", "mcp_faulty_other"]),
        (None, ["mcp_faulty_echo", "mcp_faulty_other"]),
    ],
)
async def test_only_enabled_tools_are_offered_and_none_named_means_all(enabled: Any, names: list[str]) -> None:
    async with Meeting(patience(), faulty(enabledTools=enabled)).held() as meeting:
        assert meeting.names == names
        assert meeting.troubles == []


async def test_an_enabled_tool_that_is_not_there_is_told() -> None:
    async with Meeting(patience(), faulty(enabledTools=["echo", "gone"])).held() as meeting:
        assert meeting.names == ["mcp_faulty_echo"]
        assert "tools that are enabled: gone" in meeting.troubles[0][1]


async def test_secrets_of_the_environment_are_never_told() -> None:
    secret = "hunter2-hunter2"
    async with Meeting(patience(), faulty("error", env={"MARK": secret, "TZ": "Asia/Tokyo"})).held() as meeting:
        assert "Be careful. [secret]" in meeting.servers.prompt
        assert "Echo a text. [secret]" in meeting.everything
        result = await meeting.call("mcp_faulty_echo", text="Asia/Tokyo")
        assert result.output == "Asia/Tokyo cannot be done; [secret]"
        assert secret not in meeting.everything


async def test_an_entry_that_is_no_server_is_told_and_the_others_go_on() -> None:
    async with Meeting(patience(), {"name": "odd", "type": "carrier pigeon"}, faulty()).held() as meeting:
        assert meeting.names == ["mcp_faulty_echo", "mcp_faulty_other"]
        assert meeting.troubles == [("odd", "custom_mcps[0].type: must be http, sse or stdio.")]


async def test_an_agent_without_servers_adds_nothing() -> None:
    async with Meeting(patience()).held() as meeting:
        assert (meeting.servers.tools, meeting.servers.prompt, meeting.log.events) == ((), "", [])


@pytest.mark.parametrize("how", ["hang-on-connect", "hang-on-list", "hang-on-call"])
async def test_a_stop_is_not_held_up_by_servers(how: str) -> None:
    meeting = Meeting(patience(), faulty(how), faulty(name="good"))

    async def meet() -> None:
        async with meeting.held():
            await asyncio.Event().wait()

    run = asyncio.create_task(meet())
    await eventually(lambda: len(meeting.here.processes) == 2)
    await asyncio.sleep(0.3)
    began = time.monotonic()
    run.cancel()
    await asyncio.wait({run})
    assert time.monotonic() - began < 5 * 0.2
    await eventually(lambda: meeting.here.running == 0)
