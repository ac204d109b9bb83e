import re
from pathlib import Path

from services.runs import archive
from services.runs.stores import Stores
from tests.services.runs.seeds import archived, driving, listed, read_all
from tests.services.runs.test_tails import finish

DOCUMENT = Path(__file__).parents[3] / "docs" / "scaling.md"


async def test_blocks_in_partitions_as_the_document_makes_them_are_stored_and_read(stores: Stores) -> None:
    found = re.search(r"```sql\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert found
    async with driving(stores) as before:
        await before.say("stored before")
        await finish(before)
        await before.archived()
    log = await listed(stores, before.run.id)
    async with stores.pool.acquire() as conn, conn.transaction():
        await conn.execute(found[1])
    async with driving(stores) as after:
        await after.say("stored after")
        await finish(after)
        await after.archived()
    assert await archived(stores.pool, before.run.id) == log
    await stores.redis.flushdb()
    assert [event for _, event in await read_all(stores, before.run.id)] == log
    assert len(await read_all(stores, after.run.id)) == after.log.length
    assert await archive.size(stores.pool, after.run.id) > 0
