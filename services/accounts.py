"""Accounts and their members."""

from dataclasses import dataclass
from uuid import UUID, uuid4

from services.postgres import Connection


@dataclass(frozen=True, slots=True)
class Account:
    account_id: UUID
    name: str


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


async def is_member(conn: Connection, account_id: UUID, user_id: UUID) -> bool:
    """Whether the user belongs to the account; False too when there is no such account."""
    found: bool = await conn.fetchval(
        "SELECT EXISTS (SELECT FROM account_members WHERE account_id = $1 AND user_id = $2)", account_id, user_id
    )
    return found
