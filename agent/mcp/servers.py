"""The MCP servers of one run: connected side by side, their tools under clear names, left when the run ends."""

import asyncio
import importlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.mcp import config, names, prompt
from agent.mcp.prompt import Introduced
from agent.mcp.unreachable import Unreachable
from agent.tools.arguments import Described, first_line
from agent.tools.base import Tool, ToolResult
from services.log import logger
from services.runs.events import status
from services.settings import McpSettings

if TYPE_CHECKING:
    from agent.context import RunContext
    from agent.mcp.connection import Listing
    from agent.mcp.server import Server

MAX_DESCRIPTION_CHARS = 1_000
MAX_MISSING = 10
SPARE_SECONDS = 10.0
MOMENT_SECONDS = 0.1
"""A stop counts within 200 ms."""
LEAVING_SECONDS = 2.0

leaving: set[asyncio.Future[Any]] = set()
"""Of servers that nobody waits for any more, until they are left."""


@dataclass(frozen=True, slots=True)
class Servers:
    """What servers add to a run: tools for its registry, and a section for its prompt."""

    tools: tuple[Tool, ...] = ()
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something about a server that model and person are told."""

    server: str
    words: str


@dataclass(frozen=True, slots=True)
class Reached:
    server: "Server"
    tools: tuple[Tool, ...]
    troubles: tuple[Trouble, ...] = ()


@asynccontextmanager
async def connected(ctx: "RunContext", configured_mcps: Any, custom_mcps: Any) -> AsyncIterator[Servers]:
    """Connect all servers of an agent for as long as the context lasts; leaving takes at most two seconds, and a run
    that is cancelled waits for a moment only.

    A server that cannot be used ends nothing: it is told in a status event and in the prompt.
    Raises: FenceLost.
    """
    configs, invalid = config.read(configured_mcps, custom_mcps)
    if not configs and not invalid:
        yield Servers()
        return
    server = await load()
    servers: list[Server] = [server.Server(each, ctx.settings, ctx.sandbox) for each in configs]
    try:
        short = names.of_servers(each.name for each in configs)
        found = await asyncio.gather(*(reach(*each) for each in zip(servers, short, strict=True)))
        wrong = [Trouble(each.server, f"{each}.") for each in invalid]
        yield await tell(ctx, found, wrong)
    except asyncio.CancelledError:
        await leave(servers, MOMENT_SECONDS)
        raise
    finally:
        await leave(servers, LEAVING_SECONDS)


async def leave(servers: "Sequence[Server]", seconds: float) -> None:
    """Leave all that are not left yet; what takes longer goes on by itself."""
    left = asyncio.gather(*(each.close() for each in servers))
    leaving.add(left)
    left.add_done_callback(leaving.discard)
    await asyncio.wait({left}, timeout=seconds)


async def load() -> Any:
    """The part that needs the SDK, in a thread: 1 s of import would stall the loop of all runs."""
    return await asyncio.to_thread(importlib.import_module, "agent.mcp.server")


async def reach(server: "Server", short: str) -> Reached:
    try:
        listing = await server.connect()
    except Unreachable as unreachable:
        return Reached(server, (), (Trouble(server.config.name, str(unreachable)),))
    wanted = server.config.enabled
    called = names.of_tools(short, (listed.name for listed in listing.tools))
    offered = {listed.name: listed for listed in reversed(listing.tools) if wanted is None or listed.name in wanted}
    tools = tuple(make_tool(server, offered[name], called[name]) for name in called if name in offered)
    return Reached(server, tools, tuple(shortcomings(server, listing)))


def shortcomings(server: "Server", listing: "Listing") -> list[Trouble]:
    name, most = server.config.name, server.settings.mcp.max_tools
    missing = sorted((server.config.enabled or frozenset()) - {listed.name for listed in listing.tools})
    found = [Trouble(name, f"{server.named} has more than {most} tools; the rest is left out.")] * listing.partial
    if missing:
        shown = ", ".join(missing[:MAX_MISSING])
        found.append(Trouble(name, f"{server.named} does not have these tools that are enabled: {shown}."))
    return found


def make_tool(server: "Server", listed: Any, name: str) -> Tool:
    """A tool whose calls go to the server; made again after a crash only where the server says that it does no harm."""
    notes = listed.annotations
    repeatable = bool(notes and (notes.read_only_hint or notes.idempotent_hint))

    async def call(calling: Any, /, **given: Any) -> ToolResult:
        return await server.call(listed.name, given, repeatable=repeatable)

    described = server.redact(listed.description or f"{listed.name} of {server.config.name}")[:MAX_DESCRIPTION_CHARS]
    schema = Described(server.redact.in_schema(listed.input_schema))
    return Tool(name, described, call, schema, repeatable=repeatable, timeout=longest_call(server.settings.mcp))


def longest_call(settings: McpSettings) -> float:
    """Two tries, each with a server to be connected first; the inner limits say more when they are reached."""
    return 2 * (settings.connect_timeout + settings.call_timeout).total_seconds() + SPARE_SECONDS


async def tell(ctx: "RunContext", found: Sequence[Reached], wrong: Sequence[Trouble]) -> Servers:
    """Tell of servers that cannot be used; what the others add to the run."""
    most = ctx.settings.mcp.max_tools
    tools = tuple(tool for reached in found for tool in reached.tools)
    troubles = [*wrong, *(trouble for reached in found for trouble in reached.troubles)]
    if len(tools) > most:
        troubles.append(Trouble("", f"Only the first {most} of {len(tools)} MCP tools are offered."))
    for trouble in troubles:
        logger.warning("mcp.trouble", agent_run_id=str(ctx.run.id), server=trouble.server, words=trouble.words)
        said = status("mcp_error", ctx.run.id, role="system", server_name=trouble.server, message=trouble.words)
        await ctx.log.append(said)
    offered = {tool.name for tool in tools[:most]}
    introduced = [introduce(reached, offered) for reached in found if reached.tools]
    return Servers(tools[:most], prompt.section(introduced, [trouble.words for trouble in troubles]))


def introduce(reached: Reached, offered: set[str]) -> Introduced:
    lines = [(tool.name, first_line(tool.description)) for tool in reached.tools if tool.name in offered]
    return Introduced(reached.server.config.name, reached.server.instructions, lines)
