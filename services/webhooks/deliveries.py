"""The webhook_deliveries table: of each run that has ended and names a webhook, whether its receiver was told.

A delivery is made from the final row of the run, whoever ended it, and sent at least once: whoever claims one is to
conclude it before the claim counts as lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, cast
from uuid import UUID

from services.errors import NotFound
from services.postgres import Executor, storable_text
from services.threads import MISSING_RUN
from services.webhooks.claims import Claim

State = Literal["pending", "delivered", "failed", "gone"]
Shown = Literal["none", "waiting", "pending", "delivered", "failed", "gone", "forgotten"]
"""To whoever asks of a run: without a webhook, not ended yet, …, told or tried too long ago."""

UNCLOSED_FOR = timedelta(minutes=1)
"""A run that is final and whose log could not be closed for so long is told of anyway."""
RECEIVER = r"lower(left(substring(webhook_url from '^[^:]+://(?:[^/?#@]*@)?([^/?#]*)'), 300))"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt came to. `again`: after how long it is tried again; None: this was the last one."""

    claim: Claim
    state: State
    again: timedelta | None
    duration: float
    status_code: int | None = None
    error: str | None = None
    excerpt: str | None = None

    @property
    def noted(self) -> dict[str, Any]:
        """As the row keeps it."""
        error, excerpt = (text and storable_text(text) for text in (self.error, self.excerpt))
        answer = {"status_code": self.status_code, "error": error, "response_excerpt": excerpt}
        return {"duration_ms": round(self.duration * 1000), **answer}


@dataclass(frozen=True, slots=True)
class Standing:
    """How the telling of a run's end stands; `attempts` are `{number, started_at, duration_ms, …}`, oldest first."""

    webhook_url: str | None
    completed_at: datetime | None
    webhook_noted_at: datetime | None
    state: str | None
    attempts: list[dict[str, Any]] | None
    due_at: datetime | None

    @property
    def shown(self) -> Shown:
        if self.webhook_url is None:
            return "none"
        if self.completed_at is None:
            return "waiting"
        if self.webhook_noted_at is None or self.state == "pending":
            return "pending"
        return cast(State, self.state) if self.state else "forgotten"


async def note_ended(conn: Executor, limit: int) -> int:
    """Make the deliveries of runs that have ended since, the longest ended first; how many."""
    rows = await conn.fetch(
        f"""
        WITH ended AS (
            SELECT id, account_id, {RECEIVER} AS receiver FROM agent_runs
            WHERE completed_at IS NOT NULL AND webhook_url IS NOT NULL AND webhook_noted_at IS NULL
              AND (closed_at IS NOT NULL OR completed_at < now() - $2::interval)
            ORDER BY completed_at LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
        ), noted AS (
            UPDATE agent_runs AS run SET webhook_noted_at = now() FROM ended WHERE run.id = ended.id
        )
        INSERT INTO webhook_deliveries (agent_run_id, account_id, receiver)
        SELECT id, account_id, coalesce(receiver, '') FROM ended
        ON CONFLICT DO NOTHING
        RETURNING 1
        """,
        limit,
        UNCLOSED_FOR,
    )
    return len(rows)


async def conclude_all(conn: Executor, outcomes: Sequence[Outcome]) -> list[None]:
    """Write down what attempts came to, in one statement; not of a claim that counts as lost and is another's now."""
    await conn.execute(
        """
        WITH given AS (
            SELECT * FROM unnest($1::uuid[], $2::int[], $3::text[], $4::interval[], $5::jsonb[])
                AS given (agent_run_id, fence, state, again, noted)
        )
        UPDATE webhook_deliveries d SET
            state = given.state, due_at = now() + coalesce(again, '0'),
            ended_at = CASE WHEN given.state <> 'pending' THEN now() END,
            attempts = (d.attempts - -1) || ((d.attempts -> -1) || given.noted)
        FROM given WHERE d.agent_run_id = given.agent_run_id AND d.attempt = fence AND d.state = 'pending'
        """,
        [one.claim.agent_run_id for one in outcomes],
        [one.claim.attempt for one in outcomes],
        [one.state for one in outcomes],
        [one.again for one in outcomes],
        [one.noted for one in outcomes],
    )
    return [None for _ in outcomes]


async def give_up(conn: Executor, most: int, limit: int) -> int:
    """End deliveries whose last attempt was lost with its worker; how many."""
    rows = await conn.fetch(
        """
        UPDATE webhook_deliveries SET state = 'failed', ended_at = now() WHERE agent_run_id = ANY(ARRAY(
            SELECT agent_run_id FROM webhook_deliveries
            WHERE state = 'pending' AND due_at <= now() AND attempt >= $1
            ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED
        )) RETURNING 1
        """,
        most,
        limit,
    )
    return len(rows)


async def of_run(conn: Executor, account_id: UUID, run_id: UUID) -> Standing:
    """Raises: NotFound, alike for a run that is somebody else's and one that is not there."""
    row = await conn.fetchrow(
        """
        SELECT run.webhook_url, run.completed_at, run.webhook_noted_at, d.state, d.attempts, d.due_at
        FROM agent_runs AS run LEFT JOIN webhook_deliveries d ON d.agent_run_id = run.id
        WHERE run.id = $1 AND run.account_id = $2
        """,
        run_id,
        account_id,
    )
    if row is None:
        raise NotFound(MISSING_RUN)
    return Standing(**row)


async def forget_old(conn: Executor, keep: timedelta, limit: int) -> int:
    """Delete deliveries that ended so long ago, the oldest first; how many."""
    rows = await conn.fetch(
        """
        DELETE FROM webhook_deliveries WHERE agent_run_id = ANY(ARRAY(
            SELECT agent_run_id FROM webhook_deliveries WHERE ended_at < now() - $1::interval
            ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED
        )) RETURNING 1
        """,
        keep,
        limit,
    )
    return len(rows)
