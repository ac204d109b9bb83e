"""A whole run that uses servers: what is stored and told."""

from typing import cast

import orjson
from httpx2 import AsyncClient

from agent.loop import run_agent
from agent.mcp import connected
from agent.tools.base import Registry
from agent.tools.standard import STANDARD
from services.postgres import Pool
from services.sandbox.protocol import SandboxProvider
from services.settings import Settings
from tests.agent.mcp.programs import faulty
from tests.agent.mcp.runs import Meeting, patience
from tests.agent.seeds import acts, make_context, rows_of, tool_parts
from tests.fakes import FakeModel, says


async def test_a_run_calls_good_and_bad_servers_and_goes_on(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    ctx, log = await make_context(pool, http, settings, "openai/m")
    ctx.settings = settings.model_copy(update={"mcp": patience(call_timeout="3s").mcp})
    ctx.sandboxes = cast(SandboxProvider, Meeting(settings))
    given = orjson.dumps({"text": "hello"}).decode()
    fake.script(
        acts(*tool_parts(0, "mcp_good_echo", given)),
        acts(*tool_parts(0, "mcp_slow_echo", given)),
        acts(*tool_parts(0, "mcp_good_echo", "{}")),
        says("<mcp-good-echo><text>in XML</text></mcp-good-echo>"),
        says("Done."),
    )
    bad = {"name": "dead", "type": "http", "config": {"url": "http://127.0.0.1:9/mcp"}}
    async with connected(ctx, [], [faulty(name="good"), faulty("hang-on-call", name="slow"), bad]) as servers:
        ctx.tools = Registry.of((*STANDARD, *servers.tools))
        await run_agent(ctx)
    results = [row for row in await rows_of(ctx) if row.type == "tool"]
    assert [row.metadata["tool_status"] for row in results] == ["completed", "error", "failed", "completed"]
    assert results[0].content["content"] == "hello"
    assert "did not answer within 3 seconds" in results[1].content["content"]
    assert "text: Field required" in results[2].content["content"]
    assert "in XML" in results[3].content["content"]
    said = [event.content for event in log.events if event.content.get("status_type") == "mcp_error"]
    assert [(each["server_name"], "dead" in each["message"]) for each in said] == [("dead", True)]
    assert fake.requests[-1].body["messages"][-1]["role"] == "user"
