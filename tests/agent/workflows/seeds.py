"""Executions that tests of the engine start from: real rows, a recording log, as many attempts as are wanted."""

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from httpx2 import AsyncClient

from agent.context import RunContext
from agent.tools.base import Registry
from agent.workflows import brief, checking, engine
from agent.workflows.definition import Definition
from services import workflow_executions, workflow_steps, workflows
from services.postgres import Pool, transaction
from services.runs import store
from services.runs.fence import Fence
from services.runs.store import Run
from services.settings import Settings
from services.workflow_executions import NewExecution
from services.workflow_steps import Visit
from services.workflows import Change
from tests.agent.seeds import RecordingLog


@dataclass
class World:
    """One execution, and what attempts at it may touch."""

    pool: Pool
    http: AsyncClient
    settings: Settings
    run_id: UUID
    execution_id: UUID
    tools: Registry | None = None
    logs: list[RecordingLog] = field(default_factory=list)

    async def row(self) -> Run:
        run = await store.get(self.pool, self.run_id)
        assert run
        return run

    async def attempt(self) -> RunContext:
        """The next attempt's context: the fence of every earlier one is lost."""
        await self.pool.execute(
            """
            UPDATE agent_runs SET attempt = attempt + 1, status = 'running', instance_id = 'worker',
                started_at = coalesce(started_at, now()), updated_at = now() WHERE id = $1
            """,
            self.run_id,
        )
        run = await self.row()
        self.logs.append(RecordingLog())
        fence = Fence(run.id, run.attempt, "worker")
        return RunContext(run, fence, self.logs[-1], self.pool, self.http, self.settings, tools=self.tools)

    async def run(self) -> RunContext:
        """One attempt from where the one before it left off. Raises: what the engine raises."""
        ctx = await self.attempt()
        await engine.run_workflow(ctx)
        return ctx

    async def visits(self) -> dict[str, Visit]:
        """All visits, by `step` or `step:visit` where there is more than one."""
        found = await workflow_steps.load(self.pool, self.execution_id)
        return {each.step_id if each.visit == "0" else f"{each.step_id}:{each.visit}": each for each in found}

    async def outputs(self) -> dict[str, Any]:
        return {name: visit.output for name, visit in (await self.visits()).items()}

    @property
    def told(self) -> list[str]:
        """What the last attempt said of the workflow: `kind step`."""
        events = [event for event in self.logs[-1].events if event.type == "workflow_status"]
        return [
            f"{each.content['status_type'].removeprefix('step_')} {each.content.get('step_id', '')}".strip()
            for each in events
        ]


async def make_world(
    pool: Pool,
    http: AsyncClient,
    settings: Settings,
    *steps: dict[str, Any],
    variables: dict[str, Any] | None = None,
    model: str = "openai/script-text",
    deterministic: bool = True,
    tools: Registry | None = None,
    **fields: Any,
) -> World:
    """An execution of a workflow of these steps, the first of which is its entry."""
    definition = Definition.model_validate({"entry_point": steps[0]["id"], "steps": list(steps), **fields})
    assert checking.problems(definition) == []
    account_id = uuid4()
    async with transaction(pool) as conn:
        await conn.execute("INSERT INTO accounts (account_id, name) VALUES ($1, $2)", account_id, str(account_id))
        details = {"name": "Garden", "state": "ACTIVE"}
        workflow = await workflows.create(conn, account_id, Change(details, definition.model_dump(mode="json")))
        said = None if deterministic else brief.brief(workflow.name, "", definition, variables or {})
        new = NewExecution(workflow, model, variables or {}, deterministic, brief=said)
        started = await workflow_executions.start(conn, uuid4(), new, settings.limits)
    return World(pool, http, settings, started.run.id, new.execution_id, tools)
