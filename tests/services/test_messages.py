from secrets import token_hex
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from services import messages
from services.messages import Message, NewMessage
from services.postgres import Connection, Pool
from tests.agent.seeds import make_thread


def said(text: str) -> NewMessage:
    return NewMessage("user", {"role": "user", "content": text})


async def for_model(conn: Connection, thread_id: UUID) -> list[Message]:
    found, _ = await messages.page(conn, thread_id, limit=1000, descending=False, for_model=True)
    return found


async def test_messages_of_one_call_keep_their_order_and_their_ids(pool: Pool) -> None:
    async with pool.acquire() as conn:
        thread_id, named = await make_thread(conn), uuid4()
        batch = [said(f"{n}") for n in range(50)] + [NewMessage("user", "plain", message_id=named)]
        stored = await messages.add(conn, thread_id, batch)
        assert [message.content for message in stored] == [new.content for new in batch]
        assert stored[-1].message_id == named
        assert await for_model(conn, thread_id) == stored


async def test_every_json_value_and_every_odd_text_comes_back(pool: Pool) -> None:
    async with pool.acquire() as conn:
        thread_id = await make_thread(conn)
        contents: list[Any] = [
            None,
            [],
            "",
            7,
            {"a": [1, None]},
            "nul \x00 gone",
            "a \\u0000 written out",
            "half \ud83d pair",
        ]
        stored = await messages.add(conn, thread_id, [NewMessage("user", content) for content in contents])
        assert [message.content for message in stored] == [
            *contents[:5],
            "nul  gone",
            "a \\u0000 written out",
            "half ? pair",
        ]


async def test_adding_nothing_stores_nothing(pool: Pool) -> None:
    async with pool.acquire() as conn:
        assert await messages.add(conn, await make_thread(conn), []) == []


async def test_a_message_makes_its_thread_newer(pool: Pool) -> None:
    async with pool.acquire() as conn:
        thread_id = await make_thread(conn)
        updated = "SELECT updated_at FROM threads WHERE thread_id = $1"
        before = await conn.fetchval(updated, thread_id)
        await messages.add(conn, thread_id, [said("hello")])
        assert await conn.fetchval(updated, thread_id) > before


async def test_a_given_id_is_stored_once(pool: Pool) -> None:
    async with pool.acquire() as conn:
        thread_id, once = await make_thread(conn), NewMessage("user", "x", message_id=uuid4())
        await messages.add(conn, thread_id, [once])
        with pytest.raises(asyncpg.UniqueViolationError):
            await messages.add(conn, thread_id, [once])


async def test_pages_in_both_directions_join_without_gap_or_overlap(pool: Pool) -> None:
    async with pool.acquire() as conn:
        thread_id = await make_thread(conn)
        stored = await messages.add(conn, thread_id, [said(f"{n}") for n in range(7)])
        newest, more = await messages.page(conn, thread_id, limit=4)
        assert more
        older, more = await messages.page(conn, thread_id, limit=4, before=newest[-1].position)
        assert not more
        assert newest + older == stored[::-1]
        oldest, more = await messages.page(conn, thread_id, limit=4, descending=False)
        assert more
        newer, more = await messages.page(conn, thread_id, limit=4, after=oldest[-1].position, descending=False)
        assert not more
        assert oldest + newer == stored


@pytest.mark.parametrize("descending", [True, False])
async def test_a_page_of_large_messages_ends_early_and_says_that_there_are_more(pool: Pool, descending: bool) -> None:
    async with pool.acquire() as conn:
        thread_id = await make_thread(conn)
        stored = await messages.add(conn, thread_id, [said(token_hex(10_000)) for _ in range(7)])
        seen: list[Message] = []
        sizes, more = [], True
        while more:
            edge = seen[-1].position if seen else None
            before, after = (edge, None) if descending else (None, edge)
            found, more = await messages.page(
                conn, thread_id, before=before, after=after, limit=100, max_bytes=45_000, descending=descending
            )
            seen += found
            sizes.append(len(found))
        assert seen == (stored[::-1] if descending else stored)
        assert sizes == [3, 3, 1]
        alone, more = await messages.page(conn, thread_id, limit=100, max_bytes=1)
        assert (len(alone), more) == (1, True)


async def test_what_is_stored_in_little_counts_for_what_it_is(pool: Pool) -> None:
    async with pool.acquire() as conn:
        thread_id = await make_thread(conn)
        await messages.add(conn, thread_id, [said("a" * 100_000) for _ in range(7)])
        found, more = await messages.page(conn, thread_id, limit=100, max_bytes=250_000)
        assert (len(found), more) == (3, True)


async def test_the_model_is_not_shown_what_is_not_for_it(pool: Pool) -> None:
    async with pool.acquire() as conn:
        thread_id = await make_thread(conn)
        await messages.add(conn, thread_id, [said("shown"), NewMessage("status", {}, is_llm_message=False)])
        assert len(await for_model(conn, thread_id)) == 1
        assert len((await messages.page(conn, thread_id, limit=10))[0]) == 2


async def test_a_message_is_found_and_deleted_only_in_its_own_thread(pool: Pool) -> None:
    async with pool.acquire() as conn:
        thread_id, other_id = await make_thread(conn), await make_thread(conn)
        [stored] = await messages.add(conn, thread_id, [said("x")])
        assert await messages.get(conn, other_id, stored.message_id) is None
        assert not await messages.delete(conn, other_id, stored.message_id)
        assert await messages.get(conn, thread_id, stored.message_id) == stored
        assert await messages.delete(conn, thread_id, stored.message_id)
        assert await messages.get(conn, thread_id, stored.message_id) is None
