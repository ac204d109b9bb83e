"""Whether those who follow a stream may still do so."""

from collections.abc import Sequence

from services.api_keys import ACTIVE
from services.postgres import Executor
from services.stream_tokens import StreamPass


async def still_good(conn: Executor, passes: Sequence[StreamPass]) -> list[bool]:
    """For each pass, whether its run can be read by the account, and whoever it admits belongs to that account.

    One statement, whatever their number; callers hand over at most a thousand.
    """
    rows = await conn.fetch(
        f"""
        SELECT asked.number FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[]) WITH ORDINALITY
            AS asked (run_id, account_id, user_id, key_id, number)
        JOIN agent_runs r ON r.id = asked.run_id
        JOIN threads t ON t.thread_id = r.thread_id
        JOIN projects p ON p.project_id = t.project_id
        WHERE (t.account_id = asked.account_id OR t.is_public OR p.is_public)
          AND (asked.account_id = asked.user_id OR EXISTS (
              SELECT FROM account_members m WHERE m.account_id = asked.account_id AND m.user_id = asked.user_id))
          AND (asked.key_id IS NULL OR EXISTS (SELECT FROM api_keys k WHERE k.key_id = asked.key_id AND {ACTIVE}))
        """,
        [each.run_id for each in passes],
        [each.account_id for each in passes],
        [each.user_id for each in passes],
        [each.key_id for each in passes],
    )
    good = {row["number"] for row in rows}
    return [number in good for number in range(1, len(passes) + 1)]
