"""The account_limits table: what operators gave an account instead of the limits of the settings."""

from dataclasses import asdict, dataclass
from uuid import UUID

from services.postgres import Connection, Executor

MAX_LISTED = 100_000


@dataclass(frozen=True, slots=True)
class AccountLimits:
    """None: as the settings say. 0: no limit."""

    max_concurrent_runs: int | None = None
    rate_limit_per_minute: int | None = None


async def get(conn: Executor, account_id: UUID) -> AccountLimits:
    row = await conn.fetchrow(
        "SELECT max_concurrent_runs, rate_limit_per_minute FROM account_limits WHERE account_id = $1", account_id
    )
    return AccountLimits(*row) if row else AccountLimits()


async def keep(conn: Connection, account_id: UUID, limits: AccountLimits) -> None:
    """Raises: ForeignKeyViolationError when there is no such account."""
    if limits == AccountLimits():
        await conn.execute("DELETE FROM account_limits WHERE account_id = $1", account_id)
        return
    await conn.execute(
        """
        INSERT INTO account_limits (account_id, max_concurrent_runs, rate_limit_per_minute) VALUES ($1, $2, $3)
        ON CONFLICT (account_id) DO UPDATE SET max_concurrent_runs = excluded.max_concurrent_runs,
            rate_limit_per_minute = excluded.rate_limit_per_minute, updated_at = now()
        """,
        account_id,
        *asdict(limits).values(),
    )


async def rates(conn: Executor) -> dict[UUID, int]:
    """All that were given another rate; of more than MAX_LISTED those that were changed last."""
    rows = await conn.fetch(
        """
        SELECT account_id, rate_limit_per_minute FROM account_limits WHERE rate_limit_per_minute IS NOT NULL
        ORDER BY updated_at DESC LIMIT $1
        """,
        MAX_LISTED,
    )
    return dict(map(tuple, rows))
