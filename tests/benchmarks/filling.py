"""A database as it is after years: filled by the server itself, its indexes built when the rows are in."""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import asyncpg

from services.postgres import Connection
from tests.benchmarks.progress import Advance, Progress

BIG = ("agent_runs", "messages", "threads", "projects", "idempotency_keys", "agent_run_event_blocks", "credit_ledger")
"""What no ordinary statement may read from end to end."""
LOADERS = 2
PARTS = 20
QUICK = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "'16GB'", "maintenance_work_mem": "'1GB'"}
"""While a database of nobody's is filled; reset before anything is measured."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """One account has 2 % of everything; one thread of it has 1 % of all messages and every 20th run of the account."""

    accounts: int = 1000
    runs: int = 1_000_000
    messages: int = 10_000_000

    @property
    def agents(self) -> int:
        return 10 * self.accounts

    @property
    def keys(self) -> int:
        return self.runs // 10


NUMBERS = "generate_series({first}::bigint, {last}::bigint) AS number (n)"
"""Which of a table's rows a part makes, from 0 on; every id is told by the number of its row."""
LIVE = 200
"""How many runs, the newest, are not final."""
FUNCTIONS = """
CREATE FUNCTION id_of(kind text, n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN md5(kind || n)::uuid;
CREATE FUNCTION account_number(n bigint, accounts int) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN accounts = 1 OR n % 50 = 0 THEN 0 ELSE 1 + (n - n / 50) % (accounts - 1) END;
CREATE FUNCTION account_of(n bigint, accounts int) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN id_of('account', account_number(n, accounts));
CREATE FUNCTION thread_number(n bigint, runs bigint) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN n % 100 = 7 THEN 0 ELSE (n / 400 * 40 + n % 40) % runs END;
CREATE FUNCTION moment_of(n bigint, many bigint) RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE
    RETURN now() - interval '365 days' * ((many - n)::float8 / many);
"""
ROWS = {
    "accounts": """
        INSERT INTO accounts (account_id, name) SELECT id_of('account', n), 'account ' || n FROM {numbers}
    """,
    "account_members": """
        INSERT INTO account_members (account_id, user_id, role)
        SELECT id_of('account', n), id_of('account', n), 'owner' FROM {numbers}
    """,
    "agents": """
        INSERT INTO agents (agent_id, account_id, name, description, current_version_id, version_count, created_at)
        SELECT id_of('agent', n), account_of(n, {accounts}), 'Agent ' || n, 'Looks after garden ' || n,
            id_of('version', n), 1, moment_of(n, {agents}) FROM {numbers}
    """,
    "agent_versions": """
        INSERT INTO agent_versions (version_id, agent_id, version_number, version_name, system_prompt, agentpress_tools)
        SELECT id_of('version', n), id_of('agent', n), 1, 'v1', repeat('You answer in whole sentences. ', 10),
            '{{"shell": {{"enabled": true}}, "files": true}}' FROM {numbers}
    """,
    "projects": """
        INSERT INTO projects (project_id, account_id, name, created_at, updated_at)
        SELECT id_of('project', n), account_of(n, {accounts}), 'Project ' || n, moment_of(n, {runs}),
            moment_of(n, {runs}) FROM {numbers}
    """,
    "threads": """
        INSERT INTO threads (thread_id, account_id, project_id, metadata, created_at, updated_at)
        SELECT id_of('thread', n), account_of(n, {accounts}), id_of('project', n),
            jsonb_build_object('title', 'Thread ' || n), moment_of(n, {runs}), moment_of(n, {runs}) FROM {numbers}
    """,
    "agent_runs": """
        INSERT INTO agent_runs (id, account_id, project_id, thread_id, created_by, status, model_name, on_active,
            attempt, instance_id, heartbeat_at, message_sent_at, error, archived_events, reserved_events, event_count,
            started_at, completed_at, closed_at, created_at, updated_at)
        SELECT id_of('run', n), account_of(n, {accounts}), id_of('project', place), id_of('thread', place),
            account_of(n, {accounts}), status, 'demo/echo', 'queue', 1, 'worker', began, began,
            CASE status WHEN 'failed' THEN 'The model did not answer.' END, 100, 100,
            CASE WHEN ended THEN 100 END, began, CASE WHEN ended THEN began + interval '1 minute' END,
            CASE WHEN ended THEN began + interval '1 minute' END, began, began
        FROM {numbers}
            CROSS JOIN LATERAL (SELECT n < {runs} - {live} AS ended, moment_of(n, {runs}) AS began) AS of_run
            CROSS JOIN LATERAL (SELECT
                CASE WHEN n % 1000 = 0 AND ended THEN 0 ELSE n END AS place,
                CASE WHEN NOT ended THEN CASE WHEN n % 100 < 50 THEN 'running' ELSE 'queued' END
                     WHEN n % 19 = 0 THEN 'failed' WHEN n % 17 = 0 THEN 'stopped' ELSE 'completed' END AS status
            ) AS of_end
    """,
    "idempotency_keys": """
        INSERT INTO idempotency_keys (account_id, route, key, fingerprint, agent_run_id, created_at)
        SELECT account_of(n, {accounts}), 'start', 'key ' || n, '\\x00', id_of('run', n),
            now() - interval '25 hours' * (n::float8 / {keys}) FROM {numbers}
    """,
    "credit_ledger": """
        INSERT INTO credit_ledger (entry_id, account_id, kind, amount, call_id, agent_run_id, model_name, usage,
            created_at)
        SELECT id_of('entry', n), account_of(n, {accounts}), 'debit', -n, id_of('call', n), id_of('run', n),
            'demo/echo', '{{"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}}',
            moment_of(n, {runs})
        FROM {numbers}
    """,
    "messages": """
        INSERT INTO messages (message_id, position, thread_id, agent_run_id, type, content, created_at, updated_at)
        OVERRIDING SYSTEM VALUE
        SELECT id_of('message', n), n + 1, id_of('thread', thread), id_of('run', thread),
            CASE WHEN n % 10 < 3 THEN 'user' ELSE 'assistant' END,
            jsonb_build_object('role', 'assistant', 'content', repeat(md5(n::text), 5)),
            moment_of(n, {messages}), moment_of(n, {messages})
        FROM {numbers} CROSS JOIN LATERAL (SELECT thread_number(n, {runs}) AS thread) AS of_message
    """,
}


