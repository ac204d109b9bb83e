"""The Redis client: bounded, impatient, and many commands in one round trip."""

import asyncio
import re
from collections.abc import Iterable, Sequence
from typing import Any, cast

from hiredis import pack_command
from redis import exceptions
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import DefaultParser
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from services.settings import RedisSettings

Unreachable = (OSError, exceptions.ConnectionError, exceptions.TimeoutError, exceptions.OutOfMemoryError)
"""What redis-py raises while the server is away, or has no room; asyncio's TimeoutError is an OSError."""

SCRIPT_ERROR = re.compile(r"ERR Error running script .*?: -(?=[A-Z]+ )")
"""What Redis before 7 puts in front of the error of a command that a script called."""

Command = tuple[Any, ...]
"""Its words: str, bytes, int or float."""


class ServerUnfit(exceptions.ConnectionError):
    """The server answers, and says that it is not the one to ask, or not now.

    As a ConnectionError it costs the connection: its address may lead to another server by now (a failover).
    """


class Parser(DefaultParser):  # type: ignore[misc, valid-type]
    __slots__ = ()
    EXCEPTION_CLASSES = {  # noqa: RUF012 - overrides an attribute of the base class
        **DefaultParser.EXCEPTION_CLASSES,
        **dict.fromkeys(("READONLY", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "MISCONF", "BUSY"), ServerUnfit),
    }

    @classmethod
    def parse_error(cls, response: str) -> Any:
        return super().parse_error(SCRIPT_ERROR.sub("", response, count=1))

    async def replies(self) -> list[Any]:
        """All replies that have arrived whole, at least one; errors are among them.

        Raises: redis ConnectionError when the connection is closed.
        """
        if not self._connected:
            raise exceptions.ConnectionError("the connection is closed")
        while not (arrived := list(iter(self._reader.gets, NOT_ENOUGH_DATA))):
            await self.read_from_socket()
        for reply in arrived:
            if isinstance(reply, exceptions.ConnectionError):
                raise reply
        return arrived


class Client(Redis):
    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """The answers of many commands in one round trip, as a pipeline's, at a tenth of its price.

        An error of one command is its answer. Raises: redis errors when the server cannot be asked.
        """
        if not commands:
            return []
        connection = await self.connection_pool.get_connection()
        try:
            return await answers_of(connection, commands)
        except BaseException:
            await connection.disconnect(nowait=True)  # what is still to come would answer somebody else
            raise
        finally:
            await self.connection_pool.release(connection)


def packed(commands: Iterable[Command]) -> bytes:
    return b"".join(pack_command(command) for command in commands)


async def answers_of(connection: Any, commands: Sequence[Command]) -> list[Any]:
    answers: list[Any] = []
    try:
        async with asyncio.timeout(connection.socket_timeout):
            await connection._send_packed_command([packed(commands)])  # the public one makes a task of it
            while len(answers) < len(commands):
                answers += await connection._parser.replies()
    except TimeoutError as error:
        raise exceptions.TimeoutError("Redis did not answer in time") from error
    return answers


def open_redis(settings: RedisSettings, *, pool_size: int | None = None) -> Client:
    """A client with a bounded pool; commands wait for a free connection and are never retried behind our back."""
    pool = BlockingConnectionPool.from_url(
        settings.dsn,
        max_connections=pool_size or settings.pool_size,
        timeout=settings.socket_timeout.total_seconds(),
        socket_timeout=settings.socket_timeout.total_seconds(),
        socket_connect_timeout=settings.connect_timeout.total_seconds(),
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        parser_class=Parser,
    )
    return cast(Client, Client.from_pool(pool))
