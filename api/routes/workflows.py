"""Workflows: their definitions."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field

from agent.workflows import checking
from agent.workflows.configs import AgentConfig, StepId
from agent.workflows.definition import MAX_STEPS, MAX_TRIGGERS, Definition, State, Step, Trigger
from agent.workflows.templates import TEMPLATES, Template
from api.deps import CallerDep, PoolDep, ResourcesDep
from api.errors import invalid, validated
from api.paging import PageQuery, Pagination, pagination
from api.routes.projects import Deleted
from api.routes.starts import model_of
from services import workflow_executions, workflows
from services.agent_fields import Description, Name
from services.postgres import transaction
from services.runs import stopping
from services.settings import Settings
from services.workflows import Change, ListedWorkflow, Workflow

router = APIRouter(prefix="/workflows", tags=["workflows"])

MAX_WORKFLOWS = 100
PARTS = tuple(Definition.model_fields)
"""The fields of a request that make a version."""

WorkflowsQuery = Annotated[int, Query(ge=1, le=MAX_WORKFLOWS)]


class DefinitionOut(BaseModel):
    """`steps[].config` is as it was given; `max_execution_time` is in seconds."""

    steps: list[dict[str, Any]]
    entry_point: str | None
    triggers: list[dict[str, Any]]
    max_execution_time: int
    max_retries: int


class WorkflowListed(BaseModel):
    id: UUID
    account_id: UUID
    project_id: UUID | None
    agent_id: UUID | None
    name: str
    description: str
    state: State
    version: int
    created_at: datetime
    updated_at: datetime


class WorkflowOut(WorkflowListed, DefinitionOut):
    pass


class WorkflowPage(BaseModel):
    workflows: list[WorkflowListed]
    pagination: Pagination


class TemplateOut(DefinitionOut):
    id: str
    name: str
    description: str


class Templates(BaseModel):
    templates: list[TemplateOut]


class WorkflowPatch(BaseModel):
    name: Name | None = None
    description: Description | None = None
    state: State | None = None
    project_id: UUID | None = None
    agent_id: UUID | None = None
    steps: Annotated[list[Step], Field(max_length=MAX_STEPS)] | None = None
    entry_point: StepId | None = None
    triggers: Annotated[list[Trigger], Field(max_length=MAX_TRIGGERS)] | None = None
    max_execution_time: int | None = None
    max_retries: int | None = None

    @property
    def details(self) -> dict[str, Any]:
        given = self.model_dump(include=set(workflows.DETAILS))
        return {name: value for name, value in given.items() if value is not None}

    def definition(self, settings: Settings, before: dict[str, Any] | None, state: str) -> dict[str, Any]:
        """The whole definition that this makes of the one before, as JSON.

        Raises: RequestValidationError naming step and field.
        """
        given = self.model_dump(mode="json", include=set(PARTS))
        parts = {name: value for name, value in given.items() if value is not None}
        whole = validated(Definition, {**(before or {}), **parts})
        require_sound(settings, whole, state)
        return whole.model_dump(mode="json")


class WorkflowIn(WorkflowPatch):
    name: Name
    state: State = "DRAFT"


def require_sound(settings: Settings, definition: Definition, state: str) -> None:
    """Raises: RequestValidationError for a definition that cannot be executed. A draft may still be without steps."""
    if not definition.steps and state != "DRAFT":
        raise invalid("steps", f"a workflow that is {state} needs steps")
    found = checking.problems(definition)
    if found:
        said = [{"type": "value_error", "loc": ("body", *each.place), "msg": each.words} for each in found]
        raise RequestValidationError(said)
    for number, step in enumerate(definition.steps):
        if isinstance(step.told, AgentConfig) and step.told.model_name:
            require_model(settings, number, step, step.told.model_name)


def require_model(settings: Settings, number: int, step: Step, name: str) -> None:
    try:
        model_of(settings, name)
    except RequestValidationError as error:
        place = ("body", "steps", number, "config", "model_name")
        words = f"step {step.id}: {error.errors()[0]['msg']}"
        raise RequestValidationError([{"type": "value_error", "loc": place, "msg": words}]) from error


def shown(workflow: Workflow) -> WorkflowOut:
    return WorkflowOut(**listed(workflow).model_dump(), **DefinitionOut(**workflow.definition).model_dump())


def listed(workflow: ListedWorkflow) -> WorkflowListed:
    return WorkflowListed(
        id=workflow.workflow_id,
        account_id=workflow.account_id,
        project_id=workflow.project_id,
        agent_id=workflow.agent_id,
        name=workflow.name,
        description=workflow.description,
        state=workflow.state,
        version=workflow.version,
        created_at=workflow.created_at,
        updated_at=workflow.updated_at,
    )


@router.get("")
async def list_workflows(
    caller: CallerDep, pool: PoolDep, page: PageQuery = 1, limit: WorkflowsQuery = 20, state: State | None = None
) -> WorkflowPage:
    """The account's workflows without their steps, newest first."""
    offset = (page - 1) * limit
    async with pool.acquire() as conn:
        found, total = await workflows.page(conn, caller.account_id, state=state, limit=limit, offset=offset)
    return WorkflowPage(workflows=[listed(each) for each in found], pagination=pagination(page, limit, total))


