"""Accounts and their members."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid4

from services.errors import Conflict
from services.members import Role
from services.postgres import LONG_SECONDS, Connection, Executor

MAX_ACCOUNTS = 100
MAX_LISTED = 1000
MADE = "m.created_at = a.created_at"
"""Whoever makes an account is its member from that very moment; whoever is added to one comes later."""


@dataclass(frozen=True, slots=True)
class Account:
    account_id: UUID
    name: str


@dataclass(frozen=True, slots=True)
class Membership(Account):
    """An account, and what one of its members is in it."""

    personal: bool
    role: Role
    created_at: datetime


async def ensure_personal(conn: Connection, user_id: UUID, name: str | None = None) -> Account:
    """The personal account of a user (its id is the user's), made on first sight."""
    row = await conn.fetchrow(
        """
        WITH made AS (
            INSERT INTO accounts (account_id, name) VALUES ($1, $2)
            ON CONFLICT DO NOTHING -- of either unique index: a user's first requests may come together
            RETURNING account_id, name
        ), owner AS (
            INSERT INTO account_members (account_id, user_id, role) SELECT account_id, $1, 'owner' FROM made
        )
        SELECT account_id, name FROM made
        UNION ALL
        SELECT account_id, name FROM accounts WHERE account_id = $1
        LIMIT 1
        """,
        user_id,
        name or str(user_id),
    )
    return Account(**row) if row else Account(user_id, name or str(user_id))


async def account_named(conn: Connection, name: str) -> Account:
    """The personal account of that name, made (with a user of the same id) when there is none."""
    found = "SELECT account_id, name FROM accounts WHERE name = $1 AND personal"
    row = await conn.fetchrow(found, name)
    if row is None:
        await ensure_personal(conn, uuid4(), name)
        row = await conn.fetchrow(found, name)  # ours, or the one that another process made meanwhile
    assert row is not None
    return Account(**row)


async def find(conn: Connection, account_id: UUID | None, name: str) -> Account | None:
    """An account by its id, or a personal one by its name."""
    row = await conn.fetchrow(
        "SELECT account_id, name FROM accounts WHERE account_id = $1 OR (name = $2 AND personal)", account_id, name
    )
    return Account(**row) if row else None


async def create(conn: Connection, user_id: UUID, name: str) -> Membership:
    """An account beside the personal ones, owned by the user.

    Raises: Conflict when the user made MAX_ACCOUNTS, the personal one counted. What others added them to is not held
    against them.
    """
    await ensure_personal(conn, user_id)
    await conn.execute("SELECT FROM accounts WHERE account_id = $1 FOR UPDATE", user_id)
    made = f"SELECT count(*) FROM account_members m JOIN accounts a USING (account_id) WHERE m.user_id = $1 AND {MADE}"
    if await conn.fetchval(made, user_id) >= MAX_ACCOUNTS:
        raise Conflict(f"You have made {MAX_ACCOUNTS} accounts, and cannot make more.")
    row = await conn.fetchrow(
        """
        WITH made AS (
            INSERT INTO accounts (name, personal) VALUES ($2, false) RETURNING account_id, name, personal, created_at
        ), owner AS (
            INSERT INTO account_members (account_id, user_id, role) SELECT account_id, $1, 'owner' FROM made
        )
        SELECT account_id, name, personal, 'owner' AS role, created_at FROM made
        """,
        user_id,
        name,
    )
    assert row
    return Membership(**row)


async def of_user(conn: Executor, user_id: UUID) -> list[Membership]:
    """The accounts that a user belongs to: their own, then the others by age.

    Of more than MAX_LISTED those are left out that others added them to last.
    """
    rows = await conn.fetch(
        f"""
        SELECT * FROM (
            SELECT a.account_id, a.name, a.personal, m.role, a.created_at
            FROM account_members m JOIN accounts a USING (account_id) WHERE m.user_id = $1
            ORDER BY {MADE} DESC, m.created_at LIMIT $2
        ) AS listed
        ORDER BY account_id <> $1, created_at, account_id
        """,
        user_id,
        MAX_LISTED,
    )
    return [Membership(**row) for row in rows]


async def delete(conn: Connection, account_id: UUID) -> bool:
    """Delete an account with its members, keys, agents, and whatever else is still there.

    False, and nothing is deleted, while it has a project, maybe of a moment ago: its runs are to be stopped first.
    """
    await conn.execute("SELECT FROM accounts WHERE account_id = $1 FOR UPDATE", account_id)  # no project comes now
    if await conn.fetchval("SELECT EXISTS (SELECT FROM projects WHERE account_id = $1)", account_id):
        return False
    await conn.execute("DELETE FROM accounts WHERE account_id = $1", account_id, timeout=LONG_SECONDS)
    return True