TABLES = tuple(ROWS)


def count_of(table: str, sizes: Sizes) -> int:
    if table in ("accounts", "account_members"):
        return sizes.accounts
    if table in ("agents", "agent_versions"):
        return sizes.agents
    counts = {"messages": sizes.messages, "idempotency_keys": sizes.keys}
    return counts.get(table, sizes.runs)


def parts_of(sizes: Sizes) -> Iterator[tuple[str, int, int]]:
    """Tables with the first and the last number of the rows that one statement makes."""
    for table in TABLES:
        count = count_of(table, sizes)
        edges = [count * part // PARTS for part in range(PARTS + 1)]
        yield from ((table, first, last - 1) for first, last in itertools.pairwise(edges) if last > first)


def statement(table: str, first: int, last: int, sizes: Sizes) -> str:
    return ROWS[table].format(
        numbers=NUMBERS.format(first=first, last=last),
        live=min(LIVE, sizes.runs // 20),
        accounts=sizes.accounts,
        agents=sizes.agents,
        keys=sizes.keys,
        runs=sizes.runs,
        messages=sizes.messages,
    )


async def fill(url: str, sizes: Sizes, progress: Progress) -> None:
    """Fill an empty, migrated database that is nobody's."""
    conn = await asyncpg.connect(url)
    try:
        await conn.execute(FUNCTIONS)
        later = await put_aside_indexes(conn)
        await load(url, "rows", [statement(*part, sizes) for part in parts_of(sizes)], progress)
        await load(url, "indexes", later, progress)
        await conn.execute("ALTER TABLE messages ADD CONSTRAINT messages_pkey PRIMARY KEY USING INDEX messages_pkey")
        await conn.execute("SELECT setval('messages_position_seq', (SELECT max(position) FROM messages))")
        await load(url, "vacuum", [f"VACUUM (ANALYZE) {table}" for table in reversed(TABLES)], progress)
    finally:
        await conn.close()


async def put_aside_indexes(conn: Connection) -> list[str]:
    """Drop what can be built when the rows are in; returns the statements that do so, the longest work first."""
    rows = await conn.fetch(
        """
        SELECT indexname AS name, indexdef AS definition FROM pg_indexes
        WHERE schemaname = 'public' AND tablename IN ('messages', 'agent_runs', 'threads', 'projects')
            AND NOT EXISTS (SELECT FROM pg_constraint WHERE conname = indexname)
        ORDER BY tablename = 'messages' DESC, indexname
        """
    )
    for row in rows:
        await conn.execute(f"DROP INDEX {row['name']}")
    await conn.execute("ALTER TABLE messages DROP CONSTRAINT messages_pkey")
    return ["CREATE UNIQUE INDEX messages_pkey ON messages (message_id)", *(row["definition"] for row in rows)]


async def load(url: str, what: str, statements: Sequence[str], progress: Progress) -> None:
    """Run statements that do not depend on each other, some at a time, without checks of foreign keys."""
    waiting = list(reversed(statements))

    async def loader(told: Advance) -> None:
        conn = await asyncpg.connect(url, server_settings={"session_replication_role": "replica"})
        try:
            while waiting:
                await conn.execute(waiting.pop())
                told()
        finally:
            await conn.close()

    with progress.steps(what, len(statements)) as told:
        await asyncio.gather(*(loader(told) for _ in range(LOADERS)))


async def hurry(conn: Connection) -> None:
    """Let the server give up durability while it is filled. Only for a server of one's own."""
    for name, value in QUICK.items():
        await conn.execute(f"ALTER SYSTEM SET {name} = {value}")
    await conn.execute("SELECT pg_reload_conf()")


async def settle(conn: Connection) -> None:
    """As the server was before, with all that was written on disk."""
    await conn.execute("ALTER SYSTEM RESET ALL")
    await conn.execute("SELECT pg_reload_conf()")
    await conn.execute("CHECKPOINT")
