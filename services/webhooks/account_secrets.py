"""The account_webhook_secrets table: what the ends of an account's runs are signed with."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from services.postgres import Connection, Executor
from services.secrets import Secrets
from services.webhooks import signatures
from services.webhooks.secret_pair import PAIR, SecretPair


@dataclass(frozen=True, slots=True)
class AccountSecret(SecretPair):
    account_id: UUID


COLUMNS = f"account_id, {PAIR.format('')}"


async def of_accounts(conn: Executor, secrets: Secrets, account_ids: Sequence[UUID]) -> dict[UUID, AccountSecret]:
    """By account, made where there was none; nothing for an account that was deleted."""
    found = await known(conn, account_ids)
    if missing := [account_id for account_id in account_ids if account_id not in found]:
        made = [secrets.seal(signatures.make_secret()) for _ in missing]
        await conn.execute(
            """
            INSERT INTO account_webhook_secrets (account_id, secret)
            SELECT account_id, secret FROM unnest($1::uuid[], $2::text[]) AS made (account_id, secret)
            JOIN accounts USING (account_id)
            ON CONFLICT DO NOTHING
            """,
            missing,
            made,
        )
        found |= await known(conn, missing)
    return found


async def known(conn: Executor, account_ids: Sequence[UUID]) -> dict[UUID, AccountSecret]:
    query = f"SELECT {COLUMNS} FROM account_webhook_secrets WHERE account_id = ANY($1)"
    return {row["account_id"]: AccountSecret(**row) for row in await conn.fetch(query, account_ids)}


async def rotate(conn: Connection, secrets: Secrets, account_id: UUID, grace: timedelta) -> AccountSecret:
    """A new secret; the one before signs beside it for `grace`, and the one before that no more."""
    row = await conn.fetchrow(
        f"""
        INSERT INTO account_webhook_secrets AS kept (account_id, secret) VALUES ($1, $2)
        ON CONFLICT (account_id) DO UPDATE SET
            secret = excluded.secret, previous = kept.secret, previous_until = now() + $3::interval, rotated_at = now()
        RETURNING {COLUMNS}
        """,
        account_id,
        secrets.seal(signatures.make_secret()),
        grace,
    )
    assert row
    return AccountSecret(**row)
