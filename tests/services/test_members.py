import asyncio
from uuid import UUID, uuid4

import pytest

from services import accounts, members
from services.errors import Conflict, NotFound
from services.members import Role
from services.postgres import Pool, transaction


async def team(pool: Pool, owner: UUID) -> UUID:
    async with transaction(pool) as conn:
        made = await accounts.create(conn, owner, "Team")
    assert (made.name, made.personal, made.role) == ("Team", False, "owner")
    return made.account_id


async def add(pool: Pool, account_id: UUID, role: Role) -> UUID:
    user_id = uuid4()
    async with transaction(pool) as conn:
        await members.add(conn, account_id, user_id, role)
    return user_id


async def test_a_member_is_added_changed_and_removed(pool: Pool) -> None:
    account_id = await team(pool, uuid4())
    user_id = await add(pool, account_id, "viewer")
    assert await members.role_of(pool, account_id, user_id) == "viewer"
    async with transaction(pool) as conn:
        assert (await members.change(conn, account_id, user_id, "owner")).role == "owner"
    async with transaction(pool) as conn:
        await members.remove(conn, account_id, user_id)
    assert await members.role_of(pool, account_id, user_id) is None


async def test_somebody_belongs_to_an_account_once(pool: Pool) -> None:
    account_id = await team(pool, uuid4())
    user_id = await add(pool, account_id, "member")
    with pytest.raises(Conflict, match="belongs"):
        async with transaction(pool) as conn:
            await members.add(conn, account_id, user_id, "owner")
    assert await members.role_of(pool, account_id, user_id) == "member"


async def test_who_is_no_member_can_be_neither_changed_nor_removed(pool: Pool) -> None:
    account_id = await team(pool, uuid4())
    async with transaction(pool) as conn:
        with pytest.raises(NotFound):
            await members.change(conn, account_id, uuid4(), "viewer")
        with pytest.raises(NotFound):
            await members.remove(conn, account_id, uuid4())


async def test_the_last_owner_stays_one(pool: Pool) -> None:
    owner = uuid4()
    account_id = await team(pool, owner)
    await add(pool, account_id, "member")
    with pytest.raises(Conflict, match="no owner"):
        async with transaction(pool) as conn:
            await members.remove(conn, account_id, owner)
    with pytest.raises(Conflict, match="no owner"):
        async with transaction(pool) as conn:
            await members.change(conn, account_id, owner, "viewer")
    assert await members.role_of(pool, account_id, owner) == "owner"


async def test_two_owners_who_remove_each_other_at_once_leave_one(pool: Pool) -> None:
    owner = uuid4()
    account_id = await team(pool, owner)
    other = await add(pool, account_id, "owner")

    async def remove(user_id: UUID) -> None:
        async with transaction(pool) as conn:
            await members.remove(conn, account_id, user_id)

    ends = await asyncio.gather(remove(owner), remove(other), return_exceptions=True)
    assert sorted(type(end).__name__ for end in ends) == ["Conflict", "NoneType"]
    assert len(await members.of_account(pool, account_id)) == 1


async def test_nobody_loses_their_personal_account(pool: Pool) -> None:
    user_id = uuid4()
    async with transaction(pool) as conn:
        await accounts.ensure_personal(conn, user_id)
    await add(pool, user_id, "owner")
    with pytest.raises(Conflict, match="personal"):
        async with transaction(pool) as conn:
            await members.remove(conn, user_id, user_id)


async def test_the_members_of_an_account_are_bounded(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "MAX_MEMBERS", 2)
    account_id = await team(pool, uuid4())
    await add(pool, account_id, "member")
    with pytest.raises(Conflict, match="2 members"):
        await add(pool, account_id, "member")
