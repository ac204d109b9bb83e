import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from pydantic import SecretStr
from redis.exceptions import NoScriptError, ResponseError

from services.redis import KEPT, Client, Encoded, Unreachable, bulk, is_idle, open_redis
from services.settings import RedisSettings, Settings
from tests.proxy import Proxy
from tests.waiting import eventually


@pytest.fixture
async def proxy(settings: Settings) -> AsyncIterator[Proxy]:
    async with Proxy(settings.redis.dsn) as proxy:
        yield proxy


@pytest.fixture
async def far(proxy: Proxy) -> AsyncIterator[Client]:
    """A client with one connection and half a second's patience."""
    half = timedelta(seconds=0.5)
    settings = RedisSettings(url=SecretStr(proxy.url), socket_timeout=half, connect_timeout=half)
    client = open_redis(settings, pool_size=1)
    yield client
    await client.aclose()


async def test_answers_stand_in_the_order_of_their_commands_and_a_refused_one_refuses_no_other(redis: Client) -> None:
    commands = [
        ("SET", "key", "value", "EX", 60),
        ("RPUSH", "key", b"x"),
        ("EVALSHA", "0" * 40, 0),
        ("EVAL", "return {'ok', 7}", 0),
        ("GET", "key"),
    ]
    done, refused, unknown, script, value = await redis.ask(commands)
    assert (done, script, value) == (b"OK", [b"ok", 7], b"value")
    assert isinstance(refused, ResponseError)
    assert isinstance(unknown, NoScriptError)


async def test_words_of_every_kind_and_size_arrive_as_they_are(redis: Client) -> None:
    words = (b"", b"\r\n\x00", "é", 7, b"x" * 2_000_000)
    commands = [("RPUSH", "list", *words), ("LRANGE", "list", 0, -1), ("DEL", "list")]
    assert await redis.ask(commands) == [5, [b"", b"\r\n\x00", "é".encode(), b"7", b"x" * 2_000_000], 1]


async def test_a_command_that_was_encoded_before_is_asked_among_others(redis: Client) -> None:
    words = (b"RPUSH", b"list", b"", b"\r\n\x00", b"x" * 2_000_000)
    ready = Encoded(len(words), map(bulk, words))
    assert await redis.ask([("PING",), ready, ("LRANGE", "list", 0, -1), ("DEL", "list")]) == [
        b"PONG",
        3,
        [*words[2:]],
        1,
    ]


async def test_a_connection_that_ended_between_two_questions_is_replaced_unnoticed(
    settings: Settings, proxy: Proxy
) -> None:
    client = open_redis(RedisSettings(url=SecretStr(proxy.url)), pool_size=4)
    try:
        assert await asyncio.gather(*(client.ask([("ECHO", number)]) for number in range(4)))
        assert len(client.kept) == KEPT
        proxy.cut()
        await eventually(lambda: not any(map(is_idle, client.kept)))
        assert await client.ask([("ECHO", "again")]) == [b"again"]
        assert await asyncio.gather(*(client.ask([("ECHO", number)]) for number in range(9))) == [
            [b"%d" % number] for number in range(9)
        ]
    finally:
        await client.aclose()


async def test_answers_that_come_too_late_are_no_later_commands_answers(far: Client, proxy: Proxy) -> None:
    assert await far.ask([("SET", "a", "1", "EX", 60), ("SET", "b", "2", "EX", 60)]) == [b"OK", b"OK"]
    proxy.stall()
    with pytest.raises(Unreachable):
        await far.ask([("GET", "a")])
    proxy.restore()
    assert await far.ask([("GET", "b")]) == [b"2"]


async def test_one_that_is_cancelled_leaves_no_answers_behind(far: Client, proxy: Proxy) -> None:
    await far.ask([("SET", "a", "1", "EX", 60), ("SET", "b", "2", "EX", 60)])
    proxy.lose_replies()
    asking = asyncio.create_task(far.ask([("GET", "a")]))
    await asyncio.sleep(0.1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    proxy.restore()
    assert await far.ask([("GET", "b")]) == [b"2"]


async def test_a_connection_that_breaks_between_two_answers_is_told_and_replaced(far: Client, proxy: Proxy) -> None:
    await far.ask([("SET", "a", "1", "EX", 60)])
    proxy.cut_after(3)
    with pytest.raises(Unreachable):
        await far.ask([("GET", "a"), ("GET", "a")])
    assert await far.ask([("GET", "a")]) == [b"1"]
