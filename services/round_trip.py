"""Many commands to Redis in one round trip, packed by hiredis and answered under one deadline.

redis-py's pipeline packs in Python and starts a timer for each answer, several times what the commands themselves cost.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from hiredis import pack_command
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

Command = tuple[Any, ...]
"""Its words: str, bytes, int or float."""


async def exchange(redis: Redis, commands: Sequence[Command]) -> list[Any]:
    """The answers in order, a ResponseError in the place of a command that was refused.

    Raises: what `services.redis.Unreachable` names when the server cannot be asked, or not within the socket timeout.
    """
    pool = redis.connection_pool
    connection = await pool.get_connection()
    try:
        async with asyncio.timeout(connection.socket_timeout):
            return await send(connection, commands)
    except BaseException:
        await connection.disconnect(nowait=True)  # what it still answers belongs to nobody
        raise
    finally:
        await pool.release(connection)


async def send(connection: AbstractConnection, commands: Sequence[Command]) -> list[Any]:
    await connection.send_packed_command([pack_command(command) for command in commands])
    parser: Any = connection._parser  # the connection's own reading takes three coroutines and a timer for each answer
    return [await parser.read_response() for _ in commands]
