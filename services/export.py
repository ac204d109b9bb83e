"""All that an account has, row by row, for whoever wants to take it along."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson

from services import messages
from services.agent_secrets import masked
from services.postgres import Pool
from services.projects import SHOWN_OF_SANDBOX

ROWS_AT_A_TIME = 50
LARGE_AT_A_TIME = 2
"""Of rows that may have a megabyte each."""
NEWER_THAN_ALL = (datetime(9999, 1, 1, tzinfo=UTC), UUID(int=2**128 - 1))


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of a table, newest first; created_at and `key` say where the next page begins, as its index does."""

    record: str
    key: str
    rows: str
    at_a_time: int = ROWS_AT_A_TIME

    @property
    def page(self) -> str:
        return f"""
            SELECT part.* FROM ({self.rows}) AS part WHERE (part.created_at, part.{self.key}) < ($2, $3)
            ORDER BY part.created_at DESC, part.{self.key} DESC LIMIT {self.at_a_time}
        """


PARTS = (
    Part("account", "account_id", "SELECT * FROM accounts WHERE account_id = $1"),
    Part("member", "user_id", "SELECT user_id, role, created_at FROM account_members WHERE account_id = $1"),
    Part("agent", "agent_id", "SELECT * FROM agents WHERE account_id = $1"),
    Part(
        "agent_version",
        "version_id",
        "SELECT v.* FROM agent_versions v JOIN agents a USING (agent_id) WHERE a.account_id = $1",
    ),
    Part(
        "api_key",
        "key_id",
        """
        SELECT key_id, created_by, made_with, public_key, title, description, scopes, expires_at, revoked_at,
            last_used_at, created_at
        FROM api_keys WHERE account_id = $1
        """,
    ),
    Part("credit", "entry_id", "SELECT * FROM credit_ledger WHERE account_id = $1"),
    Part("project", "project_id", "SELECT * FROM projects WHERE account_id = $1"),
    Part(
        "agent_run",
        "id",
        """
        SELECT id, kind, project_id, thread_id, agent_id, agent_version_id, created_by, status, model_name, settings,
            metadata, webhook_url, priority, on_active, not_before, expires_at, error, usage, started_at, completed_at,
            created_at
        FROM agent_runs WHERE account_id = $1
        """,
    ),
    Part(
        "webhook_delivery",
        "agent_run_id",
        """
        SELECT agent_run_id, receiver, state, attempts, due_at, ended_at, created_at
        FROM webhook_deliveries WHERE account_id = $1
        """,
    ),
    Part("workflow", "workflow_id", "SELECT * FROM workflows WHERE account_id = $1"),
    Part(
        "workflow_version",
        "version_id",
        "SELECT v.* FROM workflow_versions v JOIN workflows w USING (workflow_id) WHERE w.account_id = $1",
        LARGE_AT_A_TIME,
    ),
    Part(
        "workflow_execution",
        "execution_id",
        "SELECT e.* FROM workflow_executions e JOIN workflows w USING (workflow_id) WHERE w.account_id = $1",
    ),
    Part("schedule", "schedule_id", "SELECT * FROM schedules WHERE account_id = $1"),
    Part(
        "schedule_firing",
        "firing_id",
        "SELECT f.* FROM schedule_firings f JOIN schedules s USING (schedule_id) WHERE s.account_id = $1",
    ),
    Part(
        "upload",
        "upload_id",
        """
        SELECT u.upload_id, u.project_id, u.agent_run_id, u.name, u.content_type, u.size,
            encode(u.sha256, 'hex') AS sha256, u.placed_at, u.created_at
        FROM uploads u JOIN projects p USING (project_id) WHERE p.account_id = $1
        """,
    ),
    Part("thread", "thread_id", "SELECT * FROM threads WHERE account_id = $1"),
)
STEPS = f"""
    SELECT * FROM workflow_steps WHERE execution_id = $1 AND position > $2 ORDER BY position LIMIT {LARGE_AT_A_TIME}
"""
BYTES_AT_A_TIME = 1024 * 1024


async def lines(pool: Pool, account_id: UUID) -> AsyncIterator[bytes]:
    """One JSON object a line, with what it is in `record`; messages follow their thread, steps what they are of.

    Secrets are masked.

    Every page is a statement of its own, and no connection is held between two of them.
    """
    for part in PARTS:
        after: tuple[Any, ...] = NEWER_THAN_ALL
        while rows := await pool.fetch(part.page, account_id, *after):
            after = (rows[-1]["created_at"], rows[-1][part.key])
            for row in rows:
                yield line(part.record, dict(row))
                if part.record == "thread":
                    async for message in messages_of(pool, row["thread_id"]):
                        yield message
                if part.record == "workflow_execution":
                    async for step in steps_of(pool, row["execution_id"]):
                        yield step


async def messages_of(pool: Pool, thread_id: UUID) -> AsyncIterator[bytes]:
    after, more = -1, True
    while more:
        async with pool.acquire() as conn:
            found, more = await messages.page(
                conn, thread_id, limit=ROWS_AT_A_TIME, after=after, descending=False, max_bytes=BYTES_AT_A_TIME
            )
        for message in found:
            after = message.position
            yield line("message", {name: getattr(message, name) for name in messages.NAMES})


async def steps_of(pool: Pool, execution_id: UUID) -> AsyncIterator[bytes]:
    last = -1
    while rows := await pool.fetch(STEPS, execution_id, last):
        last = rows[-1]["position"]
        for row in rows:
            yield line("workflow_step", dict(row))


def line(record: str, row: dict[str, Any]) -> bytes:
    return orjson.dumps({"record": record, **shown(record, row)}, default=str, option=orjson.OPT_APPEND_NEWLINE)


def shown(record: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row as anybody of the account may see it."""
    if record == "agent_version":
        return {**row, **{name: masked(row[name]) for name in ("configured_mcps", "custom_mcps")}}
    if record == "project":
        return {**row, "sandbox": {name: row["sandbox"][name] for name in SHOWN_OF_SANDBOX if name in row["sandbox"]}}
    return row
