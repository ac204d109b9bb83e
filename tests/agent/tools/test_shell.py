"""Commands in a real sandbox."""

import asyncio
import time
from functools import partial

import pytest

from agent.context import RunContext
from agent.tools import output, shell
from agent.tools.base import BadArguments, ToolFailed
from services.sandbox.protocol import Sandbox, SandboxFailed
from tests.agent.seeds import RecordingLog
from tests.agent.tools.conftest import result_of, use
from tests.waiting import PATIENT, eventually

UNTIL_GO = "until [ -e go ]; do sleep 0.02; done"


def told(ctx: RunContext) -> str:
    assert isinstance(ctx.log, RecordingLog)
    return "".join(event.content["output"] for event in ctx.log.events)


def is_told(ctx: RunContext, word: str) -> bool:
    return word in told(ctx)


async def running(sandbox: Sandbox, pattern: str) -> bool:
    """Whether a process whose command line matches runs in the sandbox."""
    found = await sandbox.exec(f"pgrep -f '[{pattern[0]}]{pattern[1:]}'")
    return found.exit_code == 0


async def test_a_command_runs_to_its_end(ctx: RunContext) -> None:
    done = await result_of(ctx, shell.execute_command, command="echo out; echo err >&2; printf end")
    assert (done.output, done.success) == ("out\nerr\nend\n[exit code 0]", True)
    assert told(ctx) == "out\nerr\nend"


async def test_a_command_that_fails_is_a_failed_call_with_its_output(ctx: RunContext) -> None:
    done = await result_of(ctx, shell.execute_command, command="echo no; exit 3")
    assert (done.output, done.success, done.error) == ("no\n[exit code 3]", False, False)
    assert (await result_of(ctx, shell.execute_command, command="exit 1")).output == "[exit code 1]"


async def test_a_command_runs_in_the_folder_that_was_asked_for(ctx: RunContext) -> None:
    await use(ctx, shell.execute_command, command="mkdir -p sub")
    assert (await use(ctx, shell.execute_command, command="pwd")).startswith("/workspace\n")
    assert (await use(ctx, shell.execute_command, command="pwd", folder="sub")).startswith("/workspace/sub\n")
    with pytest.raises(SandboxFailed, match="absent"):
        await use(ctx, shell.execute_command, command="pwd", folder="absent")
    with pytest.raises(ToolFailed, match="outside"):
        await use(ctx, shell.execute_command, command="pwd", folder="/etc")


async def test_output_is_shown_while_the_command_runs(ctx: RunContext) -> None:
    command = f"echo first; {UNTIL_GO}; echo second"
    working = asyncio.create_task(use(ctx, shell.execute_command, command=command))
    await eventually(lambda: told(ctx) == "first\n")
    assert not working.done()
    await (await ctx.sandbox()).write_file("/workspace/go", b"")
    assert await working == "first\nsecond\n[exit code 0]"
    assert told(ctx) == "first\nsecond\n"


async def test_a_command_that_hangs_is_killed_with_all_that_it_started(ctx: RunContext, sandbox: Sandbox) -> None:
    command = "echo before; (sleep 7777 & setsid sleep 7777 &) ; sleep 7777"
    done = await result_of(ctx, shell.execute_command, command=command, timeout=3)
    assert (done.output, done.success) == ("before\n[killed: it took longer than 3 seconds]", False)
    assert not await running(sandbox, "sleep 7777")
    with pytest.raises(BadArguments, match="timeout"):
        await use(ctx, shell.execute_command, command="true", timeout=shell.LONGEST_SECONDS + 1)


async def test_a_gigabyte_of_output_is_cut_in_the_middle(ctx: RunContext) -> None:
    command = "echo begin; yes | head -c 1000000000; echo end"
    done = await result_of(ctx, shell.execute_command, command=command)
    assert done.output.startswith("begin\ny\ny\n")
    assert done.output.endswith("y\ny\nend\n[exit code 0]")
    assert "left out" in done.output
    assert len(done.output) < shell.KEPT_BYTES + 200
    assert len(told(ctx)) <= output.MAX_SHOWN_CHARS + len(output.NO_MORE_SHOWN)


