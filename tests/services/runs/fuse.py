"""A process that dies, or loses its connection, at the nth thing it asks a store: before it is done, or just after."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar, cast

import asyncpg
from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from services.channels import Channels
from services.postgres import Pool
from services.redis import Client, Command, open_redis
from services.settings import RedisSettings

T = TypeVar("T")

STATEMENTS = ("execute", "fetch", "fetchrow", "fetchval")


class Killed(BaseException):
    """The process is gone: no line of it runs any more. Not an Exception, so that nobody handles it."""


class Fuse:
    """Everything that a process asks of Redis and Postgres passes here."""

    def __init__(self) -> None:
        self.left = 0
        """How many commands pass before it burns; 0: it is not lit."""
        self.kind: Literal["dies", "breaks"] = "dies"
        self.after = False
        self.dead = False
        self.burned = 0
        """How often it burned; a step in which it did promises nothing but safety."""
        self.flying = 0
        """Commands that are on their way."""

    def light(self, left: int, kind: Literal["dies", "breaks"], *, after: bool) -> None:
        """Burn at the command number `left` from now on; `after` lets that command through and loses its answer."""
        self.left, self.kind, self.after = left, kind, after

    def put_out(self) -> None:
        self.left = 0

    async def guard(self, command: Callable[[], Awaitable[T]], broken: Exception) -> T:
        if self.dead:
            raise Killed
        burns = self.left == 1
        self.left = max(self.left - 1, 0)
        if burns and not self.after:
            self.burn(broken)
        answer = await self.fly(command)
        if burns:
            self.burn(broken)
        return answer

    async def fly(self, command: Callable[[], Awaitable[T]]) -> T:
        self.flying += 1
        try:
            return await command()
        finally:
            self.flying -= 1

    def burn(self, broken: Exception) -> None:
        self.burned += 1
        if self.kind == "breaks":
            raise broken
        self.dead = True
        raise Killed


def lost_redis() -> Exception:
    return exceptions.ConnectionError("the fuse burned")


def lost_postgres() -> Exception:
    return asyncpg.ConnectionDoesNotExistError("the fuse burned")


class Server:
    """The Redis server as its clients know it: `life` counts its restarts, which a test cannot really have."""

    def __init__(self) -> None:
        self.life = 0

    def relabel(self, answer: Any) -> Any:
        """INFO with the identity that a server restarted so often would have."""
        if isinstance(answer, bytes) and answer.startswith(b"# Server"):
            return re.sub(rb"(\r\nrun_id:\w+)", rb"\1-%d" % self.life, answer)
        return answer


class FusedRedis(Client):
    fuse: Fuse
    server: Server
    origin: Redis
    """Whose pool this is; a pool is closed with the client that made it."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        run: Any = super().execute_command
        return await self.fuse.guard(lambda: run(*args, **options), lost_redis())

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        run = super().ask
        answers = await self.fuse.guard(lambda: run(commands), lost_redis())
        return [self.server.relabel(answer) for answer in answers]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "FusedPipeline":
        pipeline = FusedPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipeline.fuse = self.fuse
        return pipeline


class FusedPipeline(Pipeline):
    fuse: Fuse

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        run = cast(Callable[[bool], Awaitable[list[Any]]], super().execute)
        return await self.fuse.guard(lambda: run(raise_on_error), lost_redis())


def fused_redis(settings: RedisSettings, fuse: Fuse, server: Server) -> FusedRedis:
    origin = open_redis(settings)
    client = cast(FusedRedis, FusedRedis.from_pool(origin.connection_pool))
    client.fuse, client.server, client.origin = fuse, server, origin
    return client


def fused_channels(settings: RedisSettings, fuse: Fuse) -> Channels:
    """Subscriptions do not burn; but they fly."""
    channels = Channels(settings)
    wait_for = channels.wait_for

    async def flying(name: str, confirmed: "asyncio.Future[None] | None") -> None:
        await fuse.fly(lambda: wait_for(name, confirmed))

    channels.wait_for = flying  # type: ignore[method-assign]
    return channels


class Fused:
    """A pool or one of its connections, its statements behind the fuse; everything else as it is."""

    def __init__(self, inner: Any, fuse: Fuse) -> None:
        self.inner, self.fuse = inner, fuse

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if name not in STATEMENTS:
            return found

        async def statement(*args: Any, **options: Any) -> Any:
            return await self.fuse.guard(lambda: found(*args, **options), lost_postgres())

        return statement

    @asynccontextmanager
    async def acquire(self, **options: Any) -> AsyncIterator["Fused"]:
        conn = await self.fuse.fly(lambda: self.inner.acquire(**options))
        try:
            yield Fused(conn, self.fuse)
        finally:
            await self.fuse.fly(lambda: self.inner.release(conn))


def fused_pool(pool: Pool, fuse: Fuse) -> Pool:
    return cast(Pool, Fused(pool, fuse))
