"""Rows and doubles that tests of the agent start from."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import orjson
from httpx2 import AsyncClient

from agent.context import RunContext
from services import messages
from services.messages import NewMessage
from services.postgres import Connection, Pool
from services.runs import store
from services.runs.events import Event
from services.runs.fence import Fence
from services.runs.store import Run
from services.settings import ModelSettings, Settings
from tests.fakes import FakeModel


@dataclass
class RecordingLog:
    """A log that only remembers what was said."""

    events: list[Event] = field(default_factory=list)

    async def append(self, *events: Event) -> None:
        self.events.extend(events)

    def said(self, stream_status: str) -> list[Event]:
        return [event for event in self.events if event.metadata.get("stream_status") == stream_status]

    @property
    def chunks(self) -> str:
        return "".join(event.content["content"] for event in self.said("chunk"))

    @property
    def kinds(self) -> list[str]:
        """Each event in a word, repeated ones once."""
        words = [event.metadata.get("stream_status") or event.content["status_type"] for event in self.events]
        return [word for word, before in zip(words, [None, *words], strict=False) if word != before]


def model_settings(fake: FakeModel, **models: Any) -> Settings:
    """Settings whose OpenAI and Anthropic are the fake; patience is short."""
    openai = {"openai_api_key": "sk-test", "openai_base_url": fake.base_url}
    anthropic = {"anthropic_api_key": "sk-ant-test", "anthropic_base_url": fake.anthropic_base_url}
    given = {**openai, **anthropic, "idle_timeout": "300ms", "max_retries": 2}
    return Settings(models=ModelSettings(**{**given, **models}))


async def eventually(condition: Callable[[], bool], within: float = 5) -> None:
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another thread
            await asyncio.sleep(0.005)


async def make_thread(conn: Connection) -> UUID:
    account, project, thread = uuid4(), uuid4(), uuid4()
    await conn.execute("INSERT INTO accounts (account_id, name) VALUES ($1, $2)", account, str(account))
    await conn.execute("INSERT INTO projects (project_id, account_id, name) VALUES ($1, $2, 'p')", project, account)
    await conn.execute(
        "INSERT INTO threads (thread_id, account_id, project_id) VALUES ($1, $2, $3)", thread, account, project
    )
    return thread


async def make_run(conn: Connection, thread_id: UUID, model: str = "openai/script-text", **settings: Any) -> Run:
    """A run that attempt 1 of instance `worker` owns."""
    run_id: UUID = await conn.fetchval(
        """
        INSERT INTO agent_runs (account_id, project_id, thread_id, model_name, settings, status, attempt, crashes)
        SELECT account_id, project_id, thread_id, $2, $3::text::jsonb, 'running', 1, 3
        FROM threads WHERE thread_id = $1
        RETURNING id
        """,
        thread_id,
        model,
        orjson.dumps(settings).decode(),
    )
    run = await store.get(conn, run_id)
    assert run
    return run


def fence_of(run: Run) -> Fence:
    return Fence(run.id, run.attempt, "worker")


async def ask(conn: Connection, thread_id: UUID, text: str) -> None:
    await messages.add(conn, thread_id, [NewMessage("user", {"role": "user", "content": text})])


async def make_context(
    pool: Pool, http: AsyncClient, settings: Settings, model: str, **run_settings: Any
) -> tuple[RunContext, RecordingLog]:
    """A run of `model` over a new thread that holds one question."""
    log = RecordingLog()
    async with pool.acquire() as conn:
        thread_id = await make_thread(conn)
        await ask(conn, thread_id, f"What is new, {uuid4()}?")
        run = await make_run(conn, thread_id, model, **run_settings)
    return RunContext(run, fence_of(run), log, pool, http, settings), log
