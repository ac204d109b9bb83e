"""MCP: which tools a server has, for whoever sets up an agent."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field

from agent.mcp import config, discovery
from agent.mcp.config import MAX_NAME_CHARS, InvalidServer, ServerConfig
from agent.mcp.discovery import Discovered
from agent.mcp.unreachable import Unreachable
from api.auth import Caller
from api.deps import CallerDep, Resources, ResourcesDep
from api.errors import invalid
from api.routes.sandboxes import sandbox_to_write
from services.errors import BadGateway, GatewayTimeout, TooManyRequests, Unavailable
from services.sandbox.protocol import Sandbox

router = APIRouter(prefix="/mcp", tags=["mcp"])

PATIENCE_SECONDS = 5.0
SOON = {"Retry-After": "2"}
discovering = asyncio.Semaphore(8)
"""Each holds a connection, or a process in a sandbox, to a server that may be slow."""
OF_ONE_USER = 4
"""How many a user may have looked at at a time: slow ones of one would keep all others waiting."""
asking: Counter[UUID] = Counter()


class DiscoveryIn(BaseModel):
    """`config` is `{url, headers}`, or `{command, args, env}` of a program that runs in the sandbox of `project_id`."""

    model_config = ConfigDict(populate_by_name=True)
    type: str
    config: dict[str, Any]
    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)] = "server"
    project_id: UUID | None = None


class ToolOut(BaseModel):
    name: str
    description: str
    inputSchema: dict[str, Any]


class DiscoveryOut(BaseModel):
    """`serverName` is what the server calls itself; `processedConfig` is what an agent is to keep."""

    success: bool = True
    tools: list[ToolOut]
    count: int
    serverName: str
    processedConfig: dict[str, Any]


@router.post("/discover-custom-tools")
async def discover_custom_tools(asked: DiscoveryIn, caller: CallerDep, resources: ResourcesDep) -> DiscoveryOut:
    """Connect to a server, list its tools, and leave it. 502: it cannot be used; 504: it did not answer in time."""
    server = read_server(asked)
    place = await place_of(resources, caller, asked, server)
    with one_of_few(caller.user_id):
        found = await discover(resources, server, place)
    tools = [ToolOut(**tool) for tool in found.tools]
    return DiscoveryOut(tools=tools, count=len(tools), serverName=found.server_name, processedConfig=asked.config)


def read_server(asked: DiscoveryIn) -> ServerConfig:
    try:
        return config.custom("body", {"name": asked.name, "type": asked.type, "config": asked.config})
    except InvalidServer as wrong:
        where = tuple(wrong.field.split("."))
        raise RequestValidationError([{"type": "value_error", "loc": where, "msg": wrong.problem}]) from wrong


async def place_of(resources: Resources, caller: Caller, asked: DiscoveryIn, server: ServerConfig) -> Sandbox | None:
    """Where a program runs; only in a project that the caller may change."""
    if server.kind != "stdio":
        return None
    if asked.project_id is None:
        raise invalid("project_id", "is needed for a server that is a program: it runs in the sandbox of a project")
    return await sandbox_to_write(resources, caller, asked.project_id)


@contextmanager
def one_of_few(user_id: UUID) -> Iterator[None]:
    """Raises: TooManyRequests when OF_ONE_USER servers are being looked at for the user."""
    if asking[user_id] >= OF_ONE_USER:
        raise TooManyRequests(f"At most {OF_ONE_USER} servers are looked at for you at a time.", headers=SOON)
    asking[user_id] += 1
    try:
        yield
    finally:
        asking[user_id] -= 1
        if not asking[user_id]:
            del asking[user_id]


async def discover(resources: Resources, server: ServerConfig, sandbox: Sandbox | None) -> Discovered:
    try:
        await asyncio.wait_for(discovering.acquire(), PATIENCE_SECONDS)
    except TimeoutError as error:
        raise Unavailable("Too many servers are being looked at right now; try again shortly.") from error
    try:
        return await discovery.discover(resources.settings, server, sandbox)
    except Unreachable as unreachable:
        refused = GatewayTimeout if unreachable.late else BadGateway
        raise refused(str(unreachable)) from unreachable
    finally:
        discovering.release()
