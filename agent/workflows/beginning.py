"""What an execution begins with: a workflow that may be executed, its variables, a model. Whoever asks for it."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from agent.catalog import resolve_model
from agent.workflows import brief, inputs
from agent.workflows.definition import Definition
from services.errors import Conflict
from services.settings import Settings
from services.workflow_executions import NewExecution
from services.workflows import Workflow

PAUSED = "This workflow is paused."
EMPTY = "This workflow has no steps yet."


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody asks of a workflow; `on_active` is what becomes of unfinished runs of its project."""

    variables: dict[str, Any] = field(default_factory=dict)
    model_name: str | None = None
    deterministic: bool = True
    triggered_by: str = "MANUAL"
    created_by: UUID | None = None
    on_active: str = "queue"
    priority: int = 5
    metadata: dict[str, Any] = field(default_factory=dict)
    webhook_url: str | None = None
    delay: timedelta | None = None


def new_execution(settings: Settings, workflow: Workflow, asked: Asked) -> NewExecution:
    """To be started with `workflow_executions.start`; whether the account may pay for it is not asked here.

    Raises: Conflict for a workflow that is paused or has no steps; BadInput naming a variable; Unprocessable naming
    `model_name`.
    """
    definition = Definition.model_validate(workflow.definition)
    if workflow.state == "PAUSED" or not definition.steps:
        raise Conflict(PAUSED if definition.steps else EMPTY)
    variables = inputs.read(definition, asked.variables)
    told = None if asked.deterministic else brief.brief(workflow.name, workflow.description, definition, variables)
    return NewExecution(
        workflow=workflow,
        model_name=resolve_model(settings, asked.model_name),
        variables=variables,
        deterministic=asked.deterministic,
        triggered_by=asked.triggered_by,
        created_by=asked.created_by,
        brief=told,
        on_active=asked.on_active,
        priority=asked.priority,
        metadata=asked.metadata,
        webhook_url=asked.webhook_url,
        delay=asked.delay,
        settings={"workflow_tools": brief.tools(definition)},
    )
