"""What has happened in an execution, written down before anything else happens, and read again by the next attempt."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from agent.context import RunContext, RunFailed
from agent.thread_manager import patiently
from agent.workflows import values
from agent.workflows.values import Frame, Values
from services import workflow_executions, workflow_steps
from services.postgres import Connection, dump_json
from services.workflow_executions import Execution
from services.workflow_steps import Outcome, Visit

MAX_BYTES = 32 * 1024 * 1024
"""Of the inputs and outputs of all visits: an attempt that takes over reads them."""
LAST_SECONDS = 0.5
DELETED = "The workflow of this run was deleted."


class Journal:
    """All visits of one execution; waits while Postgres is away. Every method that writes raises FenceLost."""

    def __init__(self, ctx: RunContext, execution: Execution, visits: list[Visit]) -> None:
        self.ctx, self.execution = ctx, execution
        self.visits = {(visit.step_id, visit.visit): visit for visit in visits}
        named = {"id": str(execution.execution_id), "workflow_id": str(execution.workflow_id)}
        named["workflow_name"] = execution.workflow_name
        self.values: Values = values.of_visits(named, execution.variables, visits)
        self.bytes = sum(map(size_of, visits))
        self.finished = max((visit.finished or 0 for visit in visits), default=0)

    @classmethod
    async def open(cls, ctx: RunContext) -> "Journal":
        """Raises: RunFailed when the workflow was deleted."""

        async def read(conn: Connection) -> tuple[Execution | None, list[Visit]]:
            execution = await workflow_executions.of_run(conn, ctx.run.id)
            return execution, await workflow_steps.load(conn, execution.execution_id) if execution else []

        execution, visits = await patiently(ctx, read)
        if execution is None:
            raise RunFailed(DELETED)
        return cls(ctx, execution, visits)

    def find(self, step_id: str, frame: Frame) -> Visit | None:
        return self.visits.get((step_id, frame.visit))

    @property
    def newest(self) -> list[Visit]:
        """Those that have ended, in the order in which they did."""
        return sorted((v for v in self.visits.values() if v.finished is not None), key=lambda v: v.finished or 0)

    async def begin(
        self,
        step_id: str,
        frame: Frame,
        inputs: dict[str, Any],
        *,
        wait: timedelta | None = None,
        until: datetime | None = None,
    ) -> Visit:
        def write(conn: Connection) -> Awaitable[Visit]:
            fence, execution_id = self.ctx.fence, self.execution.execution_id
            return workflow_steps.begin(
                conn, fence, execution_id, step_id, frame.visit, inputs=inputs, wait=wait, until=until
            )

        return await self.keep(write)

    async def end(self, step_id: str, frame: Frame, outcome: Outcome) -> Visit:
        """Write down how a visit ended; from now on its values count. Raises: RunFailed when they become too many."""
        self.finished += 1
        visit = await self.note(step_id, frame, replace(outcome, finished=self.finished))
        self.values.take(visit)
        self.bytes += size_of(visit)
        if self.bytes > MAX_BYTES:
            raise RunFailed(f"The workflow was ended: what its steps gave is more than {MAX_BYTES:,} bytes.")
        return visit

    async def note(self, step_id: str, frame: Frame, outcome: Outcome) -> Visit:
        """Write down how far a visit is."""

        def write(conn: Connection) -> Awaitable[Visit]:
            fence, execution_id = self.ctx.fence, self.execution.execution_id
            return workflow_steps.note(conn, fence, execution_id, step_id, frame.visit, outcome)

        return await self.keep(write)

    async def keep(self, write: Callable[[Connection], Awaitable[Visit]]) -> Visit:
        """What was done is written down also when the run is let go in this moment."""
        writing = asyncio.ensure_future(patiently(self.ctx, write))
        try:
            visit = await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait({writing}, timeout=LAST_SECONDS)
            writing.cancel()
            raise
        self.visits[visit.step_id, visit.visit] = visit
        return visit

    async def is_due(self, moment: datetime) -> bool:
        return await patiently(self.ctx, lambda conn: workflow_steps.is_due(conn, moment))


def size_of(visit: Visit) -> int:
    return sum(len(dump_json(value)) for value in (visit.inputs, visit.output, visit.sets))
