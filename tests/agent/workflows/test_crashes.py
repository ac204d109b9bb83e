"""A worker that dies at any moment of an execution: what was written down is not done again, what was cut is told."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pytest
from httpx2 import AsyncClient

from agent.context import RunFailed, RunParked
from agent.workflows import engine
from services import run_messages, workflow_steps
from services.postgres import Pool
from services.runs.fence import FenceLost
from services.settings import Settings
from tests.agent.seeds import Counting
from tests.agent.workflows.seeds import World, make_world
from tests.agent.workflows.test_checking import step
from tests.fakes import FakeModel
from tests.sites import Page, Site
from tests.sites import site as serve
from tests.waiting import eventually


class Crash(BaseException):
    """The worker is gone; nothing of ours catches it."""


@dataclass
class Fuse:
    """Crashes at the `at`-th write, before it reaches the store or after it was committed."""

    at: int
    after: bool
    writes: int = 0
    last: str = ""

    @contextmanager
    def lit(self) -> Iterator[None]:
        with (
            patch.object(workflow_steps, "begin", self.around(workflow_steps.begin)),
            patch.object(workflow_steps, "note", self.around(workflow_steps.note)),
            patch.object(run_messages, "add", self.around(run_messages.add)),
        ):
            yield

    def around(self, write: Any) -> Any:
        async def fused(*arguments: Any, **named: Any) -> Any:
            self.writes += 1
            burns = self.writes == self.at
            if burns and not self.after:
                raise Crash
            answer = await write(*arguments, **named)
            if burns:
                raise Crash
            return answer

        return fused


@dataclass
class Effects:
    """What the world outside has seen."""

    site: Site
    counting: Counting

    def requests(self, path: str) -> list[str]:
        return [each.headers["idempotency-key"] for each in self.site.asked if each.path == path]


@pytest.fixture
async def effects() -> AsyncIterator[Effects]:
    async with serve({path: Page(b"ok") for path in ("/put", "/post")}) as site:
        yield Effects(site, Counting())


def everything(site: Site) -> list[dict[str, Any]]:
    """A workflow with a step of every type, one after the other."""
    put = {"method": "PUT", "url": site.url("/put"), "repeatable": True, "retry_delay_seconds": 0}
    post = {"url": site.url("/post"), "retry_delay_seconds": 0}
    return [
        step("given", "loop", type="INPUT", config={"variables": [{"name": "list", "type": "array"}]}),
        step("loop", "sides", type="LOOP", config={"body": "look", "over": "variables.list", "collect": "item"}),
        step("look", "sum", type="MCP_TOOL", config={"tool": "look", "arguments": {"text": "{{ to_string(item) }}"}}),
        step("sum", "loop", config={"set": {"sum": "add(variables.sum, item)"}}),
        step("sides", "act", type="PARALLEL", config={"branches": ["put", "seen"]}),
        step("put", type="WEBHOOK", config=put),
        step("seen", config={"expression": "variables.sum"}),
        step("act", "post", type="MCP_TOOL", config={"tool": "act"}),
        step("post", "ask", type="WEBHOOK", config=post),
        step("ask", "wait", type="AGENT", config={"prompt": "Sum: {{ variables.sum }}"}),
        step("wait", "if", type="WAIT", config={"seconds": 60}),
        step("if", "end", type="CONDITION", config={"expression": "variables.sum == `3`"}),
        step("end", config={"expression": "[variables.sum, steps.ask.output.text]"}),
    ]


async def make(pool: Pool, http: AsyncClient, settings: Settings, effects: Effects) -> World:
    return await make_world(
        pool,
        http,
        settings,
        *everything(effects.site),
        variables={"list": [1, 2], "sum": 0},
        tools=effects.counting.registry,
    )


async def see_through(world: World, fuse: Fuse) -> str:
    """Attempt after attempt until it ends; the first of them die with the fuse."""
    with fuse.lit():
        for _ in range(6):
            try:
                await world.run()
            except Crash:
                continue
            except RunParked:
                await world.pool.execute("UPDATE workflow_steps SET wake_at = now() WHERE wake_at IS NOT NULL")
            except RunFailed as failed:
                return str(failed)
            else:
                return "completed"
    raise AssertionError("it did not end")


async def count_writes(pool: Pool, http: AsyncClient, settings: Settings, effects: Effects) -> int:
    fuse = Fuse(at=0, after=False)
    assert await see_through(await make(pool, http, settings, effects), fuse) == "completed"
    return fuse.writes


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param(lambda at: (at % 2 == 1,), id="every second one"),
        pytest.param(lambda at: (False, True), id="all", marks=pytest.mark.slow),
    ],
)
async def test_wherever_a_worker_dies_what_must_not_be_repeated_is_not(
    pool: Pool, http: AsyncClient, settings: Settings, effects: Effects, moments: Callable[[int], tuple[bool, ...]]
) -> None:
    total = await count_writes(pool, http, settings, effects)
    endings: dict[str, int] = {}
    for at, after in [(moment, after) for moment in range(1, total + 1) for after in moments(moment)]:
        seen = Effects(Site(effects.site.port, effects.site.pages), Counting())
        effects.site.asked.clear()
        world = await make(pool, http, settings, seen)
        ending = await see_through(world, Fuse(at, after))
        seen.site.asked = list(effects.site.asked)
        endings[ending] = endings.get(ending, 0) + 1
        require_truth(world, seen, ending, f"{at} of {total}, {'after' if after else 'before'} the commit")
        if ending == "completed":
            assert (await world.outputs())["end"] == [3, "Hello, this is a scripted answer."]
    assert endings.pop("completed") > total / 2
    assert set(endings) == {engine.CUT.format(title=title) for title in ("act", "post")}


def require_truth(world: World, seen: Effects, ending: str, moment: str) -> None:
    """Not repeatable: at most once; repeatable: at least once, and under one key."""
    calls = seen.counting.calls
    assert calls.count("act") <= 1, moment
    assert len(seen.requests("/post")) <= 1, moment
    assert calls.count("look 1") in (1, 2), moment
    assert set(seen.requests("/put")) == {f"{world.execution_id}:put:0"}, moment
    if ending == "completed":
        assert calls.count("act") == len(seen.requests("/post")) == 1, moment


async def test_a_worker_that_lost_its_run_writes_nothing_more(
    pool: Pool, http: AsyncClient, settings: Settings, effects: Effects
) -> None:
    effects.counting.hold = asyncio.Event()
    steps = (step("a", "b", type="MCP_TOOL", config={"tool": "look"}), step("b"))
    world = await make_world(pool, http, settings, *steps, tools=effects.counting.registry)
    first = asyncio.create_task(world.run())
    await eventually(lambda: effects.counting.calls)
    second = await world.attempt()
    effects.counting.hold.set()
    with pytest.raises(FenceLost):
        await first
    assert (await world.visits())["a"].status == "running"
    await engine.run_workflow(second)
    assert effects.counting.calls == ["look", "look"]
    assert {each.status for each in (await world.visits()).values()} == {"completed"}


async def test_an_agent_goes_on_from_what_it_stored(
    pool: Pool, http: AsyncClient, settings: Settings, fake: FakeModel
) -> None:
    """The answer was stored, the step was not: it is told again and not asked for again."""
    steps = [step(name, *after, type="AGENT", config={"prompt": name}) for name, *after in (("a", "b"), ("b",))]
    for at in (2, 3, 4):
        asked = len(fake.requests)
        world = await make_world(pool, http, settings, *steps)
        assert await see_through(world, Fuse(at, after=True)) == "completed"
        prompts = await pool.fetch(
            "SELECT content ->> 'content' AS said FROM messages WHERE thread_id = $1 AND type = 'user'",
            (await world.row()).thread_id,
        )
        assert [row["said"] for row in prompts] == ["a", "b"]
        assert len(fake.requests) - asked == 2
        assert (await world.row()).attempt == 2


async def test_steps_that_ended_are_told_again_by_whoever_takes_over(
    pool: Pool, http: AsyncClient, settings: Settings
) -> None:
    world = await make_world(pool, http, settings, step("a", "b"), step("b", "c"), step("c"))
    assert await see_through(world, Fuse(at=2, after=True)) == "completed"
    assert world.told == ["completed a", "completed b", "started c", "completed c", "workflow_completed"]


async def test_a_repeatable_request_is_repeated_as_it_was(
    pool: Pool, http: AsyncClient, settings: Settings, effects: Effects
) -> None:
    """What a key stands for must not change with what happened meanwhile."""
    config = {"url": effects.site.url("/put"), "method": "PUT", "repeatable": True, "body": "{{ variables.n }}"}
    world = await make_world(
        pool,
        http,
        settings,
        step("a", "n", type="PARALLEL", config={"branches": ["put", "later"]}),
        step("put", type="WEBHOOK", config=config),
        step("later", config={"set": {"n": "`2`"}}),
        step("n"),
        variables={"n": 1},
    )
    assert await see_through(world, Fuse(at=4, after=False)) == "completed"
    bodies = [each.body for each in effects.site.asked]
    assert set(bodies) == {b"1"}
