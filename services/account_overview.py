"""Accounts as operators see them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from services.postgres import Executor


@dataclass(frozen=True, slots=True)
class SeenAccount:
    """`balance` in micro-credits; `live_runs` have not ended."""

    account_id: UUID
    name: str
    personal: bool
    tier: str | None
    created_at: datetime
    members: int
    projects: int
    live_runs: int
    keys: int
    balance: int


SEEN = """
SELECT account_id, name, personal, tier, created_at,
    (SELECT count(*) FROM account_members AS m WHERE m.account_id = a.account_id) AS members,
    (SELECT count(*) FROM projects AS p WHERE p.account_id = a.account_id) AS projects,
    (SELECT count(*) FROM agent_runs AS r
        WHERE r.account_id = a.account_id AND r.status IN ('queued', 'running')) AS live_runs,
    (SELECT count(*) FROM api_keys AS k WHERE k.account_id = a.account_id AND k.revoked_at IS NULL) AS keys,
    coalesce((SELECT balance FROM credit_balances AS b WHERE b.account_id = a.account_id), 0) AS balance
FROM accounts AS a
"""


async def list_accounts(conn: Executor, search: str, limit: int) -> list[SeenAccount]:
    """Newest first; `search` is a part of the name, or the beginning of the id."""
    rows = await conn.fetch(
        f"""
        {SEEN} WHERE $1 = '' OR strpos(lower(name), lower($1)) > 0 OR starts_with(account_id::text, lower($1))
        ORDER BY created_at DESC, account_id LIMIT $2
        """,
        search,
        limit,
    )
    return [SeenAccount(**row) for row in rows]


async def get(conn: Executor, account_id: UUID) -> SeenAccount | None:
    row: Any = await conn.fetchrow(f"{SEEN} WHERE account_id = $1", account_id)
    return SeenAccount(**row) if row else None
