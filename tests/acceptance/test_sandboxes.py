"""Runs that work in a sandbox: what came with them, what a stop and a killed worker leave (promises 3, 4, 6)."""

import signal
import time
from typing import Any
from uuid import UUID

import orjson
import pytest

from agent.tools.output import MAX_SHOWN_CHARS
from services.sandbox.protocol import Sandbox
from services.sandbox.providers import make_provider
from services.settings import SandboxSettings
from tests.acceptance.client import Client, Event, Started, Stream, check_whole_log, until
from tests.acceptance.operators import Deployment
from tests.agent.seeds import acts, tool_parts
from tests.fakes import FakeModel, Reply

pytestmark = pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True, scope="session")

MODEL = "openai/gpt-4o"
DEADLINE_SECONDS = 5 * 0.2


def calls(name: str, **arguments: Any) -> Reply:
    return acts(*tool_parts(0, name, orjson.dumps(arguments).decode(), f"call_{name}"))


async def sandbox_of(started: Started) -> Sandbox:
    """The sandbox of a run, as its workers and the API find it."""
    return await make_provider(SandboxSettings()).open(UUID(started.project_id))


async def counted(sandbox: Sandbox, seconds: int) -> int:
    """How many processes sleep for so long in there."""
    found = await sandbox.exec(f"pgrep -cf '^sleep {seconds}$'")
    return int(found.output)


async def until_printed(stream: Stream, words: str) -> list[Event]:
    """The events up to the one by which a command's output holds `words`."""
    events: list[Event] = []
    printed = ""
    while words not in printed:
        events += await stream.until("tool_output")
        printed += events[-1].content["output"]
    return events


async def results(client: Client, started: Started) -> list[tuple[str, str]]:
    """What each call came to: its status and its text."""
    return [
        (said["metadata"]["tool_status"], said["content"]["content"])
        for said in await client.messages(started.thread_id)
        if said["type"] == "tool"
    ]


async def test_what_was_uploaded_is_worked_on_and_what_was_made_is_downloaded(
    system: Deployment, client: Client, fake: FakeModel
) -> None:
    fake.script(
        calls("execute_command", command="sort -r names.txt > sorted.txt; wc -l names.txt"),
        calls("complete", text="Sorted."),
    )
    form = {"prompt": "Sort them", "model_name": MODEL}
    files = [("files", ("names.txt", b"ann\nbob\n", "text/plain"))]
    made = (await client.http.post("/agent/initiate", data=form, files=files)).raise_for_status().json()
    started = Started(made["agent_run_id"], made["thread_id"], made["project_id"])
    check_whole_log(await client.read(started.run_id), "completed")
    assert (await results(client, started))[0] == ("completed", "2 names.txt\n[exit code 0]")
    content = f"/sandboxes/{started.project_id}/files/content"
    assert (await client.http.get(content, params={"path": "/workspace/sorted.txt"})).content == b"bob\nann\n"


async def test_a_stop_kills_the_command_that_runs_and_tells_the_readers_at_once(
    system: Deployment, client: Client, fake: FakeModel
) -> None:
    fake.script(calls("execute_command", command="(setsid sleep 4321 &); echo begun; sleep 4321", timeout=600))
    started = await client.initiate(MODEL)
    async with client.stream(started.run_id) as stream:
        events = await until_printed(stream, "begun")
        sandbox = await sandbox_of(started)

        async def both_sleep() -> bool:
            return await counted(sandbox, 4321) == 2

        await until(both_sleep)
        asked = time.monotonic()
        assert await client.stop(started.run_id) == "stopped"
        events += await stream.rest()
        assert stream.heard_at - asked < DEADLINE_SECONDS
    check_whole_log(events, "stopped")

    async def killed() -> bool:
        return await counted(sandbox, 4321) == 0

    await until(killed, within=DEADLINE_SECONDS)


async def test_a_background_job_is_still_there_for_whoever_takes_the_run_of_a_killed_worker(
    system: Deployment, client: Client, fake: FakeModel
) -> None:
    job = "echo up; sleep 5432"
    fake.script(
        calls("start_command", session_name="server", command=job),
        calls("execute_command", command="echo begun; sleep 4321", timeout=600),
        calls("check_command_output", session_name="server"),
        calls("complete", text="It is up."),
    )
    started = await client.initiate(MODEL)
    async with client.stream(started.run_id) as stream:
        events = await until_printed(stream, "begun")
        (await system.driver_of(started.run_id)).signal_group(signal.SIGKILL)
        events += await stream.rest()
    check_whole_log(events, "completed")
    assert [event.status_type for event in events].count("run_resumed") == 1
    told = await results(client, started)
    assert [status for status, _ in told] == ["completed", "failed", "completed", "completed"]
    assert "interrupted" in told[1][1]
    assert told[2][1].startswith("up\n[server runs;")
    sandbox = await sandbox_of(started)
    assert (await counted(sandbox, 5432), await counted(sandbox, 4321)) == (1, 0)
    assert len(fake.requests) >= 4
    await sandbox.kill_job("server")


async def test_a_run_that_floods_and_a_call_that_hangs_end_readably(
    system: Deployment, client: Client, fake: FakeModel
) -> None:
    fake.script(
        calls("execute_command", command="yes | head -c 1000000000"),
        calls("execute_command", command="sleep 4321", timeout=0.3),
        calls("read_file", file_path="absent.txt"),
        calls("complete", text="All seen."),
    )
    started = await client.initiate(MODEL)
    events = await client.read(started.run_id)
    check_whole_log(events, "completed")
    flood, hang, absent, _ = await results(client, started)
    assert flood[0] == "completed"
    assert "bytes left out" in flood[1]
    assert hang == ("failed", "[killed: it took longer than 0.3 seconds]")
    assert absent == ("failed", "There is no file /workspace/absent.txt.")
    shown = "".join(event.content["output"] for event in events if event.status_type == "tool_output")
    assert len(shown) < MAX_SHOWN_CHARS + 100
