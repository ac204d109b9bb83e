"""A run whose servers are connected, without a database or a sandbox."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import Any, cast
from uuid import UUID, uuid4

from agent.context import RunContext
from agent.mcp import Servers, connected
from agent.tools.base import ToolResult
from services.runs.fence import Fence
from services.runs.store import Run
from services.sandbox.protocol import Sandbox, SandboxProvider
from services.settings import McpSettings, OutgoingSettings, Settings
from tests.agent.mcp.programs import Here
from tests.agent.seeds import RecordingLog
from tests.usual import settings_with


def patience(**mcp: Any) -> Settings:
    """Settings for servers on loopback."""
    given = {"connect_timeout": "20s", "call_timeout": "20s", **mcp}
    return settings_with(mcp=McpSettings(**given), outgoing=OutgoingSettings(allow_private=True))


class Meeting:
    """A run in which servers are connected, and what came of it."""

    def __init__(
        self,
        settings: Settings,
        *custom: dict[str, Any],
        standard: Any = (),
        sandboxes: SandboxProvider | None = None,
        project_id: UUID | None = None,
    ) -> None:
        self.here = Here()
        self.log = RecordingLog()
        self.custom, self.standard = list(custom), list(standard)
        known: dict[str, Any] = dict.fromkeys(field.name for field in fields(Run))
        run = Run(**{**known, "id": uuid4(), "project_id": project_id or uuid4(), "thread_id": uuid4(), "attempt": 1})
        none = cast(Any, None)
        self.ctx = RunContext(run, Fence(run.id, 1, "worker"), self.log, none, none, settings)
        self.ctx.sandboxes = sandboxes or cast(SandboxProvider, self)
        self.servers = Servers()

    async def open(self, *_: Any) -> Sandbox:
        return cast(Sandbox, self.here)

    @asynccontextmanager
    async def held(self) -> AsyncIterator["Meeting"]:
        async with connected(self.ctx, self.standard, self.custom) as self.servers:
            yield self

    @property
    def names(self) -> list[str]:
        return [tool.name for tool in self.servers.tools]

    @property
    def troubles(self) -> list[tuple[str, str]]:
        """What the user was told."""
        contents = [event.content for event in self.log.events]
        return [(said["server_name"], said["message"]) for said in contents if said["status_type"] == "mcp_error"]

    async def call(self, name: str, **given: Any) -> ToolResult:
        tool = next(tool for tool in self.servers.tools if tool.name == name)
        async with asyncio.timeout(tool.timeout):
            return await tool.run(None, tool.read(given))

    @property
    def everything(self) -> str:
        """All that anybody was told before a call."""
        return f"{self.servers} {[tool.schema for tool in self.servers.tools]} {self.log.events}"
