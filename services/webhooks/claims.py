"""Claims of webhook deliveries: which ones a process may send now, fair to all accounts and receivers.

`attempt` is the fence of a claim; it ends by itself when the delivery was not concluded for a while.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from services.postgres import Executor

SEEN_AT_ONCE = 1000
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
class Limits:
    """How many may be under way at once in this process: of all, of an account, and of its receiver."""

    all: int
    of_account: int
    of_receiver: int


NOT_OF_RUN = ("agent_run_id", "account_id", "receiver", "attempt", "workflow_id", "execution_id", "request_id")
OF_RUN = ", ".join(f"run.{f.name}" for f in fields(Claim) if f.name not in NOT_OF_RUN)
CLAIM = f"""
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
"""


async def take(
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
        CLAIM,
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
