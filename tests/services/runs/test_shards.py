"""Runs that are spread over two Redis servers, each of which may be killed, emptied or joined by a third."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr

from services.redis import Unreachable
from services.runs import control, events, keys, lifecycle, stopping
from services.runs.shards import Shard
from services.runs.store import Run
from services.runs.stores import Stores, open_stores
from services.settings import Settings
from tests.conftest import keys_without_ttl
from tests.private import Valkey, private_valkey
from tests.services.runs.seeds import (
    Driver,
    archived,
    bury,
    claim,
    closed,
    driving,
    end,
    eventually,
    hand_over,
    kinds,
    listed,
    make_run,
    read_all,
    row_of,
    with_runs,
)
from tests.waiting import PATIENT
from worker import sweeper

ROOT = Path(__file__).parents[3]
SOURCES = ("api", "worker", "agent", "services")


@pytest.fixture
async def servers() -> AsyncIterator[list[Valkey]]:
    async with AsyncExitStack() as stack:
        yield await asyncio.gather(*(stack.enter_async_context(private_valkey()) for _ in range(2)))


def spread(settings: Settings, servers: Sequence[Valkey], patience: str = "1s") -> Settings:
    """Known by their place in the list; with a second's patience."""
    urls = ",".join(f"{server.url}#{number}" for number, server in enumerate(servers))
    each = {"socket_timeout": patience, "connect_timeout": patience}
    redis = settings.redis.model_validate({**settings.redis.model_dump(), **each, "urls": SecretStr(urls)})
    streams = settings.streams.model_copy(update={"silence": timedelta(seconds=0.3)})
    return settings.model_copy(update={"redis": redis, "streams": streams})


@pytest.fixture
async def stores(settings: Settings, servers: list[Valkey]) -> AsyncIterator[Stores]:
    async with open_stores(spread(settings, servers)) as stores:
        yield stores


@pytest.fixture
async def other(settings: Settings, servers: list[Valkey]) -> AsyncIterator[Stores]:
    async with open_stores(spread(settings, servers)) as stores:
        yield stores


@pytest.fixture
async def wider(settings: Settings, servers: list[Valkey]) -> AsyncIterator[Stores]:
    """A process that knows of a third server."""
    async with private_valkey() as third, open_stores(spread(settings, [*servers, third])) as stores:
        yield stores


async def run_on(stores: Stores, name: str) -> Run:
    while True:
        run = await make_run(stores.pool)
        if stores.of(run.id).name == name:
            return run


async def run_that_moves(narrow: Stores, wide: Stores) -> Run:
    while True:
        run = await make_run(narrow.pool)
        if narrow.of(run.id).name != wide.of(run.id).name:
            return run


async def finish(driver: Driver, status: str = "completed") -> None:
    row = await end(driver, status)
    await driver.log.close(events.last_event(row.status, row.error), events.status("thread_run_end", row.id))


def assert_each_once(seen: list[tuple[int, bytes]], log: list[bytes]) -> None:
    assert seen == list(enumerate(log))
    assert events.final_status(log[-1])


async def test_what_a_run_has_in_redis_is_on_its_server_only(stores: Stores, servers: list[Valkey]) -> None:
    async with driving(stores, await run_on(stores, "0")) as one, driving(stores, await run_on(stores, "1")) as two:
        for driver in (one, two):
            await driver.say("Hello")
        for driver, server in ((one, servers[0]), (two, servers[1])):
            run_id = driver.run.id
            expected = {keys.responses(run_id), keys.lock(run_id), keys.active(stores.instance_id, run_id)}
            await eventually(partial(has_keys, server, expected))
            assert not await keys_without_ttl(server.admin)


async def has_keys(server: Valkey, expected: set[str]) -> bool:
    """Those of a beat among them, which a pause of this process may outlast."""
    return {key.decode() async for key in server.admin.scan_iter()} == expected


async def test_a_process_follows_runs_of_both_servers(stores: Stores, other: Stores) -> None:
    async with driving(stores, await run_on(stores, "0")) as one, driving(stores, await run_on(stores, "1")) as two:
        reading = [asyncio.create_task(read_all(other, driver.run.id)) for driver in (one, two) for _ in range(3)]
        for number in range(20):
            await asyncio.gather(one.say(f"{number} "), two.say(f"{number} "))
        await asyncio.gather(finish(one), finish(two))
        async with asyncio.timeout(PATIENT):
            seen = await asyncio.gather(*reading)
        for driver, some in ((one, seen[:3]), (two, seen[3:])):
            for one_reader in some:
                assert_each_once(one_reader, await listed(stores, driver.run.id))


