"""Runs as those who open a stream need them; looked up together when many are opened in the same moments."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from services.postgres import Executor


@dataclass(frozen=True, slots=True)
class Readable:
    """A run that the asking account may read, and what its row says of the end."""

    id: UUID
    final: bool
    event_count: int | None


@dataclass(frozen=True, slots=True)
class Question:
    account_id: UUID
    run_id: UUID


async def find_all(conn: Executor, questions: Sequence[Question]) -> list[Readable | None]:
    """For each question its run; None alike for a run of somebody else that is not public and one that is not there."""
    rows = await conn.fetch(
        """
        SELECT asked.n, r.id, r.completed_at IS NOT NULL AS final, r.event_count
        FROM unnest($1::uuid[], $2::uuid[]) WITH ORDINALITY AS asked(account_id, run_id, n)
            JOIN agent_runs r ON r.id = asked.run_id
            JOIN threads t ON t.thread_id = r.thread_id
            JOIN projects p ON p.project_id = t.project_id
        WHERE t.account_id = asked.account_id OR t.is_public OR p.is_public
        """,
        [question.account_id for question in questions],
        [question.run_id for question in questions],
    )
    found = {row["n"]: Readable(row["id"], row["final"], row["event_count"]) for row in rows}
    return [found.get(number) for number in range(1, len(questions) + 1)]
