"""The tables credit_reserves and credit_balances: what calls under way may cost, and what is left to an account.

`credit_balances.reserved` is the sum of an account's reserves: whoever writes a reserve writes both in one statement.
Rows are locked in this order: run, reserve, balance; balances of many accounts by their id.
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import Any
from uuid import UUID

from services.billing.calls import Charge, ModelCall
from services.postgres import Executor
from services.runs.fence import Fence

# Whoever asks again before the first try was committed does not see its reserve, and is refused by the primary key.
RESERVE = """
WITH held AS (
    SELECT id, account_id FROM agent_runs
    WHERE id = $1 AND attempt = $2 AND status = 'running' FOR NO KEY UPDATE
), earlier AS (
    SELECT amount FROM credit_reserves WHERE agent_run_id = (SELECT id FROM held) FOR UPDATE
), taken AS (
    UPDATE credit_balances AS b SET
        reserved = b.reserved - coalesce((SELECT amount FROM earlier), 0) + $4, updated_at = now()
    FROM held
    WHERE b.account_id = held.account_id AND b.balance - b.reserved + coalesce((SELECT amount FROM earlier), 0) > 0
    RETURNING b.account_id
), renewed AS (
    UPDATE credit_reserves SET attempt = $2, call_id = $3, amount = $4, model_name = $5, prompt_tokens = $6,
        created_at = now()
    FROM taken WHERE agent_run_id = $1 AND EXISTS (SELECT FROM earlier)
), made AS (
    INSERT INTO credit_reserves (agent_run_id, account_id, attempt, call_id, amount, model_name, prompt_tokens)
    SELECT $1, account_id, $2, $3, $4, $5, $6 FROM taken WHERE NOT EXISTS (SELECT FROM earlier)
)
SELECT EXISTS (SELECT FROM taken) AS taken,
    coalesce((SELECT balance FROM credit_balances AS b WHERE b.account_id = held.account_id), 0) AS balance,
    (SELECT tier FROM accounts AS a WHERE a.account_id = held.account_id) AS tier
FROM held
"""


def settled(first: int) -> str:
    """CTEs that settle a call of the run in `held`: what was reserved is given back, the ledger told what it cost.

    `held` has id, account_id, thread_id, project_id. Arguments from number `first` on are those of `settling`.
    """
    call_id, message_id, model_name, usage, cost, estimated = (f"${first + n}" for n in range(6))
    return f"""
freed AS (
    DELETE FROM credit_reserves USING held WHERE agent_run_id = held.id AND call_id = {call_id} RETURNING amount
), debited AS (
    INSERT INTO credit_ledger (account_id, kind, amount, call_id, message_id, agent_run_id, thread_id, project_id,
        model_name, usage, estimated)
    SELECT account_id, 'debit', -{cost}::bigint, {call_id}, {message_id}::uuid, id, thread_id, project_id,
        {model_name}::text, {usage}::jsonb, {estimated}::bool
    FROM held WHERE {cost}::bigint IS NOT NULL
    ON CONFLICT (call_id) DO NOTHING
    RETURNING amount
), settled AS (
    UPDATE credit_balances AS b SET
        balance = b.balance + coalesce((SELECT amount FROM debited), 0),
        reserved = b.reserved - coalesce((SELECT amount FROM freed), 0), updated_at = now()
    FROM held WHERE b.account_id = held.account_id
)
"""


SETTLE = f"""
WITH held AS (
    SELECT id, account_id, thread_id, project_id FROM agent_runs
    WHERE id = $1 AND attempt = $2 AND completed_at IS NULL FOR NO KEY UPDATE
), {settled(3)}
SELECT true FROM held
"""

# A reserve that was renewed since is young, and so it stays: the run's row is judged as it was when this began.
FREE_DEAD = """
WITH dead AS (
    SELECT agent_run_id FROM credit_reserves AS reserve
    WHERE created_at < now() - $1::interval AND NOT EXISTS (
        SELECT FROM agent_runs AS run
        WHERE run.id = reserve.agent_run_id AND run.closed_at IS NULL
          AND (run.completed_at IS NOT NULL OR (run.status = 'running' AND run.attempt = reserve.attempt))
    )
    ORDER BY agent_run_id LIMIT $2 FOR UPDATE SKIP LOCKED
), freed AS (
    DELETE FROM credit_reserves USING dead WHERE credit_reserves.agent_run_id = dead.agent_run_id
    RETURNING account_id, amount
), sums AS (
    SELECT account_id, sum(amount)::bigint AS amount FROM freed GROUP BY account_id
), locked AS (
    SELECT b.account_id FROM credit_balances AS b WHERE b.account_id IN (SELECT account_id FROM sums)
    ORDER BY b.account_id FOR NO KEY UPDATE
)
UPDATE credit_balances AS b SET reserved = b.reserved - sums.amount, updated_at = now()
FROM sums JOIN locked USING (account_id) WHERE b.account_id = sums.account_id
RETURNING b.account_id
"""


IS_OPEN = """
SELECT EXISTS (
    SELECT FROM credit_reserves AS reserve JOIN agent_runs AS run ON run.id = reserve.agent_run_id
    WHERE run.thread_id = $1 OR run.project_id = $2
)
"""
LOOK_AGAIN_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Reserved:
    """Whether a reserve was taken, the balance of the account as it stood before, and its tier."""

    taken: bool
    balance: int
    tier: str | None


async def reserve(conn: Executor, fence: Fence, call: ModelCall, amount: int) -> Reserved | None:
    """Set `amount` aside for a call if the account has anything left; an earlier reserve of the run is given back.

    So the last credits can be used, and a balance falls below zero by less than one reserve. None when the fence is
    lost. Raises: asyncpg.UniqueViolationError when another try of the same came in between.
    """
    row = await conn.fetchrow(
        RESERVE, fence.run_id, fence.attempt, call.call_id, amount, call.model_name, call.prompt_tokens
    )
    return Reserved(**row) if row else None


async def settle(conn: Executor, fence: Fence, call: ModelCall, charge: Charge | None) -> bool:
    """Give back what was reserved for a call, and debit its charge if there is one. False when the fence is lost."""
    given = settling(charge, None) if charge else (call.call_id, None, None, {}, None, False)
    return bool(await conn.fetchval(SETTLE, fence.run_id, fence.attempt, *given))


def settling(charge: Charge, message_id: UUID | None) -> tuple[Any, ...]:
    """The arguments of `settled`."""
    return charge.call_id, message_id, charge.model_name, dict(charge.usage), charge.cost, charge.estimated


async def open_call(conn: Executor, run_id: UUID) -> ModelCall | None:
    """What is known of the call that a run has reserved for."""
    row = await conn.fetchrow(
        "SELECT model_name, prompt_tokens, call_id FROM credit_reserves WHERE agent_run_id = $1", run_id
    )
    return ModelCall(**row) if row else None


async def are_settled(
    conn: Executor, seconds: float, *, thread_id: UUID | None = None, project_id: UUID | None = None
) -> bool:
    """Whether no call of the runs of a thread or project is open, or none is any more within so many seconds."""
    deadline = monotonic() + seconds
    while await conn.fetchval(IS_OPEN, thread_id, project_id):
        if monotonic() > deadline:
            return False
        await asyncio.sleep(LOOK_AGAIN_SECONDS)
    return True


async def free_dead(conn: Executor, older_than: timedelta, at_once: int) -> int:
    """Give back what was reserved by attempts that are over and by runs that are gone; for how many accounts.

    A run whose end is not closed yet keeps its reserve: whoever closes it may have to charge for its last words.
    """
    return len(await conn.fetch(FREE_DEAD, older_than, at_once))
