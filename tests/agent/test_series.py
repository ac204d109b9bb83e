"""Whatever people name models and tools: what is measured of them has names of ours."""

from contextlib import aclosing
from typing import Any

import pytest
from httpx2 import AsyncClient

from agent.context import RunFailed
from agent.llm import routing
from agent.llm.request import ModelRequest
from agent.loop import run_agent
from agent.tools.arguments import Described
from agent.tools.base import Registry, Tool
from services.postgres import Pool
from services.settings import Settings
from tests import fakes
from tests.agent.seeds import acts, make_context, tool_parts
from tests.fakes import FakeModel
from tests.services.metrics.reading import Counted, series

NAMES = 60


async def ask(settings: Settings, http: AsyncClient, model: str) -> None:
    request = ModelRequest(model, [{"role": "user", "content": "Well?"}])
    async with aclosing(routing.stream(settings, http, request)) as answer:
        async for _ in answer:
            pass


async def test_models_have_the_names_of_families(fake: FakeModel, settings: Settings, http: AsyncClient) -> None:
    async def ask_all(number: int) -> None:
        with pytest.raises(RunFailed, match="does not know the model"):
            await ask(settings, http, f"openai/name_{number}")
        for model in (f"openai/name_{number}", f"openai/maker_{number}/gpt-4o-name_{number}"):
            fake.script(fakes.says("Well."))
            await ask(settings, http, model)

    await ask_all(0)
    before = series().keys()
    for number in range(1, NAMES):
        await ask_all(number)
    assert series().keys() == before
    assert not [each for each in before if "name_" in str(each)]


async def test_a_call_that_is_not_made_for_want_of_a_key_is_not_measured(settings: Settings, http: AsyncClient) -> None:
    before = series().keys()
    for number in range(NAMES):
        with pytest.raises(RunFailed, match="needs a key: set GROQ_API_KEY"):
            await ask(settings, http, f"groq/claude-name_{number}")
    assert series().keys() == before


def of_a_server(name: str) -> Tool:
    """As MCP servers offer them, who name them as they like."""

    async def call(_context: Any) -> str:
        return "done"

    return Tool(name, "Does it.", call, Described({"type": "object", "properties": {}}))


async def test_tools_of_servers_are_one_and_those_that_are_not_there_are_another(
    pool: Pool, fake: FakeModel, settings: Settings, http: AsyncClient
) -> None:
    counted = Counted()
    ctx, _ = await make_context(pool, http, settings, "openai/m")
    ctx.tools = Registry.of(of_a_server(f"name_{number}") for number in range(NAMES))
    calls = [f"name_{number}" for number in range(NAMES)] + [f"missing_{number}" for number in range(NAMES)]
    parts = [part for index, name in enumerate(calls) for part in tool_parts(index, name, "{}")]
    fake.script(acts(*parts), fakes.says("Done."))
    await run_agent(ctx)
    assert counted("tool_call_duration_seconds_count", tool="mcp", outcome="ok") == NAMES
    assert counted("tool_call_duration_seconds_count", tool="unknown", outcome="failed") == NAMES
    assert not [each for each in series() if "name_" in str(each) or "missing_" in str(each)]
