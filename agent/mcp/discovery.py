"""Which tools a server has, for a person who sets up an agent."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.mcp.config import ServerConfig
from agent.mcp.servers import load
from services.sandbox.protocol import Sandbox, SandboxUnavailable
from services.settings import Settings

if TYPE_CHECKING:
    from agent.mcp.server import OpenSandbox, Server


@dataclass(frozen=True, slots=True)
class Discovered:
    """`server_name` is what the server calls itself; a tool is `{name, description, inputSchema}`."""

    server_name: str
    tools: list[dict[str, Any]]


async def nowhere() -> Sandbox:
    raise SandboxUnavailable("A server that is a program runs in the sandbox of a project, and none was named.")


async def discover(settings: Settings, config: ServerConfig, sandbox: "OpenSandbox" = nowhere) -> Discovered:
    """Connect, look, and leave. Raises: Unreachable."""
    server: Server = (await load()).Server(config, settings, sandbox)
    try:
        listing = await server.connect()
        redact = server.redact
        tools = [
            {
                "name": tool.name,
                "description": redact(tool.description or ""),
                "inputSchema": redact.in_schema(tool.input_schema),
            }
            for tool in listing.tools
        ]
        return Discovered(server.title, tools)
    finally:
        await server.close()