@router.post("")
async def create_workflow(asked: WorkflowIn, caller: CallerDep, resources: ResourcesDep) -> WorkflowOut:
    """A workflow with its first version; 422 names the step and the field that are wrong."""
    change = Change(asked.details, asked.definition(resources.settings, None, asked.state))
    async with transaction(resources.pool) as conn:
        return shown(await workflows.create(conn, caller.account_id, change, created_by=caller.user_id))


@router.get("/templates")
async def list_templates(caller: CallerDep) -> Templates:
    """Workflows to begin with: what is posted as a workflow may be one of these, changed or not."""
    return Templates(templates=[shown_template(each) for each in TEMPLATES])


def shown_template(template: Template) -> TemplateOut:
    definition = Definition.model_validate(template.definition).model_dump(mode="json")
    return TemplateOut(id=template.id, name=template.name, description=template.description, **definition)


@router.get("/{workflow_id}")
async def get_workflow(workflow_id: UUID, caller: CallerDep, pool: PoolDep) -> WorkflowOut:
    async with pool.acquire() as conn:
        return shown(await workflows.get(conn, caller.account_id, workflow_id))


@router.put("/{workflow_id}")
async def change_workflow(
    workflow_id: UUID, asked: WorkflowPatch, caller: CallerDep, resources: ResourcesDep
) -> WorkflowOut:
    """What is absent or null stays. Other steps, triggers or limits make a version; what runs keeps its own."""
    async with transaction(resources.pool) as conn:
        before = await workflows.lock(conn, caller.account_id, workflow_id)
        definition = asked.definition(resources.settings, before.definition, asked.state or before.state)
        change = Change(asked.details, definition)
        return shown(await workflows.change(conn, caller.account_id, workflow_id, change, created_by=caller.user_id))


@router.delete("/{workflow_id}")
async def delete_workflow(workflow_id: UUID, caller: CallerDep, resources: ResourcesDep) -> Deleted:
    """Stops its executions; versions and executions go with it, runs and their threads stay."""
    async with resources.pool.acquire() as conn:
        await workflows.get(conn, caller.account_id, workflow_id)
        live = await workflow_executions.live_runs(conn, workflow_id)
    if live:
        await stopping.request_stops(resources.stores, live)
    async with transaction(resources.pool) as conn:
        await workflows.lock_out(conn, caller.account_id, workflow_id)
        begun = set(await workflow_executions.live_runs(conn, workflow_id)).difference(live)
        await workflows.delete(conn, caller.account_id, workflow_id)
    if begun:
        await stopping.request_stops(resources.stores, list(begun))
    return Deleted(message="Workflow deleted.")
