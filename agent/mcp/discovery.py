"""Which tools a server has, for a person who sets up an agent."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.mcp.config import ServerConfig
from agent.mcp.redaction import Redactor
from agent.mcp.servers import load
from services.sandbox.protocol import Sandbox, SandboxUnavailable
from services.settings import Settings

if TYPE_CHECKING:
    from agent.mcp.server import Server


@dataclass(frozen=True, slots=True)
class Discovered:
    """`server_name` is what the server calls itself; a tool is `{name, description, inputSchema}`."""

    server_name: str
    tools: list[dict[str, Any]]


async def discover(settings: Settings, config: ServerConfig, sandbox: Sandbox | None = None) -> Discovered:
    """Connect, look, and leave; a server that is a program runs in `sandbox`. Raises: Unreachable."""

    async def opened() -> Sandbox:
        if sandbox is None:
            raise SandboxUnavailable("It is a program, which runs in a sandbox only.")
        return sandbox

    server: Server = (await load()).Server(config, settings, opened)
    try:
        listing = await server.connect()
    finally:
        await server.close()
    return Discovered(server.title, [shown(tool, server.redact) for tool in listing.tools])


def shown(tool: Any, redact: Redactor) -> dict[str, Any]:
    described = redact(tool.description or "")
    return {"name": tool.name, "description": described, "inputSchema": redact.in_schema(tool.input_schema)}
