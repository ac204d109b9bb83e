"""The idempotency_keys table: a request that is repeated finds the run that its first one made."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import orjson

from services.errors import Conflict
from services.postgres import Connection, Executor

KEPT = timedelta(hours=24)
TAKEN = "This Idempotency-Key came with another request before."


@dataclass(frozen=True, slots=True)
class RequestKey:
    """The key of one request; `fingerprint` says what was asked for."""

    account_id: UUID
    route: str
    key: str
    fingerprint: bytes


def fingerprint(asked: Mapping[str, Any]) -> bytes:
    """The same for requests that mean the same: of the parsed fields as JSON, in one order."""
    return hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).digest()


async def claim(conn: Connection, asked: RequestKey, run_id: UUID) -> UUID:
    """Let a key stand for `run_id`; answers the run that it stands for: an earlier one unless that is a day old.

    To be called first in the transaction that inserts the run: a parallel repeat waits here until that one commits
    (and answers its run) or rolls back (and is the first).
    Raises: Conflict `{message, agent_run_id}` when the key came with another request.
    """
    claimed = await conn.fetchval(
        """
        INSERT INTO idempotency_keys AS kept (account_id, route, key, fingerprint, agent_run_id)
        VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (account_id, route, key) DO UPDATE
            SET fingerprint = excluded.fingerprint, agent_run_id = excluded.agent_run_id, created_at = now()
            WHERE kept.created_at < now() - $6::interval
        RETURNING true
        """,
        asked.account_id,
        asked.route,
        asked.key,
        asked.fingerprint,
        run_id,
        KEPT,
    )
    return run_id if claimed else await recall(conn, asked)


async def recall(conn: Connection, asked: RequestKey) -> UUID:
    """The run of a key that is there; the insert that met its row holds it in place."""
    row = await conn.fetchrow(
        "SELECT fingerprint, agent_run_id FROM idempotency_keys WHERE account_id = $1 AND route = $2 AND key = $3",
        asked.account_id,
        asked.route,
        asked.key,
    )
    assert row
    run_id: UUID = row["agent_run_id"]
    if row["fingerprint"] != asked.fingerprint:
        raise Conflict({"message": TAKEN, "agent_run_id": str(run_id)})
    return run_id


async def forget_old(conn: Executor, limit: int) -> int:
    """Delete keys that no longer count, the oldest first; how many."""
    rows = await conn.fetch(
        """
        DELETE FROM idempotency_keys WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM idempotency_keys WHERE created_at < now() - $1::interval
            ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED
        )) RETURNING 1
        """,
        KEPT,
        limit,
    )
    return len(rows)
