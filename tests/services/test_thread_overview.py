from uuid import uuid4

import pytest

from services import messages, thread_overview, threads
from services.errors import NotFound
from services.messages import NewMessage
from services.postgres import Pool
from services.runs import store
from tests.benchmarks import plans
from tests.services.runs.seeds import Place, make_place, make_run


async def talk(pool: Pool, place: Place, *texts: str) -> None:
    said = [NewMessage("user", {"role": "user", "content": text}, {"length": len(text)}) for text in texts]
    async with pool.acquire() as conn:
        await messages.add(conn, place.thread_id, said)


async def test_a_thread_with_project_runs_and_messages_is_one_round_trip(pool: Pool) -> None:
    place = await make_place(pool)
    runs = [await make_run(pool, place) for _ in range(3)]
    await talk(pool, place, "one", "two", "thrée")
    async with plans.recorded(pool) as said:
        found = await thread_overview.get(pool, place.account_id, place.thread_id, runs=2, messages=2)
    assert len(said) == 1
    async with pool.acquire() as conn:
        newest, _ = await messages.page(conn, place.thread_id, limit=2)
        assert found.thread == await threads.readable(conn, place.account_id, place.thread_id)
    assert found.project.project_id == place.project_id
    assert found.message_count == 4
    assert found.messages == newest
    assert [run.id for run in found.runs] == [runs[2].id, runs[1].id]
    assert found.runs == await store.list_runs(pool, place.account_id, thread_id=place.thread_id, limit=2)


async def test_no_more_messages_than_fit(pool: Pool) -> None:
    place = await make_place(pool)
    await talk(pool, place, "a", "b", "c")
    for max_bytes, count in ((1, 1), (10_000, 4)):
        found = await thread_overview.get(
            pool, place.account_id, place.thread_id, runs=1, messages=10, max_bytes=max_bytes
        )
        assert [message.content["content"] for message in found.messages] == ["c", "b", "a", "What is new?"][:count]


async def test_somebody_elses_thread_is_not_found(pool: Pool) -> None:
    place = await make_place(pool)
    for account_id, thread_id in ((uuid4(), place.thread_id), (place.account_id, uuid4())):
        with pytest.raises(NotFound, match="Thread not found"):
            await thread_overview.get(pool, account_id, thread_id, runs=1)
