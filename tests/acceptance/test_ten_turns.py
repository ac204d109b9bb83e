"""The whole agent at work: ten turns with files, commands, MCP servers and an image, and a worker that leaves."""

import base64
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
import pytest

from services.sandbox.protocol import Sandbox
from services.sandbox.providers import make_provider
from services.settings import SandboxSettings
from tests import fakes
from tests.acceptance.client import Client, Event, Started, check_whole_log
from tests.acceptance.conftest import Share
from tests.acceptance.operators import Deployment
from tests.agent.mcp import hosts
from tests.agent.mcp.hosts import Host
from tests.agent.seeds import acts, tool_parts
from tests.fakes import FakeModel, Reply
from tests.packing import packed
from tests.waiting import eventually

pytestmark = [
    pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True, scope="session"),
    pytest.mark.timeout(600),
]

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PROGRAM = "print('six times seven is', 6 * 8)\n"
TURNS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("list_files", {}),
    ("create_file", {"file_path": "sum.py", "file_contents": PROGRAM}),
    ("str_replace", {"file_path": "sum.py", "old_str": "6 * 8", "new_str": "6 * 7"}),
    ("execute_command", {"command": "python3 sum.py"}),
    ("start_command", {"session_name": "server", "command": "echo up; sleep 6543"}),
    ("mcp_time_get_current_time", {"timezone": "Asia/Tokyo"}),
    ("mcp_sums_add", {"a": 20, "b": 22}),
    ("see_image", {"file_path": "dot.png"}),
    ("check_command_output", {"session_name": "server"}),
    ("complete", {"text": "The sum is 42."}),
)
TOLD = {
    "list_files": "dot.png",
    "create_file": "Created /workspace/sum.py",
    "execute_command": "six times seven is 42",
    "mcp_time_get_current_time": "Asia/Tokyo",
    "mcp_sums_add": "42",
    "check_command_output": "up\n[server runs",
}
MODELS = ("openai/gpt-4o", "anthropic/claude-sonnet-4-5")


def replies(changed: dict[str, Reply] | None = None) -> list[Reply]:
    """One answer for each turn, with words before its call; some may be others."""
    return [(changed or {}).get(name) or acts(*parts(name, given), words=name) for name, given in TURNS]


def parts(name: str, given: dict[str, Any], index: int = 0) -> list[dict[str, Any]]:
    return tool_parts(index, name, orjson.dumps(given).decode(), f"call_{name}")


@pytest.fixture
def sums() -> Iterator[Host]:
    with Host(hosts.calculator().streamable_http_app()) as host:
        yield host


@dataclass
class Site:
    """A project whose sandbox holds an MCP server and an image, and an agent that uses both servers."""

    deployment: Deployment
    client: Client
    started: Started
    agent_id: str
    sandbox: Sandbox

    async def run(self, model: str) -> str:
        return await self.client.start(self.started.thread_id, model, agent_id=self.agent_id)

    async def rows(self, run_id: str) -> list[dict[str, Any]]:
        said = await self.client.messages(self.started.thread_id)
        return [row for row in said if row["metadata"].get("thread_run_id") == run_id]


@pytest.fixture
async def site(share: Share, sums: Host) -> AsyncIterator[Site]:
    deployment = await share(OUTGOING_ALLOW_PRIVATE="true")
    async with deployment.client() as client:
        started = await client.initiate("demo/echo")
        sandbox = await make_provider(SandboxSettings()).open(UUID(started.project_id))
        await sandbox.write_file("/workspace/site.tar", packed("mcp-server-time"))
        assert (await sandbox.exec("mkdir .site && tar xf site.tar -C .site && rm site.tar")).exit_code == 0
        await sandbox.write_file("/workspace/dot.png", PNG)
        time = {"command": "python3", "args": ["-m", "mcp_server_time"], "env": {"PYTHONPATH": "/workspace/.site"}}
        body = {
            "name": "Ten turns",
            "system_prompt": "You add things up.",
            "agentpress_tools": {"sb_files_tool": True, "sb_shell_tool": True, "sb_vision_tool": {"enabled": True}},
            "custom_mcps": [
                {"name": "time", "type": "stdio", "config": time},
                {"name": "sums", "type": "http", "config": {"url": sums.url}},
            ],
        }
        agent = (await client.http.post("/agents", json=body)).raise_for_status().json()
        await client.get(started.run_id, wait_seconds=30)
        yield Site(deployment, client, started, agent["agent_id"], sandbox)
        await make_provider(SandboxSettings()).delete(UUID(started.project_id))


def about(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event.status_type == kind]


