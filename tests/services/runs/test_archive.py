import asyncio
from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st

from services.runs import archive, events
from services.runs.archive import Block, pack, unpack
from services.runs.fence import Fence
from services.runs.stores import Stores
from tests.services.runs.seeds import archived, claim, closed, driving, end, eventually, listed, make_run, row_of


@given(st.lists(st.binary()))
def test_whatever_is_packed_is_unpacked(said: list[bytes]) -> None:
    assert unpack(pack(said)) == said


def test_newlines_and_empty_events_survive() -> None:
    said = [b"", b"\n\n", b"\x00\x00\x00\x01", b"a\r\nb", b""]
    assert unpack(pack(said)) == said


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_reserving_never_takes_back_and_always_leaves_room(length: int, reserved: int, appended: int) -> None:
    ahead = archive.reserve(length, reserved, appended)
    assert ahead >= reserved
    assert ahead - length >= 256


async def test_blocks_are_stored_once_and_under_the_fence(stores: Stores) -> None:
    run = await claim(stores, await make_run(stores.pool))
    fence = Fence(run.id, run.attempt, "w")
    block = Block(fence, 0, [b"one", b"two"], 300, "epoch")
    answers = await asyncio.gather(*(archive.store(stores.pool, [block]) for _ in range(5)))
    assert sorted(map(len, answers)) == [0, 0, 0, 0, 1]
    stale = Block(Fence(run.id, run.attempt - 1, "old"), 2, [b"three"], 300, "epoch")
    assert await archive.store(stores.pool, [stale]) == set()
    assert await archive.store(stores.pool, [Block(fence, 3, [b"gap"], 300, "epoch")]) == set()
    assert await archived(stores.pool, run.id) == [b"one", b"two"]
    row = await row_of(stores.pool, run.id)
    assert (row.archived_events, row.reserved_events, row.log_epoch) == (2, 300, "epoch")


async def test_one_statement_stores_the_blocks_of_many_runs(stores: Stores) -> None:
    runs = [await claim(stores, await make_run(stores.pool)) for _ in range(5)]
    blocks = [Block(Fence(run.id, run.attempt, "w"), 0, [str(run.id).encode()], 300, "e") for run in runs]
    assert await archive.store(stores.pool, blocks) == {(run.id, run.attempt) for run in runs}
    for run in runs:
        assert await archived(stores.pool, run.id) == [str(run.id).encode()]


async def test_a_log_is_read_from_any_id_over_block_boundaries(stores: Stores) -> None:
    run = await claim(stores, await make_run(stores.pool))
    fence = Fence(run.id, run.attempt, "w")
    whole: list[bytes] = []
    for size in (1, 3, 2, 5, 1, 4):
        part = [b"event %d" % (len(whole) + nth) for nth in range(size)]
        assert await archive.store(stores.pool, [Block(fence, len(whole), part, 300, "e")])
        whole += part
    for first_id in range(len(whole) + 2):
        for blocks in (1, 2, 10):
            found = await archive.read(stores.pool, run.id, first_id, blocks=blocks)
            assert found == whole[first_id : first_id + len(found)]
            assert bool(found) == (first_id < len(whole))
    assert await archive.read(stores.pool, run.id, 0, blocks=10) == whole


async def test_a_missing_block_is_no_event_of_another_id(stores: Stores) -> None:
    run = await claim(stores, await make_run(stores.pool))
    fence = Fence(run.id, run.attempt, "w")
    for first_id in range(3):
        await archive.store(stores.pool, [Block(fence, first_id, [b"%d" % first_id], 300, "e")])
    await stores.pool.execute("DELETE FROM agent_run_event_blocks WHERE first_id = 0")
    assert await archive.read(stores.pool, run.id, 0) == []
    assert await archive.read(stores.pool, run.id, 1) == [b"1", b"2"]
    assert await archive.read(stores.pool, uuid4(), 0) == []


async def test_the_log_is_archived_while_it_grows(stores: Stores) -> None:
    async with driving(stores) as driver:
        await driver.say("a", "b")
        await eventually(lambda: as_listed(stores, driver.run.id))
        await driver.say("c")
        await eventually(lambda: as_listed(stores, driver.run.id))


async def as_listed(stores: Stores, run_id: UUID) -> bool:
    return await archived(stores.pool, run_id) == await listed(stores, run_id)


async def test_the_last_block_closes_the_log(stores: Stores) -> None:
    async with driving(stores) as driver:
        await driver.say("a")
        row = await end(driver)
        await driver.log.close(events.last_event(row.status, row.error), events.status("thread_run_end", row.id))
        done = await closed(stores.pool, row.id)
        assert (done.event_count, done.archived_events) == (3, 3)
        assert await archived(stores.pool, row.id) == await listed(stores, row.id)
        await eventually(lambda: driver.log not in stores.writer.logs)


async def test_a_closed_log_takes_no_block(stores: Stores) -> None:
    async with driving(stores) as driver:
        row = await end(driver)
        await driver.log.close(events.last_event(row.status, row.error))
        done = await closed(stores.pool, row.id)
        block = Block(driver.held.fence, done.archived_events, [b"late"], 999, "e")
        assert await archive.store(stores.pool, [block]) == set()


async def test_a_statement_whose_answer_was_lost_is_not_repeated(stores: Stores) -> None:
    async with driving(stores) as driver:
        await driver.archived()
        await driver.say("a", "b", "c")
        block = driver.log.block(stores.writer.archiver.epoch)
        if block:  # else the writer was faster
            await archive.store(stores.pool, [block])
        await driver.say("d")
        await eventually(lambda: as_listed(stores, driver.run.id))
        assert driver.log.failure is None
        assert driver.log.tail_bytes == sum(map(len, driver.log.tail))


async def test_the_closing_statement_may_lose_its_answer_too(stores: Stores) -> None:
    async with driving(stores) as driver:
        await driver.say("a")
        await driver.archived()
        row = await end(driver)
        stores.writer.logs.discard(driver.log)
        await driver.log.close(events.last_event(row.status, row.error))
        block = driver.log.block(stores.writer.archiver.epoch)
        assert block
        assert block.closes
        await archive.store(stores.pool, [block])
        stores.writer.logs.add(driver.log)
        await eventually(driver.log.closed.is_set)
        assert driver.log not in stores.writer.logs


async def test_an_archive_whose_fence_was_raised_is_told(stores: Stores) -> None:
    async with driving(stores) as driver:
        await stores.pool.execute("UPDATE agent_runs SET attempt = attempt + 1 WHERE id = $1", driver.run.id)
        await driver.log.append(events.status("finish", driver.run.id))
        await eventually(lambda: driver.log.failure)
        assert await archived(stores.pool, driver.run.id) == []


async def test_a_row_that_somebody_has_locked_holds_up_nobody_else(stores: Stores) -> None:
    async with driving(stores) as one, driving(stores) as two:
        await asyncio.gather(one.say("x"), two.say("y"))
        async with stores.pool.acquire() as conn, conn.transaction():
            await conn.fetch("SELECT 1 FROM agent_runs WHERE id = $1 FOR UPDATE", one.run.id)
            await asyncio.gather(one.say("x"), two.say("y"))
            await eventually(lambda: as_listed(stores, two.run.id))
        await eventually(lambda: as_listed(stores, one.run.id))
