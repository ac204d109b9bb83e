"""What an export takes of the process that writes it."""

import re
import tracemalloc
from collections import Counter
from secrets import token_hex
from uuid import uuid4

import orjson

from services import accounts, export, messages, projects, threads, workflows
from services.messages import NewMessage
from services.postgres import Pool, transaction
from services.workflows import Change

MESSAGES, CHARS = 50, 400_000
MOST_BYTES = 20_000_000
"""Of the thirty that fifty messages take at once, and what is left of the page before."""


async def test_an_export_of_large_messages_never_holds_many_of_them(pool: Pool) -> None:
    async with transaction(pool) as conn:
        account_id = (await accounts.ensure_personal(conn, uuid4())).account_id
        project = await projects.create(conn, account_id, "Garden")
        thread = await threads.create(conn, account_id, project.project_id)
        for _ in range(MESSAGES):
            await messages.add(conn, thread.thread_id, [NewMessage("user", {"content": token_hex(CHARS // 2)})])
    lengths = list[int]()
    tracemalloc.start()
    try:
        async for line in export.lines(pool, account_id):
            lengths.append(len(line))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len([length for length in lengths if length > CHARS]) == MESSAGES
    assert peak < MOST_BYTES


VERSIONS, STEPS, STEP = 50, 60, {"text": "x" * 250_000}


async def test_an_export_of_large_workflows_never_holds_many_of_them(pool: Pool) -> None:
    async with transaction(pool) as conn:
        account_id = (await accounts.ensure_personal(conn, uuid4())).account_id
        definition = {"steps": [STEP] * 4}
        workflow = await workflows.create(conn, account_id, Change({"name": "Garden"}, definition))
        for number in range(2, VERSIONS + 1):
            await workflows.add_version(conn, workflow.workflow_id, uuid4(), number, definition, None)
        execution_id = await conn.fetchval(
            "INSERT INTO workflow_executions (workflow_id, version_id) VALUES ($1, $2) RETURNING execution_id",
            workflow.workflow_id,
            workflow.current_version_id,
        )
        for number in range(STEPS):
            named = (
                "INSERT INTO workflow_steps (execution_id, step_id, visit, inputs, output) VALUES ($1, $2, '0', $3, $3)"
            )
            await conn.execute(named, execution_id, str(number), STEP)
    records = Counter[str]()
    tracemalloc.start()
    try:
        async for line in export.lines(pool, account_id):
            records[orjson.loads(line)["record"]] += 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (records["workflow_version"], records["workflow_step"]) == (VERSIONS, STEPS)
    assert peak < 2 * MOST_BYTES


NOT_EXPORTED = {
    "agent_run_event_blocks": "what the runs said to their readers; what came of it is in the messages",
    "upload_chunks": "the content of files, which is not exported, as that of sandboxes is not",
    "idempotency_keys": "names of requests, for a day",
    "credit_balances": "the sum of its ledger, and of what follows",
    "credit_reserves": "what a call of a model holds back while it is under way",
    "account_webhook_secrets": "a secret, which whoever may see it can ask for",
    "workflow_webhooks": "secrets, as those of the account; of a workflow there is nothing else in it",
    "account_limits": "what operators allow it, which is theirs to say",
}
HIDDEN = {
    "account_members": {"account_id"},
    "api_keys": {"account_id", "secret_hash"},
    "webhook_deliveries": {"account_id", "attempt"},
    "agent_runs": {
        # how it was driven
        "account_id", "attempt", "crashes", "instance_id", "heartbeat_at", "stop_requested_at", "message_sent_at",
        "message_tried_at", "archived_events", "reserved_events", "log_epoch", "event_count", "closed_at", "judged",
        "parked_at", "waited", "webhook_noted_at", "events_removed_at",
        "updated_at",
    },
}  # fmt: skip
TABLES_OF_ACCOUNTS = """
    WITH RECURSIVE owned AS (
        SELECT 'accounts'::regclass::oid AS oid
        UNION
        SELECT c.conrelid FROM pg_constraint c JOIN owned ON c.confrelid = owned.oid WHERE c.contype = 'f'
    )
    SELECT relname, array_agg(column_name::text) AS columns
    FROM owned JOIN pg_class USING (oid) JOIN information_schema.columns ON table_name = relname GROUP BY relname
"""


async def test_every_table_that_holds_something_of_an_account_is_exported_or_is_left_out_for_a_reason(
    pool: Pool,
) -> None:
    tables = {row["relname"]: set(row["columns"]) for row in await pool.fetch(TABLES_OF_ACCOUNTS)}
    assert len(tables) > 5
    shown = {"messages": set(messages.NAMES), "workflow_steps": tables["workflow_steps"]}
    for part in export.PARTS:
        (table,) = re.findall(r"FROM (\w+)", part.rows)
        async with pool.acquire() as conn:
            shown[table] = {column.name for column in (await conn.prepare(part.rows)).get_attributes()}
    assert set(tables) == set(shown) | set(NOT_EXPORTED)
    for table, columns in shown.items():
        left_out = tables[table] - columns
        assert left_out == HIDDEN.get(table, set()), table
