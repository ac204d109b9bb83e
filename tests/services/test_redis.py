import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from unittest.mock import patch

import pytest
from pydantic import SecretStr
from redis import exceptions
from redis.asyncio import Redis

from services.channels import Channels
from services.redis import Parser, ServerUnfit, Unreachable, open_redis
from services.settings import RedisSettings, Settings
from tests.private import private_valkey
from tests.proxy import Proxy
from tests.services.runs.seeds import eventually
from tests.waiting import PATIENT


class Ear:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1


def has_heard(ear: Ear, word: bytes) -> bool:
    return word in ear.heard


@pytest.fixture
async def proxy(settings: Settings) -> AsyncIterator[Proxy]:
    async with Proxy(settings.redis.dsn) as proxy:
        yield proxy


@pytest.fixture
def near(proxy: Proxy) -> RedisSettings:
    """Redis through the proxy, with little patience."""
    one = timedelta(seconds=1)
    return RedisSettings(url=SecretStr(proxy.url), socket_timeout=one, connect_timeout=one, ping_interval=one / 2)


@pytest.fixture
async def channels(near: RedisSettings) -> AsyncIterator[Channels]:
    channels = Channels(near)
    channels.open()
    yield channels
    await channels.close()


async def test_what_is_published_after_listen_returned_is_heard(channels: Channels, redis: Redis) -> None:
    for number in range(20):
        ear = Ear()
        async with channels.listen(f"c{number % 3}", on_message=ear.heard.append, on_reset=ear.reset):
            assert await redis.publish(f"c{number % 3}", "word") == 1
            await eventually(partial(has_heard, ear, b"word"))


async def test_one_subscription_serves_all_listeners_of_a_channel(channels: Channels, redis: Redis) -> None:
    ears = [Ear() for _ in range(50)]
    async with AsyncExitStack() as stack:
        listens = [channels.listen("all", "other", on_message=ear.heard.append, on_reset=ear.reset) for ear in ears]
        await asyncio.gather(*(stack.enter_async_context(listen) for listen in listens))
        assert await redis.publish("all", "word") == 1
        await redis.publish("other", "too")
        await eventually(lambda: all(ear.heard == [b"word", b"too"] for ear in ears))
    assert not channels.listeners
    await eventually(lambda: nobody_listens(redis, "all"))


async def nobody_listens(redis: Redis, name: str) -> bool:
    return bool((await redis.pubsub_numsub(name))[0][1] == 0)


async def test_one_that_leaves_does_not_silence_the_others(channels: Channels, redis: Redis) -> None:
    stays, leaves = Ear(), Ear()
    async with channels.listen("c", on_message=stays.heard.append, on_reset=stays.reset):
        async with channels.listen("c", on_message=leaves.heard.append, on_reset=leaves.reset):
            pass
        await redis.publish("c", "word")
        await eventually(lambda: stays.heard == [b"word"])
    assert not leaves.heard


async def test_leaving_and_coming_at_once_never_misses_a_word(channels: Channels, redis: Redis) -> None:
    async def come_and_go(number: int) -> None:
        for _ in range(30):
            ear = Ear()
            async with channels.listen("busy", on_message=ear.heard.append, on_reset=ear.reset):
                await redis.publish("busy", str(number))
                await eventually(partial(has_heard, ear, str(number).encode()), every=0.001)

    await asyncio.gather(*(come_and_go(number) for number in range(5)))
    assert not channels.waiting


async def test_after_a_cut_everybody_is_told_to_look_again_and_hears_again(
    channels: Channels, proxy: Proxy, redis: Redis
) -> None:
    ear = Ear()
    async with channels.listen("c", on_message=ear.heard.append, on_reset=ear.reset):
        before = ear.resets
        proxy.cut()
        await eventually(lambda: ear.resets > before)
        await redis.publish("c", "word")
        await eventually(lambda: ear.heard == [b"word"])


async def test_a_connection_that_answers_no_ping_is_given_up(channels: Channels, proxy: Proxy, redis: Redis) -> None:
    """Nothing else would tell: a dead peer sends no end, and nobody is written to but by pings."""
    ear = Ear()
    async with channels.listen("c", on_message=ear.heard.append, on_reset=ear.reset):
        silent, before = channels.pubsub, ear.resets
        proxy.stall()
        await eventually(lambda: channels.pubsub is not silent)
        proxy.restore()
        await eventually(lambda: ear.resets > before)
        await redis.publish("c", "word")
        await eventually(lambda: ear.heard == [b"word"])


