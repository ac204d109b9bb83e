"""What the world outside sees of executions: a web server and an MCP server that count what they are asked for."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mcp.server.mcpserver import MCPServer

from tests.agent.mcp.hosts import Host
from tests.sites import Asked, Page, Site, site

TAKES_SECONDS = 0.25
"""What everything takes that is asked for: something to be killed in."""
SLOW = Page(b"............", content_type="text/plain", drip=TAKES_SECONDS / 12)
ORDER = ("put:0", "put:1", "side:0", "act", "read", "look", "pay:0")
"""The effects of one execution as they follow each other; those of requests are what stands in their keys."""
ONCE = frozenset({"side:0", "act", "pay:0"})
"""Those that may not be repeated."""


@dataclass
class Witness:
    site: Site
    mcp_url: str
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Tools of the MCP server that were called, each with the execution that it was called for."""

    def seen_of(self, execution_id: str) -> Counter[str]:
        """How often each effect of an execution was seen."""
        asked = (named(each) for each in self.site.asked)
        mine = [
            effect for known, effect in (*asked, *((who, tool) for tool, who in self.calls)) if known == execution_id
        ]
        return Counter(mine)

    def bodies_of(self, execution_id: str, effect: str) -> set[bytes]:
        """The different requests that one key stood for."""
        return {each.body for each in self.site.asked if named(each) == (execution_id, effect)}


def named(asked: Asked) -> tuple[str, str]:
    """Whose request this is, and which one."""
    path, _, execution_id = asked.path.partition("?")
    if execution_id:
        return execution_id, path.removeprefix("/")
    execution_id, _, effect = asked.headers["idempotency-key"].partition(":")
    return execution_id, effect


def counting(calls: list[tuple[str, str]]) -> MCPServer:
    server = MCPServer("witness", log_level="CRITICAL")

    async def called(tool: str, execution: str) -> str:
        calls.append((tool, execution))
        await asyncio.sleep(TAKES_SECONDS)
        return "seen"

    @server.tool()
    async def act(execution: str) -> str:
        """Do something that may be done once."""
        return await called("act", execution)

    @server.tool()
    async def look(execution: str) -> str:
        """Look at something."""
        return await called("look", execution)

    return server


@asynccontextmanager
async def open_witness() -> AsyncIterator[Witness]:
    calls: list[tuple[str, str]] = []
    with Host(counting(calls).streamable_http_app()) as host:
        async with site(dict.fromkeys(("/put", "/side", "/read", "/pay"), SLOW)) as serving:
            yield Witness(serving, host.url, calls)
