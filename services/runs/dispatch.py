"""Waking workers: messages for queued runs, and the note in the row once the broker has one."""

import asyncio
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from dramatiq import Message
from structlog.contextvars import bound_contextvars

from services import metrics, origin
from services.background import repeat, stop
from services.broker import RUN_QUEUE, queue_length, run_message, workflow_message
from services.log import logger
from services.origin import NOWHERE, Origin
from services.postgres import Pool, Unreachable
from services.publisher import Publisher
from services.runs.naming import about
from services.runs.store import Run
from services.settings import Settings
from services.tracing import UNTRACED, Tracing

NOTE_INTERVAL_SECONDS = 0.05


class Dispatch:
    """Sends without ever waiting for the broker; what is not confirmed is sent again by the sweeper."""

    def __init__(self, settings: Settings, pool: Pool, tracing: Tracing = UNTRACED) -> None:
        self.publisher, self.pool, self.tracing = Publisher(settings), pool, tracing
        self.confirmed: dict[UUID, datetime | None] = {}
        """Runs whose message the broker has, and when a message was last tried as their row said at the sending."""
        self.news = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def open(self) -> None:
        self.publisher.open()
        self.task = asyncio.create_task(repeat(self.note_news), name="dispatch notes")

    async def close(self) -> None:
        await self.publisher.close()
        await stop([self.task] if self.task else [])
        await self.note()

    def send_run(self, run: Run) -> bool:
        """Hand the run's message to the publisher; False when its outbox is full. Never blocks."""
        sending = self.tracing.message(run)
        came_from = origin.of_row(run.settings)
        message = message_of(run, replace(came_from, traceparent=sending.traceparent or came_from.traceparent))

        def confirmed(sent: bool) -> None:
            sending.over(failed=not sent)
            self.take_note(run, sent)

        with bound_contextvars(**about(run)):
            handed_over = self.publisher.send(message, confirmed)
            if not handed_over:
                metrics.messages_sent.labels("outbox full").inc()
                sending.over(failed=True)
                logger.warning("run.not_sent", reason="the outbox is full")
        return handed_over

    async def queue_is_empty(self) -> bool:
        """Raises: Unavailable when the broker does not answer within two seconds."""
        return await self.publisher.call(lambda broker: queue_length(broker, RUN_QUEUE), 2.0) == 0

    async def ping(self, timeout_seconds: float) -> None:
        """Raises: Unavailable when the broker does not answer."""
        await self.publisher.ping(timeout_seconds)

    def take_note(self, run: Run, sent: bool) -> None:
        metrics.messages_sent.labels("sent" if sent else "failed").inc()
        if sent:
            self.confirmed[run.id] = run.message_tried_at
            self.news.set()

    async def note_news(self) -> None:
        """A moment later: a run that was claimed meanwhile needs no note, and its claim is not held up by one."""
        await self.news.wait()
        await asyncio.sleep(NOTE_INTERVAL_SECONDS)
        self.news.clear()
        await self.note()

    async def note(self) -> None:
        """One statement for all that was confirmed; a note that is lost costs a second message, no more.

        Not noted is a message that was spent meanwhile (`store.forget_message`): nobody would send another.
        """
        confirmed, self.confirmed = self.confirmed, {}
        if not confirmed:
            return
        try:
            await self.pool.execute(
                """
                UPDATE agent_runs SET message_sent_at = now()
                FROM unnest($1::uuid[], $2::timestamptz[]) AS sent (run_id, tried_at)
                WHERE id = run_id AND status = 'queued' AND message_tried_at IS NOT DISTINCT FROM tried_at
                """,
                sorted(confirmed),
                [confirmed[run_id] for run_id in sorted(confirmed)],
            )
        except Unreachable as error:
            logger.warning("dispatch.not_noted", count=len(confirmed), error=repr(error))


def message_of(run: Run, came_from: Origin = NOWHERE) -> Message[Any]:
    if run.kind != "workflow":
        return run_message(
            run.id,
            run.thread_id,
            run.project_id,
            run.model_name,
            priority=run.priority,
            attempt=run.attempt,
            came_from=came_from,
        )
    named = {name: str(run.settings.get(name, "")) for name in ("execution_id", "workflow_id", "workflow_name")}
    triggered_by = str(run.settings.get("triggered_by", ""))
    return workflow_message(
        run_id=run.id, triggered_by=triggered_by, priority=run.priority, came_from=came_from, **named
    )
