"""What a run is told and given: by the version that it pinned, or by the agent that it builds."""

from dataclasses import replace
from unittest.mock import patch
from uuid import UUID, uuid4

import pytest
from httpx2 import AsyncClient

from agent import loop, profile
from agent.context import RunContext, RunFailed
from agent.conversation import Conversation
from services import agents
from services.agents import Agent, Change
from services.postgres import Pool, transaction
from services.secrets import Secrets
from services.settings import SecretsSettings, Settings
from tests import fakes
from tests.agent.seeds import RecordingLog, acts, rows_of, tool_parts
from tests.agent.tools.test_builder import MCP, WORD, make_builder
from tests.fakes import FakeModel


@pytest.fixture
async def run(pool: Pool, http: AsyncClient, settings: Settings) -> tuple[RunContext, RecordingLog, Agent]:
    return await make_builder(pool, http, settings)


async def test_the_prompt_shows_the_agent_without_its_secrets(run: tuple[RunContext, RecordingLog, Agent]) -> None:
    ctx, _, _ = run
    told = (await profile.load(ctx)).system_prompt
    for words in ("Target", "For {tests}", '"system_prompt": "Old"', "***"):
        assert words in told
    assert WORD not in told


async def test_a_run_of_an_agent_loads_the_version_that_it_pinned(
    run: tuple[RunContext, RecordingLog, Agent], settings: Settings
) -> None:
    ctx, _, target = run
    ctx.run = replace(ctx.run, settings={}, agent_id=target.agent_id, agent_version_id=target.current_version_id)
    async with transaction(ctx.pool) as conn:
        later = Change({"system_prompt": "Later"}, {})
        await agents.change(conn, Secrets.of(settings.secrets), ctx.run.account_id, target.agent_id, later)
    loaded = await profile.load(ctx)
    assert (loaded.mode, loaded.system_prompt, loaded.custom_mcps) == ("custom", "Old", [MCP])
    assert loaded.tools.get("update_agent") is None
    assert WORD not in repr(loaded)
    ctx.settings = settings.model_copy(update={"secrets": SecretsSettings(keys="another-key-of-32-characters-or-more")})
    with pytest.raises(RunFailed, match="enter the secrets"):
        await profile.load(ctx)


@pytest.mark.parametrize("version_id", [None, uuid4()])
async def test_a_run_whose_agent_was_deleted_fails_rather_than_have_all_tools(
    run: tuple[RunContext, RecordingLog, Agent], version_id: UUID | None
) -> None:
    ctx, _, _ = run
    ctx.run = replace(ctx.run, settings={"agent_id": str(uuid4())}, agent_version_id=version_id)
    with pytest.raises(RunFailed, match="The agent of this run was deleted"):
        await profile.load(ctx)


async def test_a_run_goes_on_when_its_agent_is_deleted(
    run: tuple[RunContext, RecordingLog, Agent], fake: FakeModel
) -> None:
    ctx, _, target = run
    statement = "UPDATE agent_runs SET agent_id = $2, agent_version_id = $3 WHERE id = $1"
    await ctx.pool.execute(statement, ctx.run.id, target.agent_id, target.current_version_id)
    ctx.run = replace(ctx.run, settings={}, agent_id=target.agent_id, agent_version_id=target.current_version_id)
    fake.script(acts(*tool_parts(0, "expand_message", "{}")), fakes.says("<complete>Done</complete>"))
    refresh = Conversation.refresh

    async def delete_and_refresh(conversation: Conversation) -> None:
        async with transaction(ctx.pool) as conn:
            await agents.delete(conn, ctx.run.account_id, target.agent_id)
        await refresh(conversation)

    with patch.object(Conversation, "refresh", delete_and_refresh):
        await loop.run_agent(ctx)
    rows = await rows_of(ctx)
    assert len(rows) == 4
    assert {row.agent_id for row in rows} == {None}