async def test_a_call_that_is_cancelled_kills_its_command_at_once(ctx: RunContext, sandbox: Sandbox) -> None:
    took = list[float]()
    for word in ("one", "two", "three"):
        working = asyncio.create_task(use(ctx, shell.execute_command, command=f"echo {word}; sleep 8888"))
        await eventually(partial(is_told, ctx, word))
        before = time.monotonic()
        working.cancel()
        await asyncio.wait({working})
        took.append(time.monotonic() - before)
        async with asyncio.timeout(PATIENT):
            while await running(sandbox, "sleep 8888"):
                pass
    assert sorted(took)[1] < 5 * 0.2


async def test_a_background_command_is_started_looked_at_written_to_and_ended(ctx: RunContext) -> None:
    command = 'echo ready; while read line; do echo "got $line"; done'
    assert "Started repl" in await use(ctx, shell.start_command, session_name="repl", command=command)
    seen = await use(ctx, shell.check_command_output, session_name="repl", wait_seconds=30)
    assert seen == "ready\n[repl runs; what it prints next begins at offset 6]"
    await use(ctx, shell.send_input, session_name="repl", text="hello")
    seen = await use(ctx, shell.check_command_output, session_name="repl", offset=6, wait_seconds=30)
    assert seen == "got hello\n[repl runs; what it prints next begins at offset 16]"
    assert (await use(ctx, shell.list_commands)).startswith("repl runs: echo ready")
    assert "repl has ended" in await use(ctx, shell.terminate_command, session_name="repl")
    assert "repl has ended" in await use(ctx, shell.list_commands)


async def test_waiting_for_output_ends_with_the_command_or_the_time(ctx: RunContext) -> None:
    await use(ctx, shell.start_command, session_name="silent", command=f"{UNTIL_GO}; exit 5")
    waited = await use(ctx, shell.check_command_output, session_name="silent", wait_seconds=0.05)
    assert waited == "[silent runs; what it prints next begins at offset 0]"
    await (await ctx.sandbox()).write_file("/workspace/go", b"")
    waited = await use(ctx, shell.check_command_output, session_name="silent", wait_seconds=30)
    assert waited == "[silent has ended with exit code 5; what it prints next begins at offset 0]"


async def test_a_talkative_background_command_is_shown_bounded(ctx: RunContext) -> None:
    await use(
        ctx, shell.start_command, session_name="loud", command="head -c 30000000 /dev/zero | tr '\\0' x; echo end"
    )
    async with asyncio.timeout(60):
        while "loud has ended" not in await use(ctx, shell.list_commands):
            pass
    seen = await use(ctx, shell.check_command_output, session_name="loud")
    assert "older bytes are not kept" in seen
    assert "characters left out" in seen
    assert "end\n[loud has ended with exit code 0" in seen
    assert len(seen) < 41_000


async def test_two_background_commands_cannot_have_one_name(ctx: RunContext) -> None:
    await use(ctx, shell.start_command, session_name="one", command="sleep 60")
    with pytest.raises(SandboxFailed, match="one"):
        await use(ctx, shell.start_command, session_name="one", command="sleep 60")
    for name in ("", "a b", "x" * 65):
        with pytest.raises(BadArguments, match="session_name"):
            await use(ctx, shell.start_command, session_name=name, command="sleep 60")


async def test_an_unknown_background_command_is_named_in_the_refusal(ctx: RunContext) -> None:
    assert await use(ctx, shell.list_commands) == "There are no background commands."
    for tool in (shell.check_command_output, shell.terminate_command):
        with pytest.raises(SandboxFailed, match="absent"):
            await use(ctx, tool, session_name="absent")
    with pytest.raises(SandboxFailed, match="absent"):
        await use(ctx, shell.send_input, session_name="absent", text="x")
