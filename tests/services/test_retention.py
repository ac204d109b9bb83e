import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from datetime import timedelta
from uuid import UUID

import pytest
from pydantic import ValidationError

from services import messages, old_messages, retention
from services.messages import NewMessage
from services.postgres import Connection, Pool, open_pool, transaction
from services.retention import Behind, NotOurTurn, Removed, Rule
from services.runs import archive, events, starting, store
from services.runs.starting import NewRun
from services.runs.stores import Stores
from services.settings import RetentionSettings
from tests.services.runs.seeds import closed, driving, eventually, make_place, make_run, read_all, waiting_for_locks
from tests.services.runs.test_tails import ended_run, finish
from tests.waiting import PATIENT
from worker.retention import remove_old

OLD = timedelta(days=40)
AGE = timedelta(days=30)
ALL = RetentionSettings(events=AGE, messages=AGE, runs=AGE)
EVENTS, MESSAGES, RUNS = (RetentionSettings.model_validate({name: AGE}) for name in ("events", "messages", "runs"))


async def swept(pool: Pool, settings: RetentionSettings, owner: str = "a") -> Counter[str]:
    removed: Counter[str] = Counter()
    async with aclosing(retention.sweep(pool, settings, owner)) as batches:
        async for batch in batches:
            removed[batch.rule] += batch.count
    return removed


async def age_run(pool: Pool, run_id: UUID, age: timedelta = OLD) -> None:
    await pool.execute(
        "UPDATE agent_runs SET completed_at = completed_at - $2::interval, created_at = created_at - $2::interval"
        " WHERE id = $1",
        run_id,
        age,
    )


async def age_messages(pool: Pool, thread_id: UUID, age: timedelta = OLD) -> None:
    await pool.execute(
        "UPDATE messages SET created_at = created_at - $2::interval WHERE thread_id = $1", thread_id, age
    )


async def blocks_of(pool: Pool, run_id: UUID) -> int:
    return int(await pool.fetchval("SELECT count(*) FROM agent_run_event_blocks WHERE agent_run_id = $1", run_id))


async def count(pool: Pool, table: str) -> int:
    return int(await pool.fetchval(f"SELECT count(*) FROM {table}"))


async def said_in(pool: Pool, thread_id: UUID) -> int:
    return int(await pool.fetchval("SELECT count(*) FROM messages WHERE thread_id = $1", thread_id))


async def test_a_stream_of_a_run_whose_old_events_are_gone_tells_the_last_one_with_its_id(stores: Stores) -> None:
    old, young = await ended_run(stores, 700), await ended_run(stores, 5)
    await age_run(stores.pool, old)
    kept = await read_all(stores, young)
    assert set(await swept(stores.pool, EVENTS)) == {"events"}
    await stores.redis.flushdb()
    for after in (-1, 0, 700):
        seen = await asyncio.wait_for(read_all(stores, old, after=after), PATIENT)
        assert seen == [(701, events.last_event("completed", None))]
    assert await asyncio.wait_for(read_all(stores, young), PATIENT) == kept
    assert await store.get(stores.pool, old)
    assert await swept(stores.pool, EVENTS) == {}


