"""A real server over stdio inside a real sandbox, beside one over HTTP."""

import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from agent.mcp import servers
from services.sandbox import places
from services.sandbox.bubblewrap import Bubblewrap
from services.sandbox.protocol import Sandbox
from services.settings import SandboxSettings
from tests.agent.mcp import hosts, programs
from tests.agent.mcp.hosts import Host, at
from tests.agent.mcp.runs import Meeting, patience
from tests.packing import packed
from tests.services.runs.seeds import eventually


@pytest.fixture
async def provider() -> AsyncIterator[Bubblewrap]:
    folder = Path(tempfile.mkdtemp(prefix="sandboxes-"))
    yield Bubblewrap(SandboxSettings(folder=str(folder)))
    for place in places.all_in(folder).values():
        place.end()
    shutil.rmtree(folder)


@pytest.fixture
def project_id() -> UUID:
    return uuid4()


async def test_servers_in_the_sandbox_and_on_the_web_serve_one_run(provider: Bubblewrap, project_id: UUID) -> None:
    sandbox = await provider.open(project_id)
    await sandbox.write_file("/workspace/site.tar", packed("mcp-server-time"))
    assert (await sandbox.exec("mkdir site && tar xf site.tar -C site")).exit_code == 0
    config = {
        "command": "python3",
        "args": ["-m", "mcp_server_time", "--local-timezone", "UTC"],
        "env": {"PYTHONPATH": "/workspace/site"},
    }
    inside = {"name": "time", "type": "stdio", "config": config}
    settings = patience()
    with Host(hosts.calculator().streamable_http_app()) as host:
        meeting = Meeting(settings, inside, at(host.url), sandboxes=provider, project_id=project_id)
        async with meeting.held():
            assert meeting.troubles == []
            assert meeting.names[:2] == ["mcp_time_get_current_time", "mcp_time_convert_time"]
            told = await meeting.call("mcp_time_get_current_time", timezone="Asia/Tokyo")
            assert "Asia/Tokyo" in told.output
            assert (await meeting.call("mcp_web_add", a=20, b=22)).output == "42"
            wrong = await meeting.call("mcp_time_get_current_time", timezone="Nowhere/Land")
            assert (wrong.status, "Nowhere/Land" in wrong.output) == ("failed", True)
            assert (await sandbox.usage()).processes > 1
            began = time.monotonic()
        assert time.monotonic() - began < 5 * servers.LEAVING_SECONDS
    await eventually(lambda: is_gone(sandbox, "mcp_server_time"))


async def is_gone(sandbox: Sandbox, words: str) -> bool:
    """Whether no process in the sandbox has them in its command line."""
    return words not in (await sandbox.exec("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")).output.decode()


@pytest.mark.parametrize(
    ("how", "status", "words"),
    [
        ("hang-on-call deaf", "error", "did not answer within 1 seconds"),
        ("die-on-call", "error", "broke off during the call: its process ended with code 3."),
        ("die-on-call loudly", "error", "out of luck with [secret]."),
        ("flood-on-call", "error", "it sent more than 1 MiB at once"),
    ],
)
async def test_a_bad_server_in_the_sandbox_ends_its_call_only(
    provider: Bubblewrap, project_id: UUID, how: str, status: str, words: str
) -> None:
    sandbox = await provider.open(project_id)
    await sandbox.write_file("/workspace/faulty.py", programs.FAULTY.read_bytes())
    server: dict[str, Any] = {
        "name": "bad",
        "customType": "stdio",
        "config": {"command": "python3", "args": ["/workspace/faulty.py", *how.split()], "env": {"MARK": "hunter2"}},
    }
    seconds = 1 if how.startswith("hang") else 20
    settings = patience(call_timeout=f"{seconds}s", max_message_bytes=1024 * 1024)
    async with Meeting(settings, server, sandboxes=provider, project_id=project_id).held() as meeting:
        result = await meeting.call("mcp_bad_echo", text="hello")
        assert result.status == status
        assert words in result.output
        assert len(result.output) < 1_500
        began = time.monotonic()
    assert time.monotonic() - began < 5 * servers.LEAVING_SECONDS
    await eventually(lambda: is_gone(sandbox, "faulty.py"))


async def test_a_program_that_is_not_there_is_told(provider: Bubblewrap, project_id: UUID) -> None:
    server = {"name": "gone", "type": "stdio", "config": {"command": "no-such-program"}}
    async with Meeting(patience(), server, sandboxes=provider, project_id=project_id).held() as meeting:
        assert meeting.names == []
        assert "no-such-program" in meeting.troubles[0][1]
