"""The actors: what a message may wake. The row is the truth; arguments inform."""

from typing import Any
from uuid import UUID

import dramatiq

from services.broker import HEALTH_QUEUE, RUN_QUEUE
from services.log import logger
from services.redis import Unreachable
from worker import executions, runner
from worker.runtime import current_process

HEALTH_KEY_SECONDS = 60


@dramatiq.actor(queue_name=HEALTH_QUEUE)
async def check_health(key: str) -> None:
    """Set `key` to `healthy` for a minute: a worker takes messages and reaches Redis."""
    process = await current_process()
    try:
        await process.stores.shards.home.redis.set(str(key), "healthy", ex=HEALTH_KEY_SECONDS)
    except Unreachable as error:
        logger.warning("health.not_said", error=repr(error))  # the missing key says it


@dramatiq.actor(queue_name=RUN_QUEUE)
async def run_agent_background(
    agent_run_id: str,
    thread_id: str = "",
    instance_id: str = "",
    project_id: str = "",
    model_name: str = "",
    attempt: int | None = None,
    **extra: Any,
) -> None:
    """Drive one agent run as far as it goes here."""
    run_id = uuid_of(agent_run_id)
    if run_id is None:
        logger.error("run.unknown", agent_run_id=str(agent_run_id)[:80])
        return
    await runner.drive(await current_process(), run_id, unclaimed=attempt == 0)


@dramatiq.actor(queue_name=RUN_QUEUE)
async def run_workflow_background(
    execution_id: str,
    workflow_id: str = "",
    workflow_name: str = "",
    workflow_definition: dict[str, Any] | None = None,
    variables: dict[str, Any] | None = None,
    triggered_by: str = "",
    **extra: Any,
) -> None:
    """Drive one execution of a workflow as far as it goes here; one that has no run yet is given one.

    Raises: as `executions.run_of`.
    """
    process = await current_process()
    run_id = uuid_of(extra.get("agent_run_id"))
    if run_id is None:
        given = variables if isinstance(variables, dict) else {}
        run_id = await executions.run_of(process, UUID(execution_id), uuid_of(workflow_id), given, str(triggered_by))
    await runner.drive(process, run_id)


def uuid_of(value: object) -> UUID | None:
    try:
        return UUID(str(value))
    except ValueError:
        return None
