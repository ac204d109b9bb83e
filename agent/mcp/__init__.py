"""Tools of MCP servers. Light: the SDK (30 MB, 1 s) is loaded by whoever first connects (docs/adr/0007-mcp.md)."""

from agent.mcp.servers import Servers, connected

__all__ = ["Servers", "connected"]
