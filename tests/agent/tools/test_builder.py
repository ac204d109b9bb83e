"""The tool that changes an agent, and what a run that builds one is told."""

from dataclasses import replace
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import orjson
import pytest
from httpx2 import AsyncClient

from agent import loop, profile, tool_runner
from agent.context import Calling, RunContext, RunFailed
from agent.tools.base import ToolResult
from services import agent_versions, agents
from services.agent_versions import AgentVersion
from services.agents import Agent, Change
from services.postgres import Pool, transaction
from services.runs.fence import FenceLost
from services.secrets import Secrets
from services.settings import Settings
from tests import fakes
from tests.agent.seeds import RecordingLog, acts, calling, make_context, resumed, rows_of, tool_parts
from tests.fakes import FakeModel

WORD = "hunter2-of-this-test"
MCP = {
    "name": "Search",
    "type": "http",
    "config": {"url": "https://mcp.example/x", "headers": {"Authorization": WORD}},
}
MASKED = {**MCP, "config": {"url": "https://mcp.example/x", "headers": {"Authorization": "***"}}}


async def make_builder(pool: Pool, http: AsyncClient, settings: Settings) -> tuple[RunContext, RecordingLog, Agent]:
    """A run that builds an agent of its account, which has a secret."""
    ctx, log = await make_context(pool, http, settings, "openai/m")
    parts = {"system_prompt": "Old", "custom_mcps": [MCP], "agentpress_tools": {"sb_shell_tool": True}}
    async with transaction(pool) as conn:
        made = Change(parts, {"name": "Target", "description": "For {tests}"})
        target = await agents.create(conn, Secrets.of(settings.secrets), ctx.run.account_id, made)
    builds = {"is_agent_builder": True, "target_agent_id": str(target.agent_id)}
    ctx.run = replace(ctx.run, settings=builds)
    ctx.tools = (await profile.load(ctx)).tools
    return ctx, log, target


@pytest.fixture
async def run(pool: Pool, http: AsyncClient, settings: Settings) -> tuple[RunContext, RecordingLog, Agent]:
    return await make_builder(pool, http, settings)


async def update(made: Calling, **arguments: Any) -> ToolResult:
    """What comes of a call with these arguments."""
    call = replace(made.call, name="update_agent", arguments=orjson.dumps(arguments).decode())
    return await tool_runner.run(replace(made, call=call))


async def versions(ctx: RunContext, target: Agent) -> list[AgentVersion]:
    async with ctx.pool.acquire() as conn:
        return await agent_versions.page(conn, target.agent_id, limit=10, offset=0)


async def test_a_conversation_changes_the_agent(run: tuple[RunContext, RecordingLog, Agent], fake: FakeModel) -> None:
    ctx, log, target = run
    change = {"system_prompt": "New", "name": "Gardener", "agentpress_tools": {"sb_files_tool": True}}
    asked = orjson.dumps(change).decode()
    fake.script(acts(*tool_parts(0, "update_agent", asked)), fakes.says("<complete>Done</complete>"))
    await loop.run_agent(ctx)
    (newest, first) = await versions(ctx, target)
    assert (newest.system_prompt, newest.version_number, first.system_prompt) == ("New", 2, "Old")
    assert newest.agentpress_tools == {"sb_shell_tool": True, "sb_files_tool": True}, "groups not named stay"
    assert newest.custom_mcps == first.custom_mcps
    async with ctx.pool.acquire() as conn:
        agent = await agents.get(conn, ctx.run.account_id, target.agent_id)
    assert (agent.name, agent.description, agent.current_version_id) == ("Gardener", "For {tests}", newest.version_id)
    results = [row.content["content"] for row in await rows_of(ctx) if row.type == "tool"]
    assert results[0] == "The agent Gardener was updated: version 2."
    assert "tool_completed" in log.kinds


async def test_a_call_that_is_made_again_after_a_crash_makes_no_second_version(
    run: tuple[RunContext, RecordingLog, Agent], fake: FakeModel
) -> None:
    ctx, _, target = run
    fake.script(
        acts(*tool_parts(0, "update_agent", '{"system_prompt": "New"}')), fakes.says("<complete>Done</complete>")
    )

    async def die(*arguments: Any) -> None:
        raise ConnectionAbortedError

    with patch.object(tool_runner, "keep", die), pytest.raises(ConnectionAbortedError):
        await loop.run_agent(ctx)
    assert [version.version_number for version in await versions(ctx, target)] == [2, 1], "made, its result lost"
    again, _ = resumed(ctx)
    await loop.run_agent(again)
    assert [version.version_number for version in await versions(ctx, target)] == [2, 1]
    (result, *_) = [row.content["content"] for row in await rows_of(ctx) if row.type == "tool"]
    assert result == "The agent Target was updated: version 2."


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "Say what to change"),
        ({"name": ""}, "name"),
        ({"system_prompt": "x" * 100_001}, "system_prompt"),
        ({"custom_mcps": [{"name": "X", "type": "pigeon", "config": {"url": "https://a.example"}}]}, "custom_mcps"),
        ({"custom_mcps": [{"name": "X", "type": "http", "config": {}}]}, "custom_mcps[0].config.url"),
        ({"custom_mcps": [MCP | {"name": "New"}]}, "custom_mcps.0.config.headers.Authorization is a secret"),
        (
            {"custom_mcps": [{**MASKED, "config": {**MASKED["config"], "url": "https://thief.example"}}]},  # type: ignore[dict-item]
            "no secret is kept behind it",
        ),
    ],
)
async def test_what_cannot_be_is_told_to_the_model(
    run: tuple[RunContext, RecordingLog, Agent], arguments: dict[str, Any], words: str
) -> None:
    ctx, _, target = run
    result = await update(calling(ctx), **arguments)
    assert not result.success
    assert not result.error
    assert words in result.output
    assert WORD not in result.output
    assert len(await versions(ctx, target)) == 1


async def test_an_mcp_server_keeps_its_secret_and_another_one_is_added(
    run: tuple[RunContext, RecordingLog, Agent], settings: Settings
) -> None:
    ctx, _, target = run
    added = {"name": "Time", "type": "stdio", "config": {"command": "mcp-server-time"}, "enabledTools": ["now"]}
    result = await update(calling(ctx), custom_mcps=[MASKED, added])
    assert result.success
    (newest, _) = await versions(ctx, target)
    assert newest.opened(Secrets.of(settings.secrets)).custom_mcps == [MCP, added]


async def test_nothing_new_makes_no_version(run: tuple[RunContext, RecordingLog, Agent]) -> None:
    ctx, _, target = run
    result = await update(calling(ctx), system_prompt="Old", description="Other")
    assert result.output == "The agent Target works with what it did before: version 1."
    assert len(await versions(ctx, target)) == 1


async def test_a_run_that_another_worker_took_over_changes_nothing(
    run: tuple[RunContext, RecordingLog, Agent],
) -> None:
    ctx, _, target = run
    await ctx.pool.execute("UPDATE agent_runs SET attempt = attempt + 1 WHERE id = $1", ctx.run.id)
    with pytest.raises(FenceLost):
        await update(calling(ctx), system_prompt="New")
    assert len(await versions(ctx, target)) == 1


async def test_an_agent_of_another_account_is_out_of_reach(run: tuple[RunContext, RecordingLog, Agent]) -> None:
    ctx, _, target = run
    ctx.run = replace(ctx.run, account_id=uuid4())
    result = await update(calling(ctx), system_prompt="New")
    assert "was deleted" in result.output
    assert len(await versions(ctx, target)) == 1
    with pytest.raises(RunFailed, match="was deleted"):
        await profile.load(ctx)