async def test_a_cut_at_any_moment_is_survived(near: RedisSettings, proxy: Proxy, redis: Redis) -> None:
    """redis-py may swallow the cancellation of a task that is reconnecting."""
    for number in range(5):
        everybody = [Channels(near) for _ in range(12)]
        ears = [Ear() for _ in everybody]
        async with AsyncExitStack() as stack:
            for channels in everybody:
                stack.push_async_callback(close_in_time, channels)
            for channels, ear in zip(everybody, ears, strict=True):
                channels.open()
                await stack.enter_async_context(channels.listen("c", on_message=ear.heard.append, on_reset=ear.reset))
            before = [ear.resets for ear in ears]
            await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=number * 0.003)
            proxy.cut()
            await eventually(partial(all_told, ears, before), says="somebody is deaf for ever")


async def close_in_time(channels: Channels) -> None:
    async with asyncio.timeout(PATIENT):
        await channels.close()


def all_told(ears: list[Ear], before: list[int]) -> bool:
    return all(ear.resets > resets for ear, resets in zip(ears, before, strict=True))


async def test_a_silent_connection_is_noticed(channels: Channels, proxy: Proxy, redis: Redis) -> None:
    """Nobody says that the connection is dead: no answer to a ping does."""
    ear = Ear()
    async with channels.listen("c", on_message=ear.heard.append, on_reset=ear.reset):
        before = ear.resets
        proxy.stall()
        await eventually(lambda: channels.pubsub is None)
        proxy.restore()
        await eventually(lambda: ear.resets > before)
        await redis.publish("c", "word")
        await eventually(lambda: ear.heard == [b"word"])


async def test_an_idle_connection_stays(settings: Settings, redis: Redis) -> None:
    """For longer than a command may take and an unanswered ping is waited for."""
    patience = {"socket_timeout": timedelta(seconds=1), "ping_interval": timedelta(seconds=1.5)}
    channels, ear = Channels(settings.redis.model_copy(update=patience)), Ear()
    channels.open()
    async with channels.listen("c", on_message=ear.heard.append, on_reset=ear.reset):
        connection, before = channels.pubsub, ear.resets
        await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=4.5)
        assert channels.pubsub is connection
        assert ear.resets == before
    await channels.close()


async def test_a_confirmation_does_not_hold_up_the_first_message(channels: Channels, redis: Redis) -> None:
    ear, gathered = Ear(), asyncio.Event()

    async def gather(connection: object) -> None:
        gathered.set()

    with patch.object(channels, "gather_more", gather):
        async with channels.listen("c", on_message=ear.heard.append, on_reset=ear.reset):
            assert not gathered.is_set()
            await redis.publish("c", "word")
            await eventually(gathered.is_set)


async def test_what_follows_a_message_within_the_pace_is_read_together(channels: Channels, redis: Redis) -> None:
    ear, readings = Ear(), list[int]()

    def note() -> float:
        readings.append(len(ear.heard))
        return 0.3

    with patch.object(channels.pace, "pause", note):
        async with channels.listen("c", on_message=ear.heard.append, on_reset=ear.reset):
            async with redis.pipeline(transaction=False) as pipeline:
                for number in range(20):
                    pipeline.publish("c", str(number))
                await pipeline.execute()
            await eventually(lambda: len(ear.heard) == 20)
    assert ear.heard == [b"%d" % number for number in range(20)]
    assert len(readings) < 5


async def test_a_subscription_that_is_begun_and_given_up_leaves_nothing_behind(
    channels: Channels, proxy: Proxy, redis: Redis
) -> None:
    ear = Ear()
    with channels.begin_listening("c", on_message=ear.heard.append, on_reset=ear.reset) as confirmed:
        await confirmed()
        assert await redis.publish("c", "word") == 1
        await eventually(lambda: ear.heard == [b"word"])
    proxy.refuse()
    await eventually(lambda: channels.pubsub is None)
    with channels.begin_listening("c", on_message=ear.heard.append, on_reset=ear.reset):
        pass
    assert not channels.listeners
    assert not channels.waiting


async def test_listening_fails_in_time_while_redis_is_away_and_works_when_it_is_back(
    channels: Channels, proxy: Proxy, redis: Redis
) -> None:
    proxy.refuse()
    with pytest.raises(exceptions.ConnectionError):
        async with asyncio.timeout(PATIENT), channels.listen("c", on_message=lambda _: None, on_reset=lambda: None):
            pass
    assert not channels.listeners
    proxy.restore()
    ear = Ear()
    async with asyncio.timeout(PATIENT):
        while True:
            try:
                async with channels.listen("c", on_message=ear.heard.append, on_reset=ear.reset):
                    await redis.publish("c", "word")
                    await eventually(lambda: ear.heard == [b"word"])
                break
            except exceptions.ConnectionError:
                continue


async def test_a_listener_that_raises_does_not_silence_the_process(channels: Channels, redis: Redis) -> None:
    def breaks(_: bytes) -> None:
        raise ValueError("a bug in one listener")

    ear = Ear()
    async with (
        channels.listen("c", on_message=breaks, on_reset=lambda: None),
        channels.listen("d", on_message=ear.heard.append, on_reset=ear.reset),
    ):
        await redis.publish("c", "word")
        await redis.publish("d", "word")

        async def heard() -> bool:
            await redis.publish("d", "again")
            return b"again" in ear.heard

        await eventually(heard, says="nobody hears any more")


