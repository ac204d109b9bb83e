"""The run of an execution that a message names; one that has none yet is given one."""

from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

from agent.workflows import beginning
from agent.workflows.beginning import Asked
from services import workflow_executions, workflows
from services.errors import NotFound
from services.log import logger
from services.postgres import Connection, transaction
from services.runs.naming import about
from services.workflow_executions import Execution, NewExecution
from worker.process import Process


async def run_of(
    process: Process, execution_id: UUID, workflow_id: UUID | None, variables: dict[str, Any], triggered_by: str
) -> UUID:
    """The run that executes it, made with a thread in one transaction if need be.

    An execution that has no row is begun if its workflow is known: of both the row counts, never the message.
    Raises: NotFound, Conflict, TooManyRequests, BadInput: such a message becomes a dead letter, which can be replayed.
    """
    known = await workflow_executions.run_of(process.stores.pool, execution_id)
    if known:
        return known.id
    async with transaction(process.stores.pool) as conn:
        execution = await workflow_executions.lock(conn, execution_id)
        if execution and execution.agent_run_id:
            return execution.agent_run_id
        new = await wanted(conn, process, execution_id, execution, workflow_id, variables, triggered_by)
        started = await workflow_executions.start(conn, uuid4(), new, process.settings.limits)
    logger.info("run.queued", kind=started.run.kind, phase=started.run.phase, **about(started.run))
    return started.run.id


async def wanted(
    conn: Connection,
    process: Process,
    execution_id: UUID,
    execution: Execution | None,
    workflow_id: UUID | None,
    variables: dict[str, Any],
    triggered_by: str,
) -> NewExecution:
    """What is to be begun, of the workflow as it is now. Raises: NotFound, Conflict, BadInput."""
    named = execution.workflow_id if execution else workflow_id
    workflow = await workflows.find(conn, named) if named else None
    if workflow is None:
        raise NotFound(workflows.MISSING)
    asked = Asked(
        variables=execution.variables if execution else variables,
        deterministic=execution.deterministic if execution else True,
        triggered_by=execution.triggered_by if execution else triggered_by or "MESSAGE",
        created_by=execution.created_by if execution else None,
    )
    return replace(beginning.new_execution(process.settings, workflow, asked), execution_id=execution_id)
