"""One MCP server as a run uses it: connected once, connected again when it dies, asked, left."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from mcp.client._transport import TransportStreams

from agent.mcp import pipes, results, web
from agent.mcp.config import MAX_NAME_CHARS, ServerConfig
from agent.mcp.connection import Connection, Listing, Lost, Refused
from agent.mcp.redaction import Redactor
from agent.mcp.unreachable import Unreachable
from agent.mcp.watching import Watch
from agent.tools.base import ToolResult
from services.sandbox.protocol import Sandbox
from services.settings import Settings

Result = TypeVar("Result")
OpenSandbox = Callable[[], Awaitable[Sandbox]]

UNKNOWN = "Whether the call took effect is not known: look before you make it again."
MAX_INSTRUCTIONS = 4_000
MAX_WORDS = 1_000


class Server:
    def __init__(self, config: ServerConfig, settings: Settings, sandbox: OpenSandbox) -> None:
        self.config, self.settings, self.sandbox = config, settings, sandbox
        key = settings.mcp.registry_api_key.get_secret_value()
        self.redact = Redactor(config, key, "" if config.url else web.address(config, settings.mcp))
        self.connection: Connection | None = None
        self.restarts = 0
        self.turn = asyncio.Lock()
        self.instructions = ""
        self.title = config.name

    async def connect(self) -> Listing:
        """Connect and read which tools there are. Raises: Unreachable."""
        return await self.within(self.open_and_list())

    async def open_and_list(self) -> Listing:
        if self.config.kind != "stdio" and not web.address(self.config, self.settings.mcp):
            raise Unreachable(f"{self.named} has no url, and no registry is set up here (MCP_REGISTRY_URL).")
        connection = self.begin()
        client = await connection.open()
        self.instructions = self.redact((client.instructions or "")[:MAX_INSTRUCTIONS])
        if client.server_info:
            self.title = self.redact(client.server_info.title or client.server_info.name)[:MAX_NAME_CHARS]
        return await connection.list_tools(self.settings.mcp.max_tools)

    def begin(self) -> Connection:
        watch = Watch(self.settings.mcp.max_message_bytes)
        self.connection = Connection(self.transport(watch), watch)
        return self.connection

    @asynccontextmanager
    async def transport(self, watch: Watch) -> AsyncIterator[TransportStreams]:
        if self.config.kind == "stdio":
            sandbox = await self.sandbox()
            async with pipes.streams(sandbox.pipe(self.config.argv, env=self.config.env), watch) as streams:
                yield streams
        else:
            async with web.streams(self.config, self.settings, watch) as streams:
                yield streams

    async def within(self, connecting: Awaitable[Result]) -> Result:
        """What it takes to connect, in the time for it; what was begun in vain is left. Raises: Unreachable."""
        seconds = self.settings.mcp.connect_timeout.total_seconds()
        try:
            async with asyncio.timeout(seconds):
                return await connecting
        except TimeoutError:
            failed = Unreachable(f"{self.named} did not answer within {seconds:g} seconds.", late=True)
        except (Lost, Refused) as error:
            failed = Unreachable(self.told(f"{self.named} could not be connected: {error}."))
        await self.close()
        raise failed

    @property
    def named(self) -> str:
        return f"The MCP server {self.config.name}"

    def told(self, words: str) -> str:
        """Without secrets, and not too long: the beginning says what happened, the end why."""
        safe = self.redact(words)
        return safe if len(safe) <= MAX_WORDS else f"{safe[: MAX_WORDS // 2]} … {safe[-MAX_WORDS // 2 :]}"

    async def live(self) -> Connection:
        """The connection, made anew when it has ended. Raises: Unreachable."""
        async with self.turn:
            if self.connection and self.connection.alive:
                return self.connection
            most = self.settings.mcp.max_restarts
            if self.restarts >= most:
                raise Unreachable(f"{self.named} ended again and again; it is not started more than {most} times.")
            self.restarts += 1
            await self.close()
            connection = self.begin()
            await self.within(connection.open())
            return connection

    async def call(self, tool: str, arguments: dict[str, Any], *, repeatable: bool) -> ToolResult:
        """The result for the model, whatever the server does. One that died is asked again if that can do no harm."""
        for again in (True, False):
            try:
                return await self.ask(tool, arguments)
            except Unreachable as unreachable:
                return broke(str(unreachable))
            except Refused as refused:
                return ToolResult(self.told(f"{self.named} refused the call: {refused}"), success=False)
            except Lost as lost:
                if again and (repeatable or not lost.taken):
                    continue
                died = self.told(f"{self.named} broke off during the call: {lost}.")
                return broke(f"{died} {UNKNOWN}" if lost.taken else died)
        raise AssertionError("the second try ends in one of the ways above")

    async def ask(self, tool: str, arguments: dict[str, Any]) -> ToolResult:
        connection = await self.live()
        seconds = self.settings.mcp.call_timeout.total_seconds()
        try:
            async with asyncio.timeout(seconds):
                return results.read(await connection.call(tool, arguments), self.redact)
        except TimeoutError:
            return broke(f"{self.named} did not answer within {seconds:g} seconds; it was told to stop. {UNKNOWN}")

    async def close(self) -> None:
        connection, self.connection = self.connection, None
        if connection:
            await connection.close()


def broke(words: str) -> ToolResult:
    return ToolResult(words, success=False, error=True)