async def test_commands_wait_for_a_connection_instead_of_failing(settings: Settings, redis: Redis) -> None:
    client = open_redis(settings.redis, pool_size=2)
    await asyncio.gather(*(client.set(f"k{number}", 1, ex=5) for number in range(100)))
    await client.aclose()


async def test_an_absent_server_raises_what_unreachable_names(near: RedisSettings, proxy: Proxy) -> None:
    client = open_redis(near)
    proxy.refuse()
    with pytest.raises(Unreachable):
        await client.ping()
    proxy.restore()
    assert await client.ping()
    proxy.stall()
    with pytest.raises(Unreachable):
        await client.ping()
    proxy.restore()
    assert await client.ping()
    await client.aclose()


@pytest.mark.parametrize(
    "said",
    [
        "LOADING Valkey is loading the dataset in memory",
        "READONLY You can't write against a read only replica.",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "CLUSTERDOWN The cluster is down",
        "NOREPLICAS Not enough good replicas to write.",
        "MISCONF Errors writing to the AOF file: No space left on device",
        "BUSY Valkey is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
        "OOM command not allowed when used memory > 'maxmemory'.",
        "ERR Error running script (call to f_0a): @user_script:3: @user_script: 3: -READONLY You can't write",
        "ERR Error running script (call to f_0a): @user_script:3: @user_script: 3: -OOM command not allowed",
    ],
    ids=lambda said: said.split(" -")[-1].split(" ")[0],
)
def test_what_a_sick_server_says_counts_as_unreachable(said: str) -> None:
    assert isinstance(Parser.parse_error(said), Unreachable)


def test_a_mistake_of_ours_does_not_count_as_unreachable() -> None:
    wrong = "WRONGTYPE Operation against a key holding the wrong kind of value"
    for said in (wrong, f"ERR Error running script (call to f_0a): @user_script:3: {wrong}"):
        assert not isinstance(Parser.parse_error(said), Unreachable)


async def test_a_server_that_became_a_replica_is_left_for_the_one_the_address_leads_to(
    settings: Settings,
) -> None:
    """The old master stays up and cuts nobody off."""
    async with private_valkey() as old, private_valkey() as new, Proxy(old.url) as proxy:
        await new.replicate(old)
        await eventually(new.in_step)
        async with open_redis(at(settings, proxy.url), pool_size=1) as client:
            await client.set("before", 1, ex=60)
            await new.promote()
            await old.replicate(new)
            proxy.lead_to(new.url)
            with pytest.raises(ServerUnfit):
                await client.set("during", 1, ex=60)
            await client.set("after", 1, ex=60)
            assert await new.admin.exists("after")


async def test_a_server_without_its_master_or_its_replicas_counts_as_unreachable(settings: Settings) -> None:
    async with private_valkey() as server, open_redis(at(settings, server.url)) as client:
        await server.admin.config_set("min-replicas-to-write", 1)
        with pytest.raises(Unreachable):
            await client.set("key", 1, ex=60)
        await server.admin.config_set("min-replicas-to-write", 0)
        await server.admin.config_set("replica-serve-stale-data", "no")
        await server.admin.execute_command("REPLICAOF", "127.0.0.1", 1)
        with pytest.raises(Unreachable):
            await client.get("key")
        await server.promote()
        await client.set("key", 1, ex=60)


async def test_a_server_that_is_busy_with_a_script_counts_as_unreachable_and_comes_back(settings: Settings) -> None:
    async with private_valkey() as server, open_redis(at(settings, server.url)) as client:
        channels, ear = Channels(at(settings, server.url)), Ear()
        channels.open()
        async with channels.listen("c", on_message=ear.heard.append, on_reset=ear.reset):
            await server.admin.config_set("busy-reply-threshold", 50)
            endless = asyncio.ensure_future(server.admin.eval("while true do end", 0))
            await eventually(lambda: says_busy(client))
            await eventually(lambda: channels.pubsub is None, says="the subscription did not notice")
            await client.script_kill()
            with pytest.raises(exceptions.ResponseError):
                await endless
            assert await client.ping()
            await eventually(lambda: channels.pubsub)
            await client.publish("c", "word")
            await eventually(lambda: b"word" in ear.heard)
        await channels.close()


def at(settings: Settings, url: str) -> RedisSettings:
    return settings.redis.model_copy(update={"url": SecretStr(url), "ping_interval": timedelta(seconds=0.2)})


async def says_busy(client: Redis) -> bool:
    try:
        await client.ping()
    except ServerUnfit:
        return True
    return False
