"""API keys: `pk_…:sk_…`, of which the row knows the first half and a hash of the second."""

import hmac
import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from uuid import UUID

from services.errors import Conflict, NotFound, Unauthenticated
from services.members import Role
from services.postgres import Connection, Executor
from services.settings import ApiKeySettings

SHAPE = re.compile(r"(pk_[A-Za-z0-9]{1,64}):(sk_[A-Za-z0-9_-]{1,128})", re.ASCII)
MAX_KEYS = 100
MISSING = "API key not found."
INVALID = "The API key is not valid."
NO_HASH = bytes(32)


@dataclass(frozen=True, slots=True)
class ApiKey:
    key_id: UUID
    account_id: UUID
    created_by: UUID
    made_with: UUID | None
    public_key: str
    title: str
    description: str
    scopes: Sequence[str]
    status: str
    expires_at: datetime | None
    last_used_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Holder:
    """Whom a key stands for, and what it is good for; `seconds_left` until it expires."""

    key_id: UUID
    account_id: UUID
    user_id: UUID
    role: Role
    scopes: frozenset[str]
    seconds_left: float | None


STATUS = "CASE WHEN revoked_at IS NOT NULL THEN 'revoked' WHEN expires_at <= now() THEN 'expired' ELSE 'active' END"
COLUMNS = ", ".join(f"{STATUS} AS status" if f.name == "status" else f.name for f in fields(ApiKey))
ACTIVE = "k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())"


async def create(
    conn: Connection,
    settings: ApiKeySettings,
    account_id: UUID,
    created_by: UUID,
    *,
    title: str,
    description: str,
    scopes: Collection[str],
    days: int | None,
    made_with: UUID | None = None,
) -> tuple[ApiKey, str]:
    """A key and its secret, which nobody can see a second time; one that is `made_with` a key ends no later than that.

    Raises: Conflict when the account has MAX_KEYS; Unauthenticated when that key has ended meanwhile.
    """
    await take_turns(conn, account_id)
    if made_with and not await conn.fetchval(f"SELECT true FROM api_keys k WHERE key_id = $1 AND {ACTIVE}", made_with):
        raise Unauthenticated(INVALID)
    if await conn.fetchval("SELECT count(*) FROM api_keys WHERE account_id = $1", account_id) >= MAX_KEYS:
        raise Conflict(f"This account has {MAX_KEYS} API keys; delete one first.")
    secret = f"sk_{secrets.token_urlsafe(32)}"
    row = await conn.fetchrow(
        f"""
        INSERT INTO api_keys
            (account_id, created_by, public_key, secret_hash, title, description, scopes, made_with, expires_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $9,
            least(now() + make_interval(days => $8), (SELECT expires_at FROM api_keys WHERE key_id = $9)))
        RETURNING {COLUMNS}
        """,
        account_id,
        created_by,
        f"pk_{secrets.token_hex(16)}",
        hashed(settings, secret),
        title,
        description,
        sorted(scopes),
        days,
        made_with,
    )
    assert row
    return ApiKey(**row), secret


async def of_account(conn: Executor, account_id: UUID) -> list[ApiKey]:
    """All keys of an account, newest first."""
    rows = await conn.fetch(
        f"SELECT {COLUMNS} FROM api_keys WHERE account_id = $1 ORDER BY created_at DESC, key_id DESC", account_id
    )
    return [ApiKey(**row) for row in rows]


async def revoke(conn: Connection, account_id: UUID, key_id: UUID) -> ApiKey:
    """Make a key of the account, and all that were made with it, void for good; once more changes nothing.

    Raises: NotFound.
    """
    await take_turns(conn, account_id)
    rows = await conn.fetch(
        f"""
        WITH RECURSIVE line AS (
            SELECT key_id AS id FROM api_keys WHERE key_id = $1 AND account_id = $2
            UNION SELECT made.key_id FROM api_keys made JOIN line ON made.made_with = line.id
        )
        UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) FROM line WHERE key_id = line.id
        RETURNING {COLUMNS}
        """,
        key_id,
        account_id,
    )
    revoked = next((row for row in rows if row["key_id"] == key_id), None)
    if not revoked:
        raise NotFound(MISSING)
    return ApiKey(**revoked)


async def take_turns(conn: Connection, account_id: UUID) -> None:
    """No key is made with one that is revoked in the same moment."""
    await conn.execute("SELECT FROM accounts WHERE account_id = $1 FOR UPDATE", account_id)


async def revoke_those_of(conn: Executor, account_id: UUID, user_id: UUID) -> None:
    """Make void for good all keys of an account that stand for a person: they do not come back with them."""
    await conn.execute(
        "UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE account_id = $1 AND created_by = $2",
        account_id,
        user_id,
    )


async def delete(conn: Executor, account_id: UUID, key_id: UUID) -> None:
    """Those that were made with it go with it. Raises: NotFound."""
    statement = "DELETE FROM api_keys WHERE key_id = $1 AND account_id = $2 RETURNING true"
    if not await conn.fetchval(statement, key_id, account_id):
        raise NotFound(MISSING)


async def holder_of(conn: Executor, settings: ApiKeySettings, public_key: str, secret: str) -> Holder:
    """Whom the two halves of a key stand for.

    Raises: Unauthenticated; that a key was revoked or has expired learns only who knows its secret.
    """
    row = await conn.fetchrow(
        f"""
        SELECT key_id, k.account_id, created_by AS user_id, m.role, scopes, {STATUS} AS status, secret_hash,
            extract(epoch FROM expires_at - now())::float8 AS seconds_left
        FROM api_keys k LEFT JOIN account_members m ON m.account_id = k.account_id AND m.user_id = k.created_by
        WHERE public_key = $1
        """,
        public_key,
    )
    known = hmac.compare_digest(row["secret_hash"] if row else NO_HASH, hashed(settings, secret))
    if not row or not known:
        raise Unauthenticated(INVALID)
    if row["status"] != "active":
        raise Unauthenticated(f"The API key {'has expired' if row['status'] == 'expired' else 'was revoked'}.")
    if row["role"] is None:
        raise Unauthenticated("Whoever made this API key does not belong to its account any more.")
    return Holder(
        row["key_id"], row["account_id"], row["user_id"], row["role"], frozenset(row["scopes"]), row["seconds_left"]
    )


async def touch(conn: Executor, used: dict[UUID, datetime], settings: ApiKeySettings) -> None:
    """Keep when keys were last used, each at most once in API_KEY_TOUCH_INTERVAL, however many processes there are."""
    await conn.execute(
        """
        WITH used AS (
            SELECT k.key_id, u.at
            FROM unnest($1::uuid[], $2::timestamptz[]) AS u (key_id, at) JOIN api_keys k USING (key_id)
            WHERE k.last_used_at IS NULL OR k.last_used_at <= u.at - $3::interval
            ORDER BY k.key_id FOR NO KEY UPDATE OF k -- in one order: processes that keep the same keys do not deadlock
        )
        UPDATE api_keys k SET last_used_at = used.at FROM used WHERE k.key_id = used.key_id
        """,
        list(used),
        list(used.values()),
        settings.touch_interval,
    )


def hashed(settings: ApiKeySettings, secret: str) -> bytes:
    return hmac.digest(settings.pepper.get_secret_value().encode(), secret.encode(), "sha256")


def halves(said: str) -> tuple[str, str]:
    """The two halves of an X-API-Key header. Raises: Unauthenticated."""
    found = SHAPE.fullmatch(said)
    if not found:
        raise Unauthenticated("X-API-Key must be pk_…:sk_….")
    return found[1], found[2]
