"""Tools that run commands in the sandbox: to their end, or in the background."""

import asyncio
from typing import Annotated

from pydantic import Field

from agent.browser.chromium import JOB as BROWSER_JOB
from agent.context import Calling
from agent.tools.base import ToolResult, tool
from agent.tools.files import in_workspace
from agent.tools.output import Screen, shortened
from services.sandbox.protocol import WORKSPACE, Job, Sandbox

LONGEST_SECONDS = 600
GRACE_SECONDS = 30
"""How much longer than its command a call may take: the sandbox may have to start, and kill."""
LONGEST_WAIT_SECONDS = 60
POLL_SECONDS = 0.2
KEPT_BYTES = 40_000

Command = Annotated[str, Field(min_length=1, description="A command line for bash.")]
Folder = Annotated[str, Field(description="The folder of the workspace to run it in.")]
SessionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="Your name for the command.")]


@tool(body="command", timeout=LONGEST_SECONDS + GRACE_SECONDS)
async def execute_command(
    calling: Calling,
    command: Command,
    folder: Folder = WORKSPACE,
    timeout: Annotated[float, Field(gt=0, le=LONGEST_SECONDS, description="Seconds until it is killed.")] = 60,
) -> ToolResult:
    """Run a command in the workspace and wait for its end. For a server or anything long use start_command."""
    sandbox = await calling.ctx.sandbox()
    async with Screen(calling) as screen:
        done = await sandbox.exec(
            command, cwd=in_workspace(folder), timeout=timeout, on_output=screen.take, max_output=KEPT_BYTES
        )
    output = done.output.decode(errors="replace")
    if done.exit_code is None:
        return ToolResult(ended(output, f"killed: it took longer than {timeout:g} seconds"), success=False)
    return ToolResult(ended(output, f"exit code {done.exit_code}"), success=done.exit_code == 0)


def ended(output: str, how: str) -> str:
    """What was printed, and in brackets on a line of its own how it ended."""
    return f"{output}[{how}]" if not output or output.endswith("\n") else f"{output}\n[{how}]"


@tool(body="command")
async def start_command(
    calling: Calling, session_name: SessionName, command: Command, folder: Folder = WORKSPACE
) -> str:
    """Start a command that goes on in the background, such as a server. It goes on after the run has ended too."""
    sandbox = await calling.ctx.sandbox()
    job = await sandbox.start_job(session_name, command, cwd=in_workspace(folder))
    return f"Started {job.name}; check_command_output shows what it prints."


@tool(body="session_name", repeatable=True)
async def check_command_output(
    calling: Calling,
    session_name: SessionName,
    offset: Annotated[int, Field(ge=0, description="The byte to read from; an earlier answer names the next.")] = 0,
    wait_seconds: Annotated[
        float, Field(ge=0, le=LONGEST_WAIT_SECONDS, description="How long to wait for something new, or its end.")
    ] = 0,
) -> str:
    """See whether a background command still runs, and what it has printed."""
    sandbox = await calling.ctx.sandbox()
    job = await awaited(sandbox, session_name, offset, wait_seconds)
    gone = job.next_offset - len(job.output) - offset
    older = f"[{gone} older bytes are not kept any more]\n" if gone > 0 else ""
    state = f"{state_of(job)}; what it prints next begins at offset {job.next_offset}"
    return ended(older + shortened(job.output), state)


async def awaited(sandbox: Sandbox, name: str, offset: int, seconds: float) -> Job:
    """The job, as soon as it has printed more or ended, or the time is over."""
    until = asyncio.get_running_loop().time() + seconds
    while True:
        job = await sandbox.job(name, offset=offset)
        if job.output or not job.running or asyncio.get_running_loop().time() >= until:
            return job
        await asyncio.sleep(POLL_SECONDS)


def state_of(job: Job) -> str:
    if job.running:
        return f"{job.name} runs"
    return f"{job.name} has ended with exit code {job.exit_code}" if job.exit_code is not None else f"{job.name} ended"


@tool(body="text")
async def send_input(
    calling: Calling,
    session_name: SessionName,
    text: Annotated[str, Field(description="What to type; a line break is added unless it ends with one.")],
) -> str:
    """Type a line into a background command."""
    sandbox = await calling.ctx.sandbox()
    await sandbox.write_job(session_name, text.removesuffix("\n").encode(errors="replace") + b"\n")
    return f"Sent to {session_name}."


@tool(body="session_name", repeatable=True)
async def terminate_command(calling: Calling, session_name: SessionName) -> str:
    """End a background command with all that it started."""
    sandbox = await calling.ctx.sandbox()
    job = await sandbox.kill_job(session_name)
    return f"{state_of(job)}."


@tool(repeatable=True)
async def list_commands(calling: Calling) -> str:
    """List the background commands and whether they still run."""
    sandbox = await calling.ctx.sandbox()
    jobs = [job for job in await sandbox.jobs() if job.name != BROWSER_JOB]
    return "\n".join(f"{state_of(job)}: {job.command}" for job in jobs) or "There are no background commands."


SHELL = (execute_command, start_command, check_command_output, send_input, terminate_command, list_commands)