async def check_run(site: Site, run_id: str, events: list[Event], model: str) -> None:
    """Every event and every row of a run of ten turns, against CONTRACT section 5."""
    check_whole_log(events, "completed")
    rows = await site.rows(run_id)
    answers = [row for row in rows if row["type"] == "assistant"]
    results = [row for row in rows if row["type"] == "tool"]
    assert [row["metadata"]["function_name"] for row in results] == [name for name, _ in TURNS]
    assert [row["content"]["content"] for row in answers] == [name for name, _ in TURNS]
    assert [row["metadata"]["model"] for row in answers] == [model] * len(TURNS)
    for (name, given), answer, result in zip(TURNS, answers, results, strict=True):
        [call] = answer["content"]["tool_calls"]
        assert (call["function"]["name"], orjson.loads(call["function"]["arguments"])) == (name, given)
        assert result["content"]["tool_call_id"] == call["id"] == result["metadata"]["tool_call_id"]
        assert result["metadata"]["assistant_message_id"] == answer["message_id"]
        assert result["metadata"]["tool_status"] == "completed"
        assert TOLD.get(name, "") in result["content"]["content"]
    told = {event.said["message_id"]: event for event in events if event.stream_status == "complete"}
    assert {row["message_id"] for row in rows} - {
        row["message_id"] for row in rows if row["type"] == "image_context"
    } <= told.keys()
    ended = [event for event in events if event.status_type in ("tool_completed", "tool_failed")]
    links = {event.metadata["linked_tool_result_message_id"] for event in ended}
    assert links == {row["message_id"] for row in results}
    assert ended[-1].metadata["agent_should_terminate"] is True
    assert about(events, "finish")[-1].content["finish_reason"] == "agent_terminated"
    run = await site.client.get(run_id)
    assert run["usage"]["total_tokens"] == 18 * len(TURNS)


@pytest.mark.parametrize("model", MODELS)
async def test_ten_turns_use_everything_and_end_with_complete(site: Site, fake: FakeModel, model: str) -> None:
    fake.script(*replies())
    asked = len(fake.requests)
    run_id = await site.run(model)
    events = await site.client.read(run_id)
    await check_run(site, run_id, events, model)
    started = about(events, "tool_started")
    assert [event.content["function_name"] for event in started] == [name for name, _ in TURNS]
    assert [event.status_type for event in events].count("tool_output") >= 1
    bodies = [orjson.dumps(request.body).decode() for request in fake.requests[asked:]]
    assert all("You add things up." in body and "Add carefully." in body for body in bodies)
    picture = base64.b64encode(PNG).decode()
    assert [picture in body for body in bodies] == [turn == 8 for turn in range(10)]
    assert await site.client.read(run_id) == events
    await site.sandbox.kill_job("server")


HELD = {"command": "echo begun; sleep 7654; python3 sum.py", "timeout": 600}


BETWEEN, DURING, AFTER = "between a call and its tool", "while the tool works", "after its result"


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        (BETWEEN, signal.SIGKILL),
        (DURING, signal.SIGTERM),
        (AFTER, signal.SIGKILL),
        slow(BETWEEN, signal.SIGTERM),
        slow(DURING, signal.SIGKILL),
        slow(AFTER, signal.SIGTERM),
    ],
)
async def test_ten_turns_go_on_elsewhere_with_the_job_still_there(
    site: Site, fake: FakeModel, moment: str, number: int
) -> None:
    """The command is held, the answer after it silent, or a second call waits for the first: then the worker leaves."""
    model = MODELS[0]
    changed, asked = {}, len(fake.requests)
    if moment == AFTER:
        fake.script(*replies()[:6], fakes.silent(), *replies()[6:])
    else:
        later = [("mcp_sums_add", {"a": 20, "b": 22})] if moment == BETWEEN else []
        calls = [*parts("execute_command", HELD), *(part for each in later for part in parts(*each, index=1))]
        changed["mcp_time_get_current_time"] = acts(*calls, words="both")
        fake.script(*replies(changed))
    run_id = await site.run(model)
    async with site.client.stream(run_id) as stream:
        events: list[Event] = []
        wanted = "mcp_time_get_current_time" if moment == AFTER else "execute_command"
        kind = "tool_completed" if moment == AFTER else "tool_output"
        while not (events and events[-1].content.get("function_name") == wanted and len(about(events, "finish")) >= 5):
            events += await stream.until(kind)
        if moment == AFTER:
            await eventually(lambda: len(fake.requests) == asked + 7)
        (await site.deployment.driver_of(run_id)).signal_group(number)
        events += await stream.rest()
    check_whole_log(events, "completed")
    assert len(about(events, "run_resumed")) == 1
    if moment == AFTER:
        await check_run(site, run_id, events, model)
    else:
        results = [row for row in await site.rows(run_id) if row["type"] == "tool"]
        assert len(results) == len(TURNS) + (moment == BETWEEN)
        failed = {
            row["metadata"]["function_name"]: row for row in results if row["metadata"]["tool_status"] != "completed"
        }
        assert failed.keys() == {"execute_command"} | ({"mcp_sums_add"} if moment == BETWEEN else set())
        assert all("interrupted" in row["content"]["content"] for row in failed.values())
    job = await site.sandbox.job("server")
    assert job.running
    assert b"up" in job.output
    alive = await site.sandbox.exec("pgrep -cf '^sleep 7654$'")
    assert int(alive.output) == 0
    await site.sandbox.kill_job("server")
