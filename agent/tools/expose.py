"""The tool that shows a port of the sandbox to the person."""

from typing import Annotated

from pydantic import Field

from agent.context import Calling
from agent.tools.base import ToolFailed, tool
from services import previews
from services.previews import Preview


@tool(body="port", repeatable=True)
async def expose_port(
    calling: Calling,
    port: Annotated[int, Field(ge=1, le=65535, description="The port that your server listens on.")],
) -> str:
    """Make a web server of the sandbox reachable for the person. Start the server first; tell them the address."""
    ctx = calling.ctx
    address = previews.url(ctx.settings, Preview(ctx.run.project_id, port))
    if address is None:
        raise ToolFailed("This installation shows no previews: its operator has set no PREVIEW_URL.")
    sandbox = await ctx.sandbox()
    async with await sandbox.connect(port):
        return f"Port {port} is shown at {address}"


PORTS = (expose_port,)
