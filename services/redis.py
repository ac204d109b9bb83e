"""The Redis client: bounded, impatient, and many commands in one round trip."""

import asyncio
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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

KEPT = 2

SCRIPT_ERROR = re.compile(r"ERR Error running script .*?: -(?=[A-Z]+ )")
"""What Redis before 7 puts in front of the error of a command that a script called."""

Words = tuple[Any, ...]
"""Of a command: str, bytes, int or float."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A command of so many words that is encoded already, in pieces of any size: each word as `bulk` has it."""

    words: int
    pieces: Iterable[bytes]


Command = Words | Encoded


def bulk(word: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(word), word)


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
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.kept: list[Any] = []
        """Connections between two questions: a turn of the pool costs as much as a round trip."""

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """The answers of many commands in one round trip, as a pipeline's, at a tenth of its price.

        An error of one command is its answer. Raises: redis errors when the server cannot be asked.
        """
        if not commands:
            return []
        connection = await self.take_connection()
        try:
            answers = await answers_of(connection, commands)
        except BaseException:
            await connection.disconnect(nowait=True)  # what is still to come would answer somebody else
            await self.connection_pool.release(connection)
            raise
        await self.keep(connection)
        return answers

    async def take_connection(self) -> Any:
        if self.kept:
            connection = self.kept.pop()
            if is_idle(connection):
                return connection
            await self.connection_pool.release(connection)  # which looks at what it gives out, and connects it again
        return await self.connection_pool.get_connection()

    async def keep(self, connection: Any) -> None:
        """Until the next question; the pool has most of them, for all else."""
        if len(self.kept) < min(KEPT, self.connection_pool.max_connections - 1):
            self.kept.append(connection)
        else:
            await self.connection_pool.release(connection)


def is_idle(connection: Any) -> bool:
    """Whether it is connected, and nobody has said anything on it since the last answer."""
    parser = connection._parser
    return parser._connected and not (parser._stream.at_eof() or parser._stream._buffer or parser._reader.has_data())


def packed(commands: Iterable[Command]) -> list[bytes]:
    """Commands as they are sent, in pieces: joined, they would be copied once more."""
    pieces: list[bytes] = []
    for command in commands:
        if isinstance(command, Encoded):
            pieces.append(b"*%d\r\n" % command.words)
            pieces += command.pieces
        else:
            pieces.append(pack_command(command))
    return pieces


async def answers_of(connection: Any, commands: Sequence[Command]) -> list[Any]:
    answers: list[Any] = []
    try:
        async with asyncio.timeout(connection.socket_timeout):
            await connection._send_packed_command(packed(commands))  # the public one makes a task of it
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
