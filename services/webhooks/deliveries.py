"""The webhook_deliveries table: of each run that has ended and names a webhook, whether its receiver was told.

A delivery is made from the final row of the run, whoever ended it, and sent at least once: whoever claims one is to
conclude it before the claim counts as lost. `attempt` is the fence of a claim.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Literal, cast
from uuid import UUID

from services.errors import NotFound
from services.postgres import Executor, storable_text
from services.threads import MISSING_RUN

State = Literal["pending", "delivered", "failed", "gone"]
Shown = Literal["none", "waiting", "pending", "delivered", "failed", "gone", "forgotten"]
"""To whoever asks of a run: without a webhook, not ended yet, …, told or tried too long ago."""

UNCLOSED_FOR = timedelta(minutes=1)
"""A run that is final and whose log could not be closed for so long is told of anyway."""
SEEN_AT_ONCE = 1000
RECEIVER = r"lower(left(substring(webhook_url from '^[^:]+://(?:[^/?#@]*@)?([^/?#]*)'), 300))"
LOST = "The worker that sent it was lost before it heard an answer."


@dataclass(frozen=True, slots=True)
class Claim:
    """A delivery that is ours to send once, and the run that it tells of."""

    agent_run_id: UUID
    account_id: UUID
    receiver: str
    attempt: int
    kind: str
    project_id: UUID
    thread_id: UUID
    status: str
    error: str | None
    model_name: str
    usage: dict[str, Any]
    metadata: dict[str, Any]
    webhook_url: str
    workflow_id: str | None
    execution_id: str | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime
    request_id: str | None = None
    """Of the request that started the run."""


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
class Limits:
    """How many may be under way at once in this process: of all, of an account, and of its receiver."""

    all: int
    of_account: int
    of_receiver: int


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


NOT_OF_RUN = ("agent_run_id", "account_id", "receiver", "attempt", "workflow_id", "execution_id", "request_id")
OF_RUN = ", ".join(f"run.{f.name}" for f in fields(Claim) if f.name not in NOT_OF_RUN)


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


async def claim(
    conn: Executor, under_way: Iterable[Claim], limits: Limits, *, lost_after: timedelta, most: int
) -> list[Claim]:
    """Deliveries that are due, for this process to send: no more of an account, or to a host, than may be under way.

    What waits behind others of a full account or host is passed over, however much of it there is: so a call that
    finds nothing means that there is nothing to do. Rows that somebody else is about to claim are left to them.
    """
    busy = list(under_way)
    of_account = Counter(str(each.account_id) for each in busy)
    of_receiver = Counter(lane(each) for each in busy)
    rows = await conn.fetch(
        f"""
        WITH busy AS (SELECT * FROM unnest($1::text[], $2::int[]) AS busy (name, count)
        ), due AS (
            SELECT agent_run_id, account_id::text AS account, account_id || ' ' || receiver AS lane, due_at
            FROM webhook_deliveries
            WHERE state = 'pending' AND due_at <= now() AND attempt < $9
              AND account_id::text <> ALL($3::text[]) AND account_id || ' ' || receiver <> ALL($3::text[])
            ORDER BY due_at LIMIT {SEEN_AT_ONCE}
        ), in_lanes AS (
            SELECT due.*, coalesce(busy.count, 0) + row_number() OVER (PARTITION BY lane ORDER BY due_at) AS place
            FROM due LEFT JOIN busy ON busy.name = lane
        ), in_accounts AS (
            SELECT in_lanes.*,
                coalesce(busy.count, 0) + row_number() OVER (PARTITION BY account ORDER BY due_at) AS place_of_account
            FROM in_lanes LEFT JOIN busy ON busy.name = account WHERE place <= $5
        ), chosen AS (
            SELECT d.agent_run_id FROM webhook_deliveries d JOIN in_accounts USING (agent_run_id)
            WHERE place_of_account <= $4 AND d.state = 'pending' AND d.due_at <= now()
            ORDER BY place_of_account, d.due_at LIMIT $6 FOR UPDATE OF d SKIP LOCKED
        )
        UPDATE webhook_deliveries d SET
            attempt = d.attempt + 1, due_at = now() + $7::interval,
            attempts = d.attempts || jsonb_build_object('number', d.attempt + 1, 'started_at', now(), 'error', $8::text)
        FROM chosen JOIN agent_runs AS run ON run.id = chosen.agent_run_id
        WHERE d.agent_run_id = chosen.agent_run_id
        RETURNING d.agent_run_id, d.account_id, d.receiver, d.attempt, {OF_RUN},
            run.settings ->> 'workflow_id' AS workflow_id, run.settings ->> 'execution_id' AS execution_id,
            run.settings #>> '{{origin,request_id}}' AS request_id
        """,
        [*of_account, *of_receiver],
        [*of_account.values(), *of_receiver.values()],
        full(of_account, limits.of_account) + full(of_receiver, limits.of_receiver),
        limits.of_account,
        limits.of_receiver,
        limits.all - len(busy),
        lost_after,
        LOST,
        most,
    )
    return [Claim(**row) for row in rows]


def lane(claimed: Claim) -> str:
    return f"{claimed.account_id} {claimed.receiver}"


def full(counts: Counter[str], limit: int) -> list[str]:
    return [name for name, count in counts.items() if count >= limit]


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
