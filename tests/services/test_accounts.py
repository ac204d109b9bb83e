import asyncio
from uuid import uuid4

import pytest

from services import accounts, members, projects
from services.errors import Conflict
from services.postgres import Pool, transaction
from tests.waiting import eventually


async def test_the_personal_account_is_made_once(pool: Pool) -> None:
    user_id = uuid4()
    async with pool.acquire() as conn:
        first = await accounts.ensure_personal(conn, user_id)
        assert await accounts.ensure_personal(conn, user_id) == first
        assert first.account_id == user_id
        assert await members.role_of(conn, user_id, user_id) == "owner"


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
        assert await members.role_of(conn, account.account_id, uuid4()) is None
        assert await members.role_of(conn, uuid4(), account.account_id) is None


async def test_a_named_account_is_found_again(pool: Pool) -> None:
    async with pool.acquire() as conn:
        assert await accounts.account_named(conn, "ann") == await accounts.account_named(conn, "ann")


async def test_a_user_sees_the_accounts_they_belong_to_their_own_first(pool: Pool) -> None:
    user_id, other = uuid4(), uuid4()
    async with transaction(pool) as conn:
        theirs = await accounts.create(conn, other, "Theirs")
        await members.add(conn, theirs.account_id, user_id, "viewer")
    async with transaction(pool) as conn:
        mine = await accounts.create(conn, user_id, "Mine")
    found = await accounts.of_user(pool, user_id)
    assert [(each.account_id, each.role) for each in found] == [
        (user_id, "owner"),
        (theirs.account_id, "viewer"),
        (mine.account_id, "owner"),
    ]


async def test_the_accounts_of_a_user_are_bounded(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "MAX_ACCOUNTS", 2)
    user_id = uuid4()
    async with transaction(pool) as conn:
        await accounts.create(conn, user_id, "Second")
        with pytest.raises(Conflict, match="2 accounts"):
            await accounts.create(conn, user_id, "Third")


async def test_nobody_can_keep_another_from_making_accounts_or_finding_their_own(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "MAX_ACCOUNTS", 3)
    monkeypatch.setattr(accounts, "MAX_LISTED", 3, raising=False)
    user_id = uuid4()
    for _ in range(4):
        async with transaction(pool) as conn:
            theirs = await accounts.create(conn, uuid4(), "Theirs")
        async with transaction(pool) as conn:
            await members.add(conn, theirs.account_id, user_id, "owner")
    async with transaction(pool) as conn:
        await accounts.create(conn, user_id, "Mine")
    assert [each.name for each in await accounts.of_user(pool, user_id)] == [str(user_id), "Theirs", "Mine"]


async def test_an_account_is_not_deleted_over_a_project_that_comes_meanwhile(pool: Pool) -> None:
    async with transaction(pool) as conn:
        account_id = (await accounts.create(conn, uuid4(), "Team")).account_id

    async def delete() -> bool:
        async with transaction(pool) as conn:
            return await accounts.delete(conn, account_id)

    async with transaction(pool) as conn:
        project = await projects.create(conn, account_id, "Garden")
        deleting = asyncio.create_task(delete())
        await eventually(lambda: pool.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"))
    assert not await deleting
    assert await projects.exists(pool, project.project_id)
    async with transaction(pool) as conn:
        await projects.delete(conn, account_id, project.project_id)
    assert await delete()
    assert not await pool.fetchval("SELECT EXISTS (SELECT FROM accounts WHERE account_id = $1)", account_id)
