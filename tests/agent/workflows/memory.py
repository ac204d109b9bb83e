"""A journal without a database, for executions by the thousand."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import uuid4

from agent.context import RunContext
from agent.workflows import values
from agent.workflows.journal import Journal
from agent.workflows.values import Frame
from services.runs.fence import Fence
from services.runs.store import Run
from services.settings import Settings
from services.workflow_executions import Execution
from services.workflow_steps import Outcome, Visit
from tests.agent.seeds import RecordingLog

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Memory(Journal):
    ctx: RunContext
    execution: Execution
    visits: dict[tuple[str, str], Visit] = field(default_factory=dict)
    finished: int = 0
    bytes: int = 0

    def __post_init__(self) -> None:
        named = {"id": str(self.execution.execution_id)}
        self.values = values.of_visits(named, self.execution.variables, self.visits.values())
        self.now = NOW

    async def begin(
        self,
        step_id: str,
        frame: Frame,
        inputs: dict[str, Any],
        *,
        wait: timedelta | None = None,
        until: datetime | None = None,
    ) -> Visit:
        wake_at = until or (self.now + wait if wait is not None else None)
        begun = blank(step_id, frame.visit, inputs=inputs, wake_at=wake_at)
        return self.visits.setdefault((step_id, frame.visit), begun)

    async def note(self, step_id: str, frame: Frame, outcome: Outcome) -> Visit:
        known = self.visits.get((step_id, frame.visit)) or blank(step_id, frame.visit, inputs=outcome.inputs)
        noted = replace(
            known,
            status=outcome.status,
            output=outcome.output,
            sets=outcome.sets,
            usage=outcome.usage,
            error=outcome.error,
            tries=outcome.tries,
            finished=outcome.finished,
        )
        self.visits[step_id, frame.visit] = noted
        return noted

    async def is_due(self, moment: datetime) -> bool:
        return moment <= self.now


def blank(step_id: str, visit: str, **known: Any) -> Visit:
    usual = {"position": 0, "status": "running", "tries": 0, "output": None, "sets": {}, "usage": {}, "error": None}
    usual |= {"wake_at": None}
    return Visit(step_id=step_id, visit=visit, finished=None, started_at=NOW, completed_at=None, **{**usual, **known})


def memory_of(definition: dict[str, Any], variables: dict[str, Any]) -> Memory:
    none = cast(Any, None)
    named: dict[str, Any] = dict.fromkeys(Run.__slots__)
    run = Run(**{**named, "id": uuid4(), "attempt": 1, "kind": "workflow"})
    ctx = RunContext(run, Fence(run.id, 1, "worker"), RecordingLog(), none, none, Settings())
    execution = Execution(
        execution_id=uuid4(),
        workflow_id=uuid4(),
        version_id=uuid4(),
        agent_run_id=run.id,
        deterministic=True,
        variables=variables,
        triggered_by="MANUAL",
        created_by=None,
        created_at=NOW,
        workflow_name="Random",
        workflow_description="",
        definition=definition,
    )
    return Memory(ctx, execution)