async def test_a_reader_of_a_log_that_is_half_removed_is_told_the_end_and_does_not_hang(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await ended_run(stores, 5)
    await stores.pool.execute("DELETE FROM agent_run_event_blocks WHERE agent_run_id = $1", run_id)
    row = await store.get(stores.pool, run_id)
    assert row
    for first_id in range(row.event_count or 0):
        await stores.pool.execute(
            "INSERT INTO agent_run_event_blocks VALUES ($1, $2, 1, $3)", run_id, first_id, archive.pack([b"{}"])
        )
    await age_run(stores.pool, run_id)
    await stores.redis.flushdb()
    monkeypatch.setattr(archive, "BLOCKS_AT_ONCE", 2)
    async with transaction(stores.pool) as conn:
        assert await archive.remove_old(conn, AGE) == (2, True)
    seen = await asyncio.wait_for(read_all(stores, run_id), PATIENT)
    assert seen[-1][0] == (row.event_count or 0) - 1
    assert not await stores.pool.fetchval("SELECT events_removed_at FROM agent_runs WHERE id = $1", run_id)
    await swept(stores.pool, EVENTS)
    assert await blocks_of(stores.pool, run_id) == 0
    assert await stores.pool.fetchval("SELECT events_removed_at FROM agent_runs WHERE id = $1", run_id)


async def test_nothing_of_a_live_or_unclosed_run_is_removed_however_old_it_is(stores: Stores) -> None:
    async with driving(stores) as driver:
        await driver.say("a", "b")
        await stores.pool.execute("UPDATE agent_runs SET created_at = now() - $1::interval", OLD)
        await age_messages(stores.pool, driver.run.thread_id)
        assert await swept(stores.pool, ALL) == {}
        await finish(driver)
        await closed(stores.pool, driver.run.id)
    await age_run(stores.pool, driver.run.id)
    await stores.pool.execute("UPDATE agent_runs SET closed_at = NULL")
    before = await blocks_of(stores.pool, driver.run.id)
    assert await swept(stores.pool, ALL) == {}
    assert await blocks_of(stores.pool, driver.run.id) == before > 0
    assert await said_in(stores.pool, driver.run.thread_id) > 0


async def test_messages_go_by_age_and_those_of_a_thread_with_a_waiting_run_stay(stores: Stores) -> None:
    quiet, waiting = await make_place(stores.pool), await make_place(stores.pool)
    for place in (quiet, waiting):
        await age_messages(stores.pool, place.thread_id)
    await make_run(stores.pool, waiting)
    async with stores.pool.acquire() as conn:
        await messages.add(conn, quiet.thread_id, [NewMessage("user", {"role": "user", "content": "Now."})])
    assert await swept(stores.pool, MESSAGES) == {"messages": 1}
    assert await said_in(stores.pool, quiet.thread_id) == 1
    assert await said_in(stores.pool, waiting.thread_id) == 1
    assert await count(stores.pool, "threads") == 2


async def test_a_start_that_is_about_to_be_committed_keeps_the_messages_of_its_thread(stores: Stores) -> None:
    place = await make_place(stores.pool)
    await age_messages(stores.pool, place.thread_id)
    async with transaction(stores.pool) as conn:
        await starting.insert(conn, NewRun(place.account_id, place.project_id, place.thread_id, "demo/echo"))
        assert await asyncio.wait_for(swept(stores.pool, MESSAGES), PATIENT) == {}
    assert await swept(stores.pool, MESSAGES) == {}
    assert await said_in(stores.pool, place.thread_id) == 1


async def test_a_batch_of_threads_in_use_hides_none_behind_it(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(old_messages, "REMOVED_AT_ONCE", 2)
    places = [await make_place(stores.pool) for _ in range(6)]
    for days, place in enumerate(reversed(places)):
        await age_messages(stores.pool, place.thread_id, OLD + timedelta(days=days))
    for place in places[2:]:
        await make_run(stores.pool, place)
    assert await swept(stores.pool, MESSAGES) == {"messages": 2}


async def test_messages_of_one_moment_are_removed_though_some_of_them_stay(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(old_messages, "REMOVED_AT_ONCE", 2)
    places = [await make_place(stores.pool) for _ in range(7)]
    for place in places[:3]:
        await make_run(stores.pool, place)
    await stores.pool.execute("UPDATE messages SET created_at = now() - $1::interval", OLD)
    assert await swept(stores.pool, MESSAGES) == {"messages": 4}


async def test_what_would_be_removed_is_counted_as_it_is_removed_then(stores: Stores) -> None:
    """With a thread in use, a run that has not said its last words, and files that are not in their sandbox."""
    live, unclosed, quiet = [await make_place(stores.pool) for _ in range(3)]
    for place in (live, unclosed, quiet):
        await age_messages(stores.pool, place.thread_id)
    await make_run(stores.pool, live)
    ended = [await ended_run(stores, 5) for _ in range(3)]
    for run_id in ended:
        await age_run(stores.pool, run_id)
    await stores.pool.execute(
        "UPDATE agent_runs SET closed_at = NULL, thread_id = $2, project_id = $3 WHERE id = $1",
        ended[0],
        unclosed.thread_id,
        unclosed.project_id,
    )
    await stores.pool.execute(
        "INSERT INTO uploads (project_id, agent_run_id, name, content_type, size, sha256)"
        " SELECT project_id, id, 'a', 'text/plain', 1, '' FROM agent_runs WHERE id = $1",
        ended[1],
    )
    for settings in (EVENTS, MESSAGES, RUNS):
        counted = await retention.count(stores.pool, retention.rules(settings), PATIENT)
        assert sum(counted.values()), settings
        assert await swept(stores.pool, settings) == counted
        assert sum((await retention.count(stores.pool, retention.rules(settings), PATIENT)).values()) == 0
    assert await said_in(stores.pool, live.thread_id) == await said_in(stores.pool, unclosed.thread_id) == 1


async def test_a_rule_that_has_no_end_leaves_the_others_their_time(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endless(_conn: Connection, _age: timedelta, _behind: Behind) -> tuple[int, Behind]:
        return 1, True

    [rule] = retention.rules(MESSAGES)
    place = await make_place(stores.pool)
    await age_messages(stores.pool, place.thread_id)
    monkeypatch.setattr(retention, "rules", lambda _: [Rule("endless", AGE, rule.count, endless), rule])
    removed: Counter[str] = Counter()
    async with aclosing(retention.sweep(stores.pool, MESSAGES, "a", within=timedelta(seconds=3))) as batches:
        async for batch in batches:
            removed[batch.rule] += batch.count
    assert removed["messages"] == 1
    assert removed["endless"] > 0


async def test_a_sweep_that_was_killed_between_two_batches_is_gone_on_with(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it removed stays removed, and nobody waits for longer than its turn lasts."""
    monkeypatch.setattr(old_messages, "REMOVED_AT_ONCE", 2)
    for _ in range(5):
        await age_messages(stores.pool, (await make_place(stores.pool)).thread_id)
    dead = retention.sweep(stores.pool, MESSAGES, "dead")
    assert await anext(dead) == Removed("messages", 2)
    with pytest.raises(NotOurTurn):
        await swept(stores.pool, MESSAGES)
    await stores.pool.execute("UPDATE retention_turns SET until = now()")
    assert await swept(stores.pool, MESSAGES) == {"messages": 3}
    await stores.pool.execute("UPDATE retention_turns SET owner = 'other', until = now() + interval '1 minute'")
    with pytest.raises(NotOurTurn):
        await anext(dead)
    assert await count(stores.pool, "messages") == 0


async def test_an_old_run_goes_with_its_rest_and_its_messages_stay(stores: Stores) -> None:
    run_id, other = await ended_run(stores, 5), await ended_run(stores, 5)
    row = await store.get(stores.pool, run_id)
    assert row
    async with stores.pool.acquire() as conn:
        [said] = await messages.add(conn, row.thread_id, [NewMessage("assistant", {"content": "x"})])
    await stores.pool.execute("UPDATE messages SET agent_run_id = $2 WHERE message_id = $1", said.message_id, run_id)
    await age_run(stores.pool, run_id)
    assert await swept(stores.pool, RUNS) == {"runs": 1}
    assert await store.get(stores.pool, run_id) is None
    assert await blocks_of(stores.pool, run_id) == 0
    assert await said_in(stores.pool, row.thread_id) == 2
    assert await store.get(stores.pool, other)


async def test_a_run_on_which_more_hangs_than_a_statement_usually_may_take_goes_too(stores: Stores) -> None:
    run_id = await ended_run(stores, 5)
    await age_run(stores.pool, run_id)
    await stores.pool.execute(
        "UPDATE messages SET agent_run_id = $1 WHERE thread_id = (SELECT thread_id FROM agent_runs WHERE id = $1)",
        run_id,
    )
    hasty = stores.settings.postgres.model_copy(update={"command_timeout": timedelta(seconds=1)})
    pool = await open_pool(hasty, min_size=0)
    try:
        async with transaction(stores.pool) as busy:
            await busy.execute("SELECT FROM messages WHERE agent_run_id = $1 FOR UPDATE", run_id)
            removing = asyncio.create_task(swept(pool, RUNS))
            await eventually(lambda: waiting_for_locks(stores.pool))
            await asyncio.sleep(1.5)
        assert await removing == {"runs": 1}
    finally:
        await pool.close()


async def test_a_run_whose_files_are_not_in_the_sandbox_yet_stays(stores: Stores) -> None:
    run_id = await ended_run(stores, 5)
    await age_run(stores.pool, run_id)
    await stores.pool.execute(
        "INSERT INTO uploads (project_id, agent_run_id, name, content_type, size, sha256)"
        " SELECT project_id, id, 'a', 'text/plain', 1, '' FROM agent_runs WHERE id = $1",
        run_id,
    )
    assert await swept(stores.pool, RUNS) == {}
    await stores.pool.execute("UPDATE uploads SET placed_at = now()")
    assert await swept(stores.pool, RUNS) == {"runs": 1}


async def test_one_sweep_at_a_time_and_that_of_a_dead_process_holds_up_nobody_for_long(stores: Stores) -> None:
    place = await make_place(stores.pool)
    await age_messages(stores.pool, place.thread_id)
    await stores.pool.execute("UPDATE retention_turns SET owner = 'b', until = now() + interval '1 minute'")
    with pytest.raises(NotOurTurn):
        await swept(stores.pool, MESSAGES)
    assert await said_in(stores.pool, place.thread_id) == 1
    turn = await retention.last_turn(stores.pool)
    assert turn
    assert (turn.owner, turn.taken) == ("b", True)
    await stores.pool.execute("UPDATE retention_turns SET until = now() - interval '1 second'")
    assert await swept(stores.pool, MESSAGES) == {"messages": 1}
    turn = await retention.last_turn(stores.pool)
    assert turn
    assert (turn.owner, turn.taken, turn.removed) == ("a", False, {"messages": 1})


async def test_the_loop_of_a_worker_removes_what_is_old_and_rests_between_sweeps(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = stores.settings.model_copy(update={"retention": ALL})
    monkeypatch.setattr(type(stores), "settings", property(lambda _: settings), raising=False)
    place = await make_place(stores.pool)
    await age_messages(stores.pool, place.thread_id)
    assert await remove_old(stores) == {"messages": 1}
    await age_messages(stores.pool, (await make_place(stores.pool)).thread_id)
    assert await remove_old(stores) == {}
    await stores.pool.execute("UPDATE retention_turns SET ended_at = now() - interval '1 minute'")
    assert await remove_old(stores) == {"messages": 1}


@pytest.mark.parametrize("name", ["events", "messages", "runs"])
def test_an_age_at_which_something_may_be_in_use_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(ValidationError, match=f"RETENTION_{name.upper()}"):
        RetentionSettings.model_validate({name: timedelta(minutes=59)})


PLANS: dict[str, Callable[[], str]] = {
    "agent_runs_with_events": lambda: f"SELECT id FROM agent_runs WHERE {archive.OLD} ORDER BY completed_at LIMIT 50",
    "messages_age": lambda: (
        "SELECT message_id FROM messages WHERE created_at < now() - $1::interval"
        " AND (created_at, position) > (now(), 0) ORDER BY created_at, position LIMIT 500"
    ),
    "agent_runs_ended": lambda: (
        "SELECT id FROM agent_runs WHERE completed_at < now() - $1::interval AND closed_at IS NOT NULL"
        " ORDER BY completed_at LIMIT 10"
    ),
}


@pytest.mark.parametrize("index", PLANS)
async def test_what_is_old_is_found_by_an_index(pool: Pool, index: str) -> None:
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("SET LOCAL enable_seqscan = off")
        await conn.execute("SET LOCAL enable_sort = off")
        plan = await conn.fetch(f"EXPLAIN {PLANS[index]()}".replace("$1::interval", "interval '30 days'"))
    assert index in "\n".join(row[0] for row in plan)
