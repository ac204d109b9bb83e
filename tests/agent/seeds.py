"""Rows and doubles that tests of the agent start from."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import orjson
from httpx2 import AsyncClient

from agent.calls import ToolCall
from agent.context import Calling, RunContext
from agent.tools.base import Registry, ToolFailed, tool
from agent.tools.standard import STANDARD
from services import messages
from services.messages import Message, NewMessage
from services.postgres import Connection, Pool
from services.runs import store
from services.runs.events import Event
from services.runs.fence import Fence
from services.runs.store import Run
from services.settings import ModelSettings, Settings
from tests.fakes import FakeModel, Reply, contents
from tests.usual import settings_with
from tests.waiting import PATIENT


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
    """Settings whose OpenAI and Anthropic are the fake."""
    openai = {"openai_api_key": "sk-test", "openai_base_url": fake.base_url}
    anthropic = {"anthropic_api_key": "sk-ant-test", "anthropic_base_url": fake.anthropic_base_url}
    given = {**openai, **anthropic, "idle_timeout": "60s", "max_retries": 2}
    return settings_with(models=ModelSettings(**{**given, **models}))


async def eventually(condition: Callable[[], bool], within: float = PATIENT) -> None:
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


def tool_parts(index: int, name: str, arguments: str, call_id: str = "", pieces: int = 3) -> list[dict[str, Any]]:
    """The deltas of one native call, its arguments in pieces, as OpenAI streams it."""
    size = -(-len(arguments) // pieces) or 1
    first = {"index": index, "id": call_id or f"call_{index}", "type": "function"}
    begun = {**first, "function": {"name": name, "arguments": ""}}
    rest = [
        {"index": index, "function": {"arguments": arguments[start : start + size]}}
        for start in range(0, len(arguments), size)
    ]
    return [{"tool_calls": [part]} for part in (begun, *rest)]


def acts(*parts: dict[str, Any], words: str = "", finish_reason: str = "tool_calls") -> Reply:
    """An answer that says some words and makes native calls."""
    return Reply([*contents(words.split(" ") if words else []), *parts], finish_reason=finish_reason)


def resumed(ctx: RunContext) -> tuple[RunContext, RecordingLog]:
    """The same attempt of the row, driven anew: what a worker that takes over starts with."""
    log = RecordingLog()
    return RunContext(
        ctx.run, ctx.fence, log, ctx.pool, ctx.http, ctx.settings, config=ctx.config, tools=ctx.tools
    ), log


async def rows_of(ctx: RunContext) -> list[Message]:
    """What the run stored, in order."""
    async with ctx.pool.acquire() as conn:
        found, _ = await messages.page(conn, ctx.run.thread_id, limit=1000, descending=False, for_model=True)
    return [stored for stored in found if stored.agent_run_id == ctx.run.id]


def calling(ctx: RunContext, name: str = "act") -> Calling:
    """A call of a run, for a tool that is run by itself."""
    now = datetime.now(UTC)
    answer = Message(
        message_id=uuid4(),
        position=1,
        thread_id=ctx.run.thread_id,
        agent_run_id=ctx.run.id,
        type="assistant",
        is_llm_message=True,
        content={"role": "assistant", "content": ""},
        metadata={},
        agent_id=None,
        agent_version_id=None,
        created_at=now,
        updated_at=now,
    )
    return Calling(ctx, ToolCall("call_0", 0, name, "{}"), answer)


class Counting:
    """Tools that count how often they are called; `hold` makes them wait."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.hold: asyncio.Event | None = None
        self.most_at_once = self.at_once = 0

    async def count(self, name: str) -> str:
        self.calls.append(name)
        hold = self.hold
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0.03)
            if hold:
                await hold.wait()
        finally:
            self.at_once -= 1
        return f"{name} done"

    @property
    def registry(self) -> Registry:
        @tool(body="text")
        async def act(context: Any, text: str = "") -> str:
            """Act once."""
            return await self.count(f"act {text}".strip())

        @tool(body="text", repeatable=True)
        async def look(context: Any, text: str = "") -> str:
            """Look."""
            return await self.count(f"look {text}".strip())

        @tool()
        async def refuse(context: Any) -> str:
            """Refuse."""
            raise ToolFailed("It cannot be done.")

        @tool()
        async def crash(context: Any) -> str:
            """Crash."""
            raise ZeroDivisionError("division by zero")

        @tool()
        async def leave(context: Any) -> str:
            """Leave."""
            raise SystemExit("gone")

        @tool(timeout=0.05)
        async def hang(context: Any) -> str:
            """Hang."""
            await asyncio.Event().wait()
            return ""

        @tool()
        async def flood(context: Any) -> str:
            """Flood."""
            return "x" * 1_000_000

        return Registry.of((*STANDARD, act, look, refuse, crash, leave, hang, flood))
