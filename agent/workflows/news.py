"""What readers are told of an execution, beside what its agent says. Pure."""

from typing import Any
from uuid import UUID

from agent.workflows.definition import Step
from services.postgres import dump_json
from services.runs.events import Event, shorten
from services.workflow_executions import Execution
from services.workflow_steps import Visit

SHOWN_BYTES = 16 * 1024


def of_workflow(kind: str, execution: Execution, run_id: UUID, **said: Any) -> Event:
    """`workflow_started`, `workflow_completed`, `workflow_failed`."""
    return event(kind, execution, run_id, workflow_name=execution.workflow_name, **said)


def of_step(kind: str, step: Step, visit: str, execution: Execution, run_id: UUID, **said: Any) -> Event:
    """`step_started`, `step_completed`, `step_failed`, `step_retrying`, `step_waiting`; `visit` is which time it is."""
    known = {"step_id": step.id, "step_name": step.title, "step_type": step.type, "visit": visit}
    return event(kind, execution, run_id, **known, **said)


def of_ended(step: Step, visit: Visit, execution: Execution, run_id: UUID) -> Event:
    said = {"output": shown(visit.output)} if visit.status == "completed" else {"error": visit.error}
    return of_step(f"step_{visit.status}", step, visit.visit, execution, run_id, **said)


def shown(output: Any) -> Any:
    """A large output is cut down; the execution has all of it."""
    return output if len(dump_json(output)) <= SHOWN_BYTES else shorten(output, SHOWN_BYTES)


def event(kind: str, execution: Execution, run_id: UUID, **said: Any) -> Event:
    named = {"execution_id": str(execution.execution_id), "workflow_id": str(execution.workflow_id)}
    return Event("workflow_status", {"status_type": kind, **named, **said}, {"thread_run_id": str(run_id)})
