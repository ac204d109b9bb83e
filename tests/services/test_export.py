"""What an export takes of the process that writes it."""

import tracemalloc
from secrets import token_hex
from uuid import uuid4

from services import accounts, export, messages, projects, threads
from services.messages import NewMessage
from services.postgres import Pool, transaction

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
