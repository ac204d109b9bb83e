"""The credit_ledger table: what an account was granted, and what its model calls cost."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

from services.billing.prices import in_credits
from services.postgres import Connection, Executor


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an account stands, in micro-credits; `tier` None: the default."""

    tier: str | None
    balance: int = 0
    reserved: int = 0

    @property
    def shown(self) -> dict[str, float]:
        return {"balance": in_credits(self.balance), "reserved": in_credits(self.reserved)}


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of credit_ledger; `amount` in micro-credits, below zero for a debit."""

    entry_id: UUID
    kind: str
    amount: int
    note: str
    call_id: UUID | None
    message_id: UUID | None
    agent_run_id: UUID | None
    thread_id: UUID | None
    project_id: UUID | None
    model_name: str | None
    usage: dict[str, int]
    estimated: bool
    created_at: datetime


COLUMNS = ", ".join(f.name for f in fields(Entry))


async def standing(conn: Executor, account_id: UUID) -> Standing:
    row = await conn.fetchrow(
        """
        SELECT a.tier, coalesce(b.balance, 0) AS balance, coalesce(b.reserved, 0) AS reserved
        FROM accounts a LEFT JOIN credit_balances b USING (account_id) WHERE a.account_id = $1
        """,
        account_id,
    )
    return Standing(**row) if row else Standing(None)


async def grant(conn: Executor, account_id: UUID, amount: int, note: str = "") -> Standing:
    """Add micro-credits to an account; an amount below zero takes them back. Where it stands then.

    Raises: asyncpg.ForeignKeyViolationError for an account that is not there.
    """
    row = await conn.fetchrow(
        """
        WITH granted AS (
            INSERT INTO credit_ledger (account_id, kind, amount, note) VALUES ($1, 'grant', $2, $3)
        )
        INSERT INTO credit_balances AS b (account_id, balance) VALUES ($1, $2)
        ON CONFLICT (account_id) DO UPDATE SET balance = b.balance + $2, updated_at = now()
        RETURNING (SELECT tier FROM accounts WHERE account_id = $1) AS tier, balance, reserved
        """,
        account_id,
        amount,
        note,
    )
    assert row
    return Standing(**row)


async def page(
    conn: Executor, account_id: UUID, *, limit: int, offset: int = 0, kinds: Sequence[str] = ("grant", "debit")
) -> tuple[list[Entry], bool]:
    """Entries of an account, newest first, and whether there are more."""
    rows: list[Any] = await conn.fetch(
        f"""
        SELECT {COLUMNS} FROM credit_ledger WHERE account_id = $1 AND kind = ANY($2)
        ORDER BY created_at DESC, entry_id DESC LIMIT $3 OFFSET $4
        """,
        account_id,
        kinds,
        limit + 1,
        offset,
    )
    return [Entry(**row) for row in rows[:limit]], len(rows) > limit


async def set_tier(conn: Connection, account_id: UUID, tier: str | None) -> bool:
    """False when there is no such account."""
    query = "UPDATE accounts SET tier = $2, updated_at = now() WHERE account_id = $1 RETURNING true"
    return bool(await conn.fetchval(query, account_id, tier))
