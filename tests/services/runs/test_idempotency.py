import asyncio
from uuid import UUID, uuid4

import pytest

from services.errors import Conflict
from services.postgres import Pool, transaction
from services.runs import idempotency, starting
from services.runs.idempotency import RequestKey
from services.runs.starting import NewRun
from services.runs.stores import Stores
from tests.services.runs.seeds import Place, eventually, make_place, waiting_for_locks
from tests.waiting import PATIENT


def key_of(place: Place, key: str = "k", *, route: str = "start", fingerprint: bytes = b"asked") -> RequestKey:
    return RequestKey(place.account_id, route, key, fingerprint)


async def begin(pool: Pool, place: Place, key: RequestKey, run_id: UUID | None = None) -> UUID:
    """What a start does: the key, then the row unless it is there."""
    run_id = run_id or uuid4()
    async with transaction(pool) as conn:
        known = await idempotency.claim(conn, key, run_id)
        if known == run_id:
            await starting.insert(
                conn, NewRun(place.account_id, place.project_id, place.thread_id, "demo/echo", run_id)
            )
    return known


async def keys_kept(pool: Pool) -> int:
    count: int = await pool.fetchval("SELECT count(*) FROM idempotency_keys")
    return count


async def test_a_key_stands_for_the_first_run(stores: Stores) -> None:
    place = await make_place(stores.pool)
    first = await begin(stores.pool, place, key_of(place))
    assert await begin(stores.pool, place, key_of(place)) == first


async def test_keys_of_other_accounts_and_routes_are_other_keys(stores: Stores) -> None:
    one, two = await make_place(stores.pool), await make_place(stores.pool)
    runs = [
        await begin(stores.pool, one, key_of(one)),
        await begin(stores.pool, one, key_of(one, route="initiate")),
        await begin(stores.pool, one, key_of(one, "K")),
        await begin(stores.pool, two, key_of(two, fingerprint=b"another")),
    ]
    assert len(set(runs)) == 4


async def test_a_key_with_another_request_is_refused_naming_the_run(stores: Stores) -> None:
    place = await make_place(stores.pool)
    first = await begin(stores.pool, place, key_of(place))
    with pytest.raises(Conflict) as refused:
        await begin(stores.pool, place, key_of(place, fingerprint=b"another"))
    assert refused.value.detail == {"message": idempotency.TAKEN, "agent_run_id": str(first)}


@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls back"])
async def test_a_repeat_waits_for_the_first_request_to_end(stores: Stores, commits: bool) -> None:
    place, first, second = await make_place(stores.pool), uuid4(), uuid4()
    new = NewRun(place.account_id, place.project_id, place.thread_id, "demo/echo", first)
    async with stores.pool.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        await idempotency.claim(conn, key_of(place), first)
        repeat = asyncio.create_task(begin(stores.pool, place, key_of(place), second))
        await eventually(lambda: waiting_for_locks(stores.pool))
        await starting.insert(conn, new)
        assert not repeat.done()
        await (transaction.commit() if commits else transaction.rollback())
    async with asyncio.timeout(PATIENT):
        assert await repeat == (first if commits else second)


async def test_a_key_counts_for_a_day(stores: Stores) -> None:
    place = await make_place(stores.pool)
    first = await begin(stores.pool, place, key_of(place))
    await stores.pool.execute("UPDATE idempotency_keys SET created_at = now() - interval '23 h 59 min'")
    assert await begin(stores.pool, place, key_of(place)) == first
    await stores.pool.execute("UPDATE idempotency_keys SET created_at = now() - interval '24 h 1 min'")
    asked_otherwise = key_of(place, fingerprint=b"another")
    anew = await asyncio.gather(*(begin(stores.pool, place, asked_otherwise) for _ in range(5)))
    assert len(set(anew)) == 1
    assert anew[0] != first


async def test_old_keys_are_forgotten_a_few_at_a_time(stores: Stores) -> None:
    place = await make_place(stores.pool)
    for number in range(6):
        await begin(stores.pool, place, key_of(place, str(number)))
    await stores.pool.execute("UPDATE idempotency_keys SET created_at = now() - interval '25 h' WHERE key <> '0'")
    assert [await idempotency.forget_old(stores.pool, 3) for _ in range(3)] == [3, 2, 0]
    assert await keys_kept(stores.pool) == 1


async def test_a_key_goes_with_its_run(stores: Stores) -> None:
    place = await make_place(stores.pool)
    await begin(stores.pool, place, key_of(place))
    await stores.pool.execute("DELETE FROM threads WHERE thread_id = $1", place.thread_id)
    assert await keys_kept(stores.pool) == 0


def test_a_fingerprint_does_not_depend_on_the_order_of_fields() -> None:
    one = idempotency.fingerprint({"a": {"x": 1, "y": [1, 2]}, "b": "ü"})
    assert one == idempotency.fingerprint({"b": "ü", "a": {"y": [1, 2], "x": 1}})
    assert one != idempotency.fingerprint({"b": "ü", "a": {"y": [2, 1], "x": 1}})
