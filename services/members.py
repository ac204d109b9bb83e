"""Who belongs to an account, and as what: an owner decides, a member works, a viewer reads."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from services.errors import Conflict, NotFound
from services.postgres import Connection, Executor

Role = Literal["owner", "member", "viewer"]

MAX_MEMBERS = 1000
MISSING = "Member not found."
LAST_OWNER = "This account would have no owner: make somebody else one first."
OWN_ACCOUNT = "Whoever a personal account belongs to stays its owner."


@dataclass(frozen=True, slots=True)
class Member:
    user_id: UUID
    role: Role
    created_at: datetime


async def role_of(conn: Executor, account_id: UUID, user_id: UUID) -> Role | None:
    """None too when there is no such account."""
    role: Role | None = await conn.fetchval(
        "SELECT role FROM account_members WHERE account_id = $1 AND user_id = $2", account_id, user_id
    )
    return role


async def of_account(conn: Executor, account_id: UUID) -> list[Member]:
    """All members of an account, those who came first before others."""
    rows = await conn.fetch(
        "SELECT user_id, role, created_at FROM account_members WHERE account_id = $1 ORDER BY created_at, user_id",
        account_id,
    )
    return [Member(**row) for row in rows]


async def add(conn: Connection, account_id: UUID, user_id: UUID, role: Role) -> Member:
    """Raises: Conflict for somebody who belongs to the account, or when it has MAX_MEMBERS."""
    await lock(conn, account_id)
    if await conn.fetchval("SELECT count(*) FROM account_members WHERE account_id = $1", account_id) >= MAX_MEMBERS:
        raise Conflict(f"This account has {MAX_MEMBERS} members, and may not have more.")
    row = await conn.fetchrow(
        """
        INSERT INTO account_members (account_id, user_id, role) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING
        RETURNING user_id, role, created_at
        """,
        account_id,
        user_id,
        role,
    )
    if not row:
        raise Conflict("This user belongs to the account already.")
    return Member(**row)


async def change(conn: Connection, account_id: UUID, user_id: UUID, role: Role) -> Member:
    """Raises: NotFound; Conflict when nobody would be left who is an owner."""
    await lock(conn, account_id)
    row = await conn.fetchrow(
        """
        UPDATE account_members SET role = $3 WHERE account_id = $1 AND user_id = $2
        RETURNING user_id, role, created_at
        """,
        account_id,
        user_id,
        role,
    )
    if not row:
        raise NotFound(MISSING)
    await require_owner(conn, account_id)
    return Member(**row)


async def remove(conn: Connection, account_id: UUID, user_id: UUID) -> None:
    """Raises: NotFound; Conflict when nobody would be left who is an owner."""
    await lock(conn, account_id)
    statement = "DELETE FROM account_members WHERE account_id = $1 AND user_id = $2 RETURNING true"
    if not await conn.fetchval(statement, account_id, user_id):
        raise NotFound(MISSING)
    await require_owner(conn, account_id)


async def lock(conn: Connection, account_id: UUID) -> None:
    """Changes of the members of an account take turns: two owners cannot remove each other."""
    await conn.execute("SELECT FROM accounts WHERE account_id = $1 FOR UPDATE", account_id)


async def require_owner(conn: Connection, account_id: UUID) -> None:
    """The transaction that would leave an account without an owner, or a person without their own, is undone."""
    owners = await conn.fetch(
        "SELECT user_id FROM account_members WHERE account_id = $1 AND role = 'owner'", account_id
    )
    if not owners:
        raise Conflict(LAST_OWNER)
    personal = await conn.fetchval("SELECT personal FROM accounts WHERE account_id = $1", account_id)
    if personal and account_id not in [row["user_id"] for row in owners]:
        raise Conflict(OWN_ACCOUNT)