async def test_a_stop_reaches_drivers_of_both_servers(stores: Stores, other: Stores) -> None:
    async with (
        driving(stores, await run_on(stores, "0")) as one,
        driving(stores, await run_on(stores, "1")) as two,
        control.watch(stores.of(one.run.id).channels, one.held),
        control.watch(stores.of(two.run.id).channels, two.held),
    ):
        stopped = await stopping.request_stops(other, [one.run.id, two.run.id])
        assert len(stopped) == 2
        for driver in (one, two):
            async with asyncio.timeout(PATIENT):
                await driver.held.stop_asked.wait()


async def test_runs_of_a_server_that_is_killed_wait_and_the_others_never_notice(
    stores: Stores, other: Stores, servers: list[Valkey]
) -> None:
    async with driving(stores, await run_on(stores, "0")) as waits, driving(stores, await run_on(stores, "1")) as goes:
        reading = [asyncio.create_task(read_all(other, driver.run.id)) for driver in (waits, goes)]
        for driver in (waits, goes):
            await driver.say(*(f"{number} " for number in range(50)))
            await driver.archived()
        await waits.say("not archived yet")
        await servers[0].kill()
        await waits.log.append(events.status("finish", waits.run.id))
        took = list[float]()
        for number in range(40):  # longer than the lock's TTL and the patience with a dead driver
            began = asyncio.get_running_loop().time()
            await goes.say(f"{number} ")
            took.append(asyncio.get_running_loop().time() - began)
            await asyncio.sleep(0.05)
        assert sorted(took)[len(took) // 2] < 0.25
        assert [driver.held.lost.is_set() for driver in (goes, waits)] == [False, False]
        assert waits.log.pending
        await servers[0].start_again()
        async with asyncio.timeout(PATIENT):
            await waits.say("once more")
            await asyncio.gather(finish(waits), finish(goes))
            for seen, driver in zip(await asyncio.gather(*reading), (waits, goes), strict=True):
                assert_each_once(seen, await listed(stores, driver.run.id))
                await closed(stores.pool, driver.run.id)
                assert await archived(stores.pool, driver.run.id) == await listed(stores, driver.run.id)
        assert "void" not in kinds(await listed(stores, waits.run.id))


async def test_an_emptied_server_gets_its_runs_back_and_the_other_is_left_alone(
    stores: Stores, servers: list[Valkey]
) -> None:
    async with driving(stores, await run_on(stores, "0")) as one, driving(stores, await run_on(stores, "1")) as two:
        for driver in (one, two):
            await driver.say("before ", "it ")
        said = await listed(stores, one.run.id)
        await servers[0].admin.flushall()
        for driver in (one, two):
            await driver.say("after")
        assert (await listed(stores, one.run.id))[:-1] == said
        await eventually(lambda: servers[0].admin.exists(keys.lock(one.run.id)))
        assert not await servers[0].admin.exists(keys.responses(two.run.id))
        assert [driver.held.lost.is_set() for driver in (one, two)] == [False, False]


async def test_stops_of_runs_on_a_server_that_is_away_are_committed_and_hold_up_no_other(
    stores: Stores, other: Stores, servers: list[Valkey]
) -> None:
    async with driving(stores, await run_on(stores, "0")) as cut, driving(stores, await run_on(stores, "1")) as near:
        async with control.watch(stores.of(near.run.id).channels, near.held):
            await servers[0].kill()
            async with asyncio.timeout(PATIENT):
                assert len(await stopping.request_stops(other, [cut.run.id, near.run.id])) == 2
                await near.held.stop_asked.wait()
                await eventually(lambda: is_final(stores, cut.run.id))
        await servers[0].start_again()


async def is_final(stores: Stores, run_id: UUID) -> bool:
    return (await row_of(stores.pool, run_id)).final


async def test_readers_under_both_lists_see_a_run_whole_that_moves_to_an_added_server_while_it_is_live(
    stores: Stores, wider: Stores
) -> None:
    run = await run_that_moves(stores, wider)
    reading = [asyncio.create_task(read_all(process, run.id)) for process in (stores, wider) for _ in range(2)]
    async with driving(stores, run) as old:
        await old.say(*(f"{number} " for number in range(700)))
        await old.archived()
        await eventually(lambda: tail_end(wider, run.id, 700), says="the archive was not read")
        await old.say("the last under the old list")
        await old.archived()
        assert await hand_over(stores.pool, old.held.fence, length=old.log.length)
    before = await archived(stores.pool, run.id)
    async with driving(wider, await row_of(wider.pool, run.id)) as new:
        await new.say("the first under the new list")
        await finish(new)
        await closed(wider.pool, run.id)
    log = await archived(wider.pool, run.id)
    assert log == await listed(wider, run.id)
    assert log[: len(before)] == before
    assert "void" not in kinds(log)
    async with asyncio.timeout(PATIENT):
        for seen in await asyncio.gather(*reading):
            assert_each_once(seen, log)


def tail_end(stores: Stores, run_id: UUID, end: int) -> bool:
    tail = stores.of(run_id).tails.tails[run_id]
    return tail.end is not None and tail.end >= end


async def test_two_lists_may_give_two_locks_and_only_one_of_them_a_run(stores: Stores, wider: Stores) -> None:
    run = await run_that_moves(stores, wider)
    async with (
        stores.of(run.id).leases.hold(run.id, 1) as one,
        wider.of(run.id).leases.hold(run.id, 1) as two,
    ):
        assert one
        assert two
        dead_after = stores.settings.runs.dead_after
        claims = [
            await lifecycle.claim(process.pool, run, process.instance_id, dead_after=dead_after)
            for process in (stores, wider)
        ]
        assert [bool(claimed) for claimed in claims] == [True, False]


async def test_a_run_is_ended_under_another_list_than_its_drivers_and_no_id_is_used_twice(
    stores: Stores, wider: Stores
) -> None:
    run = await run_that_moves(stores, wider)
    async with driving(stores, run) as driver:
        await driver.say("one ", "two ")
        await driver.archived()
        await stopping.request_stop(wider, run.id)
        await eventually(lambda: swept_up(wider, run.id), every=0.2)
        assert (await row_of(wider.pool, run.id)).status == "stopped"
        await eventually(lambda: driver.held.lost.is_set() or driver.log.failure)
        log = await archived(wider.pool, run.id)
        beyond = (await listed(stores, run.id))[len(log) :]
        assert beyond == []
        assert log[:2] == (await listed(stores, run.id))[:2]


async def swept_up(stores: Stores, run_id: UUID) -> bool:
    await sweeper.close_cut(stores)
    return (await row_of(stores.pool, run_id)).closed_at is not None


async def test_dead_runs_of_a_server_that_is_away_hide_no_others(
    stores: Stores, servers: list[Valkey], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "BATCH", 2)
    hidden = [await claim(stores, await run_on(stores, "0")) for _ in range(5)]
    dead = await claim(stores, await run_on(stores, "1"))
    for run in (*hidden, dead):
        await bury(stores, run.id)
    await servers[0].kill()
    assert await sweeper.dead_runs(stores) == [dead.id]
    await servers[0].start_again()
    assert await sweeper.dead_runs(stores) == [hidden[0].id, hidden[1].id]


async def test_ends_that_wait_for_a_server_hold_up_none_on_another(settings: Settings, servers: list[Valkey]) -> None:
    patient = with_runs(spread(settings, servers, "60s"), close_after=timedelta(minutes=1))
    async with open_stores(patient) as stores:
        queued = await run_on(stores, "1")
        waiting = [await run_on(stores, "0") for _ in range(12)]
        os.kill(pid(servers[0]), signal.SIGSTOP)
        try:
            await stopping.request_stops(stores, [run.id for run in waiting])
            await stopping.request_stop(stores, queued.id)
            await closed(stores.pool, queued.id)
        finally:
            os.kill(pid(servers[0]), signal.SIGCONT)


async def test_of_a_server_that_hangs_only_one_caller_at_a_time_finds_out(
    stores: Stores, servers: list[Valkey]
) -> None:
    shards = {shard.name: shard for shard in stores.shards.each}
    doubt = shards["0"].doubt
    doubt.seconds = 600.0
    os.kill(pid(servers[0]), signal.SIGSTOP)
    try:
        with pytest.raises(Unreachable):
            await take(shards["0"])
        for _ in range(20):
            with pytest.raises(Unreachable, match="a moment ago"):
                await take(shards["0"])
            assert await take(shards["1"])
        doubt.ask_at = 0.0  # its time has come
        with pytest.raises(Unreachable) as found_out:
            await take(shards["0"])
        assert "a moment ago" not in str(found_out.value)
    finally:
        os.kill(pid(servers[0]), signal.SIGCONT)
    doubt.seconds, doubt.ask_at = 0.1, 0.0
    await eventually(lambda: answers(shards["0"]), every=0.1)
    assert await take(shards["0"])


async def take(shard: Shard) -> bool:
    async with shard.hold(uuid4(), 1) as held:
        return held is not None


async def answers(shard: Shard) -> bool:
    try:
        return await take(shard)
    except Unreachable:
        return False


def pid(server: Valkey) -> int:
    assert server.child.process
    return server.child.process.pid


def test_nothing_asks_the_home_server_about_a_run() -> None:
    """Of several servers the home is the wrong one for most runs; with one server nobody would notice."""
    rooms = re.compile(r"stores\.(redis|channels|leases|writer|tails)\b")
    files = [path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")]
    assert files
    assert [str(path) for path in files if rooms.search(path.read_text())] == []
