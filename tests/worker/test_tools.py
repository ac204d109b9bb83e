"""A run that calls tools, taken over by another worker at every moment of a call."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any
from unittest.mock import patch

import orjson
import pytest
from redis.asyncio import Redis

from agent import tool_runner
from agent.context import Calling
from agent.tools import standard
from agent.tools.base import ToolResult
from services.runs.store import Run
from services.settings import Settings
from tests import fakes
from tests.agent.seeds import Counting, acts, model_settings, tool_parts
from tests.fakes import FakeModel
from tests.services.runs.seeds import bury, closed, eventually, kinds, listed, make_run
from tests.worker.conftest import open_process
from tests.worker.test_runner import HANDED_OVER, drive, driven
from worker.process import Process

MOMENTS = ("between the call and its tool", "while the tool works", "after its result")


@pytest.fixture
def counting() -> Iterator[Counting]:
    tools = Counting()
    with patch.object(standard, "STANDARD", tools.registry):
        yield tools


@pytest.fixture
def fake() -> Iterator[FakeModel]:
    with FakeModel() as server:
        yield server


@pytest.fixture
async def pair(settings: Settings, redis: Redis, fake: FakeModel) -> AsyncIterator[tuple[Process, Process]]:
    named = settings.model_copy(update={"models": model_settings(fake).models})
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(open_process(named)), await stack.enter_async_context(open_process(named))


async def leave(process: Process, task: "asyncio.Task[None]", *, dies: bool) -> None:
    """The worker dies (nobody beats for its runs any more), or is asked to stop and hands its runs over."""
    if dies:
        process.stores.leases.held.clear()
        return
    process.draining.set()
    await asyncio.wait({task}, timeout=HANDED_OVER)


async def told(process: Process, run: Run, kind: str) -> bool:
    return kind in kinds(await listed(process.stores, run.id))


async def take_over(process: Process, run: Run) -> Run:
    """Drive a run that its worker left; a beat of the dead one that was under way is waited out."""
    async with asyncio.timeout(60):
        while not (row := await drive(process, run)).final:
            await bury(process.stores, run.id)
    return row


async def stored(process: Process, run: Run) -> list[tuple[str, str, Any]]:
    rows = await process.stores.pool.fetch(
        "SELECT type, content, metadata FROM messages WHERE agent_run_id = $1 ORDER BY position", run.id
    )
    return [(row["type"], row["content"]["role"], row["metadata"].get("tool_status")) for row in rows]


def finish_reasons(log: list[bytes]) -> list[str]:
    said = [orjson.loads(orjson.loads(event).get("content", "{}")) for event in log]
    return [each["finish_reason"] for each in said if each.get("status_type") == "finish"]


@pytest.mark.parametrize("dies", [True, False], ids=["dies", "drains"])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("native", [True, False], ids=["native", "xml"])
async def test_a_run_goes_on_elsewhere_whenever_its_worker_leaves(
    pair: tuple[Process, Process], fake: FakeModel, counting: Counting, moment: str, dies: bool, native: bool
) -> None:
    first, second = pair
    reached, runs_tools = asyncio.Event(), tool_runner.run
    counting.hold = asyncio.Event() if moment == MOMENTS[1] else None

    async def run_never(calling: Calling) -> ToolResult:
        reached.set()
        await asyncio.Event().wait()
        return await runs_tools(calling)

    begun = acts(*tool_parts(0, "act", "{}", "a")) if native else fakes.says("<act>now</act>")
    fake.script(begun, *([fakes.silent()] if moment == MOMENTS[2] else []), fakes.says("<complete>Done</complete>"))
    run = await make_run(first.stores.pool, model="openai/m")
    with patch.object(tool_runner, "run", run_never if moment == MOMENTS[0] else runs_tools):
        async with driven(first, run.id) as task:
            if moment == MOMENTS[2]:
                await eventually(lambda: len(fake.requests) == 2)
            else:
                await eventually(lambda: reached.is_set() or bool(counting.calls))
            await eventually(lambda: told(first, run, "finish" if moment == MOMENTS[2] else "tool_started"))
            await leave(first, task, dies=dies)
            counting.hold = None
            with patch.object(tool_runner, "run", runs_tools):
                row = await take_over(second, run)
    assert row.status == "completed"
    await closed(second.stores.pool, run.id)
    assert len(counting.calls) == (0 if moment == MOMENTS[0] else 1), "what may have taken effect is not done again"
    came_to = "completed" if moment == MOMENTS[2] else "failed"
    assert await stored(second, run) == [
        ("assistant", "assistant", None),
        ("tool", "tool" if native else "user", came_to),
        ("assistant", "assistant", None),
        ("tool", "user", "completed"),
    ]
    log = await listed(second.stores, run.id)
    words = kinds(log)
    assert words.count("run_resumed") == words.count("thread_run_end") == 1
    assert words[-1] == "last:completed"
    after = words[words.index("run_resumed") :]
    assert after.count(f"tool_{came_to}") == (1 if came_to == "failed" else 2)
    assert finish_reasons(log)[-1] == "agent_terminated"
