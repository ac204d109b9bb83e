"""A secret that webhooks are signed with, and for a while the one before it: sealed in a row, so that both sides can
change it without a webhook that is refused.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from services.postgres import Executor
from services.secrets import Secrets, SecretUnreadable

PAIR = """
    {0}secret, CASE WHEN {0}previous_until > now() THEN {0}previous END AS previous,
    CASE WHEN {0}previous_until > now() THEN {0}previous_until END AS previous_until, {0}created_at, {0}rotated_at
"""
"""The columns of a pair, of a table's alias and a dot. The one before is there only as long as it counts."""

OWNERS = {"account_webhook_secrets": "account_id", "workflow_webhooks": "workflow_id"}
"""The tables that have pairs, and whose they are."""


@dataclass(frozen=True, slots=True)
class SecretPair:
    """`secret` and `previous` are sealed."""

    secret: str
    previous: str | None
    previous_until: datetime | None
    created_at: datetime
    rotated_at: datetime | None

    def keys(self, secrets: Secrets) -> list[str]:
        """What counts now, the newest first. Raises: SecretUnreadable for that one; the other is then left out."""
        found = [secrets.open(self.secret)]
        if self.previous:
            with suppress(SecretUnreadable):
                found.append(secrets.open(self.previous))
        return found


async def renew_page(
    conn: Executor, secrets: Secrets, table: str, after: UUID, limit: int
) -> tuple[UUID | None, int, Sequence[UUID]]:
    """Encrypt the pairs of some owners with the first key.

    The last owner (None: there is nobody after `after`), how many pairs were renewed, and whose no key opens.
    """
    owner = OWNERS[table]
    rows = await conn.fetch(
        f"""
        SELECT {owner} AS owner, secret, previous, previous_until > now() AS counts FROM {table}
        WHERE {owner} > $1 ORDER BY {owner} LIMIT $2
        """,
        after,
        limit,
    )
    renewed, unreadable = 0, list[UUID]()
    for row in rows:
        try:
            secret = secrets.renew(row["secret"])
            previous = secrets.renew(row["previous"]) if row["counts"] else None
        except SecretUnreadable:
            unreadable.append(row["owner"])
            continue
        statement = f"UPDATE {table} SET secret = $3, previous = $4 WHERE {owner} = $1 AND secret = $2"
        await conn.execute(statement, row["owner"], row["secret"], secret, previous)
        renewed += 1
    return rows[-1]["owner"] if rows else None, renewed, unreadable
