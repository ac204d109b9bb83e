import asyncio
from uuid import uuid4

from services import accounts
from services.postgres import Pool


async def test_the_personal_account_is_made_once(pool: Pool) -> None:
    user_id = uuid4()
    async with pool.acquire() as conn:
        first = await accounts.ensure_personal(conn, user_id)
        assert await accounts.ensure_personal(conn, user_id) == first
        assert first.account_id == user_id
        assert await accounts.is_member(conn, user_id, user_id)


async def test_many_first_requests_at_once_make_one_account(pool: Pool) -> None:
    user_id = uuid4()

    async def ensure() -> accounts.Account:
        async with pool.acquire() as conn:
            return await accounts.ensure_personal(conn, user_id)

    assert len(set(await asyncio.gather(*(ensure() for _ in range(8))))) == 1
    assert await pool.fetchval("SELECT count(*) FROM account_members") == 1


async def test_nobody_is_a_member_of_an_account_that_is_not_there(pool: Pool) -> None:
    async with pool.acquire() as conn:
        account = await accounts.ensure_personal(conn, uuid4())
        assert not await accounts.is_member(conn, account.account_id, uuid4())
        assert not await accounts.is_member(conn, uuid4(), account.account_id)


async def test_a_named_account_is_found_again(pool: Pool) -> None:
    async with pool.acquire() as conn:
        assert await accounts.account_named(conn, "ann") == await accounts.account_named(conn, "ann")
