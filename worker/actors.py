"""The actors: what a message may wake. The row is the truth; arguments inform."""

from typing import Any
from uuid import UUID

import dramatiq

from services.broker import HEALTH_QUEUE, RUN_QUEUE
from services.log import logger
from services.redis import Unreachable
from worker import runner
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
    **extra: Any,
) -> None:
    """Drive one agent run as far as it goes here."""
    try:
        run_id = UUID(str(agent_run_id))
    except ValueError:
        logger.error("run.unknown", agent_run_id=str(agent_run_id)[:80])
        return
    await runner.drive(await current_process(), run_id)


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
    """Workflows are not built yet: a message for one becomes a dead letter, which can be replayed when they are."""
    raise NotImplementedError("workflows are not built yet")
